//! The server's JWT-SVIDs, as an agent and an administrator get them.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use prost::Message as _;
use tokio::process::Command;
use tonic::Code;
use vane_chassis::clock::{Clock, System};
use vane_identity::bundle::Bundle;
use vane_identity::jwt_svid::{JwtError, JwtSvid, Verified};
use vane_tests::admin::{Admin, entry};
use vane_tests::process::{program, within};
use vane_tests::remote::{Node, local};
use vane_tests::world::{Options, World, spiffe_id};
use vane_wire::spire::api::server::svid::v1::{NewJwtsvidRequest, NewJwtsvidResponse};
use vane_wire::spire::api::types;

const NEW: &str = "/spire.api.server.svid.v1.SVID/NewJWTSVID";
/// How often the story of the rotation asks.
const SAMPLES: Duration = Duration::from_millis(100);

/// A node with one entry.
async fn node(world: &World, admin: &Admin) -> (Node, String) {
    let token = admin.token().await;
    let node = Node::attest(local(world.port()), &token, &admin.bundle().await).await;
    let wanted = types::Entry {
        hint: "internal".to_owned(),
        ..entry(&spiffe_id("/web"), &node.id, &["unix:uid:1"])
    };
    let id = admin.create(wanted).await;
    (node, id)
}

async fn token(node: &Node, entry_id: &str) -> types::Jwtsvid {
    let request = NewJwtsvidRequest {
        entry_id: entry_id.to_owned(),
        audience: vec!["db".to_owned(), "cache".to_owned()],
    };
    let message = request.encode_to_vec().into();
    let mut answer = node.raw.call(NEW, vec![message]).await;
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
    let answer = NewJwtsvidResponse::decode(answer.messages.remove(0)).unwrap();
    answer.svid.unwrap()
}

/// The bundle as whoever is given its JWK Set reads it.
async fn published(admin: &Admin) -> Bundle {
    let bundle = Bundle::try_from(&admin.bundle().await).unwrap();
    let document = bundle.to_jwks().unwrap();
    Bundle::from_jwks(bundle.trust_domain, &document).unwrap()
}

fn verify(token: &str, bundle: &Bundle) -> Result<Verified, JwtError> {
    JwtSvid::verify(token, "cache", |_| Some(bundle), System.now())
}

fn key_ids(bundle: &Bundle) -> BTreeSet<String> {
    let keys = bundle.jwt_authorities.iter();
    keys.map(|key| key.key_id.clone()).collect()
}

/// A token of a node's entry verifies against the published key set; other nodes and nobody
/// get none; a killed server goes on with the same key.
///
/// Proves: JWT-01, JWT-23, JWT-34, JWT-36.
#[tokio::test]
async fn a_node_gets_tokens_for_its_entries_that_verify_against_the_published_keys() {
    let mut world = World::start().await;
    let admin = world.admin().await;
    let (node, entry_id) = node(&world, &admin).await;
    let svid = token(&node, &entry_id).await;
    let verified = verify(&svid.token, &published(&admin).await).unwrap();
    assert_eq!(verified.svid.id().as_str(), spiffe_id("/web"));
    assert_eq!(verified.svid.audience(), ["db", "cache"]);
    assert_eq!(svid.expires_at - svid.issued_at, 300);
    assert_eq!(
        svid.hint, "",
        "as SPIRE's server: the agent knows its entries"
    );
    let log = std::fs::read_to_string(world.path("server/audit.jsonl")).unwrap();
    let (input, signature) = svid.token.rsplit_once('.').unwrap();
    assert!(log.contains(input), "what was signed is in the log");
    assert!(!log.contains(signature) && !world.server_log().contains(signature));

    world.kill_server().await;
    world.restart_server().await;
    let admin = world.admin().await;
    let bundle = published(&admin).await;
    assert!(verify(&svid.token, &bundle).is_ok(), "after kill -9");
    assert_eq!(key_ids(&bundle).len(), 1, "it goes on with its key");
}

/// The key rotates under a node that asks all the time: each key is published before a token
/// names it, and what the one before signed stays valid to its end.
///
/// Proves: JWT-37.
#[tokio::test]
async fn the_key_rotates_and_no_token_loses_its_time() {
    let world = World::with(Options::default().server("ca_ttl = \"20s\"")).await;
    let admin = world.admin().await;
    let (node, entry_id) = node(&world, &admin).await;
    let first = token(&node, &entry_id).await;
    let mut known = key_ids(&published(&admin).await);
    let rotated = async {
        let mut samples = tokio::time::interval(SAMPLES);
        loop {
            samples.tick().await;
            let svid = token(&node, &entry_id).await;
            let bundle = published(&admin).await;
            let verified = verify(&svid.token, &bundle).unwrap();
            let key_id = verified.svid.key_id().to_owned();
            assert!(known.contains(&key_id), "signed before it was published");
            known.extend(key_ids(&bundle));
            let old = verify(&first.token, &bundle).unwrap();
            if old.svid.key_id() != key_id {
                return bundle;
            }
        }
    };
    let bundle = within("another key", rotated).await;
    assert!(key_ids(&bundle).len() >= 2);
}

/// Proves: JWT-22.
#[tokio::test]
async fn an_administrator_mints_a_token_on_the_command_line() {
    let world = World::start().await;
    let admin = world.admin().await;
    let bundle = published(&admin).await;
    let socket = world.admin_socket();
    let vane = async |more: &[&str]| {
        let fixed = [
            "svid",
            "mint",
            "--jwt",
            "--spiffe-id",
            "spiffe://example.org/ops",
        ];
        let ended = Command::new(program("vane-test-cli"))
            .args(fixed)
            .arg("--socket-path")
            .arg(&socket)
            .args(more)
            .output()
            .await
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ended.status.code(), text(ended.stdout), text(ended.stderr))
    };
    let (code, out, err) = vane(&["--audience", "cache", "--ttl", "1m"]).await;
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let read = verify(out.trim_end(), &bundle).unwrap().svid;
    assert_eq!(read.id().as_str(), "spiffe://example.org/ops");
    assert_eq!(read.expires_at() - read.issued_at(), 60);

    let file = world.path("ops.jwt");
    let path = file.to_str().unwrap();
    let (code, out, _) = vane(&["--audience", "db", "--audience", "cache", "--write", path]).await;
    assert_eq!(
        (code, out),
        (Some(0), format!("JWT-SVID written to {path}\n"))
    );
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        verify(&written, &bundle).unwrap().svid.audience(),
        ["db", "cache"]
    );
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let (code, out, _) = vane(&["--audience", "cache", "-o", "json"]).await;
    assert_eq!(code, Some(0));
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let token = answer["svid"]["token"].as_str().unwrap();
    let svid = verify(token, &bundle).unwrap().svid;
    assert_eq!(answer["svid"]["expires_at"], svid.expires_at().to_string());

    let (code, out, err) = vane(&["--audience", "cache", "--ttl", "48h"]).await;
    assert_eq!(code, Some(0));
    assert!(err.contains("ends before its --ttl"), "{err}");
    assert!(verify(out.trim_end(), &bundle).is_ok());
    assert_eq!(vane(&[]).await.0, Some(2), "an audience is needed");
    assert_eq!(vane(&["--audience", ""]).await.0, Some(1));
}
