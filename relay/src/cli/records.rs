//! `satellite-relay records`: reads what is stored, from the folder or the bucket, beside a running relay or without.

use std::collections::HashMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use satellite_shared::clock::{Clock, SystemClock};
use serde::Serialize;
use time::OffsetDateTime;

use crate::data_dir::DataDir;
use crate::registry::Registry;
use crate::sink::archive;
use crate::sink::archive::reader::{self, Answer, GapRow, Query, Sample};

/// Rows that one answer may hold.
const LIMIT_MAX: u64 = 1_000_000;

/// What is stored: samples, or gaps.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  satellite-relay records --since 5m
  satellite-relay records --satellite attic --metric node_load1 --since 1d --json
  satellite-relay records --gaps --since 7d")]
pub struct RecordsArgs {
    /// Of this satellite only: its id or its name.
    #[arg(long, value_name = "ID|NAME")]
    satellite: Option<String>,
    /// How far back: 30s, 5m, 1h, 7d.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    since: Duration,
    /// Of this metric only.
    #[arg(long, value_name = "NAME")]
    metric: Option<String>,
    /// The newest so many.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=LIMIT_MAX))]
    limit: u64,
    /// What is missing and why, instead of what is there.
    #[arg(long)]
    gaps: bool,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<Row> {
    #[serde(flatten)]
    rows: HashMap<&'static str, Vec<Row>>,
    /// Older rows were left out.
    truncated: bool,
    /// Objects that can't be read.
    unreadable: Vec<String>,
}

/// Reads and prints.
///
/// # Errors
/// When the registry or the store does not answer, and when there is no such satellite.
pub async fn run(args: &RecordsArgs, place: &archive::Settings, data_dir: &DataDir) -> anyhow::Result<()> {
    let registry = Registry::open(data_dir.path()).await?;
    let satellite = match &args.satellite {
        Some(asked) => Some(registry.satellite_by(asked).await?.id.to_string()),
        None => None,
    };
    let since_ms = i64::try_from(args.since.as_millis()).unwrap_or(i64::MAX);
    let query = Query {
        satellite,
        metric: args.metric.clone(),
        since_ms: SystemClock.now().wall_ms.saturating_sub(since_ms),
        limit: usize::try_from(args.limit)?,
    };
    let store = place.open(data_dir)?;
    let asked = || format!("the archive in {}", store.place());
    let printed = if args.gaps {
        let answer = reader::gaps(&store, &query).await.with_context(asked)?;
        print(args, &registry, "gaps", answer, gap_cells).await?
    } else {
        let answer = reader::samples(&store, &query).await.with_context(asked)?;
        print(args, &registry, "records", answer, sample_cells).await?
    };
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

async fn print<Row: Serialize>(
    args: &RecordsArgs,
    registry: &Registry,
    what: &'static str,
    answer: Answer<Row>,
    cells: fn(&Row, &HashMap<String, String>) -> Vec<String>,
) -> anyhow::Result<io::Result<()>> {
    if args.json {
        let Answer { rows, truncated, unreadable } = answer;
        let document = Document { rows: HashMap::from([(what, rows)]), truncated, unreadable };
        let mut out = BufWriter::new(io::stdout().lock());
        let written = serde_json::to_writer_pretty(&mut out, &document).map_err(io::Error::from);
        return Ok(written.and_then(|()| writeln!(out)).and_then(|()| out.flush()));
    }
    let names = registry.satellites().await?;
    let names = names.into_iter().map(|row| (row.id.to_string(), row.name)).collect();
    let rows: Vec<Vec<String>> = answer.rows.iter().map(|row| cells(row, &names)).collect();
    for object in &answer.unreadable {
        complain(&format!("left out: {object}"));
    }
    let written = write_table(&mut BufWriter::new(io::stdout().lock()), &rows);
    if io::stderr().is_terminal() {
        let more = if answer.truncated { ", the newest; --limit and --since show more" } else { "" };
        complain(&format!("{} {what}{more}", rows.len()));
    }
    Ok(written)
}

#[expect(clippy::print_stderr, reason = "the command line's own words")]
fn complain(text: &str) {
    eprintln!("{text}");
}

/// Columns as wide as their widest cell, the last one as it is.
fn write_table(out: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths).take(columns - 1) {
            write!(out, "{cell:<width$}  ")?;
        }
        writeln!(out, "{}", row[columns - 1])?;
    }
    out.flush()
}

fn sample_cells(row: &Sample, names: &HashMap<String, String>) -> Vec<String> {
    let labels: Vec<String> = row.labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    let series = if labels.is_empty() { row.name.clone() } else { format!("{}{{{}}}", row.name, labels.join(",")) };
    let value = format!("{} {}", row.value, printable(&row.unit));
    vec![
        time_text(row.time_ms),
        name_of(&row.satellite, names),
        row.device.clone(),
        series,
        value.trim_end().to_owned(),
    ]
}

fn gap_cells(row: &GapRow, names: &HashMap<String, String>) -> Vec<String> {
    vec![
        time_text(row.from_ms),
        time_text(row.to_ms),
        name_of(&row.satellite, names),
        row.device.clone().unwrap_or_else(|| "*".into()),
        row.metric.as_deref().map_or_else(|| "*".into(), printable),
        row.count.to_string(),
        row.reason.clone(),
        printable(&row.detail),
    ]
}

fn name_of(id: &str, names: &HashMap<String, String>) -> String {
    names.get(id).map_or_else(|| id.to_owned(), |name| printable(name))
}

/// What a satellite wrote must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `2026-11-21T07:59:59.999Z`.
pub(super) fn time_text(time_ms: i64) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp(time_ms.div_euclid(1000)) else {
        return format!("{time_ms} ms");
    };
    let (hour, minute, second) = time.to_hms();
    let (year, month, day, ms) = (time.year(), u8::from(time.month()), time.day(), time_ms.rem_euclid(1000));
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_as_prometheus_writes_it() {
        let row = Sample {
            time_ms: 1_795_247_999_999,
            satellite: "st_a".into(),
            device: "nas".into(),
            name: "x_seconds_total".into(),
            labels: [("cpu".into(), "0".into()), ("mode".into(), "\u{1b}[2J\"".into())].into(),
            value: 0.5,
            kind: "counter".into(),
            unit: "seconds\u{1b}[2J".into(),
            epoch: String::new(),
            seq: 1,
        };
        let names = HashMap::from([("st_a".to_owned(), "attic".to_owned())]);
        let mut out = Vec::new();
        write_table(&mut out, &[sample_cells(&row, &names)]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-21T07:59:59.999Z  attic  nas  x_seconds_total{cpu=\"0\",mode=\"\\u{1b}[2J\\\"\"}  0.5 seconds\u{fffd}[2J\n"
        );
        write_table(&mut Vec::new(), &[]).unwrap();
    }

    #[test]
    fn every_time_can_be_written() {
        assert_eq!(time_text(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(time_text(i64::MAX), format!("{} ms", i64::MAX));
    }
}
