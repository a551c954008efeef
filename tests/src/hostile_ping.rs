//! Hosts that answer echo requests with lies: wrong numbers, too much, too little, too often, from somewhere else.
//!
//! Each attack has an address of its own. For a network namespace where every address is local and the kernel itself
//! leaves echo requests alone: a raw socket sees them and says what it likes, from whatever address it likes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

const IP_HEADER_BYTES: usize = 20;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const REDIRECT: u8 = 5;
const ECHO_REQUEST: u8 = 8;
/// What is answered more than once is answered so often.
const OFTEN: usize = 2_000;
/// Near what one packet can hold.
const HUGE_BYTES: usize = 60_000;
/// How many routers our packets may pass: by this number they are known.
const OUR_HOPS: u8 = 77;
/// Where the attacks live.
pub const NETWORK: &str = "192.168.77.0/24";

/// One way to answer.
#[derive(Debug, Clone, Copy)]
pub struct Attack {
    /// Its name in the configuration.
    pub name: &'static str,
    /// The last number of its address.
    host: u8,
    /// Whether what it says is an answer of the host that was asked.
    pub is_answer: bool,
    answer: fn(&Echo) -> Vec<Packet>,
}

/// An echo request.
#[derive(Debug, Clone)]
struct Echo {
    from: Ipv4Addr,
    to: Ipv4Addr,
    /// Behind type, code and checksum: identifier, sequence number, payload.
    rest: Vec<u8>,
}

/// An answer: from where, and ICMP's type and what stands behind the checksum.
type Packet = (Ipv4Addr, u8, Vec<u8>);

/// All of them.
pub const ALL: &[Attack] = &[
    Attack { name: "honest", host: 1, is_answer: true, answer: |echo| vec![echo.reply(echo.rest.clone())] },
    Attack { name: "silent", host: 2, is_answer: false, answer: |_| vec![] },
    Attack { name: "identifier", host: 3, is_answer: false, answer: |echo| vec![echo.reply(echo.flipped(0))] },
    Attack { name: "sequence", host: 4, is_answer: false, answer: |echo| vec![echo.reply(echo.flipped(2))] },
    Attack { name: "huge", host: 5, is_answer: true, answer: |echo| vec![echo.reply(echo.resized(HUGE_BYTES))] },
    Attack { name: "bare", host: 6, is_answer: true, answer: |echo| vec![echo.reply(echo.resized(4))] },
    Attack { name: "short", host: 7, is_answer: false, answer: |echo| vec![echo.reply(echo.resized(1))] },
    Attack { name: "often", host: 8, is_answer: true, answer: |echo| vec![echo.reply(echo.rest.clone()); OFTEN] },
    Attack { name: "impostor", host: 9, is_answer: false, answer: |echo| vec![echo.from_elsewhere(ECHO_REPLY)] },
    Attack { name: "router", host: 10, is_answer: false, answer: |echo| vec![echo.quoted(UNREACHABLE, 28)] },
    Attack { name: "quotes-half", host: 11, is_answer: false, answer: |echo| vec![echo.quoted(UNREACHABLE, 22)] },
    Attack { name: "quotes-options", host: 12, is_answer: false, answer: |echo| vec![echo.quoted_with_options()] },
    Attack { name: "unknown-type", host: 13, is_answer: false, answer: |echo| vec![echo.typed(200)] },
    Attack { name: "asks-back", host: 14, is_answer: false, answer: |echo| vec![echo.typed(ECHO_REQUEST)] },
    Attack { name: "redirected", host: 15, is_answer: true, answer: Echo::redirected },
    Attack { name: "guesses", host: 16, is_answer: false, answer: Echo::guesses },
];

impl Attack {
    /// Where it lives.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 77, self.host)
    }
}

impl Echo {
    /// Reads a packet; `None` where it is something else.
    fn read(packet: &[u8]) -> Option<Self> {
        let address = |at: usize| packet.get(at..at + 4)?.try_into().ok().map(|four: [u8; 4]| Ipv4Addr::from(four));
        let icmp = packet.get(usize::from(packet.first()? & 15) * 4..)?;
        let is_request = *icmp.first()? == ECHO_REQUEST && *packet.get(8)? != OUR_HOPS;
        let rest = icmp.get(4..)?.to_vec();
        is_request.then_some(Self { from: address(12)?, to: address(16)?, rest })
    }

    fn typed(&self, kind: u8) -> Packet {
        (self.to, kind, self.rest.clone())
    }

    fn reply(&self, rest: Vec<u8>) -> Packet {
        (self.to, ECHO_REPLY, rest)
    }

    fn from_elsewhere(&self, kind: u8) -> Packet {
        (Ipv4Addr::new(192, 168, 77, 200), kind, self.rest.clone())
    }

    fn flipped(&self, at: usize) -> Vec<u8> {
        let mut rest = self.rest.clone();
        rest.iter_mut().skip(at).take(2).for_each(|byte| *byte ^= 0x5a);
        rest
    }

    fn resized(&self, bytes: usize) -> Vec<u8> {
        let mut rest = self.rest.clone();
        rest.resize(bytes, 0x53);
        rest
    }

    /// An error of a router that quotes so much of the request.
    fn quoted(&self, kind: u8, bytes: usize) -> Packet {
        let mut quoted = headed(self.to, self.from, &[&[ECHO_REQUEST, 0, 0, 0], &self.rest[..]].concat());
        quoted[12..16].copy_from_slice(&self.from.octets());
        quoted[16..20].copy_from_slice(&self.to.octets());
        quoted.truncate(bytes);
        (Ipv4Addr::new(192, 168, 77, 254), kind, [&[0; 4], &quoted[..]].concat())
    }

    /// The same, whose quoted header says that it is longer than what is there.
    fn quoted_with_options(&self) -> Packet {
        let (from, kind, mut rest) = self.quoted(UNREACHABLE, 28);
        rest[4] = 0x4f;
        (from, kind, rest)
    }

    /// The router says once that there is a shorter way, and the host answers all the same.
    fn redirected(&self) -> Vec<Packet> {
        let is_first = self.rest.get(2..4) == Some(&[0, 0]);
        let redirect = is_first.then(|| self.quoted(REDIRECT, 28));
        redirect.into_iter().chain([self.reply(self.rest.clone())]).collect()
    }

    /// Every sequence number but the right one.
    fn guesses(&self) -> Vec<Packet> {
        let guess = |n: u16| {
            let mut rest = self.rest.clone();
            rest[2..4].copy_from_slice(&n.to_be_bytes());
            self.reply(rest)
        };
        (100..100 + u16::try_from(OFTEN).unwrap_or(0)).map(guess).collect()
    }
}

fn headed(from: Ipv4Addr, to: Ipv4Addr, icmp: &[u8]) -> Vec<u8> {
    let length = u16::try_from(IP_HEADER_BYTES + icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    // The kernel reckons the header's checksum.
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, OUR_HOPS, 1, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(icmp);
    packet
}

/// ICMP with its checksum (RFC 1071).
fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = [&[kind, 0, 0, 0], rest].concat();
    let words = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(0_u32, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap_or(0);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// All the hosts, answering.
#[derive(Debug)]
pub struct HostilePings {
    asked: Arc<Mutex<BTreeMap<Ipv4Addr, u64>>>,
    ended: Arc<AtomicBool>,
}

impl HostilePings {
    /// Makes the kernel keep still and answers in its place.
    ///
    /// # Errors
    /// Outside of a namespace of its own, where this user may do neither.
    pub fn start() -> Result<Self> {
        std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1").context("echo requests are the kernel's")?;
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_header_included_v4(true)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let pings = Self { asked: Arc::default(), ended: Arc::default() };
        let (asked, ended) = (Arc::clone(&pings.asked), Arc::clone(&pings.ended));
        std::thread::spawn(move || serve(&socket, &asked, &ended));
        Ok(pings)
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self, attack: &Attack) -> u64 {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.get(&attack.address()).copied().unwrap_or_default()
    }
}

impl Drop for HostilePings {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn serve(socket: &Socket, asked: &Mutex<BTreeMap<Ipv4Addr, u64>>, ended: &AtomicBool) {
    let mut packet = [0; 2_048];
    let mut reader = socket;
    while !ended.load(Ordering::Relaxed) {
        let bytes = match reader.read(&mut packet) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => return,
        };
        let Some(echo) = Echo::read(&packet[..bytes]) else { continue };
        let Some(attack) = ALL.iter().find(|attack| attack.address() == echo.to) else { continue };
        *asked.lock().unwrap_or_else(PoisonError::into_inner).entry(echo.to).or_default() += 1;
        for (from, kind, rest) in (attack.answer)(&echo) {
            let to = SocketAddrV4::new(echo.from, 0).into();
            // A full queue loses packets, as a network does.
            drop(socket.send_to(&headed(from, echo.from, &icmp(kind, &rest)), &to));
        }
    }
}
