//! `snmp`: what a switch, a printer, a NAS or a UPS tells about itself, by SNMPv2c or SNMPv3.
//!
//! Ready modules read what a MIB has, with snmp_exporter's names and labels; a list of metrics reads any object by its
//! number. Each module and each metric is due by itself and is a gap with its reason where the device does not have it;
//! `probe` tells how the questions went. Only GET and GETBULK are ever sent. Deliberately absent: SNMPv1, which has
//! neither 64-bit counters nor GETBULK; SET; traps; and MIB files, whose names would have to be installed.

mod conversation;
mod login;
mod mib;
mod modules;
mod oid;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use satellite_shared::metric::is_label_name;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use self::conversation::{Conversation, Grasp, Question, Session, Tally};
use self::login::{Auth, Login, Privacy};
use self::mib::Module;
use self::oid::{Data, Oid, dotted};
use self::walk::Ended;
use super::address::Address;
use super::number::{Number, PROBE};
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};
use crate::policy::{Gate, Protocol};
use crate::secrets::{Keyring, SecretName};

/// `collector = "snmp"`.
pub const KIND: CollectorKind = CollectorKind { name: "snmp", build };

/// Assigned to `snmp` by IANA.
const PORT: u16 = 161;
/// `sysUpTime.0`, which every device has.
const SYS_UP_TIME: [u32; 9] = [1, 3, 6, 1, 2, 1, 1, 3, 0];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `switch.lan` or `switch.lan:1161`.
    address: String,
    #[serde(default)]
    modules: Vec<String>,
    /// The community; `public` where there is none.
    #[serde(default)]
    secret: Option<SecretName>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default)]
    privacy: Option<Privacy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOptions {
    oid: String,
    /// What the index of a column is called; without it the name is that of a single value.
    #[serde(default)]
    index: Option<String>,
}

/// What a metric reads.
enum Source {
    Module(&'static Module),
    Value(Number, Oid),
    Column(Number, Oid, String),
}

impl Source {
    fn parse(metric: &Metric, device: &str) -> Result<Self, Problem> {
        let (number, own, at) = Number::parse(metric, device)?;
        let MetricOptions { oid, index } = options::read(&own, &at)?;
        let place = Oid::parse(&oid).ok_or_else(|| {
            let reason = "digits with dots between them, such as \"1.3.6.1.4.1.2021.10.1.5.1\"; names need MIB files";
            options::problem(&format!("{at}.oid"), reason)
        })?;
        let Some(index) = index else {
            return Ok(Self::Value(number, place));
        };
        if !is_label_name(&index) || index.starts_with("__") || number.has_label(&index) {
            let reason = "the name of the label that tells rows apart, such as \"ifIndex\", and of no other label";
            return Err(options::problem(&format!("{at}.index"), reason));
        }
        Ok(Self::Column(number, place, index))
    }
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let at = |key: &str, reason: &str| options::problem(&format!("{path}.{key}"), reason);
    let Options { address, modules, secret, user, auth, privacy } = options::read(&device.options, &path)?;
    let address = Address::parse(&address, Some(PORT), &format!("{path}.address"))?;
    let login = Login::parse(secret, user, auth, privacy).map_err(|(key, reason)| at(key, reason))?;
    let mut sources = Vec::new();
    let mut metrics: Vec<Metric> = Vec::new();
    for name in &modules {
        let Some(module) = Module::named(name) else {
            let known: Vec<&str> = modules::ALL.iter().map(|module| module.name).collect();
            let shown: String = name.chars().take(80).collect();
            return Err(at("modules", &format!("`{}` is none of: {}", shown.escape_debug(), known.join(", "))));
        };
        if metrics.iter().any(|metric| metric.name == *name) {
            return Err(at("modules", &format!("`{name}` stands there twice")));
        }
        sources.push(Source::Module(module));
        metrics.extend(whole(device));
        metrics[sources.len() - 1].name.clone_from(name);
    }
    for metric in &device.metrics {
        if modules.contains(&metric.name) {
            return Err(at(&format!("metric.{}.name", metric.name), "a module has this name: take another one"));
        }
        sources.push(Source::parse(metric, &path)?);
        metrics.push(metric.clone());
    }
    if sources.is_empty() {
        let reason = "nothing to read: modules = [\"system\", \"if_mib\"], or [[device.metric]] tables with an oid";
        return Err(at("modules", reason));
    }
    metrics.extend(whole(device));
    metrics[sources.len()].name = PROBE.into();
    let snmp = Snmp {
        gate: Arc::clone(&context.gate),
        keyring: Arc::clone(&context.keyring),
        address,
        login,
        sources,
        limit: probe::limit(device.timeout),
        kept: None,
        grasp: Grasp::default(),
    };
    Ok(Built { collector: Box::new(snmp), metrics })
}

struct Snmp {
    gate: Arc<Gate>,
    keyring: Arc<Keyring>,
    address: Address,
    login: Login,
    /// By the index of their metric; the one behind them is the probe.
    sources: Vec<Source>,
    limit: Duration,
    kept: Option<Kept>,
    grasp: Grasp,
}

/// A session for the next poll, and the secrets that it was made with.
struct Kept {
    session: Session,
    secrets: Vec<SecretString>,
}

/// What a poll came to while it lasted.
#[derive(Default)]
struct Told {
    /// Those that were read, or were told to be missing.
    metrics: Vec<usize>,
    tally: Tally,
}

impl Snmp {
    async fn read(&mut self, due: &[usize], told: &mut Told, readings: &mut Readings) -> Result<(), Failure> {
        let kept = self.kept.take();
        let addresses = self.gate.resolve(Protocol::Snmp, &self.address.host, self.address.port).await?;
        let credentials = self.login.credentials(&self.keyring, &self.address)?;
        let secrets = credentials.secrets().to_vec();
        let session = kept.filter(|kept| kept.is_of(&secrets)).map(|kept| kept.session);
        let Told { metrics, tally } = told;
        let mut grasp = self.grasp;
        let mut conversation =
            Conversation::new(&self.login, credentials, addresses, session, self.limit, &mut grasp, tally);
        let outcome = self.talk(due, &mut conversation, metrics, readings).await;
        let session = conversation.keep();
        self.grasp = grasp;
        outcome?;
        self.kept = session.map(|session| Kept { session, secrets });
        Ok(())
    }

    async fn talk(
        &self,
        due: &[usize],
        conversation: &mut Conversation<'_>,
        told: &mut Vec<usize>,
        readings: &mut Readings,
    ) -> Result<(), Failure> {
        let single = due.iter().filter_map(|&metric| match self.sources.get(metric)? {
            Source::Value(number, oid) => Some((metric, number, oid.clone())),
            Source::Module(_) | Source::Column(..) => None,
        });
        let (numbers, names): (Vec<_>, Vec<Oid>) = single.map(|(metric, number, oid)| ((metric, number), oid)).unzip();
        if due.iter().all(|&metric| metric >= self.sources.len()) {
            // The probe alone: whatever is said to this will do.
            conversation.ask(&Question::Get(&[Oid::below(&SYS_UP_TIME, &[])])).await?;
        }
        let values = match walk::values(conversation, &names).await {
            Err(Ended::All(failure)) => return Err(failure),
            Err(Ended::This(failure)) => vec![Err(failure); names.len()],
            Ok(values) => names.iter().zip(&values).map(|(name, data)| value_of(name, data)).collect(),
        };
        for ((metric, number), value) in numbers.into_iter().zip(values) {
            told.push(metric);
            match value {
                Ok(value) => number.add(metric, None, value, readings),
                Err(failure) => readings.missing(metric, failure),
            }
        }
        for &metric in due {
            let read = match self.sources.get(metric) {
                Some(Source::Module(module)) => module.read(conversation, metric, readings).await,
                Some(Source::Column(number, oid, index)) => {
                    column(conversation, number, (oid, index), metric, readings).await
                }
                Some(Source::Value(..)) | None => continue,
            };
            match read {
                Err(Ended::All(failure)) => return Err(failure),
                Err(Ended::This(failure)) => readings.missing(metric, failure),
                Ok(0) => readings.missing(metric, self.nothing(metric)),
                Ok(_) => {}
            }
            told.push(metric);
        }
        Ok(())
    }

    fn nothing(&self, metric: usize) -> Failure {
        match &self.sources[metric] {
            Source::Module(module) => walk::nothing(&dotted(module.at)),
            Source::Value(_, oid) | Source::Column(_, oid, _) => walk::nothing(&oid.to_string()),
        }
    }

    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let watch = Stopwatch::start();
        let mut told = Told::default();
        let limit = self.limit;
        let outcome = probe::within(limit, self.read(due, &mut told, readings)).await;
        let seconds = watch.seconds();
        let probe = self.sources.len();
        if let Err(failure) = &outcome {
            if probe::was_not_tried(failure) {
                return Err(failure.clone());
            }
            // One that answered something is there.
            if told.metrics.is_empty() {
                readings.device_failed();
            }
            for &metric in due.iter().filter(|&&metric| metric < probe && !told.metrics.contains(&metric)) {
                readings.missing(metric, failure.clone());
            }
        }
        if due.contains(&probe) {
            probe::report(readings, probe, outcome.is_ok(), seconds);
            let gauge = |name| Family::gauge(name, "");
            readings.sample(probe, gauge("snmp_scrape_packets_sent"), &[], f64::from(told.tally.sent));
            readings.sample(probe, gauge("snmp_scrape_packets_retried"), &[], f64::from(told.tally.retried));
        }
        Ok(())
    }
}

impl Kept {
    fn is_of(&self, secrets: &[SecretString]) -> bool {
        let own = self.secrets.iter().map(ExposeSecret::expose_secret);
        own.eq(secrets.iter().map(ExposeSecret::expose_secret))
    }
}

impl Collector for Snmp {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

/// The number at a name, or why there is none.
fn value_of(oid: &Oid, data: &Data) -> Result<f64, Failure> {
    match data.number() {
        Some(value) => Ok(value),
        None if matches!(data, Data::Absent | Data::End) => {
            let failure = walk::nothing(&oid.to_string());
            Err(Failure::new(
                failure.reason,
                format!("{}; a single value ends with .0, a column needs `index`", failure.detail),
            ))
        }
        None => {
            // Without what it says: a configuration may name any object, and some hold what is nobody's business.
            let what = match data {
                Data::Octets(octets) => format!("a text of {} bytes", octets.len()),
                Data::Name(_) => "the name of another object".to_owned(),
                Data::Number(_) | Data::Absent | Data::End | Data::Other => "something else".to_owned(),
            };
            Err(Failure::new(Reason::BadAnswer, format!("{oid} is no number: it is {what}")))
        }
    }
}

async fn column(
    conversation: &mut Conversation<'_>,
    number: &Number,
    (oid, label): (&Oid, &str),
    metric: usize,
    readings: &mut Readings,
) -> Result<usize, Ended> {
    let table = walk::table(conversation, std::slice::from_ref(oid)).await?;
    let before = readings.len();
    for (index, cells) in &table {
        if let Some(value) = cells.first().and_then(Data::number) {
            number.add(metric, Some((label, &dotted(index))), value, readings);
        }
    }
    if !table.is_empty() && readings.len() == before {
        let detail = format!("no number in any row of {oid}");
        return Err(Ended::This(Failure::new(Reason::BadAnswer, detail)));
    }
    Ok(readings.len() - before)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::UdpSocket;

    use snmp2::{MessageType, Pdu};

    use super::super::stage::{Polled, Stage, problem};
    use super::*;

    /// A device that answers each datagram, counted from 0, with datagrams.
    fn device(answer: impl Fn(usize, &Pdu<'_>) -> Vec<Vec<u8>> + Send + 'static) -> u16 {
        listen(move |turn, question| answer(turn, &Pdu::from_bytes(question).unwrap()))
    }

    /// A device that answers octets with octets.
    fn raw_device(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> u16 {
        listen(move |_, question| vec![answer(question)])
    }

    fn listen(answer: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> u16 {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            for turn in 0.. {
                let (length, asker) = socket.recv_from(&mut buffer).unwrap();
                answer(turn, &buffer[..length]).iter().for_each(|datagram| drop(socket.send_to(datagram, asker)));
            }
        });
        port
    }

    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    }

    fn binding(name: &Oid, value: &[u8]) -> Vec<u8> {
        tlv(0x30, &[tlv(6, name.wire().unwrap().as_bytes()), value.to_vec()].concat())
    }

    fn said(id: i32, status: u8, at: u8, bindings: &[Vec<u8>]) -> Vec<u8> {
        let head = [tlv(2, &id.to_be_bytes()), tlv(2, &[status]), tlv(2, &[at])].concat();
        let pdu = tlv(0xa2, &[head, tlv(0x30, &bindings.concat())].concat());
        tlv(0x30, &[tlv(2, &[1]), tlv(4, b"public"), pdu].concat())
    }

    fn names(question: &Pdu<'_>) -> Vec<Oid> {
        question.varbinds.clone().map(|(name, value)| Data::read(&name, &value).unwrap().0).collect()
    }

    type Objects = BTreeMap<Oid, Vec<u8>>;

    /// Objects as `1.3.6 text`, `1.3.6 42` or `1.3.6 c42`, which is a counter of 64 bits.
    fn objects(lines: &str) -> Objects {
        let read = |line: &str| {
            let (name, value) = line.trim().split_once(' ').unwrap();
            let value = match (value.parse::<i32>(), value.strip_prefix('c').map(str::parse::<u64>)) {
                (Ok(number), _) => tlv(2, &number.to_be_bytes()),
                (_, Some(Ok(number))) => tlv(0x46, &[&[0], &number.to_be_bytes()[..]].concat()),
                _ => tlv(4, value.as_bytes()),
            };
            (Oid::parse(name).unwrap(), value)
        };
        lines.lines().filter(|line| !line.trim().is_empty()).map(read).collect()
    }

    /// What a device with these objects answers.
    fn truth(objects: &Objects, question: &Pdu<'_>) -> Vec<u8> {
        let asked = names(question);
        let mut bindings = Vec::new();
        if question.message_type == MessageType::GetRequest {
            let value = |name: &Oid| objects.get(name).cloned().unwrap_or(vec![0x80, 0]);
            bindings.extend(asked.iter().map(|name| binding(name, &value(name))));
        } else {
            let mut last = asked;
            for _ in 0..question.error_index {
                for name in &mut last {
                    let next = objects.range(name.clone()..).find(|(found, _)| *found > name);
                    let next = next.map(|(found, value)| (found.clone(), value.clone()));
                    let (found, value) = next.unwrap_or((name.clone(), vec![0x82, 0]));
                    bindings.push(binding(&found, &value));
                    *name = found;
                }
            }
        }
        said(question.req_id, 0, 0, &bindings)
    }

    fn honest(lines: &str) -> u16 {
        let objects = objects(lines);
        device(move |_, question| vec![truth(&objects, question)])
    }

    fn polled(port: u16, more: &str) -> Polled {
        polled_in_part(port, more, None)
    }

    fn polled_in_part(port: u16, more: &str, due: Option<usize>) -> Polled {
        polled_again(port, more, &[due]).remove(0)
    }

    /// Polls with a deep stack: the library keeps its datagrams there, and copies them where nothing is optimised.
    fn polled_again(port: u16, more: &str, polls: &[Option<usize>]) -> Vec<Polled> {
        let device = format!("collector = \"snmp\"\naddress = \"127.0.0.1:{port}\"\ntimeout = \"3s\"\n{more}");
        let polls = polls.to_vec();
        let poll = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut stage = Stage::new(&device, &[port]).unwrap();
            runtime.block_on(async {
                let mut polled = Vec::new();
                for due in polls {
                    polled.push(match due {
                        None => stage.poll_all().await,
                        Some(metric) => stage.poll(&[metric]).await,
                    });
                }
                polled
            })
        };
        std::thread::Builder::new().stack_size(16 << 20).spawn(poll).unwrap().join().unwrap()
    }

    fn metric(name: &str, options: &str) -> String {
        format!("[[device.metric]]\nname = \"{name}\"\n{options}\n")
    }

    const SWITCH: &str = "
        1.3.6.1.2.1.1.1.0 A switch\u{1b}
        1.3.6.1.2.1.1.3.0 4711
        1.3.6.1.2.1.2.1.0 2
        1.3.6.1.2.1.2.2.1.2.1 Port 1
        1.3.6.1.2.1.2.2.1.2.10 Port 10
        1.3.6.1.2.1.2.2.1.3.1 6
        1.3.6.1.2.1.2.2.1.3.10 777
        1.3.6.1.2.1.2.2.1.6.1 abcdef
        1.3.6.1.2.1.2.2.1.8.10 2
        1.3.6.1.2.1.31.1.1.1.1.1 p1
        1.3.6.1.2.1.31.1.1.1.6.1 c18446744073709551615
        1.3.6.1.2.1.31.1.1.1.6.10 c7
        1.3.6.1.2.1.31.1.1.1.18.10 uplink
        1.3.6.1.4.1.9.1.0 25
        1.3.6.1.4.1.9.2.1.5.3 0.5
        1.3.6.1.4.1.9.2.1.5.4 off";

    #[test]
    fn tables_are_read_with_snmp_exporters_names_and_labels() {
        let polled = polled(honest(SWITCH), "modules = [\"system\", \"if_mib\"]");
        assert!(polled.missing.is_empty() && polled.failure.is_none(), "{:?}", polled.missing);
        assert_eq!(polled.labelled("sysDescr"), [("sysDescr=A switch".into(), 1.0)]);
        assert_eq!((polled.value("sysUpTime"), polled.value("ifNumber")), (Some(4711.0), Some(2.0)));
        let (one, ten) = ("ifDescr=Port 1,ifIndex=1,ifName=p1", "ifAlias=uplink,ifDescr=Port 10,ifIndex=10");
        assert_eq!(polled.labelled("ifHCInOctets"), [(one.into(), u64::MAX as f64), (ten.into(), 7.0)]);
        assert_eq!(polled.labelled("ifOperStatus"), [(ten.into(), 2.0)]);
        let kinds: Vec<String> = polled.labelled("ifType_info").into_iter().map(|(labels, _)| labels).collect();
        assert_eq!(kinds, [format!("{one},ifType=ethernetCsmacd"), format!("{ten},ifType=777")]);
        assert_eq!(polled.labelled("ifPhysAddress")[0].0, format!("{one},ifPhysAddress=61:62:63:64:65:66"));
        let (octets, _) = polled.samples.iter().find(|(series, _)| series.name == "ifHCInOctets").unwrap();
        assert_eq!((octets.kind, octets.unit.as_str()), (satellite_shared::metric::Kind::Counter, "bytes"));
        assert_eq!(
            (polled.value("probe_success"), polled.value("snmp_scrape_packets_retried")),
            (Some(1.0), Some(0.0))
        );
        // Two GETs, and 35 columns six at a time.
        assert_eq!(polled.value("snmp_scrape_packets_sent"), Some(8.0));
    }

    #[test]
    fn flags_and_states_of_a_printer_are_a_series_each() {
        let printer = "
            1.3.6.1.2.1.25.3.2.1.3.1 LaserJet
            1.3.6.1.2.1.25.3.5.1.1.1 4
            1.3.6.1.2.1.25.3.5.1.2.1 `
            1.3.6.1.2.1.43.6.1.1.3.1.1 3
            1.3.6.1.2.1.43.10.2.1.4.1.1 c99
            1.3.6.1.2.1.43.11.1.1.5.1.1 3
            1.3.6.1.2.1.43.11.1.1.6.1.1 Black
            1.3.6.1.2.1.43.11.1.1.9.1.1 -3
            1.3.6.1.2.1.43.11.1.1.9.1.1.7 55";
        let polled = polled(honest(printer), "modules = [\"printer\"]");
        let set = |name: &str| -> Vec<String> {
            polled.labelled(name).into_iter().filter(|(_, value)| *value > 0.5).map(|(labels, _)| labels).collect()
        };
        let device = "hrDeviceDescr=LaserJet,hrDeviceIndex=1";
        assert_eq!(set("hrPrinterStatus"), [format!("{device},hrPrinterStatus=printing")]);
        let errors = ["noPaper", "lowToner"].map(|name| format!("{device},hrPrinterDetectedErrorState={name}"));
        assert_eq!(set("hrPrinterDetectedErrorState"), errors);
        assert_eq!(set("prtCoverStatus"), ["hrDeviceIndex=1,prtCoverIndex=1,prtCoverStatus=coverOpen"]);
        let supply = "hrDeviceIndex=1,prtMarkerSuppliesIndex=1,prtMarkerSuppliesType=3";
        assert_eq!(polled.labelled("prtMarkerSuppliesLevel"), [(supply.into(), -3.0)]);
        let described =
            "hrDeviceIndex=1,prtMarkerSuppliesDescription=Black,prtMarkerSuppliesIndex=1,prtMarkerSuppliesType=3";
        assert_eq!(set("prtMarkerSuppliesDescription"), [described]);
        assert_eq!(polled.value("prtMarkerLifeCount"), Some(99.0));
    }

    #[test]
    fn any_number_is_read_by_its_name_and_what_is_not_there_is_told() {
        let metrics = [
            "modules = [\"ups_mib\", \"system\"]\n".to_owned(),
            metric("room_celsius", "oid = \"1.3.6.1.4.1.9.1.0\"\nscale = 0.1\nunit = \"celsius\""),
            metric("load", "oid = \".1.3.6.1.4.1.9.2.1.5\"\nindex = \"laIndex\"\nlabels = { room = \"attic\" }"),
            metric("gone", "oid = \"1.3.6.1.4.1.9.9\""),
            metric("gone_column", "oid = \"1.3.6.1.4.1.9.9\"\nindex = \"i\""),
            metric("text", "oid = \"1.3.6.1.2.1.1.1.0\""),
            metric("texts", "oid = \"1.3.6.1.2.1.2.2.1.2\"\nindex = \"ifIndex\""),
        ];
        let polled = polled(honest(SWITCH), &metrics.concat());
        assert_eq!((polled.value("room_celsius"), polled.value("sysUpTime")), (Some(2.5), Some(4711.0)));
        assert_eq!(polled.labelled("load"), [("laIndex=3,room=attic".into(), 0.5)]);
        for (metric, reason, said) in [
            ("gone", Reason::Unsupported, "nothing at 1.3.6.1.4.1.9.9, or its view"),
            ("gone", Reason::Unsupported, "a single value ends with .0"),
            ("gone_column", Reason::Unsupported, "nothing at 1.3.6.1.4.1.9.9"),
            ("text", Reason::BadAnswer, "1.3.6.1.2.1.1.1.0 is no number: it is a text of 9 bytes"),
            ("texts", Reason::BadAnswer, "no number in any row of 1.3.6.1.2.1.2.2.1.2"),
            ("ups_mib", Reason::Unsupported, "nothing at 1.3.6.1.2.1.33"),
        ] {
            let (_, failure) = polled.missing.iter().find(|(name, _)| name == metric).unwrap();
            assert!(failure.reason == reason && failure.detail.contains(said), "{metric}: {failure}");
        }
        assert_eq!((polled.missing.len(), polled.value("probe_success")), (5, Some(1.0)));
    }

    #[test]
    fn a_card_that_drops_long_questions_is_asked_for_less_and_by_that_from_then_on() {
        let objects = objects(SWITCH);
        let port = device(move |_, question| match names(question).len() {
            0..=3 => vec![truth(&objects, question)],
            _ => vec![],
        });
        // A module of seven values: seven are dropped, then it is one by one.
        let polled = polled_again(port, "modules = [\"system\"]", &[None, None]);
        for (polled, sent, retried) in [(&polled[0], 8.0, 1.0), (&polled[1], 7.0, 0.0)] {
            assert_eq!((polled.value("sysUpTime"), polled.missing.len()), (Some(4711.0), 0));
            assert_eq!(polled.value("snmp_scrape_packets_sent"), Some(sent));
            assert_eq!(polled.value("snmp_scrape_packets_retried"), Some(retried));
        }
    }

    #[test]
    fn what_is_due_is_asked_and_the_probe_alone_asks_as_well() {
        for (due, sent, series) in [(0, 1.0, "sysUpTime"), (2, 1.0, "x"), (3, 1.0, "probe_success")] {
            let own = metric("x", "oid = \"1.3.6.1.4.1.9.1.0\"");
            let polled =
                polled_in_part(honest(SWITCH), &format!("modules = [\"system\", \"if_mib\"]\n{own}"), Some(due));
            assert!(polled.value(series).is_some(), "{series}");
            assert!(polled.value("snmp_scrape_packets_sent").is_none_or(|packets| packets == sent));
        }
        let silent = polled_in_part(device(|_, _| vec![]), "modules = [\"system\"]", Some(1));
        assert_eq!((silent.value("probe_success"), silent.missing.len()), (Some(0.0), 0));
    }

    #[test]
    fn what_is_lost_or_comes_late_is_asked_again() {
        let objects = objects(SWITCH);
        let port = device(move |turn, question| match turn {
            0 => vec![],
            1 => vec![said(question.req_id.wrapping_sub(1), 0, 0, &[]), truth(&objects, question)],
            _ => vec![truth(&objects, question)],
        });
        let polled = polled(port, "modules = [\"system\"]");
        assert_eq!((polled.value("sysUpTime"), polled.value("snmp_scrape_packets_retried")), (Some(4711.0), Some(2.0)));
    }

    #[test]
    fn a_device_that_finds_a_question_too_big_or_stumbles_is_asked_less() {
        let objects = objects(SWITCH);
        let port = device(move |_, question| {
            let asked = names(question);
            let stumbled = asked.iter().position(|name| name.to_string() == "1.3.6.1.2.1.1.2.0");
            let most = asked.len() * usize::try_from(question.error_index.max(1)).unwrap();
            vec![match stumbled.and_then(|at| u8::try_from(at + 1).ok()) {
                _ if most > 4 => said(question.req_id, 1, 0, &[]),
                Some(at) => said(question.req_id, 5, at, &[]),
                None => truth(&objects, question),
            }]
        });
        let polled = polled(port, "modules = [\"system\", \"if_mib\"]");
        assert!(polled.missing.is_empty(), "{:?}", polled.missing);
        assert_eq!((polled.value("sysUpTime"), polled.labelled("ifHCInOctets").len()), (Some(4711.0), 2));
    }

    #[test]
    fn a_hostile_device_is_a_gap_that_says_so() {
        type Hostile = fn(&Pdu<'_>) -> Vec<u8>;
        let devices: [(Hostile, Reason, &str); 11] = [
            (|_| b"\x30\x82\xff\xff".to_vec(), Reason::BadAnswer, "not what SNMP says"),
            (|_| vec![0xff; 65_000], Reason::BadAnswer, "not what SNMP says"),
            (|q| said(q.req_id ^ 1, 0, 0, &[]), Reason::BadAnswer, "Request ID mismatch"),
            (|q| said(q.req_id, 0, 0, &[]), Reason::BadAnswer, "without anything"),
            (
                |q| said(q.req_id, 0, 0, &names(q).iter().map(|n| binding(n, &[5, 0])).collect::<Vec<_>>()),
                Reason::Unsupported,
                "nothing at 1.3.6.1.4.1.9",
            ),
            (|q| said(q.req_id, 16, 1, &[]), Reason::Refused, "authorizationError"),
            (|q| said(q.req_id, 99, 1, &[]), Reason::Refused, "error 99"),
            (|q| said(q.req_id, 5, 99, &[]), Reason::Refused, "genErr"),
            (|q| said(q.req_id, 1, 0, &[]), Reason::Refused, "tooBig"),
            (|q| said(q.req_id, 0, 0, &[vec![0x30, 0x03, 6, 0x01, 0xff]]), Reason::BadAnswer, "without anything"),
            (|q| [said(q.req_id, 0, 0, &[]).as_slice(), &[0; 9]].concat(), Reason::BadAnswer, "without anything"),
        ];
        let column = metric("x", "oid = \"1.3.6.1.4.1.9\"\nindex = \"i\"");
        for (at, (hostile, reason, said)) in devices.into_iter().enumerate() {
            let polled = polled(device(move |_, question| vec![hostile(question)]), &column);
            let (_, failure) = &polled.missing[0];
            assert_eq!(failure.reason, reason, "{at}: {failure}");
            assert!(failure.detail.contains(said), "{at}: {failure}");
        }
    }

    #[test]
    fn tables_without_end_and_in_circles_are_cut_off() {
        let rows = |turn: usize, question: &Pdu<'_>, is_circle: bool| {
            let base = Oid::parse("1.3.6.1.4.1.9").unwrap().to_string();
            let first = if is_circle { 1 } else { 25 * turn + 1 };
            let name = |n: usize| Oid::parse(&format!("{base}.{n}")).unwrap();
            let bindings: Vec<Vec<u8>> = (first..first + 25).map(|n| binding(&name(n), &tlv(2, &[1]))).collect();
            vec![said(question.req_id, 0, 0, &bindings)]
        };
        let column = metric("x", "oid = \"1.3.6.1.4.1.9\"\nindex = \"i\"");
        let endless = polled(device(move |turn, question| rows(turn, question, false)), &column);
        assert!(endless.missing[0].1.detail.contains("more than 2000 rows"), "{}", endless.missing[0].1);
        let circle = polled(device(move |turn, question| rows(turn, question, true)), &column);
        assert!(circle.missing[0].1.detail.contains("goes round in circles"), "{}", circle.missing[0].1);
        assert_eq!((circle.missing[0].1.reason, circle.value("probe_success")), (Reason::BadAnswer, Some(1.0)));
    }

    #[test]
    fn silence_and_a_closed_port_are_told_apart() {
        let silent = polled(device(|_, _| vec![]), "modules = [\"system\"]");
        let (_, failure) = &silent.missing[0];
        assert_eq!((failure.reason, silent.value("probe_success")), (Reason::Timeout, Some(0.0)));
        assert!(failure.detail.contains("asked 3 times: is SNMPv2c on there, and the community right"), "{failure}");
        assert_eq!(silent.value("snmp_scrape_packets_sent"), Some(3.0));
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for user in ["", "\nuser = \"reader\""] {
            let closed = polled(closed, &format!("modules = [\"system\"]{user}"));
            assert_eq!(closed.missing[0].1.reason, Reason::Refused);
            assert!(closed.missing[0].1.detail.contains("nothing listens there"), "{}", closed.missing[0].1);
        }
    }

    #[test]
    fn a_device_that_says_who_it_is_beyond_all_limits_is_not_believed() {
        // What Net-SNMP says to who it does not know, with names and clocks of its own.
        let report = |id: &[u8], engine: &[u8], boots: &[u8]| {
            let head = [tlv(2, id), tlv(2, &[0, 0xff, 0xe3]), tlv(4, &[0]), tlv(2, &[3])].concat();
            let clock = [tlv(4, engine), tlv(2, boots), tlv(2, &[7]), tlv(4, &[]), tlv(4, &[]), tlv(4, &[])].concat();
            let unknown = binding(&Oid::parse("1.3.6.1.6.3.15.1.1.4.0").unwrap(), &tlv(0x41, &[1]));
            let pdu = [tlv(2, id), tlv(2, &[0]), tlv(2, &[0]), tlv(0x30, &unknown)].concat();
            let scoped = [tlv(4, engine), tlv(4, &[]), tlv(0xa8, &pdu)].concat();
            let parts = [tlv(2, &[3]), tlv(0x30, &head), tlv(4, &tlv(0x30, &clock)), tlv(0x30, &scoped)];
            tlv(0x30, &parts.concat())
        };
        for (engine, boots) in
            [(vec![], vec![1]), (vec![7; 20_000], vec![1]), (vec![7; 33], vec![1]), (vec![7; 9], vec![0x7f; 8])]
        {
            let port = raw_device(move |question| report(&question[9..13], &engine, &boots));
            let polled = polled(port, "modules = [\"system\"]\nuser = \"reader\"");
            let (_, failure) = &polled.missing[0];
            assert_eq!(failure.reason, Reason::BadAnswer, "{failure}");
        }
        // One that can be believed is asked, and reports again: it has no such user.
        let port = raw_device(move |question| report(&question[9..13], &[7; 9], &[1]));
        let polled = polled(port, "modules = [\"system\"]\nuser = \"reader\"");
        assert_eq!(polled.missing[0].1.reason, Reason::Refused, "{}", polled.missing[0].1);
        assert!(polled.missing[0].1.detail.contains("refuses the user"), "{}", polled.missing[0].1);
    }

    #[test]
    fn what_a_real_device_said_is_read_and_none_of_its_beginnings_is() {
        let datagram = include_bytes!("snmp/fixtures/getbulk.bin");
        let read = |bytes: &[u8]| -> Option<Vec<(Oid, Data)>> {
            Pdu::from_bytes(bytes).ok()?.varbinds.map(|(name, value)| Data::read(&name, &value)).collect()
        };
        let found: BTreeMap<String, Data> =
            read(datagram).unwrap().into_iter().map(|(name, data)| (name.to_string(), data)).collect();
        assert_eq!(found.len(), 24);
        assert_eq!(found["1.3.6.1.2.1.2.2.1.2.4"].text(), "eth0");
        assert_eq!(found["1.3.6.1.2.1.2.2.1.10.1"].number(), Some(1_061_368_307.0));
        assert_eq!(found["1.3.6.1.2.1.31.1.1.1.6.1"].number(), Some(13_946_270_195.0));
        assert!((0..datagram.len()).all(|end| read(&datagram[..end]).is_none()));
        for at in 0..datagram.len() {
            for flipped in [0x00, 0x7f, 0x80, 0xff] {
                let mut damaged = datagram.to_vec();
                damaged[at] = flipped;
                drop(read(&damaged));
            }
        }
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"snmp\"\naddress = \"switch.lan\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        let system = "modules = [\"system\"]";
        check("", "device.it.modules: nothing to read");
        check("modules = [\"ifmib\"]", "`ifmib` is none of: system, if_mib, host_resources, ups_mib, printer");
        check("modules = [\"system\", \"system\"]", "`system` stands there twice");
        check(&format!("{system}\n{}", metric("system", "oid = \"1.3.6\"")), "a module has this name");
        check(&format!("{system}\n{}", metric("probe", "oid = \"1.3.6\"")), "take another name");
        check(&format!("{system}\ncommunity = \"x\""), "device.it.community");
        check(&format!("{system}\nauth = {{ protocol = \"sha256\", secret = \"a\" }}"), "device.it.auth: SNMPv3 needs");
        check(&format!("{system}\nprivacy = {{ protocol = \"aes128\", secret = \"a\" }}"), "device.it.privacy: SNMPv3");
        check(&format!("{system}\nuser = \"u\"\nsecret = \"a\""), "device.it.secret: a community is");
        check(&format!("{system}\nuser = \"\""), "device.it.user: a name of 1 to 32 bytes");
        check(
            &format!("{system}\nuser = \"u\"\nprivacy = {{ protocol = \"aes128\", secret = \"a\" }}"),
            "device.it.privacy: SNMPv3 has no privacy without `auth`",
        );
        check(
            &format!("{system}\nuser = \"u\"\nauth = {{ protocol = \"md5\", secret = \"a\" }}"),
            "unknown variant `md5`",
        );
        check(&metric("a", "oid = \"IF-MIB::ifDescr\""), "device.it.metric.a.oid: digits with dots");
        check(&metric("a", "oid = \"1.3.6\"\nindex = \"a-b\""), "device.it.metric.a.index");
        check(&metric("a", "oid = \"1.3.6\"\nindex = \"b\"\nlabels = { b = \"c\" }"), "and of no other label");
        check(&metric("a", "oid = \"1.3.6\"\nset = 3"), "device.it.metric.a.set");
    }
}
