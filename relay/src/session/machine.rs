//! What a session does: `now` and an event in, effects out. No socket, no registry, no clock of its own.
//!
//! The caller performs the effects in order and feeds their answers back as events. Until a certificate, a lease and a
//! token have proven to be of one satellite, anything but `AUTHENTICATE` ends the session.
//!
//! Invariants: no more blocks are on their way than the credit allows; a block is acknowledged only by an outcome of the
//! ingest; after [`Effect::Close`] nothing follows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use satellite_shared::clock::Now;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::limits as bounds;
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{self, Body, Decoder, FrameKind, Header};
use satellite_shared::wire::to_relay::{Authenticate, Complaint, ConfigStatus, Progress, ToRelay};
use satellite_shared::wire::to_satellite::{
    Ack, Alive, Authenticated, Certificate, Config, Drain, Hello, Nack, NackCode, RefusalCode, Refused, Stored,
    ToSatellite,
};
use satellite_shared::wire::version;

use super::credit::Credit;
use super::limits::{Limits, ms};
use super::series::{Known, SeriesError, SeriesTables};
use crate::ingest::{BlockBody, Outcome};

/// Ranges in one `ACK` or `AUTHENTICATED`, so that it stays far below a message's limit.
const RANGES_PER_EVENT_MAX: usize = 8_000;
const RETRY_AFTER_S: u64 = 5;
const BOOT_ID_BYTES_MAX: usize = 64;
const MINUTE_MS: u64 = 60_000;

/// Something happened.
#[derive(Debug)]
pub enum Event {
    /// The WebSocket stands, and the certificate was looked up.
    Opened(Result<Greeting, Refused>),
    /// A text message.
    Text(String),
    /// A binary message.
    Frame(Bytes),
    /// A ping or a pong.
    Control,
    /// The socket gave what no satellite sends: too large, not UTF-8, not WebSocket.
    Garbage(&'static str),
    /// What became of [`Effect::Admit`].
    Admitted(Result<Box<Admission>, Refused>),
    /// The configuration as it is now.
    Config(Option<Config>),
    /// What became of [`Effect::Renew`].
    Issued(Result<Box<Certificate>, String>),
    /// What became of blocks.
    Outcomes(Vec<Outcome>),
    /// An administrator changed the configuration.
    ConfigChanged,
    /// The satellite may not go on.
    Ended(RefusalCode),
    /// The relay stops.
    Shutdown,
    /// [`Machine::deadline_ms`] has come.
    Tick,
}

/// Something is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Say this.
    Send(Box<ToSatellite>),
    /// Send a WebSocket ping.
    Ping,
    /// Check these credentials, take the satellite's place in the roster, ask what is stored: [`Event::Admitted`].
    Admit(Box<Authenticate>),
    /// Ask for the configuration: [`Event::Config`].
    FetchConfig,
    /// Give this to the ingest: [`Event::Outcomes`].
    Submit(Box<Submission>),
    /// Issue a certificate for this request: [`Event::Issued`].
    Renew(String),
    /// Keep what became of a configuration.
    ConfigStatus(Box<ConfigStatus>),
    /// Keep how far the satellite is.
    Seen(Progress),
    /// The satellite did not understand something: for the log.
    Complained(Complaint),
    /// Close the WebSocket.
    Close(Closing),
}

/// What the relay says of itself.
#[derive(Debug, Clone)]
pub struct Greeting {
    /// Which relay.
    pub relay: String,
}

/// A satellite that may come in.
#[derive(Debug)]
pub struct Admission {
    /// Who, by its certificate.
    pub satellite: SatelliteId,
    /// The session's name.
    pub session: String,
    /// What is committed of the epochs it announced.
    pub stored: Vec<Stored>,
    /// The version of its configuration that is current; 0 where there is none.
    pub config_version: u64,
    /// Its configuration, if there is one that it may need.
    pub config: Option<Config>,
    /// When to ask for a new certificate.
    pub renew_after_ms: i64,
}

/// A block on its way to the ingest.
#[derive(Debug)]
pub struct Submission {
    /// What the frame says of itself.
    pub header: Header,
    /// What it holds.
    pub body: BlockBody,
    /// The frame as it came.
    pub frame: Bytes,
}

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// `REFUSED` was said.
    Refused(RefusalCode),
    /// Nothing came for too long.
    Silent,
    /// It broke the protocol.
    Violation(&'static str),
    /// The relay stops, and what was on its way is answered.
    Drained,
}

impl Closing {
    /// The WebSocket close code.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::Refused(_) | Self::Violation(_) => 1008,
            Self::Silent => 1001,
            Self::Drained => 1012,
        }
    }

    /// A word for the close frame and for logs.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Silent => "silent",
            Self::Violation(what) => what,
            Self::Drained => "drained",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The socket stands.
    Fresh,
    /// `AUTHENTICATE` is due before this.
    Greeted { until_ms: u64 },
    /// The first `AUTHENTICATE` is being checked.
    Admitting,
    /// Records flow.
    Streaming,
    /// The relay stops; outcomes are awaited until this.
    Draining { until_ms: u64 },
    /// Over.
    Closed,
}

/// One session.
#[derive(Debug)]
pub struct Machine {
    limits: Arc<Limits>,
    stage: Stage,
    heard_ms: u64,
    pinged_ms: u64,
    said_alive_ms: u64,
    seen_ms: Option<u64>,
    progress: Option<Progress>,
    announced_config: u64,
    sent_config: Option<u64>,
    credit: Credit,
    series: SeriesTables,
    complaints: u32,
    events: Allowance,
    controls: Allowance,
    authentications: Allowance,
    statuses: Allowance,
    renewals: Allowance,
}

impl Machine {
    /// A session whose WebSocket is about to stand.
    #[must_use]
    pub fn new(limits: Arc<Limits>, now: Now) -> Self {
        Self {
            stage: Stage::Fresh,
            heard_ms: now.mono_ms,
            pinged_ms: now.mono_ms,
            said_alive_ms: now.mono_ms,
            seen_ms: None,
            progress: None,
            announced_config: 0,
            sent_config: None,
            credit: Credit::new(&limits),
            series: SeriesTables::new(limits.series_bytes_max),
            complaints: 0,
            events: Allowance::new(600),
            controls: Allowance::new(600),
            authentications: Allowance::new(10),
            statuses: Allowance::new(10),
            renewals: Allowance::new(1),
            limits,
        }
    }

    /// What follows from an event.
    pub fn handle(&mut self, now: Now, event: Event, decoder: &mut Decoder) -> Vec<Effect> {
        if self.stage == Stage::Closed {
            return Vec::new();
        }
        match event {
            Event::Opened(standing) => self.on_opened(now, standing),
            Event::Text(text) => self.on_text(now, &text),
            Event::Frame(frame) => self.on_frame(now, frame, decoder),
            Event::Control => self.on_control(now),
            Event::Garbage(what) => self.on_garbage(what),
            Event::Admitted(Ok(admission)) => self.on_admitted(*admission),
            Event::Admitted(Err(refused)) => self.on_not_admitted(refused),
            Event::Config(config) => self.send_config(config, false),
            Event::Issued(Ok(certificate)) => vec![send(ToSatellite::Certificate(*certificate))],
            Event::Issued(Err(message)) => self.complain("renewal", message),
            Event::Outcomes(outcomes) => self.on_outcomes(now, outcomes),
            Event::ConfigChanged if self.stage == Stage::Streaming => vec![Effect::FetchConfig],
            Event::ConfigChanged => Vec::new(),
            Event::Ended(code) => self.refuse(ended(code)),
            Event::Shutdown => self.on_shutdown(now),
            Event::Tick => self.on_tick(now),
        }
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn deadline_ms(&self) -> u64 {
        match self.stage {
            Stage::Fresh | Stage::Closed => u64::MAX,
            Stage::Greeted { until_ms } | Stage::Draining { until_ms } => until_ms,
            Stage::Admitting | Stage::Streaming => {
                let alive = self.said_alive_ms.saturating_add(ms(self.limits.heartbeat_every));
                let ping = self.pinged_ms.saturating_add(ms(self.limits.ping_every));
                let silent = self.heard_ms.saturating_add(ms(self.limits.silence_max));
                alive.min(ping).min(silent).min(self.seen_due_ms())
            }
        }
    }

    /// Whether messages are to be read.
    #[must_use]
    pub fn listens(&self) -> bool {
        matches!(self.stage, Stage::Greeted { .. } | Stage::Streaming)
    }

    /// Bytes of blocks that were submitted and are not answered.
    #[must_use]
    pub fn outstanding_bytes(&self) -> u64 {
        self.credit.outstanding()
    }

    fn on_opened(&mut self, now: Now, standing: Result<Greeting, Refused>) -> Vec<Effect> {
        self.heard_ms = now.mono_ms;
        let relay = standing.as_ref().map_or_else(|_| String::new(), |greeting| greeting.relay.clone());
        let mut effects = vec![send(ToSatellite::Hello(Hello {
            protocol_min: version::OLDEST,
            protocol_max: version::CURRENT,
            relay,
            relay_version: env!("CARGO_PKG_VERSION").into(),
            clock_ms: now.wall_ms,
            heartbeat_s: u32::try_from(self.limits.heartbeat_every.as_secs()).unwrap_or(u32::MAX).max(1),
        }))];
        match standing {
            Ok(_) => {
                let until_ms = now.mono_ms.saturating_add(ms(self.limits.authenticate));
                self.stage = Stage::Greeted { until_ms };
            }
            Err(refused) => effects.extend(self.refuse(refused)),
        }
        effects
    }

    fn on_text(&mut self, now: Now, text: &str) -> Vec<Effect> {
        self.heard_ms = now.mono_ms;
        if !self.listens() {
            return Vec::new();
        }
        if text.len() > bounds::EVENT_BYTES_MAX {
            return self.on_garbage("an event longer than 256 KiB");
        }
        if !self.events.take(now) {
            return self.violate("rate_limited", "too many events", "more than 600 events in a minute".into());
        }
        let event = match parse(text) {
            Ok(event) => event,
            Err(_) if matches!(self.stage, Stage::Greeted { .. }) => return self.refuse(not_authenticate()),
            Err(Unread::Unknown(name)) => {
                return self.complain("unsupported", format!("no event {name} is known here"));
            }
            Err(Unread::Malformed(why)) => return self.complain("malformed", why),
        };
        match event {
            ToRelay::Authenticate(authenticate) => self.on_authenticate(now, authenticate),
            ToRelay::ConfigStatus(_) | ToRelay::Heartbeat(_) | ToRelay::Renew(_) | ToRelay::Error(_)
                if self.stage != Stage::Streaming =>
            {
                self.refuse(not_authenticate())
            }
            ToRelay::ConfigStatus(status) => {
                if !self.statuses.take(now) {
                    return self.complain("rate_limited", "CONFIG_STATUS: at most ten in a minute".into());
                }
                vec![Effect::ConfigStatus(Box::new(status))]
            }
            ToRelay::Heartbeat(progress) => {
                self.progress = Some(progress);
                self.seen(now)
            }
            ToRelay::Renew(renew) => {
                if renew.csr.len() > 2 * bounds::CSR_BYTES_MAX {
                    return self
                        .complain("renewal", format!("a request of more than {} bytes", 2 * bounds::CSR_BYTES_MAX));
                }
                if !self.renewals.take(now) {
                    return self.complain("rate_limited", "RENEW: at most one in a minute".into());
                }
                vec![Effect::Renew(renew.csr)]
            }
            ToRelay::Error(Complaint { code, message }) => {
                vec![Effect::Complained(Complaint { code: shown(&code), message: shown(&message) })]
            }
        }
    }

    fn on_authenticate(&mut self, now: Now, authenticate: Authenticate) -> Vec<Effect> {
        if !self.authentications.take(now) {
            return self.complain("rate_limited", "AUTHENTICATE: at most ten in a minute".into());
        }
        if version::negotiate(authenticate.protocol, authenticate.protocol).is_none() {
            let message = format!(
                "this relay speaks protocol {} to {}, the satellite {}: update the older of the two",
                version::OLDEST,
                version::CURRENT,
                authenticate.protocol
            );
            return self.refuse(Refused { code: RefusalCode::Version, message, retry_after_s: 3_600 });
        }
        if let Err(what) = sane(&authenticate) {
            let message = format!("AUTHENTICATE: {what}");
            return self.refuse(Refused { code: RefusalCode::Protocol, message, retry_after_s: 60 });
        }
        if self.stage != Stage::Streaming {
            self.stage = Stage::Admitting;
        }
        self.announced_config = authenticate.config_version;
        vec![Effect::Admit(Box::new(authenticate))]
    }

    fn on_admitted(&mut self, admission: Admission) -> Vec<Effect> {
        let renewed = self.stage == Stage::Streaming;
        if self.stage == Stage::Admitting {
            self.stage = Stage::Streaming;
        }
        let mut stored = admission.stored;
        let mut left = RANGES_PER_EVENT_MAX;
        stored.retain(|one| {
            let ranges = one.ranges.as_slice().len();
            let fits = ranges <= left;
            left -= if fits { ranges } else { 0 };
            fits
        });
        let mut effects = vec![send(ToSatellite::Authenticated(Authenticated {
            satellite: admission.satellite,
            session: admission.session,
            stored,
            credit_bytes: self.credit.granted(),
            config_version: admission.config_version,
            renew_after_ms: admission.renew_after_ms,
        }))];
        if !renewed {
            self.sent_config = Some(self.announced_config);
        }
        effects.extend(self.send_config(admission.config, renewed));
        effects
    }

    /// A live session outlives a registry that does not answer; it only isn't renewed.
    fn on_not_admitted(&mut self, refused: Refused) -> Vec<Effect> {
        let passing = matches!(refused.code, RefusalCode::Unavailable | RefusalCode::Overloaded);
        if passing && self.stage == Stage::Streaming {
            return vec![complaint("unavailable", refused.message)];
        }
        self.refuse(refused)
    }

    fn send_config(&mut self, config: Option<Config>, always: bool) -> Vec<Effect> {
        match config {
            Some(config) if always || self.sent_config != Some(config.version) => {
                self.sent_config = Some(config.version);
                vec![send(ToSatellite::Config(config))]
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn on_frame(&mut self, now: Now, frame: Bytes, decoder: &mut Decoder) -> Vec<Effect> {
        self.heard_ms = now.mono_ms;
        match self.stage {
            Stage::Streaming => {}
            Stage::Greeted { .. } => return self.refuse(not_authenticate()),
            Stage::Fresh | Stage::Admitting | Stage::Draining { .. } | Stage::Closed => return Vec::new(),
        }
        let header = match block::header(&frame) {
            Ok(header) => header,
            Err(why) => return self.violate("damaged", "damaged frame", format!("a frame: {why}")),
        };
        match header.kind {
            FrameKind::Series => self.on_series(&header, &frame, decoder),
            FrameKind::Samples | FrameKind::Gaps => self.on_block(now, header, frame, decoder),
        }
    }

    fn on_series(&mut self, header: &Header, frame: &Bytes, decoder: &mut Decoder) -> Vec<Effect> {
        let taken = match decoder.decode(frame) {
            Ok((_, Body::Series(series))) => match u32::try_from(header.first_seq) {
                Ok(first) => self.series.announce(header.epoch, first, series),
                Err(_) => Ok(()),
            },
            Ok((_, Body::Samples(_) | Body::Gaps(_))) => Ok(()),
            Err(why) => {
                let noted = self.series.announce_undecodable(header.epoch, header.first_seq, header.last_seq());
                if noted.is_ok() {
                    let numbers = format!("series {} to {}", header.first_seq, header.last_seq());
                    return vec![complaint("series", format!("{numbers} of epoch {}: {why}", header.epoch))];
                }
                noted
            }
        };
        match taken {
            Ok(()) => Vec::new(),
            Err(why @ SeriesError::Changed { .. }) => vec![complaint("series", why.to_string())],
            Err(why @ (SeriesError::TooLarge { .. } | SeriesError::Damaged(_))) => {
                self.violate("series", "too many series", why.to_string())
            }
        }
    }

    fn on_block(&mut self, now: Now, header: Header, frame: Bytes, decoder: &mut Decoder) -> Vec<Effect> {
        if !self.credit.take(now.mono_ms, frame.len()) {
            let message = format!(
                "{} bytes are on their way and {} are allowed",
                self.credit.outstanding() + frame.len() as u64,
                self.credit.granted()
            );
            return self.violate("over_credit", "over credit", message);
        }
        let body = match decoder.decode(&frame) {
            Ok((_, Body::Samples(groups))) => match self.series.find(header.epoch, &groups) {
                Known::All(series) => BlockBody::Samples { groups, series },
                Known::Missing(number) => {
                    self.credit.give_back(now.mono_ms, frame.len(), false, &self.limits);
                    let message = format!("series {number} was not announced on this connection");
                    return vec![nack(header.epoch, header.first_seq, NackCode::UnknownSeries, message)];
                }
                Known::Undecodable(number) => {
                    BlockBody::Dead(format!("the descriptor of series {number} can't be decoded"))
                }
            },
            Ok((_, Body::Gaps(gaps))) => BlockBody::Gaps(gaps),
            Ok((_, Body::Series(_))) => BlockBody::Dead("a block that decodes into series".into()),
            Err(why) => BlockBody::Dead(why.to_string()),
        };
        vec![Effect::Submit(Box::new(Submission { header, body, frame }))]
    }

    fn on_control(&mut self, now: Now) -> Vec<Effect> {
        self.heard_ms = now.mono_ms;
        if self.controls.take(now) {
            return Vec::new();
        }
        self.violate("rate_limited", "too many pings", "more than 600 pings and pongs in a minute".into())
    }

    fn on_garbage(&mut self, what: &'static str) -> Vec<Effect> {
        self.violate("malformed", what, what.into())
    }

    fn on_outcomes(&mut self, now: Now, outcomes: Vec<Outcome>) -> Vec<Effect> {
        let mut stored: BTreeMap<Epoch, Ranges> = BTreeMap::new();
        let mut effects = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Stored { epoch, first_seq, last_seq, bytes } => {
                    self.credit.give_back(now.mono_ms, bytes, false, &self.limits);
                    stored.entry(epoch).or_default().insert(first_seq, last_seq);
                }
                Outcome::Refused { epoch, first_seq, bytes, code, message } => {
                    let slow = code == NackCode::Retry;
                    self.credit.give_back(now.mono_ms, bytes, slow, &self.limits);
                    effects.push(nack(epoch, first_seq, code, message));
                }
            }
        }
        let credit_bytes = self.credit.granted();
        let acks = in_events(stored).map(|stored| send(ToSatellite::Ack(Ack { stored, credit_bytes })));
        effects.splice(0..0, acks);
        if matches!(self.stage, Stage::Draining { .. }) && self.credit.outstanding() == 0 {
            effects.extend(self.close(Closing::Drained));
        }
        effects
    }

    fn on_shutdown(&mut self, now: Now) -> Vec<Effect> {
        if matches!(self.stage, Stage::Draining { .. }) {
            return Vec::new();
        }
        let mut effects = vec![send(ToSatellite::Drain(Drain {
            reason: "the relay stops".into(),
            reconnect_after_ms: ms(self.limits.reconnect_after),
            spread_ms: ms(self.limits.reconnect_spread),
        }))];
        if self.credit.outstanding() == 0 {
            effects.extend(self.close(Closing::Drained));
        } else {
            self.stage = Stage::Draining { until_ms: now.mono_ms.saturating_add(ms(self.limits.drain)) };
        }
        effects
    }

    fn on_tick(&mut self, now: Now) -> Vec<Effect> {
        match self.stage {
            Stage::Fresh | Stage::Closed => Vec::new(),
            Stage::Greeted { until_ms } if now.mono_ms >= until_ms => {
                let message = format!("no AUTHENTICATE within {} s", self.limits.authenticate.as_secs());
                self.refuse(Refused { code: RefusalCode::Protocol, message, retry_after_s: 10 })
            }
            Stage::Draining { until_ms } if now.mono_ms >= until_ms => self.close(Closing::Drained),
            Stage::Greeted { .. } | Stage::Draining { .. } => Vec::new(),
            Stage::Admitting | Stage::Streaming => self.on_tick_alive(now),
        }
    }

    fn on_tick_alive(&mut self, now: Now) -> Vec<Effect> {
        if now.mono_ms >= self.heard_ms.saturating_add(ms(self.limits.silence_max)) {
            return self.close(Closing::Silent);
        }
        let mut effects = self.seen(now);
        if now.mono_ms >= self.said_alive_ms.saturating_add(ms(self.limits.heartbeat_every)) {
            self.said_alive_ms = now.mono_ms;
            effects.push(send(ToSatellite::Heartbeat(Alive { clock_ms: now.wall_ms })));
        }
        if now.mono_ms >= self.pinged_ms.saturating_add(ms(self.limits.ping_every)) {
            self.pinged_ms = now.mono_ms;
            effects.push(Effect::Ping);
        }
        effects
    }

    fn seen_due_ms(&self) -> u64 {
        match (self.progress, self.seen_ms) {
            (None, _) => u64::MAX,
            (Some(_), None) => 0,
            (Some(_), Some(seen)) => seen.saturating_add(ms(self.limits.seen_every)),
        }
    }

    fn seen(&mut self, now: Now) -> Vec<Effect> {
        if now.mono_ms < self.seen_due_ms() {
            return Vec::new();
        }
        self.seen_ms = Some(now.mono_ms);
        self.progress.take().map(Effect::Seen).into_iter().collect()
    }

    fn complain(&mut self, code: &str, message: String) -> Vec<Effect> {
        self.complaints += 1;
        if self.complaints >= self.limits.complaints_max {
            return self.violate(code, "too many complaints", message);
        }
        vec![complaint(code, message)]
    }

    fn violate(&mut self, code: &str, what: &'static str, message: String) -> Vec<Effect> {
        let mut effects = vec![complaint(code, message)];
        effects.extend(self.close(Closing::Violation(what)));
        effects
    }

    fn refuse(&mut self, refused: Refused) -> Vec<Effect> {
        let code = refused.code;
        let mut effects = vec![send(ToSatellite::Refused(refused))];
        effects.extend(self.close(Closing::Refused(code)));
        effects
    }

    fn close(&mut self, closing: Closing) -> Vec<Effect> {
        self.stage = Stage::Closed;
        let seen = self.progress.take().map(Effect::Seen);
        seen.into_iter().chain([Effect::Close(closing)]).collect()
    }
}

/// So many in a minute.
#[derive(Debug)]
struct Allowance {
    max: u32,
    used: u32,
    since_ms: u64,
}

impl Allowance {
    fn new(max: u32) -> Self {
        Self { max, used: 0, since_ms: 0 }
    }

    fn take(&mut self, now: Now) -> bool {
        if self.used == 0 || now.mono_ms >= self.since_ms.saturating_add(MINUTE_MS) {
            self.since_ms = now.mono_ms;
            self.used = 0;
        }
        self.used = self.used.saturating_add(1);
        self.used <= self.max
    }
}

enum Unread {
    Unknown(String),
    Malformed(String),
}

fn parse(text: &str) -> Result<ToRelay, Unread> {
    #[derive(serde::Deserialize)]
    struct Named {
        event: String,
    }
    let why = match serde_json::from_str(text) {
        Ok(event) => return Ok(event),
        Err(why) => why,
    };
    const KNOWN: [&str; 5] = ["AUTHENTICATE", "CONFIG_STATUS", "HEARTBEAT", "RENEW", "ERROR"];
    match serde_json::from_str::<Named>(text) {
        Ok(named) if !KNOWN.contains(&named.event.as_str()) => Err(Unread::Unknown(shown(&named.event))),
        Ok(named) => Err(Unread::Malformed(format!("{}: {}", named.event, place(&why)))),
        Err(_) => Err(Unread::Malformed(format!("not an event: {}", place(&why)))),
    }
}

/// Where it went wrong; serde's own text could repeat a token.
fn place(why: &serde_json::Error) -> String {
    let what = match why.classify() {
        serde_json::error::Category::Data => "a field is missing or of another type",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Eof => "the JSON ends early",
        serde_json::error::Category::Io => "unreadable",
    };
    format!("{what}, near character {}", why.column())
}

fn sane(authenticate: &Authenticate) -> Result<(), &'static str> {
    let texts = [&authenticate.agent_version, &authenticate.hostname, &authenticate.instance];
    if texts.iter().any(|text| text.len() > bounds::NAME_BYTES_MAX || text.chars().any(char::is_control)) {
        return Err("agent_version, hostname and instance are at most 256 bytes, without control characters");
    }
    if authenticate.instance.is_empty() {
        return Err("instance is empty");
    }
    if authenticate.streams.len() > bounds::EPOCHS_MAX {
        return Err("more than 1,000 streams");
    }
    let mut epochs = HashSet::with_capacity(authenticate.streams.len());
    for stream in &authenticate.streams {
        if stream.boot_id.len() > BOOT_ID_BYTES_MAX || stream.boot_id.chars().any(char::is_control) {
            return Err("a stream's boot_id is longer than 64 bytes");
        }
        if !epochs.insert(stream.epoch) {
            return Err("an epoch stands twice in streams");
        }
    }
    Ok(())
}

fn in_events(stored: BTreeMap<Epoch, Ranges>) -> impl Iterator<Item = Vec<Stored>> {
    let mut events = Vec::new();
    let mut event = Vec::new();
    let mut left = RANGES_PER_EVENT_MAX;
    for (epoch, ranges) in stored {
        let mut rest = ranges.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(left));
            event.push(Stored { epoch, ranges: now.iter().copied().collect() });
            left -= now.len();
            rest = later;
            if left == 0 {
                events.push(std::mem::take(&mut event));
                left = RANGES_PER_EVENT_MAX;
            }
        }
    }
    if !event.is_empty() {
        events.push(event);
    }
    events.into_iter()
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn send(event: ToSatellite) -> Effect {
    Effect::Send(Box::new(event))
}

fn complaint(code: &str, message: String) -> Effect {
    send(ToSatellite::Error(Complaint { code: code.into(), message }))
}

fn nack(epoch: Epoch, first_seq: u64, code: NackCode, message: String) -> Effect {
    let retry_after_s = match code {
        NackCode::Retry => RETRY_AFTER_S,
        NackCode::UnknownSeries | NackCode::Conflict => 0,
    };
    send(ToSatellite::Nack(Nack { epoch, first_seq, code, message, retry_after_s }))
}

fn not_authenticate() -> Refused {
    let message = "the first thing to say is AUTHENTICATE".into();
    Refused { code: RefusalCode::Protocol, message, retry_after_s: 60 }
}

/// What a satellite hears that may not go on.
pub(super) fn ended(code: RefusalCode) -> Refused {
    let (message, retry_after_s) = match code {
        RefusalCode::Revoked => (
            "this satellite was revoked at the relay: to let it in again, make a lease there and run `satellite lease set`",
            3_600,
        ),
        RefusalCode::Superseded => ("a newer connection of this satellite took over", 10),
        RefusalCode::Conflict => {
            ("two machines use this identity in turns: give each its own lease with `satellite lease set`", 600)
        }
        RefusalCode::StaleCertificate => (
            "this certificate was replaced by a newer one: this is an old copy of the identity; run `satellite lease set` with a new lease",
            3_600,
        ),
        RefusalCode::Version
        | RefusalCode::Protocol
        | RefusalCode::Credentials
        | RefusalCode::Overloaded
        | RefusalCode::Unavailable => ("the relay ended the session", 60),
    };
    Refused { code, message: message.into(), retry_after_s }
}

#[cfg(test)]
mod tests {
    use satellite_shared::gap::{Gap, Reason};
    use satellite_shared::id::LeaseId;
    use satellite_shared::metric::{Kind, Series};
    use satellite_shared::secret::{Token, TokenKind};
    use satellite_shared::wire::block::{ClockQuality, Encoder, Group, HEADER_BYTES, Stamp};
    use satellite_shared::wire::to_relay::{ConfigState, Renew, Stream};

    use super::*;

    const EPOCH: Epoch = Epoch(7);

    /// A machine, its clock, and what it did last.
    struct Bench {
        machine: Machine,
        now: Now,
        decoder: Decoder,
    }

    impl Bench {
        fn fresh(limits: Limits) -> Self {
            let now = Now { wall_ms: 1_790_000_000_000, mono_ms: 1_000_000 };
            Self { machine: Machine::new(Arc::new(limits), now), now, decoder: Decoder::default() }
        }

        fn greeted() -> Self {
            let mut bench = Self::fresh(Limits::default());
            let effects = bench.does(Event::Opened(Ok(Greeting { relay: "test".into() })));
            assert!(matches!(said(&effects)[..], [ToSatellite::Hello(_)]), "{effects:?}");
            bench
        }

        fn streaming_with(limits: Limits) -> Self {
            let mut bench = Self::fresh(limits);
            bench.does(Event::Opened(Ok(Greeting { relay: "test".into() })));
            bench.says(&ToRelay::Authenticate(authenticate()));
            bench.does(Event::Admitted(Ok(admission(None))));
            bench
        }

        fn streaming() -> Self {
            Self::streaming_with(Limits::default())
        }

        fn does(&mut self, event: Event) -> Vec<Effect> {
            self.machine.handle(self.now, event, &mut self.decoder)
        }

        fn says(&mut self, event: &ToRelay) -> Vec<Effect> {
            self.does(Event::Text(serde_json::to_string(event).unwrap()))
        }

        fn sends(&mut self, first_seq: u64, body: &Body) -> Vec<Effect> {
            self.does(Event::Frame(frame(first_seq, body)))
        }

        fn after(&mut self, ms: u64) -> Vec<Effect> {
            self.now.mono_ms += ms;
            self.now.wall_ms += i64::try_from(ms).unwrap();
            self.does(Event::Tick)
        }
    }

    fn authenticate() -> Authenticate {
        Authenticate {
            protocol: 1,
            lease: LeaseId::from_bits([1; 10]),
            token: Token::from_bits(TokenKind::Satellite, [2; 32]),
            agent_version: "0.1.0".into(),
            hostname: "nas".into(),
            instance: "1".into(),
            clock_ms: 0,
            config_version: 3,
            generation: 1,
            streams: vec![stream(EPOCH)],
        }
    }

    fn stream(epoch: Epoch) -> Stream {
        Stream { epoch, boot_id: String::new(), opened_ms: 0, first_seq: 1, last_seq: 9 }
    }

    fn config(version: u64) -> Config {
        Config { version, document: serde_json::json!({}) }
    }

    fn admission(config: Option<Config>) -> Box<Admission> {
        Box::new(Admission {
            satellite: SatelliteId::from_bits([1; 10]),
            session: "se_1".into(),
            stored: vec![Stored { epoch: EPOCH, ranges: [(1, 4)].into_iter().collect() }],
            config_version: config.as_ref().map_or(3, |config| config.version),
            config,
            renew_after_ms: 5,
        })
    }

    fn frame(first_seq: u64, body: &Body) -> Bytes {
        let made = Now { wall_ms: 0, mono_ms: 0 };
        let stamp = Stamp { epoch: EPOCH, first_seq, due_before: 0, made, quality: ClockQuality::Unknown };
        Encoder::default().encode(stamp, body).into()
    }

    fn series(name: &str) -> Body {
        let device = "nas".parse().unwrap();
        Body::Series(vec![Series { device, name: name.into(), kind: Kind::Gauge, unit: String::new(), labels: vec![] }])
    }

    fn samples(series: u32) -> Body {
        Body::Samples(vec![Group { series: vec![series], times_ms: vec![1, 2], values: vec![0.5, 0.7] }])
    }

    fn gaps() -> Body {
        Body::Gaps(vec![Gap {
            device: None,
            metric: None,
            from_ms: 0,
            to_ms: 1,
            count: 3,
            reason: Reason::Stopped,
            detail: String::new(),
            lost: None,
        }])
    }

    /// A frame whose header and checksum are right and whose payload is nonsense.
    fn nonsense(first_seq: u64, body: &Body) -> Bytes {
        let mut bytes = frame(first_seq, body).to_vec();
        bytes[6] = 0;
        for byte in &mut bytes[HEADER_BYTES..] {
            *byte = 0xff;
        }
        reseal(bytes)
    }

    fn reseal(mut bytes: Vec<u8>) -> Bytes {
        let mut covered = bytes.clone();
        covered.drain(12..16);
        let crc = crc32(&covered);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes.into()
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let fold = |crc: u32, byte: &u8| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        };
        !bytes.iter().fold(!0, fold)
    }

    fn stored(first_seq: u64, last_seq: u64, bytes: usize) -> Outcome {
        Outcome::Stored { epoch: EPOCH, first_seq, last_seq, bytes }
    }

    fn said(effects: &[Effect]) -> Vec<ToSatellite> {
        let one = |effect: &Effect| match effect {
            Effect::Send(event) => Some((**event).clone()),
            Effect::Ping
            | Effect::Admit(_)
            | Effect::FetchConfig
            | Effect::Submit(_)
            | Effect::Renew(_)
            | Effect::ConfigStatus(_)
            | Effect::Seen(_)
            | Effect::Complained(_)
            | Effect::Close(_) => None,
        };
        effects.iter().filter_map(one).collect()
    }

    fn submitted(effects: Vec<Effect>) -> Submission {
        match <[Effect; 1]>::try_from(effects) {
            Ok([Effect::Submit(submission)]) => *submission,
            other => panic!("a submission, not {other:?}"),
        }
    }

    fn assert_refused(effects: &[Effect], code: RefusalCode) {
        let said = said(effects);
        let Some(ToSatellite::Refused(refused)) = said.last() else { panic!("REFUSED, not {effects:?}") };
        assert_eq!(refused.code, code);
        assert!(!refused.message.is_empty() && refused.retry_after_s > 0, "{refused:?}");
        assert!(matches!(effects.last(), Some(Effect::Close(Closing::Refused(closed))) if *closed == code));
    }

    fn assert_complaint(effects: &[Effect], code: &str) {
        let said = said(effects);
        let [ToSatellite::Error(complaint)] = &said[..] else { panic!("ERROR, not {effects:?}") };
        assert_eq!(complaint.code, code);
    }

    fn assert_closed_for(effects: &[Effect], code: &str) {
        assert_complaint(effects, code);
        assert!(matches!(effects.last(), Some(Effect::Close(Closing::Violation(_)))), "{effects:?}");
    }

    #[test]
    fn an_unknown_certificate_is_greeted_and_refused() {
        let mut bench = Bench::fresh(Limits::default());
        let effects = bench.does(Event::Opened(Err(ended(RefusalCode::Revoked))));
        assert!(matches!(said(&effects)[0], ToSatellite::Hello(_)));
        assert_refused(&effects, RefusalCode::Revoked);
    }

    #[test]
    fn a_satellite_that_authenticates_hears_what_is_stored_and_no_config_that_it_has() {
        let mut bench = Bench::greeted();
        let effects = bench.says(&ToRelay::Authenticate(authenticate()));
        assert!(matches!(&effects[..], [Effect::Admit(a)] if **a == authenticate()));
        let effects = bench.does(Event::Admitted(Ok(admission(None))));
        let [ToSatellite::Authenticated(authenticated)] = &said(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(authenticated.stored[0].ranges.as_slice(), [(1, 4)]);
        assert_eq!(authenticated.config_version, 3);
        assert_eq!(authenticated.credit_bytes, Limits::default().credit_bytes_max);
    }

    #[test]
    fn a_config_of_another_version_follows_at_once() {
        let mut bench = Bench::greeted();
        bench.says(&ToRelay::Authenticate(authenticate()));
        let effects = bench.does(Event::Admitted(Ok(admission(Some(config(4))))));
        assert!(matches!(said(&effects)[..], [ToSatellite::Authenticated(_), ToSatellite::Config(_)]), "{effects:?}");
    }

    #[test]
    fn authenticating_again_renews_the_config_even_if_it_is_the_same() {
        let mut bench = Bench::streaming();
        let effects = bench.says(&ToRelay::Authenticate(authenticate()));
        assert!(matches!(effects[..], [Effect::Admit(_)]));
        let effects = bench.does(Event::Admitted(Ok(admission(Some(config(3))))));
        assert!(matches!(said(&effects)[..], [ToSatellite::Authenticated(_), ToSatellite::Config(_)]), "{effects:?}");
    }

    #[test]
    fn authenticating_again_with_what_is_refused_ends_the_session() {
        let mut bench = Bench::streaming();
        bench.says(&ToRelay::Authenticate(authenticate()));
        let refused = Refused { code: RefusalCode::Credentials, message: "no".into(), retry_after_s: 1 };
        assert_refused(&bench.does(Event::Admitted(Err(refused))), RefusalCode::Credentials);
    }

    #[test]
    fn a_live_session_outlives_a_registry_that_does_not_answer() {
        let mut bench = Bench::streaming();
        bench.says(&ToRelay::Authenticate(authenticate()));
        let refused = Refused { code: RefusalCode::Unavailable, message: "later".into(), retry_after_s: 1 };
        assert_complaint(&bench.does(Event::Admitted(Err(refused.clone()))), "unavailable");
        let mut newcomer = Bench::greeted();
        newcomer.says(&ToRelay::Authenticate(authenticate()));
        assert_refused(&newcomer.does(Event::Admitted(Err(refused))), RefusalCode::Unavailable);
    }

    #[test]
    fn whoever_says_nothing_is_refused_after_five_seconds() {
        let mut bench = Bench::greeted();
        assert_eq!(bench.machine.deadline_ms(), bench.now.mono_ms + 5_000);
        assert!(bench.after(4_999).is_empty());
        bench.does(Event::Control);
        assert_refused(&bench.after(1), RefusalCode::Protocol);
    }

    #[test]
    fn anything_before_authenticate_is_refused() {
        let heartbeat = r#"{"event":"RENEW","data":{"csr":""}}"#;
        for text in ["", "hello", "{}", r#"{"event":"NEWS","data":1}"#, heartbeat] {
            assert_refused(&Bench::greeted().does(Event::Text(text.into())), RefusalCode::Protocol);
        }
        assert_refused(&Bench::greeted().sends(1, &samples(0)), RefusalCode::Protocol);
    }

    #[test]
    fn an_authenticate_that_breaks_a_limit_is_refused() {
        let long = "x".repeat(257);
        let breaks = [
            Authenticate { hostname: long, ..authenticate() },
            Authenticate { hostname: "a\nb".into(), ..authenticate() },
            Authenticate { instance: String::new(), ..authenticate() },
            Authenticate { streams: vec![stream(EPOCH), stream(EPOCH)], ..authenticate() },
            Authenticate { streams: (0..1_001).map(|n| stream(Epoch(n))).collect(), ..authenticate() },
            Authenticate { streams: vec![Stream { boot_id: "x".repeat(65), ..stream(EPOCH) }], ..authenticate() },
        ];
        for one in breaks {
            assert_refused(&Bench::greeted().says(&ToRelay::Authenticate(one)), RefusalCode::Protocol);
        }
        let future = Authenticate { protocol: 9, ..authenticate() };
        assert_refused(&Bench::greeted().says(&ToRelay::Authenticate(future)), RefusalCode::Version);
    }

    #[test]
    fn a_refusal_never_repeats_a_token() {
        let mut bench = Bench::streaming();
        let text = serde_json::to_string(&ToRelay::Authenticate(authenticate())).unwrap();
        let broken = text.replace("\"config_version\":3", "\"config_version\":\"sats_secret\"");
        let effects = bench.does(Event::Text(broken));
        assert_complaint(&effects, "malformed");
        assert!(!format!("{effects:?}").contains("sats_"), "{effects:?}");
    }

    #[test]
    fn an_unknown_event_is_answered_and_the_session_stays() {
        let mut bench = Bench::streaming();
        assert_complaint(&bench.does(Event::Text(r#"{"event":"NEWS","data":{}}"#.into())), "unsupported");
        assert!(bench.machine.listens());
    }

    #[test]
    fn the_tenth_unreadable_event_closes() {
        let mut bench = Bench::streaming();
        for _ in 0..9 {
            assert_complaint(&bench.does(Event::Text("{".into())), "malformed");
            assert!(bench.machine.listens());
        }
        assert_closed_for(&bench.does(Event::Text("{".into())), "malformed");
        assert!(bench.says(&ToRelay::Renew(Renew { csr: String::new() })).is_empty(), "nothing follows a close");
    }

    #[test]
    fn an_oversized_event_closes_at_once() {
        let mut bench = Bench::streaming();
        assert_closed_for(&bench.does(Event::Text(" ".repeat(bounds::EVENT_BYTES_MAX + 1))), "malformed");
        assert_closed_for(&Bench::streaming().does(Event::Garbage("a message that is too long")), "malformed");
    }

    #[test]
    fn a_flood_of_events_or_pings_closes() {
        let mut bench = Bench::streaming();
        let complaint = ToRelay::Error(Complaint { code: "x".into(), message: "y".into() });
        let closes = (0..601).any(|_| matches!(bench.says(&complaint).last(), Some(Effect::Close(_))));
        assert!(closes);
        let mut bench = Bench::streaming();
        let closes = (0..601).any(|_| matches!(bench.does(Event::Control).last(), Some(Effect::Close(_))));
        assert!(closes);
    }

    #[test]
    fn a_block_of_announced_series_is_submitted_with_what_they_mean() {
        let mut bench = Bench::streaming();
        assert!(bench.sends(0, &series("node_load1")).is_empty());
        let submission = submitted(bench.sends(5, &samples(0)));
        assert_eq!((submission.header.first_seq, submission.header.last_seq()), (5, 6));
        let BlockBody::Samples { groups, series } = submission.body else { panic!("samples") };
        assert_eq!(groups[0].values, [0.5, 0.7]);
        assert_eq!(series[&0].name, "node_load1");
        assert_eq!(bench.machine.outstanding_bytes(), submission.frame.len() as u64);
    }

    #[test]
    fn gaps_are_submitted_like_samples() {
        let submission = submitted(Bench::streaming().sends(1, &gaps()));
        assert!(matches!(submission.body, BlockBody::Gaps(gaps) if gaps[0].count == 3));
    }

    #[test]
    fn a_block_of_series_that_were_not_announced_is_not_taken_and_costs_no_credit() {
        let mut bench = Bench::streaming();
        let effects = bench.sends(5, &samples(3));
        let [ToSatellite::Nack(nack)] = &said(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!((nack.code, nack.first_seq), (NackCode::UnknownSeries, 5));
        assert_eq!(bench.machine.outstanding_bytes(), 0);
    }

    #[test]
    fn a_damaged_frame_closes() {
        for at in [0, 6, 20, 85] {
            let mut bytes = frame(5, &gaps()).to_vec();
            bytes[at] ^= 1;
            assert_closed_for(&Bench::streaming().does(Event::Frame(bytes.into())), "damaged");
        }
        assert_closed_for(&Bench::streaming().does(Event::Frame(Bytes::new())), "damaged");
    }

    #[test]
    fn a_whole_block_that_can_not_be_decoded_is_set_aside_and_the_stream_goes_on() {
        let mut bench = Bench::streaming();
        let submission = submitted(bench.does(Event::Frame(nonsense(5, &gaps()))));
        assert!(matches!(submission.body, BlockBody::Dead(_)), "{submission:?}");
        assert!(matches!(submitted(bench.sends(6, &gaps())).body, BlockBody::Gaps(_)));
    }

    #[test]
    fn a_block_whose_descriptor_can_not_be_decoded_is_set_aside() {
        let mut bench = Bench::streaming();
        assert_complaint(&bench.does(Event::Frame(nonsense(0, &series("a")))), "series");
        assert!(matches!(submitted(bench.sends(5, &samples(0))).body, BlockBody::Dead(_)));
    }

    #[test]
    fn many_descriptors_that_can_not_be_decoded_do_not_stop_the_stream() {
        let mut bench = Bench::streaming();
        for number in 0..30 {
            bench.does(Event::Frame(nonsense(number * 2, &series("a"))));
        }
        assert!(bench.machine.listens());
    }

    #[test]
    fn blocks_over_the_credit_close() {
        let limits = Limits { credit_bytes_max: 1_000, ..Limits::default() };
        let mut bench = Bench::streaming_with(limits);
        let last = (1..).map(|seq| bench.sends(seq, &gaps())).find(|effects| !said(effects).is_empty()).unwrap();
        assert_closed_for(&last, "over_credit");
        assert!(bench.machine.outstanding_bytes() <= 1_000 + bounds::BLOCK_BYTES_MAX as u64);
    }

    #[test]
    fn outcomes_that_arrive_together_become_one_ack_and_give_their_credit_back() {
        let mut bench = Bench::streaming();
        let bytes: Vec<usize> = (1..=3).map(|seq| submitted(bench.sends(seq, &gaps())).frame.len()).collect();
        let outcomes = vec![stored(1, 1, bytes[0]), stored(3, 3, bytes[2]), stored(2, 2, bytes[1])];
        let effects = bench.does(Event::Outcomes(outcomes));
        let [ToSatellite::Ack(ack)] = &said(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(ack.stored[0].ranges.as_slice(), [(1, 3)]);
        assert_eq!(bench.machine.outstanding_bytes(), 0);
    }

    #[test]
    fn what_the_ingest_refuses_is_nacked_and_retried_later() {
        let mut bench = Bench::streaming();
        let bytes = submitted(bench.sends(1, &gaps())).frame.len();
        let refused =
            |code| Outcome::Refused { epoch: EPOCH, first_seq: 1, bytes, code, message: "storage is full".into() };
        let effects = bench.does(Event::Outcomes(vec![refused(NackCode::Retry), stored(9, 9, 0)]));
        let [ToSatellite::Ack(ack), ToSatellite::Nack(nack)] = &said(&effects)[..] else { panic!("{effects:?}") };
        assert!(nack.retry_after_s > 0 && nack.message == "storage is full");
        assert!(ack.credit_bytes < Limits::default().credit_bytes_max, "slow storage shrinks the credit");
    }

    #[test]
    fn a_very_fragmented_answer_stays_below_the_limit_of_a_message() {
        let mut bench = Bench::streaming();
        let outcomes = (0..20_000).map(|n| stored(u64::MAX / 2 + n * 2, u64::MAX / 2 + n * 2, 0)).collect();
        let acks = said(&bench.does(Event::Outcomes(outcomes)));
        assert_eq!(acks.len(), 3);
        for ack in acks {
            assert!(serde_json::to_string(&ack).unwrap().len() < bounds::MESSAGE_BYTES_MAX / 2);
        }
    }

    #[test]
    fn each_end_hears_the_other_and_silence_closes() {
        let mut bench = Bench::streaming();
        assert!(matches!(bench.after(20_000)[..], [Effect::Ping]));
        bench.does(Event::Control);
        let heard_ms = bench.now.mono_ms;
        assert!(matches!(said(&bench.after(10_000))[..], [ToSatellite::Heartbeat(_)]));
        while bench.now.mono_ms < heard_ms + 49_000 {
            assert!(!bench.after(1_000).iter().any(|effect| matches!(effect, Effect::Close(_))));
        }
        assert!(matches!(bench.after(1_000)[..], [Effect::Close(Closing::Silent)]));
    }

    #[test]
    fn the_deadline_is_never_past_when_nothing_is_due() {
        let mut bench = Bench::streaming();
        bench.says(&ToRelay::Heartbeat(progress(1)));
        for _ in 0..200 {
            bench.does(Event::Control);
            bench.after(0);
            assert!(bench.machine.deadline_ms() > bench.now.mono_ms);
            let wait = bench.machine.deadline_ms() - bench.now.mono_ms;
            bench.after(wait);
        }
    }

    fn progress(last_seq: u64) -> Progress {
        Progress { clock_ms: 0, epoch: EPOCH, last_seq, due: 1, waiting: 0, buffer_bytes: 0, polls: 1 }
    }

    #[test]
    fn progress_is_kept_at_most_every_thirty_seconds_and_the_last_of_it_at_the_end() {
        let mut bench = Bench::streaming();
        let kept = |effects: &[Effect]| match effects {
            [Effect::Seen(progress), ..] => Some(progress.last_seq),
            _ => None,
        };
        assert_eq!(kept(&bench.says(&ToRelay::Heartbeat(progress(1)))), Some(1));
        bench.after(10_000);
        assert_eq!(kept(&bench.says(&ToRelay::Heartbeat(progress(2)))), None);
        assert_eq!(kept(&bench.says(&ToRelay::Heartbeat(progress(3)))), None);
        assert_eq!(kept(&bench.after(20_000)), Some(3));
        bench.says(&ToRelay::Heartbeat(progress(4)));
        let effects = bench.does(Event::Ended(RefusalCode::Superseded));
        assert!(effects.iter().any(|effect| matches!(effect, Effect::Seen(progress) if progress.last_seq == 4)));
    }

    #[test]
    fn a_certificate_is_issued_at_most_once_a_minute() {
        let mut bench = Bench::streaming();
        let renew = ToRelay::Renew(Renew { csr: "pem".into() });
        assert!(matches!(&bench.says(&renew)[..], [Effect::Renew(csr)] if csr == "pem"));
        assert_complaint(&bench.says(&renew), "rate_limited");
        assert_complaint(&bench.does(Event::Issued(Err("no".into()))), "renewal");
        bench.after(30_000);
        bench.does(Event::Control);
        bench.after(30_000);
        assert!(matches!(&bench.says(&renew)[..], [Effect::Renew(_)]));
    }

    #[test]
    fn a_request_that_is_too_large_is_not_passed_on() {
        let csr = "x".repeat(2 * bounds::CSR_BYTES_MAX + 1);
        assert_complaint(&Bench::streaming().says(&ToRelay::Renew(Renew { csr })), "renewal");
    }

    #[test]
    fn what_became_of_a_config_is_kept() {
        let status = ConfigStatus { version: 3, state: ConfigState::Applied, items: vec![] };
        let effects = Bench::streaming().says(&ToRelay::ConfigStatus(status.clone()));
        assert!(matches!(&effects[..], [Effect::ConfigStatus(kept)] if **kept == status));
    }

    #[test]
    fn a_changed_config_is_sent_at_once_and_only_once() {
        let mut bench = Bench::streaming();
        assert!(matches!(bench.does(Event::ConfigChanged)[..], [Effect::FetchConfig]));
        assert!(matches!(said(&bench.does(Event::Config(Some(config(4)))))[..], [ToSatellite::Config(_)]));
        bench.does(Event::ConfigChanged);
        assert!(bench.does(Event::Config(Some(config(4)))).is_empty());
        assert!(bench.does(Event::Config(None)).is_empty());
    }

    #[test]
    fn whoever_is_revoked_superseded_or_in_conflict_hears_it_and_is_closed() {
        for code in [RefusalCode::Revoked, RefusalCode::Superseded, RefusalCode::Conflict] {
            assert_refused(&Bench::streaming().does(Event::Ended(code)), code);
        }
    }

    #[test]
    fn a_drain_waits_for_what_was_submitted_and_takes_nothing_new() {
        let mut bench = Bench::streaming();
        let bytes = submitted(bench.sends(1, &gaps())).frame.len();
        let effects = bench.does(Event::Shutdown);
        let [ToSatellite::Drain(drain)] = &said(&effects)[..] else { panic!("{effects:?}") };
        assert_eq!(drain.spread_ms, 30_000);
        assert!(!bench.machine.listens());
        assert!(bench.sends(2, &gaps()).is_empty());
        let effects = bench.does(Event::Outcomes(vec![stored(1, 1, bytes)]));
        assert!(matches!(effects[..], [Effect::Send(_), Effect::Close(Closing::Drained)]), "{effects:?}");
    }

    #[test]
    fn a_drain_ends_at_once_without_blocks_and_after_ten_seconds_with_unanswered_ones() {
        let effects = Bench::streaming().does(Event::Shutdown);
        assert!(matches!(effects[..], [Effect::Send(_), Effect::Close(Closing::Drained)]), "{effects:?}");
        let mut bench = Bench::streaming();
        bench.sends(1, &gaps());
        bench.does(Event::Shutdown);
        assert!(bench.after(9_999).is_empty());
        assert!(matches!(bench.after(1)[..], [Effect::Close(Closing::Drained)]));
    }

    #[test]
    fn what_is_stored_of_very_many_epochs_is_told_as_far_as_it_fits() {
        let mut bench = Bench::greeted();
        bench.says(&ToRelay::Authenticate(authenticate()));
        let ranges: Ranges = (0..64).map(|n| (u64::MAX / 2 + n * 2, u64::MAX / 2 + n * 2)).collect();
        let stored = (0..1_000).map(|n| Stored { epoch: Epoch(n), ranges: ranges.clone() }).collect();
        let effects = bench.does(Event::Admitted(Ok(Box::new(Admission { stored, ..*admission(None) }))));
        let said = said(&effects);
        assert!(serde_json::to_string(&said[0]).unwrap().len() < bounds::MESSAGE_BYTES_MAX);
    }
}
