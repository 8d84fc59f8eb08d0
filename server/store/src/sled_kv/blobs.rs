//! Files beside the log: sled spills nodes above 128 KiB into them and never
//! syncs them. Keys and chunks are kept short so that it hardly happens; when
//! it does, they are synced here.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// The folder of those files, and when it had last changed as they were synced.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    seen: Mutex<Option<SystemTime>>,
}

impl Blobs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            seen: Mutex::default(),
        }
    }

    /// Syncs the files when there are new ones.
    pub(super) fn sync(&self) -> io::Result<()> {
        let now = modified(&self.dir)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == Some(now) {
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.dir)? {
            match File::open(entry?.path()) {
                Ok(blob) => blob.sync_data()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        File::open(&self.dir)?.sync_all()?;
        *seen = Some(now);
        Ok(())
    }
}

fn modified(dir: &Path) -> io::Result<SystemTime> {
    std::fs::metadata(dir)?.modified()
}
