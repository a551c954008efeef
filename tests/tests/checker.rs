//! The judge is judged: it finds each fault that it is there to find, and finds none where there is none.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use satellite_tests::checker::{Verdict, python};
use satellite_tests::journey::{self, journey};
use satellite_tests::peers::Peer;
use satellite_tests::relay::Account;

fn main() -> ExitCode {
    const PYTHON: &[Peer] = &[Peer::Python];
    journey::run(vec![
        journey("what_is_whole_is_found_whole", PYTHON, whole),
        journey("every_fault_is_found", PYTHON, faults),
        journey("an_account_that_says_otherwise_is_found", PYTHON, account),
    ])
}

fn judged(dir: &Path, fault: &str) -> Result<Verdict> {
    let folder = dir.join(fault);
    python("forge.py", &[folder.as_os_str(), fault.as_ref()])?;
    Verdict::of_logged(&folder.join("records"), &folder.join("log.json"))
}

fn whole(dir: &Path) -> Result<()> {
    for (fault, stored, explained) in [("none", 40, 0), ("explained", 38, 2), ("evicted", 38, 2), ("set_aside", 40, 0)]
    {
        let verdict = judged(dir, fault)?;
        verdict.must_be_whole()?;
        ensure!((verdict.stored, verdict.explained) == (stored, explained), "{fault}: {verdict:?}");
    }
    Ok(())
}

fn faults(dir: &Path) -> Result<()> {
    for (fault, found) in [
        ("lost", "lost: 1"),
        ("hole", "lost: 3"),
        ("duplicate", "duplicates: 2"),
        ("unexpected", "unexpected: 1"),
        ("altered", "altered: 2"),
        ("aside_twice", "duplicates: 2"),
        ("claims", "claims_differ: 1"),
    ] {
        let said = judged(dir, fault)?.must_be_whole().err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains(found), "{fault}: expected `{found}`, got `{said}`");
    }
    Ok(())
}

fn account(dir: &Path) -> Result<()> {
    let verdict = judged(dir, "explained")?;
    let right = Account { due: 40, stored: 38, explained: 2, set_aside: 0, waiting: 0, balanced: true };
    verdict.must_agree("st_a", &right)?;
    for wrong in [
        Account { due: 41, ..right },
        Account { stored: 39, explained: 1, ..right },
        Account { explained: 3, due: 41, ..right },
    ] {
        ensure!(verdict.must_agree("st_a", &wrong).is_err(), "{wrong:?}");
    }
    ensure!(verdict.must_agree("st_b", &right).is_err());
    Ok(())
}
