//! What the agent counts: each part keeps handles, the ops listener shows them.
//!
//! Labels come from enums; no ID is ever one.

use std::time::Instant;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use vane_chassis::metrics::{Calls, Counted, Metrics, spire_name};

/// The name before every metric.
pub const PREFIX: &str = "vane_agent";

/// The counts. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    /// Watch streams that were opened.
    pub sync_streams: Counter,
    /// Resumes after which the digests did not agree: a bug on one side.
    pub sync_divergences: Counter,
    /// Parts of messages that were not understood.
    pub sync_ignored: Counter,
    /// Unix seconds of the last message from the server.
    pub sync_last: Gauge,
    /// Milliseconds that the own clock is ahead of the server's.
    pub clock_skew: Gauge,
    /// Entries of this agent.
    pub entries: Gauge,
    /// Bundles.
    pub bundles: Gauge,
    /// X.509-SVIDs that are held.
    pub svids: Gauge,
    /// X.509-SVIDs that were received.
    pub svids_received: Counter,
    /// X.509-SVIDs that were asked for in vain.
    pub svids_failed: Counter,
    /// JWT-SVIDs that are held.
    pub jwt_svids: Gauge,
    /// JWT-SVIDs that were received.
    pub jwt_svids_received: Counter,
    /// JWT-SVIDs that were asked for in vain.
    pub jwt_svids_failed: Counter,
    /// JWT-SVIDs that were served without asking the server.
    pub jwt_svids_cached: Counter,
    /// Unix seconds at which the agent's own SVID ends.
    pub own_expiry: Gauge,
    /// Files of sealed state that were written.
    pub sealed_writes: Counter,
    /// Tries to write one that failed.
    pub sealed_failures: Counter,
    /// Bytes of the last one.
    pub sealed_bytes: Gauge,
    /// X.509-SVIDs in it.
    pub sealed_svids: Gauge,
    /// JWT-SVIDs in it.
    pub sealed_tokens: Gauge,
    /// Connections of the Workload API.
    pub connections: Gauge,
    /// Streams of the Workload API.
    pub streams: Gauge,
    /// Messages that were sent on them.
    pub messages: Counter,
    /// Calls of the Workload API, by [`WORKLOAD_API`].
    pub calls: Calls,
    /// What the agent did by itself, by [`Work`].
    pub work: Calls,
    /// Streams that the agent ended, or did not open.
    pub refusals: Family<Labels, Counter>,
}

/// The methods of the Workload API in the order in which they are counted; others count behind
/// the last.
pub const WORKLOAD_API: [&str; 7] = [
    "FetchX509SVID",
    "FetchX509Bundles",
    "FetchJWTSVID",
    "FetchJWTBundles",
    "ValidateJWTSVID",
    "FetchWITSVID",
    "FetchWITBundles",
];

/// What the agent does by itself and is counted as a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It renewed its own SVID.
    Renewal,
    /// It had a batch of SVIDs made.
    Batch,
    /// It attested a process.
    Attestation,
}

impl Work {
    const ALL: [(&'static str, &'static str); 3] = [
        ("own_svid_renewal", "agent_svid_rotate"),
        ("svid_batch", "manager_sync_fetch_svids_updates"),
        ("attestation", "workload_api_workload_attestation"),
    ];
}

/// The labels of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// Why.
    pub reason: Refused,
}

/// Why a stream of the Workload API was ended, or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refused {
    /// No entry matches.
    NoIdentity,
    /// The process changed or ended.
    ProcessChanged,
    /// An SVID or a selector could not be had.
    Unavailable,
    /// A limit of the connection.
    Limit,
    /// The request is malformed, or its token is not valid.
    Request,
}

impl Counters {
    /// Counts that `metrics` shows.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let api = |method: &'static str| Counted {
            method,
            spire: Some(spire_name("workload_api", method)),
        };
        let unknown = Counted {
            method: "unknown",
            spire: None,
        };
        let api = WORKLOAD_API.into_iter().map(api).chain([unknown]);
        let work = Work::ALL.map(|(method, spire)| Counted {
            method,
            spire: Some(spire.to_owned()),
        });
        let own = Self {
            calls: Calls::register(metrics, "workload_api_rpc", api.collect()),
            work: Calls::register(metrics, "work", work.into()),
            ..Self::default()
        };
        metrics.register(|registry| {
            let mut counter = |name: &str, help: &str, counter: &Counter| {
                registry.register(name, help, counter.clone());
            };
            counter("sync_streams", "Watch streams opened", &own.sync_streams);
            counter(
                "sync_divergences",
                "Resumes that ended with other digests than the server's",
                &own.sync_divergences,
            );
            counter(
                "sync_ignored",
                "Parts of messages not understood",
                &own.sync_ignored,
            );
            counter(
                "x509_svids_received",
                "X.509-SVIDs received",
                &own.svids_received,
            );
            counter(
                "x509_svids_failed",
                "X.509-SVIDs asked for in vain",
                &own.svids_failed,
            );
            counter(
                "jwt_svids_received",
                "JWT-SVIDs received",
                &own.jwt_svids_received,
            );
            counter(
                "jwt_svids_failed",
                "JWT-SVIDs asked for in vain",
                &own.jwt_svids_failed,
            );
            counter(
                "jwt_svids_cached",
                "JWT-SVIDs served from the cache",
                &own.jwt_svids_cached,
            );
            counter(
                "workload_api_messages",
                "Messages sent to workloads",
                &own.messages,
            );
            counter(
                "sealed_writes",
                "Files of sealed state written",
                &own.sealed_writes,
            );
            counter(
                "sealed_failures",
                "Tries to write sealed state that failed",
                &own.sealed_failures,
            );
            let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
                registry.register(name, help, gauge.clone());
            };
            gauge(
                "sync_last_timestamp_seconds",
                "Last message from the server",
                &own.sync_last,
            );
            gauge(
                "clock_skew_milliseconds",
                "How far the own clock is ahead of the server's",
                &own.clock_skew,
            );
            gauge(
                "sealed_bytes",
                "Bytes of the last file of sealed state",
                &own.sealed_bytes,
            );
            gauge(
                "sealed_x509_svids",
                "X.509-SVIDs in the last file of sealed state",
                &own.sealed_svids,
            );
            gauge(
                "sealed_jwt_svids",
                "JWT-SVIDs in the last file of sealed state",
                &own.sealed_tokens,
            );
            gauge("entries", "Entries of this agent", &own.entries);
            gauge("bundles", "Bundles held", &own.bundles);
            gauge("x509_svids", "X.509-SVIDs held", &own.svids);
            gauge("jwt_svids", "JWT-SVIDs held", &own.jwt_svids);
            gauge(
                "own_svid_expiry_timestamp_seconds",
                "End of the agent's own SVID",
                &own.own_expiry,
            );
            gauge(
                "workload_api_connections",
                "Open connections of the Workload API",
                &own.connections,
            );
            gauge(
                "workload_api_streams",
                "Open streams of the Workload API",
                &own.streams,
            );
            registry.register(
                "workload_api_refusals",
                "Streams of the Workload API ended or not opened",
                own.refusals.clone(),
            );
        });
        own
    }

    /// Counts work of the agent that began at `started` and ended at `now`, well or not.
    pub fn worked(&self, work: Work, ok: bool, started: Instant, now: Instant) {
        let code = if ok { 0 } else { 2 };
        let elapsed = now.saturating_duration_since(started);
        self.work.count(work as usize, code, elapsed);
    }

    /// Counts a stream that is ended, or not opened.
    pub fn refuse(&self, reason: Refused) {
        self.refusals.get_or_create(&Labels { reason }).inc();
    }
}
