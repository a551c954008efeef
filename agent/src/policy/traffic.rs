//! How much may be sent, and to how many new targets: decided purely, the time is given.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// How long a request may wait for its turn, in milliseconds; beyond, it is refused.
const WAIT_MS_MAX: u64 = 3_000;
/// The burst that passes at once: what a second allows, in microseconds.
const BURST_US: u64 = 1_000_000;
/// How long a target that nobody asks for stays known, in milliseconds.
const KNOWN_MS: u64 = 24 * HOUR_MS;
const HOUR_MS: u64 = 3_600_000;
/// Targets that are known at once; the oldest are forgotten beyond.
const KNOWN_MAX: usize = 10_000;

/// A bucket of requests that fills evenly.
#[derive(Debug)]
pub(super) struct Pace {
    step_us: u64,
    /// When the bucket would be full again if nothing more came.
    full_at_us: u64,
}

impl Pace {
    /// So many a second; at least one.
    #[must_use]
    pub(super) fn new(per_second: u32) -> Self {
        Self { step_us: BURST_US / u64::from(per_second.max(1)), full_at_us: 0 }
    }

    /// Takes a turn and says how many milliseconds to wait for it; `None` where that would be too long.
    pub(super) fn take(&mut self, now_ms: u64) -> Option<u64> {
        let now_us = now_ms.saturating_mul(1000);
        let full_at_us = self.full_at_us.max(now_us).saturating_add(self.step_us);
        let wait_ms = full_at_us.saturating_sub(BURST_US.max(self.step_us)).saturating_sub(now_us).div_ceil(1000);
        if wait_ms > WAIT_MS_MAX {
            return None;
        }
        self.full_at_us = full_at_us;
        Some(wait_ms)
    }
}

/// The targets that were spoken to, so that a configuration that keeps changing can't sweep the house.
#[derive(Debug)]
pub(super) struct Targets {
    new_per_hour_max: usize,
    known: HashMap<(IpAddr, u16), u64>,
    new_at_ms: VecDeque<u64>,
    swept_at_ms: u64,
}

impl Targets {
    /// At most so many new ones in any hour.
    #[must_use]
    pub(super) fn new(new_per_hour_max: u32) -> Self {
        let new_per_hour_max = usize::try_from(new_per_hour_max).unwrap_or(usize::MAX);
        Self { new_per_hour_max, known: HashMap::new(), new_at_ms: VecDeque::new(), swept_at_ms: 0 }
    }

    /// Whether a target is known or may become so now.
    pub(super) fn admit(&mut self, ip: IpAddr, port: u16, now_ms: u64) -> bool {
        if let Some(seen_ms) = self.known.get_mut(&(ip, port)) {
            *seen_ms = now_ms;
            return true;
        }
        while self.new_at_ms.front().is_some_and(|&at| at.saturating_add(HOUR_MS) <= now_ms) {
            self.new_at_ms.pop_front();
        }
        if self.new_at_ms.len() >= self.new_per_hour_max {
            return false;
        }
        if self.known.len() >= KNOWN_MAX || self.swept_at_ms.saturating_add(HOUR_MS) <= now_ms {
            self.sweep(now_ms);
        }
        self.new_at_ms.push_back(now_ms);
        self.known.insert((ip, port), now_ms);
        true
    }

    fn sweep(&mut self, now_ms: u64) {
        self.swept_at_ms = now_ms;
        self.known.retain(|_, seen_ms| seen_ms.saturating_add(KNOWN_MS) > now_ms);
        if self.known.len() >= KNOWN_MAX {
            let mut seen: Vec<u64> = self.known.values().copied().collect();
            let middle = seen.len() / 2;
            let (_, &mut median, _) = seen.select_nth_unstable(middle);
            self.known.retain(|_, seen_ms| *seen_ms > median);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_requests_passes_at_once_and_the_rest_waits_its_turn() {
        let mut pace = Pace::new(10);
        let waits: Vec<_> = (0..14).map(|_| pace.take(1_000).unwrap()).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 100, 200, 300, 400]);
        assert_eq!(pace.take(60_000), Some(0));
    }

    #[test]
    fn a_request_that_would_wait_too_long_is_refused_and_costs_no_turn() {
        let mut pace = Pace::new(10);
        assert_eq!((0..1_000).filter(|_| pace.take(0).is_some()).count(), 40);
        assert_eq!(pace.take(100), Some(3_000));
        assert_eq!(pace.take(100), None);
    }

    #[test]
    fn one_a_second_is_a_pace_too() {
        let mut pace = Pace::new(1);
        assert_eq!([pace.take(0), pace.take(0), pace.take(1_000)], [Some(0), Some(1_000), Some(1_000)]);
    }

    #[test]
    fn new_targets_are_counted_by_the_hour_and_known_ones_are_free() {
        let mut targets = Targets::new(2);
        let ip = |last| IpAddr::from([10, 0, 0, last]);
        assert!(targets.admit(ip(1), 80, 0) && targets.admit(ip(1), 81, 10));
        assert!(!targets.admit(ip(2), 80, 20), "a third");
        assert!(targets.admit(ip(1), 80, 30), "known");
        assert!(targets.admit(ip(2), 80, HOUR_MS), "the first is an hour old");
        assert!(!targets.admit(ip(3), 80, HOUR_MS));
        assert!(targets.admit(ip(3), 80, HOUR_MS + 10));
    }

    #[test]
    fn a_target_that_nobody_asks_for_is_new_again_after_a_day() {
        let mut targets = Targets::new(1);
        let ip = IpAddr::from([10, 0, 0, 1]);
        assert!(targets.admit(ip, 80, 0));
        assert!(targets.admit(IpAddr::from([10, 0, 0, 2]), 80, KNOWN_MS));
        assert!(!targets.admit(ip, 80, KNOWN_MS), "forgotten, and this hour's one is taken");
    }

    #[test]
    fn what_is_known_is_bounded() {
        let mut targets = Targets::new(u32::MAX);
        for n in 0..30_000 {
            assert!(targets.admit(IpAddr::from([10, 0, 0, 1]), n, u64::from(n)));
        }
        assert!(targets.known.len() <= KNOWN_MAX);
    }
}
