//! The relay's web door: a first certificate for a lease, a new one for an expired key.
//!
//! The server is known by the join code's pin before a byte of a request leaves. The key is kept before it is
//! shown, so that an answer that was lost can be asked for again: the relay answers the same key for ten minutes.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;
use satellite_shared::enrolment::{
    CHALLENGE_PATH, Challenge, ChallengeRequest, ENROL_PATH, EnrolRequest, Enrolled, JoinCode, Problem, RECOVER_PATH,
    RecoverRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::credential::key::{Key, KeyError};
use crate::credential::keystore::{Identity, InvalidCertificate, Keystore, KeystoreError, Pending, Stored};
use crate::credential::pin::{Pin, PinVerifier};
use crate::credential::verification_time::VerificationTime;
use crate::uplink::dial::{ATTEMPT, chain, explain_tls, rustls_error};
use crate::uplink::proxy::{InvalidProxy, ProxySettings, Route};

const ANSWER: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The address or the pin can't be used.
    #[error("the relay's {0} can't be used: copy the join code again, or get a new one")]
    Code(&'static str),
    /// The proxy can't be used.
    #[error(transparent)]
    Proxy(#[from] InvalidProxy),
    /// No answer.
    #[error("{relay} can't be reached {route}: {why}")]
    Unreachable {
        /// The relay.
        relay: String,
        /// The way that was tried.
        route: String,
        /// Which step failed, and what to do.
        why: String,
    },
    /// The relay said no.
    #[error("the relay refused: {}", .0.message)]
    Refused(Problem),
    /// The answer makes no sense.
    #[error("{relay} answered {what}: is it a satellite-relay, and its port for the web?")]
    Answer {
        /// The relay.
        relay: String,
        /// What.
        what: String,
    },
    /// The certificate is not for us.
    #[error(transparent)]
    Certificate(#[from] InvalidCertificate),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The identity can't be read or kept.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
}

impl EnrolmentError {
    /// Whether waiting can't help: somebody has to do something.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Refused(problem) => problem.retry_after_s == 0,
            Self::Unreachable { .. } | Self::Answer { .. } | Self::Keystore(_) | Self::Key(_) => false,
            Self::Code(_) | Self::Proxy(_) | Self::Certificate(_) => true,
        }
    }

    /// What the relay asked for.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused(problem) if problem.retry_after_s > 0 => Some(Duration::from_secs(problem.retry_after_s)),
            Self::Refused(_)
            | Self::Code(_)
            | Self::Proxy(_)
            | Self::Unreachable { .. }
            | Self::Answer { .. }
            | Self::Certificate(_)
            | Self::Key(_)
            | Self::Keystore(_) => None,
        }
    }
}

/// Enrols this machine with a join code and keeps the identity.
///
/// # Errors
/// Says why not, and what to do. The identity that was there before is then still there.
pub async fn enrol(
    keystore: &Keystore,
    code: &JoinCode,
    hostname: &str,
    proxy: &ProxySettings,
    time: &VerificationTime,
) -> Result<Identity, EnrolmentError> {
    let before = keystore.load()?;
    let kept = before.pending.as_ref().filter(|pending| pending.lease.as_ref() == Some(&code.lease));
    let key = match kept {
        Some(pending) => pending.key.clone(),
        None => Key::generate()?,
    };
    let door = WebDoor::new(&code.relay, &code.ca_pin, vec![], proxy, time)?;
    let pending = Some(Pending { lease: Some(code.lease.clone()), key: key.clone() });
    keystore.save(&Stored { identity: before.identity.clone(), pending })?;
    let request = EnrolRequest {
        lease: code.lease.clone(),
        token: code.token.clone(),
        csr: key.request()?,
        hostname: hostname.to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer: Result<Enrolled, _> = door.post(ENROL_PATH, &request).await;
    if let Err(error @ EnrolmentError::Refused(_)) = &answer
        && error.is_permanent()
    {
        // This key will never get its certificate: nothing of the attempt stays.
        match before.identity {
            Some(identity) => keystore.save(&Stored { identity: Some(identity), pending: None })?,
            None => keystore.remove()?,
        }
    }
    let identity = Identity::accept(answer?, key, &code.relay, &code.ca_pin)?;
    keystore.save(&Stored { identity: Some(identity.clone()), pending: None })?;
    Ok(identity)
}

/// Gets a new certificate for an identity whose certificate has ended, by proof of its key, and keeps it.
///
/// # Errors
/// Says why not, and what to do. The identity that was there before is then still there.
pub async fn recover(
    keystore: Keystore,
    identity: Identity,
    proxy: ProxySettings,
    time: VerificationTime,
) -> Result<Identity, EnrolmentError> {
    let stored = load(&keystore).await?;
    let kept = stored.pending.filter(|pending| pending.lease.is_none());
    let key = match kept {
        Some(pending) => pending.key,
        None => Key::generate()?,
    };
    let door = WebDoor::new(&identity.relay, &identity.ca_pin, identity.authorities()?, &proxy, &time)?;
    let pending = Some(Pending { lease: None, key: key.clone() });
    save(&keystore, Stored { identity: Some(identity.clone()), pending }).await?;
    let who = ChallengeRequest { satellite: identity.satellite.clone() };
    let Challenge { nonce } = door.post(CHALLENGE_PATH, &who).await?;
    let csr = key.request()?;
    let text = RecoverRequest::signed_text(&identity.satellite, &nonce, identity.generation, &csr);
    let request = RecoverRequest {
        satellite: identity.satellite.clone(),
        nonce,
        generation: identity.generation,
        signature: identity.key.sign(&text)?,
        csr,
    };
    let answer: Enrolled = door.post(RECOVER_PATH, &request).await?;
    let recovered = Identity::accept(answer, key, &identity.relay, &identity.ca_pin)?;
    if recovered.satellite != identity.satellite {
        return Err(InvalidCertificate::Answer("the certificate is for another satellite").into());
    }
    save(&keystore, Stored { identity: Some(recovered.clone()), pending: None }).await?;
    Ok(recovered)
}

/// [`Keystore::load`] beside the runtime.
///
/// # Errors
/// As there.
pub async fn load(keystore: &Keystore) -> Result<Stored, KeystoreError> {
    let keystore = keystore.clone();
    beside(move || keystore.load()).await
}

/// [`Keystore::save`] beside the runtime: an SD card may take seconds to make a file durable.
///
/// # Errors
/// As there.
pub async fn save(keystore: &Keystore, stored: Stored) -> Result<(), KeystoreError> {
    let keystore = keystore.clone();
    beside(move || keystore.save(&stored)).await
}

async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Only a panic or the runtime's end gets here; both go on where they came from.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}

/// The way to one relay's web door.
struct WebDoor {
    client: reqwest::Client,
    relay: reqwest::Url,
    route: Route,
    time: VerificationTime,
}

impl WebDoor {
    fn new(
        relay: &str,
        ca_pin: &str,
        known: Vec<CertificateDer<'static>>,
        proxy: &ProxySettings,
        time: &VerificationTime,
    ) -> Result<Self, EnrolmentError> {
        let pin = Pin::parse(ca_pin).ok_or(EnrolmentError::Code("ca-pin"))?;
        let address = || EnrolmentError::Code("address");
        let relay = reqwest::Url::parse(relay).map_err(|_| address())?;
        let plain = relay.scheme() == "https" && relay.host_str().is_some() && relay.username().is_empty();
        if !plain || relay.password().is_some() || relay.query().is_some() || relay.fragment().is_some() {
            return Err(address());
        }
        let route = Route::to(&relay.as_str().parse().map_err(|_| address())?, proxy)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = PinVerifier::new(pin, known, Arc::clone(&provider));
        let mut tls = ClientConfig::builder_with_details(provider, Arc::new(time.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(InvalidCertificate::Key)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        tls.resumption = rustls::client::Resumption::disabled();
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(ATTEMPT)
            .timeout(ANSWER)
            .user_agent(concat!("satellite/", env!("CARGO_PKG_VERSION")));
        let client = route.client(builder)?.build().map_err(|error| EnrolmentError::Unreachable {
            relay: relay.to_string(),
            route: route.to_string(),
            why: chain(&error),
        })?;
        Ok(Self { client, relay, route, time: time.clone() })
    }

    async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, EnrolmentError> {
        let mut url = self.relay.clone();
        url.set_path(&format!("{}{path}", self.relay.path().trim_end_matches('/')));
        let mut response = self.client.post(url).json(body).send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let mut bytes = vec![];
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.nonsense(format!("more than {} KiB", ANSWER_BYTES_MAX >> 10)));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| self.nonsense(format!("something else at line {}", error.line())));
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(mut problem) => {
                problem.message = problem.message.chars().filter(|c| !c.is_control()).take(500).collect();
                Err(EnrolmentError::Refused(problem))
            }
            Err(_) => Err(self.nonsense(format!("HTTP {status}"))),
        }
    }

    fn nonsense(&self, what: String) -> EnrolmentError {
        EnrolmentError::Answer { relay: self.relay.to_string(), what }
    }

    fn unreachable(&self, error: &reqwest::Error) -> EnrolmentError {
        let why = match rustls_error(error) {
            Some(tls) => format!("TLS: {}", explain_tls(tls, &self.time)),
            None if error.is_timeout() => {
                "no answer in time: check the network between, and that the relay runs".into()
            }
            None => format!("{}: check the address, and that the relay runs", without_url(error)),
        };
        EnrolmentError::Unreachable { relay: self.relay.to_string(), route: self.route.to_string(), why }
    }
}

fn without_url(error: &reqwest::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), chain)
}
