//! An entry in memory: texts by number, what is rarely set in one piece of bytes.
//!
//! About 110 bytes where an [`Entry`] has 300 and its texts: a million fit beside the store.

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
    /// As in [`Entry`].
    pub(crate) expires_at: i64,
    /// As in [`Entry`].
    pub(crate) x509_svid_ttl: u32,
    /// As in [`Entry`].
    pub(crate) jwt_svid_ttl: u32,
    /// Whether it counts: it did not expire.
    pub(crate) live: bool,
    /// As in [`Entry`].
    pub(crate) flags: Flags,
    /// Its texts that are no IDs or selectors.
    pub(crate) texts: Texts,
}

/// The fields of an entry that are true or false.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) admin: bool,
    pub(crate) downstream: bool,
    pub(crate) store_svid: bool,
    pub(crate) additional_attributes: Option<AdditionalAttributes>,
}

/// The hint, DNS names and federated trust domains of an entry, each behind its kind and
/// length; none of them costs nothing but 16 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Texts(Box<[u8]>);

/// What a text is. The numbers stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hint = 0,
    DnsName = 1,
    FederatesWith = 2,
}

/// Kind, then the length of the text (at most 1,024) in two bytes.
const HEADER: usize = 3;

impl Flags {
    /// Those of `entry`.
    pub(crate) fn of(entry: &Entry) -> Self {
        Self {
            admin: entry.admin,
            downstream: entry.downstream,
            store_svid: entry.store_svid,
            additional_attributes: entry.additional_attributes,
        }
    }
}

impl Texts {
    /// Those of `entry`.
    pub(crate) fn of(entry: &Entry) -> Self {
        let hint = Some(entry.hint.as_str()).filter(|hint| !hint.is_empty());
        let hint = hint.map(|hint| (Kind::Hint, hint)).into_iter();
        let names = entry.dns_names.iter();
        let names = names.map(|name| (Kind::DnsName, name.as_str()));
        let domains = entry.federates_with.iter();
        let domains = domains.map(|domain| (Kind::FederatesWith, domain.as_str()));
        let mut bytes = Vec::new();
        for (kind, text) in hint.chain(names).chain(domains) {
            // Longer ones cannot be in an entry that was checked.
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            bytes.push(kind as u8);
            bytes.extend(length.to_be_bytes());
            bytes.extend(text.bytes().take(length.into()));
        }
        Self(bytes.into())
    }

    /// The hint; empty when there is none.
    pub(crate) fn hint(&self) -> &str {
        self.all(Kind::Hint).next().unwrap_or_default()
    }

    /// The DNS names in their order.
    pub(crate) fn dns_names(&self) -> Vec<String> {
        self.all(Kind::DnsName).map(str::to_owned).collect()
    }

    /// The federated trust domains in their order.
    pub(crate) fn federates_with(&self) -> Vec<TrustDomain> {
        self.all(Kind::FederatesWith)
            .filter_map(|name| TrustDomain::parse(name).ok())
            .collect()
    }

    fn all(&self, wanted: Kind) -> impl Iterator<Item = &str> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (&[kind, high, low], after) = rest.split_first_chunk::<HEADER>()?;
            let length = u16::from_be_bytes([high, low]);
            let (text, after) = after.split_at_checked(length.into())?;
            rest = after;
            Some((kind, text))
        })
        .filter(move |(kind, _)| *kind == wanted as u8)
        .filter_map(|(_, text)| std::str::from_utf8(text).ok())
    }
}
