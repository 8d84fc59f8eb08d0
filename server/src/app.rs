//! The server put together: constructions in dependency order, then tasks.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use vane_authority::authority::{Authority, Deps};
use vane_authority::key_manager;
use vane_authority::log::Log;
use vane_authority::profile::ProfileConfig;
use vane_authority::server_id;
use vane_authority::subject::SubjectConfig;
use vane_chassis::builtin::open_section;
use vane_chassis::clock::{Clock, System};
use vane_chassis::files::{compat_dir, private_dir, raise_nofile, socket_dir};
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Limits, Party, Roots, TlsListener, anyone, server_config};
use vane_chassis::ops::Ops;
use vane_chassis::ready::Ready as Readiness;
use vane_chassis::tasks::{TaskError, Tasks};
use vane_chassis::unix_listener::{Socket, UnixListener};
use vane_identity::id::TrustDomain;
use vane_store::kv::Kv;
use vane_store::memory::MemoryKv;
use vane_store::sled_kv::{SledConfig, SledKv};

use crate::api::{self, Admitted, Parts, PartsDeps, Services, Settings};
use crate::config::{COMPAT_SOCKET, Config, Engine};
use crate::own_svid::OwnSvid;
use crate::push::Push;
use crate::state::State;

/// So long calls and tasks may take to end.
const DRAIN: Duration = Duration::from_secs(10);
/// Connections to the admin sockets at once.
const ADMIN_CONNECTIONS: usize = 1_024;
const ADMIN_MODE: u32 = 0o660;
const ADMIN_DIR_MODE: u32 = 0o750;

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
/// # Errors
/// What keeps it from starting or from going on, with the way out.
pub async fn run(
    mut config: Config,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    config.check()?;
    raise_nofile().context("cannot raise the limit of open files")?;
    let server = &config.server;
    let trust_domain = &server.trust_domain;
    let clock: Arc<dyn Clock> = Arc::new(System);
    let metrics = Metrics::new("vane_server", env!("CARGO_PKG_VERSION"));
    let readiness = Readiness::new();
    let starting = readiness.register("server");

    let dir = private_dir(&server.data_dir).context("server.data_dir")?;
    let server_id = server_id::load_or_create(&dir)?;
    let kv = open_store(&config).await?;
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
        server_id,
    };
    let authority = Authority::open(&profile(&config), deps)
        .await
        .context("cannot open the signing authorities")?;

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
    let parts = Parts::new(PartsDeps {
        settings: settings(&config),
        clock,
        kv,
        state: Arc::clone(&state),
        push: Arc::clone(&push),
        authority: Arc::clone(&authority),
        log,
        own_svid: own_svid.chain(),
        metrics: metrics.clone(),
    });
    let services = Services::new(&parts).await;

    let address = server.address();
    let listener = TlsListener::bind(address)
        .with_context(|| format!("cannot listen on {address}: is another server running there?"))?;
    let server_address = listener.address();
    let (acceptor, incoming) = listener.serve(tls, Limits::default());
    let admin = admin_listeners(&config, &stop)?;

    let mut tasks = Tasks::with_token(stop.clone());
    tasks.spawn("state", state.clone().run(stop.clone()));
    tasks.spawn("authorities", authority.run(stop.clone()));
    tasks.spawn("own SVID", own_svid.run(stop.clone()));
    tasks.spawn(
        "bundle",
        follow_bundle(state, roots, trust_domain.clone(), stop.clone()),
    );
    tasks.spawn("closing", close(push, stop.clone()));
    tasks.spawn("TLS", acceptor.run(stop.clone()));
    tasks.spawn(
        "agents",
        services
            .clone()
            .serve(api::tls(incoming), stop.clone().cancelled_owned()),
    );
    for listener in admin {
        tasks.spawn(
            "admin socket",
            services
                .clone()
                .serve(api::local(listener), stop.clone().cancelled_owned()),
        );
    }
    if config.telemetry.enabled {
        let ops = Ops::bind(config.telemetry.ops_address, metrics, readiness)
            .await
            .with_context(|| {
                format!(
                    "cannot listen on telemetry.ops_address {}",
                    config.telemetry.ops_address
                )
            })?;
        tasks.spawn("ops", ops.run(stop.clone()));
    }
    services.set_ready(true).await;
    drop(starting);
    on_ready(Ready {
        server_address,
        admin_socket: config.server.socket_path.clone(),
        trust_domain: trust_domain.clone(),
    });
    stop.cancelled().await;
    services.set_ready(false).await;
    tasks.join(DRAIN).await.map_err(|error| match error {
        // The task's own error says it; the name of the task would only stand before it.
        TaskError::Failed { source, .. } => anyhow::Error::from_boxed(source),
        other => other.into(),
    })
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

fn profile(config: &Config) -> ProfileConfig {
    let server = &config.server;
    ProfileConfig {
        trust_domain: server.trust_domain.clone(),
        ca_ttl: server.ca_ttl,
        ca_key_type: server.ca_key_type,
        ca_subject: SubjectConfig::default(),
        default_x509_svid_ttl: server.default_x509_svid_ttl,
        agent_ttl: server.agent_ttl,
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
    stop: &CancellationToken,
) -> anyhow::Result<Vec<UnixListener<Admitted>>> {
    let server = &config.server;
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let mut paths = vec![server.socket_path.clone()];
    if let Some(dir) = server
        .socket_path
        .parent()
        .filter(|dir| *dir != Path::new(""))
    {
        socket_dir(dir, ADMIN_DIR_MODE).context("server.socket_path")?;
    }
    if server.compat_socket {
        let path = PathBuf::from(COMPAT_SOCKET);
        if let Some(dir) = path.parent() {
            compat_dir(dir, ADMIN_DIR_MODE).context("server.compat_socket")?;
        }
        paths.push(path);
    }
    let group = server.admin_gid()?;
    let bind = |path: PathBuf| {
        let places = Arc::clone(&places);
        let socket = Socket {
            path,
            mode: ADMIN_MODE,
            group,
        };
        Ok(UnixListener::bind(
            &socket,
            move |stream| api::admit(&places, stream),
            stop.clone(),
        )?)
    };
    paths.into_iter().map(bind).collect()
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

/// Ends the agents' streams, which would else hold the drain up.
async fn close(push: Arc<Push>, stop: CancellationToken) -> Result<(), Infallible> {
    stop.cancelled().await;
    push.close();
    Ok(())
}
