//! The one thread that writes the file.
//!
//! Invariant: `durable` bytes of the file are synced; whatever lies behind
//! them belongs to the group in hand. After an error the file is opened again and cut there,
//! so that a full disk is over when there is space again and a failed sync is never
//! mistaken for a good one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::IgnoredAny;
use tokio::sync::{mpsc, oneshot};

use super::{GROUP_LEAVES, LogError};

/// How far back from the end a torn tail may begin: more than the largest group.
const TAIL: u64 = 16 * 1024 * 1024;
/// So long a busy writer lets appends gather before it syncs (DESIGN: at most 1 ms, and a sleep
/// takes up to 0.1 ms longer): a sync costs as much CPU as a signature. A caller that is alone
/// never waits.
const GATHER: Duration = Duration::from_micros(900);

/// Lines that are written and synced whole.
pub(super) struct Append {
    lines: Vec<u8>,
    leaves: usize,
    /// Until the caller is answered.
    done: Option<oneshot::Sender<Result<(), LogError>>>,
    /// Of a caller who does not wait until they are durable.
    once_durable: Option<OnceDurable>,
}

/// Told that lines are durable.
pub(super) type OnceDurable = Box<dyn FnOnce() + Send>;

impl Append {
    pub(super) fn new(
        lines: Vec<u8>,
        leaves: usize,
        done: oneshot::Sender<Result<(), LogError>>,
        once_durable: Option<OnceDurable>,
    ) -> Self {
        Self {
            lines,
            leaves,
            done: Some(done),
            once_durable,
        }
    }

    /// The lines stand in the file.
    pub(super) fn is_written(&mut self) {
        if self.once_durable.is_some() {
            self.answer(Ok(()));
        }
    }

    /// They are durable, or will not be.
    pub(super) fn end(mut self, result: &Result<(), LogError>) {
        self.answer(result.clone());
        if let Some(once_durable) = self.once_durable.filter(|_| result.is_ok()) {
            once_durable();
        }
    }

    fn answer(&mut self, result: Result<(), LogError>) {
        if let Some(done) = self.done.take() {
            // A caller that went away needs no answer.
            let _ = done.send(result);
        }
    }
}

pub(super) struct Writer {
    path: PathBuf,
    /// None after an error: to be opened again.
    file: Option<File>,
    durable: u64,
    failures: Arc<AtomicU64>,
}

impl Writer {
    /// Opens the file, cuts a torn tail and says how many bytes that were.
    pub(super) fn open(path: &Path) -> Result<(Self, u64), LogError> {
        let failed = |action| move |source| io_error(action, path, source);
        let mut file = open_file(path).map_err(failed("open"))?;
        let length = file.metadata().map_err(failed("open"))?.len();
        let durable = match good_end(&mut file, length).map_err(failed("read"))? {
            Some(end) => end,
            None => {
                return Err(LogError::Damaged {
                    path: path.to_owned(),
                    tail: TAIL.min(length),
                });
            }
        };
        let torn = length - durable;
        if torn > 0 {
            file.set_len(durable).map_err(failed("cut"))?;
            tracing::warn!(path = %path.display(), bytes = torn, "cut a torn tail of the log");
        }
        file.sync_all().map_err(failed("sync"))?;
        sync_parent(path).map_err(failed("sync"))?;
        let writer = Self {
            path: path.to_owned(),
            file: Some(file),
            durable,
            failures: Arc::default(),
        };
        Ok((writer, torn))
    }

    pub(super) fn count_failures_in(&mut self, failures: Arc<AtomicU64>) {
        self.failures = failures;
    }

    /// Writes until the last sender is gone.
    pub(super) fn run(mut self, mut appends: mpsc::Receiver<Append>) {
        let mut is_busy = false;
        while let Some(first) = appends.blocking_recv() {
            if is_busy && first.leaves < GROUP_LEAVES {
                std::thread::sleep(GATHER);
            }
            let mut group = gather(first, &mut appends);
            is_busy = group.len() > 1;
            let result = self.write_group(&mut group);
            if let Err(error) = &result {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, leaves = group.len(), "log was not written");
            }
            group.into_iter().for_each(|append| append.end(&result));
        }
    }

    fn write_group(&mut self, group: &mut [Append]) -> Result<(), LogError> {
        let lines = match &mut *group {
            [one] => std::mem::take(&mut one.lines),
            all => {
                let lines: Vec<&[u8]> = all.iter().map(|one| one.lines.as_slice()).collect();
                lines.concat()
            }
        };
        self.write(&lines, || group.iter_mut().for_each(Append::is_written))
    }

    /// Writes `bytes`, says that they stand there, and syncs.
    pub(super) fn write(&mut self, bytes: &[u8], written: impl FnOnce()) -> Result<(), LogError> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self
                .reopen()
                .map_err(|source| io_error("open", &self.path, source))?,
        };
        let stand = file.write_all(bytes).map(|()| written());
        match stand.and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.durable += bytes.len() as u64;
                self.file = Some(file);
                Ok(())
            }
            Err(source) => {
                // Best effort here; reopening cuts again.
                let _ = file.set_len(self.durable);
                Err(io_error("write", &self.path, source))
            }
        }
    }

    fn reopen(&self) -> io::Result<File> {
        let file = open_file(&self.path)?;
        if file.metadata()?.len() < self.durable {
            return Err(io::Error::other(
                "the file is shorter than what was acknowledged",
            ));
        }
        file.set_len(self.durable)?;
        file.sync_all()?;
        Ok(file)
    }
}

/// `first` and what is queued behind it, up to [`GROUP_LEAVES`].
fn gather(first: Append, appends: &mut mpsc::Receiver<Append>) -> Vec<Append> {
    let mut leaves = first.leaves;
    let mut group = vec![first];
    while leaves < GROUP_LEAVES {
        let Ok(next) = appends.try_recv() else { break };
        leaves += next.leaves;
        group.push(next);
    }
    group
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Makes the name of a new file durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> LogError {
    LogError::Io {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

/// Where the last whole line ends: behind it lies what a crash left of a group that nobody
/// was told about. `None` when that is further back than [`TAIL`].
fn good_end(file: &mut File, length: u64) -> io::Result<Option<u64>> {
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let kept = good_len(&tail);
    Ok(match (start, kept) {
        (1.., 0) => None,
        _ => Some(start + kept as u64),
    })
}

/// How many bytes of `tail` remain without its trailing pieces that are no JSON lines.
fn good_len(tail: &[u8]) -> usize {
    let mut end = last_newline(tail);
    while end > 0 {
        let (lines, line) = last_line(tail, end);
        if serde_json::from_slice::<IgnoredAny>(line).is_ok() {
            break;
        }
        end = lines;
    }
    end
}

/// The end of the last line that has its newline.
fn last_newline(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1)
}

/// Splits `tail[..end]`, which ends in a newline, before its last line.
fn last_line(tail: &[u8], end: usize) -> (usize, &[u8]) {
    let before = tail.get(..end.saturating_sub(1)).unwrap_or_default();
    let start = last_newline(before);
    (start, before.get(start..).unwrap_or_default())
}

#[cfg(test)]
impl Writer {
    /// A writer on whatever `path` is.
    pub(super) fn unchecked(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            file: Some(OpenOptions::new().append(true).open(path).unwrap()),
            durable: 0,
            failures: Arc::default(),
        }
    }

    /// As after an error, with `torn` written and not acknowledged.
    pub(super) fn lose_handle(&mut self, torn: &[u8]) {
        self.file = None;
        open_file(&self.path).unwrap().write_all(torn).unwrap();
    }
}
