//! Wall clocks that are wrong: ten years back, ten years ahead, 1970 at boot, and both nights on which the clocks change. Of
//! either end, with libfaketime, while it runs; the monotonic clock goes on as it does on a real machine. Nothing is lost,
//! nothing is doubled, and a clock that keeps the two ends apart is named.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use satellite_tests::checker::Verdict;
use satellite_tests::device::Device;
use satellite_tests::house::{CONNECTED_WITHIN, FAST_ARCHIVE, House};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::relay::Relay;
use satellite_tests::satellite::Satellite;
use satellite_tests::wait;

const YEAR_S: i64 = 31_557_600;

fn main() -> ExitCode {
    const FAKETIME: &[Peer] = &[Peer::Python, Peer::Faketime];
    journey::run(vec![
        journey("a_satellite_whose_clock_jumps_by_years_loses_and_doubles_nothing", FAKETIME, satellite_jumps),
        journey("a_satellite_that_boots_in_1970_delivers_and_comes_back_to_now", FAKETIME, boots_in_1970),
        journey("a_relay_whose_clock_jumps_by_years_loses_and_doubles_nothing", FAKETIME, relay_jumps),
        journey("both_nights_on_which_the_clocks_change_are_polled_through", FAKETIME, clocks_change),
    ])
}

/// The wall clock of one program, as seconds from the true one.
struct Turned(PathBuf);

impl Turned {
    fn new(file: PathBuf) -> Result<Self> {
        let turned = Self(file);
        turned.by(0)?;
        Ok(turned)
    }

    fn by(&self, seconds: i64) -> Result<()> {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}\n"))?;
        Ok(std::fs::rename(new, &self.0)?)
    }

    /// What the program needs in its environment.
    fn environment(&self) -> Result<Vec<(&'static str, String)>> {
        let library = Peer::Faketime.path().context("libfaketime")?;
        Ok(vec![
            ("LD_PRELOAD", library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            // Timers, too, run by the clock that no one turns.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ])
    }
}

/// The usual scene, with a clock of the satellite's own.
fn house(dir: &Path, devices: &[&Device], satellite: Option<&Turned>, relay: Option<&Turned>) -> Result<House> {
    let mut outside = Relay::new(dir, FAST_ARCHIVE)?;
    for (name, value) in relay.map(Turned::environment).transpose()?.unwrap_or_default() {
        outside.set_environment(name, &value);
    }
    outside.start()?;
    let ports: Vec<u16> = devices.iter().map(|device| device.port()).collect();
    let mut inside = Satellite::new(dir, "attic", &ports)?;
    for (name, value) in satellite.map(Turned::environment).transpose()?.unwrap_or_default() {
        inside.set_environment(name, &value);
    }
    let id = inside.join(&outside)?;
    Ok(House { relay: outside, satellite: inside, id })
}

/// As [`House::finish`], but for the order in time: whoever turns the clock turns that.
fn finish(house: &mut House, devices: &[&Device]) -> Result<Verdict> {
    house.settle()?;
    let account = house.relay.account(&house.id)?;
    let verdict = Verdict::of(&house.relay.records(), devices)?;
    let faults = (verdict.duplicates, verdict.unexpected, verdict.altered);
    ensure!(faults == (0, 0, 0), "doubled, unexpected, altered: {faults:?}\n{:?}", verdict.details);
    for device in verdict.details["devices"].as_array().context("devices")? {
        ensure!(device["stored"] == device["answers"], "an answer is not stored: {device}");
    }
    for epoch in verdict.details["epochs"].as_array().context("epochs")? {
        ensure!(epoch["lost"] == 0, "a hole: {epoch}");
    }
    verdict.must_agree(&house.id, &account)?;
    Ok(verdict)
}

fn satellite_jumps(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let clock = Turned::new(dir.join("clock"))?;
    let mut house = house(dir, &[&plug], Some(&clock), None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    for years in [-10, 0, 10] {
        clock.by(years * YEAR_S)?;
        house.wait_for_polls(&plug, 4)?;
    }
    // Ten years ahead no certificate is good any more: it says so, polls on and keeps what it polled.
    house.relay.session.cut_once();
    wait::until_true("the clock is named", CONNECTED_WITHIN, || {
        let link = house.satellite.status()?["link"].to_string();
        Ok(link.contains("clock") || link.contains("expired") || link.contains("Expired"))
    })?;
    house.wait_for_polls(&plug, 2)?;
    clock.by(0)?;
    house.satellite.stop()?;
    house.satellite.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    finish(&mut house, &[&plug])?;
    Ok(())
}

fn boots_in_1970(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let clock = Turned::new(dir.join("clock"))?;
    let mut house = house(dir, &[&plug], Some(&clock), None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    house.satellite.stop()?;
    clock.by(10 - wait::wall_ms() / 1_000)?;
    house.satellite.start()?;
    house.wait_for_link(true).context("in 1970, by the time that it knew before")?;
    house.wait_for_polls(&plug, 4)?;
    // A time server answers at last.
    clock.by(0)?;
    house.wait_for_polls(&plug, 4)?;
    let verdict = finish(&mut house, &[&plug])?;
    ensure!(verdict.satellites[&house.id].epochs >= 2, "{:?}", verdict.satellites);
    Ok(())
}

fn relay_jumps(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let clock = Turned::new(dir.join("clock"))?;
    let mut house = house(dir, &[&plug], None, Some(&clock))?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    for years in [-10, 10, 0] {
        clock.by(years * YEAR_S)?;
        house.wait_for_polls(&plug, 3)?;
        // Also for who comes while it is wrong.
        house.relay.session.cut_once();
        house.wait_for_polls(&plug, 3)?;
    }
    // The satellite would wait for minutes after so many refusals.
    house.satellite.stop()?;
    house.satellite.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    finish(&mut house, &[&plug])?;
    Ok(())
}

/// Central Europe, 2026: on March 29 the hour from 2 to 3 is missing, on October 25 it comes twice.
const CHANGES_S: [i64; 2] = [1_774_746_000, 1_792_890_000];

fn clocks_change(dir: &Path) -> Result<()> {
    let (plug, page) = (Device::new("plug")?, Device::new("page")?);
    let clock = Turned::new(dir.join("clock"))?;
    let mut house = house(dir, &[&plug, &page], Some(&clock), None)?;
    house.satellite.set_environment("TZ", "Europe/Berlin");
    house.satellite.stop()?;
    house.satellite.start()?;
    let by_cron = page.as_prometheus("1s").replace("every = \"1s\"", "cron = \"*/2 * * * * *\"");
    house.configure(&format!("{}{by_cron}", plug.as_http("1s")))?;
    house.wait_for_link(true)?;
    for change in CHANGES_S {
        clock.by(change - 8 - wait::wall_ms() / 1_000)?;
        let before = (plug.requests(), page.requests());
        let since = wait::mono_ms();
        wait::until_true("the change is over", Duration::from_secs(120), || {
            Ok(wait::mono_ms() > since + 16_000 && plug.requests() >= before.0 + 8 && page.requests() >= before.1 + 4)
        })?;
    }
    clock.by(0)?;
    house.wait_for_polls(&plug, 2)?;
    finish(&mut house, &[&plug, &page])?;
    Ok(())
}
