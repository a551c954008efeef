//! The connection to a broker: made, kept, made again; whoever holds its task holds it, and dropping that ends it.
//!
//! The library's event loop resolves names by itself and ends a connection at a long message, so that only its packets
//! are used, over our own stream to an address that passed the gate. A session is clean: what was said while nobody
//! listened is not asked for. Nothing is ever published. A broker that sends faster than [`PACKETS_PER_SECOND_MAX`] waits.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, Subscribe, SubscribeFilter, SubscribeReasonCode,
};
use rumqttc::mqttbytes::{self, QoS};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use satellite_shared::gap::Reason;
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::Framed;
use tokio_util::either::Either;

use super::inbox::{Inbox, Shared};
use super::packets::{HEAD_BYTES_MAX, Incoming, Packets};
use super::topic::{is_topic, shown};
use crate::collector::Failure;
use crate::collector::address::Address;
use crate::collector::probe::{self, Stopwatch};
use crate::collector::trust::{self, Seen, Shown, Trust};
use crate::policy::{Gate, Protocol};
use crate::secrets::{Keyring, SecretName};

/// From the name to the subscription.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Of that, for all addresses of the name together: the rest is for the one that takes us.
const REACH_TIMEOUT: Duration = Duration::from_secs(10);
/// A packet of ours that the broker does not take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// What we promise the broker to be heard within.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How often we ask whether it is still there, and how long it may be silent.
const PING_EVERY: Duration = Duration::from_secs(25);
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The first pause after a connection that failed, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A connection that stood so long was a good one: what follows is the first failure again.
const GOOD_SESSION: Duration = Duration::from_secs(60);
/// Far more than a home says.
const PACKETS_PER_SECOND_MAX: u32 = 1_000;
const BYTES_PER_SECOND_MAX: usize = 4 << 20;
/// What is said where a broker wants to know who asks, and nobody told us.
pub(crate) const WANTS_LOGIN: &str = "the broker wants a user and a password: set `user` and `secret`";
/// The number of our first subscription.
const FIRST_NUMBER: u16 = 1;

/// Where the broker is, and as whom to ask it.
pub(super) struct Broker {
    pub(super) gate: Arc<Gate>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) address: Address,
    pub(super) tls: Option<Tls>,
    pub(super) login: Option<(String, SecretName)>,
    pub(super) qos: QoS,
}

/// Whom to trust, and whom we mean.
pub(super) struct Tls {
    pub(super) trust: Trust,
    pub(super) name: ServerName<'static>,
}

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

impl Broker {
    /// Listens for as long as it is let.
    pub(super) async fn listen(self, shared: Arc<Shared>) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let Err(failure) = self.session(&shared).await;
            tracing::debug!(%failure, host = self.address.host, "no connection to the broker");
            shared.change(|inbox| inbox.on_down(failure));
            if began.elapsed() >= GOOD_SESSION {
                failures = 0;
            }
            tokio::time::sleep(pause(failures, share())).await;
            failures += 1;
        }
    }

    /// One connection, from its beginning to its end.
    async fn session(&self, shared: &Shared) -> Result<std::convert::Infallible, Failure> {
        let mut link = match timeout(CONNECT_TIMEOUT, self.connect(shared)).await {
            Ok(link) => link?,
            Err(_) => {
                let detail = format!("the broker did not let us in within {} s", CONNECT_TIMEOUT.as_secs());
                return Err(Failure::new(Reason::Timeout, detail));
            }
        };
        link.follow(shared).await
    }

    async fn connect(&self, shared: &Shared) -> Result<Link, Failure> {
        let watch = Stopwatch::start();
        let stream = self.reach().await?;
        let bytes_max = shared.inbox().payload_bytes_max() + HEAD_BYTES_MAX;
        let packets = Framed::new(stream, Packets::new(bytes_max));
        let mut link = Link { packets, qos: self.qos, number: FIRST_NUMBER, pace: Pace::new() };
        link.send(Packet::Connect(self.greeting()?)).await?;
        match link.next().await? {
            Incoming::Packet(Packet::ConnAck(ConnAck { code, .. })) => self.check_welcome(code)?,
            Incoming::Packet(_) | Incoming::Skipped(_) | Incoming::Passed(_) => {
                return Err(Failure::new(Reason::BadAnswer, "the first packet is no CONNACK: not an MQTT broker"));
            }
        }
        let filters = shared.inbox().filters();
        link.subscribe(&filters).await?;
        let answers = loop {
            match link.next().await? {
                Incoming::Packet(Packet::SubAck(answer)) if answer.pkid == FIRST_NUMBER => break answer.return_codes,
                // What is retained may come before the answer does.
                other @ (Incoming::Packet(_) | Incoming::Skipped(_) | Incoming::Passed(_)) => {
                    link.take(other, shared).await?
                }
            }
        };
        if answers.len() != filters.len() {
            return Err(Failure::new(Reason::BadAnswer, "the broker answered to another subscription"));
        }
        let is_refused = |(_, answer): &(String, SubscribeReasonCode)| *answer == SubscribeReasonCode::Failure;
        let refused = filters.into_iter().zip(answers).filter(is_refused).map(|(filter, _)| filter).collect();
        shared.change(|inbox| inbox.on_up(watch.seconds(), refused));
        Ok(link)
    }

    async fn reach(&self) -> Result<Stream, Failure> {
        let seen = Seen::default();
        let config = match &self.tls {
            Some(tls) => Some(Arc::new(trust::client_config(tls.trust, &seen)?)),
            None => None,
        };
        let addresses = self.gate.resolve(Protocol::Mqtt, &self.address.host, self.address.port).await?;
        let (_, stream) = probe::connect(&addresses, REACH_TIMEOUT).await?;
        // Without it each of our short packets could wait for the one before.
        drop(stream.set_nodelay(true));
        match (&self.tls, config) {
            (Some(tls), Some(config)) => shake_hands(tls, config, &seen, stream).await.map(Either::Right),
            (None, _) | (_, None) => Ok(Either::Left(stream)),
        }
    }

    fn greeting(&self) -> Result<Connect, Failure> {
        let mut bytes = [0; 6];
        // Without randomness nothing here works; another client of that name would then be hung up on.
        aws_lc_rs::rand::fill(&mut bytes).ok();
        let mut connect = Connect::new(format!("satellite-{}", data_encoding::HEXLOWER.encode(&bytes)));
        connect.keep_alive = u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX);
        connect.clean_session = true;
        if let Some((user, secret)) = &self.login {
            let password = self.keyring.give(secret, Protocol::Mqtt, &self.address.host, self.address.port)?;
            connect.set_credentials(user.clone(), password.expose_secret().as_bytes().to_vec());
        }
        Ok(connect)
    }

    fn check_welcome(&self, code: ConnectReturnCode) -> Result<(), Failure> {
        let what = match (code, &self.login) {
            (ConnectReturnCode::Success, _) => return Ok(()),
            (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized, Some((user, secret))) => {
                let user: String = user.chars().take(40).collect();
                format!(
                    "the broker refuses user `{user}` or its password: set `user`, or `satellite secrets set {secret}`"
                )
            }
            (ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized, None) => WANTS_LOGIN.into(),
            (ConnectReturnCode::RefusedProtocolVersion, _) => "the broker does not speak MQTT 3.1.1".into(),
            (ConnectReturnCode::BadClientId, _) => "the broker refuses our client id, `satellite-…`".into(),
            (ConnectReturnCode::ServiceUnavailable, _) => "the broker is up and serves nobody".into(),
        };
        Err(Failure::new(Reason::Refused, what))
    }
}

async fn shake_hands(
    tls: &Tls,
    config: Arc<ClientConfig>,
    seen: &Seen,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let shaken = TlsConnector::from(config).connect(tls.name.clone(), stream).await;
    shaken.map_err(|error| {
        let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(why)) => Some(why),
            _ => None,
        };
        let shown = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match shown.zip(why) {
            Some((shown, why)) => Failure::new(Reason::BadAnswer, untrusted(tls, why, shown)),
            None if error.kind() == std::io::ErrorKind::InvalidData => {
                Failure::new(Reason::BadAnswer, format!("TLS: {error}"))
            }
            None => probe::failure_of_io(&error),
        }
    })
}

/// Why a certificate does not do, and what would change that.
fn untrusted(tls: &Tls, why: &CertificateError, shown: Shown) -> String {
    if matches!(why, CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }) {
        let name = tls.name.to_str();
        return format!("the certificate is not for `{name}`: set server_name to a name that it has");
    }
    shown.refusal.unwrap_or_else(|| why.to_string())
}

/// A connection that stands.
struct Link {
    packets: Framed<Stream, Packets>,
    qos: QoS,
    /// Of the last subscription.
    number: u16,
    pace: Pace,
}

impl Link {
    async fn send(&mut self, packet: Packet) -> Result<(), Failure> {
        match timeout(SEND_TIMEOUT, self.packets.send(packet)).await {
            Ok(sent) => sent.map_err(|error| failure_of(&error)),
            Err(_) => Err(Failure::new(Reason::Timeout, "the broker takes nothing any more")),
        }
    }

    async fn next(&mut self) -> Result<Incoming, Failure> {
        match self.packets.next().await {
            Some(incoming) => incoming.map_err(|error| failure_of(&error)),
            None => Err(hung_up()),
        }
    }

    async fn subscribe(&mut self, filters: &[String]) -> Result<(), Failure> {
        let filters = filters.iter().map(|filter| SubscribeFilter::new(filter.clone(), self.qos));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = self.number;
        self.send(Packet::Subscribe(subscribe)).await
    }

    /// Takes up what comes until there is no connection any more.
    async fn follow(&mut self, shared: &Shared) -> Result<std::convert::Infallible, Failure> {
        let mut ping = Instant::now() + PING_EVERY;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                incoming = self.next() => {
                    heard = Instant::now();
                    self.take(incoming?, shared).await?;
                }
                () = tokio::time::sleep_until(ping.min(heard + SILENCE_MAX)) => {
                    if heard.elapsed() >= SILENCE_MAX {
                        let detail = format!("the broker was silent for {} s", SILENCE_MAX.as_secs());
                        return Err(Failure::new(Reason::Timeout, detail));
                    }
                    self.send(Packet::PingReq).await?;
                    ping = Instant::now() + PING_EVERY;
                }
            }
        }
    }

    async fn take(&mut self, incoming: Incoming, shared: &Shared) -> Result<(), Failure> {
        match incoming {
            Incoming::Skipped(number) => {
                shared.change(Inbox::on_ignored);
                self.acknowledge(number).await?;
                self.pace.after(0).await;
            }
            Incoming::Passed(bytes) => self.pace.after(bytes).await,
            Incoming::Packet(Packet::Publish(publish)) => {
                let number = (publish.qos != QoS::AtMostOnce).then_some(publish.pkid);
                let bytes = publish.payload.len();
                let wanted = hear(publish, shared).await?;
                self.acknowledge(number).await?;
                if !wanted.is_empty() {
                    self.number = self.number.checked_add(1).unwrap_or(FIRST_NUMBER);
                    self.subscribe(&wanted).await?;
                }
                self.pace.after(bytes).await;
            }
            Incoming::Packet(Packet::PingResp | Packet::SubAck(_)) => self.pace.after(0).await,
            Incoming::Packet(_) => {
                return Err(Failure::new(Reason::BadAnswer, "a packet that no broker sends to a subscriber"));
            }
        }
        Ok(())
    }

    async fn acknowledge(&mut self, number: Option<u16>) -> Result<(), Failure> {
        match number {
            Some(number) => self.send(Packet::PubAck(PubAck::new(number))).await,
            None => Ok(()),
        }
    }
}

/// Reads a message, with nobody waiting where that takes long, and takes it up; gives topics to listen to from now on.
async fn hear(publish: Publish, shared: &Shared) -> Result<Vec<String>, Failure> {
    let Some(topic) = std::str::from_utf8(&publish.topic).ok().filter(|topic| is_topic(topic)) else {
        shared.change(Inbox::on_ignored);
        return Ok(Vec::new());
    };
    let reader = shared.inbox().reader(topic, publish.retain);
    let Some(reader) = reader else {
        shared.inbox().on_passed();
        return Ok(Vec::new());
    };
    let payload = publish.payload.clone();
    if payload.len() > reader.bytes_max() {
        shared.change(Inbox::on_ignored);
        return Ok(Vec::new());
    }
    let message = if reader.is_quick(payload.len()) {
        reader.read(&payload)
    } else {
        let work = tokio::task::spawn_blocking(move || reader.read(&payload));
        work.await.map_err(|error| Failure::new(Reason::BadAnswer, format!("`{}`: {error}", shown(topic))))?
    };
    Ok(shared.change(|inbox| inbox.on_message(message)))
}

/// Lets a broker say so much a second, and the others of this process have their turn.
struct Pace {
    second: Instant,
    packets: u32,
    bytes: usize,
}

impl Pace {
    fn new() -> Self {
        Self { second: Instant::now(), packets: 0, bytes: 0 }
    }

    async fn after(&mut self, bytes: usize) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            *self = Self::new();
        }
        self.packets += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.packets > PACKETS_PER_SECOND_MAX || self.bytes > BYTES_PER_SECOND_MAX {
            tokio::time::sleep_until(self.second + Duration::from_secs(1)).await;
            *self = Self::new();
        } else {
            // Packets that are in the buffer already come without asking the system, and would leave nobody a turn.
            tokio::task::consume_budget().await;
        }
    }
}

fn hung_up() -> Failure {
    Failure::new(Reason::Refused, "the broker hung up")
}

fn failure_of(error: &mqttbytes::Error) -> Failure {
    let mqttbytes::Error::Io(error) = error else {
        return Failure::new(Reason::BadAnswer, format!("not what an MQTT broker says: {error}"));
    };
    // TLS says so of a peer that just went.
    if error.kind() == std::io::ErrorKind::UnexpectedEof { hung_up() } else { probe::failure_of_io(error) }
}

/// How long to wait after so many failures in a row; half of it, and a random share of the other half.
fn pause(failures: u32, share: f64) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
    longest.mul_f64(0.5 + 0.5 * share)
}

/// A random number from 0 to 1.
fn share() -> f64 {
    let mut bytes = [0; 4];
    aws_lc_rs::rand::fill(&mut bytes).ok();
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_another_name_is_told_from_one_that_nobody_trusts() {
        let tls = Tls { trust: Trust::System, name: ServerName::try_from("nas.lan").unwrap() };
        let refusal = Some("the certificate is not trusted".to_owned());
        let shown = Shown { fingerprint: [0xab; 32], earliest_expiry: None, leaf: vec![], refusal };
        let name = untrusted(&tls, &CertificateError::NotValidForName, shown.clone());
        assert!(name.contains("not for `nas.lan`: set server_name") && !name.contains("pin:"), "{name}");
        assert_eq!(untrusted(&tls, &CertificateError::UnknownIssuer, shown), "the certificate is not trusted");
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_differ() {
        let pauses: Vec<u64> = (0..8).map(|failures| pause(failures, 1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pause(0, 0.0), Duration::from_millis(500));
        assert_eq!(pause(u32::MAX, 0.5), Duration::from_secs(45));
        assert!((0.0..=1.0).contains(&share()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_for_the_next_second() {
        let mut pace = Pace::new();
        let began = Instant::now();
        for _ in 0..3_500 {
            pace.after(10).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
        let mut pace = Pace::new();
        let began = Instant::now();
        for _ in 0..20 {
            pace.after(1 << 20).await;
        }
        assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    }
}
