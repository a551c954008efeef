//! Secrets that must cross the wire, kept from logs until they do; and the memory that holds them, kept from others.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits;

/// Keeps this program's memory to itself: no core file, and no other program of the same user may look into it.
///
/// Keys and tokens stand in it for as long as it runs, and a core file lies about for years. Root sees everything, as
/// always.
///
/// # Errors
/// Where the kernel does not take it.
pub fn keep_memory_private() -> std::io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// A bearer token: `PREFIX_` and 43 base64url characters of 256 random bits and 8 of a checksum.
///
/// The prefix lets scanners of repositories and logs find a leaked one; the checksum tells a typing error from a
/// wrong token without asking anybody. `Debug` never shows it.
#[derive(Clone)]
pub struct Token(SecretString);

/// Which token: the prefix says what it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Enrols one satellite, once.
    Lease,
    /// Goes with a satellite's certificate in `AUTHENTICATE`.
    Satellite,
}

impl TokenKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Lease => "satl_",
            Self::Satellite => "sats_",
        }
    }
}

/// Why a text is no token. Never repeats the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Another kind of text.
    #[error("this is not a token of the kind {0}…: copy the whole of it")]
    Form(&'static str),
    /// Mistyped or cut.
    #[error("the token's checksum differs: a character is missing or mistyped, copy it again")]
    Checksum,
}

impl Token {
    /// A token of these random bits.
    #[must_use]
    pub fn from_bits(kind: TokenKind, bits: [u8; 32]) -> Self {
        let body = format!("{}{}", kind.prefix(), data_encoding::BASE64URL_NOPAD.encode(&bits));
        let sum = checksum(&body);
        Self(SecretString::from(format!("{body}{sum}")))
    }

    /// Reads a token of one kind.
    ///
    /// # Errors
    /// Says whether it is another text or a mistyped one.
    pub fn parse(kind: TokenKind, text: &str) -> Result<Self, InvalidToken> {
        let form = InvalidToken::Form(kind.prefix());
        if !text.starts_with(kind.prefix()) || text.len() != kind.prefix().len() + 43 + 8 || !text.is_ascii() {
            return Err(form);
        }
        let (body, sum) = text.split_at(text.len() - 8);
        if checksum(body) != sum {
            return Err(InvalidToken::Checksum);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// The text itself, for the one place that sends or hashes it.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Equal to the last byte; takes the same time wherever they differ.
impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.expose().as_bytes(), other.expose().as_bytes());
        a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y))) == 0
    }
}

impl Eq for Token {}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.len() > limits::NAME_BYTES_MAX {
            return Err(serde::de::Error::custom("a token of more than 256 bytes"));
        }
        Ok(Self(SecretString::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_keeps_its_memory_private_leaves_no_core() {
        keep_memory_private().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    }

    #[test]
    fn a_token_is_never_shown_by_debug() {
        let token = Token::from_bits(TokenKind::Lease, [9; 32]);
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_mistyped_token_is_told_from_a_foreign_text() {
        let token = Token::from_bits(TokenKind::Lease, [9; 32]);
        let text = token.expose().to_owned();
        assert_eq!(Token::parse(TokenKind::Lease, &text), Ok(token));
        let mistyped = text.replacen('C', "D", 1);
        assert_eq!(Token::parse(TokenKind::Lease, &mistyped), Err(InvalidToken::Checksum));
        assert!(matches!(Token::parse(TokenKind::Satellite, &text), Err(InvalidToken::Form(_))));
        assert!(matches!(Token::parse(TokenKind::Lease, "hello"), Err(InvalidToken::Form(_))));
    }
}
