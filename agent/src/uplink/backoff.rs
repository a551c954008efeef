//! How long to wait before the next attempt to reach the relay.
//!
//! Full jitter: a random share of a bound that doubles from one second to five minutes, so that a thousand satellites
//! that lost the same relay do not come back together. What the relay asks for wins over what we would do.
//! Pure: the random share is passed in.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// A session that lasted this long was a good one: the next failure is the first again.
const GOOD_SESSION: Duration = Duration::from_secs(60);
const PERMANENT: Duration = Duration::from_secs(3600);
/// What a relay may ask for at most, so that a wrong number does not silence a satellite for a year.
const ASKED_MAX: Duration = Duration::from_secs(24 * 3600);

/// How an attempt or a session ended, as far as waiting is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Never got in, or the link was lost after being in for so long.
    Lost {
        /// How long the satellite was authenticated; zero where it never was.
        authenticated: Duration,
    },
    /// The relay said no, and why waiting helps.
    Refused {
        /// Not sooner than this.
        retry_after: Duration,
    },
    /// The relay said no, and somebody has to do something.
    Permanent {
        /// Not sooner than this.
        retry_after: Duration,
    },
    /// The relay is going away for a while.
    Drained {
        /// Not sooner than this.
        after: Duration,
        /// And spread over this.
        spread: Duration,
    },
    /// We closed it, to come back with another certificate.
    Planned,
}

/// Counts failures.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after an ending; `share` is random in 0..=1.
    pub fn after(&mut self, ending: Ending, share: f64) -> Duration {
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.5 };
        match ending {
            Ending::Lost { authenticated } => {
                if authenticated >= GOOD_SESSION {
                    self.failures = 0;
                }
                self.next(share)
            }
            Ending::Refused { retry_after } => retry_after.min(ASKED_MAX) + self.next(share),
            Ending::Permanent { retry_after } => PERMANENT.mul_f64(0.8 + 0.4 * share).max(retry_after.min(ASKED_MAX)),
            Ending::Drained { after, spread } => {
                self.failures = 0;
                after.min(ASKED_MAX) + spread.min(ASKED_MAX).mul_f64(share)
            }
            Ending::Planned => {
                self.failures = 0;
                FIRST.mul_f64(share)
            }
        }
    }

    fn next(&mut self, share: f64) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEVER_IN: Ending = Ending::Lost { authenticated: Duration::ZERO };

    #[test]
    fn the_bound_doubles_from_a_second_to_five_minutes() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..11).map(|_| backoff.after(NEVER_IN, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn a_minute_of_session_makes_the_next_failure_the_first_again() {
        let mut backoff = Backoff::default();
        for _ in 0..9 {
            backoff.after(NEVER_IN, 1.0);
        }
        let short = Ending::Lost { authenticated: Duration::from_secs(59) };
        assert_eq!(backoff.after(short, 1.0).as_secs(), 300);
        let good = Ending::Lost { authenticated: Duration::from_secs(60) };
        assert_eq!(backoff.after(good, 1.0).as_secs(), 1);
    }

    #[test]
    fn what_the_relay_asks_for_is_a_floor() {
        let refused = Ending::Refused { retry_after: Duration::from_secs(40) };
        assert!(Backoff::default().after(refused, 0.0) >= Duration::from_secs(40));
        let drained = Ending::Drained { after: Duration::from_secs(10), spread: Duration::from_secs(30) };
        assert_eq!(Backoff::default().after(drained, 0.0).as_secs(), 10);
        assert_eq!(Backoff::default().after(drained, 1.0).as_secs(), 40);
    }

    #[test]
    fn a_permanent_refusal_is_retried_about_once_an_hour() {
        let permanent = Ending::Permanent { retry_after: Duration::ZERO };
        assert_eq!(Backoff::default().after(permanent, 0.0).as_secs(), 2880);
        assert_eq!(Backoff::default().after(permanent, 1.0).as_secs(), 4320);
        let longer = Ending::Permanent { retry_after: Duration::from_secs(7200) };
        assert_eq!(Backoff::default().after(longer, 0.5).as_secs(), 7200);
    }

    #[test]
    fn a_relay_can_not_silence_a_satellite_for_longer_than_a_day() {
        let refused = Ending::Refused { retry_after: Duration::MAX };
        assert!(Backoff::default().after(refused, 0.0) <= ASKED_MAX);
        let drained = Ending::Drained { after: Duration::MAX, spread: Duration::MAX };
        assert!(Backoff::default().after(drained, 1.0) <= 2 * ASKED_MAX);
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_its_bound(failures in 0u32..100, share in any::<f64>()) {
            let mut backoff = Backoff { failures };
            prop_assert!(backoff.after(NEVER_IN, share) <= LONGEST);
        }
    }
}
