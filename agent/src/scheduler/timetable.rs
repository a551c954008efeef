//! When a metric is due: slots as plain numbers. Pure.
//!
//! An interval's slots lie on unix time, shifted by a phase that is a hash of the device's name: stable over
//! restarts, and spread over the devices. A cron expression's lie on the calendar of a time zone.

use chrono::TimeZone;
use satellite_shared::config::Schedule;

use super::crontab::{Crontab, InvalidCrontab};

/// Cron slots are counted one by one, up to so many: more than eleven days of one each second.
pub const SLOTS_COUNTED_MAX: u64 = 1_000_000;

/// The slots of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timetable {
    /// At `n * every_ms + phase_ms` for every n.
    Every {
        /// The interval.
        every_ms: i64,
        /// From 0 to below the interval.
        phase_ms: i64,
    },
    /// When the calendar says so.
    Calendar(Box<Crontab>),
}

/// Why a schedule has no slots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cron `{text}`: {source}")]
pub struct TimetableError {
    text: String,
    source: InvalidCrontab,
}

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
                Ok(Self::Every { every_ms, phase_ms })
            }
            Schedule::Cron(text) => match Crontab::parse(text) {
                Ok(crontab) => Ok(Self::Calendar(Box::new(crontab))),
                Err(source) => Err(TimetableError { text: text.chars().take(200).collect(), source }),
            },
        }
    }

    /// Whether it follows the calendar.
    #[must_use]
    pub fn is_cron(&self) -> bool {
        matches!(self, Self::Calendar(_))
    }

    /// Its interval, where it has one.
    #[must_use]
    pub fn every_ms(&self) -> Option<u64> {
        match self {
            Self::Every { every_ms, .. } => u64::try_from(*every_ms).ok(),
            Self::Calendar(_) => None,
        }
    }

    /// The first slot after a time; `None` where there is none in this century.
    #[must_use]
    pub fn next_after<Z: TimeZone>(&self, t_ms: i64, zone: &Z) -> Option<i64> {
        match self {
            Self::Every { every_ms, phase_ms } => {
                let index = t_ms.checked_sub(*phase_ms)?.div_euclid(*every_ms).checked_add(1)?;
                index.checked_mul(*every_ms)?.checked_add(*phase_ms)
            }
            Self::Calendar(crontab) => crontab.next_after(t_ms.div_euclid(1000), zone)?.checked_mul(1000),
        }
    }

    /// How many slots lie after one time and not after another; of a cron expression's, at most
    /// [`SLOTS_COUNTED_MAX`].
    #[must_use]
    pub fn count_between<Z: TimeZone>(&self, after_ms: i64, through_ms: i64, zone: &Z) -> u64 {
        match self {
            Self::Every { every_ms, phase_ms } => {
                let index = |t_ms: i64| t_ms.saturating_sub(*phase_ms).div_euclid(*every_ms);
                u64::try_from(index(through_ms).saturating_sub(index(after_ms))).unwrap_or(0)
            }
            Self::Calendar(_) => {
                let (mut count, mut at_ms) = (0, after_ms);
                while count < SLOTS_COUNTED_MAX {
                    match self.next_after(at_ms, zone) {
                        Some(next_ms) if next_ms <= through_ms => at_ms = next_ms,
                        Some(_) | None => break,
                    }
                    count += 1;
                }
                count
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::Utc;
    use proptest::prelude::*;

    use super::*;

    fn every(every_ms: u64, seed: &str) -> Timetable {
        Timetable::parse(&Schedule::Every(Duration::from_millis(every_ms)), seed).unwrap()
    }

    fn cron(text: &str) -> Timetable {
        Timetable::parse(&Schedule::Cron(text.to_owned()), "").unwrap()
    }

    #[test]
    fn devices_spread_and_each_keeps_its_phase() {
        let phases: std::collections::BTreeSet<_> =
            (0..50).map(|n| every(10_000, &format!("device-{n}")).next_after(0, &Utc)).collect();
        assert!(phases.len() > 45);
        assert_eq!(every(10_000, "nas"), every(10_000, "nas"));
        assert_eq!(every(10_000, "nas"), Timetable::Every { every_ms: 10_000, phase_ms: 6_616 });
    }

    #[test]
    fn a_slot_of_the_calendar_is_after_the_time_and_counted_through_it() {
        let minutely = cron("* * * * *");
        assert_eq!(minutely.next_after(59_999, &Utc), Some(60_000));
        assert_eq!(minutely.next_after(60_000, &Utc), Some(120_000));
        assert_eq!(minutely.next_after(-1, &Utc), Some(0));
        assert_eq!(minutely.count_between(60_000, 120_000, &Utc), 1);
        assert_eq!(minutely.count_between(59_999, 120_000, &Utc), 2);
        assert_eq!(minutely.count_between(120_000, 60_000, &Utc), 0);
        assert!(minutely.is_cron() && minutely.every_ms().is_none());
    }

    #[test]
    fn an_expression_that_is_wrong_is_quoted() {
        let error = Timetable::parse(&Schedule::Cron("0 0 31 2 *".into()), "").unwrap_err();
        assert_eq!(error.to_string(), "cron `0 0 31 2 *`: it never comes: there is no such day");
    }

    #[test]
    fn no_time_is_too_far() {
        for t_ms in [i64::MIN, i64::MIN / 1000, -1, 0, i64::MAX / 1000, i64::MAX] {
            for timetable in [every(1, ""), every(60_000, "x"), cron("* * * * *"), cron("0 8 * * 6#1")] {
                assert!(timetable.next_after(t_ms, &Utc).is_none_or(|next_ms| next_ms > t_ms));
            }
        }
        assert_eq!(cron("0 8 * * *").next_after(i64::MAX, &Utc), None);
        assert!(every(1_000, "").count_between(i64::MIN, i64::MAX, &Utc) > 0);
    }

    proptest! {
        #[test]
        fn counting_is_walking(every_ms in 1u64..100_000, seed in "[a-z]{0,8}", start in -1_000_000i64..1_000_000, span in 0i64..500_000) {
            let timetable = every(every_ms.max(500), &seed);
            let (mut count, mut at) = (0, start);
            while let Some(next) = timetable.next_after(at, &Utc).filter(|next| *next <= start + span) {
                prop_assert!(next > at);
                (count, at) = (count + 1, next);
            }
            prop_assert_eq!(timetable.count_between(start, start + span, &Utc), count);
        }
    }
}
