//! `cargo endure`: the long form of one test that draws at random, for hours.
//!
//! The short forms are part of `cargo verify`; this runs the same test with more rounds, or again with the seed that a
//! failure named.

#![expect(clippy::print_stdout, reason = "a command line")]

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use satellite_tests::rounds::{ROUNDS_ENV, SEED_ENV};
use satellite_tests::{programs, wait};

/// One test with a long form.
struct Long {
    /// What people type.
    name: &'static str,
    /// The file in `tests/tests`, and a part of the test's name.
    test: (&'static str, &'static str),
    /// What the long form takes unless told.
    rounds: u32,
    /// What a round is.
    round: &'static str,
}

/// All of them.
const ALL: [Long; 19] = [
    Long {
        name: "power",
        test: ("power", "an_acknowledged_record_survives_a_power_cut"),
        rounds: 200,
        round: "a power cut under the satellite's buffer, on a loop device",
    },
    Long {
        name: "power-satellite",
        test: ("power", "what_a_satellite_committed_survives_its_power_cuts"),
        rounds: 200,
        round: "a power cut of a satellite that polls and sends",
    },
    Long {
        name: "power-relay",
        test: ("power", "what_a_relay_acknowledged_survives_its_power_cuts"),
        rounds: 200,
        round: "a power cut of a relay that commits what a satellite sends",
    },
    Long {
        name: "kill",
        test: ("outage", "both_ends_killed_at_random_moments_agree_in_the_end"),
        rounds: 200,
        round: "kill -9 of the satellite, the relay or both at a random moment",
    },
    Long {
        name: "cut-bytes",
        test: ("link", "a_session_that_is_cut_at_any_byte_is_made_good"),
        rounds: 12_000,
        round: "a session that is cut after so many bytes, spread evenly over all that it sends and gets",
    },
    Long {
        name: "cut-enrolments",
        test: ("link", "an_enrolment_that_is_cut_at_any_byte_can_be_done_again"),
        rounds: 6_000,
        round: "an enrolment that is cut after so many bytes, spread evenly over all that it sends and gets",
    },
    Long {
        name: "middleman",
        test: ("link", "lost_acknowledgements_and_repeated_and_reordered_blocks_do_no_harm"),
        rounds: 1_000,
        round: "a mood of somebody who loses ACKs and repeats and reorders blocks",
    },
    Long {
        name: "fault-satellite",
        test: ("disk", "a_satellite_whose_kth_system_call_fails_loses_nothing_silently"),
        rounds: 100,
        round: "a satellite whose k-th write, flush, rename or read fails",
    },
    Long {
        name: "fault-relay",
        test: ("disk", "a_relay_whose_kth_system_call_fails_loses_nothing"),
        rounds: 100,
        round: "a relay whose k-th write, flush, rename or read fails",
    },
    Long {
        name: "damage-buffer",
        test: ("disk", "what_is_left_of_a_damaged_buffer_is_kept_and_the_rest_explained"),
        rounds: 500,
        round: "a stopped buffer with a flipped bit or without its end, opened",
    },
    Long {
        name: "damage-satellite",
        test: ("disk", "a_satellite_with_a_damaged_buffer_starts_and_explains_what_is_lost"),
        rounds: 40,
        round: "a stopped satellite whose buffer is damaged, started",
    },
    Long {
        name: "damage-registry",
        test: ("disk", "a_damaged_registry_is_never_taken_for_whole"),
        rounds: 500,
        round: "a stopped registry with a flipped bit or without its end, opened",
    },
    Long {
        name: "certificates",
        test: ("certificates", "certificates_live_for_months_and_none_that_ended_comes_back"),
        rounds: 40,
        round: "a quarter of a year of two hundred satellites' certificates",
    },
    Long {
        name: "foreign",
        test: ("foreign", "reads_anything"),
        rounds: 1_000_000,
        round: "a mutated input for each parser of foreign bytes",
    },
    Long {
        name: "hostile-relay",
        test: ("hostile_relay", "a_relay_that_says_absurd_things"),
        rounds: 1,
        round: "everything absurd that a relay can say to its satellite",
    },
    Long {
        name: "steps",
        test: ("restore", "a_relay_killed_at_any_step_of_a_commit_stores_everything_once"),
        rounds: 120,
        round: "a relay killed at one system call of its commits",
    },
    Long {
        name: "crowd",
        test: ("crowd", "a_crowd_of_satellites_is_back_after_a_restart_of_the_relay"),
        rounds: 2000,
        round: "one of the satellites that come back at once",
    },
    Long {
        name: "package",
        test: ("package", "installed_leased_killed_restarted_cut_off_upgraded_and_removed"),
        rounds: 20,
        round: "the power cut off a Debian on which both packages run, amid all that a package goes through",
    },
    Long {
        name: "simulation",
        test: ("simulation", "every_sample_is_stored_once_or_explained_once"),
        rounds: 1_000_000,
        round: "a minute of both ends in one thread, with simulated clock, network and disks that fail",
    },
];

/// Runs the long form of a test that draws at random.
#[derive(Debug, Parser)]
#[command(
    name = "cargo endure",
    version,
    after_help = "Examples:\n  cargo endure -- --list\n  cargo endure -- power\n  cargo endure -- power --rounds 1000 --seed 77"
)]
struct Arguments {
    /// Which one; `--list` names them.
    #[arg(required_unless_present = "list", value_parser = ALL.map(|long| long.name))]
    name: Option<String>,
    /// How many rounds.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// The first round's seed.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Name them all, with what a round is, and end.
    #[arg(long)]
    list: bool,
}

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
    if arguments.list {
        for long in &ALL {
            println!("{:<16} {:>6} rounds, each {}", long.name, long.rounds, long.round);
        }
        return Ok(());
    }
    let name = arguments.name.as_deref().unwrap_or_default();
    let long = ALL.iter().find(|long| long.name == name).context("no such test")?;
    let rounds = arguments.rounds.unwrap_or(long.rounds);
    println!("{}: {rounds} rounds from seed {}, each {}", long.name, arguments.seed, long.round);
    let started = wait::mono_ms();
    let (file, filter) = long.test;
    let status = programs::cargo()
        .args(["test", "--quiet", "--package", "satellite-tests", "--test", file, "--locked", "--", filter])
        .arg("--nocapture")
        .env(ROUNDS_ENV, rounds.to_string())
        .env(SEED_ENV, arguments.seed.to_string())
        .status()?;
    let seconds = (wait::mono_ms() - started) / 1000;
    anyhow::ensure!(status.success(), "{}: {status}, after {seconds} s", long.name);
    println!("{}: {rounds} rounds passed in {seconds} s", long.name);
    Ok(())
}
