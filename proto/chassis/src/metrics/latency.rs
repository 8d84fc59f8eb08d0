//! A histogram of durations that takes no lock and allocates nothing when it is fed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper ends of the buckets, in microseconds; one more takes the rest.
const ENDS: [u64; 10] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000,
];
const BUCKETS: usize = ENDS.len() + 1;

/// How long something took, in buckets of 0.5 ms to 10 s. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Latency(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

impl Latency {
    /// Counts one that took `elapsed`.
    pub fn observe(&self, elapsed: Duration) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let at = ENDS.partition_point(|end| *end < micros);
        if let Some(bucket) = self.0.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        let buckets = self.0.buckets.iter();
        buckets.map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// All of them together, in microseconds.
    #[must_use]
    pub fn sum_micros(&self) -> u64 {
        self.0.micros.load(Ordering::Relaxed)
    }

    /// Writes it behind a descriptor.
    pub(super) fn write(&self, encoder: &mut MetricEncoder<'_>) -> fmt::Result {
        let ends = ENDS.iter().copied().map(seconds).chain([f64::MAX]);
        let counts = self.0.buckets.iter().map(|one| one.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = ends.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(self.sum_micros()), count, &buckets, None)
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.write(&mut encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn durations_are_counted_in_their_buckets() {
        let metrics = Metrics::new("vane_test", "1");
        let latency = Latency::default();
        metrics.register(|registry| {
            registry.register("commit_seconds", "Commits", latency.clone());
        });
        for micros in [500, 501, 3_000, 60_000_000] {
            latency.observe(Duration::from_micros(micros));
        }
        assert_eq!((latency.count(), latency.sum_micros()), (4, 60_004_001));
        let text = metrics.encode().unwrap();
        for line in [
            "# TYPE vane_test_commit_seconds histogram",
            "vane_test_commit_seconds_count 4",
            "vane_test_commit_seconds_bucket{le=\"0.0005\"} 1",
            "vane_test_commit_seconds_bucket{le=\"0.001\"} 2",
            "vane_test_commit_seconds_bucket{le=\"0.005\"} 3",
            "vane_test_commit_seconds_bucket{le=\"10.0\"} 3",
            "vane_test_commit_seconds_bucket{le=\"+Inf\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
