//! Which entries an agent is authorized for, without a list per agent.
//!
//! Entries hang under their parents. An agent reaches its own ID, the SPIFFE IDs of the node
//! aliases that match it (entries under `/spire/server` whose selectors are a subset of the
//! agent's), then the SPIFFE IDs of what stands under those, and so on; cycles are allowed.
//! Its set is what stands under the parents it reaches; an alias entry itself is in no set.
//! A family (what stands under one parent) is kept once, with its digest, for all agents that
//! reach it; the digest of an agent's set is the sum of those.
//!
//! Everything here is in memory and pure of clocks and locks: the owner passes `now` and
//! holds the lock. Changes are told by a [`Log`], from which the owner finds the agents that
//! are concerned. Expired entries stay listed and count nowhere.

mod few;
mod key;
mod slab;

mod compact;
mod intern;
mod log;

mod alias;
mod node;
mod selectors;

mod graph;

mod listing;
mod reach;

#[cfg(test)]
pub(crate) mod tests;

pub(crate) use compact::Compact;
pub(crate) use graph::Graph;
pub use listing::EntryFilter;
pub(crate) use listing::Walk;
pub(crate) use log::{Log, Shaken, Touched};
pub(crate) use reach::{Cursor, Reach};
pub(crate) use selectors::{Numbers, is_subset};
