//! How satellites get their certificates: the first one with a lease, the next ones with the one before.

use satellite_shared::id::SatelliteId;
use satellite_shared::wire::to_satellite::Certificate;

use crate::authority::{Authority, AuthorityError};
use crate::registry::{Registry, RegistryError};

/// Why a satellite does not get a certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The request is not one, or it can't be signed.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It may not have one, or that can't be told now.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Issues the next certificate of a satellite that has proven who it is.
///
/// # Errors
/// When the request is not one that is taken, the satellite is revoked, or the registry does not answer.
pub async fn renew(
    registry: &Registry,
    authority: &Authority,
    satellite: &SatelliteId,
    csr_pem: &str,
    now_ms: i64,
) -> Result<Certificate, RenewError> {
    let issued = authority.issue_client(satellite, csr_pem, now_ms)?;
    let generation = registry.certificate_issued(satellite, &issued, now_ms).await?;
    Ok(Certificate {
        chain: issued.chain,
        ca_bundle: authority.ca_bundle().to_owned(),
        generation,
        not_after_ms: issued.not_after_ms,
        renew_after_ms: issued.renew_after_ms,
    })
}
