//! Keys that die with the process (SPIRE's `memory`).
//!
//! After a restart the authorities of the server have no keys: rotation marks them old and
//! makes new ones.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use vane_chassis::builtin::{Builtin, OpenError};
use vane_identity::key::{KeyType, PublicKey};

use super::local::{LocalKeys, generate};
use super::{Deps, KeyInfo, KeyManager, KeyManagerError, SignRequest};

/// The options of `type = "memory"`: none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryConfig {}

/// Keys in memory only.
#[derive(Debug, Default)]
pub struct Memory {
    keys: LocalKeys,
    /// One change at a time.
    changes: Mutex<()>,
}

impl Memory {
    /// No keys yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Builtin<dyn KeyManager, Deps> for Memory {
    const NAME: &'static str = "memory";
    type Config = MemoryConfig;

    async fn open(_: MemoryConfig, _: &Deps) -> Result<Arc<dyn KeyManager>, OpenError> {
        Ok(Arc::new(Self::new()))
    }
}

#[async_trait]
impl KeyManager for Memory {
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
        self.keys.replace(keys);
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
        keys.remove(key_ref);
        self.keys.replace(keys);
        Ok(())
    }
}
