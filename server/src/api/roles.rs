//! Who a caller is (SPIRE.md 1.7): local, administrator, downstream server or agent.
//!
//! *Hot state may allow, it may not deny*: a denial that makes an agent drop what it has is
//! confirmed by a linearizable read of the store first, counted, and limited per agent. Over
//! that limit, and while the store cannot be read, the answer is one that an agent retries.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tonic::Code;
use vane_chassis::clock::Clock;
use vane_chassis::metrics::Metrics;
use vane_chassis::mtls::PeerSvid;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::lifetime::to_unix;
use vane_store::kv::Kv;
use vane_store::tables::agents;
use vane_wire::record::{AgentRecord, Previous};
use vane_wire::status::{Reason, Refusal};

use crate::caller::{
    ADMIN, AGENT, ANY, AgentIdentity, Caller, DOWNSTREAM, Denial, LOCAL, Method, Transport,
};
use crate::rate_limit::Limits;
use crate::state::State;

/// Decides who callers are.
pub(super) struct Roles {
    pub(super) trust_domain: TrustDomain,
    pub(super) admin_ids: HashSet<SpiffeId>,
    pub(super) kv: Arc<dyn Kv>,
    pub(super) state: Arc<State>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) limits: Arc<Limits>,
    pub(super) counters: Counters,
}

/// How often callers were denied, and how often hot state was about to be wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters {
    denied: Family<[(&'static str, &'static str); 1], Counter>,
    stale: Counter,
}

impl Counters {
    pub(super) fn register(metrics: &Metrics) -> Self {
        let counters = Self::default();
        metrics.register(|registry| {
            registry.register(
                "caller_denied",
                "Calls denied, by reason",
                counters.denied.clone(),
            );
            registry.register(
                "caller_stale_denials",
                "Denials that a read of the store overruled",
                counters.stale.clone(),
            );
        });
        counters
    }
}

/// How a certificate's serial number stands to the record of its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the current one, or the one before it for a while.
    Current,
    /// It is the renewed one, seen for the first time.
    Renewed,
    /// It is not to be served.
    Denied(Denial),
}

/// So many seconds a certificate is good after the one that replaces it was seen: while an agent
/// is replaced by another process, or attests anew, both may show theirs.
const PREVIOUS: i64 = 300;

/// See [`Standing`]; `record` is that of the agent, if there is one. `now` in Unix seconds.
pub(super) fn standing(record: Option<&AgentRecord>, serial: &str, now: i64) -> Standing {
    let Some(record) = record else {
        return Standing::Denied(Denial::AgentNotAttested);
    };
    if record.banned || record.serial.is_empty() {
        return Standing::Denied(Denial::AgentBanned);
    }
    if record.serial == serial {
        return Standing::Current;
    }
    if record.new_serial.as_deref() == Some(serial) {
        return Standing::Renewed;
    }
    let previous = record.previous.as_ref();
    if previous.is_some_and(|previous| previous.serial == serial && now <= previous.until) {
        return Standing::Current;
    }
    Standing::Denied(Denial::AgentNotActive)
}

/// `record` after the first call with its renewed certificate.
pub(super) fn promoted(record: &AgentRecord, now: i64) -> AgentRecord {
    let Some(serial) = record.new_serial.clone() else {
        return record.clone();
    };
    AgentRecord {
        serial,
        not_after: record.new_not_after,
        new_serial: None,
        new_not_after: 0,
        previous: Some(Previous {
            serial: record.serial.clone(),
            until: now.saturating_add(PREVIOUS),
        }),
        ..record.clone()
    }
}

/// Why a caller is not served.
enum No {
    /// It lacks the role.
    Denied(Denial),
    /// It may have it, but that cannot be confirmed now.
    Unsure(Refusal),
}

impl Roles {
    /// The caller of `method`, with the role by which it may call it.
    ///
    /// # Errors
    /// PERMISSION_DENIED `authorization denied for method …`, with the reason for an agent;
    /// UNAVAILABLE or RESOURCE_EXHAUSTED when a denial could not be confirmed.
    pub(super) async fn caller(
        &self,
        method: Method,
        transport: Transport,
    ) -> Result<Caller, Refusal> {
        let mut caller = Caller::new(transport);
        match self.role(method, &mut caller).await {
            Ok(()) => Ok(caller),
            Err(No::Unsure(refusal)) => Err(refusal),
            Err(No::Denied(denial)) => {
                let reason = [("reason", denial.name())];
                self.counters.denied.get_or_create(&reason).inc();
                Err(refusal(method, denial))
            }
        }
    }

    async fn role(&self, method: Method, caller: &mut Caller) -> Result<(), No> {
        let allowed = method.allowed;
        if allowed.has(ANY) || (allowed.has(LOCAL) && caller.is_local()) {
            return Ok(());
        }
        let svid = caller.svid().cloned();
        let svid = svid.ok_or(No::Denied(Denial::NotAllowed))?;
        let expired = svid.not_after < self.clock.now();
        if !expired && allowed.has(ADMIN) && self.is_admin(&svid.spiffe_id) {
            caller.admin = true;
            return Ok(());
        }
        if !expired && allowed.has(DOWNSTREAM) && self.is_downstream(&svid.spiffe_id) {
            caller.downstream = true;
            return Ok(());
        }
        if !allowed.has(AGENT) || !svid.spiffe_id.is_member_of(&self.trust_domain) {
            return Err(No::Denied(Denial::NotAllowed));
        }
        if expired {
            return Err(self.expired());
        }
        caller.agent = Some(self.agent(&svid).await?);
        Ok(())
    }

    /// An agent whose certificate ended would drop what it has: right after the clock was set
    /// it is told to come again.
    fn expired(&self) -> No {
        if !self.clock.jumps().in_doubt(self.clock.monotonic()) {
            return No::Denied(Denial::AgentExpired);
        }
        let text = "the agent's certificate has ended by this server's clock, which was set minutes ago: nobody is denied by it yet";
        No::Unsure(Refusal::new(Code::Unavailable, text))
    }

    fn is_admin(&self, id: &SpiffeId) -> bool {
        self.admin_ids.contains(id) || self.state.grants(id).admin
    }

    fn is_downstream(&self, id: &SpiffeId) -> bool {
        self.state.grants(id).downstream
    }

    /// The agent that showed `svid`.
    async fn agent(&self, svid: &PeerSvid) -> Result<AgentIdentity, No> {
        let hot = self.state.agent(&svid.spiffe_id);
        match standing(hot.as_deref(), &svid.serial, to_unix(self.clock.now())) {
            Standing::Current => {}
            Standing::Renewed => self.promote(svid).await,
            Standing::Denied(_) => self.confirm(svid).await?,
        }
        Ok(AgentIdentity {
            id: svid.spiffe_id.clone(),
            serial: svid.serial.as_str().into(),
        })
    }

    /// Asks the store itself before an agent is denied.
    async fn confirm(&self, svid: &PeerSvid) -> Result<(), No> {
        let id = &svid.spiffe_id;
        self.limits
            .denial(id, self.clock.monotonic())
            .map_err(|exceeded| {
                let tried = "too many denied calls of this agent";
                No::Unsure(Refusal::because(Code::ResourceExhausted, tried, exceeded))
            })?;
        let found = agents::get(&*self.kv, id).await.map_err(|error| {
            let tried = "agent cannot be looked up";
            No::Unsure(Refusal::because(Code::Unavailable, tried, error))
        })?;
        let record = found.as_ref().map(|found| &found.value);
        match standing(record, &svid.serial, to_unix(self.clock.now())) {
            Standing::Denied(denial) => {
                tracing::info!(agent_id = %id, reason = denial.name(), "agent denied");
                return Err(No::Denied(denial));
            }
            Standing::Renewed => self.promote(svid).await,
            Standing::Current => {}
        }
        self.counters.stale.inc();
        Ok(())
    }

    /// Makes the renewed certificate the current one, now that it was seen. When that does not
    /// succeed the next call tries again: both certificates are good until then.
    async fn promote(&self, svid: &PeerSvid) {
        let id = &svid.spiffe_id;
        let now = to_unix(self.clock.now());
        let promoted = agents::change(&*self.kv, id, |record| {
            (standing(Some(record), &svid.serial, now) == Standing::Renewed)
                .then(|| promoted(record, now))
        });
        match promoted.await {
            Ok(revision) => {
                tracing::debug!(agent_id = %id, revision, "renewed certificate is in use");
            }
            Err(error) => {
                tracing::warn!(agent_id = %id, %error, "renewed certificate not recorded yet");
            }
        }
    }
}

fn refusal(method: Method, denial: Denial) -> Refusal {
    let text = format!("authorization denied for method {}", method.path);
    let reason = match denial {
        Denial::NotAllowed => return Refusal::new(Code::PermissionDenied, text),
        Denial::AgentExpired => Reason::AgentExpired,
        Denial::AgentNotAttested => Reason::AgentNotAttested,
        Denial::AgentNotActive => Reason::AgentNotActive,
        Denial::AgentBanned => Reason::AgentBanned,
    };
    Refusal::denied(reason, text)
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roles")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}
