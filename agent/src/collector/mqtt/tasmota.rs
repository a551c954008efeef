//! `profile = "tasmota"`: what Tasmota devices say of themselves: `tele/…/SENSOR`, `tele/…/STATE` and `tele/…/LWT`.
//!
//! Names are tasmota-exporter's for plugs; of other sensors a number is `tasmota_`, what Tasmota calls it, and its unit,
//! with the sensor as a label. Between the prefix and the last level may be any number of levels, so that `%prefix%/%topic%/`
//! and `%prefix%/home/%topic%/` both work. A device whose last will says Offline has no values but `tasmota_up` 0.
//! Deliberately absent: commands, `stat/…`, and full topics that do not begin with the prefix.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::inbox::SERIES_MAX;
use super::payload::{self, Form, Said};
use super::profile::{Heard, Profile, Told, snake_case};
use super::topic::Filter;

/// A number, or a list of one a phase or a channel, as Tasmota writes what a meter says.
const ENERGY: [Reading; 11] = [
    Reading::gauge("Power", "tasmota_power_watts", "watts"),
    Reading::gauge("ApparentPower", "tasmota_apparent_power_voltamperes", "volt_amperes"),
    Reading::gauge("ReactivePower", "tasmota_reactive_power_voltamperesreactive", "volt_amperes_reactive"),
    Reading::gauge("Factor", "tasmota_power_factor", ""),
    Reading::gauge("Voltage", "tasmota_voltage_volts", "volts"),
    Reading::gauge("Current", "tasmota_current_amperes", "amperes"),
    Reading::gauge("Frequency", "tasmota_frequency_hertz", "hertz"),
    Reading::gauge("Today", "tasmota_today_kwh_total", "kilowatt_hours"),
    Reading::gauge("Yesterday", "tasmota_yesterday_kwh_total", "kilowatt_hours"),
    Reading::counter("Total", "tasmota_kwh_total", "kilowatt_hours"),
    Reading::counter("ExportActive", "tasmota_export_kwh_total", "kilowatt_hours"),
];
/// What sensors of all makes call alike. Temperatures and pressures are in the units that the message says.
const SENSORS: [Reading; 12] = [
    Reading::gauge("Humidity", "tasmota_humidity_percent", "percent"),
    Reading::gauge("Moisture", "tasmota_moisture_percent", "percent"),
    Reading::gauge("Battery", "tasmota_battery_percent", "percent"),
    Reading::gauge("Illuminance", "tasmota_illuminance_lux", "lux"),
    Reading::gauge("CarbonDioxide", "tasmota_carbon_dioxide_ppm", "parts_per_million"),
    Reading::gauge("eCO2", "tasmota_eco2_ppm", "parts_per_million"),
    Reading::gauge("TVOC", "tasmota_tvoc_ppb", "parts_per_billion"),
    Reading::gauge("PM1", "tasmota_pm1_micrograms_per_cubic_metre", "micrograms_per_cubic_metre"),
    Reading::gauge("PM2.5", "tasmota_pm2_5_micrograms_per_cubic_metre", "micrograms_per_cubic_metre"),
    Reading::gauge("PM10", "tasmota_pm10_micrograms_per_cubic_metre", "micrograms_per_cubic_metre"),
    Reading::gauge("Distance", "tasmota_distance_centimetres", "centimetres"),
    Reading::gauge("Weight", "tasmota_weight_kilograms", "kilograms"),
];
const TEMPERATURES: [(&str, &str); 2] = [("Temperature", "tasmota_temperature"), ("DewPoint", "tasmota_dew_point")];
const PRESSURES: [(&str, &str); 2] = [("Pressure", "tasmota_pressure"), ("SeaPressure", "tasmota_sea_pressure")];
const STATE: [Reading; 6] = [
    Reading::gauge("UptimeSec", "tasmota_uptime_seconds", "seconds"),
    Reading::gauge("Heap", "tasmota_heap_kilobytes", "kilobytes"),
    Reading::gauge("LoadAvg", "tasmota_load_average", ""),
    Reading::gauge("Vcc", "tasmota_vcc_volts", "volts"),
    Reading::gauge("Dimmer", "tasmota_dimmer_percent", "percent"),
    Reading::counter("MqttCount", "tasmota_mqtt_connections_total", ""),
];
const WIFI: [Reading; 4] = [
    Reading::gauge("RSSI", "tasmota_wifi_rssi_percent", "percent"),
    Reading::gauge("Signal", "tasmota_wifi_signal_dbm", "decibel_milliwatts"),
    Reading::gauge("Channel", "tasmota_wifi_channel", ""),
    Reading::counter("LinkCount", "tasmota_wifi_links_total", ""),
];
/// What is no measurement.
const NO_READINGS: [&str; 5] = ["Id", "Address", "Time", "TempUnit", "PressureUnit"];

/// What Tasmota calls a number, and what we do.
struct Reading {
    key: &'static str,
    name: &'static str,
    unit: &'static str,
    is_counter: bool,
}

impl Reading {
    const fn gauge(key: &'static str, name: &'static str, unit: &'static str) -> Self {
        Self { key, name, unit, is_counter: false }
    }

    const fn counter(key: &'static str, name: &'static str, unit: &'static str) -> Self {
        Self { key, name, unit, is_counter: true }
    }
}

/// The devices below one prefix.
pub(super) struct Tasmota {
    /// `tele`, without the slash.
    base: String,
    filter: Filter,
    /// By name. No more than there is room for what they tell.
    offline: BTreeSet<String>,
}

impl Tasmota {
    /// The devices that tell below this prefix.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        Ok(Self { base: base.to_owned(), filter: Filter::parse(&format!("{base}/#"))?, offline: BTreeSet::new() })
    }
}

impl Profile for Tasmota {
    fn filters(&self) -> Vec<Filter> {
        vec![self.filter.clone()]
    }

    fn form(&self, topic: &str) -> Option<Form> {
        let (_, what) = topic.rsplit_once('/')?;
        matches!(what, "LWT" | "SENSOR" | "STATE").then_some(Form::Value)
    }

    fn hear(&mut self, topic: &str, said: &Said) -> Heard {
        let inner = topic.strip_prefix(&self.base).and_then(|rest| rest.strip_prefix('/'));
        let Some((device, what)) = inner.and_then(|inner| inner.rsplit_once('/')) else { return Heard::default() };
        let mut told = Vec::new();
        match (what, said) {
            ("LWT", Said::Number(up)) => {
                if *up != 0.0 {
                    self.offline.remove(device);
                } else if self.offline.len() < SERIES_MAX {
                    self.offline.insert(device.to_owned());
                }
                told.push(Told::gauge("tasmota_up", "", device, *up).lasting());
            }
            ("LWT", Said::Nothing) => {
                self.offline.remove(device);
                return Heard { forgotten: vec![topic.to_owned()], ..Heard::default() };
            }
            ("SENSOR", Said::Json(Value::Object(message))) => sensors(device, message, &mut told),
            ("STATE", Said::Json(Value::Object(message))) => state(device, message, &mut told),
            _ => {}
        }
        Heard { told, ..Heard::default() }
    }

    fn is_offline(&self, owner: &str) -> bool {
        self.offline.contains(owner)
    }

    fn reset(&mut self) {
        self.offline.clear();
    }
}

fn sensors(device: &str, message: &Map<String, Value>, told: &mut Vec<Told>) {
    let unit_of = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
    let temperature = if unit_of("TempUnit") == "F" { "fahrenheit" } else { "celsius" };
    let pressure = match unit_of("PressureUnit") {
        "mmHg" => "millimetres_of_mercury",
        "inHg" => "inches_of_mercury",
        _ => "hectopascals",
    };
    for (sensor, value) in message {
        match value {
            Value::Object(readings) if sensor == "ENERGY" => {
                for (key, value) in readings {
                    if let Some(reading) = ENERGY.iter().find(|reading| reading.key == key) {
                        several(reading, device, value, told);
                    }
                }
            }
            Value::Object(readings) => {
                for (key, value) in readings {
                    let Some(number) = value.as_f64().filter(|_| !NO_READINGS.contains(&key.as_str())) else {
                        continue;
                    };
                    told.push(sensor_reading(key, temperature, pressure, device, number).with("sensor", sensor));
                }
            }
            // `Switch1`, or what a rule put here.
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                let name = snake_case(sensor);
                let is_reading = !NO_READINGS.contains(&sensor.as_str()) && !name.is_empty();
                let number = payload::number(value).filter(|_| is_reading);
                told.extend(number.map(|number| Told::gauge(format!("tasmota_{name}"), "", device, number)));
            }
        }
    }
}

fn sensor_reading(key: &str, temperature: &'static str, pressure: &'static str, device: &str, number: f64) -> Told {
    if let Some(reading) = SENSORS.iter().find(|reading| reading.key == key) {
        return Told::gauge(reading.name, reading.unit, device, number);
    }
    for (table, unit) in [(TEMPERATURES, temperature), (PRESSURES, pressure)] {
        if let Some((_, name)) = table.iter().find(|(known, _)| *known == key) {
            return Told::gauge(format!("{name}_{unit}"), unit, device, number);
        }
    }
    Told::gauge(format!("tasmota_{}", snake_case(key)), "", device, number)
}

fn state(device: &str, message: &Map<String, Value>, told: &mut Vec<Told>) {
    for (key, value) in message {
        if let Some(relay) = key.strip_prefix("POWER") {
            if let Some(on) = payload::number(value) {
                let gauge = Told::gauge("tasmota_on", "", device, on);
                told.push(if relay.is_empty() { gauge } else { gauge.with("relay", relay) });
            }
        } else if let Some(reading) = STATE.iter().find(|reading| reading.key == key) {
            several(reading, device, value, told);
        } else if let ("Wifi", Value::Object(wifi)) = (key.as_str(), value) {
            for reading in &WIFI {
                if let Some(value) = wifi.get(reading.key) {
                    several(reading, device, value, told);
                }
            }
        }
    }
}

fn several(reading: &Reading, device: &str, value: &Value, told: &mut Vec<Told>) {
    let told_of = |number: f64| {
        let gauge = Told::gauge(reading.name, reading.unit, device, number);
        if reading.is_counter { gauge.counting() } else { gauge }
    };
    if let Some(values) = value.as_array() {
        let numbers = values.iter().enumerate().filter_map(|(at, value)| Some((at, value.as_f64()?)));
        told.extend(numbers.map(|(at, number)| told_of(number).with("phase", (at + 1).to_string())));
    }
    told.extend(value.as_f64().map(told_of));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn heard(topic: &str, said: &Said) -> Vec<(String, String, f64)> {
        let heard = Tasmota::new("tele").unwrap().hear(topic, said);
        let labels = |told: &Told| {
            told.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
        };
        let mut told: Vec<_> = heard.told.iter().map(|told| (told.name.clone(), labels(told), told.value)).collect();
        told.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        told
    }

    fn one(name: &str, labels: &str, value: f64) -> (String, String, f64) {
        (format!("tasmota_{name}"), labels.to_owned(), value)
    }

    #[test]
    fn a_plug_is_told_by_the_names_of_its_exporter() {
        let message = json!({"Time": "2026-11-22T15:00:00", "ENERGY": {"TotalStartTime": "2024-01-01T00:00:00", "Total": 12.5,
            "Yesterday": 0.5, "Today": 0.25, "Period": 1, "Power": 42, "ApparentPower": 50, "ReactivePower": 27, "Factor": 0.84,
            "Voltage": 230, "Current": 0.2}});
        let told = heard("tele/plug/SENSOR", &Said::Json(message));
        assert_eq!(
            told,
            [
                one("apparent_power_voltamperes", "device=plug", 50.0),
                one("current_amperes", "device=plug", 0.2),
                one("kwh_total", "device=plug", 12.5),
                one("power_factor", "device=plug", 0.84),
                one("power_watts", "device=plug", 42.0),
                one("reactive_power_voltamperesreactive", "device=plug", 27.0),
                one("today_kwh_total", "device=plug", 0.25),
                one("voltage_volts", "device=plug", 230.0),
                one("yesterday_kwh_total", "device=plug", 0.5),
            ]
        );
        let phases = heard("tele/em/SENSOR", &Said::Json(json!({"ENERGY": {"Voltage": [230, 231, null]}})));
        assert_eq!(
            phases,
            [one("voltage_volts", "device=em,phase=1", 230.0), one("voltage_volts", "device=em,phase=2", 231.0)]
        );
    }

    #[test]
    fn sensors_have_their_name_and_the_units_of_the_message() {
        let message = json!({"Time": "x", "Switch1": "ON", "BME280": {"Temperature": 21.5, "Humidity": 40.1, "DewPoint": 7.5,
            "Pressure": 1013.2}, "DS18B20": {"Id": "01", "Temperature": 20}, "SGP30": {"eCO2": 400}, "ANALOG": {"A0": 512},
            "PressureUnit": "hPa", "TempUnit": "C"});
        let told = heard("tele/house/attic/SENSOR", &Said::Json(message));
        let labels = |sensor: &str| format!("device=house/attic,sensor={sensor}");
        assert_eq!(
            told,
            [
                one("a0", &labels("ANALOG"), 512.0),
                one("dew_point_celsius", &labels("BME280"), 7.5),
                one("eco2_ppm", &labels("SGP30"), 400.0),
                one("humidity_percent", &labels("BME280"), 40.1),
                one("pressure_hectopascals", &labels("BME280"), 1013.2),
                one("switch1", "device=house/attic", 1.0),
                one("temperature_celsius", &labels("BME280"), 21.5),
                one("temperature_celsius", &labels("DS18B20"), 20.0),
            ]
        );
        let american = json!({"DS18B20": {"Temperature": 70}, "TempUnit": "F"});
        assert_eq!(heard("tele/a/SENSOR", &Said::Json(american))[0].0, "tasmota_temperature_fahrenheit");
    }

    #[test]
    fn state_is_told_and_the_last_will_takes_values_away() {
        let message = json!({"Time": "x", "Uptime": "0T01:00:00", "UptimeSec": 3600, "Heap": 25, "LoadAvg": 19, "MqttCount": 2,
            "POWER1": "ON", "POWER2": "OFF", "Wifi": {"AP": 1, "SSId": "home", "RSSI": 80, "Signal": -60, "LinkCount": 1}});
        let told = heard("tele/strip/STATE", &Said::Json(message));
        assert!(
            told.contains(&one("on", "device=strip,relay=1", 1.0))
                && told.contains(&one("on", "device=strip,relay=2", 0.0))
        );
        assert!(told.contains(&one("uptime_seconds", "device=strip", 3600.0)));
        assert!(told.contains(&one("wifi_signal_dbm", "device=strip", -60.0)));
        let mut profile = Tasmota::new("tele").unwrap();
        let offline = profile.hear("tele/strip/LWT", &Said::Number(0.0));
        assert_eq!((offline.told[0].name.as_str(), offline.told[0].value), ("tasmota_up", 0.0));
        assert!(profile.is_offline("strip") && !profile.is_offline("plug"));
        profile.hear("tele/strip/LWT", &Said::Number(1.0));
        assert!(!profile.is_offline("strip"));
        for over in [|profile: &mut Tasmota| drop(profile.hear("tele/strip/LWT", &Said::Nothing)), Tasmota::reset] {
            profile.hear("tele/strip/LWT", &Said::Number(0.0));
            over(&mut profile);
            assert!(!profile.is_offline("strip"));
        }
        for (topic, said) in [
            ("tele/a/INFO1", Said::Json(json!({"a": 1}))),
            ("tele/SENSOR", Said::Json(json!({"a": 1}))),
            ("stat/a/SENSOR", Said::Json(json!({"a": 1}))),
            ("tele/a/SENSOR", Said::Json(json!([1]))),
            ("tele/a/LWT", Said::Json(json!({}))),
            ("tele/a/STATE", Said::Other(String::new())),
        ] {
            assert_eq!(heard(topic, &said), [], "{topic}");
        }
    }
}
