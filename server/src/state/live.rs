//! Connected agents, and which of them a change concerns.
//!
//! Invariant: `watchers[p]` has exactly the connected agents whose reach has `p`, and
//! `by_selector[s]` those that have the selector `s`. So a change finds its agents without
//! looking at the others.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::outbox::Outbox;
use crate::authorized::{Numbers, Reach, Shaken, is_subset};

/// The most streams of one agent; one more replaces the oldest. Two overlap when an agent
/// reconnects, and a connection that died unnoticed may hold another.
const MAX_STREAMS: usize = 4;

/// An agent with at least one stream.
#[derive(Debug)]
pub(crate) struct Connected {
    /// Number of its ID in the graph.
    pub(crate) node: u32,
    /// Its selectors.
    pub(crate) selectors: Numbers,
    /// The parents that it reaches.
    pub(crate) reach: Reach,
    /// Its streams, oldest first.
    pub(crate) streams: Vec<Arc<Outbox>>,
}

/// All connected agents, by node number.
#[derive(Debug, Default)]
pub(crate) struct Live {
    agents: HashMap<u32, Connected>,
    watchers: HashMap<u32, BTreeSet<u32>>,
    by_selector: HashMap<u32, BTreeSet<u32>>,
}

impl Live {
    /// A connected agent.
    pub(crate) fn get(&self, node: u32) -> Option<&Connected> {
        self.agents.get(&node)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Connected> {
        self.agents.values()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.agents.len()
    }

    /// Adds an agent that is not connected yet.
    pub(crate) fn insert(&mut self, agent: Connected) {
        let node = agent.node;
        enter(&mut self.watchers, &agent.reach, node);
        enter(&mut self.by_selector, &agent.selectors, node);
        self.agents.insert(node, agent);
    }

    /// Adds a stream to a connected agent.
    pub(crate) fn join(&mut self, node: u32, outbox: Arc<Outbox>) {
        let Some(agent) = self.agents.get_mut(&node) else {
            return;
        };
        agent.streams.push(outbox);
        if agent.streams.len() > MAX_STREAMS {
            let oldest = agent.streams.remove(0);
            oldest.replace();
            oldest.wake();
        }
    }

    /// Takes a stream away; the agent, when that was its last one.
    pub(crate) fn part(&mut self, node: u32, outbox: &Arc<Outbox>) -> Option<Connected> {
        let agent = self.agents.get_mut(&node)?;
        agent.streams.retain(|stream| !Arc::ptr_eq(stream, outbox));
        if !agent.streams.is_empty() {
            return None;
        }
        let agent = self.agents.remove(&node)?;
        leave(&mut self.watchers, &agent.reach, node);
        leave(&mut self.by_selector, &agent.selectors, node);
        Some(agent)
    }

    /// Gives an agent another reach; returns the one it had.
    pub(crate) fn set_reach(&mut self, node: u32, reach: Reach) -> Reach {
        let Some(agent) = self.agents.get_mut(&node) else {
            return Reach::new();
        };
        leave(&mut self.watchers, &agent.reach, node);
        enter(&mut self.watchers, &reach, node);
        std::mem::replace(&mut agent.reach, reach)
    }

    /// Gives an agent other selectors; returns those it had.
    pub(crate) fn set_selectors(&mut self, node: u32, selectors: Numbers) -> Numbers {
        let Some(agent) = self.agents.get_mut(&node) else {
            return selectors;
        };
        leave(&mut self.by_selector, &agent.selectors, node);
        enter(&mut self.by_selector, &selectors, node);
        std::mem::replace(&mut agent.selectors, selectors)
    }

    /// The agents that reach `parent`.
    pub(crate) fn watching(&self, parent: u32) -> impl Iterator<Item = u32> {
        self.watchers.get(&parent).into_iter().flatten().copied()
    }

    /// The agents of a group, added to `found`.
    pub(crate) fn collect(&self, group: &Shaken, found: &mut BTreeSet<u32>) {
        match group {
            Shaken::Under(parent) => found.extend(self.watching(*parent)),
            Shaken::Own(node) => found.extend(self.get(*node).map(|agent| agent.node)),
            Shaken::Matching(selectors) => found.extend(self.matching(selectors)),
        }
    }

    /// The agents that have all these selectors: looks at those that have the rarest.
    fn matching(&self, selectors: &[u32]) -> impl Iterator<Item = u32> {
        let having = |one: &u32| self.by_selector.get(one);
        let rarest = match selectors.iter().map(having).collect::<Option<Vec<_>>>() {
            Some(groups) => groups.into_iter().min_by_key(|group| group.len()),
            None => None,
        };
        rarest
            .into_iter()
            .flatten()
            .filter_map(|node| self.agents.get(node))
            .filter(|agent| is_subset(selectors, &agent.selectors))
            .map(|agent| agent.node)
    }
}

fn enter<'n>(
    index: &mut HashMap<u32, BTreeSet<u32>>,
    numbers: impl IntoIterator<Item = &'n u32>,
    node: u32,
) {
    for number in numbers {
        index.entry(*number).or_default().insert(node);
    }
}

fn leave<'n>(
    index: &mut HashMap<u32, BTreeSet<u32>>,
    numbers: impl IntoIterator<Item = &'n u32>,
    node: u32,
) {
    for number in numbers {
        let Some(group) = index.get_mut(number) else {
            continue;
        };
        group.remove(&node);
        if group.is_empty() {
            index.remove(number);
        }
    }
}
