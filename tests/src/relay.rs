//! A real relay, in a directory of its own, behind two links that keep their ports while it comes and goes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::Value;

use crate::link::Link;
use crate::process::{self, Process, Said};
use crate::programs;
use crate::wait;

/// How long a relay may take to open its doors; a busy machine with two cores is slow.
pub const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// The relay.
#[derive(Debug)]
pub struct Relay {
    dir: PathBuf,
    more_settings: String,
    wrapper: Vec<String>,
    process: Option<Process>,
    environment: Vec<(String, String)>,
    /// The line to the web door: enrolment.
    pub web: Link,
    /// The line to the satellites' door.
    pub session: Link,
}

/// What `account ID --json` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Samples that were due.
    pub due: u64,
    /// Of those, in storage.
    pub stored: u64,
    /// Of those, explained by gaps.
    pub explained: u64,
    /// Of those, in frames that could not be read and were set aside.
    pub set_aside: u64,
    /// Of those, in the satellite's buffer as far as the relay knows.
    pub waiting: u64,
    /// Whether the relay's own sums agree.
    pub balanced: bool,
}

/// A lease as it is shown once.
#[derive(Debug, Clone, Deserialize)]
pub struct Lease {
    /// Its id.
    pub id: String,
    /// Its token.
    pub token: String,
    /// The pin of the relay's authority.
    pub ca_pin: String,
    /// All of it in one line.
    pub join_code: String,
}

#[derive(Debug, Deserialize)]
struct Addresses {
    web: SocketAddr,
    satellites: SocketAddr,
}

impl Relay {
    /// A relay below `dir` that was never started; `more_settings` are lines of its settings file.
    ///
    /// # Errors
    /// When no port is to be had or the directory can't be written.
    pub fn new(dir: &Path, more_settings: &str) -> Result<Self> {
        let dir = dir.join("relay");
        std::fs::create_dir_all(&dir)?;
        let relay = Self {
            dir,
            more_settings: more_settings.to_owned(),
            wrapper: Vec::new(),
            process: None,
            environment: Vec::new(),
            web: Link::new()?,
            session: Link::new()?,
        };
        relay.write_settings()?;
        Ok(relay)
    }

    fn write_settings(&self) -> Result<()> {
        let (web, satellites) = (self.web.port(), self.session.port());
        // What the test adds comes first: it may be top-level keys, tables stand at its end.
        let log = if self.more_settings.contains("log = ") { "" } else { "log = \"debug\"\n" };
        let settings = format!(
            "{log}web_listen = \"127.0.0.1:0\"\nsatellites_listen = \"127.0.0.1:0\"\n\
             web_url = \"https://localhost:{web}\"\nsession_url = \"wss://localhost:{satellites}\"\n{}\n",
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

    /// An environment variable of the serving program from its next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn settings(&self) -> PathBuf {
        self.dir.join("relay.toml")
    }

    /// Where it keeps its things.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where its records are.
    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.data_dir().join("records")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("relay.log")
    }

    /// Starts it and leads the links to it.
    ///
    /// # Errors
    /// When it does not open its doors in time.
    pub fn start(&mut self) -> Result<()> {
        let addresses = self.data_dir().join("addresses.json");
        if addresses.exists() {
            std::fs::remove_file(&addresses)?;
        }
        let program = &programs::programs()?.relay;
        let mut command = process::command_under(&self.wrapper, program);
        command.arg("serve").arg("--data-dir").arg(self.data_dir()).arg("--settings").arg(self.settings());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start("satellite-relay", &mut command, &self.log())?;
        let found: Addresses = wait::until("the relay's doors", START_WITHIN, || {
            process.check_running()?;
            // A file that is being written is not yet there.
            Ok(std::fs::read(&addresses).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()))
        })?;
        self.process = Some(process);
        self.web.lead_to(Some(found.web));
        self.session.lead_to(Some(found.satellites));
        Ok(())
    }

    /// Where its satellites' door is now, past the link.
    ///
    /// # Errors
    /// When it does not run.
    pub fn satellites_door(&self) -> Result<SocketAddr> {
        Ok(self.addresses()?.satellites)
    }

    /// The ports of its own doors, web and satellites, for those who do not come over the links.
    ///
    /// # Errors
    /// When it does not run.
    pub fn doors(&self) -> Result<(u16, u16)> {
        let Addresses { web, satellites } = self.addresses()?;
        Ok((web.port(), satellites.port()))
    }

    fn addresses(&self) -> Result<Addresses> {
        let bytes = std::fs::read(self.data_dir().join("addresses.json")).context("the relay's addresses")?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    fn running(&mut self) -> Result<Process> {
        self.process.take().context("the relay was not started")
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.running()?;
        self.lead_nowhere();
        process.check_running()?;
        process.kill()
    }

    /// It was killed by somebody else, or is about to end of that.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub fn bury(&mut self) -> Result<()> {
        let mut process = self.running()?;
        self.lead_nowhere();
        process.wait_for_end(STOP_WITHIN).map(drop)
    }

    /// Stops it as systemd would.
    ///
    /// # Errors
    /// When it does not end well in time.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.running()?;
        let status = process.terminate(STOP_WITHIN)?;
        self.lead_nowhere();
        if !status.success() {
            bail!("the relay ended with {status}:\n{}", process::tail(&self.log(), 20));
        }
        Ok(())
    }

    fn lead_nowhere(&self) {
        self.web.lead_to(None);
        self.session.lead_to(None);
    }

    /// From the next start on it is run by this program, with these words before its own; by none where there are none.
    pub fn run_under(&mut self, wrapper: &[String]) {
        self.wrapper = wrapper.to_vec();
    }

    /// It still runs.
    ///
    /// # Errors
    /// With the end of its log, when it does not.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.as_mut().context("the relay was not started")?.check_running()
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the relay was not started")?.signal(signal)
    }

    /// Runs one of its commands.
    ///
    /// # Errors
    /// When it can't be run at all; what it refuses stands in the result.
    pub fn command(&self, arguments: &[&str]) -> Result<Said> {
        let mut command = Command::new(&programs::programs()?.relay);
        command.args(arguments).arg("--data-dir").arg(self.data_dir()).arg("--settings").arg(self.settings());
        process::run(&mut command, "")
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.command(arguments)?.success()?;
        serde_json::from_str(&said).with_context(|| format!("{arguments:?} printed no JSON document: {said}"))
    }

    /// Makes a lease; `more` are further arguments, such as `--ttl`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn lease(&self, name: &str, more: &[&str]) -> Result<Lease> {
        let mut arguments = vec!["lease", "create", "--name", name, "--json"];
        arguments.extend_from_slice(more);
        Ok(serde_json::from_value(self.json(&arguments)?)?)
    }

    /// The account of a satellite.
    ///
    /// # Errors
    /// When it is refused.
    pub fn account(&self, satellite: &str) -> Result<Account> {
        Ok(serde_json::from_value(self.json(&["account", satellite, "--json"])?)?)
    }

    /// What it knows of a satellite.
    ///
    /// # Errors
    /// When it is refused.
    pub fn satellite(&self, satellite: &str) -> Result<Value> {
        self.json(&["satellite", "show", satellite, "--json"])
    }

    /// Hands a configuration document over.
    ///
    /// # Errors
    /// When the command can't be run; a refusal stands in the result.
    pub fn configure(&self, satellite: &str, document: &str) -> Result<Said> {
        let file = self.dir.join("config.toml");
        std::fs::write(&file, document)?;
        self.command(&["config", "set", satellite, &file.display().to_string()])
    }

    /// What it has stored, read by itself.
    ///
    /// # Errors
    /// When it is refused.
    pub fn read_records(&self, more: &[&str]) -> Result<Value> {
        let mut arguments = vec!["records", "--json"];
        arguments.extend_from_slice(more);
        self.json(&arguments)
    }

    /// Waits until everything that was due is stored or explained and nothing waits.
    ///
    /// # Errors
    /// With the last account, when that does not happen.
    pub fn wait_until_balanced(&self, satellite: &str, within: Duration) -> Result<Account> {
        let mut last = None;
        let waited = wait::until("a balanced account", within, || {
            // One that can't be had yet is not balanced yet.
            let account = self.account(satellite).ok();
            last = account.or(last);
            Ok(account.filter(|a| a.balanced && a.due == a.stored + a.explained && a.waiting == 0 && a.due > 0))
        });
        waited.with_context(|| format!("the last account was {last:?}"))
    }
}
