//! What the relay must not forget: leases, satellites, certificates, configurations, what is stored of each epoch.
//!
//! One SQL text for SQLite and PostgreSQL, so: no BOOLEAN, no `SUM` without a cast, times as BIGINT milliseconds,
//! ids and JSON as TEXT, numbered parameters only. SQLite commits with `synchronous = FULL`: what it has said is
//! stored survives a power cut. A table is a file below this one.
//!
//! A damaged registry is refused, never guessed at: it is compared with its [`seal`], and SQLite checks its structure.
//! What helps is a backup (`sqlite3 registry.db '.backup FILE'` makes one while the relay runs).
//!
//! The command line is another process on the same file. What it changes of a satellite gets the next number of one
//! counter, the revision, so that the serving process finds all changes by asking for what is above the last one.

pub mod batches;

pub mod certificates;

pub mod configs;

pub mod dead_letters;

pub mod leases;

pub mod restore;

pub mod satellites;

pub mod seal;

pub mod streams;

use std::path::{Path, PathBuf};
use std::time::Duration;

use satellite_shared::id::{InvalidId, SatelliteId};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Any, AnyConnection, AnyPool, ConnectOptions, Connection, Executor, Row, SqlSafeStr, Transaction};

use crate::data_dir::{DataDir, DataDirError};

pub use self::batches::Intent;
pub use self::certificates::{CertificateRow, CertificateState};
pub use self::configs::ConfigRow;
pub use self::dead_letters::DeadLetter;
pub use self::leases::{Claim, LeaseRow, NewLease};
pub use self::satellites::{Change, SatelliteRow, Seen};
pub use self::streams::StreamRow;

const FILE: &str = "registry.db";
const LOCK: &str = "registry.lock";
/// The relay makes its authority after its registry: where there is one, there was the other.
const AUTHORITY_FOLDER: &str = "authority";
/// Readers wait for nobody in WAL mode, writers for each other; more would only wait.
const CONNECTIONS_MAX: u32 = 4;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

const MIGRATIONS: [(i64, &str, &str); 3] = [
    (1, "registry", include_str!("../migrations/0001_registry.sql")),
    (2, "archive", include_str!("../migrations/0002_archive.sql")),
    (3, "restore", include_str!("../migrations/0003_restore.sql")),
];

/// Why the registry can't say or keep something.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Its file can't be made or locked.
    #[error(transparent)]
    Files(#[from] DataDirError),
    /// A later version of this program wrote it.
    #[error(
        "{path} was written by a newer satellite-relay (its format is {found}, this program reads up to {known}): \
         install that version or a newer one"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// Its file is damaged, or gone.
    #[error(
        "{path} is damaged: {why}. Stop the relay and put a backup in its place: `rm -f {path}-wal {path}-shm` and \
         `cp BACKUP {path}`. Without one, `sqlite3 {path} .recover | sqlite3 NEW` saves what can be read; to begin anew, \
         move the whole folder away: every satellite then needs a new lease"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// How that shows.
        why: String,
    },
    /// Its format can't be brought up to date.
    #[error("the registry's format: {0}")]
    Migration(#[source] MigrateError),
    /// The database does not do as told.
    #[error("the registry: {0}")]
    Database(#[from] sqlx::Error),
    /// A row holds what this program never wrote.
    #[error("the registry holds a bad {what}: {detail}")]
    Content {
        /// The column.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// There is no such satellite.
    #[error("there is no satellite {0}; `satellite-relay satellite list` names them")]
    NoSatellite(String),
    /// There is no such lease.
    #[error("there is no lease {0}; `satellite-relay lease list` names them")]
    NoLease(String),
    /// One satellite asks for certificates without end.
    #[error("this satellite was given too many certificates within an hour; it may ask again in an hour")]
    TooManyCertificates,
    /// Another satellite has the name.
    #[error(
        "`{name}` is an enrolled satellite ({satellite}): take another name, or give that one a new identity with \
         `--replace`, or first `satellite-relay satellite revoke {satellite}`"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose.
        satellite: SatelliteId,
    },
}

/// SQLite's own words for a file whose bytes it can't make sense of: SQLITE_CORRUPT and SQLITE_NOTADB.
const DAMAGED_CODES: [u32; 2] = [11, 26];

impl RegistryError {
    /// What SQLite can't make sense of is damage.
    fn or_damaged(self, path: &Path) -> Self {
        let said = if let Self::Database(sqlx::Error::Database(error))
        | Self::Migration(MigrateError::Execute(sqlx::Error::Database(error))) = &self
        {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            // The low byte of an extended code is the code.
            code.filter(|code| DAMAGED_CODES.contains(&(code & 0xff))).map(|_| error.to_string())
        } else {
            None
        };
        match said {
            Some(why) => Self::Damaged { path: path.to_owned(), why },
            None => self,
        }
    }

    /// Whether somebody else holds what was asked for, for longer than anybody should.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let Self::Database(error) = self else { return false };
        let said = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
        // The low byte of an extended code is the code: SQLITE_BUSY.
        said.is_some_and(|code| code & 0xff == 5) || matches!(error, sqlx::Error::PoolTimedOut)
    }

    fn content(what: &'static str, detail: impl ToString) -> Self {
        Self::Content { what, detail: detail.to_string() }
    }
}

/// The registry; clones share its connections.
#[derive(Debug, Clone)]
pub struct Registry {
    pool: AnyPool,
    sqlite: bool,
    data_dir: DataDir,
}

impl Registry {
    /// Opens the SQLite registry in a data directory; makes both where they are missing.
    ///
    /// # Errors
    /// Says which file can't be used, or that a newer program wrote it.
    pub async fn open(data_dir: &Path) -> Result<Self, RegistryError> {
        let path = data_dir.join(FILE);
        let data_dir = DataDir::open(data_dir)?;
        // Two programs that make one registry at once would both create its tables.
        let lock = blocking({
            let (data_dir, path) = (data_dir.clone(), path.clone());
            move || unseal(&data_dir, &path)
        })
        .await?;
        sqlx::any::install_default_drivers();
        let options: AnyConnectOptions = sqlite_url(&path).parse()?;
        // Not from the pool, which tries again and again and then says only that time is up.
        begin(&options, &path).await.map_err(|error| error.or_damaged(&path))?;
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .connect_with(options)
            .await?;
        // Only now: whoever seals it in between would seal what this may change.
        drop(lock);
        Ok(Self { pool, sqlite: true, data_dir })
    }

    /// Closes the connections; the last to close seals the file.
    ///
    /// # Errors
    /// When the file can't be sealed: it is whole all the same.
    pub async fn close(self) -> Result<(), RegistryError> {
        self.pool.close().await;
        let data_dir = self.data_dir;
        blocking(move || {
            let _lock = data_dir.lock(LOCK)?;
            Ok(seal::write(&data_dir, &data_dir.path().join(FILE))?)
        })
        .await
    }

    /// The connections, for the tables of other modules.
    #[must_use]
    pub fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins a transaction that will write.
    ///
    /// SQLite takes the write lock now and not at the first write: a transaction that had read before could not wait
    /// for another writer, only fail.
    ///
    /// # Errors
    /// When the lock or a connection is not to be had in time.
    pub async fn begin(&self) -> Result<Transaction<'static, Any>, RegistryError> {
        let begun = if self.sqlite { self.pool.begin_with("BEGIN IMMEDIATE").await } else { self.pool.begin().await };
        Ok(begun?)
    }

    /// Whether it can be written to: waits for the lock that every change takes, and gives it back.
    ///
    /// # Errors
    /// When the lock or a connection is not to be had in time.
    pub async fn answer(&self) -> Result<(), RegistryError> {
        Ok(self.begin().await?.rollback().await?)
    }

    /// What this relay calls itself: random, made with the registry.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn relay_name(&self) -> Result<String, RegistryError> {
        Ok(sqlx::query_scalar("SELECT name FROM relay WHERE id = 1").fetch_one(&self.pool).await?)
    }

    /// The number of the last change.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revision(&self) -> Result<i64, RegistryError> {
        Ok(sqlx::query_scalar("SELECT revision FROM relay WHERE id = 1").fetch_one(&self.pool).await?)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::task::spawn_blocking(work).await.expect("reading and locking files does not panic")
}

/// Takes the lock, compares the file with its seal, and makes it where it has never been.
fn unseal(data_dir: &DataDir, path: &Path) -> Result<std::fs::File, RegistryError> {
    let damaged = |why: String| RegistryError::Damaged { path: path.to_owned(), why };
    let lock = data_dir.lock(LOCK)?;
    if let Some(why) = seal::breach(data_dir, path)? {
        return Err(damaged(why));
    }
    let empty = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
    let folded = !path.with_extension("db-wal").exists();
    if empty && folded && data_dir.path().join(AUTHORITY_FOLDER).exists() {
        return Err(damaged("it is missing or empty, and this relay had one".into()));
    }
    // SQLite gives its `-wal` and `-shm` the owner and the mode of this one.
    data_dir.file(FILE)?;
    Ok(lock)
}

/// Checks the database and brings its format up to date.
async fn begin(options: &AnyConnectOptions, path: &Path) -> Result<(), RegistryError> {
    let mut connection = options.connect().await?;
    prepare(&mut connection).await?;
    // Its tables, and that each index finds each row.
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check(3)").fetch_all(&mut connection).await?;
    if found != ["ok"] {
        return Err(RegistryError::Damaged { path: path.to_owned(), why: found.join("; ") });
    }
    migrate(&mut connection, path).await?;
    Ok(connection.close().await?)
}

async fn migrate(connection: &mut AnyConnection, path: &Path) -> Result<(), RegistryError> {
    let known = MIGRATIONS[MIGRATIONS.len() - 1].0;
    let migrations = MIGRATIONS.map(|(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let migrator = Migrator::with_migrations(migrations.into());
    connection.ensure_migrations_table("_sqlx_migrations").await.map_err(RegistryError::Migration)?;
    let found: Option<i64> =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations").fetch_one(&mut *connection).await?;
    if let Some(found) = found.filter(|found| *found > known) {
        return Err(RegistryError::Newer { path: path.to_owned(), found, known });
    }
    migrator.run(&mut *connection).await.map_err(RegistryError::Migration)?;
    let name = format!("relay-{}", hex(&random::<4>()));
    sqlx::query("INSERT INTO relay (id, name, revision) VALUES (1, $1, 0) ON CONFLICT (id) DO NOTHING")
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

/// Counts a change; the row's own revision makes it found.
async fn next_revision(transaction: &mut AnyConnection) -> Result<i64, RegistryError> {
    let row = sqlx::query("UPDATE relay SET revision = revision + 1 WHERE id = 1 RETURNING revision")
        .fetch_one(transaction)
        .await?;
    Ok(row.try_get(0)?)
}

async fn prepare(connection: &mut AnyConnection) -> Result<(), sqlx::Error> {
    if connection.backend_name() != "SQLite" {
        return Ok(());
    }
    connection.execute("PRAGMA busy_timeout = 5000").await?;
    connection.execute("PRAGMA journal_mode = WAL").await?;
    connection.execute("PRAGMA synchronous = FULL").await?;
    connection.execute("PRAGMA foreign_keys = ON").await?;
    Ok(())
}

/// A URL's own characters would end the path: each becomes `%XX`.
fn sqlite_url(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt as _;

    let mut url = String::from("sqlite://");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            write!(url, "%{byte:02X}").expect("a String takes what it is given");
        }
    }
    url + "?mode=rwc"
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// SHA-256 as 64 hexadecimal digits: how the registry keeps tokens and keys.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

fn parsed<T: std::str::FromStr<Err = InvalidId>>(what: &'static str, text: &str) -> Result<T, RegistryError> {
    text.parse().map_err(|e| RegistryError::content(what, e))
}

fn unsigned(what: &'static str, number: i64) -> Result<u64, RegistryError> {
    u64::try_from(number).map_err(|e| RegistryError::content(what, e))
}

fn signed(what: &'static str, number: u64) -> Result<i64, RegistryError> {
    i64::try_from(number).map_err(|e| RegistryError::content(what, e))
}

/// A count that only a liar reaches: the row shall not fail to be written because of it.
fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use satellite_shared::id::LeaseId;
    use satellite_shared::secret::{Token, TokenKind};
    use serde_json::json;

    use super::*;
    use crate::authority::Issued;

    fn lease(name: &str, bits: u8) -> NewLease {
        NewLease {
            id: LeaseId::from_bits([bits; 10]),
            satellite: SatelliteId::from_bits([bits; 10]),
            name: name.into(),
            token_sha256: sha256_hex(&[bits]),
            relay_url: "https://localhost:8443".into(),
            now_ms: 1_000,
            expires_at_ms: 3_601_000,
            replace: false,
        }
    }

    fn certificate(bits: u8) -> Issued {
        Issued {
            chain: format!("chain {bits}"),
            serial_hex: hex(&[bits; 16]),
            spki_sha256_hex: sha256_hex(&[bits]),
            not_after_ms: 604_801_000,
            renew_after_ms: 302_000_000,
        }
    }

    async fn claim(registry: &Registry, bits: u8, key: u8, now_ms: i64) -> Option<u64> {
        let claim = Claim {
            lease: &LeaseId::from_bits([bits; 10]),
            token_sha256: &sha256_hex(&[bits]),
            session_token_sha256: &sha256_hex(b"session"),
            certificate: &certificate(key),
            hostname: "nas",
            agent_version: "0.1.0",
            now_ms,
        };
        registry.claim(&claim).await.unwrap()
    }

    async fn state(registry: &Registry, key: u8) -> CertificateState {
        let certificate = certificate(key);
        registry
            .certificate(&certificate.serial_hex, &certificate.spki_sha256_hex)
            .await
            .unwrap()
            .expect("it was issued")
            .state
    }

    #[tokio::test]
    async fn a_registry_opens_again_and_belongs_to_its_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("what? 100% #1");
        let name = Registry::open(&data_dir).await.unwrap().relay_name().await.unwrap();
        assert_eq!(Registry::open(&data_dir).await.unwrap().relay_name().await.unwrap(), name);
        for (file, mode) in [("registry.db", 0o600), ("registry.db-wal", 0o600), (".", 0o700)] {
            let found = fs::metadata(data_dir.join(file)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{file}");
        }
    }

    #[tokio::test]
    async fn many_programs_may_make_one_registry_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let opened = futures_util::future::join_all((0..8).map(|_| Registry::open(dir.path()))).await;
        assert!(opened.iter().all(Result::is_ok), "{opened:?}");
    }

    #[tokio::test]
    async fn sqlite_commits_before_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let text = |pragma: &'static str| sqlx::query(pragma).fetch_one(registry.pool());
        assert_eq!(text("PRAGMA journal_mode").await.unwrap().get::<String, _>(0), "wal");
        assert_eq!(text("PRAGMA synchronous").await.unwrap().get::<i64, _>(0), 2);
        assert_eq!(text("PRAGMA foreign_keys").await.unwrap().get::<i64, _>(0), 1);
        assert_eq!(text("PRAGMA busy_timeout").await.unwrap().get::<i64, _>(0), 5000);
    }

    #[tokio::test]
    async fn a_registry_of_a_newer_program_is_refused_with_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        sqlx::query("UPDATE _sqlx_migrations SET version = 99 WHERE version = 2")
            .execute(registry.pool())
            .await
            .unwrap();
        let error = Registry::open(dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("newer satellite-relay (its format is 99"), "{error}");
    }

    #[tokio::test]
    async fn a_registry_that_was_closed_is_sealed_and_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Registry::open(dir.path()).await.unwrap(), Registry::open(dir.path()).await.unwrap());
        let name = first.relay_name().await.unwrap();
        first.close().await.unwrap();
        assert!(!dir.path().join("registry.seal").exists(), "the other still has it open");
        second.close().await.unwrap();
        assert!(dir.path().join("registry.seal").exists());
        assert_eq!(Registry::open(dir.path()).await.unwrap().relay_name().await.unwrap(), name);
        assert!(!dir.path().join("registry.seal").exists());
    }

    #[tokio::test]
    async fn a_registry_that_is_gone_is_not_made_anew_where_there_is_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        Registry::open(dir.path()).await.unwrap().close().await.unwrap();
        fs::create_dir(dir.path().join(AUTHORITY_FOLDER)).unwrap();
        for gone in [false, true] {
            if gone {
                fs::remove_file(dir.path().join(FILE)).unwrap();
            } else {
                fs::write(dir.path().join(FILE), "").unwrap();
            }
            let error = Registry::open(dir.path()).await.unwrap_err().to_string();
            assert!(error.contains("missing or empty") && error.contains("cp BACKUP"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("registry.db"), "not a database, but long enough to look like a file of one")
            .unwrap();
        let error = Registry::open(dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("not a database"), "{error}");
    }

    #[tokio::test]
    async fn a_lease_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.create_lease(&lease("nas", 1)).await.unwrap();
        let claims = futures_util::future::join_all((0..20).map(|key| claim(&registry, 1, key, 2_000))).await;
        assert_eq!(claims.iter().flatten().collect::<Vec<_>>(), [&1]);
        assert!(registry.lease(&LeaseId::from_bits([1; 10])).await.unwrap().unwrap().used_at_ms.is_some());
    }

    #[tokio::test]
    async fn a_lease_that_has_ended_or_is_revoked_is_not_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.create_lease(&lease("nas", 1)).await.unwrap();
        registry.create_lease(&lease("ups", 2)).await.unwrap();
        assert_eq!(claim(&registry, 1, 1, 3_601_000).await, None);
        registry.revoke_lease(&LeaseId::from_bits([2; 10]), 1_500).await.unwrap();
        assert_eq!(claim(&registry, 2, 1, 2_000).await, None);
    }

    #[tokio::test]
    async fn ten_wrong_tokens_in_an_hour_end_a_lease_and_nine_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.create_lease(&lease("nas", 1)).await.unwrap();
        let id = LeaseId::from_bits([1; 10]);
        for _ in 0..9 {
            assert!(!registry.lease_failed(&id, 2_000_000_000).await.unwrap());
        }
        assert!(!registry.lease_failed(&id, 2_003_700_000).await.unwrap(), "an hour later");
        for _ in 0..8 {
            assert!(!registry.lease_failed(&id, 2_003_700_001).await.unwrap());
        }
        assert!(registry.lease_failed(&id, 2_003_700_002).await.unwrap());
        assert!(registry.lease(&id).await.unwrap().unwrap().revoked_at_ms.is_some());
    }

    #[tokio::test]
    async fn a_name_belongs_to_one_enrolled_satellite() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let first = registry.create_lease(&lease("nas", 1)).await.unwrap();
        assert_eq!(registry.create_lease(&lease("nas", 2)).await.unwrap(), first, "it never enrolled");
        assert_eq!(claim(&registry, 1, 1, 2_000).await, None, "its first lease has ended");
        assert_eq!(claim(&registry, 2, 2, 2_000).await, Some(1));
        let refused = registry.create_lease(&lease("nas", 3)).await.unwrap_err();
        assert!(matches!(refused, RegistryError::NameTaken { .. }), "{refused}");

        let replaced = registry.create_lease(&NewLease { replace: true, ..lease("nas", 3) }).await.unwrap();
        assert_eq!(replaced, first);
        assert_eq!(state(&registry, 2).await, CertificateState::PendingUse, "until the new one is there");
        assert_eq!(claim(&registry, 3, 3, 2_500).await, Some(2));
        assert_eq!(state(&registry, 2).await, CertificateState::Revoked);

        registry.revoke_satellite(&first, 3_000).await.unwrap();
        assert_ne!(registry.create_lease(&lease("nas", 4)).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_new_certificate_is_current_when_it_is_used_and_the_old_one_overlaps() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let id = registry.create_lease(&lease("nas", 1)).await.unwrap();
        claim(&registry, 1, 1, 2_000).await.unwrap();
        registry.certificate_used(&id, 1, 3_000).await.unwrap();
        assert_eq!(registry.certificate_issued(&id, &certificate(2), 4_000).await.unwrap(), 2);
        assert_eq!(registry.certificate_issued(&id, &certificate(3), 5_000).await.unwrap(), 3);
        assert_eq!(state(&registry, 1).await, CertificateState::Current);
        assert_eq!(state(&registry, 2).await, CertificateState::PendingUse, "the third may be lost on its way");

        registry.certificate_used(&id, 3, 6_000).await.unwrap();
        registry.certificate_used(&id, 3, 900_000).await.unwrap();
        assert_eq!(state(&registry, 3).await, CertificateState::Current);
        assert_eq!(state(&registry, 2).await, CertificateState::Revoked);
        let old = registry.certificate_of(&id, 1).await.unwrap().unwrap();
        assert_eq!(old.state, CertificateState::Overlap);
        assert!(old.in_force(6_000 + certificates::OVERLAP_MS - 1));
        assert!(!old.in_force(6_000 + certificates::OVERLAP_MS));
        registry.certificate_used(&id, 1, 7_000).await.unwrap();
        assert_eq!(state(&registry, 3).await, CertificateState::Current, "the old one does not come back");
    }

    #[tokio::test]
    async fn a_serial_with_another_key_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.create_lease(&lease("nas", 1)).await.unwrap();
        claim(&registry, 1, 1, 2_000).await.unwrap();
        let (one, two) = (certificate(1), certificate(2));
        assert_eq!(registry.certificate(&one.serial_hex, &two.spki_sha256_hex).await.unwrap(), None);
    }

    #[tokio::test]
    async fn another_process_finds_every_change() {
        let dir = tempfile::tempdir().unwrap();
        let (cli, relay) = (Registry::open(dir.path()).await.unwrap(), Registry::open(dir.path()).await.unwrap());
        let id = cli.create_lease(&lease("nas", 1)).await.unwrap();
        let start = relay.revision().await.unwrap();
        assert_eq!(relay.changes_since(start).await.unwrap(), []);
        assert_eq!(cli.set_config(&id, &json!({"a": 1}), 5).await.unwrap(), 1);
        assert_eq!(cli.set_config(&id, &json!({"a": 1}), 6).await.unwrap(), 1, "nothing new");
        let changes = relay.changes_since(start).await.unwrap();
        let after = changes[0].revision;
        assert_eq!(changes, [Change { satellite: id.clone(), revision: after, revoked: false, config_version: 1 }]);
        cli.set_config(&id, &json!({"a": 2}), 7).await.unwrap();
        cli.revoke_satellite(&id, 8).await.unwrap();
        let changes = relay.changes_since(after).await.unwrap();
        assert_eq!((changes.len(), changes[0].revoked, changes[0].config_version), (1, true, 2));
        assert_eq!(relay.config(&id).await.unwrap(), Some((2, json!({"a": 2}))));
        assert_eq!(relay.config_at(&id, 1).await.unwrap().unwrap().document, json!({"a": 1}));
    }

    #[tokio::test]
    async fn a_revoked_satellite_gets_no_certificate_and_no_token() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let id = registry.create_lease(&lease("nas", 1)).await.unwrap();
        claim(&registry, 1, 1, 2_000).await.unwrap();
        registry.revoke_satellite(&id, 3_000).await.unwrap();
        assert_eq!(state(&registry, 1).await, CertificateState::Revoked);
        assert!(registry.certificate_issued(&id, &certificate(2), 4_000).await.is_err());
        assert!(!registry.set_token(&id, "x").await.unwrap());
        assert!(!registry.count_recovery(&id, 10).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_seen_stays_until_it_is_seen_anew() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let id = registry.create_lease(&lease("nas", 1)).await.unwrap();
        let first = Seen { now_ms: 5, hostname: Some("a".into()), address: Some("::1".into()), ..Seen::default() };
        registry.seen(&id, &first).await.unwrap();
        registry.seen(&id, &Seen { now_ms: 6, address: Some("::2".into()), ..Seen::default() }).await.unwrap();
        let row = registry.satellite_by("nas").await.unwrap();
        assert_eq!(
            (row.last_seen_ms, row.hostname.as_deref(), row.address.as_deref()),
            (Some(6), Some("a"), Some("::2"))
        );
    }

    #[tokio::test]
    async fn a_satellite_without_a_token_matches_none() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let id = registry.create_lease(&lease("nas", 1)).await.unwrap();
        let token = Token::from_bits(TokenKind::Satellite, [1; 32]);
        assert!(!registry.satellite(&id).await.unwrap().unwrap().token_matches(&token));
        registry.set_token(&id, &sha256_hex(token.expose().as_bytes())).await.unwrap();
        let row = registry.satellite(&id).await.unwrap().unwrap();
        assert!(row.token_matches(&token));
        assert!(!row.token_matches(&Token::from_bits(TokenKind::Satellite, [2; 32])));
    }
}
