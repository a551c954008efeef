//! How long a session waits and how much it holds. Tests shorten the waits; nobody else changes them.

use std::time::Duration;

use satellite_shared::limits::MESSAGE_BYTES_MAX;

/// Waits and bounds of one session.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From TLS to the end of the WebSocket upgrade.
    pub upgrade: Duration,
    /// From `HELLO` to `AUTHENTICATE`.
    pub authenticate: Duration,
    /// What the registry and the ingest may take to answer a session's question.
    pub answer: Duration,
    /// What a message may take to leave.
    pub send: Duration,
    /// How long a closed connection is read to its end, so that the last words arrive.
    pub linger: Duration,
    /// Between WebSocket pings.
    pub ping_every: Duration,
    /// Without a whole message for this long, the satellite is gone.
    pub silence_max: Duration,
    /// Between heartbeats.
    pub heartbeat_every: Duration,
    /// Between two notes of a satellite's progress in the registry.
    pub seen_every: Duration,
    /// What blocks that were submitted before a drain may take to be committed.
    pub drain: Duration,
    /// Not sooner than this after a drain.
    pub reconnect_after: Duration,
    /// And spread over this.
    pub reconnect_spread: Duration,
    /// Frames' bytes that may be on their way, unanswered.
    pub credit_bytes_max: u64,
    /// The least of it that slow storage leaves.
    pub credit_bytes_min: u64,
    /// An answer that took longer halves the credit. A batch waits ten seconds for others, which is not slow.
    pub commit_slow: Duration,
    /// An answer that took less doubles it.
    pub commit_fast: Duration,
    /// Descriptors that one connection may keep.
    pub series_bytes_max: usize,
    /// Bytes from the socket without a whole message among them.
    pub unfinished_bytes_max: usize,
    /// The complaint that closes the connection.
    pub complaints_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            upgrade: Duration::from_secs(10),
            authenticate: Duration::from_secs(5),
            answer: Duration::from_secs(10),
            send: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            ping_every: Duration::from_secs(20),
            silence_max: Duration::from_secs(50),
            heartbeat_every: Duration::from_secs(30),
            seen_every: Duration::from_secs(30),
            drain: Duration::from_secs(10),
            reconnect_after: Duration::from_secs(1),
            reconnect_spread: Duration::from_secs(30),
            credit_bytes_max: 4 << 20,
            credit_bytes_min: 128 << 10,
            commit_slow: Duration::from_secs(30),
            commit_fast: Duration::from_secs(15),
            series_bytes_max: 64 << 20,
            unfinished_bytes_max: 2 * MESSAGE_BYTES_MAX,
            complaints_max: 10,
        }
    }
}

/// A wait in the clock's unit.
pub(crate) fn ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)
}
