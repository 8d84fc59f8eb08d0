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

mod k8s;
mod outcome;
mod unix;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{join_all, select_all};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use vane_chassis::builtin::{Row, row};
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Metrics;

use crate::peer::{PeerProcess, ProcessFacts};

pub use k8s::{K8sConfig, PodSource};
pub use outcome::{Attested, Match, Outcome, Soon, Unknown};
pub use unix::UnixConfig;

/// So long an attestor may take; then all its selectors are unknown.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The attestors that there are.
pub const BUILTINS: &[Row<dyn WorkloadAttestor, Deps>] =
    &[row::<unix::Unix, _, _>(), row::<k8s::K8s, _, _>()];

/// What attestors are made from.
#[derive(Clone)]
pub struct Deps {
    /// For the age of cached names.
    pub clock: Arc<dyn Clock>,
    /// Where attestors show what they count.
    pub metrics: Metrics,
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

    /// A generation that moves when [`attest`](Self::attest) may say something else of a process
    /// with these facts. None: it never does, as long as the facts stay.
    fn follow(&self, _facts: &ProcessFacts) -> Option<watch::Receiver<u64>> {
        None
    }

    /// What it has to do besides answering, until `stop`.
    async fn run(&self, _stop: CancellationToken) {}

    /// What keeps it from finding out what it should, in one sentence.
    fn trouble(&self) -> Option<String> {
        None
    }
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

    /// Asks all of them at once, and follows what they say. Never fails: what is not known is in
    /// the outcome.
    pub async fn attest(&self, peer: &PeerProcess, facts: &ProcessFacts) -> Attestation {
        // Followed first, so that no change falls between.
        let generations = self.0.iter().filter_map(|one| one.follow(facts));
        let mut attestation = Attestation {
            generations: generations.collect(),
            outcome: Outcome::default(),
        };
        attestation.renew(self, peer, facts).await;
        attestation
    }

    /// What attestors do besides answering, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        join_all(self.0.iter().map(|one| one.run(stop.clone()))).await;
    }

    /// What keeps them from finding out what they should.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.0.iter().filter_map(|one| one.trouble()).collect()
    }

    async fn outcome(&self, peer: &PeerProcess, facts: &ProcessFacts) -> Outcome {
        let answers = self.0.iter().map(|one| ask(one.as_ref(), peer, facts));
        join_all(answers).await.into_iter().collect()
    }
}

/// What a process was attested as, and whether that may have changed since.
#[derive(Debug)]
pub struct Attestation {
    outcome: Outcome,
    generations: Box<[watch::Receiver<u64>]>,
}

impl Attestation {
    /// What is known, and what is not.
    #[must_use]
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Resolves when [`renew`](Self::renew) may find something else; never, if no attestor can
    /// tell. Cancel safe.
    pub async fn changed(&mut self) {
        if self.generations.is_empty() {
            return std::future::pending().await;
        }
        let moved = self.generations.iter_mut().map(|one| Box::pin(moved(one)));
        select_all(moved).await;
    }

    /// Whether [`changed`](Self::changed) would resolve now.
    #[must_use]
    pub fn is_old(&self) -> bool {
        let mut generations = self.generations.iter();
        generations.any(|one| one.has_changed().unwrap_or(false))
    }

    /// Asks anew.
    pub async fn renew(&mut self, attestors: &Attestors, peer: &PeerProcess, facts: &ProcessFacts) {
        for one in &mut self.generations {
            one.mark_unchanged();
        }
        self.outcome = attestors.outcome(peer, facts).await;
    }
}

/// Resolves when the generation moved since it was last marked, and stays so.
async fn moved(generation: &mut watch::Receiver<u64>) {
    match generation.changed().await {
        Ok(()) => generation.mark_changed(),
        // An attestor that is gone changes nothing any more.
        Err(_) => std::future::pending().await,
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
