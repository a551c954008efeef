//! Reads that may hang, on threads of their own: a dead file server, a sensor behind a stuck bus.
//!
//! One hand does one errand after the other, since to wake a thread costs more than most of them; where one takes long,
//! another hand goes on with the rest. An errand that hangs keeps its hand and its name until it comes back: the same
//! name is not sent again before, so that one thread is the most that one mount or one sensor driver can take.
//! Invariant: every errand stands on the board before anything is awaited, so that a poll which is dropped at its
//! deadline forgets none.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// Hands of one poll: four that a sensor holds up, and eight that a mount does.
const HANDS_MAX: usize = 12;
/// How long nothing may be taken up or brought back until one more hand helps.
const STALL: Duration = Duration::from_millis(50);

/// What is done on a thread where it may block.
pub(in crate::collector) trait Errand: Send + 'static {
    /// Does it.
    fn run(&mut self);
}

/// What came of an errand; `None` where it panicked.
pub(in crate::collector) type Landed<T> = (String, Option<T>);

/// What came of a poll's errands. Those in neither list are still out.
pub(in crate::collector) struct Gathered<T> {
    /// Done.
    pub(in crate::collector) landed: Vec<Landed<T>>,
    /// There was no time to begin them.
    pub(in crate::collector) untaken: Vec<(String, T)>,
}

/// Errands under way.
pub(in crate::collector) struct Aside<T> {
    board: Arc<Board<T>>,
}

/// What the poll and its hands share.
struct Board<T> {
    lists: Mutex<Lists<T>>,
    /// A hand has nothing left to do.
    news: Notify,
}

struct Lists<T> {
    /// Counts polls: a hand of an earlier one brings back what it has and takes nothing more.
    round: u64,
    waiting: VecDeque<(String, T)>,
    out: Vec<(String, u64)>,
    landed: Vec<Landed<T>>,
    /// Of this round.
    hands: usize,
    /// Errands taken up and brought back, ever.
    moves: u64,
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        let lists =
            Lists { round: 0, waiting: VecDeque::new(), out: Vec::new(), landed: Vec::new(), hands: 0, moves: 0 };
        Self { board: Arc::new(Board { lists: Mutex::new(lists), news: Notify::new() }) }
    }
}

impl<T> Board<T> {
    /// Whole at every moment: nothing that may panic happens while it is held.
    fn lists(&self) -> MutexGuard<'_, Lists<T>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, round: u64) -> Option<(String, T)> {
        let mut lists = self.lists();
        if lists.round != round {
            return None;
        }
        let (name, errand) = lists.waiting.pop_front()?;
        lists.out.push((name.clone(), round));
        lists.moves += 1;
        Some((name, errand))
    }

    fn bring(&self, name: String, errand: Option<T>) {
        let mut lists = self.lists();
        lists.out.retain(|(other, _)| *other != name);
        lists.landed.push((name, errand));
        lists.moves += 1;
    }
}

impl<T: Errand> Board<T> {
    /// A hand: does what waits, as long as it is this poll.
    fn work(&self, round: u64) {
        while let Some((name, mut errand)) = self.take(round) {
            let done = catch_unwind(AssertUnwindSafe(|| {
                errand.run();
                errand
            }));
            self.bring(name, done.ok());
        }
        self.news.notify_one();
    }
}

impl<T: Errand> Aside<T> {
    /// Gives up waiting for what was sent before, and takes back what has come since.
    pub(in crate::collector) fn settle(&mut self) -> Vec<Landed<T>> {
        let mut lists = self.board.lists();
        lists.round += 1;
        lists.hands = 0;
        let untaken = std::mem::take(&mut lists.waiting).into_iter().map(|(name, errand)| (name, Some(errand)));
        let mut landed: Vec<_> = untaken.collect();
        landed.append(&mut lists.landed);
        landed
    }

    /// Whether an errand of this name is still out.
    pub(in crate::collector) fn hangs(&self, name: &str) -> bool {
        self.board.lists().out.iter().any(|(other, _)| other == name)
    }

    /// Sends these; they are done while other things are.
    pub(in crate::collector) fn send(&mut self, errands: impl IntoIterator<Item = (String, T)>) {
        let mut lists = self.board.lists();
        lists.waiting.extend(errands);
        if !lists.waiting.is_empty() {
            self.lend_hand(&mut lists);
        }
    }

    /// Waits for what was sent since [`settle`](Self::settle), for so long at most.
    pub(in crate::collector) async fn gather(&mut self, patience: Duration) -> Gathered<T> {
        let deadline = tokio::time::Instant::now() + patience;
        let mut moves = 0;
        while !self.is_done() {
            let stall = (tokio::time::Instant::now() + STALL).min(deadline);
            tokio::select! {
                biased;
                () = self.board.news.notified() => {}
                () = tokio::time::sleep_until(stall) => {
                    if stall == deadline {
                        break;
                    }
                    self.help(&mut moves);
                }
            }
        }
        let mut lists = self.board.lists();
        Gathered { landed: std::mem::take(&mut lists.landed), untaken: std::mem::take(&mut lists.waiting).into() }
    }

    fn is_done(&self) -> bool {
        let lists = self.board.lists();
        lists.waiting.is_empty() && lists.out.iter().all(|(_, round)| *round != lists.round)
    }

    fn help(&self, moves: &mut u64) {
        let mut lists = self.board.lists();
        if *moves == lists.moves && !lists.waiting.is_empty() && lists.hands < HANDS_MAX {
            self.lend_hand(&mut lists);
        }
        *moves = lists.moves;
    }

    fn lend_hand(&self, lists: &mut Lists<T>) {
        let (board, round) = (Arc::clone(&self.board), lists.round);
        lists.hands += 1;
        // It tells by the board what it did.
        drop(tokio::task::spawn_blocking(move || board.work(round)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    enum Job {
        Quick(u8),
        Slow(Receiver<()>, u8),
        Bad,
    }

    impl Errand for Job {
        fn run(&mut self) {
            match self {
                Self::Quick(done) => *done += 1,
                Self::Slow(wait, done) => *done = wait.recv().map_or(0, |()| 7),
                Self::Bad => std::panic::resume_unwind(Box::new("broken")),
            }
        }
    }

    impl Job {
        fn done(&self) -> u8 {
            match self {
                Self::Quick(done) | Self::Slow(_, done) => *done,
                Self::Bad => 0,
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);
    /// For what is quick, on a machine that is busy.
    const ENOUGH: Duration = Duration::from_secs(5);
    const SHORT: Duration = Duration::from_millis(120);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    fn told(landed: Vec<Landed<Job>>) -> Vec<(String, Option<u8>)> {
        let mut told: Vec<_> = landed.into_iter().map(|(name, job)| (name, job.map(|job| job.done()))).collect();
        told.sort();
        told
    }

    #[test]
    fn an_errand_that_hangs_holds_up_no_other_and_is_known_until_it_comes_back() {
        runtime().block_on(async {
            let (release, wait) = channel();
            let mut aside = Aside::default();
            let quick = (0..20).map(|n| (format!("quick {n:02}"), Job::Quick(n)));
            aside.send(std::iter::once(("slow".to_owned(), Job::Slow(wait, 0))).chain(quick));
            let gathered = aside.gather(ENOUGH).await;
            assert!(gathered.untaken.is_empty());
            let expected: Vec<_> = (0..20).map(|n| (format!("quick {n:02}"), Some(n + 1))).collect();
            assert_eq!(told(gathered.landed), expected);
            assert_eq!(told(aside.settle()), []);
            assert!(aside.hangs("slow") && !aside.hangs("quick 00"));

            aside.send([("quick".to_owned(), Job::Quick(1))]);
            assert_eq!(told(aside.gather(LONG).await.landed), [("quick".into(), Some(2))], "nobody waits for it again");

            release.send(()).unwrap();
            let landed = loop {
                let landed = aside.settle();
                if !landed.is_empty() {
                    break landed;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(told(landed), [("slow".into(), Some(7))]);
            assert!(!aside.hangs("slow"));
        });
    }

    #[test]
    fn where_all_hands_are_held_up_the_rest_comes_back_untaken() {
        runtime().block_on(async {
            let mut aside = Aside::default();
            let (held, slow): (Vec<_>, Vec<_>) = (0..HANDS_MAX)
                .map(|n| {
                    let (release, wait) = channel();
                    (release, (format!("slow {n:02}"), Job::Slow(wait, 0)))
                })
                .unzip();
            aside.send(slow.into_iter().chain([("quick".to_owned(), Job::Quick(0))]));
            let gathered = aside.gather(STALL * 40).await;
            assert_eq!(told(gathered.landed), []);
            let (name, quick) = gathered.untaken.last().unwrap();
            assert_eq!((name.as_str(), quick.done()), ("quick", 0));
            let out = HANDS_MAX + 1 - gathered.untaken.len();
            assert!(out >= 1);
            drop(held);
            let mut back = Vec::new();
            while back.len() < out {
                back.extend(aside.settle());
                tokio::task::yield_now().await;
            }
            assert!((0..HANDS_MAX).all(|n| !aside.hangs(&format!("slow {n:02}"))));
        });
    }

    #[test]
    fn an_errand_that_panics_gives_nothing_and_the_next_is_done() {
        runtime().block_on(async {
            let mut aside = Aside::default();
            aside.send([("bad".to_owned(), Job::Bad), ("good".to_owned(), Job::Quick(1))]);
            let gathered = aside.gather(LONG).await;
            assert_eq!(told(gathered.landed), [("bad".into(), None), ("good".into(), Some(2))]);
            assert!(!aside.hangs("bad"));
        });
    }

    #[test]
    fn what_a_dropped_poll_sent_is_found_by_the_next() {
        runtime().block_on(async {
            let (release, wait) = channel();
            let mut aside = Aside::default();
            aside.send([("slow".to_owned(), Job::Slow(wait, 0)), ("quick".to_owned(), Job::Quick(0))]);
            assert!(tokio::time::timeout(SHORT, aside.gather(LONG)).await.is_err(), "dropped while it waits");
            drop(release);
            let mut back = Vec::new();
            while back.len() < 2 {
                back.extend(told(aside.settle()));
                tokio::task::yield_now().await;
            }
            back.sort();
            assert!(back[0].0 == "quick" && back[1] == ("slow".into(), Some(0)), "{back:?}");
        });
    }
}
