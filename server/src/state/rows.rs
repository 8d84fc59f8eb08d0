//! What the keys and values of the store mean to the state. Decoded before the lock is taken.

use bytes::Bytes;
use vane_identity::bundle::Bundle;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_store::kv::{Change, ChangeOp, KvError, Page, Revision};
use vane_store::tables::row::RowEvent;
use vane_store::tables::{agents, bundles, entries};
use vane_wire::record::AgentRecord;

/// The tables that are kept in memory, in the order in which they are read: an agent is
/// never seen without the bundles.
pub(super) const TABLES: [&[u8]; 3] = [bundles::PREFIX, agents::PREFIX, entries::PREFIX];

/// What a row is now.
#[derive(Debug)]
pub(super) enum Row {
    Entry(Box<Entry>),
    NoEntry(EntryId),
    Agent(AgentRecord),
    NoAgent(SpiffeId),
    Bundle(Bundle),
    NoBundle(TrustDomain),
}

/// Rows that take effect together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// All that happened up to here is known once the batch is applied.
    pub(super) revision: Revision,
    /// Each with the revision that put it, or at which it was gone.
    pub(super) rows: Vec<(Row, Revision)>,
}

impl Batch {
    /// The rows of a commit, in the store of `trust_domain`.
    pub(super) fn of_change(change: &Change, trust_domain: &TrustDomain) -> Result<Self, KvError> {
        let revision = change.revision;
        let rows = change.ops.iter();
        let rows = rows.filter_map(|op| row(op, revision, trust_domain).transpose());
        Ok(Self {
            revision,
            rows: rows.collect::<Result<_, _>>()?,
        })
    }
}

/// A page of a table.
#[derive(Debug)]
pub(super) struct Part {
    /// Its rows. They are no step in the history: the pages before and after are of other
    /// revisions.
    pub(super) batch: Batch,
    /// Their keys, in order.
    pub(super) keys: Vec<Bytes>,
    /// As in [`Page`].
    pub(super) revision: Revision,
    /// As in [`Page`].
    pub(super) more: bool,
}

impl Part {
    /// The rows of a page of the store of `trust_domain`.
    pub(super) fn of_page(page: Page, trust_domain: &TrustDomain) -> Result<Self, KvError> {
        let revision = page.revision;
        let keys = page.items.iter().map(|item| item.key.clone()).collect();
        let ops = page.items.into_iter().map(ChangeOp::Put);
        let rows = ops.filter_map(|op| row(&op, revision, trust_domain).transpose());
        let rows = rows.collect::<Result<_, _>>()?;
        Ok(Self {
            batch: Batch { revision: 0, rows },
            keys,
            revision,
            more: page.more,
        })
    }

    /// Adds the deletion of what the page lacks.
    pub(super) fn delete(&mut self, missing: Vec<Row>) {
        let missing = missing.into_iter().map(|row| (row, self.revision));
        self.batch.rows.extend(missing);
    }
}

/// The row that `op`, committed at `revision`, is about; none in a table not kept here.
fn row(
    op: &ChangeOp,
    revision: Revision,
    trust_domain: &TrustDomain,
) -> Result<Option<(Row, Revision)>, KvError> {
    let revision = match op {
        ChangeOp::Put(item) => item.mod_revision,
        ChangeOp::Delete(_) => revision,
    };
    if let Some(RowEvent { key, row }) = entries::event(op)? {
        let row = row.map(|row| Row::Entry(Box::new(row.value)));
        return Ok(Some((row.unwrap_or(Row::NoEntry(key)), revision)));
    }
    if let Some(RowEvent { key, row }) = agents::event(op)? {
        let gone = trust_domain.with_path(&format!("/{key}"));
        let gone = gone.ok().map(Row::NoAgent);
        let row = row.map(|row| Row::Agent(row.value));
        return Ok(row.or(gone).map(|row| (row, revision)));
    }
    if let Some(RowEvent { key, row }) = bundles::event(op)? {
        let row = row.map(|row| Row::Bundle(row.value));
        return Ok(Some((row.unwrap_or(Row::NoBundle(key)), revision)));
    }
    Ok(None)
}
