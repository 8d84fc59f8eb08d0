//! Node attestation: how an agent proves what node it is on.
//!
//! One file a method, with the evidence it sends. The server's half of join tokens is part of
//! its AttestAgent transaction, since the token is consumed with it; a `Verifier` comes with
//! the first method that has one.

use async_trait::async_trait;
use vane_chassis::builtin::{Row, row};

pub mod join_token;

/// The methods that there are.
pub const PROVERS: &[Row<dyn Prover, ()>] = &[row::<join_token::JoinToken, _, _>()];

/// The agent's half of a method.
#[async_trait]
pub trait Prover: Send + Sync + std::fmt::Debug {
    /// The name of the method on the wire.
    fn name(&self) -> &'static str;

    /// The first thing to send; asked for at each attempt, since it may be read anew.
    ///
    /// # Errors
    /// There is nothing to send, with the reason.
    async fn evidence(&self) -> Result<Vec<u8>, ProveError>;

    /// The answer to a challenge.
    ///
    /// # Errors
    /// The method has no challenges, or this one cannot be answered.
    async fn answer(&self, challenge: &[u8]) -> Result<Vec<u8>, ProveError>;
}

/// Why an agent cannot prove itself.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// No token is configured.
    #[error(
        "no join token: set agent.join_token or join_token_file (`vane token create` makes one)"
    )]
    NoToken,
    /// The token's file cannot be read.
    #[error("cannot read join_token_file {path}")]
    TokenFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The server sent a challenge, and the method has none.
    #[error("the server sent a challenge, and attestation by {0} has none")]
    UnexpectedChallenge(&'static str),
}
