//! Registration entries on disk.

use prost::Message as _;
use vane_identity::entry::{AdditionalAttributes, Entry, EntryId};
use vane_identity::id::TrustDomain;

use super::{Record, RecordError, id, selectors_from_wire, selectors_to_wire};
use crate::generated::vane::store::v1;

impl Record for Entry {
    fn encode(&self) -> Vec<u8> {
        v1::Entry {
            id: self.id.as_str().to_owned(),
            spiffe_id: self.spiffe_id.as_str().to_owned(),
            parent_id: self.parent_id.as_str().to_owned(),
            selectors: selectors_to_wire(&self.selectors),
            x509_svid_ttl: self.x509_svid_ttl,
            federates_with: self.federates_with.iter().map(text).collect(),
            admin: self.admin,
            downstream: self.downstream,
            expires_at: self.expires_at,
            dns_names: self.dns_names.clone(),
            revision_number: self.revision_number,
            store_svid: self.store_svid,
            jwt_svid_ttl: self.jwt_svid_ttl,
            hint: self.hint.clone(),
            created_at: self.created_at,
            additional_attributes: self.additional_attributes.map(attributes_to_wire),
        }
        .encode_to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let wire = v1::Entry::decode(bytes)?;
        Ok(Self {
            id: EntryId::parse(&wire.id)?,
            spiffe_id: id("spiffe_id", &wire.spiffe_id)?,
            parent_id: id("parent_id", &wire.parent_id)?,
            selectors: selectors_from_wire(&wire.selectors)?,
            x509_svid_ttl: wire.x509_svid_ttl,
            federates_with: trust_domains(&wire.federates_with)?,
            admin: wire.admin,
            downstream: wire.downstream,
            expires_at: wire.expires_at,
            dns_names: wire.dns_names,
            revision_number: wire.revision_number,
            store_svid: wire.store_svid,
            jwt_svid_ttl: wire.jwt_svid_ttl,
            hint: wire.hint,
            created_at: wire.created_at,
            additional_attributes: wire.additional_attributes.map(attributes_from_wire),
        })
    }
}

fn text(trust_domain: &TrustDomain) -> String {
    trust_domain.as_str().to_owned()
}

fn trust_domains(names: &[String]) -> Result<Vec<TrustDomain>, RecordError> {
    let field = "federates_with";
    names
        .iter()
        .map(|name| TrustDomain::parse(name).map_err(|source| RecordError::Id { field, source }))
        .collect()
}

fn attributes_to_wire(attributes: AdditionalAttributes) -> v1::AdditionalAttributes {
    v1::AdditionalAttributes {
        disable_x509_svid_prefetch: attributes.disable_x509_svid_prefetch,
        jwt_svid_include_jti: attributes.jwt_svid_include_jti,
    }
}

fn attributes_from_wire(wire: v1::AdditionalAttributes) -> AdditionalAttributes {
    AdditionalAttributes {
        disable_x509_svid_prefetch: wire.disable_x509_svid_prefetch,
        jwt_svid_include_jti: wire.jwt_svid_include_jti,
    }
}
