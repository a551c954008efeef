//! Where the two programs are: beside this binary, built by cargo from what lies in the working tree.
//!
//! They are built again before a run, since a test that runs yesterday's program is worse than none; that costs a
//! second when nothing changed. `SATELLITE_PROGRAMS_BUILT` says that it was just done.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// Set to anything by who has just built the programs.
pub const BUILT_ENV: &str = "SATELLITE_PROGRAMS_BUILT";

/// The programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// `satellite`.
    pub satellite: PathBuf,
    /// `satellite-relay`.
    pub relay: PathBuf,
}

/// The programs, built once a test binary.
///
/// # Errors
/// With the compiler's output when they can't be built.
pub fn programs() -> Result<&'static Programs> {
    static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
    let found = PROGRAMS.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_ref().map_err(|error| anyhow::anyhow!(error.clone()))
}

fn find() -> Result<Programs> {
    let profile_dir = profile_dir()?;
    if std::env::var_os(BUILT_ENV).is_none() {
        build(&profile_dir, &["--workspace", "--bins"])?;
    }
    let programs = Programs { satellite: profile_dir.join("satellite"), relay: profile_dir.join("satellite-relay") };
    for program in [&programs.satellite, &programs.relay] {
        if !program.is_file() {
            bail!("{} is not there: run `cargo build --workspace --bins`", program.display());
        }
    }
    Ok(programs)
}

/// Builds what these words name into the target directory that this binary is from, in the profile of this folder.
///
/// # Errors
/// With the compiler's output.
pub fn build(profile_dir: &Path, words: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--quiet"]).args(words);
    // A profile's folder has its name, but for the one that has no name of its own.
    let folder = profile_dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    command.args(["--profile", if folder == "debug" { "dev" } else { folder }]);
    if let Some(target_dir) = profile_dir.parent() {
        command.env("CARGO_TARGET_DIR", target_dir);
    }
    let said = command.output().context("cargo could not be started")?;
    if !said.status.success() {
        bail!("the programs can't be built:\n{}", String::from_utf8_lossy(&said.stderr));
    }
    Ok(())
}

/// What was typed. The aliases end in `--`, and so does what people type after them: `cargo demo -- --for 30s`.
#[must_use]
pub fn typed() -> Vec<OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|word| word == "--") {
        words.remove(1);
    }
    words
}

/// Cargo, as it called us, in the workspace.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// `target/debug`, or where else this binary was built.
///
/// # Errors
/// When this binary does not stand in a target directory.
pub fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().context("a program has a folder")?;
    Ok(if dir.ends_with("deps") { dir.parent().context("`deps` has a parent")?.to_owned() } else { dir.to_owned() })
}

/// `target`.
///
/// # Errors
/// When this binary does not stand in a target directory.
pub fn target_dir() -> Result<PathBuf> {
    Ok(profile_dir()?.parent().context("a profile has a target directory")?.to_owned())
}
