//! The registry over the wire.

use tonic::Code;
use tonic::transport::Channel;
use vane_chassis::clock::Clock as _;
use vane_identity::lifetime::to_unix;
use vane_store::kv::Kv as _;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::entry::v1::list_entries_request::Filter;
use vane_wire::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, BatchUpdateEntryRequest, CountEntriesRequest,
    GetEntryRequest, ListEntriesRequest, batch_create_entry_response, batch_update_entry_response,
};
use vane_wire::spire::api::types;

use super::MAX_BATCH;
use crate::api::testing::{World, entry, refused, wire_id};

const PARENT: &str = "spiffe://example.org/spire/agent/join_token/a";

type Client = EntryClient<Channel>;

async fn client(world: &mut World) -> Client {
    // An administrator with a certificate, as the admin socket's tests are elsewhere.
    let admin = crate::api::testing::own().with_path("/admin").unwrap();
    let transport = crate::api::testing::tls_as(&admin, world);
    EntryClient::new(world.over(transport).await).max_decoding_message_size(16 << 20)
}

async fn create(
    client: &mut Client,
    entries: Vec<types::Entry>,
) -> Vec<batch_create_entry_response::Result> {
    let request = BatchCreateEntryRequest {
        entries,
        output_mask: None,
    };
    let response = client.batch_create_entry(request).await.unwrap();
    response.into_inner().results
}

async fn update(
    client: &mut Client,
    entry: types::Entry,
    mask: Option<types::EntryMask>,
) -> batch_update_entry_response::Result {
    let request = BatchUpdateEntryRequest {
        entries: vec![entry],
        input_mask: mask,
        output_mask: None,
    };
    let response = client.batch_update_entry(request).await.unwrap();
    response.into_inner().results.remove(0)
}

fn status(status: &Option<types::Status>) -> (Code, &str) {
    let status = status.as_ref().unwrap();
    (Code::from(status.code), status.message.as_str())
}

async fn list(client: &mut Client, filter: Filter) -> Vec<String> {
    let request = ListEntriesRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let listed = client.list_entries(request).await.unwrap().into_inner();
    listed.entries.into_iter().map(|entry| entry.id).collect()
}

#[tokio::test]
async fn a_created_entry_has_an_id_its_time_and_every_field_and_is_logged() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let wanted = types::Entry {
        x509_svid_ttl: 60,
        jwt_svid_ttl: 30,
        admin: true,
        dns_names: vec!["a.example.org".to_owned()],
        expires_at: 4_000_000_000,
        hint: "h".to_owned(),
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            jwt_svid_include_jti: true,
        }),
        // Not the client's to say.
        revision_number: 7,
        created_at: 7,
        ..entry("/a", PARENT, 1)
    };
    let results = create(&mut client, vec![wanted.clone()]).await;
    assert_eq!(status(&results[0].status), (Code::Ok, "OK"));
    let made = results[0].entry.clone().unwrap();
    assert!(uuid::Uuid::parse_str(&made.id).is_ok());
    let expected = types::Entry {
        id: made.id.clone(),
        revision_number: 0,
        created_at: to_unix(world.clock.now()),
        ..wanted
    };
    assert_eq!(made, expected);
    let request = GetEntryRequest {
        id: made.id.clone(),
        output_mask: None,
    };
    let shown = client.get_entry(request).await.unwrap().into_inner();
    assert_eq!(shown, made);
    let log = world.log();
    let line = log.iter().find(|line| line["type"] == "admin").unwrap();
    assert_eq!(line["action"], "Entry/BatchCreateEntry");
    assert_eq!(line["caller"], "spiffe://example.org/admin");
    assert_eq!(line["detail"]["entry_id"], made.id.as_str());
}

#[tokio::test]
async fn a_similar_entry_is_returned_and_a_taken_id_is_not() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let named = |id: &str, uid| types::Entry {
        id: id.to_owned(),
        ..entry("/a", PARENT, uid)
    };
    let results = create(
        &mut client,
        vec![named("one", 1), named("two", 1), named("one", 2)],
    )
    .await;
    let first = results[0].entry.clone().unwrap();
    let similar = (Code::AlreadyExists, "similar entry already exists");
    assert_eq!(status(&results[1].status), similar);
    assert_eq!(results[1].entry, Some(first));
    let taken = "failed to create entry: entry ID one is already in use";
    assert_eq!(status(&results[2].status), (Code::AlreadyExists, taken));
    assert_eq!(results[2].entry, None);
}

#[tokio::test]
async fn an_item_fails_alone_and_in_spires_words() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let foreign = types::Entry {
        spiffe_id: wire_id("spiffe://other.org/six"),
        ..entry("/a", PARENT, 1)
    };
    let lonely = types::Entry {
        federates_with: vec!["other.org".to_owned()],
        ..entry("/a", PARENT, 2)
    };
    let bare = types::Entry {
        selectors: Vec::new(),
        ..entry("/a", PARENT, 3)
    };
    let entries = vec![foreign, lonely, bare, entry("/a", PARENT, 4)];
    let results = create(&mut client, entries).await;
    let text = "failed to convert entry: invalid spiffe ID: \"spiffe://other.org/six\" is not a member of trust domain \"example.org\"";
    assert_eq!(status(&results[0].status), (Code::InvalidArgument, text));
    let text = "failed to create entry: unable to find federated bundle \"spiffe://other.org\"";
    assert_eq!(status(&results[1].status), (Code::Internal, text));
    let text = "failed to convert entry: selector list is empty";
    assert_eq!(status(&results[2].status), (Code::InvalidArgument, text));
    assert_eq!(status(&results[3].status), (Code::Ok, "OK"));
    let all = list(&mut client, Filter::default()).await;
    assert_eq!(all.len(), 1);
}

#[tokio::test]
async fn an_update_changes_the_masked_fields_and_counts_the_revision() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let made = world.entry(entry("/a", PARENT, 1)).await;
    let mask = types::EntryMask {
        hint: true,
        ..Default::default()
    };
    let change = types::Entry {
        id: made.id.clone(),
        hint: "h".to_owned(),
        ..Default::default()
    };
    let result = update(&mut client, change, Some(mask)).await;
    assert_eq!(status(&result.status), (Code::Ok, "OK"));
    let expected = types::Entry {
        hint: "h".to_owned(),
        revision_number: 1,
        ..made.clone()
    };
    assert_eq!(result.entry, Some(expected));
    // Without a mask everything is replaced.
    let whole = types::Entry {
        id: made.id.clone(),
        ..entry("/b", PARENT, 2)
    };
    let result = update(&mut client, whole, None).await;
    let updated = result.entry.unwrap();
    assert_eq!(updated.revision_number, 2);
    assert_eq!(updated.spiffe_id, wire_id("spiffe://example.org/b"));
    assert_eq!(
        (updated.hint.as_str(), updated.created_at),
        ("", made.created_at)
    );
    // What it was is free again, what another one is, is not.
    let other = world.entry(entry("/a", PARENT, 1)).await;
    let whole = types::Entry {
        id: other.id,
        ..entry("/b", PARENT, 2)
    };
    let result = update(&mut client, whole, None).await;
    let text = "failed to update entry: similar entry already exists";
    assert_eq!(status(&result.status), (Code::AlreadyExists, text));
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    for id in ["nope", "no such id", &"x".repeat(300)] {
        let change = types::Entry {
            id: id.to_owned(),
            ..entry("/a", PARENT, 1)
        };
        let result = update(&mut client, change, None).await;
        let updated = (Code::NotFound, "failed to update entry");
        assert_eq!(status(&result.status), updated);
        let request = BatchDeleteEntryRequest {
            ids: vec![id.to_owned()],
        };
        let response = client.batch_delete_entry(request).await.unwrap();
        let result = response.into_inner().results.remove(0);
        assert_eq!(status(&result.status), (Code::NotFound, "entry not found"));
        assert_eq!(result.id, id);
        let request = GetEntryRequest {
            id: id.to_owned(),
            output_mask: None,
        };
        let refusal = refused(client.get_entry(request).await);
        assert_eq!(refusal, (Code::NotFound, "entry not found".to_owned()));
    }
    let result = update(&mut client, entry("/a", PARENT, 1), None).await;
    let text = (Code::NotFound, "failed to update entry");
    assert_eq!(status(&result.status), text);
}

#[tokio::test]
async fn a_deleted_entry_is_gone_for_the_next_call() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let made = world.entry(entry("/a", PARENT, 1)).await;
    let request = BatchDeleteEntryRequest {
        ids: vec![made.id.clone(), made.id.clone()],
    };
    let response = client.batch_delete_entry(request).await.unwrap();
    let results = response.into_inner().results;
    assert_eq!(status(&results[0].status), (Code::Ok, "OK"));
    assert_eq!(
        status(&results[1].status),
        (Code::NotFound, "entry not found")
    );
    assert_eq!(list(&mut client, Filter::default()).await, [""; 0]);
}

#[tokio::test]
async fn five_hundred_entries_go_in_one_batch_and_come_back_in_pages() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let entries = (0..500).map(|uid| entry("/a", PARENT, uid)).collect();
    let results = create(&mut client, entries).await;
    assert!(
        results
            .iter()
            .all(|result| status(&result.status).0 == Code::Ok)
    );
    let in_order = |at: usize| {
        results[at].entry.as_ref().unwrap().selectors[0]
            .value
            .clone()
    };
    assert_eq!(in_order(0), "uid:0");
    assert_eq!(in_order(499), "uid:499");
    let logged = world.log();
    let logged = logged.iter().filter(|line| line["type"] == "admin").count();
    assert_eq!(logged, 500, "each is in the log when it is acknowledged");

    let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListEntriesRequest {
            page_size: 120,
            page_token: token,
            output_mask: Some(types::EntryMask::default()),
            ..Default::default()
        };
        let page = client.list_entries(request).await.unwrap().into_inner();
        assert!(page.entries.iter().all(|entry| entry.selectors.is_empty()));
        seen.extend(page.entries.into_iter().map(|entry| entry.id));
        pages += 1;
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, seen.len()), (5, 500));
    assert!(seen.is_sorted());
    let count = client.count_entries(CountEntriesRequest::default()).await;
    assert_eq!(count.unwrap().into_inner().count, 500);
}

#[tokio::test]
async fn filters_are_applied_and_bad_ones_refused_in_spires_words() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let one = world.entry(entry("/a", PARENT, 1)).await;
    let hinted = types::Entry {
        hint: "h".to_owned(),
        downstream: true,
        ..entry("/b", "spiffe://example.org/spire/server", 2)
    };
    let two = world.entry(hinted).await;
    let selectors = |by| types::SelectorMatch {
        selectors: one.selectors.clone(),
        r#match: by,
    };
    let table = [
        (
            Filter {
                by_spiffe_id: wire_id("spiffe://example.org/a"),
                ..Default::default()
            },
            &one.id,
        ),
        (
            Filter {
                by_parent_id: wire_id("spiffe://example.org/spire/server"),
                ..Default::default()
            },
            &two.id,
        ),
        (
            Filter {
                by_selectors: Some(selectors(0)),
                ..Default::default()
            },
            &one.id,
        ),
        (
            Filter {
                by_hint: Some("h".to_owned()),
                ..Default::default()
            },
            &two.id,
        ),
        (
            Filter {
                by_downstream: Some(true),
                ..Default::default()
            },
            &two.id,
        ),
    ];
    for (filter, id) in table {
        assert_eq!(list(&mut client, filter).await, [id.as_str()]);
    }
    let table = [
        (
            Filter {
                by_selectors: Some(types::SelectorMatch::default()),
                ..Default::default()
            },
            "malformed selectors filter: empty selector set",
        ),
        (
            Filter {
                by_federates_with: Some(types::FederatesWithMatch::default()),
                ..Default::default()
            },
            "malformed federates with filter: empty trust domain set",
        ),
        (
            Filter {
                by_parent_id: wire_id("spiffe://other.org/a"),
                ..Default::default()
            },
            "malformed parent ID filter: \"spiffe://other.org/a\" is not a member of trust domain \"example.org\"",
        ),
    ];
    for (filter, text) in table {
        let request = ListEntriesRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let refusal = refused(client.list_entries(request).await);
        assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    }
    let request = ListEntriesRequest {
        page_size: 1,
        page_token: "no token".to_owned(),
        ..Default::default()
    };
    let refusal = refused(client.list_entries(request).await);
    assert_eq!(refusal.1, "could not parse token 'no token'");
}

#[tokio::test]
async fn all_entries_in_one_message_are_refused_with_their_count_when_they_do_not_fit() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let fat = |uid| types::Entry {
        hint: "h".repeat(1_024),
        ..entry("/a", PARENT, uid)
    };
    for batch in 0..5 {
        let entries = (0..1_000).map(|uid| fat(batch * 1_000 + uid)).collect();
        let results = create(&mut client, entries).await;
        assert_eq!(status(&results[999].status).0, Code::Ok);
    }
    let refusal = refused(client.list_entries(ListEntriesRequest::default()).await);
    let text = "5000 entries match and do not fit into one message of 4194304 bytes: use page_size";
    assert_eq!(refusal, (Code::ResourceExhausted, text.to_owned()));
    // A page is cut where the message is full, whatever size was asked for.
    let request = ListEntriesRequest {
        page_size: i32::MAX,
        ..Default::default()
    };
    let page = client.list_entries(request).await.unwrap().into_inner();
    assert!(page.entries.len() > 2_000 && page.entries.len() < 5_000);
    let last = page.entries.last().unwrap();
    assert_eq!(page.next_page_token, last.id);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_tells_what_was_done_by_ids() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let fat = |uid| types::Entry {
        hint: "h".repeat(1_024),
        ..entry("/a", PARENT, uid)
    };
    let results = create(&mut client, (0..3_700).map(fat).collect()).await;
    assert!(results.iter().all(|one| status(&one.status).0 == Code::Ok));
    let shown = results[3_499].entry.as_ref().unwrap();
    assert_eq!((shown.id.len(), shown.hint.as_str()), (36, ""));
    let request = GetEntryRequest {
        id: shown.id.clone(),
        output_mask: None,
    };
    let whole = client.get_entry(request).await.unwrap().into_inner();
    assert_eq!(whole.hint.len(), 1_024);
}

#[tokio::test]
async fn a_batch_over_the_limit_is_refused_whole() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let request = BatchCreateEntryRequest {
        entries: vec![types::Entry::default(); MAX_BATCH + 1],
        output_mask: None,
    };
    let revision = world.kv.revision();
    let refusal = refused(client.batch_create_entry(request).await);
    let text = "too many items in one batch: 10001, 10000 are allowed";
    assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    assert_eq!(world.kv.revision(), revision);
}

#[tokio::test]
async fn updates_of_one_entry_in_one_batch_are_applied_in_their_order() {
    let mut world = World::new().await;
    let mut client = client(&mut world).await;
    let made = world.entry(entry("/a", PARENT, 1)).await;
    let change = |hint: usize| types::Entry {
        hint: hint.to_string(),
        ..made.clone()
    };
    let request = BatchUpdateEntryRequest {
        entries: (0..20).map(change).collect(),
        input_mask: None,
        output_mask: None,
    };
    let response = client.batch_update_entry(request).await.unwrap();
    let results = response.into_inner().results;
    for (at, result) in results.iter().enumerate() {
        let entry = result.entry.as_ref().unwrap();
        assert_eq!(entry.hint, at.to_string());
        assert_eq!(entry.revision_number, at as i64 + 1);
    }
}

#[tokio::test]
async fn nothing_is_changed_while_the_store_was_not_confirmed_for_too_long() {
    let mut world = World::with_idle_state().await;
    let mut client = client(&mut world).await;
    world.clock.advance(std::time::Duration::from_secs(61));
    let request = BatchCreateEntryRequest {
        entries: vec![entry("/a", PARENT, 1)],
        output_mask: None,
    };
    let refusal = refused(client.batch_create_entry(request).await);
    let text = "the store has not answered for 61 seconds, try again later";
    assert_eq!(refusal, (Code::Unavailable, text.to_owned()));
}
