//! The thread that owns the store: takes commands in turn, and gets the store back when it was lost.
//!
//! What is done to the store is the [`stock`](super::stock)'s business. After any error of a write the store is dropped
//! and opened again, and made to say what was last acknowledged: a commit that failed never happened, whatever of it
//! had reached the disk.

mod recovery;

use std::sync::Arc;

use bytes::Bytes;
use satellite_shared::clock::Clock;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::to_relay::Stream;
use satellite_shared::wire::to_satellite::Stored;
use tokio::sync::{mpsc, oneshot, watch};

use super::ballast::{Ballast, Room};
use super::block_store::{BlockStore, StoreError};
use super::book::{self, Held};
use super::directory::Directory;
use super::mark::Mark;
use super::stock::{Bounds, Stock, Values as _};
use super::{
    BufferSettings, BufferState, Commit, CommitError, Committed, Health, HeldStream, OpenError, Opened, Place,
    ReadError, StoredBlock,
};

/// How often a store that is not there is asked for again.
const RETRY_MS: u64 = 30_000;
/// How often the mark is written.
const MARK_EVERY_MS: u64 = 600_000;
/// Values that go into a shorter file in one batch.
const COPIED_PER_BATCH: usize = 1_024;
/// An empty buffer whose file is longer begins a new one, since sled's files never shrink.
const EMPTY_FILE_BYTES_MAX: u64 = 64 << 20;
/// With less room than this nothing is written at all, so that sled never meets a full disk in the middle of a write.
const ROOM_MIN_BYTES: u64 = 4 << 20;

/// What a handle asks of the keeper.
pub(super) enum Command {
    /// Store a group.
    Commit { commit: Commit, answer: oneshot::Sender<Result<Committed, CommitError>> },
    /// Read blocks.
    Read { from: Place, below: Place, bytes_max: usize, answer: oneshot::Sender<Result<Vec<StoredBlock>, ReadError>> },
    /// Read an opening's series.
    Series { opening: u32, answer: oneshot::Sender<Result<Vec<Bytes>, ReadError>> },
    /// Delete what was acknowledged.
    Forget { epoch: Epoch, ranges: Ranges, answer: oneshot::Sender<Result<(), ReadError>> },
    /// Say which openings hold blocks.
    Streams { answer: oneshot::Sender<Vec<HeldStream>> },
    /// Say which openings hold blocks, or held some that were acknowledged.
    Numbered { answer: oneshot::Sender<Vec<Stream>> },
    /// Compare with what the relay says that it stores.
    Compare { satellite: SatelliteId, stored: Vec<Stored>, answer: oneshot::Sender<Result<u64, ReadError>> },
    /// Give the notes that came late.
    LateNotes { answer: oneshot::Sender<Option<Vec<u8>>> },
    /// Say that the thread is not stuck.
    Answer { answer: oneshot::Sender<()> },
    /// Make durable and end.
    Close,
}

/// Owner of the store.
pub(super) struct Keeper {
    settings: BufferSettings,
    clock: Arc<dyn Clock>,
    directory: Option<Directory>,
    store: Option<BlockStore>,
    opened: u64,
    stock: Stock,
    mark: Option<Mark>,
    marked_mono_ms: u64,
    tried_mono_ms: u64,
    may_recreate: bool,
    /// A flush failed: what the file holds may be there for the eye alone.
    suspect: bool,
    health: Health,
    state: watch::Sender<BufferState>,
}

/// Why the store could not be opened now.
enum Refusal {
    /// Nor will it be without a person's help.
    Final(OpenError),
    /// Perhaps later.
    Later(String),
}

impl Keeper {
    /// Opens the store, or stands by until it can be opened.
    pub(super) fn open(
        settings: BufferSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Opened, watch::Receiver<BufferState>), OpenError> {
        let unusable = |source| OpenError::Unusable { dir: settings.dir.clone(), source };
        let mut bits = [0u8; 16];
        aws_lc_rs::rand::fill(&mut bits)
            .map_err(|_| unusable(std::io::Error::other("the system gives no random bits")))?;
        let now = clock.now();
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let epoch = Epoch(u128::from_be_bytes(bits));
        let (state, receiver) = watch::channel(empty_state(epoch));
        let mut keeper = Self {
            settings,
            clock,
            directory: None,
            store: None,
            opened: 0,
            stock: Stock::new(epoch, boot_id.trim().chars().take(64).collect(), now.wall_ms),
            mark: None,
            marked_mono_ms: now.mono_ms,
            tried_mono_ms: now.mono_ms,
            may_recreate: true,
            suspect: false,
            health: Health::Healthy,
            state,
        };
        match keeper.establish() {
            Ok(()) => {}
            Err(Refusal::Final(error)) => return Err(error),
            Err(Refusal::Later(why)) => keeper.degrade(why),
        }
        keeper.publish();
        keeper.write_mark();
        let mut streams = keeper.streams().unwrap_or_default();
        streams.retain(|held| held.opening != keeper.stock.descriptor.opening);
        let opened = Opened {
            epoch,
            notes: keeper.stock.take_notes(),
            losses: keeper.stock.losses(),
            streams: streams.into_iter().map(|held| held.stream).collect(),
        };
        Ok((keeper, opened, receiver))
    }

    /// Answers commands until told to close or until nobody is left to ask.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            // Whoever asked may have gone: then nobody waits for the answer.
            match command {
                Command::Commit { commit, answer } => drop(answer.send(self.on_commit(&commit))),
                Command::Read { from, below, bytes_max, answer } => {
                    drop(answer.send(self.on_read(from, below, bytes_max)));
                }
                Command::Series { opening, answer } => drop(answer.send(self.on_series(opening))),
                Command::Forget { epoch, ranges, answer } => drop(answer.send(self.on_forget(epoch, &ranges))),
                Command::Streams { answer } => drop(answer.send(self.on_streams())),
                Command::Numbered { answer } => drop(answer.send(self.on_numbered())),
                Command::Compare { satellite, stored, answer } => {
                    drop(answer.send(self.on_compare(&satellite, &stored)));
                }
                Command::LateNotes { answer } => drop(answer.send(self.stock.take_notes())),
                Command::Answer { answer } => drop(answer.send(())),
                Command::Close => break,
            }
        }
        self.finish();
    }

    fn on_commit(&mut self, commit: &Commit) -> Result<Committed, CommitError> {
        if let Some(why) = &self.stock.broken {
            return Err(CommitError::Damaged { why: why.clone() });
        }
        self.ensure().map_err(|why| CommitError::Degraded { why })?;
        let checked = self.stock.check(commit, self.settings.bytes_max);
        let headers = checked.map_err(|why| CommitError::Refused { why })?;
        let incoming: u64 = commit.series.iter().chain(&commit.blocks).map(|frame| frame.len() as u64).sum();
        let room = Room::at(&self.settings.dir).ok();
        let floor = room.map(|room| room.floor(self.settings.free_min_bytes, self.settings.free_min_percent));
        let free = room.map_or(u64::MAX, |room| room.free);
        let disk_short = floor.is_some_and(|floor| free < floor);
        if free < ROOM_MIN_BYTES.saturating_add(incoming.saturating_mul(4)) {
            let why = format!("{} MiB are free on the disk of {}: free some", free >> 20, self.settings.dir.display());
            self.degrade(why.clone());
            self.publish();
            return Err(CommitError::Degraded { why });
        }
        let bounds = Bounds {
            bytes_max: self.settings.bytes_max,
            age_max_ms: i64::try_from(self.settings.age_max.as_millis()).unwrap_or(i64::MAX),
            disk_short,
            now_ms: self.clock.now().wall_ms,
        };
        let store = self.store.as_ref().expect("ensured above");
        if let Err(error) = self.stock.commit(store, commit, &headers, &bounds) {
            let why = error.to_string();
            self.fail(error);
            return Err(CommitError::Degraded { why });
        }
        if disk_short {
            let dir = self.settings.dir.display();
            self.degrade(format!("less is free on the disk of {dir} than must stay free: old records go early"));
        } else {
            self.health = Health::Healthy;
        }
        self.publish();
        self.tend(room, floor);
        Ok(Committed { losses: self.stock.losses(), degraded: disk_short })
    }

    fn on_read(&mut self, from: Place, below: Place, bytes_max: usize) -> Result<Vec<StoredBlock>, ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let store = self.store.as_ref().expect("ensured just above");
        self.stock.read(store, from, below, bytes_max).map_err(|error| self.read_failed(error))
    }

    fn on_series(&mut self, opening: u32) -> Result<Vec<Bytes>, ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let store = self.store.as_ref().expect("ensured just above");
        self.stock.series(store, opening).map_err(|error| self.read_failed(error))
    }

    fn on_forget(&mut self, epoch: Epoch, ranges: &Ranges) -> Result<(), ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let store = self.store.as_ref().expect("ensured just above");
        if let Err(error) = self.stock.forget(store, epoch, ranges) {
            return Err(self.read_failed(error));
        }
        if self.stock.book.blocks() == 0 && self.may_recreate && store.file_bytes() > EMPTY_FILE_BYTES_MAX {
            self.recreate();
        }
        self.publish();
        Ok(())
    }

    fn on_streams(&mut self) -> Vec<HeldStream> {
        if self.ensure().is_err() {
            return Vec::new();
        }
        match self.streams() {
            Ok(streams) => streams,
            Err(error) => {
                self.read_failed(error);
                Vec::new()
            }
        }
    }

    fn streams(&self) -> Result<Vec<HeldStream>, StoreError> {
        self.store.as_ref().map_or_else(|| Ok(Vec::new()), |store| self.stock.streams(store))
    }

    fn on_numbered(&mut self) -> Vec<Stream> {
        let held = self.on_streams();
        self.stock.numbered(held)
    }

    fn on_compare(&mut self, satellite: &SatelliteId, stored: &[Stored]) -> Result<u64, ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let now_ms = self.clock.now().wall_ms;
        let store = self.store.as_ref().expect("ensured just above");
        self.stock.compare(store, satellite, stored, now_ms).map_err(|error| self.read_failed(error))
    }

    /// What is done beside a commit: ballast, mark.
    fn tend(&mut self, room: Option<Room>, floor: Option<u64>) {
        if let (Some(room), Some(floor)) = (room, floor) {
            Ballast::of(&self.settings.dir).make(room, floor);
        }
        let mono_ms = self.clock.now().mono_ms;
        if mono_ms.saturating_sub(self.marked_mono_ms) >= MARK_EVERY_MS {
            self.marked_mono_ms = mono_ms;
            self.write_mark();
        }
    }

    fn write_mark(&self) {
        let Some(mark) = &self.mark else { return };
        if let Err(error) = mark.write(&self.settings.dir) {
            tracing::debug!(%error, "the buffer's mark could not be written");
        }
    }

    fn finish(mut self) {
        if let Some(store) = self.store.take() {
            match store.flush() {
                Ok(()) => self.write_mark(),
                Err(error) => tracing::error!(%error, "the buffer could not be flushed at its end"),
            }
            store.discard();
        }
    }

    fn degrade(&mut self, why: String) {
        let since_ms = match &self.health {
            Health::Healthy => {
                tracing::warn!(why, "the buffer is degraded");
                self.clock.now().wall_ms
            }
            Health::Degraded { since_ms, .. } => *since_ms,
        };
        self.health = Health::Degraded { since_ms, why };
    }

    /// Says what is held to whoever looks, and keeps it for the mark.
    fn publish(&mut self) {
        let oldest = self.store.as_ref().and_then(|store| store.all_blocks().next());
        let oldest = oldest.and_then(|item| book::header_at(item.as_ref().ok()?.0, &item.ok()?.1).ok());
        let book = &self.stock.book;
        let held = |number: fn(&Held) -> u64| book.openings.values().map(number).fold(0, u64::saturating_add);
        self.state.send_replace(BufferState {
            last: self.stock.last,
            store_opened: self.opened,
            epoch: self.stock.descriptor.epoch,
            last_seq: book.head.last_seq,
            due: book.head.due_through,
            waiting: self.stock.waiting(),
            records: held(|held| held.records),
            payload_bytes: book.payload_bytes(),
            blocks: book.blocks(),
            oldest_ms: oldest.map(|header| header.made.wall_ms),
            evicted_total: self.stock.evicted_total,
            bytes_written: self.stock.bytes_written,
            health: self.health.clone(),
        });
        let Some(store) = &self.store else { return };
        if let Ok(Some(mark)) = self.stock.mark(store, self.clock.now().wall_ms) {
            self.mark = Some(mark);
        }
    }
}

fn empty_state(epoch: Epoch) -> BufferState {
    BufferState {
        last: Place::default(),
        store_opened: 0,
        epoch,
        last_seq: 0,
        due: 0,
        waiting: 0,
        records: 0,
        payload_bytes: 0,
        blocks: 0,
        oldest_ms: None,
        evicted_total: 0,
        bytes_written: 0,
        health: Health::Healthy,
    }
}
