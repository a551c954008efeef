//! Carries to live sessions what an administrator changes: revocations and configurations.
//!
//! The command line is another process; the registry's revision is how its changes are found, once a second. The first
//! look finds everything there ever was: telling a session what it knows costs nothing, missing a change would.

use std::time::Duration;

use satellite_shared::heartbeat::Beat;
use satellite_shared::wire::to_satellite::RefusalCode;
use tokio_util::sync::CancellationToken;

use super::Roster;
use crate::ingest::restore::note_revoked;
use crate::registry::{Registry, RegistryError};
use crate::sink::archive::{Store, StoreError};
use crate::systemd::waiting;

/// Why changes can't be looked for or noted.
#[derive(Debug, thiserror::Error)]
enum ChangesError {
    /// The registry does not answer.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive does not take the note; it is tried again.
    #[error("a revocation can't be noted in the archive: {0}")]
    Archive(#[from] StoreError),
}

/// The task.
#[derive(Debug)]
pub struct Changes {
    registry: Registry,
    roster: Roster,
    archive: Option<(Store, String)>,
    every: Duration,
    revision: i64,
    failing: bool,
    beat: Beat,
}

impl Changes {
    /// Polls once a second.
    #[must_use]
    pub fn new(registry: Registry, roster: Roster) -> Self {
        let (every, beat) = (Duration::from_secs(1), Beat::default());
        Self { registry, roster, archive: None, every, revision: 0, failing: false, beat }
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { every: self.every.min(beat.every()), beat, ..self }
    }

    /// Notes revocations in the archive of this relay too, where no backup of the registry undoes them.
    #[must_use]
    pub fn noting_in(self, store: Store, relay: String) -> Self {
        Self { archive: Some((store, relay)), ..self }
    }

    /// Goes on until shutdown; a registry that does not answer is asked again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            let beat = self.beat.clone();
            waiting(&beat, self.look_and_tell()).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(self.every) => {}
            }
        }
    }

    async fn look_and_tell(&mut self) {
        match self.look().await {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "can't look for changes: revocations and configurations wait");
            }
            Err(_) => {}
        }
    }

    async fn look(&mut self) -> Result<(), ChangesError> {
        for change in self.registry.changes_since(self.revision).await? {
            if change.revoked {
                if self.roster.end(&change.satellite, RefusalCode::Revoked) {
                    tracing::info!(satellite = %change.satellite, "revoked: its session ends");
                }
                if let Some((store, relay)) = &self.archive {
                    note_revoked(store, relay, &change.satellite).await?;
                }
            } else {
                self.roster.config_changed(&change.satellite);
            }
            self.revision = self.revision.max(change.revision);
        }
        Ok(())
    }
}
