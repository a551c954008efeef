//! The wiring: builds every part, joins them, and stops them in the order of the data.
//!
//! Stopping: the doors close and sessions take nothing new, the committer commits what they had handed over and answers,
//! the sessions pass the answers on and close, the registry closes.
//! A part that ends unasked is told to whoever waits for [`Relay::ended`]: half a relay helps nobody.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::heartbeat::{Beat, Heartbeats};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authority::{Authority, AuthorityError, Door, Names};
use crate::data_dir::{DataDir, DataDirError};
use crate::enrolment::{self, Enrolment, SessionUrl};
use crate::ingest::{self, Committer, Ingest, IngestError};
use crate::listener::{self, Listener, Sockets};
use crate::registry::{Registry, RegistryError};
use crate::session::{self, Changes, Roster};
use crate::settings::{self, Settings};
use crate::sink::archive::{InvalidPlace, Store};
use crate::web;

const ADDRESSES_FILE: &str = "addresses.json";
/// How often the relay's certificate is compared with the names that leases give it, and with its age.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(2);
/// How long the doors stay shut while a registry that may have been copied back is compared with the archive.
const RESOLVED_WITHIN: Duration = Duration::from_secs(15);

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory can't be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The registry can't be used.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The authority can't be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The archive can't be used.
    #[error(transparent)]
    Archive(#[from] InvalidPlace),
    /// What satellites send can't be taken.
    #[error(transparent)]
    Ingest(#[from] IngestError),
    /// A door can't be opened.
    #[error("{door} {address}: {source}; if another program has the port, set {door} to a free one")]
    Listen {
        /// The setting.
        door: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Where a running relay is to be found: `addresses.json` in its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The web door.
    pub web: SocketAddr,
    /// The satellites' door.
    pub satellites: SocketAddr,
    /// The web door as the settings name it for satellites.
    pub web_url: Option<String>,
    /// The satellites' door as the settings name it for satellites.
    pub session_url: Option<String>,
    /// The process.
    pub pid: u32,
}

impl Addresses {
    /// Those of the relay that serves this data directory, or served it last.
    #[must_use]
    pub fn read(data_dir: &DataDir) -> Option<Self> {
        let text = std::fs::read_to_string(data_dir.path().join(ADDRESSES_FILE)).ok()?;
        serde_json::from_str(&text).ok()
    }

    fn write(&self, data_dir: &DataDir) -> Result<(), DataDirError> {
        let text = serde_json::json!(self);
        data_dir.replace(ADDRESSES_FILE, &format!("{text:#}\n"))
    }
}

/// A relay that serves.
#[derive(Debug)]
pub struct Relay {
    addresses: Addresses,
    registry: Registry,
    doors: Parts,
    ingest: Parts,
    ended: mpsc::Receiver<&'static str>,
    stop_grace: Duration,
    sockets: Sockets,
    roster: Roster,
    _serving: File,
}

/// Tasks that stop together.
#[derive(Debug, Clone)]
struct Parts {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    ended: mpsc::Sender<&'static str>,
}

impl Parts {
    fn new(ended: mpsc::Sender<&'static str>) -> Self {
        Self { tracker: TaskTracker::new(), shutdown: CancellationToken::new(), ended }
    }

    fn spawn(&self, part: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (shutdown, ended) = (self.shutdown.clone(), self.ended.clone());
        self.tracker.spawn(async move {
            task.await;
            if !shutdown.is_cancelled() && ended.try_send(part).is_err() {
                tracing::debug!(part, "another part ended before");
            }
        });
    }

    /// Says when what the last run left is resolved.
    fn commit(&self, committer: Committer) -> CancellationToken {
        let resolved = committer.resolved();
        let shutdown = self.shutdown.clone();
        self.spawn("the committer", async move {
            if let Err(error) = committer.run(shutdown).await {
                tracing::error!(%error, "nothing can be committed any more");
            }
        });
        resolved
    }

    async fn wait(&self, grace: Duration) {
        self.tracker.close();
        if timeout(grace, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "not all ended in time");
        }
    }
}

impl Relay {
    /// Opens everything and serves. Must be called within a runtime.
    ///
    /// # Errors
    /// Names what can't be used, and what to do.
    pub async fn start(settings: &Settings, data_dir: &DataDir, clock: Arc<dyn Clock>) -> Result<Self, StartError> {
        Self::start_on(None, settings, data_dir, clock, &mut Heartbeats::new(None)).await
    }

    /// The same on sockets that are there already; its tasks count their turns for a watchdog.
    ///
    /// # Errors
    /// Names what can't be used, and what to do.
    pub async fn start_on(
        sockets: Option<Sockets>,
        settings: &Settings,
        data_dir: &DataDir,
        clock: Arc<dyn Clock>,
        heartbeats: &mut Heartbeats,
    ) -> Result<Self, StartError> {
        let serving = data_dir.lock_or_refuse("serve.lock")?;
        let registry = Registry::open(data_dir.path()).await?;
        let authority = Authority::load_or_create(data_dir, clock.now().wall_ms)?;
        let authority = authority.with_certificate_life(settings.certificate_life);
        let keeper = CertificateKeeper::new(settings, &registry, &authority, Arc::clone(&clock));
        keeper.look().await?;

        let sockets = sockets.map_or_else(|| bind(settings), Ok)?;
        let addresses = addresses(settings, &sockets)?;

        let (ended, hears) = mpsc::channel(8);
        let (doors, ingest) = (Parts::new(ended.clone()), Parts::new(ended));
        let enrolment = Enrolment::new(
            registry.clone(),
            authority.clone(),
            Arc::clone(&clock),
            session_url(settings, addresses.satellites.port()),
            &enrolment_limits(settings),
        );
        let relay = registry.relay_name().await?;
        let store = settings.archive.open(data_dir)?;
        let (blocks, committer) = committer(settings, data_dir, &relay, &registry, &store, &clock)?;
        let resolved = ingest.commit(committer.beating(heartbeats.task("committer")));
        if timeout(RESOLVED_WITHIN, resolved.cancelled()).await.is_err() {
            tracing::warn!("the archive takes long to answer: satellites are let in, and records wait until it does");
        }

        let roster = Roster::default();
        let sessions = session::Door::new(session::Parts {
            relay: relay.clone(),
            registry: registry.clone(),
            ingest: blocks,
            enrolment: enrolment.clone(),
            roster: roster.clone(),
            clock: Arc::clone(&clock),
            limits: session_limits(settings),
        });

        let (web, satellites) = listeners(settings, &sockets, &authority, &clock, &doors.tracker)?;
        let web = web.beating(heartbeats.task("web door"));
        doors.spawn("the web door", web.run_web(doors.shutdown.clone(), web::router(enrolment)));
        let satellites = satellites.beating(heartbeats.task("satellites' door"));
        let draining = doors.shutdown.clone();
        let serve = move |stream, peer| sessions.clone().serve(stream, peer, draining.clone());
        doors.spawn("the satellites' door", satellites.run(doors.shutdown.clone(), serve));
        let changes = Changes::new(registry.clone(), roster.clone()).noting_in(store, relay);
        let changes = changes.beating(heartbeats.task("messenger of changes"));
        doors.spawn("the messenger of changes", changes.run(doors.shutdown.clone()));
        let keeper = keeper.beating(heartbeats.task("keeper of the relay's certificate"));
        doors.spawn("the keeper of the relay's certificate", keeper.run(doors.shutdown.clone()));
        let pulse = pulse(registry.clone(), heartbeats.task("registry"), doors.shutdown.clone());
        doors.spawn("the registry's pulse", pulse);

        addresses.write(data_dir)?;
        tracing::info!(web = %addresses.web, satellites = %addresses.satellites, data_dir = %data_dir.path().display(), "serving");
        let stop_grace = settings.stop_grace;
        let ended = hears;
        Ok(Self { addresses, registry, doors, ingest, ended, stop_grace, sockets, roster, _serving: serving })
    }

    /// Where it is to be found.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits until a part ends that should not, and names it.
    pub async fn ended(&mut self) -> &'static str {
        match self.ended.recv().await {
            Some(part) => part,
            // The parts hold the other end for as long as this lives.
            None => std::future::pending().await,
        }
    }

    /// Who is connected.
    #[must_use]
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Stops, so that what was begun is finished and acknowledged. Gives the sockets back: who connects meanwhile waits
    /// until another relay listens on them, or until they are dropped.
    pub async fn stop(self) -> Sockets {
        self.doors.shutdown.cancel();
        self.ingest.shutdown.cancel();
        tokio::join!(self.doors.wait(self.stop_grace), self.ingest.wait(self.stop_grace));
        if let Err(error) = self.registry.close().await {
            tracing::warn!(%error, "the registry is whole, but could not be sealed against damage");
        }
        self.sockets
    }
}

fn committer(
    settings: &Settings,
    data_dir: &DataDir,
    relay: &str,
    registry: &Registry,
    store: &Store,
    clock: &Arc<dyn Clock>,
) -> Result<(Ingest, Committer), StartError> {
    let how = ingest::Settings { commit_every: settings.commit_every, ..ingest::Settings::default() };
    let (registry, store, clock) = (registry.clone(), store.clone(), Arc::clone(clock));
    Ok(Committer::open(data_dir, relay.to_owned(), registry, store, clock, how)?)
}

/// The registry is not stuck while it can be changed: whatever it answers, it answers. A lock that is not to be had for
/// long is somebody's who is stuck.
async fn pulse(registry: Registry, beat: Beat, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        match registry.answer().await {
            Err(error) if error.is_busy() => tracing::debug!(%error, "the registry is held by somebody"),
            Ok(()) | Err(_) => beat.beat(),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(beat.every()) => {}
        }
    }
}

/// Waiting for others in a batch is not slow storage.
fn session_limits(settings: &Settings) -> session::Limits {
    let limits = session::Limits::default();
    session::Limits {
        commit_slow: limits.commit_slow.max(settings.commit_every * 3),
        commit_fast: limits.commit_fast.max(settings.commit_every * 3 / 2),
        ..limits
    }
}

fn bind(settings: &Settings) -> Result<Sockets, StartError> {
    let bind = |door, address| {
        let bound = listener::bind(address).and_then(tokio::net::TcpListener::into_std);
        bound.map_err(|source| StartError::Listen { door, address, source })
    };
    let web = bind("web_listen", settings.web_listen)?;
    Ok(Sockets { web, satellites: bind("satellites_listen", settings.satellites_listen)? })
}

/// Both doors, not yet open.
fn listeners(
    settings: &Settings,
    sockets: &Sockets,
    authority: &Authority,
    clock: &Arc<dyn Clock>,
    tracker: &TaskTracker,
) -> Result<(Listener, Listener), StartError> {
    let limits = door_limits(settings);
    let taken = |name, door: &'static str, address, socket: &std::net::TcpListener, tls| {
        let socket = socket.try_clone().and_then(tokio::net::TcpListener::from_std);
        let socket = socket.map_err(|source| StartError::Listen { door, address, source })?;
        Ok::<_, StartError>(Listener::new(name, socket, tls, limits.clone(), tracker.clone()))
    };
    let tls = authority.server_config(Door::Web, Arc::clone(clock))?;
    let web = taken("web", "web_listen", settings.web_listen, &sockets.web, tls)?;
    let tls = authority.server_config(Door::Satellites, Arc::clone(clock))?;
    let address = settings.satellites_listen;
    Ok((web, taken("satellites", "satellites_listen", address, &sockets.satellites, tls)?))
}

fn addresses(settings: &Settings, sockets: &Sockets) -> Result<Addresses, StartError> {
    let bound = |door, wanted, socket: &std::net::TcpListener| {
        socket.local_addr().map_err(|source| StartError::Listen { door, address: wanted, source })
    };
    let web = bound("web_listen", settings.web_listen, &sockets.web)?;
    let satellites = bound("satellites_listen", settings.satellites_listen, &sockets.satellites)?;
    let host = settings.public_host.as_deref();
    let url = |scheme: &str, port: u16| host.map(|host| format!("{scheme}://{}:{port}", bracketed(host)));
    Ok(Addresses {
        web,
        satellites,
        web_url: settings.web_url.clone().or_else(|| url("https", web.port())),
        session_url: settings.session_url.clone().or_else(|| url("wss", satellites.port())),
        pid: std::process::id(),
    })
}

fn session_url(settings: &Settings, port: u16) -> SessionUrl {
    match (&settings.session_url, &settings.public_host) {
        (Some(url), _) => SessionUrl::Fixed(url.clone()),
        (None, Some(host)) => SessionUrl::Fixed(format!("wss://{}:{port}", bracketed(host))),
        (None, None) => SessionUrl::HostOfLease { port },
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

fn door_limits(settings: &Settings) -> listener::Limits {
    listener::Limits {
        connections: settings.limits.connections,
        connections_per_address: settings.limits.connections_per_address,
        ..listener::Limits::default()
    }
}

fn enrolment_limits(settings: &Settings) -> enrolment::Limits {
    enrolment::Limits {
        per_second: settings.limits.enrolments_per_second,
        burst: settings.limits.enrolments_at_once,
        ..enrolment::Limits::default()
    }
}

/// Sees to it that the relay's certificate is for every name that satellites reach it by, and never ends.
struct CertificateKeeper {
    registry: Registry,
    authority: Authority,
    clock: Arc<dyn Clock>,
    names: Names,
    beat: Beat,
}

impl CertificateKeeper {
    fn new(settings: &Settings, registry: &Registry, authority: &Authority, clock: Arc<dyn Clock>) -> Self {
        let mut names = Names::of_this_machine();
        let urls = [&settings.web_url, &settings.session_url].into_iter().flatten();
        for host in urls.filter_map(|url| settings::host(url)).chain(settings.public_host.clone()) {
            names.add(&host);
        }
        Self { registry: registry.clone(), authority: authority.clone(), clock, names, beat: Beat::default() }
    }

    fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    async fn run(self, shutdown: CancellationToken) {
        let mut failing = false;
        while !shutdown.is_cancelled() {
            self.beat.beat();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(CERTIFICATE_CHECK.min(self.beat.every())) => {}
            }
            match self.look().await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(%error, "can't look after the relay's certificate; the one before stays");
                }
                Err(_) => {}
            }
        }
    }

    async fn look(&self) -> Result<(), StartError> {
        let mut names = self.names.clone();
        for url in self.registry.relay_urls().await? {
            if let Some(host) = settings::host(&url) {
                names.add(&host);
            }
        }
        if self.authority.renew_server_certificate(&names, self.clock.now().wall_ms)? {
            tracing::info!("the relay has a new certificate");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::SystemClock;
    use satellite_shared::id::{LeaseId, SatelliteId};

    use super::*;
    use crate::registry::NewLease;
    use crate::web::visitor::Visitor;

    const DEADLINE: Duration = Duration::from_secs(30);

    fn settings() -> Settings {
        let listen = "127.0.0.1:0".parse().unwrap();
        Settings { web_listen: listen, satellites_listen: listen, ..Settings::default() }
    }

    async fn start(dir: &tempfile::TempDir, settings: &Settings) -> Result<Relay, StartError> {
        Relay::start(settings, &DataDir::open(dir.path()).unwrap(), Arc::new(SystemClock)).await
    }

    fn visitor(relay: &Relay, dir: &tempfile::TempDir) -> Visitor {
        let authority = Authority::load_or_create(&DataDir::open(dir.path()).unwrap(), 0).unwrap();
        Visitor::new(relay.addresses().web, authority.ca_bundle())
    }

    #[tokio::test]
    async fn a_relay_says_where_it_is_and_is_the_same_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let relay = start(&dir, &settings()).await.unwrap();
        assert_eq!(Addresses::read(&DataDir::open(dir.path()).unwrap()).as_ref(), Some(relay.addresses()));
        let (_, bundle) = visitor(&relay, &dir).get(web::CA_PATH).await;
        timeout(DEADLINE, relay.stop()).await.expect("it stops");

        let relay = start(&dir, &settings()).await.unwrap();
        let visitor = Visitor::new(relay.addresses().web, &bundle);
        assert_eq!(visitor.get(web::HEALTH_PATH).await.0, 200);
        timeout(DEADLINE, relay.stop()).await.expect("it stops");
    }

    #[tokio::test]
    async fn a_second_relay_on_one_folder_is_refused_and_one_on_another_is_not() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = start(&here, &settings()).await.unwrap();
        let error = start(&here, &settings()).await.unwrap_err().to_string();
        assert!(error.contains("another `satellite-relay serve` runs on this folder"), "{error}");
        let second = start(&there, &settings()).await.unwrap();
        let foreign = Visitor::new(second.addresses().web, visitor(&first, &here).get(web::CA_PATH).await.1.as_str());
        assert!(foreign.connect("localhost").await.is_err(), "each has its own authority");
        first.stop().await;
        second.stop().await;
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let socket = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let taken = Settings { satellites_listen: socket.local_addr().unwrap(), ..settings() };
        let error = start(&dir, &taken).await.unwrap_err().to_string();
        assert!(error.starts_with("satellites_listen 127.0.0.1:"), "{error}");
    }

    #[tokio::test]
    async fn a_lease_for_a_new_name_works_while_the_relay_runs() {
        let dir = tempfile::tempdir().unwrap();
        let relay = start(&dir, &settings()).await.unwrap();
        let visitor = visitor(&relay, &dir);
        assert!(visitor.connect("relay.example.org").await.is_err());
        let lease = NewLease {
            id: LeaseId::from_bits([1; 10]),
            satellite: SatelliteId::from_bits([1; 10]),
            name: "attic".into(),
            token_sha256: String::new(),
            relay_url: "https://relay.example.org:8443".into(),
            now_ms: 0,
            expires_at_ms: i64::MAX,
            replace: false,
        };
        relay.registry.create_lease(&lease).await.unwrap();
        let named = async {
            while visitor.connect("relay.example.org").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(DEADLINE, named).await.expect("its certificate follows");
        relay.stop().await;
    }

    #[test]
    fn satellites_are_sent_where_the_settings_say_else_to_their_lease_s_host() {
        let plain = settings();
        let host = Settings { public_host: Some("2001:db8::1".into()), ..settings() };
        let url = Settings { session_url: Some("wss://x:1".into()), ..host.clone() };
        assert!(matches!(session_url(&plain, 7), SessionUrl::HostOfLease { port: 7 }));
        assert!(matches!(session_url(&host, 7), SessionUrl::Fixed(url) if url == "wss://[2001:db8::1]:7"));
        assert!(matches!(session_url(&url, 7), SessionUrl::Fixed(url) if url == "wss://x:1"));
    }
}
