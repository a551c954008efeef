//! `nfs`: what this machine asks of NFS servers.

use super::Out;
use super::files::{Files, Trouble, number};

/// What each version can be asked, in the order in which the kernel counts it; a name left empty is not told.
pub(super) const VERSION_2: [&str; 18] = [
    "Null", "GetAttr", "SetAttr", "Root", "Lookup", "ReadLink", "Read", "WrCache", "Write", "Create", "Remove",
    "Rename", "Link", "SymLink", "MkDir", "RmDir", "ReadDir", "FsStat",
];
/// The third version's.
pub(super) const VERSION_3: [&str; 22] = [
    "Null",
    "GetAttr",
    "SetAttr",
    "Lookup",
    "Access",
    "ReadLink",
    "Read",
    "Write",
    "Create",
    "MkDir",
    "SymLink",
    "MkNod",
    "Remove",
    "RmDir",
    "Rename",
    "Link",
    "ReadDir",
    "ReadDirPlus",
    "FsStat",
    "FsInfo",
    "PathConf",
    "Commit",
];
/// A client's words for the fourth version's; a server's are others.
const VERSION_4: [&str; 59] = [
    "Null",
    "Read",
    "Write",
    "Commit",
    "Open",
    "OpenConfirm",
    "OpenNoattr",
    "OpenDowngrade",
    "Close",
    "Setattr",
    "FsInfo",
    "Renew",
    "SetClientID",
    "SetClientIDConfirm",
    "Lock",
    "Lockt",
    "Locku",
    "Access",
    "Getattr",
    "Lookup",
    "LookupRoot",
    "Remove",
    "Rename",
    "Link",
    "Symlink",
    "Create",
    "Pathconf",
    "StatFs",
    "ReadLink",
    "ReadDir",
    "ServerCaps",
    "DelegReturn",
    "GetACL",
    "SetACL",
    "FsLocations",
    "ReleaseLockowner",
    "Secinfo",
    "FsidPresent",
    "ExchangeID",
    "CreateSession",
    "DestroySession",
    "Sequence",
    "GetLeaseTime",
    "ReclaimComplete",
    "LayoutGet",
    "GetDeviceInfo",
    "LayoutCommit",
    "LayoutReturn",
    "SecinfoNoName",
    "TestStateID",
    "FreeStateID",
    "GetDeviceList",
    "BindConnToSession",
    "DestroyClientID",
    "Seek",
    "Allocate",
    "DeAllocate",
    "LayoutStats",
    "Clone",
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = files.text("proc/net/rpc/nfs")?;
    for line in text.lines() {
        let Some((word, values)) = line.split_once(' ') else { continue };
        let values: Vec<f64> = values.split_ascii_whitespace().map_while(number).collect();
        match (word, values.as_slice()) {
            ("net", [_, udp, tcp, connections, ..]) => {
                out.counter("node_nfs_packets_total", "", &[("protocol", "udp")], *udp);
                out.counter("node_nfs_packets_total", "", &[("protocol", "tcp")], *tcp);
                out.counter("node_nfs_connections_total", "", &[], *connections);
            }
            ("rpc", [calls, retransmissions, refreshes, ..]) => {
                out.counter("node_nfs_rpcs_total", "", &[], *calls);
                out.counter("node_nfs_rpc_retransmissions_total", "", &[], *retransmissions);
                out.counter("node_nfs_rpc_authentication_refreshes_total", "", &[], *refreshes);
            }
            ("proc2", [_, counts @ ..]) => requests(REQUESTS, "2", &VERSION_2, counts, out),
            ("proc3", [_, counts @ ..]) => requests(REQUESTS, "3", &VERSION_3, counts, out),
            ("proc4", [_, counts @ ..]) => requests(REQUESTS, "4", &VERSION_4, counts, out),
            _ => {}
        }
    }
    Ok(())
}

const REQUESTS: &str = "node_nfs_requests_total";

/// One sample for each method that has a name.
pub(super) fn requests(metric: &str, version: &str, methods: &[&str], counts: &[f64], out: &mut Out<'_>) {
    for (method, count) in methods.iter().zip(counts).filter(|(method, _)| !method.is_empty()) {
        out.counter(metric, "", &[("proto", version), ("method", method)], *count);
    }
}
