//! What a batch holds, written into the footer of its first object, so that the archive alone can tell.
//!
//! A registry that was copied back from a backup does not know the batches since; without this, what satellites still
//! hold of them would be stored twice. The first object of a batch is put last: where it is, the batch is whole.

use bytes::Bytes;
use parquet::file::metadata::{FileMetaData, ParquetMetaDataReader};
use satellite_shared::id::{Epoch, SatelliteId};
use serde::{Deserialize, Serialize};

use crate::ingest::Tally;
use crate::ingest::watermark::Watermark;
use crate::registry::batches::Holding;

/// The key in the footer.
pub const KEY: &str = "satellite.batch";
/// The last bytes of a Parquet file: the footer's length and four letters.
const TAIL_BYTES: usize = 8;

/// Why a footer has no manifest.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is no Parquet footer.
    #[error("no Parquet footer: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    /// It has no manifest.
    #[error("it does not say what its batch holds")]
    Missing,
    /// The manifest is of another form.
    #[error("what it says of its batch can't be read: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// What a batch holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which relay wrote it.
    pub relay: String,
    /// By epoch: satellite, epoch, spans, and samples due, stored and explained.
    holds: Vec<(SatelliteId, Epoch, Watermark, u64, u64, u64)>,
}

impl Manifest {
    /// Of what the accounts will be told.
    #[must_use]
    pub fn new(relay: &str, holdings: &[Holding]) -> Self {
        let row = |holding: &Holding| {
            let Tally { watermark, due, stored, explained, set_aside: _ } = holding.tally.clone();
            (holding.satellite.clone(), holding.epoch, watermark, due, stored, explained)
        };
        Self { relay: relay.to_owned(), holds: holdings.iter().map(row).collect() }
    }

    /// What to tell the accounts.
    #[must_use]
    pub fn holdings(self) -> Vec<Holding> {
        let holding = |(satellite, epoch, watermark, due, stored, explained)| {
            let tally = Tally { watermark, due, stored, explained, set_aside: 0 };
            Holding { satellite, epoch, tally }
        };
        self.holds.into_iter().map(holding).collect()
    }

    /// As it stands in the footer.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("plain values always serialise")
    }

    /// Reads it from the last bytes of an object.
    ///
    /// # Errors
    /// Says why there is none to be read.
    pub fn read(tail: &Bytes) -> Result<Self, Unreadable> {
        let begins = tail.len().checked_sub(footer_bytes(tail)).ok_or(Unreadable::Missing)?;
        let footer = tail.slice(begins..tail.len() - TAIL_BYTES);
        let metadata = ParquetMetaDataReader::decode_metadata(&footer)?;
        let values = FileMetaData::key_value_metadata(metadata.file_metadata());
        let value = values.and_then(|values| values.iter().find(|pair| pair.key == KEY)?.value.as_ref());
        Ok(serde_json::from_str(value.ok_or(Unreadable::Missing)?)?)
    }
}

/// How many bytes at the end of an object hold its footer; 8 where that can't be seen.
#[must_use]
pub fn footer_bytes(tail: &[u8]) -> usize {
    let length = tail.len().checked_sub(TAIL_BYTES).and_then(|at| tail[at..at + 4].try_into().ok());
    let length = length.map_or(0, u32::from_le_bytes);
    usize::try_from(length).unwrap_or(usize::MAX).saturating_add(TAIL_BYTES)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use satellite_shared::metric::{Kind, Series};
    use satellite_shared::wire::block::Group;

    use super::*;
    use crate::ingest::watermark::Span;
    use crate::sink::archive::encode;
    use crate::sink::archive::layout::BatchId;
    use crate::sink::{Batch, Origin};

    const NOW_MS: i64 = 1_795_247_999_999;

    fn batch(satellite: &SatelliteId) -> Batch {
        let device = "nas".parse().unwrap();
        let series = Series { device, name: "x".into(), kind: Kind::Gauge, unit: String::new(), labels: vec![] };
        let described = HashMap::from([(0, Arc::new(series))]);
        let mut batch = Batch::new(BatchId::new(NOW_MS, [0; 10]));
        let origin = Origin { satellite, epoch: Epoch(7), first_seq: 1, count: 2, received_ms: NOW_MS };
        let times_ms = vec![NOW_MS - 3_600_000, NOW_MS];
        let groups = vec![Group { series: vec![0], times_ms, values: vec![1.0, 2.0] }];
        batch.add_samples(&origin, groups, &described).unwrap();
        batch
    }

    #[test]
    fn the_first_object_says_what_its_batch_holds_and_no_other_does() {
        let satellite = SatelliteId::from_bits([1; 10]);
        let mut tally = Tally { stored: 2, ..Tally::default() };
        tally.cover(Span { first: 1, last: 2, due_before: 0, due_through: 2 });
        let holdings = vec![Holding { satellite: satellite.clone(), epoch: Epoch(7), tally }];
        let manifest = Manifest::new("relay-1", &holdings);
        let objects = encode(&batch(&satellite), Some(manifest.to_text())).unwrap();
        assert_eq!(objects.len(), 2);
        let read = Manifest::read(&objects[0].bytes).unwrap();
        assert_eq!(read.relay, "relay-1");
        assert_eq!(read.holdings(), holdings);
        let tail = objects[0].bytes.slice(objects[0].bytes.len() - footer_bytes(&objects[0].bytes)..);
        assert_eq!(Manifest::read(&tail).unwrap(), manifest);
        assert!(matches!(Manifest::read(&objects[1].bytes), Err(Unreadable::Missing)));
    }

    #[test]
    fn what_is_no_footer_has_no_manifest() {
        for bytes in [&b""[..], b"PAR1", b"\xff\xff\xff\xffPAR1", b"\x04\0\0\0PAR1", b"abcd\x04\0\0\0PAR1"] {
            assert!(Manifest::read(&Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }
}
