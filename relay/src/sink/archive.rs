//! The archive: Parquet objects in a folder or a bucket.
//!
//! It encodes a batch into whole objects, puts them, asks for them, and reads them back. It knows no registry: that a
//! batch is committed exactly once is the business of `ingest`, which calls these verbs in the right order.

pub mod layout;

pub mod manifest;

pub mod store;

pub mod reader;

mod gaps;
mod samples;
mod sheet;
mod text_column;

pub use store::{InvalidPlace, Settings, Store, StoreError};

use bytes::Bytes;

use crate::sink::Batch;
use crate::sink::archive::layout::Table;

/// One object of a batch, whole.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its key.
    pub key: String,
    /// Its bytes.
    pub bytes: Bytes,
}

/// A batch that can't be written as Parquet.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The columns do not fit their schema.
    #[error("columns do not fit the schema: {0}")]
    Columns(#[from] arrow_schema::ArrowError),
    /// The Parquet writer failed.
    #[error("parquet writer: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
}

/// Encodes a batch: an object for each hour of samples and each day of gaps that it touches. The first says what the
/// batch holds, where that is given.
///
/// # Errors
/// Only where the Parquet writer itself fails.
pub fn encode(batch: &Batch, mut manifest: Option<String>) -> Result<Vec<Object>, EncodeError> {
    let samples = samples::encode(batch, &mut manifest)?.into_iter().map(|sheet| (Table::Samples, sheet));
    let gaps = gaps::encode(batch, &mut manifest)?.into_iter().map(|sheet| (Table::Gaps, sheet));
    let objects = samples
        .chain(gaps)
        .enumerate()
        .map(|(n, (table, (hour, bytes)))| Object { key: layout::key(table, hour, &batch.id, n), bytes: bytes.into() });
    Ok(objects.collect())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::sync::Arc;

    use satellite_shared::gap::{Gap, Lost, Reason};
    use satellite_shared::id::{Epoch, SatelliteId};
    use satellite_shared::metric::{Kind, Series};
    use satellite_shared::wire::block::Group;

    use super::*;
    use crate::data_dir::DataDir;
    use crate::sink::Origin;
    use crate::sink::archive::layout::BatchId;
    use crate::sink::archive::reader::Query;

    const NOW_MS: i64 = 1_795_247_999_999;
    const HOUR_MS: i64 = 3_600_000;

    fn series(name: &str, labels: &[(&str, &str)]) -> Arc<Series> {
        Arc::new(Series {
            device: "nas".parse().unwrap(),
            name: name.into(),
            kind: Kind::Counter,
            unit: "seconds".into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        })
    }

    fn all() -> Query {
        Query { satellite: None, metric: None, since_ms: i64::MIN, limit: usize::MAX }
    }

    fn described() -> HashMap<u32, Arc<Series>> {
        let cpu = |cpu: &str| series("node_cpu_seconds_total", &[("cpu", cpu), ("mode", "idle")]);
        HashMap::from([(0, cpu("1")), (4, cpu("0")), (5, series("node_load1", &[]))])
    }

    /// Two satellites, two epochs of one of them, three hours, times out of order.
    fn batch() -> (Batch, usize) {
        let mut batch = Batch::new(BatchId::new(NOW_MS, [1; 10]));
        let (a, b) = (SatelliteId::from_bits([1; 10]), SatelliteId::from_bits([2; 10]));
        let mut rows = 0;
        for (satellite, epoch) in [(&b, 9), (&a, 7), (&a, 8)] {
            let groups = vec![
                Group {
                    series: vec![0, 4],
                    times_ms: vec![NOW_MS - HOUR_MS, NOW_MS, NOW_MS - 1, NOW_MS + 1],
                    values: vec![1.0, f64::NAN, -0.0, 4.0, 5.0, 6.5, 7.25, f64::INFINITY],
                },
                Group { series: vec![5], times_ms: vec![NOW_MS + epoch as i64], values: vec![0.1] },
            ];
            let origin = Origin { satellite, epoch: Epoch(epoch), first_seq: 100, count: 9, received_ms: NOW_MS };
            batch.add_samples(&origin, groups, &described()).unwrap();
            rows += 9;
        }
        (batch, rows)
    }

    #[test]
    fn every_sample_comes_back_in_its_hour_and_in_order() {
        let (batch, rows) = batch();
        let objects = encode(&batch, None).unwrap();
        let folders: Vec<&str> = objects.iter().map(|object| object.key.rsplit_once('/').unwrap().0).collect();
        assert_eq!(
            folders,
            ["samples/date=2026-11-21/hour=06", "samples/date=2026-11-21/hour=07", "samples/date=2026-11-21/hour=08"]
        );
        let mut back = Vec::new();
        for object in &objects {
            let samples = reader::decode_samples(object.bytes.clone(), &all()).unwrap();
            let order = |s: &reader::Sample| (s.satellite.clone(), s.name.clone(), s.labels.clone(), s.time_ms);
            assert!(samples.is_sorted_by_key(order), "{}", object.key);
            back.extend(samples);
        }
        assert_eq!(back.len(), rows);
        let identities: BTreeSet<_> = back.iter().map(|s| (s.satellite.clone(), s.epoch.clone(), s.seq)).collect();
        assert_eq!(identities.len(), rows);
        let one = back.iter().find(|s| s.epoch == Epoch(8).to_string() && s.seq == 102).unwrap();
        assert_eq!((one.time_ms, one.value.to_bits()), (NOW_MS - 1, (-0.0f64).to_bits()));
        assert_eq!(one.labels, [("cpu".into(), "1".into()), ("mode".into(), "idle".into())].into());
        assert_eq!((one.device.as_str(), one.kind.as_str(), one.unit.as_str()), ("nas", "counter", "seconds"));
        let last = back.iter().find(|s| s.epoch == Epoch(7).to_string() && s.seq == 108).unwrap();
        assert_eq!((last.name.as_str(), last.labels.len(), last.value), ("node_load1", 0, 0.1));
    }

    #[test]
    fn more_rows_than_a_chunk_come_back_too() {
        let mut batch = Batch::new(BatchId::new(NOW_MS, [1; 10]));
        let satellite = SatelliteId::from_bits([1; 10]);
        let count = 65_000;
        for block in 0..3u64 {
            let from = NOW_MS - HOUR_MS / 2 + block as i64 * 100_000;
            let groups = vec![Group {
                series: vec![0],
                times_ms: (0..count).map(|n| from + n).collect(),
                values: (0..count).map(|n| n as f64).collect(),
            }];
            let (first_seq, count) = (1 + block * count as u64, count as u32);
            let origin = Origin { satellite: &satellite, epoch: Epoch(1), first_seq, count, received_ms: NOW_MS };
            batch.add_samples(&origin, groups, &described()).unwrap();
        }
        let objects = encode(&batch, None).unwrap();
        assert_eq!(objects.len(), 1);
        let back = reader::decode_samples(objects[0].bytes.clone(), &all()).unwrap();
        assert_eq!(back.len(), 195_000);
        assert!(back.is_sorted_by_key(|s| s.time_ms));
        let seqs: BTreeSet<u64> = back.iter().map(|s| s.seq).collect();
        assert_eq!((seqs.len(), seqs.first(), seqs.last()), (195_000, Some(&1), Some(&195_000)));
        let per_row = objects[0].bytes.len() as f64 / 195_000.0;
        assert!(per_row < 4.0, "a regular series costs {per_row} bytes a row");
    }

    #[test]
    fn a_query_reads_only_what_it_asks_for() {
        let (batch, _) = batch();
        let objects = encode(&batch, None).unwrap();
        let hour_07 = objects[1].bytes.clone();
        let load = Query { metric: Some("node_load1".into()), ..all() };
        assert_eq!(reader::decode_samples(hour_07.clone(), &load).unwrap(), []);
        let satellite = SatelliteId::from_bits([2; 10]).to_string();
        let of_b = Query { satellite: Some(satellite), since_ms: NOW_MS, ..all() };
        assert_eq!(reader::decode_samples(hour_07, &of_b).unwrap().len(), 2);
    }

    #[test]
    fn gaps_come_back_with_what_they_newly_explain() {
        let satellite = SatelliteId::from_bits([1; 10]);
        let origin = Origin { satellite: &satellite, epoch: Epoch(3), first_seq: 5, count: 2, received_ms: NOW_MS };
        let lost = Lost { epoch: Epoch(2), first_seq: 10, last_seq: 30, due_through: 30 };
        let gap = |device: Option<&str>, count, lost| Gap {
            device: device.map(|name| name.parse().unwrap()),
            metric: None,
            from_ms: NOW_MS - 48 * HOUR_MS,
            to_ms: NOW_MS,
            count,
            reason: Reason::Evicted,
            detail: "256 MiB".into(),
            lost,
        };
        let mut batch = Batch::new(BatchId::new(NOW_MS, [1; 10]));
        batch.add_gap(&origin, 5, gap(None, 21, Some(lost)), 11);
        batch.add_gap(&origin, 6, gap(Some("nas"), 4, None), 4);
        let objects = encode(&batch, None).unwrap();
        assert_eq!(objects.len(), 1);
        assert!(objects[0].key.starts_with("gaps/date=2026-11-21/"));
        let rows = reader::decode_gaps(objects[0].bytes.clone(), &all()).unwrap();
        assert_eq!((rows[0].count, rows[0].reported, rows[0].device.as_deref()), (11, 21, None));
        assert_eq!((rows[0].lost_first_seq, rows[0].lost_last_seq), (Some(10), Some(30)));
        assert_eq!(rows[0].lost_epoch, Some(Epoch(2).to_string()));
        assert_eq!((rows[1].count, rows[1].device.as_deref(), rows[1].lost_epoch.as_deref()), (4, Some("nas"), None));
        assert_eq!((rows[1].reason.as_str(), rows[1].seq), ("evicted", 6));
    }

    #[tokio::test]
    async fn the_newest_rows_are_found_and_a_damaged_object_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Settings::default().open(&DataDir::open(dir.path()).unwrap()).unwrap();
        let (batch, rows) = batch();
        for object in encode(&batch, None).unwrap() {
            store.put(&object.key, object.bytes).await.unwrap();
        }
        store.put("samples/date=2026-11-21/hour=07/x-0.parquet", Bytes::from_static(b"PAR1 no")).await.unwrap();
        store.put("samples/readme.txt", Bytes::from_static(b"mine")).await.unwrap();
        let found = reader::samples(&store, &all()).await.unwrap();
        assert_eq!((found.rows.len(), found.truncated, found.unreadable.len()), (rows, false, 1));
        assert!(found.unreadable[0].contains("x-0.parquet: not a whole Parquet file"));
        let newest = reader::samples(&store, &Query { limit: 2, ..all() }).await.unwrap();
        let times: Vec<i64> = newest.rows.iter().map(|row| row.time_ms - NOW_MS).collect();
        assert_eq!((times, newest.truncated), (vec![8, 9], true));
        let recent = reader::samples(&store, &Query { since_ms: NOW_MS + 1, ..all() }).await.unwrap();
        assert_eq!(recent.rows.len(), 9);
        assert!(reader::gaps(&store, &all()).await.unwrap().rows.is_empty());
    }

    #[test]
    fn a_damaged_object_is_unreadable_or_reads_otherwise_and_nothing_worse() {
        for object in encode(&batch().0, None).unwrap() {
            for at in 0..object.bytes.len() {
                let mut damaged = object.bytes.to_vec();
                damaged[at] ^= 0xff;
                let damaged = Bytes::from(damaged);
                drop((reader::decode_samples(damaged.clone(), &all()), reader::decode_gaps(damaged, &all())));
            }
        }
    }
}
