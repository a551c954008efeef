//! Where an object of the archive lies: `samples/date=2026-11-21/hour=07/<batch>-<n>.parquet`.
//!
//! The folders are Hive partitions, which DuckDB, pyarrow and Polars prune by. A record lies in the hour of its own
//! time, but where that time can't be right (a decade or more from when it arrived) it lies in the hour of its
//! arrival: a satellite without a clock shall not scatter objects over the centuries. The true time is stored anyway.
//!
//! Pure: names in, names out.

use std::fmt;

use time::OffsetDateTime;

const HOUR_MS: i64 = 3_600_000;
const DECADE_MS: i64 = 10 * 366 * 24 * HOUR_MS;

/// The years that every reader can hold: 0001 to 9999.
pub const TIME_MS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// Hours one batch may touch, so that one commit is a bounded number of objects.
pub const HOURS_MAX: usize = 200;

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Samples, partitioned by date and hour.
    Samples,
    /// Gaps, partitioned by date.
    Gaps,
}

impl Table {
    /// The folder it lies in.
    #[must_use]
    pub fn folder(self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::Gaps => "gaps",
        }
    }
}

/// An hour of UTC, counted since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(i64);

impl Hour {
    /// The hour that a record of this time, arrived at that time, is filed under.
    #[must_use]
    pub fn filed(time_ms: i64, received_ms: i64) -> Self {
        let plausible = TIME_MS.contains(&time_ms) && time_ms.abs_diff(received_ms) <= DECADE_MS.unsigned_abs();
        Self::of(if plausible { time_ms } else { received_ms })
    }

    /// The hour of this time, or the nearest that a date can be written for.
    #[must_use]
    pub fn of(time_ms: i64) -> Self {
        Self(time_ms.clamp(*TIME_MS.start(), *TIME_MS.end()).div_euclid(HOUR_MS))
    }

    /// The first hour of the same day.
    #[must_use]
    pub fn midnight(self) -> Self {
        Self(self.0.div_euclid(24) * 24)
    }

    /// The first millisecond of the hour.
    #[must_use]
    pub fn start_ms(self) -> i64 {
        self.0.saturating_mul(HOUR_MS)
    }

    fn date(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.0.saturating_mul(3600)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// The folder of this hour, or of its day.
#[must_use]
pub fn folder(table: Table, hour: Hour) -> String {
    let date = hour.date();
    let day = format!("{}/date={:04}-{:02}-{:02}", table.folder(), date.year(), u8::from(date.month()), date.day());
    match table {
        Table::Samples => format!("{day}/hour={:02}", date.hour()),
        Table::Gaps => day,
    }
}

/// The key of a batch's n-th object.
#[must_use]
pub fn key(table: Table, hour: Hour, batch: &BatchId, n: usize) -> String {
    format!("{}/{batch}-{n}.parquet", folder(table, hour))
}

/// The start of the hour, or day for gaps, that a key is filed under; `None` where the archive did not write it.
#[must_use]
pub fn filed_under(table: Table, key: &str) -> Option<Hour> {
    let rest = key.strip_prefix(table.folder())?.strip_prefix("/date=")?;
    let (date, rest) = rest.split_once('/')?;
    let mut parts = date.splitn(3, '-').map(str::parse::<i32>);
    let (Some(Ok(year)), Some(Ok(month)), Some(Ok(day))) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let month = time::Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = time::Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()?;
    let hour = match table {
        Table::Samples => rest.strip_prefix("hour=")?.split_once('/')?.0.parse::<i64>().ok()?,
        Table::Gaps => 0,
    };
    let named = rest.ends_with(".parquet") && (0..24).contains(&hour);
    named.then(|| Hour(date.midnight().assume_utc().unix_timestamp() / 3600 + hour))
}

/// The batch that a key is of, and which of its objects; `None` where the archive did not write it.
#[must_use]
pub fn batch_of(key: &str) -> Option<(&str, usize)> {
    let name = key.rsplit('/').next()?.strip_suffix(".parquet")?;
    let (batch, n) = name.split_once('-')?;
    let named = batch.len() == 26 && batch.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'v').contains(&c));
    named.then_some((batch, n.parse().ok()?))
}

/// One commit's name: sorts by when it was opened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(String);

impl BatchId {
    /// A name for a batch opened now.
    #[must_use]
    pub fn new(wall_ms: i64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&wall_ms.max(0).to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(data_encoding::BASE32HEX_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// The name as keys and the registry hold it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // 2026-11-21T07:59:59.999Z
    const NOW_MS: i64 = 1_795_247_999_999;

    #[test]
    fn a_key_says_date_hour_and_batch() {
        let id = BatchId::new(NOW_MS, [0xab; 10]);
        let hour = Hour::filed(NOW_MS, NOW_MS);
        assert_eq!(key(Table::Samples, hour, &id, 3), format!("samples/date=2026-11-21/hour=07/{id}-3.parquet"));
        assert_eq!(key(Table::Gaps, hour, &id, 4), format!("gaps/date=2026-11-21/{id}-4.parquet"));
        assert_eq!(filed_under(Table::Samples, &key(Table::Samples, hour, &id, 0)), Some(hour));
        assert_eq!(filed_under(Table::Gaps, &key(Table::Gaps, hour, &id, 0)), Some(hour.midnight()));
        assert_eq!(batch_of(&key(Table::Gaps, hour, &id, 4)), Some((id.as_str(), 4)));
        assert_eq!(batch_of("samples/date=2026-11-21/hour=07/other-1.parquet"), None);
    }

    #[test]
    fn hours_before_1970_are_hours_too() {
        let hour = Hour::of(-1);
        assert_eq!(folder(Table::Samples, hour), "samples/date=1969-12-31/hour=23");
        assert_eq!(hour.start_ms(), -HOUR_MS);
    }

    #[test]
    fn an_absurd_time_is_filed_under_its_arrival() {
        for absurd in [0, -5, i64::MIN, i64::MAX, 5_000_000_000_000] {
            assert_eq!(Hour::filed(absurd, NOW_MS), Hour::of(NOW_MS), "{absurd}");
        }
        let year_ago = NOW_MS - 365 * 24 * HOUR_MS;
        assert_eq!(Hour::filed(year_ago, NOW_MS), Hour::of(year_ago));
    }

    #[test]
    fn every_time_has_a_folder() {
        assert_eq!(folder(Table::Gaps, Hour::of(i64::MIN)), "gaps/date=0001-01-01");
        assert_eq!(folder(Table::Samples, Hour::of(i64::MAX)), "samples/date=9999-12-31/hour=23");
    }

    #[test]
    fn foreign_keys_are_not_the_archives() {
        for key in
            ["samples/x.parquet", "samples/date=2026-13-01/hour=00/a-0.parquet", "samples/date=2026-11-21/a", "x"]
        {
            assert_eq!(filed_under(Table::Samples, key), None, "{key}");
        }
        assert_eq!(filed_under(Table::Samples, "samples/date=2026-11-21/hour=24/a-0.parquet"), None);
        assert_eq!(filed_under(Table::Samples, "samples/date=2026-11-21/hour=07/a-0.parquet#1"), None);
    }

    #[test]
    fn batches_sort_by_time() {
        let older = BatchId::new(NOW_MS, [0xff; 10]);
        let newer = BatchId::new(NOW_MS + 1, [0; 10]);
        assert!(older < newer);
        assert_eq!(older.as_str().len(), 26);
    }
}
