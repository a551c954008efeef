//! What every probe of the network has: a limit of its own, a stopwatch, and the two metrics that
//! blackbox_exporter gave names to.
//!
//! A probe that fails is an answer (`probe_success` 0), so it has to end before the frame around it gives up.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use satellite_shared::gap::Reason;
use tokio::net::TcpStream;
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

    /// What is left of a limit that began with it; nothing where that is over.
    pub(crate) fn left(self, limit: Duration) -> Duration {
        limit.saturating_sub(self.0.elapsed())
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
        Err(_) => Err(Failure::new(Reason::Timeout, format!("no complete answer within {}", spelled(limit)))),
    }
}

/// As people write it, in whole milliseconds.
fn spelled(duration: Duration) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(0)))
}

/// A connection to the first of a device's addresses that takes one, and which that is.
///
/// One after the other, each with its share of what is left: an address that nobody answers at any more, as the old one
/// that a name still has, leaves time for the others.
pub(crate) async fn connect(addresses: &[SocketAddr], limit: Duration) -> Result<(SocketAddr, TcpStream), Failure> {
    let end = Instant::now() + limit;
    let mut failure = Failure::new(Reason::Unreachable, "the name has no address");
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for &address in addresses {
        let share = end.saturating_duration_since(Instant::now()) / left;
        left -= 1;
        failure = match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((address, stream)),
            Ok(Err(error)) => failure_of_io(&error),
            Err(_) => Failure::new(Reason::Timeout, format!("no connection within {}", spelled(share))),
        };
    }
    Err(failure)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn an_address_that_swallows_what_is_sent_leaves_time_for_the_next() {
        // A listener whose queue is full drops who comes, as does a host that is gone.
        let full = TcpSocket::new_v4().unwrap();
        full.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let full = full.listen(0).unwrap();
        let gone = full.local_addr().unwrap();
        let _first = std::net::TcpStream::connect(gone).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let limit = Duration::from_secs(3);
        let (used, _) = within(limit, connect(&[gone, gone, there], limit)).await.unwrap();
        assert_eq!(used, there);
        let failure = connect(&[there, gone][1..], Duration::from_millis(50)).await.unwrap_err();
        assert!(failure.reason == Reason::Timeout && failure.detail.starts_with("no connection within "), "{failure}");
        drop(listener);
        assert_eq!(connect(&[there], limit).await.unwrap_err().reason, Reason::Refused);
        assert_eq!(connect(&[], limit).await.unwrap_err().reason, Reason::Unreachable);
    }
}
