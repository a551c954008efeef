//! The table of samples: a batch's pieces sorted into rows, and each hour's rows written as one Parquet object.
//!
//! Rows stand by satellite, name, device, labels, time. Text is looked at per series: rows carry indexes into one
//! list of words, and numbers are copied run by run. The Arrow schema is not embedded, so that every reader sees
//! plain Parquet types: strings, a map, a UTC timestamp in milliseconds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow_array::builder::OffsetBufferBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, MapArray, RecordBatch, StringArray, StructArray,
    TimestampMillisecondArray, UInt64Array,
};
use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::sink::Batch;
use crate::sink::archive::layout::Hour;
use crate::sink::archive::{EncodeError, sheet};

/// Rows that are turned into columns at once.
const CHUNK_ROWS: usize = 32 << 10;
/// Columns that rows are sorted by, as positions in the schema.
const SORTED_BY: [i32; 3] = [1, 3, 2];

fn word(name: &str) -> Field {
    Field::new(name, DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), false)
}

fn entry() -> Fields {
    Fields::from(vec![word("key"), word("value")])
}

static ENTRY: LazyLock<Arc<Field>> =
    LazyLock::new(|| Arc::new(Field::new("key_value", DataType::Struct(entry()), false)));

static SCHEMA: LazyLock<Arc<Schema>> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())), false),
        word("satellite"),
        word("device"),
        word("name"),
        Field::new("labels", DataType::Map(Arc::clone(&ENTRY), true), false),
        Field::new("value", DataType::Float64, false),
        word("kind"),
        word("unit"),
        word("epoch"),
        Field::new("seq", DataType::UInt64, false),
    ]))
});

fn properties() -> WriterProperties {
    let numbers = |builder: WriterPropertiesBuilder, name: &str, encoding| {
        let column = ColumnPath::from(name);
        builder.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, encoding)
    };
    let builder = sheet::properties(&SORTED_BY);
    let builder = numbers(builder, "time", Encoding::DELTA_BINARY_PACKED);
    let builder = numbers(builder, "seq", Encoding::DELTA_BINARY_PACKED);
    numbers(builder, "value", Encoding::BYTE_STREAM_SPLIT).build()
}

/// Each hour's rows as one Parquet object, in order of the hours.
///
/// # Errors
/// Only where the writer itself fails.
pub(super) fn encode(batch: &Batch) -> Result<Vec<(Hour, Vec<u8>)>, EncodeError> {
    let words = Words::of(batch);
    let cells = cells(batch, &words);
    let properties = properties();
    let mut objects = Vec::new();
    for cells in cells.chunk_by(|a, b| a.hour == b.hour) {
        let mut sheet = sheet::writer(Arc::clone(&SCHEMA), properties.clone())?;
        let mut columns = Columns::default();
        let mut rows = Vec::new();
        for cells in cells.chunk_by(|a, b| a.rank == b.rank) {
            gather(batch, &words, cells, &mut rows);
            write_series(&mut sheet, &mut columns, &words, cells[0].rank, &rows)?;
        }
        columns.flush(&mut sheet, &words)?;
        objects.push((cells[0].hour, sheet.into_inner()?));
    }
    Ok(objects)
}

/// One series' run of times in one piece, all of one hour.
struct Cell {
    hour: Hour,
    /// Where its series stands in the order of rows.
    rank: u32,
    first_ms: i64,
    piece: u32,
    row: u32,
    times: Range<u32>,
}

fn cells(batch: &Batch, words: &Words) -> Vec<Cell> {
    let mut cells = Vec::with_capacity(batch.pieces.len());
    let narrow = |n: usize| u32::try_from(n).expect("a batch holds fewer rows than four billion");
    for (piece_index, piece) in batch.pieces.iter().enumerate() {
        let mut start = 0;
        for run in piece.hours.chunk_by(|a, b| a == b) {
            let times = narrow(start)..narrow(start + run.len());
            let (hour, first_ms) = (run[0], piece.times_ms[start]);
            cells.extend(piece.series.iter().enumerate().map(|(row, &series)| Cell {
                hour,
                rank: words.ranks[series as usize],
                first_ms,
                piece: narrow(piece_index),
                row: narrow(row),
                times: times.clone(),
            }));
            start += run.len();
        }
    }
    cells.sort_unstable_by_key(|cell| (cell.hour, cell.rank, cell.first_ms, cell.piece));
    cells
}

/// What differs from row to row of one series.
struct Row {
    time_ms: i64,
    seq: u64,
    value: f64,
    epoch: i32,
}

fn gather(batch: &Batch, words: &Words, cells: &[Cell], rows: &mut Vec<Row>) {
    rows.clear();
    for cell in cells {
        let piece = &batch.pieces[cell.piece as usize];
        let epoch = words.epochs[&piece.epoch.0];
        let start = cell.row as usize * piece.times_ms.len();
        for time in cell.times.start as usize..cell.times.end as usize {
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

fn write_series(
    sheet: &mut ArrowWriter<Vec<u8>>,
    columns: &mut Columns,
    words: &Words,
    rank: u32,
    mut rows: &[Row],
) -> Result<(), EncodeError> {
    while !rows.is_empty() {
        let (now, later) = rows.split_at(rows.len().min(CHUNK_ROWS - columns.len()));
        columns.push(&words.series[rank as usize], now);
        rows = later;
        if columns.len() == CHUNK_ROWS {
            columns.flush(sheet, words)?;
        }
    }
    Ok(())
}

/// A series' text, as indexes of words.
struct SeriesWords {
    satellite: i32,
    device: i32,
    name: i32,
    kind: i32,
    unit: i32,
    label_keys: Vec<i32>,
    label_values: Vec<i32>,
}

/// All text of a batch, each once; and its series in the order of rows.
struct Words {
    text: ArrayRef,
    epochs: HashMap<u128, i32>,
    /// By rank.
    series: Vec<SeriesWords>,
    /// By the batch's index; the same series of two epochs has one rank.
    ranks: Vec<u32>,
}

impl Words {
    fn of(batch: &Batch) -> Self {
        let epoch_text: HashMap<u128, String> =
            batch.pieces.iter().map(|piece| piece.epoch).map(|epoch| (epoch.0, epoch.to_string())).collect();
        let mut list = WordList::default();
        let epochs = epoch_text.iter().map(|(&epoch, text)| (epoch, list.index(text))).collect();
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
        Self { text: Arc::new(StringArray::from(list.words)), epochs, series, ranks }
    }
}

#[derive(Default)]
struct WordList<'a> {
    indexes: HashMap<&'a str, i32>,
    words: Vec<&'a str>,
}

impl<'a> WordList<'a> {
    fn index(&mut self, word: &'a str) -> i32 {
        *self.indexes.entry(word).or_insert_with(|| {
            self.words.push(word);
            i32::try_from(self.words.len() - 1).expect("words are fewer than labels of a batch's series")
        })
    }
}

/// Rows as columns, until there are enough of them to be written.
#[derive(Default)]
struct Columns {
    time: Vec<i64>,
    satellite: Vec<i32>,
    device: Vec<i32>,
    name: Vec<i32>,
    label_keys: Vec<i32>,
    label_values: Vec<i32>,
    labels: Vec<usize>,
    value: Vec<f64>,
    kind: Vec<i32>,
    unit: Vec<i32>,
    epoch: Vec<i32>,
    seq: Vec<u64>,
}

impl Columns {
    fn len(&self) -> usize {
        self.time.len()
    }

    fn push(&mut self, series: &SeriesWords, rows: &[Row]) {
        let same = |column: &mut Vec<i32>, word| column.extend(std::iter::repeat_n(word, rows.len()));
        same(&mut self.satellite, series.satellite);
        same(&mut self.device, series.device);
        same(&mut self.name, series.name);
        same(&mut self.kind, series.kind);
        same(&mut self.unit, series.unit);
        self.labels.extend(std::iter::repeat_n(series.label_keys.len(), rows.len()));
        for _ in rows {
            self.label_keys.extend_from_slice(&series.label_keys);
            self.label_values.extend_from_slice(&series.label_values);
        }
        self.time.extend(rows.iter().map(|row| row.time_ms));
        self.value.extend(rows.iter().map(|row| row.value));
        self.epoch.extend(rows.iter().map(|row| row.epoch));
        self.seq.extend(rows.iter().map(|row| row.seq));
    }

    fn flush(&mut self, sheet: &mut ArrowWriter<Vec<u8>>, words: &Words) -> Result<(), EncodeError> {
        if self.len() == 0 {
            return Ok(());
        }
        let columns = std::mem::take(self);
        let text = |keys: Vec<i32>| -> Result<ArrayRef, EncodeError> {
            let array = DictionaryArray::<Int32Type>::try_new(Int32Array::from(keys), Arc::clone(&words.text))?;
            Ok(Arc::new(array))
        };
        let mut offsets = OffsetBufferBuilder::<i32>::new(columns.labels.len());
        columns.labels.iter().for_each(|&labels| offsets.push_length(labels));
        let entries = vec![text(columns.label_keys)?, text(columns.label_values)?];
        let entries = StructArray::try_new(entry(), entries, None)?;
        let labels = MapArray::try_new(Arc::clone(&ENTRY), offsets.finish(), entries, None, true)?;
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(TimestampMillisecondArray::from(columns.time).with_timezone("UTC")),
            text(columns.satellite)?,
            text(columns.device)?,
            text(columns.name)?,
            Arc::new(labels),
            Arc::new(Float64Array::from(columns.value)),
            text(columns.kind)?,
            text(columns.unit)?,
            text(columns.epoch)?,
            Arc::new(UInt64Array::from(columns.seq)),
        ];
        sheet.write(&RecordBatch::try_new(Arc::clone(&SCHEMA), arrays)?)?;
        Ok(())
    }
}
