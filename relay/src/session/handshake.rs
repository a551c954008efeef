//! Who may speak at all: the upgrade request, the client certificate, and what the registry says of both.

use rustls_pki_types::CertificateDer;
use satellite_shared::wire::to_relay::Authenticate;
use satellite_shared::wire::to_satellite::{RefusalCode, Refused};
use satellite_shared::wire::version;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};

use crate::authority::{self, Issued};
use crate::registry::restore::Unknown;
use crate::registry::{CertificateRow, CertificateState, SatelliteRow, sha256_hex};

const SERIAL_DIGITS: usize = 32;

/// What of a client certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Presented {
    /// 32 hexadecimal digits, as the registry keeps it.
    pub serial_hex: String,
    /// SHA-256 of its public key.
    pub spki_sha256_hex: String,
    /// All of it, for a registry that has forgotten it.
    pub der: CertificateDer<'static>,
}

/// Why a client certificate can't be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCertificate {
    /// TLS let somebody in without one.
    #[error("there is no client certificate")]
    None,
    /// It is no X.509.
    #[error("the client certificate can't be read")]
    Unreadable,
}

impl Presented {
    /// Reads the first of the certificates that TLS has verified.
    ///
    /// # Errors
    /// When there is none or it can't be read.
    pub fn read(chain: Option<&[CertificateDer<'_>]>) -> Result<Self, InvalidCertificate> {
        let der = chain.and_then(<[_]>::first).ok_or(InvalidCertificate::None)?;
        let (_, leaf) = x509_parser::parse_x509_certificate(der).map_err(|_| InvalidCertificate::Unreadable)?;
        let serial = data_encoding::HEXLOWER.encode(leaf.raw_serial());
        let serial = serial.trim_start_matches('0');
        Ok(Self {
            serial_hex: format!("{serial:0>SERIAL_DIGITS$}"),
            spki_sha256_hex: sha256_hex(leaf.public_key().raw),
            der: der.clone().into_owned(),
        })
    }

    /// What the authority wrote into it; `None` where it did not write it.
    #[must_use]
    pub fn unknown(&self) -> Option<Unknown> {
        let (_, leaf) = x509_parser::parse_x509_certificate(&self.der).ok()?;
        let satellite = leaf.subject().iter_common_name().next()?.as_str().ok()?.parse().ok()?;
        let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        let not_after_ms = end.saturating_mul(1_000);
        let issued = Issued {
            chain: authority::pem("CERTIFICATE", &self.der),
            serial_hex: self.serial_hex.clone(),
            spki_sha256_hex: self.spki_sha256_hex.clone(),
            not_after_ms,
            // It may be half over already: the satellite shall get one that the registry knows soon.
            renew_after_ms: begin.saturating_mul(1_000),
        };
        Some(Unknown { satellite, not_before_ms: begin.saturating_mul(1_000), issued })
    }
}

/// Answers an upgrade request: one path, one subprotocol, no browsers.
///
/// # Errors
/// The HTTP response that says what is wrong.
#[expect(clippy::result_large_err, reason = "the type that tungstenite asks for")]
pub fn upgrade(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    if request.uri().path() != version::PATH || request.uri().query().is_some() {
        return Err(problem(StatusCode::NOT_FOUND, format!("satellites connect to {}\n", version::PATH)));
    }
    if request.headers().contains_key(header::ORIGIN) {
        return Err(problem(StatusCode::FORBIDDEN, "browsers have no business here\n".into()));
    }
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if !offers.map(str::trim).any(|offer| offer == version::SUBPROTOCOL) {
        let text = format!("the WebSocket subprotocol {} is needed\n", version::SUBPROTOCOL);
        return Err(problem(StatusCode::BAD_REQUEST, text));
    }
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(version::SUBPROTOCOL));
    Ok(response)
}

fn problem(status: StatusCode, text: String) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(text));
    *response.status_mut() = status;
    response
}

/// Whether the holder of this certificate may speak.
///
/// # Errors
/// Says why not, and what to do.
pub fn judge_certificate(
    certificate: Option<&CertificateRow>,
    satellite: Option<&SatelliteRow>,
    now_ms: i64,
) -> Result<(), Refused> {
    let (Some(certificate), Some(satellite)) = (certificate, satellite) else {
        return Err(refused(
            RefusalCode::Credentials,
            "this relay does not know the certificate: make a lease here and run `satellite lease set`",
        ));
    };
    if satellite.revoked_at_ms.is_some() {
        return Err(super::machine::ended(RefusalCode::Revoked));
    }
    if certificate.satellite != satellite.id {
        return Err(refused(RefusalCode::Credentials, "the certificate is of another satellite"));
    }
    let stale = match certificate.state {
        CertificateState::Revoked | CertificateState::Overlap => !certificate.in_force(now_ms),
        CertificateState::PendingUse | CertificateState::Current => false,
    };
    if stale {
        return Err(super::machine::ended(RefusalCode::StaleCertificate));
    }
    if certificate.not_after_ms <= now_ms {
        return Err(refused(
            RefusalCode::Credentials,
            "the certificate has ended: the satellite recovers by itself on the relay's web door; if it does not, check both clocks",
        ));
    }
    Ok(())
}

/// Whether lease and token are of the satellite that the certificate names.
///
/// # Errors
/// Says which is not, never what it is.
pub fn judge_token(satellite: &SatelliteRow, authenticate: &Authenticate) -> Result<(), Refused> {
    let token_matches = satellite.token_matches(&authenticate.token);
    if satellite.lease != authenticate.lease || !token_matches {
        return Err(refused(
            RefusalCode::Credentials,
            "lease, token and certificate are not of one satellite: the identity on it is mixed up or old; make a lease \
             and run `satellite lease set`",
        ));
    }
    Ok(())
}

/// The registry or the ingest does not answer.
#[must_use]
pub fn unavailable() -> Refused {
    Refused {
        code: RefusalCode::Unavailable,
        message: "the relay's registry does not answer now; what is buffered stays buffered".into(),
        retry_after_s: 10,
    }
}

fn refused(code: RefusalCode, message: &str) -> Refused {
    Refused { code, message: message.into(), retry_after_s: 3_600 }
}
