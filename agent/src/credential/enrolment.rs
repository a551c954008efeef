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

#[cfg(test)]
mod tests {
    use satellite_shared::clock::{ManualClock, SystemClock};
    use satellite_shared::id::{LeaseId, SatelliteId};
    use satellite_shared::secret::{Token, TokenKind};
    use tokio::io::AsyncReadExt as _;

    use super::*;
    use crate::uplink::stand_in::{Authority, ENDED, GOOD, Server, connect_proxy, now_ms, socks_proxy};

    fn code(authority: &Authority, server: &Server) -> JoinCode {
        JoinCode {
            relay: format!("https://localhost:{}", server.address.port()),
            lease: LeaseId::from_bits([2; 10]),
            token: Token::from_bits(TokenKind::Lease, [7; 32]),
            ca_pin: authority.pin(),
        }
    }

    fn answer(authority: &Authority, csr: &str) -> String {
        let enrolled = Enrolled {
            satellite: SatelliteId::from_bits([1; 10]),
            lease: LeaseId::from_bits([2; 10]),
            name: "attic".into(),
            token: Token::from_bits(TokenKind::Satellite, [3; 32]),
            session_url: "wss://localhost:8444".into(),
            chain: authority.issue(csr, GOOD),
            ca_bundle: authority.pem.clone(),
            generation: 2,
            not_after_ms: now_ms() + 7_000_000,
            renew_after_ms: now_ms() + 3_000_000,
        };
        serde_json::to_string(&enrolled).unwrap()
    }

    fn body<T: DeserializeOwned>(request: &str) -> T {
        serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }

    fn problem(code: &str, retry_after_s: u64) -> String {
        let problem = Problem { code: code.into(), message: "the lease is used: make a new one".into(), retry_after_s };
        serde_json::to_string(&problem).unwrap()
    }

    fn way(proxy: Option<String>) -> ProxySettings {
        ProxySettings { proxy: proxy.or(Some("direct".into())), no_proxy: vec![] }
    }

    fn time() -> VerificationTime {
        VerificationTime::new(Arc::new(SystemClock))
    }

    struct Stage {
        dir: tempfile::TempDir,
        authority: Authority,
        server: Server,
    }

    impl Stage {
        async fn new() -> Self {
            let authority = Authority::new("relay");
            let server = Server::start(authority.server(GOOD, false)).await;
            Self { dir: tempfile::tempdir().unwrap(), authority, server }
        }

        fn keystore(&self) -> Keystore {
            Keystore::new(self.dir.path())
        }

        async fn enrol(&self, proxy: Option<String>) -> Result<Identity, EnrolmentError> {
            enrol(&self.keystore(), &code(&self.authority, &self.server), "attic", &way(proxy), &time()).await
        }

        async fn good(&self) -> EnrolRequest {
            let mut stream = self.server.accept().await.unwrap();
            let request = crate::uplink::stand_in::read_request(&mut stream).await;
            assert!(request.starts_with("POST /v1/enrol HTTP/1.1\r\n"), "{request}");
            let asked: EnrolRequest = body(&request);
            crate::uplink::stand_in::reply(&mut stream, "200 OK", &answer(&self.authority, &asked.csr)).await;
            asked
        }
    }

    #[tokio::test]
    async fn a_machine_enrols_and_keeps_its_identity() {
        let stage = Stage::new().await;
        let (identity, asked) = tokio::join!(stage.enrol(None), stage.good());
        let identity = identity.unwrap();
        assert_eq!(asked.token, Token::from_bits(TokenKind::Lease, [7; 32]));
        let kept = stage.keystore().load().unwrap();
        assert_eq!(kept.identity.unwrap().chain, identity.chain);
        assert!(kept.pending.is_none());
        let file = std::fs::read_to_string(stage.keystore().path()).unwrap();
        assert!(!file.contains("satl_"), "the lease's token is not kept");
    }

    #[tokio::test]
    async fn proxies_lead_to_the_web_door_too() {
        let stage = Stage::new().await;
        let (http, asked) = connect_proxy(None).await;
        let (identity, _) = tokio::join!(stage.enrol(Some(format!("http://bob:pw@{http}"))), stage.good());
        assert!(identity.is_ok(), "{identity:?}");
        assert!(asked.lock().unwrap()[0].contains("Basic Ym9iOnB3"));
        let (socks, asked) = socks_proxy().await;
        let (identity, _) = tokio::join!(stage.enrol(Some(format!("socks5h://bob:pw@{socks}"))), stage.good());
        assert!(identity.is_ok(), "{identity:?}");
        assert!(asked.lock().unwrap()[0].starts_with("localhost:"));
    }

    #[tokio::test]
    async fn a_server_without_the_pinned_authority_learns_nothing() {
        let stage = Stage::new().await;
        let other = Authority::new("relay");
        let code = JoinCode { ca_pin: other.pin(), ..code(&stage.authority, &stage.server) };
        let keystore = stage.keystore();
        let (way, time) = (way(None), time());
        let (refused, heard) = tokio::join!(enrol(&keystore, &code, "attic", &way, &time), async {
            match stage.server.accept().await {
                Ok(mut stream) => {
                    let mut all = vec![];
                    stream.read_to_end(&mut all).await.ok();
                    all
                }
                Err(_) => vec![],
            }
        });
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("ca-pin") && text.contains("nothing secret was sent"), "{text}");
        assert!(!text.contains("satl_"), "{text}");
        assert_eq!(heard, b"", "not one byte of the request");
    }

    #[tokio::test]
    async fn an_answer_that_was_lost_is_asked_for_again_with_the_same_key() {
        let stage = Stage::new().await;
        let (lost, first) = tokio::join!(stage.enrol(None), async {
            let mut stream = stage.server.accept().await.unwrap();
            body::<EnrolRequest>(&crate::uplink::stand_in::read_request(&mut stream).await)
        });
        assert!(!lost.unwrap_err().is_permanent());
        assert!(stage.keystore().load().unwrap().identity.is_none());
        let (identity, second) = tokio::join!(stage.enrol(None), stage.good());
        assert!(identity.is_ok());
        let key = |csr: &str| {
            use rcgen::PublicKeyData as _;
            rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap().public_key.der_bytes().to_vec()
        };
        assert_eq!(key(&first.csr), key(&second.csr));
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_leaves_what_was_there() {
        let stage = Stage::new().await;
        let (first, _) = tokio::join!(stage.enrol(None), stage.good());
        let before = first.unwrap().chain;
        let (refused, _) = tokio::join!(stage.enrol(None), async {
            stage.server.answer("409 Conflict", &problem("lease_used", 0)).await
        });
        let refused = refused.unwrap_err();
        assert!(refused.is_permanent() && refused.to_string().contains("make a new one"), "{refused}");
        let kept = stage.keystore().load().unwrap();
        assert_eq!(kept.identity.unwrap().chain, before);
        assert!(kept.pending.is_none());
        let (busy, _) = tokio::join!(stage.enrol(None), async {
            stage.server.answer("429 Too Many Requests", &problem("rate_limited", 9)).await
        });
        let busy = busy.unwrap_err();
        assert_eq!((busy.is_permanent(), busy.retry_after()), (false, Some(Duration::from_secs(9))));
    }

    #[tokio::test]
    async fn an_answer_that_makes_no_sense_is_refused() {
        let stage = Stage::new().await;
        let foreign = answer(&stage.authority, &Key::generate().unwrap().request().unwrap());
        let long = "x".repeat(ANSWER_BYTES_MAX + 1);
        for (status, body) in [
            ("200 OK", "hello"),
            ("404 Not Found", "<html>"),
            ("302 Found", ""),
            ("200 OK", &long),
            ("200 OK", &foreign),
        ] {
            let (refused, _) = tokio::join!(stage.enrol(None), stage.server.answer(status, body));
            assert!(
                matches!(refused, Err(EnrolmentError::Answer { .. } | EnrolmentError::Certificate(_))),
                "{refused:?}"
            );
        }
        assert!(stage.keystore().load().unwrap().identity.is_none());
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_before_anything_is_sent() {
        let stage = Stage::new().await;
        for relay in ["http://localhost", "https://", "https://u:p@localhost", "https://localhost?a", "ftp://x"] {
            let code = JoinCode { relay: relay.into(), ..code(&stage.authority, &stage.server) };
            let refused = enrol(&stage.keystore(), &code, "attic", &way(None), &time()).await;
            assert!(matches!(refused, Err(EnrolmentError::Code(_))), "{relay}: {refused:?}");
        }
    }

    #[tokio::test]
    async fn a_clock_that_is_wrong_is_named() {
        let stage = Stage::new().await;
        let (keystore, code, way) = (stage.keystore(), code(&stage.authority, &stage.server), way(None));
        let ahead = VerificationTime::new(Arc::new(ManualClock::new(now_ms() * 2, 0)));
        let (refused, _) = tokio::join!(enrol(&keystore, &code, "attic", &way, &ahead), stage.server.accept());
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("clock says"), "{text}");
    }

    #[tokio::test]
    async fn an_ended_certificate_is_replaced_by_proof_of_its_key() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
        use rcgen::PublicKeyData as _;

        let stage = Stage::new().await;
        let mut old = stage.authority.identity(stage.server.address, ENDED);
        old.renew_after_ms = old.not_after_ms - 1;
        stage.keystore().save(&Stored { identity: Some(old.clone()), pending: None }).unwrap();
        let nonce = "5a".repeat(32);
        let challenge = serde_json::to_string(&Challenge { nonce: nonce.clone() }).unwrap();
        let recovering = recover(stage.keystore(), old.clone(), way(None), time());
        let (recovered, request) = tokio::join!(recovering, async {
            let first = stage.server.answer("200 OK", &challenge).await;
            assert!(first.starts_with("POST /v1/recover/challenge "), "{first}");
            let mut stream = stage.server.accept().await.unwrap();
            let text = crate::uplink::stand_in::read_request(&mut stream).await;
            let request: RecoverRequest = body(&text);
            crate::uplink::stand_in::reply(&mut stream, "200 OK", &answer(&stage.authority, &request.csr)).await;
            request
        });
        let recovered = recovered.unwrap();
        assert_eq!((recovered.generation, &recovered.satellite), (2, &old.satellite));
        assert_ne!(recovered.key.expose_pem(), old.key.expose_pem(), "a new key");
        assert_eq!(stage.keystore().load().unwrap().identity.unwrap().chain, recovered.chain);
        let text = RecoverRequest::signed_text(&old.satellite, &nonce, 1, &request.csr);
        let signature = data_encoding::BASE64URL_NOPAD.decode(request.signature.as_bytes()).unwrap();
        let old_request = rcgen::CertificateSigningRequestParams::from_pem(&old.key.request().unwrap()).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, old_request.public_key.der_bytes());
        assert!(public.verify(text.as_bytes(), &signature).is_ok());
    }

    #[tokio::test]
    async fn a_revoked_satellite_is_told_and_keeps_its_old_identity() {
        let stage = Stage::new().await;
        let mut old = stage.authority.identity(stage.server.address, ENDED);
        old.renew_after_ms = old.not_after_ms - 1;
        stage.keystore().save(&Stored { identity: Some(old.clone()), pending: None }).unwrap();
        let recovering = recover(stage.keystore(), old.clone(), way(None), time());
        let revoked = problem("revoked", 0);
        let (refused, _) = tokio::join!(recovering, stage.server.answer("403 Forbidden", &revoked));
        assert!(refused.unwrap_err().is_permanent());
        assert_eq!(stage.keystore().load().unwrap().identity.unwrap().chain, old.chain);
    }
}
