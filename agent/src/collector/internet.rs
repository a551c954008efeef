//! `internet`: whether the line to the world is up, asked of several places that have nothing to do with each other.
//!
//! Each target is a TCP connection that is opened and closed; all of them at the same time. `internet_up` is 1 as long as
//! one of them answers: that all fail is the line, that one fails is that one, and `probe_success` says which. What the
//! world sees as this house's address is asked only where the configuration lists the metric `public_address` with a URL;
//! it is a label then. Every target has to be in a network of the policy, which by itself lists none of the internet.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use serde_json::Value;

use super::address::Address;
use super::http::client::{Client, Question};
use super::http::{Ask, verify};
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Method, Protocol};

/// `collector = "internet"`.
pub const KIND: CollectorKind = CollectorKind { name: "internet", build };

const TARGETS_MAX: usize = 16;
/// Index of the metric that is the targets.
const TARGETS: usize = 0;
/// Index of the metric that is the address the world sees, where it is wanted.
const PUBLIC_ADDRESS: usize = 1;
const PUBLIC_ADDRESS_NAME: &str = "public_address";
/// An address, with what some put around it.
const BODY_BYTES_MAX: usize = 16 << 10;
/// What services call the address in their JSON.
const ADDRESS_KEYS: [&str; 5] = ["ip", "address", "ip_addr", "origin", "query"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `192.0.2.1:443`, …
    targets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublicOptions {
    url: String,
    #[serde(default = "verify")]
    tls: String,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let Options { targets } = options::read(&device.options, &path)?;
    let wrong = |reason: String| options::problem(&format!("{path}.targets"), reason);
    if !(1..=TARGETS_MAX).contains(&targets.len()) {
        return Err(wrong(format!("{} targets: give 1 to {TARGETS_MAX}, better three than one", targets.len())));
    }
    let mut named: Vec<(String, Address)> = Vec::with_capacity(targets.len());
    for target in targets {
        let address = Address::parse(&target, None, &format!("{path}.targets"))?;
        if named.iter().any(|(_, other)| *other == address) {
            return Err(wrong(format!("`{target}` stands twice")));
        }
        named.push((target, address));
    }
    let mut metrics = whole(device);
    metrics[TARGETS].name = "targets".into();
    let mut public = None;
    for metric in &device.metrics {
        let shown: String = metric.name.chars().take(80).collect();
        let at = format!("{path}.metric.{shown}");
        if metric.name != PUBLIC_ADDRESS_NAME || public.is_some() {
            let reason = format!("the one metric that can be listed is `{PUBLIC_ADDRESS_NAME}`, once");
            return Err(options::problem(&format!("{at}.name"), reason));
        }
        let PublicOptions { url, tls } = options::read(&metric.options, &at)?;
        let headers = std::collections::BTreeMap::new();
        let ask = Ask {
            url: &url,
            headers: &headers,
            secret_headers: std::collections::BTreeMap::new(),
            auth: None,
            tls: &tls,
        };
        public = Some(PublicAddress { client: ask.written(&at, context)?, last: None, changes: 0 });
        metrics.push(metric.clone());
    }
    let gate = Arc::clone(&context.gate);
    let internet = Internet { gate, targets: named, public, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(internet), metrics })
}

struct Internet {
    gate: Arc<Gate>,
    /// What each is called, and where it is.
    targets: Vec<(String, Address)>,
    public: Option<PublicAddress>,
    limit: Duration,
}

/// Who says what address the world sees, and what it said.
struct PublicAddress {
    client: Client,
    last: Option<IpAddr>,
    changes: u32,
}

impl Internet {
    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let Self { gate, targets, public, limit } = self;
        let limit = *limit;
        let targets = async {
            if !due.contains(&TARGETS) {
                return Vec::new();
            }
            join_all(targets.iter().map(|(_, address)| visit(gate, address, limit))).await
        };
        let public = async {
            let public = public.as_mut().filter(|_| due.contains(&PUBLIC_ADDRESS))?;
            Some(probe::within(limit, public.ask(gate)).await.map(|address| (address, public.changes)))
        };
        let (visits, public) = tokio::join!(targets, public);
        if due.contains(&TARGETS) {
            self.tell(&visits, readings);
        }
        match public {
            None => {}
            Some(Err(failure)) => readings.missing(PUBLIC_ADDRESS, failure),
            Some(Ok((address, changes))) => {
                let info = Family::gauge("internet_public_address_info", "");
                readings.sample(PUBLIC_ADDRESS, info, &[("address", &address.to_string())], 1.0);
                let family = Family::counter("internet_public_address_changes_total", "");
                readings.sample(PUBLIC_ADDRESS, family, &[], f64::from(changes));
            }
        }
        Ok(())
    }

    fn tell(&self, visits: &[Visit], readings: &mut Readings) {
        // A target that nothing was sent to says nothing of the line: neither would the others alone.
        let untried = visits.iter().zip(&self.targets).find_map(|(visit, (target, _))| {
            let failure = visit.outcome.as_ref().err().filter(|failure| probe::was_not_tried(failure))?;
            Some(Failure::new(failure.reason, format!("{target}: {}", failure.detail)))
        });
        if let Some(failure) = untried {
            return readings.missing(TARGETS, failure);
        }
        let mut up = 0_u8;
        for (visit, (target, _)) in visits.iter().zip(&self.targets) {
            let labels = [("target", target.as_str())];
            let success = u8::from(visit.outcome.is_ok());
            up += success;
            readings.sample(TARGETS, Family::gauge("probe_success", ""), &labels, f64::from(success));
            let family = Family::gauge("probe_duration_seconds", "seconds");
            readings.sample(TARGETS, family, &labels, visit.seconds);
        }
        let mut add = |name, value: f64| readings.sample(TARGETS, Family::gauge(name, ""), &[], value);
        add("internet_up", f64::from(u8::from(up > 0)));
        add("internet_targets", f64::from(u8::try_from(visits.len()).unwrap_or(u8::MAX)));
        add("internet_targets_up", f64::from(up));
    }
}

impl Collector for Internet {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

/// What came of one target.
struct Visit {
    outcome: Result<(), Failure>,
    seconds: f64,
}

async fn visit(gate: &Gate, address: &Address, limit: Duration) -> Visit {
    let watch = Stopwatch::start();
    let outcome = probe::within(limit, connect(gate, address, limit)).await;
    if let Err(failure) = &outcome {
        tracing::debug!(%failure, host = address.host, "no connection");
    }
    Visit { outcome, seconds: watch.seconds() }
}

async fn connect(gate: &Gate, address: &Address, limit: Duration) -> Result<(), Failure> {
    let addresses = gate.resolve(Protocol::Tcp, &address.host, address.port).await?;
    probe::connect(&addresses, limit).await.map(drop)
}

impl PublicAddress {
    async fn ask(&mut self, gate: &Gate) -> Result<IpAddr, Failure> {
        self.client.resolve(gate).await?;
        let mut answer = self.client.ask(&Question::new(Method::Get, "application/json, text/plain;q=0.9")).await?;
        answer.check_status()?;
        answer.check_encoding()?;
        let body = answer.body(BODY_BYTES_MAX).await?;
        let address = address_in(&body).ok_or_else(|| {
            let keys = ADDRESS_KEYS.join(", ");
            Failure::new(Reason::BadAnswer, format!("neither an address nor a JSON object with one as one of {keys}"))
        })?;
        if self.last.replace(address).is_some_and(|last| last != address) {
            self.changes = self.changes.saturating_add(1);
        }
        Ok(address)
    }
}

fn address_in(body: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let document: Value = match text.parse() {
        Ok(address) => return Some(address),
        Err(_) => serde_json::from_str(text).ok()?,
    };
    ADDRESS_KEYS.iter().find_map(|key| document[*key].as_str()?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::stage::{self, Polled, Stage, problem};
    use super::*;

    fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn stage(targets: &[u16], allowed: &[u16], more: &str) -> Stage {
        let targets: Vec<String> = targets.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let device = format!("collector = \"internet\"\ntargets = {targets:?}\ntimeout = \"1s\"\n{more}");
        Stage::new(&device, allowed).unwrap()
    }

    fn ups(polled: &Polled) -> [Option<f64>; 3] {
        ["internet_up", "internet_targets", "internet_targets_up"].map(|name| polled.value(name))
    }

    #[tokio::test]
    async fn one_target_that_fails_is_that_one_and_all_that_fail_are_the_line() {
        let ((one, a), (two, b)) = (listener(), listener());
        let mut stage = stage(&[a, b], &[a, b], "");
        let polled = stage.poll_all().await;
        assert_eq!(ups(&polled), [Some(1.0), Some(2.0), Some(2.0)]);
        assert!(polled.labelled("probe_duration_seconds").iter().all(|(_, seconds)| *seconds < 1.0));
        drop(one);
        let polled = stage.poll_all().await;
        assert_eq!(ups(&polled), [Some(1.0), Some(2.0), Some(1.0)]);
        let success = [(format!("target=127.0.0.1:{a}"), 0.0), (format!("target=127.0.0.1:{b}"), 1.0)];
        assert_eq!(polled.labelled("probe_success"), success);
        drop(two);
        let polled = stage.poll_all().await;
        assert_eq!(ups(&polled), [Some(0.0), Some(2.0), Some(0.0)]);
        assert_eq!((polled.missing.len(), polled.failure), (0, None));
    }

    #[tokio::test]
    async fn a_target_outside_the_policy_is_a_gap_that_names_it_and_no_line_that_is_down() {
        let ((_one, a), (_two, b)) = (listener(), listener());
        let polled = stage(&[a, b], &[a], "").poll_all().await;
        assert_eq!((polled.samples.len(), polled.missing.len()), (0, 1));
        let (metric, why) = &polled.missing[0];
        assert_eq!((metric.as_str(), why.reason), ("targets", Reason::Policy));
        assert!(why.detail.starts_with(&format!("127.0.0.1:{b}: ")), "{why}");
        let device = "collector = \"internet\"\ntargets = [\"1.1.1.1:443\"]";
        let polled = Stage::new(device, &[]).unwrap().poll_all().await;
        assert!(polled.missing[0].1.detail.contains("add \"1.1.1.1/32\" to `networks`"), "{:?}", polled.missing);
    }

    fn public(port: u16) -> String {
        format!("[[device.metric]]\nname = \"public_address\"\nevery = \"1h\"\nurl = \"http://127.0.0.1:{port}/\"\n")
    }

    #[tokio::test]
    async fn the_address_that_the_world_sees_is_told_only_where_it_is_listed_and_its_changes_are_counted() {
        let (_listener, a) = listener();
        let asked = AtomicUsize::new(0);
        let service = stage::peer(move |_, stream| {
            use std::io::Write as _;
            let bodies = ["192.0.2.7\n", "{\"ip\": \"192.0.2.7\"}", "{\"origin\": \"2001:db8::1\"}"];
            let body = bodies[asked.fetch_add(1, Ordering::SeqCst).min(2)];
            drop(write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        });
        let mut stage = stage(&[a], &[a, service.port], &public(service.port));
        for (address, changes) in [("192.0.2.7", 0.0), ("192.0.2.7", 0.0), ("2001:db8::1", 1.0)] {
            let polled = stage.poll(&[PUBLIC_ADDRESS]).await;
            assert_eq!(polled.labelled("internet_public_address_info"), [(format!("address={address}"), 1.0)]);
            assert_eq!(polled.value("internet_public_address_changes_total"), Some(changes));
            assert_eq!(polled.samples.len(), 2, "the targets were not due");
        }
        let polled = stage.poll(&[TARGETS]).await;
        assert_eq!((polled.value("internet_up"), service.visits.load(Ordering::SeqCst)), (Some(1.0), 3));
    }

    #[tokio::test]
    async fn a_service_that_says_something_else_is_a_gap_of_the_address_alone() {
        let (_listener, a) = listener();
        for (said, detail) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(), "neither an address"),
            ("HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n".to_owned(), "HTTP 429"),
            (format!("HTTP/1.1 200 OK\r\n\r\n{}", "1".repeat(BODY_BYTES_MAX + 1)), "a body of more than"),
        ] {
            let service = stage::saying(said);
            let polled = stage(&[a], &[a, service.port], &public(service.port)).poll_all().await;
            assert_eq!(polled.value("internet_up"), Some(1.0));
            let (metric, why) = &polled.missing[0];
            assert!(metric == "public_address" && why.detail.contains(detail), "{why}");
        }
    }

    #[test]
    fn options_that_are_wrong_are_named() {
        let metric = |rest: &str| format!("targets = [\"a:1\"]\n[[device.metric]]\n{rest}");
        for (options, said) in [
            (String::new(), "device.it: missing field `targets`"),
            ("targets = []".into(), "device.it.targets: 0 targets"),
            ("targets = [\"a\"]".into(), "device.it.targets: `a` is not host:port"),
            ("targets = [\"a:1\", \"a:1\"]".into(), "device.it.targets: `a:1` stands twice"),
            (metric("name = \"x\""), "device.it.metric.x.name: the one metric"),
            (metric("name = \"public_address\""), "device.it.metric.public_address: missing field `url`"),
            (metric("name = \"public_address\"\nurl = \"ftp://x\""), "device.it.metric.public_address.url: "),
        ] {
            let problem = problem(&format!("collector = \"internet\"\n{options}"));
            assert!(problem.starts_with(said), "{options}: {problem}");
        }
    }
}
