//! `spire.agent.debug.v1.Debug`: what this agent is and holds (SPIRE.md 3.8).

use std::sync::Arc;

use tonic::{Request, Response, Status};
use vane_identity::chain;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::agent::debug::v1::debug_server::Debug;
use vane_wire::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse, get_info_response};

use crate::vitals::Vitals;

/// The service.
pub(super) struct DebugService(pub(super) Arc<Vitals>);

#[tonic::async_trait]
impl Debug for DebugService {
    async fn get_info(
        &self,
        _: Request<GetInfoRequest>,
    ) -> Result<Response<GetInfoResponse>, Status> {
        let shown = &self.0;
        let snapshots = shown.reader.snapshots();
        let snapshot = Arc::clone(&snapshots.borrow());
        let own = shown.own.borrow().clone();
        let own = own.as_ref().map_or(&[][..], |own| &own.chain);
        let uptime = shown.clock.monotonic();
        let uptime = uptime.saturating_duration_since(shown.started).as_secs();
        let x509 = i32::try_from(shown.counters.svids.get()).unwrap_or(i32::MAX);
        let chain = chain::with_root(own, snapshot.own_bundle().map(AsRef::as_ref));
        Ok(Response::new(GetInfoResponse {
            svid_chain: chain.iter().map(certificate).collect(),
            uptime: i32::try_from(uptime).unwrap_or(i32::MAX),
            svids_count: x509,
            last_sync_success: shown.counters.sync_last.get(),
            cached_x509_svids_count: x509,
            cached_jwt_svids_count: 0,
            cached_svidstore_x509_svids_count: 0,
        }))
    }
}

fn certificate(certificate: &Certificate) -> get_info_response::Cert {
    let Ok(info) = certificate.info() else {
        return get_info_response::Cert::default();
    };
    get_info_response::Cert {
        id: info.spiffe_id.as_ref().map(Into::into),
        expires_at: to_unix(info.validity.not_after),
        subject: chain::subject(certificate),
    }
}
