//! Which bundles the agents have: the lowest revision of bundles that every stream of this
//! server has applied. Rotation waits for it before a new authority signs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use vane_store::kv::Revision;

/// What all streams have applied.
#[derive(Debug, Default)]
pub struct Acks {
    /// How many streams are at which bundle revision.
    streams: Mutex<BTreeMap<Revision, usize>>,
    lowest: watch::Sender<Option<Revision>>,
}

/// One stream among the others; it counts until it is dropped.
#[derive(Debug)]
pub(super) struct Ack {
    acks: Arc<Acks>,
    at: Revision,
}

impl Acks {
    /// No streams.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The lowest revision of bundles that a stream has applied, at each change; `None`
    /// without streams.
    #[must_use]
    pub fn lowest(&self) -> watch::Receiver<Option<Revision>> {
        self.lowest.subscribe()
    }

    /// Counts a stream whose agent has the bundles of revision `at`.
    pub(super) fn join(self: &Arc<Self>, at: Revision) -> Ack {
        self.change(|streams| enter(streams, at));
        Ack {
            acks: Arc::clone(self),
            at,
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Revision, usize>)) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut streams);
        let now = streams.first_key_value().map(|(at, _)| *at);
        // Under the lock, so that the last change is told last.
        self.lowest.send_if_modified(|lowest| {
            let differs = *lowest != now;
            *lowest = now;
            differs
        });
    }
}

impl Ack {
    /// The agent has the bundles of revision `to`, at least.
    pub(super) fn raise(&mut self, to: Revision) {
        let from = self.at;
        if to <= from {
            return;
        }
        self.at = to;
        self.acks.change(|streams| {
            leave(streams, from);
            enter(streams, to);
        });
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        self.acks.change(|streams| leave(streams, self.at));
    }
}

fn enter(streams: &mut BTreeMap<Revision, usize>, at: Revision) {
    let count = streams.entry(at).or_default();
    *count = count.saturating_add(1);
}

fn leave(streams: &mut BTreeMap<Revision, usize>, at: Revision) {
    let Some(count) = streams.get_mut(&at) else {
        return;
    };
    *count = count.saturating_sub(1);
    if *count == 0 {
        streams.remove(&at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_is_that_of_the_stream_furthest_behind() {
        let acks = Acks::new();
        let lowest = acks.lowest();
        let mut slow = acks.join(3);
        let mut fast = acks.join(3);
        fast.raise(9);
        assert_eq!(*lowest.borrow(), Some(3));
        slow.raise(7);
        slow.raise(5);
        assert_eq!(*lowest.borrow(), Some(7));
        drop(slow);
        assert_eq!(*lowest.borrow(), Some(9));
        drop(fast);
        assert_eq!(*lowest.borrow(), None);
    }
}
