//! P6: `kill -9` of the agent while the server is down, until every SVID is served again.

use std::time::Duration;

use vane_chassis::clock::{Clock, System};
use vane_tests::admin::entry;
use vane_tests::process::{free_port, metric};
use vane_tests::world::{Agent, Options, World, own_selector, spiffe_id};

use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::median;

const SVIDS: usize = 250;
const KILLS: usize = 5;

pub(crate) async fn run(_: &Scale) -> Report {
    let mut report = Report::new("restart");
    let ops = free_port();
    let mut world = World::with(Options {
        agent_tables: format!("[telemetry]\nops_address = \"127.0.0.1:{ops}\"\n"),
        ..Options::default()
    })
    .await;
    let mut agent = world.agent("agent").await;
    let entries = (0..SVIDS).map(|at| {
        let id = spiffe_id(&format!("/w/{at}"));
        entry(&id, &agent.id, &[&own_selector()])
    });
    world.admin().await.create_all(entries.collect()).await;
    all(&agent).await;
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    while metric(ops, "vane_agent_sealed_x509_svids").await != SVIDS as u64 {
        looks.tick().await;
    }
    let bytes = metric(ops, "vane_agent_sealed_bytes").await;
    world.kill_server().await;
    let mut took = Vec::new();
    for _ in 0..KILLS {
        let begun = System.monotonic();
        agent = agent.kill_and_restart().await;
        all(&agent).await;
        took.push((System.monotonic() - begun).as_secs_f64() * 1_000.0);
    }
    report.condition(
        "restart",
        format!("{KILLS} kills, {SVIDS} SVIDs in one stream, from the kill to the last SVID"),
    );
    let worst = took.iter().copied().fold(0.0, f64::max);
    report.promise(
        "served again, median",
        median(took),
        "ms",
        Bar::AtMost(200.0),
    );
    report.promise("served again, worst", worst, "ms", Bar::AtMost(200.0));
    report.figure("sealed file", bytes as f64 / 1024.0, "KiB");
    report
}

async fn all(agent: &Agent) {
    let mut stream = agent.workload().await.served().await;
    stream.until(|ids| ids.len() == SVIDS).await.unwrap();
}
