//! Other names of the public socket, as links beside it: what pods written for SPIRE's chart
//! (`spire-agent.sock`) or for Istio (`socket`) look for in the folder that they mount.
//!
//! A link is made or turned; what is no link is never replaced. Links of before stay: who has
//! one of them in use loses nothing by a changed configuration.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, readlinkat, symlinkat, unlinkat};
use rustix::io::Errno;
use vane_chassis::files::Dir;

/// Why a name does not lead to the socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AliasError {
    /// Something stands there.
    #[error("{} exists and is not a link: it is left alone", .0.display())]
    Taken(PathBuf),
    /// The file system said no.
    #[error("cannot link {}: {source}", path.display())]
    System {
        /// The link.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// Gives the socket `target` of the folder `dir` the names `aliases` as well.
///
/// # Errors
/// [`AliasError`].
pub(crate) fn link(dir: &Dir, target: &OsStr, aliases: &[String]) -> Result<(), AliasError> {
    aliases
        .iter()
        .try_for_each(|alias| one(dir, target, Path::new(alias)))
}

fn one(dir: &Dir, target: &OsStr, alias: &Path) -> Result<(), AliasError> {
    let path = || dir.path().join(alias);
    let failed = |errno: Errno| AliasError::System {
        path: path(),
        source: errno.into(),
    };
    match symlinkat(target, dir, alias) {
        Err(Errno::EXIST) => {}
        done => return done.map_err(failed),
    }
    match readlinkat(dir, alias, Vec::new()) {
        Ok(found) if found.as_bytes() == target.as_bytes() => return Ok(()),
        Ok(_) => unlinkat(dir, alias, AtFlags::empty()).map_err(failed)?,
        // What readlink answers of anything but a link.
        Err(Errno::INVAL) => return Err(AliasError::Taken(path())),
        Err(errno) => return Err(failed(errno)),
    }
    symlinkat(target, dir, alias).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_made_turned_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        symlink("old.sock", folder.path().join("socket")).unwrap();
        let aliases = ["spire-agent.sock".to_owned(), "socket".to_owned()];
        for _ in 0..2 {
            link(&dir, OsStr::new("agent.sock"), &aliases).unwrap();
            for alias in &aliases {
                let target = fs::read_link(folder.path().join(alias)).unwrap();
                assert_eq!(target, Path::new("agent.sock"));
            }
        }
    }

    #[test]
    fn what_is_no_link_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Dir::open(folder.path()).unwrap();
        fs::write(folder.path().join("socket"), "kept").unwrap();
        let error = link(&dir, OsStr::new("agent.sock"), &["socket".to_owned()]);
        assert!(matches!(error, Err(AliasError::Taken(_))), "{error:?}");
        let kept = fs::read_to_string(folder.path().join("socket")).unwrap();
        assert_eq!(kept, "kept");
    }
}
