//! The Unix socket that `satellite status`, `gaps` and `probe` ask: one JSON line in, one JSON document out.
//!
//! The directory's mode says who may ask. Deliberately absent: anything that changes what the satellite does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::gap::Gap;
use satellite_shared::heartbeat::Beat;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffer::{BufferState, Health};
use crate::collector::once;
use crate::config::ProbeRequest;
use crate::credential::keystore::Identity;
use crate::recorder::RecorderState;
use crate::scheduler::{DeviceState, Order};
use crate::uplink::LinkState;

/// The socket's name in the run directory.
pub const SOCKET: &str = "satellite.sock";
/// A request is one short line.
const REQUEST_BYTES_MAX: u64 = 4 << 10;
/// An answer is bounded too: a scrape of 50,000 samples fits.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Who asks says so soon, and reads soon.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// A probe may take as long as the device's own timeout and then some.
const ANSWER_TIME: Duration = Duration::from_secs(90);
/// Requests answered at once.
const REQUESTS_MAX: usize = 8;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How everything is.
    Status,
    /// The ledger's last gaps.
    Gaps,
    /// One poll of one device.
    Probe {
        /// Which.
        device: String,
    },
}

/// The task.
pub struct Local {
    parts: Arc<Parts>,
    listener: UnixListener,
    path: PathBuf,
    beat: Beat,
}

/// Whom the socket asks in turn.
pub struct Parts {
    /// The scheduler.
    pub orders: mpsc::Sender<Order>,
    /// The recorder.
    pub gaps: mpsc::Sender<oneshot::Sender<Vec<Gap>>>,
    /// The config task.
    pub probes: mpsc::Sender<ProbeRequest>,
    /// The link.
    pub link: watch::Receiver<LinkState>,
    /// The buffer.
    pub buffer: watch::Receiver<BufferState>,
    /// The recorder's counters.
    pub recorder: watch::Receiver<RecorderState>,
    /// The config version in force.
    pub config_version: watch::Receiver<u64>,
    /// Who this satellite is.
    pub identity: watch::Receiver<Option<Identity>>,
    /// The buffer's bounds, for "can stay offline until".
    pub bounds: crate::settings::Buffer,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// When the program started, both clocks.
    pub started: satellite_shared::clock::Now,
}

impl Local {
    /// Listens in this directory; a socket left by an earlier run is replaced.
    ///
    /// # Errors
    /// What the system said.
    pub fn bind(run_dir: &std::path::Path, parts: Parts) -> std::io::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::create_dir_all(run_dir)?;
        let path = run_dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))?;
        Ok(Self { parts: Arc::new(parts), listener, path, beat: Beat::default() })
    }

    /// Counts its turns here.
    #[must_use]
    pub fn beating(self, beat: Beat) -> Self {
        Self { beat, ..self }
    }

    /// Answers until told to stop.
    pub async fn run(self, shutdown: CancellationToken, tracker: TaskTracker) {
        let turns = Arc::new(tokio::sync::Semaphore::new(REQUESTS_MAX));
        loop {
            self.beat.beat();
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(self.beat.every()) => {}
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    };
                    let Ok(turn) = turns.clone().try_acquire_owned() else { continue };
                    let (parts, shutdown) = (self.parts.clone(), shutdown.clone());
                    tracker.spawn(async move {
                        tokio::select! {
                            () = shutdown.cancelled() => {}
                            () = serve(stream, &parts) => {}
                        }
                        drop(turn);
                    });
                }
            }
        }
        drop(std::fs::remove_file(&self.path));
    }
}

async fn serve(stream: UnixStream, parts: &Parts) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut reader).take(REQUEST_BYTES_MAX);
    if !matches!(tokio::time::timeout(REQUEST_TIME, limited.read_line(&mut line)).await, Ok(Ok(1..))) {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Err(error) => json!({ "error": format!("not a request: {error}") }),
        Ok(request) => match tokio::time::timeout(ANSWER_TIME, parts.answer(request)).await {
            Ok(answer) => answer,
            Err(_) => json!({ "error": "no answer in time" }),
        },
    };
    let mut text = answer.to_string();
    text.push('\n');
    let write = async {
        reader.get_mut().write_all(text.as_bytes()).await?;
        reader.get_mut().shutdown().await
    };
    drop(tokio::time::timeout(REQUEST_TIME, write).await);
}

impl Parts {
    async fn answer(&self, request: Request) -> Value {
        match request {
            Request::Status => self.status().await,
            Request::Gaps => {
                let (answer, gaps) = oneshot::channel();
                drop(self.gaps.send(answer).await);
                match gaps.await {
                    Ok(gaps) => json!({ "gaps": gaps }),
                    Err(_) => json!({ "error": "the satellite is stopping" }),
                }
            }
            Request::Probe { device } => self.probe(device).await,
        }
    }

    async fn status(&self) -> Value {
        let (answer, devices) = oneshot::channel();
        drop(self.orders.send(Order::Devices(answer)).await);
        let devices: Vec<DeviceState> = devices.await.unwrap_or_default();
        let now = self.clock.now();
        let up_ms = now.mono_ms.saturating_sub(self.started.mono_ms).max(1);
        let buffer = self.buffer.borrow().clone();
        let recorder = self.recorder.borrow().clone();
        let identity = self.identity.borrow().clone();
        let (health, why) = match &buffer.health {
            Health::Healthy => ("healthy", None),
            Health::Degraded { why, .. } => ("degraded", Some(why)),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "clock_ms": now.wall_ms,
            "up_seconds": up_ms / 1000,
            "lease": identity.as_ref().map(|identity| json!({
                "satellite": identity.satellite, "name": identity.name, "relay": identity.relay,
                "certificate_generation": identity.generation,
                "certificate_ends_ms": identity.not_after_ms,
                "certificate_renews_ms": identity.renew_after_ms,
            })),
            "link": *self.link.borrow(),
            "config_version": *self.config_version.borrow(),
            "devices": devices,
            "buffer": {
                "health": health, "why": why,
                "epoch": buffer.epoch, "last_seq": buffer.last_seq,
                "blocks": buffer.blocks, "records": buffer.records, "bytes": buffer.payload_bytes, "bytes_max": self.bounds.bytes_max,
                "oldest_ms": buffer.oldest_ms, "waiting": buffer.waiting, "evicted": buffer.evicted_total,
                "mb_written_per_day": megabytes_per_day(buffer.bytes_written, up_ms),
            },
            "due": recorder.due,
            "stored": recorder.samples,
            "explained": recorder.explained,
            "recorder": recorder,
            "offline_until_ms": offline_until_ms(now.wall_ms, up_ms, &buffer, &self.bounds),
        })
    }

    async fn probe(&self, device: String) -> Value {
        let (answer, found) = oneshot::channel();
        drop(self.probes.send(ProbeRequest { device, answer }).await);
        let (device, mut built) = match found.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return json!({ "error": error }),
            Err(_) => return json!({ "error": "the satellite is stopping" }),
        };
        once::poll(&device, &mut built).await.document(&device)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn megabytes_per_day(bytes: u64, up_ms: u64) -> f64 {
    let per_day = bytes as f64 / 1e6 * 86_400_000.0 / up_ms as f64;
    (per_day * 10.0).round() / 10.0
}

/// When the buffer would be full, or its oldest block too old, were the relay away from now on.
fn offline_until_ms(now_ms: i64, up_ms: u64, buffer: &BufferState, bounds: &crate::settings::Buffer) -> i64 {
    let oldest_ms = buffer.oldest_ms.unwrap_or(now_ms);
    let by_age_ms = oldest_ms.saturating_add(i64::try_from(bounds.age_max.as_millis()).unwrap_or(i64::MAX));
    let free = bounds.bytes_max.saturating_sub(buffer.payload_bytes);
    let room_ms = u128::from(free) * u128::from(up_ms) / u128::from(buffer.bytes_written.max(1));
    let by_room_ms = now_ms.saturating_add(i64::try_from(room_ms).unwrap_or(i64::MAX));
    by_age_ms.min(by_room_ms)
}

/// Asks the running satellite.
///
/// # Errors
/// Says that none runs, or what was in the way.
pub async fn ask(run_dir: &std::path::Path, request: &Request) -> std::io::Result<Value> {
    let mut stream = UnixStream::connect(run_dir.join(SOCKET)).await?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).await?;
    let mut text = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut text).await?;
    Ok(serde_json::from_str(&text)?)
}
