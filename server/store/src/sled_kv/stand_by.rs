//! The files of a store as they were before it is opened.
//!
//! sled repairs what it opens: behind the first place that it cannot read it throws the rest
//! of the log away. So a copy stands by until the store was read whole, and is put back when
//! the store is damaged: a refused start leaves what it found. The copy is no backup; one that
//! an interrupted start left behind is removed. Without room for it the store is opened all
//! the same, with a warning. The journal has no copy: opening only reads it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::journal;

/// Its folder in that of the store.
const FOLDER: &str = "before-opening";
/// The one folder of sled's own; its files are written once.
const BLOBS: &str = "blobs";

/// A copy of all files of a store.
#[derive(Debug)]
pub(super) struct StandBy {
    dir: PathBuf,
    /// Below `dir`, and in the copy.
    names: Vec<PathBuf>,
}

impl StandBy {
    /// Copies the files in `dir`; None when there are none or they cannot be copied.
    pub(super) fn make(dir: &Path) -> Option<Self> {
        let copy = Self {
            dir: dir.to_owned(),
            names: names(dir).ok().filter(|names| !names.is_empty())?,
        };
        copy.remove();
        match copy.fill() {
            Ok(()) => Some(copy),
            Err(error) => {
                tracing::warn!(%error, dir = %dir.display(), "store opened without a copy standing by");
                copy.remove();
                None
            }
        }
    }

    fn fill(&self) -> io::Result<()> {
        let copies = self.dir.join(FOLDER);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(copies.join(BLOBS))?;
        for name in &self.names {
            fs::copy(self.dir.join(name), copies.join(name))?;
        }
        Ok(())
    }

    /// The store is good: the copy goes.
    pub(super) fn discard(self) {
        self.remove();
    }

    /// The store is damaged, and closed: its files are again as they were found.
    pub(super) fn put_back(self) {
        let made = names(&self.dir).unwrap_or_default();
        for name in made.iter().filter(|name| !self.names.contains(name)) {
            report(fs::remove_file(self.dir.join(name)));
        }
        let copies = self.dir.join(FOLDER);
        for name in &self.names {
            report(fs::rename(copies.join(name), self.dir.join(name)));
        }
        self.remove();
    }

    fn remove(&self) {
        match fs::remove_dir_all(self.dir.join(FOLDER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => report(Err(error)),
            _ => {}
        }
    }
}

fn report(done: io::Result<()>) {
    if let Err(error) = done {
        tracing::warn!(%error, "copy of the store's files not put back or removed whole");
    }
}

/// The files of a store but the journal, relative to its folder.
fn names(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = files(dir, Path::new(""))?;
    match files(dir, Path::new(BLOBS)) {
        Ok(blobs) => names.extend(blobs),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(names)
}

fn files(dir: &Path, below: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir.join(below))? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name() != journal::NAME {
            names.push(below.join(entry.file_name()));
        }
    }
    Ok(names)
}
