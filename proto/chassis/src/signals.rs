//! SIGTERM and SIGINT become a cancelled token.
//!
//! The first signal asks the process to drain. A second one is left to the
//! caller's shutdown deadline: nothing here ends the process.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The installed handlers.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers: from here on neither signal kills the process.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for a signal and cancels `stop`, or ends when somebody else did.
    pub async fn cancel(mut self, stop: CancellationToken) {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = stop.cancelled() => return,
        };
        tracing::info!(signal = name, "stopping");
        stop.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[tokio::test]
    async fn a_terminate_signal_cancels_the_token() {
        let signals = Signals::install().unwrap();
        let stop = CancellationToken::new();
        kill(Pid::this(), Signal::SIGTERM).unwrap();
        tokio::time::timeout(Duration::from_secs(10), signals.cancel(stop.clone()))
            .await
            .unwrap();
        assert!(stop.is_cancelled());
    }

    #[tokio::test]
    async fn waiting_ends_when_somebody_else_stops() {
        let stop = CancellationToken::new();
        stop.cancel();
        Signals::install().unwrap().cancel(stop).await;
    }
}
