//! A method of OpenWrt's bus, called through its web server by JSON-RPC 2.0 (uhttpd-mod-ubus), and what it answers.
//!
//! Every call shows a session, which `session login` opens; the router says which user of its may call what (rpcd's access
//! lists). Deliberately absent: arguments, but for those of the login.

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde_json::{Value, json};

/// The session of who is not logged in.
pub(super) const NOBODY: &str = "00000000000000000000000000000000";
/// JSON-RPC's error where a session may not call this, or is none any more.
const ACCESS_DENIED: i64 = -32002;
/// The bus's own word for that.
const PERMISSION_DENIED: i64 = 6;
/// JSON-RPC's errors for an object or a method that is not there.
const NOT_THERE: [i64; 2] = [-32000, -32601];
/// The bus's own: no such method, nothing found, no data.
const NOTHING: [i64; 3] = [3, 4, 5];

/// What a call came to.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// What the method gave.
    Data(Value),
    /// The session may not, or has ended.
    Denied,
    /// The router has no such method, or nothing to say.
    Absent(String),
    /// The method failed.
    Failed(String),
}

/// Headers and body of a call of `OBJECT METHOD`.
pub(super) fn call(session: &str, method: &str, arguments: &Value) -> (HeaderMap, Bytes) {
    let (object, method) = method.split_once(' ').unwrap_or((method, ""));
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "call", "params": [session, object, method, arguments] });
    (headers, Bytes::from(call.to_string()))
}

/// What a method gave, of an answer that was looked at before.
pub(super) fn data(answer: Value) -> Result<Value, String> {
    match read(answer)? {
        Said::Data(data) => Ok(data),
        Said::Denied => Err("access denied".into()),
        Said::Absent(why) | Said::Failed(why) => Err(why),
    }
}

/// What the router answered.
pub(super) fn read(mut answer: Value) -> Result<Said, String> {
    if let Some(code) = answer["error"]["code"].as_i64() {
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        let why = format!("ubus answers error {code}: {message:?}");
        return Ok(match code {
            ACCESS_DENIED => Said::Denied,
            code if NOT_THERE.contains(&code) => Said::Absent(why),
            _ => Said::Failed(why),
        });
    }
    match answer["result"][0].as_i64() {
        Some(0) => Ok(Said::Data(answer["result"].get_mut(1).map_or(Value::Null, Value::take))),
        Some(PERMISSION_DENIED) => Ok(Said::Denied),
        Some(status) if NOTHING.contains(&status) => Ok(Said::Absent(format!("ubus answers status {status}"))),
        Some(status) => Ok(Said::Failed(format!("ubus answers status {status}"))),
        None => Err("the answer is none of ubus".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_names_its_session_and_has_no_arguments_of_its_own() {
        let (_, body) = call(NOBODY, "network.device status", &json!({}));
        let call: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(call["params"], json!([NOBODY, "network.device", "status", {}]));
    }

    #[test]
    fn what_was_given_denied_absent_and_failed_are_told_apart() {
        let read = |text: &str| read(serde_json::from_str(text).unwrap());
        assert_eq!(read("{\"result\": [0, {\"uptime\": 7}]}"), Ok(Said::Data(json!({"uptime": 7}))));
        assert_eq!(read("{\"result\": [0]}"), Ok(Said::Data(Value::Null)));
        assert_eq!(read("{\"result\": [6]}"), Ok(Said::Denied));
        assert_eq!(read("{\"error\": {\"code\": -32002, \"message\": \"Access denied\"}}"), Ok(Said::Denied));
        for status in [3, 4, 5] {
            let absent = Said::Absent(format!("ubus answers status {status}"));
            assert_eq!(read(&format!("{{\"result\": [{status}]}}")), Ok(absent));
        }
        for status in [1, 2, 7, 9, 10] {
            let failed = Said::Failed(format!("ubus answers status {status}"));
            assert_eq!(read(&format!("{{\"result\": [{status}]}}")), Ok(failed));
        }
        let absent = read("{\"error\": {\"code\": -32000, \"message\": \"Object not found\"}}").unwrap();
        assert!(matches!(absent, Said::Absent(why) if why.contains("-32000") && why.contains("Object not found")));
        let failed = read("{\"error\": {\"code\": -32603, \"message\": \"Internal error\"}}").unwrap();
        assert!(matches!(failed, Said::Failed(why) if why.contains("Internal error")));
        for other in ["{}", "[]", "{\"result\": \"x\"}", "{\"error\": 7}", "null"] {
            assert!(read(other).is_err(), "{other}");
        }
    }
}
