//! The cache: the one task that owns entries, bundles and SVIDs of this node.
//!
//! It follows the server's pushes, has SVIDs made, replaces them in time, and publishes a
//! [`Snapshot`] at each change. What an open stream or a waiting caller wants is fetched at
//! once; the rest of the set in the background, one modest batch at a time, up to a bound.
//! Nothing here asks whether there is something new: it is told, or a time it knows has come.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::tasks::TaskSet;
use vane_client::channel::Channel;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_identity::key::KeyType;
use vane_identity::lifetime::to_unix;
use vane_wire::status::Reason;

use crate::counters::Counters;
use crate::issue::{self, BATCH, Outcome};
use crate::link::{End, Event, Link};
use crate::node::meaning;
use crate::obtain::Anew;
use crate::own_svid::OwnSvid;
use crate::registry::{Reaction, Registry, Round};
use crate::sealed::{Handle, Restored, Set, Urgency};
use crate::snapshot::{Served, Snapshot, Standing, State};
use crate::svid::{Svid, hex};

mod contact;

use contact::Contact;

/// Entries of one background batch.
const BACKGROUND: usize = 100;
/// The longest pause before a background batch: agents that got the same news ask at
/// different times.
const PAUSE: Duration = Duration::from_secs(5);
/// How often SPIRE's agents ask their server.
pub const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// The difference to the server's clock that is reported.
const SKEW: Duration = Duration::from_secs(5);
/// The first wait before a failed SVID is tried again; it doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(60);
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

/// The readers' side.
#[derive(Clone)]
pub struct Reader {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    server: watch::Receiver<Option<Channel>>,
    link: watch::Receiver<LinkState>,
    wanted: Arc<Wanted>,
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
struct Wanted {
    entries: Mutex<HashSet<EntryId>>,
    changed: Notify,
}

/// Why the cache cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The server denies this agent for a reason that waiting does not cure.
    #[error("the server denies this agent: {}: {message}", meaning(*.reason))]
    Denied {
        /// The reason.
        reason: Reason,
        /// The server's words.
        message: String,
    },
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

/// What became of a batch, and whether it was the one in the background.
type Answer = (Outcome, bool);

/// The batch that nobody waits for. There is at most one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    /// None is needed.
    Idle,
    /// It is asked for then.
    At(SystemTime),
    /// It is asked for.
    Asked,
}

/// What is known of an entry's SVID.
#[derive(Default)]
struct Slot {
    svid: Option<Arc<Svid>>,
    asked: bool,
    wanted: bool,
    renew_now: bool,
    failures: u32,
    retry_at: Option<SystemTime>,
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
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<EntryId>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    /// Others ask the server over the same channel. Between two streams there is always a
    /// while without one.
    fn tell_server(&self) {
        let open = self.link.channel();
        self.server.send_if_modified(|told| {
            let changes = told.is_some() != open.is_some();
            if changes {
                *told = open.cloned();
            }
            changes
        });
    }

    fn on_link(&mut self, event: Event) -> Result<(), CacheError> {
        match event {
            Event::Time => self.try_again(),
            Event::Opened => {
                self.deps.counters.sync_streams.inc();
                if std::mem::take(&mut self.is_asking) {
                    tracing::info!("the server pushes now");
                }
                tracing::debug!("the stream to the server is open");
                self.heard();
            }
            Event::NoStreams => self.ask_server(),
            Event::Round(round) => self.take_round(round),
            Event::Message(message) => {
                let now = to_unix(self.deps.clock.now());
                self.deps.counters.sync_last.set(now);
                let reaction = self.registry.apply(message.response);
                self.react(reaction);
                self.heard();
            }
            Event::Ended(end) => self.on_end(end)?,
        }
        Ok(())
    }

    /// The server said something.
    fn heard(&self) {
        let (heard, revision) = (self.deps.clock.monotonic(), self.registry.revision());
        self.link_state.send_modify(|state| {
            state.connected = true;
            state.heard = Some(heard);
            state.revision = revision;
            state.error = None;
        });
    }

    fn try_again(&mut self) {
        let hello = self.registry.hello(env!("CARGO_PKG_VERSION"));
        if !self.link.try_again(hello) {
            self.reopen();
        }
    }

    fn ask_server(&mut self) {
        if !self.is_asking {
            let interval_ms = self.deps.sync_interval.as_millis();
            tracing::info!(interval_ms, "the server cannot push (SPIRE?): it is asked");
            self.is_asking = true;
        }
        self.link.ask(self.registry.entries().clone());
    }

    fn take_round(&mut self, round: Round) {
        let now = to_unix(self.deps.clock.now());
        self.deps.counters.sync_last.set(now);
        self.link.pause(self.pause());
        let reaction = self.registry.take_round(round);
        self.react(reaction);
        self.heard();
    }

    /// How long until the server is asked again: SPIRE's interval, +-10 %, and not longer than
    /// its default while there is nothing to serve.
    fn pause(&self) -> Duration {
        let has_some = self.slots.values().any(|slot| slot.svid.is_some());
        let interval = match has_some {
            true => self.deps.sync_interval,
            false => self.deps.sync_interval.min(SYNC_INTERVAL),
        };
        interval.mul_f64(0.9 + 0.2 * fastrand::f64())
    }

    fn reopen(&mut self) {
        self.was_in_sync = false;
        self.contact.lost(self.deps.clock.now());
        if self.deps.own_svid.borrow_and_update().is_none() {
            self.link = Link::idle();
            return;
        }
        let hello = self.registry.hello(env!("CARGO_PKG_VERSION"));
        self.link = Link::open((self.deps.connect)(), hello);
    }

    fn on_end(&mut self, end: End) -> Result<(), CacheError> {
        // A denial without a reason may pass; the known reasons do not.
        if let Some(reason) = end.denied.filter(|reason| *reason != Reason::Unknown) {
            // What was denied may be the SVID of before.
            if self.deps.own_svid.has_changed().unwrap_or_default() {
                self.reopen();
                return Ok(());
            }
            if reason != Reason::AgentBanned && self.deps.anew.ask() {
                tracing::warn!(error = end.message, "denied: waiting for a new attestation");
                self.link = Link::idle();
                return Ok(());
            }
            return Err(CacheError::Denied {
                reason,
                message: end.message,
            });
        }
        self.contact.lost(self.deps.clock.now());
        // The server ends streams in good order now and then: no reason to wait.
        let delay = if end.in_order && self.was_in_sync {
            Duration::ZERO
        } else {
            if self.contact.failed() {
                self.publish();
            }
            self.backoff.next_delay()
        };
        tracing::info!(
            code = end.code,
            error = end.message,
            delay_ms = delay.as_millis(),
            "the stream to the server ended"
        );
        self.link_state.send_modify(|state| {
            state.connected = false;
            state.error = (!end.in_order).then(|| format!("{}: {}", end.code, end.message));
        });
        self.link = Link::wait(delay);
        Ok(())
    }

    fn react(&mut self, reaction: Reaction) {
        if reaction.ignored > 0 {
            let count = u64::try_from(reaction.ignored).unwrap_or(u64::MAX);
            self.deps.counters.sync_ignored.inc_by(count);
            tracing::warn!(
                count = reaction.ignored,
                "the server sent something that this agent does not understand"
            );
        }
        if let Err(error) = self.link.send(reaction.answers) {
            self.link = Link::wait(self.backoff.next_delay());
            tracing::warn!(%error, "the stream to the server is given up");
        }
        if reaction.diverged {
            self.deps.counters.sync_divergences.inc();
            tracing::error!(
                "the set of entries or bundles differs from the server's after a resume: asking for all of it"
            );
            self.link = Link::wait(self.backoff.next_delay());
        }
        for id in &reaction.renew_entries {
            self.renew_now(id);
        }
        if !reaction.renew_authorities.is_empty() {
            self.renew_signed_by(&reaction.renew_authorities);
        }
        if reaction.changed {
            self.renew_signed_by(&self.tainted());
            self.match_slots();
            self.unsealed = Some(Urgency::Now);
            self.publish();
        }
        if let Some(time) = reaction.server_time {
            self.compare_clocks(time);
        }
        if reaction.in_sync {
            self.backoff.reset();
            self.was_in_sync = true;
            if self.contact.gained() {
                self.publish();
            }
            self.synced.send_replace(true);
            self.seal();
        }
        if let (true, Some(_), Some(sealer)) =
            (self.was_in_sync, self.deps.offline_grace, &self.deps.sealer)
        {
            sealer.heard(self.deps.clock.now());
        }
    }

    /// Says when the own clock differs from the server's, and when it no longer does.
    fn compare_clocks(&mut self, server_ms: i64) {
        let Ok(server) = u64::try_from(server_ms) else {
            return;
        };
        let server = SystemTime::UNIX_EPOCH + Duration::from_millis(server);
        let own = self.deps.clock.now();
        let skew = own
            .duration_since(server)
            .unwrap_or_else(|behind| behind.duration());
        let ms = i64::try_from(skew.as_millis()).unwrap_or(i64::MAX);
        let ahead = if own < server { -ms } else { ms };
        self.deps.counters.clock_skew.set(ahead);
        self.link_state
            .send_modify(|state| state.skew_ms = Some(ahead));
        let is_skewed = skew > SKEW;
        if is_skewed && !self.is_skewed {
            tracing::warn!(
                skew_ms = skew.as_millis(),
                is_ahead = own > server,
                "this node's clock differs from the server's: SVIDs may seem expired or not yet valid"
            );
        } else if !is_skewed && self.is_skewed {
            tracing::info!("this node's clock agrees with the server's again");
        }
        self.is_skewed = is_skewed;
    }

    /// The authorities of the own bundle that are tainted.
    fn tainted(&self) -> Vec<String> {
        let own = self.registry.bundles().get(&self.trust_domain);
        own.iter()
            .flat_map(|bundle| &bundle.x509_authorities)
            .filter(|authority| authority.tainted)
            .filter_map(|authority| authority.certificate.info().ok())
            .map(|info| hex(&info.key_id))
            .collect()
    }

    fn renew_now(&mut self, id: &EntryId) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.renew_now = slot.svid.is_some();
            slot.retry_at = None;
        }
    }

    fn renew_signed_by(&mut self, authorities: &[String]) {
        for slot in self.slots.values_mut() {
            if slot
                .svid
                .as_ref()
                .is_some_and(|svid| authorities.contains(&svid.authority))
            {
                slot.renew_now = true;
            }
        }
    }

    /// One slot for each entry: those of entries that are gone, go with their keys.
    fn match_slots(&mut self) {
        let entries = self.registry.entries();
        self.slots.retain(|id, _| entries.contains_key(id));
        for id in entries.keys() {
            if !self.slots.contains_key(id) {
                self.slots.insert(id.clone(), Slot::default());
            }
        }
        self.take_wanted();
    }

    fn take_wanted(&mut self) {
        for id in std::mem::take(&mut *self.wanted.lock()) {
            if let Some(slot) = self.slots.get_mut(&id) {
                slot.want();
            }
        }
    }

    /// Asks for what is due: first what somebody waits for or what is to be replaced, then, one
    /// batch at a time, what nobody asked for yet.
    fn request_due(&mut self, now: SystemTime) {
        let Some(channel) = self.link.channel().cloned() else {
            return;
        };
        let entries = self.registry.entries();
        let mut urgent = Vec::new();
        let mut background = Vec::new();
        let mut held = 0;
        for (id, slot) in &self.slots {
            held += usize::from(slot.svid.is_some() || slot.asked);
            let Some(entry) = entries.get(id).filter(|entry| slot.may_ask(entry, now)) else {
                continue;
            };
            if slot.wanted || slot.svid.is_some() {
                urgent.push(Arc::clone(entry));
            } else if !entry.prefetch_disabled() && !entry.store_svid {
                background.push(Arc::clone(entry));
            }
        }
        for batch in urgent.chunks(BATCH) {
            self.ask(&channel, batch.to_vec(), false);
        }
        let room = self.deps.prefetch.saturating_sub(held).min(BACKGROUND);
        background.truncate(room);
        self.background = match self.background {
            Background::Asked => Background::Asked,
            _ if background.is_empty() => Background::Idle,
            Background::At(time) if time <= now => {
                self.ask(&channel, background, true);
                Background::Asked
            }
            Background::At(time) => Background::At(time),
            Background::Idle => Background::At(now + PAUSE.mul_f64(fastrand::f64())),
        };
    }

    fn ask(&mut self, channel: &Channel, entries: Vec<Arc<Entry>>, in_background: bool) {
        for entry in &entries {
            if let Some(slot) = self.slots.get_mut(&entry.id) {
                slot.asked = true;
                // What is said from now on is about the SVID that comes.
                slot.renew_now = false;
            }
        }
        let answers = self.answers.0.clone();
        let (channel, kind, clock) = (
            channel.clone(),
            self.deps.key_type,
            Arc::clone(&self.deps.clock),
        );
        self.tasks.spawn(async move {
            let outcome = issue::issue(channel, entries, kind, clock).await;
            // The receiver lives as long as the cache.
            let _ = answers.send((outcome, in_background)).await;
        });
    }

    fn on_issued(&mut self, (outcome, in_background): Answer) {
        let now = self.deps.clock.now();
        if in_background {
            self.background = Background::Idle;
        }
        for (id, result) in outcome {
            let Some(slot) = self.slots.get_mut(&id) else {
                continue;
            };
            slot.asked = false;
            match result {
                Ok(svid) => {
                    self.deps.counters.svids_received.inc();
                    let urgency = Urgency::replacing(slot.svid.as_deref(), now);
                    self.unsealed = self.unsealed.max(Some(urgency));
                    slot.received(svid);
                }
                Err(error) => {
                    self.deps.counters.svids_failed.inc();
                    let delay = slot.failed(now);
                    tracing::warn!(entry_id = %id, %error, delay_ms = delay.as_millis(), "no X.509-SVID");
                }
            }
        }
        self.publish();
    }

    /// The next instant at which something is due by itself: a renewal, another try, or an
    /// expiry. What waits for an answer or for the server is told.
    fn next_time(&self, now: SystemTime) -> Option<SystemTime> {
        let open = self.link.channel().is_some();
        let due = |slot: &Slot| {
            let ask = if !open || slot.asked {
                None
            } else {
                slot.retry_at
                    .or(slot.svid.as_ref().map(|svid| svid.renew_at))
            };
            let end = slot
                .svid
                .as_ref()
                .map(|svid| svid.not_after + Duration::from_secs(1));
            // What is past was asked for, or waits for something that is told.
            [ask, end]
                .into_iter()
                .flatten()
                .filter(|time| *time > now)
                .min()
        };
        let background = match self.background {
            Background::At(time) if open => Some(time),
            _ => None,
        };
        let grace = self.contact.ends_at().filter(|time| *time > now);
        let due = self.slots.values().filter_map(due);
        due.chain(background).chain(grace).min()
    }

    fn publish(&mut self) {
        let now = self.deps.clock.now();
        // What expired is gone for good: a clock that is set back does not revive it.
        let slots = self.slots.values_mut();
        slots.for_each(|slot| slot.svid = slot.svid.take().filter(|svid| svid.is_valid(now)));
        let held = self.slots.values().filter(|slot| slot.svid.is_some());
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let counters = &self.deps.counters;
        counters.svids.set(count(held.count()));
        counters.entries.set(count(self.registry.entries().len()));
        counters.bundles.set(count(self.registry.bundles().len()));
        let entries = self.registry.entries();
        let served = entries.iter().map(|(id, entry)| Served {
            entry: Arc::clone(entry),
            svid: self
                .slots
                .get(id)
                .map_or(State::Pending, |slot| slot.state(entry, now)),
        });
        // What cannot come is not waited for.
        let is_promising = self.contact.is_promising();
        let served = served.map(|one| match one.svid {
            State::Pending if !is_promising => Served {
                svid: State::Failed,
                ..one
            },
            _ => one,
        });
        let snapshot = Snapshot::new(
            self.trust_domain.clone(),
            served,
            self.registry.bundles().clone(),
        );
        let snapshot = snapshot.with_standing(self.contact.standing(now));
        self.snapshots.send_replace(Arc::new(snapshot));
        self.seal();
    }

    /// Hands over what is to be kept over a restart, when it changed and is whole.
    fn seal(&mut self) {
        let Some(sealer) = &self.deps.sealer else {
            return;
        };
        if let (Some(urgency), Some(known)) = (self.unsealed, self.registry.known()) {
            let held = self.slots.iter();
            let svids = held.filter_map(|(id, slot)| Some((id.clone(), slot.svid.clone()?)));
            let svids = svids.collect();
            sealer.keep(Set { known, svids }, urgency);
            self.unsealed = None;
        }
    }
}

impl Slot {
    /// Whether an SVID is to be asked for now.
    fn may_ask(&self, entry: &Entry, now: SystemTime) -> bool {
        if self.asked || self.retry_at.is_some_and(|at| now < at) {
            return false;
        }
        self.svid
            .as_ref()
            .is_none_or(|svid| self.renew_now || svid.is_due(entry, now))
    }

    /// Somebody waits: a try that failed before nobody did is not waited for any longer.
    fn want(&mut self) {
        if !self.wanted {
            self.wanted = true;
            self.retry_at = None;
        }
    }

    fn received(&mut self, svid: Svid) {
        *self = Self {
            svid: Some(Arc::new(svid)),
            wanted: self.wanted,
            renew_now: self.renew_now,
            ..Self::default()
        };
    }

    fn failed(&mut self, now: SystemTime) -> Duration {
        let doubled = RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(RETRY_MAX);
        let delay = doubled.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.failures += 1;
        self.renew_now = true;
        self.retry_at = Some(now + delay);
        delay
    }

    fn state(&self, entry: &Entry, now: SystemTime) -> State {
        match &self.svid {
            // One of before a change of the entry may say what the entry no longer grants.
            Some(svid) if svid.is_valid(now) && !svid.is_stale(entry) => {
                State::Ready(Arc::clone(svid))
            }
            _ if self.failures > 0 => State::Failed,
            _ => State::Pending,
        }
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
