//! What may be polled: the house's own rules, root-owned, that no relay can widen.

use std::net::SocketAddr;

use crate::collector::Failure;

/// What a collector wants to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP or HTTPS requests.
    Http,
    /// ICMP echo.
    Ping,
    /// A TCP connection that is opened and closed.
    Tcp,
}

/// The rules, loaded.
#[derive(Debug, Default)]
pub struct Policy {}

/// The only way to an address: resolves, checks every address against the policy, hands out those that pass.
#[derive(Debug, Default)]
pub struct Gate {}

impl Gate {
    /// The gate of a policy.
    #[must_use]
    pub fn new(_policy: Policy) -> Self {
        Self {}
    }

    /// Addresses of `host` that may be spoken to.
    ///
    /// # Errors
    /// `unreachable` where the name does not resolve, `policy` where an address is outside the rules.
    #[expect(clippy::unused_async, reason = "to be written")]
    pub async fn resolve(&self, _protocol: Protocol, _host: &str, _port: u16) -> Result<Vec<SocketAddr>, Failure> {
        Ok(vec![])
    }
}
