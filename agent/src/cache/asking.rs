//! Having SVIDs made: what is due, in which order, and what came of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vane_client::channel::Channel;
use vane_identity::entry::{Entry, EntryId};

use super::Cache;
use super::slot::Slot;
use crate::issue::{self, BATCH, Outcome};
use crate::sealed::Urgency;
use crate::svid::hex;

/// Entries of one background batch.
const BACKGROUND: usize = 100;
/// The longest pause before a background batch: agents that got the same news ask at
/// different times.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// What became of a batch, and whether it was the one in the background.
pub(super) type Answer = (Outcome, bool);

/// The batch that nobody waits for. There is at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Background {
    /// None is needed.
    Idle,
    /// It is asked for then.
    At(SystemTime),
    /// It is asked for.
    Asked,
}

impl Cache {
    /// The authorities of the own bundle that are tainted.
    pub(super) fn tainted(&self) -> Vec<String> {
        let own = self.registry.bundles().get(&self.trust_domain);
        own.iter()
            .flat_map(|bundle| &bundle.x509_authorities)
            .filter(|authority| authority.tainted)
            .filter_map(|authority| authority.certificate.info().ok())
            .map(|info| hex(&info.key_id))
            .collect()
    }

    pub(super) fn renew_now(&mut self, id: &EntryId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.renew_now = slot.svid.is_some();
            slot.retry_at = None;
        }
    }

    pub(super) fn renew_signed_by(&mut self, authorities: &[String]) {
        for slot in self.slots.values_mut() {
            if slot
                .svid
                .as_ref()
                .is_some_and(|svid| authorities.contains(&svid.authority))
            {
                slot.renew_now = true;
            }
        }
    }

    /// One slot for each entry: those of entries that are gone, go with their keys.
    pub(super) fn match_slots(&mut self) {
        let entries = self.registry.entries();
        self.slots.retain(|id, _| entries.contains_key(id));
        for id in entries.keys() {
            if !self.slots.contains_key(id) {
                self.slots.insert(id.clone(), Slot::default());
            }
        }
        self.take_wanted();
    }

    pub(super) fn take_wanted(&mut self) {
        for id in std::mem::take(&mut *self.wanted.lock()) {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.want();
            }
        }
    }

    /// Asks for what is due: first what somebody waits for or what is to be replaced, then, one
    /// batch at a time, what nobody asked for yet.
    pub(super) fn request_due(&mut self, now: SystemTime) {
        let Some(channel) = self.link.channel().cloned() else {
            return;
        };
        let entries = self.registry.entries();
        let mut urgent = Vec::new();
        let mut background = Vec::new();
        let mut held = 0;
        for (id, slot) in &self.slots {
            held += usize::from(slot.svid.is_some() || slot.asked);
            let Some(entry) = entries.get(id).filter(|entry| slot.may_ask(entry, now)) else {
                continue;
            };
            if slot.wanted || slot.svid.is_some() {
                urgent.push(Arc::clone(entry));
            } else if !entry.prefetch_disabled() && !entry.store_svid {
                background.push(Arc::clone(entry));
            }
        }
        for batch in urgent.chunks(BATCH) {
            self.ask(&channel, batch.to_vec(), false);
        }
        let room = self.deps.prefetch.saturating_sub(held).min(BACKGROUND);
        background.truncate(room);
        self.background = match self.background {
            Background::Asked => Background::Asked,
            _ if background.is_empty() => Background::Idle,
            Background::At(time) if time <= now => {
                self.ask(&channel, background, true);
                Background::Asked
            }
            Background::At(time) => Background::At(time),
            Background::Idle => Background::At(now + PAUSE.mul_f64(fastrand::f64())),
        };
    }

    fn ask(&mut self, channel: &Channel, entries: Vec<Arc<Entry>>, in_background: bool) {
        for entry in &entries {
            if let Some(slot) = self.slots.get_mut(&entry.id) {
                slot.asked = true;
                // What is said from now on is about the SVID that comes.
                slot.renew_now = false;
            }
        }
        let answers = self.answers.0.clone();
        let (channel, kind, clock) = (
            channel.clone(),
            self.deps.key_type,
            Arc::clone(&self.deps.clock),
        );
        self.tasks.spawn(async move {
            let outcome = issue::issue(channel, entries, kind, clock).await;
            // The receiver lives as long as the cache.
            let _ = answers.send((outcome, in_background)).await;
        });
    }

    pub(super) fn on_issued(&mut self, (outcome, in_background): Answer) {
        let now = self.deps.clock.now();
        if in_background {
            self.background = Background::Idle;
        }
        for (id, result) in outcome {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.asked = false;
            match result {
                Ok(svid) => {
                    self.deps.counters.svids_received.inc();
                    let urgency = Urgency::replacing(slot.svid.as_deref(), now);
                    self.unsealed = self.unsealed.max(Some(urgency));
                    slot.received(svid);
                }
                Err(error) => {
                    self.deps.counters.svids_failed.inc();
                    let delay = slot.failed(now);
                    tracing::warn!(entry_id = %id, %error, delay_ms = delay.as_millis(), "no X.509-SVID");
                }
            }
        }
        self.publish();
    }

    /// The next instant at which something is due by itself: a renewal, another try, or an
    /// expiry. What waits for an answer or for the server is told.
    pub(super) fn next_time(&self, now: SystemTime) -> Option<SystemTime> {
        let open = self.link.channel().is_some();
        let due = |slot: &Slot| {
            let ask = if !open || slot.asked {
                None
            } else {
                slot.retry_at
                    .or(slot.svid.as_ref().map(|svid| svid.renew_at))
            };
            let end = slot
                .svid
                .as_ref()
                .map(|svid| svid.not_after + Duration::from_secs(1));
            // What is past was asked for, or waits for something that is told.
            [ask, end]
                .into_iter()
                .flatten()
                .filter(|time| *time > now)
                .min()
        };
        let background = match self.background {
            Background::At(time) if open => Some(time),
            _ => None,
        };
        let grace = self.contact.ends_at().filter(|time| *time > now);
        let due = self.slots.values().filter_map(due);
        due.chain(background).chain(grace).min()
    }
}
