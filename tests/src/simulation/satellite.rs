//! One satellite: the real draft, stock, link and back-off around a simulated disk and network.
//!
//! What the keeper's thread, the recorder's task and the uplink's task do between those is repeated here as thinly as
//! there. The scheduler is a row of numbered slots, so that no wall clock moves them: a slot that passed while the
//! program did not run is explained at the next start, from the notes of the last commit.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use satellite_agent::buffer::stock::{Bounds, Stock, StoreError};
use satellite_agent::buffer::{Commit, Place, StoredBlock};
use satellite_agent::collector::{Family, Readings};
use satellite_agent::ledger::Missed;
use satellite_agent::recorder::Ended;
use satellite_agent::recorder::draft::Draft;
use satellite_agent::recorder::notes::{Notes, UnderWay};
use satellite_agent::uplink::backoff::{Backoff, Ending};
use satellite_agent::uplink::link::{Closing, Effect, Link, Next, Read, Way};
use satellite_agent::uplink::session::Job;
use satellite_shared::clock::{Clock as _, ManualClock, Now};
use satellite_shared::gap::Reason;
use satellite_shared::id::{DeviceName, Epoch, LeaseId, SatelliteId};
use satellite_shared::ranges::Ranges;
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::ToRelay;
use satellite_shared::wire::block::{self, Body, ClockQuality, Decoder, FrameKind};
use satellite_shared::wire::to_relay::{Authenticate, Progress};

use super::disk::{Copy, Disk, Store};
use super::faults::{Sabotage, happens};
use super::network::Message;
use super::world::Outside;

/// The time between two slots.
pub const SLOT_MS: u64 = 2_000;
const COMMIT_EVERY_MS: u64 = 1_000;
const RETRY_COMMIT_MS: u64 = 2_000;
const RETRY_STORE_MS: u64 = 30_000;
const RETRY_START_MS: u64 = 5_000;
/// Messages that a socket takes before it is slow.
const UNDER_WAY_MAX: usize = 12;
const AGE_MAX_MS: i64 = 30 * 24 * 3_600_000;

/// A machine's clocks: the wall's, and one that counts since the boot.
#[derive(Debug)]
pub struct Watch {
    clock: ManualClock,
    booted_ms: u64,
}

impl Watch {
    /// A machine that boots now.
    #[must_use]
    pub fn new(wall_ms: i64, now_ms: u64) -> Self {
        Self { clock: ManualClock::new(wall_ms, 0), booted_ms: now_ms }
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Lets time pass.
    pub fn advance(&self, ms: u64) {
        self.clock.advance(ms);
    }

    /// Sets the wall clock.
    pub fn step_wall(&self, wall_ms: i64) {
        self.clock.step_wall(wall_ms);
    }

    /// The machine boots anew.
    pub fn reboot(&mut self, now_ms: u64) {
        *self = Self::new(self.now().wall_ms, now_ms);
    }

    /// The world's time of a time of the machine's.
    #[must_use]
    pub fn world_ms(&self, mono_ms: u64) -> u64 {
        self.booted_ms.saturating_add(mono_ms)
    }
}

/// What a satellite can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The program starts.
    Start,
    /// A slot's time has come.
    Poll,
    /// The device answers, or not.
    EndPoll,
    /// The recorder commits a group.
    Commit,
    /// The buffer does what the session asks.
    Work,
    /// A message arrives.
    Hear,
    /// The link's time has come.
    Tick,
    /// It dials.
    Dial,
}

/// One satellite.
#[derive(Debug)]
pub struct Satellite {
    /// Its place among the satellites.
    pub index: usize,
    /// Its id.
    pub id: SatelliteId,
    /// Its clocks.
    pub watch: Watch,
    /// Its disk.
    pub disk: Disk,
    /// The program, while it runs.
    pub running: Option<Running>,
    /// When the program starts.
    pub start_ms: u64,
    /// A copy of the disk, with the first slot of which its notes leave something open.
    copy: Option<(Copy, Option<i64>)>,
    /// The first slot of which the last durable notes leave something open.
    noted: Option<i64>,
    /// Blocks that counted as sent, for [`Sabotage::InFlightKept`].
    sent: BTreeSet<(Epoch, u64)>,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    epoch: Epoch,
    stock: Stock,
    store: Option<Store>,
    store_opened: u64,
    retry_store_ms: u64,
    draft: Draft,
    /// What is being committed, until which slot, and the first slot of which its notes leave something open.
    group: Option<(Commit, i64, i64)>,
    commit_ms: u64,
    next_slot: u64,
    poll: Option<(u64, u64)>,
    through: i64,
    backoff: Backoff,
    link: Stance,
}

#[derive(Debug)]
enum Stance {
    Waiting { until_ms: u64 },
    Connected(Box<Session>),
}

#[derive(Debug)]
struct Session {
    connection: u64,
    link: Link,
    jobs: VecDeque<Job>,
    reading: bool,
    ticked_ms: u64,
    since_ms: Option<u64>,
}

impl Satellite {
    /// A new machine.
    #[must_use]
    pub fn new(index: usize, wall_ms: i64, disk: Disk) -> Self {
        let id = SatelliteId::from_bits([u8::try_from(index).unwrap_or(0) + 1; 10]);
        Self {
            index,
            id,
            watch: Watch::new(wall_ms, 0),
            disk,
            running: None,
            start_ms: 0,
            copy: None,
            noted: None,
            sent: BTreeSet::new(),
        }
    }

    /// What it can do now.
    pub fn acts(&self, out: &Outside, acts: &mut Vec<Act>) {
        let now_ms = out.now_ms;
        let Some(running) = &self.running else {
            if now_ms >= self.start_ms {
                acts.push(Act::Start);
            }
            return;
        };
        let slot_due = now_ms / SLOT_MS >= running.next_slot && running.next_slot <= out.last_slot;
        if slot_due && out.oracle.has_begun(self.index) {
            acts.push(Act::Poll);
        }
        if running.poll.is_some_and(|(_, until_ms)| now_ms >= until_ms) {
            acts.push(Act::EndPoll);
        }
        if now_ms >= running.commit_ms && (running.group.is_some() || running.draft.is_awake()) {
            acts.push(Act::Commit);
        }
        match &running.link {
            Stance::Waiting { until_ms } => {
                if now_ms >= *until_ms {
                    acts.push(Act::Dial);
                }
            }
            Stance::Connected(session) => {
                if !session.jobs.is_empty() {
                    acts.push(Act::Work);
                }
                let connection = out.network.connections.get(&session.connection);
                if connection.is_none_or(|connection| connection.down.has_arrived(now_ms)) {
                    acts.push(Act::Hear);
                }
                if now_ms >= self.tick_ms(session) {
                    acts.push(Act::Tick);
                }
            }
        }
    }

    fn tick_ms(&self, session: &Session) -> u64 {
        let next_ms = self.watch.world_ms(session.link.next_tick_ms(self.watch.now()));
        next_ms.max(session.ticked_ms + 50).min(session.ticked_ms + 3_000)
    }

    /// When it can do something next by the clock alone.
    #[must_use]
    pub fn next_ms(&self, out: &Outside) -> u64 {
        let Some(running) = &self.running else { return self.start_ms };
        let mut next = u64::MAX;
        if running.next_slot <= out.last_slot && out.oracle.has_begun(self.index) {
            next = next.min(running.next_slot * SLOT_MS);
        }
        if let Some((_, until_ms)) = running.poll {
            next = next.min(until_ms);
        }
        if running.group.is_some() || running.draft.is_awake() {
            next = next.min(running.commit_ms);
        }
        next.min(match &running.link {
            Stance::Waiting { until_ms } => *until_ms,
            Stance::Connected(session) => {
                let stalled = out.network.connections.get(&session.connection);
                let stalled = stalled.filter(|connection| !connection.down.messages.is_empty());
                self.tick_ms(session).min(stalled.map_or(u64::MAX, |connection| connection.down.stalled_until_ms))
            }
        })
    }

    /// Whether nothing is left to commit, to send or to hear.
    #[must_use]
    pub fn is_at_rest(&self, out: &Outside) -> bool {
        let Some(running) = &self.running else { return false };
        let Stance::Connected(session) = &running.link else { return false };
        let held = running.store.as_ref().and_then(|store| running.stock.streams(store).ok());
        running.next_slot > out.last_slot
            && running.poll.is_none()
            && running.group.is_none()
            && !running.draft.is_awake()
            && session.jobs.is_empty()
            && session.link.is_open()
            && session.link.is_drained()
            && held.is_some_and(|held| held.is_empty())
    }

    /// Why it is not at rest, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        let Some(running) = &self.running else { return "does not run".into() };
        let held = running.store.as_ref().and_then(|store| running.stock.streams(store).ok()).unwrap_or_default();
        let held: Vec<_> = held.iter().map(|held| (held.stream.epoch, held.stream.first_seq)).collect();
        let link = match &running.link {
            Stance::Waiting { until_ms } => format!("dials at {until_ms}"),
            Stance::Connected(session) => {
                let (open, drained) = (session.link.is_open(), session.link.is_drained());
                format!("connection {} open {open} drained {drained} jobs {}", session.connection, session.jobs.len())
            }
        };
        let (awake, group) = (running.draft.is_awake(), running.group.is_some());
        format!("holds {held:?}; draft awake {awake}, group {group}; {link}")
    }

    /// Does one thing. Gives the number of a connection that it opened.
    pub fn act(&mut self, act: Act, out: &mut Outside) {
        match act {
            Act::Start => self.start(out),
            Act::Poll => self.poll(out),
            Act::EndPoll => self.end_poll(out),
            Act::Commit => self.commit(out),
            Act::Work => self.work(out),
            Act::Hear => self.hear(out),
            Act::Tick => self.tick(out),
            Act::Dial => self.fail_to_dial(out),
        }
        self.fill(out);
    }

    fn start(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let mut store = self.disk.open();
        let found = match Stock::find(&store) {
            Ok(found) => found,
            Err(error) => return out.violate(format!("satellite {}: the buffer does not open: {error}", self.index)),
        };
        let mark = self.disk.mark();
        if found.is_behind(&mark) {
            out.violate(format!("satellite {}: the store is behind its mark", self.index));
        }
        let reused = out.faults.sabotage == Sabotage::EpochReused;
        let low = if reused { 7 } else { out.dice.roll() };
        let epoch = Epoch((u128::from(low) << 8) + self.index as u128);
        let mut stock = Stock::new(epoch, "boot".into(), now.wall_ms);
        if stock.settle(&mut store, found, mark.opening).is_err() {
            self.start_ms = out.now_ms + RETRY_START_MS;
            return;
        }
        if let Ok(mark) = stock.mark(&store, now.wall_ms) {
            self.disk.set_mark(mark);
        }
        let notes = stock.take_notes().as_deref().and_then(Notes::read);
        let since = notes.as_ref().map(|notes| notes.until_ms);
        let losses = if out.faults.sabotage == Sabotage::GapForgotten { vec![] } else { stock.losses() };
        let mut draft = Draft::new(epoch, notes, losses, now);
        let slot = i64::try_from((out.now_ms / SLOT_MS).min(out.last_slot)).unwrap_or(0);
        if let Some(since) = since.filter(|since| *since < slot) {
            let missed = self.missed(since + 1, slot, Reason::Stopped, out.faults.samples);
            draft.miss(missed, now);
        }
        draft.set_through(slot);
        out.say(|| format!("satellite {} starts epoch {epoch}; slots {since:?} to {slot} were missed", self.index));
        self.running = Some(Running {
            epoch,
            stock,
            store: Some(store),
            store_opened: 1,
            retry_store_ms: 0,
            draft,
            group: None,
            commit_ms: out.now_ms,
            next_slot: u64::try_from(slot + 1).unwrap_or(0),
            poll: None,
            through: slot,
            backoff: Backoff::default(),
            link: Stance::Waiting { until_ms: out.now_ms },
        });
    }

    fn missed(&self, from: i64, to: i64, reason: Reason, samples: u64) -> Missed {
        let slots = u64::try_from(to - from + 1).unwrap_or(0);
        Missed {
            device: device(),
            metric: String::new(),
            from_ms: from,
            to_ms: to,
            count: slots * samples,
            reason,
            // Gaps that are not alike are not joined, so that the judge can lay each over its slots.
            detail: format!("{} {from}", reason.as_str()),
        }
    }

    fn poll(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let samples = out.faults.samples;
        let Some(running) = &self.running else { return };
        let slot = running.next_slot;
        let number = i64::try_from(slot).unwrap_or(0);
        let busy = running.poll.is_some();
        let late = self.missed(number, number, Reason::Late, samples);
        let Some(running) = &mut self.running else { return };
        running.draft.set_through(number);
        running.through = number;
        if busy {
            running.draft.miss(late, now);
        } else {
            running.draft.begin(UnderWay { poll: slot, device: device(), slot_ms: number, count: samples });
            let longest_ms = if out.dice.one_in(6) { 2 * SLOT_MS } else { SLOT_MS / 2 };
            running.poll = Some((slot, out.now_ms + out.dice.below(longest_ms)));
        }
        running.next_slot += 1;
    }

    fn end_poll(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let fails = happens(&mut out.dice, out.faults.poll_fails);
        let Some((slot, _)) = self.running.as_mut().and_then(|running| running.poll.take()) else { return };
        let number = i64::try_from(slot).unwrap_or(0);
        let missed = self.missed(number, number, Reason::Timeout, out.faults.samples);
        let index = self.index;
        let Some(running) = &mut self.running else { return };
        let mut ended = Ended {
            poll: slot,
            device: device(),
            metrics: vec![],
            at_ms: now.wall_ms,
            readings: Readings::default(),
            missed: vec![],
        };
        if fails {
            if out.faults.sabotage == Sabotage::GapTwice {
                ended.missed.push(missed.clone());
            }
            ended.missed.push(missed);
        } else {
            ended.metrics.push(String::new());
            let values: Vec<f64> = (0..out.faults.samples).map(|n| value(index, slot, n)).collect();
            give(&mut ended.readings, &values);
        }
        running.draft.end(ended, now);
    }

    fn commit(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let index = self.index;
        let Some(running) = &mut self.running else { return };
        if running.group.is_none() {
            if !running.draft.is_due(now) {
                running.commit_ms = out.now_ms + COMMIT_EVERY_MS;
                return;
            }
            let quality = match out.dice.below(3) {
                0 => ClockQuality::Unknown,
                1 => ClockQuality::Synchronised,
                _ => ClockQuality::Unsynchronised,
            };
            let group = running.draft.group(false, now, quality);
            out.number(index, &group);
            let unsettled = Notes::read(&group.notes).map_or(0, |notes| unsettled(&notes));
            running.group = Some((group, running.through, unsettled));
        }
        self.ensure(out);
        let Some(running) = &mut self.running else { return };
        running.commit_ms = out.now_ms + RETRY_COMMIT_MS;
        let (Some(store), Some((group, through, unsettled))) = (&running.store, &running.group) else { return };
        let (through, unsettled) = (*through, *unsettled);
        let bounds = Bounds {
            bytes_max: out.faults.bytes_max,
            age_max_ms: AGE_MAX_MS,
            disk_short: out.faults.disk_fails > 0 && out.dice.one_in(20),
            now_ms: now.wall_ms,
        };
        let headers = match running.stock.check(group, bounds.bytes_max) {
            Ok(headers) => headers,
            Err(why) => return out.violate(format!("satellite {index}: the buffer refused a commit: {why}")),
        };
        if let Err(error) = running.stock.commit(store, group, &headers, &bounds) {
            return self.fail(&error, out);
        }
        let through_seq = headers.last().map(|header| header.last_seq());
        out.say(|| format!("satellite {index} has committed slots to {through}, records to {through_seq:?}"));
        running.group = None;
        running.commit_ms = out.now_ms + COMMIT_EVERY_MS;
        let losses = if out.faults.sabotage == Sabotage::GapForgotten { vec![] } else { running.stock.losses() };
        running.draft.take_losses(losses, now);
        let newest = running.stock.last();
        if let Stance::Connected(session) = &mut running.link {
            session.link.on_buffer(newest);
        }
        if out.dice.one_in(6) {
            self.disk.set_mark(running.stock.mark(store, now.wall_ms).ok().flatten());
        }
        self.noted = Some(unsettled);
        out.oracle.begin(index, through + 1);
    }

    /// The store is there, or was asked for again if it was time.
    fn ensure(&mut self, out: &mut Outside) {
        let Some(running) = self.running.as_mut().filter(|running| running.store.is_none()) else { return };
        if out.now_ms < running.retry_store_ms {
            return;
        }
        running.retry_store_ms = out.now_ms + RETRY_STORE_MS;
        let mut store = self.disk.open();
        let found = match Stock::find(&store) {
            Ok(found) => found,
            Err(error) => return out.violate(format!("the buffer does not open again: {error}")),
        };
        let mark = self.disk.mark();
        if found.is_behind(&mark) {
            out.violate(format!("satellite {}: the store is behind its mark", self.index));
        }
        if running.stock.settle(&mut store, found, mark.opening).is_ok() {
            running.store = Some(store);
            running.store_opened += 1;
            if let Stance::Connected(session) = &mut running.link {
                session.link.on_store(running.store_opened);
            }
        }
    }

    fn fail(&mut self, error: &StoreError, out: &mut Outside) {
        out.say(|| format!("satellite {}: {error}", self.index));
        if let Some(running) = &mut self.running {
            running.store = None;
            running.retry_store_ms = 0;
        }
        self.ensure(out);
    }

    fn work(&mut self, out: &mut Outside) {
        self.ensure(out);
        let Some(running) = &mut self.running else { return };
        let Stance::Connected(session) = &mut running.link else { return };
        let Some(job) = session.jobs.pop_front() else { return };
        match job {
            Job::Streams(protocol) => {
                let held = running.store.as_ref().and_then(|store| running.stock.streams(store).ok());
                let streams = running.stock.numbered(held.unwrap_or_default());
                let event = ToRelay::Authenticate(Authenticate {
                    protocol,
                    lease: LeaseId::from_bits([1; 10]),
                    token: Token::from_bits(TokenKind::Lease, [1; 32]),
                    agent_version: "0".into(),
                    hostname: "simulated".into(),
                    instance: "instance".into(),
                    clock_ms: self.watch.now().wall_ms,
                    config_version: 0,
                    generation: 1,
                    streams,
                });
                self.say(&event, out);
            }
            Job::Compare(satellite, stored) => {
                let now_ms = self.watch.now().wall_ms;
                let Some(store) = &running.store else { return };
                match running.stock.compare(store, &satellite, &stored, now_ms) {
                    Ok(0) => {}
                    Ok(records) => {
                        out.say(|| format!("satellite {}: the relay has lost {records} records", self.index))
                    }
                    Err(error) => self.fail(&error, out),
                }
            }
            Job::Forget(epoch, ranges) => self.forget(epoch, &ranges, out),
            Job::Read(read) => {
                session.reading = false;
                self.read(read, out);
            }
        }
    }

    fn forget(&mut self, epoch: Epoch, ranges: &Ranges, out: &mut Outside) {
        let Some(running) = &mut self.running else { return };
        let Some(store) = &running.store else { return };
        if let Err(error) = running.stock.forget(store, epoch, ranges) {
            self.fail(&error, out);
        }
    }

    fn read(&mut self, read: Read, out: &mut Outside) {
        let now = self.watch.now();
        let kept = out.faults.sabotage == Sabotage::InFlightKept;
        let Some(running) = &mut self.running else { return };
        let Stance::Connected(session) = &mut running.link else { return };
        let Some(store) = &running.store else { return session.link.on_read_failed(now, read) };
        let answer = match read {
            Read::Blocks { way, from, below, bytes_max } => {
                running.stock.read(store, from, below, bytes_max).map(|blocks| {
                    let again = way == Way::Again || !kept;
                    let fresh = |block: &StoredBlock| again || !self.sent.contains(&identity(&block.frame));
                    session.link.on_blocks(way, below, blocks.into_iter().filter(fresh).collect());
                })
            }
            Read::Series { opening } => running.stock.series(store, opening).map(|frames| {
                session.link.on_series(opening, frames, running.stock.last());
            }),
        };
        if let Err(error) = answer {
            session.link.on_read_failed(now, read);
            self.fail(&error, out);
        }
    }

    fn hear(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running else { return };
        let connection = out.network.connections.get_mut(&session.connection);
        let message = connection.and_then(|connection| connection.down.messages.pop_front());
        session.link.on_bytes(now);
        let effects = match message {
            Some(Message::Text(text)) => session.link.on_text(now, &text),
            Some(Message::Ping) => {
                self.send(Message::Pong, out);
                vec![]
            }
            Some(Message::Frame(_) | Message::Pong) => vec![],
            Some(Message::Over) | None => vec![Effect::Close(Closing::lost("the connection is over"))],
        };
        self.apply(effects, out);
    }

    fn tick(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running else { return };
        session.ticked_ms = out.now_ms;
        let effects = session.link.on_tick(now);
        self.apply(effects, out);
    }

    fn apply(&mut self, effects: Vec<Effect>, out: &mut Outside) {
        for effect in effects {
            match effect {
                Effect::Opened(welcome) => {
                    let now_ms = out.now_ms;
                    let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running else { continue };
                    if session.since_ms.is_none() {
                        session.since_ms = Some(now_ms);
                        session.jobs.push_back(Job::Compare(welcome.satellite.clone(), welcome.stored.clone()));
                    }
                }
                Effect::Authenticate(protocol) => self.ask(Job::Streams(protocol)),
                Effect::Forget(epoch, ranges) => self.ask(Job::Forget(epoch, ranges)),
                Effect::Heartbeat => {
                    let progress = self.progress();
                    self.say(&ToRelay::Heartbeat(progress), out);
                }
                Effect::Say(event) => self.say(&event, out),
                Effect::Ping => self.send(Message::Ping, out),
                Effect::Close(closing) => self.close(&closing, out),
                Effect::Stuck(why) => out.violate(format!("satellite {}: {why}", self.index)),
                Effect::Greeted(_) | Effect::Config(_) | Effect::Certificate(_) => {}
                Effect::Complained(complaint) => {
                    out.violate(format!("the relay complains: {} {}", complaint.code, complaint.message));
                }
            }
        }
    }

    fn progress(&self) -> Progress {
        let (epoch, waiting) = self.running.as_ref().map_or((Epoch(0), 0), |it| (it.epoch, it.stock.waiting()));
        let clock_ms = self.watch.now().wall_ms;
        Progress { clock_ms, epoch, last_seq: 0, due: 0, waiting, buffer_bytes: 0, polls: 0 }
    }

    fn ask(&mut self, job: Job) {
        if let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running {
            session.jobs.push_back(job);
        }
    }

    fn say(&mut self, event: &ToRelay, out: &mut Outside) {
        let text = serde_json::to_string(event).expect("plain values always serialise");
        self.send(Message::Text(text), out);
    }

    fn send(&mut self, message: Message, out: &mut Outside) {
        let now = self.watch.now();
        let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running else { return };
        session.link.on_said(now);
        if let Some(connection) = out.network.connections.get_mut(&session.connection) {
            connection.up.push(message);
        }
    }

    /// Gives the socket what the link has, as far as both have room.
    fn fill(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        loop {
            let Some(Running { link: Stance::Connected(session), .. }) = &mut self.running else { return };
            let connection = out.network.connections.get(&session.connection);
            let full = connection.is_some_and(|connection| connection.up.messages.len() >= UNDER_WAY_MAX);
            if session.reading || full {
                return;
            }
            match session.link.next(now) {
                Next::Frame(frame) => {
                    let header = block::header(&frame).ok().filter(|header| header.kind != FrameKind::Series);
                    self.send(Message::Frame(frame), out);
                    let Some(header) = header else { continue };
                    self.sent.insert((header.epoch, header.first_seq));
                    if out.faults.sabotage == Sabotage::DeleteOnSend {
                        let ranges = [(header.first_seq, header.last_seq())].into_iter().collect();
                        self.ask(Job::Forget(header.epoch, ranges));
                    }
                }
                Next::Read(read) => {
                    session.reading = true;
                    session.jobs.push_back(Job::Read(read));
                }
                Next::Idle => return,
            }
        }
    }

    fn close(&mut self, closing: &Closing, out: &mut Outside) {
        let Some(Running { link: Stance::Connected(session), .. }) = &self.running else { return };
        out.say(|| format!("satellite {} closes connection {}: {}", self.index, session.connection, closing.why));
        out.network.close_satellite_end(session.connection);
        let since_ms = session.since_ms.map_or(0, |since_ms| out.now_ms - since_ms);
        let ending = closing.ending.unwrap_or(Ending::Lost { authenticated: Duration::from_millis(since_ms) });
        self.wait(ending, out);
        if out.faults.sabotage == Sabotage::Renumbered {
            self.renumber();
        }
    }

    fn wait(&mut self, ending: Ending, out: &mut Outside) {
        let Some(running) = &mut self.running else { return };
        let share = f64::from(u32::try_from(out.dice.below(1_000)).unwrap_or(0)) / 1_000.0;
        let wait = running.backoff.after(ending, share);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        running.link = Stance::Waiting { until_ms: out.now_ms.saturating_add(wait_ms) };
    }

    fn fail_to_dial(&mut self, out: &mut Outside) {
        self.wait(Ending::Lost { authenticated: Duration::ZERO }, out);
    }

    /// The connection that it dialled stands.
    pub fn connect(&mut self, connection: u64, out: &mut Outside) {
        let now = self.watch.now();
        let Some(running) = &mut self.running else { return };
        out.say(|| format!("satellite {} connects: {connection}", self.index));
        let mut link = Link::new(now, running.stock.last(), None);
        link.on_store(running.store_opened);
        running.link = Stance::Connected(Box::new(Session {
            connection,
            link,
            jobs: VecDeque::new(),
            reading: false,
            ticked_ms: out.now_ms,
            since_ms: None,
        }));
    }

    /// [`Sabotage::Renumbered`]: what one block held is recorded again.
    fn renumber(&mut self) {
        let now = self.watch.now();
        let Some(running) = &mut self.running else { return };
        let Some(store) = &running.store else { return };
        let newest = Place { opening: u32::MAX, seq: u64::MAX };
        let held = running.stock.read(store, Place::default(), newest, usize::MAX).unwrap_or_default();
        let sent = held.iter().find(|block| self.sent.contains(&identity(&block.frame)));
        let Some(Ok((_, Body::Samples(groups)))) = sent.map(|block| Decoder::default().decode(&block.frame)) else {
            return;
        };
        let mut readings = Readings::default();
        give(&mut readings, &groups[0].values);
        let (at_ms, metrics, missed) = (now.wall_ms, vec![], vec![]);
        running.draft.end(Ended { poll: u64::MAX, device: device(), metrics, at_ms, readings, missed }, now);
    }

    /// The program ends; with `power`, the machine too.
    pub fn end(&mut self, power: bool, out: &mut Outside) {
        let Some(running) = self.running.take() else { return };
        out.say(|| format!("satellite {} ends, power cut: {power}", self.index));
        if let Stance::Connected(session) = &running.link {
            if power {
                out.network.cut(session.connection, &mut out.dice, true);
            }
            out.network.close_satellite_end(session.connection);
        }
        if power {
            self.disk.cut_power();
            self.watch.reboot(out.now_ms);
        }
        self.start_ms = out.now_ms + out.dice.below(20_000);
    }

    /// Keeps a copy of the disk, or puts the disk back to the one that is kept.
    pub fn copy_or_restore(&mut self, out: &mut Outside) {
        let Some((copy, noted)) = self.copy.take() else {
            if self.noted.is_some() {
                self.copy = Some((self.disk.copy(), self.noted));
            }
            return;
        };
        self.end(true, out);
        out.say(|| format!("satellite {}: the disk is put back to slot {noted:?}", self.index));
        self.disk.restore(copy);
        let now = i64::try_from((out.now_ms / SLOT_MS).min(out.last_slot)).unwrap_or(0);
        out.oracle.roll_back(self.index, noted.unwrap_or(0), now);
        self.noted = noted;
    }
}

fn device() -> DeviceName {
    "device".parse().expect("a device's name")
}

/// The value of a slot's n-th sample, by which it can be told from all others.
#[must_use]
pub fn value(satellite: usize, slot: u64, n: u64) -> f64 {
    let number = (satellite as u64 + 1) * 1_000_000 + slot * 10 + n;
    f64::from(u32::try_from(number).unwrap_or(0))
}

fn give(readings: &mut Readings, values: &[f64]) {
    for (n, value) in values.iter().enumerate() {
        // New series come as time goes on.
        let name = format!("x{n}_{}", (value / 100.0).floor());
        readings.sample(0, Family::gauge(&name, ""), &[], *value);
    }
}

/// The first slot that a start with these notes may still explain.
fn unsettled(notes: &Notes) -> i64 {
    let polls = notes.under_way.iter().map(|poll| poll.slot_ms);
    let gaps = notes.open.iter().map(|gap| gap.from_ms);
    polls.chain(gaps).min().unwrap_or(i64::MAX).min(notes.until_ms + 1)
}

fn identity(frame: &[u8]) -> (Epoch, u64) {
    block::header(frame).map_or((Epoch(0), 0), |header| (header.epoch, header.first_seq))
}
