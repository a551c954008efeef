//! What a relay that died in a commit has left behind, resolved before anything is taken.
//!
//! For each intent the store is asked for the objects. All there, in the length that was written down: the batch is
//! finished, as if the relay had not died. Else what is there is deleted and the batch abandoned: nothing of it was
//! acknowledged, so the satellites send it again. Frames that were set aside with the batch come again either way.
//!
//! A put of the dead relay may still be on its way when its object is asked for, and land after the batch was
//! abandoned. So the keys of abandoned batches are deleted again after one and after ten minutes, and only then is the
//! batch done with; until then a reader may see such rows twice. A local folder has no such puts. How long ago it was
//! abandoned does not count: a wall clock that was set meanwhile would say anything.

use std::time::Duration;

use crate::ingest::Parts;
use crate::ingest::commit::persist;
use crate::ingest::restore;
use crate::registry::batches::ObjectSize;
use crate::registry::{Intent, RegistryError};
use crate::sink::archive::StoreError;

/// When the keys of abandoned batches are deleted again.
pub(super) const SWEEPS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(600)];

/// What is done about an unfinished batch, one step after the other. Pure.
#[derive(Debug)]
pub struct Resolution<'a> {
    objects: &'a [ObjectSize],
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Asking(usize),
    Finishing,
    Deleting(usize),
    Abandoning,
    Over,
}

/// One step of a resolution. Each is repeated until it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// How long is the object under this key? [`Resolution::on_size`] takes the answer.
    Ask(&'a str),
    /// All are there: end the batch as done.
    Finish,
    /// Delete what may be under this key.
    Delete(&'a str),
    /// End the batch as abandoned.
    Abandon,
}

impl<'a> Resolution<'a> {
    /// Of a batch of these objects.
    #[must_use]
    pub fn new(objects: &'a [ObjectSize]) -> Self {
        let stage = if objects.is_empty() { Stage::Finishing } else { Stage::Asking(0) };
        Self { objects, stage }
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self) -> Option<Step<'a>> {
        match self.stage {
            Stage::Asking(n) => Some(Step::Ask(&self.objects[n].key)),
            Stage::Finishing => Some(Step::Finish),
            Stage::Deleting(n) => Some(Step::Delete(&self.objects[n].key)),
            Stage::Abandoning => Some(Step::Abandon),
            Stage::Over => None,
        }
    }

    /// The object that was asked for has this length, or is not there.
    pub fn on_size(&mut self, size: Option<u64>) {
        let Stage::Asking(n) = self.stage else { return };
        self.stage = match self.objects.get(n + 1) {
            _ if size != Some(self.objects[n].bytes) => Stage::Deleting(0),
            Some(_) => Stage::Asking(n + 1),
            None => Stage::Finishing,
        };
    }

    /// The step was done.
    pub fn on_done(&mut self) {
        self.stage = match self.stage {
            Stage::Asking(n) => Stage::Asking(n),
            Stage::Deleting(n) if n + 1 < self.objects.len() => Stage::Deleting(n + 1),
            Stage::Deleting(_) => Stage::Abandoning,
            Stage::Finishing | Stage::Abandoning | Stage::Over => Stage::Over,
        };
    }
}

/// Resolves every intent, however long storage and registry take to answer; gives the batches to sweep.
pub(super) async fn resolve(parts: &Parts) -> Vec<Intent> {
    restore::resolve(parts).await;
    let passing = |error: RegistryError| (error, true);
    let unfinished =
        forever("ask for unfinished batches", || async { parts.registry.unfinished().await.map_err(passing) }).await;
    for intent in &unfinished {
        let mut resolution = Resolution::new(&intent.content.objects);
        while let Some(step) = resolution.next() {
            match step {
                Step::Ask(key) => {
                    let size = forever("ask for an object", || async {
                        parts.store.size(key).await.map_err(|error: StoreError| (error, true))
                    });
                    let size = size.await;
                    resolution.on_size(size);
                    continue;
                }
                Step::Delete(key) => delete(parts, [key].into_iter()).await,
                Step::Finish => {
                    forever("finish a batch", || async {
                        parts.registry.finish(Some(intent), &[], parts.clock.now().wall_ms).await.map_err(passing)
                    })
                    .await;
                    tracing::info!(batch = intent.id, "finished a batch that was put before the relay stopped");
                }
                Step::Abandon => {
                    forever("abandon a batch", || async {
                        parts.registry.abandon(&intent.id, parts.clock.now().wall_ms).await.map_err(passing)
                    })
                    .await;
                    tracing::info!(
                        batch = intent.id,
                        "gave up a batch that was not put whole before the relay stopped"
                    );
                }
            }
            resolution.on_done();
        }
    }
    forever("ask for abandoned batches", || async { parts.registry.abandoned().await.map_err(passing) }).await
}

/// Deletes what a put may have left under keys of abandoned batches, notes that, and ends.
pub(super) async fn sweep(parts: Parts, abandoned: Vec<Intent>, times: [Duration; 2]) {
    if abandoned.is_empty() {
        return;
    }
    let mut slept = Duration::ZERO;
    for after in times {
        tokio::time::sleep(after.saturating_sub(slept)).await;
        slept = after;
        for intent in &abandoned {
            delete(&parts, intent.content.objects.iter().map(|object| object.key.as_str())).await;
        }
    }
    for intent in &abandoned {
        forever("note that a batch is swept", || async {
            parts.registry.note_swept(&intent.id).await.map_err(|error: RegistryError| (error, true))
        })
        .await;
    }
}

async fn delete(parts: &Parts, keys: impl Iterator<Item = &str>) {
    for key in keys {
        forever("delete an object", || async { parts.store.delete(key).await.map_err(|error| (error, true)) }).await;
    }
}

pub(super) async fn forever<T, E, F>(what: &'static str, act: impl FnMut() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, (E, bool)>>,
{
    match persist(what, act).await {
        Ok(done) => done,
        Err(error) => unreachable!("{what} is repeated until it succeeds: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(sizes: &[Option<u64>]) -> Vec<String> {
        let objects = [("a", 5), ("b", 7)].map(|(key, bytes)| ObjectSize { key: key.into(), bytes });
        let mut resolution = Resolution::new(&objects);
        let mut sizes = sizes.iter();
        let mut steps = Vec::new();
        while let Some(step) = resolution.next() {
            steps.push(format!("{step:?}"));
            match step {
                Step::Ask(_) => resolution.on_size(*sizes.next().unwrap()),
                Step::Finish | Step::Delete(_) | Step::Abandon => resolution.on_done(),
            }
        }
        steps
    }

    #[test]
    fn a_batch_is_finished_only_when_each_object_is_there_whole() {
        assert_eq!(steps(&[Some(5), Some(7)]), ["Ask(\"a\")", "Ask(\"b\")", "Finish"]);
        let given_up = ["Delete(\"a\")", "Delete(\"b\")", "Abandon"];
        assert_eq!(steps(&[None])[1..], given_up);
        assert_eq!(steps(&[Some(4)])[1..], given_up);
        assert_eq!(steps(&[Some(5), None])[2..], given_up);
    }
}
