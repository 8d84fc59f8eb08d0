//! What can go wrong between a table and its store, each with the next step.
//!
//! Every text names the cause and the way out: an operator reads it in a log
//! or as the status text of a refused call.

use super::Revision;

/// The way out of a file system without space.
pub const FREE_SPACE: &str = "free space on its file system; the store goes on by itself then";

/// The store cannot answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Not now; the store recovers by itself once the cause is gone.
    #[error("store is unavailable: {cause}; {way_out}")]
    Unavailable {
        /// What happened.
        cause: String,
        /// What the operator can do.
        way_out: String,
    },
    /// What is on disk is damaged.
    #[error("store is damaged: {what}; {way_out}")]
    Corrupt {
        /// Where and how.
        what: String,
        /// What the operator can do.
        way_out: String,
    },
    /// A newer version of Vane wrote this.
    #[error(
        "store key {key} has format version {version}, this program reads up to {supported}; \
         run the newer version of vane-server again or restore a backup of this one"
    )]
    NewerFormat {
        /// The key, printable.
        key: String,
        /// The version found.
        version: u8,
        /// The newest version this program reads.
        supported: u8,
    },
}

impl KvError {
    /// Whether a file system has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Unavailable { way_out, .. } if way_out == FREE_SPACE)
    }
}

/// A commit was not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A compare did not hold; nothing was written.
    #[error("compare {compare} of the transaction does not hold at revision {revision}")]
    Conflict {
        /// Index into [`super::Txn::compares`] of the first that failed.
        compare: usize,
        /// The revision it was judged at.
        revision: Revision,
    },
    /// The transaction is over a limit.
    #[error("transaction has {size} {what}, the limit is {limit}; split it")]
    TooLarge {
        /// Which limit.
        what: Limit,
        /// What the transaction has.
        size: usize,
        /// What it may have.
        limit: usize,
    },
    /// A key of the transaction can never be written.
    #[error("transaction names key {key}: {reason}")]
    Refused {
        /// The key, printable.
        key: String,
        /// Why.
        reason: Refusal,
    },
    /// The store cannot answer; whether the commit was applied is unknown.
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// The limits of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// [`super::MAX_COMPARES`].
    #[error("compares")]
    Compares,
    /// [`super::MAX_OPS`].
    #[error("operations")]
    Ops,
    /// [`super::MAX_TXN_BYTES`].
    #[error("bytes")]
    Bytes,
}

/// Why a key cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key has no bytes.
    #[error("it is empty")]
    Empty,
    /// The key is longer than [`super::MAX_KEY_BYTES`].
    #[error("it is longer than {} bytes", super::MAX_KEY_BYTES)]
    TooLong,
    /// The key belongs to the engine ([`super::RESERVED_PREFIX`]).
    #[error("it is reserved for the store itself")]
    Reserved,
    /// The key stands in two operations.
    #[error("two operations write it")]
    Twice,
}

/// A watch cannot start or go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The history kept in memory starts later: take a snapshot.
    #[error("history starts at revision {oldest}; take a snapshot and watch from its revision")]
    Gone {
        /// The lowest `from` that can be watched now.
        oldest: Revision,
    },
    /// The store has not reached that revision: it belongs to another epoch
    /// or to a lost history; take a snapshot.
    #[error("store is at revision {revision} only; take a snapshot and watch from its revision")]
    Future {
        /// The current revision.
        revision: Revision,
    },
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}
