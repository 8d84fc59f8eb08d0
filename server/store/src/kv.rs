//! The store contract: what an engine promises to the tables above it.
//!
//! Revisions increase strictly and need not be dense; a store starts at 0.
//! Concurrent transactions may share one revision when they touch different
//! keys; two states of one key never do, so [`Compare::ModRevision`] is safe.
//! A commit is delivered whole, in order, once, to every watcher whose prefix
//! it touches; a write that changes nothing makes no revision.
//! A token (epoch, revision) of another epoch or of the future means: take a
//! snapshot. Not here: history on disk, leases, range deletes.
//!
//! How to follow a prefix: [`Kv::scan`] its pages, keep the *lowest*
//! `revision` of them, then [`Kv::watch`] from that one and apply what is
//! newer by `mod_revision`.

mod error;
mod txn;

mod feed;

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use crate::random;

pub use error::{CommitError, FREE_SPACE, KvError, Limit, Refusal, WatchError};
pub use feed::Watch;
pub(crate) use feed::{Feed, RingLimits};
pub use txn::{
    Compare, MAX_COMPARES, MAX_KEY_BYTES, MAX_OPS, MAX_TXN_BYTES, Op, RESERVED_PREFIX, Txn,
};
pub(crate) use txn::{RESERVED_FROM, is_reserved, printable};

/// A point in the history of a store: strictly increasing, not dense, 0 for
/// a store that was never written.
pub type Revision = u64;

/// The identity of one history: random, born with the store, changed by
/// restore, import and compaction in place.
///
/// Revisions of different epochs cannot be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub [u8; 16]);

impl Epoch {
    /// The epoch of a new store.
    ///
    /// # Errors
    /// [`KvError::Unavailable`] when the system has no randomness.
    pub(crate) fn random() -> Result<Self, KvError> {
        let bytes = random::bytes().map_err(|error| KvError::Unavailable {
            cause: format!("the operating system gave no random bytes: {error}"),
            way_out: "check that getrandom(2) is allowed for this process".to_owned(),
        })?;
        Ok(Self(bytes))
    }
}

/// One key with its value and the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The key, its table's prefix included.
    pub key: Bytes,
    /// The value as it was put.
    pub value: Bytes,
    /// The revision that put it.
    pub mod_revision: Revision,
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Items in key order.
    pub items: Vec<Item>,
    /// A revision that every item of the page has reached: an item may be
    /// newer, none is older than its state at this revision.
    pub revision: Revision,
    /// Whether keys follow; the next page starts `after` the last item's key.
    pub more: bool,
}

/// One commit as a watcher sees it, reduced to the watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision that the commit made.
    pub revision: Revision,
    /// What it changed; each key stands once.
    pub ops: Vec<ChangeOp>,
}

/// One changed key of a [`Change`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeOp {
    /// The key has a new value.
    Put(Item),
    /// The key is gone.
    Delete(Bytes),
}

impl ChangeOp {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(item) => &item.key,
            Self::Delete(key) => key,
        }
    }
}

/// A store engine.
///
/// Every engine passes [`crate::conformance::suite`].
#[async_trait]
pub trait Kv: Send + Sync + Debug {
    /// Reads one key, linearizably: what was acknowledged before the call is
    /// seen, what is not durable yet is not.
    ///
    /// # Errors
    /// [`KvError`]; an absent key is `Ok(None)`.
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError>;

    /// Reads at most `limit` (at least 1) items under `prefix` in key order,
    /// those after `after` (exclusive, a whole key) when it is given.
    ///
    /// # Errors
    /// [`KvError`].
    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError>;

    /// Applies `txn` when all its compares hold, durably and whole, and
    /// returns the revision it made; when nothing changed by it, the current
    /// revision.
    ///
    /// Cancelling the call does not cancel the commit.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] names the compare that failed: nothing was
    /// written. [`CommitError::Kv`]: the outcome is unknown, a retry with the
    /// same compares is safe. The others: the transaction can never pass.
    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError>;

    /// Follows the changes under `prefix` with a revision above `from`.
    ///
    /// # Errors
    /// [`WatchError::Gone`] when memory does not reach back to `from`,
    /// [`WatchError::Future`] when `from` was never reached: take a snapshot.
    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError>;

    /// The epoch of this store.
    fn epoch(&self) -> Epoch;

    /// The last acknowledged revision.
    fn revision(&self) -> Revision;
}
