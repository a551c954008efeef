//! A private key, and what is done with it: ask for a certificate, prove who we were.
//!
//! P-256, made on this machine by aws-lc-rs. It leaves this module as PEM for the identity file and as DER for TLS.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::{ExposeSecret, SecretString};

/// A private key as PKCS #8 PEM. `Debug` never shows it.
#[derive(Debug, Clone)]
pub struct Key(SecretString);

/// Why a key can't be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No randomness, or the library refuses.
    #[error("no key could be made: {0}")]
    Make(#[source] rcgen::Error),
    /// The text is no P-256 key in PKCS #8 PEM.
    #[error("the private key can't be read: not a P-256 key in PKCS #8 PEM")]
    Read,
    /// The request could not be signed.
    #[error("no certificate request could be made: {0}")]
    Request(#[source] rcgen::Error),
    /// The signature failed.
    #[error("the key could not sign")]
    Sign,
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// Where the machine has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(KeyError::Make)?;
        Ok(Self(SecretString::from(pair.serialize_pem())))
    }

    /// One that was kept.
    ///
    /// # Errors
    /// Where the text is something else.
    pub fn from_pem(pem: SecretString) -> Result<Self, KeyError> {
        let key = Self(pem);
        key.pair()?;
        Ok(key)
    }

    /// The text for the identity file.
    #[must_use]
    pub fn expose_pem(&self) -> &str {
        self.0.expose_secret()
    }

    /// For TLS.
    ///
    /// # Errors
    /// Where the text is no key.
    pub fn der(&self) -> Result<PrivateKeyDer<'static>, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(self.expose_pem().as_bytes()).map_err(|_| KeyError::Read)?;
        Ok(PrivateKeyDer::Pkcs8(der))
    }

    /// PKCS #10, PEM. It asks for nothing but a certificate: the relay takes only the public key.
    ///
    /// # Errors
    /// Where the key can't sign.
    pub fn request(&self) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.pair()?).map_err(KeyError::Request)?;
        request.pem().map_err(KeyError::Request)
    }

    /// ECDSA P-256 / SHA-256, ASN.1, base64url without padding.
    ///
    /// # Errors
    /// Where the key can't sign.
    pub fn sign(&self, text: &str) -> Result<String, KeyError> {
        let der = self.der()?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.secret_der()).map_err(|_| KeyError::Read)?;
        let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| KeyError::Sign)?;
        Ok(data_encoding::BASE64URL_NOPAD.encode(signature.as_ref()))
    }

    fn pair(&self) -> Result<KeyPair, KeyError> {
        KeyPair::from_pem_and_sign_algo(self.expose_pem(), &rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| KeyError::Read)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
    use rcgen::PublicKeyData as _;

    use super::*;

    #[test]
    fn a_key_survives_the_identity_file() {
        let key = Key::generate().unwrap();
        let back = Key::from_pem(SecretString::from(key.expose_pem())).unwrap();
        assert_eq!(back.pair().unwrap().public_key_raw(), key.pair().unwrap().public_key_raw());
        assert!(Key::from_pem(SecretString::from("hello")).is_err());
    }

    #[test]
    fn a_request_carries_the_public_key_and_no_wishes() {
        let key = Key::generate().unwrap();
        let request = rcgen::CertificateSigningRequestParams::from_pem(&key.request().unwrap()).unwrap();
        assert_eq!(request.public_key.der_bytes(), key.pair().unwrap().public_key_raw());
        assert!(request.params.subject_alt_names.is_empty());
    }

    #[test]
    fn a_signature_is_of_this_key_and_this_text() {
        let key = Key::generate().unwrap();
        let signature = data_encoding::BASE64URL_NOPAD.decode(key.sign("text").unwrap().as_bytes()).unwrap();
        let pair = key.pair().unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key_raw());
        assert!(public.verify(b"text", &signature).is_ok());
        assert!(public.verify(b"other", &signature).is_err());
    }

    #[test]
    fn a_key_is_never_shown_by_debug() {
        let key = Key::generate().unwrap();
        let body = key.expose_pem().lines().nth(1).unwrap().to_owned();
        assert!(!format!("{key:?}").contains(&body));
    }
}
