//! Join tokens: `j/<SHA-256 of the token>`, so that a copy of the store holds
//! no usable token.
//!
//! Invariant: a token is used once. Its use is one transaction with the
//! agent's row ([`consumption`] joined with `agents::put`), after which the
//! row is a tombstone bound to the key of the CSR until the token would have
//! expired: the same key is answered again, another one is refused.

use aws_lc_rs::digest;
use bytes::Bytes;
use vane_wire::record::{JoinTokenRecord, TokenUse};

use super::row::{self, Cursor, Row, RowPage};
use crate::kv::{Kv, KvError, Txn};

/// The prefix of the table's keys.
pub const PREFIX: &[u8] = b"j/";

/// The SHA-256 of a token: what the table knows it by.
pub type TokenHash = [u8; 32];

/// The hash of `token`.
pub fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// The key of the token with this hash.
pub fn key(hash: &TokenHash) -> Bytes {
    row::key(PREFIX, hash)
}

/// Writes `token`, when its row is still `row` (absent: `None`). Its only
/// compare is index 0.
pub fn put(row: Option<&Row<JoinTokenRecord>>, hash: &TokenHash, token: &JoinTokenRecord) -> Txn {
    row::put(key(hash), row, token)
}

/// Turns the token of `row` into the tombstone of `used`, when it is still so.
pub fn consumption(row: &Row<JoinTokenRecord>, hash: &TokenHash, used: TokenUse) -> Txn {
    let tombstone = JoinTokenRecord {
        used: Some(used),
        ..row.value.clone()
    };
    put(Some(row), hash, &tombstone)
}

/// Deletes the token of `row`, when it is still so.
pub fn deletion(row: &Row<JoinTokenRecord>, hash: &TokenHash) -> Txn {
    row::delete(key(hash), row)
}

/// Reads the token with this hash, linearizably.
///
/// # Errors
/// [`KvError`].
pub async fn get(kv: &dyn Kv, hash: &TokenHash) -> Result<Option<Row<JoinTokenRecord>>, KvError> {
    row::get(kv, &key(hash)).await
}

/// Reads a page of all tokens.
///
/// # Errors
/// [`KvError`].
pub async fn page(
    kv: &dyn Kv,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<JoinTokenRecord>, KvError> {
    row::page(kv, PREFIX, after, limit).await
}

/// Deletes at most `limit` tokens and tombstones that ended before `now`
/// (seconds since the Unix epoch) among those behind `after`; returns how
/// many, and where to go on (`None` at the end of the table).
///
/// # Errors
/// [`KvError`]; a token that somebody changed meanwhile stays.
pub async fn sweep(
    kv: &dyn Kv,
    now: i64,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<(usize, Option<Cursor>), KvError> {
    let place = after.map(Cursor::key);
    let page = kv.scan(PREFIX, place, limit).await?;
    let mut deleted = 0;
    for item in &page.items {
        let token: JoinTokenRecord = crate::record::open(item)?;
        if token.expires_at >= now {
            continue;
        }
        let row = Row {
            value: token,
            mod_revision: item.mod_revision,
        };
        if kv.commit(row::delete(item.key.clone(), &row)).await.is_ok() {
            deleted += 1;
        }
    }
    let last = page
        .items
        .last()
        .map(|item| Cursor::behind(item.key.clone()));
    Ok((deleted, last.filter(|_| page.more)))
}
