//! The relay's two memories: the registry, whose transactions are durable when they return, and the archive, whose puts
//! are whole or absent.
//!
//! A request may fail having done its work or not, and a put that failed may land minutes later. The registry keeps
//! what its SQL keeps; accounts are added up by the relay's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use satellite_relay::ingest::Tally;
use satellite_relay::registry::batches::Content;
use satellite_relay::registry::{DeadLetter, Intent};
use satellite_relay::sink::Batch;
use satellite_relay::sink::archive::Object;
use satellite_relay::sink::archive::layout::{self, Hour, Table};
use satellite_shared::gap::Gap;
use satellite_shared::id::{Epoch, SatelliteId};

use super::faults::happens;
use crate::rounds::Dice;

/// A put of a relay that has died lands within this, or never.
const LATE_MS_MAX: u64 = 540_000;

/// A request failed; nobody knows what it did.
#[derive(Debug)]
pub struct Failed;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Written down.
    Intent,
    /// Its objects are there and its records counted.
    Done,
    /// Its objects are deleted.
    Abandoned,
    /// And so is what landed later.
    Swept,
}

/// One row of the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Whose.
    pub satellite: SatelliteId,
    /// Whose numbers.
    pub epoch: Epoch,
    /// Its number.
    pub seq: u64,
    /// What it says.
    pub what: What,
}

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A sample.
    Sample {
        /// Of this series.
        series: String,
        /// When.
        time_ms: i64,
        /// Bit for bit.
        value: u64,
    },
    /// A gap, and how much it is the first to explain.
    Gap(Gap, u64),
}

/// An object and what it holds.
#[derive(Debug, Clone)]
pub struct Stored {
    /// As the relay puts it.
    pub object: Object,
    /// As a reader finds it.
    pub rows: Rc<[Row]>,
}

/// What the registry holds.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    /// The batches by their names.
    pub batches: BTreeMap<String, (State, Content)>,
    /// The account of each epoch.
    pub streams: BTreeMap<(SatelliteId, Epoch), Tally>,
    letters: BTreeSet<(SatelliteId, Epoch, u64)>,
}

/// Both memories.
#[derive(Debug)]
pub struct Storage {
    dice: Dice,
    /// What the registry holds.
    pub registry: Registry,
    /// What of it a power cut leaves, where that is not all.
    unflushed: Option<Registry>,
    /// What lies in the archive.
    pub objects: BTreeMap<String, Stored>,
    /// Puts that land later.
    late: Vec<(u64, Stored)>,
    /// Of the requests, one in so many fails.
    pub fails: u64,
    /// Of the puts that fail, one in so many lands later.
    pub lands_late: u64,
    /// Nothing answers before this.
    pub out_until_ms: u64,
}

impl Storage {
    /// Both empty; `volatile` where a power cut shall take what the registry has said.
    #[must_use]
    pub fn new(dice: Dice, volatile: bool) -> Self {
        Self {
            dice,
            registry: Registry::default(),
            unflushed: volatile.then(Registry::default),
            objects: BTreeMap::new(),
            late: Vec::new(),
            fails: 0,
            lands_late: 0,
            out_until_ms: 0,
        }
    }

    /// Whether the request is answered; where not, by dice it is performed all the same.
    fn ask<T>(&mut self, now_ms: u64, act: impl FnOnce(&mut Self) -> T) -> Result<T, Failed> {
        let fails = now_ms < self.out_until_ms || happens(&mut self.dice, self.fails);
        if fails {
            if self.dice.one_in(3) {
                act(self);
            }
            return Err(Failed);
        }
        Ok(act(self))
    }

    /// Writes a batch down. Saying it again changes nothing.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn intend(&mut self, now_ms: u64, intent: &Intent) -> Result<(), Failed> {
        self.ask(now_ms, |storage| {
            let new = (State::Intent, intent.content.clone());
            storage.registry.batches.entry(intent.id.clone()).or_insert(new);
        })
    }

    /// Ends a batch as done, adds what it holds, and keeps letters, together; false where it had been given up.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn finish(&mut self, now_ms: u64, intent: Option<&Intent>, letters: &[DeadLetter]) -> Result<bool, Failed> {
        self.ask(now_ms, |storage| {
            let registry = &mut storage.registry;
            if let Some(intent) = intent {
                match registry.batches.get_mut(&intent.id) {
                    Some(batch) if batch.0 == State::Intent => {
                        batch.0 = State::Done;
                        for holding in &intent.content.holds {
                            let stream = (holding.satellite.clone(), holding.epoch);
                            registry.streams.entry(stream).or_default().add(&holding.tally);
                        }
                    }
                    Some((State::Done, ..)) => {}
                    Some(_) | None => return false,
                }
            }
            for letter in letters {
                if registry.letters.insert((letter.satellite.clone(), letter.epoch, letter.span.first)) {
                    let stream = (letter.satellite.clone(), letter.epoch);
                    registry.streams.entry(stream).or_default().add(&letter.tally());
                }
            }
            true
        })
    }

    /// Ends a batch as abandoned; false where it was done.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn abandon(&mut self, now_ms: u64, id: &str) -> Result<bool, Failed> {
        self.ask(now_ms, |storage| match storage.registry.batches.get_mut(id) {
            Some(batch) if batch.0 == State::Intent => {
                batch.0 = State::Abandoned;
                true
            }
            Some((State::Abandoned, ..)) => true,
            Some(_) | None => false,
        })
    }

    /// The batches that did not end.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn unfinished(&mut self, now_ms: u64) -> Result<Vec<Intent>, Failed> {
        self.ask(now_ms, |storage| {
            let batches = storage.registry.batches.iter().filter(|(_, batch)| batch.0 == State::Intent);
            batches.map(|(id, batch)| Intent { id: id.clone(), content: batch.1.clone() }).collect()
        })
    }

    /// The batches that were abandoned and are not swept.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn abandoned(&mut self, now_ms: u64) -> Result<Vec<Intent>, Failed> {
        self.ask(now_ms, |storage| {
            let batches = storage.registry.batches.iter().filter(|(_, batch)| batch.0 == State::Abandoned);
            batches.map(|(id, batch)| Intent { id: id.clone(), content: batch.1.clone() }).collect()
        })
    }

    /// Notes that an abandoned batch is swept.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn note_swept(&mut self, now_ms: u64, id: &str) -> Result<(), Failed> {
        self.ask(now_ms, |storage| {
            let batch = storage.registry.batches.get_mut(id).filter(|batch| batch.0 == State::Abandoned);
            if let Some(batch) = batch {
                batch.0 = State::Swept;
            }
        })
    }

    /// The account of an epoch.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn stream(&mut self, now_ms: u64, stream: &(SatelliteId, Epoch)) -> Result<Option<Tally>, Failed> {
        self.ask(now_ms, |storage| storage.registry.streams.get(stream).cloned())
    }

    /// Puts an object, whole.
    ///
    /// # Errors
    /// When there is no answer. The object may be there all the same, or come later.
    pub fn put(&mut self, now_ms: u64, stored: &Stored) -> Result<(), Failed> {
        let put = |storage: &mut Self| drop(storage.objects.insert(stored.object.key.clone(), stored.clone()));
        let answer = self.ask(now_ms, put);
        if answer.is_err() && happens(&mut self.dice, self.lands_late) {
            let at_ms = now_ms + self.dice.below(LATE_MS_MAX);
            self.late.push((at_ms, stored.clone()));
        }
        answer
    }

    /// How long an object is.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn size(&mut self, now_ms: u64, key: &str) -> Result<Option<u64>, Failed> {
        self.ask(now_ms, |storage| storage.objects.get(key).map(|stored| stored.object.bytes.len() as u64))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn delete(&mut self, now_ms: u64, key: &str) -> Result<(), Failed> {
        self.ask(now_ms, |storage| drop(storage.objects.remove(key)))
    }

    /// Time has passed: what was late lands.
    pub fn land(&mut self, now_ms: u64) {
        let (landed, late) = std::mem::take(&mut self.late).into_iter().partition(|(at_ms, _)| *at_ms <= now_ms);
        self.late = late;
        for (_, stored) in landed {
            self.objects.insert(stored.object.key.clone(), stored);
        }
    }

    /// When the next late put lands.
    #[must_use]
    pub fn next_landing_ms(&self) -> Option<u64> {
        self.late.iter().map(|(at_ms, _)| *at_ms).min()
    }

    /// No put is under way any more.
    pub fn forget_late(&mut self) {
        self.late.clear();
    }

    /// Everything so far is durable, where a power cut would take it.
    pub fn sync(&mut self) {
        if let Some(durable) = &mut self.unflushed {
            *durable = self.registry.clone();
        }
    }

    /// The power goes.
    pub fn cut_power(&mut self) {
        if let Some(durable) = &self.unflushed {
            self.registry = durable.clone();
        }
    }
}

/// The objects of a batch: one for each hour of samples and each day of gaps, as the archive files them.
#[must_use]
pub fn objects(batch: &Batch) -> Vec<Stored> {
    let mut filed: BTreeMap<(Table, Hour), Vec<Row>> = BTreeMap::new();
    for piece in &batch.pieces {
        let times = piece.times_ms.len();
        for (n, value) in piece.values.iter().enumerate() {
            let (satellite, series) = &batch.series[piece.series[n / times] as usize];
            let row = Row {
                satellite: batch.satellites[*satellite as usize].clone(),
                epoch: piece.epoch,
                seq: piece.first_seq + n as u64,
                what: What::Sample {
                    series: series.name.clone(),
                    time_ms: piece.times_ms[n % times],
                    value: value.to_bits(),
                },
            };
            filed.entry((Table::Samples, piece.hours[n % times])).or_default().push(row);
        }
    }
    for gap in &batch.gaps {
        let row = Row {
            satellite: batch.satellites[gap.satellite as usize].clone(),
            epoch: gap.epoch,
            seq: gap.seq,
            what: What::Gap(gap.gap.clone(), gap.explains),
        };
        filed.entry((Table::Gaps, gap.hour)).or_default().push(row);
    }
    let stored = filed.into_iter().enumerate().map(|(n, ((table, hour), rows))| {
        let (key, bytes) = (layout::key(table, hour, &batch.id, n), vec![0; rows.len()].into());
        Stored { object: Object { key, bytes }, rows: rows.into() }
    });
    stored.collect()
}
