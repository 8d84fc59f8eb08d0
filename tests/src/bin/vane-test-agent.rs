//! The agent as the tests start it.
use std::process::ExitCode;

fn main() -> ExitCode {
    vane_agent::main_entry()
}
