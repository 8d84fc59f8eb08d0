use std::collections::BTreeSet;

use nix::unistd::getuid;
use tokio_util::sync::DropGuard;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use vane_chassis::builtin::{Section, open_section};
use vane_chassis::clock::System;
use vane_chassis::metrics::Metrics;
use vane_chassis::unix_listener::Socket;
use vane_identity::bundle::Bundle;
use vane_identity::entry::Entry;
use vane_identity::x509_svid::{Certificate, X509Svid};
use vane_wire::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use vane_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use vane_wire::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest, X509svidResponse,
};

use super::*;
use crate::counters::Counters;
use crate::limits::{Bounds, Limits};
use crate::peer::PeerPidfd;
use crate::testing::{Fake, Running, SOON, Session, TTL, connect, entry, soon};
use crate::workload::{Attestors, BUILTINS, Deps, WorkloadAttestor};

mod attested;
mod jwt;

const BOUNDS: crate::jwt::Bounds = crate::jwt::Bounds {
    tokens: 100,
    bytes: 1_000_000,
};

/// An agent's public socket, with this test as the workload.
struct World {
    fake: Fake,
    session: Session,
    bundle: Bundle,
    socket: std::path::PathBuf,
    counters: Counters,
    limits: Limits,
    _running: Running,
    _stop: DropGuard,
}

fn mine() -> String {
    format!("unix:uid:{}", getuid())
}

impl World {
    async fn new(entries: &[Entry]) -> Self {
        Self::of(Fake::new(), entries, SOON).await
    }

    /// One whose callers have `patience`.
    async fn of(fake: Fake, entries: &[Entry], patience: Duration) -> Self {
        let deps = Deps {
            clock: Arc::new(System),
            metrics: Metrics::new("vane_agent", "0"),
        };
        let unix = Section::new("unix", toml::Table::new());
        let unix = open_section(BUILTINS, &unix, &deps).await.unwrap();
        Self::attested(fake, entries, patience, unix).await
    }

    /// One whose callers are attested by `attestor`.
    async fn attested(
        mut fake: Fake,
        entries: &[Entry],
        patience: Duration,
        attestor: Arc<dyn WorkloadAttestor>,
    ) -> Self {
        let mut running = fake.cache();
        let session = fake.session().await;
        let bundle = fake.bundle(false);
        session.bundle(&bundle).await;
        session.change(entries, &[]).await;
        session.in_sync(entries, &bundle).await;
        running.in_sync().await;

        let counters = Counters::default();
        let source = Source {
            unanswered: Unanswered::default(),
            reader: running.reader.clone(),
            attestors: Attestors::new(vec![attestor]),
            clock: Arc::<vane_chassis::clock::Manual>::clone(&fake.clock),
            patience,
            counters: counters.clone(),
            tokens: fake.jwt_cache(&running, BOUNDS),
            foreign_claims: ["shown".to_owned()].into(),
        };
        let socket = fake.dir.path().join("agent.sock");
        let limits = Limits::new(Bounds::for_descriptors(1_024));
        let (admits, stop) = (limits.clone(), CancellationToken::new());
        let listener = UnixListener::bind(
            &Socket {
                path: socket.clone(),
                mode: 0o777,
                group: None,
            },
            move |stream| admit(stream, &admits, PeerPidfd::Prefer),
            stop.clone(),
        );
        let (listener, stopped) = (listener.unwrap(), stop.clone());
        fake.tasks.spawn(async move {
            serve(listener, Arc::new(source), stopped).await.unwrap();
        });
        Self {
            fake,
            session,
            bundle,
            socket,
            counters,
            limits,
            _running: running,
            _stop: stop.drop_guard(),
        }
    }

    fn channel(&self) -> Channel {
        connect(&self.socket)
    }

    fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel())
    }

    async fn x509_svids(&self) -> Streaming<X509svidResponse> {
        let stream = soon(
            self.client()
                .fetch_x509svid(with_header(X509svidRequest {})),
        )
        .await;
        stream.unwrap().into_inner()
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", value);
    request
}

/// How a stream or a call ends before its first message.
async fn refusal<T>(
    call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
) -> Result<(), Status> {
    soon(call).await?.into_inner().message().await.map(drop)
}

async fn next<T>(stream: &mut Streaming<T>) -> T {
    soon(stream.message()).await.unwrap().expect("a message")
}

fn paths(message: &X509svidResponse) -> Vec<String> {
    let path = |id: &str| id.rsplit('/').next().unwrap().to_owned();
    message
        .svids
        .iter()
        .map(|one| path(&one.spiffe_id))
        .collect()
}

/// Proves: WEP-08, WEP-26, WAPI-70.
#[tokio::test]
async fn without_the_security_header_every_rpc_is_refused_before_anything_else() {
    let world = World::new(&[]).await;
    let mut client = world.client();
    let codes = [
        refusal(client.clone().fetch_x509svid(X509svidRequest {})).await,
        refusal(client.clone().fetch_x509_bundles(X509BundlesRequest {})).await,
        refusal(client.clone().fetch_jwt_bundles(JwtBundlesRequest {})).await,
        refusal(client.clone().fetch_witsvid(WitsvidRequest::default())).await,
        refusal(client.clone().fetch_wit_bundles(WitBundlesRequest {})).await,
        client
            .fetch_jwtsvid(JwtsvidRequest::default())
            .await
            .map(drop),
        client
            .validate_jwtsvid(ValidateJwtsvidRequest::default())
            .await
            .map(drop),
    ];
    for refused in codes {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "security header missing from request");
    }
    let unserved = [
        refusal(
            client
                .clone()
                .fetch_witsvid(with_header(WitsvidRequest::default())),
        )
        .await,
        refusal(client.fetch_wit_bundles(with_header(WitBundlesRequest {}))).await,
    ];
    for refused in unserved {
        assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);
    }
}

/// Proves: WEP-24, WAPI-31, WAPI-37, WAPI-56.
#[tokio::test]
async fn a_process_that_no_entry_matches_is_denied() {
    let world = World::new(&[entry("other", "unix:uid:4000000000")]).await;
    let client = world.client();
    let denied = [
        refusal(
            client
                .clone()
                .fetch_x509svid(with_header(X509svidRequest {})),
        )
        .await,
        refusal(
            client
                .clone()
                .fetch_x509_bundles(with_header(X509BundlesRequest {})),
        )
        .await,
        refusal(
            client
                .clone()
                .fetch_jwt_bundles(with_header(JwtBundlesRequest {})),
        )
        .await,
    ];
    for refused in denied {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "no identity issued");
    }
}

/// Proves: WAPI-09, WAPI-20, WAPI-21, WAPI-22, WAPI-33, WAPI-39.
#[tokio::test]
async fn each_message_is_the_whole_state_and_follows_what_happens() {
    let (a, b) = (entry("a", &mine()), entry("b", &mine()));
    let mut world = World::new(&[a.clone(), b]).await;
    let mut stream = world.x509_svids().await;
    let first = next(&mut stream).await;
    assert_eq!(paths(&first), ["a", "b"]);
    for one in &first.svids {
        let chain = vec![Certificate::from_der(&one.x509_svid)];
        assert_eq!(X509Svid::parse(chain).unwrap().id().as_str(), one.spiffe_id);
        assert_eq!(one.bundle, world.bundle.x509_der());
        assert!(!one.x509_svid_key.is_empty());
    }
    assert_eq!(world.fake.batch().await, ["a", "b"]);

    world.fake.clock.advance(TTL.mul_f64(0.6));
    let renewed = next(&mut stream).await;
    assert_eq!(paths(&renewed), ["a", "b"]);
    assert_ne!(renewed.svids[0].x509_svid, first.svids[0].x509_svid);

    world.session.change(&[entry("c", &mine())], &[]).await;
    assert_eq!(paths(&next(&mut stream).await), ["a", "b", "c"]);
    world.session.change(&[], &["b", "c"]).await;
    assert_eq!(paths(&next(&mut stream).await), ["a"]);
    world.session.change(&[], &["a"]).await;
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
    assert_eq!(end.message(), "no identity issued");
}

/// What changes together is one message, and what came together is renewed apart.
///
/// Proves: WAPI-12.
#[tokio::test]
async fn a_mass_of_updates_is_one_message_and_renewals_are_spread() {
    let many: Vec<Entry> = (0..40)
        .map(|n| entry(&format!("e{n:02}"), &mine()))
        .collect();
    let mut world = World::new(&[entry("a", &mine())]).await;
    let mut stream = world.x509_svids().await;
    assert_eq!(paths(&next(&mut stream).await), ["a"]);
    assert_eq!(world.fake.batch().await, ["a"]);
    world.session.change(&many, &[]).await;
    assert_eq!(next(&mut stream).await.svids.len(), 41);
    assert_eq!(world.fake.batch().await.len(), 40);

    // Half of their life is over: about half of them are due.
    world.fake.clock.advance(TTL / 2);
    let renewed = world.fake.batch().await.len();
    assert!((1..41).contains(&renewed), "{renewed} at one instant");
}

/// Proves: WAPI-33.
#[tokio::test]
async fn an_identity_is_taken_back_although_the_next_cannot_be_had() {
    let mut world = World::new(&[entry("a", &mine())]).await;
    let mut stream = world.x509_svids().await;
    assert_eq!(paths(&next(&mut stream).await), ["a"]);
    assert_eq!(world.fake.batch().await, ["a"]);
    world.fake.refuse("b", true);
    world.session.change(&[entry("b", &mine())], &["a"]).await;
    let end = soon(stream.message()).await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
}

/// Proves: WAPI-29, WAPI-35, WAPI-53.
#[tokio::test]
async fn bundles_follow_their_changes_and_hints_are_told_once() {
    let (mut old, mut new) = (entry("b", &mine()), entry("a", &mine()));
    (old.hint, new.hint) = ("web".to_owned(), "web".to_owned());
    new.created_at = 8;
    let world = World::new(&[old, new]).await;
    let mut svids = world.x509_svids().await;
    assert_eq!(
        paths(&next(&mut svids).await),
        ["b"],
        "the older entry has the hint"
    );

    let mut client = world.client();
    let x509 = client.fetch_x509_bundles(with_header(X509BundlesRequest {}));
    let mut x509 = soon(x509).await.unwrap().into_inner();
    let own = |message: &vane_wire::workload::X509BundlesResponse| {
        message.bundles["spiffe://example.org"].clone()
    };
    assert_eq!(own(&next(&mut x509).await), world.bundle.x509_der());
    let jwt = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {}));
    let message = next(soon(jwt).await.unwrap().get_mut()).await;
    assert_eq!(message.bundles["spiffe://example.org"], r#"{"keys":[]}"#);

    let mut bundle = world.bundle.clone();
    bundle
        .x509_authorities
        .extend(Fake::new().bundle(false).x509_authorities);
    world.session.bundle(&bundle).await;
    assert_eq!(own(&next(&mut x509).await), bundle.x509_der());
    assert_eq!(next(&mut svids).await.svids[0].bundle, bundle.x509_der());
}

/// Proves: WEP-22.
#[tokio::test]
async fn who_waits_for_an_svid_that_cannot_be_had_is_told_so_in_time() {
    let fake = Fake::new();
    fake.refuse("a", true);
    let patience = Duration::from_millis(50);
    let world = World::of(fake, &[entry("a", &mine())], patience).await;
    let waited = refusal(
        world
            .client()
            .fetch_x509svid(with_header(X509svidRequest {})),
    )
    .await;
    assert_eq!(waited.unwrap_err().code(), Code::Unavailable);
    world.fake.refuse("a", false);
    world.fake.clock.advance(Duration::from_secs(60));
    let mut stream = world.x509_svids().await;
    assert_eq!(paths(&next(&mut stream).await), ["a"]);
}

/// Proves: WAPI-08.
#[tokio::test]
async fn ten_thousand_streams_come_and_go_and_leave_nothing() {
    let world = World::new(&[entry("a", &mine())]).await;
    for _ in 0..100 {
        let mut client = world.client();
        for _ in 0..100 {
            let stream = client.fetch_x509svid(with_header(X509svidRequest {}));
            next(soon(stream).await.unwrap().get_mut()).await;
        }
    }
    let gone = async {
        while world.counters.streams.get() > 0 || world.limits.connections() > 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}

#[tokio::test]
async fn a_stream_over_the_limit_of_its_connection_is_refused_and_the_others_stay() {
    let world = World::new(&[entry("a", &mine())]).await;
    let client = world.client();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let stream = client
            .clone()
            .fetch_x509svid(with_header(X509svidRequest {}))
            .await;
        let mut stream = stream.unwrap().into_inner();
        next(&mut stream).await;
        streams.push(stream);
    }
    let over = refusal(
        client
            .clone()
            .fetch_x509svid(with_header(X509svidRequest {})),
    )
    .await;
    assert_eq!(over.unwrap_err().code(), Code::ResourceExhausted);
    world.session.change(&[entry("b", &mine())], &[]).await;
    for stream in &mut streams {
        assert_eq!(paths(&next(stream).await), ["a", "b"]);
    }
}

/// Proves: WEP-10, WEP-29, WEP-30, WEP-31.
#[tokio::test]
async fn health_and_reflection_answer_without_the_header_and_sds_is_there_by_name() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let world = World::new(&[]).await;
    let mut health = HealthClient::new(world.channel());
    let check = HealthCheckRequest::default();
    let status = soon(health.check(check)).await.unwrap().into_inner().status;
    assert_eq!(
        status,
        tonic_health::pb::health_check_response::ServingStatus::Serving as i32
    );

    let mut sds = SecretDiscoveryServiceClient::new(world.channel());
    let refused = soon(sds.fetch_secrets(DiscoveryRequest::default())).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unimplemented);

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(world.channel());
    let answers = reflection.server_reflection_info(tokio_stream::iter([ask]));
    let answer = next(soon(answers).await.unwrap().get_mut()).await;
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: BTreeSet<&str> = list.service.iter().map(|one| one.name.as_str()).collect();
    for name in ["SpiffeWorkloadAPI", "grpc.health.v1.Health"] {
        assert!(names.contains(name), "{names:?}");
    }
}
