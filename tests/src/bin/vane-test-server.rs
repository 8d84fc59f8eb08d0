//! The server as the tests start it.
use std::process::ExitCode;

fn main() -> ExitCode {
    vane_server::main_entry()
}
