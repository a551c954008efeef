//! `zfs`: the cache, the queues, and each pool's state and traffic.

use super::files::{Files, Trouble, number};
use super::{Out, Read};

const BASE: &str = "proc/spl/kstat/zfs";
/// Files of statistics, and what their metrics begin with.
const FILES: [(&str, &str); 11] = [
    ("abdstats", "node_zfs_abd_"),
    ("arcstats", "node_zfs_arc_"),
    ("dbufstats", "node_zfs_dbuf_"),
    ("dmu_tx", "node_zfs_dmu_tx_"),
    ("dnodestats", "node_zfs_dnode_"),
    ("fm", "node_zfs_fm_"),
    ("vdev_cache_stats", "node_zfs_vdev_cache_"),
    ("vdev_mirror_stats", "node_zfs_vdev_mirror_"),
    ("xuio_stats", "node_zfs_xuio_"),
    ("zfetchstats", "node_zfs_zfetch_"),
    ("zil", "node_zfs_zil_"),
];
const STATES: [&str; 7] = ["online", "degraded", "faulted", "offline", "removed", "unavail", "suspended"];
/// Data sets of one pool that are told; a pool of a thousand snapshots' clones has that many.
const DATASETS_MAX: usize = 1000;

#[derive(Default)]
pub(super) struct Zfs {
    name: String,
}

impl Read for Zfs {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        let pools = files.names(BASE)?;
        for (file, prefix) in FILES {
            match files.text(&format!("{BASE}/{file}")) {
                Ok(text) => self.statistics(text, prefix, &[], out),
                // Each came with one version and may go with another.
                Err(trouble) if trouble.is_absent() => {}
                Err(trouble) => return Err(trouble),
            }
        }
        for pool in pools.iter().filter(|name| !FILES.iter().any(|(file, _)| file == name)) {
            self.pool(files, pool, out);
        }
        Ok(())
    }
}

impl Zfs {
    /// Lines of name, type and value; whole numbers of 64 bits are told.
    fn statistics(&mut self, text: &str, prefix: &str, labels: &[(&str, &str)], out: &mut Out<'_>) {
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(word), Some("3" | "4"), Some(value), None) =
                (words.next(), words.next(), words.next().and_then(number), words.next())
            else {
                continue;
            };
            out.untyped(self.named(prefix, word), labels, value);
        }
    }

    fn pool(&mut self, files: &mut Files, pool: &str, out: &mut Out<'_>) {
        // A pool may be exported while it is read, and a plain file may stand among them.
        let dir = format!("{BASE}/{pool}");
        let Ok(entries) = files.names(&dir) else { return };
        if let Ok(text) = files.text(&format!("{dir}/io")) {
            let mut lines = text.lines().skip_while(|line| !line.starts_with("nread"));
            if let (Some(heads), Some(values)) = (lines.next(), lines.next()) {
                for (word, value) in heads.split_ascii_whitespace().zip(values.split_ascii_whitespace().map(number)) {
                    let Some(value) = value else { continue };
                    out.untyped(self.named("node_zfs_zpool_", word), &[("zpool", pool)], value);
                }
            }
        }
        for entry in entries.iter().filter(|name| name.starts_with("objset-")).take(DATASETS_MAX) {
            let Ok(text) = files.text(&format!("{dir}/{entry}")) else { continue };
            let dataset =
                text.lines().find_map(|line| line.strip_prefix("dataset_name")?.split_ascii_whitespace().nth(1));
            let Some(dataset) = dataset else { continue };
            self.statistics(text, "node_zfs_zpool_dataset_", &[("zpool", pool), ("dataset", dataset)], out);
        }
        if let Ok(state) = files.line(&format!("{dir}/state")) {
            let state = state.to_lowercase();
            for known in STATES {
                let holds = if state == known { 1.0 } else { 0.0 };
                out.gauge("node_zfs_zpool_state", "", &[("zpool", pool), ("state", known)], holds);
            }
        }
    }

    fn named(&mut self, prefix: &str, word: &str) -> &str {
        self.name.clear();
        self.name.push_str(prefix);
        self.name.extend(word.chars().map(|letter| if letter == '-' { '_' } else { letter }));
        &self.name
    }
}
