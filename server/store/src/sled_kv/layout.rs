//! How a value stands in the tree, and the engine's own keys.
//!
//! | key | value |
//! |---|---|
//! | user key | version, kind 0, mod_revision, CRC-32C, the value |
//! | user key | version, kind 1, mod_revision, CRC-32C, op, chunk count |
//! | `~c/` mod_revision, op, index | one chunk of a value of kind 1 |
//! | `m/format`, `m/epoch` | framed as in [`crate::record`] |
//! | `m/revision` | framed: revision, and the [`Totals`] of all user keys |
//!
//! Integers are big endian. The checksum covers key, header and the whole
//! value, so a value under a wrong key or with a foreign chunk is noticed.
//! Values are cut at [`CHUNK`] because a leaf of the tree holds up to 16 of
//! them and above 128 KiB a node leaves the log for files never synced.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::kv::{Item, Revision};
use crate::record::{self, FrameError};

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
    pub(super) print: Fingerprint,
}

/// What one user key and its state add to the [`Totals`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(u64);

/// How many user keys there are, and the wrapping sum of their fingerprints:
/// sled was seen to lose keys in silence after damage, this notices it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) count: u64,
    pub(super) sum: u64,
}

impl Totals {
    pub(super) fn add(&mut self, Fingerprint(print): Fingerprint) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(print);
    }

    pub(super) fn remove(&mut self, Fingerprint(print): Fingerprint) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(print);
    }
}

impl Fingerprint {
    /// Of the value `raw` of `key`, read from its header alone.
    pub(super) fn of_raw(key: &[u8], raw: &[u8]) -> Result<Self, FrameError> {
        let (header, _) = Header::read(raw)?;
        Ok(Self::new(key, header.revision, header.checksum))
    }

    fn new(key: &[u8], revision: Revision, checksum: u32) -> Self {
        let mixed = u64::from(crc32c::crc32c(key)) << 32 | u64::from(checksum);
        let mixed = (mixed ^ revision.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self((mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }
}

/// The payload of `m/revision`.
pub(super) fn encode_revision(revision: Revision, totals: Totals) -> Bytes {
    let mut payload = BytesMut::with_capacity(24);
    payload.put_u64(revision);
    payload.put_u64(totals.count);
    payload.put_u64(totals.sum);
    record::frame(&payload)
}

/// Reads the payload of `m/revision`.
pub(super) fn decode_revision(mut payload: &[u8]) -> Option<(Revision, Totals)> {
    let revision = payload.try_get_u64().ok()?;
    let count = payload.try_get_u64().ok()?;
    let sum = payload.try_get_u64().ok()?;
    Some((revision, Totals { count, sum }))
}

/// A value as it is to be written.
pub(super) struct Encoded {
    /// What stands at the key itself.
    pub(super) head: Vec<u8>,
    /// Where the value stands when it is long.
    pub(super) chunks: Option<Chunks>,
    pub(super) print: Fingerprint,
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

/// How `item` is written as operation `op` of its batch.
pub(super) fn encode(item: &Item, op: u32) -> Encoded {
    if item.value.len() <= CHUNK {
        return head(item, INLINE, &[], &item.value, None);
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
    head(item, CHUNKED, &tail, &[], Some(chunks))
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
    let print = Fingerprint::new(&item.key, header.revision, header.checksum);
    Ok(Stored {
        item,
        chunks,
        print,
    })
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

fn head(item: &Item, kind: u8, tail: &[u8], value: &[u8], chunks: Option<Chunks>) -> Encoded {
    let checksum = checksum(item, kind, tail);
    let mut head = Vec::with_capacity(14 + tail.len() + value.len());
    head.put_u8(VERSION);
    head.put_u8(kind);
    head.put_u64(item.mod_revision);
    head.put_u32(checksum);
    head.put_slice(tail);
    head.put_slice(value);
    Encoded {
        head,
        chunks,
        print: Fingerprint::new(&item.key, item.mod_revision, checksum),
    }
}

fn checksum(item: &Item, kind: u8, tail: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&item.key);
    let sum = crc32c::crc32c_append(sum, &[VERSION, kind]);
    let sum = crc32c::crc32c_append(sum, &item.mod_revision.to_be_bytes());
    let sum = crc32c::crc32c_append(sum, tail);
    crc32c::crc32c_append(sum, &item.value)
}
