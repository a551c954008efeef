//! Reads the archive back: the newest rows that a query asks for, hour by hour from the newest.
//!
//! It works beside a running relay, since objects appear whole and are never changed. An object that vanishes
//! meanwhile is skipped; one that can't be read is named in the answer, and the others are read all the same.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, TimestampMillisecondType, UInt64Type};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use serde::{Serialize, Serializer};

use crate::sink::archive::layout::{self, Hour, Table};
use crate::sink::archive::store::{Entry, Store, StoreError};

/// An object larger than this was not written by a relay.
const OBJECT_BYTES_MAX: u64 = 1 << 30;

/// What to look for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Of this satellite only, by id.
    pub satellite: Option<String>,
    /// Of this metric only.
    pub metric: Option<String>,
    /// Not older than this.
    pub since_ms: i64,
    /// The newest so many.
    pub limit: usize,
}

/// What was found, oldest first.
#[derive(Debug)]
pub struct Answer<Row> {
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether the limit left older rows out.
    pub truncated: bool,
    /// Objects that can't be read, and why.
    pub unreadable: Vec<String>,
}

/// One sample as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// When it was measured.
    pub time_ms: i64,
    /// By whom.
    pub satellite: String,
    /// Of which device.
    pub device: String,
    /// The metric.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What was measured; as text where JSON has no number for it.
    #[serde(serialize_with = "json_number")]
    pub value: f64,
    /// Counter, gauge, …
    pub kind: String,
    /// The unit, empty where there is none.
    pub unit: String,
    /// Whose number.
    pub epoch: String,
    /// Its number.
    pub seq: u64,
}

/// One gap as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GapRow {
    /// The first slot that is missing.
    pub from_ms: i64,
    /// The last slot that is missing.
    pub to_ms: i64,
    /// Whose.
    pub satellite: String,
    /// Of which device; all of them where there is none.
    pub device: Option<String>,
    /// Of which metric; all of them where there is none.
    pub metric: Option<String>,
    /// How many due samples it explains.
    pub count: u64,
    /// How many the satellite said.
    pub reported: u64,
    /// Why.
    pub reason: String,
    /// What exactly happened.
    pub detail: String,
    /// Whose number.
    pub epoch: String,
    /// Its number.
    pub seq: u64,
    /// Where numbered records were lost: whose numbers.
    pub lost_epoch: Option<String>,
    /// The first of them.
    pub lost_first_seq: Option<u64>,
    /// The last of them.
    pub lost_last_seq: Option<u64>,
}

/// Why an object is not one of the archive's.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no Parquet file, or a damaged one.
    #[error("not a whole Parquet file: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// A part of it can't be decoded.
    #[error("damaged: {0}")]
    Columns(#[from] arrow_schema::ArrowError),
    /// It is damaged in a way that the library which reads Parquet does not expect.
    #[error("damaged: reading it panicked")]
    Panicked,
    /// It lacks a column, or holds another type in it.
    #[error("column `{0}` is missing or of another type")]
    Column(&'static str),
    /// It is larger than what a relay writes.
    #[error("{0} bytes, more than a relay ever writes")]
    TooLarge(u64),
}

/// The newest samples that the query asks for.
///
/// # Errors
/// Where the store can't be listed or does not give an object.
pub async fn samples(store: &Store, query: &Query) -> Result<Answer<Sample>, StoreError> {
    read(store, Table::Samples, query, |bytes| decode_samples(bytes, query), |row| row.time_ms).await
}

/// The newest gaps that the query asks for.
///
/// # Errors
/// Where the store can't be listed or does not give an object.
pub async fn gaps(store: &Store, query: &Query) -> Result<Answer<GapRow>, StoreError> {
    read(store, Table::Gaps, query, |bytes| decode_gaps(bytes, query), |row| row.to_ms).await
}

async fn read<Row>(
    store: &Store,
    table: Table,
    query: &Query,
    decode: impl Fn(Bytes) -> Result<Vec<Row>, Unreadable>,
    time: impl Fn(&Row) -> i64,
) -> Result<Answer<Row>, StoreError> {
    let mut answer = Answer { rows: Vec::new(), truncated: false, unreadable: Vec::new() };
    let oldest = match table {
        Table::Samples => Hour::of(query.since_ms),
        Table::Gaps => Hour::of(query.since_ms).midnight(),
    };
    'days: for day in days(store, table, oldest).await? {
        let mut hours: BTreeMap<Hour, Vec<_>> = BTreeMap::new();
        for entry in store.list(&day).await? {
            if let Some(hour) = layout::filed_under(table, &entry.key).filter(|&hour| hour >= oldest) {
                hours.entry(hour).or_default().push(entry);
            }
        }
        for entries in hours.into_values().rev() {
            // All of one hour is read before the limit is looked at: its objects overlap in time.
            for entry in entries {
                match decoded(store, &entry, &decode).await? {
                    Ok(rows) => answer.rows.extend(rows),
                    Err(error) => answer.unreadable.push(format!("{}: {error}", entry.key)),
                }
                keep_newest(&mut answer, query.limit, &time);
            }
            if answer.truncated {
                break 'days;
            }
        }
    }
    answer.rows.sort_by_key(time);
    Ok(answer)
}

async fn decoded<Row>(
    store: &Store,
    entry: &Entry,
    decode: impl Fn(Bytes) -> Result<Vec<Row>, Unreadable>,
) -> Result<Result<Vec<Row>, Unreadable>, StoreError> {
    if entry.bytes > OBJECT_BYTES_MAX {
        return Ok(Err(Unreadable::TooLarge(entry.bytes)));
    }
    match store.get(&entry.key).await {
        Ok(bytes) => Ok(decode(bytes)),
        Err(error) if error.is_not_found() => Ok(Ok(Vec::new())),
        Err(error) => Err(error),
    }
}

/// The folders of the days to look at, newest first.
async fn days(store: &Store, table: Table, oldest: Hour) -> Result<Vec<String>, StoreError> {
    let first = layout::folder(Table::Gaps, oldest).replacen(Table::Gaps.folder(), table.folder(), 1);
    let mut days = store.folders(table.folder()).await?;
    days.retain(|day| *day >= first);
    days.sort_unstable_by(|a, b| b.cmp(a));
    Ok(days)
}

fn keep_newest<Row>(answer: &mut Answer<Row>, limit: usize, time: impl Fn(&Row) -> i64) {
    if answer.rows.len() > limit {
        answer.rows.sort_by_key(|row| std::cmp::Reverse(time(row)));
        answer.rows.truncate(limit);
        answer.truncated = true;
    }
}

fn open(bytes: Bytes) -> Result<ParquetRecordBatchReaderBuilder<Bytes>, Unreadable> {
    Ok(ParquetRecordBatchReaderBuilder::try_new(bytes)?)
}

/// Every sample of an object that the query asks for.
///
/// # Errors
/// Says why the object is not one of the archive's.
pub fn decode_samples(bytes: Bytes, query: &Query) -> Result<Vec<Sample>, Unreadable> {
    guarded(|| read_samples(bytes, query))
}

/// An object may lie for years on a disk that nobody checks, and one that can't be read hides no other.
fn guarded<Row>(read: impl FnOnce() -> Result<Vec<Row>, Unreadable>) -> Result<Vec<Row>, Unreadable> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(Unreadable::Panicked))
}

fn read_samples(bytes: Bytes, query: &Query) -> Result<Vec<Sample>, Unreadable> {
    let builder = open(bytes)?;
    let metadata = Arc::clone(builder.metadata());
    let wanted = (0..metadata.num_row_groups()).filter(|&group| may_hold(metadata.row_group(group), query)).collect();
    let mut rows = Vec::new();
    for batch in builder.with_row_groups(wanted).build()? {
        push_samples(&batch?, query, &mut rows)?;
    }
    Ok(rows)
}

/// Whether a row group's statistics leave room for what is asked.
fn may_hold(group: &RowGroupMetaData, query: &Query) -> bool {
    let within = |column: &str, text: &Option<String>| {
        let Some(text) = text else { return true };
        let chunk = group.columns().iter().find(|chunk| chunk.column_path().string() == column);
        match chunk.and_then(|chunk| chunk.statistics()) {
            Some(Statistics::ByteArray(bounds)) => {
                bounds.min_opt().is_none_or(|min| min.data() <= text.as_bytes())
                    && bounds.max_opt().is_none_or(|max| max.data() >= text.as_bytes())
            }
            _ => true,
        }
    };
    within("satellite", &query.satellite) && within("name", &query.metric)
}

fn push_samples(batch: &RecordBatch, query: &Query, rows: &mut Vec<Sample>) -> Result<(), Unreadable> {
    let time = times(batch, "time")?;
    let (satellite, device, name) = (texts(batch, "satellite")?, texts(batch, "device")?, texts(batch, "name")?);
    let (kind, unit, epoch) = (texts(batch, "kind")?, texts(batch, "unit")?, texts(batch, "epoch")?);
    let seq = numbers(batch, "seq")?;
    let value = column(batch, "value")?.as_primitive_opt::<Float64Type>().ok_or(Unreadable::Column("value"))?;
    let labels = column(batch, "labels")?.as_map_opt().ok_or(Unreadable::Column("labels"))?;
    let keys = labels.keys().as_string_opt::<i32>().ok_or(Unreadable::Column("labels"))?;
    let values = labels.values().as_string_opt::<i32>().ok_or(Unreadable::Column("labels"))?;
    let offsets = labels.value_offsets();
    for row in 0..batch.num_rows() {
        let other = |asked: &Option<String>, have: &str| asked.as_ref().is_some_and(|asked| asked != have);
        let skip = time.value(row) < query.since_ms
            || other(&query.satellite, satellite.value(row))
            || other(&query.metric, name.value(row));
        if skip {
            continue;
        }
        let pair = |at: i32| (keys.value(at as usize).to_owned(), values.value(at as usize).to_owned());
        rows.push(Sample {
            time_ms: time.value(row),
            satellite: satellite.value(row).to_owned(),
            device: device.value(row).to_owned(),
            name: name.value(row).to_owned(),
            labels: (offsets[row]..offsets[row + 1]).map(pair).collect(),
            value: value.value(row),
            kind: kind.value(row).to_owned(),
            unit: unit.value(row).to_owned(),
            epoch: epoch.value(row).to_owned(),
            seq: seq.value(row),
        });
    }
    Ok(())
}

/// Every gap of an object that the query asks for.
///
/// # Errors
/// Says why the object is not one of the archive's.
pub fn decode_gaps(bytes: Bytes, query: &Query) -> Result<Vec<GapRow>, Unreadable> {
    guarded(|| read_gaps(bytes, query))
}

fn read_gaps(bytes: Bytes, query: &Query) -> Result<Vec<GapRow>, Unreadable> {
    let mut rows = Vec::new();
    for batch in open(bytes)?.build()? {
        push_gaps(&batch?, query, &mut rows)?;
    }
    Ok(rows)
}

fn push_gaps(batch: &RecordBatch, query: &Query, rows: &mut Vec<GapRow>) -> Result<(), Unreadable> {
    let (from, to) = (times(batch, "from")?, times(batch, "to")?);
    let (satellite, device, metric) = (texts(batch, "satellite")?, texts(batch, "device")?, texts(batch, "metric")?);
    let (count, reported) = (numbers(batch, "count")?, numbers(batch, "reported")?);
    let (reason, detail) = (texts(batch, "reason")?, texts(batch, "detail")?);
    let (epoch, seq) = (texts(batch, "epoch")?, numbers(batch, "seq")?);
    let lost_epoch = texts(batch, "lost_epoch")?;
    let (lost_first, lost_last) = (numbers(batch, "lost_first_seq")?, numbers(batch, "lost_last_seq")?);
    for row in 0..batch.num_rows() {
        let set = |column: &arrow_array::StringArray| column.is_valid(row).then(|| column.value(row).to_owned());
        let counted = |column: &arrow_array::UInt64Array| column.is_valid(row).then(|| column.value(row));
        let other = |asked: &Option<String>, have: &str| asked.as_ref().is_some_and(|asked| asked != have);
        // A gap of all metrics concerns each of them.
        let skip = to.value(row) < query.since_ms
            || other(&query.satellite, satellite.value(row))
            || (metric.is_valid(row) && other(&query.metric, metric.value(row)));
        if skip {
            continue;
        }
        rows.push(GapRow {
            from_ms: from.value(row),
            to_ms: to.value(row),
            satellite: satellite.value(row).to_owned(),
            device: set(device),
            metric: set(metric),
            count: count.value(row),
            reported: reported.value(row),
            reason: reason.value(row).to_owned(),
            detail: detail.value(row).to_owned(),
            epoch: epoch.value(row).to_owned(),
            seq: seq.value(row),
            lost_epoch: set(lost_epoch),
            lost_first_seq: counted(lost_first),
            lost_last_seq: counted(lost_last),
        });
    }
    Ok(())
}

fn column<'a>(batch: &'a RecordBatch, name: &'static str) -> Result<&'a Arc<dyn Array>, Unreadable> {
    batch.column_by_name(name).ok_or(Unreadable::Column(name))
}

fn texts<'a>(batch: &'a RecordBatch, name: &'static str) -> Result<&'a arrow_array::StringArray, Unreadable> {
    column(batch, name)?.as_string_opt().ok_or(Unreadable::Column(name))
}

fn numbers<'a>(batch: &'a RecordBatch, name: &'static str) -> Result<&'a arrow_array::UInt64Array, Unreadable> {
    column(batch, name)?.as_primitive_opt::<UInt64Type>().ok_or(Unreadable::Column(name))
}

fn times<'a>(
    batch: &'a RecordBatch,
    name: &'static str,
) -> Result<&'a arrow_array::TimestampMillisecondArray, Unreadable> {
    column(batch, name)?.as_primitive_opt::<TimestampMillisecondType>().ok_or(Unreadable::Column(name))
}

fn json_number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.collect_str(value) }
}
