//! `systemd`: how this machine's services, timers and sockets are, asked of systemd over the system's message bus.
//!
//! Names and labels are those of node_exporter's systemd collector; what a service takes, which that one does not tell, has
//! systemd_exporter's names, without the label `mode` that systemd does not know. No exporter tells how a unit last ended:
//! `systemd_unit_result` is 1 or 0 for `result="success"`, and 1 for systemd's word for what else it was. Three metrics:
//! `system` is the whole, `units` is each unit that was chosen, `up` tells how asking went. A unit that goes while it is
//! asked, or answers with something else, is told as far as it came. Deliberately absent: starting and stopping.

mod bus;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;

use self::bus::{
    Bus, Listed, ListeningSocketProxy, ManagerProxy, MountProxy, ServiceProxy, TimerProxy, UnitProxy, answer,
};
use super::pattern::Patterns;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};

/// `collector = "systemd"`.
pub const KIND: CollectorKind = CollectorKind { name: "systemd", build };

/// Units that are told one by one.
const UNITS_MAX: usize = 1_000;
/// Units that are asked at the same time, up to four questions each: a bus lets nobody have more than 128 open.
const AT_ONCE: usize = 8;
/// Index of the metric that is the whole.
const SYSTEM: usize = 0;
/// Index of the metric that is the units.
const UNITS: usize = 1;
/// Index of the metric that tells how it went.
const UP: usize = 2;
/// As node_exporter lists them.
const STATES: [&str; 5] = ["active", "activating", "deactivating", "inactive", "failed"];
/// systemd's longest word for a result has 16 letters.
const RESULT_BYTES_MAX: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default = "services_and_timers")]
    units: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

fn services_and_timers() -> Vec<String> {
    ["*.service", "*.timer"].map(str::to_owned).to_vec()
}

fn build(device: &Device, _: &Context) -> Result<Built, Problem> {
    let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok();
    build_at(device, bus::socket(address.as_deref()))
}

fn build_at(device: &Device, socket: Result<PathBuf, String>) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { units, exclude } = options::read(&device.options, &path)?;
    let patterns = Patterns::parse(&path, ("units", units), ("exclude", exclude))?;
    let named = |name: &str| whole(device).into_iter().map(|metric| Metric { name: name.into(), ..metric }).collect();
    let metrics: [Vec<Metric>; 3] = ["system", "units", "up"].map(named);
    let systemd = Systemd { socket, patterns, bus: None, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(systemd), metrics: metrics.concat() })
}

struct Systemd {
    socket: Result<PathBuf, String>,
    patterns: Patterns,
    /// Kept between polls, and let go where anything is wrong with it.
    bus: Option<Bus>,
    limit: Duration,
}

/// What systemd said.
struct Told {
    /// `running`, `degraded`, …
    state: Option<String>,
    version: Option<String>,
    virtualization: Option<String>,
    /// How many units are in each state.
    counts: [usize; STATES.len()],
    units: Result<Vec<Unit>, Failure>,
}

/// What it said of one unit.
#[derive(Default)]
struct Unit {
    name: String,
    state: String,
    /// `simple`, `oneshot`, … of a service, the file system of a mount.
    kind: Option<String>,
    started_usec: Option<u64>,
    result: Option<String>,
    /// Name of a metric, whether it only grows, its unit, and its value.
    numbers: Vec<(Family<'static>, f64)>,
}

impl Systemd {
    async fn ask(&mut self) -> Result<Told, Failure> {
        let socket = self.socket.clone().map_err(|why| Failure::new(Reason::Unsupported, why))?;
        let bus = match self.bus.take().filter(|bus| !bus.is_closed()) {
            Some(bus) => bus,
            None => Bus::connect(&socket).await?,
        };
        let told = self.read(&bus).await?;
        self.bus = Some(bus);
        Ok(told)
    }

    async fn read(&self, bus: &Bus) -> Result<Told, Failure> {
        let manager: ManagerProxy<'_> = bus.manager().await.map_err(|error| bus::failure_of(&error))?;
        let listed = bus.units(&manager).await.map_err(|error| bus::failure_of(&error))?;
        let (state, version, virtualization) =
            tokio::join!(manager.system_state(), manager.version(), manager.virtualization());
        let counts = STATES.map(|state| listed.iter().filter(|unit| unit.3 == state).count());
        let chosen: Vec<Listed> =
            listed.into_iter().filter(|unit| unit.2 == "loaded" && self.patterns.take(&unit.0)).collect();
        let units = if chosen.len() > UNITS_MAX {
            let what = format!("{} units are chosen, more than {UNITS_MAX}: narrow `units` or exclude some", chosen.len());
            Err(Failure::new(Reason::BadAnswer, what))
        } else {
            let asking = futures_util::stream::iter(chosen).map(|listed| ask_unit(bus, listed));
            Ok(asking.buffered(AT_ONCE).try_collect().await?)
        };
        Ok(Told {
            state: answer(state)?,
            version: answer(version)?,
            virtualization: answer(virtualization)?,
            counts,
            units,
        })
    }

    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let outcome = probe::within(self.limit, self.ask()).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => {
                let both = [SYSTEM, UNITS].into_iter().filter(|metric| due.contains(metric));
                both.for_each(|metric| readings.missing(metric, failure.clone()));
            }
            Ok(told) => {
                if due.contains(&SYSTEM) {
                    add_system(&told, readings);
                }
                match told.units {
                    _ if !due.contains(&UNITS) => {}
                    Ok(units) => units.iter().for_each(|unit| add_unit(unit, readings)),
                    Err(failure) => readings.missing(UNITS, failure),
                }
            }
        }
        if due.contains(&UP) {
            probe::report(readings, UP, success, seconds);
        }
        Ok(())
    }
}

impl Collector for Systemd {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

/// A proxy is made of what is there already: it fails only where a path is none, and then nothing is known of the unit.
macro_rules! at {
    ($bus:expr, $path:expr, $proxy:ident) => {
        match answer($bus.at::<$proxy<'_>>($path).await)? {
            Some(proxy) => proxy,
            None => return Ok(()),
        }
    };
}

async fn ask_unit(bus: &Bus, listed: Listed) -> Result<Unit, Failure> {
    let (name, _, _, state, _, _, path, ..) = listed;
    let mut unit = Unit { name, state, ..Unit::default() };
    ask_start(bus, &path, &mut unit).await?;
    match unit.name.rsplit('.').next() {
        Some("service") => ask_service(bus, &path, &mut unit).await?,
        Some("timer") => ask_timer(bus, &path, &mut unit).await?,
        Some("socket") => ask_socket(bus, &path, &mut unit).await?,
        Some("mount") => ask_mount(bus, &path, &mut unit).await?,
        _ => {}
    }
    Ok(unit)
}

type Path = zbus::OwnedObjectPath;

async fn ask_start(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    if unit.state != "active" {
        unit.started_usec = Some(0);
        return Ok(());
    }
    let proxy = at!(bus, path, UnitProxy);
    unit.started_usec = answer(proxy.active_enter_timestamp().await)?;
    Ok(())
}

async fn ask_service(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy = at!(bus, path, ServiceProxy);
    let (kind, restarts, result, most) =
        tokio::join!(proxy.kind(), proxy.restarts(), proxy.result(), proxy.tasks_max());
    unit.kind = answer(kind)?;
    unit.result = answer(result)?;
    unit.count(Family::counter("node_systemd_service_restart_total", ""), answer(restarts)?);
    unit.measure(Family::gauge("node_systemd_unit_tasks_max", ""), answer(most)?, 1.0);
    if matches!(unit.state.as_str(), "inactive" | "failed") {
        // Nothing of it runs.
        return Ok(());
    }
    let (tasks, memory, processor) =
        tokio::join!(proxy.tasks_current(), proxy.memory_current(), proxy.cpu_usage_nsec());
    unit.measure(Family::gauge("node_systemd_unit_tasks_current", ""), answer(tasks)?, 1.0);
    unit.measure(Family::gauge("systemd_unit_memory_bytes", "bytes"), answer(memory)?, 1.0);
    unit.measure(Family::counter("systemd_unit_cpu_seconds_total", "seconds"), answer(processor)?, 1e9);
    Ok(())
}

async fn ask_timer(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy = at!(bus, path, TimerProxy);
    let (last, result) = tokio::join!(proxy.last_trigger_usec(), proxy.result());
    unit.result = answer(result)?;
    unit.measure(Family::gauge("node_systemd_timer_last_trigger_seconds", "seconds"), answer(last)?, 1e6);
    Ok(())
}

async fn ask_socket(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy = at!(bus, path, ListeningSocketProxy);
    let (accepted, connections, refused) = tokio::join!(proxy.accepted(), proxy.connections(), proxy.refused());
    unit.count(Family::counter("node_systemd_socket_accepted_connections_total", ""), answer(accepted)?);
    unit.count(Family::gauge("node_systemd_socket_current_connections", ""), answer(connections)?);
    // A gauge there, though it only grows.
    unit.count(Family::gauge("node_systemd_socket_refused_connections_total", ""), answer(refused)?);
    Ok(())
}

async fn ask_mount(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy = at!(bus, path, MountProxy);
    unit.kind = answer(proxy.kind().await)?;
    Ok(())
}

impl Unit {
    fn count(&mut self, family: Family<'static>, value: Option<u32>) {
        self.numbers.extend(value.map(|value| (family, f64::from(value))));
    }

    /// What systemd does not know is the highest number there is.
    #[expect(clippy::cast_precision_loss, reason = "bytes and times far below 2^53")]
    fn measure(&mut self, family: Family<'static>, value: Option<u64>, divisor: f64) {
        let value = value.filter(|value| *value != u64::MAX);
        self.numbers.extend(value.map(|value| (family, value as f64 / divisor)));
    }
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand units")]
fn add_system(told: &Told, readings: &mut Readings) {
    for (state, count) in STATES.iter().zip(told.counts) {
        readings.sample(SYSTEM, Family::gauge("node_systemd_units", ""), &[("state", state)], count as f64);
    }
    if let Some(state) = &told.state {
        readings.sample(SYSTEM, Family::gauge("node_systemd_system_running", ""), &[], flag(state == "running"));
    }
    if let Some((version, number)) = told.version.as_ref().and_then(|text| Some((text, version_number(text)?))) {
        readings.sample(SYSTEM, Family::gauge("node_systemd_version", ""), &[("version", version)], number);
    }
    if let Some(kind) = &told.virtualization {
        let kind = if kind.is_empty() { "none" } else { kind };
        let labels = [("virtualization_type", kind)];
        readings.sample(SYSTEM, Family::gauge("node_systemd_virtualization_info", ""), &labels, 1.0);
    }
}

/// `252.39` of `252.39-1~deb12u1`: the first number of three digits or more, with what follows its point.
fn version_number(text: &str) -> Option<f64> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut rest = text;
    loop {
        let start = rest.find(|c: char| c.is_ascii_digit())?;
        rest = &rest[start..];
        let whole = digits(rest);
        if whole >= 3 {
            let fraction = rest[whole..].strip_prefix('.').map_or(0, digits);
            let end = if fraction > 0 { whole + 1 + fraction } else { whole };
            return rest[..end].parse().ok();
        }
        rest = &rest[whole..];
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds since 1970, far below 2^53")]
fn add_unit(unit: &Unit, readings: &mut Readings) {
    let name = unit.name.as_str();
    let kind = unit.kind.as_deref().unwrap_or_default();
    for state in STATES {
        let labels = [("name", name), ("state", state), ("type", kind)];
        readings.sample(UNITS, Family::gauge("node_systemd_unit_state", ""), &labels, flag(unit.state == state));
    }
    if let Some(started) = unit.started_usec {
        let family = Family::gauge("node_systemd_unit_start_time_seconds", "seconds");
        readings.sample(UNITS, family, &[("name", name)], started as f64 / 1e6);
    }
    // What systemd_exporter names has the unit's own type: the end of its name.
    let suffix = name.rsplit('.').next().unwrap_or_default();
    for (family, value) in &unit.numbers {
        let both = [("name", name), ("type", suffix)];
        let labels = if family.name.starts_with("node_") { &both[..1] } else { &both[..] };
        readings.sample(UNITS, *family, labels, *value);
    }
    let is_word = |word: &&str| {
        (1..=RESULT_BYTES_MAX).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
    };
    if let Some(result) = unit.result.as_deref().filter(is_word) {
        let mut add = |result: &str, value: f64| {
            let labels = [("name", name), ("result", result), ("type", suffix)];
            readings.sample(UNITS, Family::gauge("systemd_unit_result", ""), &labels, value);
        };
        add("success", flag(result == "success"));
        if result != "success" {
            add(result, 1.0);
        }
    }
}
