//! Records on disk until the relay has committed them.
//!
//! Keys are places, big-endian, so that key order is arrival order: openings count up, and within one,
//! sequences do. A commit is one batch and one flush: after a crash at any point all of it is there or nothing.
//! The buffer forgets only what was acknowledged or, over a bound, what is oldest; the latter is a [`Loss`] until a
//! gap explains it. A disk that is full or failing makes it degraded, never the end of the program.
//!
//! One thread owns the store ([`keeper`]); a [`Buffer`] is a handle to it.
//!
//! Invariant: a number is never used twice, not even after a crash, since each opening has an epoch of its own.
//! Deliberately absent: any notion of a connection.

mod ballast;

mod block_store;

mod book;

mod directory;

mod eviction;

mod history;

mod keeper;

mod mark;

mod merge;

mod meta;

mod salvage;

pub mod stock;

pub mod sync;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use satellite_shared::clock::Clock;
use satellite_shared::gap::{Lost, Reason};
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::to_relay::Stream;
use satellite_shared::wire::to_satellite::Stored;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use keeper::{Command, Keeper};

/// Commands that may wait for the keeper; each caller awaits its own answer, so that few ever do.
const COMMANDS_MAX: usize = 64;

/// Where the buffer is and how much it may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferSettings {
    /// Its directory; `DIR.lock`, `DIR.new` and `DIR.damaged-DATE` stand beside it.
    pub dir: PathBuf,
    /// Bytes of blocks it may hold; the file is about twice as long.
    pub bytes_max: u64,
    /// How old a block may become.
    pub age_max: Duration,
    /// What must stay free on its file system, in bytes, …
    pub free_min_bytes: u64,
    /// … and in percent; the larger of the two counts.
    pub free_min_percent: u8,
}

impl BufferSettings {
    /// The usual bounds: 256 MiB, 30 days, 200 MiB and 5 % free.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            bytes_max: 256 << 20,
            age_max: Duration::from_secs(30 * 24 * 3600),
            free_min_bytes: 200 << 20,
            free_min_percent: 5,
        }
    }
}

/// Where a block stands: openings of the buffer count up, and within one, sequences do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Which opening of the buffer; the epoch's number on this disk.
    pub opening: u32,
    /// The block's first sequence.
    pub seq: u64,
}

/// One block as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Where it stands.
    pub place: Place,
    /// The frame.
    pub frame: Bytes,
}

/// What one group commit stores, all or nothing.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Frames of series descriptors, before any block that uses them.
    pub series: Vec<Vec<u8>>,
    /// Frames of samples and gaps, in order of their sequences.
    pub blocks: Vec<Vec<u8>>,
    /// The recorder's own notes (what was polled until when), given back at the next opening.
    /// Empty: those of the commit before stay.
    pub notes: Vec<u8>,
    /// How many entries of `losses`, from the front, the blocks of this commit explain.
    pub losses_explained: usize,
}

/// What a commit gives back once it is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// All losses that no commit has explained yet, in the order in which to explain them. Until then they grow
    /// together: what a later commit evicts joins them.
    pub losses: Vec<Loss>,
    /// Whether the buffer is over a bound of the disk, so that it gives up old blocks faster than it takes new ones.
    pub degraded: bool,
}

/// Numbered records that went before they were acknowledged, not yet explained by a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Whose numbers, and which.
    pub lost: Lost,
    /// How many due samples they accounted for.
    pub count: u64,
    /// When the first of them was made.
    pub from_ms: i64,
    /// When the last of them was made.
    pub to_ms: i64,
    /// Evicted, corrupt, or lost by the relay.
    pub reason: Reason,
}

/// What an opening found.
#[derive(Debug)]
pub struct Opened {
    /// The new epoch.
    pub epoch: Epoch,
    /// The recorder's notes of the last commit, if they could be read.
    pub notes: Option<Vec<u8>>,
    /// What went and no gap explains yet.
    pub losses: Vec<Loss>,
    /// What older openings left, oldest first.
    pub streams: Vec<Stream>,
}

/// The blocks that the buffer holds of one opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldStream {
    /// Which opening.
    pub opening: u32,
    /// As the relay is told.
    pub stream: Stream,
}

/// Whether the buffer can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Healthy,
    /// It can't, or only by giving up old blocks early.
    Degraded {
        /// Since when, wall clock.
        since_ms: i64,
        /// Why, and what to do.
        why: String,
    },
}

/// What the buffer holds, for whoever looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferState {
    /// The newest committed block of this opening; sequence 0 before the first.
    pub last: Place,
    /// How often this program has opened the store: after each time, what was forgotten may be back.
    pub store_opened: u64,
    /// This opening's epoch.
    pub epoch: Epoch,
    /// The last committed record number of this epoch.
    pub last_seq: u64,
    /// Samples due in this epoch up to `last_seq`.
    pub due: u64,
    /// Samples due that wait in the blocks held, of all epochs.
    pub waiting: u64,
    /// Blocks held.
    pub blocks: u64,
    /// Records in the blocks held.
    pub records: u64,
    /// Bytes of the blocks held.
    pub payload_bytes: u64,
    /// When the oldest block held was made.
    pub oldest_ms: Option<i64>,
    /// Due samples evicted since the start of the program.
    pub evicted_total: u64,
    /// Bytes of blocks, series and notes given to the store since the start of the program.
    pub bytes_written: u64,
    /// Whether it can do its work.
    pub health: Health,
}

/// Why the buffer can't be opened at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A newer program wrote it. Nothing was touched.
    #[error(
        "{dir}: this buffer has format {found}, and this version knows formats up to {known}: \
         install the newer version again, or move the directory away to begin an empty buffer"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest known format.
        known: u32,
    },
    /// Somebody else has it open.
    #[error("{dir}: another satellite runs with this buffer: stop it first (`systemctl stop satellite`)")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory can't be made or used, and waiting will not help.
    #[error("{dir}: the buffer's directory can't be used: {source}")]
    Unusable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a commit stored nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The disk is full or failing; try again later with the same or other blocks from the same sequence.
    #[error("the buffer is degraded: {why}")]
    Degraded {
        /// Why, and what to do.
        why: String,
    },
    /// The store was damaged while it was open, and this epoch can't be continued: the program must start again.
    #[error("the buffer was damaged: {why}")]
    Damaged {
        /// What was lost.
        why: String,
    },
    /// The commit breaks a rule; it will never be stored.
    #[error("the buffer refused a commit: {why}")]
    Refused {
        /// Which rule, where.
        why: String,
    },
    /// The buffer was closed.
    #[error("the buffer is closed")]
    Closed,
}

/// Why the buffer can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The disk is full or failing; try again later.
    #[error("the buffer is degraded: {why}")]
    Degraded {
        /// Why, and what to do.
        why: String,
    },
    /// The buffer was closed.
    #[error("the buffer is closed")]
    Closed,
}

/// A handle to the buffer.
#[derive(Clone)]
pub struct Buffer {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<BufferState>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffer")
    }
}

impl Buffer {
    /// Opens the buffer, or begins one; blocks while it reads what is there. A directory that is damaged is set aside
    /// and salvaged; one whose disk is full or failing gives a degraded buffer that tries again by itself.
    ///
    /// # Errors
    /// Says why the buffer must not or can't be used, and what to do.
    pub fn open(settings: BufferSettings, clock: Arc<dyn Clock>) -> Result<(Self, Opened), OpenError> {
        let dir = settings.dir.clone();
        let (keeper, opened, state) = Keeper::open(settings, clock)?;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let thread = std::thread::Builder::new()
            .name("buffer".into())
            .spawn(move || keeper.run(receiver))
            .map_err(|source| OpenError::Unusable { dir, source })?;
        Ok((Self { commands, state, thread: Arc::new(Mutex::new(Some(thread))) }, opened))
    }

    /// Stores a group of frames; returns when they are durable. One commit at a time: the next one explains
    /// losses that this one returned.
    ///
    /// # Errors
    /// Says why nothing was stored.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, CommitError> {
        self.ask(|answer| Command::Commit { commit, answer }).await.unwrap_or(Err(CommitError::Closed))
    }

    /// Blocks in order of their places, from `from` (with it) to `below` (without it), until `bytes_max` would be
    /// passed; at least one, if there is one.
    ///
    /// # Errors
    /// Says why nothing can be read now.
    pub async fn read(&self, from: Place, below: Place, bytes_max: usize) -> Result<Vec<StoredBlock>, ReadError> {
        self.ask(|answer| Command::Read { from, below, bytes_max, answer }).await.unwrap_or(Err(ReadError::Closed))
    }

    /// All frames of series descriptors of an opening, in order.
    ///
    /// # Errors
    /// Says why nothing can be read now.
    pub async fn series(&self, opening: u32) -> Result<Vec<Bytes>, ReadError> {
        self.ask(|answer| Command::Series { opening, answer }).await.unwrap_or(Err(ReadError::Closed))
    }

    /// Deletes the blocks that lie wholly in these ranges: the relay has committed them. Durable with the next
    /// commit; what comes back when the store is opened again is sent again and dropped by the relay.
    ///
    /// # Errors
    /// Says why nothing can be deleted now.
    pub async fn forget(&self, epoch: Epoch, ranges: &Ranges) -> Result<(), ReadError> {
        let ranges = ranges.clone();
        self.ask(|answer| Command::Forget { epoch, ranges, answer }).await.unwrap_or(Err(ReadError::Closed))
    }

    /// Every opening that holds blocks, oldest first.
    pub async fn streams(&self) -> Vec<HeldStream> {
        self.ask(|answer| Command::Streams { answer }).await.unwrap_or_default()
    }

    /// What [`Buffer::streams`] says, and the last hundred openings of which all was acknowledged: their `first_seq` is
    /// beyond their `last_seq`.
    pub async fn numbered(&self) -> Vec<Stream> {
        self.ask(|answer| Command::Numbered { answer }).await.unwrap_or_default()
    }

    /// Compares what the relay says that it stores of these epochs with what it has acknowledged to this satellite.
    /// What it has lost becomes a [`Loss`]; says how many records that is.
    ///
    /// # Errors
    /// Says why nothing can be compared now.
    pub async fn compare(&self, satellite: &SatelliteId, stored: &[Stored]) -> Result<u64, ReadError> {
        let (satellite, stored) = (satellite.clone(), stored.to_vec());
        self.ask(|answer| Command::Compare { satellite, stored, answer }).await.unwrap_or(Err(ReadError::Closed))
    }

    /// The notes of an earlier run, where the store could be opened only after [`Buffer::open`] had returned; once.
    pub async fn late_notes(&self) -> Option<Vec<u8>> {
        self.ask(|answer| Command::LateNotes { answer }).await.flatten()
    }

    /// Returns when the thread that owns the store has come to it, or has ended: it is not stuck.
    pub async fn answer(&self) {
        self.ask(|answer| Command::Answer { answer }).await;
    }

    /// What the buffer holds, as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<BufferState> {
        self.state.clone()
    }

    /// Makes all durable and ends the thread; blocks until it has ended. Other handles then find the buffer closed.
    pub fn close(self) {
        let mut command = Command::Close;
        loop {
            match self.commands.try_send(command) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => break,
                Err(mpsc::error::TrySendError::Full(back)) => {
                    command = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the buffer's thread panicked");
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.ok()?;
        answered.await.ok()
    }
}

/// How many whole frames lie in a file, whatever else is in it: what would come back of a store that no longer opens.
///
/// # Errors
/// When the file can't be read.
pub fn whole_frames(file: &std::fs::File) -> std::io::Result<usize> {
    salvage::scan(file).map(|finds| finds.frames())
}

#[cfg(test)]
mod tests;
