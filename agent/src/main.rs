//! The program `vane-agent`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vane_agent::main_entry()
}
