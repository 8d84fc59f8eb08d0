//! How the state gets to know: pages at start, then the watch, the clock for what expires.
//!
//! A watch that fell behind is replaced by another walk over the pages while readers go on:
//! what the pages lack is deleted, what they have is put, older revisions are ignored.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::{Clock, sleep_until};
use vane_identity::id::TrustDomain;
use vane_identity::lifetime::{from_unix, to_unix};
use vane_store::kv::{Kv, KvError, Revision, Watch, WatchError};
use vane_store::tables::bundles;

use super::inner::{Inner, Span};
use super::rows::{Batch, Part, TABLES};
use super::{State, StateError};

/// Items of a page; applied under one lock.
const PAGE: usize = 500;
/// The state is confirmed this often without being asked.
const CONFIRM_EVERY: Duration = Duration::from_secs(5);
/// A confirmation that takes longer has failed.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

impl State {
    /// Loads everything from the store.
    ///
    /// # Errors
    /// [`StateError::Kv`] when the store cannot be read or holds something that this version
    /// cannot read; the text names the way out.
    pub async fn load(
        kv: Arc<dyn Kv>,
        clock: Arc<dyn Clock>,
        trust_domain: TrustDomain,
    ) -> Result<Arc<Self>, StateError> {
        let server = trust_domain.server_id();
        let server = server.map_err(|_| StateError::TrustDomain(trust_domain.clone()))?;
        let confirmed = clock.monotonic();
        let state = Self {
            inner: RwLock::new(Inner::new(&server)),
            kv,
            clock,
            trust_domain,
            applied: watch::Sender::new(0),
            bundles_changed: watch::Sender::new(0),
            confirmed: Mutex::new(confirmed),
            watch: Mutex::new(None),
        };
        let watch = state.snapshot().await?;
        *state.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(Arc::new(state))
    }

    /// Follows the store until `stop`.
    ///
    /// # Errors
    /// When the store ends, or holds something that this version cannot read.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) -> Result<(), StateError> {
        let watch = self
            .watch
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let watch = watch.ok_or(StateError::Running)?;
        tokio::select! {
            () = stop.cancelled() => Ok(()),
            ended = self.follow(watch) => ended,
            () = self.keep_confirmed() => Ok(()),
        }
    }

    async fn follow(&self, mut watch: Watch) -> Result<(), StateError> {
        let mut jumps = self.clock.jumps();
        loop {
            let expiry = self.read().graph.next_expiry();
            tokio::select! {
                change = watch.next() => match change {
                    Ok(change) => self.apply(Batch::of_change(&change, &self.trust_domain)?),
                    Err(WatchError::Closed) => return Err(WatchError::Closed.into()),
                    Err(error) => {
                        tracing::warn!(%error, "change feed lost, reading everything again");
                        watch = self.snapshot_again().await?;
                    }
                },
                () = self.expiry(expiry) => self.expire(),
                () = jumps.next() => self.expire(),
            }
        }
    }

    async fn expiry(&self, at: Option<i64>) {
        match at {
            Some(at) => sleep_until(&*self.clock, from_unix(at)).await,
            None => std::future::pending().await,
        }
    }

    /// Lets what expired by the clock count no longer.
    pub(super) fn expire(&self) {
        let now = to_unix(self.clock.now());
        let woken = self.write().expire(now);
        woken.iter().for_each(|stream| stream.wake());
    }

    /// Applies a batch and tells everybody.
    pub(super) fn apply(&self, batch: Batch) {
        let now = to_unix(self.clock.now());
        let (woken, applied, bundles) = {
            let mut inner = self.write();
            let woken = inner.apply(batch, now);
            (woken, inner.applied, inner.bundle_revision)
        };
        woken.iter().for_each(|stream| stream.wake());
        raise(&self.applied, applied);
        raise(&self.bundles_changed, bundles);
    }

    /// Reads all tables; the watch goes on where they ended.
    pub(super) async fn snapshot(&self) -> Result<Watch, StateError> {
        loop {
            let mut from = Revision::MAX;
            for table in TABLES {
                from = from.min(self.table(table).await?);
            }
            match self.kv.watch(b"", from) {
                Err(WatchError::Gone { .. }) => {
                    tracing::warn!("store changes faster than it is read");
                }
                watch => {
                    let watch = watch?;
                    self.apply(Batch {
                        revision: from,
                        rows: Vec::new(),
                    });
                    return Ok(watch);
                }
            }
        }
    }

    /// Reads one table; returns the lowest revision of its pages. A page is read and decoded
    /// on another thread while the one before it is applied.
    async fn table(&self, table: &'static [u8]) -> Result<Revision, StateError> {
        let mut lowest = Revision::MAX;
        let mut after = None;
        let mut next = Some(self.part(table, None));
        while let Some(part) = next.take() {
            let mut part = part.await.map_err(StateError::Interrupted)??;
            lowest = lowest.min(part.revision);
            let upto = part.keys.last().cloned().filter(|_| part.more);
            next = upto.clone().map(|last| self.part(table, Some(last)));
            let span = Span {
                table,
                trust_domain: &self.trust_domain,
                after: after.as_deref(),
                upto: upto.as_deref(),
            };
            let missing = self.read().missing(&span, &part.keys);
            part.delete(missing);
            self.apply(part.batch);
            after = upto;
        }
        Ok(lowest)
    }

    fn part(
        &self,
        table: &'static [u8],
        after: Option<Bytes>,
    ) -> JoinHandle<Result<Part, KvError>> {
        let kv = Arc::clone(&self.kv);
        let trust_domain = self.trust_domain.clone();
        let runtime = Handle::current();
        tokio::task::spawn_blocking(move || {
            let page = runtime.block_on(kv.scan(table, after.as_deref(), PAGE))?;
            Part::of_page(page, &trust_domain)
        })
    }

    /// As [`State::snapshot`], with patience: readers go on with what they have.
    async fn snapshot_again(&self) -> Result<Watch, StateError> {
        let policy = Policy::new(Duration::from_millis(50), Duration::from_secs(5), 2.0);
        let mut backoff = policy
            .ok()
            .map(|policy| Backoff::new(policy, fastrand::Rng::new()));
        loop {
            match self.snapshot().await {
                Err(StateError::Kv(error @ KvError::Unavailable { .. })) => {
                    let wait = backoff.as_mut().map(Backoff::next_delay);
                    tracing::warn!(%error, ?wait, "store cannot be read, trying again");
                    tokio::time::sleep(wait.unwrap_or(CONFIRM_EVERY)).await;
                }
                done => return done,
            }
        }
    }

    /// Makes sure that the state has everything that was acknowledged before this call, by a
    /// linearizable read. What a caller denies after this is denied by the store.
    ///
    /// # Errors
    /// [`KvError`] when the store cannot be read, or the state does not keep up with it.
    pub async fn confirm(&self) -> Result<(), KvError> {
        let asked_at = self.clock.monotonic();
        let key = bundles::key(&self.trust_domain);
        let read = async {
            self.kv.get(&key).await?;
            self.wait_for(self.kv.revision()).await;
            Ok(())
        };
        tokio::time::timeout(CONFIRM_WITHIN, read)
            .await
            .map_err(|_| late())??;
        let mut confirmed = self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *confirmed = asked_at.max(*confirmed);
        Ok(())
    }

    /// Confirms again and again, so that [`State::confirmed_age`] grows only while the store
    /// does not answer.
    async fn keep_confirmed(&self) {
        let mut jumps = self.clock.jumps();
        loop {
            if let Err(error) = self.confirm().await {
                tracing::warn!(%error, "state cannot be confirmed");
            }
            // A machine that slept may have missed what others stored.
            tokio::select! {
                () = tokio::time::sleep(CONFIRM_EVERY) => {}
                () = jumps.next() => {}
            }
        }
    }
}

fn late() -> KvError {
    KvError::Unavailable {
        cause: format!("no answer within {CONFIRM_WITHIN:?}"),
        way_out: "the server tries again by itself; look at the store's own messages".to_owned(),
    }
}

fn raise(sender: &watch::Sender<Revision>, to: Revision) {
    sender.send_if_modified(|revision| {
        let higher = *revision < to;
        *revision = to.max(*revision);
        higher
    });
}
