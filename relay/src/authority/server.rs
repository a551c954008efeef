//! The relay's own certificate, for both doors, and what TLS does there.
//!
//! It is renewed while the relay runs: TLS asks for it at each handshake. Sessions are never resumed on the
//! satellites' door, as a resumed session skips the check of the client certificate; and TLS 1.3 only, without early
//! data.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use satellite_shared::clock::Clock;

use super::AuthorityError;

/// Which of the two doors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Web, REST and enrolment: the server is verified.
    Web,
    /// Satellites: both are.
    Satellites,
}

/// The names and addresses that the relay's certificate is for; what can't stand in one is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Those of this machine: `localhost`, its addresses, the host's name.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let mut names = Self::default();
        for name in ["localhost", "127.0.0.1", "::1"] {
            names.add(name);
        }
        if let Some(hostname) = hostname() {
            names.add(&hostname);
        }
        names
    }

    /// Adds a host's name or address, as it stands in a URL or without the brackets.
    pub fn add(&mut self, host: &str) {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let is_name = rustls_pki_types::DnsName::try_from(host.as_str()).is_ok();
        if is_name || host.parse::<IpAddr>().is_ok() {
            self.0.insert(host);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The machine's name, where it has one.
#[must_use]
pub fn hostname() -> Option<String> {
    let uname = rustix::system::uname();
    uname.nodename().to_str().ok().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The certificate of the moment.
#[derive(Debug, Default)]
pub(super) struct Resolver(RwLock<Option<Arc<CertifiedKey>>>);

impl Resolver {
    pub(super) fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
    }

    pub(super) fn get(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.get()
    }
}

/// Certificates end by the relay's clock, which a test can turn.
pub(super) struct ClockTime(pub(super) Arc<dyn Clock>);

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let ms = u64::try_from(self.0.now().wall_ms).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

/// What TLS does at a door.
pub(super) fn config(
    door: Door,
    provider: &Arc<CryptoProvider>,
    resolver: Arc<Resolver>,
    authority: &CertificateDer<'static>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, AuthorityError> {
    let tls = |error: rustls::Error| AuthorityError::Tls(error.to_string());
    let builder = ServerConfig::builder_with_details(Arc::clone(provider), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?;
    let builder = match door {
        Door::Web => builder.with_no_client_auth(),
        Door::Satellites => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.clone()).map_err(tls)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build()
                .map_err(|error| AuthorityError::Tls(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
