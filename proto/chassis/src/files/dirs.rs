//! Directories for keys and for sockets: made with the right mode, or checked.
//!
//! Each function leaves alone what it did not make: a directory that is not as
//! it must be is an error that says what to do, never a silent chmod.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::{open, openat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, mkdirat};
use nix::unistd::geteuid;

use super::{DIRECTORY, Dir, FileError, failed};

/// Where the default sockets of server and agent are. It is 0755 whoever comes first: everybody
/// must reach the agent's public socket in it, and the others are closed by their own modes.
pub const SHARED_RUN_DIR: &str = "/run/vane";
/// Permission bits for writing by group and others.
const SHARED_WRITE: u32 = 0o022;
/// In a directory with this bit only the owner of a name may replace it.
const STICKY: u32 = 0o1000;
const PERMISSIONS: u32 = 0o777;
/// The mode of parents that have to be made.
const PARENT: u32 = 0o755;

/// Opens the directory of keys and data at `path`, making it 0700 (and its
/// parents 0755) when it is not there.
///
/// # Errors
/// One that is not ours is [`FileError::WrongOwner`], one that group or others
/// can use [`FileError::TooOpen`], a link [`FileError::WrongKind`].
pub fn private_dir(path: &Path) -> Result<Dir, FileError> {
    let dir = open_or_make(path, 0o700)?;
    let stat = look(&dir)?;
    owned_by_us(&dir.path, &stat)?;
    not_wider(&dir.path, &stat, 0o700)?;
    Ok(dir)
}

/// Opens the directory of a socket at `path`, making it with `mode` (and its
/// parents 0755) when it is not there. One that exists keeps its mode: several
/// processes share `/run/vane`.
///
/// # Errors
/// [`FileError::WrongOwner`] when neither we nor root own it,
/// [`FileError::TooOpen`] when group or others may replace the socket in it, a
/// link [`FileError::WrongKind`].
pub fn socket_dir(path: &Path, mode: u32) -> Result<Dir, FileError> {
    let dir = open_or_make(path, mode)?;
    let stat = look(&dir)?;
    safe_parent(&dir.path, &stat)?;
    let lacking = mode & !stat.st_mode & PERMISSIONS;
    if lacking != 0 {
        tracing::warn!(
            path = %dir.path.display(),
            mode = format_args!("{:04o}", stat.st_mode & PERMISSIONS),
            wanted = format_args!("{mode:04o}"),
            "socket directory is narrower than configured"
        );
    }
    Ok(dir)
}

/// Opens the directory of a compatibility socket, such as
/// `/tmp/spire-agent/public`, from the root component by component without
/// following links; makes what is missing, the last component with `mode`.
///
/// # Errors
/// When somebody else made the last component: [`FileError::WrongOwner`]; when
/// somebody else could replace any component, or the last one is wider than
/// `mode`: [`FileError::WrongOwner`], [`FileError::TooOpen`]; a link:
/// [`FileError::WrongKind`]; a relative path: [`FileError::NotAbsolute`].
pub fn compat_dir(path: &Path, mode: u32) -> Result<Dir, FileError> {
    let names = components(path)?;
    let root = Path::new("/");
    let fd = open(root, DIRECTORY, Mode::empty()).map_err(failed("open", root))?;
    let mut dir = Dir {
        fd,
        path: root.to_owned(),
    };
    let mut left = names.len();
    for name in names {
        left -= 1;
        safe_parent(&dir.path, &look(&dir)?)?;
        dir = child(&dir, name, if left == 0 { mode } else { PARENT })?;
    }
    let stat = look(&dir)?;
    owned_by_us(&dir.path, &stat)?;
    not_wider(&dir.path, &stat, mode)?;
    Ok(dir)
}

fn components(path: &Path) -> Result<Vec<&OsStr>, FileError> {
    let bad = || FileError::NotAbsolute(path.to_owned());
    let mut components = path.components();
    if components.next() != Some(Component::RootDir) {
        return Err(bad());
    }
    let names = components.map(|component| match component {
        Component::Normal(name) => Ok(name),
        _ => Err(bad()),
    });
    names.collect::<Result<Vec<_>, _>>()
}

/// Opens `name` inside `parent`, made with `mode` when it is not there.
fn child(parent: &Dir, name: &OsStr, mode: u32) -> Result<Dir, FileError> {
    let path = parent.path.join(name);
    let made = match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(mode)) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(failed("make", &path)(errno)),
    };
    let fd =
        openat(parent.as_fd(), name, DIRECTORY, Mode::empty()).map_err(failed("open", &path))?;
    let dir = Dir { fd, path };
    // Between the two calls somebody may have put a directory of his own there;
    // his mode is not changed, and the checks that follow refuse it.
    if made && look(&dir)?.st_uid == geteuid().as_raw() {
        set_mode(&dir, mode)?;
    }
    Ok(dir)
}

fn open_or_make(path: &Path, mode: u32) -> Result<Dir, FileError> {
    match Dir::open(path) {
        Err(error) if error.is_not_found() => {}
        done => return done,
    }
    let io = |source| FileError::Io {
        action: "make",
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        let mut parents = DirBuilder::new();
        parents.recursive(true).mode(PARENT);
        parents.create(parent).map_err(io)?;
    }
    let made = DirBuilder::new().mode(mode).create(path);
    let dir = Dir::open(path)?;
    match made {
        Ok(()) => set_mode(&dir, mode)?,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(error)),
    }
    Ok(dir)
}

/// Sets the mode of a directory that we just made: the umask took bits away.
fn set_mode(dir: &Dir, mode: u32) -> Result<(), FileError> {
    fchmod(dir.as_fd(), Mode::from_bits_truncate(mode))
        .map_err(failed("set the mode of", &dir.path))
}

fn look(dir: &Dir) -> Result<FileStat, FileError> {
    fstat(dir.as_fd()).map_err(failed("look at", &dir.path))
}

fn owned_by_us(path: &Path, stat: &FileStat) -> Result<(), FileError> {
    let expected = geteuid().as_raw();
    if stat.st_uid != expected {
        return Err(FileError::WrongOwner {
            path: path.to_owned(),
            owner: stat.st_uid,
            expected,
        });
    }
    Ok(())
}

fn not_wider(path: &Path, stat: &FileStat, allowed: u32) -> Result<(), FileError> {
    let mode = stat.st_mode & PERMISSIONS;
    if mode & !allowed != 0 {
        return Err(FileError::TooOpen {
            path: path.to_owned(),
            mode,
            allowed,
        });
    }
    Ok(())
}

/// Nobody but we and root can replace a name in this directory.
fn safe_parent(path: &Path, stat: &FileStat) -> Result<(), FileError> {
    if stat.st_uid != 0 {
        owned_by_us(path, stat)?;
    }
    if stat.st_mode & STICKY != 0 {
        return Ok(());
    }
    not_wider(path, stat, PERMISSIONS & !SHARED_WRITE)
}
