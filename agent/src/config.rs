//! The configuration of `vane-agent`: TOML with SPIRE's names, a default for every key but
//! those that say who and where the server is. Unknown keys are refused.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vane_chassis::builtin::Section;
use vane_chassis::config::{self, ConfigError, Secret};
use vane_chassis::files::{FileError, group_id, unix_path_check};
use vane_chassis::telemetry;
use vane_identity::id::TrustDomain;
use vane_identity::key::KeyType;

use crate::peer::PeerPidfd;
use crate::workload;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The agent itself; SPIRE's `agent { }`.
    pub agent: Agent,
    /// How the node proves itself: `type = "join_token"`, with the token of `[agent]`.
    #[serde(default = "default_node_attestor")]
    pub node_attestor: Section,
    /// How processes are attested; `type = "unix"` when nothing is said.
    #[serde(default = "default_workload_attestors")]
    pub workload_attestor: Vec<Section>,
    /// Health and metrics over HTTP; off when nothing is said.
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// `[agent]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// The trust domain of the server, e.g. `example.org`. Required.
    pub trust_domain: TrustDomain,
    /// The server's host name or address. Required.
    pub server_address: String,
    /// The server's port.
    #[serde(default = "default_server_port")]
    pub server_port: u16,
    /// The public socket: Workload API, health, reflection; everybody may connect.
    #[serde(default = "default_socket_path")]
    pub socket_path: PathBuf,
    /// More names of that socket, as links beside it.
    #[serde(default)]
    pub socket_aliases: Vec<String>,
    /// Also listen where SPIRE's clients look: /tmp/spire-agent/public/api.sock.
    #[serde(default)]
    pub compat_socket: bool,
    /// The admin socket: debugging and take-over; 0600. `agent-admin.sock` beside an
    /// `agent.sock` when nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_socket_path: Option<PathBuf>,
    /// The group (name or number) that may use the admin socket, too, which is then 0660.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub admin_group: String,
    /// Where the agent's own key and SVID are kept; 0700.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// Keep entries, bundles and SVIDs with their keys over a restart, encrypted in `data_dir`:
    /// the agent serves them before it has reached its server.
    #[serde(default = "yes")]
    pub sealed_state: bool,
    /// Where the key of that file lies. On a tmpfs, so that neither an image of the disk nor a
    /// backup has it, and a reboot takes it away.
    #[serde(default = "default_seal_key_dir")]
    pub seal_key_dir: PathBuf,
    /// So long the agent serves without having reached its server, from 20s on; until the SVIDs
    /// end when nothing is said.
    #[serde(
        default,
        with = "humantime_serde",
        skip_serializing_if = "Option::is_none"
    )]
    pub offline_grace: Option<Duration>,
    /// The bundle to trust the server by, when none is kept, or the one that is kept has expired
    /// or does not verify the server. Read anew at each attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_bundle_path: Option<PathBuf>,
    /// The form of that file.
    #[serde(default)]
    pub trust_bundle_format: BundleFormat,
    /// Trust whoever answers first under the server's ID; its fingerprint is logged.
    #[serde(default)]
    pub insecure_bootstrap: bool,
    /// The token for attestation; `${VAR}` is taken from the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token: Option<Secret>,
    /// A file with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join_token_file: Option<PathBuf>,
    /// The kind of keys that workloads get.
    #[serde(default)]
    pub workload_x509_svid_key_type: KeyType,
    /// The most X.509-SVIDs that are fetched before anybody asks.
    #[serde(default = "default_cache_max")]
    pub svid_cache_max: usize,
    /// How often a SPIRE server is asked, which cannot push as ours does.
    #[serde(default = "default_sync_interval", with = "humantime_serde")]
    pub sync_interval: Duration,
    /// The most JWT-SVIDs that are kept to be served again.
    #[serde(default = "default_cache_max")]
    pub jwt_svid_cache_max_size: usize,
    /// Claims of JWT-SVIDs of foreign trust domains that ValidateJWTSVID shows beside `sub`,
    /// `aud` and `exp`.
    #[serde(default)]
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// The longest wait between two tries to reach the server.
    #[serde(default = "default_max_backoff", with = "humantime_serde")]
    pub max_backoff: Duration,
    /// Whether connections are refused when the kernel has no SO_PEERPIDFD (`require`).
    #[serde(default)]
    pub peer_pidfd: PeerPidfd,
    /// What is logged: error, warn, info, debug, trace.
    #[serde(default = "default_log_level")]
    pub log_level: String,
    /// How it is logged: text or json.
    #[serde(default)]
    pub log_format: telemetry::Format,
}

/// `[telemetry]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where `/live`, `/ready` and `/metrics` are served, e.g. `127.0.0.1:9443`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops_address: Option<std::net::SocketAddr>,
}

/// The form of a bundle file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleFormat {
    /// CA certificates as PEM.
    #[default]
    Pem,
    /// A SPIFFE bundle (JWK Set).
    Spiffe,
}

/// SPIRE's public socket, for `compat_socket`.
pub const COMPAT_SOCKET: &str = "/tmp/spire-agent/public/api.sock";
/// The most `socket_aliases`.
const MAX_ALIASES: usize = 16;

/// The shortest `offline_grace`: two heartbeats of the server.
const MIN_GRACE: Duration = Duration::from_secs(20);

/// What is wrong with a configuration that could be parsed.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// The socket cannot be bound at this path.
    #[error("agent.{0}: {1}")]
    SocketPath(&'static str, #[source] FileError),
    /// The socket's path is relative, or no path at all.
    #[error("agent.{0}: {1:?} is not an absolute path, for example /run/vane/agent.sock")]
    NotAPath(&'static str, PathBuf),
    /// One socket cannot be both.
    #[error(
        "agent.socket_path and agent.admin_socket_path are both {0:?}: everybody may use the one, only root the other"
    )]
    SameSocket(PathBuf),
    /// What is no name of a file of its own in the folder of the socket.
    #[error(
        "agent.socket_aliases: {0:?} is not the name of another file in the folder of agent.socket_path (at most {MAX_ALIASES} are possible)"
    )]
    Alias(String),
    /// The group is not known here.
    #[error("agent.admin_group: there is no group \"{0}\"")]
    Group(String),
    /// Two keys say the same thing.
    #[error("agent.{0} and agent.{1} exclude each other: keep one of them")]
    Both(&'static str, &'static str),
    /// The server's address is empty.
    #[error("agent.server_address is empty: name the host of the server")]
    NoServer,
    /// A section names a type that is not there, or options that it does not have.
    #[error("{section}: {source}")]
    Section {
        /// The section.
        section: &'static str,
        /// What is wrong.
        source: vane_chassis::builtin::OpenError,
    },
    /// There is no workload attestor.
    #[error("there is no [[workload_attestor]]: nothing could be told from anything else")]
    NoAttestor,
    /// No token could be kept.
    #[error("agent.jwt_svid_cache_max_size must not be zero")]
    NoJwtCache,
    /// A stream to the server that is opened anew would look like an outage.
    #[error("agent.offline_grace is {}, it must be 20s or more", humantime::format_duration(*.0))]
    ShortGrace(Duration),
    /// A wait is zero.
    #[error("agent.{0} must not be zero")]
    NoWait(&'static str),
}

impl Config {
    /// Reads and parses the file at `path`; [`Config::check`] it before use.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        config::load(path)
    }

    /// Checks what the types do not say, the options of the chosen plugins among it.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&mut self) -> Result<(), Invalid> {
        self.agent.check()?;
        self.agent.admin_socket_path = Some(self.agent.admin_socket());
        let section = |section| move |source| Invalid::Section { section, source };
        self.node_attestor
            .check(vane_attest::PROVERS)
            .map_err(section("node_attestor"))?;
        if self.workload_attestor.is_empty() {
            return Err(Invalid::NoAttestor);
        }
        self.workload_attestor.iter_mut().try_for_each(|one| {
            one.check(workload::BUILTINS)
                .map_err(section("workload_attestor"))
        })
    }
}

impl Agent {
    /// The path of the admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        if let Some(path) = &self.admin_socket_path {
            return path.clone();
        }
        let stem = self.socket_path.file_stem().unwrap_or_default();
        let mut name = stem.to_os_string();
        name.push("-admin.sock");
        self.socket_path.with_file_name(name)
    }

    /// The number of `admin_group`; None when only the agent's own user may.
    ///
    /// # Errors
    /// [`Invalid::Group`].
    pub fn admin_gid(&self) -> Result<Option<u32>, Invalid> {
        if self.admin_group.is_empty() {
            return Ok(None);
        }
        let gid = group_id(&self.admin_group);
        gid.map(Some)
            .ok_or_else(|| Invalid::Group(self.admin_group.clone()))
    }

    fn check(&self) -> Result<(), Invalid> {
        let admin = self.admin_socket();
        for (key, path) in [
            ("socket_path", &self.socket_path),
            ("admin_socket_path", &admin),
        ] {
            unix_path_check(path).map_err(|error| Invalid::SocketPath(key, error))?;
            if !path.is_absolute() {
                return Err(Invalid::NotAPath(key, path.clone()));
            }
        }
        if admin == self.socket_path {
            return Err(Invalid::SameSocket(admin));
        }
        self.check_aliases(&admin)?;
        self.admin_gid()?;
        if self.server_address.trim().is_empty() {
            return Err(Invalid::NoServer);
        }
        if self.insecure_bootstrap && self.trust_bundle_path.is_some() {
            return Err(Invalid::Both("insecure_bootstrap", "trust_bundle_path"));
        }
        if self.join_token.is_some() && self.join_token_file.is_some() {
            return Err(Invalid::Both("join_token", "join_token_file"));
        }
        if self.jwt_svid_cache_max_size == 0 {
            return Err(Invalid::NoJwtCache);
        }
        if self.max_backoff.is_zero() {
            return Err(Invalid::NoWait("max_backoff"));
        }
        if self.sync_interval.is_zero() {
            return Err(Invalid::NoWait("sync_interval"));
        }
        if let Some(grace) = self.offline_grace.filter(|grace| *grace < MIN_GRACE) {
            return Err(Invalid::ShortGrace(grace));
        }
        Ok(())
    }
}

impl Agent {
    fn check_aliases(&self, admin: &Path) -> Result<(), Invalid> {
        let is_name = |alias: &str| {
            let mut parts = Path::new(alias).components();
            let only = (parts.next(), parts.next());
            let beside = self.socket_path.with_file_name(alias);
            matches!(only, (Some(Component::Normal(name)), None) if name == alias)
                && !alias.contains('\0')
                && beside != self.socket_path
                && beside != admin
        };
        let mut aliases = self.socket_aliases.iter().enumerate();
        let wrong = aliases.find(|(at, alias)| *at >= MAX_ALIASES || !is_name(alias));
        match wrong {
            Some((_, alias)) => Err(Invalid::Alias(alias.clone())),
            None => Ok(()),
        }
    }
}

fn default_node_attestor() -> Section {
    Section::new("join_token", toml::Table::new())
}

fn default_workload_attestors() -> Vec<Section> {
    vec![Section::new("unix", toml::Table::new())]
}

fn default_server_port() -> u16 {
    8081
}

fn default_socket_path() -> PathBuf {
    "/run/vane/agent.sock".into()
}

fn default_data_dir() -> PathBuf {
    "/var/lib/vane/agent".into()
}

fn default_seal_key_dir() -> PathBuf {
    "/run/vane".into()
}

fn yes() -> bool {
    true
}

fn default_cache_max() -> usize {
    1_000
}

fn default_max_backoff() -> Duration {
    Duration::from_secs(60)
}

fn default_sync_interval() -> Duration {
    Duration::from_secs(5)
}

fn default_log_level() -> String {
    "info".to_owned()
}

#[cfg(test)]
mod tests;
