//! Makes records of what was polled: numbers series, groups a commit's worth, hands it to the buffer.
//!
//! Everything that was due passes here, in the scheduler's order, as samples or as misses. Each commit carries notes:
//! until when all slots are accounted for, which polls were under way, which gaps are open. After a crash the next
//! start explains exactly what the notes leave out, and nothing twice. Deliberately absent: a queue on disk of its
//! own. When the buffer can't take a commit, what is polled waits in a bounded ring and the oldest of it becomes a gap.

pub mod frames;

pub mod notes;

pub mod series_table;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::gap::{Gap, Reason};
use satellite_shared::id::DeviceName;
use satellite_shared::wire::block::{ClockQuality, Group};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::buffer::{Buffer, Commit, CommitError, Committed, Loss, Opened};
use crate::collector::Readings;
use crate::kernel_clock;
use crate::ledger::{Ledger, Missed};
use crate::scheduler::Order;
use frames::FrameWriter;
use notes::{Notes, UnderWay};
use series_table::{SeriesTable, Unnumbered};

/// Samples that may wait for a commit; more push the oldest out.
const PENDING_SAMPLES_MAX: usize = 200_000;
/// Samples after which a commit does not wait for its time.
const COMMIT_SAMPLES: usize = 20_000;
/// How long a failed commit waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long no more may be lost before it is explained.
const LOSS_QUIET: Duration = Duration::from_secs(5);
/// And how long that may take: a buffer that is always over a bound explains all the same.
const LOSS_WAIT_MAX: Duration = Duration::from_secs(600);
/// How often the kernel is asked whether the clock is synchronised.
const QUALITY_EVERY: Duration = Duration::from_secs(64);

/// What the scheduler says, in order.
#[derive(Debug)]
pub struct Step {
    /// Every slot up to this time has been begun or missed in this step or one before.
    pub through_ms: i64,
    /// What happened.
    pub what: What,
}

/// What happened to slots.
#[derive(Debug)]
pub enum What {
    /// A poll began.
    Begun(UnderWay),
    /// A poll ended.
    Ended(Ended),
    /// Slots passed without a poll.
    Missed(Vec<Missed>),
    /// What was said so far is to be made durable now; the token is cancelled when that has been tried.
    Commit(CancellationToken),
}

/// A poll that ended.
#[derive(Debug)]
pub struct Ended {
    /// The number it began with.
    pub poll: u64,
    /// The device.
    pub device: DeviceName,
    /// Names of the metrics that were due and gave what they had.
    pub metrics: Vec<String>,
    /// When it was polled, wall clock.
    pub at_ms: i64,
    /// What it gave.
    pub readings: Readings,
    /// What it did not give.
    pub missed: Vec<Missed>,
}

/// What `satellite status` says of the recorder.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RecorderState {
    /// Samples due since start.
    pub due: u64,
    /// Samples recorded since start.
    pub samples: u64,
    /// Samples explained by gaps since start.
    pub explained: u64,
    /// Series known.
    pub series: usize,
    /// Polls ended since start.
    pub polls: u64,
    /// Samples that wait for a commit.
    pub pending: usize,
    /// Why nothing can be committed, where that is so.
    pub degraded: Option<String>,
}

/// The task.
pub struct Recorder {
    steps: mpsc::Receiver<Step>,
    gap_queries: mpsc::Receiver<oneshot::Sender<Vec<Gap>>>,
    state: watch::Sender<RecorderState>,
    buffer: Buffer,
    clock: Arc<dyn Clock>,
    commit_every: Duration,
    writer: FrameWriter,
    table: SeriesTable,
    ledger: Ledger,
    losses: Vec<Loss>,
    /// When the first of the losses came, and when they last grew; unset for those found at the start.
    losses_since: Option<(Instant, Instant)>,
    pending: VecDeque<Polled>,
    pending_samples: usize,
    under_way: BTreeMap<u64, UnderWay>,
    through_ms: i64,
    dirty: bool,
    /// Who waits for the next commit.
    waiting: Vec<CancellationToken>,
    orders: mpsc::Sender<Order>,
    /// When this run began, while the notes of the run before have not been seen.
    notes_missing_since_ms: Option<i64>,
    quality: (ClockQuality, Option<Instant>),
}

/// What the recorder is made of.
pub struct Parts {
    /// From the scheduler.
    pub steps: mpsc::Receiver<Step>,
    /// From the local socket.
    pub gap_queries: mpsc::Receiver<oneshot::Sender<Vec<Gap>>>,
    /// For the local socket.
    pub state: watch::Sender<RecorderState>,
    /// Where records go.
    pub buffer: Buffer,
    /// What its opening found.
    pub opened: Opened,
    /// The notes of the last commit before, as [`Notes::read`] gave them.
    pub notes: Option<Notes>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How often to commit.
    pub commit_every: Duration,
    /// To the scheduler, for a stop that is found only when the disk works again.
    pub orders: mpsc::Sender<Order>,
}

/// The samples of one poll, their series numbered and ascending.
#[derive(Debug)]
struct Polled {
    device: DeviceName,
    at_ms: i64,
    series: Vec<u32>,
    values: Vec<f64>,
}

impl Recorder {
    /// A recorder of a freshly opened buffer.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        let mut ledger = Ledger::default();
        let until_ms = parts.notes.as_ref().map(|notes| notes.until_ms);
        let notes_missing_since_ms = parts.notes.is_none().then_some(now.wall_ms);
        if let Some(notes) = parts.notes {
            ledger.reopen(notes.open);
            for poll in notes.under_way {
                ledger.miss(poll.stopped("satellite stopped during the poll"), now.wall_ms);
            }
        }
        Self {
            steps: parts.steps,
            gap_queries: parts.gap_queries,
            state: parts.state,
            buffer: parts.buffer,
            clock: parts.clock,
            commit_every: parts.commit_every,
            writer: FrameWriter::new(parts.opened.epoch),
            table: SeriesTable::default(),
            ledger,
            losses: parts.opened.losses,
            losses_since: None,
            pending: VecDeque::new(),
            pending_samples: 0,
            under_way: BTreeMap::new(),
            through_ms: until_ms.unwrap_or(now.wall_ms),
            dirty: true,
            waiting: Vec::new(),
            orders: parts.orders,
            notes_missing_since_ms,
            quality: (ClockQuality::Unknown, None),
        }
    }

    /// Records until the scheduler has gone, then commits what is left.
    ///
    /// # Errors
    /// The buffer is gone or says that a commit breaks its rules: the next start explains what is missing then.
    pub async fn run(mut self) -> Result<(), CommitError> {
        let mut next = Instant::now() + self.commit_every;
        loop {
            let wake = self.dirty || !self.ledger.is_quiet() || !self.losses.is_empty();
            tokio::select! {
                step = self.steps.recv() => match step {
                    Some(step) => self.on_step(step),
                    None => break,
                },
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.ledger.recent())),
                () = tokio::time::sleep_until(next), if wake => next = self.on_commit_time(false).await?,
            }
            let full = self.pending_samples >= COMMIT_SAMPLES && self.state.borrow().degraded.is_none();
            if full || !self.waiting.is_empty() {
                next = self.on_commit_time(false).await?;
            }
        }
        for (_, poll) in std::mem::take(&mut self.under_way) {
            self.miss(poll.stopped("satellite was stopped during the poll"));
        }
        self.dirty = true;
        self.on_commit_time(true).await.map(|_| ())
    }

    fn on_step(&mut self, step: Step) {
        self.through_ms = step.through_ms;
        match step.what {
            What::Begun(poll) => drop(self.under_way.insert(poll.poll, poll)),
            What::Ended(ended) => self.on_ended(ended),
            What::Missed(missed) => missed.into_iter().for_each(|one| self.miss(one)),
            What::Commit(waiting) => {
                self.waiting.push(waiting);
                self.dirty = true;
            }
        }
    }

    fn on_ended(&mut self, ended: Ended) {
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
            self.miss(missed);
        }
        let count = samples.len();
        self.state.send_modify(|state| {
            state.polls += 1;
            state.due += count as u64;
            state.samples += count as u64;
            state.series = self.table.len();
        });
        if count > 0 {
            let (series, values) = samples.into_iter().unzip();
            self.pending.push_back(Polled { device: ended.device, at_ms: ended.at_ms, series, values });
            self.pending_samples += count;
            self.dirty = true;
        }
        ended.missed.into_iter().for_each(|one| self.miss(one));
        self.bound_pending();
    }

    fn miss(&mut self, missed: Missed) {
        if missed.count == 0 {
            return;
        }
        self.state.send_modify(|state| {
            state.due = state.due.saturating_add(missed.count);
            state.explained = state.explained.saturating_add(missed.count);
        });
        self.ledger.miss(missed, self.clock.now().wall_ms);
        self.dirty = true;
    }

    /// While nothing can be committed, the oldest polls make room and become a gap.
    fn bound_pending(&mut self) {
        while self.pending_samples > PENDING_SAMPLES_MAX {
            let Some(oldest) = self.pending.pop_front() else { return };
            let count = oldest.values.len();
            self.pending_samples -= count;
            // They had been counted as samples; they are explained instead.
            self.state.send_modify(|state| {
                state.due -= count as u64;
                state.samples -= count as u64;
            });
            self.miss(Missed {
                device: oldest.device,
                metric: String::new(),
                from_ms: oldest.at_ms,
                to_ms: oldest.at_ms,
                count: count as u64,
                reason: Reason::DiskFull,
                detail: "the buffer could not be written".into(),
            });
        }
    }

    /// Commits what there is; says when to do so next. The last commit takes the open gaps too.
    async fn on_commit_time(&mut self, last: bool) -> Result<Instant, CommitError> {
        let losses_due = !self.losses.is_empty() && self.losses_ripe();
        if !self.dirty && !losses_due && !self.ledger.has_ripe(self.clock.now().wall_ms) {
            return Ok(Instant::now() + self.commit_every);
        }
        let commit = self.group(last);
        let waiting = std::mem::take(&mut self.waiting);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = self.commit(commit.clone()).await;
            // Even where it failed: a full disk must not stop the polling.
            waiting.iter().for_each(CancellationToken::cancel);
            match result {
                Ok(committed) => {
                    self.take_losses(committed.losses);
                    self.take_late_notes().await;
                    self.state.send_modify(|state| {
                        state.pending = self.pending_samples;
                        state.degraded = None;
                    });
                    return Ok(Instant::now() + self.commit_every);
                }
                Err(error @ (CommitError::Refused { .. } | CommitError::Damaged { .. } | CommitError::Closed)) => {
                    return Err(error);
                }
                Err(error) => {
                    if attempt == 1 {
                        tracing::error!(%error, "records can't be committed; polling goes on, trying again");
                    }
                    self.state.send_modify(|state| state.degraded = Some(error.to_string()));
                    if last && attempt > 2 {
                        return Ok(Instant::now());
                    }
                }
            }
            self.wait_for_retry(last).await;
        }
    }

    /// Losses are explained once no more come, as one gap each: while blocks are evicted at the one end, every gap
    /// written at the other would be evicted in turn.
    fn take_losses(&mut self, losses: Vec<Loss>) {
        let now = Instant::now();
        if losses.is_empty() {
            self.losses_since = None;
        } else if losses != self.losses || self.losses_since.is_none() {
            let first = self.losses_since.map_or(now, |(first, _)| first);
            self.losses_since = Some((first, now));
        }
        self.losses = losses;
    }

    fn losses_ripe(&self) -> bool {
        self.losses_since.is_none_or(|(first, last)| last.elapsed() >= LOSS_QUIET || first.elapsed() >= LOSS_WAIT_MAX)
    }

    /// A disk that was full at the start hides what the run before left; it is explained when the disk works again.
    async fn take_late_notes(&mut self) {
        let Some(started_ms) = self.notes_missing_since_ms.take() else { return };
        let Some(notes) = self.buffer.late_notes().await.as_deref().and_then(Notes::read) else { return };
        self.ledger.reopen(notes.open);
        for poll in notes.under_way {
            self.miss(poll.stopped("satellite stopped during the poll"));
        }
        let stopped = Order::Stopped { since_ms: notes.until_ms, until_ms: started_ms };
        if self.orders.try_send(stopped).is_err() {
            tracing::error!("the scheduler is busy: what was due before this start stays unexplained");
        }
        self.dirty = true;
    }

    /// Keeps taking steps while a commit waits, so that polling never stops.
    async fn wait_for_retry(&mut self, last: bool) {
        let until = Instant::now() + if last { RETRY_AFTER / 4 } else { RETRY_AFTER };
        loop {
            tokio::select! {
                Some(step) = self.steps.recv() => self.on_step(step),
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.ledger.recent())),
                () = tokio::time::sleep_until(until) => return,
            }
            self.state.send_modify(|state| state.pending = self.pending_samples);
        }
    }

    /// One attempt; steps are taken meanwhile, since a flush may last.
    async fn commit(&mut self, commit: Commit) -> Result<Committed, CommitError> {
        let buffer = self.buffer.clone();
        let attempt = buffer.commit(commit);
        tokio::pin!(attempt);
        loop {
            tokio::select! {
                result = &mut attempt => return result,
                Some(step) = self.steps.recv() => self.on_step(step),
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.ledger.recent())),
            }
        }
    }

    fn group(&mut self, last: bool) -> Commit {
        let made = self.clock.now();
        let quality = self.quality();
        let fresh = self.table.take_fresh();
        let series = self.writer.series(&fresh, made);
        let groups = rectangles(std::mem::take(&mut self.pending));
        self.pending_samples = 0;
        let mut blocks = self.writer.samples(groups, made, quality);

        let mut ripe = Vec::new();
        if last || self.losses_ripe() {
            ripe = std::mem::take(&mut self.losses);
            self.losses_since = None;
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

    fn quality(&mut self) -> ClockQuality {
        let now = Instant::now();
        if self.quality.1.is_none_or(|asked| now.duration_since(asked) >= QUALITY_EVERY) {
            let quality = match kernel_clock::read() {
                Some(clock) if clock.is_synchronised() => ClockQuality::Synchronised,
                Some(_) => ClockQuality::Unsynchronised,
                None => ClockQuality::Unknown,
            };
            self.quality = (quality, Some(now));
        }
        self.quality.0
    }
}

/// Polls of the same series become one group with several times; the others stay alone.
fn rectangles(polls: VecDeque<Polled>) -> Vec<Group> {
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

fn gap_of_loss(loss: &Loss) -> Gap {
    let detail = if loss.reason == Reason::Evicted {
        "the buffer was over a bound and its oldest blocks went"
    } else {
        "the buffer was damaged and these blocks could not be read back"
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
        let groups = rectangles(polls.into_iter().collect());
        assert_eq!(groups.len(), 2);
        assert_eq!(groups[0].times_ms, [1_000, 2_000]);
        assert_eq!(groups[0].values, [10.0, 11.0, 20.0, 21.0]);
        assert_eq!(groups[1].values, [70.0]);
    }
}
