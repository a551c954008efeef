//! `profile = "homeassistant"`: whatever announces itself as Home Assistant's MQTT discovery asks: ESPHome, Shelly, Tasmota, …
//!
//! A `config` message names a state topic, where in it the value is, its unit and its class; what it names is then
//! subscribed to. Sensors, binary sensors, switches and numbers are read. Names and labels follow Home Assistant's own
//! exporter, `homeassistant_sensor_temperature_celsius`, which tells degrees Fahrenheit in Celsius too. Of templates only a
//! path is understood, such as `{{ value_json.a.b }}`, perhaps with `float`, `int` or `round` behind it, which change
//! nothing here; an entity with any other template is left out. What says that it is offline has no value until it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use satellite_shared::metric::Kind;
use serde_json::{Map, Value};

use super::payload::{self, Form, Said};
use super::profile::{Heard, Life, Profile, Told, snake_case, unit};
use super::topic::{Filter, is_topic};

/// Entities of one broker.
const ENTITIES_MAX: usize = 1_000;
/// Topics that they name.
const TOPICS_MAX: usize = 1_000;
/// Topics that one entity's availability is told by, and what is held of all of them.
const AVAILABILITIES_MAX: usize = 4;
const KNOWN_MAX: usize = 2 * ENTITIES_MAX * AVAILABILITIES_MAX;
const TEMPLATE_BYTES_MAX: usize = 256;
const LABEL_BYTES_MAX: usize = 128;
/// The components that are read.
const COMPONENTS: [&str; 4] = ["sensor", "binary_sensor", "switch", "number"];

/// Something that has one state.
#[derive(Debug, Clone, PartialEq)]
struct Entity {
    /// `sensor`, …
    domain: &'static str,
    /// `sensor.attic_temperature`.
    id: String,
    device: String,
    friendly_name: String,
    state: Place,
    /// The series' name and unit.
    name: String,
    unit: &'static str,
    kind: Kind,
    is_fahrenheit: bool,
    /// The words for the two states.
    on: String,
    off: String,
    expire_after: Option<Duration>,
    availability: Vec<Availability>,
    mode: Mode,
}

/// When an entity with several availabilities is there.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    /// All of them say so.
    All,
    /// One of them does.
    Any,
    /// The one that spoke last does.
    Latest,
}

/// Where a value is said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    topic: String,
    /// Into the JSON of the message; none where the message is the value.
    path: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Availability {
    place: Place,
    online: String,
    offline: String,
}

/// What announced itself so far.
pub(super) struct HomeAssistant {
    /// `homeassistant`, without the slash.
    base: String,
    filters: Vec<Filter>,
    /// By the topic of the announcement and, where it announces several, the name of each: `…/config#name`.
    entities: BTreeMap<String, Entity>,
    /// What is subscribed to beside the announcements.
    topics: BTreeSet<String>,
    /// What was said last of each availability: whether it is there, and when, counted.
    known: BTreeMap<Availability, (bool, u64)>,
    said: u64,
}

impl HomeAssistant {
    /// What announces itself below this prefix.
    pub(super) fn new(base: &str) -> Result<Self, String> {
        let filters = ["+/+/config", "+/+/+/config"].map(|rest| Filter::parse(&format!("{base}/{rest}")));
        let filters = filters.into_iter().collect::<Result<_, _>>()?;
        Ok(Self {
            base: base.to_owned(),
            filters,
            entities: BTreeMap::new(),
            topics: BTreeSet::new(),
            known: BTreeMap::new(),
            said: 0,
        })
    }

    fn on_config(&mut self, topic: &str, rest: &str, said: &Said) -> Heard {
        let mut before = self.entities.split_off(&format!("{topic}#"));
        // No topic has a `#`, behind which comes `$`.
        self.entities.append(&mut before.split_off(&format!("{topic}$")));
        let announced = if let Said::Json(Value::Object(config)) = said { entities(rest, config) } else { Vec::new() };
        let mut heard = Heard::default();
        let mut wanted = BTreeSet::new();
        for (name, entity) in announced {
            let owner = format!("{topic}#{name}");
            let of_availability = entity.availability.iter().map(|availability| availability.place.topic.clone());
            let topics: Vec<String> = of_availability.chain([entity.state.topic.clone()]).collect();
            let is_new = |topic: &&String| !self.topics.contains(*topic) && !wanted.contains(*topic);
            let more = topics.iter().filter(is_new).count();
            let is_known = self.topics.len() + wanted.len();
            if self.entities.len() >= ENTITIES_MAX || more > 0 && is_known + more > TOPICS_MAX {
                heard.left_out += 1;
                continue;
            }
            // What the broker retains it says again to who subscribes again.
            let was = before.get(&owner);
            let has_changed = was.is_some_and(|was| *was != entity);
            if was == Some(&entity) {
                before.remove(&owner);
            }
            wanted.extend(topics.into_iter().filter(|topic| has_changed || !self.topics.contains(topic)));
            self.entities.insert(owner, entity);
        }
        self.topics.extend(wanted.iter().cloned());
        heard.wanted = wanted.into_iter().collect();
        heard.gone = before.into_keys().collect();
        heard
    }

    fn on_said(&mut self, topic: &str, said: &Said) -> Heard {
        if *said == Said::Nothing {
            self.known.retain(|availability, _| availability.place.topic != topic);
            return Heard { forgotten: vec![topic.to_owned()], ..Heard::default() };
        }
        self.said += 1;
        let changed = self.learn(topic, said);
        let mut told = Vec::new();
        for (owner, entity) in &self.entities {
            if entity.availability.iter().any(|availability| changed.contains(availability)) {
                let up = f64::from(u8::from(self.is_there(entity)));
                told.push(entity.told(owner, "homeassistant_entity_available", "", up).lasting());
            }
            if entity.state.topic == topic {
                told.extend(entity.measured(owner, said));
            }
        }
        Heard { told, ..Heard::default() }
    }

    /// Notes what a message says of availability; gives those of which it says something.
    fn learn(&mut self, topic: &str, said: &Said) -> BTreeSet<Availability> {
        let all = self.entities.values().flat_map(|entity| &entity.availability);
        let of_topic: BTreeSet<&Availability> = all.filter(|availability| availability.place.topic == topic).collect();
        let mut changed = BTreeMap::new();
        for availability in of_topic {
            let found = availability.place.find(said);
            if let Some(up) = found.and_then(|found| found.is(&availability.online, &availability.offline)) {
                changed.insert(availability.clone(), (up > 0.0, self.said));
            }
        }
        if self.known.len() + changed.len() > KNOWN_MAX {
            let used: BTreeSet<&Availability> =
                self.entities.values().flat_map(|entity| &entity.availability).collect();
            self.known.retain(|availability, _| used.contains(availability));
        }
        self.known.extend(changed.clone());
        changed.into_keys().collect()
    }

    /// Whether an entity is there, as far as anybody said.
    fn is_there(&self, entity: &Entity) -> bool {
        let mut known = entity.availability.iter().filter_map(|availability| self.known.get(availability));
        match entity.mode {
            Mode::All => known.all(|(is_up, _)| *is_up),
            Mode::Any => {
                let says_no = known.filter(|(is_up, _)| !is_up).count();
                says_no == 0 || says_no < entity.availability.len()
            }
            Mode::Latest => known.max_by_key(|(_, when)| *when).is_none_or(|(is_up, _)| *is_up),
        }
    }
}

impl Profile for HomeAssistant {
    fn filters(&self) -> Vec<Filter> {
        self.filters.clone()
    }

    fn form(&self, topic: &str) -> Option<Form> {
        (topic.ends_with("/config") || self.topics.contains(topic)).then_some(Form::Value)
    }

    fn hear(&mut self, topic: &str, said: &Said) -> Heard {
        let inner = topic.strip_prefix(&self.base).and_then(|rest| rest.strip_prefix('/'));
        match inner.and_then(|inner| inner.strip_suffix("/config")) {
            Some(rest) => self.on_config(topic, rest, said),
            None => self.on_said(topic, said),
        }
    }

    fn is_offline(&self, owner: &str) -> bool {
        self.entities.get(owner).is_some_and(|entity| !self.is_there(entity))
    }

    fn reset(&mut self) {
        self.entities.clear();
        self.topics.clear();
        self.known.clear();
    }
}

impl Entity {
    fn told(&self, owner: &str, name: &str, unit: &'static str, value: f64) -> Told {
        let told = Told::gauge(name, unit, &self.device, value)
            .with("domain", self.domain)
            .with("entity", &self.id)
            .with("friendly_name", &self.friendly_name);
        Told { owner: owner.to_owned(), ..told }
    }

    /// What a message of its state's topic says of it.
    fn measured(&self, owner: &str, said: &Said) -> Option<Told> {
        let found = self.state.find(said)?;
        let value = match self.domain {
            "sensor" | "number" => found.number(),
            _ => found.is(&self.on, &self.off),
        }?;
        let value = if self.is_fahrenheit { (value - 32.0) / 1.8 } else { value };
        let life = Life::Measured(self.expire_after);
        Some(Told { kind: self.kind, life, ..self.told(owner, &self.name, self.unit, value) })
    }
}

/// A value where a place leads.
enum Found<'a> {
    Number(f64),
    Text(&'a str),
    Json(&'a Value),
}

impl Found<'_> {
    fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Text(text) => payload::word(text),
            Self::Json(value) => payload::number(value),
        }
    }

    /// 1 for the one word, 0 for the other.
    fn is(&self, on: &str, off: &str) -> Option<f64> {
        let text = match self {
            Self::Text(text) => Some(*text),
            Self::Json(value) => value.as_str(),
            Self::Number(_) => None,
        };
        match text.map(str::trim) {
            Some(text) if text == on => Some(1.0),
            Some(text) if text == off => Some(0.0),
            _ => {
                let number = self.number()?;
                let stands_for = |word: &str| payload::word(word) == Some(number);
                if stands_for(on) {
                    Some(1.0)
                } else if stands_for(off) {
                    Some(0.0)
                } else {
                    None
                }
            }
        }
    }
}

impl Place {
    fn find<'a>(&self, said: &'a Said) -> Option<Found<'a>> {
        match (said, &self.path) {
            (Said::Number(number), None) => Some(Found::Number(*number)),
            (Said::Word { text, .. }, None) => Some(Found::Text(text)),
            (Said::Json(document), None) => Some(Found::Json(document)),
            (Said::Json(document), Some(path)) => {
                let step = |value: &'a Value, key: &String| match value {
                    Value::Object(map) => map.get(key),
                    Value::Array(list) => list.get(key.parse::<usize>().ok()?),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
                };
                path.iter().try_fold(document, step).map(Found::Json)
            }
            (Said::Number(_) | Said::Word { .. } | Said::Nothing | Said::Devices(_) | Said::Other(_), _) => None,
        }
    }
}

/// The entities of an announcement, each with a name of its own in it; `rest` is `sensor/node/object`, or `device/id` where it announces several.
fn entities(rest: &str, config: &Map<String, Value>) -> Vec<(String, Entity)> {
    let (component, ids) = rest.split_once('/').unwrap_or((rest, ""));
    if component != "device" {
        return entity(component, ids, config, config).map(|entity| (String::new(), entity)).into_iter().collect();
    }
    let components = either(config, "components", "cmps").and_then(Value::as_object);
    let announced = components.into_iter().flatten().take(ENTITIES_MAX);
    let entity = |(id, own): (&String, &Value)| {
        let own = own.as_object()?;
        Some((id.clone(), entity(text(own, "platform", "p")?, &format!("{ids}/{id}"), own, config)?))
    };
    announced.filter_map(entity).collect()
}

/// One entity; what it does not say itself, the device says for all.
fn entity(component: &str, ids: &str, own: &Map<String, Value>, shared: &Map<String, Value>) -> Option<Entity> {
    let domain = *COMPONENTS.iter().find(|known| **known == component)?;
    let find = |long: &str, short: &str| either(own, long, short).or_else(|| either(shared, long, short));
    let find_text = |long: &str, short: &str| find(long, short).and_then(Value::as_str);
    let tilde = find_text("~", "~").unwrap_or_default();
    let topic = topic(find_text("state_topic", "stat_t")?, tilde)?;
    let state = Place { topic, path: path(find_text("value_template", "val_tpl"))? };
    let device = either(shared, "device", "dev").and_then(Value::as_object);
    let device_name = device.and_then(|device| {
        let first_id = either(device, "identifiers", "ids").and_then(|ids| ids.as_str().or_else(|| ids[0].as_str()));
        text(device, "name", "name").or(first_id)
    });
    // What has been `object_id` until 2025 names the domain, too.
    let default_id = text(own, "default_entity_id", "def_ent_id").and_then(|id| Some(id.split_once('.')?.1));
    let object = default_id.or_else(|| text(own, "object_id", "obj_id")).or_else(|| text(own, "unique_id", "uniq_id"));
    let object = object.map_or_else(|| ids.replace('/', "_"), str::to_owned);
    let friendly = [device_name, text(own, "name", "name")].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let symbol = text(own, "unit_of_measurement", "unit_of_meas").unwrap_or_default();
    // As Home Assistant's exporter does.
    let is_fahrenheit = symbol == "°F";
    let symbol = if is_fahrenheit { "°C" } else { symbol };
    let word = |long: &str, short: &str, other: &str| {
        let value = either(own, long, short);
        value.map_or_else(|| other.to_owned(), |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    let (on, off) = (word("payload_on", "pl_on", "ON"), word("payload_off", "pl_off", "OFF"));
    let is_counter = text(own, "state_class", "stat_cla") == Some("total_increasing");
    let expire_after = either(own, "expire_after", "exp_aft").and_then(Value::as_u64).filter(|seconds| *seconds > 0);
    Some(Entity {
        domain,
        id: cut(&format!("{domain}.{}", snake_case(&object))),
        device: cut(device_name.unwrap_or(ids)),
        friendly_name: cut(&friendly),
        state,
        name: series_name(domain, text(own, "device_class", "dev_cla").unwrap_or_default(), symbol),
        unit: unit(symbol),
        is_fahrenheit,
        kind: if is_counter { Kind::Counter } else { Kind::Gauge },
        on: word("state_on", "stat_on", &on),
        off: word("state_off", "stat_off", &off),
        expire_after: expire_after.map(Duration::from_secs),
        availability: availabilities(find, tilde),
        mode: match find_text("availability_mode", "avty_mode") {
            Some("all") => Mode::All,
            Some("any") => Mode::Any,
            _ => Mode::Latest,
        },
    })
}

fn availabilities<'a>(find: impl Fn(&str, &str) -> Option<&'a Value>, tilde: &str) -> Vec<Availability> {
    let find_text = |long: &str, short: &str| find(long, short).and_then(Value::as_str);
    let one = |at: Option<&str>, template: Option<&str>, online: Option<&str>, offline: Option<&str>| {
        let place = Place { topic: topic(at?, tilde)?, path: path(template)? };
        let word = |word: Option<&str>, other: &str| cut(word.unwrap_or(other));
        Some(Availability { place, online: word(online, "online"), offline: word(offline, "offline") })
    };
    let single = one(
        find_text("availability_topic", "avty_t"),
        find_text("availability_template", "avty_tpl"),
        find_text("payload_available", "pl_avail"),
        find_text("payload_not_available", "pl_not_avail"),
    );
    let list = find("availability", "avty").and_then(Value::as_array);
    let of_list = list.into_iter().flatten().filter_map(Value::as_object).filter_map(|entry| {
        one(
            text(entry, "topic", "t"),
            text(entry, "value_template", "val_tpl"),
            text(entry, "payload_available", "pl_avail"),
            text(entry, "payload_not_available", "pl_not_avail"),
        )
    });
    single.into_iter().chain(of_list).take(AVAILABILITIES_MAX).collect()
}

/// A key by its name or by the abbreviation that discovery has for it.
fn either<'a>(map: &'a Map<String, Value>, long: &str, short: &str) -> Option<&'a Value> {
    map.get(long).or_else(|| map.get(short)).filter(|value| !value.is_null())
}

fn text<'a>(map: &'a Map<String, Value>, long: &str, short: &str) -> Option<&'a str> {
    either(map, long, short).and_then(Value::as_str)
}

/// A topic whose `~` stands for what is said once.
fn topic(text: &str, tilde: &str) -> Option<String> {
    let topic = match (text.strip_prefix('~'), text.strip_suffix('~')) {
        (Some(rest), _) => format!("{tilde}{rest}"),
        (None, Some(rest)) => format!("{rest}{tilde}"),
        (None, None) => text.to_owned(),
    };
    (is_topic(&topic) && !topic.starts_with('$')).then_some(topic)
}

/// Where a template leads; the outer `None` where it does more than that.
fn path(template: Option<&str>) -> Option<Option<Vec<String>>> {
    let Some(template) = template else { return Some(None) };
    if template.len() > TEMPLATE_BYTES_MAX {
        return None;
    }
    let mut parts = template.trim().strip_prefix("{{")?.strip_suffix("}}")?.split('|').map(str::trim);
    let expression = parts.next()?;
    let is_harmless = |filter: &str| {
        let name = filter.split('(').next().unwrap_or_default().trim();
        matches!(name, "float" | "int" | "round" | "is_defined")
    };
    if !parts.all(is_harmless) {
        return None;
    }
    if expression == "value" {
        return Some(None);
    }
    let mut rest = expression.strip_prefix("value_json")?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let name = &after[..end];
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
            steps.push(is_name.then(|| name.to_owned())?);
            rest = &after[end..];
        } else {
            let (inside, after) = rest.strip_prefix('[')?.split_once(']')?;
            let quoted = ['\'', '"'].iter().find_map(|quote| inside.strip_prefix(*quote)?.strip_suffix(*quote));
            let index = inside.parse::<usize>().ok().map(|_| inside);
            steps.push(quoted.or(index)?.to_owned());
            rest = after;
        }
    }
    Some(Some(steps))
}

/// As Home Assistant's exporter calls it: by class and unit, where there are any.
fn series_name(domain: &str, class: &str, symbol: &str) -> String {
    let unit = match symbol {
        "%" => "percent".to_owned(),
        "°C" => "celsius".to_owned(),
        other => {
            let plain = other.replace('/', "_per_").replace(['µ', 'μ'], "u").replace('³', "3").replace('²', "2");
            snake_case(&plain.to_lowercase().replace('°', "degrees"))
        }
    };
    match (domain, unit.as_str()) {
        ("sensor", _) => {}
        ("number", unit) if !unit.is_empty() => return format!("homeassistant_number_state_{unit}"),
        (domain, _) => return format!("homeassistant_{domain}_state"),
    }
    match (snake_case(class).as_str(), unit.as_str()) {
        ("", "") => "homeassistant_sensor_state".to_owned(),
        ("", unit) => format!("homeassistant_sensor_unit_{unit}"),
        (class, "") => format!("homeassistant_sensor_{class}"),
        (class, unit) => format!("homeassistant_sensor_{class}_{unit}"),
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(LABEL_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn announced(topic: &str, config: Value) -> (HomeAssistant, Heard) {
        let mut profile = HomeAssistant::new("homeassistant").unwrap();
        let heard = profile.hear(&format!("homeassistant/{topic}/config"), &Said::Json(config));
        (profile, heard)
    }

    fn label<'a>(told: &'a Told, name: &str) -> &'a str {
        told.labels.iter().find(|(own, _)| *own == name).map_or("", |(_, value)| value.as_str())
    }

    #[test]
    fn an_announcement_names_topic_path_unit_and_class() {
        let config = json!({"name": "Temperature", "state_topic": "zigbee2mqtt/attic", "unit_of_measurement": "°C",
            "device_class": "temperature", "state_class": "measurement", "value_template": "{{ value_json.temperature }}",
            "unique_id": "0x00158d00_temperature", "expire_after": 600,
            "availability": [{"topic": "zigbee2mqtt/bridge/state", "value_template": "{{ value_json.state }}"}],
            "device": {"identifiers": ["0x00158d00"], "name": "Attic"}});
        let (mut profile, heard) = announced("sensor/0x00158d00/temperature", config);
        assert_eq!(heard.wanted, ["zigbee2mqtt/attic", "zigbee2mqtt/bridge/state"]);
        let told = profile.hear("zigbee2mqtt/attic", &Said::Json(json!({"temperature": 21.5, "humidity": 40}))).told;
        let told = &told[0];
        assert_eq!(
            (told.name.as_str(), told.unit, told.value),
            ("homeassistant_sensor_temperature_celsius", "celsius", 21.5)
        );
        assert_eq!((label(told, "device"), label(told, "friendly_name")), ("Attic", "Attic Temperature"));
        assert_eq!((label(told, "entity"), label(told, "domain")), ("sensor.0x00158d00_temperature", "sensor"));
        assert_eq!(told.life, Life::Measured(Some(Duration::from_secs(600))));
        let owner = told.owner.clone();
        let offline = profile.hear("zigbee2mqtt/bridge/state", &Said::Json(json!({"state": "offline"})));
        assert_eq!((offline.told[0].name.as_str(), offline.told[0].value), ("homeassistant_entity_available", 0.0));
        assert!(profile.is_offline(&owner) && offline.told[0].owner == owner);
        let gone = profile.hear("homeassistant/sensor/0x00158d00/temperature/config", &Said::Nothing);
        assert_eq!(gone.gone, [owner]);
        assert!(profile.hear("zigbee2mqtt/attic", &Said::Json(json!({"temperature": 1}))).told.is_empty());
    }

    #[test]
    fn abbreviations_and_the_tilde_are_understood() {
        let config = json!({"~": "tele/plug", "name": "Energy", "stat_t": "~/SENSOR", "avty_t": "~/LWT", "pl_avail": "Online",
            "pl_not_avail": "Offline", "uniq_id": "ABC_energy", "dev": {"ids": ["ABC"]}, "unit_of_meas": "kWh", "dev_cla": "energy",
            "stat_cla": "total_increasing", "val_tpl": "{{value_json['ENERGY']['Total']}}"});
        let (mut profile, heard) = announced("sensor/ABC_energy", config);
        assert_eq!(heard.wanted, ["tele/plug/LWT", "tele/plug/SENSOR"]);
        let told = profile.hear("tele/plug/SENSOR", &Said::Json(json!({"ENERGY": {"Total": 12.5}}))).told;
        assert_eq!((told[0].name.as_str(), told[0].kind), ("homeassistant_sensor_energy_kwh", Kind::Counter));
        assert_eq!((told[0].unit, label(&told[0], "device")), ("kilowatt_hours", "ABC"));
        let offline = profile.hear("tele/plug/LWT", &Said::Number(0.0));
        assert!(profile.is_offline(&offline.told[0].owner));
    }

    #[test]
    fn one_announcement_may_be_of_a_whole_device() {
        let config = json!({"dev": {"ids": "ea334", "name": "Kitchen"}, "o": {"name": "bla"}, "stat_t": "kitchen/state",
            "cmps": {"t": {"p": "sensor", "dev_cla": "temperature", "unit_of_meas": "°C", "val_tpl": "{{ value_json.t | float(0) | round(1) }}", "uniq_id": "k_t"},
                "h": {"p": "sensor", "dev_cla": "humidity", "unit_of_meas": "%", "val_tpl": "{{ value_json.h }}", "uniq_id": "k_h"},
                "c": {"p": "camera", "topic": "x"}, "x": 3}});
        let (mut profile, heard) = announced("device/ea334", config);
        assert_eq!(heard.wanted, ["kitchen/state"]);
        let mut told = profile.hear("kitchen/state", &Said::Json(json!({"t": "21.5", "h": 40}))).told;
        told.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = told.iter().map(|told| (told.name.as_str(), told.value)).collect();
        assert_eq!(
            names,
            [("homeassistant_sensor_humidity_percent", 40.0), ("homeassistant_sensor_temperature_celsius", 21.5)]
        );
    }

    #[test]
    fn states_have_the_words_that_the_announcement_says() {
        let config = json!({"name": "Door", "stat_t": "door", "pl_on": "OPEN", "pl_off": "CLOSED", "dev_cla": "door"});
        let (mut profile, _) = announced("binary_sensor/door", config);
        let word = |text: &str| Said::Word { text: text.into(), why: String::new() };
        let mut value =
            |said: Said| profile.hear("door", &said).told.first().map(|told| (told.name.clone(), told.value));
        let state = |value| Some(("homeassistant_binary_sensor_state".to_owned(), value));
        assert_eq!(value(word("OPEN")), state(1.0));
        assert_eq!(value(word("CLOSED")), state(0.0));
        assert_eq!(value(word("AJAR")), None);
        let (mut plain, _) = announced("switch/pump", json!({"stat_t": "pump"}));
        assert_eq!(plain.hear("pump", &Said::Number(1.0)).told[0].value, 1.0);
        let (mut turned, _) = announced("switch/pump", json!({"stat_t": "pump", "pl_on": 0, "pl_off": 1}));
        assert_eq!(turned.hear("pump", &Said::Number(1.0)).told[0].value, 0.0);
    }

    #[test]
    fn only_a_template_that_is_a_path_is_understood() {
        let steps = |text: &str| path(Some(text));
        let some = |steps: &[&str]| Some(Some(steps.iter().map(|step| (*step).to_owned()).collect::<Vec<_>>()));
        assert_eq!(steps("{{ value_json.a }}"), some(&["a"]));
        assert_eq!(steps("{{value_json.a.b['c d'][0]}}"), some(&["a", "b", "c d", "0"]));
        assert_eq!(steps("{{ value_json[\"a\"] | round(2) }}"), some(&["a"]));
        assert_eq!(steps("{{ value }}"), Some(None));
        assert_eq!(steps("{{ value | float }}"), Some(None));
        assert_eq!(path(None), Some(None));
        for text in [
            "{{ value_json.a * 10 }}",
            "{% if value_json.a %}1{% endif %}",
            "{{ states('x') }}",
            "{{ value_json.a | timestamp }}",
            "{{ value_json.a + value_json.b }}",
            "{{ value_json.a is defined }}",
            "value_json.a",
            "{{ value_json.a.b() }}",
            "{{ }}",
            &format!("{{{{ value_json.{} }}}}", "a".repeat(300)),
        ] {
            assert_eq!(steps(text), None, "{text}");
        }
    }

    #[test]
    fn an_announcement_that_leads_nowhere_or_everywhere_is_left_out() {
        for config in [
            json!({"name": "x"}),
            json!({"stat_t": "#"}),
            json!({"stat_t": "a/+/b"}),
            json!({"stat_t": "$SYS/uptime"}),
            json!({"stat_t": "a\u{0}b"}),
            json!({"stat_t": 3}),
            json!({"stat_t": "a", "val_tpl": "{{ value_json.a * 2 }}"}),
            json!([]),
        ] {
            let (profile, heard) = announced("sensor/x", config.clone());
            assert!(heard == Heard::default() && profile.entities.is_empty(), "{config}");
        }
        assert_eq!(announced("camera/x", json!({"stat_t": "a"})).1, Heard::default());
        let mut profile = HomeAssistant::new("homeassistant").unwrap();
        let mut left_out = 0;
        for n in 0..1_200 {
            let config = Said::Json(json!({"stat_t": format!("t/{}", n / 2), "avty_t": format!("a/{n}")}));
            left_out += profile.hear(&format!("homeassistant/sensor/n{n}/config"), &config).left_out;
        }
        let wanted: BTreeSet<&String> =
            profile.entities.values().map(|entity| &entity.availability[0].place.topic).collect();
        assert!(wanted.iter().all(|topic| profile.topics.contains(*topic)), "what is held is listened to");
        assert_eq!(profile.entities.len() + left_out, 1_200);
        assert!((TOPICS_MAX - 1..=TOPICS_MAX).contains(&profile.topics.len()) && left_out > 0);
    }

    #[test]
    fn an_entity_is_there_as_its_announcement_counts_its_availabilities() {
        for (mode, expect) in [("all", [false, false]), ("any", [true, true]), ("latest", [false, true])] {
            let config = json!({"stat_t": "s", "avty": [{"t": "a"}, {"t": "b"}], "avty_mode": mode});
            let (mut profile, _) = announced("sensor/x", config);
            assert!(!profile.is_offline("homeassistant/sensor/x/config#"), "nobody said so");
            let mut is_there =
                |topic: &str, up: f64| profile.hear(topic, &Said::Number(up)).told.iter().all(|told| told.value > 0.0);
            is_there("b", 1.0);
            assert_eq!([is_there("a", 0.0), is_there("b", 1.0)], expect, "{mode}");
            profile.hear("a", &Said::Nothing);
            assert!(!profile.is_offline("homeassistant/sensor/x/config#"), "{mode}: it was taken back");
        }
    }

    #[test]
    fn a_new_announcement_replaces_what_the_one_before_told() {
        let config = |name: &str| json!({"name": name, "stat_t": "s", "avty_t": "a"});
        let (mut profile, _) = announced("sensor/x", config("Old"));
        profile.hear("a", &Said::Number(0.0));
        let mut again = |config| profile.hear("homeassistant/sensor/x/config", &Said::Json(config));
        assert_eq!(again(config("Old")), Heard::default(), "the same says nothing new");
        let renamed = again(config("New"));
        assert_eq!(renamed.gone, ["homeassistant/sensor/x/config#"]);
        assert_eq!(renamed.wanted, ["a", "s"], "so that the broker says again what it retains");
        assert!(profile.is_offline("homeassistant/sensor/x/config#"), "that it is offline is still known");
        let next = profile.hear("homeassistant/sensor/xy/config", &Said::Json(config("Next")));
        assert_eq!((next.gone.len(), next.wanted.len(), profile.entities.len()), (0, 0, 2));
    }

    #[test]
    fn names_are_those_of_home_assistants_exporter() {
        for (class, unit, name) in [
            ("temperature", "°C", "temperature_celsius"),
            ("power", "W", "power_w"),
            ("pm25", "µg/m³", "pm25_ug_per_m3"),
            ("", "lx", "unit_lx"),
            ("", "", "state"),
            ("battery", "%", "battery_percent"),
            ("enum", "", "enum"),
        ] {
            assert_eq!(series_name("sensor", class, unit), format!("homeassistant_sensor_{name}"));
        }
        assert_eq!(series_name("switch", "outlet", ""), "homeassistant_switch_state");
        assert_eq!(series_name("number", "temperature", "°C"), "homeassistant_number_state_celsius");
        assert_eq!(series_name("number", "", ""), "homeassistant_number_state");
        let (mut american, _) = announced(
            "sensor/x",
            json!({"stat_t": "s", "dev_cla": "temperature", "unit_of_meas": "°F",
            "def_ent_id": "sensor.porch", "obj_id": "old", "uniq_id": "1"}),
        );
        let told = american.hear("s", &Said::Number(68.0)).told.remove(0);
        assert_eq!(
            (told.name.as_str(), told.unit, told.value),
            ("homeassistant_sensor_temperature_celsius", "celsius", 20.0)
        );
        assert_eq!(label(&told, "entity"), "sensor.porch");
    }
}
