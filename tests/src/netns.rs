//! A network of the test's own, where every address answers and every packet is seen.
//!
//! The journey runs again as a process of its own in a network namespace that has no way out: all addresses of IPv4 and
//! IPv6 lead to this machine, so a packet to anywhere arrives and can be counted, and who listens would even answer it.
//! A mount namespace gives it a resolver of its own. Needs root, `unshare` and `ip`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Completion, Failed, Trial};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

use crate::journey::{journey, skipped};
use crate::peers::Peer;
use crate::{process, programs, wait};

/// Says to the process in the namespace which journey it is.
const INSIDE_ENV: &str = "SATELLITE_NETNS";
/// How long a journey in a namespace may take.
const JOURNEY_WITHIN: Duration = Duration::from_secs(900);
/// Where the capture is shown to be alive: an address of documentation, the port of `discard`.
const CANARY: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 99), 9);
const PACKET_BYTES_MAX: usize = 2_048;
const CAPTURE_BUFFER_BYTES: usize = 64 << 20;

/// A journey in a namespace of its own.
#[must_use]
pub fn journey_inside(name: &str, needs: &'static [Peer], run: fn(&Path) -> Result<()>) -> Trial {
    if std::env::var(INSIDE_ENV).is_ok_and(|inside| inside == name) {
        return journey(name, needs, run);
    }
    let name = name.to_owned();
    Trial::ignorable_test(name.clone(), move || {
        if let Some(peer) = needs.iter().find(|peer| peer.path().is_none()) {
            return skipped(&peer.missing());
        }
        if let Err(error) = can_unshare() {
            return skipped(&format!("needs root, unshare and ip, to make a network namespace: {error:#}"));
        }
        run_inside(&name).map_err(|error| Failed::from(format!("{error:#}")))?;
        Ok(Completion::Completed)
    })
}

/// Whether this process runs in a namespace of a journey's own.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE_ENV).is_some()
}

fn can_unshare() -> Result<()> {
    let mut probe = Command::new("unshare");
    probe.args(["--net", "--mount", "sh", "-c", SETUP]);
    process::run(&mut probe, "")?.success().map(drop)
}

/// Every address is local, and answers.
const SETUP: &str = "ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo";

fn run_inside(name: &str) -> Result<()> {
    programs::programs()?;
    let out = tempfile::NamedTempFile::new()?;
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-c", &format!("{SETUP} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE_ENV, name)
        .env(programs::BUILT_ENV, "1")
        .stdin(std::process::Stdio::null())
        .stdout(out.reopen()?)
        .stderr(out.reopen()?)
        .spawn()?;
    let ended = wait::until(name, JOURNEY_WITHIN, || Ok(child.try_wait()?));
    if ended.is_err() {
        drop(child.kill());
        drop(child.wait());
    }
    let said = process::tail(out.path(), 200);
    let status = ended.with_context(|| said.clone())?;
    ensure!(status.success(), "{said}");
    ensure!(said.contains("1 passed"), "the journey did not run in its namespace:\n{said}");
    Ok(())
}

/// Puts a file over one of the system's, in this mount namespace only.
///
/// # Errors
/// Outside of a namespace of its own, and when the kernel refuses.
pub fn cover(system: &str, content: &str, dir: &Path) -> Result<()> {
    ensure!(is_inside(), "not in a namespace of its own");
    let file = dir.join(system.replace('/', "_"));
    std::fs::write(&file, content)?;
    let mut mount = Command::new("mount");
    mount.arg("--bind").arg(&file).arg(system);
    process::run(&mut mount, "")?.success().with_context(|| format!("mount over {system}")).map(drop)
}

/// One end of a packet.
pub type End = (IpAddr, u16);

/// Where a packet went; ICMP has no ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// The number of IP: 6 TCP, 17 UDP, 1 and 58 ICMP.
    pub protocol: u8,
    /// From where.
    pub from: End,
    /// To where.
    pub to: End,
}

/// Sees every packet of the namespace.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<BTreeMap<Flow, u64>>>,
    ended: Arc<AtomicBool>,
}

impl Capture {
    /// Begins to look, and shows that it sees.
    ///
    /// # Errors
    /// When the kernel refuses, or it is blind.
    pub fn start() -> Result<Self> {
        let everything = std::num::NonZeroU32::new(u32::from(0x0003_u16.to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, everything)?;
        set_socket_recv_buffer_size_force(&socket, CAPTURE_BUFFER_BYTES)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100)))?;
        let capture = Self { seen: Arc::default(), ended: Arc::default() };
        let (seen, ended) = (Arc::clone(&capture.seen), Arc::clone(&capture.ended));
        std::thread::spawn(move || look(&socket, &seen, &ended));
        capture.show()?;
        Ok(capture)
    }

    /// Sends a packet to where none goes, and waits until it is seen: all before it has been seen then too.
    ///
    /// # Errors
    /// When it is not seen.
    pub fn show(&self) -> Result<()> {
        let canaries = |capture: &Self| {
            let to = (IpAddr::V4(CANARY.0), CANARY.1);
            capture.flows().iter().filter(|(flow, _)| flow.to == to).map(|(_, count)| *count).sum::<u64>()
        };
        let before = canaries(self);
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"canary", CANARY)?;
        wait::until_true("the capture sees a packet", Duration::from_secs(60), || Ok(canaries(self) > before))
    }

    fn flows(&self) -> BTreeMap<Flow, u64> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All that was seen so far but what shows that it sees.
    ///
    /// # Errors
    /// When it is blind.
    pub fn all(&self) -> Result<BTreeMap<Flow, u64>> {
        self.show()?;
        let canary = IpAddr::V4(CANARY.0);
        let flows = self.flows().into_iter().filter(|(flow, _)| flow.to.0 != canary && flow.from.0 != canary);
        Ok(flows.collect())
    }

    /// Nothing went between other ends than these; says how many packets there were.
    ///
    /// # Errors
    /// With what went elsewhere.
    pub fn only(&self, allowed: impl Fn(End) -> bool) -> Result<u64> {
        let all = self.all()?;
        let forbidden: Vec<_> = all.iter().filter(|(flow, _)| !allowed(flow.to) && !allowed(flow.from)).collect();
        if !forbidden.is_empty() {
            bail!("{} forbidden flows: {:?}", forbidden.len(), &forbidden[..forbidden.len().min(40)]);
        }
        Ok(all.values().sum())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn look(socket: &OwnedFd, seen: &Mutex<BTreeMap<Flow, u64>>, ended: &AtomicBool) {
    let mut packet = [0; PACKET_BYTES_MAX];
    while !ended.load(Ordering::Relaxed) {
        // A packet that is longer than this shows its head; a pause of the network is an error here.
        let Ok((read, _)) = rustix::net::recv(socket, &mut packet, RecvFlags::empty()) else { continue };
        if let Some(flow) = flow_of(&packet[..read]) {
            *seen.lock().unwrap_or_else(PoisonError::into_inner).entry(flow).or_default() += 1;
        }
    }
}

/// Reads the head of an IP packet. What the kernel says to its neighbours of itself is left out.
fn flow_of(packet: &[u8]) -> Option<Flow> {
    let (protocol, from, to, payload): (u8, IpAddr, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let from: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            let to: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            let header = usize::from(packet[0] & 15) * 4;
            (packet[9], Ipv4Addr::from(from).into(), Ipv4Addr::from(to).into(), packet.get(header..)?)
        }
        6 => {
            let from: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let to: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (packet[6], Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let multicast_by_the_kernel = protocol == 0 || (protocol == 58 && (130..=143).contains(payload.first()?));
    if multicast_by_the_kernel {
        return None;
    }
    let port = |at: usize| payload.get(at..at + 2).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let has_ports = matches!(protocol, 6 | 17);
    let (source, destination) = if has_ports { (port(0), port(2)) } else { (0, 0) };
    Some(Flow { protocol, from: (from, source), to: (to, destination) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_packet_are_read_from_its_head() {
        let mut v4 = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 8, 8, 8, 8];
        v4.extend([0x12, 0x34, 0, 53, 0, 8, 0, 0]);
        let flow = flow_of(&v4).unwrap();
        assert_eq!((flow.protocol, flow.from.1, flow.to), (17, 0x1234, ([8, 8, 8, 8].into(), 53)));
        let mut v6 = vec![0x60, 0, 0, 0, 0, 4, 6, 64];
        v6.extend(Ipv6Addr::LOCALHOST.octets());
        v6.extend(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 1).octets());
        v6.extend([0, 1, 0x1f, 0x90]);
        assert_eq!(flow_of(&v6).unwrap().to, ("2002::1".parse().unwrap(), 8080));
        assert_eq!(flow_of(&[]), None);
    }
}
