//! The first look at a relay: its authority is known by the SHA-256 of its public key, and by nothing else.
//!
//! The server sends its leaf and its authority. The certificate of the chain whose public key has the pinned hash becomes
//! the only trust anchor, and the leaf is then verified as usual: signature, name, validity. The TLS handshake fails
//! before any byte of a request is sent, so a server without the pinned authority learns nothing.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

const CHAIN_MAX: usize = 8;

/// SHA-256 of an authority's public key, over the whole DER `SubjectPublicKeyInfo`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

/// No certificate of the chain has the pinned key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server's certificate chain does not contain the relay's authority (its public key's SHA-256 is not the \
     join code's ca-pin {0}): this is another relay, or something between decrypts TLS; nothing secret was sent"
)]
pub struct PinMissing(Pin);

impl Pin {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// The pin of a certificate's public key; `None` where it is no certificate.
    #[must_use]
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let spki = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
        digest::digest(&digest::SHA256, spki.as_ref()).as_ref().try_into().ok().map(Self)
    }
}

impl std::fmt::Display for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// Trusts the pinned authority, wherever it stands in the chain, and those that an enrolment gave before.
#[derive(Debug)]
pub struct PinVerifier {
    pin: Pin,
    known: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl PinVerifier {
    /// A verifier for one pin; `known` is empty before the first enrolment.
    #[must_use]
    pub fn new(pin: Pin, known: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Self {
        Self { pin, known, provider }
    }
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let missing = || CertificateError::Other(OtherError(Arc::new(PinMissing(self.pin))));
        let pinned = intermediates.iter().take(CHAIN_MAX).find(|one| Pin::of(one) == Some(self.pin));
        let mut roots = RootCertStore::empty();
        for anchor in self.known.iter().chain(pinned) {
            roots.add(anchor.clone().into_owned())?;
        }
        if roots.is_empty() {
            return Err(missing().into());
        }
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms;
        let verified = verify_server_cert_signed_by_trust_anchor(&leaf, &roots, intermediates, now, algorithms.all);
        match verified {
            // An authority of the same name and another key gives a bad signature.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) if pinned.is_none() => {
                return Err(missing().into());
            }
            other => other?,
        }
        verify_server_name(&leaf, server_name)?;
        Ok(ServerCertVerified::assertion())
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

/// The verifier for the session: the authorities that enrolment or a renewal gave, and no other.
///
/// # Errors
/// Where the bundle holds no authority.
pub fn bundle_verifier(
    bundle: &[CertificateDer<'static>],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in bundle {
        roots.add(certificate.clone())?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| rustls::Error::General(format!("the authorities of the identity: {error}")))?;
    Ok(verifier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::stand_in::{Authority, now_ms};

    fn verify(
        verifier: &PinVerifier,
        of: &Authority,
        sent: &[CertificateDer<'_>],
        name: &str,
    ) -> Result<(), rustls::Error> {
        let leaf = of.leaf();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms().unsigned_abs()));
        let Ok(name) = ServerName::try_from(name.to_owned()) else { panic!("{name} is no name") };
        verifier.verify_server_cert(&leaf, sent, &name, &[], now).map(|_| ())
    }

    fn verifier(pin: &str, known: Vec<CertificateDer<'static>>) -> PinVerifier {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        PinVerifier::new(Pin::parse(pin).unwrap(), known, provider)
    }

    fn is_missing(result: Result<(), rustls::Error>) -> bool {
        matches!(result, Err(rustls::Error::InvalidCertificate(CertificateError::Other(other))) if other.0.is::<PinMissing>())
    }

    #[test]
    fn the_pinned_authority_is_found_wherever_it_stands_in_the_chain() {
        let (relay, other) = (Authority::new("relay"), Authority::new("other"));
        let verifier = verifier(&relay.pin(), vec![]);
        let (ours, foreign) = (relay.certificate.clone(), other.certificate.clone());
        assert_eq!(verify(&verifier, &relay, std::slice::from_ref(&ours), "localhost"), Ok(()));
        assert_eq!(verify(&verifier, &relay, &[foreign.clone(), ours.clone()], "127.0.0.1"), Ok(()));
        assert!(is_missing(verify(&verifier, &relay, &[], "localhost")));
        assert!(is_missing(verify(&verifier, &other, std::slice::from_ref(&foreign), "localhost")));
        assert!(is_missing(verify(&verifier, &relay, &[b"junk".to_vec().into()], "localhost")));
    }

    #[test]
    fn the_pin_alone_is_not_enough() {
        let (relay, other) = (Authority::new("relay"), Authority::new("relay"));
        let verifier = verifier(&relay.pin(), vec![]);
        let ours = relay.certificate.clone();
        // A stranger sends the public certificate of the pinned authority beside a leaf of its own.
        assert!(verify(&verifier, &other, std::slice::from_ref(&ours), "localhost").is_err());
        assert!(verify(&verifier, &relay, std::slice::from_ref(&ours), "elsewhere.example").is_err());
    }

    #[test]
    fn authorities_of_an_earlier_enrolment_serve_a_recovery() {
        let (before, after) = (Authority::new("before"), Authority::new("after"));
        let verifier = verifier(&before.pin(), vec![after.certificate.clone()]);
        assert_eq!(verify(&verifier, &after, &[], "localhost"), Ok(()));
        assert_eq!(verify(&verifier, &before, std::slice::from_ref(&before.certificate), "localhost"), Ok(()));
        let stranger = Authority::new("after");
        assert!(is_missing(verify(&verifier, &stranger, std::slice::from_ref(&stranger.certificate), "localhost")));
    }

    #[test]
    fn a_pin_is_64_hexadecimal_digits() {
        let pin = Authority::new("relay").pin();
        assert_eq!(Pin::parse(&pin.to_uppercase()), Pin::parse(&pin));
        for bad in ["", "ab", &pin[1..], &format!("{pin}00"), &pin.replace(|c: char| c.is_ascii_digit(), "x")] {
            assert_eq!(Pin::parse(bad), None, "{bad}");
        }
    }
}
