//! `nvme`: which NVMe drives there are, and their state.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for device in files.names("sys/class/nvme")? {
        let mut text = |file: &str| files.line_if_any(&format!("sys/class/nvme/{device}/{file}")).unwrap_or_default();
        let [revision, model, serial, state] = ["firmware_rev", "model", "serial", "state"].map(&mut text);
        let labels = [
            ("device", device.as_str()),
            ("firmware_revision", &revision),
            ("model", &model),
            ("serial", &serial),
            ("state", &state),
        ];
        out.gauge("node_nvme_info", "", &labels, 1.0);
    }
    Ok(())
}
