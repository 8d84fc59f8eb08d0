//! Why a command failed: what, which field and value, and what to do next.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use tonic::Code;
use vane_identity::id::{IdError, SpiffeId, TrustDomain};
use vane_identity::selector::{Selector, SelectorError};

/// What a server says of an ID that is not its own.
pub(crate) const FOREIGN: &str = "is not a member of trust domain";

/// The socket that this command talks to and the flag that names it, for texts about answers.
static SOCKET: OnceLock<(String, String)> = OnceLock::new();

/// Remembers the first socket that was connected to: a command has one.
pub(crate) fn talks_to(socket: &Path, flag: &str) {
    let _ = SOCKET.set((socket.display().to_string(), flag.to_owned()));
}

/// A failure as it is printed to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    what: String,
    hint: Option<String>,
    usage: bool,
}

impl Failure {
    /// Something failed while it was carried out.
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
            usage: false,
        }
    }

    /// The command line cannot be meant so.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(what)
        }
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what it is about in front.
    pub(crate) fn with(mut self, about: &str) -> Self {
        self.what = format!("{about}: {}", self.what);
        self
    }

    /// The exit status that it stands for.
    pub(crate) fn exit_code(&self) -> u8 {
        if self.usage { 2 } else { 1 }
    }

    /// What a server answered, with the next step for the codes that have one.
    pub(crate) fn of_status(status: &tonic::Status) -> Self {
        let failure = Self::new(status.message().to_owned());
        match status.code() {
            Code::Unimplemented => Self::not_offered(status.message()),
            Code::InvalidArgument if status.message().contains(FOREIGN) => failure.hint("write an ID of the trust domain that it names"),
            Code::InvalidArgument if status.message().contains("agent ID") => failure.hint("`vane agent list` shows the IDs of agents"),
            Code::InvalidArgument | Code::FailedPrecondition | Code::AlreadyExists => {
                failure.hint("change the value that it names; --help has examples")
            }
            Code::PermissionDenied if status.message().contains("no identity issued") => failure.hint(
                "no entry matches this process: `vane entry list` shows the entries, `id -u` the uid for --selector unix:uid:N",
            ),
            Code::PermissionDenied => {
                failure.hint("only an administrator may do this: use the server's admin socket with --socket-path")
            }
            Code::ResourceExhausted => failure.hint("ask for less at once, or try again in a moment"),
            Code::Unavailable => failure.hint("the server is there but cannot answer now; its log says why"),
            Code::DeadlineExceeded => failure.hint("the server did not answer in time; `vane health` asks it for a sign of life"),
            Code::NotFound => failure.hint("it may be gone, or the ID has a typing error: `vane entry list` and `vane agent list` show what there is"),
            Code::Unknown | Code::Internal => Self {
                what: format!("{:?}: {}", status.code(), status.message()),
                ..failure
            }
            .hint("the server's log has the cause"),
            _ => failure,
        }
    }

    /// Somebody answered who does not know the call.
    fn not_offered(text: &str) -> Self {
        let (socket, flag) = SOCKET.get().cloned().unwrap_or_default();
        let text = if text.is_empty() {
            "not implemented"
        } else {
            text
        };
        Self::new(format!("{socket} does not offer this: {text}")).hint(format!(
            "if that is the socket of another program, name the right one with {flag}"
        ))
    }

    /// A socket that cannot be reached.
    pub(crate) fn unreachable(
        what: &str,
        socket: &Path,
        error: &dyn std::error::Error,
        flag: &str,
    ) -> Self {
        let shown = socket.display();
        let cause = root_cause(error);
        let failure = Self::new(format!("cannot reach the {what} at {shown}: {cause}"));
        match socket.symlink_metadata() {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => {
                failure.hint(format!(
                    "there is no such file: is the {what} running? Name its socket with {flag}"
                ))
            }
            Err(_) => failure
                .hint("run as root, or as a member of the group that owns the socket's folder"),
            Ok(meta) if !is_socket(&meta) => failure.hint(format!(
                "that is no socket; name the {what}'s socket with {flag}"
            )),
            Ok(_) if cause.contains("ermission denied") => failure.hint(
                "run as root, or as a member of the group that owns the socket (`admin_group`)",
            ),
            Ok(_) => failure.hint(format!(
                "nobody listens there: start the {what} again, it replaces the stale socket"
            )),
        }
    }
}

fn is_socket(meta: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    meta.file_type().is_socket()
}

/// What an error comes from.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  next: {hint}"),
            None => Ok(()),
        }
    }
}

/// Reads a SPIFFE ID of a flag.
pub(crate) fn spiffe_id(flag: &str, text: &str) -> Result<SpiffeId, Failure> {
    SpiffeId::parse(text).map_err(|error| {
        let failure = Failure::usage(format!("{flag} {text:?} is not a SPIFFE ID: {error}"));
        match error {
            IdError::Scheme => failure.hint(format!(
                "write it whole: {flag} spiffe://<trust domain>/<path>"
            )),
            IdError::TrailingSlash => failure.hint(format!(
                "leave the last slash away: {flag} {}",
                text.trim_end_matches('/')
            )),
            IdError::TrustDomainChar if text.bytes().any(|b| b.is_ascii_uppercase()) => {
                failure.hint("trust domains are written in lower case")
            }
            _ => failure.hint("see `vane entry create --help` for examples"),
        }
    })
}

/// Reads a trust domain of a flag: its name, or its ID.
pub(crate) fn trust_domain(flag: &str, text: &str) -> Result<TrustDomain, Failure> {
    TrustDomain::parse_name_or_id(text).map_err(|error| {
        let failure = Failure::usage(format!("{flag} {text:?} is not a trust domain: {error}"));
        failure.hint(format!("for example {flag} other.org"))
    })
}

/// Reads a selector of a flag.
pub(crate) fn selector(flag: &str, text: &str) -> Result<Selector, Failure> {
    text.parse().map_err(|error: SelectorError| {
        Failure::usage(format!("{flag} {text:?}: {error}"))
            .hint(format!("for example {flag} unix:uid:1000"))
    })
}

#[cfg(test)]
mod tests;
