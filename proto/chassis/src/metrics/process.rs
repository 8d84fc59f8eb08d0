//! What every process of ours tells about itself: since when, how large, and whether its clock
//! was set. Read at each scrape; SPIRE's names beside ours.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Metrics;
use crate::clock::Clock;

/// The size of a page of memory, as /proc/self/statm counts.
const PAGE: u64 = 4_096;

#[derive(Clone, Debug)]
struct Process {
    clock: Arc<dyn Clock>,
    started: Instant,
    version: &'static str,
    trust_domain: String,
}

impl Process {
    fn uptime(&self) -> Duration {
        self.clock
            .monotonic()
            .saturating_duration_since(self.started)
    }
}

/// Shows the process, which starts now, in `metrics`.
pub(super) fn register(
    metrics: &Metrics,
    version: &'static str,
    trust_domain: &str,
    clock: Arc<dyn Clock>,
) {
    let process = Process {
        started: clock.monotonic(),
        clock,
        version,
        trust_domain: trust_domain.to_owned(),
    };
    let ours = Box::new(Ours(process.clone()));
    metrics.register(|registry| registry.register_collector(ours));
    let theirs = Box::new(Theirs(process));
    metrics.register_spire(|registry| registry.register_collector(theirs));
}

#[derive(Debug)]
struct Ours(Process);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(process) = self;
        let help = "Seconds since the start.";
        let mut one = encoder.encode_descriptor("uptime_seconds", help, None, MetricType::Gauge)?;
        one.encode_gauge(&process.uptime().as_secs_f64())?;
        let help = "Resident memory.";
        let name = "resident_memory_bytes";
        let mut one = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        one.encode_gauge(&resident())?;
        let help = "Times that the wall clock jumped against monotonic time.";
        let mut one = encoder.encode_descriptor("clock_jumps", help, None, MetricType::Counter)?;
        let jumps = process.clock.jumps().count();
        one.encode_counter::<NoLabelSet, _, u64>(&jumps, None)
    }
}

#[derive(Debug)]
struct Theirs(Process);

impl Collector for Theirs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(process) = self;
        let help = "SPIRE's name: 1 since the start.";
        let mut one = encoder.encode_descriptor("started", help, None, MetricType::Gauge)?;
        let labels = [
            ("version", process.version),
            ("trust_domain_id", process.trust_domain.as_str()),
        ];
        one.encode_family(&labels)?.encode_gauge(&1_u64)?;
        let help = "SPIRE's name: milliseconds since the start.";
        let mut one = encoder.encode_descriptor("uptime_in_ms", help, None, MetricType::Gauge)?;
        let millis = u64::try_from(process.uptime().as_millis()).unwrap_or(u64::MAX);
        one.encode_gauge(&millis)?;
        let help = "SPIRE's name: memory in use (here: resident).";
        let name = "runtime_alloc_bytes";
        let mut one = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        one.encode_gauge(&resident())
    }
}

/// Resident memory of this process in bytes; 0 where the kernel does not say it.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    pages
        .and_then(|pages| pages.parse::<u64>().ok())
        .unwrap_or(0)
        * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Manual;

    #[test]
    fn a_process_tells_since_when_it_runs() {
        let metrics = Metrics::new("vane_agent", "1.2.3");
        let clock = Arc::new(Manual::starting_now());
        register(
            &metrics,
            "1.2.3",
            "example.org",
            Arc::<Manual>::clone(&clock),
        );
        clock.advance(Duration::from_secs(2));
        let text = metrics.encode().unwrap();
        for line in [
            "vane_agent_uptime_seconds 2.0",
            "vane_agent_clock_jumps_total 0",
            "spire_agent_started{version=\"1.2.3\",trust_domain_id=\"example.org\"} 1",
            "spire_agent_uptime_in_ms 2000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(resident() > PAGE);
    }
}
