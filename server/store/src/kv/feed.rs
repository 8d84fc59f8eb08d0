//! The change feed: a bounded ring of the latest commits, kept in memory,
//! and the watches that read it.
//!
//! Invariant: the ring holds every commit after `floor`, in order. A watch is
//! a cursor into it and buffers nothing, so a slow watcher costs nothing: when
//! the ring has moved past its cursor it is told [`WatchError::Gone`].
//! Not here: durability; an engine publishes what is durable already.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Change, ChangeOp, Revision, WatchError};

/// How much history a ring keeps; the latest commit is kept in any case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingLimits {
    /// Most commits.
    pub(crate) commits: usize,
    /// Most bytes of keys and values.
    pub(crate) bytes: usize,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self {
            commits: 65_536,
            bytes: 32 * 1024 * 1024,
        }
    }
}

/// Publishes commits to watches.
#[derive(Debug)]
pub(crate) struct Feed {
    ring: Arc<Mutex<Ring>>,
    latest: watch::Sender<Revision>,
}

impl Feed {
    /// A feed of a store that is at `revision` and remembers nothing before.
    pub(crate) fn new(revision: Revision, limits: RingLimits) -> Self {
        let ring = Ring {
            limits,
            commits: VecDeque::new(),
            bytes: 0,
            floor: revision,
            latest: revision,
        };
        Self {
            ring: Arc::new(Mutex::new(ring)),
            latest: watch::Sender::new(revision),
        }
    }

    /// The revision of the last published commit.
    pub(crate) fn revision(&self) -> Revision {
        *self.latest.borrow()
    }

    /// Publishes `change`, whose revision is above all before it.
    pub(crate) fn publish(&self, change: Change) {
        let revision = change.revision;
        lock(&self.ring).push(change);
        self.latest.send_replace(revision);
    }

    /// A watch of `prefix` after `from`.
    pub(crate) fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        let latest = self.latest.subscribe();
        lock(&self.ring).reaches(from)?;
        Ok(Watch {
            prefix: Bytes::copy_from_slice(prefix),
            cursor: from,
            ring: Arc::clone(&self.ring),
            latest,
        })
    }
}

/// A cursor into the changes of a prefix.
#[derive(Debug)]
pub struct Watch {
    prefix: Bytes,
    cursor: Revision,
    ring: Arc<Mutex<Ring>>,
    latest: watch::Receiver<Revision>,
}

impl Watch {
    /// The next commit that touches the prefix, whole but for keys outside.
    ///
    /// Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`WatchError::Gone`] when this watcher was too slow,
    /// [`WatchError::Closed`] when the store is; the watch is over then.
    pub async fn next(&mut self) -> Result<Change, WatchError> {
        loop {
            self.latest.mark_unchanged();
            if let Some(change) = self.take()? {
                return Ok(change);
            }
            if self.latest.changed().await.is_err() {
                return self.take()?.ok_or(WatchError::Closed);
            }
        }
    }

    /// The next commit that touches the prefix, when it is there already.
    ///
    /// # Errors
    /// [`WatchError::Gone`] when this watcher was too slow.
    pub fn try_next(&mut self) -> Result<Option<Change>, WatchError> {
        self.take()
    }

    /// Every change under the prefix up to this revision was returned.
    pub fn revision(&self) -> Revision {
        self.cursor
    }

    fn take(&mut self) -> Result<Option<Change>, WatchError> {
        let ring = lock(&self.ring);
        ring.reaches(self.cursor)?;
        for change in ring.after(self.cursor) {
            self.cursor = change.revision;
            let ops = under(&change.ops, &self.prefix);
            if !ops.is_empty() {
                let revision = change.revision;
                return Ok(Some(Change { revision, ops }));
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
struct Ring {
    limits: RingLimits,
    commits: VecDeque<Change>,
    bytes: usize,
    /// Every commit above this revision is in `commits`.
    floor: Revision,
    latest: Revision,
}

impl Ring {
    fn push(&mut self, change: Change) {
        self.bytes = self.bytes.saturating_add(weight(&change));
        self.latest = change.revision;
        self.commits.push_back(change);
        while self.commits.len() > 1 && self.is_over() {
            let Some(oldest) = self.commits.pop_front() else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(weight(&oldest));
            self.floor = oldest.revision;
        }
    }

    fn is_over(&self) -> bool {
        self.commits.len() > self.limits.commits || self.bytes > self.limits.bytes
    }

    fn reaches(&self, from: Revision) -> Result<(), WatchError> {
        if from < self.floor {
            return Err(WatchError::Gone { oldest: self.floor });
        }
        if from > self.latest {
            return Err(WatchError::Future {
                revision: self.latest,
            });
        }
        Ok(())
    }

    fn after(&self, cursor: Revision) -> impl Iterator<Item = &Change> {
        let start = self.commits.partition_point(|c| c.revision <= cursor);
        self.commits.range(start..)
    }
}

fn under(ops: &[ChangeOp], prefix: &[u8]) -> Vec<ChangeOp> {
    let matches = |op: &&ChangeOp| op.key().starts_with(prefix);
    ops.iter().filter(matches).cloned().collect()
}

fn weight(change: &Change) -> usize {
    let bytes = change.ops.iter().map(|op| match op {
        ChangeOp::Put(item) => item.key.len().saturating_add(item.value.len()),
        ChangeOp::Delete(key) => key.len(),
    });
    bytes.fold(size_of::<Change>(), usize::saturating_add)
}

/// No code panics while it holds this lock, so poison carries no meaning.
fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}
