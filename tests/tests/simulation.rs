//! Nothing is lost silently and nothing is stored twice, whatever fails in whatever order: by simulation, from seeds.
//!
//! And the tests of this test: each way of breaking the code on purpose must be noticed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use libtest_mimic::{Arguments, Failed, Trial};
use satellite_tests::rounds::{first_seed, is_long_form, rounds};
use satellite_tests::simulation::{Failure, Sabotage, Summary, round};

/// Rounds of a day's run.
const SHORT: u32 = 2_000;
/// Seeds within which whatever is broken must be noticed.
const NOTICED_WITHIN: u64 = 5_000;
const THREADS: usize = 2;

fn main() -> ExitCode {
    let mut trials = vec![Trial::test("every_sample_is_stored_once_or_explained_once", all_rounds)];
    for sabotage in Sabotage::ALL {
        trials.push(Trial::test(format!("it_is_noticed_when_broken_{sabotage:?}"), move || notice(sabotage)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// One round; a panic is a failure like others.
fn attempt(seed: u64, sabotage: Sabotage, traced: bool) -> Result<Summary, Failure> {
    catch_unwind(AssertUnwindSafe(|| round(seed, sabotage, traced)))
        .unwrap_or_else(|_| Err(Failure { why: "it panicked".into(), trace: vec![] }))
}

fn all_rounds() -> Result<(), Failed> {
    let first = first_seed();
    let end = first + u64::from(rounds(SHORT));
    let next = AtomicU64::new(first);
    let total = Mutex::new((Summary::default(), None::<(u64, String)>));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut sum = Summary::default();
                let failed = loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break None;
                    }
                    match attempt(seed, Sabotage::None, false) {
                        Ok(summary) => sum = sum.plus(summary),
                        Err(failure) => {
                            next.store(end, Ordering::Relaxed);
                            break Some((seed, failure.why));
                        }
                    }
                };
                let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                total.0 = total.0.plus(sum);
                total.1 = total.1.take().into_iter().chain(failed).min();
            });
        }
    });
    let (summary, failed) = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((seed, why)) = failed {
        let trace = attempt(seed, Sabotage::None, true).err().map(|failure| failure.trace).unwrap_or_default();
        return Err(format!(
            "{}\nseed {seed}: {why}\nonce more: cargo endure -- simulation --rounds 1 --seed {seed}",
            trace.join("\n")
        )
        .into());
    }
    report(&format!(
        "{} rounds from seed {first}: {summary:?}, lost 0, doubled 0, unexpected 0, altered 0",
        end - first
    ));
    Ok(())
}

fn notice(sabotage: Sabotage) -> Result<(), Failed> {
    for seed in 1..=NOTICED_WITHIN {
        if let Err(failure) = attempt(seed, sabotage, false) {
            report(&format!("{sabotage:?}: noticed by seed {seed}: {}", failure.why));
            return Ok(());
        }
    }
    Err(format!("{sabotage:?} was not noticed within {NOTICED_WITHIN} seeds").into())
}

#[expect(clippy::print_stderr, reason = "figures of a long form; a day's run shows them with --nocapture")]
fn report(text: &str) {
    if is_long_form() || std::env::args().any(|argument| argument == "--nocapture") {
        eprintln!("{text}");
    }
}
