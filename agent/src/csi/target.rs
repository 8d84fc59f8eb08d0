//! Where a volume is to appear: a path below the kubelet's folder of pods.
//!
//! The path comes from outside. It is taken apart as text here; its folders are opened without
//! following a link by [`Pods::parent`], and then used by their descriptors, so that nobody can
//! turn a part of it into a link between check and use.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest path (PATH_MAX with its end mark).
const MAX_PATH: usize = 4095;

/// Not followed and not left: a link, magic or not, and everything above the folder.
const STRICTLY: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

/// Why a target is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// It lies elsewhere.
    #[error("{path:?} is no path of a volume below {}", pods.display())]
    Elsewhere {
        /// The target.
        path: String,
        /// The folder of pods.
        pods: PathBuf,
    },
    /// A part of it is a symbolic link.
    #[error("{path:?} leads through a symbolic link or out of {}", pods.display())]
    Link {
        /// The target.
        path: String,
        /// The folder of pods.
        pods: PathBuf,
    },
}

/// The kubelet's folder of pods.
pub(crate) struct Pods {
    path: PathBuf,
    fd: OwnedFd,
}

/// A path below it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Relative to the folder of pods.
    parent: PathBuf,
    /// The last component.
    name: OsString,
    /// As it was given.
    given: String,
}

impl Pods {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    /// What the operating system says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            fd: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// It, held open.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Takes apart the path of a target.
    ///
    /// # Errors
    /// [`TargetError::Elsewhere`].
    pub(crate) fn target(&self, given: &str) -> Result<Target, TargetError> {
        self.split(given).ok_or_else(|| TargetError::Elsewhere {
            path: given.to_owned(),
            pods: self.path.clone(),
        })
    }

    fn split(&self, given: &str) -> Option<Target> {
        if given.len() > MAX_PATH || given.contains('\0') {
            return None;
        }
        let below = Path::new(given).strip_prefix(&self.path).ok()?;
        let plain = |part| matches!(part, Component::Normal(_));
        // What is no folder of one pod is nobody's volume.
        let is_volume = below.components().count() >= 2 && below.components().all(plain);
        Some(Target {
            parent: below.parent().filter(|_| is_volume)?.to_owned(),
            name: below.file_name()?.to_owned(),
            given: given.to_owned(),
        })
    }

    /// Opens the folder that a target lies in; None when it is not there.
    ///
    /// # Errors
    /// [`TargetError::Link`], or what the operating system says.
    pub(crate) fn parent(&self, target: &Target) -> Result<Option<OwnedFd>, OpenError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(&self.fd, &target.parent, flags, Mode::empty(), STRICTLY);
        self.opened(target, opened)
    }

    /// Opens what is at the target itself, the topmost mount of it; None when nothing is. `way`
    /// is how: by [`OFlags::PATH`] it is only looked at.
    ///
    /// # Errors
    /// As [`Pods::parent`].
    pub(crate) fn at(
        &self,
        target: &Target,
        parent: &OwnedFd,
        way: OFlags,
    ) -> Result<Option<OwnedFd>, OpenError> {
        let flags = way | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(parent, &target.name, flags, Mode::empty(), STRICTLY);
        self.opened(target, opened)
    }

    fn opened(
        &self,
        target: &Target,
        opened: Result<OwnedFd, Errno>,
    ) -> Result<Option<OwnedFd>, OpenError> {
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::XDEV) => Err(OpenError::Target(TargetError::Link {
                path: target.given.clone(),
                pods: self.path.clone(),
            })),
            Err(errno) => Err(OpenError::System(errno.into())),
        }
    }
}

/// Why a target was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It is hostile.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The operating system refused.
    #[error(transparent)]
    System(io::Error),
}

impl Target {
    /// Its last component.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// As it was given.
    pub(crate) fn given(&self) -> &str {
        &self.given
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pods").field(&self.path).finish()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.given).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const VOLUME: &str = "uid/volumes/kubernetes.io~csi/spiffe/mount";

    fn pods() -> (tempfile::TempDir, Pods) {
        let dir = tempfile::tempdir().unwrap();
        let pods = Pods::open(dir.path()).unwrap();
        (dir, pods)
    }

    #[test]
    fn a_path_of_the_kubelet_is_taken_apart() {
        let (dir, pods) = pods();
        let given = dir.path().join(VOLUME);
        let target = pods.target(given.to_str().unwrap()).unwrap();
        assert_eq!(target.name(), "mount");
        assert_eq!(
            target.parent,
            Path::new("uid/volumes/kubernetes.io~csi/spiffe")
        );
        assert_eq!(target.given(), given.to_str().unwrap());
    }

    #[test]
    fn paths_that_lie_elsewhere_are_refused() {
        let (dir, pods) = pods();
        let root = dir.path().to_str().unwrap();
        let long = format!("{root}/a/{}", "b/".repeat(3000));
        for path in [
            "",
            "/",
            "/etc",
            VOLUME,
            root,
            &format!("{root}/"),
            &format!("{root}/uid"),
            &format!("{root}x/uid/mount"),
            &format!("{root}/uid/../../etc"),
            &format!("{root}/../pods/uid/mount"),
            &format!("{root}/uid/mount\0"),
            &long,
        ] {
            let error = pods.target(path).unwrap_err();
            assert!(matches!(error, TargetError::Elsewhere { .. }), "{path}");
        }
    }

    #[test]
    fn a_link_on_the_way_or_at_the_end_is_not_followed() {
        let (dir, pods) = pods();
        fs::create_dir_all(dir.path().join("real/inner/mount")).unwrap();
        symlink("real", dir.path().join("link")).unwrap();
        symlink("/etc", dir.path().join("real/out")).unwrap();
        symlink("mount", dir.path().join("real/inner/last")).unwrap();
        let open = |path: &str| {
            let given = dir.path().join(path);
            let target = pods.target(given.to_str().unwrap()).unwrap();
            let parent = pods.parent(&target)?.unwrap();
            pods.at(&target, &parent, OFlags::PATH)
        };
        assert!(open("real/inner/mount").unwrap().is_some());
        assert!(open("real/inner/none").unwrap().is_none());
        for path in ["link/inner/mount", "real/out/ssl", "real/inner/last"] {
            let error = open(path).unwrap_err();
            let is_refused = match &error {
                OpenError::Target(_) => true,
                // What O_DIRECTORY and O_NOFOLLOW answer together for a link at the end.
                OpenError::System(error) => error.kind() == io::ErrorKind::NotADirectory,
            };
            assert!(is_refused, "{path}: {error}");
        }
    }

    #[test]
    fn a_folder_that_is_gone_is_no_error() {
        let (dir, pods) = pods();
        let given = dir.path().join(VOLUME);
        let target = pods.target(given.to_str().unwrap()).unwrap();
        assert!(pods.parent(&target).unwrap().is_none());
    }
}
