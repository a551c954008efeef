//! `smart`: what this machine's disks say of themselves, by smartctl, with smartctl_exporter's names and labels.
//!
//! To ask a disk takes rights that no satellite has: `satellite smart-report`, which systemd starts for each visit of a
//! Unix socket, asks them all, takes no input, and prints a line for each. A disk that sleeps is left asleep: its gap says
//! so, and so does `smartctl_device_state`. Each disk that is listed is a metric with gaps of its own; without a list those
//! that can be read are one. `up` tells of the report itself, and of each disk whether it was read. Deliberately absent:
//! starting self-tests, and any other command.

mod document;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use satellite_shared::config::{Device, Problem, Schedule};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use self::document::{Condition, Document};
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, http, options, whole};
use crate::policy::Gate;

/// `collector = "smart"`.
pub const KIND: CollectorKind = CollectorKind { name: "smart", build };

/// Where the report is to be had.
const SOCKET: &str = "/run/satellite-smart.sock";
/// Disks of one report.
pub const DISKS_MAX: usize = 64;
/// A disk's document; those of drives with every log are a tenth of it.
pub const DOCUMENT_BYTES_MAX: usize = 512 << 10;
/// A disk's line: its document, with its name before it.
const LINE_BYTES_MAX: usize = DOCUMENT_BYTES_MAX + (4 << 10);
/// A visit costs each disk a few commands, and the relay is not trusted with how often.
const EVERY_MIN: Duration = Duration::from_secs(60);
/// Whether a disk was read, 1 or 0.
const READ: &str = "smartctl_device_read";
const ENABLE: &str = "sudo systemctl enable --now satellite-smart.socket";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default = "socket")]
    socket: PathBuf,
    /// Names (`sda`, `/dev/sda`) or serial numbers; all disks where there are none.
    #[serde(default)]
    disks: Vec<String>,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    check_schedule(&device.schedule, &path)?;
    let Options { socket, disks } = options::read(&device.options, &path)?;
    let wrong = |reason: String| options::problem(&format!("{path}.disks"), reason);
    if disks.len() > DISKS_MAX {
        return Err(wrong(format!("{} disks, more than {DISKS_MAX}", disks.len())));
    }
    let mut wanted: Vec<String> = Vec::with_capacity(disks.len());
    for disk in disks {
        let plain = (1..=64).contains(&disk.len()) && disk.chars().all(|letter| letter.is_ascii_graphic());
        if !plain {
            return Err(wrong(format!(
                "`{}` is neither a name such as \"sda\" nor a serial number",
                disk.escape_debug()
            )));
        }
        if wanted.contains(&disk) {
            return Err(wrong(format!("`{disk}` stands twice")));
        }
        wanted.push(disk);
    }
    let named = |name: &str| {
        let mut metric = whole(device).remove(0);
        name.clone_into(&mut metric.name);
        metric
    };
    let mut metrics: Vec<_> = wanted.iter().map(|disk| named(disk)).collect();
    if metrics.is_empty() {
        metrics.push(named("disks"));
    }
    metrics.push(named("up"));
    let (gate, limit) = (Arc::clone(&context.gate), probe::limit(device.timeout));
    let smart = Smart { gate, socket, wanted, serials: BTreeMap::new(), limit };
    Ok(Built { collector: Box::new(smart), metrics })
}

fn check_schedule(schedule: &Schedule, path: &str) -> Result<(), Problem> {
    match schedule {
        Schedule::Every(every) if *every < EVERY_MIN => Err(options::problem(
            &format!("{path}.every"),
            "disks are asked once a minute at most: write \"1m\" or more",
        )),
        // The first of six fields is the second.
        Schedule::Cron(text)
            if text.split_whitespace().count() == 6
                && text.split_whitespace().next().is_some_and(|second| second.parse::<u8>().is_err()) =>
        {
            let reason = "disks are asked once a minute at most: leave the seconds out";
            Err(options::problem(&format!("{path}.cron"), reason))
        }
        Schedule::Every(_) | Schedule::Cron(_) => Ok(()),
    }
}

struct Smart {
    gate: Arc<Gate>,
    socket: PathBuf,
    /// The disks that are metrics of their own, in that order; all of them are one where it is empty.
    wanted: Vec<String>,
    /// What each disk told when it was read: one that sleeps or hangs tells no serial number.
    serials: BTreeMap<String, String>,
    limit: Duration,
}

/// One line of the report.
#[derive(Deserialize)]
struct Line {
    /// Which disks there are; the first line.
    disks: Option<Vec<String>>,
    /// The disk that the other two are about.
    disk: Option<String>,
    /// What smartctl said.
    document: Option<Value>,
    /// Why it said nothing: of one disk, or of all.
    error: Option<String>,
    /// What kind of error it is.
    reason: Option<Reason>,
}

impl Line {
    fn failure(&self) -> Option<Failure> {
        let known = [Reason::Timeout, Reason::BadAnswer, Reason::Unsupported];
        let reason = self.reason.filter(|reason| known.contains(reason)).unwrap_or(Reason::Unsupported);
        self.error.as_ref().map(|error| Failure::new(reason, shown(error)))
    }
}

/// What came of each metric of disks.
struct Told {
    read: Vec<bool>,
    why: Vec<Option<Failure>>,
    /// Disks of which nothing has come yet.
    waiting: Vec<String>,
    /// Disks that could not be read, that nothing is known of, and that no metric names.
    nameless: usize,
}

impl Told {
    fn new(metrics: usize) -> Self {
        Self { read: vec![false; metrics], why: vec![None; metrics], waiting: Vec::new(), nameless: 0 }
    }

    fn miss(&mut self, metric: Option<usize>, failure: Failure) {
        if let Some(metric) = metric {
            self.why[metric].get_or_insert(failure);
        }
    }
}

impl Smart {
    /// Index of the metric that tells of the report; those before it are disks.
    fn up(&self) -> usize {
        self.wanted.len().max(1)
    }

    /// The metric that a disk belongs to.
    fn metric(&self, document: &Document<'_>) -> Option<usize> {
        if self.wanted.is_empty() {
            return Some(0);
        }
        let serial = self.serial(document);
        let is_it = |wanted: &String| {
            wanted.strip_prefix("/dev/").unwrap_or(wanted) == document.device || serial == Some(wanted)
        };
        self.wanted.iter().position(is_it)
    }

    /// A disk's serial number, by what it says now or said before.
    fn serial<'a>(&'a self, document: &'a Document<'_>) -> Option<&'a str> {
        document.serial().or_else(|| self.serials.get(&document.device).map(String::as_str))
    }

    async fn read(&mut self, due: &[usize], readings: &mut Readings, told: &mut Told) -> Result<(), Failure> {
        self.gate.socket(&self.socket)?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.refused(&error))?;
        let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
        let first = self.line(lines.next().await)?.ok_or_else(|| self.ended_early())?;
        let Some(disks) = first.disks.filter(|disks| disks.len() <= DISKS_MAX) else {
            return Err(bad("the report does not begin with which disks there are"));
        };
        told.waiting = disks.iter().map(|disk| document::device(disk)).collect();
        self.serials.retain(|device, _| told.waiting.contains(device));
        if due.contains(&self.up()) {
            let count = f64::from(u8::try_from(disks.len()).unwrap_or(u8::MAX));
            readings.sample(self.up(), Family::gauge("smartctl_devices", ""), &[], count);
        }
        if disks.is_empty() {
            told.miss((self.wanted.is_empty()).then_some(0), unsupported("smartctl finds no disk in this machine"));
        }
        let mut version_told = false;
        for _ in disks {
            let line = self.line(lines.next().await)?.ok_or_else(|| self.ended_early())?;
            let name = line.disk.as_deref().ok_or_else(|| bad("a line of the report names no disk"))?;
            let device = document::device(name);
            let place = told.waiting.iter().position(|waiting| *waiting == device);
            told.waiting.swap_remove(place.ok_or_else(|| bad("a line of a disk that the report does not list"))?);
            let value = line.document.as_ref().unwrap_or(&Value::Null);
            let document = Document::new(name, value);
            if let Some(version) = document.version().filter(|_| !version_told && due.contains(&self.up())) {
                version_told = true;
                let labels: Vec<(&str, &str)> = version.iter().map(|(label, text)| (*label, text.as_str())).collect();
                readings.sample(self.up(), Family::gauge("smartctl_version", ""), &labels, 1.0);
            }
            self.take(&document, line.failure(), due, readings, told);
        }
        Ok(())
    }

    fn take(
        &mut self,
        disk: &Document<'_>,
        failure: Option<Failure>,
        due: &[usize],
        readings: &mut Readings,
        told: &mut Told,
    ) {
        if let Some(serial) = disk.serial() {
            self.serials.insert(disk.device.clone(), serial.to_owned());
        }
        let metric = self.metric(disk);
        let labels = [("device", disk.device.as_str())];
        let mut up = |name: &str, value: f64| {
            if due.contains(&self.up()) {
                readings.sample(self.up(), Family::gauge(name, ""), &labels, value);
            }
        };
        if let Some(status) = disk.exit_status() {
            up("smartctl_device_smartctl_exit_status", f64::from(u32::try_from(status).unwrap_or(u32::MAX)));
        }
        let condition = disk.condition();
        let is_read = failure.is_none() && condition == Condition::Read;
        up(READ, f64::from(u8::from(is_read)));
        let why = match (failure, condition) {
            (Some(failure), _) => Failure::new(failure.reason, format!("{}: {}", disk.device, failure.detail)),
            (None, Condition::Read) => {
                if let Some(metric) = metric.filter(|metric| due.contains(metric)) {
                    disk.tell(metric, readings);
                    told.read[metric] = true;
                }
                return;
            }
            (None, Condition::Asleep(mode)) => {
                up("smartctl_device_state", if mode.starts_with("SLEEP") { 2.0 } else { 1.0 });
                unsupported(format!("{} is asleep ({mode}): to ask would wake it", disk.device))
            }
            (None, Condition::Unread(why)) => unsupported(format!("{}: smartctl says `{}`", disk.device, shown(&why))),
        };
        if metric.is_none() && self.serial(disk).is_none() {
            told.nameless += 1;
        }
        told.miss(metric, why);
    }

    fn line(&self, line: Option<Result<String, LinesCodecError>>) -> Result<Option<Line>, Failure> {
        let text = match line {
            None => return Ok(None),
            Some(Ok(text)) => text,
            Some(Err(LinesCodecError::Io(error))) => return Err(self.refused(&error)),
            Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                return Err(bad(format!("a line of more than {LINE_BYTES_MAX} bytes")));
            }
        };
        let line = http::read_document(text.as_bytes()).map_err(|error| bad(format!("not a report: {error}")))?;
        let line = Line::deserialize(line).map_err(|error| bad(format!("not a line of a report: {error}")))?;
        match line.failure() {
            Some(failure) if line.disk.is_none() => Err(failure),
            _ => Ok(Some(line)),
        }
    }

    fn refused(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind as Io;
        let path = self.socket.display();
        if matches!(error.kind(), Io::NotFound | Io::ConnectionRefused) {
            return unsupported(format!("nobody reports at {path}: {ENABLE}"));
        }
        if error.kind() == Io::PermissionDenied {
            return unsupported(format!("{path} is not for this user: its group has to be the satellite's"));
        }
        Failure::new(Reason::Refused, format!("{path}: {error}"))
    }

    fn ended_early(&self) -> Failure {
        bad("the report ended too early: journalctl -u 'satellite-smart@*'")
    }

    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let up = self.up();
        let mut told = Told::new(up);
        let mut found = readings.sibling();
        let outcome = probe::within(self.limit, self.read(due, &mut found, &mut told)).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        let rest = match outcome {
            Ok(()) if told.nameless > 0 => unsupported(format!(
                "no disk that answers is it, and {} that sleep or hang tell no serial number: list it by name, or wake it once",
                told.nameless
            )),
            Ok(()) => unsupported("smartctl finds no such disk: `sudo satellite smart-report` shows those there are"),
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => failure,
        };
        if success || rest.reason == Reason::Timeout || !self.wanted.is_empty() {
            // What was too late for the poll.
            for device in told.waiting.iter().filter(|_| due.contains(&up)) {
                found.sample(up, Family::gauge(READ, ""), &[("device", device)], 0.0);
            }
            readings.append(&found);
        } else {
            // Of all disks at once nothing is told by half a report that is none.
            told = Told::new(up);
        }
        for metric in due.iter().copied().filter(|metric| *metric < up) {
            if !told.read[metric] {
                readings.missing(metric, told.why[metric].clone().unwrap_or_else(|| rest.clone()));
            }
        }
        if due.contains(&up) {
            probe::report(readings, up, success, seconds);
        }
        Ok(())
    }
}

impl Collector for Smart {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

fn bad(detail: impl Into<String>) -> Failure {
    Failure::new(Reason::BadAnswer, detail)
}

fn unsupported(detail: impl Into<String>) -> Failure {
    Failure::new(Reason::Unsupported, detail)
}

fn shown(text: &str) -> String {
    text.chars().take(120).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    use satellite_shared::metric::Kind;

    use super::super::stage::{Polled, Stage, problem};
    use super::*;

    const HDD: &str = include_str!("smart/fixtures/hdd.json");
    const ATA: &str = include_str!("smart/fixtures/qemu_ata.json");
    const NVME: &str = include_str!("smart/fixtures/qemu_nvme.json");
    const ASLEEP: &str = include_str!("smart/fixtures/asleep.json");
    const BRIDGE: &str = include_str!("smart/fixtures/usb_bridge.json");

    /// A report that says this to each visitor.
    fn report(dir: &Path, said: impl Into<Vec<u8>>) -> PathBuf {
        let (path, said) = (dir.join("smart.sock"), said.into());
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                drop(stream.unwrap().write_all(&said));
            }
        });
        path
    }

    fn disk(name: &str, document: &str) -> String {
        format!("{{\"disk\": \"{name}\", \"document\": {}}}\n", document.trim())
    }

    /// The first line.
    fn list(disks: &[&str]) -> String {
        format!("{{\"disks\": {disks:?}}}\n")
    }

    fn lines(disks: &[(&str, &str)]) -> String {
        let lines: String = disks.iter().map(|(name, document)| disk(name, document)).collect();
        let names: Vec<&str> = disks.iter().map(|(name, _)| *name).collect();
        list(&names) + &lines
    }

    fn stage(socket: &Path, more: &str) -> Stage {
        let socket = socket.display();
        let device = format!("collector = \"smart\"\nsocket = \"{socket}\"\ntimeout = \"500ms\"\n{more}");
        Stage::with_policy(&device, &format!("sockets = [\"{socket}\"]")).unwrap()
    }

    async fn polled(said: impl Into<Vec<u8>>, more: &str) -> Polled {
        let dir = tempfile::tempdir().unwrap();
        stage(&report(dir.path(), said), more).poll_all().await
    }

    #[tokio::test]
    async fn a_hard_disk_is_told_as_smartctl_exporter_tells_it() {
        let polled = polled(lines(&[("/dev/sda", HDD)]), "").await;
        assert_eq!((polled.failure.clone(), polled.missing.len()), (None, 0));
        for (name, value) in [
            ("smartctl_devices", 1.0),
            ("smartctl_device_capacity_bytes", 4_000_787_030_016.0),
            ("smartctl_device_power_on_seconds", 33_876.0 * 3600.0 + 1800.0),
            ("smartctl_device_power_cycle_count", 41.0),
            ("smartctl_device_rotation_rate", 5400.0),
            ("smartctl_device_smart_status", 1.0),
            ("smartctl_device_state", 0.0),
            ("smartctl_device_smartctl_exit_status", 64.0),
            ("probe_success", 1.0),
        ] {
            assert_eq!(polled.value(name), Some(value), "{name}");
        }
        let has = |name: &str, labels: &str, value: f64| {
            let found = polled.labelled(name);
            assert!(found.contains(&(labels.to_owned(), value)), "{name} {labels} {value}: {found:?}");
        };
        has("smartctl_device_temperature", "device=sda,temperature_type=current", 32.0);
        has("smartctl_device_temperature", "device=sda,temperature_type=op_limit_max", 65.0);
        has("smartctl_device_block_size", "blocks_type=physical,device=sda", 4096.0);
        has("smartctl_device_interface_speed", "device=sda,speed_type=current", 3e9);
        has("smartctl_device_erc_seconds", "device=sda,op_type=write", 7.5);
        has("smartctl_device_error_log_count", "device=sda,error_log_type=extended", 3.0);
        has("smartctl_device_self_test_log_count", "device=sda,self_test_log_type=extended", 1.0);
        has("smartctl_device_self_test_log_error_count", "device=sda,self_test_log_type=extended", 0.0);
        let pending = "attribute_flags_long=updated_online,event_count,auto_keep,attribute_flags_short=-O--CK,\
                       attribute_id=197,attribute_name=Current_Pending_Sector,attribute_value_type=raw,device=sda";
        has("smartctl_device_attribute", pending, 2.0);
        assert_eq!(polled.labelled("smartctl_device_attribute").len(), 5 * 4);
        let statistics = polled.labelled("smartctl_device_statistics");
        assert_eq!(statistics.len(), 3, "none without a value, none of the vendor's: {statistics:?}");
        assert!(statistics[2].0.ends_with("statistic_table=SATA PHY Event Counters"), "{statistics:?}");
        let (info, _) = &polled.labelled("smartctl_device")[0];
        assert!(info.contains("model_name=EXAMPLE WD40-68N") && info.contains("serial_number=WX-0001"), "{info}");
        let (series, _) = polled.samples.iter().find(|(s, _)| s.name == "smartctl_device_power_on_seconds").unwrap();
        assert_eq!((series.kind, series.unit.as_str()), (Kind::Counter, "seconds"));
    }

    #[tokio::test]
    async fn what_real_smartctl_said_of_an_ata_and_an_nvme_disk_is_read() {
        let polled = polled(lines(&[("/dev/sda", ATA), ("/dev/nvme0", NVME)]), "").await;
        assert_eq!((polled.failure.clone(), polled.missing.len()), (None, 0));
        let current = |device: &str| (format!("device={device},temperature_type=current"), 31.0);
        assert_eq!(polled.labelled("smartctl_device_temperature")[0], current("sda"));
        assert_eq!(polled.labelled("smartctl_device_bytes_read"), [("device=nvme0".to_owned(), 512_000.0)]);
        assert_eq!(polled.labelled("smartctl_device_bytes_written"), [], "0 is a controller that does not count");
        assert_eq!(polled.labelled("smartctl_device_percentage_used"), [("device=nvme0".to_owned(), 0.0)]);
        let self_tests = [("device=sda,self_test_log_type=standard".to_owned(), 0.0)];
        assert_eq!(polled.labelled("smartctl_device_self_test_log_count"), self_tests);
        let version = "build_info=(local build),json_format_version=1.0,smartctl_version=7.3,svn_revision=5338";
        assert_eq!(polled.labelled("smartctl_version"), [(version.to_owned(), 1.0)]);
    }

    #[tokio::test]
    async fn a_disk_that_sleeps_is_a_gap_that_says_so_and_no_failure_of_the_others() {
        let said = lines(&[("/dev/sda", HDD), ("/dev/sdb", ASLEEP), ("/dev/sdc", BRIDGE)]);
        let polled = polled(said, "disks = [\"/dev/sdb\", \"WX-0001\", \"sdc\", \"sdz\"]").await;
        assert_eq!(polled.value("smartctl_device_smart_status"), Some(1.0));
        assert_eq!(polled.labelled("smartctl_device_state"), [("device=sda".into(), 0.0), ("device=sdb".into(), 2.0)]);
        assert_eq!(polled.value("probe_success"), Some(1.0));
        let told: Vec<_> = polled.missing.iter().map(|(metric, why)| (metric.as_str(), why.detail.as_str())).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told[0], ("/dev/sdb", "sdb is asleep (SLEEP): to ask would wake it"));
        assert!(told[1].0 == "sdc" && told[1].1.contains("Unknown USB bridge [0x46f4:0x0001"), "{told:?}");
        assert!(told[2].0 == "sdz" && told[2].1.contains("no such disk"), "{told:?}");
    }

    #[tokio::test]
    async fn all_disks_asleep_are_one_gap_where_none_is_listed() {
        let polled = polled(lines(&[("/dev/sdb", ASLEEP)]), "").await;
        assert_eq!(polled.missing.len(), 1);
        let (metric, why) = &polled.missing[0];
        assert_eq!((metric.as_str(), why.reason), ("disks", Reason::Unsupported));
        assert!(why.detail.contains("asleep"), "{why}");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_costs_itself() {
        let said = list(&["/dev/sdb", "/dev/sda", "/dev/sdc"]) + &disk("/dev/sda", HDD);
        let said = said + "{\"disk\": \"/dev/sdb\", \"error\": \"no answer within 20s\", \"reason\": \"timeout\"}\n";
        let said =
            said + "{\"disk\": \"/dev/sdc\", \"error\": \"smartctl printed no JSON\", \"reason\": \"bad_answer\"}\n";
        let listed = polled(said.clone(), "disks = [\"sda\", \"sdb\", \"sdc\"]").await;
        assert_eq!(listed.value("smartctl_device_smart_status"), Some(1.0));
        let told = |(metric, why): &(String, Failure)| (metric.clone(), why.reason, why.detail.clone());
        let late = ("sdb".to_owned(), Reason::Timeout, "sdb: no answer within 20s".to_owned());
        let odd = ("sdc".to_owned(), Reason::BadAnswer, "sdc: smartctl printed no JSON".to_owned());
        assert_eq!(listed.missing.iter().map(told).collect::<Vec<_>>(), [late, odd]);
        let all = polled(said, "").await;
        assert_eq!((all.value("smartctl_device_smart_status"), all.missing.len()), (Some(1.0), 0));
        let read = [("device=sda".into(), 1.0), ("device=sdb".into(), 0.0), ("device=sdc".into(), 0.0)];
        assert_eq!(all.labelled("smartctl_device_read"), read);
    }

    #[tokio::test]
    async fn what_was_read_before_the_poll_ended_is_told_and_of_the_rest_that_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smart.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let said = list(&["/dev/sda", "/dev/sdb"]) + &disk("/dev/sda", HDD);
        std::thread::spawn(move || {
            let visits = listener.incoming().map(|stream| {
                let mut stream = stream.unwrap();
                stream.write_all(said.as_bytes()).unwrap();
                stream
            });
            // Who visited is never hung up on.
            std::mem::forget(visits.take(2).collect::<Vec<_>>());
        });
        let all = stage(&path, "").poll_all().await;
        assert_eq!((all.value("smartctl_device_status"), all.missing.len()), (Some(1.0), 0));
        let read = [("device=sda".into(), 1.0), ("device=sdb".into(), 0.0)];
        assert_eq!((all.labelled("smartctl_device_read"), all.value("probe_success")), (read.into(), Some(0.0)));
        let listed = stage(&path, "disks = [\"sda\", \"sdb\"]").poll_all().await;
        assert_eq!(listed.value("smartctl_device_status"), Some(1.0));
        assert_eq!((listed.missing[0].0.as_str(), listed.missing[0].1.reason), ("sdb", Reason::Timeout));
    }

    #[tokio::test]
    async fn a_disk_that_is_listed_by_serial_number_is_known_again_when_it_sleeps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smart.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let asleep = lines(&[("/dev/sda", &ASLEEP.replace("/dev/sdb", "/dev/sda"))]);
        let reports = [asleep.clone(), lines(&[("/dev/sda", HDD)]), asleep, lines(&[])];
        std::thread::spawn(move || {
            for (said, stream) in reports.iter().zip(listener.incoming()) {
                stream.unwrap().write_all(said.as_bytes()).unwrap();
            }
        });
        let mut stage = stage(&path, "disks = [\"WX-0001\"]");
        let mut why = async || stage.poll_all().await.missing.pop().map(|(_, why)| why.detail).unwrap_or_default();
        let said = why().await;
        assert!(said.contains("1 that sleep or hang tell no serial number: list it by name"), "{said}");
        assert_eq!(why().await, "", "it was read");
        assert_eq!(why().await, "sda is asleep (SLEEP): to ask would wake it");
        let said = why().await;
        assert!(said.contains("finds no such disk"), "it is gone: {said}");
    }

    #[tokio::test]
    async fn a_report_that_is_none_is_refused_with_what_to_do() {
        let one = disk("/dev/sda", HDD);
        for (said, detail) in [
            (String::new(), "ended too early"),
            (list(&["/dev/sda", "/dev/sdb"]) + &one, "ended too early"),
            (list(&["/dev/sda"; 65]), "does not begin with which disks"),
            ("{}\n".into(), "does not begin"),
            ("HTTP/1.1 400\r\n".into(), "not JSON"),
            (list(&["/dev/sda"]) + "{}\n", "names no disk"),
            (list(&["/dev/sda"]) + "[]\n", "not a line of a report"),
            (list(&["/dev/sdb"]) + &one, "does not list"),
            (format!("{{\"disks\": [], \"pad\": \"{}\"}}\n", "x".repeat(LINE_BYTES_MAX)), "more than"),
        ] {
            let polled = polled(said.clone(), "").await;
            let why = &polled.missing.first().unwrap_or_else(|| panic!("{said:.80}: {:?}", polled.failure)).1;
            assert!(why.reason == Reason::BadAnswer && why.detail.contains(detail), "{said:.80}: {why}");
            assert_eq!(polled.value("probe_success"), Some(0.0));
        }
        let said = "{\"error\": \"smartctl is not there\", \"reason\": \"unsupported\"}\n";
        let failure = polled(said, "").await.failure.unwrap();
        assert_eq!((failure.reason, failure.detail.as_str()), (Reason::Unsupported, "smartctl is not there"));
    }

    #[tokio::test]
    async fn where_nobody_reports_the_gap_says_what_to_type() {
        let dir = tempfile::tempdir().unwrap();
        let failure = stage(&dir.path().join("nobody"), "").poll_all().await.failure.unwrap();
        assert_eq!(failure.reason, Reason::Unsupported);
        assert!(failure.detail.contains(ENABLE), "{failure}");
    }

    #[tokio::test]
    async fn a_socket_outside_the_policy_is_not_opened() {
        let device = "collector = \"smart\"\nsocket = \"/run/other.sock\"";
        let failure = Stage::with_policy(device, "").unwrap().poll_all().await.failure.unwrap();
        assert_eq!(failure.reason, Reason::Policy);
        assert!(failure.detail.contains("add \"/run/other.sock\" to `sockets`"), "{failure}");
    }

    #[tokio::test]
    async fn a_report_that_never_ends_ends_with_the_poll() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("smart.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let polled = stage(&path, "").poll_all().await;
        assert_eq!(polled.missing[0].1.reason, Reason::Timeout);
        drop(listener);
    }

    #[test]
    fn options_that_are_wrong_are_named() {
        for (options, said) in [
            ("disks = [\"\"]", "device.it.disks: `` is neither a name"),
            ("disks = [\"sda\", \"sda\"]", "device.it.disks: `sda` stands twice"),
            ("disks = \"sda\"", "device.it.disks: invalid type"),
            ("disk = \"sda\"", "device.it.disk: unknown field"),
            ("[[device.metric]]\nname = \"x\"", "device.it.metric: `smart` takes no list"),
            ("every = \"59s\"", "device.it.every: disks are asked once a minute at most"),
            ("cron = \"*/30 * * * * *\"", "device.it.cron: disks are asked once a minute at most"),
        ] {
            let problem = problem(&format!("collector = \"smart\"\n{options}"));
            assert!(problem.starts_with(said), "{options}: {problem}");
        }
    }
}
