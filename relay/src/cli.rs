//! What people type.

pub mod account;

pub mod records;
