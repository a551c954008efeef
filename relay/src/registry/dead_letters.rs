//! The dead letters: frames that can't be decoded or stored, whole, with the reason.
//!
//! They count as stored for the satellite, so that one bad frame does not stop its stream, and as `set_aside` in the
//! account. The newest thousand of each satellite are kept, which is seven megabytes.

use std::collections::BTreeSet;

use bytes::Bytes;
use satellite_shared::id::{Epoch, SatelliteId};
use sqlx::{AnyConnection, Row};

use super::{Registry, RegistryError, clamped, parsed, unsigned};
use crate::ingest::Tally;
use crate::ingest::watermark::Span;

/// Letters kept of one satellite.
const KEPT_MAX: i64 = 1_000;

/// A frame that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Whose.
    pub satellite: SatelliteId,
    /// Whose numbers.
    pub epoch: Epoch,
    /// The records that its header names, and the samples due with them.
    pub span: Span,
    /// The frame as it came.
    pub frame: Bytes,
    /// What is wrong with it.
    pub error: String,
    /// When it was set aside.
    pub at_ms: i64,
}

impl DeadLetter {
    /// What it adds to its epoch's account.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally { set_aside: self.span.covered(), ..Tally::default() };
        tally.cover(self.span);
        tally
    }
}

impl Registry {
    /// The dead letters of a satellite, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn dead_letters(&self, satellite: &SatelliteId) -> Result<Vec<DeadLetter>, RegistryError> {
        let rows = sqlx::query(
            "SELECT epoch, first_seq, last_seq, due_before, due_through, frame, error, at_ms FROM dead_letters \
             WHERE satellite = $1 ORDER BY at_ms, epoch, first_seq",
        )
        .bind(satellite.as_str())
        .fetch_all(self.pool())
        .await?;
        let read = |row: &sqlx::any::AnyRow| {
            let number = |at: usize| unsigned("dead letter's number", row.try_get(at)?);
            Ok(DeadLetter {
                satellite: satellite.clone(),
                epoch: parsed("dead letter's epoch", row.try_get::<String, _>(0)?.as_str())?,
                span: Span { first: number(1)?, last: number(2)?, due_before: number(3)?, due_through: number(4)? },
                frame: row.try_get::<Vec<u8>, _>(5)?.into(),
                error: row.try_get(6)?,
                at_ms: row.try_get(7)?,
            })
        };
        rows.iter().map(read).collect()
    }
}

/// Keeps a letter, in the caller's transaction. Says whether it is new.
pub(super) async fn insert(transaction: &mut AnyConnection, letter: &DeadLetter) -> Result<bool, RegistryError> {
    let inserted = sqlx::query(
        "INSERT INTO dead_letters \
         (satellite, epoch, first_seq, last_seq, due_before, due_through, frame, error, at_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (satellite, epoch, first_seq) DO NOTHING",
    )
    .bind(letter.satellite.as_str())
    .bind(letter.epoch.to_string())
    .bind(clamped(letter.span.first))
    .bind(clamped(letter.span.last))
    .bind(clamped(letter.span.due_before))
    .bind(clamped(letter.span.due_through))
    .bind(letter.frame.to_vec())
    .bind(letter.error.as_str())
    .bind(letter.at_ms)
    .execute(transaction)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Forgets the oldest letters of the satellites that wrote these, in the caller's transaction.
pub(super) async fn prune(transaction: &mut AnyConnection, letters: &[DeadLetter]) -> Result<(), RegistryError> {
    let satellites: BTreeSet<&SatelliteId> = letters.iter().map(|letter| &letter.satellite).collect();
    for satellite in satellites {
        sqlx::query(
            "DELETE FROM dead_letters WHERE satellite = $1 AND at_ms < COALESCE((SELECT at_ms FROM dead_letters \
             WHERE satellite = $1 ORDER BY at_ms DESC LIMIT 1 OFFSET $2), 0)",
        )
        .bind(satellite.as_str())
        .bind(KEPT_MAX - 1)
        .execute(&mut *transaction)
        .await?;
    }
    Ok(())
}
