//! How a journey runs: in a directory of its own, ignored with the reason where a peer is missing, and, when it fails,
//! telling what the programs logged.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::peers::Peer;
use crate::{process, rounds};

/// Set to anything to keep the directory of a journey that failed.
const KEEP_ENV: &str = "SATELLITE_JOURNEYS_KEEP";
/// Lines of each log that a failure shows.
const LOG_LINES: usize = 40;

/// One journey.
#[must_use]
pub fn journey(name: &str, needs: &'static [Peer], run: fn(&Path) -> Result<()>) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(peer) = needs.iter().find(|peer| peer.path().is_none()) {
            return skipped(&peer.missing());
        }
        // Short, since a Unix socket's path has at most 107 bytes.
        let dir = tempfile::Builder::new().prefix("sat-").tempdir().map_err(Failed::from)?;
        let ended = catch_unwind(AssertUnwindSafe(|| run(dir.path())));
        let logs = logs(dir.path());
        if !matches!(ended, Ok(Ok(()))) && std::env::var_os(KEEP_ENV).is_some() {
            report(&format!("kept: {}", dir.keep().display()));
        }
        match ended {
            Ok(Ok(())) => Ok(Completion::Completed),
            // Last, since a long report is read from its end.
            Ok(Err(error)) => Err(format!("{logs}{error:#}").into()),
            Err(panic) => {
                report(&logs);
                resume_unwind(panic)
            }
        }
    })
}

/// A test that can't run here, and why. Ignored in a day's run, which says so at its end; who asks for the long form of
/// just this one is not told that it passed.
///
/// # Errors
/// In a long form.
pub fn skipped(reason: &str) -> Result<Completion, Failed> {
    if rounds::is_long_form() { Err(format!("SKIPPED: {reason}").into()) } else { Ok(Completion::ignored_with(reason)) }
}

/// Runs the journeys of one binary.
#[must_use]
pub fn run(trials: Vec<Trial>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each is several programs that mostly wait, so that two a core fit; yet deadlines are real.
    if arguments.test_threads.is_none() {
        arguments.test_threads =
            Some(std::thread::available_parallelism().map_or(4, |cores| (2 * cores.get()).clamp(4, 8)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn logs(dir: &Path) -> String {
    let mut files = Vec::new();
    find_logs(dir, 0, &mut files);
    files.sort();
    let shown = files.iter().map(|file| format!("--- {}\n{}\n", file.display(), process::tail(file, LOG_LINES)));
    shown.collect()
}

fn find_logs(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && depth < 2 {
            find_logs(&path, depth + 1, files);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
}

/// Says a figure of a long form, for who reads along.
pub fn note(figures: &str) {
    if rounds::is_long_form() {
        report(figures);
    }
}

#[expect(clippy::print_stderr, reason = "the report of a test that fails")]
fn report(logs: &str) {
    eprintln!("{logs}");
}
