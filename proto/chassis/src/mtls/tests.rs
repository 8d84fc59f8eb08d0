use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::{AlertDescription, ClientConfig, HandshakeKind, NamedGroup, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server};
use vane_identity::x509_svid::{X509Error, serial_decimal};

use super::testing::*;
use super::*;
use crate::tasks::Tasks;

const SOON: Duration = Duration::from_secs(10);

struct Connected {
    server: server::TlsStream<DuplexStream>,
    client: ClientStream<DuplexStream>,
}

impl Connected {
    fn peer(&self) -> Option<PeerSvid> {
        PeerSvid::from_chain(self.server.get_ref().1.peer_certificates()).unwrap()
    }
}

/// What each side says about a handshake that failed.
#[derive(Debug)]
struct Failed {
    server: Option<io::Error>,
    client: Option<io::Error>,
}

impl Failed {
    fn refusal(&self) -> Option<&Refusal> {
        Refusal::find(self.client.as_ref()?)
    }

    /// The alert that the server sent.
    fn alert(&self) -> Option<AlertDescription> {
        match self.client.as_ref()?.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(*alert),
            _ => None,
        }
    }
}

/// Shakes hands and lets the server say one byte, so that the client learns
/// what the server thinks of its certificate.
async fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
) -> Result<Connected, Box<Failed>> {
    let (near, far) = duplex(64 * 1024);
    let server = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok::<_, io::Error>(stream)
    };
    let client = async {
        let mut stream = connect(near, client).await?;
        stream.read_u8().await?;
        Ok::<_, io::Error>(stream)
    };
    match tokio::join!(server, client) {
        (Ok(server), Ok(client)) => Ok(Connected { server, client }),
        (server, client) => Err(Box::new(Failed {
            server: server.err(),
            client: client.err(),
        })),
    }
}

async fn meet(server: &Party, client: &Party) -> Result<Connected, Box<Failed>> {
    shake(
        server_config(server).unwrap(),
        client_config(client).unwrap(),
    )
    .await
}

#[tokio::test]
async fn two_members_of_a_trust_domain_connect_and_know_each_other() {
    let world = World::new();
    let connected = meet(&world.server, &world.client).await.unwrap();
    let (_, tls) = connected.server.get_ref();
    assert_eq!(
        tls.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(tls.alpn_protocol(), Some(&b"h2"[..]));
    let group = tls.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);

    let peer = connected.peer().unwrap();
    assert_eq!(peer.spiffe_id, id(AGENT));
    assert_eq!(peer.not_after, BIRTH + TTL);
    let serial = peer.leaf.info().unwrap().serial;
    assert_eq!(peer.serial, serial_decimal(&serial));
    assert!(peer.serial.bytes().all(|b| b.is_ascii_digit()));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_let_in_as_nobody() {
    let mut world = World::new();
    world.client.identity = Identity::empty();
    let connected = meet(&world.server, &world.client).await.unwrap();
    assert_eq!(connected.peer(), None);
}

#[tokio::test]
async fn a_server_without_a_certificate_refuses_every_handshake() {
    let world = World::new();
    world.server.identity.clear();
    assert!(meet(&world.server, &world.client).await.is_err());
}

#[tokio::test]
async fn a_verified_server_with_another_id_is_refused_by_name() {
    let mut world = World::new();
    let other = "spiffe://td.test/web";
    world.server.identity = identity(&world.ca.issue(other));
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.refusal(), Some(&Refusal::NotAuthorized(id(other))));
    assert!(failed.server.is_some());
}

#[tokio::test]
async fn a_verified_client_that_is_not_welcome_is_told_so() {
    let mut world = World::new();
    world.server.authorizer = only(id("spiffe://td.test/spire/agent/b"));
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::AccessDenied));
}

#[tokio::test]
async fn certificates_are_valid_from_their_birth_to_their_end_and_no_longer() {
    let world = World::new();
    world.clock.set(BIRTH + TTL);
    meet(&world.server, &world.client).await.unwrap();

    world.clock.set(BIRTH + TTL + Duration::from_secs(1));
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    let expired = webpki::Error::CertExpired {
        time: unix(TTL + Duration::from_secs(1)),
        not_after: unix(TTL),
    };
    assert_eq!(
        failed.refusal(),
        Some(&Refusal::Svid(X509Error::Path(expired)))
    );

    let fresh = world.ca.issue_with(&[SERVER], |params| {
        params.not_after = (BIRTH + 2 * TTL).into();
    });
    world.server.identity.swap(&fresh.0, &fresh.1).unwrap();
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::CertificateExpired));
}

fn unix(since: Duration) -> rustls::pki_types::UnixTime {
    rustls::pki_types::UnixTime::since_unix_epoch(since)
}

#[tokio::test]
async fn an_authority_that_is_not_in_the_bundle_vouches_for_nobody() {
    let world = World::new();
    let same_name = Ca::new("td.test");
    let (chain, key) = same_name.issue(AGENT);
    world.client.identity.swap(&chain, &key).unwrap();
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::UnknownCA));

    let (chain, key) = same_name.issue(SERVER);
    world.server.identity.swap(&chain, &key).unwrap();
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert!(
        matches!(failed.refusal(), Some(Refusal::Svid(X509Error::Path(_)))),
        "{failed:?}"
    );
}

/// Proves: WAPI-18.
#[tokio::test]
async fn a_trust_domain_without_a_bundle_is_unknown() {
    let mut world = World::new();
    let foreign = Ca::new("other.test");
    world.server.identity = identity(&foreign.issue("spiffe://other.test/spire/server"));
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    let unknown = Refusal::NoBundle(trust_domain("other.test"));
    assert_eq!(failed.refusal(), Some(&unknown));
}

/// Proves: X509-42, WAPI-17.
#[tokio::test]
async fn a_federated_authority_vouches_for_its_own_trust_domain_only() {
    let world = World::new();
    let foreign = Ca::new("other.test");
    world.server.roots.set(&foreign.bundle());

    let (chain, key) = foreign.issue("spiffe://other.test/web");
    world.client.identity.swap(&chain, &key).unwrap();
    let connected = meet(&world.server, &world.client).await.unwrap();
    assert_eq!(
        connected.peer().unwrap().spiffe_id,
        id("spiffe://other.test/web")
    );

    let (chain, key) = foreign.issue(AGENT);
    world.client.identity.swap(&chain, &key).unwrap();
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::UnknownCA));
}

/// Proves: X509-34, X509-35.
#[tokio::test]
async fn intermediates_are_used_while_valid_and_a_root_that_a_peer_brings_is_not() {
    let world = World::new();
    let use_chain = |(mut chain, key): Svid, more: &Ca| {
        chain.push(more.certificate());
        world.client.identity.swap(&chain, &key).unwrap();
    };
    let between = world.ca.intermediate(|_| {});
    use_chain(between.issue(AGENT), &between);
    let connected = meet(&world.server, &world.client).await.unwrap();
    let peer = connected.peer().unwrap();
    assert_eq!(peer.spiffe_id, id(AGENT));
    assert_eq!(peer.intermediates, [between.certificate()]);

    let expired = world.ca.intermediate(|params| {
        params.not_after = (BIRTH + START - Duration::from_secs(1)).into();
    });
    use_chain(expired.issue(AGENT), &expired);
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::CertificateExpired));

    let brought = Ca::new("td.test");
    use_chain(brought.issue(AGENT), &brought);
    let failed = meet(&world.server, &world.client).await.err().unwrap();
    assert_eq!(failed.alert(), Some(AlertDescription::UnknownCA));
}

/// Proves: X509-05.
#[tokio::test]
async fn a_certificate_that_is_no_svid_is_refused() {
    let world = World::new();
    let ca = &world.ca;
    let web = "spiffe://td.test/web";
    let bad = [
        ca.issue_with(&[], |_| {}),
        ca.issue_with(&[AGENT, web], |_| {}),
        ca.issue_with(&["spiffe://td.test"], |_| {}),
        ca.issue_with(&["https://td.test/web"], |_| {}),
        ca.issue_with(&[web], |params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }),
        ca.issue_with(&[web], |params| {
            params.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign);
        }),
    ];
    for (n, (chain, key)) in bad.iter().enumerate() {
        world.client.identity.swap(chain, key).unwrap();
        let failed = meet(&world.server, &world.client).await.err();
        assert!(failed.unwrap().server.is_some(), "case {n}");
    }
    let (chain, key) = ca.issue_with(&[web], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    world.client.identity.swap(&chain, &key).unwrap();
    assert!(
        meet(&world.server, &world.client).await.is_err(),
        "a server's certificate is no client's"
    );
}

#[tokio::test]
async fn identities_and_bundles_are_swapped_under_running_configurations() {
    let world = World::new();
    let server = server_config(&world.server).unwrap();
    let client = client_config(&world.client).unwrap();
    let meet = || shake(Arc::clone(&server), Arc::clone(&client));
    meet().await.unwrap();

    let next = Ca::new("td.test");
    let (chain, key) = next.issue(SERVER);
    world.server.identity.swap(&chain, &key).unwrap();
    assert!(meet().await.is_err(), "the client does not know the new CA");

    world.client.roots.set(&next.bundle());
    meet().await.unwrap();

    world.server.roots.remove(&trust_domain("td.test"));
    assert!(meet().await.is_err(), "the client's CA is gone");
    world.server.roots.replace([next.bundle()]);
    let (chain, key) = next.issue(AGENT);
    world.client.identity.swap(&chain, &key).unwrap();
    meet().await.unwrap();
}

#[tokio::test]
async fn no_session_is_resumed() {
    let world = World::new();
    let server = server_config(&world.server).unwrap();
    let client = client_config(&world.client).unwrap();
    for _ in 0..3 {
        let connected = shake(Arc::clone(&server), Arc::clone(&client))
            .await
            .unwrap();
        let (_, tls) = connected.client.get_ref();
        assert_eq!(tls.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(tls.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_key_that_does_not_fit_its_certificate_is_refused_and_the_old_pair_stays() {
    let ca = Ca::new("td.test");
    let (chain, key) = ca.issue(AGENT);
    let (_, other_key) = ca.issue(AGENT);
    let identity = Identity::empty();
    let nothing = vane_identity::key::PrivateKey::from_pkcs8(b"nothing".to_vec());
    assert!(matches!(
        identity.swap(&chain, &other_key),
        Err(IdentityError::Mismatch)
    ));
    assert!(matches!(
        identity.swap(&chain, &nothing),
        Err(IdentityError::Key(_))
    ));
    assert!(matches!(
        identity.swap(&[], &key),
        Err(IdentityError::Empty)
    ));
    assert!(identity.is_empty());
    identity.swap(&chain, &key).unwrap();
    assert!(identity.swap(&chain, &other_key).is_err());
    assert!(!identity.is_empty());
}

#[tokio::test]
async fn a_bootstrap_takes_the_wanted_id_from_anybody_but_only_one_leaf() {
    let world = World::new();
    let server = server_config(&world.server).unwrap();
    let bootstrap = Bootstrap::new(id(SERVER));
    let client = bootstrap_config(&bootstrap, &world.client.clock).unwrap();
    let meet = || shake(Arc::clone(&server), Arc::clone(&client));

    let web = world.ca.issue("spiffe://td.test/web");
    world.server.identity.swap(&web.0, &web.1).unwrap();
    let failed = meet().await.err().unwrap();
    assert!(matches!(failed.refusal(), Some(Refusal::NotAuthorized(_))));
    assert_eq!(bootstrap.seen(), None);

    let unknown = Ca::new("td.test");
    let (chain, key) = unknown.issue(SERVER);
    world.server.identity.swap(&chain, &key).unwrap();
    let connected = meet().await.unwrap();
    assert_eq!(connected.peer(), None, "no certificate is presented");
    let seen = bootstrap.seen().unwrap();
    assert_eq!(seen.chain(), chain);
    assert_eq!(seen.leaf_fingerprint().len(), 64);
    assert_eq!(seen.leaf_fingerprint(), seen.top_fingerprint());
    meet().await.unwrap();

    let (chain, key) = unknown.issue(SERVER);
    world.server.identity.swap(&chain, &key).unwrap();
    assert!(meet().await.is_err(), "another leaf than the one seen");
}

#[tokio::test]
async fn accepted_connections_come_with_their_peers_until_stopped() {
    let world = World::new();
    let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address();
    let (acceptor, mut incoming) =
        listener.serve(server_config(&world.server).unwrap(), Limits::default());
    let mut tasks = Tasks::new();
    tasks.spawn("accept", acceptor.run(tasks.token()));

    let client = client_config(&world.client).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let local = tcp.local_addr().unwrap();
    let (connected, accepted) = tokio::join!(connect(tcp, client), incoming.recv());
    let (mut near, mut far) = (connected.unwrap(), accepted.unwrap());
    assert_eq!(far.peer().address, local);
    assert_eq!(far.peer().svid.as_ref().unwrap().spiffe_id, id(AGENT));
    far.write_all(b"hello").await.unwrap();
    far.shutdown().await.unwrap();
    let mut heard = String::new();
    near.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "hello");

    tasks.token().cancel();
    tasks.join(SOON).await.unwrap();
    assert!(incoming.recv().await.is_none());
}

#[tokio::test]
async fn silent_and_senseless_connections_do_not_keep_others_out() {
    let world = World::new();
    let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address();
    let limits = Limits {
        handshakes: 2,
        deadline: Duration::from_millis(100),
    };
    let (acceptor, mut incoming) = listener.serve(server_config(&world.server).unwrap(), limits);
    let mut tasks = Tasks::new();
    tasks.spawn("accept", acceptor.run(tasks.token()));

    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut senseless = TcpStream::connect(address).await.unwrap();
    senseless
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let client = client_config(&world.client).unwrap();
    let both = async { tokio::join!(connect(tcp, client), incoming.recv()) };
    let (connected, accepted) = tokio::time::timeout(SOON, both).await.unwrap();
    connected.unwrap();
    assert!(accepted.unwrap().peer().svid.is_some());
    for mut closed in silent {
        assert_eq!(closed.read(&mut [0; 8]).await.unwrap_or(0), 0);
    }
    drop(incoming);
    tasks.join(SOON).await.unwrap();
}
