//! What an attested agent asks for itself: a renewed certificate, and to be seen alive.

use tonic::Code;
use vane_authority::csr;
use vane_identity::lifetime::to_unix;
use vane_store::kv::CommitError;
use vane_store::tables::agents;
use vane_store::tables::row::ChangeError;
use vane_wire::convert;
use vane_wire::convert::agent::MAX_AGENT_VERSION_BYTES;
use vane_wire::record::AgentRecord;
use vane_wire::spire::api::server::agent::v1::AgentX509svidParams;
use vane_wire::spire::api::types;
use vane_wire::status::{Reason, Refusal};

use crate::api::Parts;
use crate::api::parts::Issued;
use crate::api::patience::{self, Patience};
use crate::api::roles::{Standing, promoted, standing};
use crate::caller::{AgentIdentity, Caller, Denial};

const TRIES: usize = 8;

/// A new certificate for an agent. The present one stays good until the new one is seen.
///
/// # Errors
/// PERMISSION_DENIED with AGENT_MUST_REATTEST for one whose method can be repeated.
pub(super) async fn renew(
    parts: &Parts,
    caller: &Caller,
    agent: &AgentIdentity,
    patience: Patience,
    params: Option<AgentX509svidParams>,
) -> Result<types::X509svid, Refusal> {
    let now = parts.clock.monotonic();
    let reserved = parts.limits.signing(&agent.id, 1, now, patience.left(now));
    patience::turn("renew agent", reserved).await?;
    let invalid = |text| Refusal::new(Code::InvalidArgument, text);
    let csr = params.ok_or_else(|| invalid("params cannot be nil"))?.csr;
    if csr.is_empty() {
        return Err(invalid("missing CSR"));
    }
    parts.freshness()?;
    let key = csr::parse_unverified(&csr)
        .map_err(|error| Refusal::because(Code::InvalidArgument, "failed to parse CSR", error))?
        .public_key;
    let renewable = parts.state.agent(&agent.id);
    if renewable.is_some_and(|record| record.can_reattest) {
        let text = "agent must reattest instead of renew";
        return Err(Refusal::denied(Reason::AgentMustReattest, text));
    }
    let issued = parts.issue_agent(caller, &agent.id, &key).await?;
    record(parts, agent, &issued).await?;
    tracing::info!(agent_id = %agent.id, serial = %issued.serial, "agent renewed");
    Ok(convert::svid::to_wire(&issued.svid))
}

/// Writes the new serial number down before the certificate is handed out.
async fn record(parts: &Parts, agent: &AgentIdentity, issued: &Issued) -> Result<(), Refusal> {
    let tried = "failed to update agent";
    let now = to_unix(parts.clock.now());
    for _ in 0..TRIES {
        let row = agents::get(&*parts.kv, &agent.id)
            .await
            .map_err(|error| parts.store_refusal(tried, &CommitError::Kv(error)))?;
        let record = row.as_ref().map(|row| &row.value);
        let base = match (standing(record, &agent.serial, now), record) {
            (Standing::Current, Some(record)) => record.clone(),
            (Standing::Renewed, Some(record)) => promoted(record, now),
            (Standing::Denied(denial), _) => return Err(denied(denial)),
            (_, None) => return Err(denied(Denial::AgentNotAttested)),
        };
        let next = AgentRecord {
            new_serial: Some(issued.serial.clone()),
            new_not_after: issued.not_after,
            ..base
        };
        match parts.kv.commit(agents::put(row.as_ref(), &next)).await {
            Ok(revision) => {
                parts.seen(revision).await;
                return Ok(());
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    let why = "it was changed by others meanwhile, try again";
    Err(Refusal::because(Code::Aborted, tried, why))
}

/// The agent lost its standing between the guard and the store, which said so itself.
fn denied(denial: Denial) -> Refusal {
    let reason = match denial {
        Denial::AgentExpired => Reason::AgentExpired,
        Denial::AgentNotAttested => Reason::AgentNotAttested,
        Denial::AgentBanned => Reason::AgentBanned,
        Denial::AgentNotActive | Denial::NotAllowed => Reason::AgentNotActive,
    };
    Refusal::denied(reason, "failed to update agent: agent is not active")
}

/// Keeps the version that an agent reports. An unchanged one is no write.
///
/// # Errors
/// INVALID_ARGUMENT for a version that is too long.
pub(super) async fn post_status(
    parts: &Parts,
    agent: &AgentIdentity,
    patience: Patience,
    version: String,
) -> Result<(), Refusal> {
    let now = parts.clock.monotonic();
    let reserved = parts.limits.post_status(&agent.id, now, patience.left(now));
    patience::turn("post status", reserved).await?;
    if version.len() > MAX_AGENT_VERSION_BYTES {
        let text = format!("agent version is too long (max {MAX_AGENT_VERSION_BYTES} characters)");
        return Err(Refusal::new(Code::InvalidArgument, text));
    }
    let known = parts.state.agent(&agent.id);
    if known.is_some_and(|record| record.agent_version == version) {
        return Ok(());
    }
    let tried = "failed to post status";
    let changed = agents::change(&*parts.kv, &agent.id, |record| {
        Some(AgentRecord {
            agent_version: version.clone(),
            ..record.clone()
        })
    });
    match changed.await {
        Ok(revision) => parts.seen(revision).await,
        Err(ChangeError::Missing) => {
            return Err(Refusal::new(Code::NotFound, "agent not found"));
        }
        Err(error) => return Err(parts.change_refusal(tried, &error)),
    }
    Ok(())
}
