//! Whose entries are whose: which parents an agent reaches, and what stands under them.

use std::collections::BTreeSet;

use vane_identity::digest::Digest;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::SpiffeId;
use vane_identity::selector::SelectorSet;

use super::compact::Compact;
use super::graph::Graph;
use super::node::name;
use super::selectors::{Numbers, is_subset};

/// Numbers of the parents that an agent reaches, all with live children.
pub(crate) type Reach = BTreeSet<u32>;

/// Where a walk through a set stands: parent and slot, both exclusive bounds from below.
pub(crate) type Cursor = (u32, u32);

impl Graph {
    /// The number of an ID that something has.
    pub(crate) fn node(&self, id: &SpiffeId) -> Option<u32> {
        self.nodes.find(&name(id, &self.trust_domain))
    }

    /// The parents that an agent reaches: its own ID, its aliases, then the SPIFFE IDs of what
    /// stands under those, and so on. Touches only parents, never their children.
    pub(crate) fn reach(&self, own: Option<u32>, selectors: &[u32]) -> Reach {
        let mut reach = Reach::new();
        let mut open: Vec<u32> = own.into_iter().collect();
        open.extend(self.aliases_of(selectors));
        while let Some(number) = open.pop() {
            let Some(node) = self.nodes.get(number).filter(|node| node.is_parent()) else {
                continue;
            };
            if reach.insert(number)
                && let Some(family) = &node.family
            {
                open.extend(family.below.keys());
            }
        }
        reach
    }

    /// As [`Graph::reach`], of an agent that need not be connected.
    pub(crate) fn reach_of(&self, id: &SpiffeId, selectors: &SelectorSet) -> Reach {
        self.reach(self.node(id), &self.selectors.known(selectors))
    }

    /// The SPIFFE IDs of the aliases that an agent with these selectors has.
    fn aliases_of(&self, selectors: &[u32]) -> impl Iterator<Item = u32> {
        self.aliases
            .candidates(selectors)
            .filter_map(|slot| self.entries.get(slot))
            .filter(|alias| is_subset(&alias.selectors, selectors))
            .map(|alias| alias.spiffe)
    }

    /// The digest of the set under `reach`.
    pub(crate) fn digest(&self, reach: &Reach) -> Digest {
        let mut digest = Digest::EMPTY;
        for family in reach.iter().filter_map(|number| self.nodes.get(*number)) {
            digest.add_all(
                family
                    .family
                    .as_ref()
                    .map(|it| it.digest)
                    .unwrap_or_default(),
            );
        }
        digest
    }

    /// How many entries the set under `reach` has.
    pub(crate) fn size(&self, reach: &Reach) -> usize {
        let families = reach.iter().filter_map(|number| self.nodes.get(*number));
        families
            .filter_map(|node| node.family.as_ref())
            .map(|family| family.live as usize)
            .sum()
    }

    /// Slots of the entries that count under `parent`, above `last`, in order.
    pub(crate) fn children(
        &self,
        parent: u32,
        last: Option<u32>,
    ) -> impl Iterator<Item = (u32, &Compact)> {
        let family = self.nodes.get(parent).and_then(|node| node.family.as_ref());
        family
            .into_iter()
            .flat_map(move |family| family.children.after(last))
            .filter_map(|slot| Some((slot, self.entries.get(slot)?)))
            .filter(|(_, entry)| entry.live)
    }

    /// The set under `reach` after `cursor`, in an order of its own that stays while entries
    /// come and go.
    pub(crate) fn members<'g>(
        &'g self,
        reach: &'g Reach,
        cursor: Option<Cursor>,
    ) -> impl Iterator<Item = (Cursor, &'g Compact)> {
        let from = cursor.map_or(0, |(parent, _)| parent);
        reach.range(from..).flat_map(move |&parent| {
            let last = cursor.filter(|(at, _)| *at == parent).map(|(_, slot)| slot);
            self.children(parent, last)
                .map(move |(slot, entry)| ((parent, slot), entry))
        })
    }

    /// Whether the entry in `slot` is in the set under `reach`.
    pub(crate) fn is_member(&self, slot: u32, reach: &Reach) -> bool {
        let parent = self.counted_under(slot);
        parent.is_some_and(|parent| reach.contains(&parent))
    }

    /// The parent in whose set the entry counts: none for an alias or an expired one.
    pub(crate) fn parent(&self, slot: u32) -> Option<u32> {
        self.counted_under(slot)
    }

    /// The ID of the entry in `slot`.
    pub(crate) fn id(&self, slot: u32) -> Option<EntryId> {
        self.entries.get(slot).map(|entry| entry.key.id())
    }

    /// The entry in `slot`, with its texts.
    pub(crate) fn entry(&self, slot: u32) -> Option<Entry> {
        let entry = self.entries.get(slot)?;
        self.expand(entry)
    }

    /// An entry with its texts.
    pub(crate) fn expand(&self, entry: &Compact) -> Option<Entry> {
        Some(Entry {
            id: entry.key.id(),
            spiffe_id: self.nodes.get(entry.spiffe)?.id(&self.trust_domain)?,
            parent_id: self.nodes.get(entry.parent)?.id(&self.trust_domain)?,
            selectors: self.selectors.set(&entry.selectors),
            x509_svid_ttl: entry.x509_svid_ttl,
            federates_with: entry.texts.federates_with(),
            admin: entry.flags.admin,
            downstream: entry.flags.downstream,
            expires_at: entry.expires_at,
            dns_names: entry.texts.dns_names(),
            revision_number: entry.revision_number,
            store_svid: entry.flags.store_svid,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            hint: entry.texts.hint().to_owned(),
            created_at: entry.created_at,
            additional_attributes: entry.flags.additional_attributes,
        })
    }

    /// Holds the selectors of a connected agent.
    pub(crate) fn take_selectors(&mut self, set: &SelectorSet) -> Numbers {
        self.selectors.take(set)
    }

    /// Gives back what [`Graph::take_selectors`] held.
    pub(crate) fn give_back_selectors(&mut self, numbers: &[u32]) {
        self.selectors.give_back(numbers);
    }

    /// Whether held selectors are those of `set`.
    pub(crate) fn has_selectors(&self, numbers: &[u32], set: &SelectorSet) -> bool {
        self.selectors.is_same(numbers, set)
    }
}
