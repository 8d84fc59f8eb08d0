//! What can go wrong between us and a server of Kubernetes.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::tasks::BoxError;

/// The most characters of a server's message that are told.
const MAX_MESSAGE: usize = 512;

/// Why it is not known how a server is reached.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The environment of a pod is missing.
    #[error(
        "this process is not in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set): name a kubeconfig"
    )]
    NotInCluster,
    /// A server's address is of no use.
    #[error("\"{0}\" is not the address of a server (https://host:port)")]
    Url(String),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A file is longer than anything that belongs there.
    #[error("{} is too long to be what it should be", .0.display())]
    TooLong(PathBuf),
    /// A token's file has no token.
    #[error("{} has no token", .0.display())]
    Token(PathBuf),
    /// PEM that is none, or of the wrong kind.
    #[error("{source_name} has no {wanted} in PEM that can be used")]
    Pem {
        /// Where it came from.
        source_name: String,
        /// What should be there.
        wanted: &'static str,
    },
    /// A client certificate that TLS cannot use.
    #[error("the client certificate of {source_name}: {source}")]
    Certificate {
        /// Where it came from.
        source_name: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The certificate of the server cannot be compared with this name.
    #[error("\"{0}\" is not the name of a server")]
    Name(String),
    /// A kubeconfig is not one.
    #[error("{}: {message}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong; never quotes the file, which holds secrets.
        message: String,
    },
    /// rustls refused its own parts; none is known.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not known how the server is reached.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// There is no connection to the server.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Which server.
        server: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The server is not the one that is trusted, or speaks no TLS that we do.
    #[error("cannot agree on TLS with {server}: {source}")]
    Tls {
        /// Which server.
        server: String,
        /// What rustls says.
        source: io::Error,
    },
    /// The connection broke under the call.
    #[error("the connection to {server} broke: {source}")]
    Broken {
        /// Which server.
        server: String,
        /// How.
        source: BoxError,
    },
    /// Nothing, or not all, came in time.
    #[error("{server} did not answer within {within:?}")]
    Deadline {
        /// Which server.
        server: String,
        /// How long was waited.
        within: Duration,
    },
    /// The server refused.
    #[error("{server}: {status}")]
    Status {
        /// Which server.
        server: String,
        /// How.
        status: Box<Status>,
    },
    /// The answer is longer than the caller reads.
    #[error("{server} answered with more than {limit} bytes")]
    TooLong {
        /// Which server.
        server: String,
        /// The most bytes that are read.
        limit: usize,
    },
    /// The answer is not what was asked for.
    #[error("{server} answered what cannot be read: {source}")]
    Malformed {
        /// Which server.
        server: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// What is to be sent cannot be written down.
    #[error("the request cannot be written: {0}")]
    Request(BoxError),
}

impl Error {
    /// The code of the server's refusal, if it was one.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status.code),
            _ => None,
        }
    }

    /// What was asked for does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else changed it meanwhile, or made it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The resource version of a watch is too old: list again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.code() == Some(410)
    }

    /// The server does not know us (401) or does not let us (403).
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(self.code(), Some(401 | 403))
    }
}

/// A refusal: what Kubernetes calls a `Status`, or a kubelet's line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code.
    pub code: u16,
    /// One word for programs, such as `NotFound`; may be empty.
    pub reason: String,
    /// A sentence for people; may be empty. At most 512 characters, none of them a control one.
    pub message: String,
}

/// The object of the wire, in part.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    code: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
}

impl Status {
    /// What the body of a refused call says.
    pub(super) fn of_body(code: u16, body: &[u8]) -> Self {
        match serde_json::from_slice::<Wire>(body) {
            Ok(wire) => Self::of_wire(code, wire),
            Err(_) => Self {
                code,
                reason: String::new(),
                message: shown(&String::from_utf8_lossy(body)),
            },
        }
    }

    /// What the object of a watch's error event says.
    pub(super) fn of_event(object: &str) -> Self {
        let wire: Wire = serde_json::from_str(object).unwrap_or_default();
        let code = wire.code.unwrap_or(500);
        Self::of_wire(code, wire)
    }

    fn of_wire(code: u16, wire: Wire) -> Self {
        Self {
            code,
            reason: shown(&wire.reason.unwrap_or_default()),
            message: shown(&wire.message.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.code)?;
        if !self.reason.is_empty() {
            write!(f, " {}", self.reason)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

/// A foreign text as it may stand in one of ours.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(MAX_MESSAGE).map(plain).collect()
}
