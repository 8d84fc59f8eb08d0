//! The key of the sealed file, and what has to be remembered beside it.
//!
//! A small file on a tmpfs: `VANEKEY\0`, format (u16), key (32 bytes), counter (u64), the last
//! contact with the server (i64, milliseconds since 1970, 0 for unknown); big endian.

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::format::{FORMAT, Newer};

const MAGIC: &[u8; 8] = b"VANEKEY\0";
const KEY: usize = 32;
/// The length of the file.
pub(super) const LENGTH: usize = 8 + 2 + KEY + 8 + 8;

/// The key. Not printed.
pub(super) struct SealKey {
    key: Zeroizing<[u8; KEY]>,
    /// Of the newest file: an older one is refused.
    pub(super) counter: u64,
    /// Milliseconds since 1970; 0 for unknown.
    pub(super) heard_at: i64,
}

/// Why the key's file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyFileError {
    #[error(transparent)]
    Newer(#[from] Newer),
    #[error("it is no key file")]
    Malformed,
}

/// The system has no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandom;

impl SealKey {
    /// A fresh one.
    ///
    /// # Errors
    /// [`NoRandom`].
    pub(super) fn generate() -> Result<Self, NoRandom> {
        let mut key = Zeroizing::new([0; KEY]);
        SystemRandom::new().fill(&mut *key).map_err(|_| NoRandom)?;
        Ok(Self {
            key,
            counter: 0,
            heard_at: 0,
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &*self.key
    }

    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut file = Zeroizing::new(Vec::with_capacity(LENGTH));
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&FORMAT.to_be_bytes());
        file.extend_from_slice(&*self.key);
        file.extend_from_slice(&self.counter.to_be_bytes());
        file.extend_from_slice(&self.heard_at.to_be_bytes());
        file
    }

    pub(super) fn decode(file: &[u8]) -> Result<Self, KeyFileError> {
        let malformed = KeyFileError::Malformed;
        let Some(rest) = file.strip_prefix(MAGIC) else {
            return Err(malformed);
        };
        let Some((format, rest)) = rest.split_first_chunk::<2>() else {
            return Err(malformed);
        };
        let format = u16::from_be_bytes(*format);
        if format > FORMAT {
            return Err(Newer { format }.into());
        }
        let fields = rest.split_first_chunk::<KEY>().and_then(|(key, rest)| {
            let (counter, heard_at) = rest.split_first_chunk::<8>()?;
            Some((key, counter, <&[u8; 8]>::try_from(heard_at).ok()?))
        });
        let (key, counter, heard_at) = fields.ok_or(malformed)?;
        Ok(Self {
            key: Zeroizing::new(*key),
            counter: u64::from_be_bytes(*counter),
            heard_at: i64::from_be_bytes(*heard_at),
        })
    }
}

impl std::fmt::Debug for SealKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealKey")
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}
