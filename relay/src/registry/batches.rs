//! The batches: what is about to be put into storage, and what became of it.
//!
//! A batch is written down as an intent before its first object is put, with the objects' keys and lengths and with
//! what they hold. It ends as `done`, in the one transaction that also adds what it holds to the streams, or as
//! `abandoned`, after its objects were deleted; `swept`, when no put that is late can land any more.
//! What is done or swept is kept for a week, for whoever looks for a cause.

use satellite_shared::id::{Epoch, SatelliteId};
use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, Row};

use super::dead_letters::{self, DeadLetter};
use super::{Registry, RegistryError, streams};
use crate::ingest::Tally;

/// How long batches that are done or swept are kept.
const KEPT_MS: i64 = 7 * 24 * 3_600_000;

/// What is about to be put into storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The batch's name.
    pub id: String,
    /// What is put, and what it holds.
    pub content: Content,
}

/// The objects of a batch, and what they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The objects.
    pub objects: Vec<ObjectSize>,
    /// What they hold, by epoch.
    pub holds: Vec<Holding>,
}

/// An object as it will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectSize {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
}

/// What a batch holds of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Whose.
    pub satellite: SatelliteId,
    /// Whose numbers.
    pub epoch: Epoch,
    /// What is added to the epoch's account.
    pub tally: Tally,
}

impl Registry {
    /// Writes a batch down before its first object is put. Saying it again changes nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn intend(&self, intent: &Intent, now_ms: i64) -> Result<(), RegistryError> {
        let content = serde_json::to_string(&intent.content).expect("plain values always serialise");
        sqlx::query(
            "INSERT INTO batches (id, state, content, created_at_ms) VALUES ($1, 'intent', $2, $3) \
             ON CONFLICT (id) DO NOTHING",
        )
        .bind(&intent.id)
        .bind(content)
        .bind(now_ms)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Ends a batch whose objects are all there: it is done, the streams hold what it holds, and dead letters that
    /// came with it are kept, all in one transaction. Saying it again changes nothing.
    ///
    /// # Errors
    /// When the database does not answer, and when the batch was abandoned.
    pub async fn finish(
        &self,
        intent: Option<&Intent>,
        letters: &[DeadLetter],
        now_ms: i64,
    ) -> Result<(), RegistryError> {
        let mut transaction = self.begin().await?;
        if let Some(intent) = intent
            && end(&mut transaction, &intent.id, "done", now_ms).await?
        {
            for Holding { satellite, epoch, tally } in &intent.content.holds {
                streams::add(&mut transaction, satellite, *epoch, tally, now_ms).await?;
            }
        }
        for letter in letters {
            if dead_letters::insert(&mut transaction, letter).await? {
                streams::add(&mut transaction, &letter.satellite, letter.epoch, &letter.tally(), now_ms).await?;
            }
        }
        dead_letters::prune(&mut transaction, letters).await?;
        sqlx::query("DELETE FROM batches WHERE state IN ('done', 'swept') AND finished_at_ms < $1")
            .bind(now_ms.saturating_sub(KEPT_MS))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Ends a batch whose objects were deleted.
    ///
    /// # Errors
    /// When the database does not answer, and when the batch was done.
    pub async fn abandon(&self, id: &str, now_ms: i64) -> Result<(), RegistryError> {
        let mut transaction = self.begin().await?;
        end(&mut transaction, id, "abandoned", now_ms).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The batches that were begun and did not end, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unfinished(&self) -> Result<Vec<Intent>, RegistryError> {
        let rows = sqlx::query("SELECT id, content FROM batches WHERE state = 'intent' ORDER BY id");
        intents(rows.fetch_all(self.pool()).await?)
    }

    /// The batches that were abandoned and are not swept, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn abandoned(&self) -> Result<Vec<Intent>, RegistryError> {
        let rows = sqlx::query("SELECT id, content FROM batches WHERE state = 'abandoned' ORDER BY id");
        intents(rows.fetch_all(self.pool()).await?)
    }

    /// Notes that nothing of an abandoned batch can land any more. Saying it again changes nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_swept(&self, id: &str) -> Result<(), RegistryError> {
        let swept = sqlx::query("UPDATE batches SET state = 'swept' WHERE id = $1 AND state = 'abandoned'");
        swept.bind(id).execute(self.pool()).await?;
        Ok(())
    }
}

/// Whether the batch ended now and not before.
async fn end(transaction: &mut AnyConnection, id: &str, state: &str, now_ms: i64) -> Result<bool, RegistryError> {
    let ended = sqlx::query("UPDATE batches SET state = $1, finished_at_ms = $2 WHERE id = $3 AND state = 'intent'")
        .bind(state)
        .bind(now_ms)
        .bind(id)
        .execute(&mut *transaction)
        .await?;
    if ended.rows_affected() == 1 {
        return Ok(true);
    }
    let found: Option<String> =
        sqlx::query_scalar("SELECT state FROM batches WHERE id = $1").bind(id).fetch_optional(transaction).await?;
    match found {
        Some(found) if found == state => Ok(false),
        Some(found) => Err(RegistryError::content("batch", format!("{id} is {found}, not {state}"))),
        None => Err(RegistryError::content("batch", format!("{id} was never begun"))),
    }
}

fn intents(rows: Vec<sqlx::any::AnyRow>) -> Result<Vec<Intent>, RegistryError> {
    let read = |row: &sqlx::any::AnyRow| {
        let content: String = row.try_get(1)?;
        let content = serde_json::from_str(&content).map_err(|e| RegistryError::content("batch's content", e))?;
        Ok(Intent { id: row.try_get(0)?, content })
    };
    rows.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::watermark::Span;

    const NOW_MS: i64 = 1_795_247_999_999;

    fn satellite() -> SatelliteId {
        SatelliteId::from_bits([3; 10])
    }

    fn intent(id: &str, first: u64, last: u64) -> Intent {
        let mut tally = Tally { stored: last - first + 1, ..Tally::default() };
        tally.cover(Span { first, last, due_before: first - 1, due_through: last });
        let holds = vec![Holding { satellite: satellite(), epoch: Epoch(7), tally }];
        let objects = vec![ObjectSize { key: format!("samples/{id}"), bytes: 12 }];
        Intent { id: id.into(), content: Content { objects, holds } }
    }

    fn letter(first_seq: u64, due: u64) -> DeadLetter {
        DeadLetter {
            satellite: satellite(),
            epoch: Epoch(7),
            span: Span {
                first: first_seq,
                last: first_seq,
                due_before: first_seq - 1,
                due_through: first_seq - 1 + due,
            },
            frame: vec![0, 255, 1].into(),
            error: "payload is malformed".into(),
            at_ms: NOW_MS,
        }
    }

    #[tokio::test]
    async fn a_batch_is_counted_once_however_often_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let (one, two) = (intent("b1", 1, 10), intent("b2", 11, 20));
        for _ in 0..2 {
            registry.intend(&one, NOW_MS).await.unwrap();
            registry.intend(&two, NOW_MS).await.unwrap();
        }
        assert_eq!(registry.unfinished().await.unwrap(), [one.clone(), two.clone()]);
        for _ in 0..2 {
            registry.finish(Some(&one), &[letter(21, 1)], NOW_MS).await.unwrap();
        }
        assert_eq!(registry.unfinished().await.unwrap(), std::slice::from_ref(&two));
        registry.finish(Some(&two), &[], NOW_MS).await.unwrap();
        let row = registry.stream(&satellite(), Epoch(7)).await.unwrap().unwrap();
        assert_eq!((row.tally.stored, row.tally.set_aside, row.tally.due), (20, 1, 21));
        assert_eq!(row.tally.watermark.ranges().as_slice(), [(1, 21)]);
        assert!(row.tally.is_balanced());
        assert_eq!(registry.streams(&satellite()).await.unwrap(), [row]);
        let letters = registry.dead_letters(&satellite()).await.unwrap();
        assert_eq!(letters, [letter(21, 1)]);
    }

    #[tokio::test]
    async fn an_abandoned_batch_can_not_be_finished() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let one = intent("b1", 1, 10);
        registry.intend(&one, NOW_MS).await.unwrap();
        registry.abandon("b1", NOW_MS).await.unwrap();
        registry.abandon("b1", NOW_MS).await.unwrap();
        let refused = registry.finish(Some(&one), &[], NOW_MS).await.unwrap_err().to_string();
        assert!(refused.contains("b1 is abandoned"), "{refused}");
        assert!(registry.finish(Some(&intent("b9", 1, 1)), &[], NOW_MS).await.is_err());
        assert_eq!(registry.stream(&satellite(), Epoch(7)).await.unwrap(), None);
        assert_eq!(registry.abandoned().await.unwrap(), std::slice::from_ref(&one));
        registry.note_swept("b1").await.unwrap();
        assert!(registry.finish(Some(&one), &[], NOW_MS).await.is_err(), "it stays given up");
        assert_eq!(registry.abandoned().await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_is_done_is_forgotten_after_a_week_and_other_batches_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.intend(&intent("b1", 1, 1), 0).await.unwrap();
        registry.intend(&intent("b2", 2, 2), 0).await.unwrap();
        registry.intend(&intent("b3", 3, 3), 0).await.unwrap();
        registry.finish(Some(&intent("b3", 3, 3)), &[], 0).await.unwrap();
        registry.abandon("b1", 0).await.unwrap();
        registry.finish(None, &[letter(5, 0)], KEPT_MS + 1).await.unwrap();
        assert_eq!((registry.abandoned().await.unwrap().len(), registry.unfinished().await.unwrap().len()), (1, 1));
        assert!(registry.finish(Some(&intent("b3", 3, 3)), &[], 0).await.is_err(), "nobody knows it any more");
    }

    #[tokio::test]
    async fn counts_beyond_what_a_database_holds_do_not_stop_the_commit() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let mut huge = intent("b1", 1, 1);
        huge.content.holds[0].tally.explained = u64::MAX;
        huge.content.holds[0].tally.due = u64::MAX;
        registry.intend(&huge, NOW_MS).await.unwrap();
        registry.finish(Some(&huge), &[], NOW_MS).await.unwrap();
        let row = registry.stream(&satellite(), Epoch(7)).await.unwrap().unwrap();
        assert_eq!(row.tally.explained, i64::MAX.unsigned_abs());
        assert!(!row.tally.is_balanced());
    }
}
