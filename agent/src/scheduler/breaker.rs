//! Leaves a device alone that keeps failing: after some failures in a row, one poll a back-off. Pure.

/// Failures in a row after which a device is left alone.
const FAILURES_MIN: u32 = 3;
/// The longest that it is left alone.
const BACK_OFF_MS_MAX: i64 = 5 * 60_000;

/// How one device fared lately.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    open_until_ms: Option<i64>,
}

impl Breaker {
    /// Whether the device is left alone now.
    #[must_use]
    pub fn is_open(&self, now_ms: i64) -> bool {
        // A timeline that went back must not leave a device alone for longer than a back-off.
        self.open_until_ms.is_some_and(|until| now_ms < until && until - now_ms <= BACK_OFF_MS_MAX)
    }

    /// A poll failed. The back-off doubles from the device's interval on.
    pub fn fail(&mut self, now_ms: i64, every_ms: u64) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MIN {
            let every_ms = i64::try_from(every_ms).unwrap_or(i64::MAX).max(1);
            let doublings = (self.failures - FAILURES_MIN + 1).min(20);
            let back_off_ms = every_ms.saturating_mul(1 << doublings).min(BACK_OFF_MS_MAX);
            self.open_until_ms = Some(now_ms.saturating_add(back_off_ms));
        }
    }

    /// A poll succeeded.
    pub fn succeed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_left_alone_after_three_failures_and_ever_longer() {
        let mut breaker = Breaker::default();
        breaker.fail(0, 10_000);
        breaker.fail(10_000, 10_000);
        assert!(!breaker.is_open(10_001));
        breaker.fail(20_000, 10_000);
        assert!(breaker.is_open(39_999) && !breaker.is_open(40_000));
        breaker.fail(40_000, 10_000);
        assert!(breaker.is_open(79_999) && !breaker.is_open(80_000));
        for _ in 0..100 {
            breaker.fail(100_000, 10_000);
        }
        assert!(breaker.is_open(399_999) && !breaker.is_open(400_000));
    }

    #[test]
    fn one_good_poll_ends_it() {
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            breaker.fail(0, 10_000);
        }
        breaker.succeed();
        assert!(!breaker.is_open(1));
    }
}
