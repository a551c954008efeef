//! A record: one sample, as it is named for ever by `(satellite, epoch, seq)`.

use crate::id::Epoch;

/// One sample of one series. `seq` counts from 1 within the epoch, without holes, gaps included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    /// The opening of the buffer that numbered it.
    pub epoch: Epoch,
    /// Its number within the epoch.
    pub seq: u64,
    /// The series, as the epoch numbers them.
    pub series: u32,
    /// When it was measured, milliseconds since 1970 UTC by the satellite's wall clock.
    pub time_ms: i64,
    /// What was measured.
    pub value: f64,
}
