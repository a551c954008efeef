//! What people and scripts type.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 78 settings or a data directory that can't be used. What was asked for goes
//! to stdout, everything else to stderr; with `--json` stdout is one JSON document.

pub mod account;

mod config;

mod lease;

mod logging;

pub mod records;

mod satellite;

mod serve;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use satellite_shared::clock::{Clock, SystemClock};

use crate::data_dir::{self, DataDir, DataDirError};
use crate::registry::{Registry, RegistryError};
use crate::settings::{self, Settings, SettingsError};

const FAILED: u8 = 1;
const UNUSABLE: u8 = 78;

#[derive(Debug, Parser)]
#[command(
    name = "satellite-relay",
    version,
    about = "Leases, enrols and configures satellites, and commits what they send to storage",
    after_help = "Examples:
  satellite-relay serve
  satellite-relay lease create --name attic --relay https://relay.example.org:8443
  satellite-relay config set attic attic.toml
  satellite-relay satellite list

Exit codes: 0 done, 1 failed, 2 usage, 78 settings or data directory that can't be used."
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Which relay: every command takes these.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The settings file [default: /etc/satellite-relay/relay.toml where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Where the relay keeps its things
    #[arg(long, global = true, value_name = "DIR", env = "SATELLITE_RELAY_DATA_DIR", default_value = data_dir::DEFAULT_PATH)]
    data_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve satellites, in the foreground
    Serve(serve::Serve),
    /// Make, list and revoke leases: the right to enrol one satellite, once
    #[command(subcommand)]
    Lease(lease::Lease),
    /// List, show and revoke satellites
    #[command(subcommand)]
    Satellite(satellite::Satellite),
    /// Say what a satellite polls
    #[command(subcommand)]
    Config(config::Config),
    /// Read what is stored
    Records(records::RecordsArgs),
    /// Show what was due of a satellite, and what became of it
    Account(account::AccountArgs),
}

/// The command line, for what is made of it: manual pages and shells' completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures; when stdout is closed there is nobody to tell.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut cli = cli;
    match cli.command.open_files().and_then(|()| Shell::open(cli.place)).and_then(|shell| dispatch(&shell, cli.command))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            note(format_args!("satellite-relay: {}", chain(&failure.error)));
            ExitCode::from(failure.code)
        }
    }
}

impl Command {
    /// What is named in the arguments is opened by who typed it, root perhaps.
    fn open_files(&mut self) -> Result<(), Failure> {
        match self {
            Self::Config(config) => config.open_file(),
            Self::Serve(_) | Self::Lease(_) | Self::Satellite(_) | Self::Records(_) | Self::Account(_) => Ok(()),
        }
    }
}

fn dispatch(shell: &Shell, command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(serve) => serve.run(shell),
        Command::Lease(lease) => shell.wait(lease.run(shell)),
        Command::Satellite(satellite) => shell.wait(satellite.run(shell)),
        Command::Config(config) => shell.wait(config.run(shell)),
        Command::Records(args) => {
            shell.wait(async { Ok(records::run(&args, &shell.settings.archive, &shell.data_dir).await?) })
        }
        Command::Account(args) => shell.wait(async { Ok(account::run(&args, &shell.data_dir).await?) }),
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// Settings or the data directory can't be used.
    pub(crate) fn unusable(error: impl Into<anyhow::Error>) -> Self {
        Self { code: UNUSABLE, error: error.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<RegistryError>() {
            Ok(error) => error.into(),
            Err(error) => Self { code: FAILED, error },
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        Self::unusable(error)
    }
}

impl From<DataDirError> for Failure {
    fn from(error: DataDirError) -> Self {
        let code = if matches!(error, DataDirError::Locked { .. }) { FAILED } else { UNUSABLE };
        Self { code, error: error.into() }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        if let RegistryError::Files(error) = error {
            return error.into();
        }
        let unusable = matches!(error, RegistryError::Newer { .. } | RegistryError::Damaged { .. });
        let code = if unusable { UNUSABLE } else { FAILED };
        Self { code, error: error.into() }
    }
}

/// What every command has.
#[derive(Debug)]
pub(crate) struct Shell {
    /// The file that the settings are from, where one was named.
    settings_path: Option<PathBuf>,
    pub(crate) settings: Settings,
    pub(crate) data_dir: DataDir,
}

impl Shell {
    fn open(place: Place) -> Result<Self, Failure> {
        let mut settings = Settings::load(place.settings.as_deref())?;
        settings.archive.hold_credentials();
        DataDir::act_as_owner(&place.data_dir)?;
        let data_dir = DataDir::open(&place.data_dir)?;
        Ok(Self { settings_path: place.settings, settings, data_dir })
    }

    /// Runs a command that ends by itself.
    fn wait(&self, command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
        logging::start(tracing::Level::WARN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(anyhow::Error::from)?.block_on(command)
    }

    pub(crate) async fn registry(&self) -> Result<Registry, Failure> {
        Ok(Registry::open(self.data_dir.path()).await?)
    }
}

/// The wall clock.
pub(crate) fn now_ms() -> i64 {
    SystemClock.now().wall_ms
}

/// Says what was asked for. A reader that has gone away is no failure.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(anyhow::Error::from(error).into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says it as one JSON document.
pub(crate) fn print_json(document: &serde_json::Value) -> Result<(), Failure> {
    print(format_args!("{document:#}"))
}

/// Says something beside what was asked for.
pub(crate) fn note(text: impl Display) {
    // When stderr is closed there is nobody to tell.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// An error and its causes, as far as they are not told already.
fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match (text.is_empty(), text.contains(&cause)) {
            (true, _) => cause,
            (false, true) => text,
            (false, false) => format!("{text}: {cause}"),
        }
    })
}

/// A time as scripts and people read it.
pub(crate) fn date(ms: i64) -> String {
    DateTime::from_timestamp_millis(ms).map_or_else(|| "?".into(), |at| at.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// How long ago, in one word.
pub(crate) fn ago(since_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(since_ms).max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// Rows under a head, as wide as they need.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// The default settings path, for messages.
pub(crate) fn settings_path() -> &'static str {
    settings::DEFAULT_PATH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_has_an_example() {
        let mut cli = command();
        cli.build();
        cli.clone().debug_assert();
        let below = |command: &clap::Command| -> Vec<clap::Command> {
            command.get_subcommands().filter(|below| below.get_name() != "help").cloned().collect()
        };
        let mut commands = below(&cli);
        while let Some(command) = commands.pop() {
            let below = below(&command);
            if below.is_empty() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("satellite-relay"), "{} has no example", command.get_name());
            }
            commands.extend(below);
        }
    }

    #[test]
    fn a_table_is_as_wide_as_it_needs() {
        let rows = [vec!["attic".into(), "1".into()], vec!["b".into(), "22".into()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME   N\nattic  1\nb      22");
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = DataDirError::Denied { path: "/x".into(), source: cause };
        assert_eq!(chain(&error.into()).matches("disk on fire").count(), 1);
        assert_eq!(chain(&anyhow::anyhow!("b").context("a")), "a: b");
    }

    #[test]
    fn ages_are_one_word() {
        assert_eq!(ago(0, 61_000), "61s ago");
        assert_eq!(ago(0, 3_600_000), "60m ago");
        assert_eq!(ago(0, 7_200_000), "2h ago");
        assert_eq!(ago(0, 864_000_000), "10d ago");
        assert_eq!(ago(10, 0), "0s ago");
    }
}
