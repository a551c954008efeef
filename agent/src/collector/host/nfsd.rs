//! `nfsd`: what this machine's NFS server is asked, and what it reads and writes for it.

use super::Out;
use super::files::{Files, Trouble, number};
use super::nfs::{VERSION_2, VERSION_3, requests};

/// The fourth version's operations, in the order of their numbers.
const OPERATIONS: [&str; 38] = [
    "",
    "",
    "",
    "Access",
    "Close",
    "Commit",
    "Create",
    "DelegPurge",
    "DelegReturn",
    "GetAttr",
    "GetFH",
    "Link",
    "Lock",
    "Lockt",
    "Locku",
    "Lookup",
    "LookupRoot",
    "Nverify",
    "Open",
    "OpenAttr",
    "OpenConfirm",
    "OpenDgrd",
    "PutFH",
    "",
    "",
    "Read",
    "ReadDir",
    "ReadLink",
    "Remove",
    "Rename",
    "Renew",
    "RestoreFH",
    "SaveFH",
    "SecInfo",
    "SetAttr",
    "Verify",
    "Write",
    "RelLockOwner",
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let text = files.text("proc/net/rpc/nfsd")?;
    for line in text.lines() {
        let Some((word, values)) = line.split_once(' ') else { continue };
        let values: Vec<f64> = values.split_ascii_whitespace().map_while(number).collect();
        tell(word, &values, out);
    }
    Ok(())
}

fn tell(word: &str, values: &[f64], out: &mut Out<'_>) {
    match (word, values) {
        ("rc", [hits, misses, uncached, ..]) => {
            out.counter("node_nfsd_reply_cache_hits_total", "", &[], *hits);
            out.counter("node_nfsd_reply_cache_misses_total", "", &[], *misses);
            out.counter("node_nfsd_reply_cache_nocache_total", "", &[], *uncached);
        }
        ("fh", [stale, ..]) => out.counter("node_nfsd_file_handles_stale_total", "", &[], *stale),
        ("io", [read, written, ..]) => {
            out.counter("node_nfsd_disk_bytes_read_total", "bytes", &[], *read);
            out.counter("node_nfsd_disk_bytes_written_total", "bytes", &[], *written);
        }
        ("th", [threads, ..]) => out.gauge("node_nfsd_server_threads", "", &[], *threads),
        // Between the two stands how deep hits were found.
        ("ra", [size, .., missed]) => {
            out.gauge("node_nfsd_read_ahead_cache_size_blocks", "", &[], *size);
            out.counter("node_nfsd_read_ahead_cache_not_found_total", "", &[], *missed);
        }
        ("net", [_, udp, tcp, connections, ..]) => {
            out.counter("node_nfsd_packets_total", "", &[("proto", "udp")], *udp);
            out.counter("node_nfsd_packets_total", "", &[("proto", "tcp")], *tcp);
            out.counter("node_nfsd_connections_total", "", &[], *connections);
        }
        ("rpc", [calls, _, format, authentication, client, ..]) => {
            out.counter("node_nfsd_server_rpcs_total", "", &[], *calls);
            for (error, count) in [("fmt", format), ("auth", authentication), ("cInt", client)] {
                out.counter("node_nfsd_rpc_errors_total", "", &[("error", error)], *count);
            }
        }
        ("proc2", [_, counts @ ..]) => requests(REQUESTS, "2", &without_null(VERSION_2), counts, out),
        ("proc3", [_, counts @ ..]) => requests(REQUESTS, "3", &without_null(VERSION_3), counts, out),
        ("proc4ops", [_, counts @ ..]) => requests(REQUESTS, "4", &OPERATIONS, counts, out),
        _ => {}
    }
}

const REQUESTS: &str = "node_nfsd_requests_total";

/// A client's empty calls are told, a server's are not.
fn without_null<const N: usize>(mut methods: [&'static str; N]) -> [&'static str; N] {
    methods[0] = "";
    methods
}
