//! Every parser of bytes that come from elsewhere, each as one function that takes any bytes.
//!
//! None of them may panic, hang, or hold much memory, and what is read must keep its promises. The fuzzer of `tests/fuzz`
//! and a test of every day run the same functions over the same corpus. Deliberately absent: what a library alone reads
//! before us, which is TLS, the WebSocket's frames, the answers of proxies, SQLite's pages and sled's; attacks on those
//! go through real sockets and files in the journeys.

mod device;
mod link;
mod session;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use satellite_agent::buffer;
use satellite_agent::buffer::stock::{HeldSpan, Mark};
use satellite_agent::collector::http::{path, read_document};
use satellite_agent::collector::prometheus::text::{LINE_BYTES_MAX, Parser};
use satellite_agent::collector::{self, Context};
use satellite_agent::config::last_good::LastGood;
use satellite_agent::credential::key::Key;
use satellite_agent::credential::keystore::{Identity, Keystore};
use satellite_agent::credential::verification_time::VerificationTime;
use satellite_agent::local::Request;
use satellite_agent::policy::address::{Network, effective, never};
use satellite_agent::policy::{Gate, Policy, Protocol, check_host};
use satellite_agent::recorder::notes::Notes;
use satellite_agent::scheduler::crontab::Crontab;
use satellite_agent::scheduler::timetable::Timetable;
use satellite_agent::secrets::Keyring;
use satellite_agent::uplink::proxy::Route;
use satellite_relay::authority::requested_key;
use satellite_relay::ingest::Tally;
use satellite_relay::ingest::watermark::{Span, Watermark};
use satellite_relay::registry::batches::{Content, Holding, ObjectSize};
use satellite_relay::registry::seal::Seal;
use satellite_relay::sink::archive::encode;
use satellite_relay::sink::archive::layout::{self, BatchId, Hour, Table};
use satellite_relay::sink::archive::manifest::Manifest;
use satellite_relay::sink::archive::reader::{Query, decode_gaps, decode_samples};
use satellite_relay::sink::{Batch, Origin};
use satellite_shared::clock::{Now, SystemClock};
use satellite_shared::config::{Document, Schedule};
use satellite_shared::enrolment::{ChallengeRequest, EnrolRequest, Enrolled, JoinCode, Problem, RecoverRequest};
use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::{DeviceName, Epoch, LeaseId, SatelliteId};
use satellite_shared::limits;
use satellite_shared::metric::{Kind, Series, is_metric_name};
use satellite_shared::ranges::{Overlap, Ranges};
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::block::{self, Body, ClockQuality, Decoder, Encoder, Group, Stamp};
use satellite_shared::wire::to_satellite::event_bytes_max;
use satellite_shared::wire::{ToRelay, ToSatellite};
use serde_json::Value;

/// Some moment.
const NOW_MS: i64 = 1_790_000_000_000;

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The name of its fuzz target and of its corpus.
    pub name: &'static str,
    /// Reads any bytes.
    pub read: fn(&[u8]),
    /// What a fuzzer begins with where no text can say it: made by the code that writes such bytes.
    pub made: fn() -> Vec<Vec<u8>>,
    /// How many times fewer mutations a test of every day can afford.
    pub dear: u32,
}

const fn target_of(name: &'static str, read: fn(&[u8]), made: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, read, made, dear: 1 }
}

/// All of them.
pub const ALL: &[Target] = &[
    target_of("to_satellite", to_satellite, Vec::new),
    target_of("to_relay", to_relay, Vec::new),
    target_of("frame", frame, frames),
    target_of("frame_payload", frame_payload, frames),
    target_of("config", config, Vec::new),
    target_of("join_code", join_code, join_codes),
    target_of("enrolment", enrolment, Vec::new),
    target_of("csr", csr, requests),
    target_of("page", page, Vec::new),
    target_of("json", json, Vec::new),
    target_of("crontab", crontab, Vec::new),
    target_of("policy", policy, Vec::new),
    target_of("host", host, Vec::new),
    target_of("notes", notes, made_notes),
    target_of("salvage", salvage, frames),
    target_of("keystore", keystore, Vec::new),
    target_of("archive", archive, objects),
    target_of("answer", device::answer, device::answers),
    target_of("ping", device::ping, device::packets),
    target_of("certificate", device::certificate, device::certificates),
    Target { dear: 50, ..target_of("machine", device::machine, device::machines) },
    Target { dear: 10, ..target_of("session", session::session, session::sessions) },
    target_of("link", link::link, link::links),
    target_of("state", state, states),
    target_of("rows", rows, made_rows),
    target_of("settings", settings, examples),
];

/// Where the corpus of a target is.
#[must_use]
pub fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// The target of this name.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    let found = ALL.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("no parser is called {name}"))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn to_satellite(bytes: &[u8]) {
    let Some(text) = text(bytes).filter(|text| text.len() <= event_bytes_max()) else { return };
    let Ok(event) = serde_json::from_str::<ToSatellite>(text) else { return };
    match &event {
        ToSatellite::Ack(ack) => ack.stored.iter().for_each(|stored| sound(&stored.ranges)),
        ToSatellite::Authenticated(welcome) => welcome.stored.iter().for_each(|stored| sound(&stored.ranges)),
        ToSatellite::Config(config) => drop(Document::parse(&config.document)),
        ToSatellite::Hello(_)
        | ToSatellite::Refused(_)
        | ToSatellite::Nack(_)
        | ToSatellite::Certificate(_)
        | ToSatellite::Heartbeat(_)
        | ToSatellite::Drain(_)
        | ToSatellite::Error(_) => {}
    }
    let again = serde_json::to_string(&event).expect("an event is written");
    assert_eq!(serde_json::from_str::<ToSatellite>(&again).expect("what was written is read"), event);
}

/// Ranges from a stranger keep the rules that ours do.
fn sound(ranges: &Ranges) {
    let all = ranges.as_slice();
    assert!(all.iter().all(|(first, last)| first <= last), "{all:?}");
    assert!(all.windows(2).all(|pair| pair[0].1 < pair[1].0.saturating_sub(1)), "{all:?}");
    assert_eq!(ranges.is_empty(), all.is_empty());
    assert!(all.iter().all(|(first, last)| ranges.overlap(*first, *last) == Overlap::Whole));
    assert_eq!(ranges.overlap(0, u64::MAX) == Overlap::None, all.is_empty());
}

fn to_relay(bytes: &[u8]) {
    let Some(text) = text(bytes).filter(|text| text.len() <= limits::EVENT_BYTES_MAX) else { return };
    let Ok(event) = serde_json::from_str::<ToRelay>(text) else { return };
    let again = serde_json::to_string(&event).expect("an event is written");
    assert_eq!(serde_json::from_str::<ToRelay>(&again).expect("what was written is read"), event);
}

fn frame(bytes: &[u8]) {
    assert!(block::frame_len(bytes).is_none_or(|len| len <= bytes.len()));
    let header = block::header(bytes);
    let Ok((decoded, body)) = Decoder::default().decode(bytes) else { return };
    assert_eq!(header, Ok(decoded));
    let stamp = Stamp {
        epoch: decoded.epoch,
        first_seq: decoded.first_seq,
        due_before: decoded.due_before,
        made: decoded.made,
        quality: decoded.quality,
    };
    let records = match &body {
        Body::Samples(groups) => groups.iter().map(|group| group.values.len()).sum(),
        Body::Gaps(gaps) => gaps.len(),
        Body::Series(series) => series.len(),
    };
    assert_eq!(u32::try_from(records), Ok(decoded.count));
    assert!(decoded.last_seq() >= decoded.first_seq && decoded.due_through() >= decoded.due);
    let again = Encoder::default().encode(stamp, &body);
    if again.len() <= limits::BLOCK_BYTES_MAX {
        let (header, read) = Decoder::default().decode(&again).expect("what was written is read");
        assert_eq!((header.count, format!("{read:?}")), (decoded.count, format!("{body:?}")));
    }
}

/// A frame whose length and checksum are right, whatever else is in it: without this no fuzzer gets behind them.
fn frame_payload(bytes: &[u8]) {
    if let Some(mended) = mended(bytes) {
        frame(&mended);
    }
}

/// The bytes as a frame with its magic, length and checksum; `None` where no frame has their length.
fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut mended = bytes.to_vec();
    if mended.len() < block::HEADER_BYTES || mended.len() > limits::BLOCK_BYTES_MAX {
        return None;
    }
    mended[..5].copy_from_slice(b"SATB\x01");
    let length = u32::try_from(mended.len() - block::HEADER_BYTES).unwrap_or(0);
    mended[8..12].copy_from_slice(&length.to_le_bytes());
    let mut sum = crc32fast::Hasher::new();
    sum.update(&mended[..12]);
    sum.update(&mended[16..]);
    mended[12..16].copy_from_slice(&sum.finalize().to_le_bytes());
    Some(mended)
}

fn epoch() -> Epoch {
    Epoch(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)
}

fn frames() -> Vec<Vec<u8>> {
    let device: DeviceName = "nas".parse().expect("a name");
    let series = Series {
        device: device.clone(),
        name: "node_load1".into(),
        kind: Kind::Gauge,
        unit: "seconds".into(),
        labels: vec![("cpu".into(), "0".into()), ("mode".into(), "idle".into())],
    };
    let gap = Gap {
        device: Some(device),
        metric: Some("power".into()),
        from_ms: 1_790_000_000_000,
        to_ms: 1_790_000_010_000,
        count: 2,
        reason: Reason::Timeout,
        detail: "no answer in 2 s".into(),
        lost: None,
    };
    let group =
        Group { series: vec![0, 1, 7], times_ms: vec![1_790_000_000_000, 1_790_000_010_000], values: vec![0.5; 6] };
    let many = Group {
        series: (0..40).collect(),
        times_ms: (0..20).map(|n| 1_790_000_000_000 + n * 1_000).collect(),
        values: (0..800).map(|n| f64::from(n) * 0.37).collect(),
    };
    let bodies = [
        Body::Series(vec![series]),
        Body::Samples(vec![group.clone()]),
        Body::Samples(vec![group, many]),
        Body::Gaps(vec![gap]),
    ];
    let made = Now { wall_ms: 1_790_000_000_000, mono_ms: 123_456 };
    let stamp = Stamp { epoch: epoch(), first_seq: 41, due_before: 40, made, quality: ClockQuality::Synchronised };
    bodies.iter().map(|body| Encoder::default().encode(stamp, body)).collect()
}

fn config(bytes: &[u8]) {
    static CONTEXT: OnceLock<Context> = OnceLock::new();
    let context = CONTEXT.get_or_init(|| {
        Context::new(Arc::new(Gate::new(Policy::default(), Arc::new(SystemClock))), Keyring::of([]), "/nonexistent")
    });
    let Some((_, document)) = text(bytes).and_then(|text| Document::parse_text(text).ok()) else { return };
    assert!(document.devices.len() + document.problems.len() <= 2 * limits::DEVICES_MAX);
    for device in &document.devices {
        assert!(device.timeout <= Duration::from_millis(limits::TIMEOUT_MS_MAX));
        let Some(kind) = collector::all().iter().find(|kind| kind.name == device.collector) else { continue };
        let Ok(built) = (kind.build)(device, context) else { continue };
        assert!(!built.metrics.is_empty());
        for metric in &built.metrics {
            let Ok(timetable) = Timetable::parse(&metric.schedule, device.name.as_str()) else { continue };
            let next_ms = timetable.next_after(NOW_MS, &chrono_tz::Europe::Berlin);
            assert!(next_ms.is_none_or(|next_ms| next_ms > NOW_MS));
        }
    }
}

fn join_code(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(code) = JoinCode::parse(text) {
        assert_eq!(JoinCode::parse(&code.to_line()), Ok(code));
    }
    for kind in [TokenKind::Lease, TokenKind::Satellite] {
        drop(Token::parse(kind, text));
    }
    drop(text.parse::<SatelliteId>());
    drop(text.parse::<LeaseId>());
    drop(text.parse::<DeviceName>());
    drop(serde_json::from_str::<Epoch>(text));
}

fn join_codes() -> Vec<Vec<u8>> {
    let code = JoinCode {
        relay: "https://relay.example.org:8443".into(),
        lease: LeaseId::from_bits([3; 10]),
        token: Token::from_bits(TokenKind::Lease, [5; 32]),
        ca_pin: "ab".repeat(32),
    };
    vec![code.to_line().into_bytes(), code.token.expose().as_bytes().to_vec(), code.lease.to_string().into_bytes()]
}

fn enrolment(bytes: &[u8]) {
    static KEY: OnceLock<Key> = OnceLock::new();
    if bytes.len() > limits::ENROLMENT_BYTES_MAX {
        return;
    }
    drop(serde_json::from_slice::<EnrolRequest>(bytes));
    drop(serde_json::from_slice::<ChallengeRequest>(bytes));
    drop(serde_json::from_slice::<RecoverRequest>(bytes));
    drop(serde_json::from_slice::<Problem>(bytes));
    if let Ok(answer) = serde_json::from_slice::<Enrolled>(bytes) {
        let key = KEY.get_or_init(|| Key::generate().expect("a key"));
        drop(Identity::accept(answer, key.clone(), "https://relay.example.org:8443", &"ab".repeat(32)));
    }
}

fn csr(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    drop(requested_key(text));
    // Without this a fuzzer sees little behind the letters of PEM.
    let pem = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n")
    );
    drop(requested_key(&pem));
}

fn requests() -> Vec<Vec<u8>> {
    let key = Key::generate().expect("a key");
    vec![key.request().expect("a request").into_bytes()]
}

fn page(bytes: &[u8]) {
    for is_openmetrics in [false, true] {
        let mut parser = Parser::new(is_openmetrics);
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| line.len() <= LINE_BYTES_MAX) {
            let read = parser.read(
                line,
                |_| true,
                |sample| {
                    assert!(is_metric_name(sample.name));
                    assert!(sample.labels.len() <= limits::LABELS_MAX);
                },
            );
            if read.is_err() {
                break;
            }
        }
        assert!(parser.is_complete() || is_openmetrics);
    }
}

/// A path on the first line, a document behind it.
fn json(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(path), Some(body)) = (parts.next().and_then(text), parts.next()) else { return };
    let Ok(path) = path::Path::parse(path) else { return };
    let Ok(document) = read_document(body) else { return };
    if let Ok(found) = path.numbers(&document) {
        assert!(found.len() <= 1_000 && (found.len() == 1 || !path.is_single()), "{found:?}");
        assert!(found.iter().all(|(index, _)| index.len() <= limits::NAME_BYTES_MAX));
    }
}

fn crontab(bytes: &[u8]) {
    let Some(text) = text(bytes).filter(|text| text.len() <= 200) else { return };
    let schedule = Schedule::Cron(text.to_owned());
    assert_eq!(Crontab::parse(text).is_ok(), Timetable::parse(&schedule, "nas").is_ok());
    let Ok(crontab) = Crontab::parse(text) else { return };
    let mut at_s = 1_790_000_000;
    for _ in 0..5 {
        let Some(next) = crontab.next_after(at_s, &chrono_tz::Europe::Berlin) else { return };
        assert!(next > at_s, "{next} is not after {at_s}");
        at_s = next;
    }
}

fn policy(bytes: &[u8]) {
    let Some(policy) = text(bytes).and_then(|text| Policy::parse(text).ok()) else { return };
    let metadata: IpAddr = [169, 254, 169, 254].into();
    for (ip, port) in [(metadata, 80), (IpAddr::from([255, 255, 255, 255]), 80), (IpAddr::from([0, 0, 0, 0]), 1)] {
        for protocol in [Protocol::Http, Protocol::Tcp, Protocol::Ping] {
            assert!(policy.permits(protocol, ip, port).is_err(), "{ip}");
        }
    }
    assert!(policy.requests_per_second_max() > 0);
}

fn host(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    drop(check_host(text));
    if let Ok(network) = Network::parse(text) {
        assert!(
            !network.contains([127, 0, 0, 1].into()) || text.ends_with("/0") || network.contains([126, 0, 0, 1].into())
        );
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let to = effective(ip);
        assert_eq!(effective(to), to, "what an address really is, it is");
        let open = Policy::parse("networks = [\"0.0.0.0/0\", \"::/0\"]").expect("a policy");
        assert!(never(to).is_none() || open.permits(Protocol::Tcp, ip, 80).is_err());
    }
}

fn notes(bytes: &[u8]) {
    if let Some(notes) = Notes::read(bytes) {
        assert!(Notes::read(&notes.write()).is_some());
    }
}

fn made_notes() -> Vec<Vec<u8>> {
    let notes = Notes { until_ms: 1_790_000_000_000, under_way: vec![], open: vec![] };
    vec![notes.write()]
}

fn salvage(bytes: &[u8]) {
    let Ok(mut file) = tempfile::tempfile() else { return };
    if file.write_all(bytes).is_ok() {
        drop(buffer::whole_frames(&file));
    }
}

fn keystore(bytes: &[u8]) {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let keystore = Keystore::new(dir.path());
        keystore.save(&satellite_agent::credential::keystore::Stored::default()).expect("a keystore");
        dir
    });
    let keystore = Keystore::new(dir.path());
    if std::fs::write(keystore.path(), bytes).is_ok() {
        drop(keystore.load());
    }
}

fn archive(bytes: &[u8]) {
    let query = Query { satellite: Some("st_a".into()), metric: None, since_ms: 0, limit: 100 };
    let all = Query { satellite: None, metric: None, since_ms: i64::MIN, limit: 100 };
    for query in [&query, &all] {
        drop(decode_samples(Bytes::copy_from_slice(bytes), query));
        drop(decode_gaps(Bytes::copy_from_slice(bytes), query));
    }
    drop(Manifest::read(&Bytes::copy_from_slice(bytes)));
    drop(serde_json::from_slice::<Value>(bytes));
}

/// Objects as the relay writes them, with what the batch holds in the footer of the first.
fn objects() -> Vec<Vec<u8>> {
    let device: DeviceName = "nas".parse().expect("a name");
    let labels = vec![("cpu".into(), "0".into())];
    let series = Series { device, name: "x".into(), kind: Kind::Gauge, unit: "seconds".into(), labels };
    let satellite = SatelliteId::from_bits([1; 10]);
    let mut batch = Batch::new(BatchId::new(NOW_MS, [0; 10]));
    let origin = Origin { satellite: &satellite, epoch: epoch(), first_seq: 1, count: 2, received_ms: NOW_MS };
    let group = Group { series: vec![0], times_ms: vec![NOW_MS, NOW_MS + 1_000], values: vec![1.5, f64::NAN] };
    batch.add_samples(&origin, vec![group], &HashMap::from([(0, Arc::new(series))])).expect("samples fit");
    let gap = Gap {
        device: None,
        metric: None,
        from_ms: NOW_MS,
        to_ms: NOW_MS + 1,
        count: 1,
        reason: Reason::Stopped,
        detail: String::new(),
        lost: None,
    };
    batch.add_gap(&origin, 3, gap, 1);
    let mut tally = Tally { stored: 2, ..Tally::default() };
    tally.cover(Span { first: 1, last: 3, due_before: 0, due_through: 3 });
    let manifest = Manifest::new("relay-1", &[Holding { satellite, epoch: epoch(), tally }]);
    let objects = encode(&batch, Some(manifest.to_text())).expect("a batch is written");
    objects.into_iter().map(|object| object.bytes.to_vec()).collect()
}

/// Files that either end keeps for itself: a disk may give back something else.
fn state(bytes: &[u8]) {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a directory")).path();
    for name in ["last-good.json", "expected.json", "last-good-time"] {
        if std::fs::write(dir.join(name), bytes).is_err() {
            return;
        }
    }
    let kept = LastGood::load(dir);
    drop(Document::parse(&kept.document()));
    let nas: DeviceName = "nas".parse().expect("a name");
    assert!(kept.expected(&nas, "cpu") == 1 || text(bytes).is_some_and(|text| text.contains("nas/cpu")));
    let time = VerificationTime::load(Arc::new(SystemClock), dir);
    assert!(time.now_ms() >= NOW_MS - 1_000_000_000_000);
    drop(Seal::parse(bytes));
    let Some(text) = text(bytes) else { return };
    drop(Mark::parse(text));
    // Without this no fuzzer gets behind the checksum.
    if let Some(mark) = Mark::parse(&format!("{:08x} {text}", crc32fast::hash(text.as_bytes()))) {
        assert!(mark.held.len() <= text.len());
    }
    drop(serde_json::from_str::<Request>(text));
}

fn states() -> Vec<Vec<u8>> {
    let span = HeldSpan {
        opening: 1,
        epoch: epoch(),
        first_seq: 1,
        due_before: 0,
        last_seq: 9,
        due_through: 9,
        from_ms: NOW_MS,
        to_ms: NOW_MS,
    };
    let mark = Mark { opening: 1, wall_ms: NOW_MS, held: vec![span] };
    let mark = serde_json::to_string(&mark).expect("a mark is written");
    let texts = [
        format!("{:08x} {mark}", crc32fast::hash(mark.as_bytes())),
        mark,
        "{\"version\": 4, \"device\": [{\"name\": \"nas\"}]}".into(),
        "{\"nas/cpu\": 80}".into(),
        format!("{NOW_MS}\n"),
        "{\"probe\": {\"device\": \"nas\"}}".into(),
    ];
    texts.map(String::into_bytes).to_vec()
}

/// Texts in the registry's rows, in the footers of objects, and the keys of a bucket that others write to.
fn rows(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    if let Ok(mut watermark) = serde_json::from_str::<Watermark>(text) {
        sound(&watermark.ranges());
        let whole = Span { first: 1, last: i64::MAX.unsigned_abs(), due_before: 0, due_through: 5 };
        let (before, added) = (watermark.covered(), watermark.insert(whole));
        assert!(before <= watermark.covered().max(before) && added <= watermark.covered().max(before));
    }
    if let Ok(tally) = serde_json::from_str::<Tally>(text) {
        assert!(!tally.is_balanced() || tally.waiting(tally.due) == tally.due - tally.accounted());
    }
    drop(serde_json::from_str::<Content>(text));
    if let Ok(manifest) = serde_json::from_str::<Manifest>(text) {
        drop(manifest.holdings());
    }
    for table in [Table::Samples, Table::Gaps] {
        if let Some(hour) = layout::filed_under(table, text) {
            let (folder, _) = text.rsplit_once('/').expect("a key has a folder");
            assert!(hour.start_ms() % 3_600_000 == 0 && layout::folder(table, hour).len() <= folder.len() + 40);
        }
    }
    if let Some((batch, _)) = layout::batch_of(text) {
        assert_eq!(batch.len(), 26);
    }
}

fn made_rows() -> Vec<Vec<u8>> {
    let mut tally = Tally { stored: 2, ..Tally::default() };
    tally.cover(Span { first: 1, last: 3, due_before: 0, due_through: 3 });
    tally.cover(Span { first: 9, last: 12, due_before: 8, due_through: 12 });
    let satellite = SatelliteId::from_bits([1; 10]);
    let holding = Holding { satellite, epoch: epoch(), tally: tally.clone() };
    let key = layout::key(Table::Samples, Hour::of(NOW_MS), &BatchId::new(NOW_MS, [7; 10]), 3);
    let content = Content { objects: vec![ObjectSize { key: key.clone(), bytes: 9 }], holds: vec![holding.clone()] };
    let written = [
        serde_json::to_string(&tally.watermark),
        serde_json::to_string(&tally),
        serde_json::to_string(&content),
        Ok(Manifest::new("relay-1", &[holding]).to_text()),
        Ok(key),
        Ok(layout::key(Table::Gaps, Hour::of(NOW_MS), &BatchId::new(NOW_MS, [7; 10]), 0)),
    ];
    written.into_iter().map(|text| text.expect("a row is written").into_bytes()).collect()
}

fn settings(bytes: &[u8]) {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().expect("a directory"));
    let path = dir.path().join("settings.toml");
    if std::fs::write(&path, bytes).is_err() {
        return;
    }
    if let Ok(settings) = satellite_agent::settings::Settings::load(Some(&path)) {
        let relay = "https://relay.example.org:8443".parse().expect("an address");
        drop(Route::to(&relay, &settings.proxy_settings()));
    }
    drop(satellite_relay::settings::Settings::load(Some(&path)));
}

/// The example files, as they are and with every setting in force.
fn examples() -> Vec<Vec<u8>> {
    let files = [
        include_str!("../../agent/satellite.example.toml"),
        include_str!("../../relay/relay.example.toml"),
        include_str!("../../agent/policy.example.toml"),
    ];
    let in_force = |text: &str| {
        let is_setting = |line: &str| line.starts_with("# ") && (line.contains(" = ") || line.contains("["));
        let lines = text.lines().map(|line| if is_setting(line) { &line[2..] } else { line });
        lines.collect::<Vec<_>>().join("\n")
    };
    files.iter().flat_map(|text| [(*text).to_owned(), in_force(text)]).map(String::into_bytes).collect()
}
