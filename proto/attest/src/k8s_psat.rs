//! Attestation by a projected service account token of Kubernetes, SPIRE's `k8s_psat`
//! (SPIRE.md 1.4, 1.5): the evidence is the name of the cluster and the token that kubelet
//! mounted into the agent's pod; there is no challenge.
//!
//! The cluster's API server says whose token it is (TokenReview) and which pod on which node it
//! is bound to; the agent's ID is the node's UID. The token's audience and the allow list of
//! service accounts decide, the pod must be the one that the token was made for. Every wait on an
//! API server ends, and so many tokens are reviewed at a time.
//!
//! An agent learns what SPIRE would tell it, without the API server's own words; those are in
//! the server's log.

mod claims;
mod cluster;
mod config;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use vane_chassis::builtin::{Builtin, OpenError};
use zeroize::Zeroizing;

use crate::{Admission, Attested, Claim, Deps, ProveError, Prover, Step, Verifier, VerifyError};

use cluster::Cluster;

pub use config::{ClusterConfig, ProverConfig, VerifierConfig};

const NAME: &str = "k8s_psat";
/// The most bytes of evidence; tokens have one or two thousand.
const MAX_EVIDENCE: usize = 64 * 1024;
/// The most bytes of a token's file that are read.
const MAX_TOKEN: u64 = 32 * 1024;

/// The evidence as it is sent.
#[derive(Serialize)]
struct Shown<'a> {
    cluster: &'a str,
    token: &'a str,
}

/// The evidence as it came.
#[derive(Deserialize)]
struct Evidence {
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    token: String,
}

/// The agent's half.
#[derive(Debug)]
pub struct Pod {
    config: ProverConfig,
}

impl Builtin<dyn Prover, ()> for Pod {
    const NAME: &'static str = NAME;
    type Config = ProverConfig;

    async fn open(config: ProverConfig, (): &()) -> Result<Arc<dyn Prover>, OpenError> {
        config.check().map_err(OpenError::failed)?;
        Ok(Arc::new(Self { config }))
    }
}

impl Pod {
    /// The token of this moment: kubelet replaces it before it expires.
    fn token(&self) -> Result<Zeroizing<String>, ProveError> {
        use std::io::Read as _;
        let path = &self.config.token_path;
        let unread = |source| ProveError::File {
            path: path.clone(),
            source,
        };
        let mut text = Zeroizing::new(String::with_capacity(4096));
        let file = std::fs::File::open(path).map_err(unread)?;
        file.take(MAX_TOKEN)
            .read_to_string(&mut text)
            .map_err(unread)?;
        let token = text.trim();
        if token.is_empty() {
            return Err(ProveError::NoServiceAccountToken { path: path.clone() });
        }
        Ok(Zeroizing::new(token.to_owned()))
    }
}

#[async_trait]
impl Prover for Pod {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn evidence(&self) -> Result<Vec<u8>, ProveError> {
        let token = self.token()?;
        let shown = Shown {
            cluster: &self.config.cluster,
            token: &token,
        };
        serde_json::to_vec(&shown).map_err(|_| ProveError::Challenge(NAME))
    }

    async fn answer(&self, _: &[u8]) -> Result<Vec<u8>, ProveError> {
        Err(ProveError::UnexpectedChallenge(NAME))
    }

    fn hint(&self, now: SystemTime) -> Option<String> {
        let said = claims::described(&self.token().ok()?, now)?;
        let path = self.config.token_path.display();
        Some(format!("the token of {path} {said}"))
    }
}

/// The server's half: the clusters whose nodes are taken.
#[derive(Debug)]
pub struct Clusters {
    clusters: BTreeMap<String, Cluster>,
}

impl Builtin<dyn Verifier, Deps> for Clusters {
    const NAME: &'static str = NAME;
    type Config = VerifierConfig;

    async fn open(config: VerifierConfig, _: &Deps) -> Result<Arc<dyn Verifier>, OpenError> {
        let open = |(name, config): (String, ClusterConfig)| {
            let cluster = Cluster::new(&name, config).map_err(OpenError::failed)?;
            Ok((name, cluster))
        };
        let clusters: Result<_, OpenError> = config.clusters.into_iter().map(open).collect();
        Ok(Arc::new(Self {
            clusters: clusters?,
        }))
    }
}

#[async_trait]
impl Verifier for Clusters {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn verify(&self, claim: &Claim<'_>) -> Result<Step, VerifyError> {
        let evidence: Option<Evidence> = Some(claim.evidence)
            .filter(|evidence| evidence.len() <= MAX_EVIDENCE)
            .and_then(|evidence| serde_json::from_slice(evidence).ok());
        let evidence = evidence.ok_or_else(|| malformed("failed to unmarshal data payload"))?;
        let Evidence { cluster, token } = evidence;
        let token = Zeroizing::new(token);
        if cluster.is_empty() {
            return Err(malformed("missing cluster in attestation data"));
        }
        if token.is_empty() {
            return Err(malformed("missing token in attestation data"));
        }
        let cluster = self.clusters.get(&cluster).ok_or_else(|| {
            let shown: String = cluster.chars().take(80).collect();
            malformed(format!("not configured for cluster {shown:?}"))
        })?;
        let node = cluster.node_of(&token).await?;
        Ok(Step::Attested(Attested {
            path: node.path,
            selectors: node.selectors,
            admission: Admission::Again,
        }))
    }
}

fn malformed(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Malformed(format!("nodeattestor({NAME}): {why}"))
}

fn denied(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Denied(format!("nodeattestor({NAME}): {why}"))
}

fn internal(why: impl std::fmt::Display) -> VerifyError {
    VerifyError::Internal(format!("nodeattestor({NAME}): {why}"))
}

#[cfg(test)]
mod tests;
