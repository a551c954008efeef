//! One attempt to reach the relay: way out → TCP → TLS → WebSocket.
//!
//! Names are resolved anew each time, IPv6 and IPv4 race (happy eyeballs). TLS 1.3 only, with the client certificate, the
//! identity's authorities and no other, no resumption, no early data. An attempt is bounded as a whole, and its error
//! says which step failed and what to do.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use satellite_shared::clock::Clock;
use satellite_shared::limits;
use satellite_shared::wire::to_satellite::Hello;
use satellite_shared::wire::{ToSatellite, version};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::http::Uri;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, error::ProtocolError};
use tower_service::Service;

use crate::credential::keystore::{Identity, InvalidCertificate};
use crate::credential::pin::bundle_verifier;
use crate::credential::verification_time::VerificationTime;
use crate::uplink::proxy::{InvalidProxy, ProxySettings, Route};

/// How long an attempt may take, all steps together.
pub const ATTEMPT: Duration = Duration::from_secs(15);
const USER_TIMEOUT: Duration = Duration::from_secs(30);
const READ_BUFFER_BYTES: usize = 16 << 10;
const WRITE_BUFFER_BYTES: usize = 32 << 10;
const WRITE_BUFFER_BYTES_MAX: usize = 512 << 10;

/// The connection of a session.
pub type Socket = WebSocketStream<TlsStream<Counted<TcpStream>>>;

/// Where an attempt stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Name resolution and the TCP connection.
    Tcp,
    /// The proxy's own handshake.
    Proxy,
    /// TLS.
    Tls,
    /// The WebSocket's upgrade.
    WebSocket,
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The identity can't be used.
    #[error("the identity can't be used: {0}")]
    Identity(#[from] InvalidCertificate),
    /// The identity's address can't be used.
    #[error("the relay's address `{0}` can't be used: get a new lease from the relay")]
    Address(String),
    /// The settings' proxy can't be used.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// The name has no address.
    #[error("DNS: `{host}` does not resolve ({why}): check the name server and the relay's name")]
    Dns {
        /// The name.
        host: String,
        /// What the resolver said.
        why: String,
    },
    /// No connection.
    #[error("TCP: no connection to {to} ({why}): check that it runs and that the firewall lets this machine out")]
    Tcp {
        /// The relay or the proxy.
        to: String,
        /// What the system said.
        why: String,
    },
    /// The proxy does not let us through.
    #[error("proxy: {proxy} does not open a way to {to} ({why}): check `proxy` in the settings, and what it allows")]
    Through {
        /// The proxy.
        proxy: String,
        /// The relay.
        to: String,
        /// What it said.
        why: String,
    },
    /// TLS failed.
    #[error("TLS: {why}")]
    Tls {
        /// What failed and what to do.
        why: String,
        /// Whether the relay says that our certificate has ended.
        expired: bool,
    },
    /// The relay answered, but not with a session.
    #[error("WebSocket: {to} answered {why}")]
    WebSocket {
        /// The relay.
        to: String,
        /// What, and what to do.
        why: String,
        /// Not sooner than this, where the relay said so.
        retry_after: Option<Duration>,
    },
    /// Too slow.
    #[error("{step:?}: no answer from {to} within {seconds} s: check the network between, and the relay")]
    Slow {
        /// The step that did not end.
        step: Step,
        /// The relay.
        to: String,
        /// The bound.
        seconds: u64,
    },
}

impl DialError {
    /// Whether a new certificate would help.
    #[must_use]
    pub fn is_expired_certificate(&self) -> bool {
        matches!(self, Self::Tls { expired: true, .. })
    }

    /// What the relay asked for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::WebSocket { retry_after, .. } => *retry_after,
            Self::Identity(_)
            | Self::Address(_)
            | Self::Proxy(_)
            | Self::Dns { .. }
            | Self::Tcp { .. }
            | Self::Through { .. }
            | Self::Tls { .. }
            | Self::Slow { .. } => None,
        }
    }
}

/// Bytes that went over all connections, TLS and all.
#[derive(Debug, Default)]
pub struct Meter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Meter {
    /// Bytes sent since the start.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes received since the start.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct Counted<S> {
    inner: S,
    meter: Arc<Meter>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.meter.received.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = polled {
            self.meter.sent.fetch_add(written as u64, Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Where to, and with what.
#[derive(Debug)]
pub struct Dial {
    /// Who calls.
    pub identity: Identity,
    /// The way out.
    pub proxy: ProxySettings,
    /// By which time certificates are judged.
    pub time: VerificationTime,
    /// Who counts.
    pub meter: Arc<Meter>,
}

impl Dial {
    /// One attempt.
    ///
    /// # Errors
    /// Says which step failed and what to do.
    pub async fn connect(self) -> Result<Socket, DialError> {
        self.connect_within(ATTEMPT).await
    }

    async fn connect_within(self, limit: Duration) -> Result<Socket, DialError> {
        let url = self.identity.session_url.clone();
        let uri: Uri = url.parse().map_err(|_| DialError::Address(url.clone()))?;
        let (Some("wss"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(DialError::Address(url)) };
        let target = Target { host: host.to_owned(), port: uri.port_u16().unwrap_or(443) };
        let mut step = Step::Tcp;
        let attempt = self.steps(&target, &mut step);
        let ended = tokio::time::timeout(limit, attempt).await;
        ended.unwrap_or_else(|_| Err(DialError::Slow { step, to: target.to_string(), seconds: limit.as_secs() }))
    }

    async fn steps(self, target: &Target, step: &mut Step) -> Result<Socket, DialError> {
        let tls = client_config(&self.identity, &self.time)?;
        let route = Route::to(&target.uri("https")?, &self.proxy)?;
        let tcp = open(target, &route, step).await?;
        let tcp = Counted { inner: tcp, meter: self.meter };

        *step = Step::Tls;
        let name = target.host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(|_| DialError::Address(target.to_string()))?;
        let connected = TlsConnector::from(Arc::new(tls)).connect(name, tcp).await;
        let stream = connected.map_err(|error| tls_error(&error, &self.time, &target.to_string()))?;

        *step = Step::WebSocket;
        let uri = format!("wss://{target}{}", version::PATH);
        let uri = uri.parse().map_err(|_| DialError::Address(target.to_string()))?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(version::SUBPROTOCOL);
        let upgraded = tokio_tungstenite::client_async_with_config(request, stream, Some(limits_of_websocket())).await;
        upgraded.map(|(socket, _)| socket).map_err(|error| websocket_error(error, &self.time, target))
    }
}

/// Which proxy leads to an address, if any: for people.
///
/// # Errors
/// Says what is wrong with the settings.
pub fn proxy_for(proxy: &ProxySettings, url: &str) -> Result<Option<String>, InvalidProxy> {
    let uri: Uri = url.parse().map_err(|_| InvalidProxy::Destination(url.to_owned()))?;
    Ok(match Route::to(&uri, proxy)? {
        Route::Direct => None,
        Route::Connect { proxy, .. } | Route::Socks { proxy, .. } => {
            Some(proxy.to_string().trim_end_matches('/').to_owned())
        }
    })
}

/// Connects, hears the relay's HELLO, and goes: whether the relay can be reached as things are.
///
/// # Errors
/// Says which step failed and what to do.
pub async fn greet(
    identity: &Identity,
    proxy: &ProxySettings,
    clock: &(impl Clock + Clone + 'static),
) -> Result<Hello, DialError> {
    let to = identity.session_url.clone();
    let time = VerificationTime::new(Arc::new(clock.clone()));
    let dial = Dial {
        identity: identity.clone(),
        proxy: proxy.clone(),
        time: time.clone(),
        meter: Arc::new(Meter::default()),
    };
    let mut socket = dial.connect().await?;
    let silent = |why: &str| DialError::WebSocket { to: to.clone(), why: why.to_owned(), retry_after: None };
    let first = tokio::time::timeout(ATTEMPT, socket.next()).await;
    let hello = match first.map_err(|_| silent("nothing within 15 s"))? {
        Some(Ok(message)) => match message.to_text().ok().and_then(|text| serde_json::from_str(text).ok()) {
            Some(ToSatellite::Hello(hello)) => Ok(hello),
            Some(ToSatellite::Refused(refused)) => Err(silent(&format!("with a refusal: {}", refused.message))),
            Some(_) | None => Err(silent("with something else than HELLO: is it a relay?")),
        },
        // A refused client certificate shows only at the first reading.
        Some(Err(WsError::Io(error))) => Err(tls_error(&error, &time, &to)),
        Some(Err(error)) => Err(silent(&chain(&error))),
        None => Err(silent("by closing")),
    };
    // Going without a farewell does no harm.
    tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await.ok();
    hello
}

#[derive(Debug, Clone)]
struct Target {
    host: String,
    port: u16,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Target {
    fn uri(&self, scheme: &str) -> Result<Uri, DialError> {
        format!("{scheme}://{self}/").parse().map_err(|_| DialError::Address(self.to_string()))
    }
}

async fn open(target: &Target, route: &Route, step: &mut Step) -> Result<TcpStream, DialError> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector.set_tcp_user_timeout(Some(USER_TIMEOUT));
    connector.enforce_http(false);
    let through = |proxy: &Uri, why: String| DialError::Through {
        proxy: proxy.authority().map_or_else(|| "the proxy".to_owned(), ToString::to_string),
        to: target.to_string(),
        why,
    };
    let connected = match route {
        Route::Direct => {
            connector.call(target.uri("http")?).await.map_err(|error| tcp_error(&error, &target.host, target))?
        }
        Route::Connect { proxy, authorization } => {
            *step = Step::Proxy;
            let mut tunnel = Tunnel::new(proxy.clone(), connector);
            if let Some(authorization) = authorization {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            tunnel.call(target.uri("https")?).await.map_err(|error| through(proxy, chain(&error)))?
        }
        Route::Socks { proxy, login, resolve_here } => {
            *step = Step::Proxy;
            let mut socks = SocksV5::new(with_port(proxy, 1080)?, connector);
            if let Some((user, password)) = login {
                socks = socks.with_auth(user.clone(), password.expose_secret().to_owned());
            }
            let destination = if *resolve_here { resolve(target).await? } else { target.clone() };
            socks.call(destination.uri("https")?).await.map_err(|error| through(proxy, socks_error(&error)))?
        }
    };
    Ok(TokioIo::into_inner(connected))
}

/// The connector takes 80 or 443 where a URL names no port.
fn with_port(proxy: &Uri, port: u16) -> Result<Uri, DialError> {
    let host = proxy.host().unwrap_or_default();
    let text = format!("{}://{host}:{}/", proxy.scheme_str().unwrap_or("socks5"), proxy.port_u16().unwrap_or(port));
    text.parse().map_err(|_| DialError::Address(text))
}

async fn resolve(target: &Target) -> Result<Target, DialError> {
    let bare = target.host.trim_start_matches('[').trim_end_matches(']');
    let found = tokio::net::lookup_host((bare, target.port)).await;
    let dns = |why: String| DialError::Dns { host: target.host.clone(), why };
    let address = found.map_err(|error| dns(error.to_string()))?.next().ok_or_else(|| dns("no address".into()))?;
    let host = if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() };
    Ok(Target { host, port: target.port })
}

/// TLS as the session wants it.
///
/// # Errors
/// Where the identity can't be used.
pub fn client_config(identity: &Identity, time: &VerificationTime) -> Result<ClientConfig, InvalidCertificate> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = identity.certified_key(&provider)?;
    let verifier = bundle_verifier(&identity.authorities()?, Arc::clone(&provider)).map_err(InvalidCertificate::Key)?;
    let builder = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(InvalidCertificate::Key)?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn limits_of_websocket() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(limits::MESSAGE_BYTES_MAX))
        .max_frame_size(Some(limits::FRAME_BYTES_MAX))
}

fn tcp_error(error: &(dyn std::error::Error + 'static), host: &str, target: &Target) -> DialError {
    let why = chain(error.source().unwrap_or(error));
    if error.to_string().starts_with("dns error") {
        return DialError::Dns { host: host.to_owned(), why };
    }
    DialError::Tcp { to: target.to_string(), why }
}

/// hyper-util's SOCKS errors have no source: what the system said stands only in their `Debug`, which holds no secret.
fn socks_error<E: std::error::Error>(error: &E) -> String {
    let text = error.to_string();
    if text.contains("underlying connection") || text.contains("io error") {
        format!("{text}: {error:?}")
    } else {
        text
    }
}

/// An error and its causes, without saying a thing twice.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// The rustls error within an error, however deep.
#[must_use]
pub fn rustls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        if let Some(inner) = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            let inner: &(dyn std::error::Error + 'static) = inner;
            if let Some(found) = rustls_error(inner) {
                return Some(found);
            }
        }
        next = cause.source();
    }
    None
}

/// What a TLS failure means for the one who has to do something.
#[must_use]
#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' enums are long and grow")]
pub fn explain_tls(error: &rustls::Error, time: &VerificationTime) -> String {
    let clock = || chrono::DateTime::from_timestamp_millis(time.now_ms()).unwrap_or_default().format("%F %R UTC");
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
                "this machine's clock says {}, which is after the end of the relay's certificate: if the clock is \
                 wrong, set it (`timedatectl`); if it is right, the relay's certificate has to be renewed",
                clock()
            ),
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
                "this machine's clock says {}, which is before the beginning of the relay's certificate: \
                 set the clock (`timedatectl`)",
                clock()
            ),
            // An authority of the same name and another key gives a bad signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the relay's certificate is not from the authority that this satellite \
                enrolled with: another relay answers, or something between decrypts TLS"
                    .to_owned()
            }
            CertificateError::Other(other) => other.to_string(),
            other => format!("the relay's certificate is refused: {other}"),
        },
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                "the relay says that this satellite's certificate has ended".to_owned()
            }
            AlertDescription::CertificateRevoked | AlertDescription::AccessDenied => {
                "the relay says that this satellite's certificate is revoked: ask for a new lease".to_owned()
            }
            other => format!("the relay broke off with {other:?}"),
        },
        other => other.to_string(),
    }
}

fn tls_error(error: &io::Error, time: &VerificationTime, to: &str) -> DialError {
    let Some(tls) = rustls_error(error) else {
        let hint =
            if error.kind() == io::ErrorKind::UnexpectedEof { ": is it a relay's port for satellites?" } else { "" };
        return DialError::Tls { why: format!("{to} broke off ({error}){hint}"), expired: false };
    };
    let expired = matches!(tls, rustls::Error::AlertReceived(AlertDescription::CertificateExpired));
    DialError::Tls { why: explain_tls(tls, time), expired }
}

/// A refused client certificate shows only here: in TLS 1.3 the client has finished before the server looks.
#[expect(clippy::wildcard_enum_match_arm, reason = "tungstenite's enum is long and grows")]
fn websocket_error(error: WsError, time: &VerificationTime, target: &Target) -> DialError {
    let to = target.to_string();
    match error {
        WsError::Io(error) if rustls_error(&error).is_some() => tls_error(&error, time, &to),
        WsError::Http(response) => {
            let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            let body: String = String::from_utf8_lossy(response.body().as_deref().unwrap_or_default())
                .chars()
                .filter(|c| !c.is_control())
                .take(200)
                .collect();
            let why = format!("{} {body}: is it a relay's port for satellites?", response.status());
            DialError::WebSocket { to, why, retry_after: seconds.map(Duration::from_secs) }
        }
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => DialError::WebSocket {
            to,
            why: format!("without the subprotocol {}: update the relay or this program", version::SUBPROTOCOL),
            retry_after: None,
        },
        other => DialError::WebSocket { to, why: chain(&other), retry_after: None },
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::{ManualClock, SystemClock};
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::uplink::stand_in::{
        Authority, DAY_S, ENDED, GOOD, Life, Server, connect_proxy, detached, now_ms, read_request, reply, socks_proxy,
    };

    fn dial(identity: Identity, proxy: Option<String>, clock: Arc<dyn Clock>) -> Dial {
        let proxy = ProxySettings { proxy: proxy.or(Some("direct".into())), no_proxy: vec![] };
        Dial { identity, proxy, time: VerificationTime::new(clock), meter: Arc::new(Meter::default()) }
    }

    /// Accepts one session and says what its TLS agreed on.
    async fn serve(server: Server) -> String {
        let stream = server.accept().await.unwrap();
        let (_, tls) = stream.get_ref();
        let agreed = format!(
            "{:?} {:?} {:?} {:?}",
            tls.protocol_version().unwrap(),
            tls.negotiated_key_exchange_group().unwrap().name(),
            tls.handshake_kind().unwrap(),
            tls.alpn_protocol().map(String::from_utf8_lossy)
        );
        #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
        let check = |request: &tokio_tungstenite::tungstenite::handshake::server::Request,
                     mut response: tokio_tungstenite::tungstenite::handshake::server::Response| {
            assert_eq!(request.uri().path(), version::PATH);
            assert!(request.headers().get("origin").is_none());
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            assert_eq!(protocol, version::SUBPROTOCOL);
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        };
        let mut socket = tokio_tungstenite::accept_hdr_async(stream, check).await.unwrap();
        socket.close(None).await.ok();
        agreed
    }

    async fn through(proxy: Option<String>, host: Option<&str>) -> Result<String, DialError> {
        let authority = Authority::new("relay");
        let server = Server::start(authority.server(GOOD, true)).await;
        let mut identity = authority.identity(server.address, GOOD);
        if let Some(host) = host {
            identity.session_url = format!("wss://{host}:{}", server.address.port());
        }
        let (connected, agreed) = tokio::join!(dial(identity, proxy, Arc::new(SystemClock)).connect(), async {
            tokio::time::timeout(Duration::from_secs(5), serve(server)).await
        });
        connected.map(|_| agreed.unwrap())
    }

    async fn refused(server: Server, identity: Identity, clock: Arc<dyn Clock>) -> DialError {
        detached(async move {
            while let Ok(stream) = server.accept().await {
                drop(stream);
            }
        });
        dial(identity, None, clock).connect().await.unwrap_err()
    }

    #[tokio::test]
    async fn a_session_is_tls_1_3_post_quantum_never_resumed_and_http_1() {
        let agreed = through(None, None).await.unwrap();
        assert_eq!(agreed, r#"TLSv1_3 X25519MLKEM768 Full Some("http/1.1")"#);
        assert!(through(None, Some("localhost")).await.is_ok(), "by name too");
    }

    #[tokio::test]
    async fn a_connect_proxy_leads_to_the_relay_and_sees_the_credentials_it_wants() {
        let (proxy, asked) = connect_proxy(None).await;
        through(Some(format!("http://bob:pw@{proxy}")), Some("localhost")).await.unwrap();
        let head = asked.lock().unwrap()[0].clone();
        assert!(head.starts_with("CONNECT localhost:"), "{head}");
        assert!(head.contains("Proxy-Authorization: Basic Ym9iOnB3"), "{head}");
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named_without_its_credentials() {
        let (proxy, _) = connect_proxy(Some("407 Proxy Authentication Required")).await;
        let error = through(Some(format!("http://bob:hunter2@{proxy}")), None).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(matches!(error, DialError::Through { .. }), "{text}");
        assert!(text.contains("authorization required") && !text.contains("hunter2"), "{text}");
    }

    #[tokio::test]
    async fn socks5h_lets_the_proxy_resolve_and_socks5_does_not() {
        let (proxy, asked) = socks_proxy().await;
        through(Some(format!("socks5h://bob:pw@{proxy}")), Some("localhost")).await.unwrap();
        through(Some(format!("socks5://bob:pw@{proxy}")), Some("localhost")).await.map_or_else(
            // localhost may be ::1 first, where nothing listens; what counts is that an address was asked for.
            |_| (),
            |_| (),
        );
        let asked = asked.lock().unwrap().clone();
        assert!(asked[0].starts_with("localhost:"), "{asked:?}");
        assert!(asked.iter().skip(1).all(|one| !one.starts_with("localhost")), "{asked:?}");
        let wrong = through(Some(format!("socks5h://bob:xx@{proxy}")), None).await.unwrap_err();
        assert!(matches!(wrong, DialError::Through { .. }), "{wrong}");
    }

    #[tokio::test]
    async fn a_proxy_that_is_not_there_is_named() {
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        for scheme in ["http", "socks5h"] {
            let error = through(Some(format!("{scheme}://{gone}")), None).await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&gone.to_string()) && text.contains("refused"), "{text}");
        }
    }

    #[tokio::test]
    async fn each_step_that_fails_is_named() {
        let authority = Authority::new("relay");
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut identity = authority.identity(gone, GOOD);
        let error = dial(identity.clone(), None, Arc::new(SystemClock)).connect().await.unwrap_err();
        assert!(matches!(error, DialError::Tcp { .. }), "{error}");
        identity.session_url = "wss://no..such..name:1".into();
        let error = dial(identity.clone(), None, Arc::new(SystemClock)).connect().await.unwrap_err();
        assert!(matches!(error, DialError::Dns { .. }), "{error}");
        identity.session_url = "ws://127.0.0.1:1".into();
        let error = dial(identity, None, Arc::new(SystemClock)).connect().await.unwrap_err();
        assert!(matches!(error, DialError::Address(_)), "{error}");
    }

    #[tokio::test]
    async fn a_relay_of_another_authority_is_refused() {
        let (ours, other) = (Authority::new("relay"), Authority::new("relay"));
        let server = Server::start(other.server(GOOD, true)).await;
        let identity = ours.identity(server.address, GOOD);
        let error = refused(server, identity, Arc::new(SystemClock)).await;
        assert!(error.to_string().contains("authority"), "{error}");
    }

    #[tokio::test]
    async fn a_clock_that_is_ahead_or_behind_is_named() {
        let authority = Authority::new("relay");
        for (clock_ms, says) in
            [(now_ms() + 4_000 * DAY_S * 1000, "after the end"), (now_ms() - 400 * DAY_S * 1000, "before")]
        {
            let server = Server::start(authority.server(GOOD, true)).await;
            let identity = authority.identity(server.address, GOOD);
            let error = refused(server, identity, Arc::new(ManualClock::new(clock_ms, 0))).await.to_string();
            assert!(error.contains("clock says") && error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn an_ended_client_certificate_is_told_from_other_refusals() {
        let authority = Authority::new("relay");
        let server = Server::start(authority.server(GOOD, true)).await;
        let identity = authority.identity(server.address, ENDED);
        let error = refused(server, identity, Arc::new(SystemClock)).await;
        assert!(error.is_expired_certificate(), "{error}");
        let other = Authority::new("other");
        let server = Server::start(authority.server(GOOD, true)).await;
        let mut identity = other.identity(server.address, GOOD);
        identity.ca_bundle = authority.pem.clone();
        let error = refused(server, identity, Arc::new(SystemClock)).await;
        assert!(!error.is_expired_certificate(), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_is_no_relay_is_told_so_and_its_wish_to_wait_is_kept() {
        let authority = Authority::new("relay");
        let server = Server::start(authority.server(GOOD, true)).await;
        let identity = authority.identity(server.address, GOOD);
        let (error, ()) = tokio::join!(dial(identity, None, Arc::new(SystemClock)).connect(), async {
            let mut stream = server.accept().await.unwrap();
            read_request(&mut stream).await;
            reply(&mut stream, "503 Busy\r\nRetry-After: 17", "too much").await;
        });
        let error = error.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
        assert!(error.to_string().contains("503"), "{error}");
    }

    #[tokio::test]
    async fn a_port_that_speaks_no_tls_is_told_so() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Authority::new("relay").identity(listener.local_addr().unwrap(), GOOD);
        let (error, ()) = tokio::join!(dial(identity, None, Arc::new(SystemClock)).connect(), async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        });
        assert!(matches!(error, Err(DialError::Tls { expired: false, .. })), "{error:?}");
    }

    #[tokio::test]
    async fn an_attempt_is_bounded_as_a_whole() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let identity = Authority::new("relay").identity(listener.local_addr().unwrap(), GOOD);
        let limit = Duration::from_millis(200);
        let error = dial(identity, None, Arc::new(SystemClock)).connect_within(limit).await.unwrap_err();
        assert!(matches!(error, DialError::Slow { step: Step::Tls, .. }), "{error}");
    }

    #[tokio::test]
    async fn greeting_hears_the_relays_hello() {
        let authority = Authority::new("relay");
        let server = Server::start(authority.server(Life(60, DAY_S), true)).await;
        let identity = authority.identity(server.address, GOOD);
        let direct = ProxySettings { proxy: Some("direct".into()), no_proxy: vec![] };
        let (hello, ()) = tokio::join!(greet(&identity, &direct, &SystemClock), async {
            let stream = server.accept().await.unwrap();
            #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
            let accept = |_: &_, mut response: tokio_tungstenite::tungstenite::handshake::server::Response| {
                let protocol = version::SUBPROTOCOL.parse().unwrap();
                response.headers_mut().insert("sec-websocket-protocol", protocol);
                Ok(response)
            };
            let mut socket = tokio_tungstenite::accept_hdr_async(stream, accept).await.unwrap();
            let hello = Hello {
                protocol_min: 1,
                protocol_max: 1,
                relay: "r1".into(),
                relay_version: "0".into(),
                clock_ms: 5,
                heartbeat_s: 20,
            };
            let text = serde_json::to_string(&ToSatellite::Hello(hello)).unwrap();
            futures_util::SinkExt::send(&mut socket, text.into()).await.unwrap();
            while socket.next().await.is_some_and(|message| message.is_ok()) {}
        });
        assert_eq!(hello.unwrap().relay, "r1");
    }
}
