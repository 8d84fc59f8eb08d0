//! Signing authorities of all servers: `c/<authority id>`.
//!
//! Invariant: only the owner moves an authority, by compare-and-commit on the
//! row it read. Which moves make sense is decided above
//! (`authority::schedule`); no private key is here, only its `key_ref`.

use bytes::Bytes;
use vane_wire::record::AuthorityRecord;

use super::row::{self, ChangeError, Cursor, Row, RowEvent, RowPage};
use crate::kv::{ChangeOp, Kv, KvError, Revision, Txn};
use crate::record::{FrameError, refusal};

/// The prefix of the table's keys.
pub const PREFIX: &[u8] = b"c/";

/// The key of the authority `id`.
pub fn key(id: &str) -> Bytes {
    row::key(PREFIX, id.as_bytes())
}

/// Writes `authority`, when its row is still `row` (absent: `None`). Its only
/// compare is index 0.
pub fn put(row: Option<&Row<AuthorityRecord>>, authority: &AuthorityRecord) -> Txn {
    row::put(key(&authority.id), row, authority)
}

/// Deletes the authority of `row`, when it is still so.
pub fn deletion(row: &Row<AuthorityRecord>) -> Txn {
    row::delete(key(&row.value.id), row)
}

/// Reads the authority `id`, linearizably.
///
/// # Errors
/// [`KvError`].
pub async fn get(kv: &dyn Kv, id: &str) -> Result<Option<Row<AuthorityRecord>>, KvError> {
    row::get(kv, &key(id)).await
}

/// Reads a page of all authorities.
///
/// # Errors
/// [`KvError`].
pub async fn page(
    kv: &dyn Kv,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<AuthorityRecord>, KvError> {
    row::page(kv, PREFIX, after, limit).await
}

/// Changes the authority `id` to what `decide` says of it; `None` leaves it.
/// `decide` is asked again after each lost race.
///
/// Returns the revision that made the row what it is now.
///
/// # Errors
/// [`ChangeError::Missing`] when there is no such authority,
/// [`ChangeError::Busy`] after many lost races, [`ChangeError::Commit`].
pub async fn change(
    kv: &dyn Kv,
    id: &str,
    decide: impl Fn(&AuthorityRecord) -> Option<AuthorityRecord>,
) -> Result<Revision, ChangeError> {
    row::change(kv, key(id), |authority| authority.and_then(&decide)).await
}

/// The change `op` of an authority, under its ID; `None` for another table's.
///
/// # Errors
/// [`KvError`] when the record cannot be read.
pub fn event(op: &ChangeOp) -> Result<Option<RowEvent<String, AuthorityRecord>>, KvError> {
    let Some(event) = row::event(PREFIX, op)? else {
        return Ok(None);
    };
    let id = String::from_utf8(event.key.to_vec());
    let key = id.map_err(|_| refusal(op.key(), FrameError::Parts))?;
    let row = event.row;
    Ok(Some(RowEvent { key, row }))
}
