//! Sizes of the binaries, time until the ready line, and memory then.

use std::path::PathBuf;

use vane_chassis::clock::{Clock, System};
use vane_tests::process::rss_of;
use vane_tests::world::World;

use crate::machine;
use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::median;

const STARTS: usize = 5;
const MB: f64 = 1e6;
const MIB: f64 = 1024.0 * 1024.0;
const BINARIES: [(&str, f64); 3] = [
    ("vane-server", 7.0),
    ("vane-agent", 6.0),
    ("vane", f64::MAX),
];

pub(crate) async fn run(_: &Scale) -> Report {
    let mut report = Report::new("size");
    for (name, most) in BINARIES {
        binary(&mut report, name, most);
    }
    let (mut first, mut again, mut agents) = (Vec::new(), Vec::new(), Vec::new());
    let (mut server_rss, mut agent_rss) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let begun = System.monotonic();
        let mut world = World::start().await;
        first.push((System.monotonic() - begun).as_secs_f64() * 1e3);
        world.server.take().unwrap().terminate().await;
        let begun = System.monotonic();
        world.restart_server().await;
        again.push((System.monotonic() - begun).as_secs_f64() * 1e3);
        server_rss.push(rss_of(world.server().pid()) as f64 / MIB);
        let agent = world.agent("agent").await;
        let begun = System.monotonic();
        let agent = agent.kill_and_restart().await;
        agents.push((System.monotonic() - begun).as_secs_f64() * 1e3);
        agent_rss.push(rss_of(agent.process.pid()) as f64 / MIB);
    }
    report.condition("starts", format!("{STARTS}, medians"));
    let most = Bar::AtMost(50.0);
    report.promise("server ready, first start", median(first), "ms", most);
    report.promise("server ready, on its data", median(again), "ms", most);
    report.promise("agent ready, on its data", median(agents), "ms", most);
    report.figure("server memory at ready", median(server_rss), "MiB");
    report.figure("agent memory at ready", median(agent_rss), "MiB");
    report
}

/// The size of a binary beside this one; a gate in the profile that is shipped.
fn binary(report: &mut Report, name: &str, most: f64) {
    let path = beside(name);
    let Ok(meta) = std::fs::metadata(&path) else {
        report.condition("not built", name);
        return;
    };
    let size = meta.len() as f64 / MB;
    let name = format!("{name}, file");
    match machine::profile().as_str() {
        "dist" if most < f64::MAX => report.gate(name, size, "MB", Bar::AtMost(most)),
        _ => report.figure(name, size, "MB"),
    }
}

fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.with_file_name(name)
}
