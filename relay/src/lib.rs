//! Leases, enrols and configures satellites, and commits what they send to storage before it acknowledges it.
//!
//! The modules stand in the order of the three ways: data, config, credential; then what serves them all.

pub mod session;

pub mod ingest;

pub mod sink;

pub mod registry;

pub mod lease;

pub mod enrolment;

pub mod authority;

pub mod data_dir;

pub mod listener;

pub mod web;

pub mod settings;

pub mod systemd;

pub mod relay;

pub mod cli;
