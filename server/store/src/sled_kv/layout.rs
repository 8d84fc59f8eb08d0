//! How a value stands in the tree, and the engine's own keys.
//!
//! | key | value |
//! |---|---|
//! | user key | version, kind 0, mod_revision, CRC-32C, the value |
//! | user key | version, kind 1, mod_revision, CRC-32C, op, chunk count |
//! | `~c/` mod_revision, op, index | one chunk of a value of kind 1 |
//! | `m/format`, `m/epoch`, `m/revision` | framed as in [`crate::record`] |
//!
//! Integers are big endian. The checksum covers key, header and the whole
//! value, so a value under a wrong key or with a foreign chunk is noticed.
//! Values are cut at [`CHUNK`] because a leaf of the tree holds up to 16 of
//! them and above 128 KiB a node leaves the log for files never synced.

use bytes::{BufMut, Bytes, BytesMut};

use crate::kv::{Item, Revision};
use crate::record::FrameError;

pub(super) const FORMAT_KEY: &[u8] = b"m/format";
pub(super) const EPOCH_KEY: &[u8] = b"m/epoch";
pub(super) const REVISION_KEY: &[u8] = b"m/revision";

/// Longest value that stands in one piece, and the length of a chunk.
pub(super) const CHUNK: usize = 7_000;

const VERSION: u8 = 1;
const INLINE: u8 = 0;
const CHUNKED: u8 = 1;
const CHUNK_PREFIX: &[u8] = b"~c/";

/// A value as it was found, with the chunks that go when it goes.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) item: Item,
    pub(super) chunks: Option<Chunks>,
}

/// Names the chunks of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    revision: Revision,
    /// Which operation of its batch wrote the value.
    op: u32,
    count: u16,
}

impl Chunks {
    /// The keys of the chunks in order.
    pub(super) fn keys(self) -> impl Iterator<Item = Vec<u8>> {
        (0..self.count).map(move |index| {
            let mut key = Vec::with_capacity(17);
            key.put_slice(CHUNK_PREFIX);
            key.put_u64(self.revision);
            key.put_u32(self.op);
            key.put_u16(index);
            key
        })
    }
}

/// The value at the key itself, and its chunks when it is long.
pub(super) fn encode(item: &Item, op: u32) -> (Vec<u8>, Option<Chunks>) {
    if item.value.len() <= CHUNK {
        let head = head(item, INLINE, &[], &item.value);
        return (head, None);
    }
    let count = item.value.len().div_ceil(CHUNK);
    let chunks = Chunks {
        revision: item.mod_revision,
        op,
        count: u16::try_from(count).unwrap_or(u16::MAX),
    };
    let mut tail = Vec::with_capacity(6);
    tail.put_u32(op);
    tail.put_u16(chunks.count);
    (head(item, CHUNKED, &tail, &[]), Some(chunks))
}

/// Reads the value `raw` of `key`; `fetch` reads a chunk.
pub(super) fn decode<E: From<FrameError>>(
    key: &[u8],
    raw: &[u8],
    mut fetch: impl FnMut(&[u8], &mut BytesMut) -> Result<(), E>,
) -> Result<Stored, E> {
    let (header, tail) = Header::read(raw)?;
    let key = Bytes::copy_from_slice(key);
    let mut value = BytesMut::new();
    let chunks = match header.kind {
        INLINE => {
            value.put_slice(tail);
            None
        }
        CHUNKED => Some(header.chunks(tail)?),
        _ => return Err(FrameError::Parts.into()),
    };
    for key in chunks.iter().flat_map(|chunks| chunks.keys()) {
        fetch(&key, &mut value)?;
    }
    let item = Item {
        key,
        value: value.freeze(),
        mod_revision: header.revision,
    };
    let covered = if chunks.is_some() { tail } else { &[] };
    if header.checksum != checksum(&item, header.kind, covered) {
        return Err(FrameError::Checksum.into());
    }
    Ok(Stored { item, chunks })
}

struct Header {
    kind: u8,
    revision: Revision,
    checksum: u32,
}

impl Header {
    fn read(raw: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let (&[version, kind], rest) = raw.split_first_chunk().ok_or(FrameError::Short)?;
        if version > VERSION {
            return Err(FrameError::Newer(version));
        }
        let (revision, rest) = rest.split_first_chunk().ok_or(FrameError::Short)?;
        let (checksum, rest) = rest.split_first_chunk().ok_or(FrameError::Short)?;
        let header = Self {
            kind,
            revision: u64::from_be_bytes(*revision),
            checksum: u32::from_be_bytes(*checksum),
        };
        Ok((header, rest))
    }

    fn chunks(&self, tail: &[u8]) -> Result<Chunks, FrameError> {
        let (op, rest) = tail.split_first_chunk().ok_or(FrameError::Short)?;
        let (count, _) = rest.split_first_chunk().ok_or(FrameError::Short)?;
        Ok(Chunks {
            revision: self.revision,
            op: u32::from_be_bytes(*op),
            count: u16::from_be_bytes(*count),
        })
    }
}

fn head(item: &Item, kind: u8, tail: &[u8], value: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(14 + tail.len() + value.len());
    head.put_u8(VERSION);
    head.put_u8(kind);
    head.put_u64(item.mod_revision);
    head.put_u32(checksum(item, kind, tail));
    head.put_slice(tail);
    head.put_slice(value);
    head
}

fn checksum(item: &Item, kind: u8, tail: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&item.key);
    let sum = crc32c::crc32c_append(sum, &[VERSION, kind]);
    let sum = crc32c::crc32c_append(sum, &item.mod_revision.to_be_bytes());
    let sum = crc32c::crc32c_append(sum, tail);
    crc32c::crc32c_append(sum, &item.value)
}
