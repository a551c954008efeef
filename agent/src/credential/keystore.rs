//! The identity on disk: one 0600 file in a 0700 directory.
//!
//! Key, chain and token stand in one file that is swapped by rename, so that no crash can leave a certificate without its
//! key; until the rename the old identity is whole. A key that waits for its certificate is kept beside it, so that an
//! answer that was lost can be asked for again with the same key.
//!
//! Invariant: nothing is read from, or written to, a place that others than the owner may read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use satellite_shared::enrolment::Enrolled;
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::Token;
use satellite_shared::wire::to_satellite::Certificate;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::credential::key::{Key, KeyError};

const DIR: &str = "identity";
const FILE: &str = "identity.json";
const FORMAT: u32 = 1;
const FILE_BYTES_MAX: u64 = 256 << 10;
const CERTIFICATES_MAX: usize = 16;

/// Who this satellite is, whole.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id.
    pub satellite: SatelliteId,
    /// The lease it enrolled with.
    pub lease: LeaseId,
    /// What the lease's maker called it.
    pub name: String,
    /// Goes with the certificate in `AUTHENTICATE`.
    pub token: Token,
    /// The relay's web door.
    pub relay: String,
    /// Where to stream to.
    pub session_url: String,
    /// SHA-256 of the relay authority's public key.
    pub ca_pin: String,
    /// Leaf first, PEM.
    pub chain: String,
    /// The leaf's private key.
    pub key: Key,
    /// The authorities to trust, PEM.
    pub ca_bundle: String,
    /// Which of the certificates issued to it this is.
    pub generation: u64,
    /// When the certificate ends, wall clock.
    pub not_after_ms: i64,
    /// When to ask for the next, wall clock.
    pub renew_after_ms: i64,
}

/// A key that waits for its certificate.
#[derive(Debug, Clone)]
pub struct Pending {
    /// The lease that it enrols with; `None` for the next certificate of the present identity.
    pub lease: Option<LeaseId>,
    /// The key.
    pub key: Key,
}

/// What the file holds.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Who this satellite is, if it is enrolled.
    pub identity: Option<Identity>,
    /// A key that waits.
    pub pending: Option<Pending>,
}

/// Why a certificate that came is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCertificate {
    /// The texts are not certificates.
    #[error("the relay's answer holds no readable certificate in `{0}`")]
    Pem(&'static str),
    /// It is for another key.
    #[error("the certificate that the relay issued is not for this satellite's key: {0}")]
    Key(#[source] rustls::Error),
    /// The key itself is unusable.
    #[error(transparent)]
    Own(#[from] KeyError),
    /// An address or a time in the answer can't be used.
    #[error("the relay's answer can't be used: {0}")]
    Answer(&'static str),
}

/// Why the identity can't be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// Others may read it.
    #[error(
        "{path} may be read by others (mode {mode:04o}), so its key may have been copied: \
         run `chmod {fix} {path}`, and if others had access, get a new lease and `satellite lease set --replace`"
    )]
    Exposed {
        /// What.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode that it should have.
        fix: &'static str,
    },
    /// The system does not let us.
    #[error("{path} can't be read: {source}; run this as root or as the user that runs the daemon")]
    Unreadable {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not what we wrote.
    #[error("{path} is damaged ({what}): remove it with `satellite lease remove` and enrol again with a new lease")]
    Damaged {
        /// What.
        path: PathBuf,
        /// Where, never the content.
        what: String,
    },
    /// It is of a newer program.
    #[error("{path} was written by a newer version of this program: install that version")]
    Newer {
        /// What.
        path: PathBuf,
    },
    /// The disk refuses.
    #[error("{path} can't be written: {source}")]
    Unwritable {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Identity {
    /// The identity that the state directory keeps, if there is one.
    ///
    /// # Errors
    /// Says why it can't be used and what to do.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, KeystoreError> {
        Keystore::new(state_dir).load().map(|stored| stored.identity)
    }

    /// The identity that an enrolment or a recovery gave.
    ///
    /// # Errors
    /// Says what in the answer can't be used.
    pub fn accept(answer: Enrolled, key: Key, relay: &str, ca_pin: &str) -> Result<Self, InvalidCertificate> {
        if !answer.session_url.starts_with("wss://") || answer.session_url.len() > 300 {
            return Err(InvalidCertificate::Answer("session_url is not a wss:// address"));
        }
        if answer.name.len() > 300 {
            return Err(InvalidCertificate::Answer("the name is longer than 300 bytes"));
        }
        let identity = Self {
            satellite: answer.satellite,
            lease: answer.lease,
            name: answer.name,
            token: answer.token,
            relay: relay.to_owned(),
            session_url: answer.session_url,
            ca_pin: ca_pin.to_owned(),
            chain: answer.chain,
            key,
            ca_bundle: answer.ca_bundle,
            generation: answer.generation,
            not_after_ms: answer.not_after_ms,
            renew_after_ms: answer.renew_after_ms,
        };
        identity.check()?;
        Ok(identity)
    }

    /// The same satellite with its next certificate.
    ///
    /// # Errors
    /// Says what in the certificate can't be used.
    pub fn renewed(&self, certificate: &Certificate, key: Key) -> Result<Self, InvalidCertificate> {
        let identity = Self {
            chain: certificate.chain.clone(),
            key,
            ca_bundle: certificate.ca_bundle.clone(),
            generation: certificate.generation,
            not_after_ms: certificate.not_after_ms,
            renew_after_ms: certificate.renew_after_ms,
            ..self.clone()
        };
        identity.check()?;
        Ok(identity)
    }

    /// Chain and key for TLS; they belong together.
    ///
    /// # Errors
    /// Where they don't, or can't be read.
    pub fn certified_key(&self, provider: &CryptoProvider) -> Result<CertifiedKey, InvalidCertificate> {
        let chain = certificates(&self.chain, "chain")?;
        CertifiedKey::from_der(chain, self.key.der()?, provider).map_err(InvalidCertificate::Key)
    }

    /// The authorities to trust.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn authorities(&self) -> Result<Vec<CertificateDer<'static>>, InvalidCertificate> {
        certificates(&self.ca_bundle, "ca_bundle")
    }

    fn check(&self) -> Result<(), InvalidCertificate> {
        if self.renew_after_ms >= self.not_after_ms {
            return Err(InvalidCertificate::Answer("the certificate would be renewed after its end"));
        }
        self.certified_key(&rustls::crypto::aws_lc_rs::default_provider())?;
        let mut roots = rustls::RootCertStore::empty();
        for authority in self.authorities()? {
            roots.add(authority).map_err(|_| InvalidCertificate::Pem("ca_bundle"))?;
        }
        Ok(())
    }
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, InvalidCertificate> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).take(CERTIFICATES_MAX).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) | Err(_) => Err(InvalidCertificate::Pem(what)),
    }
}

/// What changes when somebody writes the identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    modified_s: i64,
    modified_ns: i64,
}

/// Where the identity is kept.
#[derive(Debug, Clone)]
pub struct Keystore {
    dir: PathBuf,
}

impl Keystore {
    /// Below the state directory: `/var/lib/satellite`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(DIR) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Which version of the file is there.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        let meta = fs::metadata(self.path()).ok()?;
        Some(Version { inode: meta.ino(), modified_s: meta.mtime(), modified_ns: meta.mtime_nsec() })
    }

    /// Reads it; nothing where there is no file.
    ///
    /// # Errors
    /// Says why it can't be used and what to do.
    pub fn load(&self) -> Result<Stored, KeystoreError> {
        let path = self.path();
        let unreadable = |source| KeystoreError::Unreadable { path: path.clone(), source };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::default()),
            Err(error) => return Err(unreadable(error)),
        };
        private(&self.dir, &fs::metadata(&self.dir).map_err(unreadable)?, "700")?;
        private(&path, &file.metadata().map_err(unreadable)?, "600")?;
        let mut bytes = vec![];
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(KeystoreError::Damaged { path, what: "longer than 256 KiB".into() });
        }
        let text = Written::parse(&bytes, &path);
        zeroize(bytes);
        text?.stored().map_err(|what| KeystoreError::Damaged { path, what })
    }

    /// Replaces it, whole or not at all.
    ///
    /// # Errors
    /// Says why it could not be kept; what was there before is then still there.
    pub fn save(&self, stored: &Stored) -> Result<(), KeystoreError> {
        let path = self.path();
        let unwritable = |source| KeystoreError::Unwritable { path: path.clone(), source };
        self.make_dir().map_err(unwritable)?;
        private(&self.dir, &fs::metadata(&self.dir).map_err(unwritable)?, "700")?;
        let bytes = serde_json::to_vec_pretty(&Written::of(stored))
            .map_err(|error| unwritable(io::Error::other(error.to_string())))?;
        let written = write_private(&path, &bytes);
        zeroize(bytes);
        written.map_err(unwritable)
    }

    /// Forgets it all.
    ///
    /// # Errors
    /// Says what could not be removed.
    pub fn remove(&self) -> Result<(), KeystoreError> {
        match fs::remove_file(self.path()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(KeystoreError::Unwritable { path: self.path(), source }),
        }
    }

    fn make_dir(&self) -> io::Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700))
    }
}

/// Writes a file that only its owner may read: beside it first, made durable, then swapped.
///
/// # Errors
/// What the system said; what was there before is then still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

fn private(path: &Path, meta: &fs::Metadata, fix: &'static str) -> Result<(), KeystoreError> {
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeystoreError::Exposed { path: path.to_owned(), mode, fix });
    }
    Ok(())
}

/// Best effort: the serialiser's own buffers may have moved.
fn zeroize(bytes: Vec<u8>) {
    drop(SecretString::from(String::from_utf8(bytes).unwrap_or_default()));
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    format: u32,
    identity: Option<WrittenIdentity>,
    pending: Option<WrittenPending>,
}

#[derive(Serialize, Deserialize)]
struct WrittenIdentity {
    satellite: SatelliteId,
    lease: LeaseId,
    name: String,
    token: Token,
    relay: String,
    session_url: String,
    ca_pin: String,
    chain: String,
    key: String,
    ca_bundle: String,
    generation: u64,
    not_after_ms: i64,
    renew_after_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct WrittenPending {
    lease: Option<LeaseId>,
    key: String,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl Written {
    fn parse(bytes: &[u8], path: &Path) -> Result<Self, KeystoreError> {
        // serde_json's message may quote a value: only where it stands is repeated.
        let damaged = |error: serde_json::Error| KeystoreError::Damaged {
            path: path.to_owned(),
            what: format!("line {} column {}", error.line(), error.column()),
        };
        let only: FormatOnly = serde_json::from_slice(bytes).map_err(damaged)?;
        if only.format > FORMAT {
            return Err(KeystoreError::Newer { path: path.to_owned() });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    fn of(stored: &Stored) -> Self {
        let identity = stored.identity.clone().map(|identity| WrittenIdentity {
            key: identity.key.expose_pem().to_owned(),
            satellite: identity.satellite,
            lease: identity.lease,
            name: identity.name,
            token: identity.token,
            relay: identity.relay,
            session_url: identity.session_url,
            ca_pin: identity.ca_pin,
            chain: identity.chain,
            ca_bundle: identity.ca_bundle,
            generation: identity.generation,
            not_after_ms: identity.not_after_ms,
            renew_after_ms: identity.renew_after_ms,
        });
        let pending = stored.pending.clone();
        let pending = pending.map(|it| WrittenPending { lease: it.lease, key: it.key.expose_pem().to_owned() });
        Self { format: FORMAT, identity, pending }
    }

    fn stored(self) -> Result<Stored, String> {
        let key = |pem: String| Key::from_pem(SecretString::from(pem)).map_err(|error| error.to_string());
        let pending = match self.pending {
            Some(pending) => Some(Pending { lease: pending.lease, key: key(pending.key)? }),
            None => None,
        };
        let Some(written) = self.identity else { return Ok(Stored { identity: None, pending }) };
        let identity = Identity {
            key: key(written.key)?,
            satellite: written.satellite,
            lease: written.lease,
            name: written.name,
            token: written.token,
            relay: written.relay,
            session_url: written.session_url,
            ca_pin: written.ca_pin,
            chain: written.chain,
            ca_bundle: written.ca_bundle,
            generation: written.generation,
            not_after_ms: written.not_after_ms,
            renew_after_ms: written.renew_after_ms,
        };
        identity.check().map_err(|error| error.to_string())?;
        Ok(Stored { identity: Some(identity), pending })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uplink::stand_in::{Authority, GOOD};

    fn stored() -> Stored {
        let identity = Authority::new("relay").identity(([127, 0, 0, 1], 1).into(), GOOD);
        let pending = Some(Pending { lease: None, key: Key::generate().unwrap() });
        Stored { identity: Some(identity), pending }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn an_identity_survives_the_disk_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::new(dir.path());
        assert!(keystore.load().unwrap().identity.is_none());
        let before = stored();
        keystore.save(&before).unwrap();
        let after = keystore.load().unwrap();
        assert_eq!(format!("{:?}", after.identity), format!("{:?}", before.identity));
        let (before, after) = (before.identity.unwrap(), after.identity.unwrap());
        assert_eq!((after.key.expose_pem(), &after.token), (before.key.expose_pem(), &before.token));
        assert_eq!((mode(keystore.dir()), mode(&keystore.path())), (0o700, 0o600));
        assert!(Identity::load(dir.path()).unwrap().is_some());
        keystore.remove().unwrap();
        assert!(keystore.load().unwrap().identity.is_none());
    }

    #[test]
    fn what_others_may_read_is_refused_with_the_fix() {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::new(dir.path());
        keystore.save(&stored()).unwrap();
        fs::set_permissions(keystore.path(), fs::Permissions::from_mode(0o640)).unwrap();
        let text = keystore.load().unwrap_err().to_string();
        assert!(text.contains("0640") && text.contains("chmod 600"), "{text}");
        fs::set_permissions(keystore.path(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(keystore.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        let text = keystore.load().unwrap_err().to_string();
        assert!(text.contains("chmod 700"), "{text}");
        assert!(keystore.save(&stored()).is_err(), "nothing secret goes there either");
    }

    #[test]
    fn what_is_damaged_is_refused_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::new(dir.path());
        keystore.save(&stored()).unwrap();
        let text = fs::read_to_string(keystore.path()).unwrap();
        let cut = &text[..text.len() / 2];
        let other_key = text.replace("PRIVATE KEY", "PUBLIC KEY");
        for bad in ["", "{}", cut, "[1]", &other_key, &format!("{text}{}", " ".repeat(300 << 10))] {
            write_private(&keystore.path(), bad.as_bytes()).unwrap();
            let error = keystore.load().unwrap_err();
            assert!(matches!(error, KeystoreError::Damaged { .. }), "{error}");
            assert!(!error.to_string().contains("sats_") && !error.to_string().contains("PRIVATE"), "{error}");
        }
        write_private(&keystore.path(), text.replace("\"format\": 1", "\"format\": 2").as_bytes()).unwrap();
        assert!(matches!(keystore.load(), Err(KeystoreError::Newer { .. })));
    }

    #[test]
    fn a_crash_before_the_swap_leaves_the_old_identity_whole() {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::new(dir.path());
        keystore.save(&stored()).unwrap();
        let before = keystore.load().unwrap().identity.unwrap();
        fs::write(keystore.path().with_extension("new"), "half of the ne").unwrap();
        assert_eq!(keystore.load().unwrap().identity.unwrap().chain, before.chain);
        let version = keystore.version();
        keystore.save(&stored()).unwrap();
        assert_ne!(keystore.load().unwrap().identity.unwrap().chain, before.chain);
        assert_ne!(keystore.version(), version);
    }

    #[test]
    fn a_certificate_for_another_key_is_not_taken() {
        let authority = Authority::new("relay");
        let identity = authority.identity(([127, 0, 0, 1], 1).into(), GOOD);
        let (asked, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        let certificate = |chain: String| Certificate {
            chain,
            ca_bundle: authority.pem.clone(),
            generation: 2,
            not_after_ms: 2,
            renew_after_ms: 1,
        };
        let good = certificate(authority.issue(&asked.request().unwrap(), GOOD));
        assert_eq!(identity.renewed(&good, asked.clone()).unwrap().generation, 2);
        let foreign = certificate(authority.issue(&other.request().unwrap(), GOOD));
        assert!(matches!(identity.renewed(&foreign, asked.clone()), Err(InvalidCertificate::Key(_))));
        assert!(matches!(
            identity.renewed(&certificate("hello".into()), asked.clone()),
            Err(InvalidCertificate::Pem("chain"))
        ));
        let bundle = Certificate { ca_bundle: String::new(), ..good.clone() };
        assert!(matches!(identity.renewed(&bundle, asked.clone()), Err(InvalidCertificate::Pem("ca_bundle"))));
        let times = Certificate { renew_after_ms: 3, ..good };
        assert!(matches!(identity.renewed(&times, asked), Err(InvalidCertificate::Answer(_))));
    }

    #[test]
    fn neither_key_nor_token_is_shown_by_debug() {
        let stored = stored();
        let identity = stored.identity.clone().unwrap();
        let shown = format!("{stored:?}");
        let secret_line = identity.key.expose_pem().lines().nth(1).unwrap();
        assert!(!shown.contains(secret_line) && !shown.contains(identity.token.expose()));
    }
}
