//! The trust domain's bundle, put where others read it.
//!
//! A [`BundlePublisher`] knows one kind of place; [`Publish`] gives it the bundle after every
//! change of it and again with growing waits until it succeeds. A change ends a try that is
//! under way, so that a place that hangs never gets an old bundle late. What fails is told by the
//! server's health. Every [`AGAIN`] the same bundle is published anew, in case that somebody
//! else changed the place.

mod k8s_configmap;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::builtin::{Row, row};
use vane_identity::bundle::Bundle;
use vane_identity::id::TrustDomain;
use vane_identity::jwks::JwksError;

use crate::state::State;

/// The publishers that there are. A new one is a file and a row.
pub const BUILTINS: &[Row<dyn BundlePublisher, ()>] = &[row::<k8s_configmap::ConfigMaps, _, _>()];

/// An unchanged bundle is published again after so long.
const AGAIN: Duration = Duration::from_secs(600);

/// Puts a bundle somewhere.
#[async_trait]
pub trait BundlePublisher: Send + Sync + fmt::Debug {
    /// Its type in the configuration.
    fn name(&self) -> &'static str;

    /// Puts `bundle` everywhere where this publishes; what is there already is no error.
    /// Dropped when there is a newer one.
    ///
    /// # Errors
    /// [`PublishError`]: it is not there, or not everywhere.
    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError>;
}

/// Why a bundle is not where it should be.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It cannot be written in the format that is wanted.
    #[error(transparent)]
    Format(#[from] JwksError),
    /// Places that did not take it, each with its reason.
    #[error("{}", .0.join("; "))]
    Places(Vec<String>),
}

/// What a publisher cannot do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublished {
    /// Its type.
    pub publisher: &'static str,
    /// Why.
    pub error: String,
}

/// One publisher at work.
#[derive(Debug)]
pub struct Publish {
    publisher: Arc<dyn BundlePublisher>,
    waits: Policy,
    trouble: watch::Sender<Option<Unpublished>>,
}

impl Publish {
    /// It has published nothing yet.
    #[must_use]
    pub fn new(publisher: Arc<dyn BundlePublisher>, waits: Policy) -> Self {
        Self {
            publisher,
            waits,
            trouble: watch::Sender::new(None),
        }
    }

    /// What it cannot do, as it changes.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<Unpublished>> {
        self.trouble.subscribe()
    }

    /// Publishes the bundle of `own` until `stop`.
    ///
    /// # Errors
    /// None: what fails is tried again.
    pub async fn run(
        self,
        state: Arc<State>,
        own: TrustDomain,
        stop: CancellationToken,
    ) -> Result<(), Infallible> {
        stop.run_until_cancelled(self.follow(&state, &own)).await;
        Ok(())
    }

    async fn follow(&self, state: &State, own: &TrustDomain) {
        let mut changes = state.bundles_changed();
        let mut waits = Backoff::new(self.waits, fastrand::Rng::new());
        loop {
            changes.mark_unchanged();
            let bundle = state.bundle(own);
            let other = async {
                // Bundles of others change, too.
                while changes.changed().await.is_ok() && state.bundle(own) == bundle {}
            };
            let published = async {
                if let Some(bundle) = &bundle {
                    let again = self.once(bundle, &mut waits).await;
                    tokio::time::sleep(again).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = other => waits.reset(),
                () = published => {}
            }
        }
    }

    /// Tries once, and says when to try again.
    async fn once(&self, bundle: &Bundle, waits: &mut Backoff) -> Duration {
        let publisher = self.publisher.name();
        match self.publisher.publish(bundle).await {
            Ok(()) => {
                let sequence = bundle.sequence_number;
                if self.trouble.send_replace(None).is_some() {
                    tracing::info!(publisher, sequence, "the bundle is published again");
                } else {
                    tracing::debug!(publisher, sequence, "the bundle is published");
                }
                waits.reset();
                AGAIN
            }
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(publisher, error, "the bundle is not published");
                self.trouble
                    .send_replace(Some(Unpublished { publisher, error }));
                waits.next_delay()
            }
        }
    }
}

#[cfg(test)]
mod tests;
