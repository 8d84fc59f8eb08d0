//! The task that gets the agent's own SVID and keeps it fresh.
//!
//! It renews at half the lifetime, counted from reception; the new key is on disk before it
//! is asked for, the new SVID before it is used. Who authenticates with it is told. One that
//! expired, since the server was away for too long, is replaced by a new attestation: what the
//! workloads have is served meanwhile.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vane_chassis::backoff::{Backoff, Policy};
use vane_chassis::clock::{Clock, sleep_until};
use vane_chassis::mtls::{Identity, IdentityError};
use vane_client::channel::Channel;
use vane_identity::bundle::Bundle;
use vane_identity::key::{KeyType, PrivateKey};
use vane_identity::lifetime::{Jitter, MIN_RENEW_INTERVAL, to_unix};
use vane_wire::status::Reason;

use crate::counters::{Counters, Work};
use crate::denial::{Denial, WayBack};
use crate::node::{self, NodeError};
use crate::obtain::{Anew, Obtain, ObtainError, Persistence};
use crate::own_svid::{Disk, DiskError, OwnSvid};
use crate::svid::hex;
use crate::tenure::Tenure;

/// An SVID that came so lately is not the one that is denied.
const FRESH: Duration = Duration::from_secs(5);

/// What the task works with.
pub struct Renewal {
    /// How to come to one when there is none.
    pub obtain: Obtain,
    /// Who is denied with what there is asks for a new attestation.
    pub anew: Arc<Anew>,
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// What TLS presents.
    pub identity: Arc<Identity>,
    /// Where it is kept.
    pub disk: Arc<Disk>,
    /// Makes a channel with the current identity.
    pub connect: Box<dyn Fn() -> Channel + Send + Sync>,
    /// The waits between two tries.
    pub backoff: Policy,
    /// The SVID; none while there is none that is valid. Who uses the identity reconnects at a
    /// change; others show it or hand it on.
    pub own: watch::Sender<Option<Arc<OwnSvid>>>,
    /// The own bundle as it changes: an SVID of a tainted authority is renewed at once, and
    /// the newest bundle is kept beside it.
    pub bundle: watch::Receiver<Option<Arc<Bundle>>>,
    /// Whose turn it is to renew and to write.
    pub tenure: Tenure,
    /// Counts renewals, and shows when the SVID ends.
    pub counters: Counters,
}

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The server denies this agent.
    #[error(transparent)]
    Denied(NodeError),
    /// A new one cannot be had.
    #[error("the agent has no SVID of its own: {0}")]
    Obtain(ObtainError),
    /// TLS cannot present it.
    #[error(transparent)]
    Unusable(#[from] IdentityError),
}

/// How the care for an SVID ends.
enum End {
    Stopped,
    Expired,
}

impl Renewal {
    /// Runs until `stop`, starting from `held`, or with an attestation.
    ///
    /// # Errors
    /// [`RenewalError`].
    pub async fn run(
        mut self,
        mut held: Option<OwnSvid>,
        stop: CancellationToken,
    ) -> Result<(), RenewalError> {
        let mut jumps = self.clock.jumps();
        loop {
            let own = match held.take() {
                Some(own) => own,
                None => tokio::select! {
                    own = self.obtain_in_turn() => own.map_err(unobtained)?,
                    () = stop.cancelled() => return Ok(()),
                    // The one that was kept may be valid again, or another wait may be over.
                    () = jumps.next() => continue,
                },
            };
            self.identity.swap(&own.chain, &own.key)?;
            self.own.send_replace(Some(Arc::new(own.clone())));
            match self.keep_fresh(own, &stop).await? {
                End::Stopped => return Ok(()),
                End::Expired => self.own.send_replace(None),
            };
        }
    }

    async fn obtain_in_turn(&self) -> Result<OwnSvid, ObtainError> {
        loop {
            let _turn = self.tenure.turn().await;
            // An attestation that is given up can be made again: keys are kept before they are
            // sent, and a server answers the same key once more.
            tokio::select! {
                own = self.obtain.own_svid(Persistence::Serving) => return own,
                () = self.tenure.wanted() => {}
            }
        }
    }

    async fn keep_fresh(
        &mut self,
        mut held: OwnSvid,
        stop: &CancellationToken,
    ) -> Result<End, RenewalError> {
        let mut backoff = Backoff::new(self.backoff, fastrand::Rng::new());
        let mut jumps = self.clock.jumps();
        let mut due = self.due(&held);
        self.counters.own_expiry.set(to_unix(held.not_after));
        self.anew.set_possible(held.reattestable);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(End::Stopped),
                () = sleep_until(&*self.clock, due) => {}
                () = jumps.next() => {
                    if !held.is_due(due, self.clock.now()) {
                        continue;
                    }
                }
                Ok(()) = self.bundle.changed() => {
                    if self.take_bundle(&held) {
                        due = self.clock.now();
                    }
                    continue;
                }
                () = self.anew.doubted() => {
                    // A server with authorities of which this node never heard does not know
                    // the SVID either: who can, attests at once.
                    if !self.obtain.trust_anew() || !held.reattestable {
                        continue;
                    }
                    tracing::warn!("the server is of another authority: attesting anew by the bundle of trust_bundle_path");
                }
                () = self.anew.asked() => {
                    let age = self.clock.now().duration_since(held.received_at);
                    if age.is_ok_and(|age| age < FRESH) {
                        // What was denied is the one before: connect with this one.
                        self.own.send_modify(|_| {});
                        continue;
                    }
                    tracing::warn!("the server denies this agent's SVID: attesting anew");
                }
            }
            let turn = stop.run_until_cancelled(self.tenure.turn()).await;
            let Some(_turn) = turn else {
                return Ok(End::Stopped);
            };
            let started = self.clock.monotonic();
            let renewed = tokio::select! {
                renewed = self.renew(&held) => renewed,
                // A successor renews, or this agent once more: the key that is held stays good.
                () = self.tenure.wanted() => continue,
            };
            let (ok, ended) = (renewed.is_ok(), self.clock.monotonic());
            self.counters.worked(Work::Renewal, ok, started, ended);
            match renewed {
                Ok(renewed) => {
                    held = renewed;
                    self.counters.own_expiry.set(to_unix(held.not_after));
                    due = self.due_of_new(&held, &mut backoff);
                }
                Err(NodeError::Denied(Denial {
                    reason: Reason::AgentMustReattest,
                    ..
                })) => {
                    held.reattestable = true;
                    self.anew.set_possible(true);
                    due = self.clock.now() + backoff.next_delay();
                }
                Err(error @ NodeError::Denied(_)) => {
                    return Err(RenewalError::Denied(error));
                }
                // While the server's certificate, too, is of another time, a clock is wrong.
                Err(error)
                    if self.clock.now() > held.not_after
                        && !matches!(error, NodeError::Clock(_)) =>
                {
                    tracing::error!(
                        %error,
                        with = WayBack::of_agent(&held.id).evidence(),
                        "the agent's own SVID expired and could not be renewed in time: attesting anew"
                    );
                    return Ok(End::Expired);
                }
                Err(error) => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, delay_ms = delay.as_millis(), "the agent's own SVID is not renewed yet");
                    due = self.clock.now() + delay;
                }
            }
        }
    }

    /// When `held` is renewed; now, when it was received by a clock that was set back since.
    fn due(&self, held: &OwnSvid) -> SystemTime {
        let due = held.renew_at(Jitter::new(fastrand::f64() * 2.0 - 1.0));
        let now = self.clock.now();
        if held.is_due(due, now) { now } else { due }
    }

    /// When one that came just now is renewed. One that is over by this node's clock when it
    /// comes would be due at once again and again.
    fn due_of_new(&self, held: &OwnSvid, backoff: &mut Backoff) -> SystemTime {
        let now = self.clock.now();
        if now <= held.not_after {
            backoff.reset();
            return self.due(held);
        }
        tracing::warn!(
            "the agent's own SVID is over by this node's clock: the clocks of node and server differ, correct the wrong one"
        );
        now + MIN_RENEW_INTERVAL.max(backoff.next_delay())
    }

    /// Keeps the bundle on disk; whether the SVID's authority is tainted in it.
    fn take_bundle(&mut self, held: &OwnSvid) -> bool {
        let Some(bundle) = self.bundle.borrow_and_update().clone() else {
            return false;
        };
        // A successor keeps it when it is not our turn.
        let Some(_turn) = self.tenure.try_turn() else {
            return false;
        };
        if let Err(error) = self.disk.keep(Some(held), Some(&bundle)) {
            tracing::warn!(%error, "the bundle cannot be kept on disk");
        }
        let own = authority(held);
        let tainted = bundle.x509_authorities.iter().filter(|one| one.tainted);
        tainted
            .filter_map(|one| one.certificate.info().ok())
            .any(|info| hex(&info.key_id) == own)
    }

    async fn renew(&self, held: &OwnSvid) -> Result<OwnSvid, NodeError> {
        let (key, _) = PrivateKey::generate(KeyType::EcP256)
            .map_err(|error| NodeError::Answer(error.to_string()))?;
        self.disk
            .keep_key(&key, Some(&held.key))
            .map_err(|error| unkept(&error))?;
        let clock = Arc::clone(&self.clock);
        // Who may attest again renews by that (SPIRE's servers refuse the other way).
        let renewed = match held.reattestable {
            true => self.obtain.again(&key).await.map_err(not_again)?,
            false => node::renew((self.connect)(), held, &key, || clock.now()).await?,
        };
        if renewed.id != held.id {
            tracing::warn!(was = %held.id, agent_id = %renewed.id, "the agent has another ID now");
        }
        let bundle = self.bundle.borrow().clone();
        self.disk
            .keep(Some(&renewed), bundle.as_deref())
            .map_err(|error| unkept(&error))?;
        self.identity
            .swap(&renewed.chain, &renewed.key)
            .map_err(|error| NodeError::Answer(error.to_string()))?;
        self.own.send_replace(Some(Arc::new(renewed.clone())));
        tracing::info!(agent_id = %renewed.id, "renewed the agent's own SVID");
        Ok(renewed)
    }
}

/// A denial is told apart by who looks at the error.
fn unobtained(error: ObtainError) -> RenewalError {
    match error {
        ObtainError::Node(denied @ NodeError::Denied(_)) => RenewalError::Denied(denied),
        error => RenewalError::Obtain(error),
    }
}

/// What may change by itself is tried again.
fn not_again(error: ObtainError) -> NodeError {
    match error {
        ObtainError::Node(error) => error,
        error => NodeError::Unavailable(error.to_string()),
    }
}

/// What cannot be kept is not used: a restart would find the old key with a new SVID.
fn unkept(error: &DiskError) -> NodeError {
    NodeError::Unavailable(format!("the new SVID cannot be kept: {error}"))
}

fn authority(held: &OwnSvid) -> String {
    let info = held.chain.first().and_then(|leaf| leaf.info().ok());
    info.and_then(|info| info.authority_key_id)
        .map(|id| hex(&id))
        .unwrap_or_default()
}
