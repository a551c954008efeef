//! Both programs as services: they say when they are ready and how things stand, read their settings anew, feed a
//! watchdog only while every task goes on, and take their sockets from whoever holds them. What root types is done by
//! the user that the service runs as, and an older version leaves alone what a newer one wrote.
//!
//! The service manager is the test. What sticks a task is a disk that is frozen under it: whoever writes to it waits, in
//! the kernel, until it thaws.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
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
    // Who may mount is root.
    const ROOT: &[Peer] = DISK;
    journey::run(vec![
        journey("a_satellite_says_when_it_is_ready_what_it_needs_and_when_it_stops", &[], satellite_says),
        journey("a_lease_that_is_set_is_used_at_once_and_told", PYTHON, lease_is_told),
        journey("settings_that_cannot_be_used_do_not_end_what_runs", &[], bad_settings),
        journey("a_relay_says_when_it_is_ready_and_reads_its_settings_anew", PYTHON, relay_says),
        journey("the_watchdog_of_a_satellite_starves_while_its_buffer_is_stuck", DISK, stuck_satellite),
        journey("the_watchdog_of_a_relay_starves_while_its_registry_is_stuck", DISK, stuck_relay),
        journey("a_relay_started_anew_on_held_sockets_refuses_no_connection", PYTHON, held_sockets),
        journey("sockets_of_another_kind_or_name_are_refused_with_the_fix", &[], foreign_sockets),
        journey("what_root_types_is_done_by_the_owner_of_the_directory", ROOT, typed_by_root),
        journey("formats_of_a_newer_version_are_refused_and_left_as_they_are", PYTHON, newer_formats),
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
    // From here on nobody but the buffer writes: what the metrics give has been written down.
    let written = house.satellite.state_dir().join("config/expected.json");
    wait::until_true("the configurator has written", SAID_WITHIN, || Ok(written.exists()))?;
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

/// Nobody of this machine.
const OWNER: u32 = 47_110;

fn belongs_to_owner(path: &Path) -> Result<()> {
    let metadata = path.symlink_metadata()?;
    ensure!((metadata.uid(), metadata.gid()) == (OWNER, OWNER), "{} belongs to {}", path.display(), metadata.uid());
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path)? {
            belongs_to_owner(&entry?.path())?;
        }
    }
    Ok(())
}

fn owned(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o750))?;
    Ok(std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER))?)
}

fn typed_by_root(dir: &Path) -> Result<()> {
    let plug = Device::new("plug")?;
    std::fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    for own in ["relay/data", "attic/state", "attic/run"] {
        owned(&dir.join(own))?;
    }
    let mut house = House::new(dir, &[&plug])?;
    for process in [house.relay.process_id(), house.satellite.process_id()] {
        let process = process.context("it runs")?;
        ensure!(std::fs::metadata(format!("/proc/{process}/stat"))?.uid() == 0, "nobody else may look into it");
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let expected = format!("Uid:\t{OWNER}\t{OWNER}\t{OWNER}\t{OWNER}");
        ensure!(status.contains(&expected) && status.contains("CapPrm:\t0000000000000000"), "{status}");
    }
    // What only root may read is read by root, who typed it.
    let document = dir.join("only-root.toml");
    std::fs::write(&document, plug.as_http("1s"))?;
    std::fs::set_permissions(&document, Permissions::from_mode(0o600))?;
    let words = ["config", "set", house.id.as_str(), &document.display().to_string()];
    house.relay.command(&words)?.success()?;
    house.wait_for_polls(&plug, 2)?;
    house.finish(&[&plug])?;
    house.satellite.command(&["lease", "remove", "--yes"], "")?.success()?;
    let lease = house.relay.lease("cellar", &[])?;
    house.satellite.enrol(&lease.join_code)?.success()?;
    house.relay.command(&["lease", "revoke", &lease.id])?.success()?;
    belongs_to_owner(&dir.join("relay/data"))?;
    belongs_to_owner(&dir.join("attic/state"))?;

    // Nor does root follow where the owner leads.
    house.relay.stop()?;
    let secret = dir.join("secret");
    std::fs::write(&secret, "root's")?;
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    let lock = house.relay.data_dir().join("registry.lock");
    std::fs::remove_file(&lock)?;
    std::os::unix::fs::symlink(&secret, &lock)?;
    let said = house.relay.command(&["lease", "list"])?;
    ensure!(said.code == 78 && said.stderr.contains("registry.lock"), "{said:?}");
    ensure!(secret.metadata()?.uid() == 0 && std::fs::read_to_string(&secret)? == "root's");
    Ok(())
}

fn newer_formats(dir: &Path) -> Result<()> {
    let mut house = House::new(dir, &[])?;
    house.wait_for_link(true)?;
    house.satellite.stop()?;
    house.relay.stop()?;

    let registry = house.relay.data_dir().join("registry.db");
    let python = Peer::Python.path().context("asked for")?;
    let insert = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(\"INSERT INTO _sqlx_migrations \
                  (version, description, success, checksum, execution_time) VALUES (99, 'later', 1, x'00', 0)\"); db.commit()";
    let said = process::run(Command::new(python).args(["-c", insert]).arg(&registry), "")?;
    said.success()?;
    let kept = std::fs::read(&registry)?;
    for words in [&["serve"][..], &["satellite", "list"]] {
        let said = house.relay.command(words)?;
        ensure!(said.code == 78 && said.stderr.contains("newer satellite-relay (its format is 99"), "{said:?}");
        ensure!(std::fs::read(&registry)? == kept, "it is left as it was");
    }

    let identity = house.satellite.state_dir().join("identity/identity.json");
    let mut newer: serde_json::Value = serde_json::from_slice(&std::fs::read(&identity)?)?;
    newer["format"] = 99.into();
    let newer = newer.to_string();
    std::fs::write(&identity, &newer)?;
    let mut manager = ServiceManager::new(dir)?;
    watch_satellite(&mut house.satellite, &manager);
    house.satellite.start()?;
    manager.wait_for("STATUS=", 2, SAID_WITHIN)?;
    wait::until_true("it says so", SAID_WITHIN, || {
        Ok(manager.said()?.iter().any(|said| said.contains("written by a newer version")))
    })?;
    house.satellite.stop()?;
    let said = house.satellite.enrol("satj_x")?;
    ensure!(said.code == 1 && said.stderr.contains("newer version"), "{said:?}");
    ensure!(std::fs::read_to_string(&identity)? == newer, "it is left as it was");

    let format = house.satellite.state_dir().join("buffer/format");
    let kept = std::fs::read_to_string(&format)?;
    let newer = kept.replace('1', "99");
    ensure!(newer != kept, "{kept}");
    std::fs::write(&format, &newer)?;
    let said = house.satellite.command(&["run"], "")?;
    ensure!(said.code == 78 && said.stderr.contains("this buffer has format 99"), "{said:?}");
    ensure!(std::fs::read_to_string(&format)? == newer, "it is left as it was");
    Ok(())
}
