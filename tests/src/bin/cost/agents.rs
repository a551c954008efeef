//! Rows `rss`, `cpu`, `wire-*`, `buffer` and `flash`: satellites and other agents side by side on this host, over the
//! same minutes.
//!
//! One satellite is connected and does what it does all day. A second one, which polls this host once and not as several
//! devices that are alike, has its line cut, twice: once for the warm-up and then for a quarter of an hour; what the
//! longer backlog costs more than the shorter is what a backlog costs, without handshake and announcement. A third has
//! the settings for SD cards. The peers send to a sink in this program.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_tests::house::House;
use satellite_tests::wait;

use crate::Plan;
use crate::meter::{Meter, Span};
use crate::rivals::bytes_below;
use crate::table::{OURS, Report};

mod others;

use others::Other;

pub(crate) const ROWS: [&str; 6] = ["rss", "cpu", "wire-live", "wire-backlog", "buffer", "flash"];

/// Samples of one poll that the budgets speak of.
const POLLED: u64 = 1_000;
const FLASH_SAMPLES_PER_SECOND: u64 = 30;
const SOON: Duration = Duration::from_secs(120);
const BACKLOG_WITHIN: Duration = Duration::from_secs(1_800);
const RELAY: &str = "log = \"info\"\n";

/// How long things take in this run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between polls, in seconds.
    pub every_s: u64,
    warm_up: Duration,
    window: Duration,
    /// Polls of the longer backlog.
    away: u64,
}

impl Pace {
    fn of(plan: Plan) -> Self {
        let seconds = Duration::from_secs;
        if plan.quick {
            Self { every_s: 1, warm_up: seconds(4), window: seconds(4), away: 8 }
        } else {
            Self { every_s: 10, warm_up: seconds(40), window: seconds(100), away: 90 }
        }
    }
}

pub(crate) fn measure(plan: Plan, report: &mut Report, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let (dir, pace) = (tempfile::Builder::new().prefix("cost-").tempdir()?, Pace::of(plan));
    let mut live = house(&dir.path().join("live"), "")?;
    let once = samples_of_one_poll(&mut live)?;
    // Hosts differ; on a small one the same host is polled as several devices.
    let copies = POLLED.div_ceil(2 * once).max((POLLED + once / 2) / once).max(1);
    let polling = document(copies, pace.every_s);
    live.configure(&polling)?;
    let mut away = match ["wire-backlog", "buffer"].iter().any(|row| wanted(row)) {
        true => Some(Away::new(&dir.path().join("away"), &document(1, pace.every_s))?),
        false => None,
    };
    let card = if wanted("flash") { Some(Card::new(&dir.path().join("card"), once)?) } else { None };
    let mut others = if plan.peers { others::start(dir.path(), pace, report) } else { Vec::new() };
    std::thread::sleep(pace.warm_up);
    if let Some(away) = &mut away {
        away.drain()?;
    }
    let flash_start = card.as_ref().map(Card::start).transpose()?;
    let mut ours = Ours::new(&live)?;
    for _ in 0..plan.rounds {
        ours.window(&live, pace, &mut others)?;
    }
    ours.report(report, copies, once, pace);
    for other in &others {
        other.report(report);
    }
    if let Some(mut away) = away {
        away.report(pace.away * once, report)?;
        away.house.satellite.stop()?;
        away.house.relay.stop()?;
    }
    // Last: three commits, some of which fall into a start, say little of a day.
    if let (Some(card), Some(start)) = (card, flash_start) {
        card.report(start, report)?;
    }
    live.satellite.stop()?;
    live.relay.stop()
}

fn house(dir: &Path, buffer: &str) -> Result<House> {
    std::fs::create_dir_all(dir)?;
    let settings = format!("log = \"info\"\n[buffer]\nfree_mib_min = 0\nfree_percent_min = 0\n{buffer}");
    House::with_settings(dir, &[], RELAY, Some(&settings))
}

fn document(copies: u64, every_s: u64) -> String {
    let device = |copy| format!("[[device]]\nname = \"host-{copy}\"\ncollector = \"host\"\nevery = \"{every_s}s\"\n");
    (0..copies).map(device).collect()
}

/// How many series this host has; the satellite starts anew afterwards, as after an installation.
fn samples_of_one_poll(house: &mut House) -> Result<u64> {
    house.configure(&document(1, 3_600))?;
    let mut samples = 0;
    wait::until_true("a first poll", SOON, || {
        samples = recorded(house)?;
        Ok(samples > 0)
    })?;
    house.satellite.stop()?;
    house.satellite.start()?;
    Ok(samples)
}

/// Samples recorded since the start of the satellite.
fn recorded(house: &House) -> Result<u64> {
    house.satellite.status()?["recorder"]["samples"].as_u64().context("the recorder's samples")
}

fn wire(house: &House) -> u64 {
    house.relay.session.bytes_up() + house.relay.session.bytes_down()
}

fn meter(house: &House) -> Result<Meter> {
    Ok(Meter::new(house.satellite.process_id().context("the satellite runs")?))
}

/// The connected satellite.
struct Ours {
    meter: Meter,
    rss: Vec<f64>,
    cpu: Vec<f64>,
    wire: Vec<f64>,
    samples: u64,
    pss_kib: f64,
}

impl Ours {
    fn new(house: &House) -> Result<Self> {
        let (rss, cpu, wire) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { meter: meter(house)?, rss, cpu, wire, samples: 0, pss_kib: 0.0 })
    }

    fn window(&mut self, house: &House, pace: Pace, others: &mut [Other]) -> Result<()> {
        // Asking costs the satellite something too: it is asked outside of what is metered.
        let before = recorded(house)?;
        let (start, wire_before) = (self.meter.start(), wire(house));
        let starts: Vec<(Vec<Span>, u64, u64)> = others.iter().map(Other::start).collect();
        std::thread::sleep(pace.window);
        let ((cpu_s, _), wire_after) = (self.meter.since(start), wire(house));
        for (other, start) in others.iter_mut().zip(starts) {
            other.end(start, pace)?;
        }
        let samples = (recorded(house)? - before) as f64;
        let memory = self.meter.memory()?;
        self.samples += samples as u64;
        self.pss_kib = memory.pss_kib;
        self.rss.push(memory.rss_kib / 1024.0);
        self.cpu.push(cpu_s * 1e6 / samples);
        self.wire.push((wire_after - wire_before) as f64 / samples);
        Ok(())
    }

    fn report(self, report: &mut Report, copies: u64, once: u64, pace: Pace) {
        let series = copies * once;
        let how = format!(
            "{series} host series ({copies} × {once}) every {} s; PSS {:.1} MiB",
            pace.every_s,
            self.pss_kib / 1024.0
        );
        report.add("rss", OURS, self.rss, how);
        report.add("cpu", OURS, self.cpu, format!("{} samples; everything that the process does", self.samples));
        report.add("wire-live", OURS, self.wire, "TCP payload up and down: TLS, WebSocket, pings, heartbeats, acks");
    }
}

/// The satellite whose line is cut.
struct Away {
    house: House,
    /// Samples and bytes of each backlog that was drained.
    drained: Vec<(u64, u64)>,
    id: String,
}

impl Away {
    fn new(dir: &Path, polling: &str) -> Result<Self> {
        let house = house(dir, "")?;
        house.configure(polling)?;
        house.relay.session.cut();
        let id = house.id.clone();
        Ok(Self { house, drained: Vec::new(), id })
    }

    /// Lets it come back, waits until what it held is stored, and cuts again. It is started anew, since its back-off may
    /// be minutes by now.
    fn drain(&mut self) -> Result<()> {
        let stored = |house: &House, id: &str| house.relay.account(id).map(|account| account.stored);
        let held = self.house.satellite.status()?["buffer"]["waiting"].as_u64().context("waiting")?;
        self.house.satellite.stop()?;
        let (before, wire_before) = (stored(&self.house, &self.id)?, wire(&self.house));
        self.house.relay.session.mend();
        self.house.satellite.start()?;
        // Polling goes on meanwhile, so that the buffer is hardly ever empty.
        wait::until_true("the backlog is stored", SOON, || Ok(stored(&self.house, &self.id)? >= before + held))?;
        self.house.relay.session.cut();
        self.drained.push((stored(&self.house, &self.id)? - before, wire(&self.house) - wire_before));
        Ok(())
    }

    fn report(&mut self, enough: u64, report: &mut Report) -> Result<()> {
        let (records, bytes) = wait::until("a long backlog", BACKLOG_WITHIN, || {
            let status = self.house.satellite.status()?;
            let number = |name: &str| status["buffer"][name].as_f64().with_context(|| name.to_owned());
            let held = (number("records")?, number("bytes")?);
            Ok((held.0 >= enough as f64).then_some(held))
        })?;
        let how = format!("blocks of {records} records of this host, without the store's own; see `satellite`");
        report.add("buffer", "satellite, payload alone", vec![bytes / records], how);
        self.drain()?;
        let [(few, few_bytes), (many, many_bytes)] = self.drained.as_slice() else { return Ok(()) };
        let more = many.saturating_sub(*few).max(1) as f64;
        let how = format!(
            "{many} samples took {many_bytes} B, {few} took {few_bytes} B; the difference, which leaves out handshake \
             and announcement"
        );
        report.add("wire-backlog", OURS, vec![many_bytes.saturating_sub(*few_bytes) as f64 / more], how);
        Ok(())
    }
}

/// The satellite on an SD card.
struct Card {
    house: House,
    meter: Meter,
    every_s: u64,
    once: u64,
}

impl Card {
    fn new(dir: &Path, once: u64) -> Result<Self> {
        let house = house(dir, "commit_every = \"30s\"\n")?;
        let every_s = (once / FLASH_SAMPLES_PER_SECOND).max(1);
        house.configure(&document(1, every_s))?;
        let meter = meter(&house)?;
        Ok(Self { house, meter, every_s, once })
    }

    fn start(&self) -> Result<(u64, u64)> {
        Ok((self.meter.written()?.disk, wait::mono_ms()))
    }

    fn report(mut self, (bytes, mono_ms): (u64, u64), report: &mut Report) -> Result<()> {
        let written = (self.meter.written()?.disk - bytes) as f64;
        let seconds = (wait::mono_ms() - mono_ms) as f64 / 1e3;
        let status = self.house.satellite.status()?;
        let how = format!(
            "write_bytes over {seconds:.0} s: {} series every {} s; by its own count {} MB/day",
            self.once, self.every_s, status["buffer"]["mb_written_per_day"]
        );
        report.add("flash", OURS, vec![written / 1e6 * 86_400.0 / seconds], how);
        self.house.satellite.stop()?;
        self.house.relay.stop()
    }
}

/// Bytes of an agent's queue, where it keeps one.
fn queue_bytes(dir: Option<&Path>) -> u64 {
    dir.map_or(0, bytes_below)
}
