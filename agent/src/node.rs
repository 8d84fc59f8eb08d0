//! How the agent gets an SVID of its own: attestation, and renewal over a channel that it
//! authenticates with the one it has.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use vane_attest::{MAX_ROUNDS, ProveError, Prover};
use vane_chassis::mtls::Refusal;
use vane_identity::bundle::Bundle;
use vane_identity::id::TrustDomain;
use vane_identity::key::PrivateKey;
use vane_identity::x509_svid::{Certificate, X509Error};
use vane_wire::convert::bundle::{BundleRefusal, from_wire};
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use vane_wire::spire::api::server::agent::v1::attest_agent_response::Step as Answer;
use vane_wire::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, AttestAgentResponse, PostStatusRequest,
    RenewAgentRequest,
};
use vane_wire::spire::api::server::bundle::v1::GetBundleRequest;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::types::{AttestationData, X509svid};
use vane_wire::status::{Reason, denial_reason};

use crate::denial::{Denial, WayBack};
use crate::issue::{self, IssueError};
use crate::own_svid::OwnSvid;

/// So long an exchange with the server may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no SVID for the agent.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// There is nothing to prove the node with.
    #[error(transparent)]
    Prove(#[from] ProveError),
    /// The server refused, and will refuse the same again.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server denies this agent.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The server cannot be asked now.
    #[error("the server cannot be asked: {0}")]
    Unavailable(String),
    /// The server's certificate is of another time than this node's clock shows.
    #[error(
        "the server's certificate is not valid by this node's clock, so one of the two clocks is wrong: correct it ({0})"
    )]
    Clock(String),
    /// The server's certificate is of no authority that this agent knows.
    #[error(
        "the server's certificate does not verify against the bundle of this agent: is it another server, or is the bundle too old? ({0})"
    )]
    Untrusted(String),
    /// The request cannot be made.
    #[error(transparent)]
    Request(#[from] IssueError),
    /// The server's bundle cannot be read.
    #[error("the server's bundle cannot be read: {0}")]
    Bundle(#[from] BundleRefusal),
    /// The answer is no agent's SVID.
    #[error("the server's answer is no SVID of an agent: {0}")]
    Answer(String),
}

impl NodeError {
    /// Whether the same may succeed later.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unavailable(_) | Self::Clock(_) | Self::Untrusted(_)
        )
    }

    /// What this node knows of its own evidence, said beside a refusal of it.
    fn with(self, hint: impl FnOnce() -> Option<String>) -> Self {
        match self {
            Self::Refused(text) => match hint() {
                Some(hint) => Self::Refused(format!("{text} ({hint})")),
                None => Self::Refused(text),
            },
            other => other,
        }
    }

    fn of(status: &Status, way_back: WayBack) -> Self {
        // Without a known reason it is a refusal like others, and not for good.
        if let Some(reason) = denial_reason(status).filter(|one| *one != Reason::Unknown) {
            return Self::Denied(Denial {
                reason,
                message: status.message().to_owned(),
                way_back,
            });
        }
        match status.code() {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::NotFound => Self::Refused(status.message().to_owned()),
            _ if is_of_another_time(status) => Self::Clock(describe(status)),
            _ if is_of_another_bundle(status) => Self::Untrusted(describe(status)),
            _ => Self::Unavailable(describe(status)),
        }
    }
}

/// Whether this node refused the server's certificate because of its validity.
fn is_of_another_time(status: &Status) -> bool {
    matches!(
        Refusal::find(status),
        Some(Refusal::Svid(error)) if error.is_of_another_time()
    )
}

/// Whether this node refused the server's certificate because of its bundle.
pub(crate) fn is_of_another_bundle(status: &Status) -> bool {
    Refusal::find(status).is_some_and(Refusal::is_of_another_bundle)
}

/// A status with the cause below it, which says more when no answer came.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<X509Error> for NodeError {
    fn from(error: X509Error) -> Self {
        Self::Answer(error.to_string())
    }
}

/// Proves the node and has `key` certified. `now` is asked once the answer is there.
///
/// # Errors
/// [`NodeError`]; the same key may be used for another try.
pub async fn attest(
    channel: Channel,
    prover: &dyn Prover,
    trust_domain: &TrustDomain,
    key: &PrivateKey,
    now: impl Fn() -> SystemTime,
) -> Result<OwnSvid, NodeError> {
    // The server gives the ID; the one in the request only fills the field.
    let placeholder = trust_domain
        .with_path("/spire/agent")
        .map_err(|error| NodeError::Answer(error.to_string()))?;
    let csr = issue::csr(&placeholder, key)?;
    let evidence = prover.evidence().await?;
    let exchange = exchange(channel, prover, evidence, csr);
    let result = tokio::time::timeout(DEADLINE, exchange)
        .await
        .map_err(|_| NodeError::Unavailable(format!("no answer within {DEADLINE:?}")))?
        .map_err(|error| error.with(|| prover.hint(now())))?;
    let svid = result
        .svid
        .ok_or_else(|| NodeError::Answer("it has none".to_owned()))?;
    own(&svid, key.clone(), result.reattestable, trust_domain, now())
}

async fn exchange(
    channel: Channel,
    prover: &dyn Prover,
    payload: Vec<u8>,
    csr: Vec<u8>,
) -> Result<vane_wire::spire::api::server::agent::v1::attest_agent_response::Result, NodeError> {
    let first = Params {
        data: Some(AttestationData {
            r#type: prover.name().to_owned(),
            payload,
        }),
        params: Some(AgentX509svidParams { csr: csr.into() }),
    };
    let (requests, receiver) = mpsc::channel(1);
    let gone = |_| NodeError::Unavailable("the server ended the exchange".to_owned());
    requests
        .send(request(Step::Params(first)))
        .await
        .map_err(gone)?;
    let call = AgentClient::new(channel)
        .attest_agent(ReceiverStream::new(receiver))
        .await;
    let way_back = WayBack::of_method(prover.name());
    let mut answers = call
        .map_err(|status| NodeError::of(&status, way_back))?
        .into_inner();
    for _ in 0..=MAX_ROUNDS {
        let answer = answers
            .message()
            .await
            .map_err(|status| NodeError::of(&status, way_back))?;
        let Some(AttestAgentResponse { step: Some(step) }) = answer else {
            break;
        };
        match step {
            Answer::Result(result) => return Ok(result),
            Answer::Challenge(challenge) => {
                let response = prover.answer(&challenge).await?;
                requests
                    .send(request(Step::ChallengeResponse(response)))
                    .await
                    .map_err(gone)?;
            }
        }
    }
    Err(NodeError::Answer("it ended without a result".to_owned()))
}

fn request(step: Step) -> AttestAgentRequest {
    AttestAgentRequest { step: Some(step) }
}

/// Renews the SVID `held` with a fresh `key`, over a channel that is authenticated with it.
///
/// # Errors
/// [`NodeError`].
pub async fn renew(
    channel: Channel,
    held: &OwnSvid,
    key: &PrivateKey,
    now: impl Fn() -> SystemTime,
) -> Result<OwnSvid, NodeError> {
    let csr = issue::csr(&held.id, key)?;
    let message = RenewAgentRequest {
        params: Some(AgentX509svidParams { csr: csr.into() }),
    };
    let mut client = AgentClient::new(channel);
    let answer = tokio::time::timeout(DEADLINE, client.renew_agent(message))
        .await
        .map_err(|_| NodeError::Unavailable(format!("no answer within {DEADLINE:?}")))?;
    let svid = answer
        .map_err(|status| NodeError::of(&status, WayBack::of_agent(&held.id)))?
        .into_inner()
        .svid;
    let svid = svid.ok_or_else(|| NodeError::Answer("it has none".to_owned()))?;
    let renewed = own(
        &svid,
        key.clone(),
        held.reattestable,
        &held.id.trust_domain(),
        now(),
    )?;
    if renewed.id != held.id {
        return Err(NodeError::Answer(format!("it is of {}", renewed.id)));
    }
    Ok(renewed)
}

/// The bundle of a server that is trusted by its first answer.
///
/// # Errors
/// [`NodeError::Unavailable`], [`NodeError::Bundle`].
pub async fn first_bundle(
    channel: Channel,
    trust_domain: &TrustDomain,
) -> Result<Bundle, NodeError> {
    let answer = BundleClient::new(channel)
        .get_bundle(GetBundleRequest { output_mask: None })
        .await;
    let wire = answer
        .map_err(|status| NodeError::Unavailable(status.message().to_owned()))?
        .into_inner();
    Ok(from_wire(&wire, trust_domain)?)
}

/// Tells the server what this agent is. A failure changes nothing and is not tried again.
pub async fn post_status(channel: Channel) {
    let message = PostStatusRequest {
        current_bundle_serial: 0,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    if let Err(status) = AgentClient::new(channel).post_status(message).await {
        tracing::debug!(
            error = status.message(),
            "the server did not take this agent's version"
        );
    }
}

fn own(
    svid: &X509svid,
    key: PrivateKey,
    reattestable: bool,
    own: &TrustDomain,
    now: SystemTime,
) -> Result<OwnSvid, NodeError> {
    let chain = svid
        .cert_chain
        .iter()
        .map(|der| Certificate::from_der(der))
        .collect();
    let svid = OwnSvid::new(chain, key, reattestable, now)?;
    if !svid.id.is_member_of(own) || !svid.id.is_agent() {
        return Err(NodeError::Answer(format!("it is of {}", svid.id)));
    }
    Ok(svid)
}
