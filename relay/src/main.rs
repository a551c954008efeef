//! The relay's program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A sandbox that forbids it has its own ways; a relay that does not start for it would help nobody.
    drop(satellite_shared::secret::keep_memory_private());
    // An error only means that somebody has installed it before.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    satellite_relay::cli::run(std::env::args_os())
}
