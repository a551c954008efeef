//! Why a request on the web door is refused: a code for programs, a sentence for people, a status for HTTP.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use satellite_shared::enrolment::Problem;

use crate::lease::LeaseRefusal;
use crate::registry::RegistryError;

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The lease enrols nobody.
    #[error(transparent)]
    Lease(#[from] LeaseRefusal),
    /// The request is not one.
    #[error("{0}")]
    Bad(String),
    /// The request is too large.
    #[error("the request is larger than {} KiB", satellite_shared::limits::ENROLMENT_BYTES_MAX >> 10)]
    TooLarge,
    /// The request did not come to its end.
    #[error("the request took too long")]
    TooSlow,
    /// Too often from this address.
    #[error("too many requests from this address")]
    RateLimited {
        /// When there may be one again.
        retry_after_s: u64,
    },
    /// The nonce was used, has ended or was never given.
    #[error("the nonce is not good any more: ask for a new challenge")]
    Nonce,
    /// The signature is not of a key that is registered for this satellite.
    #[error(
        "this relay has no such satellite with such a key: if the identity is lost or from another relay, make a new \
         lease and run `satellite lease set`"
    )]
    Proof,
    /// The satellite was revoked.
    #[error("this satellite was revoked by the relay's administrator; only a new lease lets it in again")]
    Revoked,
    /// The certificate was replaced: this is a copy, or an old backup of the satellite.
    #[error(
        "this certificate was replaced by a newer one: this is an old backup or a copy of the satellite; make a lease \
         with `--replace` to make this one the satellite"
    )]
    Stale,
    /// It recovers again and again.
    #[error(
        "this satellite has recovered too often without ever renewing in time: look after its clock and its network, \
         then make a lease with `--replace`"
    )]
    TooManyRecoveries,
    /// There is nothing at this address.
    #[error("there is nothing here; satellites POST to /v1/enrol")]
    NotFound,
    /// Not with this method.
    #[error("this address takes another method")]
    Method,
    /// The registry does not answer.
    #[error("the relay can't decide this now: try again")]
    Unavailable,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Lease(LeaseRefusal::Unknown) | Self::Proof => StatusCode::UNAUTHORIZED,
            Self::Lease(LeaseRefusal::Used) | Self::Stale => StatusCode::CONFLICT,
            Self::Lease(LeaseRefusal::Expired | LeaseRefusal::Revoked) => StatusCode::GONE,
            Self::Bad(_) | Self::Nonce => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Revoked | Self::TooManyRecoveries => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Lease(refusal) => refusal.code(),
            Self::Bad(_) => "bad_request",
            Self::TooLarge => "too_large",
            Self::TooSlow => "too_slow",
            Self::RateLimited { .. } => "rate_limited",
            Self::Nonce => "nonce_unknown",
            Self::Proof => "proof_failed",
            Self::Revoked => "revoked",
            Self::Stale => "stale_certificate",
            Self::TooManyRecoveries => "recovery_limit",
            Self::NotFound => "not_found",
            Self::Method => "method_not_allowed",
            Self::Unavailable => "unavailable",
        }
    }

    /// As it goes out.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let retry_after_s = match self {
            Self::RateLimited { retry_after_s } => *retry_after_s,
            Self::Unavailable => 10,
            Self::TooSlow | Self::Nonce => 1,
            Self::Lease(_)
            | Self::Bad(_)
            | Self::TooLarge
            | Self::Proof
            | Self::Revoked
            | Self::Stale
            | Self::TooManyRecoveries
            | Self::NotFound
            | Self::Method => 0,
        };
        Problem { code: self.code().into(), message: self.to_string(), retry_after_s }
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::TooManyCertificates => Self::RateLimited { retry_after_s: 3_600 },
            RegistryError::NoSatellite(_) => Self::Revoked,
            RegistryError::Files(_)
            | RegistryError::Newer { .. }
            | RegistryError::Damaged { .. }
            | RegistryError::Migration(_)
            | RegistryError::Database(_)
            | RegistryError::Content { .. }
            | RegistryError::NoLease(_)
            | RegistryError::NameTaken { .. } => {
                tracing::error!(%error, "the registry does not answer");
                Self::Unavailable
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let retry_after_s = problem.retry_after_s;
        let mut response = (self.status(), Json(problem)).into_response();
        if retry_after_s > 0 {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s));
        }
        response
    }
}
