//! What lies in the archive's files, as far as the demo counts it: numbers that are there twice, and bytes.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, UInt64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Rows of samples.
    pub samples: u64,
    /// Rows of gaps.
    pub gaps: u64,
    /// Rows whose epoch and number another row has too.
    pub duplicates: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Files.
    pub files: u64,
}

/// Counts what lies below a folder of records.
///
/// # Errors
/// Names the file that can't be read.
pub fn count(records: &Path) -> Result<Count> {
    let mut count = Count::default();
    let mut numbers: HashMap<String, Vec<u64>> = HashMap::new();
    for (folder, rows) in [("samples", &mut count.samples), ("gaps", &mut count.gaps)] {
        let mut files = Vec::new();
        find(&records.join(folder), &mut files)?;
        for file in files {
            count.files += 1;
            count.bytes += file.metadata()?.len();
            *rows += read(file.path().as_path(), &mut numbers).with_context(|| file.path().display().to_string())?;
        }
    }
    for mut numbers in numbers.into_values() {
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        count.duplicates += (all - numbers.len()) as u64;
    }
    Ok(count)
}

fn find(folder: &Path, files: &mut Vec<std::fs::DirEntry>) -> Result<()> {
    // Nothing stored yet is no folder yet.
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if entry.path().extension().is_some_and(|extension| extension == "parquet") {
            files.push(entry);
        }
    }
    Ok(())
}

fn read(file: &Path, numbers: &mut HashMap<String, Vec<u64>>) -> Result<u64> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["epoch", "seq"]);
    let mut rows = 0;
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        rows += batch.num_rows() as u64;
        let seqs = batch.column_by_name("seq").and_then(|column| column.as_primitive_opt::<UInt64Type>());
        let seqs = seqs.context("no column `seq` of numbers")?;
        for row in 0..batch.num_rows() {
            let epoch = epoch(&batch, row).context("no column `epoch` of texts")?;
            match numbers.get_mut(epoch) {
                Some(seen) => seen.push(seqs.value(row)),
                None => drop(numbers.insert(epoch.to_owned(), vec![seqs.value(row)])),
            }
        }
    }
    Ok(rows)
}

fn epoch(batch: &RecordBatch, row: usize) -> Option<&str> {
    let column = batch.column_by_name("epoch")?;
    if let Some(texts) = column.as_string_opt::<i32>() {
        return Some(texts.value(row));
    }
    let dictionary = column.as_dictionary_opt::<Int32Type>()?;
    let key = dictionary.key(row)?;
    let texts = dictionary.values().as_string_opt::<i32>()?;
    Some(texts.value(key))
}
