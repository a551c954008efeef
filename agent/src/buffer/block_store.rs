//! sled behind a small interface: keys, batches, scans, and errors that say what to do next.
//!
//! One tree. A key is a letter and big-endian numbers, so that blocks lie in the order of their places. Changes are
//! gathered in one batch and are durable, all or nothing, after [`Values::flush`].
//!
//! sled 0.34 panics on damage; every call into it is caught and becomes [`StoreError::Damaged`].
//! Deliberately absent: `len()` (reads everything), `flush_async` (deadlocks), the background flusher.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use satellite_shared::limits;
use sled::IVec;

use super::stock::Values;
use super::{Place, directory, sync};

/// Of sled's default, 1 GiB, a third stays resident; 8 MiB costs no speed here.
const CACHE_BYTES: u64 = 8 << 20;
/// How often to ask again for sled's lock: the last handle of a store just dropped lets go a moment later.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The head: how far the newest opening is.
pub(super) const HEAD_KEY: &[u8] = b"h";

/// As which satellite blocks were acknowledged.
pub(super) const RELAY_KEY: &[u8] = b"i";

/// The key of what is remembered of an opening.
pub(super) fn history_key(opening: u32) -> Vec<u8> {
    let mut key = vec![b'e'];
    key.extend_from_slice(&opening.to_be_bytes());
    key
}

/// The key of a block.
pub(super) fn block_key(place: Place) -> Vec<u8> {
    key(b'b', place.opening, place.seq)
}

/// The key of a frame of series descriptors.
pub(super) fn series_key(opening: u32, first: u64) -> Vec<u8> {
    key(b's', opening, first)
}

/// The key of an opening's descriptor.
pub(super) fn opening_key(opening: u32) -> Vec<u8> {
    let mut key = vec![b'o'];
    key.extend_from_slice(&opening.to_be_bytes());
    key
}

/// The key of a pending loss.
pub(super) fn loss_key(ordinal: u64) -> Vec<u8> {
    let mut key = vec![b'l'];
    key.extend_from_slice(&ordinal.to_be_bytes());
    key
}

/// The key of a piece of the recorder's notes.
pub(super) fn notes_key(piece: usize) -> Vec<u8> {
    let mut key = vec![b'n'];
    key.extend_from_slice(&(piece as u64).to_be_bytes());
    key
}

fn key(letter: u8, opening: u32, number: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(letter);
    key.extend_from_slice(&opening.to_be_bytes());
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The keys between which all blocks of an opening lie.
pub(super) fn span(opening: u32) -> (Vec<u8>, Vec<u8>) {
    (key(b'b', opening, 0), key(b'b', opening.saturating_add(1), 0))
}

/// Where a block's key says that it stands.
pub(super) fn place_of(key: &[u8]) -> Option<Place> {
    let (letter, rest) = key.split_first()?;
    if *letter != b'b' || rest.len() != 12 {
        return None;
    }
    let (opening, seq) = rest.split_at(4);
    Some(Place { opening: u32::from_be_bytes(opening.try_into().ok()?), seq: u64::from_be_bytes(seq.try_into().ok()?) })
}

/// What a call into the store came to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room on the disk; the store must be opened again once there is.
    #[error("no space left on the disk: {0}")]
    Full(io::Error),
    /// Another program holds it.
    #[error("another program holds the store")]
    Locked,
    /// The system refused or failed; perhaps not for ever.
    #[error("{0}")]
    Io(io::Error),
    /// What is stored can't be read back.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

impl From<sled::Error> for StoreError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(source) => source.into(),
            sled::Error::CollectionNotFound(_)
            | sled::Error::Unsupported(_)
            | sled::Error::ReportableBug(_)
            | sled::Error::Corruption { .. } => Self::Damaged(error.to_string()),
        }
    }
}

impl From<io::Error> for StoreError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a foreign enum of forty kinds; the rest may pass")]
    fn from(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(source),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Self::Damaged(source.to_string())
            }
            _ if source.raw_os_error() == Some(libc::EIO) => Self::Damaged(source.to_string()),
            _ if source.to_string().contains("could not acquire lock") => Self::Locked,
            _ => Self::Io(source),
        }
    }
}

/// Changes that are made together, in order: the last one of a key counts.
#[derive(Debug, Default)]
pub struct Changes {
    all: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    bytes: u64,
}

impl Changes {
    /// Sets a value.
    pub(super) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        debug_assert!(value.len() <= limits::BLOCK_BYTES_MAX, "longer values leave the log for files of their own");
        self.bytes += value.len() as u64;
        self.all.push((key, Some(value)));
    }

    /// Removes a value.
    pub(super) fn remove(&mut self, key: Vec<u8>) {
        self.all.push((key, None));
    }

    /// Bytes of the values set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many keys are set or removed.
    #[must_use]
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Each key with the value that it is set to, or with none where it is removed.
    #[must_use]
    pub fn into_all(self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.all
    }
}

/// An open store.
pub(super) struct BlockStore {
    db: sled::Db,
    dir: PathBuf,
    own_sync: Option<File>,
}

impl BlockStore {
    /// Opens the store in a directory, or begins one.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        remove_unfinished_snapshots(dir)?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let mut tries = 0;
        loop {
            match guarded(|| config.open()) {
                Ok(db) => return Ok(Self { db, dir: dir.to_owned(), own_sync: None }),
                Err(StoreError::Locked) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The length of sled's file, which never shrinks.
    pub(super) fn file_bytes(&self) -> u64 {
        std::fs::metadata(self.dir.join("db")).map_or(0, |meta| meta.len())
    }

    /// Lets go of the store; what a damaged one panics with is of no interest any more.
    pub(super) fn discard(self) {
        if catch_unwind(AssertUnwindSafe(|| drop(self))).is_err() {
            tracing::debug!("closing the damaged store panicked");
        }
    }
}

impl Values for BlockStore {
    type Bytes = IVec;

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, StoreError> {
        guarded(|| self.db.get(key))
    }

    fn scan(&self, from: Vec<u8>, below: Vec<u8>) -> impl Iterator<Item = Result<(IVec, IVec), StoreError>> {
        Scan { iter: self.db.range(from..below), failed: false }
    }

    fn last(&self, from: &[u8], below: &[u8]) -> Option<Result<IVec, StoreError>> {
        let mut iter = self.db.range(from..below);
        let last = guarded(|| iter.next_back().transpose()).transpose()?;
        Some(last.map(|(_, value)| value))
    }

    fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes.into_all() {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(|| self.db.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), StoreError> {
        guarded(|| self.db.flush())?;
        if let Some(file) = &self.own_sync {
            file.sync_data()?;
        }
        Ok(())
    }

    fn flush_first(&mut self) -> Result<(), StoreError> {
        let before = sync::count();
        self.flush()?;
        if sync::count() == before && self.own_sync.is_none() {
            tracing::error!(
                dir = %self.dir.display(),
                "sled's flush does not reach this build's fdatasync: every flush is followed by one of its own; \
                 please report how this binary was built"
            );
            let file = File::open(self.dir.join("db"))?;
            file.sync_data()?;
            self.own_sync = Some(file);
        }
        directory::sync_dir(&self.dir)?;
        Ok(())
    }
}

/// Keys and values in order.
struct Scan {
    iter: sled::Iter,
    failed: bool,
}

impl Iterator for Scan {
    type Item = Result<(IVec, IVec), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = guarded(|| self.iter.next().transpose()).transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let said = panic.downcast_ref::<&str>().map(ToString::to_string);
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(StoreError::Damaged(said.unwrap_or_else(|| "a panic without words".into())))
        }
    }
}

/// sled reads a snapshot that it was killed while writing as if it were whole (spacejam/sled #1527).
fn remove_unfinished_snapshots(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
