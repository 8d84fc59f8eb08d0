//! The server put together: constructions in dependency order, then tasks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::Stream;
use nix::unistd::Gid;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use vane_attest::{VERIFIERS, Verifier};
use vane_authority::authority::{Authority, Deps};
use vane_authority::key_manager;
use vane_authority::log::Log;
use vane_authority::profile::ProfileConfig;
use vane_authority::server_id;
use vane_chassis::backoff::Policy;
use vane_chassis::builtin::{Section, open_section};
use vane_chassis::clock::{Clock, System, Watched};
use vane_chassis::files::{SHARED_RUN_DIR, compat_dir, private_dir, raise_nofile, socket_dir};
use vane_chassis::given::Given;
use vane_chassis::health::Health;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Limits, Party, Roots, TlsListener, anyone, server_config};
use vane_chassis::notify::Notify;
use vane_chassis::ops::Ops;
use vane_chassis::ready::Ready as Readiness;
use vane_chassis::tasks::{TaskError, Tasks};
use vane_chassis::telemetry;
use vane_chassis::unix_listener::{Socket, UnixListener};
use vane_identity::id::TrustDomain;
use vane_store::kv::Kv;
use vane_store::memory::MemoryKv;
use vane_store::observed::Observed;
use vane_store::sled_kv::{SledConfig, SledKv};

use crate::api::{self, Admitted, Connection, Parts, PartsDeps, Places, Services, Settings};
use crate::audit::ledger::Ledger;
use crate::audit::refusals::Refusals;
use crate::config::{COMPAT_SOCKET, Config, Engine, JOIN_TOKEN};
use crate::own_svid::OwnSvid;
use crate::prune::Prune;
use crate::publish::{self, Publish};
use crate::push::Push;
use crate::state::State;
use crate::vitals::Vitals;

#[cfg(test)]
mod tests;

/// So long calls may take to end once the server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// So long tasks may take to end.
const GRACE: Duration = Duration::from_secs(5);
/// Connections to the admin sockets at once.
const ADMIN_CONNECTIONS: usize = 1_024;
/// The waits between two tries to publish the bundle.
const PUBLISH_FIRST_WAIT: Duration = Duration::from_secs(1);
const PUBLISH_LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The names of the sockets that systemd may pass (`FileDescriptorName=`).
const AGENTS: &str = "agents";
const ADMIN: &str = "admin";
const COMPAT: &str = "compat";
const OPS: &str = "ops";
const ADMIN_MODE: u32 = 0o660;
const ADMIN_DIR_MODE: u32 = 0o750;
const SHARED_DIR_MODE: u32 = 0o755;

/// What is known once the server serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where it listens for agents.
    pub server_address: SocketAddr,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
}

/// Runs a server until `stop`, and tells `on_ready` once it serves.
///
/// The listeners stop first; what they stand on (state, authorities) goes on until their calls
/// have ended, so that a change that was stored is acknowledged.
///
/// # Errors
/// What keeps it from starting or from going on, with the way out.
pub async fn run(
    config: Config,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    run_in(Surroundings::default(), config, stop, on_ready).await
}

/// What a process is started with besides its configuration.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Sockets that systemd opened.
    pub(crate) given: Given,
    /// Whom to tell how it goes.
    pub(crate) notify: Notify,
}

/// As [`run`], with what this process was started with.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_in(
    surroundings: Surroundings,
    mut config: Config,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    let Surroundings { mut given, notify } = surroundings;
    config.check()?;
    let descriptors = raise_nofile().context("cannot raise the limit of open files")?;
    let server = &config.server;
    let trust_domain = &server.trust_domain;
    let watched = Watched::new(Arc::new(System));
    let clock: Arc<dyn Clock> = Arc::<Watched>::clone(&watched);
    let metrics = Metrics::new("vane_server", env!("CARGO_PKG_VERSION"));
    metrics.register_process(trust_domain.as_str(), &clock);
    let started = clock.monotonic();
    let readiness = Readiness::new();
    let starting = readiness.register("the store, the authorities and the listeners");
    let health = Health::new(readiness);
    let below = CancellationToken::new();
    let mut ground = Tasks::with_token(below.clone());
    ground.spawn("clock", watched.run(below.clone()));
    serve_ops(&config, &mut given, &metrics, health.clone(), &mut ground).await?;

    let dir = private_dir(&server.data_dir).context("server.data_dir")?;
    let server_id = server_id::load_or_create(&dir)?;
    let store = Observed::new(open_store(&config).await?, Arc::clone(&clock));
    let kv: Arc<dyn Kv> = Arc::<Observed>::clone(&store);
    let log = open_log(&config, &clock)?;
    let key_deps = key_manager::Deps {
        data_dir: server.data_dir.clone(),
    };
    let keys = open_section(key_manager::BUILTINS, &config.key_manager, &key_deps)
        .await
        .context("key_manager")?;
    let deps = Deps {
        clock: Arc::clone(&clock),
        kv: Arc::clone(&kv),
        keys,
        log: Arc::clone(&log),
        server_id: server_id.clone(),
    };
    let authority = Authority::open(&profile(&config), deps)
        .await
        .context("cannot open the signing authorities")?;
    let (ledger, settler) = Ledger::new(Arc::clone(&kv), Arc::clone(&log), &server_id);
    catch_up(&ledger, &config).await?;
    let (refusals, refused) = Refusals::new(Arc::clone(&log), Arc::clone(&clock));
    let state = State::load(Arc::clone(&kv), Arc::clone(&clock), trust_domain.clone()).await?;
    let push = Push::new(Arc::clone(&state), &metrics);
    let own_svid = OwnSvid::open(Arc::clone(&authority), Arc::clone(&clock), trust_domain).await?;
    let roots = Roots::new(state.bundle(trust_domain).map(|bundle| bundle.anchors()));
    let party = Party {
        identity: own_svid.identity(),
        roots: Arc::clone(&roots),
        authorizer: anyone(),
        clock: Arc::clone(&clock),
    };
    let tls = server_config(&party)?;
    let publishers = publishers(&config).await?;
    let vitals = Arc::new(Vitals {
        clock: Arc::clone(&clock),
        started,
        trust_domain: trust_domain.clone(),
        store,
        store_dir: store_dir(&config),
        state: Arc::clone(&state),
        authority: Arc::clone(&authority),
        log: Arc::clone(&log),
        own_svid: own_svid.times(),
        max_staleness: server.max_staleness,
        unpublished: publishers.iter().map(Publish::trouble).collect(),
    });
    vitals.register(&metrics);
    let probed = Arc::clone(&vitals);
    health.attach(move || probed.findings());
    let attestors = attestors(&config, &state).await?;
    let prune = Prune {
        clock: Arc::clone(&clock),
        state: Arc::clone(&state),
        kv: Arc::clone(&kv),
        ledger: ledger.clone(),
        pruned: Prune::counter(&metrics),
        agents_after: server.prune_attested_nodes_expired_for,
    };
    let parts = Parts::new(PartsDeps {
        attestors,
        settings: settings(&config),
        clock,
        kv,
        state: Arc::clone(&state),
        push: Arc::clone(&push),
        authority: Arc::clone(&authority),
        log,
        own_svid: own_svid.chain(),
        vitals,
        ledger: ledger.clone(),
        refusals,
        log_level: telemetry::running(),
        metrics: metrics.clone(),
    });
    let services = Services::new(&parts).await;

    let address = server.address();
    let listener = match given.take_tcp(AGENTS)? {
        Some(listener) => TlsListener::over(listener),
        None => TlsListener::bind(address),
    };
    let listener = listener
        .with_context(|| format!("cannot listen on {address}: is another server running there?"))?;
    let server_address = listener.address();
    let (acceptor, incoming) = listener.serve(tls, Limits::default());
    let places = Places::new(agent_connections(descriptors));
    places.register(&metrics);
    let admin = admin_listeners(&config, &mut given, &stop)?;

    ground.spawn("state", state.clone().run(below.clone()));
    ground.spawn(
        "acknowledgements",
        follow_acks(Arc::clone(&push), Arc::clone(&authority), below.clone()),
    );
    ground.spawn("authorities", authority.run(below.clone()));
    ground.spawn("own SVID", own_svid.run(below.clone()));
    ground.spawn("logged changes", settler.run(below.clone()));
    ground.spawn("refusals", refused.run(below.clone()));
    ground.spawn("expired entries", prune.run(below.clone()));
    for publisher in publishers {
        let (state, stop) = (Arc::clone(&state), below.clone());
        let run = publisher.run(state, trust_domain.clone(), stop);
        ground.spawn("bundle publisher", run);
    }
    ground.spawn(
        "bundle",
        follow_bundle(state, roots, trust_domain.clone(), below.clone()),
    );
    let mut front = Tasks::with_token(stop.clone());
    front.spawn("watchdog", notify.watchdog(stop.clone()));
    front.spawn("ground", end_with(below.clone(), stop.clone()));
    front.spawn("closing", close(push, services.clone(), stop.clone()));
    front.spawn("TLS", acceptor.run(stop.clone()));
    front.spawn(
        "agents",
        serve(services.clone(), api::tls(incoming, places), stop.clone()),
    );
    for listener in admin {
        let incoming = api::local(listener);
        front.spawn(
            "admin socket",
            serve(services.clone(), incoming, stop.clone()),
        );
    }
    services.set_ready(true).await;
    starting.done();
    on_ready(Ready {
        server_address,
        admin_socket: server.socket_path.clone(),
        trust_domain: trust_domain.clone(),
    });
    stop.cancelled().await;
    let served = front.join(DRAIN + GRACE).await;
    below.cancel();
    let stood = ground.join(GRACE).await;
    // When the ground gave way, that is the reason and not that the listeners ended.
    stood.and(served).map_err(|error| match error {
        // The task's own error says it; the name of the task would only stand before it.
        TaskError::Failed { source, .. } => anyhow::Error::from_boxed(source),
        other => other.into(),
    })
}

/// What the listeners stand on has ended by itself; its own error says why.
#[derive(Debug, thiserror::Error)]
#[error("a part of the server ended")]
struct GroundEnded;

/// Ends the listeners when what they stand on ends.
async fn end_with(below: CancellationToken, stop: CancellationToken) -> Result<(), GroundEnded> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = below.cancelled() => Err(GroundEnded),
    }
}

/// Serves one listener until `stop`, then at most [`DRAIN`] longer.
async fn serve<S>(
    services: Services,
    incoming: impl Stream<Item = Result<Connection<S>, Infallible>>,
    stop: CancellationToken,
) -> Result<(), api::ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = services.serve(incoming, stop.clone().cancelled_owned()) => ended,
        () = overdue => {
            tracing::warn!(deadline = ?DRAIN, "calls were still under way at the end");
            Ok(())
        }
    }
}

async fn serve_ops(
    config: &Config,
    given: &mut Given,
    metrics: &Metrics,
    health: Health,
    tasks: &mut Tasks,
) -> anyhow::Result<()> {
    if !config.telemetry.enabled {
        return Ok(());
    }
    let address = config.telemetry.ops_address;
    let ops = match given.take_tcp(OPS)? {
        Some(listener) => Ops::over(listener, metrics.clone(), health),
        None => Ops::bind(address, metrics.clone(), health).await,
    };
    let ops = ops.with_context(|| format!("cannot listen on telemetry.ops_address {address}"))?;
    tasks.spawn("ops", ops.run(tasks.token()));
    Ok(())
}

/// Four fifths of the descriptors: the rest is for the store, the log and the admin sockets.
fn agent_connections(descriptors: u64) -> usize {
    usize::try_from(descriptors / 5 * 4).unwrap_or(usize::MAX)
}

/// Where the store has its files, when it has some.
fn store_dir(config: &Config) -> Option<PathBuf> {
    let dir = config.server.data_dir.join("store");
    (config.store.engine != Engine::Memory).then_some(dir)
}

/// The methods of node attestation; join tokens are always among them (SPIRE.md trap 14).
async fn attestors(config: &Config, state: &Arc<State>) -> anyhow::Result<Vec<Arc<dyn Verifier>>> {
    let trust_domain = config.server.trust_domain.clone();
    let (state, own) = (Arc::clone(state), trust_domain.clone());
    let deps = vane_attest::Deps {
        trust_domain,
        bundle: Arc::new(move || state.bundle(&own)),
    };
    let mut sections = config.node_attestor.clone();
    if sections.iter().all(|section| section.kind() != JOIN_TOKEN) {
        sections.push(Section::new(JOIN_TOKEN, Default::default()));
    }
    let mut attestors = Vec::new();
    for section in &sections {
        let opened = open_section(VERIFIERS, section, &deps).await;
        attestors.push(opened.context("node_attestor")?);
    }
    Ok(attestors)
}

/// What publishes the bundle of the trust domain.
async fn publishers(config: &Config) -> anyhow::Result<Vec<Publish>> {
    let waits = Policy::new(PUBLISH_FIRST_WAIT, PUBLISH_LONGEST_WAIT, 2.0)?;
    let mut all = Vec::new();
    for section in &config.bundle_publisher {
        let opened = open_section(publish::BUILTINS, section, &()).await;
        all.push(Publish::new(opened.context("bundle_publisher")?, waits));
    }
    Ok(all)
}

async fn open_store(config: &Config) -> anyhow::Result<Arc<dyn Kv>> {
    if config.store.engine == Engine::Memory {
        return Ok(Arc::new(MemoryKv::new()?));
    }
    let disk = SledConfig::new(config.server.data_dir.join("store"));
    // Opening reads and repairs files; a panic of sled's there is caught below it.
    let opened = tokio::task::spawn_blocking(move || SledKv::open(disk)).await?;
    Ok(Arc::new(opened.context("cannot open the store")?))
}

fn open_log(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<Arc<Log>> {
    let path = config.server.data_dir.join(vane_authority::log::FILE);
    let log = Log::open_as(config.log.mode, &path, Arc::clone(clock))?;
    if log.repaired_bytes() > 0 {
        tracing::warn!(
            bytes = log.repaired_bytes(),
            "the log ended in the middle of a line: that line was never acknowledged and is cut off"
        );
    }
    Ok(Arc::new(log))
}

/// Brings into the log what was stored and not logged when the server ended.
async fn catch_up(ledger: &Ledger, config: &Config) -> anyhow::Result<()> {
    let file = config.server.data_dir.join(vane_authority::log::FILE);
    let late = ledger.catch_up(&file).await?;
    if late > 0 {
        tracing::warn!(
            changes = late,
            "the server had ended between storing and logging: the log is caught up"
        );
    }
    Ok(())
}

fn profile(config: &Config) -> ProfileConfig {
    let server = &config.server;
    ProfileConfig {
        trust_domain: server.trust_domain.clone(),
        ca_ttl: server.ca_ttl,
        ca_key_type: server.ca_key_type,
        ca_subject: server.ca_subject.clone(),
        default_x509_svid_ttl: server.default_x509_svid_ttl,
        agent_ttl: server.agent_ttl,
        disable_jwt_svids: server.disable_jwt_svids,
        jwt_key_type: server.jwt_key_type,
        jwt_issuer: server.jwt_issuer.clone(),
        default_jwt_svid_ttl: server.default_jwt_svid_ttl,
    }
}

fn settings(config: &Config) -> Settings {
    let server = &config.server;
    Settings {
        trust_domain: server.trust_domain.clone(),
        admin_ids: server.admin_ids.iter().cloned().collect(),
        max_staleness: server.max_staleness,
        max_renewal_staleness: server.max_renewal_staleness,
        limit_attestation: config.ratelimit.attestation,
        limit_signing: config.ratelimit.signing,
    }
}

fn admin_listeners(
    config: &Config,
    given: &mut Given,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<UnixListener<Admitted>>> {
    let server = &config.server;
    let group = server.admin_gid()?;
    let places = Places::new(ADMIN_CONNECTIONS);
    let mut wanted = vec![(ADMIN, server.socket_path.clone())];
    let dir = server.socket_path.parent();
    if let Some(dir) = dir.filter(|dir| *dir != Path::new("") && !given.has(ADMIN)) {
        admin_dir(dir, group).context("server.socket_path")?;
    }
    if server.compat_socket {
        let path = PathBuf::from(COMPAT_SOCKET);
        if let Some(dir) = path.parent().filter(|_| !given.has(COMPAT)) {
            // It is ours alone, also when it was there before.
            compat_dir(dir, ADMIN_DIR_MODE).context("server.compat_socket")?;
            give(dir, group)?;
        }
        wanted.push((COMPAT, path));
    }
    let open = |(name, path): (&str, PathBuf)| {
        let places = places.clone();
        let admit = move |stream: &UnixStream| places.admit(stream);
        let socket = Socket {
            path,
            mode: ADMIN_MODE,
            group,
        };
        Ok(match given.take_unix(name, &socket.path)? {
            Some(given) => UnixListener::adopt(given, socket.path, admit, stop.clone())?,
            None => UnixListener::bind(&socket, admit, stop.clone())?,
        })
    };
    wanted.into_iter().map(open).collect()
}

/// Makes the directory of the admin socket when it is not there; its group may then enter it.
fn admin_dir(dir: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let is_new = !dir.exists();
    socket_dir(dir, admin_dir_mode(dir))?;
    give(dir, group.filter(|_| is_new))
}

/// Lets a group enter a folder of ours.
fn give(dir: &Path, group: Option<u32>) -> anyhow::Result<()> {
    let Some(group) = group else {
        return Ok(());
    };
    nix::unistd::chown(dir, None, Some(Gid::from_raw(group)))
        .with_context(|| format!("cannot give {} to group {group}", dir.display()))
}

/// The folder that the agent's public socket lies in by default, too, must be open.
fn admin_dir_mode(dir: &Path) -> u32 {
    if dir == Path::new(SHARED_RUN_DIR) {
        SHARED_DIR_MODE
    } else {
        ADMIN_DIR_MODE
    }
}

/// Trusts the clients of the bundle as it changes.
async fn follow_bundle(
    state: Arc<State>,
    roots: Arc<Roots>,
    own: TrustDomain,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut changes = state.bundles_changed();
    loop {
        if let Some(bundle) = state.bundle(&own) {
            roots.set(&bundle.anchors());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Tells the authorities which bundle every connected agent has.
async fn follow_acks(
    push: Arc<Push>,
    authority: Arc<Authority>,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let mut lowest = push.acks().lowest();
    loop {
        authority.set_acks(*lowest.borrow_and_update());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = lowest.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Ends the streams that would else hold the drain up.
async fn close(
    push: Arc<Push>,
    services: Services,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    stop.cancelled().await;
    services.end_health().await;
    push.close();
    Ok(())
}
