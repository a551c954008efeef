//! The power cut, of either end: what was said to be stored is there after the machine went dark.
//!
//! The programs keep their files on a disk of their own, a loop device. They are made to stand still at a moment that
//! dice choose, the device is copied as it stands, and they go on with the copy: what the kernel had not yet written is
//! gone. What they had acknowledged stands where no cut reaches: at the other end, in the devices' own logs, in a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit, Place};
use satellite_agent::recorder::frames::FrameWriter;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_shared::wire::block::{ClockQuality, Group, header};
use satellite_tests::checker::Verdict;
use satellite_tests::device::{Device, Manner};
use satellite_tests::disk::Disk;
use satellite_tests::house::House;
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::relay::Relay;
use satellite_tests::rounds::{Dice, first_seed, rounds};
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;

/// Tells the program that it is the one that commits, where, and where to say so.
const WRITER_ENV: &str = "SATELLITE_POWER_WRITER";
/// The size of its groups.
const WRITER_SERIES_ENV: &str = "SATELLITE_POWER_SERIES";
/// No writer goes on for ever.
const COMMITS_MAX: u64 = 20_000;
const DISK_MIB: u64 = 160;
/// Cuts before the files are checked, and the next scene begins.
const CUTS_A_SCENE: u32 = 10;
/// Series of a device beside its own two: small groups and large ones.
const NOISE: [usize; 4] = [0, 40, 400, 3_000];
/// A satellite that commits often, and a relay too: many commits to be cut.
const OFTEN: &str = "[buffer]\ncommit_every = \"100ms\"\nfree_mib_min = 0\nfree_percent_min = 0\n";
const OFTEN_RELAY: &str = "commit_every = \"100ms\"\n";

fn main() -> ExitCode {
    const DISK: &[Peer] = &[Peer::LoopDevice];
    const DISK_AND_PYTHON: &[Peer] = &[Peer::LoopDevice, Peer::Python];
    if let Some(places) = std::env::var_os(WRITER_ENV) {
        return match commit_until_stopped(Path::new(&places)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    journey::run(vec![
        journey("an_acknowledged_record_survives_a_power_cut", DISK, cut_buffers),
        journey("what_a_satellite_committed_survives_its_power_cuts", DISK_AND_PYTHON, cut_satellites),
        journey("what_a_relay_acknowledged_survives_its_power_cuts", DISK_AND_PYTHON, cut_relays),
        journey("what_a_command_said_is_done_survives_a_power_cut", DISK, cut_after_commands),
    ])
}

// The buffer alone: nothing is quicker.

fn cut_buffers(dir: &Path) -> Result<()> {
    for seed in seeds(6) {
        let place = dir.join(format!("seed{seed}"));
        cut_buffer(&place, &mut Dice::new(seed)).with_context(|| format!("seed {seed}"))?;
        std::fs::remove_dir_all(&place)?;
    }
    Ok(())
}

fn seeds(short: u32) -> impl Iterator<Item = u64> {
    let first = first_seed();
    (first..).take(usize::try_from(rounds(short)).unwrap_or(usize::MAX))
}

fn settings(disk: &Path) -> BufferSettings {
    BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(disk.join("buffer")) }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The writer: commits, and says how far it is where no cut reaches.
fn commit_until_stopped(dir: &Path) -> Result<()> {
    let series: u32 = std::env::var(WRITER_SERIES_ENV)?.parse()?;
    let (buffer, opened) = Buffer::open(settings(&dir.join("disk")), Arc::new(SystemClock))?;
    let mut writer = FrameWriter::new(opened.epoch);
    let mut said = std::fs::File::create(dir.join("acknowledged"))?;
    runtime()?.block_on(async {
        for round in 0..COMMITS_MAX {
            let times_ms = vec![SystemClock.now().wall_ms];
            let values = (0..series).map(|n| f64::from(n) * 0.37 + round as f64).collect();
            let group = Group { series: (0..series).collect(), times_ms, values };
            let blocks = writer.samples(vec![group], SystemClock.now(), ClockQuality::Unknown);
            let notes = round.to_le_bytes().to_vec();
            buffer.commit(Commit { blocks, notes, ..Commit::default() }).await?;
            writeln!(said, "{}", (round + 1) * u64::from(series))?;
        }
        Ok(())
    })
}

fn cut_buffer(dir: &Path, dice: &mut Dice) -> Result<()> {
    // Few commits and many, small and large ones, so that the log grows over its segments.
    let (series, commits_max) = ([3, 60, 300, 1_500][index(dice, 4)], [5, 60, 250][index(dice, 3)]);
    let commits = 1 + dice.below(commits_max);
    std::fs::create_dir_all(dir)?;
    let mut disk = Disk::new(&dir.join("image"), &dir.join("disk"), DISK_MIB)?;
    let writer = Writer::start(dir, series)?;
    let wanted = commits * series;
    wait::until_true("the writer commits", Duration::from_secs(180), || Ok(acknowledged(dir)? >= wanted))?;
    let copy = dir.join("copy");
    disk.copy_under(writer.0.id(), &copy)?;
    let acknowledged = acknowledged(dir)?;
    drop(writer);
    disk.go_on_with(&copy)?;

    let (buffer, opened) = Buffer::open(settings(disk.point()), Arc::new(SystemClock))?;
    ensure!(opened.losses.is_empty(), "losses after the cut: {:?}", opened.losses);
    let end = Place { opening: u32::MAX, seq: 0 };
    let blocks = runtime()?.block_on(buffer.read(Place::default(), end, usize::MAX))?;
    buffer.close();
    let mut next = 1;
    for block in &blocks {
        let header = header(&block.frame)?;
        ensure!(header.first_seq == next, "record {next} is missing before {}", header.first_seq);
        next = header.last_seq() + 1;
    }
    ensure!(next > acknowledged, "{acknowledged} records were acknowledged and {} are there", next - 1);
    Ok(())
}

fn index(dice: &mut Dice, end: u64) -> usize {
    usize::try_from(dice.below(end)).unwrap_or_default()
}

fn acknowledged(dir: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(dir.join("acknowledged")).unwrap_or_default();
    // The last line may be half written.
    Ok(text.rsplit_once('\n').and_then(|(whole, _)| whole.lines().last()?.parse().ok()).unwrap_or(0))
}

struct Writer(Child);

impl Writer {
    fn start(dir: &Path, series: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(WRITER_ENV, dir).env(WRITER_SERIES_ENV, series.to_string());
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

// The programs.

/// Whose power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Satellite,
    Relay,
}

fn cut_satellites(dir: &Path) -> Result<()> {
    cut_programs(dir, End::Satellite)
}

fn cut_relays(dir: &Path) -> Result<()> {
    cut_programs(dir, End::Relay)
}

/// Scenes of some cuts each, every scene with the checker at its end.
fn cut_programs(dir: &Path, end: End) -> Result<()> {
    let all: Vec<u64> = seeds(8).collect();
    let scenes = all.chunks(usize::try_from(CUTS_A_SCENE)?);
    let mut totals = Totals::default();
    for seeds in scenes {
        let place = dir.join(format!("s{}", seeds[0]));
        std::fs::create_dir(&place)?;
        let whole = Scene::new(&place, end).and_then(|scene| scene.cut_again_and_again(seeds));
        totals.add(&whole.with_context(|| format!("the scene of the seeds {seeds:?}"))?);
        std::fs::remove_dir_all(&place)?;
    }
    journey::note(&format!("{end:?}: {} cuts, {totals}", all.len()));
    Ok(())
}

/// What the checker found in all scenes.
#[derive(Debug, Default)]
struct Totals {
    stored: u64,
    explained: u64,
    lost: u64,
    doubled: u64,
    unexpected: u64,
    altered: u64,
}

impl Totals {
    fn add(&mut self, verdict: &Verdict) {
        self.stored += verdict.stored;
        self.explained += verdict.explained;
        self.lost += verdict.lost;
        self.doubled += verdict.duplicates;
        self.unexpected += verdict.unexpected;
        self.altered += verdict.altered;
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { stored, explained, lost, doubled, unexpected, altered } = self;
        write!(f, "stored {stored}, explained {explained}, lost {lost}, doubled {doubled}, ")?;
        write!(f, "unexpected {unexpected}, altered {altered}")
    }
}

/// A house of which one end keeps its files on a disk whose power is cut.
struct Scene {
    plug: Device,
    page: Device,
    house: House,
    disk: Disk,
    copy: PathBuf,
    end: End,
    /// What the satellite said that it had committed, of each epoch: that much is stored in the end.
    committed: Vec<(String, u64)>,
}

impl Scene {
    fn new(dir: &Path, end: End) -> Result<Self> {
        let (plug, page) = (Device::new("plug")?, Device::new("page")?);
        let point = match end {
            End::Satellite => dir.join("attic/state"),
            End::Relay => dir.join("relay/data"),
        };
        let disk = Disk::new(&dir.join("image"), &point, DISK_MIB)?;
        let house = House::with_settings(dir, &[&plug, &page], OFTEN_RELAY, Some(OFTEN))?;
        house.configure(&format!("{}{}", plug.as_http("1s"), page.as_prometheus("1s")))?;
        Ok(Self { plug, page, house, disk, copy: dir.join("copy"), end, committed: Vec::new() })
    }

    fn cut_again_and_again(mut self, seeds: &[u64]) -> Result<Verdict> {
        for &seed in seeds {
            let mut dice = Dice::new(seed);
            self.page.behave(Manner::Noise(NOISE[index(&mut dice, 4)]));
            let cut = match self.end {
                End::Satellite => self.cut_satellite(&mut dice),
                End::Relay => self.cut_relay(&mut dice),
            };
            cut.with_context(|| format!("seed {seed}"))?;
        }
        self.house.wait_for_polls(&self.plug, 2)?;
        let verdict = self.house.finish(&[&self.plug, &self.page])?;
        for (epoch, last_seq) in &self.committed {
            ensure_stored(&verdict, epoch, *last_seq)?;
        }
        Ok(verdict)
    }

    fn cut_satellite(&mut self, dice: &mut Dice) -> Result<()> {
        // Without a link, all that it has is on its disk.
        let away = dice.one_in(2);
        if away {
            self.house.relay.session.cut();
        }
        self.house.wait_for_polls(&self.plug, 1 + index(dice, 2))?;
        let buffer = self.house.satellite.status()?["buffer"].clone();
        let epoch = buffer["epoch"].as_str().context("the status names the epoch")?.to_owned();
        self.committed.push((epoch, buffer["last_seq"].as_u64().context("the status names the last record")?));
        at_any_moment(dice);
        let process = self.house.satellite.process_id().context("it runs")?;
        self.disk.copy_under(process, &self.copy)?;
        self.house.satellite.kill()?;
        self.disk.go_on_with(&self.copy)?;
        self.house.satellite.start()?;
        if away {
            self.house.relay.session.mend();
        }
        Ok(())
    }

    fn cut_relay(&mut self, dice: &mut Dice) -> Result<()> {
        self.house.wait_for_link(true)?;
        self.house.wait_for_polls(&self.plug, 1 + index(dice, 2))?;
        at_any_moment(dice);
        let process = self.house.relay.process_id().context("it runs")?;
        self.disk.copy_under(process, &self.copy)?;
        self.house.relay.kill()?;
        self.disk.go_on_with(&self.copy)?;
        // Else it would wait longer and longer before it comes back.
        if !dice.one_in(4) {
            self.house.satellite.kill()?;
            self.house.relay.start()?;
            return self.house.satellite.start();
        }
        self.house.relay.start()
    }
}

fn at_any_moment(dice: &mut Dice) {
    std::thread::sleep(Duration::from_millis(dice.below(1_100)));
}

/// The first records of an epoch are in the files, up to this one, and no gap is in their place.
fn ensure_stored(verdict: &Verdict, epoch: &str, last_seq: u64) -> Result<()> {
    if last_seq == 0 {
        return Ok(());
    }
    let epochs = verdict.details["epochs"].as_array().context("the checker lists the epochs")?;
    let found = epochs.iter().find(|found| found["epoch"] == epoch);
    let found = found.with_context(|| format!("nothing of the epoch {epoch}, of which {last_seq} were committed"))?;
    let whole = found["told_lost"] == 0 && found["lost"] == 0 && found["last_seq"].as_u64() >= Some(last_seq);
    ensure!(whole, "{last_seq} records of the epoch were committed: {found}");
    Ok(())
}

/// A lease that was shown, an identity that was said to be stored, a configuration that was taken.
fn cut_after_commands(dir: &Path) -> Result<()> {
    const DOCUMENT: &str = "[[device]]\nname = \"this\"\ncollector = \"host\"\nevery = \"10s\"\n";
    let mut relay_disk = Disk::new(&dir.join("relay-image"), &dir.join("relay/data"), DISK_MIB)?;
    let mut own_disk = Disk::new(&dir.join("own-image"), &dir.join("attic/state"), DISK_MIB)?;
    let copy = dir.join("copy");
    let mut relay = Relay::new(dir, "")?;
    relay.start()?;
    let mut cut = |relay: &mut Relay| -> Result<()> {
        relay_disk.copy_under(relay.process_id().context("it runs")?, &copy)?;
        relay.kill()?;
        relay_disk.go_on_with(&copy)?;
        relay.start()
    };
    let lease = relay.lease("attic", &[])?;
    cut(&mut relay)?;

    let mut satellite = Satellite::new(dir, "attic", &[])?;
    satellite.enrol(&lease.join_code)?.success().context("the lease is there after the cut")?;
    // The command has ended: what it wrote is what the disk has.
    let own_copy = dir.join("own-copy");
    own_disk.copy_under(relay.process_id().context("it runs")?, &own_copy)?;
    own_disk.go_on_with(&own_copy)?;
    cut(&mut relay)?;
    let id = satellite.id().context("the identity is there after the cut")?;

    relay.configure(&id, DOCUMENT)?.success()?;
    cut(&mut relay)?;
    satellite.start()?;
    wait::until_true("the configuration is there after the cut", Duration::from_secs(120), || {
        Ok(satellite.status()?["config_version"] == 1)
    })
}
