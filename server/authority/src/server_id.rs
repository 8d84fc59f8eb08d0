//! The name of this server among several that share a store: born once, kept in the data
//! directory as `server_id` (NAMES 12).
//!
//! Authority records carry it as their owner. A data directory that is copied to a second
//! server copies the name: do not.

use std::path::PathBuf;

use uuid::Uuid;
use vane_chassis::files::{Dir, FileError};

/// The file's name in the data directory.
pub const FILE: &str = "server_id";
const MAX_BYTES: u64 = 128;

/// Why there is no server ID.
#[derive(Debug, thiserror::Error)]
pub enum ServerIdError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file holds something else.
    #[error(
        "{} holds no UUID; put a copy of it back, since this server's authorities belong to it, or move it away to begin as another server",
        .0.display()
    )]
    Malformed(PathBuf),
}

/// The server ID kept in `data_dir`; a new one when there is none.
///
/// # Errors
/// [`ServerIdError`].
pub fn load_or_create(data_dir: &Dir) -> Result<String, ServerIdError> {
    match data_dir.read(FILE, MAX_BYTES) {
        Ok(bytes) => {
            parse(&bytes).ok_or_else(|| ServerIdError::Malformed(data_dir.path().join(FILE)))
        }
        Err(error) if error.is_not_found() => create(data_dir),
        Err(error) => Err(error.into()),
    }
}

fn parse(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    let id = Uuid::try_parse(text.trim()).ok()?;
    Some(id.to_string())
}

fn create(data_dir: &Dir) -> Result<String, ServerIdError> {
    let id = Uuid::new_v4().to_string();
    data_dir.write(FILE, 0o600, format!("{id}\n").as_bytes())?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_keeps_the_id_it_was_born_with() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let born = load_or_create(&dir).unwrap();
        assert_eq!(load_or_create(&dir).unwrap(), born);
        std::fs::write(temp.path().join(FILE), "lost").unwrap();
        let error = load_or_create(&dir).unwrap_err().to_string();
        assert!(
            error.contains(&temp.path().join(FILE).display().to_string()),
            "{error}"
        );
    }
}
