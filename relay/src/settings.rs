//! The relay's settings: `relay.toml`, read once at start. Every field has a default; unknown fields are refused.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;

use crate::authority::CERTIFICATE_LIFE;
use crate::sink::archive;

/// Where the settings are looked for when nobody says.
pub const DEFAULT_PATH: &str = "/etc/satellite-relay/relay.toml";
const URL_BYTES_MAX: usize = 300;

/// The settings, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The web door.
    pub web_listen: SocketAddr,
    /// The satellites' door.
    pub satellites_listen: SocketAddr,
    /// What satellites reach the relay by.
    pub public_host: Option<String>,
    /// The web door as satellites see it.
    pub web_url: Option<String>,
    /// The satellites' door as satellites see it.
    pub session_url: Option<String>,
    /// How long a satellite's certificate lives.
    pub certificate_life: Duration,
    /// What is logged.
    pub log: tracing::Level,
    /// How long a stop may take.
    pub stop_grace: Duration,
    /// How long records wait to be stored together: the longest that an acknowledgement takes.
    pub commit_every: Duration,
    /// Where records are stored.
    pub archive: archive::Settings,
    /// How much strangers may take.
    pub limits: Limits,
}

/// How much strangers may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Connections at each door.
    pub connections: usize,
    /// Of them, from one address.
    pub connections_per_address: usize,
    /// Enrolments and recoveries a second from one address.
    pub enrolments_per_second: f64,
    /// Enrolments and recoveries at once from one address.
    pub enrolments_at_once: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            web_listen: (Ipv6Addr::UNSPECIFIED, 8443).into(),
            satellites_listen: (Ipv6Addr::UNSPECIFIED, 8444).into(),
            public_host: None,
            web_url: None,
            session_url: None,
            certificate_life: CERTIFICATE_LIFE,
            log: tracing::Level::INFO,
            stop_grace: Duration::from_secs(20),
            commit_every: Duration::from_secs(10),
            archive: archive::Settings::default(),
            limits: Limits {
                connections: 2_000,
                connections_per_address: 200,
                enrolments_per_second: 1.0,
                enrolments_at_once: 5,
            },
        }
    }
}

/// Why the settings can't be used. The program ends with 78.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("{path}: {source}; check the path and that this user may read it")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or a field is unknown or of another type.
    #[error("{path}: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where, and what.
        reason: String,
    },
    /// A value is out of range.
    #[error("{path}: {field} = {value}: it must be {expected}")]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        expected: &'static str,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    web_listen: Option<SocketAddr>,
    satellites_listen: Option<SocketAddr>,
    public_host: Option<String>,
    web_url: Option<String>,
    session_url: Option<String>,
    certificate_life: Option<String>,
    log: Option<String>,
    stop_grace: Option<String>,
    commit_every: Option<String>,
    #[serde(default)]
    archive: archive::Settings,
    #[serde(default)]
    limits: LimitsFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    connections: Option<usize>,
    connections_per_address: Option<usize>,
    enrolments_per_second: Option<f64>,
    enrolments_at_once: Option<u32>,
}

impl Settings {
    /// Reads a file; `None` reads the default path and takes the defaults where there is none.
    ///
    /// # Errors
    /// Names the file, the field and what it may say.
    pub fn load(path: Option<&Path>) -> Result<Self, SettingsError> {
        let wanted = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(wanted) {
            Ok(text) => Self::parse(wanted, &text),
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(SettingsError::Read { path: wanted.to_owned(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text)
            .map_err(|error| SettingsError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        let default = Self::default();
        let check = Check { path };
        let public_host = match file.public_host {
            Some(host) if !is_host(&host) => {
                return Err(check.value("public_host", host, "a name or an address alone: relay.example.org"));
            }
            host => host,
        };
        let web_url = check.url("web_url", file.web_url, "https", "https:// and a host, and maybe a port")?;
        let session_url = check.url("session_url", file.session_url, "wss", "wss:// and a host, and maybe a port")?;
        let life = ("certificate_life", file.certificate_life, default.certificate_life);
        let grace = ("stop_grace", file.stop_grace, default.stop_grace);
        let commit_every = ("commit_every", file.commit_every, default.commit_every);
        let log = match file.log {
            None => default.log,
            Some(text) => {
                text.parse().map_err(|_| check.value("log", text, "one of error, warn, info, debug, trace"))?
            }
        };
        Ok(Self {
            web_listen: file.web_listen.unwrap_or(default.web_listen),
            satellites_listen: file.satellites_listen.unwrap_or(default.satellites_listen),
            public_host,
            web_url,
            session_url,
            certificate_life: check.duration(life, 60_000, 90 * 24 * 3_600_000, "a duration from 1m to 90d")?,
            log,
            stop_grace: check.duration(grace, 1_000, 60_000, "a duration from 1s to 60s")?,
            commit_every: check.duration(commit_every, 100, 60_000, "a duration from 100ms to 60s")?,
            archive: file.archive,
            limits: check.limits(&file.limits, default.limits)?,
        })
    }
}

struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn value(&self, field: &'static str, value: String, expected: &'static str) -> SettingsError {
        SettingsError::Value { path: self.path.to_owned(), field, value, expected }
    }

    fn duration(
        &self,
        (field, text, default): (&'static str, Option<String>, Duration),
        min_ms: u64,
        max_ms: u64,
        expected: &'static str,
    ) -> Result<Duration, SettingsError> {
        let Some(text) = text else { return Ok(default) };
        match humantime::parse_duration(&text) {
            Ok(read) if (Duration::from_millis(min_ms)..=Duration::from_millis(max_ms)).contains(&read) => Ok(read),
            Ok(_) | Err(_) => Err(self.value(field, text, expected)),
        }
    }

    fn url(
        &self,
        field: &'static str,
        text: Option<String>,
        scheme: &str,
        expected: &'static str,
    ) -> Result<Option<String>, SettingsError> {
        match text {
            Some(text) if !is_url(&text, scheme) => Err(self.value(field, text, expected)),
            Some(text) => Ok(Some(text.trim_end_matches('/').to_owned())),
            None => Ok(None),
        }
    }

    fn limits(&self, file: &LimitsFile, default: Limits) -> Result<Limits, SettingsError> {
        let count = |field, value: Option<usize>, default: usize| match value {
            Some(0) => Err(self.value(field, "0".into(), "at least 1")),
            value => Ok(value.unwrap_or(default)),
        };
        let enrolments_per_second = file.enrolments_per_second.unwrap_or(default.enrolments_per_second);
        if !(0.001..=1_000_000.0).contains(&enrolments_per_second) {
            let value = enrolments_per_second.to_string();
            return Err(self.value("limits.enrolments_per_second", value, "from 0.001 to 1000000"));
        }
        let enrolments_at_once = file.enrolments_at_once.unwrap_or(default.enrolments_at_once);
        if enrolments_at_once == 0 {
            return Err(self.value("limits.enrolments_at_once", "0".into(), "at least 1"));
        }
        Ok(Limits {
            connections: count("limits.connections", file.connections, default.connections)?,
            connections_per_address: count(
                "limits.connections_per_address",
                file.connections_per_address,
                default.connections_per_address,
            )?,
            enrolments_per_second,
            enrolments_at_once,
        })
    }
}

/// Whether this is a URL of the scheme with a host, maybe a port and a path, and nothing else.
#[must_use]
pub fn is_url(text: &str, scheme: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    text.len() <= URL_BYTES_MAX
        && uri.scheme_str() == Some(scheme)
        && uri.host().is_some_and(is_host)
        && uri.query().is_none()
        && !text.contains(['@', '#'])
}

/// The host of a URL, an IPv6 address in its brackets.
#[must_use]
pub fn host(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.host().map(str::to_owned)
}

/// Whether this is a name or an address, an IPv6 address with or without its brackets.
fn is_host(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => rustls_pki_types::ServerName::try_from(text).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("relay.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_says_the_defaults() {
        assert_eq!(parse(include_str!("../relay.example.toml")), Ok(Settings::default()));
        assert_eq!(parse(""), Ok(Settings::default()));
    }

    #[test]
    fn what_the_example_only_mentions_can_be_set() {
        let text: String = include_str!("../relay.example.toml")
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|rest| rest.contains(" = \"")).unwrap_or(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = parse(&text).unwrap();
        assert_eq!(settings.public_host.as_deref(), Some("relay.example.org"));
        assert_eq!(settings.session_url.as_deref(), Some("wss://relay.example.org:443"));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_fix() {
        for (text, said) in [
            ("web_listn = 1", "unknown field `web_listn`"),
            ("web_listen = \"8443\"", "invalid socket address"),
            ("log = \"loud\"", "log = loud: it must be one of error, warn"),
            ("certificate_life = \"30s\"", "certificate_life = 30s: it must be a duration from 1m to 90d"),
            ("stop_grace = \"1h\"", "stop_grace = 1h"),
            ("commit_every = \"5m\"", "commit_every = 5m: it must be a duration from 100ms to 60s"),
            ("[archive]\nbucket = \"x\"", "unknown field `bucket`"),
            ("public_host = \"https://x\"", "public_host = https://x: it must be a name or an address alone"),
            ("web_url = \"http://x\"", "web_url = http://x: it must be https://"),
            ("web_url = \"https://user@x\"", "web_url"),
            ("web_url = \"https://\"", "web_url"),
            ("session_url = \"https://x\"", "it must be wss://"),
            ("[limits]\nconnections = 0", "limits.connections = 0: it must be at least 1"),
            ("[limits]\nenrolments_per_second = nan", "limits.enrolments_per_second = NaN"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
            assert!(error.starts_with("relay.toml: "), "{error}");
        }
    }

    #[test]
    fn a_host_is_taken_from_a_url_as_it_stands_there() {
        assert_eq!(host("https://relay.example.org:8443/x").as_deref(), Some("relay.example.org"));
        assert_eq!(host("https://[2001:db8::1]:8443").as_deref(), Some("[2001:db8::1]"));
        assert!(is_url("https://192.0.2.1:8443", "https") && is_url("https://[::1]", "https"));
        assert!(!is_url("https://a b", "https") && !is_url("https://x?y", "https") && !is_url("x", "https"));
    }
}
