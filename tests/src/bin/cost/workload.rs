//! Samples like those of a house's hosts, and how each protocol writes them down.
//!
//! Of ten series four stand still, three count fast, two count slowly, one wanders with two decimals: about the mix of
//! node_exporter. They begin at any order of magnitude up to 2^34, one as likely as another, as a host's counters do.
//! The numbers come from a seed, so that all peers get the same ones.

use satellite_shared::clock::Now;
use satellite_shared::id::{DeviceName, Epoch};
use satellite_shared::metric::{Kind, Series};
use satellite_shared::wire::block::{Body, ClockQuality, Encoder, Group, Stamp};
use satellite_tests::rounds::Dice;

/// Series of one satellite: one poll of a host.
pub(crate) const SERIES: usize = 1_000;
/// Between two polls.
pub(crate) const EVERY_MS: i64 = 10_000;
/// Descriptors in one frame: as many as surely fit.
const DESCRIPTORS: usize = 100;

const NAMES: [&str; 10] = [
    "node_memory_Cached_bytes",
    "node_filesystem_size_bytes",
    "node_network_mtu_bytes",
    "node_hwmon_temp_crit_celsius",
    "node_network_receive_bytes_total",
    "node_disk_read_bytes_total",
    "node_cpu_seconds_total",
    "node_netstat_Tcp_OutSegs",
    "node_vmstat_pgfault",
    "node_load1",
];

/// One satellite's stream of polls.
#[derive(Debug)]
pub(crate) struct Workload {
    values: Vec<f64>,
    dice: Dice,
    /// When the next poll is.
    pub at_ms: i64,
}

/// One poll.
#[derive(Debug, Clone)]
pub(crate) struct Poll {
    pub at_ms: i64,
    pub values: Vec<f64>,
}

impl Workload {
    /// A stream that begins so long ago that so many polls end about now.
    pub(crate) fn ending_at(now_ms: i64, polls: u64, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let values = (0..SERIES).map(|_| (dice.roll() >> (30 + dice.below(34))) as f64).collect();
        let back_ms = EVERY_MS.saturating_mul(i64::try_from(polls).unwrap_or(i64::MAX / EVERY_MS));
        Self { values, dice, at_ms: now_ms - back_ms }
    }

    /// The next poll.
    pub(crate) fn poll(&mut self) -> Poll {
        for (series, value) in self.values.iter_mut().enumerate() {
            match series % 10 {
                0..=3 => {}
                4..=6 => *value += self.dice.below(100_000) as f64,
                7..=8 => *value += self.dice.below(3) as f64,
                _ => *value = self.dice.below(10_000) as f64 / 100.0,
            }
        }
        let at_ms = self.at_ms;
        self.at_ms += EVERY_MS;
        Poll { at_ms, values: self.values.clone() }
    }
}

fn label(series: usize) -> String {
    format!("dev{:02}", series / NAMES.len())
}

/// The descriptors of the first so many.
pub(crate) fn series(count: usize) -> Vec<Series> {
    let device: DeviceName = "host".parse().expect("a device's name");
    (0..count)
        .map(|series| Series {
            device: device.clone(),
            name: NAMES[series % NAMES.len()].to_owned(),
            kind: if series % NAMES.len() < 4 { Kind::Gauge } else { Kind::Counter },
            unit: String::new(),
            labels: vec![("device".to_owned(), label(series)), ("job".to_owned(), "node".to_owned())],
        })
        .collect()
}

/// All descriptors, as frames.
pub(crate) fn series_frames(encoder: &mut Encoder, epoch: Epoch, made: Now) -> Vec<Vec<u8>> {
    let mut first_seq = 0;
    let mut frames = Vec::new();
    for chunk in series(SERIES).chunks(DESCRIPTORS) {
        let stamp = Stamp { epoch, first_seq, due_before: 0, made, quality: ClockQuality::Unknown };
        frames.push(encoder.encode(stamp, &Body::Series(chunk.to_vec())));
        first_seq += chunk.len() as u64;
    }
    frames
}

/// One poll as a frame, numbered after so many records.
pub(crate) fn frame(encoder: &mut Encoder, epoch: Epoch, before: u64, poll: Poll, mono_ms: u64) -> Vec<u8> {
    let made = Now { wall_ms: poll.at_ms, mono_ms };
    let stamp = Stamp { epoch, first_seq: before + 1, due_before: before, made, quality: ClockQuality::Synchronised };
    let group = Group { series: (0..SERIES as u32).collect(), times_ms: vec![poll.at_ms], values: poll.values };
    encoder.encode(stamp, &Body::Samples(vec![group]))
}

/// One poll of one host as the text that is published through message servers.
pub(crate) fn lines(host: usize, poll: &Poll) -> Vec<u8> {
    let mut text = String::with_capacity(poll.values.len() * 100);
    for (series, value) in poll.values.iter().enumerate() {
        let (name, label, at_ms) = (NAMES[series % NAMES.len()], label(series), poll.at_ms);
        text.push_str(&format!("{name},instance=sat{host:03},job=node,device={label} value={value} {at_ms}000000\n"));
    }
    text.into_bytes()
}

/// One poll of one host as Prometheus' remote write: protobuf in snappy's block format.
pub(crate) fn remote_write(host: usize, poll: &Poll) -> Vec<u8> {
    let mut body = Vec::with_capacity(poll.values.len() * 130);
    for (series, value) in poll.values.iter().enumerate() {
        let mut one = Vec::with_capacity(128);
        let instance = format!("sat{host:03}");
        let labels = [
            ("__name__", NAMES[series % NAMES.len()]),
            ("device", &label(series)),
            ("instance", &instance),
            ("job", "node"),
        ];
        for (name, text) in labels {
            let mut pair = Vec::with_capacity(64);
            field(&mut pair, 1, name.as_bytes());
            field(&mut pair, 2, text.as_bytes());
            field(&mut one, 1, &pair);
        }
        let mut sample = vec![9];
        sample.extend_from_slice(&value.to_le_bytes());
        sample.push(16);
        varint(&mut sample, poll.at_ms.unsigned_abs());
        field(&mut one, 2, &sample);
        field(&mut body, 1, &one);
    }
    literals(&body)
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Snappy without matches: valid, and the least work for the one who reads it.
fn literals(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 16);
    varint(&mut out, bytes.len() as u64);
    for chunk in bytes.chunks(1 << 16) {
        out.push(61 << 2);
        out.extend_from_slice(&((chunk.len() - 1) as u16).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out
}

#[cfg(test)]
mod tests {
    use satellite_shared::limits;
    use satellite_shared::wire::block::Decoder;

    use super::*;

    #[test]
    fn a_poll_is_one_frame_that_a_relay_can_decode() {
        let (mut encoder, epoch) = (Encoder::default(), Epoch(7));
        let mut workload = Workload::ending_at(1_790_000_000_000, 3, 1);
        let first = workload.poll();
        let frame = frame(&mut encoder, epoch, 0, first.clone(), 1);
        assert!(frame.len() <= limits::BLOCK_BYTES_MAX, "{} bytes", frame.len());
        let (header, body) = Decoder::default().decode(&frame).unwrap();
        assert_eq!((header.first_seq, header.count), (1, 1_000));
        let Body::Samples(groups) = body else { panic!("samples") };
        assert_eq!(groups[0].values, first.values);
        for frame in series_frames(&mut encoder, epoch, Now { wall_ms: 0, mono_ms: 0 }) {
            assert!(frame.len() <= limits::BLOCK_BYTES_MAX, "{} bytes", frame.len());
        }
    }

    #[test]
    fn remote_write_is_a_snappy_block_of_its_length() {
        let poll = Workload::ending_at(1_790_000_000_000, 3, 1).poll();
        let body = remote_write(3, &poll);
        let (mut length, mut at) = (0_usize, 0);
        loop {
            length |= usize::from(body[at] & 0x7f) << (7 * at);
            at += 1;
            if body[at - 1] < 0x80 {
                break;
            }
        }
        assert_eq!(body.len() - at, length + 3 * length.div_ceil(1 << 16));
    }
}
