//! Deleting a federated bundle, with what becomes of the entries that federate with it.
//!
//! Entries and bundle go in one transaction while they fit into one (about thirty entries).
//! More are changed first, in several; the bundle goes with the last of them, and only if no
//! entry was added meanwhile (`vane_store::tables::federation`). So an entry never names a
//! bundle that is not there, and what is interrupted is finished by asking again.

use std::sync::Arc;

use tonic::Code;
use uuid::Uuid;
use vane_identity::bundle::Bundle;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_store::kv::{CommitError, KvError, Revision, Txn};
use vane_store::tables::row::Row;
use vane_store::tables::{bundles, entries, federation};
use vane_wire::convert::selector::{SetMatch, TrustDomainFilter};
use vane_wire::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use vane_wire::status::Refusal;

use super::{busy, foreign, not_found};
use crate::api::Parts;
use crate::audit::Change;
use crate::audit::ledger::Intent;
use crate::caller::Caller;
use crate::state::EntryFilter;

/// How often the deletion starts again that lost against another change.
const TRIES: usize = 16;
/// Entries taken from hot state at a time.
const CHUNK: usize = 500;
const TRIED: &str = "failed to delete federated bundle";

/// The mode of a request.
///
/// # Errors
/// INVALID_ARGUMENT for a number that has no mode.
pub(super) fn mode(number: i32) -> Result<Mode, Refusal> {
    Mode::try_from(number).map_err(|_| {
        let why = format!("unhandled delete mode \"{number}\"");
        Refusal::because(Code::InvalidArgument, "failed to parse deletion mode", why)
    })
}

/// Deletes the bundle of the trust domain `text`.
///
/// # Errors
/// NOT_FOUND `bundle not found`, FAILED_PRECONDITION when entries federate with it and `mode`
/// says nothing about them, and what the store says.
pub(super) async fn delete(
    parts: &Parts,
    caller: &Caller,
    text: &str,
    mode: Mode,
) -> Result<(), Refusal> {
    let own = "removing the bundle for the server trust domain is not allowed";
    let trust_domain = foreign(parts, text, own)?;
    let store = |error: KvError| parts.store_refusal(TRIED, &error.into());
    for _ in 0..TRIES {
        let row = bundles::get(&*parts.kv, &trust_domain).await;
        let row = row.map_err(store)?.ok_or_else(not_found)?;
        let seen = federation::entries(&*parts.kv, &trust_domain).await;
        let seen = seen.map_err(store)?;
        // Hot state has then all that the mark stands for.
        parts.state.confirm().await.map_err(store)?;
        let federated = federated(parts, &trust_domain).await;
        if mode == Mode::Restrict && !federated.is_empty() {
            return Err(restricted(federated.len()));
        }
        let deletion = Deletion {
            parts,
            caller,
            mode,
            trust_domain: &trust_domain,
        };
        if deletion.run(&row, &seen, &federated).await? {
            return Ok(());
        }
    }
    Err(busy(TRIED))
}

/// SPIRE's text.
fn restricted(count: usize) -> Refusal {
    let why =
        format!("datastore-sql: cannot delete bundle; federated with {count} registration entries");
    Refusal::because(Code::FailedPrecondition, TRIED, why)
}

/// The entries that federate with `trust_domain`, as hot state has them.
async fn federated(parts: &Parts, trust_domain: &TrustDomain) -> Vec<Row<Entry>> {
    let filter = EntryFilter {
        federates_with: Some(TrustDomainFilter {
            trust_domains: vec![trust_domain.clone()],
            by: SetMatch::Any,
        }),
        ..EntryFilter::default()
    };
    let mut found = Vec::new();
    let mut after: Option<EntryId> = None;
    loop {
        let page = parts
            .state
            .entries_page(&filter, after.as_ref(), CHUNK)
            .await;
        after = page.items.last().map(|entry| entry.id.clone());
        for entry in &page.items {
            // One that is gone by now needs nothing.
            if let Some((entry, mod_revision)) = parts.state.entry_at(&entry.id) {
                let value = Arc::unwrap_or_clone(entry);
                found.push(Row {
                    value,
                    mod_revision,
                });
            }
        }
        if !page.more {
            return found;
        }
    }
}

struct Deletion<'a> {
    parts: &'a Parts,
    caller: &'a Caller,
    mode: Mode,
    trust_domain: &'a TrustDomain,
}

/// One transaction with what the log says of it.
#[derive(Default)]
struct Step {
    txn: Txn,
    changes: Vec<Intent>,
}

impl Deletion<'_> {
    /// Whether the bundle is gone; else something was changed meanwhile.
    async fn run(
        &self,
        row: &Row<Bundle>,
        seen: &federation::Seen,
        federated: &[Row<Entry>],
    ) -> Result<bool, Refusal> {
        let mark = Uuid::new_v4().into_bytes();
        let deleted = Change::BundleDeleted(self.trust_domain);
        let deleted = self.parts.intend(self.caller, deleted);
        let bundle = bundles::deletion(row)
            .and(federation::bundle_deleted(seen, mark))
            .and(deleted.marker());
        let mut step = Step::default();
        for row in federated {
            let (txn, change) = self.entry(row);
            let with = step.txn.clone().and(txn.clone());
            // The bundle must fit into the last one.
            if !step.changes.is_empty() && with.clone().and(bundle.clone()).check().is_err() {
                if !self.commit(std::mem::take(&mut step)).await? {
                    return Ok(false);
                }
                step.txn = txn;
            } else {
                step.txn = with;
            }
            step.changes.push(change);
        }
        step.txn = step.txn.and(bundle);
        step.changes.push(deleted);
        self.commit(step).await
    }

    /// What becomes of one entry.
    fn entry(&self, row: &Row<Entry>) -> (Txn, Intent) {
        if self.mode == Mode::Delete {
            let change = Change::EntryDeleted(&row.value);
            let change = self.parts.intend(self.caller, change);
            return (entries::deletion(row).and(change.marker()), change);
        }
        let mut next = row.value.clone();
        next.federates_with.retain(|one| one != self.trust_domain);
        // Else no agent would see the change.
        next.revision_number = next.revision_number.saturating_add(1);
        let change = self.parts.intend(self.caller, Change::EntryUpdated(&next));
        let txn = entries::replacement(row, &next).and(change.marker());
        (txn, change)
    }

    async fn commit(&self, step: Step) -> Result<bool, Refusal> {
        let revision: Revision = match self.parts.kv.commit(step.txn).await {
            Ok(revision) => revision,
            Err(CommitError::Conflict { .. }) => return Ok(false),
            Err(error) => return Err(self.parts.store_refusal(TRIED, &error)),
        };
        let logged = self.parts.acknowledge_all(step.changes, revision, TRIED);
        logged.await.map(|()| true)
    }
}
