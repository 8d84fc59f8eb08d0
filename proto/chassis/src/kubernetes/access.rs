//! Where a server is, how it is recognised, and what is shown to it.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use http::Uri;
use zeroize::Zeroizing;

use super::error::AccessError;

/// Where kubelet mounts what a pod's service account needs.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The most bytes of a file with a token, a key or certificates.
const MAX_FILE: u64 = 1024 * 1024;

/// How one server is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// Where it is.
    pub endpoint: Endpoint,
    /// Against what its certificate is verified.
    pub trust: Trust,
    /// Which name its certificate must have.
    pub name: Name,
    /// What we show.
    pub credentials: Credentials,
}

impl Access {
    /// What a pod's environment and mounted files say of its cluster's API server
    /// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
    ///
    /// # Errors
    /// [`AccessError::NotInCluster`].
    pub fn in_cluster() -> Result<Self, AccessError> {
        Self::in_cluster_of(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT))
    }

    /// As [`in_cluster`](Self::in_cluster), with this environment and folder.
    ///
    /// # Errors
    /// As there.
    pub fn in_cluster_of(
        variable: impl Fn(&str) -> Option<String>,
        folder: &Path,
    ) -> Result<Self, AccessError> {
        let (host, port) = variable("KUBERNETES_SERVICE_HOST")
            .filter(|host| !host.is_empty())
            .zip(variable("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok()))
            .ok_or(AccessError::NotInCluster)?;
        Ok(Self {
            endpoint: Endpoint::https(host, port),
            trust: Trust::Roots(Pem::File(folder.join("ca.crt"))),
            name: Name::OfEndpoint,
            credentials: Credentials {
                token: Some(Token::File(folder.join("token"))),
                certificate: None,
            },
        })
    }
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// What stands before every path; no slash at its end.
    pub(super) prefix: String,
}

impl Endpoint {
    /// TLS at a host (a name or an address without brackets) and port.
    #[must_use]
    pub fn https(host: impl Into<String>, port: u16) -> Self {
        Self {
            tls: true,
            host: host.into(),
            port,
            prefix: String::new(),
        }
    }

    /// Without TLS: neither side is verified, and no credentials are sent.
    #[must_use]
    pub fn http(host: impl Into<String>, port: u16) -> Self {
        Self {
            tls: false,
            ..Self::https(host, port)
        }
    }

    /// `https://host[:port][/prefix]`, as a kubeconfig has it.
    ///
    /// # Errors
    /// [`AccessError::Url`].
    pub fn parse(url: &str) -> Result<Self, AccessError> {
        let bad = || AccessError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(bad()),
        };
        let plain = uri.authority().is_some_and(|it| !it.as_str().contains('@'));
        let host = uri.host().filter(|host| plain && !host.is_empty());
        if uri.query().is_some() {
            return Err(bad());
        }
        Ok(Self {
            tls,
            host: host.ok_or_else(bad)?.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(port),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// `host:port` as the header `Host` has it.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.prefix)
    }
}

/// Against what a server's certificate is verified.
#[derive(Clone, Debug)]
pub enum Trust {
    /// These CAs.
    Roots(Pem),
    /// Nothing: whoever answers is believed, and learns the token. Dangerous.
    Nothing,
}

/// Which name a verified certificate must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The host that is called.
    OfEndpoint,
    /// This one, whatever address is called.
    Other(String),
    /// Any: the chain alone decides. For a kubelet that is called at 127.0.0.1.
    Any,
}

/// What is shown to the server. Both may be there.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// A bearer token.
    pub token: Option<Token>,
    /// A client certificate with its key.
    pub certificate: Option<(Pem, Pem)>,
}

/// A bearer token.
#[derive(Clone)]
pub enum Token {
    /// In a file, read at each call: it rotates.
    File(PathBuf),
    /// The token itself.
    Text(Zeroizing<String>),
}

impl Token {
    /// The token of this moment.
    pub(super) fn read(&self) -> Result<Zeroizing<String>, AccessError> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path,
        };
        let bytes = read(path)?;
        let text = std::str::from_utf8(&bytes).ok().map(str::trim);
        let text = text.filter(|text| !text.is_empty());
        text.map(|text| Zeroizing::new(text.to_owned()))
            .ok_or_else(|| AccessError::Token(path.clone()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text(_) => f.write_str("Text"),
        }
    }
}

/// PEM blocks, of certificates or of a key.
#[derive(Clone)]
pub enum Pem {
    /// In a file, read whenever a connection is made.
    File(PathBuf),
    /// The blocks themselves.
    Text(Zeroizing<Vec<u8>>),
}

impl Pem {
    pub(super) fn read(&self) -> Result<Zeroizing<Vec<u8>>, AccessError> {
        match self {
            Self::File(path) => read(path),
            Self::Text(text) => Ok(text.clone()),
        }
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Text(_) => f.write_str("given data"),
        }
    }
}

/// Reads a file whole; links are followed, since kubelet's mounts are made of them.
pub(super) fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, AccessError> {
    let unread = |source| AccessError::File {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(unread)?;
    let size = file.metadata().map_err(unread)?.len();
    if size > MAX_FILE {
        return Err(AccessError::TooLong(path.to_owned()));
    }
    // Room for all of it: a growing Vec would leave copies behind.
    let room = usize::try_from(size).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(size).read_to_end(&mut bytes).map_err(unread)?;
    Ok(bytes)
}
