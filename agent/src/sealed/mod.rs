//! What the workloads have, kept over a restart of the agent: entries, bundles, SVIDs and keys.
//!
//! The file `workload.sealed` in `data_dir` is encrypted with a random key that lies on a tmpfs
//! (`seal_key_dir`). Who has a copy of the disk or of a backup has not the key, and a reboot
//! takes it away, and with it the file's worth: so nothing here is synced to disk. A counter
//! beside the key grows with each file: an older file that somebody put back is refused. It is
//! no protection against root on the running node, who could as well ask the agent's memory.
//!
//! [`Vault`] reads and writes the file, [`Writer`] is the one task that does so while the agent
//! runs. The agent's own SVID and key are not in it ([`crate::own_svid`]).

mod format;

mod file;
mod key;

mod vault;

mod writer;

use std::sync::Arc;
use std::time::SystemTime;

use vane_identity::entry::EntryId;
use vane_identity::jwt_svid::JwtSvid;

use crate::registry::Known;
use crate::svid::Svid;

pub use file::SealError;
pub use format::{FORMAT, Newer};
pub use key::NoRandom;
pub use vault::{FILE, Vault, VaultError};
pub use writer::{Deps, Handle, Urgency, Writer};

/// The most bytes of the file; a larger set is not kept over a restart.
pub const MAX_BYTES: usize = 64 * 1024 * 1024;

/// What the cache holds at one moment. Shares everything with it.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// What is known of the server's set.
    pub known: Known,
    /// X.509-SVIDs, by their entries.
    pub svids: Vec<(EntryId, Arc<Svid>)>,
}

/// A JWT-SVID with what it was asked for.
#[derive(Debug)]
pub struct Token {
    /// Its entry.
    pub entry_id: EntryId,
    /// The entry's revision number and creation time that it was issued for.
    pub revision: (i64, i64),
    /// Whom it is for, sorted.
    pub audience: Arc<[String]>,
    /// The token.
    pub svid: JwtSvid,
    /// When it is replaced.
    pub renew_at: SystemTime,
}

/// What was sealed.
#[derive(Debug)]
pub struct Restored {
    /// What the cache held.
    pub set: Set,
    /// The JWT-SVIDs.
    pub tokens: Arc<[Arc<Token>]>,
    /// When the agent was last in sync with its server, as far as it is known.
    pub heard_at: SystemTime,
}

#[cfg(test)]
mod tests;
