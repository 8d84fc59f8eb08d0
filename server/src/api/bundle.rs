//! `spire.api.server.bundle.v1.Bundle`: the trust domain's own bundle.

use std::sync::Arc;

use tonic::{Code, Request, Response, Status};
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
};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::Parts;
use super::unserved::unserved;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct BundleService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Bundle for BundleService {
    async fn get_bundle(
        &self,
        request: Request<GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        let bundle = self
            .0
            .state
            .bundle(&self.0.trust_domain)
            .ok_or_else(|| Refusal::new(Code::NotFound, "bundle not found"))?;
        let mask = request.into_inner().output_mask;
        let shown = convert::bundle::apply_mask((&*bundle).into(), mask.as_ref());
        Ok(Response::new(shown))
    }

    unserved! {
        count_bundles: CountBundlesRequest => CountBundlesResponse;
        append_bundle: AppendBundleRequest => types::Bundle;
        publish_jwt_authority: PublishJwtAuthorityRequest => PublishJwtAuthorityResponse;
        publish_wit_authority: PublishWitAuthorityRequest => PublishWitAuthorityResponse;
        list_federated_bundles: ListFederatedBundlesRequest => ListFederatedBundlesResponse;
        get_federated_bundle: GetFederatedBundleRequest => types::Bundle;
        batch_create_federated_bundle:
            BatchCreateFederatedBundleRequest => BatchCreateFederatedBundleResponse;
        batch_update_federated_bundle:
            BatchUpdateFederatedBundleRequest => BatchUpdateFederatedBundleResponse;
        batch_set_federated_bundle:
            BatchSetFederatedBundleRequest => BatchSetFederatedBundleResponse;
        batch_delete_federated_bundle:
            BatchDeleteFederatedBundleRequest => BatchDeleteFederatedBundleResponse;
    }
}
