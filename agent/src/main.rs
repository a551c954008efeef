//! The program `satellite`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Only fails where a provider is installed already: then that one serves.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    satellite_agent::cli::main()
}
