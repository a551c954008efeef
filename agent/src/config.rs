//! Applies the configuration that the relay sends: checks it, builds what is new, tells the scheduler the difference.
//!
//! A device that breaks a rule is reported and left as it was; the others are taken. What is in force is kept on disk,
//! so that a start without the relay polls at once, and so is what was refused: a start under another policy judges it
//! anew and reports that. A configuration never touches the buffer.

pub mod last_good;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Document, Problem};
use satellite_shared::heartbeat::Beat;
use satellite_shared::id::DeviceName;
use satellite_shared::wire::to_relay::{ConfigItem, ConfigState, ConfigStatus};
use satellite_shared::wire::to_satellite::Config;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::collector::{self, Built, Context};
use crate::scheduler::timetable::Timetable;
use crate::scheduler::{Order, Planned};
use last_good::LastGood;

/// How often what the metrics gave is written down, so that a stop can say how many samples it missed.
const EXPECTED_EVERY: Duration = Duration::from_secs(15 * 60);
/// And how soon after a change.
const EXPECTED_FIRST: Duration = Duration::from_secs(10);
/// Problems told to the relay at most.
const ITEMS_MAX: usize = 100;

/// Asks for a device as it can be polled once, beside the schedule.
pub struct ProbeRequest {
    /// Which.
    pub device: String,
    /// Where the answer goes: the device and its collector, or why there is none.
    pub answer: oneshot::Sender<Result<(Device, Built), String>>,
}

/// The task.
pub struct Configurator {
    parts: Parts,
    current: BTreeMap<DeviceName, (Device, Value)>,
    last_good: LastGood,
    beat: Beat,
}

/// What the task is made of.
pub struct Parts {
    /// From the uplink.
    pub configs: mpsc::Receiver<Config>,
    /// To the uplink.
    pub statuses: mpsc::Sender<ConfigStatus>,
    /// Which version is in force.
    pub version: watch::Sender<u64>,
    /// To the scheduler.
    pub orders: mpsc::Sender<Order>,
    /// From the local socket.
    pub probes: mpsc::Receiver<ProbeRequest>,
    /// What collectors may use.
    pub context: Context,
    /// Where what is in force is kept.
    pub dir: PathBuf,
    /// Until when slots were accounted for before this start.
    pub stopped_since_ms: Option<i64>,
}

impl Configurator {
    /// Takes up what was in force.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let last_good = LastGood::load(&parts.dir);
        Self { parts, current: BTreeMap::new(), last_good, beat: Beat::default() }
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Applies what comes until told to stop.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.on_start().await;
        let mut expected_at = Instant::now() + EXPECTED_FIRST;
        loop {
            self.beat.beat();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(self.beat.every()) => {}
                Some(config) = self.parts.configs.recv() => {
                    self.on_config(config).await;
                    expected_at = Instant::now() + EXPECTED_FIRST;
                }
                Some(probe) = self.parts.probes.recv() => self.on_probe(probe),
                () = tokio::time::sleep_until(expected_at) => {
                    self.on_expected_time().await;
                    expected_at = Instant::now() + EXPECTED_EVERY;
                }
            }
        }
    }

    async fn on_start(&mut self) {
        let version = self.last_good.version();
        let value = self.last_good.document();
        let stopped_since_ms = self.parts.stopped_since_ms;
        let document = match Document::parse(&value) {
            Ok(document) => document,
            Err(problem) => {
                tracing::error!(%problem, "the last good config can't be read: waiting for the relay's");
                return;
            }
        };
        self.apply(&value, document, stopped_since_ms).await;
        self.parts.version.send_replace(version);
        // What was refused when it came may be allowed by now, and the other way round.
        let wanted = self.last_good.wanted();
        if let (Ok(document), 1..) = (Document::parse(&wanted), version) {
            let items = self.take(version, &wanted, document).await;
            for ConfigItem { path, reason } in &items {
                tracing::warn!(path, reason, "an item of the last config is refused");
            }
            drop(self.parts.statuses.send(ConfigStatus { version, state: ConfigState::Applied, items }).await);
        }
    }

    /// Puts in force what can be, and keeps it.
    async fn take(&mut self, version: u64, value: &Value, document: Document) -> Vec<ConfigItem> {
        let problems = self.apply(value, document, None).await;
        let refused = refused_names(value, &problems).iter().map(|name| raw_device(value, name)).collect();
        let devices = self.current.values().map(|(_, value)| value.clone()).collect();
        if self.last_good.set(version, devices, refused)
            && let Err(error) = self.keep(|kept| kept.save()).await
        {
            tracing::error!(%error, "the config in force can't be kept: a start without the relay polls the one before");
        }
        items(problems)
    }

    async fn on_config(&mut self, config: Config) {
        let status = match Document::parse(&config.document) {
            Err(problem) => rejected(config.version, vec![problem]),
            Ok(document) if document.devices.is_empty() && !document.problems.is_empty() => {
                rejected(config.version, document.problems)
            }
            Ok(document) => {
                let items = self.take(config.version, &config.document, document).await;
                self.parts.version.send_replace(config.version);
                ConfigStatus { version: config.version, state: ConfigState::Applied, items }
            }
        };
        let state = if status.state == ConfigState::Applied { "applied" } else { "rejected" };
        tracing::info!(
            version = status.version,
            state,
            refused = status.items.len(),
            devices = self.current.len(),
            "config"
        );
        drop(self.parts.statuses.send(status).await);
    }

    /// Puts the good devices in force, leaves the refused ones as they were, and says what is wrong with those.
    async fn apply(&mut self, value: &Value, document: Document, stopped_since_ms: Option<i64>) -> Vec<Problem> {
        let mut problems = document.problems;
        let mut wanted = BTreeMap::new();
        let mut upsert = Vec::new();
        for device in document.devices {
            let raw = raw_device(value, &device.name);
            if self.current.get(&device.name).is_some_and(|(known, _)| *known == device) {
                wanted.insert(device.name.clone(), (device, raw));
                continue;
            }
            match self.plan(&device) {
                Ok(planned) => {
                    upsert.push(planned);
                    wanted.insert(device.name.clone(), (device, raw));
                }
                Err(problem) => problems.push(problem),
            }
        }
        for name in refused_names(value, &problems) {
            if let Some(known) = self.current.get(&name)
                && !wanted.contains_key(&name)
            {
                wanted.insert(name, known.clone());
            }
        }
        let remove = self.current.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        self.current = wanted;
        drop(self.parts.orders.send(Order::Change { upsert, remove, stopped_since_ms }).await);
        problems
    }

    fn plan(&self, device: &Device) -> Result<Planned, Problem> {
        let path = format!("device.{}", device.name);
        let kind = collector::kind_of(device)?;
        let built = (kind.build)(device, &self.parts.context)?;
        let mut timetables = Vec::with_capacity(built.metrics.len());
        for metric in &built.metrics {
            let timetable = Timetable::parse(&metric.schedule, device.name.as_str()).map_err(|error| {
                let place =
                    if metric.name.is_empty() { path.clone() } else { format!("{path}.metric.{}", metric.name) };
                Problem { path: place, reason: error.to_string() }
            })?;
            timetables.push(timetable);
        }
        let expected = built.metrics.iter().map(|metric| self.last_good.expected(&device.name, &metric.name)).collect();
        let (again, context) = (device.clone(), self.parts.context.clone());
        let rebuild = Arc::new(move || (kind.build)(&again, &context).ok().map(|built| built.collector));
        Ok(Planned { device: device.clone(), built, timetables, expected, rebuild })
    }

    fn on_probe(&self, probe: ProbeRequest) {
        let found = self.current.iter().find(|(name, _)| name.as_str() == probe.device);
        let answer = match found {
            None => {
                let names: Vec<&str> = self.current.keys().map(DeviceName::as_str).take(50).collect();
                Err(format!("no device `{}` in the config in force; there is: {}", probe.device, names.join(", ")))
            }
            Some((_, (device, _))) => {
                self.plan(device).map(|planned| (planned.device, planned.built)).map_err(|problem| problem.to_string())
            }
        };
        drop(probe.answer.send(answer));
    }

    /// On another thread: a disk that does not answer must not hold up the polling.
    async fn keep(
        &mut self,
        write: impl FnOnce(&mut LastGood) -> std::io::Result<()> + Send + 'static,
    ) -> std::io::Result<()> {
        let mut kept = self.last_good.clone();
        let work = tokio::task::spawn_blocking(move || {
            let written = write(&mut kept);
            (kept, written)
        });
        let (kept, written) = work.await.map_err(std::io::Error::other)?;
        self.last_good = kept;
        written
    }

    async fn on_expected_time(&mut self) {
        let (answer, counts) = oneshot::channel();
        drop(self.parts.orders.send(Order::Expected(answer)).await);
        let Ok(counts) = counts.await else { return };
        if let Err(error) = self.keep(move |kept| kept.note_expected(counts)).await {
            tracing::warn!(%error, "what the metrics give can't be written down: a stop may be explained with fewer samples");
        }
    }
}

fn raw_device(value: &Value, name: &DeviceName) -> Value {
    let devices = value.get("device").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    devices
        .iter()
        .find(|device| device.get("name").and_then(Value::as_str) == Some(name.as_str()))
        .cloned()
        .unwrap_or_default()
}

/// Devices that stand in the document and are refused there.
fn refused_names(value: &Value, problems: &[Problem]) -> Vec<DeviceName> {
    let devices = value.get("device").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let names = devices.iter().filter_map(|device| device.get("name")?.as_str()?.parse::<DeviceName>().ok());
    names
        .filter(|name| {
            let path = format!("device.{name}");
            problems.iter().any(|problem| problem.path == path || problem.path.starts_with(&format!("{path}.")))
        })
        .collect()
}

fn rejected(version: u64, problems: Vec<Problem>) -> ConfigStatus {
    ConfigStatus { version, state: ConfigState::Rejected, items: items(problems) }
}

fn items(problems: Vec<Problem>) -> Vec<ConfigItem> {
    let cut = |text: String| text.chars().take(300).collect();
    problems
        .into_iter()
        .take(ITEMS_MAX)
        .map(|problem| ConfigItem { path: cut(problem.path), reason: cut(problem.reason) })
        .collect()
}
