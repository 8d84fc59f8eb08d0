//! What a token may contain and how long it may live (SPIRE.md 1.2, JWT-SVID.md section 3).

use std::time::{Duration, SystemTime};

use vane_identity::id::SpiffeId;
use vane_identity::jwt_svid::{MAX_AUDIENCE_BYTES, MAX_AUDIENCES};
use vane_identity::lifetime::to_unix;

use super::{LintError, MAX_AUDIENCES_BYTES, MAX_TTL, Profile, SvidKind};

/// Every claim of a token, except its ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPlan {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `aud`; at least one.
    pub audience: Vec<String>,
    /// `iat`, seconds since the Unix epoch.
    pub issued_at: i64,
    /// `exp`, likewise: at most the end of the key.
    pub expires_at: i64,
    /// `iss`
    pub issuer: Option<String>,
}

/// What [`Profile::plan_token`] is asked for.
#[derive(Debug, Clone, Copy)]
pub struct WantedToken<'a> {
    /// For whom: a workload.
    pub spiffe_id: &'a SpiffeId,
    /// Whom the token is for; empty ones are left out, as SPIRE does.
    pub audience: &'a [String],
    /// How long from now; zero = the default.
    pub ttl: Duration,
}

impl Profile {
    /// Decides every claim of a token issued `now` by a key that ends at `key_not_after`.
    ///
    /// # Errors
    /// [`LintError`]: the request asks for what no token may contain.
    pub fn plan_token(
        &self,
        wanted: &WantedToken<'_>,
        now: SystemTime,
        key_not_after: SystemTime,
    ) -> Result<TokenPlan, LintError> {
        let workload = SvidKind::Workload {
            dns_names: Vec::new(),
        };
        self.lint(&workload, wanted.spiffe_id)?;
        let ttl = match wanted.ttl {
            Duration::ZERO => self.default_jwt_ttl,
            ttl => ttl.min(MAX_TTL),
        };
        Ok(TokenPlan {
            spiffe_id: wanted.spiffe_id.clone(),
            audience: audience(wanted.audience)?,
            issued_at: to_unix(now),
            expires_at: to_unix((now + ttl).min(key_not_after)),
            issuer: self.jwt_issuer.clone(),
        })
    }
}

fn audience(wanted: &[String]) -> Result<Vec<String>, LintError> {
    let bytes = wanted.iter().map(String::len).sum();
    let too_long = |one: &String| one.len() > MAX_AUDIENCE_BYTES;
    if wanted.len() > MAX_AUDIENCES || bytes > MAX_AUDIENCES_BYTES || wanted.iter().any(too_long) {
        let count = wanted.len();
        return Err(LintError::Audience { count, bytes });
    }
    let said = wanted.iter().filter(|one| !one.is_empty()).cloned();
    let said: Vec<String> = said.collect();
    if said.is_empty() {
        return Err(LintError::NoAudience);
    }
    Ok(said)
}
