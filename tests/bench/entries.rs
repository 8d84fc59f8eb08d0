//! Entries created through the API, durably, while many exist.

use std::time::Duration;

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::world::{World, spiffe_id};
use vane_wire::spire::api::types;

use crate::cpu;
use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::Latencies;

const BATCH: usize = 500;
/// Batches that are timed.
const TIMED: usize = 40;
/// Single creations that are timed.
const SINGLES: usize = 1_000;
/// Agents that the entries are spread over.
const PARENTS: usize = 100;

struct Rate {
    per_second: f64,
    per_cpu_second: f64,
}

/// Makes entries that differ.
struct Maker<'a> {
    admin: &'a Admin,
    server: u32,
    made: usize,
}

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("entries");
    let world = World::start().await;
    let admin = world.admin().await;
    let mut maker = Maker {
        admin: &admin,
        server: world.server().pid(),
        made: 0,
    };
    maker.batches(2).await;
    let empty = maker.batches(TIMED / 2).await;
    while maker.made < scale.existing {
        maker.batches(1).await;
    }
    let before = maker.made;
    let full = maker.batches(TIMED).await;
    let mut singles = Latencies::default();
    for _ in 0..SINGLES.min(scale.existing / 10) {
        singles.add(maker.single(scale).await);
    }
    report.condition("entries that exist", before);
    report.condition("batch", BATCH);
    report.condition("clients", "1, the next batch after the answer to the last");
    report.figure(
        "batches, nearly empty: a second",
        empty.per_second,
        "entries",
    );
    report.promise(
        "batches: a second",
        full.per_second,
        "entries",
        Bar::AtLeast(15_000.0),
    );
    report.figure("batches: per CPU second", full.per_cpu_second, "entries");
    report.promise("one creation, p50", singles.ms(0.5), "ms", Bar::AtMost(0.6));
    report.promise(
        "one creation, p99",
        singles.ms(0.99),
        "ms",
        Bar::AtMost(3.0),
    );
    report.figure(
        "server memory after it",
        world.server().rss() as f64 / 1024.0 / 1024.0,
        "MiB",
    );
    report.gate(
        "CPU an entry, as nearly empty / as with many",
        full.per_cpu_second / empty.per_cpu_second,
        "",
        Bar::AtLeast(0.6),
    );
    report
}

impl Maker<'_> {
    fn next(&mut self) -> types::Entry {
        let number = self.made;
        self.made += 1;
        entry(
            &spiffe_id(&format!("/ns/team-{}/sa/workload-{number}", number % 50)),
            &spiffe_id(&format!(
                "/spire/agent/join_token/node-{}",
                number % PARENTS
            )),
            &[
                &format!("unix:uid:{number}"),
                &format!("unix:path:/usr/bin/workload-{number}"),
            ],
        )
    }

    async fn batches(&mut self, count: usize) -> Rate {
        let mut took = Duration::ZERO;
        let before = cpu::used(self.server);
        for _ in 0..count {
            let entries = (0..BATCH).map(|_| self.next()).collect();
            let begun = System.monotonic();
            let results = self.admin.create_all(entries).await;
            took += System.monotonic() - begun;
            for result in results {
                let status = result.status.unwrap();
                assert_eq!(status.code, 0, "{}", status.message);
            }
        }
        let (made, used) = ((count * BATCH) as f64, cpu::used(self.server) - before);
        Rate {
            per_second: made / took.as_secs_f64(),
            per_cpu_second: made / used.as_secs_f64(),
        }
    }

    async fn single(&mut self, scale: &Scale) -> Duration {
        let entry = self.next();
        let begun = System.monotonic();
        scale.stall().await;
        self.admin.create(entry).await;
        System.monotonic() - begun
    }
}
