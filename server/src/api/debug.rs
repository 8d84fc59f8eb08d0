//! `spire.api.server.debug.v1.Debug`: what this server is and holds.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::debug::v1::debug_server::Debug;
use vane_wire::spire::api::server::debug::v1::{
    GetInfoRequest, GetInfoResponse, get_info_response,
};
use x509_parser::x509::X509Name;

use super::Parts;
use super::parts::count_to_wire;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct DebugService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Debug for DebugService {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let parts = &self.0;
        let now = parts.clock.monotonic();
        let uptime = now.saturating_duration_since(parts.started).as_secs();
        let counts = parts.state.counts();
        let chain = whole_chain(parts);
        Ok(Response::new(GetInfoResponse {
            svid_chain: chain.iter().map(shown).collect(),
            uptime: i32::try_from(uptime).unwrap_or(i32::MAX),
            agents_count: count_to_wire(counts.agents),
            federated_bundles_count: count_to_wire(counts.bundles.saturating_sub(1)),
            entries_count: count_to_wire(counts.entries),
        }))
    }
}

/// The server's chain with its root, as SPIRE shows it.
fn whole_chain(parts: &Parts) -> Vec<Certificate> {
    let mut chain = parts.own_svid.borrow().to_vec();
    let signer = chain.last().and_then(|last| last.info().ok());
    let signer = signer.and_then(|info| info.authority_key_id);
    let bundle = parts.state.bundle(&parts.trust_domain);
    let roots = bundle.iter().flat_map(|bundle| &bundle.x509_authorities);
    let root = roots
        .map(|root| &root.certificate)
        .find(|root| root.info().ok().map(|info| info.key_id.to_vec()) == signer);
    chain.extend(root.filter(|_| signer.is_some()).cloned());
    chain
}

fn shown(certificate: &Certificate) -> get_info_response::Cert {
    let Ok(info) = certificate.info() else {
        return get_info_response::Cert::default();
    };
    let name = x509_parser::parse_x509_certificate(certificate.der());
    get_info_response::Cert {
        id: info.spiffe_id.as_ref().map(Into::into),
        expires_at: to_unix(info.validity.not_after),
        subject: name
            .map(|(_, certificate)| subject(certificate.subject()))
            .unwrap_or_default(),
    }
}

/// A name as Go prints it (RFC 2253): the last attribute first.
fn subject(name: &X509Name<'_>) -> String {
    let attributes: Vec<_> = name.iter_attributes().collect();
    let texts = attributes.iter().rev().map(|attribute| {
        let oid = attribute.attr_type().to_id_string();
        let kind = match oid.as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.5" => "SERIALNUMBER",
            "2.5.4.6" => "C",
            "2.5.4.7" => "L",
            "2.5.4.8" => "ST",
            "2.5.4.9" => "STREET",
            "2.5.4.10" => "O",
            "2.5.4.11" => "OU",
            "2.5.4.17" => "POSTALCODE",
            other => other,
        };
        format!("{kind}={}", escaped(attribute.as_str().unwrap_or_default()))
    });
    texts.collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    let special = |c: char| matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
    value
        .chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}
