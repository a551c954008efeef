//! The judge: it knows each slot that was due and each record that was numbered, and reads what is stored at the end.
//!
//! Each sample that was due must be found once: as a row, within a gap, or as a record that a gap declares lost. No row
//! may stand twice, be altered, or be of a record that nobody numbered, and the accounts must add up to the same.
//! It shares no code with what it judges, but for reading frames.
//!
//! Where a disk was put back, the satellite can't know what it had done since: what became of those slots may be said
//! twice, but not stored twice. Where registry and archive were put back together, what they had had since may be missing.

use std::collections::{BTreeMap, BTreeSet};

use satellite_agent::buffer::Commit;
use satellite_shared::gap::Gap;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::wire::block::{Body, Decoder};

use super::storage::{Registry, Row, Stored, What};

/// What a round came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Samples that were due.
    pub due: u64,
    /// Samples that are stored.
    pub stored: u64,
    /// Samples that gaps explain.
    pub explained: u64,
    /// Samples that went with a registry and an archive that were put back.
    pub forgiven: u64,
}

impl Summary {
    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            due: self.due + more.due,
            stored: self.stored + more.stored,
            explained: self.explained + more.explained,
            forgiven: self.forgiven + more.forgiven,
        }
    }
}

/// The judge.
#[derive(Debug)]
pub struct Oracle {
    satellites: Vec<Known>,
    samples: u64,
    decoder: Decoder,
}

#[derive(Debug)]
struct Known {
    id: SatelliteId,
    /// The first slot that was due.
    first: Option<i64>,
    records: BTreeMap<(Epoch, u64), Record>,
    series: BTreeMap<(Epoch, u64), String>,
    /// Slots of which the satellite has forgotten what became of them.
    rolled_back: Vec<(i64, i64)>,
    /// Until here the relay may have forgotten what it had.
    forgiven: i64,
    /// Epochs whose accounts may lack something.
    loose: BTreeSet<Epoch>,
}

#[derive(Debug, Clone, PartialEq)]
enum Record {
    Sample { slot: i64, n: u64, series: String, time_ms: i64, value: u64 },
    Gap(Gap),
}

/// A gap of slots, and how many of its samples nothing else has taken yet.
struct Cover {
    from: i64,
    to: i64,
    count: u64,
}

impl Oracle {
    /// Of these satellites, whose polls give so many samples.
    #[must_use]
    pub fn new(ids: Vec<SatelliteId>, samples: u64) -> Self {
        let known = |id| Known {
            id,
            first: None,
            records: BTreeMap::new(),
            series: BTreeMap::new(),
            rolled_back: Vec::new(),
            forgiven: -1,
            loose: BTreeSet::new(),
        };
        Self { satellites: ids.into_iter().map(known).collect(), samples, decoder: Decoder::default() }
    }

    /// Whether slots are due at a satellite.
    #[must_use]
    pub fn has_begun(&self, satellite: usize) -> bool {
        self.satellites[satellite].first.is_some()
    }

    /// A commit is durable: from the first one on, slots are due.
    pub fn begin(&mut self, satellite: usize, slot: i64) {
        self.satellites[satellite].first.get_or_insert(slot);
    }

    /// A satellite has numbered records.
    ///
    /// # Errors
    /// When a number has another content already.
    pub fn number(&mut self, satellite: usize, commit: &Commit) -> Result<(), String> {
        let known = &mut self.satellites[satellite];
        for frame in commit.series.iter().chain(&commit.blocks) {
            let (header, body) = self.decoder.decode(frame).map_err(|error| error.to_string())?;
            let epoch = header.epoch;
            let mut records = Vec::new();
            match body {
                Body::Series(series) => {
                    for (number, one) in (header.first_seq..).zip(series) {
                        known.series.insert((epoch, number), one.name);
                    }
                }
                Body::Gaps(gaps) => records.extend(gaps.into_iter().map(Record::Gap)),
                Body::Samples(groups) => {
                    for group in groups {
                        let times = group.times_ms.len();
                        for (at, value) in group.values.iter().enumerate() {
                            let (slot, n) = slot_of(*value);
                            let number = u64::from(group.series[at / times]);
                            let series = known.series.get(&(epoch, number)).cloned().unwrap_or_default();
                            let time_ms = group.times_ms[at % times];
                            records.push(Record::Sample { slot, n, series, time_ms, value: value.to_bits() });
                        }
                    }
                }
            }
            for (seq, record) in (header.first_seq..).zip(records) {
                let before = known.records.insert((epoch, seq), record.clone());
                if before.is_some_and(|before| before != record) {
                    return Err(format!("record {seq} of epoch {epoch} has two contents"));
                }
            }
        }
        Ok(())
    }

    /// A satellite's disk was put back to when slots from `unsettled` on were not accounted for.
    pub fn roll_back(&mut self, satellite: usize, unsettled: i64, now: i64) {
        let known = &mut self.satellites[satellite];
        known.rolled_back.push((unsettled, now));
        known.loose.extend(known.records.keys().map(|(epoch, _)| *epoch));
    }

    /// Registry and archive were put back together.
    pub fn forgive(&mut self, slot: u64) {
        for known in &mut self.satellites {
            known.forgiven = i64::try_from(slot).unwrap_or(0);
            known.loose.extend(known.records.keys().map(|(epoch, _)| *epoch));
        }
    }

    /// Judges what is stored when all is at rest.
    ///
    /// # Errors
    /// Says what is wrong first.
    pub fn judge(
        &self,
        last_slot: i64,
        objects: &BTreeMap<String, Stored>,
        registry: &Registry,
    ) -> Result<Summary, String> {
        let mut rows: BTreeMap<(&SatelliteId, Epoch, u64), &Row> = BTreeMap::new();
        for row in objects.values().flat_map(|stored| stored.rows.iter()) {
            if rows.insert((&row.satellite, row.epoch, row.seq), row).is_some() {
                return Err(format!("doubled: record {} of epoch {} stands twice", row.seq, row.epoch));
            }
        }
        let mut summary = Summary::default();
        for known in &self.satellites {
            let own: Vec<&Row> = rows.range((&known.id, Epoch(0), 0)..).map(|(_, row)| *row).collect();
            let own: Vec<&Row> = own.into_iter().take_while(|row| row.satellite == known.id).collect();
            known.judge_rows(&own)?;
            summary = summary.plus(known.judge_slots(&own, last_slot, self.samples)?);
            known.judge_accounts(&own, registry)?;
        }
        Ok(summary)
    }
}

impl Known {
    /// Nothing unexpected, nothing altered.
    fn judge_rows(&self, rows: &[&Row]) -> Result<(), String> {
        for row in rows {
            let identity = format!("record {} of epoch {}", row.seq, row.epoch);
            let Some(record) = self.records.get(&(row.epoch, row.seq)) else {
                return Err(format!("unexpected: {identity} was never numbered"));
            };
            let same = match (&row.what, record) {
                (
                    What::Sample { series, time_ms, value },
                    Record::Sample { series: name, time_ms: at, value: v, .. },
                ) => series == name && time_ms == at && value == v,
                (What::Gap(gap, _), Record::Gap(said)) => gap == said,
                (What::Sample { .. }, Record::Gap(_)) | (What::Gap(..), Record::Sample { .. }) => false,
            };
            if !same {
                return Err(format!("altered: {identity} is {:?} and was {record:?}", row.what));
            }
        }
        Ok(())
    }

    /// The numbers that stored gaps declare lost.
    fn lost(rows: &[&Row]) -> BTreeSet<(Epoch, u64)> {
        let gaps = rows.iter().filter_map(|row| match &row.what {
            What::Gap(gap, _) => gap.lost,
            What::Sample { .. } => None,
        });
        gaps.flat_map(|lost| (lost.first_seq..=lost.last_seq).map(move |seq| (lost.epoch, seq))).collect()
    }

    /// Each sample that was due is found once.
    fn judge_slots(&self, rows: &[&Row], last_slot: i64, samples: u64) -> Result<Summary, String> {
        let stored: BTreeSet<(Epoch, u64)> = rows.iter().map(|row| (row.epoch, row.seq)).collect();
        let lost = Self::lost(rows);
        let mut found: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        let mut doubled: BTreeMap<(i64, u64), u64> = BTreeMap::new();
        let mut covers = Vec::new();
        for (identity, record) in &self.records {
            let is_stored = stored.contains(identity);
            if !is_stored && !lost.contains(identity) {
                continue;
            }
            match record {
                Record::Sample { slot, n, .. } => {
                    *found.entry((*slot, *n)).or_default() += 1;
                    *doubled.entry((*slot, *n)).or_default() += u64::from(is_stored);
                }
                Record::Gap(gap) if gap.lost.is_none() => {
                    covers.push(Cover { from: gap.from_ms, to: gap.to_ms, count: gap.count });
                }
                Record::Gap(_) => {}
            }
        }
        if let Some(((slot, n), _)) = doubled.iter().find(|(_, times)| **times > 1) {
            return Err(format!("doubled: sample {n} of slot {slot} is stored under two numbers"));
        }
        let explained = self.spread(covers, samples, &mut found)?;
        let first = self.first.unwrap_or(i64::MAX);
        let mut summary = Summary { explained, ..Summary::default() };
        for slot in first..=last_slot {
            for n in 0..samples {
                let times = found.get(&(slot, n)).copied().unwrap_or(0);
                summary.due += 1;
                summary.stored += u64::from(doubled.get(&(slot, n)).copied().unwrap_or(0) == 1);
                if times == 0 && slot <= self.forgiven {
                    summary.forgiven += 1;
                } else if times == 0 {
                    return Err(format!("lost silently: sample {n} of slot {slot} of {}", self.id));
                } else if times > 1 && !self.is_rolled_back(slot) {
                    return Err(format!("explained twice: sample {n} of slot {slot} of {}", self.id));
                }
            }
        }
        Ok(summary)
    }

    fn is_rolled_back(&self, slot: i64) -> bool {
        self.rolled_back.iter().any(|(from, to)| (*from..=*to).contains(&slot))
    }

    /// Lays gaps over their slots: those that cover all of theirs first, the others where nothing else is.
    fn spread(
        &self,
        mut covers: Vec<Cover>,
        samples: u64,
        found: &mut BTreeMap<(i64, u64), u64>,
    ) -> Result<u64, String> {
        let slots = |cover: &Cover| u64::try_from(cover.to - cover.from + 1).unwrap_or(0);
        covers.sort_by_key(|cover| (cover.count < slots(cover) * samples, slots(cover)));
        let mut explained = 0;
        for cover in covers {
            let mut left = cover.count;
            explained += cover.count;
            let whole = cover.count >= slots(&cover) * samples;
            for slot in cover.from..=cover.to {
                for n in 0..samples {
                    let times = found.entry((slot, n)).or_default();
                    if left > 0 && (whole || *times == 0) {
                        *times += 1;
                        left -= 1;
                    }
                }
            }
            if left > 0 && !(cover.from..=cover.to).any(|slot| self.is_rolled_back(slot)) {
                return Err(format!(
                    "explained twice: a gap of slots {} to {} counts {left} too many",
                    cover.from, cover.to
                ));
            }
        }
        Ok(explained)
    }

    /// What the registry says adds up, and is what is stored.
    fn judge_accounts(&self, rows: &[&Row], registry: &Registry) -> Result<(), String> {
        let stored: BTreeSet<(Epoch, u64)> = rows.iter().map(|row| (row.epoch, row.seq)).collect();
        let lost = Self::lost(rows);
        for ((satellite, epoch), tally) in &registry.streams {
            if *satellite != self.id || self.loose.contains(epoch) {
                continue;
            }
            let mut samples = 0;
            let mut explained = 0;
            let mut explains = 0;
            for row in rows {
                match &row.what {
                    What::Sample { .. } => samples += u64::from(row.epoch == *epoch),
                    What::Gap(gap, new) => match gap.lost {
                        Some(lost) => explains += if lost.epoch == *epoch { *new } else { 0 },
                        None => explained += if row.epoch == *epoch { gap.count } else { 0 },
                    },
                }
            }
            let of_epoch = self.records.range((*epoch, 0)..=(*epoch, u64::MAX));
            let holes = of_epoch.filter(|(identity, _)| !stored.contains(identity) && lost.contains(identity));
            let holes: u64 = holes
                .map(|(_, record)| match record {
                    Record::Sample { .. } => 1,
                    Record::Gap(gap) => gap.due(),
                })
                .sum();
            let due = samples + explained + explains;
            let right = tally.is_balanced()
                && (tally.stored, tally.explained, tally.set_aside) == (samples, explained + explains, 0)
                && tally.due == due
                && holes == explains;
            if !right {
                return Err(format!(
                    "epoch {epoch}: {samples} stored, {explained} and {explains} explained, {holes} holes; the account \
                     says {tally:?}"
                ));
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a whole number made by `satellite::value`")]
fn slot_of(value: f64) -> (i64, u64) {
    let number = (value as i64) % 1_000_000;
    (number / 10, u64::try_from(number % 10).unwrap_or(0))
}
