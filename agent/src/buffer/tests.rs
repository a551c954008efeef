//! What the buffer promises, tried on real directories: order, refusals, eviction, kill -9, damage, a full disk.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use proptest::prelude::*;
use satellite_shared::clock::{ManualClock, SystemClock};
use satellite_shared::gap::Gap;
use satellite_shared::metric::{Kind, Series};
use satellite_shared::wire::block::{self, Body, ClockQuality, Decoder, Encoder, Group, Stamp};

use super::*;

const NOW_MS: i64 = 1_790_000_000_000;

/// Makes frames as a recorder would.
pub(super) struct Writer {
    pub(super) epoch: Epoch,
    pub(super) clock: Arc<ManualClock>,
    pub(super) seq: u64,
    pub(super) due: u64,
    pub(super) series: u64,
    noise: u64,
    encoder: Encoder,
}

impl Writer {
    pub(super) fn new(epoch: Epoch, clock: Arc<ManualClock>) -> Self {
        Self { epoch, clock, seq: 0, due: 0, series: 0, noise: 1, encoder: Encoder::default() }
    }

    fn stamp(&self) -> Stamp {
        let quality = ClockQuality::Synchronised;
        Stamp { epoch: self.epoch, first_seq: self.seq + 1, due_before: self.due, made: self.clock.now(), quality }
    }

    /// A block of so many samples that do not compress.
    pub(super) fn samples(&mut self, count: usize) -> Vec<u8> {
        let values = (0..count).map(|_| {
            self.noise = self.noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from_bits(self.noise | 1)
        });
        let group = Group {
            series: (0..u32::try_from(count).unwrap()).collect(),
            times_ms: vec![self.clock.now().wall_ms],
            values: values.collect(),
        };
        let frame = self.encoder.encode(self.stamp(), &Body::Samples(vec![group]));
        self.seq += count as u64;
        self.due += count as u64;
        frame
    }

    /// A block of one gap that stands for so many samples.
    fn gap(&mut self, count: u64, lost: Option<Lost>) -> Vec<u8> {
        let gap = Gap {
            device: None,
            metric: None,
            from_ms: NOW_MS,
            to_ms: NOW_MS,
            count,
            reason: Reason::Timeout,
            detail: String::new(),
            lost,
        };
        let due = gap.due();
        let frame = self.encoder.encode(self.stamp(), &Body::Gaps(vec![gap]));
        self.seq += 1;
        self.due += due;
        frame
    }

    /// Descriptors of so many further series.
    pub(super) fn descriptors(&mut self, count: u64) -> Vec<u8> {
        let series = (0..count).map(|n| Series {
            device: "host".parse().unwrap(),
            name: format!("series_{}", self.series + n),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: vec![],
        });
        let body = Body::Series(series.collect());
        let frame = self.encoder.encode(Stamp { first_seq: self.series, due_before: 0, ..self.stamp() }, &body);
        self.series += count;
        frame
    }
}

pub(super) fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(NOW_MS, 1_000))
}

/// Bounds that nothing but `bytes_max` ever touches.
pub(super) fn settings(root: &Path, bytes_max: u64) -> BufferSettings {
    BufferSettings { bytes_max, free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(root.join("buffer")) }
}

fn open(root: &Path, bytes_max: u64) -> (Buffer, Opened, Writer) {
    let clock = clock();
    let (buffer, opened) = Buffer::open(settings(root, bytes_max), clock.clone()).unwrap();
    let writer = Writer::new(opened.epoch, clock);
    (buffer, opened, writer)
}

fn blocks(blocks: Vec<Vec<u8>>) -> Commit {
    Commit { blocks, ..Commit::default() }
}

async fn all(buffer: &Buffer) -> Vec<StoredBlock> {
    buffer.read(Place::default(), Place { opening: u32::MAX, seq: 0 }, usize::MAX).await.unwrap()
}

fn ranges(pairs: &[(u64, u64)]) -> Ranges {
    pairs.iter().copied().collect()
}

#[tokio::test]
async fn what_was_committed_is_read_back_in_order_by_the_next_opening() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 1 << 20);
    assert!(opened.streams.is_empty() && opened.losses.is_empty() && opened.notes.is_none());
    let series = writer.descriptors(20);
    let frames: Vec<Vec<u8>> = (1..=20).map(|count| writer.samples(count)).collect();
    let notes = vec![7u8; 5_000];
    let commit = Commit {
        series: vec![series.clone()],
        blocks: frames[..15].to_vec(),
        notes: notes.clone(),
        losses_explained: 0,
    };
    assert_eq!(buffer.commit(commit).await, Ok(Committed { losses: vec![], degraded: false }));
    buffer.commit(blocks(frames[15..].to_vec())).await.unwrap();
    let state = buffer.state().borrow().clone();
    assert_eq!((state.last, state.last_seq), (Place { opening: 1, seq: 191 }, 210));
    assert_eq!((state.due, state.waiting, state.records), (210, 210, 210));
    assert_eq!((state.health, state.oldest_ms), (Health::Healthy, Some(NOW_MS)));
    let first = opened.epoch;
    buffer.close();

    let (buffer, opened, _) = open(root.path(), 1 << 20);
    assert_ne!(opened.epoch, first);
    assert_eq!(opened.notes, Some(notes));
    assert!(opened.losses.is_empty());
    assert_eq!(opened.streams.len(), 1);
    let stream = &opened.streams[0];
    assert_eq!((stream.epoch, stream.first_seq, stream.last_seq, stream.opened_ms), (first, 1, 210, NOW_MS));
    assert!(!stream.boot_id.is_empty());
    let back: Vec<Vec<u8>> = all(&buffer).await.into_iter().map(|block| block.frame.to_vec()).collect();
    assert_eq!(back, frames);
    assert_eq!(buffer.series(1).await.unwrap(), [Bytes::from(series)]);
    assert!(buffer.series(2).await.unwrap().is_empty());
    let state = buffer.state().borrow().clone();
    assert_eq!((state.last, state.last_seq, state.waiting), (Place { opening: 2, seq: 0 }, 0, 210));
    buffer.close();
}

/// Commits so many polls of a thousand series, as a host has them: one block each.
async fn commit_polls(buffer: &Buffer, writer: &mut Writer, polls: u32) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for _ in 0..polls {
        writer.clock.advance(10_000);
        let poll = u32::try_from(writer.seq / 1_000).unwrap();
        let value = |n: u32| {
            let noise = (poll.wrapping_mul(7_919) + n * 104_729).wrapping_mul(2_654_435_761) >> 16;
            f64::from(match n % 3 {
                0 => n,
                1 => n * 1_000 + poll * (n % 50) * 40 + noise % 32,
                _ => noise,
            })
        };
        let group = Group {
            series: (0..1_000).collect(),
            times_ms: vec![writer.clock.now().wall_ms],
            values: (0..1_000).map(value).collect(),
        };
        let frame = writer.encoder.encode(writer.stamp(), &Body::Samples(vec![group]));
        (writer.seq, writer.due) = (writer.seq + 1_000, writer.due + 1_000);
        buffer.commit(blocks(vec![frame.clone()])).await.unwrap();
        frames.push(frame);
    }
    frames
}

fn records_of<'a>(frames: impl Iterator<Item = &'a [u8]>) -> Vec<(u64, Said)> {
    frames.flat_map(records).collect()
}

#[tokio::test]
async fn a_backlog_that_nobody_read_becomes_few_large_blocks_that_say_the_same() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 64 << 20);
    let frames = commit_polls(&buffer, &mut writer, 120).await;
    let state = buffer.state().borrow().clone();
    let small: usize = frames.iter().map(Vec::len).sum();
    assert_eq!((state.records, state.waiting, state.last_seq), (120_000, 120_000, 120_000));
    assert!(state.payload_bytes * 10 < small as u64 * 9, "{} bytes of {small} are held", state.payload_bytes);
    buffer.close();

    // As the next opening counts and reads it.
    let (buffer, next, _) = open(root.path(), 64 << 20);
    assert!(next.losses.is_empty());
    assert_eq!(
        (next.streams[0].epoch, next.streams[0].first_seq, next.streams[0].last_seq),
        (opened.epoch, 1, 120_000)
    );
    let back = all(&buffer).await;
    assert!(back.len() * 3 < frames.len(), "{} blocks", back.len());
    assert!(back.iter().all(|block| block.frame.len() <= satellite_shared::limits::BLOCK_BYTES_MAX));
    let said = records_of(back.iter().map(|block| &block.frame[..]));
    assert_eq!(said, records_of(frames.iter().map(Vec::as_slice)));
    buffer.forget(opened.epoch, &ranges(&[(1, 120_000)])).await.unwrap();
    assert_eq!(buffer.state().borrow().payload_bytes, 0);
    buffer.close();
}

#[tokio::test]
async fn a_block_that_was_read_stays_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 64 << 20);
    let mut frames = commit_polls(&buffer, &mut writer, 7).await;
    // The first five are given to somebody; the other two are not.
    let below = Place { opening: 1, seq: 4_002 };
    let given = buffer.read(Place::default(), below, usize::MAX).await.unwrap();
    frames.extend(commit_polls(&buffer, &mut writer, 60).await);
    let back = all(&buffer).await;
    assert!(back.len() * 2 < frames.len(), "{} blocks", back.len());
    for (block, frame) in given.iter().zip(&back) {
        assert_eq!(block, frame);
    }
    assert_eq!(given.iter().map(|block| block.place.seq).max(), Some(4_001));
    assert_eq!(back[5].place.seq, 5_001);
    let said = records_of(back.iter().map(|block| &block.frame[..]));
    assert_eq!(said, records_of(frames.iter().map(Vec::as_slice)));
    buffer.close();
}

#[tokio::test]
async fn no_block_reaches_over_the_moment_at_which_descriptors_were_read() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 64 << 20);
    commit_polls(&buffer, &mut writer, 4).await;
    buffer.series(1).await.unwrap();
    commit_polls(&buffer, &mut writer, 40).await;
    let back = all(&buffer).await;
    let headers = back.iter().map(|block| block::header(&block.frame).unwrap());
    assert!(headers.clone().all(|header| header.last_seq() <= 4_000 || header.first_seq > 4_000));
    assert!(back.len() < 30, "{} blocks", back.len());
    buffer.close();
}

#[tokio::test]
async fn reading_keeps_to_its_bounds_but_gives_at_least_one_block() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 1 << 20);
    let frames: Vec<Vec<u8>> = (0..6).map(|_| writer.samples(100)).collect();
    buffer.commit(blocks(frames.clone())).await.unwrap();
    let place = |seq| Place { opening: 1, seq };
    let seqs = async |from, below, bytes| -> Vec<u64> {
        buffer.read(from, below, bytes).await.unwrap().iter().map(|block| block.place.seq).collect()
    };
    assert_eq!(seqs(place(1), place(301), usize::MAX).await, [1, 101, 201]);
    assert_eq!(seqs(place(2), place(302), usize::MAX).await, [101, 201, 301]);
    assert_eq!(seqs(place(1), place(9_999), 1).await, [1]);
    assert_eq!(seqs(place(1), place(9_999), frames[0].len() + frames[1].len()).await, [1, 101]);
    assert_eq!(seqs(place(301), place(301), usize::MAX).await, [0u64; 0]);
    assert_eq!(seqs(place(301), place(1), usize::MAX).await, [0u64; 0]);
    buffer.close();
}

#[tokio::test]
async fn only_what_lies_wholly_in_the_ranges_is_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 1 << 20);
    let series = vec![writer.descriptors(3)];
    let frames: Vec<Vec<u8>> = (0..5).map(|_| writer.samples(10)).collect();
    buffer.commit(Commit { series, blocks: frames, ..Commit::default() }).await.unwrap();
    buffer.forget(opened.epoch, &ranges(&[(1, 9), (11, 25), (41, 90)])).await.unwrap();
    let left: Vec<u64> = all(&buffer).await.iter().map(|block| block.place.seq).collect();
    assert_eq!(left, [1, 21, 31]);
    assert_eq!(buffer.state().borrow().waiting, 30);
    buffer.forget(Epoch(1), &ranges(&[(1, u64::MAX)])).await.unwrap();
    assert_eq!(all(&buffer).await.len(), 3);
    buffer.close();

    let (buffer, second, _) = open(root.path(), 1 << 20);
    assert_eq!(all(&buffer).await.len(), 3);
    assert_eq!(buffer.streams().await[0].stream.first_seq, 1);
    assert_eq!(buffer.series(1).await.unwrap().len(), 1);
    buffer.forget(opened.epoch, &ranges(&[(1, u64::MAX)])).await.unwrap();
    assert!(buffer.streams().await.is_empty());
    assert!(buffer.series(1).await.unwrap().is_empty(), "a finished opening leaves nothing");
    buffer.close();

    let (buffer, third, _) = open(root.path(), 1 << 20);
    assert!(third.streams.is_empty() && third.losses.is_empty());
    assert_ne!(second.epoch, third.epoch);
    assert_eq!(buffer.state().borrow().last.opening, 3, "openings count up though nothing is left of them");
    buffer.close();
}

#[tokio::test]
async fn a_commit_that_breaks_a_rule_stores_nothing_of_itself() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 1 << 20);
    buffer.commit(blocks(vec![writer.samples(5)])).await.unwrap();
    let good = writer.samples(5);
    let mut stranger = Writer::new(Epoch(5), clock());
    (stranger.seq, stranger.due) = (10, 10);
    let mut flipped = good.clone();
    flipped[90] ^= 1;
    let mut twisted = Writer::new(writer.epoch, clock());
    (twisted.seq, twisted.due) = (10, 3);
    let series_late = Writer { series: 4, ..Writer::new(writer.epoch, clock()) }.descriptors(1);
    let descriptors = Writer::new(writer.epoch, clock()).descriptors(1);
    let cases = [
        ("of another epoch", blocks(vec![good.clone(), stranger.samples(1)])),
        ("with a flipped bit", blocks(vec![flipped])),
        ("out of sequence", blocks(vec![good.clone(), good.clone()])),
        ("with another due count", blocks(vec![good.clone(), twisted.samples(1)])),
        ("that is a series", blocks(vec![good.clone(), descriptors])),
        ("too long", blocks(vec![vec![0; 7_001]])),
        ("series out of order", Commit { series: vec![series_late], ..Commit::default() }),
        ("samples as series", Commit { series: vec![good.clone()], ..Commit::default() }),
        ("explaining what is no loss", Commit { losses_explained: 1, ..blocks(vec![good.clone()]) }),
        ("endless notes", Commit { notes: vec![0; (1 << 20) + 1], ..blocks(vec![good.clone()]) }),
    ];
    for (what, commit) in cases {
        assert!(matches!(buffer.commit(commit).await, Err(CommitError::Refused { .. })), "{what}");
        assert_eq!(buffer.state().borrow().last_seq, 5, "{what}");
    }
    buffer.commit(blocks(vec![good])).await.unwrap();
    assert_eq!(all(&buffer).await.len(), 2);
    buffer.close();
}

#[tokio::test]
async fn what_is_evicted_stays_a_loss_until_it_is_explained() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 5_000);
    let elsewhere = Lost { epoch: Epoch(3), first_seq: 1, last_seq: 9, due_through: 9 };
    let gaps = vec![writer.gap(40, None), writer.gap(9, Some(elsewhere))];
    buffer.commit(blocks(gaps)).await.unwrap();
    buffer.commit(blocks(vec![writer.samples(300)])).await.unwrap();
    writer.clock.advance(1_000);
    let committed = buffer.commit(blocks(vec![writer.samples(300)])).await.unwrap();
    let [loss, again] = committed.losses.as_slice() else { panic!("two losses: {committed:?}") };
    assert_eq!(loss.lost, Lost { epoch: opened.epoch, first_seq: 1, last_seq: 302, due_through: 340 });
    assert_eq!((loss.count, loss.from_ms, loss.to_ms, loss.reason), (340, NOW_MS, NOW_MS, Reason::Evicted));
    assert_eq!((again.lost, again.count, again.reason), (elsewhere, 9, Reason::Timeout), "its gap went unsent");
    assert_eq!(buffer.state().borrow().evicted_total, 340);
    buffer.close();

    let (buffer, opened, mut writer) = open(root.path(), 5_000);
    assert_eq!(opened.losses, committed.losses, "still unexplained");
    let explained = vec![writer.gap(340, Some(loss.lost)), writer.gap(9, Some(again.lost))];
    let commit = Commit { losses_explained: 2, ..blocks(explained) };
    assert_eq!(buffer.commit(commit).await.unwrap().losses, []);
    buffer.close();
    let (buffer, opened, _) = open(root.path(), 5_000);
    assert_eq!(opened.losses, []);
    buffer.close();
}

#[tokio::test]
async fn losses_that_continue_each_other_grow_into_one_until_they_are_explained() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 5_000);
    for _ in 0..40 {
        buffer.commit(blocks(vec![writer.samples(100)])).await.unwrap();
    }
    let committed = buffer.commit(Commit::default()).await.unwrap();
    let [loss] = committed.losses.as_slice() else { panic!("one loss of {}", committed.losses.len()) };
    assert_eq!((loss.lost.epoch, loss.lost.first_seq, loss.count), (opened.epoch, 1, loss.lost.last_seq));
    buffer.close();
    let (buffer, opened, _) = open(root.path(), 5_000);
    assert_eq!(opened.losses, committed.losses);
    buffer.close();
}

#[tokio::test]
async fn old_blocks_go_by_age() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 1 << 20);
    buffer.commit(blocks(vec![writer.samples(3)])).await.unwrap();
    writer.clock.advance(30 * 24 * 3_600_000);
    assert_eq!(buffer.commit(blocks(vec![writer.samples(4)])).await.unwrap().losses, []);
    writer.clock.advance(1);
    let losses = buffer.commit(blocks(vec![writer.samples(5)])).await.unwrap().losses;
    assert_eq!(losses.iter().map(|loss| loss.count).collect::<Vec<_>>(), [3]);
    assert_eq!(all(&buffer).await.len(), 2);
    buffer.close();
}

#[tokio::test]
async fn series_can_not_fill_the_buffer() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 8_000);
    let mut refused = false;
    for _ in 0..200 {
        let series = vec![writer.descriptors(20)];
        refused |= buffer.commit(Commit { series, ..Commit::default() }).await.is_err();
    }
    assert!(refused);
    assert!(buffer.series(1).await.unwrap().iter().map(Bytes::len).sum::<usize>() <= 4_000);
    buffer.close();
}

#[test]
fn a_directory_that_is_in_use_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, ..) = open(root.path(), 1 << 20);
    let error = Buffer::open(settings(root.path(), 1 << 20), clock()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }));
    assert!(error.to_string().contains("another satellite runs with this buffer"));
    buffer.close();
    open(root.path(), 1 << 20).0.close();
}

#[test]
fn a_newer_format_is_refused_and_not_touched() {
    let root = tempfile::tempdir().unwrap();
    open(root.path(), 1 << 20).0.close();
    let dir = root.path().join("buffer");
    std::fs::write(dir.join("format"), "2\n").unwrap();
    let before = std::fs::read(dir.join("db")).unwrap();
    let error = Buffer::open(settings(root.path(), 1 << 20), clock()).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error}");
    assert_eq!(std::fs::read(dir.join("db")).unwrap(), before);
    std::fs::write(dir.join("format"), "1\n").unwrap();
    open(root.path(), 1 << 20).0.close();
}

#[test]
fn a_path_that_is_no_directory_is_refused() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("buffer"), "a file").unwrap();
    let error = Buffer::open(settings(root.path(), 1 << 20), clock()).unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error}");
}

#[tokio::test]
async fn a_closed_buffer_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 1 << 20);
    buffer.clone().close();
    assert_eq!(buffer.commit(blocks(vec![writer.samples(1)])).await, Err(CommitError::Closed));
    let place = Place::default();
    assert_eq!(buffer.read(place, Place { opening: 9, seq: 0 }, 1).await, Err(ReadError::Closed));
    assert!(buffer.streams().await.is_empty());
}

#[tokio::test]
async fn every_commit_moves_the_sync_counter() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, _, mut writer) = open(root.path(), 1 << 20);
    for _ in 0..5 {
        let before = sync::count();
        buffer.commit(blocks(vec![writer.samples(1)])).await.unwrap();
        assert!(sync::count() > before, "sled's flush does not reach fdatasync in this binary");
    }
    buffer.close();
}

#[tokio::test]
async fn an_empty_buffer_gives_its_long_file_back() {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 256 << 20);
    let series = writer.descriptors(800);
    buffer.commit(Commit { series: vec![series.clone()], ..Commit::default() }).await.unwrap();
    let db = root.path().join("buffer/db");
    while std::fs::metadata(&db).unwrap().len() <= 65 << 20 {
        let frames = (0..400).map(|_| writer.samples(800)).collect();
        buffer.commit(blocks(frames)).await.unwrap();
    }
    buffer.commit(Commit { notes: b"polled until now".to_vec(), ..Commit::default() }).await.unwrap();
    let last_seq = writer.seq;
    buffer.forget(opened.epoch, &ranges(&[(1, last_seq)])).await.unwrap();
    assert!(std::fs::metadata(&db).unwrap().len() < 4 << 20);
    let state = buffer.state().borrow().clone();
    assert_eq!((state.waiting, state.last_seq, state.health), (0, last_seq, Health::Healthy));
    assert_eq!(buffer.series(1).await.unwrap(), [Bytes::from(series)]);
    buffer.commit(blocks(vec![writer.samples(3)])).await.unwrap();
    assert_eq!(buffer.streams().await[0].stream.first_seq, last_seq + 1);
    buffer.close();
    let (buffer, opened, _) = open(root.path(), 256 << 20);
    assert_eq!(opened.notes.as_deref(), Some(b"polled until now".as_slice()));
    assert_eq!((opened.streams.len(), opened.losses.len()), (1, 0));
    buffer.close();
}

/// What a model of the buffer would hold: block by first sequence, with its bytes and what it accounts for.
#[derive(Default)]
struct Model {
    held: BTreeMap<(u32, u64), (u64, usize, u64)>,
    lost: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_goes_uncounted(
        steps in prop::collection::vec((prop::collection::vec((0u8..4, 1usize..120), 0..5), 0u8..6, any::<u16>()), 1..40),
    ) {
        let root = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let bytes_max = 6_000;
            let (mut buffer, mut opened, mut writer) = open(root.path(), bytes_max);
            let (mut opening, mut model, mut pending, mut explained) = (1u32, Model::default(), 0usize, 0u64);
            let mut epochs = vec![opened.epoch];
            for (kinds, action, choice) in steps {
                let mut commit = Commit { losses_explained: pending, ..Commit::default() };
                let mut added = Vec::new();
                for (kind, count) in kinds {
                    let (seq, n) = (writer.seq + 1, count as u64);
                    let (frame, accounts) = match kind {
                        0 => (writer.gap(n, None), n),
                        1 => (writer.gap(n, Some(Lost { epoch: Epoch(1), first_seq: 1, last_seq: n, due_through: n })), n),
                        _ => (writer.samples(count), n),
                    };
                    added.push(((opening, seq), (writer.seq, frame.len(), accounts)));
                    commit.blocks.push(frame);
                }
                explained += buffer_losses(&buffer, &mut pending, commit).await;
                // The model evicts the oldest of what was there before until all fits.
                let incoming: usize = added.iter().map(|(_, (_, bytes, _))| bytes).sum();
                while model.held.values().map(|(_, bytes, _)| bytes).sum::<usize>() + incoming > bytes_max as usize {
                    let Some((_, (_, _, accounts))) = model.held.pop_first() else { break };
                    model.lost += accounts;
                }
                model.held.extend(added);
                match action {
                    0 => {
                        let epoch = epochs[usize::from(choice) % epochs.len()];
                        let number = u32::try_from(epochs.iter().position(|e| *e == epoch).unwrap() + 1).unwrap();
                        let last = u64::from(choice % 400) + 1;
                        buffer.forget(epoch, &ranges(&[(1, last)])).await.unwrap();
                        model.held.retain(|(o, _), (l, _, _)| *o != number || *l > last);
                    }
                    1 => {
                        buffer.close();
                        (buffer, opened, writer) = open(root.path(), bytes_max);
                        opening += 1;
                        pending = opened.losses.len();
                        epochs.push(opened.epoch);
                    }
                    _ => {}
                }
                let held: Vec<(u32, u64)> =
                    all(&buffer).await.iter().map(|block| (block.place.opening, block.place.seq)).collect();
                assert_eq!(held, model.held.keys().copied().collect::<Vec<_>>());
                let bytes: usize = model.held.values().map(|(_, bytes, _)| bytes).sum();
                assert_eq!(buffer.state().borrow().payload_bytes, bytes as u64);
            }
            explained += buffer_losses(&buffer, &mut pending, Commit::default()).await;
            assert_eq!(explained, model.lost);
            buffer.close();
        });
    }
}

/// Commits and gives back what the losses that are new since the last time account for.
async fn buffer_losses(buffer: &Buffer, pending: &mut usize, commit: Commit) -> u64 {
    let explained = commit.losses_explained;
    let losses = buffer.commit(commit).await.unwrap().losses;
    let new = &losses[*pending - explained..];
    *pending = losses.len();
    new.iter().map(|loss| loss.count).sum()
}

const CHILD: &str = "SATELLITE_BUFFER_TEST_DIR";

/// Not a test of its own: what the killed process of the next test runs.
#[tokio::test]
async fn a_child_that_commits_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let settings = settings(Path::new(&dir), 400_000);
    let (buffer, opened) = Buffer::open(settings, Arc::new(SystemClock)).unwrap();
    let mut writer = Writer::new(opened.epoch, clock());
    writeln!(std::io::stdout(), "epoch {}", opened.epoch).unwrap();
    for round in 0u64.. {
        let series = if round % 7 == 0 { vec![writer.descriptors(1)] } else { vec![] };
        let frames: Vec<Vec<u8>> = (0..1 + round % 5).map(|n| writer.samples(20 + n as usize)).collect();
        let notes = writer.seq.to_string().into_bytes();
        let commit = Commit { series, blocks: frames, notes, losses_explained: 0 };
        buffer.commit(commit).await.unwrap();
        writeln!(std::io::stdout(), "acked {} {}", writer.seq, writer.series).unwrap();
        if round % 4 == 3 {
            let below = writer.seq.saturating_sub(200).max(1);
            buffer.forget(opened.epoch, &ranges(&[(1, below)])).await.unwrap();
            writeln!(std::io::stdout(), "forgot {below}").unwrap();
        }
    }
}

#[tokio::test]
async fn kill_9_at_any_moment_costs_nothing_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let mut acked: BTreeMap<Epoch, (u64, u64, u64)> = BTreeMap::new();
    for round in 0..20u32 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "buffer::tests::a_child_that_commits_until_it_is_killed", "--nocapture"])
            .env(CHILD, root.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (mut epoch, mut seen) = (None, 0);
        while seen <= round * 3 {
            let line = lines.next().expect("the child says what it does");
            seen += u32::from(note_line(&line, &mut epoch, &mut acked));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            note_line(&line, &mut epoch, &mut acked);
        }
        let (buffer, opened, _) = open(root.path(), 400_000);
        assert!(opened.losses.iter().all(|loss| loss.reason == Reason::Evicted), "{:?}", opened.losses);
        check_after_kill(&buffer, &opened, epoch.unwrap(), &acked).await;
        buffer.close();
    }
}

/// Takes in what the child said; whether it was an acknowledgement.
fn note_line(line: &str, epoch: &mut Option<Epoch>, acked: &mut BTreeMap<Epoch, (u64, u64, u64)>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    // libtest writes the test's name before the first line.
    match words.as_slice() {
        [.., "epoch", text] => {
            *epoch = Some(text.parse().unwrap());
            acked.insert(epoch.unwrap(), (0, 0, 0));
        }
        ["acked", seq, series] => {
            let entry = acked.get_mut(&epoch.unwrap()).unwrap();
            (entry.0, entry.1) = (seq.parse().unwrap(), series.parse().unwrap());
            return true;
        }
        ["forgot", seq] => acked.get_mut(&epoch.unwrap()).unwrap().2 = seq.parse().unwrap(),
        _ => {}
    }
    false
}

async fn check_after_kill(buffer: &Buffer, opened: &Opened, killed: Epoch, acked: &BTreeMap<Epoch, (u64, u64, u64)>) {
    let (seq, series, forgot) = acked[&killed];
    let evicted = opened.losses.iter().filter(|loss| loss.lost.epoch == killed).map(|loss| loss.lost.last_seq).max();
    let streams = buffer.streams().await;
    let held = streams.iter().find(|held| held.stream.epoch == killed);
    if let Some(held) = held {
        assert!(held.stream.last_seq >= seq, "{held:?} after {seq} were acknowledged");
        assert!(held.stream.first_seq <= forgot.max(evicted.unwrap_or(0)) + 1, "{held:?}, forgot {forgot}");
        let notes = String::from_utf8(opened.notes.clone().unwrap()).unwrap();
        assert_eq!(notes, held.stream.last_seq.to_string(), "notes and blocks are of one commit");
        let frames = buffer.series(held.opening).await.unwrap();
        assert!(frames.len() as u64 >= series);
    } else {
        assert_eq!(seq, 0, "blocks were acknowledged and none is there");
    }
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    for block in all(buffer).await {
        let (header, _) = Decoder::default().decode(&block.frame).unwrap();
        let before = last.insert(block.place.opening, header.last_seq());
        assert!(before.is_none_or(|before| before + 1 == header.first_seq), "a hole before {header:?}");
    }
}

/// What a record says: series, time and the bits of its value.
type Said = (u32, i64, u64);

/// The records of a frame by their numbers.
fn records(frame: &[u8]) -> Vec<(u64, Said)> {
    let (header, body) = Decoder::default().decode(frame).unwrap();
    let Body::Samples(groups) = body else { return Vec::new() };
    let said = groups.iter().flat_map(|group| {
        let times = group.times_ms.len();
        let number = move |n: usize| (group.series[n / times], group.times_ms[n % times], group.values[n].to_bits());
        (0..group.values.len()).map(number)
    });
    (header.first_seq..).zip(said).collect()
}

/// A copy of a buffer's directory, closed or as a kill would leave it, and the records that it held.
async fn filled_buffer(copy: &Path, rounds: u32, samples: usize, closed: bool) -> (Epoch, BTreeMap<u64, Said>, u64) {
    let root = tempfile::tempdir().unwrap();
    let (buffer, opened, mut writer) = open(root.path(), 64 << 20);
    let mut held = BTreeMap::new();
    let series = vec![writer.descriptors(samples as u64)];
    buffer.commit(Commit { series, ..Commit::default() }).await.unwrap();
    for round in 0..rounds {
        let frames: Vec<Vec<u8>> = (0..4).map(|_| writer.samples(samples)).collect();
        for frame in &frames {
            held.extend(records(frame));
        }
        // The mark is written every ten minutes.
        writer.clock.advance(600_000);
        let notes = format!("round {round}").into_bytes();
        buffer.commit(Commit { blocks: frames, notes, ..Commit::default() }).await.unwrap();
    }
    if closed {
        buffer.close();
        copy_dir(&root.path().join("buffer"), &copy.join("buffer"));
    } else {
        copy_dir(&root.path().join("buffer"), &copy.join("buffer"));
        buffer.close();
    }
    (opened.epoch, held, writer.due)
}

/// Opens what was damaged; every record is held or a loss, none is wrong, and the buffer works. How many came back.
async fn check_damaged(root: &Path, epoch: Epoch, held: &BTreeMap<u64, Said>, due: u64, what: &str) -> usize {
    let (buffer, opened, mut writer) = open(root, 64 << 20);
    let mut covered = Ranges::default();
    let mut accounted = 0;
    let mut back = 0;
    for block in &all(&buffer).await {
        let header = block::header(&block.frame).unwrap();
        assert_eq!(header.epoch, epoch, "{what}");
        for (seq, said) in records(&block.frame) {
            assert_eq!(held.get(&seq), Some(&said), "{what}: record {seq}");
            back += 1;
        }
        covered.insert(header.first_seq, header.last_seq());
        accounted += header.due;
    }
    for loss in opened.losses.iter().filter(|loss| loss.lost.epoch == epoch) {
        assert_eq!(loss.reason, Reason::Corrupt, "{what}");
        covered.insert(loss.lost.first_seq, loss.lost.last_seq);
        accounted += loss.count;
    }
    assert_eq!(covered.as_slice(), [(1, due)], "{what}: {:?}", opened.losses);
    assert_eq!(accounted, due, "{what}: {:?}", opened.losses);
    buffer.commit(blocks(vec![writer.samples(9)])).await.unwrap();
    buffer.forget(epoch, &ranges(&[(1, due)])).await.unwrap();
    assert_eq!(buffer.streams().await.len(), 1, "{what}");
    buffer.close();
    back
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else if entry.file_name() != "ballast" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_damaged_buffer_opens_and_explains_what_is_missing() {
    for (rounds, samples, closed, places) in [(40, 60, true, 24), (60, 700, true, 12), (60, 700, false, 12)] {
        let root = tempfile::tempdir().unwrap();
        let (epoch, held, due) = filled_buffer(root.path(), rounds, samples, closed).await;
        let mut set_aside = 0;
        for n in 0..places {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(&root.path().join("buffer"), &copy.path().join("buffer"));
            let what = damage(&copy.path().join("buffer/db"), n, places);
            let back = check_damaged(copy.path(), epoch, &held, due, &what).await;
            // One place damages a few blocks at most; one that was merged holds some hundred records.
            let lost_max = (4 * samples).max(2_000);
            assert!(n % 3 == 1 || back + lost_max >= held.len(), "{what}: {back} of {} came back", held.len());
            set_aside += i32::from(std::fs::read_dir(copy.path()).unwrap().count() > 2);
        }
        assert!(set_aside > 0, "no damage was noticed");
    }
}

/// Damages a file in one of three ways, at the n-th of so many places; says how.
fn damage(db: &Path, n: u64, places: u64) -> String {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(db).unwrap();
    let len = file.metadata().unwrap().len();
    let at = len * (2 * n + 1) / (2 * places);
    match n % 3 {
        0 => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << (n % 8))], at).unwrap();
            format!("bit flipped at {at} of {len}")
        }
        1 => {
            file.set_len(at).unwrap();
            format!("cut at {at} of {len}")
        }
        _ => {
            file.write_all_at(&[0; 4096], at & !4095).unwrap();
            format!("4 KiB zeroed at {at} of {len}")
        }
    }
}

#[tokio::test]
async fn a_store_that_is_no_store_any_more_is_set_aside() {
    let root = tempfile::tempdir().unwrap();
    let (epoch, held, due) = filled_buffer(root.path(), 40, 60, true).await;
    let dir = root.path().join("buffer");
    std::fs::write(dir.join("conf"), b"not what sled wrote").unwrap();
    let back = check_damaged(root.path(), epoch, &held, due, "conf overwritten").await;
    assert_eq!(back, held.len(), "the blocks lie in another file");
    let names: Vec<String> = std::fs::read_dir(root.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.iter().any(|name| name == "buffer.damaged-20260921T141320Z"), "{names:?}");
}

#[tokio::test]
async fn an_unfinished_snapshot_does_not_hurt() {
    let root = tempfile::tempdir().unwrap();
    let (epoch, held, due) = filled_buffer(root.path(), 40, 60, true).await;
    std::fs::write(root.path().join("buffer/snap.00000000FFFFFFFF.generating"), b"torn").unwrap();
    let back = check_damaged(root.path(), epoch, &held, due, "torn snapshot").await;
    assert_eq!(back, held.len());
}

/// A file system of its own that can be filled; `None`, said aloud, where it can't be mounted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    #[expect(clippy::print_stderr, reason = "a test that tests nothing must say so")]
    fn mount(bytes: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let mount = Process::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        if mount.is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!("SKIPPED: no tmpfs can be mounted here (this needs root), so a full disk is not tried");
        None
    }

    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.path().join("filler")).unwrap();
        let zeros = vec![0u8; 64 << 10];
        while file.write_all(&zeros).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Process::new("umount").arg(self.0.path()).status().unwrap().success());
    }
}

#[tokio::test]
async fn a_full_disk_degrades_and_the_ballast_still_lets_the_backlog_out() {
    let Some(disk) = SmallDisk::mount("160m") else { return };
    let root = disk.0.path();
    let (buffer, opened, mut writer) = open(root, 1 << 30);
    buffer.commit(blocks(vec![writer.samples(500)])).await.unwrap();
    assert_eq!(std::fs::metadata(root.join("buffer/ballast")).unwrap().len(), 32 << 20);
    disk.fill();
    let frame = writer.samples(500);
    let error = buffer.commit(blocks(vec![frame.clone()])).await.unwrap_err();
    assert!(error.to_string().contains("MiB are free on the disk"), "{error}");
    assert!(matches!(buffer.state().borrow().health, Health::Degraded { since_ms: NOW_MS, .. }));
    assert_eq!(all(&buffer).await.len(), 1, "reading goes on");
    buffer.close();

    let (buffer, second, mut writer) = open(root, 1 << 30);
    assert_eq!(second.streams.len(), 1, "the ballast made room to open");
    assert!(!root.join("buffer/ballast").exists());
    assert_eq!(all(&buffer).await.len(), 1);
    buffer.commit(blocks(vec![writer.samples(500)])).await.unwrap();
    buffer.forget(opened.epoch, &ranges(&[(1, 500)])).await.unwrap();
    disk.free();
    buffer.commit(blocks(vec![writer.samples(500)])).await.unwrap();
    assert_eq!(buffer.state().borrow().health, Health::Healthy);
    assert_eq!(all(&buffer).await.len(), 2);
    buffer.close();
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_does_not_end_the_program() {
    let Some(disk) = SmallDisk::mount("48m") else { return };
    let root = disk.0.path();
    let (buffer, _, mut writer) = open(root, 1 << 30);
    let notes = b"before".to_vec();
    buffer.commit(Commit { notes: notes.clone(), ..blocks(vec![writer.samples(500)]) }).await.unwrap();
    buffer.close();
    disk.fill();

    let (buffer, opened, mut writer) = open(root, 1 << 30);
    assert!(matches!(buffer.state().borrow().health, Health::Degraded { .. }));
    assert!(opened.notes.is_none() && opened.streams.is_empty());
    let frame = writer.samples(3);
    assert!(matches!(buffer.commit(blocks(vec![frame.clone()])).await, Err(CommitError::Degraded { .. })));
    let place = Place { opening: 9, seq: 0 };
    assert!(matches!(buffer.read(Place::default(), place, 1).await, Err(ReadError::Degraded { .. })));
    assert!(buffer.streams().await.is_empty());
    writer.clock.advance(30_000);
    assert!(buffer.commit(blocks(vec![frame.clone()])).await.is_err(), "still full");
    disk.free();
    writer.clock.advance(30_000);
    buffer.commit(blocks(vec![frame])).await.unwrap();
    assert_eq!(buffer.state().borrow().health, Health::Healthy);
    assert_eq!(buffer.state().borrow().epoch, opened.epoch);
    assert_eq!(buffer.late_notes().await, Some(notes));
    assert_eq!(buffer.late_notes().await, None);
    assert_eq!(buffer.streams().await.len(), 2);
    buffer.close();
}

#[tokio::test]
async fn a_disk_short_of_room_shrinks_the_buffer_by_twice_what_comes() {
    let root = tempfile::tempdir().unwrap();
    let clock = clock();
    let short = BufferSettings { free_min_bytes: u64::MAX, ..settings(root.path(), 1 << 20) };
    let (buffer, opened) = Buffer::open(short, clock.clone()).unwrap();
    let mut writer = Writer::new(opened.epoch, clock);
    let committed = buffer.commit(blocks((0..6).map(|_| writer.samples(100)).collect())).await.unwrap();
    assert!(committed.degraded && committed.losses.is_empty(), "what just came does not go at once");
    assert!(matches!(buffer.state().borrow().health, Health::Degraded { .. }));
    let committed = buffer.commit(blocks(vec![writer.samples(100)])).await.unwrap();
    assert_eq!(committed.losses.iter().map(|loss| loss.count).collect::<Vec<_>>(), [200]);
    assert_eq!(all(&buffer).await.len(), 5);
    assert!(!root.path().join("buffer/ballast").exists());
    buffer.close();
}
