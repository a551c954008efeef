//! The gap ledger: what was due and is not a record, with its reason.
//!
//! A device that stays away gives one gap that grows, not one a slot: like gaps are joined while they follow each
//! other. Open gaps go into the recorder's notes with every commit, so a crash forgets none. Pure: time is passed in.

use std::collections::VecDeque;

use satellite_shared::gap::{self, Gap, Reason};
use satellite_shared::id::DeviceName;

/// How long a gap may grow before it is written.
const OPEN_MS_MAX: i64 = 15_000;
/// Open gaps at most; more are written at once.
const OPEN_MAX: usize = 64;
/// Gaps kept for `satellite gaps`.
const RECENT_MAX: usize = 1_000;
/// `since_ms` of a gap that grows no further.
const CLOSED: i64 = i64::MIN;

/// Slots that were due and gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// The device.
    pub device: DeviceName,
    /// The metric; empty for the device as a whole.
    pub metric: String,
    /// The first slot.
    pub from_ms: i64,
    /// The last slot.
    pub to_ms: i64,
    /// How many samples they would have given.
    pub count: u64,
    /// Why.
    pub reason: Reason,
    /// What exactly happened.
    pub detail: String,
}

/// Gaps that may still grow, and those written last.
#[derive(Debug, Default)]
pub struct Ledger {
    open: Vec<Open>,
    recent: VecDeque<Gap>,
}

#[derive(Debug)]
struct Open {
    since_ms: i64,
    gap: Gap,
}

impl Open {
    fn is_ripe(&self, now_ms: i64) -> bool {
        // A wall clock that went back must not hold a gap for ever.
        self.since_ms == CLOSED || !(0..OPEN_MS_MAX).contains(&now_ms.saturating_sub(self.since_ms))
    }
}

impl Ledger {
    /// Books slots that gave nothing.
    pub fn miss(&mut self, missed: Missed, now_ms: i64) {
        if missed.count == 0 {
            return;
        }
        let metric = (!missed.metric.is_empty()).then_some(missed.metric);
        let detail = gap::detail(missed.detail);
        let like = self.open.iter_mut().find(|open| {
            open.since_ms != CLOSED
                && open.gap.device.as_ref() == Some(&missed.device)
                && open.gap.metric == metric
                && open.gap.reason == missed.reason
                && open.gap.detail == detail
                && missed.from_ms >= open.gap.from_ms
        });
        if let Some(open) = like {
            open.gap.to_ms = open.gap.to_ms.max(missed.to_ms);
            open.gap.count = open.gap.count.saturating_add(missed.count);
            return;
        }
        let gap = Gap {
            device: Some(missed.device),
            metric,
            from_ms: missed.from_ms,
            to_ms: missed.to_ms.max(missed.from_ms),
            count: missed.count,
            reason: missed.reason,
            detail,
            lost: None,
        };
        self.open.push(Open { since_ms: now_ms, gap });
    }

    /// A metric gives samples again: its gap grows no further.
    pub fn close(&mut self, device: &DeviceName, metric: &str) {
        let of_metric =
            |gap: &Gap| gap.device.as_ref() == Some(device) && gap.metric.as_deref().unwrap_or("") == metric;
        for open in self.open.iter_mut().filter(|open| of_metric(&open.gap)) {
            open.since_ms = CLOSED;
        }
    }

    /// Whether no gap is open.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether [`take`](Self::take) would give something.
    #[must_use]
    pub fn has_ripe(&self, now_ms: i64) -> bool {
        self.open.len() > OPEN_MAX || self.open.iter().any(|open| open.is_ripe(now_ms))
    }

    /// The gaps that are to be written now; `all` of them when the satellite stops.
    pub fn take(&mut self, now_ms: i64, all: bool) -> Vec<Gap> {
        let over = self.open.len().saturating_sub(OPEN_MAX);
        let mut index = 0;
        let mut taken = Vec::new();
        self.open.retain(|open| {
            index += 1;
            let ripe = all || index <= over || open.is_ripe(now_ms);
            if ripe {
                taken.push(open.gap.clone());
            }
            !ripe
        });
        for gap in &taken {
            self.remember(gap.clone());
        }
        taken
    }

    /// Keeps a gap for `satellite gaps`.
    pub fn remember(&mut self, gap: Gap) {
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(gap);
    }

    /// The gaps written last and those still open, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Gap> {
        self.recent.iter().chain(self.open.iter().map(|open| &open.gap)).cloned().collect()
    }

    /// The gaps that are open, for the notes.
    #[must_use]
    pub fn open(&self) -> Vec<Gap> {
        self.open.iter().map(|open| open.gap.clone()).collect()
    }

    /// Takes up gaps that were open when the satellite ended: they are written at once.
    pub fn reopen(&mut self, gaps: Vec<Gap>) {
        self.open.extend(gaps.into_iter().map(|gap| Open { since_ms: CLOSED, gap }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(at_ms: i64, reason: Reason) -> Missed {
        Missed {
            device: "ups".parse().unwrap(),
            metric: String::new(),
            from_ms: at_ms,
            to_ms: at_ms,
            count: 3,
            reason,
            detail: "no answer".into(),
        }
    }

    #[test]
    fn like_gaps_that_follow_each_other_are_one() {
        let mut ledger = Ledger::default();
        ledger.miss(missed(1_000, Reason::Timeout), 1_000);
        ledger.miss(missed(2_000, Reason::Timeout), 2_000);
        ledger.miss(missed(3_000, Reason::Refused), 3_000);
        assert_eq!(ledger.take(4_000, false), []);
        let gaps = ledger.take(4_000, true);
        assert_eq!(gaps.len(), 2);
        assert_eq!((gaps[0].from_ms, gaps[0].to_ms, gaps[0].count), (1_000, 2_000, 6));
    }

    #[test]
    fn a_gap_tells_no_more_than_the_relay_takes() {
        let mut ledger = Ledger::default();
        for at_ms in [1_000, 2_000] {
            let detail = format!("left alone after failures: {}", "ä".repeat(100));
            ledger.miss(Missed { detail, ..missed(at_ms, Reason::BackOff) }, at_ms);
        }
        let gaps = ledger.take(3_000, true);
        assert_eq!((gaps.len(), gaps[0].detail.len()), (1, 199));
    }

    #[test]
    fn a_gap_is_written_when_it_is_old_or_its_device_is_back() {
        let mut ledger = Ledger::default();
        ledger.miss(missed(1_000, Reason::Timeout), 1_000);
        assert_eq!(ledger.take(1_000 + OPEN_MS_MAX, false).len(), 1);
        ledger.miss(missed(60_000, Reason::Timeout), 60_000);
        ledger.close(&"ups".parse().unwrap(), "");
        assert_eq!(ledger.take(60_001, false).len(), 1);
    }

    #[test]
    fn open_gaps_survive_a_crash_through_the_notes() {
        let mut ledger = Ledger::default();
        ledger.miss(missed(1_000, Reason::Timeout), 1_000);
        let notes = ledger.open();
        let mut after = Ledger::default();
        after.reopen(notes.clone());
        assert_eq!(after.take(1_500, false), notes);
    }

    #[test]
    fn a_clock_that_goes_back_holds_no_gap_for_ever() {
        let mut ledger = Ledger::default();
        ledger.miss(missed(1_000_000, Reason::Timeout), 1_000_000);
        assert_eq!(ledger.take(5, false).len(), 1);
    }

    #[test]
    fn the_number_of_open_gaps_is_bounded() {
        let mut ledger = Ledger::default();
        for index in 0..200 {
            let mut one = missed(1_000, Reason::Timeout);
            one.metric = format!("m{index}");
            ledger.miss(one, 1_000);
        }
        assert_eq!(ledger.take(1_001, false).len(), 200 - OPEN_MAX);
    }
}
