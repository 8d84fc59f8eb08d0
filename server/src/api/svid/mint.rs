//! MintX509SVID: what an administrator asks for with a CSR, without an entry.

use std::time::Duration;

use tonic::Code;
use vane_authority::csr::{self, Csr, CsrError};
use vane_identity::entry::check_dns_name;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_wire::convert;
use vane_wire::convert::id::IdRefusal;
use vane_wire::spire::api::server::svid::v1::MintX509svidRequest;
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use crate::api::Parts;
use crate::api::parts::Order;
use crate::caller::Caller;

/// Signs what the CSR says: key, SPIFFE ID, subject and DNS names.
///
/// # Errors
/// INVALID_ARGUMENT in SPIRE's words.
pub(super) async fn mint(
    parts: &Parts,
    caller: &Caller,
    request: &MintX509svidRequest,
) -> Result<types::X509svid, Refusal> {
    let invalid = |text: String| Refusal::new(Code::InvalidArgument, text);
    if request.csr.is_empty() {
        return Err(invalid("missing CSR".to_owned()));
    }
    let ttl = u64::try_from(request.ttl)
        .map(Duration::from_secs)
        .map_err(|_| invalid(format!("ttl is negative: {}", request.ttl)))?;
    parts.check_fresh()?;
    let csr = csr::verify(&request.csr).map_err(|error| refused(&error))?;
    let id = spiffe_id(&csr, &parts.trust_domain)?;
    check_dns_names(&csr.dns_names)?;
    let order = Order::minted(caller, id, csr, ttl);
    let issued = parts.issue_one(order).await?;
    Ok(convert::svid::to_wire(&issued.svid))
}

/// Of a wrong signature SPIRE speaks in other words here than in a batch.
fn refused(error: &CsrError) -> Refusal {
    let text = error.to_string();
    let why = text.strip_prefix("invalid CSR signature: ");
    match why.filter(|_| error.is_signature()) {
        Some(why) => {
            let tried = "failed to verify CSR signature";
            Refusal::because(Code::InvalidArgument, tried, why)
        }
        None => Refusal::new(Code::InvalidArgument, text),
    }
}

fn spiffe_id(csr: &Csr, own: &TrustDomain) -> Result<SpiffeId, Refusal> {
    let code = Code::InvalidArgument;
    let uri = match csr.uris.as_slice() {
        [] => return Err(Refusal::new(code, "CSR URI SAN is required")),
        [uri] => uri,
        _ => return Err(Refusal::new(code, "only one URI SAN is expected")),
    };
    let id = SpiffeId::parse(uri)
        .map_err(|error| Refusal::because(code, "CSR URI SAN is invalid", error))?;
    let wire = types::Spiffeid::from(&id);
    convert::id::workload(own, Some(&wire))
        .map_err(|error: IdRefusal| Refusal::of("CSR URI SAN is invalid", &error))
}

fn check_dns_names(names: &[String]) -> Result<(), Refusal> {
    let code = Code::InvalidArgument;
    for name in names {
        check_dns_name(name)
            .map_err(|error| Refusal::because(code, "CSR DNS name is invalid", error))?;
    }
    match names.iter().find(|name| covered(name, names)) {
        Some(name) => {
            let tried = "CSR DNS name contains a wildcard that covers another non-wildcard name";
            let why = format!(
                "name \"{name}\" overlaps with an existing wildcard name in the list: wildcard overlap"
            );
            Err(Refusal::because(code, tried, why))
        }
        None => Ok(()),
    }
}

/// Whether a wildcard of `names` stands for `name` as well.
fn covered(name: &str, names: &[String]) -> bool {
    let Some((label, parent)) = name.split_once('.') else {
        return false;
    };
    label != "*"
        && names
            .iter()
            .any(|other| other.strip_prefix("*.") == Some(parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_wildcard_must_not_cover_another_name() {
        for good in [
            &["a.example.org", "b.example.org"][..],
            &["*.example.org", "example.org"],
            &["*.example.org", "a.b.example.org"],
            &["*.example.org", "*.b.example.org"],
            &[],
        ] {
            assert!(check_dns_names(&names(good)).is_ok(), "{good:?}");
        }
        let refused = check_dns_names(&names(&["a.example.org", "*.example.org"])).unwrap_err();
        assert!(
            refused
                .message()
                .starts_with("CSR DNS name contains a wildcard")
        );
        let refused = check_dns_names(&names(&["a..b"])).unwrap_err();
        assert!(refused.message().starts_with("CSR DNS name is invalid: "));
    }
}
