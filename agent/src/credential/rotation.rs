//! When to ask for the next certificate: the policy, pure. The uplink does the asking.
//!
//! At the time the relay named; a request that got no certificate is made again after 4 % of the certificate's life.

use satellite_shared::clock::Now;

const RETRY_PERCENT: u64 = 4;
const RETRY_MS_MIN: u64 = 1_000;
const RETRY_MS_MAX: u64 = 12 * 3600 * 1000;

/// When to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    renew_after_ms: i64,
    not_after_ms: i64,
    asked_ms: Option<u64>,
}

impl Renewal {
    /// For a certificate with these times, wall clock.
    #[must_use]
    pub fn new(renew_after_ms: i64, not_after_ms: i64) -> Self {
        Self { renew_after_ms, not_after_ms, asked_ms: None }
    }

    /// The relay names another time for the same certificate.
    pub fn move_to(&mut self, renew_after_ms: i64) {
        self.renew_after_ms = renew_after_ms;
    }

    /// Whether to ask now; the answer yes counts as asked.
    pub fn ask(&mut self, now: Now) -> bool {
        let due = now.wall_ms >= self.renew_after_ms;
        let rested = self.asked_ms.is_none_or(|asked| now.mono_ms >= asked.saturating_add(self.retry_ms()));
        if due && rested {
            self.asked_ms = Some(now.mono_ms);
        }
        due && rested
    }

    /// Whether the certificate has ended.
    #[must_use]
    pub fn is_expired(&self, wall_ms: i64) -> bool {
        wall_ms >= self.not_after_ms
    }

    /// How long the certificate is still good.
    #[must_use]
    pub fn left_ms(&self, wall_ms: i64) -> u64 {
        u64::try_from(self.not_after_ms.saturating_sub(wall_ms)).unwrap_or(0)
    }

    /// Renewal is asked for near the middle of the life, so the second half is half of it.
    fn retry_ms(&self) -> u64 {
        let half_ms = u64::try_from(self.not_after_ms.saturating_sub(self.renew_after_ms)).unwrap_or(0);
        (half_ms.saturating_mul(2 * RETRY_PERCENT) / 100).clamp(RETRY_MS_MIN, RETRY_MS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn at(ms: i64) -> Now {
        Now { wall_ms: ms, mono_ms: ms.unsigned_abs() }
    }

    #[test]
    fn a_certificate_is_asked_for_at_its_time_and_again_after_four_percent_of_its_life() {
        let mut renewal = Renewal::new(35 * DAY_MS / 10, 7 * DAY_MS);
        assert!(!renewal.ask(at(3 * DAY_MS)));
        let first = 36 * DAY_MS / 10;
        assert!(renewal.ask(at(first)));
        assert!(!renewal.ask(at(first + DAY_MS / 4)));
        assert!(renewal.ask(at(first + 7 * DAY_MS * 4 / 100)));
    }

    #[test]
    fn what_is_left_of_a_certificate_ends_at_nothing() {
        let renewal = Renewal::new(5, 10);
        assert_eq!((renewal.left_ms(3), renewal.left_ms(10), renewal.left_ms(11)), (7, 0, 0));
        assert_eq!(Renewal::new(0, i64::MAX).left_ms(i64::MIN), i64::MAX.unsigned_abs());
    }

    #[test]
    fn times_that_make_no_sense_neither_spin_nor_silence_it() {
        let mut renewal = Renewal::new(0, i64::MIN);
        assert!(renewal.ask(at(10)));
        assert!(!renewal.ask(at(11)));
        assert!(renewal.ask(at(10 + 1_000)));
        let mut renewal = Renewal::new(i64::MIN, i64::MAX);
        assert!(renewal.ask(at(10)));
        assert!(renewal.ask(at(10 + DAY_MS / 2)));
    }
}
