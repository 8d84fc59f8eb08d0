//! What the operating system allows and knows: descriptors, socket paths, groups.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::FileError;

/// The longest path of a Unix socket, in bytes: `sun_path` has 108 and ends
/// with a zero (unix(7)).
pub const MAX_UNIX_PATH: usize = 107;

/// Refuses a socket path that `bind` would refuse, and says how long it is.
///
/// # Errors
/// [`FileError::SocketPathTooLong`].
pub fn unix_path_check(path: &Path) -> Result<(), FileError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_UNIX_PATH {
        return Err(FileError::SocketPathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    Ok(())
}

/// The number of a group that is given by name or number; None when there is none.
#[must_use]
pub fn group_id(group: &str) -> Option<u32> {
    if let Ok(gid) = group.parse() {
        return Some(gid);
    }
    let found = nix::unistd::Group::from_name(group).ok().flatten();
    found.map(|group| group.gid.as_raw())
}

/// How many descriptors this process may have open now.
///
/// # Errors
/// What the operating system says.
pub fn nofile_limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// Raises the limit of descriptors as far as the hard limit allows and returns
/// the limit that holds from now on. Both binaries do it at their start.
///
/// # Errors
/// What the operating system says.
pub fn raise_nofile() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    nofile_limit()
}
