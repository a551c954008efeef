//! What was sent and is not acknowledged, against the relay's credit.
//!
//! Pure. Only blocks count: series frames are never acknowledged. One frame may always be under way, however small the
//! credit, for else a relay that grants less than a frame could never be given anything; a credit of zero stops all.

use std::collections::BTreeMap;

use satellite_shared::id::Epoch;
use satellite_shared::ranges::{Overlap, Ranges};

use crate::buffer::Place;

/// Blocks under way, whatever the relay grants: what is remembered of them is bounded.
const BLOCKS_MAX: usize = 16_384;

/// A block under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Where it stands in the buffer.
    pub place: Place,
    /// Its last record.
    pub last_seq: u64,
    /// Its length.
    pub bytes: u64,
    /// When it was sent, monotonic.
    pub sent_ms: u64,
}

/// The window of blocks under way.
#[derive(Debug, Default)]
pub struct InFlight {
    sent: BTreeMap<(Epoch, u64), Sent>,
    bytes: u64,
    credit_bytes: u64,
    /// When the relay last took or refused something.
    progress_ms: u64,
}

impl InFlight {
    /// The relay's word on how much may be under way.
    pub fn set_credit(&mut self, credit_bytes: u64) {
        self.credit_bytes = credit_bytes;
    }

    /// Whether another block of this length may go.
    #[must_use]
    pub fn has_room(&self, bytes: u64) -> bool {
        self.credit_bytes > 0
            && self.sent.len() < BLOCKS_MAX
            && (self.sent.is_empty() || self.bytes.saturating_add(bytes) <= self.credit_bytes)
    }

    /// A block went.
    pub fn insert(&mut self, epoch: Epoch, first_seq: u64, sent: Sent) {
        self.bytes += sent.bytes;
        if let Some(before) = self.sent.insert((epoch, first_seq), sent) {
            self.bytes -= before.bytes;
        }
    }

    /// Whether this block is under way.
    #[must_use]
    pub fn has(&self, epoch: Epoch, first_seq: u64) -> bool {
        self.sent.contains_key(&(epoch, first_seq))
    }

    /// The relay committed these: the records of blocks that are no longer under way.
    pub fn acknowledge(&mut self, now_ms: u64, epoch: Epoch, ranges: &Ranges) -> Ranges {
        self.progress_ms = now_ms;
        let mut acknowledged = Vec::new();
        // Only this epoch's: an acknowledgement may name thousands that were never heard of.
        for (&(_, first_seq), sent) in self.sent.range((epoch, 0)..=(epoch, u64::MAX)) {
            if ranges.overlap(first_seq, sent.last_seq) == Overlap::Whole {
                acknowledged.push((first_seq, sent.last_seq));
            }
        }
        for (first_seq, _) in &acknowledged {
            self.bytes -= self.sent.remove(&(epoch, *first_seq)).map_or(0, |sent| sent.bytes);
        }
        acknowledged.into()
    }

    /// The relay did not take this one: it is no longer under way.
    pub fn take(&mut self, now_ms: u64, epoch: Epoch, first_seq: u64) -> Option<Sent> {
        self.progress_ms = now_ms;
        let sent = self.sent.remove(&(epoch, first_seq))?;
        self.bytes -= sent.bytes;
        Some(sent)
    }

    /// When the oldest block has waited since, or the relay's last sign of progress if that is later.
    #[must_use]
    pub fn waiting_since(&self) -> Option<u64> {
        self.oldest().map(|oldest| oldest.max(self.progress_ms))
    }

    /// When the oldest block went.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.sent.values().map(|sent| sent.sent_ms).min()
    }

    /// Whether nothing is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Bytes under way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Epoch = Epoch(7);

    fn sent(seq: u64, count: u64, bytes: u64) -> Sent {
        Sent { place: Place { opening: 1, seq }, last_seq: seq + count - 1, bytes, sent_ms: seq }
    }

    #[test]
    fn nothing_goes_without_credit_and_one_frame_goes_with_any() {
        let mut window = InFlight::default();
        assert!(!window.has_room(100));
        window.set_credit(1);
        assert!(window.has_room(100));
        window.insert(EPOCH, 1, sent(1, 10, 100));
        assert!(!window.has_room(100));
    }

    #[test]
    fn a_relay_that_grants_everything_and_acknowledges_nothing_fills_no_memory() {
        let mut window = InFlight::default();
        window.set_credit(u64::MAX);
        let went = (1..).take_while(|&seq| {
            let room = window.has_room(1);
            window.insert(EPOCH, seq, sent(seq, 1, 1));
            room
        });
        assert_eq!(went.count(), BLOCKS_MAX);
    }

    #[test]
    fn an_acknowledgement_gives_back_only_what_it_names_whole() {
        let mut window = InFlight::default();
        window.set_credit(1_000);
        window.insert(EPOCH, 1, sent(1, 10, 100));
        window.insert(EPOCH, 11, sent(11, 10, 200));
        window.insert(Epoch(8), 1, sent(1, 10, 400));
        let acknowledged = window.acknowledge(50, EPOCH, &[(1, 15)].into_iter().collect());
        assert_eq!(acknowledged.as_slice(), [(1, 10)]);
        assert_eq!(window.bytes(), 600);
        assert_eq!(window.waiting_since(), Some(50));
    }

    proptest! {
        #[test]
        fn the_bytes_are_always_those_of_what_is_under_way(steps in prop::collection::vec((0u8..3, 1u64..20, 1u64..500), 0..60)) {
            let mut window = InFlight::default();
            for (step, block, bytes) in steps {
                let first = block * 10;
                match step {
                    0 => window.insert(EPOCH, first, sent(first, 10, bytes)),
                    1 => { window.take(0, EPOCH, first); }
                    _ => { window.acknowledge(0, EPOCH, &[(first, first + 9)].into_iter().collect()); }
                }
                prop_assert_eq!(window.bytes(), window.sent.values().map(|s| s.bytes).sum::<u64>());
            }
        }
    }
}
