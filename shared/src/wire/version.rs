//! Which protocol versions there are. Each program speaks the current one and the one before.

/// The version that this program prefers.
pub const CURRENT: u32 = 1;
/// The oldest that it still speaks.
pub const OLDEST: u32 = 1;
/// The WebSocket subprotocol of the current version.
pub const SUBPROTOCOL: &str = "satellite.v1";
/// The path that a satellite upgrades on.
pub const PATH: &str = "/v1/satellite";

/// The newest version that both ends speak.
#[must_use]
pub fn negotiate(oldest: u32, current: u32) -> Option<u32> {
    let version = current.min(CURRENT);
    (version >= oldest && version >= OLDEST).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_taken_and_strangers_are_refused() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 9), Some(CURRENT));
        assert_eq!(negotiate(CURRENT + 1, CURRENT + 2), None);
    }
}
