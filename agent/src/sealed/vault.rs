//! The two files: the sealed state in the data directory, its key on a tmpfs.
//!
//! The file is written before its counter is: after a crash between the two the file is one
//! ahead, never behind. Everything that cannot be used is thrown away with a warning, and the
//! agent starts from its server; only what a newer version wrote is left alone and keeps this
//! one from starting.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use vane_chassis::files::{Dir, FileError, private_dir, socket_dir};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::{from_unix, to_unix};
use vane_wire::record::{
    SealedHeader, SealedJwtSvid, SealedState, SealedStateBytes, SealedX509Svid,
};
use zeroize::Zeroizing;

use super::file::{self, OpenError, SealError};
use super::format::Newer;
use super::key::{KeyFileError, LENGTH, NoRandom, SealKey};
use super::{MAX_BYTES, Restored, Set, Token};
use crate::health::DiskTrouble;
use crate::registry::Known;
use crate::svid::Svid;

/// The sealed file's name in the data directory.
pub const FILE: &str = "workload.sealed";
const MODE: u32 = 0o600;
/// The mode of the key's directory, where sockets are as well.
const KEY_DIR_MODE: u32 = 0o755;

/// Why nothing is kept over a restart, or the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A newer version wrote it.
    #[error(
        "{} is from a newer version of vane-agent: {source}; start that version again, or remove the file: then the SVIDs come from the server", path.display()
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        source: Newer,
    },
    /// The state cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// There is no key.
    #[error(transparent)]
    Random(#[from] NoRandom),
}

/// Where the state is kept.
#[derive(Debug)]
pub struct Vault {
    trust_domain: TrustDomain,
    data: Dir,
    keys: Dir,
    /// One key for each data directory: several agents may share the tmpfs.
    key_name: String,
    key: Mutex<SealKey>,
    trouble: Mutex<Option<DiskTrouble>>,
}

impl Vault {
    /// Opens the directories and reads the key, or makes one.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Newer`] is one to stop for.
    pub fn open(
        trust_domain: TrustDomain,
        data_dir: &Path,
        key_dir: &Path,
    ) -> Result<Self, VaultError> {
        let (data, keys) = (private_dir(data_dir)?, socket_dir(key_dir, KEY_DIR_MODE)?);
        data.sweep()?;
        if !keys.is_in_memory()? {
            tracing::warn!(
                seal_key_dir = %key_dir.display(),
                "this directory is on a disk, not on a tmpfs: an image of the disk has the keys of the workloads and what opens them"
            );
        }
        let key_name = key_name(data_dir);
        let key = read_key(&keys, &key_name)?;
        let is_new = key.is_none();
        let key = match key {
            Some(key) => key,
            None => SealKey::generate()?,
        };
        let vault = Self {
            trust_domain,
            data,
            keys,
            key_name,
            key: Mutex::new(key),
            trouble: Mutex::new(None),
        };
        if is_new {
            vault.keep_key(&vault.lock())?;
        }
        Ok(vault)
    }

    /// What the agent `agent_id` sealed last. What cannot be used is thrown away.
    ///
    /// # Errors
    /// [`VaultError::Newer`]: it is left alone.
    pub fn load(
        &self,
        agent_id: Option<&SpiffeId>,
        now: SystemTime,
    ) -> Result<Option<Restored>, VaultError> {
        let mut file = match self.data.read(FILE, MAX_BYTES as u64) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return self.discard(&error.to_string()).map(|()| None),
        };
        let clear = match file::peek(&file) {
            Ok(clear) => clear,
            Err(OpenError::Newer(source)) => {
                let path = self.data.path().join(FILE);
                return Err(VaultError::Newer { path, source });
            }
            Err(error) => return self.discard(&error.to_string()).map(|()| None),
        };
        let header = clear.header.clone();
        if header.trust_domain != self.trust_domain || agent_id != Some(&header.agent_id) {
            let why = format!("it is of another agent, {}", header.agent_id);
            return self.discard(&why).map(|()| None);
        }
        let mut key = self.lock();
        let refused = match file::open(&key, &clear, &mut file) {
            Ok(state) if header.counter >= key.counter => {
                if header.counter > key.counter {
                    key.counter = header.counter;
                    self.keep_key(&key)?;
                }
                return Ok(Some(restored(header, state, key.heard_at, now)));
            }
            Ok(_) => format!(
                "it is an older one ({} < {}), put back from a copy",
                header.counter, key.counter
            ),
            Err(error) => format!(
                "{error} (the key is lost with each reboot, and when seal_key_dir is not kept)"
            ),
        };
        drop(key);
        self.discard(&refused)?;
        Ok(None)
    }

    /// Seals `set` and `tokens`; how many bytes that are.
    ///
    /// # Errors
    /// [`VaultError`]: the file is as it was.
    pub fn seal(
        &self,
        agent_id: &SpiffeId,
        set: &Set,
        tokens: &[Arc<Token>],
        now: SystemTime,
    ) -> Result<usize, VaultError> {
        let written = self.write(agent_id, set, tokens, now);
        self.note(&written);
        written
    }

    /// What could not be written last; none when all was.
    #[must_use]
    pub fn trouble(&self) -> Option<DiskTrouble> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note<T>(&self, written: &Result<T, VaultError>) {
        let trouble = match written {
            Err(VaultError::File(error)) => Some(DiskTrouble {
                text: error.to_string(),
                full: error.is_full(),
            }),
            // Nothing that space or permissions mend: the log has it.
            Err(_) | Ok(_) => None,
        };
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn write(
        &self,
        agent_id: &SpiffeId,
        set: &Set,
        tokens: &[Arc<Token>],
        now: SystemTime,
    ) -> Result<usize, VaultError> {
        let state = encode(set, tokens);
        let mut key = self.lock();
        let header = SealedHeader {
            trust_domain: self.trust_domain.clone(),
            agent_id: agent_id.clone(),
            epoch: set.known.epoch.clone(),
            revision: set.known.revision,
            counter: key.counter + 1,
            sealed_at: millis(now),
        };
        let file = file::seal(&key, &header, &state)?;
        self.data.write_volatile(FILE, MODE, &file)?;
        key.counter = header.counter;
        key.heard_at = key.heard_at.max(header.sealed_at);
        self.keep_key(&key)?;
        Ok(file.len())
    }

    /// Remembers that the agent was in sync with its server at `at`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn heard(&self, at: SystemTime) -> Result<(), VaultError> {
        let mut key = self.lock();
        key.heard_at = millis(at);
        Ok(self.keep_key(&key)?)
    }

    /// Makes what was sealed worthless and removes it: the server denies this agent.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn wipe(&self) -> Result<(), VaultError> {
        self.keys.remove(&self.key_name)?;
        Ok(self.data.remove(FILE)?)
    }

    fn discard(&self, why: &str) -> Result<(), VaultError> {
        tracing::warn!(
            file = %self.data.path().join(FILE).display(),
            why,
            "what was kept for the workloads cannot be used and is thrown away: their SVIDs come from the server"
        );
        let mut key = self.lock();
        *key = SealKey::generate()?;
        self.keep_key(&key)?;
        Ok(self.data.remove(FILE)?)
    }

    fn keep_key(&self, key: &SealKey) -> Result<(), FileError> {
        self.keys
            .write_volatile(&self.key_name, MODE, &key.encode())
    }

    fn lock(&self) -> MutexGuard<'_, SealKey> {
        self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `agent-<16 hex>.key`, from the path of the data directory.
fn key_name(data_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let path = data_dir.as_os_str().as_bytes();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, path);
    let short = digest.as_ref().get(..8).unwrap_or_default();
    format!("agent-{}.key", crate::svid::hex(short))
}

fn read_key(keys: &Dir, name: &str) -> Result<Option<SealKey>, VaultError> {
    let why = match keys.read(name, LENGTH as u64) {
        Ok(file) => match SealKey::decode(&file) {
            Ok(key) => return Ok(Some(key)),
            Err(KeyFileError::Newer(source)) => {
                let path = keys.path().join(name);
                return Err(VaultError::Newer { path, source });
            }
            Err(error) => error.to_string(),
        },
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => error.to_string(),
    };
    tracing::warn!(file = %keys.path().join(name).display(), why, "the key of what was kept for the workloads cannot be used: making a new one");
    keys.remove(name)?;
    Ok(None)
}

fn encode(set: &Set, tokens: &[Arc<Token>]) -> SealedStateBytes {
    let mut bytes = SealedStateBytes::new(set.known.bundle_revision);
    set.known
        .entries
        .iter()
        .for_each(|entry| bytes.entry(entry));
    set.known
        .bundles
        .iter()
        .for_each(|bundle| bytes.bundle(bundle));
    for (entry_id, svid) in &set.svids {
        bytes.x509_svid(SealedX509Svid {
            entry_id: entry_id.clone(),
            chain: svid.chain.clone(),
            key: svid.key.clone(),
            not_after: to_unix(svid.not_after),
            received_at: millis(svid.received_at),
            renew_at: millis(svid.renew_at),
            authority: svid.authority.clone(),
            revision: svid.revision,
        });
    }
    for token in tokens {
        bytes.jwt_svid(&SealedJwtSvid {
            entry_id: token.entry_id.clone(),
            audience: token.audience.to_vec(),
            token: Zeroizing::new(token.svid.token().to_owned()),
            renew_at: millis(token.renew_at),
            expires_at: token.svid.expires_at(),
            revision: token.revision,
        });
    }
    bytes
}

/// What had ended when it was sealed stays so, wherever the clock is now.
fn restored(header: SealedHeader, state: SealedState, heard_at: i64, now: SystemTime) -> Restored {
    let now = now.max(from_millis(header.sealed_at));
    let svids = state.x509_svids.into_iter().map(|one| {
        let svid = Svid {
            chain: one.chain,
            key: one.key,
            not_after: from_unix(one.not_after),
            received_at: from_millis(one.received_at),
            renew_at: from_millis(one.renew_at),
            authority: one.authority,
            revision: one.revision,
        };
        (one.entry_id, Arc::new(svid))
    });
    let tokens = state.jwt_svids.into_iter().filter_map(|one| {
        let token = Token {
            // What was sealed was one.
            svid: JwtSvid::parse(&one.token).ok()?,
            entry_id: one.entry_id,
            revision: one.revision,
            audience: one.audience.into(),
            renew_at: from_millis(one.renew_at),
        };
        Some(Arc::new(token))
    });
    Restored {
        set: Set {
            known: Known {
                epoch: header.epoch,
                revision: header.revision,
                bundle_revision: state.bundle_revision,
                entries: state.entries.into_iter().map(Arc::new).collect(),
                bundles: state.bundles.into_iter().map(Arc::new).collect(),
            },
            svids: svids.filter(|(_, svid)| svid.is_valid(now)).collect(),
        },
        tokens: tokens
            .filter(|token| to_unix(now) < token.svid.expires_at())
            .collect(),
        heard_at: from_millis(heard_at.max(header.sealed_at)).min(now),
    }
}

fn millis(time: SystemTime) -> i64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(time: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(time).unwrap_or_default())
}
