//! The `k8s` attestor: the pod and the container of a process, with SPIRE's selectors.
//!
//! The cgroup of the process, part of the facts that are re-checked before each message, says in
//! which pod the kubelet put it ([`crate::cgroup`]); everything else is said by the kubelet of this node,
//! or by the API server (`pod`, from `kubelet` or `watch`, shared through `table`). What the pod
//! says is known at once. What the container says needs the kubelet to know it, which takes it up
//! to a second: until then it is unknown, and whoever follows the process is woken; with the
//! runtime's socket (`cri`) it is known at once. A process outside of pods has no selectors.

mod config;
mod cri;
mod metrics;

mod pod;
mod wants;

mod selectors;
mod table;

mod kubelet;
mod watch;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use vane_chassis::builtin::{Builtin, OpenError};
use vane_chassis::kubernetes::Client;

use super::{AttestError, Attested, Deps, Soon, WorkloadAttestor};
use crate::cgroup::{self, Place, Roots};
use crate::peer::{PeerProcess, ProcessFacts, own_cgroup};
pub use config::{K8sConfig, PodSource};
use metrics::Metrics;
use pod::Pod;
use selectors::Known;
use table::{Missing, Table, Told};
use wants::Patience;

const NAME: &str = "k8s";

/// The attestor.
#[derive(Debug)]
pub(super) struct K8s {
    roots: Roots,
    table: Table,
    source: Source,
    runtime: Option<cri::Runtime>,
    with_container: bool,
}

/// Who tells the pods.
#[derive(Debug)]
enum Source {
    Kubelet(Client),
    ApiServer { client: Client, node: String },
}

impl Builtin<dyn WorkloadAttestor, Deps> for K8s {
    const NAME: &'static str = NAME;
    type Config = K8sConfig;

    async fn open(config: K8sConfig, deps: &Deps) -> Result<Arc<dyn WorkloadAttestor>, OpenError> {
        let own = own_cgroup().map_err(OpenError::failed)?;
        let attestor = Self::new(config, deps, &own, |name| std::env::var(name).ok());
        Ok(Arc::new(attestor.map_err(OpenError::failed)?))
    }
}

impl K8s {
    /// `own` is the agent's own cgroup file, `variable` its environment.
    fn new(
        config: K8sConfig,
        deps: &Deps,
        own: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, config::Invalid> {
        let source = match config.pod_source {
            PodSource::Kubelet => Source::Kubelet(Client::new(config.kubelet(variable)?)),
            PodSource::ApiServer => {
                let (client, node) = config.api_server(variable)?;
                Source::ApiServer { client, node }
            }
        };
        let patience = Patience {
            tries: config.max_poll_attempts,
            interval: config.poll_retry_interval,
        };
        let metrics = Metrics::register(&deps.metrics, Arc::clone(&deps.clock));
        Ok(Self {
            roots: match &config.kubelet_cgroup_root {
                Some(root) => Roots::configured(root),
                None => Roots::of_own(own),
            },
            table: Table::new(patience, metrics),
            source,
            runtime: config.cri_socket.map(cri::Runtime::new),
            with_container: !config.disable_container_selectors,
        })
    }

    /// Where the kubelet put the process with these facts.
    fn place(&self, facts: &ProcessFacts) -> Result<Option<Place>, AttestError> {
        cgroup::place(&facts.cgroup, &self.roots).map_err(|conflict| AttestError::Failed {
            what: "the pod of the process cannot be told",
            source: conflict.into(),
        })
    }

    async fn attest_at(&self, place: &Place) -> Result<Attested, AttestError> {
        let Told {
            pod,
            soon,
            doubtful,
        } = match self.table.pod(place).await {
            Ok(told) => told,
            Err(Missing::Soon) => {
                return Ok(Attested {
                    soon: Soon::Unknown,
                    ..Attested::failed(NAME)
                });
            }
            Err(missing) => {
                return Err(AttestError::Failed {
                    what: "the pod of the process is not known",
                    source: missing.into(),
                });
            }
        };
        let mut attested = self.say(place, &pod).await;
        if doubtful {
            selectors::doubt(&mut attested);
        }
        attested.soon = soon;
        if !is_settled(place, &pod) && self.table.want(place) {
            attested.soon = soon.max(Soon::Unknown);
        }
        Ok(attested)
    }

    async fn say(&self, place: &Place, pod: &Pod) -> Attested {
        if !self.with_container {
            return selectors::of(pod, Known::Off);
        }
        let Some(id) = &place.container else {
            return selectors::of(pod, Known::Not);
        };
        if let Some(container) = pod.container(id) {
            return selectors::of(pod, Known::Kubelet(container));
        }
        let told = match &self.runtime {
            Some(runtime) => runtime.container(&place.pod, id).await,
            None => None,
        };
        selectors::of(pod, told.as_deref().map_or(Known::Not, Known::Runtime))
    }
}

/// Whether the kubelet knows the container of a process at `place`.
fn is_settled(place: &Place, pod: &Pod) -> bool {
    let mut id = place.container.iter();
    id.all(|id| pod.container(id).is_some())
}

#[async_trait]
impl WorkloadAttestor for K8s {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, _: &PeerProcess, facts: &ProcessFacts) -> Result<Attested, AttestError> {
        match self.place(facts)? {
            Some(place) => self.attest_at(&place).await,
            None => Ok(Attested::default()),
        }
    }

    fn follow(&self, facts: &ProcessFacts) -> Option<tokio::sync::watch::Receiver<u64>> {
        let place = self.place(facts).ok().flatten()?;
        Some(self.table.follow(&place.pod))
    }

    async fn run(&self, stop: CancellationToken) {
        let ended = match &self.source {
            Source::Kubelet(client) => kubelet::run(&self.table, client, is_settled, &stop).await,
            Source::ApiServer { client, node } => {
                let follower = watch::Follower {
                    table: &self.table,
                    client,
                    node,
                    settled: is_settled,
                };
                follower.run(&stop).await
            }
        };
        if let Err(error) = ended {
            tracing::error!(%error, "the pods of this node are not followed");
        }
    }

    fn trouble(&self) -> Option<String> {
        let error = self.table.trouble()?;
        let who = match self.source {
            Source::Kubelet(_) => "the kubelet",
            Source::ApiServer { .. } => "the API server",
        };
        Some(format!(
            "{who} does not tell the pods of this node: {error}"
        ))
    }
}
