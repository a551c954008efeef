//! `udp_queues`: bytes that wait in UDP sockets, to be sent or to be read.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for (file, ip) in [("proc/net/udp", "v4"), ("proc/net/udp6", "v6")] {
        let text = match files.text(file) {
            Err(trouble) if trouble.is_absent() && ip == "v6" => return Ok(()),
            other => other?,
        };
        let (mut tx, mut rx) = (0_u64, 0_u64);
        for line in text.lines().skip(1) {
            let queues = line.split_ascii_whitespace().nth(4).and_then(|word| word.split_once(':'));
            let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
            let Some((Some(sending), Some(reading))) = queues.map(|(tx, rx)| (hexadecimal(tx), hexadecimal(rx))) else {
                return Err(files.malformed("a socket has no queues"));
            };
            tx = tx.saturating_add(sending);
            rx = rx.saturating_add(reading);
        }
        out.gauge("node_udp_queues", "", &[("queue", "tx"), ("ip", ip)], tx as f64);
        out.gauge("node_udp_queues", "", &[("queue", "rx"), ("ip", ip)], rx as f64);
    }
    Ok(())
}
