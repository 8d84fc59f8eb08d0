//! The agent put together: constructions in order, then tasks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::Policy;
use vane_chassis::clock::{System, Watched};
use vane_chassis::files::{private_dir, raise_nofile};
use vane_chassis::health::Health;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::{Identity, Roots};
use vane_chassis::tasks::Tasks;
use vane_identity::id::SpiffeId;

use self::ending::{finish, is_final};
use self::parts::{Parts, vault};
use self::trust::follow_bundle;
use crate::api::admin;
use crate::api::{Source, Unanswered};
use crate::cache::{self, Cache};
use crate::config::Config;
use crate::counters::{Counters, PREFIX};
use crate::front::{Desk, Front, Left, Surroundings};
use crate::jwt::{self, JwtCache};
use crate::node;
use crate::obtain::Anew;
use crate::own_svid::Disk;
use crate::renewal::Renewal;
use crate::sealed::{self, Writer};
use crate::takeover::{self, Start};
use crate::tenure::Tenure;
use crate::vitals::Vitals;

mod ending;
mod parts;
mod trust;

const FIRST_WAIT: Duration = Duration::from_millis(100);
/// So long a caller of the Workload API waits for an SVID that is being fetched.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most bytes of JWT-SVIDs that are kept.
const JWT_CACHE_BYTES: usize = 8 * 1024 * 1024;

/// What is known once the agent serves.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The public socket.
    pub workload_api: PathBuf,
    /// The agent's ID.
    pub agent_id: SpiffeId,
}

/// Runs an agent until `stop`, and tells `on_ready` once its socket is open.
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

/// As [`run`], with what this process was started with. Another agent on the same `data_dir` is
/// taken over from.
///
/// # Errors
/// As [`run`].
pub(crate) async fn run_in(
    surroundings: Surroundings,
    mut config: Config,
    stop: CancellationToken,
    on_ready: impl FnOnce(Ready),
) -> anyhow::Result<()> {
    config.check()?;
    let descriptors = raise_nofile().context("cannot raise the limit of open files")?;
    let dir = private_dir(&config.agent.data_dir).context("agent.data_dir")?;
    let tenure = Tenure::default();
    let start = takeover::begin(&dir, &config.agent, &tenure);
    let start = match stop.run_until_cancelled(start).await {
        Some(start) => start?,
        None => return Ok(()),
    };
    let disk = Arc::new(Disk::new(dir, config.agent.trust_domain.clone()));
    let vault = vault(&config)?;
    let watched = Watched::new(Arc::new(System));
    let parts = Parts {
        vault: vault.clone(),
        clock: Arc::<Watched>::clone(&watched),
        watched,
        backoff: Policy::new(
            FIRST_WAIT.min(config.agent.max_backoff),
            config.agent.max_backoff,
            2.0,
        )?,
        identity: Identity::empty(),
        roots: Roots::new([]),
        disk: Arc::clone(&disk),
        config: Arc::new(config),
        tenure,
    };
    if let Start::After(successor) = &start {
        successor.keep(&disk, &parts.config.agent.trust_domain)?;
    }
    let front = Front::new(
        Arc::clone(&parts.config),
        descriptors,
        surroundings,
        start,
        stop.clone(),
    );
    let ended = parts.run(front, stop, on_ready).await;
    if ended.as_ref().err().is_some_and(is_final) {
        disk.forget()
            .context("cannot remove the SVID that the server denies")?;
        if let Some(vault) = vault {
            vault
                .wipe()
                .context("cannot remove what the workloads have")?;
        }
        tracing::error!("removed this agent's own SVID: the server denies it");
    }
    ended
}

impl Parts {
    async fn run(
        self,
        mut front: Front,
        stop: CancellationToken,
        on_ready: impl FnOnce(Ready),
    ) -> anyhow::Result<()> {
        let started = self.clock.monotonic();
        let obtain = self.obtain();
        let (agent_id, own, restored) = tokio::select! {
            start = self.start(&obtain) => start?,
            () = stop.cancelled() => return Ok(()),
        };
        let has_sealed = restored.is_some();

        let metrics = Metrics::new(PREFIX, env!("CARGO_PKG_VERSION"));
        metrics.register_process(self.config.agent.trust_domain.as_str(), &self.clock);
        let counters = Counters::register(&metrics);
        let waits = vane_chassis::ready::Ready::new();
        let first_sync = waits.register("the first sync with the server");
        let health = Health::new(waits);
        let (own_sender, own_svid) = watch::channel(None);
        let (bundle_sender, bundle) = watch::channel(None);
        let anew = Arc::new(Anew::default());
        let shown_own = own_svid.clone();
        let (writer, sealer) = self
            .vault
            .as_ref()
            .map(|vault| {
                let deps = sealed::Deps {
                    vault: Arc::clone(vault),
                    own: own_svid.clone(),
                    clock: Arc::clone(&self.clock),
                    tenure: self.tenure.clone(),
                    backoff: self.backoff,
                    counters: counters.clone(),
                };
                Writer::new(deps, restored.as_ref())
            })
            .unzip();
        let deps = cache::Deps {
            anew: Arc::clone(&anew),
            clock: Arc::clone(&self.clock),
            connect: self.connect()?,
            own_svid,
            backoff: self.backoff,
            key_type: self.config.agent.workload_x509_svid_key_type,
            prefetch: self.config.agent.svid_cache_max,
            sync_interval: self.config.agent.sync_interval,
            counters: counters.clone(),
            sealer: sealer.clone(),
            offline_grace: self.config.agent.offline_grace,
        };
        let (mut cache, reader, mut synced) =
            Cache::new(deps, self.config.agent.trust_domain.clone());
        let kept_tokens = restored.as_ref().map(|one| Arc::clone(&one.tokens));
        if let Some(restored) = restored {
            cache = cache.restore(restored);
        }
        let (mut jwt_cache, tokens) = JwtCache::new(jwt::Deps {
            clock: Arc::clone(&self.clock),
            snapshots: reader.snapshots(),
            server: reader.server(),
            bounds: jwt::Bounds {
                tokens: self.config.agent.jwt_svid_cache_max_size,
                bytes: JWT_CACHE_BYTES,
            },
            sealer,
            counters: counters.clone(),
        });
        if let Some(kept) = kept_tokens {
            jwt_cache = jwt_cache.restore(&kept);
        }
        let renewal = Renewal {
            anew,
            obtain,
            clock: Arc::clone(&self.clock),
            identity: Arc::clone(&self.identity),
            disk: Arc::clone(&self.disk),
            connect: self.connect()?,
            backoff: self.backoff,
            own: own_sender,
            bundle,
            tenure: self.tenure.clone(),
            counters: counters.clone(),
        };
        let attestors = self.attestors(&metrics).await?;
        let vitals = Arc::new(Vitals {
            clock: Arc::clone(&self.clock),
            started,
            attestors: attestors.clone(),
            own: shown_own.clone(),
            reader: reader.clone(),
            counters: counters.clone(),
            disk: Arc::clone(&self.disk),
            vault: self.vault.clone(),
        });
        vitals.register(&metrics);
        let probed = Arc::clone(&vitals);
        health.attach(move || probed.findings());

        let mut tasks = Tasks::with_token(stop.clone());
        tasks.spawn("clock", Arc::clone(&self.watched).run(stop.clone()));
        if let Some(writer) = writer {
            tasks.spawn("sealed state", writer.run(stop.clone()));
        }
        tasks.spawn("cache", cache.run(stop.clone()));
        tasks.spawn("JWT cache", jwt_cache.run(stop.clone()));
        tasks.spawn("own SVID", renewal.run(own, stop.clone()));
        tasks.spawn("workload attestors", {
            let attestors = attestors.clone().run(stop.clone());
            async move {
                attestors.await;
                Ok::<(), std::convert::Infallible>(())
            }
        });
        tasks.spawn(
            "bundle",
            follow_bundle(
                reader.clone(),
                Arc::clone(&self.roots),
                bundle_sender,
                stop.clone(),
            ),
        );
        let desk = Desk {
            services: admin::services(vitals).await?,
            metrics,
            health,
        };
        front.open_desk(&mut tasks, desk).await?;
        if !front.warm(synced.clone(), has_sealed).await? {
            return finish(tasks).await;
        }
        let source = Arc::new(Source {
            reader: reader.clone(),
            attestors,
            clock: Arc::clone(&self.clock),
            patience: PATIENCE,
            counters,
            tokens,
            unanswered: Unanswered::default(),
            foreign_claims: self
                .config
                .agent
                .allowed_foreign_jwt_claims
                .iter()
                .cloned()
                .collect(),
        });
        let unanswered = source.unanswered.clone();
        let settled = front.settle(&mut tasks).await?;
        front.open(&mut tasks, &source)?;
        settled.serving().await;
        on_ready(Ready {
            workload_api: self.config.agent.socket_path.clone(),
            agent_id,
        });
        tasks.spawn("first sync", {
            let channel = (self.connect()?)();
            let stop = stop.clone();
            async move {
                let first = async { synced.wait_for(|synced| *synced).await.is_ok() };
                if stop.run_until_cancelled(first).await == Some(true) {
                    first_sync.done();
                    node::post_status(channel).await;
                }
                Ok::<(), std::convert::Infallible>(())
            }
        });
        let left = Left {
            own: shown_own,
            reader,
            tenure: self.tenure,
            unanswered,
        };
        let end = front.until_the_end(left).await;
        let ended = finish(tasks).await;
        // What is on disk is the successor's: no error of the last moments may remove it.
        match (end.taken.is_some(), ended) {
            (true, Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "ended after the take-over");
                Ok(())
            }
            (_, ended) => ended,
        }
    }
}
