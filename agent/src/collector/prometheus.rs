//! `prometheus`: scrapes any exporter, in Prometheus' text format or OpenMetrics.
//!
//! Two metrics: `scrape` is the exporter's page, all of it or a gap with the reason; `up` tells how the scrape went,
//! as Prometheus itself does, and is never missing for a device that fails. The page is read as it comes and not held.
//! Timestamps that an exporter writes are ignored: a sample's time is when it was polled.

pub mod text;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::limits;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};

use self::text::{LINE_BYTES_MAX, Parser, Sample};
use super::http::client::{Answer, Client, Question};
use super::http::credentials::Auth;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, http, options, whole};
use crate::policy::{Gate, Method};
use crate::secrets::SecretName;

/// `collector = "prometheus"`.
pub const KIND: CollectorKind = CollectorKind { name: "prometheus", build };

/// A page of an exporter.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Samples of a page, so that those about the scrape still fit.
const SAMPLES_MAX: usize = limits::SAMPLES_PER_POLL_MAX - 8;
/// Prefixes in `include` or `exclude`.
const PREFIXES_MAX: usize = 100;
const ACCEPT: &str = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
/// Index of the page's metric.
const SCRAPE: usize = 0;
/// Index of the metric that tells how the scrape went.
const UP: usize = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    secret_headers: BTreeMap<String, SecretName>,
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default = "http::verify")]
    tls: String,
    /// Only metrics whose name begins with one of these.
    #[serde(default)]
    include: Vec<String>,
    /// No metrics whose name begins with one of these.
    #[serde(default)]
    exclude: Vec<String>,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let options: Options = options::read(&device.options, &path)?;
    for (key, prefixes) in [("include", &options.include), ("exclude", &options.exclude)] {
        let fits = prefixes.len() <= PREFIXES_MAX
            && prefixes.iter().all(|prefix| (1..=limits::NAME_BYTES_MAX).contains(&prefix.len()));
        if !fits {
            let reason = "beginnings of metric names such as \"node_cpu_\", at most 100, none of them empty";
            return Err(options::problem(&format!("{path}.{key}"), reason));
        }
    }
    let policy = context.gate.policy();
    policy.permits_method(Method::Get).map_err(|refusal| options::problem(&path, refusal.to_string()))?;
    let ask = http::Ask {
        url: &with_path(&options.url),
        headers: &options.headers,
        secret_headers: options.secret_headers,
        auth: options.auth,
        tls: &options.tls,
    };
    let client = ask.written(&path, context)?;
    let mut metrics = whole(device);
    metrics[SCRAPE].name = "scrape".into();
    metrics.extend(whole(device));
    metrics[UP].name = "up".into();
    let prometheus = Prometheus {
        gate: Arc::clone(&context.gate),
        client,
        names: Names { include: options.include, exclude: options.exclude },
        limit: probe::limit(device.timeout),
    };
    Ok(Built { collector: Box::new(prometheus), metrics })
}

/// `/metrics`, where a URL names no path.
fn with_path(url: &str) -> String {
    let authority = url.split_once("//").map_or(url, |(_, rest)| rest);
    match authority.split_once('/') {
        None if !authority.contains(['?', '#']) => format!("{url}/metrics"),
        Some((_, "")) => format!("{url}metrics"),
        None | Some(_) => url.to_owned(),
    }
}

/// Which names are wanted.
#[derive(Default)]
struct Names {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Names {
    fn wants(&self, name: &str) -> bool {
        let begins = |prefixes: &[String]| prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()));
        (self.include.is_empty() || begins(&self.include)) && !begins(&self.exclude)
    }
}

struct Prometheus {
    gate: Arc<Gate>,
    client: Client,
    names: Names,
    limit: Duration,
}

impl Prometheus {
    async fn scrape(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut scraped = 0;
        let limit = self.limit;
        let outcome = probe::within(limit, self.read(&mut scraped, readings)).await;
        let seconds = watch.seconds();
        if let Err(failure) = outcome.clone() {
            // Half a page is no answer.
            readings.clear();
            if probe::was_not_tried(&failure) {
                return Err(failure);
            }
            scraped = 0;
            readings.device_failed();
            if due.contains(&SCRAPE) {
                readings.missing(SCRAPE, failure);
            }
        }
        if due.contains(&UP) {
            readings.sample(UP, Family::gauge("up", ""), &[], f64::from(u8::from(outcome.is_ok())));
            readings.sample(UP, Family::gauge("scrape_duration_seconds", "seconds"), &[], seconds);
            readings.sample(UP, Family::gauge("scrape_samples_scraped", ""), &[], f64::from(scraped));
        }
        Ok(())
    }

    async fn read(&mut self, scraped: &mut u32, readings: &mut Readings) -> Result<(), Failure> {
        self.client.resolve(&self.gate).await?;
        let mut answer = self.client.ask(&Question::new(Method::Get, ACCEPT)).await?;
        read(&mut answer, &self.names, scraped, readings).await
    }
}

/// Asks over a stream that stands already, and reads the page as a poll does; says how many samples it has.
///
/// # Errors
/// What a poll would say of it.
pub async fn read_page<S>(stream: S, readings: &mut Readings) -> Result<u32, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut scraped = 0;
    let mut answer = Answer::over(stream).await?;
    read(&mut answer, &Names::default(), &mut scraped, readings).await?;
    Ok(scraped)
}

async fn read(answer: &mut Answer, names: &Names, scraped: &mut u32, readings: &mut Readings) -> Result<(), Failure> {
    answer.check_status()?;
    answer.check_encoding()?;
    let content_type = answer.content_type().unwrap_or_default().to_ascii_lowercase();
    if content_type.contains("html") || content_type.contains("protobuf") {
        let detail = format!("the answer is {content_type}, not metrics: does the URL's path end in /metrics?");
        return Err(Failure::new(Reason::BadAnswer, detail));
    }
    let parser = Parser::new(content_type.starts_with("application/openmetrics-text"));
    let mut page = Page { parser, names, line: Vec::new(), scraped, readings };
    let mut bytes = 0;
    while let Some(chunk) = answer.chunk().await? {
        bytes += chunk.len();
        if bytes > BODY_BYTES_MAX {
            return Err(Failure::new(Reason::BadAnswer, format!("a page of more than {BODY_BYTES_MAX} bytes")));
        }
        page.take(&chunk)?;
    }
    page.end(answer)
}

/// A page on its way from pieces of a body to samples.
struct Page<'a> {
    parser: Parser,
    names: &'a Names,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    scraped: &'a mut u32,
    readings: &'a mut Readings,
}

impl Page<'_> {
    fn take(&mut self, mut chunk: &[u8]) -> Result<(), Failure> {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.line.is_empty() {
                self.line(line)?;
            } else {
                self.hold(line)?;
                let line = std::mem::take(&mut self.line);
                self.line(&line)?;
                self.line = line;
                self.line.clear();
            }
            chunk = rest;
        }
        self.hold(chunk)
    }

    fn hold(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if self.line.len() + piece.len() > LINE_BYTES_MAX {
            return Err(too_long());
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if line.len() > LINE_BYTES_MAX {
            return Err(too_long());
        }
        let Self { parser, names, scraped, readings, .. } = self;
        let wanted = |name: &str| {
            **scraped += 1;
            names.wants(name)
        };
        let give = |sample: Sample<'_>| {
            let labels: Vec<(&str, &str)> = sample.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let family = Family { name: sample.name, kind: sample.kind, unit: sample.unit };
            readings.sample(SCRAPE, family, &labels, sample.value);
        };
        parser.read(line, wanted, give).map_err(|error| Failure::new(Reason::BadAnswer, error.to_string()))?;
        if self.readings.len() > SAMPLES_MAX || self.readings.overflowed() {
            let detail = format!(
                "more than {SAMPLES_MAX} samples, or 4 MiB of names and labels: narrow it with `include` or `exclude`"
            );
            return Err(Failure::new(Reason::BadAnswer, detail));
        }
        Ok(())
    }

    fn end(mut self, answer: &Answer) -> Result<(), Failure> {
        if !self.line.is_empty() {
            if !answer.is_framed() {
                return Err(Failure::new(Reason::BadAnswer, "the page ends within a line"));
            }
            let line = std::mem::take(&mut self.line);
            self.line(&line)?;
        }
        if self.parser.is_complete() {
            return Ok(());
        }
        Err(Failure::new(Reason::BadAnswer, "the page ends without `# EOF`"))
    }
}

fn too_long() -> Failure {
    Failure::new(Reason::BadAnswer, format!("a line of more than {LINE_BYTES_MAX} bytes: not metrics"))
}

impl Collector for Prometheus {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.scrape(due, readings))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::atomic::Ordering;

    use super::super::stage::{self, Polled, Stage};
    use super::*;

    const PAGE: &str = "# TYPE node_load1 gauge\nnode_load1 0.5\n# TYPE node_cpu_seconds_total counter\nnode_cpu_seconds_total{cpu=\"0\",mode=\"idle\"} 10\nnode_cpu_seconds_total{cpu=\"0\",mode=\"user\"} 2\n";

    fn ok(content_type: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn scrape(answer: impl Into<Vec<u8>>, more: &str) -> Polled {
        let device = stage::saying(answer);
        stage(device.port, more).poll_all().await
    }

    fn stage(port: u16, more: &str) -> Stage {
        let device =
            format!("collector = \"prometheus\"\nurl = \"http://127.0.0.1:{port}\"\ntimeout = \"30s\"\n{more}");
        Stage::new(&device, &[port]).unwrap()
    }

    #[tokio::test]
    async fn a_page_is_samples_and_how_the_scrape_went() {
        let device = stage::peer(|head, stream| {
            assert!(head.starts_with("GET /metrics HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("accept: application/openmetrics-text"), "{head}");
            for piece in ok("text/plain; version=0.0.4", PAGE).as_bytes().chunks(7) {
                drop(stream.write_all(piece));
            }
        });
        let polled = stage(device.port, "").poll_all().await;
        assert_eq!((polled.value("up"), polled.value("scrape_samples_scraped")), (Some(1.0), Some(3.0)));
        let cpu = [("cpu=0,mode=idle".to_owned(), 10.0), ("cpu=0,mode=user".to_owned(), 2.0)];
        assert_eq!(polled.labelled("node_cpu_seconds_total"), cpu);
        assert_eq!((polled.samples.len(), polled.missing.len(), device.visits.load(Ordering::SeqCst)), (6, 0, 1));
    }

    #[tokio::test]
    async fn include_and_exclude_narrow_and_are_counted_before() {
        let polled = scrape(ok("text/plain", PAGE), "include = [\"node_\"]\nexclude = [\"node_cpu_\"]").await;
        assert_eq!((polled.value("node_load1"), polled.value("node_cpu_seconds_total")), (Some(0.5), None));
        assert_eq!(polled.value("scrape_samples_scraped"), Some(3.0));
    }

    /// `up` is 0, the page is one gap with this reason, and nothing of it is kept.
    fn check(polled: &Polled, reason: Reason, detail: &str) {
        assert_eq!((polled.value("up"), polled.samples.len()), (Some(0.0), 3), "{:?}", polled.missing);
        assert_eq!(polled.missing.len(), 1);
        let (metric, failure) = &polled.missing[0];
        assert_eq!((metric.as_str(), failure.reason), ("scrape", reason), "{failure}");
        assert!(failure.detail.contains(detail), "{failure}");
    }

    #[tokio::test]
    async fn half_a_page_is_no_answer() {
        check(
            &scrape(ok("text/plain", "a 1\nb x\n"), "").await,
            Reason::BadAnswer,
            "line 2: the value is not a number",
        );
        check(&scrape(ok("text/plain", PAGE).replace(": 1", ": 9"), "").await, Reason::BadAnswer, "ended too early");
        check(&scrape("HTTP/1.1 200 OK\r\n\r\na 1\nb 12", "").await, Reason::BadAnswer, "ends within a line");
        let openmetrics = ok("application/openmetrics-text; version=1.0.0", "a 1\n");
        check(&scrape(openmetrics, "").await, Reason::BadAnswer, "without `# EOF`");
        assert_eq!(scrape(ok("text/plain", "a 1\nb 12"), "").await.value("b"), Some(12.0), "its end was told");
    }

    #[tokio::test]
    async fn what_is_no_page_of_metrics_is_told() {
        check(&scrape("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "").await, Reason::Refused, "HTTP 404");
        check(&scrape(ok("text/html", "<html>"), "").await, Reason::BadAnswer, "/metrics?");
        let gzip = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n";
        check(&scrape(gzip, "").await, Reason::BadAnswer, "encoded (gzip)");
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        check(&stage(free, "").poll_all().await, Reason::Refused, "connection refused");
    }

    #[tokio::test]
    async fn lines_samples_and_pages_without_end_are_cut() {
        let endless = |piece: &'static str| {
            stage::peer(move |_, stream| {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
                let many = piece.repeat(1_000);
                while stream.write_all(many.as_bytes()).is_ok() {}
            })
        };
        let device = endless("x");
        check(&stage(device.port, "").poll_all().await, Reason::BadAnswer, "a line of more than 16384 bytes");
        let device = endless("a 1\n");
        check(&stage(device.port, "").poll_all().await, Reason::BadAnswer, "more than 49992 samples");
        let device = endless("# nothing but talk, and a lot of it, of no use to anyone at all, for ever and ever\n");
        check(&stage(device.port, "").poll_all().await, Reason::BadAnswer, "more than 16777216 bytes");
    }

    #[tokio::test]
    async fn a_target_outside_the_policy_is_a_gap_and_nothing_is_sent() {
        let device = stage::saying(ok("text/plain", PAGE));
        let text = format!("collector = \"prometheus\"\nurl = \"http://127.0.0.1:{}/\"", device.port);
        let polled = Stage::new(&text, &[]).unwrap().poll_all().await;
        assert_eq!((polled.failure.unwrap().reason, polled.samples.len()), (Reason::Policy, 0));
        assert_eq!(device.visits.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_url_without_a_path_means_metrics() {
        for (url, expect) in [
            ("http://a:9100", "http://a:9100/metrics"),
            ("http://a:9100/", "http://a:9100/metrics"),
            ("http://a/probe?x=/", "http://a/probe?x=/"),
            ("http://a?x", "http://a?x"),
            ("http://a/m/", "http://a/m/"),
        ] {
            assert_eq!(with_path(url), expect);
        }
    }

    #[test]
    fn options_that_are_none_are_named_with_their_place() {
        let check = |more: &str, expect: &str| {
            let said = stage::problem(&format!("collector = \"prometheus\"\n{more}"));
            assert!(said.starts_with(expect), "{more}: {said}");
        };
        check("", "device.it: missing field `url`");
        check("url = \"http://u:p@a/\"", "device.it.url: a user or password");
        check("url = \"http://a/\"\ninclude = [\"\"]", "device.it.include: beginnings");
        check("url = \"http://a/\"\nexclude = \"go_\"", "device.it.exclude: invalid type");
        check("url = \"http://a/\"\nparams = { a = \"b\" }", "device.it.params: unknown field");
        check("url = \"http://a/\"\n[[device.metric]]\nname = \"x\"", "device.it.metric: `prometheus` takes no list");
    }
}
