//! An action of a device's SOAP interface (UPnP, TR-064), with a number for an argument or none, and what it answers: texts,
//! each with a name.
//!
//! An answer is read as a list of leaves. Deliberately absent: declarations of types and entities, which are what XML is
//! attacked by.

use std::fmt;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use quick_xml::Reader;
use quick_xml::events::{BytesRef, Event};
use serde_json::{Map, Value};

/// Texts of one answer; the longest has a few dozen.
const LEAVES_MAX: usize = 1_000;
/// What is told of a device's own words.
const WORDS_CHARS_MAX: usize = 60;
/// By what a device says that it has none of what was asked: no such action, no such index. A Fritz!Box gives its internal
/// error for services that it lists and has no hardware for.
const ABSENT: [&str; 3] = ["401", NO_SUCH_INDEX, "820"];
const NO_SUCH_INDEX: &str = "713";
const NOT_AUTHORIZED: &str = "606";

/// What a device says instead of an answer, with status 500.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    code: String,
    words: String,
}

impl Fault {
    /// Reads one; none where it is something else that failed.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let answer = read_answer(body).ok()?;
        let text =
            |name: &str| answer[name].as_str().map(|text| text.chars().take(WORDS_CHARS_MAX).collect::<String>());
        let code = text("errorCode").filter(|code| code.parse::<u16>().is_ok())?;
        Some(Self { code, words: text("errorDescription").unwrap_or_default() })
    }

    /// Whether the device says that it has none of this, and not that something went wrong.
    pub(super) fn is_absence(&self) -> bool {
        ABSENT.contains(&self.code.as_str())
    }

    /// Whether it has nothing of the number that it was asked for.
    pub(super) fn is_end(&self) -> bool {
        self.code == NO_SUCH_INDEX
    }

    /// Whether it is the user who may not.
    pub(super) fn is_refusal(&self) -> bool {
        self.code == NOT_AUTHORIZED
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UPnP error {}: {:?}", self.code, self.words)
    }
}

/// Headers and body of a call, by `SERVICE#ACTION`, with the argument that it takes.
pub(super) fn call(action: &str, argument: Option<(&str, usize)>) -> Result<(HeaderMap, Bytes), InvalidHeaderValue> {
    let (service, name) = action.split_once('#').unwrap_or((action, ""));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=\"utf-8\""));
    headers.insert(HeaderName::from_static("soapaction"), HeaderValue::from_str(&format!("\"{action}\""))?);
    let argument = argument.map_or_else(String::new, |(name, number)| format!("<{name}>{number}</{name}>"));
    let body = format!(
        "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{service}\">\
         {argument}</u:{name}></s:Body></s:Envelope>\n"
    );
    Ok((headers, Bytes::from(body)))
}

/// The texts of an answer by the names of their elements, without prefixes.
pub(super) fn read_answer(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if !text.starts_with('<') {
        return Err("the answer is not XML".into());
    }
    let mut reader = Reader::from_str(text);
    let (mut leaves, mut depth) = (Map::new(), 0_usize);
    // The element that began last and its text so far; none once it has ended.
    let mut leaf: Option<(String, String)> = None;
    loop {
        match reader.read_event().map_err(|error| broken(&error))? {
            Event::Start(start) => {
                depth += 1;
                leaf = Some((String::from_utf8_lossy(start.local_name().as_ref()).into_owned(), String::new()));
            }
            Event::End(_) => {
                depth = depth.saturating_sub(1);
                let Some((name, text)) = leaf.take() else { continue };
                if leaves.len() >= LEAVES_MAX {
                    return Err(format!("the answer's XML has more than {LEAVES_MAX} texts"));
                }
                leaves.insert(name, Value::String(text.trim().to_owned()));
            }
            Event::Text(text) => push(&mut leaf, &text.decode().map_err(|error| broken(&error))?),
            Event::CData(text) => push(&mut leaf, &text.decode().map_err(|error| broken(&error))?),
            Event::GeneralRef(reference) => push(&mut leaf, &referred(&reference)?),
            Event::DocType(_) => return Err("the answer's XML declares something of its own".into()),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof if depth > 0 => return Err("the answer's XML ends too early".into()),
            Event::Eof => return Ok(Value::Object(leaves)),
        }
    }
}

fn push(leaf: &mut Option<(String, String)>, text: &str) {
    if let Some((_, own)) = leaf {
        own.push_str(text);
    }
}

/// What `&amp;` or `&#38;` stands for; there are no others without a declaration.
fn referred(reference: &BytesRef<'_>) -> Result<String, String> {
    if let Some(character) = reference.resolve_char_ref().map_err(|error| broken(&error))? {
        return Ok(character.into());
    }
    let name = reference.decode().map_err(|error| broken(&error))?;
    let known = quick_xml::escape::resolve_predefined_entity(&name);
    known.map(str::to_owned).ok_or_else(|| format!("the answer's XML has an entity that nobody declared: {name:.20?}"))
}

fn broken(error: &dyn std::fmt::Display) -> String {
    format!("the answer's XML is broken: {error}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_texts_of_an_answer_have_the_names_of_their_elements() {
        let answer = "\u{feff}<?xml version=\"1.0\"?>\n<!-- a > b -->\n<s:Envelope xmlns:s='a>b'><s:Body>\
                      <u:GetInfoResponse xmlns:u=\"x\"><NewUptime>77</NewUptime><NewName a=\"1\">A &amp; B &#60;c&gt;</NewName>\
                      <NewNone/><u:NewEmpty></u:NewEmpty></u:GetInfoResponse></s:Body></s:Envelope>";
        let expect = json!({"NewUptime": "77", "NewName": "A & B <c>", "NewEmpty": ""});
        assert_eq!(read_answer(answer.as_bytes()), Ok(expect));
    }

    #[test]
    fn what_is_no_such_answer_is_told() {
        for (answer, said) in [
            ("{\"a\": 1}", "not XML"),
            ("", "not XML"),
            ("<a><b", "is broken"),
            ("<a b=\"></a>", "is broken"),
            ("<a><b>1</b>", "ends too early"),
            ("<a><b>1</c></a>", "is broken"),
            ("<a>&b;</a>", "nobody declared"),
            ("<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>", "declares something"),
            (
                &format!("<a>{}</a>", (0..1_100).map(|n| format!("<b{n}>1</b{n}>")).collect::<String>()),
                "more than 1000",
            ),
        ] {
            let told = read_answer(answer.as_bytes()).unwrap_err();
            assert!(told.contains(said), "{answer:.40}: {told}");
        }
        assert!(read_answer(b"<a>\xff</a>").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn a_fault_tells_what_is_not_there_from_what_failed() {
        let fault = |code: &str, words: &str| {
            let body = format!(
                "<s:Envelope><s:Body><s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>\
                 <UPnPError xmlns=\"urn:schemas-upnp-org:control-1-0\"><errorCode>{code}</errorCode>\
                 <errorDescription>{words}</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
            );
            Fault::read(body.as_bytes())
        };
        let read = |code: &str| fault(code, "Some words").map(|fault| (fault.is_absence(), fault.is_refusal()));
        for (code, expect) in [("401", (true, false)), ("713", (true, false)), ("820", (true, false))] {
            assert_eq!(read(code), Some(expect), "{code}");
        }
        for (code, expect) in [("606", (false, true)), ("501", (false, false)), ("402", (false, false))] {
            assert_eq!(read(code), Some(expect), "{code}");
        }
        for code in ["", "no", "-1", "99999"] {
            assert_eq!(read(code), None, "{code}");
        }
        let told = fault("606", &format!("Action\nnot authorized{}", "!".repeat(900))).unwrap().to_string();
        assert!(told.starts_with("UPnP error 606: \"Action\\nnot authorized!") && told.len() < 100, "{told}");
        assert_eq!(Fault::read(b"<html>busy</html>"), None);
        assert_eq!(Fault::read(b"busy"), None);
    }

    #[test]
    fn a_call_names_its_action_in_header_and_body() {
        let action = "urn:x:service:DeviceInfo:1#GetInfo";
        let (headers, body) = call(action, None).unwrap();
        assert_eq!(headers["soapaction"], "\"urn:x:service:DeviceInfo:1#GetInfo\"");
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("<u:GetInfo xmlns:u=\"urn:x:service:DeviceInfo:1\"></u:GetInfo>"), "{body}");
        let (_, body) = call(action, Some(("NewIndex", 7))).unwrap();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains(":1\"><NewIndex>7</NewIndex></u:GetInfo>"), "{body}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "<?[<>/!?a-c:'\"&; é-]{0,40}") {
            drop(read_answer(text.as_bytes()));
        }
    }
}
