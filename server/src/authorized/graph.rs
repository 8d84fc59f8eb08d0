//! The graph of entries and its changes.
//!
//! Invariants, after each public call:
//! * a node stands in `nodes` as long as an entry, a connected agent or a family refers to it;
//! * `Family::{live, digest}` are those of the children with `live` set;
//! * `Family::below[x]` counts the live children that name `x`, when `x` has live children
//!   itself, and is absent otherwise;
//! * an entry under the server's ID is an alias: it is in no digest and no family's `below`.

use std::collections::{BTreeMap, BTreeSet};

use vane_identity::digest::Member;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};

use super::alias::Aliases;
use super::compact::{Compact, Flags, Texts};
use super::intern::Interned;
use super::key::Key;
use super::log::{Log, Shaken, Touched};
use super::node::{Node, name};
use super::selectors::Selectors;
use super::slab::Slab;

/// All entries, by ID, by SPIFFE ID and by parent.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(super) trust_domain: TrustDomain,
    pub(super) entries: Slab<Compact>,
    pub(super) by_key: BTreeMap<Key, u32>,
    pub(super) nodes: Interned<Node>,
    pub(super) selectors: Selectors,
    pub(super) aliases: Aliases,
    /// The server's own ID, the parent of aliases.
    pub(super) server: u32,
    /// Entries that count now and will not some day, by that time (Unix seconds).
    expiries: BTreeSet<(i64, u32)>,
    /// Nodes that may have become unused. They are freed by [`Graph::sweep`] only, so that
    /// the numbers in a [`Log`] stay good until it was read.
    garbage: Vec<u32>,
}

impl Graph {
    /// A graph without entries, of a server with the ID `server`.
    pub(crate) fn new(server: &SpiffeId) -> Self {
        let trust_domain = server.trust_domain();
        let mut nodes = Interned::default();
        let mut node = Node::new(name(server, &trust_domain));
        node.pins = 1;
        let server = nodes.insert(node);
        Self {
            trust_domain,
            nodes,
            server,
            entries: Slab::default(),
            by_key: BTreeMap::new(),
            selectors: Selectors::default(),
            aliases: Aliases::default(),
            expiries: BTreeSet::new(),
            garbage: Vec::new(),
        }
    }

    /// Puts an entry as of `mod_revision`, unless that or a later state of it is here. It
    /// counts when it is not expired at `now` (Unix seconds). One that was expired stays so
    /// until it is given a later end: a clock that is set back revives nothing.
    pub(crate) fn put(&mut self, entry: &Entry, mod_revision: u64, now: i64, log: &mut Log) {
        let key = Key::of(&entry.id);
        let live = entry.expires_at == 0 || entry.expires_at > now;
        let found = self.by_key.get(&key).copied();
        let held = found.and_then(|slot| Some((slot, self.entries.get(slot)?.mod_revision)));
        match held {
            Some((_, held)) if held >= mod_revision => {}
            Some((slot, _)) => {
                let live = live && !self.has_ended(slot, entry.expires_at);
                let fresh = self.compact(key, entry, mod_revision);
                self.replace(slot, fresh, live, log);
            }
            None => {
                let fresh = self.compact(key, entry, mod_revision);
                self.add(fresh, live, log);
            }
        }
    }

    /// Whether the entry counts no longer, and would not with this end either.
    fn has_ended(&self, slot: u32, expires_at: i64) -> bool {
        self.entries.get(slot).is_some_and(|held| {
            !held.live && held.expires_at != 0 && (1..=held.expires_at).contains(&expires_at)
        })
    }

    /// Deletes an entry, unless a state of it later than `revision` is here.
    pub(crate) fn delete(&mut self, id: &EntryId, revision: u64, log: &mut Log) {
        let key = Key::of(id);
        let Some(&slot) = self.by_key.get(&key) else {
            return;
        };
        let held = self.entries.get(slot).map(|entry| entry.mod_revision);
        if held.is_some_and(|held| held > revision) {
            return;
        }
        let before = self.counted_under(slot);
        self.leave(slot, log);
        self.unhook(slot);
        self.by_key.remove(&key);
        if let Some(gone) = self.entries.remove(slot) {
            self.selectors.give_back(&gone.selectors);
        }
        log.touched.push(Touched {
            slot,
            id: id.clone(),
            before,
            after: None,
        });
    }

    /// Lets what expires at or before `now` (Unix seconds) count no longer.
    pub(crate) fn expire(&mut self, now: i64, log: &mut Log) {
        while let Some((_, slot)) = self.expiries.first().copied().filter(|(at, _)| *at <= now) {
            self.expiries.pop_first();
            let before = self.counted_under(slot);
            self.leave(slot, log);
            if let Some(entry) = self.entries.get(slot) {
                let id = entry.key.id();
                log.touched.push(Touched {
                    slot,
                    id,
                    before,
                    after: None,
                });
            }
        }
    }

    /// When the next entry expires, in Unix seconds.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.expiries.first().map(|(at, _)| *at)
    }

    /// Holds the node of a connected agent's ID.
    pub(crate) fn pin(&mut self, id: &SpiffeId) -> u32 {
        let number = self.intern(id);
        if let Some(node) = self.nodes.get_mut(number) {
            node.pins = node.pins.saturating_add(1);
        }
        number
    }

    /// Gives back what [`Graph::pin`] held.
    pub(crate) fn unpin(&mut self, number: u32) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.pins = node.pins.saturating_sub(1);
        }
        self.garbage.push(number);
    }

    /// Frees nodes that nothing refers to, once the log of the last changes was read.
    pub(crate) fn sweep(&mut self) {
        for number in std::mem::take(&mut self.garbage) {
            if self.nodes.get(number).is_some_and(Node::is_unused) {
                self.nodes.remove(number);
            }
        }
    }

    /// How many entries, IDs and selectors are kept.
    #[cfg(test)]
    pub(crate) fn footprint(&self) -> (usize, usize, usize) {
        let (entries, nodes) = (self.entries.len(), self.nodes.len());
        (entries, nodes, self.selectors.len())
    }

    fn intern(&mut self, id: &SpiffeId) -> u32 {
        let name = name(id, &self.trust_domain);
        match self.nodes.find(&name) {
            Some(number) => number,
            None => self.nodes.insert(Node::new(name)),
        }
    }

    fn compact(&mut self, key: Key, entry: &Entry, mod_revision: u64) -> Compact {
        Compact {
            key,
            spiffe: self.intern(&entry.spiffe_id),
            parent: self.intern(&entry.parent_id),
            selectors: self.selectors.take(&entry.selectors),
            created_at: entry.created_at,
            revision_number: entry.revision_number,
            mod_revision,
            expires_at: entry.expires_at,
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            live: false,
            flags: Flags::of(entry),
            texts: Texts::of(entry),
        }
    }

    fn add(&mut self, fresh: Compact, live: bool, log: &mut Log) {
        let (key, id) = (fresh.key.clone(), fresh.key.id());
        let slot = self.entries.insert(fresh);
        self.by_key.insert(key, slot);
        self.hook(slot);
        if live {
            self.enter(slot, log);
        }
        let after = self.counted_under(slot);
        log.touched.push(Touched {
            slot,
            id,
            before: None,
            after,
        });
    }

    fn replace(&mut self, slot: u32, fresh: Compact, live: bool, log: &mut Log) {
        let id = fresh.key.id();
        let before = self.counted_under(slot);
        if self.is_same_place(slot, &fresh, live) {
            self.replace_in_place(slot, fresh);
        } else {
            self.leave(slot, log);
            self.unhook(slot);
            self.swap(slot, fresh);
            self.hook(slot);
            if live {
                self.enter(slot, log);
            }
        }
        let after = self.counted_under(slot);
        log.touched.push(Touched {
            slot,
            id,
            before,
            after,
        });
    }

    /// Whether only fields change that move nothing in the graph: the usual update, for which
    /// nobody's reach is computed again.
    fn is_same_place(&self, slot: u32, fresh: &Compact, live: bool) -> bool {
        self.entries.get(slot).is_some_and(|held| {
            held.live == live
                && held.spiffe == fresh.spiffe
                && held.parent == fresh.parent
                && (held.parent != self.server || held.selectors == fresh.selectors)
        })
    }

    fn replace_in_place(&mut self, slot: u32, mut fresh: Compact) {
        let Some(held) = self.entries.get(slot) else {
            return;
        };
        fresh.live = held.live;
        let (old, new) = (member(held), member(&fresh));
        if let Some(parent) = self.counted_under(slot)
            && let Some(node) = self.nodes.get_mut(parent)
        {
            let digest = &mut node.family_mut().digest;
            digest.remove(old);
            digest.add(new);
        }
        self.forget_expiry(slot);
        self.swap(slot, fresh);
        self.note_expiry(slot);
    }

    fn swap(&mut self, slot: u32, fresh: Compact) {
        if let Some(held) = self.entries.get_mut(slot) {
            let old = std::mem::replace(held, fresh);
            self.selectors.give_back(&old.selectors);
        }
    }

    /// Enters a slot into the indexes that expired entries stand in too.
    fn hook(&mut self, slot: u32) {
        let Some((spiffe, parent)) = self.ends(slot) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(spiffe) {
            node.named_by.insert(slot);
        }
        if let Some(node) = self.nodes.get_mut(parent) {
            node.family_mut().children.insert(slot);
        }
    }

    fn unhook(&mut self, slot: u32) {
        let Some((spiffe, parent)) = self.ends(slot) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(spiffe) {
            node.named_by.remove(slot);
        }
        if let Some(node) = self.nodes.get_mut(parent) {
            let family = node.family_mut();
            family.children.remove(slot);
            if family.children.is_empty() {
                node.family = None;
            }
        }
        self.garbage.extend([spiffe, parent]);
    }

    /// Lets an entry count.
    fn enter(&mut self, slot: u32, log: &mut Log) {
        let Some(entry) = self.entries.get_mut(slot) else {
            return;
        };
        entry.live = true;
        let (spiffe, parent, member) = (entry.spiffe, entry.parent, member(entry));
        self.note_expiry(slot);
        if parent == self.server {
            self.enter_alias(slot, spiffe, log);
            return;
        }
        if let Some(node) = self.nodes.get_mut(parent) {
            let family = node.family_mut();
            family.digest.add(member);
            family.live = family.live.saturating_add(1);
            if family.live == 1 {
                self.parenthood(parent, slot, true, log);
            }
        }
        if self.is_parent(spiffe) {
            self.link(parent, spiffe, log);
        }
    }

    /// Lets an entry count no longer; one that does not already is left alone.
    fn leave(&mut self, slot: u32, log: &mut Log) {
        let Some(entry) = self.entries.get(slot).filter(|entry| entry.live) else {
            return;
        };
        let (spiffe, parent, member) = (entry.spiffe, entry.parent, member(entry));
        self.forget_expiry(slot);
        if parent == self.server {
            self.leave_alias(slot, spiffe, log);
        } else {
            if self.is_parent(spiffe) {
                self.unlink(parent, spiffe, log);
            }
            self.leave_family(slot, parent, member, log);
        }
        if let Some(entry) = self.entries.get_mut(slot) {
            entry.live = false;
        }
    }

    fn leave_family(&mut self, slot: u32, parent: u32, member: Member, log: &mut Log) {
        let Some(node) = self.nodes.get_mut(parent) else {
            return;
        };
        let family = node.family_mut();
        family.digest.remove(member);
        family.live = family.live.saturating_sub(1);
        if family.live == 0 {
            self.parenthood(parent, slot, false, log);
        }
    }

    fn enter_alias(&mut self, slot: u32, spiffe: u32, log: &mut Log) {
        let Some(entry) = self.entries.get(slot) else {
            return;
        };
        self.aliases.insert(slot, &entry.selectors);
        if self.is_parent(spiffe) {
            log.shaken.insert(Shaken::Matching(entry.selectors.clone()));
        }
    }

    fn leave_alias(&mut self, slot: u32, spiffe: u32, log: &mut Log) {
        self.aliases.remove(slot);
        if let Some(entry) = self.entries.get(slot)
            && self.is_parent(spiffe)
        {
            log.shaken.insert(Shaken::Matching(entry.selectors.clone()));
        }
    }

    /// `number` got its first live child, or lost its last (in `slot`): who could reach it now
    /// does, or no longer.
    fn parenthood(&mut self, number: u32, slot: u32, is_parent: bool, log: &mut Log) {
        log.shaken.insert(Shaken::Own(number));
        log.shaken.insert(Shaken::Under(number));
        let Some(node) = self.nodes.get(number) else {
            return;
        };
        let others: Vec<u32> = node
            .named_by
            .iter()
            .filter(|other| *other != slot)
            .collect();
        for other in others {
            let Some(entry) = self.entries.get(other).filter(|entry| entry.live) else {
                continue;
            };
            let above = entry.parent;
            if above == self.server {
                log.shaken.insert(Shaken::Matching(entry.selectors.clone()));
            } else if is_parent {
                self.link(above, number, log);
            } else {
                self.unlink(above, number, log);
            }
        }
    }

    fn link(&mut self, above: u32, below: u32, log: &mut Log) {
        let Some(node) = self.nodes.get_mut(above) else {
            return;
        };
        let count = node.family_mut().below.entry(below).or_insert(0);
        *count = count.saturating_add(1);
        if *count == 1 {
            log.shaken.insert(Shaken::Under(above));
        }
    }

    fn unlink(&mut self, above: u32, below: u32, log: &mut Log) {
        let Some(node) = self.nodes.get_mut(above) else {
            return;
        };
        let family = node.family_mut();
        let Some(count) = family.below.get_mut(&below) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            family.below.remove(&below);
            log.shaken.insert(Shaken::Under(above));
        }
    }

    fn note_expiry(&mut self, slot: u32) {
        if let Some(entry) = self.entries.get(slot)
            && entry.live
            && entry.expires_at != 0
        {
            self.expiries.insert((entry.expires_at, slot));
        }
    }

    fn forget_expiry(&mut self, slot: u32) {
        if let Some(entry) = self.entries.get(slot) {
            self.expiries.remove(&(entry.expires_at, slot));
        }
    }

    fn ends(&self, slot: u32) -> Option<(u32, u32)> {
        let entry = self.entries.get(slot)?;
        Some((entry.spiffe, entry.parent))
    }

    pub(super) fn is_parent(&self, number: u32) -> bool {
        self.nodes.get(number).is_some_and(Node::is_parent)
    }

    /// The parent in whose set the entry counts: none for an alias or an expired one.
    pub(super) fn counted_under(&self, slot: u32) -> Option<u32> {
        let entry = self.entries.get(slot)?;
        (entry.live && entry.parent != self.server).then_some(entry.parent)
    }
}

/// What an entry adds to the digest of the sets it is in.
pub(super) fn member(entry: &Compact) -> Member {
    let (revision, created) = (entry.revision_number, entry.created_at);
    entry
        .key
        .with_text(|id| Member::of_entry(id, revision, created))
}
