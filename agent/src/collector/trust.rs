//! Whom a device's certificate must come from: the system's authorities, or exactly this certificate.
//!
//! Devices in a house sign for themselves, so a certificate can be pinned by its fingerprint; trusting any at all is
//! deliberately absent. Sessions are never resumed: each poll sees the certificate that is there now.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use satellite_shared::gap::Reason;

use crate::collector::Failure;

/// Where Debian keeps the authorities that it trusts.
const STORE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Certificates that a device may send.
const CHAIN_MAX: usize = 16;

/// What a device's certificate is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The system's authorities, and the name in the URL.
    System,
    /// The SHA-256 of the certificate itself.
    Pin([u8; 32]),
}

impl Trust {
    /// Reads `verify` or `pin:` and 64 hexadecimal digits, with or without colons.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text == "verify" {
            return Ok(Self::System);
        }
        let digits = text.strip_prefix("pin:").map(|digits| digits.replace(':', "").to_ascii_lowercase());
        let bytes = digits.and_then(|digits| data_encoding::HEXLOWER.decode(digits.as_bytes()).ok());
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self::Pin).ok_or_else(|| {
            "write \"verify\", or \"pin:\" and the SHA-256 of the device's certificate in 64 hexadecimal digits: openssl s_client -connect HOST:443 </dev/null | openssl x509 -noout -fingerprint -sha256".to_owned()
        })
    }
}

/// What the last handshake showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// SHA-256 of the device's certificate.
    pub(crate) fingerprint: [u8; 32],
    /// When the first certificate of the chain expires, seconds since 1970.
    pub(crate) earliest_expiry: Option<i64>,
    /// The device's certificate itself.
    pub(crate) leaf: Vec<u8>,
}

/// Where a handshake leaves what it showed.
pub(crate) type Seen = Arc<Mutex<Option<Shown>>>;

/// The TLS settings of one device.
pub(crate) fn client_config(trust: Trust, seen: &Seen) -> Result<ClientConfig, Failure> {
    let provider = provider();
    let system = match trust {
        Trust::System => Some(system()?),
        Trust::Pin(_) => None,
    };
    let verifier = Verifier { trust, system, seen: Arc::clone(seen), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(Reason::Unsupported, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// The system's authorities, read once: a hundred and more certificates, shared by all devices.
fn system() -> Result<Arc<WebPkiServerVerifier>, Failure> {
    static SYSTEM: OnceLock<Result<Arc<WebPkiServerVerifier>, String>> = OnceLock::new();
    let read = SYSTEM.get_or_init(|| authorities(Path::new(STORE)));
    read.clone().map_err(|detail| Failure::new(Reason::Unsupported, detail))
}

fn authorities(path: &Path) -> Result<Arc<WebPkiServerVerifier>, String> {
    let fix = "apt install ca-certificates, or pin the device's certificate";
    let certificates = CertificateDer::pem_file_iter(path)
        .map_err(|_| format!("no authorities in {}: {fix}", path.display()))?
        .filter_map(Result::ok);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|_| format!("no authority that can be read in {}: {fix}", path.display()))
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    system: Option<Arc<WebPkiServerVerifier>>,
    seen: Seen,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = Shown {
            fingerprint: fingerprint(end_entity),
            earliest_expiry: std::iter::once(end_entity).chain(intermediates).take(CHAIN_MAX).filter_map(expiry).min(),
            leaf: end_entity.to_vec(),
        };
        let fingerprint = shown.fingerprint;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        match (self.trust, &self.system) {
            (Trust::Pin(pin), _) if pin == fingerprint => Ok(ServerCertVerified::assertion()),
            (Trust::System, Some(system)) if intermediates.len() < CHAIN_MAX => {
                system.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            (Trust::Pin(_) | Trust::System, _) => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_openssl_prints_it() {
        let plain = Trust::parse(&format!("pin:{}", "0a".repeat(32))).unwrap();
        let openssl = Trust::parse(&format!("pin:{}", vec!["0A"; 32].join(":"))).unwrap();
        assert_eq!((plain, openssl), (Trust::Pin([10; 32]), Trust::Pin([10; 32])));
        assert_eq!(Trust::parse("verify"), Ok(Trust::System));
        for text in ["", "none", "insecure", "pin:", "pin:abcd", &format!("pin:{}", "zz".repeat(32)), "pin:é"] {
            assert!(Trust::parse(text).unwrap_err().contains("64 hexadecimal digits"), "{text}");
        }
    }

    #[test]
    fn a_store_that_is_missing_or_empty_is_told_with_what_to_install() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.crt");
        assert!(authorities(&path).unwrap_err().contains("apt install ca-certificates"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(authorities(&path).unwrap_err().contains("apt install ca-certificates"));
    }
}
