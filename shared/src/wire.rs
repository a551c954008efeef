//! The wire between a satellite and its relay: PROTOCOL.md in types.
//!
//! Control events are JSON text messages `{"event": …, "data": …}`; frames are binary messages, the buffer's own
//! bytes. Unknown fields are tolerated, so that a newer peer can say more; unknown events are answered with `ERROR`.

pub mod version;

pub mod to_relay;

pub mod to_satellite;

pub mod block;

mod columns;

pub use to_relay::ToRelay;
pub use to_satellite::ToSatellite;
