//! The server put together: constructions in dependency order, then tasks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use vane_authority::authority::{Authority, Deps};
use vane_authority::key_manager;
use vane_authority::server_id;
use vane_chassis::builtin::open_section;
use vane_chassis::clock::{Clock, System, Watched};
use vane_chassis::files::{private_dir, raise_nofile};
use vane_chassis::given::Given;
use vane_chassis::health::Health;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Limits, Party, Roots, anyone, server_config};
use vane_chassis::notify::Notify;
use vane_chassis::ready::Ready as Readiness;
use vane_chassis::tasks::{TaskError, Tasks};
use vane_chassis::telemetry;
use vane_identity::id::TrustDomain;
use vane_store::kv::Kv;
use vane_store::observed::Observed;

use self::duties::{DRAIN, close, end_with, follow_acks, follow_bundle, serve};
use self::open::{
    attestors, catch_up, open_log, open_store, profile, publishers, settings, store_dir,
};
use self::sockets::{admin_listeners, agent_connections, agent_listener, serve_ops};
use crate::api::{self, Parts, PartsDeps, Places, Services};
use crate::audit::ledger::Ledger;
use crate::audit::refusals::Refusals;
use crate::config::Config;
use crate::own_svid::OwnSvid;
use crate::prune::Prune;
use crate::publish::Publish;
use crate::push::Push;
use crate::state::State;
use crate::vitals::Vitals;

mod duties;
mod open;
mod sockets;

#[cfg(test)]
mod tests;

/// So long tasks may take to end.
const GRACE: Duration = Duration::from_secs(5);

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

    let listener = agent_listener(&config, &mut given)?;
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
