//! Mounts that tests make: whether one is there, and its end.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

/// Whether something of this kind is mounted there.
///
/// # Errors
/// When the kernel's list of mounts can't be read.
pub fn is_there(point: &Path, kind: &str) -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/mounts")?.contains(&format!(" {} {kind} ", point.display())))
}

/// Takes away what is mounted there: now, or when its last user has gone.
pub fn detach(point: &Path) {
    let mut umount = Command::new("umount");
    umount.arg("--lazy").arg(point);
    drop(process::run(&mut umount, ""));
}
