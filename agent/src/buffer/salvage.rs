//! What can be read back from a store that no longer opens: every whole frame, found by a raw scan of its file.
//!
//! sled writes values as they are, so frames lie in the file whole, together with older copies and with what was
//! deleted but not yet overwritten. Frames that the relay already has may therefore come back: it drops them.
//! Where the chain of due counts shows that something is missing, that is a loss.
//!
//! `plan` is pure; `scan` reads, `write` fills an empty store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::MemfdFlags;
use satellite_shared::gap::{Lost, Reason};
use satellite_shared::id::Epoch;
use satellite_shared::limits;
use satellite_shared::wire::block::{self, FrameKind, Header};

use super::block_store::{self, BlockStore, Changes, HEAD_KEY, StoreError};
use super::book::{Book, Descriptor, Head, Held};
use super::history::Past;
use super::mark::{HeldSpan, Mark};
use super::stock::Values as _;
use super::{Loss, Place, meta};

/// Files up to this length are kept in memory while they are opened.
const IMAGE_BYTES_MAX: u64 = 32 << 20;
const WINDOW_BYTES: usize = 1 << 20;
const SECTOR_BYTES: usize = 4 << 10;
/// A sector that can't be read is asked for again: what passes must not become a hole.
const SECTOR_TRIES: u32 = 4;
/// How much is written to the new store at once.
const BATCH_BYTES: u64 = 256 << 10;
/// The longest thing that is looked for.
const LONGEST_BYTES: usize = limits::BLOCK_BYTES_MAX;

/// A whole frame and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    header: Header,
    offset: u64,
    len: usize,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Finds {
    frames: BTreeMap<(Epoch, bool, u64), Found>,
    metas: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
}

/// An opening as it will be.
#[derive(Debug)]
pub(super) struct Rescued {
    descriptor: Descriptor,
    series: Vec<Found>,
    blocks: Vec<Found>,
}

/// A store as it will be.
#[derive(Debug)]
pub(super) struct Rescue {
    book: Book,
    openings: Vec<Rescued>,
}

impl Rescue {
    /// How many blocks were found.
    pub(super) fn blocks(&self) -> usize {
        self.openings.iter().map(|opening| opening.blocks.len()).sum()
    }

    /// How many losses are not explained yet.
    pub(super) fn losses(&self) -> usize {
        self.book.losses.len()
    }
}

/// A copy in memory of a file that is not long: opening a damaged store zeroes what sled takes for a torn tail.
pub(super) fn image(path: &Path) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() > IMAGE_BYTES_MAX {
        return Ok(None);
    }
    let mut image = File::from(rustix::fs::memfd_create("buffer", MemfdFlags::CLOEXEC)?);
    io::copy(&mut file, &mut image)?;
    Ok(Some(image))
}

/// Looks through a file; sectors that can't be read are passed over.
///
/// # Errors
/// When not one can be read: then the disk is away, not damaged, and may come back with all that is on it.
pub(super) fn scan(file: &File) -> io::Result<Finds> {
    let len = file.metadata()?.len();
    let mut finds = Finds::default();
    let mut window = vec![0u8; WINDOW_BYTES + LONGEST_BYTES];
    let mut at = 0u64;
    let mut unread = Unread::default();
    while at < len {
        let read = read_around_holes(file, at, &mut window, &mut unread);
        if read == 0 {
            break;
        }
        // What begins in the window's tail is looked at again, whole, from the next window on.
        let begins = read.min(WINDOW_BYTES);
        finds.search(&window[..read], begins, at);
        at += begins as u64;
    }
    match unread.error {
        Some(error) if !unread.any_read => {
            Err(io::Error::other(format!("nothing of the store can be read: {error}: see to the disk")))
        }
        Some(_) | None => Ok(finds),
    }
}

/// What of a file could not be read.
#[derive(Debug, Default)]
struct Unread {
    any_read: bool,
    /// The last error.
    error: Option<io::Error>,
}

fn read_around_holes(file: &File, at: u64, window: &mut [u8], unread: &mut Unread) -> usize {
    let (mut read, mut tries) = (0, 0);
    while read < window.len() {
        match file.read_at(&mut window[read..], at + read as u64) {
            Ok(0) => break,
            Ok(bytes) => {
                read += bytes;
                tries = 0;
                unread.any_read = true;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if tries < SECTOR_TRIES => {
                tries += 1;
                unread.error = Some(error);
            }
            Err(_) => {
                tries = 0;
                let hole = SECTOR_BYTES.min(window.len() - read);
                window[read..read + hole].fill(0);
                read += hole;
            }
        }
    }
    read
}

impl Finds {
    /// How many whole frames there are.
    pub(super) fn frames(&self) -> usize {
        self.frames.len()
    }

    fn search(&mut self, bytes: &[u8], begins: usize, at: u64) {
        let mut n = 0;
        while n < begins {
            let Some(next) = bytes[n..begins].iter().position(|byte| *byte == b'S') else { return };
            n += next;
            n += self.take(&bytes[n..], at + n as u64).unwrap_or(1);
        }
    }

    /// Takes in what these bytes begin with; its length.
    fn take(&mut self, bytes: &[u8], offset: u64) -> Option<usize> {
        if !bytes.starts_with(b"SAT") {
            return None;
        }
        if let Some((meta, len)) = meta::read_first(bytes) {
            let newest = self.metas.get(meta.key).is_none_or(|(counter, _)| *counter <= meta.counter);
            if newest {
                self.metas.insert(meta.key.to_vec(), (meta.counter, meta.payload.to_vec()));
            }
            return Some(len);
        }
        let len = block::frame_len(bytes)?;
        let header = block::header(&bytes[..len]).ok()?;
        let key = (header.epoch, header.kind == FrameKind::Series, header.first_seq);
        // A merged block is as new as its newest part, and longer.
        let age = |header: &Header| (header.made.mono_ms, header.count);
        let newest = self.frames.get(&key).is_none_or(|found| age(&found.header) <= age(&header));
        if newest {
            self.frames.insert(key, Found { header, offset, len });
        }
        Some(len)
    }

    fn descriptors(&self) -> BTreeMap<Epoch, Descriptor> {
        let read = |(_, payload): &(u64, Vec<u8>)| serde_json::from_slice::<Descriptor>(payload).ok();
        let openings = self.metas.range(b"o".to_vec()..b"p".to_vec());
        openings.filter_map(|(_, value)| read(value)).map(|descriptor| (descriptor.epoch, descriptor)).collect()
    }

    fn head(&self) -> Option<(u64, Head)> {
        let (counter, payload) = self.metas.get(HEAD_KEY)?;
        Some((*counter, Head::decode(payload)?))
    }

    fn losses(&self, head: &Head) -> BTreeMap<u64, Loss> {
        let read = |ordinal: u64| {
            let (_, payload) = self.metas.get(&block_store::loss_key(ordinal))?;
            Some((ordinal, serde_json::from_slice(payload).ok()?))
        };
        // The head comes from a damaged file, though its checksum was right: no endless range.
        (head.loss_first..head.loss_next).take(self.metas.len()).filter_map(read).collect()
    }

    fn notes(&self, head: &Head) -> Option<Vec<Vec<u8>>> {
        let pieces = usize::try_from(head.notes_pieces).ok().filter(|pieces| *pieces <= self.metas.len())?;
        let piece = |n| self.metas.get(&block_store::notes_key(n)).map(|(_, payload)| payload.clone());
        (0..pieces).map(piece).collect()
    }
}

/// The store that these finds amount to. New losses are numbered from `loss_next` on, or higher; none is of later than
/// `now_ms`.
pub(super) fn plan(finds: &Finds, mark: &Mark, loss_next: u64, now_ms: i64) -> Rescue {
    let (counter, mut head) = finds.head().unwrap_or_default();
    let mut book = Book { counter: counter + 1, losses: finds.losses(&head), ..Book::default() };
    book.notes = finds.notes(&head).unwrap_or_default();
    head.notes_pieces = book.notes.len() as u64;
    head.loss_next = head.loss_next.max(loss_next);
    book.head = head;

    let openings = rescued_openings(finds);
    for opening in &openings {
        let number = opening.descriptor.opening;
        let span = mark.span(opening.descriptor.epoch);
        let tail = (number == head.opening).then_some(&head);
        for loss in holes(opening, span, tail, now_ms) {
            book.losses.insert(book.head.loss_next, loss);
            book.head.loss_next += 1;
        }
        if number > head.opening {
            // The head was lost: the newest opening is what was found of it.
            book.head.opening = number;
            book.head.next_series = opening.series.last().map_or(0, |found| found.header.last_seq() + 1);
        }
        book.history.insert(number, Past::uncertain(&opening.descriptor));
        book.openings.insert(number, Held::new(opening.descriptor.clone()));
    }
    let unfound = |span: &&HeldSpan| openings.iter().all(|opening| opening.descriptor.epoch != span.epoch);
    for span in mark.held.iter().filter(unfound) {
        let loss = Edge::before(span).loss(span.epoch, Edge::end_of(span));
        book.losses.insert(book.head.loss_next, loss);
        book.head.loss_next += 1;
    }
    book.head.loss_first = book.losses.keys().next().copied().unwrap_or(book.head.loss_next);
    Rescue { book, openings }
}

fn rescued_openings(finds: &Finds) -> Vec<Rescued> {
    let mut descriptors = finds.descriptors();
    let mut frames: BTreeMap<Epoch, (Vec<Found>, Vec<Found>)> = BTreeMap::new();
    for ((epoch, is_series, _), found) in &finds.frames {
        let (series, blocks) = frames.entry(*epoch).or_default();
        if *is_series { series.push(*found) } else { blocks.push(*found) }
    }
    let newest = descriptors.values().map(|descriptor| descriptor.opening).max();
    let mut next = newest.map_or(1, |newest| newest.saturating_add(1));
    let mut unknown: Vec<(i64, Epoch)> = frames
        .iter()
        .filter(|(epoch, _)| !descriptors.contains_key(epoch))
        .map(|(epoch, (_, blocks))| (blocks.iter().map(|found| found.header.made.wall_ms).min().unwrap_or(0), *epoch))
        .collect();
    unknown.sort_unstable();
    for (opened_ms, epoch) in unknown {
        descriptors.insert(epoch, Descriptor { opening: next, epoch, boot_id: String::new(), opened_ms });
        next = next.saturating_add(1);
    }
    let mut openings: Vec<Rescued> = descriptors
        .into_values()
        .map(|descriptor| {
            let (series, mut blocks) = frames.remove(&descriptor.epoch).unwrap_or_default();
            drop_overlaps(&mut blocks);
            Rescued { descriptor, series, blocks }
        })
        .filter(|opening| !opening.blocks.is_empty() || newest == Some(opening.descriptor.opening))
        .collect();
    openings.sort_by_key(|opening| opening.descriptor.opening);
    openings
}

fn drop_overlaps(blocks: &mut Vec<Found>) {
    let mut last_seq = 0;
    blocks.retain(|found| {
        let apart = found.header.first_seq > last_seq;
        if apart {
            last_seq = found.header.last_seq();
        }
        apart
    });
}

/// Up to where an epoch's records are accounted for.
#[derive(Debug, Clone, Copy)]
struct Edge {
    seq: u64,
    due: u64,
    ms: i64,
}

impl Edge {
    /// Where what was held begins.
    fn before(span: &HeldSpan) -> Self {
        Self { seq: span.first_seq - 1, due: span.due_before, ms: span.from_ms }
    }

    /// Where what was held ends.
    fn end_of(span: &HeldSpan) -> Self {
        Self { seq: span.last_seq, due: span.due_through, ms: span.to_ms }
    }

    /// What lies behind this edge up to another.
    fn loss(self, epoch: Epoch, to: Self) -> Loss {
        Loss {
            lost: Lost { epoch, first_seq: self.seq + 1, last_seq: to.seq, due_through: to.due },
            count: to.due.saturating_sub(self.due),
            from_ms: self.ms.min(to.ms),
            to_ms: self.ms.max(to.ms),
            reason: Reason::Corrupt,
        }
    }
}

/// What is missing of an opening: between its blocks; before and behind them only what the mark or the head say was
/// there, since all else was acknowledged.
fn holes(opening: &Rescued, span: Option<&HeldSpan>, head: Option<&Head>, now_ms: i64) -> Vec<Loss> {
    let epoch = opening.descriptor.epoch;
    let mut edge = span.map(Edge::before);
    let mut losses = Vec::new();
    for Found { header, .. } in &opening.blocks {
        let ms = header.made.wall_ms;
        if let Some(edge) = edge.filter(|edge| edge.seq + 1 < header.first_seq) {
            losses.push(edge.loss(epoch, Edge { seq: header.first_seq - 1, due: header.due_before, ms }));
        }
        if edge.is_none_or(|edge| edge.seq < header.last_seq()) {
            edge = Some(Edge { seq: header.last_seq(), due: header.due_through(), ms });
        }
    }
    let Some(edge) = edge else { return losses };
    // The head does not say when: at any time until now.
    let of_head = head.map(|head| Edge { seq: head.last_seq, due: head.due_through, ms: now_ms });
    let ends = [of_head, span.map(Edge::end_of)];
    if let Some(end) = ends.into_iter().flatten().max_by_key(|end| end.seq).filter(|end| end.seq > edge.seq) {
        losses.push(edge.loss(epoch, end));
    }
    losses
}

/// Fills an empty store.
pub(super) fn write(rescue: &mut Rescue, file: &File, store: &BlockStore) -> Result<(), StoreError> {
    let mut changes = Changes::default();
    for opening in &rescue.openings {
        let number = opening.descriptor.opening;
        let mut held = Held::new(opening.descriptor.clone());
        for found in &opening.series {
            held.series_bytes += found.len as u64;
            changes.put(block_store::series_key(number, found.header.first_seq), found.read(file)?);
            flush_when_large(&mut changes, store)?;
        }
        for found in &opening.blocks {
            let place = Place { opening: number, seq: found.header.first_seq };
            held.add(&found.header, found.len);
            changes.put(block_store::block_key(place), found.read(file)?);
            flush_when_large(&mut changes, store)?;
        }
        rescue.book.openings.insert(number, held);
    }
    rescue.book.put_all_small(&mut changes);
    store.apply(changes)?;
    store.flush()
}

fn flush_when_large(changes: &mut Changes, store: &BlockStore) -> Result<(), StoreError> {
    if changes.bytes() < BATCH_BYTES {
        return Ok(());
    }
    store.apply(std::mem::take(changes))?;
    store.flush()
}

impl Found {
    fn read(&self, file: &File) -> Result<Vec<u8>, StoreError> {
        let mut frame = vec![0; self.len];
        file.read_exact_at(&mut frame, self.offset)?;
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_which_nothing_can_be_read_is_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        std::fs::write(&path, vec![0; 3 * WINDOW_BYTES]).unwrap();
        assert!(scan(&File::open(&path).unwrap()).is_ok());
        // Not opened for reading: every read fails, as on a disk that is away.
        let away = File::options().write(true).open(&path).unwrap();
        let error = scan(&away).unwrap_err().to_string();
        assert!(error.contains("nothing of the store can be read"), "{error}");
    }
}
