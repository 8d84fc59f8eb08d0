//! The one registry of a process's metrics.
//!
//! A component registers its own metrics when it is made and keeps the
//! handles; this registry adds the prefix and prints them. Label values come
//! from enums, never from outside: the count of series is bounded. What SPIRE has
//! a name for is shown under that as well ([`Metrics::register_spire`]), so that
//! its dashboards go on; as "unknown" in the type line, since OpenMetrics wants
//! `_total` behind the name of a counter and SPIRE's have none.

mod calls;
mod latency;
mod process;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

pub use calls::{Calls, Counted, spire_name, status_name};
pub use latency::Latency;

use crate::clock::Clock;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    spire: Arc<Mutex<Registry>>,
    version: &'static str,
    tasks: Gauge,
}

impl Metrics {
    /// An empty registry whose names begin with `prefix` (`vane_server`; SPIRE's then with
    /// `spire_server`), with `<prefix>_build_info{version="…"}`.
    #[must_use]
    pub fn new(prefix: &'static str, version: &'static str) -> Self {
        let mut registry = Registry::with_prefix(prefix);
        registry.register(
            "build",
            "What is running",
            Info::new([("version", version)]),
        );
        let tasks = Gauge::default();
        registry.register(
            "tasks",
            "Tasks of the runtime that are alive",
            tasks.clone(),
        );
        let spire = prefix.strip_prefix("vane").unwrap_or(prefix);
        let spire = Registry::with_prefix(format!("spire{spire}"));
        Self {
            registry: Arc::new(Mutex::new(registry)),
            spire: Arc::new(Mutex::new(spire)),
            version,
            tasks,
        }
    }

    /// Registers a component's metrics, named `<component>_<noun>_<unit>`.
    pub fn register<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers metrics under SPIRE's names.
    pub fn register_spire<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.spire.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Shows the process itself, which starts now in `trust_domain`.
    pub fn register_process(&self, trust_domain: &str, clock: &Arc<dyn Clock>) {
        process::register(self, self.version, trust_domain, Arc::clone(clock));
    }

    /// All values now, as OpenMetrics text.
    ///
    /// # Errors
    /// A collector's own; the metrics of this workspace have none.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let alive = runtime.metrics().num_alive_tasks();
            self.tasks.set(i64::try_from(alive).unwrap_or(i64::MAX));
        }
        let mut out = String::new();
        for registry in [&self.registry, &self.spire] {
            let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
            text::encode_registry(&mut out, &registry)?;
        }
        text::encode_eof(&mut out)?;
        Ok(out)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Shows one gauge without labels, for a collector that looks when it is asked.
///
/// # Errors
/// Those of the encoder.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: i64,
) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Gauge)?
        .encode_gauge(&value)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn metrics_carry_the_prefix_and_the_build() {
        let metrics = Metrics::new("vane_test", "1.2.3");
        let issued: Counter = Counter::default();
        metrics.register(|registry| {
            registry.register("svid_issued", "SVIDs issued", issued.clone());
        });
        issued.inc_by(3);
        let text = metrics.encode().unwrap();
        for line in [
            "vane_test_build_info{version=\"1.2.3\"} 1",
            "vane_test_svid_issued_total 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
