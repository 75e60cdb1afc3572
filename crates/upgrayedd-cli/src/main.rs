//! The `upgrayedd` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(upgrayedd_cli::run(std::env::args_os(), None))
}
