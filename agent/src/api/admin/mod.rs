//! The admin socket: what root on the node may ask the agent.
//!
//! Who may open the socket is the file's business (0600, or 0660 for `admin_group`); each
//! connection carries its process all the same, for the services that tell callers apart.
//! Services are put into [`services`]; [`serve`] ends with the agent.

use std::convert::Infallible;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vane_chassis::telemetry;
use vane_chassis::unix_listener::UnixListener;
use vane_wire::spire::agent::debug::v1::debug_server::DebugServer;
use vane_wire::spire::api::agent::logger::v1::logger_server::LoggerServer;
use vane_wire::vane::status::v1::status_server::StatusServer;

use super::{Connector, ServeError, health, serve_routes, with_reflection};
use crate::vitals::Vitals;

mod debug;
mod logger;
mod status;

/// The services of the socket.
pub(crate) struct Services(Routes);

/// The services; they are reachable before the agent is in sync, when one most wants to ask.
///
/// # Errors
/// [`ServeError::Reflection`].
pub(crate) async fn services(vitals: Arc<Vitals>) -> Result<Services, ServeError> {
    let names = [
        "spire.agent.debug.v1.Debug",
        "spire.api.agent.logger.v1.Logger",
        "vane.status.v1.Status",
    ];
    let logger = logger::LoggerService(telemetry::running());
    let routes = Routes::new(DebugServer::new(debug::DebugService(Arc::clone(&vitals))))
        .add_service(LoggerServer::new(logger))
        .add_service(StatusServer::new(status::StatusService(vitals)))
        .add_service(health().await);
    Ok(Services(with_reflection(routes, &names)?))
}

/// Serves until `stop`; open streams end with it.
pub(crate) async fn serve(
    listener: UnixListener<Arc<Connector>>,
    services: Services,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    if let Err(error) = serve_routes(listener, services.0, stop).await {
        // Workloads do not suffer for it.
        tracing::error!(%error, "the admin socket is not served any more");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
