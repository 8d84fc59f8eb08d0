//! All services behind the guard, over real HTTP/2 in memory, on a store in memory.

use std::collections::HashSet;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;
use vane_attest::{VERIFIERS, Verifier};
use vane_authority::authority::{Authority, Deps};
use vane_authority::issue::X509Request;
use vane_authority::key_manager;
use vane_authority::log::Log;
use vane_authority::profile::{ProfileConfig, SvidKind};
use vane_chassis::builtin::{Section, open_section};
use vane_chassis::clock::{Clock, Manual, Watched};
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Peer, PeerSvid};
use vane_chassis::tasks::Tasks;
use vane_chassis::telemetry::{Level, LogLevel};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PublicKey;
use vane_identity::x509_svid::{Certificate, Role, X509Svid, serial_decimal};
use vane_store::kv::Kv;
use vane_store::memory::MemoryKv;
use vane_store::observed::Observed;
use vane_store::tables::agents;
use vane_wire::record::AgentRecord;
use vane_wire::spire::api::server::agent::v1::agent_client::AgentClient;
use vane_wire::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use vane_wire::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_response,
};
use vane_wire::spire::api::server::entry::v1::BatchCreateEntryRequest;
use vane_wire::spire::api::server::entry::v1::entry_client::EntryClient;
use vane_wire::spire::api::types;

use super::connection::Connection;
use super::{Parts, PartsDeps, Services, Settings};
use crate::audit::ledger::Ledger;
use crate::audit::refusals::Refusals;
use crate::caller::Transport;
use crate::push::Push;
use crate::state::State;
use crate::vitals::{OwnTimes, Vitals};

pub(super) const DEFAULT_TTL: Duration = Duration::from_secs(3_600);

/// A server without sockets.
pub(super) struct World {
    pub(super) parts: Arc<Parts>,
    pub(super) kv: Arc<MemoryKv>,
    pub(super) clock: Arc<Manual>,
    services: Services,
    tasks: Tasks,
    dir: TempDir,
}

/// A key with its certificate.
pub(super) struct Agent {
    pub(super) key: KeyPair,
    pub(super) svid: X509Svid,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(super) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::followed(Self::idle(change, profile()).await)
    }

    /// A server without JWT-SVIDs.
    pub(super) async fn without_tokens() -> Self {
        let profile = ProfileConfig {
            disable_jwt_svids: true,
            ..profile()
        };
        Self::followed(Self::idle(|_| {}, profile).await)
    }

    fn followed(mut world: Self) -> Self {
        let (state, stop) = (Arc::clone(&world.parts.state), world.tasks.token());
        world.tasks.spawn("state", state.run(stop));
        world
    }

    /// A server whose hot state stays as it was at the start.
    pub(super) async fn with_idle_state() -> Self {
        Self::idle(|_| {}, profile()).await
    }

    /// A server with further methods of node attestation.
    pub(super) async fn attesting(section: Section) -> Self {
        Self::followed(Self::idle_attesting(|_| {}, profile(), vec![section]).await)
    }

    async fn idle(change: impl FnOnce(&mut Settings), profile: ProfileConfig) -> Self {
        Self::idle_attesting(change, profile, Vec::new()).await
    }

    async fn idle_attesting(
        change: impl FnOnce(&mut Settings),
        profile: ProfileConfig,
        sections: Vec<Section>,
    ) -> Self {
        let mut settings = settings();
        change(&mut settings);
        let dir = tempfile::tempdir().unwrap();
        let manual = Arc::new(Manual::starting_now());
        let watched = Watched::new(Arc::<Manual>::clone(&manual));
        let clock: Arc<dyn Clock> = Arc::<Watched>::clone(&watched);
        let memory = Arc::new(MemoryKv::new().unwrap());
        let kv: Arc<dyn Kv> = Arc::<MemoryKv>::clone(&memory);
        let log = Arc::new(Log::open(&dir.path().join("log"), Arc::clone(&clock)).unwrap());
        let key_deps = key_manager::Deps {
            data_dir: dir.path().to_owned(),
        };
        let section = Section::new("memory", Default::default());
        let keys = open_section(key_manager::BUILTINS, &section, &key_deps);
        let deps = Deps {
            clock: Arc::clone(&clock),
            kv: Arc::clone(&kv),
            keys: keys.await.unwrap(),
            log: Arc::clone(&log),
            server_id: "server".to_owned(),
        };
        let authority = Authority::open(&profile, deps).await.unwrap();
        let state = State::load(Arc::clone(&kv), Arc::clone(&clock), own()).await;
        let state = state.unwrap();
        let metrics = Metrics::new("vane_server", "test");
        let attestors = attestors(&state, sections).await;
        let store = Observed::new(kv, Arc::clone(&clock));
        let kv: Arc<dyn Kv> = Arc::<Observed>::clone(&store);
        let times = OwnTimes {
            not_after: clock.now() + DEFAULT_TTL,
            due: clock.now() + DEFAULT_TTL / 2,
        };
        let vitals = Arc::new(Vitals {
            clock: Arc::clone(&clock),
            started: clock.monotonic(),
            trust_domain: own(),
            store,
            store_dir: None,
            state: Arc::clone(&state),
            authority: Arc::clone(&authority),
            log: Arc::clone(&log),
            own_svid: watch::channel(times).1,
            max_staleness: settings.max_staleness,
            unpublished: Vec::new(),
        });
        let (ledger, _) = Ledger::new(Arc::clone(&kv), Arc::clone(&log), "server");
        let (refusals, writer) = Refusals::new(Arc::clone(&log), Arc::clone(&clock));
        let parts = Parts::new(PartsDeps {
            attestors,
            vitals,
            ledger,
            refusals,
            settings,
            clock,
            kv,
            push: Push::new(Arc::clone(&state), &metrics),
            state,
            authority,
            log,
            own_svid: watch::channel(Arc::from([])).1,
            log_level: Level::detached(LogLevel::Info),
            metrics,
        });
        let services = Services::new(&parts).await;
        services.set_ready(true).await;
        let mut tasks = Tasks::new();
        tasks.spawn("clock", watched.run(tasks.token()));
        tasks.spawn("refusals", writer.run(tasks.token()));
        Self {
            parts,
            kv: memory,
            clock: manual,
            services,
            tasks,
            dir,
        }
    }

    /// A connection that came over `transport`.
    pub(super) async fn over(&mut self, transport: Transport) -> Channel {
        let (theirs, ours) = tokio::io::duplex(64 * 1024);
        let connection = Connection::in_memory(ours, transport);
        // A listener that ends would end its connections.
        let incoming = stream::once(ready(Ok(connection))).chain(stream::pending());
        let stop = self.tasks.token().cancelled_owned();
        let served = self.services.clone().serve(incoming, stop);
        self.tasks.spawn("connection", served);
        let mut theirs = Some(TokioIo::new(theirs));
        let connector = service_fn(move |_| {
            let stream = theirs.take();
            async move { stream.ok_or_else(|| std::io::Error::other("connected once")) }
        });
        let channel = Endpoint::from_static("http://server");
        channel.connect_with_connector(connector).await.unwrap()
    }

    /// A connection to the admin socket.
    pub(super) async fn local(&mut self) -> Channel {
        self.over(Transport::Local {
            uid: 0,
            gid: 0,
            pid: Some(1),
        })
        .await
    }

    /// A TLS connection without a certificate.
    pub(super) async fn anonymous(&mut self) -> Channel {
        self.over(tls(None)).await
    }

    /// A TLS connection with `svid`.
    pub(super) async fn peer(&mut self, svid: &X509Svid) -> Channel {
        self.over(tls(Some(svid))).await
    }

    pub(super) async fn token(&mut self, ttl: i32) -> String {
        let mut client = AgentClient::new(self.local().await);
        let request = CreateJoinTokenRequest {
            ttl,
            ..Default::default()
        };
        let token = client.create_join_token(request).await.unwrap();
        token.into_inner().value
    }

    /// An agent that joined with a token of its own.
    pub(super) async fn agent(&mut self) -> Agent {
        let token = self.token(600).await;
        let key = KeyPair::generate().unwrap();
        let svid = self.attest(&token, &key).await.unwrap();
        Agent { key, svid }
    }

    pub(super) async fn attest(&mut self, token: &str, key: &KeyPair) -> Result<X509Svid, Status> {
        let mut client = AgentClient::new(self.anonymous().await);
        attest(&mut client, attestation("join_token", token, csr(key))).await
    }

    /// An agent that is in the store, and in hot state by hand.
    pub(super) async fn agent_without_following(&mut self) -> Agent {
        let key = KeyPair::generate().unwrap();
        let id = own().with_path("/spire/agent/join_token/idle").unwrap();
        let public = PublicKey::from_spki(&key.subject_public_key_info());
        let request = X509Request {
            kind: SvidKind::Agent,
            spiffe_id: id.clone(),
            public_key: public,
            ttl: Duration::ZERO,
            caller: "test".to_owned(),
            entry_id: None,
        };
        let mut issued = self.parts.authority.issue_x509(vec![request]).await;
        let svid = issued.remove(0).unwrap();
        let record = AgentRecord {
            serial: serial_decimal(&svid.leaf().serial),
            ..crate::state::tests::record_of(&id, Default::default())
        };
        self.kv.commit(agents::put(None, &record)).await.unwrap();
        self.parts.state.pump();
        Agent { key, svid }
    }

    /// Creates one entry and returns it.
    pub(super) async fn entry(&mut self, entry: types::Entry) -> types::Entry {
        let mut client = EntryClient::new(self.local().await);
        let request = BatchCreateEntryRequest {
            entries: vec![entry],
            output_mask: None,
        };
        let response = client.batch_create_entry(request).await.unwrap();
        let result = response.into_inner().results.remove(0);
        assert_eq!(result.status.unwrap().code, 0);
        result.entry.unwrap()
    }

    /// The lines of the log so far.
    pub(super) fn log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        let lines = text.lines();
        lines.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Whether the bundle of this server verifies `svid` now.
    pub(super) fn verifies(&self, svid: &X509Svid) -> bool {
        let bundle = self.parts.state.bundle(&own()).unwrap();
        let now = self.clock.now();
        bundle
            .anchors()
            .verify(svid.clone(), Role::Client, now)
            .is_ok()
    }
}

async fn attestors(state: &Arc<State>, mut sections: Vec<Section>) -> Vec<Arc<dyn Verifier>> {
    let state = Arc::clone(state);
    let deps = vane_attest::Deps {
        trust_domain: own(),
        bundle: Arc::new(move || state.bundle(&own())),
    };
    sections.push(Section::new("join_token", Default::default()));
    let mut attestors = Vec::new();
    for section in sections {
        attestors.push(open_section(VERIFIERS, &section, &deps).await.unwrap());
    }
    attestors
}

pub(super) fn own() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn profile() -> ProfileConfig {
    ProfileConfig::new(own())
}

fn settings() -> Settings {
    let admin = own().with_path("/admin").unwrap();
    Settings {
        trust_domain: own(),
        admin_ids: HashSet::from([admin]),
        max_staleness: Duration::from_secs(60),
        max_renewal_staleness: Duration::from_secs(3_600),
        limit_attestation: true,
        limit_signing: true,
    }
}

/// TLS from one address, with the certificate of `svid`.
pub(super) fn tls(svid: Option<&X509Svid>) -> Transport {
    let svid = svid.map(|svid| {
        Arc::new(PeerSvid {
            spiffe_id: svid.id().clone(),
            serial: serial_decimal(&svid.leaf().serial),
            not_after: svid.leaf().validity.not_after,
            leaf: svid.chain()[0].clone(),
            intermediates: Vec::new(),
        })
    });
    Transport::Tls(Peer {
        address: "192.0.2.1:7".parse().unwrap(),
        svid,
    })
}

/// TLS with a certificate of any ID, serial 1.
pub(super) fn tls_as(id: &SpiffeId, world: &World) -> Transport {
    Transport::Tls(Peer {
        address: "192.0.2.1:7".parse().unwrap(),
        svid: Some(Arc::new(PeerSvid {
            spiffe_id: id.clone(),
            serial: "1".to_owned(),
            not_after: world.clock.now() + DEFAULT_TTL,
            leaf: Certificate::from_der(&[]),
            intermediates: Vec::new(),
        })),
    })
}

/// A CSR that asks for nothing.
pub(super) fn csr(key: &KeyPair) -> Vec<u8> {
    csr_for(key, &[], &[])
}

/// A CSR that asks for URI and DNS names.
pub(super) fn csr_for(key: &KeyPair, uris: &[&str], dns_names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uris = uris
        .iter()
        .map(|&uri| SanType::URI(uri.try_into().unwrap()));
    let names = dns_names.iter();
    let names = names.map(|&name| SanType::DnsName(name.try_into().unwrap()));
    params.subject_alt_names = uris.chain(names).collect();
    params.serialize_request(key).unwrap().der().to_vec()
}

pub(super) fn attestation(method: &str, payload: &str, csr: Vec<u8>) -> AttestAgentRequest {
    AttestAgentRequest {
        step: Some(Step::Params(Params {
            data: Some(types::AttestationData {
                r#type: method.to_owned(),
                payload: payload.as_bytes().to_vec(),
            }),
            params: Some(AgentX509svidParams { csr: csr.into() }),
        })),
    }
}

/// Attests, and reads the certificate.
pub(super) async fn attest(
    client: &mut AgentClient<Channel>,
    request: AttestAgentRequest,
) -> Result<X509Svid, Status> {
    let stream = client.attest_agent(tokio_stream::once(request)).await?;
    let mut stream = stream.into_inner();
    let answer = stream.message().await?.unwrap();
    let Some(attest_agent_response::Step::Result(result)) = answer.step else {
        panic!("a challenge");
    };
    assert!(!result.reattestable);
    assert!(stream.message().await?.is_none(), "one answer");
    Ok(X509Svid::try_from(&result.svid.unwrap()).unwrap())
}

pub(super) fn wire_id(id: &str) -> Option<types::Spiffeid> {
    Some((&SpiffeId::parse(id).unwrap()).into())
}

/// An entry as a client writes it.
pub(super) fn entry(path: &str, parent: &str, uid: u32) -> types::Entry {
    types::Entry {
        spiffe_id: wire_id(&format!("spiffe://example.org{path}")),
        parent_id: wire_id(parent),
        selectors: vec![types::Selector {
            r#type: "unix".to_owned(),
            value: format!("uid:{uid}"),
        }],
        ..Default::default()
    }
}

/// Code and text of a refusal.
pub(super) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>) -> (Code, String) {
    let status = answer.unwrap_err();
    (status.code(), status.message().to_owned())
}
