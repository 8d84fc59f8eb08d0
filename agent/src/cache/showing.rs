//! What others get of the cache: a snapshot for the readers, a set for the sealer.

use std::sync::Arc;

use super::Cache;
use crate::sealed::Set;
use crate::snapshot::{Served, Snapshot, State};

impl Cache {
    pub(super) fn publish(&mut self) {
        let now = self.deps.clock.now();
        // What expired is gone for good: a clock that is set back does not revive it.
        let slots = self.slots.values_mut();
        slots.for_each(|slot| slot.svid = slot.svid.take().filter(|svid| svid.is_valid(now)));
        let held = self.slots.values().filter(|slot| slot.svid.is_some());
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let counters = &self.deps.counters;
        counters.svids.set(count(held.count()));
        counters.entries.set(count(self.registry.entries().len()));
        counters.bundles.set(count(self.registry.bundles().len()));
        let entries = self.registry.entries();
        let served = entries.iter().map(|(id, entry)| Served {
            entry: Arc::clone(entry),
            svid: self
                .slots
                .get(id)
                .map_or(State::Pending, |slot| slot.state(entry, now)),
        });
        // What cannot come is not waited for.
        let is_promising = self.contact.is_promising();
        let served = served.map(|one| match one.svid {
            State::Pending if !is_promising => Served {
                svid: State::Failed,
                ..one
            },
            _ => one,
        });
        let snapshot = Snapshot::new(
            self.trust_domain.clone(),
            served,
            self.registry.bundles().clone(),
        );
        let snapshot = snapshot.with_standing(self.contact.standing(now));
        self.snapshots.send_replace(Arc::new(snapshot));
        self.seal();
    }

    /// Hands over what is to be kept over a restart, when it changed and is whole.
    pub(super) fn seal(&mut self) {
        let Some(sealer) = &self.deps.sealer else {
            return;
        };
        if let (Some(urgency), Some(known)) = (self.unsealed, self.registry.known()) {
            let held = self.slots.iter();
            let svids = held.filter_map(|(id, slot)| Some((id.clone(), slot.svid.clone()?)));
            let svids = svids.collect();
            sealer.keep(Set { known, svids }, urgency);
            self.unsealed = None;
        }
    }
}
