//! The relay: the real sessions' machines, intake and steps of commit and recovery, around a simulated storage.
//!
//! What the conversations' and the committer's tasks do between those is repeated here as thinly as there. Each step can
//! be the last before the program ends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use satellite_relay::ingest::commit::{self, Step};
use satellite_relay::ingest::intake::{Bounds, Filling, Intake, Stream};
use satellite_relay::ingest::recovery::{Resolution, Step as Recovery};
use satellite_relay::ingest::watermark::Watermark;
use satellite_relay::ingest::{Block, Outcome};
use satellite_relay::registry::{DeadLetter, Intent};
use satellite_relay::session::Limits;
use satellite_relay::session::machine::{Admission, Effect, Event, Greeting, Machine};
use satellite_relay::sink::archive::Object;
use satellite_relay::sink::archive::layout::BatchId;
use satellite_shared::id::SatelliteId;
use satellite_shared::wire::block::Decoder;
use satellite_shared::wire::to_relay::Authenticate;
use satellite_shared::wire::to_satellite::{RefusalCode, Refused, Stored as StoredRanges, ToSatellite};
use tokio::sync::mpsc;

use super::faults::{Sabotage, happens};
use super::network::Message;
use super::satellite::Watch;
use super::storage::{self, Failed, Registry, Storage, Stored};
use super::world::Outside;

/// Blocks between the sessions and the committer.
const INBOX_MAX: usize = 6;
/// When the keys of abandoned batches are deleted again, after the start.
const SWEEPS_MS: [u64; 2] = [60_000, 600_000];

/// What the relay can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The program starts.
    Start,
    /// A session reads a message.
    Read(u64),
    /// A session hears what became of blocks.
    Outcomes(u64),
    /// A session's time has come.
    Tick(u64),
    /// A session was superseded.
    End(u64),
    /// The committer resolves what the last run left.
    Resolve,
    /// The committer takes a block.
    Take,
    /// The committer seals a batch.
    Depart,
    /// The committer does the next step of a commit.
    Fly,
    /// The committer deletes again what it had abandoned.
    Sweep,
}

/// The relay.
#[derive(Debug)]
pub struct Relay {
    /// Its clocks.
    pub watch: Watch,
    /// Its memories.
    pub storage: Storage,
    /// The program, while it runs.
    pub running: Option<Running>,
    /// When the program starts.
    pub start_ms: u64,
    copy: Option<(Registry, BTreeMap<String, Stored>)>,
    limits: Arc<Limits>,
    bounds: Bounds,
    decoder: Decoder,
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    sessions: BTreeMap<u64, Session>,
    places: BTreeMap<usize, u64>,
    unresolved: Option<Unresolved>,
    sweep: (Vec<Intent>, VecDeque<u64>),
    inbox: VecDeque<Block>,
    held: Option<Block>,
    /// The held block waits for another batch, not for the registry.
    too_wide: bool,
    intake: Intake,
    flight: Option<Flight>,
    retry_ms: u64,
}

#[derive(Debug)]
enum Unresolved {
    Unasked,
    Intents(VecDeque<Intent>),
}

#[derive(Debug)]
struct Session {
    satellite: usize,
    id: SatelliteId,
    machine: Machine,
    reply: mpsc::UnboundedSender<Outcome>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
    ended: Option<RefusalCode>,
}

#[derive(Debug)]
struct Flight {
    sealed: Option<Filling>,
    letters: Vec<DeadLetter>,
    objects: Vec<Stored>,
    intent: Option<Intent>,
    steps: VecDeque<Step>,
    put: usize,
    retry_ms: u64,
}

impl Relay {
    /// A new machine.
    #[must_use]
    pub fn new(wall_ms: i64, storage: Storage, credit_bytes: u64, commit_every_ms: u64) -> Self {
        let limits = Limits {
            credit_bytes_max: credit_bytes,
            credit_bytes_min: credit_bytes.min(300),
            commit_slow: Duration::from_secs(30),
            ..Limits::default()
        };
        let bounds =
            Bounds { rows_max: 60, bytes_max: 8_000, age_ms_max: commit_every_ms, idle_rows: 20, idle_ms: 250 };
        Self {
            watch: Watch::new(wall_ms, 0),
            storage,
            running: None,
            start_ms: 0,
            copy: None,
            limits: Arc::new(limits),
            bounds,
            decoder: Decoder::default(),
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
        for (&number, session) in &running.sessions {
            if session.ended.is_some() {
                acts.push(Act::End(number));
                continue;
            }
            let connection = out.network.connections.get(&number);
            let arrived = connection.is_none_or(|connection| connection.up.has_arrived(now_ms));
            if arrived && session.machine.listens() && running.inbox.len() < INBOX_MAX {
                acts.push(Act::Read(number));
            }
            if !session.outcomes.is_empty() {
                acts.push(Act::Outcomes(number));
            }
            if now_ms >= self.watch.world_ms(session.machine.deadline_ms()) {
                acts.push(Act::Tick(number));
            }
        }
        let ready = now_ms >= running.retry_ms;
        if running.unresolved.is_some() {
            if ready {
                acts.push(Act::Resolve);
            }
            return;
        }
        let full = running.intake.is_full(&self.bounds);
        let takes = if running.held.is_some() { !running.too_wide } else { !running.inbox.is_empty() };
        if takes && !full && ready {
            acts.push(Act::Take);
        }
        if running.flight.is_none() && self.due_ms(running) == Some(0) {
            acts.push(Act::Depart);
        }
        if running.flight.as_ref().is_some_and(|flight| now_ms >= flight.retry_ms) {
            acts.push(Act::Fly);
        }
        if running.sweep.1.front().is_some_and(|at_ms| now_ms >= *at_ms) {
            acts.push(Act::Sweep);
        }
    }

    fn due_ms(&self, running: &Running) -> Option<u64> {
        let due = running.intake.due_in_ms(&self.bounds, self.watch.now().mono_ms)?;
        Some(if running.too_wide { 0 } else { due })
    }

    /// When it can do something next by the clock alone.
    #[must_use]
    pub fn next_ms(&self, out: &Outside) -> u64 {
        let landing = self.storage.next_landing_ms().unwrap_or(u64::MAX);
        let Some(running) = &self.running else { return self.start_ms.min(landing) };
        let mut next = landing;
        for (number, session) in &running.sessions {
            next = next.min(self.watch.world_ms(session.machine.deadline_ms()));
            let connection = out.network.connections.get(number);
            if let Some(connection) = connection.filter(|connection| !connection.up.messages.is_empty()) {
                next = next.min(connection.up.stalled_until_ms.max(out.now_ms + 1));
            }
        }
        if running.retry_ms > out.now_ms {
            next = next.min(running.retry_ms);
        }
        if let Some(flight) = &running.flight {
            next = next.min(flight.retry_ms);
        } else if let Some(due) = self.due_ms(running) {
            next = next.min(out.now_ms + due);
        }
        next.min(running.sweep.1.front().copied().unwrap_or(u64::MAX))
    }

    /// Whether nothing is left to commit or to sweep.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        let Some(running) = &self.running else { return false };
        running.unresolved.is_none()
            && running.sweep.1.is_empty()
            && running.inbox.is_empty()
            && running.held.is_none()
            && running.flight.is_none()
            && running.sessions.values().all(|session| session.outcomes.is_empty())
            && self.due_ms(running).is_none()
            && self.storage.next_landing_ms().is_none()
    }

    /// Does one thing.
    pub fn act(&mut self, act: Act, out: &mut Outside) {
        match act {
            Act::Start => self.start(out),
            Act::Read(number) => self.read(number, out),
            Act::Outcomes(number) => self.outcomes(number, out),
            Act::Tick(number) => self.handle(number, Event::Tick, out),
            Act::End(number) => {
                let code = self.session(number).and_then(|session| session.ended.take());
                self.handle(number, Event::Ended(code.unwrap_or(RefusalCode::Superseded)), out);
            }
            Act::Resolve => self.resolve(out),
            Act::Take => self.take(out),
            Act::Depart => self.depart(out),
            Act::Fly => self.fly(out),
            Act::Sweep => self.sweep(out),
        }
    }

    fn batch_id(&self, out: &mut Outside) -> BatchId {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&out.dice.roll().to_be_bytes());
        BatchId::new(self.watch.now().wall_ms, random)
    }

    fn start(&mut self, out: &mut Outside) {
        out.say(|| "the relay starts".into());
        let ignored = out.faults.sabotage == Sabotage::IntentIgnored;
        self.running = Some(Running {
            sessions: BTreeMap::new(),
            places: BTreeMap::new(),
            unresolved: (!ignored).then_some(Unresolved::Unasked),
            sweep: (Vec::new(), VecDeque::new()),
            inbox: VecDeque::new(),
            held: None,
            too_wide: false,
            intake: Intake::new(self.batch_id(out)),
            flight: None,
            retry_ms: 0,
        });
    }

    fn session(&mut self, number: u64) -> Option<&mut Session> {
        self.running.as_mut()?.sessions.get_mut(&number)
    }

    /// Somebody has connected.
    pub fn accept(&mut self, number: u64, satellite: usize, id: &SatelliteId, out: &mut Outside) {
        let (reply, outcomes) = mpsc::unbounded_channel();
        let machine = Machine::new(Arc::clone(&self.limits), self.watch.now());
        let session = Session { satellite, id: id.clone(), machine, reply, outcomes, ended: None };
        if let Some(running) = &mut self.running {
            running.sessions.insert(number, session);
        }
        self.handle(number, Event::Opened(Ok(Greeting { relay: "simulated".into() })), out);
    }

    fn read(&mut self, number: u64, out: &mut Outside) {
        let connection = out.network.connections.get_mut(&number);
        let event = match connection.and_then(|connection| connection.up.messages.pop_front()) {
            Some(Message::Text(text)) => Event::Text(text),
            Some(Message::Frame(frame)) => Event::Frame(frame),
            Some(Message::Ping) => {
                if let Some(connection) = out.network.connections.get_mut(&number) {
                    connection.down.push(Message::Pong);
                }
                Event::Control
            }
            Some(Message::Pong) => Event::Control,
            Some(Message::Over) | None => return self.leave(number, out),
        };
        self.handle(number, event, out);
    }

    fn outcomes(&mut self, number: u64, out: &mut Outside) {
        let Some(session) = self.session(number) else { return };
        let mut outcomes = Vec::new();
        while let Ok(outcome) = session.outcomes.try_recv() {
            outcomes.push(outcome);
        }
        self.handle(number, Event::Outcomes(outcomes), out);
    }

    fn handle(&mut self, number: u64, event: Event, out: &mut Outside) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.watch.now();
            let Some(session) = self.running.as_mut().and_then(|running| running.sessions.get_mut(&number)) else {
                return;
            };
            for effect in session.machine.handle(now, event, &mut self.decoder) {
                if let Some(event) = self.perform(number, effect, out) {
                    events.push_back(event);
                }
            }
        }
    }

    fn perform(&mut self, number: u64, effect: Effect, out: &mut Outside) -> Option<Event> {
        match effect {
            Effect::Send(event) => self.send(number, *event, out),
            Effect::Ping => {
                if let Some(connection) = out.network.connections.get_mut(&number) {
                    connection.down.push(Message::Ping);
                }
            }
            Effect::Admit(authenticate) => return Some(Event::Admitted(self.admit(number, &authenticate, out))),
            Effect::FetchConfig => return Some(Event::Config(None)),
            Effect::Submit(submission) => {
                let session = self.session(number)?;
                let (satellite, reply) = (session.id.clone(), session.reply.clone());
                let block = Block {
                    satellite,
                    header: submission.header,
                    body: submission.body,
                    frame: submission.frame,
                    reply,
                };
                self.running.as_mut()?.inbox.push_back(block);
            }
            Effect::Close(closing) => {
                out.say(|| format!("the relay closes connection {number}: {}", closing.reason()));
                self.leave(number, out);
            }
            Effect::Complained(complaint) => out.violate(format!("the satellite complains: {}", complaint.message)),
            Effect::Renew(_) | Effect::ConfigStatus(_) | Effect::Seen(_) => {}
        }
        None
    }

    fn send(&mut self, number: u64, mut event: ToSatellite, out: &mut Outside) {
        if let ToSatellite::Ack(ack) = &mut event {
            if out.faults.sabotage == Sabotage::AckTooLong {
                for stored in &mut ack.stored {
                    stored.ranges = stored.ranges.as_slice().iter().map(|(first, last)| (*first, last + 1)).collect();
                }
            }
            out.say(|| format!("the relay acknowledges over connection {number}: {:?}", ack.stored));
        }
        if let ToSatellite::Nack(nack) = &event {
            out.say(|| format!("the relay refuses over connection {number}: {nack:?}"));
        }
        let text = serde_json::to_string(&event).expect("plain values always serialise");
        if let Some(connection) = out.network.connections.get_mut(&number) {
            connection.down.push(Message::Text(text));
        }
    }

    fn admit(
        &mut self,
        number: u64,
        authenticate: &Authenticate,
        out: &mut Outside,
    ) -> Result<Box<Admission>, Refused> {
        let unavailable = || Refused { code: RefusalCode::Unavailable, message: "later".into(), retry_after_s: 1 };
        let Some(running) = &mut self.running else { return Err(unavailable()) };
        let Some(session) = running.sessions.get(&number) else { return Err(unavailable()) };
        let mut stored = Vec::new();
        for stream in &authenticate.streams {
            let key = (session.id.clone(), stream.epoch);
            let row = self.storage.stream(out.now_ms, &key).map_err(|Failed| unavailable())?;
            let ranges = row.map(|tally| tally.watermark.ranges()).unwrap_or_default();
            stored.push(StoredRanges { epoch: stream.epoch, ranges });
        }
        let (satellite, id) = (session.satellite, session.id.clone());
        out.say(|| format!("the relay lets satellite {satellite} in over connection {number}; stored: {stored:?}"));
        let before = running.places.insert(satellite, number).filter(|before| *before != number);
        if let Some(before) = before.and_then(|before| running.sessions.get_mut(&before)) {
            before.ended = Some(RefusalCode::Superseded);
        }
        Ok(Box::new(Admission {
            satellite: id,
            session: format!("s{number}"),
            stored,
            config_version: 0,
            config: None,
            renew_after_ms: i64::MAX,
        }))
    }

    fn leave(&mut self, number: u64, out: &mut Outside) {
        out.network.close_relay_end(number);
        let Some(running) = &mut self.running else { return };
        if let Some(session) = running.sessions.remove(&number)
            && running.places.get(&session.satellite) == Some(&number)
        {
            running.places.remove(&session.satellite);
        }
    }

    /// One unfinished batch, or the question which there are.
    fn resolve(&mut self, out: &mut Outside) {
        let Some(running) = &mut self.running else { return };
        running.retry_ms = out.now_ms + 500;
        match &mut running.unresolved {
            Some(Unresolved::Unasked) => {
                if let Ok(intents) = self.storage.unfinished(out.now_ms) {
                    running.unresolved = Some(Unresolved::Intents(intents.into()));
                    running.retry_ms = 0;
                }
            }
            Some(Unresolved::Intents(intents)) => {
                if let Some(intent) = intents.front().cloned() {
                    if self.resolve_one(&intent, out).is_ok()
                        && let Some(Running { unresolved: Some(Unresolved::Intents(intents)), retry_ms, .. }) =
                            &mut self.running
                    {
                        intents.pop_front();
                        *retry_ms = 0;
                    }
                    return;
                }
                let Ok(abandoned) = self.storage.abandoned(out.now_ms) else { return };
                let swept = !abandoned.is_empty() && out.faults.sabotage != Sabotage::NotSwept;
                let times = SWEEPS_MS.iter().filter(|_| swept).map(|after_ms| out.now_ms + after_ms);
                running.sweep = (abandoned, times.collect());
                running.unresolved = None;
                running.retry_ms = 0;
            }
            None => {}
        }
    }

    fn resolve_one(&mut self, intent: &Intent, out: &mut Outside) -> Result<(), Failed> {
        let now_ms = out.now_ms;
        let mut resolution = Resolution::new(&intent.content.objects);
        if out.faults.sabotage == Sabotage::IntentUnasked {
            resolution = Resolution::new(&[]);
        }
        while let Some(step) = resolution.next() {
            let agreed = match step {
                Recovery::Ask(key) => {
                    let size = self.storage.size(now_ms, key)?;
                    resolution.on_size(size);
                    continue;
                }
                Recovery::Delete(key) => self.storage.delete(now_ms, key).map(|()| true)?,
                Recovery::Finish => self.storage.finish(now_ms, Some(intent), &[])?,
                Recovery::Abandon => self.storage.abandon(now_ms, &intent.id)?,
            };
            out.say(|| format!("the relay resolves batch {}: {step:?}", intent.id));
            if !agreed {
                out.violate(format!("batch {} was ended twice", intent.id));
            }
            resolution.on_done();
        }
        Ok(())
    }

    fn take(&mut self, out: &mut Outside) {
        let now = self.watch.now();
        let forgetful = out.faults.sabotage == Sabotage::DuplicateStored;
        let Some(running) = &mut self.running else { return };
        let Some(block) = running.held.take().or_else(|| running.inbox.pop_front()) else { return };
        let mut unknown: Vec<Stream> = running.intake.unknown(&block);
        if forgetful {
            unknown = vec![(block.satellite.clone(), block.header.epoch)];
        }
        for stream in unknown {
            let Ok(row) = self.storage.stream(out.now_ms, &stream) else {
                running.held = Some(block);
                running.retry_ms = out.now_ms + 300;
                return;
            };
            let watermark = row.filter(|_| !forgetful).map(|row| row.watermark).unwrap_or_default();
            running.intake.learn(stream, Watermark::clone(&watermark));
        }
        if running.intake.is_too_wide_with(&block, now.wall_ms) {
            running.held = Some(block);
            running.too_wide = true;
            return;
        }
        running.intake.take(block, now.wall_ms, now.mono_ms);
        running.intake.forget();
    }

    fn depart(&mut self, out: &mut Outside) {
        let (next, after) = (self.batch_id(out), self.batch_id(out));
        let Some(running) = &mut self.running else { return };
        running.too_wide = false;
        let sealed = running.intake.seal(next);
        let id = sealed.batch.id.clone();
        if sealed.batch.rows > 0 && happens(&mut out.dice, out.faults.encode_fails) {
            out.say(|| format!("batch {id} can't be encoded"));
            running.intake.failed(sealed, after, "the relay could not store it");
            return;
        }
        let objects = storage::objects(&sealed.batch);
        let plain: Vec<Object> = objects.iter().map(|stored| stored.object.clone()).collect();
        let mut steps: VecDeque<Step> = commit::steps(&plain).iter().copied().collect();
        if out.faults.sabotage == Sabotage::WatermarkBeforeObject && steps.len() == 3 {
            steps.swap(1, 2);
        }
        let intent = commit::intent(&id, &plain, sealed.holdings());
        let letters = sealed.letters.clone();
        let mut flight = Flight { sealed: Some(sealed), letters, objects, intent, steps, put: 0, retry_ms: 0 };
        if out.faults.sabotage == Sabotage::AckBeforeCommit
            && let Some(sealed) = flight.sealed.take()
        {
            running.intake.committed(sealed);
        }
        out.say(|| format!("the relay commits batch {id}"));
        running.flight = Some(flight);
    }

    /// One step of a commit; one put, where there are several.
    fn fly(&mut self, out: &mut Outside) {
        let now_ms = out.now_ms;
        let Some(running) = &mut self.running else { return };
        let Some(flight) = &mut running.flight else { return };
        let Some(step) = flight.steps.front().copied() else {
            running.flight = None;
            return;
        };
        let done = match step {
            Step::Intend => match &flight.intent {
                Some(intent) => self.storage.intend(now_ms, intent).map(|()| true),
                None => Ok(true),
            },
            Step::Put => self.storage.put(now_ms, &flight.objects[flight.put]).map(|()| true),
            Step::Finish => self.storage.finish(now_ms, flight.intent.as_ref(), &flight.letters),
        };
        flight.retry_ms = now_ms + out.dice.below(200);
        let Ok(agreed) = done else {
            flight.retry_ms = now_ms + 100 + out.dice.below(2_000);
            return;
        };
        if !agreed {
            out.violate("a batch was ended by somebody else".into());
        }
        if step == Step::Put && flight.put + 1 < flight.objects.len() {
            flight.put += 1;
            return;
        }
        flight.steps.pop_front();
        if step == Step::Finish
            && let Some(sealed) = flight.sealed.take()
        {
            running.intake.committed(sealed);
        }
        if flight.steps.is_empty() {
            running.flight = None;
        }
        if out.dice.one_in(12) {
            self.storage.sync();
        }
    }

    fn sweep(&mut self, out: &mut Outside) {
        let Some(running) = &mut self.running else { return };
        let last = running.sweep.1.len() == 1;
        for intent in &running.sweep.0 {
            let mut keys = intent.content.objects.iter().map(|object| &object.key);
            let deleted = keys.try_for_each(|key| self.storage.delete(out.now_ms, key));
            let done =
                deleted.and_then(|()| if last { self.storage.note_swept(out.now_ms, &intent.id) } else { Ok(()) });
            if done.is_err() {
                running.sweep.1[0] = out.now_ms + 200;
                return;
            }
        }
        running.sweep.1.pop_front();
    }

    /// The program ends; with `power`, the machine too.
    pub fn end(&mut self, power: bool, out: &mut Outside) {
        let Some(running) = self.running.take() else { return };
        out.say(|| format!("the relay ends, power cut: {power}"));
        for number in running.sessions.into_keys() {
            if power {
                out.network.cut(number, &mut out.dice, true);
            }
            out.network.close_relay_end(number);
        }
        if power {
            self.storage.cut_power();
            self.watch.reboot(out.now_ms);
        }
        self.start_ms = out.now_ms + out.dice.below(20_000);
    }

    /// Keeps a copy of registry and archive, or puts both back to the one that is kept.
    pub fn copy_or_restore(&mut self, out: &mut Outside) {
        let Some((registry, objects)) = self.copy.take() else {
            self.copy = Some((self.storage.registry.clone(), self.storage.objects.clone()));
            return;
        };
        self.end(true, out);
        out.say(|| "the relay's registry and archive are put back".into());
        self.storage.registry = registry;
        self.storage.objects = objects;
        self.storage.forget_late();
        out.oracle.forgive(out.now_ms / super::satellite::SLOT_MS);
    }
}
