//! What answers in this house: heard by multicast, or asked address by address, and only when somebody types it.
//!
//! Whatever is heard or guessed becomes the device of a configuration, and that is polled once, by the collector that
//! would poll it later: what is proposed has answered. The policy is asked as for any poll; the limit on new targets,
//! which keeps a relay from sweeping the house, is not for who sits in it. Deliberately absent: guessing passwords, and
//! addresses outside the networks of this host or those that were typed.

mod mdns;
mod proposal;
mod ssdp;
mod sweep;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use satellite_shared::clock::SystemClock;
use satellite_shared::config::{Device, Document};
use serde_json::{Value, json};

pub use self::proposal::Proposal;
use crate::collector::{self, Context, once};
use crate::policy::address::Network;
use crate::policy::{Gate, Policy};
use crate::secrets::Keyring;

/// How long answers to a multicast are waited for.
pub const LISTEN: Duration = Duration::from_secs(3);
/// Addresses of one network.
pub const ADDRESSES_MAX: usize = 1_024;
/// Proposals that are polled at once, and altogether.
const POLLS_AT_ONCE: usize = 16;
const PROPOSALS_MAX: usize = 500;
/// Interfaces whose neighbours are this machine's own guests, or somebody else's.
const NOT_THE_HOUSE: [&str; 15] = [
    "br-",
    "cni",
    "docker",
    "flannel",
    "incusbr",
    "lo",
    "lxc",
    "lxdbr",
    "podman",
    "tailscale",
    "veth",
    "virbr",
    "vnet",
    "wg",
    "zt",
];

/// A network and this host's address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbourhood {
    /// The address on the interface; `None` for a network that was typed and is none of this host's.
    pub own: Option<Ipv4Addr>,
    /// The first address.
    pub base: Ipv4Addr,
    /// 22 to 32.
    pub prefix: u8,
}

/// What was found, and where it was looked for.
#[derive(Debug, Default)]
pub struct Report {
    /// What answered, in the order of addresses.
    pub found: Vec<Proposal>,
    /// Where it was looked for.
    pub networks: Vec<String>,
    /// What could not be done, and why.
    pub notes: Vec<String>,
}

impl Neighbourhood {
    /// Reads `192.168.1.0/24`, or an address alone.
    ///
    /// # Errors
    /// Says what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        Network::parse(text)?;
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let (Ok(base), Ok(prefix)) = (address.parse(), prefix.parse()) else {
            return Err(format!("{text}: only IPv4 networks can be asked address by address"));
        };
        let network = Self { own: None, base, prefix };
        if network.size() > ADDRESSES_MAX {
            return Err(format!("{text} has more than {ADDRESSES_MAX} addresses: name a part of it"));
        }
        Ok(network)
    }

    fn size(self) -> usize {
        1_usize << 32_u8.saturating_sub(self.prefix)
    }

    fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        let (first, size) = (u32::from(self.base), self.size());
        // Neither the network's own address nor its broadcast.
        let skipped = usize::from(size > 2);
        (skipped..size - skipped)
            .filter_map(move |at| Some(Ipv4Addr::from(first.checked_add(u32::try_from(at).ok()?)?)))
            .filter(move |host| Some(*host) != self.own)
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let bits = 32 - u32::from(self.prefix.min(32));
        u64::from(u32::from(ip)) >> bits == u64::from(u32::from(self.base)) >> bits
    }
}

/// The networks of this host's interfaces; those that are too large are narrowed to the /24 around its address.
///
/// # Errors
/// When the interfaces can't be read.
pub fn own_networks() -> Result<Vec<Neighbourhood>, String> {
    let interfaces = if_addrs::get_if_addrs().map_err(|error| error.to_string())?;
    let mut found: Vec<Neighbourhood> = Vec::new();
    for interface in interfaces {
        let if_addrs::IfAddr::V4(address) = &interface.addr else { continue };
        if NOT_THE_HOUSE.iter().any(|other| interface.name.starts_with(other)) {
            continue;
        }
        let prefix = if address.prefixlen < 22 { 24 } else { address.prefixlen.min(32) };
        let base = Ipv4Addr::from(u32::from(address.ip) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0));
        // A host with several addresses in a network looks at it once.
        if !found.iter().any(|known| (known.base, known.prefix) == (base, prefix)) {
            found.push(Neighbourhood { own: Some(address.ip), base, prefix });
        }
    }
    found.sort_by_key(|network| network.base);
    Ok(found)
}

/// Looks for devices in these networks, as far as the policy goes, and says what it does meanwhile. No secret is sent: who
/// announces itself may be anybody.
pub async fn discover(policy: Policy, networks: &[Neighbourhood], say: impl Fn(&str)) -> Report {
    let mut report = Report::default();
    let mut allowed = Vec::new();
    for network in networks {
        let text = format!("{}/{}", network.base, network.prefix);
        match policy.permits_network(network.base.into()) {
            Ok(()) => {
                allowed.push(*network);
                report.networks.push(text);
            }
            Err(refusal) => report.notes.push(format!("{text} is not looked at: {refusal}")),
        }
    }
    report.notes.extend(sweep::closed(&policy, &allowed));
    let gate = Arc::new(Gate::new(policy.asked_by_hand(), Arc::new(SystemClock)));
    let own: Vec<Ipv4Addr> = allowed.iter().filter_map(|network| network.own).collect();
    let context = Context::new(Arc::clone(&gate), Keyring::of([]), "/");
    let addresses: usize = allowed.iter().map(|network| network.hosts().count()).sum();
    say(&format!("asking {addresses} addresses on {}, and who announces itself", report.networks.join(", ")));
    let (heard, told, swept) = tokio::join!(mdns::listen(&own), ssdp::listen(&own), sweep::knock(&gate, &allowed));
    let mut proposals = heard.unwrap_or_else(|error| {
        report.notes.push(format!("mDNS: {error}"));
        Vec::new()
    });
    let (more, notes) = told;
    proposals.extend(more);
    report.notes.extend(notes);
    // What says its address lies elsewhere is not followed there.
    proposals.retain(|proposal| allowed.iter().any(|network| network.contains(proposal.address)));
    proposals.extend(swept);
    let mut seen = BTreeSet::new();
    proposals.retain(|proposal| seen.insert((proposal.address, proposal.key())));
    proposals.truncate(PROPOSALS_MAX);
    say(&format!("polling {} that may be devices, each once", proposals.len()));
    let polls = proposals.into_iter().map(|proposal| confirmed(proposal, &context));
    let polled: Vec<Option<Proposal>> = stream::iter(polls).buffer_unordered(POLLS_AT_ONCE).collect().await;
    let mut found: Vec<Proposal> = polled.into_iter().flatten().collect();
    found.sort_by(|a, b| (a.address, a.key()).cmp(&(b.address, b.key())));
    found.dedup_by(|later, first| later.repeats(first));
    proposal::name_apart(&mut found);
    report.found = found;
    report
}

/// The proposal, if one poll of it gives something, or fails for want of a secret alone.
async fn confirmed(mut proposal: Proposal, context: &Context) -> Option<Proposal> {
    let device = device_of(&proposal)?;
    let mut built = collector::kind_of(&device).and_then(|kind| (kind.build)(&device, context)).ok()?;
    let polled = once::poll(&device, &mut built).await;
    proposal.confirm(&polled).then_some(proposal)
}

fn device_of(proposal: &Proposal) -> Option<Device> {
    let (_, document) = Document::parse_text(&proposal.polled_as()).ok()?;
    document.devices.into_iter().next()
}

impl Report {
    /// A configuration that can be pasted.
    #[must_use]
    pub fn toml(&self) -> String {
        self.found.iter().map(Proposal::toml).collect::<Vec<_>>().join("\n")
    }

    /// One document, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let found: Vec<Value> = self.found.iter().map(Proposal::json).collect();
        json!({ "found": found, "networks": self.networks, "notes": self.notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_asked_address_by_address_without_its_ends_and_without_this_host() {
        let mut network = Neighbourhood::parse("10.1.2.0/29").unwrap();
        network.own = Some(Ipv4Addr::new(10, 1, 2, 3));
        let hosts: Vec<u8> = network.hosts().map(|host| host.octets()[3]).collect();
        assert_eq!(hosts, [1, 2, 4, 5, 6]);
        assert!(network.contains([10, 1, 2, 7].into()) && !network.contains([10, 1, 2, 8].into()));
        let alone = Neighbourhood::parse("10.1.2.3").unwrap();
        assert_eq!(alone.hosts().collect::<Vec<_>>(), [Ipv4Addr::new(10, 1, 2, 3)]);
    }

    #[test]
    fn a_network_that_is_too_large_or_none_is_refused() {
        for (text, said) in [
            ("10.0.0.0/8", "more than 1024 addresses: name a part of it"),
            ("fd00::/64", "only IPv4"),
            ("10.0.0.1/24", "has bits behind its prefix"),
            ("house", "is not a network"),
            ("127.0.0.0/24", "is this host"),
        ] {
            let told = Neighbourhood::parse(text).unwrap_err();
            assert!(told.contains(said), "{text}: {told}");
        }
    }

    #[tokio::test]
    async fn a_network_outside_the_policy_is_not_looked_at() {
        let network = Neighbourhood::parse("203.0.113.0/24").unwrap();
        let report = discover(Policy::default(), &[network], |_| {}).await;
        assert!(report.found.is_empty() && report.networks.is_empty());
        assert!(report.notes[0].contains("is in no network of policy.toml"), "{:?}", report.notes);
    }
}
