//! A frame: consecutive records, gaps or series descriptors in one encoded, compressed, checked piece.
//!
//! It is encoded once: the same bytes stand in the buffer and on the wire and are decoded once, by the relay.
//! A fixed little-endian header is readable without decoding the payload; the CRC covers all but itself.
//! Samples are kept in groups that share their times; within a group, values stand series by series. Where groups repeat
//! the same series, as in a block that was merged from several, the payload has them folded: format version 2.
//!
//! Invariant: `decode(encode(x)) == x`, bit for bit, and no input makes `decode` allocate more than its limits.

use crate::clock::Now;
use crate::gap::Gap;
use crate::id::Epoch;
use crate::limits;
use crate::metric::{InvalidSeries, Series};
use crate::wire::columns;

/// The header's length.
pub const HEADER_BYTES: usize = 80;

const MAGIC: [u8; 4] = *b"SATB";
/// Most frames.
const VERSION: u8 = 1;
/// Samples whose groups are folded.
const VERSION_FOLDED: u8 = 2;
const CODEC_RAW: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 3;
const CRC_AT: std::ops::Range<usize> = 12..16;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Samples.
    Samples = 1,
    /// Gaps.
    Gaps = 2,
    /// Descriptors of series: `first_seq` is the first series' number, `count` how many.
    Series = 3,
}

/// Whether the wall clock was synchronised when the frame was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClockQuality {
    /// Nobody could say.
    Unknown = 0,
    /// The kernel says that it is synchronised.
    Synchronised = 1,
    /// The kernel says that it is not.
    Unsynchronised = 2,
}

/// What can be known of a frame without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Samples, gaps or series.
    pub kind: FrameKind,
    /// How far to trust `made.wall_ms`.
    pub quality: ClockQuality,
    /// Whose numbers these are.
    pub epoch: Epoch,
    /// The first record's number.
    pub first_seq: u64,
    /// How many records.
    pub count: u32,
    /// How many due samples these records account for.
    pub due: u64,
    /// How many the epoch had accounted for before them.
    pub due_before: u64,
    /// When the frame was made.
    pub made: Now,
}

impl Header {
    /// The last record's number.
    #[must_use]
    pub fn last_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.count)).saturating_sub(1)
    }

    /// Samples due in the epoch up to the end of this frame.
    #[must_use]
    pub fn due_through(&self) -> u64 {
        self.due_before.saturating_add(self.due)
    }
}

/// Samples that share their times: of one poll, or of several polls of the same series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Group {
    /// Series numbers, strictly ascending.
    pub series: Vec<u32>,
    /// Milliseconds since 1970 UTC, one for each poll.
    pub times_ms: Vec<i64>,
    /// `series.len() * times_ms.len()` values, series by series.
    pub values: Vec<f64>,
}

/// What a frame holds, decoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Samples; the n-th in group, series, time order has number `first_seq + n`.
    Samples(Vec<Group>),
    /// Gaps; the n-th has number `first_seq + n`.
    Gaps(Vec<Gap>),
    /// Descriptors; the n-th describes series `first_seq + n`.
    Series(Vec<Series>),
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    /// Shorter than its header, or than the header says.
    #[error("{have} bytes where {want} are said")]
    Length {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be.
        want: usize,
    },
    /// Longer than a frame may be.
    #[error("{0} bytes, more than {max}", max = limits::BLOCK_BYTES_MAX)]
    TooLong(usize),
    /// Not a frame, or of a version that this program does not know.
    #[error("not a frame that this version reads: {0}")]
    Unknown(&'static str),
    /// The checksum says that bytes changed.
    #[error("checksum differs: the bytes changed on the way or on disk")]
    Checksum,
    /// The payload does not decompress within its limit.
    #[error("payload does not decompress within {max} bytes", max = limits::BLOCK_DECODED_BYTES_MAX)]
    Compression,
    /// The payload decompresses and is no column set.
    #[error("payload is malformed: {0}")]
    Payload(&'static str),
    /// A descriptor breaks a rule.
    #[error("series {number}: {source}")]
    Series {
        /// The series' number.
        number: u64,
        /// What is wrong with it.
        source: InvalidSeries,
    },
}

/// What only the maker of a frame knows; the rest of the header follows from the body.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Whose numbers these are.
    pub epoch: Epoch,
    /// The first record's number.
    pub first_seq: u64,
    /// How many due samples the epoch had accounted for before.
    pub due_before: u64,
    /// When.
    pub made: Now,
    /// How far to trust the wall clock.
    pub quality: ClockQuality,
}

/// Writes frames; holds what is worth reusing between them.
pub struct Encoder {
    compressor: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Default for Encoder {
    fn default() -> Self {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("level 3 exists in every zstd");
        Self { compressor }
    }
}

impl Encoder {
    /// One frame. It may be longer than `BLOCK_BYTES_MAX`: then the caller makes several of the body's parts.
    pub fn encode(&mut self, stamp: Stamp, body: &Body) -> Vec<u8> {
        let mut version = VERSION;
        let (kind, count, due, payload) = match body {
            Body::Samples(groups) => {
                let count: usize = groups.iter().map(|g| g.values.len()).sum();
                let folded = columns::encode_folded(groups);
                version = if folded.is_some() { VERSION_FOLDED } else { VERSION };
                (FrameKind::Samples, count, count as u64, folded.unwrap_or_else(|| columns::encode(groups)))
            }
            Body::Gaps(gaps) => {
                let due = gaps.iter().map(Gap::due).fold(0, u64::saturating_add);
                (FrameKind::Gaps, gaps.len(), due, to_postcard(gaps))
            }
            Body::Series(series) => (FrameKind::Series, series.len(), 0, to_postcard(series)),
        };
        let count = u32::try_from(count).expect("the caller splits bodies long before four billion records");
        let compressed = self.compressor.compress(&payload).unwrap_or_default();
        let (codec, payload) = if compressed.is_empty() || compressed.len() >= payload.len() {
            (CODEC_RAW, payload)
        } else {
            (CODEC_ZSTD, compressed)
        };

        let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
        frame.extend_from_slice(&MAGIC);
        frame.extend_from_slice(&[version, kind as u8, codec, stamp.quality as u8]);
        frame.extend_from_slice(&u32::try_from(payload.len()).expect("payloads are small").to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&stamp.epoch.0.to_le_bytes());
        frame.extend_from_slice(&stamp.first_seq.to_le_bytes());
        frame.extend_from_slice(&count.to_le_bytes());
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(&due.to_le_bytes());
        frame.extend_from_slice(&stamp.due_before.to_le_bytes());
        frame.extend_from_slice(&stamp.made.wall_ms.to_le_bytes());
        frame.extend_from_slice(&stamp.made.mono_ms.to_le_bytes());
        debug_assert_eq!(frame.len(), HEADER_BYTES);
        frame.extend_from_slice(&payload);
        let crc = checksum(&frame);
        frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        frame
    }
}

fn to_postcard<T: serde::Serialize>(items: &T) -> Vec<u8> {
    postcard::to_stdvec(items).expect("plain values always serialise")
}

fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..CRC_AT.start]);
    hasher.update(&frame[CRC_AT.end..]);
    hasher.finalize()
}

fn field<const N: usize>(frame: &[u8], at: usize) -> [u8; N] {
    frame[at..at + N].try_into().expect("the header's length was checked")
}

/// Reads the header of a frame whose bytes are whole; the checksum is verified.
///
/// # Errors
/// Says why the bytes are not a frame.
pub fn header(frame: &[u8]) -> Result<Header, InvalidFrame> {
    if frame.len() < HEADER_BYTES {
        return Err(InvalidFrame::Length { have: frame.len(), want: HEADER_BYTES });
    }
    if frame.len() > limits::BLOCK_BYTES_MAX {
        return Err(InvalidFrame::TooLong(frame.len()));
    }
    if frame[..4] != MAGIC {
        return Err(InvalidFrame::Unknown("wrong magic"));
    }
    if !matches!(frame[4], VERSION | VERSION_FOLDED) {
        return Err(InvalidFrame::Unknown("another format version"));
    }
    let want = HEADER_BYTES + u32::from_le_bytes(field(frame, 8)) as usize;
    if frame.len() != want {
        return Err(InvalidFrame::Length { have: frame.len(), want });
    }
    if checksum(frame) != u32::from_le_bytes(field(frame, CRC_AT.start)) {
        return Err(InvalidFrame::Checksum);
    }
    let kind = match frame[5] {
        1 => FrameKind::Samples,
        2 => FrameKind::Gaps,
        3 => FrameKind::Series,
        _ => return Err(InvalidFrame::Unknown("another kind of frame")),
    };
    if frame[4] == VERSION_FOLDED && kind != FrameKind::Samples {
        return Err(InvalidFrame::Unknown("only samples are folded"));
    }
    let header = Header {
        kind,
        quality: match frame[7] {
            1 => ClockQuality::Synchronised,
            2 => ClockQuality::Unsynchronised,
            _ => ClockQuality::Unknown,
        },
        epoch: Epoch(u128::from_le_bytes(field(frame, 16))),
        first_seq: u64::from_le_bytes(field(frame, 32)),
        count: u32::from_le_bytes(field(frame, 40)),
        due: u64::from_le_bytes(field(frame, 48)),
        due_before: u64::from_le_bytes(field(frame, 56)),
        made: Now { wall_ms: i64::from_le_bytes(field(frame, 64)), mono_ms: u64::from_le_bytes(field(frame, 72)) },
    };
    let counted = header.count > 0 && header.count <= limits::BLOCK_RECORDS_MAX;
    let numbered = header.first_seq > 0 || kind == FrameKind::Series;
    if !counted || !numbered || header.first_seq.checked_add(u64::from(header.count)).is_none() {
        return Err(InvalidFrame::Payload("record numbers out of range"));
    }
    if header.due_before.checked_add(header.due).is_none() {
        return Err(InvalidFrame::Payload("due count out of range"));
    }
    Ok(header)
}

/// The length of the frame that these bytes begin with, should they begin with one: for scanning damaged files.
#[must_use]
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < HEADER_BYTES || bytes[..4] != MAGIC {
        return None;
    }
    let len = HEADER_BYTES + u32::from_le_bytes(field(bytes, 8)) as usize;
    (len <= limits::BLOCK_BYTES_MAX && len <= bytes.len()).then_some(len)
}

/// Reads frames; holds what is worth reusing between them.
pub struct Decoder {
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self { decompressor: zstd::bulk::Decompressor::new().expect("zstd without a dictionary always starts") }
    }
}

impl Decoder {
    /// One frame, whole.
    ///
    /// # Errors
    /// Says why the bytes are not a frame.
    pub fn decode(&mut self, frame: &[u8]) -> Result<(Header, Body), InvalidFrame> {
        let header = header(frame)?;
        let raw = &frame[HEADER_BYTES..];
        let decompressed;
        let payload = match frame[6] {
            CODEC_RAW => raw,
            CODEC_ZSTD => {
                decompressed = self
                    .decompressor
                    .decompress(raw, limits::BLOCK_DECODED_BYTES_MAX)
                    .map_err(|_| InvalidFrame::Compression)?;
                decompressed.as_slice()
            }
            _ => return Err(InvalidFrame::Unknown("another codec")),
        };
        let body = match header.kind {
            FrameKind::Samples if frame[4] == VERSION_FOLDED => {
                Body::Samples(columns::decode_folded(payload, header.count as usize)?)
            }
            FrameKind::Samples => Body::Samples(columns::decode(payload, header.count as usize)?),
            FrameKind::Gaps => Body::Gaps(gaps(payload, &header)?),
            FrameKind::Series => Body::Series(series(payload, &header)?),
        };
        if matches!(body, Body::Samples(_)) && header.due != u64::from(header.count) {
            return Err(InvalidFrame::Payload("due count differs from the samples"));
        }
        Ok((header, body))
    }
}

fn gaps(payload: &[u8], header: &Header) -> Result<Vec<Gap>, InvalidFrame> {
    if header.count > limits::BLOCK_GAPS_MAX {
        return Err(InvalidFrame::Payload("more gaps than a block may hold"));
    }
    let gaps: Vec<Gap> = postcard::from_bytes(payload).map_err(|_| InvalidFrame::Payload("gaps"))?;
    if gaps.len() != header.count as usize {
        return Err(InvalidFrame::Payload("count differs from the gaps"));
    }
    if gaps.iter().map(Gap::due).try_fold(0u64, u64::checked_add) != Some(header.due) {
        return Err(InvalidFrame::Payload("due count differs from the gaps"));
    }
    let sane = |gap: &Gap| {
        gap.from_ms <= gap.to_ms
            && gap.detail.len() <= limits::DETAIL_BYTES_MAX
            && gap.metric.as_ref().is_none_or(|metric| metric.len() <= limits::NAME_BYTES_MAX)
            && gap.lost.is_none_or(|lost| lost.first_seq > 0 && lost.first_seq <= lost.last_seq)
    };
    if !gaps.iter().all(sane) {
        return Err(InvalidFrame::Payload("a gap breaks its limits"));
    }
    Ok(gaps)
}

fn series(payload: &[u8], header: &Header) -> Result<Vec<Series>, InvalidFrame> {
    let series: Vec<Series> = postcard::from_bytes(payload).map_err(|_| InvalidFrame::Payload("series"))?;
    if series.len() != header.count as usize {
        return Err(InvalidFrame::Payload("count differs from the series"));
    }
    if header.last_seq() >= limits::SERIES_PER_EPOCH_MAX as u64 {
        return Err(InvalidFrame::Payload("series number out of range"));
    }
    for (number, one) in (header.first_seq..).zip(&series) {
        one.check().map_err(|source| InvalidFrame::Series { number, source })?;
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gap::Reason;

    fn stamp() -> Stamp {
        Stamp {
            epoch: Epoch(0xfeed),
            first_seq: 41,
            due_before: 7,
            made: Now { wall_ms: 1_790_000_000_000, mono_ms: 123_456 },
            quality: ClockQuality::Synchronised,
        }
    }

    fn group(series: Vec<u32>, times_ms: Vec<i64>, values: Vec<f64>) -> Group {
        Group { series, times_ms, values }
    }

    fn bits(groups: &[Group]) -> Vec<u64> {
        groups.iter().flat_map(|g| g.values.iter().map(|v| v.to_bits())).collect()
    }

    #[test]
    fn samples_come_back_bit_for_bit() {
        let odd = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, 0.1, 1e300, -273.15, 9e15, 12_345.678_901];
        let groups = vec![
            group((0..10).collect(), vec![1_790_000_000_123], odd.to_vec()),
            group(vec![3, 900, 901], vec![5, 1_005, 2_004], vec![1.0, 2.0, 3.0, 7.5, 7.5, 7.5, 1e-7, 2e-7, 3e-7]),
        ];
        let frame = Encoder::default().encode(stamp(), &Body::Samples(groups.clone()));
        let (header, body) = Decoder::default().decode(&frame).unwrap();
        assert_eq!((header.first_seq, header.last_seq(), header.due_through()), (41, 59, 26));
        let Body::Samples(back) = body else { panic!("samples") };
        assert_eq!(bits(&back), bits(&groups));
        assert_eq!(back[1].series, groups[1].series);
        assert_eq!(back[1].times_ms, groups[1].times_ms);
    }

    #[test]
    fn gaps_and_series_come_back() {
        let gap = Gap {
            device: Some("ups".parse().unwrap()),
            metric: None,
            from_ms: 1,
            to_ms: 2,
            count: 12,
            reason: Reason::Timeout,
            detail: "no answer in 5 s".into(),
            lost: None,
        };
        let series = Series {
            device: "ups".parse().unwrap(),
            name: "x".into(),
            kind: crate::metric::Kind::Gauge,
            unit: "volts".into(),
            labels: vec![("a".into(), "b".into())],
        };
        for body in [Body::Gaps(vec![gap]), Body::Series(vec![series])] {
            let frame = Encoder::default().encode(stamp(), &body);
            assert_eq!(Decoder::default().decode(&frame).unwrap().1, body);
        }
    }

    #[test]
    fn more_gaps_than_a_block_may_hold_are_refused() {
        let gap = Gap {
            device: None,
            metric: None,
            from_ms: 1,
            to_ms: 2,
            count: 1,
            reason: Reason::Late,
            detail: String::new(),
            lost: None,
        };
        let most = limits::BLOCK_GAPS_MAX as usize;
        let decoded = |gaps: usize| {
            Decoder::default().decode(&Encoder::default().encode(stamp(), &Body::Gaps(vec![gap.clone(); gaps])))
        };
        assert!(decoded(most).is_ok());
        assert_eq!(decoded(most + 1), Err(InvalidFrame::Payload("more gaps than a block may hold")));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let frame = Encoder::default().encode(stamp(), &Body::Samples(vec![group(vec![1], vec![9], vec![2.5])]));
        for bit in 0..frame.len() * 8 {
            let mut bad = frame.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Decoder::default().decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..frame.len() {
            assert!(Decoder::default().decode(&frame[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_frame_that_decompresses_without_end_is_refused() {
        let bomb = zstd::bulk::compress(&vec![0u8; 64 << 20], 3).unwrap();
        let mut frame = Encoder::default().encode(stamp(), &Body::Samples(vec![group(vec![1], vec![9], vec![2.5])]));
        frame.truncate(HEADER_BYTES);
        frame[6] = CODEC_ZSTD;
        frame[8..12].copy_from_slice(&u32::try_from(bomb.len()).unwrap().to_le_bytes());
        frame.extend_from_slice(&bomb);
        let crc = checksum(&frame);
        frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Decoder::default().decode(&frame).unwrap_err(), InvalidFrame::Compression);
    }

    #[test]
    fn polls_of_the_same_series_come_back_in_the_order_in_which_they_came() {
        let poll = |series: [u32; 3], at: i64, n: f64| group(series.to_vec(), vec![at], vec![n, n + 0.5, -0.0]);
        let groups = vec![
            poll([0, 1, 2], 10, 1.0),
            poll([7, 8, 9], 11, f64::NAN),
            poll([0, 1, 2], 20, 2.0),
            group(vec![0, 1, 2], vec![30, 40], vec![3.0, 4.0, 3.5, 4.5, -0.0, 0.0]),
            poll([7, 8, 9], 9, 6.0),
        ];
        let frame = Encoder::default().encode(stamp(), &Body::Samples(groups.clone()));
        assert_eq!(frame[4], VERSION_FOLDED);
        let Body::Samples(back) = Decoder::default().decode(&frame).unwrap().1 else { panic!("samples") };
        assert_eq!(bits(&back), bits(&groups));
        for (back, group) in back.iter().zip(&groups) {
            assert_eq!((&back.series, &back.times_ms), (&group.series, &group.times_ms));
        }
    }

    #[test]
    fn folding_is_of_samples_alone() {
        let mut frame = Encoder::default().encode(stamp(), &Body::Gaps(vec![]));
        frame[4] = VERSION_FOLDED;
        let crc = checksum(&frame);
        frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(header(&frame).unwrap_err(), InvalidFrame::Unknown("only samples are folded"));
    }

    proptest! {
        #[test]
        fn any_polls_come_back_folded(
            polls in prop::collection::vec((0usize..3, prop::collection::vec(any::<i64>(), 1..3)), 1..12),
            seed in prop::collection::vec(any::<f64>(), 1..60),
        ) {
            let sets = [vec![0, 1, 2], vec![3], vec![1, 5, 6, 7]];
            let mut values = seed.iter().copied().cycle();
            let groups: Vec<Group> = polls
                .into_iter()
                .map(|(set, times_ms)| {
                    let values = values.by_ref().take(sets[set].len() * times_ms.len()).collect();
                    group(sets[set].clone(), times_ms, values)
                })
                .collect();
            let frame = Encoder::default().encode(stamp(), &Body::Samples(groups.clone()));
            let Body::Samples(back) = Decoder::default().decode(&frame).unwrap().1 else { panic!("samples") };
            prop_assert_eq!(bits(&back), bits(&groups));
            prop_assert_eq!(back.len(), groups.len());
            for (back, group) in back.iter().zip(&groups) {
                prop_assert_eq!((&back.series, &back.times_ms), (&group.series, &group.times_ms));
            }
        }

        #[test]
        fn any_samples_come_back(
            series in prop::collection::btree_set(0u32..2_000, 1..40),
            times_ms in prop::collection::vec(any::<i64>(), 1..6),
            seed in prop::collection::vec(any::<f64>(), 1..240),
        ) {
            let series: Vec<u32> = series.into_iter().collect();
            let values: Vec<f64> = seed.iter().copied().cycle().take(series.len() * times_ms.len()).collect();
            let groups = vec![group(series, times_ms, values)];
            let frame = Encoder::default().encode(stamp(), &Body::Samples(groups.clone()));
            if frame.len() <= limits::BLOCK_BYTES_MAX {
                let (_, body) = Decoder::default().decode(&frame).unwrap();
                let Body::Samples(back) = body else { panic!("samples") };
                prop_assert_eq!(bits(&back), bits(&groups));
                prop_assert_eq!(&back[0].series, &groups[0].series);
                prop_assert_eq!(&back[0].times_ms, &groups[0].times_ms);
            }
        }

        #[test]
        fn no_payload_panics(version in 1u8..3, kind in 1u8..4, payload in prop::collection::vec(any::<u8>(), 0..300), count in 1u32..500) {
            let mut frame = Encoder::default().encode(stamp(), &Body::Series(vec![]));
            frame.truncate(HEADER_BYTES);
            frame[4] = version;
            frame[5] = kind;
            frame[6] = CODEC_RAW;
            frame[8..12].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
            frame[40..44].copy_from_slice(&count.to_le_bytes());
            frame[48..56].copy_from_slice(&u64::from(count).to_le_bytes());
            frame.extend_from_slice(&payload);
            let crc = checksum(&frame);
            frame[CRC_AT].copy_from_slice(&crc.to_le_bytes());
            match Decoder::default().decode(&frame) {
                Ok(_) | Err(_) => {}
            }
        }
    }
}
