//! BatchNewX509SVID: SVIDs for entries that an agent may have.
//!
//! Each item is judged by itself; those that pass are signed together.

use std::sync::Arc;

use tonic::Code;
use vane_authority::csr;
use vane_identity::entry::Entry;
use vane_identity::key::PublicKey;
use vane_wire::convert;
use vane_wire::spire::api::server::svid::v1::{NewX509svidParams, batch_new_x509svid_response};
use vane_wire::status::{self, Refusal};

use super::judge::Judge;
use crate::api::Parts;
use crate::api::parts::Order;
use crate::api::patience::{self, Patience};
use crate::caller::AgentIdentity;

/// The most items of a batch, whether or not there is a rate: their SVIDs fit into a message.
const MAX_ITEMS: usize = 2_000;
/// CSRs verified between two chances for others: about half a millisecond.
const CSRS_AT_ONCE: usize = 8;

const METHOD: &str = "/spire.api.server.svid.v1.SVID/BatchNewX509SVID";

type Outcome = batch_new_x509svid_response::Result;

/// Answers one batch, in its order.
///
/// # Errors
/// INVALID_ARGUMENT `missing parameters`, RESOURCE_EXHAUSTED over the rate; everything else
/// is the status of an item.
pub(super) async fn issue(
    parts: &Parts,
    agent: &AgentIdentity,
    patience: Patience,
    params: Vec<NewX509svidParams>,
) -> Result<Vec<Outcome>, Refusal> {
    if params.is_empty() {
        let text = "missing parameters";
        return Err(Refusal::new(Code::InvalidArgument, text));
    }
    if params.len() > MAX_ITEMS {
        let count = params.len();
        let text = format!("too many items in one batch: {count}, {MAX_ITEMS} are allowed");
        return Err(Refusal::new(Code::InvalidArgument, text));
    }
    let now = parts.clock.monotonic();
    let left = patience.left(now);
    let reserved = parts.limits.signing(&agent.id, params.len(), now, left);
    patience::turn("certificate signing", reserved).await?;
    let freshness = parts.freshness()?;
    let mut judge = Judge::new(parts, &agent.id, freshness);
    let judged = all(&mut judge, &params).await;
    let orders = judged
        .iter()
        .filter_map(|judged| judged.as_ref().ok())
        .map(|(entry, key)| Order::workload(agent, entry, key))
        .collect();
    let mut issued = parts.issue(orders).await.into_iter();
    let outcomes = judged.into_iter().map(|judged| match judged {
        Err(refusal) => {
            parts.refused(METHOD, &agent.id, &refusal);
            refused(refusal)
        }
        Ok((entry, _)) => match issued.next() {
            Some(Ok(issued)) => {
                parts.recent.add(&agent.id, &entry.id);
                Outcome {
                    status: Some(status::ok()),
                    svid: Some(convert::svid::to_wire(&issued.svid)),
                }
            }
            Some(Err(refusal)) => refused(refusal),
            None => refused(Refusal::new(Code::Internal, "failed to sign X509-SVID")),
        },
    });
    Ok(outcomes.collect())
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome {
        status: Some(refusal.item()),
        svid: None,
    }
}

type Judged = Result<(Arc<Entry>, PublicKey), Refusal>;

async fn all(judge: &mut Judge<'_>, params: &[NewX509svidParams]) -> Vec<Judged> {
    let mut judged = Vec::with_capacity(params.len());
    for (at, param) in params.iter().enumerate() {
        if at % CSRS_AT_ONCE == CSRS_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        judged.push(one(judge, param).await);
    }
    judged
}

async fn one(judge: &mut Judge<'_>, param: &NewX509svidParams) -> Judged {
    let invalid = |text: String| Refusal::new(Code::InvalidArgument, text);
    if param.entry_id.is_empty() {
        return Err(invalid("missing entry ID".to_owned()));
    }
    if param.csr.is_empty() {
        return Err(invalid("missing CSR".to_owned()));
    }
    let entry = judge.entry(&param.entry_id).await?;
    let csr = csr::verify(&param.csr).map_err(|error| invalid(error.to_string()))?;
    Ok((entry, csr.public_key))
}
