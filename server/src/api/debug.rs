//! `spire.api.server.debug.v1.Debug`: what this server is and holds.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use vane_identity::chain;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::debug::v1::debug_server::Debug;
use vane_wire::spire::api::server::debug::v1::{
    GetInfoRequest, GetInfoResponse, get_info_response,
};

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
            // As SPIRE counts: its own one, too.
            federated_bundles_count: count_to_wire(counts.bundles),
            entries_count: count_to_wire(counts.entries),
        }))
    }
}

/// The server's chain with its root, as SPIRE shows it.
fn whole_chain(parts: &Parts) -> Vec<Certificate> {
    let bundle = parts.state.bundle(&parts.trust_domain);
    chain::with_root(&parts.own_svid.borrow(), bundle.as_deref())
}

fn shown(certificate: &Certificate) -> get_info_response::Cert {
    let Ok(info) = certificate.info() else {
        return get_info_response::Cert::default();
    };
    get_info_response::Cert {
        id: info.spiffe_id.as_ref().map(Into::into),
        expires_at: to_unix(info.validity.not_after),
        subject: chain::subject(certificate),
    }
}
