//! The task with a real buffer, a real socket and an identity file, against a stand-in for the relay.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use satellite_shared::clock::{Clock, ManualClock, SystemClock};
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::metric::{Kind, Series};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{self, Body, ClockQuality, Encoder, FrameKind, Group, Stamp};
use satellite_shared::wire::to_relay::ConfigState;
use satellite_shared::wire::to_satellite::{Ack, RefusalCode, Refused, Stored as Committed};
use satellite_shared::wire::{ToSatellite, version};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

use super::stand_in::{Authority, ENDED, GOOD, Server, detached, now_ms, read_request, reply};
use super::*;
use crate::buffer::{BufferSettings, Commit};

const DEADLINE: Duration = Duration::from_secs(20);

/// A satellite whose uplink runs.
struct Stage {
    dir: tempfile::TempDir,
    authority: Authority,
    server: Server,
    buffer: Buffer,
    epoch: Epoch,
    seq: u64,
    seen: Seen,
    configs: mpsc::Receiver<Config>,
    statuses: mpsc::Sender<ConfigStatus>,
    shutdown: CancellationToken,
    ended: tokio::sync::oneshot::Receiver<()>,
    // What the task watches must outlive the test.
    _version: watch::Sender<u64>,
    _recorder: watch::Sender<RecorderState>,
}

impl Stage {
    async fn new(clock: Arc<dyn Clock>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = BufferSettings {
            dir: dir.path().join("buffer"),
            bytes_max: 64 << 20,
            age_max: Duration::from_secs(365 * 24 * 3600),
            free_min_bytes: 0,
            free_min_percent: 0,
        };
        let (buffer, opened) = Buffer::open(settings, Arc::clone(&clock)).unwrap();
        let authority = Authority::new("relay");
        let server = Server::start(authority.server(GOOD, true)).await;
        let (config_sender, configs) = mpsc::channel(4);
        let (statuses, status_receiver) = mpsc::channel(4);
        let (version, config_version) = watch::channel(5);
        let (recorder_sender, recorder) = watch::channel(RecorderState::default());
        let (uplink, seen) = Uplink::new(Parts {
            buffer: buffer.clone(),
            clock,
            state_dir: dir.path().to_owned(),
            proxy: ProxySettings { proxy: Some("direct".into()), no_proxy: vec![] },
            stop_grace: Duration::from_secs(5),
            configs: config_sender,
            statuses: status_receiver,
            config_version,
            recorder,
        });
        let shutdown = CancellationToken::new();
        let (end, ended) = tokio::sync::oneshot::channel();
        let token = shutdown.clone();
        detached(async move {
            uplink.run(token).await;
            end.send(()).ok();
        });
        Self {
            dir,
            authority,
            server,
            buffer,
            epoch: opened.epoch,
            seq: 1,
            seen,
            configs,
            statuses,
            shutdown,
            ended,
            _version: version,
            _recorder: recorder_sender,
        }
    }

    fn enrol(&self, identity: Identity) {
        Keystore::new(self.dir.path()).save(&Stored { identity: Some(identity), pending: None }).unwrap();
    }

    /// Commits a block of three records; the first commit brings the series.
    async fn commit(&mut self) {
        let stamp = |first_seq| Stamp {
            epoch: self.epoch,
            first_seq,
            due_before: self.seq - 1,
            made: SystemClock.now(),
            quality: ClockQuality::Unknown,
        };
        let one = |name: &str| Series {
            device: "ups".parse().unwrap(),
            name: name.into(),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: vec![],
        };
        let mut commit = Commit::default();
        if self.seq == 1 {
            let series = Body::Series(vec![one("a"), one("b"), one("c")]);
            commit.series.push(Encoder::default().encode(stamp(0), &series));
        }
        let group = Group { series: vec![0, 1, 2], times_ms: vec![now_ms()], values: vec![1.0, 2.0, 3.0] };
        commit.blocks.push(Encoder::default().encode(stamp(self.seq), &Body::Samples(vec![group])));
        self.seq += 3;
        self.buffer.commit(commit).await.unwrap();
    }

    async fn until(&self, what: &str, right: impl Fn(&LinkState) -> bool) -> LinkState {
        let mut link = self.seen.link.clone();
        let found = tokio::time::timeout(DEADLINE, link.wait_for(|state| right(state))).await;
        found.unwrap_or_else(|_| panic!("{what}, but {:?}", *self.seen.link.borrow())).unwrap().clone()
    }

    /// The relay's end of the next connection, greeted and authenticated.
    async fn session(&self) -> (Relay, Authenticate) {
        let mut relay = self.greeted().await;
        let ToRelay::Authenticate(who) = relay.event().await else { panic!("AUTHENTICATE comes first") };
        relay.welcome(GOOD_RENEWAL).await;
        (relay, who)
    }

    async fn greeted(&self) -> Relay {
        let stream = tokio::time::timeout(DEADLINE, self.server.accept()).await.unwrap().unwrap();
        #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
        let accept = |_: &Request, mut response: Response| {
            response.headers_mut().insert("sec-websocket-protocol", version::SUBPROTOCOL.parse().unwrap());
            Ok(response)
        };
        let mut relay = Relay(tokio_tungstenite::accept_hdr_async(stream, accept).await.unwrap());
        relay
            .say(ToSatellite::Hello(Hello {
                protocol_min: 1,
                protocol_max: 1,
                relay: "r1".into(),
                relay_version: "0".into(),
                clock_ms: now_ms(),
                heartbeat_s: 30,
            }))
            .await;
        relay
    }
}

const GOOD_RENEWAL: i64 = i64::MAX;

struct Relay(WebSocketStream<TlsStream<TcpStream>>);

impl Relay {
    async fn say(&mut self, event: ToSatellite) {
        self.0.send(Message::text(serde_json::to_string(&event).unwrap())).await.unwrap();
    }

    async fn welcome(&mut self, renew_after_ms: i64) {
        self.say(ToSatellite::Authenticated(Authenticated {
            satellite: SatelliteId::from_bits([1; 10]),
            session: "s1".into(),
            stored: vec![],
            credit_bytes: 1 << 20,
            config_version: 5,
            renew_after_ms,
        }))
        .await;
    }

    async fn message(&mut self) -> Option<Message> {
        let next = tokio::time::timeout(DEADLINE, self.0.next()).await.expect("the satellite says something");
        next.and_then(Result::ok)
    }

    /// The next event that is no heartbeat.
    async fn event(&mut self) -> ToRelay {
        loop {
            if let Some(Message::Text(text)) = self.message().await {
                let event: ToRelay = serde_json::from_str(text.as_str()).unwrap();
                if !matches!(event, ToRelay::Heartbeat(_)) {
                    return event;
                }
            }
        }
    }

    async fn frame(&mut self) -> block::Header {
        loop {
            match self.message().await {
                Some(Message::Binary(frame)) => return block::header(&frame).unwrap(),
                Some(_) => {}
                None => panic!("the satellite went"),
            }
        }
    }

    async fn ack(&mut self, epoch: Epoch, first: u64, last: u64) {
        let ranges: Ranges = [(first, last)].into_iter().collect();
        self.say(ToSatellite::Ack(Ack { stored: vec![Committed { epoch, ranges }], credit_bytes: 1 << 20 })).await;
    }
}

fn system() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

async fn eventually(what: &str, mut right: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !right() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test]
async fn records_reach_the_relay_and_are_deleted_when_it_has_stored_them() {
    let mut stage = Stage::new(system()).await;
    stage.until("it waits for a lease", |link| matches!(link.standing, Standing::NoLease { .. })).await;
    stage.commit().await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, who) = stage.session().await;
    assert_eq!((who.config_version, who.generation, who.streams.len()), (5, 1, 1));
    assert_eq!((who.streams[0].epoch, who.streams[0].first_seq, who.streams[0].last_seq), (stage.epoch, 1, 3));
    assert_eq!(relay.frame().await.kind, FrameKind::Series);
    assert_eq!(relay.frame().await.first_seq, 1);
    stage.commit().await;
    assert_eq!(relay.frame().await.first_seq, 4, "live data follows at once");
    assert_eq!(stage.buffer.state().borrow().records, 6);
    relay.ack(stage.epoch, 1, 6).await;
    let state = stage.buffer.state();
    eventually("acknowledged records are deleted", || state.borrow().records == 0).await;
    let link = stage.until("it counts", |link| link.counters.records_acknowledged == 6).await;
    assert!(matches!(link.standing, Standing::Connected { .. }));
    assert!(link.counters.bytes_sent > 1_000 && link.counters.blocks_sent == 2);
    assert!(stage.seen.identity.borrow().is_some());
}

#[tokio::test]
async fn a_configuration_comes_in_and_what_became_of_it_goes_back() {
    let mut stage = Stage::new(system()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, _) = stage.session().await;
    let config = Config { version: 6, document: serde_json::json!({"devices": []}) };
    relay.say(ToSatellite::Config(config.clone())).await;
    assert_eq!(tokio::time::timeout(DEADLINE, stage.configs.recv()).await.unwrap(), Some(config));
    let status = ConfigStatus { version: 6, state: ConfigState::Applied, items: vec![] };
    stage.statuses.send(status.clone()).await.unwrap();
    assert_eq!(relay.event().await, ToRelay::ConfigStatus(status.clone()));
    stage.seen.refresh.notify_one();
    assert!(matches!(relay.event().await, ToRelay::Authenticate(_)), "a refresh asks again");
    drop(relay);
    let (mut relay, _) = stage.session().await;
    assert_eq!(relay.event().await, ToRelay::ConfigStatus(status), "said again on the next connection");
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_on_the_next_connection() {
    let mut stage = Stage::new(system()).await;
    stage.commit().await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, _) = stage.session().await;
    relay.frame().await;
    assert_eq!(relay.frame().await.first_seq, 1);
    drop(relay);
    let (mut relay, _) = stage.session().await;
    assert_eq!(relay.frame().await.kind, FrameKind::Series, "series are announced anew");
    assert_eq!(relay.frame().await.first_seq, 1);
}

#[tokio::test]
async fn a_stop_sends_what_is_buffered_and_waits_for_the_acknowledgement() {
    let mut stage = Stage::new(system()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, _) = stage.session().await;
    stage.until("connected", |link| matches!(link.standing, Standing::Connected { .. })).await;
    stage.commit().await;
    stage.shutdown.cancel();
    relay.frame().await;
    assert_eq!(relay.frame().await.first_seq, 1);
    assert!(stage.ended.try_recv().is_err(), "not before the acknowledgement");
    relay.ack(stage.epoch, 1, 3).await;
    while relay.message().await.is_some_and(|message| !message.is_close()) {}
    tokio::time::timeout(DEADLINE, stage.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_without_a_link_is_at_once() {
    let stage = Stage::new(system()).await;
    stage.shutdown.cancel();
    tokio::time::timeout(DEADLINE, stage.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_session_and_taken_into_use() {
    let clock = Arc::new(ManualClock::new(now_ms(), 1_000));
    let stage = Stage::new(clock.clone()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let mut relay = stage.greeted().await;
    assert!(matches!(relay.event().await, ToRelay::Authenticate(_)));
    relay.welcome(clock.now().wall_ms).await;
    let ToRelay::Renew(Renew { csr }) = relay.event().await else { panic!("RENEW when it is time") };
    let keystore = Keystore::new(stage.dir.path());
    assert_eq!(keystore.load().unwrap().identity.unwrap().generation, 1, "the old one stays until the new one is here");
    let certificate = Certificate {
        chain: stage.authority.issue(&csr, GOOD),
        ca_bundle: stage.authority.pem.clone(),
        generation: 2,
        not_after_ms: now_ms() + 600_000_000,
        renew_after_ms: now_ms() + 300_000_000,
    };
    relay.say(ToSatellite::Certificate(certificate)).await;
    eventually("the new certificate is kept", || {
        keystore.load().unwrap().identity.is_some_and(|identity| identity.generation == 2)
    })
    .await;
    eventually("others see it", || stage.seen.identity.borrow().as_ref().is_some_and(|it| it.generation == 2)).await;
    // Within a minute it comes back with the new one.
    for _ in 0..7 {
        clock.advance(10_000);
        relay.0.send(Message::Ping(vec![].into())).await.ok();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    detached(async move { while relay.message().await.is_some() {} });
    let mut relay = tokio::select! {
        relay = stage.greeted() => relay,
        () = async { loop { clock.advance(500); tokio::time::sleep(Duration::from_millis(50)).await; } } => unreachable!(),
    };
    let ToRelay::Authenticate(who) = relay.event().await else { panic!("AUTHENTICATE comes first") };
    assert_eq!(who.generation, 2);
}

#[tokio::test]
async fn a_certificate_that_nobody_asked_for_is_not_taken() {
    let stage = Stage::new(system()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, _) = stage.session().await;
    let certificate = Certificate {
        chain: stage.authority.issue(&Key::generate().unwrap().request().unwrap(), GOOD),
        ca_bundle: stage.authority.pem.clone(),
        generation: 9,
        not_after_ms: 2,
        renew_after_ms: 1,
    };
    relay.say(ToSatellite::Certificate(certificate)).await;
    let link = stage.until("it says so", |link| link.counters.problem.is_some()).await;
    assert!(link.counters.problem.unwrap().contains("nobody had asked"));
    assert_eq!(Keystore::new(stage.dir.path()).load().unwrap().identity.unwrap().generation, 1);
}

#[tokio::test]
async fn a_refusal_is_shown_and_polling_is_not_its_concern() {
    let stage = Stage::new(system()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let mut relay = stage.greeted().await;
    relay.event().await;
    let refused = Refused { code: RefusalCode::Revoked, message: "revoked by bob".into(), retry_after_s: 0 };
    relay.say(ToSatellite::Refused(refused)).await;
    let link = stage.until("it is shown", |link| matches!(link.standing, Standing::Disconnected { .. })).await;
    let Standing::Disconnected { why, next_try_ms, .. } = link.standing else { panic!() };
    assert!(why.contains("revoked by bob"));
    assert!((2_800_000..4_400_000).contains(&(next_try_ms - now_ms())), "about an hour");
}

#[tokio::test]
async fn an_ended_certificate_is_recovered_over_the_web_door_before_the_session() {
    use satellite_shared::enrolment::{Challenge, Enrolled, RecoverRequest};

    let stage = Stage::new(system()).await;
    let web = Server::start(stage.authority.server(GOOD, false)).await;
    let mut old = stage.authority.identity(stage.server.address, ENDED);
    old.renew_after_ms = old.not_after_ms - 1;
    old.relay = format!("https://{}", web.address);
    stage.enrol(old.clone());
    let challenge = serde_json::to_string(&Challenge { nonce: "ab".repeat(32) }).unwrap();
    tokio::time::timeout(DEADLINE, web.answer("200 OK", &challenge)).await.unwrap();
    let mut stream = web.accept().await.unwrap();
    let text = read_request(&mut stream).await;
    let request: RecoverRequest = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let enrolled = Enrolled {
        satellite: old.satellite.clone(),
        lease: old.lease.clone(),
        name: old.name.clone(),
        token: old.token.clone(),
        session_url: old.session_url.clone(),
        chain: stage.authority.issue(&request.csr, GOOD),
        ca_bundle: stage.authority.pem.clone(),
        generation: 2,
        not_after_ms: now_ms() + 600_000_000,
        renew_after_ms: now_ms() + 300_000_000,
    };
    reply(&mut stream, "200 OK", &serde_json::to_string(&enrolled).unwrap()).await;
    let (_relay, who) = stage.session().await;
    assert_eq!(who.generation, 2);
}

#[tokio::test]
async fn another_lease_is_noticed_and_a_removed_one_too() {
    let stage = Stage::new(system()).await;
    stage.enrol(stage.authority.identity(stage.server.address, GOOD));
    let (mut relay, _) = stage.session().await;
    let mut other = stage.authority.identity(stage.server.address, GOOD);
    other.generation = 7;
    stage.enrol(other);
    detached(async move { while relay.message().await.is_some() {} });
    let (mut relay, who) = stage.session().await;
    assert_eq!(who.generation, 7);
    Keystore::new(stage.dir.path()).remove().unwrap();
    detached(async move { while relay.message().await.is_some() {} });
    stage.until("it says so", |link| matches!(link.standing, Standing::NoLease { .. })).await;
    assert!(stage.seen.identity.borrow().is_none());
}
