//! Every address of a network, knocked at the ports of what a satellite can poll.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::net::TcpStream;

use super::Neighbourhood;
use super::proposal::{Judge, Proposal};
use crate::policy::{Gate, Protocol};

/// Doors that are waited at together: a switch at home forgets who is who when asked for more at once.
const AT_ONCE: usize = 64;
/// A device on the same network answers a connection within a few milliseconds, asleep within half a second.
const OPENS_WITHIN: Duration = Duration::from_millis(700);

/// A port, and what may be behind it.
struct Door {
    protocol: Protocol,
    port: u16,
    propose: fn(IpAddr) -> Vec<Proposal>,
}

/// What is asked everywhere. SNMP is a datagram: there is nothing to knock at, so it is asked at once.
const DOORS: [Door; 5] = [
    Door { protocol: Protocol::Nut, port: 3493, propose: ups },
    Door { protocol: Protocol::Modbus, port: 502, propose: sunspec },
    Door { protocol: Protocol::Http, port: 8006, propose: proxmox },
    Door { protocol: Protocol::Http, port: 9100, propose: exporter },
    Door { protocol: Protocol::Mqtt, port: 1883, propose: broker },
];

/// What may be there, at every door that opens.
pub(super) async fn knock(gate: &Gate, networks: &[Neighbourhood]) -> Vec<Proposal> {
    let hosts: Vec<Ipv4Addr> = networks.iter().flat_map(|network| network.hosts()).collect();
    let asks = hosts.iter().flat_map(|host| DOORS.iter().map(|door| open(gate, IpAddr::V4(*host), door)));
    let opened: Vec<Vec<Proposal>> = stream::iter(asks).buffer_unordered(AT_ONCE).collect().await;
    opened.into_iter().flatten().collect()
}

async fn open(gate: &Gate, host: IpAddr, door: &Door) -> Vec<Proposal> {
    let Ok(addresses) = gate.resolve(door.protocol, &host.to_string(), door.port).await else { return Vec::new() };
    for address in addresses {
        if is_open(address).await {
            return (door.propose)(host);
        }
    }
    Vec::new()
}

async fn is_open(address: SocketAddr) -> bool {
    matches!(tokio::time::timeout(OPENS_WITHIN, TcpStream::connect(address)).await, Ok(Ok(_)))
}

fn ups(host: IpAddr) -> Vec<Proposal> {
    let proposal = Proposal::new(host, "ups", "Network UPS Tools", "ups").with("address", host.to_string());
    vec![proposal.judged(Judge::Gives("network_ups_tools_"))]
}

/// Inverters are mostly unit 1; SMA's are 126.
fn sunspec(host: IpAddr) -> Vec<Proposal> {
    let unit = |unit: i64| {
        let proposal = Proposal::new(host, "sunspec", "the SunSpec marker", "inverter");
        proposal.with("address", host.to_string()).with("unit_id", unit).judged(Judge::Gives("sunspec_"))
    };
    vec![unit(1), unit(126)]
}

/// Known by its certificate's issuer, which each cluster makes for itself.
fn proxmox(host: IpAddr) -> Vec<Proposal> {
    let proposal = Proposal::new(host, "tls", "its certificate", "proxmox").with("address", format!("{host}:8006"));
    vec![proposal.judged(Judge::Says("issuer", "Proxmox"))]
}

fn exporter(host: IpAddr) -> Vec<Proposal> {
    let proposal = Proposal::new(host, "prometheus", "its page of metrics", "node-exporter");
    vec![proposal.with("url", format!("http://{host}:9100/metrics"))]
}

fn broker(_: IpAddr) -> Vec<Proposal> {
    Vec::new()
}
