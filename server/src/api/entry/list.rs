//! Listing entries: filters, pages, and the size of one message.

use prost::Message as _;
use tonic::Code;
use vane_identity::entry::EntryId;
use vane_identity::id::TrustDomain;
use vane_wire::convert::{self, id};
use vane_wire::spire::api::server::entry::v1::list_entries_request::Filter;
use vane_wire::spire::api::server::entry::v1::{
    ListEntriesRequest, ListEntriesResponse, count_entries_request,
};
use vane_wire::status::Refusal;

use crate::api::{MAX_MESSAGE, Parts};
use crate::state::EntryFilter;

/// Entries taken from hot state at a time.
const CHUNK: usize = 500;
/// A page ends before this size whatever page_size says.
const PAGE_BYTES: usize = MAX_MESSAGE / 4 * 3;
/// Tag and length of an entry in the list.
pub(super) const ITEM_OVERHEAD: usize = 6;
/// Room for the rest of the message.
const REST: usize = 1024;

/// The filter of a count, which is the same message under another name.
pub(super) fn same_filter(filter: count_entries_request::Filter) -> Filter {
    Filter {
        by_spiffe_id: filter.by_spiffe_id,
        by_parent_id: filter.by_parent_id,
        by_selectors: filter.by_selectors,
        by_federates_with: filter.by_federates_with,
        by_hint: filter.by_hint,
        by_downstream: filter.by_downstream,
    }
}

/// Reads a filter; without one everything passes.
pub(super) fn filter(own: &TrustDomain, wire: Option<Filter>) -> Result<EntryFilter, Refusal> {
    let Some(wire) = wire else {
        return Ok(EntryFilter::default());
    };
    let spiffe_id = match &wire.by_spiffe_id {
        Some(by) => Some(
            id::workload(own, Some(by))
                .map_err(|error| Refusal::of("malformed SPIFFE ID filter", &error))?,
        ),
        None => None,
    };
    let parent_id = match &wire.by_parent_id {
        Some(by) => Some(
            id::member(own, Some(by))
                .map_err(|error| Refusal::of("malformed parent ID filter", &error))?,
        ),
        None => None,
    };
    let selectors = wire.by_selectors.as_ref().map(TryInto::try_into);
    let federates_with = wire.by_federates_with.as_ref().map(TryInto::try_into);
    Ok(EntryFilter {
        spiffe_id,
        parent_id,
        selectors: selectors
            .transpose()
            .map_err(|error| Refusal::of("malformed selectors filter", &error))?,
        federates_with: federates_with
            .transpose()
            .map_err(|error| Refusal::of("malformed federates with filter", &error))?,
        // SPIRE: an empty one is none.
        hint: wire.by_hint.filter(|hint| !hint.is_empty()),
        // SPIRE's CLI always sends one: `false` is none.
        downstream: wire.by_downstream.filter(|downstream| *downstream),
    })
}

/// Answers a list request.
///
/// # Errors
/// INVALID_ARGUMENT for filter and token, RESOURCE_EXHAUSTED when all entries were asked for
/// and do not fit into one message.
pub(super) async fn list(
    parts: &Parts,
    request: ListEntriesRequest,
) -> Result<ListEntriesResponse, Refusal> {
    let filter = filter(&parts.trust_domain, request.filter)?;
    // SPIRE: without a page size everything is asked for, whatever the token.
    let wanted = usize::try_from(request.page_size).ok().filter(|n| *n > 0);
    let mut after = match wanted {
        Some(_) => token(&request.page_token)?,
        None => None,
    };
    let limit = if wanted.is_some() {
        PAGE_BYTES
    } else {
        MAX_MESSAGE - REST
    };
    let (mut entries, mut bytes) = (Vec::new(), 0);
    loop {
        let left = wanted.map_or(CHUNK, |wanted| CHUNK.min(wanted - entries.len()));
        let page = parts
            .state
            .entries_page(&filter, after.as_ref(), left)
            .await;
        for entry in &page.items {
            let shown = convert::entry::apply_mask((&**entry).into(), request.output_mask.as_ref());
            bytes += shown.encoded_len() + ITEM_OVERHEAD;
            if bytes > limit && wanted.is_none() {
                return Err(too_large(parts.state.entries_count(&filter).await));
            }
            if bytes > limit && !entries.is_empty() {
                return Ok(response(entries, after));
            }
            entries.push(shown);
            after = Some(entry.id.clone());
        }
        if !page.more {
            return Ok(response(entries, None));
        }
        if wanted.is_some_and(|wanted| entries.len() >= wanted) {
            return Ok(response(entries, after));
        }
    }
}

fn response(
    entries: Vec<vane_wire::spire::api::types::Entry>,
    next: Option<EntryId>,
) -> ListEntriesResponse {
    ListEntriesResponse {
        entries,
        next_page_token: next.map(|id| id.as_str().to_owned()).unwrap_or_default(),
    }
}

fn token(text: &str) -> Result<Option<EntryId>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    EntryId::parse(text).map(Some).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Refusal::new(
            Code::InvalidArgument,
            format!("could not parse token '{shown}'"),
        )
    })
}

fn too_large(count: usize) -> Refusal {
    Refusal::new(
        Code::ResourceExhausted,
        format!(
            "{count} entries match and do not fit into one message of {MAX_MESSAGE} bytes: \
             use page_size"
        ),
    )
}
