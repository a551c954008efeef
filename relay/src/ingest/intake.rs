//! What becomes of a block when it arrives, and the batch that is being filled.
//!
//! Two layers of watermarks decide. *Committed* is what the registry holds, as far as it is needed; a block wholly
//! inside is answered at once and not stored again. The *tip* is that and everything taken since: a block wholly
//! inside the tip waits for the next commit's answer, one that overlaps it in part is refused, any other is taken. So
//! two sessions of one satellite that send the same blocks store them once, and each gets its answers.
//!
//! Pure: no clock, no registry, no store. Nothing here is acknowledged: that is for the commit to do.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use satellite_shared::gap::Gap;
use satellite_shared::id::{Epoch, SatelliteId};
use satellite_shared::metric::Series;
use satellite_shared::ranges::Overlap;
use satellite_shared::wire::block::{Group, Header};
use satellite_shared::wire::to_satellite::NackCode;
use tokio::sync::mpsc;

use crate::ingest::tally::Tally;
use crate::ingest::watermark::{Span, Watermark};
use crate::ingest::{Block, BlockBody, Outcome};
use crate::registry::DeadLetter;
use crate::registry::batches::Holding;
use crate::sink::archive::layout::BatchId;
use crate::sink::{Batch, Origin, check_gaps};

/// One epoch of one satellite.
pub type Stream = (SatelliteId, Epoch);

/// Watermarks kept in memory; the least recently used quarter goes when there are more.
const STREAMS_MAX: usize = 4_096;
/// Spans that an epoch may leave open: far more than a satellite that fills its holes ever has.
const SPANS_MAX: usize = 1_024;
/// Epochs that one satellite may have: one for each start, so that an honest one needs decades, and a table that grows
/// without end is not a way to fill the relay's disk.
const EPOCHS_MAX: u64 = 50_000;
/// Pieces in a batch: each costs some hundred bytes, however few samples it holds.
const PIECES_MAX: usize = 100_000;

/// What has been taken since the last commit.
#[derive(Debug)]
pub struct Filling {
    /// What goes into storage.
    pub batch: Batch,
    /// What that adds to the accounts.
    holds: BTreeMap<Stream, Tally>,
    /// What is set aside.
    pub letters: Vec<DeadLetter>,
    /// Whose numbers those are.
    letter_streams: Vec<Stream>,
    /// Whom to answer when it is committed.
    replies: Vec<Reply>,
    /// Bytes of the frames taken.
    bytes: usize,
    /// When the first block came.
    since_mono_ms: u64,
    /// When the last block came.
    latest_mono_ms: u64,
}

/// Whom to answer, about which frame.
#[derive(Debug)]
struct Reply {
    to: mpsc::UnboundedSender<Outcome>,
    epoch: Epoch,
    first_seq: u64,
    last_seq: u64,
    bytes: usize,
}

/// When a batch is large or old enough.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Samples and gaps.
    pub rows_max: usize,
    /// Bytes of frames.
    pub bytes_max: usize,
    /// Age of the first block.
    pub age_ms_max: u64,
    /// With this many rows, a pause of `idle_ms` is enough.
    pub idle_rows: usize,
    /// A pause after which satellites that drain a backlog have used up their credit.
    pub idle_ms: u64,
}

/// The state between the sessions and the commits.
#[derive(Debug)]
pub struct Intake {
    committed: HashMap<Stream, Known>,
    tip: HashMap<Stream, Watermark>,
    /// Epochs of each satellite: those in the registry and those taken since.
    epochs: HashMap<SatelliteId, u64>,
    epochs_max: u64,
    filling: Filling,
    uses: u64,
}

#[derive(Debug)]
struct Known {
    watermark: Watermark,
    used: u64,
}

impl Intake {
    /// Nothing is known, and the first batch has this name.
    #[must_use]
    pub fn new(id: BatchId) -> Self {
        Self {
            committed: HashMap::new(),
            tip: HashMap::new(),
            epochs: HashMap::new(),
            epochs_max: EPOCHS_MAX,
            filling: Filling::new(id),
            uses: 0,
        }
    }

    /// Whether it must be learnt how many epochs the satellite has.
    #[must_use]
    pub fn is_uncounted(&self, satellite: &SatelliteId) -> bool {
        !self.epochs.contains_key(satellite)
    }

    /// Learns how many epochs of the satellite the registry holds. What was taken and is not committed counts too.
    pub fn count(&mut self, satellite: &SatelliteId, epochs: u64) {
        let taken = self.tip.iter().filter(|(stream, tip)| {
            let stored = self.committed.get(stream).is_some_and(|known| !known.watermark.spans().is_empty());
            stream.0 == *satellite && !tip.spans().is_empty() && !stored
        });
        self.epochs.insert(satellite.clone(), epochs.saturating_add(taken.count() as u64));
    }

    /// The streams that must be learnt before the block can be taken.
    #[must_use]
    pub fn unknown(&self, block: &Block) -> Vec<Stream> {
        let mut epochs = BTreeSet::from([block.header.epoch]);
        if let BlockBody::Gaps(gaps) = &block.body {
            epochs.extend(gaps.iter().filter_map(|gap| gap.lost).map(|lost| lost.epoch));
        }
        let streams = epochs.into_iter().map(|epoch| (block.satellite.clone(), epoch));
        streams.filter(|stream| !self.committed.contains_key(stream)).collect()
    }

    /// Learns what the registry holds of a stream.
    pub fn learn(&mut self, stream: Stream, watermark: Watermark) {
        self.uses += 1;
        self.committed.insert(stream, Known { watermark, used: self.uses });
    }

    /// Forgets what was not used for longest, when there is too much. What is forgotten can be learnt again.
    pub fn forget(&mut self) {
        if self.committed.len() > STREAMS_MAX {
            let mut uses: Vec<u64> = self.committed.values().map(|known| known.used).collect();
            let (_, &mut oldest_kept, _) = uses.select_nth_unstable(STREAMS_MAX / 4);
            self.committed.retain(|_, known| known.used >= oldest_kept);
        }
        if self.epochs.len() > STREAMS_MAX {
            self.epochs.clear();
        }
    }

    /// Whether the block must wait for a new batch.
    #[must_use]
    pub fn is_too_wide_with(&self, block: &Block, received_ms: i64) -> bool {
        match &block.body {
            BlockBody::Samples { groups, .. } => self.filling.batch.is_too_wide_with(groups, received_ms),
            BlockBody::Gaps(_) | BlockBody::Dead(_) => false,
        }
    }

    /// Takes a block, or answers it.
    pub fn take(&mut self, block: Block, received_ms: i64, mono_ms: u64) {
        let Header { epoch, first_seq, .. } = block.header;
        let last_seq = block.header.last_seq();
        let stream = (block.satellite.clone(), epoch);
        self.uses += 1;
        if let Some(known) = self.committed.get_mut(&stream) {
            known.used = self.uses;
            if known.watermark.overlap(first_seq, last_seq) == Overlap::Whole {
                Reply::to(&block).stored();
                return;
            }
        }
        if last_seq > i64::MAX.unsigned_abs() || block.header.due_through() > i64::MAX.unsigned_abs() {
            Reply::to(&block).refused(NackCode::Conflict, "record numbers or due samples beyond 2^63".into());
            return;
        }
        let new = self.new_epochs(&stream, &block);
        if new > 0 && self.epochs.get(&stream.0).is_some_and(|have| have.saturating_add(new) > self.epochs_max) {
            let message = format!(
                "this satellite began more than {} epochs: its buffer was opened anew too often; see why it restarts, \
                 then give it a new identity: revoke it and make a lease",
                self.epochs_max
            );
            Reply::to(&block).refused(NackCode::Retry, message);
            return;
        }
        let tip = self.tip(&stream);
        match tip.overlap(first_seq, last_seq) {
            Overlap::Whole => self.filling.wait(Reply::to(&block), mono_ms),
            Overlap::Partial => {
                let message = format!("records {first_seq} to {last_seq} of epoch {epoch} are stored in part");
                Reply::to(&block).refused(NackCode::Conflict, message);
            }
            Overlap::None if tip.spans().len() >= SPANS_MAX => {
                let message = format!("epoch {epoch} has {SPANS_MAX} holes: fill the oldest first");
                Reply::to(&block).refused(NackCode::Retry, message);
            }
            Overlap::None => {
                if let Some(epochs) = self.epochs.get_mut(&stream.0) {
                    *epochs = epochs.saturating_add(new);
                }
                self.admit(stream, block, received_ms, mono_ms);
            }
        }
    }

    /// Epochs that the block would be the first record of, or the first to speak of.
    fn new_epochs(&self, stream: &Stream, block: &Block) -> u64 {
        let mut epochs = BTreeSet::from([stream.1]);
        if let BlockBody::Gaps(gaps) = &block.body {
            epochs.extend(gaps.iter().filter_map(|gap| gap.lost).map(|lost| lost.epoch));
        }
        let is_new = |&epoch: &Epoch| {
            let stream = (stream.0.clone(), epoch);
            let committed = self.committed.get(&stream).map(|known| &known.watermark);
            self.tip.get(&stream).or(committed).is_none_or(|watermark| watermark.spans().is_empty())
        };
        epochs.iter().filter(|epoch| is_new(epoch)).count() as u64
    }

    fn admit(&mut self, stream: Stream, block: Block, received_ms: i64, mono_ms: u64) {
        let span = span_of(&block.header);
        self.filling.wait(Reply::to(&block), mono_ms);
        self.filling.bytes += block.frame.len();
        self.tip(&stream).insert(span);
        let Block { satellite, header, body, frame, .. } = block;
        let Header { epoch, first_seq, count, .. } = header;
        let origin = Origin { satellite: &satellite, epoch, first_seq, count, received_ms };
        let unstorable = match body {
            BlockBody::Samples { groups, series } => self.admit_samples(&stream, span, &origin, groups, &series),
            BlockBody::Gaps(gaps) => self.admit_gaps(&stream, span, &origin, gaps),
            BlockBody::Dead(error) => Err(error),
        };
        if let Err(error) = unstorable {
            self.filling.letter_streams.push(stream);
            self.filling.letters.push(DeadLetter { satellite, epoch, span, frame, error, at_ms: received_ms });
        }
    }

    fn admit_samples(
        &mut self,
        stream: &Stream,
        span: Span,
        origin: &Origin<'_>,
        groups: Vec<Group>,
        series: &HashMap<u32, Arc<Series>>,
    ) -> Result<(), String> {
        self.filling.batch.add_samples(origin, groups, series).map_err(|error| error.to_string())?;
        let tally = self.filling.holds.entry(stream.clone()).or_default();
        tally.cover(span);
        tally.stored += u64::from(origin.count);
        Ok(())
    }

    fn admit_gaps(&mut self, stream: &Stream, span: Span, origin: &Origin<'_>, gaps: Vec<Gap>) -> Result<(), String> {
        check_gaps(&gaps, origin.count).map_err(|error| error.to_string())?;
        self.check_losses(&stream.0, &gaps)?;
        self.filling.holds.entry(stream.clone()).or_default().cover(span);
        for (seq, gap) in (origin.first_seq..).zip(gaps) {
            let (epoch, lost) = match gap.lost {
                Some(lost) => (lost.epoch, Some(lost_span(&lost, gap.count))),
                None => (stream.1, None),
            };
            let stream = (stream.0.clone(), epoch);
            // A loss explains what was a hole; the rest had arrived, though the satellite never heard of it.
            let explains = lost.map_or(gap.count, |lost| self.tip(&stream).insert(lost).min(gap.count));
            let tally = self.filling.holds.entry(stream).or_default();
            if let Some(lost) = lost {
                tally.cover(lost);
            }
            tally.explained = tally.explained.saturating_add(explains);
            self.filling.batch.add_gap(origin, seq, gap, explains);
        }
        Ok(())
    }

    /// Losses may leave no more holes open than records may.
    fn check_losses(&mut self, satellite: &SatelliteId, gaps: &[Gap]) -> Result<(), String> {
        let mut declared: BTreeMap<Epoch, Watermark> = BTreeMap::new();
        for gap in gaps {
            let Some(lost) = gap.lost else { continue };
            let tip = match declared.entry(lost.epoch) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.tip(&(satellite.clone(), lost.epoch)).clone()),
            };
            tip.insert(lost_span(&lost, gap.count));
            if tip.spans().len() > SPANS_MAX {
                return Err(format!("the losses of epoch {} leave more than {SPANS_MAX} holes", lost.epoch));
            }
        }
        Ok(())
    }

    fn tip(&mut self, stream: &Stream) -> &mut Watermark {
        let committed = self.committed.get(stream);
        self.tip
            .entry(stream.clone())
            .or_insert_with(|| committed.map(|known| known.watermark.clone()).unwrap_or_default())
    }

    /// How long until the batch should be committed; `None` while there is nothing to commit.
    #[must_use]
    pub fn due_in_ms(&self, bounds: &Bounds, mono_ms: u64) -> Option<u64> {
        let filling = &self.filling;
        if filling.replies.is_empty() {
            return None;
        }
        if self.is_full(bounds) {
            return Some(0);
        }
        let age = filling.since_mono_ms.saturating_add(bounds.age_ms_max).saturating_sub(mono_ms);
        let idle = filling.latest_mono_ms.saturating_add(bounds.idle_ms).saturating_sub(mono_ms);
        Some(if filling.batch.rows >= bounds.idle_rows { age.min(idle) } else { age })
    }

    /// Whether the batch can take no more.
    #[must_use]
    pub fn is_full(&self, bounds: &Bounds) -> bool {
        let Filling { batch, bytes, replies, letters, .. } = &self.filling;
        batch.rows >= bounds.rows_max
            || *bytes >= bounds.bytes_max
            || batch.pieces.len() >= PIECES_MAX
            || replies.len() + letters.len() >= PIECES_MAX
    }

    /// Closes the batch that was filled and opens another.
    #[must_use]
    pub fn seal(&mut self, next: BatchId) -> Filling {
        std::mem::replace(&mut self.filling, Filling::new(next))
    }

    /// What was sealed is committed: answers for it, and for all that waited for nothing else.
    pub fn committed(&mut self, sealed: Filling) {
        for (stream, span) in sealed.spans() {
            if let Some(known) = self.committed.get_mut(stream) {
                known.watermark.insert(span);
            }
        }
        sealed.replies.iter().for_each(Reply::stored);
        let touched: BTreeSet<Stream> = self.filling.spans().map(|(stream, _)| stream.clone()).collect();
        self.tip.retain(|stream, _| touched.contains(stream));
        if touched.is_empty() {
            self.filling.replies.drain(..).for_each(|reply| reply.stored());
        }
    }

    /// What was sealed can't be committed: gives it and all that came after back.
    pub fn failed(&mut self, sealed: Filling, next: BatchId, message: &str) {
        let after = self.seal(next);
        self.tip.clear();
        // Some of these were counted and are not stored now: the registry is asked again.
        self.epochs.clear();
        let replies = sealed.replies.into_iter().chain(after.replies);
        replies.for_each(|reply| reply.refused(NackCode::Retry, message.to_owned()));
    }
}

impl Filling {
    fn new(id: BatchId) -> Self {
        Self {
            batch: Batch::new(id),
            holds: BTreeMap::new(),
            letters: Vec::new(),
            letter_streams: Vec::new(),
            replies: Vec::new(),
            bytes: 0,
            since_mono_ms: 0,
            latest_mono_ms: 0,
        }
    }

    /// What the objects hold, for the registry.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let holding = |((satellite, epoch), tally): (&Stream, &Tally)| Holding {
            satellite: satellite.clone(),
            epoch: *epoch,
            tally: tally.clone(),
        };
        self.holds.iter().map(holding).collect()
    }

    fn wait(&mut self, reply: Reply, mono_ms: u64) {
        if self.replies.is_empty() {
            self.since_mono_ms = mono_ms;
        }
        self.latest_mono_ms = mono_ms;
        self.replies.push(reply);
    }

    fn spans(&self) -> impl Iterator<Item = (&Stream, Span)> {
        let held = self.holds.iter();
        let held = held.flat_map(|(stream, tally)| tally.watermark.spans().iter().map(move |&span| (stream, span)));
        held.chain(self.letter_streams.iter().zip(self.letters.iter().map(|letter| letter.span)))
    }
}

impl Reply {
    fn to(block: &Block) -> Self {
        Self {
            to: block.reply.clone(),
            epoch: block.header.epoch,
            first_seq: block.header.first_seq,
            last_seq: block.header.last_seq(),
            bytes: block.frame.len(),
        }
    }

    fn stored(&self) {
        let Self { epoch, first_seq, last_seq, bytes, .. } = *self;
        self.say(Outcome::Stored { epoch, first_seq, last_seq, bytes });
    }

    fn refused(self, code: NackCode, message: String) {
        let Self { epoch, first_seq, bytes, .. } = self;
        self.say(Outcome::Refused { epoch, first_seq, bytes, code, message });
    }

    fn say(&self, outcome: Outcome) {
        if self.to.send(outcome).is_err() {
            tracing::trace!(first_seq = self.first_seq, "the session that sent a block is gone");
        }
    }
}

fn span_of(header: &Header) -> Span {
    Span {
        first: header.first_seq,
        last: header.last_seq(),
        due_before: header.due_before,
        due_through: header.due_through(),
    }
}

fn lost_span(lost: &satellite_shared::gap::Lost, count: u64) -> Span {
    // The first record has nothing before it; elsewhere the gap's own count says where its due samples begin.
    let due_before = if lost.first_seq == 1 { 0 } else { lost.due_through.saturating_sub(count) };
    Span { first: lost.first_seq, last: lost.last_seq, due_before, due_through: lost.due_through }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::Now;
    use satellite_shared::gap::{Lost, Reason};
    use satellite_shared::wire::block::{ClockQuality, FrameKind};

    use super::*;

    fn who() -> SatelliteId {
        SatelliteId::from_bits([1; 10])
    }

    fn intake(epochs_max: u64) -> (Intake, mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>) {
        let mut intake = Intake::new(BatchId::new(0, [0; 10]));
        intake.epochs_max = epochs_max;
        let (reply, outcomes) = mpsc::unbounded_channel();
        (intake, reply, outcomes)
    }

    fn block(epoch: u128, first_seq: u64, lost: &[Lost], reply: &mpsc::UnboundedSender<Outcome>) -> Block {
        let gap = |lost: Option<Lost>| Gap {
            device: None,
            metric: None,
            from_ms: 0,
            to_ms: 0,
            count: 1,
            reason: Reason::Stopped,
            detail: String::new(),
            lost,
        };
        let gaps: Vec<Gap> =
            if lost.is_empty() { vec![gap(None)] } else { lost.iter().map(|&one| gap(Some(one))).collect() };
        let header = Header {
            kind: FrameKind::Gaps,
            quality: ClockQuality::Unknown,
            epoch: Epoch(epoch),
            first_seq,
            count: u32::try_from(gaps.len()).unwrap(),
            due: gaps.iter().map(Gap::due).sum(),
            due_before: 0,
            made: Now { wall_ms: 0, mono_ms: 0 },
        };
        let body = BlockBody::Gaps(gaps);
        Block { satellite: who(), header, body, frame: bytes::Bytes::from_static(b"x"), reply: reply.clone() }
    }

    fn lost(epoch: u128, first_seq: u64) -> Lost {
        Lost { epoch: Epoch(epoch), first_seq, last_seq: first_seq, due_through: first_seq }
    }

    #[test]
    fn epochs_without_end_are_refused_and_those_that_are_known_go_on() {
        let (mut intake, reply, mut outcomes) = intake(3);
        intake.count(&who(), 1);
        intake.take(block(1, 1, &[], &reply), 0, 0);
        intake.take(block(2, 1, &[], &reply), 0, 0);
        assert!(outcomes.try_recv().is_err(), "both wait for their commit");
        intake.take(block(3, 1, &[], &reply), 0, 0);
        assert!(matches!(outcomes.try_recv(), Ok(Outcome::Refused { code: NackCode::Retry, .. })));
        // A loss is a way to begin an epoch too.
        intake.take(block(1, 2, &[lost(4, 1)], &reply), 0, 0);
        assert!(matches!(outcomes.try_recv(), Ok(Outcome::Refused { code: NackCode::Retry, .. })));
        intake.take(block(1, 2, &[lost(2, 7)], &reply), 0, 0);
        assert!(outcomes.try_recv().is_err());
        assert_eq!(intake.filling.replies.len(), 3);
        // Counted again, what was taken is not forgotten.
        intake.count(&who(), 1);
        assert_eq!(intake.epochs[&who()], 3);
    }

    #[test]
    fn losses_that_leave_too_many_holes_are_set_aside() {
        let (mut intake, reply, _outcomes) = intake(EPOCHS_MAX);
        let holes = |first: u64, count: u64| -> Vec<Lost> { (first..first + count).map(|n| lost(9, 10 * n)).collect() };
        let half = SPANS_MAX as u64 / 2;
        intake.take(block(1, 1, &holes(1, half), &reply), 0, 0);
        intake.take(block(1, 1 + half, &holes(1 + half, half), &reply), 0, 0);
        assert!(intake.filling.letters.is_empty());
        intake.take(block(1, 1 + 2 * half, &holes(1 + 2 * half, 1), &reply), 0, 0);
        assert_eq!(intake.filling.letters.len(), 1);
        assert!(intake.filling.letters[0].error.contains("holes"), "{}", intake.filling.letters[0].error);
        assert_eq!(intake.tip[&(who(), Epoch(9))].spans().len(), SPANS_MAX);
        // One that closes a hole is welcome.
        let between = Lost { epoch: Epoch(9), first_seq: 11, last_seq: 19, due_through: 19 };
        intake.take(block(1, 2 + 2 * half, &[between], &reply), 0, 0);
        assert_eq!(intake.filling.letters.len(), 1);
        assert_eq!(intake.tip[&(who(), Epoch(9))].spans().len(), SPANS_MAX - 1);
    }
}
