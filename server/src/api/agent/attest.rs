//! AttestAgent: a node proves itself and gets its first certificate.
//!
//! Joining is one transaction: the token becomes a tombstone bound to the CSR's key, and the
//! agent's record is written. The certificate is signed before and handed out after it, so a
//! token has one winner whatever happens between. The same token with the same key is answered
//! again until the token expires (NAMES 14): a lost answer is not a lost agent.

use tokio::time::timeout;
use tonic::{Code, Streaming};
use vane_authority::csr;
use vane_identity::id::SpiffeId;
use vane_identity::key::PublicKey;
use vane_identity::lifetime::to_unix;
use vane_identity::selector::SelectorSet;
use vane_store::kv::{CommitError, Revision};
use vane_store::tables::agents;
use vane_store::tables::join_tokens::{self, TokenHash};
use vane_store::tables::row::Row;
use vane_wire::convert;
use vane_wire::record::{AgentRecord, JoinTokenRecord, TokenUse};
use vane_wire::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use vane_wire::spire::api::server::agent::v1::{
    AttestAgentRequest, AttestAgentResponse, attest_agent_response,
};
use vane_wire::status::Refusal;

use super::token::{MAX_TOKEN_BYTES, agent_id};
use crate::api::Parts;
use crate::api::parts::Issued;
use crate::api::patience::{self, Patience};
use crate::audit;
use crate::caller::Caller;
use crate::config::JOIN_TOKEN;

/// How often an attestation is tried again whose token was changed meanwhile.
const TRIES: usize = 8;

/// What an agent sends first, with every part of it.
#[derive(Debug)]
pub(super) struct First {
    method: String,
    payload: Vec<u8>,
    csr: Vec<u8>,
}

/// Receives the first message of a stream.
///
/// # Errors
/// INVALID_ARGUMENT in SPIRE's words; DEADLINE_EXCEEDED when nothing comes.
pub(super) async fn first_message(
    parts: &Parts,
    mut stream: Streaming<AttestAgentRequest>,
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
        Some(Step::Params(params)) => Some(params),
        Some(Step::ChallengeResponse(_)) | None => None,
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

/// Decides about an attestation and answers it.
///
/// # Errors
/// As SPIRE: an unknown method FAILED_PRECONDITION, a token that cannot be used
/// INVALID_ARGUMENT, a banned agent PERMISSION_DENIED.
pub(super) async fn attest(
    parts: &Parts,
    caller: &Caller,
    patience: Patience,
    first: First,
) -> Result<AttestAgentResponse, Refusal> {
    if first.method != JOIN_TOKEN {
        let shown: String = first.method.chars().take(80).collect();
        let why = format!("could not find node attestor type \"{shown}\"");
        let tried = "error getting node attestor";
        return Err(Refusal::because(Code::FailedPrecondition, tried, why));
    }
    let svid = join(parts, caller, patience, &first).await?;
    let result = attest_agent_response::Result {
        svid: Some(convert::svid::to_wire(&svid.svid)),
        reattestable: false,
    };
    Ok(AttestAgentResponse {
        step: Some(attest_agent_response::Step::Result(result)),
    })
}

async fn join(
    parts: &Parts,
    caller: &Caller,
    patience: Patience,
    first: &First,
) -> Result<Issued, Refusal> {
    let token = token_text(&first.payload).ok_or_else(no_such_token)?;
    let hash = join_tokens::hash(token);
    let now = parts.clock.monotonic();
    let reserved = parts.limits.token(hash, now, patience.left(now));
    patience::turn("attest agent", reserved).await?;
    parts.check_fresh()?;
    let key = csr::parse_unverified(&first.csr)
        .map_err(|error| Refusal::because(Code::InvalidArgument, "failed to parse CSR", error))?
        .public_key;
    let id = agent_id(&parts.trust_domain, token).ok_or_else(no_such_token)?;
    for _ in 0..TRIES {
        let attempt = Attempt::look(parts, hash, &id, &key).await?;
        let issued = parts.issue_agent(caller, &id, &key).await?;
        match attempt.commit(parts, &issued).await {
            Ok(revision) => {
                let leaf = audit::attestation(caller, &id, JOIN_TOKEN, &issued.serial);
                parts.append(leaf, "failed to attest").await?;
                parts.seen(revision).await;
                parts.attestations.inc();
                tracing::info!(agent_id = %id, serial = %issued.serial, peer = %caller, "agent attested");
                return Ok(issued);
            }
            // Somebody else was faster: look again who may have the token now.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(parts.store_refusal("failed to attest", &error)),
        }
    }
    let why = "the join token is in use by others, try again";
    Err(Refusal::because(Code::Aborted, "failed to attest", why))
}

/// What the store says before an attestation.
struct Attempt {
    hash: TokenHash,
    key_sha256: [u8; 32],
    token: Row<JoinTokenRecord>,
    agent: Option<Row<AgentRecord>>,
    id: SpiffeId,
}

impl Attempt {
    /// Reads token and agent, and refuses what cannot succeed.
    async fn look(
        parts: &Parts,
        hash: TokenHash,
        id: &SpiffeId,
        key: &PublicKey,
    ) -> Result<Self, Refusal> {
        let store = |error| parts.store_refusal("failed to attest", &CommitError::Kv(error));
        let token = join_tokens::get(&*parts.kv, &hash).await.map_err(store)?;
        let agent = agents::get(&*parts.kv, id).await.map_err(store)?;
        let key_sha256 = key.sha256();
        let now = to_unix(parts.clock.now());
        let token = token.ok_or_else(no_such_token)?;
        if token.value.expires_at < now {
            forget(parts, &token, &hash).await;
        }
        judge(
            &token.value,
            agent.as_ref().map(|row| &row.value),
            &key_sha256,
            now,
        )?;
        Ok(Self {
            hash,
            key_sha256,
            token,
            agent,
            id: id.clone(),
        })
    }

    /// The one transaction.
    async fn commit(&self, parts: &Parts, issued: &Issued) -> Result<Revision, CommitError> {
        let used = TokenUse {
            csr_key_sha256: self.key_sha256,
            agent_id: self.id.clone(),
        };
        let agent = self.record(issued);
        let txn = join_tokens::consumption(&self.token, &self.hash, used)
            .and(agents::put(self.agent.as_ref(), &agent));
        parts.kv.commit(txn).await
    }

    /// The agent's record after this attestation: a new one, or for an answer that is given
    /// again the present one with a certificate more.
    fn record(&self, issued: &Issued) -> AgentRecord {
        match &self.agent {
            Some(row) if self.token.value.used.is_some() => AgentRecord {
                new_serial: Some(issued.serial.clone()),
                new_not_after: issued.not_after,
                ..row.value.clone()
            },
            _ => AgentRecord {
                spiffe_id: self.id.clone(),
                attestation_type: JOIN_TOKEN.to_owned(),
                serial: issued.serial.clone(),
                new_serial: None,
                not_after: issued.not_after,
                new_not_after: 0,
                selectors: SelectorSet::default(),
                banned: false,
                can_reattest: false,
                agent_version: String::new(),
                csr_key_sha256: Some(self.key_sha256),
            },
        }
    }
}

/// Deletes a token that ended and was shown, so that a clock that is set back does not revive
/// it. One that stays is deleted by a later sweep.
async fn forget(parts: &Parts, token: &Row<JoinTokenRecord>, hash: &TokenHash) {
    let deletion = join_tokens::deletion(token, hash);
    if let Err(error) = parts.kv.commit(deletion).await {
        tracing::warn!(%error, "a join token that ended is not deleted yet");
    }
}

/// Whether a token may be used with a key now. A used one answers its own key again while the
/// agent it made is still there.
fn judge(
    token: &JoinTokenRecord,
    agent: Option<&AgentRecord>,
    key_sha256: &[u8; 32],
    now: i64,
) -> Result<(), Refusal> {
    if agent.is_some_and(|agent| agent.banned) {
        let text = "failed to attest: agent is banned";
        return Err(Refusal::new(Code::PermissionDenied, text));
    }
    match &token.used {
        Some(_) if agent.is_none() || token.expires_at < now => Err(no_such_token()),
        Some(used) if used.csr_key_sha256 != *key_sha256 => Err(no_such_token()),
        Some(_) => Ok(()),
        None if token.expires_at < now => {
            Err(Refusal::new(Code::InvalidArgument, "join token expired"))
        }
        None => Ok(()),
    }
}

fn token_text(payload: &[u8]) -> Option<&str> {
    let token = std::str::from_utf8(payload).ok()?;
    (token.len() <= MAX_TOKEN_BYTES).then_some(token)
}

/// One text whether a token was never there, was used or is of no use: a guess tells nothing.
fn no_such_token() -> Refusal {
    let text = "failed to attest: join token does not exist or has already been used";
    Refusal::new(Code::InvalidArgument, text)
}
