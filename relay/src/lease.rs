//! What a lease allows, decided without asking anybody.

/// Wrong tokens within the window that end a lease.
pub const FAILURES_MAX: i64 = 10;
/// The window, an hour.
pub const FAILURES_WINDOW_MS: i64 = 3_600_000;
