//! Secrets of the house's devices: passwords and keys that never leave the house.
//!
//! The configuration comes from the relay and names a secret; what the name stands for lies here, in `secrets.toml` in the
//! state directory (0600, the satellite's) or in systemd's credential of that name, and each is bound to the hosts and
//! protocols it is for. A configuration that names it for another host gets nothing, and the gap says so: whoever holds
//! the relay could else have the router's password sent to a machine of his own.
//!
//! The files are looked at whenever a secret is wanted and read anew when they changed, so that `satellite secrets set`
//! needs no restart. Deliberately absent: secrets of the satellite itself, which are the credential way's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use satellite_shared::gap::Reason;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::collector::Failure;
use crate::credential::keystore::write_private;
use crate::policy::address::{self, Network};
use crate::policy::{METRICS, Protocol, WebPath, check_host};

/// The file's name in the state directory, and the credential's.
pub const FILE_NAME: &str = "secrets.toml";
/// Where systemd says that a service's credentials are.
pub const CREDENTIALS_ENV: &str = "CREDENTIALS_DIRECTORY";
/// One value: a password, a token, a key in PEM.
pub const VALUE_BYTES_MAX: usize = 8 << 10;
/// A file of secrets; the longest sensible one is a tenth of it.
const FILE_BYTES_MAX: u64 = 256 << 10;
const SECRETS_MAX: usize = 500;
/// Hosts of one secret, and paths.
const HOSTS_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 63;

/// What a configuration calls a secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretName(String);

impl SecretName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SecretName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_letter) {
            return Ok(Self(text));
        }
        Err(format!(
            "a secret's name is lower-case letters, digits, `-` and `_`, at most {NAME_BYTES_MAX}: not `{}`",
            text.chars().take(80).collect::<String>().escape_debug()
        ))
    }
}

impl From<SecretName> for String {
    fn from(name: SecretName) -> Self {
        name.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A host that a secret is for: `nas.lan`, `192.0.2.7`, `192.0.2.0/24`, and perhaps one port of it: `nas.lan:8443`.
///
/// A name is compared as the configuration spells it, an address by its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BoundHost {
    text: String,
    form: HostForm,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostForm {
    Name(String),
    Address(IpAddr),
    Network(Network),
}

impl BoundHost {
    fn admits(&self, host: &str, port: u16) -> bool {
        let ip = host.parse::<IpAddr>().ok().map(address::effective);
        let is_host = match (&self.form, ip) {
            (HostForm::Name(name), None) => name.eq_ignore_ascii_case(host.trim_end_matches('.')),
            (HostForm::Address(own), Some(ip)) => *own == ip,
            (HostForm::Network(network), Some(ip)) => network.contains(ip),
            (HostForm::Name(_), Some(_)) | (HostForm::Address(_) | HostForm::Network(_), None) => false,
        };
        is_host && self.port.is_none_or(|own| own == port)
    }
}

impl TryFrom<String> for BoundHost {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address has a port only behind its bracket.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                let number = port.parse().ok().filter(|number| *number > 0);
                (host, Some(number.ok_or_else(|| format!("`{port}` in `{text}` is no port: write 1 to 65535"))?))
            }
            _ => (text.as_str(), None),
        };
        let host = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
        let form = if host.contains('/') {
            HostForm::Network(Network::parse(host)?)
        } else if let Ok(ip) = host.parse() {
            HostForm::Address(address::effective(ip))
        } else {
            check_host(host)?;
            HostForm::Name(host.trim_end_matches('.').to_ascii_lowercase())
        };
        Ok(Self { form, port, text })
    }
}

impl From<BoundHost> for String {
    fn from(host: BoundHost) -> Self {
        host.text
    }
}

impl fmt::Display for BoundHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One secret and what it is for.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Whom it may be sent to.
    pub hosts: Vec<BoundHost>,
    /// By which protocols.
    pub protocols: Vec<Protocol>,
    /// With which HTTP requests that a configuration has written, beside those that stand in the program.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<WebPath>,
    /// What it is.
    pub value: Zeroizing<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("hosts", &self.hosts).field("protocols", &self.protocols).finish_non_exhaustive()
    }
}

/// Why a file of secrets can't be used. No value is ever part of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// It can't be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others can read what is for the satellite alone.
    #[error("{path} can be read or written by others than its owner: chmod 0600 {path}", path = .0.display())]
    Open(PathBuf),
    /// Others can read or change what systemd should have handed over.
    #[error("{path} can be read or written by others: systemd makes no such credential", path = .0.display())]
    NoCredential(PathBuf),
    /// Too long.
    #[error("{path}: more than {FILE_BYTES_MAX} bytes or {SECRETS_MAX} secrets", path = .0.display())]
    TooLarge(PathBuf),
    /// Not TOML, or a field is missing or not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
}

/// All secrets of one file, by name.
pub type Secrets = BTreeMap<SecretName, Secret>;

/// Reads the text of such a file.
///
/// # Errors
/// The line and what is wrong with it; never what stands there.
pub fn parse(text: &str) -> Result<Secrets, String> {
    let secrets: Secrets = toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
        // The message may quote the line, and the line may be the secret.
        format!("line {line} is not what it should be: [name] with hosts = [\"nas.lan\"], protocols = [\"http\"], value = \"…\"")
    })?;
    for (name, secret) in &secrets {
        let wrong = |what: &str| Err(format!("[{name}]: {what}"));
        if secret.hosts.is_empty() || secret.hosts.len() > HOSTS_MAX {
            return wrong(&format!("1 to {HOSTS_MAX} hosts, such as hosts = [\"nas.lan\"]"));
        }
        if secret.paths.len() > HOSTS_MAX {
            return wrong(&format!("more than {HOSTS_MAX} paths"));
        }
        if secret.protocols.is_empty() {
            return wrong("no protocols: such as protocols = [\"http\"]");
        }
        if secret.value.is_empty() || secret.value.len() > VALUE_BYTES_MAX {
            return wrong(&format!("a value of 1 to {VALUE_BYTES_MAX} bytes"));
        }
    }
    Ok(secrets)
}

/// Reads a file of secrets; none where it is not there.
///
/// # Errors
/// One line with the fix.
pub fn read(path: &Path) -> Result<Secrets, SecretsError> {
    read_private(path, 0o077, SecretsError::Open)
}

/// A credential's directory is the service's alone, and newer systemds let the service in by an access list, whose mask
/// looks like a group that may read.
fn read_credential(path: &Path) -> Result<Secrets, SecretsError> {
    read_private(path, 0o037, SecretsError::NoCredential)
}

fn read_private(path: &Path, forbidden: u32, refuse: fn(PathBuf) -> SecretsError) -> Result<Secrets, SecretsError> {
    let io = |source| SecretsError::Io { path: path.to_owned(), source };
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Secrets::new()),
        Err(error) => return Err(io(error)),
    };
    if file.metadata().map_err(io)?.mode() & forbidden != 0 {
        return Err(refuse(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    file.by_ref().take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(SecretsError::TooLarge(path.to_owned()));
    }
    parse(&text).map_err(|reason| SecretsError::Invalid { path: path.to_owned(), reason })
}

/// Puts a file of secrets in place, whole or not at all, and only one that can be read again.
///
/// # Errors
/// When it breaks a limit or the disk refuses; then the file is as it was.
pub fn write(path: &Path, secrets: &Secrets) -> Result<(), SecretsError> {
    let io = |source| SecretsError::Io { path: path.to_owned(), source };
    if secrets.len() > SECRETS_MAX {
        return Err(SecretsError::TooLarge(path.to_owned()));
    }
    let reason = |error: toml::ser::Error| SecretsError::Invalid { path: path.to_owned(), reason: error.to_string() };
    let text = Zeroizing::new(toml::to_string(secrets).map_err(reason)?);
    let text =
        Zeroizing::new(format!("# Secrets of this house's devices: `satellite secrets` writes them.\n{}", *text));
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(SecretsError::TooLarge(path.to_owned()));
    }
    parse(&text).map_err(|reason| SecretsError::Invalid { path: path.to_owned(), reason })?;
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    }
    write_private(path, text.as_bytes()).map_err(io)
}

/// What tells a file that changed, or may be read by others now, from one that did not.
type Print = Option<(u64, i64, i64, u64)>;

fn print_of(path: &Path) -> Print {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.ino(), meta.ctime(), meta.ctime_nsec(), meta.size()))
}

struct Source {
    path: PathBuf,
    read: fn(&Path) -> Result<Secrets, SecretsError>,
    print: Print,
    secrets: Result<Secrets, String>,
}

impl Source {
    fn new(path: PathBuf, read: fn(&Path) -> Result<Secrets, SecretsError>) -> Self {
        Self { path, read, print: None, secrets: Ok(Secrets::new()) }
    }

    fn current(&mut self) -> &Result<Secrets, String> {
        let print = print_of(&self.path);
        if print != self.print {
            self.secrets = (self.read)(&self.path).map_err(|error| error.to_string());
            self.print = print;
        }
        &self.secrets
    }
}

/// Where collectors ask for secrets.
pub struct Keyring(Mutex<Vec<Source>>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").finish_non_exhaustive()
    }
}

impl Keyring {
    /// The secrets of the state directory, and those that systemd hands over.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        let credential = std::env::var_os(CREDENTIALS_ENV).map(|dir| Path::new(&dir).join(FILE_NAME));
        let credential = credential.map(|path| Source::new(path, read_credential));
        Self(Mutex::new(credential.into_iter().chain([Source::new(state_dir.join(FILE_NAME), read)]).collect()))
    }

    /// The secrets of these files; of two with the same name the first is taken.
    #[must_use]
    pub fn of(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(Mutex::new(files.into_iter().map(|path| Source::new(path, read)).collect()))
    }

    /// The secret of this name, for this host and protocol and no other, in what the program itself says.
    ///
    /// # Errors
    /// `policy`, with the command that would change it.
    pub fn give(&self, name: &SecretName, protocol: Protocol, host: &str, port: u16) -> Result<SecretString, Failure> {
        self.find(name, protocol, host, port, None)
    }

    /// The same over HTTP, with a request of this path and query that a configuration has written: what a device would do
    /// for nobody else, it may do for a relay with this secret in hand.
    ///
    /// # Errors
    /// As [`Self::give`].
    pub fn give_for(&self, name: &SecretName, host: &str, port: u16, asked: &str) -> Result<SecretString, Failure> {
        self.find(name, Protocol::Http, host, port, Some(asked))
    }

    fn find(
        &self,
        name: &SecretName,
        protocol: Protocol,
        host: &str,
        port: u16,
        asked: Option<&str>,
    ) -> Result<SecretString, Failure> {
        let refuse = |detail: String| Err(Failure::new(Reason::Policy, detail));
        let word = protocol.as_str();
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut broken = None;
        for source in sources.iter_mut() {
            match source.current() {
                Err(why) => broken = Some(why.clone()),
                Ok(secrets) => {
                    let Some(secret) = secrets.get(name) else { continue };
                    if !secret.protocols.contains(&protocol) {
                        return refuse(format!(
                            "secret `{name}` is not for {word}: `satellite secrets set {name}` says what for"
                        ));
                    }
                    if !secret.hosts.iter().any(|bound| bound.admits(host, port)) {
                        return refuse(format!(
                            "secret `{name}` is not for {host}:{port}: `satellite secrets set {name}` says whom for"
                        ));
                    }
                    let covers = |asked: &str| asked == METRICS || secret.paths.iter().any(|path| path.covers(asked));
                    if let Some(asked) = asked.filter(|asked| !covers(asked)) {
                        let asked: String = asked.chars().take(60).collect();
                        return refuse(format!(
                            "secret `{name}` is for profiles, not for {asked}: sudo satellite secrets set {name} --keep --path '{asked}'"
                        ));
                    }
                    return Ok(SecretString::from(secret.value.as_str()));
                }
            }
        }
        let path = asked
            .filter(|asked| *asked != METRICS)
            .map_or_else(String::new, |asked| format!(" --path '{}'", asked.chars().take(60).collect::<String>()));
        refuse(broken.unwrap_or_else(|| {
            format!("no secret `{name}`: sudo satellite secrets set {name} --host {host} --protocol {word}{path}")
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    const FILE: &str = "[nas]\nhosts = [\"nas.lan\", \"192.168.1.0/24\", \"printer.lan:8443\", \"[fd00::7]:161\"]\n\
                        protocols = [\"http\"]\nvalue = \"hunter2\"\n";

    fn name(text: &str) -> SecretName {
        SecretName::try_from(text.to_owned()).unwrap()
    }

    fn keyring(text: &str) -> (tempfile::TempDir, PathBuf, Keyring) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let keyring = Keyring::of([path.clone()]);
        (dir, path, keyring)
    }

    #[test]
    fn a_secret_is_given_for_its_hosts_and_protocols_and_for_nothing_else() {
        let (_dir, _, keyring) = keyring(FILE);
        let give = |protocol, host: &str, port| keyring.give(&name("nas"), protocol, host, port);
        for (host, port) in [
            ("nas.lan", 80),
            ("NAS.lan.", 443),
            ("192.168.1.9", 80),
            ("::ffff:192.168.1.9", 1),
            ("printer.lan", 8443),
            ("fd00::7", 161),
        ] {
            assert_eq!(give(Protocol::Http, host, port).unwrap().expose_secret(), "hunter2", "{host}:{port}");
        }
        for (host, port) in [
            ("evil.lan", 80),
            ("nas.lan.evil.lan", 80),
            ("192.168.2.1", 80),
            ("printer.lan", 80),
            ("fd00::8", 161),
            ("1.nas.lan", 80),
        ] {
            let failure = give(Protocol::Http, host, port).unwrap_err();
            assert_eq!(failure.reason, Reason::Policy);
            assert!(failure.detail.contains("secrets set nas") && !failure.detail.contains("hunter2"), "{failure}");
        }
        assert!(give(Protocol::Tcp, "nas.lan", 80).unwrap_err().detail.contains("not for tcp"));
        let missing = keyring.give(&name("router"), Protocol::Http, "router.lan", 80).unwrap_err();
        assert!(
            missing.detail.contains("sudo satellite secrets set router --host router.lan --protocol http"),
            "{missing}"
        );
    }

    #[test]
    fn a_request_that_a_configuration_wrote_has_a_secret_only_where_its_path_is_listed() {
        let (_dir, path, keyring) = keyring(FILE);
        let give = |asked: &str| keyring.give_for(&name("nas"), "nas.lan", 80, asked);
        assert_eq!(give("/metrics").unwrap().expose_secret(), "hunter2");
        let refused = give("/relay/0?turn=off").unwrap_err();
        assert_eq!(refused.reason, Reason::Policy);
        assert!(refused.detail.contains("secrets set nas --keep --path '/relay/0?turn=off'"), "{refused}");
        let mut secrets = parse(FILE).unwrap();
        let api = WebPath::try_from("/api".to_owned()).unwrap();
        secrets.get_mut(&name("nas")).unwrap().paths.push(api);
        write(&path, &secrets).unwrap();
        assert!(give("/api/states").is_ok() && give("/apis").is_err());
        assert!(keyring.give_for(&name("nas"), "evil.lan", 80, "/api").is_err());
        let unknown = keyring.give_for(&name("plug"), "plug.lan", 80, "/rpc/Shelly.GetStatus").unwrap_err();
        assert!(unknown.detail.ends_with("--protocol http --path '/rpc/Shelly.GetStatus'"), "{unknown}");
    }

    #[test]
    fn a_file_is_written_into_a_directory_of_its_own_and_only_if_it_can_be_read_again() {
        let (_dir, path, _) = keyring(FILE);
        let mut secrets = parse(FILE).unwrap();
        let host = secrets[&name("nas")].hosts[0].clone();
        secrets.get_mut(&name("nas")).unwrap().hosts = vec![host; HOSTS_MAX + 1];
        assert!(write(&path, &secrets).unwrap_err().to_string().contains("1 to 100 hosts"));
        let mut secrets = parse(FILE).unwrap();
        let mut large = secrets[&name("nas")].clone();
        large.value = Zeroizing::new("x".repeat(VALUE_BYTES_MAX));
        secrets.extend((0..33).map(|n| (name(&format!("nas-{n}")), large.clone())));
        assert!(matches!(write(&path, &secrets), Err(SecretsError::TooLarge(_))));
        assert_eq!(read(&path).unwrap()[&name("nas")].value.as_str(), "hunter2");
        let fresh = path.with_file_name("state").join(FILE_NAME);
        write(&fresh, &parse(FILE).unwrap()).unwrap();
        assert_eq!(fresh.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_credential_may_look_as_if_its_group_could_read_it_and_a_file_may_not() {
        let (_dir, path, keyring) = keyring(FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o440)).unwrap();
        assert_eq!(read_credential(&path).unwrap().len(), 1);
        assert!(matches!(read(&path), Err(SecretsError::Open(_))));
        let give = || keyring.give(&name("nas"), Protocol::Http, "nas.lan", 80);
        assert!(give().unwrap_err().detail.contains("chmod 0600"));
        // What the message advises is noticed at once.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(give().is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert!(matches!(read_credential(&path), Err(SecretsError::NoCredential(_))));
    }

    #[test]
    fn a_file_that_changed_is_read_anew_and_one_that_others_can_read_is_refused() {
        let (_dir, path, keyring) = keyring("");
        let give = || keyring.give(&name("nas"), Protocol::Http, "nas.lan", 80);
        assert!(give().is_err());
        let mut secrets = parse(FILE).unwrap();
        write(&path, &secrets).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(give().unwrap().expose_secret(), "hunter2");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        secrets.clear();
        assert!(matches!(read(&path), Err(SecretsError::Open(_))));
        write(&path, &secrets).unwrap();
        assert!(give().unwrap_err().detail.contains("no secret `nas`"));
        std::fs::remove_file(&path).unwrap();
        assert!(give().is_err() && read(&path).unwrap().is_empty());
    }

    #[test]
    fn the_first_of_two_files_wins() {
        let (_one, first, _) = keyring(FILE);
        let (_two, second, _) = keyring(&FILE.replace("hunter2", "other"));
        let keyring = Keyring::of([first, second]);
        assert_eq!(keyring.give(&name("nas"), Protocol::Http, "nas.lan", 1).unwrap().expose_secret(), "hunter2");
    }

    #[test]
    fn what_is_wrong_in_a_file_is_said_without_its_values() {
        for (text, said) in [
            ("[nas]\nvalue = \"hunter2\"\nhosts = 3\nprotocols = [\"http\"]", "line"),
            ("[nas]\nhosts = [\"nas.lan\"]\nprotocols = [\"http\"]\nvalue = \"hunter2\"\nx = \"hunter2\"", "line"),
            ("[nas]\nhosts = [\"hunter2 hunter2\"]\nprotocols = [\"http\"]\nvalue = \"hunter2\"", "line"),
            ("[nas]\nhosts = []\nprotocols = [\"http\"]\nvalue = \"hunter2\"", "[nas]: 1 to 100 hosts"),
            ("[nas]\nhosts = [\"a.lan\"]\nprotocols = []\nvalue = \"hunter2\"", "[nas]: no protocols"),
            ("[nas]\nhosts = [\"a.lan\"]\nprotocols = [\"http\"]\nvalue = \"\"", "[nas]: a value"),
            ("[Nas]\nhosts = [\"a.lan\"]\nprotocols = [\"http\"]\nvalue = \"hunter2\"", "line 1"),
            ("nas = \"hunter2", "line 1"),
        ] {
            let reason = parse(text).unwrap_err();
            assert!(reason.contains(said) && !reason.contains("hunter2"), "{text}: {reason}");
        }
        assert!(!format!("{:?}", parse(FILE).unwrap()).contains("hunter2"));
    }
}
