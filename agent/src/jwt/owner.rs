//! The task that owns the tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::tasks::TaskSet;
use vane_client::channel::Channel;
use vane_identity::bundle::Bundle;
use vane_identity::entry::Entry;
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::lifetime::{Jitter, from_unix};

use super::held::is_tainted;
use super::key::Key;
use super::pace::Paces;
use super::reader::{Answer, Ask, Refusal, Tokens, Waiter};
use super::table::{Bounds, Full, Receipt, Table};
use crate::counters::Counters;
use crate::issue::jwt::{JwtIssueError, jwt_svid};
use crate::sealed::{Handle, Token};
use crate::snapshot::Snapshot;

/// Callers and answers that wait to be taken; who comes then waits.
const QUEUE: usize = 1_024;

/// What the owner is made from.
pub struct Deps {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// The entries and bundles, as they change.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The server, while it can be asked.
    pub server: watch::Receiver<Option<Channel>>,
    /// The most that is held.
    pub bounds: Bounds,
    /// Takes what is to be kept over a restart.
    pub sealer: Option<Handle>,
    /// What is counted.
    pub counters: Counters,
}

/// The owner's side.
pub struct JwtCache {
    deps: Deps,
    table: Table<Waiter>,
    paces: Paces,
    tokens: Tokens,
    asks: mpsc::Receiver<Ask>,
    results: (mpsc::Sender<Fetched>, mpsc::Receiver<Fetched>),
    tasks: TaskSet,
}

/// What came of a call.
struct Fetched {
    key: Key,
    result: Result<JwtSvid, JwtIssueError>,
}

impl JwtCache {
    /// An empty cache and its readers' side.
    #[must_use]
    pub fn new(deps: Deps) -> (Self, Tokens) {
        let (sender, asks) = mpsc::channel(QUEUE);
        let tokens = Tokens {
            published: Arc::default(),
            uses: Arc::new(AtomicU64::new(0)),
            asks: sender,
            clock: Arc::clone(&deps.clock),
            counters: deps.counters.clone(),
        };
        let cache = Self {
            table: Table::new(deps.bounds),
            paces: Paces::default(),
            tokens: tokens.clone(),
            asks,
            results: mpsc::channel(QUEUE),
            tasks: TaskSet::new("jwt"),
            deps,
        };
        (cache, tokens)
    }

    /// Goes on with what was sealed before a restart, as far as it is good for the entries and
    /// the bundle that were sealed with it: it is served from now on.
    #[must_use]
    pub fn restore(mut self, tokens: &[Arc<Token>]) -> Self {
        let snapshot = Arc::clone(&self.deps.snapshots.borrow());
        let entry = |id: &_| snapshot.find(id).map(|served| Arc::clone(&served.entry));
        let now = self.deps.clock.now();
        self.table.restore(tokens, entry, own(&snapshot), now);
        self.publish();
        self
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// None.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut jumps = self.deps.clock.jumps();
        loop {
            let now = self.deps.clock.now();
            self.table.expire(now);
            self.ask_due(now);
            self.publish();
            let next = self.table.next_time(now, self.is_online());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = self.deps.snapshots.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    // `changed` marked it as seen.
                    self.deps.snapshots.mark_changed();
                    self.follow();
                }
                Ok(()) = self.deps.server.changed() => self.table.retry_now(),
                () = jumps.next() => self.table.retry_now(),
                Some(ask) = self.asks.recv() => self.on_ask(ask),
                Some(fetched) = self.results.1.recv() => self.on_fetched(fetched),
                () = at(&*self.deps.clock, next) => {}
            }
        }
    }

    fn is_online(&self) -> bool {
        self.deps.server.borrow().is_some()
    }

    /// The newest entries and bundles, taken in.
    fn follow(&mut self) -> Arc<Snapshot> {
        let newest = self.deps.snapshots.borrow_and_update();
        let (is_new, snapshot) = (newest.has_changed(), Arc::clone(&newest));
        drop(newest);
        if is_new {
            let entry = |id: &_| snapshot.find(id).map(|served| Arc::clone(&served.entry));
            self.table.follow(entry, own(&snapshot));
        }
        snapshot
    }

    fn on_ask(&mut self, ask: Ask) {
        let snapshot = self.follow();
        let Ask {
            key,
            entry,
            customer,
            waiter,
        } = ask;
        let current = snapshot.find(&key.entry);
        // Dropped, the waiter learns that the entry changed.
        if !current.is_some_and(|served| key.is_of(&served.entry)) {
            return;
        }
        let now = self.deps.clock.now();
        if let Some(held) = self.table.best(&key, now, self.is_online()) {
            held.touch(self.next_use());
            answer(waiter, Ok(held.svid().clone()));
            return;
        }
        let monotonic = self.deps.clock.monotonic();
        if !self.table.has(&key) && !self.paces.take(&customer, monotonic) {
            answer(waiter, Err(Refusal::Pace));
        } else if let Err((waiter, Full)) = self.table.wait(key, entry, waiter) {
            answer(waiter, Err(Refusal::Full));
        }
    }

    fn next_use(&self) -> u64 {
        self.tokens.uses.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn ask_due(&mut self, now: SystemTime) {
        let Some(channel) = self.deps.server.borrow().clone() else {
            return;
        };
        for (key, entry) in self.table.take_due(now) {
            self.fetch(channel.clone(), key, entry);
        }
    }

    fn fetch(&self, channel: Channel, key: Key, entry: Arc<Entry>) {
        let results = self.results.0.clone();
        self.tasks.spawn(async move {
            let result = jwt_svid(channel, &entry, key.audience.all()).await;
            // The receiver lives as long as the cache.
            let _ = results.send(Fetched { key, result }).await;
        });
    }

    fn on_fetched(&mut self, fetched: Fetched) {
        let snapshot = self.follow();
        let Fetched { key, result } = fetched;
        let counters = &self.deps.counters;
        let count = match &result {
            Ok(_) => &counters.jwt_svids_received,
            Err(_) => &counters.jwt_svids_failed,
        };
        count.inc();
        match self.check(result, own(&snapshot)) {
            Ok(svid) => self.received(&key, svid, &snapshot),
            Err(refusal) => self.failed(&key, &refusal),
        }
    }

    /// What is valid and signed by a good key is taken.
    fn check(&self, result: Result<JwtSvid, JwtIssueError>, bundle: Option<&Bundle>) -> Answer {
        let svid = result.map_err(|error| Refusal::Failed(Arc::new(error)))?;
        if bundle.is_some_and(|bundle| is_tainted(&svid, bundle)) {
            return Err(Refusal::Tainted);
        }
        if from_unix(svid.expires_at()) <= self.deps.clock.now() {
            return Err(Refusal::Expired);
        }
        Ok(svid)
    }

    fn received(&mut self, key: &Key, svid: JwtSvid, snapshot: &Snapshot) {
        let receipt = Receipt {
            now: self.deps.clock.now(),
            jitter: Jitter::new(fastrand::f64() * 2.0 - 1.0),
            count: self.tokens.uses.load(Ordering::Relaxed),
            bundle: own(snapshot),
        };
        let Some((held, waiters)) = self.table.received(key, svid, receipt) else {
            return;
        };
        for waiter in waiters {
            held.touch(self.next_use());
            answer(waiter, Ok(held.svid().clone()));
        }
    }

    fn failed(&mut self, key: &Key, refusal: &Refusal) {
        let now = self.deps.clock.now();
        let is_passing = match refusal {
            Refusal::Failed(error) => error.is_passing(),
            _ => false,
        };
        let monotonic = Instant::now();
        let stays =
            |waiter: &Waiter, delay: Duration| is_passing && monotonic + delay < waiter.until;
        let Some((delay, told)) = self.table.failed(key, now, stays) else {
            return;
        };
        let (entry_id, delay_ms) = (&key.entry, delay.as_millis());
        if told.is_empty() {
            tracing::warn!(%entry_id, error = %refusal, delay_ms, "no new JWT-SVID yet");
        } else {
            // Callers are told; they must not be able to fill the log.
            tracing::debug!(%entry_id, error = %refusal, "no JWT-SVID");
        }
        for waiter in told {
            answer(waiter, Err(refusal.clone()));
        }
    }

    fn publish(&mut self) {
        let Some(urgency) = self.table.take_changed() else {
            return;
        };
        let held = self.table.held();
        let count = i64::try_from(held.len()).unwrap_or(i64::MAX);
        self.deps.counters.jwt_svids.set(count);
        if let Some(sealer) = &self.deps.sealer {
            let tokens = held.values().map(|one| Arc::clone(&one.token));
            sealer.keep_tokens(tokens.collect(), urgency);
        }
        self.tokens.published.store(Arc::new(held));
    }
}

/// The bundle of the own trust domain.
fn own(snapshot: &Snapshot) -> Option<&Bundle> {
    snapshot.own_bundle().map(Arc::as_ref)
}

/// Tells a caller; one that went away misses nothing.
fn answer(waiter: Waiter, answer: Answer) {
    let _ = waiter.reply.send(answer);
}

/// Waits until `time`, for ever without one.
async fn at(clock: &dyn Clock, time: Option<SystemTime>) {
    match time {
        Some(time) => sleep_until(clock, time).await,
        None => std::future::pending().await,
    }
}
