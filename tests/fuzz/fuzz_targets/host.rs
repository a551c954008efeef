//! Fuzzes one parser: see `satellite_tests::foreign`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (satellite_tests::foreign::target("host").read)(bytes));
