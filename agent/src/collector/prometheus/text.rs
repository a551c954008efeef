//! The text formats of Prometheus (0.0.4) and OpenMetrics, read a line at a time.
//!
//! What is kept between lines is the family that was last described, nothing else: an exporter's page can be as long
//! as it likes. A line that breaks the grammar ends the reading, as it does for Prometheus itself: half a page is no
//! answer. Timestamps and exemplars are read over: a sample's time is when it was polled, and the satellite's clock is
//! the only one that is judged.

use satellite_shared::limits;
use satellite_shared::metric::{Kind, is_label_name, is_metric_name};

/// A line without its end.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// What a line can't be read for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct SyntaxError {
    /// Counted from 1.
    pub line: u64,
    /// What is wrong, and where it can be, what to do.
    pub what: &'static str,
}

/// One sample of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// The metric name.
    pub name: &'a str,
    /// As the family was described.
    pub kind: Kind,
    /// As the family was described, or empty.
    pub unit: &'a str,
    /// Names and values, as they came, no name twice.
    pub labels: &'a [(&'a str, String)],
    /// The value.
    pub value: f64,
}

/// Reads lines.
#[derive(Debug, Default)]
pub struct Parser {
    is_openmetrics: bool,
    line: u64,
    family: Family,
    is_ended: bool,
}

#[derive(Debug, Default)]
struct Family {
    name: String,
    kind: Kind,
    unit: String,
}

impl Parser {
    /// A parser at the top of a page.
    #[must_use]
    pub fn new(is_openmetrics: bool) -> Self {
        Self { is_openmetrics, ..Self::default() }
    }

    /// Whether nothing can follow, or need not: OpenMetrics ends with `# EOF`.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_ended || !self.is_openmetrics
    }

    /// Reads one line, without its end, and gives its sample, if it is one and `wanted` says so of its name.
    ///
    /// # Errors
    /// The first thing that breaks the grammar or a limit.
    pub fn read(
        &mut self,
        line: &[u8],
        wanted: impl FnOnce(&str) -> bool,
        give: impl FnOnce(Sample<'_>),
    ) -> Result<(), SyntaxError> {
        self.line += 1;
        self.read_line(line, wanted, give).map_err(|what| SyntaxError { line: self.line, what })
    }

    fn read_line(
        &mut self,
        line: &[u8],
        wanted: impl FnOnce(&str) -> bool,
        give: impl FnOnce(Sample<'_>),
    ) -> Result<(), &'static str> {
        let line = std::str::from_utf8(line).map_err(|_| "not UTF-8")?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_matches([' ', '\t']);
        if line.is_empty() {
            return Ok(());
        }
        if self.is_ended {
            return Err("something follows `# EOF`");
        }
        if let Some(comment) = line.strip_prefix('#') {
            self.describe(comment);
            return Ok(());
        }
        let (name, rest) = split_name(line);
        if !is_metric_name(name) {
            return Err(if line.starts_with('{') {
                "a quoted metric name: set the exporter to underscores"
            } else {
                "not a metric name, or over 256 bytes"
            });
        }
        if !wanted(name) {
            return Ok(());
        }
        let rest = rest.trim_start_matches([' ', '\t']);
        let mut labels = Vec::new();
        let rest = match rest.strip_prefix('{') {
            Some(inside) => read_labels(inside, &mut labels)?,
            None => rest,
        };
        let value = read_value(rest, self.is_openmetrics)?;
        let bytes = labels.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes + name.len() + self.family.unit.len() > limits::SERIES_BYTES_MAX {
            return Err("a series of more than 4096 bytes: `exclude` its name");
        }
        let (kind, unit) = self.family.of(name);
        give(Sample { name, kind, unit, labels: &labels, value });
        Ok(())
    }

    /// Takes `# TYPE`, `# UNIT` and `# EOF`; what else is behind a `#` is for people.
    fn describe(&mut self, comment: &str) {
        let mut words = comment.split([' ', '\t']).filter(|word| !word.is_empty());
        let keyword = words.next().unwrap_or_default();
        if keyword == "EOF" && self.is_openmetrics && words.next().is_none() {
            self.is_ended = true;
            return;
        }
        if !matches!(keyword, "TYPE" | "UNIT" | "HELP") {
            return;
        }
        let Some(name) = words.next().filter(|name| is_metric_name(name)) else { return };
        if self.family.name != name {
            self.family = Family { name: name.to_owned(), ..Family::default() };
        }
        match (keyword, words.next()) {
            ("TYPE", Some(word)) => self.family.kind = kind_of(word),
            ("UNIT", Some(word)) if word.len() <= limits::NAME_BYTES_MAX => word.clone_into(&mut self.family.unit),
            _ => {}
        }
    }
}

impl Family {
    /// Kind and unit of a sample that follows the family's description; a foreign name has neither.
    fn of(&self, name: &str) -> (Kind, &str) {
        let unit = self.unit.as_str();
        let Some(suffix) = name.strip_prefix(self.name.as_str()) else { return (Kind::Unknown, "") };
        match (self.kind, suffix) {
            (kind, "") => (kind, unit),
            (Kind::Counter, "_total") => (Kind::Counter, unit),
            (Kind::Counter | Kind::Histogram | Kind::Summary, "_created") => (Kind::Gauge, "seconds"),
            (Kind::Histogram, "_sum" | "_gsum") => (Kind::Histogram, unit),
            (Kind::Histogram, "_bucket" | "_count" | "_gcount") => (Kind::Histogram, ""),
            (Kind::Summary, "_sum") => (Kind::Summary, unit),
            (Kind::Summary, "_count") => (Kind::Summary, ""),
            (Kind::Info, "_info") => (Kind::Info, ""),
            _ => (Kind::Unknown, ""),
        }
    }
}

fn kind_of(word: &str) -> Kind {
    match word {
        "gauge" => Kind::Gauge,
        "counter" => Kind::Counter,
        "histogram" | "gaugehistogram" => Kind::Histogram,
        "summary" => Kind::Summary,
        "info" => Kind::Info,
        "stateset" => Kind::StateSet,
        _ => Kind::Unknown,
    }
}

fn split_name(line: &str) -> (&str, &str) {
    line.split_at(line.find(['{', ' ', '\t']).unwrap_or(line.len()))
}

/// Reads up to the closing brace and gives what is behind it.
fn read_labels<'a>(mut rest: &'a str, labels: &mut Vec<(&'a str, String)>) -> Result<&'a str, &'static str> {
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok(after);
        }
        let (name, after) = rest.split_once('=').ok_or("labels without an end")?;
        let name = name.trim_end_matches([' ', '\t']);
        if !is_label_name(name) {
            return Err("not a label name, or over 256 bytes");
        }
        let after = after.trim_start_matches([' ', '\t']).strip_prefix('"').ok_or("a label's value without quotes")?;
        let (value, after) = read_quoted(after)?;
        if labels.iter().any(|(other, _)| *other == name) {
            return Err("the same label twice");
        }
        if labels.len() >= limits::LABELS_MAX {
            return Err("more than 64 labels: `exclude` the name");
        }
        labels.push((name, value));
        rest = after.trim_start_matches([' ', '\t']);
        rest = match rest.strip_prefix(',') {
            Some(after) => after,
            None if rest.starts_with('}') => rest,
            None => return Err("labels without a comma between them"),
        };
    }
}

/// Reads up to the closing quote; `\\`, `\"` and `\n` are unescaped, another backslash is itself.
fn read_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let at = rest.find(['"', '\\']).ok_or("a label's value without an end")?;
        value.push_str(&rest[..at]);
        let (mark, after) = rest[at..].split_at(1);
        if mark == "\"" {
            return Ok((value, after));
        }
        let escaped = after.chars().next().ok_or("a label's value without an end")?;
        match escaped {
            'n' => value.push('\n'),
            '"' | '\\' => value.push(escaped),
            _ => value.extend(['\\', escaped]),
        }
        rest = &after[escaped.len_utf8()..];
    }
}

/// Reads the value and over a timestamp and an exemplar.
fn read_value(text: &str, is_openmetrics: bool) -> Result<f64, &'static str> {
    let text = if is_openmetrics { text.split_once(" #").map_or(text, |(before, _)| before) } else { text };
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let value = words.next().ok_or("no value")?;
    let value: f64 = value.parse().map_err(|_| "the value is not a number")?;
    if let Some(timestamp) = words.next()
        && timestamp.parse::<f64>().is_err()
    {
        return Err("the timestamp is not a number");
    }
    if words.next().is_some() {
        return Err("something follows the timestamp");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each sample as `name{labels} value kind unit`, or the error.
    fn read(page: &str, is_openmetrics: bool) -> Result<Vec<String>, String> {
        let mut parser = Parser::new(is_openmetrics);
        let mut samples = Vec::new();
        for line in page.split('\n') {
            let give = |sample: Sample<'_>| {
                let labels: Vec<_> = sample.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let Sample { name, value, kind, unit, .. } = sample;
                samples
                    .push(format!("{name}{{{}}} {value} {} {unit}", labels.join(","), kind.as_str()).trim().to_owned());
            };
            parser.read(line.as_bytes(), |_| true, give).map_err(|error| error.to_string())?;
        }
        if parser.is_complete() { Ok(samples) } else { Err("incomplete".into()) }
    }

    #[test]
    fn a_page_gives_its_samples_with_kind_and_unit() {
        let page = "# HELP a_total Things.\n# TYPE a_total counter\na_total 3\na_total{b=\"c\"} 4 1700000000000\n\n# a comment\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 1.5\nh_count 2\n# TYPE s summary\ns{quantile=\"0.5\"} NaN\ns_sum 1e3\nplain -Inf\n# TYPE i gauge\ni_info{v=\"1\"} 1\n";
        let expect = [
            "a_total{} 3 counter",
            "a_total{b=c} 4 counter",
            "h_bucket{le=+Inf} 2 histogram",
            "h_sum{} 1.5 histogram",
            "h_count{} 2 histogram",
            "s{quantile=0.5} NaN summary",
            "s_sum{} 1000 summary",
            "plain{} -inf unknown",
            "i_info{v=1} 1 unknown",
        ];
        assert_eq!(read(page, false).unwrap(), expect);
    }

    #[test]
    fn openmetrics_adds_units_exemplars_and_an_end() {
        let page = "# TYPE t_seconds counter\n# UNIT t_seconds seconds\nt_seconds_total{a=\"b # c\"} 1.0 1700000000.5 # {trace=\"x\"} 0.5 1.2\nt_seconds_created 1.7e9\n# TYPE b info\nb_info{v=\"1\"} 1\n# TYPE st stateset\nst{st=\"on\"} 1\n# EOF\n";
        let expect = [
            "t_seconds_total{a=b # c} 1 counter seconds",
            "t_seconds_created{} 1700000000 gauge seconds",
            "b_info{v=1} 1 info",
            "st{st=on} 1 stateset",
        ];
        assert_eq!(read(page, true).unwrap(), expect);
        assert_eq!(read("a 1\n", true), Err("incomplete".into()));
        assert!(read("# EOF\na 1\n", true).unwrap_err().contains("follows `# EOF`"));
        assert_eq!(read("# EOF\na 1\n", false).unwrap().len(), 1, "there it is a comment");
    }

    #[test]
    fn blanks_escapes_and_trailing_commas_are_read_as_prometheus_reads_them() {
        let page = "  a\t{ b = \"c\\\\d\\\"e\\nf\\x\" , g=\"ü}{,=\", }\t1e-3\t-5  \r";
        assert_eq!(read(page, false).unwrap(), ["a{b=c\\d\"e\nf\\x,g=ü}{,=} 0.001 unknown"]);
        assert_eq!(read("a{} 1", false).unwrap(), ["a{} 1 unknown"]);
        assert_eq!(read("a:b_c{} +Inf", false).unwrap(), ["a:b_c{} inf unknown"]);
    }

    #[test]
    fn a_line_that_breaks_the_grammar_is_named() {
        for (line, said) in [
            ("1a 1", "line 2: not a metric name"),
            ("a", "no value"),
            ("a{", "labels without an end"),
            ("a x", "not a number"),
            ("a{b=c} 1", "without quotes"),
            ("a{b=\"c} 1", "without an end"),
            ("a{b=\"c\\", "without an end"),
            ("a{b=\"c\"d=\"e\"} 1", "without a comma"),
            ("a{1=\"c\"} 1", "not a label name"),
            ("a 1 x", "timestamp is not"),
            ("a 1 2 3", "follows the timestamp"),
            ("a{b=\"1\",b=\"2\"} 1", "same label twice"),
            ("{\"a.b\"} 1", "quoted metric name"),
            ("a{b=\"c\"}", "no value"),
            ("a 1 # {} 1", "timestamp is not"),
        ] {
            let told = read(&format!("ok 1\n{line}\n"), false).unwrap_err();
            assert!(told.contains(said) && told.starts_with("line 2: "), "{line}: {told}");
        }
        let many: String = (0..65).map(|n| format!("l{n}=\"\",")).collect();
        assert!(read(&format!("a{{{many}}} 1"), false).unwrap_err().contains("64 labels"));
        assert!(read(&format!("a{{b=\"{}\"}} 1", "v".repeat(4_096)), false).unwrap_err().contains("4096 bytes"));
        let mut parser = Parser::new(false);
        assert_eq!(parser.read(b"a\xff 1", |_| true, |_| {}).unwrap_err().what, "not UTF-8");
    }

    #[test]
    fn what_is_not_wanted_is_not_read_further() {
        let mut parser = Parser::new(false);
        assert_eq!(parser.read(b"a{b=broken", |name| name != "a", |_| panic!("not wanted")), Ok(()));
    }

    fn text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..8), om: bool) {
            let mut parser = Parser::new(om);
            for line in lines {
                drop(parser.read(&line, |_| true, |_| {}));
            }
        }

        #[test]
        fn no_near_miss_makes_it_panic(line in "[#a_ {}=\",\\\\n1.eETYPUNIOF+ü\t-]{0,60}", om: bool) {
            drop(Parser::new(om).read(line.as_bytes(), |_| true, |_| {}));
        }

        #[test]
        fn what_was_written_is_read_back(value: f64, labels in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,8}", text(), 0..5)) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let written: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            let line = format!("m{{{}}} {value:e}", written.join(","));
            let mut back = None;
            let give = |sample: Sample<'_>| {
                let labels: Vec<_> = sample.labels.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
                back = Some((labels, sample.value.to_bits()));
            };
            Parser::new(false).read(line.as_bytes(), |_| true, give).unwrap();
            let expect: Vec<_> = labels.into_iter().collect();
            prop_assert_eq!(back.map(|(labels, bits)| (labels, bits == value.to_bits())), Some((expect, true)));
        }
    }
}
