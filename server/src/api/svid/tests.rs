//! X.509-SVIDs over the wire; tokens are in `tokens`.

mod tokens;

use rcgen::{KeyPair, PublicKeyData as _};
use tonic::transport::Channel;
use tonic::{Code, Status};
use vane_chassis::clock::Clock as _;
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_wire::spire::api::server::entry::v1::BatchDeleteEntryRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::server::svid::v1::svid_client::SvidClient;
use vane_wire::spire::api::server::svid::v1::{
    BatchNewX509svidRequest, MintX509svidRequest, NewDownstreamX509caRequest, NewX509svidParams,
    batch_new_x509svid_response,
};
use vane_wire::spire::api::types;

use crate::api::testing::{Agent, World, csr, csr_for, entry, refused};

type Outcome = batch_new_x509svid_response::Result;

async fn issue(channel: &Channel, params: Vec<(&str, Vec<u8>)>) -> Result<Vec<Outcome>, Status> {
    let params = params.into_iter().map(|(id, csr)| NewX509svidParams {
        entry_id: id.to_owned(),
        csr: csr.into(),
    });
    let request = BatchNewX509svidRequest {
        params: params.collect(),
    };
    let mut client = SvidClient::new(channel.clone());
    let response = client.batch_new_x509svid(request).await?;
    Ok(response.into_inner().results)
}

fn status(outcome: &Outcome) -> (Code, &str) {
    let status = outcome.status.as_ref().unwrap();
    (Code::from(status.code), status.message.as_str())
}

async fn entry_of(world: &mut World, agent: &Agent, path: &str, uid: u32) -> types::Entry {
    world
        .entry(entry(path, agent.svid.id().as_str(), uid))
        .await
}

/// Proves: ID-34.
#[tokio::test]
async fn an_agent_gets_what_the_entry_says_for_the_key_of_its_csr() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let wanted = types::Entry {
        x509_svid_ttl: 60,
        dns_names: vec!["a.example.org".to_owned(), "b.example.org".to_owned()],
        hint: "internal".to_owned(),
        ..entry("/a", agent.svid.id().as_str(), 1)
    };
    let made = world.entry(wanted).await;
    let channel = world.peer(&agent.svid).await;
    let key = KeyPair::generate().unwrap();
    // What else the CSR asks for does not count.
    let csr = csr_for(&key, &["spiffe://example.org/admin"], &["evil.example.org"]);
    let results = issue(&channel, vec![(&made.id, csr)]).await.unwrap();
    assert_eq!(status(&results[0]), (Code::Ok, "OK"));
    let wire = results[0].svid.clone().unwrap();
    // As SPIRE: the agent takes the hint of the entry.
    assert_eq!(wire.hint, "");
    let svid = X509Svid::try_from(&wire).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/a");
    assert_eq!(svid.leaf().spki, key.subject_public_key_info());
    assert!(world.verifies(&svid));
    let left = svid.leaf().validity.not_after;
    let left = left.duration_since(world.clock.now()).unwrap().as_secs();
    assert!((59..=60).contains(&left), "{left}");
    let logged = world.log();
    let line = logged.last().unwrap();
    assert_eq!(line["entry_id"], made.id.as_str());
    assert_eq!(line["caller"], agent.svid.id().as_str());
}

/// Among them: the entry of another agent is not found.
///
/// Proves: ID-34.
#[tokio::test]
async fn each_item_of_a_batch_has_a_status_of_its_own() {
    let mut world = World::new().await;
    let (agent, other) = (world.agent().await, world.agent().await);
    let made = entry_of(&mut world, &agent, "/a", 1).await;
    let foreign = entry_of(&mut world, &other, "/b", 1).await;
    let channel = world.peer(&agent.svid).await;
    let good = csr(&agent.key);
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let params = vec![
        ("", good.clone()),
        (&made.id, Vec::new()),
        ("nope", good.clone()),
        (&foreign.id, good.clone()),
        (&made.id, vec![1, 2, 3]),
        (&made.id, forged),
        (&made.id, good),
    ];
    let results = issue(&channel, params).await.unwrap();
    let not_found = (Code::NotFound, "entry not found or not authorized");
    assert_eq!(
        status(&results[0]),
        (Code::InvalidArgument, "missing entry ID")
    );
    assert_eq!(status(&results[1]), (Code::InvalidArgument, "missing CSR"));
    assert_eq!(status(&results[2]), not_found);
    assert_eq!(status(&results[3]), not_found);
    let (code, text) = status(&results[4]);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("malformed CSR: "), "{text}");
    let (code, text) = status(&results[5]);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("invalid CSR signature: "), "{text}");
    assert_eq!(status(&results[6]), (Code::Ok, "OK"));
    let issued = results.iter().filter(|result| result.svid.is_some());
    assert_eq!(issued.count(), 1);
    let refusal = refused(issue(&channel, Vec::new()).await);
    let text = "missing parameters".to_owned();
    assert_eq!(refusal, (Code::InvalidArgument, text));
}

#[tokio::test]
async fn an_entry_that_was_deleted_or_has_expired_is_not_issued() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let made = entry_of(&mut world, &agent, "/a", 1).await;
    let soon = types::Entry {
        expires_at: vane_identity::lifetime::to_unix(world.clock.now()) + 10,
        ..entry("/b", agent.svid.id().as_str(), 2)
    };
    let soon = world.entry(soon).await;
    let channel = world.peer(&agent.svid).await;
    let both = || {
        vec![
            (made.id.as_str(), csr(&agent.key)),
            (soon.id.as_str(), csr(&agent.key)),
        ]
    };
    let results = issue(&channel, both()).await.unwrap();
    assert!(results.iter().all(|result| status(result).0 == Code::Ok));
    let mut entries = EntryClient::new(world.local().await);
    let ids = vec![made.id.clone()];
    let request = BatchDeleteEntryRequest { ids };
    entries.batch_delete_entry(request).await.unwrap();
    world.clock.advance(std::time::Duration::from_secs(11));
    let results = issue(&channel, both()).await.unwrap();
    assert!(
        results
            .iter()
            .all(|result| status(result).0 == Code::NotFound)
    );
}

#[tokio::test]
async fn more_items_than_the_burst_are_refused_and_a_burst_is_not() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let channel = world.peer(&agent.svid).await;
    let items = |count| vec![("nope", vec![1]); count];
    let (code, text) = refused(issue(&channel, items(1_001)).await);
    assert_eq!(code, Code::ResourceExhausted);
    assert_eq!(
        text,
        "rejecting request due to certificate signing rate limiting: rate limit: 1001 at once, at most 1000 are granted"
    );
    let results = issue(&channel, items(1_000)).await.unwrap();
    assert_eq!(results.len(), 1_000);
    let mut request = tonic::Request::new(BatchNewX509svidRequest {
        params: vec![NewX509svidParams::default(); 1_000],
    });
    request.set_timeout(std::time::Duration::from_secs(1));
    let (code, _) = refused(SvidClient::new(channel).batch_new_x509svid(request).await);
    assert_eq!(code, Code::ResourceExhausted, "two seconds are too long");
}

#[tokio::test]
async fn while_the_store_is_silent_what_was_issued_is_renewed_and_nothing_else() {
    let mut world = World::with_idle_state().await;
    let agent = world.agent_without_following().await;
    let channel = world.peer(&agent.svid).await;
    let known = entry_of_idle(&mut world, &agent, "known", 1).await;
    let fresh = entry_of_idle(&mut world, &agent, "fresh", 2).await;
    let one = |id| vec![(id, csr(&agent.key))];
    let results = issue(&channel, one(known.as_str())).await.unwrap();
    assert_eq!(status(&results[0]).0, Code::Ok);
    world.clock.advance(std::time::Duration::from_secs(61));
    let results = issue(&channel, one(known.as_str())).await.unwrap();
    assert_eq!(status(&results[0]).0, Code::Ok);
    let results = issue(&channel, one(fresh.as_str())).await.unwrap();
    assert_eq!(status(&results[0]).0, Code::Unavailable);
}

#[tokio::test]
async fn an_administrator_mints_what_the_csr_says() {
    let mut world = World::new().await;
    let channel = world.local().await;
    let mut client = SvidClient::new(channel);
    let key = KeyPair::generate().unwrap();
    let csr = csr_for(&key, &["spiffe://example.org/m"], &["m.example.org"]);
    let request = |csr: Vec<u8>, ttl| MintX509svidRequest {
        csr: csr.into(),
        ttl,
    };
    let minted = client.mint_x509svid(request(csr, 30)).await.unwrap();
    let svid = X509Svid::try_from(&minted.into_inner().svid.unwrap()).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://example.org/m");
    assert!(world.verifies(&svid));
    let names = |uris: &[&str], dns: &[&str]| csr_for(&key, uris, dns);
    let own = "spiffe://example.org/m";
    let table = [
        (Vec::new(), 0, "missing CSR"),
        (names(&[own], &[]), -1, "ttl is negative: -1"),
        (names(&[], &[]), 0, "CSR URI SAN is required"),
        (names(&[own, own], &[]), 0, "only one URI SAN is expected"),
        (
            names(&["https://example.org"], &[]),
            0,
            "CSR URI SAN is invalid: scheme is missing or invalid",
        ),
        (
            names(&["spiffe://other.org/m"], &[]),
            0,
            "CSR URI SAN is invalid: \"spiffe://other.org/m\" is not a member of trust domain \"example.org\"",
        ),
        (
            names(&["spiffe://example.org/spire/server"], &[]),
            0,
            "CSR URI SAN is invalid: \"spiffe://example.org/spire/server\" is not a workload in trust domain \"example.org\"; path is in the reserved namespace",
        ),
        (
            names(&[own], &["*.a.org", "b.a.org"]),
            0,
            "CSR DNS name contains a wildcard that covers another non-wildcard name: name \"b.a.org\" overlaps with an existing wildcard name in the list: wildcard overlap",
        ),
    ];
    for (csr, ttl, text) in table {
        let refusal = refused(client.mint_x509svid(request(csr, ttl)).await);
        assert_eq!(refusal, (Code::InvalidArgument, text.to_owned()));
    }
}

/// An entry that hot state gets by hand.
async fn entry_of_idle(world: &mut World, agent: &Agent, id: &str, uid: u32) -> String {
    use vane_identity::entry::{Entry, EntryId};
    use vane_store::kv::Kv as _;
    let wire = types::Entry {
        id: id.to_owned(),
        ..entry("/a", agent.svid.id().as_str(), uid)
    };
    let fresh = || EntryId::parse(id).unwrap();
    let entry: Entry =
        vane_wire::convert::entry::create(&wire, &crate::api::testing::own(), 0, fresh).unwrap();
    let txn = vane_store::tables::entries::creation(&entry);
    world.kv.commit(txn).await.unwrap();
    world.parts.state.pump();
    id.to_owned()
}

/// Proves: X509-09, X509-10, X509-13, X509-15.
#[tokio::test]
async fn a_downstream_server_gets_a_ca_of_spires_shape() {
    let mut world = World::new().await;
    let nested = types::Entry {
        downstream: true,
        x509_svid_ttl: 60,
        ..entry("/nested", "spiffe://example.org/spire/server", 2)
    };
    let nested = world.entry(nested).await;
    let id = crate::api::testing::own().with_path("/nested").unwrap();
    let transport = crate::api::testing::tls_as(&id, &world);
    let mut client = SvidClient::new(world.over(transport).await);
    let key = KeyPair::generate().unwrap();
    let ask = |preferred_ttl| NewDownstreamX509caRequest {
        csr: crate::api::testing::csr(&key).into(),
        preferred_ttl,
    };
    let mut get = async |ttl| {
        let answer = client.new_downstream_x509ca(ask(ttl)).await.unwrap();
        answer.into_inner()
    };
    let answer = get(600).await;
    assert_eq!(answer.ca_cert_chain.len(), 1, "no root is in it");
    let roots = answer.x509_authorities;
    assert_eq!(roots.len(), 1);
    let parse = |der: &[u8]| Certificate::from_der(der);
    let (ca, root) = (parse(&answer.ca_cert_chain[0]), parse(&roots[0]));
    let (info, parent) = (ca.info().unwrap(), root.info().unwrap());
    assert_eq!(info.spiffe_id, Some(crate::api::testing::own().id()));
    assert_eq!(info.authority_key_id, Some(parent.key_id.to_vec()));
    let now = world.clock.now();
    let lasts = info
        .validity
        .not_after
        .duration_since(now)
        .unwrap()
        .as_secs();
    assert!((598..=600).contains(&lasts), "{lasts}");
    vane_authority::x509::check::signature(&ca, &parent.spki).unwrap();
    let has = |part: &[u8]| ca.der().windows(part.len()).any(|found| found == part);
    assert!(has(b"DOWNSTREAM-1"));
    // Basic constraints, critical: a CA without a path length.
    let constraints = [
        0x55, 0x1d, 0x13, 0x01, 0x01, 0xff, 0x04, 0x05, 0x30, 0x03, 0x01, 0x01, 0xff,
    ];
    assert!(has(&constraints));

    for ttl in [0, -1, 100 * 86_400] {
        let longest = parse(&get(ttl).await.ca_cert_chain[0]);
        let end = longest.info().unwrap().validity.not_after;
        assert_eq!(end, parent.validity.not_after, "cut at its parent");
    }
    let logged = world.log().into_iter().rfind(|line| line["type"] == "x509");
    assert_eq!(logged.unwrap()["entry_id"], nested.id.as_str());
    let wrong = NewDownstreamX509caRequest {
        csr: b"no request".as_slice().into(),
        preferred_ttl: 0,
    };
    let (code, text) = refused(client.new_downstream_x509ca(wrong).await);
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.starts_with("malformed CSR"), "{text}");
}
