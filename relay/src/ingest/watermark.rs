//! What is stored of one epoch, as spans of record numbers and of the due samples they account for.
//!
//! Every frame says how many due samples its epoch had accounted for before it, so a span knows both its numbers and
//! the due samples between its ends, and the due samples of a hole follow from its neighbours. That makes the account
//! exact even where a gap declares records lost which in truth had arrived: it explains only what was a hole.
//!
//! Pure: no clock, no registry. Numbers that contradict each other saturate; the account then shows the difference.

use satellite_shared::ranges::{Overlap, Ranges};
use serde::{Deserialize, Serialize};

/// Consecutive records, and the due samples accounted for before and with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64, u64, u64)", into = "(u64, u64, u64, u64)")]
pub struct Span {
    /// The first record's number.
    pub first: u64,
    /// The last record's number.
    pub last: u64,
    /// Samples due in the epoch before the first record.
    pub due_before: u64,
    /// Samples due in the epoch up to and with the last record.
    pub due_through: u64,
}

impl Span {
    /// The due samples that the span accounts for.
    #[must_use]
    pub fn covered(self) -> u64 {
        self.due_through.saturating_sub(self.due_before)
    }
}

impl From<(u64, u64, u64, u64)> for Span {
    fn from((first, last, due_before, due_through): (u64, u64, u64, u64)) -> Self {
        Self { first, last, due_before, due_through }
    }
}

impl From<Span> for (u64, u64, u64, u64) {
    fn from(span: Span) -> Self {
        (span.first, span.last, span.due_before, span.due_through)
    }
}

/// Sorted, disjoint, non-adjacent spans.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Watermark(Vec<Span>);

impl Watermark {
    /// The spans, in order.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.0
    }

    /// The record numbers alone, as the wire says them.
    #[must_use]
    pub fn ranges(&self) -> Ranges {
        self.0.iter().map(|span| (span.first, span.last)).collect()
    }

    /// The due samples that the spans account for.
    #[must_use]
    pub fn covered(&self) -> u64 {
        self.0.iter().map(|span| span.covered()).fold(0, u64::saturating_add)
    }

    /// How `first..=last` stands to what is stored.
    #[must_use]
    pub fn overlap(&self, first: u64, last: u64) -> Overlap {
        let start = self.0.partition_point(|span| span.last < first);
        match self.0.get(start) {
            Some(span) if span.first <= first && last <= span.last => Overlap::Whole,
            Some(span) if span.first <= last => Overlap::Partial,
            Some(_) | None => Overlap::None,
        }
    }

    /// Adds a span, merging it with what it touches, and says how many due samples are accounted for that were not.
    pub fn insert(&mut self, span: Span) -> u64 {
        let start = self.0.partition_point(|have| have.last.saturating_add(1) < span.first);
        let end = self.0.partition_point(|have| have.first <= span.last.saturating_add(1));
        if start >= end {
            self.0.insert(start, span);
            return span.covered();
        }
        let before = self.0[start..end].iter().map(|have| have.covered()).fold(0, u64::saturating_add);
        // What was stored before knows its ends from its own frames; a declared loss only reckons them.
        let (left, right) = (self.0[start], self.0[end - 1]);
        let mut merged = span;
        if left.first <= span.first {
            (merged.first, merged.due_before) = (left.first, left.due_before);
        }
        if right.last >= span.last {
            (merged.last, merged.due_through) = (right.last, right.due_through);
        }
        self.0.splice(start..end, [merged]);
        merged.covered().saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn span(first: u64, last: u64, due_before: u64, due_through: u64) -> Span {
        Span { first, last, due_before, due_through }
    }

    #[test]
    fn touching_spans_become_one_and_cover_what_both_did() {
        let mut watermark = Watermark::default();
        assert_eq!(watermark.insert(span(11, 20, 10, 25)), 15);
        assert_eq!(watermark.insert(span(1, 10, 0, 10)), 10);
        assert_eq!(watermark.spans(), [span(1, 20, 0, 25)]);
        assert_eq!(watermark.covered(), 25);
    }

    #[test]
    fn a_loss_that_was_stored_already_accounts_for_nothing_new() {
        let mut watermark = Watermark::default();
        watermark.insert(span(1, 10, 0, 10));
        watermark.insert(span(21, 30, 20, 30));
        // The satellite lost 1..=40 of which it never heard that 1..=10 and 21..=30 had arrived.
        assert_eq!(watermark.insert(span(1, 40, 0, 40)), 20);
        assert_eq!(watermark.insert(span(1, 40, 0, 40)), 0);
        assert_eq!(watermark.spans(), [span(1, 40, 0, 40)]);
    }

    #[test]
    fn numbers_that_contradict_do_not_panic() {
        let mut watermark = Watermark::default();
        watermark.insert(span(1, 10, 50, 3));
        watermark.insert(span(u64::MAX - 1, u64::MAX, u64::MAX, 0));
        assert_eq!(watermark.insert(span(5, u64::MAX, 0, 7)), 0);
    }

    #[test]
    fn it_survives_being_written_and_read() {
        let mut watermark = Watermark::default();
        watermark.insert(span(3, 9, 2, 8));
        let text = serde_json::to_string(&watermark).unwrap();
        assert_eq!(text, "[[3,9,2,8]]");
        assert_eq!(serde_json::from_str::<Watermark>(&text).unwrap(), watermark);
    }

    proptest! {
        /// Each number has its own due count; any spans in any order account for exactly the numbers they hold.
        #[test]
        fn it_accounts_for_each_record_once(
            dues in prop::collection::vec(0u64..5, 60),
            pieces in prop::collection::vec((1u64..50, 0u64..10), 1..30),
        ) {
            let through: Vec<u64> = dues.iter().scan(0, |sum, due| { *sum += due; Some(*sum) }).collect();
            let before = |n: u64| if n == 1 { 0 } else { through[n as usize - 2] };
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut watermark = Watermark::default();
            for (first, more) in pieces {
                let last = first + more;
                let new: u64 = (first..=last).filter(|n| !model.contains_key(n)).map(|n| dues[n as usize - 1]).sum();
                let overlap = match (first..=last).filter(|n| model.contains_key(n)).count() as u64 {
                    0 => Overlap::None,
                    n if n == more + 1 => Overlap::Whole,
                    _ => Overlap::Partial,
                };
                prop_assert_eq!(watermark.overlap(first, last), overlap);
                let inserted = watermark.insert(span(first, last, before(first), through[last as usize - 1]));
                prop_assert_eq!(inserted, new);
                model.extend((first..=last).map(|n| (n, dues[n as usize - 1])));
                prop_assert_eq!(watermark.covered(), model.values().sum::<u64>());
                prop_assert_eq!(watermark.ranges().len(), model.len() as u64);
            }
        }
    }
}
