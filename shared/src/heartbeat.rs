//! Which of a program's tasks still take their turns: what decides whether the service manager's watchdog is fed.
//!
//! A long-lived task counts its turns; one with nothing to do takes an empty one every [`Beat::every`]. Whoever feeds the
//! watchdog looks at the counts. A task whose count stands still for longer than the patience is stuck, and a program
//! with one stuck task is to be started anew. A task that has ended is not stuck: whoever started it sees that.
//!
//! Plain numbers, with the time passed in. Deliberately absent: a way to be excused from the count. What may wait for
//! long waits beside its task's turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What an idle task waits where nobody watches.
const UNWATCHED: Duration = Duration::from_secs(24 * 3600);

/// A task's end: where it counts its turns.
#[derive(Debug, Clone)]
pub struct Beat {
    turns: Arc<AtomicU64>,
    every: Duration,
}

impl Default for Beat {
    fn default() -> Self {
        Self { turns: Arc::default(), every: UNWATCHED }
    }
}

impl Beat {
    /// One more turn was taken.
    pub fn beat(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The longest that the task may wait between two turns.
    #[must_use]
    pub fn every(&self) -> Duration {
        self.every
    }
}

/// The watcher's end.
#[derive(Debug)]
pub struct Heartbeats {
    every: Duration,
    patience_ms: u64,
    tasks: Vec<Watched>,
    looked_ms: Option<u64>,
}

#[derive(Debug)]
struct Watched {
    name: &'static str,
    turns: Arc<AtomicU64>,
    seen: u64,
    since_ms: u64,
}

impl Heartbeats {
    /// For a watchdog that bites after so long; for none at all, tasks hardly ever take empty turns.
    #[must_use]
    pub fn new(watchdog: Option<Duration>) -> Self {
        let patience_ms = u64::try_from((watchdog.unwrap_or(UNWATCHED) / 2).as_millis()).unwrap_or(u64::MAX);
        let every = watchdog.map_or(UNWATCHED, |watchdog| watchdog / 8);
        Self { every, patience_ms, tasks: Vec::new(), looked_ms: None }
    }

    /// One more task to watch.
    pub fn task(&mut self, name: &'static str) -> Beat {
        let turns = Arc::<AtomicU64>::default();
        self.tasks.push(Watched { name, turns: Arc::clone(&turns), seen: 0, since_ms: 0 });
        Beat { turns, every: self.every }
    }

    /// Whether every task has taken its first turn: the program is ready.
    #[must_use]
    pub fn have_begun(&self) -> bool {
        self.tasks.iter().all(|task| task.has_ended() || task.turns.load(Ordering::Relaxed) > 0)
    }

    /// Looks at the counts: the tasks that are stuck.
    ///
    /// A look that itself comes late says nothing of the others: the whole program was asleep, or the machine was.
    pub fn stuck(&mut self, now_ms: u64) -> Vec<&'static str> {
        let late = self.looked_ms.is_none_or(|looked| now_ms.saturating_sub(looked) >= self.patience_ms);
        self.looked_ms = Some(now_ms);
        let mut stuck = Vec::new();
        for task in &mut self.tasks {
            let turns = task.turns.load(Ordering::Relaxed);
            if late || turns != task.seen {
                (task.seen, task.since_ms) = (turns, now_ms);
            } else if !task.has_ended() && now_ms.saturating_sub(task.since_ms) >= self.patience_ms {
                stuck.push(task.name);
            }
        }
        stuck
    }
}

impl Watched {
    fn has_ended(&self) -> bool {
        Arc::strong_count(&self.turns) == 1
    }
}

/// A text as one short line: what a service manager is told may come from far away, and a line is a message of its own.
#[must_use]
pub fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 250;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> Heartbeats {
        Heartbeats::new(Some(Duration::from_secs(20)))
    }

    #[test]
    fn a_program_is_ready_when_each_task_has_taken_a_turn() {
        let mut heartbeats = watched();
        let (scheduler, buffer) = (heartbeats.task("scheduler"), heartbeats.task("buffer"));
        assert!(!heartbeats.have_begun());
        scheduler.beat();
        assert!(!heartbeats.have_begun());
        buffer.beat();
        assert!(heartbeats.have_begun());
    }

    #[test]
    fn one_task_that_stands_still_is_named_until_it_goes_on() {
        let mut heartbeats = watched();
        let (scheduler, buffer) = (heartbeats.task("scheduler"), heartbeats.task("buffer"));
        for now_ms in [0, 5_000] {
            scheduler.beat();
            buffer.beat();
            assert_eq!(heartbeats.stuck(now_ms), [""; 0]);
        }
        for (now_ms, expected) in
            [(10_000, vec![]), (14_999, vec![]), (15_000, vec!["buffer"]), (20_000, vec!["buffer"])]
        {
            scheduler.beat();
            assert_eq!(heartbeats.stuck(now_ms), expected, "at {now_ms}");
        }
        buffer.beat();
        assert_eq!(heartbeats.stuck(21_000), [""; 0]);
    }

    #[test]
    fn an_idle_task_beats_well_within_the_patience() {
        let mut heartbeats = watched();
        assert!(heartbeats.task("scheduler").every() * 4 <= Duration::from_secs(10));
        assert!(Heartbeats::new(None).task("scheduler").every() > Duration::from_secs(3600), "nobody watches");
    }

    #[test]
    fn a_look_that_comes_late_blames_nobody() {
        let mut heartbeats = watched();
        let _buffer = heartbeats.task("buffer");
        assert_eq!(heartbeats.stuck(0), [""; 0]);
        assert_eq!(heartbeats.stuck(8 * 3600 * 1000), [""; 0], "the machine slept");
        assert_eq!(heartbeats.stuck(8 * 3600 * 1000 + 9_000), [""; 0]);
        assert_eq!(heartbeats.stuck(8 * 3600 * 1000 + 12_000), ["buffer"]);
    }

    #[test]
    fn a_task_that_has_ended_is_not_stuck() {
        let mut heartbeats = watched();
        drop(heartbeats.task("uplink"));
        assert!(heartbeats.have_begun());
        for now_ms in [0, 6_000, 12_000, 18_000] {
            assert_eq!(heartbeats.stuck(now_ms), [""; 0]);
        }
    }

    #[test]
    fn what_comes_from_far_away_can_add_no_line() {
        assert_eq!(one_line("relay\nMAINPID=1\u{1b}[2J"), "relay MAINPID=1 [2J");
        assert_eq!(one_line(&"ä".repeat(1000)).chars().count(), 250);
    }
}
