//! Questions and answers over UDP, where either can get lost.
//!
//! A question without an answer is asked again, twice, with more patience each time, and for fewer values where the
//! device has not shown that it takes as many: small cards drop what is too long for them and say nothing. Every time it
//! goes out by a socket of its own: what answers the first asking late can't be taken for the answer to the second. The
//! socket is connected, so that nobody but the device is heard. A user's session, whose keys take a megabyte of hashing,
//! is kept from poll to poll; it is given up at the first thing that goes wrong, and made anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use satellite_shared::gap::Reason;
use secrecy::ExposeSecret as _;
use snmp2::{AsyncSession, Error, Pdu, v3};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::login::{Credentials, Login};
use super::oid::{Data, Oid};
use super::walk::VALUES_MAX;
use crate::collector::{Failure, probe};

/// How often a question is asked.
const ASKINGS: u32 = 3;
/// How often a device may say in one asking that its clock is another.
const UPDATES_MAX: u32 = 2;
/// Questions of one poll, askings included; a switch of 500 ports takes some 400.
const QUESTIONS_MAX: u32 = 2_000;
/// Its clock may be 150 s away from ours (RFC 3414, 2.2.3), and the library does not let it tick.
const KEPT_FOR: Duration = Duration::from_secs(120);

/// A device's name in SNMPv3 (RFC 3411, `SnmpEngineID`).
const ENGINE_BYTES: RangeInclusive<usize> = 5..=32;
/// What a device says who it is in; a real one takes some 110.
const REPORT_BYTES_MAX: usize = 1 << 10;

/// What is asked.
pub(super) enum Question<'a> {
    /// What stands at each of these.
    Get(&'a [Oid]),
    /// What comes after each of these, so many times.
    Bulk(&'a [Oid], u32),
}

impl Question<'_> {
    fn names(&self) -> &[Oid] {
        match self {
            Self::Get(names) | Self::Bulk(names, _) => names,
        }
    }

    /// The same for so many names, where it is a GET for more.
    fn cut(&self, most: usize) -> Self {
        match *self {
            Self::Get(names) => Self::Get(&names[..names.len().min(most)]),
            Self::Bulk(names, times) => Self::Bulk(names, times),
        }
    }

    /// The most that an answer to it can hold.
    fn most(&self) -> usize {
        match self {
            Self::Get(names) => names.len(),
            Self::Bulk(names, times) => names.len() * usize::try_from(*times).unwrap_or(usize::MAX),
        }
    }
}

/// What a device answered.
pub(super) struct Answer {
    /// 0, or what it refuses with.
    pub(super) status: u32,
    /// Which of the names that concerns, counted from 1.
    pub(super) at: u32,
    /// For how many of the names that were asked about, from the first.
    pub(super) asked: usize,
    /// Names and what stands there.
    pub(super) bindings: Vec<(Oid, Data)>,
}

/// How many values a device gives by one GET, as far as it has shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grasp {
    /// More are not asked for.
    most: usize,
    /// So many it has answered to: silence after that is a question that was lost.
    shown: usize,
}

impl Default for Grasp {
    fn default() -> Self {
        Self { most: VALUES_MAX, shown: 0 }
    }
}

impl Grasp {
    /// From 16 to one within the askings of a question.
    fn on_silence(&mut self, asked: usize) {
        if asked > self.shown {
            self.most = (asked / 4).max(1);
        }
    }

    fn on_answer(&mut self, asked: usize) {
        self.shown = self.shown.max(asked);
    }
}

/// A user's session with a device.
pub(super) struct Session {
    inner: Box<AsyncSession>,
    address: SocketAddr,
    heard: Instant,
}

/// One poll's questions.
pub(super) struct Conversation<'a> {
    login: &'a Login,
    credentials: Credentials,
    addresses: Vec<SocketAddr>,
    /// Which of them is asked.
    chosen: usize,
    has_answered: bool,
    session: Option<Session>,
    wait: Duration,
    grasp: Grasp,
    /// What of it is of use to the next poll: nothing, where nobody answered.
    known_grasp: &'a mut Grasp,
    tally: &'a mut Tally,
}

/// How much was asked.
#[derive(Default)]
pub(super) struct Tally {
    /// Questions that were sent.
    pub(super) sent: u32,
    /// Those of them that had been asked before.
    pub(super) retried: u32,
}

/// Why an asking has no answer.
enum Trouble {
    Silence,
    Socket(std::io::Error),
    Wire(Error),
}

impl<'a> Conversation<'a> {
    /// A conversation with a device that has these addresses, in so much time.
    pub(super) fn new(
        login: &'a Login,
        credentials: Credentials,
        addresses: Vec<SocketAddr>,
        kept: Option<Session>,
        limit: Duration,
        known_grasp: &'a mut Grasp,
        tally: &'a mut Tally,
    ) -> Self {
        let kept = kept.filter(|kept| addresses.contains(&kept.address) && kept.heard.elapsed() < KEPT_FOR);
        let chosen = kept.as_ref().and_then(|kept| addresses.iter().position(|one| *one == kept.address));
        Self {
            login,
            credentials,
            addresses,
            chosen: chosen.unwrap_or(0),
            has_answered: false,
            session: kept,
            // Three askings, each twice as patient as the one before, and a rest to say so.
            wait: limit / 9,
            grasp: *known_grasp,
            known_grasp,
            tally,
        }
    }

    /// What of it is of use to the next poll.
    pub(super) fn keep(self) -> Option<Session> {
        self.session.filter(|_| matches!(self.credentials, Credentials::User(..)))
    }

    /// Asks until there is an answer; it may be about the first names alone.
    pub(super) async fn ask(&mut self, question: &Question<'_>) -> Result<Answer, Failure> {
        let mut asking = 1;
        loop {
            let was_kept = self.session.is_some() && !self.has_answered;
            let question = question.cut(self.grasp.most);
            let asked = question.names().len();
            let trouble = match self.ask_once(&question).await {
                Ok(answer) => {
                    self.has_answered = true;
                    if matches!(question, Question::Get(_)) {
                        self.grasp.on_answer(asked);
                        *self.known_grasp = self.grasp;
                    }
                    return Ok(answer);
                }
                Err(trouble) => trouble,
            };
            let is_elsewhere = self.is_elsewhere(asking);
            let is_worth_it = was_kept
                || match &trouble {
                    Trouble::Silence => true,
                    Trouble::Wire(Error::AuthFailure(_) | Error::Crypto(_)) => false,
                    Trouble::Wire(Error::Send | Error::Receive) | Trouble::Socket(_) => is_elsewhere,
                    Trouble::Wire(_) => true,
                };
            if !is_worth_it || asking >= ASKINGS {
                return Err(self.failure(&trouble, asking));
            }
            if matches!(trouble, Trouble::Silence) && !is_elsewhere {
                self.wait *= 2;
                if matches!(question, Question::Get(_)) {
                    self.grasp.on_silence(asked);
                }
            }
            if !self.has_answered && !was_kept {
                self.chosen = (self.chosen + 1) % self.addresses.len().max(1);
            }
            asking += 1;
            self.tally.retried += 1;
        }
    }

    /// Whether the device has an address that has not been asked yet.
    fn is_elsewhere(&self, asking: u32) -> bool {
        !self.has_answered && usize::try_from(asking).is_ok_and(|asked| asked < self.addresses.len())
    }

    async fn ask_once(&mut self, question: &Question<'_>) -> Result<Answer, Trouble> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.open().await?,
        };
        for _ in 0..=UPDATES_MAX {
            self.tally.sent += 1;
            if self.tally.sent > QUESTIONS_MAX {
                return Err(Trouble::Wire(Error::BufferOverflow));
            }
            match tokio::time::timeout(self.wait, put(&mut session.inner, question)).await {
                Err(_) => return Err(Trouble::Silence),
                // The device said what its clock shows, and only now can the question be signed for it.
                Ok(Err(Error::AuthUpdated)) => {}
                Ok(Err(error)) => return Err(Trouble::Wire(error)),
                Ok(Ok(answer)) => {
                    session.heard = Instant::now();
                    self.session = Some(session);
                    return Ok(answer);
                }
            }
        }
        Err(Trouble::Wire(Error::AuthUpdated))
    }

    async fn open(&mut self) -> Result<Session, Trouble> {
        let unreachable = || Trouble::Socket(std::io::ErrorKind::NetworkUnreachable.into());
        let address = *self.addresses.get(self.chosen).ok_or_else(unreachable)?;
        let mut first = [0; 4];
        aws_lc_rs::rand::fill(&mut first).map_err(|_| Trouble::Socket(std::io::ErrorKind::Other.into()))?;
        // Nobody who is not on the way can guess it; positive, as some devices want it.
        let first = i32::from_ne_bytes(first) & 0x3fff_ffff;
        // Boxed: it holds two buffers of the longest datagram.
        let opened = match &self.credentials {
            Credentials::Community(community) => {
                Box::pin(AsyncSession::new_v2c(address, community.expose_secret().as_bytes(), first)).await
            }
            Credentials::User(security, _) => {
                self.tally.sent += 1;
                let met = tokio::time::timeout(self.wait, meet(address, first, security.as_ref().clone())).await;
                let security = met.map_err(|_| Trouble::Silence)??;
                Box::pin(AsyncSession::new_v3(address, first + 1, security)).await
            }
        };
        Ok(Session { inner: Box::new(opened.map_err(Trouble::Socket)?), address, heard: Instant::now() })
    }

    fn failure(&self, trouble: &Trouble, askings: u32) -> Failure {
        match trouble {
            Trouble::Silence if self.has_answered => {
                Failure::new(Reason::Timeout, format!("the device fell silent: asked {askings} times"))
            }
            Trouble::Silence => {
                Failure::new(Reason::Timeout, format!("no answer, asked {askings} times: {}", self.login.silence()))
            }
            Trouble::Socket(error) => probe::failure_of_io(error),
            Trouble::Wire(Error::Send | Error::Receive) => {
                Failure::new(Reason::Refused, "refused: nothing listens there, or a firewall says so")
            }
            Trouble::Wire(_) if self.tally.sent > QUESTIONS_MAX => {
                Failure::new(Reason::BadAnswer, format!("more than {QUESTIONS_MAX} questions, and no end of answers"))
            }
            Trouble::Wire(Error::AuthFailure(_)) => self.login.refusal(),
            // A report instead of an answer: who is not asked for a password is told so like this.
            Trouble::Wire(Error::AsnWrongType) if matches!(self.login, Login::User { .. }) => self.login.refusal(),
            Trouble::Wire(error) => Failure::new(Reason::BadAnswer, format!("not what SNMP says here: {error}")),
        }
    }
}

/// Asks a device who it is (RFC 3414, 4), and makes the keys for it.
///
/// Not by the library's own way: it takes a name of any length, and ends the program where that does not fit its
/// datagrams.
async fn meet(address: SocketAddr, id: i32, mut security: v3::Security) -> Result<v3::Security, Trouble> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.map_err(Trouble::Socket)?;
    socket.connect(address).await.map_err(Trouble::Socket)?;
    socket.send(&who_are_you(id)).await.map_err(Trouble::Socket)?;
    let mut report = [0; REPORT_BYTES_MAX];
    let length = socket.recv(&mut report).await.map_err(Trouble::Socket)?;
    // A megabyte of hashing for each password: not where everything else waits for it.
    let work = move || match Pdu::from_bytes_with_security(&report[..length], Some(&mut security)) {
        Ok(_) | Err(Error::AuthUpdated) => Ok(security),
        Err(error) => Err(Trouble::Wire(error)),
    };
    let ended = |_| Trouble::Socket(std::io::ErrorKind::Other.into());
    let security = tokio::task::spawn_blocking(work).await.map_err(ended)??;
    let is_clock = |value: i64| (0..=i64::from(i32::MAX)).contains(&value);
    let is_engine = ENGINE_BYTES.contains(&security.engine_id().len());
    if is_engine && is_clock(security.engine_boots()) && is_clock(security.engine_time()) {
        Ok(security)
    } else {
        Err(Trouble::Wire(Error::ValueOutOfRange))
    }
}

/// A GET of nothing, by nobody, to whomever: what is wrong with it is told with the device's name and clock.
fn who_are_you(id: i32) -> Vec<u8> {
    let id = id.to_be_bytes();
    let head = [&[0x30, 17, 2, 4], &id[..], &[2, 3, 0, 0xff, 0xe3, 4, 1, 4, 2, 1, 3]].concat();
    let nobody = [4, 16, 0x30, 14, 4, 0, 2, 1, 0, 2, 1, 0, 4, 0, 4, 0, 4, 0];
    let nothing = [&[0x30, 20, 4, 0, 4, 0, 0xa0, 14, 2, 4], &id[..], &[2, 1, 0, 2, 1, 0, 0x30, 0]].concat();
    [&[0x30, 62, 2, 1, 3], &head[..], &nobody, &nothing].concat()
}

async fn put(session: &mut AsyncSession, question: &Question<'_>) -> Result<Answer, Error> {
    let names = question.names().iter().map(|name| name.wire().ok_or(Error::ValueOutOfRange));
    let names: Vec<snmp2::Oid<'_>> = names.collect::<Result<_, _>>()?;
    let names: Vec<&snmp2::Oid<'_>> = names.iter().collect();
    let answer = match question {
        Question::Get(_) => session.get_many(&names).await?,
        Question::Bulk(_, times) => session.getbulk(&names, 0, *times).await?,
    };
    read(&answer, question)
}

fn read(answer: &Pdu<'_>, question: &Question<'_>) -> Result<Answer, Error> {
    let most = question.most();
    let mut bindings = Vec::new();
    if answer.error_status == 0 {
        for (name, value) in answer.varbinds.clone() {
            if bindings.len() == most {
                return Err(Error::BufferOverflow);
            }
            bindings.push(Data::read(&name, &value).ok_or(Error::AsnParse)?);
        }
    }
    let asked = question.names().len();
    Ok(Answer { status: answer.error_status, at: answer.error_index, asked, bindings })
}
