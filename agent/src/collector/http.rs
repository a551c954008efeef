//! `http`: asks a device by HTTP, reads numbers out of its JSON, and tells how the request went.
//!
//! Metrics that are due together are one request. How it went (`probe_success` and its kin, named as blackbox_exporter
//! names them) is a metric of its own called `probe`, on the device's schedule; a device that lists no metrics is that
//! alone. A device that fails is an answer of the probe, and a gap with the exact reason for each number.
//!
//! A device whose kind is known names a [`profile`] instead of metrics: its requests and numbers are this program's.

pub(crate) mod client;
mod connection;
pub(crate) mod credentials;
pub mod path;
mod profile;
pub(crate) mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use self::client::{Answer, Client, Question};
use self::credentials::{Auth, Credentials};
use self::path::Path;
use self::target::Target;
use super::number::{Number, PROBE};
use super::probe::{self, Stopwatch};
use super::trust::Trust;
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Method};
use crate::secrets::SecretName;

/// `collector = "http"`.
pub const KIND: CollectorKind = CollectorKind { name: "http", build };

/// A device's answer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// An answer that is read at once; it takes a few milliseconds at most.
const SMALL_BYTES_MAX: usize = 32 << 10;
/// Larger answers that are read at the same time.
const LARGE_AT_ONCE_MAX: usize = 1;
/// What an answer may take in memory once it is read: a small text can stand for a hundred times its size.
const DOCUMENT_BYTES_MAX: usize = 6 << 20;
const ACCEPT: &str = "application/json, */*;q=0.5";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    url: String,
    #[serde(default)]
    method: Method,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    secret_headers: BTreeMap<String, SecretName>,
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default = "verify")]
    tls: String,
    #[serde(default)]
    profile: Option<String>,
    #[serde(default)]
    entities: Option<Vec<String>>,
}

pub(super) fn verify() -> String {
    "verify".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOptions {
    path: String,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let options: Options = options::read(&device.options, &path)?;
    if options.method == Method::Post {
        let reason = "a configuration only reads: GET or HEAD; what is read by POST is for profiles to ask";
        return Err(options::problem(&format!("{path}.method"), reason));
    }
    if let Some(name) = options.profile.clone() {
        return profile::asking::build(&name, options, device, context);
    }
    if options.entities.is_some() {
        return Err(options::problem(&format!("{path}.entities"), "only a profile has entities: name it in `profile`"));
    }
    let ask = Ask {
        url: &options.url,
        headers: &options.headers,
        secret_headers: options.secret_headers,
        auth: options.auth,
        tls: &options.tls,
    };
    let client = ask.written(&path, context)?;
    let policy = context.gate.policy();
    policy
        .permits_method(options.method)
        .map_err(|refusal| options::problem(&format!("{path}.method"), refusal.to_string()))?;
    if options.method == Method::Head && !device.metrics.is_empty() {
        let reason = "HEAD has no body to read metrics from: use GET, or remove the [[device.metric]] tables";
        return Err(options::problem(&format!("{path}.method"), reason));
    }
    let numbers = device.metrics.iter().map(|metric| Found::parse(metric, &path)).collect::<Result<Vec<_>, _>>()?;
    let mut metrics = device.metrics.clone();
    let probe = metrics.len();
    metrics.extend(whole(device));
    if probe > 0 {
        metrics[probe].name = PROBE.into();
    }
    let gate = Arc::clone(&context.gate);
    let limit = probe::limit(device.timeout);
    let http = Http { gate, client, method: options.method, numbers: Arc::new(numbers), probe, limit };
    Ok(Built { collector: Box::new(http), metrics })
}

/// What `http` and `prometheus` have in common: a URL, headers, secrets, and whom to trust.
pub(super) struct Ask<'a> {
    pub(super) url: &'a str,
    pub(super) headers: &'a BTreeMap<String, String>,
    pub(super) secret_headers: BTreeMap<String, SecretName>,
    pub(super) auth: Option<Auth>,
    pub(super) tls: &'a str,
}

impl Ask<'_> {
    /// Reads all of it; a problem names the device's key.
    pub(super) fn client(self, path: &str, context: &Context) -> Result<Client, Problem> {
        let at = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
        let target = Target::parse(self.url).map_err(|reason| at("url", reason))?;
        let headers = target::headers(self.headers).map_err(|(name, why)| at(&format!("headers.{name}"), why))?;
        let credentials = Credentials::parse(&context.keyring, self.auth, self.secret_headers);
        let credentials = credentials.map_err(|(key, reason)| at(&key, reason))?;
        let trust = Trust::parse(self.tls).map_err(|reason| at("tls", reason))?;
        Ok(Client::new(target, headers, credentials, trust))
    }

    /// The same for a URL that says what is asked for, and not only whom.
    pub(super) fn written(self, path: &str, context: &Context) -> Result<Client, Problem> {
        let client = self.client(path, context)?;
        let permitted = context.gate.policy().permits_web_path(&client.target().asked());
        permitted.map_err(|refusal| options::problem(&format!("{path}.url"), refusal.to_string()))?;
        Ok(client)
    }
}

/// One number of a device's JSON, or as many as its path finds.
struct Found {
    number: Number,
    path: Path,
}

impl Found {
    fn parse(metric: &Metric, device: &str) -> Result<Self, Problem> {
        let (number, own, at) = Number::parse(metric, device)?;
        let MetricOptions { path } = options::read(&own, &at)?;
        let path = Path::parse(&path).map_err(|reason| options::problem(&format!("{at}.path"), reason))?;
        if !path.is_single() && number.has_label("index") {
            let reason = "the path gives this label itself: take another name";
            return Err(options::problem(&format!("{at}.labels.index"), reason));
        }
        Ok(Self { number, path })
    }

    fn add(&self, metric: usize, found: &[(String, f64)], readings: &mut Readings) {
        for (index, value) in found {
            let label = (!self.path.is_single()).then_some(("index", index.as_str()));
            self.number.add(metric, label, *value, readings);
        }
    }
}

/// What one path found: each number with its index.
type Values = Result<Vec<(String, f64)>, Failure>;

/// Reads an answer and finds in it what is due, in that order, as far as the time goes.
fn find(numbers: &[Found], due: &[usize], body: &[u8], left: Duration) -> Result<Vec<Values>, Failure> {
    let watch = Stopwatch::start();
    let bad = |detail: String| Failure::new(Reason::BadAnswer, detail);
    let document = read_document(body).map_err(bad)?;
    let found = due.iter().map(|metric| {
        if watch.seconds() > left.as_secs_f64() {
            return Err(Failure::new(Reason::Timeout, "no time was left to read all of the answer"));
        }
        numbers[*metric].path.numbers(&document).map_err(bad)
    });
    Ok(found.collect())
}

/// Asks over a stream that stands already, and reads the answer's body as a poll does.
///
/// # Errors
/// What a poll would say of it.
pub async fn read_answer<S>(stream: S) -> Result<Vec<u8>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut answer = Answer::over(stream).await?;
    answer.check_status()?;
    answer.check_encoding()?;
    answer.body(BODY_BYTES_MAX).await
}

/// Reads a device's JSON, if it is no more than fits.
///
/// # Errors
/// Says what is wrong with it.
pub fn read_document(body: &[u8]) -> Result<Value, String> {
    if document_bytes(body) > DOCUMENT_BYTES_MAX {
        return Err(format!("an answer with more values than fit {DOCUMENT_BYTES_MAX} bytes"));
    }
    serde_json::from_slice(body).map_err(|error| format!("the answer is not JSON: {error}"))
}

/// About what a JSON text takes once it is read, from above: each object is a node of a tree, each value has its place.
fn document_bytes(body: &[u8]) -> usize {
    let of_byte = |byte: &u8| match byte {
        b'{' => 700,
        b':' => 100,
        b'[' => 64,
        b',' => 40,
        b'"' => 16,
        _ => 1,
    };
    body.iter().map(of_byte).sum()
}

struct Http {
    gate: Arc<Gate>,
    client: Client,
    method: Method,
    numbers: Arc<Vec<Found>>,
    /// Index of the metric that tells how the request went; those before it are the numbers.
    probe: usize,
    limit: Duration,
}

/// How far a request came.
#[derive(Clone, Default)]
struct Seen {
    /// Whether the host was looked up: once a poll, however many requests it has.
    is_resolved: bool,
    lookup_seconds: f64,
    used: Option<SocketAddr>,
    status: u16,
    version: f64,
    content_length: Option<u64>,
    encoded: Option<Failure>,
}

impl Http {
    async fn probe(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut seen = Seen::default();
        let limit = self.limit;
        let outcome = probe::within(limit, self.exchange(&mut seen)).await;
        let seconds = watch.seconds();
        let outcome = match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            outcome => outcome,
        };
        if due.contains(&self.probe) {
            probe::report(readings, self.probe, outcome.is_ok(), seconds);
            seen.report(self.probe, &self.client, readings);
        }
        let body = match (outcome, seen.encoded) {
            (Ok(_), Some(failure)) | (Err(failure), _) => Err(failure),
            (Ok(body), None) => Ok(body),
        };
        let due: Vec<usize> = due.iter().copied().filter(|metric| *metric < self.probe).collect();
        let left = watch.left(limit);
        let found = match body {
            _ if due.is_empty() => return Ok(()),
            Ok(body) => probe::within(left, self.find(due.clone(), body, left)).await,
            Err(failure) => Err(failure),
        };
        self.take(&due, found, readings);
        Ok(())
    }

    /// Finds what is due in an answer.
    async fn find(&mut self, due: Vec<usize>, body: Vec<u8>, left: Duration) -> Result<Vec<Values>, Failure> {
        let numbers = Arc::clone(&self.numbers);
        aside(body.len(), move || find(&numbers, &due, &body, left)).await
    }

    fn take(&self, due: &[usize], found: Result<Vec<Values>, Failure>, readings: &mut Readings) {
        match found {
            Err(failure) => {
                readings.device_failed();
                due.iter().for_each(|metric| readings.missing(*metric, failure.clone()));
            }
            Ok(found) => {
                for (metric, found) in due.iter().copied().zip(found) {
                    match found {
                        Ok(found) => self.numbers[metric].add(metric, &found, readings),
                        Err(failure) => readings.missing(metric, failure),
                    }
                }
            }
        }
    }

    async fn exchange(&mut self, seen: &mut Seen) -> Result<Vec<u8>, Failure> {
        let question = Question::new(self.method, ACCEPT);
        let mut answer = seen.ask(&mut self.client, &self.gate, &question).await?;
        seen.encoded = answer.check_encoding().err();
        answer.check_status()?;
        if seen.encoded.is_some() {
            // Nobody can read it, so nobody waits for it.
            return Ok(Vec::new());
        }
        answer.body(BODY_BYTES_MAX).await
    }
}

/// Reads an answer; a large one on a thread of its own, so that others get their turn.
async fn aside<T: Send + 'static>(
    bytes: usize,
    read: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    static LARGE: Semaphore = Semaphore::const_new(LARGE_AT_ONCE_MAX);
    if bytes <= SMALL_BYTES_MAX {
        return read();
    }
    let ended = |error: String| Failure::new(Reason::BadAnswer, error);
    let permit = LARGE.acquire().await.map_err(|error| ended(error.to_string()))?;
    let work = tokio::task::spawn_blocking(move || {
        let found = read();
        drop(permit);
        found
    });
    work.await.map_err(|error| ended(error.to_string()))?
}

impl Seen {
    /// Asks, at addresses that the gate gives for the poll, and notes how far that comes.
    async fn ask(&mut self, client: &mut Client, gate: &Gate, question: &Question) -> Result<Answer, Failure> {
        let Self { is_resolved, lookup_seconds, .. } = *self;
        *self = Self { is_resolved, lookup_seconds, ..Self::default() };
        if !is_resolved {
            let watch = Stopwatch::start();
            client.resolve(gate).await?;
            (self.is_resolved, self.lookup_seconds) = (true, watch.seconds());
        }
        let answer = client.ask(question).await?;
        self.used = answer.from();
        self.status = answer.status();
        self.version = answer.version();
        self.content_length = answer.content_length();
        Ok(answer)
    }

    /// What blackbox_exporter tells besides success and duration; 0 where the request did not come that far.
    #[expect(clippy::cast_precision_loss, reason = "lengths and times far below 2^53")]
    fn report(&self, metric: usize, client: &Client, readings: &mut Readings) {
        probe::report_address(readings, metric, self.lookup_seconds, self.used);
        let length = if self.status == 0 { 0.0 } else { self.content_length.map_or(-1.0, |bytes| bytes as f64) };
        let mut add = |name, unit, value| readings.sample(metric, Family::gauge(name, unit), &[], value);
        add("probe_http_status_code", "", f64::from(self.status));
        add("probe_http_content_length", "bytes", length);
        add("probe_http_version", "", self.version);
        add("probe_http_ssl", "", f64::from(u8::from(client.is_https() && self.status > 0)));
        if let Some(expiry) = client.shown().and_then(|shown| shown.earliest_expiry) {
            add("probe_ssl_earliest_cert_expiry", "seconds", expiry as f64);
        }
    }
}

impl Collector for Http {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(due, readings))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::Ordering;

    use super::super::stage::{self, Polled, Stage};
    use satellite_shared::metric::Kind;

    use super::*;

    const SHELLY: &str = r#"{"switch:0": {"apower": 12.5, "output": true, "aenergy": {"total": 1000}}, "phases": [{"v": "230.1"}, {"v": 231}]}"#;
    const METRICS: &str = r#"
[[device.metric]]
name = "shelly_power_watts"
path = "$['switch:0'].apower"
unit = "watts"
labels = { plug = "tv" }
[[device.metric]]
name = "shelly_energy_joules_total"
path = "$['switch:0'].aenergy.total"
kind = "counter"
unit = "joules"
scale = 3600.0
[[device.metric]]
name = "shelly_volts"
path = "$.phases[*].v"
[[device.metric]]
name = "shelly_gone"
path = "$.gone"
"#;

    fn ok(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn stage(port: u16, more: &str) -> Stage {
        let device = format!("collector = \"http\"\nurl = \"http://127.0.0.1:{port}/rpc\"\ntimeout = \"1s\"\n{more}");
        Stage::new(&device, &[port]).unwrap()
    }

    fn reasons(polled: &Polled) -> Vec<Reason> {
        polled.missing.iter().map(|(_, failure)| failure.reason).collect()
    }

    #[tokio::test]
    async fn numbers_of_the_json_are_samples_and_what_is_not_there_is_told_alone() {
        let device = stage::saying(ok(SHELLY));
        let mut stage = stage(device.port, METRICS);
        let names: Vec<_> = stage.built.metrics.iter().map(|metric| metric.name.clone()).collect();
        assert_eq!(names[3..], ["shelly_gone", "probe"]);
        let polled = stage.poll_all().await;
        assert_eq!(polled.labelled("shelly_power_watts"), [("plug=tv".to_owned(), 12.5)]);
        assert_eq!(polled.value("shelly_energy_joules_total"), Some(3_600_000.0));
        let volts = [("index=0".to_owned(), 230.1), ("index=1".to_owned(), 231.0)];
        assert_eq!(polled.labelled("shelly_volts"), volts);
        let (series, _) = &polled.samples.iter().find(|(s, _)| s.name == "shelly_energy_joules_total").unwrap();
        assert_eq!((series.kind, series.unit.as_str()), (Kind::Counter, "joules"));
        assert_eq!(polled.missing.len(), 1);
        assert!(polled.missing[0].0 == "shelly_gone" && polled.missing[0].1.detail.contains("nothing is there"));
        for (name, value) in [
            ("probe_success", 1.0),
            ("probe_http_status_code", 200.0),
            ("probe_http_version", 1.1),
            ("probe_http_content_length", SHELLY.len() as f64),
            ("probe_http_ssl", 0.0),
            ("probe_ip_protocol", 4.0),
        ] {
            assert_eq!(polled.value(name), Some(value), "{name}");
        }
        assert_eq!(device.visits.load(Ordering::SeqCst), 1, "one request for all of them");
    }

    #[tokio::test]
    async fn a_large_answer_is_read_as_a_small_one_is() {
        let padded = SHELLY.replacen('{', &format!("{{\"pad\": \"{}\",", "x".repeat(900_000)), 1);
        let device = stage::saying(ok(&padded));
        let polled = stage(device.port, METRICS).poll_all().await;
        assert_eq!(polled.labelled("shelly_power_watts"), [("plug=tv".to_owned(), 12.5)]);
        assert_eq!((polled.labelled("shelly_volts").len(), polled.missing.len()), (2, 1));
    }

    #[test]
    fn a_small_text_that_stands_for_much_is_refused_before_it_is_read() {
        for text in ["[{\"\":{}},".repeat(90_000), format!("[{}0]", "0,".repeat(400_000))] {
            let failure = find(&[], &[], text.as_bytes(), Duration::from_secs(9)).unwrap_err();
            assert!(failure.detail.contains("more values than fit"), "{failure}");
        }
        let house = format!("[{}0]", "{\"name\": \"plug\", \"apower\": 12.5},".repeat(5_000));
        assert_eq!(find(&[], &[], house.as_bytes(), Duration::from_secs(60)), Ok(vec![]));
    }

    #[test]
    fn what_there_is_no_time_for_is_told() {
        let metric = Metric {
            name: "x".into(),
            schedule: satellite_shared::config::Schedule::Every(Duration::from_secs(1)),
            paused: false,
            options: serde_json::json!({"path": "$.a"}).as_object().unwrap().clone(),
        };
        let numbers = [Found::parse(&metric, "device.it").unwrap()];
        let found = find(&numbers, &[0, 0], b"{\"a\": 1}", Duration::ZERO).unwrap();
        assert!(found.iter().all(|found| found.as_ref().is_err_and(|failure| failure.reason == Reason::Timeout)));
        let found = find(&numbers, &[0], b"{\"a\": 1}", Duration::from_secs(9)).unwrap();
        assert_eq!(found, [Ok(vec![(String::new(), 1.0)])]);
    }

    #[tokio::test]
    async fn what_is_not_due_is_not_told() {
        let device = stage::saying(ok(SHELLY));
        let polled = stage(device.port, METRICS).poll(&[0]).await;
        assert_eq!((polled.samples.len(), polled.missing.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_device_without_metrics_is_its_probe() {
        let device = stage::peer(|head, stream| {
            assert!(
                head.starts_with("HEAD /rpc HTTP/1.1\r\n") && head.contains("accept-encoding: identity\r\n"),
                "{head}"
            );
            assert!(head.contains("x-room: attic\r\n") && head.contains("user-agent: satellite/"), "{head}");
            drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n"));
        });
        let mut stage = stage(device.port, "method = \"HEAD\"\nheaders = { X-Room = \"attic\" }");
        assert_eq!((stage.built.metrics.len(), stage.built.metrics[0].name.as_str()), (1, ""));
        let polled = stage.poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_http_content_length")), (Some(1.0), Some(-1.0)));
    }

    async fn hostile(answer: impl Fn(&str, &mut std::net::TcpStream) + Send + 'static) -> Polled {
        let device = stage::peer(answer);
        stage(device.port, METRICS).poll_all().await
    }

    /// The probe is an answer, every number is a gap with this reason.
    fn check(polled: &Polled, success: f64, status: f64, reason: Reason, detail: &str) {
        assert_eq!(
            (polled.value("probe_success"), polled.value("probe_http_status_code")),
            (Some(success), Some(status))
        );
        assert_eq!(reasons(polled), [reason; 4]);
        assert!(polled.missing[0].1.detail.contains(detail), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_refused_connection_and_an_error_status_are_refusals() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        check(&stage(free, METRICS).poll_all().await, 0.0, 0.0, Reason::Refused, "connection refused");
        let polled =
            hostile(|_, stream| drop(stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))).await;
        check(&polled, 0.0, 503.0, Reason::Refused, "HTTP 503");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed_and_its_target_is_told_without_its_query() {
        let other = stage::saying(ok("{}"));
        let to = format!("http://user:pw@127.0.0.1:{}/login?token=secret#x", other.port);
        let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
        let polled = hostile(move |_, stream| drop(stream.write_all(answer.as_bytes()))).await;
        check(&polled, 0.0, 302.0, Reason::BadAnswer, "redirects are not followed: it leads to");
        assert!(!polled.missing[0].1.detail.contains("secret") && !polled.missing[0].1.detail.contains("pw"));
        assert_eq!(other.visits.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_silent_device_and_one_that_drips_are_timeouts() {
        let silent = hostile(|_, stream| drop(stream.read(&mut [0]))).await;
        check(&silent, 0.0, 0.0, Reason::Timeout, "no complete answer within 900ms");
        let drip = hostile(|_, stream| {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"));
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        check(&drip.await, 0.0, 200.0, Reason::Timeout, "no complete answer");
    }

    #[tokio::test]
    async fn a_body_without_end_and_headers_without_end_are_cut() {
        let body = hostile(|_, stream| {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
            while stream.write_all(&[b' '; 65_536]).is_ok() {}
        });
        check(&body.await, 0.0, 200.0, Reason::BadAnswer, "more than 1048576 bytes");
        for header in ["X-A: ".to_owned() + &"v".repeat(60_000), "X-A: v".to_owned()] {
            let polled = hostile(move |_, stream| {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\n"));
                while stream.write_all(format!("{header}\r\n").as_bytes()).is_ok() {}
            });
            check(&polled.await, 0.0, 0.0, Reason::BadAnswer, "not an HTTP answer");
        }
    }

    #[tokio::test]
    async fn an_answer_that_lies_about_itself_is_a_bad_answer() {
        let cut =
            hostile(|_, stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{\"a\": 1")));
        check(&cut.await, 0.0, 200.0, Reason::BadAnswer, "ended too early");
        let long =
            hostile(|_, stream| drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{\"a\": 1}")));
        check(&long.await, 1.0, 200.0, Reason::BadAnswer, "not JSON");
        let gzip = hostile(|_, stream| {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"));
        });
        check(&gzip.await, 1.0, 200.0, Reason::BadAnswer, "encoded (gzip)");
        let ssh = hostile(|_, stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9\r\n")));
        check(&ssh.await, 0.0, 0.0, Reason::BadAnswer, "not an HTTP answer");
    }

    #[tokio::test]
    async fn garbage_and_json_bombs_are_bad_answers() {
        for (body, detail) in [("<html>", "not JSON"), ("", "not JSON"), (&"[".repeat(50_000), "recursion limit")] {
            let answer = ok(body);
            let polled = hostile(move |_, stream| drop(stream.write_all(answer.as_bytes()))).await;
            check(&polled, 1.0, 200.0, Reason::BadAnswer, detail);
        }
    }

    #[tokio::test]
    async fn a_target_outside_the_policy_is_a_gap_and_nothing_is_sent() {
        let device = stage::saying(ok("{}"));
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            let url = format!("collector = \"http\"\nurl = \"http://{host}:{}/\"", device.port);
            let polled = Stage::new(&url, &[]).unwrap().poll_all().await;
            let failure = polled.failure.unwrap();
            assert_eq!(failure.reason, Reason::Policy, "{host}");
            assert!(failure.detail.contains("loopback_ports"), "{failure}");
            assert!(polled.samples.is_empty());
        }
        assert_eq!(device.visits.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_name_goes_to_the_addresses_that_passed() {
        let device = stage::peer(|head, stream| {
            assert!(head.contains("host: localhost:"), "{head}");
            drop(stream.write_all(ok(SHELLY).as_bytes()));
        });
        let url = format!("collector = \"http\"\nurl = \"http://localhost:{}/\"", device.port);
        let polled = Stage::new(&url, &[device.port]).unwrap().poll_all().await;
        assert_eq!(polled.value("probe_success"), Some(1.0));
    }

    #[tokio::test]
    async fn a_certificate_is_trusted_where_it_is_the_pinned_one_and_the_refusal_tells_its_pin() {
        let stage::TlsPeer { peer: device, pin, expires: expiry } = stage::tls_peer(ok(SHELLY));
        let stage = |tls: &str| {
            let url = format!("url = \"https://127.0.0.1:{}/\"", device.port);
            Stage::new(&format!("collector = \"http\"\n{url}\ntls = \"{tls}\"\n{METRICS}"), &[device.port]).unwrap()
        };
        for _ in 0..2 {
            let polled = stage(&format!("pin:{pin}")).poll_all().await;
            assert_eq!((polled.value("probe_success"), polled.value("probe_http_ssl")), (Some(1.0), Some(1.0)));
            assert_eq!(polled.value("probe_ssl_earliest_cert_expiry"), Some(expiry as f64));
            assert_eq!(polled.value("shelly_power_watts"), Some(12.5));
        }
        let other = stage(&format!("pin:{}", "ab".repeat(32))).poll_all().await;
        check(
            &other,
            0.0,
            0.0,
            Reason::BadAnswer,
            &format!("another than the pinned one; if the device has a new one, set tls = \"pin:{pin}\""),
        );
        assert_eq!(other.value("probe_ssl_earliest_cert_expiry"), Some(expiry as f64), "it was shown");
        if std::path::Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
            let system = stage("verify").poll_all().await;
            check(&system, 0.0, 0.0, Reason::BadAnswer, &format!("set tls = \"pin:{pin}\""));
        }
    }

    #[tokio::test]
    async fn a_device_that_speaks_no_tls_is_a_bad_answer() {
        let device = stage::saying(ok("{}"));
        let url = format!(
            "collector = \"http\"\nurl = \"https://127.0.0.1:{}/\"\ntls = \"pin:{}\"",
            device.port,
            "ab".repeat(32)
        );
        let polled = Stage::new(&url, &[device.port]).unwrap().poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_http_ssl")), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn options_that_are_none_are_named_with_their_place() {
        let check = |more: &str, expect: &str| {
            let said = stage::problem(&format!("collector = \"http\"\n{more}"));
            assert!(said.starts_with(expect), "{more}: {said}");
        };
        let url = "url = \"http://10.0.0.1/\"\n";
        let metric = |options: &str| format!("{url}[[device.metric]]\nname = \"x\"\n{options}");
        check("", "device.it: missing field `url`");
        check("url = \"ftp://x/\"", "device.it.url: only http");
        check(&format!("{url}methode = \"GET\""), "device.it.methode: unknown field");
        check(&format!("{url}method = \"PUT\""), "device.it.method: unknown variant `PUT`, expected one of");
        check(&format!("{url}method = \"POST\""), "device.it.method: a configuration only reads");
        check(&format!("{url}headers = {{ Cookie = \"a=b\" }}"), "device.it.headers.Cookie: a secret");
        check(&format!("{url}tls = \"insecure\""), "device.it.tls: write \"verify\"");
        check(&metric(""), "device.it.metric.x: missing field `path`");
        check(&metric("path = \"power\""), "device.it.metric.x.path: not a JSONPath");
        check(&metric("path = \"$.a\"\nkind = \"info\""), "device.it.metric.x.kind: unknown variant");
        check(&metric("path = \"$.a\"\nscale = inf"), "device.it");
        check(&metric("path = \"$.a\"\nunit = \"m/s\""), "device.it.metric.x.unit: ");
        check(&metric("path = \"$.a\"\nlabels = { \"a-b\" = \"c\" }"), "device.it.metric.x.labels.a-b: ");
        check(&metric("path = \"$[*]\"\nlabels = { index = \"c\" }"), "device.it.metric.x.labels.index: ");
        check(&metric("path = \"$.a\"").replace("\"x\"", "\"probe\""), "device.it.metric.probe.name: ");
        check(&metric("path = \"$.a\"").replace("\"x\"", "\"a b\""), "device.it.metric.a b.name: ");
        check(
            &format!("{url}method = \"HEAD\"\n[[device.metric]]\nname = \"x\"\npath = \"$.a\""),
            "device.it.method: HEAD",
        );
    }
}
