//! A node that may prove itself again and again: it renews by that.
//!
//! One transaction writes the agent's record with the selectors that were found out now. The
//! previous certificate stays good until the new one is seen, as with a renewal: a lost answer
//! is not a lost agent. A ban outlives every proof; an ID that another method made is nobody
//! else's.

use tonic::Code;
use vane_attest::Attested;
use vane_identity::id::SpiffeId;
use vane_identity::selector::{Selector, SelectorError, SelectorSet};
use vane_store::kv::CommitError;
use vane_store::tables::agents;
use vane_wire::record::AgentRecord;
use vane_wire::status::Refusal;

use super::{Node, TRIES, banned};
use crate::api::parts::Issued;
use crate::api::patience;
use crate::audit;

/// Gives the node its certificate.
///
/// # Errors
/// PERMISSION_DENIED for a banned agent and for the ID of another method; INTERNAL when the
/// method made no ID of an agent.
pub(super) async fn admit(
    node: &Node<'_>,
    method: &'static str,
    attested: &Attested,
) -> Result<Issued, Refusal> {
    let parts = node.parts;
    let internal = |error: &dyn std::fmt::Display| {
        Refusal::because(Code::Internal, "failed to make spiffe id", error)
    };
    let path = format!("/spire/agent{}", attested.path);
    let id = parts
        .trust_domain
        .with_path(&path)
        .map_err(|error| internal(&error))?;
    if !id.is_agent() {
        return Err(internal(&"the path is none of an agent"));
    }
    let selectors = selectors(method, &attested.selectors)
        .map_err(|error| Refusal::because(Code::Internal, "failed to update selectors", error))?;
    let now = parts.clock.monotonic();
    let reserved = parts.limits.signing(&id, 1, now, node.patience.left(now));
    patience::turn("attest agent", reserved).await?;
    parts.check_fresh()?;
    let key = node.key()?;
    for _ in 0..TRIES {
        let row = agents::get(&*parts.kv, &id).await.map_err(|error| {
            parts.store_refusal("failed to fetch agent", &CommitError::Kv(error))
        })?;
        if let Some(row) = &row {
            judge(&row.value, method)?;
        }
        let issued = parts.issue_agent(node.caller, &id, &key).await?;
        let fresh = record(&id, method, &issued);
        let record = AgentRecord {
            selectors: selectors.clone(),
            can_reattest: true,
            csr_key_sha256: Some(key.sha256()),
            ..row
                .as_ref()
                .map_or(fresh, |row| renewed(&row.value, &issued))
        };
        match parts.kv.commit(agents::put(row.as_ref(), &record)).await {
            Ok(revision) => {
                let leaf = audit::attestation(node.caller, &id, method, &issued.serial);
                parts.append(leaf, "failed to attest").await?;
                parts.seen(revision).await;
                node.admitted(&id, method, &issued);
                return Ok(issued);
            }
            // It was renewed or banned meanwhile: look again.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => {
                return Err(parts.store_refusal("failed to update attested agent", &error));
            }
        }
    }
    let why = "the agent was changed by others meanwhile, try again";
    Err(Refusal::because(Code::Aborted, "failed to attest", why))
}

pub(super) fn judge(agent: &AgentRecord, method: &str) -> Result<(), Refusal> {
    if agent.banned || agent.serial.is_empty() {
        return Err(banned());
    }
    if agent.attestation_type != method {
        let known = &agent.attestation_type;
        let text = format!("failed to attest: the agent ID is one of node attestor {known}");
        return Err(Refusal::new(Code::PermissionDenied, text));
    }
    Ok(())
}

fn record(id: &SpiffeId, method: &str, issued: &Issued) -> AgentRecord {
    AgentRecord {
        spiffe_id: id.clone(),
        attestation_type: method.to_owned(),
        serial: issued.serial.clone(),
        new_serial: None,
        not_after: issued.not_after,
        new_not_after: 0,
        selectors: SelectorSet::default(),
        banned: false,
        can_reattest: true,
        agent_version: String::new(),
        csr_key_sha256: None,
        previous: None,
    }
}

fn renewed(agent: &AgentRecord, issued: &Issued) -> AgentRecord {
    AgentRecord {
        new_serial: Some(issued.serial.clone()),
        new_not_after: issued.not_after,
        ..agent.clone()
    }
}

fn selectors(method: &str, values: &[String]) -> Result<SelectorSet, SelectorError> {
    let read = |value: &String| Selector::new(method, value);
    values.iter().map(read).collect()
}
