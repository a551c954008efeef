//! The rows there are, the figures that were taken, and the table of them.

use anyhow::Result;
use serde_json::{Value, json};

use crate::Plan;

/// One row: a budget of DESIGN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// What people type.
    pub name: &'static str,
    /// What it says.
    pub what: &'static str,
    /// Of its figures.
    pub unit: &'static str,
    /// What we allow ourselves; none where the row is for comparison only.
    pub budget: Option<f64>,
}

const fn row(name: &'static str, what: &'static str, unit: &'static str, budget: Option<f64>) -> Row {
    Row { name, what, unit, budget }
}

/// All of them, in the order of the table.
pub(crate) const ROWS: [Row; 19] = [
    row("rss", "memory of a satellite at rest that polls this host every 10 s", "MiB RSS", Some(12.0)),
    row("cpu", "CPU per sample: collect, encode, commit, send over mutual TLS", "µs", Some(3.0)),
    row("wire-live", "bytes on the wire per sample, live, both ways, with TLS and all framing", "B", Some(3.0)),
    row("wire-backlog", "the same for a backlog", "B", Some(1.3)),
    row("buffer", "bytes in the buffer per sample, fsynced", "B", Some(1.5)),
    row("flash", "bytes written to flash a day at 30 samples a second, commit_every = 30s", "MB/day", Some(25.0)),
    row("flash-1s", "the same of the buffer alone, nothing else beside it, commit_every = 1s", "MB/day", None),
    row("flash-10s", "the same, commit_every = 10s", "MB/day", None),
    row("flash-30s", "the same, commit_every = 30s", "MB/day", Some(25.0)),
    row("relay-cpu", "relay CPU per sample: mutual TLS, decoded, committed, acknowledged", "µs", Some(0.6)),
    row("relay-ceiling", "samples a second that the relay takes on this machine, generator beside it", "1/s", None),
    row("idle-1000", "relay memory per idle connection, of 1,000", "KiB", Some(20.0)),
    row("idle-5000", "relay memory per idle connection, of 5,000", "KiB", Some(20.0)),
    row("handshake", "relay CPU per connection: mutual TLS, upgrade, authentication, close", "ms", Some(1.2)),
    row("handshakes-rate", "connections per second of relay CPU", "1/s", None),
    row("drain", "samples a second from a satellite's buffer into storage, one satellite", "1/s", None),
    row("drain-7-days", "a backlog of 60 million samples at that rate (extrapolated)", "min", None),
    row("lateness", "p99 lateness of polls: 200 devices, 2,000 metrics, 1 s to 60 s, one core", "ms", Some(100.0)),
    row("size", "installed size", "MiB", Some(15.0)),
];

/// A figure of ours or of a peer.
#[derive(Debug, Clone)]
struct Figure {
    row: String,
    who: String,
    values: Vec<f64>,
    how: String,
}

#[derive(Debug, Clone)]
struct Missing {
    row: String,
    who: String,
    why: String,
    failed: bool,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Report {
    plan: Plan,
    figures: Vec<Figure>,
    missing: Vec<Missing>,
}

/// The name under which our own figures stand.
pub(crate) const OURS: &str = "satellite";

impl Report {
    /// Nothing yet.
    pub(crate) fn new(plan: Plan) -> Self {
        Self { plan, figures: Vec::new(), missing: Vec::new() }
    }

    /// Figures of one round each.
    pub(crate) fn add(&mut self, row: &str, who: &str, values: Vec<f64>, how: impl Into<String>) {
        self.figures.push(Figure { row: row.into(), who: who.into(), values, how: how.into() });
    }

    /// A peer that is not there.
    pub(crate) fn skipped(&mut self, row: &str, who: &str, why: &str) {
        self.missing.push(Missing { row: row.into(), who: who.into(), why: why.into(), failed: false });
    }

    /// Something that should have been measured and was not.
    pub(crate) fn failed(&mut self, row: &str, why: &str) {
        self.failed_for(row, OURS, why);
    }

    /// The same for a peer.
    pub(crate) fn failed_for(&mut self, row: &str, who: &str, why: &str) {
        self.missing.push(Missing { row: row.into(), who: who.into(), why: why.into(), failed: true });
    }

    /// Drops what came along with the rows that were asked for.
    pub(crate) fn keep_rows(&mut self, wanted: &dyn Fn(&str) -> bool) {
        self.figures.retain(|figure| wanted(&figure.row));
        self.missing.retain(|missing| wanted(&missing.row));
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for row in ROWS {
            let figures: Vec<_> = self.figures.iter().filter(|figure| figure.row == row.name).collect();
            let missing: Vec<_> = self.missing.iter().filter(|missing| missing.row == row.name).collect();
            if figures.is_empty() && missing.is_empty() {
                continue;
            }
            let budget = row.budget.map_or(String::new(), |budget| format!(", budget {budget}"));
            text.push_str(&format!("\n{}: {} ({}{budget})\n", row.name, row.what, row.unit));
            for figure in figures {
                let [median, min, max] = spread(&figure.values);
                let over = figure.who == OURS && row.budget.is_some_and(|budget| median > budget);
                let mark = if over { "  OVER" } else { "" };
                let range =
                    if figure.values.len() > 1 { format!("({}..{})", number(min), number(max)) } else { String::new() };
                text.push_str(&format!(
                    "  {:<32} {:>9} {range:<20}{mark}  {}\n",
                    figure.who,
                    number(median),
                    figure.how
                ));
            }
            for missing in missing {
                let word = if missing.failed { "FAILED" } else { "SKIPPED" };
                text.push_str(&format!("  {:<32} {word}: {}\n", missing.who, missing.why));
            }
        }
        text.push_str(&format!("\n{}\n", self.conditions()));
        text
    }

    fn conditions(&self) -> String {
        let rounds = if self.plan.quick { "a quick run: not for figures" } else { "median (min..max)" };
        format!("{rounds}; {} rounds; {}", self.plan.rounds, machine())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Result<String> {
        let rows: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        let missing: Vec<Value> = self
            .missing
            .iter()
            .map(|it| json!({"row": it.row, "who": it.who, "why": it.why, "failed": it.failed}))
            .collect();
        let document = json!({
            "quick": self.plan.quick, "rounds": self.plan.rounds, "machine": machine(),
            "figures": rows, "missing": missing,
        });
        Ok(serde_json::to_string_pretty(&document)?)
    }
}

impl Figure {
    fn json(&self) -> Value {
        let row = ROWS.iter().find(|row| row.name == self.row);
        let [median, min, max] = spread(&self.values);
        json!({
            "row": self.row, "what": row.map(|row| row.what), "unit": row.map(|row| row.unit),
            "budget": row.and_then(|row| row.budget), "who": self.who, "median": median, "min": min, "max": max,
            "values": self.values, "how": self.how,
        })
    }
}

/// Median, least and greatest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => [f64::NAN; 3],
        all => [all[all.len() / 2], all[0], all[all.len() - 1]],
    }
}

/// Three significant digits are what such a measurement has.
fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "-".into(),
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("\t: unknown processor");
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpus} × {}, Linux {}, load {load}", model.trim_start_matches([' ', '\t', ':']), kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { quick: false, peers: true, rounds: 3 };

    #[test]
    fn a_row_shows_the_median_beside_the_peers_and_says_when_it_is_over_its_budget() {
        let mut report = Report::new(PLAN);
        report.add("rss", OURS, vec![14.0, 13.0, 15.5], "at rest");
        report.add("rss", "vmagent", vec![16.0], "");
        report.skipped("rss", "collectd", "not installed");
        let text = report.text();
        assert!(text.contains("14.0 (13.0..15.5)") && text.contains("OVER"), "{text}");
        assert!(text.contains("vmagent") && text.contains("SKIPPED: not installed"), "{text}");
        assert!(!text.contains("handshake:"), "{text}");
    }

    #[test]
    fn the_document_holds_every_value_and_only_the_rows_asked_for() {
        let mut report = Report::new(PLAN);
        report.add("rss", OURS, vec![2.0, 1.0], "");
        report.add("cpu", OURS, vec![3.0], "");
        report.keep_rows(&|row| row == "rss");
        let document: Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(document["figures"][0]["values"], json!([2.0, 1.0]));
        assert_eq!(document["figures"].as_array().unwrap().len(), 1);
    }
}
