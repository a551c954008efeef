//! What the relay says that it stores, against what it has acknowledged.

use satellite_shared::id::SatelliteId;
use satellite_shared::wire::to_relay::Stream;
use satellite_shared::wire::to_satellite::Stored;

use super::super::book;
use super::super::history::{Past, Run};
use super::super::{HeldStream, Loss, Place};
use super::{Changes, Stock, StoreError, Values};

/// Blocks of one opening that are looked at even where their number alone explains what the relay does not store.
const BLOCKS_MAX: u64 = 2_000;

impl Stock {
    /// What is held, oldest first, then what was, newest first.
    #[must_use]
    pub fn numbered(&self, held: Vec<HeldStream>) -> Vec<Stream> {
        let mut streams: Vec<Stream> = held.into_iter().map(|held| held.stream).collect();
        for past in self.book.pasts().into_values().rev() {
            if streams.iter().all(|stream| stream.epoch != past.epoch) {
                let Past { epoch, opened_ms, last_seq, .. } = past;
                let first_seq = last_seq.saturating_add(1);
                streams.push(Stream { epoch, boot_id: String::new(), opened_ms, first_seq, last_seq });
            }
        }
        streams
    }

    /// Takes what the relay acknowledged and does not have any more for lost; how many records that is.
    ///
    /// # Errors
    /// When the store fails.
    pub fn compare<S: Values>(
        &mut self,
        store: &S,
        satellite: &SatelliteId,
        stored: &[Stored],
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        let mut next = self.book.clone();
        next.counter += 1;
        let mut changes = Changes::default();
        let mut losses = Vec::new();
        if self.book.satellite.as_ref() == Some(satellite) {
            losses = self.missing(store, stored, now_ms)?;
        } else {
            // Whatever was acknowledged before was not this satellite's: the relay need not know it.
            for (opening, past) in self.book.pasts() {
                let held = runs(store, opening)?;
                let first_held = held.first().map_or(past.last_seq.saturating_add(1), |run| run.first_seq);
                next.disclaim(opening, 1, first_held.saturating_sub(1), &mut changes);
            }
            next.satellite = Some(satellite.clone());
            next.put_history(&mut changes);
        }
        let records = losses.iter().map(|loss| loss.lost.last_seq - loss.lost.first_seq + 1).sum();
        for loss in losses {
            next.put_loss(loss, &mut changes);
        }
        if changes.count() > 0 {
            next.put_head(&mut changes);
            store.apply(changes)?;
            store.flush()?;
            self.unflushed = 0;
            self.book = next;
        }
        Ok(records)
    }

    fn missing<S: Values>(&self, store: &S, stored: &[Stored], now_ms: i64) -> Result<Vec<Loss>, StoreError> {
        let mut losses = Vec::new();
        let pasts = self.book.pasts();
        for (&opening, past) in &pasts {
            // An epoch that the relay does not speak of was left out of too long an answer.
            let Some(stored) = stored.iter().find(|one| one.epoch == past.epoch) else { continue };
            let held = self.book.openings.get(&opening);
            let (blocks, records) = held.map_or((0, 0), |held| (held.blocks, held.records));
            let unaccounted = past.unaccounted(&stored.ranges);
            if unaccounted > records || (unaccounted > 0 && blocks <= BLOCKS_MAX) {
                let next = pasts.range(opening.saturating_add(1)..).next();
                let until_ms = next.map_or(now_ms, |(_, next)| next.opened_ms);
                losses.extend(past.missing(&stored.ranges, &runs(store, opening)?, until_ms.max(past.opened_ms)));
            }
        }
        Ok(losses)
    }
}

/// What is held of an opening, without its holes.
fn runs<S: Values>(store: &S, opening: u32) -> Result<Vec<Run>, StoreError> {
    let (from, below) = (Place { opening, seq: 0 }, Place { opening: opening.saturating_add(1), seq: 0 });
    let mut runs: Vec<Run> = Vec::new();
    for item in store.blocks(from, below) {
        let (place, frame) = item?;
        let header = book::header_at(place, &frame)?;
        let run = Run {
            first_seq: header.first_seq,
            last_seq: header.last_seq(),
            due_before: header.due_before,
            due_through: header.due_through(),
            from_ms: header.made.wall_ms,
            to_ms: header.made.wall_ms,
        };
        match runs.last_mut().filter(|last| last.last_seq.saturating_add(1) == run.first_seq) {
            Some(last) => {
                (last.last_seq, last.due_through, last.to_ms) = (run.last_seq, run.due_through, run.to_ms);
            }
            None => runs.push(run),
        }
    }
    Ok(runs)
}
