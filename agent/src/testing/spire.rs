//! What a SPIRE server answers to an agent that asks: two services, with what the test puts in.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use vane_wire::spire::api::server::bundle::v1 as bundle;
use vane_wire::spire::api::server::bundle::v1::bundle_server::Bundle;
use vane_wire::spire::api::server::entry::v1 as entry;
use vane_wire::spire::api::server::entry::v1::entry_server::Entry;
use vane_wire::spire::api::types;

/// The server's side of a SPIRE server. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Spire(Arc<Mutex<Holds>>);

/// What it has, and what it was asked.
#[derive(Default)]
pub(crate) struct Holds {
    /// Whether the server is one that cannot push.
    pub(crate) is_spire: bool,
    /// Whether it has SyncAuthorizedEntries.
    pub(crate) no_sync: bool,
    /// Entries of one page; more of them are listed first.
    pub(crate) page: usize,
    /// The set of the agent.
    pub(crate) entries: Vec<types::Entry>,
    /// The own bundle first.
    pub(crate) bundles: Vec<types::Bundle>,
    /// Refuses everything with this.
    pub(crate) broken: Option<Status>,
    /// The IDs of each request for bodies.
    pub(crate) asked: Vec<Vec<String>>,
}

impl Spire {
    pub(crate) fn holds(&self) -> MutexGuard<'_, Holds> {
        self.0.lock().unwrap()
    }

    fn check(&self) -> Result<(), Status> {
        self.holds().broken.clone().map_or(Ok(()), Err)
    }
}

type Pages =
    Pin<Box<dyn Stream<Item = Result<entry::SyncAuthorizedEntriesResponse, Status>> + Send>>;

impl Holds {
    fn revisions(&self) -> Vec<entry::SyncAuthorizedEntriesResponse> {
        let pages: Vec<_> = self.entries.chunks(self.page).collect();
        let answer = |(at, page): (usize, &&[types::Entry])| {
            let revision = |one: &types::Entry| entry::EntryRevision {
                id: one.id.clone(),
                revision_number: one.revision_number,
                created_at: one.created_at,
            };
            entry::SyncAuthorizedEntriesResponse {
                entry_revisions: page.iter().map(revision).collect(),
                entries: Vec::new(),
                more: at + 1 < pages.len(),
            }
        };
        pages.iter().enumerate().map(answer).collect()
    }

    fn bodies(&mut self, ids: Vec<String>) -> entry::SyncAuthorizedEntriesResponse {
        let all = self.entries.iter();
        let entries = all.filter(|one| ids.contains(&one.id)).cloned().collect();
        self.asked.push(ids);
        entry::SyncAuthorizedEntriesResponse {
            entries,
            ..Default::default()
        }
    }
}

/// Methods that no agent calls.
macro_rules! uncalled {
    ($($name:ident: $request:ty => $response:ty;)+) => {
        $(
            fn $name<'life, 'call>(
                &'life self,
                _: Request<$request>,
            ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'call>>
            where
                'life: 'call,
                Self: 'call,
            {
                Box::pin(std::future::ready(Err(Status::internal("uncalled"))))
            }
        )+
    };
}

#[tonic::async_trait]
impl Entry for Spire {
    async fn get_authorized_entries(
        &self,
        _: Request<entry::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<entry::GetAuthorizedEntriesResponse>, Status> {
        self.check()?;
        let entries = self.holds().entries.clone();
        Ok(Response::new(entry::GetAuthorizedEntriesResponse {
            entries,
        }))
    }

    type SyncAuthorizedEntriesStream = Pages;

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<entry::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Pages>, Status> {
        self.check()?;
        if self.holds().no_sync {
            return Err(Status::unimplemented("an old one"));
        }
        let mut requests = request.into_inner();
        requests.message().await?;
        let (is_small, whole, first) = {
            let holds = self.holds();
            let whole = entry::SyncAuthorizedEntriesResponse {
                entries: holds.entries.clone(),
                ..Default::default()
            };
            (holds.entries.len() <= holds.page, whole, holds.revisions())
        };
        if is_small {
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(whole)))));
        }
        let first = tokio_stream::iter(first.into_iter().map(Ok));
        let spire = self.clone();
        let bodies = futures_util::stream::try_unfold(requests, move |mut requests| {
            let spire = spire.clone();
            async move {
                let Some(request) = requests.message().await? else {
                    return Ok(None);
                };
                let answer = spire.holds().bodies(request.ids);
                Ok(Some((answer, requests)))
            }
        });
        let pages = futures_util::StreamExt::chain(first, bodies);
        Ok(Response::new(Box::pin(pages)))
    }

    uncalled! {
        count_entries: entry::CountEntriesRequest => entry::CountEntriesResponse;
        list_entries: entry::ListEntriesRequest => entry::ListEntriesResponse;
        get_entry: entry::GetEntryRequest => types::Entry;
        batch_create_entry: entry::BatchCreateEntryRequest => entry::BatchCreateEntryResponse;
        batch_update_entry: entry::BatchUpdateEntryRequest => entry::BatchUpdateEntryResponse;
        batch_delete_entry: entry::BatchDeleteEntryRequest => entry::BatchDeleteEntryResponse;
    }
}

#[tonic::async_trait]
impl Bundle for Spire {
    async fn get_bundle(
        &self,
        _: Request<bundle::GetBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        self.check()?;
        let own = self.holds().bundles.first().cloned();
        own.map(Response::new)
            .ok_or_else(|| Status::internal("no bundle"))
    }

    async fn get_federated_bundle(
        &self,
        request: Request<bundle::GetFederatedBundleRequest>,
    ) -> Result<Response<types::Bundle>, Status> {
        self.check()?;
        let name = request.into_inner().trust_domain;
        let holds = self.holds();
        let found = holds.bundles.iter().find(|one| one.trust_domain == name);
        let found = found.cloned().map(Response::new);
        found.ok_or_else(|| Status::not_found("bundle not found"))
    }

    uncalled! {
        count_bundles: bundle::CountBundlesRequest => bundle::CountBundlesResponse;
        append_bundle: bundle::AppendBundleRequest => types::Bundle;
        publish_jwt_authority: bundle::PublishJwtAuthorityRequest => bundle::PublishJwtAuthorityResponse;
        publish_wit_authority: bundle::PublishWitAuthorityRequest => bundle::PublishWitAuthorityResponse;
        list_federated_bundles: bundle::ListFederatedBundlesRequest => bundle::ListFederatedBundlesResponse;
        batch_create_federated_bundle: bundle::BatchCreateFederatedBundleRequest => bundle::BatchCreateFederatedBundleResponse;
        batch_update_federated_bundle: bundle::BatchUpdateFederatedBundleRequest => bundle::BatchUpdateFederatedBundleResponse;
        batch_set_federated_bundle: bundle::BatchSetFederatedBundleRequest => bundle::BatchSetFederatedBundleResponse;
        batch_delete_federated_bundle: bundle::BatchDeleteFederatedBundleRequest => bundle::BatchDeleteFederatedBundleResponse;
    }
}
