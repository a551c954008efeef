//! What a request carries to show who asks: a user and password, a token, or headers of the device's own.
//!
//! The configuration names secrets; each is asked of the keyring for every request, for the host that the request goes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::BASE64;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use satellite_shared::gap::Reason;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::target::{self, Target};
use crate::collector::Failure;
use crate::policy::Protocol;
use crate::secrets::{Keyring, SecretName};

const USER_BYTES_MAX: usize = 256;
const HEADERS_MAX: usize = 8;

/// `auth = { user = "admin", secret = "nas" }` is Basic (RFC 7617), `auth = { secret = "nas" }` is Bearer (RFC 6750).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Auth {
    #[serde(default)]
    user: Option<String>,
    secret: SecretName,
}

/// What a device's requests carry.
pub(crate) struct Credentials {
    keyring: Arc<Keyring>,
    auth: Option<Auth>,
    headers: Vec<(HeaderName, SecretName)>,
}

impl Credentials {
    /// Reads what a device's configuration says; the error names the key.
    pub(crate) fn parse(
        keyring: &Arc<Keyring>,
        auth: Option<Auth>,
        headers: BTreeMap<String, SecretName>,
    ) -> Result<Self, (String, String)> {
        let at = |key: &str, reason: &str| Err((key.to_owned(), reason.to_owned()));
        if let Some(Auth { user: Some(user), .. }) = &auth {
            // RFC 7617: the first colon ends the user.
            if user.len() > USER_BYTES_MAX || user.contains(|c: char| c == ':' || c.is_control()) {
                return at("auth.user", "at most 256 bytes, without `:` and line breaks");
            }
        }
        if headers.len() > HEADERS_MAX {
            return at("secret_headers", "more than 8 headers");
        }
        let mut parsed = Vec::with_capacity(headers.len());
        for (name, secret) in headers {
            let key = || format!("secret_headers.{}", name.chars().take(80).collect::<String>());
            let lower = target::own_name(&name).map_err(|reason| (key(), reason))?;
            if lower == AUTHORIZATION && auth.is_some() {
                return Err((key(), "`auth` makes this header: remove one of them".into()));
            }
            parsed.push((lower, secret));
        }
        Ok(Self { keyring: Arc::clone(keyring), auth, headers: parsed })
    }

    /// The headers of one request to this host.
    pub(crate) fn headers(&self, target: &Target) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        let give = |name: &SecretName| self.keyring.give(name, Protocol::Http, &target.host, target.port);
        let mut insert = |header: HeaderName, name: &SecretName, text: Zeroizing<String>| {
            let unfit = |_| Failure::new(Reason::Unsupported, format!("secret `{name}` does not fit into a header"));
            let mut value = HeaderValue::from_str(&text).map_err(unfit)?;
            value.set_sensitive(true);
            headers.insert(header, value);
            Ok(())
        };
        if let Some(Auth { user, secret: name }) = &self.auth {
            let secret = give(name)?;
            let secret = secret.expose_secret();
            let value = match user {
                Some(user) => {
                    let pair = Zeroizing::new(format!("{user}:{secret}"));
                    Zeroizing::new(format!("Basic {}", *Zeroizing::new(BASE64.encode(pair.as_bytes()))))
                }
                None => Zeroizing::new(format!("Bearer {secret}")),
            };
            insert(AUTHORIZATION, name, value)?;
        }
        for (header, name) in &self.headers {
            let secret = give(name)?;
            insert(header.clone(), name, Zeroizing::new(secret.expose_secret().to_owned()))?;
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::secrets::FILE_NAME;

    fn keyring() -> (tempfile::TempDir, Arc<Keyring>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let file = "[nas]\nhosts = [\"nas.lan\"]\nprotocols = [\"http\"]\nvalue = \"open sesame\"\n\
                    [broken]\nhosts = [\"nas.lan\"]\nprotocols = [\"http\"]\nvalue = \"a\\nb\"\n";
        std::fs::write(&path, file).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        (dir, Arc::new(Keyring::of([path])))
    }

    fn sent(auth: &str, headers: &str, url: &str) -> Result<Vec<(String, String)>, String> {
        let (_dir, keyring) = keyring();
        let read = |text: &str| toml::from_str(text).expect("TOML");
        let auth = (!auth.is_empty()).then(|| toml::from_str(auth).expect("TOML"));
        let credentials = Credentials::parse(&keyring, auth, read(headers));
        let credentials = credentials.map_err(|(key, reason)| format!("{key}: {reason}"))?;
        let headers = credentials.headers(&Target::parse(url)?).map_err(|failure| failure.to_string())?;
        assert!(headers.values().all(HeaderValue::is_sensitive));
        let text = |(name, value): (&HeaderName, &HeaderValue)| (name.to_string(), value.to_str().unwrap().to_owned());
        Ok(headers.iter().map(text).collect())
    }

    #[test]
    fn a_user_makes_basic_and_none_makes_bearer() {
        let header = |value: &str| Ok(vec![("authorization".to_owned(), value.to_owned())]);
        let basic = sent("user = \"Aladdin\"\nsecret = \"nas\"", "", "http://nas.lan/");
        // RFC 7617, section 2.
        assert_eq!(basic, header("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!(sent("secret = \"nas\"", "", "https://nas.lan:8443/"), header("Bearer open sesame"));
        let own = sent("", "X-Api-Key = \"nas\"", "http://nas.lan/");
        assert_eq!(own, Ok(vec![("x-api-key".to_owned(), "open sesame".to_owned())]));
    }

    #[test]
    fn nothing_is_sent_to_another_host_or_by_a_name_that_means_nothing() {
        for (secret, url, said) in [
            ("nas", "http://evil.lan/", "not for evil.lan:80"),
            ("nas", "http://192.0.2.1/", "not for 192.0.2.1:80"),
            ("other", "http://nas.lan/", "no secret `other`"),
            ("broken", "http://nas.lan/", "does not fit into a header"),
        ] {
            let failure = sent(&format!("secret = \"{secret}\""), "", url).unwrap_err();
            assert!(failure.contains(said) && !failure.contains("sesame"), "{failure}");
        }
    }

    #[test]
    fn what_would_break_the_request_is_refused_with_its_key() {
        let long = "n".repeat(300);
        for (auth, headers, said) in [
            ("user = \"a:b\"\nsecret = \"nas\"", "", "auth.user: at most"),
            (&*format!("user = \"{long}\"\nsecret = \"nas\""), "", "auth.user: at most"),
            ("", "Host = \"nas\"", "secret_headers.Host: this header is made by the request"),
            ("", "\"a b\" = \"nas\"", "secret_headers.a b: not the name"),
            ("secret = \"nas\"", "Authorization = \"nas\"", "secret_headers.Authorization: `auth` makes"),
        ] {
            let refusal = sent(auth, headers, "http://nas.lan/").unwrap_err();
            assert!(refusal.contains(said), "{refusal}");
        }
    }
}
