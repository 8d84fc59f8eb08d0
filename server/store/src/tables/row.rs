//! What all tables share: a record with its revision, pages of them, changes
//! of them, and compare-and-commit.

use bytes::Bytes;
use vane_wire::record::Record;

use crate::kv::{ChangeOp, CommitError, Compare, Kv, KvError, Revision, Txn};
use crate::record;

/// How often [`change`] starts again after losing to another writer.
const TRIES: usize = 64;

/// A record as it was read, with the revision that guards the next write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<T> {
    /// The record.
    pub value: T,
    /// The revision of its last change.
    pub mod_revision: Revision,
}

/// One page of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPage<T> {
    /// Rows in key order.
    pub rows: Vec<Row<T>>,
    /// As [`crate::kv::Page::revision`]: watch from the lowest one.
    pub revision: Revision,
    /// Where the next page starts; `None` after the last one.
    pub next: Option<Cursor>,
}

/// A place in a table, between two keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(Bytes);

impl Cursor {
    /// Behind `key`, a whole key of the store.
    pub(crate) fn behind(key: Bytes) -> Self {
        Self(key)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.0
    }
}

/// A change of one row as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowEvent<K, T> {
    /// What the table calls the row.
    pub key: K,
    /// What it is now; `None` when it was deleted.
    pub row: Option<Row<T>>,
}

/// A compare-and-commit did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// There is no such row.
    #[error("no such row")]
    Missing,
    /// Other writers were faster each time.
    #[error("row was changed by others {TRIES} times in a row; try again")]
    Busy,
    /// The store refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl From<KvError> for ChangeError {
    fn from(error: KvError) -> Self {
        Self::Commit(error.into())
    }
}

/// The condition that nobody wrote `key` since `row` was read (or not read).
pub(crate) fn unchanged<T>(key: Bytes, row: Option<&Row<T>>) -> Compare {
    match row {
        Some(row) => Compare::ModRevision(key, row.mod_revision),
        None => Compare::Absent(key),
    }
}

/// Writes `value` at `key` when it is still as `row` says.
pub(crate) fn put<R: Record>(key: Bytes, row: Option<&Row<R>>, value: &R) -> Txn {
    let unchanged = unchanged(key.clone(), row);
    Txn::new().when(unchanged).put(key, record::seal(value))
}

/// Deletes `key` when it is still as `row` says.
pub(crate) fn delete<R>(key: Bytes, row: &Row<R>) -> Txn {
    let unchanged = unchanged(key.clone(), Some(row));
    Txn::new().when(unchanged).delete(key)
}

/// Reads the row at `key`.
pub(crate) async fn get<R: Record>(kv: &dyn Kv, key: &[u8]) -> Result<Option<Row<R>>, KvError> {
    let item = kv.get(key).await?;
    item.as_ref().map(read).transpose()
}

/// Reads a page of the rows under `prefix`.
pub(crate) async fn page<R: Record>(
    kv: &dyn Kv,
    prefix: &[u8],
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<R>, KvError> {
    let after = after.map(Cursor::key);
    let page = kv.scan(prefix, after, limit).await?;
    let last = page
        .items
        .last()
        .map(|item| Cursor::behind(item.key.clone()));
    let rows = page.items.iter().map(read).collect::<Result<_, _>>()?;
    Ok(RowPage {
        rows,
        revision: page.revision,
        next: last.filter(|_| page.more),
    })
}

/// The change `op` of a row under `prefix`; `None` for another table's.
pub(crate) fn event<R: Record>(
    prefix: &[u8],
    op: &ChangeOp,
) -> Result<Option<RowEvent<Bytes, R>>, KvError> {
    if !op.key().starts_with(prefix) {
        return Ok(None);
    }
    let row = match op {
        ChangeOp::Put(item) => Some(read(item)?),
        ChangeOp::Delete(_) => None,
    };
    let key = op.key().slice(prefix.len()..);
    Ok(Some(RowEvent { key, row }))
}

/// Reads the row at `key`, lets `decide` say what it becomes (`None`: stays),
/// and commits that if nobody else wrote meanwhile; else starts again.
///
/// Returns the revision that made the row what it is now.
pub(crate) async fn change<R: Record>(
    kv: &dyn Kv,
    key: Bytes,
    decide: impl Fn(Option<&R>) -> Option<R>,
) -> Result<Revision, ChangeError> {
    for _ in 0..TRIES {
        let row = get::<R>(kv, &key).await?;
        let Some(next) = decide(row.as_ref().map(|row| &row.value)) else {
            return row.map(|row| row.mod_revision).ok_or(ChangeError::Missing);
        };
        match kv.commit(put(key.clone(), row.as_ref(), &next)).await {
            Err(CommitError::Conflict { .. }) => {}
            outcome => return Ok(outcome?),
        }
    }
    Err(ChangeError::Busy)
}

/// `prefix` and `rest` as a key.
pub(crate) fn key(prefix: &[u8], rest: &[u8]) -> Bytes {
    [prefix, rest].concat().into()
}

fn read<R: Record>(item: &crate::kv::Item) -> Result<Row<R>, KvError> {
    Ok(Row {
        value: record::open(item)?,
        mod_revision: item.mod_revision,
    })
}
