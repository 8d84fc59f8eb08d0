//! Selectors by number, each kept once with the count of its users.

use std::collections::HashMap;
use std::sync::Arc;

use vane_identity::selector::{Selector, SelectorSet};

use super::intern::{Interned, Keyed};

/// All selectors of entries and of connected agents.
#[derive(Debug, Default)]
pub(crate) struct Selectors {
    used: Interned<Used>,
    /// Types come from attestors, so there are few and they stay.
    kinds: Vec<Arc<str>>,
    kind_numbers: HashMap<Arc<str>, u32>,
}

/// Numbers of selectors in ascending order, so that a subset test needs no texts.
pub(crate) type Numbers = Box<[u32]>;

#[derive(Debug)]
struct Used {
    value: Box<str>,
    kind: u32,
    users: u32,
}

impl Keyed for Used {
    type Key<'k> = (u32, &'k str);
    fn key(&self) -> (u32, &str) {
        (self.kind, &self.value)
    }
}

impl Selectors {
    /// The numbers of `set`, each used once more.
    pub(crate) fn take(&mut self, set: &SelectorSet) -> Numbers {
        let mut numbers: Vec<u32> = set.iter().map(|selector| self.take_one(selector)).collect();
        numbers.sort_unstable();
        numbers.into()
    }

    fn take_one(&mut self, selector: &Selector) -> u32 {
        if let Some(number) = self.number(selector)
            && let Some(used) = self.used.get_mut(number)
        {
            used.users = used.users.saturating_add(1);
            return number;
        }
        let kind = self.take_kind(selector.kind());
        self.used.insert(Used {
            value: selector.value().into(),
            kind,
            users: 1,
        })
    }

    fn take_kind(&mut self, kind: &str) -> u32 {
        if let Some(number) = self.kind_numbers.get(kind) {
            return *number;
        }
        let number = u32::try_from(self.kinds.len()).unwrap_or(u32::MAX);
        let kind: Arc<str> = kind.into();
        self.kinds.push(Arc::clone(&kind));
        self.kind_numbers.insert(kind, number);
        number
    }

    fn number(&self, selector: &Selector) -> Option<u32> {
        let kind = self.kind_numbers.get(selector.kind())?;
        self.used.find(&(*kind, selector.value()))
    }

    /// Gives back what [`Selectors::take`] took.
    pub(crate) fn give_back(&mut self, numbers: &[u32]) {
        for &number in numbers {
            let Some(used) = self.used.get_mut(number) else {
                continue;
            };
            used.users = used.users.saturating_sub(1);
            if used.users == 0 {
                self.used.remove(number);
            }
        }
    }

    /// The numbers of those of `set` that something uses.
    pub(crate) fn known(&self, set: &SelectorSet) -> Numbers {
        let mut numbers: Vec<u32> = set.iter().filter_map(|one| self.number(one)).collect();
        numbers.sort_unstable();
        numbers.into()
    }

    /// Whether `numbers` are those of `set`.
    pub(crate) fn is_same(&self, numbers: &[u32], set: &SelectorSet) -> bool {
        numbers.len() == set.len() && *self.known(set) == *numbers
    }

    /// The selectors with these numbers.
    pub(crate) fn set(&self, numbers: &[u32]) -> SelectorSet {
        let found = numbers.iter().filter_map(|number| self.used.get(*number));
        found
            .filter_map(|used| {
                let kind = self.kinds.get(used.kind as usize)?;
                Selector::new(kind, &used.value).ok()
            })
            .collect()
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.used.len()
    }
}

/// Whether each of `part` is in `whole`; both ascending.
pub(crate) fn is_subset(part: &[u32], whole: &[u32]) -> bool {
    part.iter()
        .all(|number| whole.binary_search(number).is_ok())
}
