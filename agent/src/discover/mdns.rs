//! mDNS with DNS-SD (RFC 6762, 6763): devices that say themselves what they are.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent};
use tokio::time::Instant;

use super::LISTEN;
use super::proposal::{Proposal, table};

const FOUND_MAX: usize = 500;
/// Between two looks into its channels.
const TURN: Duration = Duration::from_millis(50);

/// A service, and what becomes of who offers it.
struct Service {
    name: &'static str,
    propose: fn(&str, IpAddr, &ResolvedService) -> Option<Proposal>,
}

const SERVICES: [Service; 8] = [
    Service { name: "_shelly._tcp", propose: shelly },
    Service { name: "_esphomelib._tcp", propose: esphome },
    Service { name: "_http._tcp", propose: http },
    Service { name: "_home-assistant._tcp", propose: home_assistant },
    Service { name: "_prometheus-http._tcp", propose: prometheus },
    Service { name: "_nut._tcp", propose: ups },
    Service { name: "_ipp._tcp", propose: printer },
    Service { name: "_ssh._tcp", propose: ssh },
];

/// Who answers on the networks of these addresses.
pub(super) async fn listen(own: &[Ipv4Addr]) -> Result<Vec<Proposal>, String> {
    if own.is_empty() {
        return Ok(Vec::new());
    }
    browse(own).await.map_err(|error| error.to_string())
}

/// The library has a thread of its own, and channels that are looked into now and then.
async fn browse(own: &[Ipv4Addr]) -> Result<Vec<Proposal>, mdns_sd::Error> {
    let daemon = ServiceDaemon::new()?;
    daemon.disable_interface(IfKind::All)?;
    for address in own {
        daemon.enable_interface(IfKind::Addr(IpAddr::V4(*address)))?;
    }
    let mut receivers = Vec::new();
    for service in &SERVICES {
        receivers.push((service, daemon.browse(&format!("{}.local.", service.name))?));
    }
    let until = Instant::now() + LISTEN;
    let mut found = Vec::new();
    while Instant::now() < until && found.len() < FOUND_MAX {
        for (service, receiver) in &receivers {
            while let Ok(event) = receiver.try_recv() {
                if let ServiceEvent::ServiceResolved(resolved) = event
                    && found.len() < FOUND_MAX
                {
                    found.extend(proposals(service, &resolved));
                }
            }
        }
        tokio::time::sleep(TURN).await;
    }
    // Its thread ends by itself.
    drop(daemon.shutdown()?);
    Ok(found)
}

fn proposals(service: &Service, resolved: &ResolvedService) -> Vec<Proposal> {
    let instance = resolved.get_fullname().split('.').next().unwrap_or_default().to_owned();
    let addresses = resolved.get_addresses_v4();
    let all = addresses.iter().filter_map(|address| (service.propose)(&instance, IpAddr::V4(*address), resolved));
    all.collect()
}

fn proposal(address: IpAddr, collector: &'static str, service: &str, what: &str) -> Proposal {
    Proposal::new(address, collector, format!("mDNS ({service})"), what)
}

/// Generation 1 says no generation.
fn shelly(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    let is_second = service.get_property_val_str("gen").is_some_and(|generation| generation != "1");
    let profile = if is_second { "shelly-gen2" } else { "shelly-gen1" };
    let url = format!("http://{}", at(address, service.get_port(), 80));
    let proposal = proposal(address, "http", "_shelly._tcp", instance).with("profile", profile).with("url", url);
    let mut auth = vec![("user", "admin"), ("secret", "shelly")];
    auth.extend(is_second.then_some(("scheme", "digest")));
    Some(proposal.or_asking("its password", "shelly", vec![("auth", table(&auth))]))
}

/// What it measures is behind `web_server:`, which not every device has.
fn esphome(instance: &str, address: IpAddr, _: &ResolvedService) -> Option<Proposal> {
    Some(proposal(address, "ping", "_esphomelib._tcp", instance).with("address", address.to_string()))
}

fn http(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    let lower = instance.to_ascii_lowercase();
    if lower.starts_with("shelly") {
        return shelly(instance, address, service);
    }
    let url = format!("http://{}", at(address, service.get_port(), 80));
    let proposal = proposal(address, "http", "_http._tcp", instance);
    if lower.starts_with("tasmota") {
        let auth = table(&[("user", "admin"), ("secret", "tasmota")]);
        let proposal = proposal.with("profile", "tasmota").with("url", url);
        return Some(proposal.or_asking("its password", "tasmota", vec![("auth", auth)]));
    }
    let path = service.get_property_val_str("path").filter(|path| path.starts_with('/') && path.len() < 200);
    Some(proposal.with("url", format!("{url}{}", path.unwrap_or("/"))))
}

fn home_assistant(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    let url = format!("http://{}", at(address, service.get_port(), 80));
    let auth = table(&[("secret", "home-assistant")]);
    let proposal = proposal(address, "http", "_home-assistant._tcp", instance).with("profile", "home-assistant");
    Some(proposal.with("url", url).or_asking("its token", "home-assistant", vec![("auth", auth)]))
}

fn prometheus(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    let path = service.get_property_val_str("path").filter(|path| path.starts_with('/')).unwrap_or("/metrics");
    let url = format!("http://{}{path}", at(address, service.get_port(), 80));
    Some(proposal(address, "prometheus", "_prometheus-http._tcp", instance).with("url", url))
}

fn ups(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    Some(proposal(address, "ups", "_nut._tcp", instance).with("address", at(address, service.get_port(), 3493)))
}

fn printer(instance: &str, address: IpAddr, _: &ResolvedService) -> Option<Proposal> {
    Some(proposal(address, "ping", "_ipp._tcp", instance).with("address", address.to_string()))
}

fn ssh(instance: &str, address: IpAddr, service: &ResolvedService) -> Option<Proposal> {
    let to = format!("{}", std::net::SocketAddr::new(address, service.get_port()));
    Some(proposal(address, "tcp", "_ssh._tcp", instance).with("address", to))
}

/// `192.168.1.40`, with its port where that does not go without saying.
fn at(address: IpAddr, port: u16, usual: u16) -> String {
    if port == usual || port == 0 { address.to_string() } else { format!("{address}:{port}") }
}
