//! What a message says: JSON, or a word that stands for a number.

use serde_json::Value;

use super::zigbee2mqtt::{self, Device};
use crate::collector::http::read_document;

/// A message's payload; longer ones are skipped where they come in.
pub(super) const PAYLOAD_BYTES_MAX: usize = 128 << 10;
/// A number or a word of a message.
const WORD_BYTES_MAX: usize = 64;

/// What a message says, read once for all that listen to its topic.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// A number, or a word that stands for one.
    Number(f64),
    /// A JSON document.
    Json(Value),
    /// The list of a Zigbee network's devices.
    Devices(Vec<Device>),
    /// Nothing at all: who retained a message takes it back so.
    Nothing,
    /// A word that stands for no number by itself.
    Word {
        /// The word.
        text: String,
        /// Why it can't be used where nobody knows it.
        why: String,
    },
    /// Something else, and why it can't be used.
    Other(String),
}

impl Said {
    /// About what it takes in memory, from above where it is little.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Json(document) => weight(document),
            Self::Word { text, why } => text.len() + why.len(),
            Self::Other(why) => why.len(),
            Self::Number(_) | Self::Nothing => 0,
            Self::Devices(_) => usize::MAX,
        }
    }
}

fn weight(value: &Value) -> usize {
    64 + match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(weight).sum(),
        // A node of a tree, each with its names.
        Value::Object(map) => 700 + map.iter().map(|(name, value)| name.len() + weight(value)).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// How a payload is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As a number, a word or JSON.
    Value,
    /// As zigbee2mqtt's list of its devices, which may be long.
    Devices,
}

impl Form {
    /// The longest payload of this form.
    pub(super) fn bytes_max(self) -> usize {
        match self {
            Self::Value => PAYLOAD_BYTES_MAX,
            Self::Devices => zigbee2mqtt::LIST_BYTES_MAX,
        }
    }

    /// Reads a payload.
    pub(super) fn read(self, payload: &[u8]) -> Said {
        match self {
            Self::Devices if payload.is_empty() => Said::Devices(Vec::new()),
            Self::Devices => zigbee2mqtt::devices(payload).map_or_else(Said::Other, Said::Devices),
            Self::Value => read(payload),
        }
    }
}

fn read(payload: &[u8]) -> Said {
    if payload.iter().all(u8::is_ascii_whitespace) {
        return Said::Nothing;
    }
    let Ok(text) = std::str::from_utf8(payload) else {
        return Said::Other("the message is no text".into());
    };
    match word(text) {
        Some(number) => Said::Number(number),
        None => match read_document(payload) {
            Ok(document) => Said::Json(document),
            Err(why) => {
                // Not the text itself: the reason is told to the relay, which may have numbers.
                let why = why.replace("the answer is not", "not").replace("an answer", "a message");
                let why = format!("{} bytes that are no number and no JSON ({why})", payload.len());
                let text = text.trim();
                let is_word = text.len() <= WORD_BYTES_MAX && !text.starts_with(['{', '[']);
                if is_word { Said::Word { text: text.to_owned(), why } } else { Said::Other(why) }
            }
        },
    }
}

/// The number that a text is or stands for: `21.5`, `ON`, `offline`, `true`, …
pub(super) fn word(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.len() > WORD_BYTES_MAX {
        return None;
    }
    match text.to_ascii_lowercase().as_str() {
        "on" | "online" | "true" => Some(1.0),
        "off" | "offline" | "false" => Some(0.0),
        // What Rust reads besides digits is no number of a device.
        _ if text.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')) => None,
        _ => text.parse().ok().filter(|number: &f64| number.is_finite()),
    }
}

/// The number that a JSON value is or stands for.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64().filter(|number| number.is_finite()),
        Value::Bool(state) => Some(f64::from(u8::from(*state))),
        Value::String(text) => word(text),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_the_words_of_switches_are_numbers() {
        for (text, number) in [
            ("21.5", Some(21.5)),
            (" -3 \n", Some(-3.0)),
            ("1e3", Some(1000.0)),
            ("ON", Some(1.0)),
            ("off", Some(0.0)),
            ("Online", Some(1.0)),
            ("offline", Some(0.0)),
            ("true", Some(1.0)),
            ("False", Some(0.0)),
            ("NaN", None),
            ("inf", None),
            ("1e999", None),
            ("", None),
            ("heating", None),
        ] {
            assert_eq!(word(text), number, "{text}");
        }
        assert_eq!(number(&json!("ON")), Some(1.0));
        assert_eq!((number(&json!(null)), number(&json!([1])), number(&json!({}))), (None, None, None));
    }

    #[test]
    fn a_payload_is_a_number_json_nothing_or_told_why_not() {
        let read = |payload: &[u8]| Form::Value.read(payload);
        assert_eq!(read(b"12.5"), Said::Number(12.5));
        assert_eq!(read(b"{\"a\": 1}"), Said::Json(json!({"a": 1})));
        assert_eq!(read(b"\"ON\""), Said::Json(json!("ON")));
        assert_eq!(read(b" "), Said::Nothing);
        for (payload, why) in [
            (&b"\xff\xfe"[..], "no text"),
            (b"<html>", "6 bytes that are no number and no JSON"),
            (b"{\"a\": ", "no JSON"),
            ("[".repeat(5_000).as_bytes(), "recursion limit"),
            ("[{\"\":{}},".repeat(9_000).as_bytes(), "more values than fit"),
        ] {
            let (Said::Other(said) | Said::Word { why: said, .. }) = read(payload) else {
                panic!("{payload:?} was read")
            };
            assert!(said.contains(why), "{said}");
        }
        assert!(matches!(Form::Devices.read(b"{}"), Said::Other(_)));
        assert_eq!(Form::Devices.read(b""), Said::Devices(vec![]));
    }
}
