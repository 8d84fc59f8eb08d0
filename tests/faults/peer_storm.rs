//! The storm of the agent's own tests, with more tries.

use tokio::process::Command;

use super::Outcome;

/// Runs it; its own figures are printed by it.
pub async fn run(tries: u64) -> Outcome {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "test",
            "-p",
            "vane-agent",
            "--test",
            "peer_storm",
            "--",
            "--nocapture",
        ])
        .env("VANE_STORM_TRIES", tries.to_string())
        .kill_on_drop(true)
        .status()
        .await
        .expect("cargo runs the agent's tests");
    assert!(status.success(), "{status}");
    Outcome::Passed(format!("{tries} tries, 0 wrong"))
}
