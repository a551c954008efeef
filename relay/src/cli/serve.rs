//! `satellite-relay serve`: runs until it is told to stop, or until a part of it ends that should not.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use satellite_shared::clock::SystemClock;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Shell, log_to_stderr, note};
use crate::ingest::IngestError;
use crate::relay::{Relay, StartError};

const WORKERS: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  satellite-relay serve
  satellite-relay serve --settings relay.toml --data-dir /srv/relay
  satellite-relay serve --data-dir ./relay --web-listen 127.0.0.1:0 --satellites-listen 127.0.0.1:0

With no settings everything is embedded: authority, registry and records lie in the data directory. The addresses of both
doors stand in addresses.json there.")]
pub(crate) struct Serve {
    #[arg(long, value_name = "ADDRESS:PORT", help = "Where to listen for enrolment and the web [default: [::]:8443]")]
    web_listen: Option<SocketAddr>,
    #[arg(long, value_name = "ADDRESS:PORT", help = "Where to listen for satellites [default: [::]:8444]")]
    satellites_listen: Option<SocketAddr>,
}

impl Serve {
    pub(crate) fn run(self, shell: &Shell) -> Result<(), Failure> {
        log_to_stderr(shell.settings.log);
        let mut settings = shell.settings.clone();
        settings.web_listen = self.web_listen.unwrap_or(settings.web_listen);
        settings.satellites_listen = self.satellites_listen.unwrap_or(settings.satellites_listen);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(anyhow::Error::from)?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
            let mut relay = Relay::start(&settings, &shell.data_dir, Arc::new(SystemClock)).await?;
            let ended = tokio::select! {
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
                ended = relay.ended() => Some(ended),
            };
            tracing::info!("stopping");
            let stopping = relay.stop();
            tokio::select! {
                () = stopping => {}
                _ = terminate.recv() => note("stopped at once"),
                _ = interrupt.recv() => note("stopped at once"),
            }
            match ended {
                Some(part) => Err(anyhow::anyhow!("{part} ended by itself; the log says why").into()),
                None => Ok(()),
            }
        })
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
