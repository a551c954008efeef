//! A satellite's state that exists twice, went back in time, or is opened twice: no number is used for two contents,
//! nothing is stored twice, and whoever has to do something is told what.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use satellite_tests::checker::Verdict;
use satellite_tests::device::Device;
use satellite_tests::house::{BALANCED_WITHIN, CONNECTED_WITHIN, EMPTY_DOCUMENT, House, SOON};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::satellite::Satellite;
use satellite_tests::{tree, wait};

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("a_copy_on_a_second_machine_is_told_and_doubles_nothing", PYTHON, copied),
        journey("a_satellite_restored_from_a_snapshot_doubles_nothing", PYTHON, snapshot),
        journey("a_state_directory_that_is_in_use_is_refused", PYTHON, opened_twice),
    ])
}

fn holds_nothing(satellite: &Satellite) -> Result<()> {
    wait::until_true("an empty buffer", BALANCED_WITHIN, || {
        let status = satellite.status()?;
        Ok(status["link"]["state"] == "connected" && status["buffer"]["records"] == 0)
    })
}

/// Both are the same satellite to the relay, and both have the same blocks to send.
fn copied(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.relay.session.cut();
    house.wait_for_polls(&plug, 3)?;
    house.satellite.stop()?;
    let mut twin = Satellite::new(dir, "twin", &[plug.port()])?;
    tree::copy(&house.satellite.state_dir(), &twin.state_dir())?;
    house.relay.session.mend();

    house.satellite.start()?;
    twin.start()?;
    let conflict = |satellite: &Satellite| -> Result<bool> {
        Ok(satellite.status()?["link"].to_string().contains("two machines use this identity in turns"))
    };
    wait::until_true("one of them is told of the other", CONNECTED_WITHIN, || {
        Ok(conflict(&house.satellite)? || conflict(&twin)?)
    })?;
    ensure!(
        std::fs::read_to_string(house.relay.log())?.contains("two machines use this identity in turns"),
        "the relay's operator is told too"
    );

    // Somebody finds the copy, and lets each deliver what it has; a restarted relay bears no grudge.
    house.satellite.stop()?;
    twin.stop()?;
    house.relay.stop()?;
    house.relay.start()?;
    house.relay.configure(&house.id, EMPTY_DOCUMENT)?.success()?;
    for satellite in [&mut twin, &mut house.satellite] {
        satellite.start()?;
        holds_nothing(satellite)?;
        satellite.stop()?;
    }
    house.relay.wait_until_balanced(&house.id, BALANCED_WITHIN)?;
    let verdict = Verdict::of(&house.relay.records(), &[&plug])?;
    // Not the order: two that poll at the same time write the same time.
    let faults = (verdict.lost, verdict.duplicates, verdict.unexpected, verdict.altered);
    ensure!(faults == (0, 0, 0, 0), "lost, doubled, unexpected, altered: {faults:?}; {:?}", verdict.details);
    verdict.must_agree(&house.id, &house.relay.account(&house.id)?)?;
    ensure!(
        verdict.satellites[&house.id].epochs >= 3,
        "each opening has an epoch of its own: {:?}",
        verdict.satellites
    );
    Ok(())
}

fn snapshot(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_link(true)?;
    house.relay.session.cut();
    house.wait_for_polls(&plug, 3)?;
    house.satellite.stop()?;
    let (state, kept) = (house.satellite.state_dir(), dir.join("snapshot"));
    tree::copy(&state, &kept)?;
    house.relay.session.mend();
    house.satellite.start()?;
    house.wait_for_link(true)?;
    let before = house.relay.account(&house.id)?.stored;
    house.wait_for_polls(&plug, 3)?;
    wait::until_true("more is stored", SOON, || Ok(house.relay.account(&house.id)?.stored > before))?;
    house.satellite.stop()?;
    wait::until_true("all is stored", SOON, || Ok(house.relay.account(&house.id)?.waiting == 0))?;

    std::fs::remove_dir_all(&state)?;
    tree::copy(&kept, &state)?;
    house.satellite.start()?;
    house.wait_for_link(true)?;
    house.wait_for_polls(&plug, 2)?;
    let verdict = house.finish(&[&plug])?;
    ensure!(!verdict.reasons.contains_key("relay_restored"), "the relay has lost nothing: {:?}", verdict.reasons);
    Ok(())
}

fn opened_twice(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    let mut house = House::new(dir, &[&plug])?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 2)?;
    let second = house.satellite.command(&["run"], "")?;
    ensure!(second.code != 0 && second.all().contains("another satellite runs"), "{second:?}");
    house.satellite.check_running()?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug])?;
    Ok(())
}
