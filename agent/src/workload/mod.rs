//! Workload attestors: which selectors a connecting process has.
//!
//! Owns the seam and runs what is configured side by side, each with a
//! deadline. Invariant: one attestor that fails hides no other, and what could
//! not be found out is *unknown*, never absent: an entry that hangs on it is
//! answered UNAVAILABLE, not "no identity issued". Attestors read the process
//! through [`PeerProcess::directory`] only, and the caller re-checks the facts
//! after them, before anything is sent.
//!
//! A new attestor: one file here, one row in [`BUILTINS`].

mod outcome;
mod unix;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::timeout;
use vane_chassis::builtin::{Row, row};
use vane_chassis::clock::Clock;

use crate::peer::{PeerProcess, ProcessFacts};

pub use outcome::{Attested, Match, Outcome, Unknown};
pub use unix::UnixConfig;

/// So long an attestor may take; then all its selectors are unknown.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The attestors that there are.
pub const BUILTINS: &[Row<dyn WorkloadAttestor, Deps>] = &[row::<unix::Unix, _, _>()];

/// What attestors are made from.
#[derive(Clone)]
pub struct Deps {
    /// For the age of cached names.
    pub clock: Arc<dyn Clock>,
}

/// Finds selectors of one type for a process.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + fmt::Debug {
    /// The type of its selectors, as in `type:value`.
    fn name(&self) -> &'static str;

    /// What is known of the process, and which kinds could not be found out.
    /// `facts` were read through `peer`; both stay the same during the call or the caller throws the answer away.
    ///
    /// # Errors
    /// [`AttestError`]: nothing is known. Cancel safe.
    async fn attest(
        &self,
        peer: &PeerProcess,
        facts: &ProcessFacts,
    ) -> Result<Attested, AttestError>;
}

/// Why an attestor knows nothing of a process.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It took longer than [`DEADLINE`].
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Deadline,
    /// What it asks did not answer or answered something unexpected.
    #[error("{what}")]
    Failed {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The configured attestors.
#[derive(Debug, Clone)]
pub struct Attestors(Arc<[Arc<dyn WorkloadAttestor>]>);

impl Attestors {
    /// These, in the configuration's order.
    #[must_use]
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>) -> Self {
        Self(attestors.into())
    }

    /// Asks all of them at once. Never fails: what is not known is in the outcome.
    pub async fn attest(&self, peer: &PeerProcess, facts: &ProcessFacts) -> Outcome {
        let answers = join_all(
            self.0
                .iter()
                .map(|attestor| ask(attestor.as_ref(), peer, facts)),
        )
        .await;
        answers.into_iter().collect()
    }
}

async fn ask(
    attestor: &dyn WorkloadAttestor,
    peer: &PeerProcess,
    facts: &ProcessFacts,
) -> Attested {
    let answer = timeout(DEADLINE, attestor.attest(peer, facts))
        .await
        .unwrap_or(Err(AttestError::Deadline));
    answer.unwrap_or_else(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        tracing::warn!(attestor = attestor.name(), pid = peer.pid(), %error, source, "workload attestor failed");
        Attested::failed(attestor.name())
    })
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps").finish_non_exhaustive()
    }
}
