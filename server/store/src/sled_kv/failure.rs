//! What goes wrong inside sled, as an error that names cause and way out.

use std::any::Any;
use std::io;
use std::path::Path;

use crate::kv::{FREE_SPACE, KvError};
use crate::record::{self, FrameError, RESTORE};

/// What goes wrong inside a call into sled.
#[derive(Debug)]
pub(super) enum Fault {
    Sled(sled::Error),
    Io(io::Error),
    Frame(FrameError),
    Key(KvError),
    Damaged(String),
}

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self::Sled(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<FrameError> for Fault {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl Fault {
    /// Names the key that a frame stands under.
    pub(super) fn of_key(self, key: &[u8]) -> Self {
        match self {
            Self::Frame(error) => Self::Key(record::refusal(key, error)),
            other => other,
        }
    }

    /// The error of the store in `dir`, with its cause and the way out.
    pub(super) fn explain(self, dir: &Path, doing: &str) -> KvError {
        match self {
            Self::Io(error) | Self::Sled(sled::Error::Io(error)) => unavailable(dir, doing, &error),
            Self::Sled(error) => corrupt(dir, &error.to_string()),
            Self::Frame(error) => corrupt(dir, &error.to_string()),
            Self::Key(error) => error,
            Self::Damaged(what) => corrupt(dir, &what),
        }
    }
}

/// Whether another handle has the database open.
pub(super) fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// The store in `dir` cannot be used until `error` has gone.
pub(super) fn unavailable(dir: &Path, doing: &str, error: &io::Error) -> KvError {
    let way_out = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FREE_SPACE,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "let the user of the server write there; the store tries again by itself"
        }
        _ => "look at the disk and the kernel's log; the store tries again by itself",
    };
    // sled hands on copies of errors whose text is the original's Debug.
    let copy = error.raw_os_error().is_none() && error.kind() != io::ErrorKind::Other;
    let text = if copy {
        error.kind().to_string()
    } else {
        error.to_string()
    };
    KvError::Unavailable {
        cause: format!("{doing} of {} failed: {text}", dir.display()),
        way_out: way_out.to_owned(),
    }
}

/// The store in `dir` is damaged.
pub(super) fn corrupt(dir: &Path, what: &str) -> KvError {
    KvError::Corrupt {
        what: format!("{}: {what}", dir.display()),
        way_out: RESTORE.to_owned(),
    }
}

/// What a caught panic of sled says.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    let text = text.unwrap_or_else(|| "unknown panic".to_owned());
    format!("sled gave up on its files: {}", text.replace('\n', " "))
}
