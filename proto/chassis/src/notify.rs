//! What systemd is told (sd_notify(3)): ready, what we do, that we live, who goes on for us.
//!
//! Nothing happens when `NOTIFY_SOCKET` is not set; a message that cannot be sent is logged and
//! hinders nobody. The process answers the watchdog from its runtime, so that one that hangs is
//! found. Sockets that systemd passes are [`crate::given`]'s.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// The way to the service manager; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Notify(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Tells nobody.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The manager that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`,
    /// `WATCHDOG_PID`).
    ///
    /// # Errors
    /// The socket's name is none, or there is no descriptor left.
    pub fn from_env() -> io::Result<Self> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
            return Ok(Self::none());
        };
        let address = match name.as_bytes().split_first() {
            Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(Path::new(&name))?,
        };
        let read = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
        let is_ours = read("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = read("WATCHDOG_USEC").filter(|usec| is_ours && *usec > 0);
        Ok(Self(Some(Arc::new(Manager {
            socket: UnixDatagram::unbound()?,
            address,
            watchdog: watchdog.map(Duration::from_micros),
        }))))
    }

    /// The service serves; `status` is what `systemctl status` shows.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// The service ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=stopping");
    }

    /// The service makes another process its successor, until [`ready`](Self::ready) or
    /// [`goes_on_in`](Self::goes_on_in).
    pub fn reloading(&self) {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let usec = now.map_or(0, |now| now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000);
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={usec}\nSTATUS=a successor takes over"
        ));
    }

    /// The process `pid` is the service from now on.
    pub fn goes_on_in(&self, pid: u32) {
        self.send(&format!("MAINPID={pid}\nREADY=1\nSTATUS=serving"));
    }

    /// Answers the watchdog until `stop`, twice as often as it asks; ends at once when there is
    /// none.
    ///
    /// # Errors
    /// None.
    pub async fn watchdog(self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let Some(every) = self.0.as_ref().and_then(|manager| manager.watchdog) else {
            return Ok(());
        };
        let mut beat = interval((every / 2).max(Duration::from_millis(1)));
        beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = beat.tick() => self.send("WATCHDOG=1"),
            }
        }
    }

    fn send(&self, message: &str) {
        let Some(manager) = &self.0 else { return };
        let sent = manager
            .socket
            .send_to_addr(message.as_bytes(), &manager.address);
        if let Err(error) = sent {
            tracing::warn!(%error, "cannot tell the service manager");
        }
    }
}

/// A status is a line; more would be other messages.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(watchdog: Option<Duration>) -> (tempfile::TempDir, UnixDatagram, Notify) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let notify = Notify(Some(Arc::new(Manager {
            socket: UnixDatagram::unbound().unwrap(),
            address: SocketAddr::from_pathname(path).unwrap(),
            watchdog,
        })));
        (folder, socket, notify)
    }

    fn said(socket: &UnixDatagram) -> String {
        let mut message = [0; 1_024];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_is_told_in_its_words() {
        let (_folder, socket, notify) = manager(None);
        notify.ready("serving\nMAINPID=1");
        assert_eq!(said(&socket), "READY=1\nSTATUS=serving MAINPID=1");
        notify.reloading();
        assert!(said(&socket).starts_with("RELOADING=1\nMONOTONIC_USEC="));
        notify.goes_on_in(7);
        assert_eq!(said(&socket), "MAINPID=7\nREADY=1\nSTATUS=serving");
        notify.stopping();
        assert_eq!(said(&socket), "STOPPING=1\nSTATUS=stopping");
        Notify::none().stopping();
    }

    #[tokio::test]
    async fn the_watchdog_is_answered_until_the_end() {
        let (_folder, socket, notify) = manager(Some(Duration::from_millis(20)));
        let stop = CancellationToken::new();
        let mut tasks = crate::tasks::Tasks::with_token(stop.clone());
        tasks.spawn("watchdog", notify.watchdog(stop.clone()));
        for _ in 0..3 {
            let socket = socket.try_clone().unwrap();
            let beat = tokio::task::spawn_blocking(move || said(&socket));
            assert_eq!(beat.await.unwrap(), "WATCHDOG=1");
        }
        stop.cancel();
        tasks.join(Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_watchdog_there_is_nothing_to_answer() {
        let (_folder, _socket, notify) = manager(None);
        notify.watchdog(CancellationToken::new()).await.unwrap();
    }
}
