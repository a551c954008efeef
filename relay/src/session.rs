//! The relay's end of the wire: one session for each satellite that is connected.
//!
//! [`machine`] decides, as plain values in and out; [`conversation`] reads, writes and asks the registry for it;
//! [`socket`] is the WebSocket under both. [`handshake`] says who may speak at all, [`roster`] who does, and
//! [`changes`] carries to them what an administrator changes.
//!
//! Invariant: identity comes from the client certificate, which is looked up after every handshake and again at
//! every `AUTHENTICATE`; a payload only confirms it.

pub mod machine;

pub mod credit;

pub mod series;

pub mod limits;

pub mod handshake;

pub mod roster;

pub mod changes;

mod conversation;

mod socket;

pub use changes::Changes;
pub use conversation::{Door, Parts};
pub use limits::Limits;
pub use roster::{Connected, Roster};

#[cfg(test)]
mod tests;
