//! What the next group commit will hold: records, misses and losses gathered since the last one, numbered when it is made.
//!
//! Pure: time is passed in, and the buffer's answers. A group that was made must be stored, however often that has to be
//! tried, before the next one is made: its numbers are used up.

use std::collections::{BTreeMap, HashMap, VecDeque};

use satellite_shared::clock::Now;
use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::{DeviceName, Epoch};
use satellite_shared::wire::block::{ClockQuality, Group};

use super::frames::FrameWriter;
use super::notes::{Notes, UnderWay};
use super::series_table::{SeriesTable, Unnumbered};
use super::{Ended, RecorderState};
use crate::buffer::{Commit, Loss};
use crate::ledger::{Ledger, Missed};

/// Samples that may wait for a commit; more push the oldest out.
const PENDING_SAMPLES_MAX: usize = 200_000;
/// Samples after which a commit does not wait for its time.
const COMMIT_SAMPLES: usize = 20_000;
/// How long no more may be lost before it is explained.
const LOSS_QUIET_MS: u64 = 5_000;
/// And how long that may take: a buffer that is always over a bound explains all the same.
const LOSS_WAIT_MAX_MS: u64 = 600_000;

/// The next group.
#[derive(Debug)]
pub struct Draft {
    writer: FrameWriter,
    table: SeriesTable,
    ledger: Ledger,
    losses: Vec<Loss>,
    /// When the first of the losses came, and when they last grew; unset for those found at the start.
    losses_since_ms: Option<(u64, u64)>,
    pending: VecDeque<Polled>,
    pending_samples: usize,
    under_way: BTreeMap<u64, UnderWay>,
    through_ms: i64,
    dirty: bool,
    state: RecorderState,
}

/// The samples of one poll, their series numbered and ascending.
#[derive(Debug)]
pub struct Polled {
    /// Which device gave them.
    pub device: DeviceName,
    /// When.
    pub at_ms: i64,
    /// The numbers of their series.
    pub series: Vec<u32>,
    /// As many values.
    pub values: Vec<f64>,
}

impl Draft {
    /// The first group of a freshly opened buffer. `notes` are those of the last commit before, `losses` what no gap
    /// explains yet.
    #[must_use]
    pub fn new(epoch: Epoch, notes: Option<Notes>, losses: Vec<Loss>, now: Now) -> Self {
        let mut draft = Self {
            writer: FrameWriter::new(epoch),
            table: SeriesTable::default(),
            ledger: Ledger::default(),
            losses,
            losses_since_ms: None,
            pending: VecDeque::new(),
            pending_samples: 0,
            under_way: BTreeMap::new(),
            through_ms: notes.as_ref().map_or(now.wall_ms, |notes| notes.until_ms),
            dirty: true,
            state: RecorderState::default(),
        };
        if let Some(notes) = notes {
            draft.ledger.reopen(notes.open);
            for poll in notes.under_way {
                draft.ledger.miss(poll.stopped("satellite stopped during the poll"), now.wall_ms);
            }
        }
        draft
    }

    /// What has passed here since the start.
    #[must_use]
    pub fn state(&self) -> &RecorderState {
        &self.state
    }

    /// The gaps written last and those still open.
    #[must_use]
    pub fn recent_gaps(&self) -> Vec<Gap> {
        self.ledger.recent()
    }

    /// Every slot up to this time has been begun or missed.
    pub fn set_through(&mut self, through_ms: i64) {
        self.through_ms = through_ms;
    }

    /// Something must be made durable that no record shows.
    pub fn touch(&mut self) {
        self.dirty = true;
    }

    /// Whether there may be something to commit before long.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        self.dirty || !self.ledger.is_quiet() || !self.losses.is_empty()
    }

    /// Whether there is something to commit now.
    #[must_use]
    pub fn is_due(&self, now: Now) -> bool {
        let losses_due = !self.losses.is_empty() && self.losses_ripe(now.mono_ms);
        self.dirty || losses_due || self.ledger.has_ripe(now.wall_ms)
    }

    /// Whether it is large enough not to wait.
    #[must_use]
    pub fn is_large(&self) -> bool {
        self.pending_samples >= COMMIT_SAMPLES
    }

    /// A poll began.
    pub fn begin(&mut self, poll: UnderWay) {
        self.under_way.insert(poll.poll, poll);
    }

    /// A poll ended.
    pub fn end(&mut self, ended: Ended, now: Now) {
        self.under_way.remove(&ended.poll);
        for metric in &ended.metrics {
            self.ledger.close(&ended.device, metric);
        }
        let mut rejected: HashMap<Unnumbered, u64> = HashMap::new();
        let mut samples: Vec<(u32, f64)> = Vec::with_capacity(ended.readings.len());
        for reading in ended.readings.iter() {
            match self.table.number(&ended.device, reading.key) {
                Ok(number) => samples.push((number, reading.value)),
                Err(why) => *rejected.entry(why).or_default() += 1,
            }
        }
        samples.sort_by_key(|&(number, _)| number);
        let before = samples.len();
        samples.dedup_by_key(|&mut (number, _)| number);
        let doubled = (before - samples.len()) as u64;
        for (count, detail) in [
            (
                rejected.get(&Unnumbered::Invalid).copied().unwrap_or(0),
                "name or labels break Prometheus' grammar or limits",
            ),
            (
                rejected.get(&Unnumbered::TooManyOfDevice).copied().unwrap_or(0),
                "too many series of one device since the start: narrow it with `include` or `exclude`, then restart the \
                 satellite",
            ),
            (
                rejected.get(&Unnumbered::TooMany).copied().unwrap_or(0),
                "too many series: restart the satellite to number anew",
            ),
            (doubled, "the same series twice in one answer"),
        ] {
            let missed = Missed {
                device: ended.device.clone(),
                metric: String::new(),
                from_ms: ended.at_ms,
                to_ms: ended.at_ms,
                count,
                reason: Reason::BadAnswer,
                detail: detail.into(),
            };
            self.miss(missed, now);
        }
        let count = samples.len();
        self.state.polls += 1;
        self.state.due += count as u64;
        self.state.samples += count as u64;
        self.state.series = self.table.len();
        if count > 0 {
            let (series, values) = samples.into_iter().unzip();
            self.pending.push_back(Polled { device: ended.device, at_ms: ended.at_ms, series, values });
            self.pending_samples += count;
            self.dirty = true;
        }
        ended.missed.into_iter().for_each(|one| self.miss(one, now));
        self.bound_pending(now);
        self.state.pending = self.pending_samples;
    }

    /// Slots gave nothing.
    pub fn miss(&mut self, missed: Missed, now: Now) {
        if missed.count == 0 {
            return;
        }
        self.state.due = self.state.due.saturating_add(missed.count);
        self.state.explained = self.state.explained.saturating_add(missed.count);
        self.ledger.miss(missed, now.wall_ms);
        self.dirty = true;
    }

    /// While nothing can be committed, the oldest polls make room and become a gap.
    fn bound_pending(&mut self, now: Now) {
        while self.pending_samples > PENDING_SAMPLES_MAX {
            let Some(oldest) = self.pending.pop_front() else { return };
            let count = oldest.values.len();
            self.pending_samples -= count;
            // They had been counted as samples; they are explained instead.
            self.state.due -= count as u64;
            self.state.samples -= count as u64;
            let missed = Missed {
                device: oldest.device,
                metric: String::new(),
                from_ms: oldest.at_ms,
                to_ms: oldest.at_ms,
                count: count as u64,
                reason: Reason::DiskFull,
                detail: "the buffer could not be written".into(),
            };
            self.miss(missed, now);
        }
    }

    /// No poll that is under way will end any more.
    pub fn stop(&mut self, now: Now) {
        for (_, poll) in std::mem::take(&mut self.under_way) {
            self.miss(poll.stopped("satellite was stopped during the poll"), now);
        }
        self.dirty = true;
    }

    /// Takes in the notes of the run before, which came only now.
    pub fn take_notes(&mut self, notes: Notes, now: Now) {
        self.ledger.reopen(notes.open);
        for poll in notes.under_way {
            self.miss(poll.stopped("satellite stopped during the poll"), now);
        }
        self.dirty = true;
    }

    /// What the buffer says is lost. Losses are explained once no more come, as one gap each: while blocks are evicted
    /// at the one end, every gap written at the other would be evicted in turn.
    pub fn take_losses(&mut self, losses: Vec<Loss>, now: Now) {
        let now_ms = now.mono_ms;
        if losses.is_empty() {
            self.losses_since_ms = None;
        } else if losses != self.losses || self.losses_since_ms.is_none() {
            let first = self.losses_since_ms.map_or(now_ms, |(first, _)| first);
            self.losses_since_ms = Some((first, now_ms));
        }
        self.losses = losses;
    }

    fn losses_ripe(&self, now_ms: u64) -> bool {
        self.losses_since_ms.is_none_or(|(first, last)| {
            now_ms.saturating_sub(last) >= LOSS_QUIET_MS || now_ms.saturating_sub(first) >= LOSS_WAIT_MAX_MS
        })
    }

    /// The group as it is now; the next one begins empty. The last one takes the open gaps too.
    pub fn group(&mut self, last: bool, made: Now, quality: ClockQuality) -> Commit {
        let fresh = self.table.take_fresh();
        let series = self.writer.series(&fresh, made);
        let groups = rectangles(std::mem::take(&mut self.pending));
        self.pending_samples = 0;
        self.state.pending = 0;
        let mut blocks = self.writer.samples(groups, made, quality);

        let mut ripe = Vec::new();
        if last || self.losses_ripe(made.mono_ms) {
            ripe = std::mem::take(&mut self.losses);
            self.losses_since_ms = None;
        }
        let losses_explained = ripe.len();
        let mut gaps: Vec<Gap> = ripe.iter().map(gap_of_loss).collect();
        for gap in &gaps {
            self.ledger.remember(gap.clone());
        }
        gaps.extend(self.ledger.take(made.wall_ms, last));
        blocks.extend(self.writer.gaps(&gaps, made, quality));
        self.dirty = false;
        let notes = Notes {
            until_ms: self.through_ms,
            under_way: self.under_way.values().cloned().collect(),
            open: self.ledger.open(),
        };
        Commit { series, blocks, notes: notes.write(), losses_explained }
    }
}

/// Polls of the same series become one group with several times; the others stay alone.
#[must_use]
pub fn rectangles(polls: impl IntoIterator<Item = Polled>) -> Vec<Group> {
    let mut groups: Vec<(Vec<u32>, Vec<Polled>)> = Vec::new();
    let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
    for mut polled in polls {
        let series = std::mem::take(&mut polled.series);
        if let Some(&at) = known.get(&series) {
            groups[at].1.push(polled);
        } else {
            known.insert(series.clone(), groups.len());
            groups.push((series, vec![polled]));
        }
    }
    let transpose = |(series, polls): (Vec<u32>, Vec<Polled>)| {
        let times_ms: Vec<i64> = polls.iter().map(|polled| polled.at_ms).collect();
        let values = (0..series.len()).flat_map(|at| polls.iter().map(move |polled| polled.values[at])).collect();
        Group { series, times_ms, values }
    };
    groups.into_iter().map(transpose).collect()
}

#[expect(clippy::wildcard_enum_match_arm, reason = "losses have three of the reasons")]
fn gap_of_loss(loss: &Loss) -> Gap {
    let detail = match loss.reason {
        Reason::Evicted => "the buffer was over a bound and its oldest blocks went",
        Reason::RelayRestored => "the relay had acknowledged these and lost them, as after its disks were copied back",
        _ => "the buffer was damaged and these blocks could not be read back",
    };
    Gap {
        device: None,
        metric: None,
        from_ms: loss.from_ms,
        to_ms: loss.to_ms.max(loss.from_ms),
        count: loss.count,
        reason: loss.reason,
        detail: detail.into(),
        lost: Some(loss.lost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polled(at_ms: i64, series: &[u32], values: &[f64]) -> Polled {
        Polled { device: "nas".parse().unwrap(), at_ms, series: series.to_vec(), values: values.to_vec() }
    }

    #[test]
    fn polls_of_the_same_series_share_a_group_series_by_series() {
        let polls = [
            polled(1_000, &[1, 2], &[10.0, 20.0]),
            polled(1_500, &[7], &[70.0]),
            polled(2_000, &[1, 2], &[11.0, 21.0]),
        ];
        let groups = rectangles(polls);
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].times_ms, [1_000, 2_000]);
        assert_eq!(groups[0].values, [10.0, 11.0, 20.0, 21.0]);
        assert_eq!(groups[1].values, [70.0]);
    }
}
