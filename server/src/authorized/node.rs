//! A SPIFFE ID as the graph knows it: which entries name it, and which stand under it.

use std::collections::BTreeMap;

use vane_identity::digest::Digest;
use vane_identity::id::SpiffeId;

use super::few::Few;
use super::intern::Keyed;

/// A SPIFFE ID that an entry or a connected agent has.
#[derive(Debug)]
pub(crate) struct Node {
    /// The ID.
    pub(crate) id: SpiffeId,
    /// Slots of the entries whose SPIFFE ID it is.
    pub(crate) named_by: Few,
    /// What stands under it, when something does.
    pub(crate) family: Option<Box<Family>>,
    /// How many connected agents have it as theirs.
    pub(crate) pins: u32,
}

/// What stands under a parent. The set that agents share: its digest is part of the digest of
/// each agent that reaches the parent.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// Slots of the entries under this parent, expired ones too.
    pub(crate) children: Few,
    /// How many of them count.
    pub(crate) live: u32,
    /// The digest of those.
    pub(crate) digest: Digest,
    /// The parents among the SPIFFE IDs of those, each with the number of entries that name
    /// it. A crawl follows only these and never looks at the children.
    pub(crate) below: BTreeMap<u32, u32>,
}

impl Node {
    /// An ID that nothing refers to yet.
    pub(crate) fn new(id: SpiffeId) -> Self {
        Self {
            id,
            named_by: Few::None,
            family: None,
            pins: 0,
        }
    }

    /// Whether an entry that counts stands under it.
    pub(crate) fn is_parent(&self) -> bool {
        self.family.as_ref().is_some_and(|family| family.live > 0)
    }

    /// Whether nothing refers to it.
    pub(crate) fn is_unused(&self) -> bool {
        self.pins == 0 && self.named_by.is_empty() && self.family.is_none()
    }

    /// The family, made when there is none.
    pub(crate) fn family_mut(&mut self) -> &mut Family {
        self.family.get_or_insert_default()
    }
}

impl Keyed for Node {
    type Key = SpiffeId;
    fn key(&self) -> &SpiffeId {
        &self.id
    }
}
