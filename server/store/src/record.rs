//! The frame around every value in the store: version byte, CRC-32C, payload.
//!
//! Invariant: what does not carry a known version and the right checksum is
//! never decoded. A newer version is refused with a text of its own, so that
//! a downgrade is told from damage. The payload is `vane_wire::record`'s.

use bytes::{BufMut, Bytes, BytesMut};
use vane_wire::record::Record;

use crate::kv::{Item, KvError, printable};

/// The version this program writes; it reads 1 up to this one.
pub const VERSION: u8 = 1;

const HEADER: usize = 5;

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("it is shorter than its header")]
    Short,
    #[error("its checksum does not match")]
    Checksum,
    #[error("parts of it are missing")]
    Parts,
    #[error("it has format version {0}")]
    Newer(u8),
}

/// The framed bytes of `record`.
pub fn seal<R: Record>(record: &R) -> Bytes {
    frame(&record.encode())
}

/// Reads the record in `item`.
///
/// # Errors
/// [`KvError::NewerFormat`], and [`KvError::Corrupt`] naming the key.
pub fn open<R: Record>(item: &Item) -> Result<R, KvError> {
    let payload = unframe(&item.value).map_err(|error| refusal(&item.key, error))?;
    R::decode(payload).map_err(|error| damaged(&item.key, &error))
}

/// `payload` behind version and checksum.
pub(crate) fn frame(payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER.saturating_add(payload.len()));
    out.put_u8(VERSION);
    out.put_u32(checksum(VERSION, payload));
    out.put_slice(payload);
    out.freeze()
}

/// The payload of a frame.
pub(crate) fn unframe(bytes: &[u8]) -> Result<&[u8], FrameError> {
    let (&version, rest) = bytes.split_first().ok_or(FrameError::Short)?;
    if version > VERSION {
        return Err(FrameError::Newer(version));
    }
    let (sum, payload) = rest.split_first_chunk().ok_or(FrameError::Short)?;
    if u32::from_be_bytes(*sum) != checksum(version, payload) {
        return Err(FrameError::Checksum);
    }
    Ok(payload)
}

/// The error of a store for a frame that cannot be read.
pub(crate) fn refusal(key: &[u8], error: FrameError) -> KvError {
    match error {
        FrameError::Newer(version) => KvError::NewerFormat {
            key: printable(key),
            version,
            supported: VERSION,
        },
        FrameError::Short | FrameError::Checksum | FrameError::Parts => damaged(key, &error),
    }
}

fn damaged(key: &[u8], error: &dyn std::error::Error) -> KvError {
    KvError::Corrupt {
        what: format!("value of key {}: {error}", printable(key)),
        way_out: RESTORE.to_owned(),
    }
}

/// The way out of damage, for every text that reports it.
pub(crate) const RESTORE: &str = "stop the server, move the folder of the store aside and put \
    back a copy of it made while the server was stopped; without a copy start with an empty \
    folder and create the entries again";

fn checksum(version: u8, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[version]), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back() {
        assert_eq!(unframe(&frame(b"payload")), Ok(&b"payload"[..]));
        assert_eq!(unframe(&frame(b"")), Ok(&b""[..]));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = frame(b"payload");
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unframe(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut newer = frame(b"payload").to_vec();
        newer[0] = VERSION + 1;
        let error = refusal(b"e/1", unframe(&newer).unwrap_err());
        assert!(matches!(error, KvError::NewerFormat { version: 2, .. }));
        let text = error.to_string();
        assert!(text.contains("newer version of vane-server"), "{text}");
    }
}
