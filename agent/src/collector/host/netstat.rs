//! `netstat`: what the kernel's IP, TCP, UDP and ICMP count.

use super::files::{Files, Names, Trouble, number};
use super::{Out, Read};

#[derive(Default)]
pub(super) struct Netstat {
    names: [Names; 3],
}

impl Read for Netstat {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        paired(files, "proc/net/netstat", &mut self.names[0], out)?;
        paired(files, "proc/net/snmp", &mut self.names[1], out)?;
        // Absent without IPv6.
        match files.text("proc/net/snmp6") {
            Ok(text) => singles(text, &mut self.names[2], out),
            Err(trouble) if trouble.is_absent() => {}
            Err(trouble) => return Err(trouble),
        }
        Ok(())
    }
}

/// Two lines for a protocol: its fields' names and their values.
fn paired(files: &mut Files, file: &str, names: &mut Names, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = files.text(file)?;
    let mut lines = text.lines();
    let mut place = 0;
    while let (Some(heads), Some(values)) = (lines.next(), lines.next()) {
        let (Some((protocol, heads)), Some((same, values))) = (heads.split_once(": "), values.split_once(": ")) else {
            return Err(files.malformed("a line begins with no protocol"));
        };
        if protocol != same {
            return Err(files.malformed("a protocol's names and values are not a pair of lines"));
        }
        let fields = heads.split(' ').zip(values.split(' '));
        for (field, value) in fields.filter(|(field, _)| wanted(protocol, field)) {
            let Some(value) = number(value) else { return Err(files.malformed("a count is no number")) };
            out.untyped(names.at(place, protocol, field, || format!("node_netstat_{protocol}_{field}")), &[], value);
            place += 1;
        }
    }
    Ok(())
}

/// A line for each field: `Ip6InOctets 4`.
fn singles(text: &str, names: &mut Names, out: &mut Out<'_>) {
    let mut place = 0;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(word), Some(value)) = (words.next(), words.next().and_then(number)) else { continue };
        let Some(at) = word.find('6') else { continue };
        let (protocol, field) = word.split_at(at + 1);
        if wanted(protocol, field) {
            out.untyped(names.at(place, protocol, field, || format!("node_netstat_{protocol}_{field}")), &[], value);
            place += 1;
        }
    }
}

/// `^(.*_(InErrors|InErrs)|Ip_Forwarding|Ip(6|Ext)_(InOctets|OutOctets)|Icmp6?_(InMsgs|OutMsgs)|TcpExt_(Listen.*|
/// Syncookies.*|TCPSynRetrans|TCPTimeouts)|Tcp_(ActiveOpens|InSegs|OutSegs|OutRsts|PassiveOpens|RetransSegs|CurrEstab)|
/// Udp6?_(InDatagrams|OutDatagrams|NoPorts|RcvbufErrors|SndbufErrors))$`
fn wanted(protocol: &str, field: &str) -> bool {
    if matches!(field, "InErrors" | "InErrs") {
        return true;
    }
    match protocol {
        "Ip" => field == "Forwarding",
        "Ip6" | "IpExt" => matches!(field, "InOctets" | "OutOctets"),
        "Icmp" | "Icmp6" => matches!(field, "InMsgs" | "OutMsgs"),
        "TcpExt" => {
            field.starts_with("Listen")
                || field.starts_with("Syncookies")
                || matches!(field, "TCPSynRetrans" | "TCPTimeouts")
        }
        "Tcp" => matches!(
            field,
            "ActiveOpens" | "InSegs" | "OutSegs" | "OutRsts" | "PassiveOpens" | "RetransSegs" | "CurrEstab"
        ),
        "Udp" | "Udp6" => {
            matches!(field, "InDatagrams" | "OutDatagrams" | "NoPorts" | "RcvbufErrors" | "SndbufErrors")
        }
        _ => false,
    }
}
