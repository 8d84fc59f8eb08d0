//! Attested agents as the admin API shows them, and masks.

use vane_identity::id::SpiffeId;
use vane_identity::selector::SelectorSet;

use super::id::{self, IdRefusal};
use super::selector::{self, SetRefusal};
use crate::generated::spire::api::types::{self, AgentMask};
use crate::record::AgentRecord;

/// The most bytes of the version that an agent reports (SPIRE's limit of PostStatus).
pub const MAX_AGENT_VERSION_BYTES: usize = 255;

/// Why a message shows no agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentRefusal {
    /// The ID.
    #[error("invalid agent ID: {0}")]
    Id(#[from] IdRefusal),
    /// A selector.
    #[error(transparent)]
    Selectors(#[from] SetRefusal),
}

impl From<&AgentRecord> for types::Agent {
    fn from(record: &AgentRecord) -> Self {
        Self {
            id: Some((&record.spiffe_id).into()),
            attestation_type: record.attestation_type.clone(),
            x509svid_serial_number: record.serial.clone(),
            x509svid_expires_at: record.not_after,
            selectors: selector::to_wire(&record.selectors),
            banned: record.banned,
            can_reattest: record.can_reattest,
            agent_version: record.agent_version.clone(),
        }
    }
}

impl TryFrom<&types::Agent> for AgentRecord {
    type Error = AgentRefusal;

    /// What the admin API shows of an agent; the rest of the record is as of one that never
    /// renewed.
    fn try_from(wire: &types::Agent) -> Result<Self, AgentRefusal> {
        let (spiffe_id, selectors): (SpiffeId, SelectorSet) = (
            id::any(wire.id.as_ref())?,
            selector::from_wire(&wire.selectors)?,
        );
        Ok(Self {
            spiffe_id,
            attestation_type: wire.attestation_type.clone(),
            serial: wire.x509svid_serial_number.clone(),
            new_serial: None,
            not_after: wire.x509svid_expires_at,
            new_not_after: 0,
            selectors,
            banned: wire.banned,
            can_reattest: wire.can_reattest,
            agent_version: wire.agent_version.clone(),
            csr_key_sha256: None,
            previous: None,
        })
    }
}

/// The fields of `agent` that `mask` names; all of them without a mask, the ID always.
#[must_use]
pub fn apply_mask(mut agent: types::Agent, mask: Option<&AgentMask>) -> types::Agent {
    let Some(mask) = mask else {
        return agent;
    };
    macro_rules! keep {
        ($($field:ident)+) => {
            $(if !mask.$field {
                agent.$field = Default::default();
            })+
        };
    }
    keep!(attestation_type x509svid_serial_number x509svid_expires_at selectors banned
        can_reattest agent_version);
    agent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown() -> types::Agent {
        types::Agent {
            id: Some(types::Spiffeid {
                trust_domain: "example.org".into(),
                path: "/spire/agent/join_token/t".into(),
            }),
            attestation_type: "join_token".into(),
            x509svid_serial_number: "12".into(),
            x509svid_expires_at: 34,
            selectors: vec![types::Selector {
                r#type: "a".into(),
                value: "b".into(),
            }],
            banned: true,
            can_reattest: true,
            agent_version: "0.1.0".into(),
        }
    }

    #[test]
    fn an_agent_is_shown_with_every_field_and_read_back() {
        let record = AgentRecord::try_from(&shown()).unwrap();
        assert_eq!(types::Agent::from(&record), shown());
    }

    #[test]
    fn a_mask_keeps_its_fields_and_always_the_id() {
        assert_eq!(apply_mask(shown(), None), shown());
        let masked = apply_mask(shown(), Some(&AgentMask::default()));
        let bare = types::Agent {
            id: shown().id,
            ..Default::default()
        };
        assert_eq!(masked, bare);
        let mask = AgentMask {
            banned: true,
            selectors: true,
            ..Default::default()
        };
        let masked = apply_mask(shown(), Some(&mask));
        assert!(masked.banned && masked.selectors.len() == 1 && masked.agent_version.is_empty());
    }
}
