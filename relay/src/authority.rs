//! The relay's own certificate authority: it signs the relay's certificate and the satellites'.
//!
//! Made on first start: P-256, ten years, for end entities only. Key and certificate stand in one 0600 file that is
//! swapped by rename. Its public key's hash is the pin that the join code carries, and both doors send it after the
//! relay's own certificate, so that a satellite that knows only the pin can verify the whole chain.
//!
//! Invariant: of a certificate request only the public key is used. Who a certificate is for comes from the session or
//! the lease, its serial number is random, and everything else is the same in all of them.

mod request;

mod server;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use satellite_shared::clock::Clock;
use satellite_shared::id::SatelliteId;
use time::OffsetDateTime;

use self::request::KeyKind;
use self::server::Resolver;
use crate::data_dir::{DataDir, DataDirError};
use crate::registry::{hex, random, sha256_hex};

pub use self::request::InvalidRequest;
pub use self::server::{Door, Names, hostname};

const FOLDER: &str = "authority";
const AUTHORITY_FILE: &str = "authority.pem";
const SERVER_FILE: &str = "server.pem";
const AUTHORITY_LIFE_MS: i64 = 3_653 * DAY_MS;
const SERVER_LIFE_MS: i64 = 90 * DAY_MS;
const DAY_MS: i64 = 24 * 3_600 * 1_000;
/// A house's clock may be behind by this and still believe the relay.
const SERVER_BACKDATE_MS: i64 = DAY_MS;
const CLIENT_BACKDATE_MS: i64 = 60_000;

/// How long a client certificate lives where the settings say nothing.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Why the authority can't do its work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Its files can't be read or written.
    #[error(transparent)]
    Files(#[from] DataDirError),
    /// Its file is damaged.
    #[error(
        "{file}: {detail}; restore it from a backup (a new authority means that every satellite needs a new lease)"
    )]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A certificate can't be made.
    #[error("a certificate can't be made: {0}")]
    Issue(#[from] rcgen::Error),
    /// TLS does not take what was made.
    #[error("TLS: {0}")]
    Tls(String),
    /// Somebody asks for a certificate in a way that is not taken.
    #[error(transparent)]
    Request(#[from] InvalidRequest),
}

/// A client certificate as it was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf first, PEM.
    pub chain: String,
    /// 32 hexadecimal digits.
    pub serial_hex: String,
    /// SHA-256 of its public key.
    pub spki_sha256_hex: String,
    /// When it ends.
    pub not_after_ms: i64,
    /// When to ask for the next.
    pub renew_after_ms: i64,
}

/// The authority; clones share it.
#[derive(Clone)]
pub struct Authority {
    parts: Arc<Parts>,
    certificate_life: Duration,
}

struct Parts {
    folder: DataDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    bundle: String,
    pin: String,
    provider: Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pin", &self.parts.pin).finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the authority of a data directory; makes it where it is missing.
    ///
    /// # Errors
    /// Names the file that can't be used.
    pub fn load_or_create(data_dir: &DataDir, now_ms: i64) -> Result<Self, AuthorityError> {
        let folder = data_dir.folder(FOLDER)?;
        let lock = folder.lock("authority.lock")?;
        let (key, certificate) = match folder.read_secret(AUTHORITY_FILE)? {
            Some(text) => read_pair(&folder, AUTHORITY_FILE, &text)?,
            None => create(&folder, now_ms)?,
        };
        drop(lock);
        let damaged = |detail: String| damaged(&folder, AUTHORITY_FILE, detail);
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| damaged(e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(damaged("key and certificate do not belong together".into()));
        }
        let pin = sha256_hex(parsed.public_key().raw);
        let bundle = pem("CERTIFICATE", &certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let parts = Parts { issuer, certificate, bundle, pin, provider, resolver: Arc::default(), folder };
        Ok(Self { parts: Arc::new(parts), certificate_life: CERTIFICATE_LIFE })
    }

    /// The same authority, whose client certificates live this long.
    #[must_use]
    pub fn with_certificate_life(mut self, life: Duration) -> Self {
        self.certificate_life = life;
        self
    }

    /// The authorities that satellites trust, PEM.
    #[must_use]
    pub fn ca_bundle(&self) -> &str {
        &self.parts.bundle
    }

    /// SHA-256 of the authority's public key, 64 hexadecimal digits.
    #[must_use]
    pub fn ca_pin(&self) -> &str {
        &self.parts.pin
    }

    /// Sees to it that the relay's certificate is for these names and lives for another month; says whether that took
    /// a new one. Connections from now on see it.
    ///
    /// # Errors
    /// When it can't be made or kept; the one before stays.
    pub fn renew_server_certificate(&self, names: &Names, now_ms: i64) -> Result<bool, AuthorityError> {
        if self.parts.resolver.get().is_some_and(|key| serves(&key.cert[0], names, now_ms)) {
            return Ok(false);
        }
        let folder = &self.parts.folder;
        if let Some(text) = folder.read_secret(SERVER_FILE)?
            && let Ok((key, certificate)) = read_pair(folder, SERVER_FILE, &text)
            && serves(&certificate, names, now_ms)
            && self.set_server_certificate(&key, certificate).is_ok()
        {
            return Ok(false);
        }
        let key = KeyPair::generate()?;
        let certificate = self.server_params(names, now_ms)?.signed_by(&key, &self.parts.issuer)?;
        folder.replace(SERVER_FILE, &format!("{}{}", key.serialize_pem(), certificate.pem()))?;
        self.set_server_certificate(&key, certificate.into())?;
        Ok(true)
    }

    /// What TLS does at a door. Certificates end by the clock given.
    ///
    /// # Errors
    /// When TLS does not take the authority.
    pub fn server_config(&self, door: Door, clock: Arc<dyn Clock>) -> Result<Arc<ServerConfig>, AuthorityError> {
        server::config(door, &self.parts.provider, Arc::clone(&self.parts.resolver), &self.parts.certificate, clock)
    }

    /// Issues a client certificate for the key in a request.
    ///
    /// # Errors
    /// When the request is not one, or its key is not one that is taken.
    pub fn issue_client(&self, satellite: &SatelliteId, csr_pem: &str, now_ms: i64) -> Result<Issued, AuthorityError> {
        let spki = request::public_key(csr_pem)?;
        let life_ms =
            i64::try_from(self.certificate_life.as_millis()).unwrap_or(AUTHORITY_LIFE_MS).min(AUTHORITY_LIFE_MS);
        // X.509 counts whole seconds.
        let not_after_ms = (now_ms + life_ms) / 1_000 * 1_000;
        let mut params = params(satellite.as_str(), now_ms - CLIENT_BACKDATE_MS, not_after_ms)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://satellite/{satellite}").as_str().try_into()?)];
        let serial_hex = serial(&mut params);
        let certificate = params.signed_by(&SubjectPublicKeyInfo::from_der(&spki)?, &self.parts.issuer)?;
        Ok(Issued {
            chain: certificate.pem(),
            serial_hex,
            spki_sha256_hex: sha256_hex(&spki),
            not_after_ms,
            renew_after_ms: now_ms + renew_after(life_ms),
        })
    }

    fn server_params(&self, names: &Names, now_ms: i64) -> Result<CertificateParams, AuthorityError> {
        let mut params = params("satellite-relay", now_ms - SERVER_BACKDATE_MS, now_ms + SERVER_LIFE_MS)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names.iter() {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into()?),
            });
        }
        serial(&mut params);
        Ok(params)
    }

    fn set_server_certificate(
        &self,
        key: &KeyPair,
        certificate: CertificateDer<'static>,
    ) -> Result<(), AuthorityError> {
        let chain = vec![certificate, self.parts.certificate.clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| AuthorityError::Tls(e.to_owned()))?;
        let key =
            CertifiedKey::from_der(chain, key, &self.parts.provider).map_err(|e| AuthorityError::Tls(e.to_string()))?;
        self.parts.resolver.set(key);
        Ok(())
    }
}

/// SHA-256 of the public key that a request asks a certificate for, if the request is one that is taken.
///
/// # Errors
/// When it is not.
pub fn requested_key(csr_pem: &str) -> Result<String, InvalidRequest> {
    request::public_key(csr_pem).map(|spki| sha256_hex(&spki))
}

/// Whether the key of a certificate (PEM) signed this text.
#[must_use]
pub fn signed_by(certificate_pem: &str, text: &str, signature: &[u8]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(certificate_pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
    let key = certificate.public_key();
    let algorithm: &dyn signature::VerificationAlgorithm = match KeyKind::of(key) {
        Some(KeyKind::P256) => &signature::ECDSA_P256_SHA256_ASN1,
        Some(KeyKind::P384) => &signature::ECDSA_P384_SHA384_ASN1,
        Some(KeyKind::Ed25519) => &signature::ED25519,
        None => return false,
    };
    UnparsedPublicKey::new(algorithm, &key.subject_public_key.data).verify(text.as_bytes(), signature).is_ok()
}

fn create(folder: &DataDir, now_ms: i64) -> Result<(KeyPair, CertificateDer<'static>), AuthorityError> {
    let key = KeyPair::generate()?;
    let name = format!("satellite-relay authority {}", hex(&random::<4>()));
    let mut params = params(&name, now_ms - SERVER_BACKDATE_MS, now_ms + AUTHORITY_LIFE_MS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    serial(&mut params);
    let certificate: Certificate = params.self_signed(&key)?;
    folder.replace(AUTHORITY_FILE, &format!("{}{}", key.serialize_pem(), certificate.pem()))?;
    Ok((key, certificate.into()))
}

fn params(name: &str, not_before_ms: i64, not_after_ms: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.not_before = date(not_before_ms)?;
    params.not_after = date(not_after_ms)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(ms: i64) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1_000)).map_err(|_| rcgen::Error::Time.into())
}

/// 128 bits, positive and of full length as X.509 writes them.
fn serial(params: &mut CertificateParams) -> String {
    let mut bytes = random::<16>();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&bytes));
    hex(&bytes)
}

/// Half of the life, and up to a tenth of it sooner or later, so that satellites that enrolled together part.
fn renew_after(life_ms: i64) -> i64 {
    let permille = 400 + i64::from(u16::from_be_bytes(random())) % 201;
    life_ms / 1_000 * permille
}

/// Whether the relay may go on with this certificate: the same names and at least a third of its life.
fn serves(certificate: &CertificateDer<'_>, names: &Names, now_ms: i64) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let left_ms = certificate.validity().not_after.timestamp().saturating_mul(1_000).saturating_sub(now_ms);
    let begun = certificate.validity().not_before.timestamp().saturating_mul(1_000) <= now_ms;
    let mut found = Names::default();
    if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
        for name in &alternatives.value.general_names {
            add_name(&mut found, name);
        }
    }
    begun && left_ms > SERVER_LIFE_MS / 3 && found == *names
}

#[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum; the relay's certificate has no other kinds")]
fn add_name(names: &mut Names, name: &x509_parser::extensions::GeneralName<'_>) {
    use x509_parser::extensions::GeneralName;

    match name {
        GeneralName::DNSName(name) => names.add(name),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                names.add(&IpAddr::from(v4).to_string());
            } else if let Ok(v6) = <[u8; 16]>::try_from(*bytes) {
                names.add(&IpAddr::from(v6).to_string());
            }
        }
        _ => {}
    }
}

fn read_pair(folder: &DataDir, file: &str, text: &str) -> Result<(KeyPair, CertificateDer<'static>), AuthorityError> {
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes())
        .map_err(|e| damaged(folder, file, format!("no private key: {e}")))?;
    let key = KeyPair::try_from(&key).map_err(|e| damaged(folder, file, format!("the private key: {e}")))?;
    let certificate = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|e| damaged(folder, file, format!("no certificate: {e}")))?;
    Ok((key, certificate))
}

fn damaged(folder: &DataDir, file: &str, detail: String) -> AuthorityError {
    AuthorityError::Damaged { file: folder.path().join(file).display().to_string(), detail }
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConnection};
    use satellite_shared::clock::ManualClock;
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;

    fn authority(dir: &tempfile::TempDir) -> Authority {
        Authority::load_or_create(&DataDir::open(dir.path()).unwrap(), NOW_MS).unwrap()
    }

    fn satellite() -> SatelliteId {
        SatelliteId::from_bits([7; 10])
    }

    fn parsed<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        look(&certificate)
    }

    #[test]
    fn an_authority_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (authority(&dir), authority(&dir));
        assert_eq!(first.ca_bundle(), second.ca_bundle());
        assert_eq!(first.ca_pin(), parsed(first.ca_bundle(), |ca| sha256_hex(ca.public_key().raw)));
        assert_ne!(first.ca_pin(), authority(&tempfile::tempdir().unwrap()).ca_pin());
        parsed(first.ca_bundle(), |ca| {
            let constraints = ca.basic_constraints().unwrap().unwrap().value;
            assert_eq!((constraints.ca, constraints.path_len_constraint), (true, Some(0)));
            assert!(ca.key_usage().unwrap().unwrap().value.key_cert_sign());
        });
    }

    #[test]
    fn a_damaged_authority_is_refused_and_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        authority(&dir);
        let data_dir = DataDir::open(dir.path()).unwrap();
        data_dir.folder(FOLDER).unwrap().replace(AUTHORITY_FILE, "-----BEGIN").unwrap();
        let error = Authority::load_or_create(&data_dir, NOW_MS).unwrap_err().to_string();
        assert!(error.contains("authority.pem") && error.contains("backup"), "{error}");
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["relay.example.org".into()]).unwrap();
        wish.distinguished_name.push(DnType::CommonName, "admin");
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wish.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
        wish.subject_alt_names.push(SanType::URI("spiffe://satellite/st_other".try_into().unwrap()));
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();

        let issued = authority.issue_client(&satellite(), &csr, NOW_MS).unwrap();

        parsed(&issued.chain, |certificate| {
            let subject: Vec<_> = certificate.subject().iter_common_name().map(|cn| cn.as_str().unwrap()).collect();
            assert_eq!(subject, [satellite().as_str()]);
            assert!(!certificate.is_ca());
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert_eq!((usage.client_auth, usage.server_auth, usage.any), (true, false, false));
            let usage = certificate.key_usage().unwrap().unwrap().value;
            assert_eq!(usage.flags, 1, "digitalSignature alone");
            let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
            let uri = format!("spiffe://satellite/{}", satellite());
            assert_eq!(names, [x509_parser::extensions::GeneralName::URI(&uri)]);
            assert_eq!(certificate.public_key().raw, key.subject_public_key_info());
            assert_eq!(hex(certificate.raw_serial()), issued.serial_hex);
            assert_eq!(certificate.validity().not_before.timestamp(), NOW_MS / 1_000 - 60);
            assert_eq!(certificate.validity().not_after.timestamp() * 1_000, issued.not_after_ms);
        });
        assert_eq!(requested_key(&csr).unwrap(), issued.spki_sha256_hex);
    }

    #[test]
    fn a_key_gets_another_serial_each_time_and_half_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        let mut serials = std::collections::HashSet::new();
        for _ in 0..50 {
            let issued = authority.issue_client(&satellite(), &csr, NOW_MS).unwrap();
            let share = (issued.renew_after_ms - NOW_MS) * 100 / (issued.not_after_ms - NOW_MS);
            assert!((40..=60).contains(&share), "{share} %");
            assert_eq!(issued.serial_hex.len(), 32);
            serials.insert(issued.serial_hex);
        }
        assert_eq!(serials.len(), 50);
    }

    #[test]
    fn a_text_is_signed_by_the_key_of_its_certificate_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(&dir);
        for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
            let chain = authority.issue_client(&satellite(), &csr, NOW_MS).unwrap().chain;
            let signature = rcgen::SigningKey::sign(&key, b"text").unwrap();
            assert!(signed_by(&chain, "text", &signature));
            assert!(!signed_by(&chain, "other", &signature));
            assert!(!signed_by(authority.ca_bundle(), "text", &signature));
            assert!(!signed_by("", "text", &signature));
        }
    }

    #[test]
    fn the_server_certificate_follows_the_names_and_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let first = authority(&dir);
        let mut names = Names::of_this_machine();
        assert!(first.renew_server_certificate(&names, NOW_MS).unwrap());
        assert!(!first.renew_server_certificate(&names, NOW_MS + 59 * DAY_MS).unwrap());
        assert!(first.renew_server_certificate(&names, NOW_MS + 61 * DAY_MS).unwrap());
        names.add("[2001:db8::1]");
        names.add("Relay.Example.org.");
        names.add("no name at all");
        assert!(first.renew_server_certificate(&names, NOW_MS + 61 * DAY_MS).unwrap());
        assert!(names.iter().any(|name| name == "relay.example.org"));
        assert!(!names.iter().any(|name| name.contains(' ')));

        let second = authority(&dir);
        assert!(!second.renew_server_certificate(&names, NOW_MS + 62 * DAY_MS).unwrap(), "it is kept");
        let (kept, served) = (first.parts.resolver.get().unwrap(), second.parts.resolver.get().unwrap());
        assert_eq!(kept.cert, served.cert);
        assert_eq!(served.cert.len(), 2, "the authority goes with it, for those who only know its pin");
    }

    struct Ends {
        server: Arc<ServerConfig>,
        authority: Authority,
        clock: Arc<ManualClock>,
    }

    impl Ends {
        fn new(dir: &tempfile::TempDir, door: Door) -> Self {
            let clock = Arc::new(ManualClock::new(NOW_MS, 0));
            let authority = authority(dir);
            authority.renew_server_certificate(&Names::of_this_machine(), NOW_MS).unwrap();
            let server = authority.server_config(door, Arc::<ManualClock>::clone(&clock)).unwrap();
            Self { server, authority, clock }
        }

        fn client(
            &self,
            issuer: Option<&Authority>,
            versions: &[&'static rustls::SupportedProtocolVersion],
        ) -> ClientConfig {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.authority.ca_bundle().as_bytes()).unwrap()).unwrap();
            let time = Arc::new(server::ClockTime(Arc::<ManualClock>::clone(&self.clock)));
            let builder = ClientConfig::builder_with_details(Arc::clone(&self.authority.parts.provider), time)
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots);
            let Some(issuer) = issuer else { return builder.with_no_client_auth() };
            let key = KeyPair::generate().unwrap();
            let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
            let chain = issuer.issue_client(&satellite(), &csr, NOW_MS).unwrap().chain;
            let chain = vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::try_from(key.serialize_der()).unwrap()).unwrap()
        }

        /// Both ends talk until neither has anything to say; the server's end, or its error.
        #[expect(clippy::unwrap_in_result, reason = "only what TLS refuses is an answer here")]
        fn shake(&self, client: &Arc<ClientConfig>) -> Result<ServerConnection, rustls::Error> {
            let mut client = ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost").unwrap())?;
            let mut server = ServerConnection::new(Arc::clone(&self.server))?;
            while client.is_handshaking() || server.is_handshaking() {
                let mut wire = Vec::new();
                client.write_tls(&mut wire).unwrap();
                server.read_tls(&mut wire.as_slice()).unwrap();
                server.process_new_packets()?;
                let mut wire = Vec::new();
                server.write_tls(&mut wire).unwrap();
                client.read_tls(&mut wire.as_slice()).unwrap();
                client.process_new_packets()?;
            }
            let mut wire = Vec::new();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
            Ok(server)
        }
    }

    const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

    #[test]
    fn a_satellite_of_this_authority_comes_in_with_the_hybrid_key_exchange() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::new(&dir, Door::Satellites);
        let server = ends.shake(&Arc::new(ends.client(Some(&ends.authority), TLS13))).unwrap();
        assert_eq!(server.peer_certificates().map(<[_]>::len), Some(1));
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    }

    #[test]
    fn a_satellite_is_never_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::new(&dir, Door::Satellites);
        let client = Arc::new(ends.client(Some(&ends.authority), TLS13));
        for _ in 0..3 {
            let server = ends.shake(&client).unwrap();
            assert_ne!(server.handshake_kind(), Some(HandshakeKind::Resumed));
        }
    }

    #[test]
    fn without_a_certificate_or_with_another_authority_s_nobody_comes_in() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::new(&dir, Door::Satellites);
        assert!(ends.shake(&Arc::new(ends.client(None, TLS13))).is_err());
        let other = tempfile::tempdir().unwrap();
        assert!(ends.shake(&Arc::new(ends.client(Some(&authority(&other)), TLS13))).is_err());
    }

    #[test]
    fn tls_1_2_is_refused_at_both_doors() {
        let dir = tempfile::tempdir().unwrap();
        for door in [Door::Web, Door::Satellites] {
            let ends = Ends::new(&dir, door);
            assert!(ends.shake(&Arc::new(ends.client(None, &[&rustls::version::TLS12]))).is_err());
        }
    }

    #[test]
    fn a_certificate_that_has_ended_is_refused_by_tls_itself() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::new(&dir, Door::Satellites);
        let client = Arc::new(ends.client(Some(&ends.authority), TLS13));
        ends.clock.advance(u64::try_from(CERTIFICATE_LIFE.as_millis()).unwrap() + 1_000);
        assert!(ends.shake(&client).is_err());
    }

    #[test]
    fn a_satellite_can_not_pose_as_the_relay() {
        let dir = tempfile::tempdir().unwrap();
        let ends = Ends::new(&dir, Door::Web);
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["localhost".into()]).unwrap();
        wish.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
        let chain = ends.authority.issue_client(&satellite(), &csr, NOW_MS).unwrap().chain;
        ends.authority.set_server_certificate(&key, CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()).unwrap();
        assert!(ends.shake(&Arc::new(ends.client(None, TLS13))).is_err());
    }
}
