//! `thermal_zone`: temperatures that the firmware watches, and what is done against them.

use super::Out;
use super::files::{Files, Trouble};

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for name in files.names("sys/class/thermal")? {
        let dir = format!("sys/class/thermal/{name}");
        let Some(kind) = files.line_if_any(&format!("{dir}/type")) else { continue };
        if let Some(zone) = name.strip_prefix("thermal_zone") {
            // A zone whose sensor sleeps gives none.
            if let Some(millidegrees) = files.number_if_any(&format!("{dir}/temp")) {
                let labels = [("zone", zone), ("type", &kind)];
                out.gauge("node_thermal_zone_temp", "celsius", &labels, millidegrees / 1000.0);
            }
        } else if let Some(device) = name.strip_prefix("cooling_device") {
            let labels = [("name", device), ("type", &kind)];
            for (file, metric) in
                [("cur_state", "node_cooling_device_cur_state"), ("max_state", "node_cooling_device_max_state")]
            {
                if let Some(state) = files.number_if_any(&format!("{dir}/{file}")) {
                    out.gauge(metric, "", &labels, state);
                }
            }
        }
    }
    Ok(())
}
