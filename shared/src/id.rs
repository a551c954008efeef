//! The names of things: one type each, so that mixing them up does not compile.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidId {
    text: String,
    expected: &'static str,
}

impl InvalidId {
    fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), expected }
    }
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id made of these random bits.
            #[must_use]
            pub fn from_bits(bits: [u8; 10]) -> Self {
                Self(format!(concat!($prefix, "{}"), data_encoding::BASE32_NOPAD.encode(&bits).to_ascii_lowercase()))
            }

            /// The id as people read it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let expected = concat!("an id of the form ", $prefix, " and 16 letters or digits");
                let rest = text.strip_prefix($prefix).ok_or_else(|| InvalidId::new(text, expected))?;
                let fits = rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b));
                if !fits {
                    return Err(InvalidId::new(text, expected));
                }
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

prefixed_id!(
    /// One satellite, for as long as its lease lives.
    SatelliteId,
    "st_"
);

prefixed_id!(
    /// One lease: the right to enrol one satellite, once.
    LeaseId,
    "ls_"
);

/// One opening of a buffer: random, so that a restored or cloned disk can never reuse an id for other content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u128);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}

impl FromStr for Epoch {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let error = || InvalidId::new(text, "an epoch of 32 hexadecimal digits");
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| error())
    }
}

impl Serialize for Epoch {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A device as the configuration names it: a lower-case letter or digit, then those, `_`, `.`, `-`; at most 63.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(String);

impl DeviceName {
    /// The name as people read it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = text.len() <= limits::DEVICE_NAME_BYTES_MAX
            && text.bytes().next().is_some_and(letter)
            && text.bytes().all(|b| letter(b) || b"_.-".contains(&b));
        if !fits {
            return Err(InvalidId::new(
                text,
                "a name: a lower-case letter or digit, then those, `_`, `.` or `-`, at most 63 in all",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for DeviceName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> String {
        name.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_written_and_read() {
        let id = SatelliteId::from_bits([7; 10]);
        assert_eq!(id.as_str().parse::<SatelliteId>(), Ok(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let lease = LeaseId::from_bits([1; 10]);
        assert!(lease.as_str().parse::<SatelliteId>().is_err());
    }

    #[test]
    fn a_device_name_that_could_be_a_path_or_a_label_break_is_refused() {
        for text in ["", "../x", "-a", "A", "a b", "a\"b", "ü", &"a".repeat(64)] {
            assert!(text.parse::<DeviceName>().is_err(), "{text}");
        }
        assert!("nas-1.lan_a".parse::<DeviceName>().is_ok());
    }
}
