//! Values as bytes on disk: `vane.store.v1` protobuf, without frame.
//!
//! The store frames what [`Record::encode`] returns (version byte, checksum) and keeps it
//! under keys of its own; here is only what a record says. Decoding is total: bytes that do
//! not make a valid value are an error that names the field, never a half-filled value.
//! Field numbers are stable, see `protos/vane/store/v1/store.proto`.

use vane_identity::entry::EntryError;
use vane_identity::id::{IdError, SpiffeId};
use vane_identity::selector::{Selector, SelectorError, SelectorSet};

use crate::generated::vane::store::v1;

mod agent;
mod authority;
mod bundle;
mod entry;
mod join_token;
mod sealed;
#[cfg(test)]
mod tests;

pub use agent::{AgentRecord, Previous};
pub use authority::{AuthorityKind, AuthorityRecord, AuthorityState};
pub use join_token::{JoinTokenRecord, TokenUse};
pub use sealed::{SealedHeader, SealedJwtSvid, SealedState, SealedStateBytes, SealedX509Svid};

/// A value that is kept in the store.
pub trait Record: Sized {
    /// The bytes of `self`.
    fn encode(&self) -> Vec<u8>;

    /// Reads what [`Record::encode`] wrote, in this or an earlier version.
    ///
    /// # Errors
    /// [`RecordError`] when the bytes are damaged or of a meaning unknown here.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError>;
}

/// Why bytes are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are no protobuf message of that type.
    #[error("malformed record: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A SPIFFE ID or trust domain is not valid.
    #[error("record has a bad {field}: {source}")]
    Id {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: IdError,
    },
    /// A selector is not valid.
    #[error("record has a bad selector: {0}")]
    Selector(#[from] SelectorError),
    /// The ID of an entry is not valid.
    #[error("record has a bad entry ID: {0}")]
    EntryId(#[from] EntryError),
    /// An enumeration has a value unknown here.
    #[error("record has {value} as {field}, which this version does not know")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its number.
        value: i32,
    },
    /// A field of fixed length has another one.
    #[error("record has {len} bytes of {field}, {expected} are needed")]
    Length {
        /// Which field.
        field: &'static str,
        /// Bytes seen.
        len: usize,
        /// Bytes needed.
        expected: usize,
    },
}

fn id(field: &'static str, text: &str) -> Result<SpiffeId, RecordError> {
    SpiffeId::parse(text).map_err(|source| RecordError::Id { field, source })
}

fn optional_id(field: &'static str, text: &str) -> Result<Option<SpiffeId>, RecordError> {
    if text.is_empty() {
        return Ok(None);
    }
    id(field, text).map(Some)
}

fn sha256(field: &'static str, bytes: &[u8]) -> Result<[u8; 32], RecordError> {
    bytes.try_into().map_err(|_| RecordError::Length {
        field,
        len: bytes.len(),
        expected: 32,
    })
}

fn selectors_to_wire(selectors: &SelectorSet) -> Vec<v1::Selector> {
    selectors
        .iter()
        .map(|one| v1::Selector {
            r#type: one.kind().to_owned(),
            value: one.value().to_owned(),
        })
        .collect()
}

fn selectors_from_wire(selectors: &[v1::Selector]) -> Result<SelectorSet, RecordError> {
    selectors
        .iter()
        .map(|one| Selector::new(&one.r#type, &one.value).map_err(RecordError::from))
        .collect()
}
