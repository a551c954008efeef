//! One request to one device, bounded in every direction.
//!
//! The connection goes to the addresses that the [`Gate`] handed out for this request and is not kept: no redirect, no
//! proxy, no second look-up, no resumption, no decompression. A device's HTTP server often serves few connections, so
//! none is held between polls.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use reqwest::Response;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{self, HeaderMap};
use satellite_shared::gap::Reason;

use super::target::Target;
use super::trust::{self, Seen, Shown, Trust};
use crate::collector::{Failure, probe};
use crate::policy::{Gate, Method, Protocol};

/// Headers of one answer; their bytes are limited by the HTTP library, to 400 KiB.
const HEADERS_MAX: usize = 100;
const USER_AGENT: &str = concat!("satellite/", env!("CARGO_PKG_VERSION"));

/// What sends requests to one device.
pub(crate) struct Client {
    target: Target,
    headers: HeaderMap,
    trust: Trust,
    approved: Arc<Approved>,
    seen: Seen,
    http: Option<reqwest::Client>,
}

/// The addresses of the request under way: all that the HTTP library ever gets for a name.
#[derive(Default)]
struct Approved(Mutex<Vec<SocketAddr>>);

impl Resolve for Approved {
    fn resolve(&self, _name: Name) -> Resolving {
        let addresses: Addrs = Box::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter());
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

/// The head of an answer; its body can be read.
pub(crate) struct Answer {
    response: Response,
}

impl Client {
    /// A client that has sent nothing yet.
    pub(crate) fn new(target: Target, headers: HeaderMap, trust: Trust) -> Self {
        Self { target, headers, trust, approved: Arc::default(), seen: Seen::default(), http: None }
    }

    /// Whether it speaks TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.target.is_https()
    }

    /// Asks the gate for the device's addresses: what follows goes to these only.
    pub(crate) async fn resolve(&mut self, gate: &Gate) -> Result<Vec<SocketAddr>, Failure> {
        let addresses = gate.resolve(Protocol::Http, &self.target.host, self.target.port).await?;
        self.approved.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&addresses);
        Ok(addresses)
    }

    /// Sends a request and reads the head of the answer.
    pub(crate) async fn send(&mut self, method: Method, accept: &'static str) -> Result<Answer, Failure> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let (url, headers) = (self.target.url.clone(), self.headers.clone());
        let http = self.http()?;
        let request = match method {
            Method::Get => http.get(url),
            Method::Head => http.head(url),
        };
        let request = request.header(header::ACCEPT, accept).header(header::ACCEPT_ENCODING, "identity");
        let sent = request.headers(headers).send().await;
        sent.map(|response| Answer { response }).map_err(|error| self.failure_of(&error))
    }

    /// The certificate that the last handshake showed.
    pub(crate) fn shown(&self) -> Option<Shown> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn http(&mut self) -> Result<&reqwest::Client, Failure> {
        if self.http.is_none() {
            // Without TLS no certificate is right.
            let trust = if self.is_https() { self.trust } else { Trust::Pin([0; 32]) };
            let built = reqwest::Client::builder()
                .tls_backend_preconfigured(trust::client_config(trust, &self.seen)?)
                .dns_resolver(Arc::clone(&self.approved))
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .pool_max_idle_per_host(0)
                .http1_only()
                .http1_max_headers(HEADERS_MAX)
                .user_agent(USER_AGENT)
                .build();
            self.http = Some(built.map_err(|error| Failure::new(Reason::Unsupported, root_cause(&error)))?);
        }
        self.http.as_ref().ok_or_else(|| Failure::new(Reason::Unsupported, "no HTTP client"))
    }

    fn failure_of(&self, error: &reqwest::Error) -> Failure {
        let failure = failure_of(error);
        match (tls_cause(error), self.shown()) {
            (Some(rustls::Error::InvalidCertificate(_)), Some(shown)) => {
                let seen = data_encoding::HEXLOWER.encode(&shown.fingerprint);
                let why = match self.trust {
                    Trust::System => "the certificate is not trusted; if it is the device's own",
                    Trust::Pin(_) => "the certificate is another than the pinned one; if the device has a new one",
                };
                Failure::new(Reason::BadAnswer, format!("{why}, set tls = \"pin:{seen}\""))
            }
            _ => failure,
        }
    }
}

impl Answer {
    /// `200`, `404`, …
    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// `1.1` or `1.0`.
    pub(crate) fn version(&self) -> f64 {
        if self.response.version() == reqwest::Version::HTTP_10 { 1.0 } else { 1.1 }
    }

    /// The address that answered.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        self.response.remote_addr()
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
        let headers = self.response.headers();
        headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
    }

    /// Refuses a status other than 2xx, and says where a redirect would lead.
    pub(crate) fn check_status(&self) -> Result<(), Failure> {
        let status = self.response.status();
        if status.is_success() {
            return Ok(());
        }
        if status.is_redirection() {
            let base = self.response.url();
            let to = self.header(header::LOCATION).and_then(|location| base.join(location).ok());
            let to = to.map_or(String::new(), |mut to| {
                // What is behind the path may be a secret.
                to.set_query(None);
                to.set_fragment(None);
                let cleared = to.set_password(None).and_then(|()| to.set_username(""));
                if cleared.is_ok() { format!(" to {to}") } else { String::new() }
            });
            return Err(Failure::new(
                Reason::BadAnswer,
                format!("HTTP {}{to}: redirects are not followed", status.as_u16()),
            ));
        }
        Err(Failure::new(Reason::Refused, format!("HTTP {}", status.as_u16())))
    }

    /// Refuses a body that is encoded: none was asked for, and a small one may unpack into a huge one.
    pub(crate) fn check_encoding(&self) -> Result<(), Failure> {
        match self.response.headers().get(header::CONTENT_ENCODING) {
            Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
                let shown: String = String::from_utf8_lossy(encoding.as_bytes()).chars().take(40).collect();
                Err(Failure::new(Reason::BadAnswer, format!("the body is encoded ({shown}), which was not asked for")))
            }
            _ => Ok(()),
        }
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        self.response.chunk().await.map_err(|error| failure_of(&error))
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

    fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

fn failure_of(error: &reqwest::Error) -> Failure {
    if let Some(tls) = tls_cause(error) {
        return Failure::new(Reason::BadAnswer, format!("TLS: {tls}"));
    }
    let io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(io) = io.into_iter().find(|io| io.kind() != std::io::ErrorKind::Other) {
        return probe::failure_of_io(io);
    }
    if error.is_timeout() {
        return Failure::new(Reason::Timeout, "no answer in time");
    }
    let said = root_cause(error);
    if error.is_connect() {
        return Failure::new(Reason::Unreachable, said);
    }
    Failure::new(Reason::BadAnswer, format!("not an HTTP answer: {said}"))
}

/// What lies at the bottom: the layers above repeat the URL.
fn root_cause(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

fn tls_cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// An error and all below it; `source` alone steps over what an [`std::io::Error`] carries.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        carried.map(|carried| carried as &(dyn Error + 'static)).or_else(|| error.source())
    })
}
