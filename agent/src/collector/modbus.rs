//! `modbus`: registers and coils of a device, over Modbus TCP (Modbus Messaging on TCP/IP Implementation Guide V1.0b).
//!
//! Each metric names a place and how to read it. What lies close together is read by one request of at most 125 registers
//! or 2,000 coils, one after the other; where a device refuses that for the places in it, it is asked in parts, and from
//! then on in those at once. Devices behind one address take turns: many devices, and every gateway to an RS-485 bus,
//! serve one at a time. Only functions 1 to 4 are ever sent. Deliberately absent: writing, and places that are counted
//! from 1 with the table's digit before them, such as 40001, which mean address 0 of the holding registers.

pub(super) mod bus;
pub(super) mod request;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use satellite_shared::config::{Device, Metric, Problem};
use satellite_shared::gap::Reason;
use serde::Deserialize;

use self::bus::Bus;
use self::request::{Refused, Table};
use super::number::{Number, PROBE};
use super::probe::{self, Stopwatch};
use super::{Built, Collector, CollectorKind, Context, Failure, Poll, Readings, options, whole};

/// `collector = "modbus"`.
pub const KIND: CollectorKind = CollectorKind { name: "modbus", build };

/// Assigned to `mbap` by IANA.
const PORT: u16 = 502;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// `inverter.lan` or `inverter.lan:1502`.
    address: String,
    /// The device behind a gateway; 255 and 0 are the one that answers itself.
    #[serde(default = "itself")]
    unit_id: u8,
    /// How long the bus rests between two requests: up to 1s.
    #[serde(default)]
    spacing: Option<String>,
}

pub(super) fn itself() -> u8 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOptions {
    #[serde(default)]
    table: Table,
    /// Counted from 0.
    register: u16,
    #[serde(default, rename = "type")]
    form: Option<Form>,
    #[serde(default)]
    word_order: Order,
    /// What the registers hold where the device has no value, before `scale`.
    #[serde(default)]
    absent: Option<i64>,
}

/// How the registers of a number are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Form {
    Bool,
    U16,
    I16,
    U32,
    I32,
    F32,
    U64,
    I64,
    F64,
}

impl Form {
    fn registers(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
            Self::U64 | Self::I64 | Self::F64 => 4,
        }
    }

    /// These bits as this form has them, of a number that is written with its sign or without; `None` where it can't.
    fn bits(self, number: i64) -> Option<u64> {
        let bits = u32::from(self.registers()) * 16;
        let is_integer = !matches!(self, Self::Bool | Self::F32 | Self::F64);
        let fits = bits == 64 || (-(1 << (bits - 1))..1 << bits).contains(&number);
        (is_integer && fits).then(|| number.cast_unsigned() & (u64::MAX >> (64 - bits)))
    }
}

/// Which register of a number comes first; the bytes of one are always big-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Order {
    #[default]
    Big,
    Little,
}

/// One number and where it stands.
struct Point {
    number: Number,
    table: Table,
    register: u16,
    form: Form,
    order: Order,
    /// As the registers joined hold it.
    absent: Option<u64>,
}

/// What registers hold.
#[derive(Debug, PartialEq)]
enum Held {
    Number(f64),
    /// That the device has no value now.
    Nothing,
}

impl Point {
    fn parse(metric: &Metric, device: &str) -> Result<Self, Problem> {
        let (number, own, at) = Number::parse(metric, device)?;
        let MetricOptions { table, register, form, word_order, absent } = options::read(&own, &at)?;
        let form = form.unwrap_or(if table.is_bits() { Form::Bool } else { Form::U16 });
        if table.is_bits() && form != Form::Bool {
            return Err(options::problem(&format!("{at}.type"), "a coil is a \"bool\""));
        }
        if register.checked_add(form.registers() - 1).is_none() {
            return Err(options::problem(&format!("{at}.register"), "it would end behind register 65535"));
        }
        let absent = match absent.map(|number| form.bits(number)) {
            Some(None) => {
                let reason = "a number of the integer type that the metric has, such as 0x8000; a float has NaN for it";
                return Err(options::problem(&format!("{at}.absent"), reason));
            }
            absent => absent.flatten(),
        };
        Ok(Self { number, table, register, form, order: word_order, absent })
    }

    fn end(&self) -> u32 {
        u32::from(self.register) + u32::from(self.form.registers())
    }

    /// What these registers hold, the first of which has this address; `None` where they are too few.
    fn value(&self, registers: &[u16], first: u16) -> Option<Held> {
        let from = usize::from(self.register.checked_sub(first)?);
        let mut words = registers.get(from..from + usize::from(self.form.registers()))?.to_vec();
        if self.order == Order::Little {
            words.reverse();
        }
        let joined = words.iter().fold(0u64, |joined, word| joined << 16 | u64::from(*word));
        let (low, half) = (joined as u16, joined as u32);
        let number = match self.form {
            Form::Bool => f64::from(u8::from(low != 0)),
            Form::U16 => f64::from(low),
            Form::I16 => f64::from(low.cast_signed()),
            Form::U32 => f64::from(half),
            Form::I32 => f64::from(half.cast_signed()),
            Form::F32 => f64::from(f32::from_bits(half)),
            Form::U64 => joined as f64,
            Form::I64 => joined.cast_signed() as f64,
            Form::F64 => f64::from_bits(joined),
        };
        // NaN is IEEE 754's way to say it, which SunSpec prescribes.
        let is_nothing = self.absent == Some(joined) || !number.is_finite();
        Some(if is_nothing { Held::Nothing } else { Held::Number(number) })
    }
}

/// One request, and whose numbers its answer has.
#[derive(Debug, PartialEq, Eq)]
struct Span {
    table: Table,
    first: u16,
    count: u16,
    points: Vec<usize>,
}

/// The fewest requests for the points that are due, where some may not share one with what lies before them.
fn spans(points: &[Point], due: &[usize], apart: &BTreeSet<usize>) -> VecDeque<Span> {
    let mut sorted: Vec<usize> = due.iter().copied().filter(|index| *index < points.len()).collect();
    sorted.sort_by_key(|&index| (points[index].table, points[index].register));
    let mut spans: VecDeque<Span> = VecDeque::new();
    for index in sorted {
        let point = &points[index];
        let (most, hole) = point.table.limits();
        let before = spans.back_mut().filter(|span| span.table == point.table && !apart.contains(&index));
        let joined = before.and_then(|span| {
            let end = u32::from(span.first) + u32::from(span.count);
            let count = point.end().max(end) - u32::from(span.first);
            let fits = u32::from(point.register) <= end + u32::from(hole) && count <= u32::from(most);
            fits.then_some((span, count))
        });
        match joined {
            Some((span, count)) => {
                span.count = u16::try_from(count).unwrap_or(u16::MAX);
                span.points.push(index);
            }
            None => spans.push_back(Span {
                table: point.table,
                first: point.register,
                count: point.form.registers(),
                points: vec![index],
            }),
        }
    }
    spans
}

/// Which of a span's points begin a request of their own when the device refuses the whole: those behind a hole, whose
/// registers nobody asked for, or where there is none the middle one.
fn parted(points: &[Point], span: &Span) -> Vec<usize> {
    let mut end = u32::from(span.first);
    let mut behind_holes = Vec::new();
    for &index in &span.points {
        if u32::from(points[index].register) > end {
            behind_holes.push(index);
        }
        end = end.max(points[index].end());
    }
    if behind_holes.is_empty() {
        behind_holes.extend(span.points.get(span.points.len() / 2));
    }
    behind_holes
}

fn build(device: &Device, context: &Context) -> Result<Built, Problem> {
    let path = format!("device.{}", device.name);
    let Options { address, unit_id, spacing } = options::read(&device.options, &path)?;
    let bus = Bus::parse(device, context, &address, unit_id, spacing.as_deref())?;
    if device.metrics.is_empty() {
        let reason = "no metrics: list registers as [[device.metric]] tables with a name and a register";
        return Err(options::problem(&format!("{path}.metric"), reason));
    }
    let points = device.metrics.iter().map(|metric| Point::parse(metric, &path)).collect::<Result<Vec<_>, _>>()?;
    let mut metrics = device.metrics.clone();
    let probe = metrics.len();
    metrics.extend(whole(device));
    metrics[probe].name = PROBE.into();
    Ok(Built { collector: Box::new(Modbus { bus, points, apart: BTreeSet::new() }), metrics })
}

struct Modbus {
    bus: Bus,
    /// By the index of their metric; the one behind them is the probe.
    points: Vec<Point>,
    /// Those that the device does not give in one request with what lies before them, as it has shown.
    apart: BTreeSet<usize>,
}

/// What one request gave.
type Answered = (Span, Result<Vec<u16>, Refused>);

impl Modbus {
    async fn poll_all(&mut self, due: &[usize], readings: &mut Readings) -> Result<(), Failure> {
        let Self { bus, points, apart } = self;
        let mut answered = Vec::new();
        let (turn, left) = bus.turn().await?;
        let watch = Stopwatch::start();
        let outcome = probe::within(left, read(bus, points, apart, left, due, &mut answered)).await;
        let seconds = watch.seconds();
        drop(turn);
        if let Err(failure) = &outcome
            && probe::was_not_tried(failure)
        {
            return Err(failure.clone());
        }
        let mut told = vec![false; self.points.len()];
        for (span, words) in answered {
            for &index in &span.points {
                told[index] = true;
                match &words {
                    Err(refused) => readings.missing(index, refused.failure.clone()),
                    Ok(words) => self.add(index, words, span.first, readings),
                }
            }
        }
        if let Err(failure) = &outcome {
            readings.device_failed();
            let untold = due.iter().filter(|&&index| told.get(index) == Some(&false));
            untold.for_each(|&index| readings.missing(index, failure.clone()));
        }
        let probe = self.points.len();
        if due.contains(&probe) {
            probe::report(readings, probe, outcome.is_ok(), seconds);
        }
        Ok(())
    }

    fn add(&self, index: usize, words: &[u16], first: u16, readings: &mut Readings) {
        let point = &self.points[index];
        let why = match point.value(words, first) {
            Some(Held::Number(value)) => return point.number.add(index, None, value, readings),
            Some(Held::Nothing) => "the device says that there is no number",
            None => "the answer is too short",
        };
        readings.missing(index, Failure::new(Reason::BadAnswer, why));
    }
}

async fn read(
    bus: &Bus,
    points: &[Point],
    known_apart: &mut BTreeSet<usize>,
    left: Duration,
    due: &[usize],
    answered: &mut Vec<Answered>,
) -> Result<(), Failure> {
    let mut device = bus.open(left).await?;
    let mut apart = known_apart.clone();
    let mut gave_something = false;
    let mut open = spans(points, due, &apart);
    while let Some(span) = open.pop_front() {
        let words = device.ask(span.table, span.first, span.count).await?;
        gave_something |= words.is_ok();
        if words.as_ref().is_err_and(|refused| refused.is_of_places) && span.points.len() > 1 {
            apart.extend(parted(points, &span));
            spans(points, &span.points, &apart).into_iter().rev().for_each(|part| open.push_front(part));
        } else {
            answered.push((span, words));
        }
        // One that refuses everything says nothing of what lies together.
        if gave_something {
            known_apart.clone_from(&apart);
        }
    }
    Ok(())
}

impl Collector for Modbus {
    fn poll<'a>(&'a mut self, due: &'a [usize], readings: &'a mut Readings) -> Poll<'a> {
        Box::pin(self.poll_all(due, readings))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::sync::Arc;

    use satellite_shared::clock::SystemClock;
    use satellite_shared::config::Document;

    use super::super::address::Address;
    use super::super::stage::{Peer, Polled, Stage, problem, raw_peer};
    use super::*;
    use crate::policy::{Gate, Policy};
    use crate::secrets::Keyring;

    /// A device that answers each request, function and data, with function and data; closes where it says nothing.
    fn device(answer: impl Fn(u8, u16, u16) -> Option<Vec<u8>> + Send + 'static) -> Peer {
        raw_peer(move |stream| while serve(stream, &answer).is_some() {})
    }

    fn serve(stream: &mut TcpStream, answer: &impl Fn(u8, u16, u16) -> Option<Vec<u8>>) -> Option<()> {
        let mut request = [0; 12];
        stream.read_exact(&mut request).ok()?;
        let word = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
        let pdu = answer(request[7], word(8), word(10))?;
        let length = u16::try_from(pdu.len() + 1).ok()?.to_be_bytes();
        stream.write_all(&[&request[..4], &length[..], &request[6..7], &pdu].concat()).ok()
    }

    /// Registers that hold their own address.
    fn counting(function: u8, first: u16, count: u16) -> Option<Vec<u8>> {
        let mut pdu = vec![function];
        if function <= 2 {
            let bytes = count.div_ceil(8);
            pdu.push(u8::try_from(bytes).ok()?);
            pdu.extend((0..bytes).map(|_| 0b0101_0101));
        } else {
            pdu.push(u8::try_from(count * 2).ok()?);
            pdu.extend((first..first + count).flat_map(u16::to_be_bytes));
        }
        Some(pdu)
    }

    fn stage(peer: &Peer, metrics: &str) -> Stage {
        let device = format!("collector = \"modbus\"\naddress = \"127.0.0.1:{}\"\ntimeout = \"500ms\"", peer.port);
        Stage::new(&format!("{device}\n{metrics}"), &[peer.port]).unwrap()
    }

    fn metric(name: &str, options: &str) -> String {
        format!("[[device.metric]]\nname = \"{name}\"\n{options}\n")
    }

    async fn polled(peer: &Peer, metrics: &str) -> Polled {
        stage(peer, metrics).poll_all().await
    }

    fn point(options: &str) -> Point {
        let metric = Metric {
            name: "x".into(),
            schedule: satellite_shared::config::Schedule::Every(Duration::from_secs(1)),
            paused: false,
            options: toml::from_str(options).unwrap(),
        };
        Point::parse(&metric, "device.it").unwrap_or_else(|problem| panic!("{problem}"))
    }

    #[test]
    fn every_form_is_read_in_both_orders_of_its_registers() {
        let value = |options: &str, words: &[u16]| match point(&format!("register = 10\n{options}")).value(words, 10) {
            Some(Held::Number(number)) => number,
            other => panic!("{other:?}"),
        };
        assert_eq!(value("", &[65_535]), 65_535.0);
        assert_eq!(value("type = \"i16\"", &[65_535]), -1.0);
        assert_eq!(value("type = \"u32\"", &[1, 2]), 65_538.0);
        assert_eq!(value("type = \"u32\"\nword_order = \"little\"", &[2, 1]), 65_538.0);
        assert_eq!(value("type = \"i32\"", &[65_535, 65_534]), -2.0);
        assert_eq!(value("type = \"f32\"", &[0x4248, 0]), 50.0);
        assert_eq!(value("type = \"u64\"", &[0, 0, 1, 0]), 65_536.0);
        assert_eq!(value("type = \"i64\"\nword_order = \"little\"", &[65_534, 65_535, 65_535, 65_535]), -2.0);
        assert_eq!(value("type = \"f64\"", &[0x4059, 0, 0, 0]), 100.0);
        assert_eq!(value("type = \"bool\"", &[4]), 1.0);
        assert_eq!(point("register = 10\ntype = \"u32\"").value(&[1], 10), None);
        assert_eq!(point("register = 9").value(&[1], 10), None);
    }

    #[test]
    fn what_a_device_holds_where_it_has_no_value_is_no_number() {
        let is_nothing = |options: &str, words: &[u16]| {
            point(&format!("register = 10\n{options}")).value(words, 10) == Some(Held::Nothing)
        };
        assert!(is_nothing("absent = 0xffff", &[0xffff]) && !is_nothing("absent = 0xffff", &[0x7fff]));
        assert!(is_nothing("type = \"i16\"\nabsent = 0x8000", &[0x8000]));
        assert!(is_nothing("type = \"i16\"\nabsent = -32768", &[0x8000]));
        assert!(is_nothing("type = \"i32\"\nabsent = 0x80000000", &[0x8000, 0]));
        assert!(is_nothing("type = \"u32\"\nabsent = 0xffffffff\nword_order = \"little\"", &[0xffff, 0xffff]));
        assert!(is_nothing("type = \"u64\"\nabsent = -1", &[0xffff; 4]));
        assert!(!is_nothing("type = \"i32\"\nabsent = 0x80000000\nword_order = \"little\"", &[0x8000, 0]));
        assert!(is_nothing("type = \"f32\"", &[0x7fc0, 0]) && !is_nothing("", &[0xffff]));
    }

    #[test]
    fn what_lies_close_together_is_one_request_and_no_request_is_too_long() {
        let points = |list: &[(&str, u16, &str)]| -> Vec<Point> {
            let text = |(table, register, form): &(&str, u16, &str)| {
                format!("table = \"{table}\"\nregister = {register}\ntype = \"{form}\"")
            };
            list.iter().map(|one| point(&text(one))).collect()
        };
        let planned = |points: &[Point]| -> Vec<(Table, u16, u16)> {
            let due: Vec<usize> = (0..=points.len()).collect();
            spans(points, &due, &BTreeSet::new()).into_iter().map(|span| (span.table, span.first, span.count)).collect()
        };
        let mixed = points(&[
            ("holding", 20, "u16"),
            ("holding", 10, "u32"),
            ("input", 12, "u16"),
            ("holding", 12, "f64"),
            ("holding", 29, "u16"),
            ("holding", 39, "u16"),
            ("coil", 0, "bool"),
            ("coil", 64, "bool"),
        ]);
        assert_eq!(
            planned(&mixed),
            [(Table::Coil, 0, 65), (Table::Holding, 10, 20), (Table::Holding, 39, 1), (Table::Input, 12, 1)]
        );
        let long: Vec<Point> = (0..300).map(|n| point(&format!("register = {}\ntype = \"u32\"", 2 * n))).collect();
        assert!(planned(&long).iter().all(|(_, _, count)| *count <= 124) && planned(&long).len() == 5);
        let last = points(&[("holding", 65_534, "u32"), ("holding", 65_535, "u16")]);
        assert_eq!(planned(&last), [(Table::Holding, 65_534, 2)]);
    }

    #[tokio::test]
    async fn registers_and_coils_are_read_scaled_and_named() {
        let peer = device(counting);
        let metrics = [
            metric("power_watts", "register = 1000\nunit = \"watts\"\nscale = 0.1"),
            metric("energy_joules_total", "register = 1001\ntype = \"u32\"\nkind = \"counter\""),
            metric("temperature_celsius", "register = 7\ntable = \"input\"\nlabels = { room = \"attic\" }"),
            metric("pump_on", "register = 2\ntable = \"coil\""),
            metric("door_open", "register = 5\ntable = \"discrete\""),
        ];
        let polled = polled(&peer, &metrics.concat()).await;
        assert_eq!(polled.value("power_watts"), Some(100.0));
        assert_eq!(polled.value("energy_joules_total"), Some(f64::from(1001 << 16 | 1002)));
        assert_eq!(polled.labelled("temperature_celsius"), [("room=attic".into(), 7.0)]);
        assert_eq!((polled.value("pump_on"), polled.value("door_open")), (Some(1.0), Some(1.0)));
        assert_eq!(polled.value("probe_success"), Some(1.0));
        assert!(polled.missing.is_empty());
    }

    #[tokio::test]
    async fn an_exception_is_a_gap_of_what_it_concerns_and_the_rest_is_read() {
        let peer = device(
            |function, first, count| {
                if first == 500 { Some(vec![function | 0x80, 2]) } else { counting(function, first, count) }
            },
        );
        let polled = polled(&peer, &[metric("a", "register = 1"), metric("b", "register = 500")].concat()).await;
        assert_eq!((polled.value("a"), polled.value("probe_success")), (Some(1.0), Some(1.0)));
        let (name, failure) = &polled.missing[0];
        assert_eq!((name.as_str(), failure.reason), ("b", Reason::Refused));
        assert!(failure.detail.contains("holding 500 to 500: the device does not have these addresses"), "{failure}");
    }

    /// Which registers were asked for, one poll after another, of a device that has these.
    async fn asked_of(has: fn(u16) -> bool, most: u16, metrics: &str, polls: usize) -> (Vec<Vec<(u16, u16)>>, Polled) {
        let (tell, told) = std::sync::mpsc::channel();
        let peer = device(move |function, first, count| {
            tell.send((first, count)).unwrap();
            let exception = if count > most { 3 } else { 2 };
            let is_there = count <= most && (first..first + count).all(has);
            if is_there { counting(function, first, count) } else { Some(vec![function | 0x80, exception]) }
        });
        let mut stage = stage(&peer, metrics);
        let mut asked = Vec::new();
        let mut polled = stage.poll_all().await;
        asked.push(told.try_iter().collect());
        for _ in 1..polls {
            polled = stage.poll_all().await;
            asked.push(told.try_iter().collect());
        }
        (asked, polled)
    }

    #[tokio::test]
    async fn a_range_that_a_device_refuses_is_asked_in_parts_and_in_those_at_once_from_then_on() {
        // Nobody asked for 11175, and the device does not have it.
        let metrics = [metric("a", "register = 11174"), metric("b", "register = 11176")].concat();
        let (asked, polled) = asked_of(|register| register != 11_175, 125, &metrics, 2).await;
        assert_eq!(asked, [vec![(11_174, 3), (11_174, 1), (11_176, 1)], vec![(11_174, 1), (11_176, 1)]]);
        assert_eq!((polled.value("a"), polled.value("b")), (Some(11_174.0), Some(11_176.0)));
        assert!(polled.missing.is_empty());

        // One that is not there costs its neighbours nothing.
        let metrics: String = (0..8).map(|n| metric(&format!("m{n}"), &format!("register = {n}"))).collect();
        let (asked, polled) = asked_of(|register| register != 5, 125, &metrics, 2).await;
        assert_eq!(asked[1], [(0, 4), (4, 1), (5, 1), (6, 2)]);
        assert_eq!((polled.missing.len(), polled.missing[0].0.as_str()), (1, "m5"));
        assert_eq!((polled.value("m4"), polled.value("m6")), (Some(4.0), Some(6.0)));

        // One that gives fewer at once than the protocol allows.
        let (asked, polled) = asked_of(|_| true, 3, &metrics, 2).await;
        assert_eq!(asked[1], [(0, 2), (2, 2), (4, 2), (6, 2)]);
        assert!(polled.missing.is_empty() && polled.value("m7") == Some(7.0));

        // One that refuses everything, as it may while it starts, has shown nothing.
        let (asked, polled) = asked_of(|_| false, 125, &metrics, 2).await;
        assert!(asked[1] == asked[0] && asked[1][0] == (0, 8), "{asked:?}");
        assert_eq!((polled.missing.len(), polled.value("probe_success")), (8, Some(1.0)));
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_reach_the_device_is_a_device_that_is_not_reached() {
        for exception in [0x0a, 0x0b] {
            let peer = device(move |function, _, _| Some(vec![function | 0x80, exception]));
            let polled = polled(&peer, &[metric("a", "register = 1"), metric("b", "register = 500")].concat()).await;
            assert_eq!((polled.value("probe_success"), polled.missing.len()), (Some(0.0), 2));
            assert!(polled.missing.iter().all(|(_, why)| why.reason == Reason::Unreachable));
            assert!(polled.missing[1].1.detail.contains("does not reach this unit_id"), "{}", polled.missing[1].1);
        }
    }

    /// Units behind one gateway.
    fn units(port: u16, units: &[u8]) -> (Context, Vec<Stage>) {
        let policy = Policy::parse(&format!("loopback_ports = [{port}]")).unwrap();
        let context = Context::new(Arc::new(Gate::new(policy, Arc::new(SystemClock))), Keyring::of([]), "/");
        let stage = |unit: &u8| {
            let device = format!(
                "[[device]]\nname = \"it\"\ncollector = \"modbus\"\naddress = \"127.0.0.1:{port}\"\nunit_id = {unit}\n\
                 timeout = \"4500ms\"\n{}",
                metric("a", "register = 1")
            );
            let (_, document) = Document::parse_text(&device).unwrap();
            let device = document.devices.into_iter().next().unwrap();
            let built = build(&device, &context).unwrap_or_else(|problem| panic!("{problem}"));
            Stage { device, built }
        };
        let units = units.iter().map(stage).collect();
        (context, units)
    }

    #[tokio::test]
    async fn a_silent_unit_lets_the_bus_go_in_time_for_its_neighbours() {
        let gateway = raw_peer(|stream| {
            let mut request = [0; 12];
            while stream.read_exact(&mut request).is_ok() {
                let answer = [&request[..4], &[0, 5, request[6], 3, 2, 0, 1]].concat();
                if request[6] == 1 && stream.write_all(&answer).is_err() {
                    return;
                }
            }
        });
        let (_, mut units) = units(gateway.port, &[9, 1]);
        let (mut lively, mut silent) = (units.pop().unwrap(), units.pop().unwrap());
        let (silent, lively) = tokio::join!(silent.poll_all(), lively.poll_all());
        assert_eq!((silent.missing[0].1.reason, silent.value("probe_success")), (Reason::Timeout, Some(0.0)));
        assert_eq!((lively.value("a"), lively.value("probe_success")), (Some(1.0), Some(1.0)));
        let (waited, asked) = (silent.value("probe_duration_seconds"), lively.value("probe_duration_seconds"));
        assert!(asked < waited, "{asked:?} is not without the wait for {waited:?}");
    }

    #[tokio::test]
    async fn the_bus_rests_between_two_requests_of_one_poll() {
        let metrics = [metric("a", "register = 1"), metric("b", "register = 500"), metric("c", "register = 900")];
        let polled = polled(&device(counting), &format!("spacing = \"50ms\"\n{}", metrics.concat())).await;
        assert!(polled.missing.is_empty() && polled.value("probe_duration_seconds") >= Some(0.1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_never_comes_is_a_gap_and_says_nothing_of_the_device() {
        let (context, mut units) = units(502, &[1]);
        let gateway = context.gateways.at(&Address { host: "127.0.0.1".into(), port: 502 });
        let _held = gateway.turn(Duration::ZERO).await;
        let polled = units[0].poll_all().await;
        assert!(polled.samples.is_empty() && polled.missing.is_empty());
        let failure = polled.failure.unwrap();
        assert_eq!(failure.reason, Reason::Late);
        assert!(failure.detail.ends_with("give the silent one a shorter timeout"), "{failure}");
    }

    #[tokio::test]
    async fn a_hostile_device_costs_its_own_metrics_only() {
        type Answer = fn(u8, u16, u16) -> Option<Vec<u8>>;
        let answers: [(Answer, Reason); 6] = [
            (|_, _, _| None, Reason::BadAnswer),
            (|function, _, _| Some(vec![function, 2, 0]), Reason::BadAnswer),
            (|function, _, _| Some(vec![function, 0]), Reason::BadAnswer),
            (|_, _, _| Some(vec![99, 1, 2, 3]), Reason::BadAnswer),
            (|function, _, _| Some([vec![function, 250], vec![7; 250]].concat()), Reason::BadAnswer),
            (
                |function, first, count| counting(function, first, count).map(|pdu| [pdu, vec![0; 60_000]].concat()),
                Reason::BadAnswer,
            ),
        ];
        for (index, (answer, reason)) in answers.into_iter().enumerate() {
            let polled = polled(&device(answer), &metric("a", "register = 1\ntype = \"u32\"")).await;
            let told: Vec<Reason> = polled.missing.iter().map(|(_, failure)| failure.reason).collect();
            assert!(polled.value("a").is_none() && !told.is_empty(), "{index}: {told:?}");
            assert!(
                told.iter().all(|one| [reason, Reason::Refused, Reason::Timeout].contains(one)),
                "{index}: {told:?}"
            );
        }
        let flood = raw_peer(|stream| while stream.write_all(&[0x5a; 4_096]).is_ok() {});
        assert!(polled(&flood, &metric("a", "register = 1")).await.value("a").is_none());
        let silent = raw_peer(|stream| drop(stream.read_to_end(&mut Vec::new())));
        let polled = polled(&silent, &metric("a", "register = 1")).await;
        assert_eq!((polled.missing[0].1.reason, polled.value("probe_success")), (Reason::Timeout, Some(0.0)));
    }

    #[test]
    fn options_that_can_not_be_are_refused_with_their_key() {
        let check = |options: &str, said: &str| {
            let told = problem(&format!("collector = \"modbus\"\naddress = \"plc.lan\"\n{options}"));
            assert!(told.contains(said), "{options}: {told}");
        };
        check("", "device.it.metric: no metrics");
        check("unit_id = 300", "device.it.unit_id");
        check("spacing = \"1h\"", "device.it.spacing: a duration of at most 1s");
        check(&metric("a", ""), "register");
        check(&metric("a", "register = 70000"), "device.it.metric.a.register");
        check(&metric("a", "register = 65535\ntype = \"u32\""), "it would end behind register 65535");
        check(&metric("a", "register = 1\ntable = \"coil\"\ntype = \"u16\""), "device.it.metric.a.type: a coil");
        check(&metric("a", "register = 1\nwrite = 3"), "device.it.metric.a.write");
        for absent in ["absent = 65536", "type = \"i16\"\nabsent = -32769", "type = \"f32\"\nabsent = 0"] {
            check(&metric("a", &format!("register = 1\n{absent}")), "device.it.metric.a.absent: a number of");
        }
        check(&metric("probe", "register = 1"), "take another name");
    }
}
