//! The services put together, and the loop that serves one listener.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use vane_wire::spire::api::server::agent::v1::agent_server::AgentServer;
use vane_wire::spire::api::server::bundle::v1::bundle_server::BundleServer;
use vane_wire::spire::api::server::debug::v1::debug_server::DebugServer;
use vane_wire::spire::api::server::entry::v1::entry_server::EntryServer;
use vane_wire::spire::api::server::logger::v1::logger_server::LoggerServer;
use vane_wire::spire::api::server::svid::v1::svid_server::SvidServer;
use vane_wire::vane::status::v1::status_server::StatusServer;

use super::agent::AgentService;
use super::bundle::BundleService;
use super::connection::Connection;
use super::debug::DebugService;
use super::entry::EntryService;
use super::guard::GuardLayer;
use super::logger::LoggerService;
use super::status::StatusService;
use super::svid::SvidService;
use super::sync::SyncService;
use super::{MAX_MESSAGE, Parts};

/// Why a listener's loop ended by itself.
pub use tonic::transport::Error as ServeError;

/// A connection on which nothing comes is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(10);
/// A connection that gives none for so long is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Calls on one connection at once.
const MAX_STREAMS: u32 = 256;
/// The most bytes of the headers of a call.
const MAX_HEADERS: u32 = 16 * 1024;

/// All services behind the guard. The same ones on every listener: what a caller may do is
/// decided by who he is.
#[derive(Clone)]
pub struct Services {
    guard: GuardLayer,
    routes: Routes,
    health: HealthReporter,
}

/// A service with our limits of message size.
macro_rules! sized {
    ($server:ident, $service:expr) => {
        $server::new($service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    };
}

impl Services {
    /// Puts the services in front of `parts`. They say that they are not serving until
    /// [`Services::set_ready`].
    pub async fn new(parts: &Arc<Parts>) -> Self {
        let (health, health_service) = health_reporter();
        health
            .set_service_status("", ServingStatus::NotServing)
            .await;
        let parts = Arc::clone(parts);
        let routes = Routes::new(sized!(AgentServer, AgentService(Arc::clone(&parts))))
            .add_service(sized!(BundleServer, BundleService(Arc::clone(&parts))))
            .add_service(sized!(DebugServer, DebugService(Arc::clone(&parts))))
            .add_service(sized!(EntryServer, EntryService(Arc::clone(&parts))))
            .add_service(sized!(LoggerServer, LoggerService(Arc::clone(&parts))))
            .add_service(sized!(StatusServer, StatusService(Arc::clone(&parts))))
            .add_service(sized!(SvidServer, SvidService(Arc::clone(&parts))))
            .add_service(SyncService::new(&parts))
            .add_service(health_service);
        Self {
            guard: GuardLayer(parts),
            routes: routes.prepare(),
            health,
        }
    }

    /// Tells whether the server is serving, over `grpc.health.v1`.
    pub async fn set_ready(&self, ready: bool) {
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        self.health.set_service_status("", status).await;
    }

    /// Says that the server ends, and ends the streams that watch its health.
    pub async fn end_health(&self) {
        self.set_ready(false).await;
        self.health.clone().clear_service_status("").await;
    }

    /// Serves the connections of `incoming` until `stop`, then lets the calls finish that are
    /// under way.
    ///
    /// # Errors
    /// None is known: a connection's error ends that connection.
    pub async fn serve<S>(
        self,
        incoming: impl Stream<Item = Result<Connection<S>, Infallible>>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Server::builder()
            .http2_keepalive_interval(Some(PING_EVERY))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .layer(self.guard)
            .serve_with_incoming_shutdown(self.routes, incoming, stop)
            .await
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}
