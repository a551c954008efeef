//! `ups`: what Network UPS Tools knows of a UPS, asked of its `upsd` by the protocol of RFC 9271.
//!
//! Names are nut_exporter's: each numeric variable is a gauge, `battery.charge` becomes `network_ups_tools_battery_charge`,
//! and each flag of `ups.status` has a series that is 1 or 0. Two metrics: `variables` is what `upsd` says, or a gap with
//! the reason; `up` tells how that went. Of several UPSs one that `upsd` can't read is told by `network_ups_tools_up` and
//! costs the others nothing. Deliberately absent: instant commands and settings, and STARTTLS, which
//! `upsd` offers with certificates that its clients must be given one by one; a password goes over the wire as it is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::limits;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};
use zeroize::Zeroizing;

use super::address::Address;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol};
use crate::secrets::{Keyring, SecretName};

/// `collector = "ups"`.
pub const KIND: CollectorKind = CollectorKind { name: "ups", build };

/// Assigned to `nut` by IANA.
const PORT: u16 = 3493;
const LINE_BYTES_MAX: usize = 1 << 10;
/// UPSs of one `upsd`.
const UPSES_MAX: usize = 32;
/// Variables of one UPS; real ones have some fifty, a power distribution unit a dozen an outlet.
const VARIABLES_MAX: usize = 5_000;
/// Flags of one status that are on no list.
const OTHER_FLAGS_MAX: usize = 32;
/// Index of the metric that is what `upsd` says.
const VARIABLES: usize = 0;
/// Index of the metric that tells how it went.
const UP: usize = 1;
const PREFIX: &str = "network_ups_tools_";
/// The flags of `ups.status` that are told also where they are not set, as nut_exporter lists them.
const FLAGS: [&str; 15] =
    ["OL", "OB", "LB", "HB", "RB", "CHRG", "DISCHRG", "BYPASS", "CAL", "OFF", "OVER", "TRIM", "BOOST", "FSD", "SD"];
/// Variables that are words and name the device: labels of `network_ups_tools_device_info`.
const INFO: [(&str, &str); 9] = [
    ("device.mfr", "mfr"),
    ("device.model", "model"),
    ("device.serial", "serial"),
    ("device.type", "type"),
    ("device.description", "description"),
    ("device.contact", "contact"),
    ("device.location", "location"),
    ("device.part", "part"),
    ("device.macaddr", "macaddr"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `nas.lan` or `nas.lan:3493`.
    address: String,
    /// The UPS's name in `ups.conf`; all of them where there is none.
    #[serde(default)]
    ups: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    secret: Option<SecretName>,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let at = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
    options::no_metrics(device)?;
    let Options { address, ups, user, secret } = options::read(&device.options, &path)?;
    let address = Address::parse(&address, Some(PORT), &format!("{path}.address"))?;
    for (key, word) in [("ups", &ups), ("user", &user)] {
        if word.as_ref().is_some_and(|word| !is_word(word)) {
            return Err(at(key, "letters, digits, `-`, `_` and `.`, at most 64".into()));
        }
    }
    let login = match (user, secret) {
        (None, None) => None,
        (Some(user), Some(secret)) => Some((user, secret)),
        (Some(_), None) => return Err(at("secret", "a user needs the secret of the password".into())),
        (None, Some(_)) => return Err(at("user", "a password needs its user, as upsd.users has it".into())),
    };
    let mut metrics = whole(device);
    metrics[VARIABLES].name = "variables".into();
    metrics.extend(whole(device));
    metrics[UP].name = "up".into();
    let ups = Ups {
        gate: Arc::clone(&context.gate),
        keyring: Arc::clone(&context.keyring),
        address,
        ups,
        login,
        limit: probe::limit(device.timeout),
    };
    Ok(Built { collector: Box::new(ups), metrics })
}

/// A word that needs no quotes in the protocol.
fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

struct Ups {
    gate: Arc<Gate>,
    keyring: Arc<Keyring>,
    address: Address,
    ups: Option<String>,
    login: Option<(String, SecretName)>,
    limit: Duration,
}

/// Names and values, as `upsd` lists them.
type Variables = Vec<(String, String)>;
/// One UPS and its variables, or why `upsd` has none.
type Told = (String, Result<Variables, Failure>);

impl Ups {
    async fn ask(&self) -> Result<Vec<Told>, Failure> {
        let addresses = self.gate.resolve(Protocol::Nut, &self.address.host, self.address.port).await?;
        let (_, stream) = probe::connect(&addresses, self.limit).await?;
        self.talk(Upsd::new(stream)).await
    }

    async fn talk(&self, mut upsd: Upsd) -> Result<Vec<Told>, Failure> {
        if let Some((user, secret)) = &self.login {
            let password = self.keyring.give(secret, Protocol::Nut, &self.address.host, self.address.port)?;
            upsd.expect_ok(&format!("USERNAME {user}")).await?;
            let quoted = quoted(password.expose_secret());
            upsd.expect_ok(&Zeroizing::new(format!("PASSWORD {}", *quoted))).await?;
        }
        let upses = match &self.ups {
            Some(ups) => vec![ups.clone()],
            None => upsd.upses().await??,
        };
        if upses.is_empty() {
            return Err(Failure::new(Reason::Refused, "upsd has no UPS: see ups.conf, and `upsc -l`"));
        }
        let mut told = Vec::with_capacity(upses.len());
        for ups in upses {
            let named = |why: Failure| Failure::new(why.reason, format!("{ups}: {}", why.detail));
            let variables = upsd.variables(&ups).await.map_err(named)?.map_err(named);
            told.push((ups, variables));
        }
        // Politeness: what it answers is of no interest.
        upsd.lines.send("LOGOUT").await.ok();
        match told.iter().find_map(|(_, variables)| variables.as_ref().err()) {
            Some(first) if told.iter().all(|(_, variables)| variables.is_err()) => Err(first.clone()),
            _ => Ok(told),
        }
    }

    async fn poll_all(&self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let outcome = probe::within(self.limit, self.ask()).await;
        let seconds = watch.seconds();
        let success = outcome.is_ok();
        match outcome {
            Ok(told) if due.contains(&VARIABLES) => {
                for (ups, variables) in &told {
                    let family = Family::gauge("network_ups_tools_up", "");
                    let is_up = f64::from(u8::from(variables.is_ok()));
                    readings.sample(VARIABLES, family, &[("ups", ups)], is_up);
                    match variables {
                        Ok(variables) => add(ups, variables, readings),
                        Err(failure) => tracing::debug!(%failure, "a UPS that upsd can't read"),
                    }
                }
            }
            Ok(_) => {}
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => {
                readings.device_failed();
                if due.contains(&VARIABLES) {
                    readings.missing(VARIABLES, failure);
                }
            }
        }
        if due.contains(&UP) {
            probe::report(readings, UP, success, seconds);
        }
        Ok(())
    }
}

impl Collector for Ups {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

fn add(ups: &str, variables: &[(String, String)], readings: &mut Readings) {
    let value = |name: &str| variables.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    for (name, text) in variables {
        let Some(number) = number(text) else { continue };
        let metric = format!("{PREFIX}{}", name.replace(['.', '-'], "_"));
        readings.sample(VARIABLES, Family::gauge(&metric, unit(name)), &[("ups", ups)], number);
    }
    if let Some(status) = value("ups.status") {
        let family = Family::gauge("network_ups_tools_ups_status", "");
        for flag in FLAGS {
            let is_set = status.split_ascii_whitespace().any(|set| set == flag);
            readings.sample(VARIABLES, family, &[("flag", flag), ("ups", ups)], f64::from(u8::from(is_set)));
        }
        let others = status.split_ascii_whitespace().filter(|flag| is_word(flag) && !FLAGS.contains(flag));
        for flag in others.collect::<BTreeSet<&str>>().into_iter().take(OTHER_FLAGS_MAX) {
            readings.sample(VARIABLES, family, &[("flag", flag), ("ups", ups)], 1.0);
        }
    }
    let info = INFO.iter().filter_map(|(variable, label)| Some((*label, value(variable).filter(|v| !v.is_empty())?)));
    let labels: Vec<(&str, &str)> = info.chain([("ups", ups)]).collect();
    readings.sample(VARIABLES, Family::gauge("network_ups_tools_device_info", ""), &labels, 1.0);
}

/// The number that a value is, as nut_exporter's library sees it: a serial such as `4E0012` is none.
fn number(text: &str) -> Option<f64> {
    match text.trim() {
        "enabled" => Some(1.0),
        "disabled" => Some(0.0),
        text if text.bytes().any(|b| !b.is_ascii_digit() && !matches!(b, b'-' | b'.')) => None,
        text if text.contains('.') => text.parse().ok().filter(|number: &f64| number.is_finite()),
        text => text.parse::<i64>().ok().map(|number| number as f64),
    }
}

/// The unit of a variable, by the names that NUT gives them.
fn unit(name: &str) -> &'static str {
    let last = name.rsplit('.').next().unwrap_or_default();
    match last {
        "voltage" => "volts",
        "current" => "amperes",
        "frequency" => "hertz",
        "temperature" => "celsius",
        "realpower" => "watts",
        "runtime" => "seconds",
        "charge" | "load" | "humidity" => "percent",
        _ => "",
    }
}

/// A connection to `upsd`.
struct Upsd {
    lines: Framed<TcpStream, LinesCodec>,
}

impl Upsd {
    fn new(stream: TcpStream) -> Self {
        Self { lines: Framed::new(stream, LinesCodec::new_with_max_length(LINE_BYTES_MAX)) }
    }

    async fn ask(&mut self, question: &str) -> Result<(), Failure> {
        self.lines.send(question).await.map_err(|error| failure_of(&error))
    }

    /// A line, or what `upsd` refuses with instead; the outer error ends the connection.
    async fn line(&mut self) -> Result<Result<String, Failure>, Failure> {
        let line = match self.lines.next().await {
            None => return Err(Failure::new(Reason::BadAnswer, "upsd closed the connection amid its answer")),
            Some(line) => line.map_err(|error| failure_of(&error))?,
        };
        Ok(match line.strip_prefix("ERR ") {
            None => Ok(line),
            Some(error) => Err(refusal(error)),
        })
    }

    async fn expect_ok(&mut self, question: &str) -> Result<(), Failure> {
        self.ask(question).await?;
        match self.line().await??.as_str() {
            line if line == "OK" || line.starts_with("OK ") => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// What stands between `BEGIN LIST …` and `END LIST …`, item by item, without what each begins with; or that `upsd`
    /// refuses that list.
    async fn list<T>(
        &mut self,
        what: &str,
        most: usize,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Result<Vec<T>, Failure>, Failure> {
        self.ask(&format!("LIST {what}")).await?;
        let begin = match self.line().await? {
            Ok(begin) => begin,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if begin != format!("BEGIN LIST {what}") {
            return Err(unexpected(&begin));
        }
        let (prefix, end) = (format!("{what} "), format!("END LIST {what}"));
        let mut items = Vec::new();
        loop {
            let line = self.line().await??;
            if line == end {
                return Ok(Ok(items));
            }
            if items.len() >= most {
                return Err(Failure::new(Reason::BadAnswer, format!("upsd lists more than {most} of {what}")));
            }
            let item = line.strip_prefix(&prefix).and_then(&read);
            items.push(item.ok_or_else(|| unexpected(&line))?);
        }
    }

    async fn upses(&mut self) -> Result<Result<Vec<String>, Failure>, Failure> {
        let name = |item: &str| item.split(' ').next().filter(|name| is_word(name)).map(str::to_owned);
        self.list("UPS", UPSES_MAX, name).await
    }

    async fn variables(&mut self, ups: &str) -> Result<Result<Variables, Failure>, Failure> {
        self.list(&format!("VAR {ups}"), VARIABLES_MAX, variable).await
    }
}

/// `battery.charge "100"`.
fn variable(item: &str) -> Option<(String, String)> {
    let (name, rest) = item.split_once(' ')?;
    if !is_word(name) || name.len() > limits::NAME_BYTES_MAX - PREFIX.len() {
        return None;
    }
    let mut characters = rest.strip_prefix('"')?.strip_suffix('"')?.chars();
    let mut value = String::with_capacity(rest.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?),
            '"' => return None,
            other => value.push(other),
        }
    }
    Some((name.to_owned(), value))
}

/// A word in quotes. `upsd` takes an unescaped `#` for the beginning of a comment even there.
fn quoted(word: &str) -> Zeroizing<String> {
    let mut quoted = Zeroizing::new(String::with_capacity(2 * word.len() + 2));
    quoted.push('"');
    for character in word.chars() {
        if matches!(character, '"' | '\\' | '#') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

fn failure_of(error: &LinesCodecError) -> Failure {
    match error {
        LinesCodecError::Io(error) => probe::failure_of_io(error),
        LinesCodecError::MaxLineLengthExceeded => {
            Failure::new(Reason::BadAnswer, format!("a line of more than {LINE_BYTES_MAX} bytes: not upsd"))
        }
    }
}

/// Without what it says: any port of the house may be asked, and what listens there may say what is nobody's business.
fn unexpected(line: &str) -> Failure {
    Failure::new(Reason::BadAnswer, format!("a line of {} bytes, which is not what upsd says here", line.len()))
}

/// What `upsd` refuses with, and what to do (RFC 9271, section 4.2).
fn refusal(error: &str) -> Failure {
    let word = error.split(' ').next().unwrap_or_default();
    let (reason, what) = match word {
        "ACCESS-DENIED" => {
            (Reason::Refused, "upsd refuses this user or address: see upsd.users and LISTEN in upsd.conf")
        }
        "UNKNOWN-UPS" => (Reason::Refused, "upsd has no UPS of this name: `upsc -l` lists them"),
        "DATA-STALE" => (Reason::Refused, "upsd has no fresh data: its driver has lost the UPS, see the cable"),
        "DRIVER-NOT-CONNECTED" => (Reason::Refused, "the UPS's driver does not run: see `upsdrvctl`"),
        "INVALID-PASSWORD" | "INVALID-USERNAME" | "USERNAME-REQUIRED" | "PASSWORD-REQUIRED" => {
            (Reason::Refused, "upsd refuses the user or the password")
        }
        word if word.len() <= 40 && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') => {
            return Failure::new(Reason::Refused, format!("upsd says {word}"));
        }
        _ => (Reason::Refused, "upsd refuses with an error that it has no word for"),
    };
    Failure::new(reason, what)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use super::super::stage::{Peer, Stage, problem, raw_peer};
    use super::*;

    /// An `upsd` that answers each line as the test says, and closes where it says nothing.
    fn upsd(answer: impl Fn(&str) -> Option<String> + Send + 'static) -> Peer {
        raw_peer(move |stream| {
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
                let Some(said) = answer(line.trim_end()) else { return };
                if stream.write_all(said.as_bytes()).is_err() {
                    return;
                }
                line.clear();
            }
        })
    }

    fn listing(what: &str, items: &[&str]) -> Option<String> {
        let lines: String = items.iter().map(|item| format!("{what} {item}\n")).collect();
        Some(format!("BEGIN LIST {what}\n{lines}END LIST {what}\n"))
    }

    fn stage(peer: &Peer, more: &str) -> Stage {
        let device = format!("collector = \"ups\"\naddress = \"127.0.0.1:{}\"\ntimeout = \"500ms\"\n{more}", peer.port);
        Stage::new(&device, &[peer.port]).unwrap()
    }

    #[tokio::test]
    async fn numbers_flags_and_names_of_every_ups_are_read_as_nut_exporter_names_them() {
        let peer = upsd(|line| match line {
            "LIST UPS" => listing("UPS", &["rack \"In the rack\"", "desk \"\""]),
            "LIST VAR rack" => listing(
                "VAR rack",
                &[
                    "battery.charge \"87\"",
                    "battery.runtime \"1200\"",
                    "device.mfr \"Eaton \\\"E\\\"\"",
                    "input.voltage \"231.4\"",
                    "ups.status \"OB ALARM DISCHRG ALARM\"",
                    "ups.serial \"4E0012\"",
                    "device.serial \"123456789012345678901234567890\"",
                    "device.macaddr \"00:20:85:00:00:01\"",
                    "device.location \"attic\"",
                    "ups.load \" 12 \"",
                    "ups.firmware \"1.2.3\"",
                    "ups.beeper.status \"enabled\"",
                    "ups.delay.start \"inf\"",
                ],
            ),
            "LIST VAR desk" => listing("VAR desk", &["ups.status \"OL\""]),
            _ => Some("OK Goodbye\n".into()),
        });
        let polled = stage(&peer, "").poll_all().await;
        assert_eq!(polled.labelled("network_ups_tools_battery_charge"), [("ups=rack".into(), 87.0)]);
        assert_eq!(polled.value("network_ups_tools_input_voltage"), Some(231.4));
        let unit = polled.samples.iter().find(|(s, _)| s.name == "network_ups_tools_battery_runtime").unwrap();
        assert_eq!((unit.0.unit.as_str(), unit.1), ("seconds", 1200.0));
        let set: Vec<_> =
            polled.labelled("network_ups_tools_ups_status").into_iter().filter(|(_, value)| *value > 0.5).collect();
        let names: Vec<&str> = set.iter().map(|(labels, _)| labels.as_str()).collect();
        assert_eq!(names, ["flag=OB,ups=rack", "flag=DISCHRG,ups=rack", "flag=ALARM,ups=rack", "flag=OL,ups=desk"]);
        let info =
            "location=attic,macaddr=00:20:85:00:00:01,mfr=Eaton \"E\",serial=123456789012345678901234567890,ups=rack";
        assert!(polled.labelled("network_ups_tools_device_info").iter().any(|(labels, _)| labels == info));
        assert_eq!(polled.value("network_ups_tools_ups_beeper_status"), Some(1.0));
        assert_eq!(polled.value("network_ups_tools_ups_load"), Some(12.0));
        for name in ["ups_delay_start", "ups_serial", "ups_firmware", "device_serial"] {
            assert_eq!(polled.value(&format!("network_ups_tools_{name}")), None, "{name}");
        }
        assert_eq!(polled.value("probe_success"), Some(1.0));
    }

    #[tokio::test]
    async fn a_ups_whose_driver_is_dead_is_told_and_costs_the_others_nothing() {
        let answer = |dead: &'static [&'static str]| {
            upsd(move |line| match line {
                "LIST UPS" => listing("UPS", &["rack \"\"", "desk \"\""]),
                "LOGOUT" => Some("OK Goodbye\n".into()),
                _ if dead.iter().any(|ups| line.ends_with(ups)) => Some("ERR DRIVER-NOT-CONNECTED\n".into()),
                _ => listing(line.strip_prefix("LIST ").unwrap(), &["battery.charge \"87\""]),
            })
        };
        let polled = stage(&answer(&["rack"]), "").poll_all().await;
        assert_eq!(polled.labelled("network_ups_tools_up"), [("ups=rack".into(), 0.0), ("ups=desk".into(), 1.0)]);
        assert_eq!(polled.labelled("network_ups_tools_battery_charge"), [("ups=desk".into(), 87.0)]);
        assert_eq!((polled.value("probe_success"), polled.missing.len()), (Some(1.0), 0));
        let polled = stage(&answer(&["rack", "desk"]), "").poll_all().await;
        let (_, failure) = &polled.missing[0];
        assert!(failure.detail.starts_with("rack: the UPS's driver does not run: see `upsdrvctl`"), "{failure}");
        assert_eq!((polled.value("probe_success"), polled.value("network_ups_tools_up")), (Some(0.0), None));
    }

    #[tokio::test]
    async fn an_upsd_without_any_ups_is_a_gap_that_says_so() {
        let peer = upsd(|line| if line == "LIST UPS" { listing("UPS", &[]) } else { Some("OK Goodbye\n".into()) });
        let polled = stage(&peer, "").poll_all().await;
        assert_eq!(polled.missing[0].1.detail, "upsd has no UPS: see ups.conf, and `upsc -l`");
        assert_eq!(polled.value("probe_success"), Some(0.0));
    }

    #[tokio::test]
    async fn what_upsd_refuses_is_a_gap_that_says_what_to_do() {
        for (answer, reason, said) in [
            (Some("ERR UNKNOWN-UPS\n"), Reason::Refused, "upsc -l"),
            (Some("ERR DATA-STALE\n"), Reason::Refused, "lost the UPS"),
            (Some("ERR ACCESS-DENIED\n"), Reason::Refused, "upsd.users"),
            (Some("ERR SOMETHING-NEW\n"), Reason::Refused, "SOMETHING-NEW"),
            (Some("BEGIN LIST VAR other\n"), Reason::BadAnswer, "not what upsd says here"),
            (Some("BEGIN LIST VAR rack\nVAR rack battery.charge 87\n"), Reason::BadAnswer, "not what upsd says here"),
            (Some("BEGIN LIST VAR rack\nVAR rack a\u{7f}b \"1\"\n"), Reason::BadAnswer, "not what upsd says here"),
            (Some("BEGIN LIST VAR rack\n"), Reason::Timeout, "within"),
            (Some("HTTP/1.1 400 Bad Request\r\n"), Reason::BadAnswer, "a line of 24 bytes"),
            (Some("ERR secret=hunter2\n"), Reason::Refused, "no word for"),
            (None, Reason::BadAnswer, "amid its answer"),
        ] {
            let peer = upsd(move |_| answer.map(str::to_owned));
            let polled = stage(&peer, "ups = \"rack\"").poll_all().await;
            let (metric, failure) = &polled.missing[0];
            assert_eq!((metric.as_str(), failure.reason), ("variables", reason), "{answer:?}: {failure}");
            assert!(failure.detail.contains(said), "{answer:?}: {failure}");
            assert_eq!(polled.value("probe_success"), Some(0.0));
        }
    }

    #[tokio::test]
    async fn an_upsd_without_end_is_cut_off() {
        let long = upsd(|_| Some(format!("{}\n", "x".repeat(5_000))));
        assert!(stage(&long, "").poll_all().await.missing[0].1.detail.contains("more than 1024 bytes"));
        let many = upsd(|line| {
            let items: String = (0..6_000).map(|n| format!("VAR rack v{n} \"1\"\n")).collect();
            (line == "LIST VAR rack").then(|| format!("BEGIN LIST VAR rack\n{items}"))
        });
        let polled = stage(&many, "ups = \"rack\"").poll_all().await;
        assert!(polled.missing[0].1.detail.contains("more than 5000"), "{}", polled.missing[0].1);
        let flood = upsd(|_| listing("UPS", &["a \"\""; 100]));
        assert!(stage(&flood, "").poll_all().await.missing[0].1.detail.contains("more than 32"));
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"ups\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        check("address = \"nas.lan:0\"", "device.it.address: `nas.lan:0` is not host");
        check("address = \"nas.lan:+3\"", "device.it.address");
        check("address = \"nas.lan\"\nups = \"a b\"", "device.it.ups: letters");
        check("address = \"nas.lan\"\nuser = \"me\"", "device.it.secret: a user needs");
        check("address = \"nas.lan\"\nsecret = \"ups\"", "device.it.user: a password needs");
        check("address = \"nas.lan\"\npassword = \"x\"", "device.it.password");
        assert_eq!(*quoted(r##"a "b" \ #c"##), r##""a \"b\" \\ \#c""##);
    }
}
