//! Rows `drain`, `drain-7-days` and `buffer`: a satellite that was away for long comes back.
//!
//! Its buffer is filled here, by the buffer's own code and commit by commit as polls would have done it, with a clock
//! that runs ahead; then the real satellite opens it, and the relay commits it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit};
use satellite_shared::clock::{Clock, ManualClock};
use satellite_shared::wire::block::Encoder;
use satellite_tests::relay::Relay;
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;

use crate::Plan;
use crate::meter::Meter;
use crate::rivals::bytes_below;
use crate::table::{OURS, Report};
use crate::workload::{self, EVERY_MS, SERIES, Workload};

pub(crate) const ROWS: [&str; 3] = ["drain", "drain-7-days", "buffer"];

/// Polls of 1,000 samples that wait: about eleven hours at one each ten seconds.
const POLLS: u64 = 4_000;
const WEEK: f64 = 60e6;
const WITHIN: Duration = Duration::from_secs(900);

pub(crate) fn measure(plan: Plan, report: &mut Report, _: &dyn Fn(&str) -> bool) -> Result<()> {
    let polls = plan.amount(POLLS);
    let (mut rates, mut minutes, mut on_disk, mut notes) = (Vec::new(), Vec::new(), Vec::new(), String::new());
    for _ in 0..plan.rounds {
        let drained = drain(polls)?;
        rates.push(drained.samples / drained.seconds);
        minutes.push(WEEK * drained.seconds / drained.samples / 60.0);
        on_disk.push(drained.on_disk);
        notes = drained.notes;
    }
    report.add(
        "buffer",
        OURS,
        on_disk,
        "all files of the store but the ballast of 32 MiB; synthetic samples of 1,000 series at 10 s, fsynced",
    );
    report.add("drain", OURS, rates, notes);
    report.add("drain-7-days", OURS, minutes, format!("extrapolated from {} samples", polls * SERIES as u64));
    Ok(())
}

struct Drained {
    samples: f64,
    seconds: f64,
    on_disk: f64,
    notes: String,
}

fn drain(polls: u64) -> Result<Drained> {
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let mut relay = Relay::new(dir.path(), "log = \"info\"\n")?;
    relay.start()?;
    let mut satellite = Satellite::new(dir.path(), "away", &[])?;
    satellite.set("log = \"info\"\n[buffer]\nfree_mib_min = 0\nfree_percent_min = 0\n")?;
    let lease = relay.lease("away", &[])?;
    satellite.enrol(&lease.join_code)?.success().context("lease set")?;
    let id = satellite.id()?;
    let buffer = satellite.state_dir().join("buffer");
    fill(&buffer, polls)?;
    let ballast = buffer.join("ballast").metadata().map_or(0, |metadata| metadata.len());
    let (on_disk, samples) = (bytes_below(&buffer) - ballast, (polls * SERIES as u64) as f64);

    let started_ms = wait::mono_ms();
    satellite.start()?;
    let ours = Meter::new(satellite.process_id().context("the satellite runs")?);
    let theirs = Meter::new(relay.process_id().context("the relay runs")?);
    wait::until_true("the backlog is stored", WITHIN, || {
        let status = satellite.status()?;
        Ok(status["buffer"]["records"] == 0 && status["link"]["state"] == "connected")
    })?;
    let seconds = (wait::mono_ms() - started_ms) as f64 / 1e3;
    let account = relay.wait_until_balanced(&id, Duration::from_secs(60))?;
    anyhow::ensure!(account.stored as f64 == samples, "{samples} samples were there, {account:?}");
    let wire = (relay.session.bytes_up() + relay.session.bytes_down()) as f64 / samples;
    let notes = format!(
        "{samples} synthetic samples of 1,000 series at 10 s: {:.1} s with start and last commit; satellite {:.2} µs, relay \
         {:.2} µs of CPU a sample; {wire:.2} bytes on the wire",
        seconds,
        ours.cpu_ns() as f64 / 1e3 / samples,
        theirs.cpu_ns() as f64 / 1e3 / samples,
    );
    satellite.stop()?;
    relay.stop()?;
    Ok(Drained { samples, seconds, on_disk: on_disk as f64 / samples, notes })
}

fn fill(dir: &std::path::Path, polls: u64) -> Result<()> {
    let now_ms = wait::wall_ms();
    let mut workload = Workload::ending_at(now_ms, polls, 1);
    let clock = Arc::new(ManualClock::new(workload.at_ms, 1));
    std::fs::create_dir_all(dir.parent().context("a buffer stands in a directory")?)?;
    let settings = BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(dir.to_owned()) };
    let (buffer, opened) = Buffer::open(settings, Arc::clone(&clock) as Arc<dyn Clock>)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut encoder = Encoder::default();
    for poll in 0..polls {
        let now = clock.now();
        let series = if poll == 0 { workload::series_frames(&mut encoder, opened.epoch, now) } else { Vec::new() };
        let before = poll * SERIES as u64;
        let block = workload::frame(&mut encoder, opened.epoch, before, workload.poll(), now.mono_ms);
        let commit = Commit { series, blocks: vec![block], notes: Vec::new(), losses_explained: 0 };
        runtime.block_on(buffer.commit(commit))?;
        clock.advance(EVERY_MS.unsigned_abs());
    }
    buffer.close();
    Ok(())
}
