//! SPIRE's messages of `x509pop` (SPIRE.md 1.5): JSON, bytes in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::NAME;
use crate::ProveError;
use crate::possession::NONCE;

/// The most bytes of evidence or of an answer.
pub(super) const MAX_MESSAGE: usize = 512 * 1024;

/// The evidence: DER certificates in base64, leaf first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Evidence {
    #[serde(default)]
    pub(super) certificates: Option<Vec<String>>,
}

/// A challenge; one of the two is there.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Challenge {
    pub(super) rsa_signature: Option<Nonce>,
    pub(super) ecdsa_signature: Option<Nonce>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Nonce {
    pub(super) nonce: String,
}

/// The answer to a challenge of the same kind.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    pub(super) rsa_signature: Option<RsaSignature>,
    pub(super) ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RsaSignature {
    pub(super) nonce: String,
    pub(super) signature: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EcdsaSignature {
    pub(super) nonce: String,
    pub(super) r: String,
    pub(super) s: String,
}

pub(super) fn nonce(text: &str) -> Option<[u8; NONCE]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

pub(super) fn parse<'t, T: Deserialize<'t>>(bytes: &'t [u8]) -> Option<T> {
    if bytes.len() > MAX_MESSAGE {
        return None;
    }
    serde_json::from_slice(bytes).ok()
}

pub(super) fn json<T: Serialize>(message: &T) -> Result<Vec<u8>, ProveError> {
    serde_json::to_vec(message).map_err(|_| ProveError::Challenge(NAME))
}
