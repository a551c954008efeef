//! What the series numbers of a connection mean; pure.
//!
//! A block goes on its way with its epoch's table as it was then; announcing more copies the table only while a block
//! still holds it. Bounded: beyond its bytes the epoch that was used least recently is forgotten, which its next
//! block's `NACK unknown_series` heals.

use std::collections::HashMap;
use std::sync::Arc;

use satellite_shared::id::Epoch;
use satellite_shared::limits;
use satellite_shared::metric::Series;
use satellite_shared::ranges::{Overlap, Ranges};
use satellite_shared::wire::block::Group;

/// Descriptors by number.
pub type Descriptors = HashMap<u32, Arc<Series>>;

const TABLE_BYTES: usize = 256;
const ENTRY_BYTES: usize = 64;
const UNDECODABLE_RANGES_MAX: usize = 64;

/// The tables of one connection.
#[derive(Debug)]
pub struct SeriesTables {
    tables: HashMap<Epoch, Table>,
    bytes: usize,
    bytes_max: usize,
    uses: u64,
}

#[derive(Debug, Default)]
struct Table {
    descriptors: Arc<Descriptors>,
    /// All numbers below are described, so that those of a block need not be looked up one by one.
    described_below: u32,
    undecodable: Ranges,
    bytes: usize,
    used: u64,
}

/// Why descriptors can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeriesError {
    /// The number means something else already. What it meant first stays.
    #[error("series {number} of epoch {epoch} was announced with another descriptor before")]
    Changed {
        /// Whose numbers.
        epoch: Epoch,
        /// Which.
        number: u32,
    },
    /// More descriptors in one epoch than a connection may keep.
    #[error("the descriptors of epoch {epoch} exceed {max} bytes: fewer series or shorter labels")]
    TooLarge {
        /// Whose numbers.
        epoch: Epoch,
        /// The bound.
        max: usize,
    },
    /// Damage all over one epoch.
    #[error("epoch {0} has too many descriptors that can't be decoded")]
    Damaged(Epoch),
}

/// What the tables say of a block.
#[derive(Debug)]
pub enum Known {
    /// All its series.
    All(Arc<Descriptors>),
    /// One was not announced.
    Missing(u32),
    /// One was announced and could not be decoded.
    Undecodable(u32),
}

impl SeriesTables {
    /// No tables yet.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { tables: HashMap::new(), bytes: 0, bytes_max, uses: 0 }
    }

    /// Takes the descriptors of `first..`.
    ///
    /// # Errors
    /// When a number is redefined or the bound is exceeded by this epoch alone.
    pub fn announce(&mut self, epoch: Epoch, first: u32, series: Vec<Series>) -> Result<(), SeriesError> {
        let table = self.touch(epoch);
        let mut changed = None;
        let mut added = 0;
        for (number, one) in (first..).zip(series) {
            match table.descriptors.get(&number) {
                Some(known) if **known == one => {}
                Some(_) => changed = changed.or(Some(number)),
                None => {
                    added += bytes_of(&one);
                    Arc::make_mut(&mut table.descriptors).insert(number, Arc::new(one));
                }
            }
        }
        while table.descriptors.contains_key(&table.described_below) {
            table.described_below += 1;
        }
        table.bytes += added;
        let epoch_bytes = table.bytes;
        self.bytes += added;
        if epoch_bytes > self.bytes_max {
            return Err(SeriesError::TooLarge { epoch, max: self.bytes_max });
        }
        self.forget_the_least_used();
        changed.map_or(Ok(()), |number| Err(SeriesError::Changed { epoch, number }))
    }

    /// Notes that these were announced and can't be decoded, so that their blocks need not wait for them for ever.
    ///
    /// # Errors
    /// When there is no end to it.
    pub fn announce_undecodable(&mut self, epoch: Epoch, first: u64, last: u64) -> Result<(), SeriesError> {
        let last = last.min(limits::SERIES_PER_EPOCH_MAX as u64);
        if first > last {
            return Ok(());
        }
        let table = self.touch(epoch);
        table.undecodable.insert(first, last);
        if table.undecodable.as_slice().len() > UNDECODABLE_RANGES_MAX {
            return Err(SeriesError::Damaged(epoch));
        }
        self.forget_the_least_used();
        Ok(())
    }

    /// What a block's groups name.
    pub fn find(&mut self, epoch: Epoch, groups: &[Group]) -> Known {
        let first = groups.iter().find_map(|group| group.series.first()).copied().unwrap_or_default();
        self.uses += 1;
        let Some(table) = self.tables.get_mut(&epoch) else { return Known::Missing(first) };
        table.used = self.uses;
        let unknown = groups.iter().find_map(|group| table.unknown(&group.series));
        match unknown {
            None => Known::All(Arc::clone(&table.descriptors)),
            Some(number) => match table.undecodable.overlap(number.into(), number.into()) {
                Overlap::None => Known::Missing(number),
                Overlap::Partial | Overlap::Whole => Known::Undecodable(number),
            },
        }
    }

    fn touch(&mut self, epoch: Epoch) -> &mut Table {
        self.uses += 1;
        let bytes = &mut self.bytes;
        let table = self.tables.entry(epoch).or_insert_with(|| {
            *bytes += TABLE_BYTES;
            Table { bytes: TABLE_BYTES, ..Table::default() }
        });
        table.used = self.uses;
        table
    }

    fn forget_the_least_used(&mut self) {
        while self.bytes > self.bytes_max && self.tables.len() > 1 {
            let oldest = self.tables.iter().min_by_key(|(_, table)| table.used).map(|(&epoch, _)| epoch);
            let Some(table) = oldest.and_then(|epoch| self.tables.remove(&epoch)) else { return };
            self.bytes -= table.bytes;
        }
    }
}

impl Table {
    /// The first of these numbers that has no descriptor.
    fn unknown(&self, series: &[u32]) -> Option<u32> {
        if series.iter().max().is_none_or(|&highest| highest < self.described_below) {
            return None;
        }
        series.iter().copied().find(|number| !self.descriptors.contains_key(number))
    }
}

fn bytes_of(series: &Series) -> usize {
    let labels: usize =
        series.labels.iter().map(|(name, value)| size_of::<(String, String)>() + name.len() + value.len()).sum();
    ENTRY_BYTES + size_of::<Series>() + series.device.as_str().len() + series.name.len() + series.unit.len() + labels
}

#[cfg(test)]
mod tests {
    use satellite_shared::metric::Kind;

    use super::*;

    const A: Epoch = Epoch(1);
    const B: Epoch = Epoch(2);

    fn series(name: &str) -> Series {
        let device = "nas".parse().unwrap();
        Series { device, name: name.into(), kind: Kind::Gauge, unit: String::new(), labels: vec![] }
    }

    fn groups(numbers: &[u32]) -> Vec<Group> {
        vec![Group { series: numbers.to_vec(), times_ms: vec![0], values: vec![0.0; numbers.len()] }]
    }

    #[test]
    fn a_number_is_known_wherever_it_stands_among_those_announced() {
        let mut tables = SeriesTables::new(1 << 20);
        for first in [4, 1, 0, 7] {
            tables.announce(A, first, vec![series("x")]).unwrap();
        }
        for (numbers, missing) in
            [(&[0, 1][..], None), (&[0, 1, 4, 7], None), (&[0, 1, 2, 4], Some(2)), (&[9], Some(9))]
        {
            let group = Group { series: numbers.to_vec(), times_ms: vec![0], values: vec![0.0; numbers.len()] };
            match tables.find(A, &[group]) {
                Known::All(_) => assert_eq!(missing, None),
                Known::Missing(number) => assert_eq!(Some(number), missing),
                Known::Undecodable(number) => panic!("{number}"),
            }
        }
    }

    #[test]
    fn a_number_means_what_was_announced_in_its_own_epoch() {
        let mut tables = SeriesTables::new(1 << 20);
        tables.announce(A, 5, vec![series("a"), series("b")]).unwrap();
        let Known::All(known) = tables.find(A, &groups(&[5, 6])) else { panic!("known") };
        assert_eq!(known[&6].name, "b");
        assert!(matches!(tables.find(A, &groups(&[6, 7])), Known::Missing(7)));
        assert!(matches!(tables.find(B, &groups(&[5])), Known::Missing(5)));
    }

    #[test]
    fn a_block_on_its_way_keeps_the_table_it_left_with() {
        let mut tables = SeriesTables::new(1 << 20);
        tables.announce(A, 0, vec![series("a")]).unwrap();
        let Known::All(before) = tables.find(A, &groups(&[0])) else { panic!("known") };
        tables.announce(A, 1, vec![series("b")]).unwrap();
        assert_eq!(before.len(), 1);
        assert!(matches!(tables.find(A, &groups(&[0, 1])), Known::All(now) if now.len() == 2));
    }

    #[test]
    fn announcing_again_is_allowed_and_redefining_is_not() {
        let mut tables = SeriesTables::new(1 << 20);
        tables.announce(A, 0, vec![series("a")]).unwrap();
        assert_eq!(tables.announce(A, 0, vec![series("a"), series("b")]), Ok(()));
        let redefined = tables.announce(A, 1, vec![series("c")]);
        assert_eq!(redefined, Err(SeriesError::Changed { epoch: A, number: 1 }));
        let Known::All(known) = tables.find(A, &groups(&[1])) else { panic!("known") };
        assert_eq!(known[&1].name, "b");
    }

    #[test]
    fn beyond_the_bound_the_epoch_used_least_recently_is_forgotten() {
        let one = TABLE_BYTES + bytes_of(&series("a"));
        let mut tables = SeriesTables::new(2 * one);
        tables.announce(A, 0, vec![series("a")]).unwrap();
        tables.announce(B, 0, vec![series("b")]).unwrap();
        tables.find(A, &groups(&[0]));
        tables.announce(Epoch(3), 0, vec![series("c")]).unwrap();
        assert!(matches!(tables.find(A, &groups(&[0])), Known::All(_)));
        assert!(matches!(tables.find(B, &groups(&[0])), Known::Missing(0)));
    }

    #[test]
    fn one_epoch_beyond_the_bound_is_refused() {
        let mut tables = SeriesTables::new(10_000);
        let many: Vec<Series> = (0..200).map(|n| series(&format!("name_{n}"))).collect();
        assert!(matches!(tables.announce(A, 0, many), Err(SeriesError::TooLarge { .. })));
    }

    #[test]
    fn what_could_not_be_decoded_is_told_from_what_was_never_announced_until_it_comes_whole() {
        let mut tables = SeriesTables::new(1 << 20);
        tables.announce_undecodable(A, 3, 4).unwrap();
        assert!(matches!(tables.find(A, &groups(&[3])), Known::Undecodable(3)));
        assert!(matches!(tables.find(A, &groups(&[5])), Known::Missing(5)));
        tables.announce(A, 3, vec![series("a")]).unwrap();
        assert!(matches!(tables.find(A, &groups(&[3])), Known::All(_)));
    }

    #[test]
    fn endless_undecodable_descriptors_are_refused() {
        let mut tables = SeriesTables::new(1 << 20);
        let mut all = (0..200).map(|n| tables.announce_undecodable(A, n * 2, n * 2));
        assert!(all.any(|one| one == Err(SeriesError::Damaged(A))));
        assert_eq!(tables.announce_undecodable(A, u64::MAX - 1, u64::MAX), Ok(()));
    }
}
