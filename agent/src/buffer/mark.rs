//! A note beside the store of what it held, so that what the store loses silently is noticed.
//!
//! sled takes a bad checksum in its log for the log's end and opens without a word. The mark is written when the
//! buffer closes and every ten minutes, never before what it says is durable: a store that is behind its mark has
//! lost something. It need not be durable itself.

use std::cmp::Ordering;
use std::io;
use std::path::Path;

use satellite_shared::id::Epoch;
use serde::{Deserialize, Serialize};

use super::book::Head;

const NAME: &str = "mark";

/// What the store held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The newest opening.
    pub opening: u32,
    /// When, wall clock.
    pub wall_ms: i64,
    /// The openings that held blocks.
    pub held: Vec<HeldSpan>,
}

/// From where to where blocks of an opening were held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldSpan {
    /// Which opening.
    pub opening: u32,
    /// Its epoch.
    pub epoch: Epoch,
    /// The first record held.
    pub first_seq: u64,
    /// Samples due before it.
    pub due_before: u64,
    /// The last record held.
    pub last_seq: u64,
    /// Samples due up to it.
    pub due_through: u64,
    /// Since when what is held was polled at the earliest, wall clock.
    pub from_ms: i64,
    /// When the last block held was made.
    pub to_ms: i64,
}

impl Mark {
    /// The mark in a buffer's directory; one that can't be read or was altered is none. An altered one would tell of
    /// losses that never were.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(dir.join(NAME)).ok()?)
    }

    /// Reads a mark's text; `None` where it is damaged.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (crc, json) = text.split_once(' ')?;
        let whole = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json.as_bytes());
        whole.then(|| serde_json::from_str(json).ok()).flatten()
    }

    /// Writes it whole.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("mark.new");
        let json = serde_json::to_string(self)?;
        std::fs::write(&new, format!("{:08x} {json}", crc32fast::hash(json.as_bytes())))?;
        std::fs::rename(new, dir.join(NAME))
    }

    /// What was held of an epoch.
    pub(super) fn span(&self, epoch: Epoch) -> Option<&HeldSpan> {
        self.held.iter().find(|span| span.epoch == epoch)
    }

    /// Whether a store with this head has lost what it had committed.
    pub(super) fn is_ahead_of(&self, head: &Head) -> bool {
        self.held.iter().any(|span| match head.opening.cmp(&span.opening) {
            Ordering::Less => true,
            Ordering::Equal => head.last_seq < span.last_seq,
            Ordering::Greater => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        let span = HeldSpan {
            opening: 3,
            epoch: Epoch(9),
            first_seq: 51,
            due_before: 45,
            last_seq: 100,
            due_through: 90,
            from_ms: 7_000,
            to_ms: 9_000,
        };
        let older = HeldSpan { opening: 2, epoch: Epoch(8), first_seq: 1, due_before: 0, last_seq: 10, ..span };
        Mark { opening: 3, wall_ms: 1, held: vec![older, span] }
    }

    #[test]
    fn a_store_behind_its_mark_has_lost_something() {
        let head = Head { opening: 3, last_seq: 99, ..Head::default() };
        assert!(mark().is_ahead_of(&head));
        assert!(mark().is_ahead_of(&Head { opening: 2, last_seq: 10, ..head }));
        assert!(mark().is_ahead_of(&Head::default()));
    }

    #[test]
    fn a_store_at_or_past_its_mark_has_not() {
        let head = Head { opening: 3, last_seq: 100, ..Head::default() };
        assert!(!mark().is_ahead_of(&head));
        assert!(!mark().is_ahead_of(&Head { opening: 4, last_seq: 0, ..head }));
        assert!(!Mark::default().is_ahead_of(&Head::default()));
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

    #[test]
    fn a_mark_with_a_flipped_bit_is_none() {
        let dir = tempfile::tempdir().unwrap();
        mark().write(dir.path()).unwrap();
        assert_eq!(Mark::read(dir.path()), Some(mark()));
        let whole = std::fs::read(dir.path().join(NAME)).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(dir.path().join(NAME), flipped).unwrap();
            // Another spelling of the same digit says the same.
            assert!(Mark::read(dir.path()).is_none_or(|read| read == mark()), "bit {bit}");
        }
    }
}
