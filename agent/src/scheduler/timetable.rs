//! When a metric is due: slots as plain numbers. Pure.

use chrono::TimeZone;
use satellite_shared::config::Schedule;

/// The slots of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timetable {
    every_ms: i64,
    phase_ms: i64,
}

/// Why a schedule has no slots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TimetableError(String);

impl Timetable {
    /// The slots of a schedule; the seed spreads those of different devices.
    ///
    /// # Errors
    /// Says what is wrong with a cron expression.
    pub fn parse(schedule: &Schedule, phase_seed: &str) -> Result<Self, TimetableError> {
        match schedule {
            Schedule::Every(every) => {
                let every_ms = i64::try_from(every.as_millis()).unwrap_or(i64::MAX).max(1);
                let phase_ms = i64::from(crc32fast::hash(phase_seed.as_bytes())) % every_ms;
                Ok(Self { every_ms, phase_ms })
            }
            Schedule::Cron(text) => Err(TimetableError(format!("`{text}`: cron is not read yet"))),
        }
    }

    /// Whether it follows the calendar.
    #[must_use]
    pub fn is_cron(&self) -> bool {
        false
    }

    /// Its interval, where it has one.
    #[must_use]
    pub fn every_ms(&self) -> Option<u64> {
        u64::try_from(self.every_ms).ok()
    }

    /// The first slot after a time.
    #[must_use]
    pub fn next_after<Z: TimeZone>(&self, t_ms: i64, _zone: &Z) -> Option<i64> {
        let index = (t_ms - self.phase_ms).div_euclid(self.every_ms) + 1;
        Some(index * self.every_ms + self.phase_ms)
    }

    /// How many slots lie after one time and not after another.
    #[must_use]
    pub fn count_between<Z: TimeZone>(&self, after_ms: i64, through_ms: i64, _zone: &Z) -> u64 {
        let index = |t: i64| (t - self.phase_ms).div_euclid(self.every_ms);
        u64::try_from(index(through_ms) - index(after_ms)).unwrap_or(0)
    }
}
