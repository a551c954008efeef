//! How satellites get their certificates: the first one with a lease, the next ones with the one before.
//!
//! Three ways to one end. *Enrol*: a lease's token and a key, on the web door, once. *Renew*: over the live session.
//! *Recover*: with the key of a certificate that has ended, against a nonce, on the web door.
//!
//! Invariant: of any number of claims of one lease one wins; the same key may ask again for ten minutes and gets the
//! same certificate. Whoever has no token learns nothing, in no other time, of whether a lease exists.

mod challenges;

pub(crate) mod rate_limit;

mod refusal;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use satellite_shared::clock::{Clock, Now};
use satellite_shared::enrolment::{Challenge, ChallengeRequest, EnrolRequest, Enrolled, RecoverRequest};
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::limits;
use satellite_shared::secret::{Token, TokenKind};
use satellite_shared::wire::to_satellite::Certificate;

use self::challenges::Challenges;
use self::rate_limit::RateLimit;
use crate::authority::{self, Authority, AuthorityError, Issued};
use crate::lease::{self, Claimed, LeaseRefusal};
use crate::registry::leases::Claim;
use crate::registry::{LeaseRow, Registry, RegistryError, SatelliteRow, hex, random, sha256_hex};

pub use self::refusal::Refusal;

/// Recoveries in a row, without a renewal between.
const RECOVERIES_MAX: u32 = 10;
const SAID_BYTES_MAX: usize = 128;

/// How much strangers may ask. Tests change it; nobody else does.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests a second from one address.
    pub per_second: f64,
    /// Requests at once from one address.
    pub burst: u32,
    /// What an answer to a wrong token takes at least, so that its time says nothing.
    pub refusal_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_second: 1.0, burst: 5, refusal_after: Duration::from_millis(100) }
    }
}

/// Where enrolled satellites are to connect.
#[derive(Debug, Clone)]
pub enum SessionUrl {
    /// Here.
    Fixed(String),
    /// To the host that their lease names, at this port.
    HostOfLease {
        /// The satellites' door.
        port: u16,
    },
}

/// Enrolment, renewal and recovery; clones are the same.
#[derive(Clone)]
pub struct Enrolment(Arc<Parts>);

struct Parts {
    registry: Registry,
    authority: Authority,
    clock: Arc<dyn Clock>,
    session_url: SessionUrl,
    refusal_after: Duration,
    rate: Mutex<RateLimit>,
    challenges: Mutex<Challenges>,
}

impl std::fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrolment").field("session_url", &self.0.session_url).finish_non_exhaustive()
    }
}

impl Enrolment {
    /// Enrolment at this relay.
    #[must_use]
    pub fn new(
        registry: Registry,
        authority: Authority,
        clock: Arc<dyn Clock>,
        session_url: SessionUrl,
        limits: &Limits,
    ) -> Self {
        Self(Arc::new(Parts {
            registry,
            authority,
            clock,
            session_url,
            refusal_after: limits.refusal_after,
            rate: Mutex::new(RateLimit::new(limits.per_second, limits.burst)),
            challenges: Mutex::default(),
        }))
    }

    /// The authorities to trust, PEM.
    #[must_use]
    pub fn ca_bundle(&self) -> &str {
        self.0.authority.ca_bundle()
    }

    /// Whether the registry answers.
    pub async fn is_healthy(&self) -> bool {
        self.0.registry.revision().await.is_ok()
    }

    /// Whether this address may ask now.
    ///
    /// # Errors
    /// Says when it may.
    pub fn admit(&self, address: IpAddr) -> Result<(), Refusal> {
        let taken = locked(&self.0.rate).take(address, self.0.clock.now().mono_ms);
        taken.map_err(|retry_after_s| Refusal::RateLimited { retry_after_s })
    }

    /// Exchanges a lease's token and a key for a certificate.
    ///
    /// # Errors
    /// Says why not, and what to do.
    pub async fn enrol(&self, request: &EnrolRequest, address: IpAddr) -> Result<Enrolled, Refusal> {
        let floor = tokio::time::sleep(self.0.refusal_after);
        Token::parse(TokenKind::Lease, request.token.expose()).map_err(|e| Refusal::Bad(e.to_string()))?;
        let lease = self.0.registry.lease(&request.lease).await?;
        let Some(lease) = lease.filter(|lease| lease::knows(Some(lease), &request.token)) else {
            self.wrong_token(&request.lease, address).await?;
            floor.await;
            return Err(LeaseRefusal::Unknown.into());
        };
        let key = authority::requested_key(&request.csr).map_err(|e| Refusal::Bad(e.to_string()))?;
        match self.claim(request, &lease, &key, address).await {
            Err(Refusal::Lease(LeaseRefusal::Used)) => {
                tracing::warn!(lease = %lease.id, satellite = %lease.satellite, %address, "a used lease was tried with another key");
                Err(LeaseRefusal::Used.into())
            }
            answer => answer,
        }
    }

    async fn claim(
        &self,
        request: &EnrolRequest,
        lease: &LeaseRow,
        key: &str,
        address: IpAddr,
    ) -> Result<Enrolled, Refusal> {
        let now_ms = self.now().wall_ms;
        if lease::judge(lease, key, now_ms)? == Claimed::Again {
            return self.enrolled_again(lease, key).await;
        }
        let issued = self.issue(&lease.satellite, &request.csr, now_ms)?;
        let token = new_token();
        let claim = Claim {
            lease: &lease.id,
            token_sha256: &lease.token_sha256,
            session_token_sha256: &sha256_hex(token.expose().as_bytes()),
            certificate: &issued,
            hostname: &said(&request.hostname),
            agent_version: &said(&request.agent_version),
            now_ms,
        };
        if let Some(generation) = self.0.registry.claim(&claim).await? {
            tracing::info!(satellite = %lease.satellite, name = lease.name, lease = %lease.id, %address, "enrolled");
            return self.answer(lease, token, issued, generation);
        }
        // Another claim was faster, or the lease ended at this moment.
        let lease = self.0.registry.lease(&lease.id).await?.ok_or(LeaseRefusal::Unknown)?;
        match lease::judge(&lease, key, self.now().wall_ms)? {
            Claimed::Again => self.enrolled_again(&lease, key).await,
            Claimed::First => Err(Refusal::Unavailable),
        }
    }

    /// The token of the answer that was lost is lost: there is a new one. The certificate is the same.
    async fn enrolled_again(&self, lease: &LeaseRow, key: &str) -> Result<Enrolled, Refusal> {
        let certificates = self.0.registry.certificates(&lease.satellite).await?;
        let now_ms = self.now().wall_ms;
        let same = certificates.into_iter().find(|c| c.spki_sha256_hex == key && c.in_force(now_ms));
        let same = same.ok_or(LeaseRefusal::Used)?;
        let token = new_token();
        if !self.0.registry.set_token(&lease.satellite, &sha256_hex(token.expose().as_bytes())).await? {
            return Err(Refusal::Revoked);
        }
        tracing::info!(satellite = %lease.satellite, lease = %lease.id, "enrolled again with the same key");
        let generation = same.generation;
        let issued = Issued {
            chain: same.chain,
            serial_hex: same.serial_hex,
            spki_sha256_hex: same.spki_sha256_hex,
            not_after_ms: same.not_after_ms,
            renew_after_ms: same.renew_after_ms,
        };
        self.answer(lease, token, issued, generation)
    }

    async fn wrong_token(&self, lease: &LeaseId, address: IpAddr) -> Result<(), Refusal> {
        if self.0.registry.lease_failed(lease, self.now().wall_ms).await? {
            tracing::warn!(%lease, %address, "a lease ended after too many wrong tokens");
        }
        Ok(())
    }

    /// Issues the next certificate of a satellite that has proven who it is.
    ///
    /// # Errors
    /// When the request is not one that is taken, the satellite is revoked, or the registry does not answer.
    pub async fn renew(&self, satellite: &SatelliteId, csr_pem: &str) -> Result<Certificate, RenewError> {
        let now_ms = self.now().wall_ms;
        let issued = self.0.authority.issue_client(satellite, csr_pem, now_ms)?;
        let generation = self.0.registry.certificate_issued(satellite, &issued, now_ms).await?;
        self.0.registry.forget_recoveries(satellite).await?;
        Ok(Certificate {
            chain: issued.chain,
            ca_bundle: self.0.authority.ca_bundle().to_owned(),
            generation,
            not_after_ms: issued.not_after_ms,
            renew_after_ms: issued.renew_after_ms,
        })
    }

    /// Gives a nonce; whether there is such a satellite is not said.
    #[must_use]
    pub fn challenge(&self, request: ChallengeRequest) -> Challenge {
        let nonce = hex(&random::<32>());
        locked(&self.0.challenges).give(request.satellite, nonce.clone(), self.now().mono_ms);
        Challenge { nonce }
    }

    /// Exchanges the proof of a registered key for a certificate.
    ///
    /// # Errors
    /// Says why not, and what to do.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<Enrolled, Refusal> {
        let now = self.now();
        if !locked(&self.0.challenges).take(&request.satellite, &request.nonce, now.mono_ms) {
            return Err(Refusal::Nonce);
        }
        authority::requested_key(&request.csr).map_err(|e| Refusal::Bad(e.to_string()))?;
        let satellite = self.0.registry.satellite(&request.satellite).await?.ok_or(Refusal::Proof)?;
        let certificate = self.0.registry.certificate_of(&request.satellite, request.generation).await?;
        let certificate = certificate.ok_or(Refusal::Proof)?;
        let RecoverRequest { nonce, generation, csr, .. } = request;
        let text = RecoverRequest::signed_text(&request.satellite, nonce, *generation, csr);
        let signature = data_encoding::BASE64URL_NOPAD.decode(request.signature.as_bytes());
        let signature = signature.map_err(|_| Refusal::Bad("the signature is not base64url".into()))?;
        if !authority::signed_by(&certificate.chain, &text, &signature) {
            return Err(Refusal::Proof);
        }
        // From here on it is the satellite, or a copy of it.
        if satellite.revoked_at_ms.is_some() {
            return Err(Refusal::Revoked);
        }
        if !certificate.in_force(now.wall_ms) {
            return Err(Refusal::Stale);
        }
        self.recovered(&satellite, csr, now.wall_ms).await
    }

    async fn recovered(&self, satellite: &SatelliteRow, csr: &str, now_ms: i64) -> Result<Enrolled, Refusal> {
        let lease = self.0.registry.lease(&satellite.lease).await?.ok_or(Refusal::Revoked)?;
        if !self.0.registry.count_recovery(&satellite.id, RECOVERIES_MAX).await? {
            return Err(Refusal::TooManyRecoveries);
        }
        let issued = self.issue(&satellite.id, csr, now_ms)?;
        let token = new_token();
        let generation = self.0.registry.certificate_issued(&satellite.id, &issued, now_ms).await?;
        if !self.0.registry.set_token(&satellite.id, &sha256_hex(token.expose().as_bytes())).await? {
            return Err(Refusal::Revoked);
        }
        tracing::info!(satellite = %satellite.id, generation, "recovered with the key of an earlier certificate");
        self.answer(&lease, token, issued, generation)
    }

    fn issue(&self, satellite: &SatelliteId, csr: &str, now_ms: i64) -> Result<Issued, Refusal> {
        self.0.authority.issue_client(satellite, csr, now_ms).map_err(|error| match error {
            AuthorityError::Request(error) => Refusal::Bad(error.to_string()),
            AuthorityError::Files(_)
            | AuthorityError::Damaged { .. }
            | AuthorityError::Issue(_)
            | AuthorityError::Tls(_) => {
                tracing::error!(%error, "a certificate could not be issued");
                Refusal::Unavailable
            }
        })
    }

    fn answer(&self, lease: &LeaseRow, token: Token, issued: Issued, generation: u64) -> Result<Enrolled, Refusal> {
        let session_url = match &self.0.session_url {
            SessionUrl::Fixed(url) => url.clone(),
            SessionUrl::HostOfLease { port } => {
                let host = crate::settings::host(&lease.relay_url).ok_or(Refusal::Unavailable)?;
                format!("wss://{host}:{port}")
            }
        };
        Ok(Enrolled {
            satellite: lease.satellite.clone(),
            lease: lease.id.clone(),
            name: lease.name.clone(),
            token,
            session_url,
            chain: issued.chain,
            ca_bundle: self.0.authority.ca_bundle().to_owned(),
            generation,
            not_after_ms: issued.not_after_ms,
            renew_after_ms: issued.renew_after_ms,
        })
    }

    fn now(&self) -> Now {
        self.0.clock.now()
    }
}

/// Why a satellite does not get its next certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The request is not one, or it can't be signed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It may not have one, or that can't be told now.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

fn new_token() -> Token {
    Token::from_bits(TokenKind::Satellite, random())
}

/// What a satellite says of itself, fit for a terminal.
fn said(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_BYTES_MAX).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request's body.
///
/// # Errors
/// Names the place in it that is wrong.
pub fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    debug_assert!(body.len() <= limits::ENROLMENT_BYTES_MAX, "the web door reads no more");
    serde_json::from_slice(body).map_err(|e| Refusal::Bad(format!("the request is not the JSON it should be: {e}")))
}

#[cfg(test)]
mod tests;
