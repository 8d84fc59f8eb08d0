//! What an agent keeps sealed on its disk: the set of the server, and SVIDs with their keys.
//!
//! Only what it says; the agent seals it. Bytes that hold keys are wiped when dropped.

use prost::Message as _;
use vane_identity::bundle::Bundle;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PrivateKey;
use zeroize::Zeroizing;

use super::{Record, RecordError, id};
use crate::generated::vane::agent::v1;

/// What stands before the sealed part, in clear and covered by the seal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedHeader {
    /// The trust domain of the agent.
    pub trust_domain: TrustDomain,
    /// The agent that sealed it.
    pub agent_id: SpiffeId,
    /// The epoch of the server's set; empty when the server has none.
    pub epoch: Vec<u8>,
    /// The revision of the server's set.
    pub revision: u64,
    /// Grows with each file.
    pub counter: u64,
    /// When it was sealed, in milliseconds since 1970.
    pub sealed_at: i64,
}

/// The sealed part.
#[derive(Debug, Default)]
pub struct SealedState {
    /// The entries of the agent.
    pub entries: Vec<Entry>,
    /// The bundles.
    pub bundles: Vec<Bundle>,
    /// The revision of the bundles.
    pub bundle_revision: u64,
    /// X.509-SVIDs.
    pub x509_svids: Vec<SealedX509Svid>,
    /// JWT-SVIDs.
    pub jwt_svids: Vec<SealedJwtSvid>,
}

/// An X.509-SVID with its key.
#[derive(Debug, Clone)]
pub struct SealedX509Svid {
    /// Its entry.
    pub entry_id: EntryId,
    /// The chain as DER, leaf first, concatenated.
    pub chain: Vec<u8>,
    /// Its private key.
    pub key: PrivateKey,
    /// Its last valid second since 1970.
    pub not_after: i64,
    /// When it was received, in milliseconds since 1970.
    pub received_at: i64,
    /// When it is replaced, in milliseconds since 1970.
    pub renew_at: i64,
    /// The key identifier of its signer, hex.
    pub authority: String,
    /// The entry's revision number and creation time that it was issued for.
    pub revision: (i64, i64),
}

/// A JWT-SVID.
#[derive(Clone)]
pub struct SealedJwtSvid {
    /// Its entry.
    pub entry_id: EntryId,
    /// Whom it is for, sorted.
    pub audience: Vec<String>,
    /// The token.
    pub token: Zeroizing<String>,
    /// When it is replaced, in milliseconds since 1970.
    pub renew_at: i64,
    /// Its last valid second since 1970.
    pub expires_at: i64,
    /// The entry's revision number and creation time that it was issued for.
    pub revision: (i64, i64),
}

impl std::fmt::Debug for SealedJwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedJwtSvid")
            .field("entry_id", &self.entry_id)
            .field("audience", &self.audience)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl Record for SealedHeader {
    fn encode(&self) -> Vec<u8> {
        v1::Header {
            trust_domain: self.trust_domain.as_str().to_owned(),
            agent_id: self.agent_id.as_str().to_owned(),
            epoch: self.epoch.clone(),
            revision: self.revision,
            counter: self.counter,
            sealed_at: self.sealed_at,
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::Header::decode(bytes)?;
        let field = "trust_domain";
        Ok(Self {
            trust_domain: TrustDomain::parse(&wire.trust_domain)
                .map_err(|source| RecordError::Id { field, source })?,
            agent_id: id("agent_id", &wire.agent_id)?,
            epoch: wire.epoch,
            revision: wire.revision,
            counter: wire.counter,
            sealed_at: wire.sealed_at,
        })
    }
}

/// Makes the bytes of a [`SealedState`] without having one: what is sealed is shared with those
/// who serve it, and only its keys are copied.
#[derive(Default)]
pub struct SealedStateBytes {
    state: v1::State,
}

impl SealedStateBytes {
    /// For bundles of this revision.
    #[must_use]
    pub fn new(bundle_revision: u64) -> Self {
        let mut bytes = Self::default();
        bytes.state.bundle_revision = bundle_revision;
        bytes
    }

    /// Adds an entry.
    pub fn entry(&mut self, entry: &Entry) {
        self.state.entries.push(entry.encode());
    }

    /// Adds a bundle.
    pub fn bundle(&mut self, bundle: &Bundle) {
        self.state.bundles.push(bundle.encode());
    }

    /// Adds an X.509-SVID.
    pub fn x509_svid(&mut self, svid: SealedX509Svid) {
        let mut wire = v1::X509Svid::default();
        wire.entry_id = svid.entry_id.as_str().to_owned();
        wire.chain = svid.chain;
        wire.key = svid.key.pkcs8().to_vec();
        wire.not_after = svid.not_after;
        wire.received_at = svid.received_at;
        wire.renew_at = svid.renew_at;
        wire.authority = svid.authority;
        (wire.revision_number, wire.created_at) = svid.revision;
        self.state.x509_svids.push(wire);
    }

    /// Adds a JWT-SVID.
    pub fn jwt_svid(&mut self, svid: &SealedJwtSvid) {
        let mut wire = v1::JwtSvid::default();
        wire.entry_id = svid.entry_id.as_str().to_owned();
        wire.audience.clone_from(&svid.audience);
        wire.token = svid.token.as_str().to_owned();
        wire.renew_at = svid.renew_at;
        wire.expires_at = svid.expires_at;
        (wire.revision_number, wire.created_at) = svid.revision;
        self.state.jwt_svids.push(wire);
    }

    /// How many bytes [`Self::append`] adds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.encoded_len()
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the bytes; `buffer` does not move when it has room.
    pub fn append(&self, buffer: &mut Vec<u8>) {
        buffer.reserve(self.len());
        self.state.encode_raw(buffer);
    }
}

impl SealedState {
    /// Reads what [`SealedStateBytes::append`] wrote, in this or an earlier version.
    ///
    /// # Errors
    /// [`RecordError`] when the bytes are damaged or of a meaning unknown here.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut wire = v1::State::decode(bytes)?;
        Ok(Self {
            entries: wire
                .entries
                .iter()
                .map(|bytes| Entry::decode(bytes))
                .collect::<Result<_, _>>()?,
            bundles: wire
                .bundles
                .iter()
                .map(|bytes| Bundle::decode(bytes))
                .collect::<Result<_, _>>()?,
            bundle_revision: wire.bundle_revision,
            x509_svids: wire
                .x509_svids
                .iter_mut()
                .map(SealedX509Svid::from_wire)
                .collect::<Result<_, _>>()?,
            jwt_svids: wire
                .jwt_svids
                .iter_mut()
                .map(SealedJwtSvid::from_wire)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl SealedX509Svid {
    fn from_wire(wire: &mut v1::X509Svid) -> Result<Self, RecordError> {
        Ok(Self {
            entry_id: EntryId::parse(&wire.entry_id)?,
            chain: std::mem::take(&mut wire.chain),
            key: PrivateKey::from_pkcs8(std::mem::take(&mut wire.key)),
            not_after: wire.not_after,
            received_at: wire.received_at,
            renew_at: wire.renew_at,
            authority: std::mem::take(&mut wire.authority),
            revision: (wire.revision_number, wire.created_at),
        })
    }
}

impl SealedJwtSvid {
    fn from_wire(wire: &mut v1::JwtSvid) -> Result<Self, RecordError> {
        Ok(Self {
            entry_id: EntryId::parse(&wire.entry_id)?,
            audience: std::mem::take(&mut wire.audience),
            token: Zeroizing::new(std::mem::take(&mut wire.token)),
            renew_at: wire.renew_at,
            expires_at: wire.expires_at,
            revision: (wire.revision_number, wire.created_at),
        })
    }
}
