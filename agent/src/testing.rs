//! A server for tests: a Unix socket whose Watch streams the test speaks itself, and which
//! signs whatever is asked.

mod jwt;
mod spire;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, SanType,
};
use rustls_pki_types::CertificateSigningRequestDer;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use vane_chassis::backoff::Policy;
use vane_chassis::clock::{Manual, Watched};
use vane_chassis::tasks::TaskSet;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::digest::{Digest, Member};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_identity::key::{KeyType, PrivateKey, key_identifier};
use vane_identity::lifetime::{from_unix, to_unix};
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::bundle::v1::bundle_server::BundleServer;
use vane_wire::spire::api::server::entry::v1::entry_server::EntryServer;
use vane_wire::spire::api::server::svid::v1::svid_server::{Svid, SvidServer};
use vane_wire::spire::api::server::svid::v1::{
    BatchNewWitsvidRequest, BatchNewWitsvidResponse, BatchNewX509svidRequest,
    BatchNewX509svidResponse, MintJwtsvidRequest, MintJwtsvidResponse, MintWitsvidRequest,
    MintWitsvidResponse, MintX509svidRequest, MintX509svidResponse, NewDownstreamX509caRequest,
    NewDownstreamX509caResponse, NewJwtsvidRequest, NewJwtsvidResponse,
    batch_new_x509svid_response,
};
use vane_wire::spire::api::types;
use vane_wire::vane::sync::v1::sync_server::{Sync, SyncServer};
use vane_wire::vane::sync::v1::watch_request::Request as Ask;
use vane_wire::vane::sync::v1::watch_response::Response as Say;
use vane_wire::vane::sync::v1::{Bundles, Delta, Hello, InSync, WatchRequest, WatchResponse};

use crate::cache::{Cache, CacheError, Deps, Reader};
use crate::counters::Counters;
use crate::obtain::Anew;
use crate::own_svid::OwnSvid;
use crate::sealed::Restored;

pub(crate) use jwt::JWT_TTL;
use jwt::JwtSigner;
use spire::Spire;

/// No step of a test takes so long.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// How long the fake's SVIDs live.
pub(crate) const TTL: Duration = Duration::from_secs(600);

pub(crate) fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

/// An entry `id` of the ID `/<id>` for processes with `selector`.
pub(crate) fn entry(id: &str, selector: &str) -> Entry {
    Entry {
        id: EntryId::parse(id).unwrap(),
        spiffe_id: own().with_path(&format!("/{id}")).unwrap(),
        parent_id: own().with_path("/spire/agent/x").unwrap(),
        selectors: [selector.parse().unwrap()].into_iter().collect(),
        x509_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        jwt_svid_ttl: 0,
        hint: String::new(),
        created_at: 7,
        additional_attributes: None,
    }
}

/// An SVID of the agent that nobody looks at.
pub(crate) fn own_svid() -> Arc<OwnSvid> {
    Arc::new(OwnSvid {
        id: own().with_path("/spire/agent/x").unwrap(),
        chain: Vec::new(),
        key: PrivateKey::from_pkcs8(Vec::new()),
        received_at: SystemTime::UNIX_EPOCH,
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH,
        reattestable: false,
    })
}

/// The end of a Watch stream that the test holds.
pub(crate) struct Session {
    pub(crate) hello: Hello,
    pub(crate) requests: Streaming<WatchRequest>,
    answers: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Session {
    pub(crate) async fn say(&self, response: Say) {
        let response = WatchResponse {
            response: Some(response),
        };
        self.answers.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn bundle(&self, bundle: &Bundle) {
        self.say(Say::Bundles(Bundles {
            bundles: vec![bundle.into()],
            removed: Vec::new(),
            bundle_revision: 1,
            full: false,
            last: true,
        }))
        .await;
    }

    pub(crate) async fn change(&self, upserts: &[Entry], removed: &[&str]) {
        self.say(Say::Delta(Delta {
            revision: 1,
            upserts: upserts.iter().map(types::Entry::from).collect(),
            removed: removed.iter().map(|id| (*id).to_owned()).collect(),
        }))
        .await;
    }

    /// Closes the resume of an agent that holds `entries` and `bundle`.
    pub(crate) async fn in_sync(&self, entries: &[Entry], bundle: &Bundle) {
        let member =
            |one: &Entry| Member::of_entry(one.id.as_str(), one.revision_number, one.created_at);
        let set: Digest = entries.iter().map(member).collect();
        let bundles: Digest = [Member::of_bundle(bundle)].into_iter().collect();
        self.say(Say::InSync(InSync {
            revision: 1,
            set_digest: set.to_bytes().to_vec().into(),
            epoch: vec![1; 16].into(),
            bundle_digest: bundles.to_bytes().to_vec().into(),
        }))
        .await;
    }

    /// Ends the stream: in good order, or with `status`.
    pub(crate) async fn end(self, status: Option<Status>) {
        if let Some(status) = status {
            self.answers.send(Err(status)).await.unwrap();
        }
    }
}

/// The server.
pub(crate) struct Fake {
    socket: PathBuf,
    ca: Arc<Ca>,
    sessions: mpsc::Receiver<Session>,
    batches: mpsc::UnboundedReceiver<Vec<String>>,
    tokens: mpsc::UnboundedReceiver<String>,
    jwt: JwtSigner,
    refused: Arc<Mutex<HashSet<String>>>,
    /// By how much the server's clock is ahead of the agent's, in seconds.
    pub(crate) ahead: Arc<AtomicI64>,
    pub(crate) spire: Spire,
    pub(crate) anew: Arc<Anew>,
    pub(crate) clock: Arc<Manual>,
    pub(crate) dir: TempDir,
    pub(crate) tasks: TaskSet,
    stop: CancellationToken,
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

#[derive(Clone)]
struct Served {
    ca: Arc<Ca>,
    sessions: mpsc::Sender<Session>,
    batches: mpsc::UnboundedSender<Vec<String>>,
    tokens: mpsc::UnboundedSender<String>,
    jwt: JwtSigner,
    refused: Arc<Mutex<HashSet<String>>>,
    ahead: Arc<AtomicI64>,
    spire: Spire,
    clock: Arc<Manual>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("server.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let (session_sender, sessions) = mpsc::channel(8);
        let (batch_sender, batches) = mpsc::unbounded_channel();
        let (token_sender, tokens) = mpsc::unbounded_channel();
        let jwt = JwtSigner::new();
        let (ca, refused) = (Arc::new(Ca::new()), Arc::default());
        let clock = Arc::new(Manual::starting_now());
        let ahead = Arc::<AtomicI64>::default();
        let spire = Spire::default();
        let served = Served {
            ca: Arc::clone(&ca),
            sessions: session_sender,
            batches: batch_sender,
            tokens: token_sender,
            jwt: jwt.clone(),
            refused: Arc::clone(&refused),
            ahead: Arc::clone(&ahead),
            spire: spire.clone(),
            clock: Arc::clone(&clock),
        };
        let served_spire = spire.clone();
        let tasks = TaskSet::new("fake");
        tasks.spawn(async move {
            let server = Server::builder()
                .add_service(SyncServer::new(served.clone()))
                .add_service(EntryServer::new(spire.clone()))
                .add_service(BundleServer::new(spire))
                .add_service(SvidServer::new(served));
            server.serve_with_incoming(listener).await.unwrap();
        });
        Self {
            socket,
            ca,
            sessions,
            batches,
            tokens,
            jwt,
            refused,
            ahead,
            spire: served_spire,
            anew: Arc::default(),
            clock,
            dir,
            tasks,
            stop: CancellationToken::new(),
        }
    }

    /// The own bundle; tainted or not.
    pub(crate) fn bundle(&self, tainted: bool) -> Bundle {
        let mut bundle = Bundle::empty(own());
        let authority = X509Authority {
            certificate: self.ca.certificate.clone(),
            tainted,
        };
        bundle.x509_authorities = vec![authority];
        bundle.sequence_number = 1 + u64::from(tainted);
        bundle
    }

    /// A server that cannot push, with the own bundle, in pages of two.
    pub(crate) fn spire() -> Self {
        let fake = Self::new();
        let own = (&fake.bundle(false)).into();
        let mut holds = fake.spire.holds();
        (holds.is_spire, holds.page, holds.bundles) = (true, 2, vec![own]);
        drop(holds);
        fake
    }

    /// A cache that connects here, running.
    pub(crate) fn cache(&self) -> Running {
        self.cache_of(None, None)
    }

    /// One that begins with what was sealed, or may serve for so long without its server.
    pub(crate) fn cache_of(&self, restored: Option<Restored>, grace: Option<Duration>) -> Running {
        let socket = self.socket.clone();
        let (own_svid, generation) = watch::channel(Some(own_svid()));
        let ms = Duration::from_millis;
        let watched = Watched::new(Arc::<Manual>::clone(&self.clock));
        let watch = Arc::clone(&watched).run(self.stop.clone());
        self.tasks.spawn(async move {
            let _ = watch.await;
        });
        let deps = Deps {
            clock: watched,
            connect: Box::new(move || connect(&socket)),
            anew: Arc::clone(&self.anew),
            own_svid: generation,
            backoff: Policy::new(ms(1), ms(5), 2.0).unwrap(),
            key_type: KeyType::EcP256,
            prefetch: 1_000,
            sync_interval: ms(20),
            counters: Counters::default(),
            sealer: None,
            offline_grace: grace,
        };
        let (mut cache, reader, synced) = Cache::new(deps, own());
        if let Some(restored) = restored {
            cache = cache.restore(restored);
        }
        let (ended_sender, ended) = mpsc::channel(1);
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _ = ended_sender.send(cache.run(stop).await).await;
        });
        Running {
            reader,
            synced,
            ended,
            own_svid,
        }
    }

    /// A leaf for what `csr` asks.
    pub(crate) fn sign(&self, csr: &[u8]) -> Certificate {
        let now = vane_chassis::clock::Clock::now(&*self.clock);
        Certificate::from_der(&self.ca.sign(csr, now))
    }

    /// The next Watch stream.
    pub(crate) async fn session(&mut self) -> Session {
        soon(self.sessions.recv()).await.unwrap()
    }

    /// The entries of the next batch.
    pub(crate) async fn batch(&mut self) -> Vec<String> {
        soon(self.batches.recv()).await.unwrap()
    }

    /// Whether no batch was asked for that [`Fake::batch`] has not told.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.batches.try_recv().is_err()
    }

    /// Refuses to sign for this entry, or does so again. `server` stands for all tokens and
    /// new streams: it is not there.
    pub(crate) fn refuse(&self, id: &str, refuse: bool) {
        let mut refused = self.refused.lock().unwrap();
        if refuse {
            refused.insert(id.to_owned());
        } else {
            refused.remove(id);
        }
    }
}

/// A cache that runs.
pub(crate) struct Running {
    pub(crate) reader: Reader,
    pub(crate) synced: watch::Receiver<bool>,
    pub(crate) ended: mpsc::Receiver<Result<(), CacheError>>,
    pub(crate) own_svid: watch::Sender<Option<Arc<OwnSvid>>>,
}

impl Running {
    pub(crate) async fn in_sync(&mut self) {
        soon(self.synced.wait_for(|synced| *synced)).await.unwrap();
    }
}

/// The outcome of `future`, which has [`SOON`].
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it happens soon")
}

/// A channel to a Unix socket that connects when it is used.
pub(crate) fn connect(socket: &std::path::Path) -> Channel {
    let address = format!("unix://{}", socket.display());
    Endpoint::from_shared(address).unwrap().connect_lazy()
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key_id = key_identifier(key.public_key_raw());
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: Certificate::from_der(certificate.der()),
            issuer: Issuer::new(params, key),
        }
    }

    /// A leaf for what `csr` asks.
    fn sign(&self, csr: &[u8], now: SystemTime) -> Vec<u8> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
        request.params.not_before = now.into();
        request.params.not_after = (now + TTL).into();
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.use_authority_key_identifier_extension = true;
        request.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

#[tonic::async_trait]
impl Sync for Served {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if self.spire.holds().is_spire {
            return Err(Status::unimplemented("unknown service vane.sync.v1.Sync"));
        }
        if self.refused.lock().unwrap().contains("server") {
            return Err(Status::unavailable("server is initializing"));
        }
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.request);
        let Some(Ask::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (answers, receiver) = mpsc::channel(64);
        let session = Session {
            hello,
            requests,
            answers,
        };
        self.sessions
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl Svid for Served {
    async fn batch_new_x509svid(
        &self,
        request: Request<BatchNewX509svidRequest>,
    ) -> Result<Response<BatchNewX509svidResponse>, Status> {
        let now = vane_chassis::clock::Clock::now(&*self.clock);
        let now = from_unix(to_unix(now) + self.ahead.load(Ordering::Relaxed));
        let params = request.into_inner().params;
        let refused = self.refused.lock().unwrap().clone();
        let result = |one: &vane_wire::spire::api::server::svid::v1::NewX509svidParams| {
            if refused.contains(&one.entry_id) {
                return batch_new_x509svid_response::Result {
                    status: Some(types::Status {
                        code: 5,
                        message: "entry not found or not authorized".into(),
                    }),
                    svid: None,
                };
            }
            let leaf = self.ca.sign(&one.csr, now);
            batch_new_x509svid_response::Result {
                status: Some(vane_wire::status::ok()),
                svid: Some(types::X509svid {
                    cert_chain: vec![leaf.into()],
                    ..types::X509svid::default()
                }),
            }
        };
        let results = params.iter().map(result).collect();
        let ids = params.iter().map(|one| one.entry_id.clone()).collect();
        let _ = self.batches.send(ids);
        Ok(Response::new(BatchNewX509svidResponse { results }))
    }

    async fn mint_x509svid(
        &self,
        _: Request<MintX509svidRequest>,
    ) -> Result<Response<MintX509svidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mint_jwtsvid(
        &self,
        _: Request<MintJwtsvidRequest>,
    ) -> Result<Response<MintJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn mint_witsvid(
        &self,
        _: Request<MintWitsvidRequest>,
    ) -> Result<Response<MintWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn new_jwtsvid(
        &self,
        request: Request<NewJwtsvidRequest>,
    ) -> Result<Response<NewJwtsvidResponse>, Status> {
        self.sign_jwt(request.into_inner()).map(Response::new)
    }

    async fn batch_new_witsvid(
        &self,
        _: Request<BatchNewWitsvidRequest>,
    ) -> Result<Response<BatchNewWitsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn new_downstream_x509ca(
        &self,
        _: Request<NewDownstreamX509caRequest>,
    ) -> Result<Response<NewDownstreamX509caResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
