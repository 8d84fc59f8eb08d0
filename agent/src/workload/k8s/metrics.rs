//! What is counted of asking for the node's pods.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use vane_chassis::clock::Clock;

/// The counts. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    clock: Arc<dyn Clock>,
    answers: Family<Labels, Counter>,
    pods: Gauge,
    last: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    result: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Answer {
    Ok,
    Failed,
}

impl Metrics {
    /// Counts that `metrics` shows.
    pub(super) fn register(
        metrics: &vane_chassis::metrics::Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let own = Self {
            clock,
            answers: Family::default(),
            pods: Gauge::default(),
            last: Gauge::default(),
        };
        metrics.register(|registry| {
            let help = "Answers of the kubelet, or of the API server, about the node's pods";
            registry.register("k8s_answers", help, own.answers.clone());
            registry.register("k8s_pods", "Pods of the node", own.pods.clone());
            let help = "When the pods of the node were told last";
            registry.register("k8s_pods_last_timestamp_seconds", help, own.last.clone());
        });
        own
    }

    /// The source told that there are so many pods.
    pub(super) fn told(&self, pods: usize) {
        self.count(Answer::Ok);
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        let now = self.clock.now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        self.last.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    /// The source did not answer.
    pub(super) fn failed(&self) {
        self.count(Answer::Failed);
    }

    fn count(&self, result: Answer) {
        self.answers.get_or_create(&Labels { result }).inc();
    }
}
