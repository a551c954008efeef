//! A daemon inside the LAN: polls devices, buffers every record until the relay has committed it, streams.
//!
//! The modules stand in the order of the three ways: data, config, credential; then what serves them all.

pub mod collector;

pub mod scheduler;

pub mod ledger;

pub mod recorder;

pub mod buffer;

pub mod uplink;

pub mod config;

pub mod credential;

pub mod policy;

pub mod secrets;

pub mod settings;

pub mod discover;

pub mod kernel_clock;

pub mod local;

pub mod systemd;

pub mod satellite;

pub mod cli;
