//! `sunspec`: inverters, meters, batteries and their strings, by the models of the SunSpec Alliance over Modbus TCP.
//!
//! Nothing is configured but where the device is: its map begins with the marker `SunS` at one of three addresses, and
//! each model says its number and its length, so that what is not known here is stepped over. The map is found once and
//! again after a failure. Names are SunSpec's points spelled out, in the units of its models, scaled as the device says;
//! what a device does not implement, for which every type has a value, is left out. Deliberately absent: writing, and
//! models that hold settings.

mod models;

use std::collections::HashMap;
use std::time::Duration;

use satellite_shared::config::{Device, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;

use self::models::{Block, Model, Point};
use super::modbus::bus::{Bus, Connection};
use super::modbus::itself;
use super::modbus::request::{REGISTERS_MAX, Table};
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Family, Poll, Readings, options, whole};

/// `collector = "sunspec"`.
pub const KIND: CollectorKind = CollectorKind { name: "sunspec", build };

/// Where a map may begin (SunSpec Device Information Model Specification, 6.1), the usual one first.
const BASES: [u16; 3] = [40_000, 0, 50_000];
/// `SunS`.
const MARKER: [u16; 2] = [0x5375, 0x6e53];
/// What stands behind the last model.
const END: u16 = 0xffff;
/// The marker, and the number and the length of each model.
const HEAD_REGISTERS: u16 = 2;
/// Models of one device; real ones have some twenty.
const MODELS_MAX: usize = 100;
/// Registers of one model that is read: room for sixteen strings of panels.
const MODEL_REGISTERS_MAX: u16 = 400;
/// Index of the metric that is what the models say.
const MODELS: usize = 0;
/// Index of the metric that tells how it went.
const PROBE: usize = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `inverter.lan` or `inverter.lan:1502`.
    address: String,
    /// The device behind a gateway; inverters that answer themselves mostly are 1, some 126.
    #[serde(default = "itself")]
    unit_id: u8,
    /// How long the bus rests between two requests: up to 1s.
    #[serde(default)]
    spacing: Option<String>,
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    options::no_metrics(device)?;
    let Options { address, unit_id, spacing } = options::read(&device.options, &path)?;
    let bus = Bus::parse(device, context, &address, unit_id, spacing.as_deref())?;
    let mut metrics = whole(device);
    metrics[MODELS].name = "models".into();
    metrics.extend(whole(device));
    metrics[PROBE].name = "probe".into();
    Ok(Built { collector: Box::new(SunSpec { bus, map: None }), metrics })
}

struct SunSpec {
    bus: Bus,
    /// Found once, forgotten after a failure.
    map: Option<Vec<Found>>,
}

/// A model of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    number: u16,
    /// Of what follows number and length.
    first: u16,
    length: u16,
}

/// One model and its registers.
type Answered = (Found, Vec<u16>);

impl SunSpec {
    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let Self { bus, map } = self;
        let (turn, left) = bus.turn().await?;
        let watch = Stopwatch::start();
        let outcome = probe::within(left, read(bus, map, left)).await;
        let seconds = watch.seconds();
        drop(turn);
        let success = outcome.is_ok();
        match outcome {
            Ok(answered) if due.contains(&MODELS) => {
                let before = readings.len();
                add_all(&answered, readings);
                if readings.len() == before {
                    readings.missing(MODELS, nothing(map.as_deref().unwrap_or_default()));
                }
            }
            Ok(_) => {}
            Err(failure) if probe::was_not_tried(&failure) => return Err(failure),
            Err(failure) => {
                // A device that was changed for another has another map.
                *map = None;
                readings.device_failed();
                if due.contains(&MODELS) {
                    readings.missing(MODELS, failure);
                }
            }
        }
        if due.contains(&PROBE) {
            probe::report(readings, PROBE, success, seconds);
        }
        Ok(())
    }
}

impl Collector for SunSpec {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

async fn read(bus: &Bus, map: &mut Option<Vec<Found>>, left: Duration) -> Result<Vec<Answered>, Failure> {
    let mut device = bus.open(left).await?;
    if map.is_none() {
        *map = Some(chart(&mut device).await?);
    }
    let mut answered = Vec::new();
    for found in map.iter().flatten() {
        if models::of(found.number).is_some() {
            // With its number and length: where they are others now, so is all that follows.
            let head = found.first.saturating_sub(HEAD_REGISTERS);
            let count = found.length.min(MODEL_REGISTERS_MAX) + HEAD_REGISTERS;
            let mut words = registers(&mut device, head, count).await?;
            if words.drain(..usize::from(HEAD_REGISTERS)).ne([found.number, found.length]) {
                let detail = "the map of models changed: read anew at the next poll";
                return Err(Failure::new(Reason::BadAnswer, detail));
            }
            answered.push((*found, words));
        }
    }
    Ok(answered)
}

/// That a device has models, and none of them anything to tell.
fn nothing(map: &[Found]) -> Failure {
    let numbers: Vec<String> = map.iter().map(|found| found.number.to_string()).collect();
    let has = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
    Failure::new(Reason::Unsupported, format!("no number in any model that is read; the device has {has}"))
}

/// Where a map begins.
async fn marker(device: &mut Connection) -> Result<u16, Failure> {
    for base in BASES {
        // A refusal is an answer: the map may begin elsewhere.
        if let Ok(words) = device.ask(Table::Holding, base, 2).await?
            && words == MARKER
        {
            return Ok(base);
        }
    }
    let detail =
        format!("no SunSpec marker at {BASES:?}: try another unit_id, or list registers with the collector modbus");
    Err(Failure::new(Reason::BadAnswer, detail))
}

async fn chart(device: &mut Connection) -> Result<Vec<Found>, Failure> {
    let mut at = marker(device).await?.saturating_add(HEAD_REGISTERS);
    let mut map = Vec::new();
    loop {
        let head = registers(device, at, HEAD_REGISTERS).await?;
        let (number, length) = (head[0], head[1]);
        if number == END {
            return Ok(map);
        }
        let first = at.saturating_add(HEAD_REGISTERS);
        let next = first.checked_add(length).filter(|_| map.len() < MODELS_MAX && (length > 0 || number != 0));
        at = next.ok_or_else(|| {
            let detail = format!("the chain of models goes on and on at register {at}");
            Failure::new(Reason::BadAnswer, detail)
        })?;
        map.push(Found { number, first, length });
    }
}

/// So many holding registers, in as many requests as that takes.
async fn registers(device: &mut Connection, first: u16, count: u16) -> Result<Vec<u16>, Failure> {
    let mut words = Vec::with_capacity(usize::from(count));
    while words.len() < usize::from(count) {
        let done = u16::try_from(words.len()).unwrap_or(count);
        let at = first.checked_add(done).ok_or_else(|| {
            Failure::new(Reason::BadAnswer, format!("a model that begins at {first} ends behind register 65535"))
        })?;
        let answered = device.ask(Table::Holding, at, (count - done).min(REGISTERS_MAX)).await?;
        words.extend(answered.map_err(|refused| refused.failure)?);
    }
    Ok(words)
}

fn add_all(answered: &[Answered], readings: &mut Readings) {
    let mut seen: HashMap<u16, usize> = HashMap::new();
    for (found, words) in answered {
        let Some(model) = models::of(found.number) else { continue };
        let nth = seen.entry(found.number).or_default();
        let (number, index) = (found.number.to_string(), nth.to_string());
        *nth += 1;
        let labels = [("index", index.as_str()), ("model", number.as_str())];
        match model {
            Model::Common => add_common(words, &index, readings),
            Model::Points(points) => add_points(points, words, words, &labels, readings),
            Model::Repeating { whole, label, points, at, every } => {
                add_points(whole, words, words, &labels, readings);
                let repeated = words.get(usize::from(*at)..).unwrap_or_default();
                for (part, block) in repeated.chunks_exact(usize::from(*every)).enumerate() {
                    let part = (part + 1).to_string();
                    add_points(points, block, words, &[labels[0], labels[1], (*label, &part)], readings);
                }
            }
        }
    }
}

/// The values of a block; `whole` has the scales.
fn add_points(points: &[Point], block: &[u16], whole: &[u16], labels: &[(&str, &str)], readings: &mut Readings) {
    for point in points {
        let Some(value) = point.value(Block { own: block, whole }) else { continue };
        let family = Family { name: point.name, kind: point.kind, unit: point.unit };
        if point.phase.is_empty() {
            readings.sample(MODELS, family, labels, value);
        } else {
            readings.sample(MODELS, family, &[labels, &[("phase", point.phase)]].concat(), value);
        }
    }
}

/// Model 1: who made it.
fn add_common(words: &[u16], index: &str, readings: &mut Readings) {
    let text = |from: usize, registers: usize| -> String {
        let bytes = words.get(from..from + registers).unwrap_or_default().iter().flat_map(|word| word.to_be_bytes());
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    };
    let texts = [
        ("manufacturer", text(0, 16)),
        ("device_model", text(16, 16)),
        ("options", text(32, 8)),
        ("version", text(40, 8)),
        ("serial", text(48, 16)),
    ];
    let texts = texts.iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (*name, text.as_str()));
    let labels: Vec<(&str, &str)> = texts.chain([("index", index)]).collect();
    readings.sample(MODELS, Family::gauge("sunspec_device_info", ""), &labels, 1.0);
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::super::stage::{Peer, Polled, Stage, problem, raw_peer};
    use super::*;

    /// A model as it stands in a map.
    fn model(number: u16, length: u16, values: &[(u16, u16)]) -> Vec<u16> {
        let mut words = vec![number, length];
        words.extend((0..length).map(|at| values.iter().find(|(other, _)| *other == at).map_or(0xffff, |(_, v)| *v)));
        words
    }

    fn common() -> Vec<u16> {
        let mut words = vec![1, 66];
        for (text, registers) in [("Solar", 16), ("Roof 5", 16), ("", 8), ("1.2", 8), ("A7", 16), ("", 2)] {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(2 * registers, 0);
            words.extend(bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])));
        }
        words
    }

    fn map(models: &[Vec<u16>]) -> Vec<u16> {
        [MARKER.to_vec(), models.concat(), vec![END, 0]].concat()
    }

    /// A device whose map begins here, and which refuses what is not in it.
    fn device(base: u16, map: Vec<u16>) -> Peer {
        raw_peer(move |stream| serve(stream, base, &map))
    }

    fn serve(stream: &mut std::net::TcpStream, base: u16, map: &[u16]) {
        let mut request = [0; 12];
        while stream.read_exact(&mut request).is_ok() {
            let word = |at: usize| usize::from(u16::from_be_bytes([request[at], request[at + 1]]));
            let words = word(8).checked_sub(usize::from(base)).and_then(|at| map.get(at..at + word(10)));
            let pdu = match words {
                None => vec![request[7] | 0x80, 2],
                Some(words) => {
                    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
                    [request[7], u8::try_from(2 * words.len()).unwrap()].into_iter().chain(bytes).collect()
                }
            };
            let length = u16::try_from(pdu.len() + 1).unwrap().to_be_bytes();
            if stream.write_all(&[&request[..4], &length[..], &request[6..7], &pdu].concat()).is_err() {
                return;
            }
        }
    }

    fn stage(peer: &Peer) -> Stage {
        let device = format!("collector = \"sunspec\"\naddress = \"127.0.0.1:{}\"\ntimeout = \"500ms\"", peer.port);
        Stage::new(&device, &[peer.port]).unwrap()
    }

    async fn polled(base: u16, models: &[Vec<u16>]) -> Polled {
        stage(&device(base, map(models))).poll_all().await
    }

    #[tokio::test]
    async fn a_map_is_found_at_each_place_and_unknown_models_are_stepped_over() {
        let inverter =
            model(103, 50, &[(12, 2_345), (13, 0xffff), (22, 1), (23, 2), (24, 0), (36, 4), (14, 5_001), (15, 0xfffe)]);
        for base in BASES {
            let polled = polled(base, &[common(), model(64_001, 200, &[]), inverter.clone()]).await;
            assert_eq!(polled.labelled("sunspec_ac_power_watts"), [("index=0,model=103".into(), 234.5)], "{base}");
            assert_eq!(polled.value("sunspec_ac_energy_watt_hours_total"), Some(65_538.0));
            assert_eq!(polled.value("sunspec_ac_frequency_hertz"), Some(50.01));
            assert_eq!(polled.value("sunspec_operating_state"), Some(4.0));
            assert_eq!(
                polled.labelled("sunspec_device_info"),
                [("device_model=Roof 5,index=0,manufacturer=Solar,serial=A7,version=1.2".into(), 1.0)]
            );
            assert_eq!((polled.value("probe_success"), polled.missing.len()), (Some(1.0), 0));
        }
    }

    #[tokio::test]
    async fn what_a_device_does_not_implement_is_left_out() {
        // A word has 65535, a signed one -32768, a count 0; a scale that is none leaves out what it would scale.
        let mut nothing: Vec<(u16, u16)> = [12, 16, 18, 20, 29, 31, 32, 33, 34].map(|at| (at, 0x8000)).to_vec();
        nothing.extend([(22, 0), (23, 0), (0, 7), (4, 0x8000)]);
        let polled = polled(40_000, &[model(103, 50, &nothing)]).await;
        let names: Vec<&str> = polled.samples.iter().map(|(series, _)| series.name.as_str()).collect();
        assert_eq!(names, ["probe_success", "probe_duration_seconds"]);
        let (metric, why) = &polled.missing[0];
        assert_eq!((metric.as_str(), why.reason), ("models", Reason::Unsupported));
        assert!(why.detail.contains("the device has 103"), "{why}");
        let unknown = self::polled(0, &[model(64_001, 3, &[]), model(122, 44, &[])]).await;
        assert!(unknown.missing[0].1.detail.contains("the device has 64001, 122"), "{}", unknown.missing[0].1);
        assert!(self::polled(0, &[]).await.missing[0].1.detail.contains("the device has none"));
    }

    #[tokio::test]
    async fn a_map_that_changed_is_told_and_read_anew_and_never_taken_for_the_old_one() {
        let power = |at: u16| model(103, 50, &[(12, 2_345), (13, 0), (at, 7)]);
        let maps = [map(&[common(), power(40)]), map(&[model(64_001, 4, &[]), common(), power(40)])];
        let polls = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let shown = std::sync::Arc::clone(&polls);
        let peer = raw_peer(move |stream| {
            let map = &maps[shown.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(1)];
            serve(stream, 40_000, map);
        });
        let mut stage = stage(&peer);
        assert_eq!(stage.poll_all().await.value("sunspec_ac_power_watts"), Some(2_345.0));
        let changed = stage.poll_all().await;
        assert!(changed.missing[0].1.detail.contains("the map of models changed"), "{:?}", changed.missing);
        assert_eq!((changed.value("sunspec_ac_power_watts"), changed.value("probe_success")), (None, Some(0.0)));
        let anew = stage.poll_all().await;
        assert_eq!((anew.value("sunspec_ac_power_watts"), anew.missing.len()), (Some(2_345.0), 0));
    }

    #[tokio::test]
    async fn strings_phases_and_models_that_come_twice_are_told_apart() {
        let mut strings = vec![(0, 0xfffe), (1, 0xffff), (2, 0), (6, 2)];
        strings.extend([(8 + 9, 512), (8 + 10, 3_801), (28 + 9, 400), (28 + 11, 77)]);
        let meter = |watts: u16| model(213, 124, &[(26, watts), (27, 0), (28, 0x4248), (29, 0)]);
        let polled =
            polled(40_000, &[common(), common(), model(160, 48, &strings), meter(0x4248), meter(0xc248)]).await;
        assert_eq!(polled.labelled("sunspec_device_info").len(), 2);
        assert!(polled.labelled("sunspec_device_info")[1].0.contains("index=1"));
        let string = |n: u8| format!("index=0,model=160,string={n}");
        assert_eq!(polled.labelled("sunspec_string_current_amperes"), [(string(1), 5.12), (string(2), 4.0)]);
        assert_eq!(polled.labelled("sunspec_string_voltage_volts"), [(string(1), 380.1)]);
        assert_eq!(polled.labelled("sunspec_string_power_watts"), [(string(2), 77.0)]);
        let power = polled.labelled("sunspec_meter_power_watts");
        assert_eq!(power, [("index=0,model=213".into(), 50.0), ("index=1,model=213".into(), -50.0)]);
        assert_eq!(polled.labelled("sunspec_meter_phase_power_watts")[0], ("index=0,model=213,phase=a".into(), 50.0));
    }

    #[tokio::test]
    async fn an_inverter_of_the_newer_models_tells_its_grid_its_ports_and_its_battery() {
        let ac =
            [(2, 3), (8, 0xfff6), (114, 2), (15, 0), (16, 50_010), (113, 0xfffd), (39, 7), (11, 0xff9d), (115, 0xfffe)];
        let none = [9, 10, 12, 43, 62, 85].map(|at| (at, 0x8000));
        let energy = [(17, 0), (18, 1), (19, 0), (20, 5), (118, 0), (37, 30), (120, 0)];
        let dc = [(2, 2), (4, 300), (15, 1), (18, 0), (18 + 12, 200), (43, 1), (43 + 12, 0xff38)];
        let storage = [(1, 512), (2, 805), (5, 1), (6, 0xffff)];
        let models = [
            common(),
            model(701, 153, &[&ac[..], &none, &energy].concat()),
            model(713, 7, &storage),
            model(714, 68, &dc),
        ];
        let polled = polled(40_000, &models).await;
        assert_eq!(polled.labelled("sunspec_ac_power_watts"), [("index=0,model=701".into(), -1_000.0)]);
        assert_eq!(polled.value("sunspec_ac_frequency_hertz"), Some(50.01));
        assert_eq!(polled.value("sunspec_ac_power_factor_ratio"), Some(-0.99));
        assert_eq!(polled.value("sunspec_ac_energy_watt_hours_total"), Some(4_294_967_301.0));
        assert_eq!(polled.labelled("sunspec_ac_phase_power_watts"), [("index=0,model=701,phase=a".into(), 700.0)]);
        assert_eq!(polled.value("sunspec_switch_temperature_celsius"), Some(30.0));
        assert_eq!(polled.value("sunspec_inverter_state"), Some(3.0));
        assert_eq!(polled.value("sunspec_storage_available_watt_hours"), Some(5_120.0));
        assert_eq!(polled.value("sunspec_storage_charge_percent"), Some(80.5));
        assert_eq!(polled.value("sunspec_dc_power_watts"), Some(3_000.0));
        let port = |n: u8| format!("index=0,model=714,port={n}");
        assert_eq!(polled.labelled("sunspec_port_power_watts"), [(port(1), 2_000.0), (port(2), -2_000.0)]);
        assert_eq!(polled.labelled("sunspec_port_type"), [(port(1), 0.0), (port(2), 1.0)]);
        let absent = ["sunspec_ac_absorbed_watt_hours_total", "sunspec_ac_current_amperes", "sunspec_storage_state"];
        assert!(absent.iter().all(|name| polled.value(name).is_none()));
    }

    #[tokio::test]
    async fn a_device_without_a_marker_or_with_a_chain_that_lies_is_told_so() {
        let peer = device(40_000, vec![7; 100]);
        let polled = stage(&peer).poll_all().await;
        let (name, failure) = &polled.missing[0];
        assert_eq!((name.as_str(), failure.reason), ("models", Reason::BadAnswer));
        assert!(failure.detail.contains("no SunSpec marker"), "{failure}");
        assert_eq!(polled.value("probe_success"), Some(0.0));
        for (lie, said) in [
            // A length that leads out of the map, one that leads out of all registers, and a chain without an end.
            (vec![vec![103, 4_000]], "the device does not have these addresses"),
            (vec![vec![103, 60_000]], "goes on and on"),
            ((0..200).map(|n| vec![64_000 + n, 1, 0]).collect(), "goes on and on"),
            (vec![vec![0; 200]], "goes on and on"),
        ] {
            let polled = self::polled(40_000, &lie).await;
            assert!(polled.missing[0].1.detail.contains(said), "{}", polled.missing[0].1);
        }
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_reach_the_inverter_says_nothing_of_a_marker() {
        let peer = raw_peer(|stream| {
            let mut request = [0; 12];
            while stream.read_exact(&mut request).is_ok() {
                let answer = [&request[..4], &[0, 3, request[6], 0x83, 0x0b]].concat();
                if stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        let polled = stage(&peer).poll_all().await;
        assert_eq!((polled.missing[0].1.reason, polled.value("probe_success")), (Reason::Unreachable, Some(0.0)));
        assert!(polled.missing[0].1.detail.contains("unit_id"), "{}", polled.missing[0].1);
    }

    #[tokio::test]
    async fn a_silent_device_is_a_timeout() {
        let silent = raw_peer(|stream| drop(stream.read_to_end(&mut Vec::new())));
        let polled = stage(&silent).poll_all().await;
        assert_eq!((polled.missing[0].1.reason, polled.value("probe_success")), (Reason::Timeout, Some(0.0)));
    }

    #[test]
    fn points_lie_within_their_models() {
        let lengths = [(103, 50), (113, 60), (203, 105), (213, 124), (124, 24), (701, 153), (713, 7), (802, 62)];
        for (number, length) in lengths {
            let Some(Model::Points(points)) = models::of(number) else { panic!("{number}") };
            assert!(points.iter().all(|point| point.end() <= length), "{number}");
            let mut names: Vec<_> = points.iter().map(|point| (point.name, point.phase)).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), points.len(), "{number}");
        }
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let told = problem("collector = \"sunspec\"\naddress = \"pv.lan\"\nregister = 1");
        assert!(told.contains("device.it.register"), "{told}");
        assert!(problem("collector = \"sunspec\"\naddress = \"pv.lan:0\"").contains("device.it.address"));
    }
}
