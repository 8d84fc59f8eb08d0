//! Keys in a file of SPIRE's form: `{"keys":{"<name>":"<base64 PKCS#8>"}}` (SPIRE.md 2.3).
//!
//! The file has mode 0600 and is replaced whole (write, fsync, rename, fsync of the
//! directory) before a new key is used, so that a key that signed is a key that is kept.
//! Every key in it is exercised at start, also those that Vane does not use: the file may
//! be SPIRE's. What passes through memory on the way is wiped.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::Mutex;
use vane_chassis::builtin::{Builtin, OpenError};
use vane_chassis::files::{Dir, private_dir};
use vane_identity::key::{KeyType, PrivateKey, PublicKey};
use zeroize::Zeroizing;

use super::local::{KeyMap, LocalKey, LocalKeys, generate};
use super::{Deps, KeyInfo, KeyManager, KeyManagerError, SignRequest};

/// The name of the file in the data directory (NAMES 12).
const FILE: &str = "keys.json";
/// The most bytes of a key file that are read.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Owner only.
const MODE: u32 = 0o600;

/// The options of `type = "disk"`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// The file; its directory must be ours and 0700. Default: `<data_dir>/keys.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys_path: Option<PathBuf>,
}

/// Keys in a file.
#[derive(Debug)]
pub struct Disk {
    dir: Arc<Dir>,
    file: String,
    keys: LocalKeys,
    /// One change at a time.
    changes: Mutex<()>,
}

impl Disk {
    /// Opens `file` in `dir`, whose mode the caller has checked; no file is no keys.
    ///
    /// # Errors
    /// [`KeyManagerError::File`], [`KeyManagerError::Malformed`], and
    /// [`KeyManagerError::Broken`] for a key that does not verify its own signature.
    pub fn load(dir: Dir, file: &str) -> Result<Self, KeyManagerError> {
        let keys = match dir.read(file, MAX_FILE_BYTES) {
            Ok(bytes) => decode(&bytes, &dir.path().join(file))?,
            Err(error) if error.is_not_found() => KeyMap::new(),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            dir: Arc::new(dir),
            file: file.to_owned(),
            keys: LocalKeys::new(keys),
            changes: Mutex::default(),
        })
    }

    /// Opens `keys.json` in `data_dir`, which must be ours and 0700.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn open_in(data_dir: &Path) -> Result<Self, KeyManagerError> {
        Self::load(private_dir(data_dir)?, FILE)
    }

    /// Writes the file, then uses `keys`. Under the lock of `changes`.
    async fn store(&self, keys: KeyMap) -> Result<(), KeyManagerError> {
        let (dir, file, text) = (Arc::clone(&self.dir), self.file.clone(), encode(&keys));
        let write = move || dir.write(&file, MODE, text.as_bytes());
        let written = tokio::task::spawn_blocking(write).await;
        written.map_err(|_| KeyManagerError::Stopping)??;
        self.keys.replace(keys);
        Ok(())
    }
}

impl Builtin<dyn KeyManager, Deps> for Disk {
    const NAME: &'static str = "disk";
    type Config = DiskConfig;

    async fn open(config: DiskConfig, deps: &Deps) -> Result<Arc<dyn KeyManager>, OpenError> {
        let path = config.keys_path.unwrap_or_else(|| deps.data_dir.join(FILE));
        let opened = open_path(&path).map_err(OpenError::failed)?;
        Ok(Arc::new(opened))
    }
}

fn open_path(path: &Path) -> Result<Disk, KeyManagerError> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            Disk::load(private_dir(parent)?, name)
        }
        (Some(_), Some(name)) => Disk::load(private_dir(Path::new("."))?, name),
        _ => Err(malformed(path, "it is not the path of a file".to_owned())),
    }
}

#[async_trait]
impl KeyManager for Disk {
    async fn generate(
        &self,
        key_ref: &str,
        key_type: KeyType,
    ) -> Result<PublicKey, KeyManagerError> {
        let key = generate(key_ref, key_type).await?;
        let public = key.public().clone();
        let _one = self.changes.lock().await;
        let mut keys = self.keys.all();
        keys.insert(key_ref.to_owned(), Arc::new(key));
        self.store(keys).await?;
        Ok(public)
    }

    async fn public_keys(&self) -> Result<Vec<KeyInfo>, KeyManagerError> {
        Ok(self.keys.infos())
    }

    async fn sign(&self, requests: &[SignRequest<'_>]) -> Result<Vec<Vec<u8>>, KeyManagerError> {
        self.keys.sign(requests).await
    }

    async fn remove(&self, key_ref: &str) -> Result<(), KeyManagerError> {
        let _one = self.changes.lock().await;
        let mut keys = self.keys.all();
        match keys.remove(key_ref) {
            Some(_) => self.store(keys).await,
            None => Ok(()),
        }
    }
}

/// The file's form while it is read.
#[derive(Deserialize)]
struct KeyFile {
    keys: BTreeMap<String, Pkcs8>,
}

/// PKCS#8 that was base64; the text itself lies in the wiped buffer of the file.
struct Pkcs8(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Pkcs8 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Pkcs8Visitor)
    }
}

struct Pkcs8Visitor;

impl Visitor<'_> for Pkcs8Visitor {
    type Value = Pkcs8;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a base64 text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Pkcs8, E> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
        match STANDARD.decode_vec(text, &mut bytes) {
            Ok(()) => Ok(Pkcs8(bytes)),
            Err(_) => Err(E::custom("a key is not base64")),
        }
    }
}

fn malformed(path: &Path, reason: String) -> KeyManagerError {
    KeyManagerError::Malformed {
        path: path.to_owned(),
        reason,
    }
}

fn decode(bytes: &[u8], path: &Path) -> Result<KeyMap, KeyManagerError> {
    let file: KeyFile = serde_json::from_slice(bytes).map_err(|error| {
        // serde_json quotes a value of the wrong type, which may be a key.
        malformed(
            path,
            format!("line {} column {}", error.line(), error.column()),
        )
    })?;
    let parse = |(key_ref, mut pkcs8): (String, Pkcs8)| {
        let private = PrivateKey::from_pkcs8(std::mem::take(&mut *pkcs8.0));
        let key = LocalKey::parse(private)
            .map_err(|error| malformed(path, format!("key \"{key_ref}\" is {error}")))?;
        if !key.is_sound() {
            return Err(KeyManagerError::Broken(key_ref));
        }
        Ok((key_ref, Arc::new(key)))
    };
    file.keys.into_iter().map(parse).collect()
}

/// The file's text, in a buffer that is large enough from the start: a growing one would
/// leave copies behind.
fn encode(keys: &KeyMap) -> Zeroizing<String> {
    let room = |(name, key): (&String, &Arc<LocalKey>)| {
        6 * name.len() + 2 * key.private().pkcs8().len() + 16
    };
    let total: usize = keys.iter().map(room).sum();
    let mut text = Zeroizing::new(String::with_capacity(total + 32));
    text.push_str("{\"keys\":{");
    for (index, (name, key)) in keys.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(name.as_str()).to_string());
        text.push_str(":\"");
        STANDARD.encode_string(key.private().pkcs8(), &mut text);
        text.push('"');
    }
    text.push_str("}}\n");
    text
}
