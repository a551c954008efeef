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
use satellite_shared::wire::to_relay::ConfigState;
use satellite_tests::hostile_relay::{HostileRelay, device, outcome};
use satellite_tests::journey;
use satellite_tests::netns::{Capture, End, cover, journey_inside};
use satellite_tests::relay::Relay;
use satellite_tests::resolver::Resolver;
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;
use serde_json::{Value, json};

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
        journey_inside("no_spelling_of_a_forbidden_address_gets_a_packet", spellings),
        journey_inside("a_name_that_changes_its_address_leads_nowhere_else", rebinding),
        journey_inside("a_configuration_that_keeps_changing_sweeps_no_network", churn),
    ])
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
