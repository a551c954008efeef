//! Rows `flash-1s`, `flash-10s` and `flash-30s`: what a day of a connected satellite writes, by how often it commits.
//!
//! The buffer's own code commits as a recorder does, ten devices of 30 series each polled every 10 s at seconds of
//! their own, and forgets what was acknowledged before the next commit. Time is not waited for: one commit follows the
//! other, and between them the file system does what it would have done meanwhile, write its journal. The disk is a loop
//! device with ext4, so that what reaches it can be told from what the program wrote. Beside it a file to which the same
//! blocks are appended, each with one fdatasync: the least that any store can do.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use satellite_agent::buffer::{Buffer, BufferSettings, Commit, Place};
use satellite_agent::recorder::draft;
use satellite_agent::recorder::frames::FrameWriter;
use satellite_agent::recorder::notes::Notes;
use satellite_shared::clock::{Clock, ManualClock};
use satellite_shared::ranges::Ranges;
use satellite_shared::wire::block::{self, ClockQuality};
use satellite_tests::disk::Disk;
use satellite_tests::peers::Peer;
use satellite_tests::wait;

use crate::Plan;
use crate::meter::Meter;
use crate::table::{OURS, Report};
use crate::workload::{self, EVERY_MS, Workload};

pub(crate) const ROWS: [&str; 3] = ["flash-1s", "flash-10s", "flash-30s"];

/// 30 samples a second: each second another device.
const DEVICES: usize = 10;
const SERIES_EACH: usize = 30;
const SECOND_MS: u64 = EVERY_MS.unsigned_abs() / DEVICES as u64;
/// Commits of one figure: a day of them where they are every 30 s.
const COMMITS: u64 = 2_880;
const DAY_S: f64 = 86_400.0;
/// How often ext4 writes its journal, unless told otherwise.
const JOURNAL_S: u64 = 5;
const DISK_MIB: u64 = 512;
const PEER: &str = "file, append + fdatasync";

pub(crate) fn measure(plan: Plan, report: &mut Report, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    for (row, seconds) in ROWS.into_iter().zip([1, 10, 30]).filter(|(row, _)| wanted(row)) {
        if Peer::LoopDevice.find().is_none() {
            report.skipped(row, OURS, &Peer::LoopDevice.missing());
            continue;
        }
        let commits = plan.amount(COMMITS);
        let day = DAY_S / seconds as f64 / commits as f64 / 1e6;
        for who in [OURS, PEER].into_iter().filter(|who| *who == OURS || plan.peers) {
            let mut days = Vec::new();
            let mut how = String::new();
            for _ in 0..plan.rounds {
                let written = written(who, commits, seconds)?;
                days.push(written.program * day);
                let each = written.program / commits as f64 / 1e3;
                how = format!(
                    "{:.1} MB/day reach the disk under ext4; {each:.1} kB a commit, of which {:.1} kB are blocks",
                    written.device * day,
                    written.blocks / commits as f64 / 1e3
                );
            }
            report.add(row, who, days, how);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Written {
    program: f64,
    device: f64,
    blocks: f64,
}

fn written(who: &str, commits: u64, seconds: u64) -> Result<Written> {
    let dir = tempfile::Builder::new().prefix("cost-").tempdir()?;
    let disk = Disk::new(&dir.path().join("image"), &dir.path().join("disk"), DISK_MIB)?;
    let at = disk.point();
    let mut store = if who == OURS { Store::buffer(at)? } else { Store::file(at)? };
    let mut polled = Polled::new(&store);
    let meter = Meter::new(std::process::id());
    let series = polled.writer.series(&workload::series(DEVICES * SERIES_EACH), store.clock.now());
    store.commit(Commit { series, ..polled.commit(seconds)? })?;
    let (program, device) = (meter.written()?.disk, disk.bytes_written()?);
    let mut blocks = 0.0;
    for second in (0..commits * seconds).step_by(usize::try_from(seconds)?) {
        let commit = polled.commit(seconds)?;
        blocks += commit.blocks.iter().map(Vec::len).sum::<usize>() as f64;
        store.commit(commit)?;
        // The journal has a clock of its own.
        if second % JOURNAL_S < seconds {
            rustix::fs::syncfs(File::open(at)?)?;
        }
    }
    let (program, device) = (meter.written()?.disk - program, disk.bytes_written()? - device);
    store.close();
    Ok(Written { program: program as f64, device: device as f64, blocks })
}

/// What a recorder makes of polls.
struct Polled {
    writer: FrameWriter,
    workload: Workload,
    values: Vec<f64>,
    /// Seconds so far.
    second: usize,
    clock: Arc<ManualClock>,
}

impl Polled {
    fn new(store: &Store) -> Self {
        let workload = Workload::ending_at(wait::wall_ms(), 0, 1);
        let clock = Arc::clone(&store.clock);
        Self { writer: FrameWriter::new(store.epoch), workload, values: Vec::new(), second: 0, clock }
    }

    /// What so many seconds bring.
    fn commit(&mut self, seconds: u64) -> Result<Commit> {
        let mut polls = Vec::new();
        for _ in 0..seconds {
            let device = self.second % DEVICES;
            if device == 0 {
                self.values = self.workload.poll().values;
            }
            self.second += 1;
            self.clock.advance(SECOND_MS);
            let first = device * SERIES_EACH;
            polls.push(draft::Polled {
                device: "host".parse().context("a device's name")?,
                at_ms: self.clock.now().wall_ms,
                series: (first as u32..(first + SERIES_EACH) as u32).collect(),
                values: self.values[first..first + SERIES_EACH].to_vec(),
            });
        }
        let now = self.clock.now();
        let blocks = self.writer.samples(draft::rectangles(polls), now, ClockQuality::Synchronised);
        let notes = Notes { until_ms: now.wall_ms, under_way: Vec::new(), open: Vec::new() }.write();
        Ok(Commit { blocks, notes, ..Commit::default() })
    }
}

/// Ours, or a file.
struct Store {
    kind: Kind,
    epoch: satellite_shared::id::Epoch,
    clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
}

enum Kind {
    Buffer(Buffer),
    File(File),
}

impl Store {
    fn new(kind: Kind, epoch: satellite_shared::id::Epoch, clock: Arc<ManualClock>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { kind, epoch, clock, runtime })
    }

    fn buffer(at: &Path) -> Result<Self> {
        let clock = Arc::new(ManualClock::new(wait::wall_ms(), 1));
        let settings =
            BufferSettings { free_min_bytes: 0, free_min_percent: 0, ..BufferSettings::new(at.join("buffer")) };
        let (buffer, opened) = Buffer::open(settings, Arc::clone(&clock) as Arc<dyn Clock>)?;
        Self::new(Kind::Buffer(buffer), opened.epoch, clock)
    }

    fn file(at: &Path) -> Result<Self> {
        let clock = Arc::new(ManualClock::new(wait::wall_ms(), 1));
        Self::new(Kind::File(File::create(at.join("file"))?), satellite_shared::id::Epoch(1), clock)
    }

    /// Stores it, sends it as it were, and has it acknowledged.
    fn commit(&mut self, commit: Commit) -> Result<()> {
        let buffer = match &mut self.kind {
            Kind::Buffer(buffer) => buffer,
            Kind::File(file) => {
                file.write_all(&commit.blocks.concat())?;
                return Ok(file.sync_data()?);
            }
        };
        let epoch = self.epoch;
        let last = block::header(commit.blocks.last().context("a commit has blocks")?)?.last_seq();
        self.runtime.block_on(async {
            buffer.commit(commit).await?;
            buffer.read(Place::default(), Place { opening: u32::MAX, seq: 0 }, usize::MAX).await?;
            let mut ranges = Ranges::default();
            ranges.insert(1, last);
            buffer.forget(epoch, &ranges).await?;
            Ok(())
        })
    }

    fn close(self) {
        if let Kind::Buffer(buffer) = self.kind {
            buffer.close();
        }
    }
}
