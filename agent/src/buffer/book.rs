//! What the store holds, counted: read once at opening, then kept by hand.
//!
//! It holds numbers only, no block: a full buffer of a hundred thousand blocks costs no memory here.

use std::collections::BTreeMap;

use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::wire::block::{self, Header};
use serde::{Deserialize, Serialize};

use super::block_store::{self, Changes, HEAD_KEY, RELAY_KEY, StoreError};
use super::history::{self, Past};
use super::stock::Values;
use super::{Loss, Place, eviction, meta};

/// A piece of the recorder's notes: only pieces that changed are written.
const NOTES_PIECE_BYTES: usize = 2_048;
/// The recorder's notes as a whole.
pub(super) const NOTES_BYTES_MAX: usize = 1 << 20;

/// How far the newest opening is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The newest opening's number.
    pub(super) opening: u32,
    /// Its last committed record.
    pub(super) last_seq: u64,
    /// Samples due in it up to there.
    pub(super) due_through: u64,
    /// The number that its next series will have.
    pub(super) next_series: u64,
    /// The first pending loss.
    pub(super) loss_first: u64,
    /// The number that the next loss will have.
    pub(super) loss_next: u64,
    /// Pieces of the recorder's notes.
    pub(super) notes_pieces: u64,
    /// Blocks held, of all openings: a store that holds others has lost some without a word.
    pub(super) blocks: u64,
    /// Bytes of blocks and series held.
    pub(super) bytes: u64,
}

impl Head {
    const BYTES: usize = 68;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.opening.to_le_bytes());
        let numbers = [
            self.last_seq,
            self.due_through,
            self.next_series,
            self.loss_first,
            self.loss_next,
            self.notes_pieces,
            self.blocks,
            self.bytes,
        ];
        for (at, number) in bytes[4..].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads what `encode` wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let number = |n: usize| {
            let at = 4 + n * 8;
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the length was checked"))
        };
        Some(Self {
            opening: u32::from_le_bytes(bytes[..4].try_into().expect("the length was checked")),
            last_seq: number(0),
            due_through: number(1),
            next_series: number(2),
            loss_first: number(3),
            loss_next: number(4),
            notes_pieces: number(5),
            blocks: number(6),
            bytes: number(7),
        })
    }
}

/// Whose numbers an opening's are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Descriptor {
    /// Which opening.
    pub(super) opening: u32,
    /// Its epoch.
    pub(super) epoch: Epoch,
    /// The kernel's boot id, empty where unknown.
    pub(super) boot_id: String,
    /// When it was opened, wall clock.
    pub(super) opened_ms: i64,
}

/// What is held of one opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// Whose numbers.
    pub(super) descriptor: Descriptor,
    /// Blocks held.
    pub(super) blocks: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Their records.
    pub(super) records: u64,
    /// Due samples that they account for.
    pub(super) due: u64,
    /// Bytes of its series' descriptors.
    pub(super) series_bytes: u64,
}

impl Held {
    /// Nothing yet.
    pub(super) fn new(descriptor: Descriptor) -> Self {
        Self { descriptor, blocks: 0, bytes: 0, records: 0, due: 0, series_bytes: 0 }
    }

    /// Counts a block in.
    pub(super) fn add(&mut self, header: &Header, bytes: usize) {
        self.blocks += 1;
        self.bytes += bytes as u64;
        self.records += u64::from(header.count);
        self.due = self.due.saturating_add(header.due);
    }

    /// Counts a block out.
    pub(super) fn subtract(&mut self, header: &Header, bytes: usize) {
        self.blocks = self.blocks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
        self.records = self.records.saturating_sub(u64::from(header.count));
        self.due = self.due.saturating_sub(header.due);
    }
}

/// The account of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Book {
    /// How many commits this disk has seen.
    pub(super) counter: u64,
    /// How far the newest opening is.
    pub(super) head: Head,
    /// The openings that hold blocks, and the newest.
    pub(super) openings: BTreeMap<u32, Held>,
    /// Pending losses by their numbers.
    pub(super) losses: BTreeMap<u64, Loss>,
    /// The recorder's notes, in pieces.
    pub(super) notes: Vec<Vec<u8>>,
    /// What was numbered in the last openings.
    pub(super) history: BTreeMap<u32, Past>,
    /// As which satellite blocks were acknowledged.
    pub(super) satellite: Option<SatelliteId>,
}

impl Book {
    /// Reads the whole store once; `None` where it is empty.
    pub(super) fn load<S: Values>(store: &S) -> Result<Option<Self>, StoreError> {
        let Some(value) = store.get(HEAD_KEY)? else {
            return match store.scan(vec![0], vec![0xff]).next() {
                None => Ok(None),
                Some(Ok(_)) => Err(damaged("its head is missing")),
                Some(Err(error)) => Err(error),
            };
        };
        let head = meta::read(&value).and_then(|meta| Some((meta.counter, Head::decode(meta.payload)?)));
        let (counter, head) = head.ok_or_else(|| damaged("its head is malformed"))?;
        let mut book = Self { counter, head, ..Self::default() };
        book.load_small_values(store)?;
        for item in store.all_blocks() {
            let (place, frame) = item?;
            let header = header_at(place, &frame)?;
            let held = book.openings.get_mut(&place.opening);
            let held = held.filter(|held| held.descriptor.epoch == header.epoch);
            held.ok_or_else(|| damaged("a block belongs to no opening"))?.add(&header, frame.len());
        }
        for item in store.scan(b"s".to_vec(), b"t".to_vec()) {
            let (key, frame) = item?;
            let opening = key.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
            let held = opening.and_then(|opening| book.openings.get_mut(&opening));
            held.ok_or_else(|| damaged("a series belongs to no opening"))?.series_bytes += frame.len() as u64;
        }
        let bytes = book.payload_bytes() + book.series_bytes();
        if (book.blocks(), bytes) != (head.blocks, head.bytes) {
            let said = format!("{} blocks and {} bytes with series", head.blocks, head.bytes);
            return Err(damaged(&format!("it should hold {said}, and holds {} and {bytes}", book.blocks())));
        }
        Ok(Some(book))
    }

    fn load_small_values<S: Values>(&mut self, store: &S) -> Result<(), StoreError> {
        for item in store.scan(b"o".to_vec(), b"p".to_vec()) {
            let (_, value) = item?;
            let descriptor: Option<Descriptor> = small(&value);
            let descriptor = descriptor.ok_or_else(|| damaged("an opening's descriptor is malformed"))?;
            self.openings.insert(descriptor.opening, Held::new(descriptor));
        }
        for item in store.scan(b"e".to_vec(), b"f".to_vec()) {
            let (key, value) = item?;
            let opening = key.get(1..5).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
            let past = opening.zip(small(&value));
            let (opening, past) = past.ok_or_else(|| damaged("what is remembered of an opening is malformed"))?;
            self.history.insert(opening, past);
        }
        self.satellite = store.get(RELAY_KEY)?.and_then(|value| small(&value));
        for ordinal in self.head.loss_first..self.head.loss_next {
            if let Some(value) = store.get(&block_store::loss_key(ordinal))? {
                let loss = small(&value).ok_or_else(|| damaged("a loss is malformed"))?;
                self.losses.insert(ordinal, loss);
            }
        }
        for piece in 0..usize::try_from(self.head.notes_pieces).unwrap_or(0) {
            let value = store.get(&block_store::notes_key(piece))?;
            let text = value.as_ref().and_then(|value| meta::read(value)).map(|meta| meta.payload.to_vec());
            self.notes.push(text.ok_or_else(|| damaged("a piece of the recorder's notes is missing"))?);
        }
        Ok(())
    }

    /// Writes the head as it is now.
    pub(super) fn put_head(&mut self, changes: &mut Changes) {
        self.head.blocks = self.blocks();
        self.head.bytes = self.payload_bytes() + self.series_bytes();
        changes.put(HEAD_KEY.to_vec(), meta::write(self.counter, HEAD_KEY, &self.head.encode()));
    }

    /// Writes all small values: descriptors, losses, notes and the head.
    pub(super) fn put_all_small(&mut self, changes: &mut Changes) {
        for (opening, held) in &self.openings {
            self.put_small(&block_store::opening_key(*opening), &held.descriptor, changes);
        }
        for (ordinal, loss) in &self.losses {
            self.put_small(&block_store::loss_key(*ordinal), loss, changes);
        }
        for (n, piece) in self.notes.iter().enumerate() {
            let key = block_store::notes_key(n);
            changes.put(key.clone(), meta::write(self.counter, &key, piece));
        }
        self.put_history(changes);
        self.put_head(changes);
    }

    /// Writes what is remembered of earlier openings.
    pub(super) fn put_history(&self, changes: &mut Changes) {
        for (opening, past) in &self.history {
            self.put_small(&block_store::history_key(*opening), past, changes);
        }
        if let Some(satellite) = &self.satellite {
            self.put_small(RELAY_KEY, satellite, changes);
        }
    }

    /// Remembers how far the newest opening went, before another begins.
    pub(super) fn remember(&mut self, changes: &mut Changes) {
        let Some(held) = self.openings.get(&self.head.opening).filter(|_| self.head.last_seq > 0) else { return };
        let past = self.history.entry(self.head.opening).or_insert_with(|| Past::of(&held.descriptor));
        (past.last_seq, past.due_through) = (self.head.last_seq, self.head.due_through);
        let past = past.clone();
        self.put_small(&block_store::history_key(self.head.opening), &past, changes);
        while self.history.len() > history::OPENINGS_MAX {
            let Some((oldest, _)) = self.history.pop_first() else { return };
            changes.remove(block_store::history_key(oldest));
        }
    }

    /// What is remembered of each opening, the newest as it is now.
    pub(super) fn pasts(&self) -> BTreeMap<u32, Past> {
        let mut pasts = self.history.clone();
        pasts.retain(|opening, past| past.last_seq > 0 || *opening == self.head.opening);
        if let Some(held) = self.openings.get(&self.head.opening).filter(|_| self.head.last_seq > 0) {
            let past = pasts.entry(self.head.opening).or_insert_with(|| Past::of(&held.descriptor));
            (past.last_seq, past.due_through) = (self.head.last_seq, self.head.due_through);
        }
        pasts
    }

    /// These records are not the relay's to have, whatever it says.
    pub(super) fn disclaim(&mut self, opening: u32, first_seq: u64, last_seq: u64, changes: &mut Changes) {
        let held = self.openings.get(&opening);
        if let Some(held) = held {
            self.history.entry(opening).or_insert_with(|| Past::of(&held.descriptor));
        }
        let Some(past) = self.history.get_mut(&opening) else { return };
        past.lose(first_seq, last_seq);
        let past = past.clone();
        self.put_small(&block_store::history_key(opening), &past, changes);
    }

    /// The same of what this side lost.
    pub(super) fn disclaim_loss(&mut self, loss: &Loss, changes: &mut Changes) {
        if let Some(opening) = self.opening_of(loss.lost.epoch) {
            self.disclaim(opening, loss.lost.first_seq, loss.lost.last_seq, changes);
        }
    }

    fn opening_of(&self, epoch: Epoch) -> Option<u32> {
        let held = self.openings.iter().find(|(_, held)| held.descriptor.epoch == epoch).map(|(opening, _)| *opening);
        held.or_else(|| self.history.iter().find(|(_, past)| past.epoch == epoch).map(|(opening, _)| *opening))
    }

    /// Takes in a loss and writes it, with those that it continues as one. The one has a number of its own, so that a
    /// commit that is undone leaves the others as they were.
    pub(super) fn put_loss(&mut self, mut loss: Loss, changes: &mut Changes) {
        self.disclaim_loss(&loss, changes);
        while let Some(ordinal) = self.losses.iter().find(|(_, other)| eviction::joins(other, &loss)).map(|(n, _)| *n) {
            let Some(other) = self.losses.remove(&ordinal) else { break };
            changes.remove(block_store::loss_key(ordinal));
            loss = eviction::joined(&other, &loss);
        }
        let ordinal = self.head.loss_next;
        self.head.loss_next += 1;
        self.put_small(&block_store::loss_key(ordinal), &loss, changes);
        self.losses.insert(ordinal, loss);
        self.head.loss_first = self.losses.keys().next().copied().unwrap_or(self.head.loss_next);
    }

    /// Writes a small value of this commit.
    pub(super) fn put_small<T: Serialize>(&self, key: &[u8], value: &T, changes: &mut Changes) {
        let payload = serde_json::to_vec(value).expect("plain values always serialise");
        changes.put(key.to_vec(), meta::write(self.counter, key, &payload));
    }

    /// Removes the first `count` losses.
    pub(super) fn explain(&mut self, count: usize, changes: &mut Changes) {
        for _ in 0..count {
            let Some((ordinal, _)) = self.losses.pop_first() else { break };
            changes.remove(block_store::loss_key(ordinal));
        }
        self.head.loss_first = self.losses.keys().next().copied().unwrap_or(self.head.loss_next);
    }

    /// Replaces the recorder's notes; writes what changed, or everything.
    pub(super) fn put_notes(&mut self, pieces: Vec<Vec<u8>>, everything: bool, changes: &mut Changes) {
        for (n, piece) in pieces.iter().enumerate() {
            if everything || self.notes.get(n) != Some(piece) {
                let key = block_store::notes_key(n);
                changes.put(key.clone(), meta::write(self.counter, &key, piece));
            }
        }
        for n in pieces.len()..self.notes.len() {
            changes.remove(block_store::notes_key(n));
        }
        self.head.notes_pieces = pieces.len() as u64;
        self.notes = pieces;
    }

    /// The recorder's notes; `None` where there are none.
    pub(super) fn notes(&self) -> Option<Vec<u8>> {
        (!self.notes.is_empty()).then(|| self.notes.concat())
    }

    /// Bytes of all blocks.
    pub(super) fn payload_bytes(&self) -> u64 {
        self.openings.values().map(|held| held.bytes).sum()
    }

    /// Bytes of all series' descriptors.
    pub(super) fn series_bytes(&self) -> u64 {
        self.openings.values().map(|held| held.series_bytes).sum()
    }

    /// How many blocks there are.
    pub(super) fn blocks(&self) -> u64 {
        self.openings.values().map(|held| held.blocks).sum()
    }

    /// Drops what older openings still have when they hold no block.
    pub(super) fn drop_finished<S: Values>(&mut self, store: &S, changes: &mut Changes) -> Result<(), StoreError> {
        let newest = self.head.opening;
        let finished: Vec<u32> =
            self.openings.iter().filter(|(n, held)| **n != newest && held.blocks == 0).map(|(n, _)| *n).collect();
        for opening in finished {
            let (from, below) =
                (block_store::series_key(opening, 0), block_store::series_key(opening.saturating_add(1), 0));
            for item in store.scan(from, below) {
                changes.remove(item?.0.to_vec());
            }
            changes.remove(block_store::opening_key(opening));
            self.openings.remove(&opening);
        }
        Ok(())
    }
}

/// The recorder's notes, cut into pieces.
pub(super) fn notes_pieces(notes: &[u8]) -> Vec<Vec<u8>> {
    notes.chunks(NOTES_PIECE_BYTES).map(<[u8]>::to_vec).collect()
}

/// A stored block's header; what is stored was checked before, so that anything else is damage.
pub(super) fn header_at(place: Place, frame: &[u8]) -> Result<Header, StoreError> {
    let header = block::header(frame).map_err(|error| damaged(&format!("block {place:?}: {error}")))?;
    if header.first_seq != place.seq {
        return Err(damaged(&format!("block {place:?} says that it is {}", header.first_seq)));
    }
    Ok(header)
}

/// A small value, unwrapped.
pub(super) fn small<T: for<'de> Deserialize<'de>>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(meta::read(value)?.payload).ok()
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(what.to_owned())
}
