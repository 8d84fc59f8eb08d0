//! P2: X.509-SVIDs through BatchNewX509SVID over TLS as an attested agent, each in the log
//! before it is signed; per CPU second of the server, against a bare loop in the same run.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use vane_chassis::clock::{Clock, System};
use vane_identity::id::SpiffeId;
use vane_tests::world::{Options, World};

use crate::bare::BareCa;
use crate::cpu;
use crate::node::Asker;
use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::{Latencies, median};

const ENTRIES: usize = 500;
/// Calls under way at once where nothing else is said.
const AT_ONCE: usize = 4;
const BATCHES: [usize; 3] = [10, 100, 500];

/// What one phase found.
struct Phase {
    per_cpu_second: f64,
    per_second: f64,
}

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("issuance");
    let options = Options {
        server_tables: "[ratelimit]\nsigning = false\n".to_owned(),
        ..Options::default()
    };
    let world = World::with(options).await;
    let admin = world.admin().await;
    let asker = Asker::new(&world, &admin, ENTRIES).await;
    let time = Duration::from_secs(scale.seconds);
    report.condition("keys", "EC P-256, CA and workloads");
    report.condition("log", "required, fdatasync per group");
    report.condition("seconds of a phase", scale.seconds);
    report.condition("calls under way at once", AT_ONCE);

    let (ca, csrs) = (BareCa::new(), asker.csrs());
    let id = SpiffeId::parse("spiffe://example.org/asked/0").unwrap();
    let bare = || bare_rate(&ca, &csrs, &id, time / 2);
    load(&asker, world.server().pid(), 100, AT_ONCE, time / 2).await;
    let mut bares = vec![bare()];
    let mut phases = Vec::new();
    for (batch, at_once) in BATCHES
        .map(|batch| (batch, AT_ONCE))
        .into_iter()
        .chain([(1, 1), (1, AT_ONCE)])
    {
        let phase = load(&asker, world.server().pid(), batch, at_once, time).await;
        bares.push(bare());
        phases.push((batch, at_once, phase));
    }
    let bare = median(bares.clone());
    report.figure("bare loop, per CPU second", bare, "SVIDs");
    for (at, (batch, at_once, phase)) in phases.iter().enumerate() {
        // The bare loop just before and just after: the clock of the machine moves.
        let beside = (bares[at] + bares[at + 1]) / 2.0;
        let least = if *batch == 1 { 0.5 } else { 0.75 };
        let name = format!("batches of {batch}, {at_once} at once");
        report.figure(format!("{name}: a second"), phase.per_second, "SVIDs");
        report.figure(
            format!("{name}: per CPU second"),
            phase.per_cpu_second,
            "SVIDs",
        );
        let ratio = phase.per_cpu_second / beside;
        report.gate(
            format!("{name}: share of the bare loop"),
            ratio,
            "",
            Bar::AtLeast(least),
        );
    }
    for (batch, phase) in [(10, &phases[0].2), (1, &phases[4].2)] {
        let rate = phase.per_cpu_second / 2.0;
        let all = paced(scale, &asker, batch, rate, time).await;
        report.figure(
            format!("batches of {batch} at half rate: SVIDs a second"),
            rate,
            "SVIDs",
        );
        report.figure(
            format!("batches of {batch} at half rate, p50"),
            all.ms(0.5),
            "ms",
        );
        let name = format!("batches of {batch} at half rate, p99");
        report.promise(name, all.ms(0.99), "ms", Bar::AtMost(25.0));
    }
    report
}

/// SVIDs per CPU second of the bare loop.
fn bare_rate(ca: &BareCa, csrs: &[Vec<u8>], id: &SpiffeId, time: Duration) -> f64 {
    let (before, mut count) = (cpu::own(), 0);
    let end = System.monotonic() + time;
    while System.monotonic() < end {
        for csr in csrs {
            std::hint::black_box(ca.issue(csr, id, System.now()));
            count += 1;
        }
    }
    f64::from(count) / (cpu::own() - before).as_secs_f64()
}

/// Asks as fast as it is answered.
async fn load(asker: &Asker, server: u32, batch: usize, at_once: usize, time: Duration) -> Phase {
    let requests = asker.requests(batch);
    let mut next = requests.iter().cycle().cloned();
    let mut ask = || asker.ask(next.next().unwrap_or_default());
    let mut under_way: FuturesUnordered<_> = (0..at_once).map(|_| ask()).collect();
    let (begun, before) = (System.monotonic(), cpu::used(server));
    let mut issued = 0;
    while let Some(count) = under_way.next().await {
        issued += count;
        if System.monotonic() - begun < time {
            under_way.push(ask());
        }
    }
    let (took, used) = (System.monotonic() - begun, cpu::used(server) - before);
    Phase {
        per_cpu_second: issued as f64 / used.as_secs_f64(),
        per_second: issued as f64 / took.as_secs_f64(),
    }
}

/// Asks at a rate, whatever is not yet answered, and measures from when each was due.
async fn paced(scale: &Scale, asker: &Asker, batch: usize, rate: f64, time: Duration) -> Latencies {
    let requests = asker.requests(batch);
    let gap = Duration::from_secs_f64(batch as f64 / rate);
    let begun = System.monotonic();
    let ask = |request: Bytes, due| async move {
        scale.stall().await;
        asker.ask(request).await;
        System.monotonic() - due
    };
    let (mut under_way, mut all) = (FuturesUnordered::new(), Latencies::default());
    let (mut due, mut next) = (begun, requests.iter().cycle().cloned());
    while due - begun < time || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(took) = under_way.next() => all.add(took),
            // A timer has a granularity of a millisecond: what was due meanwhile goes at once.
            () = tokio::time::sleep_until(due.into()), if due - begun < time => {
                while due <= System.monotonic() && due - begun < time {
                    under_way.push(ask(next.next().unwrap_or_default(), due));
                    due += gap;
                }
            }
        }
    }
    all
}
