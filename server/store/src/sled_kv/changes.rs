//! What a batch does to the tree, and the value from which it can be done again.
//!
//! sled makes a batch whole by a manifest in front of it: a write of its own that is waited for.
//! A small batch does without. All of it is put at [`REDO_KEY`] first, then its keys are written
//! one by one, and one write of sled's log takes them all. That log is recovered up to the first
//! message that is torn, so where anything of the batch is, its value at [`REDO_KEY`] is too, and
//! opening does the batch again.
//! Invariant: `m/revision` is the last key of a batch, so who finds it has the whole batch.

use bytes::{Buf, BufMut, BytesMut};
use sled::IVec;

use super::failure::Fault;
use super::layout::{self, Chunks, Fingerprint, REVISION_KEY, Stored, Totals};
use crate::kv::{Item, Op, Revision};
use crate::record::{self, FrameError};

/// Where the last small batch stands.
pub(super) const REDO_KEY: &[u8] = b"~redo";
/// The most bytes of a small batch: as a value in one piece.
const SMALL: usize = layout::CHUNK;

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

    /// Writes them, all or none as far as sled's log gets to the disk.
    pub(super) fn apply(self, db: &sled::Db) -> sled::Result<()> {
        match self.redo() {
            Some(redo) => {
                db.insert(REDO_KEY, redo.as_ref())?;
                self.keys.into_iter().try_for_each(|(key, value)| {
                    let before = match value {
                        Some(value) => db.insert(key, value),
                        None => db.remove(key),
                    };
                    before.map(drop)
                })
            }
            None => self.apply_large(db),
        }
    }

    /// Does the last small batch again if its end is missing; whether it was.
    pub(super) fn complete(db: &sled::Db, found: Revision) -> Result<bool, Fault> {
        let Some(redo) = db.get(REDO_KEY)? else {
            return Ok(false);
        };
        let payload = record::unframe(&redo).map_err(|e| Fault::from(e).of_key(REDO_KEY))?;
        let parts = || Fault::from(FrameError::Parts).of_key(REDO_KEY);
        let last = Self::decode(payload).ok_or_else(parts)?;
        if last.revision <= found {
            return Ok(false);
        }
        last.apply_large(db)?;
        Ok(true)
    }

    fn apply_large(self, db: &sled::Db) -> sled::Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in self.keys {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        db.apply_batch(batch)
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

    /// The value at [`REDO_KEY`] for a small batch. One that changes no key but `m/revision` is
    /// none: who writes that wants a write.
    fn redo(&self) -> Option<bytes::Bytes> {
        let length = |value: &Option<IVec>| value.as_ref().map_or(0, |value| value.len());
        let bytes: usize = self.keys.iter().map(|(k, v)| k.len() + length(v)).sum();
        if self.keys.len() < 2 || bytes > SMALL {
            return None;
        }
        let mut payload = BytesMut::with_capacity(bytes + 7 * self.keys.len() + 8);
        payload.put_u64(self.revision);
        for (key, value) in &self.keys {
            payload.put_u16(u16::try_from(key.len()).ok()?);
            payload.put_slice(key);
            payload.put_u8(value.is_some().into());
            if let Some(value) = value {
                payload.put_u32(u32::try_from(value.len()).ok()?);
                payload.put_slice(value);
            }
        }
        Some(record::frame(&payload))
    }

    fn decode(mut payload: &[u8]) -> Option<Self> {
        let revision = payload.try_get_u64().ok()?;
        let mut keys = Vec::new();
        while payload.has_remaining() {
            let length = payload.try_get_u16().ok()?;
            let key = take(&mut payload, length.into())?;
            let value = match payload.try_get_u8().ok()? {
                0 => None,
                _ => {
                    let length = payload.try_get_u32().ok()?;
                    Some(take(&mut payload, usize::try_from(length).ok()?)?)
                }
            };
            keys.push((key, value));
        }
        Some(Self { revision, keys })
    }
}

fn take(payload: &mut &[u8], length: usize) -> Option<IVec> {
    let (taken, rest) = payload.split_at_checked(length)?;
    *payload = rest;
    Some(taken.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(count: usize) -> Vec<Write> {
        let write = |op| Write { op, before: None };
        let put = |at| write(Op::Put(format!("k{at}").into(), vec![7; 300].into()));
        let gone = std::iter::once(write(Op::Delete("gone".into())));
        (1..count).map(put).chain(gone).collect()
    }

    #[test]
    fn a_small_batch_is_read_back_and_others_are_not_written_so() {
        let of = |count| Changes::of(&writes(count), 7, &mut Totals::default());
        let small = of(5);
        let redo = small.redo().unwrap();
        let payload = record::unframe(&redo).unwrap();
        assert_eq!(Changes::decode(payload), Some(of(5)));
        for end in 0..payload.len() {
            let cut = Changes::decode(&payload[..end]);
            assert_ne!(cut, Some(of(5)), "{end} of {} bytes", payload.len());
        }
        assert_eq!(of(50).redo(), None, "a large one");
        let nothing = Changes::of(&[], 7, &mut Totals::default());
        assert_eq!(nothing.redo(), None);
    }

    #[test]
    fn whatever_of_a_small_batch_is_there_opening_has_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let db = sled::open(dir.path()).unwrap();
        db.insert("gone", "still here").unwrap();
        let batch = |revision| Changes::of(&writes(4), revision, &mut Totals::default());
        let whole = batch(7).keys;
        for written in 0..whole.len() {
            db.insert(REDO_KEY, batch(7).redo().unwrap().as_ref())
                .unwrap();
            for (key, _) in &whole {
                db.remove(key).unwrap();
            }
            for (key, value) in whole.iter().take(written) {
                match value {
                    Some(value) => db.insert(key, value).unwrap(),
                    None => db.remove(key).unwrap(),
                };
            }
            assert!(Changes::complete(&db, 6).unwrap());
            for (key, value) in &whole {
                assert_eq!(db.get(key).unwrap(), *value, "after {written} keys");
            }
            assert!(!Changes::complete(&db, 7).unwrap(), "nothing is missing");
        }
    }
}
