//! `tcp`: whether something accepts connections at a port, and how long that takes.
//!
//! The connection is opened and closed; nothing is sent. Of several addresses each is tried in turn, with its share of the
//! time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use serde::Deserialize;

use super::address::Address;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol};

/// `collector = "tcp"`.
pub const KIND: CollectorKind = CollectorKind { name: "tcp", build };

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `nas.lan:22` or `[fd00::7]:22`.
    address: String,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { address } = options::read(&device.options, &path)?;
    let address = Address::parse(&address, None, &format!("{path}.address"))?;
    let gate = Arc::clone(&context.gate);
    let tcp = Tcp { gate, address, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(tcp), metrics: whole(device) })
}

struct Tcp {
    gate: Arc<Gate>,
    address: Address,
    limit: Duration,
}

/// How far a probe came.
#[derive(Default)]
struct Seen {
    lookup_seconds: f64,
    used: Option<SocketAddr>,
}

impl Tcp {
    async fn probe(&self, readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut seen = Seen::default();
        let outcome = probe::within(self.limit, self.connect(&mut seen)).await;
        let seconds = watch.seconds();
        match outcome {
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => tracing::debug!(%failure, "no connection"),
            Ok(()) => {}
        }
        let success = seen.used.is_some();
        probe::report(readings, 0, success, seconds);
        probe::report_address(readings, 0, seen.lookup_seconds, seen.used);
        Ok(())
    }

    async fn connect(&self, seen: &mut Seen) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let addresses = self.gate.resolve(Protocol::Tcp, &self.address.host, self.address.port).await?;
        seen.lookup_seconds = watch.seconds();
        let (used, _) = probe::connect(&addresses, self.limit).await?;
        seen.used = Some(used);
        Ok(())
    }
}

impl Collector for Tcp {
    fn poll<'a>(&'a mut self, _due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(readings))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use satellite_shared::gap::Reason;

    use super::super::stage::{self, Stage};

    #[tokio::test]
    async fn a_port_that_listens_succeeds_and_one_that_does_not_is_an_answer_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let device = format!("collector = \"tcp\"\naddress = \"127.0.0.1:{port}\"");
        let mut stage = Stage::new(&device, &[port]).unwrap();
        let polled = stage.poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.value("probe_ip_protocol")), (Some(1.0), Some(4.0)));
        assert!(polled.value("probe_duration_seconds").unwrap() < 5.0);
        drop(listener);
        let polled = stage.poll_all().await;
        assert_eq!((polled.value("probe_success"), polled.missing.len()), (Some(0.0), 0));
    }

    #[tokio::test]
    async fn a_target_outside_the_policy_is_a_gap_and_nothing_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let device = format!("collector = \"tcp\"\naddress = \"localhost:{port}\"");
        let failure = Stage::new(&device, &[]).unwrap().poll_all().await.failure.unwrap();
        assert_eq!(failure.reason, Reason::Policy);
        assert!(failure.detail.contains("loopback_ports"), "{failure}");
        assert!(listener.accept().is_err(), "nobody came");
    }

    #[test]
    fn an_address_that_is_none_is_named() {
        for address in ["nas", "nas:", ":22", "nas:0", "nas:65536", "nas:+2", "fd00::7:22", "[fd00::7:22", "[]:22"] {
            let problem = stage::problem(&format!("collector = \"tcp\"\naddress = \"{address}\""));
            assert!(problem.starts_with("device.it.address: ") && problem.contains("host:port"), "{problem}");
        }
        assert!(stage::problem("collector = \"tcp\"\naddress = \"2130706433:22\"").contains("unusual spelling"));
        let problem = stage::problem("collector = \"tcp\"\naddress = \"a:1\"\n[[device.metric]]\nname = \"x\"");
        assert!(problem.starts_with("device.it.metric: "), "{problem}");
        let problem = stage::problem("collector = \"tcp\"\naddress = \"a:1\"\nexpect = \"x\"");
        assert!(problem.starts_with("device.it.expect: unknown field"), "{problem}");
    }
}
