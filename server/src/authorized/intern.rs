//! Values by number, each kept once, found again by a part of them.
//!
//! Who puts a value in decides how long it stays.

use std::hash::{BuildHasher, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::slab::Slab;

/// Values by number and numbers by value.
#[derive(Debug)]
pub(crate) struct Interned<T> {
    slab: Slab<T>,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self {
            slab: Slab::default(),
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

/// Something that is found by a part of it.
pub(crate) trait Keyed {
    /// The part.
    type Key<'k>: Hash + Eq
    where
        Self: 'k;
    /// The part of `self`.
    fn key(&self) -> Self::Key<'_>;
}

impl<T: Keyed> Interned<T> {
    /// The number of the value with `key`.
    pub(crate) fn find<'k>(&'k self, key: &T::Key<'k>) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        let is_it = |number: &u32| self.slab.get(*number).is_some_and(|it| it.key() == *key);
        self.table.find(hash, is_it).copied()
    }

    /// Adds `value`, whose key is not there yet.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let hash = self.hasher.hash_one(value.key());
        let number = self.slab.insert(value);
        let (slab, hasher) = (&self.slab, &self.hasher);
        let rehash = |number: &u32| slab.get(*number).map_or(0, |it| hasher.hash_one(it.key()));
        self.table.insert_unique(hash, number, rehash);
        number
    }

    /// Removes the value with `number`.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(value) = self.slab.remove(number) else {
            return;
        };
        let hash = self.hasher.hash_one(value.key());
        if let Ok(found) = self.table.find_entry(hash, |other| *other == number) {
            found.remove();
        }
    }

    /// The value with `number`.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.slab.get(number)
    }

    /// The value with `number`, to change all but its key.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.slab.get_mut(number)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }
}
