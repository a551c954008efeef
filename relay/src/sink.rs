//! Where records go: what one commit holds, and the archive that takes it.
//!
//! A [`Batch`] keeps samples as the blocks brought them, column by column, with each series' text resolved once per
//! batch and not per row. There is one sink today; the archive is the one that acknowledgements wait for.

pub mod archive;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use satellite_shared::gap::Gap;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::limits;
use satellite_shared::metric::Series;
use satellite_shared::wire::block::Group;

use crate::sink::archive::layout::{BatchId, HOURS_MAX, Hour, TIME_MS};

/// Records that are committed together.
#[derive(Debug)]
pub struct Batch {
    /// Its name, also in the keys of its objects.
    pub id: BatchId,
    /// Whose records; the rest names them by index.
    pub satellites: Vec<SatelliteId>,
    /// Each series with the index of its satellite; the rest names them by index.
    pub series: Vec<(u32, Arc<Series>)>,
    /// The samples.
    pub pieces: Vec<Piece>,
    /// The gaps.
    pub gaps: Vec<GapRow>,
    /// Samples and gaps.
    pub rows: usize,
    /// By satellite and epoch.
    numbers: HashMap<(u32, Epoch), Numbers>,
    indexes: HashMap<SatelliteId, u32>,
    hours: BTreeSet<Hour>,
}

/// Series numbers of one page of [`Numbers`].
const PAGE: usize = 1_024;

/// The index in a batch's `series` plus one, by an epoch's series number. In pages, so that who uses only the highest
/// number costs a page and not a table as long as that number.
#[derive(Debug, Default)]
struct Numbers(Vec<Option<Box<[u32; PAGE]>>>);

impl Numbers {
    fn index(&self, number: usize) -> Option<u32> {
        self.0.get(number / PAGE)?.as_ref()?[number % PAGE].checked_sub(1)
    }

    fn set(&mut self, number: usize, index: u32) {
        if self.0.len() <= number / PAGE {
            self.0.resize_with(number / PAGE + 1, || None);
        }
        let page = self.0[number / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        page[number % PAGE] = index.saturating_add(1);
    }
}

/// Samples that share their times, of one block.
#[derive(Debug)]
pub struct Piece {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The first sample's number; they count up in series, time order.
    pub first_seq: u64,
    /// Which series, as indexes of the batch.
    pub series: Vec<u32>,
    /// Their times.
    pub times_ms: Vec<i64>,
    /// The hour that each time is filed under.
    pub hours: Vec<Hour>,
    /// Their values, series by series.
    pub values: Vec<f64>,
}

/// One gap.
#[derive(Debug)]
pub struct GapRow {
    /// Whose, as an index of the batch.
    pub satellite: u32,
    /// Whose numbers.
    pub epoch: Epoch,
    /// Its own number.
    pub seq: u64,
    /// The gap as the satellite said it.
    pub gap: Gap,
    /// How many due samples it explains that were neither stored nor explained before.
    pub explains: u64,
    /// The hour that it is filed under.
    pub hour: Hour,
}

/// Why a block's rows can't be stored, whenever it comes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unstorable {
    /// A group's columns do not fit each other.
    #[error("a group of {series} series and {times} times has {values} values")]
    Shape {
        /// Series.
        series: usize,
        /// Times.
        times: usize,
        /// Values.
        values: usize,
    },
    /// The header counts other records than there are.
    #[error("{have} records where the header counts {said}")]
    Count {
        /// Records there are.
        have: usize,
        /// Records the header says.
        said: u32,
    },
    /// A series' number has no descriptor.
    #[error("series {0} was never described")]
    Series(u32),
    /// No reader could hold the time.
    #[error("time {0} ms is before the year 1 or after the year 9999")]
    Time(i64),
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(id: BatchId) -> Self {
        Self {
            id,
            satellites: Vec::new(),
            series: Vec::new(),
            pieces: Vec::new(),
            gaps: Vec::new(),
            rows: 0,
            numbers: HashMap::new(),
            indexes: HashMap::new(),
            hours: BTreeSet::new(),
        }
    }

    /// Whether the batch would be filed under more hours than one commit may touch.
    #[must_use]
    pub fn is_too_wide_with(&self, groups: &[Group], received_ms: i64) -> bool {
        if self.hours.is_empty() {
            return false;
        }
        let mut room = HOURS_MAX.saturating_sub(self.hours.len());
        let mut new = BTreeSet::new();
        for &time_ms in groups.iter().flat_map(|group| &group.times_ms) {
            let hour = Hour::filed(time_ms, received_ms);
            if !self.hours.contains(&hour) && new.insert(hour) {
                let Some(less) = room.checked_sub(1) else { return true };
                room = less;
            }
        }
        false
    }

    /// Takes a block's samples.
    ///
    /// # Errors
    /// Says why they can't be stored; then nothing was taken.
    pub fn add_samples(
        &mut self,
        origin: &Origin<'_>,
        groups: Vec<Group>,
        series: &HashMap<u32, Arc<Series>>,
    ) -> Result<(), Unstorable> {
        check_shape(&groups, origin.count)?;
        let satellite = self.satellite(origin.satellite);
        let numbers = self.numbers.entry((satellite, origin.epoch)).or_default();
        let mut resolved = Vec::with_capacity(groups.len());
        for group in &groups {
            let mut indexes = Vec::with_capacity(group.series.len());
            for &number in &group.series {
                indexes.push(index_of(numbers, &mut self.series, satellite, series, number)?);
            }
            resolved.push(indexes);
        }
        let scattered = is_scattered(&groups, origin.received_ms);
        let mut first_seq = origin.first_seq;
        for (group, series) in groups.into_iter().zip(resolved) {
            let filed = |&time_ms: &i64| match scattered {
                true => Hour::of(origin.received_ms),
                false => Hour::filed(time_ms, origin.received_ms),
            };
            let hours: Vec<Hour> = group.times_ms.iter().map(filed).collect();
            self.hours.extend(&hours);
            self.rows += group.values.len();
            let count = group.values.len() as u64;
            let Group { times_ms, values, .. } = group;
            self.pieces.push(Piece { epoch: origin.epoch, first_seq, series, times_ms, hours, values });
            first_seq += count;
        }
        Ok(())
    }

    /// Takes one gap.
    pub fn add_gap(&mut self, origin: &Origin<'_>, seq: u64, gap: Gap, explains: u64) {
        let satellite = self.satellite(origin.satellite);
        let hour = Hour::filed(gap.to_ms, origin.received_ms).midnight();
        self.hours.insert(hour);
        self.gaps.push(GapRow { satellite, epoch: origin.epoch, seq, gap, explains, hour });
        self.rows += 1;
    }

    fn satellite(&mut self, id: &SatelliteId) -> u32 {
        if let Some(&index) = self.indexes.get(id) {
            return index;
        }
        let index = u32::try_from(self.satellites.len()).expect("a batch holds fewer satellites than rows");
        self.satellites.push(id.clone());
        self.indexes.insert(id.clone(), index);
        index
    }
}

/// Where a block came from, and when.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Whose.
    pub satellite: &'a SatelliteId,
    /// Whose numbers.
    pub epoch: Epoch,
    /// The first record's number.
    pub first_seq: u64,
    /// How many records.
    pub count: u32,
    /// When it arrived, wall clock.
    pub received_ms: i64,
}

/// Whether gaps can be stored at all.
///
/// # Errors
/// Says why not.
pub fn check_gaps(gaps: &[Gap], count: u32) -> Result<(), Unstorable> {
    if gaps.len() != count as usize {
        return Err(Unstorable::Count { have: gaps.len(), said: count });
    }
    match gaps.iter().flat_map(|gap| [gap.from_ms, gap.to_ms]).find(|time_ms| !TIME_MS.contains(time_ms)) {
        Some(time_ms) => Err(Unstorable::Time(time_ms)),
        None => Ok(()),
    }
}

fn check_shape(groups: &[Group], count: u32) -> Result<(), Unstorable> {
    let mut have = 0usize;
    for Group { series, times_ms, values } in groups {
        if series.len().checked_mul(times_ms.len()) != Some(values.len()) {
            return Err(Unstorable::Shape { series: series.len(), times: times_ms.len(), values: values.len() });
        }
        if let Some(&time_ms) = times_ms.iter().find(|time_ms| !TIME_MS.contains(time_ms)) {
            return Err(Unstorable::Time(time_ms));
        }
        have = have.saturating_add(values.len());
    }
    if have != count as usize {
        return Err(Unstorable::Count { have, said: count });
    }
    Ok(())
}

/// Whether one block alone touches more hours than a commit may: then it is filed under its arrival.
fn is_scattered(groups: &[Group], received_ms: i64) -> bool {
    let times: usize = groups.iter().map(|group| group.times_ms.len()).sum();
    if times <= HOURS_MAX {
        return false;
    }
    let times = groups.iter().flat_map(|group| &group.times_ms);
    times.map(|&time_ms| Hour::filed(time_ms, received_ms)).collect::<BTreeSet<_>>().len() > HOURS_MAX
}

fn index_of(
    numbers: &mut Numbers,
    known: &mut Vec<(u32, Arc<Series>)>,
    satellite: u32,
    series: &HashMap<u32, Arc<Series>>,
    number: u32,
) -> Result<u32, Unstorable> {
    let slot = number as usize;
    if let Some(index) = numbers.index(slot) {
        return Ok(index);
    }
    let described = series.get(&number).filter(|_| slot < limits::SERIES_PER_EPOCH_MAX);
    let described = described.ok_or(Unstorable::Series(number))?;
    let index = u32::try_from(known.len()).map_err(|_| Unstorable::Series(number))?;
    known.push((satellite, Arc::clone(described)));
    numbers.set(slot, index);
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_795_247_999_999;

    #[test]
    fn the_highest_number_alone_costs_one_page() {
        let mut numbers = Numbers::default();
        numbers.set(limits::SERIES_PER_EPOCH_MAX - 1, 7);
        assert_eq!(numbers.index(limits::SERIES_PER_EPOCH_MAX - 1), Some(7));
        assert_eq!((numbers.index(0), numbers.index(limits::SERIES_PER_EPOCH_MAX - 2)), (None, None));
        assert_eq!(numbers.0.iter().flatten().count(), 1);
        numbers.set(0, 0);
        assert_eq!(numbers.index(0), Some(0));
        assert_eq!(numbers.index(limits::SERIES_PER_EPOCH_MAX + 9_999), None);
    }

    fn origin(satellite: &SatelliteId, count: u32) -> Origin<'_> {
        Origin { satellite, epoch: Epoch(1), first_seq: 1, count, received_ms: NOW_MS }
    }

    fn described() -> HashMap<u32, Arc<Series>> {
        let series = Series {
            device: "nas".parse().unwrap(),
            name: "x".into(),
            kind: Default::default(),
            unit: String::new(),
            labels: vec![],
        };
        HashMap::from([(0, Arc::new(series))])
    }

    fn group(series: &[u32], times_ms: &[i64], values: usize) -> Group {
        Group { series: series.to_vec(), times_ms: times_ms.to_vec(), values: vec![0.0; values] }
    }

    #[test]
    fn what_can_not_be_stored_is_refused_whole_and_says_why() {
        let id = SatelliteId::from_bits([1; 10]);
        let mut batch = Batch::new(BatchId::new(NOW_MS, [0; 10]));
        let mut check = |groups: Vec<Group>, count, expect: Unstorable| {
            assert_eq!(batch.add_samples(&origin(&id, count), groups, &described()), Err(expect));
            assert!(batch.pieces.is_empty() && batch.rows == 0);
        };
        check(vec![group(&[0], &[NOW_MS], 2)], 2, Unstorable::Shape { series: 1, times: 1, values: 2 });
        check(vec![group(&[0], &[NOW_MS], 1)], 2, Unstorable::Count { have: 1, said: 2 });
        check(vec![group(&[0, 7], &[NOW_MS], 2)], 2, Unstorable::Series(7));
        check(vec![group(&[0, u32::MAX], &[NOW_MS], 2)], 2, Unstorable::Series(u32::MAX));
        check(vec![group(&[0], &[i64::MAX], 1)], 1, Unstorable::Time(i64::MAX));
    }

    #[test]
    fn a_batch_touches_a_bounded_number_of_hours() {
        let id = SatelliteId::from_bits([1; 10]);
        let hours = |from: i64, n: i64| (from..from + n).map(|h| NOW_MS - h * 3_600_000).collect::<Vec<_>>();
        let mut batch = Batch::new(BatchId::new(NOW_MS, [0; 10]));
        let first = vec![group(&[0], &hours(0, 150), 150)];
        assert!(!batch.is_too_wide_with(&first, NOW_MS));
        batch.add_samples(&origin(&id, 150), first, &described()).unwrap();
        assert!(!batch.is_too_wide_with(&[group(&[0], &hours(100, 100), 100)], NOW_MS));
        assert!(batch.is_too_wide_with(&[group(&[0], &hours(100, 101), 101)], NOW_MS));

        let mut alone = Batch::new(BatchId::new(NOW_MS, [0; 10]));
        alone.add_samples(&origin(&id, 500), vec![group(&[0], &hours(0, 500), 500)], &described()).unwrap();
        assert_eq!(alone.hours.len(), 1, "a block that alone touches more is filed under its arrival");
    }
}
