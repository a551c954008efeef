//! `cargo run --release --bin load`: a fleet at a relay, and what the relay uses for it. A meter for who works on it.

#![expect(clippy::print_stdout, reason = "a command line")]

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use satellite_tests::load::{Fleet, Recording, Shape, Target, usage};
use satellite_tests::{process, programs, wait};

/// What the fleet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Sends blocks as fast as credit allows.
    Stream,
    /// Connects and says nothing.
    Idle,
    /// Connects, authenticates and leaves.
    Handshakes,
}

/// A fleet at a relay, and what the relay uses for it.
#[derive(Debug, Parser)]
#[command(
    name = "load",
    version,
    after_help = "Examples:\n  load stream --satellites 10 --blocks 600\n  load idle --satellites 5000\n  \
                  load handshakes --satellites 100 --count 2000"
)]
struct Arguments {
    /// What the fleet does.
    mode: Mode,
    /// How many satellites.
    #[arg(long, default_value_t = 10, value_name = "N")]
    satellites: usize,
    /// Blocks of each satellite.
    #[arg(long, default_value_t = 600, value_name = "N")]
    blocks: usize,
    /// Series of each satellite.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    series: u32,
    /// Ten polls in a block in place of one.
    #[arg(long)]
    grouped: bool,
    /// Handshakes.
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    count: usize,
    /// Connections that are made at the same time.
    #[arg(long, default_value_t = 8, value_name = "N")]
    parallel: usize,
    /// How often.
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// How long connections are left alone before memory is read.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration, value_name = "TIME")]
    rest: Duration,
    /// The relay, with words before it if need be; the one beside this program unless told.
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true)]
    relay: Vec<PathBuf>,
    /// Lines for the relay's settings.
    #[arg(long, default_value = "", value_name = "LINES")]
    settings: String,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = match arguments.relay.as_slice() {
        [] => vec![programs::programs()?.relay.clone()],
        given => given.to_vec(),
    };
    let target = Target::start_as(&program, dir.path(), &arguments.settings)?;
    let started_ms = wait::mono_ms();
    let fleet = Fleet::enrol(target.data_dir(), target.address(), arguments.satellites).await?;
    println!("{} satellites enrolled in {} ms", fleet.members.len(), wait::mono_ms() - started_ms);
    for round in 1..=arguments.rounds {
        print!("{round}: ");
        let done = match arguments.mode {
            Mode::Stream => stream(arguments, &target, &fleet, round).await,
            Mode::Idle => idle(arguments, &target, &fleet).await,
            Mode::Handshakes => handshakes(arguments, &target, &fleet).await,
        };
        done.with_context(|| format!("the relay said last:\n{}", process::tail(&target.log(), 20)))?;
    }
    let memory = usage::memory(target.id())?;
    println!("at the end {} KiB resident, {} at most", memory.rss_kib, memory.rss_max_kib);
    target.stop()
}

async fn stream(arguments: &Arguments, target: &Target, fleet: &Fleet, round: usize) -> Result<()> {
    let shape = if arguments.grouped { Shape::grouped(arguments.series) } else { Shape::live(arguments.series) };
    let recording = Recording::new(&Shape { seed: round as u64, ..shape }, arguments.blocks)?;
    let before = usage::cpu(target.id())?;
    let sent = fleet.stream(&recording).await?;
    let used = usage::cpu(target.id())? - before;
    println!(
        "{} samples in {} ms, {} bytes each on the wire: {} of relay CPU a sample, {} samples/s",
        sent.samples,
        sent.took_ms,
        ratio(sent.bytes, sent.samples),
        micros(used, sent.samples),
        ratio(sent.samples * 1_000, sent.took_ms.max(1))
    );
    Ok(())
}

async fn idle(arguments: &Arguments, target: &Target, fleet: &Fleet) -> Result<()> {
    let before = usage::memory(target.id())?;
    let mut idle = fleet.idle(arguments.parallel).await?;
    tokio::time::sleep(arguments.rest).await;
    let after = usage::memory(target.id())?;
    let standing = idle.standing() as u64;
    println!(
        "{standing} connections: {} KiB resident each, {} KiB private ({} KiB before, {} after)",
        ratio(after.rss_kib.saturating_sub(before.rss_kib), standing),
        ratio(after.private_kib.saturating_sub(before.private_kib), standing),
        before.rss_kib,
        after.rss_kib
    );
    anyhow::ensure!(standing == fleet.members.len() as u64, "not all stand");
    Ok(())
}

async fn handshakes(arguments: &Arguments, target: &Target, fleet: &Fleet) -> Result<()> {
    let before = usage::cpu(target.id()).context("the relay runs")?;
    let shaken = fleet.handshakes(arguments.count, arguments.parallel).await?;
    let used = usage::cpu(target.id())? - before;
    println!(
        "{} connections authenticated in {} ms: {} of relay CPU each",
        arguments.count,
        shaken.took_ms,
        micros(used, arguments.count as u64)
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn ratio(all: u64, parts: u64) -> String {
    format!("{:.2}", all as f64 / parts.max(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn micros(used: Duration, parts: u64) -> String {
    format!("{:.3} µs", used.as_secs_f64() * 1e6 / parts.max(1) as f64)
}
