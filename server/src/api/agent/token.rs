//! Join tokens: made by an administrator, good for one agent, kept as a hash.

use std::sync::PoisonError;

use tonic::Code;
use uuid::Uuid;
use vane_attest::join_token::MAX_BYTES;
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::lifetime::to_unix;
use vane_identity::selector::{Selector, SelectorSet};
use vane_store::kv::{CommitError, Kv as _};
use vane_store::tables::{entries, join_tokens};
use vane_wire::convert;
use vane_wire::record::JoinTokenRecord;
use vane_wire::spire::api::server::agent::v1::CreateJoinTokenRequest;
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use crate::api::Parts;
use crate::audit::Change;
use crate::caller::Caller;

/// Tokens looked at for each one that is made.
const SWEEP: usize = 16;

/// Makes a join token, and the alias entry for the agent that will use it when an ID is given.
///
/// # Errors
/// In SPIRE's words.
pub(super) async fn create(
    parts: &Parts,
    caller: &Caller,
    request: CreateJoinTokenRequest,
) -> Result<types::JoinToken, Refusal> {
    let invalid = |text: &str| Refusal::new(Code::InvalidArgument, text);
    if request.ttl < 1 {
        return Err(invalid("ttl is required, you must provide one"));
    }
    let alias = match &request.agent_id {
        Some(id) => Some(
            convert::id::workload(&parts.trust_domain, Some(id))
                .map_err(|error| Refusal::of("invalid agent ID", &error))?,
        ),
        None => None,
    };
    parts.check_fresh()?;
    let value = if request.token.is_empty() {
        Uuid::new_v4().to_string()
    } else {
        request.token.clone()
    };
    if value.len() > MAX_BYTES {
        return Err(invalid(
            "failed to create token: token is longer than 255 bytes",
        ));
    }
    let agent = agent_id(&parts.trust_domain, &value).ok_or_else(|| {
        invalid(
            "failed to create token: token may have letters, numbers, dots, dashes and underscores",
        )
    })?;
    let now = to_unix(parts.clock.now());
    let expires_at = now.saturating_add(i64::from(request.ttl));
    let entry = alias
        .map(|alias| alias_entry(&agent, alias, now))
        .transpose()?;
    store(parts, caller, &value, expires_at, entry).await?;
    sweep(parts, now).await;
    Ok(types::JoinToken { value, expires_at })
}

async fn store(
    parts: &Parts,
    caller: &Caller,
    value: &str,
    expires_at: i64,
    entry: Option<Entry>,
) -> Result<(), Refusal> {
    let tried = "failed to create token";
    let record = JoinTokenRecord {
        agent_id: entry.as_ref().map(|entry| entry.spiffe_id.clone()),
        expires_at,
        used: None,
    };
    let mut txn = join_tokens::put(None, &join_tokens::hash(value), &record);
    if let Some(entry) = &entry {
        txn = txn.and(entries::creation(entry));
    }
    let alias = record.agent_id.as_ref();
    let intent = parts.intend(caller, Change::TokenCreated { alias, expires_at });
    let revision = match intent.kv().commit(txn).await {
        Ok(revision) => revision,
        Err(CommitError::Conflict { compare: 0, .. }) => {
            let why = "a token with this value exists already";
            return Err(Refusal::because(Code::Internal, tried, why));
        }
        Err(CommitError::Conflict { .. }) => {
            let tried = "failed to create join token registration entry";
            let why = "similar entry already exists";
            return Err(Refusal::because(Code::Internal, tried, why));
        }
        Err(error) => return Err(parts.store_refusal(tried, &error)),
    };
    parts.acknowledge(intent, revision, tried).await
}

/// Looks at some more tokens than were made, and deletes those that ended: what is made is
/// cleaned up without a timer, and the table stays as small as its use.
async fn sweep(parts: &Parts, now: i64) {
    let lock = || {
        let place = parts.sweep_at.lock();
        place.unwrap_or_else(PoisonError::into_inner)
    };
    let after = lock().clone();
    match join_tokens::sweep(&*parts.kv, now, after.as_ref(), SWEEP).await {
        Ok((_, next)) => *lock() = next,
        Err(error) => tracing::warn!(%error, "cannot delete join tokens that ended"),
    }
}

/// The entry by which the agent of a token gets an ID of its own choice (SPIRE.md trap 14).
fn alias_entry(agent: &SpiffeId, alias: SpiffeId, created_at: i64) -> Result<Entry, Refusal> {
    let internal = |why: &dyn std::fmt::Display| {
        let tried = "failed to create join token registration entry";
        Refusal::because(Code::Internal, tried, why)
    };
    let id = EntryId::parse(&Uuid::new_v4().to_string()).map_err(|error| internal(&error))?;
    let selector = Selector::new("spiffe_id", agent.as_str()).map_err(|error| internal(&error))?;
    Ok(Entry {
        id,
        spiffe_id: alias,
        parent_id: agent.clone(),
        selectors: SelectorSet::from_iter([selector]),
        x509_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        jwt_svid_ttl: 0,
        hint: String::new(),
        created_at,
        additional_attributes: None,
    })
}

/// The ID of the agent that joins with `token`; None for a token that cannot be a path.
pub(super) fn agent_id(trust_domain: &TrustDomain, token: &str) -> Option<SpiffeId> {
    if token.contains('/') {
        return None;
    }
    trust_domain
        .with_path(&format!("/spire/agent/join_token/{token}"))
        .ok()
}

/// The token with which an agent joined.
pub(super) fn token_of(agent: &SpiffeId) -> Option<&str> {
    agent.path().strip_prefix("/spire/agent/join_token/")
}
