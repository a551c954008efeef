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
    /// Why it was not trusted, and what would be.
    pub(crate) refusal: Option<String>,
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
    static SYSTEM: OnceLock<Arc<WebPkiServerVerifier>> = OnceLock::new();
    kept(&SYSTEM, Path::new(STORE)).map_err(|detail| Failure::new(Reason::Unsupported, detail))
}

/// What is missing is looked for again: it may have been installed since.
fn kept(store: &OnceLock<Arc<WebPkiServerVerifier>>, path: &Path) -> Result<Arc<WebPkiServerVerifier>, String> {
    if let Some(read) = store.get() {
        return Ok(Arc::clone(read));
    }
    let read = authorities(path)?;
    Ok(Arc::clone(store.get_or_init(|| read)))
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
        let fingerprint = fingerprint(end_entity);
        let verified = match (self.trust, &self.system) {
            (Trust::Pin(pin), _) if pin == fingerprint => Ok(ServerCertVerified::assertion()),
            (Trust::System, Some(system)) if intermediates.len() < CHAIN_MAX => {
                system.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            (Trust::Pin(_) | Trust::System, _) => {
                Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
        };
        let shown = Shown {
            fingerprint,
            earliest_expiry: std::iter::once(end_entity).chain(intermediates).take(CHAIN_MAX).filter_map(expiry).min(),
            leaf: end_entity.to_vec(),
            refusal: verified.as_ref().err().map(|error| refusal(self.trust, error, &fingerprint)),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        verified
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

/// Why a certificate is not trusted, with what to set where it is the device's own.
fn refusal(trust: Trust, error: &rustls::Error, fingerprint: &[u8; 32]) -> String {
    use CertificateError as Wrong;
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else is wrong with it, nobody vouches for it")]
    let why = match (trust, error) {
        (Trust::Pin(_), _) => "the certificate is another than the pinned one; if the device has a new one",
        (Trust::System, rustls::Error::InvalidCertificate(wrong)) => match wrong {
            Wrong::Expired | Wrong::ExpiredContext { .. } => {
                "the certificate has expired: renew it; if it is the device's own"
            }
            Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
                "the certificate is not valid yet: see both clocks; if it is the device's own"
            }
            Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
                "the certificate is for another name: ask by one that it has; if it is the device's own"
            }
            _ => "the certificate is not trusted; if it is the device's own",
        },
        (Trust::System, _) => "the certificate is not trusted; if it is the device's own",
    };
    format!("{why}, set tls = \"pin:{}\"", data_encoding::HEXLOWER.encode(fingerprint))
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

    #[test]
    fn a_store_that_comes_later_is_found_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (path, store) = (folder.path().join("ca.crt"), OnceLock::new());
        assert!(kept(&store, &path).is_err());
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        std::fs::write(&path, certificate.pem()).unwrap();
        assert!(kept(&store, &path).is_ok());
        std::fs::remove_file(&path).unwrap();
        assert!(kept(&store, &path).is_ok(), "it is read once");
    }

    #[test]
    fn why_a_certificate_is_not_trusted_is_said_with_the_pin() {
        let check = |trust: Trust, wrong: CertificateError, said: &str| {
            let why = refusal(trust, &rustls::Error::InvalidCertificate(wrong), &[0xab; 32]);
            assert!(why.contains(said) && why.ends_with(&format!("set tls = \"pin:{}\"", "ab".repeat(32))), "{why}");
            assert!(why.len() <= 200, "a detail is not cut: {why}");
        };
        check(Trust::System, CertificateError::UnknownIssuer, "is not trusted");
        check(Trust::System, CertificateError::Expired, "has expired");
        check(Trust::System, CertificateError::NotValidYet, "not valid yet");
        check(Trust::System, CertificateError::NotValidForName, "for another name");
        check(Trust::Pin([0; 32]), CertificateError::ApplicationVerificationFailure, "another than the pinned one");
    }
}
