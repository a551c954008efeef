//! Many enrolled satellites of one relay: their identities are made in its registry, by the relay's own code, before
//! any clock runs. Their certificates serve the peers' doors too.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use satellite_agent::credential::key::Key;
use satellite_relay::authority::Authority;
use satellite_relay::data_dir::DataDir;
use satellite_relay::enrolment::{Enrolment, Limits, SessionUrl};
use satellite_relay::registry::{NewLease, Registry, sha256_hex};
use satellite_shared::clock::{Clock, SystemClock};
use satellite_shared::enrolment::EnrolRequest;
use satellite_shared::id::{LeaseId, SatelliteId};
use satellite_shared::secret::{Token, TokenKind};
use satellite_tests::rounds::Dice;

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub lease: LeaseId,
    pub token: Token,
    pub generation: u64,
    pub tls: Arc<ClientConfig>,
}

/// Enrols so many at the relay of this data directory.
///
/// # Errors
/// With what refused.
pub(crate) async fn enrol(data_dir: &Path, count: usize) -> Result<Vec<Member>> {
    let registry = Registry::open(data_dir).await?;
    let now_ms = SystemClock.now().wall_ms;
    let authority = Authority::load_or_create(&DataDir::open(data_dir)?, now_ms)?;
    let url = SessionUrl::Fixed("wss://localhost:1".into());
    let limits = Limits { refusal_after: std::time::Duration::ZERO, ..Limits::default() };
    let enrolment = Enrolment::new(registry.clone(), authority, Arc::new(SystemClock), url, &limits);
    let mut dice = Dice::new(now_ms.unsigned_abs());
    let mut members = Vec::with_capacity(count);
    for number in 0..count {
        members.push(member(&registry, &enrolment, &mut dice, number).await.context("enrolling")?);
    }
    Ok(members)
}

async fn member(registry: &Registry, enrolment: &Enrolment, dice: &mut Dice, number: usize) -> Result<Member> {
    let now_ms = SystemClock.now().wall_ms;
    let token = Token::from_bits(TokenKind::Lease, bits(dice));
    let lease = NewLease {
        id: LeaseId::from_bits(bits(dice)),
        satellite: SatelliteId::from_bits(bits(dice)),
        name: format!("crowd-{now_ms}-{number}"),
        token_sha256: sha256_hex(token.expose().as_bytes()),
        relay_url: "https://localhost:1".into(),
        now_ms,
        expires_at_ms: now_ms + 3_600_000,
        replace: true,
    };
    registry.create_lease(&lease).await?;
    let key = Key::generate()?;
    let request = EnrolRequest {
        lease: lease.id,
        token,
        csr: key.request()?,
        hostname: "crowd".into(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
    };
    let enrolled =
        enrolment.enrol(&request, [127, 0, 0, 1].into()).await.map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    Ok(Member {
        tls: client(&enrolled.ca_bundle, &enrolled.chain, key.der()?)?,
        lease: enrolled.lease,
        token: enrolled.token,
        generation: enrolled.generation,
    })
}

fn bits<const N: usize>(dice: &mut Dice) -> [u8; N] {
    std::array::from_fn(|_| dice.roll() as u8)
}

/// Never resumes: every handshake is a whole one.
fn client(ca_bundle: &str, chain: &str, key: PrivateKeyDer<'static>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_bundle.as_bytes()) {
        roots.add(certificate?)?;
    }
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}
