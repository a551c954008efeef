//! A device as it could be configured, and what makes somebody think that it is there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use satellite_shared::gap::Reason;
use serde_json::{Value, json};

use crate::collector::mqtt::connection::WANTS_LOGIN;
use crate::collector::once::Once;

/// Longer texts of the network are cut: they are shown to people.
const TEXT_CHARACTERS_MAX: usize = 80;
const NAME_BYTES_MAX: usize = 40;

/// One device that could be polled.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// Where it is.
    pub address: IpAddr,
    /// What it calls itself, or what it is.
    pub what: String,
    /// How it was found.
    pub by: String,
    name: String,
    collector: &'static str,
    /// Keys of the configuration and their values, in the order that people read them.
    options: Vec<(&'static str, toml::Value)>,
    /// What has to be done before it gives anything.
    needs: Option<String>,
    /// What it needs if it says that it wants to know who asks.
    login: Option<Login>,
    /// The series that it gave, as far as they tell one device from another.
    identity: Vec<String>,
    samples: usize,
    judge: Judge,
}

/// A password that nobody has yet.
#[derive(Debug, Clone, PartialEq)]
struct Login {
    what: &'static str,
    secret: &'static str,
    /// What the configuration then says besides.
    options: Vec<(&'static str, toml::Value)>,
}

/// What a poll has to give.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Judge {
    /// Anything but `probe_success` 0.
    Answers,
    /// A sample of a metric that begins so.
    Gives(&'static str),
    /// A certificate whose issuer's name holds this; what is proposed is then this profile, with the certificate pinned.
    Issuer(&'static str, &'static str),
}

impl Proposal {
    pub(super) fn new(address: IpAddr, collector: &'static str, by: impl Into<String>, what: &str) -> Self {
        let what = shown(what);
        Self {
            address,
            by: by.into(),
            name: what.clone(),
            what,
            collector,
            options: Vec::new(),
            needs: None,
            login: None,
            identity: Vec::new(),
            samples: 0,
            judge: Judge::Answers,
        }
    }

    pub(super) fn with(mut self, key: &'static str, value: impl Into<toml::Value>) -> Self {
        self.options.push((key, value.into()));
        self
    }

    pub(super) fn judged(mut self, judge: Judge) -> Self {
        self.judge = judge;
        self
    }

    /// The same, if it wants to know who asks: what is needed, the name of its secret, and what the configuration then
    /// says besides. It is polled without; a secret that is stored is for whom its owner named, not for who announces itself.
    pub(super) fn or_asking(
        mut self,
        what: &'static str,
        secret: &'static str,
        options: Vec<(&'static str, toml::Value)>,
    ) -> Self {
        self.login = Some(Login { what, secret, options });
        self
    }

    /// What tells it from another proposal for the same address.
    pub(super) fn key(&self) -> (&'static str, String) {
        let place = |key: &&(&'static str, toml::Value)| ["address", "url", "unit_id"].contains(&key.0);
        let places: Vec<String> = self.options.iter().filter(place).map(|(_, value)| value.to_string()).collect();
        (self.collector, places.join(" "))
    }

    /// The document with which it is polled once.
    pub(super) fn polled_as(&self) -> String {
        format!("[[device]]\nname = \"found\"\nevery = \"30s\"\ntimeout = \"5s\"\n{}", self.lines())
    }

    fn lines(&self) -> String {
        let options = self.options.iter().map(|(key, value)| format!("{key} = {value}\n"));
        std::iter::once(format!("collector = \"{}\"\n", self.collector)).chain(options).collect()
    }

    /// Takes what one poll gave; whether that is a device worth a proposal.
    pub(super) fn confirm(&mut self, polled: &Once) -> bool {
        self.samples = polled.samples.len();
        if wants_login(polled)
            && let Some(Login { what, secret, options }) = self.login.take()
        {
            let (host, protocol) = (self.host(), self.collector);
            self.needs =
                Some(format!("{what}: sudo satellite secrets set {secret} --host {host} --protocol {protocol}"));
            self.options.extend(options);
            self.samples = 0;
            return true;
        }
        let series = || polled.samples.iter().filter_map(|(series, value)| Some((series.as_ref()?, *value)));
        let label = |name: &str| {
            series().flat_map(|(series, _)| &series.labels).find(|(other, _)| other == name).map(|(_, value)| value)
        };
        // What it says of itself is better than what was guessed.
        let model = if self.collector == "sunspec" { "device_model" } else { "model" };
        let texts: Vec<&str> = ["manufacturer", "mfr", model, "sysDescr"]
            .iter()
            .filter_map(|name| label(name))
            .map(String::as_str)
            .filter(|text| !text.is_empty())
            .collect();
        if !texts.is_empty() {
            self.what = shown(&texts.join(" "));
        }
        self.identity = identity(polled);
        let succeeded = series().all(|(series, value)| series.name != "probe_success" || value > 0.5);
        let answered = polled.failure.is_none() && polled.missing.is_empty() && succeeded && self.samples > 0;
        match self.judge {
            Judge::Answers => answered,
            Judge::Gives(prefix) => series().any(|(series, _)| series.name.starts_with(prefix)),
            Judge::Issuer(word, profile) => {
                let pin =
                    label("fingerprint_sha256").filter(|_| label("issuer").is_some_and(|name| name.contains(word)));
                pin.is_some_and(|pin| self.become_profile(profile, pin))
            }
        }
    }

    /// The host that it is asked at, with its port where that is said.
    fn host(&self) -> String {
        let place = self.options.iter().find(|(key, _)| matches!(*key, "address" | "url"));
        let text = place.and_then(|(_, value)| value.as_str()).unwrap_or_default();
        let text = text.strip_prefix("http://").unwrap_or(text);
        text.split('/').next().unwrap_or_default().to_owned()
    }

    /// Whether it is another one by its unit alone: an inverter may not look at the unit that it is asked as.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        self.collector == "sunspec"
            && (other.collector, other.address) == (self.collector, self.address)
            && other.identity == self.identity
    }

    /// From whose certificate it is to what it is.
    fn become_profile(&mut self, profile: &'static str, pin: &str) -> bool {
        let Some((_, toml::Value::String(address))) = self.options.first().cloned() else { return false };
        self.collector = "http";
        self.options = vec![
            ("profile", profile.into()),
            ("url", format!("https://{address}").into()),
            ("tls", format!("pin:{pin}").into()),
            ("secret_headers", table(&[("Authorization", profile)])),
        ];
        self.needs = Some(format!("its token: sudo satellite secrets set {profile} --host {address} --protocol http"));
        self.samples = 0;
        true
    }

    pub(super) fn toml(&self) -> String {
        let gives = match &self.needs {
            Some(needs) => format!("needs {needs}"),
            None => format!("{} samples a poll", self.samples),
        };
        format!(
            "# {} at {}, by {}: {gives}\n[[device]]\nname = \"{}\"\n{}every = \"30s\"\n",
            self.what,
            self.address,
            self.by,
            self.name,
            self.lines()
        )
    }

    pub(super) fn json(&self) -> Value {
        let mut device = serde_json::Map::new();
        device.insert("name".into(), json!(self.name));
        device.insert("collector".into(), json!(self.collector));
        for (key, value) in &self.options {
            device.insert((*key).into(), json!(value));
        }
        device.insert("every".into(), json!("30s"));
        json!({
            "what": self.what, "address": self.address, "by": self.by, "samples": self.samples,
            "needs": self.needs, "device": device,
        })
    }
}

/// Whether it answered that it wants to know who asks.
fn wants_login(polled: &Once) -> bool {
    let mut series = polled.samples.iter().filter_map(|(series, value)| Some((series.as_ref()?, *value)));
    let status = |value: f64| value == 401.0 || value == 403.0;
    let by_status = series.any(|(series, value)| series.name == "probe_http_status_code" && status(value));
    let by_word = |reason: Reason, detail: &str| reason == Reason::Refused && detail.ends_with(WANTS_LOGIN);
    by_status || polled.missing.iter().any(|(_, failure)| by_word(failure.reason, &failure.detail))
}

/// Names and labels of all that was read.
fn identity(polled: &Once) -> Vec<String> {
    let series = polled.samples.iter().filter_map(|(series, _)| series.as_ref());
    let mut all: Vec<String> = series.map(|series| format!("{} {:?}", series.name, series.labels)).collect();
    all.sort_unstable();
    all
}

/// A table of texts, as it stands in one line.
pub(super) fn table(entries: &[(&str, &str)]) -> toml::Value {
    toml::Table::from_iter(entries.iter().map(|(key, value)| ((*key).to_owned(), toml::Value::from(*value)))).into()
}

/// Names as a configuration may have them, each once.
pub(super) fn name_apart(proposals: &mut [Proposal]) {
    let mut taken = BTreeSet::new();
    for proposal in proposals {
        let mut slug = String::new();
        for character in proposal.name.chars() {
            match character.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9') => slug.push(c),
                _ if slug.is_empty() || slug.ends_with('-') => {}
                _ => slug.push('-'),
            }
        }
        slug.truncate(NAME_BYTES_MAX);
        let slug = slug.trim_end_matches('-');
        let slug = if slug.is_empty() { proposal.collector } else { slug };
        let last = proposal.address.to_string();
        let last = last.rsplit(['.', ':']).next().unwrap_or("0");
        let tries = [slug.to_owned(), format!("{slug}-{last}"), format!("{slug}-{}-{last}", proposal.collector)];
        let name =
            tries.into_iter().chain((2..).map(|n| format!("{slug}-{last}-{n}"))).find(|name| !taken.contains(name));
        proposal.name = name.unwrap_or_default();
        taken.insert(proposal.name.clone());
    }
}

/// Text of the network as it may stand in a line.
fn shown(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { ' ' } else { c });
    let text: String = plain.take(TEXT_CHARACTERS_MAX).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use satellite_shared::config::Document;

    use super::*;

    fn proposal(what: &str) -> Proposal {
        Proposal::new([10, 0, 0, 7].into(), "ping", "mDNS", what).with("address", "10.0.0.7")
    }

    #[test]
    fn text_of_the_network_stays_in_its_line() {
        let hostile = proposal("Plug\n[[device]]\nname = \"evil\" \u{2028}\u{7} # ");
        assert_eq!(hostile.what, "Plug [[device]] name = \"evil\" #");
        let mut all = [hostile];
        name_apart(&mut all);
        let (_, document) = Document::parse_text(&all[0].toml()).unwrap();
        assert_eq!((document.devices.len(), document.devices[0].name.as_str()), (1, "plug-device-name-evil"));
        assert!(document.problems.is_empty());
        assert!(proposal(&"x".repeat(500)).what.len() <= TEXT_CHARACTERS_MAX);
    }

    fn polled(status: f64, missing: &str) -> Once {
        let series = satellite_shared::metric::Series {
            device: "found".parse().unwrap(),
            name: "probe_http_status_code".into(),
            kind: satellite_shared::metric::Kind::Gauge,
            unit: String::new(),
            labels: vec![],
        };
        let missing = vec![("profile".to_owned(), crate::collector::Failure::new(Reason::Refused, missing))];
        Once { seconds: 0.1, samples: vec![(Some(series), status)], missing, failure: None }
    }

    #[test]
    fn what_wants_to_know_who_asks_is_proposed_with_the_whole_command() {
        let found = || {
            let address = [10, 0, 0, 7].into();
            let proposal = Proposal::new(address, "http", "mDNS", "Home").with("url", "http://10.0.0.7:8123");
            let auth = vec![("auth", table(&[("secret", "home-assistant")]))];
            proposal.or_asking("its token", "home-assistant", auth)
        };
        let mut asking = found();
        assert!(!asking.polled_as().contains("secret"), "nobody's secret is sent to who announces itself");
        assert!(asking.confirm(&polled(401.0, "HTTP 401")));
        let text = asking.toml();
        let command =
            "needs its token: sudo satellite secrets set home-assistant --host 10.0.0.7:8123 --protocol http\n";
        assert!(text.contains(command) && text.contains("auth = { secret = \"home-assistant\" }"), "{text}");
        for (status, missing) in
            [(404.0, "HTTP 404"), (200.0, "401 apples"), (0.0, "no secret `x`"), (503.0, "HTTP 403")]
        {
            assert!(!found().confirm(&polled(status, missing)), "{status} {missing}");
        }
    }

    #[test]
    fn a_broker_that_lets_nobody_in_is_proposed_with_what_it_needs() {
        let found = || {
            let proposal = Proposal::new([10, 0, 0, 7].into(), "mqtt", "x", "x").with("address", "10.0.0.7");
            let login = vec![("user", "satellite".into()), ("secret", "mqtt".into())];
            proposal.judged(Judge::Gives("zigbee2mqtt_")).or_asking("a user and its password", "mqtt", login)
        };
        let mut asking = found();
        assert!(asking.confirm(&polled(0.0, &format!("since 2026-11-22 15:00:00 UTC: {WANTS_LOGIN}"))));
        let text = asking.toml();
        assert!(text.contains("sudo satellite secrets set mqtt --host 10.0.0.7 --protocol mqtt\n"), "{text}");
        assert!(text.contains("user = \"satellite\"\nsecret = \"mqtt\"\n"), "{text}");
        assert!(!found().confirm(&polled(0.0, "the broker is up and serves nobody")));
    }

    #[test]
    fn an_inverter_that_does_not_look_at_its_unit_is_found_once() {
        let unit = |unit: i64, serial: &str| {
            let proposal = Proposal::new([10, 0, 0, 7].into(), "sunspec", "x", "x").with("unit_id", unit);
            Proposal { identity: vec![format!("sunspec_device_info serial={serial}")], ..proposal }
        };
        assert!(unit(126, "A").repeats(&unit(1, "A")));
        assert!(!unit(126, "B").repeats(&unit(1, "A")));
        let twice = Proposal { collector: "http", ..unit(1, "A") };
        assert!(!twice.repeats(&twice));
    }

    #[test]
    fn every_device_has_a_name_of_its_own() {
        let mut all = ["Plug", "plug", "PLUG!", "plug", "…"].map(proposal);
        name_apart(&mut all);
        let names: Vec<&str> = all.iter().map(|proposal| proposal.name.as_str()).collect();
        assert_eq!(names, ["plug", "plug-7", "plug-ping-7", "plug-7-2", "ping"]);
    }
}
