//! How many bytes of blocks a satellite may have on their way; pure.
//!
//! The grant shrinks by half when storage answers late or refuses and doubles when it answers soon, at most once in
//! a while. A satellite can't know of a shrunk grant before it hears of it, so the one before counts on for a time.

use std::collections::VecDeque;

use satellite_shared::limits::BLOCK_BYTES_MAX;

use super::limits::{Limits, ms};

const CHANGE_EVERY_MS: u64 = 2_000;
const OLD_GRANT_MS: u64 = 60_000;
/// Bytes taken within this are told apart by nobody.
const GRAIN_MS: u64 = 100;

/// The credit of one connection.
#[derive(Debug)]
pub struct Credit {
    granted: u64,
    granted_before: u64,
    changed_ms: Option<u64>,
    outstanding: u64,
    taken: VecDeque<(u64, u64)>,
}

impl Credit {
    /// All of it, nothing on its way.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            granted: limits.credit_bytes_max,
            granted_before: limits.credit_bytes_max,
            changed_ms: None,
            outstanding: 0,
            taken: VecDeque::new(),
        }
    }

    /// What the satellite may have on its way.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// What it has.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.outstanding
    }

    /// Counts a block; false when it exceeds the credit by more than one block.
    #[must_use]
    pub fn take(&mut self, now_ms: u64, bytes: usize) -> bool {
        let known = match self.changed_ms {
            Some(changed) if now_ms >= changed.saturating_add(OLD_GRANT_MS) => self.granted,
            Some(_) | None => self.granted.max(self.granted_before),
        };
        let bytes = bytes as u64;
        if self.outstanding + bytes > known + BLOCK_BYTES_MAX as u64 {
            return false;
        }
        self.outstanding += bytes;
        match self.taken.back_mut() {
            Some((at, sum)) if now_ms < at.saturating_add(GRAIN_MS) => *sum += bytes,
            Some(_) | None => self.taken.push_back((now_ms, bytes)),
        }
        true
    }

    /// Takes an answered block off and judges how long the answer took.
    pub fn give_back(&mut self, now_ms: u64, bytes: usize, refused: bool, limits: &Limits) {
        let oldest_ms = self.taken.front().map_or(now_ms, |&(at, _)| at);
        let mut left = (bytes as u64).min(self.outstanding);
        self.outstanding -= left;
        while let Some((_, sum)) = self.taken.front_mut() {
            if *sum > left {
                *sum -= left;
                break;
            }
            left -= *sum;
            self.taken.pop_front();
        }
        let took_ms = now_ms.saturating_sub(oldest_ms);
        if refused || took_ms > ms(limits.commit_slow) {
            self.change(now_ms, (self.granted / 2).max(limits.credit_bytes_min));
        } else if took_ms < ms(limits.commit_fast) {
            self.change(now_ms, (self.granted * 2).min(limits.credit_bytes_max));
        }
    }

    fn change(&mut self, now_ms: u64, granted: u64) {
        let soon = self.changed_ms.is_some_and(|changed| now_ms < changed.saturating_add(CHANGE_EVERY_MS));
        if soon || granted == self.granted {
            return;
        }
        self.granted_before = self.granted;
        self.granted = granted;
        self.changed_ms = Some(now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BLOCK: usize = 7_000;

    #[test]
    fn one_block_over_the_credit_is_let_pass_and_the_next_is_not() {
        let limits = Limits { credit_bytes_max: 14_000, ..Limits::default() };
        let mut credit = Credit::new(&limits);
        assert!((0..3).all(|_| credit.take(0, BLOCK)));
        assert!(!credit.take(0, BLOCK));
        credit.give_back(1, BLOCK, false, &limits);
        assert!(credit.take(1, BLOCK));
    }

    #[test]
    fn slow_storage_halves_the_credit_down_to_its_least_and_fast_storage_gives_it_back() {
        let limits = Limits::default();
        let mut credit = Credit::new(&limits);
        let mut now = 0;
        for _ in 0..20 {
            assert!(credit.take(now, BLOCK));
            now += 40_000;
            credit.give_back(now, BLOCK, false, &limits);
        }
        assert_eq!(credit.granted(), limits.credit_bytes_min);
        for _ in 0..20 {
            assert!(credit.take(now, BLOCK));
            now += 3_000;
            credit.give_back(now, BLOCK, false, &limits);
        }
        assert_eq!(credit.granted(), limits.credit_bytes_max);
        assert_eq!(credit.outstanding(), 0);
    }

    #[test]
    fn a_satellite_may_use_the_old_credit_until_it_can_have_heard_of_the_new() {
        let limits = Limits { credit_bytes_max: MIB, ..Limits::default() };
        let mut credit = Credit::new(&limits);
        assert!(credit.take(0, BLOCK));
        credit.give_back(0, BLOCK, true, &limits);
        assert_eq!(credit.granted(), MIB / 2);
        while credit.outstanding() < MIB - BLOCK as u64 {
            assert!(credit.take(1_000, BLOCK));
        }
        assert!(!credit.take(OLD_GRANT_MS, BLOCK));
    }

    #[test]
    fn several_refusals_at_once_shrink_it_once() {
        let limits = Limits::default();
        let mut credit = Credit::new(&limits);
        assert!((0..4).all(|_| credit.take(0, BLOCK)));
        (0..4).for_each(|_| credit.give_back(0, BLOCK, true, &limits));
        assert_eq!(credit.granted(), limits.credit_bytes_max / 2);
    }
}
