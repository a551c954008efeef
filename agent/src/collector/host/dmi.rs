//! `dmi`: what the firmware says the machine is. It is read once: nothing of it changes before the next start.

use super::files::{Files, Trouble};
use super::{Out, Read};

/// Files, and the labels they become.
const FILES: [(&str, &str); 20] = [
    ("bios_date", "bios_date"),
    ("bios_release", "bios_release"),
    ("bios_vendor", "bios_vendor"),
    ("bios_version", "bios_version"),
    ("board_asset_tag", "board_asset_tag"),
    ("board_name", "board_name"),
    ("board_serial", "board_serial"),
    ("board_vendor", "board_vendor"),
    ("board_version", "board_version"),
    ("chassis_asset_tag", "chassis_asset_tag"),
    ("chassis_serial", "chassis_serial"),
    ("chassis_vendor", "chassis_vendor"),
    ("chassis_version", "chassis_version"),
    ("product_family", "product_family"),
    ("product_name", "product_name"),
    ("product_serial", "product_serial"),
    ("product_sku", "product_sku"),
    ("product_uuid", "product_uuid"),
    ("product_version", "product_version"),
    ("sys_vendor", "system_vendor"),
];

#[derive(Default)]
pub(super) struct Dmi {
    labels: Vec<(&'static str, String)>,
}

impl Read for Dmi {
    fn read(&mut self, files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
        if self.labels.is_empty() {
            for name in files.names("sys/class/dmi/id")? {
                let Some((file, label)) = FILES.iter().find(|(file, _)| *file == name) else { continue };
                // Serial numbers are for root only.
                if let Some(text) = files.line_if_any(&format!("sys/class/dmi/id/{file}")) {
                    self.labels.push((label, text));
                }
            }
        }
        if self.labels.is_empty() {
            return Err(Trouble::Absent(files.path("sys/class/dmi/id")));
        }
        let labels: Vec<_> = self.labels.iter().map(|(label, text)| (*label, text.as_str())).collect();
        out.gauge("node_dmi_info", "", &labels, 1.0);
        Ok(())
    }
}
