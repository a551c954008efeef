//! Where a number stands in a device's JSON: an RFC 9535 path, bounded in what it can cost.
//!
//! A path that can match in several places names each match by what varies: `$.phases[*].power` gives `index="0"`,
//! `$.rooms.*.temp` gives `index="kitchen"`. Whether a path is such a one is decided by its text, so that a series does
//! not change its name when a second match appears. Paths whose cost could grow faster than the answer are refused:
//! a configuration must not be able to stop a satellite.

use serde_json::Value;
use serde_json_path::{JsonPath, NormalizedPath, PathElement};

const PATH_BYTES_MAX: usize = 512;
const FILTERS_MAX: usize = 2;
const NESTING_MAX: usize = 6;
/// Numbers one path may give.
const MATCHES_MAX: usize = 1_000;
/// What is said of a path that matches nowhere.
pub(crate) const NOTHING: &str = "nothing is there in the answer";
/// An `index` label.
const INDEX_BYTES_MAX: usize = 256;

/// A path that was read.
#[derive(Debug)]
pub struct Path {
    query: JsonPath,
    steps: Vec<Step>,
}

/// How one piece of a path moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// To one member or element.
    Fixed,
    /// To any of them.
    Varies,
    /// Any number of levels down.
    Deep,
}

impl Path {
    /// Reads a path.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > PATH_BYTES_MAX {
            return Err(format!("a path of more than {PATH_BYTES_MAX} bytes"));
        }
        let bare = without_strings(text);
        check_cost(&bare)?;
        let query = JsonPath::parse(text).map_err(|error| {
            format!(
                "not a JSONPath: {} at {}; write $.name or $['name with blanks'][0]",
                error.message(),
                error.position()
            )
        })?;
        Ok(Self { query, steps: steps(&bare) })
    }

    /// Whether it can match at one place only.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.steps.iter().all(|step| *step == Step::Fixed)
    }

    /// The numbers it finds, each with its index; the index of a single path is empty.
    ///
    /// What is no number is left out where others are.
    ///
    /// # Errors
    /// Says what there was, where there was no number.
    pub fn numbers(&self, document: &Value) -> Result<Vec<(String, f64)>, String> {
        self.numbers_as(document, number)
    }

    /// The same for one who takes other values for numbers as well.
    pub(crate) fn numbers_as(
        &self,
        document: &Value,
        number: impl Fn(&Value) -> Option<f64>,
    ) -> Result<Vec<(String, f64)>, String> {
        let found = self.nodes(document)?;
        let mut numbers = Vec::with_capacity(found.len());
        let mut other = None;
        for (index, node) in found {
            match number(node) {
                Some(value) => numbers.push((index, value)),
                None => other = other.or_else(|| Some(what_is(node))),
            }
        }
        match (numbers.is_empty(), other) {
            (false, _) => Ok(numbers),
            (true, Some(what)) => Err(format!("found {what}, not a number")),
            (true, None) => Err(NOTHING.into()),
        }
    }

    /// All that it finds, each with its index; the index of a single path is empty.
    pub(super) fn nodes<'a>(&self, document: &'a Value) -> Result<Vec<(String, &'a Value)>, String> {
        let found = self.query.query_located(document);
        if found.len() > MATCHES_MAX {
            return Err(format!("matches {} times, more than {MATCHES_MAX}", found.len()));
        }
        Ok(found.iter().map(|node| (self.index(node.location()), node.node())).collect())
    }

    /// The first that it finds.
    pub(super) fn first<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.query.query(document).first()
    }

    fn index(&self, location: &NormalizedPath<'_>) -> String {
        let deep = self.steps.iter().position(|step| *step == Step::Deep);
        let steps_after = deep.map_or(0, |at| self.steps.len() - at - 1);
        let mut index = String::new();
        for (at, element) in location.iter().enumerate() {
            let from_end = location.len() - at;
            let step = match deep {
                Some(deep) if at < deep => self.steps.get(at),
                Some(_) if from_end <= steps_after => self.steps.len().checked_sub(from_end).map(|at| &self.steps[at]),
                Some(_) => Some(&Step::Deep),
                None => self.steps.get(at),
            };
            if step.is_none_or(|step| *step == Step::Fixed) {
                continue;
            }
            if !index.is_empty() {
                index.push('/');
            }
            match element {
                PathElement::Name(name) => index.push_str(name),
                PathElement::Index(number) => index.push_str(&number.to_string()),
            }
        }
        index.truncate(index.floor_char_boundary(INDEX_BYTES_MAX));
        index
    }
}

/// The text with every quoted string emptied, so that what is left can be counted.
fn without_strings(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match quote {
            Some(_) if c == '\\' => drop(characters.next()),
            Some(end) if c == end => {
                bare.push(c);
                quote = None;
            }
            Some(_) => {}
            None => {
                bare.push(c);
                quote = (c == '\'' || c == '"').then_some(c);
            }
        }
    }
    bare
}

fn check_cost(bare: &str) -> Result<(), String> {
    let (mut nesting, mut parentheses) = (0_usize, 0_usize);
    for c in bare.chars() {
        match c {
            '[' | '(' => nesting += 1,
            ']' | ')' => nesting = nesting.saturating_sub(1),
            ',' if parentheses == 0 => return Err("several selectors in one bracket: write a metric for each".into()),
            _ => {}
        }
        parentheses = match c {
            '(' => parentheses + 1,
            ')' => parentheses.saturating_sub(1),
            _ => parentheses,
        };
        if nesting > NESTING_MAX {
            return Err(format!("brackets nested more than {NESTING_MAX} deep"));
        }
    }
    if bare.matches("..").count() > 1 {
        return Err("more than one `..`: write the way out".into());
    }
    if bare.matches('$').count() > 1 {
        return Err("`$` inside a filter: compare with `@`".into());
    }
    if bare.matches('?').count() > FILTERS_MAX {
        return Err(format!("more than {FILTERS_MAX} filters"));
    }
    if bare.contains('?') && bare.matches("..").count() == 1 && bare.find("..") > bare.find('?') {
        return Err("`..` inside or behind a filter: put it before".into());
    }
    Ok(())
}

/// How each piece of a path moves; the path is known to be right.
fn steps(bare: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = bare.trim_start().trim_start_matches('$').trim();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Deep);
            rest = after.trim_start();
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = after.trim_start();
        }
        let end;
        let fixed;
        if rest.starts_with('[') {
            end = closing(rest);
            let inside = rest[1..end].trim().trim_end_matches(']').trim();
            fixed = inside.starts_with(['\'', '"']) || inside.parse::<i64>().is_ok();
        } else {
            end = rest.find(['.', '[']).unwrap_or(rest.len());
            fixed = rest[..end].trim() != "*";
        }
        steps.push(if fixed { Step::Fixed } else { Step::Varies });
        rest = rest[end..].trim_start();
    }
    steps
}

/// Where the bracket that opens the text ends, and what is behind it begins.
fn closing(text: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' if depth == 1 => return at + 1,
            ']' => depth -= 1,
            _ => {}
        }
    }
    text.len()
}

/// What a value is as a number, if it is one.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(state) => Some(f64::from(u8::from(*state))),
        Value::String(text) if text.len() <= 64 => text.trim().parse().ok().filter(|value: &f64| value.is_finite()),
        Value::String(_) | Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn what_is(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn numbers(path: &str, document: &Value) -> Vec<(String, f64)> {
        Path::parse(path).unwrap().numbers(document).unwrap()
    }

    fn house() -> Value {
        json!({
            "switch:0": {"apower": 12.5, "output": true, "name": "a.b[c]"},
            "text": " 21.50 ", "nothing": null, "list": [1, 2, 3], "word": "on", "nan": "NaN", "huge": "1e999",
            "rooms": {"kitchen": {"temp": 20, "name": "K"}, "attic": {"temp": 15}},
            "phases": [{"power": 1}, {"power": 2}, {"power": null}],
            "deep": {"a": {"temp": 1}, "b": [{"temp": 2}]}
        })
    }

    #[test]
    fn numbers_booleans_and_numeric_texts_are_numbers() {
        let house = house();
        for (path, value) in
            [("$['switch:0'].apower", 12.5), ("$['switch:0'].output", 1.0), ("$.text", 21.5), ("$.list[-1]", 3.0)]
        {
            assert_eq!(numbers(path, &house), [(String::new(), value)], "{path}");
            assert!(Path::parse(path).unwrap().is_single(), "{path}");
        }
    }

    #[test]
    fn a_path_with_several_matches_names_each_by_what_varies() {
        let house = house();
        let check = |path: &str, expect: &[(&str, f64)]| {
            let found = numbers(path, &house);
            let found: Vec<_> = found.iter().map(|(index, value)| (index.as_str(), *value)).collect();
            assert_eq!(found, expect, "{path}");
            assert!(!Path::parse(path).unwrap().is_single(), "{path}");
        };
        check("$.list[*]", &[("0", 1.0), ("1", 2.0), ("2", 3.0)]);
        check("$.list[1:]", &[("1", 2.0), ("2", 3.0)]);
        check("$.list[2:]", &[("2", 3.0)]);
        check("$.rooms.*.temp", &[("attic", 15.0), ("kitchen", 20.0)]);
        check("$.phases[*].power", &[("0", 1.0), ("1", 2.0)]);
        check("$.rooms[?@.name == 'K'].temp", &[("kitchen", 20.0)]);
        check("$.deep..temp", &[("a", 1.0), ("b/0", 2.0)]);
        check("$.deep..[*].temp", &[("a", 1.0), ("b/0", 2.0)]);
    }

    #[test]
    fn what_is_not_there_or_no_number_is_told() {
        let house = house();
        for (path, said) in [
            ("$.gone", "nothing is there"),
            ("$.nothing", "null"),
            ("$.word", "a text"),
            ("$.nan", "a text"),
            ("$.huge", "a text"),
            ("$.rooms", "an object"),
            ("$.list", "a list"),
        ] {
            let told = Path::parse(path).unwrap().numbers(&house).unwrap_err();
            assert!(told.contains(said), "{path}: {told}");
        }
        let many = Value::Array(vec![json!(1); 1_001]);
        assert!(Path::parse("$[*]").unwrap().numbers(&many).unwrap_err().contains("more than 1000"));
    }

    #[test]
    fn a_path_that_is_none_or_could_cost_too_much_is_refused() {
        for (path, said) in [
            ("power", "not a JSONPath"),
            ("", "not a JSONPath"),
            ("$.", "not a JSONPath"),
            ("$['a", "not a JSONPath"),
            ("$[*,*][*,*]", "several selectors"),
            ("$..*..*", "more than one `..`"),
            ("$[?$.a == 1]", "inside a filter"),
            ("$[?@..a]", "behind a filter"),
            ("$[?@.a][?@.b][?@.c]", "more than 2 filters"),
        ] {
            let told = Path::parse(path).unwrap_err();
            assert!(told.contains(said), "{path}: {told}");
        }
        assert!(Path::parse(&format!("$[?{}@.a{}]", "(".repeat(30), ")".repeat(30))).unwrap_err().contains("nested"));
        assert!(Path::parse(&format!("$.{}", "a".repeat(600))).unwrap_err().contains("more than 512 bytes"));
        assert!(Path::parse("$['a,b..$?']").unwrap().is_single(), "what is quoted is a name");
        assert!(Path::parse(r"$['it\'s, ok']").unwrap().is_single());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\$?[\\.\\[\\]\\(\\)'\"*?@,:a-c0-9\\\\ é-]{0,40}") {
            if let Ok(path) = Path::parse(&text) {
                drop(path.numbers(&json!({"a": [1, {"b": 2}], "b": {"c": "3"}})));
            }
        }
    }
}
