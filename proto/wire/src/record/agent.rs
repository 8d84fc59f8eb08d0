//! Attested agents on disk.

use prost::Message as _;
use vane_identity::id::SpiffeId;
use vane_identity::selector::SelectorSet;

use super::{Record, RecordError, id, selectors_from_wire, selectors_to_wire, sha256};
use crate::generated::vane::store::v1;

/// An attested agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its ID: `/spire/agent/…` of the server's trust domain.
    pub spiffe_id: SpiffeId,
    /// Name of the method it proved its node with, e.g. `join_token`.
    pub attestation_type: String,
    /// Serial number of its certificate, decimal; empty when it is banned.
    pub serial: String,
    /// Serial number, decimal, of a renewed certificate that was not seen yet. The first call
    /// with it makes it `serial`; until then both are good.
    pub new_serial: Option<String>,
    /// Seconds since the Unix epoch at which the certificate `serial` ends.
    pub not_after: i64,
    /// The same for `new_serial`; 0 without one.
    pub new_not_after: i64,
    /// What attestation found out about the node.
    pub selectors: SelectorSet,
    /// Whether it may no longer attest, renew or call.
    pub banned: bool,
    /// Whether its method can be repeated (then it attests again instead of renewing).
    pub can_reattest: bool,
    /// What it says its version is (PostStatus).
    pub agent_version: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the CSR it attested with last, by which a
    /// repeated attestation is recognised.
    pub csr_key_sha256: Option<[u8; 32]>,
    /// The certificate before `serial`, which is good for a while: another process of the agent
    /// may still show it.
    pub previous: Option<Previous>,
}

/// A certificate that was replaced by one that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Previous {
    /// Its serial number, decimal.
    pub serial: String,
    /// The last second in which it is good, since the Unix epoch.
    pub until: i64,
}

impl Record for AgentRecord {
    fn encode(&self) -> Vec<u8> {
        let previous = self.previous.as_ref();
        v1::Agent {
            spiffe_id: self.spiffe_id.as_str().to_owned(),
            attestation_type: self.attestation_type.clone(),
            serial: self.serial.clone(),
            not_after: self.not_after,
            new_serial: self.new_serial.clone().unwrap_or_default(),
            new_not_after: self.new_not_after,
            selectors: selectors_to_wire(&self.selectors),
            banned: self.banned,
            can_reattest: self.can_reattest,
            agent_version: self.agent_version.clone(),
            csr_key_sha256: self.csr_key_sha256.map(Vec::from).unwrap_or_default(),
            previous_serial: previous.map(|it| it.serial.clone()).unwrap_or_default(),
            previous_until: previous.map(|it| it.until).unwrap_or_default(),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::Agent::decode(bytes)?;
        Ok(Self {
            spiffe_id: id("spiffe_id", &wire.spiffe_id)?,
            attestation_type: wire.attestation_type,
            serial: wire.serial,
            new_serial: Some(wire.new_serial).filter(|serial| !serial.is_empty()),
            not_after: wire.not_after,
            new_not_after: wire.new_not_after,
            selectors: selectors_from_wire(&wire.selectors)?,
            banned: wire.banned,
            can_reattest: wire.can_reattest,
            agent_version: wire.agent_version,
            csr_key_sha256: optional_sha256(&wire.csr_key_sha256)?,
            previous: (!wire.previous_serial.is_empty()).then_some(Previous {
                serial: wire.previous_serial,
                until: wire.previous_until,
            }),
        })
    }
}

fn optional_sha256(bytes: &[u8]) -> Result<Option<[u8; 32]>, RecordError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    sha256("csr_key_sha256", bytes).map(Some)
}
