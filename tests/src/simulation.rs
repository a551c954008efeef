//! Both ends in one thread, with a simulated clock, network and disk: thousands of rounds a minute, each from a seed.
//!
//! The decisions are the programs' own: link, draft, stock and back-off of the satellite; the sessions' machine, intake,
//! and the steps of commit and recovery of the relay. What lies between them is simulated, and fails as the seed says.
//! Deliberately absent: TLS, sled, SQLite, Parquet and the salvage of a damaged buffer, which other tests use for real.

pub mod disk;

pub mod faults;

pub mod network;

pub mod oracle;

pub mod relay;

pub mod satellite;

pub mod storage;

pub mod world;

pub use faults::Sabotage;
pub use oracle::Summary;
pub use world::{Failure, round};
