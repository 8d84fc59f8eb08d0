//! The address of the Workload API, and what it means when nothing comes from there.
//!
//! A flag wins over SPIFFE_ENDPOINT_SOCKET, and that over our agent's default (WEP-13, WEP-14).
//! The variable is read as the standard has it; in a flag a plain absolute path will do.

use std::path::{Path, PathBuf};

use tonic::transport::Channel;
use tonic::{Code, Status};
use vane_client::endpoint::{ENV, Endpoint, EndpointError};
use vane_client::workload::{AddressError, address, connect_error};
use vane_client::{channel, endpoint};

use crate::api;
use crate::failure::{Failure, root_cause};

/// Where `vane-agent` puts the Workload API when nothing is said.
const DEFAULT: &str = "/run/vane/agent.sock";

/// The address that `flag`, else the environment, names.
pub(crate) fn workload_api(flag: &str, explicit: Option<&str>) -> Result<Endpoint, Failure> {
    resolve(flag, explicit, std::env::var(ENV).ok().as_deref())
}

fn resolve(
    flag: &str,
    explicit: Option<&str>,
    environment: Option<&str>,
) -> Result<Endpoint, Failure> {
    let name = if explicit.is_some() { flag } else { ENV };
    let text = explicit.or(environment).unwrap_or_default();
    let plain = explicit.filter(|text| text.starts_with('/'));
    let found = match plain {
        Some(path) => Ok(Endpoint::Unix(PathBuf::from(path))),
        None => address(explicit, environment),
    };
    match found {
        Ok(Endpoint::Unix(path)) => {
            short_enough(name, &path)?;
            Ok(Endpoint::Unix(path))
        }
        Ok(tcp) => Ok(tcp),
        Err(AddressError::Nothing) => Ok(Endpoint::Unix(PathBuf::from(DEFAULT))),
        Err(AddressError::Malformed(error)) => Err(malformed(name, text, &error)),
    }
}

fn short_enough(name: &str, path: &Path) -> Result<(), Failure> {
    vane_chassis::files::unix_path_check(path).map_err(|error| {
        Failure::usage(format!("{name} {path:?}: {error}")).hint("use a shorter path")
    })
}

fn malformed(name: &str, text: &str, error: &EndpointError) -> Failure {
    match error {
        EndpointError::UnixHost { host, path, .. } => {
            Failure::usage(format!("{name} {text:?} has a host in it"))
                .hint(format!("write three slashes: unix:///{host}{path}"))
        }
        error => Failure::usage(format!("{name} {text:?}: {error}"))
            .hint(format!("write an address, for example unix://{DEFAULT}")),
    }
}

/// Connects to the Workload API that `flag` names.
pub(crate) async fn connect(endpoint: &Endpoint, flag: &str) -> Result<Channel, Failure> {
    match endpoint {
        Endpoint::Unix(path) => api::connect("agent", path, flag).await,
        tcp @ Endpoint::Tcp(_) => channel::workload_api(tcp)
            .await
            .map_err(|error| unreachable(tcp, &error, flag)),
    }
}

/// A request with the security header, given up after half a minute.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = vane_client::workload::request(message);
    request.set_timeout(api::DEADLINE);
    request
}

/// What an answer of the Workload API at `endpoint` means, or that there was none.
pub(crate) fn failure_at(endpoint: &Endpoint, status: &Status, flag: &str) -> Failure {
    match connect_error(status) {
        Some(error) => unreachable(endpoint, error, flag),
        None if status.code() == Code::Unavailable => Failure::new(status.message().to_owned())
            .hint("the agent is there but cannot get it now; its log says why"),
        None => Failure::of_status(status),
    }
}

fn unreachable(
    endpoint: &endpoint::Endpoint,
    error: &tonic::transport::Error,
    flag: &str,
) -> Failure {
    match endpoint {
        Endpoint::Unix(path) => Failure::unreachable("agent", path, error, flag),
        Endpoint::Tcp(address) => Failure::new(format!(
            "cannot reach the agent at tcp://{address}: {}",
            root_cause(error)
        ))
        .hint(format!(
            "is the agent running? Name its address with {flag}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &str) -> Result<Endpoint, Failure> {
        Ok(Endpoint::Unix(path.into()))
    }

    /// Proves: WEP-13, WEP-14.
    #[test]
    fn the_flag_wins_over_the_environment_and_that_over_the_default() {
        let env = Some("unix:///env.sock");
        assert_eq!(resolve("--f", Some("unix:///flag"), env), unix("/flag"));
        assert_eq!(resolve("--f", None, env), unix("/env.sock"));
        assert_eq!(resolve("--f", None, None), unix(DEFAULT));
        let tcp = resolve("--f", None, Some("tcp://127.0.0.1:8000"));
        assert!(matches!(tcp, Ok(Endpoint::Tcp(_))));
    }

    #[test]
    fn a_plain_path_will_do_in_the_flag_only() {
        assert_eq!(resolve("--f", Some("/x.sock"), None), unix("/x.sock"));
        let error = resolve("--f", None, Some("/x.sock")).unwrap_err();
        assert!(error.to_string().contains(ENV), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_wrong_address_is_told_with_the_right_one() {
        let error = resolve("--f", Some("unix://run/x.sock"), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error: --f \"unix://run/x.sock\" has a host in it\n  next: write three slashes: unix:///run/x.sock"
        );
        let long = format!("/{}", "x".repeat(200));
        let error = resolve("--f", Some(&long), None).unwrap_err().to_string();
        assert!(error.contains("use a shorter path"), "{error}");
    }

    #[test]
    fn an_answer_is_told_from_a_socket_where_nobody_is() {
        let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 1).into());
        let answer = failure_at(&endpoint, &Status::invalid_argument("no header"), "--f");
        assert!(
            answer.to_string().starts_with("error: no header"),
            "{answer}"
        );
    }
}
