//! The small tasks that tie the server's parts together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use vane_authority::authority::Authority;
use vane_chassis::mtls::Roots;
use vane_identity::id::TrustDomain;

use crate::api::{self, Connection, Services};
use crate::push::Push;
use crate::state::State;

/// So long calls may take to end once the server stops.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// What the listeners stand on has ended by itself; its own error says why.
#[derive(Debug, thiserror::Error)]
#[error("a part of the server ended")]
pub(super) struct GroundEnded;

/// Trusts the clients of the bundle as it changes.
pub(super) async fn follow_bundle(
    state: Arc<State>,
    roots: Arc<Roots>,
    own: TrustDomain,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut changes = state.bundles_changed();
    loop {
        if let Some(bundle) = state.bundle(&own) {
            roots.set(&bundle.anchors());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Tells the authorities which bundle every connected agent has.
pub(super) async fn follow_acks(
    push: Arc<Push>,
    authority: Arc<Authority>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut lowest = push.acks().lowest();
    loop {
        authority.set_acks(*lowest.borrow_and_update());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = lowest.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Ends the streams that would else hold the drain up.
pub(super) async fn close(
    push: Arc<Push>,
    services: Services,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    stop.cancelled().await;
    services.end_health().await;
    push.close();
    Ok(())
}

/// Ends the listeners when what they stand on ends.
pub(super) async fn end_with(
    below: CancellationToken,
    stop: CancellationToken,
) -> Result<(), GroundEnded> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = below.cancelled() => Err(GroundEnded),
    }
}

/// Serves one listener until `stop`, then at most [`DRAIN`] longer.
pub(super) async fn serve<S>(
    services: Services,
    incoming: impl Stream<Item = Result<Connection<S>, Infallible>>,
    stop: CancellationToken,
) -> Result<(), api::ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = services.serve(incoming, stop.clone().cancelled_owned()) => ended,
        () = overdue => {
            tracing::warn!(deadline = ?DRAIN, "calls were still under way at the end");
            Ok(())
        }
    }
}
