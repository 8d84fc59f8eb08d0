//! The client of the Workload API: a stream of X.509 contexts that outlives its connections.
//!
//! A message replaces everything before it (SPIFFE_Workload_API.md section 4); one that lacks
//! what is mandatory is reported and thrown away. When a stream ends the next one is opened at
//! once, and from the second failure in a row on after a growing pause. After `InvalidArgument`
//! and `Unimplemented` nothing is tried again: the same request will not be answered better
//! (SPIFFE_Workload_Endpoint.md section 6). Each request carries the security header.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};
use vane_chassis::backoff::{Backoff, Policy};
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::{IdError, SpiffeId, TrustDomain};
use vane_identity::key::PrivateKey;
use vane_identity::x509_svid::{Certificate, X509Error, X509Svid};
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{self, X509svidRequest, X509svidResponse};

use crate::channel;
use crate::endpoint::{self, Endpoint, EndpointError};

/// The header of every request, with the value `true`.
pub const SECURITY_HEADER: &str = "workload.spiffe.io";
/// The most bytes of a message.
const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Everything that a workload has of the X.509 profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct X509Context {
    /// The identities; the first is the default one. Never empty.
    pub svids: Vec<Identity>,
    /// The bundles of foreign trust domains.
    pub federated: BTreeMap<TrustDomain, Bundle>,
}

/// One identity of a workload.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain; its signatures are not verified.
    pub svid: X509Svid,
    /// The leaf's key.
    pub key: PrivateKey,
    /// The bundle of its own trust domain.
    pub bundle: Bundle,
    /// What the identity is for, in the operator's words; may be empty.
    pub hint: String,
}

/// What happened to the stream.
#[derive(Debug)]
pub enum Change {
    /// This is the state now; what was before is to be forgotten.
    Context(Box<X509Context>),
    /// The workload has no identity (any longer): it must stop using what it had.
    Denied(Status),
    /// A message was thrown away; the state before it stays.
    Discarded(Malformed),
    /// The stream ended; the next is opened after `delay`. The state stays.
    Interrupted {
        /// How it ended.
        status: Status,
        /// The pause.
        delay: Duration,
    },
}

/// Why a message says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A mandatory field has its default value.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A trust domain or SPIFFE ID cannot be read.
    #[error("{0}")]
    Id(#[from] IdError),
    /// A certificate cannot be read.
    #[error("{0}")]
    X509(#[from] X509Error),
    /// The certificate is of another ID than the message says.
    #[error("spiffe_id is {told}, the certificate's is {found}")]
    OtherId {
        /// In the message.
        told: SpiffeId,
        /// In the certificate.
        found: SpiffeId,
    },
}

/// Why there is no address to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither is there.
    #[error("no address of the Workload API: give one, or set {}", endpoint::ENV)]
    Nothing,
    /// It cannot be read.
    #[error(transparent)]
    Malformed(#[from] EndpointError),
}

/// The address of the Workload API: `explicit`, else `environment`, the value of
/// [`endpoint::ENV`] (WEP-13, WEP-14). There is no default.
///
/// # Errors
/// [`AddressError`].
pub fn address(
    explicit: Option<&str>,
    environment: Option<&str>,
) -> Result<Endpoint, AddressError> {
    let text = explicit.or(environment).ok_or(AddressError::Nothing)?;
    Ok(endpoint::parse(text)?)
}

/// `message` with the security header.
#[must_use]
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_static("true");
    request.metadata_mut().insert(SECURITY_HEADER, value);
    request
}

/// Whether the same request can be answered better later.
#[must_use]
pub fn may_retry(status: &Status) -> bool {
    !matches!(status.code(), Code::InvalidArgument | Code::Unimplemented)
}

/// The stream of a workload's X.509 contexts.
#[derive(Debug)]
pub struct X509Contexts {
    endpoint: Endpoint,
    backoff: Backoff,
    /// Nothing was received since the last failure.
    failed: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// To be opened after a pause.
    Closed(Duration),
    Open(Box<Streaming<X509svidResponse>>),
}

impl X509Contexts {
    /// A stream from `endpoint`; nothing is connected yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, policy: Policy, rng: fastrand::Rng) -> Self {
        Self {
            endpoint,
            backoff: Backoff::new(policy, rng),
            failed: false,
            state: State::Closed(Duration::ZERO),
        }
    }

    /// The next change. Dropping the future loses nothing but a connection that is being made.
    ///
    /// # Errors
    /// The answer after which nothing is to be tried again; see [`may_retry`].
    pub async fn next(&mut self) -> Result<Change, Status> {
        loop {
            match &mut self.state {
                State::Closed(pause) => {
                    tokio::time::sleep(*pause).await;
                    match open(&self.endpoint).await {
                        Ok(stream) => self.state = State::Open(Box::new(stream)),
                        Err(status) => return self.ended(status),
                    }
                }
                State::Open(stream) => {
                    return match stream.message().await {
                        Ok(Some(message)) => Ok(self.received(message)),
                        Ok(None) => self.ended(Status::unavailable("the agent ended the stream")),
                        Err(status) => self.ended(status),
                    };
                }
            }
        }
    }

    fn received(&mut self, message: X509svidResponse) -> Change {
        match X509Context::try_from(message) {
            Ok(context) => {
                self.failed = false;
                self.backoff.reset();
                Change::Context(Box::new(context))
            }
            Err(malformed) => Change::Discarded(malformed),
        }
    }

    fn ended(&mut self, status: Status) -> Result<Change, Status> {
        if !may_retry(&status) {
            return Err(status);
        }
        let again = std::mem::replace(&mut self.failed, true);
        // Who is denied has to wait for an operator, in any case.
        let delay = if again || status.code() == Code::PermissionDenied {
            self.backoff.next_delay()
        } else {
            Duration::ZERO
        };
        self.state = State::Closed(delay);
        Ok(match status.code() {
            Code::PermissionDenied => Change::Denied(status),
            _ => Change::Interrupted { status, delay },
        })
    }
}

async fn open(endpoint: &Endpoint) -> Result<Streaming<X509svidResponse>, Status> {
    let channel = channel::workload_api(endpoint).await.map_err(unreached)?;
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = client.fetch_x509svid(request(X509svidRequest {})).await?;
    Ok(answer.into_inner())
}

/// Nobody listens there: UNAVAILABLE, with the error as its source.
fn unreached(error: tonic::transport::Error) -> Status {
    let mut status = Status::unavailable(describe(&error));
    status.set_source(Arc::new(error));
    status
}

/// What hindered the connection from being made, when `status` says that there was none.
#[must_use]
pub fn connect_error(status: &Status) -> Option<&tonic::transport::Error> {
    std::error::Error::source(status)?.downcast_ref()
}

/// An error with its causes, outermost first.
fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

impl X509Context {
    /// The default identity (WAPI-39).
    #[must_use]
    pub fn default_identity(&self) -> Option<&Identity> {
        self.svids.first()
    }

    /// The first identity with `hint` (WAPI-30).
    #[must_use]
    pub fn by_hint(&self, hint: &str) -> Option<&Identity> {
        self.svids.iter().find(|one| one.hint == hint)
    }

    /// The bundle that peers of `trust_domain` are verified with; none means that none of them
    /// is trusted (WAPI-18).
    #[must_use]
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Bundle> {
        let own = self.svids.iter().map(|one| &one.bundle);
        own.into_iter()
            .find(|bundle| bundle.trust_domain == *trust_domain)
            .or_else(|| self.federated.get(trust_domain))
    }
}

impl TryFrom<X509svidResponse> for X509Context {
    type Error = Malformed;

    fn try_from(mut message: X509svidResponse) -> Result<Self, Malformed> {
        if message.svids.is_empty() {
            return Err(Malformed::Empty("svids"));
        }
        let svids = message.svids.iter_mut().map(Identity::try_from);
        let federated = message.federated_bundles.iter().map(|(name, der)| {
            let name = TrustDomain::parse_name_or_id(name)?;
            Ok((name.clone(), bundle(name, der)?))
        });
        Ok(Self {
            svids: svids.collect::<Result<_, Malformed>>()?,
            federated: federated.collect::<Result<_, Malformed>>()?,
        })
    }
}

impl TryFrom<&mut workload::X509svid> for Identity {
    type Error = Malformed;

    /// Takes the key out of the message, which is wiped when dropped.
    fn try_from(message: &mut workload::X509svid) -> Result<Self, Malformed> {
        let filled = [
            ("spiffe_id", message.spiffe_id.is_empty()),
            ("x509_svid", message.x509_svid.is_empty()),
            ("x509_svid_key", message.x509_svid_key.is_empty()),
            ("bundle", message.bundle.is_empty()),
        ];
        if let Some((field, _)) = filled.into_iter().find(|(_, is_empty)| *is_empty) {
            return Err(Malformed::Empty(field));
        }
        let told = SpiffeId::parse(&message.spiffe_id)?;
        let svid = X509Svid::parse(Certificate::split(&message.x509_svid)?)?;
        if *svid.id() != told {
            let found = svid.id().clone();
            return Err(Malformed::OtherId { told, found });
        }
        Ok(Self {
            bundle: bundle(told.trust_domain(), &message.bundle)?,
            key: PrivateKey::from_pkcs8(std::mem::take(&mut message.x509_svid_key)),
            hint: std::mem::take(&mut message.hint),
            svid,
        })
    }
}

fn bundle(trust_domain: TrustDomain, der: &[u8]) -> Result<Bundle, X509Error> {
    let mut bundle = Bundle::empty(trust_domain);
    let certificates = Certificate::split(der)?;
    bundle.x509_authorities = certificates.into_iter().map(X509Authority::new).collect();
    Ok(bundle)
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.svid == other.svid
            && self.key.pkcs8() == other.key.pkcs8()
            && self.bundle == other.bundle
            && self.hint == other.hint
    }
}

impl Eq for Identity {}

#[cfg(test)]
mod tests;
