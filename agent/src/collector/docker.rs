//! `docker`: containers of this host, asked of Docker's or Podman's socket by GETs that are written here.
//!
//! What a container takes has cAdvisor's names and labels, with the container's own id for the cgroup's path; how it is
//! (`container_state_*`, `container_restartcount`) has docker_state_exporter's. Three metrics: `containers` is how each is,
//! `stats` is what those take that run, `up` tells how asking went. A container that goes while it is asked is left out.
//! Deliberately absent: every request that changes something, and what a container is told by its environment: it comes
//! with the answer and is never looked at.

mod answer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use self::answer::{Inspected, Listed, Stats};
use super::http::client::Answer;
use super::pattern::Patterns;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::Gate;

/// `collector = "docker"`.
pub const KIND: CollectorKind = CollectorKind { name: "docker", build };

/// Where Docker listens.
const SOCKET: &str = "/run/docker.sock";
/// Containers that are told, of those that there are.
const CONTAINERS_MAX: usize = 200;
/// The list of all containers; one takes some two thousand bytes.
const LIST_BYTES_MAX: usize = 2 << 20;
/// What is said of one container.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Containers that are asked at the same time.
const AT_ONCE: usize = 4;
/// Index of the metric that is how containers are.
const CONTAINERS: usize = 0;
/// Index of the metric that is what they take.
const STATS: usize = 1;
/// Index of the metric that tells how it went.
const UP: usize = 2;
/// As docker_state_exporter lists them.
const STATES: [&str; 7] = ["paused", "restarting", "running", "removing", "dead", "created", "exited"];
const HEALTH: [&str; 4] = ["none", "starting", "healthy", "unhealthy"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default = "docker_socket")]
    socket: String,
    #[serde(default = "all_names")]
    containers: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

fn docker_socket() -> String {
    SOCKET.into()
}

fn all_names() -> Vec<String> {
    vec!["*".into()]
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { socket, containers, exclude } = options::read(&device.options, &path)?;
    if !socket.starts_with('/') || socket.len() > 100 {
        let reason = "the path of a socket, such as \"/run/docker.sock\" or \"/run/podman/podman.sock\"";
        return Err(options::problem(&format!("{path}.socket"), reason));
    }
    let patterns = Patterns::parse(&path, ("containers", containers), ("exclude", exclude))?;
    let named = |name: &str| whole(device).into_iter().map(|metric| Metric { name: name.into(), ..metric }).collect();
    let metrics: [Vec<Metric>; 3] = ["containers", "stats", "up"].map(named);
    let gate = Arc::clone(&context.gate);
    let docker = Docker { gate, socket: socket.into(), patterns, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(docker), metrics: metrics.concat() })
}

struct Docker {
    gate: Arc<Gate>,
    socket: PathBuf,
    patterns: Patterns,
    limit: Duration,
}

/// One container, as far as it could be asked.
struct Told {
    container: Listed,
    inspected: Result<Inspected, Failure>,
    /// Nothing where it does not run.
    stats: Option<Result<Stats, Failure>>,
}

impl Docker {
    async fn ask(&self) -> Result<Vec<Told>, Failure> {
        self.gate.socket(&self.socket)?;
        let listed: Option<Vec<Listed>> = self.get("/containers/json?all=1", LIST_BYTES_MAX).await?;
        let Some(mut listed) = listed else {
            return Err(Failure::new(Reason::BadAnswer, "HTTP 404: this is neither Docker nor Podman"));
        };
        if listed.iter().any(|container| !container.has_id()) {
            return Err(Failure::new(Reason::BadAnswer, "a container without an id: this is neither Docker nor Podman"));
        }
        listed.retain(|container| self.patterns.take(container.name()));
        listed.sort_by(|one, other| (one.name(), &one.id).cmp(&(other.name(), &other.id)));
        listed.dedup_by(|one, other| one.id == other.id);
        if listed.len() > CONTAINERS_MAX {
            let what = format!(
                "{} containers, more than {CONTAINERS_MAX}: name fewer in `containers`, or exclude some",
                listed.len()
            );
            return Err(Failure::new(Reason::BadAnswer, what));
        }
        let asking = futures_util::stream::iter(listed).map(|container| self.ask_one(container));
        Ok(asking.buffered(AT_ONCE).filter_map(std::future::ready).collect().await)
    }

    /// Nothing where the container has gone.
    async fn ask_one(&self, container: Listed) -> Option<Told> {
        let path = format!("/containers/{}/json", container.id);
        let inspected = self.get::<Inspected>(&path, ANSWER_BYTES_MAX).await.transpose()?;
        let runs = inspected.as_ref().is_ok_and(Inspected::runs);
        let stats = if runs {
            // The engine would else wait a second or two for a second look.
            let path = format!("/containers/{}/stats?stream=false&one-shot=true", container.id);
            self.get::<Stats>(&path, ANSWER_BYTES_MAX).await.transpose()
        } else {
            None
        };
        Some(Told { container, inspected, stats })
    }

    /// A GET, each on a connection of its own; nothing where what is asked for is not there, or no longer runs.
    async fn get<T: DeserializeOwned>(&self, path: &str, bytes_max: usize) -> Result<Option<T>, Failure> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| failure_of_connect(&self.socket, &error))?;
        let mut answer = Answer::local(stream, path).await?;
        if matches!(answer.status(), 404 | 409) {
            return Ok(None);
        }
        answer.check_status()?;
        answer.check_encoding()?;
        let body = answer.body(bytes_max).await?;
        let read = serde_json::from_slice(&body);
        let read = read.map_err(|error| format!("not what Docker or Podman answers: {error}"));
        read.map(Some).map_err(|detail| Failure::new(Reason::BadAnswer, detail))
    }

    async fn poll_all(&self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let outcome = probe::within(self.limit, self.ask()).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => {
                let both = [CONTAINERS, STATS].into_iter().filter(|metric| due.contains(metric));
                both.for_each(|metric| readings.missing(metric, failure.clone()));
            }
            Ok(told) => {
                if due.contains(&CONTAINERS) {
                    let inspected = told.iter().map(|told| (&told.container, Some(&told.inspected)));
                    add(CONTAINERS, inspected, add_state, readings);
                }
                if due.contains(&STATS) {
                    let stats = told.iter().map(|told| (&told.container, told.stats.as_ref()));
                    add(STATS, stats, answer::add_stats, readings);
                }
            }
        }
        if due.contains(&UP) {
            probe::report(readings, UP, success, seconds);
        }
        Ok(())
    }
}

impl Collector for Docker {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

/// Labels of everything that is told of a container.
type Labels<'a> = [(&'static str, &'a str); 3];

/// Adds what is known of each. One that could not be asked spoils nothing; a metric of which nothing is known is missing.
fn add<'a, T: 'a>(
    metric: usize,
    told: impl Iterator<Item = (&'a Listed, Option<&'a Result<T, Failure>>)>,
    add_one: impl Fn(&T, Labels<'_>, &mut Readings),
    readings: &mut Readings,
) {
    let mut failed = None;
    let mut any = false;
    for (container, told) in told {
        match told {
            None => {}
            Some(Ok(value)) => {
                any = true;
                add_one(value, container.labels(), readings);
            }
            Some(Err(failure)) => {
                tracing::debug!(container = container.name(), %failure, "a container was not told");
                failed = failed.or(Some(failure));
            }
        }
    }
    if let Some(failure) = failed.filter(|_| !any) {
        readings.missing(metric, failure.clone());
    }
}

fn add_state(inspected: &Inspected, labels: Labels<'_>, readings: &mut Readings) {
    let mut add = |name, unit, value| readings.sample(CONTAINERS, Family::gauge(name, unit), &labels, value);
    add("container_restartcount", "", inspected.restarts());
    add("container_state_oomkilled", "", flag(inspected.was_killed_for_memory()));
    add("container_spec_memory_limit_bytes", "bytes", inspected.memory_limit_bytes());
    if let Some(seconds) = inspected.started() {
        add("container_start_time_seconds", "seconds", seconds);
    }
    if let Some(seconds) = inspected.finished() {
        add("container_state_finishedat", "seconds", seconds);
    }
    for (name, words, is) in [
        ("container_state_status", &STATES[..], inspected.status()),
        ("container_state_health_status", &HEALTH[..], inspected.health()),
    ] {
        // A word that is none of them is told as well.
        let other = (!words.contains(&is)).then_some(is);
        for word in words.iter().copied().chain(other) {
            let [id, image, name_of] = labels;
            let labels = [id, image, name_of, ("status", word)];
            readings.sample(CONTAINERS, Family::gauge(name, ""), &labels, flag(word == is));
        }
    }
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

fn failure_of_connect(socket: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind as Io;
    let shown = socket.display();
    #[expect(clippy::wildcard_enum_match_arm, reason = "what else may be is said by the operating system")]
    match error.kind() {
        Io::PermissionDenied => Failure::new(
            Reason::Refused,
            format!("no permission for {shown}: `systemctl edit satellite`, then [Service] SupplementaryGroups=docker, or whatever group the socket has"),
        ),
        Io::NotFound => {
            Failure::new(Reason::Unreachable, format!("no {shown}: is Docker installed and running? Podman has another `socket`"))
        }
        Io::ConnectionRefused => Failure::new(Reason::Refused, format!("nothing listens at {shown}")),
        _ => probe::failure_of_io(error),
    }
}
