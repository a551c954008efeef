//! Waiting with a deadline, by asking again and again; never a fixed sleep.

use std::time::Duration;

use anyhow::{Result, bail};
use satellite_shared::clock::{Clock, SystemClock};

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// A point in time after which nobody waits any longer.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    mono_ms: u64,
}

impl Deadline {
    /// So far from now.
    #[must_use]
    pub fn after(within: Duration) -> Self {
        let ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        Self { mono_ms: SystemClock.now().mono_ms.saturating_add(ms) }
    }

    /// Whether it has passed.
    #[must_use]
    pub fn has_passed(self) -> bool {
        SystemClock.now().mono_ms >= self.mono_ms
    }
}

/// Asks until there is an answer.
///
/// # Errors
/// The question's own error, or, at the deadline, what was waited for.
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Deadline::after(within);
    let mut pause = PAUSE_MIN;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if deadline.has_passed() {
            bail!("waited {} s in vain for: {what}", within.as_secs());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Asks until it is so. What can't be asked yet (a program that is starting) is not yet so.
///
/// # Errors
/// At the deadline: what was waited for and the last error.
pub fn until_true(what: &str, within: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut last = String::new();
    let waited = until(what, within, || match ask() {
        Ok(true) => Ok(Some(())),
        Ok(false) => Ok(None),
        Err(error) => {
            last = format!("{error:#}");
            Ok(None)
        }
    });
    waited.map_err(|error| if last.is_empty() { error } else { error.context(format!("the last answer was: {last}")) })
}

/// Milliseconds on the monotonic clock, for measuring.
#[must_use]
pub fn mono_ms() -> u64 {
    SystemClock.now().mono_ms
}

/// Milliseconds on the wall clock.
#[must_use]
pub fn wall_ms() -> i64 {
    SystemClock.now().wall_ms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_given_as_soon_as_there_is_one() {
        let mut asked = 0;
        let answer = until("three questions", Duration::from_secs(5), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
    }

    #[test]
    fn waiting_in_vain_names_what_was_waited_for() {
        let waited = until_true("the moon", Duration::from_millis(1), || anyhow::bail!("clouds"));
        let said = format!("{:#}", waited.unwrap_err());
        assert!(said.contains("the moon") && said.contains("clouds"), "{said}");
    }
}
