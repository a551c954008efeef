//! A relay whose registry, or whose disks, are copied back from a backup; and one that is killed at every step of a
//! commit. What the archive holds is not stored again, what is gone for good is explained, and who was shut out stays out.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use satellite_tests::checker::python;
use satellite_tests::device::Device;
use satellite_tests::house::{BALANCED_WITHIN, CONNECTED_WITHIN, FAST_ARCHIVE, House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::process::Process;
use satellite_tests::rounds::{first_seed, rounds};
use satellite_tests::satellite::Satellite;
use satellite_tests::{tree, wait};

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    const STRACE: &[Peer] = &[Peer::Python, Peer::Strace];
    journey::run(vec![
        journey("a_registry_from_a_backup_stores_nothing_twice_and_lets_nobody_back_in", PYTHON, registry_goes_back),
        journey("what_a_relay_lost_with_its_disks_is_explained", PYTHON, disks_go_back),
        journey("a_satellite_that_renewed_after_the_backup_comes_back", PYTHON, renewed_after_backup),
        journey("a_relay_killed_at_any_step_of_a_commit_stores_everything_once", STRACE, killed_at_steps),
    ])
}

fn document(plug: &Device, page: &Device) -> String {
    format!("{}{}", plug.as_http("1s"), page.as_prometheus("1s"))
}

/// What an operator keeps: the registry and the authority; and, if asked, the records.
struct Backup {
    dir: PathBuf,
    records: bool,
}

impl Backup {
    fn of(house: &House, dir: &Path, records: bool) -> Result<Self> {
        let backup = Self { dir: dir.join("backup"), records };
        std::fs::create_dir_all(&backup.dir)?;
        let data_dir = house.relay.data_dir();
        if records {
            tree::copy(&data_dir.join("records"), &backup.dir.join("records"))?;
        }
        let (from, to) = (data_dir.join("registry.db"), backup.dir.join("registry.db"));
        python("backup.py", &[from.as_os_str(), to.as_os_str()])?;
        tree::copy(&data_dir.join("authority"), &backup.dir.join("authority"))?;
        Ok(backup)
    }

    /// Copies it back; the relay must not run.
    fn restore(&self, house: &House) -> Result<()> {
        let data_dir = house.relay.data_dir();
        for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
            let file = data_dir.join(name);
            if file.exists() {
                std::fs::remove_file(file)?;
            }
        }
        std::fs::copy(self.dir.join("registry.db"), data_dir.join("registry.db"))?;
        for folder in [Some("authority"), self.records.then_some("records")].into_iter().flatten() {
            std::fs::remove_dir_all(data_dir.join(folder))?;
            tree::copy(&self.dir.join(folder), &data_dir.join(folder))?;
        }
        Ok(())
    }
}

/// Waits until more is stored than now.
fn wait_for_storage(house: &House) -> Result<()> {
    let before = house.relay.account(&house.id)?.stored;
    wait::until_true("more is stored", SOON, || Ok(house.relay.account(&house.id)?.stored > before))
}

/// Both ends die while the relay has committed what the satellite was never told of.
fn die_before_the_answer(house: &mut House) -> Result<()> {
    house.satellite.signal(Signal::STOP)?;
    let mut last = house.relay.account(&house.id)?.stored;
    let mut since = wait::mono_ms();
    wait::until_true("the relay commits what it has", SOON, || {
        let stored = house.relay.account(&house.id)?.stored;
        if stored != last {
            (last, since) = (stored, wait::mono_ms());
        }
        Ok(wait::mono_ms() > since + 3_000)
    })?;
    house.relay.kill()?;
    house.satellite.kill()
}

fn says(house: &House, words: &str) -> Result<bool> {
    Ok(std::fs::read_to_string(house.relay.log())?.contains(words))
}

fn registry_goes_back(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    let other = Satellite::new(dir, "cellar", &[])?;
    other.enrol(&house.relay.lease("cellar", &[])?.join_code)?.success().context("lease set")?;
    let unused = house.relay.lease("garden", &[])?;
    wait_for_storage(&house)?;

    let backup = Backup::of(&house, dir, false)?;
    house.wait_for_polls(&plug, 2)?;
    house.relay.command(&["satellite", "revoke", "cellar"])?.success()?;
    let noted = house.relay.records().join("relays");
    wait::until_true("the archive knows of the revocation", SOON, || Ok(find(&noted, &other.id()?)))?;
    // An epoch of which nothing is left in the house, and one whose last blocks are there twice.
    house.satellite.stop()?;
    house.satellite.start()?;
    wait_for_storage(&house)?;
    house.wait_for_polls(&plug, 2)?;
    die_before_the_answer(&mut house)?;

    backup.restore(&house)?;
    house.relay.start()?;
    ensure!(says(&house, "the registry is older than the archive")?, "the operator is told");
    ensure!(!house.relay.satellite("cellar")?["revoked_at"].is_null(), "who was revoked stays out");
    let garden = Satellite::new(dir, "garden", &[])?;
    ensure!(garden.enrol(&unused.join_code)?.code != 0, "a lease of the backup may have been used since");
    house.satellite.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    ensure!(!verdict.reasons.contains_key("relay_restored"), "nothing is lost: {:?}", verdict.reasons);

    house.relay.stop()?;
    let told = std::fs::read_to_string(house.relay.log())?.matches("the registry is older").count();
    house.relay.start()?;
    let again = std::fs::read_to_string(house.relay.log())?.matches("the registry is older").count();
    ensure!(told == 1 && again == 1, "it is found once: {told}, {again}");
    Ok(())
}

fn find(folder: &Path, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name() == name || find(&entry.path(), name))
}

fn disks_go_back(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    wait_for_storage(&house)?;
    house.relay.stop()?;
    let backup = Backup::of(&house, dir, true)?;
    house.relay.start()?;
    house.wait_for_link(true)?;
    // All of one epoch, the end of the one before, and the beginning of the one after go with the disks.
    wait_for_storage(&house)?;
    for _ in 0..2 {
        house.satellite.stop()?;
        house.satellite.start()?;
        wait_for_storage(&house)?;
        house.wait_for_polls(&plug, 2)?;
    }
    house.relay.kill()?;
    backup.restore(&house)?;
    house.wait_for_polls(&plug, 2)?;
    house.relay.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug, &page])?;
    let restored = verdict.reasons.get("relay_restored").copied().unwrap_or_default();
    ensure!(restored > 0, "what is gone says so: {:?}", verdict.reasons);

    // It is said once.
    house.satellite.start()?;
    wait::until_true("an empty buffer", BALANCED_WITHIN, || {
        let status = house.satellite.status()?;
        Ok(status["link"]["state"] == "connected" && status["buffer"]["records"] == 0)
    })?;
    house.satellite.stop()?;
    house.relay.wait_until_balanced(&house.id, BALANCED_WITHIN)?;
    let again = house.check(&[&plug, &page])?;
    ensure!(again.reasons.get("relay_restored") == Some(&restored), "{restored}, then {:?}", again.reasons);
    Ok(())
}

fn renewed_after_backup(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let settings = format!("certificate_life = \"2m\"\n{FAST_ARCHIVE}");
    let mut house = House::with_settings(dir, &[&plug], &settings, None)?;
    house.configure(&plug.as_http("1s"))?;
    wait_for_storage(&house)?;
    let backup = Backup::of(&house, dir, false)?;
    let generation =
        |house: &House| house.satellite.status().unwrap_or_default()["lease"]["certificate_generation"].as_u64();
    let before = generation(&house);
    wait::until_true("a renewal", Duration::from_secs(180), || Ok(generation(&house) > before))?;
    house.relay.kill()?;
    // The new certificate was not used yet; now it is the only one that the satellite has.
    backup.restore(&house)?;
    house.relay.start()?;
    house.satellite.stop()?;
    house.satellite.start()?;
    wait::until_true("the link is up", CONNECTED_WITHIN, || house.is_linked())?;
    ensure!(says(&house, "a certificate issued after the backup is known again")?, "the operator is told");
    house.finish(&[&plug])?;
    Ok(())
}

/// What a commit to a folder does, in the kernel's words: SQLite writes and syncs, objects are written, synced and
/// renamed, the acknowledgement is sent.
const STEPS: [&str; 6] = [
    "pwrite64",
    "fdatasync,fsync",
    "write",
    "rename,renameat,renameat2,link,linkat",
    "writev,sendto,sendmsg",
    "openat",
];
/// Of each, the first so many.
const CALLS: u64 = 12;
/// A relay that makes no such call so often any more is killed anyway.
const DIES_WITHIN: Duration = Duration::from_secs(20);

fn killed_at_steps(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&document(&plug, &page))?;
    house.wait_for_link(true)?;
    let (first, count) = (first_seed(), rounds(6));
    let mut hit = 0;
    for seed in first..first + u64::from(count) {
        hit += u32::from(killed_at(&mut house, &plug, dir, seed).with_context(|| format!("the round of seed {seed}"))?);
    }
    house.wait_for_link(true)?;
    let verdict = house.finish(&[&plug, &page])?;
    tell(&format!(
        "{count} rounds from seed {first}, {hit} killed at the call: {} stored, {} explained {:?}; lost 0, doubled 0, \
         unexpected 0, altered 0",
        verdict.stored, verdict.explained, verdict.reasons
    ));
    ensure!(hit * 2 > count, "most rounds kill the relay at the call: {hit} of {count}");
    Ok(())
}

fn killed_at(house: &mut House, plug: &Device, dir: &Path, seed: u64) -> Result<bool> {
    let step = STEPS[usize::try_from(seed % STEPS.len() as u64)?];
    let call = 1 + seed / STEPS.len() as u64 % CALLS;
    let strace = Peer::Strace.path().context("strace")?;
    let id = house.relay.process_id().context("the relay runs")?;
    let mut command = Command::new(strace);
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={step}")]);
    command.args(["-e", &format!("inject={step}:signal=KILL:when={call}"), "-p", &id.to_string()]);
    let mut tracer = Process::start("strace", &mut command, &dir.join("strace.log"))?;
    house.wait_for_polls(plug, 1)?;
    let killed = tracer.wait_for_end(DIES_WITHIN).is_ok();
    drop(tracer);
    if killed {
        house.relay.bury()?;
    } else {
        house.relay.kill()?;
    }
    house.relay.start()?;
    // Else the satellite would wait longer each time.
    house.satellite.stop()?;
    house.satellite.start()?;
    house.wait_for_link(true)?;
    Ok(killed)
}

#[expect(clippy::print_stdout, reason = "the figures of a long form")]
fn tell(figures: &str) {
    println!("{figures}");
}
