//! A gate can fail: a build with a deliberate stall does not pass `vane-bench check`.

use std::process::{Command, ExitStatus};

use vane_tests::process::program;

fn check(stall: &str) -> ExitStatus {
    Command::new(program("vane-bench"))
        .args([
            "check",
            "--only",
            "propagation",
            "--changes",
            "20",
            "--stall",
            stall,
        ])
        .status()
        .unwrap()
}

#[test]
fn check_passes_as_it_is_and_fails_with_a_stall() {
    assert_eq!(check("0ms").code(), Some(0));
    assert_eq!(check("500ms").code(), Some(1));
}
