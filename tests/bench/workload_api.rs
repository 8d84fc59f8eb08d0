//! P5: what a cached fetch on a fresh connection takes, of X.509- and of JWT-SVIDs, and what the
//! agent's memory is.

use std::path::Path;
use std::time::Duration;

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::{Admin, entry};
use vane_tests::process::Process;
use vane_tests::sample;
use vane_tests::workload::{SvidStream, Workload};
use vane_tests::world::{Agent, World, own_selector, spiffe_id};

use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::{Latencies, median};

/// SVIDs and connections with which the agent's memory is promised.
const SVIDS: usize = 250;
const CONNECTIONS: usize = 250;
/// Connections by which the growth is measured.
const FURTHER: usize = 500;
/// Streams by which it is, on so many of the connections.
const STREAMS: usize = 40;
const STREAMED: usize = 20;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
/// So many times the floor a fetch may take: attestation, the cache and the checks.
const MOST_OVER_FLOOR: f64 = 2.5;

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("workload_api");
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let idle = rss(&agent).await;
    admin
        .create(entry(&spiffe_id("/own"), &agent.id, &[&own_selector()]))
        .await;
    let mut stream = agent.workload().await.served().await;
    stream.until(|ids| ids.len() == 1).await.unwrap();
    drop(stream);

    let (ours, floor) = fetches(scale, &world, &agent).await;
    report.condition(
        "fetches",
        format!("{}, each on a fresh connection, one at a time", ours.len()),
    );
    report.promise("cached fetch, p50", ours.ms(0.5), "ms", Bar::AtMost(0.25));
    report.promise("cached fetch, p99", ours.ms(0.99), "ms", Bar::AtMost(0.5));
    report.figure(
        "floor: a server that checks nothing, p50",
        floor.ms(0.5),
        "ms",
    );
    report.figure(
        "floor: a server that checks nothing, p99",
        floor.ms(0.99),
        "ms",
    );
    let ratio = ours.ms(0.5) / floor.ms(0.5);
    report.gate(
        "cached fetch p50 / floor p50",
        ratio,
        "",
        Bar::AtMost(MOST_OVER_FLOOR),
    );
    tokens(&mut report, scale, &agent).await;
    report.figure("agent memory, idle", idle / MIB, "MiB");
    memory(&mut report, &world, &admin, &agent).await;
    report
}

/// Fetches from the agent and from the floor's server, by turns.
async fn fetches(scale: &Scale, world: &World, agent: &Agent) -> (Latencies, Latencies) {
    let socket = world.path("floor.sock");
    let args = ["floor-server", socket.to_str().unwrap()];
    let floor = Process::start("vane-bench", &args, &world.path("floor.log")).await;
    let (mut ours, mut floors) = (Latencies::default(), Latencies::default());
    for round in 0..scale.fetches + 50 {
        let one = fetch(scale, &agent.socket).await;
        let other = fetch(
            &Scale {
                stall: Duration::ZERO,
                ..scale.clone()
            },
            &socket,
        )
        .await;
        // The first few warm both up.
        if round >= 50 {
            ours.add(one);
            floors.add(other);
        }
    }
    floor.kill().await;
    (ours, floors)
}

async fn fetch(scale: &Scale, socket: &Path) -> Duration {
    let begun = System.monotonic();
    scale.stall().await;
    let mut stream = Workload::connect(socket).await.watch().await.unwrap();
    let message = stream.next().await.unwrap();
    let took = System.monotonic() - begun;
    assert_eq!(message.svids.len(), 1);
    took
}

/// JWT fetch from cache: on fresh connections, and on one that stays open.
async fn tokens(report: &mut Report, scale: &Scale, agent: &Agent) {
    let open = agent.workload().await;
    let begun = System.monotonic();
    token(&open).await;
    let first = System.monotonic() - begun;
    let (mut fresh, mut kept) = (Latencies::default(), Latencies::default());
    for _ in 0..scale.fetches {
        let begun = System.monotonic();
        scale.stall().await;
        token(&agent.workload().await).await;
        fresh.add(System.monotonic() - begun);
        let begun = System.monotonic();
        token(&open).await;
        kept.add(System.monotonic() - begun);
    }
    let first = first.as_secs_f64() * 1e3;
    report.figure("JWT fetch by the server, once", first, "ms");
    report.promise(
        "JWT fetch from cache, p50",
        fresh.ms(0.5),
        "ms",
        Bar::AtMost(0.25),
    );
    report.promise(
        "JWT fetch from cache, p99",
        fresh.ms(0.99),
        "ms",
        Bar::AtMost(0.5),
    );
    let (p50, p99) = (kept.ms(0.5), kept.ms(0.99));
    report.figure("JWT fetch from cache, open connection, p50", p50, "ms");
    report.figure("JWT fetch from cache, open connection, p99", p99, "ms");
}

async fn token(workload: &Workload) {
    let answer = workload.jwt("bench").await.unwrap();
    assert_eq!(answer.svids.len(), 1);
}

async fn memory(report: &mut Report, world: &World, admin: &Admin, agent: &Agent) {
    let others = (1..SVIDS).map(|at| {
        let id = spiffe_id(&format!("/other/{at}"));
        entry(&id, &agent.id, &[&format!("unix:uid:{}", 1_000_000 + at)])
    });
    admin.create_all(others.collect()).await;
    let log = world.path("server/audit.jsonl");
    sample::until("all SVIDs are there", || issued(&log) >= SVIDS).await;

    let mut held = Vec::new();
    open(agent, CONNECTIONS, &mut held).await;
    let promised = rss(agent).await;
    let name = format!("agent memory, {SVIDS} SVIDs and {CONNECTIONS} connections");
    report.gate(name, promised / MIB, "MiB", Bar::AtMost(25.0));

    open(agent, FURTHER, &mut held).await;
    let connected = rss(agent).await;
    let each = (connected - promised) / FURTHER as f64 / KIB;
    report.gate(
        "a further connection with a stream",
        each,
        "KiB",
        Bar::AtMost(40.0),
    );

    let mut streams = Vec::new();
    for (workload, _) in held.iter().take(STREAMED) {
        for _ in 0..STREAMS {
            let mut stream = workload.watch().await.unwrap();
            stream.next().await.unwrap();
            streams.push(stream);
        }
    }
    let each = (rss(agent).await - connected) / streams.len() as f64 / KIB;
    report.gate(
        "a further stream on a connection",
        each,
        "KiB",
        Bar::AtMost(12.0),
    );
    report.condition(
        "growth",
        format!("{FURTHER} connections, {} streams", streams.len()),
    );
}

async fn open(agent: &Agent, count: usize, held: &mut Vec<(Workload, SvidStream)>) {
    for _ in 0..count {
        let workload = agent.workload().await;
        let mut stream = workload.watch().await.unwrap();
        stream.next().await.unwrap();
        held.push((workload, stream));
    }
}

/// SVIDs of workloads in the log of the server.
fn issued(log: &Path) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .filter(|line| line.contains("/other/") && line.contains("x509"))
        .count()
        + 1
}

/// The median of a few readings, in bytes.
async fn rss(agent: &Agent) -> f64 {
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let mut all = Vec::new();
    for _ in 0..5 {
        looks.tick().await;
        all.push(agent.process.rss() as f64);
    }
    median(all)
}
