//! The wiring: opens what a satellite is made of, starts its tasks, and ends them in the order that data flows.
//!
//! scheduler → recorder → buffer → uplink. A stop ends them from the left, so that nothing polled is lost; a task that
//! ends unasked ends the program.

use std::path::PathBuf;
use std::sync::Arc;

use satellite_shared::clock::{Clock, Now, SystemClock};
use satellite_shared::heartbeat::Heartbeats;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer::{Buffer, BufferSettings, OpenError, Opened};
use crate::collector::Context;
use crate::config::{self, Configurator};
use crate::local::{self, Local};
use crate::policy::{Gate, Policy, PolicyError};
use crate::recorder::notes::Notes;
use crate::recorder::{self, Recorder, RecorderState};
use crate::scheduler::Scheduler;
use crate::secrets::Keyring;
use crate::settings::Settings;
use crate::systemd::{ServiceManager, Supervisor};
use crate::uplink::{self, Uplink};

/// Steps that may wait for the recorder; polling waits beyond.
const STEPS_MAX: usize = 256;
/// Orders, questions and configurations that may wait.
const QUESTIONS_MAX: usize = 8;

/// Why a satellite does not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum SatelliteError {
    /// The policy can't be used.
    #[error("policy: {0}")]
    Policy(#[source] PolicyError),
    /// A directory can't be made or used.
    #[error("{path}: {source}; make it, or name another in satellite.toml")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The buffer can't be opened.
    #[error("buffer: {0}")]
    Buffer(#[source] OpenError),
    /// A task ended that should not have.
    #[error("the {0} ended unasked: {1}")]
    Task(&'static str, String),
}

impl SatelliteError {
    /// Whether somebody must change settings before another start can succeed.
    #[must_use]
    pub fn is_settings(&self) -> bool {
        match self {
            Self::Policy(_) | Self::Directory { .. } => true,
            Self::Buffer(error) => matches!(error, OpenError::Newer { .. } | OpenError::Unusable { .. }),
            Self::Task(..) => false,
        }
    }
}

/// A satellite, built and not yet running.
pub struct Satellite {
    settings: Settings,
    clock: Arc<dyn Clock>,
    started: Now,
    gate: Arc<Gate>,
    buffer: Buffer,
    opened: Opened,
}

impl Satellite {
    /// Opens everything that can refuse.
    ///
    /// # Errors
    /// What can't be used, and what to do.
    pub fn build(settings: &Settings) -> Result<Self, SatelliteError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let policy = Policy::load(&settings.policy).map_err(SatelliteError::Policy)?;
        private_directory(&settings.state_dir)?;
        let bounds = &settings.buffer;
        let buffer_settings = BufferSettings {
            dir: settings.state_dir.join("buffer"),
            bytes_max: bounds.bytes_max,
            age_max: bounds.age_max,
            free_min_bytes: bounds.free_min_bytes,
            free_min_percent: bounds.free_min_percent,
        };
        let (buffer, opened) = Buffer::open(buffer_settings, clock.clone()).map_err(SatelliteError::Buffer)?;
        Ok(Self {
            settings: settings.clone(),
            started: clock.now(),
            gate: Arc::new(Gate::new(policy, clock.clone())),
            clock,
            buffer,
            opened,
        })
    }

    /// Runs until told to stop, and tells the service manager how things stand.
    ///
    /// # Errors
    /// The task that ended unasked.
    pub async fn run(self, shutdown: CancellationToken, manager: ServiceManager) -> Result<(), SatelliteError> {
        let notes = self.opened.notes.as_deref().and_then(Notes::read);
        let stopped_since_ms = notes.as_ref().map(|notes| notes.until_ms);
        let held: u64 = self.buffer.state().borrow().records;
        tracing::info!(epoch = %self.opened.epoch, held, "satellite {} starts", env!("CARGO_PKG_VERSION"));

        let (orders, order_receiver) = mpsc::channel(QUESTIONS_MAX);
        let (step_sender, steps) = mpsc::channel(STEPS_MAX);
        let (gaps, gap_queries) = mpsc::channel(QUESTIONS_MAX);
        let (probes, probe_receiver) = mpsc::channel(QUESTIONS_MAX);
        let (config_sender, configs) = mpsc::channel(QUESTIONS_MAX);
        let (statuses, status_receiver) = mpsc::channel(QUESTIONS_MAX);
        let (version, config_version) = watch::channel(0);
        let (recorder_state, recorder_watch) = watch::channel(RecorderState::default());

        let scheduler = Scheduler::new(order_receiver, step_sender, self.clock.clone());
        let recorder = Recorder::new(recorder::Parts {
            steps,
            gap_queries,
            state: recorder_state,
            buffer: self.buffer.clone(),
            opened: self.opened,
            notes,
            clock: self.clock.clone(),
            commit_every: self.settings.buffer.commit_every,
            orders: orders.clone(),
        });
        let configurator = Configurator::new(config::Parts {
            configs,
            statuses,
            version,
            orders: orders.clone(),
            probes: probe_receiver,
            context: Context::new(self.gate, Keyring::new(&self.settings.state_dir), "/"),
            dir: self.settings.state_dir.join("config"),
            stopped_since_ms,
        });
        let (uplink, seen) = Uplink::new(uplink::Parts {
            buffer: self.buffer.clone(),
            clock: self.clock.clone(),
            state_dir: self.settings.state_dir.clone(),
            proxy: self.settings.proxy_settings(),
            stop_grace: self.settings.stop_grace,
            configs: config_sender,
            statuses: status_receiver,
            config_version: config_version.clone(),
            recorder: recorder_watch.clone(),
        });
        let local = Local::bind(
            &self.settings.run_dir,
            local::Parts {
                orders,
                gaps,
                probes,
                link: seen.link.clone(),
                identity: seen.identity,
                buffer: self.buffer.state(),
                recorder: recorder_watch,
                config_version,
                bounds: self.settings.buffer.clone(),
                clock: self.clock.clone(),
                started: self.started,
            },
        )
        .map_err(|source| SatelliteError::Directory { path: self.settings.run_dir.clone(), source })?;

        let mut heartbeats = manager.heartbeats();
        let tasks = Tasks { scheduler, recorder, configurator, uplink, local }.beating(&mut heartbeats);
        let supervisor = Supervisor::new(manager, heartbeats, self.clock, self.buffer.clone(), seen.link);
        let result = tasks.run_under(supervisor, shutdown).await;
        self.buffer.close();
        result
    }
}

struct Tasks {
    scheduler: Scheduler,
    recorder: Recorder,
    configurator: Configurator,
    uplink: Uplink,
    local: Local,
}

impl Tasks {
    fn beating(self, heartbeats: &mut Heartbeats) -> Self {
        Self {
            scheduler: self.scheduler.beating(heartbeats.task("scheduler")),
            recorder: self.recorder.beating(heartbeats.task("recorder")),
            configurator: self.configurator.beating(heartbeats.task("configurator")),
            uplink: self.uplink.beating(heartbeats.task("uplink")),
            local: self.local.beating(heartbeats.task("local socket")),
        }
    }

    async fn run_under(self, supervisor: Supervisor, shutdown: CancellationToken) -> Result<(), SatelliteError> {
        tokio::select! {
            result = self.run(shutdown) => result,
            never = supervisor.run() => match never {},
        }
    }

    /// Starts every task and ends them in the order that data flows.
    async fn run(self, shutdown: CancellationToken) -> Result<(), SatelliteError> {
        let tracker = TaskTracker::new();
        let (polling, sending) = (CancellationToken::new(), CancellationToken::new());
        let mut scheduler = tracker.spawn(self.scheduler.run(polling.clone()));
        let mut recorder = tracker.spawn(self.recorder.run());
        let mut configurator = tracker.spawn(self.configurator.run(polling.clone()));
        let mut uplink = tracker.spawn(self.uplink.run(sending.clone()));
        let mut local = tracker.spawn(self.local.run(sending.clone(), tracker.clone()));
        let unasked = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut scheduler => Some(("scheduler", format!("{ended:?}"))),
            ended = &mut recorder => Some(("recorder", format!("{ended:?}"))),
            ended = &mut configurator => Some(("configurator", format!("{ended:?}"))),
            ended = &mut uplink => Some(("uplink", format!("{ended:?}"))),
            ended = &mut local => Some(("local socket", format!("{ended:?}"))),
        };
        // The recorder goes when the scheduler has gone and everything polled is committed.
        polling.cancel();
        if unasked.as_ref().is_none_or(|(task, _)| *task != "recorder" && *task != "scheduler") {
            drop(scheduler.await);
            match recorder.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "the last commit failed: the next start explains what is missing")
                }
                Err(error) => tracing::error!(%error, "the recorder failed"),
            }
        }
        sending.cancel();
        tracker.close();
        tracker.wait().await;
        unasked.map_or(Ok(()), |(task, how)| Err(SatelliteError::Task(task, how)))
    }
}

/// The state directory, 0700: what is in it is this satellite's alone.
fn private_directory(path: &std::path::Path) -> Result<(), SatelliteError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let error = |source| SatelliteError::Directory { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error)?;
    // systemd's StateDirectory= or a person may have made it wider; nothing in it is for others.
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).map_err(error)?.permissions());
    if mode & 0o077 != 0 {
        let narrower = std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7700);
        std::fs::set_permissions(path, narrower).map_err(error)?;
    }
    Ok(())
}
