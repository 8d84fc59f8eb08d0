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
use zeroize::Zeroizing;

use super::access::{Access, Credentials, Endpoint, Name, Pem, Token, Trust, read};
use super::error::AccessError;
use super::yaml::{self, Node, Wrong};

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

/// What is looked at of a cluster.
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    refused: Option<Refused>,
}

/// What is looked at of a user.
#[derive(Default)]
struct User {
    token: Option<String>,
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    refused: Option<Refused>,
}

/// A key, and why we do not do what it says.
type Refused = (&'static str, &'static str);

/// What we would not do as it is written there.
const OF_CLUSTERS: [Refused; 1] = [("proxy-url", "reach the server directly")];
const OF_USERS: [Refused; 4] = [
    ("exec", "no program is run"),
    ("auth-provider", "it is obsolete"),
    ("username", "Kubernetes has no passwords any more"),
    ("as", "name the user itself"),
];

impl Cluster {
    fn read(node: &Node) -> Result<Self, Wrong> {
        Ok(Self {
            server: text(node, "server")?.unwrap_or_default(),
            certificate_authority: text(node, "certificate-authority")?.map(PathBuf::from),
            certificate_authority_data: text(node, "certificate-authority-data")?,
            insecure_skip_tls_verify: node.flag("insecure-skip-tls-verify")?,
            tls_server_name: text(node, "tls-server-name")?,
            refused: refused(node, &OF_CLUSTERS)?,
        })
    }
}

impl User {
    fn read(node: &Node) -> Result<Self, Wrong> {
        Ok(Self {
            token: text(node, "token")?,
            token_file: text(node, "tokenFile")?.map(PathBuf::from),
            client_certificate: text(node, "client-certificate")?.map(PathBuf::from),
            client_certificate_data: text(node, "client-certificate-data")?,
            client_key: text(node, "client-key")?.map(PathBuf::from),
            client_key_data: text(node, "client-key-data")?,
            refused: refused(node, &OF_USERS)?,
        })
    }
}

fn text(node: &Node, key: &str) -> Result<Option<String>, Wrong> {
    Ok(node.text(key)?.map(ToOwned::to_owned))
}

fn refused(node: &Node, keys: &[Refused]) -> Result<Option<Refused>, Wrong> {
    for refused in keys {
        if node.get(refused.0)?.is_some() {
            return Ok(Some(*refused));
        }
    }
    Ok(None)
}

/// The part of the entry of this name in one of the file's three lists.
fn named<'n>(
    file: &'n Node,
    list: &str,
    part: &str,
    name: &str,
) -> Result<Option<&'n Node>, Wrong> {
    for entry in file.list(list)? {
        if entry.text("name")? == Some(name) {
            return entry.get(part);
        }
    }
    Ok(None)
}

/// Why the file names no cluster and user.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Wrong(#[from] Wrong),
    #[error("has no context \"{0}\" (current-context)")]
    Context(String),
    #[error("has no cluster \"{0}\"")]
    Cluster(String),
    #[error("has no user \"{0}\"")]
    User(String),
}

/// The current context's cluster and user.
fn current(file: &Node) -> Result<(Cluster, User), Unusable> {
    let wanted = file.text("current-context")?.unwrap_or_default();
    let context = named(file, "contexts", "context", wanted)?
        .ok_or_else(|| Unusable::Context(wanted.to_owned()))?;
    let name = context.text("cluster")?.unwrap_or_default();
    let cluster = named(file, "clusters", "cluster", name)?
        .ok_or_else(|| Unusable::Cluster(name.to_owned()))?;
    let user = match context.text("user")? {
        None => User::default(),
        Some(name) => {
            let user = named(file, "users", "user", name)?;
            User::read(user.ok_or_else(|| Unusable::User(name.to_owned()))?)?
        }
    };
    Ok((Cluster::read(cluster)?, user))
}

fn parse(bytes: &[u8], path: &Path) -> Result<Access, AccessError> {
    let reader = Reader { path };
    let file = yaml::read(bytes).map_err(|wrong| reader.error(wrong.to_string()))?;
    let (cluster, user) = current(&file).map_err(|why| reader.error(why.to_string()))?;
    reader.access(cluster, user)
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
        match cluster.refused.or(user.refused) {
            None => Ok(()),
            Some((key, why)) => Err(self.error(format!(
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
