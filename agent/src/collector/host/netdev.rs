//! `netdev`: what each network interface received and sent.

use super::Out;
use super::files::{Files, Trouble, number};

/// The columns of `/proc/net/dev`.
const COLUMNS: [&str; 16] = [
    "node_network_receive_bytes_total",
    "node_network_receive_packets_total",
    "node_network_receive_errs_total",
    "node_network_receive_drop_total",
    "node_network_receive_fifo_total",
    "node_network_receive_frame_total",
    "node_network_receive_compressed_total",
    "node_network_receive_multicast_total",
    "node_network_transmit_bytes_total",
    "node_network_transmit_packets_total",
    "node_network_transmit_errs_total",
    "node_network_transmit_drop_total",
    "node_network_transmit_fifo_total",
    "node_network_transmit_colls_total",
    "node_network_transmit_carrier_total",
    "node_network_transmit_compressed_total",
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let mut devices = Vec::new();
    for line in files.text("proc/net/dev")?.lines().skip(2) {
        // An interface's name may hold a colon of its own.
        let Some((device, columns)) = line.rsplit_once(':') else {
            return Err(files.malformed("a line names no interface"));
        };
        let device = device.trim();
        if device == "lo" {
            continue;
        }
        let mut columns = columns.split_ascii_whitespace();
        for name in COLUMNS {
            let Some(value) = columns.next().and_then(number) else {
                return Err(files.malformed("an interface has not sixteen numbers"));
            };
            out.counter(name, if name.ends_with("bytes_total") { "bytes" } else { "" }, &[("device", device)], value);
        }
        devices.push(device.to_owned());
    }
    for device in devices {
        // The one count that has no column.
        if let Some(value) = files.number_if_any(&format!("sys/class/net/{device}/statistics/rx_nohandler")) {
            out.counter("node_network_receive_nohandler_total", "", &[("device", &device)], value);
        }
    }
    Ok(())
}
