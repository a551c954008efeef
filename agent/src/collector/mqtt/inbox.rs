//! The newest value of each series, with when it came; what a poll reads.
//!
//! What came before the connection was lost is forgotten when it is lost: nobody knows what was said meanwhile. Pure but
//! for the clock. Invariant: at most [`SERIES_MAX`] series are held; what is silent makes room for what is new.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use satellite_shared::clock::{Clock, Now};
use satellite_shared::gap::Reason;
use satellite_shared::metric::{Kind, is_metric_name};
use tokio::sync::Notify;

use super::message::{Found, Listed, Message, Reader, Rule, Values};
use super::payload::{PAYLOAD_BYTES_MAX, Said};
use super::profile::{Life, Profile, Told};
use super::topic::{Filter, shown};
use crate::collector::{Failure, Family, Readings};

/// Series of one device.
pub(super) const SERIES_MAX: usize = 1_000;
/// Measurements of one topic, where a profile finds them.
const SERIES_PER_TOPIC_MAX: usize = 200;
/// Messages that are kept until a profile understands them, and how large one may be.
const EARLY_MAX: usize = 200;
const EARLY_BYTES_MAX: usize = 8 << 10;
/// Of what a profile has no room for.
const LEFT_OUT: &str = "not all: more announces itself than the 1,000 entities and 1,000 topics of a device: narrow it by `base`, or list topics as metrics";

/// A profile and when its values count.
pub(super) type Ruled = (Box<dyn Profile>, Rule);

/// How the connection is.
#[derive(Debug, Clone)]
enum Link {
    /// The first attempt is under way.
    Starting,
    /// Subscribed.
    Up { since: Now },
    /// Not there, and since when.
    Down { since: Now, failure: Failure },
}

/// What one topic said last of one metric.
struct Heard {
    at: Now,
    values: Result<Values, String>,
}

/// What sets a series of a profile apart. Two topics may tell the same one.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct SeriesKey {
    topic: String,
    name: String,
    labels: Vec<(&'static str, String)>,
}

/// What one topic said last of it.
struct Series {
    at: Now,
    owner: String,
    kind: Kind,
    unit: &'static str,
    value: f64,
    life: Life,
}

/// A message that a profile can't understand yet.
struct Early {
    at: Now,
    retained: bool,
    said: Said,
}

/// A message that gave a metric nothing.
#[derive(Clone)]
struct Passed {
    at: Now,
    why: &'static str,
}

/// Whether a poll waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// No.
    Over,
    /// Until something arrives.
    UntilNews,
    /// Until nothing arrives for a moment.
    UntilQuiet,
}

/// What has arrived.
pub(super) struct Inbox {
    clock: Arc<dyn Clock>,
    listed: Arc<Vec<Listed>>,
    profile: Option<Ruled>,
    link: Link,
    heard: BTreeMap<(usize, String), Heard>,
    passed: Vec<Option<Passed>>,
    series: BTreeMap<SeriesKey, Series>,
    /// When each metric, the profile behind those that are listed, last had a value for which there was no room.
    crowded: Vec<Option<Now>>,
    /// Whether the profile found more than it has room for, which is not said again.
    left_out: bool,
    early: BTreeMap<String, Early>,
    /// Filters that the broker does not let this user read.
    refused: Vec<String>,
    /// How long the last connection took to stand.
    connect_seconds: f64,
    messages: u64,
    ignored: u64,
}

/// How things stand, for the probe.
#[derive(Debug, PartialEq)]
pub(super) struct Standing {
    /// Why the connection is down, where it is.
    pub(super) failure: Option<Failure>,
    /// How long it took to stand.
    pub(super) connect_seconds: f64,
    /// Messages ever.
    pub(super) messages: u64,
    /// Of these, those that were too large, could not be read, or for which there was no room.
    pub(super) ignored: u64,
    /// Series with a value.
    pub(super) speaking: usize,
    /// Series without one any more.
    pub(super) silent: usize,
}

impl Inbox {
    pub(super) fn new(clock: Arc<dyn Clock>, listed: Vec<Listed>, profile: Option<Ruled>) -> Self {
        Self {
            clock,
            passed: vec![None; listed.len()],
            crowded: vec![None; listed.len() + 1],
            left_out: false,
            listed: Arc::new(listed),
            profile,
            link: Link::Starting,
            heard: BTreeMap::new(),
            series: BTreeMap::new(),
            early: BTreeMap::new(),
            refused: Vec::new(),
            connect_seconds: 0.0,
            messages: 0,
            ignored: 0,
        }
    }

    /// What to subscribe to at first.
    pub(super) fn filters(&self) -> Vec<String> {
        let profile = self.profile.iter().flat_map(|(profile, _)| profile.filters());
        let mut filters: Vec<String> = profile.map(|filter| filter.as_str().to_owned()).collect();
        filters.extend(self.listed.iter().map(|listed| listed.filter.as_str().to_owned()));
        filters.sort_unstable();
        filters.dedup();
        filters
    }

    /// Who reads a message of this topic; `None` where nobody has a use for it.
    pub(super) fn reader(&self, topic: &str, retained: bool) -> Option<Reader> {
        let of_profile = self.profile.as_ref().and_then(|(profile, _)| profile.form(topic));
        Reader::new(&self.listed, of_profile, topic, retained)
    }

    /// The longest message that somebody has a use for.
    pub(super) fn payload_bytes_max(&self) -> usize {
        self.profile.as_ref().map_or(PAYLOAD_BYTES_MAX, |(profile, _)| profile.payload_bytes_max())
    }

    /// The subscription stands, but for these filters.
    pub(super) fn on_up(&mut self, seconds: f64, refused: Vec<String>) {
        self.link = Link::Up { since: self.clock.now() };
        self.connect_seconds = seconds;
        self.refused = refused;
    }

    /// There is no connection, or none any more.
    pub(super) fn on_down(&mut self, failure: Failure) {
        let since = match &self.link {
            // It is the same outage, whatever each attempt says.
            Link::Down { since, .. } => *since,
            Link::Starting | Link::Up { .. } => self.clock.now(),
        };
        self.link = Link::Down { since, failure };
        self.heard.clear();
        self.series.clear();
        self.early.clear();
        self.passed.fill(None);
        self.crowded.fill(None);
        self.left_out = false;
        if let Some((profile, _)) = &mut self.profile {
            profile.reset();
        }
    }

    /// A message that nobody has a use for.
    pub(super) fn on_passed(&mut self) {
        self.messages += 1;
    }

    /// A message that could not be taken.
    pub(super) fn on_ignored(&mut self) {
        self.messages += 1;
        self.ignored += 1;
    }

    /// Takes up a message; gives topics to listen to from now on.
    pub(super) fn on_message(&mut self, message: Message) -> Vec<String> {
        let now = self.clock.now();
        self.messages += 1;
        let Message { topic, retained, said, found } = message;
        if matches!(said, Said::Other(_)) {
            self.ignored += 1;
        }
        for (index, found) in found {
            self.take_listed(index, &topic, found, now);
        }
        self.take_profile(&topic, Early { at: now, retained, said })
    }

    fn take_profile(&mut self, topic: &str, message: Early) -> Vec<String> {
        let Some((profile, rule)) = &mut self.profile else { return Vec::new() };
        let (heard, rule) = (profile.hear(topic, &message.said), *rule);
        if !heard.forgotten.is_empty() || !heard.gone.is_empty() {
            let (topics, owners) = (BTreeSet::from_iter(heard.forgotten), BTreeSet::from_iter(heard.gone));
            self.series.retain(|key, series| !topics.contains(&key.topic) && !owners.contains(&series.owner));
        }
        if heard.left_out > 0 {
            self.ignored += heard.left_out as u64;
            self.left_out = true;
        }
        for told in heard.told {
            let counts = told.life == Life::State || !message.retained || rule.retained;
            if counts && told.value.is_finite() && is_metric_name(&told.name) {
                self.take_told(topic, told, message.at);
            }
        }
        if heard.is_early {
            if message.said.weight() <= EARLY_BYTES_MAX
                && (self.early.len() < EARLY_MAX || self.early.contains_key(topic))
            {
                self.early.insert(topic.to_owned(), message);
            } else {
                self.ignored += 1;
            }
        }
        let mut wanted = heard.wanted;
        if heard.is_ready {
            for (topic, message) in std::mem::take(&mut self.early) {
                wanted.extend(self.take_profile(&topic, message));
            }
        }
        wanted
    }

    fn take_listed(&mut self, index: usize, topic: &str, found: Found, now: Now) {
        let values = match found {
            Found::Nothing(why) => {
                self.passed[index] = Some(Passed { at: now, why });
                return;
            }
            Found::TooMany => return self.leave_out(index, now),
            Found::Values(values) => values,
        };
        let key = (index, topic.to_owned());
        let before = self.heard.get(&key).map_or(0, Heard::len);
        let heard = Heard { at: now, values };
        if heard.len() > before && !self.has_room_for(heard.len() - before, now) {
            return self.leave_out(index, now);
        }
        self.heard.insert(key, heard);
    }

    fn take_told(&mut self, topic: &str, told: Told, now: Now) {
        let Told { owner, name, kind, unit, labels, value, life } = told;
        let key = SeriesKey { topic: topic.to_owned(), name, labels };
        let series = Series { at: now, owner, kind, unit, value, life };
        if let Some(known) = self.series.get_mut(&key) {
            *known = series;
            return;
        }
        // Presence and lists are many in one topic by their nature.
        let fits_topic = life == Life::State || self.measured_of(topic) < SERIES_PER_TOPIC_MAX;
        if fits_topic && self.has_room_for(1, now) {
            self.series.insert(key, series);
        } else {
            self.leave_out(self.listed.len(), now);
        }
    }

    /// A value of this metric for which there was no room.
    fn leave_out(&mut self, metric: usize, now: Now) {
        self.ignored += 1;
        self.crowded[metric] = Some(now);
    }

    fn measured_of(&self, topic: &str) -> usize {
        let first = SeriesKey { topic: topic.to_owned(), name: String::new(), labels: Vec::new() };
        let of_topic = self.series.range(first..).take_while(|(key, _)| key.topic == topic);
        of_topic.filter(|(_, series)| series.life != Life::State).count()
    }

    fn held(&self) -> usize {
        let listed: usize = self.heard.values().map(Heard::len).sum();
        listed + self.series.len()
    }

    /// Whether so many more fit, once what is silent has gone where it is needed.
    fn has_room_for(&mut self, more: usize, now: Now) -> bool {
        if self.held() + more <= SERIES_MAX {
            return true;
        }
        let listed = &self.listed;
        self.heard.retain(|(index, _), heard| is_fresh(heard.at, now, listed[*index].rule.silent_after));
        if let Some(ruled) = &self.profile {
            self.series.retain(|_, series| speaks(series, now, ruled));
        }
        self.held() + more <= SERIES_MAX
    }

    /// How long a poll that begins to listen waits for news: at all where there is nothing to be told yet, a moment where
    /// a profile has begun to tell, which never knows whether that is all.
    pub(super) fn patience(&self, due: &[usize], is_first: bool) -> Patience {
        match self.link {
            Link::Starting => Patience::UntilNews,
            Link::Up { .. } if is_first => {
                let is_silent =
                    |metric: &&usize| **metric < self.listed.len() && self.of_metric(**metric).next().is_none();
                let asks_profile = self.profile.is_some() && due.contains(&self.listed.len());
                match (due.iter().any(|metric| is_silent(&metric)), asks_profile) {
                    (true, _) => Patience::UntilNews,
                    (false, true) if self.series.is_empty() => Patience::UntilNews,
                    (false, true) => Patience::UntilQuiet,
                    (false, false) => Patience::Over,
                }
            }
            Link::Up { .. } | Link::Down { .. } => Patience::Over,
        }
    }

    fn of_metric(&self, metric: usize) -> impl Iterator<Item = (&String, &Heard)> {
        let range = (metric, String::new())..(metric + 1, String::new());
        self.heard.range(range).map(|((_, topic), heard)| (topic, heard))
    }

    /// Since when the subscription stands, or why it does not.
    fn since(&self) -> Result<Now, Failure> {
        match &self.link {
            Link::Starting => Err(Failure::new(Reason::Timeout, "the broker has not answered yet")),
            Link::Up { since } => Ok(*since),
            Link::Down { since, failure } => {
                let at = utc(*since);
                Err(Failure::new(failure.reason, format!("since {at}: {}", failure.detail)))
            }
        }
    }

    /// Adds the values of a metric of the configuration, or says why there are none.
    pub(super) fn tell_listed(&self, metric: usize, readings: &mut Readings) {
        let crowded = self.crowded(metric, self.listed[metric].rule);
        match (self.fresh_values(metric), crowded) {
            (Err(_), Some(failure)) | (Err(failure), None) => readings.missing(metric, failure),
            (Ok(values), crowded) => {
                // What there is room for is told, and that it is not all.
                crowded.into_iter().for_each(|failure| readings.missing(metric, failure));
                for (labels, value) in values.into_iter().flatten() {
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                    self.listed[metric].number.add_with(metric, &labels, *value, readings);
                }
            }
        }
    }

    /// What is told of a metric some of whose values had no room, for as long as they would count.
    fn crowded(&self, metric: usize, rule: Rule) -> Option<Failure> {
        let at = self.crowded[metric].filter(|at| is_fresh(*at, self.clock.now(), rule.silent_after))?;
        let what = format!(
            "not all: at {} there was no room for another series ({SERIES_MAX} a device, {SERIES_PER_TOPIC_MAX} a topic of a \
             profile): narrow it by `base` or `topic`, or make it several devices",
            utc(at)
        );
        Some(Failure::new(Reason::BadAnswer, what))
    }

    fn fresh_values(&self, metric: usize) -> Result<Vec<&Values>, Failure> {
        let up_since = self.since()?;
        let listed = &self.listed[metric];
        let (now, limit) = (self.clock.now(), listed.rule.silent_after);
        let mut values = Vec::new();
        let (mut broken, mut last): (Option<(Now, &String, &str)>, Option<Now>) = (None, None);
        for (topic, heard) in self.of_metric(metric) {
            if last.is_none_or(|last| last.mono_ms <= heard.at.mono_ms) {
                last = Some(heard.at);
            }
            match &heard.values {
                Ok(found) if is_fresh(heard.at, now, limit) => values.push(found),
                Err(why) if is_fresh(heard.at, now, limit) => {
                    if broken.is_none_or(|(at, _, _)| at.mono_ms < heard.at.mono_ms) {
                        broken = Some((heard.at, topic, why));
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        if !values.is_empty() {
            return Ok(values);
        }
        let topic = shown(listed.filter.as_str());
        if self.refused.iter().any(|refused| refused == listed.filter.as_str()) {
            let what = "the broker does not let this user read it: see its access list";
            return Err(Failure::new(Reason::Refused, format!("`{topic}`: {what}")));
        }
        if let Some((_, topic, why)) = broken {
            return Err(Failure::new(Reason::BadAnswer, format!("`{}`: {why}", shown(topic))));
        }
        let silent = match (last, &self.passed[metric]) {
            (Some(last), _) => {
                let limit = humantime::format_duration(limit);
                format!("`{topic}` is silent since {}, longer than silent_after = {limit}", utc(last))
            }
            (None, Some(Passed { at, why })) => format!("`{topic}`: the message of {} {why}", utc(*at)),
            (None, None) => format!("`{topic}` has said nothing since the subscription of {}", utc(up_since)),
        };
        Err(Failure::new(Reason::Timeout, silent))
    }

    /// Adds all that the profile knows, or says why that is nothing.
    pub(super) fn tell_profile(&self, metric: usize, readings: &mut Readings) {
        let Some(ruled @ (profile, rule)) = &self.profile else { return };
        let up_since = match self.since() {
            Ok(since) => since,
            Err(failure) => return readings.missing(metric, failure),
        };
        let now = self.clock.now();
        let mut speaking: Vec<_> = self.series.iter().filter(|(_, series)| speaks(series, now, ruled)).collect();
        // Two topics may tell the same series: the one that spoke last is right.
        speaking.sort_by_key(|(_, series)| std::cmp::Reverse(series.at.mono_ms));
        let mut names = HashSet::new();
        for (key, series) in &speaking {
            if names.insert((&key.name, &key.labels)) {
                let labels: Vec<(&str, &str)> = key.labels.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let family = Family { name: &key.name, kind: series.kind, unit: series.unit };
                readings.sample(metric, family, &labels, series.value);
            }
        }
        let left_out = self.left_out.then(|| Failure::new(Reason::BadAnswer, LEFT_OUT));
        let crowded = left_out.or_else(|| self.crowded(metric, *rule));
        if !speaking.is_empty() || crowded.is_some() {
            crowded.into_iter().for_each(|failure| readings.missing(metric, failure));
            return;
        }
        let filters = profile.filters();
        let refused = |filter: &Filter| self.refused.iter().any(|refused| refused == filter.as_str());
        let first = shown(filters.first().map_or("", Filter::as_str));
        let failure = if filters.iter().all(refused) {
            let what = "the broker does not let this user read it: see its access list";
            Failure::new(Reason::Refused, format!("`{first}`: {what}"))
        } else {
            let last = self.series.values().map(|series| series.at).max_by_key(|at| at.mono_ms);
            let what = match last {
                Some(last) => format!("silent since {}", utc(last)),
                None => format!("nothing was said that is a value since the subscription of {}", utc(up_since)),
            };
            Failure::new(Reason::Timeout, format!("`{first}`: {what}"))
        };
        readings.missing(metric, failure);
    }

    /// How things stand.
    pub(super) fn standing(&self) -> Standing {
        let now = self.clock.now();
        let fresh = |(index, _): &(usize, String), heard: &Heard| {
            heard.values.is_ok() && is_fresh(heard.at, now, self.listed[*index].rule.silent_after)
        };
        let listed: usize = self.heard.iter().filter(|(key, heard)| fresh(key, heard)).map(|(_, it)| it.len()).sum();
        let told = self.profile.iter();
        let told = told.flat_map(|ruled| self.series.values().filter(|series| speaks(series, now, ruled))).count();
        Standing {
            failure: self.since().err(),
            connect_seconds: self.connect_seconds,
            messages: self.messages,
            ignored: self.ignored,
            speaking: listed + told,
            silent: self.held() - listed - told,
        }
    }
}

impl Heard {
    /// What counts against the limit: a message without a value has its place, too.
    fn len(&self) -> usize {
        self.values.as_ref().map_or(1, |values| values.len().max(1))
    }
}

fn is_fresh(at: Now, now: Now, silent_after: Duration) -> bool {
    u128::from(now.mono_ms.saturating_sub(at.mono_ms)) <= silent_after.as_millis()
}

fn speaks(series: &Series, now: Now, (profile, rule): &Ruled) -> bool {
    match series.life {
        Life::State => true,
        Life::Measured(own) => {
            is_fresh(series.at, now, own.unwrap_or(rule.silent_after)) && !profile.is_offline(&series.owner)
        }
    }
}

fn utc(at: Now) -> String {
    let time = DateTime::from_timestamp_millis(at.wall_ms).unwrap_or_default();
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// The inbox between the task that fills it and the polls that read it.
pub(super) struct Shared {
    inbox: Mutex<Inbox>,
    /// Something arrived or changed.
    pub(super) news: Notify,
}

impl Shared {
    pub(super) fn new(inbox: Inbox) -> Self {
        Self { inbox: Mutex::new(inbox), news: Notify::new() }
    }

    /// Never held across an await.
    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the inbox and says so to whoever waits.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Inbox) -> T) -> T {
        let changed = change(&mut self.inbox());
        self.news.notify_waiters();
        changed
    }
}

#[cfg(test)]
mod tests {
    use satellite_shared::clock::ManualClock;
    use satellite_shared::config::{Metric, Schedule};
    use serde_json::json;

    use super::super::homeassistant::HomeAssistant;
    use super::super::payload::Form;
    use super::super::tasmota::Tasmota;
    use super::super::zigbee2mqtt::Zigbee2mqtt;
    use super::*;
    use crate::collector::http::path::Path;
    use crate::collector::number::Number;
    use crate::collector::series_of_key;

    const RULE: Rule = Rule { silent_after: Duration::from_secs(60), retained: false };

    fn listed(topic: &str, path: Option<&str>, rule: Rule) -> Listed {
        let metric = Metric {
            name: "x".into(),
            schedule: Schedule::Every(Duration::from_secs(1)),
            paused: false,
            options: json!({"scale": 2.0, "labels": {"room": "attic"}}).as_object().unwrap().clone(),
        };
        let (number, _, _) = Number::parse(&metric, "device.it").unwrap();
        let path = path.map(|path| Path::parse(path).unwrap());
        Listed { number, filter: Filter::parse(topic).unwrap(), labels_from: None, path, rule }
    }

    struct Bench {
        clock: Arc<ManualClock>,
        inbox: Inbox,
    }

    fn bench(listed: Vec<Listed>, profile: bool) -> Bench {
        let clock = Arc::new(ManualClock::new(1_795_359_600_000, 1_000));
        let profile = profile.then(|| -> Ruled { (Box::new(Tasmota::new("tele").unwrap()), RULE) });
        let mut inbox = Inbox::new(clock.clone(), listed, profile);
        inbox.on_up(0.1, vec![]);
        Bench { clock, inbox }
    }

    impl Bench {
        /// A message that says this.
        fn hear(&mut self, topic: &str, retained: bool, said: Said) -> Vec<String> {
            let listening = self.inbox.listed.iter().enumerate();
            let found = listening.filter(|(_, listed)| listed.filter.captures(topic).is_some());
            let found = found.map(|(at, listed)| (at, listed.find(topic, retained, &said, SERIES_MAX))).collect();
            self.inbox.on_message(Message { topic: topic.to_owned(), retained, said, found })
        }

        fn listed(&mut self, at: usize) -> &mut Listed {
            &mut Arc::get_mut(&mut self.inbox.listed).unwrap()[at]
        }

        /// What a metric tells: `label=value,…` with the number, or why nothing.
        fn told(&self, metric: usize) -> Result<Vec<(String, f64)>, Failure> {
            let mut readings = Readings::default();
            if metric < self.inbox.listed.len() {
                self.inbox.tell_listed(metric, &mut readings);
            } else {
                self.inbox.tell_profile(metric, &mut readings);
            }
            if let Some((_, failure)) = readings.failures().first() {
                return Err(failure.clone());
            }
            let text = |key: &[u8]| {
                let series = series_of_key(&"it".parse().unwrap(), key).unwrap();
                series.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
            };
            Ok(readings.iter().map(|reading| (text(reading.key), reading.value)).collect())
        }

        fn refusal(&self, metric: usize, reason: Reason, detail: &str) {
            let failure = self.told(metric).unwrap_err();
            assert_eq!(failure.reason, reason, "{failure}");
            assert!(failure.detail.contains(detail), "{failure}");
        }
    }

    #[test]
    fn silence_is_a_gap_that_says_since_when() {
        let mut bench = bench(vec![listed("a", None, RULE)], false);
        bench.refusal(0, Reason::Timeout, "`a` has said nothing since the subscription of 2026-11-22 15:00:00 UTC");
        bench.clock.advance(5_000);
        bench.hear("a", false, Said::Number(3.0));
        bench.clock.advance(60_000);
        assert_eq!(bench.told(0).unwrap(), [("room=attic".to_owned(), 6.0)]);
        bench.clock.advance(1);
        bench.refusal(0, Reason::Timeout, "`a` is silent since 2026-11-22 15:00:05 UTC, longer than silent_after = 1m");
        // The wall clock may jump: what counts is how long it was.
        bench.hear("a", false, Said::Number(4.0));
        bench.clock.step_wall(0);
        assert_eq!(bench.told(0).unwrap()[0].1, 8.0);
    }

    #[test]
    fn a_lost_connection_is_one_gap_and_what_was_known_is_forgotten() {
        let mut bench = bench(vec![listed("a", None, RULE)], true);
        bench.hear("a", false, Said::Number(3.0));
        bench.hear("tele/plug/LWT", true, Said::Number(1.0));
        bench.inbox.on_down(Failure::new(Reason::Refused, "the broker hung up"));
        bench.clock.advance(30_000);
        bench.inbox.on_down(Failure::new(Reason::Refused, "connection refused: nothing listens there"));
        for metric in [0, 1] {
            bench.refusal(metric, Reason::Refused, "since 2026-11-22 15:00:00 UTC: connection refused");
        }
        bench.inbox.on_up(0.1, vec![]);
        bench.refusal(0, Reason::Timeout, "has said nothing since the subscription of 2026-11-22 15:00:30 UTC");
        bench.refusal(1, Reason::Timeout, "`tele/#`: nothing was said that is a value since");
    }

    #[test]
    fn what_was_retained_counts_only_where_it_is_asked_for() {
        let mut bench = bench(vec![listed("a", None, RULE), listed("a", None, Rule { retained: true, ..RULE })], true);
        bench.hear("a", true, Said::Number(3.0));
        bench.refusal(0, Reason::Timeout, "was retained: it counts with `retained = true`");
        assert_eq!(bench.told(1).unwrap()[0].1, 6.0);
        bench.hear("tele/plug/SENSOR", true, Said::Json(json!({"ENERGY": {"Power": 5}})));
        bench.hear("tele/plug/LWT", true, Said::Number(1.0));
        assert_eq!(bench.told(2).unwrap(), [("device=plug".to_owned(), 1.0)], "presence is made to be retained");
    }

    #[test]
    fn a_wildcard_is_a_label_and_each_topic_is_silent_by_itself() {
        let mut bench = bench(vec![listed("tele/+/SENSOR", Some("$.e[*].p"), RULE)], false);
        bench.listed(0).labels_from = Some(vec!["plug".into()]);
        bench.hear("tele/tv/SENSOR", false, Said::Json(json!({"e": [{"p": 1}, {"p": "ON"}]})));
        bench.clock.advance(50_000);
        bench.hear("tele/lamp/SENSOR", false, Said::Json(json!({"e": [{"p": 5}]})));
        bench.hear("tele/bare/SENSOR", false, Said::Json(json!({"f": 1})));
        let mut told = bench.told(0).unwrap();
        told.sort_by(|a, b| a.0.cmp(&b.0));
        let expect = [("index=0,plug=lamp", 10.0), ("index=0,plug=tv", 2.0), ("index=1,plug=tv", 2.0)];
        assert_eq!(told, expect.map(|(labels, value)| (format!("{labels},room=attic"), value)));
        bench.clock.advance(20_000);
        assert_eq!(bench.told(0).unwrap().len(), 1);
        assert_eq!((bench.inbox.standing().speaking, bench.inbox.standing().silent), (1, 2));
        bench.listed(0).labels_from = None;
        bench.hear("tele/tv/SENSOR", false, Said::Json(json!({"e": [{"p": 1}]})));
        assert!(bench.told(0).unwrap().iter().any(|(labels, _)| labels.ends_with("topic=tele/tv/SENSOR")));
    }

    #[test]
    fn a_message_that_is_no_value_is_told_until_the_next_one() {
        let mut bench = bench(vec![listed("a", None, RULE), listed("a", Some("$.x"), RULE)], false);
        let check = |bench: &mut Bench, said: Said, plain: &str, path: &str| {
            bench.hear("a", false, said);
            for (metric, why) in [(0, plain), (1, path)] {
                bench.refusal(metric, Reason::BadAnswer, why);
            }
        };
        check(&mut bench, Said::Json(json!({"x": null})), "say by `path`", "found null");
        check(&mut bench, Said::Json(json!({"x": "warm"})), "say by `path`", "found a text");
        let word = Said::Word { text: "warm".into(), why: "`warm` is no number and no JSON".into() };
        check(&mut bench, word, "`warm` is no number", "`warm` is no number");
        check(&mut bench, Said::Nothing, "is empty", "is empty");
        check(&mut bench, Said::Other("the message is no text".into()), "no text", "no text");
        bench.hear("a", false, Said::Number(1.0));
        assert_eq!(bench.told(0).unwrap()[0].1, 2.0);
        bench.refusal(1, Reason::BadAnswer, "leave out `path`");
        bench.hear("a", false, Said::Json(json!({"x": "ON"})));
        bench.hear("a", false, Said::Json(json!({"y": 1})));
        assert_eq!(bench.told(1).unwrap()[0].1, 2.0, "a message that is about something else changes nothing");
        assert_eq!(bench.inbox.standing().ignored, 1);
    }

    #[test]
    fn series_are_bounded_and_the_silent_ones_make_room() {
        let mut bench = bench(vec![listed("#", None, RULE)], true);
        for n in 0..1_500 {
            bench.hear(&format!("t/{n}"), false, Said::Number(1.0));
        }
        assert_eq!((bench.inbox.held(), bench.inbox.standing().ignored), (SERIES_MAX, 500));
        bench.clock.advance(61_000);
        bench.hear("t/new", false, Said::Number(1.0));
        assert_eq!((bench.told(0).unwrap().len(), bench.inbox.held()), (1, 1));
        let many: serde_json::Map<String, serde_json::Value> =
            (0..900).map(|n| (format!("S{n}"), json!({"Temperature": n}))).collect();
        bench.hear("tele/plug/SENSOR", false, Said::Json(serde_json::Value::Object(many)));
        assert_eq!(bench.inbox.series.len(), SERIES_PER_TOPIC_MAX);
    }

    #[test]
    fn a_topic_that_the_broker_refuses_is_told_alone() {
        let mut bench = bench(vec![listed("a", None, RULE), listed("b", None, RULE)], true);
        bench.inbox.on_up(0.1, vec!["a".into(), "tele/#".into()]);
        bench.hear("b", false, Said::Number(1.0));
        bench.refusal(0, Reason::Refused, "`a`: the broker does not let this user read it");
        bench.refusal(2, Reason::Refused, "`tele/#`: the broker does not let this user read it");
        assert!(bench.told(1).is_ok());
    }

    #[test]
    fn a_first_poll_waits_for_what_it_has_not_heard() {
        let mut bench = bench(vec![listed("a", None, RULE)], true);
        assert_eq!(bench.inbox.patience(&[0], true), Patience::UntilNews);
        assert_eq!(bench.inbox.patience(&[0], false), Patience::Over);
        bench.hear("a", false, Said::Number(1.0));
        assert_eq!(bench.inbox.patience(&[0], true), Patience::Over);
        assert_eq!(bench.inbox.patience(&[0, 1], true), Patience::UntilNews);
        bench.hear("tele/plug/LWT", true, Said::Number(1.0));
        assert_eq!(bench.inbox.patience(&[0, 1, 2], true), Patience::UntilQuiet);
        assert_eq!(bench.inbox.patience(&[2], true), Patience::Over);
        bench.inbox.on_down(Failure::new(Reason::Refused, "x"));
        assert_eq!(bench.inbox.patience(&[0], true), Patience::Over);
    }

    #[test]
    fn what_says_that_it_is_offline_has_no_values_until_it_is_back() {
        let mut bench = bench(vec![], true);
        let power = || Said::Json(json!({"ENERGY": {"Power": 5}}));
        let (up, down) = (("device=plug".to_owned(), 1.0), ("device=plug".to_owned(), 0.0));
        let value = ("device=plug".to_owned(), 5.0);
        bench.hear("tele/plug/SENSOR", false, power());
        bench.hear("tele/lamp/SENSOR", false, power());
        for _ in 0..2 {
            bench.hear("tele/plug/LWT", false, Said::Number(0.0));
            // Somebody says its state all the same, as a bridge does that starts and has its old states.
            bench.hear("tele/plug/SENSOR", false, power());
            let told = bench.told(0).unwrap();
            assert!(told.contains(&down) && !told.contains(&value), "{told:?}");
            assert!(told.contains(&("device=lamp".to_owned(), 5.0)), "{told:?}");
            assert_eq!((bench.inbox.standing().speaking, bench.inbox.standing().silent), (2, 1));
            bench.hear("tele/plug/LWT", false, Said::Number(1.0));
            let told = bench.told(0).unwrap();
            assert!(told.contains(&up) && told.contains(&value), "{told:?}");
        }
        bench.hear("tele/plug/LWT", false, Said::Number(0.0));
        bench.clock.advance(61_000);
        bench.hear("tele/plug/LWT", false, Said::Number(1.0));
        assert_eq!(bench.told(0).unwrap(), [up], "what was said too long ago does not come back");
    }

    #[test]
    fn what_the_broker_retained_of_who_is_offline_counts_when_it_is_back() {
        let mut bench = bench(vec![], false);
        let entity = HomeAssistant::new("homeassistant").unwrap();
        bench.inbox.profile = Some((Box::new(entity), Rule { retained: true, ..RULE }));
        let config =
            |name: &str| Said::Json(json!({"name": name, "stat_t": "boiler/state", "avty_t": "boiler/status"}));
        bench.hear("homeassistant/sensor/boiler/config", true, config("Old"));
        bench.hear("boiler/status", true, Said::Number(0.0));
        bench.hear("boiler/state", true, Said::Number(7.0));
        let values = |bench: &Bench| -> Vec<f64> {
            let mut values: Vec<f64> = bench.told(0).unwrap().into_iter().map(|(_, value)| value).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        assert_eq!(values(&bench), [0.0]);
        bench.hear("boiler/status", false, Said::Number(1.0));
        assert_eq!(values(&bench), [1.0, 7.0]);
        let wanted = bench.hear("homeassistant/sensor/boiler/config", false, config("New"));
        assert_eq!(wanted, ["boiler/state", "boiler/status"]);
        bench.hear("boiler/state", true, Said::Number(8.0));
        assert_eq!(values(&bench), [8.0], "nothing is left of what had another name");
        bench.hear("homeassistant/sensor/boiler/config", false, Said::Nothing);
        assert!(bench.told(0).is_err(), "nothing is left of what is gone");
    }

    #[test]
    fn what_there_is_no_room_for_is_a_gap_beside_what_is_told() {
        let mut bench = bench(vec![listed("t/#", None, RULE)], true);
        let gap = |bench: &Bench, metric: usize| {
            let mut readings = Readings::default();
            let inbox = &bench.inbox;
            if metric == 0 {
                inbox.tell_listed(0, &mut readings)
            } else {
                inbox.tell_profile(1, &mut readings)
            }
            (readings.len(), readings.failures().iter().map(|(_, failure)| failure.to_string()).collect::<Vec<_>>())
        };
        let many: serde_json::Map<String, serde_json::Value> =
            (0..201).map(|n| (format!("S{n}"), json!({"Temperature": n}))).collect();
        bench.hear("tele/plug/SENSOR", false, Said::Json(serde_json::Value::Object(many)));
        let (told, why) = gap(&bench, 1);
        assert_eq!((told, why.len()), (SERIES_PER_TOPIC_MAX, 1));
        assert!(
            why[0].starts_with("bad_answer: not all: at 2026-11-22 15:00:00 UTC")
                && why[0].ends_with("several devices")
        );
        for n in 0..801 {
            bench.hear(&format!("t/{n}"), false, Said::Number(1.0));
        }
        let (told, why) = gap(&bench, 0);
        assert_eq!((told, why.len()), (800, 1), "{why:?}");
        bench.clock.advance(61_000);
        bench.hear("t/1", false, Said::Number(1.0));
        assert_eq!(gap(&bench, 0), (1, vec![]), "what would be silent by now is not missing");
    }

    #[test]
    fn presence_and_lists_are_as_many_in_one_topic_as_there_is_room_for() {
        let mut bench = bench(vec![], false);
        bench.inbox.profile = Some((Box::new(Zigbee2mqtt::new("z").unwrap()), RULE));
        let list: Vec<_> = (0..500).map(|n| json!({"friendly_name": format!("d{n}")})).collect();
        let list = serde_json::Value::Array(list).to_string();
        bench.hear("z/bridge/devices", true, Form::Devices.read(list.as_bytes()));
        assert_eq!((bench.told(0).unwrap().len(), bench.inbox.standing().ignored), (500, 0));
        bench.inbox.profile = Some((Box::new(HomeAssistant::new("homeassistant").unwrap()), RULE));
        for n in 0..1_001 {
            let config = json!({"name": format!("e{n}"), "stat_t": "s"});
            bench.hear(&format!("homeassistant/sensor/e{n}/config"), true, Said::Json(config));
        }
        let refusal = bench.told(0).unwrap_err();
        assert!(refusal.detail.contains("not all: more announces itself than the 1,000"), "{refusal}");
    }

    #[test]
    fn what_came_before_the_list_of_devices_is_told_once_it_is_there() {
        let mut bench = bench(vec![], false);
        let network = super::super::zigbee2mqtt::Zigbee2mqtt::new("z").unwrap();
        bench.inbox.profile = Some((Box::new(network), RULE));
        bench.hear("z/plug", true, Said::Json(json!({"temperature": 1})));
        bench.hear("z/attic", false, Said::Json(json!({"temperature": 21.5})));
        bench.hear("z/big", false, Said::Json(json!({"x": "y".repeat(10_000)})));
        bench.clock.advance(30_000);
        let list = br#"[{"friendly_name": "attic", "definition": {"exposes": [{"type": "numeric", "property": "temperature", "unit": "\u00b0C"}]}}, {"friendly_name": "plug"}]"#;
        bench.hear("z/bridge/devices", true, Form::Devices.read(list));
        assert_eq!((bench.inbox.early.len(), bench.inbox.standing().ignored), (0, 1));
        let told = bench.told(0).unwrap();
        assert!(told.contains(&("device=attic".to_owned(), 21.5)), "{told:?}");
        assert!(!told.contains(&("device=plug".to_owned(), 1.0)), "what was retained does not count: {told:?}");
        bench.clock.advance(31_000);
        assert!(!bench.told(0).unwrap().contains(&("device=attic".to_owned(), 21.5)), "it counts from when it came");
    }
}
