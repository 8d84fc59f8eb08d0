//! The steps of a token.

use std::time::{Duration, SystemTime};

use vane_identity::entry::EntryId;
use vane_identity::id::SpiffeId;
use vane_identity::jwt_svid::{JwtSvid, MAX_TOKEN_BYTES};
use vane_identity::lifetime::Validity;

use super::{IssueError, Issues};
use crate::jwt::{self, Issuer};
use crate::key_manager::SignatureFormat;
use crate::log::Leaf;
use crate::profile::{LintError, Profile, TokenPlan, WantedToken};

/// The most bytes of header and claims: what is left of a token beside the largest signature.
const MAX_SIGNING_INPUT: usize = MAX_TOKEN_BYTES - 1024;

/// What is asked for. The caller decided that it may be.
#[derive(Debug, Clone)]
pub struct JwtRequest {
    /// For whom; from the registry, unless it is minted.
    pub spiffe_id: SpiffeId,
    /// Whom the token is for.
    pub audience: Vec<String>,
    /// How long from now; zero = the default.
    pub ttl: Duration,
    /// Whether the token gets an ID of its own (`jti`).
    pub with_id: bool,
    /// Who asked, for the log: a SPIFFE ID, or a name of a local caller.
    pub caller: String,
    /// The entry it comes from, for the log.
    pub entry_id: Option<EntryId>,
}

/// A token on its way.
pub(crate) struct Draft {
    plan: TokenPlan,
    signing_input: String,
}

impl Issues for Issuer {
    type Request = JwtRequest;
    type Draft = Draft;
    type Svid = JwtSvid;
    const FORMAT: SignatureFormat = SignatureFormat::Jws;

    fn key_ref(&self) -> &str {
        &self.key_ref
    }

    fn validity(&self) -> Validity {
        self.validity
    }

    fn draft(
        &self,
        profile: &Profile,
        request: &JwtRequest,
        now: SystemTime,
    ) -> Result<Draft, IssueError> {
        let wanted = WantedToken {
            spiffe_id: &request.spiffe_id,
            audience: &request.audience,
            ttl: request.ttl,
        };
        let plan = profile.plan_token(&wanted, now, self.validity.not_after)?;
        let id = request.with_id.then(jwt::new_token_id).transpose()?;
        let signing_input = jwt::signing_input(&plan, id.as_deref(), self);
        if signing_input.len() > MAX_SIGNING_INPUT {
            return Err(LintError::TooLarge(signing_input.len()).into());
        }
        Ok(Draft {
            plan,
            signing_input,
        })
    }

    fn leaf(&self, draft: &Draft, request: &JwtRequest) -> Leaf {
        Leaf::Jwt {
            signing_input: draft.signing_input.clone(),
            spiffe_id: draft.plan.spiffe_id.clone(),
            caller: request.caller.clone(),
            entry_id: request.entry_id.clone(),
            not_after: draft.plan.expires_at,
            authority_id: self.key_id.clone(),
        }
    }

    fn message(draft: &Draft) -> &[u8] {
        draft.signing_input.as_bytes()
    }

    fn finish(&self, draft: Draft, signature: &[u8], verify: bool) -> Result<JwtSvid, IssueError> {
        let Draft {
            plan,
            signing_input,
        } = draft;
        self.check_signature(&signing_input, signature, verify)?;
        let svid = JwtSvid::parse(&jwt::assemble(&signing_input, signature))?;
        jwt::check(&svid, &plan, self)?;
        Ok(svid)
    }
}
