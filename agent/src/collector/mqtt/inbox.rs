//! The newest value of each series, with when it came; what a poll reads.
//!
//! What came before the connection was lost is forgotten when it is lost: nobody knows what was said meanwhile. Pure but
//! for the clock. Invariant: at most [`SERIES_MAX`] series are held; what is silent makes room for what is new.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::DateTime;
use satellite_shared::clock::{Clock, Now};
use satellite_shared::gap::Reason;
use satellite_shared::metric::is_metric_name;
use tokio::sync::Notify;

use super::payload::{self, Form, PAYLOAD_BYTES_MAX, Said};
use super::profile::{Life, Profile, Told};
use super::topic::{Filter, shown};
use crate::collector::http::path::{NOTHING, Path};
use crate::collector::number::Number;
use crate::collector::{Failure, Family, Readings};

/// Series of one device.
pub(super) const SERIES_MAX: usize = 1_000;
/// Series of one topic, where a profile finds them.
const SERIES_PER_TOPIC_MAX: usize = 200;
/// Messages that are kept until a profile understands them, and how large one may be.
const EARLY_MAX: usize = 200;
const EARLY_BYTES_MAX: usize = 8 << 10;

/// When a value counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// A topic that was silent for longer has no value.
    pub(super) silent_after: Duration,
    /// Whether what the broker had kept from before counts, from when it arrives.
    pub(super) retained: bool,
}

/// A profile and when its values count.
pub(super) type Ruled = (Box<dyn Profile>, Rule);

/// One metric of the configuration and where it is said.
pub(super) struct Listed {
    pub(super) number: Number,
    pub(super) filter: Filter,
    /// The label of each wildcard, in order; the whole topic is the label where there are none.
    pub(super) labels_from: Option<Vec<String>>,
    pub(super) path: Option<Path>,
    pub(super) rule: Rule,
}

/// Each value of a message with the labels that set it apart.
type Values = Vec<(Vec<(String, String)>, f64)>;

impl Listed {
    fn labels(&self, topic: &str, captures: &[&str]) -> Vec<(String, String)> {
        match &self.labels_from {
            _ if captures.is_empty() => Vec::new(),
            None => vec![("topic".into(), topic.to_owned())],
            Some(names) => names.iter().zip(captures).map(|(name, text)| (name.clone(), (*text).to_owned())).collect(),
        }
    }

    /// The values of a message; `None` where it says nothing of this metric.
    fn values(&self, labels: &[(String, String)], said: &Said) -> Result<Option<Values>, String> {
        let one = |value: f64| Ok(Some(vec![(labels.to_vec(), value)]));
        match (said, &self.path) {
            (Said::Number(value), None) => one(*value),
            (Said::Json(document), None) => match payload::number(document) {
                Some(value) => one(value),
                None => Err("the message is JSON: say by `path` where in it the number is".into()),
            },
            (Said::Number(_), Some(_)) => Err("the message is a number alone: leave out `path`".into()),
            (Said::Json(document), Some(path)) => match path.numbers_as(document, payload::number) {
                Err(why) if why == NOTHING => Ok(None),
                Err(why) => Err(format!("the message: {why}")),
                Ok(found) => {
                    let with_index = |(index, value): (String, f64)| {
                        let mut labels = labels.to_vec();
                        if !path.is_single() {
                            labels.push(("index".into(), index));
                        }
                        (labels, value)
                    };
                    Ok(Some(found.into_iter().map(with_index).collect()))
                }
            },
            (Said::Nothing, _) => Err("the message is empty".into()),
            (Said::Devices(_), _) => Ok(None),
            (Said::Other(why) | Said::Word { why, .. }, _) => Err(why.clone()),
        }
    }
}

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

/// What one topic said last of one series of a profile.
struct Series {
    at: Now,
    told: Told,
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
    listed: Vec<Listed>,
    profile: Option<Ruled>,
    link: Link,
    heard: BTreeMap<(usize, String), Heard>,
    passed: Vec<Option<Passed>>,
    series: BTreeMap<String, Vec<Series>>,
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
            listed,
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

    /// How a message of this topic is to be read; `None` where nobody has a use for it.
    pub(super) fn form(&self, topic: &str) -> Option<Form> {
        let of_profile = self.profile.as_ref().and_then(|(profile, _)| profile.form(topic));
        let is_listed = || self.listed.iter().any(|listed| listed.filter.captures(topic).is_some());
        of_profile.or_else(|| is_listed().then_some(Form::Value))
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
    pub(super) fn on_message(&mut self, topic: &str, retained: bool, said: Said) -> Vec<String> {
        let now = self.clock.now();
        self.messages += 1;
        if matches!(said, Said::Other(_)) {
            self.ignored += 1;
        }
        for index in 0..self.listed.len() {
            self.take_listed(index, topic, retained, &said, now);
        }
        self.take_profile(topic, Early { at: now, retained, said })
    }

    fn take_profile(&mut self, topic: &str, message: Early) -> Vec<String> {
        let Some((profile, rule)) = &mut self.profile else { return Vec::new() };
        let (heard, rule) = (profile.hear(topic, &message.said), *rule);
        for topic in heard.forgotten {
            self.series.remove(&topic);
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

    fn take_listed(&mut self, index: usize, topic: &str, retained: bool, said: &Said, now: Now) {
        let listed = &self.listed[index];
        let Some(captures) = listed.filter.captures(topic) else { return };
        if retained && !listed.rule.retained {
            self.passed[index] = Some(Passed { at: now, why: "was retained: it counts with `retained = true`" });
            return;
        }
        let values = match listed.values(&listed.labels(topic, &captures), said) {
            Ok(None) => {
                self.passed[index] = Some(Passed { at: now, why: "has nothing where `path` leads" });
                return;
            }
            Ok(Some(values)) => Ok(values),
            Err(why) => Err(why),
        };
        let key = (index, topic.to_owned());
        let before = self.heard.get(&key).map_or(0, Heard::len);
        let heard = Heard { at: now, values };
        if heard.len() > before && !self.has_room_for(heard.len() - before, now) {
            self.ignored += 1;
            return;
        }
        self.heard.insert(key, heard);
    }

    fn take_told(&mut self, topic: &str, told: Told, now: Now) {
        let of_topic = self.series.get_mut(topic);
        let count = of_topic.as_ref().map_or(0, |series| series.len());
        let is_same = |other: &&mut Series| other.told.name == told.name && other.told.labels == told.labels;
        if let Some(known) = of_topic.and_then(|series| series.iter_mut().find(is_same)) {
            *known = Series { at: now, told };
        } else if count < SERIES_PER_TOPIC_MAX && self.has_room_for(1, now) {
            self.series.entry(topic.to_owned()).or_default().push(Series { at: now, told });
        } else {
            self.ignored += 1;
        }
    }

    fn held(&self) -> usize {
        let listed: usize = self.heard.values().map(Heard::len).sum();
        listed + self.series.values().map(Vec::len).sum::<usize>()
    }

    /// Whether so many more fit, once what is silent has gone where it is needed.
    fn has_room_for(&mut self, more: usize, now: Now) -> bool {
        if self.held() + more <= SERIES_MAX {
            return true;
        }
        let listed = &self.listed;
        self.heard.retain(|(index, _), heard| is_fresh(heard.at, now, listed[*index].rule.silent_after));
        let rule = self.profile.as_ref().map(|(_, rule)| *rule);
        for series in self.series.values_mut() {
            series.retain(|series| speaks(series, now, rule));
        }
        self.series.retain(|_, series| !series.is_empty());
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
        let told = self.fresh_values(metric);
        match told {
            Err(failure) => readings.missing(metric, failure),
            Ok(values) => {
                for (labels, value) in values.into_iter().flatten() {
                    let labels: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                    self.listed[metric].number.add_with(metric, &labels, *value, readings);
                }
            }
        }
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
        let Some((profile, rule)) = &self.profile else { return };
        let up_since = match self.since() {
            Ok(since) => since,
            Err(failure) => return readings.missing(metric, failure),
        };
        let now = self.clock.now();
        let mut speaking: Vec<&Series> =
            self.series.values().flatten().filter(|series| speaks(series, now, Some(*rule))).collect();
        // Two topics may tell the same series: the one that spoke last is right.
        speaking.sort_by_key(|series| std::cmp::Reverse(series.at.mono_ms));
        let mut names = HashSet::new();
        for series in &speaking {
            let Told { name, kind, unit, labels, value, .. } = &series.told;
            if names.insert((name, labels)) {
                let labels: Vec<(&str, &str)> = labels.iter().map(|(n, v)| (*n, v.as_str())).collect();
                readings.sample(metric, Family { name, kind: *kind, unit }, &labels, *value);
            }
        }
        if !speaking.is_empty() {
            return;
        }
        let filters = profile.filters();
        let refused = |filter: &Filter| self.refused.iter().any(|refused| refused == filter.as_str());
        let first = shown(filters.first().map_or("", Filter::as_str));
        let failure = if filters.iter().all(refused) {
            let what = "the broker does not let this user read it: see its access list";
            Failure::new(Reason::Refused, format!("`{first}`: {what}"))
        } else {
            let last = self.series.values().flatten().map(|series| series.at).max_by_key(|at| at.mono_ms);
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
        let rule = self.profile.as_ref().map(|(_, rule)| *rule);
        let told = self.series.values().flatten().filter(|series| speaks(series, now, rule)).count();
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

fn speaks(series: &Series, now: Now, rule: Option<Rule>) -> bool {
    match series.told.life {
        Life::State => true,
        Life::Measured(own) => {
            own.or(rule.map(|rule| rule.silent_after)).is_none_or(|limit| is_fresh(series.at, now, limit))
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

    use super::super::tasmota::Tasmota;
    use super::*;
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
        bench.inbox.on_message("a", false, Said::Number(3.0));
        bench.clock.advance(60_000);
        assert_eq!(bench.told(0).unwrap(), [("room=attic".to_owned(), 6.0)]);
        bench.clock.advance(1);
        bench.refusal(0, Reason::Timeout, "`a` is silent since 2026-11-22 15:00:05 UTC, longer than silent_after = 1m");
        // The wall clock may jump: what counts is how long it was.
        bench.inbox.on_message("a", false, Said::Number(4.0));
        bench.clock.step_wall(0);
        assert_eq!(bench.told(0).unwrap()[0].1, 8.0);
    }

    #[test]
    fn a_lost_connection_is_one_gap_and_what_was_known_is_forgotten() {
        let mut bench = bench(vec![listed("a", None, RULE)], true);
        bench.inbox.on_message("a", false, Said::Number(3.0));
        bench.inbox.on_message("tele/plug/LWT", true, Said::Number(1.0));
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
        bench.inbox.on_message("a", true, Said::Number(3.0));
        bench.refusal(0, Reason::Timeout, "was retained: it counts with `retained = true`");
        assert_eq!(bench.told(1).unwrap()[0].1, 6.0);
        bench.inbox.on_message("tele/plug/SENSOR", true, Said::Json(json!({"ENERGY": {"Power": 5}})));
        bench.inbox.on_message("tele/plug/LWT", true, Said::Number(1.0));
        assert_eq!(bench.told(2).unwrap(), [("device=plug".to_owned(), 1.0)], "presence is made to be retained");
    }

    #[test]
    fn a_wildcard_is_a_label_and_each_topic_is_silent_by_itself() {
        let mut bench = bench(vec![listed("tele/+/SENSOR", Some("$.e[*].p"), RULE)], false);
        bench.inbox.listed[0].labels_from = Some(vec!["plug".into()]);
        bench.inbox.on_message("tele/tv/SENSOR", false, Said::Json(json!({"e": [{"p": 1}, {"p": "ON"}]})));
        bench.clock.advance(50_000);
        bench.inbox.on_message("tele/lamp/SENSOR", false, Said::Json(json!({"e": [{"p": 5}]})));
        bench.inbox.on_message("tele/bare/SENSOR", false, Said::Json(json!({"f": 1})));
        let mut told = bench.told(0).unwrap();
        told.sort_by(|a, b| a.0.cmp(&b.0));
        let expect = [("index=0,plug=lamp", 10.0), ("index=0,plug=tv", 2.0), ("index=1,plug=tv", 2.0)];
        assert_eq!(told, expect.map(|(labels, value)| (format!("{labels},room=attic"), value)));
        bench.clock.advance(20_000);
        assert_eq!(bench.told(0).unwrap().len(), 1);
        assert_eq!((bench.inbox.standing().speaking, bench.inbox.standing().silent), (1, 2));
        bench.inbox.listed[0].labels_from = None;
        bench.inbox.on_message("tele/tv/SENSOR", false, Said::Json(json!({"e": [{"p": 1}]})));
        assert!(bench.told(0).unwrap().iter().any(|(labels, _)| labels.ends_with("topic=tele/tv/SENSOR")));
    }

    #[test]
    fn a_message_that_is_no_value_is_told_until_the_next_one() {
        let mut bench = bench(vec![listed("a", None, RULE), listed("a", Some("$.x"), RULE)], false);
        let check = |bench: &mut Bench, said: Said, plain: &str, path: &str| {
            bench.inbox.on_message("a", false, said);
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
        bench.inbox.on_message("a", false, Said::Number(1.0));
        assert_eq!(bench.told(0).unwrap()[0].1, 2.0);
        bench.refusal(1, Reason::BadAnswer, "leave out `path`");
        bench.inbox.on_message("a", false, Said::Json(json!({"x": "ON"})));
        bench.inbox.on_message("a", false, Said::Json(json!({"y": 1})));
        assert_eq!(bench.told(1).unwrap()[0].1, 2.0, "a message that is about something else changes nothing");
        assert_eq!(bench.inbox.standing().ignored, 1);
    }

    #[test]
    fn series_are_bounded_and_the_silent_ones_make_room() {
        let mut bench = bench(vec![listed("#", None, RULE)], true);
        for n in 0..1_500 {
            bench.inbox.on_message(&format!("t/{n}"), false, Said::Number(1.0));
        }
        assert_eq!((bench.told(0).unwrap().len(), bench.inbox.standing().ignored), (SERIES_MAX, 500));
        bench.clock.advance(61_000);
        bench.inbox.on_message("t/new", false, Said::Number(1.0));
        assert_eq!((bench.told(0).unwrap().len(), bench.inbox.held()), (1, 1));
        let many: serde_json::Map<String, serde_json::Value> =
            (0..900).map(|n| (format!("S{n}"), json!({"Temperature": n}))).collect();
        bench.inbox.on_message("tele/plug/SENSOR", false, Said::Json(serde_json::Value::Object(many)));
        assert_eq!(bench.told(1).unwrap().len(), SERIES_PER_TOPIC_MAX);
    }

    #[test]
    fn a_topic_that_the_broker_refuses_is_told_alone() {
        let mut bench = bench(vec![listed("a", None, RULE), listed("b", None, RULE)], true);
        bench.inbox.on_up(0.1, vec!["a".into(), "tele/#".into()]);
        bench.inbox.on_message("b", false, Said::Number(1.0));
        bench.refusal(0, Reason::Refused, "`a`: the broker does not let this user read it");
        bench.refusal(2, Reason::Refused, "`tele/#`: the broker does not let this user read it");
        assert!(bench.told(1).is_ok());
    }

    #[test]
    fn a_first_poll_waits_for_what_it_has_not_heard() {
        let mut bench = bench(vec![listed("a", None, RULE)], true);
        assert_eq!(bench.inbox.patience(&[0], true), Patience::UntilNews);
        assert_eq!(bench.inbox.patience(&[0], false), Patience::Over);
        bench.inbox.on_message("a", false, Said::Number(1.0));
        assert_eq!(bench.inbox.patience(&[0], true), Patience::Over);
        assert_eq!(bench.inbox.patience(&[0, 1], true), Patience::UntilNews);
        bench.inbox.on_message("tele/plug/LWT", true, Said::Number(1.0));
        assert_eq!(bench.inbox.patience(&[0, 1, 2], true), Patience::UntilQuiet);
        assert_eq!(bench.inbox.patience(&[2], true), Patience::Over);
        bench.inbox.on_down(Failure::new(Reason::Refused, "x"));
        assert_eq!(bench.inbox.patience(&[0], true), Patience::Over);
    }

    #[test]
    fn the_last_will_takes_a_devices_values_away() {
        let mut bench = bench(vec![], true);
        bench.inbox.on_message("tele/plug/SENSOR", false, Said::Json(json!({"ENERGY": {"Power": 5}})));
        assert_eq!(bench.told(0).unwrap().len(), 1);
        bench.inbox.on_message("tele/plug/LWT", false, Said::Number(0.0));
        assert_eq!(bench.told(0).unwrap(), [("device=plug".to_owned(), 0.0)]);
    }

    #[test]
    fn what_came_before_the_list_of_devices_is_told_once_it_is_there() {
        let mut bench = bench(vec![], false);
        let network = super::super::zigbee2mqtt::Zigbee2mqtt::new("z").unwrap();
        bench.inbox.profile = Some((Box::new(network), RULE));
        bench.inbox.on_message("z/plug", true, Said::Json(json!({"temperature": 1})));
        bench.inbox.on_message("z/attic", false, Said::Json(json!({"temperature": 21.5})));
        bench.inbox.on_message("z/big", false, Said::Json(json!({"x": "y".repeat(10_000)})));
        bench.clock.advance(30_000);
        let list = br#"[{"friendly_name": "attic", "definition": {"exposes": [{"type": "numeric", "property": "temperature", "unit": "\u00b0C"}]}}, {"friendly_name": "plug"}]"#;
        bench.inbox.on_message("z/bridge/devices", true, Form::Devices.read(list));
        assert_eq!((bench.inbox.early.len(), bench.inbox.standing().ignored), (0, 1));
        let told = bench.told(0).unwrap();
        assert!(told.contains(&("device=attic".to_owned(), 21.5)), "{told:?}");
        assert!(!told.contains(&("device=plug".to_owned(), 1.0)), "what was retained does not count: {told:?}");
        bench.clock.advance(31_000);
        assert!(!bench.told(0).unwrap().contains(&("device=attic".to_owned(), 21.5)), "it counts from when it came");
    }
}
