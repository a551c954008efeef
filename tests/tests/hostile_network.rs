//! Whoever reaches the relay's two doors and is no satellite: stalls, floods and nonsense are closed in time, and the
//! satellite beside them does not notice.
//!
//! The strangers come from another address of this machine, straight to the doors, so that the bounds by address count
//! them and not the satellite.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use satellite_shared::wire::version;
use satellite_tests::device::Device;
use satellite_tests::house::House;
use satellite_tests::impostor::{Impostor, Tls, connect, stolen_identity};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::wait::{self, Deadline};
use serde_json::Value;

/// Where the strangers come from.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A door closes after ten seconds; a machine that tests is late.
const CLOSED_WITHIN: Duration = Duration::from_secs(45);
/// Between two drops of what drips.
const DROP: Duration = Duration::from_millis(200);
/// What the default settings let one address hold at each door.
const PER_ADDRESS_MAX: usize = 200;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("who_stalls_at_a_door_is_sent_away_within_seconds", PYTHON, stalls),
        journey("what_is_no_tls_no_http_or_no_websocket_is_refused", PYTHON, nonsense),
        journey("thousands_of_connections_from_one_address_are_bounded_and_keep_nobody_out", PYTHON, crowds),
        journey("who_asks_and_never_reads_is_sent_away", PYTHON, slow_readers),
    ])
}

/// A house that does its work, and what a stranger has: an identity to come through TLS with.
struct Scene {
    house: House,
    plug: Device,
    identity: Value,
    web: u16,
    satellites: u16,
}

impl Scene {
    fn new(dir: &Path) -> Result<Self> {
        let plug = Device::new("plug")?;
        let house = House::new(dir, &[&plug])?;
        house.configure(&plug.as_http("1s"))?;
        house.wait_for_polls(&plug, 2)?;
        let identity = stolen_identity(&house.satellite.state_dir())?;
        let (web, satellites) = house.relay.doors()?;
        Ok(Self { house, plug, identity, web, satellites })
    }

    /// TLS at a door, as somebody who may have it.
    fn tls(&self, port: u16) -> Result<Tls> {
        let impostor = if port == self.web {
            Impostor::without_certificate(&self.identity)?
        } else {
            Impostor::with_identity(&self.identity)?
        };
        let mut tls = impostor.tls_from(STRANGER, port)?;
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(tls)
    }

    /// At the satellites' door after the upgrade and the greeting.
    fn upgraded(&self) -> Result<Tls> {
        let mut tls = self.tls(self.satellites)?;
        tls.write_all(UPGRADE.as_bytes())?;
        let mut said = Vec::new();
        while !said.windows(5).any(|window| window == b"HELLO") {
            let mut chunk = [0; 4096];
            let read = tls.read(&mut chunk)?;
            ensure!(read > 0, "no greeting but {:?}", String::from_utf8_lossy(&said));
            said.extend_from_slice(&chunk[..read]);
        }
        Ok(tls)
    }

    /// The satellite's link never broke, and nothing of its work is missing.
    fn ends_well(mut self, connections_before: u64) -> Result<()> {
        let connections = self.house.relay.session.accepted();
        ensure!(connections == connections_before, "the satellite had to connect again: {connections}");
        self.house.wait_for_polls(&self.plug, 2)?;
        self.house.finish(&[&self.plug])?;
        Ok(())
    }
}

/// Reads until the other side closes.
fn ends(stream: &mut impl Read, tcp: &TcpStream, within: Duration) -> Result<Vec<u8>> {
    let deadline = Deadline::after(within);
    tcp.set_read_timeout(Some(DROP))?;
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while !deadline.has_passed() {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(all),
            Ok(read) => all.extend_from_slice(&chunk[..read]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return Ok(all),
        }
    }
    bail!("still open after {} s; it said {:?}", within.as_secs(), String::from_utf8_lossy(&all))
}

fn tls_ends(mut tls: Tls) -> Result<Vec<u8>> {
    let tcp = tls.sock.try_clone()?;
    ends(&mut tls, &tcp, CLOSED_WITHIN)
}

/// Says this byte by byte until the other side has had enough.
fn drips(stream: &mut impl Write, text: &[u8]) -> Result<()> {
    let deadline = Deadline::after(CLOSED_WITHIN);
    for byte in text.iter().cycle() {
        if stream.write_all(&[*byte]).and_then(|()| stream.flush()).is_err() {
            return Ok(());
        }
        ensure!(!deadline.has_passed(), "it may drip for ever");
        std::thread::sleep(DROP);
    }
    Ok(())
}

const UPGRADE: &str = "GET /v1/satellite HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Protocol: satellite.v1\r\n\r\n";

type Trouble<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

/// All at once, each to its end.
fn all_at_once(troubles: Vec<(String, Trouble<'_>)>) -> Result<()> {
    std::thread::scope(|scope| {
        let running: Vec<_> = troubles.into_iter().map(|(what, act)| (what, scope.spawn(act))).collect();
        for (what, thread) in running {
            match thread.join() {
                Ok(done) => done.with_context(|| what)?,
                Err(_) => bail!("{what}: panicked"),
            }
        }
        Ok(())
    })
}

fn stalls(dir: &Path) -> Result<()> {
    assert!(UPGRADE.contains(version::PATH) && UPGRADE.contains(version::SUBPROTOCOL));
    let scene = Scene::new(dir)?;
    let connections = scene.house.relay.session.accepted();
    let mut troubles = Vec::new();
    for (door, port) in [("web", scene.web), ("satellites", scene.satellites)] {
        let before_tls = before_tls(port).into_iter();
        let stalls = before_tls.chain(under_tls(&scene, port));
        troubles.extend(stalls.map(|(what, act)| (format!("{what} at the {door} door"), act)));
    }
    troubles.extend(after_an_upgrade(&scene));
    all_at_once(troubles)?;
    scene.ends_well(connections)
}

fn before_tls(port: u16) -> Vec<(String, Trouble<'static>)> {
    let mut troubles: Vec<(String, Trouble<'_>)> = Vec::new();
    for n in 0..20 {
        let silence = Box::new(move || {
            let mut tcp = connect(STRANGER, port)?;
            let clone = tcp.try_clone()?;
            ends(&mut tcp, &clone, CLOSED_WITHIN).map(drop)
        });
        troubles.push((format!("silence {n}"), silence));
    }
    let half = Box::new(move || {
        let mut tcp = connect(STRANGER, port)?;
        tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1])?;
        let clone = tcp.try_clone()?;
        ends(&mut tcp, &clone, CLOSED_WITHIN).map(drop)
    });
    troubles.push(("half a greeting".into(), half));
    // A record of 512 bytes, a handshake message of 508: valid for as long as it lasts.
    let drip = Box::new(move || {
        let mut tcp = connect(STRANGER, port)?;
        tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])?;
        drips(&mut tcp, &[0x20])
    });
    troubles.push(("a greeting that drips".into(), drip));
    troubles
}

fn under_tls(scene: &Scene, port: u16) -> Vec<(String, Trouble<'_>)> {
    let silence = Box::new(move || tls_ends(scene.tls(port)?).map(drop));
    let drip = Box::new(move || drips(&mut scene.tls(port)?, b"GET / HTTP/1.1\r\nX: y\r\n"));
    let half = Box::new(move || {
        let mut tls = scene.tls(port)?;
        tls.write_all(&UPGRADE.as_bytes()[..60])?;
        tls_ends(tls).map(drop)
    });
    let mut troubles: Vec<(String, Trouble<'_>)> = vec![
        ("TLS and then silence".into(), silence),
        ("a head that drips".into(), drip),
        ("half a head".into(), half),
    ];
    if port == scene.web {
        let body = Box::new(move || {
            let mut tls = scene.tls(port)?;
            tls.write_all(b"POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")?;
            let said = tls_ends(tls)?;
            let said = String::from_utf8_lossy(&said);
            ensure!(said.contains(" 408 ") || said.is_empty(), "{said}");
            Ok(())
        });
        troubles.push(("a body that does not come".into(), body));
    }
    troubles
}

fn after_an_upgrade(scene: &Scene) -> Vec<(String, Trouble<'_>)> {
    let silence = Box::new(move || {
        let said = tls_ends(scene.upgraded()?)?;
        let said = String::from_utf8_lossy(&said);
        ensure!(said.contains("no AUTHENTICATE within"), "{said}");
        Ok(())
    });
    // Pings are signs of life, and no reason to be waited for.
    let pings = Box::new(move || drips_frames(scene.upgraded()?, &[0x89, 0x80, 0, 0, 0, 0]));
    let fragments = Box::new(move || {
        let mut tls = scene.upgraded()?;
        tls.write_all(&[0x01, 0x80, 0, 0, 0, 0])?;
        drips_frames(tls, &[0x00, 0x81, 0, 0, 0, 0, b'{'])
    });
    let frame = Box::new(move || {
        let mut tls = scene.upgraded()?;
        tls.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        drips(&mut tls, &[0])
    });
    vec![
        ("an upgrade and then silence".into(), silence),
        ("pings for ever".into(), pings),
        ("fragments for ever".into(), fragments),
        ("a frame that drips".into(), frame),
    ]
}

fn drips_frames(mut tls: Tls, frame: &[u8]) -> Result<()> {
    let deadline = Deadline::after(CLOSED_WITHIN);
    while tls.write_all(frame).and_then(|()| tls.flush()).is_ok() {
        ensure!(!deadline.has_passed(), "it may go on for ever");
        std::thread::sleep(DROP);
    }
    Ok(())
}

fn nonsense(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let connections = scene.house.relay.session.accepted();
    for (door, port) in [("web", scene.web), ("satellites", scene.satellites)] {
        no_tls(port).with_context(|| format!("at the {door} door"))?;
        old_tls(&scene.identity, port).with_context(|| format!("TLS 1.2 at the {door} door"))?;
    }
    let giant_head = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many_heads = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: y\r\n".repeat(500));
    let giant_body = format!("POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", u64::MAX);
    let origin = UPGRADE.replace("Host: localhost", "Host: localhost\r\nOrigin: https://example.org");
    let elsewhere = UPGRADE.replace("/v1/satellite", "/v1/satellite/../../etc");
    let other_protocol = UPGRADE.replace("satellite.v1", "chat");
    let refusals: [(&str, u16, &str, &[&str]); 12] = [
        ("a giant head", scene.web, &giant_head, &["431", ""]),
        ("heads without end", scene.web, &many_heads, &["431"]),
        ("a giant body", scene.web, &giant_body, &["413", "431"]),
        ("both lengths", scene.web, SMUGGLED, &["400", ""]),
        ("HTTP/2", scene.web, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", ""]),
        (
            "garbage after a request",
            scene.web,
            "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n\u{1}\u{2}garbage\r\n\r\n",
            &["200"],
        ),
        ("an upgrade at the wrong door", scene.web, UPGRADE, &["404"]),
        (
            "a web request",
            scene.satellites,
            "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            &["400", "404", ""],
        ),
        ("a browser", scene.satellites, &origin, &["403"]),
        ("another path", scene.satellites, &elsewhere, &["404"]),
        ("another protocol", scene.satellites, &other_protocol, &["400"]),
        ("garbage", scene.satellites, "\u{0}\u{1}\u{2}\r\n\r\n", &["400", ""]),
    ];
    for (what, port, request, statuses) in refusals {
        let mut tls = scene.tls(port)?;
        // The door may close before all is said.
        drop(tls.write_all(request.as_bytes()));
        let said = tls_ends(tls).context(what)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        let status = said.split(' ').nth(1).unwrap_or_default();
        ensure!(statuses.contains(&status), "{what}: {said}");
        ensure!(!said.contains("HELLO"), "{what} was let in: {said}");
    }
    let frames: [(&str, &[u8]); 7] = [
        ("an endless frame", &[0x82, 0xff, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        ("a frame over the bound", &[0x82, 0xff, 0, 0, 0, 0, 0, 0x40, 0, 1, 0, 0, 0, 0]),
        ("an unmasked frame", &[0x81, 2, b'{', b'}']),
        ("reserved bits", &[0xf1, 0x80, 0, 0, 0, 0]),
        ("a reserved opcode", &[0x83, 0x80, 0, 0, 0, 0]),
        ("a fragmented ping", &[0x09, 0x80, 0, 0, 0, 0]),
        ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0]),
    ];
    for (what, frame) in frames {
        let mut tls = scene.upgraded()?;
        tls.write_all(frame)?;
        let said = tls_ends(tls).context(what)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(said.contains("malformed"), "{what}: {said}");
    }
    // What comes with the upgrade and before its answer is no part of a conversation.
    let mut tls = scene.tls(scene.satellites)?;
    tls.write_all(&[UPGRADE.as_bytes(), &[0x81, 0x80, 0, 0, 0, 0]].concat())?;
    let said = tls_ends(tls)?;
    ensure!(!String::from_utf8_lossy(&said).contains("AUTHENTICATED"), "{said:?}");
    scene.ends_well(connections)
}

const SMUGGLED: &str = "POST /v1/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
                        0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

fn no_tls(port: u16) -> Result<()> {
    let lines: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10",
        b"SSH-2.0-stranger\r\n",
        &[0xff; 3_000],
    ];
    for line in lines {
        let mut tcp = connect(STRANGER, port)?;
        tcp.write_all(line)?;
        let clone = tcp.try_clone()?;
        let said = ends(&mut tcp, &clone, CLOSED_WITHIN)?;
        // At most TLS's own alert; never a page, never a word of what is here.
        ensure!(said.len() <= 16, "it says {:?}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

fn old_tls(identity: &Value, port: u16) -> Result<()> {
    let mut roots = RootCertStore::empty();
    let bundle = identity["ca_bundle"].as_str().context("ca_bundle")?;
    roots.add(CertificateDer::from_pem_slice(bundle.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = connect(STRANGER, port)?;
    tcp.set_read_timeout(Some(CLOSED_WITHIN))?;
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?, tcp);
    let error = tls.flush().err().or_else(|| tls.read(&mut [0; 16]).err()).context("TLS 1.2 was taken")?;
    ensure!(error.to_string().contains("ProtocolVersion"), "{error}");
    Ok(())
}

fn crowds(dir: &Path) -> Result<()> {
    const CROWD: usize = 1_200;
    allow_files(2 * CROWD as u64 + 500)?;
    let scene = Scene::new(dir)?;
    let mut crowd = Vec::new();
    for port in [scene.web, scene.satellites] {
        for _ in 0..CROWD {
            crowd.push((port, connect(STRANGER, port)?));
        }
    }
    // The satellite, from elsewhere, gets in again while the crowd holds all that one address may hold.
    let before = scene.house.relay.session.accepted();
    scene.house.relay.session.cut_once();
    wait::until_true("the satellite connects again", CLOSED_WITHIN, || {
        Ok(scene.house.relay.session.accepted() > before)
    })?;
    scene.house.wait_for_link(true)?;
    let health = {
        let mut tls = Impostor::without_certificate(&scene.identity)?.tls_from(Ipv4Addr::LOCALHOST, scene.web)?;
        tls.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        tls_ends(tls)?
    };
    ensure!(String::from_utf8_lossy(&health).contains(" 200 "), "{:?}", String::from_utf8_lossy(&health));
    // All over the bound are closed at once, the others when they have stalled for too long.
    let mut seated = [0; 2];
    for (port, tcp) in &crowd {
        tcp.set_nonblocking(true)?;
        let open = matches!((&*tcp).read(&mut [0; 8]), Err(error) if error.kind() == ErrorKind::WouldBlock);
        seated[usize::from(*port == scene.satellites)] += usize::from(open);
    }
    ensure!(seated.iter().all(|&seated| seated <= PER_ADDRESS_MAX), "{seated:?} of one address are inside");
    wait::until_true("all of them are sent away", CLOSED_WITHIN, || {
        let open = |tcp: &TcpStream| matches!((&*tcp).read(&mut [0; 8]), Err(e) if e.kind() == ErrorKind::WouldBlock);
        Ok(!crowd.iter().any(|(_, tcp)| open(tcp)))
    })?;
    drop(crowd);
    let connections = scene.house.relay.session.accepted();
    scene.ends_well(connections)
}

/// This program may hold so many sockets.
fn allow_files(files: u64) -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let now = getrlimit(Resource::Nofile);
    if now.current.is_some_and(|current| current < files) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: now.maximum })
            .context("more file handles for this test")?;
    }
    Ok(())
}

fn slow_readers(dir: &Path) -> Result<()> {
    let scene = Scene::new(dir)?;
    let connections = scene.house.relay.session.accepted();
    let mut tls = scene.tls(scene.web)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&tls.sock, 2_048)?;
    tls.sock.set_write_timeout(Some(DROP))?;
    let request = b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    // Everything is asked, nothing is read: at some point the relay can't write, and some time later it does not want to.
    wait::until_true("who never reads is sent away", Duration::from_secs(150), || {
        match tls.write_all(&request).and_then(|()| tls.flush()) {
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(true),
            Ok(()) | Err(_) => Ok(false),
        }
    })?;
    scene.ends_well(connections)
}
