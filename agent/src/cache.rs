//! The cache: the one task that owns entries, bundles and SVIDs of this node.
//!
//! It follows the server's pushes, has SVIDs made, replaces them in time, and publishes a
//! [`Snapshot`] at each change. What an open stream or a waiting caller wants is fetched at
//! once; the rest of the set in the background, one modest batch at a time, up to a bound.
//! Nothing here asks whether there is something new: it is told, or a time it knows has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::tasks::TaskSet;
use vane_client::channel::Channel;
use vane_identity::entry::EntryId;
use vane_identity::id::TrustDomain;
use vane_identity::key::KeyType;

use crate::counters::Counters;
use crate::denial::Denial;
use crate::link::Link;
use crate::obtain::Anew;
use crate::own_svid::OwnSvid;
use crate::registry::Registry;
use crate::sealed::{Handle, Restored, Set, Urgency};
use crate::snapshot::Snapshot;

mod contact;
mod reader;
mod slot;

mod asking;
mod following;
mod showing;

use asking::{Answer, Background};
use contact::Contact;
use reader::Wanted;
pub use reader::{LinkState, Reader};
use slot::Slot;

/// How often SPIRE's agents ask their server.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// Answers of the signing service that wait to be taken.
const ANSWERS: usize = 16;

/// What the cache is made from.
pub struct Deps {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// Makes a channel with the agent's current identity.
    pub connect: Box<dyn Fn() -> Channel + Send + Sync>,
    /// The agent's own SVID; the stream is opened again with each new one.
    pub own_svid: watch::Receiver<Option<Arc<OwnSvid>>>,
    /// Asks for a new attestation when the server denies this agent and it may attest again.
    pub anew: Arc<Anew>,
    /// The waits between two tries to reach the server.
    pub backoff: Policy,
    /// How often a server is asked that cannot push.
    pub sync_interval: Duration,
    /// The kind of workload keys.
    pub key_type: KeyType,
    /// The most SVIDs that are fetched before anybody asks.
    pub prefetch: usize,
    /// What is counted.
    pub counters: Counters,
    /// Takes what is to be kept over a restart.
    pub sealer: Option<Handle>,
    /// So long the agent serves without its server; none: until the SVIDs end.
    pub offline_grace: Option<Duration>,
}

/// Why the cache cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The server denies this agent for a reason that waiting does not cure.
    #[error(transparent)]
    Denied(#[from] Denial),
}

/// The owner's side.
pub struct Cache {
    deps: Deps,
    registry: Registry,
    slots: BTreeMap<EntryId, Slot>,
    link: Link,
    backoff: Backoff,
    snapshots: watch::Sender<Arc<Snapshot>>,
    server: watch::Sender<Option<Channel>>,
    link_state: watch::Sender<LinkState>,
    synced: watch::Sender<bool>,
    wanted: Arc<Wanted>,
    tasks: TaskSet,
    answers: (mpsc::Sender<Answer>, mpsc::Receiver<Answer>),
    background: Background,
    /// The open stream has been in sync: when it ends in good order, nothing hinders the next.
    was_in_sync: bool,
    /// The server cannot push: it is asked.
    is_asking: bool,
    is_skewed: bool,
    contact: Contact,
    /// What changed since the state was handed to the sealer, and how soon it must have it.
    unsealed: Option<Urgency>,
    trust_domain: TrustDomain,
}

impl Cache {
    /// An empty cache, its readers' side, and a watch that says when it is in sync for the
    /// first time.
    #[must_use]
    pub fn new(deps: Deps, trust_domain: TrustDomain) -> (Self, Reader, watch::Receiver<bool>) {
        let empty = Snapshot::new(trust_domain.clone(), [], BTreeMap::new());
        let (snapshots, receiver) = watch::channel(Arc::new(empty));
        let (link_state, link_seen) = watch::channel(LinkState::default());
        let (synced, is_synced) = watch::channel(false);
        let (server, current) = watch::channel(None);
        let wanted = Arc::<Wanted>::default();
        let reader = Reader {
            snapshots: receiver,
            server: current,
            link: link_seen,
            wanted: Arc::clone(&wanted),
        };
        let has_own = deps.own_svid.borrow().is_some();
        let link = match has_own {
            true => Link::wait(Duration::ZERO),
            false => Link::idle(),
        };
        let cache = Self {
            backoff: Backoff::new(deps.backoff, fastrand::Rng::new()),
            registry: Registry::new(trust_domain.clone()),
            slots: BTreeMap::new(),
            link,
            snapshots,
            server,
            link_state,
            synced,
            wanted,
            tasks: TaskSet::new("issue"),
            answers: mpsc::channel(ANSWERS),
            background: Background::Idle,
            was_in_sync: false,
            is_asking: false,
            is_skewed: false,
            contact: Contact::none(deps.clock.now(), deps.offline_grace),
            unsealed: None,
            trust_domain,
            deps,
        };
        (cache, reader, is_synced)
    }

    /// Goes on with what was sealed before a restart: it is served from now on.
    #[must_use]
    pub fn restore(mut self, restored: Restored) -> Self {
        self.contact = Contact::restored(restored.heard_at, self.deps.offline_grace);
        let Set { known, svids } = restored.set;
        self.registry = Registry::restore(self.trust_domain.clone(), known);
        self.match_slots();
        for (id, svid) in svids {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.svid = Some(svid);
            }
        }
        self.publish();
        self
    }

    /// Runs until `stop`.
    ///
    /// # Errors
    /// [`CacheError::Denied`].
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), CacheError> {
        let wanted = Arc::clone(&self.wanted);
        let mut jumps = self.deps.clock.jumps();
        loop {
            let now = self.deps.clock.now();
            self.tell_server();
            if self.contact.standing(now) != self.snapshots.borrow().standing() {
                self.publish();
            }
            self.request_due(now);
            let next = self.next_time(now);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                event = self.link.next() => self.on_link(event)?,
                Some(answer) = self.answers.1.recv() => self.on_issued(answer),
                () = wanted.changed.notified() => self.take_wanted(),
                Ok(()) = self.deps.own_svid.changed() => self.reopen(),
                () = at(&*self.deps.clock, next) => self.publish(),
                () = jumps.next() => self.on_jump(),
            }
        }
    }

    /// The wall clock was set: what waits for an instant of the old one waits no longer, and
    /// what is over is dropped at once. What is due is judged by each SVID's own times.
    fn on_jump(&mut self) {
        for slot in self.slots.values_mut() {
            slot.retry_at = None;
        }
        if matches!(self.background, Background::At(_)) {
            self.background = Background::Idle;
        }
        self.publish();
    }
}

/// Waits until `time`, for ever without one.
async fn at(clock: &dyn Clock, time: Option<SystemTime>) {
    match time {
        Some(time) => sleep_until(clock, time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
