//! Attested agents: `a/<path of the agent's SPIFFE ID, without its slash>`.
//!
//! Invariant: every write is guarded by the revision that was read, so a ban
//! is never overwritten by a renewal that began before it.

use bytes::Bytes;
use vane_identity::id::SpiffeId;
use vane_wire::record::AgentRecord;

use super::row::{self, ChangeError, Cursor, Row, RowEvent, RowPage};
use crate::kv::{ChangeOp, Kv, KvError, Revision, Txn};
use crate::record::{FrameError, refusal};

/// The prefix of the table's keys.
pub const PREFIX: &[u8] = b"a/";

/// The key of the agent `id`.
pub fn key(id: &SpiffeId) -> Bytes {
    row::key(PREFIX, path(id).as_bytes())
}

/// What [`event`] calls the agent `id`: its path without the leading slash.
pub fn path(id: &SpiffeId) -> &str {
    id.path().trim_start_matches('/')
}

/// Writes `agent`, when its row is still `row` (absent: `None`). Its only
/// compare is index 0.
pub fn put(row: Option<&Row<AgentRecord>>, agent: &AgentRecord) -> Txn {
    row::put(key(&agent.spiffe_id), row, agent)
}

/// Deletes the agent of `row`, when it is still so.
pub fn deletion(row: &Row<AgentRecord>) -> Txn {
    row::delete(key(&row.value.spiffe_id), row)
}

/// Reads the agent `id`, linearizably.
///
/// # Errors
/// [`KvError`].
pub async fn get(kv: &dyn Kv, id: &SpiffeId) -> Result<Option<Row<AgentRecord>>, KvError> {
    row::get(kv, &key(id)).await
}

/// Reads a page of all agents.
///
/// # Errors
/// [`KvError`].
pub async fn page(
    kv: &dyn Kv,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<AgentRecord>, KvError> {
    row::page(kv, PREFIX, after, limit).await
}

/// Changes the agent `id` to what `decide` says of it; `None` leaves it.
/// `decide` is asked again after each lost race.
///
/// Returns the revision that made the row what it is now.
///
/// # Errors
/// [`ChangeError::Missing`] when there is no such agent, [`ChangeError::Busy`]
/// after many lost races, [`ChangeError::Commit`].
pub async fn change(
    kv: &dyn Kv,
    id: &SpiffeId,
    decide: impl Fn(&AgentRecord) -> Option<AgentRecord>,
) -> Result<Revision, ChangeError> {
    row::change(kv, key(id), |agent| agent.and_then(&decide)).await
}

/// The change `op` of an agent, under its [`path`]; `None` for another table's.
///
/// # Errors
/// [`KvError`] when the record cannot be read.
pub fn event(op: &ChangeOp) -> Result<Option<RowEvent<String, AgentRecord>>, KvError> {
    let Some(event) = row::event(PREFIX, op)? else {
        return Ok(None);
    };
    let path = String::from_utf8(event.key.to_vec());
    let key = path.map_err(|_| refusal(op.key(), FrameError::Parts))?;
    let row = event.row;
    Ok(Some(RowEvent { key, row }))
}
