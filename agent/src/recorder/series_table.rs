//! Numbers series: the same device, name and labels have the same number for as long as the epoch lasts.

use std::collections::HashMap;

use satellite_shared::id::DeviceName;
use satellite_shared::limits;
use satellite_shared::metric::Series;

use crate::collector::series_of_key;

/// Series one satellite may number until it starts anew.
const SERIES_MAX: usize = 200_000;
/// And one device: as many as one poll can give. One that invents labels takes no number from the others.
const DEVICE_SERIES_MAX: usize = limits::SAMPLES_PER_POLL_MAX;
/// And the bytes of their names and labels, which stay in memory.
const DEVICE_BYTES_MAX: usize = 6 << 20;

/// Which series has which number.
#[derive(Debug, Default)]
pub struct SeriesTable {
    devices: HashMap<DeviceName, Numbers>,
    count: u32,
    fresh: Vec<Series>,
}

/// The series of one device.
#[derive(Debug, Default)]
struct Numbers {
    by_key: HashMap<Box<[u8]>, u32>,
    bytes: usize,
}

impl Numbers {
    fn is_full(&self, key: &[u8]) -> bool {
        self.by_key.len() >= DEVICE_SERIES_MAX || self.bytes + key.len() > DEVICE_BYTES_MAX
    }
}

/// Why a series has no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unnumbered {
    /// Its name or labels break the limits.
    Invalid,
    /// There are too many of this device already.
    TooManyOfDevice,
    /// There are too many already.
    TooMany,
}

impl SeriesTable {
    /// The number of a series, new or known.
    pub fn number(&mut self, device: &DeviceName, key: &[u8]) -> Result<u32, Unnumbered> {
        let known = self.devices.get(device);
        if let Some(&number) = known.and_then(|numbers| numbers.by_key.get(key)) {
            return Ok(number);
        }
        if known.is_some_and(|numbers| numbers.is_full(key)) {
            return Err(Unnumbered::TooManyOfDevice);
        }
        let series = series_of_key(device, key).ok_or(Unnumbered::Invalid)?;
        if self.count as usize >= SERIES_MAX {
            return Err(Unnumbered::TooMany);
        }
        let number = self.count;
        self.count += 1;
        self.fresh.push(series);
        let numbers = self.devices.entry(device.clone()).or_default();
        numbers.bytes += key.len();
        numbers.by_key.insert(key.into(), number);
        Ok(number)
    }

    /// The series numbered since this was asked last, in order of their numbers.
    pub fn take_fresh(&mut self) -> Vec<Series> {
        std::mem::take(&mut self.fresh)
    }

    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collector::{Family, Readings};

    fn device(name: &str) -> DeviceName {
        name.parse().unwrap()
    }

    fn key(label: &str) -> Vec<u8> {
        let mut readings = Readings::default();
        readings.sample(0, Family::gauge("invented", ""), &[("label", label)], 1.0);
        let reading = readings.iter().next().unwrap();
        reading.key.to_vec()
    }

    #[test]
    fn a_device_that_invents_labels_takes_no_number_from_the_others() {
        let (liar, honest) = (device("liar"), device("honest"));
        let mut table = SeriesTable::default();
        let first = table.number(&liar, &key("0")).unwrap();
        for n in 1..DEVICE_SERIES_MAX {
            table.number(&liar, &key(&n.to_string())).unwrap();
        }
        assert_eq!(table.number(&liar, &key("one more")), Err(Unnumbered::TooManyOfDevice));
        assert_eq!(table.number(&liar, &key("0")), Ok(first), "what has a number keeps it");
        table.number(&honest, &key("0")).expect("another device");
    }

    #[test]
    fn long_labels_use_up_a_devices_share_sooner() {
        let liar = device("liar");
        let mut table = SeriesTable::default();
        let long = "x".repeat(1_000);
        let refused = (0..DEVICE_SERIES_MAX)
            .position(|n| table.number(&liar, &key(&format!("{n}{long}"))) == Err(Unnumbered::TooManyOfDevice));
        assert!(refused.is_some_and(|n| n * 1_000 <= DEVICE_BYTES_MAX), "{refused:?}");
    }
}
