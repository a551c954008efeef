//! Reads that may hang, on threads of their own: a dead file server, a sensor behind a stuck bus.
//!
//! A job that hangs keeps its thread and its name until it comes back: the same name is not launched again before, so
//! that one thread is the most that one mount or one sensor driver can take. Invariant: every job is known here before
//! anything is awaited, so that a poll which is dropped at its deadline forgets none.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use futures_util::FutureExt;
use tokio::task::JoinHandle;

/// What came of a job; `None` where it panicked.
pub(super) type Landed<T> = (String, Option<T>);

/// Jobs under way.
pub(super) struct Aside<T> {
    jobs: Vec<Job<T>>,
}

struct Job<T> {
    name: String,
    /// Launched by the poll that is under way, and worth waiting for.
    fresh: bool,
    handle: JoinHandle<T>,
}

impl<T> Default for Aside<T> {
    fn default() -> Self {
        Self { jobs: Vec::new() }
    }
}

impl<T: Send + 'static> Aside<T> {
    /// Gives up waiting for what was launched before, and takes back what has come since.
    pub(super) fn settle(&mut self) -> Vec<Landed<T>> {
        let mut landed = Vec::new();
        self.jobs.retain_mut(|job| {
            job.fresh = false;
            match (&mut job.handle).now_or_never() {
                None => true,
                Some(outcome) => {
                    landed.push((std::mem::take(&mut job.name), outcome.ok()));
                    false
                }
            }
        });
        landed
    }

    /// Whether a job of this name is still out.
    pub(super) fn hangs(&self, name: &str) -> bool {
        self.jobs.iter().any(|job| job.name == name)
    }

    /// How many jobs of this poll are out.
    pub(super) fn fresh(&self) -> usize {
        self.jobs.iter().filter(|job| job.fresh).count()
    }

    /// Runs a job on a thread where it may block.
    pub(super) fn launch(&mut self, name: String, job: impl FnOnce() -> T + Send + 'static) {
        self.jobs.push(Job { name, fresh: true, handle: tokio::task::spawn_blocking(job) });
    }

    /// The next of this poll's jobs that ends; `None` when none is out.
    pub(super) async fn next(&mut self) -> Option<Landed<T>> {
        poll_fn(|context| {
            let mut waiting = false;
            for index in 0..self.jobs.len() {
                if !self.jobs[index].fresh {
                    continue;
                }
                if let Poll::Ready(outcome) = Pin::new(&mut self.jobs[index].handle).poll(context) {
                    let job = self.jobs.swap_remove(index);
                    return Poll::Ready(Some((job.name, outcome.ok())));
                }
                waiting = true;
            }
            if waiting { Poll::Pending } else { Poll::Ready(None) }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_job_that_hangs_is_known_until_it_comes_back() {
        runtime().block_on(async {
            let (release, wait) = mpsc::channel::<()>();
            let mut aside: Aside<u8> = Aside::default();
            aside.launch("slow".into(), move || wait.recv().map_or(0, |()| 7));
            aside.launch("quick".into(), || 1);
            assert_eq!(aside.next().await, Some(("quick".into(), Some(1))));
            assert!(tokio::time::timeout(Duration::from_millis(1), aside.next()).await.is_err());
            assert_eq!(aside.settle(), []);
            assert!(aside.hangs("slow") && aside.fresh() == 0);
            assert_eq!(aside.next().await, None, "nobody waits for it again");

            release.send(()).unwrap();
            let landed = loop {
                let landed = aside.settle();
                if !landed.is_empty() {
                    break landed;
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(landed, [("slow".into(), Some(7))]);
            assert!(!aside.hangs("slow"));
        });
    }

    #[test]
    fn a_job_that_panics_gives_nothing_and_is_forgotten() {
        runtime().block_on(async {
            let mut aside: Aside<u8> = Aside::default();
            aside.launch("bad".into(), || std::panic::resume_unwind(Box::new("broken")));
            assert_eq!(aside.next().await, Some(("bad".into(), None)));
            assert!(!aside.hangs("bad"));
        });
    }
}
