//! A real message bus, dbus-daemon, on a socket of its own, and on it a program that answers as systemd would.
//!
//! The real systemd is asked in the machine that the packages are installed on: it is no program that a test can start.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::wait;

/// Answers at the bus of `argv[1]` as systemd 252 would with the units of `argv[2]`: name, state, and the properties of each.
const SYSTEMD: &str = r"
import json, sys
from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
units = {'/org/freedesktop/systemd1/unit/u%d' % n: unit for n, unit in enumerate(json.loads(sys.argv[2]))}
manager = {'Version': ('s', '252.39-1~deb12u1'), 'SystemState': ('s', 'degraded'), 'Virtualization': ('s', 'kvm')}
error = 'org.freedesktop.DBus.Error.'
connection = open_dbus_connection(bus=sys.argv[1])
connection.send_and_get_reply(message_bus.RequestName('org.freedesktop.systemd1'))
while True:
    message = connection.receive()
    if message.header.message_type is not MessageType.method_call:
        continue
    fields = message.header.fields
    path, member = fields[HeaderFields.path], fields[HeaderFields.member]
    if member == 'ListUnits':
        rows = [(u['name'], 'A unit', 'loaded', u['state'], 'sub', '', at, 0, '', '/') for at, u in units.items()]
        reply = new_method_return(message, 'a(ssssssouso)', (rows,))
    elif path != '/org/freedesktop/systemd1' and path not in units:
        reply = new_error(message, error + 'UnknownObject', 's', ('gone',))
    else:
        known = units[path]['properties'] if path in units else manager
        value = known.get(message.body[1])
        if value is None:
            reply = new_error(message, error + 'UnknownProperty', 's', ('unknown',))
        else:
            reply = new_method_return(message, 'v', ((value[0], value[1]),))
    connection.send(reply)
";
const SOON: Duration = Duration::from_secs(30);

/// The bus, running.
#[derive(Debug)]
pub struct MessageBus {
    /// Where it listens.
    pub socket: PathBuf,
    dir: PathBuf,
    process: Process,
}

impl MessageBus {
    /// A bus in this directory.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path) -> Result<Self> {
        let socket = dir.join("bus");
        let process = daemon(dir, &socket)?;
        Ok(Self { socket, dir: dir.to_owned(), process })
    }

    /// As `DBUS_SYSTEM_BUS_ADDRESS` has it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix:path={}", self.socket.display())
    }

    /// Kills it and starts another in its place: whoever was connected has lost it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.process.kill()?;
        std::fs::remove_file(&self.socket)?;
        self.process = daemon(&self.dir, &self.socket)?;
        Ok(())
    }

    /// A program on it that answers as systemd; `units` is a list in JSON of `name`, `state`, and `properties`, each with
    /// its type and value.
    ///
    /// # Errors
    /// When it does not start.
    pub fn systemd(&self, units: &serde_json::Value) -> Result<Process> {
        let python = Peer::MessageBus.path().context("jeepney")?;
        let mut command = Command::new(python);
        command.args(["-c", SYSTEMD, &self.address(), &units.to_string()]);
        Process::start("systemd's impostor", &mut command, &self.dir.join("impostor.log"))
    }
}

fn daemon(dir: &Path, socket: &Path) -> Result<Process> {
    let mut command = Command::new("dbus-daemon");
    command.args(["--session", "--nofork", "--nopidfile"]).arg(format!("--address=unix:path={}", socket.display()));
    let mut process = Process::start("dbus-daemon", &mut command, &dir.join("dbus-daemon.log"))?;
    wait::until_true("the bus", SOON, || {
        process.check_running()?;
        Ok(std::os::unix::net::UnixStream::connect(socket).is_ok())
    })?;
    Ok(process)
}
