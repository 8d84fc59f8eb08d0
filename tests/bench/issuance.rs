//! P2: X.509-SVIDs through BatchNewX509SVID over TLS as an attested agent, each in the log
//! before it is signed; per CPU second of the server, against a bare loop in the same run. Then
//! JWT-SVIDs through NewJWTSVID in the same way: shown, not promised.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use vane_chassis::clock::{Clock, System};
use vane_identity::id::SpiffeId;
use vane_tests::world::{Options, World};

use crate::bare::BareCa;
use crate::bare_signer::BareSigner;
use crate::cpu;
use crate::node::{AUDIENCE, Asker};
use crate::options::Scale;
use crate::report::{Bar, Report};
use crate::stats::Latencies;

const ENTRIES: usize = 500;
/// Items of a call and calls under way at once: enough to keep the server busy, as a fleet
/// does.
const CASES: [(usize, usize); 4] = [(10, 16), (100, 4), (500, 4), (1, 64)];

/// Calls for tokens under way at once.
const TOKENS_AT_ONCE: usize = 64;

/// What one case found.
struct Rate {
    per_cpu_second: f64,
    per_second: f64,
}

/// Who asks, and what the answers are compared with.
struct Bench<'a> {
    scale: &'a Scale,
    server: u32,
    asker: Asker,
    ca: BareCa,
    time: Duration,
}

pub(crate) async fn run(scale: &Scale) -> Report {
    let mut report = Report::new("issuance");
    let options = Options {
        server_tables: "[ratelimit]\nsigning = false\n".to_owned(),
        ..Options::default()
    };
    let world = World::with(options).await;
    let admin = world.admin().await;
    let bench = Bench {
        scale,
        server: world.server().pid(),
        asker: Asker::new(&world, &admin, ENTRIES).await,
        ca: BareCa::new(),
        time: Duration::from_secs(scale.seconds),
    };
    report.condition("keys", "EC P-256, CA and workloads");
    report.condition("log", "required, fdatasync per group");
    report.condition("seconds of a case", scale.seconds);
    bench.load(100, 4, bench.time / 2).await;
    match scale.batch {
        Some(batch) => bench.case(&mut report, batch, scale.at_once).await,
        None => {
            for (batch, at_once) in CASES {
                bench.case(&mut report, batch, at_once).await;
            }
            // One caller alone pays an fdatasync for each SVID: shown, not promised.
            let alone = bench.load(1, 1, bench.time).await.per_cpu_second;
            report.figure("batches of 1, 1 at once: a CPU second", alone, "SVIDs");
            bench.tokens(&mut report).await;
        }
    }
    report
}

impl Bench<'_> {
    /// Measures one case between two bare loops: the clock of the machine moves.
    async fn case(&self, report: &mut Report, batch: usize, at_once: usize) {
        let before = self.bare();
        let rate = self.load(batch, at_once, self.time).await;
        let bare = (before + self.bare()) / 2.0;
        let name = format!("batches of {batch}, {at_once} at once");
        report.figure(format!("{name}: a second"), rate.per_second, "SVIDs");
        let per_cpu = rate.per_cpu_second;
        report.figure(format!("{name}: a CPU second"), per_cpu, "SVIDs");
        report.figure(format!("{name}: bare loop"), bare, "SVIDs");
        let least = Bar::AtLeast(if batch == 1 { 0.5 } else { 0.75 });
        report.gate(format!("{name}: share"), per_cpu / bare, "", least);
        if batch <= 10 {
            let half = per_cpu / 2.0;
            let all = self.paced(batch, half).await;
            let name = format!("batches of {batch} at {half:.0}/s");
            report.figure(format!("{name}, p50"), all.ms(0.5), "ms");
            report.promise(
                format!("{name}, p99"),
                all.ms(0.99),
                "ms",
                Bar::AtMost(25.0),
            );
        }
    }

    /// SVIDs per CPU second of the bare loop.
    fn bare(&self) -> f64 {
        let id = SpiffeId::parse("spiffe://example.org/asked/0").unwrap();
        let csrs = self.asker.csrs();
        let (before, mut count) = (cpu::own(), 0);
        let end = System.monotonic() + self.time / 2;
        while System.monotonic() < end {
            for csr in &csrs {
                std::hint::black_box(self.ca.issue(csr, &id, System.now()));
                count += 1;
            }
        }
        f64::from(count) / (cpu::own() - before).as_secs_f64()
    }

    /// Tokens one by one, between two bare loops.
    async fn tokens(&self, report: &mut Report) {
        let before = self.bare_tokens();
        let requests = self.asker.token_requests();
        let ask = |request| self.asker.ask_token(request);
        let rate = self
            .saturate(&requests, TOKENS_AT_ONCE, self.time, ask)
            .await;
        let bare = (before + self.bare_tokens()) / 2.0;
        let name = format!("tokens, {TOKENS_AT_ONCE} at once");
        report.figure(format!("{name}: a second"), rate.per_second, "JWT-SVIDs");
        let per_cpu = rate.per_cpu_second;
        report.figure(format!("{name}: a CPU second"), per_cpu, "JWT-SVIDs");
        report.figure(format!("{name}: bare loop"), bare, "JWT-SVIDs");
        report.figure(format!("{name}: share"), per_cpu / bare, "");
    }

    /// Tokens per CPU second of the bare loop.
    fn bare_tokens(&self) -> f64 {
        let id = SpiffeId::parse("spiffe://example.org/asked/0").unwrap();
        let (signer, audience) = (BareSigner::new(), [AUDIENCE.to_owned()]);
        let (before, mut count) = (cpu::own(), 0);
        let end = System.monotonic() + self.time / 2;
        while System.monotonic() < end {
            for _ in 0..100 {
                std::hint::black_box(signer.issue(&id, &audience, System.now()));
                count += 1;
            }
        }
        f64::from(count) / (cpu::own() - before).as_secs_f64()
    }

    /// Asks for certificates as fast as it is answered.
    async fn load(&self, batch: usize, at_once: usize, time: Duration) -> Rate {
        let requests = self.asker.requests(batch);
        let ask = |request| self.asker.ask(request);
        self.saturate(&requests, at_once, time, ask).await
    }

    /// Asks as fast as it is answered.
    async fn saturate<F: Future<Output = usize>>(
        &self,
        requests: &[Bytes],
        at_once: usize,
        time: Duration,
        ask: impl Fn(Bytes) -> F,
    ) -> Rate {
        let mut next = requests.iter().cycle().cloned();
        let mut ask = || ask(next.next().unwrap_or_default());
        let mut under_way: FuturesUnordered<_> = (0..at_once).map(|_| ask()).collect();
        let (begun, before) = (System.monotonic(), cpu::used(self.server));
        let mut issued = 0;
        while let Some(count) = under_way.next().await {
            issued += count;
            if System.monotonic() - begun < time {
                under_way.push(ask());
            }
        }
        let (took, used) = (System.monotonic() - begun, cpu::used(self.server) - before);
        Rate {
            per_cpu_second: issued as f64 / used.as_secs_f64(),
            per_second: issued as f64 / took.as_secs_f64(),
        }
    }

    /// Asks at a rate, whatever is not yet answered, and measures from when each was due.
    async fn paced(&self, batch: usize, rate: f64) -> Latencies {
        let (time, requests) = (self.time, self.asker.requests(batch));
        let gap = Duration::from_secs_f64(batch as f64 / rate);
        let begun = System.monotonic();
        let ask = |request: Bytes, due| async move {
            self.scale.stall().await;
            self.asker.ask(request).await;
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
}
