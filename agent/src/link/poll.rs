//! One round of asking a SPIRE server, which cannot push, for entries and bundles (SPIRE.md
//! 3.3): SyncAuthorizedEntries, or GetAuthorizedEntries where that is not there, then GetBundle
//! and GetFederatedBundle for each trust domain that an entry federates with.
//!
//! A round succeeds whole or changes nothing. Only bodies that are not held come over the wire
//! when the set is large; what comes is bounded by counts, by the size of a message and by one
//! deadline for all of it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::bundle::v1::{GetBundleRequest, GetFederatedBundleRequest};
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::entry::v1::{
    GetAuthorizedEntriesRequest, SyncAuthorizedEntriesRequest, SyncAuthorizedEntriesResponse,
};
use vane_wire::spire::api::types;

use crate::registry::Round;

/// So long a round may take (SPIRE's).
const DEADLINE: Duration = Duration::from_secs(30);
/// The most entries of a round.
const MAX_ENTRIES: usize = 1_000_000;
/// Federated bundles fetched at once (SPIRE's).
const BUNDLES_AT_ONCE: usize = 10;

/// What the agent holds.
pub(super) type Held = BTreeMap<EntryId, Arc<Entry>>;

/// Asks for everything that is not `held`.
///
/// # Errors
/// The server's, or DEADLINE_EXCEEDED.
pub(super) async fn round(channel: Channel, held: Held) -> Result<Round, Status> {
    let asked = async {
        let (listed, bodies) = match sync(channel.clone(), &held).await {
            Err(status) if status.code() == Code::Unimplemented => all(channel.clone()).await?,
            synced => synced?,
        };
        let federated = federated(&held, &listed, &bodies);
        let bundles = bundles(channel, federated).await?;
        Ok(Round {
            listed,
            bodies,
            bundles,
        })
    };
    let late = || Status::deadline_exceeded("the server did not answer within 30 s");
    tokio::time::timeout(DEADLINE, asked)
        .await
        .map_err(|_| late())?
}

/// The IDs of the set, and the bodies that came.
type Set = (HashSet<EntryId>, Vec<types::Entry>);

async fn all(channel: Channel) -> Result<Set, Status> {
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let mut client = EntryClient::new(channel);
    let answer = client.get_authorized_entries(request).await?;
    Ok(whole(answer.into_inner().entries))
}

async fn sync(channel: Channel, held: &Held) -> Result<Set, Status> {
    let (requests, receiver) = mpsc::channel(1);
    send(&requests, Vec::new()).await?;
    let mut client = EntryClient::new(channel);
    let call = client.sync_authorized_entries(ReceiverStream::new(receiver));
    let mut answers = call.await?.into_inner();
    let mut answer = next(&mut answers).await?;
    if answer.entry_revisions.is_empty() {
        return Ok(whole(answer.entries));
    }
    // The server's page: it answers as many bodies at once.
    let page = answer.entry_revisions.len();
    let (mut listed, mut lacking) = (HashSet::new(), BTreeSet::new());
    loop {
        for revision in &answer.entry_revisions {
            let Ok(id) = EntryId::parse(&revision.id) else {
                continue;
            };
            let same = |entry: &Arc<Entry>| {
                entry.revision_number == revision.revision_number
                    && entry.created_at == revision.created_at
            };
            if !held.get(&id).is_some_and(same) {
                lacking.insert(id.clone());
            }
            listed.insert(id);
        }
        if listed.len() > MAX_ENTRIES {
            let text = format!("the server lists more than {MAX_ENTRIES} entries");
            return Err(Status::out_of_range(text));
        }
        if !answer.more {
            break;
        }
        answer = next(&mut answers).await?;
    }
    let (lacking, mut bodies) = (Vec::from_iter(lacking), Vec::new());
    for ids in lacking.chunks(page) {
        send(&requests, ids.iter().map(ToString::to_string).collect()).await?;
        loop {
            let answer = next(&mut answers).await?;
            bodies.extend(answer.entries);
            if bodies.len() > MAX_ENTRIES {
                return Err(Status::out_of_range("the server sends too many entries"));
            }
            if !answer.more {
                break;
            }
        }
    }
    // What was listed and has no body any more is gone.
    let came: HashSet<&str> = bodies.iter().map(|body| body.id.as_str()).collect();
    for gone in lacking.iter().filter(|id| !came.contains(id.as_str())) {
        listed.remove(gone);
    }
    Ok((listed, bodies))
}

fn whole(bodies: Vec<types::Entry>) -> Set {
    let ids = bodies
        .iter()
        .filter_map(|body| EntryId::parse(&body.id).ok());
    (ids.collect(), bodies)
}

async fn send(
    requests: &mpsc::Sender<SyncAuthorizedEntriesRequest>,
    ids: Vec<String>,
) -> Result<(), Status> {
    let request = SyncAuthorizedEntriesRequest {
        output_mask: None,
        ids,
    };
    let sent = requests.send(request).await;
    sent.map_err(|_| Status::unavailable("the server ended the stream"))
}

async fn next(
    answers: &mut Streaming<SyncAuthorizedEntriesResponse>,
) -> Result<SyncAuthorizedEntriesResponse, Status> {
    let ended = || Status::unavailable("the server ended the stream");
    answers.message().await?.ok_or_else(ended)
}

/// The trust domains that the entries of the set federate with.
fn federated(
    held: &Held,
    listed: &HashSet<EntryId>,
    bodies: &[types::Entry],
) -> BTreeSet<TrustDomain> {
    let came = bodies.iter().flat_map(|body| &body.federates_with);
    let came = came.filter_map(|name| TrustDomain::parse_name_or_id(name).ok());
    let kept = held.iter().filter(|(id, _)| listed.contains(*id));
    let kept = kept.flat_map(|(_, entry)| entry.federates_with.iter().cloned());
    came.chain(kept).collect()
}

/// The own bundle and those of `federated` that the server has.
async fn bundles(
    channel: Channel,
    federated: BTreeSet<TrustDomain>,
) -> Result<Vec<types::Bundle>, Status> {
    let mut client = BundleClient::new(channel);
    let own = client.get_bundle(GetBundleRequest { output_mask: None });
    let own = own.await?.into_inner();
    let fetch = |trust_domain: TrustDomain| {
        let mut client = client.clone();
        async move {
            let request = GetFederatedBundleRequest {
                trust_domain: trust_domain.to_string(),
                output_mask: None,
            };
            match client.get_federated_bundle(request).await {
                Ok(bundle) => Ok(Some(bundle.into_inner())),
                Err(status) if status.code() == Code::NotFound => {
                    tracing::debug!(%trust_domain, "the server has no such bundle");
                    Ok(None)
                }
                Err(status) => Err(status),
            }
        }
    };
    let fetched = stream::iter(federated)
        .map(fetch)
        .buffer_unordered(BUNDLES_AT_ONCE);
    let fetched: Vec<Option<types::Bundle>> = fetched.try_collect().await?;
    Ok(std::iter::once(own)
        .chain(fetched.into_iter().flatten())
        .collect())
}
