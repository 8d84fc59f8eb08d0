//! `spire.api.server.svid.v1.SVID`: X.509-SVIDs and JWT-SVIDs for workloads.
//!
//! An agent gets what the registry says about an entry that it may have: from its CSRs only
//! the keys are used. An administrator mints what a CSR or a request says.

mod batch;
mod downstream;
mod judge;
mod mint;
mod token;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tonic::{Request, Response, Status};
use vane_wire::spire::api::server::svid::v1::svid_server::Svid;
use vane_wire::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest,
    BatchNewX509svidResponse, MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest,
    MintWitsvidResponse, MintX509svidRequest, MintX509svidResponse, NewDownstreamX509caRequest,
    NewDownstreamX509caResponse, NewJwtsvidRequest, NewJwtsvidResponse,
};

use super::Parts;
use super::parts::{agent, caller, patience};
use super::unserved::unserved;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct SvidService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Svid for SvidService {
    async fn mint_x509svid(
        &self,
        request: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        let caller = caller(&request)?;
        let svid = mint::mint(&self.0, &caller, &request.into_inner()).await?;
        Ok(Response::new(MintX509svidResponse { svid: Some(svid) }))
    }

    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let params = request.into_inner().params;
        let results = batch::issue(&self.0, agent, patience, params).await?;
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn mint_jwtsvid(
        &self,
        request: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        let caller = caller(&request)?;
        let svid = token::mint(&self.0, &caller, request.into_inner()).await?;
        Ok(Response::new(MintJwtsvidResponse { svid: Some(svid) }))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let svid = token::issue(&self.0, agent, patience, request.into_inner()).await?;
        Ok(Response::new(NewJwtsvidResponse { svid: Some(svid) }))
    }

    async fn new_downstream_x509ca(
        &self,
        request: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let request = request.into_inner();
        let issued = downstream::issue(&self.0, &caller, patience, &request).await?;
        Ok(Response::new(issued))
    }

    unserved! {
        mint_witsvid: MintWitsvidRequest => MintWitsvidResponse;
        batch_new_witsvid: BatchNewWitsvidRequest => BatchNewWitsvidResponse;
    }
}
