//! `cargo bench --package satellite-agent`: what the buffer's three steps cost, each beside the plainest thing that does
//! the same on this disk in the same run.
//!
//! Encoding stands beside rows of a struct in postcard and zstd; a commit beside the same blocks appended to a file, each
//! with one fdatasync; reading a backlog and forgetting it beside reading that file. The ratio is what to look at: other work
//! on the machine moves both. Nothing is asserted, and the cost of the whole program is `cargo cost`'s to say.

#![expect(clippy::print_stdout, reason = "a command line")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit, Place};
use satellite_agent::recorder::frames::FrameWriter;
use satellite_shared::clock::{Now, SystemClock};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{ClockQuality, Group};

const SERIES: u32 = 300;
const ENCODED: u32 = 2_000;
const COMMITS: u32 = 500;
const READ_BYTES: usize = 256 << 10;

fn main() -> Result<()> {
    println!("{:<38} {:>12} {:>12} {:>7}", "", "ours", "plain", "ratio");
    encode()?;
    commit_and_drain()
}

/// Polls like a host's: some series stand still, most count, a few wander.
fn poll(n: u32) -> Group {
    let at = f64::from(n);
    let value = |i: u32| match i % 10 {
        0..=3 => f64::from(i) * 4_096.0,
        4..=6 => f64::from(i * 1_000) + at * f64::from(1 + i % 37),
        7 | 8 => f64::from(i + n / 7),
        _ => f64::from(n.wrapping_mul(7_919).wrapping_add(i * 31) % 10_000) / 100.0,
    };
    let time = 1_790_000_000_000 + i64::from(n) * 10_000;
    Group { series: (0..SERIES).collect(), times_ms: vec![time], values: (0..SERIES).map(value).collect() }
}

fn blocks(writer: &mut FrameWriter, n: u32) -> Vec<Vec<u8>> {
    let now = Now { wall_ms: 1_790_000_000_000 + i64::from(n) * 10_000, mono_ms: u64::from(n) };
    writer.samples(vec![poll(n)], now, ClockQuality::Synchronised)
}

fn encode() -> Result<()> {
    let samples = f64::from(ENCODED * SERIES);
    let mut writer = FrameWriter::new(satellite_shared::id::Epoch(1));
    let start = seconds(ClockId::ProcessCPUTime);
    let ours_bytes: usize = (0..ENCODED).flat_map(|n| blocks(&mut writer, n)).map(|block| block.len()).sum();
    let ours = seconds(ClockId::ProcessCPUTime) - start;

    let mut compressor = zstd::bulk::Compressor::new(3)?;
    let mut plain_bytes = 0;
    let start = seconds(ClockId::ProcessCPUTime);
    for n in 0..ENCODED {
        let group = poll(n);
        let rows = group.series.iter().zip(&group.values).map(|(series, value)| (*series, group.times_ms[0], *value));
        plain_bytes += compressor.compress(&postcard::to_stdvec(&rows.collect::<Vec<_>>())?)?.len();
    }
    let plain = seconds(ClockId::ProcessCPUTime) - start;
    line("encode, bytes a sample", ours_bytes as f64 / samples, plain_bytes as f64 / samples);
    line("encode, ns of CPU a sample", ours * 1e9 / samples, plain * 1e9 / samples);
    Ok(())
}

fn commit_and_drain() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let settings =
        BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(dir.path().join("buffer")) };
    let (buffer, opened) = Buffer::open(settings, Arc::new(SystemClock))?;
    let mut writer = FrameWriter::new(opened.epoch);
    let all: Vec<Vec<Vec<u8>>> = (0..COMMITS).map(|n| blocks(&mut writer, n)).collect();
    let bytes: usize = all.iter().flatten().map(Vec::len).sum();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;

    let (wall, cpu) = timed(|| {
        all.iter()
            .cloned()
            .try_for_each(|blocks| runtime.block_on(buffer.commit(Commit { blocks, ..Commit::default() })).map(drop))?;
        Ok(())
    })?;
    let path = dir.path().join("plain");
    let mut file = File::create(&path)?;
    let (plain_wall, plain_cpu) = timed(|| {
        for block in all.iter().flatten() {
            file.write_all(block)?;
            file.sync_data()?;
        }
        Ok(())
    })?;
    let commits = f64::from(COMMITS);
    line("append and commit, µs", wall * 1e6 / commits, plain_wall * 1e6 / commits);
    line("append and commit, µs of CPU", cpu * 1e6 / commits, plain_cpu * 1e6 / commits);

    let (wall, _) = timed(|| {
        let end = Place { opening: u32::MAX, seq: 0 };
        let mut from = Place::default();
        while let Some(last) = runtime.block_on(buffer.read(from, end, READ_BYTES))?.last() {
            from = Place { seq: last.place.seq + 1, ..last.place };
        }
        let mut acknowledged = Ranges::default();
        acknowledged.insert(1, u64::from(COMMITS) * u64::from(SERIES));
        Ok(runtime.block_on(buffer.forget(opened.epoch, &acknowledged))?)
    })?;
    let mut read = Vec::with_capacity(bytes);
    let (plain_wall, _) = timed(|| {
        File::open(&path)?.read_to_end(&mut read)?;
        Ok(())
    })?;
    line("read and forget a backlog, ns a byte", wall * 1e9 / bytes as f64, plain_wall * 1e9 / bytes as f64);
    buffer.close();
    Ok(())
}

/// Seconds by the clock on the wall, and of CPU of all threads.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (wall, cpu) = (seconds(ClockId::Monotonic), seconds(ClockId::ProcessCPUTime));
    work()?;
    Ok((seconds(ClockId::Monotonic) - wall, seconds(ClockId::ProcessCPUTime) - cpu))
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn line(what: &str, ours: f64, plain: f64) {
    println!("{what:<38} {ours:>12.2} {plain:>12.2} {:>7.2}", ours / plain);
}
