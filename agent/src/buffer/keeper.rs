//! The thread that owns the store: takes commands in turn, and gets the store back when it was lost.
//!
//! The account of the store is changed on a copy, which counts only once the flush has returned. After any error of a
//! write the store is dropped and opened again, and made to say what was last acknowledged: a commit that failed
//! never happened, whatever of it had reached the disk.

mod recovery;

use std::sync::Arc;

use bytes::Bytes;
use satellite_shared::clock::Clock;
use satellite_shared::gap::Reason;
use satellite_shared::id::Epoch;
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{self, Body, ClockQuality, Decoder, FrameKind, Header};
use satellite_shared::wire::to_relay::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use super::ballast::{Ballast, Room};
use super::block_store::{self, BlockStore, Changes, StoreError};
use super::book::{self, Book, Descriptor, Held};
use super::directory::Directory;
use super::eviction::{Pressure, Tally};
use super::mark::{HeldSpan, Mark};
use super::{
    BufferSettings, BufferState, Commit, CommitError, Committed, Health, HeldStream, Loss, OpenError, Opened, Place,
    ReadError, StoredBlock,
};

/// How often a store that is not there is asked for again.
const RETRY_MS: u64 = 30_000;
/// How often the mark is written.
const MARK_EVERY_MS: u64 = 600_000;
/// Blocks evicted by one commit: the rest goes with the next ones.
const EVICTED_PER_COMMIT_MAX: usize = 2_000;
/// Blocks forgotten in one batch.
const FORGOTTEN_PER_BATCH: usize = 1_024;
/// Forgotten blocks that may wait for the next commit's flush.
const FORGOTTEN_UNFLUSHED_MAX: usize = 4_096;
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
    /// Give the notes that came late.
    LateNotes { answer: oneshot::Sender<Option<Vec<u8>>> },
    /// Make durable and end.
    Close,
}

/// Owner of the store.
pub(super) struct Keeper {
    settings: BufferSettings,
    clock: Arc<dyn Clock>,
    descriptor: Descriptor,
    directory: Option<Directory>,
    store: Option<BlockStore>,
    /// Whether this opening stands in the store.
    begun: bool,
    book: Book,
    last: Place,
    mark: Option<Mark>,
    marked_mono_ms: u64,
    tried_mono_ms: u64,
    unflushed: usize,
    late_notes: Option<Vec<u8>>,
    /// Why nothing can be committed before a new start.
    broken: Option<String>,
    may_recreate: bool,
    evicted_total: u64,
    bytes_written: u64,
    health: Health,
    decoder: Decoder,
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
        let descriptor = Descriptor {
            opening: 0,
            epoch: Epoch(u128::from_be_bytes(bits)),
            boot_id: boot_id.trim().chars().take(64).collect(),
            opened_ms: now.wall_ms,
        };
        let (state, receiver) = watch::channel(empty_state(descriptor.epoch));
        let mut keeper = Self {
            settings,
            clock,
            descriptor,
            directory: None,
            store: None,
            begun: false,
            book: Book::default(),
            last: Place::default(),
            mark: None,
            marked_mono_ms: now.mono_ms,
            tried_mono_ms: now.mono_ms,
            unflushed: 0,
            late_notes: None,
            broken: None,
            may_recreate: true,
            evicted_total: 0,
            bytes_written: 0,
            health: Health::Healthy,
            decoder: Decoder::default(),
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
        streams.retain(|held| held.opening != keeper.descriptor.opening);
        let opened = Opened {
            epoch: keeper.descriptor.epoch,
            notes: keeper.late_notes.take(),
            losses: keeper.book.losses.values().cloned().collect(),
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
                Command::LateNotes { answer } => drop(answer.send(self.late_notes.take())),
                Command::Close => break,
            }
        }
        self.finish();
    }

    fn on_commit(&mut self, commit: &Commit) -> Result<Committed, CommitError> {
        if let Some(why) = &self.broken {
            return Err(CommitError::Damaged { why: why.clone() });
        }
        self.ensure().map_err(|why| CommitError::Degraded { why })?;
        let headers = self.check(commit).map_err(|why| CommitError::Refused { why })?;
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
        if let Err(error) = self.store_commit(commit, &headers, incoming, disk_short) {
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
        Ok(Committed { losses: self.book.losses.values().cloned().collect(), degraded: disk_short })
    }

    /// Checks all that a later reader relies on; the headers of the blocks.
    fn check(&self, commit: &Commit) -> Result<Vec<Header>, String> {
        let mut next_series = self.book.head.next_series;
        for (n, frame) in commit.series.iter().enumerate() {
            let header = block::header(frame).map_err(|error| format!("series frame {n}: {error}"))?;
            let fits = header.kind == FrameKind::Series && header.epoch == self.descriptor.epoch;
            if !fits || header.first_seq != next_series {
                return Err(format!("series frame {n} does not begin with series {next_series} of this epoch"));
            }
            next_series = header.last_seq() + 1;
        }
        let (mut last_seq, mut due) = (self.book.head.last_seq, self.book.head.due_through);
        let mut headers = Vec::with_capacity(commit.blocks.len());
        for (n, frame) in commit.blocks.iter().enumerate() {
            let header = block::header(frame).map_err(|error| format!("block {n}: {error}"))?;
            if header.kind == FrameKind::Series || header.epoch != self.descriptor.epoch {
                return Err(format!("block {n} holds no records of this epoch"));
            }
            if header.first_seq != last_seq + 1 || header.due_before != due {
                return Err(format!(
                    "block {n} begins with record {} after {} due, expected {} after {due}",
                    header.first_seq,
                    header.due_before,
                    last_seq + 1
                ));
            }
            (last_seq, due) = (header.last_seq(), header.due_through());
            headers.push(header);
        }
        if commit.notes.len() > book::NOTES_BYTES_MAX {
            return Err(format!("notes of {} bytes, more than {}", commit.notes.len(), book::NOTES_BYTES_MAX));
        }
        if commit.losses_explained > self.book.losses.len() {
            let (said, have) = (commit.losses_explained, self.book.losses.len());
            return Err(format!("{said} losses explained, where {have} are pending"));
        }
        let series_bytes: u64 = commit.series.iter().map(|frame| frame.len() as u64).sum();
        if !commit.series.is_empty() && self.book.series_bytes() + series_bytes > self.settings.bytes_max / 2 {
            return Err("descriptors of series would fill more than half of the buffer".into());
        }
        Ok(headers)
    }

    fn store_commit(
        &mut self,
        commit: &Commit,
        headers: &[Header],
        incoming: u64,
        disk_short: bool,
    ) -> Result<(), StoreError> {
        let store = self.store.as_ref().expect("ensured by the caller");
        let opening = self.descriptor.opening;
        let mut next = self.book.clone();
        next.counter += 1;
        let mut changes = Changes::default();
        next.explain(commit.losses_explained, &mut changes);
        let trusted = headers.last().is_some_and(|header| header.quality != ClockQuality::Unsynchronised);
        let pressure = Pressure {
            held: next.payload_bytes() + next.series_bytes(),
            incoming,
            bytes_max: self.settings.bytes_max,
            disk_short,
            now_ms: trusted.then(|| self.clock.now().wall_ms),
            age_max_ms: i64::try_from(self.settings.age_max.as_millis()).unwrap_or(i64::MAX),
        };
        let tally = evict(store, &mut next, &pressure, &mut self.decoder, &mut changes)?;
        let evicted = tally.count();
        for loss in tally.into_losses() {
            next.put_loss(loss, &mut changes);
        }
        let held = next.openings.entry(opening).or_insert_with(|| Held::new(self.descriptor.clone()));
        for frame in &commit.series {
            let header = block::header(frame).map_err(|error| StoreError::Damaged(error.to_string()))?;
            changes.put(block_store::series_key(opening, header.first_seq), frame.clone());
            held.series_bytes += frame.len() as u64;
            next.head.next_series = header.last_seq() + 1;
        }
        for (header, frame) in headers.iter().zip(&commit.blocks) {
            changes.put(block_store::block_key(Place { opening, seq: header.first_seq }), frame.clone());
            held.add(header, frame.len());
            next.head.last_seq = header.last_seq();
            next.head.due_through = header.due_through();
        }
        if !commit.notes.is_empty() {
            next.put_notes(book::notes_pieces(&commit.notes), false, &mut changes);
        }
        next.drop_finished(store, &mut changes)?;
        if changes.count() > 0 {
            next.put_head(&mut changes);
        } else if self.unflushed == 0 {
            return Ok(());
        }
        let bytes = changes.bytes();
        store.apply(changes)?;
        store.flush()?;

        self.unflushed = 0;
        self.book = next;
        self.bytes_written += bytes;
        self.evicted_total = self.evicted_total.saturating_add(evicted);
        if let Some(header) = headers.last() {
            self.last = Place { opening, seq: header.first_seq };
        }
        Ok(())
    }

    fn on_read(&mut self, from: Place, below: Place, bytes_max: usize) -> Result<Vec<StoredBlock>, ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        if from >= below {
            return Ok(Vec::new());
        }
        let store = self.store.as_ref().expect("ensured just above");
        read_blocks(store, from, below, bytes_max).map_err(|error| self.read_failed(error))
    }

    fn on_series(&mut self, opening: u32) -> Result<Vec<Bytes>, ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let store = self.store.as_ref().expect("ensured just above");
        series_of(store, opening).map_err(|error| self.read_failed(error))
    }

    fn on_forget(&mut self, epoch: Epoch, ranges: &Ranges) -> Result<(), ReadError> {
        self.ensure().map_err(|why| ReadError::Degraded { why })?;
        let openings = self.book.openings.values().filter(|held| held.descriptor.epoch == epoch);
        let openings: Vec<u32> = openings.map(|held| held.descriptor.opening).collect();
        for opening in openings {
            for (first, last) in ranges.as_slice() {
                if let Err(error) = self.forget_range(opening, *first, *last) {
                    return Err(self.read_failed(error));
                }
            }
        }
        let store = self.store.as_ref().expect("ensured just above");
        if self.book.blocks() == 0 && self.may_recreate && store.file_bytes() > EMPTY_FILE_BYTES_MAX {
            self.recreate();
        }
        self.publish();
        Ok(())
    }

    fn forget_range(&mut self, opening: u32, first: u64, last: u64) -> Result<(), StoreError> {
        let store = self.store.as_ref().expect("the caller ensured it");
        let mut from = Place { opening, seq: first };
        let below = Place { opening, seq: last.saturating_add(1) };
        loop {
            let mut changes = Changes::default();
            let mut next = self.book.clone();
            let Some(held) = next.openings.get_mut(&opening) else { return Ok(()) };
            let mut more = false;
            for item in store.blocks(from, below) {
                let (place, frame) = item?;
                let header = book::header_at(place, &frame)?;
                if header.last_seq() <= last {
                    changes.remove(block_store::block_key(place));
                    held.subtract(&header, frame.len());
                }
                from = Place { opening, seq: place.seq.saturating_add(1) };
                more = changes.count() >= FORGOTTEN_PER_BATCH;
                if more {
                    break;
                }
            }
            if changes.count() == 0 {
                return Ok(());
            }
            self.unflushed += changes.count();
            next.drop_finished(store, &mut changes)?;
            next.counter += 1;
            next.put_head(&mut changes);
            store.apply(changes)?;
            self.book = next;
            if self.unflushed >= FORGOTTEN_UNFLUSHED_MAX {
                store.flush()?;
                self.unflushed = 0;
            }
            if !more {
                return Ok(());
            }
        }
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
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let mut streams = Vec::new();
        for span in spans(store, &self.book)? {
            let Some(held) = self.book.openings.get(&span.opening) else { continue };
            let descriptor = held.descriptor.clone();
            streams.push(HeldStream {
                opening: span.opening,
                stream: Stream {
                    epoch: descriptor.epoch,
                    boot_id: descriptor.boot_id,
                    opened_ms: descriptor.opened_ms,
                    first_seq: span.first_seq,
                    last_seq: span.last_seq,
                },
            });
        }
        Ok(streams)
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
        let held = |number: fn(&Held) -> u64| self.book.openings.values().map(number).fold(0, u64::saturating_add);
        self.state.send_replace(BufferState {
            last: self.last,
            epoch: self.descriptor.epoch,
            last_seq: self.book.head.last_seq,
            due: self.book.head.due_through,
            waiting: held(|held| held.due),
            records: held(|held| held.records),
            payload_bytes: self.book.payload_bytes(),
            oldest_ms: oldest.map(|header| header.made.wall_ms),
            evicted_total: self.evicted_total,
            bytes_written: self.bytes_written,
            health: self.health.clone(),
        });
        let Some(store) = self.store.as_ref().filter(|_| self.begun) else { return };
        if let Ok(held) = spans(store, &self.book) {
            self.mark = Some(Mark { opening: self.descriptor.opening, wall_ms: self.clock.now().wall_ms, held });
        }
    }
}

/// From where to where blocks are held, of every opening that holds some.
fn spans(store: &BlockStore, book: &Book) -> Result<Vec<HeldSpan>, StoreError> {
    let mut spans = Vec::new();
    for (opening, held) in book.openings.iter().filter(|(_, held)| held.blocks > 0) {
        let (from, below) = block_store::span(*opening);
        let (first, last) = (store.scan(&from, &below).next(), store.scan(&from, &below).last_of());
        let (Some(first), Some(last)) = (first, last) else { continue };
        let header = |frame: &[u8]| block::header(frame).map_err(|error| StoreError::Damaged(error.to_string()));
        let (first, last) = (header(&first?.1)?, header(&last?.1)?);
        spans.push(HeldSpan {
            opening: *opening,
            epoch: held.descriptor.epoch,
            first_seq: first.first_seq,
            due_before: first.due_before,
            last_seq: last.last_seq(),
            due_through: last.due_through(),
        });
    }
    Ok(spans)
}

fn read_blocks(
    store: &BlockStore,
    from: Place,
    below: Place,
    bytes_max: usize,
) -> Result<Vec<StoredBlock>, StoreError> {
    let mut blocks = Vec::new();
    let mut bytes = 0usize;
    for item in store.blocks(from, below) {
        let (place, frame) = item?;
        bytes = bytes.saturating_add(frame.len());
        if !blocks.is_empty() && bytes > bytes_max {
            break;
        }
        blocks.push(StoredBlock { place, frame: Bytes::copy_from_slice(&frame) });
    }
    Ok(blocks)
}

fn series_of(store: &BlockStore, opening: u32) -> Result<Vec<Bytes>, StoreError> {
    let (from, below) = (block_store::series_key(opening, 0), block_store::series_key(opening, u64::MAX));
    store.scan(&from, &below).map(|item| Ok(Bytes::copy_from_slice(&item?.1))).collect()
}

/// Removes the oldest blocks while there is pressure.
fn evict(
    store: &BlockStore,
    next: &mut Book,
    pressure: &Pressure,
    decoder: &mut Decoder,
    changes: &mut Changes,
) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    let mut freed = 0;
    for item in store.all_blocks().take(EVICTED_PER_COMMIT_MAX) {
        let (place, frame) = item?;
        let header = book::header_at(place, &frame)?;
        if !pressure.takes(&header, freed) {
            break;
        }
        freed += frame.len() as u64;
        take_leave(&mut tally, decoder, &header, &frame);
        changes.remove(block_store::block_key(place));
        if let Some(held) = next.openings.get_mut(&place.opening) {
            held.subtract(&header, frame.len());
        }
    }
    Ok(tally)
}

/// Books a block that goes. Gaps in it that explain an earlier loss have not arrived: that loss is pending again.
fn take_leave(tally: &mut Tally, decoder: &mut Decoder, header: &Header, frame: &[u8]) {
    let gaps = match header.kind {
        FrameKind::Samples | FrameKind::Series => Vec::new(),
        FrameKind::Gaps => match decoder.decode(frame) {
            Ok((_, Body::Gaps(gaps))) => gaps,
            Ok(_) | Err(_) => Vec::new(),
        },
    };
    tally.add(header, header.due, Reason::Evicted);
    for gap in gaps {
        let Some(lost) = gap.lost else { continue };
        tally.carry(Loss { lost, count: gap.count, from_ms: gap.from_ms, to_ms: gap.to_ms, reason: gap.reason });
    }
}

fn empty_state(epoch: Epoch) -> BufferState {
    BufferState {
        last: Place::default(),
        epoch,
        last_seq: 0,
        due: 0,
        waiting: 0,
        records: 0,
        payload_bytes: 0,
        oldest_ms: None,
        evicted_total: 0,
        bytes_written: 0,
        health: Health::Healthy,
    }
}
