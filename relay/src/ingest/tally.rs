//! The account of one epoch: what is stored of it, and how many due samples were stored, explained or set aside.
//!
//! Each due sample is counted in exactly one of the three, and the watermark counts them a second time by the frames'
//! own sums. For an honest satellite the two agree, so `due = stored + explained + set_aside + waiting`, where what
//! waits is what no span covers yet; [`Tally::is_balanced`] says whether they do.

use serde::{Deserialize, Serialize};

use crate::ingest::watermark::{Span, Watermark};

/// The account of one epoch, or what a batch adds to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// What is stored, explained or set aside.
    pub watermark: Watermark,
    /// Samples due, as far as any frame has said.
    pub due: u64,
    /// Samples in storage.
    pub stored: u64,
    /// Due samples that gaps explain.
    pub explained: u64,
    /// Due samples in frames that were set aside as dead letters.
    pub set_aside: u64,
}

impl Tally {
    /// Counts what these records hold, without saying yet what became of them.
    pub fn cover(&mut self, span: Span) {
        self.watermark.insert(span);
        self.due = self.due.max(span.due_through);
    }

    /// Adds what a batch holds of the same epoch.
    pub fn add(&mut self, more: &Self) {
        for &span in more.watermark.spans() {
            self.watermark.insert(span);
        }
        self.due = self.due.max(more.due);
        self.stored = self.stored.saturating_add(more.stored);
        self.explained = self.explained.saturating_add(more.explained);
        self.set_aside = self.set_aside.saturating_add(more.set_aside);
    }

    /// Due samples of which nothing is known yet, where so many are due.
    #[must_use]
    pub fn waiting(&self, due: u64) -> u64 {
        due.max(self.due).saturating_sub(self.accounted())
    }

    /// Due samples that are stored, explained or set aside.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.stored.saturating_add(self.explained).saturating_add(self.set_aside)
    }

    /// Whether both ways of counting agree.
    #[must_use]
    pub fn is_balanced(&self) -> bool {
        self.accounted() == self.watermark.covered() && self.accounted() <= self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: u64, last: u64, due_before: u64, due_through: u64) -> Span {
        Span { first, last, due_before, due_through }
    }

    #[test]
    fn what_no_span_covers_is_waiting() {
        let mut tally = Tally::default();
        tally.cover(span(1, 10, 0, 10));
        tally.cover(span(21, 30, 20, 30));
        tally.stored = 20;
        assert_eq!((tally.due, tally.waiting(0), tally.waiting(35)), (30, 10, 15));
        assert!(tally.is_balanced());
    }

    #[test]
    fn a_count_that_the_frames_do_not_bear_out_is_not_balanced() {
        let mut tally = Tally::default();
        tally.cover(span(1, 10, 0, 10));
        tally.stored = 9;
        assert!(!tally.is_balanced());
    }

    #[test]
    fn adding_in_parts_is_adding_at_once() {
        let (mut whole, mut parts) = (Tally::default(), Tally::default());
        for (first, last) in [(11, 20), (1, 10), (31, 40)] {
            let mut part = Tally { stored: 10, ..Tally::default() };
            part.cover(span(first, last, first - 1, last));
            parts.add(&part);
            whole.cover(span(first, last, first - 1, last));
            whole.stored += 10;
        }
        assert_eq!(whole, parts);
    }
}
