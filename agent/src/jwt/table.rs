//! The tokens that are held, those that are being fetched, and who waits for them: what is
//! due, what is to go. Pure: `now` is an argument, nothing is sent from here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use vane_identity::bundle::Bundle;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::{Jitter, from_unix, renew_at};

use super::held::{Held, knows};
use super::key::Key;
use crate::sealed::{Token, Urgency};

/// Tokens that are fetched at the same time.
const PENDING: usize = 512;
/// Of them for one entry.
const PENDING_PER_ENTRY: usize = 32;
/// Of them nobody waits for: what is replaced ahead. An agent whose server was away does not
/// ask for everything at once.
const AHEAD: usize = 16;
/// The first wait before a try that failed is made again; it doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What a token costs beside its text and its audiences.
const OVERHEAD: usize = 256;

/// The most that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Tokens.
    pub tokens: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// A key's place: a token, a call for one, or both, and who waits.
#[derive(Debug)]
struct Slot<W> {
    entry: Arc<Entry>,
    held: Option<Arc<Held>>,
    /// The key of what is held was in the bundle: once it is not any longer, it was revoked.
    known_key: bool,
    /// To be fetched, though nobody waits.
    renew: bool,
    asked: bool,
    failures: u32,
    retry_at: Option<SystemTime>,
    waiters: Vec<W>,
}

/// Somebody who waits.
pub(super) trait Waits {
    /// Whether the wait is still on.
    fn is_waiting(&self) -> bool;
}

/// The table. `W` is who waits.
#[derive(Debug)]
pub(super) struct Table<W> {
    slots: HashMap<Key, Slot<W>>,
    bounds: Bounds,
    changed: Option<Urgency>,
}

/// There are too many calls under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl<W: Waits> Table<W> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            slots: HashMap::new(),
            bounds,
            changed: None,
        }
    }

    /// Whether what is held changed since the last call, and how soon that is to be kept.
    pub(super) fn take_changed(&mut self) -> Option<Urgency> {
        self.changed.take()
    }

    fn changed(&mut self, urgency: Urgency) {
        self.changed = self.changed.max(Some(urgency));
    }

    /// What is held.
    pub(super) fn held(&self) -> HashMap<Key, Arc<Held>> {
        let held =
            |(key, slot): (&Key, &Slot<W>)| Some((key.clone(), Arc::clone(slot.held.as_ref()?)));
        self.slots.iter().filter_map(held).collect()
    }

    /// What is held for `key`, when no better can be had now: it is not due, the server is not
    /// there, or a try just failed.
    pub(super) fn best(&self, key: &Key, now: SystemTime, online: bool) -> Option<Arc<Held>> {
        let slot = self.slots.get(key)?;
        let held = slot.held.as_ref().filter(|held| held.is_valid(now))?;
        let fails = slot.retry_at.is_some_and(|at| now < at);
        (!online || fails || !held.is_due(now)).then(|| Arc::clone(held))
    }

    /// Whether there is a place for `key`: a token, or a call for one.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.slots.contains_key(key)
    }

    /// Lets `waiter` wait for a token of `entry` under `key`.
    pub(super) fn wait(&mut self, key: Key, entry: Arc<Entry>, waiter: W) -> Result<(), (W, Full)> {
        if !self.slots.contains_key(&key) && self.is_full(&key.entry) {
            return Err((waiter, Full));
        }
        let slot = self.slots.entry(key).or_insert_with(|| Slot::new(entry));
        // A try that failed while nobody waited is not waited for.
        if !slot.is_waited_for() {
            slot.retry_at = None;
        }
        // Those who went are forgotten before room is made for more.
        if slot.waiters.len() == slot.waiters.capacity() {
            slot.waiters.retain(Waits::is_waiting);
        }
        slot.waiters.push(waiter);
        Ok(())
    }

    /// Whether no further call may be begun for `entry`.
    fn is_full(&self, entry: &EntryId) -> bool {
        let pending = self.slots.iter().filter(|(_, slot)| slot.is_pending());
        let own = pending.clone().filter(|(key, _)| key.entry == *entry);
        own.count() >= PENDING_PER_ENTRY || pending.count() >= PENDING
    }

    /// What is to be asked for now; it counts as asked.
    pub(super) fn take_due(&mut self, now: SystemTime) -> Vec<(Key, Arc<Entry>)> {
        let ahead = |slot: &Slot<W>| slot.asked && slot.waiters.is_empty();
        let mut room = AHEAD.saturating_sub(self.slots.values().filter(|slot| ahead(slot)).count());
        let mut due: Vec<(&Key, &mut Slot<W>)> = self
            .slots
            .iter_mut()
            .filter(|(_, slot)| slot.is_due(now))
            .collect();
        // What ends first is replaced first.
        due.sort_by_key(|(_, slot)| slot.held.as_ref().map(|held| held.expires_at()));
        let mut taken = Vec::new();
        for (key, slot) in due {
            if slot.waiters.is_empty() {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            slot.asked = true;
            slot.renew = false;
            taken.push((key.clone(), Arc::clone(&slot.entry)));
        }
        taken
    }

    /// The next instant at which something is due by itself, or ends. `online`: whether the
    /// server can be asked.
    pub(super) fn next_time(&self, now: SystemTime, online: bool) -> Option<SystemTime> {
        let times = self.slots.values().flat_map(|slot| {
            // Used or not is asked then: a use does not wake anybody.
            let renews = slot.held.as_ref().map(|held| held.token.renew_at);
            let ask = slot.retry_at.or(renews);
            let end = slot.held.as_ref().map(|held| held.expires_at());
            [ask.filter(|_| online && !slot.asked), end]
        });
        // What is past was asked for, or waits for something that is told.
        times.flatten().filter(|time| *time > now).min()
    }

    /// Takes the token in that came for `key`, and tells who waits for it. `None`: the entry
    /// changed meanwhile, and nobody waits any longer.
    pub(super) fn received(
        &mut self,
        key: &Key,
        svid: JwtSvid,
        receipt: Receipt<'_>,
    ) -> Option<(Arc<Held>, Vec<W>)> {
        let slot = self.slots.get_mut(key)?;
        slot.known_key = receipt.knows(&svid);
        let before = slot.held.as_ref();
        let used = before.map_or(0, |before| before.last_used());
        let urgency =
            Urgency::replacing_token(before.map(|before| before.expires_at()), receipt.now);
        let renew_at = renew_at(receipt.now, from_unix(svid.expires_at()), receipt.jitter);
        let token = Arc::new(key.token(svid, renew_at));
        let held = Arc::new(Held::new(token, used, receipt.count));
        slot.asked = false;
        slot.failures = 0;
        slot.retry_at = None;
        let waiters = std::mem::take(&mut slot.waiters);
        if key.single.is_some() {
            self.slots.remove(key);
            return Some((held, waiters));
        }
        slot.held = Some(Arc::clone(&held));
        self.changed(urgency);
        self.evict(Some(key));
        Some((held, waiters))
    }

    /// Takes in what was held before a restart: what is valid and of an entry that is as it was,
    /// and whose key is a good one of `bundle`. Who had it is taken to use it still.
    pub(super) fn restore(
        &mut self,
        tokens: &[Arc<Token>],
        entry: impl Fn(&EntryId) -> Option<Arc<Entry>>,
        bundle: Option<&Bundle>,
        now: SystemTime,
    ) {
        for token in tokens {
            let key = Key::of(token);
            let entry = entry(&key.entry)
                .filter(|entry| key.is_of(entry) && entry.spiffe_id == *token.svid.id());
            let held = Arc::new(Held::new(Arc::clone(token), 1, 0));
            let is_good = bundle
                .is_some_and(|bundle| knows(&token.svid, bundle) && held.is_untainted(bundle));
            if let Some(entry) = entry.filter(|_| is_good && held.is_valid(now)) {
                let slot = Slot {
                    held: Some(held),
                    known_key: true,
                    ..Slot::new(entry)
                };
                self.slots.insert(key, slot);
            }
        }
        self.evict(None);
        // What was left out is to be left out of the file, too.
        self.changed(Urgency::Soon);
    }

    /// A try failed. Who `stays` waits for the next one, after the returned pause; the others
    /// are told.
    pub(super) fn failed(
        &mut self,
        key: &Key,
        now: SystemTime,
        stays: impl Fn(&W, Duration) -> bool,
    ) -> Option<(Duration, Vec<W>)> {
        let slot = self.slots.get_mut(key)?;
        let doubled = RETRY
            .saturating_mul(1 << slot.failures.min(10))
            .min(RETRY_MAX);
        let delay = doubled.mul_f64(0.5 + fastrand::f64() / 2.0);
        slot.asked = false;
        slot.failures = slot.failures.saturating_add(1);
        slot.retry_at = Some(now + delay);
        let (stay, told): (Vec<W>, Vec<W>) = std::mem::take(&mut slot.waiters)
            .into_iter()
            .partition(|waiter| stays(waiter, delay));
        slot.waiters = stay;
        Some((delay, told))
    }

    /// The server is there again, or the clock was set: nothing waits for another try.
    pub(super) fn retry_now(&mut self) {
        self.slots
            .values_mut()
            .for_each(|slot| slot.retry_at = None);
    }

    /// Drops what ended, and places that hold nothing and that nobody needs.
    pub(super) fn expire(&mut self, now: SystemTime) {
        let mut changed = None;
        self.slots.retain(|_, slot| {
            if slot.held.as_ref().is_some_and(|held| !held.is_valid(now)) {
                slot.held = None;
                changed = Some(Urgency::Soon);
            }
            slot.held.is_some() || slot.renew || slot.is_pending()
        });
        self.changed = self.changed.max(changed);
    }

    /// Drops what is of an entry that is gone or another one now, and the tokens whose key is
    /// tainted in `bundle`, or was in it and is no longer. Who used such a token gets another.
    pub(super) fn follow(
        &mut self,
        entry: impl Fn(&EntryId) -> Option<Arc<Entry>>,
        bundle: Option<&Bundle>,
    ) {
        let before = self.slots.len();
        self.slots
            .retain(|key, _| entry(&key.entry).is_some_and(|entry| key.is_of(&entry)));
        if before != self.slots.len() {
            self.changed(Urgency::Soon);
        }
        let Some(bundle) = bundle else { return };
        for slot in self.slots.values_mut() {
            let Some(held) = &slot.held else { continue };
            let knows = knows(held.svid(), bundle);
            if (slot.known_key && !knows) || !held.is_untainted(bundle) {
                slot.renew = held.is_used();
                slot.retry_at = None;
                slot.held = None;
                self.changed = self.changed.max(Some(Urgency::Soon));
            }
            slot.known_key = knows;
        }
    }

    /// Keeps the bounds; the token of `newest` stays.
    fn evict(&mut self, newest: Option<&Key>) {
        let bytes = |key: &Key, held: &Held| key.bytes() + held.svid().token().len() + OVERHEAD;
        loop {
            let mut by_entry: HashMap<&EntryId, usize> = HashMap::new();
            let (mut count, mut sum) = (0, 0);
            let held = || {
                self.slots
                    .iter()
                    .filter_map(|(key, slot)| Some((key, slot.held.as_ref()?)))
            };
            for (key, one) in held() {
                *by_entry.entry(&key.entry).or_default() += 1;
                count += 1;
                sum += bytes(key, one);
            }
            if count <= self.bounds.tokens && sum <= self.bounds.bytes {
                return;
            }
            let share = |key: &Key| by_entry.get(&key.entry).copied().unwrap_or_default();
            // Who waits for a better one is not sent away.
            let idle = |key: &Key| {
                self.slots
                    .get(key)
                    .is_some_and(|slot| slot.waiters.is_empty())
            };
            let victim = held()
                .filter(|(key, _)| Some(*key) != newest && idle(key))
                .max_by_key(|(key, one)| (share(key), std::cmp::Reverse(one.last_used())))
                .map(|(key, _)| key.clone());
            let Some(victim) = victim else { return };
            self.slots.remove(&victim);
        }
    }
}

/// What is known when a token is received.
#[derive(Clone, Copy)]
pub(super) struct Receipt<'a> {
    pub(super) now: SystemTime,
    pub(super) jitter: Jitter,
    /// The uses so far.
    pub(super) count: u64,
    pub(super) bundle: Option<&'a Bundle>,
}

impl Receipt<'_> {
    fn knows(&self, svid: &JwtSvid) -> bool {
        self.bundle.is_some_and(|bundle| knows(svid, bundle))
    }
}

impl<W: Waits> Slot<W> {
    /// One that holds nothing, of `entry`.
    fn new(entry: Arc<Entry>) -> Self {
        Self {
            entry,
            held: None,
            known_key: false,
            renew: false,
            asked: false,
            failures: 0,
            retry_at: None,
            waiters: Vec::new(),
        }
    }

    /// Whether it only stands for a call, or for somebody who waits for one.
    fn is_pending(&self) -> bool {
        self.held.is_none() && (self.asked || self.is_waited_for())
    }

    fn is_waited_for(&self) -> bool {
        self.waiters.iter().any(Waits::is_waiting)
    }

    fn is_due(&self, now: SystemTime) -> bool {
        if self.asked || self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        match &self.held {
            Some(held) => held.is_due(now) && (held.is_used() || self.is_waited_for()),
            None => self.renew || self.is_waited_for(),
        }
    }
}
