//! SVIDs, as a server returns them: a chain or a token, with what it says.

use vane_identity::id::SpiffeId;
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{Certificate, X509Error, X509Svid};

use super::id::{self, IdRefusal};
use crate::generated::spire::api::types;

/// Why a message is no X.509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidRefusal {
    /// The chain.
    #[error("malformed X.509-SVID: {0}")]
    Chain(#[from] X509Error),
    /// The ID beside the chain.
    #[error("invalid SPIFFE ID: {0}")]
    Id(#[from] IdRefusal),
    /// The ID beside the chain is not that of the leaf.
    #[error("X.509-SVID of {leaf} was sent as that of {said}")]
    OtherId {
        /// In the certificate.
        leaf: SpiffeId,
        /// In the message.
        said: SpiffeId,
    },
}

/// `svid` without a hint, as SPIRE's server sends it: the agent takes that of the entry.
#[must_use]
pub fn to_wire(svid: &X509Svid) -> types::X509svid {
    types::X509svid {
        cert_chain: svid
            .chain()
            .iter()
            .map(|certificate| certificate.der().to_vec().into())
            .collect(),
        id: Some(svid.id().into()),
        expires_at: to_unix(svid.leaf().validity.not_after),
        hint: String::new(),
    }
}

/// A token; without the hint of its entry, as SPIRE's server sends it.
#[must_use]
pub fn token_to_wire(svid: &JwtSvid) -> types::Jwtsvid {
    types::Jwtsvid {
        token: svid.token().to_owned(),
        id: Some(svid.id().into()),
        expires_at: svid.expires_at(),
        issued_at: svid.issued_at(),
        hint: String::new(),
    }
}

impl TryFrom<&types::X509svid> for X509Svid {
    type Error = SvidRefusal;

    /// Reads the chain; what stands beside it must agree. Nothing is verified.
    fn try_from(wire: &types::X509svid) -> Result<Self, SvidRefusal> {
        let chain = wire.cert_chain.iter().map(|der| Certificate::from_der(der));
        let svid = Self::parse(chain.collect())?;
        let said = id::any(wire.id.as_ref())?;
        if *svid.id() != said {
            let leaf = svid.id().clone();
            return Err(SvidRefusal::OtherId { leaf, said });
        }
        Ok(svid)
    }
}

#[cfg(test)]
mod tests;
