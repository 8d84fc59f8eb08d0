//! Registration entries: `e/<entry id>` holds the entry, and
//! `u/<SHA-256 of SPIFFE ID, parent, sorted selectors>` holds its ID, so that
//! no two entries have the same three.
//!
//! Invariant: `e/` and `u/` change in one transaction. The hash is over
//! length-prefixed parts (u32, big endian), so no two triples share one text.
//! Every item of a batch is a transaction of its own; the store groups those
//! that are under way together, so run them concurrently.

use aws_lc_rs::digest;
use bytes::Bytes;
use vane_identity::entry::{Entry, EntryId};

use super::row::{self, Cursor, Row, RowEvent, RowPage};
use crate::kv::{ChangeOp, CommitError, Compare, Kv, KvError, Revision, Txn};
use crate::record::{self, FrameError, refusal};

/// The prefix of the entries' keys.
pub const PREFIX: &[u8] = b"e/";
/// The prefix of the uniqueness keys.
pub const UNIQUE_PREFIX: &[u8] = b"u/";

/// How often a creation looks again for the entry that was in its way.
const TRIES: usize = 8;

/// An entry was not created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// This one has the same SPIFFE ID, parent and selectors.
    #[error("similar entry {} already exists", .0.value.id)]
    Similar(Box<Row<Entry>>),
    /// What the caller compared beside the entry does not hold.
    #[error("what the entry depends on was changed meanwhile; look again")]
    Changed,
    /// Another entry has the same ID.
    #[error("entry ID {0} is already in use")]
    IdTaken(EntryId),
    /// The store refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// An entry was not updated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The entry with this ID has the SPIFFE ID, parent and selectors that
    /// the updated one would have.
    #[error("similar entry {0} already exists")]
    Similar(EntryId),
    /// The entry, or what the caller compared beside it, was changed since it was read.
    #[error("entry was changed meanwhile; read it again")]
    Changed,
    /// The store refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The key of the entry `id`.
pub fn key(id: &EntryId) -> Bytes {
    row::key(PREFIX, id.as_str().as_bytes())
}

/// The uniqueness key of `entry`.
pub fn unique_key(entry: &Entry) -> Bytes {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut part = |text: &str| {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        hash.update(&length.to_be_bytes());
        hash.update(text.as_bytes());
    };
    part(entry.spiffe_id.as_str());
    part(entry.parent_id.as_str());
    for selector in &entry.selectors {
        part(selector.kind());
        part(selector.value());
    }
    row::key(UNIQUE_PREFIX, hash.finish().as_ref())
}

/// Creates `entry`. Compare 0 fails for a similar entry, compare 1 for a
/// taken ID.
pub fn creation(entry: &Entry) -> Txn {
    let (key, unique) = (key(&entry.id), unique_key(entry));
    Txn::new()
        .when(Compare::Absent(unique.clone()))
        .when(Compare::Absent(key.clone()))
        .put(key, record::seal(entry))
        .put(unique, unique_value(&entry.id))
}

/// Makes the entry of `row` into `next` (of the same ID). Compare 0 fails
/// when the row changed, compare 1 for a similar entry.
pub fn replacement(row: &Row<Entry>, next: &Entry) -> Txn {
    let txn = row::put(key(&row.value.id), Some(row), next);
    let (old, new) = (unique_key(&row.value), unique_key(next));
    if old == new {
        return txn;
    }
    txn.when(Compare::Absent(new.clone()))
        .delete(old)
        .put(new, unique_value(&row.value.id))
}

/// Deletes the entry of `row`, when it is still so.
pub fn deletion(row: &Row<Entry>) -> Txn {
    row::delete(key(&row.value.id), row).delete(unique_key(&row.value))
}

/// Reads the entry `id`, linearizably.
///
/// # Errors
/// [`KvError`].
pub async fn get(kv: &dyn Kv, id: &EntryId) -> Result<Option<Row<Entry>>, KvError> {
    row::get(kv, &key(id)).await
}

/// Reads a page of all entries.
///
/// # Errors
/// [`KvError`].
pub async fn page(
    kv: &dyn Kv,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<Entry>, KvError> {
    row::page(kv, PREFIX, after, limit).await
}

/// The ID of the entry with the SPIFFE ID, parent and selectors of `entry`.
///
/// # Errors
/// [`KvError`].
pub async fn similar(kv: &dyn Kv, entry: &Entry) -> Result<Option<EntryId>, KvError> {
    let Some(item) = kv.get(&unique_key(entry)).await? else {
        return Ok(None);
    };
    let damaged = |error| refusal(&item.key, error);
    let id = record::unframe(&item.value).map_err(damaged)?;
    let id = std::str::from_utf8(id)
        .ok()
        .and_then(|id| EntryId::parse(id).ok());
    id.map(Some).ok_or_else(|| damaged(FrameError::Parts))
}

/// Creates `entry`, together with what `also` says.
///
/// # Errors
/// [`CreateError`]; a similar entry is returned with it.
pub async fn create(kv: &dyn Kv, entry: &Entry, also: Txn) -> Result<Revision, CreateError> {
    let txn = creation(entry).and(also);
    let mut tries = TRIES;
    loop {
        let conflict = match kv.commit(txn.clone()).await {
            Err(CommitError::Conflict { compare: 1, .. }) => {
                return Err(CreateError::IdTaken(entry.id.clone()));
            }
            Err(CommitError::Conflict { compare: 2.., .. }) => return Err(CreateError::Changed),
            Err(conflict @ CommitError::Conflict { .. }) => conflict,
            outcome => return Ok(outcome?),
        };
        if let Some(row) = similar_row(kv, entry).await? {
            return Err(CreateError::Similar(Box::new(row)));
        }
        // The one that was in the way is gone again.
        tries -= 1;
        if tries == 0 {
            return Err(conflict.into());
        }
    }
}

/// Makes the entry of `row` into `next`, together with what `also` says.
///
/// # Errors
/// [`UpdateError`].
pub async fn update(
    kv: &dyn Kv,
    row: &Row<Entry>,
    next: &Entry,
    also: Txn,
) -> Result<Revision, UpdateError> {
    let txn = replacement(row, next);
    let own = txn.compares.len();
    match kv.commit(txn.and(also)).await {
        Err(CommitError::Conflict { compare: 1, .. }) if own > 1 => {
            let similar = similar(kv, next).await.map_err(CommitError::from)?;
            Err(similar.map_or(UpdateError::Changed, UpdateError::Similar))
        }
        Err(CommitError::Conflict { .. }) => Err(UpdateError::Changed),
        outcome => Ok(outcome?),
    }
}

/// Deletes the entry of `row`.
///
/// # Errors
/// [`CommitError::Conflict`] when it was changed or deleted meanwhile.
pub async fn delete(kv: &dyn Kv, row: &Row<Entry>) -> Result<Revision, CommitError> {
    kv.commit(deletion(row)).await
}

/// The change `op` of an entry; `None` for another table's or the uniqueness
/// key's.
///
/// # Errors
/// [`KvError`] when key or record cannot be read.
pub fn event(op: &ChangeOp) -> Result<Option<RowEvent<EntryId, Entry>>, KvError> {
    let Some(event) = row::event(PREFIX, op)? else {
        return Ok(None);
    };
    let id = std::str::from_utf8(&event.key).ok();
    let id = id.and_then(|id| EntryId::parse(id).ok());
    let key = id.ok_or_else(|| refusal(op.key(), FrameError::Parts))?;
    let row = event.row;
    Ok(Some(RowEvent { key, row }))
}

async fn similar_row(kv: &dyn Kv, entry: &Entry) -> Result<Option<Row<Entry>>, CommitError> {
    match similar(kv, entry).await? {
        Some(id) => Ok(get(kv, &id).await?),
        None => Ok(None),
    }
}

fn unique_value(id: &EntryId) -> Bytes {
    record::frame(id.as_str().as_bytes())
}
