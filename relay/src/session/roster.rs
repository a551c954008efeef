//! Who is connected, and what they must hear at once.
//!
//! One place a satellite: the newest connection takes it, because half-open ones are common, and the one before hears
//! that it is superseded. Connections that come back to a program that had been left mean two machines with one
//! identity: three times within ten minutes, and neither may.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use satellite_shared::clock::Now;
use satellite_shared::id::SatelliteId;
use satellite_shared::wire::to_satellite::RefusalCode;
use tokio::sync::watch;

const CLONES_WINDOW_MS: u64 = 10 * 60 * 1000;
const RETURNS_MAX: usize = 3;
const INSTANCES_MAX: usize = 16;

/// All sessions; clones are the same roster.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    live: HashMap<SatelliteId, Live>,
    turns: HashMap<SatelliteId, Turns>,
    next: u64,
}

#[derive(Debug)]
struct Live {
    number: u64,
    connected: Connected,
    standing: watch::Sender<Standing>,
}

/// A satellite that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Who.
    pub satellite: SatelliteId,
    /// The session's name.
    pub session: String,
    /// From where.
    pub peer: SocketAddr,
    /// Since when, wall clock.
    pub since_ms: i64,
    /// The machine's name, as it says.
    pub hostname: String,
    /// The program's version, as it says.
    pub agent_version: String,
    /// The program's start, as it says.
    pub instance: String,
}

/// What a session must know of itself at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// It may not go on, and why.
    pub ended: Option<RefusalCode>,
    /// Counts the changes of its configuration.
    pub config_changes: u64,
}

/// A session's place; leaves it when dropped.
#[derive(Debug)]
pub struct Place {
    roster: Roster,
    satellite: SatelliteId,
    number: u64,
    /// What it must hear.
    pub standing: watch::Receiver<Standing>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.roster.lock();
        if places.live.get(&self.satellite).is_some_and(|live| live.number == self.number) {
            places.live.remove(&self.satellite);
        }
    }
}

impl Roster {
    /// Takes the satellite's place; who had it is superseded.
    ///
    /// # Errors
    /// `Conflict` when two machines take it in turns; then both have lost it.
    pub fn enter(&self, now: Now, connected: Connected) -> Result<Place, RefusalCode> {
        let mut places = self.lock();
        places.forget_old_turns(now.mono_ms);
        let turns = places.turns.entry(connected.satellite.clone()).or_default();
        let conflict = turns.take(now.mono_ms, &connected.instance);
        let satellite = connected.satellite.clone();
        let before = places.live.remove(&satellite);
        let code = if conflict { RefusalCode::Conflict } else { RefusalCode::Superseded };
        if let Some(before) = before {
            before.end(code);
        }
        if conflict {
            return Err(RefusalCode::Conflict);
        }
        places.next += 1;
        let number = places.next;
        let (sender, standing) = watch::channel(Standing::default());
        places.live.insert(satellite.clone(), Live { number, connected, standing: sender });
        drop(places);
        Ok(Place { roster: self.clone(), satellite, number, standing })
    }

    /// Tells the satellite's session that it may not go on; says whether there is one.
    pub fn end(&self, satellite: &SatelliteId, code: RefusalCode) -> bool {
        let places = self.lock();
        let live = places.live.get(satellite);
        live.inspect(|live| live.end(code)).is_some()
    }

    /// Tells the satellite's session that its configuration changed.
    pub fn config_changed(&self, satellite: &SatelliteId) {
        if let Some(live) = self.lock().live.get(satellite) {
            live.standing.send_modify(|standing| standing.config_changes += 1);
        }
    }

    /// Who is connected, by id.
    #[must_use]
    pub fn connected(&self) -> Vec<Connected> {
        let mut connected: Vec<_> = self.lock().live.values().map(|live| live.connected.clone()).collect();
        connected.sort_by(|a, b| a.satellite.cmp(&b.satellite));
        connected
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn end(&self, code: RefusalCode) {
        self.standing.send_modify(|standing| standing.ended = standing.ended.or(Some(code)));
    }
}

impl Places {
    fn forget_old_turns(&mut self, now_ms: u64) {
        // Every satellite that ever connected would stay; looking at all of them once per connection would be slow.
        if self.turns.len() > 2 * self.live.len() + 64 {
            self.turns.retain(|_, turns| !turns.is_old(now_ms));
        }
    }
}

/// Which programs of one satellite connected lately.
#[derive(Debug, Default)]
struct Turns {
    taken: VecDeque<(u64, String)>,
    conflict_until_ms: u64,
}

impl Turns {
    /// Notes a connection; true when two machines take turns.
    fn take(&mut self, now_ms: u64, instance: &str) -> bool {
        if now_ms < self.conflict_until_ms {
            return true;
        }
        while self.taken.front().is_some_and(|(at, _)| now_ms >= at.saturating_add(CLONES_WINDOW_MS)) {
            self.taken.pop_front();
        }
        if self.taken.back().is_some_and(|(_, last)| last == instance) {
            return false;
        }
        if self.taken.len() >= INSTANCES_MAX {
            self.taken.pop_front();
        }
        self.taken.push_back((now_ms, instance.to_owned()));
        let conflict = self.returns() >= RETURNS_MAX;
        if conflict {
            self.taken.clear();
            self.conflict_until_ms = now_ms.saturating_add(CLONES_WINDOW_MS);
        }
        conflict
    }

    /// A restart brings a new instance each time; only a living one comes back.
    fn returns(&self) -> usize {
        let came_back = |&at: &usize| self.taken.iter().take(at).any(|(_, before)| *before == self.taken[at].1);
        (0..self.taken.len()).filter(came_back).count()
    }

    fn is_old(&self, now_ms: u64) -> bool {
        now_ms >= self.conflict_until_ms
            && self.taken.back().is_none_or(|(at, _)| now_ms >= at.saturating_add(CLONES_WINDOW_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ms: u64) -> Now {
        Now { wall_ms: 0, mono_ms }
    }

    fn by(instance: &str) -> Connected {
        Connected {
            satellite: SatelliteId::from_bits([1; 10]),
            session: format!("session of {instance}"),
            peer: ([127, 0, 0, 1], 1).into(),
            since_ms: 0,
            hostname: "nas".into(),
            agent_version: "0.1.0".into(),
            instance: instance.into(),
        }
    }

    fn ended(place: &Place) -> Option<RefusalCode> {
        place.standing.borrow().ended
    }

    #[test]
    fn the_newest_connection_takes_the_place_and_the_old_one_hears_it() {
        let roster = Roster::default();
        let old = roster.enter(at(0), by("a")).unwrap();
        let new = roster.enter(at(1), by("a")).unwrap();
        assert_eq!(ended(&old), Some(RefusalCode::Superseded));
        assert_eq!(ended(&new), None);
        drop(old);
        assert_eq!(roster.connected(), [by("a")]);
        drop(new);
        assert_eq!(roster.connected(), []);
    }

    #[test]
    fn two_machines_that_take_turns_both_lose_the_place_for_ten_minutes() {
        let roster = Roster::default();
        let mut places = Vec::new();
        for (minute, instance) in ["a", "b", "a", "b"].into_iter().enumerate() {
            places.push(roster.enter(at(minute as u64 * 60_000), by(instance)).unwrap());
        }
        assert_eq!(roster.enter(at(240_000), by("a")).unwrap_err(), RefusalCode::Conflict);
        assert_eq!(ended(&places[3]), Some(RefusalCode::Conflict));
        assert_eq!(roster.enter(at(300_000), by("b")).unwrap_err(), RefusalCode::Conflict);
        assert_eq!(roster.connected(), []);
        assert!(roster.enter(at(240_000 + CLONES_WINDOW_MS), by("b")).is_ok());
    }

    #[test]
    fn a_program_that_restarts_or_reconnects_often_is_no_clone() {
        let roster = Roster::default();
        for second in 0..60 {
            let instance = format!("start {}", second / 3);
            assert!(roster.enter(at(second * 1_000), by(&instance)).is_ok(), "second {second}");
        }
    }

    #[test]
    fn turns_that_are_far_apart_are_no_conflict() {
        let roster = Roster::default();
        for (turn, instance) in ["a", "b", "a", "b", "a", "b"].into_iter().enumerate() {
            assert!(roster.enter(at(turn as u64 * 5 * 60_000), by(instance)).is_ok(), "turn {turn}");
        }
    }

    #[test]
    fn a_revocation_is_not_overwritten_by_what_comes_after_it() {
        let roster = Roster::default();
        let place = roster.enter(at(0), by("a")).unwrap();
        assert!(roster.end(&place.satellite, RefusalCode::Revoked));
        roster.config_changed(&place.satellite);
        drop(roster.enter(at(1), by("b")).unwrap());
        assert_eq!(ended(&place), Some(RefusalCode::Revoked));
        assert_eq!(place.standing.borrow().config_changes, 1);
    }
}
