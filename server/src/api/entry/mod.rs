//! `spire.api.server.entry.v1.Entry`: the registry of who gets which identity.
//!
//! Each item of a batch is a transaction of its own, and all are on their way at once: the
//! store groups them. An item fails alone.

mod list;

mod authorized;
mod change;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use prost::Message;
use tonic::{Code, Request, Response, Status, Streaming};
use vane_identity::entry::EntryId;
use vane_wire::convert;
use vane_wire::spire::api::server::entry::v1::entry_server::Entry;
use vane_wire::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchCreateEntryResponse, BatchDeleteEntryRequest,
    BatchDeleteEntryResponse, BatchUpdateEntryRequest, BatchUpdateEntryResponse,
    CountEntriesRequest, CountEntriesResponse, GetAuthorizedEntriesRequest,
    GetAuthorizedEntriesResponse, GetEntryRequest, ListEntriesRequest, ListEntriesResponse,
    SyncAuthorizedEntriesRequest, batch_create_entry_response, batch_delete_entry_response,
    batch_update_entry_response,
};
use vane_wire::spire::api::types;
use vane_wire::status::{self, Refusal};

use super::parts::{agent, caller, count_to_wire, patience};
use super::{MAX_MESSAGE, Parts};

/// The most items of one batch; what SPIRE's tools send is far below.
pub(super) const MAX_BATCH: usize = 10_000;
/// Items of a batch that are on their way at once.
const AT_ONCE: usize = 512;

const UPDATE: &str = "/spire.api.server.entry.v1.Entry/BatchUpdateEntry";
const DELETE: &str = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";

/// The service.
#[derive(Debug, Clone)]
pub(super) struct EntryService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl Entry for EntryService {
    async fn count_entries(
        &self,
        request: Request<CountEntriesRequest>,
    ) -> Result<Response<CountEntriesResponse>, Status> {
        let filter = request.into_inner().filter.map(list::same_filter);
        let filter = list::filter(&self.0.trust_domain, filter)?;
        let count = count_to_wire(self.0.state.entries_count(&filter).await);
        Ok(Response::new(CountEntriesResponse { count }))
    }

    async fn list_entries(
        &self,
        request: Request<ListEntriesRequest>,
    ) -> Result<Response<ListEntriesResponse>, Status> {
        Ok(Response::new(
            list::list(&self.0, request.into_inner()).await?,
        ))
    }

    async fn get_entry(
        &self,
        request: Request<GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let GetEntryRequest { id, output_mask } = request.into_inner();
        if id.is_empty() {
            return Err(Refusal::new(Code::InvalidArgument, "missing ID").into());
        }
        let found = EntryId::parse(&id)
            .ok()
            .and_then(|id| self.0.state.entry(&id))
            .ok_or_else(not_found)?;
        let shown = convert::entry::apply_mask((&*found).into(), output_mask.as_ref());
        Ok(Response::new(shown))
    }

    async fn batch_create_entry(
        &self,
        request: Request<BatchCreateEntryRequest>,
    ) -> Result<Response<BatchCreateEntryResponse>, Status> {
        let caller = caller(&request)?;
        let BatchCreateEntryRequest {
            entries,
            output_mask,
        } = request.into_inner();
        self.check_batch(entries.len())?;
        let mut results = Vec::with_capacity(entries.len());
        for wires in entries.chunks(AT_ONCE) {
            let created = change::create(&self.0, &caller, wires).await;
            results.extend(created.into_iter().map(|(status, entry)| {
                let mask = output_mask.as_ref();
                batch_create_entry_response::Result {
                    status: Some(status),
                    entry: entry.map(|entry| convert::entry::apply_mask(entry, mask)),
                }
            }));
        }
        fit(&mut results, |result| &mut result.entry);
        Ok(Response::new(BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<BatchUpdateEntryRequest>,
    ) -> Result<Response<BatchUpdateEntryResponse>, Status> {
        let caller = caller(&request)?;
        let BatchUpdateEntryRequest {
            entries,
            input_mask,
            output_mask,
        } = request.into_inner();
        self.check_batch(entries.len())?;
        let distinct = distinct(entries.iter().map(|entry| entry.id.as_str()));
        let results = self.each(entries, distinct, |wire| {
            let (caller, mask) = (&caller, output_mask.as_ref());
            let input = input_mask.as_ref();
            async move {
                match change::update(&self.0, caller, &wire, input).await {
                    Ok(entry) => batch_update_entry_response::Result {
                        status: Some(status::ok()),
                        entry: Some(convert::entry::apply_mask(entry, mask)),
                    },
                    Err(refusal) => {
                        self.0.refused(UPDATE, caller, &refusal);
                        batch_update_entry_response::Result {
                            status: Some(refusal.item()),
                            entry: None,
                        }
                    }
                }
            }
        });
        let mut results = results.await;
        fit(&mut results, |result| &mut result.entry);
        Ok(Response::new(BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<BatchDeleteEntryRequest>,
    ) -> Result<Response<BatchDeleteEntryResponse>, Status> {
        let caller = caller(&request)?;
        let ids = request.into_inner().ids;
        self.check_batch(ids.len())?;
        let distinct = distinct(ids.iter().map(String::as_str));
        let results = self.each(ids, distinct, |id| {
            let caller = &caller;
            async move {
                let done = change::delete(&self.0, caller, &id).await;
                if let Err(refusal) = &done {
                    self.0.refused(DELETE, caller, refusal);
                }
                batch_delete_entry_response::Result {
                    status: Some(done.map_or_else(Refusal::item, |()| status::ok())),
                    id,
                }
            }
        });
        let results = results.await;
        Ok(Response::new(BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<GetAuthorizedEntriesRequest>,
    ) -> Result<Response<GetAuthorizedEntriesResponse>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let set = authorized::get(&self.0, agent, patience, request.into_inner()).await?;
        Ok(Response::new(set))
    }

    type SyncAuthorizedEntriesStream = authorized::Responses;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let (caller, patience) = (caller(&request)?, patience(&request, &self.0));
        let agent = agent(&caller)?;
        let requests = request.into_inner();
        let pages = authorized::sync(&self.0, &caller, agent, patience, requests).await?;
        Ok(Response::new(pages))
    }
}

impl EntryService {
    /// Whether a batch may be worked on at all.
    fn check_batch(&self, items: usize) -> Result<(), Refusal> {
        if items > MAX_BATCH {
            let text = format!("too many items in one batch: {items}, {MAX_BATCH} are allowed");
            return Err(Refusal::new(Code::InvalidArgument, text));
        }
        self.0.check_fresh()
    }

    /// Runs `work` for all items and returns the results in their order. Items that name
    /// the same entry wait for each other: then nothing is `concurrent`.
    async fn each<T, R, F>(&self, items: Vec<T>, concurrent: bool, work: impl Fn(T) -> F) -> Vec<R>
    where
        F: Future<Output = R>,
    {
        let at_once = if concurrent { AT_ONCE } else { 1 };
        let mut results = Vec::with_capacity(items.len());
        let mut running = FuturesOrdered::new();
        for item in items {
            if running.len() >= at_once {
                results.extend(running.next().await);
            }
            running.push_back(work(item));
        }
        while let Some(result) = running.next().await {
            results.push(result);
        }
        results
    }
}

/// An answer that does not fit into one message shows only the IDs of its entries: what was
/// done is done, and an error in its place would deny it.
fn fit<R: Message>(results: &mut [R], entry: impl Fn(&mut R) -> &mut Option<types::Entry>) {
    let size = |result: &R| result.encoded_len() + list::ITEM_OVERHEAD;
    if results.iter().map(size).sum::<usize>() <= MAX_MESSAGE {
        return;
    }
    let id_only = types::EntryMask::default();
    for result in results {
        let shown = entry(result);
        let bare = |whole| convert::entry::apply_mask(whole, Some(&id_only));
        *shown = shown.take().map(bare);
    }
}

fn distinct<'a>(ids: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = HashSet::new();
    ids.into_iter().all(|id| seen.insert(id))
}

pub(super) fn not_found() -> Refusal {
    Refusal::new(Code::NotFound, "entry not found")
}
