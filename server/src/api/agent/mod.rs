//! `spire.api.server.agent.v1.Agent`: nodes prove themselves, renew, and are looked after.

mod admin;
mod attest;
mod filter;
mod renew;
mod token;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};
use vane_wire::spire::api::server::agent::v1::agent_server::Agent;
use vane_wire::spire::api::server::agent::v1::{
    AttestAgentRequest, BanAgentRequest, CountAgentsRequest, CountAgentsResponse,
    CreateJoinTokenRequest, DeleteAgentRequest, GetAgentRequest, ListAgentsRequest,
    ListAgentsResponse, PostStatusRequest, PostStatusResponse, RenewAgentRequest,
    RenewAgentResponse,
};
use vane_wire::spire::api::types;

use super::Parts;
use super::parts::{agent, caller, patience};

/// The service.
#[derive(Debug, Clone)]
pub(super) struct AgentService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Agent for AgentService {
    async fn count_agents(
        &self,
        request: Request<CountAgentsRequest>,
    ) -> Result<Response<CountAgentsResponse>, Status> {
        let filter = request.into_inner().filter.map(filter::same_filter);
        let count = admin::count(&self.0, filter).await?;
        Ok(Response::new(CountAgentsResponse { count }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let listed = admin::list(&self.0, request.into_inner()).await?;
        Ok(Response::new(listed))
    }

    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<types::Agent>, Status> {
        Ok(Response::new(admin::get(&self.0, &request.into_inner())?))
    }

    async fn delete_agent(
        &self,
        request: Request<DeleteAgentRequest>,
    ) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        admin::delete(&self.0, &caller, request.into_inner().id.as_ref()).await?;
        Ok(Response::new(()))
    }

    async fn ban_agent(&self, request: Request<BanAgentRequest>) -> Result<Response<()>, Status> {
        let caller = caller(&request)?;
        admin::ban(&self.0, &caller, request.into_inner().id.as_ref()).await?;
        Ok(Response::new(()))
    }

    type AttestAgentStream = attest::Answers;

    async fn attest_agent(
        &self,
        request: Request<Streaming<AttestAgentRequest>>,
    ) -> Result<Response<Self::AttestAgentStream>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let requests = request.into_inner();
        let answers = attest::attest(&self.0, &caller, patience, requests).await?;
        Ok(Response::new(answers))
    }

    async fn renew_agent(
        &self,
        request: Request<RenewAgentRequest>,
    ) -> Result<Response<RenewAgentResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let params = request.into_inner().params;
        let svid = renew::renew(&self.0, &caller, agent, patience, params).await?;
        Ok(Response::new(RenewAgentResponse { svid: Some(svid) }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<types::JoinToken>, Status> {
        let caller = caller(&request)?;
        let token = token::create(&self.0, &caller, request.into_inner()).await?;
        Ok(Response::new(token))
    }

    async fn post_status(
        &self,
        request: Request<PostStatusRequest>,
    ) -> Result<Response<PostStatusResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let version = request.into_inner().agent_version;
        renew::post_status(&self.0, agent, patience, version).await?;
        Ok(Response::new(PostStatusResponse {}))
    }
}
