<<<<<<< HEAD
//! The house rules that a compiler can't keep.

use std::path::{Path, PathBuf};
use std::process::Command;
=======
//! What every file and folder of the workspace keeps to, so that a newcomer finds things where they are expected.

use std::path::{Path, PathBuf};

/// What may stand at the top level, besides dotfiles.
const TOP_LEVEL: [&str; 13] = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "agent",
    "packaging",
    "relay",
    "shared",
    "systemd",
    "tests",
];
/// Names that say nothing.
const EMPTY_NAMES: [&str; 7] =
    ["utils.rs", "util.rs", "helpers.rs", "common.rs", "misc.rs", "manager.rs", "constants.rs"];
>>>>>>> 649c4f6 (Add cargo demo, and a test of what every file keeps to)

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

<<<<<<< HEAD
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
fn every_collector_is_in_the_changelog_and_has_an_example_in_the_readme() {
    let changelog = read("CHANGELOG.md");
    let readme = read("README.md");
    for kind in satellite_agent::collector::all() {
        assert!(changelog.contains(&format!("`{}`", kind.name)), "CHANGELOG.md does not name `{}`", kind.name);
        assert!(readme.contains(&format!("collector = \"{}\"", kind.name)), "README.md shows no `{}`", kind.name);
    }
    assert!(changelog.contains("## Unreleased"));
=======
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["agent", "relay", "shared", "tests"] {
        sources(&root().join(folder), &mut found);
    }
    assert!(found.len() > 50, "the sources are here");
    found
}

#[test]
fn every_file_says_first_what_it_is() {
    for file in all_sources() {
        let text = std::fs::read_to_string(&file).unwrap();
        let first = text.lines().next().unwrap_or_default();
        let included = first.starts_with("#![doc = include_str!");
        assert!(first.starts_with("//! ") || included, "{} does not open with //!", file.display());
    }
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    for file in all_sources() {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(!EMPTY_NAMES.contains(&name) && name != "mod.rs", "{}: name it for what it is", file.display());
    }
}

#[test]
fn the_top_level_holds_what_people_look_for_there() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let fits = name.starts_with('.') || name == "target" || TOP_LEVEL.contains(&name.as_str());
        assert!(fits, "{name} does not belong at the top level");
    }
}

#[test]
fn neither_end_depends_on_the_other_and_what_they_share_on_nothing_that_runs() {
    let depends = |krate: &str, on: &[&str]| {
        let text = std::fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for name in on {
            let found = lines.iter().any(|line| line.split(['.', '=', ' ']).next() == Some(name));
            assert!(!found, "{krate} depends on {name}");
        }
    };
    depends("shared", &["tokio", "reqwest", "axum", "satellite-agent", "satellite-relay"]);
    depends("agent", &["satellite-relay", "axum", "sqlx", "parquet"]);
    depends("relay", &["satellite-agent", "sled", "sysinfo", "procfs"]);
}

#[test]
fn the_changelog_has_a_place_for_what_comes_next() {
    let text = std::fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(text.contains("## [Unreleased]") || text.contains("## Unreleased"), "no heading `Unreleased`");
>>>>>>> 649c4f6 (Add cargo demo, and a test of what every file keeps to)
}
