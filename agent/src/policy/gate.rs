//! The only way to an address.
//!
//! A host is resolved once, every address it has is asked of the policy, and what passes is what a collector connects
//! to: there is no second look-up that could answer otherwise. IPv4 in the clothes of IPv6 is handed out as IPv4, for
//! else the packet would go to whatever tunnel or translator the default route leads to. Names are looked up on a few threads at most, so that a
//! resolver that hangs holds up the devices that have names and nobody else.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use satellite_shared::clock::Clock;
use satellite_shared::gap::Reason;
use tokio::sync::Semaphore;

use super::address;
use super::traffic::{Pace, Targets};
use super::{Policy, Protocol, Refusal};
use crate::collector::Failure;

/// How long a name may take to resolve.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Names that are looked up at the same time: each holds a thread.
const LOOKUPS_MAX: usize = 8;
/// Addresses of one name that are looked at.
const ADDRESSES_MAX: usize = 16;
/// A host name in full.
const HOST_BYTES_MAX: usize = 253;

/// The only way to an address: resolves, checks every address against the policy, hands out those that pass.
pub struct Gate {
    policy: Policy,
    clock: Arc<dyn Clock>,
    traffic: Mutex<Traffic>,
    lookups: Arc<Semaphore>,
}

struct Traffic {
    pace: Pace,
    targets: Targets,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Gate {
    /// The gate of a policy.
    #[must_use]
    pub fn new(policy: Policy, clock: Arc<dyn Clock>) -> Self {
        let traffic = Traffic {
            pace: Pace::new(policy.requests_per_second_max()),
            targets: Targets::new(policy.new_targets_per_hour_max()),
        };
        Self { policy, clock, traffic: Mutex::new(traffic), lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// The rules it keeps.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a Unix socket of this host may be read.
    ///
    /// # Errors
    /// `policy`, with the line that would allow it.
    pub fn socket(&self, path: &Path) -> Result<(), Failure> {
        self.policy.permits_socket(path).map_err(|refusal| refused(&refusal))
    }

    /// Whether age and space of what is here may be looked at.
    ///
    /// # Errors
    /// `policy`, with the line that would allow it.
    pub fn path(&self, path: &Path) -> Result<(), Failure> {
        self.policy.permits_path(path).map_err(|refusal| refused(&refusal))
    }

    /// Addresses of `host` that may be spoken to, now, once. Waits up to three seconds where too much is sent.
    ///
    /// # Errors
    /// `unreachable` where the name does not resolve, `policy` where every address is outside the rules or too much
    /// is sent; the detail names the line of the policy.
    pub async fn resolve(&self, protocol: Protocol, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        self.policy.permits_protocol(protocol).map_err(|refusal| refused(&refusal))?;
        let host = Host::parse(host).map_err(|detail| Failure::new(Reason::Policy, detail))?;
        let ips = match &host {
            Host::Address(ip) => {
                self.policy.permits(protocol, *ip, port).map_err(|refusal| refused(&refusal))?;
                self.wait_for_turn().await?;
                vec![*ip]
            }
            Host::Name(name) => {
                self.wait_for_turn().await?;
                self.lookup(name.clone()).await?
            }
        };
        self.pick(protocol, &host, port, &ips)
    }

    fn pick(&self, protocol: Protocol, host: &Host, port: u16, ips: &[IpAddr]) -> Result<Vec<SocketAddr>, Failure> {
        let mut refusal = None;
        let mut addresses = Vec::with_capacity(ips.len());
        for &ip in ips {
            let to = SocketAddr::new(address::effective(ip), port);
            match self.policy.permits(protocol, ip, port) {
                Ok(()) if !addresses.contains(&to) => addresses.push(to),
                Ok(()) => {}
                Err(why) => refusal = refusal.or(Some(why)),
            }
        }
        if addresses.is_empty() {
            let said = refusal.map_or_else(|| "it has no address".to_owned(), |why| why.to_string());
            return Err(Failure::new(Reason::Policy, format!("{host}: {said}")));
        }
        let now_ms = self.clock.now().mono_ms;
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.retain(|to| traffic.targets.admit(to.ip(), to.port(), now_ms));
        if addresses.is_empty() {
            let max = self.policy.new_targets_per_hour_max();
            let detail = format!(
                "{host}: {max} new targets within an hour; raise `new_targets_per_hour_max` in policy.toml if that is meant"
            );
            return Err(Failure::new(Reason::Policy, detail));
        }
        Ok(addresses)
    }

    async fn wait_for_turn(&self) -> Result<(), Failure> {
        let now_ms = self.clock.now().mono_ms;
        let turn = self.traffic.lock().unwrap_or_else(PoisonError::into_inner).pace.take(now_ms);
        let Some(wait_ms) = turn else {
            let max = self.policy.requests_per_second_max();
            let detail = format!(
                "more than {max} requests a second for over three seconds: poll less often, or raise `requests_per_second_max` in policy.toml"
            );
            return Err(Failure::new(Reason::Policy, detail));
        };
        if wait_ms > 0 {
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
        Ok(())
    }

    async fn lookup(&self, name: String) -> Result<Vec<IpAddr>, Failure> {
        let unreachable = |detail: String| Failure::new(Reason::Unreachable, detail);
        let asked = name.clone();
        let lookup = async {
            // The permit goes with the thread: a look-up that is given up still holds it until it ends.
            let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(|error| error.to_string())?;
            let work = tokio::task::spawn_blocking(move || {
                let found = (asked.as_str(), 0)
                    .to_socket_addrs()
                    .map(|all| all.take(ADDRESSES_MAX).map(|address| address.ip()).collect::<Vec<IpAddr>>());
                drop(permit);
                found
            });
            work.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
            Ok(Ok(ips)) => Ok(ips),
            Ok(Err(error)) => Err(unreachable(format!("{name} does not resolve: {error}"))),
            Err(_) => {
                Err(unreachable(format!("{name} does not resolve: no answer within {} s", LOOKUP_TIMEOUT.as_secs())))
            }
        }
    }
}

fn refused(refusal: &Refusal) -> Failure {
    Failure::new(Reason::Policy, refusal.to_string())
}

/// Whether a text can name a host at all; what it resolves to is asked when it is polled.
///
/// # Errors
/// Says what would be right.
pub fn check_host(text: &str) -> Result<(), String> {
    Host::parse(text).map(drop)
}

/// A host as a device's configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl Host {
    /// An address as the standard library reads it, or a DNS name. What C's libraries would also take for an address
    /// (`0177.1`, `0x7f000001`, `2130706433`, `fe80::1%eth0`) is neither.
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Address(ip));
        }
        let shown = || text.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
        let name = text.strip_suffix('.').unwrap_or(text);
        let letters = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
        };
        if name.len() > HOST_BYTES_MAX || !name.split('.').all(letters) {
            return Err(format!("`{}` is neither an IP address nor a host name", shown()));
        }
        let last = name.rsplit('.').next().unwrap_or(name);
        let hex = last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
        if hex || last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("`{}` is an unusual spelling of an address: write it as 192.168.1.9", shown()));
        }
        Ok(Self::Name(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::ManualClock;

    use super::*;

    fn gate(policy: &str) -> Gate {
        Gate::new(Policy::parse(policy).unwrap(), Arc::new(ManualClock::new(0, 0)))
    }

    async fn refusal(gate: &Gate, host: &str, port: u16) -> String {
        let failure = gate.resolve(Protocol::Tcp, host, port).await.unwrap_err();
        assert_eq!(failure.reason, Reason::Policy, "{host}");
        failure.detail
    }

    #[tokio::test]
    async fn an_address_inside_the_rules_is_handed_out_as_it_is() {
        let addresses = gate("").resolve(Protocol::Tcp, "192.168.1.9", 80).await.unwrap();
        assert_eq!(addresses, ["192.168.1.9:80".parse().unwrap()]);
    }

    #[tokio::test]
    async fn ipv4_in_the_clothes_of_ipv6_is_handed_out_as_ipv4() {
        for text in
            ["::ffff:192.168.1.9", "::ffff:0:192.168.1.9", "::192.168.1.9", "64:ff9b::192.168.1.9", "2002:c0a8:109::1"]
        {
            let addresses = gate("").resolve(Protocol::Tcp, text, 80).await.unwrap();
            assert_eq!(addresses, ["192.168.1.9:80".parse().unwrap()], "{text}");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_the_address_and_the_line_to_add() {
        let said = refusal(&gate(""), "8.8.8.8", 53).await;
        assert!(said.contains("8.8.8.8") && said.contains("add \"8.8.8.8/32\" to `networks`"), "{said}");
        let said = refusal(&gate(""), "localhost", 9100).await;
        assert!(said.starts_with("localhost: ") && said.contains("add 9100 to `loopback_ports`"), "{said}");
    }

    #[tokio::test]
    async fn unusual_spellings_of_addresses_are_no_hosts() {
        let open = gate("networks = [\"0.0.0.0/0\", \"::/0\"]\nloopback_ports = [80]");
        for text in [
            "2130706433",
            "0x7f000001",
            "0X7F.1",
            "127.1",
            "0177.0.0.1",
            "127.0.0.0x1",
            "127.0.0.1.",
            "1.2.3",
            "0",
            "192.168.1.9.",
            "foo.0x1",
            "foo.1",
        ] {
            assert!(refusal(&open, text, 80).await.contains("unusual spelling"), "{text}");
        }
        for text in
            ["", ".", "a..b", "fe80::1%lo", "[::1]", "a b", "127.0.0.1 ", "-a", "a/b", "a:80", "user@a", "ä.de", "a\0"]
        {
            assert!(refusal(&open, text, 80).await.contains("neither"), "{text}");
        }
        assert!(refusal(&open, &"a.".repeat(200), 80).await.contains("neither"));
    }

    #[tokio::test]
    async fn a_name_that_resolves_into_loopback_passes_only_where_the_port_is_listed() {
        let gate = gate("loopback_ports = [9100]");
        let addresses = gate.resolve(Protocol::Tcp, "localhost", 9100).await.unwrap();
        assert!(addresses.iter().all(|a| a.ip().is_loopback() && a.port() == 9100) && !addresses.is_empty());
        assert!(gate.resolve(Protocol::Tcp, "localhost", 9101).await.is_err());
    }

    #[tokio::test]
    async fn of_a_names_addresses_only_those_inside_the_rules_are_left() {
        let gate = gate("");
        let ips = ["8.8.8.8", "192.168.1.9", "169.254.169.254", "::ffff:192.168.1.9", "fd00::7"];
        let ips: Vec<IpAddr> = ips.iter().map(|text| text.parse().unwrap()).collect();
        let left = gate.pick(Protocol::Http, &Host::Name("nas.lan".into()), 80, &ips).unwrap();
        assert_eq!(left, ["192.168.1.9:80".parse().unwrap(), "[fd00::7]:80".parse().unwrap()]);
        let none = gate.pick(Protocol::Http, &Host::Name("nas.lan".into()), 80, &ips[..1]).unwrap_err();
        assert!(none.detail.starts_with("nas.lan: 8.8.8.8 "), "{none}");
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_unreachable() {
        let failure = gate("").resolve(Protocol::Ping, "no-such-host.invalid", 0).await.unwrap_err();
        assert_eq!(failure.reason, Reason::Unreachable);
        assert!(failure.detail.contains("no-such-host.invalid does not resolve"), "{failure}");
    }

    #[tokio::test]
    async fn what_would_wait_too_long_is_refused_with_what_to_do() {
        let gate = gate("requests_per_second_max = 1");
        while gate.traffic.lock().unwrap().pace.take(0).is_some() {}
        assert!(refusal(&gate, "10.0.0.1", 80).await.contains("requests_per_second_max"));
        assert!(refusal(&gate, "8.8.8.8", 80).await.contains("networks"), "a forbidden address asks for no turn");
    }

    #[tokio::test]
    async fn a_sweep_over_new_targets_is_stopped_with_what_to_do() {
        let gate = gate("new_targets_per_hour_max = 3");
        for port in 1..=3 {
            gate.resolve(Protocol::Tcp, "10.0.0.1", port).await.unwrap();
        }
        assert!(refusal(&gate, "10.0.0.1", 4).await.contains("new_targets_per_hour_max"));
        gate.resolve(Protocol::Tcp, "10.0.0.1", 1).await.unwrap();
    }
}
