//! Leases: the right to enrol one satellite, once.
//!
//! A claim is one `UPDATE … WHERE used_at_ms IS NULL`: of any number of claims at once, the database lets one win.

use satellite_shared::id::{LeaseId, SatelliteId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Registry, RegistryError, certificates, next_revision, parsed};
use crate::authority::Issued;
use crate::lease;

/// A lease as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRow {
    /// Which.
    pub id: LeaseId,
    /// What it enrols.
    pub satellite: SatelliteId,
    /// What its maker called that.
    pub name: String,
    /// SHA-256 of its token.
    pub token_sha256: String,
    /// The web door as the join code names it.
    pub relay_url: String,
    /// When it was made.
    pub created_at_ms: i64,
    /// When it ends, used or not.
    pub expires_at_ms: i64,
    /// When it was used.
    pub used_at_ms: Option<i64>,
    /// SHA-256 of the public key that it was used for.
    pub used_spki_sha256: Option<String>,
    /// When it was revoked, by an administrator or after too many wrong tokens.
    pub revoked_at_ms: Option<i64>,
    /// Wrong tokens within the window.
    pub failures: i64,
}

/// What a new lease is made of.
#[derive(Debug, Clone)]
pub struct NewLease {
    /// Which.
    pub id: LeaseId,
    /// The satellite's id, if a new one is needed.
    pub satellite: SatelliteId,
    /// What to call it.
    pub name: String,
    /// SHA-256 of its token.
    pub token_sha256: String,
    /// The web door as the join code names it.
    pub relay_url: String,
    /// Now.
    pub now_ms: i64,
    /// When it ends.
    pub expires_at_ms: i64,
    /// A satellite of that name that enrolled before gets a new identity.
    pub replace: bool,
}

/// What enrolment writes down.
#[derive(Debug, Clone)]
pub struct Claim<'a> {
    /// Which lease.
    pub lease: &'a LeaseId,
    /// SHA-256 of the lease's token.
    pub token_sha256: &'a str,
    /// SHA-256 of the satellite's session token.
    pub session_token_sha256: &'a str,
    /// The first certificate.
    pub certificate: &'a Issued,
    /// The machine's name.
    pub hostname: &'a str,
    /// The program's version.
    pub agent_version: &'a str,
    /// Now.
    pub now_ms: i64,
}

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT l.id, l.satellite, s.name, l.token_sha256, l.relay_url, l.created_at_ms, l.expires_at_ms, \
             l.used_at_ms, l.used_spki_sha256, l.revoked_at_ms, l.failures \
             FROM leases l JOIN satellites s ON s.id = l.satellite ",
            $tail
        )
    };
}

impl Registry {
    /// Keeps a new lease, with its satellite where there is none of that name; says which satellite it enrols.
    ///
    /// A satellite that never enrolled keeps its id and configuration: its former leases end.
    ///
    /// # Errors
    /// When an enrolled satellite has the name, and when the database does not answer.
    pub async fn create_lease(&self, lease: &NewLease) -> Result<SatelliteId, RegistryError> {
        let mut transaction = self.begin().await?;
        let there = sqlx::query("SELECT id, enrolled_at_ms FROM satellites WHERE name = $1 AND revoked_at_ms IS NULL")
            .bind(&lease.name)
            .fetch_optional(&mut *transaction)
            .await?;
        let satellite = match there {
            Some(row) => {
                let id: SatelliteId = parsed("satellite", row.try_get(0)?)?;
                if row.try_get::<Option<i64>, _>(1)?.is_some() && !lease.replace {
                    return Err(RegistryError::NameTaken { name: lease.name.clone(), satellite: id });
                }
                end_open_leases(&mut transaction, &id, lease).await?;
                id
            }
            None => {
                insert_satellite(&mut transaction, lease).await?;
                lease.satellite.clone()
            }
        };
        sqlx::query(
            "INSERT INTO leases (id, satellite, token_sha256, relay_url, created_at_ms, expires_at_ms, failures, \
             failures_since_ms) VALUES ($1, $2, $3, $4, $5, $6, 0, 0)",
        )
        .bind(lease.id.as_str())
        .bind(satellite.as_str())
        .bind(&lease.token_sha256)
        .bind(&lease.relay_url)
        .bind(lease.now_ms)
        .bind(lease.expires_at_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(satellite)
    }

    /// The lease.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease(&self, id: &LeaseId) -> Result<Option<LeaseRow>, RegistryError> {
        let row = sqlx::query(select!("WHERE l.id = $1")).bind(id.as_str()).fetch_optional(self.pool()).await?;
        row.as_ref().map(read).transpose()
    }

    /// All leases, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn leases(&self) -> Result<Vec<LeaseRow>, RegistryError> {
        let rows = sqlx::query(select!("ORDER BY l.created_at_ms DESC, l.id")).fetch_all(self.pool()).await?;
        rows.iter().map(read).collect()
    }

    /// The web doors that the join codes of satellites name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn relay_urls(&self) -> Result<Vec<String>, RegistryError> {
        let urls = sqlx::query_scalar(
            "SELECT DISTINCT l.relay_url FROM leases l JOIN satellites s ON s.id = l.satellite \
             WHERE s.revoked_at_ms IS NULL AND l.revoked_at_ms IS NULL ORDER BY l.relay_url LIMIT 100",
        );
        Ok(urls.fetch_all(self.pool()).await?)
    }

    /// Counts a wrong token; the last one in the window ends the lease. Says whether it did.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn lease_failed(&self, id: &LeaseId, now_ms: i64) -> Result<bool, RegistryError> {
        let mut transaction = self.begin().await?;
        let counted = sqlx::query(
            "UPDATE leases SET \
             failures = CASE WHEN failures_since_ms < $1 THEN 1 ELSE failures + 1 END, \
             failures_since_ms = CASE WHEN failures_since_ms < $1 THEN $2 ELSE failures_since_ms END \
             WHERE id = $3 AND used_at_ms IS NULL AND revoked_at_ms IS NULL RETURNING failures",
        )
        .bind(now_ms.saturating_sub(lease::FAILURES_WINDOW_MS))
        .bind(now_ms)
        .bind(id.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        let failures: i64 = counted.map_or(Ok(0), |row| row.try_get(0))?;
        let burnt = failures >= lease::FAILURES_MAX;
        if burnt {
            sqlx::query("UPDATE leases SET revoked_at_ms = $1 WHERE id = $2")
                .bind(now_ms)
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(burnt)
    }

    /// Uses the lease, if it still may be: certificate and session token are in force with it. Gives the
    /// certificate's generation, or nothing where the lease was used, ended or revoked in the meantime.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn claim(&self, claim: &Claim<'_>) -> Result<Option<u64>, RegistryError> {
        let mut transaction = self.begin().await?;
        let claimed = sqlx::query(
            "UPDATE leases SET used_at_ms = $1, used_spki_sha256 = $2 WHERE id = $3 AND token_sha256 = $4 \
             AND used_at_ms IS NULL AND revoked_at_ms IS NULL AND expires_at_ms > $1 RETURNING satellite",
        )
        .bind(claim.now_ms)
        .bind(&claim.certificate.spki_sha256_hex)
        .bind(claim.lease.as_str())
        .bind(claim.token_sha256)
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = claimed else { return Ok(None) };
        let satellite: SatelliteId = parsed("satellite", row.try_get(0)?)?;
        certificates::end_all(&mut transaction, &satellite).await?;
        let generation = certificates::insert(&mut transaction, &satellite, claim.certificate, claim.now_ms).await?;
        let revision = next_revision(&mut transaction).await?;
        sqlx::query(
            "UPDATE satellites SET lease = $1, token_sha256 = $2, enrolled_at_ms = $3, hostname = $4, \
             agent_version = $5, recoveries = 0, revision = $6 WHERE id = $7",
        )
        .bind(claim.lease.as_str())
        .bind(claim.session_token_sha256)
        .bind(claim.now_ms)
        .bind(claim.hostname)
        .bind(claim.agent_version)
        .bind(revision)
        .bind(satellite.as_str())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Some(generation))
    }

    /// Ends a lease that was not used. One that was used ends with its satellite.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoke_lease(&self, id: &LeaseId, now_ms: i64) -> Result<(), RegistryError> {
        sqlx::query("UPDATE leases SET revoked_at_ms = $1 WHERE id = $2 AND revoked_at_ms IS NULL")
            .bind(now_ms)
            .bind(id.as_str())
            .execute(self.pool())
            .await?;
        Ok(())
    }
}

async fn end_open_leases(
    transaction: &mut AnyConnection,
    satellite: &SatelliteId,
    successor: &NewLease,
) -> Result<(), RegistryError> {
    sqlx::query(
        "UPDATE leases SET revoked_at_ms = $1 WHERE satellite = $2 AND used_at_ms IS NULL AND revoked_at_ms IS NULL",
    )
    .bind(successor.now_ms)
    .bind(satellite.as_str())
    .execute(&mut *transaction)
    .await?;
    sqlx::query("UPDATE satellites SET lease = $1 WHERE id = $2 AND enrolled_at_ms IS NULL")
        .bind(successor.id.as_str())
        .bind(satellite.as_str())
        .execute(transaction)
        .await?;
    Ok(())
}

async fn insert_satellite(transaction: &mut AnyConnection, lease: &NewLease) -> Result<(), RegistryError> {
    let revision = next_revision(transaction).await?;
    sqlx::query(
        "INSERT INTO satellites (id, name, lease, created_at_ms, revision, config_version, generation, recoveries) \
         VALUES ($1, $2, $3, $4, $5, 0, 0, 0)",
    )
    .bind(lease.satellite.as_str())
    .bind(&lease.name)
    .bind(lease.id.as_str())
    .bind(lease.now_ms)
    .bind(revision)
    .execute(transaction)
    .await?;
    Ok(())
}

fn read(row: &AnyRow) -> Result<LeaseRow, RegistryError> {
    Ok(LeaseRow {
        id: parsed("lease", row.try_get(0)?)?,
        satellite: parsed("satellite", row.try_get(1)?)?,
        name: row.try_get(2)?,
        token_sha256: row.try_get(3)?,
        relay_url: row.try_get(4)?,
        created_at_ms: row.try_get(5)?,
        expires_at_ms: row.try_get(6)?,
        used_at_ms: row.try_get(7)?,
        used_spki_sha256: row.try_get(8)?,
        revoked_at_ms: row.try_get(9)?,
        failures: row.try_get(10)?,
    })
}
