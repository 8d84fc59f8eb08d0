//! Registration entries: reading, writing, masks and updates (SPIRE.md 3.3 "Entry validation").
//!
//! An entry comes from two sides. A client of the admin API sends one to be stored: [`create`]
//! and [`merge`] apply every rule of the server's trust domain. A server sends one to its
//! agent: [`from_wire`] wants the fields valid and the IDs of the trust domain. The limits of the fields are the constants
//! of [`vane_identity::entry`] and [`vane_identity::selector`].

use vane_identity::entry::{
    AdditionalAttributes, Entry, EntryError, EntryId, MAX_DNS_NAMES, MAX_FEDERATES_WITH,
    MAX_HINT_BYTES, check_dns_name,
};
use vane_identity::id::{IdError, SpiffeId, TrustDomain};

use super::id::{self, IdRefusal};
use super::selector::{self, SetRefusal};
use crate::generated::spire::api::types::{self, EntryMask};

#[cfg(test)]
mod tests;

/// Why a message is no entry that may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryRefusal {
    /// The parent ID.
    #[error("invalid parent ID: {0}")]
    ParentId(#[source] IdRefusal),
    /// The SPIFFE ID.
    #[error("invalid spiffe ID: {0}")]
    SpiffeId(#[source] IdRefusal),
    /// A trust domain to federate with.
    #[error("invalid federated trust domain: {0}")]
    FederatesWith(#[source] IdError),
    /// A selector, or the number of something.
    #[error(transparent)]
    Set(SetRefusal),
    /// A lifetime below zero.
    #[error("{field} is negative: {value}")]
    NegativeTtl {
        /// Which.
        field: &'static str,
        /// Seconds.
        value: i32,
    },
    /// A rule of entries.
    #[error(transparent)]
    Rule(#[from] EntryError),
}

impl From<SetRefusal> for EntryRefusal {
    fn from(refusal: SetRefusal) -> Self {
        match refusal {
            SetRefusal::TrustDomain(error) => Self::FederatesWith(error),
            other => Self::Set(other),
        }
    }
}

impl From<&Entry> for types::Entry {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id.as_str().to_owned(),
            spiffe_id: Some((&entry.spiffe_id).into()),
            parent_id: Some((&entry.parent_id).into()),
            selectors: selector::to_wire(&entry.selectors),
            x509_svid_ttl: ttl_to_wire(entry.x509_svid_ttl),
            federates_with: entry.federates_with.iter().map(name).collect(),
            admin: entry.admin,
            downstream: entry.downstream,
            expires_at: entry.expires_at,
            dns_names: entry.dns_names.clone(),
            revision_number: entry.revision_number,
            store_svid: entry.store_svid,
            jwt_svid_ttl: ttl_to_wire(entry.jwt_svid_ttl),
            hint: entry.hint.clone(),
            created_at: entry.created_at,
            additional_attributes: entry.additional_attributes.map(Into::into),
        }
    }
}

/// What came from a wire is at most `i32::MAX`; a greater number in memory is cut.
fn ttl_to_wire(seconds: u32) -> i32 {
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

fn name(trust_domain: &TrustDomain) -> String {
    trust_domain.as_str().to_owned()
}

impl TryFrom<&types::Entry> for Entry {
    type Error = EntryRefusal;

    /// Reads an entry of any trust domain, without the rules for storing.
    fn try_from(wire: &types::Entry) -> Result<Self, EntryRefusal> {
        read(wire, EntryId::parse(&wire.id)?, None)
    }
}

/// Reads an entry that the server of `own` sent: its two IDs must lie in `own`.
///
/// # Errors
/// As `TryFrom`, and an ID of another trust domain.
pub fn from_wire(wire: &types::Entry, own: &TrustDomain) -> Result<Entry, EntryRefusal> {
    let entry = Entry::try_from(wire)?;
    let foreign = |id: &SpiffeId| {
        let refusal = || IdRefusal::Foreign(id.clone(), own.clone());
        (!id.is_member_of(own)).then(refusal)
    };
    match (foreign(&entry.parent_id), foreign(&entry.spiffe_id)) {
        (Some(parent), _) => Err(EntryRefusal::ParentId(parent)),
        (None, Some(spiffe)) => Err(EntryRefusal::SpiffeId(spiffe)),
        (None, None) => Ok(entry),
    }
}

/// Reads an entry to be stored by the server of `own`, as revision 0, made at `created_at`
/// (Unix seconds). An ID that is not given is taken from `fresh`.
///
/// # Errors
/// The first rule broken, in SPIRE's order.
pub fn create(
    wire: &types::Entry,
    own: &TrustDomain,
    created_at: i64,
    fresh: impl FnOnce() -> EntryId,
) -> Result<Entry, EntryRefusal> {
    let id = if wire.id.is_empty() {
        fresh()
    } else {
        EntryId::parse(&wire.id)?
    };
    Ok(Entry {
        revision_number: 0,
        created_at,
        ..read(wire, id, Some(own))?
    })
}

/// `existing` after an update: the fields of `input_mask` (all when there is none) are those of
/// `wire`, the revision is one higher. ID, creation and revision are never taken from `wire`.
/// Fields outside the mask are not looked at.
///
/// # Errors
/// The first rule broken, in SPIRE's order, by a masked field or by the result.
pub fn merge(
    existing: &Entry,
    wire: &types::Entry,
    input_mask: Option<&EntryMask>,
    own: &TrustDomain,
) -> Result<Entry, EntryRefusal> {
    let merged = overlay(existing.into(), wire, input_mask);
    Ok(Entry {
        revision_number: existing.revision_number.saturating_add(1),
        created_at: existing.created_at,
        ..read(&merged, existing.id.clone(), Some(own))?
    })
}

fn overlay(mut under: types::Entry, over: &types::Entry, mask: Option<&EntryMask>) -> types::Entry {
    let Some(mask) = mask else {
        return over.clone();
    };
    macro_rules! take {
        ($($field:ident)+) => {
            $(if mask.$field {
                under.$field.clone_from(&over.$field);
            })+
        };
    }
    take!(spiffe_id parent_id selectors x509_svid_ttl federates_with admin downstream
        expires_at dns_names store_svid jwt_svid_ttl hint additional_attributes);
    under
}

/// The fields of `entry` that `mask` names; all of them without a mask, the ID always.
#[must_use]
pub fn apply_mask(mut entry: types::Entry, mask: Option<&EntryMask>) -> types::Entry {
    let Some(mask) = mask else {
        return entry;
    };
    macro_rules! keep {
        ($($field:ident)+) => {
            $(if !mask.$field {
                entry.$field = Default::default();
            })+
        };
    }
    keep!(spiffe_id parent_id selectors x509_svid_ttl federates_with admin downstream
        expires_at dns_names revision_number store_svid jwt_svid_ttl hint created_at
        additional_attributes);
    entry
}

/// Reads in the order in which SPIRE checks, so that the first error is the same. With `own`
/// the rules for storing apply as well.
fn read(
    wire: &types::Entry,
    id: EntryId,
    own: Option<&TrustDomain>,
) -> Result<Entry, EntryRefusal> {
    let (parent_id, spiffe_id) = read_ids(wire, own)?;
    if own.is_some() {
        wire.dns_names
            .iter()
            .take(MAX_DNS_NAMES)
            .try_for_each(|name| check_dns_name(name))?;
    }
    let federates_with = read_federates_with(&wire.federates_with)?;
    let entry = Entry {
        id,
        spiffe_id,
        parent_id,
        selectors: selector::from_wire(&wire.selectors)?,
        x509_svid_ttl: ttl_from_wire("x509_svid_ttl", wire.x509_svid_ttl)?,
        federates_with,
        admin: wire.admin,
        downstream: wire.downstream,
        expires_at: wire.expires_at,
        dns_names: wire.dns_names.clone(),
        revision_number: wire.revision_number,
        store_svid: wire.store_svid,
        jwt_svid_ttl: ttl_from_wire("jwt_svid_ttl", wire.jwt_svid_ttl)?,
        hint: wire.hint.clone(),
        created_at: wire.created_at,
        additional_attributes: attributes(wire),
    };
    match own {
        Some(own) => entry.check(own)?,
        None => check_sizes(&entry)?,
    }
    Ok(entry)
}

fn read_ids(
    wire: &types::Entry,
    own: Option<&TrustDomain>,
) -> Result<(SpiffeId, SpiffeId), EntryRefusal> {
    let (parent, spiffe) = (wire.parent_id.as_ref(), wire.spiffe_id.as_ref());
    let (parent, spiffe) = match own {
        Some(own) => (id::member(own, parent), id::workload(own, spiffe)),
        None => (id::any(parent), id::any(spiffe)),
    };
    let parent = parent.map_err(EntryRefusal::ParentId)?;
    Ok((parent, spiffe.map_err(EntryRefusal::SpiffeId)?))
}

fn read_federates_with(names: &[String]) -> Result<Vec<TrustDomain>, EntryRefusal> {
    let what = "federated trust domains";
    Ok(selector::trust_domains(what, names, MAX_FEDERATES_WITH)?)
}

fn ttl_from_wire(field: &'static str, value: i32) -> Result<u32, EntryRefusal> {
    u32::try_from(value).map_err(|_| EntryRefusal::NegativeTtl { field, value })
}

/// SPIRE: attributes of which none is set are none.
fn attributes(wire: &types::Entry) -> Option<AdditionalAttributes> {
    let attributes: AdditionalAttributes = wire.additional_attributes?.into();
    (attributes != AdditionalAttributes::default()).then_some(attributes)
}

/// What of the rules concerns memory, also of an entry that a server sent.
fn check_sizes(entry: &Entry) -> Result<(), EntryError> {
    let (what, count, max) = ("DNS names", entry.dns_names.len(), MAX_DNS_NAMES);
    if count > max {
        return Err(EntryError::TooMany { what, count, max });
    }
    if entry.hint.len() > MAX_HINT_BYTES {
        return Err(EntryError::HintLength(entry.hint.len()));
    }
    Ok(())
}

impl From<AdditionalAttributes> for types::entry::AdditionalAttributes {
    fn from(attributes: AdditionalAttributes) -> Self {
        Self {
            disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
            jwt_svid_include_jti: attributes.jwt_svid_include_jti,
        }
    }
}

impl From<types::entry::AdditionalAttributes> for AdditionalAttributes {
    fn from(wire: types::entry::AdditionalAttributes) -> Self {
        Self {
            disable_x509_svid_prefetch: wire.disable_x509_svid_prefetch,
            jwt_svid_include_jti: wire.jwt_svid_include_jti,
        }
    }
}
