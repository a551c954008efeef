//! `diskstats`: what each disk read and wrote, how long that took, and what udev knows of the disk.

use super::files::{Files, Trouble, number};
use super::{Out, Read};

/// Larger than anything udev keeps of a device.
const UDEV_BYTES_MAX: usize = 64 << 10;
/// The kernel counts sectors of this size, whatever the disk's are.
const SECTOR_BYTES: f64 = 512.0;
const SECONDS_PER_TICK: f64 = 1.0 / 1000.0;

/// The columns of `/proc/diskstats` after the device's name: metric, unit, and what one of it is worth.
const COLUMNS: [(&str, &str, f64); 17] = [
    ("node_disk_reads_completed_total", "", 1.0),
    ("node_disk_reads_merged_total", "", 1.0),
    ("node_disk_read_bytes_total", "bytes", SECTOR_BYTES),
    ("node_disk_read_time_seconds_total", "seconds", SECONDS_PER_TICK),
    ("node_disk_writes_completed_total", "", 1.0),
    ("node_disk_writes_merged_total", "", 1.0),
    ("node_disk_written_bytes_total", "bytes", SECTOR_BYTES),
    ("node_disk_write_time_seconds_total", "seconds", SECONDS_PER_TICK),
    ("node_disk_io_now", "", 1.0),
    ("node_disk_io_time_seconds_total", "seconds", SECONDS_PER_TICK),
    ("node_disk_io_time_weighted_seconds_total", "seconds", SECONDS_PER_TICK),
    ("node_disk_discards_completed_total", "", 1.0),
    ("node_disk_discards_merged_total", "", 1.0),
    ("node_disk_discarded_sectors_total", "", 1.0),
    ("node_disk_discard_time_seconds_total", "seconds", SECONDS_PER_TICK),
    ("node_disk_flush_requests_total", "", 1.0),
    ("node_disk_flush_requests_time_seconds_total", "seconds", SECONDS_PER_TICK),
];

/// The disks of this poll.
#[derive(Default)]
pub(super) struct Diskstats {
    disks: Vec<[String; 3]>,
}

impl Read for Diskstats {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        self.disks.clear();
        for line in files.text("proc/diskstats")?.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(major), Some(minor), Some(device)) = (words.next(), words.next(), words.next()) else {
                return Err(files.malformed("a disk has no name"));
            };
            if excluded(device) {
                continue;
            }
            let labels = [("device", device)];
            for (word, (name, unit, worth)) in words.zip(COLUMNS) {
                let Some(value) = number(word) else { return Err(files.malformed("a count is no number")) };
                if name == "node_disk_io_now" {
                    out.gauge(name, unit, &labels, value);
                } else {
                    out.counter(name, unit, &labels, value * worth);
                }
            }
            self.disks.push([device, major, minor].map(str::to_owned));
        }
        for [device, major, minor] in &self.disks {
            let text = files.text_up_to(&format!("run/udev/data/b{major}:{minor}"), UDEV_BYTES_MAX).unwrap_or("");
            describe(device, major, minor, &Udev(text), out);
        }
        Ok(())
    }
}

/// What udev knows of a device: `E:ID_MODEL=…`, a line each.
struct Udev<'a>(&'a str);

impl<'a> Udev<'a> {
    fn get(&self, property: &str) -> &'a str {
        let properties = self.0.lines().filter_map(|line| line.strip_prefix("E:")?.split_once('='));
        properties.rev().find(|(name, _)| *name == property).map_or("", |(_, value)| value)
    }
}

fn describe(device: &str, major: &str, minor: &str, udev: &Udev<'_>, out: &mut Out<'_>) {
    let serials = ["SCSI_IDENT_SERIAL", "ID_SERIAL_SHORT"].map(|property| udev.get(property));
    let info = [
        ("device", device),
        ("major", major),
        ("minor", minor),
        ("path", udev.get("ID_PATH")),
        ("wwn", udev.get("ID_WWN")),
        ("model", udev.get("ID_MODEL")),
        ("serial", serials.into_iter().find(|serial| !serial.is_empty()).unwrap_or("")),
        ("revision", udev.get("ID_REVISION")),
    ];
    out.gauge("node_disk_info", "", &info, 1.0);
    let kind = udev.get("ID_FS_TYPE");
    if !kind.is_empty() {
        let labels = [
            ("device", device),
            ("type", kind),
            ("usage", udev.get("ID_FS_USAGE")),
            ("uuid", udev.get("ID_FS_UUID")),
            ("version", udev.get("ID_FS_VERSION")),
        ];
        out.gauge("node_disk_filesystem_info", "", &labels, 1.0);
    }
    let name = udev.get("DM_NAME");
    if !name.is_empty() {
        let labels = [
            ("device", device),
            ("name", name),
            ("uuid", udev.get("DM_UUID")),
            ("vg_name", udev.get("DM_VG_NAME")),
            ("lv_name", udev.get("DM_LV_NAME")),
            ("lv_layer", udev.get("DM_LV_LAYER")),
        ];
        out.gauge("node_disk_device_mapper_info", "", &labels, 1.0);
    }
    if !udev.get("ID_ATA").is_empty() {
        for (property, metric) in [
            ("ID_ATA_WRITE_CACHE", "node_disk_ata_write_cache"),
            ("ID_ATA_WRITE_CACHE_ENABLED", "node_disk_ata_write_cache_enabled"),
            ("ID_ATA_ROTATION_RATE_RPM", "node_disk_ata_rotation_rate_rpm"),
        ] {
            if let Some(value) = number(udev.get(property)) {
                out.gauge(metric, "", &[("device", device)], value);
            }
        }
    }
}

/// `^(ram|loop|fd|(h|s|v|xv)d[a-z]|nvme\d+n\d+p)\d+$`: what is no disk, and parts of one.
fn excluded(device: &str) -> bool {
    let stem = device.trim_end_matches(|letter: char| letter.is_ascii_digit());
    if stem.len() == device.len() {
        return false;
    }
    if let Some(rest) = stem.strip_prefix("nvme") {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        return rest
            .strip_suffix('p')
            .and_then(|rest| rest.split_once('n'))
            .is_some_and(|(a, b)| digits(a) && digits(b));
    }
    let letter_after = |prefix: &str| matches!(stem.strip_prefix(prefix).map(str::as_bytes), Some([b'a'..=b'z']));
    matches!(stem, "ram" | "loop" | "fd") || ["hd", "sd", "vd", "xvd"].into_iter().any(letter_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_disks_are_left_out_and_disks_are_not() {
        for device in ["ram0", "loop12", "fd0", "sda1", "vdb12", "hdc3", "xvda1", "nvme0n1p2", "nvme10n12p1"] {
            assert!(excluded(device), "{device}");
        }
        for device in
            ["sda", "sdaa1", "vda", "nvme0n1", "dm-0", "md127", "zram0", "mmcblk0", "mmcblk0p1", "sr0", "1", ""]
        {
            assert!(!excluded(device), "{device}");
        }
    }
}
