//! One stream of the Workload API: who asks, what matches, and a message at each change.
//!
//! The process is checked again before every message and every 30 s; the stream ends when it
//! is no longer what connected. A message is a complete state; one that equals the last is
//! not sent again (D-13).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;
use vane_chassis::clock::Clock;
use vane_identity::entry::EntryId;

use super::connection::Connector;
use crate::cache::Reader;
use crate::limits::StreamGuard;
use crate::snapshot::{Kind, Matches, Snapshot};
use crate::workload::{Attestors, Outcome};

/// How often a silent stream's process is checked.
const RECHECK: Duration = Duration::from_secs(30);
/// So long a caller waits for SVIDs that are being fetched; then those that are there are
/// sent, and without any the stream ends UNAVAILABLE.
const PATIENCE: Duration = Duration::from_secs(20);

/// What all streams share.
pub(crate) struct Source {
    pub(crate) reader: Reader,
    pub(crate) attestors: Attestors,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The state of one stream.
struct Updates {
    source: Arc<Source>,
    connector: Arc<Connector>,
    kind: Kind,
    outcome: Outcome,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The hash of the last message.
    sent: Option<u64>,
    /// The entries whose SVIDs are in it.
    granted: Box<[EntryId]>,
    patience: Instant,
    _guard: StreamGuard,
}

/// Opens a stream for the process behind `connector`.
///
/// # Errors
/// PERMISSION_DENIED, RESOURCE_EXHAUSTED, as the status says.
pub(crate) async fn open(
    source: Arc<Source>,
    connector: Arc<Connector>,
    kind: Kind,
) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + use<>, Status> {
    let guard = connector
        .guard
        .stream()
        .map_err(|over| Status::resource_exhausted(over.reason()))?;
    let outcome = source
        .attestors
        .attest(&connector.peer, &connector.facts)
        .await;
    let mut snapshots = source.reader.snapshots();
    snapshots.mark_changed();
    let updates = Updates {
        source,
        connector,
        kind,
        outcome,
        snapshots,
        sent: None,
        granted: Box::default(),
        patience: Instant::now() + PATIENCE,
        _guard: guard,
    };
    Ok(stream::unfold(Some(updates), |updates| async {
        let mut updates = updates?;
        match updates.next().await {
            Ok(bytes) => Some((Ok(bytes), Some(updates))),
            Err(status) => Some((Err(status), None)),
        }
    }))
}

impl Updates {
    /// The next message, or how the stream ends.
    async fn next(&mut self) -> Result<Bytes, Status> {
        let mut recheck = tokio::time::interval_at(Instant::now() + RECHECK, RECHECK);
        loop {
            let waits = self.sent.is_none();
            let (patience, connector) = (self.patience, Arc::clone(&self.connector));
            tokio::select! {
                changed = self.snapshots.changed() => {
                    changed.map_err(|_| Status::unavailable("the agent is shutting down"))?;
                    if let Some(message) = self.take(false)? {
                        return self.send(message);
                    }
                }
                () = tokio::time::sleep_until(patience), if waits => {
                    return match self.take(true)? {
                        Some(message) => self.send(message),
                        None => Err(not_yet()),
                    };
                }
                _ = recheck.tick() => self.check()?,
                () = connector.peer.exited() => return Err(Status::permission_denied("the process that connected has ended")),
            }
        }
    }

    /// What the newest snapshot has to say, when it is something new.
    fn take(&mut self, impatient: bool) -> Result<Option<Bytes>, Status> {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let matches = snapshot.matches(&self.outcome);
        if matches.is_empty() {
            return Err(self.nothing(&snapshot));
        }
        // An identity that is gone is taken back at once, whatever else is on its way.
        let withdrawn = self.is_withdrawn(&snapshot, &matches);
        if self.kind == Kind::X509Svid {
            let lacking = snapshot.lacking(&matches);
            if !lacking.is_empty() {
                self.source.reader.want(lacking);
            }
            if snapshot.is_pending(&matches) && !impatient && !withdrawn {
                return Ok(None);
            }
        }
        let message = snapshot.message(self.kind, &matches, self.source.clock.now());
        let Some(message) = message else {
            return match withdrawn {
                true => Err(not_yet()),
                false => Ok(None),
            };
        };
        self.granted = snapshot.granted(&matches);
        let mut hasher = DefaultHasher::new();
        message.hash(&mut hasher);
        let hash = hasher.finish();
        Ok((self.sent.replace(hash) != Some(hash)).then_some(message))
    }

    /// Whether an entry of the last message no longer matches.
    fn is_withdrawn(&self, snapshot: &Snapshot, matches: &Matches) -> bool {
        let still = |id: &EntryId| {
            snapshot
                .served(matches)
                .any(|served| served.entry.id == *id)
        };
        !self.granted.iter().all(still)
    }

    fn nothing(&self, snapshot: &Snapshot) -> Status {
        if snapshot.may_match(&self.outcome) {
            return Status::unavailable(
                "workload attestation is not complete: some of its selectors are not known now",
            );
        }
        Status::permission_denied("no identity issued")
    }

    fn send(&self, message: Bytes) -> Result<Bytes, Status> {
        self.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), Status> {
        self.connector
            .peer
            .recheck(&self.connector.facts)
            .map_err(|changed| {
                Status::permission_denied(format!(
                    "the process is no longer what connected: {changed}"
                ))
            })
    }
}

fn not_yet() -> Status {
    Status::unavailable("the X509-SVID is not available yet")
}
