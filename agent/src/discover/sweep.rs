//! Every address of a network, knocked at the ports of what a satellite can poll.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use super::Neighbourhood;
use super::proposal::{Judge, Proposal};
use crate::policy::{Gate, Policy, Protocol};

/// Doors that are waited at together: a switch at home forgets who is who when asked for more at once.
const AT_ONCE: usize = 64;
/// A device on the same network answers a connection within a few milliseconds, asleep within half a second.
const OPENS_WITHIN: Duration = Duration::from_millis(700);

/// A port, and what may be behind it.
struct Door {
    what: &'static str,
    protocol: Protocol,
    port: u16,
    propose: fn(IpAddr) -> Vec<Proposal>,
}

/// What is asked everywhere; and SNMP, for which there is no door to knock at.
const DOORS: [Door; 5] = [
    Door { what: "UPSs", protocol: Protocol::Nut, port: 3493, propose: ups },
    Door { what: "inverters", protocol: Protocol::Modbus, port: 502, propose: sunspec },
    Door { what: "Proxmox", protocol: Protocol::Http, port: 8006, propose: proxmox },
    Door { what: "exporters", protocol: Protocol::Http, port: 9100, propose: exporter },
    Door { what: "brokers", protocol: Protocol::Mqtt, port: 1883, propose: broker },
];

const SNMP_PORT: u16 = 161;
/// GET of sysDescr.0 by SNMPv2c with the community that devices come with (RFC 3416).
const SNMP_QUESTION: [u8; 43] = *b"\x30\x29\x02\x01\x01\x04\x06public\xa0\x1c\x02\x04\x53\x61\x74\x31\
    \x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00";
/// How long after the last question an answer may come.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// What is not looked for in these networks because the policy closes its door everywhere.
pub(super) fn closed(policy: &Policy, networks: &[Neighbourhood]) -> Vec<String> {
    let Some(host) = networks.iter().flat_map(|network| network.hosts()).next() else { return Vec::new() };
    let doors = DOORS.iter().map(|door| (door.what, door.protocol, door.port));
    let all = doors.chain([("devices with SNMP", Protocol::Snmp, SNMP_PORT)]);
    let refused =
        all.filter_map(|(what, protocol, port)| Some((what, policy.permits(protocol, host.into(), port).err()?)));
    refused.map(|(what, refusal)| format!("{what} are not looked for: {refusal}")).collect()
}

/// What may be there, at every door that opens.
pub(super) async fn knock(gate: &Gate, networks: &[Neighbourhood]) -> Vec<Proposal> {
    let hosts: Vec<Ipv4Addr> = networks.iter().flat_map(|network| network.hosts()).collect();
    let (mut opened, agents) = tokio::join!(knock_at_doors(gate, &hosts), ask_snmp(gate, &hosts));
    opened.extend(agents.unwrap_or_default());
    opened
}

async fn knock_at_doors(gate: &Gate, hosts: &[Ipv4Addr]) -> Vec<Proposal> {
    let asks = hosts.iter().flat_map(|host| DOORS.iter().map(|door| open(gate, IpAddr::V4(*host), door)));
    let opened: Vec<Vec<Proposal>> = stream::iter(asks).buffer_unordered(AT_ONCE).collect().await;
    opened.into_iter().flatten().collect()
}

/// Who answers one datagram each, whatever they answer.
async fn ask_snmp(gate: &Gate, hosts: &[Ipv4Addr]) -> std::io::Result<Vec<Proposal>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    let mut found = BTreeSet::new();
    let mut batches = hosts.chunks(AT_ONCE).peekable();
    while let Some(batch) = batches.next() {
        for host in batch {
            for address in gate.resolve(Protocol::Snmp, &host.to_string(), SNMP_PORT).await.unwrap_or_default() {
                // Whoever can't be reached is not there.
                socket.send_to(&SNMP_QUESTION, address).await.ok();
            }
        }
        let within = if batches.peek().is_some() { OPENS_WITHIN } else { ANSWERS_WITHIN };
        hear_snmp(&socket, hosts, Instant::now() + within, &mut found).await;
    }
    Ok(found.into_iter().map(snmp).collect())
}

async fn hear_snmp(socket: &UdpSocket, hosts: &[Ipv4Addr], until: Instant, found: &mut BTreeSet<IpAddr>) {
    let mut answer = [0; 1_500];
    while found.len() < hosts.len() {
        match tokio::time::timeout_at(until, socket.recv_from(&mut answer)).await {
            Ok(Ok((_, from))) => {
                if from.port() == SNMP_PORT && hosts.iter().any(|host| from.ip() == IpAddr::V4(*host)) {
                    found.insert(from.ip());
                }
            }
            // A host that refuses one datagram says nothing about the others.
            Ok(Err(_)) => {}
            Err(_) => return,
        }
    }
}

fn snmp(host: IpAddr) -> Proposal {
    let modules: Vec<toml::Value> = ["system", "if_mib"].map(toml::Value::from).to_vec();
    let proposal = Proposal::new(host, "snmp", "SNMP", "snmp").with("address", host.to_string());
    proposal.with("modules", modules).judged(Judge::Gives("sysUpTime"))
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
    vec![proposal.judged(Judge::Issuer("Proxmox", "proxmox"))]
}

fn exporter(host: IpAddr) -> Vec<Proposal> {
    let proposal = Proposal::new(host, "prometheus", "its page of metrics", "node-exporter");
    vec![proposal.with("url", format!("http://{host}:9100/metrics"))]
}

/// Worth a proposal where zigbee2mqtt speaks, and where it lets nobody in who has no password, as most do.
fn broker(host: IpAddr) -> Vec<Proposal> {
    let proposal = Proposal::new(host, "mqtt", "zigbee2mqtt's list of devices", "zigbee2mqtt");
    let proposal = proposal.with("address", host.to_string()).with("profile", "zigbee2mqtt");
    let login = vec![("user", "satellite".into()), ("secret", "mqtt".into())];
    vec![proposal.judged(Judge::Gives("zigbee2mqtt_")).or_asking(
        "a user of the broker and its password",
        "mqtt",
        login,
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_policy_closes_is_told() {
        let networks = [Neighbourhood::parse("192.168.1.0/24").unwrap()];
        assert_eq!(closed(&Policy::default(), &networks), Vec::<String>::new());
        let narrow =
            Policy::parse("ports = [\"1-1024\"]\nprotocols = [\"http\", \"modbus\", \"nut\", \"mqtt\"]").unwrap();
        let told = closed(&narrow, &networks);
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[0].starts_with("UPSs are not looked for: port 3493 is not in policy.toml"), "{told:?}");
        assert!(
            told[4].starts_with("devices with SNMP are not looked for: policy.toml does not allow snmp"),
            "{told:?}"
        );
    }
}
