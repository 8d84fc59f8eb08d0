//! Creating, setting and updating one federated bundle.

use tonic::Code;
use vane_identity::bundle::Bundle;
use vane_store::kv::{CommitError, Kv as _, Revision};
use vane_store::tables::bundles;
use vane_store::tables::row::Row;
use vane_wire::convert;
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::{busy, foreign, not_found};
use crate::api::Parts;
use crate::audit::Change;
use crate::audit::ledger::Intent;
use crate::caller::Caller;

/// How often a change is tried again that lost against another one.
const TRIES: usize = 16;

/// Stores a bundle that is not there.
///
/// # Errors
/// ALREADY_EXISTS `bundle already exists`, and what conversion and store say.
pub(super) async fn create(
    parts: &Parts,
    caller: &Caller,
    wire: &types::Bundle,
) -> Result<Bundle, Refusal> {
    let own = "creating a federated bundle for the server's own trust domain is not allowed";
    let bundle = read(parts, wire, own)?;
    let tried = "unable to create bundle";
    let intent = parts.intend(caller, Change::BundleCreated(&bundle));
    match write(parts, &intent, None, &bundle, tried).await? {
        Some(revision) => {
            parts.acknowledge(intent, revision, tried).await?;
            Ok(bundle)
        }
        None => Err(Refusal::new(Code::AlreadyExists, "bundle already exists")),
    }
}

/// Stores a bundle, whether one is there or not.
///
/// # Errors
/// What conversion and store say.
pub(super) async fn set(
    parts: &Parts,
    caller: &Caller,
    wire: &types::Bundle,
) -> Result<Bundle, Refusal> {
    let own = "setting a federated bundle for the server's own trust domain is not allowed";
    let bundle = read(parts, wire, own)?;
    let tried = "failed to set bundle";
    for _ in 0..TRIES {
        let row = stored(parts, &bundle, tried).await?;
        let intent = parts.intend(caller, Change::BundleSet(&bundle));
        if let Some(revision) = write(parts, &intent, row.as_ref(), &bundle, tried).await? {
            parts.acknowledge(intent, revision, tried).await?;
            return Ok(bundle);
        }
    }
    Err(busy(tried))
}

/// Changes the fields of a bundle that `mask` names; all without one.
///
/// # Errors
/// NOT_FOUND `bundle not found`, and what conversion and store say.
pub(super) async fn update(
    parts: &Parts,
    caller: &Caller,
    wire: &types::Bundle,
    mask: Option<&types::BundleMask>,
) -> Result<Bundle, Refusal> {
    let own = "updating a federated bundle for the server's own trust domain is not allowed";
    let given = read(parts, wire, own)?;
    let tried = "failed to update bundle";
    for _ in 0..TRIES {
        let row = stored(parts, &given, tried).await?.ok_or_else(not_found)?;
        let bundle = merge(&row.value, &given, mask);
        let intent = parts.intend(caller, Change::BundleUpdated(&bundle));
        if let Some(revision) = write(parts, &intent, Some(&row), &bundle, tried).await? {
            parts.acknowledge(intent, revision, tried).await?;
            return Ok(bundle);
        }
    }
    Err(busy(tried))
}

fn read(parts: &Parts, wire: &types::Bundle, own: &str) -> Result<Bundle, Refusal> {
    foreign(parts, &wire.trust_domain, own)?;
    let mut bundle =
        Bundle::try_from(wire).map_err(|error| Refusal::of("failed to convert bundle", &error))?;
    // As SPIRE: whether a CA is tainted is said by its own trust domain's servers only.
    for authority in &mut bundle.x509_authorities {
        authority.tainted = false;
    }
    Ok(bundle)
}

fn merge(old: &Bundle, new: &Bundle, mask: Option<&types::BundleMask>) -> Bundle {
    let mut merged = old.clone();
    let all = convert::bundle::ALL_FIELDS;
    let mask = mask.unwrap_or(&all);
    if mask.x509_authorities {
        merged.x509_authorities.clone_from(&new.x509_authorities);
    }
    if mask.jwt_authorities {
        merged.jwt_authorities.clone_from(&new.jwt_authorities);
    }
    if mask.refresh_hint {
        merged.refresh_hint = new.refresh_hint;
    }
    if mask.sequence_number {
        merged.sequence_number = new.sequence_number;
    }
    merged
}

async fn stored(
    parts: &Parts,
    bundle: &Bundle,
    tried: &str,
) -> Result<Option<Row<Bundle>>, Refusal> {
    let row = bundles::get(&*parts.kv, &bundle.trust_domain).await;
    row.map_err(|error| parts.store_refusal(tried, &error.into()))
}

/// Writes `bundle` on top of `row`; `None` when that is no longer what is there.
async fn write(
    parts: &Parts,
    intent: &Intent,
    row: Option<&Row<Bundle>>,
    bundle: &Bundle,
    tried: &str,
) -> Result<Option<Revision>, Refusal> {
    let txn = bundles::put_federated(row, bundle);
    match intent.kv().commit(txn).await {
        Ok(revision) => Ok(Some(revision)),
        Err(CommitError::Conflict { .. }) => Ok(None),
        Err(error) => Err(parts.store_refusal(tried, &error)),
    }
}
