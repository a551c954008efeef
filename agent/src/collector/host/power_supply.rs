//! `powersupplyclass`: batteries and mains adapters that the kernel knows: laptops that serve, UPSes on USB HID.

use super::Out;
use super::files::{Files, Trouble};

const CLASS: &str = "sys/class/power_supply";

/// Attributes, what their metrics are called behind `node_power_supply_`, and units.
const AS_IS: [(&str, &str, &str); 10] = [
    ("authentic", "authentic", ""),
    ("calibrate", "calibrate", ""),
    ("capacity", "capacity", ""),
    ("capacity_alert_max", "capacity_alert_max", ""),
    ("capacity_alert_min", "capacity_alert_min", ""),
    ("cycle_count", "cyclecount", ""),
    ("online", "online", ""),
    ("present", "present", ""),
    ("time_to_empty_now", "time_to_empty_seconds", "seconds"),
    ("time_to_full_now", "time_to_full_seconds", "seconds"),
];

/// In millionths of the unit.
const MILLIONTHS: [(&str, &str, &str); 31] = [
    ("current_boot", "current_boot", "amperes"),
    ("current_max", "current_max", "amperes"),
    ("current_now", "current_ampere", "amperes"),
    ("energy_empty", "energy_empty", ""),
    ("energy_empty_design", "energy_empty_design", ""),
    ("energy_full", "energy_full", ""),
    ("energy_full_design", "energy_full_design", ""),
    ("energy_now", "energy_watthour", ""),
    ("voltage_boot", "voltage_boot", "volts"),
    ("voltage_max", "voltage_max", "volts"),
    ("voltage_max_design", "voltage_max_design", "volts"),
    ("voltage_min", "voltage_min", "volts"),
    ("voltage_min_design", "voltage_min_design", "volts"),
    ("voltage_now", "voltage_volt", "volts"),
    ("voltage_ocv", "voltage_ocv", "volts"),
    ("charge_control_limit", "charge_control_limit", ""),
    ("charge_control_limit_max", "charge_control_limit_max", ""),
    ("charge_counter", "charge_counter", ""),
    ("charge_empty", "charge_empty", ""),
    ("charge_empty_design", "charge_empty_design", ""),
    ("charge_full", "charge_full", ""),
    ("charge_full_design", "charge_full_design", ""),
    ("charge_now", "charge_ampere", ""),
    ("charge_term_current", "charge_term_current", "amperes"),
    ("constant_charge_current", "constant_charge_current", "amperes"),
    ("constant_charge_current_max", "constant_charge_current_max", "amperes"),
    ("constant_charge_voltage", "constant_charge_voltage", "volts"),
    ("constant_charge_voltage_max", "constant_charge_voltage_max", "volts"),
    ("precharge_current", "precharge_current", "amperes"),
    ("input_current_limit", "input_current_limit", "amperes"),
    ("power_now", "power_watt", "watts"),
];

/// In tenths of a degree.
const TEMPERATURES: [(&str, &str); 8] = [
    ("temp", "temp_celsius"),
    ("temp_alert_max", "temp_alert_max_celsius"),
    ("temp_alert_min", "temp_alert_min_celsius"),
    ("temp_ambient", "temp_ambient_celsius"),
    ("temp_ambient_alert_max", "temp_ambient_max_celsius"),
    ("temp_ambient_alert_min", "temp_ambient_min_celsius"),
    ("temp_max", "temp_max_celsius"),
    ("temp_min", "temp_min_celsius"),
];

const TEXTS: [&str; 11] = [
    "capacity_level",
    "charge_type",
    "health",
    "manufacturer",
    "model_name",
    "serial_number",
    "status",
    "technology",
    "type",
    "usb_type",
    "scope",
];

pub(super) fn read(files: &mut Files, out: &mut Out<'_>) -> Result<(), Trouble> {
    for supply in files.names(CLASS)? {
        let dir = format!("{CLASS}/{supply}");
        let labels = [("power_supply", supply.as_str())];
        let temperatures = TEMPERATURES.map(|(file, name)| (file, name, "celsius"));
        let as_is = AS_IS.iter().map(|known| (known, 1.0));
        let millionths = MILLIONTHS.iter().map(|known| (known, 1e6));
        let tenths = temperatures.iter().map(|known| (known, 10.0));
        for ((file, name, unit), parts) in as_is.chain(millionths).chain(tenths) {
            if let Some(value) = files.number_if_any(&format!("{dir}/{file}")) {
                out.gauge(&format!("node_power_supply_{name}"), unit, &labels, value / parts);
            }
        }
        let texts = TEXTS.map(|file| files.line_if_any(&format!("{dir}/{file}")).unwrap_or_default());
        let mut info = vec![("power_supply", supply.as_str())];
        info.extend(TEXTS.into_iter().zip(texts.iter().map(String::as_str)).filter(|(_, text)| !text.is_empty()));
        out.gauge("node_power_supply_info", "", &info, 1.0);
    }
    Ok(())
}
