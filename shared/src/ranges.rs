//! A set of sequence numbers as sorted, disjoint, inclusive ranges: what a relay has committed of an epoch.

use serde::{Deserialize, Serialize};

/// Sorted, disjoint, non-adjacent inclusive ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges(Vec<(u64, u64)>);

/// How a range stands to a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// None of it is in the set.
    None,
    /// Some of it is.
    Partial,
    /// All of it is.
    Whole,
}

impl Ranges {
    /// The ranges, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[(u64, u64)] {
        &self.0
    }

    /// Adds a range, merging it with what it touches.
    pub fn insert(&mut self, first: u64, last: u64) {
        debug_assert!(first <= last, "a range has an order");
        let start = self.0.partition_point(|&(_, l)| l.saturating_add(1) < first);
        let end = self.0.partition_point(|&(f, _)| f <= last.saturating_add(1));
        if start == end {
            self.0.insert(start, (first, last));
            return;
        }
        let merged = (first.min(self.0[start].0), last.max(self.0[end - 1].1));
        self.0.splice(start..end, [merged]);
    }

    /// How `first..=last` stands to the set.
    #[must_use]
    pub fn overlap(&self, first: u64, last: u64) -> Overlap {
        let start = self.0.partition_point(|&(_, l)| l < first);
        match self.0.get(start) {
            Some(&(f, l)) if f <= first && last <= l => Overlap::Whole,
            Some(&(f, _)) if f <= last => Overlap::Partial,
            Some(_) | None => Overlap::None,
        }
    }

    /// How many numbers are in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(pairs: I) -> Self {
        let mut ranges = Self::default();
        for (first, last) in pairs {
            if first <= last {
                ranges.insert(first, last);
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn touching_ranges_become_one() {
        let ranges: Ranges = [(1, 3), (7, 9), (4, 6)].into_iter().collect();
        assert_eq!(ranges.as_slice(), [(1, 9)]);
    }

    proptest! {
        #[test]
        fn it_is_a_set(pairs in prop::collection::vec((0u64..60, 0u64..8), 0..30), first in 0u64..70, len in 0u64..9) {
            let pairs: Vec<_> = pairs.into_iter().map(|(f, n)| (f, f + n)).collect();
            let model: BTreeSet<u64> = pairs.iter().flat_map(|&(f, l)| f..=l).collect();
            let ranges: Ranges = pairs.into_iter().collect();
            prop_assert_eq!(ranges.len(), model.len() as u64);
            let last = first + len;
            let inside = (first..=last).filter(|n| model.contains(n)).count() as u64;
            let expected = match inside {
                0 => Overlap::None,
                n if n == len + 1 => Overlap::Whole,
                _ => Overlap::Partial,
            };
            prop_assert_eq!(ranges.overlap(first, last), expected);
            prop_assert!(ranges.as_slice().windows(2).all(|w| w[0].1 + 1 < w[1].0));
        }
    }
}
