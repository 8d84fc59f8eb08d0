//! Node attestation: how an agent proves what node it is on.
//!
//! One file a method, with both halves: the evidence that an agent sends, and what the server
//! makes of it. A [`Verifier`] judges and remembers nothing: it is given the evidence and all
//! challenges with their answers, and says what comes next. What an attestation consumes (a join
//! token) it only names; the server's transaction consumes it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use vane_chassis::builtin::{Row, row};
use vane_chassis::config::Secret;
use vane_identity::bundle::Bundle;
use vane_identity::id::TrustDomain;

mod template;

mod possession;

mod chain;

pub mod join_token;
pub mod k8s_psat;
pub mod x509pop;

pub use possession::KeyError;

/// The methods that there are, for agents.
pub const PROVERS: &[Row<dyn Prover, ()>] = &[
    row::<join_token::JoinToken, _, _>(),
    row::<x509pop::Node, _, _>(),
    row::<k8s_psat::Pod, _, _>(),
];

/// The methods that there are, for servers.
pub const VERIFIERS: &[Row<dyn Verifier, Deps>] = &[
    row::<join_token::Tokens, _, _>(),
    row::<x509pop::Gate, _, _>(),
    row::<k8s_psat::Clusters, _, _>(),
];

/// The most challenges of one attestation.
pub const MAX_ROUNDS: usize = 8;

/// The agent's half of a method.
#[async_trait]
pub trait Prover: Send + Sync + fmt::Debug {
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

    /// What the evidence of now says of itself, for who reads that it was refused. No secrets.
    fn hint(&self, now: SystemTime) -> Option<String> {
        let _ = now;
        None
    }
}

/// The server's half of a method.
#[async_trait]
pub trait Verifier: Send + Sync + fmt::Debug {
    /// The name of the method on the wire.
    fn name(&self) -> &'static str;

    /// Judges what the agent has sent so far.
    ///
    /// # Errors
    /// [`VerifyError`]: the attestation is over.
    async fn verify(&self, claim: &Claim<'_>) -> Result<Step, VerifyError>;
}

/// What the server's halves are made from.
#[derive(Clone)]
pub struct Deps {
    /// The server's trust domain.
    pub trust_domain: TrustDomain,
    /// Its bundle of the moment.
    pub bundle: Arc<dyn Fn() -> Option<Arc<Bundle>> + Send + Sync>,
}

/// What an agent has sent so far. All of it comes from outside.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// What it sent first.
    pub evidence: &'a [u8],
    /// The challenges and its answers, in order.
    pub rounds: &'a [Round],
    /// Where it calls from, if that is known.
    pub peer: Option<IpAddr>,
    /// When now is.
    pub now: SystemTime,
}

/// A challenge with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// What the server sent on this stream.
    pub challenge: Vec<u8>,
    /// What came back.
    pub response: Vec<u8>,
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// The agent is to answer this.
    Challenge(Vec<u8>),
    /// It is attested.
    Attested(Attested),
}

/// A node that has proved itself.
#[derive(Debug)]
pub struct Attested {
    /// The agent's path below `/spire/agent`, with its slash.
    pub path: String,
    /// Values of selectors of the method's type.
    pub selectors: Vec<String>,
    /// How often it may do so.
    pub admission: Admission,
}

/// How often a node may attest with the same evidence.
#[derive(Debug)]
pub enum Admission {
    /// As often as it likes; it renews by attesting again.
    Again,
    /// Once: this token is consumed with it.
    Token(Secret),
}

/// Why an attestation is over. The texts are for the agent, SPIRE's where it has one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// What was sent is not of the method's form.
    #[error("{0}")]
    Malformed(String),
    /// It proves nothing.
    #[error("{0}")]
    Denied(String),
    /// The server cannot judge it.
    #[error("{0}")]
    Internal(String),
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
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the method cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A token's file has none.
    #[error(
        "{path} has no service account token: mount one with a projected volume (`serviceAccountToken`)"
    )]
    NoServiceAccountToken {
        /// The file.
        path: PathBuf,
    },
    /// A file is not PEM.
    #[error("{path} is not readable as PEM")]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// There is no certificate.
    #[error("{path} has no certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The key cannot be used.
    #[error("private key {path}: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeyError,
    },
    /// The server sent a challenge, and the method has none.
    #[error("the server sent a challenge, and attestation by {0} has none")]
    UnexpectedChallenge(&'static str),
    /// The server's challenge is not one of the method.
    #[error("the server's challenge is none that attestation by {0} can answer")]
    Challenge(&'static str),
    /// The operating system gives no randomness.
    #[error("there is no randomness")]
    Random,
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}
