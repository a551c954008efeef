//! What of a device's web server a configuration may ask for.
//!
//! Many devices do what a GET says: `/relay/0?turn=off` switches a lamp. So the house can list the paths, for all requests
//! that a configuration writes and for those that carry a secret. Deliberately absent: patterns. A rule is a path, and
//! covers what lies below it; a query, or what a device may read as something else than it looks, has to be written out.

use std::fmt;

use serde::{Deserialize, Serialize};

const BYTES_MAX: usize = 1 << 10;
/// What can be asked of any device: by convention it only tells.
pub const METRICS: &str = "/metrics";

/// A path from the root with all below it; with any query where it ends in `?`; or `*`, which is everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WebPath(String);

impl WebPath {
    /// Whether it covers this path and query, as they stand in a request.
    #[must_use]
    pub fn covers(&self, asked: &str) -> bool {
        let own = self.0.as_str();
        if own == "*" || own == asked {
            return true;
        }
        if let Some(path) = own.strip_suffix('?') {
            return asked.split_once('?').map_or(asked, |(path, _)| path) == path;
        }
        let is_plain = !asked.contains(['?', '%', ';']) && !asked.contains("//");
        let below = asked.strip_prefix(own).is_some_and(|rest| own.ends_with('/') || rest.starts_with('/'));
        is_plain && below && !own.contains('?')
    }
}

impl TryFrom<String> for WebPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        let goes_up = text.split(['/', '?']).any(|part| part == "..");
        if text == "*" || is_path && !goes_up && text.len() <= BYTES_MAX {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(80).collect();
        Err(format!(
            "{shown:?} is no path: write \"/metrics\", \"/api\" for all below it, \"/probe?\" for any query, \"*\" for everything"
        ))
    }
}

impl From<WebPath> for String {
    fn from(path: WebPath) -> Self {
        path.0
    }
}

impl fmt::Display for WebPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(rule: &str, asked: &str) -> bool {
        WebPath::try_from(rule.to_owned()).unwrap().covers(asked)
    }

    #[test]
    fn a_path_covers_itself_and_what_lies_below() {
        assert!(covers("/rpc/Shelly.GetStatus", "/rpc/Shelly.GetStatus"));
        assert!(covers("/api", "/api") && covers("/api", "/api/states/x") && covers("/api/", "/api/states"));
        assert!(covers("/", "/") && covers("/", "/status") && covers("*", "/relay/0?turn=off"));
        assert!(!covers("/rpc/Shelly.GetStatus", "/rpc/Shelly.Reboot"));
        assert!(!covers("/api", "/apix") && !covers("/api/", "/api") && !covers("/api/x", "/api"));
    }

    #[test]
    fn a_query_and_what_a_device_may_read_otherwise_are_covered_only_as_written() {
        for asked in ["/relay/0?turn=off", "/a/..%2frelay", "/a/%72elay", "/a//relay", "/a;b"] {
            assert!(!covers("/", asked) && covers(asked, asked), "{asked}");
        }
        assert!(covers("/cm?cmnd=Status%200", "/cm?cmnd=Status%200"));
        assert!(!covers("/cm?cmnd=Status", "/cm?cmnd=Status%200") && !covers("/cm?cmnd=Status", "/cm?cmnd=Power"));
        assert!(covers("/probe?", "/probe?target=nas.lan") && covers("/probe?", "/probe") && !covers("/probe?", "/x?"));
    }

    #[test]
    fn what_is_no_path_is_refused_with_the_forms_there_are() {
        for text in ["", "metrics", "http://nas.lan/", "/a b", "/a#b", "/a/../b", "/ä", "**"] {
            let said = WebPath::try_from(text.to_owned()).unwrap_err();
            assert!(said.contains("is no path: write \"/metrics\""), "{said}");
        }
        assert!(WebPath::try_from(format!("/{}", "x".repeat(BYTES_MAX))).is_err());
    }
}
