//! `satellite run`: the daemon's life. SIGTERM and SIGINT stop it, SIGHUP makes it read its settings anew.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::EXIT_SETTINGS;
use crate::satellite::{Satellite, SatelliteError};
use crate::settings::Settings;

/// Runs until it is told to stop.
pub(crate) async fn run(path: Option<PathBuf>, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        let satellite = match Satellite::build(&settings) {
            Ok(satellite) => satellite,
            Err(error) => return refuse(&error),
        };
        let shutdown = CancellationToken::new();
        let life = satellite.run(shutdown.clone());
        tokio::pin!(life);
        let reload = tokio::select! {
            result = &mut life => {
                result?;
                return Ok(ExitCode::SUCCESS);
            }
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            _ = hangup.recv() => true,
        };
        tracing::info!(reload, "stopping: no new polls, committing, sending what fits");
        shutdown.cancel();
        tokio::select! {
            result = &mut life => result?,
            _ = terminate.recv() => return Err(anyhow::anyhow!("told to stop twice: ended without sending everything")),
            _ = interrupt.recv() => return Err(anyhow::anyhow!("told to stop twice: ended without sending everything")),
        }
        if !reload {
            return Ok(ExitCode::SUCCESS);
        }
        match Settings::load(path.as_deref()) {
            Ok(fresh) => settings = fresh,
            Err(error) => tracing::error!(%error, "the new settings can't be used: going on with those before"),
        }
    }
}

fn refuse(error: &SatelliteError) -> anyhow::Result<ExitCode> {
    if error.is_settings() {
        crate::cli::complain(&error.to_string());
        return Ok(ExitCode::from(EXIT_SETTINGS));
    }
    Err(anyhow::anyhow!("{error}"))
}
