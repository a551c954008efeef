//! `mqtt`: numbers that devices publish, listened to at a broker (MQTT 3.1.1).
//!
//! A task holds the connection and the newest value of each series with when it came; a poll tells what has arrived. A
//! metric is a topic, perhaps with wildcards, and a path into its JSON; a profile knows a kind of device by itself and needs
//! no list. Silence is a gap: a topic that said nothing for `silent_after`, or nothing since the connection was lost, has no
//! value, and the gap says since when. What the broker had retained counts only where `retained = true`, from when it
//! arrives; presence and lists of devices, which are made to be retained, always do. How the connection is (`probe_success`
//! and its kin) is a metric of its own called `probe`. Deliberately absent: publishing, sessions that outlive a connection,
//! client certificates, and QoS 2, since the newest value is all that counts.

pub(crate) mod connection;
mod homeassistant;
mod inbox;
mod message;
mod packets;
mod payload;
mod profile;
mod tasmota;
mod topic;
pub mod zigbee2mqtt;

use std::sync::Arc;
use std::time::Duration;

use rumqttc::mqttbytes::QoS;
use rustls::pki_types::ServerName;
use satellite_shared::clock::SystemClock;
use satellite_shared::config::{Device, Metric, Problem, Schedule};
use satellite_shared::metric::is_label_name;
use serde::Deserialize;
use tokio::task::JoinSet;

use self::connection::{Broker, Tls};
use self::homeassistant::HomeAssistant;
use self::inbox::{Inbox, Patience, Ruled, Shared};
use self::message::{Listed, Rule};
use self::profile::Profile;
use self::tasmota::Tasmota;
use self::topic::Filter;
use self::zigbee2mqtt::Zigbee2mqtt;
use super::address::Address;
use super::http::path::Path;
use super::number::{Number, PROBE};
use super::probe;
use super::trust::Trust;
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::check_host;
use crate::secrets::SecretName;

/// `collector = "mqtt"`.
pub const KIND: CollectorKind = CollectorKind { name: "mqtt", build };

/// Assigned to `mqtt` and `secure-mqtt` by IANA.
const PORT: u16 = 1883;
const TLS_PORT: u16 = 8883;
/// Topics of one device, wildcards counting as one.
const FILTERS_MAX: usize = 100;
const USER_BYTES_MAX: usize = 256;
/// Silence without a word of the configuration: three intervals, and never less than three times what Tasmota waits.
const SILENT_AFTER_MIN: Duration = Duration::from_secs(15 * 60);
const INTERVALS: u32 = 3;
/// What zigbee2mqtt gives a sleeping device before it calls it offline, and a little more.
const SILENT_AFTER_SLEEPER: Duration = Duration::from_secs(26 * 3600);
const SILENT_AFTER_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// How long it must be quiet until the first poll of a profile takes what came for all.
const QUIET: Duration = Duration::from_millis(300);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `nas.lan` or `nas.lan:1884`.
    address: String,
    /// `verify` or `pin:…`; without it there is no TLS.
    #[serde(default)]
    tls: Option<String>,
    /// The name that the certificate must have; the address's where there is none.
    #[serde(default)]
    server_name: Option<String>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    secret: Option<SecretName>,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    profile: Option<ProfileName>,
    /// The first levels of the profile's topics.
    #[serde(default)]
    base: Option<String>,
    #[serde(default)]
    silent_after: Option<String>,
    #[serde(default)]
    retained: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProfileName {
    Zigbee2mqtt,
    Tasmota,
    HomeAssistant,
}

impl ProfileName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Zigbee2mqtt => "zigbee2mqtt",
            Self::Tasmota => "tasmota",
            Self::HomeAssistant => "homeassistant",
        }
    }

    fn profile(self, base: Option<&str>) -> Result<Box<dyn Profile>, String> {
        Ok(match self {
            Self::Zigbee2mqtt => Box::new(Zigbee2mqtt::new(base.unwrap_or("zigbee2mqtt"))?),
            Self::Tasmota => Box::new(Tasmota::new(base.unwrap_or("tele"))?),
            Self::HomeAssistant => Box::new(HomeAssistant::new(base.unwrap_or("homeassistant"))?),
        })
    }

    /// When a value counts, where the configuration does not say.
    fn rule(self) -> Rule {
        match self {
            Self::Zigbee2mqtt => Rule { silent_after: SILENT_AFTER_SLEEPER, retained: false },
            Self::Tasmota => Rule { silent_after: SILENT_AFTER_MIN, retained: false },
            // States are retained by what announces itself so, and taken by Home Assistant.
            Self::HomeAssistant => Rule { silent_after: SILENT_AFTER_SLEEPER, retained: true },
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOptions {
    topic: String,
    #[serde(default)]
    path: Option<String>,
    /// A label for each wildcard of the topic, in order.
    #[serde(default)]
    labels_from: Option<Vec<String>>,
    #[serde(default)]
    silent_after: Option<String>,
    #[serde(default)]
    retained: Option<bool>,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let at = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
    let options: Options = options::read(&device.options, &path)?;
    let port = if options.tls.is_some() { TLS_PORT } else { PORT };
    let address = Address::parse(&options.address, Some(port), &format!("{path}.address"))?;
    let qos = match options.qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => return Err(at("qos", "0 or 1: the newest value is all that counts".into())),
    };
    let listed =
        device.metrics.iter().map(|metric| read_metric(metric, &path, &options)).collect::<Result<Vec<_>, _>>()?;
    let profile = read_profile(&options, &path)?;
    if listed.is_empty() && profile.is_none() {
        let reason = "no metrics: list topics as [[device.metric]] tables, or name a `profile`: zigbee2mqtt, tasmota, homeassistant";
        return Err(at("metric", reason.into()));
    }
    let tls = read_tls(&options, &address, &path)?;
    let login = read_login(options.user, options.secret, &path)?;
    let mut metrics = device.metrics.clone();
    if let Some(name) = options.profile.map(ProfileName::as_str) {
        if metrics.iter().any(|metric| metric.name == name) {
            return Err(at(&format!("metric.{name}.name"), format!("`{name}` is what the profile gives")));
        }
        metrics.extend(whole(device).into_iter().map(|metric| Metric { name: name.into(), ..metric }));
    }
    metrics.extend(whole(device).into_iter().map(|metric| Metric { name: PROBE.into(), ..metric }));
    let has_profile = profile.is_some();
    let numbers = listed.len();
    let inbox = Inbox::new(Arc::new(SystemClock), listed, profile);
    if inbox.filters().len() > FILTERS_MAX {
        return Err(at("metric", format!("more than {FILTERS_MAX} topics: one with `+` or `#` stands for many")));
    }
    let (gate, keyring) = (Arc::clone(&context.gate), Arc::clone(&context.keyring));
    let mqtt = Mqtt {
        broker: Some(Broker { gate, keyring, address, tls, login, qos }),
        shared: Arc::new(Shared::new(inbox)),
        task: JoinSet::new(),
        numbers,
        has_profile,
        is_first: true,
        limit: probe::limit(device.timeout),
    };
    Ok(Built { collector: Box::new(mqtt), metrics })
}

fn read_metric(metric: &Metric, device: &str, defaults: &Options) -> Result<Listed, Problem> {
    let (number, own, at) = Number::parse(metric, device)?;
    let own: MetricOptions = options::read(&own, &at)?;
    let within = |key: &str, reason: String| options::problem(&format!("{at}.{key}"), reason);
    let filter = Filter::parse(&own.topic).map_err(|reason| within("topic", reason))?;
    let path = own.path.map(|path| Path::parse(&path)).transpose().map_err(|reason| within("path", reason))?;
    if let Some(names) = &own.labels_from {
        if names.len() != filter.wildcards() {
            let reason = format!("the topic has {} wildcards: a label for each, in order", filter.wildcards());
            return Err(within("labels_from", reason));
        }
        let is_wrong = |(at, name): (usize, &String)| {
            !is_label_name(name) || name.starts_with("__") || number.has_label(name) || names[..at].contains(name)
        };
        if names.iter().enumerate().any(is_wrong) {
            return Err(within("labels_from", "label names, each once, and none that `labels` has".into()));
        }
    }
    let gives = |name: &str| match name {
        "topic" => filter.wildcards() > 0 && own.labels_from.is_none(),
        _ => path.as_ref().is_some_and(|path| !path.is_single()),
    };
    let from_topic = |name: &str| own.labels_from.iter().flatten().any(|other| other == name);
    for name in ["topic", "index"] {
        if gives(name) && (number.has_label(name) || from_topic(name)) {
            return Err(within(
                &format!("labels.{name}"),
                "the metric gives this label itself: take another name".into(),
            ));
        }
    }
    let usual = match &metric.schedule {
        Schedule::Every(every) => SILENT_AFTER_MIN.max(every.saturating_mul(INTERVALS)),
        Schedule::Cron(_) => SILENT_AFTER_MIN,
    };
    let silent_after = match (&own.silent_after, &defaults.silent_after) {
        (Some(text), _) => duration(text, &format!("{at}.silent_after"))?,
        (None, Some(text)) => duration(text, &format!("{device}.silent_after"))?,
        (None, None) => usual,
    };
    let retained = own.retained.or(defaults.retained).unwrap_or(false);
    let rule = Rule { silent_after, retained };
    Ok(Listed { number, filter, labels_from: own.labels_from, path, rule })
}

fn read_profile(options: &Options, path: &str) -> Result<Option<Ruled>, Problem> {
    let Some(name) = options.profile else {
        return match &options.base {
            Some(_) => Err(options::problem(&format!("{path}.base"), "only a `profile` has a base topic")),
            None => Ok(None),
        };
    };
    let base = options.base.as_deref();
    let at_base = |reason: String| options::problem(&format!("{path}.base"), reason);
    if base.is_some_and(|base| !topic::is_topic(base) || base.ends_with('/') || base.starts_with('$')) {
        return Err(at_base("the first levels of the topics, such as \"zigbee2mqtt\" or \"home/zigbee\"".into()));
    }
    let profile = name.profile(base).map_err(at_base)?;
    let mut rule = name.rule();
    if let Some(text) = &options.silent_after {
        rule.silent_after = duration(text, &format!("{path}.silent_after"))?;
    }
    rule.retained = options.retained.unwrap_or(rule.retained);
    Ok(Some((profile, rule)))
}

fn read_tls(options: &Options, address: &Address, path: &str) -> Result<Option<Tls>, Problem> {
    let at = |key: &str, reason: String| options::problem(&format!("{path}.{key}"), reason);
    let Some(tls) = &options.tls else {
        return match &options.server_name {
            Some(_) => Err(at("server_name", "only with `tls`, such as tls = \"verify\"".into())),
            None => Ok(None),
        };
    };
    let trust = Trust::parse(tls).map_err(|reason| at("tls", reason))?;
    let name = options.server_name.clone().unwrap_or_else(|| address.host.clone());
    check_host(&name).map_err(|reason| at("server_name", reason))?;
    let name = ServerName::try_from(name).map_err(|error| at("server_name", error.to_string()))?;
    Ok(Some(Tls { trust, name }))
}

fn read_login(
    user: Option<String>,
    secret: Option<SecretName>,
    path: &str,
) -> Result<Option<(String, SecretName)>, Problem> {
    let at = |key: &str, reason: &str| Err(options::problem(&format!("{path}.{key}"), reason));
    match (user, secret) {
        (None, None) => Ok(None),
        (Some(user), _) if !(1..=USER_BYTES_MAX).contains(&user.len()) || user.contains(char::is_control) => {
            at("user", "1 to 256 bytes without line breaks")
        }
        (Some(user), Some(secret)) => Ok(Some((user, secret))),
        (Some(_), None) => at("secret", "a user needs the secret of the password"),
        (None, Some(_)) => at("user", "a password needs its user"),
    }
}

fn duration(text: &str, path: &str) -> Result<Duration, Problem> {
    let range = Duration::from_secs(1)..=SILENT_AFTER_MAX;
    let read = humantime::parse_duration(text).ok().filter(|duration| range.contains(duration));
    read.ok_or_else(|| options::problem(path, "a duration from 1s to 366 days, such as \"15m\" or \"7d\""))
}

struct Mqtt {
    /// Until the task has it.
    broker: Option<Broker>,
    shared: Arc<Shared>,
    /// The connection; ends with this collector.
    task: JoinSet<()>,
    /// How many metrics the configuration lists; behind them is the profile, where there is one, and then the probe.
    numbers: usize,
    has_profile: bool,
    is_first: bool,
    limit: Duration,
}

impl Mqtt {
    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        if let Some(broker) = self.broker.take() {
            self.task.spawn(broker.listen(Arc::clone(&self.shared)));
        }
        // Where there is no answer yet, that is what is told.
        drop(tokio::time::timeout(self.limit, self.wait(due)).await);
        self.is_first = false;
        let inbox = self.shared.inbox();
        let standing = inbox.standing();
        if let Some(failure) = standing.failure.as_ref().filter(|failure| probe::was_not_tried(failure)) {
            return Err(failure.clone());
        }
        let probe = self.numbers + usize::from(self.has_profile);
        for &metric in due {
            if metric < self.numbers {
                inbox.tell_listed(metric, readings);
            } else if metric < probe {
                inbox.tell_profile(metric, readings);
            }
        }
        if due.contains(&probe) {
            report(&standing, probe, readings);
        }
        Ok(())
    }

    /// Lets the first attempt to connect come to its end, and what begins to listen hear something.
    async fn wait(&self, due: &[usize]) {
        loop {
            let news = self.shared.news.notified();
            let mut news = std::pin::pin!(news);
            news.as_mut().enable();
            let patience = self.shared.inbox().patience(due, self.is_first);
            match patience {
                Patience::Over => return,
                Patience::UntilNews => news.await,
                Patience::UntilQuiet => {
                    if tokio::time::timeout(QUIET, news).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Collector for Mqtt {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn report(standing: &inbox::Standing, metric: usize, readings: &mut Readings) {
    probe::report(readings, metric, standing.failure.is_none(), standing.connect_seconds);
    let mut add = |family, value| readings.sample(metric, family, &[], value);
    add(Family::counter("mqtt_message_total", ""), standing.messages as f64);
    add(Family::counter("mqtt_message_ignored_total", ""), standing.ignored as f64);
    add(Family::gauge("mqtt_series", ""), standing.speaking as f64);
    add(Family::gauge("mqtt_series_silent", ""), standing.silent as f64);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::atomic::Ordering;

    use bytes::BytesMut;
    use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode, Packet, Publish, SubAck, SubscribeReasonCode};
    use satellite_shared::gap::Reason;

    use super::super::stage::{self, Peer, Polled, Stage, problem, raw_peer};
    use super::*;

    const ONE: &str = "[[device.metric]]\nname = \"power_watts\"\ntopic = \"tele/+/SENSOR\"\npath = \"$.ENERGY.Power\"\nlabels_from = [\"plug\"]\nunit = \"watts\"\n";

    fn send(stream: &mut TcpStream, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        drop(stream.write_all(&bytes));
    }

    fn receive(stream: &mut TcpStream) -> Option<Packet> {
        let mut bytes = BytesMut::new();
        let mut byte = [0];
        loop {
            if stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            bytes.extend_from_slice(&byte);
            if let Ok(packet) = Packet::read(&mut bytes, 1 << 20) {
                return Some(packet);
            }
        }
    }

    fn welcome(stream: &mut TcpStream) {
        assert!(matches!(receive(stream), Some(Packet::Connect(connect)) if connect.clean_session));
        send(stream, &Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false)));
        let Some(Packet::Subscribe(subscribe)) = receive(stream) else { panic!("no subscription") };
        let codes = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos)).collect();
        send(stream, &Packet::SubAck(SubAck::new(subscribe.pkid, codes)));
    }

    fn message(topic: &str, payload: &str) -> Packet {
        Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload.as_bytes().to_vec()))
    }

    /// A broker that lets everybody in and then does this.
    fn broker(then: impl Fn(&mut TcpStream) + Send + 'static) -> Peer {
        raw_peer(move |stream| {
            welcome(stream);
            then(stream);
            drop(stream.read_to_end(&mut Vec::new()));
        })
    }

    fn stage(peer: &Peer, more: &str) -> Stage {
        let device =
            format!("collector = \"mqtt\"\naddress = \"127.0.0.1:{}\"\ntimeout = \"500ms\"\n{more}", peer.port);
        Stage::new(&device, &[peer.port]).unwrap()
    }

    async fn first(peer: &Peer) -> Polled {
        stage(peer, ONE).poll_all().await
    }

    fn check(polled: &Polled, reason: Reason, said: &str) {
        let (metric, failure) = &polled.missing[0];
        assert_eq!((metric.as_str(), failure.reason), ("power_watts", reason), "{failure}");
        assert!(failure.detail.contains(said), "{failure}");
        assert_eq!(polled.value("probe_success"), Some(0.0), "{failure}");
    }

    #[tokio::test]
    async fn what_is_published_is_told_and_the_connection_is_kept() {
        let peer = broker(|stream| {
            send(stream, &message("tele/tv/SENSOR", "{\"ENERGY\": {\"Power\": 42}}"));
            send(stream, &message("other/tv/SENSOR", "{\"ENERGY\": {\"Power\": 1}}"));
        });
        let mut stage = stage(&peer, ONE);
        for _ in 0..3 {
            let polled = stage.poll_all().await;
            assert_eq!(polled.labelled("power_watts"), [("plug=tv".to_owned(), 42.0)]);
            assert_eq!((polled.value("probe_success"), polled.value("mqtt_series")), (Some(1.0), Some(1.0)));
            assert_eq!(polled.samples.iter().find(|(s, _)| s.name == "power_watts").unwrap().0.unit, "watts");
        }
        assert_eq!(peer.visits.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_collector_that_goes_takes_its_connection_with_it() {
        let (gone, ended) = std::sync::mpsc::channel();
        let peer = raw_peer(move |stream| {
            welcome(stream);
            send(stream, &message("tele/tv/SENSOR", "{\"ENERGY\": {\"Power\": 42}}"));
            drop(stream.read_to_end(&mut Vec::new()));
            gone.send(()).unwrap();
        });
        let mut stage = stage(&peer, ONE);
        assert_eq!(stage.poll_all().await.value("power_watts"), Some(42.0));
        drop(stage);
        // The task is dropped at its next turn.
        tokio::task::yield_now().await;
        ended.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[tokio::test]
    async fn a_broker_that_says_no_is_a_gap_that_says_what_to_do() {
        for (code, said) in [
            (ConnectReturnCode::NotAuthorized, "wants a user and a password"),
            (ConnectReturnCode::BadUserNamePassword, "wants a user and a password"),
            (ConnectReturnCode::ServiceUnavailable, "serves nobody"),
            (ConnectReturnCode::RefusedProtocolVersion, "does not speak MQTT 3.1.1"),
        ] {
            let peer = raw_peer(move |stream| {
                receive(stream);
                send(stream, &Packet::ConnAck(ConnAck::new(code, false)));
            });
            check(&first(&peer).await, Reason::Refused, said);
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let nobody = Peer { port: free, visits: Arc::default() };
        check(&first(&nobody).await, Reason::Refused, "connection refused");
    }

    #[tokio::test]
    async fn a_hostile_broker_costs_a_gap() {
        let flood = raw_peer(|stream| while stream.write_all(&[0x5a; 4_096]).is_ok() {});
        check(&first(&flood).await, Reason::BadAnswer, "not what an MQTT broker says");
        let huge = raw_peer(|stream| drop(stream.write_all(&[0x20, 0xff, 0xff, 0xff, 0x7f])));
        check(&first(&huge).await, Reason::BadAnswer, "size limit");
        let ssh = raw_peer(|stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")));
        assert_eq!(first(&ssh).await.value("probe_success"), Some(0.0));
        let silent = raw_peer(|stream| drop(stream.read_to_end(&mut Vec::new())));
        check(&first(&silent).await, Reason::Timeout, "has not answered yet");
        let closing = raw_peer(|_| {});
        assert_eq!(first(&closing).await.value("probe_success"), Some(0.0));
        let wrong = raw_peer(|stream| {
            receive(stream);
            send(stream, &Packet::PingResp);
        });
        check(&first(&wrong).await, Reason::BadAnswer, "no CONNACK");
    }

    #[tokio::test]
    async fn a_flood_of_messages_leaves_polls_their_turn() {
        let endless = broker(|stream| {
            let mut bytes = BytesMut::new();
            for n in 0..500 {
                let topic = format!("tele/{n}/SENSOR");
                message(&topic, "{\"ENERGY\": {\"Power\": 42}}").write(&mut bytes, usize::MAX).unwrap();
            }
            while stream.write_all(&bytes).is_ok() {}
        });
        let mut stage = stage(&endless, ONE);
        for _ in 0..3 {
            let polled = stage.poll_all().await;
            assert_eq!((polled.value("power_watts"), polled.value("probe_success")), (Some(42.0), Some(1.0)));
        }
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_left_out_and_the_next_one_taken() {
        let peer = broker(|stream| {
            send(stream, &message("tele/tv/SENSOR", &"x".repeat(1_000_000)));
            send(stream, &message("tele/tv/SENSOR", &"[".repeat(100_000)));
            send(stream, &message("tele/lamp/SENSOR", "{\"ENERGY\": {\"Power\": 7}}"));
        });
        let mut stage = stage(&peer, ONE);
        let polled = loop {
            let polled = stage.poll_all().await;
            if !polled.labelled("power_watts").is_empty() {
                break polled;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(polled.labelled("power_watts"), [("plug=lamp".to_owned(), 7.0)]);
        assert_eq!(polled.value("mqtt_message_ignored_total"), Some(2.0));
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_the_pinned_one_is_refused_with_its_pin() {
        let stage::TlsPeer { peer, pin, .. } = stage::tls_peer("");
        let other = "ab".repeat(32);
        let mut stage = stage(&peer, &format!("tls = \"pin:{other}\"\n{ONE}"));
        check(&stage.poll_all().await, Reason::BadAnswer, &format!("set tls = \"pin:{pin}\""));
    }

    #[tokio::test]
    async fn a_broker_outside_the_policy_is_not_spoken_to() {
        let peer = broker(|_| {});
        let device = format!("collector = \"mqtt\"\naddress = \"127.0.0.1:{}\"\ntimeout = \"500ms\"\n{ONE}", peer.port);
        let polled = Stage::new(&device, &[]).unwrap().poll_all().await;
        assert_eq!(polled.failure.unwrap().reason, Reason::Policy);
        let secret = stage(&peer, &format!("user = \"me\"\nsecret = \"mqtt\"\n{ONE}")).poll_all().await;
        assert!(secret.failure.unwrap().detail.contains("satellite secrets set mqtt"));
    }

    #[tokio::test]
    async fn a_profile_tells_all_that_it_knows_under_one_metric() {
        let peer = broker(|stream| {
            let mut online = Publish::new("tele/tv/LWT", QoS::AtMostOnce, "Online");
            online.retain = true;
            send(stream, &Packet::Publish(online));
            send(stream, &message("tele/tv/SENSOR", "{\"ENERGY\": {\"Power\": 42, \"Total\": 1.5}}"));
        });
        let mut stage = stage(&peer, "profile = \"tasmota\"");
        let names: Vec<_> = stage.built.metrics.iter().map(|metric| metric.name.clone()).collect();
        assert_eq!(names, ["tasmota", "probe"]);
        let polled = stage.poll_all().await;
        assert_eq!(polled.labelled("tasmota_up"), [("device=tv".to_owned(), 1.0)]);
        assert_eq!((polled.value("tasmota_power_watts"), polled.value("tasmota_kwh_total")), (Some(42.0), Some(1.5)));
        assert_eq!(polled.value("mqtt_series"), Some(3.0));
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"mqtt\"\naddress = \"nas.lan\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        let metric = |options: &str| format!("[[device.metric]]\nname = \"x\"\n{options}\n");
        check("", "device.it.metric: no metrics: list topics");
        check("profile = \"esphome\"", "device.it.profile: unknown variant");
        check("base = \"x\"\n[[device.metric]]\nname = \"x\"\ntopic = \"a\"", "device.it.base: only a `profile`");
        check("profile = \"tasmota\"\nbase = \"a/#\"", "device.it.base");
        check("profile = \"tasmota\"\nqos = 2", "device.it.qos: 0 or 1");
        check("profile = \"tasmota\"\nsilent_after = \"0s\"", "device.it.silent_after: a duration");
        check("profile = \"tasmota\"\nuser = \"me\"", "device.it.secret");
        check("profile = \"tasmota\"\nsecret = \"me\"", "device.it.user");
        check("profile = \"tasmota\"\npassword = \"x\"", "device.it.password");
        check("profile = \"tasmota\"\ntls = \"no\"", "device.it.tls: write \"verify\"");
        check("profile = \"tasmota\"\nserver_name = \"x\"", "device.it.server_name: only with `tls`");
        check(
            "profile = \"tasmota\"\n[[device.metric]]\nname = \"tasmota\"\ntopic = \"a\"",
            "device.it.metric.tasmota.name",
        );
        check(&metric("topic = \"a/#/b\""), "device.it.metric.x.topic: `+` stands for");
        check(&metric(""), "device.it.metric.x: missing field `topic`");
        check(&metric("topic = \"a\"\npath = \"x\""), "device.it.metric.x.path: not a JSONPath");
        check(
            &metric("topic = \"a/+\"\nlabels_from = []"),
            "device.it.metric.x.labels_from: the topic has 1 wildcards",
        );
        check(
            &metric("topic = \"a/+/+\"\nlabels_from = [\"b\", \"b\"]"),
            "device.it.metric.x.labels_from: label names",
        );
        check(&metric("topic = \"a/+\"\nlabels = { topic = \"y\" }"), "device.it.metric.x.labels.topic");
        check(
            &metric("topic = \"a/+\"\nlabels_from = [\"index\"]\npath = \"$[*]\""),
            "device.it.metric.x.labels.index",
        );
        check(&metric("topic = \"a\"\nsilent_after = \"2years\""), "device.it.metric.x.silent_after: a duration");
        let many: String =
            (0..101).map(|n| format!("[[device.metric]]\nname = \"x{n}\"\ntopic = \"a/{n}\"\n")).collect();
        check(&many, "more than 100 topics");
    }
}
