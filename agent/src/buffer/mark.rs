//! A note beside the store of how far it was, so that a tail which the store loses silently is noticed.
//!
//! sled takes a bad checksum in its log for the log's end and opens without a word. The mark is written when the
//! buffer closes and every ten minutes, never before what it says is durable: a store that is behind its mark has
//! lost something. It need not be durable itself.

use std::io;
use std::path::Path;

use satellite_shared::gap::{Lost, Reason};
use satellite_shared::id::Epoch;
use serde::{Deserialize, Serialize};

use super::Loss;
use super::book::Head;

const NAME: &str = "mark";

/// How far the store was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The newest opening.
    pub(super) opening: u32,
    /// Its epoch.
    pub(super) epoch: Epoch,
    /// Its last committed record.
    pub(super) last_seq: u64,
    /// Samples due up to there.
    pub(super) due_through: u64,
    /// The first record of it that was still held, or the one after the last.
    pub(super) held_seq: u64,
    /// Samples due before that.
    pub(super) held_due_before: u64,
    /// When.
    pub(super) wall_ms: i64,
}

impl Mark {
    /// The mark in a buffer's directory; one that can't be read is none.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(NAME)).ok()?).ok()
    }

    /// Writes it whole.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("mark.new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, dir.join(NAME))
    }

    /// What a store with this head lacks.
    pub(super) fn missing(&self, head: &Head) -> Option<Loss> {
        let (known_seq, known_due) = match head.opening.cmp(&self.opening) {
            std::cmp::Ordering::Less => (0, 0),
            std::cmp::Ordering::Equal => (head.last_seq, head.due_through),
            std::cmp::Ordering::Greater => return None,
        };
        let (first_seq, due_before) =
            if self.held_seq > known_seq { (self.held_seq, self.held_due_before) } else { (known_seq + 1, known_due) };
        if first_seq > self.last_seq {
            return None;
        }
        let lost = Lost { epoch: self.epoch, first_seq, last_seq: self.last_seq, due_through: self.due_through };
        let count = self.due_through.saturating_sub(due_before);
        Some(Loss { lost, count, from_ms: self.wall_ms, to_ms: self.wall_ms, reason: Reason::Corrupt })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark {
            opening: 3,
            epoch: Epoch(9),
            last_seq: 100,
            due_through: 90,
            held_seq: 51,
            held_due_before: 45,
            wall_ms: 1,
        }
    }

    fn range(head: Head) -> Option<(u64, u64, u64)> {
        mark().missing(&head).map(|loss| (loss.lost.first_seq, loss.lost.last_seq, loss.count))
    }

    #[test]
    fn a_store_behind_its_mark_lacks_what_was_held() {
        let head = Head { opening: 3, last_seq: 70, due_through: 60, ..Head::default() };
        assert_eq!(range(head), Some((71, 100, 30)));
        assert_eq!(range(Head { last_seq: 20, due_through: 15, ..head }), Some((51, 100, 45)));
        assert_eq!(range(Head { opening: 2, last_seq: 500, ..head }), Some((51, 100, 45)));
    }

    #[test]
    fn a_store_at_or_past_its_mark_lacks_nothing() {
        let head = Head { opening: 3, last_seq: 100, due_through: 90, ..Head::default() };
        assert_eq!(range(head), None);
        assert_eq!(range(Head { last_seq: 200, ..head }), None);
        assert_eq!(range(Head { opening: 4, last_seq: 0, ..head }), None);
        let drained = Mark { held_seq: 101, held_due_before: 90, ..mark() };
        assert_eq!(drained.missing(&Head { last_seq: 70, ..head }), None);
    }

    #[test]
    fn a_mark_that_is_no_mark_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Mark::read(dir.path()), None);
        std::fs::write(dir.path().join(NAME), b"{").unwrap();
        assert_eq!(Mark::read(dir.path()), None);
        mark().write(dir.path()).unwrap();
        assert_eq!(Mark::read(dir.path()), Some(mark()));
    }
}
