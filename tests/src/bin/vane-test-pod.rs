//! A workload for pods.
use std::process::ExitCode;

fn main() -> ExitCode {
    vane_tests::pod::main_entry()
}
