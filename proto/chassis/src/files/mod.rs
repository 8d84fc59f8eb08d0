//! Files that hold keys, directories that hold files and sockets.
//!
//! [`Dir`] keeps a directory open and works by names inside it, so that
//! nobody can swap a parent between check and use. A write is a new file with
//! the asked mode, fsync, rename over the old name, fsync of the directory:
//! after a crash there is the old content or the new. Symbolic links are never
//! followed.
//!
//! What the bytes mean, and who else may read them, is not decided here.

mod dirs;
mod limits;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};
use zeroize::Zeroizing;

pub use dirs::{SHARED_RUN_DIR, compat_dir, private_dir, socket_dir};
pub use limits::{MAX_UNIX_PATH, group_id, nofile_limit, raise_nofile, unix_path_check};

/// Why a file or directory was not used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A symbolic link, socket or other thing stands where a plain file or
    /// directory must be.
    #[error("{} is not a plain {wanted} (links are not followed)", path.display())]
    WrongKind {
        /// The thing.
        path: PathBuf,
        /// `file` or `directory`.
        wanted: &'static str,
    },
    /// Somebody else owns it.
    #[error("{} belongs to uid {owner}, not to uid {expected}", path.display())]
    WrongOwner {
        /// The thing.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who we are.
        expected: u32,
    },
    /// Group or others may do more than is safe.
    #[error("{} has mode {mode:04o}, which is wider than {allowed:04o}; chmod {allowed:04o} it", path.display())]
    TooOpen {
        /// The thing.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The bits it may have.
        allowed: u32,
    },
    /// The file is longer than the caller reads.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
    },
    /// A name with a slash, or `.` or `..`, is no name inside a directory.
    #[error("\"{0}\" is not the name of a file in a directory")]
    NotAName(String),
    /// The path of a Unix socket does not fit into `sockaddr_un`.
    #[error("the socket path {} has {length} bytes, the limit is {MAX_UNIX_PATH}", path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Directories that are checked component by component are named from `/`
    /// and without `.` and `..`.
    #[error("{} is not an absolute path without \".\" and \"..\"", .0.display())]
    NotAbsolute(PathBuf),
}

impl FileError {
    /// The file or directory does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The file system has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Io { source, .. } if full.contains(&source.kind()))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> FileError {
    move |errno| match errno {
        // What O_NOFOLLOW (and O_DIRECTORY) answer for a link.
        Errno::ELOOP => FileError::WrongKind {
            path: path.to_owned(),
            wanted: "file",
        },
        Errno::ENOTDIR => FileError::WrongKind {
            path: path.to_owned(),
            wanted: "directory",
        },
        errno => FileError::Io {
            action,
            path: path.to_owned(),
            source: errno.into(),
        },
    }
}

/// A directory that is held open.
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens an existing directory; a link in the last component is refused.
    ///
    /// # Errors
    /// [`FileError::Io`], [`FileError::WrongKind`].
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let fd = open(path, DIRECTORY, Mode::empty()).map_err(failed("open", path))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Where it was opened; it may have moved since.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file whole: either all of `bytes` stand under `name` after
    /// this, durably and with exactly `mode`, or what stood there before.
    ///
    /// # Errors
    /// [`FileError::Io`], [`FileError::NotAName`].
    pub fn write(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
        self.replace(name, mode, bytes, true)?;
        self.sync()
    }

    /// As [`Dir::write`], whole but not durable: a crash of the machine may leave the old file
    /// or a damaged one. For what such a crash makes worthless anyway.
    ///
    /// # Errors
    /// As [`Dir::write`].
    pub fn write_volatile(&self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), FileError> {
        self.replace(name, mode, bytes, false)
    }

    fn replace(&self, name: &str, mode: u32, bytes: &[u8], sync: bool) -> Result<(), FileError> {
        let path = self.named(name)?;
        let temporary = format!(".{name}.{:016x}{TEMPORARY}", fastrand::u64(..));
        let written = self
            .write_new(&temporary, mode, bytes, sync)
            .and_then(|()| {
                renameat(&self.fd, temporary.as_str(), &self.fd, name)
                    .map_err(failed("rename over", &path))
            });
        if written.is_err() {
            // The error that is told is the first one.
            let _ = unlinkat(&self.fd, temporary.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        written
    }

    fn write_new(&self, name: &str, mode: u32, bytes: &[u8], sync: bool) -> Result<(), FileError> {
        let path = self.path.join(name);
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let fd = openat(&self.fd, name, flags, mode).map_err(failed("create", &path))?;
        // The umask may have taken bits away.
        fchmod(&fd, mode).map_err(failed("set the mode of", &path))?;
        let mut file = File::from(fd);
        file.write_all(bytes)
            .and_then(|()| if sync { file.sync_all() } else { Ok(()) })
            .map_err(|source| FileError::Io {
                action: "write",
                path,
                source,
            })
    }

    /// Reads a plain file of at most `limit` bytes. The buffer is zeroized
    /// when dropped.
    ///
    /// # Errors
    /// [`FileError::Io`] (see [`is_not_found`](FileError::is_not_found)),
    /// [`FileError::WrongKind`], [`FileError::TooLong`], [`FileError::NotAName`].
    pub fn read(&self, name: &str, limit: u64) -> Result<Zeroizing<Vec<u8>>, FileError> {
        let path = self.named(name)?;
        // O_NONBLOCK: opening a FIFO would wait for its writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::empty()).map_err(failed("open", &path))?;
        let stat = fstat(&fd).map_err(failed("look at", &path))?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(FileError::WrongKind {
                path,
                wanted: "file",
            });
        }
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if size > limit {
            return Err(FileError::TooLong { path, limit });
        }
        // Room for all of it: a growing Vec would leave copies behind.
        let room = usize::try_from(size).unwrap_or(0).saturating_add(1);
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        let mut file = File::from(fd).take(size);
        match file.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(FileError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Whether what is in it is in memory only (tmpfs) and gone with the next boot.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn is_in_memory(&self) -> Result<bool, FileError> {
        let system = fstatfs(&self.fd).map_err(failed("look at", &self.path))?;
        Ok(system.filesystem_type() == TMPFS_MAGIC)
    }

    /// Removes a file, durably. One that is not there is removed already.
    ///
    /// # Errors
    /// [`FileError::Io`], [`FileError::NotAName`].
    pub fn remove(&self, name: &str) -> Result<(), FileError> {
        let path = self.named(name)?;
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => self.sync(),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(failed("remove", &path)(errno)),
        }
    }

    /// Removes what writes that a crash interrupted left behind. For the one
    /// owner of the directory, at its start.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sweep(&self) -> Result<(), FileError> {
        for name in self.names()? {
            if name.starts_with('.') && name.ends_with(TEMPORARY) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Makes names that came or went durable.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn sync(&self) -> Result<(), FileError> {
        fsync(&self.fd).map_err(failed("sync", &self.path))
    }

    /// The names in it that are UTF-8, without `.` and `..`.
    fn names(&self) -> Result<Vec<String>, FileError> {
        let mut listed = nix::dir::Dir::openat(&self.fd, ".", DIRECTORY, Mode::empty())
            .map_err(failed("list", &self.path))?;
        let mut names = Vec::new();
        for entry in listed.iter() {
            let entry = entry.map_err(failed("list", &self.path))?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn named(&self, name: &str) -> Result<PathBuf, FileError> {
        let bad = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']);
        if bad {
            return Err(FileError::NotAName(name.to_owned()));
        }
        Ok(self.path.join(name))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dir").field(&self.path).finish()
    }
}

/// How a half-written file's name ends.
const TEMPORARY: &str = ".tmp";

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

#[cfg(test)]
mod tests;
