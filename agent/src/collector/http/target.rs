//! A URL as a configuration may name one, and the headers that go with it.
//!
//! Secrets stand in neither: the relay keeps the configuration, so a password in it would be known outside the house. It
//! names secrets of this house; see [`super::credentials`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use crate::policy::{address, check_host};

const URL_BYTES_MAX: usize = 2 << 10;
const HEADERS_MAX: usize = 32;
const HEADER_BYTES_MAX: usize = 1 << 10;
/// Headers that the request itself makes.
const OWN: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "expect",
    "accept-encoding",
    "range",
];
/// Headers that carry a secret.
const SECRET: [&str; 6] =
    ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token", "x-access-token"];

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The whole of it.
    pub(crate) url: Url,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    /// The port, written out or the scheme's.
    pub(crate) port: u16,
}

impl Target {
    /// Reads `http://…` or `https://…`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > URL_BYTES_MAX {
            return Err(format!("a URL of more than {URL_BYTES_MAX} bytes"));
        }
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\\') {
            return Err("a URL has no blanks and no backslashes: write them as %20 and %5C".into());
        }
        let url = Url::parse(text).map_err(|error| format!("not a URL: {error}; write http://host:port/path"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("only http:// and https:// are spoken".into());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a user or password in a URL would be known to the relay: remove it".into());
        }
        if url.fragment().is_some() {
            return Err("the part behind `#` is never sent: remove it".into());
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default().unwrap_or(0);
        if port == 0 {
            return Err("port 0 is no port: write 1 to 65535".into());
        }
        if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()) && written_host(text) != Some(host.as_str()) {
            return Err(format!("the host is an unusual spelling of {host}: write that"));
        }
        // An address in a URL is connected to as it stands there, so it must be the one that is judged.
        if let Ok(ip) = host.parse::<IpAddr>()
            && address::effective(ip) != ip
        {
            return Err(format!("the host is an unusual spelling of {}: write that", address::effective(ip)));
        }
        check_host(&host)?;
        Ok(Self { url, host, port })
    }

    /// Path and query, as a request has them.
    pub(crate) fn asked(&self) -> String {
        let query = self.url.query().map_or_else(String::new, |query| format!("?{query}"));
        format!("{}{query}", self.url.path())
    }

    /// Whether it goes through TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }
}

/// The host as it was typed, before the URL was made regular.
fn written_host(text: &str) -> Option<&str> {
    let authority = text.split_once("//")?.1.split(['/', '?', '#']).next()?;
    Some(authority.rsplit_once(':').map_or(authority, |(host, _)| host))
}

/// Reads a table of headers; the error names the one that can't be.
pub(crate) fn headers(table: &BTreeMap<String, String>) -> Result<HeaderMap, (String, String)> {
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let refuse = |reason: &str| Err((name.chars().take(80).collect::<String>(), reason.to_owned()));
        let lower = name.to_ascii_lowercase();
        if headers.len() >= HEADERS_MAX {
            return refuse("more than 32 headers");
        }
        if SECRET.contains(&lower.as_str()) {
            return refuse(
                "a secret in the configuration would be known to the relay: keep it by `satellite secrets set` and name it in `auth` or `secret_headers`",
            );
        }
        let parsed = match own_name(name) {
            Ok(parsed) => parsed,
            Err(reason) => return refuse(&reason),
        };
        match HeaderValue::from_str(value) {
            Ok(value) if value.len() <= HEADER_BYTES_MAX => headers.insert(parsed, value),
            Ok(_) => return refuse("a value of more than 1024 bytes"),
            Err(_) => return refuse("not the value of a header: a line break or an unprintable character"),
        };
    }
    Ok(headers)
}

/// A header that a device may be sent beside those that make the request.
pub(crate) fn own_name(name: &str) -> Result<HeaderName, String> {
    let lower = name.to_ascii_lowercase();
    if OWN.contains(&lower.as_str()) {
        return Err("this header is made by the request itself: remove it".into());
    }
    HeaderName::from_bytes(lower.as_bytes()).map_err(|_| "not the name of a header".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_its_host_without_brackets_and_its_port() {
        let check = |text: &str, host: &str, port: u16| {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port), "{text}");
        };
        check("http://nas.lan/x?y=1", "nas.lan", 80);
        check("https://192.168.1.9", "192.168.1.9", 443);
        check("https://192.168.1.9:8443/x:y", "192.168.1.9", 8443);
        check("http://[fd00::7]:8080/", "fd00::7", 8080);
        check("HTTP://NAS.lan", "nas.lan", 80);
    }

    #[test]
    fn a_url_that_hides_something_is_refused() {
        let check = |text: &str, expect: &str| {
            let said = Target::parse(text).unwrap_err();
            assert!(said.contains(expect), "{text}: {said}");
        };
        for host in ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1.", "%31%32%37.0.0.1", "１２７.0.0.1"]
        {
            check(&format!("http://{host}/"), "unusual spelling of 127.0.0.1");
        }
        for host in ["::ffff:127.0.0.1", "::ffff:0:7f00:1", "::127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::1"] {
            check(&format!("http://[{host}]/"), "unusual spelling of 127.0.0.1");
        }
        check("http://a:b@nas.lan/", "known to the relay");
        check("http://a@nas.lan/", "known to the relay");
        check("file:///etc/passwd", "only http");
        check("ftp://nas.lan/", "only http");
        check("nas.lan", "not a URL");
        check("http://", "not a URL");
        check("http://nas.lan/#x", "never sent");
        check("http://nas.lan/ x", "no blanks");
        check("http:\\\\nas.lan/", "no backslashes");
        check("http://nas.lan:0/", "port 0");
        check("http://nas..lan/", "neither");
        check("http://[fe80::1%25eth0]/", "not a URL");
        check(&format!("http://nas.lan/{}", "x".repeat(3000)), "more than 2048 bytes");
    }

    #[test]
    fn headers_that_carry_secrets_or_break_the_request_are_refused_by_name() {
        let check = |name: &str, value: &str, expect: &str| {
            let table = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let (at, said) = headers(&table).unwrap_err();
            assert!(at == name && said.contains(expect), "{name}: {said}");
            assert!(!said.contains(value), "the value is never repeated");
        };
        check("Authorization", "Bearer abc", "secrets set");
        check("cookie", "a=b", "secrets set");
        check("X-Api-Key", "hunter2", "secrets set");
        check("Host", "evil", "made by the request");
        check("content-length", "77", "made by the request");
        check("a b", "zz", "not the name");
        check("x-a", "b\r\nx-c: d", "not the value");
        check("x-a", &"v".repeat(2000), "more than 1024");
        let fine = BTreeMap::from([("X-Room".to_owned(), "attic".to_owned())]);
        assert_eq!(headers(&fine).unwrap()["x-room"], "attic");
    }
}
