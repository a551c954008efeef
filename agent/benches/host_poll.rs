//! What one poll of this machine costs, beside the least it could: the kernel making the same files, and nobody reading
//! what it made.
//!
//! The floor reads every file that the collector keeps open after a few polls, each by a handle of its own, into one
//! buffer. Both take turns, and CPU is the kernel's count of this process with all its threads. Polls one after another
//! find everything in the processor's caches; `--every SECONDS` has them as far apart as on a machine that does other
//! work meanwhile, which costs both several times as much. Prints ratios and asserts nothing.
//!
//! `cargo bench --workspace --bench host_poll -- --every 10 --polls 12`

#![expect(clippy::print_stdout, reason = "a bench tells its figures")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use satellite_agent::collector::{Built, Context, Readings, host};
use satellite_agent::policy::{Gate, Policy};
use satellite_agent::secrets::Keyring;
use satellite_shared::clock::SystemClock;
use satellite_shared::config::Document;

/// Polls before the clock runs: files are opened, buffers grow, a thread is started.
const WARM_UP: u32 = 5;
/// What the kernel gives at once; for some files it clears as much as is asked for.
const PAGE_BYTES: usize = 4096;

fn main() -> anyhow::Result<()> {
    let every = Duration::from_secs(argument("--every")?.unwrap_or(0));
    let polls = u32::try_from(argument("--polls")?.unwrap_or(if every.is_zero() { 2_000 } else { 12 }))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let mut host = built()?;
    let due: Vec<usize> = (0..host.metrics.len()).collect();
    let mut readings = Readings::default();
    runtime.block_on(async {
        for _ in 0..WARM_UP {
            readings.clear();
            host.collector.poll(&due, &mut readings).await?;
        }
        let floor = Floor::of_open_files()?;
        let mut buffer = [0; PAGE_BYTES];
        let (mut poll_us, mut floor_us, mut bytes) = (0.0, 0.0, 0);
        for _ in 0..polls {
            tokio::time::sleep(every / 2).await;
            readings.clear();
            let start = cpu_us();
            host.collector.poll(&due, &mut readings).await?;
            poll_us += cpu_us() - start;
            tokio::time::sleep(every / 2).await;
            let start = cpu_us();
            bytes = floor.read(&mut buffer);
            floor_us += cpu_us() - start;
        }
        let (poll_us, floor_us) = (poll_us / f64::from(polls), floor_us / f64::from(polls));
        let samples = readings.len().max(1) as f64;
        println!(
            "{polls} polls {} s apart: {samples} samples, {} files of {bytes} bytes",
            every.as_secs(),
            floor.files.len()
        );
        println!("{:<34} {:>10} {:>12} {:>9}", "", "µs a poll", "µs a sample", "to floor");
        for (what, us) in [("read the same files, no more", floor_us), ("poll: read, parse, name", poll_us)] {
            println!("{what:<34} {us:>10.1} {:>12.3} {:>9.2}", us / samples, us / floor_us);
        }
        Ok(())
    })
}

/// Cargo says `--bench` to every bench.
fn argument(name: &str) -> anyhow::Result<Option<u64>> {
    let mut words = std::env::args().skip_while(|word| word != name).skip(1);
    Ok(words.next().map(|word| word.parse()).transpose()?)
}

fn built() -> anyhow::Result<Built> {
    let (_, document) =
        Document::parse_text("[[device]]\nname = \"this-host\"\ncollector = \"host\"\nevery = \"10s\"\n")
            .map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let device = document.devices.into_iter().next().ok_or_else(|| anyhow::anyhow!("a device"))?;
    let gate = Arc::new(Gate::new(Policy::default(), Arc::new(SystemClock)));
    let context = Context::new(gate, Keyring::of([]), "/");
    (host::KIND.build)(&device, &context).map_err(|problem| anyhow::anyhow!("{problem}"))
}

/// CPU of the process so far, user and system.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// The files that the collector reads, and nothing that makes sense of them.
struct Floor {
    files: Vec<File>,
}

impl Floor {
    fn of_open_files() -> anyhow::Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd")? {
            let Ok(path) = std::fs::read_link(entry?.path()) else { continue };
            let kernels = path.starts_with("/proc") || path.starts_with("/sys");
            if kernels && path.is_file() {
                files.push(File::open(path)?);
            }
        }
        Ok(Self { files })
    }

    fn read(&self, buffer: &mut [u8]) -> usize {
        let mut all = 0;
        for file in &self.files {
            let mut len = 0;
            // An interface that is down refuses some.
            while let Ok(read) = file.read_at(buffer, len as u64) {
                len += read;
                if read < PAGE_BYTES / 2 {
                    break;
                }
            }
            all += len;
        }
        all
    }
}
