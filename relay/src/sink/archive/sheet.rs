//! How every Parquet object of the archive is written: zstd, dictionaries, bounded row groups, said order.

use std::sync::Arc;

use arrow_schema::Schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};

use crate::sink::archive::manifest;

/// Rows in one row group: what a reader decodes at least, and what the writer holds.
pub(super) const GROUP_ROWS: usize = 128 << 10;
/// Of zstd, for every page.
pub(super) const ZSTD_LEVEL: i32 = 3;

/// What samples and gaps have in common; the rows are sorted by these leaf columns.
pub(super) fn properties(sorted_by: &[i32]) -> WriterPropertiesBuilder {
    let column = |&column_idx: &i32| SortingColumn { column_idx, descending: false, nulls_first: false };
    WriterProperties::builder()
        .set_created_by(concat!("satellite-relay ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL).unwrap_or_default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_sorting_columns(Some(sorted_by.iter().map(column).collect()))
}

/// Writes one object into memory.
pub(super) fn writer(
    schema: Arc<Schema>,
    properties: WriterProperties,
    manifest: Option<String>,
) -> Result<ArrowWriter<Vec<u8>>, ParquetError> {
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema, options)?;
    if let Some(manifest) = manifest {
        writer.append_key_value_metadata(note(manifest));
    }
    Ok(writer)
}

/// What a batch holds, as it stands in the footer of its first object.
pub(super) fn note(manifest: String) -> KeyValue {
    KeyValue { key: manifest::KEY.to_owned(), value: Some(manifest) }
}
