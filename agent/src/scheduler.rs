//! Polls what is due when it is due, and says of every slot what became of it.
//!
//! Metrics of a device that are due together are one poll. A device that is still being polled when its next slot
//! comes misses that slot: it delays nobody, and slots are never made up for in a burst. Slots lie on a timeline of its
//! own: wall time at its anchor, carried on by a clock that goes on through suspend; when the wall clock is set, the
//! timeline is anchored anew. Deliberately absent: what a poll does, and where its samples go.

pub mod breaker;

pub mod crontab;

pub mod timetable;

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::Local;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use satellite_shared::clock::Clock;
use satellite_shared::config::{Device, Metric};
use satellite_shared::gap::Reason;
use satellite_shared::heartbeat::Beat;
use satellite_shared::id::DeviceName;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collector::{Built, Collector, Failure, Readings};
use crate::ledger::Missed;
use crate::recorder::notes::UnderWay;
use crate::recorder::{Ended, Step, What};
use breaker::Breaker;
use timetable::Timetable;

/// Polls under way at once: what bounds sockets and memory.
const UNDER_WAY_MAX: usize = 64;
/// A wall clock that differs from the timeline by more was set.
const STEP_MS: i64 = 1_000;
/// How often the clocks are compared when nothing else is due.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// The frame lets a collector report its own timeout first.
const FRAME_GRACE: Duration = Duration::from_secs(1);
/// A slot that is noticed this late was slept through or starved, and is not polled any more.
const LATE_MS: i64 = 5_000;

/// A device that is to be polled: what the config task gives.
pub struct Planned {
    /// As the configuration says it.
    pub device: Device,
    /// Ready to poll.
    pub built: Built,
    /// When each of its metrics is due.
    pub timetables: Vec<Timetable>,
    /// How many samples each metric gave last time, where that is known.
    pub expected: Vec<u64>,
    /// Makes its collector anew after a poll that had to be dropped.
    pub rebuild: Rebuild,
}

/// Makes a collector anew.
pub type Rebuild = Arc<dyn Fn() -> Option<Box<dyn Collector>> + Send + Sync>;

/// What others ask of the scheduler.
pub enum Order {
    /// A new configuration, as a difference.
    Change {
        /// Devices that are new or differ.
        upsert: Vec<Planned>,
        /// Devices that are gone.
        remove: Vec<DeviceName>,
        /// At start: until when slots were accounted for before the satellite stopped.
        stopped_since_ms: Option<i64>,
    },
    /// The satellite did not run between these times: found only now.
    Stopped {
        /// Until when slots were accounted for.
        since_ms: i64,
        /// When this run began.
        until_ms: i64,
    },
    /// How many samples each metric gave last.
    Expected(oneshot::Sender<Vec<(DeviceName, String, u64)>>),
    /// How the devices are.
    Devices(oneshot::Sender<Vec<DeviceState>>),
}

/// One device, as `satellite status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceState {
    /// Its name.
    pub device: DeviceName,
    /// Its collector.
    pub collector: String,
    /// `new`, `ok`, `paused` or the reason of the last failure.
    pub outcome: String,
    /// What exactly failed.
    pub detail: String,
    /// When it was polled last, wall clock.
    pub polled_ms: Option<i64>,
    /// How long that took.
    pub took_ms: u64,
    /// How many samples it gave.
    pub samples: u64,
    /// Polls that gave something.
    pub polls_ok: u64,
    /// Polls that gave nothing.
    pub polls_failed: u64,
    /// When it is due next, by the scheduler's timeline.
    pub next_ms: Option<i64>,
}

/// The task.
pub struct Scheduler {
    orders: mpsc::Receiver<Order>,
    steps: mpsc::Sender<Step>,
    clock: Arc<dyn Clock>,
    timeline: Timeline,
    lines: BTreeMap<DeviceName, Line>,
    polls: FuturesUnordered<Pin<Box<dyn Future<Output = Polled> + Send>>>,
    turns: Arc<Semaphore>,
    /// Set while polls begin whose beginning must be durable before they are sent.
    hold: Option<watch::Receiver<Option<bool>>>,
    next_poll: u64,
    next_line: u64,
    beat: Beat,
}

/// The scheduler's time: goes on evenly, follows the wall clock when that is set.
#[derive(Debug, Clone, Copy)]
struct Timeline {
    anchor_wall_ms: i64,
    anchor_mono_ms: u64,
}

/// One device's place in the schedule.
struct Line {
    id: u64,
    device: Device,
    metrics: Vec<Slot>,
    collector: Option<Box<dyn Collector>>,
    rebuild: Rebuild,
    breaker: Breaker,
    state: DeviceState,
}

struct Slot {
    metric: Metric,
    timetable: Timetable,
    next_ms: Option<i64>,
    expected: u64,
}

/// Metrics that are due together.
#[derive(Debug, Clone)]
struct Due {
    slot_ms: i64,
    metrics: Vec<usize>,
}

struct Polled {
    line: u64,
    device: DeviceName,
    poll: u64,
    due: Due,
    at_ms: i64,
    took_ms: u64,
    readings: Readings,
    result: Result<(), Failure>,
    collector: Option<Box<dyn Collector>>,
}

impl Scheduler {
    /// A scheduler with nothing to poll yet.
    #[must_use]
    pub fn new(orders: mpsc::Receiver<Order>, steps: mpsc::Sender<Step>, clock: Arc<dyn Clock>) -> Self {
        let timeline = Timeline::anchored(clock.as_ref());
        Self {
            orders,
            steps,
            clock,
            timeline,
            lines: BTreeMap::new(),
            polls: FuturesUnordered::new(),
            turns: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            hold: None,
            next_poll: 0,
            next_line: 0,
            beat: Beat::default(),
        }
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Polls until told to stop; what is under way then becomes a gap.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            self.beat.beat();
            let wake = self.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(order) = self.orders.recv() => self.on_order(order).await,
                Some(polled) = self.polls.next() => self.on_polled(polled).await,
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
        }
        self.stop().await;
    }

    fn now_ms(&self) -> i64 {
        self.timeline.at(self.clock.now().mono_ms)
    }

    fn next_wake(&self) -> Instant {
        let next = self.lines.values().filter_map(Line::next_ms).min();
        let wait = next.map_or(CLOCK_CHECK, |next| {
            Duration::from_millis(u64::try_from(next.saturating_sub(self.now_ms())).unwrap_or(0))
        });
        Instant::now() + wait.min(CLOCK_CHECK).min(self.beat.every())
    }

    fn tell(&self, through_ms: i64, what: What) -> impl Future<Output = ()> + Send + use<> {
        let steps = self.steps.clone();
        // The recorder outlives the scheduler; without it there is nobody to tell.
        async move { drop(steps.send(Step { through_ms, what }).await) }
    }

    async fn on_order(&mut self, order: Order) {
        match order {
            Order::Devices(answer) => {
                let states = self.lines.values().map(Line::state).collect();
                drop(answer.send(states));
            }
            Order::Stopped { since_ms, until_ms } => {
                let missed = self.lines.values().flat_map(|line| line.stopped(since_ms, until_ms)).collect();
                self.tell(self.now_ms(), What::Missed(missed)).await;
            }
            Order::Expected(answer) => {
                let of_line = |(name, line): (&DeviceName, &Line)| {
                    let counts = line.metrics.iter().map(|slot| (slot.metric.name.clone(), slot.expected));
                    counts.map(|(metric, count)| (name.clone(), metric, count)).collect::<Vec<_>>()
                };
                drop(answer.send(self.lines.iter().flat_map(of_line).collect()));
            }
            Order::Change { upsert, remove, stopped_since_ms } => {
                self.on_change(upsert, remove, stopped_since_ms).await;
            }
        }
    }

    async fn on_change(&mut self, upsert: Vec<Planned>, remove: Vec<DeviceName>, stopped_since_ms: Option<i64>) {
        let now_ms = self.now_ms();
        for device in remove {
            self.lines.remove(&device);
        }
        let mut missed = Vec::new();
        for planned in upsert {
            let name = planned.device.name.clone();
            let id = self.next_line;
            self.next_line += 1;
            let known = self.lines.remove(&name);
            let mut line = Line::new(id, planned, known.as_ref());
            if let Some(since_ms) = stopped_since_ms {
                missed.extend(line.stopped(since_ms, now_ms));
            }
            line.poll_at_once(now_ms);
            self.lines.insert(name, line);
        }
        if !missed.is_empty() {
            self.tell(now_ms, What::Missed(missed)).await;
        }
        // A first poll lies on no slot: a start after a crash can't find it by the timetable, so it is noted before.
        let (durable, hold) = watch::channel(None);
        self.hold = Some(hold);
        self.on_time().await;
        self.hold = None;
        self.tell(self.now_ms(), What::Commit(durable)).await;
    }

    async fn on_time(&mut self) {
        self.follow_wall_clock();
        let now_ms = self.now_ms();
        let mut missed = Vec::new();
        let mut begin = Vec::new();
        for (name, line) in &mut self.lines {
            if line.next_ms().is_none_or(|next| next > now_ms) {
                continue;
            }
            let (due, skipped) = line.take_due(now_ms);
            missed.extend(skipped);
            if !due.metrics.is_empty() {
                begin.push((name.clone(), due));
            }
        }
        if !missed.is_empty() {
            self.tell(now_ms, What::Missed(missed)).await;
        }
        for (name, due) in begin {
            self.begin(name, due, now_ms).await;
        }
    }

    fn follow_wall_clock(&mut self) {
        let now = self.clock.now();
        let off_ms = now.wall_ms.saturating_sub(self.timeline.at(now.mono_ms));
        if off_ms.abs() < STEP_MS {
            return;
        }
        tracing::warn!(off_ms, "the wall clock was set: slots follow it from here");
        self.timeline = Timeline::anchored(self.clock.as_ref());
        for line in self.lines.values_mut() {
            line.plan(now.wall_ms);
        }
    }

    async fn begin(&mut self, name: DeviceName, due: Due, now_ms: i64) {
        let Some(line) = self.lines.get_mut(&name) else { return };
        let Some(collector) = line.collector.take() else { return };
        let poll = self.next_poll;
        self.next_poll += 1;
        let under_way =
            UnderWay { poll, device: name.clone(), slot_ms: due.slot_ms, count: line.expected(&due.metrics) };
        let request = Request {
            line: line.id,
            device: name.clone(),
            poll,
            due: due.clone(),
            limit: line.device.timeout + FRAME_GRACE,
            readings: Readings::with_labels(line.device.labels.clone().into_iter().collect()),
            collector,
            hold: self.hold.clone(),
        };
        self.tell(now_ms, What::Begun(under_way)).await;
        let (clock, turns) = (self.clock.clone(), self.turns.clone());
        self.polls.push(Box::pin(async move {
            let _turn = turns.acquire().await;
            request.run(clock.as_ref()).await
        }));
    }

    async fn on_polled(&mut self, polled: Polled) {
        let now_ms = self.now_ms();
        let Some(line) = self.lines.get_mut(&polled.device).filter(|line| line.id == polled.line) else {
            // The device went or changed while it was polled: what it gave still counts.
            let names = polled.due.metrics.iter().map(|_| String::new()).take(1).collect();
            let missed = polled.result.err().map(|failure| Missed {
                device: polled.device.clone(),
                metric: String::new(),
                from_ms: polled.due.slot_ms,
                to_ms: polled.due.slot_ms,
                count: 1,
                reason: failure.reason,
                detail: failure.detail,
            });
            let readings = if missed.is_some() { Readings::default() } else { polled.readings };
            let ended = Ended {
                poll: polled.poll,
                device: polled.device,
                metrics: names,
                at_ms: polled.at_ms,
                readings,
                missed: missed.into_iter().collect(),
            };
            return self.tell(now_ms, What::Ended(ended)).await;
        };
        let ended = line.take_up(polled, now_ms);
        self.tell(now_ms, What::Ended(ended)).await;
    }

    async fn stop(mut self) {
        self.polls.clear();
        let now_ms = self.now_ms();
        // Slots up to now that were never begun are the stop's as well.
        let mut missed = Vec::new();
        for line in self.lines.values_mut() {
            let (due, skipped) = line.take_due(now_ms);
            missed.extend(skipped);
            missed.extend(line.missed(&due, Reason::Stopped, "satellite was stopped"));
        }
        self.tell(now_ms, What::Missed(missed)).await;
    }
}

struct Request {
    line: u64,
    device: DeviceName,
    poll: u64,
    due: Due,
    limit: Duration,
    readings: Readings,
    collector: Box<dyn Collector>,
    hold: Option<watch::Receiver<Option<bool>>>,
}

impl Request {
    /// Whether a start after a crash will know of this poll: by its slot, or since its beginning is durable. One that
    /// could leave no trace is not made.
    async fn is_noted(&mut self) -> bool {
        let Some(hold) = &mut self.hold else { return true };
        hold.wait_for(Option::is_some).await.is_ok_and(|durable| *durable == Some(true))
    }

    /// The frame around every collector: it bounds the time, and measures.
    async fn run(mut self, clock: &dyn Clock) -> Polled {
        let noted = self.is_noted().await;
        let began = clock.now();
        let poll = self.collector.poll(&self.due.metrics, &mut self.readings);
        let (result, kept) = if noted {
            match tokio::time::timeout(self.limit, poll).await {
                Ok(result) => (result, true),
                Err(_) => {
                    let detail = format!("no answer within {}", humantime::format_duration(self.limit));
                    (Err(Failure::new(Reason::Timeout, detail)), false)
                }
            }
        } else {
            drop(poll);
            (Err(Failure::new(Reason::DiskFull, "not polled: the buffer could not be written")), true)
        };
        let result = self.readings.judge(result);
        Polled {
            line: self.line,
            device: self.device,
            poll: self.poll,
            due: self.due,
            at_ms: began.wall_ms,
            took_ms: clock.now().mono_ms.saturating_sub(began.mono_ms),
            readings: self.readings,
            result,
            // A collector whose poll was dropped half-way is made anew.
            collector: kept.then_some(self.collector),
        }
    }
}

impl Timeline {
    fn anchored(clock: &dyn Clock) -> Self {
        let now = clock.now();
        Self { anchor_wall_ms: now.wall_ms, anchor_mono_ms: now.mono_ms }
    }

    fn at(&self, mono_ms: u64) -> i64 {
        self.anchor_wall_ms.saturating_add_unsigned(mono_ms.saturating_sub(self.anchor_mono_ms))
    }
}

impl Line {
    fn new(id: u64, planned: Planned, known: Option<&Self>) -> Self {
        let expected = |index: usize, metric: &Metric| {
            let before = known.and_then(|line| line.metrics.iter().find(|slot| slot.metric.name == metric.name));
            before.map_or(planned.expected.get(index).copied().unwrap_or(1), |slot| slot.expected)
        };
        let counts: Vec<u64> =
            planned.built.metrics.iter().enumerate().map(|(at, metric)| expected(at, metric)).collect();
        let metrics = planned.built.metrics.into_iter().zip(planned.timetables).zip(counts);
        let state = DeviceState {
            device: planned.device.name.clone(),
            collector: planned.device.collector.clone(),
            outcome: if planned.device.paused { "paused" } else { "new" }.into(),
            detail: String::new(),
            polled_ms: None,
            took_ms: 0,
            samples: 0,
            polls_ok: 0,
            polls_failed: 0,
            next_ms: None,
        };
        Self {
            id,
            metrics: metrics
                .map(|((metric, timetable), expected)| Slot { metric, timetable, next_ms: None, expected })
                .collect(),
            device: planned.device,
            collector: Some(planned.built.collector),
            rebuild: planned.rebuild,
            breaker: Breaker::default(),
            state,
        }
    }

    fn next_ms(&self) -> Option<i64> {
        self.metrics.iter().filter_map(|slot| slot.next_ms).min()
    }

    fn state(&self) -> DeviceState {
        DeviceState { next_ms: self.next_ms(), ..self.state.clone() }
    }

    fn plan(&mut self, now_ms: i64) {
        for slot in &mut self.metrics {
            slot.next_ms = slot.timetable.next_after(now_ms, &Local);
        }
    }

    /// New work is polled at once, whatever its phase; a cron expression means its times.
    fn poll_at_once(&mut self, now_ms: i64) {
        for slot in &mut self.metrics {
            slot.next_ms =
                if slot.timetable.is_cron() { slot.timetable.next_after(now_ms, &Local) } else { Some(now_ms) };
        }
    }

    fn expected(&self, metrics: &[usize]) -> u64 {
        metrics.iter().filter_map(|&at| self.metrics.get(at)).map(|slot| slot.expected).sum()
    }

    /// Slots between the last that was accounted for and now, while the satellite did not run.
    fn stopped(&self, since_ms: i64, now_ms: i64) -> Vec<Missed> {
        let through_ms = now_ms.saturating_sub(1);
        let of_slot = |slot: &Slot| {
            let count = slot.timetable.count_between(since_ms, through_ms, &Local);
            let first = slot.timetable.next_after(since_ms, &Local);
            first.filter(|_| count > 0).map(|first| Missed {
                device: self.device.name.clone(),
                metric: slot.metric.name.clone(),
                from_ms: first,
                to_ms: through_ms.max(first),
                count: count.saturating_mul(slot.expected),
                reason: Reason::Stopped,
                detail: "satellite did not run".into(),
            })
        };
        self.joined(self.metrics.iter().filter_map(of_slot).collect())
    }

    /// What all metrics of a device missed alike is one miss of the device.
    fn joined(&self, missed: Vec<Missed>) -> Vec<Missed> {
        let [first, others @ ..] = missed.as_slice() else { return missed };
        let like_first = |one: &Missed| {
            (one.from_ms, one.to_ms, one.reason, &one.detail)
                == (first.from_ms, first.to_ms, first.reason, &first.detail)
        };
        if missed.len() < self.metrics.len() || others.is_empty() || !others.iter().all(like_first) {
            return missed;
        }
        let count = missed.iter().map(|one| one.count).fold(0, u64::saturating_add);
        vec![Missed { metric: String::new(), count, ..first.clone() }]
    }

    /// What is due now, and what was due and is not polled. Plans the next slots.
    fn take_due(&mut self, now_ms: i64) -> (Due, Vec<Missed>) {
        let mut due = Due { slot_ms: now_ms, metrics: Vec::new() };
        let mut missed = Vec::new();
        for at in 0..self.metrics.len() {
            let slot = &mut self.metrics[at];
            let Some(first_ms) = slot.next_ms.filter(|&next| next <= now_ms) else { continue };
            let later = slot.timetable.count_between(first_ms, now_ms, &Local);
            slot.next_ms = slot.timetable.next_after(now_ms, &Local);
            let count = slot.expected;
            let passed_over = Missed {
                device: self.device.name.clone(),
                metric: slot.metric.name.clone(),
                from_ms: first_ms,
                to_ms: now_ms,
                count: count.saturating_mul(later + 1),
                reason: Reason::Late,
                detail: String::new(),
            };
            if let Some((reason, detail)) = self.rests(at, now_ms) {
                missed.push(Missed { reason, detail, ..passed_over });
                continue;
            }
            if later > 0 {
                let detail =
                    if now_ms - first_ms > LATE_MS { "the machine slept or was starved" } else { "slots passed over" };
                missed.push(Missed { count: count.saturating_mul(later), detail: detail.into(), ..passed_over });
            }
            due.slot_ms = due.slot_ms.min(if later > 0 { now_ms } else { first_ms });
            due.metrics.push(at);
        }
        (due, self.joined(missed))
    }

    /// Why a metric that is due is not polled.
    fn rests(&self, at: usize, now_ms: i64) -> Option<(Reason, String)> {
        if self.device.paused || self.metrics[at].metric.paused {
            return Some((Reason::Paused, "paused by the configuration".into()));
        }
        if self.collector.is_none() {
            return Some((Reason::Late, "the poll before was still under way".into()));
        }
        if self.breaker.is_open(now_ms) {
            return Some((Reason::BackOff, format!("left alone after failures: {}", self.state.detail)));
        }
        None
    }

    fn missed(&self, due: &Due, reason: Reason, detail: &str) -> Vec<Missed> {
        let of = |&at: &usize| Missed {
            device: self.device.name.clone(),
            metric: self.metrics[at].metric.name.clone(),
            from_ms: due.slot_ms,
            to_ms: due.slot_ms,
            count: self.metrics[at].expected,
            reason,
            detail: detail.to_owned(),
        };
        self.joined(due.metrics.iter().map(of).collect())
    }

    /// Takes up what a poll gave: counts it, closes or opens the breaker, says what is missing.
    fn take_up(&mut self, polled: Polled, now_ms: i64) -> Ended {
        self.collector = polled.collector.or_else(|| (self.rebuild)());
        let mut readings = polled.readings;
        // What the house's own rules refuse, and what others behind the same gateway left no time for, cost the device
        // nothing: it is polled as soon as it may be.
        let was_asked = |failure: &Failure| !matches!(failure.reason, Reason::Policy | Reason::Late);
        // Where nothing but the probe was due, each slot has its answer.
        let has_failed = readings.has_device_failed() && !readings.failures().is_empty();
        if polled.result.as_ref().map_or_else(was_asked, |()| has_failed) {
            let every_ms = self.metrics.iter().filter_map(|slot| slot.timetable.every_ms()).min().unwrap_or(60_000);
            self.breaker.fail(now_ms, every_ms);
        } else if polled.result.is_ok() {
            self.breaker.succeed();
        }
        let mut missed = Vec::new();
        let mut metrics = Vec::new();
        self.state.polled_ms = Some(polled.at_ms);
        self.state.took_ms = polled.took_ms;
        match polled.result {
            Err(failure) => {
                readings.clear();
                missed = self.missed(&polled.due, failure.reason, &failure.detail);
                self.state.polls_failed += 1;
                self.state.samples = 0;
                self.state.outcome = failure.reason.as_str().into();
                self.state.detail = failure.detail;
            }
            Ok(()) => {
                let mut counts = vec![0u64; self.metrics.len()];
                for reading in readings.iter() {
                    if let Some(count) = counts.get_mut(reading.metric) {
                        *count += 1;
                    }
                }
                for (at, failure) in readings.failures().iter().filter(|(at, _)| *at < counts.len()) {
                    let one = Due { slot_ms: polled.due.slot_ms, metrics: vec![*at] };
                    // Of a metric that gave a part only the rest is missing; how much that is, nobody may know.
                    let rest = |one: Missed| match counts[*at] {
                        0 => one,
                        told => Missed { count: one.count.saturating_sub(told).max(1), ..one },
                    };
                    missed.extend(self.missed(&one, failure.reason, &failure.detail).into_iter().map(rest));
                }
                for &at in &polled.due.metrics {
                    if !readings.failures().iter().any(|&(failed, _)| failed == at) {
                        self.metrics[at].expected = counts[at];
                        metrics.push(self.metrics[at].metric.name.clone());
                    }
                }
                let failure = readings.failures().first().map(|(_, failure)| failure.clone());
                self.state.polls_ok += 1;
                self.state.samples = readings.len() as u64;
                self.state.outcome = failure.as_ref().map_or("ok", |failure| failure.reason.as_str()).into();
                self.state.detail = failure.map_or(String::new(), |failure| failure.detail);
            }
        }
        Ended { poll: polled.poll, device: polled.device, metrics, at_ms: polled.at_ms, readings, missed }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use satellite_shared::clock::ManualClock;
    use satellite_shared::config::Document;

    use super::*;
    use crate::collector::{Family, Poll, whole};

    /// A failure with this detail is told beside a sample of how it went, as most collectors of the network do.
    const TOLD: &str = "connection refused, and told beside the probe";

    /// And with this one it is told beside three samples of the metric itself.
    const IN_PART: &str = "no room for more";

    /// Answers what the test last told it to.
    struct Scripted(Arc<Mutex<Result<u32, Failure>>>);

    impl Collector for Scripted {
        fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
            let answer = self.0.lock().unwrap().clone();
            Box::pin(async move {
                let told = match answer {
                    Ok(told) => told,
                    Err(failure) if failure.detail == TOLD => {
                        readings.device_failed();
                        readings.missing(due[0], failure);
                        0
                    }
                    Err(failure) if failure.detail == IN_PART => {
                        readings.missing(due[0], failure);
                        3
                    }
                    Err(failure) => return Err(failure),
                };
                for n in 0..told {
                    readings.sample(due[0], Family::gauge("x", ""), &[("n", &n.to_string())], 1.0);
                }
                Ok(())
            })
        }
    }

    struct Bench {
        clock: Arc<ManualClock>,
        scheduler: Scheduler,
        steps: mpsc::Receiver<Step>,
        heard: Vec<Step>,
        answer: Arc<Mutex<Result<u32, Failure>>>,
        disk_works: bool,
        _orders: mpsc::Sender<Order>,
    }

    const START_MS: i64 = 1_790_000_000_000;

    impl Bench {
        async fn with(toml: &str, stopped_since_ms: Option<i64>) -> Self {
            let clock = Arc::new(ManualClock::new(START_MS, 50_000));
            let (orders, order_receiver) = mpsc::channel(8);
            let (step_sender, steps) = mpsc::channel(1_000);
            let mut scheduler = Scheduler::new(order_receiver, step_sender, clock.clone());
            let answer = Arc::new(Mutex::new(Ok(4)));
            let (_, document) = Document::parse_text(toml).unwrap();
            let planned = |device: Device| {
                let metrics = whole(&device);
                let timetables = vec![Timetable::parse(&metrics[0].schedule, device.name.as_str()).unwrap()];
                let again = answer.clone();
                Planned {
                    built: Built { collector: Box::new(Scripted(answer.clone())), metrics },
                    device,
                    timetables,
                    expected: vec![4],
                    rebuild: Arc::new(move || Some(Box::new(Scripted(again.clone())) as Box<dyn Collector>)),
                }
            };
            let upsert = document.devices.into_iter().map(planned).collect();
            scheduler.on_change(upsert, vec![], stopped_since_ms).await;
            Self { clock, scheduler, steps, heard: vec![], answer, disk_works: true, _orders: orders }
        }

        /// Takes what the recorder would, and commits when it is asked to.
        fn hear(&mut self) {
            while let Ok(step) = self.steps.try_recv() {
                if let What::Commit(durable) = &step.what {
                    durable.send_replace(Some(self.disk_works));
                }
                self.heard.push(step);
            }
        }

        async fn finish_polls(&mut self) {
            self.hear();
            while let Some(polled) = self.scheduler.polls.next().await {
                self.scheduler.on_polled(polled).await;
            }
        }

        async fn pass(&mut self, ms: u64) {
            self.clock.advance(ms);
            self.scheduler.on_time().await;
        }

        /// What the recorder was told: samples by poll, and (count, reason) of what was missed.
        fn told(&mut self) -> (Vec<usize>, Vec<(u64, Reason)>) {
            let (mut polls, mut missed) = (vec![], vec![]);
            self.hear();
            for step in self.heard.drain(..) {
                match step.what {
                    What::Begun(_) | What::Commit(_) => {}
                    What::Ended(ended) => {
                        polls.push(ended.readings.len());
                        missed.extend(ended.missed.iter().map(|one| (one.count, one.reason)));
                    }
                    What::Missed(some) => missed.extend(some.iter().map(|one| (one.count, one.reason))),
                }
            }
            (polls, missed)
        }
    }

    const NAS: &str = "[[device]]\nname = \"nas\"\ncollector = \"x\"\nevery = \"10s\"\n";

    #[tokio::test]
    async fn new_work_is_polled_at_once_and_then_at_its_slots() {
        let mut bench = Bench::with(NAS, None).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![]));
        for _ in 0..3 {
            bench.pass(10_000).await;
            bench.finish_polls().await;
        }
        assert_eq!(bench.told(), (vec![4, 4, 4], vec![]));
    }

    #[tokio::test]
    async fn a_first_poll_is_sent_only_when_its_beginning_is_durable() {
        let mut bench = Bench::with(NAS, None).await;
        let unsent = tokio::time::timeout(Duration::ZERO, bench.scheduler.polls.next()).await;
        assert!(unsent.is_err(), "it waits for the commit");
        let begun = bench.steps.try_recv().unwrap();
        assert!(matches!(begun.what, What::Begun(_)));
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![]));
    }

    #[tokio::test]
    async fn a_first_poll_that_could_leave_no_trace_is_explained_and_not_sent() {
        let mut bench = Bench::with(NAS, None).await;
        bench.disk_works = false;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![0], vec![(4, Reason::DiskFull)]));
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![]), "its slots are found by the timetable");
    }

    #[tokio::test]
    async fn a_slot_that_comes_while_its_device_is_still_polled_is_late_and_not_made_up_for() {
        let mut bench = Bench::with(NAS, None).await;
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![(4, Reason::Late)]));
    }

    #[tokio::test]
    async fn slots_that_were_slept_through_are_one_poll_and_a_gap() {
        let mut bench = Bench::with(NAS, None).await;
        bench.finish_polls().await;
        bench.told();
        bench.pass(60_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![(20, Reason::Late)]));
    }

    #[tokio::test]
    async fn a_failed_poll_is_a_gap_of_what_it_gave_before() {
        let mut bench = Bench::with(NAS, None).await;
        *bench.answer.lock().unwrap() = Ok(7);
        bench.finish_polls().await;
        *bench.answer.lock().unwrap() = Err(Failure::new(Reason::Refused, "connection refused"));
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![7, 0], vec![(7, Reason::Refused)]));
    }

    #[tokio::test]
    async fn what_a_metric_gave_in_part_is_not_missing_too() {
        let mut bench = Bench::with(NAS, None).await;
        bench.finish_polls().await;
        for given in [4, 2] {
            *bench.answer.lock().unwrap() = Ok(given);
            bench.pass(10_000).await;
            bench.finish_polls().await;
            *bench.answer.lock().unwrap() = Err(Failure::new(Reason::BadAnswer, IN_PART));
            bench.pass(10_000).await;
            bench.finish_polls().await;
        }
        assert_eq!(bench.told(), (vec![4, 4, 3, 2, 3], vec![(1, Reason::BadAnswer), (1, Reason::BadAnswer)]));
    }

    #[tokio::test]
    async fn a_device_that_keeps_failing_is_left_alone_and_every_slot_is_explained() {
        let mut bench = Bench::with(NAS, None).await;
        *bench.answer.lock().unwrap() = Err(Failure::new(Reason::Timeout, "no answer"));
        for _ in 0..6 {
            bench.finish_polls().await;
            bench.pass(10_000).await;
        }
        bench.finish_polls().await;
        let (_, missed) = bench.told();
        let reasons: Vec<Reason> = missed.iter().map(|&(_, reason)| reason).collect();
        assert_eq!(missed.iter().map(|&(count, _)| count).sum::<u64>(), 4 * 7);
        assert!(reasons.starts_with(&[Reason::Timeout, Reason::Timeout, Reason::Timeout]), "{reasons:?}");
        assert!(reasons[3..].contains(&Reason::BackOff), "{reasons:?}");
    }

    #[tokio::test]
    async fn a_device_that_fails_beside_a_probe_is_left_alone_too_until_it_answers() {
        let mut bench = Bench::with(NAS, None).await;
        *bench.answer.lock().unwrap() = Err(Failure::new(Reason::Refused, TOLD));
        let mut reasons = Vec::new();
        for _ in 0..4 {
            bench.finish_polls().await;
            bench.pass(10_000).await;
            reasons.extend(bench.told().1.iter().map(|&(_, reason)| reason));
        }
        assert_eq!(reasons, [Reason::Refused, Reason::Refused, Reason::Refused, Reason::BackOff]);
        *bench.answer.lock().unwrap() = Ok(4);
        bench.finish_polls().await;
        for _ in 0..2 {
            bench.pass(10_000).await;
            bench.finish_polls().await;
        }
        assert_eq!(bench.told(), (vec![4, 4, 4], vec![]));
    }

    #[tokio::test]
    async fn a_device_that_the_policy_refuses_is_tried_again_in_its_next_slot() {
        let mut bench = Bench::with(NAS, None).await;
        *bench.answer.lock().unwrap() = Err(Failure::new(Reason::Policy, "not in `networks`"));
        for _ in 0..6 {
            bench.finish_polls().await;
            bench.pass(10_000).await;
        }
        bench.finish_polls().await;
        assert_eq!(bench.told().1, [(4, Reason::Policy); 7]);
    }

    #[tokio::test]
    async fn a_paused_device_is_explained_and_not_polled() {
        let mut bench = Bench::with(&format!("{NAS}paused = true\n"), None).await;
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![], vec![(4, Reason::Paused), (4, Reason::Paused)]));
    }

    #[tokio::test]
    async fn what_was_due_while_the_satellite_did_not_run_is_explained() {
        let mut bench = Bench::with(NAS, Some(START_MS - 100_000)).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![(40, Reason::Stopped)]));
    }

    #[tokio::test]
    async fn slots_follow_a_wall_clock_that_was_set_and_none_is_invented() {
        let mut bench = Bench::with(NAS, None).await;
        bench.finish_polls().await;
        bench.told();
        bench.clock.step_wall(START_MS + 3_600_000);
        bench.scheduler.on_time().await;
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![]));
        bench.clock.step_wall(START_MS);
        bench.scheduler.on_time().await;
        bench.pass(10_000).await;
        bench.finish_polls().await;
        assert_eq!(bench.told(), (vec![4], vec![]));
    }
}
