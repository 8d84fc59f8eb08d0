//! `[[workload_attestor]] type = "k8s"`: SPIRE's option names; what it has and Vane has not is
//! refused with the way out.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use vane_chassis::kubernetes::{Access, Client, Credentials, Endpoint, Name, Pem, Token, Trust};

/// Where kubelet mounts what a pod's service account needs.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const LOCAL: &str = "127.0.0.1";

/// Who is asked for the pods of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodSource {
    /// The kubelet of the node: the agent needs no right to read pods of others.
    #[default]
    Kubelet,
    /// The API server, which tells changes at once: the agent's service account needs `list` and
    /// `watch` of pods, which cannot be given for one node only.
    ApiServer,
}

/// The options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct K8sConfig {
    /// Who is asked for the pods of the node: `kubelet` or `api_server`.
    pub pod_source: PodSource,
    /// No `container-…` selectors, and no waiting for what they need.
    pub disable_container_selectors: bool,
    /// The kubelet's port with TLS.
    pub kubelet_secure_port: u16,
    /// Instead of it: the kubelet's port without TLS and without authentication, on 127.0.0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_read_only_port: Option<u16>,
    /// The kubelet's host, when it is not the node's name; its certificate must have the node's
    /// name all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_address: Option<String>,
    /// The environment variable that has it (a pod's `status.hostIP`).
    pub kubelet_address_env: String,
    /// The CAs of the kubelet's certificate.
    pub kubelet_ca_path: PathBuf,
    /// Believe whoever answers at the kubelet's port, and show it the token.
    pub skip_kubelet_verification: bool,
    /// The token to show, of the agent's service account; read at each request.
    pub token_path: PathBuf,
    /// Instead of a token: a client certificate; read for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_path: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key_path: Option<PathBuf>,
    /// Show neither.
    pub use_anonymous_authentication: bool,
    /// The name of the node. Without any name the kubelet is called at 127.0.0.1 and its
    /// certificate needs no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The environment variable that has it (a pod's `spec.nodeName`).
    pub node_name_env: String,
    /// So often the kubelet is asked for a container that it does not know yet.
    pub max_poll_attempts: u32,
    /// The longest wait between two of these tries; the first ones come sooner.
    #[serde(with = "humantime_serde")]
    pub poll_retry_interval: Duration,
    /// How the API server is reached from outside of pods (`pod_source = "api_server"`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kube_config_file: Option<PathBuf>,
    /// The socket of the container runtime (containerd's /run/containerd/containerd.sock): with it
    /// `container-…` selectors need not wait for the kubelet. Who may open it is root on the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cri_socket: Option<PathBuf>,
    /// Where the kubelet's cgroups begin (its `--cgroup-root`), when that is not `/` and the agent
    /// does not run as a pod: what stands before `kubepods` in /proc/PID/cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_cgroup_root: Option<String>,
    /// SPIRE's switch back to an older way; only `true` is possible.
    #[serde(skip_serializing, deserialize_with = "new_locator")]
    pub use_new_container_locator: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_verbose_locator")]
    pub verbose_container_locator_logs: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_reload_interval")]
    pub reload_interval: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_disable_kubelet")]
    pub disable_kubelet_client: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_namespace_labels")]
    pub enable_namespace_labels: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_sigstore")]
    pub sigstore: (),
    /// Refused.
    #[serde(skip_serializing, deserialize_with = "no_experimental")]
    pub experimental: (),
}

impl Default for K8sConfig {
    fn default() -> Self {
        Self {
            pod_source: PodSource::Kubelet,
            disable_container_selectors: false,
            kubelet_secure_port: 10_250,
            kubelet_read_only_port: None,
            kubelet_address: None,
            kubelet_address_env: "MY_NODE_IP".to_owned(),
            kubelet_ca_path: format!("{SERVICE_ACCOUNT}/ca.crt").into(),
            skip_kubelet_verification: false,
            token_path: format!("{SERVICE_ACCOUNT}/token").into(),
            certificate_path: None,
            private_key_path: None,
            use_anonymous_authentication: false,
            node_name: None,
            node_name_env: "MY_NODE_NAME".to_owned(),
            max_poll_attempts: 60,
            poll_retry_interval: Duration::from_millis(500),
            kube_config_file: None,
            cri_socket: None,
            kubelet_cgroup_root: None,
            use_new_container_locator: (),
            verbose_container_locator_logs: (),
            reload_interval: (),
            disable_kubelet_client: (),
            enable_namespace_labels: (),
            sigstore: (),
            experimental: (),
        }
    }
}

/// What is wrong with options that could be parsed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Invalid {
    #[error("certificate_path and private_key_path belong together: one of them is missing")]
    HalfCertificate,
    #[error(
        "use_anonymous_authentication and certificate_path exclude each other: keep one of them"
    )]
    AnonymousWithCertificate,
    #[error(
        "the node's name is needed to ask the API server for its pods: set node_name, or the environment variable {0} (a pod's spec.nodeName)"
    )]
    NoNode(String),
    #[error("how the API server is reached: {0}")]
    Access(#[from] vane_chassis::kubernetes::AccessError),
}

impl K8sConfig {
    /// How the kubelet is asked.
    pub(super) fn kubelet(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Access, Invalid> {
        if let Some(port) = self.kubelet_read_only_port.filter(|port| *port != 0) {
            return Ok(Access {
                endpoint: Endpoint::http(LOCAL, port),
                trust: Trust::Nothing,
                name: Name::Any,
                credentials: Credentials::default(),
            });
        }
        let node = self.node(&variable);
        let address = self
            .kubelet_address
            .clone()
            .or_else(|| named(&variable, &self.kubelet_address_env));
        let name = match (&node, &address) {
            (Some(node), Some(_)) => Name::Other(node.clone()),
            (_, None) if node.is_none() => Name::Any,
            _ => Name::OfEndpoint,
        };
        let host = address.or(node).unwrap_or_else(|| LOCAL.to_owned());
        Ok(Access {
            endpoint: Endpoint::https(host, self.kubelet_secure_port),
            trust: match self.skip_kubelet_verification {
                true => Trust::Nothing,
                false => Trust::Roots(Pem::File(self.kubelet_ca_path.clone())),
            },
            name,
            credentials: self.credentials()?,
        })
    }

    fn credentials(&self) -> Result<Credentials, Invalid> {
        let certificate = match (&self.certificate_path, &self.private_key_path) {
            (Some(certificate), Some(key)) => {
                Some((Pem::File(certificate.clone()), Pem::File(key.clone())))
            }
            (None, None) => None,
            _ => return Err(Invalid::HalfCertificate),
        };
        if self.use_anonymous_authentication && certificate.is_some() {
            return Err(Invalid::AnonymousWithCertificate);
        }
        let with_token = certificate.is_none() && !self.use_anonymous_authentication;
        Ok(Credentials {
            token: with_token.then(|| Token::File(self.token_path.clone())),
            certificate,
        })
    }

    /// A client of the API server, and the node's name.
    pub(super) fn api_server(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(Client, String), Invalid> {
        let node = self.node(variable);
        let node = node.ok_or_else(|| Invalid::NoNode(self.node_name_env.clone()))?;
        let client = match &self.kube_config_file {
            Some(file) => Client::kubeconfig(file.clone())?,
            None => Client::in_cluster()?,
        };
        Ok((client, node))
    }

    fn node(&self, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
        let configured = self.node_name.clone();
        configured.or_else(|| named(variable, &self.node_name_env))
    }
}

/// What the environment has under `name`; an empty value is none.
fn named(variable: impl Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    variable(name).filter(|value| !value.is_empty())
}

fn new_locator<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    match bool::deserialize(deserializer)? {
        true => Ok(()),
        false => Err(D::Error::custom(
            "use_new_container_locator = false is not possible: the container is read from the cgroup file only, never from mounts, which a workload can change; leave it out",
        )),
    }
}

fn no_verbose_locator<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "verbose_container_locator_logs is not there: set agent.log_level = \"debug\" instead",
    ))
}

fn no_reload_interval<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "reload_interval is not there: tokens, certificates and CAs are read anew whenever they are used; leave it out",
    ))
}

fn no_disable_kubelet<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "disable_kubelet_client is not there: set pod_source = \"api_server\" instead",
    ))
}

fn no_namespace_labels<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "enable_namespace_labels is not there: no ns-label selectors are made; use ns and pod-label",
    ))
}

fn no_sigstore<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "sigstore is not there: no image-signature selectors are made; name images by digest (container-image), and let an admission policy verify their signatures",
    ))
}

fn no_experimental<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom(
        "experimental is not there: for its api_server set pod_source = \"api_server\"; there is no broker",
    ))
}
