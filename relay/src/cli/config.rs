//! `satellite-relay config`: what a satellite polls. Documents are TOML or JSON; every version is kept.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use satellite_shared::config::{Document, Problem};
use satellite_shared::limits::CONFIG_BYTES_MAX;
use serde_json::{Value, json};

use super::{Failure, Shell, date, note, now_ms, print, print_json};
use crate::registry::SatelliteRow;

/// TOML has more blanks than JSON.
const FILE_BYTES_MAX: usize = 4 * CONFIG_BYTES_MAX;

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Print a satellite's configuration as TOML
    #[command(after_help = "Examples:
  satellite-relay config get attic > attic.toml
  satellite-relay config get attic --version 3 --json")]
    Get {
        /// Its id or name
        #[arg(value_name = "ID")]
        satellite: String,
        /// An earlier version
        #[arg(long)]
        version: Option<u64>,
        /// One JSON document, with version and time
        #[arg(long)]
        json: bool,
    },
    /// Set a satellite's configuration; a connected one gets it at once
    #[command(after_help = "Examples:
  satellite-relay config set attic attic.toml
  satellite-relay config set attic < attic.toml
  satellite-relay config get attic --version 3 | satellite-relay config set attic     # back to version 3")]
    Set {
        #[command(flatten)]
        given: Given,
        /// Set it even where items are wrong: the satellite refuses them and takes the others
        #[arg(long)]
        force: bool,
    },
    /// Check a configuration without setting it
    #[command(after_help = "Example:\n  satellite-relay config check attic attic.toml")]
    Check {
        #[command(flatten)]
        given: Given,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Given {
    /// The satellite's id or name
    #[arg(value_name = "ID")]
    satellite: String,
    /// TOML or JSON; stdin without it
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[arg(skip)]
    opened: Option<std::fs::File>,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Config {
    pub(super) fn open_file(&mut self) -> Result<(), Failure> {
        match self {
            Self::Get { .. } => Ok(()),
            Self::Set { given, .. } | Self::Check { given } => given.open(),
        }
    }

    pub(crate) async fn run(self, shell: &Shell) -> Result<(), Failure> {
        match self {
            Self::Get { satellite, version, json } => get(shell, &satellite, version, json).await,
            Self::Set { given, force } => set(shell, given, force).await,
            Self::Check { given } => check(shell, given).await,
        }
    }
}

async fn get(shell: &Shell, id_or_name: &str, version: Option<u64>, json: bool) -> Result<(), Failure> {
    let registry = shell.registry().await?;
    let satellite = registry.satellite_by(id_or_name).await?;
    let name = &satellite.name;
    let wanted = version.unwrap_or(satellite.config_version);
    let Some(config) = registry.config_at(&satellite.id, wanted).await? else {
        return Err(match version {
            Some(version) => anyhow::anyhow!(
                "`{name}` has no configuration version {version}; the last one is {}",
                satellite.config_version
            ),
            None => anyhow::anyhow!("`{name}` has no configuration yet: `satellite-relay config set {name} FILE`"),
        }
        .into());
    };
    if json {
        return print_json(&json!({
            "satellite": satellite.id,
            "name": name,
            "version": config.version,
            "set_at": date(config.set_at_ms),
            "document": config.document,
        }));
    }
    note(format_args!("# {name}, version {}, set {}", config.version, date(config.set_at_ms)));
    // TOML has no null; a document that holds one is readable as JSON.
    match toml::to_string_pretty(&config.document) {
        Ok(text) => print(text.trim_end()),
        Err(_) => print_json(&config.document),
    }
}

async fn set(shell: &Shell, given: Given, force: bool) -> Result<(), Failure> {
    let registry = shell.registry().await?;
    let satellite = registry.satellite_by(&given.satellite).await?;
    if satellite.revoked_at_ms.is_some() {
        return Err(anyhow::anyhow!("`{}` ({}) is revoked", satellite.name, satellite.id).into());
    }
    let (value, document) = given.read()?;
    let problems = document.problems;
    if !problems.is_empty() && !force {
        given.tell(&satellite, None, &problems)?;
        return Err(anyhow::anyhow!("nothing was set: correct {}, or add --force", counted(&problems)).into());
    }
    let version = registry.set_config(&satellite.id, &value, now_ms()).await?;
    given.tell(&satellite, Some(version), &problems)
}

async fn check(shell: &Shell, given: Given) -> Result<(), Failure> {
    let satellite = shell.registry().await?.satellite_by(&given.satellite).await?;
    let (_, document) = given.read()?;
    given.tell(&satellite, None, &document.problems)?;
    if !document.problems.is_empty() {
        return Err(anyhow::anyhow!("not in order: {}", counted(&document.problems)).into());
    }
    if !given.json {
        print(format_args!(
            "In order: {} devices. The satellite's own policy.toml has the last word.",
            document.devices.len()
        ))?;
    }
    Ok(())
}

impl Given {
    fn open(&mut self) -> Result<(), Failure> {
        if let Some(path) = self.file.as_ref().filter(|path| path.as_os_str() != "-") {
            self.opened = Some(std::fs::File::open(path).with_context(|| path.display().to_string())?);
        }
        Ok(())
    }

    fn read(&self) -> Result<(Value, Document), Failure> {
        let (name, text) = match (&self.file, &self.opened) {
            (Some(path), Some(file)) => {
                (path.display().to_string(), bounded(file).with_context(|| path.display().to_string())?)
            }
            (_, None) | (None, Some(_)) => ("stdin".into(), bounded(std::io::stdin().lock()).context("stdin")?),
        };
        Ok(Document::parse_text(&text).map_err(|problem| anyhow::anyhow!("{name}: {problem}"))?)
    }

    fn tell(&self, satellite: &SatelliteRow, version: Option<u64>, problems: &[Problem]) -> Result<(), Failure> {
        if self.json {
            let problems: Vec<_> = problems.iter().map(|p| json!({ "path": p.path, "reason": p.reason })).collect();
            return print_json(&json!({
                "satellite": satellite.id,
                "name": satellite.name,
                "version": version,
                "set": version.is_some(),
                "problems": problems,
            }));
        }
        for problem in problems {
            note(problem);
        }
        match version {
            Some(version) if version == satellite.config_version => {
                print(format_args!("`{}` has this configuration already, as version {version}.", satellite.name))
            }
            Some(version) => print(format_args!(
                "Version {version} for `{}` ({}). `satellite-relay satellite show {}` tells when it is applied.",
                satellite.name, satellite.id, satellite.name
            )),
            None => Ok(()),
        }
    }
}

fn counted(problems: &[Problem]) -> String {
    match problems.len() {
        1 => "1 item".into(),
        items => format!("{items} items"),
    }
}

fn bounded(reader: impl Read) -> anyhow::Result<String> {
    let mut text = String::new();
    reader.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() <= FILE_BYTES_MAX, "larger than {} KiB", FILE_BYTES_MAX >> 10);
    Ok(text)
}
