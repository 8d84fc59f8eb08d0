//! JWT-SVIDs: reading, shape rules and verification (JWT-SVID.md).
//!
//! [`JwtSvid::parse`] checks the shape of a token and proves nothing about its signer: it is
//! for an agent that takes a token from its own server. Only [`JwtSvid::verify`] makes a
//! [`Verified`]: the token is signed by a JWT key of the bundle of its own trust domain, is
//! meant for the audience and is valid at the given time. The claims that come back are the
//! bytes that the signature covers.
//!
//! Both refuse what cannot be understood in one way only: a header member other than `alg`,
//! `kid` and `typ` (so `crit`, `b64`, `jwk` and `jku` never count; checklist C-10), a member
//! that stands there twice, at any depth, and anything but the compact form.

mod algorithm;
mod token;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::bundle::{Bundle, JwtAuthority};
use crate::id::{IdError, SpiffeId, TrustDomain};
use crate::lifetime::to_unix;
use token::Token;

pub use algorithm::Algorithm;

/// The most bytes of a token that are looked at.
pub const MAX_TOKEN_BYTES: usize = 32 * 1024;
/// The most audiences of a token.
pub const MAX_AUDIENCES: usize = 64;
/// The most bytes of one audience.
pub const MAX_AUDIENCE_BYTES: usize = 2048;
/// The most bytes of a key ID.
pub const MAX_KEY_ID_BYTES: usize = 512;
/// What the clocks of signer and verifier may differ by (JWT-SVID.md section 3.3 wants it
/// small; SPIRE has the same minute).
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The last second of the year 9999: what a date can be written as.
const MAX_DATE: f64 = 253_402_300_799.0;

/// A token that has the shape of a JWT-SVID. It is a secret: whoever has it is its subject.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    token: Arc<Zeroizing<String>>,
    id: SpiffeId,
    audience: Arc<[String]>,
    issued_at: i64,
    expires_at: i64,
    key_id: String,
}

/// Proof that a token is a valid JWT-SVID of its own trust domain, for an audience, at a time.
#[derive(Clone, PartialEq)]
pub struct Verified {
    /// The token; its key ID is that of the key that verified it.
    pub svid: JwtSvid,
    /// All claims, as they were signed.
    pub claims: Map<String, Value>,
}

/// Why a token is no JWT-SVID or does not verify. Holds nothing of the signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The token has more than [`MAX_TOKEN_BYTES`].
    #[error("token has {0} bytes, {MAX_TOKEN_BYTES} are allowed")]
    TooLarge(usize),
    /// The token is not three parts of base64url without padding.
    #[error("token is no JWT in compact form: {0}")]
    Form(&'static str),
    /// A part is no JSON object whose members are all different.
    #[error("token has a malformed {part}: {reason}")]
    Json {
        /// Header or claims.
        part: &'static str,
        /// What the parser says: a position and what is wrong there.
        reason: String,
    },
    /// `alg` is missing or none of the nine (JWT-SVID.md section 2.1).
    #[error("token has an unsupported signature algorithm {0}")]
    Algorithm(String),
    /// The header says more than a JWT-SVID may (JWT-SVID.md section 2).
    #[error("token has a header member \"{0}\" that is not allowed")]
    Header(String),
    /// `typ` is there and is neither `JWT` nor `JOSE` (JWT-SVID.md section 2.3).
    #[error("token has a \"typ\" that is neither JWT nor JOSE")]
    Type,
    /// `kid` is missing where one is needed, empty, too long, or no text.
    #[error("token has a missing or invalid key ID")]
    KeyId,
    /// `sub` is missing or no text.
    #[error("token missing subject claim")]
    NoSubject,
    /// `sub` is no SPIFFE ID.
    #[error("token has an invalid subject claim: {0}")]
    Subject(#[from] IdError),
    /// `aud` is missing, empty, or neither a text nor a list of texts.
    #[error("token missing audience claim, or it is no list of texts")]
    NoAudience,
    /// There are too many audiences, or one is too long.
    #[error(
        "token has too large an audience claim: {MAX_AUDIENCES} of {MAX_AUDIENCE_BYTES} bytes are allowed"
    )]
    AudienceSize,
    /// A date is missing or no number of seconds from 1970 to 9999.
    #[error("token has a missing or invalid \"{0}\" claim")]
    Date(&'static str),
    /// No audience was said to verify for; it would not mean "any".
    #[error("audience must be specified")]
    AudienceUnsaid,
    /// No bundle of the token's trust domain is known.
    #[error("no keys found for trust domain \"{0}\"")]
    NoBundle(TrustDomain),
    /// The bundle has no JWT keys (JWT-SVID.md section 6.2: no support for JWT-SVIDs).
    #[error("bundle of trust domain \"{0}\" has no JWT keys")]
    NoKeys(TrustDomain),
    /// No key of the bundle has the token's key ID.
    #[error("JWT key \"{0}\" not found in the bundle of the trust domain")]
    UnknownKey(String),
    /// The key with the token's ID is of another kind than its `alg`, or no key without an ID is.
    #[error("no JWT key of the bundle fits the algorithm {0:?} of the token")]
    KeyMismatch(Algorithm),
    /// The signature does not verify.
    #[error("token signature does not verify")]
    Signature,
    /// The token is not for the audience.
    #[error("expected audience in {expected:?} (audience={actual:?})")]
    OtherAudience {
        /// Who asks.
        expected: String,
        /// Whom the token is for.
        actual: Vec<String>,
    },
    /// The token is over, [`LEEWAY`] included.
    #[error("token has expired")]
    Expired,
    /// `nbf` lies in the future, [`LEEWAY`] included.
    #[error("token is not yet valid")]
    NotYetValid,
    /// `iat` lies in the future, [`LEEWAY`] included.
    #[error("token was issued in the future")]
    IssuedInFuture,
}

impl JwtSvid {
    /// Reads what an agent takes from its own server: one of the nine algorithms, a key ID, a
    /// SPIFFE ID as subject, an audience and an end. The signature is not looked at.
    ///
    /// # Errors
    /// [`JwtError`] of the shape.
    pub fn parse(token: &str) -> Result<Self, JwtError> {
        let read = Token::read(token)?;
        let key_id = read.key_id.clone().ok_or(JwtError::KeyId)?;
        Self::of(token, &read, key_id)
    }

    /// Verifies `token` for `audience` at `now` with the bundle that `bundle` gives for the
    /// token's trust domain. Which key that is comes from the bundle: of the header only `alg`
    /// and `kid` count, and `alg` must fit the key. Without `kid` every key that fits is tried.
    /// Tainted keys count; an expired one does not.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn verify<B: Deref<Target = Bundle>>(
        token: &str,
        audience: &str,
        bundle: impl FnOnce(&TrustDomain) -> Option<B>,
        now: SystemTime,
    ) -> Result<Verified, JwtError> {
        if audience.is_empty() {
            return Err(JwtError::AudienceUnsaid);
        }
        let read = Token::read(token)?;
        let trust_domain = subject(&read.claims)?.trust_domain();
        let bundle = bundle(&trust_domain).filter(|bundle| bundle.trust_domain == trust_domain);
        let bundle = bundle.ok_or(JwtError::NoBundle(trust_domain))?;
        let key = signer(&read, &bundle, now)?;
        let svid = Self::of(token, &read, key.key_id.clone())?;
        svid.check_audience(audience)?;
        svid.check_time(&read.claims, now)?;
        Ok(Verified {
            svid,
            claims: read.claims,
        })
    }

    fn of(token: &str, read: &Token<'_>, key_id: String) -> Result<Self, JwtError> {
        Ok(Self {
            id: subject(&read.claims)?,
            audience: audience(&read.claims)?.into(),
            issued_at: date(&read.claims, "iat")?.unwrap_or_default(),
            expires_at: date(&read.claims, "exp")?.ok_or(JwtError::Date("exp"))?,
            key_id,
            token: Arc::new(Zeroizing::new(token.to_owned())),
        })
    }

    fn check_audience(&self, audience: &str) -> Result<(), JwtError> {
        if self.audience.iter().any(|one| one == audience) {
            return Ok(());
        }
        Err(JwtError::OtherAudience {
            expected: audience.to_owned(),
            actual: self.audience.to_vec(),
        })
    }

    fn check_time(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<(), JwtError> {
        if is_over(self.expires_at, now) {
            return Err(JwtError::Expired);
        }
        if date(claims, "nbf")?.is_some_and(|nbf| is_ahead(nbf, now)) {
            return Err(JwtError::NotYetValid);
        }
        if is_ahead(self.issued_at, now) {
            return Err(JwtError::IssuedInFuture);
        }
        Ok(())
    }

    /// The token in compact form. A secret: not for logs, errors or files that others read.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whom it is for; at least one.
    #[must_use]
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// Seconds since the Unix epoch; 0 = not said.
    #[must_use]
    pub fn issued_at(&self) -> i64 {
        self.issued_at
    }

    /// Seconds since the Unix epoch at which it is over.
    #[must_use]
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// The key that signed it: by its header, or, once verified, by the bundle.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("audience", &self.audience)
            .field("issued_at", &self.issued_at)
            .field("expires_at", &self.expires_at)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Private claims may be personal: their names tell enough.
        let names: Vec<&String> = self.claims.keys().collect();
        f.debug_struct("Verified")
            .field("svid", &self.svid)
            .field("claims", &names)
            .finish()
    }
}

/// The key of `bundle` that signed the token.
fn signer<'a>(
    read: &Token<'_>,
    bundle: &'a Bundle,
    now: SystemTime,
) -> Result<&'a JwtAuthority, JwtError> {
    let live = |key: &&JwtAuthority| key.expires_at == 0 || !is_over(key.expires_at, now);
    let keys = bundle.jwt_authorities.iter();
    if keys.len() == 0 {
        return Err(JwtError::NoKeys(bundle.trust_domain.clone()));
    }
    let named = |key: &&JwtAuthority| read.key_id.as_ref().is_none_or(|kid| *kid == key.key_id);
    let mut known = keys.filter(live).filter(named).peekable();
    if let (None, Some(kid)) = (known.peek(), &read.key_id) {
        return Err(JwtError::UnknownKey(kid.clone()));
    }
    let mut refusal = JwtError::KeyMismatch(read.algorithm);
    for key in known {
        match read.algorithm.verification(&key.public_key) {
            Some(verification) if verification.accepts(read.signed, &read.signature) => {
                return Ok(key);
            }
            Some(_) => refusal = JwtError::Signature,
            None => {}
        }
    }
    Err(refusal)
}

fn is_over(expires_at: i64, now: SystemTime) -> bool {
    to_unix(now) >= expires_at.saturating_add(leeway())
}

fn is_ahead(date: i64, now: SystemTime) -> bool {
    date > to_unix(now).saturating_add(leeway())
}

fn leeway() -> i64 {
    i64::try_from(LEEWAY.as_secs()).unwrap_or_default()
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtError> {
    let subject = claims.get("sub").and_then(Value::as_str);
    let subject = subject.filter(|subject| !subject.is_empty());
    Ok(SpiffeId::parse(subject.ok_or(JwtError::NoSubject)?)?)
}

/// `aud`: one text or a list of texts (RFC 7519 section 4.1.3, checklist C-4).
fn audience(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or(JwtError::NoAudience)
    };
    let all = match claims.get("aud") {
        Some(Value::Array(list)) if list.len() > MAX_AUDIENCES => {
            return Err(JwtError::AudienceSize);
        }
        Some(Value::Array(list)) => list.iter().map(text).collect::<Result<Vec<_>, _>>()?,
        Some(one) => vec![text(one)?],
        None => Vec::new(),
    };
    if all.iter().any(|one| one.len() > MAX_AUDIENCE_BYTES) {
        return Err(JwtError::AudienceSize);
    }
    if all.iter().all(String::is_empty) {
        return Err(JwtError::NoAudience);
    }
    Ok(all)
}

/// A NumericDate (RFC 7519 section 2) in whole seconds, rounded down; `None` when it is not there.
fn date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<i64>, JwtError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value
        .as_f64()
        .filter(|date| (0.0..=MAX_DATE).contains(date));
    let seconds = seconds.ok_or(JwtError::Date(name))?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the range was checked, and it rounds down"
    )]
    let whole = seconds as i64;
    Ok(Some(whole))
}

#[cfg(test)]
mod tests;
