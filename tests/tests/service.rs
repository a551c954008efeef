//! Both programs as services: they say when they are ready and how things stand, read their settings anew, feed a
//! watchdog only while every task goes on, and take their sockets from whoever holds them.
//!
//! The service manager is the test. What sticks a task is a disk that is frozen under it: whoever writes to it waits, in
//! the kernel, until it thaws.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use satellite_tests::device::Device;
use satellite_tests::disk::Disk;
use satellite_tests::house::{FAST_ARCHIVE, House};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::relay::Relay;
use satellite_tests::satellite::Satellite;
use satellite_tests::service_manager::{ServiceManager, activation, hand_down};
use satellite_tests::{process, programs, wait};

/// Long, so that a slow machine is no stuck task; the tasks are looked at four times as often.
const WATCHDOG: Duration = Duration::from_secs(40);
/// How long a program may take until it says something.
const SAID_WITHIN: Duration = Duration::from_secs(120);
const DISK_MIB: u64 = 96;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    const DISK: &[Peer] = &[Peer::LoopDevice, Peer::Python];
    journey::run(vec![
        journey("a_satellite_says_when_it_is_ready_what_it_needs_and_when_it_stops", &[], satellite_says),
        journey("a_lease_that_is_set_is_used_at_once_and_told", PYTHON, lease_is_told),
        journey("settings_that_cannot_be_used_do_not_end_what_runs", &[], bad_settings),
        journey("a_relay_says_when_it_is_ready_and_reads_its_settings_anew", PYTHON, relay_says),
        journey("the_watchdog_of_a_satellite_starves_while_its_buffer_is_stuck", DISK, stuck_satellite),
        journey("the_watchdog_of_a_relay_starves_while_its_registry_is_stuck", DISK, stuck_relay),
        journey("a_relay_started_anew_on_held_sockets_refuses_no_connection", PYTHON, held_sockets),
        journey("sockets_of_another_kind_or_name_are_refused_with_the_fix", &[], foreign_sockets),
    ])
}

fn watch_satellite(satellite: &mut Satellite, manager: &ServiceManager) {
    for (name, value) in manager.environment(WATCHDOG) {
        satellite.set_environment(name, &value);
    }
}

fn watch_relay(relay: &mut Relay, manager: &ServiceManager) {
    for (name, value) in manager.environment(WATCHDOG) {
        relay.set_environment(name, &value);
    }
}

fn satellite_says(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let mut satellite = Satellite::new(dir, "attic", &[])?;
    watch_satellite(&mut satellite, &manager);
    satellite.start()?;
    manager.wait_for("READY=1", 1, SAID_WITHIN)?;
    manager.wait_for("STATUS=needs a lease: run sudo satellite lease set", 1, SAID_WITHIN)?;
    manager.wait_for("WATCHDOG=1", 3, SAID_WITHIN)?;
    let said = satellite.command(&["status"], "")?.success()?;
    ensure!(said.contains("needs a lease: run sudo satellite lease set"), "{said}");

    satellite.signal(Signal::HUP)?;
    manager.wait_for("READY=1", 2, SAID_WITHIN)?;
    let said = manager.said()?;
    let at = |state: &str| said.iter().position(|said| said.starts_with(state)).context(state.to_owned());
    let again = said.iter().rposition(|said| said == "READY=1").context("READY")?;
    ensure!(at("READY=1")? < at("RELOADING=1")? && at("RELOADING=1")? < again, "{said:?}");
    ensure!(said[at("RELOADING=1")?..again].iter().any(|said| said.starts_with("MONOTONIC_USEC=")), "{said:?}");
    satellite.check_running()?;

    ensure!(manager.count("STOPPING=1")? == 0);
    satellite.stop()?;
    ensure!(manager.count("STOPPING=1")? == 1 && manager.count("EXTEND_TIMEOUT_USEC=")? > 0);
    Ok(())
}

fn lease_is_told(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let plug = Device::new("plug")?;
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    relay.start()?;
    let mut satellite = Satellite::new(dir, "attic", &[plug.port()])?;
    watch_satellite(&mut satellite, &manager);
    satellite.start()?;
    manager.wait_for("STATUS=needs a lease", 1, SAID_WITHIN)?;

    let lease = relay.lease("attic", &[])?;
    satellite.enrol(&lease.join_code)?.success()?;
    manager.wait_for("STATUS=connected to ", 1, SAID_WITHIN)?;
    ensure!(manager.count("READY=1")? == 1, "with no start by hand");
    relay.stop()?;
    manager.wait_for("STATUS=offline, ", 1, SAID_WITHIN)?;
    relay.start()?;
    let mut house = House { id: satellite.id()?, relay, satellite };
    house.wait_for_link(true)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 3)?;
    house.finish(&[&plug]).map(drop)
}

fn bad_settings(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let mut satellite = Satellite::new(dir, "attic", &[])?;
    watch_satellite(&mut satellite, &manager);
    satellite.start()?;
    manager.wait_for("READY=1", 1, SAID_WITHIN)?;
    let before = satellite.status()?["buffer"]["epoch"].clone();
    satellite.set("no_such_setting = 1\n")?;
    satellite.signal(Signal::HUP)?;
    manager.wait_for("READY=1", 2, SAID_WITHIN)?;
    satellite.set("")?;
    satellite.set_policy("no_such_rule = 1\n")?;
    satellite.signal(Signal::HUP)?;
    manager.wait_for("READY=1", 3, SAID_WITHIN)?;
    satellite.check_running()?;
    ensure!(satellite.status()?["buffer"]["epoch"] == before, "it went on as it was");
    satellite.stop()
}

fn relay_says(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let plug = Device::new("plug")?;
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    watch_relay(&mut relay, &manager);
    let mut house = House::around(dir, &[&plug], relay, None)?;
    manager.wait_for("READY=1", 1, SAID_WITHIN)?;
    manager.wait_for("STATUS=serving; satellites connected: 1", 1, SAID_WITHIN)?;
    manager.wait_for("WATCHDOG=1", 3, SAID_WITHIN)?;
    house.configure(&plug.as_http("1s"))?;

    let doors = house.relay.doors()?;
    house.relay.set("commit_every = \"300ms\"\n")?;
    house.relay.signal(Signal::HUP)?;
    manager.wait_for("READY=1", 2, SAID_WITHIN)?;
    ensure!(manager.count("RELOADING=1")? == 1 && manager.count("MONOTONIC_USEC=")? == 1);
    ensure!(house.relay.doors()? == doors, "it listens on the same sockets");
    house.relay.set("no_such_setting = 1\n")?;
    house.relay.signal(Signal::HUP)?;
    manager.wait_for("READY=1", 3, SAID_WITHIN)?;
    house.relay.check_running()?;
    house.wait_for_polls(&plug, 2)?;
    // What the commands read must be usable again.
    house.relay.set(FAST_ARCHIVE)?;
    house.finish(&[&plug])?;
    house.relay.stop()?;
    ensure!(manager.count("STOPPING=1")? == 1);
    Ok(())
}

/// While the disk is frozen no food is given, and it is said who is stuck; when it thaws there is food again.
fn starve(manager: &mut ServiceManager, disk: &Disk, who: &str) -> Result<()> {
    manager.wait_for("WATCHDOG=1", 2, SAID_WITHIN)?;
    let frozen = disk.freeze()?;
    wait::until_true("it is said who is stuck", SAID_WITHIN, || {
        Ok(manager.said()?.iter().any(|said| said.starts_with("STATUS=stuck: ") && said.contains(who)))
    })?;
    let fed = manager.count("WATCHDOG=1")?;
    let since = wait::mono_ms();
    let half = u64::try_from(WATCHDOG.as_millis())? / 2;
    wait::until_true("half a watchdog's time", SAID_WITHIN, || Ok(wait::mono_ms() > since + half))?;
    ensure!(manager.count("WATCHDOG=1")? == fed, "fed while {who} is stuck: {:?}", manager.said()?);
    frozen.thaw()?;
    manager.wait_for("WATCHDOG=1", fed + 2, SAID_WITHIN)
}

fn stuck_satellite(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let plug = Device::new("plug")?;
    let disk = Disk::new(&dir.join("image"), &dir.join("attic/state"), DISK_MIB)?;
    let mut house = House::new(dir, &[&plug])?;
    house.satellite.stop()?;
    watch_satellite(&mut house.satellite, &manager);
    house.satellite.start()?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 3)?;
    starve(&mut manager, &disk, "buffer")?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug]).map(drop)
}

fn stuck_relay(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let plug = Device::new("plug")?;
    let disk = Disk::new(&dir.join("image"), &dir.join("relay/data"), DISK_MIB)?;
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    watch_relay(&mut relay, &manager);
    let mut house = House::around(dir, &[&plug], relay, None)?;
    house.configure(&plug.as_http("1s"))?;
    house.wait_for_polls(&plug, 3)?;
    starve(&mut manager, &disk, "registry")?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug]).map(drop)
}

fn held_sockets(dir: &Path) -> Result<()> {
    let mut manager = ServiceManager::new(dir)?;
    let plug = Device::new("plug")?;
    let (web, satellites) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let mut relay = Relay::new(dir, FAST_ARCHIVE)?;
    relay.run_under(&activation(&[hand_down(&satellites)?, hand_down(&web)?], "satellites:web"));
    watch_relay(&mut relay, &manager);
    let mut house = House::around(dir, &[&plug], relay, None)?;
    ensure!(house.relay.doors()? == (web.local_addr()?.port(), satellites.local_addr()?.port()));
    house.configure(&plug.as_http("1s"))?;
    for restart in 1..=3 {
        house.relay.stop()?;
        let mut waiting = TcpStream::connect(web.local_addr()?).context("while no relay runs")?;
        house.relay.start()?;
        manager.wait_for("READY=1", restart + 1, SAID_WITHIN)?;
        // No TLS: whoever answers says so, in TLS.
        waiting.set_read_timeout(Some(SAID_WITHIN))?;
        waiting.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = [0];
        waiting.read_exact(&mut answer).context("who waited is answered")?;
        ensure!(answer == [0x15], "an alert of TLS, not {answer:?}");
        house.wait_for_polls(&plug, 2)?;
    }
    house.finish(&[&plug]).map(drop)
}

fn foreign_sockets(dir: &Path) -> Result<()> {
    let (web, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    let (web, other) = (hand_down(&web)?, hand_down(&other)?);
    let serve = |sockets: &[i32], names: &str| -> Result<process::Said> {
        let words = activation(sockets, names);
        let mut command: Command = process::command_under(&words, &programs::programs()?.relay);
        command.arg("serve").arg("--data-dir").arg(dir.join("data"));
        process::run(&mut command, "")
    };
    for (sockets, names, fix) in [
        (&[web, other][..], "web:door", "FileDescriptorName=satellites"),
        (&[web, other], "web:web", "FileDescriptorName=satellites"),
        (&[web], "web", "no socket with FileDescriptorName=satellites"),
        // What is open for writing is no socket at all.
        (&[web, 2], "web:satellites", "ListenStream="),
    ] {
        let said = serve(sockets, names)?;
        ensure!(said.code == 78 && said.stderr.contains(fix), "{names}: {said:?}");
    }
    Ok(())
}
