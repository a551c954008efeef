//! Between the sessions and the archive: one task that drops what is stored already, batches, commits, answers.
//!
//! [`Ingest`] is what sessions hold, [`Committer`] the task that owns the state. It is the only writer of streams and
//! batches, which a lock in the data directory makes sure of. A batch closes when it is large enough, when its first
//! block is `commit_every` old, or when satellites that drain a backlog pause; while one is being committed the next
//! one is filled, and when that is full too nothing more is received: the bounded channel holds the sessions back.
//!
//! Every block is answered exactly once, unless the relay stops first: then it was not acknowledged, and comes again.

pub mod commit;

pub mod intake;

pub mod recovery;

pub mod restore;

mod tally;

pub mod watermark;

use std::collections::HashMap;
use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use satellite_shared::clock::Clock;
use satellite_shared::gap::Gap;
use satellite_shared::heartbeat::Beat;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::metric::Series;
use satellite_shared::wire::block::{Group, Header};
use satellite_shared::wire::to_satellite::{NackCode, Stored};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use commit::CommitError;
pub use tally::Tally;

use crate::data_dir::{DataDir, DataDirError};
use crate::ingest::intake::{Bounds, Filling, Intake};
use crate::registry::{Intent, Registry, RegistryError, random};
use crate::sink::archive::Store;
use crate::sink::archive::layout::BatchId;
use crate::systemd::waiting;

/// Blocks between the sessions and the committer; decoded, the largest is half a megabyte.
const BLOCKS_MAX: usize = 64;
/// A pause in which nobody adds to a batch that holds [`IDLE_ROWS`].
const IDLE_MS: u64 = 250;
const IDLE_ROWS: usize = 50_000;
/// How long the last commit may take when the relay stops.
const GRACE: Duration = Duration::from_secs(10);

/// How records are put together: part of the relay's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long the first block of a batch waits for others: the longest that an acknowledgement takes.
    pub commit_every: Duration,
    /// Samples and gaps in one batch.
    pub rows_max: usize,
    /// Bytes of frames in one batch.
    pub bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { commit_every: Duration::from_secs(10), rows_max: 500_000, bytes_max: 8 << 20 }
    }
}

/// A block that a session has checked and decoded.
#[derive(Debug)]
pub struct Block {
    /// Whose, by the client certificate.
    pub satellite: SatelliteId,
    /// What the frame says of itself.
    pub header: Header,
    /// What it holds.
    pub body: BlockBody,
    /// The frame as it came, for the dead letters.
    pub frame: Bytes,
    /// Where to say what became of it.
    pub reply: mpsc::UnboundedSender<Outcome>,
}

/// What a block holds.
#[derive(Debug)]
pub enum BlockBody {
    /// Samples; every series number in the groups is a key of `series`.
    Samples {
        /// The samples.
        groups: Vec<Group>,
        /// The epoch's descriptors by number.
        series: Arc<HashMap<u32, Arc<Series>>>,
    },
    /// Gaps.
    Gaps(Vec<Gap>),
    /// It can't be decoded: it goes to the dead letters, and the stream goes on.
    Dead(String),
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Committed now or before, or set aside: the satellite may forget it.
    Stored {
        /// Whose numbers.
        epoch: Epoch,
        /// The first record.
        first_seq: u64,
        /// The last record.
        last_seq: u64,
        /// The frame's bytes, to give back as credit.
        bytes: usize,
    },
    /// Not taken.
    Refused {
        /// Whose numbers.
        epoch: Epoch,
        /// The first record.
        first_seq: u64,
        /// The frame's bytes, to give back as credit.
        bytes: usize,
        /// Why.
        code: NackCode,
        /// For people.
        message: String,
    },
}

/// What sessions hold.
#[derive(Debug, Clone)]
pub struct Ingest {
    blocks: mpsc::Sender<Block>,
    registry: Registry,
}

impl Ingest {
    /// Hands a block over; waits while there are too many. What became of it comes over its `reply`.
    pub async fn submit(&self, block: Block) {
        if let Err(mpsc::error::SendError(block)) = self.blocks.send(block).await {
            let outcome = Outcome::Refused {
                epoch: block.header.epoch,
                first_seq: block.header.first_seq,
                bytes: block.frame.len(),
                code: NackCode::Retry,
                message: "the relay is about to stop: send it again to the next one".into(),
            };
            if block.reply.send(outcome).is_err() {
                tracing::trace!("the session that sent a block is gone");
            }
        }
    }

    /// What is committed of each of these epochs, also where nothing is: a satellite that was told otherwise before
    /// then knows that this relay has lost it.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub async fn stored(&self, satellite: &SatelliteId, epochs: &[Epoch]) -> Result<Vec<Stored>, RegistryError> {
        let mut stored = Vec::new();
        for &epoch in epochs {
            let row = self.registry.stream(satellite, epoch).await?;
            let ranges = row.map(|row| row.tally.watermark.ranges()).unwrap_or_default();
            stored.push(Stored { epoch, ranges });
        }
        Ok(stored)
    }
}

/// What a commit works with.
#[derive(Clone)]
struct Parts {
    relay: String,
    registry: Registry,
    store: Store,
    clock: Arc<dyn Clock>,
}

/// Why the committer can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Another process commits into this data directory, or it can't be locked.
    #[error(transparent)]
    DataDir(DataDirError),
    /// Somebody else ended a batch of this committer.
    #[error(transparent)]
    Commit(CommitError),
}

/// The task that takes blocks and commits them.
pub struct Committer {
    parts: Parts,
    bounds: Bounds,
    blocks: mpsc::Receiver<Block>,
    resolved: CancellationToken,
    intake: Intake,
    /// A block that waits for the next batch.
    held: Option<Block>,
    /// The commit on its way.
    flight: Option<Flight>,
    beat: Beat,
    /// Held for as long as the task lives.
    _lock: File,
}

type Flight = Pin<Box<dyn Future<Output = (Filling, Result<(), CommitError>)> + Send>>;

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Committer")
    }
}

impl Committer {
    /// The handle and the task, which must be run.
    ///
    /// # Errors
    /// When another process commits into this data directory.
    pub fn open(
        data_dir: &DataDir,
        relay: String,
        registry: Registry,
        store: Store,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<(Ingest, Self), IngestError> {
        let lock = data_dir.lock_or_refuse("ingest.lock").map_err(IngestError::DataDir)?;
        let (sender, blocks) = mpsc::channel(BLOCKS_MAX);
        let ingest = Ingest { blocks: sender, registry: registry.clone() };
        let bounds = Bounds {
            rows_max: settings.rows_max.max(1),
            bytes_max: settings.bytes_max.max(1),
            age_ms_max: u64::try_from(settings.commit_every.as_millis()).unwrap_or(u64::MAX),
            idle_rows: IDLE_ROWS,
            idle_ms: IDLE_MS,
        };
        let parts = Parts { relay, registry, store, clock };
        let intake = Intake::new(parts.batch_id());
        let resolved = CancellationToken::new();
        let beat = Beat::default();
        Ok((ingest, Self { parts, bounds, blocks, resolved, intake, held: None, flight: None, beat, _lock: lock }))
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Cancelled when what the last run left is resolved, and a registry that was copied back knows what is stored.
    #[must_use]
    pub fn resolved(&self) -> CancellationToken {
        self.resolved.clone()
    }

    /// Resolves what the last run left, then takes and commits until told to stop, then commits once more.
    ///
    /// # Errors
    /// When somebody else ended a batch of this committer.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), IngestError> {
        let resolving = resolve(&self.parts, &shutdown);
        let Some(abandoned) = waiting(&self.beat, resolving).await else { return Ok(()) };
        self.resolved.cancel();
        let sweep = recovery::sweep(self.parts.clone(), abandoned, recovery::SWEEPS).fuse();
        tokio::pin!(sweep);
        let mut sweeping = true;
        loop {
            self.beat.beat();
            self.take_held().await;
            let takes = self.held.is_none() && !self.intake.is_full(&self.bounds);
            let due_in = self.due_in().filter(|_| self.flight.is_none());
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                (sealed, done) = landed(&mut self.flight) => self.on_landed(sealed, done)?,
                () = tokio::time::sleep(due_in.unwrap_or_default()), if due_in.is_some() => self.depart(),
                Some(block) = self.blocks.recv(), if takes => self.on_block(block).await,
                () = &mut sweep, if sweeping => sweeping = false,
                () = tokio::time::sleep(self.beat.every()) => {}
            }
        }
        self.finish().await
    }

    async fn on_block(&mut self, block: Block) {
        let beat = self.beat.clone();
        waiting(&beat, self.take(block)).await;
    }

    async fn take(&mut self, block: Block) {
        let now = self.parts.clock.now();
        for stream in self.intake.unknown(&block) {
            let row = commit::persist("ask for a stream", || async {
                self.parts.registry.stream(&stream.0, stream.1).await.map_err(|e| (e, true))
            })
            .await;
            let watermark = row.ok().flatten().map(|row| row.tally.watermark).unwrap_or_default();
            self.intake.learn(stream, watermark);
        }
        if self.intake.is_uncounted(&block.satellite) {
            let counted = commit::persist("count a satellite's streams", || async {
                self.parts.registry.epochs(&block.satellite).await.map_err(|e| (e, true))
            })
            .await;
            self.intake.count(&block.satellite, counted.unwrap_or_default());
        }
        if self.intake.is_too_wide_with(&block, now.wall_ms) {
            self.held = Some(block);
            return;
        }
        self.intake.take(block, now.wall_ms, now.mono_ms);
        self.intake.forget();
    }

    /// A block that waited for a new batch is taken when there is one.
    async fn take_held(&mut self) {
        if let Some(block) = self.held.take() {
            self.on_block(block).await;
        }
    }

    fn due_in(&self) -> Option<Duration> {
        let due = self.intake.due_in_ms(&self.bounds, self.parts.clock.now().mono_ms)?;
        Some(if self.held.is_some() { Duration::ZERO } else { Duration::from_millis(due) })
    }

    fn depart(&mut self) {
        let sealed = self.intake.seal(self.parts.batch_id());
        self.flight = Some(Box::pin(commit::commit(self.parts.clone(), sealed)));
    }

    fn on_landed(&mut self, sealed: Filling, done: Result<(), CommitError>) -> Result<(), IngestError> {
        self.flight = None;
        match done {
            Ok(()) => self.intake.committed(sealed),
            Err(error @ CommitError::Ended(_)) => return Err(IngestError::Commit(error)),
            Err(error @ (CommitError::Encode(_) | CommitError::Encoder(_))) => {
                tracing::error!(%error, "nothing of a batch is stored; its blocks are asked for again");
                self.intake.failed(sealed, self.parts.batch_id(), "the relay could not store it");
            }
        }
        Ok(())
    }

    /// Commits what was handed over before the end. What can't be committed in time was not acknowledged.
    async fn finish(mut self) -> Result<(), IngestError> {
        self.blocks.close();
        let last = async {
            loop {
                self.take_held().await;
                while self.held.is_none() && !self.intake.is_full(&self.bounds) {
                    let Some(block) = self.blocks.recv().await else { break };
                    self.on_block(block).await;
                }
                if self.flight.is_none() {
                    if self.due_in().is_none() {
                        return Ok(());
                    }
                    self.depart();
                }
                let (sealed, done) = landed(&mut self.flight).await;
                self.on_landed(sealed, done)?;
            }
        };
        tokio::time::timeout(GRACE, last).await.unwrap_or_else(|_| {
            tracing::warn!("storage did not take the last batch in time: the satellites keep it");
            Ok(())
        })
    }
}

/// The batches to sweep; `None` when the relay is to stop and storage does not answer.
async fn resolve(parts: &Parts, shutdown: &CancellationToken) -> Option<Vec<Intent>> {
    let resolve = recovery::resolve(parts);
    tokio::pin!(resolve);
    tokio::select! {
        abandoned = &mut resolve => return Some(abandoned),
        () = shutdown.cancelled() => {}
    }
    tokio::time::timeout(GRACE, resolve).await.ok()
}

impl Parts {
    fn batch_id(&self) -> BatchId {
        BatchId::new(self.clock.now().wall_ms, random())
    }
}

/// The commit on its way, when it is done; for ever where there is none.
async fn landed(flight: &mut Option<Flight>) -> (Filling, Result<(), CommitError>) {
    match flight {
        Some(flight) => flight.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
