//! One document of `smartctl --json -x`, as the series that smartctl_exporter makes of it.
//!
//! What a disk does not say is not told: no zero stands for it. Two things are told otherwise than by the exporter:
//! spare and wear are gauges, and of device statistics those without a value are left out.

use serde_json::Value;

use crate::collector::{Family, Readings};

/// Rows of one table of a disk; the longest that drives have are some eighty.
const ROWS_MAX: usize = 256;
/// A text that a drive says of itself.
const TEXT_CHARACTERS_MAX: usize = 100;
/// Bits of smartctl's exit status without which there is nothing to read: what was asked was wrong, or not opened.
const NOT_READ: u64 = 0b11;
/// A data unit of NVMe: a thousand times 512 bytes, whatever the size of a block.
const DATA_UNIT_BYTES: f64 = 512_000.0;

const ATTRIBUTE_FLAGS: [&str; 6] =
    ["prefailure", "updated_online", "performance", "error_rate", "event_count", "auto_keep"];
const STATISTIC_FLAGS: [&str; 4] = ["valid", "normalized", "supports_dsn", "monitored_condition_met"];

/// Numbers that stand at one place: the name behind `smartctl_`, the unit, the place, and by what it is multiplied.
const GAUGES: [(&str, &str, &str, f64); 11] = [
    ("device_capacity_blocks", "", "/user_capacity/blocks", 1.0),
    ("device_capacity_bytes", "bytes", "/user_capacity/bytes", 1.0),
    ("device_nvme_capacity_bytes", "bytes", "/nvme_total_capacity", 1.0),
    ("device_available_spare", "percent", "/nvme_smart_health_information_log/available_spare", 1.0),
    (
        "device_available_spare_threshold",
        "percent",
        "/nvme_smart_health_information_log/available_spare_threshold",
        1.0,
    ),
    ("device_critical_warning", "", "/nvme_smart_health_information_log/critical_warning", 1.0),
    ("device_percentage_used", "percent", "/nvme_smart_health_information_log/percentage_used", 1.0),
    ("scsi_grown_defect_list", "", "/scsi_grown_defect_list", 1.0),
    ("read_total_uncorrected_errors", "", "/scsi_error_counter_log/read/total_uncorrected_errors", 1.0),
    ("write_total_uncorrected_errors", "", "/scsi_error_counter_log/write/total_uncorrected_errors", 1.0),
    ("device_rotation_rate", "", "/rotation_rate", 1.0),
];
const COUNTERS: [(&str, &str, &str, f64); 8] = [
    ("device_power_cycle_count", "", "/power_cycle_count", 1.0),
    ("device_power_cycle_count", "", "/scsi_start_stop_cycle_counter/accumulated_start_stop_cycles", 1.0),
    ("device_media_errors", "", "/nvme_smart_health_information_log/media_errors", 1.0),
    ("device_num_err_log_entries", "", "/nvme_smart_health_information_log/num_err_log_entries", 1.0),
    ("device_bytes_read", "bytes", "/nvme_smart_health_information_log/data_units_read", DATA_UNIT_BYTES),
    ("device_bytes_written", "bytes", "/nvme_smart_health_information_log/data_units_written", DATA_UNIT_BYTES),
    ("device_bytes_read", "bytes", "/scsi_error_counter_log/read/gigabytes_processed", 1e9),
    ("device_bytes_written", "bytes", "/scsi_error_counter_log/write/gigabytes_processed", 1e9),
];
/// Words that name a disk: the label and the place.
const INFO: [(&str, &str); 14] = [
    ("interface", "/device/type"),
    ("protocol", "/device/protocol"),
    ("model_family", "/model_family"),
    ("model_name", "/model_name"),
    ("serial_number", "/serial_number"),
    ("ata_additional_product_id", "/ata_additional_product_id"),
    ("firmware_version", "/firmware_version"),
    ("ata_version", "/ata_version/string"),
    ("sata_version", "/sata_version/string"),
    ("form_factor", "/form_factor/name"),
    ("scsi_vendor", "/scsi_vendor"),
    ("scsi_product", "/scsi_product"),
    ("scsi_revision", "/scsi_revision"),
    ("scsi_version", "/scsi_version"),
];

/// How a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// It was read.
    Read,
    /// It sleeps, this deep, and was left alone: a question would have woken it.
    Asleep(String),
    /// Why it was not read, in smartctl's words.
    Unread(String),
}

/// What smartctl says of one disk.
pub(super) struct Document<'a> {
    /// Its name below `/dev`, as smartctl_exporter spells it.
    pub(super) device: String,
    value: &'a Value,
}

impl<'a> Document<'a> {
    /// The document of the disk that smartctl was asked for by this name.
    pub(super) fn new(asked: &str, value: &'a Value) -> Self {
        let told = value.pointer("/device/info_name").and_then(Value::as_str).unwrap_or(asked);
        Self { device: device(told), value }
    }

    pub(super) fn condition(&self) -> Condition {
        let messages = self.value.pointer("/smartctl/messages").and_then(Value::as_array);
        let texts: Vec<&str> =
            messages.into_iter().flatten().filter_map(|message| message["string"].as_str()).collect();
        for said in &texts {
            let mode = said.strip_prefix("Device is in ").and_then(|rest| rest.split_once(" mode"));
            if let Some((mode, _)) = mode {
                return Condition::Asleep(text(mode));
            }
        }
        let status = self.exit_status();
        if status.is_some_and(|status| status & NOT_READ == 0) {
            return Condition::Read;
        }
        let last = texts.last().map_or_else(|| "nothing that can be read".to_owned(), |last| text(last));
        Condition::Unread(last)
    }

    pub(super) fn exit_status(&self) -> Option<u64> {
        self.value.pointer("/smartctl/exit_status").and_then(Value::as_u64)
    }

    /// Its serial number.
    pub(super) fn serial(&self) -> Option<&str> {
        self.value["serial_number"].as_str().map(str::trim)
    }

    /// The labels of `smartctl_version`.
    pub(super) fn version(&self) -> Option<[(&'static str, String); 4]> {
        let numbers = |path: &str| {
            let parts: Vec<String> =
                self.value.pointer(path)?.as_array()?.iter().take(4).map(Value::to_string).collect();
            Some(parts.join("."))
        };
        Some([
            ("build_info", self.word("/smartctl/build_info").unwrap_or_default()),
            ("json_format_version", numbers("/json_format_version")?),
            ("smartctl_version", numbers("/smartctl/version")?),
            ("svn_revision", self.word("/smartctl/svn_revision").unwrap_or_default()),
        ])
    }

    /// Adds all of it.
    pub(super) fn tell(&self, metric: usize, readings: &mut Readings) {
        let mut out = Out { device: &self.device, metric, readings };
        let words: Vec<(&str, String)> =
            INFO.iter().filter_map(|(label, path)| Some((*label, self.word(path)?))).collect();
        let labels: Vec<(&str, &str)> = words.iter().map(|(label, word)| (*label, word.as_str())).collect();
        out.gauge("device", "", &labels, 1.0);
        for (name, unit, path, worth) in GAUGES {
            match self.number(path) {
                // A disk without a motor says 0.
                Some(0.0) if name == "device_rotation_rate" => {}
                Some(number) => out.gauge(name, unit, &[], number * worth),
                None => {}
            }
        }
        for (name, unit, path, worth) in COUNTERS {
            match self.number(path) {
                // 0 is what a controller says that does not count.
                Some(0.0) if worth == DATA_UNIT_BYTES => {}
                Some(number) => out.counter(name, unit, &[], number * worth),
                None => {}
            }
        }
        if let Some(hours) = self.number("/power_on_time/hours") {
            let minutes = self.number("/power_on_time/minutes").unwrap_or(0.0);
            out.counter("device_power_on_seconds", "seconds", &[], hours * 3600.0 + minutes * 60.0);
        }
        if let Some(passed) = self.value.pointer("/smart_status/passed").and_then(Value::as_bool) {
            // The exporter has it by both names.
            out.gauge("device_smart_status", "", &[], f64::from(u8::from(passed)));
            out.gauge("device_status", "", &[], f64::from(u8::from(passed)));
        }
        self.tell_sizes_and_speeds(&mut out);
        self.tell_attributes(&mut out);
        self.tell_logs(&mut out);
        self.tell_statistics(&mut out);
    }

    fn tell_sizes_and_speeds(&self, out: &mut Out<'_>) {
        for kind in ["logical", "physical"] {
            if let Some(bytes) = self.number(&format!("/{kind}_block_size")) {
                out.gauge("device_block_size", "bytes", &[("blocks_type", kind)], bytes);
            }
        }
        for kind in ["max", "current"] {
            let part = |what: &str| self.number(&format!("/interface_speed/{kind}/{what}"));
            if let (Some(units), Some(bits)) = (part("units_per_second"), part("bits_per_unit")) {
                out.gauge("device_interface_speed", "", &[("speed_type", kind)], units * bits);
            }
        }
        for (kind, value) in self.entries("/temperature") {
            if let Some(celsius) = value.as_f64() {
                out.gauge("device_temperature", "celsius", &[("temperature_type", kind)], celsius);
            }
        }
        for (kind, value) in self.entries("/ata_sct_erc") {
            if let Some(deciseconds) = value["deciseconds"].as_f64() {
                out.gauge("device_erc_seconds", "seconds", &[("op_type", kind)], deciseconds / 10.0);
            }
        }
        if let Some(state) = self.number("/ata_sct_status/device_state/value") {
            out.gauge("device_state", "", &[], state);
        }
        for (kind, path) in [("read", "/scsi_error_counter_log/read"), ("write", "/scsi_error_counter_log/write")] {
            for by in ["rereads_rewrites", "eccfast", "eccdelayed"] {
                if let Some(count) = self.number(&format!("{path}/errors_corrected_by_{by}")) {
                    out.gauge(&format!("{kind}_errors_corrected_by_{by}"), "", &[], count);
                }
            }
        }
    }

    fn tell_attributes(&self, out: &mut Out<'_>) {
        for row in self.rows("/ata_smart_attributes/table") {
            let (Some(id), Some(name)) = (row["id"].as_u64(), row["name"].as_str()) else { continue };
            let (id, name) = (id.to_string(), text(name));
            let (short, long) = (flags_short(row), flags_long(row, &ATTRIBUTE_FLAGS));
            for (kind, value) in [
                ("value", &row["value"]),
                ("worst", &row["worst"]),
                ("thresh", &row["thresh"]),
                ("raw", &row["raw"]["value"]),
            ] {
                let Some(number) = value.as_f64() else { continue };
                let labels = [
                    ("attribute_flags_long", long.as_str()),
                    ("attribute_flags_short", &short),
                    ("attribute_id", &id),
                    ("attribute_name", &name),
                    ("attribute_value_type", kind),
                ];
                out.gauge("device_attribute", "", &labels, number);
            }
        }
    }

    fn tell_logs(&self, out: &mut Out<'_>) {
        for (kind, log) in self.entries("/ata_smart_error_log") {
            if let Some(count) = log["count"].as_f64() {
                out.gauge("device_error_log_count", "", &[("error_log_type", kind)], count);
            }
        }
        for (kind, log) in self.entries("/ata_smart_self_test_log") {
            let labels = [("self_test_log_type", kind)];
            if let Some(count) = log["count"].as_f64() {
                out.gauge("device_self_test_log_count", "", &labels, count);
                // An empty log does not say how many of its tests failed.
                let errors = log["error_count_total"].as_f64().unwrap_or(0.0);
                out.gauge("device_self_test_log_error_count", "", &labels, errors);
            }
        }
    }

    fn tell_statistics(&self, out: &mut Out<'_>) {
        let mut add = |table: &str, row: &Value, short: &str, long: &str| {
            let (Some(name), Some(number)) = (row["name"].as_str(), row["value"].as_f64()) else { return };
            let name = text(name);
            let labels = [
                ("statistic_flags_long", long),
                ("statistic_flags_short", short),
                ("statistic_name", &name),
                ("statistic_table", table),
            ];
            out.gauge("device_statistics", "", &labels, number);
        };
        for page in self.rows("/ata_device_statistics/pages") {
            let table = page["name"].as_str().map(text).unwrap_or_default();
            // Its rows have one name for all.
            if table == "Vendor Specific Statistics" {
                continue;
            }
            for row in page["table"].as_array().into_iter().flatten().take(ROWS_MAX) {
                add(&table, row, &flags_short(row), &flags_long(row, &STATISTIC_FLAGS));
            }
        }
        for row in self.rows("/sata_phy_event_counters/table") {
            add("SATA PHY Event Counters", row, "V---", "valid");
        }
    }

    fn number(&self, path: &str) -> Option<f64> {
        self.value.pointer(path)?.as_f64().filter(|number| number.is_finite())
    }

    fn word(&self, path: &str) -> Option<String> {
        self.value.pointer(path)?.as_str().map(text).filter(|word| !word.is_empty())
    }

    fn rows(&self, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        self.value.pointer(path).and_then(Value::as_array).into_iter().flatten().take(ROWS_MAX)
    }

    fn entries(&self, path: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        let entries = self.value.pointer(path).and_then(Value::as_object).into_iter().flatten();
        entries
            .map(|(key, value)| (key.as_str(), value))
            .filter(|(key, _)| key.len() <= TEXT_CHARACTERS_MAX)
            .take(ROWS_MAX)
    }
}

/// Where the samples of one disk go.
struct Out<'a> {
    device: &'a str,
    metric: usize,
    readings: &'a mut Readings,
}

impl Out<'_> {
    fn gauge(&mut self, name: &str, unit: &str, labels: &[(&str, &str)], value: f64) {
        let name = format!("smartctl_{name}");
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("device", self.device)]).collect();
        self.readings.sample(self.metric, Family::gauge(&name, unit), &labels, value);
    }

    fn counter(&mut self, name: &str, unit: &str, labels: &[(&str, &str)], value: f64) {
        let name = format!("smartctl_{name}");
        let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("device", self.device)]).collect();
        self.readings.sample(self.metric, Family::counter(&name, unit), &labels, value);
    }
}

/// `sda` of `/dev/sda [SAT]`, `bus_0_megaraid_disk_01` of `/dev/bus/0 [megaraid_disk_01]`.
pub(super) fn device(told: &str) -> String {
    let told = told.trim();
    let (path, drive) = told.split_once(" [").map_or((told, ""), |(path, rest)| (path, rest.trim_end_matches(']')));
    let path = path.strip_prefix("/dev/").unwrap_or(path);
    let path = ["disk/by-id/", "disk/by-path/"].iter().find_map(|folder| path.strip_prefix(folder)).unwrap_or(path);
    let name = match path.strip_prefix("bus/") {
        Some(_) if !drive.is_empty() => format!("{path}_{drive}"),
        _ => path.to_owned(),
    };
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' };
    name.chars().take(TEXT_CHARACTERS_MAX).map(plain).collect()
}

/// What a drive says, as a label can hold it.
fn text(said: &str) -> String {
    said.trim().chars().filter(|letter| !letter.is_control()).take(TEXT_CHARACTERS_MAX).collect()
}

fn flags_short(row: &Value) -> String {
    row["flags"]["string"].as_str().map(text).unwrap_or_default()
}

fn flags_long(row: &Value, names: &[&str]) -> String {
    let set = names.iter().filter(|name| row["flags"][**name].as_bool() == Some(true));
    set.copied().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(text: &str) -> (String, Condition) {
        let value: Value = serde_json::from_str(text).unwrap();
        let document = Document::new("/dev/sdx", &value);
        (document.device.clone(), document.condition())
    }

    #[test]
    fn smartctls_own_words_say_how_a_disk_is() {
        for (text, device, expected) in [
            (include_str!("fixtures/qemu_ata.json"), "sda", Condition::Read),
            (include_str!("fixtures/hdd.json"), "sda", Condition::Read),
            (include_str!("fixtures/qemu_nvme.json"), "nvme0", Condition::Read),
            (include_str!("fixtures/asleep.json"), "sdb", Condition::Asleep("SLEEP".into())),
            (
                include_str!("fixtures/usb_bridge.json"),
                "sdx",
                Condition::Unread("/dev/sdb: Unknown USB bridge [0x46f4:0x0001 (0x000)]".into()),
            ),
            (
                include_str!("fixtures/unknown.json"),
                "sdx",
                Condition::Unread("/dev/vda: Unable to detect device type".into()),
            ),
            ("{}", "sdx", Condition::Unread("nothing that can be read".into())),
            (
                r#"{"smartctl": {"exit_status": -1, "messages": 7}}"#,
                "sdx",
                Condition::Unread("nothing that can be read".into()),
            ),
        ] {
            assert_eq!(condition(text), (device.to_owned(), expected));
        }
    }

    #[test]
    fn a_disk_has_the_name_that_smartctl_exporter_gives_it() {
        for (told, name) in [
            ("/dev/sda", "sda"),
            ("/dev/sda [SAT]", "sda"),
            ("/dev/nvme0", "nvme0"),
            ("/dev/bus/0 [megaraid_disk_01]", "bus_0_megaraid_disk_01"),
            ("/dev/disk/by-id/ata-EXAMPLE_1", "ata-EXAMPLE_1"),
            ("\u{1b}[31m/dev/x\"\n", "__31m_dev_x_"),
            ("", ""),
        ] {
            assert_eq!(device(told), name, "{told}");
        }
    }
}
