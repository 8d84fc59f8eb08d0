//! A mount namespace of one's own: this program starts itself again in one, and the mounts are
//! gone with it whatever happens.

use std::process::{Command, ExitCode};

/// Why this machine cannot do it.
pub fn cannot() -> Option<String> {
    if !nix::unistd::getuid().is_root() {
        return Some("needs root, to mount".to_owned());
    }
    let mut tried = unshare();
    match tried
        .args(["mount", "-t", "tmpfs", "none", "/mnt"])
        .output()
    {
        Ok(ended) if ended.status.success() => None,
        Ok(ended) => Some(String::from_utf8_lossy(&ended.stderr).trim().to_owned()),
        Err(error) => Some(format!("unshare: {error}")),
    }
}

/// Starts this program again where it may mount.
pub fn inside(subcommand: &str) -> ExitCode {
    let mut again = unshare();
    again.arg(std::env::current_exe().unwrap());
    let status = again.args([subcommand, "--inside"]).status().unwrap();
    ExitCode::from(u8::from(!status.success()))
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command
}
