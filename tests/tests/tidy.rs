//! The house rules that a compiler can't keep.

#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn tracked_files() -> Vec<String> {
    let output = Command::new("git").args(["ls-files"]).current_dir(root()).output().unwrap();
    let files: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert!(!files.is_empty(), "git lists the files: run this in a clone");
    files
}

fn rust_files() -> Vec<String> {
    tracked_files().into_iter().filter(|file| file.ends_with(".rs") && root().join(file).exists()).collect()
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap()
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = rust_files().into_iter().filter(|file| !read(file).starts_with("//!")).collect();
    assert_eq!(silent, [""; 0], "open these with a //! header");
}

#[test]
fn a_file_is_a_noun_of_the_field() {
    let forbidden = ["utils", "util", "helpers", "helper", "common", "misc", "manager", "constants", "mod"];
    let stem = |file: &String| Path::new(file).file_stem().unwrap().to_string_lossy().into_owned();
    let found: Vec<String> = rust_files().into_iter().filter(|file| forbidden.contains(&stem(file).as_str())).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn the_top_level_is_what_it_is_said_to_be() {
    let allowed = [
        "Cargo.toml",
        "Cargo.lock",
        "agent",
        "relay",
        "shared",
        "packaging",
        "systemd",
        "tests",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
    ];
    let top = |file: &String| file.split('/').next().unwrap_or_default().to_owned();
    let mut extra: Vec<String> = tracked_files().iter().map(top).collect();
    extra.retain(|name| !name.starts_with('.') && !allowed.contains(&name.as_str()));
    extra.dedup();
    assert_eq!(extra, [""; 0]);
}

#[test]
fn neither_end_knows_the_other_and_the_shared_crate_knows_no_runtime() {
    let dependencies = |manifest: &str| {
        let table: toml::Table = read(manifest).parse().unwrap();
        table["dependencies"].as_table().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let shared = dependencies("shared/Cargo.toml");
    for banned in ["tokio", "satellite-agent", "satellite-relay", "reqwest", "rustls"] {
        assert!(!shared.iter().any(|name| name == banned), "shared depends on {banned}");
    }
    assert!(!dependencies("agent/Cargo.toml").iter().any(|name| name == "satellite-relay"));
    assert!(!dependencies("relay/Cargo.toml").iter().any(|name| name == "satellite-agent"));
}

#[test]
fn every_collector_is_in_the_changelog_and_has_an_example() {
    let changelog = read("CHANGELOG.md");
    let devices = read("agent/DEVICES.md");
    for kind in satellite_agent::collector::all() {
        assert!(changelog.contains(&format!("`{}`", kind.name)), "CHANGELOG.md does not name `{}`", kind.name);
        assert!(devices.contains(&format!("collector = \"{}\"", kind.name)), "DEVICES.md shows no `{}`", kind.name);
    }
    assert!(changelog.contains("## Unreleased"));
}
