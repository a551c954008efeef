//! How often a test that draws at random goes round, and with which seed.
//!
//! Each has a short form for every day and a long one for a night: `cargo endure` sets these two. A failure names the
//! seed of its round, so that it can be had again.

use std::str::FromStr;

/// Rounds, in place of the short form's.
pub const ROUNDS_ENV: &str = "SATELLITE_ROUNDS";
/// The first round's seed; each round has the next number.
pub const SEED_ENV: &str = "SATELLITE_SEED";

/// How many rounds: `short` of them unless told.
#[must_use]
pub fn rounds(short: u32) -> u32 {
    told(ROUNDS_ENV).unwrap_or(short)
}

/// The first round's seed: 1 unless told, so that every day's run is the same.
#[must_use]
pub fn first_seed() -> u64 {
    told(SEED_ENV).unwrap_or(1)
}

/// Whether somebody asked for this test and its long form.
#[must_use]
pub fn is_long_form() -> bool {
    std::env::var_os(ROUNDS_ENV).is_some()
}

fn told<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    match value.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name}={value} is not a number"),
    }
}

/// Numbers from a seed, the same on every machine. SplitMix64 (Steele, Lea and Flood 2014): for choosing, not for keys.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, or 0 where there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        // The high half of the product: even enough for a choice.
        let product = u128::from(self.roll()) * u128::from(end);
        u64::try_from(product >> 64).unwrap_or_default()
    }

    /// So in one case of `cases`.
    pub fn one_in(&mut self, cases: u64) -> bool {
        self.below(cases) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_rolls_the_same_numbers_and_another_seed_others() {
        let roll = |seed| -> Vec<u64> {
            let mut dice = Dice::new(seed);
            (0..4).map(|_| dice.roll()).collect()
        };
        assert_eq!(roll(7), roll(7));
        assert_ne!(roll(7), roll(8));
        // The generator's published first number for the seed 0.
        assert_eq!(Dice::new(0).roll(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_choice_is_below_its_end_and_reaches_every_number() {
        let mut dice = Dice::new(1);
        let mut seen = [false; 6];
        for _ in 0..200 {
            seen[usize::try_from(dice.below(6)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 6]);
        assert_eq!(dice.below(0), 0);
    }
}
