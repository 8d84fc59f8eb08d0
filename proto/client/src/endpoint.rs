//! The address of the Workload API (SPIFFE_Workload_Endpoint.md section 4).
//!
//! Read strictly: `unix` with an absolute path and nothing else, or `tcp` with an IP address
//! and a port and nothing else. Pure; the caller reads the environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// The variable that names the Workload API.
pub const ENV: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Where the Workload API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Why a text is no address of a Workload API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is no scheme.
    #[error("workload endpoint socket {0:?} has no scheme: write unix:///path or tcp://ip:port")]
    NoScheme(String),
    /// The scheme is neither `unix` nor `tcp`.
    #[error("workload endpoint socket scheme must be \"unix\" or \"tcp\", got {0:?}")]
    Scheme(String),
    /// A Unix address has an authority.
    #[error(
        "{text:?} has {host:?} where a host would stand: write unix:///{host}{path} with three slashes"
    )]
    UnixHost {
        /// The whole address.
        text: String,
        /// What stands where a host would.
        host: String,
        /// The rest.
        path: String,
    },
    /// A Unix address has no absolute path.
    #[error("{0:?} has no absolute path")]
    UnixPath(String),
    /// A TCP address is not an IP address with a port.
    #[error("{0:?} must be tcp:// with an IP address and a port")]
    Tcp(String),
    /// There is a query or fragment.
    #[error("{0:?} must not have a query or a fragment")]
    Extra(String),
}

/// Reads an address.
///
/// # Errors
/// The rule that it breaks.
pub fn parse(text: &str) -> Result<Endpoint, EndpointError> {
    let (scheme, rest) = text
        .split_once(':')
        .ok_or_else(|| EndpointError::NoScheme(text.to_owned()))?;
    if rest.contains(['?', '#']) {
        return Err(EndpointError::Extra(text.to_owned()));
    }
    // RFC 3986 section 3.1: schemes are compared without regard to case.
    match scheme.to_ascii_lowercase().as_str() {
        "unix" => unix(text, rest),
        "tcp" => tcp(rest).ok_or_else(|| EndpointError::Tcp(text.to_owned())),
        _ if !scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            Err(EndpointError::NoScheme(text.to_owned()))
        }
        _ => Err(EndpointError::Scheme(scheme.to_owned())),
    }
}

fn unix(text: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if rest.starts_with("//") && !path.starts_with('/') && !path.is_empty() {
        let (host, path) = path.find('/').map_or((path, ""), |at| path.split_at(at));
        return Err(EndpointError::UnixHost {
            text: text.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
        });
    }
    if !path.starts_with('/') || path == "/" {
        return Err(EndpointError::UnixPath(text.to_owned()));
    }
    Ok(Endpoint::Unix(PathBuf::from(path)))
}

fn tcp(rest: &str) -> Option<Endpoint> {
    let authority = rest.strip_prefix("//")?;
    let (host, port) = authority.rsplit_once(':')?;
    let host = host
        .strip_prefix('[')
        .map_or(Some(host), |inner| inner.strip_suffix(']'))?;
    let ip: IpAddr = host.parse().ok()?;
    if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(Endpoint::Tcp(SocketAddr::new(ip, port.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves: WEP-15, WEP-16, WEP-17.
    #[test]
    fn addresses_are_read_as_the_standard_has_them() {
        let unix = |path: &str| Ok(Endpoint::Unix(path.into()));
        assert_eq!(
            parse("unix:///run/spire/api.sock"),
            unix("/run/spire/api.sock")
        );
        assert_eq!(
            parse("unix:/run/spire/api.sock"),
            unix("/run/spire/api.sock")
        );
        assert_eq!(parse("UNIX:///x"), unix("/x"));
        for tcp in [
            "tcp://127.0.0.1:8000",
            "tcp://[::1]:8000",
            "tcp://10.0.0.1:8000",
        ] {
            assert!(matches!(parse(tcp), Ok(Endpoint::Tcp(_))), "{tcp}");
        }
        for bad in [
            "unix:run/api.sock",
            "unix:api.sock",
            "unix://run/api.sock",
            "unix://localhost/run/api.sock",
            "unix://user@/x",
            "unix://:80/x",
            "unix:///x?a=b",
            "unix:///x#f",
            "unix:",
            "unix://",
            "unix:///",
            "/run/api.sock",
            "",
            "tcp://localhost:8000",
            "tcp://agent.example:8000",
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:",
            "tcp://127.0.0.1:8000/foo",
            "tcp://127.0.0.1:8000/",
            "tcp:127.0.0.1:8000",
            "tcp://u@127.0.0.1:8000",
            "tcp://127.0.0.1:8000?q",
            "tcp://127.0.0.1:8000#f",
            "http://x",
            "file:///x",
            "npipe:x",
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_common_typing_error_is_answered_with_the_right_form() {
        let error = parse("unix://run/api.sock").unwrap_err().to_string();
        assert!(error.contains("write unix:///run/api.sock"), "{error}");
    }
}
