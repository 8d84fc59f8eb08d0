//! One cluster: what its API server says of a token.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use vane_chassis::kubernetes::{Bounds, Client, Error, Path};

use super::config::{ClusterConfig, ConfigError};
use super::{NAME, denied, internal};
use crate::VerifyError;

/// So long one question to the API server may take.
const CALL: Bounds = Bounds {
    deadline: Duration::from_secs(5),
    // A node that lists its images and volumes has some hundred KiB.
    max_bytes: 4 * 1024 * 1024,
};
/// So long all of them may take, the wait for a place included: less than agents wait.
const DEADLINE: Duration = Duration::from_secs(12);
/// Tokens that are reviewed at once; whoever sends them is not known yet.
const REVIEWS: usize = 64;
/// What the name of a service account's user begins with.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// A cluster whose nodes are taken.
#[derive(Debug)]
pub(super) struct Cluster {
    name: String,
    client: Client,
    accounts: HashSet<String>,
    config: ClusterConfig,
    places: Semaphore,
}

/// A node that an agent's token shows.
#[derive(Debug)]
pub(super) struct Node {
    /// Below `/spire/agent`.
    pub(super) path: String,
    pub(super) selectors: Vec<String>,
}

/// Whose token it is.
struct Owner {
    namespace: String,
    account: String,
    pod_name: String,
    pod_uid: String,
}

impl Cluster {
    pub(super) fn new(name: &str, config: ClusterConfig) -> Result<Self, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || [".", ".."].contains(&name) || !name.chars().all(plain) {
            return Err(ConfigError::Name(name.to_owned()));
        }
        let accounts: HashSet<String> = config.service_account_allow_list.iter().cloned().collect();
        if accounts.is_empty() {
            return Err(ConfigError::NoServiceAccount(name.to_owned()));
        }
        let odd = |account: &&String| {
            let parts = account.split_once(':');
            !parts.is_some_and(|(ns, sa)| !ns.is_empty() && !sa.is_empty() && !sa.contains(':'))
        };
        if let Some(account) = config.service_account_allow_list.iter().find(odd) {
            return Err(ConfigError::ServiceAccount {
                cluster: name.to_owned(),
                account: account.clone(),
            });
        }
        let client = match &config.kube_config_file {
            Some(path) => Client::kubeconfig(path.clone()),
            None => Client::in_cluster(),
        };
        Ok(Self {
            client: client.map_err(|source| ConfigError::Access {
                cluster: name.to_owned(),
                source,
            })?,
            name: name.to_owned(),
            accounts,
            config,
            places: Semaphore::new(REVIEWS),
        })
    }

    /// The node whose agent has this token.
    ///
    /// # Errors
    /// The token proves nothing, or the API server cannot be asked.
    pub(super) async fn node_of(&self, token: &str) -> Result<Node, VerifyError> {
        let asked = async {
            let _place = self.places.acquire().await.map_err(internal)?;
            let owner = self.owner_of(token).await?;
            self.node_with(owner).await
        };
        tokio::time::timeout(DEADLINE, asked)
            .await
            .unwrap_or_else(|_| {
                tracing::warn!(
                    cluster = self.name,
                    "the API server is too slow for the attestations that come"
                );
                Err(internal("the API server is too slow"))
            })
    }

    /// Whose token it is, if it is one of an agent here.
    async fn owner_of(&self, token: &str) -> Result<Owner, VerifyError> {
        let status = self.reviewed(token).await?;
        if !status.authenticated {
            let error = status.error.unwrap_or_default();
            tracing::info!(cluster = self.name, error, "a token is not authenticated");
            return Err(denied(
                "token not authenticated according to TokenReview API",
            ));
        }
        // An authenticator that knows nothing of audiences takes tokens of others.
        let wanted = &self.config.audience;
        if !wanted.is_empty() && !status.audiences.iter().any(|one| wanted.contains(one)) {
            tracing::info!(cluster = self.name, audiences = ?status.audiences, "a token is for others");
            return Err(denied(
                "token not authenticated according to TokenReview API",
            ));
        }
        let user = status.user.unwrap_or_default();
        let (namespace, account) = user
            .username
            .strip_prefix(SERVICE_ACCOUNT)
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| denied("the token is none of a service account"))?;
        let full = format!("{namespace}:{account}");
        if !self.accounts.contains(&full) {
            return Err(denied(format!(
                "{full:?} is not an allowed service account"
            )));
        }
        let extra = |key: &str| match user.extra.get(key).map(Vec::as_slice) {
            Some([one]) if !one.is_empty() => Ok(one.clone()),
            _ => Err(denied(
                "the token is bound to no pod: mount it with a projected volume",
            )),
        };
        Ok(Owner {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            pod_name: extra(POD_NAME)?,
            pod_uid: extra(POD_UID)?,
        })
    }

    async fn reviewed(&self, token: &str) -> Result<ReviewStatus, VerifyError> {
        let review = Review {
            api_version: "authentication.k8s.io/v1",
            kind: "TokenReview",
            spec: ReviewSpec {
                token,
                audiences: &self.config.audience,
            },
        };
        let path = Path::of(&["apis", "authentication.k8s.io", "v1", "tokenreviews"]);
        let answer: Result<Reviewed, _> = self.client.post(&path, &review, CALL).await;
        let tried = "unable to validate token with TokenReview API";
        Ok(answer.map_err(|error| self.unable(tried, &error))?.status)
    }

    async fn node_with(&self, owner: Owner) -> Result<Node, VerifyError> {
        let Owner {
            namespace,
            account,
            pod_name,
            pod_uid,
        } = owner;
        let path = ["api", "v1", "namespaces", &namespace, "pods", &pod_name];
        let pod: Option<PodObject> = self.found("pod", &Path::of(&path)).await?;
        // The token says which one it was: another of the same name is another.
        let pod = pod.filter(|pod| pod.metadata.uid == pod_uid);
        let pod = pod.ok_or_else(|| denied("the pod that the token is bound to is gone"))?;
        let host = pod.spec.node_name.unwrap_or_default();
        if host.is_empty() {
            return Err(denied("the pod that the token is bound to is on no node"));
        }
        let path = Path::of(&["api", "v1", "nodes", &host]);
        let node: Option<NodeObject> = self.found("node", &path).await?;
        let node = node.ok_or_else(|| denied("the node of the token's pod is gone"))?;
        let node_uid = node.metadata.uid;
        if node_uid.is_empty() {
            return Err(internal("node UID is empty"));
        }
        let ip = pod.status.host_ip.unwrap_or_default();
        let mut selectors = vec![
            format!("cluster:{}", self.name),
            format!("agent_ns:{namespace}"),
            format!("agent_sa:{account}"),
            format!("agent_pod_name:{pod_name}"),
            format!("agent_pod_uid:{pod_uid}"),
            format!("agent_node_ip:{ip}"),
            format!("agent_node_name:{host}"),
            format!("agent_node_uid:{node_uid}"),
        ];
        for (prefix, allowed, labels) in [
            (
                "agent_node_label",
                &self.config.allowed_node_label_keys,
                &node.metadata.labels,
            ),
            (
                "agent_pod_label",
                &self.config.allowed_pod_label_keys,
                &pod.metadata.labels,
            ),
        ] {
            let labels = labels.iter().flatten();
            let taken = labels.filter(|(key, _)| allowed.contains(key));
            selectors.extend(taken.map(|(key, value)| format!("{prefix}:{key}:{value}")));
        }
        let path = match self.config.use_pod_uid_for_agent_id {
            true => format!("/{NAME}/{}/pod/{pod_uid}", self.name),
            false => format!("/{NAME}/{}/{node_uid}", self.name),
        };
        Ok(Node { path, selectors })
    }

    /// An object, or none when it does not exist.
    async fn found<T: DeserializeOwned>(
        &self,
        what: &str,
        path: &Path,
    ) -> Result<Option<T>, VerifyError> {
        match self.client.get(path, CALL).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => {
                Err(self.unable(&format!("fail to get {what} from k8s API server"), &error))
            }
        }
    }

    /// The API server's own words stay here: they name addresses and our own account.
    fn unable(&self, tried: &str, error: &Error) -> VerifyError {
        tracing::warn!(cluster = self.name, %error, "{tried}");
        internal(format!("{tried}: {}", cause(error)))
    }
}

/// What an agent may know of it.
fn cause(error: &Error) -> &'static str {
    match error {
        Error::Deadline { .. } => "it did not answer in time",
        Error::Connect { .. } | Error::Tls { .. } | Error::Broken { .. } => "it cannot be reached",
        _ if error.is_denied() => "it does not let this server ask",
        Error::Access(_) | Error::Request(_) => "this server cannot ask it",
        Error::Status { .. } | Error::TooLong { .. } | Error::Malformed { .. } => {
            "its answer is of no use"
        }
    }
}

#[derive(Serialize)]
struct Review<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    spec: ReviewSpec<'a>,
}

#[derive(Serialize)]
struct ReviewSpec<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    audiences: &'a [String],
}

#[derive(Deserialize)]
struct Reviewed {
    status: ReviewStatus,
}

#[derive(Deserialize)]
struct ReviewStatus {
    #[serde(default)]
    authenticated: bool,
    #[serde(default)]
    audiences: Vec<String>,
    user: Option<User>,
    error: Option<String>,
}

#[derive(Default, Deserialize)]
struct User {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct PodObject {
    metadata: Metadata,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Deserialize)]
struct NodeObject {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    uid: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
struct PodSpec {
    #[serde(rename = "nodeName")]
    node_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct PodStatus {
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}
