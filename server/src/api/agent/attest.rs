//! AttestAgent: a node proves itself and gets its first certificate.
//!
//! The method's verifier judges what comes and remembers nothing; the exchange holds evidence,
//! challenges and answers of its one stream, so that an answer is good for the challenge before
//! it only. What an attestation changes is one transaction ([`join`], [`again`]). Every wait
//! ends with the caller's patience.

mod again;
mod join;

use std::net::IpAddr;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use vane_attest::{Admission, Attested, Claim, MAX_ROUNDS, Round, Step, Verifier, VerifyError};
use vane_authority::csr;
use vane_identity::key::PublicKey;
use vane_wire::convert;
use vane_wire::spire::api::server::agent::v1::attest_agent_request::{self, Params};
use vane_wire::spire::api::server::agent::v1::{
    AttestAgentRequest, AttestAgentResponse, attest_agent_response as response,
};
use vane_wire::status::Refusal;

use crate::api::Parts;
use crate::api::parts::Issued;
use crate::api::patience::Patience;
use crate::caller::{Caller, Transport};

/// How often an attestation is tried again whose records were changed meanwhile.
const TRIES: usize = 8;

/// The messages of a stream; an error is the last one.
pub(super) type Answers = BoxStream<'static, Result<AttestAgentResponse, Status>>;

/// What an agent sends first, with every part of it.
#[derive(Debug)]
struct First {
    method: String,
    payload: Vec<u8>,
    csr: Vec<u8>,
}

/// Answers a stream. What can be said after its first message is said at once.
///
/// # Errors
/// As SPIRE: a malformed message INVALID_ARGUMENT, an unknown method FAILED_PRECONDITION, then
/// what the method and [`join`] or [`again`] say.
pub(super) async fn attest(
    parts: &Arc<Parts>,
    caller: &Caller,
    patience: Patience,
    mut requests: Streaming<AttestAgentRequest>,
) -> Result<Answers, Refusal> {
    let first = first_message(parts, &mut requests, patience).await?;
    let mut exchange = Exchange {
        verifier: verifier(parts, &first.method)?,
        parts: Arc::clone(parts),
        caller: caller.clone(),
        patience,
        requests,
        first,
        rounds: Vec::new(),
        asked: None,
        is_over: false,
    };
    let first = exchange.next().await?;
    let rest = stream::unfold(exchange, |mut exchange| async move {
        let next = match exchange.next().await {
            Ok(message) => Ok(message?),
            Err(refusal) => {
                exchange.is_over = true;
                Err(refusal.into())
            }
        };
        Some((next, exchange))
    });
    Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
}

fn verifier(parts: &Parts, method: &str) -> Result<Arc<dyn Verifier>, Refusal> {
    let found = parts.attestors.iter().find(|one| one.name() == method);
    found.cloned().ok_or_else(|| {
        let shown: String = method.chars().take(80).collect();
        let why = format!("could not find node attestor type \"{shown}\"");
        Refusal::because(Code::FailedPrecondition, "error getting node attestor", why)
    })
}

async fn first_message(
    parts: &Parts,
    stream: &mut Streaming<AttestAgentRequest>,
    patience: Patience,
) -> Result<First, Refusal> {
    let tried = "failed to receive request from stream";
    let left = patience.left(parts.clock.monotonic());
    let received = timeout(left, stream.message())
        .await
        .map_err(|_| Refusal::because(Code::DeadlineExceeded, tried, "no message came"))?
        .map_err(|error| Refusal::because(Code::InvalidArgument, tried, error.message()))?;
    let message = received.ok_or_else(|| Refusal::because(Code::InvalidArgument, tried, "EOF"))?;
    let params = match message.step {
        Some(attest_agent_request::Step::Params(params)) => Some(params),
        Some(attest_agent_request::Step::ChallengeResponse(_)) | None => None,
    };
    complete(params).map_err(|why| Refusal::because(Code::InvalidArgument, "malformed param", why))
}

fn complete(params: Option<Params>) -> Result<First, &'static str> {
    let params = params.ok_or("missing params")?;
    let data = params.data.ok_or("missing attestation data")?;
    let csr = params.params.ok_or("missing X509-SVID parameters")?.csr;
    if csr.is_empty() {
        return Err("missing CSR");
    }
    if data.r#type.is_empty() {
        return Err("missing attestation data type");
    }
    if data.payload.is_empty() {
        return Err("missing attestation data payload");
    }
    Ok(First {
        method: data.r#type,
        payload: data.payload,
        csr: csr.to_vec(),
    })
}

/// One stream.
struct Exchange {
    parts: Arc<Parts>,
    caller: Caller,
    patience: Patience,
    requests: Streaming<AttestAgentRequest>,
    verifier: Arc<dyn Verifier>,
    first: First,
    rounds: Vec<Round>,
    /// The challenge whose answer is to come.
    asked: Option<Vec<u8>>,
    is_over: bool,
}

impl Exchange {
    /// The next message; None when there is no more.
    async fn next(&mut self) -> Result<Option<AttestAgentResponse>, Refusal> {
        if self.is_over {
            return Ok(None);
        }
        if let Some(challenge) = self.asked.take() {
            let response = self.answer().await?;
            self.rounds.push(Round {
                challenge,
                response,
            });
        }
        let claim = Claim {
            evidence: &self.first.payload,
            rounds: &self.rounds,
            peer: address(&self.caller),
            now: self.parts.clock.now(),
        };
        let step = match self
            .verifier
            .verify(&claim)
            .await
            .map_err(|error| refusal(&error))?
        {
            Step::Challenge(_) if self.rounds.len() >= MAX_ROUNDS => {
                let text = "failed to attest: too many challenges";
                return Err(Refusal::new(Code::Internal, text));
            }
            Step::Challenge(challenge) => {
                self.asked = Some(challenge.clone());
                response::Step::Challenge(challenge)
            }
            Step::Attested(attested) => {
                self.is_over = true;
                response::Step::Result(self.admit(attested).await?)
            }
        };
        Ok(Some(AttestAgentResponse { step: Some(step) }))
    }

    async fn answer(&mut self) -> Result<Vec<u8>, Refusal> {
        let tried = "failed to receive challenge from agent";
        let left = self.patience.left(self.parts.clock.monotonic());
        let received = timeout(left, self.requests.message())
            .await
            .map_err(|_| Refusal::because(Code::DeadlineExceeded, tried, "no answer came"))?
            .map_err(|error| Refusal::because(Code::Internal, tried, error.message()))?;
        let message = received.ok_or_else(|| Refusal::because(Code::Internal, tried, "EOF"))?;
        match message.step {
            Some(attest_agent_request::Step::ChallengeResponse(response)) => Ok(response),
            // As SPIRE: the method finds that it is no answer.
            Some(attest_agent_request::Step::Params(_)) | None => Ok(Vec::new()),
        }
    }

    async fn admit(&self, attested: Attested) -> Result<response::Result, Refusal> {
        let reattestable = matches!(attested.admission, Admission::Again);
        let node = Node {
            parts: &self.parts,
            caller: &self.caller,
            patience: self.patience,
            csr: &self.first.csr,
        };
        let issued = match &attested.admission {
            Admission::Token(token) => join::admit(&node, token.expose()).await?,
            Admission::Again => again::admit(&node, self.verifier.name(), &attested).await?,
        };
        Ok(response::Result {
            svid: Some(convert::svid::to_wire(&issued.svid)),
            reattestable,
        })
    }
}

/// A node that proved itself and wants its certificate.
struct Node<'a> {
    parts: &'a Parts,
    caller: &'a Caller,
    patience: Patience,
    csr: &'a [u8],
}

impl Node<'_> {
    fn key(&self) -> Result<PublicKey, Refusal> {
        let csr = csr::parse_unverified(self.csr);
        let csr = csr.map_err(|error| {
            Refusal::because(Code::InvalidArgument, "failed to parse CSR", error)
        })?;
        Ok(csr.public_key)
    }

    /// Counts what was done, and says it.
    fn admitted(&self, id: &vane_identity::id::SpiffeId, method: &str, issued: &Issued) {
        self.parts.attestations.inc();
        tracing::info!(agent_id = %id, method, serial = %issued.serial, peer = %self.caller, "agent attested");
    }
}

fn address(caller: &Caller) -> Option<IpAddr> {
    match &caller.transport {
        Transport::Local { .. } => None,
        Transport::Tls(peer) => Some(peer.address.ip()),
    }
}

fn refusal(error: &VerifyError) -> Refusal {
    let code = match error {
        VerifyError::Malformed(_) => Code::InvalidArgument,
        VerifyError::Denied(_) => Code::PermissionDenied,
        VerifyError::Internal(_) => Code::Internal,
    };
    Refusal::new(code, error.to_string())
}

fn banned() -> Refusal {
    let text = "failed to attest: agent is banned";
    Refusal::new(Code::PermissionDenied, text)
}

#[cfg(test)]
mod tests;
