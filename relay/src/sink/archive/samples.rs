//! The table of samples: a batch's pieces sorted into rows, and each hour's rows written as one Parquet object.
//!
//! Rows stand by satellite, name, device, labels, time. Text is looked at per series: rows are runs of indexes into
//! one list of words, and numbers are copied run by run. The Arrow schema is not embedded, so that every reader sees
//! plain Parquet types: strings, a map, a UTC timestamp in milliseconds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};
use parquet::arrow::ArrowSchemaConverter;
use parquet::basic::Encoding;
use parquet::data_type::{DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use crate::sink::Batch;
use crate::sink::archive::layout::Hour;
use crate::sink::archive::sheet::GROUP_ROWS;
use crate::sink::archive::text_column::{Levels, Runs, TextWriter};
use crate::sink::archive::{EncodeError, sheet};

/// Labels in one row group, where rows have so many of them that `GROUP_ROWS` would be too much for a reader.
const GROUP_LABELS: usize = 1 << 20;
/// Columns that rows are sorted by, as positions in the schema.
const SORTED_BY: [i32; 3] = [1, 3, 2];

fn word(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let entry = DataType::Struct(Fields::from(vec![word("key"), word("value")]));
    let entry = Arc::new(Field::new("key_value", entry, false));
    Schema::new(vec![
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        word("satellite"),
        word("device"),
        word("name"),
        Field::new("labels", DataType::Map(entry, true), false),
        Field::new("value", DataType::Float64, false),
        word("kind"),
        word("unit"),
        word("epoch"),
        Field::new("seq", DataType::UInt64, false),
    ])
});

fn properties() -> WriterProperties {
    let numbers = |builder: WriterPropertiesBuilder, name: &str, encoding| {
        let column = ColumnPath::from(name);
        builder.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, encoding)
    };
    // The columns of text have one page each: there is nothing to find in them by an index.
    let builder = sheet::properties(&SORTED_BY).set_offset_index_disabled(true);
    let builder = numbers(builder, "time", Encoding::DELTA_BINARY_PACKED);
    let builder = numbers(builder, "seq", Encoding::DELTA_BINARY_PACKED);
    numbers(builder, "value", Encoding::BYTE_STREAM_SPLIT).build()
}

/// Each hour's rows as one Parquet object, in order of the hours.
///
/// # Errors
/// Only where the writer itself fails.
pub(super) fn encode(batch: &Batch, manifest: &mut Option<String>) -> Result<Vec<(Hour, Vec<u8>)>, EncodeError> {
    let epochs: HashMap<u128, String> =
        batch.pieces.iter().map(|piece| (piece.epoch.0, piece.epoch.to_string())).collect();
    let words = Words::of(batch, &epochs);
    let cells = cells(batch, &words);
    let properties = Arc::new(properties());
    let schema = ArrowSchemaConverter::new().convert(&SCHEMA)?;
    let mut writer = TextWriter::new(&words.text)?;
    let mut objects = Vec::new();
    let mut rows = Vec::new();
    let mut columns = Columns::default();
    for cells in cells.chunk_by(|a, b| a.hour == b.hour) {
        let mut file = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), Arc::clone(&properties))?;
        if let Some(manifest) = manifest.take() {
            file.append_key_value_metadata(sheet::note(manifest));
        }
        for cells in cells.chunk_by(|a, b| a.rank == b.rank) {
            gather(batch, &words, cells, &mut rows);
            let series = &words.series[cells[0].rank as usize];
            let mut rest = rows.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(columns.room(series)));
                columns.push(series, now);
                rest = later;
                if columns.room(series) == 0 {
                    columns.write(&mut file, &schema, &mut writer)?;
                }
            }
        }
        columns.write(&mut file, &schema, &mut writer)?;
        objects.push((words.hours[cells[0].hour as usize], file.into_inner()?));
    }
    Ok(objects)
}

/// One series' run of times in one piece, all of one hour.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    /// Which of the batch's hours.
    hour: u32,
    /// Where its series stands in the order of rows.
    rank: u32,
    piece: u32,
    row: u32,
    start: u32,
    end: u32,
}

impl Cell {
    fn times(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).expect("a batch holds fewer rows than four billion")
}

/// In the order of rows, but for the times of one series: of those, in the order in which they came.
fn cells(batch: &Batch, words: &Words<'_>) -> Vec<Cell> {
    let mut cells = Vec::with_capacity(batch.pieces.iter().map(|piece| piece.series.len()).sum());
    for (piece_index, piece) in batch.pieces.iter().enumerate() {
        let mut start = 0;
        for run in piece.hours.chunk_by(|a, b| a == b) {
            let hour = narrow(words.hours.partition_point(|hour| *hour < run[0]));
            let (from, to) = (narrow(start), narrow(start + run.len()));
            cells.extend(piece.series.iter().enumerate().map(|(row, &series)| Cell {
                hour,
                rank: words.ranks[series as usize],
                piece: narrow(piece_index),
                row: narrow(row),
                start: from,
                end: to,
            }));
            start += run.len();
        }
    }
    let cells = counted(cells, words.series.len(), |cell| cell.rank);
    counted(cells, words.hours.len(), |cell| cell.hour)
}

/// Sorts by a small number; equal ones keep their order.
fn counted(cells: Vec<Cell>, end: usize, number: impl Fn(&Cell) -> u32) -> Vec<Cell> {
    if end < 2 {
        return cells;
    }
    let mut next = vec![0usize; end + 1];
    for cell in &cells {
        next[number(cell) as usize + 1] += 1;
    }
    for index in 1..next.len() {
        next[index] += next[index - 1];
    }
    let mut sorted = vec![Cell::default(); cells.len()];
    for cell in cells {
        let place = &mut next[number(&cell) as usize];
        sorted[*place] = cell;
        *place += 1;
    }
    sorted
}

/// What differs from row to row of one series.
struct Row {
    time_ms: i64,
    seq: u64,
    value: f64,
    epoch: u32,
}

fn gather(batch: &Batch, words: &Words<'_>, cells: &[Cell], rows: &mut Vec<Row>) {
    rows.clear();
    for cell in cells {
        let piece = &batch.pieces[cell.piece as usize];
        let epoch = words.epochs[cell.piece as usize];
        let start = cell.row as usize * piece.times_ms.len();
        for time in cell.times() {
            rows.push(Row {
                time_ms: piece.times_ms[time],
                seq: piece.first_seq + (start + time) as u64,
                value: piece.values[start + time],
                epoch,
            });
        }
    }
    if !rows.is_sorted_by_key(|row| row.time_ms) {
        rows.sort_unstable_by_key(|row| (row.time_ms, row.epoch, row.seq));
    }
}

/// A series' text, as indexes of words.
struct SeriesWords {
    satellite: u32,
    device: u32,
    name: u32,
    kind: u32,
    unit: u32,
    label_keys: Vec<u32>,
    label_values: Vec<u32>,
}

/// All text of a batch, each once; and its series and hours in the order of rows.
struct Words<'a> {
    text: Vec<&'a str>,
    /// By piece.
    epochs: Vec<u32>,
    /// By rank.
    series: Vec<SeriesWords>,
    /// By the batch's index; the same series of two epochs has one rank.
    ranks: Vec<u32>,
    hours: Vec<Hour>,
}

impl<'a> Words<'a> {
    fn of(batch: &'a Batch, epoch_text: &'a HashMap<u128, String>) -> Self {
        let mut list = WordList::default();
        let epochs = batch.pieces.iter().map(|piece| list.index(&epoch_text[&piece.epoch.0])).collect();
        let order = |index: u32| {
            let (satellite, series) = &batch.series[index as usize];
            let satellite = &batch.satellites[*satellite as usize];
            (satellite, &series.name, &series.device, &series.labels, series.kind, &series.unit)
        };
        let mut sorted: Vec<u32> =
            (0..u32::try_from(batch.series.len()).expect("series are fewer than rows")).collect();
        sorted.sort_unstable_by(|&a, &b| order(a).cmp(&order(b)));
        let mut ranks = vec![0; sorted.len()];
        let mut series = Vec::with_capacity(sorted.len());
        for same in sorted.chunk_by(|&a, &b| order(a) == order(b)) {
            let rank = u32::try_from(series.len()).expect("series are fewer than rows");
            same.iter().for_each(|&index| ranks[index as usize] = rank);
            let (satellite, name, device, labels, kind, unit) = order(same[0]);
            series.push(SeriesWords {
                satellite: list.index(satellite.as_str()),
                device: list.index(device.as_str()),
                name: list.index(name),
                kind: list.index(kind.as_str()),
                unit: list.index(unit),
                label_keys: labels.iter().map(|(key, _)| list.index(key)).collect(),
                label_values: labels.iter().map(|(_, value)| list.index(value)).collect(),
            });
        }
        Self { text: list.words, epochs, series, ranks, hours: batch.hours.iter().copied().collect() }
    }
}

#[derive(Default)]
struct WordList<'a> {
    indexes: HashMap<&'a str, u32>,
    words: Vec<&'a str>,
}

impl<'a> WordList<'a> {
    fn index(&mut self, word: &'a str) -> u32 {
        *self.indexes.entry(word).or_insert_with(|| {
            self.words.push(word);
            u32::try_from(self.words.len() - 1).expect("words are fewer than labels of a batch's series")
        })
    }
}

/// Rows as columns, until there are enough of them for a row group.
#[derive(Default)]
struct Columns {
    time: Vec<i64>,
    value: Vec<f64>,
    seq: Vec<i64>,
    satellite: Runs,
    device: Runs,
    name: Runs,
    kind: Runs,
    unit: Runs,
    epoch: Runs,
    label_keys: Runs,
    label_values: Runs,
    labels: Levels,
}

impl Columns {
    /// How many more rows of a series may stand in the same row group.
    fn room(&self, series: &SeriesWords) -> usize {
        let labels = series.label_keys.len().max(1);
        let rows = GROUP_LABELS.saturating_sub(self.label_keys.len()).div_ceil(labels);
        rows.min(GROUP_ROWS - self.time.len())
    }

    fn push(&mut self, series: &SeriesWords, rows: &[Row]) {
        self.satellite.push(series.satellite, rows.len());
        self.device.push(series.device, rows.len());
        self.name.push(series.name, rows.len());
        self.kind.push(series.kind, rows.len());
        self.unit.push(series.unit, rows.len());
        for row in rows {
            self.time.push(row.time_ms);
            self.value.push(row.value);
            self.seq.push(row.seq.cast_signed());
            self.epoch.push(row.epoch, 1);
            self.labels.push(series.label_keys.len());
            series.label_keys.iter().for_each(|&word| self.label_keys.push(word, 1));
            series.label_values.iter().for_each(|&word| self.label_values.push(word, 1));
        }
    }

    /// Writes the rows as one row group, and is empty again.
    fn write(
        &mut self,
        file: &mut SerializedFileWriter<Vec<u8>>,
        schema: &SchemaDescriptor,
        text: &mut TextWriter<'_>,
    ) -> Result<(), EncodeError> {
        let rows = self.time.len();
        if rows == 0 {
            return Ok(());
        }
        let mut whole = file.next_row_group()?;
        let group = &mut whole;
        let mut word = |group: &mut _, column, keys: &Runs, levels: Option<&Levels>| {
            text.write(group, &schema.column(column), keys, levels, rows)
        };
        integers(group, &self.time)?;
        word(group, 1, &self.satellite, None)?;
        word(group, 2, &self.device, None)?;
        word(group, 3, &self.name, None)?;
        word(group, 4, &self.label_keys, Some(&self.labels))?;
        word(group, 5, &self.label_values, Some(&self.labels))?;
        floats(group, &self.value)?;
        word(group, 7, &self.kind, None)?;
        word(group, 8, &self.unit, None)?;
        word(group, 9, &self.epoch, None)?;
        integers(group, &self.seq)?;
        whole.close()?;
        self.clear();
        Ok(())
    }

    fn clear(&mut self) {
        let Self { time, value, seq, satellite, device, name, kind, unit, epoch, label_keys, label_values, labels } =
            self;
        for runs in [satellite, device, name, kind, unit, epoch, label_keys, label_values] {
            runs.clear();
        }
        labels.clear();
        time.clear();
        value.clear();
        seq.clear();
    }
}

fn integers(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: &[i64]) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(no_column)?;
    column.typed::<Int64Type>().write_batch(values, None, None)?;
    column.close()
}

fn floats(group: &mut SerializedRowGroupWriter<'_, Vec<u8>>, values: &[f64]) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(no_column)?;
    column.typed::<DoubleType>().write_batch(values, None, None)?;
    column.close()
}

fn no_column() -> ParquetError {
    ParquetError::General("the schema has fewer columns".into())
}
