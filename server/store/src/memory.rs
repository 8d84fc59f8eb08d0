//! The store in memory: `vane dev`'s scratch, tests' fake, and the reference
//! that the conformance suite holds sled against.
//!
//! Invariant: one commit, one revision, judged and applied under one lock.
//! Nothing survives the process.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::kv::{
    Change, ChangeOp, CommitError, Epoch, Feed, Item, Kv, KvError, Op, Page, Revision, RingLimits,
    Txn, Watch, WatchError,
};

type Map = BTreeMap<Bytes, (Bytes, Revision)>;

/// A store that lives and dies with its handle.
#[derive(Debug)]
pub struct MemoryKv {
    epoch: Epoch,
    map: Mutex<Map>,
    feed: Feed,
}

impl MemoryKv {
    /// An empty store with an epoch of its own.
    ///
    /// # Errors
    /// [`KvError::Unavailable`] when the system has no randomness.
    pub fn new() -> Result<Self, KvError> {
        Self::with_ring(RingLimits::default())
    }

    /// As [`Self::new`], with a history of another size.
    pub(crate) fn with_ring(limits: RingLimits) -> Result<Self, KvError> {
        Ok(Self {
            epoch: Epoch::random()?,
            map: Mutex::default(),
            feed: Feed::new(0, limits),
        })
    }

    /// No code panics while it holds this lock, so poison carries no meaning.
    fn lock(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Kv for MemoryKv {
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
        let map = self.lock();
        Ok(map.get_key_value(key).map(|(key, value)| item(key, value)))
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError> {
        let map = self.lock();
        let revision = self.feed.revision();
        let mut rest = range(&map, prefix, after).take_while(|(key, _)| key.starts_with(prefix));
        let page = rest.by_ref().take(limit.max(1));
        let items = page.map(|(key, value)| item(key, value)).collect();
        let more = rest.next().is_some();
        Ok(Page {
            items,
            revision,
            more,
        })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        txn.check()?;
        let mut map = self.lock();
        let current = self.feed.revision();
        judge(&map, &txn, current)?;
        let revision = current.saturating_add(1);
        let ops = apply(&mut map, txn.ops, revision);
        if ops.is_empty() {
            return Ok(current);
        }
        self.feed.publish(Change { revision, ops });
        Ok(revision)
    }

    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        self.feed.watch(prefix, from)
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn revision(&self) -> Revision {
        self.feed.revision()
    }
}

fn range<'m>(
    map: &'m Map,
    prefix: &[u8],
    after: Option<&[u8]>,
) -> Range<'m, Bytes, (Bytes, Revision)> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    map.range::<[u8], _>((start, Bound::Unbounded))
}

fn judge(map: &Map, txn: &Txn, revision: Revision) -> Result<(), CommitError> {
    let holds = |compare: &crate::kv::Compare| {
        let found = map.get(compare.key());
        compare.holds(found.map(|(value, revision)| (value.as_ref(), *revision)))
    };
    match txn.compares.iter().position(|compare| !holds(compare)) {
        Some(compare) => Err(CommitError::Conflict { compare, revision }),
        None => Ok(()),
    }
}

fn apply(map: &mut Map, ops: Vec<Op>, revision: Revision) -> Vec<ChangeOp> {
    let mut changed = Vec::with_capacity(ops.len());
    for op in ops {
        let current = map.get(op.key()).map(|(value, _)| value.as_ref());
        if op.is_noop(current) {
            continue;
        }
        changed.push(match op {
            Op::Put(key, value) => {
                map.insert(key.clone(), (value.clone(), revision));
                ChangeOp::Put(Item {
                    key,
                    value,
                    mod_revision: revision,
                })
            }
            Op::Delete(key) => {
                map.remove(&key);
                ChangeOp::Delete(key)
            }
        });
    }
    changed
}

fn item(key: &Bytes, (value, mod_revision): &(Bytes, Revision)) -> Item {
    Item {
        key: key.clone(),
        value: value.clone(),
        mod_revision: *mod_revision,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::conformance;

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_keeps_the_contract() {
        conformance::suite(|| async { Arc::new(MemoryKv::new().unwrap()) as Arc<dyn Kv> }).await;
    }
}
