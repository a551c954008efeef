//! `edac`: memory errors that ECC put right, or could not.

use super::Out;
use super::files::{Files, Trouble};

const CONTROLLERS: &str = "sys/devices/system/edac/mc";

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for name in files.names(CONTROLLERS)? {
        let Some(controller) = numbered(&name, "mc") else { continue };
        let dir = format!("{CONTROLLERS}/{name}");
        let corrected = files.number(&format!("{dir}/ce_count"))?;
        out.counter("node_edac_correctable_errors_total", "", &[("controller", controller)], corrected);
        let lost = files.number(&format!("{dir}/ue_count"))?;
        out.counter("node_edac_uncorrectable_errors_total", "", &[("controller", controller)], lost);
        row(files, &dir, "ce_noinfo_count", "ue_noinfo_count", [controller, "unknown"], out)?;
        for name in files.names(&dir)? {
            if let Some(csrow) = numbered(&name, "csrow") {
                row(files, &format!("{dir}/{name}"), "ce_count", "ue_count", [controller, csrow], out)?;
            }
        }
    }
    Ok(())
}

fn row(
    files: &mut Files,
    dir: &str,
    corrected: &str,
    lost: &str,
    [controller, csrow]: [&str; 2],
    out: &mut Out<'_>,
) -> Result<(), Trouble> {
    let labels = [("controller", controller), ("csrow", csrow)];
    let corrected = files.number(&format!("{dir}/{corrected}"))?;
    out.counter("node_edac_csrow_correctable_errors_total", "", &labels, corrected);
    let lost = files.number(&format!("{dir}/{lost}"))?;
    out.counter("node_edac_csrow_uncorrectable_errors_total", "", &labels, lost);
    Ok(())
}

fn numbered<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    name.strip_prefix(prefix).filter(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}
