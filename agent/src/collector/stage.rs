//! Where collectors are tested: a device built from its configuration, polled against real sockets on loopback.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use satellite_shared::clock::SystemClock;
use satellite_shared::config::{Device, Document};
use satellite_shared::metric::Series;

use super::{Built, Context, Failure, Readings, kind_of, series_of_key};
use crate::policy::{Gate, Policy};
use crate::secrets::{FILE_NAME, Keyring};

/// A device that can be polled.
pub(crate) struct Stage {
    pub(crate) device: Device,
    pub(crate) built: Built,
}

/// What one poll gave.
pub(crate) struct Polled {
    pub(crate) samples: Vec<(Series, f64)>,
    pub(crate) missing: Vec<(String, Failure)>,
    pub(crate) failure: Option<Failure>,
}

fn build(device: &str, policy: &str, keyring: Keyring) -> Result<Stage, String> {
    let document = format!("[[device]]\nname = \"it\"\n{device}\n");
    let (_, document) = Document::parse_text(&document).map_err(|problem| problem.to_string())?;
    let Some(device) = document.devices.into_iter().next() else {
        return Err(document.problems[0].to_string());
    };
    let policy = Policy::parse(policy).map_err(|error| error.to_string())?;
    let gate = Arc::new(Gate::new(policy, Arc::new(SystemClock)));
    let context = Context::new(gate, keyring, "/");
    let kind = kind_of(&device).map_err(|problem| problem.to_string())?;
    let built = (kind.build)(&device, &context).map_err(|problem| problem.to_string())?;
    Ok(Stage { device, built })
}

/// What is wrong with a device.
pub(crate) fn problem(device: &str) -> String {
    build(device, "", Keyring::of([])).err().expect("a problem")
}

/// A keyring with one secret for HTTP with one host, as long as the directory is there.
pub(crate) fn keyring(name: &str, value: &str, host: &str) -> (tempfile::TempDir, Keyring) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let text = format!(
        "[{name}]\nhosts = [{host:?}]\nprotocols = [\"http\"]\npaths = [\"/\", \"/rpc?\"]\nvalue = {value:?}\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    (dir, Keyring::of([path]))
}

impl Stage {
    /// The device of this TOML, where these ports of loopback may be polled.
    pub(crate) fn new(device: &str, loopback_ports: &[u16]) -> Result<Self, String> {
        Self::with_policy(device, &format!("loopback_ports = {loopback_ports:?}"))
    }

    /// The device of this TOML under this policy.
    pub(crate) fn with_policy(device: &str, policy: &str) -> Result<Self, String> {
        Self::with_secrets(device, policy, Keyring::of([]))
    }

    /// The same with secrets.
    pub(crate) fn with_secrets(device: &str, policy: &str, keyring: Keyring) -> Result<Self, String> {
        build(device, policy, keyring)
    }

    pub(crate) async fn poll_all(&mut self) -> Polled {
        let due: Vec<usize> = (0..self.built.metrics.len()).collect();
        self.poll(&due).await
    }

    /// Polls as the frame does: no longer than the device's timeout.
    pub(crate) async fn poll(&mut self, due: &[usize]) -> Polled {
        let mut readings = Readings::default();
        let polling = self.built.collector.poll(due, &mut readings);
        let outcome = tokio::time::timeout(self.device.timeout, polling).await.expect("a collector ends by itself");
        let samples = readings.iter().map(|r| (series_of_key(&self.device.name, r.key).unwrap(), r.value)).collect();
        let missing = readings.failures().iter();
        let missing = missing.map(|(at, why)| (self.built.metrics[*at].name.clone(), why.clone())).collect();
        Polled { samples, missing, failure: outcome.err() }
    }
}

impl Polled {
    /// The value of the first series with this name.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.samples.iter().find(|(series, _)| series.name == name).map(|(_, value)| *value)
    }

    /// Each series of a name as `label=value,…` with its value.
    pub(crate) fn labelled(&self, name: &str) -> Vec<(String, f64)> {
        let text =
            |series: &Series| series.labels.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(",");
        self.samples.iter().filter(|(s, _)| s.name == name).map(|(s, value)| (text(s), *value)).collect()
    }
}

/// A device on loopback that answers each connection as the test says.
pub(crate) struct Peer {
    pub(crate) port: u16,
    pub(crate) visits: Arc<AtomicUsize>,
}

/// A device that does this with each connection.
pub(crate) fn raw_peer(serve: impl Fn(&mut TcpStream) + Send + 'static) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let visits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visits);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            serve(&mut stream.unwrap());
        }
    });
    Peer { port, visits }
}

/// Reads a request's head; `None` where none comes.
pub(crate) fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// A device that reads a request's head and then does this with the connection.
pub(crate) fn peer(answer: impl Fn(&str, &mut TcpStream) + Send + 'static) -> Peer {
    raw_peer(move |stream| {
        let head = read_head(stream).unwrap_or_default();
        answer(&head, stream);
    })
}

/// A device that always says this, and closes.
pub(crate) fn saying(answer: impl Into<Vec<u8>>) -> Peer {
    let answer = answer.into();
    peer(move |_, stream| drop(stream.write_all(&answer)))
}

/// A device that signs for itself.
pub(crate) struct TlsPeer {
    pub(crate) peer: Peer,
    /// The SHA-256 of its certificate.
    pub(crate) pin: String,
    /// When that ends, seconds since 1970.
    pub(crate) expires: i64,
}

/// Such a device, which reads a request's head and then says this. Its certificate is for `device.lan` and 127.0.0.1.
pub(crate) fn tls_peer(answer: impl Into<Vec<u8>>) -> TlsPeer {
    let answer = answer.into();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["device.lan".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "A device");
    let expires = params.not_after.unix_timestamp();
    let certificate = params.self_signed(&key).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.der());
    let pin = data_encoding::HEXLOWER.encode(digest.as_ref());
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let peer = raw_peer(move |stream| {
        let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::Stream::new(&mut tls, stream);
        if read_head(&mut tls).is_some() {
            drop(tls.write_all(&answer));
            tls.conn.send_close_notify();
            drop(tls.flush());
        }
    });
    TlsPeer { peer, pin, expires }
}
