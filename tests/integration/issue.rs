//! An entry becomes an identity in a process, by push.

use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tonic::Code;
use vane_chassis::clock::{Clock, System};
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_tests::admin::entry;
use vane_tests::remote::{local, nobody};
use vane_tests::workload::{ids, verify};
use vane_tests::world::{Options, World, own_selector, spiffe_id};

fn monotonic() -> Instant {
    System.monotonic()
}

/// Every interval that the configuration offers is an hour, so that nothing but push can carry
/// the change.
///
/// Proves: WAPI-06, WAPI-10, WAPI-11, WAPI-20, WAPI-21, WAPI-22, WAPI-31, WAPI-33, WEP-24.
#[tokio::test]
async fn an_entry_reaches_an_open_stream_in_less_than_a_second_and_so_does_its_deletion() {
    let hours = Options::default()
        .server("ca_ttl = \"24h\"")
        .server("default_x509_svid_ttl = \"2h\"")
        .server("agent_ttl = \"2h\"");
    let world = World::with(hours).await;
    let agent = world.agent("agent").await;
    let (admin, workload) = (world.admin().await, agent.workload().await);
    let own = own_selector();

    let refused = workload.watch().await.unwrap().next().await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::PermissionDenied, "no identity issued")
    );

    admin
        .create(entry(&spiffe_id("/first"), &agent.id, &[&own]))
        .await;
    let mut stream = workload.served().await;
    let first = stream
        .until(|ids| ids == [spiffe_id("/first")])
        .await
        .unwrap();
    verify(&first, System.now());

    let sent = monotonic();
    let second = admin
        .create(entry(&spiffe_id("/second"), &agent.id, &[&own]))
        .await;
    let message = stream
        .until(|ids| ids.contains(&spiffe_id("/second")))
        .await
        .unwrap();
    assert!(
        monotonic() - sent < Duration::from_secs(1),
        "took {:?}",
        monotonic() - sent
    );
    assert_eq!(
        message.svids.len(),
        2,
        "a message is a complete state: {:?}",
        ids(&message)
    );
    verify(&message, System.now());

    let sent = monotonic();
    admin.delete(&second).await;
    stream
        .until(|ids| ids == [spiffe_id("/first")])
        .await
        .unwrap();
    assert!(
        monotonic() - sent < Duration::from_secs(1),
        "took {:?}",
        monotonic() - sent
    );
}

/// Proves: WAPI-33.
#[tokio::test]
async fn a_stream_whose_last_identity_is_deleted_ends_with_permission_denied() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let (admin, workload) = (world.admin().await, agent.workload().await);
    let only = admin
        .create(entry(&spiffe_id("/only"), &agent.id, &[&own_selector()]))
        .await;
    let mut stream = workload.served().await;
    stream.until(|ids| ids.len() == 1).await.unwrap();
    admin.delete(&only).await;
    let end = loop {
        if let Err(status) = stream.next().await {
            break status;
        }
    };
    assert_eq!(
        (end.code(), end.message()),
        (Code::PermissionDenied, "no identity issued")
    );
}

/// Proves: WAPI-05.
#[tokio::test]
async fn an_entry_is_served_by_the_agent_that_is_its_parent_and_by_no_other() {
    let world = World::start().await;
    let (one, two) = (world.agent("one").await, world.agent("two").await);
    let admin = world.admin().await;
    admin
        .create(entry(&spiffe_id("/child"), &one.id, &[&own_selector()]))
        .await;
    let mut served = one.workload().await.served().await;
    served
        .until(|ids| ids == [spiffe_id("/child")])
        .await
        .unwrap();
    let other = two
        .workload()
        .await
        .watch()
        .await
        .unwrap()
        .next()
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
}

/// From the registration to the certificate that the process holds.
///
/// Proves: ID-20.
#[tokio::test]
async fn an_id_of_2048_bytes_goes_all_the_way() {
    let world = World::start().await;
    let agent = world.agent("agent").await;
    let admin = world.admin().await;
    let head = spiffe_id("/");
    let longest = format!("{head}{}", "x".repeat(2048 - head.len()));
    assert_eq!(longest.len(), 2048);

    let too_long = entry(&format!("{longest}x"), &agent.id, &[&own_selector()]);
    let refused = admin.create_all(vec![too_long]).await;
    let code = refused[0].status.as_ref().unwrap().code;
    assert_eq!(Code::from(code), Code::InvalidArgument, "{refused:?}");

    admin
        .create(entry(&longest, &agent.id, &[&own_selector()]))
        .await;
    let mut stream = agent.workload().await.served().await;
    let message = stream.until(|ids| ids == [longest.clone()]).await.unwrap();
    let svids = verify(&message, System.now());
    assert_eq!(svids[0].svid().id().as_str(), longest);
}

/// Proves: X509-14.
#[tokio::test]
async fn the_server_shows_a_leaf_of_its_own_and_no_authority() {
    let world = World::start().await;
    let authorities = world.admin().await.bundle().await.x509_authorities;
    let tcp = TcpStream::connect(local(world.port())).await.unwrap();
    let tls = vane_chassis::mtls::connect(tcp, nobody()).await.unwrap();
    let (_, session) = tls.get_ref();
    let shown = session.peer_certificates().unwrap();
    let certificate = |der: &[u8]| Certificate::from_der(der);
    // A certificate that may sign is no SVID's leaf.
    let svid = X509Svid::parse(shown.iter().map(|der| certificate(der)).collect()).unwrap();
    assert_eq!(svid.id().as_str(), spiffe_id("/spire/server"));
    for der in shown {
        assert!(authorities.iter().all(|authority| authority.asn1 != **der));
    }
}
