//! `tls`: whose certificate a port shows, whether it is trusted, and until when.
//!
//! Names are blackbox_exporter's. The handshake is made and nothing is sent through it. A certificate that is not trusted
//! is an answer, `probe_success` 0, and what it says is told all the same. Two metrics: `certificate` is that, `trust` is a
//! gap that says why where there is none. Deliberately absent: STARTTLS of mail servers.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::address::Address;
use super::probe::{self, Stopwatch};
use super::trust::{self, Seen, Shown, Trust};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol, check_host};

/// `collector = "tls"`.
pub const KIND: CollectorKind = CollectorKind { name: "tls", build };

const PORT: u16 = 443;
/// Index of the metric that is what was shown, and how it went.
const CERTIFICATE: usize = 0;
/// Index of the metric that is whether it is trusted, or why not.
const TRUST: usize = 1;
/// A label that names a certificate; a subject may be of any length.
const LABEL_BYTES_MAX: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `nas.lan` or `nas.lan:8443`.
    address: String,
    /// The name that is asked for and that the certificate must have; the address's where there is none.
    #[serde(default)]
    server_name: Option<String>,
    #[serde(default = "super::http::verify")]
    tls: String,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { address, server_name, tls } = options::read(&device.options, &path)?;
    let address = Address::parse(&address, Some(PORT), &format!("{path}.address"))?;
    let trust = Trust::parse(&tls).map_err(|reason| options::problem(&format!("{path}.tls"), reason))?;
    let name = server_name.unwrap_or_else(|| address.host.clone());
    let at_name = |reason: String| options::problem(&format!("{path}.server_name"), reason);
    check_host(&name).map_err(at_name)?;
    let name = ServerName::try_from(name).map_err(|error| at_name(error.to_string()))?;
    let gate = Arc::clone(&context.gate);
    let limit = probe::limit(device.timeout);
    let tls = Tls { gate, address, name, trust, seen: Seen::default(), config: None, limit };
    let named = |name: &str| whole(device).into_iter().map(|metric| Metric { name: name.into(), ..metric }).collect();
    let metrics: [Vec<Metric>; 2] = ["certificate", "trust"].map(named);
    Ok(Built { collector: Box::new(tls), metrics: metrics.concat() })
}

struct Tls {
    gate: Arc<Gate>,
    address: Address,
    name: ServerName<'static>,
    trust: Trust,
    seen: Seen,
    config: Option<Arc<ClientConfig>>,
    limit: Duration,
}

/// How far a probe came.
#[derive(Default)]
struct Reached {
    lookup_seconds: f64,
    used: Option<SocketAddr>,
    version: Option<&'static str>,
    cipher: Option<String>,
}

impl Reached {
    fn tell(&self, readings: &mut Readings) {
        probe::report_address(readings, CERTIFICATE, self.lookup_seconds, self.used);
        let mut info = |name: &str, labels: &[(&str, &str)]| {
            readings.sample(CERTIFICATE, Family::gauge(name, ""), labels, 1.0);
        };
        if let Some(version) = self.version {
            info("probe_tls_version_info", &[("version", version)]);
        }
        if let Some(cipher) = &self.cipher {
            info("probe_tls_cipher_info", &[("cipher", cipher)]);
        }
    }
}

impl Tls {
    async fn probe(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut reached = Reached::default();
        let outcome = probe::within(self.limit, self.shake_hands(&mut reached)).await;
        let seconds = watch.seconds();
        if let Err(failure) = &outcome
            && probe::was_not_tried(failure)
        {
            return Err(failure.clone());
        }
        let shown = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        if due.contains(&CERTIFICATE) {
            probe::report(readings, CERTIFICATE, outcome.is_ok(), seconds);
            reached.tell(readings);
            if let Some(shown) = &shown {
                tell(shown, readings);
            }
        }
        if due.contains(&TRUST) {
            let refusal = shown.and_then(|shown| shown.refusal);
            match (outcome, refusal) {
                (Ok(()), _) => readings.sample(TRUST, Family::gauge("probe_tls_trusted", ""), &[], 1.0),
                (Err(_), Some(why)) => readings.missing(TRUST, Failure::new(Reason::BadAnswer, why)),
                (Err(failure), None) => readings.missing(TRUST, failure),
            }
        }
        Ok(())
    }

    async fn shake_hands(&mut self, reached: &mut Reached) -> Result<(), Failure> {
        let config = match &self.config {
            Some(config) => Arc::clone(config),
            None => Arc::new(trust::client_config(self.trust, &self.seen)?),
        };
        self.config = Some(Arc::clone(&config));
        let watch = Stopwatch::start();
        let addresses = self.gate.resolve(Protocol::Tcp, &self.address.host, self.address.port).await?;
        reached.lookup_seconds = watch.seconds();
        let (used, stream) = probe::connect(&addresses, self.limit).await?;
        reached.used = Some(used);
        let shaken = TlsConnector::from(config).connect(self.name.clone(), stream).await;
        let stream = shaken.map_err(|error| Failure::new(Reason::BadAnswer, format!("TLS: {error}")))?;
        let (_, connection) = stream.get_ref();
        reached.version = connection.protocol_version().and_then(version);
        // IANA's name, which has no version in it.
        let suite = connection.negotiated_cipher_suite();
        reached.cipher = suite.and_then(|suite| Some(suite.suite().as_str()?.replacen("TLS13_", "TLS_", 1)));
        Ok(())
    }
}

impl Collector for Tls {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(due, readings))
    }
}

/// As blackbox_exporter spells it.
fn version(version: rustls::ProtocolVersion) -> Option<&'static str> {
    if version == rustls::ProtocolVersion::TLSv1_3 {
        return Some("TLS 1.3");
    }
    (version == rustls::ProtocolVersion::TLSv1_2).then_some("TLS 1.2")
}

/// What the certificate says.
fn tell(shown: &Shown, readings: &mut Readings) {
    if let Some(expiry) = shown.earliest_expiry {
        let family = Family::gauge("probe_ssl_earliest_cert_expiry", "seconds");
        readings.sample(CERTIFICATE, family, &[], expiry as f64);
    }
    let Ok((_, leaf)) = x509_parser::parse_x509_certificate(&shown.leaf) else { return };
    let fingerprint = data_encoding::HEXLOWER.encode(&shown.fingerprint);
    let (subject, issuer) = (cut(leaf.subject().to_string()), cut(leaf.issuer().to_string()));
    let names = cut(names(&leaf));
    let labels = [
        ("fingerprint_sha256", fingerprint.as_str()),
        ("issuer", &issuer),
        ("subject", &subject),
        ("subjectalternative", &names),
    ];
    readings.sample(CERTIFICATE, Family::gauge("probe_ssl_last_chain_info", ""), &labels, 1.0);
}

fn names(leaf: &X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else { return String::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(std::net::Ipv4Addr::from(four).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|it| std::net::Ipv6Addr::from(it).to_string()),
        },
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::URI(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    });
    names.collect::<Vec<_>>().join(",")
}

/// Whatever a certificate says is said in so many bytes, and without what would break a line.
fn cut(text: String) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    text.truncate(text.floor_char_boundary(LABEL_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::stage::{Stage, problem, raw_peer, tls_peer};
    use super::*;

    fn stage(port: u16, tls: &str) -> Stage {
        let device =
            format!("collector = \"tls\"\naddress = \"127.0.0.1:{port}\"\ntimeout = \"500ms\"\ntls = \"{tls}\"");
        Stage::new(&device, &[port]).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_is_told_with_its_end_its_names_and_the_version_of_tls() {
        let device = tls_peer("");
        for _ in 0..2 {
            let polled = stage(device.peer.port, &format!("pin:{}", device.pin)).poll_all().await;
            assert_eq!(polled.value("probe_success"), Some(1.0));
            assert_eq!(polled.value("probe_ssl_earliest_cert_expiry"), Some(device.expires as f64));
            assert_eq!(polled.labelled("probe_tls_version_info"), [("version=TLS 1.3".into(), 1.0)]);
            assert!(polled.labelled("probe_tls_cipher_info")[0].0.starts_with("cipher=TLS_AES_"));
            let info = &polled.labelled("probe_ssl_last_chain_info")[0].0;
            assert!(info.contains(&format!("fingerprint_sha256={}", device.pin)), "{info}");
            assert!(info.contains("subject=CN=") && info.contains("A device"), "{info}");
            assert!(info.ends_with("subjectalternative=device.lan,127.0.0.1"), "{info}");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_trusted_is_an_answer_and_is_told_too() {
        let device = tls_peer("");
        let polled = stage(device.peer.port, &format!("pin:{}", "ab".repeat(32))).poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_tls_trusted")), (Some(0.0), None));
        assert_eq!(polled.value("probe_ssl_earliest_cert_expiry"), Some(device.expires as f64));
        assert_eq!(polled.value("probe_tls_version_info"), None);
    }

    #[tokio::test]
    async fn why_there_is_no_trust_is_the_gap_of_a_metric_of_its_own() {
        let device = tls_peer("");
        for (tls, said) in
            [("verify", "is not trusted"), (&format!("pin:{}", "ab".repeat(32)), "another than the pinned")]
        {
            let polled = stage(device.peer.port, tls).poll_all().await;
            let (metric, why) = &polled.missing[0];
            assert_eq!((polled.missing.len(), metric.as_str(), why.reason), (1, "trust", Reason::BadAnswer));
            assert!(why.detail.contains(said) && why.detail.contains(&device.pin), "{why}");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let polled = stage(nobody, "verify").poll_all().await;
        assert_eq!((polled.missing[0].1.reason, polled.value("probe_success")), (Reason::Refused, Some(0.0)));
        let trusted = stage(device.peer.port, &format!("pin:{}", device.pin)).poll_all().await;
        assert_eq!((trusted.value("probe_tls_trusted"), trusted.missing.len()), (Some(1.0), 0));
    }

    #[tokio::test]
    async fn what_speaks_no_tls_or_says_nothing_is_an_answer_too() {
        let plain = raw_peer(|stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")));
        let polled = stage(plain.port, "verify").poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_ip_protocol")), (Some(0.0), Some(4.0)));
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let polled = stage(silent.local_addr().unwrap().port(), "verify").poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_ssl_earliest_cert_expiry")), (Some(0.0), None));
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"tls\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        check("address = \"nas.lan:0\"", "device.it.address");
        check("address = \"nas.lan\"\ntls = \"none\"", "device.it.tls: write \"verify\"");
        check("address = \"nas.lan\"\nserver_name = \"a b\"", "device.it.server_name");
        check("address = \"nas.lan\"\nstarttls = \"smtp\"", "device.it.starttls");
    }

    #[test]
    fn whatever_a_certificate_says_is_cut_and_breaks_no_line() {
        assert_eq!(cut("a\nb\u{7}".into()), "a\u{fffd}b\u{fffd}");
        assert_eq!(cut("ä".repeat(400)).len(), LABEL_BYTES_MAX);
    }
}
