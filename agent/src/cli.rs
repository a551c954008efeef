//! What people type: `satellite run`, `lease`, `secrets`, `status`, `probe`, `discover`, `check`, `gaps`.
//!
//! Exit 0 done, 1 failed, 2 usage, 78 settings that can't be used. `--json` is one document on stdout; logs and errors
//! go to stderr.

pub mod check;

pub mod discover;

pub mod gaps;

pub mod lease;

pub mod logging;

pub mod probe;

mod prompt;

pub mod run;

pub mod secrets;

pub mod smart_report;

pub mod status;

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::settings::Settings;

/// Settings that can't be used: `EX_CONFIG` of sysexits(3).
pub const EXIT_SETTINGS: u8 = 78;

const EXAMPLES: &str = "\
Examples:
  sudo satellite lease set            enrol with the join code of `satellite-relay lease create`
  sudo satellite secrets set pihole --host pi.hole --protocol http
  satellite status                    link, devices, buffer, what was due and what became of it
  satellite probe router              poll one device once and print what it gave, or why not
  satellite discover                  what answers in this house, as a configuration to paste
  satellite check                     is everything as it should be? one line each, with the fix
  satellite run --settings ./s.toml   the daemon, in the foreground";

/// Polls a home lab's devices, keeps every record until the relay has stored it, and says why where there is none.
#[derive(Debug, Parser)]
#[command(name = "satellite", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    /// The settings file [default: /etc/satellite/satellite.toml, or none].
    #[arg(long, global = true, value_name = "FILE", env = "SATELLITE_SETTINGS")]
    settings: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon, in the foreground.
    #[command(after_help = "Examples:\n  satellite run\n  satellite run --settings ./satellite.toml")]
    Run,
    /// Sets, shows or removes the lease that makes this machine a satellite.
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Keeps, lists or forgets passwords of devices, which never leave this house.
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// How the running satellite is: link, devices, buffer, due/stored/explained, certificate.
    #[command(after_help = "Examples:\n  satellite status\n  satellite status --json")]
    Status(Json),
    /// Polls one configured device once and prints what it gave, or why not.
    #[command(
        after_help = "Examples:\n  satellite probe this-host\n  satellite probe router --json\n  sudo satellite probe --config found.toml"
    )]
    Probe(ProbeArgs),
    /// Looks for devices in this house and prints a configuration of what answered.
    #[command(after_help = discover::EXAMPLES)]
    Discover(discover::DiscoverArgs),
    /// Settings, policy, secrets' modes, names, proxy, clock, TLS to the relay: one line each, with the fix.
    #[command(after_help = "Examples:\n  satellite check\n  satellite check --json")]
    Check(Json),
    /// What smartctl says of each disk of this machine, for the collector `smart`: satellite-smart.socket runs it.
    #[command(
        after_help = "Examples:\n  sudo satellite smart-report\n  sudo systemctl enable --now satellite-smart.socket"
    )]
    SmartReport,
    /// The ledger: what was due and is not a record, with its reason.
    #[command(after_help = "Examples:\n  satellite gaps\n  satellite gaps --json")]
    Gaps(Json),
}

#[derive(Debug, Args)]
struct Json {
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ProbeArgs {
    /// The device's name in the configuration.
    #[arg(required_unless_present = "config")]
    device: Option<String>,
    /// Polls the devices of this file instead, TOML or JSON, from here; no relay needs to know them. `-` is stdin.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// Threads that read what may hang wait so long for more: a host that is polled every minute does not start them anew
/// each time, which costs more than the reading.
const THREADS_KEPT: Duration = Duration::from_secs(75);

/// The command line, for what is made of it: manual pages and shells' completions.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs what was typed.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Command::SmartReport) {
        // It has root's rights: it reads no settings and writes nothing.
        return in_runtime(async { Ok(smart_report::run().await) });
    }
    let settings = match Settings::load(cli.settings.as_deref()) {
        Ok(settings) => settings,
        Err(error) => {
            complain(&format!("settings: {error}"));
            return ExitCode::from(EXIT_SETTINGS);
        }
    };
    // What the user can read, the satellite may not.
    let named = if let Command::Probe(args) = &cli.command { args.config.as_deref() } else { None };
    let file = match named.map(probe::DeviceFile::read).transpose() {
        Ok(file) => file,
        Err(error) => {
            complain(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = act_as_owner(&cli.command, &settings) {
        complain(&format!("{}: its owner can't be taken on: {error}", settings.state_dir.display()));
        return ExitCode::FAILURE;
    }
    logging::start(settings.log);
    in_runtime(async {
        match cli.command {
            Command::Run => run::run(cli.settings, settings).await,
            Command::Lease(command) => lease::run(command, &settings.state_dir, &settings.proxy_settings()).await,
            Command::Secrets(command) => secrets::run(command, &settings.state_dir),
            Command::Status(args) => status::run(&settings, args.json).await,
            Command::Probe(ProbeArgs { device, config: _, json }) => match &file {
                Some(file) => probe::run_file(&settings, file, device.as_deref(), json).await,
                None => probe::run(&settings, &device.unwrap_or_default(), json).await,
            },
            Command::Discover(args) => discover::run(&settings, args).await,
            Command::Check(args) => check::run(&settings, args.json).await,
            Command::Gaps(args) => gaps::run(&settings, args.json).await,
            Command::SmartReport => Ok(smart_report::run().await),
        }
    })
}

/// Runs it to its end, on the one thread there is.
fn in_runtime(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = match runtime.enable_all().thread_keep_alive(THREADS_KEPT).build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime does not start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(work);
    // A name lookup or a hanging mount may hold a thread for ever: the program does not wait for it.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// Root acts as the owner of the state directory where it would write there.
fn act_as_owner(command: &Command, settings: &Settings) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    use satellite_shared::privilege::{self, Gid, Uid};
    match command {
        Command::Run | Command::Lease(_) | Command::Secrets(_) | Command::Discover(_) => {}
        Command::Probe(args) if args.config.is_some() => {}
        Command::Status(_) | Command::Probe(_) | Command::Check(_) | Command::Gaps(_) | Command::SmartReport => {
            return Ok(());
        }
    }
    // A directory that is not there is made, and is then root's own.
    let Ok(directory) = std::fs::metadata(&settings.state_dir) else { return Ok(()) };
    privilege::act_as_owner(Uid::from_raw(directory.uid()), Gid::from_raw(directory.gid())).map(drop)
}

/// One line on stderr.
#[expect(clippy::print_stderr, reason = "this is the command line")]
pub(crate) fn complain(text: &str) {
    eprintln!("satellite: {text}");
}

/// One line on stdout; a reader that went away is no error of ours.
pub(crate) fn say(text: &str) {
    use std::io::Write as _;
    drop(writeln!(std::io::stdout(), "{text}"));
}

/// The answer of the running satellite, or the error for the one who asked.
pub(crate) async fn ask(settings: &Settings, request: &crate::local::Request) -> anyhow::Result<serde_json::Value> {
    let answer = crate::local::ask(&settings.run_dir, request).await.map_err(|error| {
        let socket = settings.run_dir.join(crate::local::SOCKET);
        let path = socket.display();
        if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) {
            return anyhow::anyhow!("no satellite runs here ({path} does not answer): `systemctl start satellite`");
        }
        if error.kind() == ErrorKind::PermissionDenied {
            return anyhow::anyhow!("{path}: not allowed: use sudo, or join the group `satellite`");
        }
        anyhow::anyhow!("{path}: {error}")
    })?;
    match answer.get("error").and_then(serde_json::Value::as_str) {
        Some(error) => Err(anyhow::anyhow!("{error}")),
        None => Ok(answer),
    }
}

/// How long ago, or until, for people: `3m 20s`.
pub(crate) fn span(ms: i64) -> String {
    let seconds = ms.unsigned_abs() / 1000;
    let seconds = match seconds {
        0..=119 => seconds,
        120..=7_199 => seconds / 60 * 60,
        7_200..=172_799 => seconds / 3_600 * 3_600,
        _ => seconds / 86_400 * 86_400,
    };
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

/// A time of the wall clock, for people.
pub(crate) fn time(ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(ms)
        .map_or_else(|| "?".into(), |time| time.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string())
}
