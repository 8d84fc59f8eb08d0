//! Registration entries: which process, attested by which selectors under which parent,
//! gets which SPIFFE ID (all 16 fields of SPIRE's `types.Entry`).
//!
//! The parts of an entry are valid by type; [`Entry::check`] adds the rules between and
//! beyond them. Texts of errors are SPIRE's where it has one.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crate::id::{SpiffeId, TrustDomain};
use crate::lifetime::to_unix;
use crate::selector::SelectorSet;

/// The most bytes in an entry's ID.
pub const MAX_ENTRY_ID_BYTES: usize = 255;
/// The most bytes in a hint (SPIFFE_Workload_API.md section 5.2.1).
pub const MAX_HINT_BYTES: usize = 1024;
/// The most bytes in a DNS name (RFC 1035 section 2.3.4, without the root's dot).
pub const MAX_DNS_NAME_BYTES: usize = 253;
/// The most bytes in a label of a DNS name.
pub const MAX_DNS_LABEL_BYTES: usize = 63;
/// The most selectors of an entry.
pub const MAX_SELECTORS: usize = 256;
/// The most DNS names of an entry.
pub const MAX_DNS_NAMES: usize = 128;
/// The most trust domains an entry federates with.
pub const MAX_FEDERATES_WITH: usize = 256;

/// The ID of an entry: 1 to [`MAX_ENTRY_ID_BYTES`] of `[-._A-Za-z0-9]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(Arc<str>);

/// A registration entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its ID, unique in the trust domain.
    pub id: EntryId,
    /// The SPIFFE ID that a matching process gets.
    pub spiffe_id: SpiffeId,
    /// The agent, or a node alias, or another entry's ID, under which it is served.
    pub parent_id: SpiffeId,
    /// What a process must show, all of it.
    pub selectors: SelectorSet,
    /// Seconds an X.509-SVID lives; 0 = the server's default.
    pub x509_svid_ttl: u32,
    /// Foreign trust domains whose bundles the process gets, sorted, without duplicates.
    pub federates_with: Vec<TrustDomain>,
    /// Whether the ID may call the admin APIs.
    pub admin: bool,
    /// Whether the ID may ask for an intermediate CA.
    pub downstream: bool,
    /// Seconds since the Unix epoch after which it no longer counts; 0 = never.
    pub expires_at: i64,
    /// DNS SANs of its X.509-SVIDs; the first becomes the common name.
    pub dns_names: Vec<String>,
    /// Counts the updates of this entry, from 0.
    pub revision_number: i64,
    /// Whether SVIDs are pushed to a store instead of served.
    pub store_svid: bool,
    /// Seconds a JWT-SVID lives; 0 = the server's default.
    pub jwt_svid_ttl: u32,
    /// What the workload may know the identity by; at most [`MAX_HINT_BYTES`].
    pub hint: String,
    /// Seconds since the Unix epoch at its creation; never changes.
    pub created_at: i64,
    /// SPIRE's additional attributes.
    pub additional_attributes: Option<AdditionalAttributes>,
}

/// SPIRE's `Entry.AdditionalAttributes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AdditionalAttributes {
    /// Do not fetch the X.509-SVID ahead.
    pub disable_x509_svid_prefetch: bool,
    /// Put a `jti` into JWT-SVIDs.
    pub jwt_svid_include_jti: bool,
}

/// Which rule an entry breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The ID is empty, too long, or has other characters.
    #[error("entry ID must be 1 to {MAX_ENTRY_ID_BYTES} characters of [-._A-Za-z0-9], got {0:?}")]
    Id(String),
    /// The SPIFFE ID is not one of the server's trust domain.
    #[error("invalid spiffe ID: \"{0}\" is not a member of trust domain \"{1}\"")]
    ForeignSpiffeId(SpiffeId, TrustDomain),
    /// The parent ID is not one of the server's trust domain.
    #[error("invalid parent ID: \"{0}\" is not a member of trust domain \"{1}\"")]
    ForeignParentId(SpiffeId, TrustDomain),
    /// The SPIFFE ID has no path.
    #[error("invalid spiffe ID: \"{0}\" is not a workload in trust domain \"{1}\"; path is empty")]
    SpiffeIdWithoutPath(SpiffeId, TrustDomain),
    /// The SPIFFE ID is `/spire` or below it.
    #[error("invalid spiffe ID: \"{0}\" is in the reserved \"/spire\" namespace")]
    ReservedSpiffeId(SpiffeId),
    /// The parent ID has no path.
    #[error("invalid parent ID: \"{0}\" is not a member of trust domain \"{1}\"; path is empty")]
    ParentIdWithoutPath(SpiffeId, TrustDomain),
    /// There is no selector.
    #[error("selector list is empty")]
    NoSelectors,
    /// There is more of something than is allowed.
    #[error("too many {what}: {count}, {max} are allowed")]
    TooMany {
        /// The field.
        what: &'static str,
        /// Seen.
        count: usize,
        /// Allowed.
        max: usize,
    },
    /// A DNS name that cannot stand in a certificate.
    #[error("invalid DNS name: {name:?}: {why}")]
    DnsName {
        /// The name.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// The hint is too long.
    #[error("hint is too long, max length is {MAX_HINT_BYTES} characters")]
    HintLength(usize),
    /// It federates with its own trust domain.
    #[error("invalid federated trust domain: \"{0}\" is the server's own trust domain")]
    FederatesWithItself(TrustDomain),
    /// `store_svid` wants selectors of one type only.
    #[error("selector types must be the same when store SVID is enabled")]
    StoreSvidSelectors,
    /// `store_svid` cannot go without prefetching.
    #[error("store SVID cannot be combined with disabled X509-SVID prefetch")]
    StoreSvidWithoutPrefetch,
    /// The expiry lies before the Unix epoch.
    #[error("expires_at is negative: {0}")]
    NegativeExpiry(i64),
}

impl EntryId {
    /// Reads an entry ID.
    ///
    /// # Errors
    /// [`EntryError::Id`].
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if text.is_empty() || text.len() > MAX_ENTRY_ID_BYTES || !text.bytes().all(allowed) {
            let shown: String = text.chars().take(MAX_ENTRY_ID_BYTES).collect();
            return Err(EntryError::Id(shown));
        }
        Ok(Self(text.into()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Entry {
    /// Checks what the types of the fields do not say, for a server of `trust_domain`.
    ///
    /// # Errors
    /// The first rule broken, in the order in which SPIRE checks.
    pub fn check(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        self.check_ids(trust_domain)?;
        at_most("DNS names", self.dns_names.len(), MAX_DNS_NAMES)?;
        self.dns_names
            .iter()
            .try_for_each(|name| check_dns_name(name))?;
        at_most(
            "federated trust domains",
            self.federates_with.len(),
            MAX_FEDERATES_WITH,
        )?;
        if self.federates_with.contains(trust_domain) {
            return Err(EntryError::FederatesWithItself(trust_domain.clone()));
        }
        if self.selectors.is_empty() {
            return Err(EntryError::NoSelectors);
        }
        at_most("selectors", self.selectors.len(), MAX_SELECTORS)?;
        if self.hint.len() > MAX_HINT_BYTES {
            return Err(EntryError::HintLength(self.hint.len()));
        }
        if self.expires_at < 0 {
            return Err(EntryError::NegativeExpiry(self.expires_at));
        }
        self.check_store_svid()
    }

    /// A DNS name that is there twice.
    #[must_use]
    pub fn doubled_dns_name(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        let mut names = self.dns_names.iter().map(String::as_str);
        names.find(|name| !seen.insert(*name))
    }

    fn check_ids(&self, trust_domain: &TrustDomain) -> Result<(), EntryError> {
        let (parent, id, own) = (&self.parent_id, &self.spiffe_id, trust_domain);
        if !parent.is_member_of(own) {
            return Err(EntryError::ForeignParentId(parent.clone(), own.clone()));
        }
        if parent.path().is_empty() {
            return Err(EntryError::ParentIdWithoutPath(parent.clone(), own.clone()));
        }
        if !id.is_member_of(own) {
            return Err(EntryError::ForeignSpiffeId(id.clone(), own.clone()));
        }
        if id.path().is_empty() {
            return Err(EntryError::SpiffeIdWithoutPath(id.clone(), own.clone()));
        }
        if id.is_reserved() {
            return Err(EntryError::ReservedSpiffeId(id.clone()));
        }
        Ok(())
    }

    fn check_store_svid(&self) -> Result<(), EntryError> {
        if !self.store_svid {
            return Ok(());
        }
        let mut kinds = self.selectors.iter().map(|selector| selector.kind());
        let first = kinds.next();
        if kinds.any(|kind| Some(kind) != first) {
            return Err(EntryError::StoreSvidSelectors);
        }
        if self.prefetch_disabled() {
            return Err(EntryError::StoreSvidWithoutPrefetch);
        }
        Ok(())
    }

    /// Whether its X.509-SVID is not to be fetched ahead.
    #[must_use]
    pub fn prefetch_disabled(&self) -> bool {
        self.additional_attributes
            .is_some_and(|attributes| attributes.disable_x509_svid_prefetch)
    }

    /// Whether it no longer counts at `now`.
    #[must_use]
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires_at != 0 && self.expires_at <= to_unix(now)
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), EntryError> {
    if count > max {
        return Err(EntryError::TooMany { what, count, max });
    }
    Ok(())
}

/// Checks a DNS name for a SAN: ASCII labels (IDNA in its ASCII form), a wildcard only as the
/// whole first label.
///
/// # Errors
/// [`EntryError::DnsName`].
pub fn check_dns_name(name: &str) -> Result<(), EntryError> {
    let refuse = |why| EntryError::DnsName {
        name: name.chars().take(MAX_DNS_NAME_BYTES).collect(),
        why,
    };
    if name.is_empty() {
        return Err(refuse("empty or only whitespace"));
    }
    if name.len() > MAX_DNS_NAME_BYTES {
        return Err(refuse("longer than 253 bytes"));
    }
    let rest = name.strip_prefix("*.").unwrap_or(name);
    rest.split('.')
        .try_for_each(|label| check_dns_label(label).map_err(refuse))
}

fn check_dns_label(label: &str) -> Result<(), &'static str> {
    if label.is_empty() {
        return Err("label is empty");
    }
    if label.len() > MAX_DNS_LABEL_BYTES {
        return Err("label is longer than 63 bytes");
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("label does not match regex: ^[a-zA-Z0-9]([-]*[a-zA-Z0-9])*$");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if label.contains('*') {
        return Err("wildcard is only allowed as the first label");
    }
    if !label.bytes().all(allowed) {
        return Err("label does not match regex: ^[a-zA-Z0-9]([-]*[a-zA-Z0-9])*$");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
