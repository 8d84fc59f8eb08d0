//! Selectors by number, each kept once with the count of its users.

use vane_identity::selector::{Selector, SelectorSet};

use super::intern::{Interned, Keyed};

/// All selectors of entries and of connected agents.
#[derive(Debug, Default)]
pub(crate) struct Selectors(Interned<Used>);

/// Numbers of selectors in ascending order, so that a subset test needs no texts.
pub(crate) type Numbers = Box<[u32]>;

#[derive(Debug)]
struct Used {
    selector: Selector,
    users: u32,
}

impl Keyed for Used {
    type Key = Selector;
    fn key(&self) -> &Selector {
        &self.selector
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
        if let Some(number) = self.0.find(selector)
            && let Some(used) = self.0.get_mut(number)
        {
            used.users = used.users.saturating_add(1);
            return number;
        }
        self.0.insert(Used {
            selector: selector.clone(),
            users: 1,
        })
    }

    /// Gives back what [`Selectors::take`] took.
    pub(crate) fn give_back(&mut self, numbers: &[u32]) {
        for &number in numbers {
            let Some(used) = self.0.get_mut(number) else {
                continue;
            };
            used.users = used.users.saturating_sub(1);
            if used.users == 0 {
                self.0.remove(number);
            }
        }
    }

    /// The numbers of those of `set` that something uses.
    pub(crate) fn known(&self, set: &SelectorSet) -> Numbers {
        let mut numbers: Vec<u32> = set.iter().filter_map(|one| self.0.find(one)).collect();
        numbers.sort_unstable();
        numbers.into()
    }

    /// Whether `numbers` are those of `set`.
    pub(crate) fn is_same(&self, numbers: &[u32], set: &SelectorSet) -> bool {
        numbers.len() == set.len() && *self.known(set) == *numbers
    }

    /// The selectors with these numbers.
    pub(crate) fn set(&self, numbers: &[u32]) -> SelectorSet {
        let found = numbers.iter().filter_map(|number| self.0.get(*number));
        found.map(|used| used.selector.clone()).collect()
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Whether each of `part` is in `whole`; both ascending.
pub(crate) fn is_subset(part: &[u32], whole: &[u32]) -> bool {
    part.iter()
        .all(|number| whole.binary_search(number).is_ok())
}
