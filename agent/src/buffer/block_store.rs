//! sled behind a small interface: keys, batches, scans, and errors that say what to do next.
//!
//! One tree. A key is a letter and big-endian numbers, so that blocks lie in the order of their places. Changes are
//! kept in memory, read through, and written as one batch by [`Values::flush`]: all or nothing, with one `fdatasync`. What
//! was forgotten between two commits so costs no write of its own, and what is put and removed between them none at all.
//!
//! sled 0.34 panics on damage; every call into it is caught and becomes [`StoreError::Damaged`].
//! Deliberately absent: `len()` (reads everything), `flush_async` (deadlocks), the background flusher.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use satellite_shared::limits;
use sled::IVec;

use super::stock::Values;
use super::sync::FileId;
use super::{Place, directory, sync};

/// Of sled's default, 1 GiB, a third stays resident; 8 MiB costs no speed here.
const CACHE_BYTES: u64 = 8 << 20;
/// How often to ask again for sled's lock: the last handle of a store just dropped lets go a moment later.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How many nanoseconds late a thread of sled's may see that it has nothing to do. A `long` of 32 bits holds it.
const IDLE_SLACK_NS: NonZeroU64 = NonZeroU64::new(4_000_000_000).unwrap();
/// Changes that may wait in memory for a flush; more are written before.
const WAITING_KEYS_MAX: usize = 1_024;
const WAITING_BYTES_MAX: usize = 1 << 20;

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

/// Letters of keys without values, around those that every commit writes, and how many of each.
///
/// sled keeps up to 16 neighbours in a leaf and writes the whole leaf anew at every tenth change of any of them. Without
/// these the head would have the newest blocks for neighbours at the one end and the series at the other.
const SPACER_LETTERS: [u8; 2] = [b'f', b'p'];
const SPACERS: u64 = 24;

/// Puts the keys without values, unless they are there.
pub(super) fn put_spacers<S: Values>(store: &S, changes: &mut Changes) -> Result<(), StoreError> {
    for letter in SPACER_LETTERS {
        let keys = (0..SPACERS).map(|n| key(letter, 0, n));
        if store.scan(vec![letter], vec![letter + 1]).next().is_none() {
            keys.for_each(|key| changes.put(key, Vec::new()));
        }
    }
    Ok(())
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
    /// What was written may not be on the disk, though it can be read: the kernel forgets what it failed to write.
    #[error("the store could not be flushed: {0}")]
    Unflushed(String),
}

impl StoreError {
    /// The same, of a flush: what it leaves behind in the file is not to be trusted. A full disk refuses before it takes.
    fn of_flush(self) -> Self {
        match self {
            Self::Full(_) | Self::Locked | Self::Unflushed(_) => self,
            Self::Io(source) => Self::Unflushed(source.to_string()),
            Self::Damaged(why) => Self::Unflushed(why),
        }
    }
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
    /// sled's file, to flush it.
    file: File,
    id: FileId,
    waiting: RefCell<Waiting>,
}

/// Changes that the next flush writes.
#[derive(Debug, Default)]
struct Waiting {
    changes: BTreeMap<Vec<u8>, Option<IVec>>,
    bytes: usize,
}

impl Waiting {
    /// The first change from here on, and below.
    fn first(&self, from: Bound<&[u8]>, below: &[u8]) -> Option<(&Vec<u8>, &Option<IVec>)> {
        self.changes.range::<[u8], _>((from, Bound::Unbounded)).next().filter(|(key, _)| key.as_slice() < below)
    }
}

/// Has sled start its threads as such that need not be on time.
///
/// There are seven, and each looks once a second whether there is work, although it is woken when there is. How late a
/// thread's timers may be it has from the thread that started it (`PR_SET_TIMERSLACK`): with this they look when the
/// processor is awake anyway.
fn unhurried<R>(open: impl FnOnce() -> R) -> R {
    let usual = rustix::thread::current_timer_slack().ok().and_then(NonZeroU64::new);
    // Where it can't be set they are as they were.
    let is_set = rustix::thread::set_current_timer_slack(Some(IDLE_SLACK_NS)).is_ok();
    let opened = open();
    if is_set && let Err(error) = rustix::thread::set_current_timer_slack(usual) {
        tracing::debug!(%error, "this thread's timers stay slack");
    }
    opened
}

impl BlockStore {
    /// Opens the store in a directory, or begins one.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        remove_unfinished_snapshots(dir)?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let config = config.segment_size(sync::SEGMENT_BYTES);
        let mut tries = 0;
        let db = loop {
            match unhurried(|| guarded(|| config.open())) {
                Ok(db) => break db,
                Err(StoreError::Locked) if tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(error) => return Err(error),
            }
        };
        let file = File::open(dir.join("db"))?;
        let id = FileId::of(&file)?;
        Ok(Self { db, dir: dir.to_owned(), file, id, waiting: RefCell::default() })
    }

    /// The length of sled's file, which never shrinks.
    pub(super) fn file_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    /// Everything in it, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = Result<(IVec, IVec), StoreError>> {
        self.scan(Vec::new(), vec![u8::MAX])
    }

    /// Lets go of the store; what a damaged one panics with is of no interest any more.
    pub(super) fn discard(self) {
        if catch_unwind(AssertUnwindSafe(|| drop(self))).is_err() {
            tracing::debug!("closing the damaged store panicked");
        }
    }

    /// Gives sled what waits, as one batch.
    fn write(&self, waiting: Waiting) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in waiting.changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guarded(|| self.db.apply_batch(batch))
    }
}

impl Values for BlockStore {
    type Bytes = IVec;

    fn get(&self, key: &[u8]) -> Result<Option<IVec>, StoreError> {
        match self.waiting.borrow().changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => guarded(|| self.db.get(key)),
        }
    }

    fn scan(&self, from: Vec<u8>, below: Vec<u8>) -> impl Iterator<Item = Result<(IVec, IVec), StoreError>> {
        Scan {
            iter: Some(self.db.range(from.clone()..below.clone())),
            stored: None,
            waiting: &self.waiting,
            from: Bound::Included(from),
            below,
        }
    }

    fn last(&self, from: &[u8], below: &[u8]) -> Option<Result<IVec, StoreError>> {
        let mut iter = self.db.range(from..below);
        let waiting = self.waiting.borrow();
        let mut waiting = waiting.changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(below))).rev();
        let mut newest = waiting.next();
        loop {
            let (key, value) = match guarded(|| iter.next_back().transpose()) {
                Ok(Some(stored)) => stored,
                Ok(None) => return newest.into_iter().chain(waiting).find_map(|(_, value)| value.clone()).map(Ok),
                Err(error) => return Some(Err(error)),
            };
            while let Some((newer, change)) = newest.filter(|(newer, _)| newer.as_slice() > &key[..]) {
                debug_assert!(!newer.is_empty(), "every key has a letter");
                if let Some(value) = change {
                    return Some(Ok(value.clone()));
                }
                newest = waiting.next();
            }
            match newest.filter(|(newer, _)| newer.as_slice() == &key[..]) {
                None => return Some(Ok(value)),
                Some((_, Some(value))) => return Some(Ok(value.clone())),
                Some((_, None)) => newest = waiting.next(),
            }
        }
    }

    fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        let mut waiting = self.waiting.borrow_mut();
        for (key, value) in changes.into_all() {
            waiting.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            waiting.changes.insert(key, value.map(IVec::from));
        }
        if waiting.changes.len() < WAITING_KEYS_MAX && waiting.bytes < WAITING_BYTES_MAX {
            return Ok(());
        }
        let written = std::mem::take(&mut *waiting);
        drop(waiting);
        self.write(written).map_err(StoreError::of_flush)
    }

    fn flush(&self) -> Result<(), StoreError> {
        let waiting = self.waiting.take();
        let flushed = || {
            // What sled wrote before, such as leaves that it parted while they were read, must be durable before a piece
            // of this batch is: most often there is nothing.
            guarded(|| self.db.flush())?;
            let joined = sync::join(self.id);
            if !waiting.changes.is_empty() {
                self.write(waiting)?;
            }
            guarded(|| self.db.flush())?;
            drop(joined);
            // Nothing else makes the pieces durable that have waited.
            self.file.sync_data().map_err(|source| StoreError::Unflushed(source.to_string()))
        };
        flushed().map_err(StoreError::of_flush)
    }

    fn flush_first(&mut self) -> Result<(), StoreError> {
        let before = sync::count();
        self.flush()?;
        if sync::count() == before {
            tracing::error!(
                dir = %self.dir.display(),
                "sled's log writes do not reach this build's fdatasync: after a power cut the buffer may be damaged; \
                 please report how this binary was built"
            );
        }
        directory::sync_dir(&self.dir)?;
        Ok(())
    }
}

/// Keys and values in order, those that wait in the place of those that are stored.
struct Scan<'a> {
    /// None after its end.
    iter: Option<sled::Iter>,
    stored: Option<(IVec, IVec)>,
    waiting: &'a RefCell<Waiting>,
    from: Bound<Vec<u8>>,
    below: Vec<u8>,
}

impl Scan<'_> {
    /// What sled has next.
    fn load(&mut self) -> Result<(), StoreError> {
        if self.stored.is_none()
            && let Some(iter) = &mut self.iter
        {
            let next = guarded(|| iter.next().transpose());
            if !matches!(next, Ok(Some(_))) {
                self.iter = None;
            }
            self.stored = next?;
        }
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(IVec, IVec), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Err(error) = self.load() {
                self.from = Bound::Included(self.below.clone());
                return Some(Err(error));
            }
            let waiting = self.waiting.borrow();
            let from = self.from.as_ref().map(Vec::as_slice);
            let newer = waiting.first(from, &self.below);
            let newer = newer.filter(|(key, _)| self.stored.as_ref().is_none_or(|(at, _)| key.as_slice() <= &at[..]));
            let Some((key, change)) = newer else { return self.stored.take().map(Ok) };
            if self.stored.as_ref().is_some_and(|(at, _)| key.as_slice() == &at[..]) {
                self.stored = None;
            }
            let (key, change) = (key.clone(), change.clone());
            self.from = Bound::Excluded(key.clone());
            if let Some(value) = change {
                return Some(Ok((IVec::from(key), value)));
            }
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    /// One step of a random walk over a store.
    #[derive(Debug, Clone)]
    enum Step {
        Apply(Vec<(u8, Option<u8>)>),
        Flush,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        let change = (0..24u8, proptest::option::of(any::<u8>()));
        prop_oneof![
            4 => prop::collection::vec(change, 1..12).prop_map(Step::Apply),
            2 => Just(Step::Flush),
            1 => Just(Step::Reopen),
        ]
    }

    fn told(store: &BlockStore, from: u8, below: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
        let scan = store.scan(vec![from], vec![below]);
        scan.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_waits_is_read_as_if_it_were_stored(steps in prop::collection::vec(step(), 1..30)) {
            let dir = tempfile::tempdir().unwrap();
            let mut store = BlockStore::open(dir.path()).unwrap();
            let mut model = Model::new();
            for step in steps {
                match step {
                    Step::Apply(all) => {
                        let mut changes = Changes::default();
                        for (key, value) in all {
                            match value {
                                Some(value) => {
                                    changes.put(vec![key], vec![value; 9]);
                                    model.insert(vec![key], vec![value; 9]);
                                }
                                None => {
                                    changes.remove(vec![key]);
                                    model.remove(&vec![key]);
                                }
                            }
                        }
                        store.apply(changes).unwrap();
                    }
                    Step::Flush => store.flush().unwrap(),
                    Step::Reopen => {
                        store.flush().unwrap();
                        store.discard();
                        store = BlockStore::open(dir.path()).unwrap();
                    }
                }
                for (from, below) in [(0, 24), (5, 17), (23, 24), (9, 9)] {
                    let expected: Vec<_> = model.range(vec![from]..vec![below])
                        .map(|(key, value)| (key.clone(), value.clone())).collect();
                    prop_assert_eq!(&told(&store, from, below), &expected);
                    let last = store.last(&[from], &[below]).map(|value| value.unwrap().to_vec());
                    prop_assert_eq!(last, expected.last().map(|(_, value)| value.clone()));
                }
                for key in 0..24u8 {
                    let value = store.get(&[key]).unwrap().map(|value| value.to_vec());
                    prop_assert_eq!(value.as_ref(), model.get(&vec![key]));
                }
            }
        }
    }

    #[test]
    fn what_waits_costs_the_disk_nothing_before_a_flush() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = BlockStore::open(dir.path()).unwrap();
        store.flush_first().unwrap();
        let log = || std::fs::read(dir.path().join("db")).unwrap();
        let before = log();
        let mut changes = Changes::default();
        changes.put(b"b1".to_vec(), vec![7; 100]);
        store.apply(changes).unwrap();
        assert_eq!(store.get(b"b1").unwrap().unwrap().len(), 100);
        assert!(log() == before);
        store.flush().unwrap();
        let flushed = log();
        assert!(flushed.windows(100).any(|bytes| bytes == [7; 100]));
        let mut changes = Changes::default();
        changes.remove(b"b1".to_vec());
        store.apply(changes).unwrap();
        assert!(store.get(b"b1").unwrap().is_none());
        assert!(log() == flushed);
    }

    #[test]
    fn more_than_may_wait_is_written_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlockStore::open(dir.path()).unwrap();
        let key = |n: u32| n.to_be_bytes().to_vec();
        for n in 0..3_000 {
            let mut changes = Changes::default();
            changes.put(key(n), vec![1; 10]);
            if n > 100 {
                changes.remove(key(n - 100));
            }
            store.apply(changes).unwrap();
            assert!(store.waiting.borrow().changes.len() <= WAITING_KEYS_MAX + 2);
        }
        let left = |store: &BlockStore| store.all().map(|item| item.unwrap().0.to_vec()).collect::<Vec<_>>();
        let expected: Vec<_> = std::iter::once(0).chain(2_900..3_000).map(key).collect();
        assert_eq!(left(&store), expected);
        store.flush().unwrap();
        store.discard();
        assert_eq!(left(&BlockStore::open(dir.path()).unwrap()), expected);
    }
}
