//! An action of a device's SOAP interface (UPnP, TR-064) without arguments, and what it answers: texts, each with a name.
//!
//! Deliberately absent: XML in general. An answer is read as a list of leaves; declarations of types and entities, which
//! are what XML is attacked by, are refused.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue};
use serde_json::{Map, Value};

/// Texts of one answer; the longest has a few dozen.
const LEAVES_MAX: usize = 1_000;

/// Headers and body of a call, by `SERVICE#ACTION`.
pub(super) fn call(action: &str) -> Result<(HeaderMap, Bytes), InvalidHeaderValue> {
    let (service, name) = action.split_once('#').unwrap_or((action, ""));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=\"utf-8\""));
    headers.insert(HeaderName::from_static("soapaction"), HeaderValue::from_str(&format!("\"{action}\""))?);
    let body = format!(
        "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{service}\"/>\
         </s:Body></s:Envelope>\n"
    );
    Ok((headers, Bytes::from(body)))
}

/// The texts of an answer by the names of their elements, without prefixes.
pub(super) fn read_answer(body: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(body).map_err(|_| "the answer is not UTF-8".to_owned())?;
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    if !rest.starts_with('<') {
        return Err("the answer is not XML".into());
    }
    let mut leaves = Map::new();
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let after = |end: &str| rest.split_once(end).map(|(_, rest)| rest).ok_or("the answer's XML ends too early");
        if rest.starts_with("!--") {
            rest = after("-->")?;
        } else if rest.starts_with('?') || rest.starts_with('/') {
            rest = after(">")?;
        } else if rest.starts_with('!') {
            return Err("the answer's XML declares something of its own".into());
        } else {
            let tag = &rest[..tag_end(rest).ok_or("the answer's XML ends too early")?];
            rest = &rest[tag.len() + 1..];
            let name = tag.trim_end_matches('/').split_whitespace().next().unwrap_or_default();
            let text = rest.split('<').next().unwrap_or_default();
            let is_leaf = !tag.ends_with('/') && rest[text.len()..].starts_with(&format!("</{name}"));
            if is_leaf {
                if leaves.len() >= LEAVES_MAX {
                    return Err(format!("the answer's XML has more than {LEAVES_MAX} texts"));
                }
                let local = name.rsplit(':').next().unwrap_or_default();
                leaves.insert(local.to_owned(), Value::String(unescaped(text.trim())));
            }
        }
    }
    Ok(Value::Object(leaves))
}

/// Where a tag ends: not inside the quotes of an attribute.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    text.bytes().position(|byte| {
        match quote {
            Some(open) if byte == open => quote = None,
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            _ => {}
        }
        quote.is_none() && byte == b'>'
    })
}

fn unescaped(text: &str) -> String {
    let named = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    named.iter().fold(text.to_owned(), |text, (escaped, character)| text.replace(escaped, character))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_texts_of_an_answer_have_the_names_of_their_elements() {
        let answer = "\u{feff}<?xml version=\"1.0\"?>\n<!-- a > b -->\n<s:Envelope xmlns:s='a>b'><s:Body>\
                      <u:GetInfoResponse xmlns:u=\"x\"><NewUptime>77</NewUptime><NewName a=\"1\">A &amp; B &lt;c&gt;</NewName>\
                      <NewNone/><u:NewEmpty></u:NewEmpty></u:GetInfoResponse></s:Body></s:Envelope>";
        let expect = json!({"NewUptime": "77", "NewName": "A & B <c>", "NewEmpty": ""});
        assert_eq!(read_answer(answer.as_bytes()), Ok(expect));
    }

    #[test]
    fn what_is_no_such_answer_is_told() {
        for (answer, said) in [
            ("{\"a\": 1}", "not XML"),
            ("", "not XML"),
            ("<a><b", "ends too early"),
            ("<a b=\"></a>", "ends too early"),
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
    fn a_call_names_its_action_in_header_and_body() {
        let (headers, body) = call("urn:x:service:DeviceInfo:1#GetInfo").unwrap();
        assert_eq!(headers["soapaction"], "\"urn:x:service:DeviceInfo:1#GetInfo\"");
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.contains("<u:GetInfo xmlns:u=\"urn:x:service:DeviceInfo:1\"/>"), "{body}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "<?[<>/!?a-c:'\"&; é-]{0,40}") {
            drop(read_answer(text.as_bytes()));
        }
    }
}
