//! The models that are read: where each point stands, as SunSpec's model definitions (version 1.9) have it.
//!
//! Places count from the register behind a model's number and length. A point's scale stands in a register of its own: the
//! power of ten that it is multiplied by.

use satellite_shared::metric::Kind;

use self::Form::{Acc32, F32, I16, U16, U32, U64};

/// A point without a register that scales it.
const NONE: u16 = u16::MAX;
/// Powers of ten that a scale may say.
const SCALE_MAX: i16 = 10;

/// How a point is written. Each has a value that says that the device does not implement it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    U16,
    I16,
    U32,
    U64,
    /// Counts up, and is 0 where nothing counts.
    Acc32,
    F32,
}

/// One number of a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) kind: Kind,
    pub(super) phase: &'static str,
    form: Form,
    at: u16,
    scale: u16,
}

const fn gauge(name: &'static str, unit: &'static str, form: Form, at: u16, scale: u16) -> Point {
    Point { name, unit, kind: Kind::Gauge, phase: "", form, at, scale }
}

const fn counter(name: &'static str, unit: &'static str, form: Form, at: u16, scale: u16) -> Point {
    Point { name, unit, kind: Kind::Counter, phase: "", form, at, scale }
}

/// Registers that a point is read from.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Where the point stands.
    pub(super) own: &'a [u16],
    /// Where its scale stands.
    pub(super) whole: &'a [u16],
}

impl Point {
    const fn of(self, phase: &'static str) -> Self {
        Self { phase, ..self }
    }

    /// The register behind the last of the point and its scale.
    #[cfg(test)]
    pub(super) fn end(&self) -> u16 {
        let words = match self.form {
            U16 | I16 => 1,
            U32 | Acc32 | F32 => 2,
            U64 => 4,
        };
        let scale = if self.scale == NONE { 0 } else { self.scale + 1 };
        scale.max(self.at + words)
    }

    /// The number; `None` where the device has none.
    pub(super) fn value(&self, block: Block<'_>) -> Option<f64> {
        let word = |at: u16| block.own.get(usize::from(at)).copied();
        let long = || Some(u32::from(word(self.at)?) << 16 | u32::from(word(self.at + 1)?));
        let raw = match self.form {
            U16 => f64::from(word(self.at).filter(|word| *word != u16::MAX)?),
            I16 => f64::from(word(self.at).map(u16::cast_signed).filter(|word| *word != i16::MIN)?),
            U32 => f64::from(long().filter(|long| *long != u32::MAX)?),
            U64 => {
                let words = block.own.get(usize::from(self.at)..usize::from(self.at) + 4)?;
                let all = words.iter().fold(0, |all, word| all << 16 | u64::from(*word));
                (all != u64::MAX).then_some(all as f64)?
            }
            Acc32 => f64::from(long().filter(|long| *long != 0)?),
            F32 => Some(f64::from(f32::from_bits(long()?))).filter(|value| value.is_finite())?,
        };
        if self.scale == NONE {
            return Some(raw);
        }
        let scale = block.whole.get(usize::from(self.scale))?.cast_signed();
        (-SCALE_MAX..=SCALE_MAX).contains(&scale).then(|| scaled(raw, scale))
    }
}

/// By division where the scale is negative, as a tenth has no exact value.
fn scaled(raw: f64, scale: i16) -> f64 {
    let power = 10f64.powi(i32::from(scale.unsigned_abs()));
    if scale < 0 { raw / power } else { raw * power }
}

/// What a model is.
pub(super) enum Model {
    /// Who made the device.
    Common,
    /// Numbers.
    Points(&'static [Point]),
    /// Numbers, and others again and again: from this register on, so many registers each, told apart by this label.
    Repeating { whole: &'static [Point], label: &'static str, points: &'static [Point], at: u16, every: u16 },
}

/// The model of a number; `None` where it is stepped over.
pub(super) fn of(number: u16) -> Option<&'static Model> {
    Some(match number {
        1 => &Model::Common,
        101..=103 => &Model::Points(INVERTER),
        111..=113 => &Model::Points(INVERTER_FLOAT),
        124 => &Model::Points(STORAGE),
        160 => &Model::Repeating { whole: &[], label: "string", points: STRINGS, at: 8, every: 20 },
        201..=204 => &Model::Points(METER),
        211..=214 => &Model::Points(METER_FLOAT),
        701 => &Model::Points(DER_AC),
        713 => &Model::Points(DER_STORAGE),
        714 => &Model::Repeating { whole: DER_DC, label: "port", points: DER_PORTS, at: 18, every: 25 },
        802 => &Model::Points(BATTERY),
        _ => return None,
    })
}

const INVERTER: &[Point] = &[
    gauge("sunspec_ac_current_amperes", "amperes", U16, 0, 4),
    gauge("sunspec_ac_phase_current_amperes", "amperes", U16, 1, 4).of("a"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", U16, 2, 4).of("b"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", U16, 3, 4).of("c"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 5, 11).of("ab"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 6, 11).of("bc"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 7, 11).of("ca"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 8, 11).of("a"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 9, 11).of("b"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 10, 11).of("c"),
    gauge("sunspec_ac_power_watts", "watts", I16, 12, 13),
    gauge("sunspec_ac_frequency_hertz", "hertz", U16, 14, 15),
    gauge("sunspec_ac_apparent_power_voltamperes", "voltamperes", I16, 16, 17),
    gauge("sunspec_ac_reactive_power_vars", "vars", I16, 18, 19),
    gauge("sunspec_ac_power_factor_percent", "percent", I16, 20, 21),
    counter("sunspec_ac_energy_watt_hours_total", "watt_hours", Acc32, 22, 24),
    gauge("sunspec_dc_current_amperes", "amperes", U16, 25, 26),
    gauge("sunspec_dc_voltage_volts", "volts", U16, 27, 28),
    gauge("sunspec_dc_power_watts", "watts", I16, 29, 30),
    gauge("sunspec_cabinet_temperature_celsius", "celsius", I16, 31, 35),
    gauge("sunspec_heat_sink_temperature_celsius", "celsius", I16, 32, 35),
    gauge("sunspec_transformer_temperature_celsius", "celsius", I16, 33, 35),
    gauge("sunspec_other_temperature_celsius", "celsius", I16, 34, 35),
    gauge("sunspec_operating_state", "", U16, 36, NONE),
];

const INVERTER_FLOAT: &[Point] = &[
    gauge("sunspec_ac_current_amperes", "amperes", F32, 0, NONE),
    gauge("sunspec_ac_phase_current_amperes", "amperes", F32, 2, NONE).of("a"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", F32, 4, NONE).of("b"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", F32, 6, NONE).of("c"),
    gauge("sunspec_ac_line_voltage_volts", "volts", F32, 8, NONE).of("ab"),
    gauge("sunspec_ac_line_voltage_volts", "volts", F32, 10, NONE).of("bc"),
    gauge("sunspec_ac_line_voltage_volts", "volts", F32, 12, NONE).of("ca"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", F32, 14, NONE).of("a"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", F32, 16, NONE).of("b"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", F32, 18, NONE).of("c"),
    gauge("sunspec_ac_power_watts", "watts", F32, 20, NONE),
    gauge("sunspec_ac_frequency_hertz", "hertz", F32, 22, NONE),
    gauge("sunspec_ac_apparent_power_voltamperes", "voltamperes", F32, 24, NONE),
    gauge("sunspec_ac_reactive_power_vars", "vars", F32, 26, NONE),
    gauge("sunspec_ac_power_factor_percent", "percent", F32, 28, NONE),
    counter("sunspec_ac_energy_watt_hours_total", "watt_hours", F32, 30, NONE),
    gauge("sunspec_dc_current_amperes", "amperes", F32, 32, NONE),
    gauge("sunspec_dc_voltage_volts", "volts", F32, 34, NONE),
    gauge("sunspec_dc_power_watts", "watts", F32, 36, NONE),
    gauge("sunspec_cabinet_temperature_celsius", "celsius", F32, 38, NONE),
    gauge("sunspec_heat_sink_temperature_celsius", "celsius", F32, 40, NONE),
    gauge("sunspec_transformer_temperature_celsius", "celsius", F32, 42, NONE),
    gauge("sunspec_other_temperature_celsius", "celsius", F32, 44, NONE),
    gauge("sunspec_operating_state", "", U16, 46, NONE),
];

const METER: &[Point] = &[
    gauge("sunspec_meter_current_amperes", "amperes", I16, 0, 4),
    gauge("sunspec_meter_phase_current_amperes", "amperes", I16, 1, 4).of("a"),
    gauge("sunspec_meter_phase_current_amperes", "amperes", I16, 2, 4).of("b"),
    gauge("sunspec_meter_phase_current_amperes", "amperes", I16, 3, 4).of("c"),
    gauge("sunspec_meter_voltage_volts", "volts", I16, 5, 13),
    gauge("sunspec_meter_phase_voltage_volts", "volts", I16, 6, 13).of("a"),
    gauge("sunspec_meter_phase_voltage_volts", "volts", I16, 7, 13).of("b"),
    gauge("sunspec_meter_phase_voltage_volts", "volts", I16, 8, 13).of("c"),
    gauge("sunspec_meter_line_voltage_volts", "volts", I16, 10, 13).of("ab"),
    gauge("sunspec_meter_line_voltage_volts", "volts", I16, 11, 13).of("bc"),
    gauge("sunspec_meter_line_voltage_volts", "volts", I16, 12, 13).of("ca"),
    gauge("sunspec_meter_frequency_hertz", "hertz", I16, 14, 15),
    gauge("sunspec_meter_power_watts", "watts", I16, 16, 20),
    gauge("sunspec_meter_phase_power_watts", "watts", I16, 17, 20).of("a"),
    gauge("sunspec_meter_phase_power_watts", "watts", I16, 18, 20).of("b"),
    gauge("sunspec_meter_phase_power_watts", "watts", I16, 19, 20).of("c"),
    gauge("sunspec_meter_apparent_power_voltamperes", "voltamperes", I16, 21, 25),
    gauge("sunspec_meter_reactive_power_vars", "vars", I16, 26, 30),
    gauge("sunspec_meter_power_factor_percent", "percent", I16, 31, 35),
    counter("sunspec_meter_exported_watt_hours_total", "watt_hours", Acc32, 36, 52),
    counter("sunspec_meter_imported_watt_hours_total", "watt_hours", Acc32, 44, 52),
];

const METER_FLOAT: &[Point] = &[
    gauge("sunspec_meter_current_amperes", "amperes", F32, 0, NONE),
    gauge("sunspec_meter_phase_current_amperes", "amperes", F32, 2, NONE).of("a"),
    gauge("sunspec_meter_phase_current_amperes", "amperes", F32, 4, NONE).of("b"),
    gauge("sunspec_meter_phase_current_amperes", "amperes", F32, 6, NONE).of("c"),
    gauge("sunspec_meter_voltage_volts", "volts", F32, 8, NONE),
    gauge("sunspec_meter_phase_voltage_volts", "volts", F32, 10, NONE).of("a"),
    gauge("sunspec_meter_phase_voltage_volts", "volts", F32, 12, NONE).of("b"),
    gauge("sunspec_meter_phase_voltage_volts", "volts", F32, 14, NONE).of("c"),
    gauge("sunspec_meter_line_voltage_volts", "volts", F32, 18, NONE).of("ab"),
    gauge("sunspec_meter_line_voltage_volts", "volts", F32, 20, NONE).of("bc"),
    gauge("sunspec_meter_line_voltage_volts", "volts", F32, 22, NONE).of("ca"),
    gauge("sunspec_meter_frequency_hertz", "hertz", F32, 24, NONE),
    gauge("sunspec_meter_power_watts", "watts", F32, 26, NONE),
    gauge("sunspec_meter_phase_power_watts", "watts", F32, 28, NONE).of("a"),
    gauge("sunspec_meter_phase_power_watts", "watts", F32, 30, NONE).of("b"),
    gauge("sunspec_meter_phase_power_watts", "watts", F32, 32, NONE).of("c"),
    gauge("sunspec_meter_apparent_power_voltamperes", "voltamperes", F32, 34, NONE),
    gauge("sunspec_meter_reactive_power_vars", "vars", F32, 42, NONE),
    gauge("sunspec_meter_power_factor_percent", "percent", F32, 50, NONE),
    counter("sunspec_meter_exported_watt_hours_total", "watt_hours", F32, 58, NONE),
    counter("sunspec_meter_imported_watt_hours_total", "watt_hours", F32, 66, NONE),
];

const STRINGS: &[Point] = &[
    gauge("sunspec_string_current_amperes", "amperes", U16, 9, 0),
    gauge("sunspec_string_voltage_volts", "volts", U16, 10, 1),
    gauge("sunspec_string_power_watts", "watts", U16, 11, 2),
    counter("sunspec_string_energy_watt_hours_total", "watt_hours", Acc32, 12, 3),
    gauge("sunspec_string_temperature_celsius", "celsius", I16, 16, NONE),
    gauge("sunspec_string_operating_state", "", U16, 17, NONE),
];

const STORAGE: &[Point] = &[
    gauge("sunspec_storage_charge_power_max_watts", "watts", U16, 0, 16),
    gauge("sunspec_storage_reserve_percent", "percent", U16, 5, 19),
    gauge("sunspec_storage_charge_percent", "percent", U16, 6, 20),
    gauge("sunspec_storage_available_ampere_hours", "ampere_hours", U16, 7, 21),
    gauge("sunspec_storage_voltage_volts", "volts", U16, 8, 22),
    gauge("sunspec_storage_charge_status", "", U16, 9, NONE),
];

/// What inverters after IEEE 1547-2018 have, beside or instead of 101 to 113.
const DER_AC: &[Point] = &[
    gauge("sunspec_inverter_state", "", U16, 2, NONE),
    gauge("sunspec_grid_connected", "", U16, 3, NONE),
    gauge("sunspec_ac_power_watts", "watts", I16, 8, 114),
    gauge("sunspec_ac_apparent_power_voltamperes", "voltamperes", I16, 9, 116),
    gauge("sunspec_ac_reactive_power_vars", "vars", I16, 10, 117),
    gauge("sunspec_ac_power_factor_ratio", "ratio", I16, 11, 115),
    gauge("sunspec_ac_current_amperes", "amperes", I16, 12, 111),
    gauge("sunspec_ac_line_to_line_voltage_volts", "volts", U16, 13, 112),
    gauge("sunspec_ac_line_to_neutral_voltage_volts", "volts", U16, 14, 112),
    gauge("sunspec_ac_frequency_hertz", "hertz", U32, 15, 113),
    counter("sunspec_ac_energy_watt_hours_total", "watt_hours", U64, 17, 118),
    counter("sunspec_ac_absorbed_watt_hours_total", "watt_hours", U64, 21, 118),
    gauge("sunspec_ambient_temperature_celsius", "celsius", I16, 33, 120),
    gauge("sunspec_cabinet_temperature_celsius", "celsius", I16, 34, 120),
    gauge("sunspec_heat_sink_temperature_celsius", "celsius", I16, 35, 120),
    gauge("sunspec_transformer_temperature_celsius", "celsius", I16, 36, 120),
    gauge("sunspec_switch_temperature_celsius", "celsius", I16, 37, 120),
    gauge("sunspec_other_temperature_celsius", "celsius", I16, 38, 120),
    gauge("sunspec_ac_phase_power_watts", "watts", I16, 39, 114).of("a"),
    gauge("sunspec_ac_phase_power_watts", "watts", I16, 62, 114).of("b"),
    gauge("sunspec_ac_phase_power_watts", "watts", I16, 85, 114).of("c"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", I16, 43, 111).of("a"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", I16, 66, 111).of("b"),
    gauge("sunspec_ac_phase_current_amperes", "amperes", I16, 89, 111).of("c"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 44, 112).of("ab"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 67, 112).of("bc"),
    gauge("sunspec_ac_line_voltage_volts", "volts", U16, 90, 112).of("ca"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 45, 112).of("a"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 68, 112).of("b"),
    gauge("sunspec_ac_phase_voltage_volts", "volts", U16, 91, 112).of("c"),
    gauge("sunspec_throttled_percent", "percent", U16, 108, NONE),
];

const DER_STORAGE: &[Point] = &[
    gauge("sunspec_storage_rated_watt_hours", "watt_hours", U16, 0, 5),
    gauge("sunspec_storage_available_watt_hours", "watt_hours", U16, 1, 5),
    gauge("sunspec_storage_charge_percent", "percent", U16, 2, 6),
    gauge("sunspec_storage_health_percent", "percent", U16, 3, 6),
    gauge("sunspec_storage_state", "", U16, 4, NONE),
];

const DER_DC: &[Point] = &[
    gauge("sunspec_dc_current_amperes", "amperes", I16, 3, 13),
    gauge("sunspec_dc_power_watts", "watts", I16, 4, 15),
    counter("sunspec_dc_injected_watt_hours_total", "watt_hours", U64, 5, 16),
    counter("sunspec_dc_absorbed_watt_hours_total", "watt_hours", U64, 9, 16),
];

const DER_PORTS: &[Point] = &[
    gauge("sunspec_port_type", "", U16, 0, NONE),
    gauge("sunspec_port_current_amperes", "amperes", I16, 10, 13),
    gauge("sunspec_port_voltage_volts", "volts", U16, 11, 14),
    gauge("sunspec_port_power_watts", "watts", I16, 12, 15),
    counter("sunspec_port_injected_watt_hours_total", "watt_hours", U64, 13, 16),
    counter("sunspec_port_absorbed_watt_hours_total", "watt_hours", U64, 17, 16),
    gauge("sunspec_port_temperature_celsius", "celsius", I16, 21, 17),
    gauge("sunspec_port_state", "", U16, 22, NONE),
];

const BATTERY: &[Point] = &[
    gauge("sunspec_battery_rated_ampere_hours", "ampere_hours", U16, 0, 50),
    gauge("sunspec_battery_rated_watt_hours", "watt_hours", U16, 1, 51),
    gauge("sunspec_battery_charge_percent", "percent", U16, 9, 54),
    gauge("sunspec_battery_depth_of_discharge_percent", "percent", U16, 10, 55),
    gauge("sunspec_battery_health_percent", "percent", U16, 11, 56),
    counter("sunspec_battery_cycles_total", "", U32, 12, NONE),
    gauge("sunspec_battery_charge_status", "", U16, 14, NONE),
    gauge("sunspec_battery_state", "", U16, 20, NONE),
    gauge("sunspec_battery_voltage_volts", "volts", U16, 32, 57),
    gauge("sunspec_battery_cell_voltage_max_volts", "volts", U16, 35, 58),
    gauge("sunspec_battery_cell_voltage_min_volts", "volts", U16, 38, 58),
    gauge("sunspec_battery_current_amperes", "amperes", I16, 42, 59),
    gauge("sunspec_battery_power_watts", "watts", I16, 45, 61),
];
