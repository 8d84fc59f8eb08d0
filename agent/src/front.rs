//! The agent's front: its sockets opened, served, taken over and handed on.
//!
//! An agent that is alone opens the admin socket and the ops listener at once and the public
//! sockets when it can serve. A successor opens none before its predecessor hands its own over,
//! and asks for that only once it could serve. Whoever serves hands over to the next who asks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use vane_chassis::files::private_dir;
use vane_chassis::given::Given;
use vane_chassis::health::Health;
use vane_chassis::metrics::Metrics;
use vane_chassis::notify::Notify;
use vane_chassis::ops::Ops;
use vane_chassis::tasks::Tasks;
use vane_chassis::unix_listener::{Other, PREFACE_TIMEOUT};

use crate::api::admin::{self, Services};
use crate::api::{self, Connector, Source, Unanswered};
use crate::cache::Reader;
use crate::cgroup::Roots;
use crate::config::Config;
use crate::limits::{Bounds, Limits};
use crate::own_svid::OwnSvid;
use crate::peer::own_cgroup;
use crate::sockets::{self, Retirement};
use crate::takeover::{self, Estate, Passed, Start, Successor, Taken, WARM};
use crate::tenure::{Lock, Tenure, Tried};

/// What a process is started with besides its configuration.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Sockets that systemd opened.
    pub(crate) given: Given,
    /// Whom to tell how it goes.
    pub(crate) notify: Notify,
}

/// What the admin socket and the ops listener serve.
pub(crate) struct Desk {
    pub(crate) services: Services,
    pub(crate) metrics: Metrics,
    pub(crate) health: Health,
}

/// What a successor gets, and who is to be answered before the end.
pub(crate) struct Left {
    pub(crate) own: watch::Receiver<Option<Arc<OwnSvid>>>,
    pub(crate) reader: Reader,
    pub(crate) tenure: Tenure,
    pub(crate) unanswered: Unanswered,
}

/// So long calls may wait for their first answer once a successor serves.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// So long a successor that has sealed state waits for its server.
const MOMENT: Duration = Duration::from_secs(3);

/// The front.
pub(crate) struct Front {
    config: Arc<Config>,
    descriptors: u64,
    given: Given,
    notify: Notify,
    stop: CancellationToken,
    retirement: Retirement,
    gone: mpsc::Receiver<Infallible>,
    asks: Option<mpsc::Receiver<Other<Arc<Connector>>>>,
    passed: Vec<Passed>,
    lock: Option<Lock>,
    predecessor: Option<Box<Successor>>,
    /// What a successor opens later.
    desk: Option<Desk>,
}

impl Front {
    /// A front without sockets.
    pub(crate) fn new(
        config: Arc<Config>,
        descriptors: u64,
        surroundings: Surroundings,
        start: Start,
        stop: CancellationToken,
    ) -> Self {
        let (lock, predecessor) = match start {
            Start::Alone(lock) => (Some(lock), None),
            Start::After(successor) => (None, Some(successor)),
        };
        let (retirement, gone) = Retirement::new();
        Self {
            config,
            descriptors,
            given: surroundings.given,
            notify: surroundings.notify,
            stop,
            retirement,
            gone,
            asks: None,
            passed: Vec::new(),
            lock,
            predecessor,
            desk: None,
        }
    }

    /// Opens the admin socket and the ops listener; a successor does it in
    /// [`settle`](Self::settle).
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub(crate) async fn open_desk(&mut self, tasks: &mut Tasks, desk: Desk) -> anyhow::Result<()> {
        if self.predecessor.is_some() {
            self.desk = Some(desk);
            return Ok(());
        }
        if let Some(address) = self.config.telemetry.ops_address {
            let ops = match self.given.take_tcp(sockets::OPS)? {
                Some(listener) => Ops::over(listener, desk.metrics, desk.health),
                None => Ops::bind(address, desk.metrics, desk.health).await,
            };
            let ops = ops.context("telemetry.ops_address")?;
            self.passed
                .push(Passed::Tcp(sockets::OPS, ops.address(), ops.to_pass()?));
            tasks.spawn("ops", ops.run(self.stop.clone()));
        }
        let (taker, asks) = mpsc::channel(1);
        self.asks = Some(asks);
        let agent = &self.config.agent;
        let listener = sockets::admin(agent, &mut self.given, &self.retirement, &self.stop)?;
        let listener = listener.aside(takeover::PREFACE, taker);
        self.passed
            .push(Passed::Unix(sockets::ADMIN, listener.handle()?));
        tasks.spawn(
            "admin socket",
            admin::serve(listener, desk.services, self.stop.clone()),
        );
        Ok(())
    }

    /// Waits until the agent could serve: it is in sync, or has what was sealed. A successor does
    /// not wait for ever, since its predecessor renews nothing meanwhile; with sealed state it
    /// waits a moment for its server all the same. False when it is stopped before.
    ///
    /// # Errors
    /// A successor is not in time.
    pub(crate) async fn warm(
        &self,
        mut synced: watch::Receiver<bool>,
        has_sealed: bool,
    ) -> anyhow::Result<bool> {
        let wait = async { drop(synced.wait_for(|synced| *synced).await) };
        let Some(predecessor) = &self.predecessor else {
            let wait = async {
                if !has_sealed {
                    wait.await;
                }
            };
            return Ok(self.stop.run_until_cancelled(wait).await.is_some());
        };
        let most = if has_sealed { MOMENT } else { WARM };
        match self.stop.run_until_cancelled(timeout(most, wait)).await {
            None => Ok(false),
            Some(Ok(())) => Ok(true),
            Some(Err(_)) if has_sealed => {
                tracing::warn!("the server does not answer: taking over with what was sealed");
                Ok(true)
            }
            Some(Err(_)) => anyhow::bail!(
                "not in sync with the server within {WARM:?}: process {} goes on",
                predecessor.predecessor()
            ),
        }
    }

    /// A successor takes the sockets and the lock, and opens its desk. When the predecessor ended
    /// meanwhile, it is a start like others.
    ///
    /// # Errors
    /// The predecessor lives and does not hand over, or a socket cannot be opened.
    pub(crate) async fn settle(&mut self, tasks: &mut Tasks) -> anyhow::Result<Settled> {
        let Some(successor) = self.predecessor.take() else {
            return Ok(Settled(None));
        };
        let agent = &self.config.agent;
        let dir = private_dir(&agent.data_dir).context("agent.data_dir")?;
        let admin = agent.admin_socket();
        let settled = match successor.inherit(&sockets::places(&self.config)).await {
            Ok(inherited) => {
                self.lock = Some(Lock::adopt(&dir, inherited.lock, &admin)?);
                self.given.append(inherited.given);
                Settled(Some((successor, inherited.names)))
            }
            Err(error) => {
                tracing::warn!(%error, "the predecessor did not hand over");
                let Tried::Ours(lock) = Lock::take(&dir, &admin)? else {
                    return Err(error)
                        .context(format!("process {} goes on", successor.predecessor()));
                };
                self.lock = Some(lock);
                Settled(None)
            }
        };
        if let Some(desk) = self.desk.take() {
            self.open_desk(tasks, desk).await?;
        }
        Ok(settled)
    }

    /// Opens the public sockets, and serves `source` on them.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub(crate) fn open(&mut self, tasks: &mut Tasks, source: &Arc<Source>) -> anyhow::Result<()> {
        let agent = &self.config.agent;
        let bounds = Bounds::for_descriptors(self.descriptors);
        let limits = Limits::new(bounds)
            .below(Roots::of_own(&own_cgroup()?))
            .shown(source.counters.connections.clone());
        let listeners = sockets::public(
            agent,
            &limits,
            &mut self.given,
            &self.retirement,
            &self.stop,
        )?;
        for (name, listener) in listeners {
            self.passed.push(Passed::Unix(name, listener.handle()?));
            tasks.spawn(
                "workload API",
                api::serve(listener, Arc::clone(source), self.stop.clone()),
            );
        }
        for name in self.given.left() {
            tracing::warn!(name, "a socket that was passed is not used");
        }
        tasks.spawn("watchdog", self.notify.clone().watchdog(self.stop.clone()));
        Ok(())
    }

    /// Serves until `stop`, or until a successor does, and everything here ends. While the answer
    /// lives the lock is held, or it is the successor's turn.
    pub(crate) async fn until_the_end(self, left: Left) -> End {
        let (Some(lock), Some(asks)) = (self.lock, self.asks) else {
            self.stop.cancelled().await;
            return End::default();
        };
        let estate = Estate {
            trust_domain: self.config.agent.trust_domain.clone(),
            own: left.own,
            reader: left.reader,
            tenure: left.tenure,
            lock,
            sockets: self.passed,
        };
        let taken = self
            .stop
            .run_until_cancelled(estate.hand_over(asks))
            .await
            .flatten();
        let end = End {
            taken,
            _estate: Some(estate),
        };
        let Some(taken) = &end.taken else {
            self.stop.cancelled().await;
            return end;
        };
        tracing::info!(pid = taken.pid, "a successor serves: ending");
        if let Ok(pid) = u32::try_from(taken.pid) {
            self.notify.goes_on_in(pid);
        }
        self.retirement.begin();
        let mut gone = self.gone;
        // Connections that were accepted but have said nothing yet get their turn, and calls that
        // wait for an SVID get their first answer.
        let _ = timeout(PREFACE_TIMEOUT * 2, gone.recv()).await;
        let _ = timeout(LAST_ANSWERS, left.unanswered.none()).await;
        self.stop.cancel();
        end
    }
}

/// How an agent ends.
#[derive(Default)]
pub(crate) struct End {
    /// A successor serves.
    pub(crate) taken: Option<Taken>,
    /// With the lock.
    _estate: Option<Estate>,
}

/// A successor that has its sockets, and has not said yet that it serves.
#[must_use = "the predecessor waits to hear it"]
pub(crate) struct Settled(Option<(Box<Successor>, Vec<String>)>);

impl Settled {
    /// Tells the predecessor that this process serves.
    pub(crate) async fn serving(self) {
        let Some((successor, names)) = self.0 else {
            return;
        };
        let pid = successor.predecessor();
        match successor.serving(names).await {
            Ok(()) => tracing::info!(pid, "took over"),
            Err(error) => tracing::warn!(pid, %error, "took over from a predecessor that is gone"),
        }
    }
}
