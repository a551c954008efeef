//! Which of a machine's many things are told: names, with `*` for any characters and `?` for one.

use satellite_shared::config::Problem;

use super::options;

/// Patterns of one list, and bytes of one: what is matched against thousands of names.
const PATTERNS_MAX: usize = 32;
const PATTERN_BYTES_MAX: usize = 100;

/// What is meant, and what of it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Patterns {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl Patterns {
    /// Reads two lists, each with the key that it stands under.
    pub(crate) fn parse(
        path: &str,
        include: (&str, Vec<String>),
        exclude: (&str, Vec<String>),
    ) -> Result<Self, Problem> {
        for (key, patterns) in [&include, &exclude] {
            let at = |reason: String| options::problem(&format!("{path}.{key}"), reason);
            if patterns.len() > PATTERNS_MAX {
                return Err(at(format!("{} patterns, more than {PATTERNS_MAX}: use wider ones", patterns.len())));
            }
            if let Some(wrong) = patterns.iter().find(|pattern| !is_pattern(pattern)) {
                let shown: String = wrong.chars().take(80).collect();
                return Err(at(format!(
                    "`{shown}` is no pattern of names: letters, digits, `:-_.\\@`, `*` for any characters, `?` for one"
                )));
            }
        }
        if include.1.is_empty() {
            return Err(options::problem(&format!("{path}.{}", include.0), "name at least one, or remove the key"));
        }
        Ok(Self { include: include.1, exclude: exclude.1 })
    }

    /// Whether a name is meant.
    pub(crate) fn take(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), name.as_bytes()));
        any(&self.include) && !any(&self.exclude)
    }
}

fn is_pattern(text: &str) -> bool {
    (1..=PATTERN_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\@*?".contains(&b))
}

/// Whether a pattern is of a name: `*` is any bytes, `?` is one. It takes no more steps than one's length times the other's,
/// since it goes back to the last `*` only: what the one before it took can stay as it is.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, taken)) = star else { return false };
                star = Some((at, taken + 1));
                p = at + 1;
                n = taken + 1;
            }
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_characters_and_a_question_mark_one() {
        for (pattern, name, expected) in [
            ("*.service", "ssh.service", true),
            ("*.service", "ssh.socket", false),
            ("*.service", ".service", true),
            ("*", "", true),
            ("?", "", false),
            ("ssh", "ssh.service", false),
            ("user@?.service", "user@1.service", true),
            ("user@?.service", "user@10.service", false),
            ("*a*b*", "xxaxxb", true),
            ("*a*b*", "xxbxxa", false),
            ("*ab", "aab", true),
            ("a**b", "ab", true),
            ("dev-disk-by\\x2duuid-*", "dev-disk-by\\x2duuid-1.device", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_time() {
        let pattern = "*a".repeat(128);
        assert!(!matches(pattern.as_bytes(), "a".repeat(127).as_bytes()));
        assert!(!matches(pattern.as_bytes(), format!("{}b", "a".repeat(255)).as_bytes()));
    }

    #[test]
    fn what_is_excluded_is_not_taken_and_what_is_no_pattern_is_named() {
        let parse = |include: &[&str], exclude: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            Patterns::parse("device.it", ("units", own(include)), ("exclude", own(exclude)))
        };
        let patterns = parse(&["*.service", "*.timer"], &["systemd-*"]).unwrap();
        let taken = ["ssh.service", "systemd-udevd.service", "apt.timer", "a.mount"].map(|name| patterns.take(name));
        assert_eq!(taken, [true, false, true, false]);
        let check = |problem: Problem, said: &str| assert!(problem.to_string().contains(said), "{problem}");
        check(parse(&[], &[]).unwrap_err(), "device.it.units: name at least one");
        check(parse(&["a b"], &[]).unwrap_err(), "device.it.units: `a b` is no pattern");
        check(parse(&["*"], &["[ab]"]).unwrap_err(), "device.it.exclude: `[ab]` is no pattern");
        check(parse(&["*"], &[""]).unwrap_err(), "device.it.exclude: `` is no pattern");
        check(parse(&["*"; 33], &[]).unwrap_err(), "device.it.units: 33 patterns, more than 32");
        check(parse(&[&"x".repeat(101)], &[]).unwrap_err(), "device.it.units");
    }
}
