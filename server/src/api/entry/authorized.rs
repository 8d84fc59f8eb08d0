//! The set of an agent as SPIRE's agents ask for it (SPIRE.md 3.3): GetAuthorizedEntries, and
//! SyncAuthorizedEntries with its pages.
//!
//! A set of at most [`PAGE`] entries is answered whole. Of a larger one, and of one that does
//! not fit into a message, the IDs and revisions go out first and bodies on request; the stream
//! keeps its place in the set, not the set. An agent drops what it is not told of, so nothing is
//! told from a state that may be behind, and the agent is admitted again at each request.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use prost::Message as _;
use tonic::{Code, Status, Streaming};
use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_wire::convert;
use vane_wire::spire::api::server::entry::v1::{
    EntryRevision, GetAuthorizedEntriesRequest, GetAuthorizedEntriesResponse,
    SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::list::ITEM_OVERHEAD;
use crate::api::patience::{self, Patience};
use crate::api::{MAX_MESSAGE, Parts};
use crate::caller::{AgentIdentity, Caller, Method};
use crate::state::{Listed, Listing, ListingError};

/// Entries of one page (SPIRE's size). Few in unit tests, so that a handful fills several.
pub(super) const PAGE: usize = if cfg!(test) { 5 } else { 500 };
/// A page of bodies ends before this size.
const PAGE_BYTES: usize = MAX_MESSAGE / 4 * 3;
/// The most IDs of one request; SPIRE's agents ask for a page.
const MAX_IDS: usize = 10_000;
/// So long a stream waits for the next request; SPIRE's agents are done after 30 s.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);
const PATH: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";

type Response = SyncAuthorizedEntriesResponse;
/// The messages of a stream; an error is the last one.
pub(super) type Responses = BoxStream<'static, Result<Response, Status>>;

/// Answers with the whole set.
///
/// # Errors
/// RESOURCE_EXHAUSTED when it does not fit into a message; UNAVAILABLE when the state may be
/// behind.
pub(super) async fn get(
    parts: &Arc<Parts>,
    agent: &AgentIdentity,
    patience: Patience,
    request: GetAuthorizedEntriesRequest,
) -> Result<GetAuthorizedEntriesResponse, Refusal> {
    prepare(parts, agent, patience).await?;
    let shown = |entry| convert::entry::apply_mask(entry, request.output_mask.as_ref());
    if let Some(set) = parts.state.small_set(&agent.id, PAGE) {
        let set: Vec<_> = set.iter().map(|entry| shown(entry.into())).collect();
        return match fits(&set) {
            true => Ok(GetAuthorizedEntriesResponse { entries: set }),
            false => Err(too_large()),
        };
    }
    let mut listing = parts.state.listing(&agent.id, PAGE);
    let (mut bytes, mut ids) = (0, Vec::new());
    loop {
        let page = listing.next_page().map_err(|error| interrupted(&error))?;
        for item in page.items {
            bytes += item.id.as_str().len() + ITEM_OVERHEAD;
            ids.push(item.id);
        }
        if bytes > MAX_MESSAGE {
            return Err(too_large());
        }
        if !page.more {
            break;
        }
        tokio::task::yield_now().await;
    }
    ids.sort();
    ids.dedup();
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for part in ids.chunks(PAGE) {
        for entry in parts.state.bodies(&agent.id, part) {
            let entry = shown((&entry).into());
            bytes += size(&entry);
            if bytes > MAX_MESSAGE {
                return Err(too_large());
            }
            entries.push(entry);
        }
        tokio::task::yield_now().await;
    }
    Ok(GetAuthorizedEntriesResponse { entries })
}

/// Opens a stream of pages.
///
/// # Errors
/// As [`get`], and what the stream ends with.
pub(super) async fn sync(
    parts: &Arc<Parts>,
    caller: &Caller,
    agent: &AgentIdentity,
    patience: Patience,
    requests: Streaming<SyncAuthorizedEntriesRequest>,
) -> Result<Responses, Refusal> {
    prepare(parts, agent, patience).await?;
    let stream = Sync {
        parts: Arc::clone(parts),
        caller: caller.clone(),
        agent: agent.id.clone(),
        requests,
        mask: None,
        stage: Stage::First,
    };
    let messages = stream::unfold(stream, |mut stream| async move {
        let next = match stream.next().await {
            Ok(message) => Ok(message?),
            Err(status) => {
                stream.stage = Stage::Over;
                Err(status)
            }
        };
        Some((next, stream))
    });
    Ok(messages.boxed())
}

/// Waits for the agent's turn, and until hot state knows it.
async fn prepare(parts: &Parts, agent: &AgentIdentity, patience: Patience) -> Result<(), Refusal> {
    let now = parts.clock.monotonic();
    let reserved = parts.limits.sync(&agent.id, now, patience.left(now));
    patience::turn("authorized entries", reserved).await?;
    parts.check_fresh()?;
    if parts.state.agent(&agent.id).is_none() {
        parts.catch_up(&agent.id).await?;
    }
    Ok(())
}

/// One stream.
struct Sync {
    parts: Arc<Parts>,
    caller: Caller,
    agent: SpiffeId,
    requests: Streaming<SyncAuthorizedEntriesRequest>,
    mask: Option<types::EntryMask>,
    stage: Stage,
}

enum Stage {
    /// The mask is to come.
    First,
    /// The revisions are going out.
    Revisions(Box<Listing>),
    /// Requests for bodies are answered. The place among the agent's streams is kept: it has
    /// few of them.
    Bodies(Box<Listing>, Asked),
    /// Nothing follows.
    Over,
}

/// What is left of a request for bodies. Empty while none is being answered.
#[derive(Default)]
struct Asked {
    /// In descending order: the next is the last.
    ids: Vec<EntryId>,
    ready: VecDeque<types::Entry>,
}

impl Sync {
    /// The next message; None ends the stream well.
    async fn next(&mut self) -> Result<Option<Response>, Status> {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Over => Ok(None),
            Stage::First => self.first().await.map(Some),
            Stage::Revisions(listing) => self.revisions(listing).map(Some),
            Stage::Bodies(listing, asked) => self.bodies(listing, asked).await,
        }
    }

    async fn first(&mut self) -> Result<Response, Status> {
        let request = self.receive().await?;
        // SPIRE hands the end of the stream on as it is.
        let request = request.ok_or_else(|| Status::unknown("EOF"))?;
        let invalid = |text| Err(Status::invalid_argument(text));
        if !request.ids.is_empty() {
            return invalid("specifying IDs on initial request is not supported");
        }
        if request
            .output_mask
            .as_ref()
            .is_some_and(|mask| !mask.revision_number)
        {
            return invalid("revision number cannot be masked");
        }
        self.mask = request.output_mask;
        if let Some(set) = self.parts.state.small_set(&self.agent, PAGE) {
            let entries: Vec<_> = set.iter().map(|entry| self.shown(entry.into())).collect();
            if fits(&entries) {
                return Ok(Response {
                    entries,
                    ..Response::default()
                });
            }
        }
        let listing = self.parts.state.listing(&self.agent, PAGE);
        self.revisions(Box::new(listing))
    }

    fn revisions(&mut self, mut listing: Box<Listing>) -> Result<Response, Status> {
        let page = listing.next_page().map_err(|error| interrupted(&error))?;
        self.stage = if page.more {
            Stage::Revisions(listing)
        } else {
            Stage::Bodies(listing, Asked::default())
        };
        Ok(Response {
            entry_revisions: page.items.iter().map(revision).collect(),
            more: page.more,
            ..Response::default()
        })
    }

    async fn bodies(
        &mut self,
        listing: Box<Listing>,
        mut asked: Asked,
    ) -> Result<Option<Response>, Status> {
        if asked.is_empty() {
            let Some(request) = self.receive().await? else {
                return Ok(None);
            };
            self.admit_again().await?;
            listing.check_place().map_err(|error| interrupted(&error))?;
            if request.ids.len() > MAX_IDS {
                let count = request.ids.len();
                let text = format!("too many IDs in one request: {count}, {MAX_IDS} are allowed");
                return Err(Status::invalid_argument(text));
            }
            asked = Asked::new(&request.ids);
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        loop {
            if asked.ready.is_empty() && !self.fill(&mut asked) {
                break;
            }
            let next_bytes = asked.ready.front().map_or(0, size);
            let is_full = entries.len() == PAGE || bytes + next_bytes > PAGE_BYTES;
            if is_full && !entries.is_empty() {
                break;
            }
            bytes += next_bytes;
            entries.extend(asked.ready.pop_front());
        }
        let more = !asked.is_empty();
        self.stage = Stage::Bodies(listing, asked);
        Ok(Some(Response {
            entries,
            more,
            ..Response::default()
        }))
    }

    /// Reads bodies of the next IDs until there are some; whether there are.
    fn fill(&self, asked: &mut Asked) -> bool {
        while asked.ready.is_empty() && !asked.ids.is_empty() {
            let from = asked.ids.len().saturating_sub(PAGE);
            let mut part = asked.ids.split_off(from);
            part.reverse();
            let bodies = self.parts.state.bodies(&self.agent, &part);
            asked.ready = bodies.iter().map(|body| self.shown(body.into())).collect();
        }
        !asked.ready.is_empty()
    }

    fn shown(&self, entry: types::Entry) -> types::Entry {
        convert::entry::apply_mask(entry, self.mask.as_ref())
    }

    /// The next request; None when the agent wants no more.
    async fn receive(&mut self) -> Result<Option<SyncAuthorizedEntriesRequest>, Status> {
        tokio::select! {
            received = tokio::time::timeout(REQUEST_WITHIN, self.requests.message()) => {
                received.map_err(|_| Status::deadline_exceeded("no request came"))?
            }
            () = self.parts.push.closed() => Err(Status::unavailable("the server is stopping")),
        }
    }

    /// Whether the agent may still be served.
    async fn admit_again(&self) -> Result<(), Status> {
        let unknown = || Status::unimplemented(PATH);
        let method = Method::find(PATH).ok_or_else(unknown)?;
        let transport = self.caller.transport.clone();
        self.parts.roles.caller(method, transport).await?;
        Ok(())
    }
}

impl Asked {
    /// What cannot be an entry's ID is left out, as are the IDs of no entry.
    fn new(ids: &[String]) -> Self {
        let mut ids: Vec<_> = ids
            .iter()
            .filter_map(|id| EntryId::parse(id).ok())
            .collect();
        ids.sort_by(|a, b| b.cmp(a));
        Self {
            ids,
            ready: VecDeque::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.ready.is_empty()
    }
}

fn revision(item: &Listed) -> EntryRevision {
    EntryRevision {
        id: item.id.to_string(),
        revision_number: item.revision_number,
        created_at: item.created_at,
    }
}

fn size(entry: &types::Entry) -> usize {
    entry.encoded_len() + ITEM_OVERHEAD
}

fn fits(entries: &[types::Entry]) -> bool {
    entries.iter().map(size).sum::<usize>() <= PAGE_BYTES
}

fn interrupted(error: &ListingError) -> Refusal {
    Refusal::because(Code::Unavailable, "failed to fetch entries", error)
}

fn too_large() -> Refusal {
    let text = format!(
        "the authorized entries do not fit into one message of {MAX_MESSAGE} bytes: \
         use SyncAuthorizedEntries"
    );
    Refusal::new(Code::ResourceExhausted, text)
}

#[cfg(test)]
mod tests;
