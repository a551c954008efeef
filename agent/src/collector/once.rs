//! One poll of a device beside any schedule: what it gave, how long that took, or exactly why there is nothing.

use std::time::Duration;

use satellite_shared::config::Device;
use satellite_shared::metric::Series;
use serde_json::{Value, json};

use super::probe::Stopwatch;
use super::{Built, Failure, Readings, series_of_key};

/// How much longer than the device's own timeout a poll may take: collectors end themselves.
const MARGIN: Duration = Duration::from_secs(1);

/// What a poll gave.
#[derive(Debug)]
pub struct Once {
    /// How long it took.
    pub seconds: f64,
    /// What was read; `None` where name or labels break the limits of a series. Empty where the poll failed.
    pub samples: Vec<(Option<Series>, f64)>,
    /// Metrics that gave nothing, and why.
    pub missing: Vec<(String, Failure)>,
    /// Why the poll as a whole gave nothing.
    pub failure: Option<String>,
}

/// Polls all metrics of a device now.
pub async fn poll(device: &Device, built: &mut Built) -> Once {
    let due: Vec<usize> = (0..built.metrics.len()).collect();
    let mut readings = Readings::with_labels(device.labels.clone().into_iter().collect());
    let limit = device.timeout + MARGIN;
    let watch = Stopwatch::start();
    let result = tokio::time::timeout(limit, built.collector.poll(&due, &mut readings)).await;
    let seconds = watch.seconds();
    let failure = match result {
        Ok(ended) => readings.judge(ended).err().map(|failure| failure.to_string()),
        Err(_) => Some(format!("timeout: no answer within {}", humantime::format_duration(limit))),
    };
    let samples = readings.iter().filter(|_| failure.is_none());
    let samples = samples.map(|reading| (series_of_key(&device.name, reading.key), reading.value)).collect();
    let name = |at: usize| built.metrics.get(at).map_or(String::new(), |metric| metric.name.clone());
    let missing = readings.failures().iter().map(|(at, failure)| (name(*at), failure.clone())).collect();
    Once { seconds, samples, missing, failure }
}

impl Once {
    /// As one JSON document.
    #[must_use]
    pub fn document(&self, device: &Device) -> Value {
        let samples: Vec<Value> = self.samples.iter().map(|(series, value)| sample(series.as_ref(), *value)).collect();
        let missing: Vec<Value> = self
            .missing
            .iter()
            .map(|(metric, failure)| json!({ "metric": metric, "reason": failure.reason, "detail": failure.detail }))
            .collect();
        json!({
            "device": device.name, "collector": device.collector,
            "took_ms": (self.seconds * 1e3).round() as u64,
            "failure": self.failure, "samples": samples, "missing": missing,
        })
    }
}

fn sample(series: Option<&Series>, value: f64) -> Value {
    let Some(series) = series else {
        return json!({ "error": "name or labels break Prometheus' grammar or limits" });
    };
    let labels: serde_json::Map<String, Value> =
        series.labels.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    json!({ "name": series.name, "labels": labels, "kind": series.kind, "unit": series.unit, "value": number(value) })
}

/// JSON has no infinities: they go as text.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number)
}
