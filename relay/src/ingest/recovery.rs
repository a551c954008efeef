//! What a relay that died in a commit has left behind, resolved before anything is taken.
//!
//! For each intent the store is asked for the objects. All there, in the length that was written down: the batch is
//! finished, as if the relay had not died. Else what is there is deleted and the batch abandoned: nothing of it was
//! acknowledged, so the satellites send it again. Frames that were set aside with the batch come again either way.
//!
//! A put of the dead relay may still be on its way when its object is asked for, and land after the batch was
//! abandoned. So the keys of abandoned batches are deleted again after one and after ten minutes; until then a reader
//! may see such rows twice. A local folder has no such puts.

use std::time::Duration;

use crate::ingest::Parts;
use crate::ingest::commit::persist;
use crate::registry::{Intent, RegistryError};
use crate::sink::archive::StoreError;

/// When the keys of abandoned batches are deleted again.
pub(super) const SWEEPS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(600)];
/// Batches abandoned so long ago are not swept by the next start of the relay.
const SWEPT_MS: i64 = 15 * 60_000;

/// Resolves every intent, however long storage and registry take to answer; gives the keys to sweep.
pub(super) async fn resolve(parts: &Parts) -> Vec<String> {
    let passing = |error: RegistryError| (error, true);
    let unfinished =
        forever("ask for unfinished batches", || async { parts.registry.unfinished().await.map_err(passing) }).await;
    for intent in &unfinished {
        if is_whole(parts, intent).await {
            forever("finish a batch", || async {
                parts.registry.finish(Some(intent), &[], parts.clock.now().wall_ms).await.map_err(passing)
            })
            .await;
            tracing::info!(batch = intent.id, "finished a batch that was put before the relay stopped");
        } else {
            delete(parts, intent.content.objects.iter().map(|object| object.key.as_str())).await;
            forever("abandon a batch", || async {
                parts.registry.abandon(&intent.id, parts.clock.now().wall_ms).await.map_err(passing)
            })
            .await;
            tracing::info!(batch = intent.id, "gave up a batch that was not put whole before the relay stopped");
        }
    }
    let since_ms = parts.clock.now().wall_ms.saturating_sub(SWEPT_MS);
    let abandoned = forever("ask for abandoned batches", || async {
        parts.registry.abandoned_since(since_ms).await.map_err(passing)
    })
    .await;
    abandoned.into_iter().flat_map(|intent| intent.content.objects).map(|object| object.key).collect()
}

/// Deletes what a put may have left under keys of abandoned batches, and ends.
pub(super) async fn sweep(parts: Parts, keys: Vec<String>, times: [Duration; 2]) {
    if keys.is_empty() {
        return;
    }
    let mut slept = Duration::ZERO;
    for after in times {
        tokio::time::sleep(after.saturating_sub(slept)).await;
        slept = after;
        delete(&parts, keys.iter().map(String::as_str)).await;
    }
}

async fn is_whole(parts: &Parts, intent: &Intent) -> bool {
    for object in &intent.content.objects {
        let size = forever("ask for an object", || async {
            parts.store.size(&object.key).await.map_err(|error: StoreError| (error, true))
        })
        .await;
        if size != Some(object.bytes) {
            return false;
        }
    }
    true
}

async fn delete(parts: &Parts, keys: impl Iterator<Item = &str>) {
    for key in keys {
        forever("delete an object", || async { parts.store.delete(key).await.map_err(|error| (error, true)) }).await;
    }
}

async fn forever<T, E, F>(what: &'static str, act: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, (E, bool)>>,
{
    match persist(what, act).await {
        Ok(done) => done,
        Err(error) => unreachable!("{what} is repeated until it succeeds: {error}"),
    }
}
