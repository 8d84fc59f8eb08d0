//! SIGHUP starts a successor: the program as it is on disk now, with the same arguments.
//!
//! It takes over like any other (`takeover`); then this process ends. A successor that does not
//! come so far is logged, and this process goes on. So `systemctl reload` brings a new program
//! or configuration into force, and no connect is refused.

use std::io;
use std::process::Stdio;

use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use vane_chassis::notify::Notify;

/// What systemd gave to this process alone.
const OWN: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// Listens for the signal from here on.
///
/// # Errors
/// What the operating system says.
pub(crate) fn signals() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Starts a successor at each signal, one at a time, until `stop`.
pub(crate) async fn follow(mut hangups: Signal, notify: Notify, stop: CancellationToken) {
    while let Some(Some(())) = stop.run_until_cancelled(hangups.recv()).await {
        tracing::info!("SIGHUP: starting a successor");
        notify.reloading();
        let ended = async { successor()?.wait().await };
        // When it has taken over, this process is stopped.
        match stop.run_until_cancelled(ended).await {
            None => return,
            Some(Ok(status)) => tracing::error!(%status, "the successor ended: going on"),
            Some(Err(error)) => tracing::error!(%error, "cannot start a successor: going on"),
        }
        notify.ready("serving; the last successor did not take over");
    }
}

fn successor() -> io::Result<Child> {
    let mut words = std::env::args_os();
    let program = words
        .next()
        .ok_or_else(|| io::Error::other("this program does not know its name"))?;
    let mut command = Command::new(program);
    for name in OWN {
        command.env_remove(name);
    }
    command.args(words).stdin(Stdio::null()).spawn()
}
