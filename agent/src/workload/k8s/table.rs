//! The pods of the node as they were told last, shared by who tells and who asks.
//!
//! One task (`kubelet` or `watch`) publishes; readers take what there is, never a lock for long.
//! What a reader gets is at most [`MAX_AGE`] old while the source answers; from [`RECENT`] on it
//! is told that a newer answer is on its way, so that nobody is denied by an old one. While the
//! source is away what is known is said again, and what is not known is an error. All callers
//! that come before a request begins share its answer.
//!
//! Who follows a pod is woken when it changed, and when there is no hope any more that what was
//! not known of it will be.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use vane_chassis::kubernetes;

use super::metrics::Metrics;
use super::pod::{Pod, Pods};
use super::wants::{Patience, Wants};
use crate::cgroup::{Place, PodUid};
use crate::workload::Soon;

/// What is older is not said while the source answers. As often as streams re-check their process.
const MAX_AGE: Duration = Duration::from_secs(30);
/// What is younger can deny.
const RECENT: Duration = Duration::from_secs(2);
/// So long a caller waits for the answer that it needs; then it is told that it comes, so that what
/// other attestors know is served meanwhile.
const WAIT: Duration = Duration::from_millis(500);
/// So long a failure speaks for the next request, too.
const FAILED: Duration = Duration::from_secs(1);
/// How many followed pods are kept before those that nobody follows any more are looked for.
const FOLLOWED: usize = 1_024;

/// When what is known was true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Nothing is known.
    Never,
    /// When the request began.
    At(Instant),
    /// Now: changes are told as they happen.
    Live,
}

/// What was told last.
#[derive(Debug, Clone)]
struct State {
    pods: Arc<Pods>,
    read: Read,
    /// Why the source does not answer, and since when it did not say so again.
    error: Option<(Arc<kubernetes::Error>, Instant)>,
    /// The last ticket that was drawn before the last request began.
    covers: u64,
}

/// What is said of a pod.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) pod: Arc<Pod>,
    /// What its follower will hear soon.
    pub(super) soon: Soon,
    /// It may have changed, and the source does not say.
    pub(super) doubtful: bool,
}

/// Why nothing can be said of a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error(transparent)]
    Source(Arc<kubernetes::Error>),
    #[error("pod {0} is not among the pods of this node any more")]
    Deleted(PodUid),
    #[error(
        "pod {0} is not among the pods of this node: it was deleted, or another kubelet made its cgroup (kubelet_cgroup_root)"
    )]
    NotListed(PodUid),
    /// The follower will hear.
    #[error("no answer yet")]
    Soon,
}

/// Who wants to hear of a pod.
#[derive(Debug, Default)]
struct Follower {
    generation: watch::Sender<u64>,
    /// It was told that a newer answer comes.
    waits: bool,
    /// The pod was there, and is no more.
    deleted: bool,
}

/// The pods of the node.
#[derive(Debug)]
pub(super) struct Table {
    state: watch::Sender<State>,
    followers: Mutex<HashMap<PodUid, Follower>>,
    wants: Mutex<Wants>,
    asked: AtomicU64,
    wake: Notify,
    pub(super) metrics: Metrics,
}

impl Table {
    pub(super) fn new(patience: Patience, metrics: Metrics) -> Self {
        let state = State {
            pods: Arc::default(),
            read: Read::Never,
            error: None,
            covers: 0,
        };
        Self {
            state: watch::Sender::new(state),
            followers: Mutex::default(),
            wants: Mutex::new(Wants::new(patience)),
            asked: AtomicU64::new(0),
            wake: Notify::new(),
            metrics,
        }
    }

    /// A generation that moves when what is said of a pod may have changed. To be taken before
    /// [`pod`](Self::pod) is asked.
    pub(super) fn follow(&self, pod: &PodUid) -> watch::Receiver<u64> {
        let mut followers = self.followers();
        if followers.len() >= FOLLOWED {
            followers.retain(|_, one| !one.is_alone());
        }
        let follower = followers.entry(pod.clone()).or_default();
        follower.generation.subscribe()
    }

    /// The pod of a process at `place`.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) async fn pod(&self, place: &Place) -> Result<Told, Missing> {
        let mut states = self.state.subscribe();
        let told = |pod, soon| Told {
            pod,
            soon,
            doubtful: false,
        };
        let doubtful = |pod| Told {
            doubtful: true,
            ..told(pod, Soon::Nothing)
        };
        let known = states.borrow_and_update().known(&place.pod, Instant::now());
        let old = match known {
            Some((pod, Age::Recent)) => {
                // Whoever follows it wants it to be read again in time.
                self.wake.notify_one();
                return Ok(told(pod, Soon::Nothing));
            }
            Some((pod, Age::Unrefreshed)) => {
                self.ask();
                return Ok(doubtful(pod));
            }
            Some((pod, Age::Some)) => {
                let soon = self.will_tell(&place.pod);
                self.ask();
                return Ok(told(pod, soon));
            }
            Some((pod, Age::Old)) => Some(pod),
            None if self.was_deleted(&place.pod) => {
                return Err(Missing::Deleted(place.pod.clone()));
            }
            None => match states.borrow().failed(Instant::now()) {
                Some(error) => {
                    self.ask();
                    return Err(Missing::Source(error));
                }
                None => None,
            },
        };
        let soon = self.will_tell(&place.pod);
        let ticket = self.ask();
        let answer = self.answer(&mut states, place, ticket);
        let answer = timeout(WAIT, answer).await;
        match (answer, old) {
            (Ok(Ok(pod)), _) if self.trouble().is_some() => Ok(doubtful(pod)),
            (Ok(Ok(pod)), _) => Ok(told(pod, Soon::Nothing)),
            (Ok(Err(missing)), _) => Err(missing),
            (Err(_), Some(pod)) => Ok(told(pod, soon)),
            (Err(_), None) => Err(Missing::Soon),
        }
    }

    /// Waits for an answer to a request that began after `ticket` was drawn.
    async fn answer(
        &self,
        states: &mut watch::Receiver<State>,
        place: &Place,
        ticket: u64,
    ) -> Result<Arc<Pod>, Missing> {
        loop {
            let state = states.borrow_and_update().clone();
            if state.covers >= ticket {
                if let Some(pod) = state.pods.get(&place.pod) {
                    return Ok(Arc::clone(pod));
                }
                if let Some((error, _)) = state.error {
                    return Err(Missing::Source(error));
                }
                if !self.want(place) {
                    return Err(Missing::NotListed(place.pod.clone()));
                }
            }
            // The sender lives as long as this table.
            let _ = states.changed().await;
        }
    }

    /// Has the source asked for `place`, of which not all is known, until it is or there is no
    /// hope any more: whether there is.
    pub(super) fn want(&self, place: &Place) -> bool {
        let hope = self.wants().add(place, Instant::now());
        self.wake.notify_one();
        hope
    }

    /// Why the source does not answer.
    pub(super) fn trouble(&self) -> Option<Arc<kubernetes::Error>> {
        let state = self.state.borrow();
        state.error.as_ref().map(|(error, _)| Arc::clone(error))
    }

    fn ask(&self) -> u64 {
        let ticket = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.wake.notify_one();
        ticket
    }

    fn will_tell(&self, pod: &PodUid) -> Soon {
        match self.followers().get_mut(pod) {
            Some(follower) => {
                follower.waits = true;
                Soon::Anything
            }
            None => Soon::Nothing,
        }
    }

    fn was_deleted(&self, pod: &PodUid) -> bool {
        let followers = self.followers();
        followers.get(pod).is_some_and(|one| one.deleted)
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<PodUid, Follower>> {
        self.followers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self) -> MutexGuard<'_, Wants> {
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For who tells.
impl Table {
    /// What a request that begins now answers.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// What was told last.
    pub(super) fn pods(&self) -> Arc<Pods> {
        Arc::clone(&self.state.borrow().pods)
    }

    /// Somebody asks who did not before.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// When to ask for all pods; None while nobody needs to know.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let (read, covers) = {
            let state = self.state.borrow();
            (state.read, state.covers)
        };
        if self.asked() > covers {
            return Some(now);
        }
        let again = match read {
            Read::Never => now,
            Read::At(read) => read + MAX_AGE,
            Read::Live => return self.wants().due(),
        };
        let is_followed = !self.followers().values().all(Follower::is_alone);
        let again = is_followed.then_some(again);
        again.into_iter().chain(self.wants().due()).min()
    }

    /// The source told its pods.
    pub(super) fn publish(
        &self,
        pods: Pods,
        read: Read,
        covers: u64,
        settled: impl Fn(&Place, &Pod) -> bool,
    ) {
        self.metrics.told(pods.len());
        let pods = Arc::new(pods);
        let before = self.state.send_replace(State {
            pods: Arc::clone(&pods),
            read,
            error: None,
            covers,
        });
        let is_settled =
            |place: &Place| pods.get(&place.pod).is_some_and(|pod| settled(place, pod));
        let given_up = self.wants().answered(Instant::now(), is_settled);
        self.followers().retain(|uid, follower| {
            let waited = std::mem::take(&mut follower.waits);
            let (old, new) = (before.pods.get(uid), pods.get(uid));
            follower.deleted = new.is_none() && (old.is_some() || follower.deleted);
            if old != new || waited || given_up.contains(uid) {
                follower.tell();
            }
            !follower.is_alone()
        });
    }

    /// The source did not answer. What it told before stays.
    pub(super) fn fail(&self, error: kubernetes::Error, covers: u64) {
        self.metrics.failed();
        self.state.send_modify(|state| {
            state.error = Some((Arc::new(error), Instant::now()));
            state.covers = covers;
        });
        self.tick();
    }

    /// Time passed, and nothing was told.
    pub(super) fn tick(&self) {
        let given_up = self.wants().answered(Instant::now(), |_| false);
        self.followers().retain(|uid, follower| {
            if std::mem::take(&mut follower.waits) || given_up.contains(uid) {
                follower.tell();
            }
            !follower.is_alone()
        });
    }
}

#[cfg(test)]
impl Table {
    /// As if what is known had been asked for at `read`.
    pub(super) fn age(&self, read: Instant) {
        self.state.send_modify(|state| state.read = Read::At(read));
    }
}

/// How old what is known of a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Recent,
    Some,
    Old,
    /// Of any age: the source does not answer.
    Unrefreshed,
}

impl State {
    /// Why the source does not answer, when it just said so.
    fn failed(&self, now: Instant) -> Option<Arc<kubernetes::Error>> {
        let (error, at) = self.error.as_ref()?;
        (now <= *at + FAILED).then(|| Arc::clone(error))
    }

    fn known(&self, pod: &PodUid, now: Instant) -> Option<(Arc<Pod>, Age)> {
        let pod = Arc::clone(self.pods.get(pod)?);
        let age = match self.read {
            _ if self.error.is_some() => Age::Unrefreshed,
            Read::Live => Age::Recent,
            Read::At(read) if now <= read + RECENT => Age::Recent,
            Read::At(read) if now <= read + MAX_AGE => Age::Some,
            Read::At(_) | Read::Never => Age::Old,
        };
        Some((pod, age))
    }
}

impl Follower {
    /// Whether nobody listens any more.
    fn is_alone(&self) -> bool {
        self.generation.receiver_count() == 0
    }

    fn tell(&self) {
        self.generation.send_modify(|generation| *generation += 1);
    }
}
