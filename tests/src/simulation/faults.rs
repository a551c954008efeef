//! What goes wrong in a round, drawn from its seed; and the ways to break the code on purpose.
//!
//! Each round draws its own selection: a fault that is rare among all would hide behind those that are frequent.

use crate::rounds::Dice;

/// How often each fault comes: one in so many steps, 0 for never.
#[derive(Debug, Clone)]
pub struct Faults {
    /// Satellites of the relay.
    pub satellites: usize,
    /// Samples that each poll gives.
    pub samples: u64,
    /// Slots of the schedule before everything is left to settle.
    pub slots: u64,
    /// Bytes that a buffer may hold.
    pub bytes_max: u64,
    /// Bytes of credit.
    pub credit_bytes: u64,
    /// How long the relay gathers a batch, in milliseconds.
    pub commit_every_ms: u64,
    /// A poll that gives nothing: one in so many polls.
    pub poll_fails: u64,
    /// A connection is cut.
    pub cut: u64,
    /// Of cut connections, one in so many leaves an end that is told nothing.
    pub half_open: u64,
    /// Nothing gets through one way for a while.
    pub stall: u64,
    /// No connection works and none can be made for a while.
    pub partition: u64,
    /// A satellite's program ends.
    pub satellite_ends: u64,
    /// The relay's program ends.
    pub relay_ends: u64,
    /// Of these ends, one in so many is a power cut.
    pub power_cut: u64,
    /// Of a buffer's writes, one in so many fails.
    pub disk_fails: u64,
    /// Of the requests to storage and registry, one in so many fails, having done something or not.
    pub storage_fails: u64,
    /// Of the puts that fail, one in so many lands later.
    pub lands_late: u64,
    /// Storage does not answer for a while.
    pub storage_out: u64,
    /// A batch that can't be encoded: one in so many batches.
    pub encode_fails: u64,
    /// A satellite's disk is put back to an earlier copy.
    pub disk_restored: u64,
    /// The relay's registry and archive are put back to an earlier copy.
    pub relay_restored: u64,
    /// A wall clock is set.
    pub wall_stepped: u64,
    /// What is broken on purpose.
    pub sabotage: Sabotage,
}

impl Faults {
    /// The faults of a round.
    #[must_use]
    pub fn draw(dice: &mut Dice, sabotage: Sabotage) -> Self {
        let mut rate = |often: u64, seldom: u64| match dice.below(4) {
            0 | 1 => 0,
            2 => often,
            _ => seldom,
        };
        let (cut, half_open, stall, partition) = (rate(40, 150), rate(2, 4), rate(40, 150), rate(200, 600));
        let (satellite_ends, relay_ends) = (rate(120, 400), rate(120, 400));
        let (power_cut, disk_fails) = (rate(1, 2), rate(15, 60));
        let (storage_fails, lands_late, storage_out) = (rate(3, 12), rate(2, 6), rate(200, 500));
        let (encode_fails, wall_stepped, poll_fails) = (rate(5, 20), rate(60, 300), rate(3, 9));
        let (disk_restored, relay_restored) = match dice.below(8) {
            0 => (400, 0),
            1 => (0, 400),
            _ => (0, 0),
        };
        Self {
            satellites: usize::try_from(1 + dice.below(2)).unwrap_or(1),
            samples: 1 + dice.below(3),
            slots: 10 + dice.below(25),
            bytes_max: [2_500, 6_000, 1 << 20, 1 << 20][usize::try_from(dice.below(4)).unwrap_or(0)],
            credit_bytes: [600, 3_000, 1 << 20][usize::try_from(dice.below(3)).unwrap_or(0)],
            commit_every_ms: [200, 2_000, 10_000][usize::try_from(dice.below(3)).unwrap_or(0)],
            poll_fails,
            cut,
            half_open,
            stall,
            partition,
            satellite_ends,
            relay_ends,
            power_cut,
            disk_fails,
            storage_fails,
            lands_late,
            storage_out,
            encode_fails,
            disk_restored,
            relay_restored,
            wall_stepped,
            sabotage,
        }
    }

    /// No faults any more: what is broken on purpose stays broken.
    pub fn settle(&mut self) {
        *self = Self {
            poll_fails: 0,
            cut: 0,
            half_open: 0,
            stall: 0,
            partition: 0,
            satellite_ends: 0,
            relay_ends: 0,
            power_cut: 0,
            disk_fails: 0,
            storage_fails: 0,
            lands_late: 0,
            storage_out: 0,
            encode_fails: 0,
            disk_restored: 0,
            relay_restored: 0,
            wall_stepped: 0,
            ..self.clone()
        };
    }
}

/// Whether it happens now.
pub fn happens(dice: &mut Dice, one_in: u64) -> bool {
    one_in > 0 && dice.one_in(one_in)
}

/// A way to break the code on purpose, at the seam between it and the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing is broken.
    None,
    /// The relay answers a batch when it is sealed.
    AckBeforeCommit,
    /// The relay ends a batch, and moves the watermarks, before it puts the objects.
    WatermarkBeforeObject,
    /// What the registry has said is gone after a power cut.
    RegistryNotFlushed,
    /// A buffer that is opened again goes on with the epoch it had.
    EpochReused,
    /// The satellite deletes a block when it has sent it.
    DeleteOnSend,
    /// Acknowledged ranges end one record too late.
    AckTooLong,
    /// An unfinished batch is not resolved at the relay's start.
    IntentIgnored,
    /// An unfinished batch is taken for done without asking for its objects.
    IntentUnasked,
    /// The relay forgets what is committed when it takes blocks.
    DuplicateStored,
    /// The satellite explains no loss.
    GapForgotten,
    /// What gave nothing is booked twice.
    GapTwice,
    /// What was under way when a connection went is written again under new numbers.
    Renumbered,
    /// The buffer acknowledges a commit before it is flushed.
    CommitBeforeFlush,
    /// What was sent over one connection counts as sent on the next.
    InFlightKept,
    /// What the sweep should delete after a batch was abandoned stays.
    NotSwept,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AckBeforeCommit,
        Self::WatermarkBeforeObject,
        Self::RegistryNotFlushed,
        Self::EpochReused,
        Self::DeleteOnSend,
        Self::AckTooLong,
        Self::IntentIgnored,
        Self::IntentUnasked,
        Self::DuplicateStored,
        Self::GapForgotten,
        Self::GapTwice,
        Self::Renumbered,
        Self::CommitBeforeFlush,
        Self::InFlightKept,
        Self::NotSwept,
    ];
}
