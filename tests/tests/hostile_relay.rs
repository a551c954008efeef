//! A relay that turned against the house: it has the authority's keys and still reaches nothing that the policy forbids.
//!
//! Where packets count, the journey runs in a network of its own in which every address answers, and a capture sees
//! all of it. Everywhere the satellite stays alive and within its memory, what it polled goes on, and a good
//! configuration is applied again.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use satellite_shared::wire::ToSatellite;
use satellite_shared::wire::to_relay::ConfigState;
use satellite_tests::device::Device;
use satellite_tests::hostile_relay::{HostileRelay, HostileSession, device, hello, outcome};
use satellite_tests::journey::{self, journey, skipped};
use satellite_tests::memory;
use satellite_tests::netns::{Capture, End, cover, journey_inside};
use satellite_tests::relay::Relay;
use satellite_tests::resolver::Resolver;
use satellite_tests::satellite::Satellite;
use satellite_tests::{rounds, wait};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

/// The one device that may be polled in the network of the test, and its port.
const NAS: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 9);
const NAS_PORT: u16 = 8080;
const NAME_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 53);
/// How long anything may take that takes a moment: machines that test are slow.
const SOON: Duration = Duration::from_secs(120);
/// Nothing but the NAS, and so much traffic that no cap stands in for the policy.
const POLICY: &str = "networks = [\"192.168.1.9\"]\nports = [8080]\n\
                      requests_per_second_max = 10000\nnew_targets_per_hour_max = 100000\n";

fn main() -> ExitCode {
    journey::run(vec![
        journey_inside("no_spelling_of_a_forbidden_address_gets_a_packet", &[], spellings),
        journey_inside("a_name_that_changes_its_address_leads_nowhere_else", &[], rebinding),
        journey_inside("a_configuration_that_keeps_changing_sweeps_no_network", &[], churn),
        long_form("a_relay_that_says_absurd_things_hurts_only_its_own_session", absurdities),
    ])
}

/// A journey that takes minutes.
fn long_form(name: &str, run: fn(&Path) -> Result<()>) -> Trial {
    if rounds::is_long_form() {
        return journey(name, &[], run);
    }
    Trial::ignorable_test(name, || skipped("takes minutes: `cargo endure -- hostile-relay`"))
}

/// A satellite in the hands of a hostile relay, in a network of the test's own.
struct Scene {
    relay: Relay,
    satellite: Satellite,
    hostile: HostileRelay,
    capture: Capture,
    everywhere: Everywhere,
}

impl Scene {
    fn new(dir: &Path, policy: &str) -> Result<Self> {
        cover("/etc/resolv.conf", "nameserver 127.0.0.1\noptions attempts:1 timeout:2\n", dir)?;
        cover("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", dir)?;
        cover("/etc/nsswitch.conf", "hosts: files dns\n", dir)?;
        let mut relay = Relay::new(dir, "")?;
        relay.start()?;
        let mut satellite = Satellite::new(dir, "attic", &[])?;
        satellite.set_policy(policy)?;
        // What polls must not take a proxy from the environment. The way to the relay is TLS and takes no notice of these.
        for name in ["HTTP_PROXY", "http_proxy"] {
            satellite.set_environment(name, "http://198.51.100.7:3128");
        }
        let lease = relay.lease("attic", &[])?;
        satellite.enrol(&lease.join_code)?.success()?;
        let id = satellite.id()?;
        relay.kill()?;
        let hostile = HostileRelay::instead_of(&relay, &id)?;
        let everywhere = Everywhere::new()?;
        let capture = Capture::start()?;
        satellite.start()?;
        Ok(Self { relay, satellite, hostile, capture, everywhere })
    }

    /// Whether an end is the relay, the name server, or the one device.
    fn allowed(&self) -> Result<impl Fn(End) -> bool + use<>> {
        let loopback = [self.relay.session.port(), self.hostile.address()?.port(), NAME_SERVER.1];
        Ok(move |(ip, port): End| {
            // A ping has no port.
            let nas = ip == IpAddr::V4(NAS) && [NAS_PORT, 0].contains(&port);
            nas || (ip.is_loopback() && loopback.contains(&port))
        })
    }

    /// Everything that went since the start went to the relay, the name server or the one device, which was reached.
    fn only_the_allowed(&self) -> Result<()> {
        let packets = self.capture.only(self.allowed()?)?;
        ensure!(packets > 0, "the capture saw nothing at all");
        let reached = self.everywhere.reached();
        ensure!(reached == [SocketAddr::from((NAS, NAS_PORT))], "reached: {reached:?}");
        Ok(())
    }

    fn devices(&self) -> Result<Vec<Value>> {
        let status = self.satellite.status()?;
        Ok(status["devices"].as_array().context("no devices in the status")?.clone())
    }

    /// Waits until every device was polled so often, whatever came of it.
    fn wait_for_polls_of_all(&self, polls: u64) -> Result<Vec<Value>> {
        wait::until("every device is polled", SOON, || {
            let devices = self.devices()?;
            let tried = |device: &Value| {
                device["polls_ok"].as_u64().unwrap_or(0) + device["polls_failed"].as_u64().unwrap_or(0) >= polls
            };
            Ok((!devices.is_empty() && devices.iter().all(tried)).then_some(devices))
        })
    }
}

/// Answers at the NAS' port at whatever address, and remembers which was meant.
struct Everywhere {
    reached: Arc<Mutex<BTreeSet<SocketAddr>>>,
    answers: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Everywhere {
    fn new() -> Result<Self> {
        let listener = TcpListener::bind(("::", NAS_PORT))?;
        let all = Self { reached: Arc::default(), answers: Arc::default(), ended: Arc::default() };
        let (reached, answers, ended) = (Arc::clone(&all.reached), Arc::clone(&all.answers), Arc::clone(&all.ended));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (reached, answers) = (Arc::clone(&reached), Arc::clone(&answers));
                std::thread::spawn(move || stream.map(|stream| drop(serve(&stream, &reached, &answers))));
            }
        });
        Ok(all)
    }

    fn reached(&self) -> Vec<SocketAddr> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for Everywhere {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(TcpStream::connect((NAS, NAS_PORT)));
    }
}

fn serve(stream: &TcpStream, reached: &Mutex<BTreeSet<SocketAddr>>, answers: &AtomicU64) -> Result<()> {
    let meant = stream.local_addr()?;
    let meant = SocketAddr::new(meant.ip().to_canonical(), meant.port());
    reached.lock().unwrap_or_else(PoisonError::into_inner).insert(meant);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.take(64 << 10));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let answer = if request.contains("/away") {
        "HTTP/1.1 302 Found\r\nLocation: http://10.66.66.66:8080/\r\nContent-Length: 0\r\n\r\n".to_owned()
    } else {
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nup 1\n".to_owned()
    };
    let mut stream = stream;
    stream.write_all(answer.as_bytes())?;
    answers.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// An address in every spelling that some library somewhere reads.
fn spellings_of(v4: Ipv4Addr) -> Vec<String> {
    let [a, b, c, d] = v4.octets();
    let number = u32::from(v4);
    let (high, low) = (number >> 16, number & 0xffff);
    let mut all = vec![
        v4.to_string(),
        format!("{v4}."),
        number.to_string(),
        format!("0x{number:x}"),
        format!("0X{number:08X}"),
        format!("0{number:o}"),
        format!("{a}.{b}.{low}"),
        format!("{a}.{}", number & 0x00ff_ffff),
        format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
        format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
        format!("{a:03}.{b:03}.{c:03}.{d:03}"),
        format!("{a}.0x{b:x}.0{c:o}.{d}"),
        format!("{}.{b}.{c}.{d}", u32::from(a) + 256),
        format!("%{:02x}{}", v4.to_string().as_bytes()[0], &v4.to_string()[1..]),
        v4.to_string().chars().map(|c| if c == '.' { '。' } else { c }).collect(),
        v4.to_string().bytes().map(|b| char::from_u32(u32::from(b) + 0xfee0).unwrap_or('?')).collect(),
    ];
    let six = [
        format!("::ffff:{v4}"),
        format!("::ffff:{high:x}:{low:x}"),
        format!("::FFFF:{high:X}:{low:X}"),
        format!("0:0:0:0:0:ffff:{v4}"),
        format!("::ffff:0:{v4}"),
        format!("::{v4}"),
        format!("64:ff9b::{v4}"),
        format!("64:ff9b:1::{v4}"),
        format!("2002:{high:04x}:{low:04x}::1"),
        format!("2001:0:{high:04x}:{low:04x}::1"),
        format!("fe80::{v4}"),
    ];
    all.extend(six.iter().map(|text| format!("[{text}]")));
    all.extend(six.iter().map(|text| format!("[{text}%25lo]")));
    all.push(format!("{NAS}@{v4}"));
    all.push(format!("{NAS}:8080@{v4}"));
    all.push(format!("{v4}#@{NAS}"));
    all.push(format!("{v4}\\@{NAS}"));
    all.push(format!("{v4}\r\nHost: {NAS}"));
    all
}

/// One device a spelling and a collector.
fn spelled(targets: &[Ipv4Addr]) -> Result<Vec<Value>> {
    let mut devices = Vec::new();
    for spelling in targets.iter().flat_map(|target| spellings_of(*target)) {
        let bare = spelling.trim_start_matches('[').trim_end_matches(']');
        for (collector, more) in [
            ("http", json!({ "url": format!("http://{spelling}:8080/") })),
            ("prometheus", json!({ "url": format!("http://{spelling}:8080/metrics") })),
            ("tcp", json!({ "address": format!("{spelling}:8080") })),
            ("ping", json!({ "address": bare })),
        ] {
            devices.push(device(&format!("d{}", devices.len()), collector, &more)?);
        }
    }
    Ok(devices)
}

fn good_device() -> Result<Value> {
    device("nas", "prometheus", &json!({ "url": format!("http://{NAS}:{NAS_PORT}/metrics") }))
}

fn spellings(dir: &Path) -> Result<()> {
    let _names = Resolver::start(SocketAddr::from(NAME_SERVER), &[])?;
    let scene = Scene::new(dir, POLICY)?;
    let mut session = scene.hostile.welcome()?;
    // Public, this host, metadata, a neighbour, everyone; and the one that is open, which has one spelling only.
    let first = [[8, 8, 8, 8], [127, 0, 0, 1], [169, 254, 169, 254], [192, 168, 1, 10], [192, 168, 1, 9]];
    let second = [[10, 0, 0, 1], [0, 0, 0, 0], [255, 255, 255, 255], [224, 0, 0, 1], [100, 100, 100, 200]];
    for targets in [first, second] {
        let mut devices = spelled(&targets.map(Ipv4Addr::from))?;
        let all = devices.len();
        devices.push(good_device()?);
        let status = session.configure(json!({ "device": devices }))?;
        ensure!(status.state == ConfigState::Applied, "{status:?}");
        let tried = scene.wait_for_polls_of_all(1)?;
        ensure!(tried.len() < all, "{} of {all} devices were taken", tried.len());
    }
    for (name, url) in [
        ("away", format!("http://{NAS}:{NAS_PORT}/away")),
        ("file", "file:///etc/passwd".to_owned()),
        ("gopher", "gopher://10.0.0.1:8080/".to_owned()),
        ("named", format!("http://{NAS}:http/")),
        ("far", format!("http://{NAS}:99999/")),
        ("other", format!("http://{NAS}:8081/")),
    ] {
        session.configure(json!({ "device": [device(name, "http", &json!({ "url": url }))?, good_device()?] }))?;
        scene.wait_for_polls_of_all(2)?;
    }
    scene.only_the_allowed()?;
    ensure!(scene.everywhere.answers() > 0 && outcome(&scene.satellite.status()?, "nas")?.0 == "ok");
    Ok(())
}

fn rebinding(dir: &Path) -> Result<()> {
    let names = Resolver::start(
        SocketAddr::from(NAME_SERVER),
        &[
            ("open.test", &[&["192.168.1.9"]]),
            ("rebind.test", &[&["192.168.1.9"], &["8.8.8.8"], &["127.0.0.1"], &["169.254.169.254"]]),
            ("xn--bcher-kva.test", &[&["8.8.4.4"]]),
            ("both.test", &[&["8.8.8.8", "192.168.1.9", "169.254.169.254"]]),
            ("six.test", &[&["2002:c0a8:109::1", "64:ff9b::c0a8:109", "::ffff:8.8.8.8", "::192.168.1.9"]]),
            ("here.test", &[&["127.0.0.1", "::1", "0.0.0.0", "::"]]),
            ("metadata.test", &[&["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254"]]),
            ("many.test", &[&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"]]),
        ],
    )?;
    let scene = Scene::new(dir, POLICY)?;
    let mut session = scene.hostile.welcome()?;
    let hosts = ["open.test", "rebind.test", "both.test", "six.test", "here.test", "metadata.test", "many.test"];
    let spelled = ["REBIND.test", "rebind.test.", "localhost", "xn--bcher-kva.test"];
    let mut devices = Vec::new();
    for host in hosts.into_iter().chain(spelled) {
        for (collector, more) in [
            ("http", json!({ "url": format!("http://{host}:8080/") })),
            ("prometheus", json!({ "url": format!("http://{host}:8080/metrics") })),
            ("tcp", json!({ "address": format!("{host}:8080") })),
        ] {
            devices.push(device(&format!("d{}", devices.len()), collector, &more)?);
        }
    }
    devices[0]["name"] = json!("open");
    let status = session.configure(json!({ "device": devices }))?;
    ensure!(status.state == ConfigState::Applied && status.items.is_empty(), "{status:?}");
    wait::until_true("the name changes its address, ten times over", SOON, || Ok(names.asked("rebind.test") >= 80))?;
    scene.wait_for_polls_of_all(3)?;
    scene.only_the_allowed()?;
    ensure!(outcome(&scene.satellite.status()?, "open")?.0 == "ok");
    Ok(())
}

fn churn(dir: &Path) -> Result<()> {
    const NEW_TARGETS: usize = 7;
    let _names = Resolver::start(SocketAddr::from(NAME_SERVER), &[])?;
    let policy = format!("networks = [\"192.168.0.0/16\"]\nnew_targets_per_hour_max = {NEW_TARGETS}\n");
    let scene = Scene::new(dir, &policy)?;
    let mut session = scene.hostile.welcome()?;
    session.configure(json!({ "device": [good_device()?] }))?;
    scene.wait_for_polls_of_all(1)?;
    for round in 1..=30_u8 {
        let mut devices = vec![good_device()?];
        for (at, collector) in ["http", "tcp", "prometheus"].into_iter().enumerate() {
            let host = format!("192.168.{}.{}", 2 + at, round);
            let more = match collector {
                "tcp" => json!({ "address": format!("{host}:22") }),
                _ => json!({ "url": format!("http://{host}/") }),
            };
            devices.push(device(&format!("r{round}-{at}"), collector, &more)?);
        }
        let status = session.configure(json!({ "device": devices }))?;
        ensure!(status.state == ConfigState::Applied, "{status:?}");
        scene.wait_for_polls_of_all(1)?;
    }
    let allowed = scene.allowed()?;
    let flows = scene.capture.all()?.into_keys().filter(|flow| !allowed(flow.to) && !allowed(flow.from));
    // Of the two ends the one that listens has the lower port.
    let targets: BTreeSet<Option<End>> =
        flows.map(|flow| [flow.from, flow.to].into_iter().min_by_key(|end| end.1)).collect();
    ensure!(!targets.is_empty() && targets.len() < NEW_TARGETS, "{targets:?} beside the NAS");
    ensure!(outcome(&scene.satellite.status()?, "nas")?.0 == "ok");
    Ok(())
}

/// What the satellite's memory may grow by while it is told absurd things: a message of a megabyte stands in it as text,
/// as values and as what is made of them, for a moment.
const GROWTH_KIB_MAX: u64 = 48 << 10;

/// Says something to the satellite that no relay should.
type Attack = (&'static str, fn(&mut HostileSession) -> Result<()>);

const ATTACKS: [Attack; 19] = [
    ("a second greeting, for ever", |s| repeat(s, 20_000, &ToSatellite::Hello(hello()))),
    ("a welcome, for ever", |s| {
        let welcome = ToSatellite::Authenticated(s.authenticated());
        repeat(s, 2_000, &welcome)
    }),
    ("a welcome that names a thousand epochs, for ever", |s| {
        let epochs: Vec<Value> =
            (0..1_000).map(|n| json!({ "epoch": format!("{n:032x}"), "ranges": [[1, 9]] })).collect();
        let mut welcome = serde_json::to_value(ToSatellite::Authenticated(s.authenticated()))?;
        welcome["data"]["stored"] = json!(epochs);
        (0..100).try_for_each(|_| s.say_text(welcome.to_string()))
    }),
    ("acknowledgements of what never went", |s| {
        let ranges = json!([[9, 3], [0, u64::MAX], [u64::MAX, u64::MAX], [5, 5], [1, 2]]);
        (0..1_000_u64).try_for_each(|n| ack(s, &json!([{ "epoch": format!("{n:032x}"), "ranges": ranges }]), u64::MAX))
    }),
    ("an acknowledgement of fifty thousand ranges", |s| {
        let ranges: Vec<[u64; 2]> = (0..50_000).rev().map(|n| [n * 3, n * 3]).collect();
        (0..20).try_for_each(|_| ack(s, &json!([{ "epoch": format!("{:032x}", 7), "ranges": ranges }]), 0))
    }),
    ("numbers that are none", |s| {
        ["-1", "1e99", "18446744073709551616", "NaN", "\"7\"", "null"].into_iter().try_for_each(|number| {
            s.say_text(format!(r#"{{"event":"ACK","data":{{"stored":[],"credit_bytes":{number}}}}}"#))
        })
    }),
    ("refusals of blocks that never went", |s| {
        let nack = json!({"event": "NACK", "data": {"epoch": format!("{:032x}", 7), "first_seq": u64::MAX,
            "code": "conflict", "message": "x".repeat(10_000), "retry_after_s": u64::MAX}});
        (0..500).try_for_each(|_| s.say_text(nack.to_string()))
    }),
    ("certificates that nobody asked for", |s| {
        let certificate = json!({"event": "CERTIFICATE", "data": {"chain": "-----BEGIN CERTIFICATE-----",
            "ca_bundle": "x".repeat(100_000), "generation": u64::MAX, "not_after_ms": i64::MIN, "renew_after_ms": i64::MIN}});
        (0..200).try_for_each(|_| s.say_text(certificate.to_string()))
    }),
    ("complaints, for ever", |s| {
        let complaint = json!({"event": "ERROR", "data": {"code": "renewal", "message": "\u{1b}[2J".repeat(1_000)}});
        (0..500).try_for_each(|_| s.say_text(complaint.to_string()))
    }),
    ("events that there are not", |s| {
        (0..300).try_for_each(|n| s.say_text(format!(r#"{{"event":"EXEC{n}","data":"rm"}}"#)))
    }),
    ("JSON that is deep", |s| s.say_text("[".repeat(400_000))),
    ("JSON that is wide", |s| {
        s.say_text(format!(
            r#"{{"event":"CONFIG","data":{{"version":7,"document":{{"device":[{}0]}}}}}}"#,
            "0,".repeat(200_000)
        ))
    }),
    ("frames that are nobody's", |s| (0..200).try_for_each(|_| s.send(Message::binary(vec![0x53; 60_000])))),
    ("a text of ten megabytes", |s| s.say_text("x".repeat(10 << 20))),
    ("a frame of ten megabytes", |s| s.send(Message::binary(vec![0; 10 << 20]))),
    ("pings, for ever", |s| (0..20_000).try_for_each(|_| s.send(Message::Ping(vec![1; 125].into())))),
    ("a configuration of ten megabytes", |s| {
        let devices = vec![json!({"name": "x", "collector": "http", "url": "http://10.0.0.1/"}); 150_000];
        s.say_text(json!({"event": "CONFIG", "data": {"version": 9, "document": {"device": devices}}}).to_string())
    }),
    ("a refusal until the end of time", |s| {
        s.say_text(r#"{"event":"REFUSED","data":{"code":"overloaded","message":"later","retry_after_s":0}}"#)
    }),
    ("farewells, for ever", |s| (0..500).try_for_each(|_| s.drain())),
];

fn repeat(session: &mut HostileSession, times: usize, event: &ToSatellite) -> Result<()> {
    let text = serde_json::to_string(event)?;
    (0..times).try_for_each(|_| session.say_text(text.clone()))
}

fn ack(session: &mut HostileSession, stored: &Value, credit: u64) -> Result<()> {
    session.say_text(json!({"event": "ACK", "data": {"stored": stored, "credit_bytes": credit}}).to_string())
}

/// Configurations that no house has: each is answered, and none stops what was there.
fn absurd_documents(good: &Value) -> Vec<(&'static str, Value)> {
    let many = |count: usize, make: fn(usize) -> Value| -> Vec<Value> { (0..count).map(make).collect() };
    let with_good = |mut devices: Vec<Value>| {
        devices.push(good.clone());
        json!({ "device": devices })
    };
    let nested = (0..100).fold(json!(1), |inner, _| json!([inner]));
    vec![
        (
            "intervals of a millisecond",
            with_good(many(
                50,
                |n| json!({"name": format!("f{n}"), "collector": "ping", "address": "10.0.0.1", "every": "1ms"}),
            )),
        ),
        (
            "a thousand devices with one name",
            with_good(many(
                900,
                |_| json!({"name": "same", "collector": "ping", "address": "10.0.0.1", "paused": true}),
            )),
        ),
        ("too many devices", with_good(many(3_000, |n| json!({"name": format!("m{n}"), "collector": "x"})))),
        (
            "nine thousand keys",
            with_good(vec![
                json!({"name": "keys", "collector": "ping", "address": "10.0.0.1",
            "a": (0..9_000).map(|n| (format!("k{n}"), json!(n))).collect::<serde_json::Map<_, _>>()}),
                Value::Object(
                    (0..9_000)
                        .map(|n| (format!("k{n}"), json!(n)))
                        .chain([("name".to_owned(), json!("flat")), ("collector".to_owned(), json!("ping"))])
                        .collect(),
                ),
            ]),
        ),
        (
            "names with control characters",
            with_good(many(
                20,
                |n| json!({"name": format!("\u{1b}[2J\n{n}"), "collector": "ping\u{0}", "address": "\r\n"}),
            )),
        ),
        ("deep values", with_good(vec![json!({"name": "deep", "collector": "ping", "address": nested})])),
        (
            "paths that cost",
            with_good(many(100, |n| {
                json!({"name": format!("p{n}"), "collector": "http", "url": "http://10.0.0.1/", "paused": true, "metric": [
            {"name": "a", "path": "$..*..*..*"}, {"name": "b", "path": "$[?match(@.a, '(a*)*$')]"}, {"name": "c", "path": format!("$[?{}", "(".repeat(400))}]})
            })),
        ),
        (
            "secrets that it may not use",
            with_good(many(5, |n| {
                json!({"name": format!("s{n}"), "collector": "http", "url": "http://10.0.0.1/",
            "headers": {(["Authorization", "cookie", "X-Api-Key", "proxy-authorization", "X-AUTH-TOKEN"][n]): "secret:nas"}, "paused": true})
            })),
        ),
        (
            "files and commands",
            with_good(vec![
                json!({"name": "f", "collector": "host", "root": "/etc"}),
                json!({"name": "g", "collector": "exec", "command": "id"}),
                json!({"name": "h", "collector": "http", "url": "file:///etc/shadow"}),
                json!({"name": "../../i", "collector": "host"}),
            ]),
        ),
        ("no document", json!([1, 2, 3])),
        ("no devices", json!({"device": "all", "exec": "id"})),
    ]
}

fn absurdities(dir: &Path) -> Result<()> {
    let good = Device::new("good")?;
    let mut relay = Relay::new(dir, "")?;
    relay.start()?;
    let mut satellite = Satellite::new(dir, "attic", &[good.port()])?;
    satellite.enrol(&relay.lease("attic", &[])?.join_code)?.success()?;
    let id = satellite.id()?;
    relay.kill()?;
    let hostile = HostileRelay::instead_of(&relay, &id)?;
    satellite.start()?;
    let process = satellite.process_id().context("the satellite runs")?;
    let url = format!("http://127.0.0.1:{}/metrics", good.port());
    let document = device("good", "prometheus", &json!({ "url": url }))?;
    let mut session = hostile.welcome()?;
    let applied = session.configure(json!({ "device": [document] }))?;
    ensure!(applied.state == ConfigState::Applied, "{applied:?}");
    wait::until_true("the device is polled", SOON, || Ok(good.answers() > 1))?;
    let before = memory::of(process)?;
    memory::forget_peak(process)?;
    let goes_on = |what: &str| {
        let polled = good.answers();
        wait::until_true(&format!("the device is polled under {what}"), SOON, || Ok(good.answers() > polled + 1))
    };
    for (what, document) in absurd_documents(&document) {
        session.configure(document).with_context(|| what.to_owned())?;
        goes_on(what)?;
    }
    for (what, attack) in ATTACKS {
        // Being cut off by the satellite is what an attack ends with.
        drop(attack(&mut session));
        goes_on(what)?;
        satellite.check_running()?;
        drop(session.drain());
        session = hostile.welcome().with_context(|| format!("after {what}"))?;
    }
    let grown_kib = memory::of(process)?.peak_kib.saturating_sub(before.rss_kib);
    ensure!(grown_kib < GROWTH_KIB_MAX, "the satellite grew by {grown_kib} KiB");
    let applied = session.configure(json!({ "device": [document, device("late", "tcp", &json!({ "address": format!("127.0.0.1:{}", good.port()) }))?] }))?;
    ensure!(applied.state == ConfigState::Applied && applied.items.is_empty(), "{applied:?}");
    wait::until_true("what is new is polled", SOON, || Ok(outcome(&satellite.status()?, "late")?.0 == "ok"))
}
