//! `cargo verify`: the one test command.
//!
//! It sees to the real peers that the tests run against, then runs format, lints, documentation and all tests. Each
//! step's output goes to a file and is shown where it fails; the first failure ends it. `--quick` leaves the journeys out.

#![expect(clippy::print_stdout, reason = "a command line")]

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use satellite_tests::peers::{self, Peer};
use satellite_tests::{process, programs, wait};

/// Python packages that the checker, the S3 journey and the devices need.
const PYTHON_PACKAGES: [&str; 9] =
    ["pyarrow", "duckdb", "polars", "moto[server]", "boto3", "pymodbus", "zeroconf", "async-upnp-client", "jeepney"];
/// Lines of a failed step that are shown; the rest is in its file.
const TAIL_LINES: usize = 200;

/// Checks everything: the peers, the format, the lints, the documentation, the tests.
#[derive(Debug, Parser)]
#[command(
    name = "cargo verify",
    version,
    after_help = "Examples:\n  cargo verify\n  cargo verify --quick\n  cargo verify --list"
)]
struct Arguments {
    /// Leave out the journeys: what needs both programs.
    #[arg(long)]
    quick: bool,
    /// Install nothing, not even as root.
    #[arg(long)]
    no_install: bool,
    /// Print the steps and end.
    #[arg(long)]
    list: bool,
}

/// One step: its name and what cargo is told.
struct Step {
    name: &'static str,
    cargo: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

const STEPS: [Step; 6] = [
    Step { name: "format", cargo: &["fmt", "--all", "--check"], environment: &[] },
    Step {
        name: "lints",
        cargo: &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        environment: &[],
    },
    Step {
        name: "documentation",
        cargo: &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Step { name: "programs", cargo: &["build", "--workspace", "--bins", "--locked"], environment: &[] },
    Step {
        name: "tests of each crate",
        cargo: &["test", "--workspace", "--lib", "--bins", "--locked", "--no-fail-fast"],
        // The same inputs every day; a plain `cargo test` draws new ones.
        environment: &[(programs::BUILT_ENV, "1"), ("PROPTEST_RNG_SEED", "1")],
    },
    Step {
        name: "journeys",
        cargo: &["test", "--workspace", "--test", "*", "--locked", "--no-fail-fast"],
        environment: &[(programs::BUILT_ENV, "1")],
    },
];

fn main() -> ExitCode {
    match run(&Arguments::parse_from(programs::typed())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nFAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let steps: Vec<&Step> = STEPS.iter().filter(|step| !(arguments.quick && step.name == "journeys")).collect();
    if arguments.list {
        for step in steps {
            println!("{}: cargo {}", step.name, step.cargo.join(" "));
        }
        return Ok(());
    }
    let started = wait::mono_ms();
    let logs = programs::target_dir()?.join("verify");
    std::fs::create_dir_all(&logs)?;
    let missing = find_peers(&logs, !arguments.no_install)?;
    for step in &steps {
        let mut command = programs::cargo();
        command.args(step.cargo).envs(step.environment.iter().copied());
        let log = logs.join(format!("{}.log", step.name.replace(' ', "-")));
        watch(step.name, &mut command, &log)?;
        report_ignored(&log)?;
    }
    println!("\nAll {} steps passed in {} s.", steps.len(), (wait::mono_ms() - started) / 1000);
    if arguments.quick {
        println!("SKIPPED, as asked: the journeys.");
    }
    for peer in missing {
        println!("SKIPPED, though not asked: every test that needs {peer:?}. {}.", peer.missing());
    }
    Ok(())
}

/// Runs a step; its output goes to `log`, its time to the terminal.
fn watch(name: &str, command: &mut Command, log: &Path) -> Result<()> {
    let out = File::create(log).with_context(|| log.display().to_string())?;
    let err = out.try_clone()?;
    let started = wait::mono_ms();
    let mut child = command.stdout(out).stderr(err).spawn().with_context(|| format!("{command:?}"))?;
    let terminal = std::io::stdout().is_terminal();
    if !terminal {
        println!("{name} …");
    }
    let status = wait::until(name, Duration::from_secs(3600), || {
        if terminal {
            print!("\r{name} … {} s ", (wait::mono_ms() - started) / 1000);
            std::io::stdout().flush()?;
        }
        Ok(child.try_wait()?)
    })?;
    let seconds = (wait::mono_ms() - started) as f64 / 1000.0;
    println!(
        "{}{name}: {} in {seconds:.1} s",
        if terminal { "\r" } else { "" },
        if status.success() { "ok" } else { "FAILED" }
    );
    if !status.success() {
        println!("{}", process::tail(log, TAIL_LINES));
        bail!("{name}: {status}; all of its output is in {}", log.display());
    }
    Ok(())
}

/// Says which tests of a step were ignored, and sums up the rest.
fn report_ignored(log: &Path) -> Result<()> {
    let text = String::from_utf8_lossy(&std::fs::read(log)?).into_owned();
    let passed: u64 = text
        .lines()
        .filter_map(|line| line.strip_prefix("test result: ok. ")?.split_once(" passed")?.0.parse::<u64>().ok())
        .sum();
    if passed > 0 {
        println!("  {passed} tests passed");
    }
    for line in text.lines().filter(|line| line.starts_with("test ") && line.contains("... ignored")) {
        println!("  SKIPPED {line}");
    }
    Ok(())
}

/// Sees to the peers; gives those that are still missing.
fn find_peers(logs: &Path, may_install: bool) -> Result<Vec<Peer>> {
    let missing = || -> Vec<Peer> { peers::ALL.into_iter().filter(|peer| peer.find().is_none()).collect() };
    if may_install && !missing().is_empty() {
        install(logs, &missing())?;
    }
    let missing = missing();
    for peer in &missing {
        println!("peer {peer:?}: MISSING; its tests will be skipped");
    }
    if missing.is_empty() {
        println!("peers: all {} are there", peers::ALL.len());
    } else {
        println!("to have them all: {}", apt_line(&missing));
    }
    Ok(missing)
}

fn apt_line(missing: &[Peer]) -> String {
    format!("apt-get install --no-install-recommends {}", packages(missing).join(" "))
}

fn packages(missing: &[Peer]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = missing.iter().flat_map(|peer| peer.package().split(' ')).collect();
    packages.dedup();
    packages
}

fn install(logs: &Path, missing: &[Peer]) -> Result<()> {
    let log = |name: &str| logs.join(format!("{name}.log"));
    let python = missing.iter().any(|peer| matches!(peer, Peer::Python | Peer::S3 | Peer::Modbus | Peer::MessageBus));
    let venv_works = || {
        Command::new("/usr/bin/python3")
            .args(["-c", "import ensurepip"])
            .output()
            .is_ok_and(|said| said.status.success())
    };
    let wanted: Vec<&str> =
        packages(missing).into_iter().filter(|package| *package != "python3-venv" || !venv_works()).collect();
    let apt = Path::new("/usr/bin/apt-get");
    if !wanted.is_empty() && apt.exists() && rustix::process::geteuid().is_root() {
        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new(apt);
            command.env("DEBIAN_FRONTEND", "noninteractive").args(["-y", "-q"]).args(arguments);
            command
        };
        tolerate(watch("apt-get update", &mut apt_get(&["update"]), &log("apt-update")));
        let mut arguments = vec!["install", "--no-install-recommends"];
        arguments.extend(&wanted);
        tolerate(watch(
            &format!("apt-get install {}", wanted.join(" ")),
            &mut apt_get(&arguments),
            &log("apt-install"),
        ));
    }
    if python && venv_works() {
        tolerate(make_venv(&log("python")));
    }
    Ok(())
}

/// A peer that can't be had is told and its tests are skipped; the rest is still worth running.
fn tolerate(installed: Result<()>) {
    if let Err(error) = installed {
        println!("  not installed: {error:#}");
    }
}

fn make_venv(log: &Path) -> Result<()> {
    let venv: PathBuf = peers::venv().context("the target directory is unknown")?;
    let mut make = Command::new("/usr/bin/python3");
    make.args(["-m", "venv"]).arg(&venv);
    watch("python3 -m venv", &mut make, log)?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]).args(PYTHON_PACKAGES);
    watch(&format!("pip install {}", PYTHON_PACKAGES.join(" ")), &mut pip, log)
}
