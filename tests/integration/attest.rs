//! Nodes prove themselves, and SPIRE's agents read their sets.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use tokio::time::{Instant, interval, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use vane_tests::admin::{Admin, entry, id};
use vane_tests::process::within;
use vane_tests::remote::{Node, local};
use vane_tests::world::{Options, World, own_selector, spiffe_id};
use vane_wire::spire::api::server::agent::v1::GetAgentRequest;
use vane_wire::spire::api::server::entry::v1::SyncAuthorizedEntriesRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;

/// A CA for nodes, and a node of it, as files in `dir`.
fn write_pki(dir: &std::path::Path) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "nodes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "one");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    let leaf = params.signed_by(&key, &ca).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    std::fs::write(dir.join("node.pem"), leaf.pem()).unwrap();
    std::fs::write(dir.join("node.key"), key.serialize_pem()).unwrap();
}

async fn shown(admin: &Admin, agent: &str) -> types::Agent {
    let request = GetAgentRequest {
        id: Some(id(agent)),
        output_mask: None,
    };
    admin
        .agents()
        .get_agent(request)
        .await
        .unwrap()
        .into_inner()
}

/// An agent by x509pop is named by its template, matched by its selectors, renews by attesting
/// again, and is gone for good once it is banned.
#[tokio::test]
async fn a_node_with_a_certificate_is_an_agent_until_it_is_banned() {
    let pki = tempfile::tempdir().unwrap();
    write_pki(pki.path());
    let path = |name: &str| format!("{:?}", pki.path().join(name));
    let options = Options {
        server_tables: format!(
            "[[node_attestor]]\ntype = \"x509pop\"\nca_bundle_path = {}\nagent_path_template = \"/x509pop/{{{{ .Subject.CommonName }}}}\"\n",
            path("ca.pem")
        ),
        ..Options::default()
    };
    let world = World::with(options.server("agent_ttl = \"4s\"")).await;
    let attestor = format!(
        "[node_attestor]\ntype = \"x509pop\"\nprivate_key_path = {}\ncertificate_path = {}\n",
        path("node.key"),
        path("node.pem"),
    );
    let mut agent = world.agent_by("agent", &attestor).await;
    assert_eq!(agent.id, spiffe_id("/spire/agent/x509pop/one"));
    let admin = world.admin().await;
    let alias = entry(
        &spiffe_id("/nodes"),
        &spiffe_id("/spire/server"),
        &["x509pop:subject:cn:one"],
    );
    admin.create(alias).await;
    let own = own_selector();
    admin
        .create(entry(&spiffe_id("/web"), &spiffe_id("/nodes"), &[&own]))
        .await;
    let mut stream = agent.workload().await.served().await;
    stream
        .until(|ids| ids == [spiffe_id("/web")])
        .await
        .unwrap();

    let mut serials = std::collections::BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut sampler = interval(Duration::from_millis(100));
    while serials.len() < 4 {
        timeout_at(deadline, sampler.tick()).await.unwrap();
        let agent = shown(&admin, &agent.id).await;
        assert!(agent.can_reattest);
        serials.insert(agent.x509svid_serial_number);
    }
    let log = world.server_log();
    assert!(log.matches("agent attested").count() >= 4 && !log.contains("agent renewed"));

    admin.ban(&agent.id).await.unwrap();
    let code = within("the agent ends", agent.process.ended()).await;
    assert_ne!(code, Some(0));
    assert!(agent.log().contains("it is banned"), "{}", agent.log());
}

/// More than a page, as SPIRE's agents read it: revisions first, bodies on request.
#[tokio::test]
async fn a_set_of_more_than_a_page_is_read_as_spires_agents_do() {
    let world = World::start().await;
    let admin = world.admin().await;
    let token = admin.token().await;
    let agent = Node::attest(local(world.port()), &token, &admin.bundle().await).await;
    let parent = agent.id.clone();
    let of = |n: u32| entry(&spiffe_id(&format!("/w/{n}")), &parent, &["unix:uid:1"]);
    let created = admin.create_all((0..1_100).map(of).collect()).await;
    assert_eq!(created.len(), 1_100);
    let (requests, receiver) = tokio::sync::mpsc::channel(4);
    requests
        .send(SyncAuthorizedEntriesRequest::default())
        .await
        .unwrap();
    let mut client = EntryClient::new(agent.raw.channel());
    let answers = client
        .sync_authorized_entries(ReceiverStream::new(receiver))
        .await;
    let mut answers = answers.unwrap().into_inner();
    let (mut sizes, mut named) = (Vec::new(), Vec::new());
    loop {
        let page = answers.message().await.unwrap().unwrap();
        sizes.push(page.entry_revisions.len());
        named.extend(page.entry_revisions.into_iter().map(|one| one.id));
        if !page.more {
            break;
        }
    }
    assert_eq!(sizes, [500, 500, 100]);
    let request = SyncAuthorizedEntriesRequest {
        output_mask: None,
        ids: named[..500].to_vec(),
    };
    requests.send(request).await.unwrap();
    let page = answers.message().await.unwrap().unwrap();
    assert_eq!((page.entries.len(), page.more), (500, false));
    drop(requests);
    assert!(answers.message().await.unwrap().is_none());
}
