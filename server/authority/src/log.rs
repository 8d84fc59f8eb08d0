//! The issuance log: every SVID before it is signed, every admin change before it is
//! acknowledged (promise P9).
//!
//! In this version one JSON object per line in `audit.jsonl`, appended by one writer thread:
//! what is queued while one group is synced is the next group, at most [`GROUP_LEAVES`]
//! leaves, so that nobody waits for a timer and a busy server syncs once for many. An append
//! is acknowledged after `fdatasync`; one of leaves that the store keeps, too, when they stand
//! in the file. What was never synced may stand at the end of the file after a crash: a torn
//! tail is cut and reported at start.
//! Not here yet: the Merkle tree and its signed checkpoints (C2SP tlog-tiles), retention.

mod leaf;
mod vitals;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Latency;

pub use leaf::{Detail, Leaf};
pub use vitals::LogHealth;
use vitals::Vitals;
use writer::{Append, OnceDurable, Writer};

/// The file's name in the data directory (NAMES 12).
pub const FILE: &str = "audit.jsonl";
/// The most leaves that are synced together, unless one append alone has more.
pub const GROUP_LEAVES: usize = 256;
/// The most appends that wait for the writer; further callers wait for room.
const QUEUE: usize = 1024;

/// Whether issuing depends on the log (`[log] mode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing is signed or acknowledged before it is durable in the log.
    #[default]
    Required,
    /// Written in the same order, but not waited for; failures are counted and logged.
    BestEffort,
    /// There is no log.
    Off,
}

/// The log. Cheap to share; the writer ends when the last handle is dropped.
#[derive(Debug)]
pub struct Log {
    mode: Mode,
    clock: Arc<dyn Clock>,
    queue: Option<mpsc::Sender<Append>>,
    writer: Option<JoinHandle<()>>,
    repaired: u64,
    failures: Arc<AtomicU64>,
    vitals: Vitals,
}

/// Why something is not in the log.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The file could not be opened, written or synced.
    #[error("cannot {action} the log {}: {source}; {}", path.display(), way_out(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says; shared by all appends of a group.
        source: Arc<io::Error>,
    },
    /// More than a torn tail is wrong with the file.
    #[error(
        "the log {} is damaged before its last {tail} bytes; move it away to start a new one",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How many bytes at the end were looked at.
        tail: u64,
    },
    /// A leaf has no JSON form.
    #[error("a leaf cannot be written: {0}")]
    Leaf(Arc<serde_json::Error>),
    /// The writer has ended.
    #[error("the log is closed")]
    Closed,
}

impl LogError {
    /// Whether a file system has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// What the operator can do about it.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        _ if is_full(error) => "free space on its file system; the log goes on by itself then",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let the user of the server write there"
        }
        _ => "look at the disk and the kernel's log",
    }
}

impl Log {
    /// Opens the log at `path` in [`Mode::Required`], making it with mode 0600 when it is
    /// not there.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Damaged`].
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        Self::open_as(Mode::Required, path, clock)
    }

    /// As [`open`](Self::open) in another mode; [`Mode::Off`] touches no file.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Damaged`], in every mode but off.
    pub fn open_as(mode: Mode, path: &Path, clock: Arc<dyn Clock>) -> Result<Self, LogError> {
        if mode == Mode::Off {
            return Ok(Self::off(clock));
        }
        let (mut writer, repaired) = Writer::open(path)?;
        let (queue, appends) = mpsc::channel(QUEUE);
        let failures = Arc::new(AtomicU64::new(0));
        writer.count_failures_in(Arc::clone(&failures));
        let thread = std::thread::Builder::new()
            .name("audit-log".to_owned())
            .spawn(move || writer.run(appends))
            .map_err(|source| LogError::Io {
                action: "start the writer of",
                path: path.to_owned(),
                source: Arc::new(source),
            })?;
        Ok(Self {
            mode,
            vitals: Vitals::new(clock.monotonic()),
            clock,
            queue: Some(queue),
            writer: Some(thread),
            repaired,
            failures,
        })
    }

    /// No log: every append succeeds and nothing is written.
    #[must_use]
    pub fn off(clock: Arc<dyn Clock>) -> Self {
        Self {
            mode: Mode::Off,
            vitals: Vitals::new(clock.monotonic()),
            clock,
            queue: None,
            writer: None,
            repaired: 0,
            failures: Arc::default(),
        }
    }

    /// Its mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// How many bytes of a torn tail were cut when it was opened.
    #[must_use]
    pub fn repaired_bytes(&self) -> u64 {
        self.repaired
    }

    /// How many groups could not be written since it was opened.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// How it fares now.
    #[must_use]
    pub fn health(&self) -> LogHealth {
        self.vitals.health(self.clock.monotonic())
    }

    /// How long appends took until they were answered.
    #[must_use]
    pub fn latency(&self) -> &Latency {
        self.vitals.latency()
    }

    /// Appends `leaves` in their order, all or none; in [`Mode::Required`] returns when they
    /// are durable. A call that is cancelled may leave them in the log.
    ///
    /// # Errors
    /// [`LogError`] in [`Mode::Required`] only.
    pub async fn append(&self, leaves: &[Leaf]) -> Result<(), LogError> {
        self.send(leaves, None).await
    }

    /// As [`append`](Self::append) for leaves that somebody keeps durably until `once_durable`
    /// is called: returns when they stand in the file. When they cannot be synced after all they
    /// are cut off it again, `once_durable` is not called, and it is a failure that is counted.
    ///
    /// # Errors
    /// [`LogError`] in [`Mode::Required`] only.
    pub async fn append_kept(
        &self,
        leaves: &[Leaf],
        once_durable: impl FnOnce() + Send + 'static,
    ) -> Result<(), LogError> {
        self.send(leaves, Some(Box::new(once_durable))).await
    }

    async fn send(
        &self,
        leaves: &[Leaf],
        once_durable: Option<OnceDurable>,
    ) -> Result<(), LogError> {
        let Some(queue) = self.queue.as_ref().filter(|_| !leaves.is_empty()) else {
            return Ok(());
        };
        let lines = leaf::lines(leaves, self.clock.now())?;
        let (done, acknowledged) = oneshot::channel();
        let append = Append::new(lines, leaves.len(), done, once_durable);
        let waiting = self.vitals.wait(self.clock.monotonic());
        let sent = queue.send(append).await.map_err(|_| LogError::Closed);
        if self.mode == Mode::BestEffort {
            return Ok(());
        }
        let written = match sent {
            Ok(()) => acknowledged.await.unwrap_or(Err(LogError::Closed)),
            Err(error) => Err(error),
        };
        waiting.end(&written, self.clock.monotonic());
        written
    }
}

impl Drop for Log {
    /// Waits for the group that is being written.
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has told its callers by dropping their channels.
            let _ = writer.join();
        }
    }
}

#[cfg(test)]
mod tests;
