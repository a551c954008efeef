//! The committer against a real registry and a real folder, through a store that fails and dies where it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;

use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use proptest::prelude::*;
use satellite_shared::clock::{ManualClock, Now, SystemClock};
use satellite_shared::gap::{Lost, Reason};
use satellite_shared::metric::Kind;
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{ClockQuality, FrameKind};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::registry::batches::{Content, ObjectSize};
use crate::sink::archive::reader::{self, Query};

const NOW_MS: i64 = 1_795_247_999_999;
const RELAY: &str = "relay-test";
const HOUR_MS: i64 = 3_600_000;
const DEADLINE: Duration = Duration::from_secs(20);

/// What a put does instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// An error, and nothing is stored.
    FailBefore,
    /// It is stored, and an error all the same.
    FailAfter,
    /// Nothing is stored, and no answer ever comes.
    DieBefore,
    /// It is stored, and no answer ever comes.
    DieAfter,
}

/// A store with faults, by the number of the put of records.
#[derive(Debug)]
struct Faulty<S> {
    inner: S,
    faults: Mutex<BTreeMap<usize, Fault>>,
    puts: Mutex<usize>,
    died: Arc<Notify>,
}

impl<S> Faulty<S> {
    fn new(inner: S, faults: impl IntoIterator<Item = (usize, Fault)>) -> Arc<Self> {
        let faults = Mutex::new(faults.into_iter().collect());
        Arc::new(Self { inner, faults, puts: Mutex::new(0), died: Arc::new(Notify::new()) })
    }
}

impl<S: ObjectStore> fmt::Display for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

type Later<'a, T> = Pin<Box<dyn Future<Output = object_store::Result<T>> + Send + 'a>>;

impl<S: ObjectStore> ObjectStore for Faulty<S> {
    fn put_opts<'a, 'b, 'c>(&'a self, key: &'b Key, payload: PutPayload, opts: PutOptions) -> Later<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        Box::pin(async move {
            if key.as_ref().starts_with("relays/") {
                return self.inner.put_opts(key, payload, opts).await;
            }
            let number = {
                let mut puts = self.puts.lock().unwrap();
                *puts += 1;
                *puts - 1
            };
            let fault = self.faults.lock().unwrap().get(&number).copied();
            let failed = || object_store::Error::Generic { store: "faulty", source: "as told".into() };
            match fault {
                Some(Fault::FailBefore) => return Err(failed()),
                Some(Fault::FailAfter | Fault::DieAfter) | None => {
                    let put = self.inner.put_opts(key, payload, opts).await?;
                    if fault.is_none() {
                        return Ok(put);
                    }
                }
                Some(Fault::DieBefore) => {}
            }
            if fault == Some(Fault::FailAfter) {
                return Err(failed());
            }
            self.died.notify_one();
            std::future::pending().await
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        key: &'b Key,
        opts: PutMultipartOptions,
    ) -> Later<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.put_multipart_opts(key, opts)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, key: &'b Key, options: GetOptions) -> Later<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.get_opts(key, options)
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, object_store::Result<Key>>,
    ) -> BoxStream<'static, object_store::Result<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b Key>) -> Later<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
        Self: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(&'a self, from: &'b Key, to: &'d Key, options: CopyOptions) -> Later<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
        Self: 'c,
    {
        self.inner.copy_opts(from, to, options)
    }
}

/// A data directory with a registry and records, and a committer that can be killed and started again.
struct Rig {
    dir: tempfile::TempDir,
    registry: Registry,
    clock: Arc<dyn Clock>,
    settings: Settings,
}

struct Running {
    ingest: Ingest,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), IngestError>>,
}

impl Rig {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        std::fs::create_dir(dir.path().join("records")).unwrap();
        let settings = Settings { commit_every: Duration::from_millis(10), ..Settings::default() };
        Self { dir, registry, clock: Arc::new(SystemClock), settings }
    }

    /// A relay whose batches only close when it stops.
    async fn patient() -> Self {
        let mut rig = Self::new().await;
        rig.settings.commit_every = Duration::from_secs(3600);
        rig
    }

    fn folder(&self) -> LocalFileSystem {
        LocalFileSystem::new_with_prefix(self.dir.path().join("records")).unwrap()
    }

    fn start(&self) -> Running {
        self.start_on(Arc::new(self.folder()))
    }

    #[expect(clippy::disallowed_methods, reason = "the test is the wiring")]
    fn start_on(&self, store: Arc<dyn ObjectStore>) -> Running {
        let store = Store::new(store, "test".into());
        let data_dir = DataDir::open(self.dir.path()).unwrap();
        let opened = Committer::open(
            &data_dir,
            RELAY.into(),
            self.registry.clone(),
            store,
            Arc::clone(&self.clock),
            self.settings,
        );
        let (ingest, committer) = opened.unwrap();
        let shutdown = CancellationToken::new();
        Running { ingest, shutdown: shutdown.clone(), task: tokio::spawn(committer.run(shutdown)) }
    }

    async fn samples(&self) -> Vec<reader::Sample> {
        let query = Query { satellite: None, metric: None, since_ms: i64::MIN, limit: usize::MAX };
        let answer = reader::samples(&Store::new(Arc::new(self.folder()), "test".into()), &query).await.unwrap();
        assert_eq!(answer.unreadable, Vec::<String>::new());
        answer.rows
    }

    async fn gaps(&self) -> Vec<reader::GapRow> {
        let query = Query { satellite: None, metric: None, since_ms: i64::MIN, limit: usize::MAX };
        reader::gaps(&Store::new(Arc::new(self.folder()), "test".into()), &query).await.unwrap().rows
    }

    async fn tally(&self, epoch: u128) -> Tally {
        self.registry.stream(&satellite(), Epoch(epoch)).await.unwrap().map(|row| row.tally).unwrap_or_default()
    }

    /// Exactly these records of epoch 1 are stored, each once, with its own value, and the account agrees.
    async fn check_stored(&self, expect: impl IntoIterator<Item = u64>) {
        let expect: Vec<u64> = expect.into_iter().collect();
        let samples = self.samples().await;
        let mut seqs: Vec<u64> = samples.iter().map(|sample| sample.seq).collect();
        seqs.sort_unstable();
        assert_eq!(seqs, expect);
        assert!(samples.iter().all(|sample| sample.value == sample.seq as f64));
        let tally = self.tally(1).await;
        assert_eq!(tally.stored, expect.len() as u64);
        assert!(tally.is_balanced(), "{tally:?}");
        assert_eq!(self.registry.unfinished().await.unwrap(), []);
    }
}

impl Running {
    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }

    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

fn satellite() -> SatelliteId {
    SatelliteId::from_bits([4; 10])
}

/// One session's end of the replies.
struct Session {
    to: mpsc::UnboundedSender<Outcome>,
    replies: mpsc::UnboundedReceiver<Outcome>,
}

impl Session {
    fn new() -> Self {
        let (to, replies) = mpsc::unbounded_channel();
        Self { to, replies }
    }

    fn block(&self, kind: FrameKind, epoch: u128, first_seq: u64, due_before: u64, due: u64, body: BlockBody) -> Block {
        let count = match &body {
            BlockBody::Samples { groups, .. } => groups.iter().map(|group| group.values.len()).sum(),
            BlockBody::Gaps(gaps) => gaps.len(),
            BlockBody::Dead(_) => usize::try_from(due).unwrap(),
        };
        let header = Header {
            kind,
            quality: ClockQuality::Unknown,
            epoch: Epoch(epoch),
            first_seq,
            count: u32::try_from(count).unwrap(),
            due,
            due_before,
            made: Now { wall_ms: NOW_MS, mono_ms: 0 },
        };
        Block { satellite: satellite(), header, body, frame: Bytes::from(vec![7; 100]), reply: self.to.clone() }
    }

    /// Samples `first..=last` of epoch 1, each of which is one due sample, spread over two hours.
    fn samples(&self, first: u64, last: u64) -> Block {
        let times_ms = (first..=last).map(|seq| NOW_MS - HOUR_MS * (seq as i64 % 2)).collect();
        self.samples_at(first, times_ms)
    }

    fn samples_at(&self, first: u64, times_ms: Vec<i64>) -> Block {
        let due = times_ms.len() as u64;
        let values = (first..first + due).map(|seq| seq as f64).collect();
        let series = Series {
            device: "nas".parse().unwrap(),
            name: "x".into(),
            kind: Kind::Gauge,
            unit: String::new(),
            labels: vec![("a".into(), "b".into())],
        };
        let groups = vec![Group { series: vec![9], times_ms, values }];
        let body = BlockBody::Samples { groups, series: Arc::new(HashMap::from([(9, Arc::new(series))])) };
        self.block(FrameKind::Samples, 1, first, first - 1, due, body)
    }

    fn lost(&self, first_seq: u64, due_before: u64, count: u64, lost: Lost) -> Block {
        let gaps = vec![gap(count, Some(lost))];
        self.block(FrameKind::Gaps, 1, first_seq, due_before, 0, BlockBody::Gaps(gaps))
    }

    async fn outcome(&mut self) -> Outcome {
        tokio::time::timeout(DEADLINE, self.replies.recv()).await.expect("an answer in time").expect("an answer")
    }

    async fn stored(&mut self, first: u64) {
        match self.outcome().await {
            Outcome::Stored { first_seq, bytes, .. } => assert_eq!((first_seq, bytes), (first, 100)),
            refused @ Outcome::Refused { .. } => panic!("{refused:?}"),
        }
    }

    async fn refused(&mut self, expect: NackCode) {
        match self.outcome().await {
            Outcome::Refused { code, .. } => assert_eq!(code, expect),
            stored @ Outcome::Stored { .. } => panic!("{stored:?}"),
        }
    }
}

fn gap(count: u64, lost: Option<Lost>) -> Gap {
    Gap {
        device: None,
        metric: None,
        from_ms: NOW_MS - HOUR_MS,
        to_ms: NOW_MS,
        count,
        reason: Reason::Evicted,
        detail: String::new(),
        lost,
    }
}

#[tokio::test]
async fn a_block_is_answered_when_it_can_be_read() {
    let rig = Rig::new().await;
    let running = rig.start();
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    session.stored(1).await;
    rig.check_stored(1..=10).await;
    let stored = running.ingest.stored(&satellite(), &[Epoch(1), Epoch(2)]).await.unwrap();
    let nothing = Stored { epoch: Epoch(2), ranges: Ranges::default() };
    assert_eq!(stored, [Stored { epoch: Epoch(1), ranges: [(1, 10)].into_iter().collect() }, nothing]);
    running.stop().await;
}

#[tokio::test]
async fn blocks_that_come_twice_are_stored_once_and_answered_each_time() {
    let rig = Rig::patient().await;
    let running = rig.start();
    let (mut one, mut two) = (Session::new(), Session::new());
    for (first, last) in [(11, 20), (1, 10)] {
        running.ingest.submit(one.samples(first, last)).await;
        running.ingest.submit(two.samples(first, last)).await;
    }
    // What spans two blocks of the batch is there too.
    running.ingest.submit(two.samples(5, 15)).await;
    running.stop().await;
    for session in [&mut one, &mut two] {
        session.stored(11).await;
        session.stored(1).await;
    }
    two.stored(5).await;
    rig.check_stored(1..=20).await;

    let again = rig.start();
    again.ingest.submit(two.samples(3, 9)).await;
    two.stored(3).await;
    again.stop().await;
    rig.check_stored(1..=20).await;
}

#[tokio::test]
async fn a_block_that_overlaps_in_part_is_refused_and_the_rest_goes_on() {
    let rig = Rig::patient().await;
    let running = rig.start();
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    running.ingest.submit(session.samples(5, 15)).await;
    session.refused(NackCode::Conflict).await;
    running.ingest.submit(session.samples(11, 20)).await;
    running.stop().await;
    session.stored(1).await;
    session.stored(11).await;
    rig.check_stored(1..=20).await;
}

#[tokio::test]
async fn numbers_and_counts_beyond_all_bounds_are_refused() {
    let rig = Rig::new().await;
    let running = rig.start();
    let mut session = Session::new();
    running.ingest.submit(session.samples(u64::MAX - 20, u64::MAX - 10)).await;
    session.refused(NackCode::Conflict).await;
    let body = BlockBody::Gaps(vec![gap(u64::MAX, None)]);
    running.ingest.submit(session.block(FrameKind::Gaps, 1, 1, 0, u64::MAX, body)).await;
    session.refused(NackCode::Conflict).await;
    running.stop().await;
    rig.check_stored([]).await;
}

#[tokio::test]
async fn more_holes_than_an_epoch_may_have_are_refused_until_they_are_filled() {
    let rig = Rig::patient().await;
    let running = rig.start();
    let mut session = Session::new();
    for n in 0..1_024 {
        running.ingest.submit(session.samples(1 + n * 2, 1 + n * 2)).await;
    }
    running.ingest.submit(session.samples(3_001, 3_001)).await;
    session.refused(NackCode::Retry).await;
    running.stop().await;
    assert_eq!(rig.tally(1).await.stored, 1_024);
}

#[tokio::test]
async fn a_frame_that_can_not_be_stored_is_set_aside_and_does_not_stop_the_stream() {
    let rig = Rig::new().await;
    let running = rig.start();
    let mut session = Session::new();
    let dead = session.block(FrameKind::Samples, 1, 1, 0, 5, BlockBody::Dead("checksum".into()));
    running.ingest.submit(dead).await;
    let mut unstorable = session.samples(6, 10);
    unstorable.body = match unstorable.body {
        BlockBody::Samples { groups, .. } => BlockBody::Samples { groups, series: Arc::default() },
        body @ (BlockBody::Gaps(_) | BlockBody::Dead(_)) => body,
    };
    running.ingest.submit(unstorable).await;
    running.ingest.submit(session.samples(11, 15)).await;
    for first in [1, 6, 11] {
        session.stored(first).await;
    }
    running.stop().await;
    rig.check_stored(11..=15).await;
    let letters = rig.registry.dead_letters(&satellite()).await.unwrap();
    let errors: Vec<&str> = letters.iter().map(|letter| letter.error.as_str()).collect();
    assert_eq!(errors, ["checksum", "series 9 was never described"]);
    assert_eq!(letters[0].frame, vec![7; 100]);
    let tally = rig.tally(1).await;
    assert_eq!((tally.due, tally.set_aside, tally.waiting(0)), (15, 10, 0));
    assert_eq!(tally.watermark.ranges().as_slice(), [(1, 15)]);
}

#[tokio::test]
async fn gaps_explain_what_they_say() {
    let rig = Rig::new().await;
    let running = rig.start();
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    let body = BlockBody::Gaps(vec![gap(7, None), gap(0, None)]);
    running.ingest.submit(session.block(FrameKind::Gaps, 1, 11, 10, 7, body)).await;
    session.stored(1).await;
    session.stored(11).await;
    running.stop().await;
    let tally = rig.tally(1).await;
    assert_eq!((tally.due, tally.stored, tally.explained, tally.is_balanced()), (17, 10, 7, true));
    let counts: Vec<u64> = rig.gaps().await.iter().map(|gap| gap.count).collect();
    assert_eq!(counts, [7, 0]);
}

#[tokio::test]
async fn a_loss_of_records_that_had_arrived_explains_only_the_others() {
    let rig = Rig::new().await;
    let running = rig.start();
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    running.ingest.submit(session.samples(21, 30)).await;
    session.stored(1).await;
    session.stored(21).await;
    // The satellite lost 1..=40 and never heard that half of it had arrived. Its new epoch says so.
    let lost = Lost { epoch: Epoch(1), first_seq: 1, last_seq: 40, due_through: 40 };
    let mut block = session.lost(1, 0, 40, lost);
    block.header.epoch = Epoch(2);
    running.ingest.submit(block).await;
    session.stored(1).await;
    // A frame that was still on its way when it was declared lost is explained, and not stored as well.
    running.ingest.submit(session.samples(11, 20)).await;
    session.stored(11).await;
    running.stop().await;

    let tally = rig.tally(1).await;
    assert_eq!((tally.due, tally.stored, tally.explained, tally.waiting(0)), (40, 20, 20, 0));
    assert!(tally.is_balanced());
    assert_eq!(tally.watermark.ranges().as_slice(), [(1, 40)]);
    let second = rig.tally(2).await;
    assert_eq!((second.due, second.stored, second.explained, second.is_balanced()), (0, 0, 0, true));
    let gaps = rig.gaps().await;
    assert_eq!((gaps.len(), gaps[0].count, gaps[0].reported), (1, 20, 40));
    rig.check_stored((1..=10).chain(21..=30)).await;
}

#[tokio::test]
async fn a_batch_of_many_hours_is_cut() {
    let rig = Rig::patient().await;
    let running = rig.start();
    let mut session = Session::new();
    let hours = |from: i64| (from..from + 150).map(|hour| NOW_MS - hour * HOUR_MS).collect::<Vec<_>>();
    running.ingest.submit(session.samples_at(1, hours(0))).await;
    running.ingest.submit(session.samples_at(151, hours(150))).await;
    session.stored(1).await;
    running.stop().await;
    session.stored(151).await;
    rig.check_stored(1..=300).await;
}

#[tokio::test]
async fn a_large_batch_does_not_wait() {
    let mut rig = Rig::patient().await;
    rig.settings.rows_max = 30;
    let running = rig.start();
    let mut session = Session::new();
    for n in 0..3 {
        running.ingest.submit(session.samples(1 + n * 10, 10 + n * 10)).await;
    }
    for n in 0..3 {
        session.stored(1 + n * 10).await;
    }
    running.stop().await;
    rig.check_stored(1..=30).await;
}

#[tokio::test]
async fn storage_that_fails_for_a_while_delays_and_loses_nothing() {
    let rig = Rig::new().await;
    let faults = [(0, Fault::FailBefore), (1, Fault::FailAfter), (2, Fault::FailBefore), (3, Fault::FailAfter)];
    let running = rig.start_on(Faulty::new(rig.folder(), faults));
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    session.stored(1).await;
    running.ingest.submit(session.samples(11, 20)).await;
    session.stored(11).await;
    running.stop().await;
    rig.check_stored(1..=20).await;
}

#[tokio::test]
async fn a_relay_that_dies_at_any_put_stores_everything_once() {
    for (number, fault) in (0..2).flat_map(|n| [(n, Fault::DieBefore), (n, Fault::DieAfter)]) {
        let rig = Rig::new().await;
        let mut session = Session::new();
        let faulty = Faulty::new(rig.folder(), [(number, fault)]);
        let died = Arc::clone(&faulty.died);
        let first = rig.start_on(faulty);
        let dead = session.block(FrameKind::Samples, 1, 11, 10, 2, BlockBody::Dead("checksum".into()));
        first.ingest.submit(session.samples(1, 10)).await;
        first.ingest.submit(dead).await;
        tokio::time::timeout(DEADLINE, died.notified()).await.unwrap();
        first.kill().await;
        assert_eq!(rig.registry.unfinished().await.unwrap().len(), 1, "{number} {fault:?}");
        assert!(session.replies.try_recv().is_err(), "nothing was acknowledged");

        let second = rig.start();
        second.ingest.submit(session.samples(1, 10)).await;
        session.stored(1).await;
        let dead = session.block(FrameKind::Samples, 1, 11, 10, 2, BlockBody::Dead("checksum".into()));
        second.ingest.submit(dead).await;
        session.stored(11).await;
        second.stop().await;
        rig.check_stored(1..=10).await;
        assert_eq!((rig.tally(1).await.set_aside, rig.tally(1).await.waiting(0)), (2, 0));
    }
}

#[tokio::test]
async fn an_acknowledgement_that_is_lost_is_given_again() {
    let rig = Rig::new().await;
    let running = rig.start();
    let session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    drop(session);
    let mut session = Session::new();
    running.ingest.submit(session.samples(1, 10)).await;
    session.stored(1).await;
    running.kill().await;
    rig.check_stored(1..=10).await;
    let again = rig.start();
    again.ingest.submit(session.samples(1, 10)).await;
    session.stored(1).await;
    again.stop().await;
    rig.check_stored(1..=10).await;
}

#[tokio::test]
async fn what_was_handed_over_before_the_end_is_committed() {
    let rig = Rig::patient().await;
    let running = rig.start();
    let mut session = Session::new();
    for n in 0..50 {
        running.ingest.submit(session.samples(1 + n * 10, 10 + n * 10)).await;
    }
    let ingest = running.ingest.clone();
    running.stop().await;
    for n in 0..50 {
        session.stored(1 + n * 10).await;
    }
    rig.check_stored(1..=500).await;
    ingest.submit(session.samples(501, 510)).await;
    session.refused(NackCode::Retry).await;
}

#[tokio::test]
async fn a_data_directory_has_one_committer() {
    let rig = Rig::new().await;
    let running = rig.start();
    let second = Committer::open(
        &DataDir::open(rig.dir.path()).unwrap(),
        RELAY.into(),
        rig.registry.clone(),
        Store::new(Arc::new(rig.folder()), "test".into()),
        Arc::clone(&rig.clock),
        rig.settings,
    );
    assert!(matches!(second, Err(IngestError::DataDir(DataDirError::Locked { .. }))));
    running.stop().await;
    rig.start().stop().await;
}

#[tokio::test]
async fn a_put_that_lands_after_its_batch_was_given_up_is_swept() {
    let rig = Rig::new().await;
    let memory = Arc::new(InMemory::new());
    let objects: Arc<dyn ObjectStore> = Arc::clone(&memory) as Arc<dyn ObjectStore>;
    let parts = Parts {
        relay: RELAY.into(),
        registry: rig.registry.clone(),
        store: Store::new(objects, "test".into()),
        clock: Arc::new(ManualClock::new(NOW_MS, 0)),
    };
    let intent = |id: &str| {
        let objects = vec![ObjectSize { key: format!("samples/{id}.parquet"), bytes: 4 }];
        crate::registry::Intent { id: id.into(), content: Content { objects, ..Content::default() } }
    };
    for id in ["old", "recent", "half"] {
        rig.registry.intend(&intent(id), NOW_MS).await.unwrap();
    }
    rig.registry.abandon("old", NOW_MS - HOUR_MS).await.unwrap();
    rig.registry.abandon("recent", NOW_MS - 60_000).await.unwrap();
    // However long ago it was by a clock that may have been set.
    let abandoned = recovery::resolve(&parts).await;
    let keys: Vec<String> = abandoned.iter().map(|intent| intent.content.objects[0].key.clone()).collect();
    assert_eq!(keys, ["samples/half.parquet", "samples/old.parquet", "samples/recent.parquet"]);

    for key in &keys {
        memory.put(&Key::from(key.as_str()), "late".into()).await.unwrap();
    }
    recovery::sweep(parts.clone(), abandoned, [Duration::ZERO; 2]).await;
    for key in &keys {
        assert!(memory.head(&Key::from(key.as_str())).await.is_err(), "{key}");
    }
    assert_eq!(recovery::resolve(&parts).await, [], "they are swept once");
}

/// One thing that happens to a relay.
#[derive(Debug, Clone)]
enum Event {
    /// One of the blocks arrives on one of two sessions.
    Arrives(usize, usize),
    /// The relay dies, perhaps within a commit, and starts again.
    Dies(Option<(usize, bool)>),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let arrives = (0..2usize, 0..20usize).prop_map(|(session, block)| Event::Arrives(session, block));
    let dies = prop::option::of((0..3usize, any::<bool>())).prop_map(Event::Dies);
    prop::collection::vec(prop_oneof![9 => arrives, 1 => dies], 1..60)
}

/// Blocks of uneven length, one after the other: `(first, last)`.
fn blocks() -> Vec<(u64, u64)> {
    (0..20u64)
        .scan(1, |next, n| {
            let first = *next;
            *next += 1 + n % 7;
            Some((first, *next - 1))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is sent, twice or in any order, over two sessions and through deaths: what was acknowledged is stored,
    /// nothing is stored twice, and the account agrees with the objects.
    #[test]
    fn what_is_acknowledged_is_stored_once(events in events()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check_events(events));
    }
}

async fn check_events(events: Vec<Event>) {
    let mut rig = Rig::new().await;
    rig.settings = Settings { commit_every: Duration::from_millis(1), rows_max: 12, ..Settings::default() };
    let blocks = blocks();
    let mut sessions = [Session::new(), Session::new()];
    let mut acknowledged = BTreeSet::new();
    let mut sent = BTreeSet::new();
    let mut running = rig.start();
    for event in events {
        match event {
            Event::Arrives(session, block) => {
                let (first, last) = blocks[block];
                sent.extend(first..=last);
                let block = sessions[session].samples(first, last);
                // A relay that hangs in a put takes no more than its bounds.
                let submitted = running.ingest.submit(block);
                if tokio::time::timeout(Duration::from_millis(20), submitted).await.is_err() {
                    continue;
                }
            }
            Event::Dies(fault) => {
                running.kill().await;
                let faults = fault.map(|(n, after)| (n, if after { Fault::DieAfter } else { Fault::DieBefore }));
                running = rig.start_on(Faulty::new(rig.folder(), faults));
            }
        }
        for session in &mut sessions {
            take_answers(session, &mut acknowledged);
        }
    }
    running.kill().await;
    for session in &mut sessions {
        take_answers(session, &mut acknowledged);
    }
    // The last start only resolves; then what is stored is at least what was acknowledged, and nothing twice.
    rig.start().stop().await;
    let samples = rig.samples().await;
    let stored: BTreeSet<u64> = samples.iter().map(|sample| sample.seq).collect();
    assert_eq!(stored.len(), samples.len(), "nothing is stored twice");
    assert!(acknowledged.is_subset(&stored), "{acknowledged:?} of {stored:?}");
    assert!(stored.is_subset(&sent));
    let tally = rig.tally(1).await;
    assert_eq!(tally.watermark.ranges(), stored.iter().map(|&seq| (seq, seq)).collect());
    assert_eq!((tally.stored, tally.is_balanced()), (stored.len() as u64, true));
}

fn take_answers(session: &mut Session, acknowledged: &mut BTreeSet<u64>) {
    while let Ok(outcome) = session.replies.try_recv() {
        match outcome {
            Outcome::Stored { first_seq, last_seq, .. } => acknowledged.extend(first_seq..=last_seq),
            Outcome::Refused { code, .. } => assert_eq!(code, NackCode::Retry, "whole blocks never conflict"),
        }
    }
}
