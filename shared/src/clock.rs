//! What time it is, asked in one place so that a test can turn it.
//!
//! Two clocks: the wall, which people read and which may jump, and a monotonic one
//! that goes on through suspend (`CLOCK_BOOTTIME`).

use std::sync::Mutex;
use std::time::SystemTime;

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970-01-01 UTC; may jump.
    pub wall_ms: i64,
    /// Milliseconds since some start, suspend included; never goes back.
    pub mono_ms: u64,
}

/// Where the time comes from.
pub trait Clock: Send + Sync {
    /// Both clocks, read together.
    fn now(&self) -> Now;
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the Clock")]
    fn now(&self) -> Now {
        let wall_ms = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let mono_ms = boot.tv_sec.unsigned_abs() * 1000 + boot.tv_nsec.unsigned_abs() / 1_000_000;
        Now { wall_ms, mono_ms }
    }
}

/// A clock that stands still until it is turned.
#[derive(Debug)]
pub struct ManualClock(Mutex<Now>);

impl ManualClock {
    /// A clock that shows this.
    #[must_use]
    pub fn new(wall_ms: i64, mono_ms: u64) -> Self {
        Self(Mutex::new(Now { wall_ms, mono_ms }))
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, ms: u64) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        now.wall_ms = now.wall_ms.saturating_add_unsigned(ms);
        now.mono_ms += ms;
    }

    /// Sets the wall clock alone, as an operator or a time server would.
    pub fn step_wall(&self, wall_ms: i64) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).wall_ms = wall_ms;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
