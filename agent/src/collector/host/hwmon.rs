//! `hwmon`: temperatures, fans, voltages, currents and power that the machine's sensors measure.
//!
//! Names follow the kernel's files by rule, so that a sensor which nobody thought of has the name that node_exporter
//! gives it. Every element that a sensor has is told.

use std::collections::BTreeMap;

use super::Out;
use super::files::{Files, Trouble, number};

const CLASS: &str = "sys/class/hwmon";
const KINDS: [&str; 13] = [
    "vrm",
    "beep_enable",
    "update_interval",
    "in",
    "cpu",
    "fan",
    "pwm",
    "temp",
    "curr",
    "power",
    "energy",
    "humidity",
    "intrusion",
];
/// Sensors of one chip; a server board has some forty.
const SENSORS_MAX: usize = 1024;

/// A chip's sensors: `temp1` and its elements, `input`, `max`, …
type Sensors = BTreeMap<(&'static str, u32), BTreeMap<String, String>>;

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for name in files.names(CLASS)? {
        let dir = format!("{CLASS}/{name}");
        let human = files.line_if_any(&format!("{dir}/name")).map(|name| clean(&name)).filter(|name| !name.is_empty());
        let Some(chip) = device_name(files, &dir).or_else(|| human.clone()).or_else(|| Some(clean(&name))) else {
            continue;
        };
        if let Some(human) = human {
            out.gauge("node_hwmon_chip_names", "", &[("chip", &chip), ("chip_name", &human)], 1.0);
        }
        let mut sensors = Sensors::new();
        collect(files, &dir, &mut sensors);
        // Drivers of before 2005 have their files there.
        collect(files, &format!("{dir}/device"), &mut sensors);
        for ((kind, index), elements) in &sensors {
            tell(&chip, kind, &format!("{kind}{index}"), elements, out);
        }
    }
    Ok(())
}

/// The device's place does not change with the order in which drivers were loaded: `platform_coretemp_0`.
fn device_name(files: &Files, dir: &str) -> Option<String> {
    let device = files.path(&format!("{dir}/device")).canonicalize().ok()?;
    let mut parts = device.iter().rev().map(|part| clean(&part.to_string_lossy()));
    let (name, kind) = (parts.next()?, parts.next()?);
    match (kind.is_empty(), name.is_empty()) {
        (_, true) => None,
        (true, false) => Some(name),
        (false, false) => Some(format!("{kind}_{name}")),
    }
}

fn collect(files: &mut Files, dir: &str, sensors: &mut Sensors) {
    for file in files.names(dir).unwrap_or_default() {
        let Some((kind, index, element)) = explode(&file) else { continue };
        if sensors.len() >= SENSORS_MAX {
            return;
        }
        if let Ok(text) = files.line(&format!("{dir}/{file}")) {
            sensors.entry((kind, index)).or_default().insert(element.to_owned(), text.to_owned());
        }
    }
}

/// `temp1_input` is the `input` of `temp` 1.
fn explode(file: &str) -> Option<(&'static str, u32, &str)> {
    let end = file.find(|letter: char| letter.is_ascii_digit()).unwrap_or(file.len());
    let (kind, rest) = file.split_at(end);
    let kind = KINDS.into_iter().find(|known| *known == kind)?;
    let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
    let (index, element) = rest.split_at(digits);
    let index = if index.is_empty() { 0 } else { index.parse().ok()? };
    if element.is_empty() {
        return Some((kind, index, ""));
    }
    element.strip_prefix('_').filter(|element| !element.is_empty()).map(|element| (kind, index, element))
}

fn tell(chip: &str, kind: &str, sensor: &str, elements: &BTreeMap<String, String>, out: &mut Out<'_>) {
    let labels = [("chip", chip), ("sensor", sensor)];
    if let Some(label) = elements.get("label") {
        out.gauge("node_hwmon_sensor_label", "", &[labels[0], labels[1], ("label", label)], 1.0);
    }
    let whole = elements.get("");
    match kind {
        "beep_enable" => {
            let on = whole.is_some_and(|text| text == "1");
            out.gauge("node_hwmon_beep_enabled", "", &labels, if on { 1.0 } else { 0.0 });
            return;
        }
        "vrm" | "update_interval" => {
            let Some(value) = whole.and_then(|text| number(text)) else { return };
            if kind == "vrm" {
                out.gauge("node_hwmon_voltage_regulator_version", "", &labels, value);
            } else {
                out.gauge("node_hwmon_update_interval_seconds", "seconds", &labels, value * 0.001);
            }
            return;
        }
        _ => {}
    }
    for (element, text) in elements {
        let Some(value) = number(text) else { continue };
        if element == "label" {
            continue;
        }
        // The value itself has no word of its own, unless another file has the bare name.
        let mut name = format!("node_hwmon_{kind}");
        if !(element.is_empty() || (element == "input" && whole.is_none())) {
            name.push('_');
            name.push_str(&clean(element));
        }
        let (suffix, unit, worth) = unit(kind, element);
        name.push_str(suffix);
        let value = worth(value);
        if kind == "energy" && suffix == "_joule_total" {
            out.counter(&name, unit, &labels, value);
        } else {
            out.gauge(&name, unit, &labels, value);
        }
    }
}

type Worth = fn(f64) -> f64;

/// What stands behind a name, the unit, and how the kernel's number becomes one of that unit.
fn unit(kind: &str, element: &str) -> (&'static str, &'static str, Worth) {
    let as_is: Worth = |value| value;
    let thousandth: Worth = |value| value * 0.001;
    let millionth: Worth = |value| value / 1_000_000.0;
    match (kind, element) {
        (_, "fault" | "alarm") => ("", "", as_is),
        (_, "beep") => ("_enabled", "", as_is),
        ("in" | "cpu", _) => ("_volts", "volts", thousandth),
        ("temp", element) if element != "type" => ("_celsius", "celsius", thousandth),
        ("curr", _) => ("_amps", "amperes", thousandth),
        ("energy", _) => ("_joule_total", "joules", millionth),
        ("power", "accuracy") => ("", "", millionth),
        ("power", "average_interval" | "average_interval_min" | "average_interval_max") => {
            ("_seconds", "seconds", thousandth)
        }
        ("power", _) => ("_watt", "watts", millionth),
        ("humidity", _) => ("", "", millionth),
        ("fan", "input" | "min" | "max" | "target") => ("_rpm", "", as_is),
        _ => ("", "", as_is),
    }
}

/// A text as a part of a metric's name.
fn clean(text: &str) -> String {
    let fits = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == ':' || letter == '_';
    let text: String = text.to_lowercase().chars().map(|letter| if fits(letter) { letter } else { '_' }).collect();
    text.trim_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_says_which_sensor_and_what_of_it() {
        for (file, parts) in [
            ("temp1_input", Some(("temp", 1, "input"))),
            ("power1_average_interval_max", Some(("power", 1, "average_interval_max"))),
            ("pwm2", Some(("pwm", 2, ""))),
            ("update_interval", Some(("update_interval", 0, ""))),
            ("intrusion0_alarm", Some(("intrusion", 0, "alarm"))),
            ("temp1", Some(("temp", 1, ""))),
            ("temp1_", None),
            ("temp1x", None),
            ("temp99999999999_input", None),
            ("uevent", None),
            ("", None),
        ] {
            assert_eq!(explode(file), parts, "{file}");
        }
    }

    #[test]
    fn a_name_keeps_only_what_a_metrics_name_may_have() {
        assert_eq!(clean("0000:00:18.3"), "0000:00:18_3");
        assert_eq!(clean("_Core-Temp "), "core_temp");
    }
}
