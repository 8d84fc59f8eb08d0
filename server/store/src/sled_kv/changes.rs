//! What a batch does to the tree: the keys that it sets or removes.
//!
//! Invariant: `m/revision` is the last key of a batch, so where sled's log has it, it has the
//! whole batch.

use bytes::{Buf, BufMut, BytesMut};
use sled::IVec;

use super::layout::{self, Chunks, Fingerprint, REVISION_KEY, Stored, Totals};
use crate::kv::{Item, Op, Revision};

/// One write of a batch: the operation and what stood there before.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) op: Op,
    pub(super) before: Option<Stored>,
}

/// The keys of the tree that a batch sets (`Some`) or removes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changes {
    revision: Revision,
    keys: Vec<(IVec, Option<IVec>)>,
}

impl Changes {
    /// Those of `writes`; brings `totals` to what they are after them.
    pub(super) fn of(writes: &[Write], revision: Revision, totals: &mut Totals) -> Self {
        let mut changes = Self {
            revision,
            keys: Vec::with_capacity(writes.len().saturating_add(1)),
        };
        for (op, write) in (0..).zip(writes) {
            if let Some(before) = &write.before {
                totals.remove(before.print);
                let chunks = before.chunks.into_iter().flat_map(Chunks::keys);
                chunks.for_each(|key| changes.remove(&key));
            }
            match &write.op {
                Op::Delete(key) => changes.remove(key),
                Op::Put(key, value) => {
                    let item = Item {
                        key: key.clone(),
                        value: value.clone(),
                        mod_revision: revision,
                    };
                    totals.add(changes.put(&item, op));
                }
            }
        }
        changes.set(REVISION_KEY, &layout::encode_revision(revision, *totals));
        changes
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// Writes them one by one; what is missing after a crash the journal has.
    pub(super) fn apply(self, db: &sled::Db) -> sled::Result<()> {
        self.keys.into_iter().try_for_each(|(key, value)| {
            let before = match value {
                Some(value) => db.insert(key, value),
                None => db.remove(key),
            };
            before.map(drop)
        })
    }

    fn put(&mut self, item: &Item, op: u32) -> Fingerprint {
        let encoded = layout::encode(item, op);
        self.set(&item.key, &encoded.head);
        if let Some(chunks) = encoded.chunks {
            for (key, chunk) in chunks.keys().zip(item.value.chunks(layout::CHUNK)) {
                self.set(&key, chunk);
            }
        }
        encoded.print
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.keys.push((key.into(), Some(value.into())));
    }

    fn remove(&mut self, key: &[u8]) {
        self.keys.push((key.into(), None));
    }

    /// Puts them behind `out`.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64(self.revision);
        for (key, value) in &self.keys {
            put_bytes(out, key);
            out.put_u8(value.is_some().into());
            if let Some(value) = value {
                put_bytes(out, value);
            }
        }
    }

    pub(super) fn decode(mut payload: &[u8]) -> Option<Self> {
        let revision = payload.try_get_u64().ok()?;
        let mut keys = Vec::new();
        while payload.has_remaining() {
            let key = take_bytes(&mut payload)?;
            let value = match payload.try_get_u8().ok()? {
                0 => None,
                _ => Some(take_bytes(&mut payload)?),
            };
            keys.push((key, value));
        }
        Some(Self { revision, keys })
    }
}

/// Keys and values are far below 4 GiB: a transaction has 512 KiB.
fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take_bytes(payload: &mut &[u8]) -> Option<IVec> {
    let length = usize::try_from(payload.try_get_u32().ok()?).ok()?;
    let (taken, rest) = payload.split_at_checked(length)?;
    *payload = rest;
    Some(taken.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_back() {
        let write = |op| Write { op, before: None };
        let long = Op::Put("long".into(), vec![7; 30_000].into());
        let writes = [
            Op::Put("k".into(), "v".into()),
            long,
            Op::Delete("gone".into()),
        ];
        let changes = Changes::of(&writes.map(write), 7, &mut Totals::default());
        let mut encoded = BytesMut::new();
        changes.encode(&mut encoded);
        for end in 0..encoded.len() {
            let cut = Changes::decode(&encoded[..end]);
            assert_ne!(
                cut.as_ref(),
                Some(&changes),
                "{end} of {} bytes",
                encoded.len()
            );
        }
        assert_eq!(Changes::decode(&encoded), Some(changes));
    }
}
