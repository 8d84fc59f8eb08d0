//! The readers' side: a look-up without a lock, and the owner where that is not enough.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use vane_chassis::clock::Clock;
use vane_identity::entry::Entry;
use vane_identity::jwt_svid::JwtSvid;

use super::held::Held;
use super::key::{Audience, Key};
use super::pace::RATE;
use super::table::Waits;
use crate::counters::Counters;
use crate::issue::jwt::JwtIssueError;
use crate::limits::Customer;
use crate::snapshot::Snapshot;

/// So long a caller waits for something better than a token that is valid.
const BETTER: Duration = Duration::from_secs(1);

/// Why a caller gets no token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The entry is not there any longer, or is another one now: look again.
    #[error("the entry changed")]
    Changed,
    /// It cannot be had.
    #[error("{0}")]
    Failed(Arc<JwtIssueError>),
    /// The server signs with a key that it says is tainted.
    #[error("the server signed with a tainted key")]
    Tainted,
    /// What the server sent is over already.
    #[error(
        "the server sent a JWT-SVID that has expired: does this node's clock agree with the server's?"
    )]
    Expired,
    /// Nothing came in time.
    #[error("no answer from the server within {} s", .0.as_secs())]
    Late(Duration),
    /// The agent ends.
    #[error("the agent is shutting down")]
    Stopped,
    /// Too many tokens are being fetched.
    #[error("too many JWT-SVIDs are being fetched")]
    Full,
    /// The customer has had too many made.
    #[error(
        "this pod, or this user's processes in this cgroup, ask for too many different JWT-SVIDs: {RATE} a second are made"
    )]
    Pace,
}

/// What is held, as readers see it.
pub(super) type Published = ArcSwap<HashMap<Key, Arc<Held>>>;

/// What a caller gets.
pub(super) type Answer = Result<JwtSvid, Refusal>;

/// A caller that the owner is to answer.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) reply: oneshot::Sender<Answer>,
    /// It waits no longer than that.
    pub(super) until: Instant,
}

impl Waits for Waiter {
    fn is_waiting(&self) -> bool {
        !self.reply.is_closed()
    }
}

/// A caller with what it wants.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) key: Key,
    pub(super) entry: Arc<Entry>,
    pub(super) customer: Customer,
    pub(super) waiter: Waiter,
}

/// What a caller wants.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Whose token.
    pub entry: &'a Arc<Entry>,
    /// Whom it is for.
    pub audience: &'a Audience,
    /// Who asks.
    pub customer: &'a Customer,
    /// The longest wait when the server has to be asked.
    pub patience: Duration,
}

/// The readers' side.
#[derive(Clone)]
pub struct Tokens {
    pub(super) published: Arc<Published>,
    pub(super) uses: Arc<AtomicU64>,
    pub(super) asks: mpsc::Sender<Ask>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) counters: Counters,
}

impl Tokens {
    /// The token of a wish for an entry that is in `snapshot`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn get(&self, snapshot: &Snapshot, wish: Wish<'_>) -> Result<JwtSvid, Refusal> {
        let count = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        let key = Key::new(wish.entry, wish.audience, count);
        let held = self.find(snapshot, &key);
        if let Some(held) = held.as_ref().filter(|held| !held.is_due(self.clock.now())) {
            return Ok(self.used(held, count));
        }
        let patience = match held {
            Some(_) => wish.patience.min(BETTER),
            None => wish.patience,
        };
        let answer = self.ask(key.clone(), Wish { patience, ..wish }).await;
        match answer {
            Err(Refusal::Changed | Refusal::Stopped) | Ok(_) => answer,
            // What was held may have been revoked meanwhile.
            Err(_) if held.is_some() => match self.find(snapshot, &key) {
                Some(held) => Ok(self.used(&held, count)),
                None => answer,
            },
            Err(_) => answer,
        }
    }

    async fn ask(&self, key: Key, wish: Wish<'_>) -> Answer {
        let patience = wish.patience;
        let (reply, answer) = oneshot::channel();
        let ask = Ask {
            key,
            entry: Arc::clone(wish.entry),
            customer: wish.customer.clone(),
            waiter: Waiter {
                reply,
                until: Instant::now() + patience,
            },
        };
        let exchange = async {
            self.asks.send(ask).await.map_err(|_| Refusal::Stopped)?;
            // Who is not answered asked for an entry that is not there any longer.
            answer.await.unwrap_or(Err(Refusal::Changed))
        };
        timeout(patience, exchange)
            .await
            .unwrap_or(Err(Refusal::Late(patience)))
    }

    /// What is held, valid and good for `key`.
    fn find(&self, snapshot: &Snapshot, key: &Key) -> Option<Arc<Held>> {
        let held = self.published.load().get(key).cloned()?;
        let bundle = snapshot.own_bundle();
        let good = bundle.is_none_or(|bundle| held.is_untainted(bundle));
        (good && held.is_valid(self.clock.now())).then_some(held)
    }

    fn used(&self, held: &Held, count: u64) -> JwtSvid {
        self.counters.jwt_svids_cached.inc();
        held.touch(count);
        held.svid().clone()
    }
}
