//! The wire's end: one connection to the relay, for ever.
//!
//! The task dials, drives the pure [`link`], waits as the pure [`backoff`] says, and keeps the credential fresh. Without
//! a lease it waits for one: the identity file is looked at every few seconds, so that `satellite lease set` needs no
//! word to the daemon. It never ends by itself; a relay that refuses is asked again, and polling goes on meanwhile.

pub mod link_state;

pub mod link;

pub mod in_flight;

pub mod session;

pub mod backoff;

pub mod proxy;

pub mod dial;

#[cfg(test)]
pub(crate) mod stand_in;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use satellite_shared::clock::{Clock, Now};
use satellite_shared::heartbeat::Beat;
use satellite_shared::wire::ToRelay;
use satellite_shared::wire::to_relay::{Authenticate, ConfigStatus, Progress, Renew, Stream};
use satellite_shared::wire::to_satellite::{Authenticated, Certificate, Config, Hello};
use tokio::sync::{Notify, mpsc, watch};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::buffer::{Buffer, BufferState, Place};
use crate::credential::enrolment::{self, EnrolmentError};
use crate::credential::key::Key;
use crate::credential::keystore::{Identity, Keystore, Pending, Stored, Version};
use crate::credential::rotation::Renewal;
use crate::credential::verification_time::VerificationTime;
use crate::recorder::RecorderState;
use backoff::{Backoff, Ending};
use dial::{Dial, DialError, Meter, Socket};
use link::{Closing, Effect, Link};
use session::{Done, Job, Session, Step};

pub use link_state::{Counters, LinkState, Standing};
pub use proxy::ProxySettings;

/// How often the identity file is looked at, and the longest that the task sleeps.
const LOOK_MS: u64 = 3_000;
/// A new certificate is used within this, and within half of what the old one still has: it is good meanwhile.
const RECONNECT_SPREAD_MS: f64 = 60_000.0;
/// What is to be done about it, as `satellite status` and the service manager say it.
pub(crate) const NO_LEASE: &str = "needs a lease: run sudo satellite lease set";
const FAREWELL: Duration = Duration::from_secs(2);

/// What the task is made of.
pub struct Parts {
    /// The records.
    pub buffer: Buffer,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where the identity is kept: `/var/lib/satellite`.
    pub state_dir: PathBuf,
    /// The way out.
    pub proxy: ProxySettings,
    /// How long a stop may take to send what is buffered.
    pub stop_grace: Duration,
    /// To the config task.
    pub configs: mpsc::Sender<Config>,
    /// From the config task.
    pub statuses: mpsc::Receiver<ConfigStatus>,
    /// The configuration version in force.
    pub config_version: watch::Receiver<u64>,
    /// The recorder's counters.
    pub recorder: watch::Receiver<RecorderState>,
}

/// What others may see of the task, and ask of it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// How the link is.
    pub link: watch::Receiver<LinkState>,
    /// Who this satellite is.
    pub identity: watch::Receiver<Option<Identity>>,
    /// Wake it to ask the relay for the configuration anew.
    pub refresh: Arc<Notify>,
}

/// The task.
pub struct Uplink {
    parts: Parts,
    keystore: Keystore,
    version: Option<Version>,
    time: VerificationTime,
    renewal: Renewal,
    state: watch::Sender<LinkState>,
    identity: watch::Sender<Option<Identity>>,
    refresh: Arc<Notify>,
    buffer_state: watch::Receiver<BufferState>,
    meter: Arc<Meter>,
    received: u64,
    instance: String,
    backoff: Backoff,
    phase: Phase,
    /// Between the request for a certificate and its being kept.
    credential: Option<BoxFuture<'static, Credential>>,
    /// The relay says that the certificate has ended, whatever the clock says.
    expired: bool,
    authenticated_ms: Option<u64>,
    reconnect_ms: Option<u64>,
    hello: Option<Hello>,
    waiting_config: Option<Config>,
    last_status: Option<ConfigStatus>,
    stop_ms: Option<u64>,
    stopped: bool,
    beat: Beat,
}

enum Phase {
    NoLease,
    Waiting { until_ms: u64 },
    Recovering(BoxFuture<'static, Result<Identity, EnrolmentError>>),
    Dialing(BoxFuture<'static, Result<Socket, DialError>>),
    Connected(Box<Session>),
    Leaving { until_ms: u64, farewell: BoxFuture<'static, ()> },
}

enum Happened {
    Recovered(Result<Identity, EnrolmentError>),
    Dialed(Box<Result<Socket, DialError>>),
    Session(Step),
    Left,
}

enum Credential {
    Requested(Result<String, String>),
    Kept(Box<Result<Identity, String>>),
}

impl Phase {
    async fn happened(&mut self) -> Happened {
        match self {
            Self::NoLease | Self::Waiting { .. } => std::future::pending().await,
            Self::Recovering(recovering) => Happened::Recovered(recovering.await),
            Self::Dialing(dialing) => Happened::Dialed(Box::new(dialing.await)),
            Self::Connected(session) => Happened::Session(session.step().await),
            Self::Leaving { farewell, .. } => {
                farewell.await;
                Happened::Left
            }
        }
    }
}

impl Uplink {
    /// The task, and what others see of it. The identity is read when it runs.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Seen) {
        let (state, link) = watch::channel(LinkState::new());
        let (identity, identity_receiver) = watch::channel(None);
        let refresh = Arc::new(Notify::new());
        let keystore = Keystore::new(&parts.state_dir);
        let time = VerificationTime::load(Arc::clone(&parts.clock), keystore.dir());
        let buffer_state = parts.buffer.state();
        let seen = Seen { link, identity: identity_receiver, refresh: Arc::clone(&refresh) };
        let uplink = Self {
            parts,
            keystore,
            version: None,
            time,
            renewal: Renewal::new(i64::MAX, i64::MAX),
            state,
            identity,
            refresh,
            buffer_state,
            meter: Arc::new(Meter::default()),
            received: 0,
            instance: instance(),
            backoff: Backoff::default(),
            phase: Phase::NoLease,
            credential: None,
            expired: false,
            authenticated_ms: None,
            reconnect_ms: None,
            hello: None,
            waiting_config: None,
            last_status: None,
            stop_ms: None,
            stopped: false,
            beat: Beat::default(),
        };
        (uplink, seen)
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Runs until told to stop, then sends what fits in the grace period.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.look();
        self.on_tick();
        while !self.stopped {
            self.beat.beat();
            let sleep = Duration::from_millis(self.sleep_ms()).min(self.beat.every());
            tokio::select! {
                () = shutdown.cancelled(), if self.stop_ms.is_none() => self.on_stop(),
                happened = self.phase.happened() => self.on_happened(happened),
                done = credential(&mut self.credential) => self.on_credential(done),
                Ok(()) = self.buffer_state.changed() => self.on_buffer(),
                Some(status) = self.parts.statuses.recv() => self.on_status(status),
                () = room(&self.parts.configs), if self.waiting_config.is_some() => self.on_room(),
                () = self.refresh.notified() => self.on_refresh(),
                () = tokio::time::sleep(sleep) => self.on_tick(),
            }
        }
        self.publish();
    }

    fn now(&self) -> Now {
        self.parts.clock.now()
    }

    fn sleep_ms(&self) -> u64 {
        let now = self.now();
        let next = match &self.phase {
            Phase::NoLease | Phase::Recovering(_) | Phase::Dialing(_) | Phase::Leaving { .. } => u64::MAX,
            Phase::Waiting { until_ms } => *until_ms,
            Phase::Connected(session) => session.link.next_tick_ms(now),
        };
        let next = next.min(self.stop_ms.unwrap_or(u64::MAX)).min(self.reconnect_ms.unwrap_or(u64::MAX));
        next.saturating_sub(now.mono_ms).clamp(1, LOOK_MS)
    }

    fn on_stop(&mut self) {
        let open = matches!(&self.phase, Phase::Connected(session) if session.link.is_open());
        if !open {
            self.stopped = true;
            return;
        }
        self.stop_ms = Some(self.now().mono_ms + u64::try_from(self.parts.stop_grace.as_millis()).unwrap_or(u64::MAX));
        self.on_buffer();
    }

    fn on_tick(&mut self) {
        self.look();
        let now = self.now();
        if matches!(self.phase, Phase::Waiting { until_ms } if now.mono_ms >= until_ms) {
            self.begin();
        }
        let received = self.meter.received();
        let effects = match &mut self.phase {
            Phase::Connected(session) => {
                if received != self.received {
                    session.link.on_bytes(now);
                }
                session.link.on_tick(now)
            }
            Phase::NoLease
            | Phase::Waiting { .. }
            | Phase::Recovering(_)
            | Phase::Dialing(_)
            | Phase::Leaving { .. } => vec![],
        };
        self.received = received;
        self.apply(effects);
        self.renew(now);
        if self.reconnect_ms.is_some_and(|at| now.mono_ms >= at) {
            self.reconnect_ms = None;
            self.finish("the new certificate is taken into use", Some(Ending::Planned));
        }
        self.fill();
        self.publish();
    }

    fn on_happened(&mut self, happened: Happened) {
        match happened {
            Happened::Recovered(result) => self.on_recovered(result),
            Happened::Dialed(result) => self.on_dialed(*result),
            Happened::Session(step) => self.on_step(step),
            Happened::Left => self.on_left(),
        }
    }

    fn on_recovered(&mut self, result: Result<Identity, EnrolmentError>) {
        self.version = self.keystore.version();
        match result {
            Ok(identity) => {
                tracing::info!(satellite = %identity.satellite, generation = identity.generation, "the ended certificate is replaced");
                self.take(Some(identity));
                self.begin();
            }
            Err(error) => {
                let retry_after = error.retry_after().unwrap_or(Duration::ZERO);
                let ending = if error.is_permanent() {
                    Ending::Permanent { retry_after }
                } else if retry_after.is_zero() {
                    Ending::Lost { authenticated: Duration::ZERO }
                } else {
                    Ending::Refused { retry_after }
                };
                self.wait(ending, format!("the certificate has ended and no new one was given: {error}"));
            }
        }
    }

    fn on_dialed(&mut self, result: Result<Socket, DialError>) {
        match result {
            Ok(socket) => {
                let (newest, opened) = self.buffered();
                let mut link = Link::new(self.now(), newest, self.last_status.clone());
                link.on_store(opened);
                self.phase = Phase::Connected(Box::new(Session::new(link, socket, self.parts.buffer.clone())));
            }
            Err(error) => {
                self.expired |= error.is_expired_certificate();
                let ending = match error.retry_after() {
                    Some(retry_after) => Ending::Refused { retry_after },
                    None => Ending::Lost { authenticated: Duration::ZERO },
                };
                self.wait(ending, error.to_string());
            }
        }
    }

    fn on_step(&mut self, step: Step) {
        let now = self.now();
        let Phase::Connected(session) = &mut self.phase else { return };
        let effects = match step {
            Step::Received(message) => {
                session.link.on_bytes(now);
                match message {
                    Message::Text(text) => session.link.on_text(now, text.as_str()),
                    Message::Binary(_) => session.link.on_text(now, "a binary message"),
                    Message::Close(frame) => {
                        let reason =
                            frame.map_or_else(String::new, |frame| format!(": {} {}", frame.code, frame.reason));
                        vec![Effect::Close(Closing::lost(format!("the relay closed the connection{reason}")))]
                    }
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => vec![],
                }
            }
            Step::Broken { why, expired } => {
                self.expired |= expired;
                vec![Effect::Close(Closing::lost(why))]
            }
            Step::Written => vec![],
            Step::Worked(done) => {
                self.on_work(now, done);
                vec![]
            }
        };
        self.apply(effects);
        self.fill();
    }

    fn on_work(&mut self, now: Now, done: Done) {
        if let Done::Streams(protocol, streams) = done {
            return self.authenticate(now, protocol, streams);
        }
        let Phase::Connected(session) = &mut self.phase else { return };
        match done {
            Done::Streams(..) | Done::Forgot(Ok(())) | Done::Compared(Ok(0)) => {}
            Done::Compared(Ok(records)) => tracing::warn!(
                records,
                "the relay has lost what it had acknowledged, as after its disks were copied back: a gap says so"
            ),
            Done::Compared(Err(error)) => tracing::warn!(%error, "what the relay stores can't be compared now"),
            Done::Forgot(Err(error)) => {
                tracing::warn!(%error, "acknowledged blocks could not be deleted: they are sent again when the store is open again, and the relay drops them");
            }
            Done::Blocks(way, below, blocks) => session.link.on_blocks(way, below, blocks),
            Done::Series(opening, frames, newest) => session.link.on_series(opening, frames, newest),
            Done::Failed(read, error) => {
                tracing::warn!(%error, "nothing can be read from the buffer now");
                session.link.on_read_failed(now, read);
            }
        }
    }

    fn on_left(&mut self) {
        let Phase::Leaving { until_ms, .. } = self.phase else { return };
        self.phase = Phase::Waiting { until_ms };
        self.stopped = self.stop_ms.is_some();
    }

    /// The newest block, and how often the store was opened.
    fn buffered(&mut self) -> (Place, u64) {
        let state = self.buffer_state.borrow_and_update();
        (state.last, state.store_opened)
    }

    fn on_buffer(&mut self) {
        let (newest, opened) = self.buffered();
        if let Phase::Connected(session) = &mut self.phase {
            session.link.on_buffer(newest);
            session.link.on_store(opened);
        }
        self.fill();
    }

    fn on_status(&mut self, status: ConfigStatus) {
        self.last_status = Some(status.clone());
        let effect = match &mut self.phase {
            Phase::Connected(session) => session.link.on_status(status),
            Phase::NoLease
            | Phase::Waiting { .. }
            | Phase::Recovering(_)
            | Phase::Dialing(_)
            | Phase::Leaving { .. } => None,
        };
        self.apply(effect.into_iter().collect());
    }

    /// The newest configuration goes on; the config task takes one after the other.
    fn on_room(&mut self) {
        let Some(config) = self.waiting_config.take() else { return };
        if let Err(mpsc::error::TrySendError::Full(config)) = self.parts.configs.try_send(config) {
            self.waiting_config = Some(config);
        }
    }

    fn on_refresh(&mut self) {
        let effect = match &self.phase {
            Phase::Connected(session) => session.link.refresh(),
            Phase::NoLease
            | Phase::Waiting { .. }
            | Phase::Recovering(_)
            | Phase::Dialing(_)
            | Phase::Leaving { .. } => None,
        };
        self.apply(effect.into_iter().collect());
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        let now = self.now();
        for effect in effects {
            match effect {
                Effect::Opened(welcome) => self.on_opened(now, &welcome),
                Effect::Certificate(certificate) => self.keep(certificate),
                Effect::Config(config) => self.waiting_config = Some(config),
                Effect::Close(closing) => self.on_close(closing),
                Effect::Stuck(why) => {
                    tracing::error!("{why}");
                    self.state.send_modify(|state| state.counters.problem = Some(why));
                }
                Effect::Complained(complaint) => {
                    tracing::warn!(code = %complaint.code, "the relay complains: {}", complaint.message);
                    if complaint.code == "renewal" {
                        let problem = format!("no new certificate: {}", complaint.message);
                        self.state.send_modify(|state| state.counters.problem = Some(problem));
                    }
                }
                Effect::Greeted(hello) => {
                    let ahead = now.wall_ms.saturating_sub(hello.clock_ms);
                    self.state.send_modify(|state| state.counters.clock_ahead_ms = Some(ahead));
                    self.hello = Some(hello);
                }
                Effect::Heartbeat => {
                    let progress = self.progress(now);
                    self.with_session(|session| session.say(now, &ToRelay::Heartbeat(progress)));
                }
                Effect::Authenticate(protocol) => self.with_session(|session| session.ask(Job::Streams(protocol))),
                Effect::Say(event) => self.with_session(|session| session.say(now, &event)),
                Effect::Ping => self.with_session(|session| session.ping(now)),
                Effect::Forget(epoch, ranges) => self.with_session(|session| session.ask(Job::Forget(epoch, ranges))),
            }
        }
    }

    fn with_session(&mut self, act: impl FnOnce(&mut Session)) {
        if let Phase::Connected(session) = &mut self.phase {
            act(session);
        }
    }

    fn fill(&mut self) {
        let now = self.now();
        self.with_session(|session| session.fill(now));
        let Some(stop_ms) = self.stop_ms else { return };
        let Phase::Connected(session) = &self.phase else { return };
        if session.is_drained() {
            tracing::info!("everything is sent and acknowledged");
            self.on_close(Closing::lost("the satellite stops"));
        } else if now.mono_ms >= stop_ms {
            tracing::info!("the grace period is over: the rest stays in the buffer for the next start");
            self.on_close(Closing::lost("the satellite stops"));
        }
    }

    fn authenticate(&mut self, now: Now, protocol: u32, streams: Vec<Stream>) {
        let Some(identity) = self.identity.borrow().clone() else { return };
        let streams = streams.into_iter().take(satellite_shared::limits::EPOCHS_MAX);
        let event = ToRelay::Authenticate(Authenticate {
            protocol,
            lease: identity.lease,
            token: identity.token,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            hostname: hostname(),
            instance: self.instance.clone(),
            clock_ms: now.wall_ms,
            config_version: *self.parts.config_version.borrow(),
            generation: identity.generation,
            streams: streams.collect(),
        });
        self.with_session(|session| session.say(now, &event));
    }

    fn on_opened(&mut self, now: Now, welcome: &Authenticated) {
        self.renewal.move_to(welcome.renew_after_ms);
        if self.authenticated_ms.is_some() {
            return;
        }
        self.authenticated_ms = Some(now.mono_ms);
        let compare = Job::Compare(welcome.satellite.clone(), welcome.stored.clone());
        self.with_session(|session| session.ask(compare));
        let (relay, clock_ms) = self.hello.as_ref().map_or((String::new(), 0), |it| (it.relay.clone(), it.clock_ms));
        tracing::info!(satellite = %welcome.satellite, session = %welcome.session, %relay, "connected");
        if let Err(error) = self.time.raise(clock_ms, self.keystore.dir()) {
            tracing::warn!(%error, "the last good time could not be kept");
        }
        let standing = Standing::Connected { since_ms: now.wall_ms, relay, session: welcome.session.clone() };
        self.state.send_modify(|state| {
            state.standing = standing;
            state.counters.sessions += 1;
        });
    }

    fn progress(&self, now: Now) -> Progress {
        let state = self.buffer_state.borrow();
        Progress {
            clock_ms: now.wall_ms,
            epoch: state.epoch,
            last_seq: state.last_seq,
            due: state.due,
            waiting: state.waiting,
            buffer_bytes: state.payload_bytes,
            polls: self.parts.recorder.borrow().polls,
        }
    }

    fn finish(&mut self, why: &str, ending: Option<Ending>) {
        let now = self.now();
        let closing = Closing { why: why.to_owned(), ending };
        let effects = match &mut self.phase {
            Phase::Connected(session) => session.link.finish(now, closing),
            Phase::NoLease
            | Phase::Waiting { .. }
            | Phase::Recovering(_)
            | Phase::Dialing(_)
            | Phase::Leaving { .. } => vec![],
        };
        self.apply(effects);
    }

    fn on_close(&mut self, closing: Closing) {
        let now = self.now();
        let since = self.authenticated_ms.map_or(0, |since| now.mono_ms.saturating_sub(since));
        let ending = closing.ending.unwrap_or(Ending::Lost { authenticated: Duration::from_millis(since) });
        self.publish();
        self.wait(ending, closing.why);
        self.authenticated_ms = None;
        self.hello = None;
    }

    /// Waits before the next attempt; a session that is there is left politely first.
    fn wait(&mut self, ending: Ending, why: String) {
        let now = self.now();
        let wait = self.backoff.after(ending, share());
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let until_ms = now.mono_ms.saturating_add(wait_ms);
        self.log_ending(ending, &why, wait);
        let next_try_ms = now.wall_ms.saturating_add_unsigned(wait_ms);
        self.state.send_modify(|state| {
            state.standing = Standing::Disconnected { since_ms: now.wall_ms, why, next_try_ms };
        });
        let phase = std::mem::replace(&mut self.phase, Phase::Waiting { until_ms });
        if let Phase::Connected(session) = phase {
            let farewell = async move {
                // A relay that does not listen any more is left without a farewell.
                tokio::time::timeout(FAREWELL, session.close()).await.ok();
            };
            self.phase = Phase::Leaving { until_ms, farewell: farewell.boxed() };
        }
    }

    fn log_ending(&self, ending: Ending, why: &str, wait: Duration) {
        let wait_s = wait.as_secs();
        let state = self.state.borrow();
        let again = matches!(&state.standing, Standing::Disconnected { why: before, .. } if before == why);
        match ending {
            Ending::Planned => tracing::info!("reconnecting: {why}"),
            Ending::Drained { .. } => tracing::info!(wait_s, "{why}"),
            Ending::Permanent { .. } => tracing::error!(wait_s, "{why}"),
            Ending::Lost { .. } | Ending::Refused { .. } if again || self.stop_ms.is_some() => {
                tracing::debug!(wait_s, "still not connected: {why}");
            }
            Ending::Lost { .. } | Ending::Refused { .. } => tracing::warn!(wait_s, "not connected: {why}"),
        }
    }

    fn begin(&mut self) {
        let Some(identity) = self.identity.borrow().clone() else {
            self.phase = Phase::NoLease;
            return;
        };
        let now = self.now();
        // Another attempt of the same trouble keeps its reason in the status until it is over.
        if !matches!(&self.state.borrow().standing, Standing::Disconnected { .. }) {
            self.state.send_modify(|state| state.standing = Standing::Connecting { since_ms: now.wall_ms });
        }
        let (proxy, time) = (self.parts.proxy.clone(), self.time.clone());
        self.phase = if self.expired || self.renewal.is_expired(self.time.now_ms()) {
            Phase::Recovering(enrolment::recover(self.keystore.clone(), identity, proxy, time).boxed())
        } else {
            Phase::Dialing(Dial { identity, proxy, time, meter: Arc::clone(&self.meter) }.connect().boxed())
        };
    }

    /// Has somebody set, replaced or removed the lease?
    fn look(&mut self) {
        let version = self.keystore.version();
        if version == self.version && (version.is_some() || matches!(self.phase, Phase::NoLease)) {
            if version.is_none() {
                self.say_no_lease(NO_LEASE.to_owned());
            }
            return;
        }
        self.version = version;
        match self.keystore.load() {
            Ok(stored) => {
                let same = match (&*self.identity.borrow(), &stored.identity) {
                    (Some(before), Some(now)) => before.chain == now.chain && before.session_url == now.session_url,
                    (None, None) => true,
                    (Some(_), None) | (None, Some(_)) => false,
                };
                if !same {
                    self.replace(stored.identity);
                } else if stored.identity.is_none() {
                    self.say_no_lease(NO_LEASE.to_owned());
                }
            }
            Err(error) if self.identity.borrow().is_none() => {
                tracing::error!("{error}");
                self.say_no_lease(error.to_string());
            }
            // What is in memory is still good.
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn say_no_lease(&mut self, why: String) {
        self.state.send_if_modified(|state| {
            let standing = Standing::NoLease { why };
            let changed = state.standing != standing;
            state.standing = standing;
            changed
        });
    }

    fn replace(&mut self, identity: Option<Identity>) {
        match &identity {
            Some(identity) => tracing::info!(satellite = %identity.satellite, relay = %identity.relay, "enrolled"),
            None => tracing::warn!("the lease was removed"),
        }
        let gone = identity.is_none();
        self.take(identity);
        self.credential = None;
        self.backoff = Backoff::default();
        if matches!(self.phase, Phase::Connected(_)) {
            self.on_close(Closing { why: "the lease was changed".to_owned(), ending: Some(Ending::Planned) });
        } else if !matches!(self.phase, Phase::Leaving { .. }) {
            self.phase = Phase::Waiting { until_ms: 0 };
        }
        if gone {
            self.say_no_lease(NO_LEASE.to_owned());
        }
    }

    fn take(&mut self, identity: Option<Identity>) {
        let (renew, end) = identity.as_ref().map_or((i64::MAX, i64::MAX), |it| (it.renew_after_ms, it.not_after_ms));
        self.renewal = Renewal::new(renew, end);
        self.expired = false;
        self.reconnect_ms = None;
        self.identity.send_replace(identity);
    }

    fn renew(&mut self, now: Now) {
        let open = matches!(&self.phase, Phase::Connected(session) if session.link.is_open());
        if !open || self.stop_ms.is_some() || self.credential.is_some() || self.reconnect_ms.is_some() {
            return;
        }
        if self.renewal.ask(Now { wall_ms: self.time.now_ms(), ..now }) {
            tracing::info!("asking for the next certificate");
            let keystore = self.keystore.clone();
            self.credential = Some(async move { Credential::Requested(request(&keystore).await) }.boxed());
        }
    }

    fn keep(&mut self, certificate: Certificate) {
        let Some(identity) = self.identity.borrow().clone() else { return };
        let keystore = self.keystore.clone();
        let kept = async move { Credential::Kept(Box::new(keep(&keystore, &identity, &certificate).await)) };
        self.credential = Some(kept.boxed());
    }

    fn on_credential(&mut self, done: Credential) {
        self.credential = None;
        self.version = self.keystore.version();
        let now = self.now();
        let failed = match done {
            Credential::Requested(Ok(csr)) => {
                self.with_session(|session| session.say(now, &ToRelay::Renew(Renew { csr })));
                return;
            }
            Credential::Kept(kept) => match *kept {
                Ok(identity) => {
                    tracing::info!(generation = identity.generation, "a new certificate is kept");
                    // What the session still shows is good for so long.
                    let left_ms = self.renewal.left_ms(self.time.now_ms());
                    self.take(Some(identity));
                    self.reconnect_ms = Some(now.mono_ms + reconnect_spread_ms(left_ms));
                    self.state.send_modify(|state| state.counters.problem = None);
                    return;
                }
                Err(why) => why,
            },
            Credential::Requested(Err(why)) => why,
        };
        tracing::error!("the certificate could not be renewed: {failed}");
        self.state.send_modify(|state| state.counters.problem = Some(format!("no new certificate: {failed}")));
    }

    fn publish(&mut self) {
        let (blocks, records) = match &mut self.phase {
            Phase::Connected(session) => session.link.forget_counts(),
            Phase::NoLease
            | Phase::Waiting { .. }
            | Phase::Recovering(_)
            | Phase::Dialing(_)
            | Phase::Leaving { .. } => (0, 0),
        };
        let (sent, received) = (self.meter.sent(), self.meter.received());
        self.state.send_if_modified(|state| {
            let before = state.counters.clone();
            state.counters.bytes_sent = sent;
            state.counters.bytes_received = received;
            state.counters.blocks_sent += blocks;
            state.counters.records_acknowledged += records;
            state.counters != before
        });
    }
}

async fn room(configs: &mpsc::Sender<Config>) {
    if configs.reserve().await.is_err() {
        std::future::pending().await
    }
}

async fn credential(slot: &mut Option<BoxFuture<'static, Credential>>) -> Credential {
    match slot {
        Some(working) => working.await,
        None => std::future::pending().await,
    }
}

/// A request for a key that is kept first: the key that waits already, or a new one.
async fn request(keystore: &Keystore) -> Result<String, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stored = enrolment::load(keystore).await.map_err(|error| text(&error))?;
    let key = match stored.pending.filter(|pending| pending.lease.is_none()) {
        Some(pending) => pending.key,
        None => Key::generate().map_err(|error| text(&error))?,
    };
    let csr = key.request().map_err(|error| text(&error))?;
    let pending = Some(Pending { lease: None, key });
    enrolment::save(keystore, Stored { identity: stored.identity, pending }).await.map_err(|error| text(&error))?;
    Ok(csr)
}

/// The certificate for the key that waits, kept; until it is, the old identity is whole.
async fn keep(keystore: &Keystore, before: &Identity, certificate: &Certificate) -> Result<Identity, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stored = enrolment::load(keystore).await.map_err(|error| text(&error))?;
    let pending = stored.pending.filter(|pending| pending.lease.is_none());
    let key = pending.ok_or("a certificate came that nobody had asked for")?.key;
    let identity = before.renewed(certificate, key).map_err(|error| text(&error))?;
    let kept = Stored { identity: Some(identity.clone()), pending: None };
    enrolment::save(keystore, kept).await.map_err(|error| text(&error))?;
    Ok(identity)
}

/// Random at each start: tells a reconnect from a clone.
fn instance() -> String {
    let mut bits = [0; 10];
    // Without randomness nothing here works; the relay then sees zeros, which is no secret.
    SystemRandom::new().fill(&mut bits).ok();
    data_encoding::BASE32_NOPAD.encode(&bits).to_ascii_lowercase()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a minute")]
fn reconnect_spread_ms(left_ms: u64) -> u64 {
    (share() * RECONNECT_SPREAD_MS.min(left_ms as f64 / 2.0)) as u64
}

/// A random share in 0..=1.
fn share() -> f64 {
    let mut bits = [0; 4];
    match SystemRandom::new().fill(&mut bits) {
        Ok(()) => f64::from(u32::from_le_bytes(bits)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

/// The machine's name, for people.
#[must_use]
pub fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.chars().filter(|c| !c.is_control()).take(64).collect()
}
