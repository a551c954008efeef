//! `satellite-relay serve`: runs until it is told to stop, or until a part of it ends that should not.
//!
//! SIGHUP makes it read its settings anew and begin again with them, on the same sockets: nobody is refused meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use satellite_shared::clock::SystemClock;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, Shell, logging, note};
use crate::ingest::IngestError;
use crate::listener::Sockets;
use crate::relay::{Relay, StartError};
use crate::settings::Settings;
use crate::systemd::{self, ServiceManager, Supervisor};

const WORKERS: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  satellite-relay serve
  satellite-relay serve --settings relay.toml --data-dir /srv/relay
  satellite-relay serve --data-dir ./relay --web-listen 127.0.0.1:0 --satellites-listen 127.0.0.1:0

With no settings everything is embedded: authority, registry and records lie in the data directory. The addresses of both
doors stand in addresses.json there. SIGHUP makes it read its settings anew.")]
pub(crate) struct Serve {
    #[arg(long, value_name = "ADDRESS:PORT", help = "Where to listen for enrolment and the web [default: [::]:8443]")]
    web_listen: Option<SocketAddr>,
    #[arg(long, value_name = "ADDRESS:PORT", help = "Where to listen for satellites [default: [::]:8444]")]
    satellites_listen: Option<SocketAddr>,
}

impl Serve {
    pub(crate) fn run(self, shell: &Shell) -> Result<(), Failure> {
        logging::start(shell.settings.log);
        // Before anything else is opened: they are known by their numbers.
        let given = systemd::sockets().map_err(Failure::unusable)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        runtime.block_on(self.serve(shell, given))
    }

    async fn serve(&self, shell: &Shell, given: Option<Sockets>) -> Result<(), Failure> {
        let manager = ServiceManager::of_environment();
        let mut signals = Signals::new().map_err(anyhow::Error::from)?;
        let mut settings = self.over(shell.settings.clone());
        let activated = given.is_some();
        let mut sockets = given;
        loop {
            manager.starting();
            let (clock, mut heartbeats) = (Arc::new(SystemClock), manager.heartbeats());
            let (place, beats) = (&shell.data_dir, &mut heartbeats);
            let mut relay = Relay::start_on(sockets.take(), &settings, place, clock.clone(), beats).await?;
            let supervisor = Supervisor::new(manager, heartbeats, clock, relay.roster()).run();
            tokio::pin!(supervisor);
            let mut ended = None;
            let fresh = loop {
                tokio::select! {
                    told = signals.next() => if told == Told::Stop { break None },
                    part = relay.ended() => {
                        ended = Some(part);
                        break None;
                    }
                    never = &mut supervisor => match never {},
                }
                manager.reloading(settings.stop_grace);
                match Settings::load(shell.settings_path.as_deref()) {
                    Ok(fresh) => break Some(self.over(fresh)),
                    Err(error) => tracing::error!(%error, "the new settings can't be used: going on with those before"),
                }
                manager.ready();
            };
            tracing::info!(reload = fresh.is_some(), "stopping");
            if fresh.is_none() {
                manager.stopping(settings.stop_grace);
            }
            let left = tokio::select! {
                left = relay.stop() => Some(left),
                () = signals.stop() => {
                    note("stopped at once");
                    None
                }
                never = &mut supervisor => match never {},
            };
            if let Some(part) = ended {
                return Err(anyhow::anyhow!("{part} ended by itself; the log says why").into());
            }
            let (Some(fresh), Some(left)) = (fresh, left) else { return Ok(()) };
            let doors = |of: &Settings| (of.web_listen, of.satellites_listen);
            let stay = activated || doors(&settings) == doors(&fresh);
            sockets = stay.then_some(left);
            settings = fresh;
        }
    }

    /// What was typed goes over what the file says.
    fn over(&self, mut settings: Settings) -> Settings {
        settings.web_listen = self.web_listen.unwrap_or(settings.web_listen);
        settings.satellites_listen = self.satellites_listen.unwrap_or(settings.satellites_listen);
        settings
    }
}

/// What a signal tells a relay that serves.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    ReadSettings,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::ReadSettings,
        }
    }

    /// Another SIGTERM while stopping.
    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::DataDir(error) => error.into(),
            StartError::Registry(error) => error.into(),
            StartError::Ingest(IngestError::DataDir(error)) => error.into(),
            other @ (StartError::Authority(_)
            | StartError::Archive(_)
            | StartError::Ingest(IngestError::Commit(_))
            | StartError::Listen { .. }) => Self::unusable(other),
        }
    }
}
