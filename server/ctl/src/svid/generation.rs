//! A generation of files, swapped whole.
//!
//! The files of one generation lie in a directory of their own; `..data` is a link to the
//! current one and is replaced by one rename, as kubelet does; the names that programs read
//! are links through `..data`. So whoever opens `svid.pem` and `svid.key` after the swap gets
//! a pair that belongs together.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vane_chassis::files::Dir;

use crate::failure::Failure;

const CURRENT: &str = "..data";
const NEXT: &str = "..data.next";
const PREFIX: &str = "..generation-";
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// A file of a generation.
pub(crate) struct File {
    name: String,
    bytes: Vec<u8>,
    mode: u32,
}

impl File {
    /// One that everybody may read.
    pub(crate) fn public(name: String, bytes: Vec<u8>) -> Self {
        Self {
            name,
            bytes,
            mode: PUBLIC,
        }
    }

    /// One that its owner alone may read.
    pub(crate) fn secret(name: String, bytes: Vec<u8>) -> Self {
        Self {
            name,
            bytes,
            mode: SECRET,
        }
    }
}

/// Makes `files` the current generation of `dir`, which is made when it is missing.
///
/// # Errors
/// Whatever the file system refuses, with the path. What was there before stays then.
pub(crate) fn swap(dir: &Path, files: &[File], now: SystemTime) -> Result<(), Failure> {
    let refuse = |error: String| {
        Failure::new(format!("cannot write to {}: {error}", dir.display()))
            .hint("name a folder that you may write to with --write")
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(|error| refuse(error.to_string()))?;
    let nanos = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    let generation = PathBuf::from(format!("{PREFIX}{nanos}"));
    fill(&dir.join(&generation), files).map_err(refuse)?;
    point(dir, &generation, files).map_err(|error| refuse(error.to_string()))
}

/// Writes one file that its owner alone may read, whole or not at all.
///
/// # Errors
/// Whatever the file system refuses, with the path.
pub(crate) fn secret_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let refuse = |why: String| {
        Failure::new(format!("cannot write to {}: {why}", path.display()))
            .hint("name a file in a folder that you may write to with --write")
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refuse("it names no file".to_owned()))?;
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let dir = Dir::open(parent.unwrap_or(Path::new(".")));
    dir.and_then(|dir| dir.write(name, SECRET, bytes))
        .map_err(|error| refuse(error.to_string()))
}

fn fill(generation: &Path, files: &[File]) -> Result<(), String> {
    fs::DirBuilder::new()
        .mode(0o755)
        .create(generation)
        .map_err(|error| error.to_string())?;
    let open = Dir::open(generation).map_err(|error| error.to_string())?;
    files
        .iter()
        .try_for_each(|file| open.write(&file.name, file.mode, &file.bytes))
        .map_err(|error| error.to_string())
}

fn point(dir: &Path, generation: &Path, files: &[File]) -> io::Result<()> {
    let next = dir.join(NEXT);
    remove(&next)?;
    symlink(generation, &next)?;
    fs::rename(&next, dir.join(CURRENT))?;
    for file in files {
        let name = dir.join(&file.name);
        let target = Path::new(CURRENT).join(&file.name);
        if fs::read_link(&name).is_ok_and(|there| there == target) {
            continue;
        }
        remove(&next)?;
        symlink(&target, &next)?;
        fs::rename(&next, &name)?;
    }
    sweep(dir, generation)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the generations before `current`, and links to files that it does not have.
fn sweep(dir: &Path, current: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name.to_string_lossy().starts_with(PREFIX) && name != current.as_os_str();
        if old && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
        let dangling = fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(CURRENT))
            && !entry.path().exists();
        if dangling {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|one| one.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".."))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_generation_replaces_the_one_before_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n| SystemTime::UNIX_EPOCH + Duration::from_secs(n);
        let first = [
            File::public("svid.pem".into(), b"1".into()),
            File::secret("svid.key".into(), b"k1".into()),
            File::public("svid.1.pem".into(), b"x".into()),
        ];
        swap(dir.path(), &first, at(1)).unwrap();
        assert_eq!(names(dir.path()), ["svid.1.pem", "svid.key", "svid.pem"]);
        let second = [
            File::public("svid.pem".into(), b"2".into()),
            File::secret("svid.key".into(), b"k2".into()),
        ];
        swap(dir.path(), &second, at(2)).unwrap();
        assert_eq!(names(dir.path()), ["svid.key", "svid.pem"]);
        assert_eq!(fs::read(dir.path().join("svid.key")).unwrap(), b"k2");
        let mode = |name: &str| {
            fs::metadata(dir.path().join(name))
                .unwrap()
                .permissions()
                .mode()
                & 0o777
        };
        assert_eq!((mode("svid.key"), mode("svid.pem")), (0o600, 0o644));
        let generations = fs::read_dir(dir.path())
            .unwrap()
            .filter(|one| {
                one.as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with(PREFIX)
            })
            .count();
        assert_eq!(generations, 1);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let error = swap(&dir.path().join("file"), &[], SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
