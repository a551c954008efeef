//! `conntrack`: connections that the firewall tracks.

use super::Out;
use super::files::{Files, Trouble};

/// The columns that are told, all processors together, and their metrics.
const COLUMNS: [(&str, &str); 8] = [
    ("found", "node_nf_conntrack_stat_found"),
    ("invalid", "node_nf_conntrack_stat_invalid"),
    ("ignore", "node_nf_conntrack_stat_ignore"),
    ("insert", "node_nf_conntrack_stat_insert"),
    ("insert_failed", "node_nf_conntrack_stat_insert_failed"),
    ("drop", "node_nf_conntrack_stat_drop"),
    ("early_drop", "node_nf_conntrack_stat_early_drop"),
    ("search_restart", "node_nf_conntrack_stat_search_restart"),
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let entries = files.number("proc/sys/net/netfilter/nf_conntrack_count")?;
    let limit = files.number("proc/sys/net/netfilter/nf_conntrack_max")?;
    out.gauge("node_nf_conntrack_entries", "", &[], entries);
    out.gauge("node_nf_conntrack_entries_limit", "", &[], limit);

    let mut lines = files.text("proc/net/stat/nf_conntrack")?.lines();
    let heads: Vec<_> = lines.next().unwrap_or_default().split_ascii_whitespace().collect();
    let mut sums = [0_u64; COLUMNS.len()];
    for line in lines {
        for (head, value) in heads.iter().zip(line.split_ascii_whitespace()) {
            if let Some(column) = COLUMNS.iter().position(|(name, _)| name == head) {
                let Ok(value) = u64::from_str_radix(value, 16) else {
                    return Err(files.malformed("a count is no hexadecimal number"));
                };
                sums[column] = sums[column].wrapping_add(value);
            }
        }
    }
    for ((_, name), sum) in COLUMNS.iter().zip(sums) {
        out.gauge(name, "", &[], sum as f64);
    }
    Ok(())
}
