//! Names of users and groups, asked from the host's name service.
//!
//! That may be a network directory, so it is asked on the blocking pool with
//! a deadline, and answers are kept for a minute (NAMES.md 17). Bounds: so
//! many lookups run at once, however many processes connect and however long
//! the name service hangs, and so many answers are kept. A lookup that comes
//! too late still fills the cache for the next caller.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use vane_chassis::clock::Clock;

/// So long a caller waits.
const DEADLINE: Duration = Duration::from_secs(1);
/// So long an answer is used.
const KEPT: Duration = Duration::from_secs(60);
/// Threads of the blocking pool that may hang in the name service.
const AT_ONCE: usize = 4;
const MOST_KEPT: usize = 8_192;

/// A number that may have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Account {
    User(u32),
    Group(u32),
}

/// The name; None when the number has none.
pub(super) type Name = Option<Arc<str>>;

type Lookup = dyn Fn(Account) -> Option<Name> + Send + Sync;

#[derive(Clone)]
pub(super) struct Names {
    clock: Arc<dyn Clock>,
    lookup: Arc<Lookup>,
    permits: Arc<Semaphore>,
    kept: Arc<Mutex<HashMap<Account, (Instant, Name)>>>,
}

impl Names {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_lookup(clock, ask)
    }

    pub(super) fn with_lookup(
        clock: Arc<dyn Clock>,
        lookup: impl Fn(Account) -> Option<Name> + Send + Sync + 'static,
    ) -> Self {
        Self {
            clock,
            lookup: Arc::new(lookup),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            kept: Arc::default(),
        }
    }

    /// The names of these accounts; what is not in the answer could not be found out in time.
    pub(super) async fn of(&self, accounts: Vec<Account>) -> HashMap<Account, Name> {
        let (mut found, missing) = self.cached(accounts);
        if !missing.is_empty() {
            // Late or not: what there is by now is in the cache.
            let _ = timeout(DEADLINE, self.look_up(missing.clone())).await;
            found.extend(self.cached(missing).0);
        }
        found
    }

    /// The names that are known, and the accounts that are not.
    fn cached(&self, accounts: Vec<Account>) -> (HashMap<Account, Name>, Vec<Account>) {
        let now = self.clock.monotonic();
        let kept = self.lock();
        let (mut found, mut missing) = (HashMap::with_capacity(accounts.len()), Vec::new());
        for account in accounts {
            match kept.get(&account) {
                Some((until, name)) if now < *until => drop(found.insert(account, name.clone())),
                _ => missing.push(account),
            }
        }
        (found, missing)
    }

    async fn look_up(&self, accounts: Vec<Account>) {
        let Ok(permit) = self.permits.clone().acquire_owned().await else {
            return;
        };
        let names = self.clone();
        let job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // Another caller may have asked the same while this one waited for its turn.
            for account in names.cached(accounts).1 {
                if let Some(name) = (names.lookup)(account) {
                    names.keep(account, name);
                }
            }
        });
        // A lookup that panics leaves its names unknown.
        let _ = job.await;
    }

    fn keep(&self, account: Account, name: Name) {
        let now = self.clock.monotonic();
        let mut kept = self.lock();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, (until, _)| now < *until);
        }
        if kept.len() < MOST_KEPT {
            kept.insert(account, (now + KEPT, name));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, (Instant, Name)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the name service; None when it has no answer, which is not "no name".
fn ask(account: Account) -> Option<Name> {
    let name = match account {
        Account::User(uid) => {
            User::from_uid(Uid::from_raw(uid)).map(|user| user.map(|user| user.name))
        }
        Account::Group(gid) => {
            Group::from_gid(Gid::from_raw(gid)).map(|group| group.map(|group| group.name))
        }
    };
    name.map(|name| name.map(Arc::from)).ok()
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("kept", &self.lock().len())
            .finish_non_exhaustive()
    }
}
