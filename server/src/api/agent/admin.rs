//! What an administrator asks about agents.

use prost::Message as _;
use tonic::Code;
use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_identity::selector::{Selector, SelectorSet};
use vane_store::kv::{CommitError, Kv as _};
use vane_store::tables::row::ChangeError;
use vane_store::tables::{agents, entries, join_tokens};
use vane_wire::convert;
use vane_wire::convert::selector::{SelectorFilter, SetMatch};
use vane_wire::record::AgentRecord;
use vane_wire::spire::api::server::agent::v1::list_agents_request::Filter;
use vane_wire::spire::api::server::agent::v1::{
    GetAgentRequest, ListAgentsRequest, ListAgentsResponse,
};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::filter;
use super::token::token_of;
use crate::api::parts::count_to_wire;
use crate::api::{MAX_MESSAGE, Parts};
use crate::audit::Change;
use crate::caller::Caller;
use crate::state::EntryFilter;

const TRIES: usize = 8;
/// Agents taken from hot state at a time.
const CHUNK: usize = 500;
/// A page ends before this size whatever page_size says.
const PAGE_BYTES: usize = MAX_MESSAGE / 4 * 3;
/// Tag and length of an agent in the list.
const ITEM_OVERHEAD: usize = 6;
/// Alias entries of one agent that are deleted with it; there is at most one.
const MAX_ALIASES: usize = 8;

/// How many agents pass a filter.
///
/// # Errors
/// What the filter's reading says.
pub(super) async fn count(parts: &Parts, filter: Option<Filter>) -> Result<i32, Refusal> {
    let filter = filter::read(filter)?;
    Ok(count_to_wire(parts.state.agents_count(&filter).await))
}

/// A page of agents, or all of them without a page size.
///
/// # Errors
/// INVALID_ARGUMENT for filter and token, RESOURCE_EXHAUSTED when all agents were asked for
/// and do not fit into one message.
pub(super) async fn list(
    parts: &Parts,
    request: ListAgentsRequest,
) -> Result<ListAgentsResponse, Refusal> {
    let filter = filter::read(request.filter)?;
    let wanted = usize::try_from(request.page_size).ok().filter(|n| *n > 0);
    // SPIRE: without a page size everything is asked for, whatever the token.
    let mut after = match wanted {
        Some(_) => token(parts, &request.page_token)?,
        None => None,
    };
    let (mut agents, mut bytes) = (Vec::new(), 0);
    loop {
        let left = wanted.map_or(CHUNK, |wanted| CHUNK.min(wanted - agents.len()));
        let page = parts.state.agents_page(&filter, after.as_ref(), left).await;
        for record in &page.items {
            let shown =
                convert::agent::apply_mask((&**record).into(), request.output_mask.as_ref());
            bytes += shown.encoded_len() + ITEM_OVERHEAD;
            if bytes > PAGE_BYTES && wanted.is_none() {
                return Err(too_large(parts.state.agents_count(&filter).await));
            }
            if bytes > PAGE_BYTES && !agents.is_empty() {
                return Ok(response(agents, after));
            }
            agents.push(shown);
            after = Some(record.spiffe_id.clone());
        }
        if !page.more {
            return Ok(response(agents, None));
        }
        if wanted.is_some_and(|wanted| agents.len() >= wanted) {
            return Ok(response(agents, after));
        }
    }
}

fn response(agents: Vec<types::Agent>, next: Option<SpiffeId>) -> ListAgentsResponse {
    ListAgentsResponse {
        agents,
        next_page_token: next.map(|id| id.path().to_owned()).unwrap_or_default(),
    }
}

/// The token of a page is the path of the last agent before it.
fn token(parts: &Parts, text: &str) -> Result<Option<SpiffeId>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    parts.trust_domain.with_path(text).map(Some).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        let text = format!("could not parse token '{shown}'");
        Refusal::new(Code::InvalidArgument, text)
    })
}

fn too_large(count: usize) -> Refusal {
    let text = format!("{count} agents match and do not fit into one message: use page_size");
    Refusal::new(Code::ResourceExhausted, text)
}

/// One agent.
///
/// # Errors
/// NOT_FOUND `agent not found`.
pub(super) fn get(parts: &Parts, request: &GetAgentRequest) -> Result<types::Agent, Refusal> {
    let id = agent_id(parts, request.id.as_ref())?;
    let record = parts.state.agent(&id).ok_or_else(not_found)?;
    let shown = (&*record).into();
    Ok(convert::agent::apply_mask(
        shown,
        request.output_mask.as_ref(),
    ))
}

/// Evicts an agent: its record, its token's tombstone and its alias entry go in one
/// transaction. A ban is lifted by it.
///
/// # Errors
/// NOT_FOUND `agent not found`.
pub(super) async fn delete(
    parts: &Parts,
    caller: &Caller,
    id: Option<&types::Spiffeid>,
) -> Result<(), Refusal> {
    let tried = "failed to remove agent";
    let id = agent_id(parts, id)?;
    parts.check_fresh()?;
    for _ in 0..TRIES {
        let store = |error| parts.store_refusal(tried, &CommitError::Kv(error));
        let row = agents::get(&*parts.kv, &id).await.map_err(store)?;
        let row = row.ok_or_else(not_found)?;
        let mut txn = agents::deletion(&row);
        if let Some(token) = token_of(&id) {
            let hash = join_tokens::hash(token);
            if let Some(row) = join_tokens::get(&*parts.kv, &hash).await.map_err(store)? {
                txn = txn.and(join_tokens::deletion(&row, &hash));
            }
        }
        for alias in aliases(parts, &id).await {
            if let Some(row) = entries::get(&*parts.kv, &alias).await.map_err(store)? {
                txn = txn.and(entries::deletion(&row));
            }
        }
        let intent = parts.intend(caller, Change::AgentDeleted(&id));
        match intent.kv().commit(txn).await {
            Ok(revision) => return parts.acknowledge(intent, revision, tried).await,
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    Err(busy(tried))
}

/// The entries that CreateJoinToken made for this agent's alias: there is at most one.
async fn aliases(parts: &Parts, id: &SpiffeId) -> Vec<EntryId> {
    let Ok(own) = Selector::new("spiffe_id", id.as_str()) else {
        return Vec::new();
    };
    let filter = EntryFilter {
        parent_id: Some(id.clone()),
        selectors: Some(SelectorFilter {
            selectors: SelectorSet::from_iter([own]),
            by: SetMatch::Exact,
        }),
        ..EntryFilter::default()
    };
    let page = parts.state.entries_page(&filter, None, MAX_ALIASES).await;
    page.items.iter().map(|entry| entry.id.clone()).collect()
}

/// Bans an agent until it is deleted: it may not attest, renew or call.
///
/// # Errors
/// NOT_FOUND `agent not found`.
pub(super) async fn ban(
    parts: &Parts,
    caller: &Caller,
    id: Option<&types::Spiffeid>,
) -> Result<(), Refusal> {
    let tried = "failed to ban agent";
    let id = agent_id(parts, id)?;
    parts.check_fresh()?;
    let banned = |record: &AgentRecord| {
        Some(AgentRecord {
            banned: true,
            serial: String::new(),
            new_serial: None,
            new_not_after: 0,
            previous: None,
            ..record.clone()
        })
    };
    let intent = parts.intend(caller, Change::AgentBanned(&id));
    match agents::change(intent.kv(), &id, banned).await {
        Ok(revision) => parts.acknowledge(intent, revision, tried).await,
        Err(ChangeError::Missing) => Err(not_found()),
        Err(error) => Err(parts.change_refusal(tried, &error)),
    }
}

fn agent_id(parts: &Parts, wire: Option<&types::Spiffeid>) -> Result<SpiffeId, Refusal> {
    convert::id::agent(&parts.trust_domain, wire)
        .map_err(|error| Refusal::of("invalid agent ID", &error))
}

fn not_found() -> Refusal {
    Refusal::new(Code::NotFound, "agent not found")
}

fn busy(tried: &str) -> Refusal {
    let why = "it was changed by others meanwhile, try again";
    Refusal::because(Code::Aborted, tried, why)
}
