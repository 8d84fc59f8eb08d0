//! What callers wait for and the kubelet does not know yet: how often and when it is asked again.
//!
//! Pure: decisions are functions of `now`. The kubelet knows a container up to a second after it
//! runs, and nobody tells when: so it is asked after 50 ms, then after twice as long each time,
//! never more often than that for all callers of a container together, and not for ever: what was
//! asked for in vain is left alone for 30 s. Keys are the kubelet's cgroups, which nobody but
//! root makes; there are never more than [`MAX`].

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cgroup::{Place, PodUid};

/// The wait before the second try.
const FIRST: Duration = Duration::from_millis(50);
/// So long what was asked for in vain is not asked for again.
const REST: Duration = Duration::from_secs(30);
/// The most places that are waited for.
const MAX: usize = 4_096;

/// How long to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// The most tries for one place.
    pub(super) tries: u32,
    /// The longest wait between two of them.
    pub(super) interval: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    tries: u32,
    /// When to ask next; when to forget it, once it is asked for in vain.
    due: Instant,
}

/// The places that are waited for.
#[derive(Debug)]
pub(super) struct Wants {
    patience: Patience,
    places: HashMap<Place, Want>,
}

impl Wants {
    pub(super) fn new(patience: Patience) -> Self {
        let places = HashMap::new();
        Self { patience, places }
    }

    /// Wants to know of `place`, which was not known in the answer that came at `now`. Whether
    /// there is still hope.
    pub(super) fn add(&mut self, place: &Place, now: Instant) -> bool {
        if let Some(want) = self.places.get(place) {
            return want.tries < self.patience.tries;
        }
        let want = Want {
            tries: 0,
            due: now + FIRST.min(self.patience.interval),
        };
        let fits = self.places.len() < MAX && self.patience.tries > 0;
        if fits {
            self.places.insert(place.clone(), want);
        }
        fits
    }

    /// When to ask next.
    pub(super) fn due(&self) -> Option<Instant> {
        let hopeful = |want: &&Want| want.tries < self.patience.tries;
        self.places
            .values()
            .filter(hopeful)
            .map(|want| want.due)
            .min()
    }

    /// An answer came at `now`: forgets what it settles, plans the next try of the rest. The pods
    /// for whose places there is no hope any more.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        settled: impl Fn(&Place) -> bool,
    ) -> Vec<PodUid> {
        let mut given_up = Vec::new();
        let Patience { tries, interval } = self.patience;
        self.places.retain(|place, want| {
            if settled(place) {
                return false;
            }
            if want.due > now {
                return true;
            }
            if want.tries >= tries {
                return false;
            }
            want.tries += 1;
            want.due = now + FIRST.saturating_mul(1 << want.tries.min(16)).min(interval);
            if want.tries == tries {
                want.due = now + REST;
                given_up.push(place.pod.clone());
            }
            true
        });
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            pod: PodUid::parse(&"5f".repeat(16)).unwrap(),
            container: None,
        }
    }

    #[test]
    fn waits_double_up_to_the_interval_and_end() {
        let start = Instant::now();
        let patience = Patience {
            tries: 5,
            interval: Duration::from_millis(300),
        };
        let mut wants = Wants::new(patience);
        assert!(wants.add(&place(), start));
        let mut waits = Vec::new();
        let mut now = start;
        while let Some(due) = wants.due() {
            assert!(wants.add(&place(), now), "there is hope");
            waits.push((due - now).as_millis());
            now = due;
            let given_up = wants.answered(now, |_| false);
            assert_eq!(given_up.is_empty(), wants.due().is_some());
        }
        assert_eq!(waits, [50, 100, 200, 300, 300]);
        assert!(!wants.add(&place(), now), "no hope while it rests");
        wants.answered(now + REST, |_| false);
        assert!(wants.add(&place(), now + REST), "it is tried anew");
    }

    #[test]
    fn what_is_known_is_forgotten_at_once() {
        let now = Instant::now();
        let patience = Patience {
            tries: 5,
            interval: REST,
        };
        let mut wants = Wants::new(patience);
        wants.add(&place(), now);
        assert_eq!(wants.answered(now, |_| true), []);
        assert_eq!(wants.due(), None);
    }

    #[test]
    fn an_answer_that_comes_before_the_time_counts_as_no_try() {
        let now = Instant::now();
        let patience = Patience {
            tries: 1,
            interval: REST,
        };
        let mut wants = Wants::new(patience);
        wants.add(&place(), now);
        assert_eq!(wants.answered(now, |_| false), []);
        assert_eq!(wants.due(), Some(now + FIRST));
    }
}
