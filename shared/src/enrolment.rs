//! How a satellite gets its certificate: the join code that a person carries, and the requests on the web door.

use serde::{Deserialize, Serialize};

use crate::id::{LeaseId, SatelliteId};
use crate::secret::{InvalidToken, Token, TokenKind};

/// `POST` here with [`EnrolRequest`].
pub const ENROL_PATH: &str = "/v1/enrol";
/// `POST` here with [`ChallengeRequest`].
pub const CHALLENGE_PATH: &str = "/v1/recover/challenge";
/// `POST` here with [`RecoverRequest`].
pub const RECOVER_PATH: &str = "/v1/recover";
/// What the signature of a recovery begins with, so that it means nothing elsewhere.
pub const RECOVER_CONTEXT: &str = "satellite-recover-v1";

const JOIN_PREFIX: &str = "satj1_";
const JOIN_BYTES_MAX: usize = 1_000;

/// All that `satellite lease set` needs, as one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCode {
    /// The relay's web door: `https://relay.example.org:8443`.
    pub relay: String,
    /// The lease.
    pub lease: LeaseId,
    /// The lease's token.
    pub token: Token,
    /// SHA-256 of the relay authority's public key (SPKI), 64 hexadecimal digits.
    pub ca_pin: String,
}

/// Why a text is no join code. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJoinCode {
    /// Another kind of text.
    #[error("this is not a join code: it begins with {JOIN_PREFIX} and is one line; copy the whole of it")]
    Form,
    /// Mistyped or cut.
    #[error("the join code's checksum differs: a character is missing or mistyped, copy it again")]
    Checksum,
    /// Of another version of this program.
    #[error("the join code is of a version that this program does not read: update satellite")]
    Version,
    /// The token in it is not one.
    #[error("the join code's token: {0}")]
    Token(#[from] InvalidToken),
    /// The address in it is not one.
    #[error("the join code's relay address is not an https:// URL")]
    Relay,
    /// The pin in it is not one.
    #[error("the join code's ca-pin is not 64 hexadecimal digits")]
    Pin,
}

impl JoinCode {
    /// The one line.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut bytes = postcard::to_stdvec(self).expect("plain values always serialise");
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        format!("{JOIN_PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&bytes))
    }

    /// Reads the one line; white space around and within it (a terminal's line breaks) does not matter.
    ///
    /// # Errors
    /// Says whether it is another text, a mistyped one, or of another version.
    pub fn parse(line: &str) -> Result<Self, InvalidJoinCode> {
        let line: String = line.chars().filter(|c| !c.is_whitespace()).take(2 * JOIN_BYTES_MAX).collect();
        let Some(body) = line.strip_prefix(JOIN_PREFIX) else {
            return Err(if line.starts_with("satj") { InvalidJoinCode::Version } else { InvalidJoinCode::Form });
        };
        let bytes = data_encoding::BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| InvalidJoinCode::Checksum)?;
        let Some((bytes, sum)) = bytes.split_last_chunk::<4>() else { return Err(InvalidJoinCode::Checksum) };
        if crc32fast::hash(bytes) != u32::from_le_bytes(*sum) {
            return Err(InvalidJoinCode::Checksum);
        }
        let code: Self = postcard::from_bytes(bytes).map_err(|_| InvalidJoinCode::Version)?;
        code.checked()
    }

    /// The same rules for a code that was given in parts.
    ///
    /// # Errors
    /// Names the part that is wrong.
    pub fn checked(self) -> Result<Self, InvalidJoinCode> {
        Token::parse(TokenKind::Lease, self.token.expose())?;
        if !self.relay.starts_with("https://") || self.relay.len() > 300 {
            return Err(InvalidJoinCode::Relay);
        }
        if self.ca_pin.len() != 64 || !self.ca_pin.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidJoinCode::Pin);
        }
        Ok(self)
    }
}

/// Asks for a first certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The lease.
    pub lease: LeaseId,
    /// Its token.
    pub token: Token,
    /// PKCS #10, PEM. Only the public key is taken from it.
    pub csr: String,
    /// The machine's name, for people.
    pub hostname: String,
    /// The program's version.
    pub agent_version: String,
}

/// Everything a satellite needs to stream: the answer to enrolment and to recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Who it is from now on.
    pub satellite: SatelliteId,
    /// The lease it enrolled with.
    pub lease: LeaseId,
    /// What the lease's maker called it.
    pub name: String,
    /// Goes with the certificate in `AUTHENTICATE`.
    pub token: Token,
    /// Where to connect: `wss://relay.example.org:8444`.
    pub session_url: String,
    /// Leaf first, PEM.
    pub chain: String,
    /// The authorities to trust, PEM.
    pub ca_bundle: String,
    /// Which of the certificates issued to this satellite it is.
    pub generation: u64,
    /// When it ends, wall clock.
    pub not_after_ms: i64,
    /// When to ask for the next, wall clock.
    pub renew_after_ms: i64,
}

/// Asks for a nonce to prove an expired key with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChallengeRequest {
    /// Who.
    pub satellite: SatelliteId,
}

/// A nonce, good for a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// 64 hexadecimal digits.
    pub nonce: String,
}

/// Asks for a new certificate with the key of an expired one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// Who.
    pub satellite: SatelliteId,
    /// The nonce of the challenge.
    pub nonce: String,
    /// Which certificate's key signs.
    pub generation: u64,
    /// PKCS #10 for the new key, PEM.
    pub csr: String,
    /// ECDSA P-256 / SHA-256, ASN.1, base64url without padding, over [`RecoverRequest::signed_text`].
    pub signature: String,
}

impl RecoverRequest {
    /// What the old key signs: one line a field, so that no two requests sign alike.
    #[must_use]
    pub fn signed_text(satellite: &SatelliteId, nonce: &str, generation: u64, csr: &str) -> String {
        format!("{RECOVER_CONTEXT}\n{satellite}\n{nonce}\n{generation}\n{csr}")
    }
}

/// Why a request on the web door was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs: `lease_used`, `lease_expired`, `lease_unknown`, `rate_limited`, `bad_request`, `revoked`, ….
    pub code: String,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// Not sooner than this; 0 where waiting does not help.
    pub retry_after_s: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> JoinCode {
        JoinCode {
            relay: "https://relay.example.org:8443".into(),
            lease: LeaseId::from_bits([3; 10]),
            token: Token::from_bits(TokenKind::Lease, [5; 32]),
            ca_pin: "ab".repeat(32),
        }
    }

    #[test]
    fn a_join_code_survives_a_terminal_that_breaks_lines() {
        let line = code().to_line();
        let (a, b) = line.split_at(70);
        assert_eq!(JoinCode::parse(&format!("  {a}\n  {b}\n")), Ok(code()));
    }

    #[test]
    fn every_mistyped_character_is_noticed() {
        let line = code().to_line();
        for at in JOIN_PREFIX.len()..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(JoinCode::parse(&String::from_utf8(bytes).unwrap()).is_err(), "character {at}");
        }
        assert_eq!(JoinCode::parse("hello"), Err(InvalidJoinCode::Form));
        assert_eq!(JoinCode::parse("satj2_abc"), Err(InvalidJoinCode::Version));
    }

    #[test]
    fn a_relay_without_tls_is_refused() {
        let plain = JoinCode { relay: "http://relay.example.org".into(), ..code() };
        assert_eq!(plain.checked(), Err(InvalidJoinCode::Relay));
    }
}
