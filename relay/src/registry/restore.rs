//! What a registry that was copied back from a backup must be told: that it was, and what happened since.
//!
//! A lease that nobody has used may have been used or revoked after the backup was made: all such leases end. A
//! certificate that this relay's own authority has signed and that the registry does not know was issued after the
//! backup: its satellite may go on with it, or each that renewed since would need a new lease.

use std::collections::BTreeSet;

use satellite_shared::id::SatelliteId;

use super::{Registry, RegistryError, certificates, parsed};
use crate::authority::Issued;

/// A certificate that TLS has verified and the registry does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// Whose, as the authority wrote it.
    pub satellite: SatelliteId,
    /// From when on it is good.
    pub not_before_ms: i64,
    /// The certificate.
    pub issued: Issued,
}

impl Registry {
    /// When it was found to have been copied back from a backup.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn restored_at_ms(&self) -> Result<Option<i64>, RegistryError> {
        Ok(sqlx::query_scalar("SELECT restored_at_ms FROM relay WHERE id = 1").fetch_one(self.pool()).await?)
    }

    /// Notes that it was, and ends the leases that nobody has used; says how many.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn note_restored(&self, now_ms: i64) -> Result<u64, RegistryError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE relay SET restored_at_ms = $1 WHERE id = 1")
            .bind(now_ms)
            .execute(&mut *transaction)
            .await?;
        let ended =
            sqlx::query("UPDATE leases SET revoked_at_ms = $1 WHERE used_at_ms IS NULL AND revoked_at_ms IS NULL")
                .bind(now_ms)
                .execute(&mut *transaction)
                .await?;
        transaction.commit().await?;
        Ok(ended.rows_affected())
    }

    /// The names of the batches that it knows; those that ended more than a week ago are forgotten.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn batches(&self) -> Result<BTreeSet<String>, RegistryError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM batches").fetch_all(self.pool()).await?;
        Ok(ids.into_iter().collect())
    }

    /// The satellites that may not come in any more.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revoked(&self) -> Result<BTreeSet<SatelliteId>, RegistryError> {
        let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM satellites WHERE revoked_at_ms IS NOT NULL")
            .fetch_all(self.pool())
            .await?;
        ids.iter().map(|id| parsed("satellite", id)).collect()
    }

    /// Takes up a certificate that was issued between the backup and its return, if its satellite may still come in.
    /// Says whether it was.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn adopt_certificate(&self, unknown: &Unknown, now_ms: i64) -> Result<bool, RegistryError> {
        let issued_before = self.restored_at_ms().await?.is_some_and(|restored| unknown.not_before_ms <= restored);
        let known = self.satellite(&unknown.satellite).await?;
        if !issued_before || known.is_none_or(|satellite| satellite.revoked_at_ms.is_some()) {
            return Ok(false);
        }
        let mut transaction = self.begin().await?;
        certificates::insert(&mut transaction, &unknown.satellite, &unknown.issued, now_ms).await?;
        transaction.commit().await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::id::LeaseId;

    use super::*;
    use crate::registry::NewLease;

    fn lease(bits: u8) -> NewLease {
        NewLease {
            id: LeaseId::from_bits([bits; 10]),
            satellite: SatelliteId::from_bits([bits; 10]),
            name: format!("satellite {bits}"),
            token_sha256: String::new(),
            relay_url: "https://localhost:8443".into(),
            now_ms: 1_000,
            expires_at_ms: i64::MAX,
            replace: false,
        }
    }

    fn unknown(bits: u8, not_before_ms: i64) -> Unknown {
        let issued = Issued {
            chain: "chain".into(),
            serial_hex: format!("{bits:032x}"),
            spki_sha256_hex: "key".into(),
            not_after_ms: i64::MAX,
            renew_after_ms: i64::MAX,
        };
        Unknown { satellite: SatelliteId::from_bits([bits; 10]), not_before_ms, issued }
    }

    #[tokio::test]
    async fn leases_that_nobody_used_end_with_the_restoration_and_later_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        registry.create_lease(&lease(1)).await.unwrap();
        assert_eq!(registry.restored_at_ms().await.unwrap(), None);
        assert_eq!(registry.note_restored(2_000).await.unwrap(), 1);
        registry.create_lease(&lease(2)).await.unwrap();
        assert_eq!(registry.restored_at_ms().await.unwrap(), Some(2_000));
        let ended = |bits| LeaseId::from_bits([bits; 10]);
        assert_eq!(registry.lease(&ended(1)).await.unwrap().unwrap().revoked_at_ms, Some(2_000));
        assert_eq!(registry.lease(&ended(2)).await.unwrap().unwrap().revoked_at_ms, None);
    }

    #[tokio::test]
    async fn only_what_was_signed_before_the_restoration_for_who_may_come_in_is_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        for bits in [1, 2] {
            registry.create_lease(&lease(bits)).await.unwrap();
        }
        registry.revoke_satellite(&SatelliteId::from_bits([2; 10]), 1_500).await.unwrap();
        assert!(!registry.adopt_certificate(&unknown(1, 1_800), 2_100).await.unwrap(), "it was never restored");
        registry.note_restored(2_000).await.unwrap();
        assert!(!registry.adopt_certificate(&unknown(1, 2_001), 2_100).await.unwrap(), "issued after it");
        assert!(!registry.adopt_certificate(&unknown(2, 1_800), 2_100).await.unwrap(), "revoked");
        assert!(!registry.adopt_certificate(&unknown(3, 1_800), 2_100).await.unwrap(), "unknown");
        assert!(registry.adopt_certificate(&unknown(1, 1_800), 2_100).await.unwrap());
        let row = registry.certificate(&unknown(1, 0).issued.serial_hex, "key").await.unwrap().unwrap();
        assert!(row.in_force(2_100) && row.satellite == SatelliteId::from_bits([1; 10]));
        assert_eq!(registry.revoked().await.unwrap().len(), 1);
    }
}
