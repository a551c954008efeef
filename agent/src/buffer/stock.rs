//! What is done to an open store: an opening is begun, groups are committed, blocks read, forgotten and evicted.
//!
//! Every decision about the store's content stands here, over any [`Values`]; files, locks, clocks and threads are the
//! keeper's. The account is changed on a copy, which counts only once the flush has returned.
//!
//! Deliberately absent: how a store is opened, and what to do when it fails.

mod comparison;

use std::collections::BTreeMap;
use std::ops::Deref;

use bytes::Bytes;
use satellite_shared::gap::Reason;
use satellite_shared::id::Epoch;
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{self, Body, ClockQuality, Decoder, FrameKind, Header};
use satellite_shared::wire::to_relay::Stream;

use super::block_store;
use super::book::{self, Book, Descriptor, Head, Held};
use super::eviction::{Pressure, Tally};
use super::merge::Merger;
use super::{Commit, HeldStream, Loss, Place, StoredBlock};

pub use super::block_store::{Changes, StoreError};
pub use super::mark::{HeldSpan, Mark};

/// Blocks evicted by one commit: the rest goes with the next ones.
const EVICTED_PER_COMMIT_MAX: usize = 2_000;
/// Blocks forgotten in one batch.
const FORGOTTEN_PER_BATCH: usize = 1_024;
/// Forgotten blocks that may wait for the next commit's flush.
const FORGOTTEN_UNFLUSHED_MAX: usize = 4_096;
/// So many bytes of small blocks are worth a try to merge them: what becomes one or two large ones.
const MERGED_FROM_BYTES: u64 = 3 * satellite_shared::limits::BLOCK_BYTES_MAX as u64;
/// So many bytes or blocks are merged in any case: they are in memory, decoded, for a moment.
const TAIL_BYTES_MAX: u64 = 128 << 10;
const TAIL_BLOCKS_MAX: usize = 1_024;

/// Keys and values in the order of their keys, changed in batches: each batch is there as a whole or not at all, never
/// without those before it, and for good after [`Values::flush`].
pub trait Values {
    /// A key or a value.
    type Bytes: Deref<Target = [u8]>;

    /// One value.
    ///
    /// # Errors
    /// When the store fails or is damaged.
    fn get(&self, key: &[u8]) -> Result<Option<Self::Bytes>, StoreError>;

    /// Keys and values from `from` (with it) to `below` (without it).
    fn scan(
        &self,
        from: Vec<u8>,
        below: Vec<u8>,
    ) -> impl Iterator<Item = Result<(Self::Bytes, Self::Bytes), StoreError>>;

    /// The last value of such a scan.
    fn last(&self, from: &[u8], below: &[u8]) -> Option<Result<Self::Bytes, StoreError>>;

    /// Makes changes together; durable after the next flush.
    ///
    /// # Errors
    /// When the store fails; what it holds is then unknown until it was opened again.
    fn apply(&self, changes: Changes) -> Result<(), StoreError>;

    /// Makes all changes so far durable.
    ///
    /// # Errors
    /// When the store fails; what it holds is then unknown until it was opened again.
    fn flush(&self) -> Result<(), StoreError>;

    /// The first flush after opening: makes durable that the store is there, too, and sees to it that flushing reaches
    /// the disk from here on.
    ///
    /// # Errors
    /// When the store fails.
    fn flush_first(&mut self) -> Result<(), StoreError>;

    /// The blocks between two places, in order.
    fn blocks(&self, from: Place, below: Place) -> impl Iterator<Item = Result<(Place, Self::Bytes), StoreError>> {
        self.scan(block_store::block_key(from), block_store::block_key(below)).map(|item| {
            let (key, frame) = item?;
            let place = block_store::place_of(&key);
            Ok((place.ok_or_else(|| StoreError::Damaged("a block's key is malformed".into()))?, frame))
        })
    }

    /// All blocks, oldest first.
    fn all_blocks(&self) -> impl Iterator<Item = Result<(Place, Self::Bytes), StoreError>> {
        self.blocks(Place::default(), Place { opening: u32::MAX, seq: u64::MAX })
    }
}

/// What an open store was found to hold.
#[derive(Debug)]
pub struct Found(pub(super) Option<Book>);

/// What bounds a commit.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of blocks and series that may be held.
    pub bytes_max: u64,
    /// How old a block may become, in milliseconds.
    pub age_max_ms: i64,
    /// Whether the file system has less room than it must keep.
    pub disk_short: bool,
    /// The wall clock.
    pub now_ms: i64,
}

/// The last blocks of this opening, from a number on: as they were committed, and never given to anybody.
///
/// Only those may be merged. What was given may be stored somewhere block by block, and the relay takes no block of which
/// it has a part.
#[derive(Debug, Clone, Copy)]
struct Tail {
    from_seq: u64,
    bytes: u64,
    blocks: usize,
    /// How many bytes are worth the next try.
    wanted: u64,
}

impl Tail {
    fn from(from_seq: u64) -> Self {
        Self { from_seq, bytes: 0, blocks: 0, wanted: MERGED_FROM_BYTES }
    }

    fn is_full(self) -> bool {
        self.bytes >= TAIL_BYTES_MAX || self.blocks >= TAIL_BLOCKS_MAX
    }
}

/// The account of a store, and the opening that is written.
#[derive(Debug)]
pub struct Stock {
    pub(super) descriptor: Descriptor,
    /// Whether this opening stands in the store.
    pub(super) begun: bool,
    pub(super) book: Book,
    pub(super) last: Place,
    pub(super) unflushed: usize,
    pub(super) late_notes: Option<Vec<u8>>,
    /// Why nothing can be committed before a new start.
    pub(super) broken: Option<String>,
    pub(super) evicted_total: u64,
    pub(super) bytes_written: u64,
    decoder: Decoder,
    tail: Tail,
    merger: Merger,
}

impl Stock {
    /// For an opening of this epoch, which no store knows yet.
    #[must_use]
    pub fn new(epoch: Epoch, boot_id: String, opened_ms: i64) -> Self {
        Self {
            descriptor: Descriptor { opening: 0, epoch, boot_id, opened_ms },
            begun: false,
            book: Book::default(),
            last: Place::default(),
            unflushed: 0,
            late_notes: None,
            broken: None,
            evicted_total: 0,
            bytes_written: 0,
            decoder: Decoder::default(),
            tail: Tail::from(1),
            merger: Merger::default(),
        }
    }

    /// Reads a store that was just opened, once.
    ///
    /// # Errors
    /// When it fails, or does not hold what it says.
    pub fn find<S: Values>(store: &S) -> Result<Found, StoreError> {
        Book::load(store).map(Found)
    }

    /// Writes this opening into a store that was just opened; into one that was opened again, what was last
    /// acknowledged. `marked` is the newest opening that anybody remembers.
    ///
    /// # Errors
    /// When the store fails.
    pub fn settle<S: Values>(&mut self, store: &mut S, found: Found, marked: u32) -> Result<(), StoreError> {
        self.unflushed = 0;
        let settled = self.settle_book(store, found, marked);
        self.tail = Tail::from(self.book.head.last_seq.saturating_add(1));
        settled
    }

    fn settle_book<S: Values>(&mut self, store: &mut S, found: Found, marked: u32) -> Result<(), StoreError> {
        if self.begun { self.reconcile(store, found.0) } else { self.begin(store, found.0, marked) }
    }

    /// Writes this opening into a store that was just opened.
    fn begin<S: Values>(&mut self, store: &mut S, found: Option<Book>, marked: u32) -> Result<(), StoreError> {
        let mut book = found.unwrap_or_default();
        let mut changes = Changes::default();
        let newest = book.openings.keys().next_back().copied().unwrap_or(0).max(book.head.opening);
        self.descriptor.opening = newest.max(marked).saturating_add(1);
        book.counter += 1;
        book.remember(&mut changes);
        book.head.opening = self.descriptor.opening;
        (book.head.last_seq, book.head.due_through, book.head.next_series) = (0, 0, 0);
        book.put_small(&block_store::opening_key(self.descriptor.opening), &self.descriptor, &mut changes);
        book.openings.insert(self.descriptor.opening, Held::new(self.descriptor.clone()));
        book.drop_finished(store, &mut changes)?;
        block_store::put_spacers(store, &mut changes)?;
        book.put_head(&mut changes);
        store.apply(changes)?;
        store.flush_first()?;
        self.late_notes = book.notes();
        self.book = book;
        self.last = Place { opening: self.descriptor.opening, seq: 0 };
        self.begun = true;
        Ok(())
    }

    /// Makes a store that was opened again say what was last acknowledged.
    fn reconcile<S: Values>(&mut self, store: &mut S, found: Option<Book>) -> Result<(), StoreError> {
        let mut book = found.unwrap_or_default();
        let acked = &self.book;
        let opening = self.descriptor.opening;
        let mut changes = Changes::default();
        book.counter = book.counter.max(acked.counter) + 1;

        let found_losses = std::mem::take(&mut book.losses);
        let mut new = found_losses.clone();
        new.retain(|ordinal, _| *ordinal >= acked.head.loss_next);
        let mut losses: BTreeMap<u64, Loss> = acked.losses.clone();
        losses.extend(new.clone());
        for ordinal in found_losses.keys().filter(|ordinal| !losses.contains_key(ordinal)) {
            changes.remove(block_store::loss_key(*ordinal));
        }
        let loss_next = book.head.loss_next.max(acked.head.loss_next);
        book.head = Head { loss_next, ..acked.head };
        book.head.loss_first = losses.keys().next().copied().unwrap_or(loss_next);
        for (ordinal, loss) in &losses {
            book.put_small(&block_store::loss_key(*ordinal), loss, &mut changes);
        }
        book.losses = losses;
        book.history.clone_from(&acked.history);
        book.satellite.clone_from(&acked.satellite);
        // What went with a commit that counts for nothing is gone all the same, and not the relay's to have.
        for loss in new.into_values() {
            book.disclaim_loss(&loss, &mut changes);
        }
        book.put_history(&mut changes);

        let held = book.openings.entry(opening).or_insert_with(|| Held::new(self.descriptor.clone()));
        let from = Place { opening, seq: acked.head.last_seq.saturating_add(1) };
        for item in store.blocks(from, Place { opening: opening.saturating_add(1), seq: 0 }) {
            let (place, frame) = item?;
            held.subtract(&book::header_at(place, &frame)?, frame.len());
            changes.remove(block_store::block_key(place));
        }
        self.broken = trim_series(store, opening, acked.head.next_series, held, &mut changes)?;
        book.put_small(&block_store::opening_key(opening), &self.descriptor, &mut changes);
        book.put_notes(acked.notes.clone(), true, &mut changes);
        block_store::put_spacers(store, &mut changes)?;
        book.put_head(&mut changes);
        store.apply(changes)?;
        store.flush_first()?;
        self.book = book;
        Ok(())
    }

    /// The newest committed block of this opening; sequence 0 before the first.
    #[must_use]
    pub fn last(&self) -> Place {
        self.last
    }

    /// What went and no commit has explained yet, in the order in which to explain it.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        self.book.losses.values().cloned().collect()
    }

    /// The recorder's notes of the last commit of an earlier run, once.
    pub fn take_notes(&mut self) -> Option<Vec<u8>> {
        self.late_notes.take()
    }

    /// Samples due that wait in the blocks held, of all openings.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.book.openings.values().map(|held| held.due).fold(0, u64::saturating_add)
    }

    /// Checks all that a later reader relies on; the headers of the blocks.
    ///
    /// # Errors
    /// Says which rule the commit breaks, and where.
    pub fn check(&self, commit: &Commit, bytes_max: u64) -> Result<Vec<Header>, String> {
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
        if !commit.series.is_empty() && self.book.series_bytes() + series_bytes > bytes_max / 2 {
            return Err("descriptors of series would fill more than half of the buffer".into());
        }
        Ok(headers)
    }

    /// Stores a group that was checked; it is durable when this returns.
    ///
    /// # Errors
    /// When the store fails: then nothing was stored, whatever of it has reached the disk.
    pub fn commit<S: Values>(
        &mut self,
        store: &S,
        commit: &Commit,
        headers: &[Header],
        bounds: &Bounds,
    ) -> Result<(), StoreError> {
        let opening = self.descriptor.opening;
        let mut next = self.book.clone();
        next.counter += 1;
        let mut changes = Changes::default();
        next.explain(commit.losses_explained, &mut changes);
        let trusted = headers.last().is_some_and(|header| header.quality != ClockQuality::Unsynchronised);
        let pressure = Pressure {
            held: next.payload_bytes() + next.series_bytes(),
            incoming: commit.series.iter().chain(&commit.blocks).map(|frame| frame.len() as u64).sum(),
            bytes_max: bounds.bytes_max,
            disk_short: bounds.disk_short,
            now_ms: trusted.then_some(bounds.now_ms),
            age_max_ms: bounds.age_max_ms,
        };
        let (tally, evicted_to) = evict(store, &mut next, &pressure, &mut self.decoder, &mut changes)?;
        let evicted = tally.count();
        for loss in tally.into_losses() {
            next.put_loss(loss, &mut changes);
        }
        let mut tail = self.tail;
        let tail_stays = evicted_to < Place { opening, seq: tail.from_seq };
        if !headers.is_empty() && tail_stays && (tail.bytes >= tail.wanted || tail.is_full()) {
            tail = merge_tail(store, opening, tail, &mut self.merger, &mut next, &mut changes)?;
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
            (tail.bytes, tail.blocks) = (tail.bytes + frame.len() as u64, tail.blocks + 1);
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
        self.tail = tail;
        self.bytes_written += bytes;
        self.evicted_total = self.evicted_total.saturating_add(evicted);
        if let Some(header) = headers.last() {
            self.last = Place { opening, seq: header.first_seq };
        }
        Ok(())
    }

    /// Blocks in order of their places, until `bytes_max` would be passed; at least one, if there is one. They are as they
    /// are from now on: whoever has them may have sent them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn read<S: Values>(
        &mut self,
        store: &S,
        from: Place,
        below: Place,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, StoreError> {
        let mut blocks = Vec::new();
        if from >= below {
            return Ok(blocks);
        }
        let mut bytes = 0usize;
        for item in store.blocks(from, below) {
            let (place, frame) = item?;
            bytes = bytes.saturating_add(frame.len());
            if !blocks.is_empty() && bytes > bytes_max {
                break;
            }
            if place.opening == self.descriptor.opening {
                // A header that can't be read is a block that can't be merged either.
                let last_seq = block::header(&frame).map_or(place.seq, |header| header.last_seq());
                self.give_up_to(last_seq);
            }
            blocks.push(StoredBlock { place, frame: Bytes::copy_from_slice(&frame) });
        }
        Ok(blocks)
    }

    /// Nothing up to here is merged any more.
    fn give_up_to(&mut self, last_seq: u64) {
        if last_seq >= self.tail.from_seq {
            self.tail = Tail::from(last_seq.saturating_add(1));
        }
    }

    /// All frames of series descriptors of an opening, in order. No block reaches over this moment: those up to the last
    /// one need these and no others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn series<S: Values>(&mut self, store: &S, opening: u32) -> Result<Vec<Bytes>, StoreError> {
        if opening == self.descriptor.opening {
            self.give_up_to(self.book.head.last_seq);
        }
        Self::descriptors(store, opening)
    }

    fn descriptors<S: Values>(store: &S, opening: u32) -> Result<Vec<Bytes>, StoreError> {
        let (from, below) = (block_store::series_key(opening, 0), block_store::series_key(opening, u64::MAX));
        store.scan(from, below).map(|item| Ok(Bytes::copy_from_slice(&item?.1))).collect()
    }

    /// Deletes the blocks that lie wholly in these ranges.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget<S: Values>(&mut self, store: &S, epoch: Epoch, ranges: &Ranges) -> Result<(), StoreError> {
        let openings = self.book.openings.values().filter(|held| held.descriptor.epoch == epoch);
        let openings: Vec<u32> = openings.map(|held| held.descriptor.opening).collect();
        for opening in openings {
            for (first, last) in ranges.as_slice() {
                self.forget_range(store, opening, *first, *last)?;
            }
        }
        Ok(())
    }

    fn forget_range<S: Values>(&mut self, store: &S, opening: u32, first: u64, last: u64) -> Result<(), StoreError> {
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

    /// Every opening that holds blocks, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn streams<S: Values>(&self, store: &S) -> Result<Vec<HeldStream>, StoreError> {
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

    /// What is to be remembered beside the store; nothing before the opening stands in it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn mark<S: Values>(&self, store: &S, wall_ms: i64) -> Result<Option<Mark>, StoreError> {
        if !self.begun {
            return Ok(None);
        }
        let held = spans(store, &self.book)?;
        Ok(Some(Mark { opening: self.descriptor.opening, wall_ms, held }))
    }
}

impl Found {
    /// Whether the store has lost what this mark says it had committed.
    #[must_use]
    pub fn is_behind(&self, mark: &Mark) -> bool {
        mark.is_ahead_of(&self.0.as_ref().map_or_else(Head::default, |book| book.head))
    }
}

/// From where to where blocks are held, of every opening that holds some.
fn spans<S: Values>(store: &S, book: &Book) -> Result<Vec<HeldSpan>, StoreError> {
    let mut spans = Vec::new();
    for (opening, held) in book.openings.iter().filter(|(_, held)| held.blocks > 0) {
        let (from, below) = block_store::span(*opening);
        let (first, last) = (store.scan(from.clone(), below.clone()).next(), store.last(&from, &below));
        let (Some(first), Some(last)) = (first, last) else { continue };
        let header = |frame: &[u8]| block::header(frame).map_err(|error| StoreError::Damaged(error.to_string()));
        let (first, last) = (header(&first?.1)?, header(&last?)?);
        spans.push(HeldSpan {
            opening: *opening,
            epoch: held.descriptor.epoch,
            first_seq: first.first_seq,
            due_before: first.due_before,
            last_seq: last.last_seq(),
            due_through: last.due_through(),
            // A merged block says when its newest part was made, and its oldest may be much older.
            from_ms: held.descriptor.opened_ms,
            to_ms: last.made.wall_ms,
        });
    }
    Ok(spans)
}

/// Removes the oldest blocks while there is pressure.
fn evict<S: Values>(
    store: &S,
    next: &mut Book,
    pressure: &Pressure,
    decoder: &mut Decoder,
    changes: &mut Changes,
) -> Result<(Tally, Place), StoreError> {
    let mut tally = Tally::default();
    let mut last = Place::default();
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
        last = place;
        if let Some(held) = next.openings.get_mut(&place.opening) {
            held.subtract(&header, frame.len());
        }
    }
    Ok((tally, last))
}

/// Puts large blocks in the place of the tail's small ones; what is left of the tail.
fn merge_tail<S: Values>(
    store: &S,
    opening: u32,
    tail: Tail,
    merger: &mut Merger,
    next: &mut Book,
    changes: &mut Changes,
) -> Result<Tail, StoreError> {
    let (from, below) = (Place { opening, seq: tail.from_seq }, Place { opening: opening.saturating_add(1), seq: 0 });
    let mut blocks = Vec::new();
    for item in store.blocks(from, below).take(TAIL_BLOCKS_MAX) {
        let (place, frame) = item?;
        blocks.push((book::header_at(place, &frame)?, frame.to_vec()));
    }
    let Some((newest, _)) = blocks.last() else { return Ok(Tail::from(tail.from_seq)) };
    let merged = merger.merge(&blocks, tail.is_full() || blocks.len() == TAIL_BLOCKS_MAX);
    let Some(held) = next.openings.get_mut(&opening) else { return Ok(tail) };
    for (range, frame) in merged.frames {
        for (header, small) in &blocks[range.clone()] {
            held.subtract(header, small.len());
        }
        for (header, _) in &blocks[range.start + 1..range.end] {
            changes.remove(block_store::block_key(Place { opening, seq: header.first_seq }));
        }
        let header = block::header(&frame).map_err(|error| StoreError::Damaged(error.to_string()))?;
        held.add(&header, frame.len());
        changes.put(block_store::block_key(Place { opening, seq: header.first_seq }), frame);
    }
    let rest = &blocks[merged.settled..];
    let mut left = Tail::from(rest.first().map_or(newest.last_seq() + 1, |(header, _)| header.first_seq));
    left.bytes = rest.iter().map(|(_, frame)| frame.len() as u64).sum();
    left.blocks = rest.len();
    if merged.rest_bytes > 0 {
        // As much again as is missing in one large block.
        let full = satellite_shared::limits::BLOCK_BYTES_MAX as u64;
        let times = full.div_ceil(merged.rest_bytes as u64).max(1);
        left.wanted = left.bytes.saturating_mul(times).max(left.bytes + full / 2);
    }
    Ok(left)
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

/// Removes series beyond the acknowledged ones; why the acknowledged ones are not all there, if they are not.
fn trim_series<S: Values>(
    store: &S,
    opening: u32,
    next_series: u64,
    held: &mut Held,
    changes: &mut Changes,
) -> Result<Option<String>, StoreError> {
    let mut next = 0;
    for frame in Stock::descriptors(store, opening)? {
        let header = block::header(&frame).map_err(|error| StoreError::Damaged(error.to_string()))?;
        if header.first_seq >= next_series {
            changes.remove(block_store::series_key(opening, header.first_seq));
            held.series_bytes = held.series_bytes.saturating_sub(frame.len() as u64);
        } else if header.first_seq == next {
            next = header.last_seq() + 1;
        }
    }
    let lacks = next != next_series;
    Ok(lacks.then(|| "descriptors of series were lost with the damaged store: restart the satellite".into()))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use satellite_shared::wire::to_satellite::Stored;

    use super::super::tests::{Writer, clock};
    use super::*;

    /// A store in memory, whose flush can fail after everything was written.
    #[derive(Default)]
    struct Shelf {
        tree: RefCell<BTreeMap<Vec<u8>, Vec<u8>>>,
        flush_fails: Cell<bool>,
    }

    impl Values for Shelf {
        type Bytes = Vec<u8>;

        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.tree.borrow().get(key).cloned())
        }

        fn scan(&self, from: Vec<u8>, below: Vec<u8>) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), StoreError>> {
            let found: Vec<_> =
                self.tree.borrow().range(from..below).map(|(k, v)| Ok((k.clone(), v.clone()))).collect();
            found.into_iter()
        }

        fn last(&self, from: &[u8], below: &[u8]) -> Option<Result<Vec<u8>, StoreError>> {
            self.tree.borrow().range(from.to_vec()..below.to_vec()).next_back().map(|(_, value)| Ok(value.clone()))
        }

        fn apply(&self, changes: Changes) -> Result<(), StoreError> {
            for (key, value) in changes.into_all() {
                match value {
                    Some(value) => self.tree.borrow_mut().insert(key, value),
                    None => self.tree.borrow_mut().remove(&key),
                };
            }
            Ok(())
        }

        fn flush(&self) -> Result<(), StoreError> {
            if self.flush_fails.take() { Err(std::io::Error::other("no").into()) } else { Ok(()) }
        }

        fn flush_first(&mut self) -> Result<(), StoreError> {
            self.flush()
        }
    }

    fn bounds(bytes_max: u64) -> Bounds {
        Bounds { bytes_max, age_max_ms: i64::MAX, disk_short: false, now_ms: 0 }
    }

    #[test]
    fn what_went_with_a_commit_that_failed_is_not_taken_for_the_relays_loss() {
        let (mut shelf, satellite) = (Shelf::default(), "st_aaaaaaaaaaaaaaaa".parse().unwrap());
        let mut writer = Writer::new(Epoch(7), clock());
        let mut stock = Stock::new(writer.epoch, String::new(), 0);
        let found = Stock::find(&shelf).unwrap();
        stock.settle(&mut shelf, found, 0).unwrap();
        stock.compare(&shelf, &satellite, &[], 0).unwrap();
        let first = Commit { blocks: vec![writer.samples(50), writer.samples(50)], ..Commit::default() };
        let headers = stock.check(&first, 1 << 20).unwrap();
        stock.commit(&shelf, &first, &headers, &bounds(1 << 20)).unwrap();

        let second = Commit { blocks: vec![writer.samples(50)], ..Commit::default() };
        let headers = stock.check(&second, 1 << 20).unwrap();
        shelf.flush_fails.set(true);
        assert!(stock.commit(&shelf, &second, &headers, &bounds(1_100)).is_err());
        let found = Stock::find(&shelf).unwrap();
        stock.settle(&mut shelf, found, 0).unwrap();
        let lost: Vec<_> = stock.losses().iter().map(|loss| (loss.lost.first_seq, loss.lost.last_seq)).collect();
        assert_eq!(lost, [(1, 50)], "the first block went all the same");

        let nothing = [Stored { epoch: writer.epoch, ranges: Ranges::default() }];
        assert_eq!(stock.compare(&shelf, &satellite, &nothing, 0).unwrap(), 0);
        assert_eq!(stock.losses().len(), 1);
    }
}
