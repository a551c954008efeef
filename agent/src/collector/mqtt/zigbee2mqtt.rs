//! `profile = "zigbee2mqtt"`: the devices of a Zigbee network, as zigbee2mqtt (1.17 and later) tells of them.
//!
//! The list of devices, which zigbee2mqtt retains, says which topics are devices and what each number means; a topic that is
//! in no list is a group or somebody's invention and is left out. Names are those of zigbee2mqtt-exporter (d0ugal's) for
//! what it has, which is link quality, switches and presence; any other number is `zigbee2mqtt_device_` and what zigbee2mqtt
//! calls it. Numbers stay in the units that the list says. A device that zigbee2mqtt calls offline has no values but
//! `zigbee2mqtt_device_up` 0, and none has any while zigbee2mqtt itself is offline. Deliberately absent: what is no number
//! (actions, modes, colours), and payloads one by one (`output = "attribute"`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::DateTime;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::payload::{self, Form, Said};
use super::profile::{Heard, Profile, Told, snake_case, unit};
use super::topic::Filter;

/// The list of devices: a large network's is half of that.
pub(super) const LIST_BYTES_MAX: usize = 2 << 20;
/// Objects in the list: each takes memory while it is read.
const LIST_OBJECTS_MAX: usize = 50_000;
/// Devices of one network.
const DEVICES_MAX: usize = 500;
/// What one device exposes.
const EXPOSES_MAX: usize = 200;
/// How deep features lie in features.
const FEATURES_DEEP_MAX: usize = 4;
/// A name or a word of the list.
const WORD_BYTES_MAX: usize = 256;
/// Numbers that only grow.
const COUNTERS: [&str; 2] = ["energy", "produced_energy"];

/// A device of a Zigbee network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// What people call it, and the topic that it speaks on.
    pub friendly_name: String,
    /// Its address for ever, `0x00158d00018255df`.
    pub ieee_address: String,
    /// `Router`, `EndDevice` or `Coordinator`.
    pub role: String,
    /// Who sells it, as zigbee2mqtt knows; empty where it does not.
    pub vendor: String,
    /// What it is sold as.
    pub model: String,
    /// What it is, in words.
    pub description: String,
    /// `Battery`, `Mains (single phase)`, …
    pub power_source: String,
    /// What it calls its maker.
    pub manufacturer: String,
    /// What it calls itself.
    pub model_id: String,
    /// Of its firmware.
    pub software_build_id: String,
    /// Of its firmware.
    pub date_code: String,
    /// Whether zigbee2mqtt knows what it says.
    pub is_supported: bool,
    /// Whether somebody switched it off in zigbee2mqtt.
    pub is_disabled: bool,
    /// What it can tell.
    pub exposes: Vec<Expose>,
}

/// One thing that a device can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// The key in its messages.
    pub property: String,
    /// What kind of thing it is.
    pub form: ExposeForm,
    /// As zigbee2mqtt writes it, `°C`; empty where it has none.
    pub unit: String,
}

/// The kinds of things that devices tell and that are one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExposeForm {
    /// A number.
    Numeric,
    /// One of two states; these are the words for them, where they are words.
    Binary {
        /// Such as `ON` or `LOCK`.
        on: Option<String>,
        /// Such as `OFF` or `UNLOCK`.
        off: Option<String>,
    },
    /// A word or a text.
    Other,
}

/// Reads the payload of `zigbee2mqtt/bridge/devices`: what a network has, with names, models and what each can tell.
///
/// # Errors
/// Says what is wrong with it.
pub fn devices(payload: &[u8]) -> Result<Vec<Device>, String> {
    let objects = payload.iter().filter(|byte| **byte == b'{').count();
    if payload.len() > LIST_BYTES_MAX || objects > LIST_OBJECTS_MAX {
        return Err(format!("a list of devices of more than {LIST_BYTES_MAX} bytes or {LIST_OBJECTS_MAX} objects"));
    }
    let listed: Vec<ListedDevice> =
        serde_json::from_slice(payload).map_err(|error| format!("no list of devices of zigbee2mqtt: {error}"))?;
    if listed.len() > DEVICES_MAX {
        return Err(format!("a list of more than {DEVICES_MAX} devices"));
    }
    Ok(listed.into_iter().filter_map(ListedDevice::device).collect())
}

#[derive(Deserialize)]
struct ListedDevice {
    #[serde(default)]
    friendly_name: Word,
    #[serde(default)]
    ieee_address: Word,
    #[serde(default, rename = "type")]
    role: Word,
    #[serde(default)]
    power_source: Word,
    #[serde(default)]
    manufacturer: Word,
    #[serde(default)]
    model_id: Word,
    #[serde(default)]
    software_build_id: Word,
    #[serde(default)]
    date_code: Word,
    #[serde(default)]
    supported: Word,
    #[serde(default)]
    disabled: Word,
    #[serde(default)]
    definition: Option<Definition>,
}

#[derive(Default, Deserialize)]
struct Definition {
    #[serde(default)]
    vendor: Word,
    #[serde(default)]
    model: Word,
    #[serde(default)]
    description: Word,
    #[serde(default)]
    exposes: Vec<ListedExpose>,
}

#[derive(Deserialize)]
struct ListedExpose {
    #[serde(default, rename = "type")]
    form: Word,
    #[serde(default)]
    property: Word,
    #[serde(default)]
    unit: Word,
    #[serde(default)]
    value_on: Word,
    #[serde(default)]
    value_off: Word,
    #[serde(default)]
    features: Vec<ListedExpose>,
}

impl ListedDevice {
    fn device(self) -> Option<Device> {
        let definition = self.definition.unwrap_or_default();
        let mut exposes = Vec::new();
        flatten(definition.exposes, 0, &mut exposes);
        let is = |word: &Word| word.0.as_deref() == Some("true");
        Some(Device {
            friendly_name: self.friendly_name.0.filter(|name| !name.is_empty())?,
            ieee_address: self.ieee_address.text(),
            role: self.role.text(),
            vendor: definition.vendor.text(),
            model: definition.model.text(),
            description: definition.description.text(),
            power_source: self.power_source.text(),
            manufacturer: self.manufacturer.text(),
            model_id: self.model_id.text(),
            software_build_id: self.software_build_id.text(),
            date_code: self.date_code.text(),
            is_supported: is(&self.supported),
            is_disabled: is(&self.disabled),
            exposes,
        })
    }
}

/// A light or a switch has features, which are what its messages tell; a composite is an object in them.
fn flatten(listed: Vec<ListedExpose>, depth: usize, exposes: &mut Vec<Expose>) {
    for expose in listed {
        let form = expose.form.text();
        if matches!(form.as_str(), "composite" | "list") || exposes.len() >= EXPOSES_MAX {
            continue;
        }
        if !expose.features.is_empty() {
            if depth < FEATURES_DEEP_MAX {
                flatten(expose.features, depth + 1, exposes);
            }
            continue;
        }
        let form = match form.as_str() {
            "numeric" => ExposeForm::Numeric,
            "binary" => ExposeForm::Binary { on: expose.value_on.0, off: expose.value_off.0 },
            _ => ExposeForm::Other,
        };
        if let Some(property) = expose.property.0 {
            exposes.push(Expose { property, form, unit: expose.unit.text() });
        }
    }
}

/// A word of the list, whatever JSON it is: devices put numbers where others put texts, and null where they know nothing.
#[derive(Default)]
struct Word(Option<String>);

impl Word {
    fn text(self) -> String {
        self.0.unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordVisitor)
    }
}

struct WordVisitor;

impl<'de> Visitor<'de> for WordVisitor {
    type Value = Word;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Word, E> {
        Ok(Word(Some(text[..text.floor_char_boundary(WORD_BYTES_MAX)].to_owned())))
    }

    fn visit_bool<E>(self, state: bool) -> Result<Word, E> {
        Ok(Word(Some(state.to_string())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Word, E> {
        Ok(Word(Some(number.to_string())))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Word, E> {
        Ok(Word(Some(number.to_string())))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Word, E> {
        Ok(Word(Some(number.to_string())))
    }

    fn visit_unit<E>(self) -> Result<Word, E> {
        Ok(Word(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Word, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Word(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Word, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Word(None))
    }
}

/// What is known of one network.
pub(super) struct Zigbee2mqtt {
    /// `zigbee2mqtt`, without the slash.
    base: String,
    filter: Filter,
    /// By name; none before the list has come, and until then nothing is told.
    devices: Option<BTreeMap<String, Device>>,
    /// Of these, those that are not there.
    offline: BTreeSet<String>,
    /// Whether zigbee2mqtt is not there itself.
    is_down: bool,
}

impl Zigbee2mqtt {
    /// The network behind a base topic.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        let filter = Filter::parse(&format!("{base}/#"))?;
        Ok(Self { base: base.to_owned(), filter, devices: None, offline: BTreeSet::new(), is_down: false })
    }

    fn on_list(&mut self, topic: &str, devices: &[Device]) -> Heard {
        let known = self.devices.take().unwrap_or_default();
        self.devices = Some(devices.iter().map(|device| (device.friendly_name.clone(), device.clone())).collect());
        let mut heard = Heard { forgotten: vec![topic.to_owned()], ..Heard::default() };
        let is_gone = |name: &&String| devices.iter().all(|device| device.friendly_name != **name);
        heard.gone = known.into_keys().filter(|name| is_gone(&name)).collect();
        for name in &heard.gone {
            self.offline.remove(name);
        }
        heard.told = devices.iter().map(info).collect();
        heard.is_ready = true;
        heard
    }

    fn on_state(&self, name: &str, message: &serde_json::Map<String, Value>) -> Heard {
        let device = self.devices.as_ref().and_then(|devices| devices.get(name));
        let told = device.map(|device| message.iter().filter_map(|(key, value)| told(device, key, value)).collect());
        Heard { told: told.unwrap_or_default(), ..Heard::default() }
    }
}

impl Profile for Zigbee2mqtt {
    fn filters(&self) -> Vec<Filter> {
        vec![self.filter.clone()]
    }

    fn form(&self, topic: &str) -> Option<Form> {
        match topic.strip_prefix(&self.base)?.strip_prefix('/')? {
            "bridge/devices" => Some(Form::Devices),
            "bridge/state" => Some(Form::Value),
            // Logs, maps and the bridge's own settings, some of them long.
            rest => (!rest.starts_with("bridge/")).then_some(Form::Value),
        }
    }

    fn payload_bytes_max(&self) -> usize {
        LIST_BYTES_MAX
    }

    fn hear(&mut self, topic: &str, said: &Said) -> Heard {
        let Some(rest) = topic.strip_prefix(&self.base).and_then(|rest| rest.strip_prefix('/')) else {
            return Heard::default();
        };
        let forget = || Heard { forgotten: vec![topic.to_owned()], ..Heard::default() };
        if let Said::Devices(devices) = said {
            return self.on_list(topic, devices);
        }
        if *said == Said::Nothing {
            if rest == "bridge/state" {
                self.is_down = false;
            } else if let Some(name) = rest.strip_suffix("/availability") {
                self.offline.remove(name);
            }
            return forget();
        }
        if rest == "bridge/state" {
            self.is_down = state(said).map_or(self.is_down, |up| up == 0.0);
            let told = state(said)
                .map(|up| Told { labels: Vec::new(), ..Told::gauge("zigbee2mqtt_bridge_state", "", "", up).lasting() });
            return Heard { told: told.into_iter().collect(), ..Heard::default() };
        }
        if rest.starts_with("bridge/") {
            return Heard::default();
        }
        let Some(devices) = &self.devices else {
            // Without the list nobody knows whether this is a device, and in which units it speaks.
            return Heard { is_early: true, ..Heard::default() };
        };
        if let Some(name) = rest.strip_suffix("/availability").filter(|name| devices.contains_key(*name)) {
            let Some(up) = state(said) else { return Heard::default() };
            if up == 0.0 {
                self.offline.insert(name.to_owned());
            } else {
                self.offline.remove(name);
            }
            let told = vec![Told::gauge("zigbee2mqtt_device_up", "", name, up).lasting()];
            return Heard { told, ..Heard::default() };
        }
        let Said::Json(Value::Object(message)) = said else { return Heard::default() };
        self.on_state(rest, message)
    }

    fn is_offline(&self, owner: &str) -> bool {
        self.is_down || self.offline.contains(owner)
    }

    fn reset(&mut self) {
        self.devices = None;
        self.offline.clear();
        self.is_down = false;
    }
}

/// `online`, or `{"state": "online"}`.
fn state(said: &Said) -> Option<f64> {
    match said {
        Said::Number(state) => Some(*state),
        Said::Json(document) => document.get("state").and_then(payload::number),
        Said::Nothing | Said::Devices(_) | Said::Word { .. } | Said::Other(_) => None,
    }
}

fn info(device: &Device) -> Told {
    let told = Told::gauge("zigbee2mqtt_device_info", "", &device.friendly_name, 1.0).lasting();
    told.with("type", &device.role)
        .with("power_source", &device.power_source)
        .with("manufacturer", &device.manufacturer)
        .with("model_id", &device.model_id)
        .with("vendor", &device.vendor)
        .with("model", &device.model)
        .with("ieee_address", &device.ieee_address)
        .with("supported", device.is_supported.to_string())
        .with("disabled", device.is_disabled.to_string())
        .with("software_build_id", &device.software_build_id)
        .with("date_code", &device.date_code)
}

fn told(device: &Device, key: &str, value: &Value) -> Option<Told> {
    let name = &device.friendly_name;
    let gauge =
        |series: &str, unit, value| Some(Told::gauge(format!("zigbee2mqtt_device_{series}"), unit, name, value));
    match key {
        "linkquality" => return gauge("link_quality", "", value.as_f64()?),
        "last_seen" => return gauge("last_seen_timestamp", "seconds", timestamp(value)?),
        _ => {}
    }
    let expose = device.exposes.iter().find(|expose| expose.property == key);
    let number = match expose.map(|expose| &expose.form) {
        Some(ExposeForm::Numeric) => value.as_f64(),
        Some(ExposeForm::Binary { on, off }) => match value.as_str() {
            Some(text) if on.as_deref() == Some(text) => Some(1.0),
            Some(text) if off.as_deref() == Some(text) => Some(0.0),
            // `contact` is true where it is closed, whatever the list calls on.
            Some(_) | None => payload::number(value),
        },
        Some(ExposeForm::Other) => None,
        // Of a device that zigbee2mqtt does not know, everything that is a number.
        None if device.exposes.is_empty() => payload::number(value),
        None => None,
    };
    let series = snake_case(key);
    if series.is_empty() {
        return None;
    }
    if series == "state" {
        return gauge("power_state", "", number?);
    }
    let told = gauge(&series, expose.map_or("", |expose| unit(&expose.unit)), number?)?;
    Some(if COUNTERS.contains(&key) { told.counting() } else { told })
}

/// Milliseconds since 1970, or ISO 8601, as `last_seen` is set.
fn timestamp(value: &Value) -> Option<f64> {
    match value {
        Value::Number(ms) => Some(ms.as_f64()? / 1000.0),
        Value::String(text) => {
            let time = DateTime::parse_from_rfc3339(text).ok()?;
            Some(std::time::Duration::from_millis(u64::try_from(time.timestamp_millis()).ok()?).as_secs_f64())
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Shaped as zigbee2mqtt's documentation of `bridge/devices` and of exposes says.
    pub(in crate::collector::mqtt) fn list() -> Value {
        let numeric = |property: &str, unit: &str| json!({"type": "numeric", "name": property, "label": property, "property": property, "unit": unit, "access": 1});
        json!([
            {"ieee_address": "0x00124b00120144ae", "type": "Coordinator", "friendly_name": "Coordinator", "supported": true,
             "definition": null, "disabled": false, "endpoints": {"1": {"bindings": [], "clusters": {"input": []}}}},
            {"ieee_address": "0x00158d0001825500", "type": "EndDevice", "friendly_name": "attic/climate", "supported": true,
             "disabled": false, "power_source": "Battery", "model_id": "lumi.weather", "manufacturer": "LUMI",
             "date_code": "20161129", "software_build_id": 3000,
             "definition": {"model": "WSDCGQ11LM", "vendor": "Aqara", "description": "Climate sensor", "options": [{"type": "numeric"}],
                "exposes": [numeric("temperature", "°C"), numeric("humidity", "%"), numeric("pressure", "hPa"),
                    numeric("battery", "%"), numeric("linkquality", "lqi"),
                    {"type": "enum", "property": "action", "values": ["single"]}]}},
            {"ieee_address": "0x00158d0001825501", "type": "EndDevice", "friendly_name": "front door", "supported": true,
             "definition": {"model": "MCCGQ11LM", "vendor": "Aqara", "description": "Contact sensor",
                "exposes": [{"type": "binary", "property": "contact", "value_on": false, "value_off": true},
                    {"type": "binary", "property": "tamper", "value_on": true, "value_off": false}]}},
            {"ieee_address": "0x00158d0001825502", "type": "Router", "friendly_name": "plug", "supported": true,
             "definition": {"model": "TS011F", "vendor": "Tuya", "description": "Plug",
                "exposes": [{"type": "switch", "features": [{"type": "binary", "property": "state", "value_on": "ON", "value_off": "OFF", "value_toggle": "TOGGLE"}]},
                    numeric("power", "W"), numeric("energy", "kWh"), numeric("voltage", "V"), numeric("current", "A"),
                    {"type": "lock", "features": [{"type": "binary", "property": "child_lock", "value_on": "LOCK", "value_off": "UNLOCK"}]},
                    {"type": "composite", "property": "color", "features": [numeric("x", "")]}]}},
            {"ieee_address": "0x00158d0001825503", "type": "EndDevice", "friendly_name": "odd", "supported": false, "definition": null}
        ])
    }

    fn network() -> Zigbee2mqtt {
        let mut network = Zigbee2mqtt::new("zigbee2mqtt").unwrap();
        let devices = devices(list().to_string().as_bytes()).unwrap();
        network.hear("zigbee2mqtt/bridge/devices", &Said::Devices(devices));
        network
    }

    fn heard(network: &mut Zigbee2mqtt, topic: &str, message: Value) -> Vec<(String, &'static str, String, f64)> {
        let heard = network.hear(&format!("zigbee2mqtt/{topic}"), &Said::Json(message));
        heard.told.into_iter().map(|told| (told.name, told.unit, told.labels[0].1.clone(), told.value)).collect()
    }

    fn one(name: &str, unit: &'static str, device: &str, value: f64) -> (String, &'static str, String, f64) {
        (format!("zigbee2mqtt_device_{name}"), unit, device.to_owned(), value)
    }

    #[test]
    fn the_list_gives_names_models_and_what_each_device_tells() {
        let devices = devices(list().to_string().as_bytes()).unwrap();
        assert_eq!(devices.len(), 5);
        let climate = &devices[1];
        assert_eq!((climate.friendly_name.as_str(), climate.model.as_str()), ("attic/climate", "WSDCGQ11LM"));
        assert_eq!((climate.vendor.as_str(), climate.software_build_id.as_str()), ("Aqara", "3000"));
        assert!(climate.is_supported && !climate.is_disabled && !devices[4].is_supported);
        let exposes: Vec<_> = climate.exposes.iter().map(|e| (e.property.as_str(), e.unit.as_str())).collect();
        assert_eq!(exposes[..2], [("temperature", "°C"), ("humidity", "%")]);
        let plug: Vec<_> = devices[3].exposes.iter().map(|expose| expose.property.as_str()).collect();
        assert_eq!(plug, ["state", "power", "energy", "voltage", "current", "child_lock"]);
    }

    #[test]
    fn a_message_is_what_its_device_exposes_with_the_units_of_the_list() {
        let mut network = network();
        let message = json!({"temperature": 21.5, "humidity": 44, "pressure": null, "battery": 97, "linkquality": 120,
            "action": "single", "voltage": 3005, "last_seen": "2026-11-22T15:00:00+00:00", "update": {"state": "idle"}});
        let mut told = heard(&mut network, "attic/climate", message);
        told.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            told,
            [
                one("battery", "percent", "attic/climate", 97.0),
                one("humidity", "percent", "attic/climate", 44.0),
                one("last_seen_timestamp", "seconds", "attic/climate", 1_795_359_600.0),
                one("link_quality", "", "attic/climate", 120.0),
                one("temperature", "celsius", "attic/climate", 21.5),
            ]
        );
        let message = json!({"state": "ON", "child_lock": "UNLOCK", "power": 12.5, "color": {"x": 0.3}});
        let mut told = heard(&mut network, "plug", message);
        told.sort_by(|a, b| a.0.cmp(&b.0));
        let expect = [
            one("child_lock", "", "plug", 0.0),
            one("power", "watts", "plug", 12.5),
            one("power_state", "", "plug", 1.0),
        ];
        assert_eq!(told, expect);
        assert_eq!(
            heard(&mut network, "front door", json!({"contact": true})),
            [one("contact", "", "front door", 1.0)]
        );
        assert_eq!(heard(&mut network, "odd", json!({"x": 1, "y": "z"})), [one("x", "", "odd", 1.0)]);
        let energy = network.hear("zigbee2mqtt/plug", &Said::Json(json!({"energy": 1.5})));
        assert_eq!(
            (energy.told[0].kind, energy.told[0].unit),
            (satellite_shared::metric::Kind::Counter, "kilowatt_hours")
        );
    }

    #[test]
    fn groups_commands_and_the_bridge_are_no_devices() {
        let mut network = network();
        for topic in ["group", "plug/set", "plug/get", "bridge/logging", "bridge/info", "plug/state"] {
            assert_eq!(heard(&mut network, topic, json!({"state": "ON", "power": 1})), [], "{topic}");
        }
        let mut unlisted = Zigbee2mqtt::new("zigbee2mqtt").unwrap();
        let power = Said::Json(json!({"power": 1}));
        assert!(unlisted.hear("zigbee2mqtt/plug", &power).is_early, "it is kept until the list has come");
        assert_eq!(unlisted.hear("other/plug", &power), Heard::default());
        assert_eq!(unlisted.hear("zigbee2mqttx/plug", &power), Heard::default());
        assert_eq!(unlisted.hear("zigbee2mqtt/bridge/info", &power), Heard::default());
        assert!(unlisted.hear("zigbee2mqtt/bridge/devices", &Said::Devices(vec![])).is_ready);
    }

    #[test]
    fn a_device_that_is_offline_or_gone_has_no_values() {
        let mut network = network();
        for said in [Said::Number(0.0), Said::Json(json!({"state": "offline"}))] {
            let heard = network.hear("zigbee2mqtt/attic/climate/availability", &said);
            assert_eq!((heard.told[0].name.as_str(), heard.told[0].value), ("zigbee2mqtt_device_up", 0.0));
            assert!(network.is_offline("attic/climate") && !network.is_offline("plug"));
            network.hear("zigbee2mqtt/attic/climate/availability", &Said::Nothing);
            assert!(!network.is_offline("attic/climate"));
        }
        let up = network.hear("zigbee2mqtt/plug/availability", &Said::Json(json!({"state": "online"})));
        assert_eq!((up.forgotten.len(), up.told[0].value), (0, 1.0));
        network.hear("zigbee2mqtt/bridge/state", &Said::Json(json!({"state": "offline"})));
        assert!(network.is_offline("plug"), "nobody hears it");
        let bridge = network.hear("zigbee2mqtt/bridge/state", &Said::Json(json!({"state": "online"})));
        assert_eq!((bridge.told[0].name.as_str(), bridge.told[0].labels.len()), ("zigbee2mqtt_bridge_state", 0));
        assert!(!network.is_offline("plug"));
        network.hear("zigbee2mqtt/plug/availability", &Said::Number(0.0));
        let fewer = network.hear("zigbee2mqtt/bridge/devices", &Said::Devices(vec![]));
        assert!(fewer.gone.contains(&"plug".to_owned()) && fewer.told.is_empty());
        assert!(!network.is_offline("plug"));
    }

    #[test]
    fn a_list_that_is_none_or_too_long_is_refused() {
        for (payload, said) in [
            ("{}", "no list of devices"),
            ("[1]", "no list of devices"),
            ("[{\"definition\": {\"exposes\": [3]}}]", "no list of devices"),
            (&format!("[{}{{}}]", "{},".repeat(60_000)), "50000 objects"),
            (&format!("[{}{{}}]", "{},".repeat(600)), "more than 500 devices"),
        ] {
            let told = devices(payload.as_bytes()).unwrap_err();
            assert!(told.contains(said), "{told}");
        }
        let odd = r#"[{"friendly_name": null}, {"friendly_name": "a", "type": ["x"], "model_id": {"a": 1}, "definition": {}}]"#;
        let read = devices(odd.as_bytes()).unwrap();
        assert_eq!((read.len(), read[0].friendly_name.as_str(), read[0].role.as_str()), (1, "a", ""));
        let deep = format!(
            "[{{\"friendly_name\":\"a\",\"definition\":{{\"exposes\":[{}{}]}}}}]",
            "{\"features\":[".repeat(100),
            "]}".repeat(100)
        );
        drop(devices(deep.as_bytes()));
        let long = format!("[{{\"friendly_name\": \"{}\"}}]", "ä".repeat(500));
        assert_eq!(devices(long.as_bytes()).unwrap()[0].friendly_name.len(), 256);
    }
}
