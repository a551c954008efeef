//! Between the sessions and the sinks: one task that drops what is stored already, batches, commits, answers.

use std::collections::HashMap;
use std::sync::Arc;

pub mod watermark;

use bytes::Bytes;
use satellite_shared::gap::Gap;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::metric::Series;
use satellite_shared::wire::block::{Group, Header};
use satellite_shared::wire::to_satellite::NackCode;
use tokio::sync::mpsc;

/// A block that a session has checked and decoded.
#[derive(Debug)]
pub struct Block {
    /// Whose, by the client certificate.
    pub satellite: SatelliteId,
    /// What the frame says of itself.
    pub header: Header,
    /// What it holds.
    pub body: BlockBody,
    /// The frame as it came, for the dead letters.
    pub frame: Bytes,
    /// Where to say what became of it.
    pub reply: mpsc::UnboundedSender<Outcome>,
}

/// What a block holds.
#[derive(Debug)]
pub enum BlockBody {
    /// Samples; every series number in the groups is a key of `series`.
    Samples {
        /// The samples.
        groups: Vec<Group>,
        /// The epoch's descriptors by number.
        series: Arc<HashMap<u32, Arc<Series>>>,
    },
    /// Gaps.
    Gaps(Vec<Gap>),
    /// It can't be decoded: it goes to the dead letters, and the stream goes on.
    Dead(String),
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Committed now or before, or set aside: the satellite may forget it.
    Stored {
        /// Whose numbers.
        epoch: Epoch,
        /// The first record.
        first_seq: u64,
        /// The last record.
        last_seq: u64,
        /// The frame's bytes, to give back as credit.
        bytes: usize,
    },
    /// Not taken.
    Refused {
        /// Whose numbers.
        epoch: Epoch,
        /// The first record.
        first_seq: u64,
        /// The frame's bytes, to give back as credit.
        bytes: usize,
        /// Why.
        code: NackCode,
        /// For people.
        message: String,
    },
}
