//! A transaction: conditions and the writes that depend on them, with the
//! limits that every engine shares (etcd's defaults are wider or equal).

use std::collections::HashSet;

use bytes::Bytes;

use super::{CommitError, Limit, Refusal, Revision};

/// Most compares of one transaction.
pub const MAX_COMPARES: usize = 100;
/// Most operations of one transaction.
pub const MAX_OPS: usize = 100;
/// Most bytes of one transaction: keys and values of compares and operations.
pub const MAX_TXN_BYTES: usize = 512 * 1024;
/// Longest key in bytes: a SPIFFE ID (2,048) and room for its table's prefix.
pub const MAX_KEY_BYTES: usize = 2_304;
/// Keys of this prefix belong to the engine (NAMES 4: `m/{epoch,revision,format}`),
/// and so do all keys whose first byte is `~` or above (chunks of large values).
pub const RESERVED_PREFIX: &[u8] = b"m/";

/// Keys from this first byte on belong to the engine, beside [`RESERVED_PREFIX`].
pub(crate) const RESERVED_FROM: u8 = b'~';

/// A condition on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Bytes),
    /// The key exists.
    Present(Bytes),
    /// The key exists and was last changed at this revision.
    ModRevision(Bytes, Revision),
    /// The key exists and has this value.
    Value(Bytes, Bytes),
}

impl Compare {
    /// The key it looks at.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Absent(key)
            | Self::Present(key)
            | Self::ModRevision(key, _)
            | Self::Value(key, _) => key,
        }
    }

    /// Whether it holds for what the key has now.
    pub(crate) fn holds(&self, current: Option<(&[u8], Revision)>) -> bool {
        match (self, current) {
            (Self::Absent(_), found) => found.is_none(),
            (_, None) => false,
            (Self::Present(_), Some(_)) => true,
            (Self::ModRevision(_, want), Some((_, revision))) => *want == revision,
            (Self::Value(_, want), Some((value, _))) => want.as_ref() == value,
        }
    }

    fn bytes(&self) -> usize {
        let value = match self {
            Self::Value(_, value) => value.len(),
            Self::Absent(_) | Self::Present(_) | Self::ModRevision(..) => 0,
        };
        self.key().len().saturating_add(value)
    }
}

/// A write to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Key and value.
    Put(Bytes, Bytes),
    /// The key is removed; an absent one is fine.
    Delete(Bytes),
}

impl Op {
    /// The key it writes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    /// Whether it would leave the key as it is.
    pub(crate) fn is_noop(&self, current: Option<&[u8]>) -> bool {
        match self {
            Self::Put(_, value) => current == Some(value.as_ref()),
            Self::Delete(_) => current.is_none(),
        }
    }

    fn bytes(&self) -> usize {
        let value = match self {
            Self::Put(_, value) => value.len(),
            Self::Delete(_) => 0,
        };
        self.key().len().saturating_add(value)
    }
}

/// Writes that are applied together when all compares hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold, judged before any operation.
    pub compares: Vec<Compare>,
    /// Applied together; each key may stand once.
    pub ops: Vec<Op>,
}

impl Txn {
    /// A transaction without conditions and writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a write of `value` at `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put(key.into(), value.into()));
        self
    }

    /// Adds the removal of `key`.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Delete(key.into()));
        self
    }

    /// Adds the conditions and writes of `other` behind its own.
    #[must_use]
    pub fn and(mut self, other: Txn) -> Self {
        self.compares.extend(other.compares);
        self.ops.extend(other.ops);
        self
    }

    /// Bytes of all keys and values, as [`MAX_TXN_BYTES`] counts them.
    pub fn bytes(&self) -> usize {
        let compares = self.compares.iter().map(Compare::bytes);
        let ops = self.ops.iter().map(Op::bytes);
        compares.chain(ops).fold(0, usize::saturating_add)
    }

    /// Checks the limits and the keys; every engine calls it first.
    ///
    /// # Errors
    /// [`CommitError::TooLarge`] and [`CommitError::Refused`].
    pub fn check(&self) -> Result<(), CommitError> {
        within(Limit::Compares, self.compares.len(), MAX_COMPARES)?;
        within(Limit::Ops, self.ops.len(), MAX_OPS)?;
        within(Limit::Bytes, self.bytes(), MAX_TXN_BYTES)?;
        for compare in &self.compares {
            check_key(compare.key())?;
        }
        let mut seen = HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            check_key(op.key())?;
            if !seen.insert(op.key()) {
                return Err(refused(op.key(), Refusal::Twice));
            }
        }
        Ok(())
    }
}

/// Whether `key` belongs to the engine: never scanned, never written from above.
pub(crate) fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED_PREFIX) || key.first() >= Some(&RESERVED_FROM)
}

fn within(what: Limit, size: usize, limit: usize) -> Result<(), CommitError> {
    if size <= limit {
        return Ok(());
    }
    Err(CommitError::TooLarge { what, size, limit })
}

fn check_key(key: &Bytes) -> Result<(), CommitError> {
    if key.is_empty() {
        return Err(refused(key, Refusal::Empty));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(refused(key, Refusal::TooLong));
    }
    if is_reserved(key) {
        return Err(refused(key, Refusal::Reserved));
    }
    Ok(())
}

fn refused(key: &Bytes, reason: Refusal) -> CommitError {
    CommitError::Refused {
        key: printable(key),
        reason,
    }
}

/// `key` for a text: escaped, cut at 80 characters.
pub(crate) fn printable(key: &[u8]) -> String {
    let head = key.get(..80).unwrap_or(key);
    let cut = if head.len() < key.len() { "…" } else { "" };
    format!("\"{}\"{cut}", head.escape_ascii())
}
