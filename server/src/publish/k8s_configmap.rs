//! SPIRE's `k8s_configmap`: the bundle as a value of ConfigMaps, one a cluster.
//!
//! The value is patched (RBAC `patch` on that ConfigMap); a ConfigMap that is not there is made
//! (`create`), which an operator may forbid by making it himself. Other values of it are left
//! alone. Clusters are served side by side, and one that fails hinders no other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vane_chassis::builtin::{Builtin, OpenError};
use vane_chassis::kubernetes::{AccessError, Bounds, Client, Error, Path};
use vane_identity::bundle::Bundle;
use vane_identity::jwks::JwksError;

use super::{BundlePublisher, PublishError};

const NAME: &str = "k8s_configmap";
const CALL: Bounds = Bounds {
    deadline: Duration::from_secs(10),
    // A ConfigMap has at most 1 MiB of values; who wrote it when comes on top.
    max_bytes: 4 * 1024 * 1024,
};

/// The options; SPIRE's keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    /// Where to publish, by a name of the operator's choice; nowhere when empty.
    pub clusters: BTreeMap<String, Target>,
}

/// One ConfigMap.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    /// The ConfigMap's name. Required.
    pub configmap_name: String,
    /// The key of the bundle in it. Required.
    pub configmap_key: String,
    /// The ConfigMap's namespace. Required.
    pub namespace: String,
    /// How the cluster is reached; the cluster that the server is a pod of when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_path: Option<PathBuf>,
    /// `spiffe`, `jwks` or `pem`. Required.
    pub format: Format,
    /// How soon readers shall look again, for format `spiffe`; the bundle's own when absent.
    #[serde(
        default,
        with = "humantime_serde",
        skip_serializing_if = "Option::is_none"
    )]
    pub refresh_hint: Option<Duration>,
}

/// The form of the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Format {
    /// A SPIFFE bundle.
    Spiffe,
    /// All its keys as a JWK Set, without what SPIFFE adds.
    Jwks,
    /// Its CA certificates.
    Pem,
}

/// What is wrong with the options.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("k8s_configmap: cluster \"{cluster}\": {key} is empty")]
    Empty { cluster: String, key: &'static str },
    #[error("k8s_configmap: cluster \"{0}\": refresh_hint is part of format \"spiffe\" only")]
    Hint(String),
    #[error("k8s_configmap: cluster \"{cluster}\": kubeconfig_path: {source}")]
    Access {
        cluster: String,
        source: AccessError,
    },
}

/// The ConfigMaps of all clusters.
#[derive(Debug)]
pub(super) struct ConfigMaps(Vec<ConfigMap>);

#[derive(Debug)]
struct ConfigMap {
    cluster: String,
    target: Target,
    client: Client,
}

impl Builtin<dyn BundlePublisher, ()> for ConfigMaps {
    const NAME: &'static str = NAME;
    type Config = Config;

    async fn open(config: Config, (): &()) -> Result<Arc<dyn BundlePublisher>, OpenError> {
        let maps = config.clusters.into_iter();
        let maps: Result<_, _> = maps.map(|(name, it)| ConfigMap::new(name, it)).collect();
        Ok(Arc::new(Self(maps.map_err(OpenError::failed)?)))
    }
}

#[async_trait]
impl BundlePublisher for ConfigMaps {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn publish(&self, bundle: &Bundle) -> Result<(), PublishError> {
        let written = self
            .0
            .iter()
            .map(|map| Ok((map, map.target.written(bundle)?)));
        let written: Vec<_> = written.collect::<Result<_, JwksError>>()?;
        let puts = written.iter().map(|(map, value)| async move {
            let error = map.put(value).await.err()?;
            Some(format!("cluster \"{}\": {error}", map.cluster))
        });
        let failed: Vec<_> = join_all(puts).await.into_iter().flatten().collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(PublishError::Places(failed)),
        }
    }
}

impl ConfigMap {
    fn new(cluster: String, target: Target) -> Result<Self, ConfigError> {
        for (key, value) in [
            ("configmap_name", &target.configmap_name),
            ("configmap_key", &target.configmap_key),
            ("namespace", &target.namespace),
        ] {
            if value.is_empty() {
                return Err(ConfigError::Empty { cluster, key });
            }
        }
        if target.refresh_hint.is_some() && target.format != Format::Spiffe {
            return Err(ConfigError::Hint(cluster));
        }
        let client = match &target.kubeconfig_path {
            Some(path) => Client::kubeconfig(path.clone()),
            None => Client::in_cluster(),
        };
        match client {
            Ok(client) => Ok(Self {
                cluster,
                target,
                client,
            }),
            Err(source) => Err(ConfigError::Access { cluster, source }),
        }
    }

    async fn put(&self, value: &str) -> Result<(), Error> {
        let Target {
            namespace,
            configmap_name: name,
            configmap_key: key,
            ..
        } = &self.target;
        let all = ["api", "v1", "namespaces", namespace, "configmaps"];
        let [a, b, c, d, e] = all;
        let data = json!({ key: value });
        let patch = json!({ "data": data });
        let patched: Result<IgnoredAny, _> = self
            .client
            .patch(&Path::of(&[a, b, c, d, e, name]), &patch, CALL)
            .await;
        match patched {
            Err(error) if error.is_not_found() => {}
            other => return other.map(drop),
        }
        let whole = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace}, "data": data,
        });
        let made: Result<IgnoredAny, _> = self.client.post(&Path::of(&all), &whole, CALL).await;
        made.map(drop)
    }
}

impl Target {
    /// The value for `bundle`.
    fn written(&self, bundle: &Bundle) -> Result<String, JwksError> {
        let json = match self.format {
            Format::Pem => return Ok(bundle.to_pem()),
            Format::Jwks => bundle.to_plain_jwks()?,
            Format::Spiffe => match self.refresh_hint {
                None => bundle.to_jwks()?,
                Some(hint) => {
                    let refresh_hint = i64::try_from(hint.as_secs()).unwrap_or(i64::MAX);
                    let hinted = Bundle {
                        refresh_hint,
                        ..bundle.clone()
                    };
                    hinted.to_jwks()?
                }
            },
        };
        // JSON is UTF-8.
        Ok(String::from_utf8_lossy(&json).into_owned())
    }
}
