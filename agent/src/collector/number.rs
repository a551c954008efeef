//! A number that the configuration gives a name to: what it is called, what it means, and by what it is multiplied.
//!
//! What collectors have in common that read whatever a device calls by a path, a register or a topic.

use std::collections::BTreeMap;

use satellite_shared::config::{Metric, Problem};
use satellite_shared::limits;
use satellite_shared::metric::{Kind, is_label_name, is_metric_name};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Family, Readings, options};

/// The metric that tells how the request went, where others are listed.
pub(crate) const PROBE: &str = "probe";
/// The keys that are read here; the others are the collector's own.
const KEYS: [&str; 4] = ["kind", "unit", "labels", "scale"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    kind: NumberKind,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default = "unscaled")]
    scale: f64,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NumberKind {
    #[default]
    Gauge,
    Counter,
}

fn unscaled() -> f64 {
    1.0
}

/// Such a number.
pub(crate) struct Number {
    /// The metric's name.
    pub(crate) name: String,
    kind: Kind,
    unit: String,
    labels: Vec<(String, String)>,
    scale: f64,
}

/// A number, the metric's keys that are the collector's own, and where they stand.
pub(crate) type Parsed = (Number, Map<String, Value>, String);

impl Number {
    /// Reads a metric of a device at `path`.
    pub(crate) fn parse(metric: &Metric, path: &str) -> Result<Parsed, Problem> {
        let shown: String = metric.name.chars().take(80).collect();
        let at = format!("{path}.metric.{shown}");
        let within = |key: &str, reason: &str| options::problem(&format!("{at}.{key}"), reason);
        if !is_metric_name(&metric.name) {
            return Err(within("name", "a metric's name is letters, digits, `_` and `:`, and begins with no digit"));
        }
        if metric.name == PROBE {
            return Err(within("name", "`probe` is the metric that tells how the request went: take another name"));
        }
        let (ours, own): (Map<String, Value>, Map<String, Value>) =
            metric.options.clone().into_iter().partition(|(key, _)| KEYS.contains(&key.as_str()));
        let Options { kind, unit, labels, scale } = options::read(&ours, &at)?;
        if !(unit.is_empty() || unit.len() <= 64 && is_metric_name(&unit)) {
            return Err(within("unit", "a unit is a word such as \"watts\" or \"celsius\""));
        }
        if !scale.is_finite() {
            return Err(within("scale", "a scale is a finite number"));
        }
        for (name, value) in &labels {
            let key = format!("labels.{}", name.chars().take(80).collect::<String>());
            if !is_label_name(name) || name.starts_with("__") || value.len() > limits::NAME_BYTES_MAX {
                return Err(within(&key, "not a label name, or a value of over 256 bytes"));
            }
        }
        let kind = match kind {
            NumberKind::Gauge => Kind::Gauge,
            NumberKind::Counter => Kind::Counter,
        };
        let number = Self { name: metric.name.clone(), kind, unit, labels: labels.into_iter().collect(), scale };
        Ok((number, own, at))
    }

    /// Whether the configuration gives it this label.
    pub(crate) fn has_label(&self, name: &str) -> bool {
        self.labels.iter().any(|(own, _)| own == name)
    }

    /// Adds what was read, with a label of the collector's own where it has one.
    pub(crate) fn add(&self, metric: usize, label: Option<(&str, &str)>, value: f64, readings: &mut Readings) {
        self.add_with(metric, label.as_slice(), value, readings);
    }

    /// The same with as many labels as the collector has.
    pub(crate) fn add_with(&self, metric: usize, more: &[(&str, &str)], value: f64, readings: &mut Readings) {
        let labels = self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let labels: Vec<(&str, &str)> = labels.chain(more.iter().copied()).collect();
        let family = Family { name: &self.name, kind: self.kind, unit: &self.unit };
        readings.sample(metric, family, &labels, value * self.scale);
    }
}
