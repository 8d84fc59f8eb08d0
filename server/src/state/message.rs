//! What a server tells an agent, as values; encoded at the door (`api/sync.rs`), once for all
//! streams that get the same message.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;
use vane_identity::bundle::Bundle;
use vane_identity::digest::Digest;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_store::kv::{Epoch, Revision};

use crate::authorized::Compact;

/// The most bytes of a message on the wire, unless one member alone has more. Few in unit
/// tests, so that a handful of entries fills several.
pub const CHUNK_BYTES: usize = if cfg!(test) { 1024 } else { 64 * 1024 };

/// Room for the fields beside the members of a message.
const FRAME: usize = 128;
/// The most bytes of the numbers of an entry, tags included.
const ENTRY_NUMBERS: usize = 96;
/// The most bytes of tag and length of a text or message below 256 MiB.
const PREFIX: usize = 6;

/// One message of a stream; the semantics are those of `crate::push`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Bundles to keep and to forget.
    Bundles {
        /// To keep.
        bundles: Vec<Arc<Bundle>>,
        /// To forget.
        removed: Vec<TrustDomain>,
        /// The store's revision of the latest change of a bundle.
        revision: Revision,
        /// Part of a full set: what it does not name is to be forgotten at its end.
        full: bool,
        /// Ends a full set.
        last: bool,
    },
    /// Part of the whole set, without bodies.
    List {
        /// Members of the set.
        items: Vec<Listed>,
        /// Ends the set.
        last: bool,
    },
    /// Entries to keep and to drop.
    Delta {
        /// The store's revision at which this is so.
        revision: Revision,
        /// To keep, in place of what is kept under the same ID.
        upserts: Vec<Arc<Entry>>,
        /// To drop.
        removed: Vec<EntryId>,
    },
    /// SVIDs to replace now.
    Renew {
        /// Those of these entries.
        entries: Vec<EntryId>,
        /// Those signed by these authorities (SPIRE's authority IDs).
        authorities: Vec<String>,
    },
    /// The stream lives.
    Heartbeat {
        /// The revision up to which everything was told.
        revision: Revision,
        /// The server's clock.
        time: SystemTime,
    },
    /// Ends a resume.
    InSync {
        /// The revision up to which everything was told.
        revision: Revision,
        /// The digest of the agent's set.
        set: Digest,
        /// The digest of all bundles.
        bundles: Digest,
        /// The epoch of the store.
        epoch: Epoch,
    },
}

/// A member of a set without its body.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its ID.
    pub id: EntryId,
    /// Its revision number.
    pub revision_number: i64,
    /// When it was created, in Unix seconds.
    pub created_at: i64,
}

/// A message that waits in any number of outboxes.
#[derive(Debug)]
pub struct Shared {
    message: Message,
    weight: usize,
    encoded: OnceLock<Bytes>,
    made: Instant,
}

impl Compact {
    /// Its line in a list.
    pub(crate) fn listed(&self) -> Listed {
        Listed {
            id: self.key.id(),
            revision_number: self.revision_number,
            created_at: self.created_at,
        }
    }
}

impl Shared {
    /// A message to be shared.
    #[must_use]
    pub fn new(message: Message) -> Self {
        Self {
            weight: message.weight(),
            message,
            encoded: OnceLock::new(),
            made: Instant::now(),
        }
    }

    /// How long ago the change was made that it tells.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// At least its bytes on the wire.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Its bytes; the first that asks encodes them.
    pub fn encoded(&self, encode: impl FnOnce(&Message) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(&self.message)).clone()
    }
}

impl Message {
    /// Says that a full set of bundles begins (anew).
    pub(crate) fn begin_bundles(revision: Revision) -> Self {
        Self::Bundles {
            bundles: Vec::new(),
            removed: Vec::new(),
            revision,
            full: true,
            last: false,
        }
    }

    /// Says that a list begins (anew).
    pub(crate) fn begin_list() -> Self {
        Self::List {
            items: Vec::new(),
            last: false,
        }
    }

    /// At least its bytes on the wire.
    #[must_use]
    pub fn weight(&self) -> usize {
        let members: usize = match self {
            Self::Bundles {
                bundles, removed, ..
            } => {
                let removed = removed.iter().map(|name| text(name.as_str()));
                bundles.iter().map(|one| bundle(one)).chain(removed).sum()
            }
            Self::List { items, .. } => items.iter().map(listed).sum(),
            Self::Delta {
                upserts, removed, ..
            } => {
                let removed = removed.iter().map(|id| text(id.as_str()));
                upserts.iter().map(|one| entry(one)).chain(removed).sum()
            }
            Self::Renew {
                entries,
                authorities,
            } => {
                let authorities = authorities.iter().map(|id| text(id));
                entries
                    .iter()
                    .map(|id| text(id.as_str()))
                    .chain(authorities)
                    .sum()
            }
            Self::Heartbeat { .. } | Self::InSync { .. } => 0,
        };
        members.saturating_add(FRAME)
    }
}

/// Takes members from `rest` until they fill a chunk, at least one if there is one; and
/// whether there are more.
pub(crate) fn chunk<T>(
    rest: impl Iterator<Item = T>,
    weight: impl Fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let mut taken = Vec::new();
    let mut total = FRAME;
    for next in rest {
        total = total.saturating_add(weight(&next));
        if total > CHUNK_BYTES && !taken.is_empty() {
            return (taken, true);
        }
        taken.push(next);
    }
    (taken, false)
}

/// Cuts `all` into chunks.
pub(crate) fn chunks<T>(mut all: &[T], weight: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let (taken, _) = chunk(all.iter(), |one| weight(one));
        let (first, rest) = all.split_at_checked(taken.len())?;
        all = rest;
        (!first.is_empty()).then_some(first)
    })
}

/// At least the bytes of a member of a list.
pub(crate) fn listed(item: &Listed) -> usize {
    text(item.id.as_str()).saturating_add(PREFIX + 22)
}

/// At least the bytes of an ID or name.
pub(crate) fn text(text: &str) -> usize {
    text.len().saturating_add(PREFIX)
}

/// At least the bytes of an entry.
pub(crate) fn entry(entry: &Entry) -> usize {
    let ids = [
        entry.id.as_str(),
        entry.spiffe_id.as_str(),
        entry.parent_id.as_str(),
        &entry.hint,
    ];
    let selectors = entry.selectors.iter();
    let selectors = selectors.map(|one| text(one.kind()) + text(one.value()) + PREFIX);
    let domains = entry.federates_with.iter().map(|name| text(name.as_str()));
    let names = entry.dns_names.iter().map(|name| text(name));
    let ids = ids.into_iter().map(text);
    let texts: usize = ids.chain(selectors).chain(domains).chain(names).sum();
    texts.saturating_add(ENTRY_NUMBERS + PREFIX)
}

/// At least the bytes of a bundle.
pub(crate) fn bundle(bundle: &Bundle) -> usize {
    let x509 = bundle.x509_authorities.iter();
    let x509 = x509.map(|one| one.certificate.der().len() + 2 * PREFIX + 2);
    let jwt = bundle.jwt_authorities.iter();
    let jwt = jwt.map(|one| one.public_key.spki().len() + text(&one.key_id) + 2 * PREFIX + 13);
    let authorities: usize = x509.chain(jwt).sum();
    authorities.saturating_add(text(bundle.trust_domain.as_str()) + PREFIX + 22)
}
