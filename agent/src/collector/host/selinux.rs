//! `selinux`: whether SELinux is there, and enforces.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let current = match files.number("sys/fs/selinux/enforce") {
        Ok(current) => current,
        Err(trouble) if trouble.is_absent() => {
            out.gauge("node_selinux_enabled", "", &[], 0.0);
            return Ok(());
        }
        Err(trouble) => return Err(trouble),
    };
    out.gauge("node_selinux_enabled", "", &[], 1.0);
    out.gauge("node_selinux_current_mode", "", &[], current);
    let config = files.text("etc/selinux/config").map(str::to_owned).unwrap_or_default();
    let configured = config.lines().rev().find_map(|line| line.trim().strip_prefix("SELINUX="));
    let configured = match configured {
        Some("enforcing") => 1.0,
        Some("permissive") => 0.0,
        _ => -1.0,
    };
    out.gauge("node_selinux_config_mode", "", &[], configured);
    Ok(())
}
