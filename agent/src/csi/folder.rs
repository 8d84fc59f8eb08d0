//! The folder with the agent's public socket: what pods get.
//!
//! A pod that gets it can do to what is in it whatever the modes allow, as root inside the pod
//! is root there: an admin socket or a key of the agent in the same folder would be the pod's.
//! So the folder holds sockets that everybody may use, links, and nothing else, checked at the start and
//! before each mount. The sockets themselves come and go as agents do.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The most sockets in it.
const MAX_SOCKETS: usize = 64;
/// Others may search a folder.
const SEARCH: u32 = 0o001;
/// Others may connect to a socket (unix(7)).
const CONNECT: u32 = 0o002;
const PERMISSIONS: u32 = 0o7777;

/// Why the folder is not given to pods.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// The folder, or what is in it.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// It is mounted so that it can be written to.
    #[error(
        "{} is not mounted read-only, and what pods get is a clone of that mount: give the volumeMount readOnly: true",
        .0.display()
    )]
    Writable(PathBuf),
    /// Pods whose processes are not root could not reach the socket.
    #[error("{} has mode {mode:04o}: pods that do not run as root cannot enter it; chmod 0755 it", path.display())]
    Closed {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Something is in it that no pod may get.
    #[error(
        "{} is not a socket that everybody may use, and pods would get it: give the agent's public socket a folder of its own (agent.socket_path)",
        .0.display()
    )]
    Private(PathBuf),
    /// There are too many sockets.
    #[error("{} has more than {MAX_SOCKETS} sockets: it is not the folder of an agent's public socket", .0.display())]
    Many(PathBuf),
    /// It was removed, and perhaps made anew; what is held is the old one.
    #[error("{} was removed under this process", .0.display())]
    Removed(PathBuf),
}

/// A directory as the kernel tells it apart from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    device: (u32, u32),
    number: u64,
}

/// What is known of a directory that is held open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Which it is.
    pub(crate) inode: Inode,
    /// Whether a mount begins with it.
    pub(crate) is_mounted: bool,
    /// Whether it was removed.
    pub(crate) is_removed: bool,
    /// The number of the mount that it is seen through.
    pub(crate) mount_id: u64,
    mode: u32,
}

/// The folder, held open.
pub(crate) struct Folder {
    path: PathBuf,
    fd: OwnedFd,
    inode: Inode,
}

impl Folder {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// [`FolderError::System`].
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(failed("open", path))?;
        let seen = look(&fd).map_err(failed("look at", path))?;
        Ok(Self {
            path: path.to_owned(),
            fd,
            inode: seen.inode,
        })
    }

    /// Which directory it is.
    pub(crate) fn inode(&self) -> Inode {
        self.inode
    }

    /// Checks that it is mounted read-only.
    ///
    /// # Errors
    /// [`FolderError::Writable`], [`FolderError::System`].
    pub(crate) fn check_read_only(&self) -> Result<(), FolderError> {
        let mount =
            rustix::fs::fstatvfs(&self.fd).map_err(failed("look at the mount of", &self.path))?;
        if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Ok(());
        }
        Err(FolderError::Writable(self.path.clone()))
    }

    /// Checks that a pod may have it as it is now.
    ///
    /// # Errors
    /// [`FolderError`], all but [`FolderError::Writable`].
    pub(crate) fn check(&self) -> Result<(), FolderError> {
        let seen = look(&self.fd).map_err(failed("look at", &self.path))?;
        if seen.is_removed {
            return Err(FolderError::Removed(self.path.clone()));
        }
        if seen.mode & SEARCH == 0 {
            return Err(FolderError::Closed {
                path: self.path.clone(),
                mode: seen.mode & PERMISSIONS,
            });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())
            .map_err(failed("list", &self.path))?;
        let content = Content::of(&fd).map_err(failed("list", &self.path))?;
        if let Some(name) = content.private {
            return Err(FolderError::Private(self.path.join(name)));
        }
        if content.is_long {
            return Err(FolderError::Many(self.path.clone()));
        }
        Ok(())
    }

    /// A mount of it that is nowhere yet. It is not recursive: what else is mounted below stays
    /// where it is.
    ///
    /// # Errors
    /// [`FolderError::System`].
    pub(crate) fn clone_mount(&self) -> Result<OwnedFd, FolderError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(&self.fd, "", flags).map_err(failed("clone the mount of", &self.path))
    }
}

/// What is in a folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// The first that was seen of what is no socket that everybody may use.
    pub(crate) private: Option<PathBuf>,
    /// Whether something else than sockets was seen.
    pub(crate) has_others: bool,
    /// Whether it was not read to its end.
    pub(crate) is_long: bool,
}

impl Content {
    /// Reads the folder `fd`, at most [`MAX_SOCKETS`] names of it.
    pub(crate) fn of(fd: impl AsFd) -> Result<Self, Errno> {
        let mut content = Self::default();
        let mut left = MAX_SOCKETS;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if left == 0 {
                content.is_long = true;
                break;
            }
            left -= 1;
            let stat = match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                // It went meanwhile.
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            // A link leads a pod where it could go by itself, in its own view of files.
            if kind == FileType::Symlink {
                continue;
            }
            let is_socket = kind == FileType::Socket;
            content.has_others |= !is_socket;
            if !is_socket || stat.st_mode & CONNECT == 0 {
                let name = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
                content.private.get_or_insert(name);
            }
        }
        Ok(content)
    }
}

/// Looks at a directory that is held open.
pub(crate) fn look(fd: impl AsFd) -> Result<Look, Errno> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let stat = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, flags)?;
    // Without it what is mounted could not be told from what is not: Linux 5.8.
    if !stat
        .stx_attributes_mask
        .contains(StatxAttributes::MOUNT_ROOT)
    {
        return Err(Errno::NOSYS);
    }
    Ok(Look {
        inode: Inode {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            number: stat.stx_ino,
        },
        is_mounted: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        is_removed: stat.stx_nlink == 0,
        mount_id: stat.stx_mnt_id,
        mode: u32::from(stat.stx_mode),
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> FolderError {
    move |errno| FolderError::System {
        action,
        path: path.to_owned(),
        source: errno.into(),
    }
}

impl fmt::Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Folder").field(&self.path).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        set_mode(dir.path(), 0o755);
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn socket(dir: &Path, name: &str, mode: u32) {
        UnixListener::bind(dir.join(name)).unwrap();
        set_mode(&dir.join(name), mode);
    }

    #[test]
    fn an_empty_folder_and_one_with_public_sockets_and_links_are_given() {
        let (dir, folder) = folder();
        folder.check().unwrap();
        socket(dir.path(), "agent.sock", 0o777);
        symlink("agent.sock", dir.path().join("spire-agent.sock")).unwrap();
        symlink("/etc/shadow", dir.path().join("elsewhere")).unwrap();
        folder.check().unwrap();
    }

    #[test]
    fn an_admin_socket_a_key_or_a_folder_beside_it_is_refused_by_name() {
        for name in ["agent-admin.sock", "seal.key", "sub"] {
            let (dir, folder) = folder();
            socket(dir.path(), "agent.sock", 0o777);
            let path = dir.path().join(name);
            match name {
                "agent-admin.sock" => socket(dir.path(), name, 0o660),
                "seal.key" => fs::write(path, "k").unwrap(),
                _ => fs::create_dir(path).unwrap(),
            }
            let error = folder.check().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_folder_that_others_cannot_enter_is_refused() {
        let (dir, folder) = folder();
        set_mode(dir.path(), 0o750);
        let error = folder.check().unwrap_err().to_string();
        assert!(error.contains("0750") && error.contains("chmod"), "{error}");
    }

    #[test]
    fn a_folder_of_very_many_sockets_is_refused() {
        let (dir, folder) = folder();
        for n in 0..=MAX_SOCKETS {
            socket(dir.path(), &n.to_string(), 0o777);
        }
        assert!(matches!(folder.check(), Err(FolderError::Many(_))));
    }

    #[test]
    fn a_folder_that_was_removed_is_known_as_that() {
        let (dir, folder) = folder();
        dir.close().unwrap();
        assert!(matches!(folder.check(), Err(FolderError::Removed(_))));
    }

    #[test]
    fn a_folder_that_can_be_written_to_is_refused_with_the_way_out() {
        let (_dir, folder) = folder();
        let error = folder.check_read_only().unwrap_err().to_string();
        assert!(error.contains("readOnly: true"), "{error}");
    }
}
