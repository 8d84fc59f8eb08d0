//! How many calls of which method ended how, and how long they took.
//!
//! A stream counts as answered when it begins: what becomes of it is its own service's to tell.

use std::time::Duration;

use http::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tonic::{Code, Status};
use vane_chassis::metrics::Metrics;

use crate::caller::Method;

type Label = (&'static str, &'static str);

/// Upper ends of the buckets of latency, in seconds.
const BUCKETS: [f64; 10] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0,
];
/// Stands for all methods that are in no table.
const UNKNOWN: &str = "unknown";

/// The counters of calls.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    handled: Family<[Label; 2], Counter>,
    seconds: Family<[Label; 1], Histogram, fn() -> Histogram>,
}

impl Calls {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let calls = Self {
            handled: Family::default(),
            seconds: Family::new_with_constructor(histogram),
        };
        metrics.register(|registry| {
            registry.register(
                "rpc_handled",
                "Calls by method and status",
                calls.handled.clone(),
            );
            registry.register(
                "rpc_seconds",
                "Time until a call is answered, by method",
                calls.seconds.clone(),
            );
        });
        calls
    }

    /// Counts one call of `path`, answered with `headers` after `elapsed`.
    pub(super) fn count(&self, path: &str, headers: &HeaderMap, elapsed: Duration) {
        let method = Method::find(path).map_or(UNKNOWN, |method| {
            method.path.strip_prefix('/').unwrap_or(method.path)
        });
        // A call that succeeds tells it in its trailers, one that does not in its headers.
        let code = Status::from_header_map(headers).map_or(Code::Ok, |status| status.code());
        let labels = [("method", method), ("code", name(code))];
        self.handled.get_or_create(&labels).inc();
        let method = [("method", method)];
        let seconds = self.seconds.get_or_create(&method);
        seconds.observe(elapsed.as_secs_f64());
    }
}

/// The names that gRPC gives to its codes.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code_and_strange_paths_together() {
        let metrics = Metrics::new("vane_server", "test");
        let calls = Calls::register(&metrics);
        let path = "/spire.api.server.bundle.v1.Bundle/GetBundle";
        calls.count(path, &HeaderMap::new(), Duration::from_millis(1));
        let refused = Status::not_found("x").into_http::<()>();
        for at in 0..3 {
            calls.count(&format!("/x/{at}"), refused.headers(), Duration::ZERO);
        }
        let text = metrics.encode().unwrap();
        for line in [
            "vane_server_rpc_handled_total{method=\"spire.api.server.bundle.v1.Bundle/GetBundle\",code=\"OK\"} 1",
            "vane_server_rpc_handled_total{method=\"unknown\",code=\"NotFound\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
