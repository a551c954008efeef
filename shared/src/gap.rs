//! A gap: samples that were due and are not records, with the reason.
//!
//! Gaps stand in the same numbered stream as samples: buffered, sent, acknowledged and stored like them.

use serde::{Deserialize, Serialize};

use crate::id::{DeviceName, Epoch};
use crate::limits;

/// What is told of a gap, cut to what a gap may hold: the relay takes no block with more.
#[must_use]
pub fn detail(text: impl Into<String>) -> String {
    let mut text: String = text.into();
    text.truncate(text.floor_char_boundary(limits::DETAIL_BYTES_MAX));
    text
}

/// Why samples that were due are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The device did not answer in time.
    Timeout,
    /// The device or something before it refused the connection or the request.
    Refused,
    /// The name did not resolve, or no route led to the device.
    Unreachable,
    /// The device answered with something that can't be read, or too much of it.
    BadAnswer,
    /// This machine or device can't give the metric; the detail says what would allow it.
    Unsupported,
    /// The local policy forbids the target.
    Policy,
    /// The poll before it was still running, or the satellite was late: the slot was skipped.
    Late,
    /// The device keeps failing: it was left alone until the next attempt.
    BackOff,
    /// The configuration says paused.
    Paused,
    /// The satellite did not run.
    Stopped,
    /// The machine slept.
    Suspended,
    /// The wall clock was not to be trusted.
    ClockUntrusted,
    /// The buffer was full and its oldest blocks went.
    Evicted,
    /// The disk was full or failing: nothing more could be kept.
    DiskFull,
    /// The buffer was damaged and could not be read back.
    Corrupt,
    /// The relay had acknowledged it and lost it again, as when its disks are copied back from a backup.
    RelayRestored,
}

impl Reason {
    /// The word that people and stores see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::BadAnswer => "bad_answer",
            Self::Unsupported => "unsupported",
            Self::Policy => "policy",
            Self::Late => "late",
            Self::BackOff => "back_off",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Suspended => "suspended",
            Self::ClockUntrusted => "clock_untrusted",
            Self::Evicted => "evicted",
            Self::DiskFull => "disk_full",
            Self::Corrupt => "corrupt",
            Self::RelayRestored => "relay_restored",
        }
    }
}

/// Numbered records that were lost after they had been numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The first of them.
    pub first_seq: u64,
    /// The last of them.
    pub last_seq: u64,
    /// Samples due in the epoch up to and with `last_seq`.
    pub due_through: u64,
}

/// Samples that were due between two times and are not stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The device; `None` where it concerns all.
    pub device: Option<DeviceName>,
    /// The metric of the configuration; `None` where it concerns all of the device's.
    pub metric: Option<String>,
    /// The first slot that is missing, milliseconds since 1970 UTC.
    pub from_ms: i64,
    /// The last slot that is missing.
    pub to_ms: i64,
    /// How many samples it explains.
    pub count: u64,
    /// Why.
    pub reason: Reason,
    /// What exactly happened, for a person; at most 200 bytes.
    pub detail: String,
    /// Set where the samples had been counted as due, and numbered, before they were lost.
    pub lost: Option<Lost>,
}

impl Gap {
    /// How many due samples this gap is the first to mention.
    #[must_use]
    pub fn due(&self) -> u64 {
        if self.lost.is_some() { 0 } else { self.count }
    }
}
