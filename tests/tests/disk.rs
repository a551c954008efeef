//! Disks that are full, read-only, failing or damaged, under both programs: nothing is lost without a word, nothing
//! damaged is taken for whole, the programs go on or end with a reason, and go on when the disk does.
//!
//! Small disks of their own are filled and made read-only; strace makes the k-th system call fail; bits of stopped files
//! are flipped and files cut short. Deliberately absent: the power cut, which has a file of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit, Opened, Place};
use satellite_agent::recorder::frames::FrameWriter;
use satellite_relay::registry::{Registry, RegistryError};
use satellite_shared::clock::{Clock as _, Now, SystemClock};
use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::Epoch;
use satellite_shared::metric::{Kind, Series};
use satellite_shared::ranges::{Overlap, Ranges};
use satellite_shared::wire::block::{Body, ClockQuality, Decoder, Group, header};
use satellite_tests::checker::Verdict;
use satellite_tests::device::Device;
use satellite_tests::disk::Disk;
use satellite_tests::house::{House, document, two_devices};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::relay::Relay;
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::{tree, wait};

/// The buffer asks for its store every 30 seconds, the relay's longest pause is as long.
const RECOVERS_WITHIN: Duration = Duration::from_secs(240);
const DISK_MIB: u64 = 96;
/// No opening of a buffer takes this long.
const OPENS_WITHIN: Duration = Duration::from_secs(300);
/// Faults before the files are checked, and the next scene begins.
const FAULTS_A_SCENE: usize = 20;

fn main() -> ExitCode {
    const DISK: &[Peer] = &[Peer::LoopDevice, Peer::Python];
    const STRACE: &[Peer] = &[Peer::Strace, Peer::Python];
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_satellite_on_a_full_disk_goes_on_polling_and_says_so", DISK, full_satellite),
        journey("a_relay_on_a_full_disk_acknowledges_nothing_until_it_can_store", DISK, full_relay),
        journey("a_satellite_on_a_disk_gone_read_only_goes_on_polling_and_says_so", DISK, read_only_satellite),
        journey("a_relay_on_a_disk_gone_read_only_acknowledges_nothing", DISK, read_only_relay),
        journey("a_satellite_whose_kth_system_call_fails_loses_nothing_silently", STRACE, failing_satellite),
        journey("a_relay_whose_kth_system_call_fails_loses_nothing", STRACE, failing_relay),
        journey("a_second_program_on_the_same_directory_is_refused_and_changes_nothing", PYTHON, opened_twice),
        journey("what_is_left_of_a_damaged_buffer_is_kept_and_the_rest_explained", &[], damaged_buffers),
        journey("a_satellite_with_a_damaged_buffer_starts_and_explains_what_is_lost", PYTHON, damaged_satellites),
        journey("a_damaged_registry_is_never_taken_for_whole", &[], damaged_registries),
        journey("a_relay_with_a_damaged_registry_names_the_backup_and_goes_on_with_it", PYTHON, damaged_relay),
    ])
}

fn seeds(short: u32) -> impl Iterator<Item = u64> {
    let first = first_seed();
    (first..).take(usize::try_from(rounds(short)).unwrap_or(usize::MAX))
}

fn index(dice: &mut Dice, end: usize) -> usize {
    usize::try_from(dice.below(end as u64)).unwrap_or_default()
}

/// A house of which one folder is a disk of its own.
fn house_on_disk(dir: &Path, folder: &str, plug: &Device, page: &Device) -> Result<(House, Disk)> {
    let disk = Disk::new(&dir.join("image"), &dir.join(folder), DISK_MIB)?;
    let house = House::new(dir, &[plug, page])?;
    house.configure(&document(plug, page))?;
    house.wait_for_polls(plug, 3)?;
    Ok((house, disk))
}

// Full.

fn wait_for_health(house: &House, health: &str) -> Result<String> {
    let mut why = String::new();
    wait::until_true(&format!("the buffer is {health}"), RECOVERS_WITHIN, || {
        let buffer = house.satellite.status()?["buffer"].clone();
        why = buffer["why"].as_str().unwrap_or_default().to_owned();
        Ok(buffer["health"] == health)
    })?;
    Ok(why)
}

fn full_satellite(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let (mut house, disk) = house_on_disk(dir, "attic/state", &plug, &page)?;
    disk.fill()?;
    let why = wait_for_health(&house, "degraded")?;
    ensure!(why.contains("free"), "it says what is the matter: {why}");
    house.wait_for_polls(&plug, 5)?;
    house.satellite.check_running()?;
    disk.free()?;
    wait_for_health(&house, "healthy")?;
    house.wait_for_polls(&plug, 2)?;

    // And started on a disk that is full: first with its ballast to throw off, then without.
    for _ in 0..2 {
        disk.fill()?;
        wait_for_health(&house, "degraded")?;
        house.satellite.stop()?;
        disk.fill()?;
        house.satellite.start()?;
        house.wait_for_polls(&plug, 3)?;
    }
    disk.fill()?;
    wait_for_health(&house, "degraded")?;
    house.wait_for_polls(&plug, 5)?;
    house.satellite.check_running()?;
    disk.free()?;
    wait_for_health(&house, "healthy")?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn wait_for_log(log: &Path, words: &str) -> Result<()> {
    wait::until_true(&format!("the log says `{words}`"), RECOVERS_WITHIN, || {
        Ok(String::from_utf8_lossy(&std::fs::read(log)?).contains(words))
    })
}

/// Records that the satellite still has are not acknowledged.
fn wait_for_backlog(house: &House, more: u64) -> Result<()> {
    let records =
        || Ok::<_, anyhow::Error>(house.satellite.status()?["buffer"]["records"].as_u64().unwrap_or_default());
    let before = records()?;
    wait::until_true("the satellite keeps what it has", RECOVERS_WITHIN, || Ok(records()? >= before + more))
}

fn full_relay(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let (mut house, disk) = house_on_disk(dir, "relay/data", &plug, &page)?;
    disk.fill()?;
    wait_for_log(&house.relay.log(), "satellites buffer until it works")?;
    wait_for_backlog(&house, 20)?;
    house.relay.check_running()?;
    let refused = house.relay.configure(&house.id, &document(&page, &plug))?;
    ensure!(refused.code == 1 && refused.all().contains("full"), "the command says why: {refused:?}");
    disk.free()?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "the satellite ran all the time and lost nothing: {:?}", verdict.reasons);
    Ok(())
}

// Read-only.

fn read_only_satellite(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let (mut house, mut disk) = house_on_disk(dir, "attic/state", &plug, &page)?;
    disk.make_read_only()?;
    let why = wait_for_health(&house, "degraded")?;
    ensure!(why.contains("ead-only"), "it says what is the matter: {why}");
    house.wait_for_polls(&plug, 5)?;
    house.satellite.check_running()?;
    house.satellite.stop()?;
    // The disk is still like this at the next start: it polls, and waits for its disk.
    house.satellite.start()?;
    wait_for_health(&house, "degraded")?;
    house.wait_for_polls(&plug, 3)?;
    house.satellite.stop()?;
    disk.repair()?;
    house.satellite.start()?;
    house.wait_for_polls(&plug, 2)?;
    wait_for_health(&house, "healthy")?;
    house.finish(&[&plug, &page])?;
    Ok(())
}

fn read_only_relay(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let (mut house, mut disk) = house_on_disk(dir, "relay/data", &plug, &page)?;
    disk.make_read_only()?;
    wait_for_log(&house.relay.log(), "satellites buffer until it works")?;
    wait_for_backlog(&house, 20)?;
    house.relay.check_running()?;
    house.relay.stop()?;
    let refused = house.relay.command(&["satellite", "list"])?;
    ensure!(refused.code == 78 && refused.all().contains("Read-only"), "the command says why: {refused:?}");
    disk.repair()?;
    house.relay.start()?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "the satellite ran all the time and lost nothing: {:?}", verdict.reasons);
    Ok(())
}

// The k-th system call.

/// System calls of which one fails, and among how many.
struct Calls {
    names: &'static str,
    among: u64,
    /// Only where they are about these files.
    files: &'static [&'static str],
}

const SATELLITE_CALLS: [Calls; 7] = [
    Calls { names: "pwrite64", among: 40, files: &[] },
    Calls { names: "fdatasync", among: 20, files: &[] },
    Calls { names: "fsync", among: 6, files: &[] },
    Calls { names: "?rename,?renameat,?renameat2", among: 4, files: &[] },
    Calls { names: "ftruncate,?fallocate", among: 3, files: &[] },
    Calls {
        names: "openat,read,pread64,?statx,flock",
        among: 30,
        files: &["buffer/db", "buffer.lock", "buffer/format"],
    },
    Calls { names: "openat,write,fsync", among: 6, files: &["buffer/mark.new", "buffer/format.new", "buffer/mark"] },
];

const RELAY_CALLS: [Calls; 7] = [
    Calls { names: "pwrite64", among: 80, files: &[] },
    Calls { names: "fdatasync,fsync", among: 30, files: &[] },
    Calls { names: "?rename,?renameat,?renameat2,?link,?linkat", among: 8, files: &[] },
    Calls { names: "ftruncate,?fallocate", among: 4, files: &[] },
    Calls { names: "?unlink,unlinkat,?mkdir,mkdirat", among: 6, files: &[] },
    Calls { names: "openat,read,pread64", among: 60, files: &["registry.db", "registry.db-wal", "registry.lock"] },
    Calls {
        names: "openat,read,write,fsync",
        among: 8,
        files: &["addresses.new", "authority/ca.pem", "authority/server.pem"],
    },
];

/// The words before the program's own, and the fault for people.
fn fault(dice: &mut Dice, calls: &[Calls], folder: &Path) -> (Vec<String>, String) {
    let chosen = &calls[index(dice, calls.len())];
    // Once, every third time from there on, or for ever: a bad block, a loose cable, a dead disk.
    let when = 1 + dice.below(chosen.among);
    let when = match dice.below(4) {
        0 => format!("{when}+"),
        1 => format!("{when}+3"),
        _ => when.to_string(),
    };
    let inject = format!("inject={}:error=EIO:when={when}", chosen.names);
    let strace = Peer::Strace.path().unwrap_or_default().display().to_string();
    let mut words: Vec<String> = [
        strace.as_str(),
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={}", chosen.names),
        "-e",
        &inject,
    ]
    .map(str::to_owned)
    .into();
    for file in chosen.files {
        words.push("-P".into());
        words.push(folder.join(file).display().to_string());
    }
    words.push("--".into());
    (words, inject)
}

/// A program that ended did so with a reason, not by a panic or a signal.
fn ended_with_a_reason(error: &anyhow::Error) -> Result<()> {
    let said = format!("{error:#}");
    let orderly = said.contains("exit status: 1:")
        || said.contains("exit status: 78:")
        || said.contains("exit status: 1\n")
        || said.contains("exit status: 78\n");
    ensure!(said.contains("ended by itself") && orderly, "it ended in a way that helps nobody: {said}");
    Ok(())
}

fn failing_satellite(dir: &Path) -> Result<()> {
    in_scenes(dir, 5, |house, plug, dice| {
        house.satellite.kill()?;
        let (words, inject) = fault(dice, &SATELLITE_CALLS, &house.satellite.state_dir());
        house.satellite.run_under(&words);
        let lived = house.satellite.start().and_then(|()| live_on(house, plug, 2 + index(dice, 3)));
        if let Err(error) = &lived {
            ended_with_a_reason(error).with_context(|| inject.clone())?;
        } else {
            house.satellite.kill()?;
        }
        house.satellite.run_under(&[]);
        house.satellite.start().with_context(|| format!("the start after {inject}"))?;
        house.wait_for_polls(plug, 1).with_context(|| inject.clone())
    })
}

/// It polls, as often as this, or ends.
fn live_on(house: &mut House, plug: &Device, polls: usize) -> Result<()> {
    let wanted = plug.requests() + polls;
    wait::until("polls", RECOVERS_WITHIN, || {
        house.satellite.check_running()?;
        Ok((plug.requests() >= wanted).then_some(()))
    })
}

fn failing_relay(dir: &Path) -> Result<()> {
    in_scenes(dir, 5, |house, plug, dice| {
        house.relay.kill()?;
        house.satellite.kill()?;
        let (words, inject) = fault(dice, &RELAY_CALLS, &house.relay.data_dir());
        house.relay.run_under(&words);
        let started = house.relay.start();
        house.satellite.start()?;
        let lived = started.and_then(|()| {
            house.wait_for_polls(plug, 2 + index(dice, 3))?;
            house.relay.check_running()
        });
        match &lived {
            Err(error) => ended_with_a_reason(error).with_context(|| inject.clone())?,
            Ok(()) => house.relay.kill()?,
        }
        house.relay.run_under(&[]);
        house.satellite.kill()?;
        house.relay.start().with_context(|| format!("the start after {inject}"))?;
        house.satellite.start()?;
        house.wait_for_link(true).with_context(|| inject.clone())
    })
}

/// Houses in which one thing after the other goes wrong, each with the checker at its end.
fn in_scenes(
    dir: &Path,
    short: u32,
    mut round: impl FnMut(&mut House, &Device, &mut Dice) -> Result<()>,
) -> Result<()> {
    let all: Vec<u64> = seeds(short).collect();
    let mut told = [0; 6];
    for seeds in all.chunks(FAULTS_A_SCENE) {
        let place = dir.join(format!("s{}", seeds[0]));
        std::fs::create_dir(&place)?;
        let (plug, page) = two_devices()?;
        let mut house = House::new(&place, &[&plug, &page])?;
        house.configure(&document(&plug, &page))?;
        house.wait_for_polls(&plug, 1)?;
        for &seed in seeds {
            round(&mut house, &plug, &mut Dice::new(seed)).with_context(|| format!("seed {seed}"))?;
        }
        house.wait_for_polls(&plug, 2)?;
        let verdict = house.finish(&[&plug, &page]).with_context(|| format!("the scene of the seeds {seeds:?}"))?;
        add(&mut told, &verdict);
        drop(house);
        std::fs::remove_dir_all(&place)?;
    }
    journey::note(&format!("{} faults: {}", all.len(), figures(&told)));
    Ok(())
}

fn add(told: &mut [u64; 6], verdict: &Verdict) {
    let more =
        [verdict.stored, verdict.explained, verdict.lost, verdict.duplicates, verdict.unexpected, verdict.altered];
    told.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

fn figures([stored, explained, lost, doubled, unexpected, altered]: &[u64; 6]) -> String {
    format!(
        "stored {stored}, explained {explained}, lost {lost}, doubled {doubled}, unexpected {unexpected}, altered {altered}"
    )
}

// Twice.

fn opened_twice(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 2)?;
    let second = house.satellite.command(&["run"], "")?;
    ensure!(second.code == 1 && second.all().contains("another satellite runs with this buffer"), "{second:?}");
    let second = house.relay.command(&["serve"])?;
    ensure!(
        second.code == 1 && second.all().contains("another `satellite-relay serve` runs on this folder"),
        "{second:?}"
    );
    house.satellite.check_running()?;
    house.relay.check_running()?;
    house.wait_for_polls(&plug, 2)?;
    ensure!(house.is_linked()?, "the first satellite still has its link");
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(verdict.polled_all_the_time(), "the first satellite noticed nothing: {:?}", verdict.reasons);
    Ok(())
}

// Damage.

/// What a buffer was given, of each epoch.
#[derive(Debug, Default)]
struct Given {
    /// The frames as they were committed, by their first records.
    frames: BTreeMap<u64, Vec<u8>>,
    /// The frames as they were held in the end: small ones become large ones.
    held: BTreeMap<u64, Vec<u8>>,
    /// Samples due up to a record, where a frame ends.
    due: BTreeMap<u64, u64>,
    forgotten: Ranges,
    last_seq: u64,
}

struct Base {
    dir: PathBuf,
    given: BTreeMap<Epoch, Given>,
}

fn settings(dir: &Path) -> BufferSettings {
    BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(dir.join("buffer")) }
}

fn open(dir: &Path) -> Result<(Buffer, Opened)> {
    Ok(Buffer::open(settings(dir), Arc::new(SystemClock))?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn end() -> Place {
    Place { opening: u32::MAX, seq: 0 }
}

/// A buffer with three openings of blocks small and large, some of them acknowledged, closed as it should be.
fn build(dir: &Path, dice: &mut Dice) -> Result<Base> {
    let runtime = runtime()?;
    let mut given = BTreeMap::new();
    for _ in 0..3 {
        let (buffer, opened) = open(dir)?;
        let mut writer = FrameWriter::new(opened.epoch);
        let mut epoch = Given { due: BTreeMap::from([(0, 0)]), ..Given::default() };
        for round in 0..40 {
            let now = SystemClock.now();
            let series = if round == 0 { writer.series(&series(200), now) } else { Vec::new() };
            let blocks = some_blocks(&mut writer, dice, now);
            for frame in &blocks {
                let header = header(frame)?;
                epoch.due.insert(header.last_seq(), header.due_through());
                epoch.last_seq = header.last_seq();
                epoch.frames.insert(header.first_seq, frame.clone());
            }
            let notes = vec![round; 100];
            runtime.block_on(buffer.commit(Commit { series, blocks, notes, ..Commit::default() }))?;
        }
        let own = runtime.block_on(buffer.read(Place::default(), end(), usize::MAX))?;
        for block in own {
            let header = header(&block.frame)?;
            if header.epoch == opened.epoch {
                epoch.held.insert(header.first_seq, block.frame.to_vec());
            }
        }
        // Two lanes: the backlog's acknowledgements, and those of what was new.
        let third = epoch.last_seq / 3;
        epoch.forgotten = [(1, third), (2 * third, 2 * third + third / 4)].into_iter().collect();
        runtime.block_on(buffer.forget(opened.epoch, &epoch.forgotten))?;
        buffer.close();
        given.insert(opened.epoch, epoch);
    }
    Ok(Base { dir: dir.to_owned(), given })
}

fn series(count: u32) -> Vec<Series> {
    let device: satellite_shared::id::DeviceName = "host".parse().expect("a name");
    let one = |n| Series {
        device: device.clone(),
        name: format!("series_{n}"),
        kind: Kind::Gauge,
        unit: String::new(),
        labels: Vec::new(),
    };
    (0..count).map(one).collect()
}

fn some_blocks(writer: &mut FrameWriter, dice: &mut Dice, now: Now) -> Vec<Vec<u8>> {
    let count = [2, 30, 200][index(dice, 3)];
    let values = (0..count).map(|_| dice.below(1 << 50) as f64 * 0.001).collect();
    let group = Group { series: (0..count).collect(), times_ms: vec![now.wall_ms], values };
    let mut blocks = writer.samples(vec![group], now, ClockQuality::Unknown);
    if dice.one_in(8) {
        blocks.extend(writer.gaps(&[gap(now, 7)], now, ClockQuality::Unknown));
    }
    blocks
}

fn gap(now: Now, count: u64) -> Gap {
    Gap {
        device: None,
        metric: None,
        from_ms: now.wall_ms,
        to_ms: now.wall_ms,
        count,
        reason: Reason::Timeout,
        detail: String::new(),
        lost: None,
    }
}

fn damaged_buffers(dir: &Path) -> Result<()> {
    let base = Arc::new(build(&dir.join("base"), &mut Dice::new(first_seed()))?);
    let (mut salvaged, mut all) = (0, 0);
    for seed in seeds(40) {
        let place = dir.join("copy");
        let (done, outcome) = mpsc::channel();
        let (of_thread, base) = (place.clone(), Arc::clone(&base));
        // In a thread, so that an endless loop is a failure and not a hang.
        std::thread::spawn(move || drop(done.send(damage_and_open(&base, &of_thread, &mut Dice::new(seed)))));
        let outcome = outcome.recv_timeout(OPENS_WITHIN).map_err(|_| anyhow!("it never ends, or it panicked"));
        let set_aside = outcome.and_then(|done| done).with_context(|| format!("seed {seed}"))?;
        salvaged += u32::from(set_aside);
        all += 1;
        std::fs::remove_dir_all(&place)?;
    }
    journey::note(&format!(
        "{all} damaged buffers, {salvaged} of them set aside and salvaged; every record accounted for"
    ));
    Ok(())
}

/// Whether the damage was noticed; none may be that costs a record.
fn damage_and_open(base: &Base, place: &Path, dice: &mut Dice) -> Result<bool> {
    tree::copy(&base.dir, place)?;
    let what = damage(&place.join("buffer"), dice)?;
    open_damaged(base, place).with_context(|| what)
}

/// Flips a bit of a file of a stopped buffer, or cuts the file short; says what it did.
fn damage(buffer: &Path, dice: &mut Dice) -> Result<String> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(buffer)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() && name != "db" && name != "ballast" && path.metadata()?.len() > 0 {
            others.push(path);
        }
    }
    others.sort();
    damage_file(&if dice.one_in(4) { others[index(dice, others.len())].clone() } else { buffer.join("db") }, dice)
}

fn damage_file(path: &Path, dice: &mut Dice) -> Result<String> {
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let (len, name) = (file.metadata()?.len(), path.display());
    let at = dice.below(len);
    if dice.one_in(4) {
        file.set_len(at)?;
        return Ok(format!("{name} cut from {len} to {at} bytes"));
    }
    let (mut byte, bit) = ([0u8], dice.below(8));
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at)?;
    Ok(format!("bit {bit} of byte {at} of the {len} of {name}"))
}

fn open_damaged(base: &Base, place: &Path) -> Result<bool> {
    let runtime = runtime()?;
    let (buffer, opened) = open(place)?;
    ensure!(!base.given.contains_key(&opened.epoch), "an epoch was used again");
    let blocks = runtime.block_on(buffer.read(Place::default(), end(), usize::MAX))?;
    let mut covered: BTreeMap<Epoch, Ranges> = BTreeMap::new();
    for block in &blocks {
        let header = header(&block.frame)?;
        let given = base.given.get(&header.epoch).context("a block of an epoch that never was")?;
        let mut known = [&given.frames, &given.held].into_iter().filter_map(|frames| frames.get(&header.first_seq));
        // Nor one on the way from the one to the other, which only its own checksum knows.
        let whole = known.any(|frame| *frame == *block.frame) || is_made_of(given, &block.frame)?;
        ensure!(whole, "an altered block: {header:?}");
        let ranges = covered.entry(header.epoch).or_default();
        let whole = ranges.overlap(header.first_seq, header.last_seq()) == Overlap::None;
        ensure!(whole, "{header:?} is there twice");
        ranges.insert(header.first_seq, header.last_seq());
    }
    for loss in &opened.losses {
        let lost = loss.lost;
        let given = base.given.get(&lost.epoch).context("a loss of an epoch that never was")?;
        ensure!(loss.reason == Reason::Corrupt, "{loss:?}");
        let ranges = covered.entry(lost.epoch).or_default();
        let apart = ranges.overlap(lost.first_seq, lost.last_seq) == Overlap::None;
        ensure!(apart, "what is there is told lost, or told twice: {loss:?}");
        ranges.insert(lost.first_seq, lost.last_seq);
        let (before, through) = (given.due.get(&(lost.first_seq - 1)), given.due.get(&lost.last_seq));
        let (Some(before), Some(through)) = (before, through) else { bail!("no such records: {loss:?}") };
        ensure!(lost.due_through == *through && loss.count == through - before, "{before} {through} due: {loss:?}");
        for frame in given.frames.range(lost.first_seq..=lost.last_seq).map(|(_, frame)| frame) {
            let made_ms = header(frame)?.made.wall_ms;
            ensure!(loss.from_ms <= made_ms && made_ms <= loss.to_ms, "made at {made_ms}: {loss:?}");
        }
    }
    for (epoch, given) in &base.given {
        let mut ranges = covered.remove(epoch).unwrap_or_default();
        for (first, last) in whole_frames(given) {
            ranges.insert(first, last);
        }
        ensure!(ranges.as_slice() == [(1, given.last_seq)], "of 1 to {} only {ranges:?}", given.last_seq);
    }
    go_on(&runtime, buffer, &opened)?;
    let (buffer, opened) = open(place)?;
    buffer.close();
    ensure!(opened.losses.is_empty(), "explained, and here again: {:?}", opened.losses);
    let siblings = std::fs::read_dir(place)?.flatten();
    Ok(siblings.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("damaged-")))
}

/// Whether a block holds exactly the samples of the frames that it was merged from.
fn is_made_of(given: &Given, frame: &[u8]) -> Result<bool> {
    let mut decoder = Decoder::default();
    let mut of_body = |frame: &[u8]| -> Result<Vec<(i64, u32, u64)>> {
        let (_, Body::Samples(groups)) = decoder.decode(frame)? else { return Ok(Vec::new()) };
        let mut samples = Vec::new();
        for group in groups {
            let times = group.times_ms.len();
            for (at, value) in group.values.iter().enumerate() {
                samples.push((group.times_ms[at % times], group.series[at / times], value.to_bits()));
            }
        }
        samples.sort_unstable();
        Ok(samples)
    };
    let header = header(frame)?;
    let mut parts = Vec::new();
    for part in given.frames.range(header.first_seq..=header.last_seq()).map(|(_, part)| part) {
        parts.extend(of_body(part)?);
    }
    parts.sort_unstable();
    Ok(!parts.is_empty() && parts == of_body(frame)?)
}

/// The frames that were wholly acknowledged.
fn whole_frames(given: &Given) -> Vec<(u64, u64)> {
    let spans = given.held.values().filter_map(|frame| header(frame).ok());
    let spans = spans.map(|header| (header.first_seq, header.last_seq()));
    spans.filter(|(first, last)| given.forgotten.overlap(*first, *last) == Overlap::Whole).collect()
}

/// Commits explanations of all losses and some samples, then closes.
fn go_on(runtime: &tokio::runtime::Runtime, buffer: Buffer, opened: &Opened) -> Result<()> {
    let mut writer = FrameWriter::new(opened.epoch);
    let now = SystemClock.now();
    let explained: Vec<Gap> = opened
        .losses
        .iter()
        .map(|loss| Gap { reason: loss.reason, lost: Some(loss.lost), count: loss.count, ..gap(now, 0) })
        .collect();
    let mut blocks = writer.gaps(&explained, now, ClockQuality::Unknown);
    blocks.extend(some_blocks(&mut writer, &mut Dice::new(1), now));
    let losses_explained = opened.losses.len();
    let commit = Commit { blocks, losses_explained, ..Commit::default() };
    let committed = runtime.block_on(buffer.commit(commit))?;
    ensure!(committed.losses.is_empty() && !committed.degraded, "{committed:?}");
    buffer.close();
    Ok(())
}

/// The whole program, stopped, its buffer damaged, started.
fn damaged_satellites(dir: &Path) -> Result<()> {
    in_scenes(dir, 3, |house, plug, dice| {
        house.relay.session.cut();
        house.wait_for_polls(plug, 4)?;
        house.satellite.stop()?;
        let what = damage(&house.satellite.state_dir().join("buffer"), dice)?;
        house.satellite.start().with_context(|| what.clone())?;
        house.wait_for_polls(plug, 1)?;
        house.satellite.check_running().with_context(|| what.clone())?;
        house.relay.session.mend();
        house.wait_for_link(true).with_context(|| what)
    })
}

// The relay's registry.

/// A relay with a lease, a satellite's account and a configuration, stopped in order.
fn stopped_relay(dir: &Path) -> Result<Relay> {
    let mut relay = Relay::new(dir, "")?;
    relay.start()?;
    for n in 0..30 {
        let satellite = relay.lease(&format!("house-{n}"), &[])?;
        relay.configure(&format!("house-{n}"), &format!("# {}\ndevice = []\n", satellite.id))?.success()?;
    }
    relay.stop()?;
    Ok(relay)
}

fn damaged_registries(dir: &Path) -> Result<()> {
    let relay = stopped_relay(dir)?;
    let (mut refused, mut all) = (0, 0);
    for seed in seeds(60) {
        let place = dir.join("copy");
        copy_registry(&relay.data_dir(), &place)?;
        let dice = &mut Dice::new(seed);
        // Stopped in order it has a seal; after a crash there is none, and what SQLite can tell must do.
        let sealed = !dice.one_in(3);
        if !sealed {
            std::fs::remove_file(place.join("registry.seal"))?;
        }
        let what = rot(&place.join("registry.db"), dice)?;
        let (done, outcome) = mpsc::channel();
        let of_thread = place.clone();
        std::thread::spawn(move || drop(done.send(open_registry(&of_thread))));
        let outcome = outcome.recv_timeout(OPENS_WITHIN).map_err(|_| anyhow!("it never ends, or it panicked"));
        let noticed = outcome.and_then(|done| done).with_context(|| format!("seed {seed}: {what}"))?;
        ensure!(noticed || !sealed, "seed {seed}: {what}: taken for whole");
        refused += u32::from(noticed);
        all += 1;
        std::fs::remove_dir_all(&place)?;
    }
    journey::note(&format!("{all} damaged registries, {refused} of them refused"));
    Ok(())
}

/// The registry with its seal, and its time of change, which a seal knows.
fn copy_registry(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for name in ["registry.db", "registry.seal"] {
        std::fs::copy(from.join(name), to.join(name)).context(name)?;
    }
    keep_time(&to.join("registry.db"), std::fs::metadata(from.join("registry.db"))?.modified()?)
}

fn keep_time(path: &Path, modified: std::time::SystemTime) -> Result<()> {
    let file = std::fs::File::options().write(true).open(path)?;
    Ok(file.set_times(std::fs::FileTimes::new().set_modified(modified))?)
}

/// Damages a file as a disk does, without a change of its time.
fn rot(path: &Path, dice: &mut Dice) -> Result<String> {
    let modified = std::fs::metadata(path)?.modified()?;
    let what = damage_file(path, dice)?;
    keep_time(path, modified)?;
    Ok(what)
}

/// Whether it was refused, with words that help.
fn open_registry(dir: &Path) -> Result<bool> {
    let opened = runtime()?.block_on(async {
        let registry = Registry::open(dir).await?;
        registry.satellites().await?;
        registry.revision().await?;
        registry.close().await
    });
    match opened {
        Ok(()) => Ok(false),
        Err(error @ RegistryError::Damaged { .. }) => {
            ensure!(error.to_string().contains("cp BACKUP"), "{error}");
            Ok(true)
        }
        // What SQLite takes for whole and what our own reading does not.
        Err(
            error @ (RegistryError::Content { .. }
            | RegistryError::Migration(_)
            | RegistryError::Newer { .. }
            | RegistryError::Database(_)),
        ) => {
            ensure!(!error.to_string().is_empty(), "without a word");
            Ok(true)
        }
        Err(error) => bail!("{error}"),
    }
}

fn damaged_relay(dir: &Path) -> Result<()> {
    let (plug, page) = two_devices()?;
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_polls(&plug, 3)?;
    house.relay.stop()?;
    let registry = house.relay.data_dir().join("registry.db");
    let backup = dir.join("backup");
    std::fs::copy(&registry, &backup)?;
    for seed in seeds(3) {
        let what = rot(&registry, &mut Dice::new(seed))?;
        let left = std::fs::read(&registry)?;
        for command in [&["serve"][..], &["satellite", "list"], &["account", &house.id]] {
            let refused = house.relay.command(command)?;
            let helps = refused.all().contains("is damaged") && refused.all().contains("cp BACKUP");
            ensure!(refused.code == 78 && helps, "seed {seed}: {what}: {command:?}: {refused:?}");
        }
        ensure!(std::fs::read(&registry)? == left, "seed {seed}: what is refused is not touched");
        // As the message says.
        std::fs::copy(&backup, &registry)?;
        house.relay.start()?;
        house.satellite.kill()?;
        house.satellite.start()?;
        house.wait_for_link(true)?;
        house.wait_for_polls(&plug, 2)?;
        house.relay.stop()?;
        std::fs::copy(&registry, &backup)?;
    }
    house.relay.start()?;
    house.satellite.kill()?;
    house.satellite.start()?;
    house.finish(&[&plug, &page])?;
    Ok(())
}
