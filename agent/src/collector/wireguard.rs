//! `wireguard`: this machine's WireGuard interfaces: when each peer was last heard of, and how much went to and fro.
//!
//! Names and labels are prometheus_wireguard_exporter's. What `wg` prints of handshakes, traffic and addresses is read,
//! which holds no private key: `wg show dump` is never asked. It takes CAP_NET_ADMIN, which `wireguard.conf` of the
//! package's examples gives. Deliberately absent: `endpoints`, whose lines `wg` 1.0 prints without the interface from the
//! second peer on, and any command that changes something.

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64;
use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::limits;
use serde::Deserialize;

use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, program, whole};

/// `collector = "wireguard"`.
pub const KIND: CollectorKind = CollectorKind { name: "wireguard", build };

/// Index of the metric that is the peers.
const PEERS: usize = 0;
/// Index of the metric that tells how it went.
const UP: usize = 1;
const PEERS_MAX: usize = 1_000;
/// A thousand peers with many networks each.
const ANSWER_BYTES_MAX: usize = 512 << 10;
/// A name of an interface, as the kernel has them.
const INTERFACE_BYTES_MAX: usize = 15;
const INTERFACES_MAX: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// All of them where there are none.
    #[serde(default)]
    interfaces: Vec<String>,
}

fn build(device: &Device, _: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { interfaces } = options::read(&device.options, &path)?;
    let wrong = |reason: String| Err(options::problem(&format!("{path}.interfaces"), reason));
    if interfaces.len() > INTERFACES_MAX {
        return wrong(format!("{} interfaces, more than {INTERFACES_MAX}", interfaces.len()));
    }
    if let Some(name) = interfaces.iter().find(|name| !is_interface(name)) {
        let shown: String = name.chars().take(40).collect();
        return wrong(format!("`{}` is no name of an interface, such as \"wg0\"", shown.escape_debug()));
    }
    let mut metrics = whole(device);
    metrics[PEERS].name = "peers".into();
    metrics.extend(whole(device));
    metrics[UP].name = "up".into();
    let wireguard = WireGuard { program: "wg".into(), interfaces, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(wireguard), metrics })
}

fn is_interface(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=' | b'+');
    (1..=INTERFACE_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

struct WireGuard {
    program: String,
    interfaces: Vec<String>,
    limit: Duration,
}

/// Interface and public key.
type Key = (String, String);

/// What is known of one peer.
#[derive(Debug, Default, PartialEq)]
struct Peer {
    /// Seconds since 1970; 0 for never.
    handshake: f64,
    received: f64,
    sent: f64,
    /// Networks, with commas between.
    allowed: String,
}

type Peers = BTreeMap<Key, Peer>;

impl WireGuard {
    async fn ask(&self) -> Result<Peers, Failure> {
        let mut peers = Peers::new();
        for (what, take) in
            [("latest-handshakes", handshakes as Take), ("transfer", transfer), ("allowed-ips", allowed)]
        {
            let text = self.show(what).await?;
            for line in text.lines() {
                self.take(line, take, &mut peers).map_err(|()| unexpected(what, line))?;
                if peers.len() > PEERS_MAX {
                    return Err(Failure::new(Reason::BadAnswer, format!("more than {PEERS_MAX} peers")));
                }
            }
        }
        if peers.is_empty() {
            let why = match self.interfaces.as_slice() {
                [] => "no interface of WireGuard has a peer here".to_owned(),
                named => format!("no interface of {} has a peer here", named.join(", ")),
            };
            return Err(Failure::new(Reason::Unsupported, why));
        }
        Ok(peers)
    }

    fn take(&self, line: &str, take: Take, peers: &mut Peers) -> Result<(), ()> {
        let mut words = line.split('\t');
        let (Some(interface), Some(key), Some(rest)) = (words.next(), words.next(), words.next()) else {
            return Err(());
        };
        if !is_interface(interface) || !is_key(key) {
            return Err(());
        }
        if !self.interfaces.is_empty() && !self.interfaces.iter().any(|wanted| wanted == interface) {
            return Ok(());
        }
        let peer = peers.entry((interface.to_owned(), key.to_owned())).or_default();
        take(peer, rest, words.next()).ok_or(())
    }

    async fn show(&self, what: &str) -> Result<String, Failure> {
        let said = program::run(&self.program, &["show", "all", what], ANSWER_BYTES_MAX, self.limit).await;
        let said = said.map_err(|error| match error {
            program::Error::Missing(_) => {
                Failure::new(Reason::Unsupported, "`wg` is not there: sudo apt install wireguard-tools")
            }
            program::Error::Late(_) => Failure::new(Reason::Timeout, format!("wg: {error}")),
            program::Error::Broken(what) => Failure::new(Reason::BadAnswer, what),
        })?;
        // It succeeds without the right to look, too, and tells of each interface that it may not.
        if said.complaint.contains("not permitted") || said.complaint.contains("Permission denied") {
            let what = "it takes CAP_NET_ADMIN: see wireguard.conf in /usr/share/doc/satellite-agent/examples";
            return Err(Failure::new(Reason::Unsupported, what));
        }
        if !said.success {
            let shown: String = said.complaint.chars().take(120).collect();
            return Err(Failure::new(Reason::Refused, format!("wg says `{}`", shown.escape_debug())));
        }
        String::from_utf8(said.text).map_err(|_| Failure::new(Reason::BadAnswer, "wg printed what is no text"))
    }

    async fn poll_all(&self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let outcome = probe::within(self.limit, self.ask()).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Ok(peers) if due.contains(&PEERS) => tell(&peers, readings),
            Ok(_) => {}
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) if due.contains(&PEERS) => readings.missing(PEERS, failure),
            Err(_) => {}
        }
        if due.contains(&UP) {
            probe::report(readings, UP, success, seconds);
        }
        Ok(())
    }
}

impl Collector for WireGuard {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

fn tell(peers: &Peers, readings: &mut Readings) {
    for ((interface, key), peer) in peers {
        let labels = [("allowed_ips", peer.allowed.as_str()), ("interface", interface), ("public_key", key)];
        let mut add = |family, value| readings.sample(PEERS, family, &labels, value);
        add(Family::counter("wireguard_sent_bytes_total", "bytes"), peer.sent);
        add(Family::counter("wireguard_received_bytes_total", "bytes"), peer.received);
        add(Family::gauge("wireguard_latest_handshake_seconds", "seconds"), peer.handshake);
    }
}

/// Takes the words behind interface and key.
type Take = fn(&mut Peer, &str, Option<&str>) -> Option<()>;

fn handshakes(peer: &mut Peer, seconds: &str, _: Option<&str>) -> Option<()> {
    peer.handshake = count(seconds)?;
    Some(())
}

fn transfer(peer: &mut Peer, received: &str, sent: Option<&str>) -> Option<()> {
    (peer.received, peer.sent) = (count(received)?, count(sent?)?);
    Some(())
}

fn allowed(peer: &mut Peer, networks: &str, _: Option<&str>) -> Option<()> {
    if networks == "(none)" {
        return Some(());
    }
    let plain = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'/' | b' ');
    if !networks.bytes().all(plain) {
        return None;
    }
    for network in networks.split(' ') {
        // What does not fit a label is left out.
        if peer.allowed.len() + network.len() >= limits::NAME_BYTES_MAX {
            break;
        }
        if !peer.allowed.is_empty() {
            peer.allowed.push(',');
        }
        peer.allowed.push_str(network);
    }
    Some(())
}

#[expect(clippy::cast_precision_loss, reason = "bytes of a tunnel are far below 2^53")]
fn count(text: &str) -> Option<f64> {
    Some(text.parse::<u64>().ok()? as f64)
}

/// A public key: 32 bytes. It is a label, so nothing else may pass for one.
fn is_key(text: &str) -> bool {
    BASE64.decode(text.as_bytes()).is_ok_and(|key| key.len() == 32)
}

fn unexpected(what: &str, line: &str) -> Failure {
    let words = line.split('\t').count();
    // The line itself stays out: whatever it is may hold a key.
    Failure::new(Reason::BadAnswer, format!("not what `wg show all {what}` prints: a line of {words} words"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use satellite_shared::metric::Kind;

    use super::super::series_of_key;
    use super::super::stage::problem;
    use super::*;

    const A: &str = "tG1whf+9HBv+6E3kgPfGa0kvYThhfTSK5lFAuSc5Xhk=";
    const B: &str = "CpbhNAZGZn/71KcBgNEXROFArKZ2wBTsIsuzswxfogE=";
    const C: &str = "JQjp2CYupbpjKHQ/Ygbc3QqtNXM/mzNaVgOhlXazrFs=";

    /// What `wg` 1.0.20210914 printed over Linux 6.12, but for the dump, which nobody may ask for.
    fn printed() -> String {
        format!(
            "case $3 in
latest-handshakes) printf 'wg0\\t{A}\\t1795359882\\nwg0\\t{B}\\t0\\nwg1\\t{C}\\t1795359882\\n';;
transfer) printf 'wg0\\t{A}\\t92\\t328\\nwg0\\t{B}\\t0\\t0\\nwg1\\t{C}\\t180\\t92\\n';;
allowed-ips) printf 'wg0\\t{A}\\t10.0.0.2/32 fd00::2/128\\nwg0\\t{B}\\t(none)\\nwg1\\t{C}\\t10.0.0.1/32\\n';;
*) exit 9;;
esac"
        )
    }

    /// What is read from a `wg` that this script stands for.
    async fn read(script: &str, interfaces: &[&str]) -> (Result<(), Failure>, Readings) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("wg");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let wireguard = WireGuard {
            program: program.display().to_string(),
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            limit: Duration::from_secs(20),
        };
        let mut readings = Readings::default();
        let outcome = wireguard.poll_all(&[PEERS, UP], &mut readings).await;
        (outcome, readings)
    }

    fn told(readings: &Readings) -> Vec<String> {
        let told = readings.iter().filter(|reading| reading.metric == PEERS).map(|reading| {
            let series = series_of_key(&"it".parse().unwrap(), reading.key).unwrap();
            let labels: Vec<_> = series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}{{{}}} {}", series.name, labels.join(","), reading.value)
        });
        told.collect()
    }

    #[tokio::test]
    async fn each_peer_of_each_interface_is_told_as_the_exporter_tells_it() {
        let (outcome, readings) = read(&printed(), &[]).await;
        outcome.unwrap();
        let told = told(&readings);
        assert_eq!(told.len(), 9);
        for line in [
            format!(
                "wireguard_sent_bytes_total{{allowed_ips=10.0.0.2/32,fd00::2/128,interface=wg0,public_key={A}}} 328"
            ),
            format!(
                "wireguard_received_bytes_total{{allowed_ips=10.0.0.2/32,fd00::2/128,interface=wg0,public_key={A}}} 92"
            ),
            format!(
                "wireguard_latest_handshake_seconds{{allowed_ips=10.0.0.1/32,interface=wg1,public_key={C}}} 1795359882"
            ),
            format!("wireguard_latest_handshake_seconds{{allowed_ips=,interface=wg0,public_key={B}}} 0"),
        ] {
            assert!(told.contains(&line), "no {line}: {told:#?}");
        }
        let first = series_of_key(&"it".parse().unwrap(), readings.iter().next().unwrap().key).unwrap();
        assert_eq!((first.kind, first.unit.as_str()), (Kind::Counter, "bytes"));
    }

    #[tokio::test]
    async fn interfaces_that_are_not_listed_are_left_out() {
        let (outcome, readings) = read(&printed(), &["wg1"]).await;
        outcome.unwrap();
        assert_eq!(told(&readings).len(), 3);
        let failure = read(&printed(), &["wg7"]).await.0.unwrap_err();
        assert_eq!(failure.detail, "no interface of wg7 has a peer here");
    }

    #[tokio::test]
    async fn a_right_that_is_missing_is_named_with_what_gives_it() {
        let script = "echo 'Unable to access interface wg0: Operation not permitted' >&2";
        let failure = read(script, &[]).await.0.unwrap_err();
        assert!(failure.reason == Reason::Unsupported && failure.detail.contains("CAP_NET_ADMIN"), "{failure}");
        let failure = read("true", &[]).await.0.unwrap_err();
        assert_eq!(failure.detail, "no interface of WireGuard has a peer here");
    }

    #[tokio::test]
    async fn what_wg_does_not_print_is_refused_and_not_repeated() {
        for line in ["wg0", "wg0\\tsecret\\t1", "w g\\tKEY\\t1", "wg0\\tKEY\\t-1", "wg0\\tKEY"] {
            let (outcome, readings) = read(&format!("printf '{}\\n'", line.replace("KEY", A)), &[]).await;
            outcome.unwrap();
            let (_, why) = &readings.failures()[0];
            assert!(why.reason == Reason::BadAnswer && why.detail.contains("latest-handshakes"), "{line}: {why}");
            assert!(!why.detail.contains("secret") && !why.detail.contains(A), "{why}");
        }
        let (_, readings) = read("while :; do echo x; done", &[]).await;
        assert!(readings.failures()[0].1.detail.contains("printed more than"), "{:?}", readings.failures());
        let (_, readings) = read("echo no such thing >&2; exit 1", &[]).await;
        assert_eq!(readings.failures()[0].1, Failure::new(Reason::Refused, "wg says `no such thing`"));
    }

    #[test]
    fn options_that_are_wrong_are_named() {
        for (options, said) in [
            ("interfaces = [\"-h\\n\"]", "device.it.interfaces: `-h\\n` is no name"),
            ("interfaces = [\"a-name-that-is-too-long\"]", "device.it.interfaces: `a-name"),
            ("interface = \"wg0\"", "device.it.interface: unknown field"),
            ("[[device.metric]]\nname = \"x\"", "device.it.metric: `wireguard` takes no list"),
        ] {
            let problem = problem(&format!("collector = \"wireguard\"\n{options}"));
            assert!(problem.starts_with(said), "{options}: {problem}");
        }
    }
}
