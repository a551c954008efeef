//! The configuration document: which devices a satellite polls, which metrics, when.
//!
//! It is data only: no command, no script, no path of a file. What every device has stands here; what one kind of
//! collector adds stays in `options` and is read by that collector, so that a new one changes nothing here.
//! A device that breaks a rule is reported and left out; the others are taken.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::id::DeviceName;
use crate::limits;
use crate::metric::is_label_name;

/// A document, as far as it could be read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// The devices that keep the rules.
    pub devices: Vec<Device>,
    /// What does not, and why.
    pub problems: Vec<Problem>,
}

/// One item that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: `device.router.metric.power.every`.
    pub path: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its name, the `device` of every record.
    pub name: DeviceName,
    /// Which collector polls it: `host`, `http`, `ping`, …
    pub collector: String,
    /// When its metrics are due that do not say otherwise.
    pub schedule: Schedule,
    /// How long one poll may take.
    pub timeout: Duration,
    /// Whether it rests: its slots are explained, not polled.
    pub paused: bool,
    /// Labels that every record of it carries.
    pub labels: BTreeMap<String, String>,
    /// Its metrics, where the collector takes a list.
    pub metrics: Vec<Metric>,
    /// What the collector alone understands.
    pub options: Map<String, Value>,
}

/// One metric of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Its name: what it means is the collector's to say.
    pub name: String,
    /// When it is due.
    pub schedule: Schedule,
    /// Whether it rests.
    pub paused: bool,
    /// What the collector alone understands.
    pub options: Map<String, Value>,
}

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Every so often.
    Every(Duration),
    /// By a crontab(5) expression in the satellite's time zone.
    Cron(String),
}

/// How often a device is polled that does not say.
const EVERY_DEFAULT: Duration = Duration::from_secs(60);
/// How long a poll may take where the device does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

impl Document {
    /// Reads TOML or JSON: what begins with `{` is JSON.
    ///
    /// # Errors
    /// Says where the text stops being either, or what is wrong with the document as a whole.
    pub fn parse_text(text: &str) -> Result<(Value, Self), Problem> {
        let whole = |reason: String| Problem { path: "document".into(), reason };
        if text.len() > limits::CONFIG_BYTES_MAX {
            return Err(whole(format!("{} bytes, more than {}", text.len(), limits::CONFIG_BYTES_MAX)));
        }
        let value: Value = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| whole(format!("not JSON: {error}")))?
        } else {
            toml::from_str(text).map_err(|error| whole(format!("not TOML: {error}")))?
        };
        let document = Self::parse(&value)?;
        Ok((value, document))
    }

    /// Reads a document that came as JSON.
    ///
    /// # Errors
    /// Says what is wrong with the document as a whole; problems of single devices stand in the result.
    pub fn parse(value: &Value) -> Result<Self, Problem> {
        let whole = |reason: String| Problem { path: "document".into(), reason };
        let Value::Object(fields) = value else { return Err(whole("not a table".into())) };
        if let Some(key) = fields.keys().find(|key| *key != "device") {
            return Err(whole(format!("unknown key `{key}`: the document holds [[device]] tables only")));
        }
        let devices = match fields.get("device") {
            None => &[][..],
            Some(Value::Array(devices)) => devices.as_slice(),
            Some(_) => return Err(whole("`device` is not a list: write [[device]]".into())),
        };
        if devices.len() > limits::DEVICES_MAX {
            return Err(whole(format!("{} devices, more than {}", devices.len(), limits::DEVICES_MAX)));
        }
        let mut document = Self::default();
        for (index, device) in devices.iter().enumerate() {
            match Device::parse(device, index) {
                Ok(device) if document.devices.iter().any(|other| other.name == device.name) => {
                    document.problems.push(Problem {
                        path: format!("device.{}", device.name),
                        reason: "another device has this name: names are unique".into(),
                    });
                }
                Ok(device) => document.devices.push(device),
                Err(problem) => document.problems.push(problem),
            }
        }
        Ok(document)
    }
}

#[derive(Deserialize)]
struct DeviceFields {
    name: DeviceName,
    collector: String,
    every: Option<String>,
    cron: Option<String>,
    timeout: Option<String>,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    metric: Vec<Value>,
    #[serde(flatten)]
    options: Map<String, Value>,
}

#[derive(Deserialize)]
struct MetricFields {
    name: String,
    every: Option<String>,
    cron: Option<String>,
    #[serde(default)]
    paused: bool,
    #[serde(flatten)]
    options: Map<String, Value>,
}

impl Device {
    fn parse(value: &Value, index: usize) -> Result<Self, Problem> {
        let name =
            value.get("name").and_then(Value::as_str).map_or(format!("[{index}]"), |n| n.chars().take(63).collect());
        let path = format!("device.{name}");
        let problem = |at: &str, reason: String| Problem { path: format!("{path}{at}"), reason };
        let fields: DeviceFields =
            serde_json::from_value(value.clone()).map_err(|error| problem("", error.to_string()))?;
        let schedule = schedule(fields.every.as_deref(), fields.cron.as_deref())
            .map_err(|reason| problem("", reason))?
            .unwrap_or(Schedule::Every(EVERY_DEFAULT));
        let timeout = match fields.timeout.as_deref() {
            None => TIMEOUT_DEFAULT,
            Some(text) => duration(text, 1, limits::TIMEOUT_MS_MAX).map_err(|reason| problem(".timeout", reason))?,
        };
        for (label, text) in &fields.labels {
            if !is_label_name(label) || label.starts_with("__") || text.len() > limits::NAME_BYTES_MAX {
                return Err(problem(
                    &format!(".labels.{label}"),
                    "not a label name, or a value of over 256 bytes".into(),
                ));
            }
        }
        if fields.metric.len() > limits::METRICS_PER_DEVICE_MAX {
            return Err(problem(".metric", format!("more than {} metrics", limits::METRICS_PER_DEVICE_MAX)));
        }
        let mut metrics: Vec<Metric> = Vec::with_capacity(fields.metric.len());
        for (index, value) in fields.metric.iter().enumerate() {
            let metric = Metric::parse(value, &schedule)
                .map_err(|(at, reason)| problem(&format!(".metric[{index}]{at}"), reason))?;
            metrics.push(metric);
        }
        Ok(Self {
            name: fields.name,
            collector: fields.collector,
            schedule,
            timeout,
            paused: fields.paused,
            labels: fields.labels,
            metrics,
            options: fields.options,
        })
    }
}

impl Metric {
    fn parse(value: &Value, device: &Schedule) -> Result<Self, (String, String)> {
        let fields: MetricFields =
            serde_json::from_value(value.clone()).map_err(|error| (String::new(), error.to_string()))?;
        if fields.name.is_empty() || fields.name.len() > limits::NAME_BYTES_MAX {
            return Err((".name".into(), "a metric's name has 1 to 256 bytes".into()));
        }
        let schedule =
            schedule(fields.every.as_deref(), fields.cron.as_deref()).map_err(|reason| (String::new(), reason))?;
        Ok(Self {
            name: fields.name,
            schedule: schedule.unwrap_or_else(|| device.clone()),
            paused: fields.paused,
            options: fields.options,
        })
    }
}

fn schedule(every: Option<&str>, cron: Option<&str>) -> Result<Option<Schedule>, String> {
    match (every, cron) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("both `every` and `cron`: give one".into()),
        (Some(text), None) => duration(text, limits::EVERY_MS_MIN, limits::EVERY_MS_MAX)
            .map(|every| Some(Schedule::Every(every)))
            .map_err(|reason| format!("every: {reason}")),
        (None, Some(text)) => {
            let fields = text.split_whitespace().count();
            if text.len() > 200 || !(fields == 5 || fields == 6) {
                return Err("cron: five fields (minute hour day month weekday), or six with seconds first".into());
            }
            Ok(Some(Schedule::Cron(text.to_owned())))
        }
    }
}

fn duration(text: &str, min_ms: u64, max_ms: u64) -> Result<Duration, String> {
    let read =
        humantime::parse_duration(text).map_err(|_| format!("`{text}` is not a duration such as \"10s\" or \"5m\""))?;
    if read < Duration::from_millis(min_ms) || read > Duration::from_millis(max_ms) {
        let bounds = [min_ms, max_ms].map(|ms| humantime::format_duration(Duration::from_millis(ms)).to_string());
        return Err(format!("`{text}` is not between {} and {}", bounds[0], bounds[1]));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        match Document::parse_text(text) {
            Ok((_, document)) => document.problems.iter().map(ToString::to_string).collect(),
            Err(problem) => vec![problem.to_string()],
        }
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "[[device]]\nname = \"nas\"\ncollector = \"ping\"\nevery = \"30s\"\naddress = \"nas.lan\"\n";
        let json = r#"{"device":[{"name":"nas","collector":"ping","every":"30s","address":"nas.lan"}]}"#;
        let (a, b) = (Document::parse_text(toml).unwrap(), Document::parse_text(json).unwrap());
        assert_eq!(a, b);
        assert_eq!(a.1.devices[0].schedule, Schedule::Every(Duration::from_secs(30)));
        assert_eq!(a.1.devices[0].options["address"], "nas.lan");
    }

    #[test]
    fn a_metric_without_a_schedule_takes_its_devices() {
        let text = "[[device]]\nname = \"a\"\ncollector = \"http\"\ncron = \"0 8 * * 6#1\"\n[[device.metric]]\nname = \"x\"\n[[device.metric]]\nname = \"y\"\nevery = \"5s\"\n";
        let (_, document) = Document::parse_text(text).unwrap();
        assert_eq!(document.devices[0].metrics[0].schedule, Schedule::Cron("0 8 * * 6#1".into()));
        assert_eq!(document.devices[0].metrics[1].schedule, Schedule::Every(Duration::from_secs(5)));
    }

    #[test]
    fn a_bad_device_is_named_and_the_others_are_taken() {
        let text = "[[device]]\nname = \"a\"\ncollector = \"host\"\nevery = \"1ms\"\n[[device]]\nname = \"b\"\ncollector = \"host\"\n[[device]]\nname = \"b\"\ncollector = \"host\"\n";
        let (_, document) = Document::parse_text(text).unwrap();
        assert_eq!(document.devices.len(), 1);
        let said: Vec<String> = document.problems.iter().map(ToString::to_string).collect();
        assert_eq!(said[0], "device.a: every: `1ms` is not between 1s and 1year 18h");
        assert!(said[1].starts_with("device.b: another device has this name"));
    }

    #[test]
    fn what_is_no_document_is_refused_with_its_place() {
        assert!(problems("[[device]\n")[0].contains("not TOML"));
        assert!(problems("{\"device\": 3}")[0].contains("not a list"));
        assert!(problems("exec = \"rm\"\n")[0].contains("unknown key `exec`"));
        assert!(problems(&format!("# {}", "x".repeat(limits::CONFIG_BYTES_MAX)))[0].contains("more than"));
        assert!(problems("[[device]]\nname = \"../a\"\ncollector = \"host\"\n")[0].contains("is not a name"));
        assert!(
            problems("[[device]]\nname = \"a\"\ncollector = \"host\"\nevery = \"1s\"\ncron = \"* * * * *\"\n")[0]
                .contains("both")
        );
    }
}
