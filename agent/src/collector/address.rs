//! Where a device is, as a configuration says it: `nas.lan:22`, `192.0.2.7`, `[fd00::7]:443`.

use satellite_shared::config::Problem;

use super::options;
use crate::policy::check_host;

/// A host and a port of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// A name or an address, without brackets.
    pub(crate) host: String,
    /// 1 to 65535.
    pub(crate) port: u16,
}

impl Address {
    /// Reads what stands at `path`; `port` is the one that goes without saying, where there is one.
    pub(crate) fn parse(text: &str, port: Option<u16>, path: &str) -> Result<Self, Problem> {
        let (host, port) = split(text, port).ok_or_else(|| {
            let shown: String = text.chars().take(80).collect();
            let example = port.map_or("nas.lan:22".to_owned(), |port| format!("nas.lan\" or \"nas.lan:{port}"));
            let form = if port.is_some() { "host or host:port" } else { "host:port" };
            let reason = format!("`{}` is not {form}, such as \"{example}\" or \"[fd00::7]:22\"", shown.escape_debug());
            options::problem(path, reason)
        })?;
        check_host(host).map_err(|reason| options::problem(path, reason))?;
        Ok(Self { host: host.to_owned(), port })
    }
}

fn split(text: &str, default: Option<u16>) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
    } else {
        match text.split_once(':') {
            // IPv6 without brackets: what follows the last colon is no port.
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = match port {
        None => default?,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok()?,
        Some(_) => return None,
    };
    (port > 0 && !host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_ports_and_addresses_of_ipv6_have_brackets() {
        let read = |text: &str, port| Address::parse(text, port, "device.a.address").map(|it| (it.host, it.port));
        assert_eq!(read("nas.lan:22", None), Ok(("nas.lan".into(), 22)));
        assert_eq!(read("[fd00::7]:22", None), Ok(("fd00::7".into(), 22)));
        assert_eq!(read("nas.lan", Some(443)), Ok(("nas.lan".into(), 443)));
        assert_eq!(read("nas.lan:8443", Some(443)), Ok(("nas.lan".into(), 8443)));
        assert_eq!(read("fd00::7", Some(443)), Ok(("fd00::7".into(), 443)));
        assert_eq!(read("[fd00::7]", Some(443)), Ok(("fd00::7".into(), 443)));
        for text in
            ["", ":22", "nas.lan:", "nas.lan:0", "nas.lan:+3", "nas.lan:65536", "[fd00::7", "[fd00::7]22", "[]:22"]
        {
            let problem = read(text, Some(443)).unwrap_err();
            assert_eq!(problem.path, "device.a.address");
            assert!(problem.reason.contains("such as \"nas.lan\""), "{text}: {problem}");
        }
        assert!(read("nas.lan", None).unwrap_err().reason.contains("is not host:port, such as \"nas.lan:22\""));
        assert!(read("fd00::7", None).is_err() && read("0x7f.1:80", None).is_err());
    }
}
