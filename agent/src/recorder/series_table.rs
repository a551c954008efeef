//! Numbers series: the same device, name and labels have the same number for as long as the epoch lasts.

use std::collections::HashMap;

use satellite_shared::id::DeviceName;
use satellite_shared::metric::Series;

use crate::collector::series_of_key;

/// Series one satellite may number until it starts anew: what bounds its memory against a device that invents labels.
const SERIES_MAX: usize = 200_000;

/// Which series has which number.
#[derive(Debug, Default)]
pub struct SeriesTable {
    devices: HashMap<DeviceName, HashMap<Box<[u8]>, u32>>,
    count: u32,
    fresh: Vec<Series>,
}

/// Why a series has no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unnumbered {
    /// Its name or labels break the limits.
    Invalid,
    /// There are too many already.
    TooMany,
}

impl SeriesTable {
    /// The number of a series, new or known.
    pub fn number(&mut self, device: &DeviceName, key: &[u8]) -> Result<u32, Unnumbered> {
        if let Some(&number) = self.devices.get(device).and_then(|keys| keys.get(key)) {
            return Ok(number);
        }
        let series = series_of_key(device, key).ok_or(Unnumbered::Invalid)?;
        if self.count as usize >= SERIES_MAX {
            return Err(Unnumbered::TooMany);
        }
        let number = self.count;
        self.count += 1;
        self.fresh.push(series);
        self.devices.entry(device.clone()).or_default().insert(key.into(), number);
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
