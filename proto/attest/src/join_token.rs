//! Attestation by join token: the evidence is the token as text, there is no challenge.
//!
//! Options: `token` (a secret) or `token_file`, read at each attempt. The agent's own
//! `join_token` keys, which are SPIRE's, fill them. A token is good once; the server answers a
//! second try with the same key again.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use vane_chassis::builtin::{Builtin, OpenError};
use vane_chassis::config::Secret;

use crate::{Admission, Attested, Claim, Deps, ProveError, Prover, Step, Verifier, VerifyError};

const NAME: &str = "join_token";
/// The most bytes of a token's file that are read.
const MAX_TOKEN_BYTES: usize = 4096;
/// The most bytes of a token on the server: it becomes a segment of the agent's ID.
pub const MAX_BYTES: usize = 255;

/// Where the token is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The token itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// A file with the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// The agent's half.
#[derive(Debug)]
pub struct JoinToken {
    config: Config,
}

impl JoinToken {
    /// A prover with the token of `config`.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }
}

impl Builtin<dyn Prover, ()> for JoinToken {
    const NAME: &'static str = NAME;
    type Config = Config;

    async fn open(config: Config, _: &()) -> Result<Arc<dyn Prover>, OpenError> {
        Ok(Arc::new(Self::new(config)))
    }
}

#[async_trait]
impl Prover for JoinToken {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn evidence(&self) -> Result<Vec<u8>, ProveError> {
        if let Some(token) = &self.config.token {
            return Ok(token.expose().as_bytes().to_vec());
        }
        let path = self.config.token_file.as_ref().ok_or(ProveError::NoToken)?;
        let text = std::fs::read_to_string(path).map_err(|source| ProveError::TokenFile {
            path: path.clone(),
            source,
        })?;
        let token = text.trim();
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(ProveError::NoToken);
        }
        Ok(token.as_bytes().to_vec())
    }

    async fn answer(&self, _: &[u8]) -> Result<Vec<u8>, ProveError> {
        Err(ProveError::UnexpectedChallenge(self.name()))
    }
}

/// The server's half: it says what the token is, the store knows whether it is good.
#[derive(Debug)]
pub struct Tokens;

/// There is nothing to configure.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensConfig {}

impl Builtin<dyn Verifier, Deps> for Tokens {
    const NAME: &'static str = NAME;
    type Config = TokensConfig;

    async fn open(_: TokensConfig, _: &Deps) -> Result<Arc<dyn Verifier>, OpenError> {
        Ok(Arc::new(Self))
    }
}

#[async_trait]
impl Verifier for Tokens {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn verify(&self, claim: &Claim<'_>) -> Result<Step, VerifyError> {
        let token = std::str::from_utf8(claim.evidence).ok();
        let token = token.filter(|token| token.len() <= MAX_BYTES && !token.contains('/'));
        // One text whether it was never there or is of no use: a guess tells nothing.
        let unknown = || {
            let text = "failed to attest: join token does not exist or has already been used";
            VerifyError::Malformed(text.to_owned())
        };
        let token = token.ok_or_else(unknown)?;
        Ok(Step::Attested(Attested {
            path: format!("/{NAME}/{token}"),
            selectors: Vec::new(),
            admission: Admission::Token(Secret::new(token.to_owned())),
        }))
    }
}
