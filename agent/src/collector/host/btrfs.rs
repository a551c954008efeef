//! `btrfs`: space that each file system has given to data, metadata and system, and its devices' sizes.

use super::Out;
use super::files::{Files, Trouble};

/// What sysfs counts a device's size in.
const SECTOR_BYTES: f64 = 512.0;

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for name in files.names("sys/fs/btrfs")? {
        // Beside the file systems stands `features`.
        let dir = format!("sys/fs/btrfs/{name}");
        let Ok(label) = files.line(&format!("{dir}/label")) else { continue };
        let label = label.to_owned();
        // As the devices have it, whatever the file system is called since.
        let uuid = files.line_if_any(&format!("{dir}/metadata_uuid")).unwrap_or(name);
        out.gauge("node_btrfs_info", "", &[("uuid", &uuid), ("label", &label)], 1.0);
        let reserved = files.number_if_any(&format!("{dir}/allocation/global_rsv_size")).unwrap_or(0.0);
        out.gauge("node_btrfs_global_rsv_size_bytes", "bytes", &[("uuid", &uuid)], reserved);
        let devices = files.names(&format!("{dir}/devices")).unwrap_or_default();
        for device in &devices {
            let sectors = files.number_if_any(&format!("{dir}/devices/{device}/size")).unwrap_or(0.0);
            let labels = [("uuid", uuid.as_str()), ("device", device)];
            out.gauge("node_btrfs_device_size_bytes", "bytes", &labels, sectors * SECTOR_BYTES);
        }
        for group in ["data", "metadata", "system"] {
            allocation(files, &dir, &uuid, group, devices.len(), out);
        }
    }
    Ok(())
}

fn allocation(files: &mut Files, dir: &str, uuid: &str, group: &str, devices: usize, out: &mut Out<'_>) {
    let dir = format!("{dir}/allocation/{group}");
    let Some(reserved) = files.number_if_any(&format!("{dir}/bytes_reserved")) else { return };
    let labels = [("uuid", uuid), ("block_group_type", group)];
    out.gauge("node_btrfs_reserved_bytes", "bytes", &labels, reserved);
    for mode in files.names(&dir).unwrap_or_default() {
        let Some(used) = files.number_if_any(&format!("{dir}/{mode}/used_bytes")) else { continue };
        let Some(size) = files.number_if_any(&format!("{dir}/{mode}/total_bytes")) else { continue };
        let labels = [("uuid", uuid), ("block_group_type", group), ("mode", mode.as_str())];
        out.gauge("node_btrfs_used_bytes", "bytes", &labels, used);
        out.gauge("node_btrfs_size_bytes", "bytes", &labels, size);
        out.gauge("node_btrfs_allocation_ratio", "", &labels, ratio(&mode, devices as f64));
    }
}

/// Bytes on the devices for a byte stored.
fn ratio(mode: &str, devices: f64) -> f64 {
    match mode {
        "dup" | "raid1" | "raid10" => 2.0,
        "raid1c3" => 3.0,
        "raid1c4" => 4.0,
        "raid5" => devices / (devices - 1.0),
        "raid6" => devices / (devices - 2.0),
        _ => 1.0,
    }
}
