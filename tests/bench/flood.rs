//! What a flood of idle connections costs the agent, and whether it is given back: 8,000 tried by
//! one process, whose limit lets some of them in, while another process fetches.

use std::time::Duration;

use vane_chassis::clock::{Clock as _, System};
use vane_tests::admin::entry;
use vane_tests::greedy::{self, Greedy};
use vane_tests::sample;
use vane_tests::world::{Agent, World, own_selector, spiffe_id};

use crate::options::Scale;
use crate::report::{Bar, Report};

const TRIED: usize = 8_000;
/// An allocator may give memory back in the background; later than this it is kept.
const PATIENCE: Duration = Duration::from_secs(10);
const MIB: f64 = 1024.0 * 1024.0;
/// After the flood there may be so many times the memory before it (issue "First light").
const MOST_KEPT: f64 = 1.2;

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("flood");
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/w"), &agent.id, &[&own_selector()]))
        .await;
    fetch(&agent).await;
    let (fresh, descriptors) = (rss(&agent), agent.process.descriptors());

    let mut greedy = Greedy::start(&agent.socket, greedy::at_most(TRIED)).await;
    let limit = vane_agent::limits::Bounds::for_descriptors(greedy::descriptors()).per_process;
    let let_in = greedy.settled(limit).await;
    let started = System.monotonic();
    fetch(&agent).await;
    let took = System.monotonic() - started;
    let most = rss(&agent);
    drop(greedy);
    sample::until("the descriptors are back", || {
        agent.process.descriptors() <= descriptors
    })
    .await;
    scale.stall().await;
    let least = least_within(PATIENCE, &agent, fresh * MOST_KEPT).await;

    report.condition("connections", format!("{TRIED} tried, {let_in} let in"));
    report.figure("another's fetch meanwhile", took.as_secs_f64() * 1e3, "ms");
    report.figure("agent memory before", fresh / MIB, "MiB");
    report.figure("agent memory in the flood", most / MIB, "MiB");
    report.figure("agent memory after", least / MIB, "MiB");
    let kept = least / fresh;
    report.gate("memory after / before", kept, "", Bar::AtMost(MOST_KEPT));
    report
}

async fn fetch(agent: &Agent) {
    let mut stream = agent.workload().await.served().await;
    stream.until(|ids| ids.len() == 1).await.unwrap();
}

fn rss(agent: &Agent) -> f64 {
    agent.process.rss() as f64
}

/// The least memory within `patience`, or the first below `enough`.
async fn least_within(patience: Duration, agent: &Agent, enough: f64) -> f64 {
    let until = System.monotonic() + patience;
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let mut least = f64::MAX;
    while least > enough && System.monotonic() < until {
        looks.tick().await;
        least = least.min(rss(agent));
    }
    least
}
