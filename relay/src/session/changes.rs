//! Carries to live sessions what an administrator changes: revocations and configurations.
//!
//! The command line is another process; the registry's revision is how its changes are found, once a second. The first
//! look finds everything there ever was: telling a session what it knows costs nothing, missing a change would.

use std::time::Duration;

use satellite_shared::wire::to_satellite::RefusalCode;
use tokio_util::sync::CancellationToken;

use super::Roster;
use crate::registry::{Registry, RegistryError};

/// The task.
#[derive(Debug)]
pub struct Changes {
    registry: Registry,
    roster: Roster,
    every: Duration,
    revision: i64,
    failing: bool,
}

impl Changes {
    /// Polls once a second.
    #[must_use]
    pub fn new(registry: Registry, roster: Roster) -> Self {
        Self { registry, roster, every: Duration::from_secs(1), revision: 0, failing: false }
    }

    /// Goes on until shutdown; a registry that does not answer is asked again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.look_and_tell().await;
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

    async fn look(&mut self) -> Result<(), RegistryError> {
        for change in self.registry.changes_since(self.revision).await? {
            if change.revoked {
                if self.roster.end(&change.satellite, RefusalCode::Revoked) {
                    tracing::info!(satellite = %change.satellite, "revoked: its session ends");
                }
            } else {
                self.roster.config_changed(&change.satellite);
            }
            self.revision = self.revision.max(change.revision);
        }
        Ok(())
    }
}
