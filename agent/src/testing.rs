//! A server for tests: a Unix socket whose Watch streams the test speaks itself, and which
//! signs whatever is asked.

mod ca;
mod session;
mod spire;

mod jwt;

mod served;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use vane_chassis::backoff::Policy;
use vane_chassis::clock::{Manual, Watched};
use vane_chassis::tasks::TaskSet;
use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::entry::{Entry, EntryId};
use vane_identity::id::TrustDomain;
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::x509_svid::Certificate;
use vane_wire::spire::api::server::bundle::v1::bundle_server::BundleServer;
use vane_wire::spire::api::server::entry::v1::entry_server::EntryServer;
use vane_wire::spire::api::server::svid::v1::svid_server::SvidServer;
use vane_wire::vane::sync::v1::sync_server::SyncServer;

use crate::cache::{Cache, CacheError, Deps, Reader};
use crate::counters::Counters;
use crate::obtain::Anew;
use crate::own_svid::OwnSvid;
use crate::sealed::Restored;

use ca::Ca;
pub(crate) use jwt::JWT_TTL;
use jwt::JwtSigner;
use served::Served;
pub(crate) use session::Session;
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
