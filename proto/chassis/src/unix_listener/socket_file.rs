//! The socket file: bound with its mode before anybody can connect, removed only while it is ours.
//!
//! Invariant: a file is replaced only if it is a socket at which nobody
//! answers, and removed only if it is the very inode that was bound. The path
//! must lie in a directory that only we (or root) may write to: checking and
//! making that directory is the caller's.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::unistd::{Gid, chown};

/// Longest path of a Unix socket in octets (`sun_path` is 108 with its end mark).
pub const MAX_PATH: usize = 107;

/// Which socket to bind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Absolute path, at most [`MAX_PATH`] octets.
    pub path: PathBuf,
    /// Permission bits: 0o777 for the Workload API, 0o660 for admin sockets.
    pub mode: u32,
    /// Group (gid) of the file; None leaves the process's own.
    pub group: Option<u32>,
}

/// Why a socket could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Longer than a Unix socket's path can be.
    #[error("socket path {path} has {length} bytes, at most {MAX_PATH} are possible")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Something else than a socket is there. It is left alone.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// Another process answers at the socket.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The file system said no.
    #[error("socket {path}: {step}")]
    File {
        /// The path.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The bound socket could not be listened on.
    #[error("listen")]
    Listen(#[source] io::Error),
}

/// The file of a bound socket. Removed on drop while it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// (device, inode) of the file that was bound.
    inode: Option<(u64, u64)>,
    /// Whether somebody else goes on with the socket, and its file is left.
    kept: Arc<AtomicBool>,
}

impl SocketFile {
    /// Binds, gives the file its mode and group, and only then listens: before, a connect is refused.
    pub(super) fn bind(wanted: &Socket) -> Result<(net::UnixListener, Self), BindError> {
        let path = wanted.path.as_path();
        let length = path.as_os_str().len();
        if length > MAX_PATH {
            return Err(BindError::PathTooLong {
                path: path.to_owned(),
                length,
            });
        }
        remove_stale(path)?;
        let at = |step| move |error: nix::Error| file_error(path, step, error.into());
        let fd = stream_socket().map_err(at("socket"))?;
        let address = UnixAddr::new(path).map_err(at("address"))?;
        bind(fd.as_raw_fd(), &address).map_err(at("bind"))?;
        let file = Self {
            path: path.to_owned(),
            inode: inode_of(path),
            kept: Arc::default(),
        };
        fs::set_permissions(path, fs::Permissions::from_mode(wanted.mode))
            .map_err(|e| file_error(path, "mode", e))?;
        if let Some(group) = wanted.group {
            chown(path, None, Some(Gid::from_raw(group))).map_err(at("group"))?;
        }
        listen(&fd, Backlog::MAXCONN).map_err(at("listen"))?;
        Ok((net::UnixListener::from(fd), file))
    }

    /// The file of a socket that somebody else bound at `path`.
    pub(super) fn adopt(path: PathBuf, is_kept: bool) -> Self {
        Self {
            inode: inode_of(&path),
            path,
            kept: Arc::new(AtomicBool::new(is_kept)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Set, it leaves the file in place.
    pub(super) fn kept(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.kept)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_kept = self.kept.load(Ordering::Relaxed);
        if !is_kept && self.inode.is_some() && self.inode == inode_of(&self.path) {
            // Nobody is left to tell; the next start removes a stale socket.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path)
        .ok()
        .map(|file| (file.dev(), file.ino()))
}

/// Removes a socket that nobody answers; anything else is left and refused.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let file = match fs::symlink_metadata(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(file_error(path, "stat", error)),
    };
    if !file.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match knock(path) {
        Err(Errno::ECONNREFUSED) => {
            fs::remove_file(path).map_err(|e| file_error(path, "remove the old socket", e))
        }
        Err(Errno::ENOENT) => Ok(()),
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

/// Connects without waiting: a listener whose queue is full is in use, too.
fn knock(path: &Path) -> Result<(), Errno> {
    let fd = stream_socket()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
}

fn file_error(path: &Path, step: &'static str, source: io::Error) -> BindError {
    BindError::File {
        path: path.to_owned(),
        step,
        source,
    }
}
