//! Signing authorities on disk: what rotation and the bundle are computed from.
//!
//! No private key is here: `key_ref` names it in the key manager of the owner.

use prost::Message as _;
use vane_identity::key::PublicKey;
use vane_identity::x509_svid::Certificate;

use super::{Record, RecordError};
use crate::generated::vane::store::v1::{self, authority};

/// A signing authority of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityRecord {
    /// X.509: lower-case hex of the key identifier; JWT: the `kid`.
    pub id: String,
    /// What it signs, with its public half.
    pub kind: AuthorityKind,
    /// Where it stands in its life.
    pub state: AuthorityState,
    /// The `server_id` of the server that alone may move it.
    pub owner: String,
    /// The owner's name for the private key.
    pub key_ref: String,
    /// Seconds since the Unix epoch at which it was made.
    pub issued_at: i64,
    /// Seconds since the Unix epoch at which it ends.
    pub not_after: i64,
    /// Seconds since the Unix epoch at which it became active; 0 = it never was.
    pub activated_at: i64,
}

/// What an authority signs, with what others verify it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityKind {
    /// X.509-SVIDs.
    X509 {
        /// Its CA certificate.
        certificate_der: Certificate,
    },
    /// JWT-SVIDs.
    Jwt {
        /// Its public key (PKIX).
        public_key_pkix: PublicKey,
    },
}

/// Where an authority stands. Only the owner moves it, and only forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorityState {
    /// In the bundle, not signing yet.
    Prepared,
    /// Signing.
    Active,
    /// No longer signing, still verified.
    Old,
    /// Still verified, but nothing it signed should be served.
    Tainted,
    /// No longer in the bundle.
    Revoked,
}

impl Record for AuthorityRecord {
    fn encode(&self) -> Vec<u8> {
        let (kind, certificate, public_key) = kind_to_wire(&self.kind);
        v1::Authority {
            id: self.id.clone(),
            kind: kind.into(),
            certificate,
            public_key,
            state: state_to_wire(self.state).into(),
            owner: self.owner.clone(),
            key_ref: self.key_ref.clone(),
            issued_at: self.issued_at,
            not_after: self.not_after,
            activated_at: self.activated_at,
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::Authority::decode(bytes)?;
        Ok(Self {
            kind: kind_from_wire(&wire)?,
            state: state_from_wire(wire.state)?,
            id: wire.id,
            owner: wire.owner,
            key_ref: wire.key_ref,
            issued_at: wire.issued_at,
            not_after: wire.not_after,
            activated_at: wire.activated_at,
        })
    }
}

fn kind_to_wire(kind: &AuthorityKind) -> (authority::Kind, Vec<u8>, Vec<u8>) {
    match kind {
        AuthorityKind::X509 { certificate_der } => (
            authority::Kind::X509,
            certificate_der.der().to_vec(),
            Vec::new(),
        ),
        AuthorityKind::Jwt { public_key_pkix } => (
            authority::Kind::Jwt,
            Vec::new(),
            public_key_pkix.spki().to_vec(),
        ),
    }
}

fn kind_from_wire(wire: &v1::Authority) -> Result<AuthorityKind, RecordError> {
    match wire.kind() {
        authority::Kind::X509 => Ok(AuthorityKind::X509 {
            certificate_der: Certificate::from_der(&wire.certificate),
        }),
        authority::Kind::Jwt => Ok(AuthorityKind::Jwt {
            public_key_pkix: PublicKey::from_spki(&wire.public_key),
        }),
        authority::Kind::Unspecified => Err(RecordError::Unknown {
            field: "kind",
            value: wire.kind,
        }),
    }
}

fn state_to_wire(state: AuthorityState) -> authority::State {
    match state {
        AuthorityState::Prepared => authority::State::Prepared,
        AuthorityState::Active => authority::State::Active,
        AuthorityState::Old => authority::State::Old,
        AuthorityState::Tainted => authority::State::Tainted,
        AuthorityState::Revoked => authority::State::Revoked,
    }
}

fn state_from_wire(value: i32) -> Result<AuthorityState, RecordError> {
    match authority::State::try_from(value) {
        Ok(authority::State::Prepared) => Ok(AuthorityState::Prepared),
        Ok(authority::State::Active) => Ok(AuthorityState::Active),
        Ok(authority::State::Old) => Ok(AuthorityState::Old),
        Ok(authority::State::Tainted) => Ok(AuthorityState::Tainted),
        Ok(authority::State::Revoked) => Ok(AuthorityState::Revoked),
        Ok(authority::State::Unspecified) | Err(_) => Err(RecordError::Unknown {
            field: "state",
            value,
        }),
    }
}
