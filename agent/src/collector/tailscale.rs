//! `tailscale`: what this machine's tailscaled knows of its tailnet, asked at its Unix socket.
//!
//! One `GET /localapi/v0/status`, as `tailscale status --json` asks it: which peers are online, when each was last shaken
//! hands with, how much went to and fro, and whether directly or by a relay. Peers are named by their DNS names. Two
//! metrics: `status` is all of that, `up` tells how it went. Deliberately absent: whatever else the socket can do, and
//! the names of users.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::http::client::Answer;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, http, options, whole};
use crate::policy::Gate;

/// `collector = "tailscale"`.
pub const KIND: CollectorKind = CollectorKind { name: "tailscale", build };

const SOCKET: &str = "/run/tailscale/tailscaled.sock";
/// tailscaled answers nobody else, so that no web page can ask it.
const HOST: &str = "local-tailscaled.sock";
const STATUS: &str = "/localapi/v0/status";
/// A tailnet of a few hundred peers.
const BODY_BYTES_MAX: usize = 1 << 20;
const PEERS_MAX: usize = 1_000;
/// Index of the metric that is what tailscaled says.
const PEERS: usize = 0;
/// Index of the metric that tells how it went.
const UP: usize = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default = "socket")]
    socket: PathBuf,
}

fn socket() -> PathBuf {
    SOCKET.into()
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { socket } = options::read(&device.options, &path)?;
    let mut metrics = whole(device);
    metrics[PEERS].name = "status".into();
    metrics.extend(whole(device));
    metrics[UP].name = "up".into();
    let tailscale = Tailscale { gate: Arc::clone(&context.gate), socket, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(tailscale), metrics })
}

struct Tailscale {
    gate: Arc<Gate>,
    socket: PathBuf,
    limit: Duration,
}

/// The part of tailscaled's status that is told.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    #[serde(default)]
    version: String,
    backend_state: String,
    #[serde(default)]
    health: Option<Vec<Value>>,
    #[serde(default, rename = "Self")]
    own: Option<Peer>,
    /// By their keys.
    #[serde(default)]
    peer: Option<std::collections::BTreeMap<String, Peer>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Peer {
    #[serde(default)]
    host_name: String,
    #[serde(default, rename = "DNSName")]
    dns_name: String,
    #[serde(default)]
    online: bool,
    #[serde(default)]
    active: bool,
    /// Empty while it is reached by a relay.
    #[serde(default)]
    cur_addr: String,
    #[serde(default)]
    rx_bytes: f64,
    #[serde(default)]
    tx_bytes: f64,
    #[serde(default)]
    last_handshake: String,
    #[serde(default)]
    last_seen: String,
    /// A key that does not end has none.
    #[serde(default)]
    key_expiry: Option<String>,
}

impl Peer {
    /// `nas.example.ts.net`; the name that it gives itself where the tailnet has no DNS.
    fn name(&self) -> String {
        let name = self.dns_name.trim_end_matches('.');
        let name = if name.is_empty() { &self.host_name } else { name };
        name.chars().filter(|letter| !letter.is_control()).take(253).collect()
    }
}

impl Tailscale {
    async fn ask(&self) -> Result<Status, Failure> {
        self.gate.socket(&self.socket)?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.refused(&error))?;
        let mut answer = Answer::local(stream, HOST, STATUS).await?;
        answer.check_status()?;
        answer.check_encoding()?;
        let body = answer.body(BODY_BYTES_MAX).await?;
        let bad = |error: String| Failure::new(Reason::BadAnswer, error);
        let document = http::read_document(&body).map_err(bad)?;
        let status =
            Status::deserialize(document).map_err(|error| bad(format!("not a status of tailscaled: {error}")))?;
        match &status.peer {
            Some(peers) if peers.len() > PEERS_MAX => Err(bad(format!("{} peers, more than {PEERS_MAX}", peers.len()))),
            Some(_) | None => Ok(status),
        }
    }

    fn refused(&self, error: &std::io::Error) -> Failure {
        use std::io::ErrorKind as Io;
        let path = self.socket.display();
        if error.kind() == Io::NotFound {
            return Failure::new(Reason::Unsupported, format!("no {path}: is tailscaled installed and running?"));
        }
        if error.kind() == Io::PermissionDenied {
            return Failure::new(Reason::Unsupported, format!("{path}: this user may not open it: see its mode"));
        }
        probe::failure_of_io(error)
    }

    async fn poll_all(&self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let outcome = probe::within(self.limit, self.ask()).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Ok(status) if due.contains(&PEERS) => tell(&status, readings),
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

impl Collector for Tailscale {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

fn tell(status: &Status, readings: &mut Readings) {
    let mut gauge = |name: &str, unit: &str, labels: &[(&str, &str)], value: f64| {
        readings.sample(PEERS, Family::gauge(name, unit), labels, value);
    };
    let version: String = status.version.chars().filter(|letter| !letter.is_control()).take(64).collect();
    gauge("tailscale_version_info", "", &[("version", &version)], 1.0);
    gauge("tailscale_up", "", &[], truth(status.backend_state == "Running"));
    gauge("tailscale_health_problems", "", &[], amount(status.health.as_ref().map_or(0, Vec::len)));
    if let Some(own) = &status.own {
        gauge("tailscale_online", "", &[], truth(own.online));
        if let Some(seconds) = own.key_expiry.as_deref().and_then(seconds) {
            gauge("tailscale_key_expiry_seconds", "seconds", &[], seconds);
        }
    }
    let peers = || status.peer.iter().flatten().map(|(_, peer)| peer);
    gauge("tailscale_peers", "", &[], amount(peers().count()));
    gauge("tailscale_peers_online", "", &[], amount(peers().filter(|peer| peer.online).count()));
    for peer in peers() {
        let name = peer.name();
        let labels = [("peer", name.as_str())];
        gauge("tailscale_peer_online", "", &labels, truth(peer.online));
        gauge("tailscale_peer_active", "", &labels, truth(peer.active));
        gauge("tailscale_peer_direct", "", &labels, truth(!peer.cur_addr.is_empty()));
        if let Some(seconds) = seconds(&peer.last_handshake) {
            gauge("tailscale_peer_last_handshake_seconds", "seconds", &labels, seconds);
        }
        if let Some(seconds) = seconds(&peer.last_seen) {
            gauge("tailscale_peer_last_seen_seconds", "seconds", &labels, seconds);
        }
    }
    for peer in peers() {
        let name = peer.name();
        let mut counter = |name_of: &str, value: f64| {
            readings.sample(PEERS, Family::counter(name_of, "bytes"), &[("peer", &name)], value);
        };
        counter("tailscale_peer_received_bytes_total", peer.rx_bytes);
        counter("tailscale_peer_sent_bytes_total", peer.tx_bytes);
    }
}

fn truth(is_true: bool) -> f64 {
    f64::from(u8::from(is_true))
}

fn amount(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Seconds since 1970; `None` for the year 1, which stands for never.
#[expect(clippy::cast_precision_loss, reason = "seconds, far below 2^53")]
fn seconds(text: &str) -> Option<f64> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?.timestamp();
    (time > 0).then_some(time as f64)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::mpsc::{Receiver, channel};

    use super::super::stage::{Polled, Stage, read_head};
    use super::*;

    /// In the shape of tailscaled 1.76, with what is of no interest here.
    const STATUS_JSON: &str = r#"{
"Version": "1.76.6-t1edcf9d46", "TUN": true, "BackendState": "Running", "HaveNodeKey": true, "AuthURL": "",
"TailscaleIPs": ["100.64.0.1", "fd7a:115c:a1e0::1"],
"Self": {"ID": "n1", "PublicKey": "nodekey:aa", "HostName": "attic", "DNSName": "attic.example.ts.net.", "OS": "linux",
  "Online": true, "RxBytes": 0, "TxBytes": 0, "LastHandshake": "0001-01-01T00:00:00Z", "KeyExpiry": "2027-05-01T12:00:00Z"},
"Health": ["some peers are advertising routes but --accept-routes is false"],
"MagicDNSSuffix": "example.ts.net", "CertDomains": null,
"Peer": {
  "nodekey:bb": {"ID": "n2", "PublicKey": "nodekey:bb", "HostName": "nas", "DNSName": "nas.example.ts.net.", "OS": "linux",
    "UserID": 7, "TailscaleIPs": ["100.64.0.2"], "Addrs": null, "CurAddr": "192.168.1.20:41641", "Relay": "fra",
    "RxBytes": 123456, "TxBytes": 654321, "Created": "2024-01-01T00:00:00Z", "LastSeen": "0001-01-01T00:00:00Z",
    "LastHandshake": "2026-11-22T15:04:42.5Z", "Online": true, "ExitNode": false, "Active": true, "InEngine": true},
  "nodekey:cc": {"HostName": "phone", "DNSName": "", "CurAddr": "", "RxBytes": 0, "TxBytes": 0,
    "LastSeen": "2026-11-20T00:00:00Z", "LastHandshake": "0001-01-01T00:00:00Z", "Online": false, "Active": false}},
"User": {"7": {"LoginName": "someone@example.com"}}}"#;

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    /// A tailscaled that says this; what it was asked comes out.
    async fn polled(said: impl Into<Vec<u8>>) -> (Polled, Receiver<String>) {
        let (dir, said) = (tempfile::tempdir().unwrap(), said.into());
        let path = dir.path().join("tailscaled.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (heads, asked) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream: UnixStream = stream.unwrap();
                heads.send(read_head(&mut stream).unwrap_or_default()).ok();
                drop(stream.write_all(&said));
            }
        });
        let socket = path.display();
        let device = format!("collector = \"tailscale\"\nsocket = \"{socket}\"\ntimeout = \"500ms\"");
        let mut stage = Stage::with_policy(&device, &format!("sockets = [\"{socket}\"]")).unwrap();
        (stage.poll_all().await, asked)
    }

    #[tokio::test]
    async fn peers_are_told_by_name_and_none_of_their_users() {
        let (polled, asked) = polled(ok(STATUS_JSON)).await;
        assert_eq!((polled.failure.clone(), polled.missing.len()), (None, 0));
        let head = asked.recv().unwrap();
        assert!(head.starts_with("GET /localapi/v0/status HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("\r\nhost: local-tailscaled.sock\r\n"), "{head}");
        for (name, value) in [
            ("tailscale_up", 1.0),
            ("tailscale_online", 1.0),
            ("tailscale_health_problems", 1.0),
            ("tailscale_peers", 2.0),
            ("tailscale_peers_online", 1.0),
            ("tailscale_key_expiry_seconds", 1_809_172_800.0),
            ("probe_success", 1.0),
        ] {
            assert_eq!(polled.value(name), Some(value), "{name}");
        }
        let of = |nas: f64, phone: f64| [("peer=nas.example.ts.net".to_owned(), nas), ("peer=phone".to_owned(), phone)];
        assert_eq!(polled.labelled("tailscale_peer_online"), of(1.0, 0.0));
        assert_eq!(polled.labelled("tailscale_peer_direct"), of(1.0, 0.0));
        assert_eq!(polled.labelled("tailscale_peer_received_bytes_total"), of(123_456.0, 0.0));
        assert_eq!(polled.labelled("tailscale_peer_sent_bytes_total"), of(654_321.0, 0.0));
        let handshake = [("peer=nas.example.ts.net".to_owned(), 1_795_359_882.0)];
        assert_eq!(polled.labelled("tailscale_peer_last_handshake_seconds"), handshake, "never is no time");
        assert!(!polled.samples.iter().any(|(series, _)| format!("{series:?}").contains("someone")));
    }

    #[tokio::test]
    async fn a_machine_that_is_logged_out_is_not_up() {
        let (polled, _) =
            polled(ok(r#"{"BackendState": "NeedsLogin", "Self": null, "Peer": null, "Health": null}"#)).await;
        assert_eq!((polled.value("tailscale_up"), polled.value("tailscale_peers")), (Some(0.0), Some(0.0)));
    }

    #[tokio::test]
    async fn what_is_no_status_is_refused() {
        for (said, reason, detail) in [
            (ok("{}"), Reason::BadAnswer, "missing field `BackendState`"),
            (ok("[]"), Reason::BadAnswer, "not a status"),
            (ok("no"), Reason::BadAnswer, "not JSON"),
            (ok(r#"{"BackendState": "Running", "Peer": {"a": 7}}"#), Reason::BadAnswer, "not a status"),
            ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into(), Reason::Refused, "HTTP 403"),
            ("SSH-2.0\r\n".into(), Reason::BadAnswer, "not an HTTP answer"),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(BODY_BYTES_MAX + 1)), Reason::BadAnswer, "a body of more"),
        ] {
            let (polled, _) = polled(said.clone()).await;
            let (_, why) = &polled.missing[0];
            assert!(why.reason == reason && why.detail.contains(detail), "{said:.60}: {why}");
            assert_eq!(polled.value("probe_success"), Some(0.0));
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_or_not_permitted_is_said() {
        let device = "collector = \"tailscale\"\nsocket = \"/run/no-tailscaled.sock\"";
        let failure = Stage::with_policy(device, "").unwrap().poll_all().await.failure.unwrap();
        assert_eq!(failure.reason, Reason::Policy);
        let policy = "sockets = [\"/run/no-tailscaled.sock\"]";
        let failure = Stage::with_policy(device, policy).unwrap().poll_all().await.failure.unwrap();
        assert!(
            failure.reason == Reason::Unsupported && failure.detail.contains("is tailscaled installed"),
            "{failure}"
        );
    }
}
