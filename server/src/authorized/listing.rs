//! Entries in the order of their IDs, filtered, a bounded part at a time.
//!
//! A walk may touch every entry, so it is cut into parts: the owner releases its lock between
//! them. A filter by SPIFFE ID or parent goes by index while the index has few entries.

use std::ops::Bound;

use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_wire::convert::selector::{SelectorFilter, SetMatch, TrustDomainFilter};

use super::compact::Compact;
use super::few::Few;
use super::graph::Graph;
use super::key::Key;
use super::selectors::{Numbers, is_subset};

/// Up to so many entries of an index are looked at and sorted at once.
const INDEXED_AT_ONCE: usize = 4096;

/// Which entries are wanted; a field that is not set wants all.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// Those with this SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// Those under this parent.
    pub parent_id: Option<SpiffeId>,
    /// Those whose selectors pass.
    pub selectors: Option<SelectorFilter>,
    /// Those whose federated trust domains pass.
    pub federates_with: Option<TrustDomainFilter>,
    /// Those with this hint.
    pub hint: Option<String>,
    /// Those that are downstream, or are not.
    pub downstream: Option<bool>,
}

impl EntryFilter {
    /// Whether it wants every entry.
    #[must_use]
    pub fn wants_all(&self) -> bool {
        self.spiffe_id.is_none()
            && self.parent_id.is_none()
            && self.selectors.is_none()
            && self.federates_with.is_none()
            && self.hint.is_none()
            && self.downstream.is_none()
    }
}

/// How far a part of a walk came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Walk {
    /// There is no more.
    Done,
    /// The visitor had enough.
    Stopped,
    /// The part is over; go on after this ID.
    GoOn(EntryId),
}

/// A filter in the numbers of one moment.
struct Prepared<'f> {
    filter: &'f EntryFilter,
    spiffe: Option<u32>,
    parent: Option<u32>,
    selectors: Option<(Numbers, bool, SetMatch)>,
}

impl Graph {
    /// How many entries there are, expired ones too.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The slot of an entry.
    pub(crate) fn find(&self, id: &EntryId) -> Option<u32> {
        self.by_key.get(&Key::of(id)).copied()
    }

    /// The revision that put an entry.
    pub(crate) fn mod_revision(&self, slot: u32) -> Option<u64> {
        self.entries.get(slot).map(|entry| entry.mod_revision)
    }

    /// The IDs between two, the first exclusive; open where none is given.
    pub(crate) fn ids_between(
        &self,
        after: Option<&EntryId>,
        upto: Option<&EntryId>,
    ) -> impl Iterator<Item = EntryId> {
        let from = after.map(Key::of).map_or(Bound::Unbounded, Bound::Excluded);
        let to = upto.map(Key::of).map_or(Bound::Unbounded, Bound::Included);
        self.by_key.range((from, to)).map(|(key, _)| key.id())
    }

    /// What the entries with SPIFFE ID `id` that count allow: admin, downstream.
    pub(crate) fn grants(&self, id: &SpiffeId) -> (bool, bool) {
        let named = self.node(id).and_then(|number| self.nodes.get(number));
        let slots = named.into_iter().flat_map(|node| node.named_by.iter());
        slots
            .filter_map(|slot| self.entries.get(slot))
            .filter(|entry| entry.live)
            .map(|entry| entry.flags)
            .fold((false, false), |(admin, downstream), flags| {
                (admin || flags.admin, downstream || flags.downstream)
            })
    }

    /// Shows `visit` the entries after `after` that pass `filter`, in order of ID, until it
    /// says false; looks at about `budget` entries at most.
    pub(crate) fn walk(
        &self,
        filter: &EntryFilter,
        after: Option<&EntryId>,
        budget: usize,
        mut visit: impl FnMut(&Compact) -> bool,
    ) -> Walk {
        let Some(prepared) = self.prepare(filter) else {
            return Walk::Done;
        };
        let after = after.map(Key::of);
        if let Some(index) = self.index(&prepared) {
            return self.walk_index(index, &prepared, after.as_ref(), visit);
        }
        let from = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut slots = self.by_key.range((from, Bound::Unbounded));
        let mut last = None;
        for (key, slot) in slots.by_ref().take(budget) {
            last = Some(key);
            if let Some(entry) = self.entries.get(*slot)
                && prepared.accepts(entry)
                && !visit(entry)
            {
                return Walk::Stopped;
            }
        }
        match (last, slots.next()) {
            (Some(last), Some(_)) => Walk::GoOn(last.id()),
            _ => Walk::Done,
        }
    }

    fn walk_index(
        &self,
        index: &Few,
        prepared: &Prepared<'_>,
        after: Option<&Key>,
        visit: impl FnMut(&Compact) -> bool,
    ) -> Walk {
        let mut found: Vec<&Compact> = index
            .iter()
            .filter_map(|slot| self.entries.get(slot))
            .filter(|entry| after.is_none_or(|after| entry.key > *after))
            .filter(|entry| prepared.accepts(entry))
            .collect();
        found.sort_by(|a, b| a.key.cmp(&b.key));
        if found.into_iter().all(visit) {
            Walk::Done
        } else {
            Walk::Stopped
        }
    }

    /// `None` when the filter names an ID that no entry has.
    fn prepare<'f>(&self, filter: &'f EntryFilter) -> Option<Prepared<'f>> {
        let number = |id: &Option<SpiffeId>| match id {
            None => Some(None),
            Some(id) => self.node(id).map(Some),
        };
        let selectors = filter.selectors.as_ref().map(|wanted| {
            let known = self.selectors.known(&wanted.selectors);
            let all_known = known.len() == wanted.selectors.len();
            (known, all_known, wanted.by)
        });
        Some(Prepared {
            filter,
            spiffe: number(&filter.spiffe_id)?,
            parent: number(&filter.parent_id)?,
            selectors,
        })
    }

    /// The smallest index that has all that can pass, when it is small.
    fn index(&self, prepared: &Prepared<'_>) -> Option<&Few> {
        static NOBODY: Few = Few::None;
        let named = prepared.spiffe.and_then(|number| self.nodes.get(number));
        let named = named.map(|node| &node.named_by);
        let under = prepared.parent.and_then(|number| self.nodes.get(number));
        let under = under.map(|node| node.family.as_ref().map_or(&NOBODY, |it| &it.children));
        named
            .into_iter()
            .chain(under)
            .min_by_key(|index| index.len())
            .filter(|index| index.len() <= INDEXED_AT_ONCE)
    }
}

impl Prepared<'_> {
    fn accepts(&self, entry: &Compact) -> bool {
        self.spiffe.is_none_or(|spiffe| entry.spiffe == spiffe)
            && self.parent.is_none_or(|parent| entry.parent == parent)
            && self.accepts_selectors(entry)
            && self.accepts_rare(entry)
    }

    /// As [`SelectorFilter::accepts`], by number.
    fn accepts_selectors(&self, entry: &Compact) -> bool {
        let Some((known, all_known, by)) = &self.selectors else {
            return true;
        };
        let theirs = &entry.selectors;
        !theirs.is_empty()
            && match by {
                SetMatch::Exact => *all_known && theirs == known,
                SetMatch::Subset => is_subset(theirs, known),
                SetMatch::Superset => *all_known && is_subset(known, theirs),
                SetMatch::Any => known.iter().any(|one| theirs.binary_search(one).is_ok()),
            }
    }

    fn accepts_rare(&self, entry: &Compact) -> bool {
        let filter = self.filter;
        let downstream = entry.flags.downstream;
        filter.downstream.is_none_or(|wanted| downstream == wanted)
            && filter
                .hint
                .as_ref()
                .is_none_or(|wanted| entry.texts.hint() == wanted)
            && filter
                .federates_with
                .as_ref()
                .is_none_or(|wanted| wanted.accepts(&entry.texts.federates_with()))
    }
}
