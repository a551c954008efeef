//! Profiles: what a kind of device gives over HTTP, written down once, so that its owner needs only name it.
//!
//! They are files of this package (`agent/profiles/*.toml`), part of the program: the requests, what shows that it is
//! such a device, and for every number its name, kind, unit and labels. A configuration names one and can change none,
//! so a profile may ask what a configuration may not: by POST, where the policy allows it, with a body that is fixed
//! here and only reads. Names are those of the field's exporters where there is one.
//!
//! ```toml
//! about = "A plug"                       # for people
//! for = "firmware 1.0 to 1.7"            # what it was written for
//! wants = "a user: auth = …"             # said to who is not let in
//! base = true                            # a server may have it behind a path of its own: the URL may name one
//! larger = "use …"                       # said where an answer is more than is read
//! kinds = ["sensor", "switch"]           # what the `entities` may be: `sensor/NAME`
//! [login]                                # where a password opens a session: see `asking`
//! [[request]]
//! path = "/{entity}"                     # `{entity}`: once for each of the device's `entities`, answers in one list
//! soap = "urn:service:1#GetInfo"         # instead of a GET: that action, without arguments; the answer's leaves
//! each = { by = "NewIndex", none = "…" } # but for this one: 0, 1, 2, … until there is no such; said where there is no first
//! ubus = "system info"                   # or that method of OpenWrt's bus, without arguments
//! optional = true                        # a device may have none of this, and says so; that it failed is no such word
//! is = ["$.sys.mac"]                     # without these it is another kind of device
//! otherwise = "switch on …"              # or this was not done
//! [[request.nodes]]
//! at = "$.meters[*]"                     # all that these paths find; left out, the answer itself
//! starts = { "$.id" = "sensor." }        # of these, only those whose text begins so
//! labels = { meter = "meter:{key}", name = "$.name" }   # `{key}`: what varies on the way; or a text beside the number,
//!                                        # also `{ at = "$.id", after = "sensor-" }`: what comes after these letters
//! metrics = [
//!   { name = "plug_power_watts", value = "$.power", unit = "watts" },
//!   { name = "plug_energy_joules_total", value = "$.total", kind = "counter", unit = "joules", scale = 60.0 },
//!   { name = "plug_temperature_celsius", value = "$.fahrenheit", unit = "celsius", offset = -32.0, scale = 0.5556 },
//!   { name = "plug_on", value = "$.state", words = { ON = 1, OFF = 0 }, other = 0 },
//!   { name = "plug_timers", count = "$.timers[*]" },
//!   { name = "plug_info", fixed = 1.0, labels = { mac = "$.mac" } },
//! ]
//! ```

pub(super) mod asking;
mod soap;
mod ubus;

use std::collections::BTreeMap;
use std::time::Duration;

use satellite_shared::limits;
use satellite_shared::metric::Kind;
use serde::Deserialize;
use serde_json::Value;

use super::path::{self, Path};
use crate::collector::probe::Stopwatch;
use crate::collector::{Family, Readings};

/// Every profile there is, in the order that people look for them.
const ALL: [(&str, &str); 17] = [
    ("shelly-gen1", include_str!("../../../profiles/shelly-gen1.toml")),
    ("shelly-gen2", include_str!("../../../profiles/shelly-gen2.toml")),
    ("tasmota", include_str!("../../../profiles/tasmota.toml")),
    ("esphome", include_str!("../../../profiles/esphome.toml")),
    ("home-assistant", include_str!("../../../profiles/home-assistant.toml")),
    ("proxmox", include_str!("../../../profiles/proxmox.toml")),
    ("pihole", include_str!("../../../profiles/pihole.toml")),
    ("fritzbox", include_str!("../../../profiles/fritzbox.toml")),
    ("fritzbox-tr064", include_str!("../../../profiles/fritzbox-tr064.toml")),
    ("fritzbox-smart-home", include_str!("../../../profiles/fritzbox-smart-home.toml")),
    ("openwrt", include_str!("../../../profiles/openwrt.toml")),
    ("jellyfin", include_str!("../../../profiles/jellyfin.toml")),
    ("sonarr", include_str!("../../../profiles/sonarr.toml")),
    ("radarr", include_str!("../../../profiles/radarr.toml")),
    ("lidarr", include_str!("../../../profiles/lidarr.toml")),
    ("prowlarr", include_str!("../../../profiles/prowlarr.toml")),
    ("qbittorrent", include_str!("../../../profiles/qbittorrent.toml")),
];

/// One of them.
pub(super) struct Profile {
    name: &'static str,
    about: String,
    wants: String,
    has_base: bool,
    larger: Option<String>,
    kinds: Vec<String>,
    login: Option<Login>,
    requests: Vec<Request>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    about: String,
    #[serde(rename = "for")]
    _written_for: String,
    wants: String,
    #[serde(default)]
    base: bool,
    larger: Option<String>,
    #[serde(default)]
    kinds: Vec<String>,
    login: Option<LoginFile>,
    request: Vec<RequestFile>,
}

/// How a session is opened, and what then shows it.
enum Login {
    /// By `{"password": …}`.
    Password {
        path: String,
        /// Where the session stands in the answer.
        session: Path,
        /// In which header it goes.
        header: String,
        /// Said to whom a device has no session left for.
        full: String,
    },
    /// By a user's `session login` on the bus; every call then has it.
    Ubus { path: String },
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum LoginFile {
    Password { path: String, session: String, header: String, full: String },
    Ubus { ubus: String },
}

/// One request and what is read from its answer.
struct Request {
    path: String,
    soap: Option<String>,
    each: Option<Each>,
    ubus: Option<String>,
    is_optional: bool,
    is: Vec<(String, Path)>,
    otherwise: Option<String>,
    nodes: Vec<Nodes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestFile {
    path: String,
    soap: Option<String>,
    each: Option<Each>,
    ubus: Option<String>,
    #[serde(default)]
    optional: bool,
    #[serde(default)]
    is: Vec<String>,
    otherwise: Option<String>,
    nodes: Vec<NodesFile>,
}

/// A request that is made for each number from 0 on, each answer read by itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Each {
    /// The argument that is the number.
    by: String,
    /// Said where there is not even the first.
    none: String,
}

/// Places in an answer that have the same numbers.
struct Nodes {
    at: Path,
    starts: Vec<(Path, String)>,
    labels: Vec<(String, Label)>,
    metrics: Vec<Measure>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesFile {
    #[serde(default = "itself")]
    at: String,
    #[serde(default)]
    starts: BTreeMap<String, String>,
    #[serde(default)]
    labels: BTreeMap<String, LabelFile>,
    metrics: Vec<MeasureFile>,
}

fn itself() -> String {
    "$".into()
}

/// One number of such a place.
struct Measure {
    name: String,
    kind: Kind,
    unit: String,
    /// Added before `scale` is multiplied.
    offset: f64,
    scale: f64,
    source: Source,
    words: BTreeMap<String, f64>,
    other: Option<f64>,
    labels: Vec<(String, Label)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MeasureFile {
    name: String,
    value: Option<String>,
    count: Option<String>,
    fixed: Option<f64>,
    #[serde(default)]
    kind: KindFile,
    #[serde(default)]
    unit: String,
    #[serde(default)]
    offset: f64,
    #[serde(default = "unscaled")]
    scale: f64,
    #[serde(default)]
    words: BTreeMap<String, f64>,
    other: Option<f64>,
    #[serde(default)]
    labels: BTreeMap<String, LabelFile>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindFile {
    #[default]
    Gauge,
    Counter,
    Info,
}

fn unscaled() -> f64 {
    1.0
}

enum Source {
    Value(Path),
    /// How many there are.
    Count(Path),
    Fixed(f64),
}

enum Label {
    /// The text that stands there, without these letters before it.
    At(Path, String),
    /// With what varies on the way to the place for `{key}`, and the last piece of that for `{last}`.
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum LabelFile {
    Text(String),
    After { at: String, after: String },
}

impl Profile {
    /// The profile of this name; the error says which there are.
    pub(super) fn find(name: &str) -> Result<Self, String> {
        match ALL.iter().find(|(known, _)| *known == name) {
            Some((name, text)) => Self::parse(name, text).map_err(|error| format!("profile `{name}`: {error}")),
            None => {
                let names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
                Err(format!("there is no such profile: there are {}", names.join(", ")))
            }
        }
    }

    fn parse(name: &'static str, text: &str) -> Result<Self, String> {
        let file: ProfileFile = toml::from_str(text).map_err(|error| error.to_string())?;
        let login = file.login.map(|login| match login {
            LoginFile::Password { path, session, header, full } => {
                Path::parse(&session).map(|session| Login::Password { path, session, header, full })
            }
            LoginFile::Ubus { ubus: path } => Ok(Login::Ubus { path }),
        });
        let requests = file.request.into_iter().map(Request::parse).collect::<Result<_, _>>()?;
        let ProfileFile { about, wants, base: has_base, larger, kinds, .. } = file;
        Ok(Self { name, about, wants, has_base, larger, kinds, login: login.transpose()?, requests })
    }

    /// Whether it asks by POST though nobody logs in.
    fn posts(&self) -> bool {
        self.requests.iter().any(|request| request.soap.is_some() || request.ubus.is_some())
    }

    /// Whether it asks for each of the device's entities.
    fn has_entities(&self) -> bool {
        self.requests.iter().any(Request::is_for_entities)
    }
}

impl Request {
    fn parse(file: RequestFile) -> Result<Self, String> {
        let is = file.is.into_iter().map(|text| Path::parse(&text).map(|path| (text, path)));
        Ok(Self {
            is: is.collect::<Result<_, _>>()?,
            nodes: file.nodes.into_iter().map(Nodes::parse).collect::<Result<_, _>>()?,
            path: file.path,
            soap: file.soap,
            each: file.each,
            ubus: file.ubus,
            is_optional: file.optional,
            otherwise: file.otherwise,
        })
    }

    fn is_for_entities(&self) -> bool {
        self.path.contains("{entity}")
    }

    /// Reads an answer as it came; the error says why it is none of such a device, and what to do.
    fn document(&self, body: &[u8], about: &str) -> Result<Value, String> {
        let read = || {
            let document = if self.soap.is_some() { soap::read_answer(body)? } else { super::read_document(body)? };
            if self.ubus.is_some() { ubus::data(document) } else { Ok(document) }
        };
        let document = read().map_err(|why: String| format!("{why}: is it {about}?"))?;
        match self.is.iter().find(|(_, path)| path.first(&document).is_none_or(Value::is_null)) {
            None => Ok(document),
            Some((text, _)) => Err(match &self.otherwise {
                Some(otherwise) => format!("there is no {text}: {otherwise}"),
                None => format!("there is no {text} in the answer: is it {about}?"),
            }),
        }
    }

    /// Adds all that is found, if there is time for it; says whether there was.
    fn add(&self, document: &Value, metric: usize, left: Duration, readings: &mut Readings) -> Result<bool, String> {
        let watch = Stopwatch::start();
        for nodes in &self.nodes {
            if watch.seconds() > left.as_secs_f64() {
                return Ok(false);
            }
            nodes.add(document, metric, readings)?;
        }
        Ok(true)
    }
}

impl Nodes {
    fn parse(file: NodesFile) -> Result<Self, String> {
        let starts = file.starts.into_iter().map(|(path, text)| Ok::<_, String>((Path::parse(&path)?, text)));
        Ok(Self {
            at: Path::parse(&file.at)?,
            starts: starts.collect::<Result<_, _>>()?,
            labels: labels(file.labels)?,
            metrics: file.metrics.into_iter().map(Measure::parse).collect::<Result<_, _>>()?,
        })
    }

    fn add(&self, document: &Value, metric: usize, readings: &mut Readings) -> Result<(), String> {
        for (key, node) in self.at.nodes(document)? {
            let begins = |(path, start): &(Path, String)| {
                path.first(node).and_then(Value::as_str).is_some_and(|text| text.starts_with(start.as_str()))
            };
            if !self.starts.iter().all(begins) {
                continue;
            }
            for measure in &self.metrics {
                let Some(value) = measure.read(node)? else { continue };
                let found: Vec<(&str, String)> = self
                    .labels
                    .iter()
                    .chain(&measure.labels)
                    .filter_map(|(name, label)| Some((name.as_str(), label.read(&key, node)?)))
                    .collect();
                let found: Vec<(&str, &str)> = found.iter().map(|(name, text)| (*name, text.as_str())).collect();
                let family = Family { name: &measure.name, kind: measure.kind, unit: &measure.unit };
                readings.sample(metric, family, &found, (value + measure.offset) * measure.scale);
            }
        }
        Ok(())
    }
}

impl Measure {
    fn parse(file: MeasureFile) -> Result<Self, String> {
        let source = match (file.value, file.count, file.fixed) {
            (Some(path), None, None) => Source::Value(Path::parse(&path)?),
            (None, Some(path), None) => Source::Count(Path::parse(&path)?),
            (None, None, Some(value)) => Source::Fixed(value),
            _ => return Err(format!("{}: one of `value`, `count` and `fixed`", file.name)),
        };
        let kind = match file.kind {
            KindFile::Gauge => Kind::Gauge,
            KindFile::Counter => Kind::Counter,
            KindFile::Info => Kind::Info,
        };
        let labels = labels(file.labels)?;
        let MeasureFile { name, unit, offset, scale, words, other, .. } = file;
        Ok(Self { name, kind, unit, offset, scale, source, words, other, labels })
    }

    /// The number, where there is one.
    fn read(&self, node: &Value) -> Result<Option<f64>, String> {
        Ok(match &self.source {
            #[expect(clippy::cast_precision_loss, reason = "a path finds no more than a thousand")]
            Source::Count(path) => Some(path.nodes(node)?.len() as f64),
            Source::Fixed(value) => Some(*value),
            Source::Value(path) => {
                let found = path.first(node);
                match found.and_then(Value::as_str).filter(|_| !self.words.is_empty()) {
                    Some(word) => self.words.get(word).copied().or(self.other),
                    None => found.and_then(path::number),
                }
            }
        })
    }
}

impl Label {
    fn parse(file: LabelFile) -> Result<Self, String> {
        match file {
            LabelFile::Text(text) if text.starts_with('$') => Ok(Self::At(Path::parse(&text)?, String::new())),
            LabelFile::Text(text) => Ok(Self::Text(text)),
            LabelFile::After { at, after } => Ok(Self::At(Path::parse(&at)?, after)),
        }
    }

    /// Its text; a label without one is left out.
    fn read(&self, key: &str, node: &Value) -> Option<String> {
        let mut text = match self {
            Self::Text(text) => {
                text.replace("{key}", key).replace("{last}", key.rsplit('/').next().unwrap_or_default())
            }
            Self::At(path, before) => match path.first(node)? {
                Value::String(text) => text.strip_prefix(before.as_str()).unwrap_or(text).to_owned(),
                Value::Number(number) => number.to_string(),
                Value::Bool(state) => state.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => return None,
            },
        };
        text.truncate(text.floor_char_boundary(limits::NAME_BYTES_MAX));
        (!text.is_empty()).then_some(text)
    }
}

fn labels(table: BTreeMap<String, LabelFile>) -> Result<Vec<(String, Label)>, String> {
    table.into_iter().map(|(name, file)| Ok((name, Label::parse(file)?))).collect()
}
