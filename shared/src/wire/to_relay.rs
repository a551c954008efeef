//! What a satellite says.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, LeaseId};
use crate::secret::Token;

/// A control event from a satellite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ToRelay {
    /// Who it is, and what it holds. First thing it says; said again, it renews the configuration.
    Authenticate(Authenticate),
    /// What became of a configuration.
    ConfigStatus(ConfigStatus),
    /// Alive, and how far it is.
    Heartbeat(Progress),
    /// Asks for a certificate for a new key.
    Renew(Renew),
    /// Something of the relay's was not understood.
    Error(Complaint),
}

/// Who a satellite is, and what it holds. The satellite's id comes from its certificate, not from here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticate {
    /// The protocol version it chose.
    pub protocol: u32,
    /// The lease it enrolled with.
    pub lease: LeaseId,
    /// The token that enrolment gave it.
    pub token: Token,
    /// The program's version.
    pub agent_version: String,
    /// The machine's name, for people.
    pub hostname: String,
    /// Random at each start of the program: tells a reconnect from a clone.
    pub instance: String,
    /// Its wall clock, milliseconds since 1970 UTC.
    pub clock_ms: i64,
    /// The configuration version that it runs.
    pub config_version: u64,
    /// Which of the certificates issued to it this is.
    pub generation: u64,
    /// What it holds and the relay has not acknowledged.
    pub streams: Vec<Stream>,
}

/// The records of one epoch that a satellite holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The kernel's boot id while the epoch was written, empty where unknown.
    pub boot_id: String,
    /// When the buffer was opened, wall clock.
    pub opened_ms: i64,
    /// The first record still held.
    pub first_seq: u64,
    /// The last record held.
    pub last_seq: u64,
}

/// How far a satellite is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its wall clock.
    pub clock_ms: i64,
    /// The epoch it writes.
    pub epoch: Epoch,
    /// The last record number it has committed there.
    pub last_seq: u64,
    /// Samples due so far in that epoch.
    pub due: u64,
    /// Samples due that wait in the buffer, of all epochs.
    pub waiting: u64,
    /// Bytes in the buffer.
    pub buffer_bytes: u64,
    /// Polls finished since start.
    pub polls: u64,
}

/// What became of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Which version.
    pub version: u64,
    /// What happened to the document as a whole.
    pub state: ConfigState,
    /// What was refused in it, and why.
    pub items: Vec<ConfigItem>,
}

/// What happened to a configuration document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigState {
    /// In force, but for the items that say otherwise.
    Applied,
    /// Not in force; the one before stays.
    Rejected,
}

/// One item of a configuration that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigItem {
    /// Where: `device.router.metric.power`.
    pub path: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Asks for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// PKCS #10, PEM. Only the public key is taken from it.
    pub csr: String,
}

/// Something was not understood or not allowed; the connection stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}
