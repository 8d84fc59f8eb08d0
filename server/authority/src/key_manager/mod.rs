//! Where private keys live and sign: generate, list, sign, remove; keys never leave.
//!
//! The trait is async and batched because a KMS takes 10 to 50 ms a call; a local key
//! manager signs a batch in one call and yields to other tasks now and then. A key is known
//! by a name (`key_ref`) that the caller chooses. Which key is used for what, and when, is
//! decided in `rotation`.

mod disk;
mod local;
mod memory;

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use vane_chassis::builtin::{Row, row};
use vane_chassis::files::FileError;
use vane_identity::key::{KeyError, KeyType, PublicKey};

pub use disk::{Disk, DiskConfig};
pub use memory::{Memory, MemoryConfig};

/// The key managers that there are. A new one is a file and a row.
pub const BUILTINS: &[Row<dyn KeyManager, Deps>] = &[row::<Disk, _, _>(), row::<Memory, _, _>()];

/// What key managers are made from.
#[derive(Debug, Clone)]
pub struct Deps {
    /// The server's data directory.
    pub data_dir: PathBuf,
}

/// Keeps private keys and signs with them.
///
/// Implementations exercise a key (sign and verify) when they load it. A key that was
/// generated is still there after a restart, if the manager keeps keys at all, before
/// [`generate`](Self::generate) returns.
#[async_trait]
pub trait KeyManager: Send + Sync + fmt::Debug {
    /// Makes a key called `key_ref`; one of that name is replaced.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    async fn generate(
        &self,
        key_ref: &str,
        key_type: KeyType,
    ) -> Result<PublicKey, KeyManagerError>;

    /// The keys that there are, sorted by name.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    async fn public_keys(&self) -> Result<Vec<KeyInfo>, KeyManagerError>;

    /// Signs a batch; the signatures come in the order of the requests.
    ///
    /// # Errors
    /// [`KeyManagerError`]; then nothing of the batch is signed.
    async fn sign(&self, requests: &[SignRequest<'_>]) -> Result<Vec<Vec<u8>>, KeyManagerError>;

    /// Destroys a key; one that is not there is destroyed already.
    ///
    /// # Errors
    /// [`KeyManagerError`].
    async fn remove(&self, key_ref: &str) -> Result<(), KeyManagerError>;
}

/// One message to sign.
#[derive(Debug, Clone, Copy)]
pub struct SignRequest<'a> {
    /// The key.
    pub key_ref: &'a str,
    /// What is signed; hashed by the key manager with the hash of the key's type
    /// (P-256 and RSA: SHA-256, P-384: SHA-384).
    pub message: &'a [u8],
    /// The form of an ECDSA signature. RSA is PKCS#1 v1.5 in both.
    pub format: SignatureFormat,
}

/// How an ECDSA signature is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureFormat {
    /// ASN.1 DER `SEQUENCE {r, s}` (RFC 3279 section 2.2.3).
    X509,
    /// `r || s`, each of the field's length (RFC 7518 section 3.4).
    Jws,
}

/// A key as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub key_ref: String,
    /// Its kind.
    pub key_type: KeyType,
    /// Its public half.
    pub public_key: PublicKey,
}

/// Why a key manager did not do it. Carries no key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyManagerError {
    /// No key has this name.
    #[error("no key \"{0}\" in the key manager")]
    NoKey(String),
    /// A key could not be made.
    #[error("key \"{key_ref}\": {source}")]
    Key {
        /// Its name.
        key_ref: String,
        /// Why.
        source: KeyError,
    },
    /// A key that was loaded does not verify what it signs.
    #[error("key \"{0}\" does not verify its own signature")]
    Broken(String),
    /// The library refused to sign.
    #[error("signing with key \"{0}\" was refused")]
    Sign(String),
    /// The file of keys has another form.
    #[error(
        "{} is no key file: {reason}; put a copy of it back, or move it away: then new authorities are made",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; names keys, never their content.
        reason: String,
    },
    /// The file of keys could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The process is stopping.
    #[error("the process is stopping")]
    Stopping,
}

#[cfg(test)]
mod tests;
