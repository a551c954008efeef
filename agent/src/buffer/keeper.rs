//! The thread that owns the store: to be written.

use std::sync::Arc;

use bytes::Bytes;
use satellite_shared::clock::Clock;
use satellite_shared::id::Epoch;
use satellite_shared::ranges::Ranges;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BufferSettings, BufferState, Commit, CommitError, Committed, HeldStream, OpenError, Opened, Place, ReadError,
    StoredBlock,
};

pub(super) enum Command {
    Commit { commit: Commit, answer: oneshot::Sender<Result<Committed, CommitError>> },
    Read { from: Place, below: Place, bytes_max: usize, answer: oneshot::Sender<Result<Vec<StoredBlock>, ReadError>> },
    Series { opening: u32, answer: oneshot::Sender<Result<Vec<Bytes>, ReadError>> },
    Forget { epoch: Epoch, ranges: Ranges, answer: oneshot::Sender<Result<(), ReadError>> },
    Streams { answer: oneshot::Sender<Vec<HeldStream>> },
    LateNotes { answer: oneshot::Sender<Option<Vec<u8>>> },
    Close,
}

pub(super) struct Keeper;

impl Keeper {
    pub(super) fn open(
        settings: BufferSettings,
        _clock: Arc<dyn Clock>,
    ) -> Result<(Self, Opened, watch::Receiver<BufferState>), OpenError> {
        Err(OpenError::Unusable { dir: settings.dir, source: std::io::ErrorKind::Unsupported.into() })
    }

    pub(super) fn run(self, mut commands: mpsc::Receiver<Command>) {
        while commands.blocking_recv().is_some() {}
    }
}
