//! `xfs`: what each XFS file system did.

use super::Out;
use super::files::{Files, Trouble, number};

const CLASS: &str = "sys/fs/xfs";

/// Lines of a file system's statistics, and their columns' metrics.
const LINES: [(&str, &[&str]); 8] = [
    (
        "extent_alloc",
        &[
            "node_xfs_extent_allocation_extents_allocated_total",
            "node_xfs_extent_allocation_blocks_allocated_total",
            "node_xfs_extent_allocation_extents_freed_total",
            "node_xfs_extent_allocation_blocks_freed_total",
        ],
    ),
    (
        "abt",
        &[
            "node_xfs_allocation_btree_lookups_total",
            "node_xfs_allocation_btree_compares_total",
            "node_xfs_allocation_btree_records_inserted_total",
            "node_xfs_allocation_btree_records_deleted_total",
        ],
    ),
    (
        "blk_map",
        &[
            "node_xfs_block_mapping_reads_total",
            "node_xfs_block_mapping_writes_total",
            "node_xfs_block_mapping_unmaps_total",
            "node_xfs_block_mapping_extent_list_insertions_total",
            "node_xfs_block_mapping_extent_list_deletions_total",
            "node_xfs_block_mapping_extent_list_lookups_total",
            "node_xfs_block_mapping_extent_list_compares_total",
        ],
    ),
    (
        "bmbt",
        &[
            "node_xfs_block_map_btree_lookups_total",
            "node_xfs_block_map_btree_compares_total",
            "node_xfs_block_map_btree_records_inserted_total",
            "node_xfs_block_map_btree_records_deleted_total",
        ],
    ),
    (
        "dir",
        &[
            "node_xfs_directory_operation_lookup_total",
            "node_xfs_directory_operation_create_total",
            "node_xfs_directory_operation_remove_total",
            "node_xfs_directory_operation_getdents_total",
        ],
    ),
    (
        "ig",
        &[
            "node_xfs_inode_operation_attempts_total",
            "node_xfs_inode_operation_found_total",
            "node_xfs_inode_operation_recycled_total",
            "node_xfs_inode_operation_missed_total",
            "node_xfs_inode_operation_duplicates_total",
            "node_xfs_inode_operation_reclaims_total",
            "node_xfs_inode_operation_attribute_changes_total",
        ],
    ),
    ("rw", &["node_xfs_write_calls_total", "node_xfs_read_calls_total"]),
    (
        "vnodes",
        &[
            "node_xfs_vnode_active_total",
            "node_xfs_vnode_allocate_total",
            "node_xfs_vnode_get_total",
            "node_xfs_vnode_hold_total",
            "node_xfs_vnode_release_total",
            "node_xfs_vnode_reclaim_total",
            "node_xfs_vnode_remove_total",
        ],
    ),
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for device in files.names(CLASS)? {
        // Beside the file systems stand their sum, `stats`, and what may be set.
        let Ok(text) = files.text(&format!("{CLASS}/{device}/stats/stats")) else { continue };
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let word = words.next().unwrap_or_default();
            let Some((_, names)) = LINES.iter().find(|(known, _)| *known == word) else { continue };
            for (name, value) in names.iter().zip(words.map_while(number)) {
                out.counter(name, "", &[("device", &device)], value);
            }
        }
    }
    Ok(())
}
