//! What `satellite discover` finds in a house, in a network of the test's own: real devices on its addresses, and every
//! packet seen.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use satellite_tests::journey;
use satellite_tests::modbus::ModbusServer;
use satellite_tests::mosquitto::Mosquitto;
use satellite_tests::neighbours::Neighbour;
use satellite_tests::netns::{Capture, journey_inside};
use satellite_tests::nut::Nut;
use satellite_tests::openssl::Openssl;
use satellite_tests::peers::Peer;
use satellite_tests::satellite::Satellite;
use satellite_tests::snmp::{Secrets, Snmpd};
use satellite_tests::{process, wait};
use serde_json::{Value, json};

/// The network of the house.
const HOUSE: &str = "10.20.0.0/28";
const POLICY: &str = "networks = [\"10.20.0.0/28\"]\n";
/// An interface whose neighbours are addresses of this machine. Multicasts go there and not to loopback.
const SETUP: &str = "ip link add house type veth peer name lane && ip link set lane up && ip link set house up && \
    for n in 1 5 6 7 9; do ip address add 10.20.0.$n/28 dev house; done && \
    ip route add multicast 224.0.0.0/4 dev house table local";

fn main() -> ExitCode {
    const PEERS: &[Peer] =
        &[Peer::Iproute2, Peer::Nut, Peer::Modbus, Peer::NodeExporter, Peer::Neighbours, Peer::Openssl, Peer::Snmpd];
    journey::run(vec![journey_inside("what_answers_in_the_house_is_found_and_nobody_else_is_asked", PEERS, house)])
}

/// A web server that says nothing but that it is there.
fn plug(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 2_048];
            // Whoever asks and goes has asked.
            drop(stream.read(&mut request));
            let body = "{\"on\": true}";
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            drop(stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes()));
        }
    });
    Ok(())
}

/// Says who it may be and wants to know who asks; ends where somebody tells it.
fn stranger(at: SocketAddr, told: Arc<AtomicBool>) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 2_048];
            let len = stream.read(&mut request).unwrap_or(0);
            let head = String::from_utf8_lossy(&request[..len]).to_ascii_lowercase();
            told.fetch_or(head.contains("authorization"), Ordering::SeqCst);
            drop(stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        }
    });
    Ok(())
}

/// The devices of the house; they end with it.
struct House {
    _ups: Nut,
    _inverter: ModbusServer,
    _switch: Snmpd,
    _exporter: process::Process,
    _broker: Mosquitto,
    /// As Proxmox VE makes its certificates; what it says needs a token anyway.
    cluster: Openssl,
    /// Whether what calls itself Home Assistant was told a secret.
    is_told: Arc<AtomicBool>,
    _mdns: Neighbour,
    _upnp: Neighbour,
}

impl House {
    fn start(dir: &Path) -> Result<Self> {
        process::run(Command::new("sh").args(["-c", SETUP]), "")?.success().context("a house")?;
        let at = |n: u8, port: u16| SocketAddr::from(([10, 20, 0, n], port));
        let mut map = vec![0x5375, 0x6e53, 103, 50];
        map.extend((0..50).map(|at| if at == 12 { 2_000 } else { 0 }));
        map.extend([0xffff, 0]);
        let secrets = Secrets { community: "public", password: "not asked for", privacy: "not asked for" };
        let program = Peer::NodeExporter.path().context("node_exporter")?;
        let mut command = Command::new(program);
        command.arg(format!("--web.listen-address={}", at(7, 9100)));
        let mut exporter = process::Process::start("node_exporter", &mut command, &dir.join("node_exporter.log"))?;
        wait::until_true("node_exporter", std::time::Duration::from_secs(60), || {
            exporter.check_running()?;
            Ok(std::net::TcpStream::connect(at(7, 9100)).is_ok())
        })?;
        let broker = Mosquitto::open_at(at(6, 1883), &dir.join("mosquitto"))?;
        let zigbee = json!([{
            "ieee_address": "0x00158d00018255df", "type": "EndDevice", "friendly_name": "attic", "supported": true,
            "definition": {"model": "WSDCGQ11LM", "vendor": "Aqara", "exposes": [
                {"type": "numeric", "property": "temperature", "unit": "°C", "access": 1}]},
        }]);
        broker.publish("zigbee2mqtt/bridge/state", "{\"state\": \"online\"}", true)?;
        broker.publish("zigbee2mqtt/bridge/devices", &zigbee.to_string(), true)?;
        plug(at(9, 80))?;
        let is_told = Arc::new(AtomicBool::new(false));
        stranger(at(9, 8123), Arc::clone(&is_told))?;
        let services = json!([
            ["_home-assistant._tcp", "Home", "10.20.0.9", 8123, {}],
            ["_http._tcp", "Living room lamp", "10.20.0.9", 80, {}],
            ["_http._tcp", "elsewhere", "10.99.0.1", 80, {}],
        ]);
        Ok(Self {
            _ups: Nut::start_at(
                at(5, 3493),
                &dir.join("nut"),
                &[("battery.charge", "42"), ("ups.model", "5E 850i")],
                "x",
            )?,
            _inverter: ModbusServer::start_at(at(6, 502), dir, (40_000, &map), &[0], &[false], &[false])?,
            _switch: Snmpd::start_at(
                at(5, 161),
                &dir.join("snmp"),
                secrets,
                &["1.3.6.1.2.1.1.1.0 octet_str \"A switch\""],
            )?,
            _exporter: exporter,
            _broker: broker,
            cluster: Openssl::start_at(at(9, 8006), dir, "/O=Proxmox Virtual Environment/CN=pve.lan", 300, "-tls1_3")?,
            is_told,
            _mdns: Neighbour::mdns(dir, "10.20.0.9", &services)?,
            _upnp: Neighbour::upnp(dir, "10.20.0.7")?,
        })
    }
}

fn house(dir: &Path) -> Result<()> {
    let house = House::start(dir)?;
    let satellite = Satellite::new(dir, "attic", &[])?;
    satellite.set_policy(POLICY)?;
    std::fs::create_dir_all(dir.join("attic").join("state"))?;
    let bound = ["secrets", "set", "home-assistant", "--host", "10.20.0.9:8123", "--protocol", "http"];
    satellite.command(&bound, "a token\n")?.success()?;

    let capture = Capture::start()?;
    let said = satellite.command(&["discover", "--network", HOUSE, "--json"], "")?;
    let report: Value = serde_json::from_str(&said.stdout).with_context(|| said.all())?;
    let found = |collector: &str, key: &str, value: &str| {
        let all = report["found"].as_array().into_iter().flatten();
        let mut fitting = all.filter(|one| one["device"]["collector"] == collector && one["device"][key] == value);
        fitting.next().cloned().with_context(|| format!("no {collector} at {value}: {report:#}"))
    };
    found("ups", "address", "10.20.0.5")?;
    ensure!(found("sunspec", "address", "10.20.0.6")?["device"]["unit_id"] == 1, "{report:#}");
    ensure!(found("snmp", "address", "10.20.0.5")?["what"] == "A switch", "{report:#}");
    found("prometheus", "url", "http://10.20.0.7:9100/metrics")?;
    ensure!(found("mqtt", "address", "10.20.0.6")?["device"]["profile"] == "zigbee2mqtt", "{report:#}");
    let proxmox = found("http", "profile", "proxmox")?;
    ensure!(proxmox["device"]["tls"] == format!("pin:{}", house.cluster.fingerprint), "{proxmox}");
    ensure!(proxmox["needs"].to_string().contains("satellite secrets set proxmox --host 10.20.0.9:8006"), "{proxmox}");
    let stranger = found("http", "url", "http://10.20.0.9:8123")?;
    ensure!(stranger["device"]["auth"]["secret"] == "home-assistant", "{stranger}");
    ensure!(
        stranger["needs"].to_string().contains("home-assistant --host 10.20.0.9:8123 --protocol http"),
        "{stranger}"
    );
    ensure!(!house.is_told.load(Ordering::SeqCst), "a secret went to somebody who announced itself");
    let lamp = found("http", "url", "http://10.20.0.9/")?;
    ensure!(lamp["what"] == "Living room lamp" && lamp["by"] == "mDNS (_http._tcp)", "{lamp}");
    let upnp = found("ping", "address", "10.20.0.7")?;
    ensure!(upnp["by"] == "SSDP", "{upnp}");
    ensure!(!report.to_string().contains("10.99.0.1"), "{report:#}");

    // Nobody else: the house, the groups that all in it listen to, and where the kernel says that somebody listens.
    let in_house = |ip: IpAddr| matches!(ip, IpAddr::V4(v4) if v4.octets()[..3] == [10, 20, 0] && v4.octets()[3] < 16);
    let groups: [IpAddr; 3] = [[224, 0, 0, 22].into(), [224, 0, 0, 251].into(), [239, 255, 255, 250].into()];
    capture.only(|(ip, _)| in_house(ip) || groups.contains(&ip))?;

    // What it prints can be polled as it stands, and a network outside the policy is not looked at.
    let printed = satellite.command(&["discover", "--network", HOUSE], "")?.success()?;
    let file = dir.join("found.toml");
    std::fs::write(&file, &printed)?;
    let file = file.to_str().context("a path of text")?.to_owned();
    let polled = satellite.command(&["probe", "--config", &file, "--json"], "")?;
    let polled: Value = serde_json::from_str(&polled.stdout).with_context(|| polled.all())?;
    let polled = polled.as_array().context("polls")?;
    ensure!(polled.len() >= 8 && printed.matches("[[device]]").count() == polled.len(), "{printed}");
    for poll in polled {
        let is_proxmox = poll["failure"].to_string().contains("no secret `proxmox`");
        let is_stranger = poll["missing"].to_string().contains("HTTP 401");
        let answers = poll["failure"].is_null() && poll["missing"].as_array().is_some_and(Vec::is_empty);
        ensure!(answers || is_proxmox || is_stranger, "{poll}");
    }
    let refused = satellite.command(&["discover", "--network", "10.30.0.0/30"], "")?;
    ensure!(refused.all().contains("10.30.0.0/30 is not looked at"), "{}", refused.all());
    capture.only(|(ip, _)| in_house(ip) || groups.contains(&ip))?;
    Ok(())
}
