//! `udp_queues`: bytes that wait in UDP sockets, to be sent or to be read.
//!
//! To list the sockets, the kernel walks a table that has a place for every two megabytes of memory: it is not asked
//! where it counts no socket.

use super::Out;
use super::files::{Files, Trouble, number};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for (file, ip, counts, protocol) in
        [("proc/net/udp", "v4", "proc/net/sockstat", "UDP:"), ("proc/net/udp6", "v6", "proc/net/sockstat6", "UDP6:")]
    {
        let [tx, rx] = if in_use(files, counts, protocol) == Some(0.0) {
            [0, 0]
        } else {
            match queues(files, file) {
                Err(trouble) if trouble.is_absent() && ip == "v6" => return Ok(()),
                other => other?,
            }
        };
        out.gauge("node_udp_queues", "", &[("queue", "tx"), ("ip", ip)], tx as f64);
        out.gauge("node_udp_queues", "", &[("queue", "rx"), ("ip", ip)], rx as f64);
    }
    Ok(())
}

/// How many sockets of a protocol there are, where the kernel says so: `UDP: inuse 3 mem 2`.
fn in_use(files: &mut Files, file: &str, protocol: &str) -> Option<f64> {
    let line = files.text(file).ok()?.lines().find_map(|line| line.strip_prefix(protocol))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "inuse");
    words.nth(1).and_then(number)
}

/// What waits in all sockets together.
fn queues(files: &mut Files, file: &str) -> Result<[u64; 2], Trouble> {
    let (mut tx, mut rx) = (0_u64, 0_u64);
    for line in files.text(file)?.lines().skip(1) {
        let queues = line.split_ascii_whitespace().nth(4).and_then(|word| word.split_once(':'));
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let Some((Some(sending), Some(reading))) = queues.map(|(tx, rx)| (hexadecimal(tx), hexadecimal(rx))) else {
            return Err(files.malformed("a socket has no queues"));
        };
        tx = tx.saturating_add(sending);
        rx = rx.saturating_add(reading);
    }
    Ok([tx, rx])
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::path::Path;

    use super::*;

    #[test]
    fn sockets_are_counted_where_there_are_some_and_the_count_spares_a_list_without_any() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/net")).unwrap();
        let line = "  1: 00000000:0044 00000000:0000 07 0000000A:00000014 00:00000000\n";
        std::fs::write(dir.path().join("proc/net/udp"), format!("  sl  local_address\n{line}{line}")).unwrap();
        let mut files = Files::new(dir.path(), 2);
        let mut told = |sockstat: &str| {
            std::fs::write(dir.path().join("proc/net/sockstat"), sockstat).unwrap();
            let mut readings = crate::collector::Readings::default();
            read(&mut files, &mut Out { readings: &mut readings, metric: 0 }).unwrap();
            readings.iter().map(|reading| reading.value).collect::<Vec<_>>()
        };
        assert_eq!(told("sockets: used 9\nUDP: inuse 2 mem 1\nUDPLITE: inuse 0\n"), [20.0, 40.0]);
        assert_eq!(told("sockets: used 9\nUDP: inuse 0 mem 0\nUDPLITE: inuse 0\n"), [0.0, 0.0]);
        assert_eq!(told("sockets: used 9\n"), [20.0, 40.0], "a kernel that does not say is asked for the list");
    }

    #[test]
    fn the_kernel_counts_every_socket_that_it_lists() {
        let mut files = Files::new(Path::new("/"), 4);
        if files.text("proc/net/sockstat").is_err() {
            return;
        }
        let _socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(in_use(&mut files, "proc/net/sockstat", "UDP:").unwrap() >= 1.0);
        assert!(files.text("proc/net/udp").unwrap().lines().count() > 1);
    }
}
