//! The form of the sealed file. Pure: bytes in, bytes out.
//!
//! `VANESEAL`, format (u16), length of the header (u32), header, nonce (12 bytes), ciphertext
//! with tag (AES-256-GCM); integers big endian. What stands before the nonce is in clear and
//! covered by the seal: format, trust domain, agent, epoch, revision and counter.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use vane_wire::record::{Record as _, RecordError, SealedHeader, SealedState, SealedStateBytes};
use zeroize::Zeroizing;

use super::MAX_BYTES;
use super::format::{FORMAT, Newer};
use super::key::SealKey;

const MAGIC: &[u8; 8] = b"VANESEAL";
const MAX_HEADER: usize = 4096;
/// Magic, format, length.
const FIXED: usize = 14;
const TAG: usize = 16;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    /// It is to be kept for the version that wrote it.
    #[error(transparent)]
    Newer(#[from] Newer),
    /// It is no file of ours, or not whole.
    #[error("it is damaged, or no sealed file at all")]
    Damaged,
    /// The key does not fit, or the file was changed.
    #[error("it was sealed with another key, or changed since")]
    Seal,
    /// What was sealed cannot be read.
    #[error(transparent)]
    Content(#[from] RecordError),
}

/// Why a state cannot be sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is too much of it.
    #[error("{0} bytes are more than the {MAX_BYTES} that are kept over a restart")]
    TooLarge(usize),
    /// The library refused.
    #[error("the state cannot be encrypted")]
    Cipher,
}

/// Seals `state`.
///
/// # Errors
/// [`SealError`].
pub(super) fn seal(
    key: &SealKey,
    header: &SealedHeader,
    state: &SealedStateBytes,
) -> Result<Vec<u8>, SealError> {
    let header = header.encode();
    let start = FIXED + header.len();
    let size = start + NONCE_LEN + state.len() + TAG;
    if size > MAX_BYTES || header.len() > MAX_HEADER {
        return Err(SealError::TooLarge(size));
    }
    // Room for all of it: a buffer that grows leaves copies of keys behind.
    let mut file = Zeroizing::new(Vec::with_capacity(size));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&FORMAT.to_be_bytes());
    file.extend_from_slice(
        &u32::try_from(header.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    file.extend_from_slice(&header);
    let clear = file.clone();
    file.extend_from_slice(&[0; NONCE_LEN]);
    state.append(&mut file);
    let cipher = cipher(key).ok_or(SealError::Cipher)?;
    let sealed = file.get_mut(start + NONCE_LEN..).and_then(|text| {
        cipher
            .seal_in_place_separate_tag(Aad::from(&clear), text)
            .ok()
    });
    let (nonce, tag) = sealed.ok_or(SealError::Cipher)?;
    if let Some(place) = file.get_mut(start..start + NONCE_LEN) {
        place.copy_from_slice(nonce.as_ref());
    }
    file.extend_from_slice(tag.as_ref());
    Ok(std::mem::take(&mut *file))
}

/// What a file says in clear, and where its sealed part begins.
pub(super) struct Clear {
    pub(super) header: SealedHeader,
    length: usize,
}

/// Reads the part in clear: not to be trusted before [`open`].
///
/// # Errors
/// [`OpenError::Newer`], [`OpenError::Damaged`], [`OpenError::Content`].
pub(super) fn peek(file: &[u8]) -> Result<Clear, OpenError> {
    let rest = file.strip_prefix(MAGIC).ok_or(OpenError::Damaged)?;
    let (format, rest) = rest.split_first_chunk::<2>().ok_or(OpenError::Damaged)?;
    let format = u16::from_be_bytes(*format);
    if format > FORMAT {
        return Err(Newer { format }.into());
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(OpenError::Damaged)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let header = rest.get(..length.min(MAX_HEADER + 1));
    let header = header
        .filter(|header| header.len() == length)
        .ok_or(OpenError::Damaged)?;
    Ok(Clear {
        header: SealedHeader::decode(header)?,
        length: FIXED + length,
    })
}

/// Opens a file in place: afterwards `file` holds keys in clear.
///
/// # Errors
/// [`OpenError`].
pub(super) fn open(
    key: &SealKey,
    clear: &Clear,
    file: &mut [u8],
) -> Result<SealedState, OpenError> {
    let (aad, sealed) = file
        .split_at_mut_checked(clear.length)
        .ok_or(OpenError::Damaged)?;
    let (nonce, text) = sealed
        .split_first_chunk_mut::<NONCE_LEN>()
        .ok_or(OpenError::Damaged)?;
    let cipher = cipher(key).ok_or(OpenError::Seal)?;
    let opened = cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(&*aad), text);
    Ok(SealedState::decode(opened.map_err(|_| OpenError::Seal)?)?)
}

fn cipher(key: &SealKey) -> Option<RandomizedNonceKey> {
    RandomizedNonceKey::new(&AES_256_GCM, key.bytes()).ok()
}
