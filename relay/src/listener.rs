//! The two doors: who gets a socket, for how long, before anything is known of them.
//!
//! Every wait has an end: the TLS handshake, a request's head, its body, its answer, the connection. Every count has a
//! bound: connections, connections of one address, handshakes in progress, those of one address. What is over a bound
//! is closed without a word; what waits for a handshake waits no longer than a handshake may take.
//!
//! Deliberately absent: `axum::serve` and hyper's `auto` builder, which wait for a silent client for ever.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use satellite_shared::heartbeat::Beat;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::enrolment::Refusal;
use crate::enrolment::rate_limit::subscriber;
use crate::web::Peer;

const BACKLOG: u32 = 1_024;
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Of the failures to accept that follow each other, one in so many is logged: one in ten seconds.
const LOGGED_EACH: u32 = 100;

/// How long things may take and how many there may be. The settings say the first two; tests shorten the waits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Of them, from one address.
    pub connections_per_address: usize,
    /// TLS handshakes in progress.
    pub handshakes: usize,
    /// Of them, from one address.
    pub handshakes_per_address: usize,
    /// What a TLS handshake may take, the wait for its turn included.
    pub handshake: Duration,
    /// What the head of a request may take, from the end of the one before.
    pub head: Duration,
    /// What a request's body and its answer may take.
    pub request: Duration,
    /// After this a connection of the web door takes no more requests.
    pub connection: Duration,
    /// Bytes that were sent and are not taken for this long end the connection.
    pub unacknowledged: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2_000,
            connections_per_address: 200,
            handshakes: 64,
            handshakes_per_address: 32,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            request: Duration::from_secs(10),
            connection: Duration::from_secs(60),
            unacknowledged: Duration::from_secs(30),
        }
    }
}

/// Listens. An unspecified IPv6 address takes IPv4 too, and is the IPv4 one where the machine has no IPv6.
///
/// # Errors
/// When the address is taken, or not this machine's.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match bind_exactly(address) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && lacks_ipv6(&error) => {
            bind_exactly((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

fn lacks_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    [rustix::io::Errno::AFNOSUPPORT, rustix::io::Errno::ADDRNOTAVAIL].iter().any(|e| errno == Some(e.raw_os_error()))
}

fn bind_exactly(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The sockets of both doors, which may outlive the relay that listens on them: connections wait meanwhile.
#[derive(Debug)]
pub struct Sockets {
    /// The web door's.
    pub web: std::net::TcpListener,
    /// The satellites' door's.
    pub satellites: std::net::TcpListener,
}

/// One door.
#[derive(Debug)]
pub struct Listener {
    name: &'static str,
    socket: TcpListener,
    tls: Arc<ServerConfig>,
    limits: Limits,
    admission: Arc<Admission>,
    tracker: TaskTracker,
    beat: Beat,
}

impl Listener {
    /// A door; its connections are tasks of the tracker.
    #[must_use]
    pub fn new(
        name: &'static str,
        socket: TcpListener,
        tls: Arc<ServerConfig>,
        limits: Limits,
        tracker: TaskTracker,
    ) -> Self {
        let admission = Arc::new(Admission::new(&limits));
        Self { name, socket, tls, limits, admission, tracker, beat: Beat::default() }
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Lets satellites in until shutdown, each to `serve`.
    pub async fn run<F, Served>(self, shutdown: CancellationToken, serve: F)
    where
        F: Fn(TlsStream<TcpStream>, SocketAddr) -> Served + Clone + Send + Sync + 'static,
        Served: Future<Output = ()> + Send,
    {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        while let Some((stream, peer)) = self.accept(&shutdown).await {
            let Some(admitted) = Admission::admit(&self.admission, peer.ip()) else {
                tracing::debug!(door = self.name, %peer, "over the bound: closed");
                continue;
            };
            let (acceptor, serve, name) = (acceptor.clone(), serve.clone(), self.name);
            let (handshake_max, shutdown) = (self.limits.handshake, shutdown.clone());
            self.tracker.spawn(async move {
                // Boxed, and gone when TLS stands: a connection's task would else keep room for its handshake for ever.
                let opening = Box::pin(async {
                    let handshake = timeout(handshake_max, admitted.handshake(acceptor.accept(stream)));
                    let shaken = tokio::select! {
                        shaken = handshake => shaken,
                        () = shutdown.cancelled() => return None,
                    };
                    match shaken {
                        Ok(Ok(stream)) => return Some(serve(stream, peer)),
                        Ok(Err(error)) => tracing::debug!(door = name, %peer, %error, "no TLS"),
                        Err(_) => tracing::debug!(door = name, %peer, "too slow for TLS"),
                    }
                    None
                });
                if let Some(serving) = opening.await {
                    serving.await;
                }
                drop(admitted);
            });
        }
    }

    /// Answers requests until shutdown; those that have begun are answered.
    pub async fn run_web(mut self, shutdown: CancellationToken, router: Router) {
        // Nobody has a long conversation here: who does not take an answer is not waited for as a satellite is.
        self.limits.unacknowledged = self.limits.unacknowledged.min(self.limits.request);
        let limits = self.limits.clone();
        let stop = shutdown.clone();
        let serve = move |stream, peer| {
            let (router, limits, stop) = (router.clone(), limits.clone(), stop.clone());
            async move { serve_web(stream, peer, router, limits, stop).await }
        };
        self.run(shutdown, serve).await;
    }

    async fn accept(&self, shutdown: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
        let mut failures = 0u32;
        loop {
            self.beat.beat();
            let accepted = tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                accepted = self.socket.accept() => accepted,
                () = tokio::time::sleep(self.beat.every()) => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Err(error) = prepare(&stream, self.limits.unacknowledged) {
                        tracing::debug!(door = self.name, %peer, %error, "gone before it began");
                        continue;
                    }
                    return Some((stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())));
                }
                Err(error) => {
                    // A connection that was reset in the queue, or no file handles left: the next one may do.
                    if failures.is_multiple_of(LOGGED_EACH) {
                        self.note_refused(&error);
                    }
                    failures = failures.saturating_add(1);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Listener {
    fn note_refused(&self, error: &io::Error) {
        let none_left = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
        if none_left.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) {
            tracing::warn!(
                door = self.name,
                "no file handles left: nobody else gets in until some close; raise LimitNOFILE or lower limits.connections"
            );
        } else {
            tracing::warn!(door = self.name, %error, "can't accept a connection");
        }
    }
}

fn prepare(stream: &TcpStream, unacknowledged: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let ms = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, ms)?)
}

async fn serve_web(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let answer = timeout(limits.request, router.call(request));
        async move { answer.await.unwrap_or_else(|_| Ok(Refusal::TooSlow.into_response())) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head);
    builder.max_headers(HEADERS_MAX).max_buf_size(HEAD_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = async { tokio::select! { () = shutdown.cancelled() => {}, () = tokio::time::sleep(limits.connection) => {} } } => {
            connection.as_mut().graceful_shutdown();
            match timeout(limits.request, connection).await {
                Ok(served) => served,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a web connection ended early");
    }
}

/// Who is inside.
#[derive(Debug)]
struct Admission {
    connections_max: usize,
    per_address_max: usize,
    handshakes_per_address: usize,
    handshakes: Semaphore,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    connections: usize,
    by_address: HashMap<IpAddr, Guest>,
}

#[derive(Debug)]
struct Guest {
    connections: usize,
    handshakes: Arc<Semaphore>,
}

/// A connection that counts while this is held.
#[derive(Debug)]
struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
    handshakes: Arc<Semaphore>,
}

impl Admission {
    fn new(limits: &Limits) -> Self {
        Self {
            connections_max: limits.connections,
            per_address_max: limits.connections_per_address,
            handshakes_per_address: limits.handshakes_per_address,
            handshakes: Semaphore::new(limits.handshakes),
            inside: Mutex::default(),
        }
    }

    fn admit(this: &Arc<Self>, address: IpAddr) -> Option<Admitted> {
        let address = subscriber(address);
        let mut inside = this.inside();
        if inside.connections >= this.connections_max {
            return None;
        }
        let guest = inside.by_address.entry(address).or_insert_with(|| Guest {
            connections: 0,
            handshakes: Arc::new(Semaphore::new(this.handshakes_per_address)),
        });
        if guest.connections >= this.per_address_max {
            return None;
        }
        guest.connections += 1;
        let handshakes = Arc::clone(&guest.handshakes);
        inside.connections += 1;
        Some(Admitted { admission: Arc::clone(this), address, handshakes })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    /// Waits for this connection's turn, then for the handshake.
    async fn handshake<T>(&self, handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let _own = turn(&self.handshakes).await?;
        let _all = turn(&self.admission.handshakes).await?;
        handshake.await
    }
}

async fn turn(semaphore: &Semaphore) -> io::Result<SemaphorePermit<'_>> {
    semaphore.acquire().await.map_err(io::Error::other)
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut inside = self.admission.inside();
        inside.connections -= 1;
        if let Some(guest) = inside.by_address.get_mut(&self.address) {
            guest.connections -= 1;
            if guest.connections == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::{Clock, SystemClock};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::authority::{Authority, Door, Names};
    use crate::data_dir::DataDir;
    use crate::enrolment::{self, Enrolment, SessionUrl};
    use crate::registry::Registry;
    use crate::web;
    use crate::web::visitor::{Visitor, answer};

    /// A wait that a door ends early or a test fails by.
    const DEADLINE: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    struct House {
        address: SocketAddr,
        visitor: Visitor,
        shutdown: CancellationToken,
        running: JoinHandle<()>,
        tracker: TaskTracker,
        _dir: tempfile::TempDir,
    }

    impl House {
        #[expect(clippy::disallowed_methods, reason = "a test is its own wiring")]
        async fn new(limits: Limits, strangers: &enrolment::Limits) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock: Arc<dyn Clock> = Arc::new(SystemClock);
            let now_ms = clock.now().wall_ms;
            let registry = Registry::open(dir.path()).await.unwrap();
            let authority = Authority::load_or_create(&DataDir::open(dir.path()).unwrap(), now_ms).unwrap();
            authority.renew_server_certificate(&Names::of_this_machine(), now_ms).unwrap();
            let session_url = SessionUrl::HostOfLease { port: 1 };
            let enrolment = Enrolment::new(registry, authority.clone(), Arc::clone(&clock), session_url, strangers);
            let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = socket.local_addr().unwrap();
            let (tracker, shutdown) = (TaskTracker::new(), CancellationToken::new());
            let tls = authority.server_config(Door::Web, clock).unwrap();
            let listener = Listener::new("web", socket, tls, limits, tracker.clone());
            let running = tokio::spawn(listener.run_web(shutdown.clone(), web::router(enrolment)));
            let visitor = Visitor::new(address, authority.ca_bundle());
            Self { address, visitor, shutdown, running, tracker, _dir: dir }
        }

        async fn short() -> Self {
            let limits =
                Limits { handshake: SHORT, head: SHORT, request: SHORT, connection: DEADLINE, ..Limits::default() };
            Self::new(limits, &enrolment::Limits::default()).await
        }

        async fn tcp(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }
    }

    async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
        let mut rest = Vec::new();
        // Closed or reset: both are an end.
        drop(timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("the door closes the connection"));
    }

    #[tokio::test]
    async fn who_says_nothing_or_half_of_a_greeting_is_sent_away() {
        let house = House::short().await;
        let mut silent = house.tcp().await;
        let mut half = house.tcp().await;
        half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        ends(&mut silent).await;
        ends(&mut half).await;
    }

    #[tokio::test]
    async fn who_speaks_no_tls_is_sent_away() {
        let house = House::short().await;
        let mut plain = house.tcp().await;
        plain.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        ends(&mut plain).await;
    }

    #[tokio::test]
    async fn a_silent_a_dripping_and_an_idle_client_are_sent_away() {
        let house = House::short().await;
        let mut silent = house.visitor.connect("localhost").await.unwrap();
        ends(&mut silent).await;

        let mut idle = house.visitor.connect("localhost").await.unwrap();
        idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let (status, _) = timeout(DEADLINE, answer(&mut idle)).await.expect("an idle connection ends");
        assert_eq!(status, 200);

        let dripping = house.visitor.connect("localhost").await.unwrap();
        let (mut read, mut write) = tokio::io::split(dripping);
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if write.write_all(b"x").await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = ends(&mut read) => {}
            () = drip => {}
        }
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_answered_with_what_is_wrong() {
        let house = House::short().await;
        let mut stream = house.visitor.connect("localhost").await.unwrap();
        stream.write_all(b"POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
        let (status, body) = timeout(DEADLINE, answer(&mut stream)).await.expect("the request ends");
        assert_eq!(status, 408);
        assert!(body.contains("too_slow"), "{body}");
    }

    #[tokio::test]
    async fn a_connection_takes_no_requests_for_ever() {
        let limits = Limits { connection: SHORT, ..Limits::default() };
        let house = House::new(limits, &enrolment::Limits::default()).await;
        let mut stream = house.visitor.connect("localhost").await.unwrap();
        ends(&mut stream).await;
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused() {
        let house = House::new(Limits::default(), &enrolment::Limits::default()).await;
        let (status, body) = house.visitor.post("/v1/enrol", &"x".repeat(16 << 10 | 1)).await;
        assert_eq!((status, body.contains("too_large")), (413, true), "{body}");
        let (status, _) = house.visitor.get(&format!("/{}", "x".repeat(HEAD_BYTES_MAX))).await;
        assert!([414, 431].contains(&status), "{status}");
        let many = "x: y\r\n".repeat(HEADERS_MAX + 1);
        let (status, _) = house.visitor.say(&format!("GET / HTTP/1.1\r\n{many}\r\n")).await;
        assert_eq!(status, 431);
    }

    #[tokio::test]
    async fn the_routes_answer_and_everything_else_is_a_problem_in_json() {
        let house = House::new(Limits::default(), &enrolment::Limits::default()).await;
        assert_eq!(house.visitor.get(web::HEALTH_PATH).await, (200, "ok\n".into()));
        let (status, body) = house.visitor.get(web::CA_PATH).await;
        assert_eq!((status, body.starts_with("-----BEGIN CERTIFICATE-----")), (200, true));
        for (status, code, answer) in [
            (404, "not_found", house.visitor.get("/nothing").await),
            (405, "method_not_allowed", house.visitor.get("/v1/enrol").await),
            (400, "bad_request", house.visitor.post("/v1/enrol", "{").await),
            (400, "bad_request", house.visitor.post("/v1/recover", "{\"satellite\": \"admin\"}").await),
        ] {
            let problem: satellite_shared::enrolment::Problem = serde_json::from_str(&answer.1).unwrap();
            assert_eq!((answer.0, problem.code.as_str()), (status, code));
        }
    }

    #[tokio::test]
    async fn who_asks_too_often_is_told_to_wait() {
        let house =
            House::new(Limits::default(), &enrolment::Limits { burst: 2, ..enrolment::Limits::default() }).await;
        for _ in 0..2 {
            assert_eq!(house.visitor.post("/v1/enrol", "{").await.0, 400);
        }
        let (status, body) = house.visitor.post("/v1/recover/challenge", "{").await;
        let problem: satellite_shared::enrolment::Problem = serde_json::from_str(&body).unwrap();
        assert_eq!((status, problem.code.as_str(), problem.retry_after_s), (429, "rate_limited", 1));
    }

    #[tokio::test]
    async fn one_address_gets_so_many_connections_and_then_more_when_one_leaves() {
        let limits = Limits { connections_per_address: 2, ..Limits::default() };
        let house = House::new(limits, &enrolment::Limits::default()).await;
        let first = house.visitor.connect("localhost").await.unwrap();
        let _second = house.visitor.connect("localhost").await.unwrap();
        ends(&mut house.tcp().await).await;
        drop(first);
        let again = async {
            while house.visitor.connect("localhost").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, again).await.expect("its place is free");
    }

    #[tokio::test]
    async fn slow_handshakes_of_many_do_not_keep_others_out_for_longer_than_one_may_take() {
        let limits = Limits { handshakes: 2, handshakes_per_address: 2, handshake: SHORT, ..Limits::default() };
        let house = House::new(limits, &enrolment::Limits::default()).await;
        let _silent = futures_util::future::join_all((0..2).map(|_| house.tcp())).await;
        let inside = async {
            while house.visitor.connect("localhost").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, inside).await.expect("their turn ends");
    }

    #[tokio::test]
    async fn shutdown_closes_the_door_and_what_is_behind_it() {
        let house = House::new(Limits::default(), &enrolment::Limits::default()).await;
        let mut idle = house.visitor.connect("localhost").await.unwrap();
        let mut silent = house.tcp().await;
        house.shutdown.cancel();
        ends(&mut idle).await;
        ends(&mut silent).await;
        timeout(DEADLINE, house.running).await.expect("the door ends").unwrap();
        house.tracker.close();
        timeout(DEADLINE, house.tracker.wait()).await.expect("its connections end");
    }

    #[tokio::test]
    async fn an_unspecified_address_takes_both_families() {
        let socket = bind("[::]:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok());
        if socket.local_addr().unwrap().is_ipv6() {
            assert!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.is_ok());
        }
        assert!(bind(socket.local_addr().unwrap()).is_err(), "the port is taken");
    }
}
