//! What devices say: answers over HTTP, ICMP packets, certificates; and what a machine's own files say.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use satellite_agent::collector::{self, Readings, http, prometheus};
use satellite_agent::credential::pin::{Pin as KeyPin, PinVerifier, bundle_verifier};
use satellite_agent::policy::{Gate, Policy};
use satellite_agent::secrets::Keyring;
use satellite_relay::session::handshake::Presented;
use satellite_shared::clock::SystemClock;
use satellite_shared::config::Document;
use socket2::Type;
use surge_ping::{Icmpv4Packet, Icmpv6Packet};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a page of an exporter may give: so many samples fit a poll.
const SAMPLES_MAX: usize = 50_000;
/// Files of one machine.
const FILES_MAX: usize = 40;

/// A device that says this once it is asked, in pieces of so many bytes.
struct Saying {
    bytes: Vec<u8>,
    said: usize,
    piece: usize,
    asked: bool,
    waiting: Option<Waker>,
}

impl AsyncRead for Saying {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if !self.asked {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let end = self.bytes.len().min(self.said + self.piece.min(buf.remaining()));
        buf.put_slice(&self.bytes[self.said..end]);
        self.said = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Saying {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.asked = true;
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// The answer to a request; its first byte says in pieces of how many bytes it comes.
pub(super) fn answer(bytes: &[u8]) {
    let Some((piece, said)) = bytes.split_first() else { return };
    let saying = || {
        let piece = usize::from(*piece).max(1);
        Saying { bytes: said.to_vec(), said: 0, piece, asked: false, waiting: None }
    };
    runtime().block_on(async {
        let plain = http::read_answer(saying()).await;
        assert!(plain.is_err() || said.trim_ascii_start().starts_with(b"HTTP/1."));
        if let Ok(body) = plain {
            drop(http::read_document(&body));
        }
        let mut readings = Readings::default();
        if let Ok(scraped) = prometheus::read_page(saying(), &mut readings).await {
            assert!(readings.len() <= scraped as usize && readings.len() <= SAMPLES_MAX);
        }
    });
}

pub(super) fn answers() -> Vec<Vec<u8>> {
    let json = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 19\r\n\r\n{\"power\": [1, 2.5]}";
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n\
                1b\r\n# TYPE up gauge\nup{a=\"b\"} 1\r\nc\r\n\nload1 0.25\n\r\n0\r\nX-Trailer: t\r\n\r\n";
    let openmetrics = "HTTP/1.0 200 OK\nContent-Type: application/openmetrics-text; version=1.0.0\n\nup 1\n# EOF\n";
    let gone = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 301 Moved\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n";
    let all = [json, page, openmetrics, gone];
    all.iter().zip([7, 1, 200, 3]).map(|(text, piece)| [&[piece], text.as_bytes()].concat()).collect()
}

/// An ICMP packet as the kernel hands it over.
pub(super) fn ping(bytes: &[u8]) {
    let (us, them) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    drop(Icmpv4Packet::decode(bytes, Type::DGRAM, them, us));
    if let Ok(packet) = Icmpv4Packet::decode(bytes, Type::RAW, them, us) {
        assert!(packet.get_size() <= bytes.len());
    }
    drop(Icmpv6Packet::decode(bytes, Ipv6Addr::LOCALHOST));
}

pub(super) fn packets() -> Vec<Vec<u8>> {
    let payload = [0x53; 56];
    let reply = [&[0, 0, 0, 0, 0x12, 0x34, 0, 7][..], &payload].concat();
    let header = |length: usize| {
        let length = u16::try_from(length).unwrap_or(0).to_be_bytes();
        [&[0x45, 0][..], &length, &[0, 0, 0, 0, 64, 1, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]].concat()
    };
    let raw = [header(84), reply.clone()].concat();
    let quoted = [&[11, 0, 0, 0, 0, 0, 0, 0][..], &header(28), &[8, 0, 0, 0, 0x12, 0x34, 0, 7]].concat();
    let unreachable = [header(20 + quoted.len()), quoted.clone()].concat();
    let reply6 = [&[129, 0, 0, 0, 0x12, 0x34, 0, 7][..], &payload].concat();
    let mut quoted6 = vec![3, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 8, 0, 64];
    quoted6.extend([0; 32]);
    // A header between the two: hop-by-hop options.
    quoted6.extend([58, 0, 1, 4, 0, 0, 0, 0, 128, 0, 0, 0, 0x12, 0x34, 0, 7]);
    vec![reply, raw, quoted, unreachable, reply6, quoted6]
}

/// A certificate that somebody shows: a device, a relay, a satellite.
pub(super) fn certificate(bytes: &[u8]) {
    static VERIFIERS: OnceLock<(KeyPin, PinVerifier)> = OnceLock::new();
    let (pin, verifier) = VERIFIERS.get_or_init(|| {
        let pin = made_certificate().and_then(|der| KeyPin::of(&der.into())).expect("a certificate has a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        (pin, PinVerifier::new(pin, vec![], provider))
    });
    let der = CertificateDer::from(bytes);
    if let Ok(presented) = Presented::read(Some(std::slice::from_ref(&der))) {
        assert!(presented.serial_hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
        drop(presented.unknown());
    }
    let name = ServerName::try_from("relay.example.org").expect("a name");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_790_000_000));
    let verified = verifier.verify_server_cert(&der, std::slice::from_ref(&der), &name, &[], now);
    assert!(verified.is_err() || KeyPin::of(&der) == Some(*pin), "a certificate with another key was taken");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    if let Ok(verifier) = bundle_verifier(&[der.clone().into_owned()], provider) {
        drop(verifier.verify_server_cert(&der, &[], &name, &[], now));
    }
}

fn made_certificate() -> Option<Vec<u8>> {
    static MADE: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    MADE.get_or_init(|| {
        let key = rcgen::KeyPair::generate().ok()?;
        let params = rcgen::CertificateParams::new(vec!["relay.example.org".to_owned()]).ok()?;
        Some(params.self_signed(&key).ok()?.der().to_vec())
    })
    .clone()
}

pub(super) fn certificates() -> Vec<Vec<u8>> {
    made_certificate().into_iter().collect()
}

/// The files of a machine, each behind a line with its path: what the kernel and its drivers tell, and what people who
/// name discs, interfaces and sensors let them tell.
pub(super) fn machine(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(root) = tempfile::tempdir() else { return };
    for file in text.split("\n== ").skip(1).take(FILES_MAX) {
        let (path, content) = file.split_once('\n').unwrap_or((file, ""));
        let Some(path) = below(root.path(), path) else { continue };
        if path.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok()) {
            // A path that is a folder already, or a name that is too long: then it is not there.
            drop(fs::write(path, content));
        }
    }
    let gate = Arc::new(Gate::new(Policy::default(), Arc::new(SystemClock)));
    let context = collector::Context::new(gate, Keyring::of([]), root.path());
    let host = "[[device]]\nname = \"it\"\ncollector = \"host\"\nevery = \"10s\"\n";
    let (_, document) = Document::parse_text(host).expect("a document");
    let Ok(mut built) = (collector::host::KIND.build)(&document.devices[0], &context) else { return };
    let due: Vec<usize> = (0..built.metrics.len()).collect();
    for _ in 0..2 {
        let mut readings = Readings::default();
        runtime().block_on(built.collector.poll(&due, &mut readings)).expect("a host is polled part by part");
        assert!(readings.iter().all(|reading| !reading.value.is_nan() || !bytes.is_empty()));
    }
}

/// The path below the root; `None` where it would lead out.
fn below(root: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && path.as_os_str().len() < 200 && path.components().count() < 12).then(|| root.join(path))
}

/// Each file of the fixture alone, so that a fuzzer has small ones.
pub(super) fn machines() -> Vec<Vec<u8>> {
    let fixture = include_str!("../../../agent/src/collector/host/fixtures/server.txt");
    let files: Vec<&str> = fixture.split("\n== ").skip(1).filter(|file| !file.contains(" -> ")).collect();
    files.chunks(8).map(|files| format!("\n== {}", files.join("\n== ")).into_bytes()).collect()
}
