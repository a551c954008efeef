//! A real satellite, in a directory of its own, with a policy that allows the devices of its test and nothing else.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::process::{self, Process, Said};
use crate::programs;
use crate::relay::Relay;
use crate::wait;

/// How long a satellite may take until it does something.
pub const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The satellite.
#[derive(Debug)]
pub struct Satellite {
    dir: PathBuf,
    more_settings: String,
    wrapper: Vec<String>,
    process: Option<Process>,
    environment: Vec<(String, String)>,
}

impl Satellite {
    /// A satellite below `dir` that knows no relay yet; it may poll these ports of this machine.
    ///
    /// # Errors
    /// When the directory can't be written.
    pub fn new(dir: &Path, name: &str, loopback_ports: &[u16]) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let more_settings = "[buffer]\ncommit_every = \"200ms\"\nfree_mib_min = 0\nfree_percent_min = 0\n".to_owned();
        let satellite = Self { dir, more_settings, wrapper: Vec::new(), process: None, environment: Vec::new() };
        satellite.allow(loopback_ports)?;
        satellite.write_settings()?;
        Ok(satellite)
    }

    /// Rewrites its policy: these ports of this machine.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn allow(&self, loopback_ports: &[u16]) -> Result<()> {
        let mut policy = String::from("loopback_ports = [");
        for port in loopback_ports {
            write!(policy, "{port}, ")?;
        }
        policy.push_str("]\n");
        self.set_policy(&policy)
    }

    /// Rewrites its policy.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set_policy(&self, policy: &str) -> Result<()> {
        let file = self.dir.join("policy.toml");
        std::fs::write(&file, policy)?;
        // A policy that others may write is refused, whatever this user's umask is.
        Ok(std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644))?)
    }

    fn write_settings(&self) -> Result<()> {
        let dir = self.dir.display();
        let log = if self.more_settings.contains("log = ") { "" } else { "log = \"debug\"\n" };
        let settings = format!(
            "state_dir = \"{dir}/state\"\nrun_dir = \"{dir}/run\"\npolicy = \"{dir}/policy.toml\"\n{log}{}",
            self.more_settings
        );
        Ok(std::fs::write(self.settings(), settings)?)
    }

    /// Other lines for its settings file; read when it starts next.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn set(&mut self, more_settings: &str) -> Result<()> {
        more_settings.clone_into(&mut self.more_settings);
        self.write_settings()
    }

    /// An environment variable of its programs from now on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn settings(&self) -> PathBuf {
        self.dir.join("satellite.toml")
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it keeps identity, buffer and configuration.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("satellite.log")
    }

    /// From the next start on it is run by this program, with these words before its own; by none where there are none.
    pub fn run_under(&mut self, wrapper: &[String]) {
        self.wrapper = wrapper.to_vec();
    }

    fn program(&self, wrapper: &[String]) -> Result<Command> {
        let mut command = process::command_under(wrapper, &programs::programs()?.satellite);
        for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs one of its commands.
    ///
    /// # Errors
    /// When it can't be run at all; what it refuses stands in the result.
    pub fn command(&self, arguments: &[&str], stdin: &str) -> Result<Said> {
        let mut command = self.program(&[])?;
        command.args(arguments).arg("--settings").arg(self.settings());
        process::run(&mut command, stdin)
    }

    /// Enrols with a join code.
    ///
    /// # Errors
    /// When the command can't be run; a refusal stands in the result.
    pub fn enrol(&self, join_code: &str) -> Result<Said> {
        self.command(&["lease", "set"], &format!("{join_code}\n"))
    }

    /// Leases, enrols and starts: the usual beginning. Gives the satellite's id.
    ///
    /// # Errors
    /// With what refused.
    pub fn join(&mut self, relay: &Relay) -> Result<String> {
        let name = self.dir.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let lease = relay.lease(&name, &[])?;
        self.enrol(&lease.join_code)?.success().context("lease set")?;
        self.start()?;
        self.id()
    }

    /// Its id, from its identity.
    ///
    /// # Errors
    /// When it has none.
    pub fn id(&self) -> Result<String> {
        let shown = self.command(&["lease", "show"], "")?.success()?;
        let word = shown.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).find(|word| word.starts_with("st_"));
        word.map(str::to_owned).with_context(|| format!("`lease show` names no satellite: {shown}"))
    }

    /// Starts the daemon and waits until it can be asked.
    ///
    /// # Errors
    /// When it ends by itself or can't be asked in time.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.program(&self.wrapper)?;
        command.arg("run").arg("--settings").arg(self.settings());
        let mut process = Process::start("satellite", &mut command, &self.log())?;
        let socket = self.dir.join("run/satellite.sock");
        wait::until("the satellite's socket", START_WITHIN, || {
            process.check_running()?;
            Ok(std::os::unix::net::UnixStream::connect(&socket).ok())
        })?;
        self.process = Some(process);
        Ok(())
    }

    fn running(&mut self) -> Result<Process> {
        self.process.take().context("the satellite was not started")
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.running()?;
        process.check_running()?;
        process.kill()
    }

    /// Stops it as systemd would.
    ///
    /// # Errors
    /// When it does not end well in time.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.running()?;
        let status = process.terminate(STOP_WITHIN)?;
        if !status.success() {
            bail!("the satellite ended with {status}:\n{}", process::tail(&self.log(), 20));
        }
        Ok(())
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the satellite was not started")?.signal(signal)
    }

    /// The daemon's process id while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The daemon still runs.
    ///
    /// # Errors
    /// With the end of its log, when it does not.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.as_mut().context("the satellite was not started")?.check_running()
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn status(&self) -> Result<Value> {
        let said = self.command(&["status", "--json"], "")?.success()?;
        serde_json::from_str(&said).with_context(|| format!("status printed no JSON document: {said}"))
    }

    /// What `gaps --json` says.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn gaps(&self) -> Result<Value> {
        let said = self.command(&["gaps", "--json"], "")?.success()?;
        serde_json::from_str(&said).with_context(|| format!("gaps printed no JSON document: {said}"))
    }
}
