//! The CLI as the tests start it.
use std::process::ExitCode;

fn main() -> ExitCode {
    vane::main_entry()
}
