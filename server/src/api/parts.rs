//! What the services share, and the steps that all of them take.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;
use tonic::{Code, Request};
use vane_attest::Verifier;
use vane_authority::authority::Authority;
use vane_authority::csr::Csr;
use vane_authority::issue::{IssueError, X509Request};
use vane_authority::log::{Leaf, Log, LogError};
use vane_authority::profile::SvidKind;
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Metrics;
use vane_chassis::telemetry::Level;
use vane_identity::entry::Entry;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::PublicKey;
use vane_identity::lifetime::to_unix;
use vane_identity::x509_svid::{Certificate, X509Svid, serial_decimal};
use vane_store::kv::{CommitError, Kv, KvError, Revision};
use vane_store::tables::row::{ChangeError, Cursor};
use vane_wire::status::Refusal;

use super::patience::Patience;
use super::recent::Recent;
use super::roles::{Counters, Roles};
use super::telemetry::{self, Calls};
use crate::audit::Change;
use crate::audit::ledger::{Intent, Ledger};
use crate::audit::refusals::Refusals;
use crate::caller::{AgentIdentity, Caller};
use crate::push::Push;
use crate::rate_limit::Limits;
use crate::state::State;
use crate::vitals::Vitals;

/// How long an acknowledgement waits for hot state to show what was stored. The store has it
/// in any case.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

/// What the services are made from.
#[derive(Debug)]
pub struct PartsDeps {
    /// The methods of node attestation.
    pub attestors: Vec<Arc<dyn Verifier>>,
    /// What the configuration says.
    pub settings: Settings,
    /// When now is.
    pub clock: Arc<dyn Clock>,
    /// The store.
    pub kv: Arc<dyn Kv>,
    /// Its content in memory.
    pub state: Arc<State>,
    /// What tells agents of changes of it.
    pub push: Arc<Push>,
    /// What signs.
    pub authority: Arc<Authority>,
    /// What is written down before it is acknowledged.
    pub log: Arc<Log>,
    /// The server's own certificate chain, for `Debug.GetInfo`.
    pub own_svid: watch::Receiver<Arc<[Certificate]>>,
    /// The level of the process's log.
    pub log_level: Level,
    /// What the server shows of itself.
    pub vitals: Arc<Vitals>,
    /// Where changes are written down.
    pub ledger: Ledger,
    /// Where refusals are.
    pub refusals: Refusals,
    /// Where the counters go.
    pub metrics: Metrics,
}

/// What the configuration says to the services.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Administrators without an entry.
    pub admin_ids: HashSet<SpiffeId>,
    /// How old confirmed state may be for attestations, changes and first SVIDs.
    pub max_staleness: Duration,
    /// How old it may be for renewals.
    pub max_renewal_staleness: Duration,
    /// Whether attestations are limited.
    pub limit_attestation: bool,
    /// Whether signing is limited.
    pub limit_signing: bool,
}

/// What the services share.
pub struct Parts {
    pub(super) attestors: Vec<Arc<dyn Verifier>>,
    pub(super) trust_domain: TrustDomain,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) kv: Arc<dyn Kv>,
    pub(super) state: Arc<State>,
    pub(super) push: Arc<Push>,
    pub(super) authority: Arc<Authority>,
    pub(super) limits: Arc<Limits>,
    pub(super) roles: Roles,
    pub(super) own_svid: watch::Receiver<Arc<[Certificate]>>,
    pub(super) log_level: Level,
    pub(super) started: Instant,
    pub(super) vitals: Arc<Vitals>,
    pub(super) refusals: Refusals,
    ledger: Ledger,
    pub(super) recent: Recent,
    pub(super) calls: Calls,
    pub(super) attestations: Counter,
    issuance: Issuance,
    /// Where the sweep of old join tokens goes on.
    pub(super) sweep_at: Mutex<Option<Cursor>>,
    log: Arc<Log>,
    max_staleness: Duration,
    max_renewal_staleness: Duration,
}

/// How far the state may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// For everything.
    Fresh,
    /// For what was issued before only.
    RenewalsOnly,
}

/// A certificate to be signed.
#[derive(Debug)]
pub(super) struct Order(X509Request);

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    /// With its chain.
    pub(super) svid: X509Svid,
    /// Decimal.
    pub(super) serial: String,
    /// Its end in Unix seconds.
    pub(super) not_after: i64,
}

impl Parts {
    /// Puts the parts together.
    #[must_use]
    pub fn new(deps: PartsDeps) -> Arc<Self> {
        let settings = deps.settings;
        let limits = Limits::new(settings.limit_attestation, settings.limit_signing);
        let limits = Arc::new(limits);
        let roles = Roles {
            trust_domain: settings.trust_domain.clone(),
            admin_ids: settings.admin_ids,
            kv: Arc::clone(&deps.kv),
            state: Arc::clone(&deps.state),
            clock: Arc::clone(&deps.clock),
            limits: Arc::clone(&limits),
            counters: Counters::register(&deps.metrics),
        };
        Arc::new(Self {
            attestors: deps.attestors,
            trust_domain: settings.trust_domain,
            started: deps.clock.monotonic(),
            clock: deps.clock,
            kv: deps.kv,
            state: deps.state,
            push: deps.push,
            authority: deps.authority,
            limits,
            roles,
            own_svid: deps.own_svid,
            log_level: deps.log_level,
            vitals: deps.vitals,
            refusals: deps.refusals,
            ledger: deps.ledger,
            recent: Recent::default(),
            calls: Calls::register(&deps.metrics),
            attestations: attestations(&deps.metrics),
            issuance: Issuance::register(&deps.metrics),
            sweep_at: Mutex::default(),
            log: deps.log,
            max_staleness: settings.max_staleness,
            max_renewal_staleness: settings.max_renewal_staleness,
        })
    }

    /// Refuses an attestation, a change or a first SVID when the state was not confirmed for
    /// too long.
    pub(super) fn check_fresh(&self) -> Result<(), Refusal> {
        match self.freshness()? {
            Freshness::Fresh => Ok(()),
            Freshness::RenewalsOnly => Err(self.stale()),
        }
    }

    /// How far the state may be trusted; an error when not even for renewals.
    pub(super) fn freshness(&self) -> Result<Freshness, Refusal> {
        let age = self.state.confirmed_age(self.clock.monotonic());
        if age <= self.max_staleness {
            return Ok(Freshness::Fresh);
        }
        if age <= self.max_renewal_staleness {
            return Ok(Freshness::RenewalsOnly);
        }
        Err(self.stale())
    }

    fn stale(&self) -> Refusal {
        let age = self.state.confirmed_age(self.clock.monotonic());
        let text = format!(
            "the store has not answered for {} seconds, try again later",
            age.as_secs()
        );
        Refusal::new(Code::Unavailable, text)
    }

    /// Begins a change: commit it to the store of the intent, then [`Parts::acknowledge`] it.
    pub(super) fn intend(&self, caller: &Caller, change: Change<'_>) -> Intent {
        self.ledger.intend(caller, change)
    }

    /// Writes a change that was stored to the log and waits until hot state shows it.
    pub(super) async fn acknowledge(
        &self,
        stored: Intent,
        revision: Revision,
        tried: &str,
    ) -> Result<(), Refusal> {
        self.acknowledge_all(vec![stored], revision, tried).await
    }

    /// As [`Parts::acknowledge`], of changes up to `revision` that are written together.
    pub(super) async fn acknowledge_all(
        &self,
        stored: Vec<Intent>,
        revision: Revision,
        tried: &str,
    ) -> Result<(), Refusal> {
        let log = async {
            let logged = self.ledger.log(stored).await;
            logged.map_err(|error| unlogged(tried, error))
        };
        let (logged, ()) = tokio::join!(log, self.seen(revision));
        logged
    }

    /// Writes down that an item of a call of `method` was refused; what only failed is no
    /// refusal.
    pub(super) fn refused(&self, method: &'static str, caller: &impl Display, refusal: &Refusal) {
        if telemetry::is_refusal(refusal.code()) {
            let code = telemetry::name(refusal.code());
            let caller = || caller.to_string();
            self.refusals.note(method, code, refusal.message(), caller);
        }
    }

    /// Writes one leaf to the log.
    pub(super) async fn append(&self, leaf: Leaf, tried: &str) -> Result<(), Refusal> {
        let logged = self.log.append(&[leaf]).await;
        logged.map_err(|error| unlogged(tried, error))
    }

    /// Waits until hot state has `revision`, so that the next call sees it.
    pub(super) async fn seen(&self, revision: Revision) {
        if self.state.has(revision) {
            return;
        }
        let seen = self.state.wait_for(revision);
        if tokio::time::timeout(SEEN_WITHIN, seen).await.is_err() {
            tracing::warn!(revision, "hot state is behind the store");
        }
    }

    /// Waits until hot state is as new as the store is now: what it denies then is so.
    pub(super) async fn catch_up(&self, agent: &SpiffeId) -> Result<(), Refusal> {
        let tried = "the registry cannot be read";
        self.limits
            .denial(agent, self.clock.monotonic())
            .map_err(|exceeded| {
                let tried = "too many denied requests of this agent";
                Refusal::because(Code::ResourceExhausted, tried, exceeded)
            })?;
        let confirmed = self.state.confirm().await;
        confirmed.map_err(|error| Refusal::because(Code::Unavailable, tried, error))
    }

    /// What a caller is told about a store that refused.
    pub(super) fn store_refusal(&self, tried: &str, error: &CommitError) -> Refusal {
        let code = match error {
            CommitError::Conflict { .. } => Code::Aborted,
            CommitError::TooLarge { .. } | CommitError::Refused { .. } => Code::InvalidArgument,
            CommitError::Kv(KvError::Unavailable { .. }) => Code::Unavailable,
            CommitError::Kv(_) => Code::Internal,
        };
        tracing::warn!(%error, tried, "the store refused");
        Refusal::because(code, tried, error)
    }

    /// The same for a change of a row that exists.
    pub(super) fn change_refusal(&self, tried: &str, error: &ChangeError) -> Refusal {
        match error {
            ChangeError::Missing => Refusal::new(Code::NotFound, tried),
            ChangeError::Busy => Refusal::because(Code::Aborted, tried, error),
            ChangeError::Commit(error) => self.store_refusal(tried, error),
        }
    }

    /// Signs the orders; the results come in their order.
    pub(super) async fn issue(&self, orders: Vec<Order>) -> Vec<Result<Issued, Refusal>> {
        if orders.is_empty() {
            return Vec::new();
        }
        let requests = orders.into_iter().map(|order| order.0).collect();
        let signed = self.authority.issue_x509(requests).await;
        self.issuance.count(&signed, to_unix(self.clock.now()));
        signed.into_iter().map(Issued::read).collect()
    }

    /// Signs one order.
    pub(super) async fn issue_one(&self, order: Order) -> Result<Issued, Refusal> {
        let missing = || Refusal::new(Code::Internal, "failed to sign X509-SVID");
        let mut issued = self.issue(vec![order]).await;
        issued.pop().ok_or_else(missing)?
    }

    /// Signs an agent's certificate.
    pub(super) async fn issue_agent(
        &self,
        caller: &Caller,
        id: &SpiffeId,
        key: &PublicKey,
    ) -> Result<Issued, Refusal> {
        self.issue_one(Order(X509Request {
            kind: SvidKind::Agent,
            spiffe_id: id.clone(),
            public_key: key.clone(),
            ttl: Duration::ZERO,
            caller: caller.to_string(),
            entry_id: None,
        }))
        .await
    }
}

impl Order {
    /// What an entry says, for an agent's key.
    pub(super) fn workload(agent: &AgentIdentity, entry: &Entry, key: &PublicKey) -> Self {
        Self(X509Request {
            kind: SvidKind::Workload {
                dns_names: entry.dns_names.clone(),
            },
            spiffe_id: entry.spiffe_id.clone(),
            public_key: key.clone(),
            ttl: Duration::from_secs(entry.x509_svid_ttl.into()),
            caller: agent.id.to_string(),
            entry_id: Some(entry.id.clone()),
        })
    }

    /// What an administrator's CSR says.
    pub(super) fn minted(caller: &Caller, id: SpiffeId, csr: Csr, ttl: Duration) -> Self {
        Self(X509Request {
            kind: SvidKind::Minted {
                subject: csr.subject,
                dns_names: csr.dns_names,
            },
            spiffe_id: id,
            public_key: csr.public_key,
            ttl,
            caller: caller.to_string(),
            entry_id: None,
        })
    }
}

impl Issued {
    fn read(signed: Result<X509Svid, IssueError>) -> Result<Self, Refusal> {
        let svid = signed.map_err(|error| {
            tracing::warn!(%error, "cannot sign");
            Refusal::because(Code::Internal, "failed to sign X509-SVID", error)
        })?;
        Ok(Self {
            serial: serial_decimal(&svid.leaf().serial),
            not_after: to_unix(svid.leaf().validity.not_after),
            svid,
        })
    }
}

fn unlogged(tried: &str, error: LogError) -> Refusal {
    tracing::error!(%error, "cannot write the log");
    Refusal::because(Code::Unavailable, tried, error)
}

/// How many X.509-SVIDs were signed.
#[derive(Debug, Clone, Default)]
struct Issuance {
    issued: Counter,
    failed: Counter,
    last: Gauge,
    /// The same as `issued`: SPIRE's name has no `_total` behind it.
    spire: Gauge,
}

impl Issuance {
    fn register(metrics: &Metrics) -> Self {
        let own = Self::default();
        metrics.register(|registry| {
            let help = "X.509-SVIDs signed";
            registry.register("x509_svids_issued", help, own.issued.clone());
            let help = "X.509-SVIDs that could not be signed";
            registry.register("x509_svids_failed", help, own.failed.clone());
            let help = "When the last X.509-SVID was signed, Unix seconds";
            registry.register("x509_svid_last_timestamp_seconds", help, own.last.clone());
        });
        metrics.register_spire(|registry| {
            let help = "SPIRE's name: X.509-SVIDs signed";
            registry.register("server_ca_sign_x509_svid", help, own.spire.clone());
        });
        own
    }

    /// Counts a batch that ended at `now`.
    fn count(&self, signed: &[Result<X509Svid, IssueError>], now: i64) {
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let failed = signed.iter().filter(|one| one.is_err()).count();
        let issued = count(signed.len().saturating_sub(failed));
        self.failed.inc_by(count(failed));
        if issued > 0 {
            self.issued.inc_by(issued);
            self.spire.inc_by(i64::try_from(issued).unwrap_or(i64::MAX));
            self.last.set(now);
        }
    }
}

fn attestations(metrics: &Metrics) -> Counter {
    let attestations = Counter::default();
    metrics.register(|registry| {
        let help = "Agents that attested, answers given again included";
        registry.register("agent_attestations", help, attestations.clone());
    });
    attestations
}

/// The caller that the guard found out.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Refusal> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Refusal::new(Code::Internal, "call without a caller"))
}

/// The agent that calls.
pub(super) fn agent(caller: &Caller) -> Result<&AgentIdentity, Refusal> {
    let missing = || Refusal::new(Code::Internal, "caller ID missing from request context");
    caller.agent.as_ref().ok_or_else(missing)
}

/// Until when the caller waits.
pub(super) fn patience<T>(request: &Request<T>, parts: &Parts) -> Patience {
    let known = request.extensions().get::<Patience>().copied();
    known.unwrap_or_else(|| Patience::of(request.metadata().as_ref(), parts.clock.monotonic()))
}

/// A count as the wire has it.
pub(super) fn count_to_wire(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}
