//! Too few file handles, too little memory, and ends that stand still for longer than the other waits.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Completion, Failed, Trial};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use satellite_tests::device::{Device, Manner};
use satellite_tests::house::{CONNECTED_WITHIN, FAST_ARCHIVE, House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::wait;

/// What a machine may give that gives too little.
const FILES: u64 = 64;
/// What systemd would allow.
const MEMORY_BYTES: u64 = 64 << 20;
/// An end that says nothing for 50 s is given up.
const STANDS_STILL: Duration = Duration::from_secs(55);

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_satellite_short_of_file_handles_says_so_and_recovers", PYTHON, satellite_short_of_files),
        journey("a_relay_short_of_file_handles_says_so_once_and_recovers", PYTHON, relay_short_of_files),
        journey("a_satellite_that_stood_still_explains_it_and_goes_on", PYTHON, satellite_stands_still),
        journey("a_relay_that_stood_still_gets_everything", PYTHON, relay_stands_still),
        in_cgroup("a_satellite_keeps_below_its_memory_ceiling", below_ceiling),
        in_cgroup("a_satellite_that_is_killed_for_its_memory_loses_nothing_silently", killed_for_memory),
    ])
}

fn pid(id: Option<u32>) -> Result<Pid> {
    id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("it runs")
}

/// Sets how many files a running program may have open; says how many it could.
fn allow_files(id: Option<u32>, files: Option<u64>) -> Result<Option<u64>> {
    let pid = pid(id)?;
    let before = rustix::process::getrlimit(Resource::Nofile);
    let limit = Rlimit { current: files, maximum: before.maximum };
    Ok(prlimit(Some(pid), Resource::Nofile, limit)?.current)
}

/// Many devices at once that all take their time.
fn satellite_short_of_files(dir: &Path) -> Result<()> {
    let devices = (0..60).map(|n| Device::new(&format!("plug{n}"))).collect::<Result<Vec<_>>>()?;
    let all: Vec<&Device> = devices.iter().collect();
    let mut house = House::new(dir, &all)?;
    // Three quarters of them are asked at any time: more than there are handles, with what the satellite itself needs.
    all.iter().for_each(|device| device.behave(Manner::Slow(Duration::from_millis(1_500))));
    let document: String = all.iter().map(|device| device.as_http("2s")).collect();
    house.configure(&document)?;
    house.wait_for_link(true)?;
    let before = allow_files(house.satellite.process_id(), Some(FILES))?;
    wait::until_true("a device could not be asked, and why", SOON, || {
        Ok(house.satellite.gaps()?.to_string().contains("Too many open files"))
    })?;
    house.satellite.check_running()?;
    allow_files(house.satellite.process_id(), before)?;
    all.iter().for_each(|device| device.behave(Manner::Answers));
    let answers: Vec<usize> = all.iter().map(|device| device.answers()).collect();
    wait::until_true("every device answers again", Duration::from_secs(180), || {
        Ok(all.iter().zip(&answers).all(|(device, before)| device.answers() > before + 1))
    })?;
    house.finish(&all)?;
    Ok(())
}

/// Strangers hold every handle that the relay may have.
fn relay_short_of_files(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    let before = allow_files(house.relay.process_id(), Some(FILES))?;
    let said = |house: &House| -> Result<usize> {
        Ok(std::fs::read_to_string(house.relay.log())?.matches("no file handles left").count())
    };
    let since = wait::mono_ms();
    let mut strangers: Vec<TcpStream> = Vec::new();
    wait::until_true("the relay says that it has none left", SOON, || {
        while strangers.len() < 100 {
            strangers.push(TcpStream::connect(("127.0.0.1", house.relay.session.port()))?);
        }
        // Who says nothing is closed after ten seconds; then others come.
        strangers.retain(|stranger| stranger.peek_now());
        Ok(said(&house)? > 0)
    })?;
    house.wait_for_polls(&plug, 5)?;
    let told = said(&house)?;
    let seconds = usize::try_from((wait::mono_ms() - since) / 1_000)?;
    ensure!(told <= 2 + seconds / 5, "said {told} times in {seconds} s");
    drop(strangers);
    allow_files(house.relay.process_id(), before)?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug])?;
    Ok(())
}

trait Peek {
    /// Whether the other side has not closed yet.
    fn peek_now(&self) -> bool;
}

impl Peek for TcpStream {
    fn peek_now(&self) -> bool {
        let asked = self.set_nonblocking(true).and_then(|()| self.peek(&mut [0]));
        !matches!(asked, Ok(0)) && asked.map_or_else(|error| error.kind() == std::io::ErrorKind::WouldBlock, |_| true)
    }
}

fn pass(time: Duration) -> Result<()> {
    let until = wait::mono_ms() + u64::try_from(time.as_millis())?;
    wait::until_true("time passes", time * 2, || Ok(wait::mono_ms() >= until))
}

fn satellite_stands_still(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    house.satellite.signal(Signal::STOP)?;
    pass(STANDS_STILL)?;
    house.satellite.signal(Signal::CONT)?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 3)?;
    let verdict = house.finish(&[&plug])?;
    let explained: u64 = verdict.reasons.values().sum();
    ensure!(explained >= 80, "the slots of 55 s, of two metrics, are explained: {:?}", verdict.reasons);
    ensure!(verdict.satellites[&house.id].epochs == 1, "it did not start anew: {:?}", verdict.satellites);
    Ok(())
}

fn relay_stands_still(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let relay = pid(house.relay.process_id())?;
    kill_process(relay, Signal::STOP)?;
    pass(STANDS_STILL)?;
    kill_process(relay, Signal::CONT)?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug])?;
    ensure!(verdict.polled_all_the_time(), "polling went on all the time: {:?}", verdict.reasons);
    Ok(())
}

/// A group of processes with a memory ceiling of its own, where this machine lets one be made.
struct Ceiling(PathBuf);

impl Ceiling {
    fn new(name: &str) -> Result<Self> {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
        let ceiling = Self(root.join(format!("satellite-test-{}-{name}", std::process::id())));
        std::fs::create_dir(&ceiling.0)?;
        ceiling.set(MEMORY_BYTES)?;
        Ok(ceiling)
    }

    fn set(&self, bytes: u64) -> Result<()> {
        let (one, other) = (self.0.join("memory.max"), self.0.join("memory.limit_in_bytes"));
        let file = if one.exists() { one } else { other };
        std::fs::write(&file, bytes.to_string()).with_context(|| file.display().to_string())
    }

    fn take(&self, id: Option<u32>) -> Result<()> {
        let id = id.context("it runs")?;
        Ok(std::fs::write(self.0.join("cgroup.procs"), id.to_string())?)
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        // Who was in it has ended, or ends with the journey.
        drop(std::fs::remove_dir(&self.0));
    }
}

fn in_cgroup(name: &'static str, run: fn(&Path) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || -> Result<Completion, Failed> {
        let Some(_python) = Peer::Python.path() else { return journey::skipped(&Peer::Python.missing()) };
        if let Err(error) = Ceiling::new("probe") {
            return journey::skipped(&format!("no control group for memory can be made here: {error:#}"));
        }
        let dir = tempfile::Builder::new().prefix("sat-").tempdir()?;
        run(dir.path()).map(|()| Completion::Completed).map_err(|error| format!("{error:#}").into())
    })
}

/// What its process holds of its own, without the pages of its program, in bytes.
fn resident(id: Option<u32>) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", id.context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

/// Five thousand series a second and the relay away: the backlog is on the disk, not in memory.
fn below_ceiling(dir: &Path) -> Result<()> {
    let (plug, noise) = (Device::new("plug")?, Device::new("noise")?);
    noise.behave(Manner::Noise(5_000));
    let mut house = House::with_settings(dir, &[&plug, &noise], FAST_ARCHIVE, None)?;
    let ceiling = Ceiling::new("below")?;
    ceiling.take(house.satellite.process_id())?;
    house.configure(&format!("{}{}", plug.as_http("1s"), noise.as_prometheus("1s")))?;
    house.wait_for_link(true)?;
    house.relay.session.cut();
    house.wait_for_polls(&plug, 20)?;
    // A configuration as large as they come, and a backlog to send.
    let mut large = format!("{}{}", plug.as_http("1s"), noise.as_prometheus("1s"));
    for n in 0..400 {
        large.push_str(&plug.as_http("1h").replace("name = \"plug\"", &format!("name = \"plug{n}\"")));
    }
    house.relay.session.mend();
    house.relay.configure(&house.id, &large)?.success()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 5)?;
    // The kernel would have ended it.
    house.satellite.check_running()?;
    let resident = resident(house.satellite.process_id())?;
    house.finish(&[&noise])?;
    ensure!(resident < MEMORY_BYTES, "{} MiB", resident >> 20);
    Ok(())
}

fn killed_for_memory(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let mut house = House::new(dir, &[&plug, &page])?;
    house.configure(&format!("{}{}", plug.as_http("1s"), page.as_prometheus("1s")))?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 3)?;
    let ceiling = Ceiling::new("killed")?;
    ceiling.take(house.satellite.process_id())?;
    // What it holds already was counted elsewhere; what it asks for now is too much.
    ceiling.set(1 << 20)?;
    page.behave(Manner::Noise(20_000));
    wait::until_true("the kernel kills it", CONNECTED_WITHIN, || Ok(house.satellite.check_running().is_err()))?;
    page.behave(Manner::Answers);
    house.satellite.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 3)?;
    house.finish(&[&plug, &page])?;
    Ok(())
}
