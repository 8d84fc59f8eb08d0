//! The readers' side: what is served, how the way to the server is, and who waits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};
use vane_client::channel::Channel;
use vane_identity::entry::EntryId;

use crate::snapshot::{Snapshot, Standing};

/// The readers' side.
#[derive(Clone)]
pub struct Reader {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) server: watch::Receiver<Option<Channel>>,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) wanted: Arc<Wanted>,
}

/// How the way to the server is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// The server is reached.
    pub connected: bool,
    /// When it said something last, in monotonic time.
    pub heard: Option<Instant>,
    /// Up to which revision it told everything.
    pub revision: u64,
    /// Why it is not reached.
    pub error: Option<String>,
    /// Milliseconds that the own clock is ahead of the server's, once they were compared.
    pub skew_ms: Option<i64>,
}

/// Entries that somebody waits for.
#[derive(Default)]
pub(super) struct Wanted {
    pub(super) entries: Mutex<HashSet<EntryId>>,
    pub(super) changed: Notify,
}

impl Reader {
    /// What is served now, and how to learn of changes.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// What is served now.
    #[must_use]
    pub fn newest(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Waits until what is served is more than what was sealed before a restart.
    pub async fn confirmed(&self) {
        let confirmed = |now: &Arc<Snapshot>| now.standing() != Standing::Unconfirmed;
        // The sender goes with the agent.
        let _ = self.snapshots.clone().wait_for(confirmed).await;
    }

    /// The server, while it can be asked: while the stream to it is open.
    #[must_use]
    pub fn server(&self) -> watch::Receiver<Option<Channel>> {
        self.server.clone()
    }

    /// How the way to the server is now.
    #[must_use]
    pub fn sync(&self) -> LinkState {
        self.link.borrow().clone()
    }

    /// Says that somebody waits for the SVIDs of these entries.
    pub fn want(&self, entries: Vec<EntryId>) {
        self.wanted.lock().extend(entries);
        self.wanted.changed.notify_one();
    }
}

impl Wanted {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<EntryId>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
