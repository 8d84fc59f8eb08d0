//! `spire.api.server.bundle.v1.Bundle`: the trust domain's own bundle, and those of the trust
//! domains that its workloads talk to.
//!
//! The own bundle belongs to the authorities; here it is only added to. A federated bundle is
//! kept as it is given. Each item of a batch is stored by itself and fails alone.

mod delete;
mod federated;
mod list;
mod own;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use prost::Message as _;
use tonic::{Code, Request, Response, Status};
use vane_identity::id::TrustDomain;
use vane_wire::convert;
use vane_wire::spire::api::server::bundle::v1::bundle_server::Bundle;
use vane_wire::spire::api::server::bundle::v1::{
    AppendBundleRequest, BatchCreateFederatedBundleRequest, BatchCreateFederatedBundleResponse,
    BatchDeleteFederatedBundleRequest, BatchDeleteFederatedBundleResponse,
    BatchSetFederatedBundleRequest, BatchSetFederatedBundleResponse,
    BatchUpdateFederatedBundleRequest, BatchUpdateFederatedBundleResponse, CountBundlesRequest,
    CountBundlesResponse, GetBundleRequest, GetFederatedBundleRequest, ListFederatedBundlesRequest,
    ListFederatedBundlesResponse, PublishJwtAuthorityRequest, PublishJwtAuthorityResponse,
    PublishWitAuthorityRequest, PublishWitAuthorityResponse,
    batch_create_federated_bundle_response, batch_delete_federated_bundle_response,
    batch_set_federated_bundle_response, batch_update_federated_bundle_response,
};
use vane_wire::spire::api::types;
use vane_wire::status::{self, Refusal};

use super::parts::{caller, count_to_wire, patience};
use super::unserved::unserved;
use super::{MAX_MESSAGE, Parts};

/// The most items of one batch.
const MAX_BATCH: usize = 1_000;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct BundleService(pub(super) Arc<Parts>);

/// The status of an item and the bundle that is shown with it.
type Shown = (types::Status, Option<types::Bundle>);

#[tonic::async_trait]
impl Bundle for BundleService {
    async fn count_bundles(
        &self,
        _: Request<CountBundlesRequest>,
    ) -> Result<Response<CountBundlesResponse>, Status> {
        let count = count_to_wire(self.0.state.counts().bundles);
        Ok(Response::new(CountBundlesResponse { count }))
    }

    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let mask = request.into_inner().output_mask;
        Ok(Response::new(self.show(&self.0.trust_domain, mask)?))
    }

    async fn append_bundle(
        &self,
        request: Request<AppendBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let caller = caller(&request)?;
        self.0.check_fresh()?;
        let bundle = own::append(&self.0, &caller, request.into_inner()).await?;
        Ok(Response::new(bundle))
    }

    async fn publish_jwt_authority(
        &self,
        request: Request<PublishJwtAuthorityRequest>,
    ) -> Result<Response<PublishJwtAuthorityResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let key = request.into_inner().jwt_authority;
        let jwt_authorities = own::publish(&self.0, &caller, patience, key).await?;
        Ok(Response::new(PublishJwtAuthorityResponse {
            jwt_authorities,
        }))
    }

    async fn list_federated_bundles(
        &self,
        request: Request<ListFederatedBundlesRequest>,
    ) -> Result<Response<ListFederatedBundlesResponse>, Status> {
        let listed = list::list(&self.0, &request.into_inner())?;
        Ok(Response::new(listed))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let GetFederatedBundleRequest {
            trust_domain,
            output_mask,
        } = request.into_inner();
        let tried = "getting a federated bundle for the server's own trust domain is not allowed";
        let trust_domain = foreign(&self.0, &trust_domain, tried)?;
        Ok(Response::new(self.show(&trust_domain, output_mask)?))
    }

    async fn batch_create_federated_bundle(
        &self,
        request: Request<BatchCreateFederatedBundleRequest>,
    ) -> Result<Response<BatchCreateFederatedBundleResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.check_batch(request.bundle.len())?;
        let mut shown = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let made = federated::create(&self.0, &caller, wire).await;
            shown.push(show(made, request.output_mask.as_ref()));
        }
        fit(&mut shown);
        let result = |(status, bundle)| batch_create_federated_bundle_response::Result {
            status: Some(status),
            bundle,
        };
        let results = shown.into_iter().map(result).collect();
        Ok(Response::new(BatchCreateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_update_federated_bundle(
        &self,
        request: Request<BatchUpdateFederatedBundleRequest>,
    ) -> Result<Response<BatchUpdateFederatedBundleResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.check_batch(request.bundle.len())?;
        let mut shown = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let mask = request.input_mask.as_ref();
            let updated = federated::update(&self.0, &caller, wire, mask).await;
            shown.push(show(updated, request.output_mask.as_ref()));
        }
        fit(&mut shown);
        let result = |(status, bundle)| batch_update_federated_bundle_response::Result {
            status: Some(status),
            bundle,
        };
        let results = shown.into_iter().map(result).collect();
        Ok(Response::new(BatchUpdateFederatedBundleResponse {
            results,
        }))
    }

    async fn batch_set_federated_bundle(
        &self,
        request: Request<BatchSetFederatedBundleRequest>,
    ) -> Result<Response<BatchSetFederatedBundleResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        self.check_batch(request.bundle.len())?;
        let mut shown = Vec::with_capacity(request.bundle.len());
        for wire in &request.bundle {
            let set = federated::set(&self.0, &caller, wire).await;
            shown.push(show(set, request.output_mask.as_ref()));
        }
        fit(&mut shown);
        let result = |(status, bundle)| batch_set_federated_bundle_response::Result {
            status: Some(status),
            bundle,
        };
        let results = shown.into_iter().map(result).collect();
        Ok(Response::new(BatchSetFederatedBundleResponse { results }))
    }

    async fn batch_delete_federated_bundle(
        &self,
        request: Request<BatchDeleteFederatedBundleRequest>,
    ) -> Result<Response<BatchDeleteFederatedBundleResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let mode = delete::mode(request.mode)?;
        self.check_batch(request.trust_domains.len())?;
        let mut results = Vec::with_capacity(request.trust_domains.len());
        for trust_domain in request.trust_domains {
            let done = delete::delete(&self.0, &caller, &trust_domain, mode).await;
            results.push(batch_delete_federated_bundle_response::Result {
                status: Some(done.map_or_else(Refusal::item, |()| status::ok())),
                trust_domain,
            });
        }
        Ok(Response::new(BatchDeleteFederatedBundleResponse {
            results,
        }))
    }

    unserved! {
        publish_wit_authority: PublishWitAuthorityRequest => PublishWitAuthorityResponse;
    }
}

impl BundleService {
    fn show(
        &self,
        trust_domain: &TrustDomain,
        mask: Option<types::BundleMask>,
    ) -> Result<types::Bundle, Refusal> {
        let bundle = self.0.state.bundle(trust_domain);
        let bundle = bundle.ok_or_else(not_found)?;
        Ok(convert::bundle::apply_mask(
            (&*bundle).into(),
            mask.as_ref(),
        ))
    }

    /// Whether a batch may be worked on at all.
    fn check_batch(&self, items: usize) -> Result<(), Refusal> {
        if items > MAX_BATCH {
            let text = format!("too many items in one batch: {items}, {MAX_BATCH} are allowed");
            return Err(Refusal::new(Code::InvalidArgument, text));
        }
        self.0.check_fresh()
    }
}

/// The trust domain that `text` names; the own one is refused with `own`.
fn foreign(parts: &Parts, text: &str, own: &str) -> Result<TrustDomain, Refusal> {
    let trust_domain = TrustDomain::parse_name_or_id(text).map_err(|error| {
        let tried = "trust domain argument is not valid";
        Refusal::because(Code::InvalidArgument, tried, error)
    })?;
    if trust_domain == parts.trust_domain {
        return Err(Refusal::new(Code::InvalidArgument, own));
    }
    Ok(trust_domain)
}

fn show(
    outcome: Result<vane_identity::bundle::Bundle, Refusal>,
    mask: Option<&types::BundleMask>,
) -> Shown {
    match outcome {
        Ok(bundle) => {
            let shown = convert::bundle::apply_mask((&bundle).into(), mask);
            (status::ok(), Some(shown))
        }
        Err(refusal) => (refusal.item(), None),
    }
}

/// An answer that does not fit into one message shows only whose bundles they are: what was
/// done is done, and an error in its place would deny it.
fn fit(shown: &mut [Shown]) {
    let size = |(status, bundle): &Shown| {
        let bundle = bundle.as_ref().map_or(0, types::Bundle::encoded_len);
        status.encoded_len() + bundle + 3 * list::ITEM_OVERHEAD
    };
    if shown.iter().map(size).sum::<usize>() <= MAX_MESSAGE {
        return;
    }
    let name_only = types::BundleMask::default();
    for (_, bundle) in shown {
        *bundle = bundle
            .take()
            .map(|whole| convert::bundle::apply_mask(whole, Some(&name_only)));
    }
}

fn not_found() -> Refusal {
    Refusal::new(Code::NotFound, "bundle not found")
}

/// A change lost against others too often.
fn busy(tried: &str) -> Refusal {
    let why = "it was changed by others meanwhile, try again";
    Refusal::because(Code::Aborted, tried, why)
}
