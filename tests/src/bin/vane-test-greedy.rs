//! Opens connections and does nothing with them.
use std::process::ExitCode;

fn main() -> ExitCode {
    vane_tests::greedy::main_entry()
}
