//! Fuzzes the parser that SATELLITE_FUZZ names: see `run`, and `satellite_tests::foreign` for the parsers.
//!
//! What the code that writes such bytes makes is put into the folder that SATELLITE_FUZZ_SEEDS names: without it a fuzzer
//! would have to guess a Parquet file.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use satellite_tests::foreign::{Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| target(&std::env::var("SATELLITE_FUZZ").expect("SATELLITE_FUZZ")));

fn seed() {
    // The fuzzer's own hook ends the program at any panic; what is caught, as the relay does around Parquet, is no crash.
    drop(std::panic::take_hook());
    let Some(dir) = std::env::var_os("SATELLITE_FUZZ_SEEDS").map(std::path::PathBuf::from) else { return };
    for (n, bytes) in (TARGET.made)().into_iter().enumerate() {
        std::fs::write(dir.join(format!("made-{n}")), bytes).expect("SATELLITE_FUZZ_SEEDS can be written to");
    }
}

fuzz_target!(init: seed(), |bytes: &[u8]| (TARGET.read)(bytes));
