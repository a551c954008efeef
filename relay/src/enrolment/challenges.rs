//! The nonces of recoveries: each good for a minute, for one satellite, once.

use std::collections::VecDeque;

use satellite_shared::id::SatelliteId;

const LIFE_MS: u64 = 60_000;
/// Nonces remembered at once; the oldest go first.
const NONCES_MAX: usize = 4_096;
/// Of one satellite: a stranger who knows its id pushes out its own only.
const NONCES_PER_SATELLITE_MAX: usize = 8;

/// The nonces that were given out and not used, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Challenges(VecDeque<Challenge>);

#[derive(Debug)]
struct Challenge {
    satellite: SatelliteId,
    nonce: String,
    until_ms: u64,
}

impl Challenges {
    /// Remembers a nonce.
    pub(crate) fn give(&mut self, satellite: SatelliteId, nonce: String, mono_ms: u64) {
        self.0.retain(|challenge| mono_ms < challenge.until_ms);
        let of_satellite = self.0.iter().filter(|challenge| challenge.satellite == satellite).count();
        let oldest = if of_satellite >= NONCES_PER_SATELLITE_MAX {
            self.0.iter().position(|challenge| challenge.satellite == satellite)
        } else {
            (self.0.len() >= NONCES_MAX).then_some(0)
        };
        if let Some(oldest) = oldest {
            self.0.remove(oldest);
        }
        self.0.push_back(Challenge { satellite, nonce, until_ms: mono_ms.saturating_add(LIFE_MS) });
    }

    /// Uses a nonce up; whether it was good.
    pub(crate) fn take(&mut self, satellite: &SatelliteId, nonce: &str, mono_ms: u64) -> bool {
        let found = self.0.iter().position(|challenge| challenge.satellite == *satellite && challenge.nonce == nonce);
        found.and_then(|at| self.0.remove(at)).is_some_and(|challenge| mono_ms < challenge.until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn satellite(bits: u8) -> SatelliteId {
        SatelliteId::from_bits([bits; 10])
    }

    #[test]
    fn a_nonce_is_good_once_for_a_minute_for_its_satellite() {
        let mut challenges = Challenges::default();
        challenges.give(satellite(1), "a".into(), 0);
        assert!(!challenges.take(&satellite(2), "a", 1));
        assert!(challenges.take(&satellite(1), "a", 59_999));
        assert!(!challenges.take(&satellite(1), "a", 59_999));
        challenges.give(satellite(1), "b".into(), 0);
        assert!(!challenges.take(&satellite(1), "b", 60_000));
    }

    #[test]
    fn strangers_push_out_the_nonces_of_one_satellite_only() {
        let mut challenges = Challenges::default();
        challenges.give(satellite(1), "a".into(), 0);
        for n in 0..100 {
            challenges.give(satellite(2), n.to_string(), 0);
        }
        assert!(challenges.take(&satellite(1), "a", 1));
        assert_eq!(challenges.0.len(), NONCES_PER_SATELLITE_MAX);
        for n in 0..10_000_u32 {
            let [a, b, c, d] = n.to_be_bytes();
            challenges.give(SatelliteId::from_bits([a, b, c, d, 9, 9, 9, 9, 9, 9]), "x".into(), 0);
        }
        assert_eq!(challenges.0.len(), NONCES_MAX);
    }
}
