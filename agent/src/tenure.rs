//! Who owns the node's state: one process at a time.
//!
//! The lock of `data_dir` is a file with the holder's pid and admin socket in it, locked by
//! flock(2): it is free again when its holder ends, however it ends. A take-over passes the
//! locked descriptor itself, so that nobody holds nothing in between. While two processes live,
//! [`Tenure`] tells whose turn it is: whoever writes below `data_dir`, or asks the server for a
//! new SVID of the agent, holds a [`Turn`]; who hands over [freezes](Tenure::freeze) them.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fstat};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};
use vane_chassis::files::Dir;

const FILE: &str = "lock";
/// The most bytes of the file that are read: a pid and a socket's path.
const LIMIT: u64 = 256;

/// The lock of a data_dir, while it is held.
#[derive(Debug)]
pub struct Lock(File);

/// Who holds the lock, as far as the file says it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: Option<u32>,
    /// Where it can be asked.
    pub admin_socket: Option<PathBuf>,
}

/// Why the lock could not be tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock agent.data_dir: {0}")]
pub struct LockError(#[from] std::io::Error);

/// What a try came to.
#[derive(Debug)]
pub enum Tried {
    /// It is ours.
    Ours(Lock),
    /// It is somebody else's.
    Held(Holder),
}

impl Lock {
    /// Tries to lock `dir`; `admin_socket` is where the next one asks for a take-over.
    ///
    /// # Errors
    /// [`LockError`]; that another process holds it is none.
    pub fn take(dir: &Dir, admin_socket: &Path) -> Result<Tried, LockError> {
        let mut file = open(dir)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let mut lock = Self(file);
                lock.sign(admin_socket)?;
                Ok(Tried::Ours(lock))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                // What cannot be read says nothing; the lock holds all the same.
                let _ = (&mut file).take(LIMIT).read_to_string(&mut text);
                Ok(Tried::Held(Holder::parse(&text)))
            }
            Err(errno) => Err(LockError(errno.into())),
        }
    }

    /// Goes on with the lock of `dir` that a predecessor passed.
    ///
    /// # Errors
    /// It is another file.
    pub fn adopt(dir: &Dir, passed: OwnedFd, admin_socket: &Path) -> Result<Self, LockError> {
        let id = |fd: &File| fstat(fd.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
        let (ours, passed) = (open(dir)?, File::from(passed));
        let same = id(&ours).map_err(std::io::Error::from)?
            == id(&passed).map_err(std::io::Error::from)?;
        if !same {
            let text = "the lock that was passed is not this data_dir's";
            return Err(std::io::Error::other(text).into());
        }
        let mut lock = Self(passed);
        lock.sign(admin_socket)?;
        Ok(lock)
    }

    /// The locked descriptor, for a successor.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn to_pass(&self) -> std::io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    fn sign(&mut self, admin_socket: &Path) -> std::io::Result<()> {
        let text = format!("{}\n{}\n", std::process::id(), admin_socket.display());
        self.0.set_len(0)?;
        self.0.rewind()?;
        self.0.write_all(text.as_bytes())
    }
}

fn open(dir: &Dir) -> std::io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir.as_fd(), FILE, flags, Mode::from_bits_truncate(0o600))?;
    Ok(File::from(fd))
}

impl Holder {
    fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        Self {
            pid: lines.next().and_then(|line| line.parse().ok()),
            admin_socket: lines.next().map(PathBuf::from),
        }
    }
}

/// Whose turn it is; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tenure {
    turns: Arc<RwLock<()>>,
    /// How many wait to freeze it.
    wanted: Arc<watch::Sender<usize>>,
}

/// It is this process's turn, and stays so while this lives.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct Turn {
    _held: OwnedRwLockReadGuard<()>,
}

/// It is another process's turn while this lives.
#[derive(Debug)]
#[must_use = "turns are given again when it is dropped"]
pub struct Frozen {
    _held: OwnedRwLockWriteGuard<()>,
}

impl Tenure {
    /// Waits for a turn. Cancel safe.
    pub async fn turn(&self) -> Turn {
        Turn {
            _held: Arc::clone(&self.turns).read_owned().await,
        }
    }

    /// A turn, if it is this process's.
    #[must_use]
    pub fn try_turn(&self) -> Option<Turn> {
        let held = Arc::clone(&self.turns).try_read_owned().ok()?;
        Some(Turn { _held: held })
    }

    /// Waits for the turns that are under way, and gives none until the answer is dropped.
    /// Cancel safe.
    pub async fn freeze(&self) -> Frozen {
        let _wants = Wants::new(&self.wanted);
        Frozen {
            _held: Arc::clone(&self.turns).write_owned().await,
        }
    }

    /// Waits until somebody waits for the end of a turn: what may take long and can be given up
    /// is given up then.
    pub async fn wanted(&self) {
        // The sender is here.
        let _ = self.wanted.subscribe().wait_for(|count| *count > 0).await;
    }
}

/// Counted while it lives.
struct Wants<'a>(&'a watch::Sender<usize>);

impl<'a> Wants<'a> {
    fn new(wanted: &'a watch::Sender<usize>) -> Self {
        wanted.send_modify(|count| *count += 1);
        Self(wanted)
    }
}

impl Drop for Wants<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::files::private_dir;

    use super::*;

    fn held(tried: Tried) -> Holder {
        match tried {
            Tried::Held(holder) => holder,
            Tried::Ours(_) => panic!("it was free"),
        }
    }

    fn ours(tried: Tried) -> Lock {
        match tried {
            Tried::Ours(lock) => lock,
            Tried::Held(holder) => panic!("held by {holder:?}"),
        }
    }

    #[test]
    fn a_data_dir_has_one_holder_and_the_second_learns_who() {
        let folder = tempfile::tempdir().unwrap();
        let dir = private_dir(&folder.path().join("data")).unwrap();
        let admin = Path::new("/run/vane/agent-admin.sock");
        let lock = ours(Lock::take(&dir, admin).unwrap());
        let holder = Holder {
            pid: Some(std::process::id()),
            admin_socket: Some(admin.to_owned()),
        };
        assert_eq!(held(Lock::take(&dir, admin).unwrap()), holder);
        drop(lock);
        let _again = ours(Lock::take(&dir, admin).unwrap());
    }

    #[test]
    fn a_lock_that_is_passed_on_is_never_free_in_between() {
        let folder = tempfile::tempdir().unwrap();
        let dir = private_dir(&folder.path().join("data")).unwrap();
        let other = private_dir(&folder.path().join("other")).unwrap();
        let first = ours(Lock::take(&dir, Path::new("/a")).unwrap());
        let passed = first.to_pass().unwrap();
        assert!(Lock::adopt(&other, first.to_pass().unwrap(), Path::new("/b")).is_err());
        let second = Lock::adopt(&dir, passed, Path::new("/b")).unwrap();
        drop(first);
        let holder = held(Lock::take(&dir, Path::new("/c")).unwrap());
        assert_eq!(holder.admin_socket.unwrap(), Path::new("/b"));
        drop(second);
        let _free = ours(Lock::take(&dir, Path::new("/c")).unwrap());
    }

    #[tokio::test]
    async fn who_hands_over_waits_for_turns_and_gives_none() {
        let tenure = Tenure::default();
        let turn = tenure.turn().await;
        let waits = tenure.clone();
        let mut freezing = Box::pin(async move { waits.freeze().await });
        assert!(futures_util::poll!(freezing.as_mut()).is_pending());
        drop(turn);
        let frozen = freezing.await;
        assert!(tenure.try_turn().is_none());
        drop(frozen);
        assert!(tenure.try_turn().is_some());
    }

    #[tokio::test]
    async fn who_has_a_turn_learns_that_it_is_wanted() {
        let tenure = Tenure::default();
        let (turn, waits) = (tenure.turn().await, tenure.clone());
        let mut wanted = Box::pin(tenure.wanted());
        assert!(futures_util::poll!(wanted.as_mut()).is_pending());
        let mut freezing = Box::pin(async move { waits.freeze().await });
        assert!(futures_util::poll!(freezing.as_mut()).is_pending());
        wanted.await;
        drop(turn);
        let _frozen = freezing.await;
        let mut wanted = Box::pin(tenure.wanted());
        assert!(futures_util::poll!(wanted.as_mut()).is_pending());
    }
}
