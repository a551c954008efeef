//! A device asked as its profile says: all requests of a poll one after the other, over one connection where it is kept.
//!
//! Two metrics: `profile` is all that the profile reads, or a gap with the reason, which names profile and request;
//! `probe` tells how it went, as for a single request. A device that only opens sessions (`[login]`) is sent the password
//! once, and then what it gave for it, until it wants no more of it; a device without a password is just asked.
//!
//! What is `optional` is left out only where the device says that it has none of it, and never again once it had some:
//! a failure must not look like something that was not due.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::soap::Fault;
use super::ubus::{self, Said};
use super::{Login, Profile, Request, soap};
use crate::collector::http::client::{Answer, Client, Question};
use crate::collector::http::{
    ACCEPT, Ask, BODY_BYTES_MAX, DOCUMENT_BYTES_MAX, Options, Seen, aside, document_bytes, read_document,
};
use crate::collector::number::PROBE;
use crate::collector::probe::{self, Stopwatch};
use crate::collector::{Built, Collector, Context, Failure, Poll, Readings, options, whole};
use crate::policy::{Gate, Method, Protocol};
use crate::secrets::{Keyring, SecretName};

/// Index of the metric that is all that the profile reads.
const PROFILE: usize = 0;
/// Index of the metric that tells how it went.
const HOW: usize = 1;
/// Requests of one poll, beside those that log in.
const ENTITIES_MAX: usize = 32;
/// Answers of a device that is asked by number; a Fritz!Box takes some sixty devices.
const EACH_MAX: usize = 100;
/// A name in a device's own words.
const ENTITY_BYTES_MAX: usize = 128;
/// All answers of one poll.
const POLL_BYTES_MAX: usize = 4 << 20;
/// What opens a session.
const SESSION_BYTES_MAX: usize = 1 << 10;

/// Reads a device that names a profile.
pub(in crate::collector::http) fn build(
    name: &str,
    device_options: Options,
    device: &Device,
    context: &Context,
) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let at = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
    let profile = Profile::find(name).map_err(|reason| at("profile", reason))?;
    if !device.metrics.is_empty() {
        return Err(at("metric", format!("`{name}` knows its metrics: remove the [[device.metric]] tables")));
    }
    if device.options.contains_key("method") {
        return Err(at("method", format!("`{name}` knows how to ask: remove it")));
    }
    let Options { url, headers, secret_headers, auth, tls, entities, .. } = device_options;
    let (auth, keys) = match (auth, &profile.login) {
        (Some(auth), Some(login)) => {
            let keys = match login {
                Login::Password { .. } => auth.only_secret().map(|secret| (String::new(), secret)),
                Login::Ubus { .. } => auth.user_and_secret(),
            };
            (None, Some(keys.map_err(|(key, reason)| at(&key, reason))?))
        }
        (auth, _) => (auth, None),
    };
    let posts = keys.is_some() || profile.posts();
    for method in [Some(Method::Get), posts.then_some(Method::Post)].into_iter().flatten() {
        let permitted = context.gate.policy().permits_method(method);
        permitted.map_err(|refusal| at("profile", format!("`{name}` asks by {}: {refusal}", method.as_str())))?;
    }
    let client = Ask { url: &url, headers: &headers, secret_headers, auth, tls: &tls }.client(&path, context)?;
    let base = &client.target().url;
    let prefix = base.path().trim_end_matches('/').to_owned();
    if base.query().is_some() || !(prefix.is_empty() || profile.has_base) {
        return Err(at("url", format!("`{name}` has its own paths: write http://host or http://host:port")));
    }
    let plans = plans(&profile, &prefix, entities).map_err(|reason| at("entities", reason))?;
    let mut metrics = whole(device);
    metrics[PROFILE].name = "profile".into();
    metrics.extend(whole(device));
    metrics[HOW].name = PROBE.into();
    let collector = Profiled {
        gate: Arc::clone(&context.gate),
        keyring: Arc::clone(&context.keyring),
        client,
        prefix,
        answered: vec![false; plans.len()],
        plans: plans.into(),
        keys,
        session: None,
        session_is_good: false,
        profile: Arc::new(profile),
        limit: probe::limit(device.timeout),
    };
    Ok(Built { collector: Box::new(collector), metrics })
}

/// What each request of a profile asks for this device, behind what its URL has before all paths.
fn plans(profile: &Profile, prefix: &str, entities: Option<Vec<String>>) -> Result<Vec<Vec<String>>, String> {
    let entities = match (profile.has_entities(), entities) {
        (false, None) => Vec::new(),
        (false, Some(_)) => return Err(format!("`{}` asks for all there is: remove it", profile.name)),
        (true, None) => return Err(format!("`{}` asks for each by its name: {ENTITY_FORM}", profile.name)),
        (true, Some(entities)) if entities.is_empty() || entities.len() > ENTITIES_MAX => {
            return Err(format!("{} of them: write 1 to {ENTITIES_MAX}", entities.len()));
        }
        (true, Some(entities)) => {
            entities.iter().map(|entity| encoded(entity, &profile.kinds)).collect::<Result<_, _>>()?
        }
    };
    let plan = |request: &Request| match request.is_for_entities() {
        true => entities.iter().map(|entity| format!("{prefix}{}", request.path.replace("{entity}", entity))).collect(),
        false => vec![format!("{prefix}{}", request.path)],
    };
    Ok(profile.requests.iter().map(plan).collect())
}

const ENTITY_FORM: &str = "entities = [\"sensor/outdoor_temperature\", \"binary_sensor/door\"]";

/// An entity as it stands in a path: kind and name, nothing behind them that could do more than read.
fn encoded(entity: &str, kinds: &[String]) -> Result<String, String> {
    let fits = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(|c: char| c == '/' || c.is_control());
    let is_read = |(kind, name): (&str, &str)| kinds.iter().any(|known| known == kind) && fits(name);
    if !entity.split_once('/').is_some_and(is_read) || entity.len() > ENTITY_BYTES_MAX {
        let entity: String = entity.chars().take(80).collect();
        return Err(format!("{entity:?} is no {} with a name: {ENTITY_FORM}", kinds.join(", ")));
    }
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    Ok(entity.bytes().map(byte).collect())
}

struct Profiled {
    gate: Arc<Gate>,
    keyring: Arc<Keyring>,
    client: Client,
    profile: Arc<Profile>,
    /// What the device's URL has before all paths.
    prefix: String,
    /// The paths of each request.
    plans: Arc<[Vec<String>]>,
    /// Which requests the device has answered once: it has what they ask for.
    answered: Vec<bool>,
    /// What opens a session: a user, where there are several, and the name of the password.
    keys: Option<(String, SecretName)>,
    /// The one that is open.
    session: Option<HeaderValue>,
    /// Whether it was let in within this poll: what is denied then is denied to its user.
    session_is_good: bool,
    limit: Duration,
}

/// What one request came to.
enum Fetched {
    Body(Vec<u8>),
    /// The device says that it has none of this.
    Absent(Failure),
    /// The device has none of this number.
    End(Failure),
}

impl Profiled {
    async fn probe(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut seen = Seen::default();
        self.session_is_good = false;
        let limit = self.limit;
        let mut found = readings.sibling();
        let outcome = probe::within(limit, self.read_all(&mut seen, watch, &mut found)).await;
        let seconds = watch.seconds();
        self.client.hang_up();
        match &outcome {
            Err(failure) if probe::was_not_tried(failure) => return Err(failure.clone()),
            Err(_) => readings.device_failed(),
            Ok(()) => {}
        }
        if due.contains(&PROFILE) {
            match &outcome {
                // Half of it is no answer.
                Err(failure) => readings.missing(PROFILE, failure.clone()),
                Ok(()) => readings.append(&found),
            }
        }
        if due.contains(&HOW) {
            probe::report(readings, HOW, outcome.is_ok(), seconds);
            seen.report(HOW, &self.client, readings);
        }
        Ok(())
    }

    async fn read_all(&mut self, seen: &mut Seen, watch: Stopwatch, found: &mut Readings) -> Result<(), Failure> {
        let mut bytes = 0;
        for (at, paths) in Arc::clone(&self.plans).iter().enumerate() {
            let request = &Arc::clone(&self.profile).requests[at];
            if let Some(each) = &request.each {
                self.read_each(seen, watch, at, &paths[0], &each.none, found).await?;
                continue;
            }
            let mut bodies = Vec::with_capacity(paths.len());
            for path in paths {
                let before = seen.clone();
                let fetched = self.fetch(seen, request, path, None).await;
                let body = match fetched.map_err(|failure| self.explained(failure, path))? {
                    Fetched::Body(body) => body,
                    Fetched::Absent(_) if request.is_optional && !self.answered[at] => {
                        *seen = before;
                        continue;
                    }
                    Fetched::Absent(Failure { reason, detail }) if request.is_optional => {
                        let why = format!("{detail}, though it has answered before");
                        return Err(self.explained(Failure::new(reason, why), path));
                    }
                    Fetched::Absent(failure) | Fetched::End(failure) => return Err(self.explained(failure, path)),
                };
                self.answered[at] = true;
                bytes += body.len();
                if bytes > POLL_BYTES_MAX {
                    let detail = format!("answers of more than {POLL_BYTES_MAX} bytes together");
                    return Err(self.explained(Failure::new(Reason::BadAnswer, detail), path));
                }
                bodies.push((path.clone(), body));
            }
            if !bodies.is_empty() {
                self.take(at, bodies, watch.left(self.limit), found).await?;
            }
        }
        Ok(())
    }

    /// Asks by number until the device has no more of them.
    async fn read_each(
        &mut self,
        seen: &mut Seen,
        watch: Stopwatch,
        at: usize,
        path: &str,
        none: &str,
        found: &mut Readings,
    ) -> Result<(), Failure> {
        let request = &Arc::clone(&self.profile).requests[at];
        for number in 0..EACH_MAX {
            let before = seen.clone();
            let fetched = self.fetch(seen, request, path, Some(number)).await;
            match fetched.map_err(|failure| self.explained(failure, path))? {
                Fetched::Body(body) => {
                    self.take(at, vec![(path.to_owned(), body)], watch.left(self.limit), found).await?;
                }
                Fetched::End(_) if number > 0 => {
                    *seen = before;
                    return Ok(());
                }
                Fetched::End(Failure { reason, detail }) => {
                    return Err(self.explained(Failure::new(reason, format!("{detail}: {none}")), path));
                }
                Fetched::Absent(failure) => return Err(self.explained(failure, path)),
            }
        }
        let detail = format!("{EACH_MAX} answers and more to come");
        Err(self.explained(Failure::new(Reason::BadAnswer, detail), path))
    }

    /// Reads what the paths of one request answered.
    async fn take(
        &mut self,
        at: usize,
        bodies: Vec<(String, Vec<u8>)>,
        left: Duration,
        found: &mut Readings,
    ) -> Result<(), Failure> {
        let profile = Arc::clone(&self.profile);
        let mut own = found.sibling();
        let bytes = bodies.iter().map(|(_, body)| body.len()).sum();
        let values: usize = bodies.iter().map(|(_, body)| document_bytes(body)).sum();
        if values > DOCUMENT_BYTES_MAX {
            let why = format!("answers with more values than fit {DOCUMENT_BYTES_MAX} bytes");
            return Err(self.explained(Failure::new(Reason::BadAnswer, why), &bodies[0].0));
        }
        let read = move || {
            let request = &profile.requests[at];
            let bad = |path: &str, why: String| explained(&profile, Failure::new(Reason::BadAnswer, why), path);
            let path = bodies.first().map_or(String::new(), |(path, _)| path.clone());
            let mut documents = Vec::with_capacity(bodies.len());
            for (path, body) in bodies {
                documents.push(request.document(&body, &profile.about).map_err(|why| bad(&path, why))?);
            }
            let document = if request.is_for_entities() {
                Value::Array(documents)
            } else {
                documents.pop().unwrap_or(Value::Null)
            };
            match request.add(&document, PROFILE, left, &mut own) {
                Ok(true) => Ok(own),
                Ok(false) => {
                    let late = Failure::new(Reason::Timeout, "no time was left to read all of the answer");
                    Err(explained(&profile, late, &path))
                }
                Err(why) => Err(bad(&path, why)),
            }
        };
        found.append(&aside(bytes, read).await?);
        Ok(())
    }

    /// One answer's body, or that there is nothing to answer with.
    async fn fetch(
        &mut self,
        seen: &mut Seen,
        request: &Request,
        path: &str,
        number: Option<usize>,
    ) -> Result<Fetched, Failure> {
        let unfit = |why: String| Failure::new(Reason::Unsupported, why);
        if let Some(method) = &request.ubus {
            return self.call(seen, method, path).await;
        }
        let mut question = Question::new(Method::Get, ACCEPT);
        question.path = Some(path.to_owned());
        if let Some(action) = &request.soap {
            question.method = Method::Post;
            let argument = request.each.as_ref().map(|each| each.by.as_str()).zip(number);
            (question.headers, question.body) =
                soap::call(action, argument).map_err(|error| unfit(error.to_string()))?;
        }
        let mut answer = self.ask(seen, &mut question).await?;
        let refused = answer.check_status().err();
        if let (Some(failure), 404 | 405 | 410 | 501) = (&refused, answer.status()) {
            self.client.keep(answer).await;
            return Ok(Fetched::Absent(failure.clone()));
        }
        let may_be_fault = request.soap.is_some() && answer.status() == 500;
        if let (Some(failure), false) = (&refused, may_be_fault) {
            return Err(failure.clone());
        }
        answer.check_encoding()?;
        let body = answer.body(BODY_BYTES_MAX).await?;
        self.client.keep(answer).await;
        let Some(failure) = refused else { return Ok(Fetched::Body(body)) };
        match Fault::read(&body) {
            Some(fault) if fault.is_end() && number.is_some() => {
                Ok(Fetched::End(Failure::new(Reason::BadAnswer, fault.to_string())))
            }
            Some(fault) if fault.is_absence() => {
                Ok(Fetched::Absent(Failure::new(Reason::BadAnswer, fault.to_string())))
            }
            Some(fault) if fault.is_refusal() => {
                Err(Failure::new(Reason::Refused, format!("{fault}: it wants {}", self.profile.wants)))
            }
            Some(fault) => Err(Failure::new(Reason::Refused, fault.to_string())),
            None => Err(failure),
        }
    }

    /// One answer of OpenWrt's bus, which says within it that a session has ended.
    async fn call(&mut self, seen: &mut Seen, method: &str, path: &str) -> Result<Fetched, Failure> {
        loop {
            let had_session = self.session.is_some();
            let session = self.session(seen).await?.unwrap_or(HeaderValue::from_static(ubus::NOBODY));
            let body =
                self.post(seen, path, ubus::call(session.to_str().unwrap_or_default(), method, &json!({}))).await?;
            let said = read_document(&body).and_then(ubus::read);
            let other = |why: String| Failure::new(Reason::BadAnswer, format!("{why}: is it {}?", self.profile.about));
            match said.map_err(other)? {
                // Sessions end after five minutes without a call, or with the router.
                Said::Denied if had_session && !self.session_is_good => {
                    self.session = None;
                    continue;
                }
                Said::Denied if self.keys.is_none() => {
                    let why = format!("rpcd lets nobody call `{method}`: it wants {}", self.profile.wants);
                    return Err(Failure::new(Reason::Refused, why));
                }
                Said::Denied => {
                    let why = format!("rpcd does not let this user call `{method}`: see its access lists");
                    return Err(Failure::new(Reason::Refused, why));
                }
                Said::Failed(why) => return Err(Failure::new(Reason::BadAnswer, why)),
                Said::Absent(why) => {
                    self.session_is_good = true;
                    return Ok(Fetched::Absent(Failure::new(Reason::BadAnswer, why)));
                }
                Said::Data(_) => {
                    self.session_is_good = true;
                    return Ok(Fetched::Body(body));
                }
            }
        }
    }

    async fn post(
        &mut self,
        seen: &mut Seen,
        path: &str,
        (headers, body): (HeaderMap, Bytes),
    ) -> Result<Vec<u8>, Failure> {
        let question = Question { method: Method::Post, path: Some(path.to_owned()), accept: ACCEPT, headers, body };
        let mut answer = seen.ask(&mut self.client, &self.gate, &question).await?;
        answer.check_status()?;
        answer.check_encoding()?;
        let body = answer.body(BODY_BYTES_MAX).await?;
        self.client.keep(answer).await;
        Ok(body)
    }

    /// Asks within a session, where there has to be one.
    async fn ask(&mut self, seen: &mut Seen, question: &mut Question) -> Result<Answer, Failure> {
        let had_session = self.session.is_some();
        self.show_session(seen, question).await?;
        let answer = seen.ask(&mut self.client, &self.gate, question).await?;
        if answer.status() != 401 || self.keys.is_none() {
            return Ok(answer);
        }
        self.session = None;
        if !had_session {
            return Ok(answer);
        }
        self.client.keep(answer).await;
        self.show_session(seen, question).await?;
        seen.ask(&mut self.client, &self.gate, question).await
    }

    async fn show_session(&mut self, seen: &mut Seen, question: &mut Question) -> Result<(), Failure> {
        let Some(session) = self.session(seen).await? else { return Ok(()) };
        if let Some(Login::Password { header, .. }) = &self.profile.login {
            let header = HeaderName::from_bytes(header.as_bytes());
            let header = header.map_err(|error| Failure::new(Reason::Unsupported, error.to_string()))?;
            question.headers.insert(header, session);
        }
        Ok(())
    }

    /// The session that is open, or a new one; none for who needs none.
    async fn session(&mut self, seen: &mut Seen) -> Result<Option<HeaderValue>, Failure> {
        let profile = Arc::clone(&self.profile);
        let (Some(login), Some((user, name))) = (&profile.login, self.keys.clone()) else { return Ok(None) };
        if self.session.is_none() {
            let opened = self.log_in(seen, login, &user, &name).await;
            let at_login = |Failure { reason, detail }| Failure::new(reason, format!("logging in: {detail}"));
            self.session = Some(
                opened.map_err(|failure| if probe::was_not_tried(&failure) { failure } else { at_login(failure) })?,
            );
        }
        Ok(self.session.clone())
    }

    async fn log_in(
        &mut self,
        seen: &mut Seen,
        login: &Login,
        user: &str,
        name: &SecretName,
    ) -> Result<HeaderValue, Failure> {
        let (host, port) = (self.client.target().host.clone(), self.client.target().port);
        let secret = self.keyring.give(name, Protocol::Http, &host, port)?;
        let (path, question) = match login {
            Login::Password { path, .. } => {
                let mut headers = HeaderMap::new();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                (path, (headers, Bytes::from(json!({"password": secret.expose_secret()}).to_string())))
            }
            Login::Ubus { path } => {
                let arguments = json!({"username": user, "password": secret.expose_secret()});
                (path, ubus::call(ubus::NOBODY, "session login", &arguments))
            }
        };
        let posted = self.post(seen, &format!("{}{path}", self.prefix), question).await;
        let body = posted.map_err(|failure| match (login, failure.detail.as_str()) {
            (Login::Password { .. }, "HTTP 401") => Failure::new(failure.reason, "HTTP 401: the password is wrong"),
            (Login::Password { full, .. }, "HTTP 429") => Failure::new(failure.reason, format!("HTTP 429: {full}")),
            _ => failure,
        })?;
        let bad = |why: String| Failure::new(Reason::BadAnswer, why);
        let document = read_document(&body).map_err(bad)?;
        let session = match login {
            Login::Password { session, .. } => session.first(&document).and_then(Value::as_str).map(str::to_owned),
            Login::Ubus { .. } => match ubus::read(document).map_err(bad)? {
                Said::Data(data) => data["ubus_rpc_session"].as_str().map(str::to_owned),
                Said::Denied => return Err(Failure::new(Reason::Refused, "user or password is wrong")),
                Said::Absent(why) | Said::Failed(why) => return Err(bad(why)),
            },
        };
        let session = session.filter(|text| (1..=SESSION_BYTES_MAX).contains(&text.len()));
        match session.map(|text| HeaderValue::from_str(&text)) {
            Some(Ok(mut session)) => {
                session.set_sensitive(true);
                Ok(session)
            }
            _ => Err(bad("no session came of it".into())),
        }
    }

    /// Says with a failure whose it is, and what it wants of who is not let in.
    fn explained(&self, failure: Failure, path: &str) -> Failure {
        let has_shown = self.keys.is_some() || self.client.has_credentials();
        let wants = &self.profile.wants;
        let detail = match (failure.detail.as_str(), has_shown) {
            ("HTTP 401" | "HTTP 403", false) => format!("{}: it wants {wants}", failure.detail),
            ("HTTP 401" | "HTTP 403", true) => {
                format!("{}: what it was shown is refused; it wants {wants}", failure.detail)
            }
            _ => failure.detail,
        };
        explained(&self.profile, Failure::new(failure.reason, detail), path)
    }
}

/// Says with a failure whose it is, and where; a path that is not there is a device of another kind.
fn explained(profile: &Profile, failure: Failure, path: &str) -> Failure {
    if probe::was_not_tried(&failure) {
        return failure;
    }
    let Failure { reason, detail } = failure;
    let (reason, hint) = match detail.as_str() {
        "HTTP 404" | "HTTP 405" | "HTTP 410" | "HTTP 501" => (Reason::BadAnswer, format!(": is it {}?", profile.about)),
        _ if detail.contains("more than") => {
            (reason, profile.larger.as_ref().map_or_else(String::new, |larger| format!(": {larger}")))
        }
        _ => (reason, String::new()),
    };
    Failure::new(reason, format!("profile `{}`, {path}: {detail}{hint}", profile.name))
}

impl Collector for Profiled {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(due, readings))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::Mutex;
    use std::sync::atomic::Ordering;

    use satellite_shared::metric::Kind;

    use super::*;
    use crate::collector::http::profile::ALL;
    use crate::collector::stage::{self, Peer, Polled, Stage};

    const POSTING: &str = "methods = [\"GET\", \"POST\"]";

    /// What a device answers to `METHOD path`, and behind it the SOAP action in quotes, if there is one.
    fn fixture(profile: &str) -> BTreeMap<String, Value> {
        let path = format!("{}/src/collector/http/fixtures/{profile}.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    struct Asked {
        head: String,
        key: String,
        body: String,
    }

    fn read_request(stream: &mut TcpStream) -> Option<Asked> {
        let head = stage::read_head(stream)?;
        let header = |name: &str| {
            let line = head.lines().find(|line| line.starts_with(name))?;
            line.split_once(": ").map(|(_, value)| value.to_owned())
        };
        let length: usize = header("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let mut words = head.split(' ');
        let mut key = format!("{} {}", words.next()?, words.next()?);
        if key.ends_with(" /ubus") {
            let call: Value = serde_json::from_slice(&body).unwrap();
            key.push_str(&format!(" {} {}", call["params"][1].as_str()?, call["params"][2].as_str()?));
        }
        if let Some(action) = header("soapaction") {
            key.push_str(&format!(" {action}"));
        }
        Some(Asked { key, body: String::from_utf8(body).unwrap(), head })
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn fault(code: &str, words: &str) -> String {
        let body = format!(
            "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"x\"><s:Body><s:Fault><faultcode>s:Client</faultcode>\
             <faultstring>UPnPError</faultstring><detail><UPnPError><errorCode>{code}</errorCode>\
             <errorDescription>{words}</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>"
        );
        answer("500 Internal Server Error", &body)
    }

    /// What a device with these answers says to a request.
    fn said(answers: &BTreeMap<String, Value>, asked: &Asked) -> String {
        match answers.get(&asked.key) {
            None if asked.key.starts_with("POST /ubus") => answer("200 OK", "{\"result\": [4]}"),
            Some(data) if asked.key.starts_with("POST /ubus") => {
                answer("200 OK", &json!({ "jsonrpc": "2.0", "id": 1, "result": [0, data] }).to_string())
            }
            None if asked.key.starts_with("POST") => fault("401", "Invalid Action"),
            None => answer("404 Not Found", "nothing"),
            Some(texts) if asked.key.starts_with("POST") => {
                let number = |list: &'_ [Value]| {
                    let number = asked.body.split_once("<NewIndex>")?.1.split_once('<')?.0;
                    list.get(number.parse::<usize>().unwrap()).cloned()
                };
                let texts = texts.as_array().map_or_else(|| Some(texts.clone()), |list| number(list));
                let Some(texts) = texts else { return fault("713", "SpecifiedArrayIndexInvalid") };
                let texts = texts.as_object().unwrap().iter();
                let leaves: String =
                    texts.map(|(name, text)| format!("<{name}>{}</{name}>", text.as_str().unwrap())).collect();
                let action = asked.key.trim_end_matches('"').rsplit('#').next().unwrap();
                assert!(asked.body.contains(&format!("<u:{action} ")), "{}", asked.body);
                let body = format!(
                    "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"x\"><s:Body><u:{action}Response xmlns:u=\"y\">\n\
                     {leaves}</u:{action}Response></s:Body></s:Envelope>"
                );
                answer("200 OK", &body)
            }
            Some(document) => answer("200 OK", &document.to_string()),
        }
    }

    /// A device that keeps its connections.
    fn device(say: impl Fn(&Asked) -> String + Send + 'static) -> Peer {
        stage::raw_peer(move |stream| {
            while let Some(asked) = read_request(stream) {
                if stream.write_all(say(&asked).as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    fn stage(port: u16, profile: &str, more: &str) -> Stage {
        let device = format!(
            "collector = \"http\"\nprofile = \"{profile}\"\nurl = \"http://127.0.0.1:{port}\"\ntimeout = \"5s\"\n{more}"
        );
        Stage::with_policy(&device, &format!("loopback_ports = [{port}]\n{POSTING}")).unwrap()
    }

    fn entities(profile: &str) -> &'static str {
        match profile {
            "esphome" => {
                "entities = [\"sensor/outdoor_temperature\", \"sensor/Air Quality\", \"sensor/broken\", \
                 \"sensor/boots\", \"binary_sensor/door\", \"switch/relay\", \"number/threshold\", \"number/unset\"]"
            }
            _ => "",
        }
    }

    fn listed(polled: &Polled) -> String {
        let line = |(series, value): &(satellite_shared::metric::Series, f64)| {
            let labels: Vec<String> = series.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
            let kind = match series.kind {
                Kind::Counter => " counter",
                Kind::Info => " info",
                Kind::Unknown | Kind::Gauge | Kind::Histogram | Kind::Summary | Kind::StateSet => "",
            };
            let unit = if series.unit.is_empty() { String::new() } else { format!(" {}", series.unit) };
            format!("{}{{{}}} {value}{kind}{unit}", series.name, labels.join(","))
        };
        let own = polled.samples.iter().filter(|(series, _)| !series.name.starts_with("probe_"));
        own.map(line).collect::<Vec<_>>().join("\n")
    }

    #[tokio::test]
    async fn every_profile_reads_a_device_of_its_kind_over_one_connection() {
        for (name, _) in ALL {
            let answers = fixture(name);
            let peer = device(move |asked| said(&answers, asked));
            let mut stage = stage(peer.port, name, entities(name));
            let polled = stage.poll_all().await;
            assert!(polled.failure.is_none() && polled.missing.is_empty(), "{name}: {:?}", polled.missing);
            assert_eq!(polled.value("probe_success"), Some(1.0), "{name}");
            insta::assert_snapshot!(format!("profile_{name}"), listed(&polled));
            assert_eq!(peer.visits.load(Ordering::SeqCst), 1, "{name}: one connection");
            let mut series: Vec<_> = polled.samples.iter().map(|(series, _)| series).collect();
            series.sort_by_key(|series| (series.name.clone(), series.labels.clone()));
            assert!(series.is_sorted_by(|a, b| (&a.name, &a.labels) != (&b.name, &b.labels)), "{name}: a series twice");
        }
    }

    #[tokio::test]
    async fn a_device_of_another_kind_is_a_bad_answer_that_names_the_profile() {
        for (name, _) in ALL {
            let others =
                ["<html>login</html>", "{\"hello\": \"world\", \"appName\": \"Other\"}", "[]", "<a><b>c</b></a>"];
            for other in others.map(|body| answer("200 OK", body)).into_iter().chain([answer("404 Not Found", "")]) {
                let peer = device(move |_| other.clone());
                let polled = stage(peer.port, name, entities(name)).poll_all().await;
                let (metric, failure) = &polled.missing[0];
                assert_eq!((metric.as_str(), polled.missing.len()), ("profile", 1));
                assert!(failure.detail.starts_with(&format!("profile `{name}`, /")), "{failure}");
                assert!(failure.detail.contains(": is it "), "{failure}");
                assert_eq!(
                    (failure.reason, polled.value("probe_success")),
                    (Reason::BadAnswer, Some(0.0)),
                    "{failure}"
                );
                assert_eq!(listed(&polled), "");
            }
        }
    }

    #[tokio::test]
    async fn a_device_that_closes_after_each_answer_is_asked_over_several_connections() {
        for head in ["HTTP/1.1 200 OK\r\nConnection: close\r\n", "HTTP/1.1 200 OK\r\n"] {
            let answers = fixture("jellyfin");
            let peer = stage::raw_peer(move |stream| {
                let asked = read_request(stream).unwrap();
                let said = said(&answers, &asked).replacen("HTTP/1.1 200 OK\r\n", head, 1);
                drop(stream.write_all(said.as_bytes()));
            });
            let polled = stage(peer.port, "jellyfin", "").poll_all().await;
            assert_eq!(polled.value("jellyfin_playing_sessions"), Some(2.0), "{:?}", polled.missing);
            assert_eq!(peer.visits.load(Ordering::SeqCst), 3);
        }
    }

    #[tokio::test]
    async fn half_of_a_profile_is_none() {
        let mut answers = fixture("jellyfin");
        answers.remove("GET /Items/Counts");
        let peer = device(move |asked| said(&answers, asked));
        let polled = stage(peer.port, "jellyfin", "").poll_all().await;
        assert!(polled.missing[0].1.detail.contains("/Items/Counts: HTTP 404"), "{}", polled.missing[0].1);
        assert_eq!(listed(&polled), "");
        let peer = device(|_| answer("503 Busy", ""));
        let polled = stage(peer.port, "jellyfin", "").poll_all().await;
        assert_eq!(polled.missing[0].1.reason, Reason::Refused);
    }

    #[tokio::test]
    async fn a_device_that_stalls_or_sends_without_end_ends_the_poll_by_itself() {
        let peer = stage::peer(|_, stream| drop(stream.read(&mut [0])));
        let text = format!(
            "collector = \"http\"\nprofile = \"proxmox\"\nurl = \"http://127.0.0.1:{}\"\ntimeout = \"1s\"",
            peer.port
        );
        let polled = Stage::new(&text, &[peer.port]).unwrap().poll_all().await;
        assert_eq!(polled.missing[0].1.reason, Reason::Timeout);
        let peer = device(|_| format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(2 << 20)));
        let polled = stage(peer.port, "proxmox", "").poll_all().await;
        assert!(polled.missing[0].1.detail.contains("more than 1048576 bytes"), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_url_with_a_path_is_before_all_paths_of_what_may_have_one() {
        let answers = fixture("sonarr");
        let peer = device(move |asked| {
            let key = asked.key.replacen("GET /tv/", "GET /", 1);
            assert_ne!(key, asked.key);
            said(&answers, &Asked { key, head: asked.head.clone(), body: asked.body.clone() })
        });
        let text = format!("collector = \"http\"\nprofile = \"sonarr\"\nurl = \"http://127.0.0.1:{}/tv/\"", peer.port);
        let polled = Stage::new(&text, &[peer.port]).unwrap().poll_all().await;
        assert_eq!(polled.value("sonarr_system_status"), Some(1.0), "{:?}", polled.missing);
    }

    const OPTIONAL: &str = "POST /upnp/control/wlanconfig3 \"";

    /// A Fritz!Box that answers as its fixture says, but for the last of what is optional.
    fn fritzbox(say: impl Fn(usize) -> String + Send + 'static) -> Peer {
        let (answers, count) = (fixture("fritzbox-tr064"), Mutex::new(0));
        device(move |asked| {
            if !asked.key.starts_with(OPTIONAL) {
                return said(&answers, asked);
            }
            let mut count = count.lock().unwrap();
            *count += 1;
            say(*count)
        })
    }

    fn associations(count: usize) -> String {
        let leaf = format!("<NewTotalAssociations>{count}</NewTotalAssociations>");
        answer("200 OK", &format!("<s:Envelope><s:Body><u:R>{leaf}</u:R></s:Body></s:Envelope>"))
    }

    #[tokio::test]
    async fn what_a_device_says_it_has_not_is_left_out_and_the_probe_tells_of_what_answered() {
        for absent in [
            fault("401", "Invalid Action"),
            fault("713", "Invalid array index"),
            fault("820", "Internal error"),
            answer("404 Not Found", "nothing"),
            answer("405 Method Not Allowed", ""),
            answer("410 Gone", ""),
            answer("501 Not Implemented", ""),
        ] {
            let peer = fritzbox(move |_| absent.clone());
            let polled = stage(peer.port, "fritzbox-tr064", "").poll_all().await;
            assert!(polled.missing.is_empty(), "{:?}", polled.missing);
            assert_eq!(polled.value("fritz_uptime_seconds_total"), Some(123_456.0));
            let how = ["probe_success", "probe_http_status_code"].map(|name| polled.value(name));
            assert_eq!(how, [Some(1.0), Some(200.0)]);
        }
    }

    #[tokio::test]
    async fn what_failed_is_a_gap_and_not_left_out() {
        for (failed, status, said) in [
            (
                fault("606", "Action not authorized"),
                500.0,
                "UPnP error 606: \"Action not authorized\": it wants a user",
            ),
            (fault("501", "Action failed"), 500.0, "wlanconfig3: UPnP error 501: \"Action failed\""),
            (answer("500 Internal Server Error", "busy"), 500.0, "wlanconfig3: HTTP 500"),
            (answer("503 Service Unavailable", ""), 503.0, "wlanconfig3: HTTP 503"),
            (answer("302 Found", ""), 302.0, "redirects are not followed"),
        ] {
            let peer = fritzbox(move |_| failed.clone());
            let polled = stage(peer.port, "fritzbox-tr064", "").poll_all().await;
            assert_eq!((listed(&polled).as_str(), polled.missing.len()), ("", 1));
            assert!(polled.missing[0].1.detail.contains(said), "{}", polled.missing[0].1);
            let how = ["probe_success", "probe_http_status_code"].map(|name| polled.value(name));
            assert_eq!(how, [Some(0.0), Some(status)]);
        }
    }

    #[tokio::test]
    async fn what_answered_once_and_is_gone_is_a_gap() {
        let peer = fritzbox(|count| if count == 2 { associations(3) } else { fault("401", "Invalid Action") });
        let mut stage = stage(peer.port, "fritzbox-tr064", "");
        assert!(stage.poll_all().await.missing.is_empty());
        let third = ("wifi_index=3".to_owned(), 3.0);
        assert!(stage.poll_all().await.labelled("fritz_wifi_associations_count").contains(&third));
        let polled = stage.poll_all().await;
        let failure = &polled.missing[0].1;
        assert!(failure.detail.ends_with("\"Invalid Action\", though it has answered before"), "{failure}");
        assert_eq!((listed(&polled).as_str(), polled.value("probe_success")), ("", Some(0.0)));
    }

    #[tokio::test]
    async fn what_is_asked_by_number_ends_where_the_device_says_so_and_not_where_it_fails() {
        let homes = |at: usize| fixture("fritzbox-smart-home").values().next().unwrap()[at].clone();
        let leaves = |home: &Value| -> String {
            home.as_object()
                .unwrap()
                .iter()
                .map(|(name, text)| format!("<{name}>{}</{name}>", text.as_str().unwrap()))
                .collect()
        };
        let plug = answer("200 OK", &format!("<a>{}</a>", leaves(&homes(0))));
        for (end, expect) in [
            (fault("713", "SpecifiedArrayIndexInvalid"), ""),
            (
                fault("606", "Action not authorized"),
                "UPnP error 606: \"Action not authorized\": it wants a Smart Home user",
            ),
            (fault("401", "Invalid action"), "x_homeauto: UPnP error 401"),
            (fault("501", "Action failed"), "x_homeauto: UPnP error 501"),
            (answer("404 Not Found", ""), "x_homeauto: HTTP 404"),
            (answer("503 Service Unavailable", ""), "x_homeauto: HTTP 503"),
            (plug.clone(), "100 answers and more to come"),
        ] {
            let plug = plug.clone();
            let peer = device(move |asked| match asked.body.contains("<NewIndex>0<") {
                true => plug.clone(),
                false => end.clone(),
            });
            let polled = stage(peer.port, "fritzbox-smart-home", "").poll_all().await;
            let told = polled.missing.first().map_or("", |(_, failure)| failure.detail.as_str());
            assert!(told.is_empty() == expect.is_empty() && told.contains(expect), "{expect}: {told}");
            assert_eq!(polled.value("fritz_ha_multimeter_power_W").is_some(), expect.is_empty(), "{expect}");
        }
        let peer = device(|_| fault("713", "SpecifiedArrayIndexInvalid"));
        let polled = stage(peer.port, "fritzbox-smart-home", "").poll_all().await;
        assert!(polled.missing[0].1.detail.ends_with(": no device is registered there"), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_bus_leaves_out_what_it_has_not_and_tells_what_failed() {
        let cases = [
            ("{\"result\": [3]}", ""),
            ("{\"result\": [5]}", ""),
            ("{\"error\": {\"code\": -32000, \"message\": \"Object not found\"}}", ""),
            ("{\"error\": {\"code\": -32601, \"message\": \"Method not found\"}}", ""),
            ("{\"result\": [7]}", "/ubus: ubus answers status 7"),
            ("{\"result\": [9]}", "/ubus: ubus answers status 9"),
            ("{\"error\": {\"code\": -32603, \"message\": \"Internal\"}}", "ubus answers error -32603"),
            ("{\"result\": [6]}", "rpcd lets nobody call `network.interface dump`: it wants a user of rpcd"),
        ];
        for (dump, expect) in cases {
            let answers = fixture("openwrt");
            let peer = device(move |asked| match asked.key.ends_with("network.interface dump") {
                true => answer("200 OK", dump),
                false => said(&answers, asked),
            });
            let polled = stage(peer.port, "openwrt", "").poll_all().await;
            let told = polled.missing.first().map_or("", |(_, failure)| failure.detail.as_str());
            assert!(told.is_empty() == expect.is_empty() && told.contains(expect), "{dump}: {told}");
            assert_eq!(polled.value("node_load1").is_some(), expect.is_empty(), "{dump}");
        }
    }

    #[tokio::test]
    async fn who_is_not_let_in_is_told_what_the_device_wants() {
        for (name, _) in ALL {
            for (status, is_shown) in [("401 Unauthorized", false), ("403 Forbidden", true)] {
                let peer = device(move |_| answer(status, ""));
                let shown = if is_shown { "secret_headers = { X-Key = \"key\" }\n" } else { "" };
                let text = format!(
                    "collector = \"http\"\nprofile = \"{name}\"\nurl = \"http://127.0.0.1:{}\"\n{shown}{}",
                    peer.port,
                    entities(name)
                );
                let policy = format!("loopback_ports = [{}]\n{POSTING}", peer.port);
                let (_dir, keyring) = stage::keyring("key", "sesame", "127.0.0.1");
                let polled = Stage::with_secrets(&text, &policy, keyring).unwrap().poll_all().await;
                let failure = &polled.missing[0].1;
                let wants = Profile::find(name).unwrap().wants;
                let said = if is_shown { "HTTP 403: what it was shown is refused; it" } else { "HTTP 401: it" };
                assert!(failure.detail.ends_with(&format!("{said} wants {wants}")), "{failure}");
                assert_eq!(failure.reason, Reason::Refused);
            }
        }
    }

    #[tokio::test]
    async fn a_token_that_sees_nothing_is_told_of_its_rights() {
        let mut answers = fixture("proxmox");
        let bare = json!({"data": [{"id": "node/pve1", "type": "node", "node": "pve1", "status": "online"}]});
        answers.insert("GET /api2/json/cluster/resources".to_owned(), bare);
        let peer = device(move |asked| said(&answers, asked));
        let failure = stage(peer.port, "proxmox", "").poll_all().await.missing.remove(0).1;
        let todo = "give the token the role PVEAuditor (Datacenter > Permissions > Add > API Token Permission, path /)";
        assert!(failure.detail.ends_with(todo), "{failure}");
    }

    #[tokio::test]
    async fn a_house_too_large_for_one_answer_is_told_the_other_way() {
        let state = |at: usize| json!({"entity_id": format!("sensor.t{at}"), "state": "1", "attributes": {"unit_of_measurement": "°C"}});
        let many = json!((0..1_200).map(state).collect::<Vec<_>>()).to_string();
        for (body, what) in [(many, "matches 1200 times"), (" ".repeat(2 << 20), "a body of more than 1048576 bytes")] {
            let peer = device(move |_| answer("200 OK", &body));
            let failure = stage(peer.port, "home-assistant", "").poll_all().await.missing.remove(0).1;
            assert!(failure.detail.contains(what), "{failure}");
            assert!(failure.detail.ends_with(": read /api/prometheus by collector = \"prometheus\""), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_poll_is_one_turn_and_one_look_up_however_many_requests_it_has() {
        let answers = fixture("sonarr");
        let peer = device(move |asked| said(&answers, asked));
        // Six turns of this pace take longer than the poll may.
        let text = format!(
            "collector = \"http\"\nprofile = \"sonarr\"\nurl = \"http://localhost:{}\"\ntimeout = \"3s\"",
            peer.port
        );
        let policy = format!("loopback_ports = [{}]\nrequests_per_second_max = 1", peer.port);
        let polled = Stage::with_policy(&text, &policy).unwrap().poll_all().await;
        assert_eq!(polled.value("probe_success"), Some(1.0), "{:?}", polled.failure);
    }

    #[tokio::test]
    async fn a_shellys_own_sensor_is_told_from_the_one_inside() {
        let status = |tmp: &Value| json!({"mac": "AABBCCDDEEFF", "uptime": 5, "tmp": tmp, "temperature": 44.0});
        for (tmp, expect) in [
            (json!({"tC": 44.0, "tF": 111.2, "is_valid": true}), vec![("component=device".to_owned(), 44.0)]),
            (
                json!({"value": 21.5, "units": "C", "tC": 21.5, "tF": 70.7, "is_valid": true}),
                vec![("component=device".to_owned(), 44.0), ("component=sensor".to_owned(), 21.5)],
            ),
        ] {
            let body = status(&tmp).to_string();
            let peer = device(move |_| answer("200 OK", &body));
            let polled = stage(peer.port, "shelly-gen1", "").poll_all().await;
            assert_eq!(polled.labelled("shelly_temperature_celsius"), expect);
        }
    }

    /// A Pi-hole that wants a session, and what it was asked.
    fn pihole(password: &'static str, ends_after: usize) -> (Peer, Arc<Mutex<Vec<String>>>) {
        let answers = fixture("pihole");
        let log = Arc::new(Mutex::new(Vec::new()));
        let written = Arc::clone(&log);
        let left = Mutex::new((0, ends_after));
        let peer = device(move |asked| {
            written.lock().unwrap().push(asked.key.clone());
            let (session, uses) = &mut *left.lock().unwrap();
            if asked.key == "POST /api/auth" {
                if asked.body != format!("{{\"password\":\"{password}\"}}") {
                    return answer("401 Unauthorized", "{\"session\": {\"valid\": false, \"sid\": null}}");
                }
                (*session, *uses) = (*session + 1, ends_after);
                return answer("200 OK", &format!("{{\"session\": {{\"valid\": true, \"sid\": \"s{session}=\"}}}}"));
            }
            if !asked.head.contains(&format!("x-ftl-sid: s{session}=\r\n")) || *uses == 0 {
                return answer("401 Unauthorized", "{\"error\": {\"key\": \"unauthorized\"}}");
            }
            *uses -= 1;
            said(&answers, asked)
        });
        (peer, log)
    }

    /// A router whose sessions end after so many calls and whose user may not call one method, and what it was asked.
    fn openwrt(ends_after: usize, denied: &'static str) -> (Peer, Arc<Mutex<Vec<String>>>) {
        let (answers, log) = (fixture("openwrt"), Arc::new(Mutex::new(Vec::new())));
        let (written, left) = (Arc::clone(&log), Mutex::new((0, 0)));
        let peer = device(move |asked| {
            written.lock().unwrap().push(asked.key.trim_start_matches("POST /ubus ").to_owned());
            let call: Value = serde_json::from_str(&asked.body).unwrap();
            let (session, uses) = &mut *left.lock().unwrap();
            if asked.key.ends_with("session login") {
                let is_right = call["params"][3] == json!({"username": "satellite", "password": "sesame"});
                if call["params"][0] != ubus::NOBODY || !is_right {
                    return answer("200 OK", "{\"jsonrpc\": \"2.0\", \"id\": 1, \"result\": [6]}");
                }
                (*session, *uses) = (*session + 1, ends_after);
                return answer(
                    "200 OK",
                    &json!({"result": [0, {"ubus_rpc_session": format!("s{session}")}]}).to_string(),
                );
            }
            let is_denied = asked.key.ends_with(denied);
            if call["params"][0] != format!("s{session}") || *uses == 0 || is_denied {
                return answer("200 OK", "{\"error\": {\"code\": -32002, \"message\": \"Access denied\"}}");
            }
            *uses -= 1;
            said(&answers, asked)
        });
        (peer, log)
    }

    #[tokio::test]
    async fn a_routers_bus_is_called_within_a_session_of_its_user() {
        let device = |peer: &Peer, user: &str| {
            format!(
                "collector = \"http\"\nprofile = \"openwrt\"\nurl = \"http://127.0.0.1:{}\"\n\
                 auth = {{ user = \"{user}\", secret = \"router\" }}",
                peer.port
            )
        };
        let stage = |peer: &Peer, user: &str, password: &str| {
            let policy = format!("loopback_ports = [{}]\n{POSTING}", peer.port);
            let (dir, keyring) = stage::keyring("router", password, "127.0.0.1");
            (dir, Stage::with_secrets(&device(peer, user), &policy, keyring).unwrap())
        };
        let (peer, log) = openwrt(4, "nothing");
        let (_dir, mut router) = stage(&peer, "satellite", "sesame");
        for _ in 0..2 {
            let polled = router.poll_all().await;
            assert_eq!(polled.value("node_load1"), Some(0.5), "{:?}", polled.missing);
        }
        let asked = log.lock().unwrap().join(", ");
        let (login, rest) = ("session login", ["network.device status", "network.interface dump"]);
        let all = [&["system board", "system info"][..], &rest].concat().join(", ");
        // The session has ended at the second poll, which opens another.
        assert_eq!(asked, format!("{login}, {all}, system board, {login}, {all}"));

        for (user, password) in [("satellite", "wrong"), ("root", "sesame")] {
            let (_dir, mut router) = stage(&peer, user, password);
            let failure = router.poll_all().await.missing.remove(0).1;
            assert!(failure.detail.contains("logging in: user or password is wrong"), "{failure}");
            assert_eq!(failure.reason, Reason::Refused);
        }
        // What is denied within a good session is denied to its user: the session is kept.
        let (peer, log) = openwrt(1_000, "network.interface dump");
        let (_dir, mut router) = stage(&peer, "satellite", "sesame");
        for _ in 0..3 {
            let failure = router.poll_all().await.missing.remove(0).1;
            assert!(failure.detail.contains("rpcd does not let this user call `network.interface dump`"), "{failure}");
        }
        assert_eq!(log.lock().unwrap().iter().filter(|asked| asked.as_str() == login).count(), 1);
        let (peer, _) = openwrt(0, "nothing");
        let (_dir, mut router) = stage(&peer, "satellite", "sesame");
        let failure = router.poll_all().await.missing.remove(0).1;
        assert!(failure.detail.contains("rpcd does not let this user call `system board`"), "{failure}");
    }

    #[tokio::test]
    async fn a_session_is_opened_once_and_again_when_it_has_ended() {
        let (peer, log) = pihole("sesame", 3);
        let policy = format!("loopback_ports = [{}]\n{POSTING}", peer.port);
        let device = format!(
            "collector = \"http\"\nprofile = \"pihole\"\nurl = \"http://127.0.0.1:{}\"\nauth = {{ secret = \"dns\" }}",
            peer.port
        );
        let (_dir, keyring) = stage::keyring("dns", "sesame", "127.0.0.1");
        let mut stage = Stage::with_secrets(&device, &policy, keyring).unwrap();
        for _ in 0..2 {
            let polled = stage.poll_all().await;
            assert_eq!(polled.value("pihole_status"), Some(1.0), "{:?}", polled.missing);
        }
        let asked = log.lock().unwrap().join(", ");
        let (open, summary, blocking) = ("POST /api/auth", "GET /api/stats/summary", "GET /api/dns/blocking");
        assert_eq!(asked, [open, summary, blocking, summary, blocking, open, blocking].join(", "));

        let (_dir, keyring) = stage::keyring("dns", "wrong", "127.0.0.1");
        let polled = Stage::with_secrets(&device, &policy, keyring).unwrap().poll_all().await;
        let failure = &polled.missing[0].1;
        assert!(failure.detail.ends_with("logging in: HTTP 401: the password is wrong"), "{failure}");
        let (_dir, keyring) = stage::keyring("dns", "sesame", "other.lan");
        let polled = Stage::with_secrets(&device, &policy, keyring).unwrap().poll_all().await;
        assert!(polled.failure.unwrap().detail.contains("not for 127.0.0.1"), "the password stays");
        let (peer, _) = pihole("sesame", 0);
        let device = device.replace(&format!(":{}", self::port(&device)), &format!(":{}", peer.port));
        let policy = format!("loopback_ports = [{}]\n{POSTING}", peer.port);
        let (_dir, keyring) = stage::keyring("dns", "sesame", "127.0.0.1");
        let polled = Stage::with_secrets(&device, &policy, keyring).unwrap().poll_all().await;
        assert!(polled.missing[0].1.detail.contains("HTTP 401"), "a session that is worth nothing ends the poll");
        let peer = self::device(|_| answer("429 Too Many Requests", "{\"error\": {\"key\": \"api_seats_exceeded\"}}"));
        let device = device.replace(&format!(":{}", self::port(&device)), &format!(":{}", peer.port));
        let policy = format!("loopback_ports = [{}]\n{POSTING}", peer.port);
        let (_dir, keyring) = stage::keyring("dns", "sesame", "127.0.0.1");
        let failure = Stage::with_secrets(&device, &policy, keyring).unwrap().poll_all().await.missing.remove(0).1;
        assert!(failure.detail.contains("logging in: HTTP 429: too many sessions are open"), "{failure}");
    }

    fn port(device: &str) -> &str {
        device.split("127.0.0.1:").nth(1).unwrap().split('"').next().unwrap()
    }

    #[test]
    fn what_a_profile_can_not_take_is_named_with_its_place() {
        let check = |more: &str, expect: &str| {
            let said = stage::problem(&format!("collector = \"http\"\nurl = \"http://10.0.0.1/\"\n{more}"));
            assert!(said.starts_with(expect), "{more}: {said}");
        };
        check(
            "profile = \"shelly\"",
            "device.it.profile: there is no such profile: there are shelly-gen1, shelly-gen2,",
        );
        check("profile = \"tasmota\"\nmethod = \"GET\"", "device.it.method: `tasmota` knows how to ask");
        let metric = "[[device.metric]]\nname = \"x\"\npath = \"$.x\"";
        check(&format!("profile = \"tasmota\"\n{metric}"), "device.it.metric: `tasmota` knows its metrics");
        check("profile = \"tasmota\"\nentities = [\"sensor/a\"]", "device.it.entities: `tasmota` asks for all");
        check("profile = \"esphome\"", "device.it.entities: `esphome` asks for each by its name");
        check("entities = [\"sensor/a\"]", "device.it.entities: only a profile");
        let read = "device.it.entities: \"light/hall\" is no sensor, binary_sensor, switch, number with a name";
        check("profile = \"esphome\"\nentities = [\"light/hall\"]", read);
        for entity in
            ["sensor", "a/../b", "sensor/a/turn_on", "sensor/", "../a", "switch/a/b", "cover/a", "relay/turn_on"]
        {
            check(&format!("profile = \"esphome\"\nentities = [\"{entity}\"]"), "device.it.entities: \"");
        }
        check("profile = \"esphome\"\nentities = []", "device.it.entities: 0 of them: write 1 to 32");
        check("profile = \"pihole\"\nauth = { user = \"a\", secret = \"b\" }", "device.it.auth: the profile logs in");
        let allow = "add \"POST\" to `methods`";
        for profile in ["profile = \"fritzbox\"", "profile = \"pihole\"\nauth = { secret = \"b\" }"] {
            let said = stage::problem(&format!("collector = \"http\"\nurl = \"http://10.0.0.1/\"\n{profile}"));
            assert!(said.starts_with("device.it.profile: `") && said.ends_with(allow), "{said}");
        }
        for (profile, path) in [
            ("tasmota", "?a=b"),
            ("sonarr", "tv?a=b"),
            ("tasmota", "cm"),
            ("shelly-gen2", "rpc/Switch.Set"),
            ("esphome", "switch"),
        ] {
            let text = format!("collector = \"http\"\nurl = \"http://10.0.0.1/{path}\"\nprofile = \"{profile}\"");
            let said = stage::problem(&text);
            assert!(said.starts_with("device.it.url: `") && said.contains("has its own paths"), "{path}: {said}");
        }
    }

    #[test]
    fn the_devices_page_has_every_profile_in_its_table_and_an_example_of_it() {
        let page = include_str!("../../../../DEVICES.md");
        let table: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        for (name, _) in ALL {
            let cell = format!("`{name}`");
            assert!(table.iter().any(|line| line.split('|').nth(1).unwrap().contains(&cell)), "{name}");
            assert!(page.contains(&format!("profile = \"{name}\"")), "{name}");
            Profile::find(name).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn an_entity_is_one_piece_of_a_path_whatever_its_name() {
        let kinds = ["sensor".to_owned()];
        let encoded = |entity: &str| super::encoded(entity, &kinds);
        assert_eq!(encoded("sensor/Außen #1?x=%2f"), Ok("sensor/Au%C3%9Fen%20%231%3Fx%3D%252f".to_owned()));
        assert!(encoded("sensors/a").is_err());
    }
}
