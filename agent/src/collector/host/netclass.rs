//! `netclass`: what each network interface is, and whether it is up.

use super::Out;
use super::files::{Files, Trouble, number};

/// Attributes that are numbers; a driver leaves out what it can't tell, and refuses some while the interface is down.
const NUMBERS: [(&str, &str, bool); 17] = [
    ("addr_assign_type", "node_network_address_assign_type", false),
    ("carrier", "node_network_carrier", false),
    ("carrier_changes", "node_network_carrier_changes_total", true),
    ("carrier_up_count", "node_network_carrier_up_changes_total", true),
    ("carrier_down_count", "node_network_carrier_down_changes_total", true),
    ("dev_id", "node_network_device_id", false),
    ("dormant", "node_network_dormant", false),
    ("flags", "node_network_flags", false),
    ("ifindex", "node_network_iface_id", false),
    ("iflink", "node_network_iface_link", false),
    ("link_mode", "node_network_iface_link_mode", false),
    ("mtu", "node_network_mtu_bytes", false),
    ("name_assign_type", "node_network_name_assign_type", false),
    ("netdev_group", "node_network_net_dev_group", false),
    ("tx_queue_len", "node_network_transmit_queue_length", false),
    ("type", "node_network_protocol_type", false),
    ("speed", "node_network_speed_bytes", false),
];
/// An interface's speed is in megabits a second.
const BYTES_PER_MEGABIT: f64 = 125_000.0;

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for device in files.names("sys/class/net")? {
        let dir = format!("sys/class/net/{device}/");
        // Beside the interfaces may stand `bonding_masters`, a file; and one may go away while it is read.
        let Ok(state) = files.line(&format!("{dir}operstate")) else { continue };
        let state = state.to_owned();
        let labels = [("device", device.as_str())];
        out.gauge("node_network_up", "", &labels, if state == "up" { 1.0 } else { 0.0 });
        let mut text = |file: &str| files.line_if_any(&format!("{dir}{file}")).unwrap_or_default();
        let [address, broadcast, duplex, alias] = ["address", "broadcast", "duplex", "ifalias"].map(&mut text);
        let info = [
            ("device", device.as_str()),
            ("address", &address),
            ("broadcast", &broadcast),
            ("duplex", &duplex),
            ("operstate", &state),
            ("ifalias", &alias),
        ];
        out.gauge("node_network_info", "", &info, 1.0);
        let mut path = dir;
        let stem = path.len();
        for (file, name, counts) in NUMBERS {
            path.truncate(stem);
            path.push_str(file);
            let Some(value) = files.line(&path).ok().and_then(decimal_or_hexadecimal) else { continue };
            match file {
                _ if counts => out.counter(name, "", &labels, value),
                "speed" => out.gauge(name, "bytes", &labels, value * BYTES_PER_MEGABIT),
                "mtu" => out.gauge(name, "bytes", &labels, value),
                _ => out.gauge(name, "", &labels, value),
            }
        }
    }
    Ok(())
}

fn decimal_or_hexadecimal(text: &str) -> Option<f64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(|value| value as f64),
        None => number(text),
    }
}
