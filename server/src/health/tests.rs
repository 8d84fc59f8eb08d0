use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vane_chassis::health::{Health, Report};
use vane_chassis::ready::Ready;
use vane_store::kv::FREE_SPACE;

use super::*;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn well() -> Snapshot {
    Snapshot {
        store: None,
        confirmed_age: secs(3),
        max_staleness: secs(60),
        signs_for: Some(secs(3_600)),
        log: LogHealth::default(),
        jump: None,
        unpublished: Vec::new(),
    }
}

fn unavailable(way_out: &str) -> Option<KvError> {
    Some(KvError::Unavailable {
        cause: "a cause".to_owned(),
        way_out: way_out.to_owned(),
    })
}

fn log_error(kind: io::ErrorKind, ago: u64) -> LogHealth {
    let error = LogError::Io {
        action: "write",
        path: PathBuf::from("/d/audit.jsonl"),
        source: Arc::new(kind.into()),
    };
    LogHealth {
        error: Some((error, secs(ago))),
        ..LogHealth::default()
    }
}

fn stuck(seconds: u64) -> LogHealth {
    LogHealth {
        stuck_for: secs(seconds),
        waiting: 7,
        error: None,
    }
}

/// Each fault: what is found, whether a restart helps (`/live` false) and whether work may be
/// sent (`/ready`).
#[test]
fn each_fault_has_its_verdict() {
    use Fault::{CaExpired, ClockJump, DiskFull, LogStuck, NotPublished, Stale, StoreGone};
    let with = |change: &dyn Fn(&mut Snapshot)| {
        let mut snapshot = well();
        change(&mut snapshot);
        snapshot
    };
    let table: [(&str, Snapshot, Option<Fault>, bool, bool); 20] = [
        ("well", well(), None, true, true),
        (
            "store gone",
            with(&|s| s.store = unavailable("look")),
            Some(StoreGone),
            true,
            false,
        ),
        (
            "store damaged",
            with(&|s| {
                s.store = Some(KvError::Corrupt {
                    what: "w".to_owned(),
                    way_out: "o".to_owned(),
                });
            }),
            Some(StoreGone),
            true,
            false,
        ),
        (
            "disk full, store",
            with(&|s| s.store = unavailable(FREE_SPACE)),
            Some(DiskFull),
            true,
            false,
        ),
        (
            "disk full, log",
            with(&|s| s.log = log_error(io::ErrorKind::StorageFull, 1)),
            Some(DiskFull),
            true,
            false,
        ),
        (
            "disk full, nothing tried since",
            with(&|s| s.log = log_error(io::ErrorKind::StorageFull, 31)),
            Some(DiskFull),
            true,
            true,
        ),
        (
            "not stale yet",
            with(&|s| s.confirmed_age = secs(60)),
            None,
            true,
            true,
        ),
        (
            "stale",
            with(&|s| s.confirmed_age = secs(61)),
            Some(Stale),
            true,
            false,
        ),
        (
            "CA expired",
            with(&|s| s.signs_for = Some(Duration::ZERO)),
            Some(CaExpired),
            true,
            false,
        ),
        (
            "no CA",
            with(&|s| s.signs_for = None),
            Some(CaExpired),
            true,
            false,
        ),
        (
            "CA ends soon",
            with(&|s| s.signs_for = Some(secs(100))),
            Some(CaExpired),
            true,
            true,
        ),
        ("log slow", with(&|s| s.log = stuck(9)), None, true, true),
        (
            "log stuck",
            with(&|s| s.log = stuck(10)),
            Some(LogStuck),
            true,
            false,
        ),
        (
            "log hangs",
            with(&|s| s.log = stuck(60)),
            Some(LogStuck),
            false,
            false,
        ),
        (
            "log refused",
            with(&|s| s.log = log_error(io::ErrorKind::PermissionDenied, 1)),
            Some(LogStuck),
            true,
            false,
        ),
        (
            "log closed",
            with(&|s| s.log.error = Some((LogError::Closed, secs(1)))),
            Some(LogStuck),
            false,
            false,
        ),
        (
            "clock forward",
            with(&|s| s.jump = Some((Jump::Forward(secs(3_600)), secs(1)))),
            Some(ClockJump),
            true,
            false,
        ),
        (
            "clock back",
            with(&|s| s.jump = Some((Jump::Backward(secs(86_400)), secs(119)))),
            Some(ClockJump),
            true,
            false,
        ),
        (
            "clock settled",
            with(&|s| s.jump = Some((Jump::Backward(secs(86_400)), secs(120)))),
            Some(ClockJump),
            true,
            true,
        ),
        (
            "not published",
            with(&|s| {
                s.unpublished = vec![Unpublished {
                    publisher: "k8s_configmap",
                    error: "e".to_owned(),
                }];
            }),
            Some(NotPublished),
            true,
            true,
        ),
    ];
    for (what, snapshot, fault, live, ready) in table {
        let report = Report::new(judge(&snapshot));
        let faults: Vec<Fault> = report.findings().iter().map(|one| one.fault).collect();
        assert_eq!(faults, Vec::from_iter(fault), "{what}");
        assert_eq!(
            (report.is_live(), report.is_ready()),
            (live, ready),
            "{what}"
        );
        for finding in report.findings() {
            assert!(
                !finding.detail.is_empty() && !finding.next.is_empty(),
                "{what}"
            );
        }
    }
}

#[test]
fn a_server_that_starts_is_live_and_not_ready() {
    let ready = Ready::new();
    let _starting = ready.register("server");
    let report = Health::new(ready).report();
    assert_eq!(report.findings()[0].fault, Fault::Starting);
    assert!(report.is_live() && !report.is_ready());
}

#[test]
fn faults_at_once_are_all_told() {
    let mut snapshot = well();
    snapshot.store = unavailable(FREE_SPACE);
    snapshot.confirmed_age = secs(61);
    snapshot.log = log_error(io::ErrorKind::StorageFull, 0);
    assert_eq!(judge(&snapshot).len(), 3);
}
