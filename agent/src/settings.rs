//! The satellite's own settings: `satellite.toml`, read once at start and again on SIGHUP.
//!
//! Settings are the machine's: directories, proxy, bounds. What to poll is config and comes from the relay. Every
//! field has a default, so that a missing file is the usual case. Unknown fields are refused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::uplink::proxy::ProxySettings;

/// Where the settings are looked for when nobody says.
pub const DEFAULT_PATH: &str = "/etc/satellite/satellite.toml";

const MIB: u64 = 1 << 20;

/// The settings, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Identity, buffer and last good config; 0700.
    pub state_dir: PathBuf,
    /// The local socket.
    pub run_dir: PathBuf,
    /// The house's rules.
    pub policy: PathBuf,
    /// `direct`, or the `http://`, `socks5://` or `socks5h://` proxy to the relay; the environment's where unset.
    pub proxy: Option<String>,
    /// Hosts that are reached without it.
    pub no_proxy: Vec<String>,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub log: tracing::Level,
    /// How long a stop may take to send what is buffered.
    pub stop_grace: Duration,
    /// How records are kept.
    pub buffer: Buffer,
}

/// How records are kept until the relay has committed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// How often what was polled is made durable: what a power cut may cost. 100 ms to 30 s.
    pub commit_every: Duration,
    /// Payload kept before the oldest goes; the file grows to about 1.9 times that.
    pub bytes_max: u64,
    /// Age kept before the oldest goes.
    pub age_max: Duration,
    /// Free disk, in bytes, below which the oldest goes.
    pub free_min_bytes: u64,
    /// Free disk, in percent, below which the oldest goes.
    pub free_min_percent: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/satellite".into(),
            run_dir: "/run/satellite".into(),
            policy: "/etc/satellite/policy.toml".into(),
            proxy: None,
            no_proxy: Vec::new(),
            log: tracing::Level::INFO,
            stop_grace: Duration::from_secs(5),
            buffer: Buffer {
                commit_every: Duration::from_secs(1),
                bytes_max: 256 * MIB,
                age_max: Duration::from_secs(30 * 24 * 3600),
                free_min_bytes: 200 * MIB,
                free_min_percent: 5,
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
    #[error("{path}: {field} = {value}: {expected}")]
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
    state_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    policy: Option<PathBuf>,
    proxy: Option<String>,
    #[serde(default)]
    no_proxy: Vec<String>,
    log: Option<String>,
    stop_grace: Option<String>,
    #[serde(default)]
    buffer: BufferFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BufferFile {
    commit_every: Option<String>,
    mib_max: Option<u64>,
    age_max: Option<String>,
    free_mib_min: Option<u64>,
    free_percent_min: Option<u8>,
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

    /// The way to the relay.
    #[must_use]
    pub fn proxy_settings(&self) -> ProxySettings {
        ProxySettings { proxy: self.proxy.clone(), no_proxy: self.no_proxy.clone() }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, SettingsError> {
        let file: File = toml::from_str(text)
            .map_err(|error| SettingsError::Parse { path: path.to_owned(), reason: error.to_string() })?;
        let default = Self::default();
        let check = Check { path };
        let stop_grace = check.duration("stop_grace", file.stop_grace, default.stop_grace, 0, 60_000)?;
        let log = match file.log {
            None => default.log,
            Some(text) => {
                text.parse().map_err(|_| check.value("log", text, "one of error, warn, info, debug, trace"))?
            }
        };
        if let Some(proxy) = &file.proxy
            && proxy != "direct"
            && !["http://", "socks5://", "socks5h://"].iter().any(|scheme| proxy.starts_with(scheme))
        {
            // The value may hold a password: it is not repeated.
            return Err(check.value("proxy", "…".into(), "direct, or http://, socks5:// or socks5h:// and a host"));
        }
        Ok(Self {
            state_dir: file.state_dir.unwrap_or(default.state_dir),
            run_dir: file.run_dir.unwrap_or(default.run_dir),
            policy: file.policy.unwrap_or(default.policy),
            proxy: file.proxy,
            no_proxy: file.no_proxy,
            log,
            stop_grace,
            buffer: check.buffer(file.buffer, default.buffer)?,
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
        field: &'static str,
        text: Option<String>,
        default: Duration,
        min_ms: u64,
        max_ms: u64,
    ) -> Result<Duration, SettingsError> {
        let Some(text) = text else { return Ok(default) };
        match humantime::parse_duration(&text) {
            Ok(read) if (u128::from(min_ms)..=u128::from(max_ms)).contains(&read.as_millis()) => Ok(read),
            Ok(_) | Err(_) => Err(self.value(field, text, "a duration such as \"10s\", within the documented range")),
        }
    }

    fn buffer(&self, file: BufferFile, default: Buffer) -> Result<Buffer, SettingsError> {
        let year_ms = 366 * 24 * 3600 * 1000;
        let mib = |field, value: Option<u64>, default: u64, min: u64| match value {
            None => Ok(default),
            Some(mib) if (min..=1 << 20).contains(&mib) => Ok(mib * MIB),
            Some(mib) => Err(self.value(field, mib.to_string(), "mebibytes: at least 1, at most 1048576")),
        };
        let free_min_percent = match file.free_percent_min {
            None => default.free_min_percent,
            Some(percent) if percent <= 50 => percent,
            Some(percent) => {
                return Err(self.value("buffer.free_percent_min", percent.to_string(), "a percentage from 0 to 50"));
            }
        };
        Ok(Buffer {
            commit_every: self.duration("buffer.commit_every", file.commit_every, default.commit_every, 100, 30_000)?,
            bytes_max: mib("buffer.mib_max", file.mib_max, default.bytes_max, 1)?,
            age_max: self.duration("buffer.age_max", file.age_max, default.age_max, 60_000, year_ms)?,
            free_min_bytes: mib("buffer.free_mib_min", file.free_mib_min, default.free_min_bytes, 0)?,
            free_min_percent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::parse(Path::new("satellite.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_says_the_defaults() {
        assert_eq!(parse(include_str!("../satellite.example.toml")), Ok(Settings::default()));
        assert_eq!(parse(""), Ok(Settings::default()));
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_fix() {
        for (text, said) in [
            ("stat_dir = 1", "unknown field `stat_dir`"),
            ("log = \"loud\"", "log = loud: one of error, warn"),
            ("[buffer]\ncommit_every = \"1h\"", "buffer.commit_every = 1h"),
            ("[buffer]\nmib_max = 0", "buffer.mib_max = 0: mebibytes"),
            ("[buffer]\nfree_percent_min = 99", "a percentage from 0 to 50"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_proxys_password_is_not_repeated() {
        let error = parse("proxy = \"ftp://me:hunter2@proxy\"").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let error = Settings::load(Some(Path::new("/nonexistent/satellite.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/satellite.toml"), "{error}");
    }
}
