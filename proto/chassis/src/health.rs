//! Whether a restart would help (`/live`), and whether work may be sent (`/ready`).
//!
//! A [`Report`] is a list of [`Finding`]s, each a known [`Fault`] with what it does, what was
//! seen and the way out. What is a fault of which harm is decided by each binary, by a pure
//! function of a snapshot; here is only what both say about it. Starting up is the one fault
//! that is known here, from [`Ready`].

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use serde::Serialize;

use crate::clock::Jump;
use crate::metrics::gauge;
use crate::ready::Ready;

/// What can be wrong with a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It has not served yet.
    Starting,
    /// The store does not answer.
    StoreGone,
    /// What is known of the store, or of the server, is too old.
    Stale,
    /// A file system has no space left.
    DiskFull,
    /// What signs, or the own certificate, has ended.
    CaExpired,
    /// The wall clock was set, or differs from the server's.
    ClockJump,
    /// What this process gets its authority from cannot be reached.
    NoUpstream,
    /// The log of what is issued does not take anything.
    LogStuck,
    /// What a workload attestor asks does not answer.
    AttestorGone,
    /// The bundle is not where others read it.
    NotPublished,
}

impl Fault {
    /// As it stands in bodies, labels and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::StoreGone => "store_gone",
            Self::Stale => "stale",
            Self::DiskFull => "disk_full",
            Self::CaExpired => "ca_expired",
            Self::ClockJump => "clock_jump",
            Self::NoUpstream => "no_upstream",
            Self::LogStuck => "log_stuck",
            Self::AttestorGone => "attestor_gone",
            Self::NotPublished => "not_published",
        }
    }
}

impl Harm {
    /// As it stands in bodies, labels and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Degraded => "degraded",
            Self::Unready => "unready",
            Self::Dead => "dead",
        }
    }
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// The process does its work, not all of it or not for ever.
    Degraded,
    /// No work should be sent; it mends itself once the cause is gone.
    Unready,
    /// It does not mend itself; a restart helps.
    Dead,
}

/// One fault that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub fault: Fault,
    /// What it does.
    pub harm: Harm,
    /// What was seen.
    pub detail: String,
    /// The way out.
    pub next: String,
}

impl Finding {
    /// Puts a finding together.
    pub fn new(
        fault: Fault,
        harm: Harm,
        detail: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            fault,
            harm,
            detail: detail.into(),
            next: next.into(),
        }
    }
}

/// What to say of a jump of the wall clock that was noticed `ago`.
#[must_use]
pub fn jump_detail(jump: Jump, ago: Duration) -> String {
    let (way, by) = match jump {
        Jump::Forward(by) => ("forward", by),
        Jump::Backward(by) => ("back", by),
    };
    format!(
        "the wall clock went {way} by {} s, {} s ago; every schedule was run again",
        by.as_secs(),
        ago.as_secs()
    )
}

/// All that was found at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(Vec<Finding>);

#[derive(Serialize)]
struct Body<'a> {
    ok: bool,
    faults: &'a [Finding],
}

impl Report {
    /// A report of these findings.
    #[must_use]
    pub fn new(findings: Vec<Finding>) -> Self {
        Self(findings)
    }

    /// What was found.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }

    /// Whether a restart would *not* help.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.0.iter().all(|one| one.harm < Harm::Dead)
    }

    /// Whether work may be sent.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|one| one.harm < Harm::Unready)
    }

    /// Shows it as the metrics `ready` and `fault`, the same in both binaries.
    ///
    /// # Errors
    /// Those of the encoder.
    pub fn encode(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Whether work may be sent.";
        gauge(to, "ready", help, i64::from(self.is_ready()))?;
        let help = "What is wrong now.";
        let mut faults = to.encode_descriptor("fault", help, None, MetricType::Gauge)?;
        for finding in self.findings() {
            let labels = [
                ("fault", finding.fault.name()),
                ("harm", finding.harm.name()),
            ];
            faults.encode_family(&labels)?.encode_gauge(&1_i64)?;
        }
        Ok(())
    }

    /// The body of an answer: one line of JSON.
    #[must_use]
    pub fn body(&self, ok: bool) -> String {
        let body = Body {
            ok,
            faults: &self.0,
        };
        // Enums and texts always have a JSON form.
        let mut text = serde_json::to_string(&body).unwrap_or_default();
        text.push('\n');
        text
    }
}

type Probe = Box<dyn Fn() -> Vec<Finding> + Send + Sync>;

/// Where the listener asks. Clones share it.
#[derive(Clone)]
pub struct Health {
    ready: Ready,
    probe: Arc<OnceLock<Probe>>,
}

impl Health {
    /// The health of a process that waits for `ready`.
    #[must_use]
    pub fn new(ready: Ready) -> Self {
        Self {
            ready,
            probe: Arc::default(),
        }
    }

    /// Says how to look at the running parts. The first one counts; it must not block.
    pub fn attach(&self, probe: impl Fn() -> Vec<Finding> + Send + Sync + 'static) {
        if self.probe.set(Box::new(probe)).is_err() {
            tracing::debug!("the health of this process is looked at already");
        }
    }

    /// What is wrong now.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut findings = Vec::new();
        let awaited = self.ready.awaited();
        if !awaited.is_empty() {
            findings.push(Finding::new(
                Fault::Starting,
                Harm::Unready,
                format!("waiting for: {}", awaited.join(", ")),
                "wait; the log of this process says what holds it up",
            ));
        }
        findings.extend(self.probe.get().map(|probe| probe()).unwrap_or_default());
        Report(findings)
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Health").field(&self.ready).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_says_that_a_restart_helps_and_ready_that_work_may_be_sent() {
        let report = |harm| Report::new(vec![Finding::new(Fault::Stale, harm, "d", "n")]);
        let verdicts = [Harm::Degraded, Harm::Unready, Harm::Dead]
            .map(|harm| (report(harm).is_live(), report(harm).is_ready()));
        assert_eq!(verdicts, [(true, true), (true, false), (false, false)]);
        assert!(Report::default().is_live() && Report::default().is_ready());
    }

    #[test]
    fn the_body_names_the_fault_and_the_way_out() {
        let finding = Finding::new(Fault::DiskFull, Harm::Unready, "no space", "free some");
        let body = Report::new(vec![finding]).body(false);
        assert_eq!(
            body,
            "{\"ok\":false,\"faults\":[{\"fault\":\"disk_full\",\"harm\":\"unready\",\"detail\":\"no space\",\"next\":\"free some\"}]}\n"
        );
    }

    #[test]
    fn a_process_that_starts_is_live_and_not_ready() {
        let ready = Ready::new();
        let pending = ready.register("the store");
        let health = Health::new(ready);
        let report = health.report();
        assert!(report.is_live() && !report.is_ready());
        assert_eq!(report.findings()[0].detail, "waiting for: the store");
        pending.done();
        assert!(health.report().is_ready());
        health.attach(|| vec![Finding::new(Fault::LogStuck, Harm::Dead, "", "")]);
        assert!(!health.report().is_live());
    }
}
