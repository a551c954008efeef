//! `satellite discover`: what answers in this house, as a configuration to paste.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Args;

use crate::cli::{complain, say};
use crate::discover::{self, Neighbourhood};
use crate::policy::Policy;
use crate::settings::Settings;

pub(crate) const EXAMPLES: &str = "\
Looks on the networks of this host's interfaces (mDNS, SSDP, and every address at the ports of UPSs, inverters, Proxmox,
exporters and brokers), as far as /etc/satellite/policy.toml allows. Whatever is proposed has answered one poll.

Examples:
  sudo satellite discover > found.toml     look at it, then: satellite-relay config set attic found.toml
  sudo satellite discover --network 192.168.20.0/24
  sudo satellite discover --json";

#[derive(Debug, Args)]
pub(crate) struct DiscoverArgs {
    /// Looks at these networks instead, at most 1,024 addresses each; can be given again.
    #[arg(long, value_name = "CIDR", value_parser = Neighbourhood::parse)]
    network: Vec<Neighbourhood>,
    /// One JSON document on stdout.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(settings: &Settings, args: DiscoverArgs) -> anyhow::Result<ExitCode> {
    let policy = Policy::load(&settings.policy)?;
    let own = discover::own_networks().map_err(anyhow::Error::msg)?;
    let networks = if args.network.is_empty() { own } else { with_own_addresses(args.network, &own) };
    anyhow::ensure!(
        !networks.is_empty(),
        "no interface of this host has a network of the house: name one, --network CIDR"
    );
    // It takes half a minute and more.
    let is_watched = std::io::stderr().is_terminal();
    let progress = |text: &str| {
        if is_watched {
            complain(text);
        }
    };
    let report = discover::discover(policy, &networks, progress).await;
    for note in &report.notes {
        complain(note);
    }
    complain(&format!("{} found on {}", report.found.len(), report.networks.join(", ")));
    if args.json {
        say(&report.json().to_string());
    } else {
        say(report.toml().trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// A network that was typed and is one of this host's is listened on too.
fn with_own_addresses(typed: Vec<Neighbourhood>, own: &[Neighbourhood]) -> Vec<Neighbourhood> {
    let own = |typed: &Neighbourhood| own.iter().find(|own| own.own.is_some_and(|ip| typed.contains(ip.into())));
    typed.into_iter().map(|typed| Neighbourhood { own: own(&typed).and_then(|own| own.own), ..typed }).collect()
}
