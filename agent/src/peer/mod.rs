//! The process at the other end of a Unix socket, held so that it cannot be mistaken for another.
//!
//! The peer is the process that called connect(): neither who inherited the
//! descriptor nor who got it passed, which speak for the connector while that
//! lives unchanged. Owns the peer's pidfd (SO_PEERPIDFD) and a descriptor of
//! its /proc directory that was opened while the pidfd said "alive", so both
//! mean one process for ever. Invariant: facts are returned only if the
//! process was alive *after* the last of them was read. A pidfd does not see
//! exec, setuid or a move to another cgroup, hence [`PeerProcess::recheck`]
//! before every message (10 us inline; a hop to a pool would cost 100).

mod procfs;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use procfs::{Ids, ReadError, own_cgroup};

/// `peer_pidfd`: what to do on a kernel without SO_PEERPIDFD (before Linux 6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerPidfd {
    /// Open the pidfd by number. A process that connects and ends, and whose number is
    /// given to another one of the same user and group before the accept, is then mistaken for that.
    #[default]
    Prefer,
    /// Refuse every connection.
    Require,
}

/// Why nothing can be said of the peer. Each has a text of its own.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// This kernel cannot name the peer's pidfd, and `peer_pidfd = "require"`.
    #[error("this kernel has no SO_PEERPIDFD (Linux 6.5) and peer_pidfd is \"require\"")]
    NoPeerPidfd,
    /// The process that connected has ended and was reaped.
    #[error("the process that connected is gone")]
    Reaped,
    /// The process that connected has ended (it may be a zombie still).
    #[error("the process that connected has ended")]
    Ended,
    /// The process has no number in the agent's PID namespace.
    #[error("the process that connected is outside the agent's PID namespace")]
    OutsidePidNamespace,
    /// Without SO_PEERPIDFD: the number belongs to a process of another user or group by now.
    #[error("process {pid} is not the one that connected: user or group differ")]
    Replaced {
        /// The number that connected.
        pid: i32,
    },
    /// The peer's credentials or pidfd cannot be had, or not be watched.
    #[error("peer of the socket")]
    Socket(#[source] io::Error),
    /// /proc has no directory for a process that lives (it may be mounted with hidepid).
    #[error("/proc/{pid} cannot be opened")]
    NoDirectory {
        /// The process.
        pid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A fact cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A file's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// Names a process among those alive: its number and its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    /// Process (thread group) ID in the agent's PID namespace.
    pub pid: i32,
    /// Clock ticks after boot.
    pub start_time: u64,
}

/// What a process is, as far as an identity depends on it (promise P7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessFacts {
    /// The executed file.
    pub exe: FileId,
    /// Users, as the agent's user namespace numbers them.
    pub uid: Ids,
    /// Groups.
    pub gid: Ids,
    /// Supplementary groups, in the kernel's (ascending) order.
    pub groups: Box<[u32]>,
    /// Clock ticks after boot.
    pub start_time: u64,
    /// The text of /proc/<pid>/cgroup.
    pub cgroup: String,
}

/// What is no longer as it was attested.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    /// The process has ended.
    #[error("the process has ended")]
    Ended,
    /// It executes another file.
    #[error("the process executes another file")]
    Exe,
    /// One of its users is another.
    #[error("the process changed its user")]
    Uid,
    /// One of its groups is another.
    #[error("the process changed its group")]
    Gid,
    /// Its supplementary groups are others.
    #[error("the process changed its supplementary groups")]
    Groups,
    /// It started at another time: never seen while a pidfd is held.
    #[error("the process is another one")]
    StartTime,
    /// It was moved to another cgroup.
    #[error("the process was moved to another cgroup")]
    Cgroup,
    /// A fact can no longer be read.
    #[error("the process can no longer be read")]
    Unreadable(#[source] ReadError),
}

/// A process that connected.
#[derive(Debug)]
pub struct PeerProcess {
    key: ProcessKey,
    pidfd: AsyncFd<OwnedFd>,
    /// /proc/<pid>, opened while `pidfd` was alive.
    dir: OwnedFd,
}

impl PeerProcess {
    /// The process that called connect() on the other end of `socket`.
    /// Must be called inside a tokio runtime, which watches the pidfd. Holds two descriptors.
    ///
    /// # Errors
    /// See [`PeerError`].
    pub fn from_socket(socket: &impl AsFd, mode: PeerPidfd) -> Result<Self, PeerError> {
        match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => Self::from_pidfd(pidfd),
            Err(Errno::ENOPROTOOPT) if mode == PeerPidfd::Require => Err(PeerError::NoPeerPidfd),
            Err(Errno::ENOPROTOOPT) => Self::from_number(socket),
            // Kernels before 6.16 give no pidfd for a process that is reaped.
            Err(Errno::ESRCH | Errno::EINVAL) => Err(PeerError::Reaped),
            Err(error) => Err(PeerError::Socket(error.into())),
        }
    }

    /// Without SO_PEERPIDFD: a pidfd of whoever has the connector's number now, if user and group fit.
    fn from_number(socket: &impl AsFd) -> Result<Self, PeerError> {
        let wanted = getsockopt(socket, sockopt::PeerCredentials)
            .map_err(|e| PeerError::Socket(e.into()))?;
        let pid = Pid::from_raw(wanted.pid()).ok_or(PeerError::OutsidePidNamespace)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Err(PeerError::Reaped),
            Err(error) => return Err(PeerError::Socket(error.into())),
        };
        let peer = Self::from_pidfd(pidfd)?;
        let found = procfs::status(&peer.dir)?;
        if (found.uid.effective, found.gid.effective) != (wanted.uid(), wanted.gid()) {
            return Err(PeerError::Replaced { pid: wanted.pid() });
        }
        Ok(peer)
    }

    fn from_pidfd(pidfd: OwnedFd) -> Result<Self, PeerError> {
        let pid = match procfs::pid_of(&pidfd)? {
            0 => return Err(PeerError::OutsidePidNamespace),
            pid if pid < 0 => return Err(PeerError::Reaped),
            pid => pid,
        };
        let opened = procfs::open_process(pid);
        // Alive now, so the number was this process's when the directory was opened.
        if !is_alive(&pidfd) {
            return Err(if procfs::pid_of(&pidfd)? < 0 {
                PeerError::Reaped
            } else {
                PeerError::Ended
            });
        }
        let dir = opened.map_err(|source| PeerError::NoDirectory { pid, source })?;
        let start_time = procfs::stat(&dir)?.start_time;
        let pidfd = watch(pidfd).map_err(PeerError::Socket)?;
        Ok(Self {
            key: ProcessKey { pid, start_time },
            pidfd,
            dir,
        })
    }

    /// Names the process, for limits and logs.
    pub fn key(&self) -> ProcessKey {
        self.key
    }

    /// Process ID in the agent's PID namespace.
    pub fn pid(&self) -> i32 {
        self.key.pid
    }

    /// The process's /proc directory, for attestors that read more. Read through this descriptor only,
    /// and trust nothing before [`PeerProcess::recheck`] has said that the facts still hold.
    pub fn directory(&self) -> &OwnedFd {
        &self.dir
    }

    /// Whether the process has not ended. Asks the kernel (1 us), never blocks.
    pub fn is_alive(&self) -> bool {
        is_alive(self.pidfd.get_ref())
    }

    /// Reads what the process is now (10 us).
    ///
    /// # Errors
    /// [`PeerError::Ended`] when the process ended before the last fact was read, or [`PeerError::Read`].
    pub fn attest_facts(&self) -> Result<ProcessFacts, PeerError> {
        let facts = self.read_facts();
        if !self.is_alive() {
            return Err(PeerError::Ended);
        }
        Ok(facts?)
    }

    /// Whether the process is still what it was attested as. To be called before every message (7 us).
    ///
    /// # Errors
    /// [`Changed`] names the first difference; the caller ends the stream.
    pub fn recheck(&self, attested: &ProcessFacts) -> Result<(), Changed> {
        let now = self.attest_facts().map_err(|error| match error {
            PeerError::Read(error) => Changed::Unreadable(error),
            _ => Changed::Ended,
        })?;
        difference(attested, &now).map_or(Ok(()), Err)
    }

    /// Resolves when the process has ended. Any number of waiters; cancel safe.
    pub async fn exited(&self) {
        // The only error is that the runtime shuts down, which ends the waiter, too.
        let _ = self.pidfd.readable().await;
    }

    fn read_facts(&self) -> Result<ProcessFacts, ReadError> {
        let exe = procfs::exe(&self.dir)?;
        let status = procfs::status(&self.dir)?;
        Ok(ProcessFacts {
            exe: FileId {
                device: exe.st_dev,
                inode: exe.st_ino,
            },
            uid: status.uid,
            gid: status.gid,
            groups: status.groups,
            start_time: procfs::stat(&self.dir)?.start_time,
            cgroup: procfs::cgroup(&self.dir)?,
        })
    }
}

fn difference(attested: &ProcessFacts, now: &ProcessFacts) -> Option<Changed> {
    if attested.start_time != now.start_time {
        Some(Changed::StartTime)
    } else if attested.exe != now.exe {
        Some(Changed::Exe)
    } else if attested.uid != now.uid {
        Some(Changed::Uid)
    } else if attested.gid != now.gid {
        Some(Changed::Gid)
    } else if attested.groups != now.groups {
        Some(Changed::Groups)
    } else if attested.cgroup != now.cgroup {
        Some(Changed::Cgroup)
    } else {
        None
    }
}

/// Waits until the process `pid` has ended; not at all when there is none.
///
/// # Errors
/// The process cannot be watched.
pub async fn ended(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else { return Ok(()) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => watch(process)?.readable().await.map(drop),
        Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe for types whose descriptor may change; an OwnedFd's does not"
)]
fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// A pidfd is readable once its process has ended, zombie or reaped. A poll that fails says "ended".
fn is_alive(pidfd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) == Ok(0)
}
