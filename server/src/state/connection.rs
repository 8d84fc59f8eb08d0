//! One stream's hold on the state: its place among the connected agents, its outbox, and what
//! it can see. Dropping it gives all that back.

use std::ops::Bound;
use std::sync::Arc;

use vane_identity::digest::Digest;
use vane_identity::entry::EntryId;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_store::kv::Revision;

use super::State;
use super::inner::Inner;
use super::live::Connected;
use super::message::{self, Listed, Message, Shared};
use super::outbox::{Outbox, Pop};
use crate::authorized::{Cursor, Reach};

/// IDs looked up under one lock.
const BODIES_AT_ONCE: usize = 1000;

/// A stream of an agent.
#[derive(Debug)]
pub(crate) struct Connection {
    state: Arc<State>,
    node: u32,
    outbox: Arc<Outbox>,
}

/// A new stream, and what was so when it was opened: what comes later is in its outbox.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The stream.
    pub(crate) connection: Connection,
    /// The digest of the agent's set.
    pub(crate) set: Digest,
    /// The digest of all bundles.
    pub(crate) bundles: Digest,
    /// The revision of the latest change of a bundle.
    pub(crate) bundle_revision: Revision,
}

/// What a stream gets to send.
#[derive(Debug)]
pub(crate) enum Pulled<T> {
    /// What waited in the outbox.
    Waiting(Arc<Shared>),
    /// The outbox had run over.
    Lost,
    /// Nothing waited: this was made from the state as it is.
    Made(T),
}

/// The state as one agent sees it, while the lock is held.
#[derive(Debug)]
pub(crate) struct View<'s> {
    inner: &'s Inner,
    agent: Option<&'s Connected>,
    state: &'s State,
}

impl State {
    /// Opens a stream of an agent.
    pub(crate) fn connect(self: &Arc<Self>, agent: &SpiffeId) -> Opened {
        let outbox = Arc::new(Outbox::default());
        let mut inner = self.write();
        let node = inner.enter(agent);
        inner.live.join(node, Arc::clone(&outbox));
        let nothing = Reach::new();
        let reach = inner.live.get(node).map_or(&nothing, |agent| &agent.reach);
        Opened {
            set: inner.graph.digest(reach),
            bundles: inner.bundle_digest,
            bundle_revision: inner.bundle_revision,
            connection: Connection {
                state: Arc::clone(self),
                node,
                outbox,
            },
        }
    }
}

impl Inner {
    /// Makes an agent a connected one; returns its node, which is pinned once more.
    fn enter(&mut self, id: &SpiffeId) -> u32 {
        let node = self.graph.pin(id);
        if self.live.get(node).is_some() {
            return node;
        }
        let record = self.agents.get(id).map(|held| Arc::clone(&held.value));
        let selectors = record.map(|record| record.selectors.clone());
        let selectors = self.graph.take_selectors(&selectors.unwrap_or_default());
        self.live.insert(Connected {
            node,
            reach: self.graph.reach(Some(node), &selectors),
            selectors,
            streams: Vec::new(),
        });
        node
    }
}

impl Connection {
    /// The state.
    pub(crate) fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Takes what waits (only bundles, if `bundles_only`), or makes something of what is: so
    /// it comes after what waited.
    pub(crate) fn pull<T>(
        &self,
        bundles_only: bool,
        make: impl FnOnce(&View<'_>) -> T,
    ) -> Pulled<T> {
        let inner = self.state.read();
        match self.outbox.pop(bundles_only) {
            Pop::Message(message) => Pulled::Waiting(message),
            Pop::Lost => Pulled::Lost,
            Pop::Empty => Pulled::Made(make(&View {
                agent: inner.live.get(self.node),
                inner: &inner,
                state: &self.state,
            })),
        }
    }

    /// Loses what waits.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.outbox.lose();
    }

    /// Waits until there may be something new.
    pub(crate) async fn woken(&self) {
        self.outbox.woken().await;
    }

    /// Whether the agent's record changed since the last call.
    pub(crate) fn take_doubt(&self) -> bool {
        self.outbox.take_doubt()
    }

    /// Whether newer streams of the agent took the place of this one.
    pub(crate) fn is_replaced(&self) -> bool {
        self.outbox.is_replaced()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut inner = self.state.write();
        if let Some(agent) = inner.live.part(self.node, &self.outbox) {
            inner.graph.give_back_selectors(&agent.selectors);
        }
        inner.graph.unpin(self.node);
        inner.graph.sweep();
    }
}

impl View<'_> {
    /// A chunk of all bundles, after `after`; where the next one begins, if there is one.
    pub(crate) fn bundles(&self, after: Option<&TrustDomain>) -> (Message, Option<TrustDomain>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let bundles = self.inner.bundles.range((from, Bound::Unbounded));
        let bundles = bundles.map(|(_, held)| Arc::clone(&held.value));
        let (bundles, more) = message::chunk(bundles, |one| message::bundle(one));
        let next = bundles.last().filter(|_| more);
        let next = next.map(|bundle| bundle.trust_domain.clone());
        let message = Message::Bundles {
            bundles,
            removed: Vec::new(),
            revision: self.inner.bundle_revision,
            full: true,
            last: !more,
        };
        (message, next)
    }

    /// A chunk of the list, after `cursor`; where the next one begins, if there is one.
    pub(crate) fn list(&self, cursor: Option<Cursor>) -> (Message, Option<Cursor>) {
        let nothing = Reach::new();
        let reach = self.agent.map_or(&nothing, |agent| &agent.reach);
        let members = self.inner.graph.members(reach, cursor);
        let members = members.map(|(at, entry)| (at, entry.listed()));
        let (part, more) = message::chunk(members, |(_, item)| message::listed(item));
        let next = part.last().filter(|_| more).map(|(at, _)| *at);
        let items = part.into_iter().map(|(_, item)| item).collect();
        (Message::List { items, last: !more }, next)
    }

    /// At most `limit` members of the set, after `cursor`; where the next ones begin, if there
    /// are more.
    pub(crate) fn revisions(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> (Vec<Listed>, Option<Cursor>) {
        let nothing = Reach::new();
        let reach = self.agent.map_or(&nothing, |agent| &agent.reach);
        let mut members = self.inner.graph.members(reach, cursor);
        let (mut items, mut last) = (Vec::new(), None);
        for (at, entry) in members.by_ref().take(limit) {
            items.push(entry.listed());
            last = Some(at);
        }
        let next = last.filter(|_| members.next().is_some());
        (items, next)
    }

    /// The bodies of the first of `ids`, and how many of them were looked at. Those that are
    /// not in the set are left out; none at all is no message.
    pub(crate) fn bodies<'i>(
        &self,
        ids: impl Iterator<Item = &'i EntryId>,
    ) -> (Option<Message>, usize) {
        let graph = &self.inner.graph;
        let is_ours = |slot: &u32| {
            self.agent
                .is_some_and(|it| graph.is_member(*slot, &it.reach))
        };
        let found = ids.take(BODIES_AT_ONCE).map(|id| {
            let slot = graph.find(id).filter(is_ours);
            slot.and_then(|slot| graph.entry(slot)).map(Arc::new)
        });
        let weight = |found: &Option<Arc<_>>| found.as_ref().map_or(0, |one| message::entry(one));
        let (found, _) = message::chunk(found, weight);
        let looked_at = found.len();
        let upserts: Vec<_> = found.into_iter().flatten().collect();
        let message = (!upserts.is_empty()).then(|| Message::Delta {
            revision: self.inner.applied,
            upserts,
            removed: Vec::new(),
        });
        (message, looked_at)
    }

    /// The end of a resume.
    pub(crate) fn in_sync(&self) -> Message {
        let reach = self.agent.map(|agent| &agent.reach);
        Message::InSync {
            revision: self.inner.applied,
            set: reach
                .map(|it| self.inner.graph.digest(it))
                .unwrap_or_default(),
            bundles: self.inner.bundle_digest,
            epoch: self.state.epoch(),
        }
    }

    /// The revision up to which everything is in.
    pub(crate) fn revision(&self) -> Revision {
        self.inner.applied
    }

    /// The revision of the latest change of a bundle.
    pub(crate) fn bundle_revision(&self) -> Revision {
        self.inner.bundle_revision
    }
}
