//! A set of `u32` that is nearly always empty or has one member, in 16 bytes.
//!
//! Ordered, so that a reader can go on after the last member it saw whatever was added or
//! removed meanwhile.

use std::collections::BTreeSet;
use std::ops::Bound;

/// The set. Two members and more stand in a tree.
#[derive(Debug, Default)]
pub(crate) enum Few {
    /// No member.
    #[default]
    None,
    /// One member.
    One(u32),
    /// At least two.
    #[expect(
        clippy::box_collection,
        reason = "this enum stands in each of a million nodes: 16 bytes instead of 32"
    )]
    Many(Box<BTreeSet<u32>>),
}

impl Few {
    /// Adds `member`; whether it is new.
    pub(crate) fn insert(&mut self, member: u32) -> bool {
        match self {
            Self::None => {
                *self = Self::One(member);
                true
            }
            Self::One(first) if *first == member => false,
            Self::One(first) => {
                *self = Self::Many(Box::new(BTreeSet::from([*first, member])));
                true
            }
            Self::Many(all) => all.insert(member),
        }
    }

    /// Removes `member`; whether it was there.
    pub(crate) fn remove(&mut self, member: u32) -> bool {
        match self {
            Self::One(first) if *first == member => {
                *self = Self::None;
                true
            }
            Self::None | Self::One(_) => false,
            Self::Many(all) => {
                let was_there = all.remove(&member);
                if all.len() < 2 {
                    *self = all.first().map_or(Self::None, |last| Self::One(*last));
                }
                was_there
            }
        }
    }

    /// How many members it has.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(all) => all.len(),
        }
    }

    /// Whether it has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its members in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.after(None)
    }

    /// Its members above `last` in order; all of them without `last`.
    pub(crate) fn after(&self, last: Option<u32>) -> impl Iterator<Item = u32> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(first) => (
                last.is_none_or(|last| *first > last).then_some(*first),
                None,
            ),
            Self::Many(all) => (None, Some(all.range((from, Bound::Unbounded)).copied())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set_in_order_at_every_size() {
        let mut few = Few::default();
        for member in [5, 3, 9, 3, 5] {
            few.insert(member);
        }
        assert_eq!(few.iter().collect::<Vec<_>>(), [3, 5, 9]);
        assert_eq!(few.after(Some(3)).collect::<Vec<_>>(), [5, 9]);
        assert!(few.remove(5) && !few.remove(5));
        assert!(few.remove(3));
        assert!(matches!(few, Few::One(9)));
        assert_eq!(few.after(Some(9)).count(), 0);
        assert_eq!(few.after(Some(8)).count(), 1);
        assert!(few.remove(9) && few.is_empty());
    }
}
