//! Requests to one device, bounded in every direction.
//!
//! Connections go to the addresses that the [`Gate`] handed out for the request under way: no redirect, no proxy, no
//! second look-up, no resumption, no decompression. A device's HTTP server often serves few connections, so none is held
//! between polls; requests of one poll share one where the device keeps it.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, Version};
use reqwest::Url;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use satellite_shared::gap::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::connection::{Connection, Tls};
use super::credentials::{self, Credentials};
use super::target::Target;
use crate::collector::trust::{self, Seen, Shown, Trust};
use crate::collector::{Failure, probe};
use crate::policy::{Gate, Method, Protocol};

const USER_AGENT: &str = concat!("satellite/", env!("CARGO_PKG_VERSION"));

/// What is read of an answer that nobody wants, so that its connection can be used again.
const REST_BYTES_MAX: usize = 16 << 10;

/// What sends requests to one device.
pub(crate) struct Client {
    target: Target,
    headers: HeaderMap,
    credentials: Credentials,
    trust: Trust,
    /// The addresses of the request under way: all that it may go to.
    approved: Vec<SocketAddr>,
    /// The connection of the request before, if it can be used again.
    kept: Option<Connection>,
    seen: Seen,
    tls: Option<Arc<ClientConfig>>,
}

/// One request, beside what a device's configuration gives all of them.
#[derive(Debug)]
pub(crate) struct Question {
    /// How it is asked.
    pub(crate) method: Method,
    /// Path and query, where they stand in this program and are not what a configuration has written.
    pub(crate) path: Option<String>,
    /// What it wants.
    pub(crate) accept: &'static str,
    /// Headers of its own.
    pub(crate) headers: HeaderMap,
    /// Empty, but for a POST.
    pub(crate) body: Bytes,
}

impl Question {
    /// A request of the URL itself, without a body.
    pub(crate) fn new(method: Method, accept: &'static str) -> Self {
        Self { method, path: None, accept, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// The head of an answer; its body can be read.
pub(crate) struct Answer {
    url: Url,
    /// Whether the request could answer a challenge of RFC 7616.
    is_digest: bool,
    head: Response<()>,
    connection: Connection,
}

impl Client {
    /// A client that has sent nothing yet.
    pub(crate) fn new(target: Target, headers: HeaderMap, credentials: Credentials, trust: Trust) -> Self {
        let (approved, seen) = (Vec::new(), Seen::default());
        Self { target, headers, credentials, trust, approved, kept: None, seen, tls: None }
    }

    /// Where it goes.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.target.is_https()
    }

    /// Whether its requests carry something secret.
    pub(crate) fn has_credentials(&self) -> bool {
        !self.credentials.is_empty()
    }

    /// Asks the gate for the device's addresses: what follows goes to these only.
    pub(crate) async fn resolve(&mut self, gate: &Gate) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = gate.resolve(Protocol::Http, &self.target.host, self.target.port).await?;
        self.approved.clone_from(&addresses);
        self.kept.take_if(|kept| kept.from().is_none_or(|from| !addresses.contains(&from)));
        Ok(addresses)
    }

    /// Sends a request and reads the head of the answer; a challenge of RFC 7616 is answered where that is configured.
    pub(crate) async fn ask(&mut self, question: &Question) -> Result<Answer, Failure> {
        let answer = self.exchange(question).await?;
        if answer.status() != 401 || !answer.is_digest {
            return Ok(answer);
        }
        self.credentials.take_challenge(answer.challenges())?;
        self.keep(answer).await;
        let answer = self.exchange(question).await?;
        if answer.status() == 401 {
            self.credentials.forget_challenge();
        }
        Ok(answer)
    }

    /// Takes the connection back for the next request, if the device lets it be used again.
    pub(crate) async fn keep(&mut self, answer: Answer) {
        let Answer { mut connection, .. } = answer;
        let mut rest = 0;
        loop {
            match connection.chunk().await {
                Ok(Some(chunk)) if rest + chunk.len() <= REST_BYTES_MAX => rest += chunk.len(),
                Ok(Some(_)) | Err(_) => return,
                Ok(None) => break,
            }
        }
        if connection.is_open().await {
            self.kept = Some(connection);
        }
    }

    /// Ends what was kept: nothing is held between polls.
    pub(crate) fn hang_up(&mut self) {
        self.kept = None;
        self.approved.clear();
    }

    async fn exchange(&mut self, question: &Question) -> Result<Answer, Failure> {
        if let Some(mut connection) = self.kept.take() {
            let request = self.request(question)?;
            match connection.ask(request).await {
                Ok(head) => return Ok(self.answer(head, connection)),
                // Devices close what they kept whenever they like: that says nothing, and nothing asked here writes.
                Err(error) if was_closed(error.as_ref()) => {}
                Err(error) => return Err(self.failure_of(error.as_ref())),
            }
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let tls = if self.is_https() { Some(self.tls()?) } else { None };
        let request = self.request(question)?;
        let asked = async {
            let mut connection = Connection::open(self.approved.clone(), tls).await?;
            let head = connection.ask(request).await?;
            Ok::<_, super::connection::Error>((head, connection))
        };
        match asked.await {
            Ok((head, connection)) => Ok(self.answer(head, connection)),
            Err(error) => Err(self.failure_of(error.as_ref())),
        }
    }

    fn answer(&self, head: Response<()>, connection: Connection) -> Answer {
        Answer { url: self.target.url.clone(), is_digest: self.credentials.is_digest(), head, connection }
    }

    fn request(&mut self, question: &Question) -> Result<Request<Full<Bytes>>, Failure> {
        let url = &self.target.url;
        let path = question.path.clone().unwrap_or_else(|| self.target.asked());
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let mut request = Request::builder()
            .method(question.method.as_str())
            .uri(&path)
            .body(Full::new(question.body.clone()))
            .map_err(|error| unsupported(&error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_str(&host).map_err(|error| unsupported(&error))?);
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::ACCEPT, HeaderValue::from_static(question.accept));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.headers.clone());
        headers.extend(question.headers.clone());
        let is_written = question.path.is_none();
        headers.extend(self.credentials.headers(&self.target, question.method, &path, is_written)?);
        Ok(request)
    }

    /// The certificate that the last handshake showed.
    pub(crate) fn shown(&self) -> Option<Shown> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tls(&mut self) -> Result<Tls, Failure> {
        let name = ServerName::try_from(self.target.host.clone());
        let name = name.map_err(|error| unsupported(&error))?;
        let config = match &self.tls {
            Some(config) => Arc::clone(config),
            None => Arc::new(trust::client_config(self.trust, &self.seen)?),
        };
        self.tls = Some(Arc::clone(&config));
        Ok(Tls { config, name })
    }

    fn failure_of(&self, error: &(dyn Error + 'static)) -> Failure {
        let failure = failure_of(error);
        match (tls_cause(error), self.shown().and_then(|shown| shown.refusal)) {
            (Some(rustls::Error::InvalidCertificate(_)), Some(why)) => Failure::new(Reason::BadAnswer, why),
            _ => failure,
        }
    }
}

impl Answer {
    /// What a device answers to a request over a stream that stands already: no address, no certificate.
    pub(crate) async fn over<S>(stream: S) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |error: super::connection::Error| failure_of(error.as_ref());
        let mut connection = Connection::over(stream, None).await.map_err(failed)?;
        let head = connection.ask(Request::new(Full::default())).await.map_err(failed)?;
        let url = Url::parse("http://device/").map_err(|error| unsupported(&error))?;
        Ok(Self { url, is_digest: false, head, connection })
    }

    /// What a program of this host answers to a GET of a path that needs no encoding, over its socket.
    pub(crate) async fn local(stream: UnixStream, host: &'static str, path: &str) -> Result<Self, Failure> {
        let mut request = Request::builder().uri(path).body(Full::default()).map_err(|error| unsupported(&error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let failed = |error: super::connection::Error| failure_of(error.as_ref());
        let mut connection = Connection::over(stream, None).await.map_err(failed)?;
        let head = connection.ask(request).await.map_err(failed)?;
        let url = Url::parse("http://localhost/").map_err(|error| unsupported(&error))?;
        Ok(Self { url, is_digest: false, head, connection })
    }

    /// `200`, `404`, …
    pub(crate) fn status(&self) -> u16 {
        self.head.status().as_u16()
    }

    /// `1.1` or `1.0`.
    pub(crate) fn version(&self) -> f64 {
        if self.head.version() == Version::HTTP_10 { 1.0 } else { 1.1 }
    }

    /// The address that answered.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        self.connection.from()
    }

    /// How long the device says that the body is.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// What the device says that the body is.
    pub(crate) fn content_type(&self) -> Option<&str> {
        self.header(header::CONTENT_TYPE)
    }

    /// Whether the end of the body is told, and not just the end of the connection.
    pub(crate) fn is_framed(&self) -> bool {
        let headers = self.head.headers();
        headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// Refuses a status other than 2xx, and says where a redirect would lead.
    pub(crate) fn check_status(&self) -> Result<(), Failure> {
        let status = self.head.status();
        if status.is_success() {
            return Ok(());
        }
        if status.is_redirection() {
            let base = &self.url;
            let to = self.header(header::LOCATION).and_then(|location| base.join(location).ok());
            let to = to.map_or(String::new(), |mut to| {
                // What is behind the path may be a secret.
                to.set_query(None);
                to.set_fragment(None);
                let cleared = to.set_password(None).and_then(|()| to.set_username(""));
                if cleared.is_ok() { format!(": it leads to {to}") } else { String::new() }
            });
            return Err(Failure::new(
                Reason::BadAnswer,
                format!("HTTP {}, redirects are not followed{to}", status.as_u16()),
            ));
        }
        let hint = match (status.as_u16(), self.is_digest) {
            (401, true) => ": the device knows no such user and password",
            (401, false) if credentials::asks_for_digest(&self.challenges()) => {
                ": the device asks for digest: add scheme = \"digest\" to `auth`"
            }
            _ => "",
        };
        Err(Failure::new(Reason::Refused, format!("HTTP {}{hint}", status.as_u16())))
    }

    /// Refuses a body that is encoded: none was asked for, and a small one may unpack into a huge one.
    pub(crate) fn check_encoding(&self) -> Result<(), Failure> {
        match self.head.headers().get(header::CONTENT_ENCODING) {
            Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
                let shown: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(40).collect();
                Err(Failure::new(Reason::BadAnswer, format!("the body is encoded ({shown}), which was not asked for")))
            }
            _ => Ok(()),
        }
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        self.connection.chunk().await.map_err(|error| failure_of(error.as_ref()))
    }

    /// The whole body, or a failure where it is longer than that.
    pub(crate) async fn body(&mut self, bytes_max: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > bytes_max {
                return Err(Failure::new(Reason::BadAnswer, format!("a body of more than {bytes_max} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// Whom the device would let in, and how.
    fn challenges(&self) -> Vec<String> {
        let all = self.head.headers().get_all(header::WWW_AUTHENTICATE).iter();
        all.filter_map(|value| value.to_str().ok().map(str::to_owned)).collect()
    }

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.head.headers().get(name)?.to_str().ok()
    }
}

fn unsupported(error: &dyn Error) -> Failure {
    Failure::new(Reason::Unsupported, error.to_string())
}

fn failure_of(error: &(dyn Error + 'static)) -> Failure {
    if let Some(tls) = tls_cause(error) {
        return Failure::new(Reason::BadAnswer, format!("TLS: {tls}"));
    }
    let io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(io) = io.into_iter().find(|io| io.kind() != std::io::ErrorKind::Other) {
        return probe::failure_of_io(io);
    }
    Failure::new(Reason::BadAnswer, format!("not an HTTP answer: {}", root_cause(error)))
}

/// Whether a connection that had answered before was closed instead of answering again.
fn was_closed(error: &(dyn Error + 'static)) -> bool {
    use std::io::ErrorKind as Io;
    let http = causes(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>());
    let mut io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    http.into_iter().any(|http| http.is_incomplete_message() || http.is_closed() || http.is_canceled())
        || io.any(|io| matches!(io.kind(), Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe))
}

/// What lies at the bottom: the layers above repeat it.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

fn tls_cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An error and all below it; `source` alone steps over what an [`std::io::Error`] carries.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        carried.map(|carried| carried as &(dyn Error + 'static)).or_else(|| error.source())
    })
}
