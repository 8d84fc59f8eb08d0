//! What this agent shows of itself: to `/live` and `/ready`, to Prometheus, and to
//! `vane agent status`. Everything is looked at when somebody asks.
//!
//! SPIRE's names (SPIRE.md section 6.2) stand beside ours, as far as there is such a thing
//! here.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use tokio::sync::watch;
use vane_chassis::clock::Clock;
use vane_chassis::health::{Finding, Report};
use vane_chassis::metrics::{Metrics, gauge};

use crate::cache::Reader;
use crate::counters::Counters;
use crate::health::{self, Snapshot};
use crate::own_svid::{Disk, OwnSvid};
use crate::sealed::Vault;
use crate::workload::Attestors;

/// The parts that are looked at.
pub struct Vitals {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// When the agent started, in monotonic time.
    pub started: Instant,
    /// The agent's own SVID, when there is one.
    pub own: watch::Receiver<Option<Arc<OwnSvid>>>,
    /// What it serves, and its link to the server.
    pub reader: Reader,
    /// What it counts.
    pub counters: Counters,
    /// Its files.
    pub disk: Arc<Disk>,
    /// What is kept for the workloads over a restart, where it is.
    pub vault: Option<Arc<Vault>>,
    /// Those that tell processes apart.
    pub attestors: Attestors,
}

impl Vitals {
    /// The parts now, for [`health::judge`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let monotonic = self.clock.monotonic();
        let sync = self.reader.sync();
        let own = self.own.borrow().clone();
        let now = self.clock.now();
        let sealed = || self.vault.as_ref().and_then(|vault| vault.trouble());
        let left = own.map(|own| own.not_after.duration_since(now).unwrap_or_default());
        Snapshot {
            own_left: left,
            connected: sync.connected,
            heard: monotonic.saturating_duration_since(sync.heard.unwrap_or(self.started)),
            error: sync.error,
            disk: self.disk.trouble().or_else(sealed),
            attestors: self.attestors.troubles(),
            skew_ms: sync.skew_ms,
            jump: self.clock.jumps().recent(monotonic),
        }
    }

    /// What is wrong now.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        health::judge(&self.snapshot())
    }

    /// The same as a report.
    #[must_use]
    pub fn report(&self) -> Report {
        Report::new(self.findings())
    }

    /// Time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        let now = self.clock.monotonic();
        now.saturating_duration_since(self.started)
    }

    /// Shows them in `metrics`.
    pub fn register(self: &Arc<Self>, metrics: &Metrics) {
        let (ours, theirs) = (Ours(Arc::clone(self)), Theirs(Arc::clone(self)));
        metrics.register(|registry| registry.register_collector(Box::new(ours)));
        metrics.register_spire(|registry| registry.register_collector(Box::new(theirs)));
    }
}

impl fmt::Debug for Vitals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vitals").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Ours(Arc<Vitals>);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(vitals) = self;
        let to = &mut encoder;
        let snapshot = vitals.snapshot();
        let connected = i64::from(snapshot.connected);
        gauge(
            to,
            "sync_connected",
            "Whether the stream to the server is open.",
            connected,
        )?;
        let help = "Since the server said something.";
        let mut age = to.encode_descriptor("sync_age_seconds", help, None, MetricType::Gauge)?;
        age.encode_gauge(&snapshot.heard.as_secs_f64())?;
        Report::new(health::judge(&snapshot)).encode(to)
    }
}

#[derive(Debug)]
struct Theirs(Arc<Vitals>);

impl Collector for Theirs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(vitals) = self;
        let to = &mut encoder;
        let counters = &vitals.counters;
        let help = "SPIRE's name: entries of this agent.";
        gauge(to, "sync_entries_total", help, counters.entries.get())?;
        let help = "SPIRE's name: bundles held.";
        gauge(to, "sync_bundles_total", help, counters.bundles.get())?;
        let labels = [("svid_type", "x509")];
        for (name, help, value) in [
            (
                "lru_cache_record_map_size",
                "SPIRE's name: entries by type of SVID.",
                counters.entries.get(),
            ),
            (
                "lru_cache_svid_map_size",
                "SPIRE's name: SVIDs held by type.",
                counters.svids.get(),
            ),
        ] {
            let mut one = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
            one.encode_family(&labels)?.encode_gauge(&value)?;
        }
        let help = "SPIRE's name: JWT-SVIDs held.";
        gauge(to, "jwt_svid_cache_size", help, counters.jwt_svids.get())?;
        let help = "SPIRE's name: streams of the Workload API.";
        let streams = counters.streams.get();
        gauge(to, "workload_api_connections", help, streams)
    }
}
