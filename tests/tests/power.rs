//! The buffer and the power cut: what a commit has said is stored is there after the machine went dark.
//!
//! A program of its own commits on a file system of its own, on a loop device, and writes what was acknowledged to a
//! file beside it. It is frozen, and the device is copied as it stands: what the kernel had not yet written is gone. The
//! buffer on the copy must hold every acknowledged record. Kinder than a disk that loses its write cache, and enough to
//! show a flush that is none. Needs root and loop devices.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use rustix::process::{Pid, Signal, kill_process};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit, Place};
use satellite_agent::recorder::frames::FrameWriter;
use satellite_shared::clock::{Clock as _, SystemClock};
use satellite_shared::wire::block::{ClockQuality, Group, header};
use satellite_tests::journey::skipped;
use satellite_tests::wait;

/// Tells the program that it is the one that commits, where, and where to say so.
const WRITER_ENV: &str = "SATELLITE_POWER_WRITER";
/// Commits before each cut: few and many, so that the log grows over its segments.
const CUTS_AFTER: [u64; 6] = [3, 17, 40, 90, 160, 250];
const IMAGE_BYTES: u64 = 160 << 20;
/// No writer goes on for ever.
const COMMITS_MAX: u64 = 20_000;

fn main() -> ExitCode {
    if let Some(places) = std::env::var_os(WRITER_ENV) {
        return match commit_until_stopped(Path::new(&places)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let trial = Trial::ignorable_test("an_acknowledged_record_survives_a_power_cut", || {
        let dir = tempfile::Builder::new().prefix("sat-").tempdir()?;
        if let Err(error) = Disk::new(&dir.path().join("probe")) {
            return skipped(&format!("needs root, mkfs.ext4 and loop devices: {error:#}"));
        }
        for (round, commits) in CUTS_AFTER.into_iter().enumerate() {
            let round_dir = dir.path().join(format!("round{round}"));
            cut_after(&round_dir, commits).map_err(|error| format!("round {round}: {error:#}"))?;
            std::fs::remove_dir_all(&round_dir)?;
        }
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

fn settings(disk: &Path) -> BufferSettings {
    BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(disk.join("buffer")) }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The writer: commits, and says how far it is where no cut reaches.
fn commit_until_stopped(dir: &Path) -> Result<()> {
    let (buffer, opened) = Buffer::open(settings(&dir.join("disk")), Arc::new(SystemClock))?;
    let mut writer = FrameWriter::new(opened.epoch);
    let mut said = std::fs::File::create(dir.join("acknowledged"))?;
    runtime()?.block_on(async {
        for round in 0..COMMITS_MAX {
            let times_ms = vec![SystemClock.now().wall_ms];
            let values = (0..300).map(|n| f64::from(n) * 0.37 + round as f64).collect();
            let group = Group { series: (0..300).collect(), times_ms, values };
            let blocks = writer.samples(vec![group], SystemClock.now(), ClockQuality::Unknown);
            let notes = round.to_le_bytes().to_vec();
            buffer.commit(Commit { blocks, notes, ..Commit::default() }).await?;
            writeln!(said, "{}", (round + 1) * 300)?;
        }
        Ok(())
    })
}

fn cut_after(dir: &Path, commits: u64) -> Result<()> {
    let disk = Disk::new(dir)?;
    let mut writer = Writer::start(dir)?;
    wait::until_true("the writer commits", Duration::from_secs(120), || Ok(acknowledged(dir)? >= commits * 300))?;
    writer.freeze()?;
    let acknowledged = acknowledged(dir)?;
    let copy = dir.join("copy");
    std::fs::create_dir_all(&copy)?;
    run("cp", &["--sparse=always".as_ref(), disk.image.as_os_str(), copy.join("image").as_os_str()])?;
    drop(writer);
    drop(disk);

    let disk = Disk::mount(&copy)?;
    let (buffer, opened) = Buffer::open(settings(&disk.point), Arc::new(SystemClock))?;
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

fn acknowledged(dir: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(dir.join("acknowledged")).unwrap_or_default();
    // The last line may be half written.
    Ok(text.rsplit_once('\n').and_then(|(whole, _)| whole.lines().last()?.parse().ok()).unwrap_or(0))
}

/// A file system on a loop device, below `DIR/disk`.
struct Disk {
    image: PathBuf,
    point: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let image = dir.join("image");
        std::fs::File::create(&image)?.set_len(IMAGE_BYTES)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()])?;
        Self::mount(dir)
    }

    fn mount(dir: &Path) -> Result<Self> {
        let (image, point) = (dir.join("image"), dir.join("disk"));
        std::fs::create_dir_all(&point)?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), point.as_os_str()])?;
        Ok(Self { image, point })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What can't be unmounted now is, lazily, when its last user has gone.
        drop(run("umount", &["--lazy".as_ref(), self.point.as_os_str()]));
    }
}

struct Writer(Child);

impl Writer {
    fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(WRITER_ENV, dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }

    fn freeze(&mut self) -> Result<()> {
        let id = self.0.id();
        kill_process(Pid::from_child(&self.0), Signal::STOP)?;
        wait::until_true("the writer stands still", Duration::from_secs(30), || {
            let threads = std::fs::read_dir(format!("/proc/{id}/task"))?;
            let mut states = threads.map(|thread| std::fs::read_to_string(thread?.path().join("stat")));
            Ok(states.all(|stat| stat.is_ok_and(|stat| stat.contains(") T "))))
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .with_context(|| program.to_owned())?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
