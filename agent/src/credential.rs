//! Who this satellite is: key, certificate and token, from the lease to the last renewal.
//!
//! keystore → enrolment → rotation, in the order of the credential way. The private key is made here and never leaves.

pub mod keystore;

pub mod key;

pub mod pin;

pub mod enrolment;

pub mod rotation;

pub mod verification_time;

pub use keystore::Identity;
