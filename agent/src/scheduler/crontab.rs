//! What crontab(5) has taught people, on top of the `cron` crate, which knows other field counts and weekday numbers.
//!
//! Five fields (minute hour day month weekday), or six with seconds first. Numbers, names, lists, ranges, steps;
//! weekdays 0 and 7 are Sunday; `6#1` is the first Saturday of a month, `5L` its last Friday, `L` its last day. A day
//! counts when the day of the month *or* the weekday fits, where both are restricted (neither has a `*`).
//!
//! Clock changes are taken as crontab(5) takes them. What is due at certain times of day (no `*` in seconds, minutes
//! and hours) runs once each time: a time that the clock leaps over is made up for right after the leap, one that
//! comes twice counts the first time. What recurs (`*/5 …`) follows real time: nothing is made up for, nothing rests.
//! `croner` differs in one thing: it calls only single values certain times, so `0,30 2 * * *` runs twice there.
//!
//! The fields of time and month are the engine's; which days count is decided here. Pure.

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, Offset as _, TimeDelta, TimeZone, Utc};
use cron::Schedule;

/// An expression that names no day in so many days names none at all: February 29 may be eight years away.
const DAYS_SEARCHED_MAX: u32 = 366 * 12;
/// How far ahead of a time a clock change may repeat or skip what stands around it.
const CHANGE_HORIZON_S: i64 = 25 * 3600;
/// No zone changes its clock twice in so short a time.
const CHANGE_STEP_S: i64 = 900;
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Why a text is not a crontab(5) expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCrontab {
    /// Too few or too many fields.
    #[error("{0} fields, where there are five (minute hour day month weekday), or six with seconds first")]
    Fields(usize),
    /// A field can't be read.
    #[error("{field} `{text}`: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What stands there.
        text: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// There is no such day.
    #[error("it never comes: there is no such day")]
    Never,
}

/// Times of a calendar at which something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crontab {
    engine: Schedule,
    days: Days,
    /// Due at certain times of day, rather than every so often.
    certain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Days {
    of_month: u64,
    last_of_month: bool,
    month_restricted: bool,
    of_week: u64,
    nth_of_week: Vec<(u32, u32)>,
    last_of_week: u64,
    week_restricted: bool,
}

impl Crontab {
    /// Reads an expression.
    ///
    /// # Errors
    /// Says which field is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, InvalidCrontab> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (seconds, rest) = match fields.as_slice() {
            [seconds, rest @ ..] if rest.len() == 5 => (*seconds, rest),
            rest if rest.len() == 5 => ("0", rest),
            other => return Err(InvalidCrontab::Fields(other.len())),
        };
        let second = Field { name: "second", min: 0, max: 59, names: &[] }.read(seconds)?;
        let minute = Field { name: "minute", min: 0, max: 59, names: &[] }.read(rest[0])?;
        let hour = Field { name: "hour", min: 0, max: 23, names: &[] }.read(rest[1])?;
        let month = Field { name: "month", min: 1, max: 12, names: &MONTHS }.read(rest[3])?;
        let days = Days::parse(rest[2], rest[4])?;

        let engine = engine([second, minute, hour, month]);
        let certain = ![seconds, rest[0], rest[1]].iter().any(|field| field.contains('*'));
        let crontab = Self { engine, days, certain };
        let start = NaiveDate::from_ymd_opt(2026, 1, 1).and_then(|day| day.and_hms_opt(0, 0, 0));
        if start.and_then(|start| crontab.next_civil(start)).is_none() {
            return Err(InvalidCrontab::Never);
        }
        Ok(crontab)
    }

    /// The first time after `after_s` (seconds since 1970 UTC) at which it is due in a zone.
    pub fn next_after<Z: TimeZone>(&self, after_s: i64, zone: &Z) -> Option<i64> {
        if self.certain { self.next_certain(after_s, zone) } else { self.next_recurring(after_s, zone) }
    }

    fn next_certain<Z: TimeZone>(&self, after_s: i64, zone: &Z) -> Option<i64> {
        let mut civil = civil_at(after_s, zone)?;
        loop {
            civil = self.next_civil(civil)?;
            // In the hour that comes twice, times of its first pass are met again: they are past.
            let instant_s = instant_of(civil, zone)?;
            if instant_s > after_s {
                return Some(instant_s);
            }
        }
    }

    fn next_recurring<Z: TimeZone>(&self, after_s: i64, zone: &Z) -> Option<i64> {
        let (mut from_s, mut after) = (after_s, civil_at(after_s, zone)?);
        loop {
            let civil = self.next_civil(after)?;
            let leapt = |moment_s: i64| Some((moment_s, civil_at(moment_s, zone)? - TimeDelta::seconds(1)));
            let offset_s = offset_at(from_s, zone)?;
            let due_s = civil.and_utc().timestamp() - offset_s;
            if let Some(change_s) = next_change(from_s, due_s.min(from_s + CHANGE_HORIZON_S), zone) {
                // The clock shows another time from here on: look again from there, that moment included.
                (from_s, after) = leapt(change_s)?;
            } else if due_s <= from_s + CHANGE_HORIZON_S {
                return Some(due_s);
            } else if let Some(due) = zone.from_local_datetime(&civil).earliest() {
                return Some(due.timestamp());
            } else {
                (from_s, after) = leapt(instant_of(civil, zone)?)?;
            }
        }
    }

    /// The next time of the calendar, without any zone.
    fn next_civil(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let mut after = after;
        for _ in 0..DAYS_SEARCHED_MAX {
            let next = self.engine.after(&after.and_utc()).next()?.naive_utc();
            if self.days.count(next.date()) {
                return Some(next);
            }
            after = next.date().and_hms_opt(23, 59, 59)?;
        }
        None
    }
}

impl Days {
    fn parse(of_month: &str, of_week: &str) -> Result<Self, InvalidCrontab> {
        let mut days = Self {
            of_month: 0,
            last_of_month: false,
            month_restricted: !of_month.contains('*'),
            of_week: 0,
            nth_of_week: Vec::new(),
            last_of_week: 0,
            week_restricted: !of_week.contains('*'),
        };
        let month = Field { name: "day of month", min: 1, max: 31, names: &[] };
        for item in of_month.split(',') {
            if item.eq_ignore_ascii_case("l") {
                days.last_of_month = true;
            } else {
                days.of_month |= month.item(item)?;
            }
        }
        let week = Field { name: "weekday", min: 0, max: 7, names: &WEEKDAYS };
        for item in of_week.split(',') {
            if let Some((day, nth)) = item.split_once('#') {
                let nth = nth.parse().ok().filter(|nth| (1..=5).contains(nth));
                let nth = nth.ok_or_else(|| week.error(item, "after `#` stands 1 to 5"))?;
                days.nth_of_week.push((week.value(day, item)? % 7, nth));
            } else if let Some(day) = item.strip_suffix(['l', 'L']).filter(|day| !day.is_empty()) {
                days.last_of_week |= 1 << (week.value(day, item)? % 7);
            } else {
                let mask = week.item(item)?;
                days.of_week |= (mask & 0x7f) | (mask >> 7);
            }
        }
        Ok(days)
    }

    fn count(&self, date: NaiveDate) -> bool {
        match (self.month_restricted, self.week_restricted) {
            (true, true) => self.fits_month(date) || self.fits_week(date),
            (true, false) | (false, true) | (false, false) => self.fits_month(date) && self.fits_week(date),
        }
    }

    fn fits_month(&self, date: NaiveDate) -> bool {
        self.of_month & (1 << date.day()) != 0 || (self.last_of_month && is_last(date, 1))
    }

    fn fits_week(&self, date: NaiveDate) -> bool {
        let weekday = date.weekday().num_days_from_sunday();
        let nth = (date.day() - 1) / 7 + 1;
        self.of_week & (1 << weekday) != 0
            || self.nth_of_week.contains(&(weekday, nth))
            || (self.last_of_week & (1 << weekday) != 0 && is_last(date, 7))
    }
}

/// Whether so many days later it is another month.
fn is_last(date: NaiveDate, days: u64) -> bool {
    date.checked_add_days(chrono::Days::new(days)).is_none_or(|later| later.month() != date.month())
}

/// A field: its name, its numbers, and names for them.
struct Field {
    name: &'static str,
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

impl Field {
    /// The numbers that a list stands for, as bits.
    fn read(&self, text: &str) -> Result<u64, InvalidCrontab> {
        text.split(',').try_fold(0, |mask, item| Ok(mask | self.item(item)?))
    }

    fn item(&self, item: &str) -> Result<u64, InvalidCrontab> {
        let (range, step) = match item.split_once('/') {
            None => (item, 1),
            Some((range, step)) => {
                let step = step.parse().ok().filter(|step| (1..=self.max).contains(step));
                let step = step.ok_or_else(|| self.error(item, &format!("a step is 1 to {}", self.max)))?;
                if range != "*" && !range.contains('-') {
                    return Err(self.error(item, "a step needs a range: `*/5` or `10-59/5`"));
                }
                (range, step)
            }
        };
        let (first, last) = match range.split_once('-') {
            None if range == "*" => (self.min, self.max),
            None => {
                let value = self.value(range, item)?;
                (value, value)
            }
            Some((first, last)) => (self.value(first, item)?, self.value(last, item)?),
        };
        if first > last {
            return Err(self.error(item, "a range goes from the lower to the higher"));
        }
        let numbers = (first..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        Ok(numbers.fold(0, |mask, number| mask | 1 << number))
    }

    fn value(&self, text: &str, item: &str) -> Result<u32, InvalidCrontab> {
        let name = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = name.and_then(|at| u32::try_from(at).ok()).map(|at| at + u32::from(self.max == 12));
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        let found = named.or(number).filter(|number| (self.min..=self.max).contains(number));
        found.ok_or_else(|| {
            let names =
                if self.names.is_empty() { String::new() } else { format!(" or {} …", self.names[..2].join(", ")) };
            self.error(item, &format!("`{text}` is not {} to {}{names}", self.min, self.max))
        })
    }

    fn error(&self, text: &str, reason: &str) -> InvalidCrontab {
        InvalidCrontab::Field {
            field: self.name,
            text: text.chars().take(40).collect(),
            reason: reason.chars().take(120).collect(),
        }
    }
}

/// Every day at these seconds, minutes, hours and months.
fn engine(fields: [u64; 4]) -> Schedule {
    let [second, minute, hour, month] = fields.map(listed);
    let text = format!("{second} {minute} {hour} * {month} *");
    text.parse().expect("lists of numbers in range are the engine's language")
}

fn listed(mask: u64) -> String {
    let numbers: Vec<String> = (0..64).filter(|bit| mask & (1 << bit) != 0).map(|bit| bit.to_string()).collect();
    numbers.join(",")
}

fn offset_at<Z: TimeZone>(at_s: i64, zone: &Z) -> Option<i64> {
    let utc = DateTime::<Utc>::from_timestamp(at_s, 0)?;
    Some(i64::from(zone.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc()))
}

/// What a clock on the wall shows.
fn civil_at<Z: TimeZone>(at_s: i64, zone: &Z) -> Option<NaiveDateTime> {
    let shown_s = at_s.checked_add(offset_at(at_s, zone)?)?;
    Some(DateTime::<Utc>::from_timestamp(shown_s, 0)?.naive_utc())
}

/// When a clock on the wall shows this for the first time; where it leaps over it, the moment after the leap.
fn instant_of<Z: TimeZone>(civil: NaiveDateTime, zone: &Z) -> Option<i64> {
    if let Some(instant) = zone.from_local_datetime(&civil).earliest() {
        return Some(instant.timestamp());
    }
    let shown_s = civil.and_utc().timestamp();
    let (mut before_s, mut after_s) = (shown_s.checked_sub(30 * 3600)?, shown_s.checked_add(30 * 3600)?);
    while after_s - before_s > 1 {
        let middle_s = before_s + (after_s - before_s) / 2;
        if civil_at(middle_s, zone)? < civil { before_s = middle_s } else { after_s = middle_s }
    }
    Some(after_s)
}

/// The first moment after one and not after another at which the clock on the wall is set.
fn next_change<Z: TimeZone>(from_s: i64, through_s: i64, zone: &Z) -> Option<i64> {
    let offset_s = offset_at(from_s, zone)?;
    let mut same_s = from_s;
    while same_s < through_s {
        let mut other_s = (same_s + CHANGE_STEP_S).min(through_s);
        if offset_at(other_s, zone)? == offset_s {
            same_s = other_s;
            continue;
        }
        while other_s - same_s > 1 {
            let middle_s = same_s + (other_s - same_s) / 2;
            if offset_at(middle_s, zone)? == offset_s { same_s = middle_s } else { other_s = middle_s }
        }
        return Some(other_s);
    }
    None
}

#[cfg(test)]
mod tests {
    use chrono_tz::Tz;
    use croner::parser::{CronParser, Seconds};
    use proptest::prelude::*;

    use super::*;

    fn zone(name: &str) -> Tz {
        name.parse().unwrap()
    }

    /// The next times after a local time, as a clock on the wall and the offset show them.
    fn next(text: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
        let zone = zone(zone_name);
        let after = NaiveDateTime::parse_from_str(after, "%Y-%m-%d %H:%M").unwrap();
        let mut at_s = zone.from_local_datetime(&after).earliest().unwrap().timestamp();
        let crontab = Crontab::parse(text).unwrap();
        let mut shown = Vec::new();
        for _ in 0..count {
            at_s = crontab.next_after(at_s, &zone).unwrap();
            let local = DateTime::<Utc>::from_timestamp(at_s, 0).unwrap().with_timezone(&zone);
            shown.push(local.format("%a %m-%d %H:%M %z").to_string());
        }
        shown
    }

    fn check(text: &str, zone: &str, after: &str, expect: &[&str]) {
        assert_eq!(next(text, zone, after, expect.len()), expect, "{text} in {zone} after {after}");
    }

    #[test]
    fn days_are_what_crontab_says() {
        let berlin = "Europe/Berlin";
        let after = "2026-06-30 12:00";
        check("0 8 * * 6#1", berlin, after, &["Sat 07-04 08:00 +0200", "Sat 08-01 08:00 +0200"]);
        check("0 8 * * 0", berlin, after, &["Sun 07-05 08:00 +0200"]);
        check("0 8 * * 7", berlin, after, &["Sun 07-05 08:00 +0200"]);
        check("0 8 * * sun", berlin, after, &["Sun 07-05 08:00 +0200"]);
        check("0 8 * * MON-wed", berlin, after, &["Wed 07-01 08:00 +0200", "Mon 07-06 08:00 +0200"]);
        check(
            "0 8 * * 5-7",
            berlin,
            after,
            &["Fri 07-03 08:00 +0200", "Sat 07-04 08:00 +0200", "Sun 07-05 08:00 +0200"],
        );
        check("0 8 L * *", berlin, after, &["Fri 07-31 08:00 +0200", "Mon 08-31 08:00 +0200", "Wed 09-30 08:00 +0200"]);
        check("0 8 * * 5L", berlin, after, &["Fri 07-31 08:00 +0200", "Fri 08-28 08:00 +0200"]);
        check(
            "0 8 13 * fri",
            berlin,
            after,
            &["Fri 07-03 08:00 +0200", "Fri 07-10 08:00 +0200", "Mon 07-13 08:00 +0200"],
        );
        check("0 8 1,L feb *", berlin, after, &["Mon 02-01 08:00 +0100", "Sun 02-28 08:00 +0100"]);
        check("0 0 29 2 *", berlin, after, &["Tue 02-29 00:00 +0100", "Sun 02-29 00:00 +0100"]);
        check(
            "5-20/15 */12 * * *",
            berlin,
            after,
            &["Tue 06-30 12:05 +0200", "Tue 06-30 12:20 +0200", "Wed 07-01 00:05 +0200"],
        );
    }

    #[test]
    fn seconds_may_stand_first() {
        let crontab = Crontab::parse("*/20 * * * * *").unwrap();
        assert_eq!(crontab.next_after(60, &Utc), Some(80));
        assert_eq!(crontab.next_after(100, &Utc), Some(120));
        assert_eq!(Crontab::parse("0 8 * * *").unwrap().next_after(0, &Utc), Some(8 * 3600));
    }

    #[test]
    fn a_certain_time_runs_once_through_both_clock_changes() {
        let (berlin, los_angeles, lord_howe) = ("Europe/Berlin", "America/Los_Angeles", "Australia/Lord_Howe");
        let spring = ["Sun 03-29 03:00 +0200", "Mon 03-30 02:30 +0200"];
        check("30 2 * * *", berlin, "2026-03-28 12:00", &spring);
        check("0,30 2 * * *", berlin, "2026-03-28 12:00", &["Sun 03-29 03:00 +0200", "Mon 03-30 02:00 +0200"]);
        check("0 2,3 * * *", berlin, "2026-03-28 12:00", &["Sun 03-29 03:00 +0200", "Mon 03-30 02:00 +0200"]);
        check("30 2 * * *", berlin, "2026-10-25 00:00", &["Sun 10-25 02:30 +0200", "Mon 10-26 02:30 +0100"]);
        check("30 2 * * *", los_angeles, "2026-03-07 12:00", &["Sun 03-08 03:00 -0700", "Mon 03-09 02:30 -0700"]);
        check(
            "0,30 1 * * *",
            los_angeles,
            "2026-11-01 00:00",
            &["Sun 11-01 01:00 -0700", "Sun 11-01 01:30 -0700", "Mon 11-02 01:00 -0800"],
        );
        check("15 2 * * *", lord_howe, "2026-10-03 12:00", &["Sun 10-04 02:30 +1100", "Mon 10-05 02:15 +1100"]);
        check("45 1 * * *", lord_howe, "2026-04-04 12:00", &["Sun 04-05 01:45 +1100", "Mon 04-06 01:45 +1030"]);
        check("0 12 30 12 *", "Pacific/Apia", "2011-12-01 00:00", &["Sat 12-31 00:00 +1400", "Sun 12-30 12:00 +1400"]);
    }

    #[test]
    fn what_recurs_follows_real_time_through_both_clock_changes() {
        let (berlin, lord_howe) = ("Europe/Berlin", "Australia/Lord_Howe");
        check("*/30 * * * *", berlin, "2026-03-29 01:00", &["Sun 03-29 01:30 +0100", "Sun 03-29 03:00 +0200"]);
        check(
            "*/30 * * * *",
            berlin,
            "2026-10-25 02:00",
            &["Sun 10-25 02:30 +0200", "Sun 10-25 02:00 +0100", "Sun 10-25 02:30 +0100", "Sun 10-25 03:00 +0100"],
        );
        check("0 * * * *", lord_howe, "2026-04-05 01:00", &["Sun 04-05 02:00 +1030", "Sun 04-05 03:00 +1030"]);
        check(
            "*/30 1 * 11 *",
            "America/Los_Angeles",
            "2026-11-01 01:00",
            &["Sun 11-01 01:30 -0700", "Sun 11-01 01:00 -0800", "Sun 11-01 01:30 -0800", "Mon 11-02 01:00 -0800"],
        );
        check("*/30 0 24 4 *", "Africa/Cairo", "2026-04-01 00:00", &["Sat 04-24 00:00 +0200", "Sat 04-24 00:30 +0200"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [
            ("* * * *", "4 fields"),
            ("0 0 0 * * * 2026", "7 fields"),
            ("60 * * * *", "minute `60`: `60` is not 0 to 59"),
            ("* 24 * * *", "hour `24`"),
            ("* * 0 * *", "day of month `0`"),
            ("* * * 13 *", "month `13`: `13` is not 1 to 12 or jan, feb …"),
            ("* * * * 8", "weekday `8`"),
            ("* * * * 6#6", "after `#` stands 1 to 5"),
            ("* * * * 6-1", "from the lower to the higher"),
            ("*/0 * * * *", "a step is 1 to 59"),
            ("5/10 * * * *", "a step needs a range"),
            ("1,,2 * * * *", "minute ``"),
            ("-5 * * * *", "minute `-5`"),
            ("+5 * * * *", "minute `+5`"),
            ("99999999999 * * * *", "minute `99999999999`"),
            ("* * 15W * *", "day of month `15W`"),
            ("* * ? * *", "day of month `?`"),
            ("* * * * L", "weekday `L`"),
            ("0 0 31 2 *", "never comes"),
            ("0 0 30 feb *", "never comes"),
            ("0 0 31 4,6,9,11 *", "never comes"),
        ] {
            let error = Crontab::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    const ZONES: [&str; 7] = [
        "America/Los_Angeles",
        "Europe/Berlin",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Sao_Paulo",
        "Africa/Cairo",
        "UTC",
    ];

    /// The engine's calendar ends with the year 2100.
    const ENGINE_ENDS_S: i64 = 4_133_894_400;

    /// As croner has it.
    fn croner_next(text: &str, zone: &Tz, after_s: i64) -> i64 {
        let cron = CronParser::builder().seconds(Seconds::Optional).build().parse(text).unwrap();
        let after = DateTime::<Utc>::from_timestamp(after_s, 0).unwrap().with_timezone(zone);
        cron.find_next_occurrence(&after, false).unwrap().timestamp()
    }

    fn agrees(text: &str, zone_name: &str, after_s: i64, steps: usize) {
        let zone = zone(zone_name);
        let crontab = Crontab::parse(text).unwrap();
        let mut at_s = after_s;
        for _ in 0..steps {
            let shown = |at_s: i64| DateTime::<Utc>::from_timestamp(at_s, 0).unwrap().with_timezone(&zone).to_string();
            let theirs_s = croner_next(text, &zone, at_s);
            let Some(next_s) = crontab.next_after(at_s, &zone) else {
                // A fifth Sunday in February: 2088, then 2128.
                assert!(
                    theirs_s >= ENGINE_ENDS_S,
                    "`{text}` in {zone_name} after {}: {}",
                    shown(at_s),
                    shown(theirs_s)
                );
                return;
            };
            assert_eq!(shown(next_s), shown(theirs_s), "`{text}` in {zone_name} after {}", shown(at_s));
            at_s = next_s;
        }
    }

    #[test]
    fn the_fifth_sunday_of_a_february_comes_every_28_years_until_the_calendar_ends() {
        agrees("0 0 * 2 0#5", "America/Los_Angeles", 1_600_000_000, 4);
    }

    #[test]
    fn croner_agrees_around_every_clock_change() {
        for zone_name in ZONES {
            let zone = zone(zone_name);
            let mut at_s = 1_767_225_600; // 2026-01-01
            while let Some(change_s) = next_change(at_s, 1_830_297_600, &zone) {
                for text in
                    ["30 2 * * *", "0 0 * * *", "30 1 * * *", "15 2 * * 0", "*/10 * * * *", "0 * * * *", "*/15 1 * * *"]
                {
                    for before_s in [1, 1_800, 7_200, 90_000] {
                        agrees(text, zone_name, change_s - before_s, 12);
                    }
                }
                at_s = change_s;
            }
        }
    }

    fn field(min: u32, max: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            3 => Just("*".to_owned()),
            2 => (2..=max.min(20)).prop_map(|step| format!("*/{step}")),
            4 => (min..=max).prop_map(|number| number.to_string()),
            2 => (min..=max, min..=max).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            1 => (min..=max, min..=max).prop_map(|(a, b)| format!("{a},{b}")),
        ]
    }

    fn weekday() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => Just("*".to_owned()),
            3 => (0u32..=7).prop_map(|day| day.to_string()),
            2 => (0u32..=6, 1u32..=5).prop_map(|(day, nth)| format!("{day}#{nth}")),
            1 => (0u32..=6).prop_map(|day| format!("{day}L")),
            1 => prop::sample::select(WEEKDAYS.to_vec()).prop_map(str::to_owned),
        ]
    }

    /// Single values, so that croner calls the same things certain times; else a `*` somewhere.
    fn time() -> impl Strategy<Value = String> {
        prop_oneof![
            (0u32..60, 0u32..24).prop_map(|(minute, hour)| format!("{minute} {hour}")),
            field(0, 59).prop_map(|minute| format!("{minute} *")),
            (2u32..30, field(0, 23)).prop_map(|(step, hour)| format!("*/{step} {hour}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn croner_agrees_on_any_expression(
            time in time(),
            day in prop_oneof![3 => Just("*".to_owned()), 2 => (1u32..=28).prop_map(|d| d.to_string()), 1 => Just("L".to_owned())],
            month in field(1, 12),
            weekday in weekday(),
            zone in 0usize..7,
            after_s in 1_600_000_000i64..1_900_000_000,
        ) {
            agrees(&format!("{time} {day} {month} {weekday}"), ZONES[zone], after_s, 4);
        }

        #[test]
        fn no_text_panics(text in "[-*/,#L0-9a-z ]{0,40}") {
            if let Ok(crontab) = Crontab::parse(&text) {
                let next = crontab.next_after(1_790_000_000, &zone("Europe/Berlin"));
                prop_assert!(next.is_none_or(|next| next > 1_790_000_000));
            }
        }

        #[test]
        fn times_only_go_forward(time in time(), zone_n in 0usize..7, after_s in 1_600_000_000i64..1_900_000_000) {
            let crontab = Crontab::parse(&format!("{time} * * *")).unwrap();
            let zone = zone(ZONES[zone_n]);
            let next_s = crontab.next_after(after_s, &zone).unwrap();
            prop_assert!(next_s > after_s);
            // Whatever lies between has the same next time.
            let between_s = after_s + (next_s - after_s) / 2;
            prop_assert_eq!(crontab.next_after(between_s, &zone), Some(next_s));
        }
    }
}
