//! `systemd`: how this machine's services, timers and sockets are, asked of systemd over the system's message bus.
//!
//! Names and labels are those of node_exporter's systemd collector; what a service takes, which that one does not tell, has
//! systemd_exporter's names, without the label `mode` that systemd does not know. No exporter tells how a unit last ended:
//! `systemd_unit_result` is 1 or 0 for `result="success"`, and 1 for systemd's word for what else it was. Three metrics:
//! `system` is the whole, `units` is each unit that was chosen, `up` tells how asking went. A unit that goes while it is
//! asked, or answers with something else, is told as far as it came. Deliberately absent: starting and stopping.

mod bus;
#[cfg(test)]
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;

use self::bus::{Bus, Listed, ListeningSocketProxy, MountProxy, ServiceProxy, TimerProxy, UnitProxy, answer};
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
        let manager = bus.manager().await?;
        let listed = bus.units(&manager).await?;
        let (state, version, virtualization) =
            tokio::join!(manager.system_state(), manager.version(), manager.virtualization());
        let counts = STATES.map(|state| listed.iter().filter(|unit| unit.3 == state).count());
        let chosen: Vec<Listed> =
            listed.into_iter().filter(|unit| unit.2 == "loaded" && self.patterns.take(&unit.0)).collect();
        let units = if chosen.len() > UNITS_MAX {
            let what =
                format!("{} units are chosen, more than {UNITS_MAX}: narrow `units` or exclude some", chosen.len());
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
    let proxy: UnitProxy<'_> = bus.at(path).await?;
    unit.started_usec = answer(proxy.active_enter_timestamp().await)?;
    Ok(())
}

async fn ask_service(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy: ServiceProxy<'_> = bus.at(path).await?;
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
    let proxy: TimerProxy<'_> = bus.at(path).await?;
    let (last, result) = tokio::join!(proxy.last_trigger_usec(), proxy.result());
    unit.result = answer(result)?;
    unit.measure(Family::gauge("node_systemd_timer_last_trigger_seconds", "seconds"), answer(last)?, 1e6);
    Ok(())
}

async fn ask_socket(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy: ListeningSocketProxy<'_> = bus.at(path).await?;
    let (accepted, connections, refused) = tokio::join!(proxy.accepted(), proxy.connections(), proxy.refused());
    unit.count(Family::counter("node_systemd_socket_accepted_connections_total", ""), answer(accepted)?);
    unit.count(Family::gauge("node_systemd_socket_current_connections", ""), answer(connections)?);
    // A gauge there, though it only grows.
    unit.count(Family::gauge("node_systemd_socket_refused_connections_total", ""), answer(refused)?);
    Ok(())
}

async fn ask_mount(bus: &Bus, path: &Path, unit: &mut Unit) -> Result<(), Failure> {
    let proxy: MountProxy<'_> = bus.at(path).await?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use satellite_shared::config::Document;
    use tokio::io::AsyncWriteExt as _;

    use super::super::stage::{Polled, Stage, problem};
    use super::stage::{Answer, Entry, bus, count, entry, number, raw_bus, text};
    use super::*;

    fn stage(bus: &stage::Bus, more: &str) -> Stage {
        let device = format!("[[device]]\nname = \"it\"\ncollector = \"systemd\"\ntimeout = \"1s\"\n{more}\n");
        let (_, document) = Document::parse_text(&device).unwrap();
        let device = document.devices.into_iter().next().unwrap();
        let built = build_at(&device, Ok(bus.socket.clone())).unwrap();
        Stage { device, built }
    }

    /// What systemd 252 says of itself.
    fn manager(property: &str) -> Answer {
        match property {
            "SystemState" => text("running"),
            "Version" => text("252.39-1~deb12u1"),
            "Virtualization" => text(""),
            _ => Answer::Error("org.freedesktop.DBus.Error.UnknownMethod"),
        }
    }

    /// What it says of any unit.
    fn usual(property: &str) -> Answer {
        match property {
            "ActiveEnterTimestamp" => number(1_700_000_000_500_000),
            "Type" => text("notify"),
            "NRestarts" => count(2),
            "Result" => text("success"),
            "TasksCurrent" => number(3),
            "MemoryCurrent" => number(4096),
            "CPUUsageNSec" => number(2_500_000_000),
            "LastTriggerUSec" => number(1_700_000_001_000_000),
            "NAccepted" | "NConnections" | "NRefused" => count(5),
            // Without a limit.
            "TasksMax" => number(u64::MAX),
            _ => Answer::Error("org.freedesktop.DBus.Error.UnknownProperty"),
        }
    }

    /// A systemd with these units.
    fn systemd(units: impl Fn() -> Vec<Entry> + Send + Sync + 'static) -> stage::Bus {
        bus(move |unit, asked| match (unit, asked) {
            (_, "ListUnits") => Answer::Units(units()),
            ("", _) => manager(asked),
            _ => usual(asked),
        })
    }

    fn names(polled: &Polled, metric: &str) -> Vec<String> {
        polled.labelled(metric).into_iter().map(|(labels, _)| labels).collect()
    }

    #[tokio::test]
    async fn units_are_told_with_node_exporters_names() {
        let bus = systemd(|| {
            vec![
                entry("ssh.service", "active"),
                entry("backup.timer", "active"),
                entry("ssh.socket", "active"),
                entry("srv.mount", "inactive"),
                entry("broken.service", "failed"),
                Entry { loaded: "not-found", ..entry("missing.service", "inactive") },
            ]
        });
        let polled = stage(&bus, "units = [\"*\"]").poll_all().await;
        assert!(polled.missing.is_empty(), "{:?}", polled.missing);
        let states = polled.labelled("node_systemd_unit_state");
        let set: Vec<_> = states.iter().filter(|(_, value)| *value > 0.5).map(|(labels, _)| labels.as_str()).collect();
        let expected = [
            "name=ssh.service,state=active,type=notify",
            "name=backup.timer,state=active,type=",
            "name=ssh.socket,state=active,type=",
            "name=srv.mount,state=inactive,type=notify",
            "name=broken.service,state=failed,type=notify",
        ];
        assert_eq!((set, states.len()), (expected.to_vec(), 25));
        let value = |name: &str| polled.labelled(name).into_iter().next().unwrap();
        let of = |labels: &str, value: f64| (labels.to_owned(), value);
        assert_eq!(value("node_systemd_version"), of("version=252.39-1~deb12u1", 252.39));
        assert_eq!(value("node_systemd_system_running"), of("", 1.0));
        assert_eq!(value("node_systemd_virtualization_info"), of("virtualization_type=none", 1.0));
        assert_eq!(value("node_systemd_units"), of("state=active", 3.0));
        assert_eq!(value("node_systemd_unit_start_time_seconds"), of("name=ssh.service", 1_700_000_000.5));
        assert_eq!(value("node_systemd_service_restart_total"), of("name=ssh.service", 2.0));
        assert_eq!(value("node_systemd_unit_tasks_current"), of("name=ssh.service", 3.0));
        assert_eq!(value("node_systemd_timer_last_trigger_seconds"), of("name=backup.timer", 1_700_000_001.0));
        assert_eq!(value("node_systemd_socket_accepted_connections_total"), of("name=ssh.socket", 5.0));
        assert_eq!(value("systemd_unit_memory_bytes"), of("name=ssh.service,type=service", 4096.0));
        assert_eq!(value("systemd_unit_cpu_seconds_total"), of("name=ssh.service,type=service", 2.5));
        assert_eq!(value("systemd_unit_result"), of("name=ssh.service,result=success,type=service", 1.0));
        assert!(names(&polled, "node_systemd_unit_tasks_max").is_empty(), "no limit is no number");
        assert_eq!(names(&polled, "systemd_unit_memory_bytes").len(), 1, "what failed takes nothing");
        assert_eq!(polled.value("probe_success"), Some(1.0));
    }

    #[tokio::test]
    async fn services_and_timers_are_what_is_told_unless_the_configuration_says_another() {
        let bus = systemd(|| {
            let names = ["a.service", "b.timer", "c.socket", "systemd-x.service", "d.device"];
            names.map(|name| entry(name, "active")).into()
        });
        let told = async |more: &str| {
            let polled = stage(&bus, more).poll_all().await;
            assert_eq!(polled.value("node_systemd_units"), Some(5.0), "all of them are counted");
            names(&polled, "node_systemd_unit_start_time_seconds")
        };
        assert_eq!(told("").await, ["name=a.service", "name=b.timer", "name=systemd-x.service"]);
        assert_eq!(told("exclude = [\"systemd-*\", \"*.timer\"]").await, ["name=a.service"]);
        assert_eq!(told("units = [\"?.socket\"]").await, ["name=c.socket"]);
    }

    #[tokio::test]
    async fn how_a_unit_ended_is_told_by_systemds_word() {
        let bus = bus(|unit, asked| match (unit, asked) {
            (_, "ListUnits") => Answer::Units(vec![entry("a.service", "failed"), entry("b.service", "failed")]),
            ("a_service", "Result") => text("exit-code"),
            (_, "Result") => text("Not A Word\n"),
            ("", _) => manager(asked),
            _ => usual(asked),
        });
        let polled = stage(&bus, "").poll_all().await;
        let told: Vec<_> = polled.labelled("systemd_unit_result").into_iter().map(|(l, v)| (l, v > 0.5)).collect();
        let of = |result: &str, is: bool| (format!("name=a.service,result={result},type=service"), is);
        assert_eq!(told, [of("success", false), of("exit-code", true)]);
    }

    #[tokio::test]
    async fn a_unit_that_goes_or_answers_nonsense_spoils_no_other() {
        let bus = bus(|unit, asked| match (unit, asked) {
            (_, "ListUnits") => {
                Answer::Units(["gone.service", "odd.service", "well.service"].map(|name| entry(name, "active")).into())
            }
            ("gone_service", _) => Answer::Error("org.freedesktop.DBus.Error.UnknownObject"),
            ("odd_service", _) => Answer::Value(zbus::Variant::Bool(true)),
            ("", _) => manager(asked),
            _ => usual(asked),
        });
        let polled = stage(&bus, "").poll_all().await;
        assert!(polled.missing.is_empty(), "{:?}", polled.missing);
        assert_eq!(names(&polled, "node_systemd_unit_state").len(), 15);
        assert_eq!(names(&polled, "node_systemd_service_restart_total"), ["name=well.service"]);
    }

    #[tokio::test]
    async fn too_many_units_are_told_and_the_whole_is_told_still() {
        let bus = systemd(|| (0..3_000).map(|n| entry(&format!("u{n}.service"), "inactive")).collect());
        let polled = stage(&bus, "").poll_all().await;
        let (metric, failure) = &polled.missing[0];
        assert_eq!((polled.missing.len(), metric.as_str()), (1, "units"));
        assert!(failure.detail.contains("3000 units are chosen, more than 1000"), "{failure}");
        assert_eq!(polled.value("node_systemd_version"), Some(252.39));
    }

    #[tokio::test]
    async fn the_connection_is_kept_and_made_anew_when_the_bus_was_restarted() {
        let bus = systemd(|| vec![entry("a.service", "active")]);
        let mut kept = stage(&bus, "");
        for _ in 0..3 {
            assert_eq!(kept.poll_all().await.value("probe_success"), Some(1.0));
        }
        assert_eq!(bus.visits.load(Ordering::SeqCst), 1);

        let leaving = stage::bus(|unit, asked| match (unit, asked) {
            (_, "ListUnits") => Answer::Units(vec![entry("a.service", "active")]),
            ("", _) => manager(asked),
            (_, "Result") => Answer::Goodbye,
            _ => usual(asked),
        });
        let mut left = stage(&leaving, "");
        for visit in 1..=2 {
            let polled = left.poll_all().await;
            assert_eq!(polled.value("probe_success"), Some(0.0), "{:?}", polled.missing);
            assert_eq!(leaving.visits.load(Ordering::SeqCst), visit);
        }
    }

    #[tokio::test]
    async fn nothing_of_the_connection_outlives_the_device() {
        let bus = systemd(|| vec![entry("a.service", "active")]);
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        let mut device = stage(&bus, "");
        device.poll_all().await;
        assert!(tasks() > before, "the bus is listened to");
        drop(device);
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_is_no_systemd_is_a_gap_with_the_reason() {
        let check = async |answer: fn() -> Answer, reason: Reason, said: &str| {
            let bus = bus(move |_, _| answer());
            let polled = stage(&bus, "").poll_all().await;
            let failure = polled.failure.clone().unwrap_or_else(|| polled.missing[0].1.clone());
            assert!(failure.reason == reason && failure.detail.contains(said), "{failure}");
        };
        check(|| Answer::Error("org.freedesktop.DBus.Error.ServiceUnknown"), Reason::Unsupported, "is systemd").await;
        check(|| Answer::Error("org.freedesktop.DBus.Error.Spawn.ChildExited"), Reason::Unsupported, "is systemd")
            .await;
        check(|| Answer::Error("org.freedesktop.DBus.Error.AccessDenied"), Reason::Refused, "forbids").await;
        check(|| Answer::Error("org.freedesktop.DBus.Error.NoReply"), Reason::Timeout, "unanswered").await;
        check(|| Answer::Error("com.example.Odd"), Reason::Refused, "Odd").await;
        check(|| number(7), Reason::BadAnswer, "not what systemd answers").await;
        check(|| Answer::Silence, Reason::Timeout, "within").await;
        check(|| Answer::Goodbye, Reason::BadAnswer, "too early").await;
    }

    #[tokio::test]
    async fn a_bus_without_end_is_cut_off() {
        let check = async |greeting: &'static [u8], repeated: &'static [u8], said: &str| {
            let bus = raw_bus(move |mut stream| async move {
                stream.write_all(greeting).await.ok();
                while !repeated.is_empty() && stream.write_all(repeated).await.is_ok() {}
                // Held open: what comes next is for the visitor to say.
                let mut rest = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest).await.ok();
            });
            let polled = stage(&bus, "").poll_all().await;
            let failure = &polled.missing[0].1;
            assert!(failure.detail.contains(said), "{failure}");
        };
        check(b"", &[b'x'; 4096], "more than 65536 bytes").await;
        check(b"REJECTED EXTERNAL\r\n", b"", "does not let us in").await;
        check(b"ERROR\r\n", b"", "does not let us in").await;
        check(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "does not let us in").await;
        check(b"", b"", "within").await;
        let announces = b"OK 0123456789abcdef0123456789abcdef\r\nl\x02\x01\x01\0\0\0\x07\x01\0\0\0\0\0\0\0";
        check(announces, b"", "a message of more than 65536 bytes").await;
    }

    #[tokio::test]
    async fn a_list_that_is_longer_than_any_is_refused_before_it_is_read() {
        let long = || Entry { description: "x".repeat(5 << 20), ..entry("a.service", "active") };
        let bus = systemd(move || vec![long()]);
        let polled = stage(&bus, "").poll_all().await;
        assert!(polled.missing[0].1.detail.contains("more than 4194304 bytes"), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_machine_without_a_bus_is_told_so() {
        let bus = systemd(Vec::new);
        let device = stage(&bus, "").device;
        for (socket, said) in [
            (Ok("/nowhere/bus".into()), "no message bus at /nowhere/bus"),
            (bus::socket(Some("tcp:host=1.2.3.4,port=5")), "DBUS_SYSTEM_BUS_ADDRESS is `tcp:"),
        ] {
            let mut stage = Stage { device: device.clone(), built: build_at(&device, socket).unwrap() };
            let failure = stage.poll_all().await.failure.unwrap();
            assert!(failure.reason == Reason::Unsupported && failure.detail.contains(said), "{failure}");
        }
    }

    #[test]
    fn a_version_is_the_first_number_of_three_digits() {
        for (text, number) in [
            ("252.39-1~deb12u1", Some(252.39)),
            ("v259", Some(259.0)),
            ("257.", Some(257.0)),
            ("deb12 252", Some(252.0)),
            ("", None),
            ("v1.2", None),
        ] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"systemd\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        check("units = []", "device.it.units: name at least one");
        check("units = \"*.service\"", "device.it.units");
        check("exclude = [\"[a]*\"]", "device.it.exclude: `[a]*`");
        check("address = \"x\"", "device.it.address");
        check("[[device.metric]]\nname = \"x\"", "device.it.metric");
    }
}
