//! The configuration documents of the satellites; every version is kept.

use satellite_shared::id::SatelliteId;
use serde_json::Value;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::{Registry, RegistryError, next_revision, unsigned};

/// A version of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigRow {
    /// Counts up from 1.
    pub version: u64,
    /// The document as it was set.
    pub document: Value,
    /// When it was set.
    pub set_at_ms: i64,
}

impl Registry {
    /// A satellite's current configuration.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn config(&self, satellite: &SatelliteId) -> Result<Option<(u64, Value)>, RegistryError> {
        let row = sqlx::query(
            "SELECT version, document, set_at_ms FROM configs WHERE satellite = $1 ORDER BY version DESC LIMIT 1",
        )
        .bind(satellite.as_str())
        .fetch_optional(self.pool())
        .await?;
        Ok(row.as_ref().map(read).transpose()?.map(|config| (config.version, config.document)))
    }

    /// One version of a satellite's configuration.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn config_at(&self, satellite: &SatelliteId, version: u64) -> Result<Option<ConfigRow>, RegistryError> {
        let row = sqlx::query("SELECT version, document, set_at_ms FROM configs WHERE satellite = $1 AND version = $2")
            .bind(satellite.as_str())
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// Sets a satellite's configuration; gives its version. The document that is current already is not set again.
    ///
    /// # Errors
    /// When there is no such satellite, and when the database does not answer.
    pub async fn set_config(
        &self,
        satellite: &SatelliteId,
        document: &Value,
        now_ms: i64,
    ) -> Result<u64, RegistryError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(
            "SELECT version, document, set_at_ms FROM configs WHERE satellite = $1 ORDER BY version DESC LIMIT 1",
        )
        .bind(satellite.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(current) = row.as_ref().map(read).transpose()?
            && current.document == *document
        {
            return Ok(current.version);
        }
        let revision = next_revision(&mut transaction).await?;
        let counted = sqlx::query(
            "UPDATE satellites SET config_version = config_version + 1, revision = $1 WHERE id = $2 \
             RETURNING config_version",
        )
        .bind(revision)
        .bind(satellite.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(row) = counted else { return Err(RegistryError::NoSatellite(satellite.to_string())) };
        let version: i64 = row.try_get(0)?;
        sqlx::query("INSERT INTO configs (satellite, version, document, set_at_ms) VALUES ($1, $2, $3, $4)")
            .bind(satellite.as_str())
            .bind(version)
            .bind(document.to_string())
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        unsigned("config version", version)
    }
}

fn read(row: &AnyRow) -> Result<ConfigRow, RegistryError> {
    let document: &str = row.try_get(1)?;
    Ok(ConfigRow {
        version: unsigned("config version", row.try_get(0)?)?,
        document: serde_json::from_str(document).map_err(|e| RegistryError::content("configuration", e))?,
        set_at_ms: row.try_get(2)?,
    })
}
