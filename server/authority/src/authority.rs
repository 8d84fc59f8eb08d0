//! The authorities of this server, X.509 and JWT: their journal, their rotation, and signing.
//!
//! The journal is the table of authorities in the store, together with the trust domain's
//! bundle; both change in one transaction, and always before memory does. So a rotation that
//! is interrupted anywhere resumes from what is stored: a key without a record is replaced, a
//! record whose key is gone retires. Only records of this `server_id` are moved.
//!
//! Memory follows the store, never the other way: after a commit whose outcome is unknown, or
//! whose caller went away, the journal is read again before anything else is decided. Both
//! kinds go the same way, by the same schedule; where they differ is in `published`.

mod journal;
mod published;
mod rotate;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::{Clock, sleep_until};
use vane_identity::jwt_svid::JwtSvid;
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_store::kv::{CommitError, Kv, KvError, Revision};
use vane_wire::record::{AuthorityRecord, AuthorityState};

use crate::issue::{
    CaRequest, IssueError, Issues, JwtRequest, Parent, Signer, X509Request, no_authority,
};
use crate::jwt;
use crate::key_manager::{KeyManager, KeyManagerError};
use crate::kind::Kind;
use crate::log::{Log, LogError};
use crate::profile::{Profile, ProfileConfig, ProfileError};
use crate::schedule;
use crate::x509::check::CheckError;
use crate::x509::{self, BadIssuer, NoRandomness};
use journal::{Journal, expect};

/// The wait after a rotation that failed.
const RETRY: Duration = Duration::from_secs(5);

/// What the authorities work with.
pub struct Deps {
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// Where the journal and the bundle are.
    pub kv: Arc<dyn Kv>,
    /// Where the keys are.
    pub keys: Arc<dyn KeyManager>,
    /// What stands before each signature.
    pub log: Arc<Log>,
    /// Whose authorities these are.
    pub server_id: String,
}

/// The authorities of this server.
pub struct Authority {
    deps: Deps,
    profile: Arc<Profile>,
    signer: Signer,
    active: ArcSwapOption<x509::Issuer>,
    active_jwt: ArcSwapOption<jwt::Issuer>,
    journal: Mutex<Journal>,
    published: watch::Sender<Arc<[AuthorityRecord]>>,
    acks: watch::Sender<Option<Revision>>,
    changed: Notify,
}

/// Why authorities cannot be opened or moved.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The configuration is refused.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] KvError),
    /// The store did not take a change.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The key manager does not answer.
    #[error(transparent)]
    Key(#[from] KeyManagerError),
    /// The log does not take what is about to be signed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A new CA certificate is not what was planned.
    #[error("self-check of a new authority failed: {0}")]
    Check(#[from] CheckError),
    /// A certificate of the journal cannot be an issuer.
    #[error(transparent)]
    Issuer(#[from] BadIssuer),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// There are so many authorities of a kind that no other one is made.
    #[error("{0} authorities of this server are in the bundle already; revoke some")]
    TooMany(usize),
    /// No authority of this server has the ID.
    #[error("no authority {0} of this server")]
    Unknown(String),
    /// The authority is not where it would have to be.
    #[error("authority {id} is {state:?}, {wanted}")]
    State {
        /// The authority.
        id: String,
        /// Where it stands.
        state: AuthorityState,
        /// What is needed.
        wanted: &'static str,
    },
}

type Result<T, E = AuthorityError> = std::result::Result<T, E>;

impl Authority {
    /// Continues the authorities of the journal, and makes and activates what is missing: on
    /// return one of each kind is active and is in the stored bundle.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn open(config: &ProfileConfig, deps: Deps) -> Result<Arc<Self>> {
        let profile = Arc::new(Profile::new(config)?);
        for (key, ttl) in profile.too_long_ttls() {
            tracing::warn!(key, ttl = ?ttl, ca_ttl = ?profile.ca_ttl(), "longer than a sixth of ca_ttl: SVIDs are cut at the end of their CA");
        }
        let signer = Signer::new(
            Arc::clone(&profile),
            Arc::clone(&deps.keys),
            Arc::clone(&deps.log),
        );
        let authority = Arc::new(Self {
            profile,
            signer,
            active: ArcSwapOption::empty(),
            active_jwt: ArcSwapOption::empty(),
            journal: Mutex::default(),
            published: watch::channel(Arc::from([])).0,
            acks: watch::channel(None).0,
            changed: Notify::new(),
            deps,
        });
        authority.catch_up().await?;
        Ok(authority)
    }

    /// Rotates until `stop`.
    ///
    /// # Errors
    /// None: a step that fails is tried again, and what is active stays.
    pub async fn run(
        self: Arc<Self>,
        stop: CancellationToken,
    ) -> std::result::Result<(), std::convert::Infallible> {
        let clock = &*self.deps.clock;
        let mut jumps = clock.jumps();
        loop {
            // A rotation by a clock that is set right again would lock out the agents that
            // were cut off meanwhile, so it waits until the clock is likely to stay.
            let unsettled = jumps.settles_in(clock.monotonic());
            let due = match unsettled.is_zero() {
                false => Ok(Some(clock.now() + unsettled)),
                true => self.catch_up().await,
            };
            let due = due.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot rotate an authority; trying again");
                None
            });
            let due = due.unwrap_or_else(|| self.deps.clock.now() + RETRY);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(&*self.deps.clock, due) => {}
                () = self.changed.notified() => {}
                () = jumps.next() => {}
            }
        }
    }

    /// Issues X.509-SVIDs (see [`crate::issue`]). The results come in the order of the requests.
    pub async fn issue_x509(
        &self,
        requests: Vec<X509Request>,
    ) -> Vec<std::result::Result<X509Svid, IssueError>> {
        self.issue_with(&self.active, requests).await
    }

    /// Issues JWT-SVIDs in the same way.
    pub async fn issue_jwt(
        &self,
        requests: Vec<JwtRequest>,
    ) -> Vec<std::result::Result<JwtSvid, IssueError>> {
        self.issue_with(&self.active_jwt, requests).await
    }

    /// Issues the CA of a downstream server; its chain without the root.
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn issue_ca(
        &self,
        request: CaRequest,
    ) -> std::result::Result<Vec<Certificate>, IssueError> {
        let issuer = self.active.load_full().ok_or(IssueError::NoAuthority)?;
        let superseded = || {
            let active = self.active.load();
            !active.as_ref().is_some_and(|now| Arc::ptr_eq(now, &issuer))
        };
        let now = self.deps.clock.now();
        let parent = Parent(&issuer);
        let issued = self.signer.issue(&parent, vec![request], now, superseded);
        issued.await.pop().unwrap_or(Err(IssueError::NoAuthority))
    }

    async fn issue_with<I: Issues>(
        &self,
        active: &ArcSwapOption<I>,
        requests: Vec<I::Request>,
    ) -> Vec<std::result::Result<I::Svid, IssueError>> {
        let Some(issuer) = active.load_full() else {
            return no_authority(&requests);
        };
        let superseded = || {
            let active = active.load();
            !active.as_ref().is_some_and(|now| Arc::ptr_eq(now, &issuer))
        };
        let now = self.deps.clock.now();
        self.signer.issue(&*issuer, requests, now, superseded).await
    }

    /// The authorities of this server as they change.
    #[must_use]
    pub fn authorities(&self) -> watch::Receiver<Arc<[AuthorityRecord]>> {
        self.published.subscribe()
    }

    /// When something is done about those of `kind` by itself.
    #[must_use]
    pub fn next_rotation(&self, kind: Kind) -> Option<SystemTime> {
        let records = self.published.borrow().clone();
        let of_kind = records.iter().filter(|record| Kind::of(record) == kind);
        let of_kind: Vec<AuthorityRecord> = of_kind.cloned().collect();
        schedule::next_time(&rotate::slots(&of_kind), self.deps.clock.now())
    }

    /// Tells the lowest revision of the bundle that every connected agent has applied; `None`
    /// without agents. It moves no time of the schedule (see [`crate::schedule`]): an authority
    /// that is activated before every agent has it is reported.
    pub fn set_acks(&self, lowest_applied: Option<Revision>) {
        self.acks.send_replace(lowest_applied);
    }

    /// The rules that certificates follow.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Makes the next authority of a kind; one that was prepared before retires.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn prepare(&self, kind: Kind) -> Result<AuthorityRecord> {
        let mut journal = self.journal().await?;
        let made = self.make(&mut journal, kind).await?;
        self.changed.notify_one();
        Ok(made)
    }

    /// Signs with the prepared authority `id` from now on.
    ///
    /// # Errors
    /// [`AuthorityError::Unknown`], [`AuthorityError::State`] unless it is prepared.
    pub async fn activate(&self, kind: Kind, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        let next = expect(
            &journal.of(kind),
            id,
            AuthorityState::Prepared,
            "only a prepared one can be activated",
        )?;
        self.sign_with(&mut journal, next).await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Marks the old authority `id` tainted: nothing that it signed should be served.
    ///
    /// # Errors
    /// [`AuthorityError::Unknown`], [`AuthorityError::State`] unless it is old.
    pub async fn taint(&self, kind: Kind, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        let record = expect(
            &journal.of(kind),
            id,
            AuthorityState::Old,
            "only an old one can be tainted",
        )?;
        let tainted = AuthorityRecord {
            state: AuthorityState::Tainted,
            ..record.clone()
        };
        self.commit(&mut journal, vec![tainted], |bundle| {
            published::taint(&record, bundle);
        })
        .await
    }

    /// Takes the tainted authority `id` out of the bundle.
    ///
    /// # Errors
    /// [`AuthorityError::Unknown`], [`AuthorityError::State`] unless it is tainted.
    pub async fn revoke(&self, kind: Kind, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        let record = expect(
            &journal.of(kind),
            id,
            AuthorityState::Tainted,
            "only a tainted one can be revoked",
        )?;
        self.prune(&mut journal, record).await
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", self.profile.trust_domain())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
