//! The sockets. Public: Workload API, Envoy SDS (not implemented yet), health and reflection;
//! [`admin`]: what root on the node may ask.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::pb::health_server::HealthServer;
use vane_chassis::unix_listener::UnixListener;
use vane_wire::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use vane_wire::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};

mod codec;
mod end;

mod connection;
mod counted;
mod unanswered;

mod incoming;

mod updates;

mod jwt;

mod workload;

pub(crate) mod admin;

pub(crate) use connection::{Connection, Connector, admit};
pub(crate) use unanswered::Unanswered;
pub(crate) use updates::Source;

use counted::Counted;
use incoming::Incoming;
use workload::WorkloadApi;

/// The most streams of one connection (DESIGN "Agent").
const STREAMS: u32 = 100;
/// So long open streams may take to end at the shutdown.
const GRACE: Duration = Duration::from_secs(2);

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The descriptors of reflection are broken.
    #[error("reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The HTTP/2 server failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

/// Serves the public socket until `stop`; open streams end with it.
pub(crate) async fn serve(
    listener: UnixListener<Arc<Connector>>,
    source: Arc<Source>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let names = [
        "SpiffeWorkloadAPI",
        "envoy.service.secret.v3.SecretDiscoveryService",
    ];
    let workload_api = Counted {
        calls: source.counters.calls.clone(),
        clock: Arc::clone(&source.clock),
        inner: WorkloadApi::new(source),
    };
    let routes = Routes::new(workload_api)
        .add_service(SecretDiscoveryServiceServer::new(Sds))
        .add_service(health().await);
    serve_routes(listener, with_reflection(routes, &names)?, stop).await
}

/// `grpc.health.v1`: who answers, serves.
async fn health() -> HealthServer<impl tonic_health::pb::health_server::Health> {
    let (health, service) = tonic_health::server::health_reporter();
    health
        .set_service_status("", tonic_health::ServingStatus::Serving)
        .await;
    service
}

/// Adds reflection of `names` and health.
fn with_reflection(routes: Routes, names: &[&'static str]) -> Result<Routes, ServeError> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(vane_wire::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        names
            .iter()
            .fold(builder, |builder, name| builder.with_service_name(*name))
    };
    Ok(routes
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

/// What is asked of a service that is not here, in the words of gRPC.
async fn unknown(uri: http::Uri) -> http::Response<Body> {
    let path = uri.path().strip_prefix('/').unwrap_or_default();
    let text = match path.rsplit_once('/') {
        Some((service, _)) => format!("unknown service {service}"),
        None => format!("malformed method name: {:?}", uri.path()),
    };
    Status::unimplemented(text).into_http()
}

/// Serves the connections of one socket until `stop`.
async fn serve_routes(
    listener: UnixListener<Arc<Connector>>,
    mut routes: Routes,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let router = routes.axum_router_mut();
    *router = std::mem::take(router).fallback(unknown);
    let grace = stop.clone();
    let served = Server::builder()
        // One more than the limit: the stream over it is answered, not reset.
        .max_concurrent_streams(STREAMS + 1)
        .serve_with_incoming_shutdown(
            routes.prepare(),
            Incoming::new(listener),
            stop.cancelled_owned(),
        );
    // Streams of the Workload API end by themselves; a watch of the health service does not.
    let overdue = async {
        grace.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        ended = served => Ok(ended?),
        () = overdue => Ok(()),
    }
}

/// Envoy's secret discovery: there by name, not implemented yet.
struct Sds;

const SDS: &str = "SDS is not implemented by this agent yet";

#[tonic::async_trait]
impl SecretDiscoveryService for Sds {
    type StreamSecretsStream = tokio_stream::Empty<Result<DiscoveryResponse, Status>>;
    type DeltaSecretsStream = tokio_stream::Empty<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_secrets(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        Err(Status::unimplemented(SDS))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(SDS))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented(SDS))
    }
}

#[cfg(test)]
mod tests;
