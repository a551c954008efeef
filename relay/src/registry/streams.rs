//! The streams: the account of each epoch of each satellite.

use satellite_shared::id::{Epoch, SatelliteId};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Registry, RegistryError, clamped, parsed, unsigned};
use crate::ingest::Tally;

/// The account of one epoch as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The account.
    pub tally: Tally,
    /// When something was last added.
    pub updated_at_ms: i64,
}

impl Registry {
    /// The account of one epoch; `None` where nothing of it was ever stored.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn stream(&self, satellite: &SatelliteId, epoch: Epoch) -> Result<Option<StreamRow>, RegistryError> {
        let mut connection = self.pool().acquire().await?;
        fetch(&mut connection, satellite, epoch).await
    }

    /// How many epochs of a satellite there are.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn epochs(&self, satellite: &SatelliteId) -> Result<u64, RegistryError> {
        let counted: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM streams WHERE satellite = $1")
            .bind(satellite.as_str())
            .fetch_one(self.pool())
            .await?;
        unsigned("number of streams", counted)
    }

    /// The accounts of all epochs of a satellite, in the order in which they were last added to.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn streams(&self, satellite: &SatelliteId) -> Result<Vec<StreamRow>, RegistryError> {
        let rows = sqlx::query(
            "SELECT epoch, spans, due, stored, explained, set_aside, updated_at_ms FROM streams \
             WHERE satellite = $1 ORDER BY updated_at_ms, epoch",
        )
        .bind(satellite.as_str())
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(read).collect()
    }
}

/// Adds to an epoch's account, in the caller's transaction.
pub(super) async fn add(
    transaction: &mut AnyConnection,
    satellite: &SatelliteId,
    epoch: Epoch,
    more: &Tally,
    now_ms: i64,
) -> Result<(), RegistryError> {
    let mut tally = fetch(transaction, satellite, epoch).await?.map(|row| row.tally).unwrap_or_default();
    tally.add(more);
    let spans = serde_json::to_string(&tally.watermark).expect("plain values always serialise");
    sqlx::query(
        "INSERT INTO streams (satellite, epoch, spans, due, stored, explained, set_aside, updated_at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (satellite, epoch) DO UPDATE SET \
         spans = $3, due = $4, stored = $5, explained = $6, set_aside = $7, updated_at_ms = $8",
    )
    .bind(satellite.as_str())
    .bind(epoch.to_string())
    .bind(spans)
    .bind(clamped(tally.due))
    .bind(clamped(tally.stored))
    .bind(clamped(tally.explained))
    .bind(clamped(tally.set_aside))
    .bind(now_ms)
    .execute(transaction)
    .await?;
    Ok(())
}

async fn fetch(
    connection: &mut AnyConnection,
    satellite: &SatelliteId,
    epoch: Epoch,
) -> Result<Option<StreamRow>, RegistryError> {
    let row = sqlx::query(
        "SELECT epoch, spans, due, stored, explained, set_aside, updated_at_ms FROM streams \
         WHERE satellite = $1 AND epoch = $2",
    )
    .bind(satellite.as_str())
    .bind(epoch.to_string())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(read).transpose()
}

fn read(row: &AnyRow) -> Result<StreamRow, RegistryError> {
    let spans: String = row.try_get(1)?;
    let tally = Tally {
        watermark: serde_json::from_str(&spans).map_err(|e| RegistryError::content("stream's spans", e))?,
        due: unsigned("stream's due", row.try_get(2)?)?,
        stored: unsigned("stream's stored", row.try_get(3)?)?,
        explained: unsigned("stream's explained", row.try_get(4)?)?,
        set_aside: unsigned("stream's set_aside", row.try_get(5)?)?,
    };
    Ok(StreamRow {
        epoch: parsed("stream's epoch", row.try_get::<String, _>(0)?.as_str())?,
        tally,
        updated_at_ms: row.try_get(6)?,
    })
}
