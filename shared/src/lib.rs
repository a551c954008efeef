//! What a satellite and its relay must agree on, and nothing else.
//!
//! No socket, no path, no runtime: plain values, their limits, and how they are written down.
//! Depends on neither end.

pub mod id;

pub mod clock;

pub mod heartbeat;

pub mod metric;

pub mod record;

pub mod gap;

pub mod ranges;

pub mod config;

pub mod wire;

pub mod enrolment;

pub mod secret;

pub mod privilege;

pub mod limits;
