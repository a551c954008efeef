//! How long a process had no processor though it had work, as the kernel counts it.

use std::time::Duration;

use anyhow::{Context, Result};

/// How long the first thread of a process, which is all that a satellite's tasks run on, has waited for its turn so far.
///
/// # Errors
/// When there is no such process, or the kernel does not count.
pub fn waited_for_turn(process: u32) -> Result<Duration> {
    let file = format!("/proc/{process}/schedstat");
    let text = std::fs::read_to_string(&file).with_context(|| file.clone())?;
    let ns = text.split_whitespace().nth(1).with_context(|| format!("{file}: {text:?}"))?;
    Ok(Duration::from_nanos(ns.parse().with_context(|| format!("{file}: {text:?}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_only_grows() {
        let me = std::process::id();
        let before = waited_for_turn(me).unwrap();
        assert!(waited_for_turn(me).unwrap() >= before);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        assert!(format!("{:#}", waited_for_turn(0).unwrap_err()).contains("/proc/0/schedstat"));
    }
}
