//! `docker`: containers of this host, asked of Docker's or Podman's socket by GETs that are written here.
//!
//! What a container takes has cAdvisor's names and labels, with the container's own id for the cgroup's path; how it is
//! (`container_state_*`, `container_restartcount`) has docker_state_exporter's. Three metrics: `containers` is how each is,
//! `stats` is what those take that run, `up` tells how asking went, of each container as well. A container that goes while
//! it is asked is left out; one that hangs or answers nonsense costs itself.
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
    /// How long all of it may take; a third of it is for each answer of one container.
    limit: Duration,
}

/// One container, as far as it could be asked.
struct Told {
    container: Listed,
    inspected: Result<Inspected, Failure>,
    /// Nothing where it does not run.
    stats: Option<Result<Stats, Failure>>,
}

impl Told {
    fn failure(&self) -> Option<&Failure> {
        self.inspected.as_ref().err().or(self.stats.as_ref().and_then(|stats| stats.as_ref().err()))
    }
}

impl Docker {
    async fn ask(&self, watch: Stopwatch) -> Result<Vec<Told>, Failure> {
        self.gate.socket(&self.socket)?;
        let listing = self.get("/containers/json?all=1", LIST_BYTES_MAX);
        let listed: Option<Vec<Listed>> = probe::within(self.limit, listing).await?;
        let Some(mut listed) = listed else {
            return Err(Failure::new(Reason::BadAnswer, "HTTP 404: this is neither Docker nor Podman"));
        };
        if listed.iter().any(|container| !container.has_id()) {
            return Err(Failure::new(
                Reason::BadAnswer,
                "a container without an id: this is neither Docker nor Podman",
            ));
        }
        listed.retain(|container| self.patterns.take(container.name()));
        listed.sort_by(|one, other| one.id.cmp(&other.id));
        listed.dedup_by(|one, other| one.id == other.id);
        if listed.len() > CONTAINERS_MAX {
            let what = format!(
                "{} containers, more than {CONTAINERS_MAX}: name fewer in `containers`, or exclude some",
                listed.len()
            );
            return Err(Failure::new(Reason::BadAnswer, what));
        }
        let asking = futures_util::stream::iter(listed).map(|container| self.ask_one(container, watch));
        // Those that hang hold up no others than as many as are asked at once.
        let mut told: Vec<Told> = asking.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await;
        told.sort_by(|Told { container: one, .. }, Told { container: other, .. }| {
            (one.name(), &one.id).cmp(&(other.name(), &other.id))
        });
        Ok(told)
    }

    /// Nothing where the container has gone.
    async fn ask_one(&self, container: Listed, watch: Stopwatch) -> Option<Told> {
        let path = format!("/containers/{}/json", container.id);
        let inspected = self.get_soon::<Inspected>(&path, watch).await.transpose()?;
        let runs = inspected.as_ref().is_ok_and(Inspected::runs);
        let stats = if runs {
            // The engine would else wait a second or two for a second look.
            let path = format!("/containers/{}/stats?stream=false&one-shot=true", container.id);
            let stats = self.get_soon::<Stats>(&path, watch).await.transpose();
            stats.map(|stats| stats.and_then(Stats::checked))
        } else {
            None
        };
        Some(Told { container, inspected, stats })
    }

    /// What is said of one container, in its share of the time that is left.
    async fn get_soon<T: DeserializeOwned>(&self, path: &str, watch: Stopwatch) -> Result<Option<T>, Failure> {
        let left = watch.left(self.limit);
        if left.is_zero() {
            return Err(Failure::new(Reason::Timeout, "others took all the time: it was not asked"));
        }
        probe::within(left.min(self.limit / 3), self.get(path, ANSWER_BYTES_MAX)).await
    }

    /// A GET, each on a connection of its own; nothing where what is asked for is not there, or no longer runs.
    async fn get<T: DeserializeOwned>(&self, path: &str, bytes_max: usize) -> Result<Option<T>, Failure> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| failure_of_connect(&self.socket, &error))?;
        let mut answer = Answer::local(stream, "localhost", path).await?;
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
        let outcome = self.ask(watch).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => {
                let both = [CONTAINERS, STATS].into_iter().filter(|metric| due.contains(metric));
                both.for_each(|metric| readings.missing(metric, failure.clone()));
            }
            Ok(told) => {
                if due.contains(&UP) {
                    add_failures(&told, readings);
                }
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

/// Which of them could not be asked, wholly or in part.
fn add_failures(told: &[Told], readings: &mut Readings) {
    for one in told {
        let failure = one.failure();
        if let Some(failure) = failure {
            tracing::debug!(container = one.container.name(), %failure, "a container was not told");
        }
        let family = Family::gauge("container_scrape_error", "");
        readings.sample(UP, family, &one.container.labels(), flag(failure.is_some()));
    }
}

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
            Some(Err(failure)) => failed = failed.or(Some(failure)),
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
            format!(
                "no permission for {shown}: `systemctl edit satellite`, then [Service] SupplementaryGroups=docker, or whatever group the socket has"
            ),
        ),
        Io::NotFound => Failure::new(
            Reason::Unreachable,
            format!("no {shown}: is Docker installed and running? Podman has another `socket`"),
        ),
        Io::ConnectionRefused => Failure::new(Reason::Refused, format!("nothing listens at {shown}")),
        _ => probe::failure_of_io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::sync::Mutex;

    use super::super::stage::{Polled, Stage, problem, read_head};
    use super::*;

    /// An engine behind a socket, and the paths that it was asked for.
    struct Engine {
        folder: tempfile::TempDir,
        asked: Arc<Mutex<Vec<String>>>,
    }

    /// An engine that answers the GET of a path with a status and a body, and hangs up where there is none.
    fn engine(answer: impl Fn(&str) -> Option<(u16, String)> + Send + Sync + 'static) -> Engine {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, seen, answer) = (stream.unwrap(), Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let head = read_head(&mut stream).unwrap_or_default();
                    let path = head.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
                    assert!(head.contains("host: localhost\r\n"), "{head}");
                    seen.lock().unwrap().push(path.clone());
                    if let Some((status, body)) = answer(&path) {
                        let head = format!("HTTP/1.1 {status} It\r\nContent-Length: {}\r\n\r\n", body.len());
                        stream.write_all((head + &body).as_bytes()).ok();
                    }
                });
            }
        });
        Engine { folder, asked }
    }

    impl Engine {
        fn stage(&self, timeout: &str, more: &str) -> Stage {
            let socket = self.folder.path().join("sock");
            let socket = socket.display();
            let device = format!("collector = \"docker\"\nsocket = \"{socket}\"\ntimeout = \"{timeout}\"\n{more}");
            Stage::with_policy(&device, &format!("sockets = [\"{socket}\"]")).unwrap()
        }

        async fn poll(&self, more: &str) -> Polled {
            self.stage("1s", more).poll_all().await
        }
    }

    fn id(n: usize) -> String {
        format!("{n:064x}")
    }

    fn listed(names: &[&str]) -> String {
        let one = |(n, name): (usize, &&str)| format!(r#"{{"Id": "{}", "Names": ["/{name}"], "Image": "img"}}"#, id(n));
        format!("[{}]", names.iter().enumerate().map(one).collect::<Vec<_>>().join(","))
    }

    fn inspected(status: &str, more: &str) -> String {
        format!(
            r#"{{"State": {{"Status": "{status}", "OOMKilled": false, "StartedAt": "2026-11-22T15:00:00.5Z",
                "FinishedAt": "0001-01-01T00:00:00Z"{more}}}, "RestartCount": 3, "HostConfig": {{"Memory": 1048576}},
                "Config": {{"Env": ["PASSWORD=secret"]}}}}"#
        )
    }

    /// What Docker tells where cgroups are of the second version, shortened.
    const SECOND: &str = r#"{"read": "2026-11-22T15:00:02.25Z", "preread": "0001-01-01T00:00:00Z",
        "pids_stats": {"current": 7, "limit": 18446744073709551615},
        "blkio_stats": {"io_service_bytes_recursive": [
            {"major": 259, "minor": 0, "op": "read", "value": 4096}, {"major": 259, "minor": 0, "op": "write", "value": 512},
            {"major": 8, "minor": 0, "op": "read", "value": 1}], "io_serviced_recursive": null},
        "cpu_stats": {"cpu_usage": {"total_usage": 1500000000, "usage_in_kernelmode": 500000000,
            "usage_in_usermode": 1000000000}, "system_cpu_usage": 1, "online_cpus": 2,
            "throttling_data": {"periods": 10, "throttled_periods": 2, "throttled_time": 30000000}},
        "memory_stats": {"usage": 5000, "stats": {"anon": 1000, "file": 3000, "inactive_file": 2000}, "limit": 9},
        "networks": {"eth0": {"rx_bytes": 10, "rx_packets": 1, "rx_errors": 0, "rx_dropped": 0, "tx_bytes": 20,
            "tx_packets": 2, "tx_errors": 0, "tx_dropped": 0}}}"#;
    /// The same where they are of the first.
    const FIRST: &str = r#"{"read": "2026-11-22T15:00:02Z", "memory_stats": {"usage": 5000, "max_usage": 6000, "failcnt": 1,
        "stats": {"inactive_file": 1, "total_inactive_file": 2000, "total_rss": 900, "total_cache": 3000, "rss": 1,
            "cache": 1, "total_swap": 5}},
        "blkio_stats": {"io_service_bytes_recursive": [{"major": 8, "minor": 0, "op": "Read", "value": 3},
            {"major": 8, "minor": 0, "op": "Write", "value": 4}, {"major": 8, "minor": 0, "op": "Total", "value": 7}],
            "io_serviced_recursive": [{"major": 8, "minor": 0, "op": "Read", "value": 2}]}}"#;

    /// One running container called `web`.
    fn running(stats: &'static str) -> Engine {
        engine(move |path| {
            let body = match path {
                "/containers/json?all=1" => listed(&["web"]),
                path if path.ends_with("/json") => inspected("running", r#", "Health": {"Status": "healthy"}"#),
                _ => stats.to_owned(),
            };
            Some((200, body))
        })
    }

    #[tokio::test]
    async fn what_a_container_takes_has_cadvisors_names() {
        let engine = running(SECOND);
        let polled = engine.poll("").await;
        let labels = format!("id={},image=img,name=web", id(0));
        let check = |name: &str, expected: &[(&str, f64)]| {
            let given = polled.labelled(name);
            let full: Vec<_> = expected.iter().map(|(text, value)| (text.replace("{}", &labels), *value)).collect();
            assert_eq!(given, full, "{name}");
        };
        check("container_cpu_usage_seconds_total", &[("cpu=total,{}", 1.5)]);
        check("container_cpu_user_seconds_total", &[("{}", 1.0)]);
        check("container_cpu_cfs_throttled_seconds_total", &[("{}", 0.03)]);
        check("container_memory_usage_bytes", &[("{}", 5000.0)]);
        check("container_memory_working_set_bytes", &[("{}", 3000.0)]);
        check("container_memory_rss", &[("{}", 1000.0)]);
        check("container_memory_cache", &[("{}", 3000.0)]);
        check("container_fs_reads_bytes_total", &[("device=8:0,{}", 1.0), ("device=259:0,{}", 4096.0)]);
        check("container_fs_reads_total", &[]);
        check("container_threads", &[("{}", 7.0)]);
        check("container_threads_max", &[]);
        check("container_last_seen", &[("{}", 1_795_359_602.25)]);
        check("container_start_time_seconds", &[("{}", 1_795_359_600.5)]);
        check("container_spec_memory_limit_bytes", &[("{}", 1_048_576.0)]);
        check("container_restartcount", &[("{}", 3.0)]);
        check("container_state_finishedat", &[]);
        let network = format!("id={},image=img,interface=eth0,name=web", id(0));
        assert_eq!(polled.labelled("container_network_transmit_bytes_total"), [(network, 20.0)]);
        assert_eq!(polled.value("probe_success"), Some(1.0));
        let told = format!("{:?}", polled.samples);
        assert!(!told.contains("secret"));
        let paths = engine.asked.lock().unwrap().clone();
        let one = id(0);
        let stats = format!("/containers/{one}/stats?stream=false&one-shot=true");
        assert_eq!(paths, ["/containers/json?all=1".to_owned(), format!("/containers/{one}/json"), stats]);
    }

    #[tokio::test]
    async fn memory_is_counted_alike_with_cgroups_of_the_first_version() {
        let polled = running(FIRST).poll("").await;
        let values = ["working_set_bytes", "rss", "cache", "max_usage_bytes", "swap", "failcnt"]
            .map(|name| polled.value(&format!("container_memory_{name}")).unwrap());
        assert_eq!(values, [3000.0, 900.0, 3000.0, 6000.0, 5.0, 1.0]);
        assert_eq!(polled.value("container_fs_writes_bytes_total"), Some(4.0));
        assert_eq!(polled.value("container_fs_reads_total"), Some(2.0));
    }

    #[tokio::test]
    async fn each_state_and_health_is_told_and_what_does_not_run_takes_nothing() {
        let engine = engine(|path| {
            let (a, b) = (id(0), id(1));
            Some((
                200,
                match path {
                    "/containers/json?all=1" => listed(&["db", "web"]),
                    path if path.contains(&a) => inspected("exited", ""),
                    path if path.contains(&b) => inspected("stopping", r#", "Health": {"Status": ""}"#),
                    _ => return None,
                },
            ))
        });
        let polled = engine.poll("").await;
        let set = |name: &str| {
            let set = polled.labelled(name).into_iter().filter(|(_, value)| *value > 0.5);
            set.map(|(labels, _)| labels.split_once("name=").unwrap().1.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(set("container_state_status"), ["db,status=exited", "web,status=stopping"]);
        assert_eq!(set("container_state_health_status"), ["db,status=none", "web,status=none"]);
        assert_eq!(polled.labelled("container_state_status").len(), 7 + 8);
        assert!(polled.missing.is_empty() && polled.value("container_last_seen").is_none());
    }

    #[tokio::test]
    async fn a_container_that_goes_or_answers_nonsense_spoils_no_other() {
        let engine = engine(|path| {
            let body = match path {
                "/containers/json?all=1" => listed(&["gone", "going", "odd", "well", "ended", "strange"]),
                path if path.contains(&id(0)) => return Some((404, "{}".into())),
                path if path.contains(&id(2)) => "[1, 2]".into(),
                path if path.ends_with("/json") => inspected("running", ""),
                path if path.contains(&id(1)) => return Some((409, "{}".into())),
                path if path.contains(&id(4)) => r#"{"read": "0001-01-01T00:00:00Z", "memory_stats": {}}"#.into(),
                path if path.contains(&id(5)) => r#"{"read": "yesterday", "memory_stats": {}}"#.into(),
                _ => SECOND.into(),
            };
            Some((200, body))
        });
        let polled = engine.poll("").await;
        let names = |name: &str| {
            let of = |(labels, _): (String, f64)| labels.rsplit_once("name=").unwrap().1.to_owned();
            polled.labelled(name).into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(names("container_restartcount"), ["ended", "going", "strange", "well"]);
        assert_eq!(names("container_last_seen"), ["well"]);
        assert!(polled.missing.is_empty(), "{:?}", polled.missing);
        assert_eq!(failed(&polled), ["odd", "strange"]);
    }

    #[tokio::test]
    async fn a_container_that_hangs_costs_itself() {
        let engine = engine(|path| {
            let body = match path {
                "/containers/json?all=1" => listed(&["a", "b", "c", "d", "e", "well"]),
                path if path.contains(&id(5)) && path.ends_with("/json") => inspected("running", ""),
                path if path.contains(&id(5)) => SECOND.into(),
                path if path.contains(&id(4)) && path.ends_with("/json") => inspected("running", ""),
                _ => {
                    std::thread::park();
                    return None;
                }
            };
            Some((200, body))
        });
        let polled = engine.stage("3s", "").poll_all().await;
        assert_eq!(failed(&polled), ["a", "b", "c", "d", "e"]);
        assert_eq!(polled.labelled("container_restartcount").len(), 2, "what was known of `e` before it hung");
        assert!(polled.labelled("container_last_seen")[0].0.ends_with("name=well"));
        assert_eq!((polled.missing.len(), polled.value("probe_success")), (0, Some(1.0)));
    }

    /// Those that could not be asked.
    fn failed(polled: &Polled) -> Vec<String> {
        let failed = polled.labelled("container_scrape_error").into_iter().filter(|(_, value)| *value > 0.5);
        failed.map(|(labels, _)| labels.rsplit_once("name=").unwrap().1.to_owned()).collect()
    }

    #[tokio::test]
    async fn where_no_container_can_be_measured_the_reason_is_told() {
        let engine = engine(|path| match path {
            "/containers/json?all=1" => Some((200, listed(&["web"]))),
            path if path.ends_with("/json") => Some((200, inspected("running", ""))),
            _ => Some((500, "{}".into())),
        });
        let polled = engine.poll("").await;
        let (metric, failure) = &polled.missing[0];
        assert_eq!((polled.missing.len(), metric.as_str(), failure.reason), (1, "stats", Reason::Refused));
        assert!(failure.detail.contains("HTTP 500"), "{failure}");
        assert_eq!(polled.value("container_restartcount"), Some(3.0));
    }

    #[tokio::test]
    async fn names_choose_containers_and_too_many_are_told() {
        let names: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let list = listed(&names);
        let engine = engine(move |path| match path {
            "/containers/json?all=1" => Some((200, list.clone())),
            _ => Some((200, inspected("exited", ""))),
        });
        let polled = engine.poll("").await;
        assert!(polled.missing[0].1.detail.contains("300 containers, more than 200"), "{:?}", polled.missing);
        assert_eq!(polled.value("probe_success"), Some(0.0));
        let polled = engine.poll("containers = [\"c1*\"]\nexclude = [\"c10\", \"c1??\"]").await;
        assert_eq!(polled.labelled("container_restartcount").len(), 10, "c1 and c11 to c19");
    }

    #[tokio::test]
    async fn an_engine_that_is_none_is_a_gap_with_the_reason() {
        let check = async |answer: Option<(u16, String)>, reason: Reason, said: &str| {
            let polled = engine(move |_| answer.clone()).poll("").await;
            let (metric, failure) = &polled.missing[0];
            assert_eq!((metric.as_str(), failure.reason), ("containers", reason), "{failure}");
            assert!(failure.detail.contains(said), "{failure}");
            assert_eq!((polled.missing.len(), polled.value("probe_success")), (2, Some(0.0)));
        };
        check(None, Reason::BadAnswer, "not an HTTP answer").await;
        check(Some((404, "{}".into())), Reason::BadAnswer, "neither Docker nor Podman").await;
        check(Some((403, "{}".into())), Reason::Refused, "HTTP 403").await;
        check(Some((200, "{}".into())), Reason::BadAnswer, "not what Docker").await;
        check(Some((200, "[".repeat(10_000))), Reason::BadAnswer, "not what Docker").await;
        check(Some((200, r#"[{"Id": "../../x"}]"#.into())), Reason::BadAnswer, "without an id").await;
        check(Some((200, " ".repeat(3 << 20))), Reason::BadAnswer, "more than 2097152 bytes").await;
    }

    #[tokio::test]
    async fn a_silent_engine_is_a_timeout() {
        let engine = engine(|_| {
            std::thread::park();
            None
        });
        let polled = engine.poll("").await;
        assert_eq!(polled.missing[0].1.reason, Reason::Timeout);
        assert_eq!(polled.value("probe_success"), Some(0.0));
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_or_not_in_the_policy_is_told_with_what_to_do() {
        let engine = engine(|_| None);
        let socket = engine.folder.path().join("none");
        let device = format!("collector = \"docker\"\nsocket = \"{}\"", socket.display());
        let polled = Stage::with_policy(&device, "").unwrap().poll_all().await;
        let failure = polled.failure.unwrap();
        assert!(failure.reason == Reason::Policy && failure.detail.contains("to `sockets`"), "{failure}");
        let policy = format!("sockets = [\"{}\"]", socket.display());
        let polled = Stage::with_policy(&device, &policy).unwrap().poll_all().await;
        assert!(polled.missing[0].1.detail.contains("is Docker installed"), "{}", polled.missing[0].1);
        drop(UnixListener::bind(&socket).unwrap());
        let polled = Stage::with_policy(&device, &policy).unwrap().poll_all().await;
        assert!(polled.missing[0].1.detail.contains("nothing listens"), "{}", polled.missing[0].1);
        let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failure = failure_of_connect(Path::new("/run/docker.sock"), &denied);
        assert!(failure.detail.contains("SupplementaryGroups=docker"), "{failure}");
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"docker\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        check("socket = \"docker.sock\"", "device.it.socket: the path of a socket");
        check("socket = \"tcp://1.2.3.4:2375\"", "device.it.socket");
        check("containers = []", "device.it.containers: name at least one");
        check("exclude = [\"a b\"]", "device.it.exclude: `a b`");
        check("host = \"x\"", "device.it.host");
        check("[[device.metric]]\nname = \"x\"", "device.it.metric");
    }
}
