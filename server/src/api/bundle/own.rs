//! Adding authorities to the own bundle: by hand, and the JWT keys of downstream servers.
//!
//! Half of the room of each kind stays for this server's own rotation, and no key takes the
//! ID of another: neither an administrator nor a downstream server can hold up the rotation
//! or make tokens of this server fail.

use tonic::Code;
use vane_identity::bundle::{Bundle, JwtAuthority, MAX_AUTHORITIES, X509Authority};
use vane_store::kv::{CommitError, Kv as _};
use vane_store::tables::bundles;
use vane_wire::convert;
use vane_wire::spire::api::server::bundle::v1::AppendBundleRequest;
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::{busy, not_found};
use crate::api::Parts;
use crate::api::patience::{self, Patience};
use crate::audit::Change;
use crate::caller::Caller;

/// How often a change is tried again that lost against another one.
const TRIES: usize = 64;
/// Authorities of a kind, those of this server too, up to which others are added.
const ROOM: usize = MAX_AUTHORITIES / 2;

/// Authorities that are to be added.
struct Added {
    x509: Vec<X509Authority>,
    jwt: Vec<JwtAuthority>,
}

/// Adds what an administrator gives.
///
/// # Errors
/// INVALID_ARGUMENT for no authorities and those that are none, RESOURCE_EXHAUSTED when there
/// are too many.
pub(super) async fn append(
    parts: &Parts,
    caller: &Caller,
    request: AppendBundleRequest,
) -> Result<types::Bundle, Refusal> {
    if request.x509_authorities.is_empty() && request.jwt_authorities.is_empty() {
        let text = "no authorities to append";
        return Err(Refusal::new(Code::InvalidArgument, text));
    }
    let jwt = request.jwt_authorities.iter().map(JwtAuthority::try_from);
    let jwt = jwt
        .collect::<Result<_, _>>()
        .map_err(|error| Refusal::of("failed to convert JWT authority", &error))?;
    let x509 = request.x509_authorities.iter().map(x509_authority);
    let x509 = x509.collect::<Result<_, Refusal>>()?;
    let added = Added { x509, jwt };
    let tried = "failed to append bundle";
    let bundle = add(parts, caller, &added, appended, tried).await?;
    let shown = types::Bundle::from(&bundle);
    Ok(convert::bundle::apply_mask(
        shown,
        request.output_mask.as_ref(),
    ))
}

/// Adds the key of a downstream server; returns all keys.
///
/// # Errors
/// INVALID_ARGUMENT for no key, RESOURCE_EXHAUSTED over the rate and when there are too many.
pub(super) async fn publish(
    parts: &Parts,
    caller: &Caller,
    patience: Patience,
    key: Option<types::JwtKey>,
) -> Result<Vec<types::JwtKey>, Refusal> {
    if let Some(svid) = caller.svid() {
        let now = parts.clock.monotonic();
        let left = patience.left(now);
        let reserved = parts.limits.signing(&svid.spiffe_id, 1, now, left);
        patience::turn("key publishing", reserved).await?;
    }
    parts.check_fresh()?;
    let missing = || Refusal::new(Code::InvalidArgument, "missing JWT authority");
    let key = JwtAuthority::try_from(&key.ok_or_else(missing)?)
        .map_err(|error| Refusal::of("invalid JWT authority", &error))?;
    let tried = "failed to publish JWT key";
    let added = Added {
        x509: Vec::new(),
        jwt: vec![key],
    };
    let bundle = add(parts, caller, &added, published, tried).await?;
    Ok(types::Bundle::from(&bundle).jwt_authorities)
}

fn x509_authority(wire: &types::X509Certificate) -> Result<X509Authority, Refusal> {
    let tried = "failed to convert X.509 authority";
    let authority = X509Authority::try_from(wire)
        .map_err(|error| Refusal::because(Code::InvalidArgument, tried, error))?;
    // As SPIRE: an authority is tainted by LocalAuthority only.
    Ok(X509Authority::new(authority.certificate))
}

fn appended(bundle: &Bundle) -> Change<'_> {
    Change::BundleAppended(bundle)
}

fn published(bundle: &Bundle) -> Change<'_> {
    Change::JwtAuthorityPublished(bundle)
}

/// Adds what is not there, and acknowledges it as `change`; the bundle that it makes.
async fn add(
    parts: &Parts,
    caller: &Caller,
    added: &Added,
    change: for<'b> fn(&'b Bundle) -> Change<'b>,
    tried: &str,
) -> Result<Bundle, Refusal> {
    for _ in 0..TRIES {
        let row = bundles::get(&*parts.kv, &parts.trust_domain).await;
        let row = row
            .map_err(|error| parts.store_refusal(tried, &error.into()))?
            .ok_or_else(not_found)?;
        let bundle = merged(row.value.clone(), added, tried)?;
        let bundle = bundles::numbered(Some(&row), bundle);
        let intent = parts.intend(caller, change(&bundle));
        let stored = if bundle == row.value {
            Ok(row.mod_revision)
        } else {
            let txn = bundles::put(Some(&row), bundle.clone());
            intent.kv().commit(txn).await
        };
        match stored {
            Ok(revision) => {
                parts.acknowledge(intent, revision, tried).await?;
                return Ok(bundle);
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(parts.store_refusal(tried, &error)),
        }
    }
    Err(busy(tried))
}

fn merged(mut bundle: Bundle, added: &Added, tried: &str) -> Result<Bundle, Refusal> {
    for one in &added.x509 {
        let same = |known: &X509Authority| known.certificate == one.certificate;
        if !bundle.x509_authorities.iter().any(same) {
            room(bundle.x509_authorities.len(), "X.509 authorities", tried)?;
            bundle.x509_authorities.push(one.clone());
        }
    }
    for one in &added.jwt {
        let same = |known: &&JwtAuthority| known.key_id == one.key_id;
        match bundle.jwt_authorities.iter().find(same) {
            Some(known) if known.public_key == one.public_key => {}
            Some(_) => {
                let why = format!("key ID {:?} is that of another key", one.key_id);
                return Err(Refusal::because(Code::InvalidArgument, tried, why));
            }
            None => {
                room(bundle.jwt_authorities.len(), "JWT authorities", tried)?;
                bundle.jwt_authorities.push(one.clone());
            }
        }
    }
    Ok(bundle)
}

fn room(held: usize, what: &str, tried: &str) -> Result<(), Refusal> {
    if held < ROOM {
        return Ok(());
    }
    let why = format!("the bundle has {held} {what}, others are added up to {ROOM} only");
    Err(Refusal::because(Code::ResourceExhausted, tried, why))
}
