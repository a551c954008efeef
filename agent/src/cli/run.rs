//! `satellite run`: the daemon's life. SIGTERM and SIGINT stop it, SIGHUP makes it read its settings anew.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::cli::EXIT_SETTINGS;
use crate::policy::Policy;
use crate::satellite::{Satellite, SatelliteError};
use crate::settings::Settings;
use crate::systemd::ServiceManager;

/// Runs until it is told to stop.
pub(crate) async fn run(path: Option<PathBuf>, mut settings: Settings) -> anyhow::Result<ExitCode> {
    let manager = ServiceManager::of_environment();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        manager.opening();
        let satellite = match Satellite::build(&settings) {
            Ok(satellite) => satellite,
            Err(error) => return refuse(&error),
        };
        let shutdown = CancellationToken::new();
        let life = satellite.run(shutdown.clone(), manager);
        tokio::pin!(life);
        let fresh = loop {
            tokio::select! {
                result = &mut life => {
                    result?;
                    return Ok(ExitCode::SUCCESS);
                }
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                _ = hangup.recv() => {}
            }
            manager.reloading(settings.stop_grace);
            match read_anew(path.as_deref()) {
                Ok(fresh) => break Some(fresh),
                Err(error) => tracing::error!("the new settings can't be used: going on with those before: {error}"),
            }
            manager.ready();
        };
        tracing::info!(reload = fresh.is_some(), "stopping: no new polls, committing, sending what fits");
        if fresh.is_none() {
            manager.stopping(settings.stop_grace);
        }
        shutdown.cancel();
        tokio::select! {
            result = &mut life => result?,
            _ = terminate.recv() => return Err(anyhow::anyhow!("told to stop twice: ended without sending everything")),
            _ = interrupt.recv() => return Err(anyhow::anyhow!("told to stop twice: ended without sending everything")),
        }
        match fresh {
            Some(fresh) => settings = fresh,
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// Settings and policy, while the satellite still runs: what can't be used must not end it.
fn read_anew(path: Option<&Path>) -> Result<Settings, String> {
    let fresh = Settings::load(path).map_err(|error| error.to_string())?;
    Policy::load(&fresh.policy).map_err(|error| format!("policy: {error}"))?;
    Ok(fresh)
}

fn refuse(error: &SatelliteError) -> anyhow::Result<ExitCode> {
    if error.is_settings() {
        crate::cli::complain(&error.to_string());
        return Ok(ExitCode::from(EXIT_SETTINGS));
    }
    Err(anyhow::anyhow!("{error}"))
}
