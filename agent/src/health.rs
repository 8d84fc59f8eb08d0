//! What is wrong with this agent now: a pure function of a [`Snapshot`] of its parts.
//!
//! An agent without its server goes on serving what it holds, so most faults only degrade it;
//! nothing here is mended by a restart. It has no store and no log: `store_gone` and
//! `log_stuck` are never found here.

use std::time::Duration;

use vane_chassis::clock::Jump;
use vane_chassis::health::{Fault, Finding, Harm, jump_detail};

/// A stream that is being opened again for less is no news.
const RECONNECTS: Duration = Duration::from_secs(10);
/// What is held may be old when the server said nothing for so long.
const STALE: Duration = Duration::from_secs(60);
/// The difference of clocks from which SVIDs may seem over or not yet valid.
pub const SKEW_MS: u64 = 5_000;

/// What could not be written to the agent's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskTrouble {
    /// What happened.
    pub text: String,
    /// Whether there is no space left.
    pub full: bool,
}

/// The parts of the agent at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// How long the own SVID is valid; none when there is none.
    pub own_left: Option<Duration>,
    /// Whether the server is reached.
    pub connected: bool,
    /// How long ago the server said something, since the start when it never did.
    pub heard: Duration,
    /// Why the server is not reached.
    pub error: Option<String>,
    /// What could not be kept.
    pub disk: Option<DiskTrouble>,
    /// What keeps workload attestors from finding out what they should.
    pub attestors: Vec<String>,
    /// Milliseconds that this node's clock is ahead of the server's.
    pub skew_ms: Option<i64>,
    /// The last jump of the clock, and how long ago it was noticed; left out once it is old.
    pub jump: Option<(Jump, Duration)>,
}

/// What is wrong.
#[must_use]
pub fn judge(snapshot: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(own_svid(snapshot.own_left));
    found.extend(upstream(snapshot));
    found.extend(stale(snapshot.heard));
    found.extend(snapshot.disk.as_ref().map(disk));
    found.extend(snapshot.attestors.iter().map(|what| attestor(what)));
    found.extend(clock(snapshot));
    found
}

fn own_svid(left: Option<Duration>) -> Option<Finding> {
    if left.is_some_and(|left| !left.is_zero()) {
        return None;
    }
    let detail = "the agent's own SVID has ended: nothing new can be had from the server";
    let next = "it attests anew by itself; with a join token it needs a fresh one in join_token_file (`vane token generate`)";
    Some(Finding::new(Fault::CaExpired, Harm::Unready, detail, next))
}

fn upstream(snapshot: &Snapshot) -> Option<Finding> {
    if snapshot.connected || snapshot.heard < RECONNECTS {
        return None;
    }
    let why = snapshot.error.as_deref().unwrap_or("no answer yet");
    let detail = format!("the server is not reached: {why}");
    let next = "look at the server and at server_address; the agent tries again by itself and serves what it holds until that ends";
    Some(Finding::new(
        Fault::NoUpstream,
        Harm::Degraded,
        detail,
        next,
    ))
}

fn stale(heard: Duration) -> Option<Finding> {
    if heard < STALE {
        return None;
    }
    let detail = format!(
        "the server said nothing for {} s: entries and bundles may have changed since",
        heard.as_secs()
    );
    let next = "look at the server; the agent goes on by itself";
    Some(Finding::new(Fault::Stale, Harm::Degraded, detail, next))
}

fn disk(trouble: &DiskTrouble) -> Finding {
    let detail = format!("state is not kept on disk: {}", trouble.text);
    let next = match trouble.full {
        true => "free space on the file system of data_dir; the agent tries again by itself",
        false => "let the user of the agent write to data_dir; the agent tries again by itself",
    };
    Finding::new(Fault::DiskFull, Harm::Degraded, detail, next)
}

fn attestor(what: &str) -> Finding {
    let next = "mend what it asks, or its section [[workload_attestor]]; it asks again by itself, and processes that it knows keep their identities meanwhile";
    Finding::new(Fault::AttestorGone, Harm::Degraded, what, next)
}

fn clock(snapshot: &Snapshot) -> Option<Finding> {
    let next = "correct the clock that is wrong (chronyc tracking on both); SVIDs may seem over or not yet valid meanwhile";
    if let Some(ms) = snapshot.skew_ms.filter(|ms| ms.unsigned_abs() > SKEW_MS) {
        let way = if ms < 0 { "behind" } else { "ahead of" };
        let detail = format!(
            "this node's clock is {} s {way} the server's",
            ms.unsigned_abs() / 1_000
        );
        return Some(Finding::new(Fault::ClockJump, Harm::Degraded, detail, next));
    }
    let (jump, ago) = snapshot.jump?;
    let detail = jump_detail(jump, ago);
    Some(Finding::new(Fault::ClockJump, Harm::Degraded, detail, next))
}

#[cfg(test)]
mod tests {
    use vane_chassis::health::Report;

    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn well() -> Snapshot {
        Snapshot {
            own_left: Some(secs(1_800)),
            connected: true,
            heard: secs(3),
            error: None,
            disk: None,
            attestors: Vec::new(),
            skew_ms: Some(-20),
            jump: None,
        }
    }

    /// Each fault: what is found, whether a restart helps (`/live` false) and whether work may
    /// be sent (`/ready`).
    #[test]
    fn each_fault_has_its_verdict() {
        use Fault::{AttestorGone, CaExpired, ClockJump, DiskFull, NoUpstream, Stale};
        let with = |change: &dyn Fn(&mut Snapshot)| {
            let mut snapshot = well();
            change(&mut snapshot);
            snapshot
        };
        let cut_off = |seconds| {
            with(&move |s| {
                s.connected = false;
                s.heard = secs(seconds);
                s.error = Some("refused".to_owned());
            })
        };
        let trouble = |full| {
            let text = "no".to_owned();
            Some(DiskTrouble { text, full })
        };
        let table: [(&str, Snapshot, &[Fault], bool); 14] = [
            ("well", well(), &[], true),
            (
                "own SVID over",
                with(&|s| s.own_left = Some(secs(0))),
                &[CaExpired],
                false,
            ),
            (
                "no own SVID",
                with(&|s| s.own_left = None),
                &[CaExpired],
                false,
            ),
            ("reconnecting", cut_off(9), &[], true),
            ("no upstream", cut_off(10), &[NoUpstream], true),
            (
                "no upstream for long",
                cut_off(60),
                &[NoUpstream, Stale],
                true,
            ),
            ("stale", with(&|s| s.heard = secs(60)), &[Stale], true),
            (
                "disk full",
                with(&|s| s.disk = trouble(true)),
                &[DiskFull],
                true,
            ),
            (
                "disk closed",
                with(&|s| s.disk = trouble(false)),
                &[DiskFull],
                true,
            ),
            (
                "no kubelet",
                with(&|s| s.attestors.push("the kubelet is away".to_owned())),
                &[AttestorGone],
                true,
            ),
            (
                "skew",
                with(&|s| s.skew_ms = Some(5_001)),
                &[ClockJump],
                true,
            ),
            ("no skew", with(&|s| s.skew_ms = Some(-5_000)), &[], true),
            ("never compared", with(&|s| s.skew_ms = None), &[], true),
            (
                "clock jump",
                with(&|s| s.jump = Some((Jump::Backward(secs(3_600)), secs(1)))),
                &[ClockJump],
                true,
            ),
        ];
        for (what, snapshot, faults, ready) in table {
            let report = Report::new(judge(&snapshot));
            let found: Vec<Fault> = report.findings().iter().map(|one| one.fault).collect();
            assert_eq!(found, faults, "{what}");
            assert!(report.is_live(), "{what}: no restart helps");
            assert_eq!(report.is_ready(), ready, "{what}");
        }
    }
}
