//! An entry in memory: texts by number, what is rarely set in a box of its own.
//!
//! About 90 bytes where an [`Entry`] has 300 and its texts: a million fit beside the store.

use vane_identity::entry::{AdditionalAttributes, Entry};
use vane_identity::id::TrustDomain;

use super::key::Key;
use super::selectors::Numbers;

/// An entry without texts.
#[derive(Debug)]
pub(crate) struct Compact {
    /// Its ID.
    pub(crate) key: Key,
    /// Number of its SPIFFE ID.
    pub(crate) spiffe: u32,
    /// Number of its parent ID.
    pub(crate) parent: u32,
    /// Numbers of its selectors.
    pub(crate) selectors: Numbers,
    /// As in [`Entry`].
    pub(crate) created_at: i64,
    /// As in [`Entry`].
    pub(crate) revision_number: i64,
    /// The store's revision that put it.
    pub(crate) mod_revision: u64,
    /// Whether it counts: it did not expire.
    pub(crate) live: bool,
    /// Fields that most entries leave at their default.
    pub(crate) rare: Option<Box<Rare>>,
}

/// Fields that most entries leave at their default; names as in [`Entry`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rare {
    pub(crate) x509_svid_ttl: u32,
    pub(crate) jwt_svid_ttl: u32,
    pub(crate) expires_at: i64,
    pub(crate) admin: bool,
    pub(crate) downstream: bool,
    pub(crate) store_svid: bool,
    pub(crate) additional_attributes: Option<AdditionalAttributes>,
    pub(crate) federates_with: Box<[TrustDomain]>,
    pub(crate) dns_names: Box<[Box<str>]>,
    pub(crate) hint: Box<str>,
}

impl Rare {
    /// The rare fields of `entry`, when one is set. `shared` gives the trust domain that is
    /// kept already.
    pub(crate) fn of(
        entry: &Entry,
        shared: impl FnMut(&TrustDomain) -> TrustDomain,
    ) -> Option<Box<Self>> {
        let rare = Self {
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            expires_at: entry.expires_at,
            admin: entry.admin,
            downstream: entry.downstream,
            store_svid: entry.store_svid,
            additional_attributes: entry.additional_attributes,
            federates_with: entry.federates_with.iter().map(shared).collect(),
            dns_names: entry
                .dns_names
                .iter()
                .map(|name| name.as_str().into())
                .collect(),
            hint: entry.hint.as_str().into(),
        };
        (rare != Self::default()).then(|| Box::new(rare))
    }
}

impl Compact {
    /// When it expires, in Unix seconds; 0 = never.
    pub(crate) fn expires_at(&self) -> i64 {
        self.rare.as_ref().map_or(0, |rare| rare.expires_at)
    }
}
