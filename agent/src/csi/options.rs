//! The flags of `vane-agent csi`. They are spiffe-csi's where it has the same thing, with its
//! defaults, and node-driver-registrar's for the registration, which is done here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vane_chassis::files::{FileError, unix_path_check};
use vane_chassis::telemetry::Format;

/// The longest name of a driver (CSI GetPluginInfo).
const MAX_NAME: usize = 63;
/// The longest ID of a node, in bytes (CSI NodeGetInfo: 256 from 1.8 on).
const MAX_NODE_ID: usize = 256;

/// As they are given.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The folder with the agent's public socket, which pods get. Mounted read-only into this
    /// container; nothing but sockets that everybody may use lies in it.
    #[arg(long, value_name = "DIR")]
    workload_api_socket_dir: PathBuf,
    /// The name of the node; taken from the environment when not given.
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
    /// The variable that has the name of the node.
    #[arg(long, value_name = "VARIABLE", default_value = "MY_NODE_NAME")]
    node_id_env: String,
    /// The driver's name, as volumes of pods have it.
    #[arg(long, value_name = "NAME", default_value = "csi.spiffe.io")]
    plugin_name: String,
    /// The socket that the kubelet asks, as this container sees it.
    #[arg(long, value_name = "PATH", default_value = "/spiffe-csi/csi.sock")]
    csi_socket_path: PathBuf,
    /// The kubelet's folder, under the same path here and on the host.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    kubelet_dir: PathBuf,
    /// The same socket as the kubelet sees it [default: plugins/NAME/csi.sock of its folder].
    #[arg(long, value_name = "PATH")]
    kubelet_registration_path: Option<PathBuf>,
    /// The kubelet's folder plugins_registry, as this container sees it.
    #[arg(long, value_name = "DIR", default_value = "/registration")]
    plugin_registration_path: PathBuf,
    /// Leave the registration to somebody else, such as node-driver-registrar.
    #[arg(long)]
    no_registration: bool,
    /// What is logged: error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub(crate) log_level: String,
    /// Log one JSON object a line.
    #[arg(long)]
    log_json: bool,
}

/// What is wrong with the flags.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Invalid {
    /// Not a name that CSI allows.
    #[error(
        "--plugin-name \"{0}\": it must be a domain name of at most {MAX_NAME} characters, such as csi.spiffe.io"
    )]
    Name(String),
    /// The node is not named.
    #[error(
        "the node has no name: give --node-id, or set {0} (fieldRef: spec.nodeName in the container's env)"
    )]
    NoNode(String),
    /// The node's name is too long.
    #[error("the node's name has {0} bytes, at most {MAX_NODE_ID} are possible")]
    LongNode(usize),
    /// A path is relative or has `..` in it.
    #[error("--{0} {1:?}: it must be an absolute path without \"..\"")]
    Path(&'static str, PathBuf),
    /// No socket can be bound there.
    #[error("--{0}: {1}")]
    Socket(&'static str, #[source] FileError),
}

/// How the kubelet is told of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    /// The socket at which it asks.
    pub(crate) socket: PathBuf,
    /// What it is told: the path of the driver's socket.
    pub(crate) endpoint: String,
}

/// The flags, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The driver's name.
    pub(crate) name: String,
    /// The node's name.
    pub(crate) node_id: String,
    /// What pods get.
    pub(crate) folder: PathBuf,
    /// The kubelet's folder of pods.
    pub(crate) pods: PathBuf,
    /// The driver's socket.
    pub(crate) socket: PathBuf,
    /// None when somebody else registers.
    pub(crate) registration: Option<Registration>,
}

impl Options {
    /// How the log looks.
    pub(crate) fn log_format(&self) -> Format {
        if self.log_json {
            Format::Json
        } else {
            Format::Text
        }
    }

    /// Checks the flags; `env` reads a variable of the environment.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(crate) fn check(self, env: impl Fn(&str) -> Option<OsString>) -> Result<Settings, Invalid> {
        if !is_name(&self.plugin_name) {
            return Err(Invalid::Name(self.plugin_name));
        }
        let from_env = || env(&self.node_id_env)?.into_string().ok();
        let node_id = self.node_id.clone().or_else(from_env);
        let node_id = node_id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| Invalid::NoNode(self.node_id_env.clone()))?;
        if node_id.len() > MAX_NODE_ID {
            return Err(Invalid::LongNode(node_id.len()));
        }
        is_plain("workload-api-socket-dir", &self.workload_api_socket_dir)?;
        is_plain("kubelet-dir", &self.kubelet_dir)?;
        is_socket("csi-socket-path", &self.csi_socket_path)?;
        Ok(Settings {
            registration: self.registration()?,
            name: self.plugin_name,
            node_id,
            folder: self.workload_api_socket_dir,
            pods: self.kubelet_dir.join("pods"),
            socket: self.csi_socket_path,
        })
    }

    fn registration(&self) -> Result<Option<Registration>, Invalid> {
        if self.no_registration {
            return Ok(None);
        }
        let name = &self.plugin_name;
        let socket = self
            .plugin_registration_path
            .join(format!("{name}-reg.sock"));
        is_socket("plugin-registration-path", &socket)?;
        let endpoint = self.kubelet_registration_path.clone();
        let endpoint = endpoint.unwrap_or_else(|| {
            let plugins = self.kubelet_dir.join("plugins");
            plugins.join(name).join("csi.sock")
        });
        is_socket("kubelet-registration-path", &endpoint)?;
        let endpoint = endpoint.to_str().map(str::to_owned);
        let endpoint = endpoint
            .ok_or_else(|| Invalid::Path("kubelet-registration-path", self.kubelet_dir.clone()))?;
        Ok(Some(Registration { socket, endpoint }))
    }
}

/// CSI's rule: alphanumerics at both ends; dashes, dots and alphanumerics between. The name
/// becomes part of a path, too.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'.';
    bytes.len() <= MAX_NAME
        && bytes.iter().all(inner)
        && ends
            .iter()
            .all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
}

fn is_plain(flag: &'static str, path: &Path) -> Result<(), Invalid> {
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || climbs {
        return Err(Invalid::Path(flag, path.to_owned()));
    }
    Ok(())
}

fn is_socket(flag: &'static str, path: &Path) -> Result<(), Invalid> {
    is_plain(flag, path)?;
    unix_path_check(path).map_err(|error| Invalid::Socket(flag, error))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn settings(flags: &[&str]) -> Result<Settings, Invalid> {
        let line = ["csi", "--workload-api-socket-dir", "/sockets"];
        let line = Line::try_parse_from(line.iter().chain(flags)).unwrap();
        let env = |name: &str| (name == "MY_NODE_NAME").then(|| OsString::from("node-1"));
        line.options.check(env)
    }

    fn refusal(flags: &[&str]) -> String {
        settings(flags).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_spiffe_csis_and_the_registrars() {
        let expected = Settings {
            name: "csi.spiffe.io".to_owned(),
            node_id: "node-1".to_owned(),
            folder: "/sockets".into(),
            pods: "/var/lib/kubelet/pods".into(),
            socket: "/spiffe-csi/csi.sock".into(),
            registration: Some(Registration {
                socket: "/registration/csi.spiffe.io-reg.sock".into(),
                endpoint: "/var/lib/kubelet/plugins/csi.spiffe.io/csi.sock".to_owned(),
            }),
        };
        assert_eq!(settings(&[]).unwrap(), expected);
    }

    #[test]
    fn another_kubelet_folder_and_name_change_what_follows_from_them() {
        let flags = ["--kubelet-dir", "/k", "--plugin-name", "csi.example.org"];
        let changed = settings(&flags).unwrap();
        assert_eq!(changed.pods, Path::new("/k/pods"));
        let registration = changed.registration.unwrap();
        assert_eq!(registration.endpoint, "/k/plugins/csi.example.org/csi.sock");
        assert_eq!(
            registration.socket,
            Path::new("/registration/csi.example.org-reg.sock")
        );
    }

    #[test]
    fn registration_can_be_left_to_a_sidecar() {
        assert_eq!(settings(&["--no-registration"]).unwrap().registration, None);
    }

    #[test]
    fn the_flag_goes_before_the_environment_and_a_node_without_a_name_is_refused() {
        let named = settings(&["--node-id", "other"]).unwrap();
        assert_eq!(named.node_id, "other");
        let unnamed = refusal(&["--node-id-env", "NOBODY"]);
        assert!(unnamed.contains("NOBODY"), "{unnamed}");
        assert!(unnamed.contains("spec.nodeName"), "{unnamed}");
        assert!(refusal(&["--node-id", ""]).contains("no name"));
        assert!(refusal(&["--node-id", &"n".repeat(257)]).contains("257"));
    }

    #[test]
    fn a_name_that_is_no_domain_name_is_refused() {
        let long = "a".repeat(64);
        for name in ["", ".a", "a-", "a/b", "../a", "a b", "ä", long.as_str()] {
            let error = settings(&[&format!("--plugin-name={name}")]).unwrap_err();
            assert!(matches!(error, Invalid::Name(_)), "{name}");
        }
        for name in ["a", "csi.spiffe.io", "CSI-1.example", &"a".repeat(63)] {
            settings(&["--plugin-name", name]).unwrap();
        }
    }

    #[test]
    fn paths_are_absolute_and_do_not_climb() {
        for flags in [
            ["--kubelet-dir", "kubelet"],
            ["--kubelet-dir", "/var/../etc"],
            ["--csi-socket-path", "csi.sock"],
            ["--plugin-registration-path", "x"],
            ["--kubelet-registration-path", "x"],
        ] {
            let error = refusal(&flags);
            assert!(error.contains("absolute"), "{flags:?}: {error}");
        }
        let long = format!("/{}", "s".repeat(107));
        assert!(refusal(&["--csi-socket-path", &long]).contains("108"));
    }
}
