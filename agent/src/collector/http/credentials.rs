//! What a request carries to show who asks: a user and password, a token, or headers of the device's own.
//!
//! The configuration names secrets; each is asked of the keyring for every request, for the host that the request goes to.
//! Where it says `scheme = "digest"`, a password is never sent: it answers the device's challenge (RFC 7616), and a
//! device that has none but Basic gets no answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::BASE64;
use http_auth::digest::{Algorithm, DigestClient, Qop};
use http_auth::parser::ChallengeParser;
use http_auth::{ChallengeRef, PasswordParams};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use satellite_shared::gap::Reason;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::target::{self, Target};
use crate::collector::Failure;
use crate::policy::{Method, Protocol};
use crate::secrets::{Keyring, SecretName};

const USER_BYTES_MAX: usize = 256;
const HEADERS_MAX: usize = 8;
/// What a device may ask with.
const CHALLENGE_BYTES_MAX: usize = 2 << 10;

/// `auth = { user = "admin", secret = "nas" }` is Basic (RFC 7617), with `scheme = "digest"` Digest (RFC 7616), and
/// `auth = { secret = "nas" }` is Bearer (RFC 6750).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Auth {
    #[serde(default)]
    user: Option<String>,
    secret: SecretName,
    #[serde(default)]
    scheme: Option<Scheme>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Basic,
    Digest,
}

impl Auth {
    /// User and secret of a device that is logged in to by both.
    pub(crate) fn user_and_secret(self) -> Result<(String, SecretName), (String, String)> {
        match (self.user, self.scheme) {
            (Some(user), None) => Ok((user, self.secret)),
            _ => Err(("auth".into(), "the profile logs in as a user: auth = { user = \"…\", secret = \"…\" }".into())),
        }
    }

    /// The secret of a device that is logged in to by it alone.
    pub(crate) fn only_secret(self) -> Result<SecretName, (String, String)> {
        match (self.user, self.scheme) {
            (None, None) => Ok(self.secret),
            _ => Err(("auth".into(), "the profile logs in with a password alone: auth = { secret = \"…\" }".into())),
        }
    }
}

/// What a device's requests carry.
pub(crate) struct Credentials {
    keyring: Arc<Keyring>,
    auth: Option<Auth>,
    headers: Vec<(HeaderName, SecretName)>,
    /// The device's last challenge, answered until it has another.
    challenge: Option<DigestClient>,
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
        if matches!(&auth, Some(Auth { user: None, scheme: Some(_), .. })) {
            return at("auth.user", "basic and digest need a user");
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
        Ok(Self { keyring: Arc::clone(keyring), auth, headers: parsed, challenge: None })
    }

    /// Whether there is nothing to show.
    pub(crate) fn is_empty(&self) -> bool {
        self.auth.is_none() && self.headers.is_empty()
    }

    /// Whether a password answers challenges and is never sent.
    pub(crate) fn is_digest(&self) -> bool {
        matches!(&self.auth, Some(Auth { scheme: Some(Scheme::Digest), .. }))
    }

    /// Takes what a device asks for, for the next request.
    pub(crate) fn take_challenge(&mut self, challenges: Vec<String>) -> Result<(), Failure> {
        self.challenge = None;
        let refused = |why: &str| Failure::new(Reason::Refused, format!("HTTP 401: {why}"));
        let mut found =
            Err(refused("the device asks for no digest (RFC 7616), and its password is sent in no other way"));
        for challenge in challenges.iter().flat_map(|text| parse(text)) {
            match challenge {
                // SHA-256 wherever there is a choice, as RFC 7616 has it.
                Ok(digest) if found.is_err() || digest.algorithm() != Algorithm::Md5 => found = Ok(digest),
                Err(why) if found.is_err() => found = Err(refused(&why)),
                Ok(_) | Err(_) => {}
            }
        }
        self.challenge = Some(found?);
        Ok(())
    }

    /// Forgets it: the next request asks for another.
    pub(crate) fn forget_challenge(&mut self) {
        self.challenge = None;
    }

    /// The headers of one request to this host; `is_written` where a configuration has written its path.
    pub(crate) fn headers(
        &mut self,
        target: &Target,
        method: Method,
        path: &str,
        is_written: bool,
    ) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        let (host, port) = (target.host.as_str(), target.port);
        let give = |name: &SecretName| match is_written {
            true => self.keyring.give_for(name, host, port, path),
            false => self.keyring.give(name, Protocol::Http, host, port),
        };
        let mut insert = |header: HeaderName, name: &SecretName, text: Zeroizing<String>| {
            let unfit = |_| Failure::new(Reason::Unsupported, format!("secret `{name}` does not fit into a header"));
            let mut value = HeaderValue::from_str(&text).map_err(unfit)?;
            value.set_sensitive(true);
            headers.insert(header, value);
            Ok(())
        };
        if let Some(Auth { user, secret: name, scheme }) = &self.auth {
            let secret = give(name)?;
            let secret = secret.expose_secret();
            let value = match (user, scheme, &mut self.challenge) {
                (Some(username), Some(Scheme::Digest), Some(challenge)) => {
                    let (uri, method) = (path, method.as_str());
                    let params = PasswordParams { username, password: secret, uri, method, body: None };
                    let answered = challenge.respond(&params);
                    Some(answered.map_err(|why| Failure::new(Reason::Unsupported, format!("digest: {why}")))?)
                }
                // What the device asks for has to come first.
                (_, Some(Scheme::Digest), _) => None,
                (Some(user), _, _) => {
                    let pair = Zeroizing::new(format!("{user}:{secret}"));
                    Some(format!("Basic {}", *Zeroizing::new(BASE64.encode(pair.as_bytes()))))
                }
                (None, _, _) => Some(format!("Bearer {secret}")),
            };
            if let Some(value) = value {
                insert(AUTHORIZATION, name, Zeroizing::new(value))?;
            }
        }
        for (header, name) in &self.headers {
            let secret = give(name)?;
            insert(header.clone(), name, Zeroizing::new(secret.expose_secret().to_owned()))?;
        }
        Ok(headers)
    }
}

/// Whether a device that was not convinced would take a digest.
pub(crate) fn asks_for_digest(challenges: &[String]) -> bool {
    challenges.iter().flat_map(|text| parse(text)).any(|challenge| challenge.is_ok())
}

/// The challenges of RFC 7616 in one header, or what is wrong with them.
fn parse(text: &str) -> Vec<Result<DigestClient, String>> {
    let text = if text.len() > CHALLENGE_BYTES_MAX { "" } else { text };
    let challenges = ChallengeParser::new(text).filter_map(Result::ok);
    let digests = challenges.filter(|challenge| challenge.scheme.eq_ignore_ascii_case("digest"));
    let read = |challenge: ChallengeRef<'_>| {
        let digest = DigestClient::try_from(&challenge)?;
        let is_ours = digest.qop() & Qop::Auth && !digest.rfc2069_compat() && !digest.session();
        if is_ours { Ok(digest) } else { Err("the device asks for a digest other than qop=auth".to_owned()) }
    };
    digests.map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::collector::stage::{self, Peer, Stage};
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
        let mut credentials = credentials.map_err(|(key, reason)| format!("{key}: {reason}"))?;
        let headers = credentials.headers(&Target::parse(url)?, Method::Get, "/", false);
        let headers = headers.map_err(|failure| failure.to_string())?;
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
            ("secret = \"nas\"\nscheme = \"digest\"", "", "auth.user: basic and digest need a user"),
            ("", "Host = \"nas\"", "secret_headers.Host: this header is made by the request"),
            ("", "\"a b\" = \"nas\"", "secret_headers.a b: not the name"),
            ("secret = \"nas\"", "Authorization = \"nas\"", "secret_headers.Authorization: `auth` makes"),
        ] {
            let refusal = sent(auth, headers, "http://nas.lan/").unwrap_err();
            assert!(refusal.contains(said), "{refusal}");
        }
    }

    const REALM: &str = "shellyplus1-aabbccddeeff";

    fn sha256(text: &str) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        data_encoding::HEXLOWER.encode(digest.as_ref())
    }

    /// What stands behind a name in an `Authorization`.
    fn field<'a>(header: &'a str, name: &str) -> &'a str {
        let rest = header.split(&format!("{name}=")).nth(1).unwrap_or_else(|| panic!("no {name}: {header}"));
        rest.trim_start_matches('"').split(['"', ',']).next().unwrap()
    }

    /// Whether a request's head answers this nonce rightly, by RFC 7616, section 3.4.1.
    fn is_right(head: &str, nonce: &str) -> bool {
        let Some(header) = head.lines().find_map(|line| line.strip_prefix("authorization: Digest ")) else {
            return false;
        };
        let (method, uri) = head.split_once(' ').unwrap();
        let uri = uri.split(' ').next().unwrap();
        let first = sha256(&format!("admin:{REALM}:open sesame"));
        let second = sha256(&format!("{method}:{uri}"));
        let (count, own) = (field(header, "nc"), field(header, "cnonce"));
        let response = sha256(&format!("{first}:{nonce}:{count}:{own}:auth:{second}"));
        assert_eq!((field(header, "uri"), field(header, "username")), (uri, "admin"));
        field(header, " response") == response
    }

    fn answer(status: &str, more: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n{body}", body.len())
    }

    /// A device that keeps its connections, and what it was asked.
    fn device(say: impl Fn(&str, usize) -> String + Send + 'static) -> (Peer, Arc<Mutex<Vec<String>>>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&log);
        let peer = stage::raw_peer(move |stream| {
            while let Some(head) = stage::read_head(stream) {
                written.lock().unwrap().push(head.clone());
                let count = written.lock().unwrap().len();
                if stream.write_all(say(&head, count).as_bytes()).is_err() {
                    return;
                }
            }
        });
        (peer, log)
    }

    fn stage_with(port: u16, password: &str, auth: &str) -> (tempfile::TempDir, Stage) {
        let (dir, keyring) = stage::keyring("plug", password, "127.0.0.1");
        let device = format!(
            "collector = \"http\"\nurl = \"http://127.0.0.1:{port}/rpc?id=0\"\nauth = {auth}\n\
             [[device.metric]]\nname = \"x\"\npath = \"$.x\""
        );
        let stage = Stage::with_secrets(&device, &format!("loopback_ports = [{port}]"), keyring).unwrap();
        (dir, stage)
    }

    const DIGEST: &str = "{ user = \"admin\", secret = \"plug\", scheme = \"digest\" }";

    fn challenge(algorithm: &str, nonce: &str) -> String {
        format!(
            "WWW-Authenticate: Digest qop=\"auth\", realm=\"{REALM}\", nonce=\"{nonce}\", algorithm={algorithm}\r\n"
        )
    }

    #[tokio::test]
    async fn a_digest_answers_the_challenge_and_the_next_polls_go_on_with_it() {
        // MD5 comes first and is not taken where there is better; the third request finds its nonce too old.
        let (peer, log) = device(|head, count| {
            let nonce = if count < 4 { "n1" } else { "n2" };
            let offer =
                challenge("MD5", nonce) + &challenge("SHA-256", nonce) + "WWW-Authenticate: Basic realm=\"x\"\r\n";
            if is_right(head, nonce) && count != 3 {
                answer("200 OK", "", "{\"x\": 7}")
            } else {
                answer("401 Unauthorized", &if count == 3 { challenge("SHA-256", "n2") } else { offer }, "no")
            }
        });
        let (_dir, mut stage) = stage_with(peer.port, "open sesame", DIGEST);
        for _ in 0..3 {
            let polled = stage.poll_all().await;
            assert_eq!(polled.value("x"), Some(7.0), "{:?}", polled.missing);
        }
        let heads = log.lock().unwrap();
        let counts: Vec<_> = heads.iter().map(|head| head.contains("Digest ").then(|| field(head, "nc"))).collect();
        let (one, two) = (Some("00000001"), Some("00000002"));
        assert_eq!(counts, [None, one, two, one, two], "one challenge a nonce, not one a request");
        assert!(heads.iter().all(|head| !head.contains("Basic") && !head.contains("sesame")));
        assert_eq!(peer.visits.load(Ordering::SeqCst), 3, "a challenge is answered over the connection it came on");
    }

    #[tokio::test]
    async fn a_device_that_asks_for_less_than_digest_is_sent_no_password() {
        for (offer, said) in [
            ("WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned(), "asks for no digest"),
            (String::new(), "asks for no digest"),
            (challenge("SHA-256", "n1").replace("qop=\"auth\", ", ""), "other than qop=auth"),
            (challenge("SHA-256", "n1").replace("\"auth\"", "\"auth-int\""), "other than qop=auth"),
            (challenge("MD5-sess", "n1"), "other than qop=auth"),
            (challenge("ROT13", "n1"), "unknown algorithm"),
            (format!("WWW-Authenticate: Digest realm=\"{}\"\r\n", "x".repeat(3_000)), "asks for no digest"),
            ("WWW-Authenticate: Digest =,,\"\r\n".to_owned(), "asks for no digest"),
        ] {
            let (peer, log) = device(move |_, _| answer("401 Unauthorized", &offer, ""));
            let (_dir, mut stage) = stage_with(peer.port, "open sesame", DIGEST);
            let failure = stage.poll_all().await.missing[0].1.clone();
            assert!(failure.reason == Reason::Refused && failure.detail.contains(said), "{failure}");
            assert!(log.lock().unwrap().iter().all(|head| !head.to_lowercase().contains("authorization")));
        }
    }

    #[tokio::test]
    async fn a_wrong_password_is_tried_once_a_poll_and_basic_is_told_of_digest() {
        let (peer, log) = device(|head, _| match is_right(head, "n1") {
            true => answer("200 OK", "", "{\"x\": 7}"),
            false => answer("401 Unauthorized", &challenge("SHA-256", "n1"), ""),
        });
        let (_dir, mut stage) = stage_with(peer.port, "open barley", DIGEST);
        for polls in 1..3 {
            let failure = stage.poll_all().await.missing[0].1.clone();
            assert!(failure.detail.contains("HTTP 401: the device knows no such user and password"), "{failure}");
            assert_eq!(log.lock().unwrap().len(), 2 * polls);
        }
        let (_dir, mut basic) = stage_with(peer.port, "open sesame", "{ user = \"admin\", secret = \"plug\" }");
        let failure = basic.poll_all().await.missing[0].1.clone();
        assert!(failure.detail.ends_with("add scheme = \"digest\" to `auth`"), "{failure}");
    }
}
