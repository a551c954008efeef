//! Topics and the filters that choose them (MQTT 3.1.1, section 4.7), with what stood where a wildcard is.

/// A filter that a configuration may write, and a topic that is listened to.
const TOPIC_BYTES_MAX: usize = 512;
const LEVELS_MAX: usize = 32;

/// A topic, perhaps with wildcards: `tele/+/SENSOR`, `zigbee2mqtt/#`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    text: String,
    levels: Vec<Level>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Fixed(String),
    /// `+`: one level, whatever it is.
    One,
    /// `#`: all that follows.
    Rest,
}

impl Filter {
    /// Reads a filter.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let levels: Vec<&str> = text.split('/').collect();
        if !is_topic_text(text) || levels.len() > LEVELS_MAX {
            return Err(format!("a topic of 1 to {TOPIC_BYTES_MAX} bytes and at most {LEVELS_MAX} levels"));
        }
        if text.starts_with("$share/") {
            return Err("a shared subscription would give each message to one of many: name the topic itself".into());
        }
        let last = levels.len() - 1;
        let level = |(at, level): (usize, &&str)| match *level {
            "+" => Ok(Level::One),
            "#" if at == last => Ok(Level::Rest),
            fixed if fixed.contains(['+', '#']) => {
                Err("`+` stands for a whole level, `#` for all that follow: `tele/+/SENSOR`, `home/#`".to_owned())
            }
            fixed => Ok(Level::Fixed(fixed.to_owned())),
        };
        let levels = levels.iter().enumerate().map(level).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), levels })
    }

    /// As it was written.
    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// How many wildcards it has.
    pub(super) fn wildcards(&self) -> usize {
        self.levels.iter().filter(|level| !matches!(level, Level::Fixed(_))).count()
    }

    /// What stood where the wildcards are, in order; `None` where the topic is not chosen.
    pub(super) fn captures<'t>(&self, topic: &'t str) -> Option<Vec<&'t str>> {
        let begins_wild = !matches!(self.levels.first(), Some(Level::Fixed(_)));
        if begins_wild && topic.starts_with('$') {
            return None;
        }
        let mut captures = Vec::new();
        let mut rest = Some(topic);
        for level in &self.levels {
            if *level == Level::Rest {
                captures.push(rest.unwrap_or_default());
                return Some(captures);
            }
            let text = rest?;
            let (own, after) = text.split_once('/').map_or((text, None), |(own, after)| (own, Some(after)));
            match level {
                Level::Fixed(fixed) if fixed != own => return None,
                Level::Fixed(_) => {}
                Level::One | Level::Rest => captures.push(own),
            }
            rest = after;
        }
        rest.is_none().then_some(captures)
    }
}

/// Whether a text can be the topic of a message that we listen to.
pub(super) fn is_topic(text: &str) -> bool {
    is_topic_text(text) && !text.contains(['+', '#'])
}

fn is_topic_text(text: &str) -> bool {
    (1..=TOPIC_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control)
}

/// A topic as a detail of 200 bytes can name it.
pub(super) fn shown(topic: &str) -> String {
    let mut shown: String = topic.chars().filter(|c| !c.is_control()).take(60).collect();
    if shown.len() < topic.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_gives_what_stood_there() {
        let check = |filter: &str, topic: &str, expect: Option<&[&str]>| {
            let captures = Filter::parse(filter).unwrap().captures(topic);
            assert_eq!(captures.as_deref(), expect, "{filter} {topic}");
        };
        check("tele/plug/SENSOR", "tele/plug/SENSOR", Some(&[]));
        check("tele/+/SENSOR", "tele/plug/SENSOR", Some(&["plug"]));
        check("tele/+/SENSOR", "tele/plug/STATE", None);
        check("tele/+/SENSOR", "tele/a/b/SENSOR", None);
        check("+/+", "a/b", Some(&["a", "b"]));
        check("+", "/a", None);
        check("/+", "/a", Some(&["a"]));
        check("+/tennis", "/tennis", Some(&[""]));
        check("home/#", "home/a/b", Some(&["a/b"]));
        check("home/#", "home", Some(&[""]));
        check("home/#", "homes/a", None);
        check("#", "a/b", Some(&["a/b"]));
        check("#", "$SYS/uptime", None);
        check("+/uptime", "$SYS/uptime", None);
        check("$SYS/+", "$SYS/uptime", Some(&["uptime"]));
        check("a/b/c", "a/b", None);
        check("a/b", "a/b/c", None);
        assert_eq!(Filter::parse("a/+/b/#").unwrap().wildcards(), 2);
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_would_be_one() {
        for text in ["a+", "a/#/b", "a/b#", "##", "a/++"] {
            assert!(Filter::parse(text).unwrap_err().contains("whole level"), "{text}");
        }
        for text in ["", "a\0b", "a\nb", &"a".repeat(600), &"a/".repeat(40)] {
            assert!(Filter::parse(text).unwrap_err().contains("512 bytes"), "{text}");
        }
        assert!(Filter::parse("$share/a/b").unwrap_err().contains("shared"));
        assert!(is_topic("a/b") && !is_topic("a/+") && !is_topic("") && !is_topic("a\u{7f}"));
        assert_eq!(shown(&"ä".repeat(70)).chars().count(), 61);
    }

    proptest! {
        #[test]
        fn every_topic_is_chosen_as_the_library_chooses(filter in "[ab+#/$]{1,8}", topic in "[ab/$]{1,8}") {
            if let Ok(own) = Filter::parse(&filter) {
                let theirs = rumqttc::mqttbytes::matches(&topic, &filter);
                // The library chooses nothing that begins with `$`, and does not know that `a/#` is `a` as well.
                if !topic.starts_with('$') && theirs {
                    prop_assert!(own.captures(&topic).is_some());
                }
                if let Some(captures) = own.captures(&topic) {
                    prop_assert_eq!(captures.len(), own.wildcards());
                }
            }
        }
    }
}
