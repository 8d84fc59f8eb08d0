//! The one task that writes the sealed file.
//!
//! Owners hand over what they hold, at any rate and without waiting; the task always writes the
//! newest, one file at a time, on a thread of its own: a batch of renewals is one file. What
//! nobody has on disk yet (a first SVID, an entry that came or went) is written at once, a
//! renewal within [`LAZY`], since the file still has its predecessor. What a workload can make
//! happen as often as it likes is not more than one file in [`PACE`]. A disk that is full is told
//! once and tried again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::Clock;
use vane_identity::id::SpiffeId;

use super::vault::{Vault, VaultError};
use super::{Restored, Set, Token};
use crate::counters::Counters;
use crate::own_svid::OwnSvid;
use crate::svid::Svid;
use crate::tenure::{Tenure, Turn};

/// So long a renewal may wait to be written.
pub(super) const LAZY: Duration = Duration::from_secs(5);
/// So far apart are files that are written for JWT-SVIDs alone.
const PACE: Duration = Duration::from_secs(1);
/// The contact with the server is remembered so often at most.
const HEARD: Duration = Duration::from_secs(5);

/// When a change is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Within a few seconds.
    Soon,
    /// At once, or a second after the last file.
    Paced,
    /// At once.
    Now,
}

impl Urgency {
    /// Of an X.509-SVID that came: the file has the one it replaces, which may do for a while.
    #[must_use]
    pub fn replacing(before: Option<&Svid>, now: SystemTime) -> Self {
        match before {
            Some(before) if before.is_valid(now + LAZY * 4) => Self::Soon,
            _ => Self::Now,
        }
    }

    /// The same of a JWT-SVID, whose predecessor ends `before`.
    #[must_use]
    pub fn replacing_token(before: Option<SystemTime>, now: SystemTime) -> Self {
        match before {
            Some(end) if now + LAZY * 4 < end => Self::Soon,
            _ => Self::Paced,
        }
    }
}

/// What the owners handed over last.
#[derive(Debug, Default)]
struct Latest {
    set: Arc<Set>,
    tokens: Arc<[Arc<Token>]>,
    changes: Changes,
    heard_at: Option<SystemTime>,
}

/// How many changes there were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Changes {
    all: u64,
    paced: u64,
    urgent: u64,
}

impl Latest {
    fn changed(&mut self, urgency: Urgency) {
        self.changes.all += 1;
        self.changes.paced += u64::from(urgency == Urgency::Paced);
        self.changes.urgent += u64::from(urgency == Urgency::Now);
    }
}

/// The owners' side.
#[derive(Debug, Clone)]
pub struct Handle(watch::Sender<Latest>);

impl Handle {
    /// Hands over what the cache holds.
    pub fn keep(&self, set: Set, urgency: Urgency) {
        self.0.send_modify(|latest| {
            latest.set = Arc::new(set);
            latest.changed(urgency);
        });
    }

    /// Hands over the JWT-SVIDs that are held.
    pub fn keep_tokens(&self, tokens: Arc<[Arc<Token>]>, urgency: Urgency) {
        self.0.send_modify(|latest| {
            latest.tokens = tokens;
            latest.changed(urgency);
        });
    }

    /// Says that the agent is in sync with its server.
    pub fn heard(&self, at: SystemTime) {
        self.0.send_modify(|latest| latest.heard_at = Some(at));
    }
}

/// What the task works with.
pub struct Deps {
    /// Where the file is.
    pub vault: Arc<Vault>,
    /// The agent's own SVID: the file is bound to its ID.
    pub own: watch::Receiver<Option<Arc<OwnSvid>>>,
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// Whose turn it is to write: while a successor gets ready, the file is its.
    pub tenure: Tenure,
    /// The waits between two tries.
    pub backoff: Policy,
    /// What is counted.
    pub counters: Counters,
}

/// The task's side.
pub struct Writer {
    deps: Deps,
    /// The ID of the last one.
    agent_id: Option<SpiffeId>,
    backoff: Backoff,
    latest: watch::Receiver<Latest>,
    /// What is on disk.
    changes: Changes,
    heard_at: Option<SystemTime>,
    /// When the last file was written.
    written_at: Option<Instant>,
    is_failing: bool,
}

impl Writer {
    /// A writer that begins with what was `restored`, and its owners' side.
    #[must_use]
    pub fn new(deps: Deps, restored: Option<&Restored>) -> (Self, Handle) {
        let latest = Latest {
            set: restored
                .map(|one| Arc::new(one.set.clone()))
                .unwrap_or_default(),
            tokens: restored
                .map(|one| Arc::clone(&one.tokens))
                .unwrap_or_default(),
            ..Latest::default()
        };
        let (sender, latest) = watch::channel(latest);
        let writer = Self {
            agent_id: None,
            backoff: Backoff::new(deps.backoff, fastrand::Rng::new()),
            deps,
            latest,
            changes: Changes::default(),
            heard_at: None,
            written_at: None,
            is_failing: false,
        };
        (writer, Handle(sender))
    }

    /// Runs until `stop`, and writes then what is not written yet.
    ///
    /// # Errors
    /// None.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), std::convert::Infallible> {
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                turn = in_turn(&self.deps.tenure, due) => {
                    due = self.write().await;
                    drop(turn);
                }
                changed = self.latest.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // While the disk is full, what comes does not hasten the next try.
                    if !self.is_failing {
                        let at = self.due();
                        due = due.into_iter().chain(at).min();
                    }
                }
            }
        }
        // After a take-over the file is the successor's.
        if let Some(_turn) = self.deps.tenure.try_turn() {
            self.write().await;
        }
        Ok(())
    }

    /// When what changed is to be written.
    fn due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let latest = self.latest.borrow_and_update();
        let (new, kept) = (latest.changes, self.changes);
        if new.urgent != kept.urgent {
            return Some(now);
        }
        if new.paced != kept.paced {
            let paced = self.written_at.map(|at| at + PACE);
            return Some(paced.map_or(now, |at| at.max(now)));
        }
        let heard = latest.heard_at > self.heard_at.map(|at| at + HEARD);
        match new.all != kept.all {
            true => Some(now + LAZY),
            false => heard.then_some(now),
        }
    }

    /// Writes the newest; when to try again.
    async fn write(&mut self) -> Option<Instant> {
        if let Some(own) = &*self.deps.own.borrow_and_update() {
            self.agent_id = Some(own.id.clone());
        }
        let agent_id = self.agent_id.clone()?;
        let (vault, now) = (Arc::clone(&self.deps.vault), self.deps.clock.now());
        let (set, tokens, changes, heard_at) = {
            let latest = self.latest.borrow_and_update();
            let (set, tokens) = (Arc::clone(&latest.set), Arc::clone(&latest.tokens));
            (set, tokens, latest.changes, latest.heard_at)
        };
        let is_changed = changes != self.changes;
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (svids, jwt_svids) = (count(set.svids.len()), count(tokens.len()));
        let done = tokio::task::spawn_blocking(move || {
            let written = match is_changed {
                true => vault.seal(&agent_id, &set, &tokens, now)?,
                false => 0,
            };
            if let Some(at) = heard_at {
                vault.heard(at)?;
            }
            Ok::<usize, VaultError>(written)
        });
        let outcome = match done.await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(bytes) => {
                (self.changes, self.heard_at) = (changes, heard_at);
                self.backoff.reset();
                if bytes > 0 {
                    self.written_at = Some(Instant::now());
                    let counters = &self.deps.counters;
                    counters.sealed_bytes.set(count(bytes));
                    counters.sealed_svids.set(svids);
                    counters.sealed_tokens.set(jwt_svids);
                    counters.sealed_writes.inc();
                }
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("what the workloads have is kept over a restart again");
                }
                None
            }
            Err(error) => {
                self.deps.counters.sealed_failures.inc();
                let delay = self.backoff.next_delay();
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(
                        error,
                        "what the workloads have cannot be kept over a restart now; everything else goes on, and it is tried again"
                    );
                }
                Some(Instant::now() + delay)
            }
        }
    }
}

/// Waits until `due`, and then for a turn.
async fn in_turn(tenure: &Tenure, due: Option<Instant>) -> Turn {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
    tenure.turn().await
}
