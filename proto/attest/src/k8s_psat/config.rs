//! What is configured on both sides; SPIRE's keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vane_chassis::kubernetes::AccessError;

/// Who the agent says it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProverConfig {
    /// The cluster's name in the server's configuration. Required.
    pub cluster: String,
    /// The mounted token, read at each attestation.
    #[serde(default = "default_token_path")]
    pub token_path: PathBuf,
}

impl ProverConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.cluster.is_empty() {
            true => Err(ConfigError::NoCluster),
            false => Ok(()),
        }
    }
}

/// Which nodes the server takes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifierConfig {
    /// By name, which is part of every agent's ID.
    pub clusters: BTreeMap<String, ClusterConfig>,
}

/// One cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// The service accounts of agents, `namespace:name`. Required.
    pub service_account_allow_list: Vec<String>,
    /// The audiences that a token must be for, one of them; with none, the API server's own.
    #[serde(default = "default_audience")]
    pub audience: Vec<String>,
    /// How the cluster is reached; the cluster that the server is a pod of when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_config_file: Option<PathBuf>,
    /// The labels of a node that become selectors.
    #[serde(default)]
    pub allowed_node_label_keys: Vec<String>,
    /// The labels of the agent's pod that become selectors.
    #[serde(default)]
    pub allowed_pod_label_keys: Vec<String>,
    /// Name agents after their pod instead of their node; a new pod is a new agent then.
    #[serde(default)]
    pub use_pod_uid_for_agent_id: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("k8s_psat: cluster is empty: give it the name that the server has for this cluster")]
    NoCluster,
    #[error(
        "k8s_psat: the name of cluster \"{0}\" is part of SPIFFE IDs: letters, digits, dots, dashes and underscores only"
    )]
    Name(String),
    #[error("k8s_psat: cluster \"{0}\" must have at least one service account allowed")]
    NoServiceAccount(String),
    #[error(
        "k8s_psat: cluster \"{cluster}\": \"{account}\" in service_account_allow_list is no namespace:name"
    )]
    ServiceAccount { cluster: String, account: String },
    #[error("k8s_psat: cluster \"{cluster}\": kube_config_file: {source}")]
    Access {
        cluster: String,
        source: AccessError,
    },
}

fn default_token_path() -> PathBuf {
    PathBuf::from("/var/run/secrets/tokens/spire-agent")
}

fn default_audience() -> Vec<String> {
    vec!["spire-server".to_owned()]
}
