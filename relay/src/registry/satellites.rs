//! The satellites: who they are, what they may, and what was last seen of them.

use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::Token;
use satellite_shared::wire::to_relay::{ConfigStatus, Progress};
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Registry, RegistryError, certificates, next_revision, parsed, sha256_hex, unsigned};

/// A satellite as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SatelliteRow {
    /// Who.
    pub id: SatelliteId,
    /// What the maker of its lease called it.
    pub name: String,
    /// The lease it enrolled with, or is to enrol with.
    pub lease: LeaseId,
    /// SHA-256 of its session token; none before it enrols.
    pub token_sha256: Option<String>,
    /// When its first lease was made.
    pub created_at_ms: i64,
    /// When it last enrolled.
    pub enrolled_at_ms: Option<i64>,
    /// When an administrator revoked it.
    pub revoked_at_ms: Option<i64>,
    /// The current configuration; 0 where there is none.
    pub config_version: u64,
    /// The last certificate issued to it.
    pub generation: u64,
    /// How often it recovered since it enrolled.
    pub recoveries: u64,
    /// When it last said something.
    pub last_seen_ms: Option<i64>,
    /// The machine's name, as it says.
    pub hostname: Option<String>,
    /// The program's version, as it says.
    pub agent_version: Option<String>,
    /// Where it last connected from.
    pub address: Option<String>,
    /// How far it last said it was.
    pub progress: Option<Progress>,
    /// What became of the last configuration it answered for.
    pub config_status: Option<ConfigStatus>,
    /// When it answered.
    pub config_status_at_ms: Option<i64>,
}

impl SatelliteRow {
    /// Whether this is the token that enrolment gave it; takes the same time wherever they differ.
    #[must_use]
    pub fn token_matches(&self, token: &Token) -> bool {
        let given = sha256_hex(token.expose().as_bytes());
        let kept = self.token_sha256.as_deref().unwrap_or_default();
        aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), kept.as_bytes()).is_ok()
    }
}

/// What a session has seen of a satellite; what it has not seen leaves what is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// When, wall clock.
    pub now_ms: i64,
    /// The machine's name.
    pub hostname: Option<String>,
    /// The program's version.
    pub agent_version: Option<String>,
    /// Where it connected from.
    pub address: Option<String>,
    /// How far it is.
    pub progress: Option<Progress>,
}

/// A change that live sessions must hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub satellite: SatelliteId,
    /// The change's number.
    pub revision: i64,
    /// It may no longer.
    pub revoked: bool,
    /// Its configuration as of now.
    pub config_version: u64,
}

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT id, name, lease, token_sha256, created_at_ms, enrolled_at_ms, revoked_at_ms, config_version, \
             generation, recoveries, last_seen_ms, hostname, agent_version, address, progress, config_status, \
             config_status_at_ms FROM satellites ",
            $tail
        )
    };
}

impl Registry {
    /// The satellite with this id.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn satellite(&self, id: &SatelliteId) -> Result<Option<SatelliteRow>, RegistryError> {
        let row = sqlx::query(select!("WHERE id = $1")).bind(id.as_str()).fetch_optional(self.pool()).await?;
        row.as_ref().map(read).transpose()
    }

    /// The satellite with this id or name; of several with one name, the one that is not revoked, then the newest.
    ///
    /// # Errors
    /// When there is none, and when the database does not answer.
    pub async fn satellite_by(&self, id_or_name: &str) -> Result<SatelliteRow, RegistryError> {
        let row = sqlx::query(select!(
            "WHERE id = $1 OR name = $1 \
             ORDER BY CASE WHEN revoked_at_ms IS NULL THEN 0 ELSE 1 END, created_at_ms DESC LIMIT 1"
        ))
        .bind(id_or_name)
        .fetch_optional(self.pool())
        .await?;
        row.as_ref().map(read).transpose()?.ok_or_else(|| RegistryError::NoSatellite(shown(id_or_name)))
    }

    /// All satellites by name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn satellites(&self) -> Result<Vec<SatelliteRow>, RegistryError> {
        let rows = sqlx::query(select!("ORDER BY name, created_at_ms")).fetch_all(self.pool()).await?;
        rows.iter().map(read).collect()
    }

    /// Keeps what a session has seen.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn seen(&self, id: &SatelliteId, seen: &Seen) -> Result<(), RegistryError> {
        let progress = seen.progress.as_ref().map(to_json);
        sqlx::query(
            "UPDATE satellites SET last_seen_ms = $1, hostname = COALESCE($2, hostname), \
             agent_version = COALESCE($3, agent_version), address = COALESCE($4, address), \
             progress = COALESCE($5, progress) WHERE id = $6",
        )
        .bind(seen.now_ms)
        .bind(seen.hostname.as_deref())
        .bind(seen.agent_version.as_deref())
        .bind(seen.address.as_deref())
        .bind(progress)
        .bind(id.as_str())
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Keeps what became of a configuration.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_config_status(
        &self,
        id: &SatelliteId,
        status: &ConfigStatus,
        now_ms: i64,
    ) -> Result<(), RegistryError> {
        sqlx::query("UPDATE satellites SET config_status = $1, config_status_at_ms = $2 WHERE id = $3")
            .bind(to_json(status))
            .bind(now_ms)
            .bind(id.as_str())
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Replaces the session token of a satellite that may still connect. Says whether it may.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_token(&self, id: &SatelliteId, token_sha256: &str) -> Result<bool, RegistryError> {
        let changed = sqlx::query("UPDATE satellites SET token_sha256 = $1 WHERE id = $2 AND revoked_at_ms IS NULL")
            .bind(token_sha256)
            .bind(id.as_str())
            .execute(self.pool())
            .await?;
        Ok(changed.rows_affected() == 1)
    }

    /// Counts a recovery if there may be one more. Says whether there may.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn count_recovery(&self, id: &SatelliteId, recoveries_max: u32) -> Result<bool, RegistryError> {
        let counted = sqlx::query(
            "UPDATE satellites SET recoveries = recoveries + 1 \
             WHERE id = $1 AND revoked_at_ms IS NULL AND recoveries < $2",
        )
        .bind(id.as_str())
        .bind(i64::from(recoveries_max))
        .execute(self.pool())
        .await?;
        Ok(counted.rows_affected() == 1)
    }

    /// A satellite that renews in time may recover as often as before.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn forget_recoveries(&self, id: &SatelliteId) -> Result<(), RegistryError> {
        sqlx::query("UPDATE satellites SET recoveries = 0 WHERE id = $1 AND recoveries > 0")
            .bind(id.as_str())
            .execute(self.pool())
            .await?;
        Ok(())
    }

    /// Ends a satellite: its certificates, its leases, its live session.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoke_satellite(&self, id: &SatelliteId, now_ms: i64) -> Result<(), RegistryError> {
        let mut transaction = self.begin().await?;
        let revision = next_revision(&mut transaction).await?;
        sqlx::query("UPDATE satellites SET revoked_at_ms = COALESCE(revoked_at_ms, $1), revision = $2 WHERE id = $3")
            .bind(now_ms)
            .bind(revision)
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE leases SET revoked_at_ms = $1 WHERE satellite = $2 AND revoked_at_ms IS NULL")
            .bind(now_ms)
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
        certificates::end_all(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// What changed after a revision, in order.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn changes_since(&self, revision: i64) -> Result<Vec<Change>, RegistryError> {
        let rows = sqlx::query(
            "SELECT id, revision, revoked_at_ms, config_version FROM satellites WHERE revision > $1 ORDER BY revision",
        )
        .bind(revision)
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Change {
                    satellite: parsed("satellite", row.try_get(0)?)?,
                    revision: row.try_get(1)?,
                    revoked: row.try_get::<Option<i64>, _>(2)?.is_some(),
                    config_version: unsigned("config version", row.try_get(3)?)?,
                })
            })
            .collect()
    }
}

fn read(row: &AnyRow) -> Result<SatelliteRow, RegistryError> {
    Ok(SatelliteRow {
        id: parsed("satellite", row.try_get(0)?)?,
        name: row.try_get(1)?,
        lease: parsed("lease", row.try_get(2)?)?,
        token_sha256: row.try_get(3)?,
        created_at_ms: row.try_get(4)?,
        enrolled_at_ms: row.try_get(5)?,
        revoked_at_ms: row.try_get(6)?,
        config_version: unsigned("config version", row.try_get(7)?)?,
        generation: unsigned("generation", row.try_get(8)?)?,
        recoveries: unsigned("recoveries", row.try_get(9)?)?,
        last_seen_ms: row.try_get(10)?,
        hostname: row.try_get(11)?,
        agent_version: row.try_get(12)?,
        address: row.try_get(13)?,
        progress: from_json("progress", row.try_get(14)?)?,
        config_status: from_json("config status", row.try_get(15)?)?,
        config_status_at_ms: row.try_get(16)?,
    })
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("wire types always serialise")
}

fn from_json<T: serde::de::DeserializeOwned>(
    what: &'static str,
    text: Option<String>,
) -> Result<Option<T>, RegistryError> {
    text.map(|text| serde_json::from_str(&text).map_err(|e| RegistryError::content(what, e))).transpose()
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}
