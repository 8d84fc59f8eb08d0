//! The program `vane-server`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vane_server::main_entry()
}
