//! The X.509 authorities of this server: their journal, their rotation, and signing.
//!
//! The journal is the table of authorities in the store, together with the trust domain's
//! bundle; both change in one transaction, and always before memory does. So a rotation that
//! is interrupted anywhere resumes from what is stored: a key without a record is replaced, a
//! record whose key is gone retires. Only records of this `server_id` are moved.
//!
//! Memory follows the store, never the other way: after a commit whose outcome is unknown, or
//! whose caller went away, the journal is read again before anything else is decided.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::{Clock, sleep_until};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::key::PublicKey;
use vane_identity::lifetime::{Validity, from_unix, to_unix};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_store::kv::{CommitError, Kv, KvError, Revision, Txn};
use vane_store::tables::row::Row;
use vane_store::tables::{authorities, bundles};
use vane_wire::record::{AuthorityKind, AuthorityRecord, AuthorityState};

use crate::issue::{IssueError, Signer, X509Request};
use crate::key_manager::{KeyManager, KeyManagerError, SignRequest, SignatureFormat};
use crate::log::{Leaf, Log, LogError};
use crate::profile::{Profile, ProfileConfig, ProfileError};
use crate::schedule::{self, Action, Slot, Stage};
use crate::x509::check::{self, CheckError};
use crate::x509::{self, BadIssuer, CaPlan, Issuer, NoRandomness, Serial};

/// The names of X.509 CA keys, SPIRE's.
const KEY_REFS: [&str; 2] = ["x509-CA-A", "x509-CA-B"];
/// The wait after a rotation that failed.
const RETRY: Duration = Duration::from_secs(5);
const PAGE: usize = 256;
/// Lost races before a change is given up.
const TRIES: usize = 16;
/// The most authorities of one server that are in the bundle; the schedule needs five.
const MAX_OWN: usize = 32;

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
    active: ArcSwapOption<Issuer>,
    journal: Mutex<Journal>,
    published: watch::Sender<Arc<[AuthorityRecord]>>,
    acks: watch::Sender<Option<Revision>>,
    changed: Notify,
}

/// What the store holds of this server.
#[derive(Debug, Default)]
struct Journal {
    records: Vec<AuthorityRecord>,
    /// The revision that made the bundle what it is.
    bundle: Revision,
    /// Whether the store is known to say the same.
    fresh: bool,
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
    /// There are so many authorities that no other one is made.
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
    /// return one is active, and its certificate is in the stored bundle.
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
        let mut jumps = self.deps.clock.jumps();
        loop {
            let due = self.catch_up().await.unwrap_or_else(|error| {
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
        match self.active.load_full() {
            Some(issuer) => {
                let superseded = || {
                    let active = self.active.load();
                    !active.as_ref().is_some_and(|now| Arc::ptr_eq(now, &issuer))
                };
                let now = self.deps.clock.now();
                self.signer.issue(&issuer, requests, now, superseded).await
            }
            None => requests
                .iter()
                .map(|_| Err(IssueError::NoAuthority))
                .collect(),
        }
    }

    /// The authorities of this server as they change.
    #[must_use]
    pub fn authorities(&self) -> watch::Receiver<Arc<[AuthorityRecord]>> {
        self.published.subscribe()
    }

    /// When something is done about them by itself.
    #[must_use]
    pub fn next_rotation(&self) -> Option<SystemTime> {
        let records = self.published.borrow().clone();
        schedule::next_time(&slots(&records), self.deps.clock.now())
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

    /// Makes the next authority; one that was prepared before retires.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub async fn prepare_x509(&self) -> Result<AuthorityRecord> {
        let mut journal = self.journal().await?;
        let made = self.prepare(&mut journal).await?;
        self.changed.notify_one();
        Ok(made)
    }

    /// Signs with the prepared authority `id` from now on.
    ///
    /// # Errors
    /// [`AuthorityError::State`] unless it is prepared.
    pub async fn activate_x509(&self, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        expect(
            &journal.records,
            id,
            AuthorityState::Prepared,
            "only a prepared one can be activated",
        )?;
        self.activate(&mut journal, id).await?;
        self.changed.notify_one();
        Ok(())
    }

    /// Marks the old authority `id` tainted: nothing that it signed should be served.
    ///
    /// # Errors
    /// [`AuthorityError::State`] unless it is old.
    pub async fn taint_x509(&self, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        let record = expect(
            &journal.records,
            id,
            AuthorityState::Old,
            "only an old one can be tainted",
        )?;
        let certificate = certificate_of(&record).cloned();
        let tainted = AuthorityRecord {
            state: AuthorityState::Tainted,
            ..record
        };
        self.commit(&mut journal, vec![tainted], |bundle| {
            let matching = bundle
                .x509_authorities
                .iter_mut()
                .filter(|one| Some(&one.certificate) == certificate.as_ref());
            matching.for_each(|one| one.tainted = true);
        })
        .await
    }

    /// Takes the tainted authority `id` out of the bundle.
    ///
    /// # Errors
    /// [`AuthorityError::State`] unless it is tainted.
    pub async fn revoke_x509(&self, id: &str) -> Result<()> {
        let mut journal = self.journal().await?;
        expect(
            &journal.records,
            id,
            AuthorityState::Tainted,
            "only a tainted one can be revoked",
        )?;
        self.prune(&mut journal, id).await
    }

    /// The journal as the store has it.
    async fn journal(&self) -> Result<MutexGuard<'_, Journal>> {
        let mut journal = self.journal.lock().await;
        if !journal.fresh {
            self.resume(&mut journal).await?;
        }
        Ok(journal)
    }

    /// Reads the journal, retires what cannot sign (its key is gone or is another), and puts
    /// back into the bundle what signs or will.
    async fn resume(&self, journal: &mut Journal) -> Result<()> {
        journal.records = self.read_journal().await?;
        let lost = self.without_key(&journal.records).await?;
        for record in &lost {
            tracing::warn!(
                authority_id = record.id,
                "the key of this authority is gone: another one is made"
            );
        }
        let row = bundles::get(&*self.deps.kv, self.profile.trust_domain()).await?;
        journal.bundle = row.as_ref().map_or(0, |row| row.mod_revision);
        let needed = needed_certificates(&journal.records, &lost);
        let published = row
            .map(|row| row.value.x509_authorities)
            .unwrap_or_default();
        if lost.is_empty() && missing(&needed, &published).is_empty() {
            journal.fresh = true;
        } else {
            self.commit(journal, lost, |bundle| {
                let missing = missing(&needed, &bundle.x509_authorities);
                bundle.x509_authorities.extend(missing);
            })
            .await?;
        }
        self.load_active(&journal.records)?;
        self.publish(&journal.records);
        Ok(())
    }

    /// Those that sign or will, but cannot, as old ones.
    async fn without_key(&self, records: &[AuthorityRecord]) -> Result<Vec<AuthorityRecord>> {
        let keys = self.deps.keys.public_keys().await?;
        let has_key = |record: &AuthorityRecord| {
            let own = keys.iter().find(|key| key.key_ref == record.key_ref);
            own.is_some_and(|key| public_key_of(record).as_ref() == Some(&key.public_key))
        };
        let lost = records
            .iter()
            .filter(|record| stage(record) != Some(Stage::Retired) && !has_key(record));
        Ok(lost.map(old).collect())
    }

    async fn read_journal(&self) -> Result<Vec<AuthorityRecord>> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = authorities::page(&*self.deps.kv, after.as_ref(), PAGE).await?;
            all.extend(
                page.rows
                    .into_iter()
                    .map(|row| row.value)
                    .filter(|record| self.is_own(record)),
            );
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    fn is_own(&self, record: &AuthorityRecord) -> bool {
        record.owner == self.deps.server_id && matches!(record.kind, AuthorityKind::X509 { .. })
    }

    /// Does what the schedule says until it says nothing, and when to ask it again.
    async fn catch_up(&self) -> Result<Option<SystemTime>> {
        let mut journal = self.journal().await?;
        loop {
            let (slots, now) = (slots(&journal.records), self.deps.clock.now());
            match schedule::next_action(&slots, now) {
                Some(Action::Prepare) => drop(self.prepare(&mut journal).await?),
                Some(Action::Activate(id)) => self.activate(&mut journal, &id).await?,
                Some(Action::Prune(id)) => self.prune(&mut journal, &id).await?,
                None => return Ok(schedule::next_time(&slots, now)),
            }
        }
    }

    async fn prepare(&self, journal: &mut Journal) -> Result<AuthorityRecord> {
        if journal.records.len() >= MAX_OWN {
            return Err(AuthorityError::TooMany(journal.records.len()));
        }
        let now = self.deps.clock.now();
        let key_ref = free_key_ref(&journal.records);
        let public_key = self
            .deps
            .keys
            .generate(key_ref, self.profile.ca_key_type())
            .await?;
        let certificate = self.self_sign(key_ref, &public_key, now).await?;
        let issuer = Issuer::self_signed(&certificate, key_ref, self.profile.ca_key_type())?;
        let record = AuthorityRecord {
            id: issuer.authority_id,
            kind: AuthorityKind::X509 {
                certificate_der: certificate.clone(),
            },
            state: AuthorityState::Prepared,
            owner: self.deps.server_id.clone(),
            key_ref: key_ref.to_owned(),
            issued_at: to_unix(now),
            not_after: to_unix(issuer.not_after),
            activated_at: 0,
        };
        let mut changes = retired(&journal.records, AuthorityState::Prepared);
        changes.push(record.clone());
        let added = X509Authority::new(certificate);
        self.commit(journal, changes, |bundle| {
            bundle.x509_authorities.push(added.clone());
        })
        .await?;
        tracing::info!(authority_id = record.id, "prepared an authority");
        Ok(record)
    }

    async fn self_sign(
        &self,
        key_ref: &str,
        public_key: &PublicKey,
        now: SystemTime,
    ) -> Result<Certificate> {
        let serial = Serial::random()?;
        let end = now + self.profile.ca_ttl();
        let plan = CaPlan::new(
            self.profile.trust_domain().clone(),
            self.profile.ca_subject(),
            public_key.clone(),
            self.profile.ca_key_type(),
            Validity::issued_at(now, self.profile.ca_ttl(), end),
            &serial,
        );
        let tbs = x509::ca_tbs(&plan, &serial);
        let leaf = Leaf::X509 {
            tbs: tbs.clone(),
            spiffe_id: plan.trust_domain.id(),
            serial: serial.decimal(),
            caller: "rotation".to_owned(),
            entry_id: None,
            not_after: to_unix(plan.validity.not_after),
            authority_id: key_ref.to_owned(),
        };
        self.deps.log.append(&[leaf]).await?;
        let request = SignRequest {
            key_ref,
            message: &tbs,
            format: SignatureFormat::X509,
        };
        let signature = self
            .deps
            .keys
            .sign(&[request])
            .await?
            .pop()
            .ok_or(CheckError::Signature)?;
        let certificate = x509::assemble(&tbs, plan.signature, &signature);
        check::ca(&certificate, &tbs, &plan, &serial)?;
        Ok(certificate)
    }

    async fn activate(&self, journal: &mut Journal, id: &str) -> Result<()> {
        let next = find(&journal.records, id)?;
        let lowest = *self.acks.borrow();
        let known = lowest.is_none_or(|lowest| lowest >= journal.bundle);
        let mut changes = retired(&journal.records, AuthorityState::Active);
        changes.push(AuthorityRecord {
            state: AuthorityState::Active,
            activated_at: to_unix(self.deps.clock.now()),
            ..next
        });
        // Stored before it signs: a restart continues with this one.
        self.commit(journal, changes, |_| {}).await?;
        self.load_active(&journal.records)?;
        tracing::info!(authority_id = id, "activated an authority");
        if !known {
            tracing::warn!(
                authority_id = id,
                ?lowest,
                bundle = journal.bundle,
                "activated before every connected agent acknowledged it"
            );
        }
        Ok(())
    }

    async fn prune(&self, journal: &mut Journal, id: &str) -> Result<()> {
        let record = find(&journal.records, id)?;
        let certificate = certificate_of(&record).cloned();
        let gone = AuthorityRecord {
            state: AuthorityState::Revoked,
            ..record
        };
        self.commit(journal, vec![gone], |bundle| {
            bundle
                .x509_authorities
                .retain(|one| Some(&one.certificate) != certificate.as_ref());
        })
        .await?;
        tracing::info!(authority_id = id, "took an authority out of the bundle");
        Ok(())
    }

    fn load_active(&self, journal: &[AuthorityRecord]) -> Result<()> {
        let active = journal
            .iter()
            .find(|record| record.state == AuthorityState::Active);
        let issuer = match active.and_then(|record| Some((record, certificate_of(record)?))) {
            Some((record, certificate)) => Some(Arc::new(issuer_of(record, certificate)?)),
            None => None,
        };
        self.active.store(issuer);
        Ok(())
    }

    /// Writes `changes` and what `edit` makes of the own bundle in one transaction, then takes
    /// them over. Revoked records are deleted.
    async fn commit(
        &self,
        journal: &mut Journal,
        changes: Vec<AuthorityRecord>,
        edit: impl Fn(&mut Bundle),
    ) -> Result<()> {
        for _ in 0..TRIES {
            let (txn, bundle) = self.transaction(&changes, &edit).await?;
            // Stays so when the outcome is unknown or this future is dropped.
            journal.fresh = false;
            match self.deps.kv.commit(txn).await {
                Ok(revision) => {
                    take_over(&mut journal.records, changes);
                    journal.bundle = bundle.unwrap_or(revision);
                    journal.fresh = true;
                    self.publish(&journal.records);
                    return Ok(());
                }
                // Another server changed the bundle: read it again.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let cause = "the bundle is changed by others all the time".to_owned();
        Err(KvError::Unavailable {
            cause,
            way_out: "it is tried again".to_owned(),
        }
        .into())
    }

    /// The transaction, and the revision that the bundle keeps when it is not changed by it.
    async fn transaction(
        &self,
        changes: &[AuthorityRecord],
        edit: &impl Fn(&mut Bundle),
    ) -> Result<(Txn, Option<Revision>)> {
        let kv = &*self.deps.kv;
        let trust_domain = self.profile.trust_domain();
        let row: Option<Row<Bundle>> = bundles::get(kv, trust_domain).await?;
        let mut bundle = row.as_ref().map_or_else(
            || Bundle::empty(trust_domain.clone()),
            |row| row.value.clone(),
        );
        edit(&mut bundle);
        let same = |row: &&Row<Bundle>| row.value.same_content(&bundle);
        let kept = row.as_ref().filter(same).map(|row| row.mod_revision);
        let mut txn = bundles::put(row.as_ref(), bundle);
        for record in changes {
            let row = authorities::get(kv, &record.id).await?;
            txn = match (&row, record.state) {
                (Some(row), AuthorityState::Revoked) => txn.and(authorities::deletion(row)),
                (None, AuthorityState::Revoked) => txn,
                (row, _) => txn.and(authorities::put(row.as_ref(), record)),
            };
        }
        Ok((txn, kept))
    }

    fn publish(&self, journal: &[AuthorityRecord]) {
        self.published.send_replace(journal.into());
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", self.profile.trust_domain())
            .finish_non_exhaustive()
    }
}

fn stage(record: &AuthorityRecord) -> Option<Stage> {
    match record.state {
        AuthorityState::Prepared => Some(Stage::Prepared),
        AuthorityState::Active => Some(Stage::Active),
        AuthorityState::Old | AuthorityState::Tainted => Some(Stage::Retired),
        AuthorityState::Revoked => None,
    }
}

fn slots(journal: &[AuthorityRecord]) -> Vec<Slot> {
    let slot = |record: &AuthorityRecord| {
        Some(Slot {
            id: record.id.clone(),
            stage: stage(record)?,
            issued_at: from_unix(record.issued_at),
            not_after: from_unix(record.not_after),
        })
    };
    journal.iter().filter_map(slot).collect()
}

/// `record` as an old one.
fn old(record: &AuthorityRecord) -> AuthorityRecord {
    AuthorityRecord {
        state: AuthorityState::Old,
        ..record.clone()
    }
}

/// The certificates of those that sign or will, without the `lost` ones.
fn needed_certificates(records: &[AuthorityRecord], lost: &[AuthorityRecord]) -> Vec<Certificate> {
    let is_needed = |record: &&AuthorityRecord| {
        let live = matches!(stage(record), Some(Stage::Prepared | Stage::Active));
        live && lost.iter().all(|lost| lost.id != record.id)
    };
    let needed = records.iter().filter(is_needed);
    needed.filter_map(certificate_of).cloned().collect()
}

/// Those of `needed` that the bundle lacks.
fn missing(needed: &[Certificate], published: &[X509Authority]) -> Vec<X509Authority> {
    let lacks = |certificate: &&Certificate| {
        let mut published = published.iter();
        published.all(|one| one.certificate != **certificate)
    };
    let missing = needed.iter().filter(lacks).cloned();
    missing.map(X509Authority::new).collect()
}

/// The issuer that a record is: its key may be of another kind than the configured one, when
/// `ca_key_type` was changed since it was made.
fn issuer_of(record: &AuthorityRecord, certificate: &Certificate) -> Result<Issuer, BadIssuer> {
    let key = public_key_of(record).ok_or(BadIssuer)?;
    let key_type = x509::key_type_of(&key).ok_or(BadIssuer)?;
    Issuer::self_signed(certificate, &record.key_ref, key_type)
}

/// Those in `state`, as old ones.
fn retired(journal: &[AuthorityRecord], state: AuthorityState) -> Vec<AuthorityRecord> {
    journal
        .iter()
        .filter(|record| record.state == state)
        .map(old)
        .collect()
}

fn take_over(journal: &mut Vec<AuthorityRecord>, changes: Vec<AuthorityRecord>) {
    for change in changes {
        journal.retain(|record| record.id != change.id);
        if change.state != AuthorityState::Revoked {
            journal.push(change);
        }
    }
}

fn find(journal: &[AuthorityRecord], id: &str) -> Result<AuthorityRecord> {
    let found = journal.iter().find(|record| record.id == id).cloned();
    found.ok_or_else(|| AuthorityError::Unknown(id.to_owned()))
}

fn expect(
    journal: &[AuthorityRecord],
    id: &str,
    state: AuthorityState,
    wanted: &'static str,
) -> Result<AuthorityRecord> {
    let record = find(journal, id)?;
    if record.state != state {
        return Err(AuthorityError::State {
            id: record.id,
            state: record.state,
            wanted,
        });
    }
    Ok(record)
}

/// The name that the active authority does not use; a prepared one is replaced.
fn free_key_ref(journal: &[AuthorityRecord]) -> &'static str {
    let active = journal
        .iter()
        .find(|record| record.state == AuthorityState::Active);
    let [a, b] = KEY_REFS;
    if active.is_some_and(|record| record.key_ref == a) {
        b
    } else {
        a
    }
}

fn certificate_of(record: &AuthorityRecord) -> Option<&Certificate> {
    match &record.kind {
        AuthorityKind::X509 { certificate_der } => Some(certificate_der),
        AuthorityKind::Jwt { .. } => None,
    }
}

fn public_key_of(record: &AuthorityRecord) -> Option<PublicKey> {
    let info = certificate_of(record)?.info().ok()?;
    Some(PublicKey::from_spki(&info.spki))
}

#[cfg(test)]
mod tests;
