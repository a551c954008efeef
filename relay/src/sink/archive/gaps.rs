//! The table of gaps: what is missing and why, one row a gap, one Parquet object a day.
//!
//! `count` is how many due samples the row explains that were neither stored nor explained before, so that stored
//! samples and the sum of `count` are the due samples; `reported` is what the satellite said. They differ only where
//! it declared records lost of which it never heard that they had arrived.

use std::sync::{Arc, LazyLock};

use arrow_array::{ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use parquet::file::properties::WriterProperties;

use crate::sink::archive::layout::Hour;
use crate::sink::archive::{EncodeError, sheet};
use crate::sink::{Batch, GapRow};

/// Columns that rows are sorted by, as positions in the schema.
const SORTED_BY: [i32; 2] = [2, 0];

static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    let time = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("from", time(), false),
        Field::new("to", time(), false),
        Field::new("satellite", DataType::Utf8, false),
        Field::new("device", DataType::Utf8, true),
        Field::new("metric", DataType::Utf8, true),
        Field::new("count", DataType::UInt64, false),
        Field::new("reported", DataType::UInt64, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
        Field::new("epoch", DataType::Utf8, false),
        Field::new("seq", DataType::UInt64, false),
        Field::new("lost_epoch", DataType::Utf8, true),
        Field::new("lost_first_seq", DataType::UInt64, true),
        Field::new("lost_last_seq", DataType::UInt64, true),
    ]))
});

/// Each day's rows as one Parquet object, in order of the days.
///
/// # Errors
/// Only where the writer itself fails.
pub(super) fn encode(batch: &Batch, manifest: &mut Option<String>) -> Result<Vec<(Hour, Vec<u8>)>, EncodeError> {
    let mut rows: Vec<&GapRow> = batch.gaps.iter().collect();
    rows.sort_by_key(|row| {
        (row.hour, &batch.satellites[row.satellite as usize], row.gap.from_ms, row.gap.to_ms, row.epoch, row.seq)
    });
    let properties = sheet::properties(&SORTED_BY).build();
    let objects = rows.chunk_by(|a, b| a.hour == b.hour).map(|rows| {
        let sheet = sheet(batch, rows, properties.clone(), manifest.take())?;
        Ok((rows[0].hour, sheet))
    });
    objects.collect()
}

fn sheet(
    batch: &Batch,
    rows: &[&GapRow],
    properties: WriterProperties,
    manifest: Option<String>,
) -> Result<Vec<u8>, EncodeError> {
    let time = |of: fn(&GapRow) -> i64| -> ArrayRef {
        let times = rows.iter().map(|row| of(row));
        Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let number = |of: fn(&GapRow) -> Option<u64>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| of(row)).collect::<UInt64Array>())
    };
    let text = |of: fn(&GapRow) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| of(row)).collect::<StringArray>())
    };
    let owned = |of: fn(&GapRow) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(|row| of(row)).collect::<StringArray>())
    };
    let satellites = rows.iter().map(|row| batch.satellites[row.satellite as usize].as_str());
    let columns = vec![
        time(|row| row.gap.from_ms),
        time(|row| row.gap.to_ms),
        Arc::new(StringArray::from_iter_values(satellites)),
        text(|row| row.gap.device.as_ref().map(|device| device.as_str())),
        text(|row| row.gap.metric.as_deref()),
        number(|row| Some(row.explains)),
        number(|row| Some(row.gap.count)),
        text(|row| Some(row.gap.reason.as_str())),
        text(|row| Some(&row.gap.detail)),
        owned(|row| Some(row.epoch.to_string())),
        number(|row| Some(row.seq)),
        owned(|row| row.gap.lost.map(|lost| lost.epoch.to_string())),
        number(|row| row.gap.lost.map(|lost| lost.first_seq)),
        number(|row| row.gap.lost.map(|lost| lost.last_seq)),
    ];
    let mut sheet = sheet::writer(Arc::clone(&SCHEMA), properties, manifest)?;
    sheet.write(&RecordBatch::try_new(Arc::clone(&SCHEMA), columns)?)?;
    Ok(sheet.into_inner()?)
}
