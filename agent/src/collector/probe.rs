//! What every probe of the network has: a limit of its own, a stopwatch, and the two metrics that
//! blackbox_exporter gave names to.
//!
//! A probe that fails is an answer (`probe_success` 0), so it has to end before the frame around it gives up.

use std::future::Future;
use std::time::Duration;

use satellite_shared::gap::Reason;
use tokio::time::Instant;

use super::{Failure, Family, Readings};

/// How much earlier than the device's timeout a probe ends itself.
const MARGIN_MAX: Duration = Duration::from_millis(100);

/// Measures how long something takes, finer than the clock of records, which counts milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start.
    pub(crate) fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// What is left of a device's timeout for the probe itself.
pub(crate) fn limit(timeout: Duration) -> Duration {
    timeout - MARGIN_MAX.min(timeout / 10)
}

/// Lets work take its time, up to the limit.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let limit =
                humantime::format_duration(Duration::from_millis(u64::try_from(limit.as_millis()).unwrap_or(0)));
            Err(Failure::new(Reason::Timeout, format!("no complete answer within {limit}")))
        }
    }
}

/// Whether a failure says nothing about the device: nothing was sent, so it is a gap and not a `probe_success` of 0.
pub(crate) fn was_not_tried(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::Policy | Reason::Unsupported)
}

/// Why a connection could not be made or kept, by the operating system's word.
pub(crate) fn failure_of_io(error: &std::io::Error) -> Failure {
    use std::io::ErrorKind as Io;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the standard library adds kinds; these say something of the device"
    )]
    let (reason, what) = match error.kind() {
        Io::ConnectionRefused => (Reason::Refused, "connection refused: nothing listens there"),
        Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe => {
            (Reason::Refused, "the device cut the connection")
        }
        Io::UnexpectedEof => (Reason::BadAnswer, "the answer ended too early"),
        Io::InvalidData | Io::InvalidInput => {
            return Failure::new(Reason::BadAnswer, format!("the answer breaks its protocol: {error}"));
        }
        Io::TimedOut => (Reason::Timeout, "the network gave up waiting"),
        Io::HostUnreachable => (Reason::Unreachable, "no route to the device"),
        Io::NetworkUnreachable | Io::AddrNotAvailable | Io::NetworkDown => {
            (Reason::Unreachable, "no route to the network")
        }
        Io::PermissionDenied => (Reason::Unreachable, "this host's firewall or routes forbid it"),
        _ => return Failure::new(Reason::Unreachable, error.to_string()),
    };
    Failure::new(reason, what)
}

/// Adds `probe_success` and `probe_duration_seconds`.
pub(crate) fn report(readings: &mut Readings, metric: usize, success: bool, seconds: f64) {
    readings.sample(metric, Family::gauge("probe_success", ""), &[], f64::from(u8::from(success)));
    readings.sample(metric, Family::gauge("probe_duration_seconds", "seconds"), &[], seconds);
}

/// Adds `probe_dns_lookup_time_seconds` and `probe_ip_protocol`; 0 where it did not come to an address.
pub(crate) fn report_address(readings: &mut Readings, metric: usize, seconds: f64, used: Option<std::net::SocketAddr>) {
    readings.sample(metric, Family::gauge("probe_dns_lookup_time_seconds", "seconds"), &[], seconds);
    let version = used.map_or(0.0, |address| if address.is_ipv4() { 4.0 } else { 6.0 });
    readings.sample(metric, Family::gauge("probe_ip_protocol", ""), &[], version);
}
