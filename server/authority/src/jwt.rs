//! JWT-SVIDs: written, put together with their signature, and checked.
//!
//! The steps are separate for the same reason as those of certificates: the issuance log
//! stands between them. The shape is SPIRE's (SPIRE.md 1.2): header `alg`, `kid`, `typ`; claims
//! `aud` (always a list), `exp`, `iat`, `sub`, and `iss` and `jti` where they are wanted.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use uuid::Uuid;
use vane_identity::jwt_svid::{Algorithm, JwtSvid};
use vane_identity::key::{KeyType, PublicKey};
use vane_identity::lifetime::Validity;

use crate::profile::TokenPlan;
use crate::x509::check::CheckError;
use crate::x509::{BadIssuer, NoRandomness, key_type_of};

/// The characters of a `kid`, as SPIRE's.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const KEY_ID_CHARS: usize = 32;

/// A key as the issuer of tokens: what is written into each of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// Its `kid`.
    pub key_id: String,
    /// Its name in the key manager.
    pub key_ref: String,
    /// Its public half.
    pub public_key: PublicKey,
    /// When it may sign: from 10 s before it was made, as a CA.
    pub validity: Validity,
    algorithm: Algorithm,
    /// The bytes of its signatures; 0 = by the key.
    signature_bytes: usize,
    /// The header of its tokens in base64url.
    header: String,
}

impl Issuer {
    /// A key that signs while it is valid.
    ///
    /// # Errors
    /// [`BadIssuer`] when the key is of no kind that signs here.
    pub fn new(
        key_id: &str,
        key_ref: &str,
        public_key: &PublicKey,
        validity: Validity,
    ) -> Result<Self, BadIssuer> {
        let (algorithm, signature_bytes) = match key_type_of(public_key).ok_or(BadIssuer)? {
            KeyType::EcP256 => (Algorithm::Es256, 64),
            KeyType::EcP384 => (Algorithm::Es384, 96),
            KeyType::Rsa2048 | KeyType::Rsa4096 => (Algorithm::Rs256, 0),
        };
        let header = json!({"alg": algorithm.name(), "kid": key_id, "typ": "JWT"});
        Ok(Self {
            key_id: key_id.to_owned(),
            key_ref: key_ref.to_owned(),
            public_key: public_key.clone(),
            validity,
            algorithm,
            signature_bytes,
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
        })
    }

    /// Checks the form of a signature, and with `verify` the signature.
    ///
    /// # Errors
    /// [`CheckError::Signature`].
    pub fn check_signature(
        &self,
        signing_input: &str,
        signature: &[u8],
        verify: bool,
    ) -> Result<(), CheckError> {
        let form = self.signature_bytes == 0 || signature.len() == self.signature_bytes;
        let verifies = || {
            let key = &self.public_key;
            self.algorithm.accepts(key, signing_input, signature)
        };
        if form && (!verify || verifies()) {
            return Ok(());
        }
        Err(CheckError::Signature)
    }
}

/// Header and claims as they will be signed (RFC 7515 section 5.1).
#[must_use]
pub fn signing_input(plan: &TokenPlan, token_id: Option<&str>, issuer: &Issuer) -> String {
    let mut claims = json!({
        "aud": plan.audience,
        "exp": plan.expires_at,
        "iat": plan.issued_at,
        "sub": plan.spiffe_id.as_str(),
    });
    let optional = [("iss", plan.issuer.as_deref()), ("jti", token_id)];
    if let Some(claims) = claims.as_object_mut() {
        for (name, value) in optional {
            claims.extend(value.map(|value| (name.to_owned(), value.into())));
        }
    }
    let mut input = issuer.header.clone();
    input.push('.');
    URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut input);
    input
}

/// The token in compact form.
#[must_use]
pub fn assemble(signing_input: &str, signature: &[u8]) -> String {
    let mut token = String::with_capacity(signing_input.len() + 1 + signature.len() * 4 / 3 + 3);
    token.push_str(signing_input);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    token
}

/// Compares a token that was read back with its plan.
///
/// # Errors
/// [`CheckError::Differs`].
pub fn check(svid: &JwtSvid, plan: &TokenPlan, issuer: &Issuer) -> Result<(), CheckError> {
    let fields = [
        ("sub", *svid.id() == plan.spiffe_id),
        ("aud", svid.audience() == plan.audience),
        ("iat", svid.issued_at() == plan.issued_at),
        ("exp", svid.expires_at() == plan.expires_at),
        ("kid", svid.key_id() == issuer.key_id),
    ];
    match fields.into_iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(CheckError::Differs(field)),
        None => Ok(()),
    }
}

/// A fresh `kid`: 32 random letters and digits.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_key_id() -> Result<String, NoRandomness> {
    let mut id = String::with_capacity(KEY_ID_CHARS);
    while id.len() < KEY_ID_CHARS {
        let mut bytes = [0; KEY_ID_CHARS];
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        // 256 is no multiple of 62: those above the last whole one would favour some letters.
        let fair = bytes.iter().filter(|byte| **byte < 248);
        let chars = fair.filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len()));
        id.extend(
            chars
                .map(|byte| char::from(*byte))
                .take(KEY_ID_CHARS - id.len()),
        );
    }
    Ok(id)
}

/// A fresh `jti`: a random UUID, its 16 bytes in base64url.
///
/// # Errors
/// [`NoRandomness`].
pub fn new_token_id() -> Result<String, NoRandomness> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    let uuid = uuid::Builder::from_random_bytes(bytes).into_uuid();
    Ok(URL_SAFE_NO_PAD.encode(Uuid::as_bytes(&uuid)))
}

#[cfg(test)]
mod tests;
