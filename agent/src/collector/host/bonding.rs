//! `bonding`: how many of a bond's interfaces are there, and how many of them carry it.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    let masters: Vec<String> =
        files.text("sys/class/net/bonding_masters")?.split_ascii_whitespace().map(str::to_owned).collect();
    for master in &masters {
        let dir = format!("sys/class/net/{master}");
        let slaves = files.line(&format!("{dir}/bonding/slaves"))?.to_owned();
        let (mut count, mut active) = (0.0, 0.0);
        for slave in slaves.split_ascii_whitespace() {
            count += 1.0;
            let status = files.line(&format!("{dir}/lower_{slave}/bonding_slave/mii_status"))?;
            active += if status == "up" { 1.0 } else { 0.0 };
        }
        out.gauge("node_bonding_slaves", "", &[("master", master)], count);
        out.gauge("node_bonding_active", "", &[("master", master)], active);
    }
    Ok(())
}
