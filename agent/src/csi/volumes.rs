//! Mounts the folder for pods, and unmounts it.
//!
//! The mounts are the state. Each call looks at what is at its target, decides by
//! [`Found`], and acts by the descriptor of the folder around it: what has been looked at is what
//! is changed. Both calls may be repeated at any time, after a crash, a reboot or an upgrade.
//!
//! Calls are not made side by side: their owner sees to that.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::folder::{Content, Folder, FolderError, look};
use super::target::{OpenError, Pods, Target, TargetError};

/// The mode of a target's directory, which the mount hides.
const TARGET_MODE: u32 = 0o750;
/// The most mounts that are taken from one target.
const MAX_STACK: usize = 16;

/// Why a volume is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The path is not one of a volume.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The folder may not be given to pods.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Something else is mounted there.
    #[error("what is mounted at {0:?} is no folder of sockets: it is left alone")]
    Foreign(String),
    /// More is mounted there than ever by this driver.
    #[error("more than {MAX_STACK} mounts at {0:?}")]
    Stack(String),
    /// The folder around the target is missing.
    #[error("unable to create target path {0:?}: the folder that it lies in does not exist")]
    NoParent(String),
    /// The operating system refused.
    #[error("unable to {action} {target:?}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The target.
        target: String,
        /// What it says.
        source: io::Error,
    },
}

/// What a call has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// What it is there for.
    Changed,
    /// It was so already.
    Already,
    /// The folder of an agent before was replaced by today's.
    Replaced,
}

/// How a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// As it was published.
    Mounted,
    /// Not there.
    NotMounted,
    /// It is another folder than the agent's of today.
    Outdated,
}

/// What is at a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    /// A directory that nothing is mounted at.
    Directory,
    /// The agent's folder.
    Ours,
    /// A folder of sockets, though not the agent's of today: it was made anew since, or another
    /// one was configured.
    Outdated,
    /// Anything else.
    Foreign,
}

/// The volumes of the node.
#[derive(Debug)]
pub(crate) struct Volumes {
    pods: Pods,
    folder: Folder,
}

impl Volumes {
    /// Those below `pods`, which get `folder`.
    pub(crate) fn new(pods: Pods, folder: Folder) -> Self {
        Self { pods, folder }
    }

    /// Mounts the folder at `target`, whose directory is made.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn publish(&self, target: &str) -> Result<Done, VolumeError> {
        let target = self.pods.target(target)?;
        self.folder.check()?;
        let parent = self
            .parent(&target)?
            .ok_or_else(|| VolumeError::NoParent(target.given().to_owned()))?;
        match rustix::fs::mkdirat(&parent, target.name(), Mode::from(TARGET_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("create target path", &target)(errno)),
        }
        match self.found(&target, &parent)? {
            Found::Ours => Ok(Done::Already),
            Found::Directory => self.mount(&target, &parent, Done::Changed),
            Found::Outdated => {
                self.unmount_all(&target, &parent)?;
                self.mount(&target, &parent, Done::Replaced)
            }
            Found::Foreign => Err(VolumeError::Foreign(target.given().to_owned())),
            Found::Nothing => Err(failed("create target path", &target)(Errno::NOENT)),
        }
    }

    /// Unmounts `target` and removes its directory. Nothing there is fine.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn unpublish(&self, target: &str) -> Result<Done, VolumeError> {
        let target = self.pods.target(target)?;
        let Some(parent) = self.parent(&target)? else {
            return Ok(Done::Already);
        };
        self.unmount_all(&target, &parent)?;
        // Only an empty directory can be removed.
        match rustix::fs::unlinkat(&parent, target.name(), AtFlags::REMOVEDIR) {
            Ok(()) => Ok(Done::Changed),
            Err(Errno::NOENT) => Ok(Done::Already),
            Err(errno) => Err(failed("remove target path", &target)(errno)),
        }
    }

    /// Looks at the volume at `target`.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub(crate) fn condition(&self, target: &str) -> Result<Condition, VolumeError> {
        let target = self.pods.target(target)?;
        let Some(parent) = self.parent(&target)? else {
            return Ok(Condition::NotMounted);
        };
        Ok(match self.found(&target, &parent)? {
            Found::Nothing | Found::Directory => Condition::NotMounted,
            Found::Ours => Condition::Mounted,
            Found::Outdated => Condition::Outdated,
            Found::Foreign => return Err(VolumeError::Foreign(target.given().to_owned())),
        })
    }

    fn parent(&self, target: &Target) -> Result<Option<OwnedFd>, VolumeError> {
        self.pods.parent(target).map_err(opening(target))
    }

    fn found(&self, target: &Target, parent: &OwnedFd) -> Result<Found, VolumeError> {
        let at = |way| self.pods.at(target, parent, way).map_err(opening(target));
        let Some(fd) = at(OFlags::PATH)? else {
            return Ok(Found::Nothing);
        };
        let seen = look(&fd).map_err(failed("verify mount point", target))?;
        if !seen.is_mounted {
            return Ok(Found::Directory);
        }
        if seen.inode == self.folder.inode() {
            return Ok(Found::Ours);
        }
        let Some(fd) = at(OFlags::RDONLY)? else {
            return Ok(Found::Nothing);
        };
        let content = Content::of(&fd).map_err(failed("list", target))?;
        let is_sockets = !content.has_others && !content.is_long;
        Ok(if seen.is_removed || is_sockets {
            Found::Outdated
        } else {
            Found::Foreign
        })
    }

    fn mount(&self, target: &Target, parent: &OwnedFd, done: Done) -> Result<Done, VolumeError> {
        let mount = self.folder.clone_mount()?;
        // Without MOVE_MOUNT_T_SYMLINKS a link at the end is not followed.
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&mount, "", parent, target.name(), flags).map_err(failed("mount", target))?;
        Ok(done)
    }

    /// Takes away what is mounted, unless it is foreign.
    fn unmount_all(&self, target: &Target, parent: &OwnedFd) -> Result<(), VolumeError> {
        for _ in 0..MAX_STACK {
            match self.found(target, parent)? {
                Found::Nothing | Found::Directory => return Ok(()),
                Found::Ours | Found::Outdated => unmount_at(target, parent)?,
                Found::Foreign => return Err(VolumeError::Foreign(target.given().to_owned())),
            }
        }
        Err(VolumeError::Stack(target.given().to_owned()))
    }
}

/// umount2 takes a path only: by way of the folder's descriptor it is the same folder whatever
/// was renamed since.
fn unmount_at(target: &Target, parent: &OwnedFd) -> Result<(), VolumeError> {
    let folder = PathBuf::from(format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd()));
    let path = folder.join(target.name());
    match unmount(&path, UnmountFlags::NOFOLLOW) {
        // Somebody on the host is in it. It is gone for everybody else, and for him when he goes.
        Err(Errno::BUSY) => {
            tracing::warn!(target_path = target.given(), "volume is in use: detached");
            unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        }
        done => done,
    }
    .map_err(failed("unmount", target))
}

fn failed(action: &'static str, target: &Target) -> impl FnOnce(Errno) -> VolumeError {
    let target = target.given().to_owned();
    move |errno| VolumeError::System {
        action,
        target,
        source: errno.into(),
    }
}

fn opening(target: &Target) -> impl FnOnce(OpenError) -> VolumeError {
    let target = target.given().to_owned();
    move |error| match error {
        OpenError::Target(error) => VolumeError::Target(error),
        OpenError::System(source) => VolumeError::System {
            action: "open",
            target,
            source,
        },
    }
}

/// What needs no mount; `vane-faults csi` has the rest.
#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    const VOLUME: &str = "pods/uid/volumes/kubernetes.io~csi/spiffe/mount";

    struct Node {
        dir: tempfile::TempDir,
        volumes: Volumes,
    }

    impl Node {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let sockets = dir.path().join("sockets");
            fs::create_dir(&sockets).unwrap();
            fs::create_dir_all(dir.path().join(VOLUME).parent().unwrap()).unwrap();
            let pods = Pods::open(&dir.path().join("pods")).unwrap();
            let volumes = Volumes::new(pods, Folder::open(&sockets).unwrap());
            Self { dir, volumes }
        }

        fn path(&self, path: &str) -> String {
            self.dir.path().join(path).to_str().unwrap().to_owned()
        }
    }

    #[test]
    fn what_was_never_published_is_unpublished_again_and_again() {
        let node = Node::new();
        let target = node.path(VOLUME);
        assert_eq!(node.volumes.unpublish(&target).unwrap(), Done::Already);
        fs::create_dir(&target).unwrap();
        assert_eq!(node.volumes.unpublish(&target).unwrap(), Done::Changed);
        assert_eq!(node.volumes.unpublish(&target).unwrap(), Done::Already);
        let gone = node.path("pods/other/volumes/kubernetes.io~csi/spiffe/mount");
        assert_eq!(node.volumes.unpublish(&gone).unwrap(), Done::Already);
    }

    #[test]
    fn unpublish_removes_nothing_but_an_empty_directory() {
        let node = Node::new();
        let target = node.path(VOLUME);
        fs::create_dir(&target).unwrap();
        fs::write(Path::new(&target).join("data"), "kept").unwrap();
        let error = node.volumes.unpublish(&target).unwrap_err().to_string();
        assert!(error.contains("remove target path"), "{error}");
        assert!(Path::new(&target).join("data").exists());
    }

    #[test]
    fn a_link_is_neither_followed_nor_removed() {
        let node = Node::new();
        let victim = node.path("victim");
        fs::create_dir(&victim).unwrap();
        let target = node.path(VOLUME);
        symlink(&victim, &target).unwrap();
        node.volumes.unpublish(&target).unwrap_err();
        node.volumes.publish(&target).unwrap_err();
        let through = node.path("pods/link/mount");
        symlink("/", node.path("pods/link")).unwrap();
        for call in [
            node.volumes.unpublish(&through),
            node.volumes.publish(&through),
        ] {
            let error = call.unwrap_err();
            assert!(matches!(error, VolumeError::Target(_)), "{error}");
        }
        assert!(Path::new(&victim).exists());
        assert!(fs::symlink_metadata(&target).unwrap().is_symlink());
    }

    #[test]
    fn a_volume_without_its_pods_folder_is_refused_as_such() {
        let node = Node::new();
        let error = node.volumes.publish(&node.path("pods/none/mount"));
        assert!(matches!(error, Err(VolumeError::NoParent(_))), "{error:?}");
    }

    #[test]
    fn a_folder_with_more_than_public_sockets_is_not_published() {
        let node = Node::new();
        fs::write(node.path("sockets/seal.key"), "k").unwrap();
        let error = node.volumes.publish(&node.path(VOLUME)).unwrap_err();
        assert!(error.to_string().contains("seal.key"), "{error}");
        assert!(!Path::new(&node.path(VOLUME)).exists());
    }

    #[test]
    fn the_condition_of_what_is_not_mounted_says_so() {
        let node = Node::new();
        let target = node.path(VOLUME);
        for _ in 0..2 {
            let condition = node.volumes.condition(&target).unwrap();
            assert_eq!(condition, Condition::NotMounted);
            let _ = fs::create_dir(&target);
        }
    }
}
