//! What stands behind the lock of the state, and the one way in which it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use vane_identity::bundle::Bundle;
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::EntryId;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::x509_svid::Certificate;
use vane_store::kv::Revision;
use vane_store::tables::{agents, bundles, entries};
use vane_wire::record::AgentRecord;

use super::fanout::Fanout;
use super::live::Live;
use super::message::{Message, Shared};
use super::outbox::Outbox;
use super::rows::{Batch, Row};
use crate::authorized::{Graph, Log};

/// The state.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) graph: Graph,
    pub(super) agents: BTreeMap<SpiffeId, Held<AgentRecord>>,
    pub(super) bundles: BTreeMap<TrustDomain, Held<Bundle>>,
    pub(super) live: Live,
    /// Everything up to here is in.
    pub(super) applied: Revision,
    /// Of the latest change of a bundle.
    pub(super) bundle_revision: Revision,
    pub(super) bundle_digest: Digest,
}

/// A value with the revision that put it.
#[derive(Debug)]
pub(super) struct Held<T> {
    pub(super) value: Arc<T>,
    pub(super) mod_revision: Revision,
}

/// The part of a table between two keys, the first exclusive; open where none is given.
#[derive(Debug)]
pub(super) struct Span<'k> {
    pub(super) table: &'static [u8],
    pub(super) trust_domain: &'k TrustDomain,
    pub(super) after: Option<&'k [u8]>,
    pub(super) upto: Option<&'k [u8]>,
}

impl Span<'_> {
    fn contains(&self, key: &[u8]) -> bool {
        self.after.is_none_or(|after| key > after) && self.upto.is_none_or(|upto| key <= upto)
    }

    fn after_entry(&self) -> Option<EntryId> {
        self.after.and_then(entry_id)
    }

    fn after_agent(&self) -> Option<SpiffeId> {
        let path = self.after?.strip_prefix(agents::PREFIX)?;
        let path = std::str::from_utf8(path).ok()?;
        self.trust_domain.with_path(&format!("/{path}")).ok()
    }

    fn upto_entry(&self) -> Option<EntryId> {
        self.upto.and_then(entry_id)
    }
}

fn entry_id(key: &[u8]) -> Option<EntryId> {
    let id = std::str::from_utf8(key.strip_prefix(entries::PREFIX)?).ok()?;
    EntryId::parse(id).ok()
}

/// What a batch did beside entries.
#[derive(Debug, Default)]
struct Effects {
    log: Log,
    bundles: BTreeSet<TrustDomain>,
    tainted: Vec<String>,
    moved: BTreeSet<u32>,
    woken: Vec<Arc<Outbox>>,
}

impl Inner {
    /// An empty state, of the server whose ID is `server`.
    pub(super) fn new(server: &SpiffeId) -> Self {
        Self {
            graph: Graph::new(server),
            agents: BTreeMap::new(),
            bundles: BTreeMap::new(),
            live: Live::default(),
            applied: 0,
            bundle_revision: 0,
            bundle_digest: Digest::EMPTY,
        }
    }

    /// Applies a batch; returns the streams to wake. `now` in Unix seconds.
    pub(super) fn apply(&mut self, batch: Batch, now: i64) -> Vec<Arc<Outbox>> {
        let mut effects = Effects::default();
        for (row, revision) in batch.rows {
            self.row(row, revision, now, &mut effects);
        }
        self.applied = self.applied.max(batch.revision);
        self.tell(effects)
    }

    /// Lets entries expire; returns the streams to wake. `now` in Unix seconds.
    pub(super) fn expire(&mut self, now: i64) -> Vec<Arc<Outbox>> {
        let mut effects = Effects::default();
        self.graph.expire(now, &mut effects.log);
        self.tell(effects)
    }

    /// The rows that are here between those of two keys (the first exclusive, both open when
    /// not given) and not among `keys`, those of a page of one table.
    pub(super) fn missing(&self, span: &Span<'_>, keys: &[Bytes]) -> Vec<Row> {
        let is_there = |key: &Bytes| keys.binary_search(key).is_ok();
        let is_missing = |key: &Bytes| span.contains(key) && !is_there(key);
        match span.table {
            entries::PREFIX => self
                .graph
                .ids_between(span.after_entry().as_ref(), span.upto_entry().as_ref())
                .filter(|id| is_missing(&entries::key(id)))
                .map(Row::NoEntry)
                .collect(),
            agents::PREFIX => {
                let from = span.after_agent();
                let from = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
                let held = self.agents.range((from, Bound::Unbounded));
                held.map(|(id, _)| id)
                    .take_while(|id| span.contains(&agents::key(id)))
                    .filter(|id| is_missing(&agents::key(id)))
                    .cloned()
                    .map(Row::NoAgent)
                    .collect()
            }
            _ => {
                let names = self.bundles.keys();
                let names = names.filter(|name| is_missing(&bundles::key(name)));
                names.cloned().map(Row::NoBundle).collect()
            }
        }
    }

    fn row(&mut self, row: Row, revision: Revision, now: i64, effects: &mut Effects) {
        match row {
            Row::Entry(entry) => self.graph.put(&entry, revision, now, &mut effects.log),
            Row::NoEntry(id) => self.graph.delete(&id, revision, &mut effects.log),
            Row::Agent(record) => self.put_agent(record, revision, effects),
            Row::NoAgent(id) => self.delete_agent(&id, revision, effects),
            Row::Bundle(bundle) => self.put_bundle(bundle, revision, effects),
            Row::NoBundle(name) => self.delete_bundle(&name, revision, effects),
        }
    }

    fn put_agent(&mut self, record: AgentRecord, mod_revision: Revision, effects: &mut Effects) {
        let id = record.spiffe_id.clone();
        let held = self.agents.get(&id).map(|held| held.mod_revision);
        if held.is_some_and(|held| held >= mod_revision) {
            return;
        }
        let value = Arc::new(record);
        let held = Held {
            value: Arc::clone(&value),
            mod_revision,
        };
        self.agents.insert(id.clone(), held);
        self.doubt(&id, Some(&value), effects);
    }

    fn delete_agent(&mut self, id: &SpiffeId, revision: Revision, effects: &mut Effects) {
        if self
            .agents
            .get(id)
            .is_some_and(|held| held.mod_revision > revision)
        {
            return;
        }
        self.agents.remove(id);
        self.doubt(id, None, effects);
    }

    /// The streams of an agent whose record changed ask whether they may go on.
    fn doubt(&mut self, id: &SpiffeId, record: Option<&AgentRecord>, effects: &mut Effects) {
        let Some(agent) = self.graph.node(id).and_then(|node| self.live.get(node)) else {
            return;
        };
        for stream in &agent.streams {
            stream.doubt();
            effects.woken.push(Arc::clone(stream));
        }
        let Some(record) = record else {
            return;
        };
        if !self
            .graph
            .has_selectors(&agent.selectors, &record.selectors)
        {
            let node = agent.node;
            let fresh = self.graph.take_selectors(&record.selectors);
            let old = self.live.set_selectors(node, fresh);
            self.graph.give_back_selectors(&old);
            effects.moved.insert(node);
        }
    }

    fn put_bundle(&mut self, bundle: Bundle, mod_revision: Revision, effects: &mut Effects) {
        let name = bundle.trust_domain.clone();
        let held = self.bundles.get(&name);
        if held.is_some_and(|held| held.mod_revision >= mod_revision) {
            return;
        }
        if let Some(held) = held {
            effects.tainted.extend(newly_tainted(&held.value, &bundle));
            self.bundle_digest.remove(Member::of_bundle(&held.value));
        }
        self.bundle_digest.add(Member::of_bundle(&bundle));
        let value = Arc::new(bundle);
        self.bundles.insert(
            name.clone(),
            Held {
                value,
                mod_revision,
            },
        );
        self.bundle_revision = self.bundle_revision.max(mod_revision);
        effects.bundles.insert(name);
    }

    fn delete_bundle(&mut self, name: &TrustDomain, revision: Revision, effects: &mut Effects) {
        let held = self.bundles.get(name);
        if held.is_some_and(|held| held.mod_revision > revision) {
            return;
        }
        if let Some(held) = self.bundles.remove(name) {
            self.bundle_digest.remove(Member::of_bundle(&held.value));
        }
        self.bundle_revision = self.bundle_revision.max(revision);
        effects.bundles.insert(name.clone());
    }

    /// Tells the streams: bundles first, then entries.
    fn tell(&mut self, effects: Effects) -> Vec<Arc<Outbox>> {
        let messages = self.bundle_messages(&effects);
        let mut fanout = Fanout {
            graph: &self.graph,
            log: &effects.log,
            revision: self.applied,
            moved: effects.moved,
            woken: effects.woken,
        };
        if !messages.is_empty() {
            fanout.broadcast(&self.live, &messages);
        }
        fanout.entries(&mut self.live);
        let woken = fanout.woken;
        self.graph.sweep();
        woken
    }

    fn bundle_messages(&self, effects: &Effects) -> Vec<Arc<Shared>> {
        if effects.bundles.is_empty() || self.live.len() == 0 {
            return Vec::new();
        }
        let (mut bundles, mut removed) = (Vec::new(), Vec::new());
        for name in &effects.bundles {
            match self.bundles.get(name) {
                Some(held) => bundles.push(Arc::clone(&held.value)),
                None => removed.push(name.clone()),
            }
        }
        let changed = Message::Bundles {
            bundles,
            removed,
            revision: self.bundle_revision,
            full: false,
            last: true,
        };
        let renew = (!effects.tainted.is_empty()).then(|| Message::Renew {
            entries: Vec::new(),
            authorities: effects.tainted.clone(),
        });
        let messages = [changed].into_iter().chain(renew);
        messages.map(Shared::new).map(Arc::new).collect()
    }
}

/// The IDs of the X.509 authorities that are tainted in `new` and were not in `old`.
fn newly_tainted(old: &Bundle, new: &Bundle) -> Vec<String> {
    let was_tainted = |certificate: &Certificate| {
        let mut known = old.x509_authorities.iter();
        known.any(|one| one.certificate == *certificate && one.tainted)
    };
    let tainted = new.x509_authorities.iter().filter(|one| one.tainted);
    tainted
        .filter(|one| !was_tainted(&one.certificate))
        .filter_map(|one| one.authority_id().ok())
        .collect()
}
