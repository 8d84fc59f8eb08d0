//! The agent's trust follows the bundle that is pushed.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_chassis::mtls::Roots;
use vane_identity::bundle::Bundle;

use crate::cache::Reader;
use crate::snapshot::Standing;

/// Trusts what the server pushes, and tells who else wants to know.
pub(super) async fn follow_bundle(
    reader: Reader,
    roots: Arc<Roots>,
    own: watch::Sender<Option<Arc<Bundle>>>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let mut snapshots = reader.snapshots();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
        }
        let bundle = {
            let snapshot = snapshots.borrow_and_update();
            // One from before a restart may be older than the one beside the agent's own SVID.
            match snapshot.standing() {
                Standing::Current => snapshot.own_bundle().cloned(),
                Standing::Unconfirmed | Standing::Overdue => None,
            }
        };
        let Some(bundle) = bundle else { continue };
        let known = own
            .borrow()
            .as_ref()
            .is_some_and(|known| **known == *bundle);
        if !known {
            roots.set(&bundle.anchors());
            own.send_replace(Some(bundle));
        }
    }
}
