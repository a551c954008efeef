//! What a message says to each metric that listens to its topic.
//!
//! Paths into a long message take time, and many metrics may listen to it: they are followed where nobody waits, up to a
//! limit of time and of values, and only what they found goes to the inbox.

use std::sync::Arc;
use std::time::Duration;

use super::inbox::SERIES_MAX;
use super::payload::{self, Form, Said};
use super::topic::Filter;
use crate::collector::http::path::{NOTHING, Path};
use crate::collector::number::Number;
use crate::collector::probe::Stopwatch;

/// A message that is read at once, as long as it is for all metrics that listen to it together.
const SMALL_BYTES_MAX: usize = 32 << 10;
/// For a message and all paths into it; the first path is followed however long reading took.
const READ_WITHIN: Duration = Duration::from_secs(1);

/// When a value counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// A topic that was silent for longer has no value.
    pub(super) silent_after: Duration,
    /// Whether what the broker had kept from before counts, from when it arrives.
    pub(super) retained: bool,
}

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
pub(super) type Values = Vec<(Vec<(String, String)>, f64)>;

/// What one metric finds in a message.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Its values, or why there can be none.
    Values(Result<Values, String>),
    /// Nothing of its own, and why.
    Nothing(&'static str),
    /// More than there is room for.
    TooMany,
}

/// A message that was read.
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) retained: bool,
    pub(super) said: Said,
    /// By the index of the metric.
    pub(super) found: Vec<(usize, Found)>,
}

/// Who listens to a topic, and how its message is to be read.
pub(super) struct Reader {
    listed: Arc<Vec<Listed>>,
    /// Which of them listen.
    listening: Vec<usize>,
    form: Form,
    topic: String,
    retained: bool,
}

impl Reader {
    /// For a message of this topic; `None` where nobody has a use for it.
    pub(super) fn new(
        listed: &Arc<Vec<Listed>>,
        of_profile: Option<Form>,
        topic: &str,
        retained: bool,
    ) -> Option<Self> {
        let listens = |listed: &Listed| listed.filter.captures(topic).is_some();
        let all = listed.iter().enumerate();
        let listening: Vec<usize> = all.filter(|(_, listed)| listens(listed)).map(|(at, _)| at).collect();
        let form = of_profile.or_else(|| (!listening.is_empty()).then_some(Form::Value))?;
        Some(Self { listed: Arc::clone(listed), listening, form, topic: topic.to_owned(), retained })
    }

    /// The longest payload that somebody has a use for.
    pub(super) fn bytes_max(&self) -> usize {
        self.form.bytes_max()
    }

    /// Whether a payload of this length is read in no time.
    pub(super) fn is_quick(&self, bytes: usize) -> bool {
        bytes.saturating_mul(self.listening.len().max(1)) <= SMALL_BYTES_MAX
    }

    /// Reads a payload.
    pub(super) fn read(self, payload: &[u8]) -> Message {
        self.read_within(payload, READ_WITHIN)
    }

    fn read_within(self, payload: &[u8], limit: Duration) -> Message {
        let watch = Stopwatch::start();
        let said = self.form.read(payload);
        let mut room = SERIES_MAX;
        let mut found = Vec::with_capacity(self.listening.len());
        for (nth, &at) in self.listening.iter().enumerate() {
            let one = if nth > 0 && watch.seconds() > limit.as_secs_f64() {
                Found::Values(Err("no time was left to read all of the message".into()))
            } else {
                self.listed[at].find(&self.topic, self.retained, &said, room)
            };
            if let Found::Values(Ok(values)) = &one {
                room = room.saturating_sub(values.len());
            }
            found.push((at, one));
        }
        Message { topic: self.topic, retained: self.retained, said, found }
    }
}

impl Listed {
    /// What a message of its topic says to it, of at most so many values.
    pub(super) fn find(&self, topic: &str, retained: bool, said: &Said, room: usize) -> Found {
        let Some(captures) = self.filter.captures(topic) else { return Found::Nothing("is of another topic") };
        if retained && !self.rule.retained {
            return Found::Nothing("was retained: it counts with `retained = true`");
        }
        match self.values(&self.labels(topic, &captures), said) {
            Ok(None) => Found::Nothing("has nothing where `path` leads"),
            Ok(Some(values)) if values.len() > room => Found::TooMany,
            Ok(Some(values)) => Found::Values(Ok(values)),
            Err(why) => Found::Values(Err(why)),
        }
    }

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

#[cfg(test)]
mod tests {
    use satellite_shared::config::{Metric, Schedule};

    use super::*;

    const RULE: Rule = Rule { silent_after: Duration::from_secs(60), retained: false };

    fn reader(paths: &[&str]) -> Reader {
        let metric = Metric {
            name: "x".into(),
            schedule: Schedule::Every(Duration::from_secs(1)),
            paused: false,
            options: serde_json::Map::new(),
        };
        let listed = |path: &&str| Listed {
            number: Number::parse(&metric, "device.it").unwrap().0,
            filter: Filter::parse("a").unwrap(),
            labels_from: None,
            path: Some(Path::parse(path).unwrap()),
            rule: RULE,
        };
        Reader::new(&Arc::new(paths.iter().map(listed).collect()), None, "a", false).unwrap()
    }

    #[test]
    fn a_long_message_and_one_for_many_are_read_where_nobody_waits() {
        assert!(reader(&["$.x"]).is_quick(SMALL_BYTES_MAX) && !reader(&["$.x"]).is_quick(SMALL_BYTES_MAX + 1));
        assert!(!reader(&["$.x"; 500]).is_quick(1_000) && reader(&["$.x"; 500]).is_quick(50));
    }

    #[test]
    fn paths_for_which_no_time_is_left_are_told() {
        let message = reader(&["$.x", "$.x", "$.x"]).read_within(b"{\"x\": 1}", Duration::ZERO);
        let late = |found: &(usize, Found)| matches!(&found.1, Found::Values(Err(why)) if why.contains("no time"));
        assert!(matches!(&message.found[0].1, Found::Values(Ok(values)) if values.len() == 1));
        assert!(message.found[1..].iter().all(late), "{:?}", message.found);
    }

    #[test]
    fn all_paths_together_find_no_more_values_than_there_is_room_for() {
        let list = format!("[{}0]", "0,".repeat(599));
        let message = reader(&["$[*]", "$[*]", "$[0]"]).read_within(list.as_bytes(), Duration::from_secs(60));
        let len = |found: &(usize, Found)| if let Found::Values(Ok(values)) = &found.1 { values.len() } else { 0 };
        assert_eq!(message.found.iter().map(len).collect::<Vec<_>>(), [600, 0, 1]);
        assert_eq!(message.found[1].1, Found::TooMany);
    }
}
