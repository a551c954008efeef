//! What may be polled: the house's own rules, root-owned, that no relay can widen.
//!
//! A file that is missing means the defaults: the private ranges, GET and HEAD, nothing of this host itself.
//! What no policy can open at all stands in [`address::never()`]. Every refusal says which line would change it, because
//! whoever reads it may be the one who owns the file.

pub mod address;

mod gate;
mod traffic;
mod web_path;

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::address::Network;
pub use self::gate::{Gate, check_host};
pub use self::web_path::{METRICS, WebPath};

/// The ranges that home networks have.
const NETWORKS: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];
/// Where programs of this host listen that are only read.
const SOCKETS: [&str; 4] =
    ["/run/docker.sock", "/run/podman/podman.sock", "/run/satellite-smart.sock", "/run/tailscale/tailscaled.sock"];
/// Where backups and shares are, whose age and space may be looked at.
const DIRECTORIES: [&str; 5] = ["/backup", "/media", "/mnt", "/srv", "/var/backups"];
const REQUESTS_PER_SECOND: u32 = 50;
const NEW_TARGETS_PER_HOUR: u32 = 200;
/// Of a sweep that somebody asked for.
const BY_HAND_PER_SECOND: u32 = 1_000;
/// A policy file; the longest sensible one is a hundredth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Entries of one list.
const ENTRIES_MAX: usize = 256;

/// What a collector wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// DNS questions.
    Dns,
    /// HTTP or HTTPS requests.
    Http,
    /// Modbus TCP, reading.
    Modbus,
    /// MQTT, subscribing.
    Mqtt,
    /// Network UPS Tools' `upsd`.
    Nut,
    /// ICMP echo.
    Ping,
    /// SNMP, reading.
    Snmp,
    /// A TCP connection that is opened and closed.
    Tcp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Dns, Self::Http, Self::Modbus, Self::Mqtt, Self::Nut, Self::Ping, Self::Snmp, Self::Tcp];

    /// The word that the policy uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Http => "http",
            Self::Modbus => "modbus",
            Self::Mqtt => "mqtt",
            Self::Nut => "nut",
            Self::Ping => "ping",
            Self::Snmp => "snmp",
            Self::Tcp => "tcp",
        }
    }
}

/// What an HTTP request may ask. Methods that write are deliberately absent: a configuration only reads. `POST` is for
/// requests that stand in this program itself, body and all, and only read: devices have interfaces that take no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Head and body.
    #[default]
    Get,
    /// The head alone.
    Head,
    /// A request of the program's own, which a configuration can name and not write.
    Post,
}

impl Method {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
        }
    }
}

/// The rules, loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    networks: Vec<Network>,
    ports: Option<Vec<RangeInclusive<u16>>>,
    protocols: Vec<Protocol>,
    methods: Vec<Method>,
    paths: Option<Vec<WebPath>>,
    loopback_ports: Vec<u16>,
    sockets: Vec<PathBuf>,
    directories: Vec<PathBuf>,
    requests_per_second_max: u32,
    new_targets_per_hour_max: u32,
}

/// Why a policy file can't be used. One line each, with the fix.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file is there and can't be read.
    #[error("{path}: {source}; let the satellite read it: chown root:root {path} && chmod 0644 {path}", path = path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A link that leads nowhere would silently mean the defaults.
    #[error("{path} links to a file that does not exist: make the link right, or remove it for the defaults", path = .0.display())]
    Dangling(PathBuf),
    /// A directory, a socket, …
    #[error("{path} is not a file: remove it for the defaults", path = .0.display())]
    NotAFile(PathBuf),
    /// Others than its owner could widen it.
    #[error("{path} can be written by others than its owner: chmod 0644 {path}", path = .0.display())]
    Writable(PathBuf),
    /// Another user could widen it.
    #[error("{path} belongs to user {uid}: chown root:root {path}", path = path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Who.
        uid: u32,
    },
    /// Not a policy.
    #[error("{path}: more than {FILE_BYTES_MAX} bytes: this is not a policy", path = .0.display())]
    TooLarge(PathBuf),
    /// A line breaks a rule.
    #[error("{path}: {problem}", path = path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What and where.
        #[source]
        problem: InvalidPolicy,
    },
}

/// What is wrong in the text of a policy, with its line or key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPolicy(String);

/// Why a target may not be spoken to, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The protocol is switched off.
    #[error("policy.toml does not allow {word}: add \"{word}\" to `protocols`", word = .0.as_str())]
    Protocol(Protocol),
    /// The method is switched off.
    #[error("policy.toml does not allow {word}: add \"{word}\" to `methods`", word = .0.as_str())]
    Method(Method),
    /// The path of a web server is not listed.
    #[error("{0} is not in policy.toml: add \"{0}\" to `paths`")]
    WebPath(String),
    /// The port is not listed.
    #[error("port {0} is not in policy.toml: add {0} to `ports`")]
    Port(u16),
    /// This host, and not a port of its own exporters.
    #[error(
        "{ip} is this host: if port {port} is an exporter of its own, add {port} to `loopback_ports` in policy.toml"
    )]
    Loopback {
        /// The address as it was spelled.
        ip: IpAddr,
        /// The port.
        port: u16,
    },
    /// This host, pinged, where it has no exporters of its own.
    #[error("{0} is this host: ping opens when `loopback_ports` in policy.toml lists any port")]
    LoopbackPing(IpAddr),
    /// In none of the networks.
    #[error("{0} is in no network of policy.toml: add \"{0}/{bits}\" to `networks`", bits = if .0.is_ipv4() { 32 } else { 128 })]
    Network(IpAddr),
    /// A socket of this host that is not listed.
    #[error("{path} is not in policy.toml: add \"{path}\" to `sockets`", path = .0.display())]
    Socket(PathBuf),
    /// A file or a directory of this host that is in none of those listed.
    #[error("{path} is in no directory of policy.toml: add one to `directories`", path = .0.display())]
    Directory(PathBuf),
    /// Nothing changes that.
    #[error("{ip} is {what}: never polled, no policy can allow it")]
    Never {
        /// The address as it was spelled.
        ip: IpAddr,
        /// What it is.
        what: &'static str,
    },
}

impl Default for Policy {
    fn default() -> Self {
        let networks = NETWORKS.iter().filter_map(|text| Network::parse(text).ok()).collect();
        Self {
            networks,
            ports: None,
            protocols: Protocol::ALL.to_vec(),
            methods: vec![Method::Get, Method::Head],
            paths: None,
            loopback_ports: Vec::new(),
            sockets: SOCKETS.map(PathBuf::from).to_vec(),
            directories: DIRECTORIES.map(PathBuf::from).to_vec(),
            requests_per_second_max: REQUESTS_PER_SECOND,
            new_targets_per_hour_max: NEW_TARGETS_PER_HOUR,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    networks: Option<Vec<String>>,
    ports: Option<Vec<toml::Value>>,
    protocols: Option<Vec<Protocol>>,
    methods: Option<Vec<Method>>,
    paths: Option<Vec<String>>,
    loopback_ports: Option<Vec<u16>>,
    sockets: Option<Vec<String>>,
    directories: Option<Vec<String>>,
    requests_per_second_max: Option<u32>,
    new_targets_per_hour_max: Option<u32>,
}

impl Policy {
    /// The policy of a file; the defaults where there is none.
    ///
    /// # Errors
    /// One line that says what to do: whoever could write the file could widen the rules, so that is refused too.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let unreadable = |source| PolicyError::Unreadable { path: path.to_owned(), source };
        let mut file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return match path.symlink_metadata() {
                    Ok(_) => Err(PolicyError::Dangling(path.to_owned())),
                    Err(_) => Ok(Self::default()),
                };
            }
            Err(error) => return Err(unreadable(error)),
        };
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(PolicyError::NotAFile(path.to_owned()));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(PolicyError::Writable(path.to_owned()));
        }
        let uid = metadata.uid();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(PolicyError::Owner { path: path.to_owned(), uid });
        }
        let mut text = String::new();
        file.by_ref().take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(PolicyError::TooLarge(path.to_owned()));
        }
        Self::parse(&text).map_err(|problem| PolicyError::Invalid { path: path.to_owned(), problem })
    }

    /// Reads a policy; a key that is missing has its default.
    ///
    /// # Errors
    /// Names the first line or key that breaks a rule, and what would be right.
    pub fn parse(text: &str) -> Result<Self, InvalidPolicy> {
        let fields: Fields = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
            InvalidPolicy(format!("line {line}: {}", error.message().replace('\n', "; ")))
        })?;
        let mut policy = Self::default();
        if let Some(networks) = fields.networks {
            policy.networks = list("networks", &networks, |text| Network::parse(text))?;
        }
        if let Some(paths) = fields.paths {
            policy.paths = Some(list("paths", &paths, |text| WebPath::try_from(text.clone()))?);
        }
        if let Some(ports) = fields.ports {
            policy.ports = Some(list("ports", &ports, port_range)?);
        }
        if let Some(ports) = fields.loopback_ports {
            policy.loopback_ports = list("loopback_ports", &ports, |&port| port_number(u64::from(port)))?;
        }
        if let Some(sockets) = fields.sockets {
            policy.sockets = list("sockets", &sockets, |text| plain_path(text))?;
        }
        if let Some(directories) = fields.directories {
            policy.directories = list("directories", &directories, |text| plain_path(text))?;
        }
        policy.protocols = fields.protocols.unwrap_or(policy.protocols);
        policy.methods = fields.methods.unwrap_or(policy.methods);
        if let Some(max) = fields.requests_per_second_max {
            policy.requests_per_second_max = within("requests_per_second_max", max, 1..=10_000)?;
        }
        if let Some(max) = fields.new_targets_per_hour_max {
            policy.new_targets_per_hour_max = within("new_targets_per_hour_max", max, 0..=100_000)?;
        }
        Ok(policy)
    }

    /// Whether a target may be spoken to. A ping has no port: loopback answers it where any port of it is listed.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn permits(&self, protocol: Protocol, ip: IpAddr, port: u16) -> Result<(), Refusal> {
        self.permits_protocol(protocol)?;
        let to = address::effective(ip);
        if let Some(what) = address::never(to) {
            return Err(Refusal::Never { ip, what });
        }
        let has_port = protocol != Protocol::Ping;
        if to.is_loopback() {
            let (listed, refusal) = if has_port {
                (self.loopback_ports.contains(&port), Refusal::Loopback { ip, port })
            } else {
                (!self.loopback_ports.is_empty(), Refusal::LoopbackPing(ip))
            };
            return if listed { Ok(()) } else { Err(refusal) };
        }
        if !self.networks.iter().any(|network| network.contains(to)) {
            return Err(Refusal::Network(ip));
        }
        let open = !has_port || self.ports.as_ref().is_none_or(|ports| ports.iter().any(|range| range.contains(&port)));
        if open { Ok(()) } else { Err(Refusal::Port(port)) }
    }

    /// Whether a network with this address may be looked at.
    ///
    /// # Errors
    /// The rule that forbids it.
    pub fn permits_network(&self, ip: IpAddr) -> Result<(), Refusal> {
        if let Some(what) = address::never(address::effective(ip)) {
            return Err(Refusal::Never { ip, what });
        }
        if self.networks.iter().any(|network| network.contains(ip)) { Ok(()) } else { Err(Refusal::Network(ip)) }
    }

    /// The same rules for somebody who sits in the house and looks for devices: in a hurry, and at any number of them.
    #[must_use]
    pub fn asked_by_hand(self) -> Self {
        Self { requests_per_second_max: BY_HAND_PER_SECOND, new_targets_per_hour_max: 100_000, ..self }
    }

    /// Whether a Unix socket of this host may be read.
    ///
    /// # Errors
    /// That it may not.
    pub fn permits_socket(&self, path: &Path) -> Result<(), Refusal> {
        let listed = self.sockets.iter().any(|socket| socket == path);
        if listed { Ok(()) } else { Err(Refusal::Socket(path.to_owned())) }
    }

    /// Whether age and space of what is here may be looked at. Where links lead is for whoever opens it.
    ///
    /// # Errors
    /// That they may not.
    pub fn permits_path(&self, path: &Path) -> Result<(), Refusal> {
        let plain = path.to_str().is_some_and(|text| plain_path(text).is_ok());
        let listed = plain && self.directories.iter().any(|directory| path.starts_with(directory));
        if listed { Ok(()) } else { Err(Refusal::Directory(path.to_owned())) }
    }

    /// Whether a protocol may be spoken at all.
    ///
    /// # Errors
    /// That it may not.
    pub fn permits_protocol(&self, protocol: Protocol) -> Result<(), Refusal> {
        if self.protocols.contains(&protocol) { Ok(()) } else { Err(Refusal::Protocol(protocol)) }
    }

    /// Whether an HTTP request may use this method.
    ///
    /// # Errors
    /// That it may not.
    pub fn permits_method(&self, method: Method) -> Result<(), Refusal> {
        if self.methods.contains(&method) { Ok(()) } else { Err(Refusal::Method(method)) }
    }

    /// Whether a configuration may write an HTTP request with this path and query. What stands in the program itself,
    /// for the devices that it knows, needs no leave.
    ///
    /// # Errors
    /// That it may not.
    pub fn permits_web_path(&self, asked: &str) -> Result<(), Refusal> {
        let listed = self.paths.as_ref().is_none_or(|paths| paths.iter().any(|path| path.covers(asked)));
        if listed { Ok(()) } else { Err(Refusal::WebPath(asked.chars().take(100).collect())) }
    }

    /// How many requests a second may leave, all devices together.
    #[must_use]
    pub fn requests_per_second_max(&self) -> u32 {
        self.requests_per_second_max
    }

    /// How many targets that were not polled before may be in an hour.
    #[must_use]
    pub fn new_targets_per_hour_max(&self) -> u32 {
        self.new_targets_per_hour_max
    }
}

fn list<T, U>(key: &str, items: &[T], read: impl Fn(&T) -> Result<U, String>) -> Result<Vec<U>, InvalidPolicy> {
    if items.len() > ENTRIES_MAX {
        return Err(InvalidPolicy(format!("{key}: {} entries, more than {ENTRIES_MAX}: use wider ones", items.len())));
    }
    items.iter().map(|item| read(item).map_err(|reason| InvalidPolicy(format!("{key}: {reason}")))).collect()
}

fn within(key: &str, value: u32, range: RangeInclusive<u32>) -> Result<u32, InvalidPolicy> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(InvalidPolicy(format!("{key}: {value} is not between {} and {}", range.start(), range.end())))
}

/// A path from the root that goes nowhere but down.
fn plain_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let is_plain = path.is_absolute()
        && text.len() <= 1024
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if is_plain { Ok(path.to_owned()) } else { Err(format!("{text:?} is not a path from the root without `..`")) }
}

fn port_range(value: &toml::Value) -> Result<RangeInclusive<u16>, String> {
    let form = || format!("{value} is not a port such as 80 or a range such as \"8000-8999\"");
    if let Some(port) = value.as_integer() {
        let port = port_number(u64::try_from(port).map_err(|_| form())?)?;
        return Ok(port..=port);
    }
    let (first, last) = value.as_str().and_then(|text| text.split_once('-')).ok_or_else(form)?;
    let read = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if digits { port_number(text.parse().map_err(|_| form())?) } else { Err(form()) }
    };
    let (first, last) = (read(first)?, read(last)?);
    if first > last {
        return Err(format!("{value} ends before it begins: write \"{last}-{first}\""));
    }
    Ok(first..=last)
}

fn port_number(number: u64) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{number} is not a port: 1 to 65535")),
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn permits(policy: &str, ip: &str, port: u16) -> bool {
        Policy::parse(policy).unwrap().permits(Protocol::Tcp, ip.parse().unwrap(), port).is_ok()
    }

    #[test]
    fn the_example_says_the_defaults() {
        let example = include_str!("../policy.example.toml");
        assert_eq!(Policy::parse(example), Ok(Policy::default()));
        assert_eq!(Policy::default().networks.len(), NETWORKS.len());
    }

    #[test]
    fn sockets_and_paths_of_this_host_are_read_where_they_are_listed() {
        let policy = Policy::default();
        policy.permits_socket(Path::new("/run/docker.sock")).unwrap();
        policy.permits_path(Path::new("/srv/backup/last.tar")).unwrap();
        let refused = policy.permits_socket(Path::new("/run/dbus/system_bus_socket")).unwrap_err().to_string();
        assert!(refused.ends_with("add \"/run/dbus/system_bus_socket\" to `sockets`"), "{refused}");
        for path in ["/etc/shadow", "/srv/../etc/shadow", "/srvx/a", "srv/a", "/"] {
            assert!(policy.permits_path(Path::new(path)).is_err(), "{path}");
        }
        let refused = Policy::parse("directories = [\"/a/../b\"]").unwrap_err().to_string();
        assert!(refused.contains("without `..`"), "{refused}");
    }

    #[test]
    fn every_line_of_the_example_that_is_commented_out_is_right_too() {
        let example = include_str!("../policy.example.toml");
        let all: String = example.lines().map(|line| line.strip_prefix("#:").unwrap_or("").to_owned() + "\n").collect();
        let policy = Policy::parse(&all).unwrap();
        assert_eq!(policy.loopback_ports, [9100]);
        assert!(policy.permits(Protocol::Http, [192, 168, 1, 1].into(), 443).is_ok());
    }

    #[test]
    fn by_default_the_private_ranges_are_open_and_nothing_else() {
        for ip in ["10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.9", "fd12::1", "fc00::1"] {
            assert!(permits("", ip, 80), "{ip}");
        }
        for ip in [
            "8.8.8.8",
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "11.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "169.254.1.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "2606:4700::1111",
            "fd00:ec2::254",
        ] {
            assert!(!permits("", ip, 80), "{ip}");
        }
    }

    #[test]
    fn no_spelling_of_a_forbidden_address_passes_and_every_spelling_of_an_open_one_does() {
        let spell = |v4: &str| {
            let [a, b, c, d] = v4.parse::<std::net::Ipv4Addr>().unwrap().octets();
            [
                v4.to_owned(),
                format!("::ffff:{v4}"),
                format!("::ffff:0:{v4}"),
                format!("::{v4}"),
                format!("64:ff9b::{v4}"),
                format!("2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1"),
                format!("::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"),
            ]
        };
        let open = "networks = [\"0.0.0.0/0\", \"::/0\"]";
        for v4 in ["127.0.0.1", "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "224.0.0.1"] {
            for ip in spell(v4) {
                assert!(!permits(open, &ip, 80), "{ip}");
            }
        }
        for v4 in ["8.8.8.8", "127.0.0.1", "169.254.169.254", "0.0.0.1"] {
            for ip in spell(v4) {
                assert!(!permits("", &ip, 80), "{ip}");
            }
        }
        for ip in spell("192.168.1.9") {
            assert!(permits("", &ip, 80), "{ip}");
        }
    }

    #[test]
    fn metadata_services_are_never_open_whatever_is_listed() {
        let open = "networks = [\"0.0.0.0/0\", \"::/0\", \"100.64.0.0/10\", \"fc00::/7\", \"168.63.129.0/24\"]";
        for ip in ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"] {
            let refusal = Policy::parse(open).unwrap().permits(Protocol::Http, ip.parse().unwrap(), 80).unwrap_err();
            assert!(refusal.to_string().contains("no policy can allow it"), "{ip}: {refusal}");
        }
    }

    #[test]
    fn loopback_is_open_only_at_the_ports_that_are_listed() {
        let policy = "loopback_ports = [9100]";
        assert!(permits(policy, "127.0.0.1", 9100) && permits(policy, "::1", 9100));
        assert!(permits(policy, "::ffff:127.0.0.1", 9100));
        assert!(!permits(policy, "127.0.0.1", 9101) && !permits(policy, "0.0.0.0", 9100));
        let ping = |text: &str| Policy::parse(text).unwrap().permits(Protocol::Ping, [127, 0, 0, 1].into(), 0);
        assert_eq!(ping(policy), Ok(()));
        let said = ping("").unwrap_err().to_string();
        assert_eq!(said, "127.0.0.1 is this host: ping opens when `loopback_ports` in policy.toml lists any port");
    }

    #[test]
    fn ports_protocols_and_methods_narrow() {
        let text = "ports = [80, \"8000-8010\"]\nprotocols = [\"http\"]\nmethods = [\"HEAD\"]";
        let policy = Policy::parse(text).unwrap();
        let ip = IpAddr::from([10, 0, 0, 1]);
        for (port, open) in [(80, true), (8000, true), (8010, true), (81, false), (7999, false), (8011, false)] {
            assert_eq!(policy.permits(Protocol::Http, ip, port).is_ok(), open, "{port}");
        }
        assert_eq!(policy.permits(Protocol::Http, ip, 81), Err(Refusal::Port(81)));
        assert_eq!(policy.permits(Protocol::Tcp, ip, 80), Err(Refusal::Protocol(Protocol::Tcp)));
        assert_eq!(policy.permits_method(Method::Get), Err(Refusal::Method(Method::Get)));
        assert_eq!(policy.permits_method(Method::Head), Ok(()));
        let listed = Policy::parse("paths = [\"/api\", \"/probe?\"]").unwrap();
        assert_eq!(listed.permits_web_path("/api/x").and(listed.permits_web_path("/probe?target=a")), Ok(()));
        let refused = listed.permits_web_path("/relay/0?turn=off").unwrap_err().to_string();
        assert_eq!(refused, "/relay/0?turn=off is not in policy.toml: add \"/relay/0?turn=off\" to `paths`");
        assert_eq!(Policy::default().permits_web_path("/relay/0?turn=off"), Ok(()));
        let post = Policy::default().permits_method(Method::Post).unwrap_err().to_string();
        assert_eq!(post, "policy.toml does not allow POST: add \"POST\" to `methods`");
        assert_eq!(Policy::parse("methods = [\"GET\", \"POST\"]").unwrap().permits_method(Method::Post), Ok(()));
        let ping = Policy::parse("ports = [80]").unwrap();
        assert_eq!(ping.permits(Protocol::Ping, ip, 0), Ok(()), "a ping has no port");
    }

    #[test]
    fn a_line_that_breaks_a_rule_is_named_with_what_would_be_right() {
        let check = |text: &str, expect: &str| {
            let said = Policy::parse(text).unwrap_err().to_string();
            assert!(said.contains(expect) && !said.contains('\n'), "{text}: {said}");
        };
        check("network = []", "line 1: unknown field `network`, expected one of `networks`");
        check("\n\nports = 80", "line 3: ");
        check("ports = [", "line 1");
        check("ports = [0]", "ports: 0 is not a port");
        check("ports = [65536]", "ports: 65536 is not a port");
        check("ports = [-1]", "is not a port such as");
        check("ports = [\"80\"]", "is not a port such as");
        check("ports = [\"90-80\"]", "write \"80-90\"");
        check("ports = [\"+80-90\"]", "is not a port such as");
        check("loopback_ports = [0]", "loopback_ports: 0 is not a port");
        check("methods = [\"PUT\"]", "expected one of `GET`, `HEAD`, `POST`");
        check("protocols = [\"ssh\"]", "`modbus`, `mqtt`, `nut`, `ping`, `snmp`, `tcp`");
        check("networks = [\"10.0.0.1/8\"]", "networks: `10.0.0.1/8` has bits");
        check("requests_per_second_max = 0", "not between 1 and 10000");
        check("new_targets_per_hour_max = -1", "line 1");
        check(&format!("loopback_ports = [{}]", "1,".repeat(257)), "257 entries");
    }

    #[test]
    fn a_missing_file_means_the_defaults_and_a_link_to_nowhere_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        assert_eq!(Policy::load(&path).unwrap(), Policy::default());
        symlink(folder.path().join("gone.toml"), &path).unwrap();
        assert!(matches!(Policy::load(&path), Err(PolicyError::Dangling(_))));
        std::fs::write(folder.path().join("gone.toml"), "ports = [80]").unwrap();
        assert!(Policy::load(&path).unwrap().ports.is_some());
        assert!(matches!(Policy::load(folder.path()), Err(PolicyError::NotAFile(_))));
    }

    #[test]
    fn a_file_that_others_can_write_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, "ports = [80]").unwrap();
        for (mode, fits) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false), (0o666, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Policy::load(&path).is_ok(), fits, "{mode:o}");
        }
        assert!(Policy::load(&path).unwrap_err().to_string().contains("chmod 0644"));
    }

    #[test]
    fn a_file_that_is_no_policy_is_refused_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        std::fs::write(&path, format!("# {}", "x".repeat(70_000))).unwrap();
        assert!(matches!(Policy::load(&path), Err(PolicyError::TooLarge(_))));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(Policy::load(&path), Err(PolicyError::Unreadable { .. })));
        std::fs::write(&path, "exec = \"rm\"").unwrap();
        let said = Policy::load(&path).unwrap_err().to_string();
        assert!(said.contains("policy.toml: line 1: unknown field `exec`"), "{said}");
    }
}
