//! Questions to the state. Each holds the lock for one lookup or a bounded part of a walk.

use std::ops::Bound;
use std::sync::Arc;

use vane_identity::bundle::Bundle;
use vane_identity::digest::Digest;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_store::kv::Revision;
use vane_wire::convert::selector::SelectorFilter;
use vane_wire::record::AgentRecord;

use super::inner::Inner;
use super::message::Listed;
use super::{EntryFilter, State};
use crate::authorized::{Reach, Walk};

/// Entries or agents looked at under one lock.
const AT_ONCE: usize = 500;

/// Which agents are wanted; a field that is not set wants all.
#[derive(Debug, Clone, Default)]
pub struct AgentFilter {
    /// Those attested by this method.
    pub attestation_type: Option<String>,
    /// Those whose selectors pass.
    pub selectors: Option<SelectorFilter>,
    /// Those that are banned, or are not.
    pub banned: Option<bool>,
    /// Those that can attest again, or cannot.
    pub can_reattest: Option<bool>,
    /// Those whose certificate ends before this time, in Unix seconds.
    pub expires_before: Option<i64>,
}

/// A page of a listing, in order of ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<Arc<T>>,
    /// Whether more follow; the next page begins after the last item's ID.
    pub more: bool,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Entries, expired ones too.
    pub entries: usize,
    /// Attested agents, banned ones too.
    pub agents: usize,
    /// Bundles, the own one too.
    pub bundles: usize,
    /// Agents with a stream.
    pub connected: usize,
}

/// What the entries of a SPIFFE ID allow beside having an identity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// To call the admin APIs.
    pub admin: bool,
    /// To ask for an intermediate CA.
    pub downstream: bool,
}

impl State {
    /// An entry, expired or not.
    #[must_use]
    pub fn entry(&self, id: &EntryId) -> Option<Arc<Entry>> {
        let inner = self.read();
        let slot = inner.graph.find(id)?;
        inner.graph.entry(slot).map(Arc::new)
    }

    /// An entry with the revision that put it.
    #[must_use]
    pub fn entry_at(&self, id: &EntryId) -> Option<(Arc<Entry>, Revision)> {
        let inner = self.read();
        let slot = inner.graph.find(id)?;
        let revision = inner.graph.mod_revision(slot)?;
        Some((Arc::new(inner.graph.entry(slot)?), revision))
    }

    /// An agent.
    #[must_use]
    pub fn agent(&self, id: &SpiffeId) -> Option<Arc<AgentRecord>> {
        let inner = self.read();
        inner.agents.get(id).map(|held| Arc::clone(&held.value))
    }

    /// A bundle.
    #[must_use]
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        let inner = self.read();
        let held = inner.bundles.get(trust_domain)?;
        Some(Arc::clone(&held.value))
    }

    /// All bundles, in order of trust domain, and the revision of their latest change.
    #[must_use]
    pub fn bundles(&self) -> (Vec<Arc<Bundle>>, Revision) {
        let inner = self.read();
        let bundles = inner.bundles.values();
        let bundles = bundles.map(|held| Arc::clone(&held.value)).collect();
        (bundles, inner.bundle_revision)
    }

    /// How much there is.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = self.read();
        Counts {
            entries: inner.graph.len(),
            agents: inner.agents.len(),
            bundles: inner.bundles.len(),
            connected: inner.live.len(),
        }
    }

    /// At most `limit` (at least 1) entries after `after` that pass, in order of ID.
    pub async fn entries_page(
        &self,
        filter: &EntryFilter,
        after: Option<&EntryId>,
        limit: usize,
    ) -> Page<Entry> {
        let limit = limit.max(1);
        let mut items = Vec::new();
        let mut after = after.cloned();
        loop {
            let walk = {
                let graph = &self.read().graph;
                graph.walk(filter, after.as_ref(), AT_ONCE, |entry| {
                    items.extend(graph.expand(entry).map(Arc::new));
                    items.len() <= limit
                })
            };
            match walk {
                Walk::GoOn(last) if items.len() <= limit => after = Some(last),
                _ => break,
            }
            tokio::task::yield_now().await;
        }
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, more }
    }

    /// Of the next entries after `after`, in order of ID, those that ended before `before`
    /// (Unix seconds); and where to go on, if there are more.
    #[must_use]
    pub fn ended(&self, before: i64, after: Option<&EntryId>) -> (Vec<EntryId>, Option<EntryId>) {
        let mut ended = Vec::new();
        let all = EntryFilter::default();
        let walk = self.read().graph.walk(&all, after, AT_ONCE, |entry| {
            if (1..before).contains(&entry.expires_at) {
                ended.push(entry.key.id());
            }
            true
        });
        match walk {
            Walk::GoOn(last) => (ended, Some(last)),
            Walk::Done | Walk::Stopped => (ended, None),
        }
    }

    /// How many entries pass.
    pub async fn entries_count(&self, filter: &EntryFilter) -> usize {
        if filter.wants_all() {
            return self.counts().entries;
        }
        let mut count = 0_usize;
        let mut after = None;
        loop {
            let walk = self
                .read()
                .graph
                .walk(filter, after.as_ref(), AT_ONCE, |_| {
                    count = count.saturating_add(1);
                    true
                });
            let Walk::GoOn(last) = walk else {
                return count;
            };
            after = Some(last);
            tokio::task::yield_now().await;
        }
    }

    /// At most `limit` (at least 1) agents after `after` that pass, in order of ID.
    pub async fn agents_page(
        &self,
        filter: &AgentFilter,
        after: Option<&SpiffeId>,
        limit: usize,
    ) -> Page<AgentRecord> {
        let limit = limit.max(1);
        let mut items = Vec::new();
        let mut after = after.cloned();
        while items.len() <= limit {
            let part = self.agents_part(after.as_ref());
            let Some(last) = part.last() else {
                break;
            };
            after = Some(last.spiffe_id.clone());
            items.extend(part.into_iter().filter(|agent| filter.accepts(agent)));
            tokio::task::yield_now().await;
        }
        let more = items.len() > limit;
        items.truncate(limit);
        Page { items, more }
    }

    /// How many agents pass.
    pub async fn agents_count(&self, filter: &AgentFilter) -> usize {
        self.agents_page(filter, None, usize::MAX - 1)
            .await
            .items
            .len()
    }

    fn agents_part(&self, after: Option<&SpiffeId>) -> Vec<Arc<AgentRecord>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let inner = self.read();
        let agents = inner.agents.range((from, Bound::Unbounded));
        let values = agents.map(|(_, held)| Arc::clone(&held.value));
        values.take(AT_ONCE).collect()
    }

    /// What the entries of `id` that did not expire allow.
    #[must_use]
    pub fn grants(&self, id: &SpiffeId) -> Grants {
        let (admin, downstream) = self.read().graph.grants(id);
        Grants { admin, downstream }
    }

    /// The entry, when it is in the agent's set now.
    #[must_use]
    pub fn authorized(&self, agent: &SpiffeId, entry: &EntryId) -> Option<Arc<Entry>> {
        let inner = self.read();
        let slot = inner.graph.find(entry)?;
        let parent = inner.graph.parent(slot)?;
        let own = inner.graph.node(agent);
        let connected = own.and_then(|node| inner.live.get(node));
        let is_member = match connected {
            _ if own == Some(parent) => inner.agents.contains_key(agent),
            Some(connected) => connected.reach.contains(&parent),
            None => inner.reach(agent).contains(&parent),
        };
        let served = is_member.then(|| inner.graph.entry(slot))?;
        served.map(Arc::new)
    }

    /// The agent's set now, without bodies, in order of ID.
    #[must_use]
    pub fn authorized_set(&self, agent: &SpiffeId) -> Vec<Listed> {
        let inner = self.read();
        let reach = inner.reach(agent);
        let members = inner.graph.members(&reach, None);
        let mut set: Vec<Listed> = members.map(|(_, entry)| entry.listed()).collect();
        set.sort();
        set
    }

    /// The digest of the agent's set now.
    #[must_use]
    pub fn authorized_digest(&self, agent: &SpiffeId) -> Digest {
        let inner = self.read();
        inner.graph.digest(&inner.reach(agent))
    }
}

impl Inner {
    /// The parents that an agent reaches; nothing for one that is not attested.
    pub(super) fn reach(&self, agent: &SpiffeId) -> Reach {
        let connected = self.graph.node(agent).and_then(|node| self.live.get(node));
        if let Some(connected) = connected {
            return connected.reach.clone();
        }
        let record = self.agents.get(agent);
        record.map_or_else(Reach::new, |held| {
            self.graph.reach_of(agent, &held.value.selectors)
        })
    }
}

impl AgentFilter {
    /// Whether `agent` is wanted.
    #[must_use]
    pub fn accepts(&self, agent: &AgentRecord) -> bool {
        let is = |wanted: Option<bool>, value| wanted.is_none_or(|wanted| wanted == value);
        is(self.banned, agent.banned)
            && is(self.can_reattest, agent.can_reattest)
            && self.expires_before.is_none_or(|end| agent.not_after < end)
            && self
                .attestation_type
                .as_ref()
                .is_none_or(|kind| *kind == agent.attestation_type)
            && self
                .selectors
                .as_ref()
                .is_none_or(|filter| filter.accepts(&agent.selectors))
    }
}
