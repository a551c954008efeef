//! One session with the relay: what happened goes in, what to do comes out.
//!
//! HELLO → AUTHENTICATE → AUTHENTICATED, then frames in two lanes. The backlog is what the buffer held when the session
//! opened, the live lane what it committed since; while both have something, the backlog gets at most half of the bytes.
//! Frames are pulled by [`Link::next`], so that a slow socket slows the reading of the buffer and nothing piles up.
//!
//! Invariants: a block is forgotten only after it was sent and acknowledged, or the relay said at the start that it
//! has it; a block never goes before the series it names. Pure: no socket, no clock, no buffer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use satellite_shared::clock::Now;
use satellite_shared::id::Epoch;
use satellite_shared::limits;
use satellite_shared::ranges::{Overlap, Ranges};
use satellite_shared::wire::block;
use satellite_shared::wire::to_relay::{Complaint, ConfigStatus};
use satellite_shared::wire::to_satellite::{
    Ack, Authenticated, Certificate, Config, Drain, Hello, Nack, NackCode, Refused, Stored,
};
use satellite_shared::wire::{ToRelay, ToSatellite, version};

use crate::buffer::{Place, StoredBlock};
use crate::uplink::backoff::Ending;
use crate::uplink::in_flight::{InFlight, Sent};

/// HELLO, and then AUTHENTICATED, must come within this.
const ANSWER_MS: u64 = 15_000;
/// A link that says nothing for so long is dead.
const DEAD_MS: u64 = 50_000;
/// So long may pass without a byte either way before we ping.
const QUIET_MS: u64 = 20_000;
/// Frames under way and no word on any of them for so long: the relay is stuck.
const ACK_MS: u64 = 30_000;
/// One frame forgotten while others are acknowledged.
const ACK_ONE_MS: u64 = 300_000;
/// How long a link that is about to be closed waits for what is under way.
const FINISH_MS: u64 = 10_000;
/// How much of a lane is read from the buffer at once.
const READ_BYTES: usize = 64 << 10;
/// How long a buffer that can't be read is left alone.
const READ_PAUSE_MS: u64 = 5_000;
/// Texts that can't be read before the relay is taken for broken.
const COMPLAINTS_MAX: u32 = 100;

/// Which way through the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the buffer held when the session opened.
    Backlog,
    /// What it committed since.
    Live,
    /// A block that the relay asked for again.
    Again,
}

/// What the link needs from the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Blocks, oldest first.
    Blocks {
        /// For which way.
        way: Way,
        /// The first that may be given.
        from: Place,
        /// The first that may not.
        below: Place,
        /// About how much.
        bytes_max: usize,
    },
    /// All series frames of an opening.
    Series {
        /// Which.
        opening: u32,
    },
}

/// What the socket gets next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This frame.
    Frame(Bytes),
    /// Nothing until this was read.
    Read(Read),
    /// Nothing for now.
    Idle,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The relay has shown itself.
    Greeted(Hello),
    /// Say who we are, in this protocol version.
    Authenticate(u32),
    /// Say how far we are.
    Heartbeat,
    /// Say this.
    Say(ToRelay),
    /// Make the relay show that it is there.
    Ping,
    /// We are in.
    Opened(Box<Authenticated>),
    /// These are committed: delete them.
    Forget(Epoch, Ranges),
    /// A configuration came.
    Config(Config),
    /// A certificate came.
    Certificate(Certificate),
    /// The relay did not understand something.
    Complained(Complaint),
    /// A block can't be sent in this session; for the log, once.
    Stuck(String),
    /// Close the connection.
    Close(Closing),
}

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// For people.
    pub why: String,
    /// For the wait before the next; `None` where how long the session lasted decides.
    pub ending: Option<Ending>,
}

impl Closing {
    /// The link failed.
    #[must_use]
    pub fn lost(why: impl Into<String>) -> Self {
        Self { why: why.into(), ending: None }
    }
}

#[derive(Debug)]
enum Phase {
    Greeting,
    Authenticating,
    Open,
    Finishing { until_ms: u64, closing: Closing },
    Closed,
}

#[derive(Debug)]
struct Lane {
    next: Place,
    end: Place,
    queue: VecDeque<StoredBlock>,
    /// Sent while the other lane had something too.
    bytes: u64,
}

impl Lane {
    fn new(next: Place, end: Place) -> Self {
        Self { next, end, queue: VecDeque::new(), bytes: 0 }
    }

    fn has_something(&self, newest: Place) -> bool {
        !self.queue.is_empty() || (self.next < self.end && self.next <= newest)
    }
}

/// What of an opening's series went over this connection.
#[derive(Debug, Clone, Copy)]
struct Announced {
    frames: usize,
    /// Every block up to here uses only what went.
    through: Place,
}

/// The session.
#[derive(Debug)]
pub struct Link {
    phase: Phase,
    protocol: u32,
    since_ms: u64,
    received_ms: u64,
    said_ms: u64,
    pinged_ms: u64,
    heartbeat_every_ms: u64,
    heartbeat_ms: u64,
    window: InFlight,
    newest: Place,
    stored: HashMap<Epoch, Ranges>,
    strict: bool,
    backlog: Lane,
    live: Lane,
    again: VecDeque<StoredBlock>,
    /// When to send what was not taken.
    retries: BTreeMap<Place, u64>,
    /// How often it was not.
    refusals: HashMap<Place, u32>,
    series: VecDeque<Bytes>,
    /// The buffer failed: no reading before this.
    pause_ms: u64,
    announced: HashMap<u32, Announced>,
    status: Option<ConfigStatus>,
    complaints: u32,
    blocks_sent: u64,
    records_acknowledged: u64,
}

impl Link {
    /// A session whose connection was just made. `newest` is the last block that the buffer holds, `status` what became
    /// of the last configuration: it is said again, as the connection before may have lost it.
    #[must_use]
    pub fn new(now: Now, newest: Place, status: Option<ConfigStatus>) -> Self {
        let now_ms = now.mono_ms;
        let border = after(newest);
        Self {
            phase: Phase::Greeting,
            protocol: version::CURRENT,
            since_ms: now_ms,
            received_ms: now_ms,
            said_ms: now_ms,
            pinged_ms: now_ms,
            heartbeat_every_ms: QUIET_MS,
            heartbeat_ms: now_ms,
            window: InFlight::default(),
            newest,
            stored: HashMap::new(),
            strict: false,
            backlog: Lane::new(Place::default(), border),
            live: Lane::new(border, Place { opening: u32::MAX, seq: u64::MAX }),
            again: VecDeque::new(),
            retries: BTreeMap::new(),
            refusals: HashMap::new(),
            series: VecDeque::new(),
            pause_ms: 0,
            announced: HashMap::new(),
            status,
            complaints: 0,
            blocks_sent: 0,
            records_acknowledged: 0,
        }
    }

    /// Whether the relay has let us in and frames may go.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether nothing is under way or waits to go.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.window.is_empty()
            && self.series.is_empty()
            && self.again.is_empty()
            && self.retries.is_empty()
            && !self.backlog.has_something(self.newest)
            && !self.live.has_something(self.newest)
    }

    /// Blocks that went and records that the relay has committed since this was asked last.
    pub fn forget_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.blocks_sent), std::mem::take(&mut self.records_acknowledged))
    }

    /// Bytes came, whatever they are.
    pub fn on_bytes(&mut self, now: Now) {
        self.received_ms = now.mono_ms;
    }

    /// Something was given to the socket.
    pub fn on_said(&mut self, now: Now) {
        self.said_ms = now.mono_ms;
    }

    /// The buffer committed up to here.
    pub fn on_buffer(&mut self, newest: Place) {
        self.newest = self.newest.max(newest);
    }

    /// Somebody wants the configuration anew: AUTHENTICATE in a live session asks for it.
    #[must_use]
    pub fn refresh(&self) -> Option<Effect> {
        self.is_open().then_some(Effect::Authenticate(self.protocol))
    }

    /// The buffer can't be read now.
    pub fn on_read_failed(&mut self, now: Now, read: Read) {
        self.pause_ms = now.mono_ms + READ_PAUSE_MS;
        if let Read::Blocks { way: Way::Again, from, .. } = read {
            self.retries.insert(from, self.pause_ms);
        }
    }

    /// A configuration was judged.
    pub fn on_status(&mut self, status: ConfigStatus) -> Option<Effect> {
        self.status = Some(status.clone());
        self.is_open().then_some(Effect::Say(ToRelay::ConfigStatus(status)))
    }

    /// A text message came.
    pub fn on_text(&mut self, now: Now, text: &str) -> Vec<Effect> {
        let max = satellite_shared::wire::to_satellite::event_bytes_max();
        if text.len() > max {
            return self.close(Closing::lost(format!(
                "the relay sent an event of {} bytes, more than {max}: is it a satellite-relay?",
                text.len()
            )));
        }
        match serde_json::from_str::<ToSatellite>(text) {
            Ok(event) => self.on_event(now, event),
            Err(error) => {
                self.complaints += 1;
                if self.complaints > COMPLAINTS_MAX {
                    return self.close(Closing::lost("the relay keeps saying what this version does not understand"));
                }
                // As serde says it of a name that the enum does not have.
                let unknown = error.to_string().starts_with("unknown variant");
                vec![complain(if unknown { "unsupported" } else { "malformed" }, &error.to_string())]
            }
        }
    }

    /// An event of the relay's.
    pub fn on_event(&mut self, now: Now, event: ToSatellite) -> Vec<Effect> {
        match (event, &self.phase) {
            (_, Phase::Closed) => vec![],
            (ToSatellite::Hello(hello), Phase::Greeting) => self.on_hello(now, hello),
            (ToSatellite::Refused(refused), _) => self.close(refusal(&refused)),
            (ToSatellite::Drain(drain), _) => self.on_drain(now, &drain),
            (ToSatellite::Error(complaint), _) => vec![Effect::Complained(complaint)],
            (ToSatellite::Heartbeat(_), _) => vec![],
            (ToSatellite::Authenticated(welcome), Phase::Authenticating | Phase::Open) => {
                self.on_authenticated(now, welcome)
            }
            (ToSatellite::Ack(ack), Phase::Open | Phase::Finishing { .. }) => self.on_ack(now, ack),
            (ToSatellite::Nack(nack), Phase::Open | Phase::Finishing { .. }) => self.on_nack(now, &nack),
            (ToSatellite::Config(config), Phase::Open) => vec![Effect::Config(config)],
            (ToSatellite::Certificate(certificate), Phase::Open) => vec![Effect::Certificate(certificate)],
            (ToSatellite::Config(_) | ToSatellite::Certificate(_), Phase::Finishing { .. }) => vec![],
            (
                ToSatellite::Hello(_)
                | ToSatellite::Authenticated(_)
                | ToSatellite::Ack(_)
                | ToSatellite::Nack(_)
                | ToSatellite::Config(_)
                | ToSatellite::Certificate(_),
                Phase::Greeting | Phase::Authenticating | Phase::Open | Phase::Finishing { .. },
            ) => vec![complain("malformed", "this event can't come now")],
        }
    }

    /// Time passed.
    pub fn on_tick(&mut self, now: Now) -> Vec<Effect> {
        let now_ms = now.mono_ms;
        if let Some(closing) = self.overdue(now_ms) {
            return self.close(closing);
        }
        let mut effects = vec![];
        let quiet_ms = self.said_ms.min(self.received_ms).max(self.pinged_ms);
        if now_ms >= quiet_ms + QUIET_MS && !matches!(self.phase, Phase::Closed) {
            self.pinged_ms = now_ms;
            effects.push(Effect::Ping);
        }
        if self.is_open() && now_ms >= self.heartbeat_ms {
            self.heartbeat_ms = now_ms + self.heartbeat_every_ms;
            effects.push(Effect::Heartbeat);
        }
        effects
    }

    /// When [`Link::on_tick`] has something to do next.
    #[must_use]
    pub fn next_tick_ms(&self, now: Now) -> u64 {
        let mut next = (self.received_ms + DEAD_MS)
            .min(self.said_ms.min(self.received_ms).max(self.pinged_ms) + QUIET_MS)
            .min(self.window.waiting_since().map_or(u64::MAX, |since| since + ACK_MS));
        match &self.phase {
            Phase::Greeting | Phase::Authenticating => next = next.min(self.since_ms + ANSWER_MS),
            Phase::Open => {
                let retry = self.retries.values().copied().min().unwrap_or(u64::MAX);
                let pause = if self.pause_ms > now.mono_ms { self.pause_ms } else { u64::MAX };
                next = next.min(self.heartbeat_ms).min(retry).min(pause);
            }
            Phase::Finishing { until_ms, .. } => next = next.min(*until_ms),
            Phase::Closed => {}
        }
        next
    }

    /// Sends no more frames, waits for what is under way, then closes.
    pub fn finish(&mut self, now: Now, closing: Closing) -> Vec<Effect> {
        match self.phase {
            Phase::Open if !self.window.is_empty() => {
                self.phase = Phase::Finishing { until_ms: now.mono_ms + FINISH_MS, closing };
                vec![]
            }
            Phase::Greeting | Phase::Authenticating | Phase::Open => self.close(closing),
            Phase::Finishing { .. } | Phase::Closed => vec![],
        }
    }

    /// What the socket gets next, now that it has room.
    #[must_use]
    pub fn next(&mut self, now: Now) -> Next {
        if !self.is_open() {
            return Next::Idle;
        }
        if let Some(frame) = self.series.pop_front() {
            return Next::Frame(frame);
        }
        loop {
            if !self.window.has_room(1) || now.mono_ms < self.pause_ms {
                return Next::Idle;
            }
            let Some(way) = self.choose(now.mono_ms) else { return Next::Idle };
            let Some(head) = self.queue(way).front() else { return self.read(way, now.mono_ms) };
            let (place, bytes) = (head.place, head.frame.len() as u64);
            // What is damaged the buffer reports; here it is only left out.
            let header = block::header(&head.frame).ok().filter(|header| !self.is_stored(header));
            let Some(header) = header else {
                self.queue(way).pop_front();
                continue;
            };
            if !self.window.has_room(bytes) {
                return Next::Idle;
            }
            if self.announced.get(&place.opening).is_none_or(|announced| announced.through < place) {
                return Next::Read(Read::Series { opening: place.opening });
            }
            let Some(block) = self.queue(way).pop_front() else { return Next::Idle };
            self.account(way, bytes);
            let sent = Sent { place, last_seq: header.last_seq(), bytes, sent_ms: now.mono_ms };
            self.window.insert(header.epoch, header.first_seq, sent);
            self.blocks_sent += 1;
            return Next::Frame(block.frame);
        }
    }

    /// Blocks were read, as asked for.
    pub fn on_blocks(&mut self, way: Way, below: Place, blocks: Vec<StoredBlock>) {
        match way {
            Way::Again => self.again.extend(blocks),
            Way::Backlog | Way::Live => {
                let lane = if way == Way::Backlog { &mut self.backlog } else { &mut self.live };
                lane.next = blocks.last().map_or(below, |last| after(last.place));
                lane.queue.extend(blocks);
            }
        }
    }

    /// The series frames of an opening were read; `newest` is the last block that was committed before the reading.
    pub fn on_series(&mut self, opening: u32, frames: Vec<Bytes>, newest: Place) {
        let sent = self.announced.get(&opening).map_or(0, |announced| announced.frames);
        let through = if newest.opening > opening { Place { opening, seq: u64::MAX } } else { newest };
        self.announced.insert(opening, Announced { frames: frames.len(), through });
        self.series.extend(frames.into_iter().skip(sent));
    }

    fn on_hello(&mut self, now: Now, hello: Hello) -> Vec<Effect> {
        let Some(protocol) = version::negotiate(hello.protocol_min, hello.protocol_max) else {
            let why = format!(
                "the relay speaks the protocol versions {} to {}, this program {} to {}: update the older one",
                hello.protocol_min,
                hello.protocol_max,
                version::OLDEST,
                version::CURRENT
            );
            return self.close(Closing { why, ending: Some(Ending::Permanent { retry_after: Duration::ZERO }) });
        };
        self.phase = Phase::Authenticating;
        self.since_ms = now.mono_ms;
        self.heartbeat_every_ms = u64::from(hello.heartbeat_s.clamp(1, 300)) * 1000;
        self.protocol = protocol;
        vec![Effect::Greeted(hello), Effect::Authenticate(protocol)]
    }

    fn on_authenticated(&mut self, now: Now, welcome: Authenticated) -> Vec<Effect> {
        let first = !self.is_open();
        self.window.set_credit(welcome.credit_bytes);
        let mut effects: Vec<Effect> = vec![];
        for Stored { epoch, ranges } in &welcome.stored {
            self.window.acknowledge(now.mono_ms, *epoch, ranges);
            if !ranges.is_empty() {
                effects.push(Effect::Forget(*epoch, ranges.clone()));
            }
        }
        if first {
            self.phase = Phase::Open;
            self.heartbeat_ms = now.mono_ms;
            // Each new lane may open a range of its own, and another when it meets the one before.
            self.strict = welcome.stored.iter().any(|s| s.ranges.as_slice().len() + 2 > limits::RANGES_PER_EPOCH_MAX);
            self.stored = welcome.stored.iter().map(|s| (s.epoch, s.ranges.clone())).collect();
            effects.extend(self.status.clone().map(|status| Effect::Say(ToRelay::ConfigStatus(status))));
        }
        effects.insert(0, Effect::Opened(Box::new(welcome)));
        effects
    }

    fn on_ack(&mut self, now: Now, ack: Ack) -> Vec<Effect> {
        self.window.set_credit(ack.credit_bytes);
        let mut effects = vec![];
        for Stored { epoch, ranges } in ack.stored {
            // Only what was sent and lies wholly inside: no acknowledgement deletes what never went.
            let forgotten = self.window.acknowledge(now.mono_ms, epoch, &ranges);
            if !forgotten.is_empty() {
                self.records_acknowledged += forgotten.len();
                effects.push(Effect::Forget(epoch, forgotten));
            }
        }
        effects.extend(self.close_if_finished());
        effects
    }

    fn on_nack(&mut self, now: Now, nack: &Nack) -> Vec<Effect> {
        let Some(sent) = self.window.take(now.mono_ms, nack.epoch, nack.first_seq) else { return vec![] };
        let times = self.refusals.entry(sent.place).or_default();
        *times += 1;
        let times = *times;
        let asked_ms = nack.retry_after_s.min(3600) * 1000;
        let mut effects = vec![];
        match nack.code {
            NackCode::Retry => {
                self.retries.insert(sent.place, now.mono_ms + asked_ms.max(1000));
            }
            NackCode::UnknownSeries => {
                self.announced.remove(&sent.place.opening);
                // The first time at once; a relay that never learns is not asked in a loop.
                let patience_ms = if times == 1 { 0 } else { 1000 << times.min(8) };
                self.retries.insert(sent.place, now.mono_ms + asked_ms.max(patience_ms));
            }
            NackCode::Conflict => effects.push(Effect::Stuck(format!(
                "the relay has other records under the numbers of the block {}/{}..={}: {}; it stays in the buffer",
                nack.epoch, nack.first_seq, sent.last_seq, nack.message
            ))),
        }
        effects.extend(self.close_if_finished());
        effects
    }

    fn on_drain(&mut self, now: Now, drain: &Drain) -> Vec<Effect> {
        let ending = Ending::Drained {
            after: Duration::from_millis(drain.reconnect_after_ms),
            spread: Duration::from_millis(drain.spread_ms),
        };
        let reason: String = drain.reason.chars().take(200).collect();
        self.finish(now, Closing { why: format!("the relay closes for a while: {reason}"), ending: Some(ending) })
    }

    fn close(&mut self, closing: Closing) -> Vec<Effect> {
        if matches!(self.phase, Phase::Closed) {
            return vec![];
        }
        self.phase = Phase::Closed;
        vec![Effect::Close(closing)]
    }

    fn close_if_finished(&mut self) -> Vec<Effect> {
        match &self.phase {
            Phase::Finishing { closing, .. } if self.window.is_empty() => {
                let closing = closing.clone();
                self.close(closing)
            }
            Phase::Greeting | Phase::Authenticating | Phase::Open | Phase::Finishing { .. } | Phase::Closed => vec![],
        }
    }

    fn overdue(&self, now_ms: u64) -> Option<Closing> {
        let late = |since_ms: u64, limit_ms: u64| now_ms >= since_ms + limit_ms;
        match &self.phase {
            Phase::Greeting if late(self.since_ms, ANSWER_MS) => {
                return Some(Closing::lost("the relay did not say HELLO within 15 s"));
            }
            Phase::Authenticating if late(self.since_ms, ANSWER_MS) => {
                return Some(Closing::lost("the relay did not answer AUTHENTICATE within 15 s"));
            }
            Phase::Finishing { until_ms, closing } if now_ms >= *until_ms => return Some(closing.clone()),
            Phase::Closed => return None,
            Phase::Greeting | Phase::Authenticating | Phase::Open | Phase::Finishing { .. } => {}
        }
        if late(self.received_ms, DEAD_MS) {
            return Some(Closing::lost("the relay said nothing for 50 s: the link is dead"));
        }
        let stuck = self.window.waiting_since().is_some_and(|since| late(since, ACK_MS))
            || self.window.oldest().is_some_and(|since| late(since, ACK_ONE_MS));
        stuck.then(|| Closing::lost("the relay did not acknowledge what was sent within 30 s"))
    }

    fn is_stored(&self, header: &block::Header) -> bool {
        let known = self.stored.get(&header.epoch);
        known.is_some_and(|known| known.overlap(header.first_seq, header.last_seq()) == Overlap::Whole)
    }

    fn choose(&mut self, now_ms: u64) -> Option<Way> {
        let again = !self.again.is_empty() || self.due_retry(now_ms).is_some();
        if again {
            return Some(Way::Again);
        }
        let backlog = self.backlog.has_something(self.newest);
        let live = self.live.has_something(self.newest) && !(self.strict && backlog);
        match (backlog, live) {
            (false, false) => None,
            (true, true) if self.backlog.bytes < self.live.bytes => Some(Way::Backlog),
            (true, true) => Some(Way::Live),
            (backlog, _) => {
                // Alone on the link: no debt grows out of that.
                (self.backlog.bytes, self.live.bytes) = (0, 0);
                Some(if backlog { Way::Backlog } else { Way::Live })
            }
        }
    }

    fn account(&mut self, way: Way, bytes: u64) {
        match way {
            Way::Backlog => self.backlog.bytes += bytes,
            Way::Live => self.live.bytes += bytes,
            Way::Again => {}
        }
    }

    fn queue(&mut self, way: Way) -> &mut VecDeque<StoredBlock> {
        match way {
            Way::Backlog => &mut self.backlog.queue,
            Way::Live => &mut self.live.queue,
            Way::Again => &mut self.again,
        }
    }

    fn due_retry(&self, now_ms: u64) -> Option<Place> {
        self.retries.iter().find(|(_, at_ms)| **at_ms <= now_ms).map(|(place, _)| *place)
    }

    fn read(&mut self, way: Way, now_ms: u64) -> Next {
        let (from, below) = match way {
            Way::Backlog => (self.backlog.next, self.backlog.end),
            Way::Live => (self.live.next, after(self.newest)),
            Way::Again => {
                let Some(place) = self.due_retry(now_ms) else { return Next::Idle };
                self.retries.remove(&place);
                (place, after(place))
            }
        };
        if from >= below {
            return Next::Idle;
        }
        Next::Read(Read::Blocks { way, from, below, bytes_max: READ_BYTES })
    }
}

/// The first place after one.
fn after(place: Place) -> Place {
    Place { opening: place.opening, seq: place.seq.saturating_add(1) }
}

fn complain(code: &str, message: &str) -> Effect {
    let message = message.chars().take(limits::DETAIL_BYTES_MAX).collect();
    Effect::Say(ToRelay::Error(Complaint { code: code.to_owned(), message }))
}

fn refusal(refused: &Refused) -> Closing {
    let retry_after = Duration::from_secs(refused.retry_after_s);
    let ending =
        if refused.code.is_permanent() { Ending::Permanent { retry_after } } else { Ending::Refused { retry_after } };
    let message: String = refused.message.chars().take(500).collect();
    Closing { why: format!("the relay refused: {message}"), ending: Some(ending) }
}
