//! The program `vane`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vane::main_entry()
}
