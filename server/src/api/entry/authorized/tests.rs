//! What a SPIRE agent gets to read, over the wire.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use vane_wire::spire::api::server::agent::v1::BanAgentRequest;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::entry::v1::BatchDeleteEntryRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::status::{Reason, denial_reason};

use super::*;
use crate::api::testing::{Agent, World, entry, refused};

type Request = SyncAuthorizedEntriesRequest;

/// An agent's end of a stream.
struct Client {
    requests: mpsc::Sender<Request>,
    answers: Streaming<Response>,
}

impl Client {
    async fn open(channel: Channel, first: Request) -> Self {
        let (requests, receiver) = mpsc::channel(4);
        requests.send(first).await.unwrap();
        let mut client = EntryClient::new(channel);
        let call = client.sync_authorized_entries(ReceiverStream::new(receiver));
        Self {
            requests,
            answers: call.await.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> Result<Option<Response>, Status> {
        self.answers.message().await
    }

    async fn page(&mut self) -> Response {
        self.next().await.unwrap().unwrap()
    }

    /// The pages until none follows.
    async fn pages(&mut self) -> Vec<Response> {
        let mut pages = vec![self.page().await];
        while pages.last().unwrap().more {
            pages.push(self.page().await);
        }
        pages
    }

    async fn ask(&self, ids: &[String]) {
        let request = Request {
            ids: ids.to_vec(),
            ..Request::default()
        };
        self.requests.send(request).await.unwrap();
    }
}

async fn opened(world: &mut World, agent: &Agent, mask: Option<types::EntryMask>) -> Client {
    let request = Request {
        output_mask: mask,
        ids: Vec::new(),
    };
    Client::open(world.peer(&agent.svid).await, request).await
}

/// Entries of an agent; their IDs in order.
async fn entries(world: &mut World, agent: &Agent, count: u32) -> Vec<String> {
    let mut ids = Vec::new();
    for uid in 0..count {
        let wanted = entry(&format!("/w/{uid}"), agent.svid.id().as_str(), uid);
        ids.push(world.entry(wanted).await.id);
    }
    ids.sort();
    ids
}

fn ids(entries: &[types::Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.id.clone()).collect()
}

/// The mask of SPIRE's agents.
fn spires_mask() -> types::EntryMask {
    types::EntryMask {
        spiffe_id: true,
        selectors: true,
        federates_with: true,
        admin: true,
        downstream: true,
        revision_number: true,
        store_svid: true,
        hint: true,
        additional_attributes: true,
        created_at: true,
        ..types::EntryMask::default()
    }
}

#[tokio::test]
async fn a_small_set_comes_whole_in_one_message_that_shows_what_the_mask_names() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let mut wanted = entry("/w", agent.svid.id().as_str(), 1);
    wanted.x509_svid_ttl = 60;
    wanted.hint = "h".to_owned();
    let made = world.entry(wanted).await;
    let mut client = opened(&mut world, &agent, Some(spires_mask())).await;
    let answer = client.page().await;
    assert!(answer.entry_revisions.is_empty() && !answer.more);
    let shown = answer.entries[0].clone();
    let masked = types::Entry {
        parent_id: None,
        x509_svid_ttl: 0,
        ..made.clone()
    };
    assert_eq!((answer.entries.len(), shown), (1, masked));

    let mut client = EntryClient::new(world.peer(&agent.svid).await);
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let all = client.get_authorized_entries(request).await.unwrap();
    assert_eq!(all.into_inner().entries, [made]);
}

#[tokio::test]
async fn a_set_of_no_entries_is_an_empty_message() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let mut client = opened(&mut world, &agent, None).await;
    assert_eq!(client.page().await, Response::default());
}

#[tokio::test]
async fn a_large_set_comes_as_revisions_in_pages_and_bodies_on_request() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let all = entries(&mut world, &agent, 12).await;
    let mut client = opened(&mut world, &agent, None).await;
    let pages = client.pages().await;
    let sizes: Vec<_> = pages
        .iter()
        .map(|page| page.entry_revisions.len())
        .collect();
    assert_eq!(sizes, [5, 5, 2]);
    assert!(pages.iter().all(|page| page.entries.is_empty()));
    let revisions = pages.into_iter().flat_map(|page| page.entry_revisions);
    let mut named: Vec<_> = revisions.map(|item| item.id).collect();
    named.sort();
    assert_eq!(named, all);

    // Each request is a world of its own: pages of bodies in order of ID, and of those that are
    // not the agent's nothing.
    let mut asked: Vec<_> = all.iter().rev().take(11).cloned().collect();
    asked.push("nobody-has-this".to_owned());
    asked.push("not an ID".to_owned());
    client.ask(&asked).await;
    let pages = client.pages().await;
    let sizes: Vec<_> = pages.iter().map(|page| page.entries.len()).collect();
    assert_eq!(sizes, [5, 5, 1]);
    assert!(pages.iter().all(|page| page.entry_revisions.is_empty()));
    let bodies: Vec<_> = pages.into_iter().flat_map(|page| page.entries).collect();
    assert_eq!(ids(&bodies), all[1..]);
    client.ask(&[]).await;
    assert_eq!(client.page().await, Response::default());
    client.ask(&all[..1]).await;
    assert_eq!(ids(&client.page().await.entries), all[..1]);

    let Client {
        requests,
        mut answers,
    } = client;
    drop(requests);
    assert!(
        answers.message().await.unwrap().is_none(),
        "the stream ends well"
    );

    let mut client = EntryClient::new(world.peer(&agent.svid).await);
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let whole = client.get_authorized_entries(request).await.unwrap();
    assert_eq!(ids(&whole.into_inner().entries), all);
}

#[tokio::test]
async fn requests_that_spire_refuses_are_refused_in_its_words() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let request = Request {
        ids: vec!["a".to_owned()],
        ..Request::default()
    };
    let mut client = Client::open(world.peer(&agent.svid).await, request).await;
    let text = "specifying IDs on initial request is not supported";
    assert_eq!(
        refused(client.next().await),
        (Code::InvalidArgument, text.to_owned())
    );
    let mask = types::EntryMask {
        spiffe_id: true,
        ..types::EntryMask::default()
    };
    let mut client = opened(&mut world, &agent, Some(mask)).await;
    let text = "revision number cannot be masked";
    assert_eq!(
        refused(client.next().await),
        (Code::InvalidArgument, text.to_owned())
    );
}

#[tokio::test]
async fn only_agents_read_a_set_and_only_their_own() {
    let mut world = World::new().await;
    let (one, two) = (world.agent().await, world.agent().await);
    let mine = entries(&mut world, &one, 7).await;
    let mut client = opened(&mut world, &two, None).await;
    assert_eq!(client.page().await, Response::default());
    // IDs of another's entries give nothing away, on a large set of one's own either.
    for uid in 0..6 {
        let own = entry(&format!("/two/{uid}"), two.svid.id().as_str(), uid);
        world.entry(own).await;
    }
    let mut client = opened(&mut world, &two, None).await;
    client.pages().await;
    client.ask(&mine).await;
    assert_eq!(client.page().await, Response::default());

    let mut anonymous = EntryClient::new(world.anonymous().await);
    let request = GetAuthorizedEntriesRequest { output_mask: None };
    let (code, _) = refused(anonymous.get_authorized_entries(request).await);
    assert_eq!(code, Code::PermissionDenied);
}

#[tokio::test]
async fn an_agent_that_is_banned_during_a_stream_is_denied_at_its_next_request() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let all = entries(&mut world, &agent, 6).await;
    let mut client = opened(&mut world, &agent, None).await;
    client.pages().await;
    let mut admin = AgentClient::new(world.local().await);
    let id = Some(agent.svid.id().into());
    admin.ban_agent(BanAgentRequest { id }).await.unwrap();
    client.ask(&all).await;
    let status = client.next().await.unwrap_err();
    assert_eq!(denial_reason(&status), Some(Reason::AgentBanned));
}

#[tokio::test]
async fn an_agent_has_four_streams_and_asks_for_so_many_ids() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let all = entries(&mut world, &agent, 6).await;
    let mut first = opened(&mut world, &agent, None).await;
    first.pages().await;
    let mut later = Vec::new();
    for _ in 0..4 {
        let mut client = opened(&mut world, &agent, None).await;
        client.pages().await;
        later.push(client);
    }
    first.ask(&all).await;
    let (code, text) = refused(first.next().await);
    assert_eq!(code, Code::Unavailable);
    assert!(text.ends_with("newer streams of this agent took the place of this one"));
    let mut last = later.remove(3);
    last.ask(&vec![all[0].clone(); MAX_IDS + 1]).await;
    let text = "too many IDs in one request: 10001, 10000 are allowed".to_owned();
    assert_eq!(refused(last.next().await), (Code::InvalidArgument, text));
}

#[tokio::test]
async fn an_entry_that_comes_or_goes_between_two_pages_is_told_or_has_no_body() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let all = entries(&mut world, &agent, 12).await;
    let mut listing = world.parts.state.listing(agent.svid.id(), PAGE);
    let mut named: Vec<_> = listing.next_page().unwrap().items;
    let new = entry("/late", agent.svid.id().as_str(), 99);
    let new = world.entry(new).await.id;
    let mut admin = EntryClient::new(world.local().await);
    let gone = BatchDeleteEntryRequest {
        ids: vec![all[0].clone()],
    };
    admin.batch_delete_entry(gone).await.unwrap();
    loop {
        let page = listing.next_page().unwrap();
        named.extend(page.items);
        if !page.more {
            break;
        }
    }
    let named: Vec<_> = named.iter().map(|item| item.id.to_string()).collect();
    assert!(named.contains(&new));
    let missing = all[1..].iter().find(|id| !named.contains(id));
    assert_eq!(missing, None);
    let gone = EntryId::parse(&all[0]).unwrap();
    assert!(
        world
            .parts
            .state
            .bodies(agent.svid.id(), &[gone])
            .is_empty()
    );
}

#[tokio::test]
async fn a_walk_that_is_overrun_begins_again_and_gives_up_at_last() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    entries(&mut world, &agent, 6).await;
    let mut listing = world.parts.state.listing(agent.svid.id(), 1);
    for _ in 0..3 {
        listing.lose();
        assert!(listing.next_page().unwrap().more, "it begins again");
    }
    listing.lose();
    assert_eq!(listing.next_page().unwrap_err(), ListingError::Overrun);
}
