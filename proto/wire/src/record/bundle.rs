//! Trust bundles on disk.

use prost::Message as _;
use vane_identity::bundle::{Bundle, JwtAuthority, X509Authority};
use vane_identity::id::TrustDomain;
use vane_identity::key::PublicKey;
use vane_identity::x509_svid::Certificate;

use super::{Record, RecordError};
use crate::generated::vane::store::v1;

impl Record for Bundle {
    fn encode(&self) -> Vec<u8> {
        v1::Bundle {
            trust_domain: self.trust_domain.as_str().to_owned(),
            x509_authorities: self.x509_authorities.iter().map(x509_to_wire).collect(),
            jwt_authorities: self.jwt_authorities.iter().map(jwt_to_wire).collect(),
            refresh_hint: self.refresh_hint,
            sequence_number: self.sequence_number,
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::Bundle::decode(bytes)?;
        let field = "trust_domain";
        Ok(Self {
            trust_domain: TrustDomain::parse(&wire.trust_domain)
                .map_err(|source| RecordError::Id { field, source })?,
            x509_authorities: wire.x509_authorities.iter().map(x509_from_wire).collect(),
            jwt_authorities: wire
                .jwt_authorities
                .into_iter()
                .map(jwt_from_wire)
                .collect(),
            refresh_hint: wire.refresh_hint,
            sequence_number: wire.sequence_number,
        })
    }
}

fn x509_to_wire(authority: &X509Authority) -> v1::X509Authority {
    v1::X509Authority {
        certificate: authority.certificate.der().to_vec().into(),
        tainted: authority.tainted,
    }
}

fn x509_from_wire(wire: &v1::X509Authority) -> X509Authority {
    X509Authority {
        certificate: Certificate::from_der(&wire.certificate),
        tainted: wire.tainted,
    }
}

fn jwt_to_wire(authority: &JwtAuthority) -> v1::KeyAuthority {
    v1::KeyAuthority {
        public_key: authority.public_key.spki().to_vec().into(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at,
        tainted: authority.tainted,
    }
}

fn jwt_from_wire(wire: v1::KeyAuthority) -> JwtAuthority {
    JwtAuthority {
        key_id: wire.key_id,
        public_key: PublicKey::from_spki(&wire.public_key),
        expires_at: wire.expires_at,
        tainted: wire.tainted,
    }
}
