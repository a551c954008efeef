//! `network_address`: the addresses of each network interface. Off unless listed: an address may be a secret of the
//! house. `sysinfo` asks the kernel for them.

use std::net::IpAddr;

use sysinfo::Networks;

use super::files::{Files, Trouble};
use super::{Out, Read};

pub(super) struct NetworkAddress;

impl Read for NetworkAddress {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        files.must_be_real()?;
        let networks = Networks::new_with_refreshed_list().map_err(|error| Trouble::Library(error.to_string()))?;
        for (device, network) in networks.iter() {
            let device = device.to_string_lossy();
            for address in network.ip_networks() {
                let (text, prefix) = (address.addr.to_string(), address.prefix.to_string());
                let labels =
                    [("device", &*device), ("address", &text), ("netmask", &prefix), ("scope", scope(address.addr))];
                out.gauge("node_network_address_info", "", &labels, 1.0);
            }
        }
        Ok(())
    }
}

fn scope(address: IpAddr) -> &'static str {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_loopback() || link_local {
        "link-local"
    } else if address.is_unspecified() || address.is_multicast() {
        ""
    } else {
        "global"
    }
}
