//! `bulkhead`: the OCI command line. Everything is in the library; this is its entry.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(bulkhead_runtime::cli::main(std::env::args_os()))
}
