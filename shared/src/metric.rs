//! A series in Prometheus' data model: a name, labels, and what kind of number it is.

use serde::{Deserialize, Serialize};

use crate::id::DeviceName;
use crate::limits;

/// What a series' values mean, in OpenMetrics' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The source did not say.
    #[default]
    Unknown,
    /// Goes up and down.
    Gauge,
    /// Only goes up, but for resets.
    Counter,
    /// A part of a histogram: `_bucket`, `_sum`, `_count`.
    Histogram,
    /// A part of a summary: a quantile, `_sum`, `_count`.
    Summary,
    /// Always 1; the labels are the information.
    Info,
    /// 1 for the state that holds, 0 for the others.
    StateSet,
}

impl Kind {
    /// The word that OpenMetrics uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }
}

/// One series: who it is of, what it is called, what its numbers mean.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Series {
    /// The device it was polled from.
    pub device: DeviceName,
    /// The metric name: `[a-zA-Z_:][a-zA-Z0-9_:]*`.
    pub name: String,
    /// Counter, gauge, …
    pub kind: Kind,
    /// The base unit, empty where there is none: `seconds`, `bytes`, `celsius`, …
    pub unit: String,
    /// Label names and values, sorted by name, no name twice.
    pub labels: Vec<(String, String)>,
}

/// Why a series can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSeries {
    /// The metric name breaks Prometheus' grammar or the length limit.
    #[error("metric name `{0}` is not [a-zA-Z_:][a-zA-Z0-9_:]*, at most {max} bytes", max = limits::NAME_BYTES_MAX)]
    Name(String),
    /// A label name breaks the grammar or the length limit.
    #[error("label name `{0}` is not [a-zA-Z_][a-zA-Z0-9_]*, at most {max} bytes", max = limits::NAME_BYTES_MAX)]
    LabelName(String),
    /// The same label stands twice.
    #[error("label `{0}` stands twice")]
    LabelTwice(String),
    /// Name and labels together are too long, or too many.
    #[error("name and labels exceed {bytes} bytes or {labels} labels", bytes = limits::SERIES_BYTES_MAX, labels = limits::LABELS_MAX)]
    TooLarge,
}

/// Whether a text is a metric name of Prometheus' grammar.
#[must_use]
pub fn is_metric_name(text: &str) -> bool {
    is_name(text, b"_:")
}

/// Whether a text is a label name of Prometheus' grammar.
#[must_use]
pub fn is_label_name(text: &str) -> bool {
    is_name(text, b"_")
}

fn is_name(text: &str, extra: &[u8]) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || extra.contains(&b);
    text.len() <= limits::NAME_BYTES_MAX
        && text.bytes().next().is_some_and(letter)
        && text.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

impl Series {
    /// Checks grammar, order and size. Every series that comes from a device or a socket passes here once.
    ///
    /// # Errors
    /// Names the first thing that breaks a rule.
    pub fn check(&self) -> Result<(), InvalidSeries> {
        if !is_metric_name(&self.name) {
            return Err(InvalidSeries::Name(self.name.chars().take(80).collect()));
        }
        let mut bytes = self.name.len() + self.unit.len();
        for (index, (name, value)) in self.labels.iter().enumerate() {
            if !is_label_name(name) {
                return Err(InvalidSeries::LabelName(name.chars().take(80).collect()));
            }
            if index > 0 && self.labels[index - 1].0 >= *name {
                return Err(InvalidSeries::LabelTwice(name.clone()));
            }
            bytes += name.len() + value.len();
        }
        if bytes > limits::SERIES_BYTES_MAX || self.labels.len() > limits::LABELS_MAX {
            return Err(InvalidSeries::TooLarge);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, labels: &[(&str, &str)]) -> Series {
        Series {
            device: "nas".parse().unwrap(),
            name: name.into(),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: labels.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        }
    }

    #[test]
    fn names_follow_prometheus_grammar() {
        assert_eq!(series("node_load1", &[("cpu", "0")]).check(), Ok(()));
        assert!(matches!(series("1x", &[]).check(), Err(InvalidSeries::Name(_))));
        assert!(matches!(series("x", &[("a-b", "")]).check(), Err(InvalidSeries::LabelName(_))));
        assert!(matches!(series("x", &[("a", "1"), ("a", "2")]).check(), Err(InvalidSeries::LabelTwice(_))));
        assert_eq!(series("x", &[("a", &"v".repeat(9000))]).check(), Err(InvalidSeries::TooLarge));
    }
}
