//! The X.509 authorities of this server: their journal, their rotation, and signing.
//!
//! The journal is the table of authorities in the store, together with the trust domain's
//! bundle; both change in one transaction, and always before memory does. So a rotation that
//! is interrupted anywhere resumes from what is stored: a key without a record is replaced, a
//! record whose key is gone retires. Only records of this `server_id` are moved.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use vane_chassis::clock::{Clock, sleep_until};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::key::PublicKey;
use vane_identity::lifetime::{Validity, from_unix, to_unix};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_store::kv::{CommitError, Kv, KvError, Txn};
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
    journal: Mutex<Vec<AuthorityRecord>>,
    published: watch::Sender<Arc<[AuthorityRecord]>>,
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
            journal: Mutex::new(Vec::new()),
            published: watch::channel(Arc::from([])).0,
            changed: Notify::new(),
            deps,
        });
        authority.resume().await?;
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
        loop {
            let due = match self.catch_up().await {
                Ok(()) => schedule::next_time(&slots(&self.journal.lock().await)),
                Err(error) => {
                    tracing::error!(%error, "cannot rotate an authority; trying again");
                    Some(self.deps.clock.now() + RETRY)
                }
            };
            let due = due.unwrap_or_else(|| self.deps.clock.now() + RETRY);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep_until(&*self.deps.clock, due) => {}
                () = self.changed.notified() => {}
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
                self.signer
                    .issue(&issuer, requests, self.deps.clock.now())
                    .await
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
        let mut journal = self.journal.lock().await;
        let made = self.prepare(&mut journal).await?;
        self.changed.notify_one();
        Ok(made)
    }

    /// Signs with the prepared authority `id` from now on.
    ///
    /// # Errors
    /// [`AuthorityError::State`] unless it is prepared.
    pub async fn activate_x509(&self, id: &str) -> Result<()> {
        let mut journal = self.journal.lock().await;
        expect(
            &journal,
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
        let mut journal = self.journal.lock().await;
        let record = expect(
            &journal,
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
        let mut journal = self.journal.lock().await;
        expect(
            &journal,
            id,
            AuthorityState::Tainted,
            "only a tainted one can be revoked",
        )?;
        self.prune(&mut journal, id).await
    }

    /// Reads the journal and retires what cannot sign: its key is gone or is another.
    async fn resume(&self) -> Result<()> {
        let mut journal = self.journal.lock().await;
        *journal = self.read_journal().await?;
        let keys = self.deps.keys.public_keys().await?;
        let has_key = |record: &AuthorityRecord| {
            let own = keys.iter().find(|key| key.key_ref == record.key_ref);
            own.is_some_and(|key| public_key_of(record).as_ref() == Some(&key.public_key))
        };
        let lost: Vec<AuthorityRecord> = journal
            .iter()
            .filter(|record| stage(record) != Some(Stage::Retired) && !has_key(record))
            .map(|record| AuthorityRecord {
                state: AuthorityState::Old,
                ..record.clone()
            })
            .collect();
        for record in &lost {
            tracing::warn!(
                authority_id = record.id,
                "the key of this authority is gone: another one is made"
            );
        }
        if !lost.is_empty() {
            self.commit(&mut journal, lost, |_| {}).await?;
        }
        self.load_active(&journal)?;
        self.publish(&journal);
        Ok(())
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

    /// Does what the schedule says until it says nothing.
    async fn catch_up(&self) -> Result<()> {
        let mut journal = self.journal.lock().await;
        while let Some(action) = schedule::next_action(&slots(&journal), self.deps.clock.now()) {
            match action {
                Action::Prepare => drop(self.prepare(&mut journal).await?),
                Action::Activate(id) => self.activate(&mut journal, &id).await?,
                Action::Prune(id) => self.prune(&mut journal, &id).await?,
            }
        }
        Ok(())
    }

    async fn prepare(&self, journal: &mut Vec<AuthorityRecord>) -> Result<AuthorityRecord> {
        let now = self.deps.clock.now();
        let key_ref = free_key_ref(journal);
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
        let mut changes = retired(journal, AuthorityState::Prepared);
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

    async fn activate(&self, journal: &mut Vec<AuthorityRecord>, id: &str) -> Result<()> {
        let next = find(journal, id)?;
        let mut changes = retired(journal, AuthorityState::Active);
        changes.push(AuthorityRecord {
            state: AuthorityState::Active,
            activated_at: to_unix(self.deps.clock.now()),
            ..next
        });
        // Stored before it signs: a restart continues with this one.
        self.commit(journal, changes, |_| {}).await?;
        self.load_active(journal)?;
        tracing::info!(authority_id = id, "activated an authority");
        Ok(())
    }

    async fn prune(&self, journal: &mut Vec<AuthorityRecord>, id: &str) -> Result<()> {
        let record = find(journal, id)?;
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
            Some((record, certificate)) => Some(Arc::new(Issuer::self_signed(
                certificate,
                &record.key_ref,
                self.profile.ca_key_type(),
            )?)),
            None => None,
        };
        self.active.store(issuer);
        Ok(())
    }

    /// Writes `changes` and what `edit` makes of the own bundle in one transaction, then takes
    /// them over. Revoked records are deleted.
    async fn commit(
        &self,
        journal: &mut Vec<AuthorityRecord>,
        changes: Vec<AuthorityRecord>,
        edit: impl Fn(&mut Bundle),
    ) -> Result<()> {
        for _ in 0..TRIES {
            let txn = self.transaction(&changes, &edit).await?;
            match self.deps.kv.commit(txn).await {
                Ok(_) => {
                    take_over(journal, changes);
                    self.publish(journal);
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

    async fn transaction(
        &self,
        changes: &[AuthorityRecord],
        edit: &impl Fn(&mut Bundle),
    ) -> Result<Txn> {
        let kv = &*self.deps.kv;
        let trust_domain = self.profile.trust_domain();
        let row: Option<Row<Bundle>> = bundles::get(kv, trust_domain).await?;
        let mut bundle = row.as_ref().map_or_else(
            || Bundle::empty(trust_domain.clone()),
            |row| row.value.clone(),
        );
        edit(&mut bundle);
        let mut txn = bundles::put(row.as_ref(), bundle);
        for record in changes {
            let row = authorities::get(kv, &record.id).await?;
            txn = match (&row, record.state) {
                (Some(row), AuthorityState::Revoked) => txn.and(authorities::deletion(row)),
                (None, AuthorityState::Revoked) => txn,
                (row, _) => txn.and(authorities::put(row.as_ref(), record)),
            };
        }
        Ok(txn)
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

/// Those in `state`, as old ones.
fn retired(journal: &[AuthorityRecord], state: AuthorityState) -> Vec<AuthorityRecord> {
    let old = |record: &AuthorityRecord| AuthorityRecord {
        state: AuthorityState::Old,
        ..record.clone()
    };
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
