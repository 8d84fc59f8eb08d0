//! P1: single-entry changes at random distances, from the admin client's send to the message
//! on the workload's open stream. One process, this one, stamps both.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::workload::{SvidStream, ids};
use vane_tests::world::{World, own_selector, spiffe_id};

use crate::floor::Floor;
use crate::machine;
use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::Latencies;

/// Entries that stand when changes begin: a deletion takes the oldest.
const STANDING: usize = 8;
/// So many floors a creation may take. Measured in release builds: 3 to 6, and 8 to 9 where a
/// write costs nothing (tmpfs); a stall of 50 ms comes to 40 and more. A debug build runs in
/// `cargo test`, beside whatever else the machine does: there the bar only tells a stall of
/// tenths of a second from none.
fn most_over_floor() -> f64 {
    if machine::profile() == "debug" {
        return 60.0;
    }
    12.0
}

/// A change that was sent and is not seen yet.
struct Sent {
    id: String,
    created: bool,
    at: Instant,
}

/// Changes on their way, and what was measured.
struct Run<'a> {
    scale: &'a Scale,
    admin: Admin,
    parent: String,
    begun: usize,
    on_their_way: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + 'a>>>,
    unseen: Vec<Sent>,
    standing: VecDeque<String>,
    creations: Latencies,
    deletions: Latencies,
}

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("propagation");
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let floor = Floor::measure(&world, &admin).await;
    let mut run = Run::new(scale, admin.clone(), agent.id.clone());
    let mut stream = run.prepare(&agent.workload().await).await;
    run.changes(&mut stream).await;

    let longest = longest_gap(scale).as_millis();
    report.condition(
        "changes",
        format!("{}, 1 to {longest} ms apart, log-uniform", scale.changes),
    );
    report.condition("agents", 1);
    let all: Latencies = run.creations.iter().chain(run.deletions.iter()).collect();
    report.promise(
        "change to message, p50",
        all.ms(0.5),
        "ms",
        Bar::AtMost(5.0),
    );
    report.promise(
        "change to message, p99",
        all.ms(0.99),
        "ms",
        Bar::AtMost(25.0),
    );
    for (name, part) in [("creation", &run.creations), ("deletion", &run.deletions)] {
        for (percentile, at) in [("p50", 0.5), ("p99", 0.99), ("most", 1.0)] {
            report.figure(
                format!("{name} ({}), {percentile}", part.len()),
                part.ms(at),
                "ms",
            );
        }
    }
    report.figure("floor: a call over a Unix socket, p50", floor.call, "ms");
    report.figure("floor: a durable write, p50", floor.durable, "ms");
    report.figure("floor: key, CSR and leaf, p50", floor.issue, "ms");
    report.gate(
        "creation p50 / floor (4 calls, 2 writes, 1 leaf)",
        run.creations.ms(0.5) / floor.creation(),
        "",
        Bar::AtMost(most_over_floor()),
    );
    report
}

fn longest_gap(scale: &Scale) -> Duration {
    Duration::from_millis(if scale.fast { 100 } else { 1_000 })
}

/// Between 1 ms and the longest, log-uniform.
fn gap(scale: &Scale) -> Duration {
    let most = longest_gap(scale).as_secs_f64() * 1e3;
    Duration::from_secs_f64(most.powf(fastrand::f64()) / 1e3)
}

impl<'a> Run<'a> {
    fn new(scale: &'a Scale, admin: Admin, parent: String) -> Self {
        Self {
            scale,
            admin,
            parent,
            begun: 0,
            on_their_way: FuturesUnordered::new(),
            unseen: Vec::new(),
            standing: VecDeque::new(),
            creations: Latencies::default(),
            deletions: Latencies::default(),
        }
    }

    /// One entry that stays, [`STANDING`] that go, and the stream that has seen them.
    async fn prepare(&mut self, workload: &vane_tests::workload::Workload) -> SvidStream {
        for at in 0..=STANDING {
            let id = format!("standing-{at}");
            self.create(&id).await;
            if at > 0 {
                self.standing.push_back(id);
            }
        }
        let mut stream = workload.served().await;
        let all = |ids: &[String]| ids.len() == STANDING + 1;
        stream.until(all).await.unwrap();
        stream
    }

    async fn create(&self, id: &str) {
        self.admin.create(self.entry(id)).await;
    }

    fn entry(&self, id: &str) -> vane_wire::spire::api::types::Entry {
        let mut entry = entry(
            &spiffe_id(&format!("/{id}")),
            &self.parent,
            &[&own_selector()],
        );
        entry.id = id.to_owned();
        entry
    }

    async fn changes(&mut self, stream: &mut SvidStream) {
        let mut next = tokio::time::Instant::from_std(System.monotonic());
        while self.begun < self.scale.changes || !self.unseen.is_empty() {
            tokio::select! {
                biased;
                message = stream.next() => {
                    let at = System.monotonic();
                    self.see(&ids(&message.unwrap()), at);
                }
                Some(()) = self.on_their_way.next() => {}
                () = tokio::time::sleep_until(next), if self.begun < self.scale.changes => {
                    self.begin();
                    next += gap(self.scale);
                }
            }
        }
    }

    /// Sends the next change: creations and deletions alternate.
    fn begin(&mut self) {
        let doomed = (self.begun % 2 == 1)
            .then(|| self.standing.pop_front())
            .flatten();
        let (id, created) = match doomed {
            Some(id) => (id, false),
            None => (format!("change-{}", self.begun), true),
        };
        self.begun += 1;
        let (admin, entry, scale) = (self.admin.clone(), self.entry(&id), self.scale);
        self.unseen.push(Sent {
            id,
            created,
            at: System.monotonic(),
        });
        self.on_their_way.push(Box::pin(async move {
            scale.stall().await;
            match created {
                true => drop(admin.create(entry).await),
                false => admin.delete(&entry.id).await,
            }
        }));
    }

    fn see(&mut self, ids: &[String], at: Instant) {
        let shown: HashSet<&str> = ids.iter().filter_map(|id| id.rsplit('/').next()).collect();
        let seen = self
            .unseen
            .extract_if(.., |sent| shown.contains(sent.id.as_str()) == sent.created);
        for sent in seen {
            let took = at - sent.at;
            match sent.created {
                true => {
                    self.creations.add(took);
                    self.standing.push_back(sent.id);
                }
                false => self.deletions.add(took),
            }
        }
    }
}
