//! Sessions over real TLS on loopback, with satellites that behave and satellites that don't.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use object_store::memory::InMemory;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use satellite_shared::clock::{Clock, Now, SystemClock};
use satellite_shared::enrolment::EnrolRequest;
use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::{Epoch, LeaseId, SatelliteId};
use satellite_shared::metric::{Kind, Series};
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::block::{Body, ClockQuality, Encoder, Group, Stamp};
use satellite_shared::wire::to_relay::{Authenticate, Complaint, ConfigState, ConfigStatus, Renew, Stream, ToRelay};
use satellite_shared::wire::to_satellite::{NackCode, RefusalCode, ToSatellite};
use satellite_shared::wire::version;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Changes, Door, Limits, Parts, Roster};
use crate::authority::{self, Authority, Names};
use crate::data_dir::DataDir;
use crate::enrolment::{self, Enrolment, SessionUrl};
use crate::ingest::{self, Committer};
use crate::registry::leases::NewLease;
use crate::registry::{CertificateState, Registry, random, sha256_hex};
use crate::sink::archive::Store;

const EPOCH: Epoch = Epoch(77);
const PATIENCE: Duration = Duration::from_secs(20);

/// A relay's satellite door, and all that it needs.
struct Relay {
    address: SocketAddr,
    registry: Registry,
    enrolment: Enrolment,
    roster: Roster,
    authority: Authority,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    _folder: TempDir,
}

impl Relay {
    async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    async fn start_with(limits: Limits) -> Self {
        Self::start_committing(limits, Duration::from_millis(200)).await
    }

    async fn start_committing(limits: Limits, commit_every: Duration) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default()); // another test may have been first
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(folder.path()).unwrap();
        let registry = Registry::open(folder.path()).await.unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let authority = Authority::load_or_create(&data_dir, clock.now().wall_ms).unwrap();
        authority.renew_server_certificate(&Names::of_this_machine(), clock.now().wall_ms).unwrap();
        let store = Store::new(Arc::new(InMemory::new()), "memory".into());
        let settings = ingest::Settings { commit_every, ..ingest::Settings::default() };
        let (ingest, committer) =
            Committer::open(&data_dir, "relay-test".into(), registry.clone(), store, Arc::clone(&clock), settings)
                .unwrap();
        let session_url = SessionUrl::Fixed("wss://localhost".into());
        let enrolment =
            Enrolment::new(registry.clone(), authority.clone(), Arc::clone(&clock), session_url, &enrolment_limits());
        let (shutdown, tasks, roster) = (CancellationToken::new(), TaskTracker::new(), Roster::default());
        let door = Door::new(Parts {
            relay: "test".into(),
            registry: registry.clone(),
            ingest,
            enrolment: enrolment.clone(),
            roster: roster.clone(),
            clock: Arc::clone(&clock),
            limits,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(authority.server_config(authority::Door::Satellites, clock).unwrap());
        tasks.spawn(Changes::new(registry.clone(), roster.clone()).run(shutdown.clone()));
        tasks.spawn(committer.run(shutdown.clone()));
        tasks.spawn(listen(listener, acceptor, door, tasks.clone(), shutdown.clone()));
        Self { address, registry, enrolment, roster, authority, shutdown, tasks, _folder: folder }
    }

    /// Enrols a satellite as the web door would.
    async fn enrol(&self, name: &str) -> Identity {
        let now_ms = SystemClock.now().wall_ms;
        let token = Token::from_bits(TokenKind::Lease, random());
        let lease = NewLease {
            id: LeaseId::from_bits(random()),
            satellite: SatelliteId::from_bits(random()),
            name: name.into(),
            token_sha256: sha256_hex(token.expose().as_bytes()),
            relay_url: "https://127.0.0.1".into(),
            now_ms,
            expires_at_ms: now_ms + 3_600_000,
            replace: true,
        };
        self.registry.create_lease(&lease).await.unwrap();
        let (key, csr) = request_for_key();
        let (hostname, agent_version) = ("nas".into(), "0.1.0".into());
        let request = EnrolRequest { lease: lease.id, token, csr, hostname, agent_version };
        let enrolled = self.enrolment.enrol(&request, [127, 0, 0, 1].into()).await.unwrap();
        Identity {
            tls: client_config(&key, &enrolled.chain, &enrolled.ca_bundle),
            satellite: enrolled.satellite,
            lease: enrolled.lease,
            token: enrolled.token,
            generation: enrolled.generation,
        }
    }

    async fn tls(&self, identity: &Identity) -> TlsStream<TcpStream> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&identity.tls)).connect(name, tcp).await.unwrap()
    }

    async fn upgrade(&self, identity: &Identity, request: Request) -> Result<Wire, WsError> {
        let stream = self.tls(identity).await;
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Wire { socket })
    }

    async fn connect(&self, identity: &Identity) -> Wire {
        let mut wire = self.upgrade(identity, request(version::PATH)).await.unwrap();
        let ToSatellite::Hello(_) = wire.hear().await else { panic!("HELLO comes first") };
        wire
    }

    async fn authenticated(&self, identity: &Identity) -> Wire {
        let mut wire = self.connect(identity).await;
        wire.say(&ToRelay::Authenticate(identity.authenticate("1"))).await;
        let ToSatellite::Authenticated(said) = wire.hear().await else { panic!("AUTHENTICATED") };
        assert_eq!(said.satellite, identity.satellite);
        wire
    }

    async fn state(&self, identity: &Identity, generation: u64) -> CertificateState {
        let row = self.registry.certificate_of(&identity.satellite, generation).await.unwrap();
        row.unwrap().state
    }

    async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        timeout(PATIENCE, self.tasks.wait()).await.expect("all tasks end");
    }
}

#[derive(Clone)]
struct Identity {
    satellite: SatelliteId,
    lease: LeaseId,
    token: Token,
    generation: u64,
    tls: Arc<ClientConfig>,
}

impl Identity {
    fn authenticate(&self, instance: &str) -> Authenticate {
        Authenticate {
            protocol: 1,
            lease: self.lease.clone(),
            token: self.token.clone(),
            agent_version: "0.1.0".into(),
            hostname: "nas".into(),
            instance: instance.into(),
            clock_ms: 0,
            config_version: 0,
            generation: self.generation,
            streams: vec![Stream { epoch: EPOCH, boot_id: String::new(), opened_ms: 0, first_seq: 1, last_seq: 9 }],
        }
    }
}

fn enrolment_limits() -> enrolment::Limits {
    enrolment::Limits { per_second: 1_000.0, burst: 1_000, ..enrolment::Limits::default() }
}

async fn listen(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    door: Door,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) {
    loop {
        let (tcp, peer) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            () = shutdown.cancelled() => return,
        };
        let (acceptor, door, shutdown) = (acceptor.clone(), door.clone(), shutdown.clone());
        tasks.spawn(async move {
            if let Ok(stream) = acceptor.accept(tcp).await {
                door.serve(stream, peer, shutdown).await;
            }
        });
    }
}

fn request_for_key() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

fn client_config(key: &KeyPair, chain: &str, ca_bundle: &str) -> Arc<ClientConfig> {
    let certificates = |pem: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(ca_bundle) {
        roots.add(authority).unwrap();
    }
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(certificates(chain), key).unwrap())
}

/// A satellite's end, which says what it is told to.
struct Wire {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl Wire {
    async fn say(&mut self, event: &ToRelay) {
        self.text(&serde_json::to_string(event).unwrap()).await;
    }

    async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    async fn send(&mut self, frame: Vec<u8>) {
        self.socket.send(Message::binary(frame)).await.unwrap();
    }

    /// The next event; none when the relay has closed.
    async fn next(&mut self) -> Option<ToSatellite> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("the relay says something") {
                Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(other)) => panic!("{other:?}"),
            }
        }
    }

    async fn hear(&mut self) -> ToSatellite {
        self.next().await.expect("an event, not the end")
    }

    async fn hear_refusal(&mut self) -> RefusalCode {
        let ToSatellite::Refused(refused) = self.hear().await else { panic!("REFUSED") };
        assert_eq!(self.next().await, None, "the relay closes after REFUSED");
        refused.code
    }

    async fn hear_complaint_and_end(&mut self) -> String {
        let ToSatellite::Error(Complaint { code, .. }) = self.hear().await else { panic!("ERROR") };
        assert_eq!(self.next().await, None, "the relay closes after this ERROR");
        code
    }

    /// Waits until so many records are acknowledged; gives the ranges.
    async fn hear_acks(&mut self, records: u64) -> Vec<(u64, u64)> {
        let mut stored = satellite_shared::ranges::Ranges::default();
        while stored.len() < records {
            let ToSatellite::Ack(ack) = self.hear().await else { panic!("ACK") };
            for &(first, last) in ack.stored.iter().flat_map(|one| one.ranges.as_slice()) {
                stored.insert(first, last);
            }
        }
        stored.as_slice().to_vec()
    }
}

fn request(path: &str) -> Request {
    let mut request = format!("wss://localhost{path}").into_client_request().unwrap();
    let protocol = HeaderValue::from_static(version::SUBPROTOCOL);
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    request
}

fn frame(first_seq: u64, body: &Body) -> Vec<u8> {
    let made = Now { wall_ms: SystemClock.now().wall_ms, mono_ms: 0 };
    let due_before = first_seq.saturating_sub(1);
    let stamp = Stamp { epoch: EPOCH, first_seq, due_before, made, quality: ClockQuality::Synchronised };
    Encoder::default().encode(stamp, body)
}

fn series(first: u32) -> Body {
    let one = |number: u32| Series {
        device: "nas".parse().unwrap(),
        name: format!("node_metric_{number}"),
        kind: Kind::Gauge,
        unit: String::new(),
        labels: vec![],
    };
    Body::Series((first..first + 2).map(one).collect())
}

fn samples(count: u16) -> Body {
    let now_ms = SystemClock.now().wall_ms;
    let times_ms: Vec<i64> = (0..i64::from(count)).map(|n| now_ms + n).collect();
    let values = times_ms.iter().map(|_| 0.5).collect();
    Body::Samples(vec![Group { series: vec![0], times_ms, values }])
}

fn gap() -> Body {
    let now_ms = SystemClock.now().wall_ms;
    Body::Gaps(vec![Gap {
        device: None,
        metric: None,
        from_ms: now_ms,
        to_ms: now_ms,
        count: 1,
        reason: Reason::Stopped,
        detail: "x".repeat(100),
        lost: None,
    }])
}

fn short() -> Limits {
    Limits {
        upgrade: Duration::from_secs(1),
        authenticate: Duration::from_secs(1),
        silence_max: Duration::from_millis(2_500),
        ping_every: Duration::from_millis(500),
        heartbeat_every: Duration::from_millis(700),
        ..Limits::default()
    }
}

async fn http_status(relay: &Relay, identity: &Identity, request: Request) -> u16 {
    match relay.upgrade(identity, request).await {
        Err(WsError::Http(response)) => response.status().as_u16(),
        Err(other) => panic!("an HTTP answer, not {other}"),
        Ok(_) => 101,
    }
}

#[tokio::test]
async fn what_is_not_a_satellites_upgrade_is_refused_by_http() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    assert_eq!(http_status(&relay, &identity, request("/")).await, 404);
    assert_eq!(http_status(&relay, &identity, request("/v1/satellite?token=x")).await, 404);
    let mut browser = request(version::PATH);
    browser.headers_mut().insert(header::ORIGIN, HeaderValue::from_static("https://example.org"));
    assert_eq!(http_status(&relay, &identity, browser).await, 403);
    let mut stranger = request(version::PATH);
    stranger.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("chat"));
    assert_eq!(http_status(&relay, &identity, stranger).await, 400);
    assert_eq!(http_status(&relay, &identity, request(version::PATH)).await, 101);
    relay.stop().await;
}

#[tokio::test]
async fn who_is_silent_after_tls_or_after_hello_is_closed() {
    let relay = Relay::start_with(short()).await;
    let identity = relay.enrol("nas").await;
    let mut silent = relay.tls(&identity).await;
    let read = timeout(PATIENCE, silent.read(&mut [0; 100])).await.expect("closed after the upgrade's time");
    assert!(matches!(read, Ok(0) | Err(_)));
    let mut slow = relay.tls(&identity).await;
    slow.write_all(b"GET /v1/satellite HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    assert!(matches!(timeout(PATIENCE, slow.read(&mut [0; 100])).await.unwrap(), Ok(0) | Err(_)));
    let mut wire = relay.connect(&identity).await;
    assert_eq!(wire.hear_refusal().await, RefusalCode::Protocol);
    relay.stop().await;
}

#[tokio::test]
async fn a_certificate_that_the_registry_does_not_know_is_refused_whatever_tls_says() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let (key, csr) = request_for_key();
    let now_ms = SystemClock.now().wall_ms;
    let issued = relay.authority.issue_client(&identity.satellite, &csr, now_ms).unwrap();
    let tls = client_config(&key, &issued.chain, relay.authority.ca_bundle());
    let mut wire = relay.connect(&Identity { tls, ..identity }).await;
    assert_eq!(wire.hear_refusal().await, RefusalCode::Credentials);
    relay.stop().await;
}

#[tokio::test]
async fn another_satellites_token_or_lease_is_refused() {
    let relay = Relay::start().await;
    let (mine, other) = (relay.enrol("nas").await, relay.enrol("other").await);
    let mixed = [
        Identity { token: other.token.clone(), ..mine.clone() },
        Identity { lease: other.lease.clone(), ..mine.clone() },
        Identity { tls: other.tls.clone(), ..mine.clone() },
    ];
    for identity in mixed {
        let mut wire = relay.connect(&identity).await;
        wire.say(&ToRelay::Authenticate(identity.authenticate("1"))).await;
        assert_eq!(wire.hear_refusal().await, RefusalCode::Credentials);
    }
    assert!(relay.roster.connected().is_empty());
    relay.stop().await;
}

#[tokio::test]
async fn records_are_acknowledged_and_not_asked_for_again() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    assert_eq!(relay.roster.connected()[0].satellite, identity.satellite);
    wire.send(frame(0, &series(0))).await;
    wire.send(frame(1, &samples(10))).await;
    wire.send(frame(11, &gap())).await;
    assert_eq!(wire.hear_acks(11).await, [(1, 11)]);
    drop(wire);
    let mut wire = relay.connect(&identity).await;
    wire.say(&ToRelay::Authenticate(identity.authenticate("1"))).await;
    let ToSatellite::Authenticated(said) = wire.hear().await else { panic!("AUTHENTICATED") };
    assert_eq!(said.stored[0].ranges.as_slice(), [(1, 11)]);
    relay.stop().await;
}

#[tokio::test]
async fn a_block_is_stored_once_and_a_forged_overlap_is_refused() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    wire.send(frame(0, &series(0))).await;
    let block = frame(1, &samples(10));
    wire.send(block.clone()).await;
    wire.hear_acks(10).await;
    wire.send(block).await;
    assert_eq!(wire.hear_acks(10).await, [(1, 10)]);
    wire.send(frame(6, &samples(10))).await;
    let ToSatellite::Nack(nack) = wire.hear().await else { panic!("NACK") };
    assert_eq!((nack.code, nack.first_seq), (NackCode::Conflict, 6));
    relay.stop().await;
}

#[tokio::test]
async fn more_blocks_than_the_ingest_holds_at_once_are_all_acknowledged() {
    let limits =
        Limits { ping_every: Duration::from_millis(500), heartbeat_every: Duration::from_millis(500), ..short() };
    let relay = Relay::start_with(limits).await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let whole: Vec<Vec<u8>> = (0..300).map(|n| frame(1 + n, &gap())).collect();
    for frame in &whole {
        wire.socket.feed(Message::binary(frame.clone())).await.unwrap();
    }
    wire.socket.flush().await.unwrap();
    let mut stored = satellite_shared::ranges::Ranges::default();
    while stored.len() < 300 {
        if let ToSatellite::Ack(ack) = wire.hear().await {
            ack.stored[0].ranges.as_slice().iter().for_each(|&(first, last)| stored.insert(first, last));
        }
    }
    assert_eq!(stored.as_slice(), [(1, 300)]);
    relay.stop().await;
}

#[tokio::test]
async fn series_must_be_announced_on_each_connection() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    wire.send(frame(0, &series(0))).await;
    drop(wire);
    let mut wire = relay.authenticated(&identity).await;
    wire.send(frame(1, &samples(2))).await;
    let ToSatellite::Nack(nack) = wire.hear().await else { panic!("NACK") };
    assert_eq!(nack.code, NackCode::UnknownSeries);
    wire.send(frame(0, &series(0))).await;
    wire.send(frame(1, &samples(2))).await;
    wire.hear_acks(2).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_decompression_bomb_is_set_aside_and_the_stream_goes_on() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    wire.send(bomb(1)).await;
    wire.send(frame(2, &gap())).await;
    assert_eq!(wire.hear_acks(2).await, [(1, 2)]);
    relay.stop().await;
}

/// A frame as a satellite would make it, but its payload grows to sixteen megabytes.
fn bomb(first_seq: u64) -> Vec<u8> {
    let many = Gap {
        device: None,
        metric: Some("a".repeat(16 << 20)),
        from_ms: 0,
        to_ms: 0,
        count: 1,
        reason: Reason::Stopped,
        detail: String::new(),
        lost: None,
    };
    let frame = frame(first_seq, &Body::Gaps(vec![many]));
    assert!(frame.len() < 7_000, "{} bytes", frame.len());
    frame
}

#[tokio::test]
async fn a_damaged_frame_closes() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let mut damaged = frame(1, &gap());
    damaged[90] ^= 1;
    wire.send(damaged).await;
    assert_eq!(wire.hear_complaint_and_end().await, "damaged");
    relay.stop().await;
}

#[tokio::test]
async fn an_oversized_message_closes_with_the_reason() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let flood = Message::binary(vec![0; 300 << 10]);
    drop(wire.socket.send(flood).await); // the relay may have closed before all of it was taken
    assert_eq!(wire.hear_complaint_and_end().await, "malformed");

    let mut wire = relay.authenticated(&identity).await;
    wire.text(&format!("{{\"event\":\"{}\"}}", "x".repeat(290_000))).await;
    assert_eq!(wire.hear_complaint_and_end().await, "malformed");
    relay.stop().await;
}

#[tokio::test]
async fn fragments_without_end_close() {
    let relay = Relay::start_with(Limits { unfinished_bytes_max: 20_000, ..Limits::default() }).await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let first = Frame::message(Bytes::new(), OpCode::Data(Data::Text), false);
    wire.socket.send(Message::Frame(first)).await.unwrap();
    for _ in 0..10_000 {
        let more = Frame::message(Bytes::new(), OpCode::Data(Data::Continue), false);
        if wire.socket.send(Message::Frame(more)).await.is_err() {
            break;
        }
    }
    assert_eq!(wire.hear_complaint_and_end().await, "malformed");
    relay.stop().await;
}

#[tokio::test]
async fn text_that_is_no_utf8_or_no_event_closes_in_the_end() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let broken = Frame::message(Bytes::from_static(&[0xff, 0xfe]), OpCode::Data(Data::Text), true);
    wire.socket.send(Message::Frame(broken)).await.unwrap();
    assert_eq!(wire.hear_complaint_and_end().await, "malformed");

    let mut wire = relay.authenticated(&identity).await;
    wire.text(r#"{"event":"NEWS","data":[]}"#).await;
    let ToSatellite::Error(complaint) = wire.hear().await else { panic!("ERROR") };
    assert_eq!(complaint.code, "unsupported");
    for _ in 0..9 {
        wire.text("{").await;
    }
    for _ in 0..8 {
        assert!(matches!(wire.hear().await, ToSatellite::Error(_)));
    }
    assert_eq!(wire.hear_complaint_and_end().await, "malformed");
    relay.stop().await;
}

#[tokio::test]
async fn a_flood_over_the_credit_closes() {
    let limits = Limits { credit_bytes_max: 2_000, ..Limits::default() };
    let relay = Relay::start_committing(limits, Duration::from_secs(60)).await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    for seq in 1..400 {
        let flood = wire.socket.feed(Message::binary(frame(seq, &gap()))).await;
        if flood.is_err() {
            break;
        }
    }
    drop(wire.socket.flush().await); // the relay may have closed already
    let mut codes = Vec::new();
    while let Some(event) = wire.next().await {
        if let ToSatellite::Error(complaint) = event {
            codes.push(complaint.code);
        }
    }
    assert_eq!(codes, ["over_credit"]);
    relay.stop().await;
}

#[tokio::test]
async fn a_half_open_connection_is_noticed_and_a_live_one_is_kept() {
    let relay = Relay::start_with(short()).await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let start = Instant::now();
    let mut heartbeats = 0;
    while start.elapsed() < Duration::from_secs(4) {
        // Reading answers the pings.
        if let ToSatellite::Heartbeat(_) = wire.hear().await {
            heartbeats += 1;
        }
    }
    assert!(heartbeats >= 3, "{heartbeats}");
    assert_eq!(relay.roster.connected().len(), 1);
    until(|| relay.roster.connected().is_empty()).await;
    relay.stop().await;
}

async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it did not come to pass");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_revoked_satellite_is_closed_within_five_seconds_and_not_let_in_again() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    let start = Instant::now();
    relay.registry.revoke_satellite(&identity.satellite, SystemClock.now().wall_ms).await.unwrap();
    assert_eq!(wire.hear_refusal().await, RefusalCode::Revoked);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let mut again = relay.connect(&identity).await;
    assert_eq!(again.hear_refusal().await, RefusalCode::Revoked);
    relay.stop().await;
}

#[tokio::test]
async fn a_satellite_that_enrols_anew_ends_the_session_of_its_old_identity() {
    let relay = Relay::start().await;
    let old = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&old).await;
    let new = relay.enrol("nas").await;
    assert_eq!(new.satellite, old.satellite);
    assert_eq!(wire.hear_refusal().await, RefusalCode::StaleCertificate);
    drop(relay.authenticated(&new).await);
    relay.stop().await;
}

#[tokio::test]
async fn a_renewed_certificate_becomes_current_when_it_is_used_and_the_old_one_stays_good_for_the_overlap() {
    let relay = Relay::start().await;
    let old = relay.enrol("nas").await;
    let (key, csr) = request_for_key();
    let mut wire = relay.authenticated(&old).await;
    wire.say(&ToRelay::Renew(Renew { csr: csr.clone() })).await;
    let ToSatellite::Certificate(certificate) = wire.hear().await else { panic!("CERTIFICATE") };
    wire.say(&ToRelay::Renew(Renew { csr })).await;
    assert!(matches!(wire.hear().await, ToSatellite::Error(complaint) if complaint.code == "rate_limited"));
    assert_eq!(relay.state(&old, certificate.generation).await, CertificateState::PendingUse);

    let tls = client_config(&key, &certificate.chain, &certificate.ca_bundle);
    let new = Identity { tls, generation: certificate.generation, ..old.clone() };
    drop(relay.authenticated(&old).await);
    drop(relay.authenticated(&new).await);
    assert_eq!(relay.state(&old, new.generation).await, CertificateState::Current);
    assert_eq!(relay.state(&old, old.generation).await, CertificateState::Overlap);
    drop(relay.authenticated(&old).await);
    relay.stop().await;
}

#[tokio::test]
async fn a_certificate_that_was_replaced_long_ago_is_stale() {
    let relay = Relay::start().await;
    let old = relay.enrol("nas").await;
    drop(relay.authenticated(&old).await);
    let (_, csr) = request_for_key();
    let next = relay.enrolment.renew(&old.satellite, &csr).await.unwrap();
    let long_ago_ms = SystemClock.now().wall_ms - 3_600_000;
    relay.registry.certificate_used(&old.satellite, next.generation, long_ago_ms).await.unwrap();
    let mut wire = relay.connect(&old).await;
    assert_eq!(wire.hear_refusal().await, RefusalCode::StaleCertificate);
    relay.stop().await;
}

#[tokio::test]
async fn a_request_that_is_none_gets_no_certificate_and_the_session_stays() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    wire.say(&ToRelay::Renew(Renew { csr: "please".into() })).await;
    assert!(matches!(wire.hear().await, ToSatellite::Error(complaint) if complaint.code == "renewal"));
    wire.send(frame(1, &gap())).await;
    wire.hear_acks(1).await;
    relay.stop().await;
}

#[tokio::test]
async fn the_newest_connection_wins_and_machines_that_take_turns_both_lose() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut before: Option<Wire> = None;
    for instance in ["a", "b", "a", "b"] {
        let mut wire = relay.connect(&identity).await;
        wire.say(&ToRelay::Authenticate(identity.authenticate(instance))).await;
        assert!(matches!(wire.hear().await, ToSatellite::Authenticated(_)));
        if let Some(mut before) = before.replace(wire) {
            assert_eq!(before.hear_refusal().await, RefusalCode::Superseded);
        }
    }
    let mut wire = relay.connect(&identity).await;
    wire.say(&ToRelay::Authenticate(identity.authenticate("a"))).await;
    assert_eq!(wire.hear_refusal().await, RefusalCode::Conflict);
    assert_eq!(before.unwrap().hear_refusal().await, RefusalCode::Conflict);
    assert!(relay.roster.connected().is_empty());
    relay.stop().await;
}

#[tokio::test]
async fn a_config_reaches_an_absent_satellite_when_it_comes_and_a_connected_one_at_once() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let now_ms = SystemClock.now().wall_ms;
    let document = serde_json::json!({ "device": {}, "text": "x".repeat(100_000) });
    relay.registry.set_config(&identity.satellite, &document, now_ms).await.unwrap();
    let mut wire = relay.authenticated(&identity).await;
    let ToSatellite::Config(first) = wire.hear().await else { panic!("CONFIG") };
    assert_eq!((first.version, &first.document), (1, &document));

    relay.registry.set_config(&identity.satellite, &serde_json::json!({}), now_ms).await.unwrap();
    let ToSatellite::Config(second) = wire.hear().await else { panic!("CONFIG") };
    assert_eq!(second.version, 2);

    wire.say(&ToRelay::Authenticate(Authenticate { config_version: 2, ..identity.authenticate("1") })).await;
    assert!(matches!(wire.hear().await, ToSatellite::Authenticated(_)));
    assert!(matches!(wire.hear().await, ToSatellite::Config(again) if again.version == 2));

    let status = ConfigStatus { version: 2, state: ConfigState::Applied, items: vec![] };
    wire.say(&ToRelay::ConfigStatus(status.clone())).await;
    wire.text("{}").await;
    assert!(matches!(wire.hear().await, ToSatellite::Error(_)), "what was said before is done");
    let kept = relay.registry.satellite(&identity.satellite).await.unwrap().unwrap();
    assert_eq!(kept.config_status, Some(status));
    relay.stop().await;
}

#[tokio::test]
async fn a_drain_says_when_to_come_back_acknowledges_what_it_took_and_closes() {
    let relay = Relay::start().await;
    let identity = relay.enrol("nas").await;
    let mut wire = relay.authenticated(&identity).await;
    wire.send(frame(1, &gap())).await;
    wire.text("{}").await;
    let mut events = vec![wire.hear().await];
    relay.shutdown.cancel();
    while let Some(event) = wire.next().await {
        events.push(event);
    }
    assert!(events.iter().any(|event| matches!(event, ToSatellite::Drain(drain) if drain.spread_ms == 30_000)));
    assert!(events.iter().any(|event| matches!(event, ToSatellite::Ack(_))), "{events:?}");
    relay.stop().await;
}
