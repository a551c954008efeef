//! Every limit that both ends know, each with its reason.

/// A WebSocket message, either way. Larger ones close the connection.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// A WebSocket frame; larger messages come in several.
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// A text event from a satellite: an `AUTHENTICATE` that announces [`EPOCHS_MAX`] epochs fits.
pub const EVENT_BYTES_MAX: usize = 256 << 10;
/// A configuration document, as JSON.
pub const CONFIG_BYTES_MAX: usize = 256 << 10;
/// Devices in a configuration.
pub const DEVICES_MAX: usize = 1_000;
/// Metrics of one device in a configuration.
pub const METRICS_PER_DEVICE_MAX: usize = 500;
/// The shortest interval a configuration may ask for, in milliseconds.
pub const EVERY_MS_MIN: u64 = 1_000;
/// The longest interval a configuration may ask for, in milliseconds: a year.
pub const EVERY_MS_MAX: u64 = 366 * 24 * 3600 * 1000;
/// The longest a poll may take, in milliseconds.
pub const TIMEOUT_MS_MAX: u64 = 60_000;
/// A device's name.
pub const DEVICE_NAME_BYTES_MAX: usize = 63;
/// A metric's or label's name.
pub const NAME_BYTES_MAX: usize = 256;
/// Labels of one series.
pub const LABELS_MAX: usize = 64;
/// Name, unit and labels of one series together: a descriptor must fit one buffer value.
pub const SERIES_BYTES_MAX: usize = 4 << 10;
/// Series one satellite may have in one epoch.
pub const SERIES_PER_EPOCH_MAX: usize = 1_000_000;
/// Samples one poll of one device may give.
pub const SAMPLES_PER_POLL_MAX: usize = 50_000;
/// A block, series or gap frame: larger values would leave sled's log for files of their own.
pub const BLOCK_BYTES_MAX: usize = 7_000;
/// Records in one block, so that a small frame can't decode into a large one.
pub const BLOCK_RECORDS_MAX: u32 = 65_536;
/// Gaps in one block: each may name an epoch of its own, which a relay has to look up. A satellite writes at most 64.
pub const BLOCK_GAPS_MAX: u32 = 256;
/// A block's payload after decompression.
pub const BLOCK_DECODED_BYTES_MAX: usize = 2 << 20;
/// The text of a gap's detail.
pub const DETAIL_BYTES_MAX: usize = 200;
/// Ranges a satellite may leave open in one epoch before it sends strictly oldest first.
pub const RANGES_PER_EPOCH_MAX: usize = 64;
/// Epochs a satellite may announce at once; it merges none, so it stops opening lanes long before.
pub const EPOCHS_MAX: usize = 1_000;
/// A certificate request, as DER.
pub const CSR_BYTES_MAX: usize = 8 << 10;
/// A body of an enrolment request.
pub const ENROLMENT_BYTES_MAX: usize = 16 << 10;
