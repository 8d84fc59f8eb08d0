//! A SPIFFE ID as the graph knows it: which entries name it, and which stand under it.

use std::collections::BTreeMap;

use vane_identity::digest::Digest;
use vane_identity::id::{SpiffeId, TrustDomain};

use super::few::Few;
use super::intern::Keyed;

/// A SPIFFE ID that an entry or a connected agent has.
#[derive(Debug)]
pub(crate) struct Node {
    /// The ID; of the own trust domain only the path.
    name: Box<str>,
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

/// The name of an ID in a graph of `own`: the path, if it is of that trust domain.
pub(crate) fn name<'i>(id: &'i SpiffeId, own: &TrustDomain) -> &'i str {
    if id.is_member_of(own) && !id.path().is_empty() {
        id.path()
    } else {
        id.as_str()
    }
}

impl Node {
    /// An ID that nothing refers to yet, by its name in a graph.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            named_by: Few::None,
            family: None,
            pins: 0,
        }
    }

    /// The ID, in a graph of `own`.
    pub(crate) fn id(&self, own: &TrustDomain) -> Option<SpiffeId> {
        if self.name.starts_with('/') {
            return own.with_path(&self.name).ok();
        }
        SpiffeId::parse(&self.name).ok()
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
    type Key<'k> = &'k str;
    fn key(&self) -> &str {
        &self.name
    }
}
