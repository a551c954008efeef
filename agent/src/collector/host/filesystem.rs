//! `filesystem`: how full each mounted file system is.
//!
//! `statfs` waits for as long as a file server is away, so mounts are asked aside and within a time; one that does not
//! answer is told by `node_filesystem_device_error` and not asked again before it has.
//! Which mounts and types are left out is node_exporter's own default, not Debian's, which drops `/mnt` and `/media`:
//! on a home server that is where the disks are.

use std::path::PathBuf;

use rustix::fs::StatFs;

use super::Out;
use super::files::{Files, Trouble};

/// Mounts that are told at all.
const MOUNTS_MAX: usize = 1000;

const TYPES_EXCLUDED: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "overlay",
    "proc",
    "procfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tracefs",
];

/// What is mounted somewhere.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    device: String,
    /// Where, as the kernel says it.
    pub(super) point: String,
    kind: String,
    read_only: bool,
    path: PathBuf,
    /// What it answered, if it did.
    usage: Option<StatFs>,
}

impl Mount {
    /// Asks it, and waits for as long as that takes.
    pub(super) fn ask(&mut self) {
        self.usage = rustix::fs::statfs(&self.path).ok();
    }
}

/// Its samples.
pub(super) fn tell(mount: &Mount, out: &mut Out<'_>) {
    let usage = mount.usage.as_ref();
    let labels = [("device", &*mount.device), ("fstype", &*mount.kind), ("mountpoint", &*mount.point)];
    out.gauge("node_filesystem_device_error", "", &labels, if usage.is_none() { 1.0 } else { 0.0 });
    let Some(usage) = usage else { return };
    let block = usage.f_bsize as f64;
    out.gauge("node_filesystem_size_bytes", "bytes", &labels, usage.f_blocks as f64 * block);
    out.gauge("node_filesystem_free_bytes", "bytes", &labels, usage.f_bfree as f64 * block);
    out.gauge("node_filesystem_avail_bytes", "bytes", &labels, usage.f_bavail as f64 * block);
    out.gauge("node_filesystem_files", "", &labels, usage.f_files as f64);
    out.gauge("node_filesystem_files_free", "", &labels, usage.f_ffree as f64);
    out.gauge("node_filesystem_readonly", "", &labels, if mount.read_only { 1.0 } else { 0.0 });
}

/// What is mounted and not left out; of two mounts at one point the one that hides the other.
pub(super) fn mounts(files: &mut Files) -> Result<Vec<Mount>, Trouble> {
    // The first process sees the machine's mounts; the satellite's own view is what systemd leaves it. Where the first
    // process is hidden, too, the unit hands its table over: `StandardInput=file:/proc/1/mounts`.
    match files.load_long_lines("proc/1/mounts") {
        Err(Trouble::Absent(_) | Trouble::Denied(_)) if files.is_handed_over() => files.load_handed_over()?,
        Err(Trouble::Absent(_) | Trouble::Denied(_)) => files.load_long_lines("proc/mounts")?,
        other => other?,
    }
    let mut mounts: Vec<Mount> = Vec::new();
    let root = files.path("");
    for line in files.loaded()?.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(device), Some(point), Some(kind), Some(options)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(files.malformed("a mount has a device, a place, a type and options"));
        };
        let point = unescape(point);
        if excluded_point(&point) || TYPES_EXCLUDED.contains(&kind) {
            continue;
        }
        let read_only = options.split(',').any(|option| option == "ro");
        let path = root.join(point.trim_start_matches('/'));
        let mount = Mount { device: unescape(device), point, kind: kind.to_owned(), read_only, path, usage: None };
        mounts.retain(|other| other.point != mount.point);
        mounts.push(mount);
    }
    if mounts.len() > MOUNTS_MAX {
        return Err(files.malformed("more than 1000 mounts"));
    }
    Ok(mounts)
}

/// `^/(dev|proc|run/credentials/.+|sys|var/lib/docker/.+|var/lib/containers/storage/.+)($|/)`
fn excluded_point(point: &str) -> bool {
    let Some(point) = point.strip_prefix('/') else { return false };
    let whole = ["dev", "proc", "sys"]
        .iter()
        .any(|name| point.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    let below = ["run/credentials/", "var/lib/docker/", "var/lib/containers/storage/"];
    whole || below.iter().any(|name| point.strip_prefix(name).is_some_and(|rest| !rest.is_empty()))
}

/// White space and backslashes stand as three octal digits.
pub(in crate::collector) fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let octal = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal.filter(u8::is_ascii) {
            Some(letter) => {
                plain.push(char::from(letter));
                rest = &rest[at + 4..];
            }
            None => {
                plain.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::collector::Readings;

    #[test]
    fn mount_points_and_types_are_left_out_as_node_exporter_does() {
        for (point, excluded) in [
            ("/", false),
            ("/dev", true),
            ("/dev/shm", true),
            ("/device", false),
            ("/mnt/pool", false),
            ("/run", false),
            ("/run/credentials/x.service", true),
            ("/run/credentials", false),
            ("/sys/fs/cgroup", true),
            ("/var/lib/docker", false),
            ("/var/lib/docker/", false),
            ("/var/lib/docker/overlay2/x/merged", true),
            ("relative", false),
        ] {
            assert_eq!(excluded_point(point), excluded, "{point}");
        }
    }

    #[test]
    fn white_space_in_a_mount_point_is_read_as_such() {
        assert_eq!(unescape("/mnt/a\\040b\\011c\\134d"), "/mnt/a b\tc\\d");
        assert_eq!(unescape("\\"), "\\");
        assert_eq!(unescape("\\999\\04"), "\\999\\04");
        assert_eq!(unescape("\\377ü\\0"), "\\377ü\\0");
    }

    fn host(mounts: &str) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/1")).unwrap();
        std::fs::write(dir.path().join("proc/1/mounts"), mounts).unwrap();
        let files = Files::new(dir.path(), 2);
        (dir, files)
    }

    fn read(files: &mut Files) -> (Result<(), Trouble>, Vec<(String, f64)>) {
        let mut readings = Readings::default();
        let mut out = Out { readings: &mut readings, metric: 0 };
        let outcome = mounts(files).map(|mounts| {
            for mut mount in mounts {
                mount.ask();
                tell(&mount, &mut out);
            }
        });
        let device = "host".parse().unwrap();
        let named = readings.iter().map(|reading| {
            let series = crate::collector::series_of_key(&device, reading.key).unwrap();
            (format!("{} {}", series.name, series.labels[2].1), reading.value)
        });
        (outcome, named.collect())
    }

    #[test]
    fn a_mount_that_can_not_be_asked_is_told_and_the_others_are_read() {
        let (dir, mut files) = host("a / ext4 ro,x 0 0\nb /gone nfs rw 0 0\nc /loop xfs rw 0 0\n");
        symlink("loop", dir.path().join("loop")).unwrap();
        let (outcome, given) = read(&mut files);
        outcome.unwrap();
        let value = |name: &str| given.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
        assert_eq!(value("node_filesystem_device_error /"), Some(0.0));
        assert_eq!(value("node_filesystem_readonly /"), Some(1.0));
        assert!(value("node_filesystem_size_bytes /").unwrap() > 0.0);
        for point in ["/gone", "/loop"] {
            assert_eq!(value(&format!("node_filesystem_device_error {point}")), Some(1.0));
            assert_eq!(value(&format!("node_filesystem_size_bytes {point}")), None);
        }
    }

    #[test]
    fn of_two_mounts_at_one_point_the_upper_one_is_told() {
        let (_dir, mut files) = host("a / ext4 rw 0 0\nb / btrfs rw 0 0\nc /proc proc rw 0 0\n");
        let mounts = mounts(&mut files).unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!((mounts[0].device.as_str(), mounts[0].kind.as_str()), ("b", "btrfs"));
    }

    #[test]
    fn a_mount_with_a_long_line_hides_none_behind_it() {
        let lower = "/l".repeat(1_800);
        let lines = format!("o /var/x overlay2 rw,lowerdir={lower} 0 0\n").repeat(3);
        let (_dir, mut files) = host(&format!("a / ext4 rw 0 0\n{lines}b /last ext4 rw 0 0\n"));
        let points: Vec<_> = mounts(&mut files).unwrap().into_iter().map(|mount| mount.point).collect();
        assert_eq!(points, ["/", "/var/x", "/last"]);
    }

    #[test]
    fn a_list_of_mounts_that_is_none_is_refused() {
        let (_dir, mut files) = host("a /\n");
        let trouble = read(&mut files).0.unwrap_err();
        assert!(trouble.to_string().ends_with("/proc/1/mounts: a mount has a device, a place, a type and options"));
    }
}
