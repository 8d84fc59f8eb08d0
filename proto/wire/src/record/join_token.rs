//! Join tokens on disk. The token itself is not in the record: its hash is the key.

use prost::Message as _;
use vane_identity::id::SpiffeId;

use super::{Record, RecordError, id, optional_id, sha256};
use crate::generated::vane::store::v1;

/// A join token, or the tombstone of a used one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRecord {
    /// The alias that the agent gets an entry for, when one was asked for.
    pub agent_id: Option<SpiffeId>,
    /// Seconds since the Unix epoch at which it ends, used or not.
    pub expires_at: i64,
    /// Who used it; nobody yet when `None`.
    pub used: Option<TokenUse>,
}

/// The one use of a join token. The same key is answered again, another key is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// SHA-256 of the SubjectPublicKeyInfo of the CSR it was used with.
    pub csr_key_sha256: [u8; 32],
    /// The agent that was made.
    pub agent_id: SpiffeId,
}

impl Record for JoinTokenRecord {
    fn encode(&self) -> Vec<u8> {
        v1::JoinToken {
            agent_id: self.agent_id.as_ref().map(text).unwrap_or_default(),
            expires_at: self.expires_at,
            used: self.used.as_ref().map(|used| v1::join_token::Used {
                csr_key_sha256: used.csr_key_sha256.to_vec(),
                agent_id: text(&used.agent_id),
            }),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::JoinToken::decode(bytes)?;
        Ok(Self {
            agent_id: optional_id("agent_id", &wire.agent_id)?,
            expires_at: wire.expires_at,
            used: wire.used.map(use_from_wire).transpose()?,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the argument of a map")]
fn use_from_wire(wire: v1::join_token::Used) -> Result<TokenUse, RecordError> {
    Ok(TokenUse {
        csr_key_sha256: sha256("used.csr_key_sha256", &wire.csr_key_sha256)?,
        agent_id: id("used.agent_id", &wire.agent_id)?,
    })
}

fn text(id: &SpiffeId) -> String {
    id.as_str().to_owned()
}
