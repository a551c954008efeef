//! `cargo demo`: the main job on this machine, for real.
//!
//! A relay with embedded storage, a lease, a satellite over mutual TLS that polls this host and a few real endpoints on
//! loopback, live counters, and where the files are. Ctrl-C ends everything; so does `--for`, with `--json` as one JSON
//! document. Both stop polling first and wait until every due sample is stored or explained.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

use std::io::{IsTerminal, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use satellite_tests::device::Device;
use satellite_tests::house::House;
use satellite_tests::peers::Peer;
use satellite_tests::process::{self, Process};
use satellite_tests::relay::Account;
use satellite_tests::{parquet_files, programs, wait};
use serde_json::json;

/// How often a line is written where there is no terminal to update.
const LINE_EVERY_MS: u64 = 5_000;

/// Runs a relay and a satellite on this machine and shows records becoming Parquet.
#[derive(Debug, Parser)]
#[command(
    name = "cargo demo",
    version,
    after_help = "Examples:\n  cargo demo\n  cargo demo -- --for 30s --json\n  cargo demo -- --keep ./demo-data"
)]
struct Arguments {
    /// End after so long: 30s, 5m. Without it, Ctrl-C ends the demo.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Print one JSON document at the end, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// How often this host is polled.
    #[arg(long, default_value = "2s", value_name = "DURATION")]
    every: String,
    /// Keep everything in this directory, which must be new or empty; without it, a temporary one goes at the end.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse_from(programs::typed())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let say = |text: &str| if arguments.json { eprintln!("{text}") } else { println!("{text}") };
    if arguments.json && arguments.duration.is_none() {
        bail!("--json prints at the end: give --for as well, such as --for 30s");
    }
    let ended = listen_for_the_end()?;
    process::shield_from_terminal();
    say("building the programs …");
    programs::programs()?;
    let temporary;
    let dir = match &arguments.keep {
        Some(dir) => kept(dir)?,
        None => {
            temporary = tempfile::Builder::new().prefix("satellite-demo-").tempdir()?;
            temporary.path().to_owned()
        }
    };
    let mut scene = Scene::start(&dir, &arguments.every)?;
    for line in scene.described() {
        say(&line);
    }
    scene.watch(arguments, &ended)?;
    say(if arguments.keep.is_some() { "ending …" } else { "ending; the files go, unless --keep DIR is given …" });
    let result = scene.end()?;
    if arguments.json {
        println!("{result}");
    } else {
        println!("{result:#}");
    }
    Ok(())
}

fn kept(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    if std::fs::read_dir(dir)?.next().is_some() {
        bail!("{} is not empty: give --keep a new directory", dir.display());
    }
    Ok(dir.canonicalize()?)
}

/// Becomes true at Ctrl-C, SIGTERM or the end of the terminal.
fn listen_for_the_end() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = Arc::new(AtomicBool::new(false));
    let of_thread = Arc::clone(&ended);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals.map(signal) else { return };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                of_thread.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(ended)
}

/// Everything that runs.
struct Scene {
    dir: PathBuf,
    house: House,
    /// A small device of our own, so that there is something over HTTP on every machine.
    plug: Device,
    exporter: Option<(u16, Process)>,
    started_ms: u64,
}

impl Scene {
    fn start(dir: &Path, every: &str) -> Result<Self> {
        let plug = Device::new("plug")?;
        let exporter = exporter(dir)?;
        let mut house = House::new(dir, &[&plug])?;
        if let Some((port, _)) = &exporter {
            house.satellite.stop()?;
            house.satellite.allow(&[plug.port(), *port])?;
            house.satellite.start()?;
        }
        let started_ms = wait::mono_ms();
        let page = exporter.as_ref().map_or(plug.port(), |(port, _)| *port);
        let document = format!(
            "[[device]]\nname = \"this-host\"\ncollector = \"host\"\nevery = \"{every}\"\n\n{}\n\
             [[device]]\nname = \"exporter\"\ncollector = \"prometheus\"\nurl = \"http://127.0.0.1:{page}/metrics\"\n\
             every = \"{every}\"\n\n\
             [[device]]\nname = \"loopback\"\ncollector = \"ping\"\naddress = \"127.0.0.1\"\nevery = \"1s\"\n\n\
             [[device]]\nname = \"door\"\ncollector = \"tcp\"\naddress = \"127.0.0.1:{}\"\nevery = \"1s\"\n",
            plug.as_http("1s"),
            plug.port(),
        );
        house.configure(&document)?;
        Ok(Self { dir: dir.to_owned(), house, plug, exporter, started_ms })
    }

    fn described(&self) -> Vec<String> {
        let records = self.house.relay.records();
        let exporter = match &self.exporter {
            Some((port, _)) => format!("a node_exporter on port {port}"),
            None => "the same device's page of metrics (no node_exporter is installed)".to_owned(),
        };
        vec![
            String::new(),
            format!(
                "  satellite  {} polls this host, a device on port {}, {exporter},",
                self.house.id,
                self.plug.port()
            ),
            "             127.0.0.1 by ping and a TCP port; over mutual TLS to".to_owned(),
            format!(
                "  relay      https://localhost:{}/ (web), wss://localhost:{} (satellites)",
                self.house.relay.web.port(),
                self.house.relay.session.port()
            ),
            format!("  in         {}", self.dir.display()),
            format!("  records    {}", records.display()),
            "  ask        duckdb -c \"SELECT time, device, name, value FROM read_parquet(".to_owned(),
            format!("               '{}/samples/**/*.parquet') ORDER BY time DESC LIMIT 20\"", records.display()),
            String::new(),
        ]
    }

    /// Shows the counters until the demo is to end.
    fn watch(&mut self, arguments: &Arguments, ended: &AtomicBool) -> Result<()> {
        let terminal = std::io::stderr().is_terminal();
        let mut line_ms = wait::mono_ms();
        loop {
            let passed_ms = wait::mono_ms() - self.started_ms;
            let over = arguments.duration.is_some_and(|wanted| u128::from(passed_ms) >= wanted.as_millis());
            if over || ended.load(Ordering::Relaxed) {
                break;
            }
            self.house.satellite.check_running()?;
            // An account that can't be had at this moment is shown a moment later.
            let account = self.house.relay.account(&self.house.id).ok();
            let line =
                account.map_or_else(|| "waiting for the first records …".to_owned(), |it| self.counters(it, passed_ms));
            if terminal {
                eprint!("\r\x1b[K{line}");
                std::io::stderr().flush()?;
            } else if !arguments.json && wait::mono_ms() >= line_ms {
                println!("{line}");
                line_ms += LINE_EVERY_MS;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        if terminal {
            eprintln!();
        }
        Ok(())
    }

    fn counters(&self, account: Account, passed_ms: u64) -> String {
        format!(
            "{:>4} s  {:>6.0} records/s  due {} = stored {} + explained {} + waiting {}  {:.2} bytes on the wire a record",
            passed_ms / 1000,
            ratio(account.stored * 1000, passed_ms),
            account.due,
            account.stored,
            account.explained,
            account.due.saturating_sub(account.stored + account.explained),
            ratio(self.house.relay.session.bytes_up(), account.stored),
        )
    }

    /// Stops polling, waits until the account balances, ends everything, counts what lies in the files.
    fn end(mut self) -> Result<serde_json::Value> {
        let polled_ms = wait::mono_ms() - self.started_ms;
        self.house.settle()?;
        let account = self.house.relay.account(&self.house.id)?;
        let bytes_up = self.house.relay.session.bytes_up();
        self.house.relay.stop()?;
        let files = parquet_files::count(&self.house.relay.records())?;
        if files.samples != account.stored {
            bail!("the files hold {} samples, the account says {account:?}", files.samples);
        }
        Ok(json!({
            "seconds": polled_ms as f64 / 1000.0,
            "due": account.due,
            "stored": account.stored,
            "explained": account.explained,
            "duplicates": files.duplicates,
            "records_per_second": ratio(account.stored * 1000, polled_ms),
            "bytes_on_wire_per_record": ratio(bytes_up, account.stored),
            "bytes_in_archive_per_record": ratio(files.bytes, account.stored),
            "gaps": files.gaps,
            "files": files.files,
            "satellite": self.house.id,
            "records": self.house.relay.records(),
        }))
    }
}

fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 0.0 } else { (of as f64 / to as f64 * 100.0).round() / 100.0 }
}

/// The real thing where it is installed.
fn exporter(dir: &Path) -> Result<Option<(u16, Process)>> {
    let Some(program) = Peer::NodeExporter.path() else { return Ok(None) };
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new(program);
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let mut exporter = Process::start("node_exporter", &mut command, &dir.join("node_exporter.log"))?;
    let listens = wait::until("node_exporter", Duration::from_secs(20), || {
        exporter.check_running()?;
        Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
    });
    // One that does not run here is as good as none.
    Ok(listens.is_ok().then_some((port, exporter)))
}
