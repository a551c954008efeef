//! The peers that figures stand beside: where they are, and how to start them with data in a folder of their own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use satellite_tests::process::Process;
use satellite_tests::wait;

use crate::meter::Meter;

/// A program of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    NodeExporter,
    Vmagent,
    PrometheusAgent,
    Collectd,
    VictoriaMetrics,
    Nats,
    Mosquitto,
}

impl Rival {
    /// As the table calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NodeExporter => "node_exporter",
            Self::Vmagent => "vmagent",
            Self::PrometheusAgent => "prometheus agent",
            Self::Collectd => "collectd",
            Self::VictoriaMetrics => "VictoriaMetrics",
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
        }
    }

    /// The Debian package that brings it.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::NodeExporter => "prometheus-node-exporter",
            Self::Vmagent | Self::VictoriaMetrics => "victoria-metrics",
            Self::PrometheusAgent => "prometheus",
            Self::Collectd => "collectd-core",
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::NodeExporter => "prometheus-node-exporter",
            Self::Vmagent => "vmagent",
            Self::PrometheusAgent => "prometheus",
            Self::Collectd => "collectd",
            Self::VictoriaMetrics => "victoria-metrics",
            Self::Nats => "nats-server",
            Self::Mosquitto => "mosquitto",
        }
    }

    /// Where it is.
    ///
    /// # Errors
    /// How to get it.
    pub(crate) fn find(self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let more = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
        let mut found = std::env::split_paths(&path).chain(more).map(|dir| dir.join(self.file()));
        found
            .find(|file| file.is_file())
            .with_context(|| format!("not installed: `apt-get install --no-install-recommends {}`", self.package()))
    }

    /// Its version, as Debian numbers it.
    pub(crate) fn version(self) -> String {
        let asked = Command::new("dpkg-query").args(["-W", "-f", "${Version}", self.package()]).output();
        asked.map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).into_owned())
    }

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn start(self, dir: &Path, arguments: &[String], port: Option<u16>) -> Result<Running> {
        let mut command = Command::new(self.find()?);
        command.args(arguments).current_dir(dir);
        let mut process = Process::start(self.name(), &mut command, &dir.join(format!("{}.log", self.file())))?;
        if let Some(port) = port {
            wait::until(self.name(), Duration::from_secs(60), || {
                process.check_running()?;
                Ok(TcpStream::connect(("127.0.0.1", port)).ok())
            })?;
        }
        let meter = Meter::new(process.id());
        Ok(Running { _process: process, meter })
    }
}

/// One that runs, and the meter on it.
#[derive(Debug)]
pub(crate) struct Running {
    _process: Process,
    pub meter: Meter,
}

/// A port that was free a moment ago; peers can't be told to take any.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Bytes of all files below a folder.
pub(crate) fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        // A file that is gone by now takes no room.
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}
