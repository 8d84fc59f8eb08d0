//! NewDownstreamX509CA: the intermediate CA of a nested server.
//!
//! The guard found that an entry of the caller's ID says `downstream`. From the CSR only the
//! key is used; the CA's ID is the trust domain's.

use std::time::Duration;

use tonic::Code;
use vane_authority::csr;
use vane_authority::issue::CaRequest;
use vane_wire::spire::api::server::svid::v1::{
    NewDownstreamX509caRequest, NewDownstreamX509caResponse,
};
use vane_wire::status::Refusal;

use crate::api::Parts;
use crate::api::patience::{self, Patience};
use crate::caller::Caller;
use crate::state::EntryFilter;

/// Signs the CA.
///
/// # Errors
/// INVALID_ARGUMENT for a CSR that is none, RESOURCE_EXHAUSTED over the rate, INTERNAL when
/// it cannot be signed.
pub(super) async fn issue(
    parts: &Parts,
    caller: &Caller,
    patience: Patience,
    request: &NewDownstreamX509caRequest,
) -> Result<NewDownstreamX509caResponse, Refusal> {
    let nobody = || Refusal::new(Code::Internal, "caller is not a downstream workload");
    let id = &caller.svid().ok_or_else(nobody)?.spiffe_id;
    let now = parts.clock.monotonic();
    let left = patience.left(now);
    let reserved = parts.limits.signing(id, 1, now, left);
    patience::turn("downstream CA signing", reserved).await?;
    parts.check_fresh()?;
    let csr = csr::verify(&request.csr)
        .map_err(|error| Refusal::new(Code::InvalidArgument, error.to_string()))?;
    let filter = EntryFilter {
        spiffe_id: Some(id.clone()),
        downstream: Some(true),
        ..EntryFilter::default()
    };
    let entries = parts.state.entries_page(&filter, None, 1).await.items;
    // SPIRE: no lifetime, also one below zero, is that of a CA.
    let ttl = u64::try_from(request.preferred_ttl).unwrap_or_default();
    let request = CaRequest {
        public_key: csr.public_key,
        ttl: Duration::from_secs(ttl),
        caller: caller.to_string(),
        entry_id: entries.first().map(|entry| entry.id.clone()),
    };
    let chain = parts.authority.issue_ca(request).await.map_err(|error| {
        tracing::warn!(%error, "cannot sign a downstream CA");
        Refusal::because(Code::Internal, "failed to sign downstream X.509 CA", error)
    })?;
    let bundle = parts.state.bundle(&parts.trust_domain);
    let bundle = bundle.ok_or_else(|| Refusal::new(Code::NotFound, "bundle not found"))?;
    let roots = bundle.x509_authorities.iter().map(|one| &one.certificate);
    Ok(NewDownstreamX509caResponse {
        ca_cert_chain: chain.iter().map(|one| one.der().to_vec().into()).collect(),
        x509_authorities: roots.map(|one| one.der().to_vec().into()).collect(),
    })
}
