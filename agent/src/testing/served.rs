//! What the server for tests serves: streams that the test speaks itself, and signatures for
//! whatever is asked.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use vane_chassis::clock::Manual;
use vane_identity::lifetime::{from_unix, to_unix};
use vane_wire::spire::api::server::svid::v1::svid_server::Svid;
use vane_wire::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest,
    BatchNewX509svidResponse, MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest,
    MintWitsvidResponse, MintX509svidRequest, MintX509svidResponse, NewDownstreamX509caRequest,
    NewDownstreamX509caResponse, NewJwtsvidRequest, NewJwtsvidResponse,
    batch_new_x509svid_response,
};
use vane_wire::spire::api::types;
use vane_wire::vane::sync::v1::sync_server::Sync;
use vane_wire::vane::sync::v1::watch_request::Request as Ask;
use vane_wire::vane::sync::v1::{WatchRequest, WatchResponse};

use super::Session;
use super::ca::Ca;
use super::jwt::JwtSigner;
use super::spire::Spire;

#[derive(Clone)]
pub(super) struct Served {
    pub(super) ca: Arc<Ca>,
    pub(super) sessions: mpsc::Sender<Session>,
    pub(super) batches: mpsc::UnboundedSender<Vec<String>>,
    pub(super) tokens: mpsc::UnboundedSender<String>,
    pub(super) jwt: JwtSigner,
    pub(super) refused: Arc<Mutex<HashSet<String>>>,
    pub(super) ahead: Arc<AtomicI64>,
    pub(super) spire: Spire,
    pub(super) clock: Arc<Manual>,
}

#[tonic::async_trait]
impl Sync for Served {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if self.spire.holds().is_spire {
            return Err(Status::unimplemented("unknown service vane.sync.v1.Sync"));
        }
        if self.refused.lock().unwrap().contains("server") {
            return Err(Status::unavailable("server is initializing"));
        }
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.request);
        let Some(Ask::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (answers, receiver) = mpsc::channel(64);
        let session = Session {
            hello,
            requests,
            answers,
        };
        self.sessions
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Svid for Served {
    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let now = vane_chassis::clock::Clock::now(&*self.clock);
        let now = from_unix(to_unix(now) + self.ahead.load(Ordering::Relaxed));
        let params = request.into_inner().params;
        let refused = self.refused.lock().unwrap().clone();
        let result = |one: &vane_wire::spire::api::server::svid::v1::NewX509svidParams| {
            if refused.contains(&one.entry_id) {
                return batch_new_x509svid_response::Result {
                    status: Some(types::Status {
                        code: 5,
                        message: "entry not found or not authorized".into(),
                    }),
                    svid: None,
                };
            }
            let leaf = self.ca.sign(&one.csr, now);
            batch_new_x509svid_response::Result {
                status: Some(vane_wire::status::ok()),
                svid: Some(types::X509svid {
                    cert_chain: vec![leaf.into()],
                    ..types::X509svid::default()
                }),
            }
        };
        let results = params.iter().map(result).collect();
        let ids = params.iter().map(|one| one.entry_id.clone()).collect();
        let _ = self.batches.send(ids);
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn mint_x509svid(
        &self,
        _: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mint_jwtsvid(
        &self,
        _: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mint_witsvid(
        &self,
        _: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        self.sign_jwt(request.into_inner()).map(Response::new)
    }

    async fn batch_new_witsvid(
        &self,
        _: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn new_downstream_x509ca(
        &self,
        _: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
