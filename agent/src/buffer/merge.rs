//! Small blocks of a backlog as few large ones. Pure.
//!
//! A live block holds what one commit brought; kept for long, a dozen of them in one take half the bytes. Records keep
//! their numbers and their order, so that a merged block says exactly what its parts said, whichever of them comes
//! back after a crash. Which blocks may be merged is the keeper's to know.

use std::ops::Range;

use satellite_shared::limits::{BLOCK_BYTES_MAX, BLOCK_RECORDS_MAX};
use satellite_shared::wire::block::{Body, Decoder, Encoder, FrameKind, Group, Header, Stamp};

/// A merged block that is shorter may still grow.
const FULL_BYTES: usize = BLOCK_BYTES_MAX / 4 * 3;
/// Encodings that are tried for one block.
const TRIES: usize = 8;

/// Consecutive blocks of one epoch, with their headers.
pub(super) type Block = (Header, Vec<u8>);

/// What came of merging.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// Each of these takes the place of several blocks.
    pub(super) frames: Vec<(Range<usize>, Vec<u8>)>,
    /// So many blocks from the front are done with.
    pub(super) settled: usize,
    /// The bytes that the rest would have as one block, where that was tried.
    pub(super) rest_bytes: usize,
}

/// Merges; holds what is worth reusing.
#[derive(Debug, Default)]
pub(super) struct Merger {
    encoder: Encoder,
    decoder: Decoder,
}

impl Merger {
    /// Merges what of these blocks fits together. The last ones stay as they are while more may join them, unless
    /// `whole`.
    pub(super) fn merge(&mut self, blocks: &[Block], whole: bool) -> Merged {
        let mut merged = Merged::default();
        while merged.settled < blocks.len() {
            let run = run_from(blocks, merged.settled);
            let open = run.end == blocks.len() && !whole;
            if !self.merge_run(blocks, run, open, &mut merged) {
                break;
            }
        }
        merged
    }

    /// Whether the run is done with.
    fn merge_run(&mut self, blocks: &[Block], run: Range<usize>, open: bool, merged: &mut Merged) -> bool {
        let Some(parts) = self.decode(&blocks[run.clone()]) else {
            // What can't be read is for the relay to set aside.
            merged.settled = run.end;
            return true;
        };
        while merged.settled < run.end {
            let at = merged.settled;
            let (count, frame) = self.largest(&blocks[at..run.end], &parts[at - run.start..]);
            if open && at + count == run.end && frame.as_ref().is_none_or(|frame| frame.len() < FULL_BYTES) {
                merged.rest_bytes = frame.map_or(0, |frame| frame.len());
                return false;
            }
            merged.frames.extend(frame.map(|frame| (at..at + count, frame)));
            merged.settled += count;
        }
        true
    }

    fn decode(&mut self, blocks: &[Block]) -> Option<Vec<Vec<Group>>> {
        let groups = |(_, frame): &Block| match self.decoder.decode(frame) {
            Ok((_, Body::Samples(groups))) => Some(groups),
            Ok(_) | Err(_) => None,
        };
        // One block alone stays what it is.
        if blocks.len() < 2 { Some(vec![Vec::new(); blocks.len()]) } else { blocks.iter().map(groups).collect() }
    }

    /// How many blocks from the front fit together, and they as one; none where one stays alone.
    fn largest(&mut self, blocks: &[Block], parts: &[Vec<Group>]) -> (usize, Option<Vec<u8>>) {
        let mut best = (1, None);
        let mut beyond = blocks.len() + 1;
        // Half the bytes is usual.
        let mut bytes = 0;
        let mut count = blocks
            .iter()
            .take_while(|(_, frame)| {
                bytes += frame.len();
                bytes < 2 * BLOCK_BYTES_MAX
            })
            .count();
        for _ in 0..TRIES {
            count = count.min(beyond - 1).max(best.0 + 1);
            if count >= beyond {
                break;
            }
            let frame = self.one(&blocks[..count], &parts[..count]);
            let len = frame.as_ref().map_or(2 * BLOCK_BYTES_MAX, Vec::len);
            let share = count * (BLOCK_BYTES_MAX / 100 * 97) / len.max(1);
            if len <= BLOCK_BYTES_MAX {
                best = (count, frame);
            } else {
                beyond = count;
            }
            count = share;
        }
        best
    }

    /// All of them as one, however long; none where they are too many records.
    fn one(&mut self, blocks: &[Block], parts: &[Vec<Group>]) -> Option<Vec<u8>> {
        let (first, last) = (blocks.first()?.0, blocks.last()?.0);
        let records: u64 = blocks.iter().map(|(header, _)| u64::from(header.count)).sum();
        if records > u64::from(BLOCK_RECORDS_MAX) {
            return None;
        }
        let stamp = Stamp {
            epoch: first.epoch,
            first_seq: first.first_seq,
            due_before: first.due_before,
            made: last.made,
            quality: first.quality,
        };
        Some(self.encoder.encode(stamp, &Body::Samples(parts.concat())))
    }
}

/// The blocks from `at` on that could stand in one, were it long enough.
fn run_from(blocks: &[Block], at: usize) -> Range<usize> {
    let (first, _) = blocks[at];
    let mut end = at + 1;
    let mut last = first;
    while first.kind == FrameKind::Samples && end < blocks.len() {
        let (next, _) = blocks[end];
        let follows = next.epoch == last.epoch
            && next.first_seq == last.last_seq().saturating_add(1)
            && next.due_before == last.due_through();
        if !follows || next.kind != first.kind || next.quality != first.quality {
            break;
        }
        (last, end) = (next, end + 1);
    }
    at..end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use satellite_shared::clock::Now;
    use satellite_shared::gap::{Gap, Reason};
    use satellite_shared::id::Epoch;
    use satellite_shared::wire::block::{ClockQuality, header};

    use super::*;
    use crate::recorder::frames::FrameWriter;

    /// A thousand series as a host has them, polled every ten seconds.
    fn poll(n: u32, series: u32) -> Group {
        let at = f64::from(n);
        let value = |i: u32| match i % 10 {
            0..=4 => f64::from(i) * 4_096.0,
            5 | 6 => f64::from(i * 1_000) + at * f64::from(i % 37),
            7 => (f64::from(i) * 17.0 + at * 3.0 + f64::from(n.wrapping_mul(i) % 13)) / 100.0,
            8 => f64::from(1_000_000 + (n.wrapping_mul(7_919).wrapping_add(i * 31) % 4_096) * 4_096),
            _ => (f64::from(i) + at * 0.37).sin(),
        };
        let time = 1_790_000_000_000 + i64::from(n) * 10_000;
        Group { series: (0..series).collect(), times_ms: vec![time], values: (0..series).map(value).collect() }
    }

    fn blocks_of(frames: Vec<Vec<u8>>) -> Vec<Block> {
        frames.into_iter().map(|frame| (header(&frame).unwrap(), frame)).collect()
    }

    fn polls(writer: &mut FrameWriter, count: u32, series: u32) -> Vec<Block> {
        let now = |n: u32| Now { wall_ms: 1_790_000_000_000 + i64::from(n), mono_ms: u64::from(n) };
        let frames = (0..count).flat_map(|n| writer.samples(vec![poll(n, series)], now(n), ClockQuality::Unknown));
        blocks_of(frames.collect())
    }

    fn groups(frame: &[u8]) -> Vec<Group> {
        let Body::Samples(groups) = Decoder::default().decode(frame).unwrap().1 else { panic!("samples") };
        groups
    }

    /// What the merged frames and the blocks that stayed say, in order.
    fn told(blocks: &[Block], merged: &Merged) -> Vec<Block> {
        let mut all = Vec::new();
        let mut at = 0;
        for (range, frame) in &merged.frames {
            all.extend_from_slice(&blocks[at..range.start]);
            all.push((header(frame).unwrap(), frame.clone()));
            at = range.end;
        }
        all.extend_from_slice(&blocks[at..]);
        all
    }

    #[test]
    fn a_merged_block_says_what_its_parts_said() {
        let blocks = polls(&mut FrameWriter::new(Epoch(1)), 40, 1_000);
        let merged = Merger::default().merge(&blocks, true);
        assert_eq!(merged.settled, blocks.len());
        let all = told(&blocks, &merged);
        let before: usize = blocks.iter().map(|(_, frame)| frame.len()).sum();
        let after: usize = all.iter().map(|(_, frame)| frame.len()).sum();
        assert!(all.len() * 4 < blocks.len() && after * 10 < before * 7, "{before} bytes became {after}");
        assert!(all.iter().all(|(_, frame)| frame.len() <= BLOCK_BYTES_MAX));
        let said = |blocks: &[Block]| blocks.iter().flat_map(|(_, frame)| groups(frame)).collect::<Vec<_>>();
        assert_eq!(said(&all), said(&blocks));
        let mut next = 1;
        for (header, _) in &all {
            assert_eq!((header.first_seq, header.due_before), (next, next - 1));
            next = header.last_seq() + 1;
        }
        assert_eq!(next, 40_001);
    }

    #[test]
    fn the_last_ones_wait_for_more() {
        let blocks = polls(&mut FrameWriter::new(Epoch(1)), 3, 100);
        let merged = Merger::default().merge(&blocks, false);
        assert_eq!((merged.frames.len(), merged.settled), (0, 0));
        assert!(merged.rest_bytes > 0);
        assert_eq!(Merger::default().merge(&blocks, true).frames.len(), 1);
    }

    #[test]
    fn gaps_stay_between_what_came_before_and_after_them() {
        let mut writer = FrameWriter::new(Epoch(1));
        let mut blocks = polls(&mut writer, 3, 50);
        let gap = Gap {
            device: None,
            metric: None,
            from_ms: 1,
            to_ms: 2,
            count: 5,
            reason: Reason::Timeout,
            detail: String::new(),
            lost: None,
        };
        let now = Now { wall_ms: 0, mono_ms: 9 };
        blocks.extend(blocks_of(writer.gaps(&[gap], now, ClockQuality::Unknown)));
        blocks.extend(polls(&mut writer, 3, 50));
        let merged = Merger::default().merge(&blocks, true);
        assert_eq!(merged.frames.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(), [0..3, 4..7]);
        let all = told(&blocks, &merged);
        let ends: Vec<_> = all.iter().map(|(header, _)| (header.first_seq, header.due_before)).collect();
        assert_eq!(ends, [(1, 0), (151, 150), (152, 155)]);
    }

    #[test]
    fn blocks_that_do_not_follow_each_other_stay_apart() {
        let blocks = polls(&mut FrameWriter::new(Epoch(1)), 6, 50);
        let holed: Vec<Block> = [&blocks[..2], &blocks[3..]].concat();
        let merged = Merger::default().merge(&holed, true);
        assert_eq!(merged.frames.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(), [0..2, 2..5]);
    }

    proptest! {
        #[test]
        fn whatever_is_merged_says_the_same(
            sizes in prop::collection::vec((1u32..400, 0u32..3), 1..40),
            whole in any::<bool>(),
        ) {
            let mut writer = FrameWriter::new(Epoch(1));
            let mut blocks = Vec::new();
            for (n, (series, more)) in (0u32..).zip(sizes) {
                let mut groups = vec![poll(n, series)];
                groups.extend((0..more).map(|extra| poll(n + extra, 7)));
                let now = Now { wall_ms: 0, mono_ms: u64::from(n) };
                blocks.extend(blocks_of(writer.samples(groups, now, ClockQuality::Synchronised)));
            }
            let merged = Merger::default().merge(&blocks, whole);
            let all = told(&blocks, &merged);
            let said = |blocks: &[Block]| blocks.iter().flat_map(|(_, frame)| groups(frame)).collect::<Vec<_>>();
            prop_assert_eq!(said(&all), said(&blocks));
            prop_assert!(all.iter().all(|(_, frame)| frame.len() <= BLOCK_BYTES_MAX));
            prop_assert!(all.windows(2).all(|pair| pair[0].0.last_seq() + 1 == pair[1].0.first_seq
                && pair[0].0.due_through() == pair[1].0.due_before));
            prop_assert!(!whole || merged.settled == blocks.len());
        }
    }
}
