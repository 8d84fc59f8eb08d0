//! SHA-256 of the file that a process executes.
//!
//! Read through the process's /proc directory, so it is the executed file
//! whatever stands at its path by now, and compared with the attested (device,
//! inode). Digests are kept by (device, inode, size, mtime, ctime). Hashing
//! runs on the blocking pool, a few files at a time; a caller waits until the
//! deadline, and a digest that comes later is there for the next one.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::peer::{FileId, PeerProcess};

/// So long a caller waits for a file to be read.
const DEADLINE: Duration = Duration::from_secs(3);
/// Files that are read at once.
const AT_ONCE: usize = 2;
const MOST_KEPT: usize = 4_096;
const STEP: usize = 64 * 1024;

/// What there is to say about an executable's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    /// Lower-case hex.
    Sha256(Arc<str>),
    /// The file has more bytes than the limit: it has no such selector.
    TooLarge,
    /// Not found out in time, or the file cannot be read.
    Unknown,
}

/// A file in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Stamp {
    file: FileId,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            file: FileId {
                device: file.dev(),
                inode: file.ino(),
            },
            size: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Digests {
    permits: Arc<Semaphore>,
    kept: Arc<Mutex<HashMap<Stamp, Arc<str>>>>,
}

impl Default for Digests {
    fn default() -> Self {
        Self {
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            kept: Arc::default(),
        }
    }
}

impl Digests {
    /// The digest of what `peer` executes, if that is `exe` and has at most `limit` bytes.
    pub(super) async fn of_exe(&self, peer: &PeerProcess, exe: FileId, limit: u64) -> Digest {
        match open(peer) {
            Ok((file, stamp)) if stamp.file == exe => self.of(file, stamp, limit).await,
            // The process executes another file by now: the re-check will say so.
            Ok(_) => Digest::Unknown,
            Err(error) => {
                tracing::debug!(pid = peer.pid(), %error, "executable cannot be read");
                Digest::Unknown
            }
        }
    }

    async fn of(&self, file: File, stamp: Stamp, limit: u64) -> Digest {
        if stamp.size > limit {
            return Digest::TooLarge;
        }
        if let Some(known) = self.known(&stamp) {
            return Digest::Sha256(known);
        }
        let read = timeout(DEADLINE, self.read(file, stamp)).await;
        read.ok().flatten().map_or(Digest::Unknown, Digest::Sha256)
    }

    async fn read(&self, file: File, stamp: Stamp) -> Option<Arc<str>> {
        let permit = self.permits.clone().acquire_owned().await.ok()?;
        let digests = self.clone();
        let job = move || {
            let _permit = permit;
            if let Some(known) = digests.known(&stamp) {
                return Some(known);
            }
            let digest: Arc<str> = sha256(&file, stamp.size).ok()?.into();
            // A file that was changed meanwhile has no digest.
            (Stamp::of(&file.metadata().ok()?) == stamp).then(|| digests.keep(stamp, digest))
        };
        tokio::task::spawn_blocking(job).await.ok().flatten()
    }

    fn known(&self, stamp: &Stamp) -> Option<Arc<str>> {
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(stamp)
            .cloned()
    }

    fn keep(&self, stamp: Stamp, digest: Arc<str>) -> Arc<str> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(stamp, digest.clone());
        digest
    }
}

fn open(peer: &PeerProcess) -> io::Result<(File, Stamp)> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = File::from(openat(peer.directory(), "exe", flags, Mode::empty())?);
    let stamp = Stamp::of(&file.metadata()?);
    Ok((file, stamp))
}

/// Reads `size` bytes at most: the file cannot grow past what was allowed.
fn sha256(file: &File, size: u64) -> io::Result<String> {
    let (mut context, mut step, mut file) = (Context::new(&SHA256), vec![0; STEP], file.take(size));
    loop {
        match file.read(&mut step)? {
            0 => break,
            read => context.update(step.get(..read).unwrap_or_default()),
        }
    }
    Ok(hex(context.finish().as_ref()))
}

fn hex(octets: &[u8]) -> String {
    use std::fmt::Write as _;
    octets
        .iter()
        .fold(String::with_capacity(octets.len() * 2), |mut hex, octet| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{octet:02x}");
            hex
        })
}
