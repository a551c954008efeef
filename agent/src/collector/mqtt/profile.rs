//! What a profile is: whoever knows how a kind of device speaks MQTT, so that nobody has to list topics.

use std::time::Duration;

use satellite_shared::metric::Kind;

use super::payload::{Form, PAYLOAD_BYTES_MAX, Said};
use super::topic::Filter;

/// A kind of devices that is known by how it speaks.
pub(super) trait Profile: Send {
    /// What to subscribe to.
    fn filters(&self) -> Vec<Filter>;

    /// How a message of this topic is to be read; `None` where it is of no interest.
    fn form(&self, topic: &str) -> Option<Form>;

    /// The longest message that it has a use for.
    fn payload_bytes_max(&self) -> usize {
        PAYLOAD_BYTES_MAX
    }

    /// What a message tells.
    fn hear(&mut self, topic: &str, said: &Said) -> Heard;

    /// Whether this one says that it is offline. What is held of its measurements is not told until it is back; a broker
    /// sends what it retains only once, so that nothing is thrown away meanwhile.
    fn is_offline(&self, owner: &str) -> bool;

    /// Forgets what it learnt: the connection is gone, and what is retained comes again.
    fn reset(&mut self);
}

/// What a message told a profile.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Heard {
    /// Topics whose series are over: done before anything new is taken up.
    pub(super) forgotten: Vec<String>,
    /// Owners whose series are over, whatever topic told them; likewise.
    pub(super) gone: Vec<String>,
    /// New values.
    pub(super) told: Vec<Told>,
    /// Topics to listen to from now on.
    pub(super) wanted: Vec<String>,
    /// The message can't be understood yet: it is to be kept and said again.
    pub(super) is_early: bool,
    /// What was kept can be understood now.
    pub(super) is_ready: bool,
    /// How many it found and has no room for.
    pub(super) left_out: usize,
}

/// One value of one series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Told {
    /// Whose it is: what goes offline or away as one.
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) kind: Kind,
    /// A word, or empty.
    pub(super) unit: &'static str,
    pub(super) labels: Vec<(&'static str, String)>,
    pub(super) value: f64,
    pub(super) life: Life,
}

impl Told {
    /// A gauge that was measured.
    pub(super) fn gauge(name: impl Into<String>, unit: &'static str, device: &str, value: f64) -> Self {
        let labels = vec![("device", device.to_owned())];
        let (owner, name) = (device.to_owned(), name.into());
        Self { owner, name, kind: Kind::Gauge, unit, labels, value, life: Life::Measured(None) }
    }

    /// The same as a state.
    pub(super) fn lasting(self) -> Self {
        Self { life: Life::State, ..self }
    }

    /// The same as a counter.
    pub(super) fn counting(self) -> Self {
        Self { kind: Kind::Counter, ..self }
    }

    /// The same with one more label.
    pub(super) fn with(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.labels.push((label, value.into()));
        self
    }
}

/// How long a value is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Life {
    /// As long as the connection stands: the broker keeps it, and somebody takes it back when it is over. Presence and lists.
    State,
    /// Until its topic was silent for as long as the device, or this, says.
    Measured(Option<Duration>),
}

/// Reads the keys of a JSON object into what a metric's name may have.
pub(super) fn snake_case(text: &str) -> String {
    let mut name = String::with_capacity(text.len() + 4);
    let mut before = '_';
    for c in text.chars() {
        let c = if c.is_ascii_alphanumeric() { c } else { '_' };
        if c.is_ascii_uppercase() && (before.is_ascii_lowercase() || before.is_ascii_digit()) {
            name.push('_');
        }
        if !(c == '_' && before == '_') {
            name.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    name.trim_end_matches('_').to_owned()
}

/// The word for a unit that devices write as a symbol; empty where it is none that has one.
pub(super) fn unit(symbol: &str) -> &'static str {
    match symbol.trim() {
        "°C" | "C" => "celsius",
        "°F" | "F" => "fahrenheit",
        "K" => "kelvins",
        "%" => "percent",
        "Pa" => "pascals",
        "hPa" | "mbar" => "hectopascals",
        "kPa" => "kilopascals",
        "bar" => "bars",
        "mW" => "milliwatts",
        "W" => "watts",
        "kW" => "kilowatts",
        "VA" => "volt_amperes",
        "var" | "VAr" => "volt_amperes_reactive",
        "Wh" => "watt_hours",
        "kWh" => "kilowatt_hours",
        "MWh" => "megawatt_hours",
        "mV" => "millivolts",
        "V" => "volts",
        "mA" => "milliamperes",
        "A" => "amperes",
        "Hz" => "hertz",
        "lx" => "lux",
        "ppm" => "parts_per_million",
        "ppb" => "parts_per_billion",
        "µg/m³" | "μg/m³" | "ug/m3" => "micrograms_per_cubic_metre",
        "mg/m³" => "milligrams_per_cubic_metre",
        "ms" => "milliseconds",
        "s" | "sec" => "seconds",
        "min" | "minutes" => "minutes",
        "h" | "hour" | "hours" => "hours",
        "d" | "days" => "days",
        "dB" => "decibels",
        "dBm" => "decibel_milliwatts",
        "mm" => "millimetres",
        "cm" => "centimetres",
        "m" => "metres",
        "km" => "kilometres",
        "m/s" => "metres_per_second",
        "km/h" => "kilometres_per_hour",
        "mm/h" => "millimetres_per_hour",
        "L" | "l" => "litres",
        "L/min" | "l/min" => "litres_per_minute",
        "m³" | "m3" => "cubic_metres",
        "m³/h" | "m3/h" => "cubic_metres_per_hour",
        "kg" => "kilograms",
        "g" => "grams",
        "°" => "degrees",
        "W/m²" => "watts_per_square_metre",
        "µS/cm" => "microsiemens_per_centimetre",
        "B" => "bytes",
        "kB" | "KB" => "kilobytes",
        "MB" => "megabytes",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_becomes_a_name() {
        for (key, name) in [
            ("ApparentPower", "apparent_power"),
            ("eCO2", "e_co2"),
            ("PM2.5", "pm2_5"),
            ("device_temperature", "device_temperature"),
            ("state l1", "state_l1"),
            ("Total In", "total_in"),
            ("é", ""),
        ] {
            assert_eq!(snake_case(key), name, "{key}");
        }
    }

    #[test]
    fn the_word_of_a_unit_is_one_that_a_record_may_have() {
        for symbol in ["°C", "%", "hPa", "W", "kWh", "µg/m³", "m³/h", "lx", "dBm"] {
            assert!(satellite_shared::metric::is_metric_name(unit(symbol)), "{symbol}");
        }
        assert_eq!((unit("lqi"), unit("")), ("", ""));
    }
}
