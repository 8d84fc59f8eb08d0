//! The one way of an SVID out of the server (DESIGN "Issuing order").
//!
//! Who may have it was decided before. Here: 1. plan every field and lint it, 2. write what
//! will be signed, 3. append it to the log, 4. sign, 5. read the result back and compare it
//! with the plan, 6. hand it out. A step that fails ends that SVID (or, when it concerns all,
//! the batch), and nothing after it happens. The order is here, once; what the steps are for a
//! certificate or a token is in `x509` and `jwt` beside it.

mod intermediate;
mod jwt;
mod x509;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use vane_identity::jwt_svid::JwtError;
use vane_identity::lifetime::Validity;
use vane_identity::x509_svid::X509Error;

use crate::key_manager::{KeyManager, KeyManagerError, SignRequest, SignatureFormat};
use crate::log::{Leaf, Log, LogError};
use crate::profile::{LintError, MIN_CA_LEFT, Profile};
use crate::x509::NoRandomness;
use crate::x509::check::CheckError;

pub use intermediate::CaRequest;
pub(crate) use intermediate::Parent;
pub use jwt::JwtRequest;
pub use x509::X509Request;

/// One SVID in so many has its signature verified after signing.
const SAMPLE: u64 = 256;
/// So many are planned, or checked, before others get their turn on the thread (about 1 ms).
/// The work stays on the worker: a hop to the blocking pool costs what four signatures
/// cost, and a server of two cores has no idle thread to give.
const CHUNK: usize = 64;

/// Why there is no SVID.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IssueError {
    /// No authority can sign now.
    #[error("no authority is active; the server's log says why")]
    NoAuthority,
    /// The request asks for what no SVID may contain.
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
    /// What came out is no JWT-SVID.
    #[error("self-check failed: {0}")]
    Token(#[from] JwtError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// An authority as what signs: the steps that differ by what it signs.
pub(crate) trait Issues {
    /// What is asked for.
    type Request;
    /// An SVID on its way: planned and written, not signed.
    type Draft;
    /// What comes out.
    type Svid;
    /// The form of its signatures.
    const FORMAT: SignatureFormat;

    /// Its key in the key manager.
    fn key_ref(&self) -> &str;

    /// When it may sign.
    fn validity(&self) -> Validity;

    /// Steps 1 and 2.
    fn draft(
        &self,
        profile: &Profile,
        request: &Self::Request,
        now: SystemTime,
    ) -> Result<Self::Draft, IssueError>;

    /// What step 3 writes.
    fn leaf(&self, draft: &Self::Draft, request: &Self::Request) -> Leaf;

    /// What step 4 signs.
    fn message(draft: &Self::Draft) -> &[u8];

    /// Step 5; with `verify` the signature is verified too.
    fn finish(
        &self,
        draft: Self::Draft,
        signature: &[u8],
        verify: bool,
    ) -> Result<Self::Svid, IssueError>;
}

/// Signs with any authority.
#[derive(Debug)]
pub(crate) struct Signer {
    profile: Arc<Profile>,
    keys: Arc<dyn KeyManager>,
    log: Arc<Log>,
    issued: AtomicU64,
}

impl Signer {
    /// Signs what `profile` allows, after it stands in `log`.
    pub(crate) fn new(profile: Arc<Profile>, keys: Arc<dyn KeyManager>, log: Arc<Log>) -> Self {
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
    pub(crate) async fn issue<I: Issues>(
        &self,
        issuer: &I,
        requests: Vec<I::Request>,
        now: SystemTime,
        superseded: impl Fn() -> bool,
    ) -> Vec<Result<I::Svid, IssueError>> {
        let Validity {
            not_before,
            not_after,
        } = issuer.validity();
        if now < not_before || now + MIN_CA_LEFT >= not_after {
            return no_authority(&requests);
        }
        let mut drafts = Vec::with_capacity(requests.len());
        for (count, request) in requests.iter().enumerate() {
            yield_at(count).await;
            drafts.push(issuer.draft(&self.profile, request, now));
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
                issuer.finish(draft, &signature, self.is_sample() || superseded())
            }));
        }
        results
    }

    async fn log_and_sign<I: Issues>(
        &self,
        issuer: &I,
        requests: &[I::Request],
        drafts: &[Result<I::Draft, IssueError>],
    ) -> Result<Vec<Vec<u8>>, IssueError> {
        let good = || {
            requests
                .iter()
                .zip(drafts)
                .filter_map(|(request, draft)| Some((request, draft.as_ref().ok()?)))
        };
        let leaves: Vec<Leaf> = good()
            .map(|(request, draft)| issuer.leaf(draft, request))
            .collect();
        self.log
            .append(&leaves)
            .await
            .map_err(|error| IssueError::Log(Arc::new(error)))?;
        let to_sign: Vec<SignRequest<'_>> = good()
            .map(|(_, draft)| SignRequest {
                key_ref: issuer.key_ref(),
                message: I::message(draft),
                format: I::FORMAT,
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

    fn is_sample(&self) -> bool {
        let count = self.issued.fetch_add(1, Ordering::Relaxed);
        count.is_multiple_of(SAMPLE)
    }
}

/// The answer to each of `requests` while nothing can sign.
pub(crate) fn no_authority<R, S>(requests: &[R]) -> Vec<Result<S, IssueError>> {
    let none = requests.iter().map(|_| Err(IssueError::NoAuthority));
    none.collect()
}

/// Gives others their turn after each [`CHUNK`].
async fn yield_at(count: usize) {
    if count > 0 && count.is_multiple_of(CHUNK) {
        tokio::task::yield_now().await;
    }
}
