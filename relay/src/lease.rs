//! What a lease allows, decided without asking anybody.
//!
//! A lease enrols one satellite, once. The same key may ask again for a while: an answer that was lost on its way must
//! not cost the lease.

use std::time::Duration;

use satellite_shared::secret::Token;

use crate::registry::{LeaseRow, sha256_hex};

/// Wrong tokens within the window that end a lease.
pub const FAILURES_MAX: i64 = 10;
/// The window, an hour.
pub const FAILURES_WINDOW_MS: i64 = 3_600_000;
/// How long the key that a lease was used for gets the same answer again.
pub const AGAIN_MS: i64 = 10 * 60 * 1000;
/// How long a lease lasts where nobody says.
pub const TTL: Duration = Duration::from_secs(3_600);
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);

/// What a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The first: the lease is used by it.
    First,
    /// The same key asks for its answer again.
    Again,
}

/// Why a lease enrols nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// No such lease, or another token: which of them is not said.
    #[error(
        "this relay has no such lease, or the token is not its token: copy the whole join code, or make a new lease"
    )]
    Unknown,
    /// Another key has enrolled with it.
    #[error(
        "this lease was used before, and a lease enrols one satellite, once: make a new lease; if nobody of yours used \
         it, revoke the satellite that did (`satellite-relay satellite list`)"
    )]
    Used,
    /// Its time is up.
    #[error("this lease expired before it was used: make a new one on the relay (`--ttl 24h` is the longest)")]
    Expired,
    /// Revoked by an administrator, replaced by a newer one, or burnt by wrong tokens.
    #[error(
        "this lease was revoked, replaced by a newer one for the same satellite, or ended after too many wrong tokens: \
         make a new lease"
    )]
    Revoked,
}

impl LeaseRefusal {
    /// For programs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Unknown => "lease_unknown",
            Self::Used => "lease_used",
            Self::Expired => "lease_expired",
            Self::Revoked => "lease_revoked",
        }
    }
}

/// Where a lease stands, for lists.
#[must_use]
pub fn standing(lease: &LeaseRow, now_ms: i64) -> &'static str {
    if lease.revoked_at_ms.is_some() {
        "revoked"
    } else if lease.used_at_ms.is_some() {
        "used"
    } else if lease.expires_at_ms <= now_ms {
        "expired"
    } else {
        "open"
    }
}

/// Whether there is such a lease and this is its token; costs the same when there is none.
#[must_use]
pub fn knows(lease: Option<&LeaseRow>, token: &Token) -> bool {
    let given = sha256_hex(token.expose().as_bytes());
    let kept = lease.map_or(given.len(), |lease| lease.token_sha256.len());
    let nobody = "0".repeat(kept);
    let kept = lease.map_or(nobody.as_str(), |lease| lease.token_sha256.as_str());
    aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), kept.as_bytes()).is_ok() && lease.is_some()
}

/// What the holder of a lease's token gets for this key.
///
/// # Errors
/// Says why nothing.
pub fn judge(lease: &LeaseRow, spki_sha256_hex: &str, now_ms: i64) -> Result<Claimed, LeaseRefusal> {
    if lease.revoked_at_ms.is_some() {
        return Err(LeaseRefusal::Revoked);
    }
    if let Some(used_at_ms) = lease.used_at_ms {
        let same_key = lease.used_spki_sha256.as_deref() == Some(spki_sha256_hex);
        let soon = (0..AGAIN_MS).contains(&now_ms.saturating_sub(used_at_ms));
        return if same_key && soon { Ok(Claimed::Again) } else { Err(LeaseRefusal::Used) };
    }
    if lease.expires_at_ms <= now_ms {
        return Err(LeaseRefusal::Expired);
    }
    Ok(Claimed::First)
}

/// Reads how long a lease is to last.
///
/// # Errors
/// Says what it may be.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(ttl) if (TTL_MIN..=TTL_MAX).contains(&ttl) => Ok(ttl),
        Ok(_) | Err(_) => Err("a duration from 1s to 24h, such as 1h".into()),
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::id::{LeaseId, SatelliteId};
    use satellite_shared::secret::TokenKind;

    use super::*;

    fn token(bits: u8) -> Token {
        Token::from_bits(TokenKind::Lease, [bits; 32])
    }

    fn lease() -> LeaseRow {
        LeaseRow {
            id: LeaseId::from_bits([1; 10]),
            satellite: SatelliteId::from_bits([1; 10]),
            name: "nas".into(),
            token_sha256: sha256_hex(token(1).expose().as_bytes()),
            relay_url: "https://localhost".into(),
            created_at_ms: 0,
            expires_at_ms: 3_600_000,
            used_at_ms: None,
            used_spki_sha256: None,
            revoked_at_ms: None,
            failures: 0,
        }
    }

    fn used() -> LeaseRow {
        LeaseRow { used_at_ms: Some(1_000), used_spki_sha256: Some("key".into()), ..lease() }
    }

    #[test]
    fn an_open_lease_enrols_until_it_ends() {
        assert_eq!(judge(&lease(), "key", 3_599_999), Ok(Claimed::First));
        assert_eq!(judge(&lease(), "key", 3_600_000), Err(LeaseRefusal::Expired));
        assert_eq!(standing(&lease(), 3_600_000), "expired");
    }

    #[test]
    fn the_same_key_gets_its_answer_again_for_ten_minutes_even_after_the_lease_s_end() {
        let late = LeaseRow { used_at_ms: Some(3_599_000), used_spki_sha256: Some("key".into()), ..lease() };
        assert_eq!(judge(&late, "key", 3_700_000), Ok(Claimed::Again));
        assert_eq!(judge(&used(), "key", 1_000 + AGAIN_MS - 1), Ok(Claimed::Again));
        assert_eq!(judge(&used(), "key", 1_000 + AGAIN_MS), Err(LeaseRefusal::Used));
        assert_eq!(judge(&used(), "key", 0), Err(LeaseRefusal::Used), "the clock was set back");
    }

    #[test]
    fn another_key_never_gets_a_used_lease() {
        assert_eq!(judge(&used(), "other", 1_001), Err(LeaseRefusal::Used));
    }

    #[test]
    fn a_revoked_lease_enrols_nobody_not_even_its_own_key() {
        assert_eq!(judge(&LeaseRow { revoked_at_ms: Some(2_000), ..used() }, "key", 2_001), Err(LeaseRefusal::Revoked));
        assert_eq!(judge(&LeaseRow { revoked_at_ms: Some(2_000), ..lease() }, "key", 1), Err(LeaseRefusal::Revoked));
    }

    #[test]
    fn no_lease_and_a_wrong_token_are_the_same() {
        assert!(knows(Some(&lease()), &token(1)));
        assert!(!knows(Some(&lease()), &token(2)));
        assert!(!knows(None, &token(1)));
    }

    #[test]
    fn a_lease_lasts_a_day_at_most() {
        assert_eq!(parse_ttl("1s"), Ok(TTL_MIN));
        assert_eq!(parse_ttl("24h"), Ok(TTL_MAX));
        for text in ["0s", "999ms", "25h", "", "soon", "-1h", "1"] {
            assert!(parse_ttl(text).is_err(), "{text}");
        }
    }
}
