//! A kubeconfig: the current context's cluster and user
//! (<https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>).
//!
//! What would run a program, or make us somebody else than the file's reader expects, is refused
//! with a text instead of being passed over. Errors never quote the file: it holds secrets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::access::{Access, Credentials, Endpoint, Name, Pem, Token, Trust, read};
use super::error::AccessError;

/// A kubeconfig's file, and what it said last.
#[derive(Debug)]
pub(super) struct Kubeconfig {
    path: PathBuf,
    last: Mutex<Option<(Vec<u8>, Arc<Access>)>>,
}

impl Kubeconfig {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: Mutex::default(),
        }
    }

    /// What the file says now.
    ///
    /// # Errors
    /// It cannot be read or used.
    pub(super) fn access(&self) -> Result<Arc<Access>, AccessError> {
        let bytes = read(&self.path)?;
        let of = digest(&SHA256, &bytes);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((seen, access)) = last.as_ref()
            && seen == of.as_ref()
        {
            return Ok(Arc::clone(access));
        }
        let access = Arc::new(parse(&bytes, &self.path)?);
        *last = Some((of.as_ref().to_vec(), Arc::clone(&access)));
        Ok(access)
    }
}

/// The parts of the file that are looked at.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<IgnoredAny>,
    auth_provider: Option<IgnoredAny>,
    username: Option<IgnoredAny>,
    #[serde(rename = "as")]
    impersonate: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: Option<String>,
}

fn parse(bytes: &[u8], path: &Path) -> Result<Access, AccessError> {
    let reader = Reader { path };
    // A snippet of the file in an error would show its secrets.
    let options = serde_saphyr::options! { with_snippet: false };
    let file: Option<File> = serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|error| reader.error(unread(&error)))?;
    let file = file.unwrap_or_default();
    let wanted = file.current_context.unwrap_or_default();
    let context = file
        .contexts
        .into_iter()
        .flatten()
        .find(|it| it.name == wanted)
        .ok_or_else(|| reader.error(format!("has no context \"{wanted}\" (current-context)")))?
        .context;
    let cluster = file
        .clusters
        .into_iter()
        .flatten()
        .find(|it| it.name == context.cluster)
        .ok_or_else(|| reader.error(format!("has no cluster \"{}\"", context.cluster)))?
        .cluster;
    let user = match &context.user {
        None => User::default(),
        Some(name) => {
            let mut users = file.users.into_iter().flatten();
            users
                .find(|it| it.name == *name)
                .ok_or_else(|| reader.error(format!("has no user \"{name}\"")))?
                .user
        }
    };
    reader.access(cluster, user)
}

/// Where the file is wrong; what stands there may be a secret.
fn unread(error: &serde_saphyr::Error) -> String {
    match error.location() {
        Some(place) => format!("line {} is not what a kubeconfig has there", place.line()),
        None => "is not the YAML of a kubeconfig".to_owned(),
    }
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn access(&self, cluster: Cluster, user: User) -> Result<Access, AccessError> {
        self.check(&cluster, &user)?;
        let endpoint = Endpoint::parse(&cluster.server)?;
        let roots = self.pem(
            cluster.certificate_authority,
            cluster.certificate_authority_data,
        )?;
        let trust = match (cluster.insecure_skip_tls_verify, roots) {
            (true, _) => Trust::Nothing,
            (false, Some(roots)) => Trust::Roots(roots),
            // There is nothing to verify without TLS.
            (false, None) if !endpoint.tls => Trust::Nothing,
            (false, None) => {
                return Err(self.error(
                    "names no certificate-authority (or certificate-authority-data) for the cluster",
                ));
            }
        };
        let token = match (user.token_file, user.token) {
            (Some(path), _) => Some(Token::File(self.beside(path))),
            (None, token) => token.map(Zeroizing::new).map(Token::Text),
        };
        let chain = self.pem(user.client_certificate, user.client_certificate_data)?;
        let key = self.pem(user.client_key, user.client_key_data)?;
        let certificate = match (chain, key) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => return Err(self.error("has only one of client-certificate and client-key")),
        };
        Ok(Access {
            endpoint,
            trust,
            name: cluster
                .tls_server_name
                .map_or(Name::OfEndpoint, Name::Other),
            credentials: Credentials { token, certificate },
        })
    }

    /// Refuses what we would not do as it is written there.
    fn check(&self, cluster: &Cluster, user: &User) -> Result<(), AccessError> {
        let refused = [
            (
                cluster.proxy_url.is_some(),
                "proxy-url",
                "reach the server directly",
            ),
            (user.exec.is_some(), "exec", "no program is run"),
            (
                user.auth_provider.is_some(),
                "auth-provider",
                "it is obsolete",
            ),
            (
                user.username.is_some(),
                "username",
                "Kubernetes has no passwords any more",
            ),
            (user.impersonate.is_some(), "as", "name the user itself"),
        ];
        match refused.into_iter().find(|(there, ..)| *there) {
            None => Ok(()),
            Some((_, key, why)) => Err(self.error(format!(
                "has \"{key}\", which is not supported ({why}): use a token, tokenFile or client certificate"
            ))),
        }
    }

    /// The data, which go before the file.
    fn pem(&self, file: Option<PathBuf>, data: Option<String>) -> Result<Option<Pem>, AccessError> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            let data = Zeroizing::new(data);
            let bytes = STANDARD
                .decode(data.trim())
                .map_err(|_| self.error("has data that are no base64"))?;
            return Ok(Some(Pem::Text(Zeroizing::new(bytes))));
        }
        Ok(file.map(|path| Pem::File(self.beside(path))))
    }

    /// A relative path counts from the kubeconfig's folder.
    fn beside(&self, path: PathBuf) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(path),
            None => path,
        }
    }

    fn error(&self, message: impl Into<String>) -> AccessError {
        AccessError::Kubeconfig {
            path: self.path.to_owned(),
            message: message.into(),
        }
    }
}
