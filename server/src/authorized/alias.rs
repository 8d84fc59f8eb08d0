//! Node aliases: entries under the server's own ID, whose selectors speak of nodes.
//!
//! An alias matches an agent when its selectors are a subset of the agent's. Each alias
//! stands in the bucket of one of its selectors only, the one with the fewest so far; so an
//! agent is compared with few aliases, and with each at most once.

use std::collections::HashMap;

use super::few::Few;

/// Aliases by one of their selectors.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    buckets: HashMap<u32, Few>,
    homes: HashMap<u32, u32>,
}

impl Aliases {
    /// Adds the alias in `slot`; one without selectors matches nobody.
    pub(crate) fn insert(&mut self, slot: u32, selectors: &[u32]) {
        let size = |selector: &&u32| self.buckets.get(*selector).map_or(0, Few::len);
        let Some(&home) = selectors.iter().min_by_key(size) else {
            return;
        };
        self.buckets.entry(home).or_default().insert(slot);
        self.homes.insert(slot, home);
    }

    /// Removes the alias in `slot`.
    pub(crate) fn remove(&mut self, slot: u32) {
        let Some(home) = self.homes.remove(&slot) else {
            return;
        };
        let Some(bucket) = self.buckets.get_mut(&home) else {
            return;
        };
        bucket.remove(slot);
        if bucket.is_empty() {
            self.buckets.remove(&home);
        }
    }

    /// The aliases that may match an agent with these selectors: all that do, and others.
    pub(crate) fn candidates(&self, selectors: &[u32]) -> impl Iterator<Item = u32> {
        let buckets = selectors.iter().filter_map(|one| self.buckets.get(one));
        buckets.flat_map(Few::iter)
    }
}
