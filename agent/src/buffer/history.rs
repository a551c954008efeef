//! What was numbered in earlier openings, so that a relay that has lost what it had acknowledged is noticed.
//!
//! A block is forgotten when the relay has acknowledged it. A relay whose disks were copied back from a backup then
//! has neither the record nor a word of it; only this side can tell. For each of the last openings it is remembered
//! how far the numbers went, and which of them this side lost itself. What is neither held, nor lost here, nor stored
//! there, the relay has lost. Pure.

use satellite_shared::gap::{Lost, Reason};
use satellite_shared::id::Epoch;
use satellite_shared::ranges::Ranges;
use serde::{Deserialize, Serialize};

use super::Loss;
use super::book::Descriptor;

/// Openings that are remembered; each start of the program is one.
pub(super) const OPENINGS_MAX: usize = 100;
/// Ranges lost here that are remembered of one opening; with more, nothing is said of it any more.
const LOST_RANGES_MAX: usize = 64;

/// What is remembered of one opening.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Past {
    /// Its epoch.
    pub(super) epoch: Epoch,
    /// When it was opened, wall clock.
    pub(super) opened_ms: i64,
    /// Its last record; 0 while it is the newest opening.
    pub(super) last_seq: u64,
    /// Samples due in it up to there.
    pub(super) due_through: u64,
    /// What this side lost of it, or has had acknowledged by another relay.
    lost: Ranges,
}

/// Blocks that are held without a hole between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first record.
    pub(super) first_seq: u64,
    /// The last record.
    pub(super) last_seq: u64,
    /// Samples due before the first.
    pub(super) due_before: u64,
    /// Samples due up to the last.
    pub(super) due_through: u64,
    /// When the first was made.
    pub(super) from_ms: i64,
    /// When the last was made.
    pub(super) to_ms: i64,
}

impl Past {
    /// Of an opening of which nothing was lost yet.
    pub(super) fn of(descriptor: &Descriptor) -> Self {
        let Descriptor { epoch, opened_ms, .. } = *descriptor;
        Self { epoch, opened_ms, last_seq: 0, due_through: 0, lost: Ranges::default() }
    }

    /// Of an opening of which nothing is to be claimed: what became of it is not known for certain.
    pub(super) fn uncertain(descriptor: &Descriptor) -> Self {
        let mut past = Self::of(descriptor);
        past.lose(1, u64::MAX - 1);
        past
    }

    /// These numbers are not the relay's to have.
    pub(super) fn lose(&mut self, first_seq: u64, last_seq: u64) {
        if first_seq <= last_seq {
            self.lost.insert(first_seq, last_seq);
        }
        if self.lost.as_slice().len() > LOST_RANGES_MAX {
            self.lost.insert(1, u64::MAX - 1);
        }
    }

    /// How many records cannot be accounted for without looking at what is held.
    pub(super) fn unaccounted(&self, stored: &Ranges) -> u64 {
        let known = self.known(stored);
        holes(&known, self.last_seq).map(|(first, last)| last - first + 1).sum()
    }

    /// What the relay has acknowledged and lost, given what it says it stores and what is held here, in order. The
    /// opening lasted until `until_ms`.
    pub(super) fn missing(&self, stored: &Ranges, held: &[Run], until_ms: i64) -> Vec<Loss> {
        let mut known = self.known(stored);
        for run in held {
            known.insert(run.first_seq, run.last_seq);
        }
        let claims = self.with_what_was_lost_beside(holes(&known, self.last_seq).collect());
        claims.as_slice().iter().map(|&(first, last)| self.claim(first, last, held, until_ms)).collect()
    }

    fn known(&self, stored: &Ranges) -> Ranges {
        self.lost.as_slice().iter().chain(stored.as_slice()).copied().collect()
    }

    /// What this side lost beside a hole goes along, and holes that only such a loss parts are one, so that both ends of
    /// a claim are known: the relay explains only what is a hole, and where it stores what stands beside, its own frames
    /// say how many were due.
    fn with_what_was_lost_beside(&self, holes: Ranges) -> Ranges {
        let mut claims = holes.clone();
        for &(first, last) in self.lost.as_slice() {
            let last = last.min(self.last_seq);
            let mut ends = holes.as_slice().iter();
            if first <= last && ends.any(|hole| last.saturating_add(1) == hole.0 || first == hole.1.saturating_add(1)) {
                claims.insert(first, last);
            }
        }
        claims
    }

    /// One claim as a loss.
    fn claim(&self, first_seq: u64, last_seq: u64, held: &[Run], until_ms: i64) -> Loss {
        let before = held.iter().rfind(|run| run.last_seq < first_seq);
        let after = held.iter().find(|run| run.first_seq > last_seq);
        let beside = after.filter(|run| run.first_seq == last_seq.saturating_add(1));
        let due_through = beside.map_or(self.due_through, |run| run.due_before);
        Loss {
            lost: Lost { epoch: self.epoch, first_seq, last_seq, due_through },
            count: due_through.saturating_sub(before.map_or(0, |run| run.due_through)),
            from_ms: before.map_or(self.opened_ms, |run| run.to_ms),
            to_ms: after.map_or(until_ms, |run| run.from_ms),
            reason: Reason::RelayRestored,
        }
    }
}

/// What of `1..=last_seq` is not known.
fn holes(known: &Ranges, last_seq: u64) -> impl Iterator<Item = (u64, u64)> {
    let ends = known.as_slice().iter().copied().chain([(last_seq.saturating_add(1), u64::MAX)]);
    let mut next = 1;
    ends.filter_map(move |(first, last)| {
        let hole = (next, first.saturating_sub(1).min(last_seq));
        next = next.max(last.saturating_add(1));
        (hole.0 <= hole.1).then_some(hole)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(lost: &[(u64, u64)]) -> Past {
        let lost = lost.iter().copied().collect();
        Past { epoch: Epoch(7), opened_ms: 5, last_seq: 100, due_through: 200, lost }
    }

    fn stored(ranges: &[(u64, u64)]) -> Ranges {
        ranges.iter().copied().collect()
    }

    fn run(first_seq: u64, last_seq: u64) -> Run {
        Run { first_seq, last_seq, due_before: 2 * (first_seq - 1), due_through: 2 * last_seq, from_ms: 10, to_ms: 20 }
    }

    fn claimed(past: &Past, stored: &Ranges, held: &[Run]) -> Vec<(u64, u64, u64, u64)> {
        let losses = past.missing(stored, held, 90);
        losses.iter().map(|l| (l.lost.first_seq, l.lost.last_seq, l.lost.due_through, l.count)).collect()
    }

    #[test]
    fn what_is_stored_held_or_lost_here_is_not_claimed() {
        let past = past(&[(41, 60)]);
        assert_eq!(past.missing(&stored(&[(1, 40)]), &[run(61, 100)], 90), []);
        assert_eq!(past.unaccounted(&stored(&[(1, 40)])), 40);
        assert_eq!(past.missing(&stored(&[(1, 50), (55, 100)]), &[], 90), []);
    }

    #[test]
    fn what_was_acknowledged_and_is_gone_is_claimed_with_its_due_samples() {
        assert_eq!(claimed(&past(&[]), &stored(&[]), &[]), [(1, 100, 200, 200)]);
        assert_eq!(claimed(&past(&[]), &stored(&[(1, 40)]), &[run(61, 100)]), [(41, 60, 120, 120)]);
        assert_eq!(claimed(&past(&[]), &stored(&[(81, 100)]), &[run(1, 10)]), [(11, 80, 200, 180)]);
        assert_eq!(claimed(&past(&[]), &stored(&[(1, 10), (21, 100)]), &[]), [(11, 20, 200, 200)]);
    }

    #[test]
    fn what_was_lost_here_beside_it_goes_along() {
        assert_eq!(claimed(&past(&[(31, 40), (61, 70)]), &stored(&[(1, 30)]), &[run(71, 100)]), [(31, 70, 140, 140)]);
    }

    #[test]
    fn holes_that_a_loss_parts_are_claimed_once() {
        let past = past(&[(1, 10), (21, 30)]);
        assert_eq!(claimed(&past, &stored(&[]), &[run(41, 100)]), [(1, 40, 80, 80)]);
    }

    #[test]
    fn what_is_not_certain_is_not_claimed() {
        let descriptor = Descriptor { opening: 1, epoch: Epoch(1), boot_id: String::new(), opened_ms: 0 };
        let mut uncertain = Past::uncertain(&descriptor);
        uncertain.last_seq = 50;
        assert_eq!(uncertain.missing(&Ranges::default(), &[], 90), []);
        let mut scattered = past(&[]);
        (0..=LOST_RANGES_MAX as u64).for_each(|n| scattered.lose(n * 2 + 1, n * 2 + 1));
        assert_eq!(scattered.missing(&Ranges::default(), &[], 90), []);
    }
}
