//! One stream of the Workload API: who asks, what matches, and a message at each change.
//!
//! The process is checked again before every message and every 30 s; the stream ends when it
//! is no longer what connected. What attestors say is asked anew when they say so, and sent or
//! taken back at once. A message is a complete state; one that equals the last is
//! not sent again (D-13).

use std::collections::BTreeSet;
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
use super::end::End;
use super::unanswered::{Unanswered, Waits};
use crate::cache::Reader;
use crate::counters::Counters;
use crate::jwt::Tokens;
use crate::limits::StreamGuard;
use crate::snapshot::{Kind, Matches, Snapshot, Standing};
use crate::workload::{Attestation, Attestors, Outcome, Soon};

/// How often a silent stream's process is checked.
const RECHECK: Duration = Duration::from_secs(30);

/// What all streams share.
pub(crate) struct Source {
    pub(crate) reader: Reader,
    pub(crate) attestors: Attestors,
    pub(crate) clock: Arc<dyn Clock>,
    /// So long a caller waits for SVIDs that are being fetched; then those that are there are
    /// sent, and without any the stream ends UNAVAILABLE.
    pub(crate) patience: Duration,
    pub(crate) counters: Counters,
    /// The JWT-SVIDs.
    pub(crate) tokens: Tokens,
    /// Who waits for a first answer.
    pub(crate) unanswered: Unanswered,
    /// Claims of foreign tokens that are shown beside `sub`, `aud` and `exp`.
    pub(crate) foreign_claims: BTreeSet<String>,
}

/// The state of one stream.
struct Updates {
    source: Arc<Source>,
    connector: Arc<Connector>,
    kind: Kind,
    attestation: Attestation,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The hash of the last message.
    sent: Option<u64>,
    /// The entries whose SVIDs are in it.
    granted: Box<[EntryId]>,
    patience: Instant,
    /// Until the first message.
    waits: Option<Waits>,
    _guard: StreamGuard,
}

impl Drop for Updates {
    fn drop(&mut self) {
        self.source.counters.streams.dec();
    }
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
        .place()
        .map_err(|end| end.count(&source.counters))?;
    let waits = source.unanswered.one();
    let attestation = source
        .attestors
        .attest(&connector.peer, &connector.facts)
        .await;
    let mut snapshots = source.reader.snapshots();
    snapshots.mark_changed();
    source.counters.streams.inc();
    let updates = Updates {
        patience: Instant::now() + source.patience,
        waits: Some(waits),
        source,
        connector,
        kind,
        attestation,
        snapshots,
        sent: None,
        granted: Box::default(),
        _guard: guard,
    };
    Ok(stream::unfold(Some(updates), |updates| async {
        let mut updates = updates?;
        match updates.next().await {
            Ok(bytes) => Some((Ok(bytes), Some(updates))),
            Err(end) => Some((Err(end.count(&updates.source.counters)), None)),
        }
    }))
}

impl Updates {
    /// The next message, or how the stream ends.
    async fn next(&mut self) -> Result<Bytes, End> {
        let mut recheck = tokio::time::interval_at(Instant::now() + RECHECK, RECHECK);
        loop {
            let waits = self.sent.is_none();
            let (patience, connector) = (self.patience, Arc::clone(&self.connector));
            tokio::select! {
                changed = self.snapshots.changed() => {
                    changed.map_err(|_| End::unavailable("the agent is shutting down"))?;
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
                () = self.attestation.changed() => {
                    let (peer, facts) = (&connector.peer, &connector.facts);
                    self.attestation.renew(&self.source.attestors, peer, facts).await;
                    if let Some(message) = self.take(false)? {
                        return self.send(message);
                    }
                }
                _ = recheck.tick() => self.connector.recheck()?,
                () = connector.peer.exited() => return Err(End::changed("the process that connected has ended".to_owned())),
            }
        }
    }

    /// What the newest snapshot has to say, when it is something new.
    fn take(&mut self, impatient: bool) -> Result<Option<Bytes>, End> {
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        End::overdue(&snapshot)?;
        let outcome = self.attestation.outcome();
        let matches = snapshot.matches(outcome);
        if matches.is_empty() {
            if is_open(&snapshot, outcome) && self.sent.is_none() && !impatient {
                return Ok(None);
            }
            return Err(End::nothing(&snapshot, outcome));
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

    fn send(&mut self, message: Bytes) -> Result<Bytes, End> {
        self.connector.recheck()?;
        self.waits = None;
        self.source.counters.messages.inc();
        Ok(message)
    }
}

/// Whether an entry may match soon where none does now: the server may know one, or the attestors
/// have not said all.
pub(super) fn is_open(snapshot: &Snapshot, outcome: &Outcome) -> bool {
    is_attesting(snapshot, outcome) || snapshot.standing() == Standing::Unconfirmed
}

/// Whether what the attestors will tell soon may let an entry match.
pub(super) fn is_attesting(snapshot: &Snapshot, outcome: &Outcome) -> bool {
    match outcome.soon() {
        Soon::Nothing => false,
        Soon::Unknown => snapshot.may_match(outcome),
        Soon::Anything => true,
    }
}

fn not_yet() -> End {
    End::unavailable("the X509-SVID is not available yet")
}
