//! One session as it runs: reads, asks and writes what the machine decides.
//!
//! One message is read at a time and not before the ingest has taken the block before it: a slow store is felt by the
//! satellite, not by this process' memory. Meanwhile outcomes, heartbeats, changes and the end go on.
//!
//! Invariant: no wait is without end. Questions, writes and the goodbye have deadlines, and an administrator's or the
//! roster's word cuts all of them short.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::{Clock, Now};
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::wire::block::Decoder;
use satellite_shared::wire::to_relay::{Authenticate, ConfigStatus, Progress};
use satellite_shared::wire::to_satellite::{Config, RefusalCode, Refused, ToSatellite};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};
use tracing::Instrument;

use super::handshake::{self, Presented};
use super::limits::Limits;
use super::machine::{Admission, Closing, Effect, Event, Greeting, Machine, Submission, ended};
use super::roster::{Connected, Place, Roster, Standing};
use super::socket::{Incoming, Socket, SocketError};
use crate::enrolment::Enrolment;
use crate::ingest::{Block, Ingest, Outcome};
use crate::registry::{CertificateRow, CertificateState, Registry, RegistryError, SatelliteRow, Seen};

/// Questions to the registry by those who come, at once.
const ADMISSIONS_MAX: usize = 32;
/// What the last words may take once it is decided that a satellite may not go on.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// No timer is set further than this, so that a clock that slept is noticed.
const TICK_MAX: Duration = Duration::from_secs(60);

thread_local! {
    /// A decompressor holds a tenth of a megabyte: one a thread, not one a connection.
    static DECODER: RefCell<Decoder> = RefCell::default();
}

/// What sessions need.
pub struct Parts {
    /// Which relay this is, for people and logs.
    pub relay: String,
    /// Leases, satellites, certificates, configurations.
    pub registry: Registry,
    /// Where blocks go.
    pub ingest: Ingest,
    /// Who issues certificates.
    pub enrolment: Enrolment,
    /// Who is connected.
    pub roster: Roster,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Waits and bounds.
    pub limits: Limits,
}

/// Where satellites come in; clones are the same door.
#[derive(Clone)]
pub struct Door(Arc<Inside>);

struct Inside {
    relay: String,
    registry: Registry,
    ingest: Ingest,
    enrolment: Enrolment,
    roster: Roster,
    clock: Arc<dyn Clock>,
    limits: Arc<Limits>,
    admissions: Semaphore,
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("relay", &self.0.relay).finish_non_exhaustive()
    }
}

impl Door {
    /// A door with nobody at it.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { relay, registry, ingest, enrolment, roster, clock, limits } = parts;
        let (limits, admissions) = (Arc::new(limits), Semaphore::new(ADMISSIONS_MAX));
        Self(Arc::new(Inside { relay, registry, ingest, enrolment, roster, clock, limits, admissions }))
    }

    /// Serves one connection to its end. TLS stands and has verified the client certificate.
    ///
    /// Boxed here and inside: whoever awaits it would otherwise hold room for every step at once, for every connection.
    #[must_use = "nothing happens until it is awaited"]
    pub fn serve(
        self,
        stream: TlsStream<TcpStream>,
        peer: SocketAddr,
        shutdown: CancellationToken,
    ) -> Pin<Box<impl Future<Output = ()> + Send + use<>>> {
        let span = tracing::info_span!("session", %peer, satellite = tracing::field::Empty);
        let stream = Box::new(stream);
        let serving = async move {
            let presented = match Presented::read(stream.get_ref().1.peer_certificates()) {
                Ok(presented) => presented,
                Err(error) => return tracing::warn!(%error, "refused"),
            };
            let accepting = Box::pin(Socket::accept(stream, Arc::clone(&self.0.limits)));
            let accepted = tokio::select! {
                accepted = accepting => accepted,
                () = shutdown.cancelled() => return,
            };
            match accepted {
                Ok(socket) => Box::new(Conversation::new(self.0, socket, peer, presented)).run(shutdown).await,
                Err(error) => tracing::info!(%error, "no WebSocket"),
            }
        };
        Box::pin(serving.instrument(span))
    }
}

/// Boxed, and shared by reference while questions are asked.
type Submitting = ReusableBoxFuture<'static, ()>;

struct Conversation<S> {
    door: Arc<Inside>,
    socket: Socket<S>,
    peer: SocketAddr,
    presented: Presented,
    /// What the registry said when the connection was made, until the first `AUTHENTICATE`.
    known: Option<Box<Known>>,
    machine: Machine,
    who: Option<Who>,
    /// While blocks are on their way; who sends none needs no room for answers.
    answers: Option<Answers>,
    submitting: Option<Submitting>,
}

struct Answers {
    reply: mpsc::UnboundedSender<Outcome>,
    outcomes: mpsc::UnboundedReceiver<Outcome>,
}

impl Answers {
    fn new() -> Self {
        let (reply, outcomes) = mpsc::unbounded_channel();
        Self { reply, outcomes }
    }
}

struct Known {
    certificate: CertificateRow,
    satellite: SatelliteRow,
}

/// A satellite that was let in.
struct Who {
    satellite: SatelliteId,
    session: String,
    since: Now,
    place: Place,
}

enum Next {
    Event(Event),
    Gone(String),
    Submitted,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    fn new(door: Arc<Inside>, socket: Socket<S>, peer: SocketAddr, presented: Presented) -> Self {
        let machine = Machine::new(Arc::clone(&door.limits), door.clock.now());
        Self { door, socket, peer, presented, known: None, machine, who: None, answers: None, submitting: None }
    }

    async fn run(mut self: Box<Self>, shutdown: CancellationToken) {
        let known = Box::pin(self.look_up()).await;
        let opened = known.map(|known| {
            self.known = Some(Box::new(known));
            Greeting { relay: self.door.relay.clone() }
        });
        let opened = Event::Opened(opened);
        let mut effects = VecDeque::from(self.step(opened));
        let mut stopping = false;
        let why = loop {
            let event = match effects.pop_front() {
                Some(Effect::Close(closing)) => return Box::pin(self.say_goodbye(closing)).await,
                Some(Effect::Submit(submission)) => {
                    self.submit(*submission);
                    continue;
                }
                Some(effect) => match Box::pin(self.perform(effect)).await {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(error) => break error.to_string(),
                },
                None => {
                    effects.shrink_to_fit();
                    match self.next(&shutdown, stopping).await {
                        Next::Event(event) => event,
                        Next::Gone(why) => break why,
                        Next::Submitted => {
                            self.submitting = None;
                            continue;
                        }
                    }
                }
            };
            stopping |= matches!(event, Event::Shutdown);
            effects.extend(self.step(event));
            if self.machine.outstanding_bytes() == 0 {
                self.answers = None;
            }
        };
        self.note_end(&why);
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        let now = self.door.clock.now();
        DECODER.with_borrow_mut(|decoder| self.machine.handle(now, event, decoder))
    }

    async fn next(&mut self, shutdown: &CancellationToken, stopping: bool) -> Next {
        let now_ms = self.door.clock.now().mono_ms;
        let wait = Duration::from_millis(self.machine.deadline_ms().saturating_sub(now_ms)).min(TICK_MAX);
        let listens = self.submitting.is_none() && self.machine.listens();
        let standing = self.who.as_mut().map(|who| &mut who.place.standing);
        tokio::select! {
            biased;
            event = changed(standing) => Next::Event(event),
            () = shutdown.cancelled(), if !stopping => Next::Event(Event::Shutdown),
            outcomes = answered(self.answers.as_mut()) => Next::Event(Event::Outcomes(outcomes)),
            () = sleep(wait) => Next::Event(Event::Tick),
            () = submitted(self.submitting.as_mut()) => Next::Submitted,
            incoming = self.socket.next(), if listens => match incoming {
                Incoming::Text(text) => Next::Event(Event::Text(text)),
                Incoming::Binary(frame) => Next::Event(Event::Frame(frame)),
                Incoming::Control => Next::Event(Event::Control),
                Incoming::Garbage(what) => Next::Event(Event::Garbage(what)),
                Incoming::Gone(why) => Next::Gone(why),
            },
        }
    }

    async fn perform(&mut self, effect: Effect) -> Result<Option<Event>, SocketError> {
        match effect {
            Effect::Send(event) => self.say(&event).await.map(|()| None),
            Effect::Ping => {
                let cut = cut(self.standing());
                tokio::select! {
                    sent = self.socket.ping() => sent.map(|()| None),
                    () = cut => Err(SocketError::Stuck),
                }
            }
            Effect::Admit(authenticate) => Ok(Some(Event::Admitted(self.admit(*authenticate).await))),
            Effect::FetchConfig => Ok(self.fetch_config().await),
            Effect::Renew(csr) => Ok(Some(self.renew(csr).await)),
            Effect::ConfigStatus(status) => {
                self.keep_config_status(*status).await;
                Ok(None)
            }
            Effect::Seen(progress) => {
                self.keep_progress(progress).await;
                Ok(None)
            }
            Effect::Complained(complaint) => {
                tracing::warn!(code = complaint.code, message = complaint.message, "the satellite complains");
                Ok(None)
            }
            Effect::Submit(_) | Effect::Close(_) => Ok(None),
        }
    }

    async fn say(&mut self, event: &ToSatellite) -> Result<(), SocketError> {
        if let ToSatellite::Refused(Refused { code, message, .. }) = event {
            tracing::warn!(?code, message, "refused");
        }
        let text = serde_json::to_string(event).expect("wire types always serialise");
        let cut = cut(self.standing());
        tokio::select! {
            sent = self.socket.send(text) => sent,
            () = cut => Err(SocketError::Stuck),
        }
    }

    fn submit(&mut self, submission: Submission) {
        let Some(who) = &self.who else { return };
        let Submission { header, body, frame } = submission;
        let reply = self.answers.get_or_insert_with(Answers::new).reply.clone();
        let block = Block { satellite: who.satellite.clone(), header, body, frame, reply };
        let ingest = self.door.ingest.clone();
        self.submitting = Some(ReusableBoxFuture::new(async move { ingest.submit(block).await }));
    }

    async fn admit(&mut self, authenticate: Authenticate) -> Result<Box<Admission>, Refused> {
        let door = Arc::clone(&self.door);
        let Some(Ok(_permit)) = self.within(door.admissions.acquire()).await else { return Err(overloaded()) };
        let known = match self.known.take() {
            Some(known) => *known,
            None => self.look_up().await?,
        };
        let Known { certificate, satellite } = known;
        handshake::judge_token(&satellite, &authenticate)?;

        let epochs: Vec<Epoch> = authenticate.streams.iter().map(|stream| stream.epoch).collect();
        let stored = match self.within(door.ingest.stored(&satellite.id, &epochs)).await {
            Some(Ok(stored)) => stored,
            Some(Err(error)) => return Err(failed("what is stored", &error)),
            None => return Err(handshake::unavailable()),
        };
        let needed = self.who.is_some() || satellite.config_version != authenticate.config_version;
        let config = if needed { self.registry(config_of(&door.registry, &satellite.id)).await? } else { None };
        if self.who.is_none() {
            self.take_place(&certificate, &satellite, &authenticate).await?;
        }
        let session = self.who.as_ref().map(|who| who.session.clone()).unwrap_or_default();
        Ok(Box::new(Admission {
            session,
            stored,
            config_version: config.as_ref().map_or(satellite.config_version, |config| config.version),
            config,
            renew_after_ms: certificate.renew_after_ms,
            satellite: satellite.id,
        }))
    }

    /// From here on the roster tells of changes; one that came before is seen by looking again.
    async fn take_place(
        &mut self,
        certificate: &CertificateRow,
        satellite: &SatelliteRow,
        authenticate: &Authenticate,
    ) -> Result<(), Refused> {
        let since = self.door.clock.now();
        let session = session_name();
        let connected = Connected {
            satellite: satellite.id.clone(),
            session: session.clone(),
            peer: self.peer,
            since_ms: since.wall_ms,
            hostname: authenticate.hostname.clone(),
            agent_version: authenticate.agent_version.clone(),
            instance: authenticate.instance.clone(),
        };
        let place = self.door.roster.enter(since, connected).map_err(ended)?;
        self.who = Some(Who { satellite: satellite.id.clone(), session, since, place });
        tracing::Span::current().record("satellite", satellite.id.as_str());

        let door = Arc::clone(&self.door);
        if certificate.state == CertificateState::PendingUse {
            let used = door.registry.certificate_used(&satellite.id, certificate.generation, since.wall_ms);
            self.registry(used).await?;
        }
        let now = self.look_up().await?.satellite;
        if now.config_version != satellite.config_version {
            door.roster.config_changed(&satellite.id);
        }
        let address = self.peer.ip().to_string();
        let news = now.hostname.as_ref() != Some(&authenticate.hostname)
            || now.agent_version.as_ref() != Some(&authenticate.agent_version)
            || now.address.as_ref() != Some(&address);
        if news {
            let seen = Seen {
                now_ms: since.wall_ms,
                hostname: Some(authenticate.hostname.clone()),
                agent_version: Some(authenticate.agent_version.clone()),
                address: Some(address),
                progress: None,
            };
            self.registry(door.registry.seen(&satellite.id, &seen)).await?;
        }
        tracing::info!(
            name = satellite.name,
            hostname = authenticate.hostname,
            version = authenticate.agent_version,
            generation = certificate.generation,
            "connected"
        );
        Ok(())
    }

    /// What the registry says of the certificate now.
    async fn look_up(&self) -> Result<Known, Refused> {
        let Presented { serial_hex, spki_sha256_hex, .. } = &self.presented;
        let registry = &self.door.registry;
        let mut certificate = self.registry(registry.certificate(serial_hex, spki_sha256_hex)).await?;
        if certificate.is_none() && self.adopt().await? {
            certificate = self.registry(registry.certificate(serial_hex, spki_sha256_hex)).await?;
        }
        let satellite = match &certificate {
            Some(certificate) => self.registry(registry.satellite(&certificate.satellite)).await?,
            None => None,
        };
        let now_ms = self.door.clock.now().wall_ms;
        handshake::judge_certificate(certificate.as_ref(), satellite.as_ref(), now_ms)?;
        match (certificate, satellite) {
            (Some(certificate), Some(satellite)) => Ok(Known { certificate, satellite }),
            (_, _) => Err(handshake::unavailable()),
        }
    }

    /// A certificate of our own authority that a restored registry does not know was issued after the backup.
    async fn adopt(&self) -> Result<bool, Refused> {
        let Some(unknown) = self.presented.unknown() else { return Ok(false) };
        let now_ms = self.door.clock.now().wall_ms;
        let adopted = self.registry(self.door.registry.adopt_certificate(&unknown, now_ms)).await?;
        if adopted {
            let serial = unknown.issued.serial_hex;
            tracing::warn!(satellite = %unknown.satellite, serial, "a certificate issued after the backup is known again");
        }
        Ok(adopted)
    }

    async fn renew(&self, csr: String) -> Event {
        let Some(who) = &self.who else { return Event::Issued(Err("not authenticated".into())) };
        let Some(issued) = self.within(self.door.enrolment.renew(&who.satellite, &csr)).await else {
            return Event::Issued(Err("the registry does not answer now: ask again in a few minutes".into()));
        };
        match issued {
            Ok(certificate) => {
                tracing::info!(generation = certificate.generation, "certificate renewed");
                Event::Issued(Ok(Box::new(certificate)))
            }
            Err(error) => {
                tracing::warn!(%error, "certificate not renewed");
                Event::Issued(Err(error.to_string()))
            }
        }
    }

    /// A change may also be a new enrolment, which ends the certificate of this session.
    async fn fetch_config(&self) -> Option<Event> {
        let who = self.who.as_ref()?;
        match self.look_up().await {
            Ok(_) => {}
            Err(Refused { code: RefusalCode::Unavailable, .. }) => return None,
            Err(Refused { code, .. }) => return Some(Event::Ended(code)),
        }
        let config = self.registry(config_of(&self.door.registry, &who.satellite)).await.ok()?;
        Some(Event::Config(config))
    }

    async fn keep_config_status(&self, status: ConfigStatus) {
        let Some(who) = &self.who else { return };
        tracing::info!(version = status.version, state = ?status.state, refused = status.items.len(), "configuration");
        let now_ms = self.door.clock.now().wall_ms;
        let kept = self.registry(self.door.registry.set_config_status(&who.satellite, &status, now_ms)).await;
        drop(kept); // its error is in the log; the satellite says it again with the next configuration
    }

    async fn keep_progress(&self, progress: Progress) {
        let Some(who) = &self.who else { return };
        let now_ms = self.door.clock.now().wall_ms;
        let seen = Seen { now_ms, progress: Some(progress), ..Seen::default() };
        let kept = self.registry(self.door.registry.seen(&who.satellite, &seen)).await;
        drop(kept); // its error is in the log; the next heartbeat says it again
    }

    /// Asks the registry; an error is logged here and becomes what the satellite hears.
    async fn registry<T>(&self, question: impl Future<Output = Result<T, RegistryError>>) -> Result<T, Refused> {
        match self.within(question).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(failed("the registry", &error)),
            None => Err(handshake::unavailable()),
        }
    }

    /// The answer, unless it takes too long or the session is ended meanwhile.
    async fn within<T>(&self, question: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = timeout(self.door.limits.answer, question) => answer.ok(),
            () = told_to_end(self.standing()) => None,
        }
    }

    fn standing(&self) -> Option<watch::Receiver<Standing>> {
        self.who.as_ref().map(|who| who.place.standing.clone())
    }

    async fn say_goodbye(self: Box<Self>, closing: Closing) {
        self.note_end(closing.reason());
        let Self { socket, who, .. } = *self;
        drop(who); // the place is free for the next connection before the goodbye
        socket.close(closing).await;
    }

    fn note_end(&self, why: &str) {
        let outstanding_bytes = self.machine.outstanding_bytes();
        match &self.who {
            Some(who) => {
                let seconds = self.door.clock.now().mono_ms.saturating_sub(who.since.mono_ms) / 1_000;
                tracing::info!(why, seconds, outstanding_bytes, session = who.session, "disconnected");
            }
            None => tracing::info!(why, "left before it was let in"),
        }
    }
}

async fn config_of(registry: &Registry, satellite: &SatelliteId) -> Result<Option<Config>, RegistryError> {
    let config = registry.config(satellite).await?;
    Ok(config.map(|(version, document)| Config { version, document }))
}

async fn changed(standing: Option<&mut watch::Receiver<Standing>>) -> Event {
    let Some(standing) = standing else { return pending().await };
    if standing.changed().await.is_err() {
        return pending().await;
    }
    match standing.borrow_and_update().ended {
        Some(code) => Event::Ended(code),
        None => Event::ConfigChanged,
    }
}

async fn told_to_end(standing: Option<watch::Receiver<Standing>>) {
    let Some(mut standing) = standing else { return pending().await };
    if standing.wait_for(|standing| standing.ended.is_some()).await.is_err() {
        pending::<()>().await;
    }
}

/// Comes a moment after the session was told to end, so that nothing that is being said holds it up.
async fn cut(standing: Option<watch::Receiver<Standing>>) {
    told_to_end(standing).await;
    sleep(LAST_WORDS).await;
}

/// What became of blocks, as much as is known.
async fn answered(answers: Option<&mut Answers>) -> Vec<Outcome> {
    let Some(Answers { outcomes, .. }) = answers else { return pending().await };
    // The other end is held beside this one.
    let Some(first) = outcomes.recv().await else { return pending().await };
    let mut all = vec![first];
    while let Ok(more) = outcomes.try_recv() {
        all.push(more);
    }
    all
}

async fn submitted(submitting: Option<&mut Submitting>) {
    match submitting {
        Some(submitting) => submitting.await,
        None => pending().await,
    }
}

fn session_name() -> String {
    let mut bits = [0; 8];
    aws_lc_rs::rand::fill(&mut bits).expect("the kernel gives random bytes");
    format!("se_{}", data_encoding::HEXLOWER.encode(&bits))
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Refused {
    tracing::error!(%error, "{what} does not answer");
    handshake::unavailable()
}

fn overloaded() -> Refused {
    let message = "too many satellites come at once: this one's turn comes".into();
    Refused { code: RefusalCode::Overloaded, message, retry_after_s: 15 }
}
