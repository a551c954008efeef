//! Records on disk until the relay has committed them: to be written.

use bytes::Bytes;
use satellite_shared::gap::Lost;
use satellite_shared::id::Epoch;
use satellite_shared::wire::to_relay::Stream;

/// Where a block stands: openings of the buffer count up, and within one, sequences do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Place {
    /// Which opening of the buffer; the epoch's number on this disk.
    pub opening: u32,
    /// The block's first sequence.
    pub seq: u64,
}

/// One block as it is stored and sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Where it stands.
    pub place: Place,
    /// The frame.
    pub frame: Bytes,
}

/// What one group commit stores, all or nothing.
#[derive(Debug, Default)]
pub struct Commit {
    /// Frames of series descriptors, before any block that uses them.
    pub series: Vec<Vec<u8>>,
    /// Frames of samples and gaps, in order of their sequences.
    pub blocks: Vec<Vec<u8>>,
    /// The recorder's own notes (what was polled until when), given back at the next opening.
    pub notes: Vec<u8>,
    /// How many entries of `losses` the blocks of this commit explain.
    pub losses_explained: usize,
}

/// Numbered records that went before they were acknowledged, not yet explained by a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Whose numbers, and which.
    pub lost: Lost,
    /// How many due samples they accounted for.
    pub count: u64,
    /// When the first of them was made.
    pub from_ms: i64,
    /// When the last of them was made.
    pub to_ms: i64,
    /// Evicted or corrupt.
    pub reason: satellite_shared::gap::Reason,
}

/// What an opening found.
#[derive(Debug)]
pub struct Opened {
    /// The new epoch.
    pub epoch: Epoch,
    /// The recorder's notes of the last commit, if they could be read.
    pub notes: Option<Vec<u8>>,
    /// What went and no gap explains yet.
    pub losses: Vec<Loss>,
    /// What older openings left, oldest first.
    pub streams: Vec<Stream>,
}
