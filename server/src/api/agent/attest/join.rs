//! A node that joins with a token.
//!
//! Joining is one transaction: the token becomes a tombstone bound to the CSR's key, and the
//! agent's record is written. The certificate is signed before and handed out after it, so a
//! token has one winner whatever happens between. The same token with the same key is answered
//! again until the token expires (NAMES 14): a lost answer is not a lost agent.

use tonic::Code;
use vane_identity::id::SpiffeId;
use vane_identity::key::PublicKey;
use vane_identity::lifetime::to_unix;
use vane_identity::selector::SelectorSet;
use vane_store::kv::{CommitError, Revision};
use vane_store::tables::agents;
use vane_store::tables::join_tokens::{self, TokenHash};
use vane_store::tables::row::Row;
use vane_wire::record::{AgentRecord, JoinTokenRecord, TokenUse};
use vane_wire::status::Refusal;

use super::{Node, TRIES, banned};
use crate::api::Parts;
use crate::api::agent::token::agent_id;
use crate::api::parts::Issued;
use crate::api::patience;
use crate::audit;
use crate::config::JOIN_TOKEN as METHOD;

/// Gives the node with `token` its certificate.
///
/// # Errors
/// A token that cannot be used INVALID_ARGUMENT, a banned agent PERMISSION_DENIED.
pub(super) async fn admit(node: &Node<'_>, token: &str) -> Result<Issued, Refusal> {
    let parts = node.parts;
    let hash = join_tokens::hash(token);
    let now = parts.clock.monotonic();
    let reserved = parts.limits.token(hash, now, node.patience.left(now));
    patience::turn("attest agent", reserved).await?;
    parts.check_fresh()?;
    let key = node.key()?;
    let id = agent_id(&parts.trust_domain, token).ok_or_else(no_such_token)?;
    for _ in 0..TRIES {
        let attempt = Attempt::look(parts, hash, &id, &key).await?;
        let issued = parts.issue_agent(node.caller, &id, &key).await?;
        match attempt.commit(parts, &issued).await {
            Ok(revision) => {
                let leaf = audit::attestation(node.caller, &id, METHOD, &issued.serial);
                parts.append(leaf, "failed to attest").await?;
                parts.seen(revision).await;
                node.admitted(&id, METHOD, &issued);
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
                attestation_type: METHOD.to_owned(),
                serial: issued.serial.clone(),
                new_serial: None,
                not_after: issued.not_after,
                new_not_after: 0,
                selectors: SelectorSet::default(),
                banned: false,
                can_reattest: false,
                agent_version: String::new(),
                csr_key_sha256: Some(self.key_sha256),
                previous: None,
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
        return Err(banned());
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

/// One text whether a token was never there, was used or is of no use: a guess tells nothing.
fn no_such_token() -> Refusal {
    let text = "failed to attest: join token does not exist or has already been used";
    Refusal::new(Code::InvalidArgument, text)
}
