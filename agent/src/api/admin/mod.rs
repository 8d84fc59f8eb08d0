//! The admin socket: what root on the node may ask the agent.
//!
//! Who may open the socket is the file's business (0600, or 0660 for `admin_group`); each
//! connection carries its process all the same, for the services that tell callers apart.
//! Services are put into [`services`]; [`serve`] ends with the agent.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use vane_chassis::clock::Clock;
use vane_chassis::unix_listener::UnixListener;
use vane_wire::spire::agent::debug::v1::debug_server::DebugServer;

use super::{Connector, ServeError, health, serve_routes, with_reflection};
use crate::cache::Reader;
use crate::counters::Counters;
use crate::own_svid::OwnSvid;

mod debug;

/// What the services of the admin socket show.
pub(crate) struct Shown {
    /// When now is.
    pub(crate) clock: Arc<dyn Clock>,
    /// When the agent started, on the monotonic clock.
    pub(crate) started: std::time::Instant,
    /// The agent's own SVID, when there is one.
    pub(crate) own: watch::Receiver<Option<Arc<OwnSvid>>>,
    /// What it serves.
    pub(crate) reader: Reader,
    /// What it counts.
    pub(crate) counters: Counters,
}

/// The services of the socket.
pub(crate) struct Services(Routes);

/// The services; they are reachable before the agent is in sync, when one most wants to ask.
///
/// # Errors
/// [`ServeError::Reflection`].
pub(crate) async fn services(shown: Arc<Shown>) -> Result<Services, ServeError> {
    let names = ["spire.agent.debug.v1.Debug"];
    let routes =
        Routes::new(DebugServer::new(debug::DebugService(shown))).add_service(health().await);
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
