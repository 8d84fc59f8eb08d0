//! The one way of an X.509-SVID out of the server (DESIGN "Issuing order").
//!
//! Who may have it was decided before. Here: 1. plan every field and lint it, 2. write what
//! will be signed, 3. append it to the log, 4. sign, 5. read the certificate back and compare
//! it with the plan, 6. hand it out. A step that fails ends that certificate (or, when it
//! concerns all, the batch), and nothing after it happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_identity::key::PublicKey;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{X509Error, X509Svid};

use crate::key_manager::{KeyManager, KeyManagerError, SignRequest, SignatureFormat};
use crate::log::{Leaf, Log, LogError};
use crate::profile::{LintError, MIN_CA_LEFT, Plan, Profile, SvidKind, Wanted};
use crate::x509::check::{self, CheckError};
use crate::x509::{self, Issuer, NoRandomness, Serial};

/// One certificate in so many has its signature verified after signing.
const SAMPLE: u64 = 64;
/// So many are planned, or checked, before others get their turn on the thread (about 1 ms).
/// The work stays on the worker: a hop to the blocking pool costs what four signatures
/// cost, and a server of two cores has no idle thread to give.
const CHUNK: usize = 64;

/// What is asked for. The caller decided that it may be.
#[derive(Debug, Clone)]
pub struct X509Request {
    /// What for.
    pub kind: SvidKind,
    /// For whom; from the registry, never from a CSR.
    pub spiffe_id: SpiffeId,
    /// The key to certify.
    pub public_key: PublicKey,
    /// How long from now; zero = the default of the kind.
    pub ttl: Duration,
    /// Who asked, for the log: a SPIFFE ID, or a name of a local caller.
    pub caller: String,
    /// The entry it comes from, for the log.
    pub entry_id: Option<EntryId>,
}

/// Why there is no certificate.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// No authority can sign now.
    #[error("no X.509 authority is active; the server's log says why")]
    NoAuthority,
    /// The request asks for what no certificate may contain.
    #[error(transparent)]
    Lint(#[from] LintError),
    /// It could not be logged, so it was not signed.
    #[error("cannot be logged: {0}")]
    Log(Arc<LogError>),
    /// The key manager did not sign.
    #[error("cannot be signed: {0}")]
    Key(Arc<KeyManagerError>),
    /// What came out is not what was planned.
    #[error("self-check failed: {0}")]
    Check(#[from] CheckError),
    /// What came out is no X.509-SVID.
    #[error("self-check failed: {0}")]
    Shape(#[from] X509Error),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Signs with one authority.
#[derive(Debug)]
pub struct Signer {
    profile: Arc<Profile>,
    keys: Arc<dyn KeyManager>,
    log: Arc<Log>,
    issued: AtomicU64,
}

/// A certificate on its way: planned and written, not signed.
struct Draft {
    plan: Plan,
    serial: Serial,
    tbs: Vec<u8>,
}

impl Signer {
    /// Signs what `profile` allows, after it stands in `log`.
    #[must_use]
    pub fn new(profile: Arc<Profile>, keys: Arc<dyn KeyManager>, log: Arc<Log>) -> Self {
        Self {
            profile,
            keys,
            log,
            issued: AtomicU64::new(0),
        }
    }

    /// Issues a batch at `now` with `issuer`: one append to the log, one call of the key
    /// manager. The results come in the order of the requests.
    ///
    /// `superseded` is asked after signing: once another authority is active, the key of this
    /// one may be replaced under the batch, so that no signature is believed any more.
    pub async fn issue(
        &self,
        issuer: &Issuer,
        requests: Vec<X509Request>,
        now: SystemTime,
        superseded: impl Fn() -> bool,
    ) -> Vec<Result<X509Svid, IssueError>> {
        if now < issuer.not_before || now + MIN_CA_LEFT >= issuer.not_after {
            return requests
                .iter()
                .map(|_| Err(IssueError::NoAuthority))
                .collect();
        }
        let mut drafts = Vec::with_capacity(requests.len());
        for (count, request) in requests.iter().enumerate() {
            yield_at(count).await;
            drafts.push(self.draft(issuer, request, now));
        }
        let signatures = match self.log_and_sign(issuer, &requests, &drafts).await {
            Ok(signatures) => signatures,
            // Only what was wrong before keeps its own reason.
            Err(error) => {
                return drafts
                    .into_iter()
                    .map(|draft| draft.and(Err(error.clone())))
                    .collect();
            }
        };
        let mut signatures = signatures.into_iter();
        let mut results = Vec::with_capacity(drafts.len());
        for (count, draft) in drafts.into_iter().enumerate() {
            yield_at(count).await;
            results.push(draft.and_then(|draft| {
                let signature = signatures.next().ok_or(CheckError::Signature)?;
                self.finish(issuer, &draft, &signature, superseded())
            }));
        }
        results
    }

    fn draft(
        &self,
        issuer: &Issuer,
        request: &X509Request,
        now: SystemTime,
    ) -> Result<Draft, IssueError> {
        let wanted = Wanted {
            kind: &request.kind,
            spiffe_id: &request.spiffe_id,
            public_key: &request.public_key,
            ttl: request.ttl,
        };
        let plan = self.profile.plan(&wanted, now, issuer.not_after)?;
        let serial = Serial::random()?;
        let tbs = x509::leaf_tbs(&plan, issuer, &serial);
        Ok(Draft { plan, serial, tbs })
    }

    async fn log_and_sign(
        &self,
        issuer: &Issuer,
        requests: &[X509Request],
        drafts: &[Result<Draft, IssueError>],
    ) -> Result<Vec<Vec<u8>>, IssueError> {
        let good = || {
            requests
                .iter()
                .zip(drafts)
                .filter_map(|(request, draft)| Some((request, draft.as_ref().ok()?)))
        };
        let leaves: Vec<Leaf> = good()
            .map(|(request, draft)| draft.leaf(request, issuer))
            .collect();
        self.log
            .append(&leaves)
            .await
            .map_err(|error| IssueError::Log(Arc::new(error)))?;
        let to_sign: Vec<SignRequest<'_>> = good()
            .map(|(_, draft)| SignRequest {
                key_ref: &issuer.key_ref,
                message: &draft.tbs,
                format: SignatureFormat::X509,
            })
            .collect();
        if to_sign.is_empty() {
            return Ok(Vec::new());
        }
        self.keys
            .sign(&to_sign)
            .await
            .map_err(|error| IssueError::Key(Arc::new(error)))
    }

    fn finish(
        &self,
        issuer: &Issuer,
        draft: &Draft,
        signature: &[u8],
        verify: bool,
    ) -> Result<X509Svid, IssueError> {
        let certificate = x509::assemble(&draft.tbs, issuer.signature, signature);
        let is_sample = self
            .issued
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(SAMPLE);
        if is_sample || verify {
            check::signature(&certificate, issuer.public_key.spki())?;
        }
        let mut chain = Vec::with_capacity(1 + issuer.intermediates.len());
        chain.push(certificate.clone());
        chain.extend(issuer.intermediates.iter().cloned());
        X509Svid::parse_with(chain, |parsed| {
            let Draft { plan, serial, tbs } = draft;
            check::parsed_leaf(parsed, &certificate, tbs, plan, issuer, serial)?;
            Ok(())
        })
    }
}

/// Gives others their turn after each [`CHUNK`].
async fn yield_at(count: usize) {
    if count > 0 && count.is_multiple_of(CHUNK) {
        tokio::task::yield_now().await;
    }
}

impl Draft {
    fn leaf(&self, request: &X509Request, issuer: &Issuer) -> Leaf {
        Leaf::X509 {
            tbs: self.tbs.clone(),
            spiffe_id: self.plan.spiffe_id.clone(),
            serial: self.serial.decimal(),
            caller: request.caller.clone(),
            entry_id: request.entry_id.clone(),
            not_after: to_unix(self.plan.validity.not_after),
            authority_id: issuer.authority_id.clone(),
        }
    }
}
