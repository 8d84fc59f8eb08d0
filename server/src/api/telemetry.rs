//! How many calls of which method ended how, and how long they took.
//!
//! A stream counts as answered when it begins: what becomes of it is its own service's to tell.

use std::time::Duration;

use http::HeaderMap;
use tonic::{Code, Status};
use vane_chassis::metrics::{self, Counted, Metrics, spire_name};

use crate::caller::{METHODS, Method, split};

/// Stands for all methods that are in no table.
const UNKNOWN: &str = "unknown";
/// What SPIRE's names of calls leave out of a service's name.
const SPIRE: &str = "spire.api.server.";

/// The counters of calls.
#[derive(Debug, Clone)]
pub(super) struct Calls(metrics::Calls);

impl Calls {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let known = METHODS.iter().map(|(path, _)| Counted {
            method: path.strip_prefix('/').unwrap_or(path),
            spire: spire(path),
        });
        let unknown = Counted {
            method: UNKNOWN,
            spire: None,
        };
        let methods = known.chain([unknown]).collect();
        Self(metrics::Calls::register(metrics, "rpc", methods))
    }

    /// Counts one call of `path`, answered with `headers` after `elapsed`.
    pub(super) fn count(&self, path: &str, headers: &HeaderMap, elapsed: Duration) {
        let at = Method::index(path).unwrap_or(METHODS.len());
        self.0.count(at, i32::from(code(headers)), elapsed);
    }
}

/// The code that an answer has in its headers: a call that succeeds tells it in its trailers,
/// one that does not in its headers.
pub(super) fn code(headers: &HeaderMap) -> Code {
    Status::from_header_map(headers).map_or(Code::Ok, |status| status.code())
}

/// gRPC's name of a code.
pub(super) fn name(code: Code) -> &'static str {
    metrics::status_name(i32::from(code))
}

/// Whether a status says no, and not only not now.
pub(super) fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

fn spire(path: &str) -> Option<String> {
    let (service, method) = split(path)?;
    Some(spire_name(service.strip_prefix(SPIRE)?, method))
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
            "spire_server_rpc_bundle_v1_bundle_get_bundle{status=\"OK\"} 1",
            "spire_server_rpc_bundle_v1_bundle_get_bundle_elapsed_time_count{status=\"OK\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
