//! One commit: exactly once, by intent.
//!
//! 1. The batch is encoded, so that its objects' keys and lengths are known.
//! 2. The registry writes them down, with what they hold, as an intent.
//!    Meanwhile the archive is told the batch's name, which a registry that is copied back later will not know.
//! 3. Each object is put whole under its key, the first one last. What fails is put again, same key, same bytes.
//! 4. One transaction of the registry ends the batch and adds what it holds to the streams.
//!
//! Only then is anything acknowledged. Steps 2 to 4 are repeated until they succeed: while storage or registry fail,
//! nothing is acknowledged, credit is not given back, and the satellites buffer. A relay that dies on the way leaves
//! the intent, which [`recovery`](super::recovery) resolves at the next start.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::ingest::Parts;
use crate::ingest::intake::Filling;
use crate::ingest::restore;
use crate::registry::batches::{Content, Holding, ObjectSize};
use crate::registry::{DeadLetter, Intent, RegistryError};
use crate::sink::Batch;
use crate::sink::archive::layout::BatchId;
use crate::sink::archive::manifest::Manifest;
use crate::sink::archive::{self, EncodeError, Object};

/// Objects that are put at the same time.
const PUTS_MAX: usize = 4;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A failure is logged when it begins and then once in so many attempts.
const LOGGED_EACH: u32 = 20;

/// Why a batch will never be committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Its rows can't be encoded.
    #[error("a batch can't be encoded: {0}")]
    Encode(#[from] EncodeError),
    /// The encoder panicked.
    #[error("the encoder stopped: {0}")]
    Encoder(#[source] tokio::task::JoinError),
    /// The registry says that somebody else ended it.
    #[error("a batch was ended by somebody else: {0}; is a second relay using this registry?")]
    Ended(#[source] RegistryError),
}

/// One step of a commit. Each is repeated until it succeeds; only then comes the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The registry writes the intent down.
    Intend,
    /// Every object is put.
    Put,
    /// The registry ends the batch, and adds what it holds to the streams.
    Finish,
}

/// The steps of a batch of these objects, in order. A batch that only sets frames aside has none to put.
#[must_use]
pub fn steps(objects: &[Object]) -> &'static [Step] {
    if objects.is_empty() { &[Step::Finish] } else { &[Step::Intend, Step::Put, Step::Finish] }
}

/// What is written down of a batch of these objects; nothing where there are none.
#[must_use]
pub fn intent(id: &BatchId, objects: &[Object], holds: Vec<Holding>) -> Option<Intent> {
    let objects: Vec<ObjectSize> = objects.iter().map(size_of).collect();
    (!objects.is_empty()).then(|| Intent { id: id.to_string(), content: Content { objects, holds } })
}

/// Commits what was sealed; gives it back with what became of it.
pub(super) async fn commit(parts: Parts, mut sealed: Filling) -> (Filling, Result<(), CommitError>) {
    let id = sealed.batch.id.clone();
    let letters = std::mem::take(&mut sealed.letters);
    let batch = std::mem::replace(&mut sealed.batch, Batch::new(id.clone()));
    let done = store(&parts, batch, &sealed, &letters, &id).await;
    sealed.letters = letters;
    (sealed, done)
}

async fn store(
    parts: &Parts,
    batch: Batch,
    sealed: &Filling,
    letters: &[DeadLetter],
    id: &BatchId,
) -> Result<(), CommitError> {
    let rows = batch.rows;
    let started_ms = parts.clock.now().mono_ms;
    let holdings = sealed.holdings();
    let manifest = Manifest::new(&parts.relay, &holdings);
    let objects = encode(batch, manifest.to_text()).await?;
    let intent = intent(id, &objects, holdings);
    for step in steps(&objects) {
        match step {
            Step::Intend => intend(parts, intent.as_ref()).await?,
            Step::Put => put(parts, &objects).await,
            Step::Finish => finish(parts, intent.as_ref(), letters).await?,
        }
    }
    let bytes: usize = objects.iter().map(|object| object.bytes.len()).sum();
    let took_ms = parts.clock.now().mono_ms.saturating_sub(started_ms);
    tracing::debug!(batch = %id, rows, objects = objects.len(), bytes, letters = letters.len(), took_ms, "committed");
    Ok(())
}

async fn intend(parts: &Parts, intent: Option<&Intent>) -> Result<(), CommitError> {
    let Some(intent) = intent else { return Ok(()) };
    let act = || async { parts.registry.intend(intent, parts.clock.now().wall_ms).await.map_err(|e| (e, true)) };
    let (intended, ()) = tokio::join!(persist("write a batch down", act), restore::announce(parts, &intent.id));
    intended.map_err(CommitError::Ended)
}

async fn finish(parts: &Parts, intent: Option<&Intent>, letters: &[DeadLetter]) -> Result<(), CommitError> {
    let act = || async {
        let finished = parts.registry.finish(intent, letters, parts.clock.now().wall_ms).await;
        finished.map_err(|error| {
            let passes = !matches!(error, RegistryError::Content { what: "batch", .. });
            (error, passes)
        })
    };
    persist("end a batch", act).await.map_err(CommitError::Ended)
}

async fn encode(batch: Batch, manifest: String) -> Result<Vec<Object>, CommitError> {
    if batch.rows == 0 {
        return Ok(Vec::new());
    }
    let encoded = tokio::task::spawn_blocking(move || archive::encode(&batch, Some(manifest))).await;
    Ok(encoded.map_err(CommitError::Encoder)??)
}

fn size_of(object: &Object) -> ObjectSize {
    ObjectSize { key: object.key.clone(), bytes: object.bytes.len() as u64 }
}

/// Where the first object is, all are: the archive alone says whether a batch is whole.
async fn put(parts: &Parts, objects: &[Object]) {
    let Some((first, others)) = objects.split_first() else { return };
    let mut puts = FuturesUnordered::new();
    for object in others {
        if puts.len() == PUTS_MAX {
            puts.next().await;
        }
        puts.push(put_one(parts, object));
    }
    while puts.next().await.is_some() {}
    put_one(parts, first).await;
}

async fn put_one(parts: &Parts, object: &Object) {
    let put = persist("put an object", || async {
        parts.store.put(&object.key, object.bytes.clone()).await.map_err(|error| (error, true))
    });
    put.await.unwrap_or_else(|error| unreachable!("a put is repeated until it succeeds: {error}"));
}

/// Does it until it succeeds, or fails in a way that does not pass.
pub(super) async fn persist<T, E, F>(what: &'static str, mut act: impl FnMut() -> F) -> Result<T, E>
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, (E, bool)>>,
{
    let mut backoff = BACKOFF_MIN;
    let mut attempts = 0u32;
    loop {
        match act().await {
            Ok(done) => {
                if attempts > 0 {
                    tracing::info!(attempts, "could {what} again");
                }
                return Ok(done);
            }
            Err((error, false)) => return Err(error),
            Err((error, true)) => {
                if attempts.is_multiple_of(LOGGED_EACH) {
                    tracing::warn!(%error, attempts, "can't {what}: satellites buffer until it works");
                }
                attempts = attempts.saturating_add(1);
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
    }
}
