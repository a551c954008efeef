//! The way out of the house: directly, or through the proxy that the settings or the environment name.
//!
//! Settings win over `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. `proxy = "direct"` means no proxy whatever the environment
//! says. Credentials of a proxy stand in its URL; they are never shown.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use tokio_tungstenite::tungstenite::http::Uri;

/// What the settings say about proxies.
#[derive(Clone, Default)]
pub struct ProxySettings {
    /// `http://[user:password@]host:port`, `socks5://…` (names resolved here), `socks5h://…` (names resolved by the
    /// proxy) or `direct`; `None` for what the environment says.
    pub proxy: Option<String>,
    /// Names, addresses and networks that are reached without it.
    pub no_proxy: Vec<String>,
}

impl std::fmt::Debug for ProxySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let proxy = self.proxy.as_deref().map(without_credentials);
        f.debug_struct("ProxySettings").field("proxy", &proxy).field("no_proxy", &self.no_proxy).finish()
    }
}

/// Why no way out can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// Not a URL, or no host in it.
    #[error("the proxy `{0}` is not a URL: write http://host:port, socks5://host:port, socks5h://host:port or direct")]
    Form(String),
    /// A kind of proxy that we do not speak to.
    #[error("the proxy `{0}` can't be used: only http://, socks5:// and socks5h:// proxies are spoken to")]
    Scheme(String),
    /// The destination itself is no address.
    #[error("`{0}` is not an address with a host")]
    Destination(String),
}

/// How to reach one destination.
#[derive(Clone)]
pub enum Route {
    /// Without a proxy.
    Direct,
    /// By HTTP `CONNECT`.
    Connect {
        /// The proxy.
        proxy: Uri,
        /// What it wants to see.
        authorization: Option<HeaderValue>,
    },
    /// By SOCKS 5.
    Socks {
        /// The proxy.
        proxy: Uri,
        /// What it wants to see.
        login: Option<(String, SecretString)>,
        /// Whether the name is resolved here.
        resolve_here: bool,
    },
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Route({self})")
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Direct => f.write_str("directly"),
            Self::Connect { proxy, .. } | Self::Socks { proxy, .. } => {
                write!(f, "by the proxy {}", without_credentials(&proxy.to_string()).trim_end_matches('/'))
            }
        }
    }
}

impl Route {
    /// The way to `https://HOST:PORT`.
    ///
    /// # Errors
    /// Says what is wrong with the settings.
    pub fn to(destination: &Uri, settings: &ProxySettings) -> Result<Self, InvalidProxy> {
        let no_host = || InvalidProxy::Destination(destination.to_string());
        let (host, port) = (destination.host().ok_or_else(no_host)?, destination.port_u16().unwrap_or(443));
        let https: Uri = format!("https://{host}:{port}/").parse().map_err(|_| no_host())?;
        let matcher = match settings.proxy.as_deref().map(str::trim) {
            Some("" | "direct") => return Ok(Self::Direct),
            Some(proxy) => {
                check(proxy)?;
                Matcher::builder().all(proxy.to_owned()).build()
            }
            None => Matcher::from_env(),
        };
        let bypass = Matcher::builder().all("http://any.invalid").no(settings.no_proxy.join(",")).build();
        if bypass.intercept(&https).is_none() {
            return Ok(Self::Direct);
        }
        let Some(intercept) = matcher.intercept(&https) else { return Ok(Self::Direct) };
        let proxy = intercept.uri().clone();
        match proxy.scheme_str() {
            Some("http") => Ok(Self::Connect { proxy, authorization: intercept.basic_auth().cloned() }),
            Some(scheme @ ("socks5" | "socks5h")) => Ok(Self::Socks {
                resolve_here: scheme == "socks5",
                login: intercept.raw_auth().map(|(user, password)| (user.to_owned(), SecretString::from(password))),
                proxy,
            }),
            Some(_) | None => Err(InvalidProxy::Scheme(proxy.to_string())),
        }
    }

    /// The same way for an HTTP client.
    ///
    /// # Errors
    /// Where the client does not take the proxy's address.
    pub fn client(&self, builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, InvalidProxy> {
        let form = |proxy: &Uri| InvalidProxy::Form(without_credentials(&proxy.to_string()));
        match self {
            Self::Direct => Ok(builder.no_proxy()),
            Self::Connect { proxy, authorization } => {
                let mut taken = reqwest::Proxy::all(proxy.to_string()).map_err(|_| form(proxy))?;
                if let Some(authorization) = authorization {
                    taken = taken.custom_http_auth(authorization.clone());
                }
                Ok(builder.proxy(taken))
            }
            Self::Socks { proxy, login, .. } => {
                let mut url = reqwest::Url::parse(&proxy.to_string()).map_err(|_| form(proxy))?;
                if let Some((user, password)) = login {
                    url.set_username(user).map_err(|()| form(proxy))?;
                    url.set_password(Some(password.expose_secret())).map_err(|()| form(proxy))?;
                }
                Ok(builder.proxy(reqwest::Proxy::all(url).map_err(|_| form(proxy))?))
            }
        }
    }
}

fn check(proxy: &str) -> Result<(), InvalidProxy> {
    let shown = without_credentials(proxy);
    let uri: Uri = proxy.parse().map_err(|_| InvalidProxy::Form(shown.clone()))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(InvalidProxy::Form(shown));
    }
    match uri.scheme_str() {
        Some("http" | "socks5" | "socks5h") | None => Ok(()),
        Some(_) => Err(InvalidProxy::Scheme(shown)),
    }
}

/// A URL as it may be shown.
fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let authority_end = rest.find('/').unwrap_or(rest.len());
    // A password may hold anything, so all before the last @ of the authority goes; with no end to see, of the whole.
    let at = rest[..authority_end].rfind('@').or_else(|| rest.rfind('@'));
    let shown = at.map_or(rest, |at| &rest[at + 1..]);
    if scheme.is_empty() { shown.to_owned() } else { format!("{scheme}://{shown}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(proxy: Option<&str>, no_proxy: &[&str], destination: &str) -> Result<Route, InvalidProxy> {
        let settings = ProxySettings {
            proxy: proxy.map(str::to_owned),
            no_proxy: no_proxy.iter().map(|&one| one.to_owned()).collect(),
        };
        let Ok(destination) = destination.parse() else { panic!("{destination} is no address") };
        Route::to(&destination, &settings)
    }

    #[test]
    fn each_kind_of_proxy_is_told_from_the_others() {
        let to = "https://relay.example.org:8443";
        let http = route(Some("http://bob:pw@proxy:3128"), &[], to).unwrap();
        assert!(matches!(http, Route::Connect { authorization: Some(_), .. }), "{http:?}");
        assert!(matches!(route(Some("proxy:3128"), &[], to), Ok(Route::Connect { authorization: None, .. })));
        assert!(matches!(route(Some("socks5://proxy"), &[], to), Ok(Route::Socks { resolve_here: true, .. })));
        assert!(matches!(route(Some("socks5h://proxy"), &[], to), Ok(Route::Socks { resolve_here: false, .. })));
        assert!(matches!(route(Some("direct"), &[], to), Ok(Route::Direct)));
    }

    #[test]
    fn what_no_proxy_names_is_reached_directly() {
        let list = ["example.org", "10.0.0.0/8", "fd00::/8"];
        for (to, direct) in [
            ("wss://relay.example.org:8444", true),
            ("wss://example.org.evil:8444", false),
            ("wss://10.1.2.3:8444", true),
            ("wss://11.1.2.3:8444", false),
            ("wss://[fd00::1]:8444", true),
        ] {
            let route = route(Some("http://proxy:3128"), &list, to).unwrap();
            assert_eq!(matches!(route, Route::Direct), direct, "{to}");
        }
    }

    #[test]
    fn a_proxy_that_can_not_be_used_is_an_error_and_never_a_silent_direct_connection() {
        for bad in ["https://proxy:3128", "socks4://proxy:1080", "ftp://proxy", "http://", "http://a b"] {
            assert!(route(Some(bad), &[], "https://relay:8443").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_credentials_of_a_proxy_are_never_shown() {
        for url in [
            "http://bob:hunter2@proxy:3128",
            "socks5://bob:hun@ter2@proxy",
            "https://bob:hunter2@proxy",
            "bob:hunter2@x y",
        ] {
            let settings = ProxySettings { proxy: Some(url.into()), no_proxy: vec![] };
            let shown = format!("{settings:?} {:?}", Route::to(&Uri::from_static("https://relay"), &settings));
            assert!(!shown.contains("hunter2") && !shown.contains("ter2") && !shown.contains("bob"), "{shown}");
        }
    }
}
