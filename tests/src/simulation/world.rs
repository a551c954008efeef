//! One round: the satellites, the relay and what is between them, moved one step at a time.
//!
//! Of all that could happen next, the dice choose; only when nothing can does time pass to the next timer. After the
//! slots are over the faults stop, and within a bounded number of steps everything must have come to rest.

use super::disk::Disk;
use super::faults::{Faults, Sabotage, happens};
use super::network::Network;
use super::oracle::{Oracle, Summary};
use super::relay::{self, Relay};
use super::satellite::{self, SLOT_MS, Satellite};
use super::storage::Storage;
use crate::rounds::Dice;

/// Steps before the faults stop, and after: no round is without end.
const STEPS_MAX: u32 = 60_000;
/// Lines of the trace that a failure shows.
const TRACE_MAX: usize = 400;
const WALL_MS: i64 = 1_790_000_000_000;
const YEAR_MS: i64 = 365 * 24 * 3_600_000;

/// What every part can reach.
#[derive(Debug)]
pub struct Outside {
    /// The true time.
    pub now_ms: u64,
    /// Chance.
    pub dice: Dice,
    /// What goes wrong.
    pub faults: Faults,
    /// The connections.
    pub network: Network,
    /// The judge.
    pub oracle: Oracle,
    /// The last slot of the schedule.
    pub last_slot: u64,
    violation: Option<String>,
    trace: Option<Vec<String>>,
}

impl Outside {
    /// Writes into the trace, where there is one.
    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} ms  {}", self.now_ms, what()));
        }
    }

    /// Something happened that never may.
    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A satellite has numbered records.
    pub fn number(&mut self, satellite: usize, commit: &satellite_agent::buffer::Commit) {
        if let Err(why) = self.oracle.number(satellite, commit) {
            self.violate(why);
        }
    }
}

/// Why a round failed, and what led to it.
#[derive(Debug)]
pub struct Failure {
    /// What is wrong.
    pub why: String,
    /// The last steps, where they were traced.
    pub trace: Vec<String>,
}

struct World {
    out: Outside,
    satellites: Vec<Satellite>,
    relay: Relay,
}

enum Act {
    Satellite(usize, satellite::Act),
    Relay(relay::Act),
}

/// One round of this seed.
///
/// # Errors
/// Says what is wrong.
pub fn round(seed: u64, sabotage: Sabotage, traced: bool) -> Result<Summary, Failure> {
    let mut world = World::new(seed, sabotage, traced);
    let result = world.run();
    result.map_err(|why| {
        let mut trace = world.out.trace.take().unwrap_or_default();
        trace.drain(..trace.len().saturating_sub(TRACE_MAX));
        Failure { why, trace }
    })
}

impl World {
    fn new(seed: u64, sabotage: Sabotage, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let faults = Faults::draw(&mut dice, sabotage);
        let lies = sabotage == Sabotage::CommitBeforeFlush;
        let satellites: Vec<Satellite> = (0..faults.satellites)
            .map(|index| {
                let disk = Disk::new(Dice::new(dice.roll()), lies);
                disk.set_fails(faults.disk_fails);
                Satellite::new(index, WALL_MS, disk)
            })
            .collect();
        let mut storage = Storage::new(Dice::new(dice.roll()), sabotage == Sabotage::RegistryNotFlushed);
        (storage.fails, storage.lands_late) = (faults.storage_fails, faults.lands_late);
        let ids = satellites.iter().map(|satellite| satellite.id.clone()).collect();
        let oracle = Oracle::new(ids, faults.samples);
        let relay = Relay::new(WALL_MS, storage, faults.credit_bytes, faults.commit_every_ms);
        let trace = traced.then(|| vec![format!("{faults:?}")]);
        let network = Network::default();
        let out = Outside { now_ms: 0, dice, faults, network, oracle, last_slot: u64::MAX, violation: None, trace };
        Self { out, satellites, relay }
    }

    fn run(&mut self) -> Result<Summary, String> {
        let end_ms = self.out.faults.slots * SLOT_MS;
        let mut steps = 0;
        while self.out.now_ms < end_ms && steps < STEPS_MAX {
            self.fail();
            self.step()?;
            steps += 1;
        }
        self.settle();
        for _ in 0..STEPS_MAX {
            if self.relay.is_at_rest() && self.satellites.iter().all(|satellite| satellite.is_at_rest(&self.out)) {
                let last_slot = i64::try_from(self.out.last_slot).unwrap_or(0);
                let storage = &self.relay.storage;
                return self.out.oracle.judge(last_slot, &storage.objects, &storage.registry);
            }
            self.step()?;
        }
        let satellites: Vec<String> = self.satellites.iter().map(Satellite::describe).collect();
        Err(format!("no rest: {}; the relay rests: {}", satellites.join("; "), self.relay.is_at_rest()))
    }

    /// The faults stop.
    fn settle(&mut self) {
        self.out.say(|| "the faults stop".into());
        self.out.last_slot = self.out.now_ms / SLOT_MS;
        self.out.faults.settle();
        self.out.network.down_until_ms = 0;
        for connection in self.out.network.connections.values_mut() {
            connection.up.stalled_until_ms = 0;
            connection.down.stalled_until_ms = 0;
        }
        for satellite in &self.satellites {
            satellite.disk.set_fails(0);
        }
        let storage = &mut self.relay.storage;
        (storage.fails, storage.lands_late, storage.out_until_ms) = (0, 0, 0);
    }

    fn step(&mut self) -> Result<(), String> {
        let mut acts = Vec::new();
        let mut own = Vec::new();
        for satellite in &self.satellites {
            satellite.acts(&self.out, &mut own);
            acts.extend(own.drain(..).map(|act| Act::Satellite(satellite.index, act)));
        }
        let mut own = Vec::new();
        self.relay.acts(&self.out, &mut own);
        acts.extend(own.into_iter().map(Act::Relay));
        if acts.is_empty() {
            let next = self.satellites.iter().map(|satellite| satellite.next_ms(&self.out)).min().unwrap_or(u64::MAX);
            let next = next.min(self.relay.next_ms(&self.out));
            if next == u64::MAX {
                return Err("nothing will ever happen again".into());
            }
            self.advance(next.saturating_sub(self.out.now_ms).max(1));
            return Ok(());
        }
        let chosen = self.out.dice.below(acts.len() as u64);
        match acts.swap_remove(usize::try_from(chosen).unwrap_or(0)) {
            Act::Satellite(index, satellite::Act::Dial) => self.dial(index),
            Act::Satellite(index, act) => self.satellites[index].act(act, &mut self.out),
            Act::Relay(act) => self.relay.act(act, &mut self.out),
        }
        let passed = self.out.dice.below(8);
        self.advance(passed);
        self.out.violation.take().map_or(Ok(()), Err)
    }

    fn advance(&mut self, ms: u64) {
        self.out.now_ms += ms;
        for satellite in &self.satellites {
            satellite.watch.advance(ms);
        }
        self.relay.watch.advance(ms);
        self.relay.storage.land(self.out.now_ms);
    }

    fn dial(&mut self, index: usize) {
        let satellite = &mut self.satellites[index];
        if self.relay.running.is_none() || self.out.now_ms < self.out.network.down_until_ms {
            return satellite.act(satellite::Act::Dial, &mut self.out);
        }
        let number = self.out.network.open(index);
        satellite.connect(number, &mut self.out);
        self.relay.accept(number, index, &satellite.id, &mut self.out);
    }

    /// What goes wrong before the next step.
    fn fail(&mut self) {
        let faults = self.out.faults.clone();
        self.fail_network(&faults);
        let now_ms = self.out.now_ms;
        let one = usize::try_from(self.out.dice.below(self.satellites.len() as u64)).unwrap_or(0);
        let satellite = &mut self.satellites[one];
        if happens(&mut self.out.dice, faults.satellite_ends) && satellite.running.is_some() {
            // In the middle of a commit, or between two acts.
            if self.out.dice.one_in(2) {
                satellite.disk.fail_in(Some(self.out.dice.below(3)));
                satellite.act(satellite::Act::Commit, &mut self.out);
                satellite.disk.fail_in(None);
            }
            let power = happens(&mut self.out.dice, faults.power_cut);
            satellite.end(power, &mut self.out);
        }
        if happens(&mut self.out.dice, faults.relay_ends) {
            let power = happens(&mut self.out.dice, faults.power_cut);
            self.relay.end(power, &mut self.out);
        }
        if happens(&mut self.out.dice, faults.storage_out) {
            self.relay.storage.out_until_ms = now_ms + self.out.dice.below(40_000);
        }
        if happens(&mut self.out.dice, faults.disk_restored) {
            satellite.copy_or_restore(&mut self.out);
        }
        if happens(&mut self.out.dice, faults.relay_restored) {
            self.relay.copy_or_restore(&mut self.out);
        }
        if happens(&mut self.out.dice, faults.wall_stepped) {
            let watch = if self.out.dice.one_in(2) { &satellite.watch } else { &self.relay.watch };
            let steps = [-10 * YEAR_MS, 10 * YEAR_MS, -3_600_000, 3_600_000];
            let step = steps[usize::try_from(self.out.dice.below(4)).unwrap_or(0)];
            let wall_ms = if self.out.dice.one_in(5) { 0 } else { watch.now().wall_ms.saturating_add(step) };
            watch.step_wall(wall_ms);
            self.out.say(|| format!("a wall clock is set to {wall_ms}"));
        }
    }

    fn fail_network(&mut self, faults: &Faults) {
        let now_ms = self.out.now_ms;
        if happens(&mut self.out.dice, faults.partition) {
            let until_ms = now_ms + self.out.dice.below(120_000);
            self.out.network.down_until_ms = until_ms;
            for connection in self.out.network.connections.values_mut() {
                (connection.up.stalled_until_ms, connection.down.stalled_until_ms) = (until_ms, until_ms);
            }
            self.out.say(|| format!("nothing gets through until {until_ms}"));
        }
        let connections: Vec<u64> = self.out.network.connections.keys().copied().collect();
        if connections.is_empty() {
            return;
        }
        let one = connections[usize::try_from(self.out.dice.below(connections.len() as u64)).unwrap_or(0)];
        if happens(&mut self.out.dice, faults.cut) {
            let silent = happens(&mut self.out.dice, faults.half_open);
            self.out.network.cut(one, &mut self.out.dice, silent);
            self.out.say(|| format!("connection {one} is cut, silently: {silent}"));
        }
        if happens(&mut self.out.dice, faults.stall)
            && let Some(connection) = self.out.network.connections.get_mut(&one)
        {
            let until_ms = now_ms + self.out.dice.below(70_000);
            let way = if self.out.dice.one_in(2) { &mut connection.up } else { &mut connection.down };
            way.stalled_until_ms = until_ms;
        }
    }
}
