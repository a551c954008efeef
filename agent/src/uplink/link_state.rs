//! How the link is, for `satellite status`.

use serde::Serialize;

/// What everybody may see of the uplink.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkState {
    /// How the link stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// What went over it since the start of the program.
    #[serde(flatten)]
    pub counters: Counters,
}

/// How the link stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// Nobody to connect to: this machine has no lease.
    NoLease {
        /// Why, and what to do.
        why: String,
    },
    /// An attempt is being made.
    Connecting {
        /// Since when, wall clock.
        since_ms: i64,
    },
    /// Between two attempts.
    Disconnected {
        /// Since when, wall clock.
        since_ms: i64,
        /// Why, and what to do.
        why: String,
        /// When the next attempt is made, wall clock.
        next_try_ms: i64,
    },
    /// The relay has let us in.
    Connected {
        /// Since when, wall clock.
        since_ms: i64,
        /// The relay, as it calls itself.
        relay: String,
        /// The session, for logs of both ends.
        session: String,
    },
}

/// What went over the link since the start of the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Bytes sent, TLS and all.
    pub bytes_sent: u64,
    /// Bytes received, TLS and all.
    pub bytes_received: u64,
    /// Blocks sent, those sent again included.
    pub blocks_sent: u64,
    /// Records that the relay has acknowledged.
    pub records_acknowledged: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// How far this machine's clock is ahead of the relay's.
    pub clock_ahead_ms: Option<i64>,
    /// What is wrong beside the link itself: a block that the relay can't take, a renewal that failed.
    pub problem: Option<String>,
}

impl LinkState {
    /// Before the first attempt.
    #[must_use]
    pub fn new() -> Self {
        let why = "starting".to_owned();
        Self { standing: Standing::NoLease { why }, counters: Counters::default() }
    }
}

impl Default for LinkState {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_flat_document() {
        let state = LinkState {
            standing: Standing::Connected { since_ms: 5, relay: "r1".into(), session: "s".into() },
            counters: Counters { bytes_sent: 7, ..Counters::default() },
        };
        let json = serde_json::to_value(&state).unwrap();
        assert_eq!(
            (&json["state"], &json["relay"], &json["bytes_sent"]),
            (&"connected".into(), &"r1".into(), &7.into())
        );
    }
}
