//! How the agent ends: its tasks joined, and whether its own SVID has to go.

use std::time::Duration;

use vane_chassis::tasks::{BoxError, TaskError, Tasks};
use vane_wire::status::Reason;

use crate::cache::CacheError;
use crate::node;
use crate::renewal::RenewalError;

/// So long tasks may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Whether the server denied the SVID for good (SPIRE's agents remove it then, too).
pub(super) fn is_final(error: &anyhow::Error) -> bool {
    let denied = |reason: Reason| reason != Reason::AgentMustReattest;
    error
        .chain()
        .any(|cause| match cause.downcast_ref::<CacheError>() {
            Some(CacheError::Denied(denial)) => denied(denial.reason),
            None => match cause.downcast_ref::<RenewalError>() {
                Some(RenewalError::Denied(node::NodeError::Denied(denial))) => {
                    denied(denial.reason)
                }
                _ => false,
            },
        })
}

/// Joins the tasks; their first error.
pub(super) async fn finish(tasks: Tasks) -> anyhow::Result<()> {
    tasks.join(DRAIN).await.map_err(|error| match error {
        // The task's own error says it; the name of the task would only stand before it.
        TaskError::Failed { source, .. } => unboxed(source),
        other => other.into(),
    })
}

/// The error of a task, as itself: what is in a box cannot be told apart by [`is_final`].
fn unboxed(error: BoxError) -> anyhow::Error {
    let error = match error.downcast::<CacheError>() {
        Ok(error) => return (*error).into(),
        Err(error) => error,
    };
    match error.downcast::<RenewalError>() {
        Ok(error) => (*error).into(),
        Err(error) => anyhow::Error::from_boxed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denial::{Denial, WayBack};
    use crate::obtain::ObtainError;

    fn ended(error: impl std::error::Error + Send + Sync + 'static) -> bool {
        is_final(&unboxed(Box::new(error)))
    }

    #[test]
    fn what_the_server_denies_for_good_removes_the_svid_and_nothing_else_does() {
        let denial = |reason| Denial {
            reason,
            message: String::new(),
            way_back: WayBack::NextStart,
        };
        let denied = |reason| CacheError::Denied(denial(reason));
        assert!(ended(denied(Reason::AgentBanned)));
        assert!(ended(denied(Reason::AgentNotAttested)));
        assert!(!ended(denied(Reason::AgentMustReattest)));
        let renewal = |reason| RenewalError::Denied(node::NodeError::Denied(denial(reason)));
        assert!(ended(renewal(Reason::AgentBanned)));
        let passing = ObtainError::Node(node::NodeError::Unavailable(String::new()));
        assert!(!ended(RenewalError::Obtain(passing)));
        assert!(!ended(std::io::Error::other("x")));
    }
}
