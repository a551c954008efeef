//! Many satellites at one relay, as load: real mTLS, real sessions, blocks that were encoded before.
//!
//! Nothing here polls, buffers or decides; a [`Member`] is an identity, a [`Client`] one connection of it. What the
//! relay costs is read from outside by [`usage`], so that the generator's own work is never in the figure.
//!
//! ```text
//! let target = Target::start(&programs()?.relay, dir, "")?;         // a relay without a link between
//! let fleet = Fleet::enrol(&target.data_dir(), target.address(), 100).await?;
//! let recording = Recording::new(&Shape::live(1_000), 600)?;        // 600 blocks of 1,000 samples
//! let before = usage::cpu(target.id())?;
//! let sent = fleet.stream(&recording).await?;                       // ends when all is acknowledged
//! let used = usage::cpu(target.id())? - before;                     // used / sent.samples
//!
//! let idle = fleet.idle(16).await?;                                 // all connected, pings answered, until dropped
//! let shaken = fleet.handshakes(1_000, 8).await?;                   // connect, authenticate, leave
//! let held = fleet.hold(Duration::from_secs(5));                    // comes back whenever it is cut
//! held.wait_for(2_000, within).await?;
//! ```
//!
//! Identities are written into the relay's registry with its own library, before it starts or while it runs: thousands
//! of enrolments over the web door would be refused as a flood, rightly. All members send the same recording, with the
//! same epoch: what is stored is told apart by the satellite.

pub mod recording;

pub mod usage;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use satellite_agent::credential::key::Key;
use satellite_relay::authority::Authority;
use satellite_relay::data_dir::DataDir;
use satellite_relay::registry::{Claim, NewLease, Registry, sha256_hex};
use satellite_relay::relay::Addresses;
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::to_relay::{Authenticate, Stream, ToRelay};
use satellite_shared::wire::to_satellite::{Authenticated, ToSatellite};
use satellite_shared::wire::version;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Message};

pub use self::recording::{Recording, Shape};
use crate::process::Process;
use crate::relay::START_WITHIN;
use crate::rounds::Dice;
use crate::wait;

/// Lines of the relay's settings that let a whole fleet in from one address.
pub const ROOM: &str = "[limits]\nconnections = 20000\nconnections_per_address = 20000\n";
/// What a connection may take until it is authenticated: a queue of thousands on a busy machine.
const CONNECT_WITHIN: Duration = Duration::from_secs(120);
/// What the next acknowledgement may take.
const ACK_WITHIN: Duration = Duration::from_secs(180);
/// File handles that a fleet and its relay may need.
const FILES: u64 = 65_536;

/// A relay that is reached without a link between, so that nothing but it is metered.
#[derive(Debug)]
pub struct Target {
    data_dir: PathBuf,
    process: Process,
    addresses: Addresses,
}

impl Target {
    /// Starts this program below `dir`; `more_settings` are top-level lines of its settings file.
    ///
    /// # Errors
    /// When it does not open its doors in time.
    pub fn start(program: &Path, dir: &Path, more_settings: &str) -> Result<Self> {
        Self::start_as(&[program.to_owned()], dir, more_settings)
    }

    /// The same, with words before its own arguments: `valgrind --tool=callgrind satellite-relay`.
    ///
    /// # Errors
    /// When it does not open its doors in time.
    pub fn start_as(program: &[PathBuf], dir: &Path, more_settings: &str) -> Result<Self> {
        raise_files()?;
        let [first, more @ ..] = program else { bail!("no program") };
        let (settings, data_dir) = (dir.join("load.toml"), dir.join("data"));
        let listen = "web_listen = \"127.0.0.1:0\"\nsatellites_listen = \"127.0.0.1:0\"\n";
        std::fs::write(&settings, format!("{listen}{more_settings}\n{ROOM}"))?;
        let addresses = data_dir.join("addresses.json");
        if addresses.exists() {
            std::fs::remove_file(&addresses)?;
        }
        let mut command = Command::new(first);
        command.args(more).arg("serve").arg("--data-dir").arg(&data_dir).arg("--settings").arg(&settings);
        let mut process = Process::start("satellite-relay", &mut command, &dir.join("relay.log"))?;
        let addresses = wait::until("the relay's doors", START_WITHIN, || {
            process.check_running()?;
            Ok(std::fs::read(&addresses).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()))
        })?;
        Ok(Self { data_dir, process, addresses })
    }

    /// The satellites' door.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses.satellites
    }

    /// Where it keeps its things.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data_dir.with_file_name("relay.log")
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(Duration::from_secs(60))?;
        ensure!(status.success(), "the relay ended with {status}");
        Ok(())
    }
}

/// As many files as this machine allows; a relay that is started afterwards inherits it.
///
/// # Errors
/// When the kernel does not keep its own promise.
pub fn raise_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |maximum| maximum.min(FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })?;
    }
    Ok(())
}

/// One enrolled satellite.
#[derive(Debug, Clone)]
pub struct Member {
    /// Who.
    pub satellite: SatelliteId,
    /// The lease it enrolled with.
    pub lease: LeaseId,
    /// The token that enrolment gave it.
    pub token: Token,
    /// Random at each start of the program.
    pub instance: String,
    tls: Arc<ClientConfig>,
}

/// Enrolled satellites and the door that they come to.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Who is in it.
    pub members: Vec<Member>,
    /// The satellites' door.
    pub address: SocketAddr,
}

/// What came of a recording.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Samples that were acknowledged.
    pub samples: u64,
    /// Blocks that held them.
    pub blocks: u64,
    /// Bytes of those blocks.
    pub bytes: u64,
    /// From the first connection to the last acknowledgement.
    pub took_ms: u64,
}

impl Fleet {
    /// Writes so many new satellites into the registry below `data_dir`.
    ///
    /// # Errors
    /// When the registry or the authority can't be used.
    pub async fn enrol(data_dir: &Path, address: SocketAddr, count: usize) -> Result<Self> {
        let registry = Registry::open(data_dir).await?;
        let authority = Authority::load_or_create(&DataDir::open(data_dir)?, wait::wall_ms())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.ca_bundle().as_bytes())?)?;
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut dice = Dice::new(wait::wall_ms().unsigned_abs() ^ u64::from(std::process::id()) << 48);
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let new = new_lease(&mut dice);
            registry.create_lease(&new).await?;
            let key = Key::generate()?;
            let issued = authority.issue_client(&new.satellite, &key.request()?, new.now_ms)?;
            let token = Token::from_bits(TokenKind::Satellite, bits(&mut dice));
            let claim = Claim {
                lease: &new.id,
                token_sha256: &new.token_sha256,
                session_token_sha256: &sha256_hex(token.expose().as_bytes()),
                certificate: &issued,
                hostname: "load",
                agent_version: "load",
                now_ms: new.now_ms,
            };
            registry.claim(&claim).await?.context("a new lease is good")?;
            let chain = vec![CertificateDer::from_pem_slice(issued.chain.as_bytes())?];
            let mut tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(Arc::clone(&roots))
                .with_client_auth_cert(chain, key.der()?)?;
            tls.resumption = rustls::client::Resumption::disabled();
            let instance = format!("{:016x}", dice.roll());
            members.push(Member { satellite: new.satellite, lease: new.id, token, instance, tls: Arc::new(tls) });
        }
        registry.pool().close().await;
        Ok(Self { members, address })
    }

    /// The same satellites at another door, or at the same relay after a restart.
    #[must_use]
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { members: self.members.clone(), address }
    }

    /// Only so many of them.
    #[must_use]
    pub fn first(&self, count: usize) -> Self {
        Self { members: self.members.iter().take(count).cloned().collect(), address: self.address }
    }

    /// Each member sends the whole recording as fast as credit allows; ends when all of it is acknowledged.
    ///
    /// # Errors
    /// When a session breaks, something is refused, or nothing is acknowledged for minutes.
    pub async fn stream(&self, recording: &Recording) -> Result<Sent> {
        let started_ms = wait::mono_ms();
        let recording = Arc::new(recording.clone());
        let mut sessions = JoinSet::new();
        for member in self.members.clone() {
            let (address, recording) = (self.address, Arc::clone(&recording));
            sessions.spawn(async move {
                let mut client = Client::connect(&member, address, recording.streams()).await?;
                let sent = client.send_recording(&recording).await?;
                client.close().await;
                Ok::<_, anyhow::Error>(sent)
            });
        }
        let mut all = Sent::default();
        while let Some(sent) = sessions.join_next().await {
            let sent = sent??;
            all.samples += sent.samples;
            all.blocks += sent.blocks;
            all.bytes += sent.bytes;
        }
        all.took_ms = wait::mono_ms() - started_ms;
        Ok(all)
    }

    /// Connects everybody, `parallel` at a time, and keeps them connected and silent until the result is dropped.
    ///
    /// # Errors
    /// When anybody is not let in.
    pub async fn idle(&self, parallel: usize) -> Result<Idle> {
        let mut sessions = JoinSet::new();
        let mut connecting = pin!(self.connecting(parallel));
        // Who is in answers pings from then on: the last may come in minutes after the first.
        while let Some(client) = connecting.next().await {
            sessions.spawn(client?.stay());
        }
        Ok(Idle { sessions })
    }

    /// Connects everybody, `parallel` at a time. Nobody answers pings until their events are asked for.
    ///
    /// # Errors
    /// When anybody is not let in.
    pub async fn connect(&self, parallel: usize) -> Result<Vec<Client>> {
        let clients: Vec<Result<Client>> = self.connecting(parallel).collect().await;
        clients.into_iter().collect()
    }

    fn connecting(&self, parallel: usize) -> impl futures_util::Stream<Item = Result<Client>> {
        let (members, address) = (self.members.clone(), self.address);
        let connecting =
            members.into_iter().map(move |member| async move { Client::connect(&member, address, Vec::new()).await });
        futures_util::stream::iter(connecting).buffer_unordered(parallel.max(1))
    }

    /// So many connections that authenticate and leave, `parallel` at a time, members in turns.
    ///
    /// A member that comes back at once from the same instance is no clone; each member's last connection is closed
    /// before its next begins as long as there are more members than `parallel`.
    ///
    /// # Errors
    /// When anybody is not let in.
    pub async fn handshakes(&self, count: usize, parallel: usize) -> Result<Sent> {
        ensure!(self.members.len() > parallel, "more members than connections at once are needed");
        let started_ms = wait::mono_ms();
        let address = self.address;
        let members = self.members.iter().cycle().take(count).cloned();
        let shaking = members.map(|member| async move {
            Client::connect(&member, address, Vec::new()).await?.close().await;
            Ok::<_, anyhow::Error>(())
        });
        let mut shaken = futures_util::stream::iter(shaking).buffer_unordered(parallel.max(1));
        while let Some(done) = shaken.next().await {
            done?;
        }
        Ok(Sent { took_ms: wait::mono_ms() - started_ms, ..Sent::default() })
    }

    /// Everybody connects and comes back whenever cut, after a random part of `spread`, until the result is dropped.
    #[must_use]
    pub fn hold(&self, spread: Duration) -> Held {
        let counts = Arc::new(Counts::default());
        let mut sessions = JoinSet::new();
        for (seed, member) in (1..).zip(self.members.clone()) {
            sessions.spawn(come_back(member, self.address, spread, Arc::clone(&counts), Dice::new(seed)));
        }
        Held { counts, _sessions: sessions }
    }
}

fn new_lease(dice: &mut Dice) -> NewLease {
    let now_ms = wait::wall_ms();
    let token = Token::from_bits(TokenKind::Lease, bits(dice));
    let satellite = SatelliteId::from_bits(bits(dice));
    NewLease {
        id: LeaseId::from_bits(bits(dice)),
        name: format!("load-{satellite}"),
        satellite,
        token_sha256: sha256_hex(token.expose().as_bytes()),
        relay_url: "https://localhost:1".into(),
        now_ms,
        expires_at_ms: now_ms + 3_600_000,
        replace: false,
    }
}

fn bits<const N: usize>(dice: &mut Dice) -> [u8; N] {
    std::array::from_fn(|_| dice.roll().to_le_bytes()[0])
}

/// Connections that say nothing but pongs; they end when this is dropped.
#[derive(Debug)]
pub struct Idle {
    sessions: JoinSet<()>,
}

impl Idle {
    /// How many still stand.
    pub fn standing(&mut self) -> usize {
        while self.sessions.try_join_next().is_some() {}
        self.sessions.len()
    }
}

/// Members that come back; they end when this is dropped.
#[derive(Debug)]
pub struct Held {
    counts: Arc<Counts>,
    _sessions: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    inside: AtomicUsize,
    admitted: AtomicU64,
    failed: AtomicU64,
}

impl Held {
    /// How many are authenticated now.
    #[must_use]
    pub fn inside(&self) -> usize {
        self.counts.inside.load(Ordering::Relaxed)
    }

    /// How often anybody was let in, and how often somebody was not.
    #[must_use]
    pub fn attempts(&self) -> (u64, u64) {
        (self.counts.admitted.load(Ordering::Relaxed), self.counts.failed.load(Ordering::Relaxed))
    }

    /// Waits until so many are inside at once.
    ///
    /// # Errors
    /// When that does not come about in time.
    pub async fn wait_for(&self, count: usize, within: Duration) -> Result<()> {
        let deadline = wait::Deadline::after(within);
        while self.inside() != count {
            ensure!(!deadline.has_passed(), "{} are inside and not {count}; {:?}", self.inside(), self.attempts());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

async fn come_back(member: Member, address: SocketAddr, spread: Duration, counts: Arc<Counts>, mut dice: Dice) {
    let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
    loop {
        match Client::connect(&member, address, Vec::new()).await {
            Ok(client) => {
                counts.admitted.fetch_add(1, Ordering::Relaxed);
                counts.inside.fetch_add(1, Ordering::Relaxed);
                client.stay().await;
                counts.inside.fetch_sub(1, Ordering::Relaxed);
            }
            Err(_) => drop(counts.failed.fetch_add(1, Ordering::Relaxed)),
        }
        tokio::time::sleep(Duration::from_millis(1 + dice.below(spread_ms))).await;
    }
}

/// One connection that is authenticated.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// What the relay said when it let this one in.
    pub welcome: Authenticated,
}

impl Client {
    /// Connects, upgrades and authenticates.
    ///
    /// # Errors
    /// With the step that failed, or with what the relay refused.
    pub async fn connect(member: &Member, address: SocketAddr, streams: Vec<Stream>) -> Result<Self> {
        let connecting = Box::pin(Self::try_connect(member, address, streams));
        timeout(CONNECT_WITHIN, connecting).await.context("not let in in time")?
    }

    async fn try_connect(member: &Member, address: SocketAddr, streams: Vec<Stream>) -> Result<Self> {
        let tcp = TcpStream::connect(address).await.context("TCP")?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(Arc::clone(&member.tls));
        let stream = tls.connect(ServerName::try_from("localhost")?, tcp).await.context("TLS")?;
        let uri = format!("wss://localhost:{}{}", address.port(), version::PATH).parse()?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(version::SUBPROTOCOL);
        let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await.context("WebSocket")?;
        let mut socket = socket;
        let ToSatellite::Hello(_) = event(&mut socket).await? else { bail!("no HELLO") };
        let authenticate = ToRelay::Authenticate(Authenticate {
            protocol: version::CURRENT,
            lease: member.lease.clone(),
            token: member.token.clone(),
            agent_version: "load".into(),
            hostname: "load".into(),
            instance: member.instance.clone(),
            clock_ms: wait::wall_ms(),
            config_version: 0,
            generation: 1,
            streams,
        });
        socket.send(Message::text(serde_json::to_string(&authenticate)?)).await?;
        let answer = event(&mut socket).await?;
        let ToSatellite::Authenticated(welcome) = answer else { bail!("not let in: {answer:?}") };
        Ok(Self { socket, welcome })
    }

    /// The next event; pings are answered meanwhile.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn event(&mut self) -> Result<ToSatellite> {
        event(&mut self.socket).await
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// When the connection ends.
    pub async fn send(&mut self, frame: Bytes) -> Result<()> {
        Ok(self.socket.send(Message::Binary(frame)).await?)
    }

    /// Announces the series and sends all blocks as credit allows; ends when all of them are acknowledged.
    ///
    /// # Errors
    /// When the connection ends, a block is refused, or nothing is acknowledged for minutes.
    pub async fn send_recording(&mut self, recording: &Recording) -> Result<Sent> {
        let mut credit = self.welcome.credit_bytes;
        for frame in &recording.announcements {
            self.socket.feed(Message::Binary(frame.clone())).await?;
        }
        let mut blocks = recording.blocks.iter().peekable();
        let mut waiting = BTreeMap::new();
        let mut sent = Sent::default();
        let mut outstanding = 0;
        loop {
            while let Some(block) = blocks.next_if(|block| outstanding + block.frame.len() as u64 <= credit) {
                outstanding += block.frame.len() as u64;
                waiting.insert(block.first_seq, block);
                self.socket.feed(Message::Binary(block.frame.clone())).await?;
            }
            self.socket.flush().await?;
            if waiting.is_empty() {
                return Ok(sent);
            }
            match timeout(ACK_WITHIN, self.event()).await.context("nothing was acknowledged for minutes")?? {
                ToSatellite::Ack(ack) => {
                    credit = ack.credit_bytes;
                    let ranges = ack.stored.iter().filter(|stored| stored.epoch == recording.epoch);
                    for &(first, last) in ranges.flat_map(|stored| stored.ranges.as_slice()) {
                        let acknowledged: Vec<u64> = waiting.range(first..=last).map(|(&first, _)| first).collect();
                        for block in acknowledged.iter().filter_map(|first| waiting.remove(first)) {
                            outstanding -= block.frame.len() as u64;
                            sent.samples += block.last_seq - block.first_seq + 1;
                            sent.blocks += 1;
                            sent.bytes += block.frame.len() as u64;
                        }
                    }
                }
                ToSatellite::Nack(nack) => bail!("{nack:?}"),
                ToSatellite::Refused(refused) => bail!("{refused:?}"),
                ToSatellite::Error(complaint) => bail!("{complaint:?}"),
                ToSatellite::Drain(drain) => bail!("{drain:?}"),
                ToSatellite::Hello(_)
                | ToSatellite::Authenticated(_)
                | ToSatellite::Config(_)
                | ToSatellite::Certificate(_)
                | ToSatellite::Heartbeat(_) => {}
            }
        }
    }

    /// Says nothing but pongs until the connection ends.
    pub async fn stay(mut self) {
        while self.event().await.is_ok() {}
    }

    /// Closes and waits until the relay has closed too.
    pub async fn close(mut self) {
        // A relay that was faster has closed it already.
        if self.socket.close(None).await.is_ok() {
            drop(timeout(Duration::from_secs(10), self.stay()).await);
        }
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum that grows")]
async fn event(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Result<ToSatellite> {
    loop {
        match socket.next().await.context("the connection ended")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(frame) => bail!("closed: {frame:?}"),
            _ => {}
        }
    }
}
