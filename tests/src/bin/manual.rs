//! Manual pages and completions for bash, zsh and fish, made from the two command lines: what the packages carry.
//!
//! `cargo run --package satellite-tests --bin manual -- DIR` writes `DIR/man/satellite-lease-set.1` and its like, one page
//! a command, and `DIR/completions/{bash,zsh,fish}/…` under the names by which each shell finds them. Deliberately
//! absent: a command of the programs that does this, as nobody who uses them needs it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, Parser};
use clap_complete::Shell;

/// Writes manual pages and completions of `satellite` and `satellite-relay`.
#[derive(Debug, Parser)]
struct Manual {
    /// Where to write them.
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let out = Manual::parse().out;
    for program in [satellite_agent::cli::command(), satellite_relay::cli::command()] {
        pages(&program, &out.join("man"))?;
        completions(&program, &out.join("completions"))?;
    }
    Ok(())
}

fn pages(program: &Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    // `help` is a command only to clap: `satellite-help(1)` would say nothing.
    let mut program = program.clone().disable_help_subcommand(true);
    program.build();
    page_and_those_below(&program, &program, dir)
}

fn page_and_those_below(program: &Command, command: &Command, dir: &Path) -> anyhow::Result<()> {
    let version = program.get_version().unwrap_or_default();
    let source = format!("{} {version}", program.get_name());
    let page = clap_mangen::Man::new(command.clone()).source(source).manual("Satellite");
    page.generate_to(dir).with_context(|| format!("{} can't be written", page.get_filename()))?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        page_and_those_below(program, below, dir)?;
    }
    Ok(())
}

fn completions(program: &Command, dir: &Path) -> anyhow::Result<()> {
    let name = program.get_name().to_owned();
    // Debian's completion loader looks for the bare name of the program.
    let shells = [(Shell::Bash, name.clone()), (Shell::Zsh, format!("_{name}")), (Shell::Fish, format!("{name}.fish"))];
    for (shell, file) in shells {
        let dir = dir.join(shell.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("{} can't be made", dir.display()))?;
        let mut text = vec![];
        clap_complete::generate(shell, &mut program.clone(), &name, &mut text);
        let path = dir.join(file);
        fs::write(&path, text).with_context(|| format!("{} can't be written", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> tempfile::TempDir {
        let out = tempfile::tempdir().unwrap();
        for program in [satellite_agent::cli::command(), satellite_relay::cli::command()] {
            pages(&program, &out.path().join("man")).unwrap();
            completions(&program, &out.path().join("completions")).unwrap();
        }
        out
    }

    #[test]
    fn every_command_has_a_page_that_says_in_a_line_what_it_does() {
        let out = all();
        let read = |page: &str| fs::read_to_string(out.path().join("man").join(page)).unwrap();
        for page in ["satellite.1", "satellite-lease-set.1", "satellite-relay.1", "satellite-relay-lease-create.1"] {
            assert!(read(page).contains(".SH SYNOPSIS"), "{page}");
        }
        for entry in fs::read_dir(out.path().join("man")).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let text = read(&name);
            let about = text.lines().skip_while(|line| *line != ".SH NAME").nth(1).unwrap();
            let said = about.split_once(" \\- ").map(|(_, said)| said).unwrap_or_default();
            assert!(!said.is_empty(), "{name}: {about}");
            assert!(!name.contains("help"), "{name}");
        }
        assert!(!read("satellite-lease-set.1").contains("\\-\\-token"), "what is refused is not shown");
    }

    #[test]
    fn each_shell_completes_every_command() {
        let out = all();
        let files = ["bash/satellite", "zsh/_satellite", "fish/satellite.fish"];
        for (file, word) in files.into_iter().flat_map(|file| ["probe", "gaps", "lease"].map(|word| (file, word))) {
            let text = fs::read_to_string(out.path().join("completions").join(file)).unwrap();
            assert!(text.contains(word), "{file} knows no {word}");
        }
        let bash = out.path().join("completions/bash/satellite-relay");
        let status = std::process::Command::new("bash").arg("-n").arg(bash).status().unwrap();
        assert!(status.success(), "bash reads it");
    }
}
