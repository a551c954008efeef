//! The time by which certificates are judged: the machine's clock, but never earlier than a time known to be past.
//!
//! A machine without a battery starts in 1970; the last time at which its own clock and the relay's agreed is kept in
//! the identity directory and is a floor. A clock that is ahead is not corrected: nobody here could prove it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use satellite_shared::clock::{Clock, Now};

const FILE: &str = "last-good-time";
/// Closer to the time kept before, a new one is not worth a write.
const WORTH_MS: i64 = 6 * 3600 * 1000;

/// The time for rustls.
#[derive(Clone)]
pub struct VerificationTime {
    clock: Arc<dyn Clock>,
    floor_ms: i64,
}

impl std::fmt::Debug for VerificationTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerificationTime({})", self.now_ms())
    }
}

impl VerificationTime {
    /// The clock without a floor.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, floor_ms: 0 }
    }

    /// The clock with the floor that the identity directory keeps; none where there is none.
    #[must_use]
    pub fn load(clock: Arc<dyn Clock>, identity_dir: &Path) -> Self {
        let kept = std::fs::read_to_string(identity_dir.join(FILE)).ok();
        let floor_ms = kept.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { clock, floor_ms }
    }

    /// Milliseconds since 1970 UTC.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.clock.now().wall_ms.max(self.floor_ms)
    }

    /// Both clocks, the wall not earlier than the floor.
    #[must_use]
    pub fn now(&self) -> Now {
        let now = self.clock.now();
        Now { wall_ms: now.wall_ms.max(self.floor_ms), ..now }
    }

    /// The relay has let us in and shown its clock: the earlier of the two is surely past.
    ///
    /// # Errors
    /// Where the time can't be kept.
    pub fn raise(&mut self, relay_ms: i64, identity_dir: &Path) -> std::io::Result<()> {
        let agreed_ms = self.clock.now().wall_ms.min(relay_ms);
        if agreed_ms < self.floor_ms.saturating_add(WORTH_MS) {
            return Ok(());
        }
        self.floor_ms = agreed_ms;
        super::keystore::write_private(&identity_dir.join(FILE), format!("{agreed_ms}\n").as_bytes())
    }
}

impl TimeProvider for VerificationTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = Duration::from_millis(u64::try_from(self.now_ms()).unwrap_or(0));
        Some(UnixTime::since_unix_epoch(since))
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::ManualClock;

    use super::*;

    const NOW_MS: i64 = 1_790_000_000_000;

    #[test]
    fn a_clock_that_starts_in_1970_is_raised_to_the_last_good_time() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW_MS, 5));
        let mut time = VerificationTime::load(clock.clone(), dir.path());
        time.raise(NOW_MS + 10_000, dir.path()).unwrap();
        clock.step_wall(0);
        assert_eq!(time.now_ms(), NOW_MS);
        assert_eq!(VerificationTime::load(clock, dir.path()).now_ms(), NOW_MS);
    }

    #[test]
    fn neither_clock_alone_can_raise_the_floor() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(NOW_MS, 5));
        let mut time = VerificationTime::load(clock.clone(), dir.path());
        time.raise(NOW_MS * 2, dir.path()).unwrap();
        clock.step_wall(NOW_MS * 3);
        time.raise(NOW_MS, dir.path()).unwrap();
        clock.step_wall(0);
        assert_eq!(time.now_ms(), NOW_MS);
    }
}
