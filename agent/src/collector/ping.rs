//! `ping`: whether a host answers ICMP echo, and how long that takes.
//!
//! Unprivileged where the kernel allows it (`net.ipv4.ping_group_range`), else with CAP_NET_RAW, else every poll says
//! what would allow it: a missing right is never reported as a host that is down. An ICMP error from a router is no
//! answer of the host either; what a router says beside, such as that there is a shorter way, costs another request.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use surge_ping::{Client, Config, ICMP, IcmpPacket, PingIdentifier, PingSequence, SurgeError};

use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol, check_host};

/// `collector = "ping"`.
pub const KIND: CollectorKind = CollectorKind { name: "ping", build };

/// Echo requests of one poll.
const COUNT_MAX: u16 = 5;
/// What `ping` sends by default.
const PAYLOAD: [u8; 56] = [0x53; 56];
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
/// Unreachable, time exceeded, a bad header.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
/// Those of ICMPv6 are the first half of the types.
const ERRORS_V6: std::ops::RangeInclusive<u8> = 1..=127;
/// Requests in place of one on which there was neither a reply nor an error.
const AGAIN_MAX: u16 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// A name or an address.
    address: String,
    /// Requests per poll.
    #[serde(default = "one")]
    count: u16,
}

fn one() -> u16 {
    1
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { address, count } = options::read(&device.options, &path)?;
    if !(1..=COUNT_MAX).contains(&count) {
        let reason = format!("{count} is not between 1 and {COUNT_MAX}");
        return Err(options::problem(&format!("{path}.count"), reason));
    }
    check_host(&address).map_err(|reason| options::problem(&format!("{path}.address"), reason))?;
    let ping = Ping { gate: Arc::clone(&context.gate), address, count, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(ping), metrics: whole(device) })
}

struct Ping {
    gate: Arc<Gate>,
    address: String,
    count: u16,
    limit: Duration,
}

/// How far a poll came, and what it measured.
#[derive(Default)]
struct Seen {
    used: Option<SocketAddr>,
    lookup_seconds: f64,
    setup_seconds: f64,
    rtt_seconds: f64,
    replies: u16,
    hop_limit: Option<u8>,
}

impl Ping {
    async fn probe(&self, readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut seen = Seen::default();
        let outcome = probe::within(self.limit, self.exchange(&mut seen)).await;
        let seconds = watch.seconds();
        match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => tracing::debug!(%failure, "no echo"),
            Ok(()) => {}
        }
        probe::report(readings, 0, seen.replies > 0, seconds);
        probe::report_address(readings, 0, seen.lookup_seconds, seen.used);
        self.report_icmp(&seen, readings);
        Ok(())
    }

    fn report_icmp(&self, seen: &Seen, readings: &mut Readings) {
        let phase = Family::gauge("probe_icmp_duration_seconds", "seconds");
        readings.sample(0, phase, &[("phase", "resolve")], seen.lookup_seconds);
        readings.sample(0, phase, &[("phase", "setup")], seen.setup_seconds);
        let replies = f64::from(seen.replies);
        readings.sample(0, phase, &[("phase", "rtt")], seen.rtt_seconds / replies.max(1.0));
        if let Some(hops) = seen.hop_limit {
            readings.sample(0, Family::gauge("probe_icmp_reply_hop_limit", ""), &[], f64::from(hops));
        }
        if self.count > 1 {
            let lost = 1.0 - replies / f64::from(self.count);
            readings.sample(0, Family::gauge("probe_icmp_loss_ratio", "ratio"), &[], lost);
        }
    }

    async fn exchange(&self, seen: &mut Seen) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let addresses = self.gate.resolve(Protocol::Ping, &self.address, 0).await?;
        seen.lookup_seconds = watch.seconds();
        let watch = Stopwatch::start();
        let to = *addresses.first().ok_or_else(|| Failure::new(Reason::Unreachable, "the name has no address"))?;
        let client = client(to.ip())?;
        let mut pinger = client.pinger(to.ip(), identifier()).await;
        // Each request has its share of the time, so that one that is lost leaves some to the next.
        pinger.timeout(self.limit.saturating_sub(Duration::from_secs_f64(seen.lookup_seconds)) / u32::from(self.count));
        seen.used = Some(to);
        seen.setup_seconds = watch.seconds();
        let mut outcome = Ok(());
        for sequence in 0..self.count {
            let mut answer = pinger.ping(PingSequence(sequence), &PAYLOAD).await;
            for again in 1..=AGAIN_MAX {
                if !matches!(&answer, Ok((packet, _)) if is_beside(packet)) {
                    break;
                }
                // A number of its own: what still comes for the one before is not taken for its reply.
                answer = pinger.ping(PingSequence(sequence + again * self.count), &PAYLOAD).await;
            }
            match answer {
                Ok((packet, rtt)) if is_reply(&packet) => {
                    seen.replies += 1;
                    seen.rtt_seconds += rtt.as_secs_f64();
                    seen.hop_limit = hop_limit(&packet);
                }
                Ok(_) => outcome = Err(Failure::new(Reason::Unreachable, "a router answered that it can't be reached")),
                Err(SurgeError::IOError(error)) => outcome = Err(probe::failure_of_io(&error)),
                Err(error) => outcome = Err(Failure::new(Reason::Timeout, error.to_string())),
            }
        }
        outcome
    }
}

fn client(ip: IpAddr) -> Result<Client, Failure> {
    let kind = if ip.is_ipv4() { ICMP::V4 } else { ICMP::V6 };
    Client::new(&Config::builder().kind(kind).build()).map_err(|error| {
        if error.kind() != std::io::ErrorKind::PermissionDenied {
            return probe::failure_of_io(&error);
        }
        Failure::new(
            Reason::Unsupported,
            "ICMP is not permitted here: put /usr/share/doc/satellite-agent/examples/ping.conf into \
             /etc/systemd/system/satellite.service.d/ and restart the service, or let sysctl net.ipv4.ping_group_range \
             include its group",
        )
    })
}

/// Raw sockets see every reply on this host: a number of its own tells whose it is.
fn identifier() -> PingIdentifier {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = std::process::id().to_le_bytes();
    let base = u16::from_le_bytes([process[0], process[1]]);
    PingIdentifier(base.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)))
}

fn is_reply(packet: &IcmpPacket) -> bool {
    match packet {
        IcmpPacket::V4(packet) => packet.get_icmp_type().0 == ECHO_REPLY_V4,
        IcmpPacket::V6(packet) => packet.get_icmpv6_type().0 == ECHO_REPLY_V6,
    }
}

/// Neither a reply nor an error: raw sockets are given all that quotes a request.
fn is_beside(packet: &IcmpPacket) -> bool {
    let is_error = match packet {
        IcmpPacket::V4(packet) => ERRORS_V4.contains(&packet.get_icmp_type().0),
        IcmpPacket::V6(packet) => ERRORS_V6.contains(&packet.get_icmpv6_type().0),
    };
    !is_error && !is_reply(packet)
}

fn hop_limit(packet: &IcmpPacket) -> Option<u8> {
    match packet {
        IcmpPacket::V4(packet) => packet.get_ttl(),
        // The kernel keeps the header of IPv6 to itself.
        IcmpPacket::V6(_) => None,
    }
}

impl Collector for Ping {
    fn poll<'a>(&'a mut self, _due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(readings))
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{self, Stage};
    use super::*;

    /// What this process may do decides which of the two it must be.
    fn is_permitted() -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { client([127, 0, 0, 1].into()).is_ok() })
    }

    fn poll(device: &str) -> stage::Polled {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { Stage::new(device, &[1]).unwrap().poll_all().await })
    }

    #[test]
    fn loopback_answers_over_both_protocols_or_the_missing_right_is_named() {
        for (address, version) in [("127.0.0.1", 4.0), ("::1", 6.0)] {
            let polled = poll(&format!("collector = \"ping\"\naddress = \"{address}\"\ncount = 3"));
            if !is_permitted() {
                let failure = polled.failure.unwrap();
                assert_eq!(failure.reason, Reason::Unsupported);
                assert!(failure.detail.contains("ping_group_range"), "{failure}");
                continue;
            }
            assert_eq!((polled.value("probe_success"), polled.value("probe_ip_protocol")), (Some(1.0), Some(version)));
            assert_eq!(polled.value("probe_icmp_loss_ratio"), Some(0.0));
            let phases = polled.labelled("probe_icmp_duration_seconds");
            let names: Vec<_> = phases.iter().map(|(labels, _)| labels.as_str()).collect();
            assert_eq!(names, ["phase=resolve", "phase=setup", "phase=rtt"]);
            assert!(phases[2].1 > 0.0 && phases[2].1 < 1.0, "{phases:?}");
        }
    }

    /// An ICMPv6 packet of this type that quotes an echo request.
    fn quoting(kind: u8) -> IcmpPacket {
        let mut packet = vec![kind, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 8, 58, 64];
        packet.extend([0; 32]);
        packet.extend([128, 0, 0, 0, 0x12, 0x34, 0, 7]);
        IcmpPacket::V6(surge_ping::Icmpv6Packet::decode(&packet, std::net::Ipv6Addr::LOCALHOST).unwrap())
    }

    #[test]
    fn a_redirect_is_neither_a_reply_nor_an_error() {
        let redirect = quoting(137);
        assert!(is_beside(&redirect) && !is_reply(&redirect));
        for other in [quoting(1), quoting(3), quoting(ECHO_REPLY_V6)] {
            assert!(!is_beside(&other), "{other:?}");
        }
    }

    #[test]
    fn a_host_outside_the_policy_is_a_gap() {
        for address in ["8.8.8.8", "255.255.255.255", "169.254.169.254", "224.0.0.1", "0.0.0.0"] {
            let polled = poll(&format!("collector = \"ping\"\naddress = \"{address}\""));
            assert_eq!(polled.failure.unwrap().reason, Reason::Policy, "{address}");
            assert!(polled.samples.is_empty());
        }
    }

    #[test]
    fn a_name_that_does_not_resolve_is_an_answer() {
        let polled = poll("collector = \"ping\"\naddress = \"no-such-host.invalid\"");
        assert_eq!((polled.value("probe_success"), polled.failure), (Some(0.0), None));
    }

    #[test]
    fn options_that_are_none_are_named() {
        let said = stage::problem("collector = \"ping\"\naddress = \"a\"\ncount = 6");
        assert_eq!(said, "device.it.count: 6 is not between 1 and 5");
        assert!(stage::problem("collector = \"ping\"").contains("missing field `address`"));
        for address in ["", "a b", "0x7f.1", "http://a/", "fe80::1%eth0"] {
            let said = stage::problem(&format!("collector = \"ping\"\naddress = \"{address}\""));
            assert!(said.starts_with("device.it.address: "), "{said}");
        }
    }
}
