//! Turns what one group commit holds into frames: numbers it, splits it so that each frame fits the buffer.

use satellite_shared::clock::Now;
use satellite_shared::gap::Gap;
use satellite_shared::id::Epoch;
use satellite_shared::limits;
use satellite_shared::metric::Series;
use satellite_shared::wire::block::{Body, ClockQuality, Encoder, Group, Stamp};

/// Samples that are tried in one frame first; about as many as fit.
const SAMPLES_TRIED: usize = 1_800;
/// Series descriptors that are tried in one frame first.
const SERIES_TRIED: usize = 200;
/// Gaps that are tried in one frame first.
const GAPS_TRIED: usize = 64;

/// Writes an epoch's frames. It alone numbers records and counts what was due.
#[derive(Debug)]
pub struct FrameWriter {
    encoder: Encoder,
    epoch: Epoch,
    next_seq: u64,
    next_series: u32,
    due: u64,
}

impl FrameWriter {
    /// Writes an epoch from its beginning.
    #[must_use]
    pub fn new(epoch: Epoch) -> Self {
        Self { encoder: Encoder::default(), epoch, next_seq: 1, next_series: 0, due: 0 }
    }

    /// Samples due so far, as far as they were written.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due
    }

    /// Frames of these samples.
    pub fn samples(&mut self, groups: Vec<Group>, made: Now, quality: ClockQuality) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut batch: Vec<Group> = Vec::new();
        let mut size = 0;
        for group in groups.into_iter().filter(|group| !group.values.is_empty()) {
            if size + group.values.len() > SAMPLES_TRIED && !batch.is_empty() {
                self.emit(std::mem::take(&mut batch), made, quality, &mut frames);
                size = 0;
            }
            size += group.values.len();
            batch.push(group);
        }
        if !batch.is_empty() {
            self.emit(batch, made, quality, &mut frames);
        }
        frames
    }

    fn emit(&mut self, groups: Vec<Group>, made: Now, quality: ClockQuality, frames: &mut Vec<Vec<u8>>) {
        let count: usize = groups.iter().map(|group| group.values.len()).sum();
        if count <= 2 * SAMPLES_TRIED {
            let stamp = self.stamp(self.next_seq, made, quality);
            let body = Body::Samples(groups);
            let frame = self.encoder.encode(stamp, &body);
            if frame.len() <= limits::BLOCK_BYTES_MAX {
                self.next_seq += count as u64;
                self.due += count as u64;
                frames.push(frame);
                return;
            }
            let Body::Samples(groups) = body else { unreachable!("made of samples above") };
            return self.emit_halves(groups, made, quality, frames);
        }
        self.emit_halves(groups, made, quality, frames);
    }

    fn emit_halves(&mut self, groups: Vec<Group>, made: Now, quality: ClockQuality, frames: &mut Vec<Vec<u8>>) {
        let (first, second) = halves(groups);
        self.emit(first, made, quality, frames);
        self.emit(second, made, quality, frames);
    }

    /// Frames of these gaps.
    pub fn gaps(&mut self, gaps: &[Gap], made: Now, quality: ClockQuality) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for chunk in gaps.chunks(GAPS_TRIED) {
            self.emit_gaps(chunk, made, quality, &mut frames);
        }
        frames
    }

    fn emit_gaps(&mut self, gaps: &[Gap], made: Now, quality: ClockQuality, frames: &mut Vec<Vec<u8>>) {
        let stamp = self.stamp(self.next_seq, made, quality);
        let frame = self.encoder.encode(stamp, &Body::Gaps(gaps.to_vec()));
        if frame.len() > limits::BLOCK_BYTES_MAX && gaps.len() > 1 {
            let (first, second) = gaps.split_at(gaps.len() / 2);
            self.emit_gaps(first, made, quality, frames);
            return self.emit_gaps(second, made, quality, frames);
        }
        self.next_seq += gaps.len() as u64;
        self.due += gaps.iter().map(Gap::due).sum::<u64>();
        frames.push(frame);
    }

    /// Frames of new series, numbered from where the last call ended.
    pub fn series(&mut self, series: &[Series], made: Now) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for chunk in series.chunks(SERIES_TRIED) {
            self.emit_series(chunk, made, &mut frames);
        }
        frames
    }

    fn emit_series(&mut self, series: &[Series], made: Now, frames: &mut Vec<Vec<u8>>) {
        let mut stamp = self.stamp(u64::from(self.next_series), made, ClockQuality::Unknown);
        stamp.due_before = 0;
        let frame = self.encoder.encode(stamp, &Body::Series(series.to_vec()));
        if frame.len() > limits::BLOCK_BYTES_MAX && series.len() > 1 {
            let (first, second) = series.split_at(series.len() / 2);
            self.emit_series(first, made, frames);
            return self.emit_series(second, made, frames);
        }
        self.next_series += u32::try_from(series.len()).expect("at most SERIES_TRIED");
        frames.push(frame);
    }

    fn stamp(&self, first_seq: u64, made: Now, quality: ClockQuality) -> Stamp {
        Stamp { epoch: self.epoch, first_seq, due_before: self.due, made, quality }
    }
}

/// Two parts of about the same size, in order.
fn halves(mut groups: Vec<Group>) -> (Vec<Group>, Vec<Group>) {
    if groups.len() > 1 {
        let second = groups.split_off(groups.len() / 2);
        return (groups, second);
    }
    let group = groups.pop().unwrap_or_default();
    let times = group.times_ms.len();
    if group.series.len() > 1 {
        let half = group.series.len() / 2;
        let part = |series: &[u32], values: &[f64]| {
            vec![Group { series: series.to_vec(), times_ms: group.times_ms.clone(), values: values.to_vec() }]
        };
        let (first, second) = group.values.split_at(half * times);
        return (part(&group.series[..half], first), part(&group.series[half..], second));
    }
    let half = times / 2;
    let part = |range: std::ops::Range<usize>| {
        vec![Group {
            series: group.series.clone(),
            times_ms: group.times_ms[range.clone()].to_vec(),
            values: group.values[range].to_vec(),
        }]
    };
    (part(0..half), part(half..times))
}

#[cfg(test)]
mod tests {
    use satellite_shared::wire::block::{Decoder, header};

    use super::*;

    const NOW: Now = Now { wall_ms: 1_790_000_000_000, mono_ms: 5 };

    fn noisy(series: u32, times: usize) -> Group {
        let values = (0..series as usize * times).map(|n| (n as f64 * 0.7).sin()).collect();
        Group { series: (0..series).collect(), times_ms: (0..times as i64).map(|t| t * 1_000).collect(), values }
    }

    #[test]
    fn frames_fit_the_buffer_and_number_without_holes() {
        let mut writer = FrameWriter::new(Epoch(1));
        let mut frames =
            writer.samples(vec![noisy(5_000, 1), noisy(3, 4_000), noisy(1, 9_000)], NOW, ClockQuality::Unknown);
        frames.extend(writer.samples(vec![noisy(2, 2)], NOW, ClockQuality::Unknown));
        let (mut seq, mut due, mut values) = (1, 0, 0);
        for frame in &frames {
            let header = header(frame).unwrap();
            assert_eq!((header.first_seq, header.due_before), (seq, due));
            seq = header.last_seq() + 1;
            due = header.due_through();
            let Body::Samples(groups) = Decoder::default().decode(frame).unwrap().1 else { panic!("samples") };
            values += groups.iter().map(|g| g.values.len()).sum::<usize>();
        }
        assert_eq!((values, due), (5_000 + 12_000 + 9_000 + 4, writer.due()));
    }

    #[test]
    fn long_labels_make_more_frames_not_longer_ones() {
        let long = |n: usize| {
            (0..3_000).map(|at| char::from(b'a' + ((at * 31 + n * 17 + at * at) % 26) as u8)).collect::<String>()
        };
        let series: Vec<Series> = (0..50)
            .map(|n| Series {
                device: "nas".parse().unwrap(),
                name: "x".into(),
                kind: satellite_shared::metric::Kind::Gauge,
                unit: String::new(),
                labels: vec![("a".into(), long(n))],
            })
            .collect();
        let mut writer = FrameWriter::new(Epoch(1));
        let mut next = 0;
        for frame in writer.series(&series, NOW) {
            let header = header(&frame).unwrap();
            assert_eq!(header.first_seq, next);
            next += u64::from(header.count);
        }
        assert_eq!(next, 50);
    }
}
