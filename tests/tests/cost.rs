//! `cargo cost` measures: one cheap row, with the programs as these tests are built. What the figure is, nobody asks.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use satellite_tests::journey::{self, journey};
use satellite_tests::{process, programs};
use serde_json::Value;

fn main() -> ExitCode {
    journey::run(vec![
        journey("a_row_is_measured_and_told_as_one_json_document", &[], row),
        journey("a_row_that_is_not_there_is_refused", &[], no_such_row),
    ])
}

fn cost(arguments: &[&str]) -> Result<process::Said> {
    // Building for release would take this test minutes.
    let mut command = Command::new(env!("CARGO_BIN_EXE_cost"));
    command.args(arguments).env("SATELLITE_COST_AS_BUILT", "1").env(programs::BUILT_ENV, "1");
    process::run(&mut command, "")
}

fn row(_: &Path) -> Result<()> {
    programs::programs()?;
    let said = cost(&["--quick", "--no-peers", "--rounds", "1", "--row", "handshake", "--json"])?.success()?;
    let document: Value = serde_json::from_str(&said)?;
    let figures = document["figures"].as_array().context("figures")?;
    ensure!(figures.len() == 1, "one row, one figure: {document}");
    ensure!(figures[0]["row"] == "handshake" && figures[0]["who"] == "satellite", "{document}");
    ensure!(figures[0]["median"].as_f64().is_some_and(|ms| ms > 0.0), "a connection costs something: {document}");
    Ok(())
}

fn no_such_row(_: &Path) -> Result<()> {
    let said = cost(&["--row", "happiness"])?;
    ensure!(said.code == 2 && said.stderr.contains("handshake"), "it names those there are: {said:?}");
    Ok(())
}
