//! The server's hot state: entries, agents and bundles in memory, following the store.
//!
//! Loaded once by pages, then kept by the store's watch; whoever committed waits until its
//! revision is applied ([`State::wait_for`]) and reads its own write. One task
//! ([`State::run`]) changes it. *Hot state may allow, it may not deny*: who is about to deny
//! something calls [`State::confirm`] first and looks again.
//!
//! A reader takes a read lock for one lookup, or for a bounded part of a walk (500 entries);
//! the writer holds the lock for one commit (at most 100 changes) and the streams it
//! concerns. So nobody waits longer than that, and a million entries stand in memory once:
//! a snapshot for readers would need them twice, or persistent trees of about thrice the size.

mod message;
mod rows;

mod outbox;

mod live;

mod fanout;

mod inner;

mod connection;
mod follow;
mod query;

mod sparse;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vane_chassis::clock::Clock;
use vane_identity::id::TrustDomain;
use vane_store::kv::{Epoch, Kv, KvError, Revision, Watch, WatchError};

pub use crate::authorized::EntryFilter;
pub(crate) use connection::{Connection, Opened, Pulled, View};
pub use message::{CHUNK_BYTES, Listed, Message, Shared};
pub use outbox::PENDING_BYTES;
pub use query::{AgentFilter, Counts, Grants, Page};
pub(crate) use sparse::{Listing, ListingError};

use inner::Inner;

/// The hot state.
#[derive(Debug)]
pub struct State {
    inner: RwLock<Inner>,
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    trust_domain: TrustDomain,
    applied: watch::Sender<Revision>,
    bundles_changed: watch::Sender<Revision>,
    /// At this instant the state was that of the store.
    confirmed: Mutex<Instant>,
    /// Where the snapshot ended; taken by the task that follows.
    watch: Mutex<Option<Watch>>,
}

/// Why the state cannot be loaded or followed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store cannot be read, or holds what this version cannot read.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The store ended.
    #[error("the store's change feed ended: {0}")]
    Watch(#[from] WatchError),
    /// The trust domain's own name makes no server ID.
    #[error("trust domain {0} is too long for a server ID")]
    TrustDomain(TrustDomain),
    /// The process is stopping.
    #[error("reading the store was interrupted: {0}")]
    Interrupted(#[source] tokio::task::JoinError),
    /// [`State::run`] was called twice.
    #[error("the state is followed already")]
    Running,
}

impl State {
    /// The epoch of the store.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.kv.epoch()
    }

    /// The revision up to which everything is in.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Tells each applied revision.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Tells the revision of each change of a bundle.
    #[must_use]
    pub fn bundles_changed(&self) -> watch::Receiver<Revision> {
        self.bundles_changed.subscribe()
    }

    /// Whether everything up to `revision` is here.
    #[must_use]
    pub fn has(&self, revision: Revision) -> bool {
        *self.applied.borrow() >= revision
    }

    /// Waits until the state has everything up to `revision`, while [`State::run`] runs.
    pub async fn wait_for(&self, revision: Revision) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as `self`.
        let _ = applied.wait_for(|applied| *applied >= revision).await;
    }

    /// How long ago the state was known to be that of the store, at `now`.
    #[must_use]
    pub fn confirmed_age(&self, now: Instant) -> Duration {
        let confirmed = self
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(*confirmed)
    }

    /// No code panics while it holds this lock, so poison carries no meaning.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}
