//! An agent's set as SPIRE's agents read it: whole when it is small, else first its IDs and
//! revisions page by page, then the bodies that they ask for.
//!
//! Nothing but a place in the set is kept between two pages. What changes meanwhile waits in
//! the outbox of a [`Connection`] and goes out with the next page, so that an entry which moved
//! behind the walk is named all the same. Each question holds the lock for one page.

use std::sync::Arc;

use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::SpiffeId;

use super::State;
use super::connection::{Connection, Pulled};
use super::message::{Listed, Message};
use crate::authorized::Cursor;

/// So often a walk begins again because too much changed during it.
const RESTARTS: usize = 3;

/// A walk through the set of an agent.
#[derive(Debug)]
pub(crate) struct Listing {
    connection: Connection,
    page: usize,
    place: Place,
    restarts: usize,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Before,
    After(Cursor),
    End,
}

/// A page of a walk.
#[derive(Debug, Default)]
pub(crate) struct Revisions {
    /// Entries of the set; one may come twice.
    pub(crate) items: Vec<Listed>,
    /// Whether another page follows.
    pub(crate) more: bool,
}

/// Why a walk cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ListingError {
    /// Its place was taken.
    #[error("newer streams of this agent took the place of this one")]
    Replaced,
    /// The outbox ran over again and again.
    #[error("the set changes faster than it is read, try again")]
    Overrun,
}

impl State {
    /// The agent's set now, in order of ID; None when it has more than `limit` entries.
    #[must_use]
    pub fn small_set(&self, agent: &SpiffeId, limit: usize) -> Option<Vec<Entry>> {
        let inner = self.read();
        let reach = inner.reach(agent);
        if inner.graph.size(&reach) > limit {
            return None;
        }
        let members = inner.graph.members(&reach, None);
        let mut set: Vec<Entry> = members
            .filter_map(|(_, entry)| inner.graph.expand(entry))
            .collect();
        set.sort_by(|a, b| a.id.cmp(&b.id));
        Some(set)
    }

    /// Those of `ids` that are in the agent's set now, in the order of `ids`.
    #[must_use]
    pub fn bodies(&self, agent: &SpiffeId, ids: &[EntryId]) -> Vec<Entry> {
        let inner = self.read();
        let reach = inner.reach(agent);
        let is_ours = |slot: &u32| inner.graph.is_member(*slot, &reach);
        let slots = ids.iter().filter_map(|id| inner.graph.find(id));
        slots
            .filter(is_ours)
            .filter_map(|slot| inner.graph.entry(slot))
            .collect()
    }

    /// Begins a walk through the agent's set, in pages of `page` entries.
    pub(crate) fn listing(self: &Arc<Self>, agent: &SpiffeId, page: usize) -> Listing {
        Listing {
            connection: self.connect(agent).connection,
            page: page.max(1),
            place: Place::Before,
            restarts: 0,
        }
    }
}

impl Listing {
    /// Whether the stream may go on.
    pub(crate) fn check_place(&self) -> Result<(), ListingError> {
        match self.connection.is_replaced() {
            true => Err(ListingError::Replaced),
            false => Ok(()),
        }
    }

    /// The next page; after the last one an empty one.
    pub(crate) fn next_page(&mut self) -> Result<Revisions, ListingError> {
        let mut page = Revisions::default();
        loop {
            self.check_place()?;
            let cursor = match self.place {
                Place::Before => None,
                Place::After(cursor) => Some(cursor),
                Place::End => return Ok(page),
            };
            let pulled = self
                .connection
                .pull(false, |view| view.revisions(cursor, self.page));
            match pulled {
                Pulled::Waiting(shared) => page.items.extend(changed(shared.message())),
                Pulled::Lost if self.restarts < RESTARTS => {
                    self.restarts += 1;
                    self.place = Place::Before;
                }
                Pulled::Lost => return Err(ListingError::Overrun),
                Pulled::Made((items, next)) => {
                    page.items.extend(items);
                    page.more = next.is_some();
                    self.place = next.map_or(Place::End, Place::After);
                    return Ok(page);
                }
            }
        }
    }

    /// Loses what waits, as an outbox that runs over does.
    #[cfg(test)]
    pub(crate) fn lose(&self) {
        self.connection.lose();
    }
}

/// The entries that a message puts into the set. Those that it takes out stay named: their
/// bodies will not be there.
fn changed(message: &Message) -> Vec<Listed> {
    let Message::Delta { upserts, .. } = message else {
        return Vec::new();
    };
    let listed = |entry: &Arc<Entry>| Listed {
        id: entry.id.clone(),
        revision_number: entry.revision_number,
        created_at: entry.created_at,
    };
    upserts.iter().map(listed).collect()
}
