//! Listing federated bundles: pages, and the size of one message.

use prost::Message as _;
use tonic::Code;
use vane_identity::id::TrustDomain;
use vane_wire::convert;
use vane_wire::spire::api::server::bundle::v1::{
    ListFederatedBundlesRequest, ListFederatedBundlesResponse,
};
use vane_wire::status::Refusal;

use crate::api::{MAX_MESSAGE, Parts};

/// Tag and length of a message in a list.
pub(super) const ITEM_OVERHEAD: usize = 6;
/// A page ends before this size whatever page_size says.
const PAGE_BYTES: usize = MAX_MESSAGE / 4 * 3;
/// Room for the rest of the message.
const REST: usize = 1024;

/// Answers a list request: all but the own bundle, in order of trust domain.
///
/// # Errors
/// INVALID_ARGUMENT for a token that is none, RESOURCE_EXHAUSTED when all were asked for and
/// do not fit into one message.
pub(super) fn list(
    parts: &Parts,
    request: &ListFederatedBundlesRequest,
) -> Result<ListFederatedBundlesResponse, Refusal> {
    // SPIRE: without a page size everything is asked for, and the token is not looked at.
    let wanted = usize::try_from(request.page_size).ok().filter(|n| *n > 0);
    let after = match wanted {
        Some(_) => token(&request.page_token)?,
        None => None,
    };
    let limit = if wanted.is_some() {
        PAGE_BYTES
    } else {
        MAX_MESSAGE - REST
    };
    let (all, _) = parts.state.bundles();
    let federated = all
        .iter()
        .filter(|bundle| bundle.trust_domain != parts.trust_domain)
        .filter(|bundle| {
            after
                .as_ref()
                .is_none_or(|after| bundle.trust_domain > *after)
        });
    let (mut bundles, mut bytes) = (Vec::new(), 0);
    let mut next_page_token = String::new();
    let mut last = String::new();
    for bundle in federated {
        let shown = convert::bundle::apply_mask((&**bundle).into(), request.output_mask.as_ref());
        bytes += shown.encoded_len() + ITEM_OVERHEAD;
        if bytes > limit && wanted.is_none() {
            return Err(too_large(all.len()));
        }
        let is_full = wanted.is_some_and(|wanted| bundles.len() >= wanted);
        if is_full || (bytes > limit && !bundles.is_empty()) {
            next_page_token = last;
            break;
        }
        bundle.trust_domain.as_str().clone_into(&mut last);
        bundles.push(shown);
    }
    Ok(ListFederatedBundlesResponse {
        bundles,
        next_page_token,
    })
}

fn token(text: &str) -> Result<Option<TrustDomain>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    TrustDomain::parse(text).map(Some).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        let text = format!("could not parse token '{shown}'");
        Refusal::new(Code::InvalidArgument, text)
    })
}

fn too_large(count: usize) -> Refusal {
    let text = format!(
        "{count} bundles do not fit into one message of {MAX_MESSAGE} bytes: use page_size"
    );
    Refusal::new(Code::ResourceExhausted, text)
}
