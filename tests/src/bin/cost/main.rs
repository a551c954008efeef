//! `cargo cost`: what Satellite costs, beside what others cost, on this machine, in one table.
//!
//! Each row is a figure of DESIGN's budgets: measured on the real programs, built from the working tree as the packages
//! have them, over real sockets, by what the kernel counts of them. Peers run in the same run and are metered the same
//! way; one that is not installed is SKIPPED with the reason. Nothing here is asserted: machines differ, and a figure
//! that is worse than its budget is shown as that.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

mod agents;
mod clients;
mod crowd;
mod doors;
mod drain;
mod flash;
mod ingest;
mod lateness;
mod meter;
mod peer_wires;
mod rivals;
mod size;
mod table;
mod workload;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;
use satellite_tests::programs;

use table::{ROWS, Report};

/// Set to anything to measure with the programs beside this one as they are, however they were built.
const AS_BUILT_ENV: &str = "SATELLITE_COST_AS_BUILT";

/// Measures what Satellite costs, beside its peers.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "cargo cost",
    version,
    after_help = "Examples:\n  cargo cost\n  cargo cost -- --list\n  cargo cost -- --row relay-cpu --row handshake --rounds 5\n  \
                  cargo cost -- --quick --no-peers --json"
)]
struct Arguments {
    /// Only this row; may be said again. `--list` names them.
    #[arg(long = "row", value_name = "NAME", value_parser = ROWS.map(|row| row.name))]
    rows: Vec<String>,
    /// A tenth of the work: to see that it works, not for figures.
    #[arg(long)]
    quick: bool,
    /// One JSON document on stdout, and nothing else there.
    #[arg(long)]
    json: bool,
    /// Ours alone.
    #[arg(long)]
    no_peers: bool,
    /// How often each figure is taken; the table shows the median, and from where to where they went.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Name the rows and end.
    #[arg(long)]
    list: bool,
}

/// What a part of the run needs to know.
#[derive(Debug, Clone, Copy)]
struct Plan {
    quick: bool,
    peers: bool,
    rounds: u32,
}

impl Plan {
    /// Of work that is `full` in a run for figures.
    fn amount(self, full: u64) -> u64 {
        if self.quick { (full / 10).max(1) } else { full }
    }
}

fn main() -> ExitCode {
    let words = programs::typed();
    let arguments = Arguments::parse_from(&words);
    if arguments.list {
        for row in ROWS {
            println!("{:<14} {}", row.name, row.what);
        }
        return ExitCode::SUCCESS;
    }
    let measured = match as_packaged(&words[1..]) {
        Ok(Some(code)) => return code,
        Ok(None) => run(&arguments),
        Err(error) => Err(error),
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The profiles of what the packages hold.
const PROFILE: &str = "dist";
const SATELLITES_PROFILE: &str = "compact";

/// A debug build measures nothing: builds the programs as the packages have them, and lets that build of this program do
/// the work.
fn as_packaged(words: &[std::ffi::OsString]) -> Result<Option<ExitCode>> {
    let is_packaged = programs::profile_dir()?.file_name().is_some_and(|name| name == PROFILE);
    if is_packaged || std::env::var_os(AS_BUILT_ENV).is_some() {
        return Ok(None);
    }
    eprintln!("building the programs as the packages have them …");
    let (dir, small) = (programs::target_dir()?.join(PROFILE), programs::target_dir()?.join(SATELLITES_PROFILE));
    programs::build(&small, &["--locked", "--package", "satellite-agent", "--bin", "satellite"])?;
    let others = ["--package", "satellite-relay", "--bin", "satellite-relay", "--package", "satellite-tests"];
    programs::build(&dir, &[&["--locked", "--bin", "cost"], &others[..]].concat())?;
    std::fs::copy(small.join("satellite"), dir.join("satellite"))?;
    let status = Command::new(dir.join("cost"))
        .args(words)
        .env(AS_BUILT_ENV, "1")
        .env(programs::BUILT_ENV, "1")
        .status()
        .context("the packaged build of this program")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(Some(ExitCode::from(code)))
}

fn run(arguments: &Arguments) -> Result<()> {
    // Fails only where a provider is installed already: then that one serves.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    raise_file_limit()?;
    let plan = Plan { quick: arguments.quick, peers: !arguments.no_peers, rounds: arguments.rounds };
    let wanted = |name: &str| arguments.rows.is_empty() || arguments.rows.iter().any(|row| row == name);
    let mut report = Report::new(plan);
    type Part = fn(Plan, &mut Report, &dyn Fn(&str) -> bool) -> Result<()>;
    // In the order of the rows; what is cheap first, so that a mistake shows early.
    let parts: [(&[&str], Part); 7] = [
        (&size::ROWS, size::measure),
        (&doors::ROWS, doors::measure),
        (&ingest::ROWS, ingest::measure),
        (&drain::ROWS, drain::measure),
        (&flash::ROWS, flash::measure),
        (&lateness::ROWS, lateness::measure),
        (&agents::ROWS, agents::measure),
    ];
    let mut failed = 0;
    for (rows, part) in parts {
        if !rows.iter().any(|row| wanted(row)) {
            continue;
        }
        eprintln!("measuring: {} …", rows.join(", "));
        // One part that fails must not cost the others' figures.
        if let Err(error) = part(plan, &mut report, &wanted) {
            failed += 1;
            for row in rows.iter().filter(|row| wanted(row)) {
                report.failed(row, &format!("{error:#}"));
            }
        }
    }
    report.keep_rows(&wanted);
    if arguments.json {
        println!("{}", report.json()?);
    } else {
        println!("{}", report.text());
    }
    if failed > 0 {
        bail!("{failed} parts could not be measured; the table says why");
    }
    Ok(())
}

/// Thousands of connections, each with an end here and one in the relay; both inherit what is set here.
fn raise_file_limit() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let had = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: had.maximum, maximum: had.maximum })?;
    Ok(())
}
