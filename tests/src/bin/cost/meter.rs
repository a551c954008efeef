//! What the kernel counts of a process: CPU to the nanosecond, memory, bytes written.
//!
//! CPU is the sum of `schedstat` of its threads. One that ends takes its count along, so all are read ten times a
//! second and what was seen last of each is kept; a thread that ends has idled long before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_tests::wait;

const EVERY: Duration = Duration::from_millis(100);

/// A meter on one process, while it runs.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    seen: Arc<Mutex<Threads>>,
    ended: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Threads {
    living: HashMap<u32, u64>,
    gone_ns: u64,
}

/// Memory of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// KiB that it has in memory.
    pub rss_kib: f64,
    /// The same, with what it shares counted by its part.
    pub pss_kib: f64,
}

/// What it wrote.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    /// Bytes that the file systems were given to bring to the disk.
    pub disk: u64,
}

/// Between two moments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    cpu_ns: u64,
    mono_ms: u64,
}

impl Meter {
    /// A meter on this process.
    pub(crate) fn new(pid: u32) -> Self {
        let meter = Self { pid, seen: Arc::default(), ended: Arc::default() };
        let (seen, ended) = (Arc::clone(&meter.seen), Arc::clone(&meter.ended));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                look(pid, &seen);
                std::thread::sleep(EVERY);
            }
        });
        meter
    }

    /// CPU so far, user and system, of all its threads.
    pub(crate) fn cpu_ns(&self) -> u64 {
        look(self.pid, &self.seen);
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.gone_ns + seen.living.values().sum::<u64>()
    }

    /// How often its threads went to sleep so far, and were woken: what keeps a small machine from its deeper sleep.
    pub(crate) fn sleeps(&self) -> Result<u64> {
        let mut sleeps = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.pid))?.flatten() {
            // One that has ended meanwhile sleeps no more.
            let Ok(text) = std::fs::read_to_string(thread.path().join("status")) else { continue };
            sleeps += number_after(&text, "voluntary_ctxt_switches:").context("voluntary_ctxt_switches")?;
        }
        Ok(sleeps)
    }

    /// A moment to measure from.
    pub(crate) fn start(&self) -> Span {
        Span { cpu_ns: self.cpu_ns(), mono_ms: wait::mono_ms() }
    }

    /// CPU and wall seconds since.
    pub(crate) fn since(&self, span: Span) -> (f64, f64) {
        let cpu = (self.cpu_ns() - span.cpu_ns) as f64 / 1e9;
        (cpu, (wait::mono_ms() - span.mono_ms).max(1) as f64 / 1e3)
    }

    /// Memory now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let file = format!("/proc/{}/smaps_rollup", self.pid);
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        let kib =
            |field: &str| number_after(&text, field).map(|kib| kib as f64).with_context(|| format!("{file}: {field}"));
        Ok(Memory { rss_kib: kib("Rss:")?, pss_kib: kib("Pss:")? })
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> Result<Written> {
        let file = format!("/proc/{}/io", self.pid);
        let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
        Ok(Written { disk: number_after(&text, "write_bytes:").with_context(|| file.clone())? })
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn number_after(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

fn look(pid: u32, seen: &Mutex<Threads>) {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut living = HashMap::new();
    for entry in entries.flatten() {
        let Ok(tid) = entry.file_name().to_string_lossy().parse() else { continue };
        // A thread that ends while it is looked at was seen a moment ago.
        let read = std::fs::read_to_string(entry.path().join("schedstat")).ok();
        let Some(ns) = read.and_then(|text| text.split(' ').next()?.parse::<u64>().ok()) else { continue };
        living.insert(tid, ns);
    }
    for (tid, ns) in std::mem::take(&mut seen.living) {
        // A number that was given to a new thread starts again from nothing.
        if living.get(&tid).is_none_or(|now| *now < ns) {
            seen.gone_ns += ns;
        }
    }
    seen.living = living;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_counts_threads_that_have_ended_too() {
        let meter = Meter::new(std::process::id());
        let before = meter.start();
        let worked = std::thread::spawn(|| {
            let end = wait::mono_ms() + 400;
            let mut rolls = 0_u64;
            while wait::mono_ms() < end {
                rolls += 1;
            }
            rolls
        });
        assert!(worked.join().unwrap() > 0);
        let (cpu, wall) = meter.since(before);
        // On a machine that is busy with other things it got little of its time, but never nothing.
        assert!(cpu > 0.02 && wall >= 0.3, "{cpu} s of CPU in {wall} s");
        assert!(meter.memory().unwrap().rss_kib > 1_000.0);
    }
}
