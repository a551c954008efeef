//! The report of disks, served at a Unix socket as systemd serves it: the real program, started for each visitor.
//!
//! What stands for disks is a `smartctl` of the test's own, which can hand over to the real one.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::{programs, wait};

const SOON: Duration = Duration::from_secs(30);

/// Disks of this machine that are not there: what smartctl printed of them elsewhere.
#[must_use]
pub fn document(name: &str) -> PathBuf {
    programs::workspace().join("agent/src/collector/smart/fixtures").join(name)
}

/// The socket, listening.
#[derive(Debug)]
pub struct SmartReport {
    /// Where.
    pub socket: PathBuf,
    _activate: Process,
}

impl SmartReport {
    /// Starts to listen; `cases` are those of a shell that say what `smartctl` prints, else the real one is asked.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(dir: &Path, cases: &str) -> Result<Self> {
        let bin = dir.join("bin");
        std::fs::create_dir_all(&bin)?;
        let real = Peer::Smartctl.path().context("smartctl")?;
        let script = bin.join("smartctl");
        std::fs::write(
            &script,
            format!("#!/bin/sh\ncase \"$*\" in\n{cases}\n*) exec {} \"$@\";;\nesac\n", real.display()),
        )?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        let socket = dir.join("smart.sock");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(Peer::SocketActivate.path().context("systemd-socket-activate")?);
        command.args(["--accept", "--inetd", "--listen"]).arg(&socket).arg(programs::programs()?.satellite.clone());
        command.arg("smart-report").env("PATH", format!("{}:{path}", bin.display()));
        let mut activate = Process::start("systemd-socket-activate", &mut command, &dir.join("activate.log"))?;
        wait::until_true("the report's socket", SOON, || {
            activate.check_running()?;
            Ok(socket.exists())
        })?;
        Ok(Self { socket, _activate: activate })
    }
}
