//! `dns`: whether a name server answers a question, and whether the answer is the expected one.
//!
//! One question to one server, by UDP or TCP, with blackbox_exporter's names; `probe_dns_rcode` is our own. `answer` is what
//! came back; `expect`, where something is expected, is a gap that says what came instead; `up` tells how it went. A
//! question that is lost is a server that did not answer: it is not asked again, not even by TCP where the answer was cut
//! short. Deliberately absent: following referrals, DNSSEC, and encrypted transports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::address::Address;
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol};

/// `collector = "dns"`.
pub const KIND: CollectorKind = CollectorKind { name: "dns", build };

/// Assigned to `domain` by IANA.
const PORT: u16 = 53;
/// A name in full.
const NAME_BYTES_MAX: usize = 253;
/// Answers that may be expected.
const EXPECTED_MAX: usize = 50;
/// Datagrams that are no answer to the question, of one server.
const STRAY_MAX: usize = 16;
/// Index of the metric that is what the server said.
const ANSWER: usize = 0;
/// Index of the metric that tells how it went.
const UP: usize = 1;
/// Index of the metric that compares, where something is expected.
const EXPECT: usize = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `192.168.1.1` or `192.168.1.1:5353`.
    server: String,
    /// What is asked for; with type PTR, an address will do.
    query: String,
    #[serde(default, rename = "type")]
    kind: Kind,
    #[serde(default)]
    transport: Transport,
    /// All answers of that type, in any order.
    #[serde(default)]
    expect: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    #[default]
    A,
    Aaaa,
    Caa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Soa,
    Srv,
    Txt,
}

impl Kind {
    fn wire(self) -> RecordType {
        match self {
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
            Self::Caa => RecordType::CAA,
            Self::Cname => RecordType::CNAME,
            Self::Mx => RecordType::MX,
            Self::Ns => RecordType::NS,
            Self::Ptr => RecordType::PTR,
            Self::Soa => RecordType::SOA,
            Self::Srv => RecordType::SRV,
            Self::Txt => RecordType::TXT,
        }
    }

    /// An answer as it is compared: names in small letters and without the last dot, addresses in one spelling.
    fn plain(self, text: &str) -> Option<String> {
        let word = |word: &str| word.strip_suffix('.').filter(|rest| !rest.is_empty()).unwrap_or(word).to_lowercase();
        match self {
            Self::A => text.parse::<Ipv4Addr>().ok().map(|ip| ip.to_string()),
            Self::Aaaa => text.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string()),
            Self::Txt => Some(text.to_owned()),
            Self::Caa | Self::Cname | Self::Mx | Self::Ns | Self::Ptr | Self::Soa | Self::Srv => {
                let words: Vec<String> = text.split_ascii_whitespace().map(word).collect();
                (!words.is_empty()).then(|| words.join(" "))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Udp,
    Tcp,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let at = |key: &str, reason: &str| options::problem(&format!("{path}.{key}"), reason);
    options::no_metrics(device)?;
    let Options { server, query, kind, transport, expect } = options::read(&device.options, &path)?;
    let server = Address::parse(&server, Some(PORT), &format!("{path}.server"))?;
    let name = match query.parse::<IpAddr>() {
        Ok(ip) if kind == Kind::Ptr => Name::from(ip),
        _ => domain(&query).ok_or_else(|| at("query", "a name such as \"nas.lan\"; others than ASCII as xn--…"))?,
    };
    let expect = expect.map(|texts| expected(kind, &texts)).transpose().map_err(|reason| at("expect", &reason))?;
    let mut metrics = Vec::new();
    for name in ["answer", "up"].into_iter().chain(expect.is_some().then_some("expect")) {
        metrics.extend(whole(device));
        if let Some(metric) = metrics.last_mut() {
            metric.name = name.into();
        }
    }
    let gate = Arc::clone(&context.gate);
    let dns = Dns { gate, server, name, kind, transport, expect, limit: probe::limit(device.timeout) };
    Ok(Built { collector: Box::new(dns), metrics })
}

fn domain(text: &str) -> Option<Name> {
    let labels = text.strip_suffix('.').unwrap_or(text);
    let is_name = text == "." || labels.split('.').all(|label| !label.is_empty());
    if !is_name || text.len() > NAME_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn expected(kind: Kind, texts: &[String]) -> Result<Vec<String>, String> {
    if texts.len() > EXPECTED_MAX {
        return Err(format!("more than {EXPECTED_MAX} answers"));
    }
    let plain = |text: &String| {
        let shown: String = text.chars().take(80).collect();
        kind.plain(text).ok_or_else(|| format!("`{}` is no answer of type {}", shown.escape_debug(), kind.wire()))
    };
    let mut all = texts.iter().map(plain).collect::<Result<Vec<String>, String>>()?;
    all.sort_unstable();
    Ok(all)
}

struct Dns {
    gate: Arc<Gate>,
    server: Address,
    name: Name,
    kind: Kind,
    transport: Transport,
    /// Sorted.
    expect: Option<Vec<String>>,
    limit: Duration,
}

/// How far a probe came.
#[derive(Default)]
struct Seen {
    lookup_seconds: f64,
    connect_seconds: f64,
    request_seconds: f64,
    used: Option<SocketAddr>,
}

impl Seen {
    /// By phase, as blackbox_exporter has them; 0 where it did not come so far.
    fn tell(&self, readings: &mut Readings) {
        let phases =
            [("resolve", self.lookup_seconds), ("connect", self.connect_seconds), ("request", self.request_seconds)];
        for (phase, seconds) in phases {
            let family = Family::gauge("probe_dns_duration_seconds", "seconds");
            readings.sample(UP, family, &[("phase", phase)], seconds);
        }
    }
}

impl Dns {
    async fn ask(&self, seen: &mut Seen) -> Result<Message, Failure> {
        let watch = Stopwatch::start();
        let addresses = self.gate.resolve(Protocol::Dns, &self.server.host, self.server.port).await?;
        seen.lookup_seconds = watch.seconds();
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(self.name.clone(), self.kind.wire()));
        let bytes = question.to_vec().map_err(|error| Failure::new(Reason::Unsupported, error.to_string()))?;
        let mut failure = Failure::new(Reason::Unreachable, "the name has no address");
        for address in addresses {
            seen.used = Some(address);
            let answered = match self.transport {
                Transport::Udp => by_udp(address, &bytes, &question, seen).await,
                Transport::Tcp => by_tcp(address, &bytes, &question, seen).await,
            };
            match answered {
                Ok(answer) => return Ok(answer),
                // Only silence is the same at another address, and there is no time left for it.
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn probe(&self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut seen = Seen::default();
        let outcome = probe::within(self.limit, self.ask(&mut seen)).await;
        let seconds = watch.seconds();
        if let Err(failure) = &outcome
            && probe::was_not_tried(failure)
        {
            return Err(failure.clone());
        }
        let compared = match &outcome {
            Ok(answer) => self.compare(answer),
            Err(failure) => Err(failure.clone()),
        };
        if due.contains(&ANSWER) {
            match &outcome {
                Ok(answer) => tell(answer, readings),
                Err(failure) => readings.missing(ANSWER, failure.clone()),
            }
        }
        if due.contains(&UP) {
            probe::report(readings, UP, compared.is_ok(), seconds);
            probe::report_address(readings, UP, seen.lookup_seconds, seen.used);
            seen.tell(readings);
            let succeeded = f64::from(u8::from(outcome.is_ok()));
            readings.sample(UP, Family::gauge("probe_dns_query_succeeded", ""), &[], succeeded);
        }
        if due.contains(&EXPECT) && self.expect.is_some() {
            match compared {
                Ok(()) => readings.sample(EXPECT, Family::gauge("probe_dns_expected", ""), &[], 1.0),
                Err(failure) => readings.missing(EXPECT, failure),
            }
        }
        Ok(())
    }

    /// Whether the answer is one, and the expected one.
    fn compare(&self, answer: &Message) -> Result<(), Failure> {
        let code = answer.metadata.response_code;
        if code != ResponseCode::NoError {
            return Err(Failure::new(Reason::Refused, format!("the server says: {code} ({})", u16::from(code))));
        }
        let Some(expected) = &self.expect else { return Ok(()) };
        let of_kind = answer.answers.iter().filter(|record| record.record_type() == self.kind.wire());
        let mut found: Vec<String> = of_kind.map(|record| self.plain(record)).collect();
        found.sort_unstable();
        if found == *expected {
            return Ok(());
        }
        let said: String = found.join(", ").chars().take(120).collect();
        let said = if said.is_empty() { "none".into() } else { format!("`{}`", said.escape_debug()) };
        let cut = if answer.metadata.truncation { "; it was cut short, which transport = \"tcp\" is not" } else { "" };
        Err(Failure::new(Reason::BadAnswer, format!("another answer than expected: {said}{cut}")))
    }

    fn plain(&self, record: &Record) -> String {
        let text = if let RData::TXT(text) = &record.data {
            String::from_utf8_lossy(&text.txt_data.concat()).into_owned()
        } else {
            record.data.to_string()
        };
        self.kind.plain(&text).unwrap_or(text)
    }
}

impl Collector for Dns {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.probe(due, readings))
    }
}

fn tell(answer: &Message, readings: &mut Readings) {
    let mut gauge = |name: &str, value: f64| readings.sample(ANSWER, Family::gauge(name, ""), &[], value);
    // The header of EDNS is a record on the wire and for blackbox_exporter.
    let additional = answer.additionals.len() + usize::from(answer.edns.is_some());
    gauge("probe_dns_answer_rrs", answer.answers.len() as f64);
    gauge("probe_dns_authority_rrs", answer.authorities.len() as f64);
    gauge("probe_dns_additional_rrs", additional as f64);
    gauge("probe_dns_rcode", f64::from(u16::from(answer.metadata.response_code)));
    let serial = answer
        .answers
        .iter()
        .find_map(|record| if let RData::SOA(soa) = &record.data { Some(f64::from(soa.serial)) } else { None });
    if let Some(serial) = serial {
        gauge("probe_dns_serial", serial);
    }
}

async fn by_udp(address: SocketAddr, bytes: &[u8], question: &Message, seen: &mut Seen) -> Result<Message, Failure> {
    let watch = Stopwatch::start();
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let io = |error: std::io::Error| probe::failure_of_io(&error);
    let socket = UdpSocket::bind((any, 0)).await.map_err(io)?;
    // Connected, so that nobody but the server is heard.
    socket.connect(address).await.map_err(io)?;
    seen.connect_seconds = watch.seconds();
    let watch = Stopwatch::start();
    socket.send(bytes).await.map_err(io)?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    for _ in 0..STRAY_MAX {
        let length = socket.recv(&mut buffer).await.map_err(io)?;
        if buffer[..length].starts_with(&question.metadata.id.to_be_bytes()) {
            seen.request_seconds = watch.seconds();
            return read(&buffer[..length], question);
        }
    }
    Err(Failure::new(Reason::BadAnswer, format!("{STRAY_MAX} answers, and none to the question")))
}

async fn by_tcp(address: SocketAddr, bytes: &[u8], question: &Message, seen: &mut Seen) -> Result<Message, Failure> {
    let talk = async {
        let watch = Stopwatch::start();
        let mut stream = TcpStream::connect(address).await?;
        seen.connect_seconds = watch.seconds();
        let watch = Stopwatch::start();
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        stream.write_all(&[&length, bytes].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        seen.request_seconds = watch.seconds();
        Ok(answer)
    };
    let answer = talk.await.map_err(|error: std::io::Error| probe::failure_of_io(&error))?;
    read(&answer, question)
}

fn read(bytes: &[u8], question: &Message) -> Result<Message, Failure> {
    let bad = |detail: String| Failure::new(Reason::BadAnswer, detail);
    let answer = Message::from_vec(bytes).map_err(|error| {
        let said: String = error.to_string().chars().take(80).collect();
        bad(format!("not what DNS says here: {}", said.escape_debug()))
    })?;
    let is_answer = answer.metadata.id == question.metadata.id && answer.metadata.message_type == MessageType::Response;
    // A server that can't read the question may leave it away.
    let is_to_it = answer.queries == question.queries
        || answer.queries.is_empty() && answer.metadata.response_code != ResponseCode::NoError;
    if is_answer && is_to_it { Ok(answer) } else { Err(bad("the answer is to another question".into())) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use hickory_resolver::proto::rr::rdata::{A, CNAME, MX, SOA, TXT};

    use super::super::stage::{Polled, Stage, problem, raw_peer};
    use super::*;

    fn server(answer: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static) -> u16 {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 4_096];
            loop {
                let (length, asker) = socket.recv_from(&mut buffer).unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                answer(question).iter().for_each(|datagram| drop(socket.send_to(datagram, asker)));
            }
        });
        port
    }

    fn answer(mut question: Message, records: &[RData]) -> Message {
        question.metadata.message_type = MessageType::Response;
        let name = question.queries[0].name().clone();
        question.answers = records.iter().map(|data| Record::from_rdata(name.clone(), 60, data.clone())).collect();
        question
    }

    fn says(records: Vec<RData>) -> u16 {
        server(move |question| vec![answer(question, &records).to_vec().unwrap()])
    }

    async fn polled(port: u16, more: &str) -> Polled {
        let device = format!("collector = \"dns\"\nserver = \"127.0.0.1:{port}\"\ntimeout = \"1s\"\n{more}");
        Stage::new(&device, &[port]).unwrap().poll_all().await
    }

    fn a(octets: [u8; 4]) -> RData {
        RData::A(A(octets.into()))
    }

    fn name(text: &str) -> Name {
        domain(text).unwrap()
    }

    #[tokio::test]
    async fn an_answer_is_told_as_blackbox_exporter_tells_it() {
        let soa = SOA::new(name("ns.lan."), name("root.lan."), 2_026_112_201, 1, 2, 3, 4);
        let port = server(move |question| {
            assert!(question.metadata.recursion_desired && question.queries[0].query_type() == RecordType::SOA);
            let mut said = answer(question, &[RData::SOA(soa.clone())]);
            said.authorities.push(Record::from_rdata(name("lan."), 1, a([10, 0, 0, 1])));
            vec![said.to_vec().unwrap()]
        });
        let polled = polled(port, "query = \"lan\"\ntype = \"SOA\"").await;
        let phases = polled.labelled("probe_dns_duration_seconds");
        let names: Vec<&str> = phases.iter().map(|(labels, _)| labels.as_str()).collect();
        assert_eq!(names, ["phase=resolve", "phase=connect", "phase=request"]);
        assert!(phases[2].1 > 0.0 && phases.iter().all(|(_, seconds)| *seconds < 1.0), "{phases:?}");
        for (series, value) in [
            ("probe_dns_answer_rrs", 1.0),
            ("probe_dns_authority_rrs", 1.0),
            ("probe_dns_additional_rrs", 0.0),
            ("probe_dns_serial", 2_026_112_201.0),
            ("probe_dns_rcode", 0.0),
            ("probe_dns_query_succeeded", 1.0),
            ("probe_success", 1.0),
            ("probe_ip_protocol", 4.0),
        ] {
            assert_eq!(polled.value(series), Some(value), "{series}");
        }
        assert!(polled.value("probe_dns_lookup_time_seconds").is_some() && polled.missing.is_empty());
    }

    #[tokio::test]
    async fn what_is_expected_is_compared_whatever_its_order_and_spelling() {
        let two = says(vec![RData::CNAME(CNAME(name("x.lan."))), a([10, 0, 0, 2]), a([10, 0, 0, 1])]);
        let check = async |more: &str| polled(two, &format!("query = \"nas.lan\"\n{more}")).await;
        let same = check("expect = [\"10.0.0.1\", \"10.0.0.2\"]").await;
        assert_eq!((same.value("probe_success"), same.value("probe_dns_expected")), (Some(1.0), Some(1.0)));
        for other in ["[\"10.0.0.1\"]", "[]", "[\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\"]"] {
            let other = check(&format!("expect = {other}")).await;
            assert_eq!(
                (other.value("probe_success"), other.value("probe_dns_query_succeeded")),
                (Some(0.0), Some(1.0))
            );
            let (metric, failure) = &other.missing[0];
            assert_eq!((metric.as_str(), failure.reason), ("expect", Reason::BadAnswer));
            assert!(failure.detail.contains("than expected: `10.0.0.1, 10.0.0.2`"), "{failure}");
            assert_eq!(other.value("probe_dns_answer_rrs"), Some(3.0));
        }
        let mx = says(vec![RData::MX(MX::new(10, name("Mail.LAN.")))]);
        let mx = polled(mx, "query = \"lan\"\ntype = \"MX\"\nexpect = [\"10 mail.lan\"]").await;
        assert_eq!(mx.value("probe_success"), Some(1.0));
        let txt = says(vec![RData::TXT(TXT::new(vec!["v=spf1 ".into(), "-all".into()]))]);
        let txt = polled(txt, "query = \"lan\"\ntype = \"TXT\"\nexpect = [\"v=spf1 -all\"]").await;
        assert_eq!(txt.value("probe_success"), Some(1.0));
    }

    #[tokio::test]
    async fn a_server_that_refuses_has_answered_and_failed() {
        let port = server(|question| {
            let mut said = answer(question, &[]);
            said.metadata.response_code = ResponseCode::NXDomain;
            vec![said.to_vec().unwrap()]
        });
        let polled = polled(port, "query = \"gone.lan\"\nexpect = [\"10.0.0.1\"]").await;
        assert_eq!((polled.value("probe_dns_rcode"), polled.value("probe_success")), (Some(3.0), Some(0.0)));
        assert_eq!(polled.value("probe_dns_query_succeeded"), Some(1.0));
        assert!(polled.missing[0].1.detail.contains("Non-Existent Domain (3)"), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_hostile_or_silent_server_is_a_gap_that_says_so() {
        type Hostile = fn(Message) -> Vec<Vec<u8>>;
        let servers: [(Hostile, Reason, &str); 6] = [
            (|_| vec![], Reason::Timeout, "within"),
            (|q| vec![q.metadata.id.to_be_bytes().to_vec()], Reason::BadAnswer, "not what DNS says"),
            (|q| vec![q.to_vec().unwrap()], Reason::BadAnswer, "to another question"),
            (|_| vec![vec![0xff; 100]; 16], Reason::BadAnswer, "none to the question"),
            (
                |q| {
                    let mut said = answer(q, &[]);
                    said.queries[0].set_name(name("other.lan"));
                    vec![said.to_vec().unwrap()]
                },
                Reason::BadAnswer,
                "to another question",
            ),
            (
                |q| {
                    let mut said = answer(q, &[a([1, 2, 3, 4])]).to_vec().unwrap();
                    said.truncate(said.len() - 1);
                    vec![said]
                },
                Reason::BadAnswer,
                "not what DNS says",
            ),
        ];
        for (at, (hostile, reason, said)) in servers.into_iter().enumerate() {
            let polled = polled(server(hostile), "query = \"nas.lan\"").await;
            let (metric, failure) = &polled.missing[0];
            assert_eq!((metric.as_str(), failure.reason), ("answer", reason), "{at}: {failure}");
            assert!(failure.detail.contains(said), "{at}: {failure}");
            assert_eq!(
                (polled.value("probe_success"), polled.value("probe_dns_query_succeeded")),
                (Some(0.0), Some(0.0))
            );
        }
        let stray = server(|question| {
            let mut other = question.clone();
            other.metadata.id ^= 1;
            vec![answer(other, &[]).to_vec().unwrap(), answer(question, &[a([1, 2, 3, 4])]).to_vec().unwrap()]
        });
        assert_eq!(polled(stray, "query = \"nas.lan\"").await.value("probe_dns_answer_rrs"), Some(1.0));
    }

    #[tokio::test]
    async fn a_long_answer_comes_by_tcp_and_one_that_ends_early_does_not() {
        let peer = |is_whole: bool| {
            raw_peer(move |stream| {
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let records: Vec<RData> = (0..200).map(|n| a([10, 0, 0, n])).collect();
                let said = answer(Message::from_vec(&question).unwrap(), &records).to_vec().unwrap();
                let length = u16::try_from(said.len()).unwrap().to_be_bytes();
                let end = if is_whole { said.len() } else { said.len() / 2 };
                stream.write_all(&[&length, &said[..end]].concat()).unwrap();
            })
        };
        let long = polled(peer(true).port, "query = \"nas.lan\"\ntransport = \"tcp\"").await;
        assert_eq!((long.value("probe_dns_answer_rrs"), long.value("probe_success")), (Some(200.0), Some(1.0)));
        let short = polled(peer(false).port, "query = \"nas.lan\"\ntransport = \"tcp\"").await;
        assert!(short.missing[0].1.detail.contains("ended too early"), "{}", short.missing[0].1);
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"dns\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        let asks = |more: &str| format!("server = \"192.168.1.1\"\nquery = \"nas.lan\"\n{more}");
        check("server = \"192.168.1.1\"", "missing field `query`");
        check("server = \"a b\"\nquery = \"nas.lan\"", "device.it.server");
        check("server = \"192.168.1.1\"\nquery = \"\"", "device.it.query: a name such as");
        check("server = \"192.168.1.1\"\nquery = \"nas..lan\"", "device.it.query");
        check("server = \"192.168.1.1\"\nquery = \"häus.lan\"", "xn--");
        check(&format!("server = \"192.168.1.1\"\nquery = \"{}\"", "a.".repeat(200)), "device.it.query");
        check(&asks("type = \"ANY\""), "device.it.type: unknown variant `ANY`, expected one of `A`, `AAAA`");
        check(&asks("transport = \"tls\""), "device.it.transport");
        check(&asks("expect = [\"nas.lan\"]"), "device.it.expect: `nas.lan` is no answer of type A");
        check(&asks("expect = \"10.0.0.1\""), "device.it.expect");
        check(&asks("[[device.metric]]\nname = \"x\""), "takes no list of metrics");
        assert_eq!(Name::from(IpAddr::from([192, 168, 1, 9])).to_string(), "9.1.168.192.in-addr.arpa.");
    }
}
