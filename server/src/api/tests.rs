//! Who reaches what, over the wire.

use http_body_util::BodyExt as _;
use tonic::Code;
use tonic::transport::Channel;
use tower::{Service as _, ServiceExt as _};
use vane_chassis::clock::Clock as _;
use vane_identity::lifetime::to_unix;
use vane_wire::spire::api::server::bundle::v1::GetBundleRequest;
use vane_wire::spire::api::server::bundle::v1::bundle_client::BundleClient;
use vane_wire::spire::api::server::debug::v1::GetInfoRequest;
use vane_wire::spire::api::server::debug::v1::debug_client::DebugClient;
use vane_wire::spire::api::types;

use super::testing::{World, entry, own, tls_as};
use super::unserved;
use crate::caller::{ADMIN, AGENT, ANY, DOWNSTREAM, LOCAL, METHODS, Method};

/// Calls `path` with an empty message; the status.
async fn call(channel: &mut Channel, path: &str) -> (Code, String) {
    let body = tonic::body::Body::new(http_body_util::Full::from(&[0_u8; 5][..]));
    let request = http::Request::post(format!("http://server{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(body)
        .unwrap();
    let channel = channel.ready().await.unwrap();
    let response = channel.call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let mut found = tonic::Status::from_header_map(&head.headers);
    if found.is_none() {
        let trailers = body.collect().await.unwrap().trailers().cloned();
        found = trailers.and_then(|trailers| tonic::Status::from_header_map(&trailers));
    }
    let status = found.unwrap();
    (status.code(), status.message().to_owned())
}

/// The methods that are answered at once when an empty message comes.
fn methods() -> impl Iterator<Item = Method> {
    let all = METHODS.iter().map(|(path, _)| Method::find(path).unwrap());
    // Those wait for more, or go on for ever.
    all.filter(|method| !method.path.ends_with("/Watch"))
}

fn denied(method: Method) -> (Code, String) {
    let text = format!("authorization denied for method {}", method.path);
    (Code::PermissionDenied, text)
}

#[tokio::test]
async fn without_a_certificate_only_what_is_open_to_everybody_is_reached() {
    let mut world = World::new().await;
    let mut channel = world.anonymous().await;
    for method in methods() {
        let answer = call(&mut channel, method.path).await;
        if method.allowed.only(LOCAL) {
            let text = format!("unknown service {}", method.service());
            assert_eq!(answer, (Code::Unimplemented, text));
        } else if method.allowed.has(ANY) {
            assert_ne!(answer.0, Code::PermissionDenied, "{method:?} {answer:?}");
        } else {
            assert_eq!(answer, denied(method));
        }
    }
}

#[tokio::test]
async fn the_admin_socket_reaches_all_but_what_is_for_agents_and_servers() {
    let mut world = World::new().await;
    let mut channel = world.local().await;
    for method in methods() {
        let answer = call(&mut channel, method.path).await;
        if method.allowed.has(LOCAL | ANY) {
            assert_ne!(answer.0, Code::PermissionDenied, "{method:?} {answer:?}");
            let expected = unserved::find(method.path);
            match expected {
                Some(refusal) => assert_eq!(answer.1, refusal.message()),
                None => assert_ne!(answer.0, Code::Unimplemented, "{method:?} {answer:?}"),
            }
        } else {
            assert_eq!(answer, denied(method));
        }
    }
}

#[tokio::test]
async fn each_role_reaches_its_methods_and_no_others() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    let parent = "spiffe://example.org/spire/server";
    let ops = types::Entry {
        admin: true,
        ..entry("/ops", parent, 1)
    };
    let nested = types::Entry {
        downstream: true,
        ..entry("/nested", parent, 2)
    };
    world.entry(ops).await;
    world.entry(nested).await;
    let by_path = |path: &str| own().with_path(path).unwrap();
    let admin = tls_as(&by_path("/admin"), &world);
    let by_entry = tls_as(&by_path("/ops"), &world);
    let nested = tls_as(&by_path("/nested"), &world);
    let mut channels = vec![
        (ADMIN, world.over(admin).await),
        (ADMIN, world.over(by_entry).await),
        (DOWNSTREAM, world.over(nested).await),
        (AGENT, world.peer(&agent.svid).await),
    ];
    for (role, channel) in &mut channels {
        for method in methods().filter(|method| !method.allowed.only(LOCAL)) {
            let answer = call(channel, method.path).await;
            let reached = method.allowed.has(*role | ANY);
            let was = answer.0 != Code::PermissionDenied && answer.0 != Code::ResourceExhausted;
            assert_eq!(was, reached, "{role:?} {method:?} {answer:?}");
        }
    }
}

#[tokio::test]
async fn what_stands_in_no_table_is_unknown() {
    let mut world = World::new().await;
    let mut channel = world.local().await;
    let unknown = |text: &str| (Code::Unimplemented, text.to_owned());
    let answer = call(&mut channel, "/x.Y/Z").await;
    assert_eq!(answer, unknown("unknown service x.Y"));
    let answer = call(&mut channel, "/vane.sync.v1.Sync/Drop").await;
    let text = "unknown method Drop for service vane.sync.v1.Sync";
    assert_eq!(answer, unknown(text));
}

#[tokio::test]
async fn the_bundle_is_there_for_everybody_with_the_fields_of_the_mask() {
    let mut world = World::new().await;
    let mut client = BundleClient::new(world.anonymous().await);
    let all = client.get_bundle(GetBundleRequest::default()).await;
    let all = all.unwrap().into_inner();
    assert_eq!(all.trust_domain, "example.org");
    assert_eq!((all.sequence_number, all.refresh_hint), (2, 0));
    assert_eq!(
        (all.x509_authorities.len(), all.jwt_authorities.len()),
        (1, 1)
    );
    let key = &all.jwt_authorities[0];
    assert!(key.key_id.len() == 32 && !key.tainted && !key.public_key.is_empty());
    let left = key.expires_at - to_unix(world.clock.now());
    assert!((86_390..=86_400).contains(&left), "{left}");
    let request = GetBundleRequest {
        output_mask: Some(types::BundleMask::default()),
    };
    let masked = client.get_bundle(request).await.unwrap().into_inner();
    assert_eq!(masked.trust_domain, "example.org");
    assert_eq!(
        (masked.sequence_number, masked.x509_authorities.len()),
        (0, 0)
    );
}

#[tokio::test]
async fn debug_counts_what_there_is() {
    let mut world = World::new().await;
    let agent = world.agent().await;
    world.entry(entry("/a", agent.svid.id().as_str(), 1)).await;
    world.clock.advance(std::time::Duration::from_secs(7));
    let mut client = DebugClient::new(world.local().await);
    let info = client
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let counts = (
        info.agents_count,
        info.entries_count,
        info.federated_bundles_count,
        info.uptime,
    );
    assert_eq!(counts, (1, 1, 1, 7));
}
