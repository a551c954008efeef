//! A real name server (dnsmasq) on a port of loopback that the kernel chose, which knows `lan` and asks nobody.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::peers::Peer;
use crate::process::Process;
use crate::wait;

const SOON: Duration = Duration::from_secs(30);

/// The server, running.
#[derive(Debug)]
pub struct Dnsmasq {
    /// Where it listens.
    pub port: u16,
    _process: Process,
}

impl Dnsmasq {
    /// A server with these lines of dnsmasq.conf(5).
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(dir: &Path, lines: &[&str]) -> Result<Self> {
        let program = Peer::Dnsmasq.path().context("dnsmasq")?;
        // Chosen by the kernel and free again a moment later: dnsmasq takes no socket from outside.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let file = dir.join("dnsmasq.conf");
        let own = "listen-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nlocal=/lan/\nlog-facility=-\n";
        std::fs::write(&file, format!("port={port}\n{own}{}\n", lines.join("\n")))?;
        let mut command = Command::new(program);
        command.args(["--keep-in-foreground", "--user=root", "--pid-file="]);
        command.arg(format!("--conf-file={}", file.display()));
        let mut process = Process::start("dnsmasq", &mut command, &dir.join("dnsmasq.log"))?;
        wait::until_true("dnsmasq's port", SOON, || {
            process.check_running()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })?;
        Ok(Self { port, _process: process })
    }
}
