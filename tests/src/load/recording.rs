//! Blocks that were encoded before they are sent: what a satellite's buffer would hold.
//!
//! A third of the series stand still, the others count up or wander in steps as host metrics do, a tenth are floats of
//! full precision; the encoder is the satellite's own. One seed gives one recording.

use anyhow::{Result, ensure};
use satellite_shared::clock::Now;
use satellite_shared::id::Epoch;
use satellite_shared::limits::BLOCK_BYTES_MAX;
use satellite_shared::metric::{Kind, Series};
use satellite_shared::wire::block::{Body, ClockQuality, Encoder, Group, Stamp};
use satellite_shared::wire::to_relay::Stream;
use tokio_tungstenite::tungstenite::Bytes;

use crate::rounds::Dice;
use crate::wait;

const ANNOUNCED_AT_ONCE: usize = 50;

/// How samples are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Series of one satellite.
    pub series: u32,
    /// Of them, in one block; the next block has the next ones.
    pub series_per_block: u32,
    /// Polls in one block.
    pub polls_per_block: u32,
    /// Between two polls.
    pub every_ms: i64,
    /// Which recording of this shape.
    pub seed: u64,
}

impl Shape {
    /// What a satellite sends live: one block a poll, all series in it, each 10 s.
    #[must_use]
    pub fn live(series: u32) -> Self {
        Self { series, series_per_block: series, polls_per_block: 1, every_ms: 10_000, seed: 1 }
    }

    /// What a satellite commits that spares its card: ten polls a block, a tenth of the series in each.
    #[must_use]
    pub fn grouped(series: u32) -> Self {
        Self { series_per_block: series.div_ceil(10), polls_per_block: 10, ..Self::live(series) }
    }
}

/// A block and what it holds.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its first sample's number.
    pub first_seq: u64,
    /// Its last sample's number.
    pub last_seq: u64,
    /// Its bytes.
    pub frame: Bytes,
}

/// Frames of one epoch, in the order in which they are sent.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Whose numbers.
    pub epoch: Epoch,
    /// The descriptors of its series.
    pub announcements: Vec<Bytes>,
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// When it was made.
    made_ms: i64,
}

impl Recording {
    /// So many blocks of this shape; the last poll is now.
    ///
    /// # Errors
    /// When a block of this shape is larger than a frame may be.
    pub fn new(shape: &Shape, blocks: usize) -> Result<Self> {
        let mut dice = Dice::new(shape.seed);
        let epoch = Epoch(u128::from(dice.roll()) << 64 | u128::from(wait::mono_ms()));
        let now = Now { wall_ms: wait::wall_ms(), mono_ms: wait::mono_ms() };
        let stamp = Stamp { epoch, first_seq: 0, due_before: 0, made: now, quality: ClockQuality::Synchronised };
        let mut encoder = Encoder::default();
        let mut announcements = Vec::new();
        let numbers: Vec<u32> = (0..shape.series).collect();
        for some in numbers.chunks(ANNOUNCED_AT_ONCE) {
            let stamp = Stamp { first_seq: some[0].into(), ..stamp };
            let body = Body::Series(some.iter().map(|&number| described(number)).collect());
            announcements.push(encoder.encode(stamp, &body).into());
        }
        let mut meters: Vec<Meter> = numbers.iter().map(|&number| Meter::new(number, &mut dice)).collect();
        let blocks_per_round = shape.series.div_ceil(shape.series_per_block) as usize;
        let rounds = blocks.div_ceil(blocks_per_round);
        let polls = i64::try_from(rounds)? * i64::from(shape.polls_per_block);
        let mut time_ms = now.wall_ms - polls * shape.every_ms;
        let mut recording = Self { epoch, announcements, blocks: Vec::with_capacity(blocks), made_ms: now.wall_ms };
        for _ in 0..rounds {
            let times: Vec<i64> =
                (0..i64::from(shape.polls_per_block)).map(|poll| time_ms + poll * shape.every_ms).collect();
            for some in numbers.chunks(shape.series_per_block as usize) {
                if recording.blocks.len() < blocks {
                    recording.push(&mut encoder, stamp, some, &times, &mut meters, &mut dice)?;
                }
            }
            time_ms += i64::from(shape.polls_per_block) * shape.every_ms;
        }
        Ok(recording)
    }

    fn push(
        &mut self,
        encoder: &mut Encoder,
        stamp: Stamp,
        numbers: &[u32],
        times_ms: &[i64],
        meters: &mut [Meter],
        dice: &mut Dice,
    ) -> Result<()> {
        let mut values = Vec::with_capacity(numbers.len() * times_ms.len());
        for &number in numbers {
            values.extend(times_ms.iter().map(|_| meters[number as usize].read(dice)));
        }
        let first_seq = self.blocks.last().map_or(0, |block| block.last_seq) + 1;
        let last_seq = first_seq + values.len() as u64 - 1;
        let group = Group { series: numbers.to_vec(), times_ms: times_ms.to_vec(), values };
        let stamp = Stamp { first_seq, due_before: first_seq - 1, ..stamp };
        let frame: Bytes = encoder.encode(stamp, &Body::Samples(vec![group])).into();
        ensure!(frame.len() <= BLOCK_BYTES_MAX, "a block of {} bytes: fewer series or polls in one", frame.len());
        self.blocks.push(Block { first_seq, last_seq, frame });
        Ok(())
    }

    /// Samples in it.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.last_seq)
    }

    /// What a satellite that holds it announces when it connects.
    #[must_use]
    pub fn streams(&self) -> Vec<Stream> {
        vec![Stream {
            epoch: self.epoch,
            boot_id: String::new(),
            opened_ms: self.made_ms,
            first_seq: 1,
            last_seq: self.samples(),
        }]
    }
}

/// About a hundred bytes of text, as exporters have it.
fn described(number: u32) -> Series {
    let mode = ["idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user"][number as usize % 8];
    Series {
        device: format!("device-{:02}", number / 100 % 100).parse().expect("a device's name"),
        name: format!("load_subsystem_{:02}_seconds_total", number / 8 % 50),
        kind: Kind::Counter,
        unit: "seconds".into(),
        labels: vec![
            ("core".into(), (number / 400).to_string()),
            ("mode".into(), mode.into()),
            ("place".into(), format!("/dev/disk/by-id/{number:06}")),
        ],
    }
}

/// What one series shows.
#[derive(Debug)]
struct Meter {
    kind: u32,
    at: i64,
}

impl Meter {
    fn new(number: u32, dice: &mut Dice) -> Self {
        Self { kind: number % 10, at: i64::try_from(dice.below(1 << 30)).unwrap_or_default() }
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn read(&mut self, dice: &mut Dice) -> f64 {
        let mut step = |most| i64::try_from(dice.below(most)).unwrap_or_default();
        match self.kind {
            0..=2 => self.at as f64,
            3 | 4 => {
                self.at += step(1_000);
                self.at as f64 / 100.0
            }
            5 => {
                self.at += step(1 << 24);
                self.at as f64
            }
            6 | 7 => {
                self.at = (self.at + (step(65) - 32) * 4_096).max(0);
                self.at as f64
            }
            8 => {
                self.at = (self.at % 1_000 + step(11) - 5).max(0);
                self.at as f64 / 10.0
            }
            _ => dice.roll() as f64 / u64::MAX as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::wire::block::Decoder;

    use super::*;

    #[test]
    fn blocks_follow_each_other_and_hold_what_their_shape_says() {
        for shape in [Shape::live(1_000), Shape::grouped(1_000)] {
            let recording = Recording::new(&shape, 25).unwrap();
            assert_eq!((recording.blocks.len(), recording.samples()), (25, 25_000));
            let mut next = 1;
            for block in &recording.blocks {
                let (header, body) = Decoder::default().decode(&block.frame).unwrap();
                let Body::Samples(groups) = body else { panic!("{body:?}") };
                assert_eq!((header.first_seq, header.last_seq(), header.due_before), (next, block.last_seq, next - 1));
                assert_eq!(groups[0].values.len(), 1_000);
                next = block.last_seq + 1;
            }
        }
    }

    #[test]
    fn what_does_not_fit_a_frame_is_refused() {
        assert!(Recording::new(&Shape::live(10_000), 1).is_err());
    }
}
