//! The entries and bundles that the server pushes, and the rules of the stream (NAMES 2, 3);
//! or what a server has that can only be asked, a [`Round`] at a time.
//!
//! Pure: messages go in, what to answer and what changed come out. Messages are applied in
//! order of arrival. A list names the whole set: what no item of it named is dropped at its
//! end, and bodies that are missing are asked for. At `InSync` both digests must be the
//! server's; where they are not, the caller starts over without claiming anything.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use vane_identity::bundle::Bundle;
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_wire::convert;
use vane_wire::spire::api::types;
use vane_wire::vane::sync::v1::watch_request::Request;
use vane_wire::vane::sync::v1::watch_response::Response;
use vane_wire::vane::sync::v1::{Ack, Bundles, Delta, Hello, InSync, List, Need};

/// The most IDs of one `Need`.
const NEED: usize = 1_000;

/// What the server has pushed.
#[derive(Debug)]
pub struct Registry {
    trust_domain: TrustDomain,
    entries: BTreeMap<EntryId, Arc<Entry>>,
    bundles: BTreeMap<TrustDomain, Arc<Bundle>>,
    set_digest: Digest,
    epoch: Vec<u8>,
    revision: u64,
    bundle_revision: u64,
    listing: Option<HashSet<EntryId>>,
    bundling: Option<HashSet<TrustDomain>>,
    /// Something of this stream could not be read.
    unreadable: bool,
    /// The set has been complete, and is what the server said since.
    is_known: bool,
}

/// What is known of the server's set, to be kept over a restart.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The epoch; empty when the server has none (SPIRE).
    pub epoch: Vec<u8>,
    /// The revision.
    pub revision: u64,
    /// The revision of the bundles.
    pub bundle_revision: u64,
    /// The entries.
    pub entries: Vec<Arc<Entry>>,
    /// The bundles.
    pub bundles: Vec<Arc<Bundle>>,
}

/// What a message asks of the caller.
#[derive(Debug, Default, PartialEq)]
pub struct Reaction {
    /// To be sent, in order.
    pub answers: Vec<Request>,
    /// Entries or bundles changed.
    pub changed: bool,
    /// The resume is complete, and the digests agree.
    pub in_sync: bool,
    /// The digests do not agree: a bug on one side; start over.
    pub diverged: bool,
    /// SVIDs of these entries are to be replaced now.
    pub renew_entries: Vec<EntryId>,
    /// SVIDs signed by these authorities (hex of the key identifier) are to be replaced now.
    pub renew_authorities: Vec<String>,
    /// The server's time, in milliseconds since 1970.
    pub server_time: Option<i64>,
    /// Something in the message was not understood and left out.
    pub ignored: usize,
}

/// All that a server which cannot push has for this agent, at one time.
#[derive(Debug, Default)]
pub struct Round {
    /// The IDs of the whole set.
    pub listed: HashSet<EntryId>,
    /// Bodies of the set; those that are not here are held already.
    pub bodies: Vec<types::Entry>,
    /// All bundles.
    pub bundles: Vec<types::Bundle>,
}

impl Registry {
    /// An agent that knows nothing yet.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            entries: BTreeMap::new(),
            bundles: BTreeMap::new(),
            set_digest: Digest::default(),
            epoch: Vec::new(),
            revision: 0,
            bundle_revision: 0,
            listing: None,
            bundling: None,
            unreadable: false,
            is_known: false,
        }
    }

    /// An agent that knows this from before. The digests are made of it anew, so a resume finds
    /// whatever is wrong with it.
    #[must_use]
    pub fn restore(trust_domain: TrustDomain, known: Known) -> Self {
        let mut restored = Self::new(trust_domain);
        (restored.epoch, restored.revision) = (known.epoch, known.revision);
        restored.bundle_revision = known.bundle_revision;
        restored.is_known = true;
        for entry in known.entries {
            restored.remove(&entry.id);
            restored.set_digest.add(member(&entry));
            restored.entries.insert(entry.id.clone(), entry);
        }
        let bundles = known.bundles.into_iter();
        restored.bundles = bundles
            .map(|bundle| (bundle.trust_domain.clone(), bundle))
            .collect();
        restored
    }

    /// What is known; none before the first sync.
    #[must_use]
    pub fn known(&self) -> Option<Known> {
        self.is_known.then(|| Known {
            epoch: self.epoch.clone(),
            revision: self.revision,
            bundle_revision: self.bundle_revision,
            entries: self.entries.values().cloned().collect(),
            bundles: self.bundles.values().cloned().collect(),
        })
    }

    /// The entries, by ID.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<EntryId, Arc<Entry>> {
        &self.entries
    }

    /// The bundles, the server's own among them.
    #[must_use]
    pub fn bundles(&self) -> &BTreeMap<TrustDomain, Arc<Bundle>> {
        &self.bundles
    }

    /// The first request of a stream.
    #[must_use]
    pub fn hello(&mut self, agent_version: &str) -> Hello {
        (self.listing, self.bundling) = (None, None);
        self.unreadable = false;
        let known = !self.epoch.is_empty();
        let bytes = |digest: Digest| {
            if known {
                digest.to_bytes().to_vec().into()
            } else {
                Default::default()
            }
        };
        Hello {
            epoch: self.epoch.clone().into(),
            revision: if known { self.revision } else { 0 },
            set_digest: bytes(self.set_digest),
            bundle_digest: bytes(self.bundle_digest()),
            agent_version: agent_version.to_owned(),
        }
    }

    /// Up to which revision the server told everything.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Claims nothing at the next `hello`: the whole set comes again. What is held stays.
    pub fn forget_position(&mut self) {
        self.epoch.clear();
    }

    /// Applies a message.
    pub fn apply(&mut self, message: Option<Response>) -> Reaction {
        match message {
            Some(Response::Bundles(bundles)) => self.take_bundles(&bundles),
            Some(Response::List(list)) => self.take_list(&list),
            Some(Response::Delta(delta)) => self.take_delta(&delta),
            Some(Response::Renew(renew)) => Reaction {
                renew_entries: renew
                    .entry_ids
                    .iter()
                    .filter_map(|id| EntryId::parse(id).ok())
                    .collect(),
                renew_authorities: renew.authority_ids,
                ..Reaction::default()
            },
            Some(Response::Heartbeat(beat)) => {
                self.revision = beat.revision;
                Reaction {
                    server_time: Some(beat.time),
                    answers: vec![self.ack()],
                    ..Reaction::default()
                }
            }
            Some(Response::InSync(end)) => self.take_in_sync(&end),
            None => Reaction {
                ignored: 1,
                ..Reaction::default()
            },
        }
    }

    /// Applies what was asked for in place of a stream. The next stream claims nothing.
    pub fn take_round(&mut self, round: Round) -> Reaction {
        self.is_known = true;
        (self.listing, self.bundling) = (None, None);
        let was_unreadable = std::mem::take(&mut self.unreadable);
        self.forget_position();
        let mut reaction = self.take_bundles(&Bundles {
            bundles: round.bundles,
            removed: Vec::new(),
            bundle_revision: 0,
            full: true,
            last: true,
        });
        reaction.answers.clear();
        for wire in &round.bodies {
            match convert::entry::from_wire(wire, &self.trust_domain) {
                Ok(entry) => reaction.changed |= self.put(entry),
                Err(_) => {
                    reaction.ignored += 1;
                    self.unreadable = true;
                }
            }
        }
        reaction.changed |= self.keep_only(&round.listed);
        // The same comes again with every round: it is told once.
        if was_unreadable {
            reaction.ignored = 0;
        }
        reaction.in_sync = true;
        reaction
    }

    /// Puts an entry in; whether it is another than before.
    fn put(&mut self, entry: Entry) -> bool {
        let held = self.entries.get(&entry.id);
        if held.is_some_and(|held| **held == entry) {
            return false;
        }
        self.remove(&entry.id);
        self.set_digest.add(member(&entry));
        self.entries.insert(entry.id.clone(), Arc::new(entry));
        true
    }

    /// Drops what is not in `seen`; whether there was something.
    fn keep_only(&mut self, seen: &HashSet<EntryId>) -> bool {
        let gone: Vec<EntryId> = self
            .entries
            .keys()
            .filter(|id| !seen.contains(*id))
            .cloned()
            .collect();
        gone.iter().for_each(|id| self.remove(id));
        !gone.is_empty()
    }

    fn take_bundles(&mut self, message: &Bundles) -> Reaction {
        let mut reaction = Reaction::default();
        // A chunk without bundles that is not the last one starts the full set (again).
        if message.full && !message.last && message.bundles.is_empty() {
            self.bundling = Some(HashSet::new());
            return reaction;
        }
        if message.full {
            self.bundling.get_or_insert_default();
        }
        for wire in &message.bundles {
            reaction.changed |= self.take_bundle(wire, &mut reaction.ignored);
        }
        for name in &message.removed {
            if let Ok(removed) = TrustDomain::parse(name) {
                reaction.changed |= self.bundles.remove(&removed).is_some();
                if let Some(named) = &mut self.bundling {
                    named.remove(&removed);
                }
            }
        }
        if message.full && message.last {
            let named = self.bundling.take().unwrap_or_default();
            let before = self.bundles.len();
            self.bundles.retain(|own, _| named.contains(own));
            reaction.changed |= before != self.bundles.len();
        }
        if message.last {
            self.bundle_revision = message.bundle_revision;
            reaction.answers.push(self.ack());
        }
        reaction
    }

    /// Takes a bundle in; whether it is another than before. One that cannot be read counts as
    /// named: what was known of its trust domain stays.
    fn take_bundle(&mut self, wire: &types::Bundle, ignored: &mut usize) -> bool {
        // A change between the chunks of a full set is part of it.
        if let (Some(named), Ok(name)) = (
            &mut self.bundling,
            TrustDomain::parse_name_or_id(&wire.trust_domain),
        ) {
            named.insert(name);
        }
        let Ok(bundle) = Bundle::try_from(wire) else {
            *ignored += 1;
            self.unreadable = true;
            return false;
        };
        let (name, bundle) = (bundle.trust_domain.clone(), Arc::new(bundle));
        let before = self.bundles.insert(name, Arc::clone(&bundle));
        before.is_none_or(|before| before != bundle)
    }

    fn take_list(&mut self, list: &List) -> Reaction {
        // A chunk without items that is not the last one starts the list (again).
        if list.items.is_empty() && !list.last {
            self.listing = Some(HashSet::new());
            return Reaction::default();
        }
        let mut reaction = Reaction::default();
        let mut lacking = Vec::new();
        let seen = self.listing.get_or_insert_default();
        for item in &list.items {
            let Ok(id) = EntryId::parse(&item.id) else {
                reaction.ignored += 1;
                continue;
            };
            let held = self.entries.get(&id);
            let same = held.is_some_and(|entry| {
                entry.revision_number == item.revision_number && entry.created_at == item.created_at
            });
            if !same {
                lacking.push(item.id.clone());
            }
            seen.insert(id);
        }
        let needs = lacking.chunks(NEED).map(|ids| {
            Request::Need(Need {
                entry_ids: ids.to_vec(),
            })
        });
        reaction.answers.extend(needs);
        if list.last {
            let seen = self.listing.take().unwrap_or_default();
            reaction.changed = self.keep_only(&seen);
            // An empty one says that nothing more is needed.
            reaction.answers.push(Request::Need(Need {
                entry_ids: Vec::new(),
            }));
        }
        reaction
    }

    fn take_delta(&mut self, delta: &Delta) -> Reaction {
        let mut reaction = Reaction {
            changed: true,
            ..Reaction::default()
        };
        for wire in &delta.upserts {
            let Ok(entry) = convert::entry::from_wire(wire, &self.trust_domain) else {
                reaction.ignored += 1;
                self.unreadable = true;
                continue;
            };
            if let Some(seen) = &mut self.listing {
                seen.insert(entry.id.clone());
            }
            self.put(entry);
        }
        for id in delta
            .removed
            .iter()
            .filter_map(|id| EntryId::parse(id).ok())
        {
            self.remove(&id);
            if let Some(seen) = &mut self.listing {
                seen.remove(&id);
            }
        }
        self.revision = delta.revision;
        reaction
    }

    fn take_in_sync(&mut self, end: &InSync) -> Reaction {
        let same = |wire: &[u8], own: Digest| Digest::from_bytes(wire) == Some(own);
        let agrees = same(&end.set_digest, self.set_digest)
            && same(&end.bundle_digest, self.bundle_digest());
        // What this agent cannot read it cannot hold, and asking for it again changes nothing:
        // the rest is served. The next resume finds the digests unequal and lists anew.
        if !agrees && !self.unreadable {
            self.forget_position();
            return Reaction {
                diverged: true,
                ..Reaction::default()
            };
        }
        self.epoch = end.epoch.to_vec();
        self.is_known = true;
        self.revision = end.revision;
        Reaction {
            in_sync: true,
            answers: vec![self.ack()],
            ..Reaction::default()
        }
    }

    fn remove(&mut self, id: &EntryId) {
        if let Some(entry) = self.entries.remove(id) {
            self.set_digest.remove(member(&entry));
        }
    }

    fn bundle_digest(&self) -> Digest {
        self.bundles
            .values()
            .map(|bundle| Member::of_bundle(bundle))
            .collect()
    }

    fn ack(&self) -> Request {
        Request::Ack(Ack {
            revision: self.revision,
            bundle_revision: self.bundle_revision,
        })
    }
}

fn member(entry: &Entry) -> Member {
    Member::of_entry(entry.id.as_str(), entry.revision_number, entry.created_at)
}

#[cfg(test)]
mod tests;
