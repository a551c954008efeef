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
/// Events that can't be read or can't come now before the relay is taken for broken.
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
    /// How often the store had been opened when this was said last.
    store_opened: Option<u64>,
    /// The backlog is to begin anew, once what is being read has come.
    rewind: bool,
    reading: bool,
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
            store_opened: None,
            rewind: false,
            reading: false,
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

    /// The store was opened so often. Where that is news, it may hold again what was acknowledged and deleted: all of it
    /// up to the live lane is read once more, and what is there is sent, for the relay to acknowledge again.
    pub fn on_store(&mut self, opened: u64) {
        self.rewind |= self.store_opened.replace(opened).is_some_and(|before| before != opened);
        self.rewind_if_asked();
    }

    fn rewind_if_asked(&mut self) {
        if !self.rewind || self.reading {
            return;
        }
        self.rewind = false;
        self.stored.clear();
        self.live.next = self.live.queue.front().map_or(self.live.next, |block| block.place);
        self.live.queue.clear();
        self.backlog = Lane { bytes: self.backlog.bytes, ..Lane::new(Place::default(), self.live.next) };
    }

    /// Somebody wants the configuration anew: AUTHENTICATE in a live session asks for it.
    #[must_use]
    pub fn refresh(&self) -> Option<Effect> {
        self.is_open().then_some(Effect::Authenticate(self.protocol))
    }

    /// The buffer can't be read now.
    pub fn on_read_failed(&mut self, now: Now, read: Read) {
        self.pause_ms = now.mono_ms + READ_PAUSE_MS;
        if let Read::Blocks { way, from, .. } = read {
            if way == Way::Again {
                self.retries.insert(from, self.pause_ms);
            }
            self.reading = false;
            self.rewind_if_asked();
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
                // As serde says it of a name that the enum does not have.
                let unknown = error.to_string().starts_with("unknown variant");
                self.complain(if unknown { "unsupported" } else { "malformed" }, &error.to_string())
            }
        }
    }

    /// Tells the relay what was wrong, so often: one that never listens is not told for ever.
    fn complain(&mut self, code: &str, message: &str) -> Vec<Effect> {
        self.complaints += 1;
        if self.complaints > COMPLAINTS_MAX {
            return self.close(Closing::lost("the relay keeps saying what can't be or is not understood"));
        }
        let message = message.chars().take(limits::DETAIL_BYTES_MAX).collect();
        vec![Effect::Say(ToRelay::Error(Complaint { code: code.to_owned(), message }))]
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
            ) => self.complain("malformed", "this event can't come now"),
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
            let header = block::header(&head.frame).ok();
            let waits = way != Way::Again && self.retries.contains_key(&place);
            let header = header.filter(|header| !waits && !self.is_settled(header));
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
        self.reading = false;
        self.rewind_if_asked();
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

    /// Whether it is under way, or the relay has said at the start that it has it.
    fn is_settled(&self, header: &block::Header) -> bool {
        if self.window.has(header.epoch, header.first_seq) {
            return true;
        }
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
        self.reading = true;
        Next::Read(Read::Blocks { way, from, below, bytes_max: READ_BYTES })
    }
}

/// The first place after one.
fn after(place: Place) -> Place {
    Place { opening: place.opening, seq: place.seq.saturating_add(1) }
}

fn refusal(refused: &Refused) -> Closing {
    let retry_after = Duration::from_secs(refused.retry_after_s);
    let ending =
        if refused.code.is_permanent() { Ending::Permanent { retry_after } } else { Ending::Refused { retry_after } };
    let message: String = refused.message.chars().take(500).collect();
    Closing { why: format!("the relay refused: {message}"), ending: Some(ending) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use satellite_shared::id::SatelliteId;
    use satellite_shared::metric::{Kind, Series};
    use satellite_shared::wire::block::{Body, ClockQuality, Encoder, FrameKind, Group, Stamp};
    use satellite_shared::wire::to_relay::ConfigState;
    use satellite_shared::wire::to_satellite::{Alive, RefusalCode};

    use super::*;

    const CREDIT: u64 = 1 << 20;

    fn at(mono_ms: u64) -> Now {
        Now { wall_ms: 1_790_000_000_000, mono_ms }
    }

    fn epoch_of(opening: u32) -> Epoch {
        Epoch(u128::from(opening) + 100)
    }

    /// What stands in for the buffer: blocks of three records, one series frame an opening unless more are added.
    #[derive(Default)]
    struct Shelf {
        blocks: BTreeMap<Place, Bytes>,
        series: BTreeMap<u32, Vec<Bytes>>,
        newest: Place,
    }

    impl Shelf {
        fn commit(&mut self, opening: u32, blocks: u64) -> &mut Self {
            for _ in 0..blocks {
                let seq = if self.newest.opening == opening { self.newest.seq + 3 } else { 1 };
                self.newest = Place { opening, seq };
                self.blocks.insert(self.newest, frame(opening, seq));
            }
            if self.series.get(&opening).is_none_or(Vec::is_empty) {
                self.add_series(opening);
            }
            self
        }

        fn add_series(&mut self, opening: u32) {
            let frames = self.series.entry(opening).or_default();
            frames.push(series_frame(opening, frames.len() as u64));
        }

        fn answer(&self, link: &mut Link, read: Read) {
            match read {
                Read::Blocks { way, from, below, bytes_max } => {
                    let mut bytes = 0;
                    let blocks = self.blocks.range(from..below).take_while(|(_, frame)| {
                        bytes += frame.len();
                        bytes == frame.len() || bytes <= bytes_max
                    });
                    let blocks = blocks.map(|(&place, frame)| StoredBlock { place, frame: frame.clone() }).collect();
                    link.on_blocks(way, below, blocks);
                }
                Read::Series { opening } => {
                    link.on_series(opening, self.series.get(&opening).cloned().unwrap_or_default(), self.newest);
                }
            }
        }

        /// All that the link gives until it idles, at most `max`.
        fn pull(&self, link: &mut Link, now: Now, max: usize) -> Vec<block::Header> {
            let mut headers = vec![];
            while headers.len() < max {
                match link.next(now) {
                    Next::Frame(frame) => headers.push(block::header(&frame).unwrap()),
                    Next::Read(read) => self.answer(link, read),
                    Next::Idle => break,
                }
            }
            headers
        }
    }

    fn stamp(opening: u32, first_seq: u64) -> Stamp {
        Stamp { epoch: epoch_of(opening), first_seq, due_before: 0, made: at(0), quality: ClockQuality::Unknown }
    }

    fn frame(opening: u32, seq: u64) -> Bytes {
        let group = Group { series: vec![0, 1, 2], times_ms: vec![1], values: vec![1.0, 2.0, 3.0] };
        Encoder::default().encode(stamp(opening, seq), &Body::Samples(vec![group])).into()
    }

    fn series_frame(opening: u32, number: u64) -> Bytes {
        let series = Series {
            device: "ups".parse().unwrap(),
            name: "x".into(),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: vec![],
        };
        Encoder::default().encode(stamp(opening, number), &Body::Series(vec![series])).into()
    }

    fn hello() -> ToSatellite {
        ToSatellite::Hello(Hello {
            protocol_min: 1,
            protocol_max: 1,
            relay: "relay".into(),
            relay_version: "0".into(),
            clock_ms: 0,
            heartbeat_s: 30,
        })
    }

    fn welcome(stored: Vec<Stored>, credit_bytes: u64) -> ToSatellite {
        ToSatellite::Authenticated(Authenticated {
            satellite: SatelliteId::from_bits([1; 10]),
            session: "s".into(),
            stored,
            credit_bytes,
            config_version: 0,
            renew_after_ms: 0,
        })
    }

    fn open(shelf: &Shelf, stored: Vec<Stored>, credit_bytes: u64) -> (Link, Vec<Effect>) {
        let mut link = Link::new(at(0), shelf.newest, None);
        let effects = link.on_event(at(0), hello());
        assert!(matches!(effects[..], [Effect::Greeted(_), Effect::Authenticate(1)]), "{effects:?}");
        let effects = link.on_event(at(0), welcome(stored, credit_bytes));
        (link, effects)
    }

    fn stored(opening: u32, ranges: &[(u64, u64)]) -> Stored {
        Stored { epoch: epoch_of(opening), ranges: ranges.iter().copied().collect() }
    }

    fn ack(opening: u32, ranges: &[(u64, u64)]) -> ToSatellite {
        ToSatellite::Ack(Ack { stored: vec![stored(opening, ranges)], credit_bytes: CREDIT })
    }

    fn nack(opening: u32, first_seq: u64, code: NackCode, retry_after_s: u64) -> ToSatellite {
        let epoch = epoch_of(opening);
        ToSatellite::Nack(Nack { epoch, first_seq, code, message: "m".into(), retry_after_s })
    }

    fn blocks(headers: &[block::Header]) -> Vec<u64> {
        headers.iter().filter(|h| h.kind != FrameKind::Series).map(|h| h.first_seq).collect()
    }

    fn closing(effects: &[Effect]) -> Option<&Closing> {
        effects.iter().find_map(|effect| if let Effect::Close(closing) = effect { Some(closing) } else { None })
    }

    #[test]
    fn an_acknowledged_block_is_forgotten() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 2);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        assert_eq!(blocks(&shelf.pull(&mut link, at(0), 99)), [1, 4]);
        assert!(!link.is_drained());
        let effects = link.on_event(at(1), ack(1, &[(1, 6)]));
        assert_eq!(effects, [Effect::Forget(epoch_of(1), [(1, 6)].into_iter().collect())]);
        assert!(link.is_drained());
        assert_eq!(link.forget_counts(), (2, 6));
    }

    #[test]
    fn an_acknowledgement_forgets_nothing_that_was_not_sent_whole() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 2);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        assert_eq!(link.on_event(at(1), ack(1, &[(1, u64::MAX)])), []);
        shelf.pull(&mut link, at(1), 2);
        assert_eq!(link.on_event(at(1), ack(1, &[(1, 2)])), []);
        assert_eq!(link.on_event(at(1), ack(9, &[(1, 3)])), []);
        let effects = link.on_event(at(1), ack(1, &[(1, u64::MAX)]));
        assert_eq!(effects, [Effect::Forget(epoch_of(1), [(1, 3)].into_iter().collect())]);
    }

    #[test]
    fn no_block_is_sent_beyond_the_credit() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 50);
        let one = frame(1, 1).len() as u64;
        let (mut link, _) = open(&shelf, vec![], one * 5 + 1);
        let sent = blocks(&shelf.pull(&mut link, at(0), 99));
        assert!((4..=5).contains(&sent.len()), "{sent:?}");
        assert_eq!(shelf.pull(&mut link, at(0), 99), []);
        link.on_event(at(1), ack(1, &[(1, 3)]));
        assert!(!blocks(&shelf.pull(&mut link, at(1), 99)).is_empty());
    }

    #[test]
    fn no_credit_stops_everything() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 5);
        let (mut link, _) = open(&shelf, vec![], 0);
        assert_eq!(shelf.pull(&mut link, at(0), 99), []);
    }

    #[test]
    fn the_backlog_never_starves_live_data_nor_live_data_the_backlog() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 200).commit(2, 100);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.commit(2, 100);
        link.on_buffer(shelf.newest);
        let sent = shelf.pull(&mut link, at(0), 150);
        let live = sent.iter().filter(|h| h.epoch == epoch_of(2) && h.first_seq > 300).count();
        assert!((70..=80).contains(&live), "{live} of 150 live");
        let rest = shelf.pull(&mut link, at(0), 999);
        assert_eq!(blocks(&sent).len() + blocks(&rest).len(), 400);
    }

    #[test]
    fn each_lane_is_oldest_first() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 20);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.commit(1, 20);
        link.on_buffer(shelf.newest);
        let sent = blocks(&shelf.pull(&mut link, at(0), 999));
        let (backlog, live): (Vec<u64>, Vec<u64>) = sent.iter().partition(|seq| **seq <= 60);
        assert!(backlog.is_sorted() && live.is_sorted() && backlog.len() == 20 && live.len() == 20);
    }

    #[test]
    fn with_too_many_open_ranges_it_is_strictly_oldest_first() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 20);
        let ranges: Vec<(u64, u64)> = (0..63).map(|n| (1_000 + n * 10, 1_003 + n * 10)).collect();
        let (mut link, _) = open(&shelf, vec![stored(1, &ranges)], CREDIT);
        shelf.commit(1, 20);
        link.on_buffer(shelf.newest);
        assert!(blocks(&shelf.pull(&mut link, at(0), 999)).is_sorted());
    }

    #[test]
    fn what_the_relay_has_already_is_forgotten_and_not_sent() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 3);
        let (mut link, effects) = open(&shelf, vec![stored(1, &[(1, 6)])], CREDIT);
        assert!(effects.contains(&Effect::Forget(epoch_of(1), [(1, 6)].into_iter().collect())));
        assert_eq!(blocks(&shelf.pull(&mut link, at(0), 99)), [7]);
    }

    #[test]
    fn series_go_once_and_before_the_first_block_that_needs_them() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 2);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        let kinds = |sent: &[block::Header]| sent.iter().map(|h| h.kind == FrameKind::Series).collect::<Vec<_>>();
        assert_eq!(kinds(&shelf.pull(&mut link, at(0), 99)), [true, false, false]);
        shelf.commit(1, 1);
        link.on_buffer(shelf.newest);
        assert_eq!(kinds(&shelf.pull(&mut link, at(0), 99)), [false]);
        shelf.add_series(1);
        shelf.commit(1, 2);
        link.on_buffer(shelf.newest);
        assert_eq!(kinds(&shelf.pull(&mut link, at(0), 99)), [true, false, false]);
    }

    #[test]
    fn series_that_the_relay_does_not_know_are_announced_again_and_the_block_sent_again() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 2);
        shelf.add_series(1);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.pull(&mut link, at(0), 99);
        link.on_event(at(1), nack(1, 4, NackCode::UnknownSeries, 0));
        let sent = shelf.pull(&mut link, at(1), 99);
        assert_eq!(sent.iter().filter(|h| h.kind == FrameKind::Series).count(), 2);
        assert_eq!(sent.last().map(|h| h.first_seq), Some(4));
        // A relay that never learns is not asked in a loop.
        link.on_event(at(2), nack(1, 4, NackCode::UnknownSeries, 0));
        assert_eq!(shelf.pull(&mut link, at(2), 99), []);
        assert_eq!(blocks(&shelf.pull(&mut link, at(4_002), 99)), [4]);
    }

    #[test]
    fn a_refused_block_goes_again_not_sooner_than_asked() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 2);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.pull(&mut link, at(0), 99);
        link.on_event(at(10), nack(1, 1, NackCode::Retry, 5));
        assert_eq!(shelf.pull(&mut link, at(5_009), 99), []);
        assert!(link.next_tick_ms(at(5_009)) <= 5_010);
        assert_eq!(blocks(&shelf.pull(&mut link, at(5_010), 99)), [1]);
        assert!(!link.is_drained());
        link.on_event(at(5_020), ack(1, &[(1, 6)]));
        assert!(link.is_drained());
    }

    #[test]
    fn a_block_in_conflict_is_reported_once_and_kept() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 1);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.pull(&mut link, at(0), 99);
        let effects = link.on_event(at(1), nack(1, 1, NackCode::Conflict, 0));
        assert!(matches!(effects[..], [Effect::Stuck(_)]));
        assert_eq!(link.on_event(at(1), nack(1, 1, NackCode::Conflict, 0)), []);
        assert_eq!(shelf.pull(&mut link, at(99_999), 99), []);
    }

    #[test]
    fn a_buffer_that_can_not_be_read_is_left_alone_for_a_while() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 1);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        let Next::Read(read) = link.next(at(0)) else { panic!("a read") };
        link.on_read_failed(at(0), read);
        assert_eq!(link.next(at(4_999)), Next::Idle);
        assert_eq!(blocks(&shelf.pull(&mut link, at(5_000), 99)), [1]);
    }

    #[test]
    fn what_comes_back_when_the_store_is_opened_again_is_sent_again_in_the_same_session() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 3);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        link.on_store(1);
        assert_eq!(blocks(&shelf.pull(&mut link, at(0), 99)), [1, 4, 7]);
        link.on_event(at(1), ack(1, &[(1, 6)]));
        shelf.commit(1, 1);
        link.on_buffer(shelf.newest);
        assert_eq!(blocks(&shelf.pull(&mut link, at(1), 99)), [10]);
        link.on_store(1);
        assert!(shelf.pull(&mut link, at(2), 99).is_empty());
        link.on_store(2);
        assert!(!link.is_drained());
        // The first two are back; the others are under way.
        assert_eq!(blocks(&shelf.pull(&mut link, at(2), 99)), [1, 4]);
        let effects = link.on_event(at(3), ack(1, &[(1, 12)]));
        assert_eq!(effects, [Effect::Forget(epoch_of(1), [(1, 12)].into_iter().collect())]);
        assert!(link.is_drained());
    }

    #[test]
    fn a_silent_link_is_pinged_after_20_s_and_dead_after_50() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        link.on_said(at(19_999));
        assert!(!link.on_tick(at(19_999)).contains(&Effect::Ping));
        assert!(link.on_tick(at(20_000)).contains(&Effect::Ping));
        assert!(!link.on_tick(at(39_999)).contains(&Effect::Ping));
        assert_eq!(closing(&link.on_tick(at(49_999))), None);
        let effects = link.on_tick(at(50_000));
        assert_eq!(closing(&effects).unwrap().ending, None);
        assert_eq!(link.on_tick(at(99_999)), [], "it is closed once");
    }

    #[test]
    fn any_byte_keeps_a_link_alive() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        for ms in (0..500_000).step_by(40_000) {
            link.on_bytes(at(ms));
            assert_eq!(closing(&link.on_tick(at(ms))), None);
        }
    }

    #[test]
    fn a_heartbeat_goes_as_often_as_the_relay_asked() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        let beats = (0..100).filter(|second| {
            link.on_bytes(at(second * 1000));
            link.on_tick(at(second * 1000)).contains(&Effect::Heartbeat)
        });
        assert_eq!(beats.collect::<Vec<_>>(), [0, 30, 60, 90]);
    }

    #[test]
    fn a_relay_that_does_not_greet_or_answer_is_left_after_15_s() {
        let mut link = Link::new(at(0), Place::default(), None);
        assert_eq!(link.next_tick_ms(at(0)), 15_000);
        assert!(closing(&link.on_tick(at(15_000))).is_some());
        let mut link = Link::new(at(0), Place::default(), None);
        link.on_event(at(10_000), hello());
        assert_eq!(closing(&link.on_tick(at(24_999))), None);
        assert!(closing(&link.on_tick(at(25_000))).unwrap().why.contains("AUTHENTICATE"));
    }

    #[test]
    fn a_relay_that_acknowledges_nothing_for_30_s_is_left() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 3);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.pull(&mut link, at(1_000), 99);
        link.on_bytes(at(30_000));
        link.on_event(at(30_000), ack(1, &[(1, 3)]));
        assert_eq!(closing(&link.on_tick(at(59_999))), None, "it acknowledges, if slowly");
        link.on_bytes(at(59_999));
        assert!(closing(&link.on_tick(at(60_000))).is_some());
    }

    #[test]
    fn drain_stops_the_sending_waits_for_what_is_under_way_and_comes_back_as_asked() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 9);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        assert_eq!(blocks(&shelf.pull(&mut link, at(0), 2)), [1]);
        let drain = Drain { reason: "update".into(), reconnect_after_ms: 3_000, spread_ms: 9_000 };
        assert_eq!(link.on_event(at(1), ToSatellite::Drain(drain)), []);
        assert_eq!(shelf.pull(&mut link, at(1), 99), []);
        let effects = link.on_event(at(2), ack(1, &[(1, 3)]));
        assert!(matches!(effects[0], Effect::Forget(..)));
        let ending = Ending::Drained { after: Duration::from_secs(3), spread: Duration::from_secs(9) };
        assert_eq!(closing(&effects).unwrap().ending, Some(ending));
    }

    #[test]
    fn a_link_that_is_to_end_does_not_wait_for_ever() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 1);
        let (mut link, _) = open(&shelf, vec![], CREDIT);
        shelf.pull(&mut link, at(0), 99);
        assert_eq!(link.finish(at(0), Closing::lost("over")), []);
        assert_eq!(closing(&link.on_tick(at(9_999))), None);
        assert_eq!(closing(&link.on_tick(at(10_000))).unwrap().why, "over");
    }

    #[test]
    fn a_refusal_says_whether_waiting_helps() {
        for (code, permanent) in [(RefusalCode::Revoked, true), (RefusalCode::Overloaded, false)] {
            let mut link = Link::new(at(0), Place::default(), None);
            link.on_event(at(0), hello());
            let refused = Refused { code, message: "no".into(), retry_after_s: 7 };
            let effects = link.on_event(at(0), ToSatellite::Refused(refused));
            let retry_after = Duration::from_secs(7);
            let expected = if permanent { Ending::Permanent { retry_after } } else { Ending::Refused { retry_after } };
            assert_eq!(closing(&effects).unwrap().ending, Some(expected));
        }
    }

    #[test]
    fn a_relay_of_another_protocol_is_left_for_long() {
        let mut link = Link::new(at(0), Place::default(), None);
        let effects = link.on_text(
            at(0),
            r#"{"event":"HELLO","data":{"protocol_min":7,"protocol_max":9,"relay":"r","relay_version":"9","clock_ms":0,"heartbeat_s":0}}"#,
        );
        assert!(matches!(closing(&effects).unwrap().ending, Some(Ending::Permanent { .. })));
        assert!(closing(&effects).unwrap().why.contains("update"));
    }

    #[test]
    fn what_is_not_understood_is_answered_and_does_not_close() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        let code = |effects: Vec<Effect>| match &effects[..] {
            [Effect::Say(ToRelay::Error(complaint))] => complaint.code.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(link.on_text(at(0), r#"{"event":"DANCE","data":{}}"#)), "unsupported");
        assert_eq!(code(link.on_text(at(0), r#"{"event":"ACK","data":{}}"#)), "malformed");
        assert_eq!(code(link.on_text(at(0), "hello")), "malformed");
        assert_eq!(code(link.on_event(at(0), hello())), "malformed");
        assert!(link.is_open());
    }

    #[test]
    fn a_relay_that_talks_nonsense_without_end_is_left() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        let closed = (0..200).position(|_| closing(&link.on_text(at(0), "x")).is_some());
        assert_eq!(closed, Some(COMPLAINTS_MAX as usize));
    }

    #[test]
    fn an_event_too_large_closes() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        let text = "x".repeat(satellite_shared::wire::to_satellite::event_bytes_max() + 1);
        assert!(closing(&link.on_text(at(0), &text)).is_some());
    }

    #[test]
    fn unknown_fields_are_tolerated() {
        let (mut link, _) = open(&Shelf::default(), vec![], CREDIT);
        assert_eq!(link.on_text(at(0), r#"{"event":"HEARTBEAT","data":{"clock_ms":5,"mood":"good"},"more":1}"#), []);
        assert_eq!(link.on_event(at(0), ToSatellite::Heartbeat(Alive { clock_ms: 0 })), []);
    }

    #[test]
    fn what_became_of_a_configuration_is_said_again_on_the_next_connection() {
        let status = ConfigStatus { version: 4, state: ConfigState::Applied, items: vec![] };
        let mut link = Link::new(at(0), Place::default(), None);
        assert_eq!(link.on_status(status.clone()), None, "not before the relay has let us in");
        let mut link = Link::new(at(0), Place::default(), Some(status.clone()));
        link.on_event(at(0), hello());
        let effects = link.on_event(at(0), welcome(vec![], CREDIT));
        assert!(effects.contains(&Effect::Say(ToRelay::ConfigStatus(status))));
    }

    #[test]
    fn a_refresh_says_authenticate_again_and_the_answer_changes_nothing_but_credit() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 1);
        let (mut link, _) = open(&shelf, vec![], 0);
        assert_eq!(link.refresh(), Some(Effect::Authenticate(1)));
        let effects = link.on_event(at(1), welcome(vec![], CREDIT));
        assert!(matches!(effects[..], [Effect::Opened(_)]));
        assert_eq!(blocks(&shelf.pull(&mut link, at(1), 99)), [1]);
        assert_eq!(Link::new(at(0), Place::default(), None).refresh(), None);
    }

    #[test]
    fn nothing_is_sent_before_the_relay_has_let_us_in() {
        let mut shelf = Shelf::default();
        shelf.commit(1, 3);
        let mut link = Link::new(at(0), shelf.newest, None);
        assert_eq!(link.next(at(0)), Next::Idle);
        link.on_event(at(0), hello());
        assert_eq!(link.next(at(0)), Next::Idle);
    }

    proptest! {
        /// Whatever a relay answers and in whatever order, each block is forgotten once it is acknowledged, none before,
        /// and all in the end.
        #[test]
        fn every_block_arrives(
            backlog in 0u64..30,
            credit in 200u64..3_000,
            steps in prop::collection::vec((0u8..5, any::<prop::sample::Index>(), 0u64..4), 0..150),
        ) {
            let mut shelf = Shelf::default();
            shelf.commit(1, backlog);
            let (mut link, _) = open(&shelf, vec![], credit);
            let mut now_ms = 0;
            let mut under_way: Vec<block::Header> = vec![];
            let mut forgotten: HashMap<Epoch, Ranges> = HashMap::new();
            let mut taken: HashMap<Epoch, Ranges> = HashMap::new();
            let mut event = |link: &mut Link, now_ms: u64, event: ToSatellite, taken: &HashMap<Epoch, Ranges>| {
                for effect in link.on_event(at(now_ms), event) {
                    if let Effect::Forget(epoch, ranges) = effect {
                        for &(first, last) in ranges.as_slice() {
                            assert_eq!(taken[&epoch].overlap(first, last), Overlap::Whole);
                            forgotten.entry(epoch).or_default().insert(first, last);
                        }
                    }
                }
                forgotten.values().map(Ranges::len).sum::<u64>()
            };
            let accept = |header: block::Header, taken: &mut HashMap<Epoch, Ranges>| {
                taken.entry(header.epoch).or_default().insert(header.first_seq, header.last_seq());
                let stored = vec![Stored { epoch: header.epoch, ranges: taken[&header.epoch].clone() }];
                ToSatellite::Ack(Ack { stored, credit_bytes: credit })
            };
            for (what, which, much) in steps {
                match what {
                    0 => {
                        shelf.commit(2, much);
                        link.on_buffer(shelf.newest);
                    }
                    1 => now_ms += much * 1000,
                    2 => under_way.extend(shelf.pull(&mut link, at(now_ms), much as usize).iter()
                        .filter(|h| h.kind != FrameKind::Series)),
                    3 if !under_way.is_empty() => {
                        let header = under_way.remove(which.index(under_way.len()));
                        let ack = accept(header, &mut taken);
                        event(&mut link, now_ms, ack, &taken);
                    }
                    4 if !under_way.is_empty() => {
                        let header = under_way.remove(which.index(under_way.len()));
                        let code = if much % 2 == 0 { NackCode::Retry } else { NackCode::UnknownSeries };
                        let opening = if header.epoch == epoch_of(1) { 1 } else { 2 };
                        event(&mut link, now_ms, nack(opening, header.first_seq, code, much), &taken);
                    }
                    _ => {}
                }
                let bytes: u64 = under_way.iter().map(|h| shelf.blocks[&Place {
                    opening: if h.epoch == epoch_of(1) { 1 } else { 2 }, seq: h.first_seq }].len() as u64).sum();
                prop_assert!(bytes <= credit || under_way.len() == 1);
            }
            let all = shelf.blocks.len() as u64 * 3;
            let mut done = 0;
            for _ in 0..2_000 {
                if link.is_drained() {
                    break;
                }
                now_ms += 300_000;
                under_way.extend(shelf.pull(&mut link, at(now_ms), 999).iter().filter(|h| h.kind != FrameKind::Series));
                for header in std::mem::take(&mut under_way) {
                    let ack = accept(header, &mut taken);
                    done = event(&mut link, now_ms, ack, &taken);
                }
            }
            prop_assert!(link.is_drained());
            if all > 0 {
                done = event(&mut link, now_ms, ack(1, &[]), &taken).max(done);
            }
            prop_assert_eq!(done, all);
        }
    }
}
