//! Packets that are lost, in the network namespace that this process runs in: see [`crate::netns::journey_inside`].
//!
//! nftables drops them at random, so TCP itself has to cope, with its own timers, as on a bad line. Never outside of a
//! namespace of the test's own.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::peers::in_path;
use crate::{netns, process};

/// Loses so many of a hundred packets to and from a port from now on; 0 ends it.
///
/// # Errors
/// Outside of a namespace of its own, when nftables is not there, or the kernel can't.
pub fn lose(port: u16, percent: u8) -> Result<()> {
    ensure!(netns::is_inside(), "not in a namespace of its own");
    let nft = in_path("nft").context("there is no nft: `apt-get install nftables`")?;
    run(Command::new(nft), &rules(port, percent)).map(drop)
}

/// Packets lost since [`lose`] was last called.
///
/// # Errors
/// When nftables does not say.
pub fn lost() -> Result<u64> {
    let nft = in_path("nft").context("there is no nft: `apt-get install nftables`")?;
    let said = run(Command::new(nft), "list table inet loss\n")?;
    let mut words = said.split_whitespace();
    let mut lost = 0;
    while words.any(|word| word == "packets") {
        lost += words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(lost)
}

/// Whether this machine can lose packets in a namespace that is there for the question only.
#[must_use]
pub fn works() -> bool {
    let Some(nft) = in_path("nft") else { return false };
    let mut command = Command::new("unshare");
    command.arg("--net").arg(nft);
    run(command, &rules(9, 1)).is_ok()
}

/// What arrives is dropped, so each packet has one chance.
fn rules(port: u16, percent: u8) -> String {
    let drop = |end: &str| format!("tcp {end} {port} numgen random mod 100 < {percent} counter drop\n");
    let drops = if percent == 0 { String::new() } else { drop("dport") + &drop("sport") };
    let chain = format!("chain input {{\ntype filter hook input priority 0;\n{drops}}}\n");
    format!("table inet loss\ndelete table inet loss\ntable inet loss {{\n{chain}}}\n")
}

/// nft, with its commands from stdin.
fn run(mut nft: Command, commands: &str) -> Result<String> {
    process::run(nft.args(["-f", "-"]), commands)?.success()
}
