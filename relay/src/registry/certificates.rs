//! The client certificates that were issued, and which of them are in force.
//!
//! A new one is *pending* until its holder uses it; then it is *current*, and the one before stays good for an overlap:
//! a crash between issuing and keeping leaves the old one valid, and a copy of the old one soon is not. Several may be
//! pending: a session that lasts for months gets one after the other and uses none, and the last may be lost on its
//! way.

use satellite_shared::id::SatelliteId;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Registry, RegistryError, parsed, signed, unsigned};
use crate::authority::Issued;

/// How long the certificate before the current one stays good.
pub const OVERLAP_MS: i64 = 10 * 60 * 1000;

/// More than this an hour is a satellite that has lost its mind.
const ISSUED_PER_HOUR_MAX: i64 = 240;

/// Certificates that may be pending at once; the oldest end first.
const PENDING_MAX: i64 = 16;

/// What an issued certificate is to its satellite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateState {
    /// Issued and not used.
    PendingUse,
    /// The last one used.
    Current,
    /// The one before, good for a while.
    Overlap,
    /// Replaced or revoked.
    Revoked,
}

impl CertificateState {
    fn as_str(self) -> &'static str {
        match self {
            Self::PendingUse => "pending",
            Self::Current => "current",
            Self::Overlap => "overlap",
            Self::Revoked => "revoked",
        }
    }

    fn parse(text: &str) -> Result<Self, RegistryError> {
        [Self::PendingUse, Self::Current, Self::Overlap, Self::Revoked]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| RegistryError::content("certificate state", text))
    }
}

/// A certificate as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRow {
    /// Whose.
    pub satellite: SatelliteId,
    /// Which of that satellite's.
    pub generation: u64,
    /// What it is to it.
    pub state: CertificateState,
    /// When it ends.
    pub not_after_ms: i64,
    /// When to ask for the next.
    pub renew_after_ms: i64,
    /// How long it stays good beside its successor.
    pub overlap_until_ms: Option<i64>,
    /// 32 hexadecimal digits.
    pub serial_hex: String,
    /// SHA-256 of its public key.
    pub spki_sha256_hex: String,
    /// Leaf first, PEM.
    pub chain: String,
}

impl CertificateRow {
    /// Whether its holder may come in; its end is for TLS to see.
    #[must_use]
    pub fn in_force(&self, now_ms: i64) -> bool {
        match self.state {
            CertificateState::PendingUse | CertificateState::Current => true,
            CertificateState::Overlap => self.overlap_until_ms.is_some_and(|until| now_ms < until),
            CertificateState::Revoked => false,
        }
    }
}

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT satellite, generation, state, not_after_ms, renew_after_ms, overlap_until_ms, serial, \
             spki_sha256, chain FROM certificates ",
            $tail
        )
    };
}

impl Registry {
    /// The certificate with this serial number and this key, if it was issued here.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn certificate(
        &self,
        serial_hex: &str,
        spki_sha256_hex: &str,
    ) -> Result<Option<CertificateRow>, RegistryError> {
        let row = sqlx::query(select!("WHERE serial = $1 AND spki_sha256 = $2"))
            .bind(serial_hex)
            .bind(spki_sha256_hex)
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// A satellite's certificate by its generation.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn certificate_of(
        &self,
        satellite: &SatelliteId,
        generation: u64,
    ) -> Result<Option<CertificateRow>, RegistryError> {
        let row = sqlx::query(select!("WHERE satellite = $1 AND generation = $2"))
            .bind(satellite.as_str())
            .bind(i64::try_from(generation).unwrap_or(i64::MAX))
            .fetch_optional(self.pool())
            .await?;
        row.as_ref().map(read).transpose()
    }

    /// All that were issued to a satellite, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn certificates(&self, satellite: &SatelliteId) -> Result<Vec<CertificateRow>, RegistryError> {
        let rows = sqlx::query(select!("WHERE satellite = $1 ORDER BY generation DESC"))
            .bind(satellite.as_str())
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(read).collect()
    }

    /// A satellite has authenticated with this certificate: a pending one becomes current, the one before ends after
    /// the overlap, and what else is pending and older is replaced.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn certificate_used(
        &self,
        satellite: &SatelliteId,
        generation: u64,
        now_ms: i64,
    ) -> Result<(), RegistryError> {
        let generation = signed("generation", generation)?;
        let mut transaction = self.begin().await?;
        let activated = sqlx::query(
            "UPDATE certificates SET state = 'current' WHERE satellite = $1 AND generation = $2 AND state = 'pending'",
        )
        .bind(satellite.as_str())
        .bind(generation)
        .execute(&mut *transaction)
        .await?;
        if activated.rows_affected() == 1 {
            sqlx::query(
                "UPDATE certificates SET \
                 state = CASE WHEN state = 'current' THEN 'overlap' ELSE 'revoked' END, \
                 overlap_until_ms = CASE WHEN state = 'current' THEN $3 ELSE overlap_until_ms END \
                 WHERE satellite = $1 AND generation < $2 AND state <> 'revoked'",
            )
            .bind(satellite.as_str())
            .bind(generation)
            .bind(now_ms.saturating_add(OVERLAP_MS))
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Keeps a certificate that was issued to a satellite that has one. Gives its generation.
    ///
    /// # Errors
    /// When the satellite is revoked or unknown or has had too many, and when the database does not answer.
    pub async fn certificate_issued(
        &self,
        satellite: &SatelliteId,
        certificate: &Issued,
        now_ms: i64,
    ) -> Result<u64, RegistryError> {
        let mut transaction = self.begin().await?;
        let recent: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM certificates WHERE satellite = $1 AND issued_at_ms > $2")
                .bind(satellite.as_str())
                .bind(now_ms.saturating_sub(3_600_000))
                .fetch_one(&mut *transaction)
                .await?;
        if recent >= ISSUED_PER_HOUR_MAX {
            return Err(RegistryError::TooManyCertificates);
        }
        // Nobody asks for them any more: TLS refuses what has ended.
        sqlx::query("DELETE FROM certificates WHERE satellite = $1 AND state = 'revoked' AND not_after_ms < $2")
            .bind(satellite.as_str())
            .bind(now_ms.saturating_sub(3_600_000))
            .execute(&mut *transaction)
            .await?;
        let generation = insert(&mut transaction, satellite, certificate, now_ms).await?;
        sqlx::query(
            "UPDATE certificates SET state = 'revoked' \
             WHERE satellite = $1 AND state = 'pending' AND generation <= $2",
        )
        .bind(satellite.as_str())
        .bind(signed("generation", generation)?.saturating_sub(PENDING_MAX))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(generation)
    }
}

/// Ends every certificate of a satellite.
pub(super) async fn end_all(transaction: &mut AnyConnection, satellite: &SatelliteId) -> Result<(), RegistryError> {
    sqlx::query("UPDATE certificates SET state = 'revoked' WHERE satellite = $1")
        .bind(satellite.as_str())
        .execute(transaction)
        .await?;
    Ok(())
}

/// Keeps a certificate as the next generation of a satellite that is not revoked.
pub(super) async fn insert(
    transaction: &mut AnyConnection,
    satellite: &SatelliteId,
    certificate: &Issued,
    now_ms: i64,
) -> Result<u64, RegistryError> {
    let counted = sqlx::query(
        "UPDATE satellites SET generation = generation + 1 WHERE id = $1 AND revoked_at_ms IS NULL RETURNING generation",
    )
    .bind(satellite.as_str())
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = counted else { return Err(RegistryError::NoSatellite(satellite.to_string())) };
    let generation: i64 = row.try_get(0)?;
    sqlx::query(
        "INSERT INTO certificates (serial, satellite, generation, spki_sha256, state, issued_at_ms, not_after_ms, \
         renew_after_ms, chain) VALUES ($1, $2, $3, $4, 'pending', $5, $6, $7, $8)",
    )
    .bind(&certificate.serial_hex)
    .bind(satellite.as_str())
    .bind(generation)
    .bind(&certificate.spki_sha256_hex)
    .bind(now_ms)
    .bind(certificate.not_after_ms)
    .bind(certificate.renew_after_ms)
    .bind(&certificate.chain)
    .execute(transaction)
    .await?;
    unsigned("generation", generation)
}

fn read(row: &AnyRow) -> Result<CertificateRow, RegistryError> {
    Ok(CertificateRow {
        satellite: parsed("satellite", row.try_get(0)?)?,
        generation: unsigned("generation", row.try_get(1)?)?,
        state: CertificateState::parse(row.try_get(2)?)?,
        not_after_ms: row.try_get(3)?,
        renew_after_ms: row.try_get(4)?,
        overlap_until_ms: row.try_get(5)?,
        serial_hex: row.try_get(6)?,
        spki_sha256_hex: row.try_get(7)?,
        chain: row.try_get(8)?,
    })
}
