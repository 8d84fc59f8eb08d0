//! A store as its operator sees it: how long commits take, how often it failed, what is wrong
//! with it now. A wrapper around any engine, so that no engine counts by itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Latency;

use crate::kv::{CommitError, Epoch, Item, Kv, KvError, Page, Revision, Txn, Watch, WatchError};

/// See the module.
pub struct Observed {
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    commits: Latency,
    failures: AtomicU64,
    failed: AtomicBool,
    error: Mutex<Option<KvError>>,
}

impl Observed {
    /// Looks at `kv`.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            kv,
            clock,
            commits: Latency::default(),
            failures: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        })
    }

    /// How long commits took that were applied.
    #[must_use]
    pub fn commits(&self) -> &Latency {
        &self.commits
    }

    /// How often the store could not answer.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Why the last call failed; none when it did not.
    #[must_use]
    pub fn error(&self) -> Option<KvError> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<KvError>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of how a call went: without a lock while all is well.
    fn note(&self, error: Option<&KvError>) {
        match error {
            Some(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                *self.lock() = Some(error.clone());
                self.failed.store(true, Ordering::Release);
            }
            None if self.failed.load(Ordering::Acquire) => {
                self.failed.store(false, Ordering::Release);
                *self.lock() = None;
            }
            None => {}
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Observed").field(&self.kv).finish()
    }
}

#[async_trait]
impl Kv for Observed {
    async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
        let got = self.kv.get(key).await;
        self.note(got.as_ref().err());
        got
    }

    async fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Page, KvError> {
        let page = self.kv.scan(prefix, after, limit).await;
        self.note(page.as_ref().err());
        page
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let started = self.clock.monotonic();
        let done = self.kv.commit(txn).await;
        match &done {
            Ok(_) => {
                let elapsed = self.clock.monotonic().saturating_duration_since(started);
                self.commits.observe(elapsed);
                self.note(None);
            }
            Err(CommitError::Kv(error)) => self.note(Some(error)),
            // The store answered: the transaction was not one that it takes.
            Err(_) => self.note(None),
        }
        done
    }

    fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
        self.kv.watch(prefix, from)
    }

    fn epoch(&self) -> Epoch {
        self.kv.epoch()
    }

    fn revision(&self) -> Revision {
        self.kv.revision()
    }
}

#[cfg(test)]
mod tests {
    use vane_chassis::clock::System;

    use super::*;
    use crate::kv::FREE_SPACE;
    use crate::memory::MemoryKv;

    /// A store whose next answer is an error, when there is one.
    #[derive(Debug)]
    struct Failing(MemoryKv, Mutex<Option<KvError>>);

    #[async_trait]
    impl Kv for Failing {
        async fn get(&self, key: &[u8]) -> Result<Option<Item>, KvError> {
            let error = self.1.lock().unwrap().take();
            error.map_or(Ok(()), Err)?;
            self.0.get(key).await
        }
        async fn scan(&self, p: &[u8], a: Option<&[u8]>, l: usize) -> Result<Page, KvError> {
            self.0.scan(p, a, l).await
        }
        async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
            let error = self.1.lock().unwrap().take();
            error.map_or(Ok(()), Err)?;
            self.0.commit(txn).await
        }
        fn watch(&self, prefix: &[u8], from: Revision) -> Result<Watch, WatchError> {
            self.0.watch(prefix, from)
        }
        fn epoch(&self) -> Epoch {
            self.0.epoch()
        }
        fn revision(&self) -> Revision {
            self.0.revision()
        }
    }

    #[tokio::test]
    async fn what_failed_is_told_until_the_store_answers_again() {
        let full = KvError::Unavailable {
            cause: "c".to_owned(),
            way_out: FREE_SPACE.to_owned(),
        };
        let failing = Arc::new(Failing(MemoryKv::new().unwrap(), Mutex::new(None)));
        let observed = Observed::new(Arc::<Failing>::clone(&failing), Arc::new(System));
        observed.commit(Txn::new().put("a", "b")).await.unwrap();
        *failing.1.lock().unwrap() = Some(full.clone());
        observed.commit(Txn::new().put("a", "c")).await.unwrap_err();
        assert_eq!((observed.error(), observed.failures()), (Some(full), 1));
        assert!(observed.error().unwrap().is_full());
        let txn = Txn::new().when(crate::kv::Compare::Absent("a".into()));
        observed.commit(txn).await.unwrap_err();
        assert_eq!(observed.error(), None, "a conflict is an answer");
        assert_eq!(observed.commits().count(), 1);
    }
}
