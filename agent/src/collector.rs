//! Where records begin: one collector a kind of device, one file each.
//!
//! A collector answers one question: what do the metrics that are due read now? The frame around it (the scheduler's)
//! measures, limits its time, and turns a failure into gaps, for all alike. Deliberately absent: retries, schedules,
//! and any way to reach an address that did not pass the [`Gate`].

pub mod dns;

pub mod docker;

pub mod host;

pub mod http;

pub mod internet;

pub mod modbus;

pub mod mqtt;

pub mod ping;

pub mod prometheus;

pub mod smart;

pub mod snmp;

pub mod storage;

pub mod sunspec;

pub mod systemd;

pub mod tailscale;

pub mod tcp;

pub mod tls;

pub mod ups;

pub mod wireguard;

mod address;
pub mod gateway;
mod number;
pub mod once;
mod options;
mod pattern;
mod probe;
pub(crate) mod program;
#[cfg(test)]
mod stage;
mod trust;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use satellite_shared::config::{Device, Metric, Problem, Schedule};
use satellite_shared::gap::{self, Reason};
use satellite_shared::limits;
use satellite_shared::metric::{Kind, Series};

use self::gateway::Gateways;
use crate::policy::Gate;
use crate::secrets::Keyring;

/// Every kind of collector there is, in the order that people read them.
#[must_use]
pub fn all() -> &'static [CollectorKind] {
    &[
        host::KIND,
        systemd::KIND,
        docker::KIND,
        smart::KIND,
        storage::KIND,
        wireguard::KIND,
        tailscale::KIND,
        http::KIND,
        prometheus::KIND,
        ping::KIND,
        tcp::KIND,
        tls::KIND,
        dns::KIND,
        internet::KIND,
        snmp::KIND,
        modbus::KIND,
        sunspec::KIND,
        mqtt::KIND,
        ups::KIND,
    ]
}

/// The kind that a device asks for.
///
/// # Errors
/// That there is none of this name, and which there are.
pub fn kind_of(device: &Device) -> Result<&'static CollectorKind, Problem> {
    all().iter().find(|kind| kind.name == device.collector).ok_or_else(|| {
        let known: Vec<&str> = all().iter().map(|kind| kind.name).collect();
        let reason = format!("unknown collector `{}`: this version has {}", device.collector, known.join(", "));
        Problem { path: format!("device.{}.collector", device.name), reason }
    })
}

/// One kind of collector.
#[derive(Debug)]
pub struct CollectorKind {
    /// What `collector = "…"` says.
    pub name: &'static str,
    /// Reads the device's options and makes a collector of it. Opens nothing and sends nothing.
    pub build: fn(&Device, &Context) -> Result<Built, Problem>,
}

/// What a collector may use.
#[derive(Clone)]
pub struct Context {
    /// The only way to an address.
    pub gate: Arc<Gate>,
    /// The only way to a secret.
    pub keyring: Arc<Keyring>,
    /// Where devices that share a gateway wait for their turn.
    pub gateways: Arc<Gateways>,
    /// Where devices that look at the same mount wait for their turn.
    pub mounts: Arc<storage::Mounts>,
    /// `/`, or where a test keeps its `proc` and `sys`.
    pub root: PathBuf,
}

impl Context {
    /// What devices share, where none has been made yet.
    #[must_use]
    pub fn new(gate: Arc<Gate>, keyring: Keyring, root: impl Into<PathBuf>) -> Self {
        Self { gate, keyring: Arc::new(keyring), gateways: Arc::default(), mounts: Arc::default(), root: root.into() }
    }
}

/// A collector ready to poll, and the metrics it has: what the scheduler calls by index.
pub struct Built {
    /// The collector.
    pub collector: Box<dyn Collector>,
    /// Its metrics; never empty. A device without a list of metrics has the one of [`whole`].
    pub metrics: Vec<Metric>,
}

/// The one metric of a device that lists none: all that it gives. Its gaps name no metric.
#[must_use]
pub fn whole(device: &Device) -> Vec<Metric> {
    let schedule: Schedule = device.schedule.clone();
    vec![Metric { name: String::new(), schedule, paused: false, options: serde_json::Map::default() }]
}

/// A poll under way.
pub type Poll<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// One device as it can be polled.
pub trait Collector: Send {
    /// Reads the metrics that are due (indices into [`Built::metrics`]) into `readings`.
    ///
    /// A metric that can't be read alone is told by [`Readings::missing`]; an `Err` is for the poll as a whole:
    /// nothing of it is kept, every metric that was due becomes a gap, and the device is left alone when that goes on.
    /// The future may be dropped at any await.
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a>;
}

/// Why a poll, or one metric of it, gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}", reason = reason.as_str())]
pub struct Failure {
    /// For programs.
    pub reason: Reason,
    /// For people; cut to 200 bytes. Never holds a secret.
    pub detail: String,
}

impl Failure {
    /// A failure with its detail, cut to its limit.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: gap::detail(detail) }
    }
}

/// What a sample is called and means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family<'a> {
    /// The metric name, as the field's exporters call it.
    pub name: &'a str,
    /// Counter, gauge, …
    pub kind: Kind,
    /// The base unit, or empty.
    pub unit: &'a str,
}

impl<'a> Family<'a> {
    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'a str, unit: &'a str) -> Self {
        Self { name, kind: Kind::Gauge, unit }
    }

    /// A counter.
    #[must_use]
    pub const fn counter(name: &'a str, unit: &'a str) -> Self {
        Self { name, kind: Kind::Counter, unit }
    }
}

/// Names and labels of one poll together: far more than an exporter gives, and little enough for a small machine.
const KEYS_BYTES_MAX: usize = 4 << 20;
/// And what few give.
const KEYS_BYTES_LARGE: usize = 256 << 10;

/// What one poll gave, in one arena: a sample costs no allocation of its own.
#[derive(Debug, Default)]
pub struct Readings {
    keys: Vec<u8>,
    samples: Vec<Sample>,
    missing: Vec<(usize, Failure)>,
    fixed_labels: Vec<(String, String)>,
    overflow: bool,
    device_failed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    metric: u16,
    key_end: u32,
    value: f64,
}

/// One sample as the recorder takes it: `key` names the series until it has a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading<'a> {
    /// Index of the metric that gave it.
    pub metric: usize,
    /// Name, kind, unit and labels in one piece; see [`series_of_key`].
    pub key: &'a [u8],
    /// What was read.
    pub value: f64,
}

impl Readings {
    /// Readings that all carry these labels, as the configuration gave them.
    #[must_use]
    pub fn with_labels(fixed_labels: Vec<(String, String)>) -> Self {
        Self { fixed_labels, ..Self::default() }
    }

    /// Adds a sample. Labels may come in any order; a fixed label yields to one of the same name.
    pub fn sample(&mut self, metric: usize, family: Family<'_>, labels: &[(&str, &str)], value: f64) {
        if self.samples.len() >= limits::SAMPLES_PER_POLL_MAX || self.keys.len() >= KEYS_BYTES_MAX {
            self.overflow = true;
            return;
        }
        self.make_room();
        push_text(&mut self.keys, family.name);
        self.keys.push(family.kind as u8);
        push_text(&mut self.keys, family.unit);
        // Most are few and in order already.
        if self.fixed_labels.is_empty() && labels.is_sorted() {
            push_labels(&mut self.keys, labels);
        } else {
            let mut all: Vec<(&str, &str)> = Vec::with_capacity(labels.len() + self.fixed_labels.len());
            all.extend_from_slice(labels);
            for (name, value) in &self.fixed_labels {
                if !labels.iter().any(|(other, _)| other == name) {
                    all.push((name, value));
                }
            }
            all.sort_unstable();
            push_labels(&mut self.keys, &all);
        }
        let key_end = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        self.samples.push(Sample { metric: u16::try_from(metric).unwrap_or(u16::MAX), key_end, value });
    }

    /// One step leads from a large poll to the limit: what is not written to takes no memory, and a heap that is doubled step
    /// by step ends up as twice the limit, since what was copied leaves holes too small for the next.
    fn make_room(&mut self) {
        let (len, capacity) = (self.keys.len(), self.keys.capacity());
        let most = KEYS_BYTES_MAX + 2 * limits::SERIES_BYTES_MAX;
        if capacity - len < 2 * limits::SERIES_BYTES_MAX && (KEYS_BYTES_LARGE..most).contains(&capacity) {
            self.keys.reserve_exact(most - len);
        }
    }

    /// Empty readings with the same fixed labels, to be filled elsewhere and [appended](Self::append).
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self::with_labels(self.fixed_labels.clone())
    }

    /// Takes over what a [sibling](Self::sibling) read.
    pub fn append(&mut self, other: &Self) {
        let room = limits::SAMPLES_PER_POLL_MAX - self.samples.len();
        let taken = &other.samples[..other.samples.len().min(room)];
        let start = u32::try_from(self.keys.len()).unwrap_or(u32::MAX);
        let end = taken.last().map_or(0, |sample| sample.key_end);
        self.keys.extend_from_slice(&other.keys[..end as usize]);
        self.samples.extend(taken.iter().map(|s| Sample { key_end: start.saturating_add(s.key_end), ..*s }));
        self.missing.extend_from_slice(&other.missing);
        self.overflow |= other.overflow || taken.len() < other.samples.len();
    }

    /// Forgets every sample after the first so many: what a metric gave before it failed.
    pub fn truncate(&mut self, len: usize) {
        self.samples.truncate(len);
        self.keys.truncate(self.samples.last().map_or(0, |sample| sample.key_end as usize));
    }

    /// Says why a metric that was due gave nothing.
    pub fn missing(&mut self, metric: usize, failure: Failure) {
        self.missing.push((metric, failure));
    }

    /// The samples, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = Reading<'_>> {
        let starts = std::iter::once(0).chain(self.samples.iter().map(|s| s.key_end));
        self.samples.iter().zip(starts).map(|(sample, start)| Reading {
            metric: usize::from(sample.metric),
            key: &self.keys[start as usize..sample.key_end as usize],
            value: sample.value,
        })
    }

    /// The metrics that gave nothing.
    #[must_use]
    pub fn failures(&self) -> &[(usize, Failure)] {
        &self.missing
    }

    /// How many samples there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether there is no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Whether the device gave more samples than one poll may.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.overflow || u32::try_from(self.keys.len()).is_err()
    }

    /// Says that the device did not do what it was asked: it is left alone for a while when that goes on, as after an
    /// `Err`, though what the asking itself told is kept. Not for what costs a device nothing, such as one packet.
    pub fn device_failed(&mut self) {
        self.device_failed = true;
    }

    /// Whether it did not.
    #[must_use]
    pub fn has_device_failed(&self) -> bool {
        self.device_failed
    }

    /// What a poll that ended so has come to: more samples than one may give are none.
    ///
    /// # Errors
    /// Why it gave nothing.
    pub fn judge(&self, ended: Result<(), Failure>) -> Result<(), Failure> {
        match ended {
            Ok(()) if self.overflowed() => {
                Err(Failure::new(Reason::BadAnswer, "more samples than one poll may give (50,000)"))
            }
            other => other,
        }
    }

    /// Forgets everything but the labels, for the next poll.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.samples.clear();
        self.missing.clear();
        self.overflow = false;
        self.device_failed = false;
    }
}

fn push_labels(keys: &mut Vec<u8>, labels: &[(&str, &str)]) {
    for (name, value) in labels {
        push_text(keys, name);
        push_text(keys, value);
    }
}

fn push_text(keys: &mut Vec<u8>, text: &str) {
    // Longer texts break the series' limit anyway and are refused when the key is read.
    let len = u16::try_from(text.len()).unwrap_or(u16::MAX);
    keys.extend_from_slice(&len.to_le_bytes());
    keys.extend_from_slice(&text.as_bytes()[..usize::from(len)]);
}

fn take_text<'a>(key: &mut &'a [u8]) -> Option<&'a str> {
    let (len, rest) = key.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    *key = rest;
    std::str::from_utf8(text).ok()
}

/// The series that a key of [`Reading`] names; `None` where it breaks the limits of a series.
#[must_use]
pub fn series_of_key(device: &satellite_shared::id::DeviceName, mut key: &[u8]) -> Option<Series> {
    let name = take_text(&mut key)?.to_owned();
    let (&kind, rest) = key.split_first()?;
    key = rest;
    let kinds = [Kind::Unknown, Kind::Gauge, Kind::Counter, Kind::Histogram, Kind::Summary, Kind::Info, Kind::StateSet];
    let kind = kinds.into_iter().find(|k| *k as u8 == kind)?;
    let unit = take_text(&mut key)?.to_owned();
    let mut labels = Vec::new();
    while !key.is_empty() {
        labels.push((take_text(&mut key)?.to_owned(), take_text(&mut key)?.to_owned()));
    }
    let series = Series { device: device.clone(), name, kind, unit, labels };
    series.check().ok().map(|()| series)
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::SystemClock;
    use satellite_shared::config::Document;

    use super::*;
    use crate::policy::Policy;

    #[test]
    fn every_example_of_the_devices_page_can_be_built() {
        let page = include_str!("../DEVICES.md");
        // Some profiles ask by POST, which their section says.
        let policy = Policy::parse("methods = [\"GET\", \"HEAD\", \"POST\"]").unwrap();
        let context = Context::new(Arc::new(Gate::new(policy, Arc::new(SystemClock))), Keyring::of([]), "/");
        let ended = |rest: &'static str| rest.split_once("\n```\n").expect("an example ends");
        let examples = page.split("```toml\n").skip(1).map(ended);
        for (example, _) in examples.filter(|(example, _)| example.contains("[[device]]")) {
            let (_, document) = Document::parse_text(example).unwrap_or_else(|problem| panic!("{problem}: {example}"));
            assert!(document.problems.is_empty(), "{:?}: {example}", document.problems);
            for device in &document.devices {
                let kind = kind_of(device).unwrap();
                (kind.build)(device, &context).map(drop).unwrap_or_else(|problem| panic!("{problem}: {example}"));
            }
        }
        assert!(page.matches("```toml").count() >= all().len());
    }

    #[test]
    fn a_reading_names_its_series_with_sorted_and_fixed_labels() {
        let mut readings = Readings::with_labels(vec![("room".into(), "attic".into()), ("cpu".into(), "x".into())]);
        let family = Family::counter("node_cpu_seconds_total", "seconds");
        readings.sample(3, family, &[("mode", "idle"), ("cpu", "0")], 1.5);
        let reading = readings.iter().next().unwrap();
        let series = series_of_key(&"nas".parse().unwrap(), reading.key).unwrap();
        assert_eq!((reading.metric, reading.value), (3, 1.5));
        assert_eq!(
            (series.name.as_str(), series.kind, series.unit.as_str()),
            ("node_cpu_seconds_total", Kind::Counter, "seconds")
        );
        let labels: Vec<_> = series.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(labels, [("cpu", "0"), ("mode", "idle"), ("room", "attic")]);
    }

    #[test]
    fn a_key_that_breaks_the_limits_names_no_series() {
        let mut readings = Readings::default();
        readings.sample(0, Family::gauge("bad name", ""), &[], 1.0);
        readings.sample(0, Family::gauge("x", ""), &[("a", &"v".repeat(70_000))], 1.0);
        for reading in readings.iter() {
            assert!(series_of_key(&"nas".parse().unwrap(), reading.key).is_none());
        }
    }

    #[test]
    fn names_and_labels_of_one_poll_are_bounded_together() {
        let mut readings = Readings::default();
        for _ in 0..2_000 {
            readings.sample(0, Family::gauge("x", ""), &[("a", &"v".repeat(4_000))], 1.0);
        }
        assert!(readings.overflowed() && readings.len() < 1_100, "{}", readings.len());
    }

    #[test]
    fn readings_filled_elsewhere_are_appended_and_what_failed_is_taken_back() {
        let mut readings = Readings::with_labels(vec![("room".into(), "attic".into())]);
        readings.sample(0, Family::gauge("a", ""), &[], 1.0);
        let mut sibling = readings.sibling();
        sibling.sample(1, Family::gauge("b", ""), &[("x", "1")], 2.0);
        sibling.sample(1, Family::gauge("c", ""), &[], 3.0);
        sibling.missing(2, Failure::new(Reason::Timeout, "slow"));
        readings.append(&sibling);
        readings.truncate(2);
        readings.sample(3, Family::gauge("d", ""), &[], 4.0);
        let names: Vec<_> = readings
            .iter()
            .map(|r| (r.metric, series_of_key(&"nas".parse().unwrap(), r.key).unwrap().name, r.value))
            .collect();
        assert_eq!(names, [(0, "a".to_owned(), 1.0), (1, "b".to_owned(), 2.0), (3, "d".to_owned(), 4.0)]);
        assert_eq!(readings.failures().len(), 1);
    }

    #[test]
    fn a_detail_is_cut_at_a_character() {
        assert_eq!(Failure::new(Reason::Timeout, "ä".repeat(150)).detail, "ä".repeat(100));
    }
}
