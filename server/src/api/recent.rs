//! Who was issued what lately: while the state cannot be confirmed, only that is renewed.
//!
//! Two generations of hashes: when the young one is full it becomes the old one, so memory is
//! bounded, and what is forgotten is only refused while the store does not answer.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};

use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;

/// The most hashes of a generation (8 bytes each).
const GENERATION: usize = 512 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Recent {
    generation: usize,
    hasher: RandomState,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

impl Default for Recent {
    fn default() -> Self {
        Self::of_size(GENERATION)
    }
}

impl Recent {
    fn of_size(generation: usize) -> Self {
        Self {
            generation,
            hasher: RandomState::new(),
            seen: Mutex::default(),
        }
    }

    /// `agent` gets an SVID of `entry` now.
    pub(super) fn add(&self, agent: &SpiffeId, entry: &EntryId) {
        let hash = self.hasher.hash_one((agent, entry));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.young.len() >= self.generation {
            seen.old = std::mem::take(&mut seen.young);
        }
        seen.young.insert(hash);
    }

    /// Whether `agent` got an SVID of `entry` lately.
    pub(super) fn has(&self, agent: &SpiffeId, entry: &EntryId) -> bool {
        let hash = self.hasher.hash_one((agent, entry));
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.young.contains(&hash) || seen.old.contains(&hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_issued_lately_is_known_and_the_rest_is_forgotten() {
        let recent = Recent::of_size(2);
        let agent = SpiffeId::parse("spiffe://example.org/spire/agent/a").unwrap();
        let other = SpiffeId::parse("spiffe://example.org/spire/agent/b").unwrap();
        let ids = ["1", "2", "3", "4", "5"].map(|id| EntryId::parse(id).unwrap());
        for id in &ids {
            recent.add(&agent, id);
        }
        let known = ids.map(|id| (recent.has(&agent, &id), recent.has(&other, &id)));
        let never = false;
        assert_eq!(
            known,
            [
                (false, never),
                (false, never),
                (true, never),
                (true, never),
                (true, never)
            ]
        );
    }
}
