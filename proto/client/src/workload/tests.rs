use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, IsCa, KeyPair, SanType};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Response, async_trait};
use vane_chassis::tasks::TaskSet;
use vane_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use vane_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, WitBundlesRequest, WitBundlesResponse, WitsvidRequest,
    WitsvidResponse, X509BundlesRequest, X509BundlesResponse,
};

use super::*;

const SOON: Duration = Duration::from_secs(20);

/// What a stream of the fake says, in order, before it ends in good order.
type Script = Vec<Result<X509svidResponse, Status>>;

/// A Workload API that follows scripts, one a stream; without one it answers UNAVAILABLE.
#[derive(Clone, Default)]
struct Fake {
    scripts: Arc<Mutex<VecDeque<Script>>>,
    headers: Arc<Mutex<Vec<bool>>>,
}

type Said<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

#[async_trait]
impl SpiffeWorkloadApi for Fake {
    type FetchX509SVIDStream = Said<X509svidResponse>;
    type FetchX509BundlesStream = Said<X509BundlesResponse>;
    type FetchJWTBundlesStream = Said<JwtBundlesResponse>;
    type FetchWITSVIDStream = Said<WitsvidResponse>;
    type FetchWITBundlesStream = Said<WitBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let values = request.metadata().get_all(SECURITY_HEADER).iter();
        let values: Vec<_> = values.map(|value| value.as_encoded_bytes()).collect();
        self.headers.lock().unwrap().push(values == [b"true"]);
        let script = self.scripts.lock().unwrap().pop_front();
        let mut script = script.ok_or_else(|| Status::unavailable("no script"))?;
        // An error before any message is an answer without a stream.
        if let Some(Err(_)) = script.first() {
            script.remove(0)?;
        }
        Ok(Response::new(tokio_stream::iter(script)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(
        &self,
        _: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_witsvid(
        &self,
        _: Request<WitsvidRequest>,
    ) -> Result<Response<Self::FetchWITSVIDStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_wit_bundles(
        &self,
        _: Request<WitBundlesRequest>,
    ) -> Result<Response<Self::FetchWITBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A fake at a socket, with the client of it.
struct World {
    dir: tempfile::TempDir,
    fake: Fake,
    contexts: X509Contexts,
    tasks: TaskSet,
}

impl World {
    fn new(scripts: Vec<Script>) -> Self {
        let world = Self::without_server(scripts);
        world.serve();
        world
    }

    fn without_server(scripts: Vec<Script>) -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let fake = Fake {
            scripts: Arc::new(Mutex::new(scripts.into())),
            headers: Arc::default(),
        };
        let ms = Duration::from_millis;
        let policy = Policy::new(ms(50), ms(200), 2.0).unwrap();
        let endpoint = Endpoint::Unix(socket(dir.path()));
        let contexts = X509Contexts::new(endpoint, policy, fastrand::Rng::with_seed(1));
        let tasks = TaskSet::new("fake");
        Self {
            dir,
            fake,
            contexts,
            tasks,
        }
    }

    fn serve(&self) {
        let listener = UnixListener::bind(socket(self.dir.path())).unwrap();
        let service = SpiffeWorkloadApiServer::new(self.fake.clone());
        self.tasks.spawn(async move {
            Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
    }

    async fn next(&mut self) -> Result<Change, Status> {
        tokio::time::timeout(SOON, self.contexts.next())
            .await
            .unwrap()
    }

    async fn context(&mut self) -> X509Context {
        match self.next().await {
            Ok(Change::Context(context)) => *context,
            other => panic!("{other:?}"),
        }
    }

    fn calls(&self) -> usize {
        self.fake.headers.lock().unwrap().len()
    }
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("agent.sock")
}

fn certificate(id: &str) -> (Vec<u8>, Vec<u8>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let leaf = params.self_signed(&key).unwrap();
    (leaf.der().to_vec(), key.serialize_der())
}

/// A message with an identity for each of `paths`, `path` or `path#hint`.
fn message(paths: &[&str]) -> X509svidResponse {
    let svids = paths.iter().map(|path| {
        let (path, hint) = path.split_once('#').unwrap_or((path, ""));
        let id = format!("spiffe://example.org/{path}");
        let (leaf, key) = certificate(&id);
        let mut svid = workload::X509svid::default();
        svid.bundle = leaf.clone().into();
        svid.x509_svid = leaf.into();
        svid.x509_svid_key = key;
        svid.spiffe_id = id;
        svid.hint = hint.to_owned();
        svid
    });
    X509svidResponse {
        svids: svids.collect(),
        ..X509svidResponse::default()
    }
}

fn with_federated(mut message: X509svidResponse, name: &str) -> X509svidResponse {
    let (ca, _) = certificate("spiffe://other.org/ca");
    message.federated_bundles.insert(name.to_owned(), ca);
    message
}

fn paths(context: &X509Context) -> Vec<&str> {
    context
        .svids
        .iter()
        .map(|one| one.svid.id().path())
        .collect()
}

/// Proves: WEP-13, WEP-14.
#[test]
fn an_explicit_address_beats_the_environment_and_there_is_no_default() {
    let unix = |path: &str| Ok(Endpoint::Unix(path.into()));
    assert_eq!(address(Some("unix:///a"), Some("unix:///b")), unix("/a"));
    assert_eq!(address(None, Some("unix:///b")), unix("/b"));
    assert_eq!(address(None, None), Err(AddressError::Nothing));
    assert!(address(Some("/a"), Some("unix:///b")).is_err());
}

/// Proves: WEP-07, WEP-32, WAPI-07, WAPI-13, WAPI-14, WAPI-38.
#[tokio::test]
async fn a_message_replaces_all_before_it_and_a_stream_that_ended_is_opened_again_at_once() {
    let first = with_federated(message(&["a", "b"]), "spiffe://other.org");
    let scripts = vec![
        vec![Ok(first), Ok(message(&["b"]))],
        vec![Ok(message(&["c"]))],
    ];
    let mut world = World::new(scripts);
    let context = world.context().await;
    let other = TrustDomain::parse("other.org").unwrap();
    assert_eq!(paths(&context), ["/a", "/b"]);
    assert!(context.bundle(&other).is_some());
    let context = world.context().await;
    assert_eq!(paths(&context), ["/b"]);
    assert!(
        context.bundle(&other).is_none(),
        "what is not named is gone"
    );
    let end = world.next().await;
    assert!(
        matches!(
            end,
            Ok(Change::Interrupted {
                delay: Duration::ZERO,
                ..
            })
        ),
        "{end:?}"
    );
    assert_eq!(paths(&world.context().await), ["/c"]);
    assert_eq!(*world.fake.headers.lock().unwrap(), [true, true]);
}

/// Proves: WEP-21, WEP-27.
#[tokio::test]
async fn what_waiting_cannot_cure_is_told_and_not_tried_again() {
    for status in [Status::invalid_argument("x"), Status::unimplemented("x")] {
        let code = status.code();
        let mut world = World::new(vec![vec![Err(status)], vec![Ok(message(&["a"]))]]);
        assert_eq!(world.next().await.unwrap_err().code(), code);
        assert_eq!(world.calls(), 1);
    }
}

/// Proves: WEP-25, WAPI-32, WAPI-33.
#[tokio::test]
async fn a_denial_takes_everything_back_until_there_is_an_identity_again() {
    let denied = || Err(Status::permission_denied("no identity issued"));
    let scripts = vec![
        vec![Ok(message(&["a"])), denied()],
        vec![denied()],
        vec![Ok(message(&["b"]))],
    ];
    let mut world = World::new(scripts);
    world.context().await;
    for _ in 0..2 {
        assert!(matches!(world.next().await, Ok(Change::Denied(_))));
    }
    assert_eq!(paths(&world.context().await), ["/b"]);
}

/// Proves: WEP-23.
#[tokio::test]
async fn a_socket_that_comes_late_is_found_and_not_hammered() {
    let mut world = World::without_server(vec![vec![Ok(message(&["a"]))]]);
    for _ in 0..4 {
        assert!(matches!(world.next().await, Ok(Change::Interrupted { .. })));
    }
    world.serve();
    assert_eq!(paths(&world.context().await), ["/a"]);
    assert_eq!(world.calls(), 1);
    // The fake answers UNAVAILABLE from here on.
    let mut pauses = Vec::new();
    for _ in 0..40 {
        if let Ok(Change::Interrupted { delay, .. }) = world.next().await {
            pauses.push(delay);
        }
    }
    assert_eq!(pauses[0], Duration::ZERO);
    let mean = pauses.iter().sum::<Duration>() / 40;
    assert!(
        mean > Duration::from_millis(50),
        "less than 20 calls a second: {mean:?}"
    );
}

/// Proves: WAPI-16.
#[tokio::test]
async fn a_message_that_lacks_what_is_mandatory_is_thrown_away_and_the_state_stays() {
    let broken = |edit: fn(&mut workload::X509svid)| {
        let mut message = message(&["x"]);
        edit(&mut message.svids[0]);
        Ok(message)
    };
    let script = vec![
        Ok(X509svidResponse::default()),
        broken(|svid| svid.spiffe_id.clear()),
        broken(|svid| svid.x509_svid.clear()),
        broken(|svid| svid.x509_svid_key.clear()),
        broken(|svid| svid.bundle.clear()),
        broken(|svid| svid.spiffe_id = "spiffe://example.org/y".to_owned()),
        Ok(with_federated(message(&["x"]), "spiffe://Not a name")),
        Ok(message(&["a"])),
    ];
    let count = script.len() - 1;
    let mut world = World::new(vec![script]);
    for _ in 0..count {
        assert!(matches!(world.next().await, Ok(Change::Discarded(_))));
    }
    assert_eq!(paths(&world.context().await), ["/a"]);
    assert_eq!(world.calls(), 1, "it is the same stream");
}

/// Proves: WAPI-30, WAPI-41.
#[tokio::test]
async fn of_identities_with_the_same_hint_the_first_counts() {
    let message = message(&["a", "b#web", "c#web"]);
    let context = X509Context::try_from(message).unwrap();
    assert_eq!(context.default_identity().unwrap().svid.id().path(), "/a");
    assert_eq!(context.by_hint("web").unwrap().svid.id().path(), "/b");
    assert!(context.by_hint("nosuch").is_none());
}
