//! The program `satellite`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A sandbox that forbids it has its own ways; a satellite that does not start for it would help nobody.
    drop(satellite_shared::secret::keep_memory_private());
    // Only fails where a provider is installed already: then that one serves.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    satellite_agent::cli::main()
}
