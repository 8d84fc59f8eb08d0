//! Trust bundles, the own one and those of federated trust domains:
//! `b/<trust domain>`.
//!
//! Invariant: the own bundle's sequence number grows by one with each change of
//! content and with nothing else; a deleted bundle that comes back starts at 1.
//! A federated bundle's is what its trust domain says, and is only kept here.

use bytes::Bytes;
use vane_identity::bundle::Bundle;
use vane_identity::id::TrustDomain;

use super::row::{self, ChangeError, Cursor, Row, RowEvent, RowPage};
use crate::kv::{ChangeOp, Kv, KvError, Revision, Txn};
use crate::record::{FrameError, refusal};

/// The prefix of the table's keys.
pub const PREFIX: &[u8] = b"b/";

/// The key of the bundle of `trust_domain`.
pub fn key(trust_domain: &TrustDomain) -> Bytes {
    row::key(PREFIX, trust_domain.as_str().as_bytes())
}

/// `bundle` with the sequence number that it gets on top of `row`.
#[must_use]
pub fn numbered(row: Option<&Row<Bundle>>, mut bundle: Bundle) -> Bundle {
    bundle.sequence_number = match row {
        Some(row) if row.value.same_content(&bundle) => row.value.sequence_number,
        Some(row) => row.value.sequence_number.saturating_add(1),
        None => 1,
    };
    bundle
}

/// Writes `bundle`, [`numbered`] here, when the row is still `row` (absent:
/// `None`). Its only compare is index 0.
pub fn put(row: Option<&Row<Bundle>>, bundle: Bundle) -> Txn {
    let bundle = numbered(row, bundle);
    row::put(key(&bundle.trust_domain), row, &bundle)
}

/// Writes the federated `bundle` as it is, when the row is still `row`. Its only compare is
/// index 0.
pub fn put_federated(row: Option<&Row<Bundle>>, bundle: &Bundle) -> Txn {
    row::put(key(&bundle.trust_domain), row, bundle)
}

/// Deletes the bundle of `row`, when it is still so.
pub fn deletion(row: &Row<Bundle>) -> Txn {
    row::delete(key(&row.value.trust_domain), row)
}

/// Reads the bundle of `trust_domain`, linearizably.
///
/// # Errors
/// [`KvError`].
pub async fn get(kv: &dyn Kv, trust_domain: &TrustDomain) -> Result<Option<Row<Bundle>>, KvError> {
    row::get(kv, &key(trust_domain)).await
}

/// Reads a page of all bundles.
///
/// # Errors
/// [`KvError`].
pub async fn page(
    kv: &dyn Kv,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<RowPage<Bundle>, KvError> {
    row::page(kv, PREFIX, after, limit).await
}

/// Changes the content of the bundle of `trust_domain` to what `decide` makes
/// of it; one that is not there yet is empty. The same content is no write.
/// `decide` is asked again after each lost race.
///
/// Returns the revision that made the row what it is now; of a bundle that is
/// not there and stays empty, [`ChangeError::Missing`].
///
/// # Errors
/// [`ChangeError::Busy`] after many lost races, [`ChangeError::Commit`].
pub async fn change(
    kv: &dyn Kv,
    trust_domain: &TrustDomain,
    decide: impl Fn(Bundle) -> Bundle,
) -> Result<Revision, ChangeError> {
    let next = |bundle: Option<&Bundle>| {
        let old = bundle.cloned();
        let old = old.unwrap_or_else(|| Bundle::empty(trust_domain.clone()));
        let mut new = decide(old.clone());
        new.trust_domain = trust_domain.clone();
        new.sequence_number = old.sequence_number.saturating_add(1);
        (!new.same_content(&old)).then_some(new)
    };
    row::change(kv, key(trust_domain), next).await
}

/// The change `op` of a bundle; `None` for another table's.
///
/// # Errors
/// [`KvError`] when key or record cannot be read.
pub fn event(op: &ChangeOp) -> Result<Option<RowEvent<TrustDomain, Bundle>>, KvError> {
    let Some(event) = row::event(PREFIX, op)? else {
        return Ok(None);
    };
    let name = std::str::from_utf8(&event.key).ok();
    let trust_domain = name.and_then(|name| TrustDomain::parse(name).ok());
    let key = trust_domain.ok_or_else(|| refusal(op.key(), FrameError::Parts))?;
    let row = event.row;
    Ok(Some(RowEvent { key, row }))
}
