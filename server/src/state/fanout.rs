//! From what a batch changed to what each concerned agent is told.
//!
//! Agents that see the same of a batch share one message: what an agent sees is its
//! [`Outlook`], the touched parents it reached before and reaches now. The work of a batch is
//! that of its own entries and of the agents concerned, whatever else there is.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use vane_identity::entry::{Entry, EntryId};
use vane_store::kv::Revision;

use super::live::Live;
use super::message::{self, CHUNK_BYTES, Message, Shared};
use super::outbox::Outbox;
use crate::authorized::{Graph, Log, Reach, Touched};

/// An agent whose parents change so that more entries come or go is told to list again.
const INLINE_ENTRIES: usize = if cfg!(test) { 3 } else { 512 };

/// What an agent sees of a batch. Parents in order.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Outlook {
    /// Touched parents that it reached before.
    before: Vec<u32>,
    /// Touched parents that it reaches now.
    after: Vec<u32>,
    /// Parents that it reaches since.
    gained: Vec<u32>,
    /// Parents that it reaches no longer.
    lost: Vec<u32>,
}

/// The messages of an outlook; none = list again.
type Told = Option<Vec<Arc<Shared>>>;

/// One batch on its way to the agents.
pub(super) struct Fanout<'b> {
    pub(super) graph: &'b Graph,
    pub(super) log: &'b Log,
    /// At which all this is so.
    pub(super) revision: Revision,
    /// Agents whose own selectors changed.
    pub(super) moved: BTreeSet<u32>,
    /// Streams that were told something.
    pub(super) woken: Vec<Arc<Outbox>>,
}

impl Fanout<'_> {
    /// Tells each stream the same.
    pub(super) fn broadcast(&mut self, live: &Live, messages: &[Arc<Shared>]) {
        for stream in live.iter().flat_map(|agent| &agent.streams) {
            messages.iter().for_each(|message| stream.push(message));
            self.woken.push(Arc::clone(stream));
        }
    }

    /// Tells each concerned agent its part of the batch.
    pub(super) fn entries(&mut self, live: &mut Live) {
        let parents: BTreeSet<u32> = self.log.touched.iter().flat_map(ends).collect();
        let mut concerned = std::mem::take(&mut self.moved);
        for group in &self.log.shaken {
            live.collect(group, &mut concerned);
        }
        let shaken = concerned.clone();
        for parent in &parents {
            concerned.extend(live.watching(*parent));
        }
        let mut told: HashMap<Outlook, Told> = HashMap::new();
        for node in concerned {
            let Some(outlook) = self.outlook(live, node, shaken.contains(&node), &parents) else {
                continue;
            };
            if outlook.is_empty() {
                continue;
            }
            let messages = told
                .entry(outlook)
                .or_insert_with_key(|outlook| self.messages(outlook));
            deliver(live, node, messages.as_deref(), &mut self.woken);
        }
    }

    /// What an agent sees; its reach is computed again if it was shaken.
    fn outlook(
        &self,
        live: &mut Live,
        node: u32,
        shaken: bool,
        parents: &BTreeSet<u32>,
    ) -> Option<Outlook> {
        let agent = live.get(node)?;
        let seen = |reach: &Reach| reach_of(parents, reach);
        if shaken {
            let now = self.graph.reach(Some(node), &agent.selectors);
            if now != agent.reach {
                let (before, after) = (seen(&agent.reach), seen(&now));
                let gained = now.difference(&agent.reach).copied().collect();
                let lost = agent.reach.difference(&now).copied().collect();
                live.set_reach(node, now);
                return Some(Outlook {
                    before,
                    after,
                    gained,
                    lost,
                });
            }
        }
        let before = seen(&agent.reach);
        Some(Outlook {
            after: before.clone(),
            before,
            gained: Vec::new(),
            lost: Vec::new(),
        })
    }

    fn messages(&self, outlook: &Outlook) -> Told {
        let others = [&outlook.gained[..], &outlook.lost[..]].concat();
        if self.graph.size(&others.into_iter().collect()) > INLINE_ENTRIES {
            return None;
        }
        let touched: BTreeSet<u32> = self.log.touched.iter().filter_map(current).collect();
        let (mut slots, mut removed) = (Vec::new(), Vec::new());
        for entry in &self.log.touched {
            let has = |parents: &[u32], end: Option<u32>| {
                end.is_some_and(|end| parents.binary_search(&end).is_ok())
            };
            if has(&outlook.after, entry.after) {
                slots.push(entry.slot);
            } else if has(&outlook.before, entry.before) {
                removed.push(entry.id.clone());
            }
        }
        let rest = |parents: &[u32]| -> Vec<u32> {
            let children = parents
                .iter()
                .flat_map(|one| self.graph.children(*one, None));
            let slots = children.map(|(slot, _)| slot);
            slots.filter(|slot| !touched.contains(slot)).collect()
        };
        slots.extend(rest(&outlook.gained));
        let lost = rest(&outlook.lost);
        removed.extend(lost.into_iter().filter_map(|slot| self.graph.id(slot)));
        let upserts = slots.into_iter().filter_map(|slot| self.graph.entry(slot));
        Some(deltas(
            self.revision,
            upserts.map(Arc::new).collect(),
            removed,
        ))
    }
}

impl Outlook {
    fn is_empty(&self) -> bool {
        self.before.is_empty()
            && self.after.is_empty()
            && self.gained.is_empty()
            && self.lost.is_empty()
    }
}

fn ends(entry: &Touched) -> impl Iterator<Item = u32> {
    entry.before.into_iter().chain(entry.after)
}

fn current(entry: &Touched) -> Option<u32> {
    entry.after.map(|_| entry.slot)
}

/// The members of the smaller set that are in the other.
fn reach_of(parents: &BTreeSet<u32>, reach: &Reach) -> Vec<u32> {
    parents.intersection(reach).copied().collect()
}

/// A change as one message, or cut into several of which the first say what goes.
fn deltas(revision: Revision, upserts: Vec<Arc<Entry>>, removed: Vec<EntryId>) -> Vec<Arc<Shared>> {
    let delta = |upserts, removed| Message::Delta {
        revision,
        upserts,
        removed,
    };
    let whole = Shared::new(delta(upserts, removed));
    let Message::Delta {
        upserts, removed, ..
    } = whole.message()
    else {
        return Vec::new();
    };
    if whole.weight() <= CHUNK_BYTES {
        return vec![Arc::new(whole)];
    }
    let removed = message::chunks(removed, |id| message::text(id.as_str()));
    let upserts = message::chunks(upserts, |entry| message::entry(entry));
    let removed = removed.map(|ids| delta(Vec::new(), ids.to_vec()));
    let upserts = upserts.map(|entries| delta(entries.to_vec(), Vec::new()));
    let parts = removed.chain(upserts);
    parts.map(Shared::new).map(Arc::new).collect()
}

fn deliver(live: &Live, node: u32, messages: Option<&[Arc<Shared>]>, woken: &mut Vec<Arc<Outbox>>) {
    for stream in live.get(node).into_iter().flat_map(|agent| &agent.streams) {
        match messages {
            None => stream.lose(),
            Some(messages) => messages.iter().for_each(|message| stream.push(message)),
        }
        woken.push(Arc::clone(stream));
    }
}
