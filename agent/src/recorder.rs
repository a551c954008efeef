//! Makes records of what was polled: numbers series, groups a commit's worth, hands it to the buffer.
//!
//! Everything that was due passes here, in the scheduler's order, as samples or as misses. Each commit carries notes:
//! until when all slots are accounted for, which polls were under way, which gaps are open. After a crash the next
//! start explains exactly what the notes leave out, and nothing twice. Deliberately absent: a queue on disk of its
//! own. When the buffer can't take a commit, what is polled waits in a bounded ring and the oldest of it becomes a gap.

pub mod draft;

pub mod frames;

pub mod notes;

pub mod series_table;

use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::gap::Gap;
use satellite_shared::heartbeat::Beat;
use satellite_shared::id::DeviceName;
use satellite_shared::wire::block::ClockQuality;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::buffer::{Buffer, Commit, CommitError, Committed, Opened};
use crate::collector::Readings;
use crate::kernel_clock;
use crate::ledger::Missed;
use crate::scheduler::Order;
use draft::Draft;
use notes::{Notes, UnderWay};

/// How long a failed commit waits before it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
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
    /// What was said so far is to be made durable now; whether it is, is said once that has been tried.
    Commit(watch::Sender<Option<bool>>),
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
    draft: Draft,
    /// Who waits for the next commit.
    waiting: Vec<watch::Sender<Option<bool>>>,
    orders: mpsc::Sender<Order>,
    /// When this run began, while the notes of the run before have not been seen.
    notes_missing_since_ms: Option<i64>,
    quality: (ClockQuality, Option<Instant>),
    beat: Beat,
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

impl Recorder {
    /// A recorder of a freshly opened buffer.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        let notes_missing_since_ms = parts.notes.is_none().then_some(now.wall_ms);
        let Opened { epoch, losses, .. } = parts.opened;
        Self {
            steps: parts.steps,
            gap_queries: parts.gap_queries,
            state: parts.state,
            buffer: parts.buffer,
            clock: parts.clock,
            commit_every: parts.commit_every,
            draft: Draft::new(epoch, parts.notes, losses, now),
            waiting: Vec::new(),
            orders: parts.orders,
            notes_missing_since_ms,
            quality: (ClockQuality::Unknown, None),
            beat: Beat::default(),
        }
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Records until the scheduler has gone, then commits what is left.
    ///
    /// # Errors
    /// The buffer is gone or says that a commit breaks its rules: the next start explains what is missing then.
    pub async fn run(mut self) -> Result<(), CommitError> {
        let mut next = Instant::now() + self.commit_every;
        loop {
            self.beat.beat();
            let wake = self.draft.is_awake();
            tokio::select! {
                step = self.steps.recv() => match step {
                    Some(step) => self.on_step(step),
                    None => break,
                },
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.draft.recent_gaps())),
                () = tokio::time::sleep_until(next), if wake => next = self.on_commit_time(false).await?,
                () = tokio::time::sleep(self.beat.every()) => {}
            }
            let full = self.draft.is_large() && self.state.borrow().degraded.is_none();
            if full || !self.waiting.is_empty() {
                next = self.on_commit_time(false).await?;
            }
        }
        self.draft.stop(self.clock.now());
        self.publish();
        self.on_commit_time(true).await.map(|_| ())
    }

    fn on_step(&mut self, step: Step) {
        let now = self.clock.now();
        self.draft.set_through(step.through_ms);
        match step.what {
            What::Begun(poll) => return self.draft.begin(poll),
            What::Ended(ended) => self.draft.end(ended, now),
            What::Missed(missed) => missed.into_iter().for_each(|one| self.draft.miss(one, now)),
            What::Commit(waiting) => {
                self.waiting.push(waiting);
                self.draft.touch();
            }
        }
        self.publish();
    }

    fn publish(&self) {
        self.state.send_modify(|state| {
            *state = RecorderState { degraded: state.degraded.take(), ..self.draft.state().clone() };
        });
    }

    /// Commits what there is; says when to do so next. The last commit takes the open gaps too.
    ///
    /// A stop is not held up by a disk that takes nothing: after a few attempts what was not committed is left to the
    /// next start, which explains it by the notes of the last commit that went well.
    async fn on_commit_time(&mut self, last: bool) -> Result<Instant, CommitError> {
        let made = self.clock.now();
        if !self.draft.is_due(made) {
            return Ok(Instant::now() + self.commit_every);
        }
        let quality = self.quality();
        let commit = self.draft.group(last, made, quality);
        let mut waiting = std::mem::take(&mut self.waiting);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let result = self.commit(commit.clone()).await;
            // Even where it failed: a full disk must not stop the polling.
            for durable in waiting.drain(..) {
                durable.send_replace(Some(result.is_ok()));
            }
            match result {
                Ok(committed) => {
                    self.draft.take_losses(committed.losses, self.clock.now());
                    self.take_late_notes().await;
                    self.state.send_modify(|state| state.degraded = None);
                    self.publish();
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
                    if self.is_stopping(last) && attempt > 2 {
                        return Err(error);
                    }
                }
            }
            self.wait_for_retry(last).await;
        }
    }

    /// The scheduler has gone, and all that it said was taken.
    fn is_stopping(&self, last: bool) -> bool {
        last || (self.steps.is_closed() && self.steps.is_empty())
    }

    /// A disk that was full at the start hides what the run before left; it is explained when the disk works again.
    async fn take_late_notes(&mut self) {
        let Some(started_ms) = self.notes_missing_since_ms.take() else { return };
        let Some(notes) = self.buffer.late_notes().await.as_deref().and_then(Notes::read) else { return };
        let stopped = Order::Stopped { since_ms: notes.until_ms, until_ms: started_ms };
        self.draft.take_notes(notes, self.clock.now());
        if self.orders.try_send(stopped).is_err() {
            tracing::error!("the scheduler is busy: what was due before this start stays unexplained");
        }
    }

    /// Keeps taking steps while a commit waits, so that polling never stops.
    async fn wait_for_retry(&mut self, last: bool) {
        let until = Instant::now() + if self.is_stopping(last) { RETRY_AFTER / 4 } else { RETRY_AFTER };
        loop {
            self.beat.beat();
            tokio::select! {
                Some(step) = self.steps.recv() => self.on_step(step),
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.draft.recent_gaps())),
                () = tokio::time::sleep_until(until) => return,
            }
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
                Some(answer) = self.gap_queries.recv() => drop(answer.send(self.draft.recent_gaps())),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_takes_nothing_does_not_hold_up_a_stop() {
        let clock: Arc<dyn Clock> = Arc::new(satellite_shared::clock::SystemClock);
        // Below a directory that nobody can make: the buffer stands by.
        let settings = crate::buffer::BufferSettings::new("/proc/nothing/buffer".into());
        let (buffer, opened) = Buffer::open(settings, Arc::clone(&clock)).unwrap();
        let (steps_sender, steps) = mpsc::channel(8);
        let (_gaps, gap_queries) = mpsc::channel(1);
        let (orders, _orders) = mpsc::channel(1);
        let recorder = Recorder::new(Parts {
            steps,
            gap_queries,
            state: watch::channel(RecorderState::default()).0,
            buffer,
            opened,
            notes: None,
            clock,
            commit_every: Duration::from_millis(1),
            orders,
        });
        let mut state = recorder.state.subscribe();
        let stop = async {
            drop(state.wait_for(|state| state.degraded.is_some()).await);
            drop(steps_sender);
        };
        let both = async { tokio::join!(recorder.run(), stop) };
        let (ended, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it ends");
        assert!(matches!(ended, Err(CommitError::Degraded { .. })), "{ended:?}");
    }
}
