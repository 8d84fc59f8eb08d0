//! The admin socket of a server, and the arguments that name it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tonic::transport::{Channel, Endpoint};
use vane_wire::spire::api::types;

use crate::failure::Failure;
use crate::output::Format;

/// Where `vane-server` puts its admin socket when nothing is said.
pub(crate) const DEFAULT_SERVER_SOCKET: &str = "/run/vane/server.sock";
/// A message is at most this large (NAMES 21).
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// So long a call may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How a command reaches the server and prints what it says.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// The server's admin socket.
    #[arg(long, value_name = "PATH", env = "VANE_SERVER_SOCKET", default_value = DEFAULT_SERVER_SOCKET)]
    pub(crate) socket_path: String,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

impl Server {
    /// Connects to the admin socket.
    pub(crate) async fn connect(&self) -> Result<Channel, Failure> {
        let path = socket_path(&self.socket_path)?;
        connect("server", &path, "--socket-path").await
    }

    /// Whether the answer is for a script.
    pub(crate) fn json(&self) -> bool {
        self.output == Format::Json
    }
}

/// A Unix socket's path, given plain or as `unix:///path`.
pub(crate) fn socket_path(text: &str) -> Result<PathBuf, Failure> {
    let path = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"))
        .unwrap_or(text);
    if path.is_empty() || path.contains("://") {
        return Err(
            Failure::usage(format!("--socket-path {text:?} names no Unix socket"))
                .hint("write a path, for example --socket-path /run/vane/server.sock"),
        );
    }
    if text.starts_with("unix://") && !path.starts_with('/') {
        return Err(
            Failure::usage(format!("--socket-path {text:?} has a host in it"))
                .hint(format!("write three slashes: unix:///{path}")),
        );
    }
    vane_chassis::files::unix_path_check(Path::new(path)).map_err(|error| {
        Failure::usage(format!("--socket-path {path:?}: {error}")).hint("use a shorter path")
    })?;
    Ok(PathBuf::from(path))
}

/// Connects to the Unix socket of `what`, which `flag` names.
pub(crate) async fn connect(what: &str, path: &Path, flag: &str) -> Result<Channel, Failure> {
    crate::failure::talks_to(path, flag);
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let endpoint = Endpoint::from_shared(format!("unix://{}", absolute.display()))
        .map_err(|error| Failure::unreachable(what, path, &error, flag))?
        .connect_timeout(Duration::from_secs(5));
    endpoint
        .connect()
        .await
        .map_err(|error| Failure::unreachable(what, path, &error, flag))
}

/// A request that is given up after half a minute.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// A generated client that takes messages up to the limit.
macro_rules! client {
    ($client:ty, $channel:expr) => {
        <$client>::new($channel)
            .max_decoding_message_size($crate::api::MAX_MESSAGE_BYTES)
            .max_encoding_message_size($crate::api::MAX_MESSAGE_BYTES)
    };
}
pub(crate) use client;

/// What a server said, or the failure it stands for.
pub(crate) fn answer<T>(result: Result<tonic::Response<T>, tonic::Status>) -> Result<T, Failure> {
    result
        .map(tonic::Response::into_inner)
        .map_err(|status| Failure::of_status(&status))
}

/// A SPIFFE ID for the wire.
pub(crate) fn wire_id(id: &vane_identity::id::SpiffeId) -> types::Spiffeid {
    types::Spiffeid {
        trust_domain: id.trust_domain_name().to_owned(),
        path: id.path().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_with_or_without_a_scheme() {
        for text in ["/run/s.sock", "unix:///run/s.sock", "unix:/run/s.sock"] {
            assert_eq!(
                socket_path(text),
                Ok(PathBuf::from("/run/s.sock")),
                "{text}"
            );
        }
        assert_eq!(socket_path("s.sock"), Ok(PathBuf::from("s.sock")));
    }

    #[test]
    fn what_names_no_unix_socket_is_a_usage_error() {
        let long = format!("/{}", "x".repeat(200));
        let cases = [
            ("", "names no Unix socket"),
            ("unix://", "names no Unix socket"),
            ("tcp://127.0.0.1:8081", "names no Unix socket"),
            (
                "unix://run/s.sock",
                "write three slashes: unix:///run/s.sock",
            ),
            (&long, "use a shorter path"),
        ];
        for (text, told) in cases {
            let failure = socket_path(text).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.to_string().contains(told), "{failure}");
        }
    }
}
