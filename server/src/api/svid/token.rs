//! NewJWTSVID and MintJWTSVID: tokens for an entry that an agent may have, and for what an
//! administrator says. Both go the one way of `vane_authority::issue`.

use std::time::Duration;

use tonic::Code;
use vane_authority::issue::{IssueError, JwtRequest};
use vane_authority::kind::Kind;
use vane_authority::profile::LintError;
use vane_identity::jwt_svid::JwtSvid;
use vane_wire::convert;
use vane_wire::spire::api::server::svid::v1::{MintJwtsvidRequest, NewJwtsvidRequest};
use vane_wire::spire::api::types;
use vane_wire::status::Refusal;

use super::judge::Judge;
use crate::api::Parts;
use crate::api::patience::{self, Patience};
use crate::caller::{AgentIdentity, Caller};

/// A token for an entry of the agent.
///
/// # Errors
/// NOT_FOUND, INVALID_ARGUMENT and RESOURCE_EXHAUSTED in SPIRE's words; UNIMPLEMENTED when
/// tokens are switched off.
pub(super) async fn issue(
    parts: &Parts,
    agent: &AgentIdentity,
    patience: Patience,
    request: NewJwtsvidRequest,
) -> Result<types::Jwtsvid, Refusal> {
    check_enabled(parts)?;
    let now = parts.clock.monotonic();
    let reserved = parts.limits.tokens(&agent.id, now, patience.left(now));
    patience::turn("JWT signing request", reserved).await?;
    let freshness = parts.freshness()?;
    let mut judge = Judge::new(parts, &agent.id, freshness);
    let entry = judge.entry(&request.entry_id).await?;
    let attributes = entry.additional_attributes.as_ref();
    let wanted = JwtRequest {
        spiffe_id: entry.spiffe_id.clone(),
        audience: request.audience,
        ttl: Duration::from_secs(entry.jwt_svid_ttl.into()),
        with_id: attributes.is_some_and(|all| all.jwt_svid_include_jti),
        caller: agent.id.to_string(),
        entry_id: Some(entry.id.clone()),
    };
    let svid = sign(parts, wanted).await?;
    parts.recent.add(&agent.id, &entry.id);
    Ok(convert::svid::token_to_wire(&svid))
}

/// A token for any workload of the trust domain.
///
/// # Errors
/// INVALID_ARGUMENT in SPIRE's words; UNIMPLEMENTED when tokens are switched off.
pub(super) async fn mint(
    parts: &Parts,
    caller: &Caller,
    request: MintJwtsvidRequest,
) -> Result<types::Jwtsvid, Refusal> {
    check_enabled(parts)?;
    let invalid = |text: String| Refusal::new(Code::InvalidArgument, text);
    let spiffe_id = convert::id::workload(&parts.trust_domain, request.id.as_ref())
        .map_err(|error| Refusal::of("invalid SPIFFE ID", &error))?;
    let ttl = u64::try_from(request.ttl)
        .map(Duration::from_secs)
        .map_err(|_| invalid(format!("ttl is negative: {}", request.ttl)))?;
    parts.check_fresh()?;
    let wanted = JwtRequest {
        spiffe_id,
        audience: request.audience,
        ttl,
        with_id: false,
        caller: caller.to_string(),
        entry_id: None,
    };
    let svid = sign(parts, wanted).await?;
    Ok(convert::svid::token_to_wire(&svid))
}

fn check_enabled(parts: &Parts) -> Result<(), Refusal> {
    if parts.authority.profile().signs(Kind::Jwt) {
        return Ok(());
    }
    let text = "JWT functionality is disabled";
    Err(Refusal::new(Code::Unimplemented, text))
}

async fn sign(parts: &Parts, wanted: JwtRequest) -> Result<JwtSvid, Refusal> {
    let tried = "failed to sign JWT-SVID";
    let missing = || Refusal::new(Code::Internal, tried);
    let mut signed = parts.authority.issue_jwt(vec![wanted]).await;
    signed.pop().ok_or_else(missing)?.map_err(|error| {
        tracing::warn!(%error, "cannot sign a token");
        match error {
            IssueError::Lint(LintError::NoAudience) => {
                Refusal::new(Code::InvalidArgument, LintError::NoAudience.to_string())
            }
            IssueError::Lint(LintError::Audience { .. } | LintError::TooLarge(_)) => {
                Refusal::because(Code::InvalidArgument, tried, error)
            }
            _ => Refusal::because(Code::Internal, tried, error),
        }
    })
}
