//! The `prometheus` collector against the real thing: Prometheus' node exporter and its Python client, each sample
//! compared with what Prometheus' own Python parser reads from the same page.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use satellite_agent::collector::{Context, Readings, all, series_of_key};
use satellite_agent::policy::{Gate, Policy};
use satellite_agent::secrets::Keyring;
use satellite_shared::clock::SystemClock;
use satellite_shared::config::Document;

/// Reads a page on stdin and prints each sample as `name`, `[label, value]…`, and the value's bits.
const PARSER: &str = r"
import json, struct, sys
from importlib import import_module
parser = import_module(sys.argv[1])
for family in parser.text_string_to_metric_families(sys.stdin.buffer.read().decode()):
    for sample in family.samples:
        bits = struct.unpack('>Q', struct.pack('>d', sample.value))[0]
        print(json.dumps([sample.name, sorted(sample.labels.items()), bits]))
";

/// An exporter with one metric of each kind, names and values that need escapes, and numbers at their borders.
const EXPORTER: &str = r#"
import sys, threading
from prometheus_client import *
registry = CollectorRegistry()
Gauge('edge', 'Borders', ['n'], registry=registry).labels('max').set(1.7976931348623157e308)
edge = registry._names_to_collectors['edge']
for n, v in {'tiny': 5e-324, 'nan': float('nan'), 'inf': float('inf'), 'minus': float('-inf'), 'zero': -0.0}.items():
    edge.labels(n).set(v)
odd = Gauge('odd', 'A "help" with \\ and\nnewline', ['text'], registry=registry)
for text in ['', 'quote " backslash \\ newline \n end', '{a="b"},', '# not a comment', 'ünï ☃', ' blank ', '\\n', '\t']:
    odd.labels(text).set(1)
counter = Counter('requests', 'Requests', ['code'], unit='seconds', registry=registry)
counter.labels('200').inc(3, exemplar={'trace_id': 'abc # {'})
Histogram('size_bytes', 'Sizes', registry=registry, unit='bytes').observe(0.3, exemplar={'trace_id': 'x'})
Summary('latency_seconds', 'Latency', registry=registry).observe(0.1)
Info('build', 'Build', registry=registry).info({'version': '1.2"3'})
Enum('state', 'State', states=['on', 'off'], registry=registry).state('off')
server, thread = start_http_server(0, '127.0.0.1', registry=registry)
print(server.server_port, flush=True)
thread.join()
"#;

/// Name, sorted labels, bits of the value.
type Sample = (String, Vec<(String, String)>, u64);

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("a_real_node_exporters_page_is_read_sample_by_sample", || {
            let Some(exporter) = in_path("prometheus-node-exporter") else {
                let reason = "no prometheus-node-exporter: apt-get install prometheus-node-exporter";
                return Ok(Completion::ignored_with(reason));
            };
            node_exporter(&exporter).map(|()| Completion::Completed).map_err(|error| format!("{error:?}").into())
        }),
        Trial::ignorable_test("a_real_openmetrics_exporter_is_read_sample_by_sample", || {
            if !has_python_client() {
                return Ok(Completion::ignored_with("no prometheus_client in python3: pip install prometheus_client"));
            }
            python_exporter().map(|()| Completion::Completed).map_err(|error| format!("{error:?}").into())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn node_exporter(exporter: &PathBuf) -> Result<()> {
    let mut started = Started(
        Command::new(exporter)
            .arg("--web.listen-address=127.0.0.1:0")
            .args(["--log.format=json", "--collector.textfile.directory=/nonexistent"])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?,
    );
    let mut log = BufReader::new(started.0.stderr.take().context("no log")?);
    let mut port = None;
    for line in log.by_ref().lines() {
        let line = line?;
        let at = line.find("127.0.0.1:").filter(|_| line.contains("istening on"));
        if let Some(at) = at {
            let digits: String = line[at + 10..].chars().take_while(char::is_ascii_digit).collect();
            port = Some(digits.parse::<u16>()?);
            break;
        }
    }
    // It would not outlive a log that nobody reads.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    let page = get(port.context("it ended before it listened")?, "/metrics")?;
    // The next scrape would read other values: the very same bytes are served to the collector.
    let polled = scrape(serve(page.clone())?)?;
    let lines = page.split(|b| *b == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"#")).count();
    ensure!(lines > 200, "only {lines} lines");
    ensure!(polled.len() == lines, "{} samples of {lines} lines", polled.len());
    if has_python_client() {
        same(&polled, &parse(&page, "prometheus_client.parser")?)?;
    }
    Ok(())
}

fn python_exporter() -> Result<()> {
    let mut python = Command::new("python3");
    let mut started = Started(python.args(["-c", EXPORTER]).stdout(Stdio::piped()).spawn()?);
    let mut line = String::new();
    BufReader::new(started.0.stdout.take().context("no output")?).read_line(&mut line)?;
    let port: u16 = line.trim().parse()?;
    let page = get(port, "/metrics")?;
    ensure!(page.ends_with(b"# EOF\n"), "not OpenMetrics");
    same(&scrape(port)?, &parse(&page, "prometheus_client.openmetrics.parser")?)
}

/// Polls the device as a satellite does and gives its page, without what the collector tells of the scrape.
fn scrape(port: u16) -> Result<Vec<Sample>> {
    let text = format!("[[device]]\nname = \"it\"\ncollector = \"prometheus\"\nurl = \"http://127.0.0.1:{port}\"\n");
    let (_, document) = Document::parse_text(&text).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let device = document.devices.first().context("no device")?;
    let policy = Policy::parse(&format!("loopback_ports = [{port}]"))?;
    let context = Context::new(Arc::new(Gate::new(policy, Arc::new(SystemClock))), Keyring::of([]), "/");
    let kind = all().iter().find(|kind| kind.name == "prometheus").context("no such collector")?;
    let mut built = (kind.build)(device, &context).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let mut readings = Readings::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(built.collector.poll(&[0, 1], &mut readings))?;
    ensure!(readings.failures().is_empty(), "{:?}", readings.failures());
    let mut samples = Vec::new();
    for reading in readings.iter().filter(|reading| reading.metric == 0) {
        let series = series_of_key(&device.name, reading.key).context("a series that breaks the limits")?;
        samples.push((series.name, series.labels, reading.value.to_bits()));
    }
    Ok(samples)
}

fn parse(page: &[u8], module: &str) -> Result<Vec<Sample>> {
    let mut python = Command::new("python3");
    let mut child = python.args(["-c", PARSER, module]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    let page = page.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&page));
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the parser failed");
    writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    String::from_utf8(output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Compares as multisets: the parsers order families differently. All NaN are one.
fn same(ours: &[Sample], theirs: &[Sample]) -> Result<()> {
    let names: std::collections::HashSet<&str> = ours.iter().map(|(name, ..)| name.as_str()).collect();
    let regular = |samples: &[Sample]| {
        let mut counts: BTreeMap<Sample, i64> = BTreeMap::new();
        for (name, labels, bits) in samples {
            // Prometheus' Python parser adds a `_total` to counters that have none.
            let bare =
                name.strip_suffix("_total").filter(|bare| !names.contains(name.as_str()) && names.contains(bare));
            let bits = if f64::from_bits(*bits).is_nan() { f64::NAN.to_bits() } else { *bits };
            *counts.entry((bare.unwrap_or(name).to_owned(), labels.clone(), bits)).or_default() += 1;
        }
        counts
    };
    let (ours, theirs) = (regular(ours), regular(theirs));
    ensure!(!ours.is_empty(), "nothing was read");
    for (sample, count) in &ours {
        ensure!(theirs.get(sample) == Some(count), "only we read {sample:?}");
    }
    for sample in theirs.keys() {
        ensure!(ours.contains_key(sample), "only they read {sample:?}");
    }
    Ok(())
}

/// The body of an answer, asked for as a satellite asks.
fn get(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { bail!("no head") };
    ensure!(answer.starts_with(b"HTTP/1.0 200") || answer.starts_with(b"HTTP/1.1 200"), "not 200");
    Ok(answer.split_off(end + 4))
}

/// Serves a page once.
fn serve(page: Vec<u8>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}", page.len());
        stream.write_all(format!("{head}\r\n\r\n").as_bytes())?;
        Ok(stream.write_all(&page)?)
    });
    Ok(port)
}

/// A program that ends with its owner.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn has_python_client() -> bool {
    let asked = Command::new("python3").args(["-c", "import prometheus_client.openmetrics.parser"]).output();
    asked.is_ok_and(|said| said.status.success())
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
