//! What a batch of changes did to the graph: enough to tell each affected agent, without
//! looking at the others.

use std::collections::BTreeSet;

use super::selectors::Numbers;

/// The effects of one batch. Each entry stands once.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// Entries that came, changed or went.
    pub(crate) touched: Vec<Touched>,
    /// Whose reachable parents may be others now.
    pub(crate) shaken: BTreeSet<Shaken>,
}

/// One entry that came, changed or went.
#[derive(Debug)]
pub(crate) struct Touched {
    /// Its slot; meaningful while `after` is set.
    pub(crate) slot: u32,
    /// Its ID.
    pub(crate) id: vane_identity::entry::EntryId,
    /// The parent under which it counted before.
    pub(crate) before: Option<u32>,
    /// The parent under which it counts now.
    pub(crate) after: Option<u32>,
}

/// A group of agents.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shaken {
    /// Those that reach this parent.
    Under(u32),
    /// The one whose own ID this is.
    Own(u32),
    /// Those that have all these selectors.
    Matching(Numbers),
}
