//! A set of sequence numbers as sorted, disjoint, inclusive ranges: what a relay has committed of an epoch.

use serde::{Deserialize, Serialize};

/// Sorted, disjoint, non-adjacent inclusive ranges.
///
/// What a peer says is put in order as it is read: it may come unsorted, overlapping or turned around.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
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

    /// How many numbers are in the set; all that there are count as one less.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().fold(0, |sum: u64, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<(u64, u64)>> for Ranges {
    /// Pairs that are turned around are left out.
    fn from(mut pairs: Vec<(u64, u64)>) -> Self {
        pairs.retain(|(first, last)| first <= last);
        pairs.sort_unstable();
        // Sorted first, so that any number of pairs is merged at the end and nothing is moved.
        pairs.dedup_by(|next, before| {
            let touches = next.0 <= before.1.saturating_add(1);
            before.1 = if touches { before.1.max(next.1) } else { before.1 };
            touches
        });
        Self(pairs)
    }
}

impl From<Ranges> for Vec<(u64, u64)> {
    fn from(ranges: Ranges) -> Self {
        ranges.0
    }
}

impl FromIterator<(u64, u64)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(pairs: I) -> Self {
        pairs.into_iter().collect::<Vec<_>>().into()
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

    #[test]
    fn what_a_peer_says_is_put_in_order() {
        let read = |text: &str| serde_json::from_str::<Ranges>(text).unwrap();
        assert_eq!(read("[[7,9],[1,3],[9,3],[2,5]]").as_slice(), [(1, 5), (7, 9)]);
        let all = read("[[5,5],[0,18446744073709551615],[18446744073709551615,18446744073709551615]]");
        assert_eq!((all.as_slice(), all.len()), (&[(0, u64::MAX)][..], u64::MAX));
        assert_eq!(all.overlap(3, u64::MAX), Overlap::Whole);
        assert_eq!(serde_json::to_string(&read("[[1,2]]")).unwrap(), "[[1,2]]");
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
