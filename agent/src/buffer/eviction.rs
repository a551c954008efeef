//! Which blocks must go when the buffer is over a bound, and what their loss amounts to. Pure.
//!
//! The oldest go first. Space that sled frees is reused, not given back; so a disk that is short of room makes the
//! buffer shrink by twice what each commit adds, and not to nothing at once.

use satellite_shared::gap::{Lost, Reason};
use satellite_shared::wire::block::Header;

use super::Loss;

/// A wall clock before this, 2025-01-01, was never set.
const SANE_MS: i64 = 1_735_689_600_000;

/// How things stand at a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pressure {
    /// Bytes of blocks and series held before the commit.
    pub(super) held: u64,
    /// Bytes of blocks and series that it adds.
    pub(super) incoming: u64,
    /// Bytes that may be held.
    pub(super) bytes_max: u64,
    /// Whether the file system has less room than it must keep.
    pub(super) disk_short: bool,
    /// The wall clock, where it is to be trusted.
    pub(super) now_ms: Option<i64>,
    /// How old a block may become, in milliseconds.
    pub(super) age_max_ms: i64,
}

impl Pressure {
    /// Whether the oldest block must go after `freed` bytes have gone.
    pub(super) fn takes(&self, oldest: &Header, freed: u64) -> bool {
        let after = self.held.saturating_add(self.incoming).saturating_sub(freed);
        after > self.bytes_max
            || (self.disk_short && freed < self.incoming.saturating_mul(2))
            || self.is_too_old(oldest)
    }

    fn is_too_old(&self, oldest: &Header) -> bool {
        let made_ms = oldest.made.wall_ms;
        self.now_ms.is_some_and(|now_ms| {
            now_ms >= SANE_MS && made_ms >= SANE_MS && now_ms.saturating_sub(made_ms) > self.age_max_ms
        })
    }
}

/// Losses of one commit: what is consecutive in one epoch is one.
#[derive(Debug, Default)]
pub(super) struct Tally {
    losses: Vec<Loss>,
    count: u64,
}

impl Tally {
    /// Takes in a block that goes; `count` is what it was the first to account for.
    pub(super) fn add(&mut self, header: &Header, count: u64, reason: Reason) {
        let made_ms = header.made.wall_ms;
        let lost = Lost {
            epoch: header.epoch,
            first_seq: header.first_seq,
            last_seq: header.last_seq(),
            due_through: header.due_through(),
        };
        self.count = self.count.saturating_add(count);
        self.carry(Loss { lost, count, from_ms: made_ms, to_ms: made_ms, reason });
    }

    /// Takes in a loss whose explanation goes before it arrived: it must be explained again.
    pub(super) fn carry(&mut self, loss: Loss) {
        match self.losses.iter_mut().find(|other| joins(other, &loss)) {
            Some(other) => *other = joined(other, &loss),
            None => self.losses.push(loss),
        }
    }

    /// Samples that went.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The losses.
    pub(super) fn into_losses(self) -> Vec<Loss> {
        self.losses
    }
}

/// Whether two losses are consecutive, so that one gap can explain both.
pub(super) fn joins(a: &Loss, b: &Loss) -> bool {
    let follows = |x: &Lost, y: &Lost| x.last_seq.saturating_add(1) == y.first_seq;
    a.reason == b.reason && a.lost.epoch == b.lost.epoch && (follows(&a.lost, &b.lost) || follows(&b.lost, &a.lost))
}

/// Both as one.
pub(super) fn joined(a: &Loss, b: &Loss) -> Loss {
    Loss {
        lost: Lost {
            epoch: a.lost.epoch,
            first_seq: a.lost.first_seq.min(b.lost.first_seq),
            last_seq: a.lost.last_seq.max(b.lost.last_seq),
            due_through: a.lost.due_through.max(b.lost.due_through),
        },
        count: a.count.saturating_add(b.count),
        from_ms: a.from_ms.min(b.from_ms),
        to_ms: a.to_ms.max(b.to_ms),
        reason: a.reason,
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::Now;
    use satellite_shared::id::Epoch;
    use satellite_shared::wire::block::{ClockQuality, FrameKind};

    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn header(epoch: u128, first_seq: u64, made_ms: i64) -> Header {
        Header {
            kind: FrameKind::Samples,
            quality: ClockQuality::Synchronised,
            epoch: Epoch(epoch),
            first_seq,
            count: 10,
            due: 10,
            due_before: first_seq - 1,
            made: Now { wall_ms: made_ms, mono_ms: 0 },
        }
    }

    fn calm() -> Pressure {
        Pressure {
            held: 500,
            incoming: 100,
            bytes_max: 1_000,
            disk_short: false,
            now_ms: Some(SANE_MS + 60 * DAY_MS),
            age_max_ms: 30 * DAY_MS,
        }
    }

    #[test]
    fn nothing_goes_below_the_bounds() {
        assert!(!calm().takes(&header(1, 1, SANE_MS + 59 * DAY_MS), 0));
    }

    #[test]
    fn blocks_go_until_the_commit_fits() {
        let full = Pressure { held: 1_000, ..calm() };
        let young = header(1, 1, SANE_MS + 59 * DAY_MS);
        assert!(full.takes(&young, 0) && full.takes(&young, 99));
        assert!(!full.takes(&young, 100));
    }

    #[test]
    fn a_short_disk_takes_twice_what_comes_and_no_more() {
        let short = Pressure { disk_short: true, ..calm() };
        let young = header(1, 1, SANE_MS + 59 * DAY_MS);
        assert!(short.takes(&young, 199));
        assert!(!short.takes(&young, 200));
    }

    #[test]
    fn age_counts_only_by_clocks_that_were_set() {
        let old = header(1, 1, SANE_MS + 29 * DAY_MS);
        assert!(calm().takes(&old, 0));
        assert!(!calm().takes(&header(1, 1, 5_000), 0), "made before the clock was set");
        assert!(!Pressure { now_ms: None, ..calm() }.takes(&old, 0), "nobody trusts the clock now");
        assert!(!Pressure { now_ms: Some(9_000), ..calm() }.takes(&old, 0), "the clock was never set");
    }

    #[test]
    fn consecutive_blocks_of_an_epoch_are_one_loss() {
        let mut tally = Tally::default();
        tally.add(&header(1, 1, 50), 10, Reason::Evicted);
        tally.add(&header(1, 11, 40), 7, Reason::Evicted);
        tally.add(&header(1, 31, 60), 10, Reason::Evicted);
        tally.add(&header(2, 41, 70), 10, Reason::Evicted);
        assert_eq!(tally.count(), 37);
        let losses = tally.into_losses();
        let ranges: Vec<_> = losses.iter().map(|l| (l.lost.epoch.0, l.lost.first_seq, l.lost.last_seq)).collect();
        assert_eq!(ranges, [(1, 1, 20), (1, 31, 40), (2, 41, 50)]);
        assert_eq!((losses[0].count, losses[0].from_ms, losses[0].to_ms, losses[0].lost.due_through), (17, 40, 50, 20));
    }
}
