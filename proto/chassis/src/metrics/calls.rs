//! How many calls of which method ended how, and how long they took, under our names and
//! under SPIRE's (SPIRE.md section 6: a counter `<name>{status}` and a summary
//! `<name>_elapsed_time{status}` in milliseconds).
//!
//! A fixed table of methods and status codes: counting takes no lock and allocates nothing,
//! and no name comes from outside.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;

use super::{Latency, Metrics};

/// gRPC's names of its codes, in their order: the label `status` of SPIRE's metrics.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// gRPC's name of a status code.
#[must_use]
pub fn status_name(code: i32) -> &'static str {
    let known = usize::try_from(code).ok();
    let name = known.and_then(|code| CODES.get(code));
    name.copied().unwrap_or("Unknown")
}

/// A method that is counted.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Our label `method`: `package.Service/Method`.
    pub method: &'static str,
    /// SPIRE's name behind its prefix, if it has one: `rpc_entry_v1_entry_list_entries`.
    pub spire: Option<String>,
}

/// The counts. Clones share them; the default counts nothing.
#[derive(Clone, Debug, Default)]
pub struct Calls(Arc<Vec<Row>>);

#[derive(Debug)]
struct Row {
    counted: Counted,
    codes: [Cell; CODES.len()],
    latency: Latency,
}

#[derive(Debug, Default)]
struct Cell {
    count: AtomicU64,
    micros: AtomicU64,
}

impl Calls {
    /// The counts of `methods`, shown by `metrics` as `<name>_handled` and `<name>_seconds`.
    #[must_use]
    pub fn register(metrics: &Metrics, name: &'static str, methods: Vec<Counted>) -> Self {
        let row = |counted| Row {
            counted,
            codes: Default::default(),
            latency: Latency::default(),
        };
        let calls = Self(Arc::new(methods.into_iter().map(row).collect()));
        let ours = Ours(name, calls.clone());
        metrics.register(|registry| registry.register_collector(Box::new(ours)));
        let theirs = Theirs(calls.clone());
        metrics.register_spire(|registry| registry.register_collector(Box::new(theirs)));
        calls
    }

    /// Counts a call of the method that stands at `at`, which ended with gRPC's `code` after
    /// `elapsed`. What stands nowhere is not counted.
    pub fn count(&self, at: usize, code: i32, elapsed: Duration) {
        let Some(row) = self.0.get(at) else {
            return;
        };
        let code = usize::try_from(code).unwrap_or(usize::MAX);
        // Unknown codes count as Unknown.
        if let Some(cell) = row.codes.get(code).or_else(|| row.codes.get(2)) {
            let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            cell.count.fetch_add(1, Ordering::Relaxed);
            cell.micros.fetch_add(micros, Ordering::Relaxed);
        }
        row.latency.observe(elapsed);
    }
}

impl Row {
    /// The codes that were counted, with how often and how long in microseconds.
    fn seen(&self) -> impl Iterator<Item = (&'static str, u64, u64)> + '_ {
        let cells = CODES.iter().zip(&self.codes);
        let counts = cells.map(|(code, cell)| {
            let micros = cell.micros.load(Ordering::Relaxed);
            (*code, cell.count.load(Ordering::Relaxed), micros)
        });
        counts.filter(|(_, count, _)| *count > 0)
    }
}

#[derive(Debug)]
struct Ours(&'static str, Calls);

impl Collector for Ours {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(name, Calls(rows)) = self;
        let help = "Calls by method and status.";
        let name_handled = format!("{name}_handled");
        let mut family =
            encoder.encode_descriptor(&name_handled, help, None, MetricType::Counter)?;
        for row in rows.iter() {
            for (code, count, _) in row.seen() {
                let labels = [("method", row.counted.method), ("code", code)];
                let mut one = family.encode_family(&labels)?;
                one.encode_counter::<prometheus_client::encoding::NoLabelSet, _, u64>(
                    &count, None,
                )?;
            }
        }
        let help = "Time until a call is answered, by method.";
        let name_seconds = format!("{name}_seconds");
        let mut family =
            encoder.encode_descriptor(&name_seconds, help, None, MetricType::Histogram)?;
        for row in rows.iter().filter(|row| row.latency.count() > 0) {
            let labels = [("method", row.counted.method)];
            row.latency.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Theirs(Calls);

impl Collector for Theirs {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for row in self.0.0.iter() {
            let Some(name) = &row.counted.spire else {
                continue;
            };
            let seen: Vec<_> = row.seen().collect();
            if seen.is_empty() {
                continue;
            }
            let help = "SPIRE's name of a call counter.";
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for (code, count, _) in &seen {
                let labels = [("status", *code)];
                family.encode_family(&labels)?.encode_gauge(count)?;
            }
            // The two parts of a summary that dashboards read; there are no quantiles.
            let help = "SPIRE's name of the time of calls, in milliseconds.";
            let sum = format!("{name}_elapsed_time_sum");
            let mut family = encoder.encode_descriptor(&sum, help, None, MetricType::Unknown)?;
            for (code, _, micros) in &seen {
                let labels = [("status", *code)];
                let millis = Duration::from_micros(*micros).as_secs_f64() * 1_000.0;
                family.encode_family(&labels)?.encode_gauge(&millis)?;
            }
            let count = format!("{name}_elapsed_time_count");
            let mut family = encoder.encode_descriptor(&count, help, None, MetricType::Unknown)?;
            for (code, count, _) in &seen {
                let labels = [("status", *code)];
                family.encode_family(&labels)?.encode_gauge(count)?;
            }
        }
        Ok(())
    }
}

/// SPIRE's name of a call of `service`'s `method`: both in snake case with what is neither
/// letter nor digit as an underscore, behind `rpc_`. An upper case letter begins a word only
/// beside a lower case one, so `NewJWTSVID` is `new_jwtsvid`.
#[must_use]
pub fn spire_name(service: &str, method: &str) -> String {
    format!("rpc_{}_{}", snake(service), snake(method))
}

fn snake(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let is_lower = |at: Option<usize>| {
        let letter = at.and_then(|at| letters.get(at));
        letter.is_some_and(char::is_ascii_lowercase)
    };
    let mut out = String::with_capacity(text.len() + 8);
    for (at, letter) in letters.iter().enumerate() {
        if !letter.is_ascii_alphanumeric() {
            out.push('_');
            continue;
        }
        let begins = letter.is_ascii_uppercase()
            && at > 0
            && at + 1 < letters.len()
            && (is_lower(at.checked_sub(1)) || is_lower(Some(at + 1)));
        if begins && !out.ends_with('_') {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of SPIRE.md section 6.
    #[test]
    fn names_are_those_of_spire() {
        for (service, method, want) in [
            (
                "agent.v1.Agent",
                "AttestAgent",
                "rpc_agent_v1_agent_attest_agent",
            ),
            (
                "entry.v1.Entry",
                "SyncAuthorizedEntries",
                "rpc_entry_v1_entry_sync_authorized_entries",
            ),
            (
                "svid.v1.SVID",
                "BatchNewX509SVID",
                "rpc_svid_v1_svid_batch_new_x509svid",
            ),
            ("svid.v1.SVID", "NewJWTSVID", "rpc_svid_v1_svid_new_jwtsvid"),
            (
                "bundle.v1.Bundle",
                "GetBundle",
                "rpc_bundle_v1_bundle_get_bundle",
            ),
            (
                "workload_api",
                "FetchX509SVID",
                "rpc_workload_api_fetch_x509svid",
            ),
            (
                "workload_api",
                "FetchX509Bundles",
                "rpc_workload_api_fetch_x509_bundles",
            ),
            (
                "workload_api",
                "ValidateJWTSVID",
                "rpc_workload_api_validate_jwtsvid",
            ),
        ] {
            assert_eq!(spire_name(service, method), want);
        }
    }

    #[test]
    fn calls_are_shown_under_both_names() {
        let metrics = Metrics::new("vane_server", "test");
        let calls = Calls::register(
            &metrics,
            "rpc",
            vec![
                Counted {
                    method: "a.B/C",
                    spire: Some("rpc_a_b_c".to_owned()),
                },
                Counted {
                    method: "unknown",
                    spire: None,
                },
            ],
        );
        calls.count(0, 0, Duration::from_millis(2));
        calls.count(0, 5, Duration::from_micros(1_500));
        calls.count(1, 12, Duration::ZERO);
        calls.count(1, 99, Duration::ZERO);
        calls.count(2, 0, Duration::ZERO);
        let text = metrics.encode().unwrap();
        for line in [
            "vane_server_rpc_handled_total{method=\"a.B/C\",code=\"OK\"} 1",
            "vane_server_rpc_handled_total{method=\"a.B/C\",code=\"NotFound\"} 1",
            "vane_server_rpc_handled_total{method=\"unknown\",code=\"Unimplemented\"} 1",
            "vane_server_rpc_handled_total{method=\"unknown\",code=\"Unknown\"} 1",
            "vane_server_rpc_seconds_count{method=\"a.B/C\"} 2",
            "spire_server_rpc_a_b_c{status=\"OK\"} 1",
            "spire_server_rpc_a_b_c{status=\"NotFound\"} 1",
            "spire_server_rpc_a_b_c_elapsed_time_sum{status=\"NotFound\"} 1.5",
            "spire_server_rpc_a_b_c_elapsed_time_count{status=\"OK\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
