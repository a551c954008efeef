//! What is taken from a certificate request: its public key, and nothing else it asks for.

use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use satellite_shared::limits;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Why a certificate request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// More than a request needs.
    #[error("the certificate request is larger than {} bytes", limits::CSR_BYTES_MAX)]
    TooLarge,
    /// No PEM, or no request in it.
    #[error("the certificate request is not one PKCS #10 request in PEM (-----BEGIN CERTIFICATE REQUEST-----)")]
    Form,
    /// Its key is of a kind that is not taken.
    #[error("the certificate request's key is none of P-256, P-384 and Ed25519")]
    Key,
    /// Whoever made it does not have the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
}

/// The kinds of keys that satellites may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    P256,
    P384,
    Ed25519,
}

impl KeyKind {
    pub(super) fn of(key: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let algorithm = &key.algorithm.algorithm;
        let point = &key.subject_public_key.data;
        if *algorithm == OID_SIG_ED25519 {
            return (point.len() == 32).then_some(Self::Ed25519);
        }
        if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
            return None;
        }
        // Uncompressed points only: one key then has one form, and so one hash.
        let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
        if curve == OID_EC_P256 && point.len() == 65 && point[0] == 4 {
            Some(Self::P256)
        } else if curve == OID_NIST_EC_P384 && point.len() == 97 && point[0] == 4 {
            Some(Self::P384)
        } else {
            None
        }
    }
}

/// Takes the public key (SPKI, DER) from a request.
pub(super) fn public_key(csr_pem: &str) -> Result<Vec<u8>, InvalidRequest> {
    if csr_pem.len() > 2 * limits::CSR_BYTES_MAX {
        return Err(InvalidRequest::TooLarge);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes()).map_err(|_| InvalidRequest::Form)?;
    if der.len() > limits::CSR_BYTES_MAX {
        return Err(InvalidRequest::TooLarge);
    }
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| InvalidRequest::Form)?;
    if !rest.is_empty() {
        return Err(InvalidRequest::Form);
    }
    let key = &request.certification_request_info.subject_pki;
    KeyKind::of(key).ok_or(InvalidRequest::Key)?;
    request.verify_signature().map_err(|_| InvalidRequest::Signature)?;
    Ok(key.raw.to_vec())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_three_kinds_of_keys_are_taken_as_they_are() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
            assert_eq!(public_key(&request(&key)), Ok(spki));
        }
    }

    #[test]
    fn rsa_is_refused_at_any_size() {
        let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        assert_eq!(public_key(&request(&key)), Err(InvalidRequest::Key));
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let der = CertificateSigningRequestDer::from_pem_slice(request(&key).as_bytes()).unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let at = der.windows(spki.len()).position(|window| window == spki).unwrap();
        let other = rcgen::PublicKeyData::subject_public_key_info(&KeyPair::generate().unwrap());
        let mut forged = der.to_vec();
        forged[at..at + other.len()].copy_from_slice(&other);
        assert_eq!(public_key(&pem(&forged)), Err(InvalidRequest::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key);
        let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
        assert_eq!(public_key(""), Err(InvalidRequest::Form));
        assert_eq!(public_key(&key.serialize_pem()), Err(InvalidRequest::Form));
        assert_eq!(public_key(&pem(&[der.as_ref(), b"more"].concat())), Err(InvalidRequest::Form));
        assert_eq!(public_key(&pem(&vec![0x30; 10_000])), Err(InvalidRequest::TooLarge));
        assert_eq!(public_key(&pem(&vec![0x30; 65_536])), Err(InvalidRequest::TooLarge));
        for cut in 0..der.len() {
            assert!(public_key(&pem(&der[..cut])).is_err(), "{cut} bytes");
        }
    }

    fn pem(der: &[u8]) -> String {
        let body = data_encoding::BASE64.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n")
    }
}
