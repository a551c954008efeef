//! What a relay says.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, SatelliteId};
use crate::ranges::Ranges;
use crate::wire::to_relay::Complaint;

/// A control event from a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ToSatellite {
    /// First thing it says.
    Hello(Hello),
    /// The satellite is who it says; what is stored of what it holds.
    Authenticated(Authenticated),
    /// It is not, or may not; the connection closes after this.
    Refused(Refused),
    /// What to poll.
    Config(Config),
    /// What is committed.
    Ack(Ack),
    /// A frame that was not taken.
    Nack(Nack),
    /// A certificate for the key of the last `RENEW`.
    Certificate(Certificate),
    /// Alive.
    Heartbeat(Alive),
    /// The relay is about to close: come back later.
    Drain(Drain),
    /// Something of the satellite's was not understood.
    Error(Complaint),
}

/// The relay's greeting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The oldest protocol version it speaks.
    pub protocol_min: u32,
    /// The newest.
    pub protocol_max: u32,
    /// Which relay, for people and logs.
    pub relay: String,
    /// Its version.
    pub relay_version: String,
    /// Its wall clock.
    pub clock_ms: i64,
    /// How often each end says something, in seconds.
    pub heartbeat_s: u32,
}

/// Welcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authenticated {
    /// Who the certificate says it is.
    pub satellite: SatelliteId,
    /// The session, for logs of both ends.
    pub session: String,
    /// What is committed of the epochs that the satellite announced.
    pub stored: Vec<Stored>,
    /// Bytes of frames it may have sent and not acknowledged.
    pub credit_bytes: u64,
    /// The configuration version that is current.
    pub config_version: u64,
    /// When to ask for a new certificate, wall clock.
    pub renew_after_ms: i64,
}

/// What is committed of one epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Whose numbers.
    pub epoch: Epoch,
    /// Which.
    pub ranges: Ranges,
}

/// Why a satellite may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// Not sooner than this.
    pub retry_after_s: u64,
}

/// Why a satellite may not, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// Nothing or something else came where `AUTHENTICATE` was due.
    Protocol,
    /// Token, lease and certificate do not belong together.
    Credentials,
    /// The certificate is not one of those in force: it was replaced.
    StaleCertificate,
    /// Revoked by an administrator.
    Revoked,
    /// Two machines use this identity.
    Conflict,
    /// A newer connection of the same satellite took over.
    Superseded,
    /// Too much at once.
    Overloaded,
    /// The relay's registry or store does not answer.
    Unavailable,
}

impl RefusalCode {
    /// Whether coming back alone can't help: somebody has to do something.
    #[must_use]
    pub fn is_permanent(self) -> bool {
        match self {
            Self::Version | Self::Credentials | Self::StaleCertificate | Self::Revoked | Self::Conflict => true,
            Self::Protocol | Self::Superseded | Self::Overloaded | Self::Unavailable => false,
        }
    }
}

/// What to poll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Counts up with each change.
    pub version: u64,
    /// The document, as `config set` took it; see [`crate::config`].
    pub document: serde_json::Value,
}

/// What is committed: every record in these ranges is in storage or was set aside as a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Per epoch, ranges that the satellite may forget.
    pub stored: Vec<Stored>,
    /// Bytes of frames it may have sent and not acknowledged, from now on.
    pub credit_bytes: u64,
}

/// A frame that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The frame's first record.
    pub first_seq: u64,
    /// Why.
    pub code: NackCode,
    /// For people.
    pub message: String,
    /// Send again not sooner than this.
    pub retry_after_s: u64,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NackCode {
    /// Storage does not take it now: send it again, same bytes.
    Retry,
    /// It names a series that was not announced on this connection: announce and send again.
    UnknownSeries,
    /// It overlaps what is stored without being it.
    Conflict,
}

/// A certificate and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Leaf first, PEM.
    pub chain: String,
    /// The authorities to trust from now on, PEM.
    pub ca_bundle: String,
    /// Which of the certificates issued to this satellite it is.
    pub generation: u64,
    /// When it ends, wall clock.
    pub not_after_ms: i64,
    /// When to ask for the next, wall clock.
    pub renew_after_ms: i64,
}

/// Alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// Its wall clock.
    pub clock_ms: i64,
}

/// The relay is about to close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// For people.
    pub reason: String,
    /// Come back not sooner than this.
    pub reconnect_after_ms: u64,
    /// And spread over this.
    pub spread_ms: u64,
}

/// The relay's last `CONFIG` may be larger than other events.
#[must_use]
pub fn event_bytes_max() -> usize {
    crate::limits::CONFIG_BYTES_MAX * 2
}
