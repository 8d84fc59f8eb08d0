//! The configuration of `vane-server`: TOML with SPIRE's names, a default for every key but
//! the trust domain.
//!
//! Unknown keys are refused. [`Config::check`] finds what types cannot say; nothing else of
//! the server looks at a value that was not checked. What a `type = "…"` may be is the
//! business of the table that it names. No key is secret by itself; those of plugins are
//! printed by their own types.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vane_authority::key_manager;
use vane_authority::log::Mode;
use vane_authority::profile::MAX_ISSUER_BYTES;
use vane_authority::subject::{Subject, SubjectConfig, SubjectError};
use vane_chassis::builtin::{Row, Section};
use vane_chassis::config::{self, ConfigError};
use vane_chassis::files::{group_id, unix_path_check};
use vane_chassis::telemetry;
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::key::KeyType;

use crate::publish;

#[cfg(test)]
mod tests;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The server itself; SPIRE's `server { }`.
    pub server: Server,
    /// Where the registry is kept.
    #[serde(default)]
    pub store: Store,
    /// Where the signing keys are kept: `type = "disk"` (in `data_dir`) or `"memory"`.
    #[serde(default = "default_key_manager")]
    pub key_manager: Section,
    /// How nodes may prove themselves: `type = "x509pop"` and others; join tokens always.
    #[serde(default = "default_node_attestors")]
    pub node_attestor: Vec<Section>,
    /// Where the trust domain's bundle is published: `type = "k8s_configmap"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bundle_publisher: Vec<Section>,
    /// The log of everything issued and changed.
    #[serde(default)]
    pub log: Log,
    /// Which limits hold; SPIRE's `ratelimit { }`.
    #[serde(default)]
    pub ratelimit: RateLimit,
    /// Health and metrics over HTTP.
    #[serde(default)]
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// The trust domain that this server signs for, e.g. `example.org`. Required.
    pub trust_domain: TrustDomain,
    /// The address of the gRPC listener.
    #[serde(default = "default_bind_address")]
    pub bind_address: IpAddr,
    /// Its port; 0 takes a free one, which the ready line tells.
    #[serde(default = "default_bind_port")]
    pub bind_port: u16,
    /// The admin socket; its directory is made 0750 when it is not there (0755 if it is
    /// `/run/vane`, which is the agent's, too).
    #[serde(default = "default_socket_path")]
    pub socket_path: PathBuf,
    /// Whether SPIRE's admin socket, `/tmp/spire-server/private/api.sock`, is served too.
    #[serde(default)]
    pub compat_socket: bool,
    /// The group (name or number) that may use the admin socket; the server's own when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub admin_group: String,
    /// SPIFFE IDs that are administrators without an entry that says so.
    #[serde(default)]
    pub admin_ids: Vec<SpiffeId>,
    /// The directory of store, keys and log; 0700, refused when others can enter it.
    #[serde(default = "default_data_dir")]
    pub data_dir: PathBuf,
    /// How long a CA certificate lives.
    #[serde(default = "default_ca_ttl", with = "humantime_serde")]
    pub ca_ttl: Duration,
    /// The kind of CA keys: `ec-p256`, `ec-p384`, `rsa-2048` or `rsa-4096`.
    #[serde(default)]
    pub ca_key_type: KeyType,
    /// The name of CA certificates: `country`, `organization` (lists) and `common_name`;
    /// `C=US,O=SPIFFE` when nothing is said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub ca_subject: SubjectConfig,
    /// How long an X.509-SVID lives whose entry does not say it.
    #[serde(default = "default_x509_svid_ttl", with = "humantime_serde")]
    pub default_x509_svid_ttl: Duration,
    /// How long a JWT-SVID lives whose entry does not say it.
    #[serde(default = "default_jwt_svid_ttl", with = "humantime_serde")]
    pub default_jwt_svid_ttl: Duration,
    /// Whether there are no JWT-SVIDs: no key signs them and requests are refused.
    #[serde(default)]
    pub disable_jwt_svids: bool,
    /// The kind of the keys that sign JWT-SVIDs; `ca_key_type` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_key_type: Option<KeyType>,
    /// The `iss` of JWT-SVIDs; none when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jwt_issuer: String,
    /// How long an agent's certificate lives; `default_x509_svid_ttl` when absent.
    #[serde(
        default,
        with = "humantime_serde",
        skip_serializing_if = "Option::is_none"
    )]
    pub agent_ttl: Option<Duration>,
    /// Agents that could attest again and whose certificate ended so long ago are deleted; never
    /// when absent. Banned ones stay.
    #[serde(
        default,
        with = "humantime_serde",
        skip_serializing_if = "Option::is_none"
    )]
    pub prune_attested_nodes_expired_for: Option<Duration>,
    /// How old the last confirmed state of the registry may be for attestations, changes and
    /// first SVIDs.
    #[serde(default = "default_max_staleness", with = "humantime_serde")]
    pub max_staleness: Duration,
    /// How old it may be for renewals.
    #[serde(default = "default_max_renewal_staleness", with = "humantime_serde")]
    pub max_renewal_staleness: Duration,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`; also per module, as in
    /// `info,vane_server::api=debug`.
    #[serde(default = "default_log_level")]
    pub log_level: String,
    /// `text` or `json`.
    #[serde(default)]
    pub log_format: telemetry::Format,
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// The engine: `sled` (in `data_dir`) or `memory` (gone with the process).
    #[serde(rename = "type", default)]
    pub engine: Engine,
}

/// Where the registry is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// On disk, in `data_dir`.
    #[default]
    Sled,
    /// In memory: gone with the process.
    Memory,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `required`: nothing is issued or acknowledged that could not be logged;
    /// `best-effort`: it is, with a warning; `off`.
    pub mode: Mode,
}

/// `[ratelimit]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RateLimit {
    /// Limits attestations and other calls without a certificate, per address and per token.
    pub attestation: bool,
    /// Limits signing, per agent.
    pub signing: bool,
}

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Whether `/live`, `/ready` and `/metrics` are served.
    pub enabled: bool,
    /// Where; port 0 takes a free one.
    pub ops_address: SocketAddr,
}

/// What is wrong with a configuration that could be parsed.
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// A duration is out of its range.
    #[error("server.{key} is {value:?} but must be at least {least:?} and at most {most:?}")]
    Duration {
        /// The key.
        key: &'static str,
        /// Its value.
        value: Duration,
        /// The least.
        least: Duration,
        /// The most.
        most: Duration,
    },
    /// A section names a type that is not there, or options that it does not have.
    #[error("{section}: {source}")]
    Section {
        /// The section.
        section: &'static str,
        /// What is wrong.
        source: vane_chassis::builtin::OpenError,
    },
    /// A type is named twice that there can be once.
    #[error("{0}: type \"{1}\" is given twice")]
    Twice(&'static str, String),
    /// The admin socket cannot be bound at this path.
    #[error("server.socket_path: {0}")]
    SocketPath(#[from] vane_chassis::files::FileError),
    /// An administrator's ID names a whole trust domain.
    #[error("server.admin_ids: \"{0}\" has no path")]
    AdminId(SpiffeId),
    /// The CA's name cannot stand in a certificate.
    #[error("server.ca_subject: {0}")]
    CaSubject(#[from] SubjectError),
    /// The issuer would fill a token.
    #[error("server.jwt_issuer has {0} bytes, at most {MAX_ISSUER_BYTES} are allowed")]
    JwtIssuer(usize),
    /// The group is not known here.
    #[error("server.admin_group: there is no group \"{0}\"")]
    Group(String),
}

/// SPIRE's admin socket, for `compat_socket`.
pub const COMPAT_SOCKET: &str = "/tmp/spire-server/private/api.sock";
/// The method that is always there (SPIRE.md trap 14).
pub const JOIN_TOKEN: &str = "join_token";

const LEAST_TTL: Duration = Duration::from_secs(1);
const LEAST_CA_TTL: Duration = Duration::from_secs(10);
const MOST_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Config {
    /// A configuration with the defaults of every key but these two.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, data_dir: PathBuf) -> Self {
        Self {
            server: Server {
                data_dir,
                ..Server::new(trust_domain)
            },
            store: Store::default(),
            key_manager: default_key_manager(),
            node_attestor: default_node_attestors(),
            bundle_publisher: Vec::new(),
            log: Log::default(),
            ratelimit: RateLimit::default(),
            telemetry: Telemetry::default(),
        }
    }

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
        self.server.check()?;
        self.key_manager
            .check(key_manager::BUILTINS)
            .map_err(|source| Invalid::Section {
                section: "key_manager",
                source,
            })?;
        check_each(
            "node_attestor",
            &mut self.node_attestor,
            vane_attest::VERIFIERS,
        )?;
        check_each(
            "bundle_publisher",
            &mut self.bundle_publisher,
            publish::BUILTINS,
        )
    }
}

/// Checks sections of which there is at most one of each type.
fn check_each<T: ?Sized, D>(
    section: &'static str,
    all: &mut [Section],
    rows: &[Row<T, D>],
) -> Result<(), Invalid> {
    let mut seen = HashSet::new();
    for one in all {
        one.check(rows)
            .map_err(|source| Invalid::Section { section, source })?;
        if !seen.insert(one.kind().to_owned()) {
            return Err(Invalid::Twice(section, one.kind().to_owned()));
        }
    }
    Ok(())
}

impl Server {
    /// The defaults of every key but the trust domain.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            bind_address: default_bind_address(),
            bind_port: default_bind_port(),
            socket_path: default_socket_path(),
            compat_socket: false,
            admin_group: String::new(),
            admin_ids: Vec::new(),
            data_dir: default_data_dir(),
            ca_ttl: default_ca_ttl(),
            ca_key_type: KeyType::default(),
            ca_subject: SubjectConfig::default(),
            default_x509_svid_ttl: default_x509_svid_ttl(),
            default_jwt_svid_ttl: default_jwt_svid_ttl(),
            disable_jwt_svids: false,
            jwt_key_type: None,
            jwt_issuer: String::new(),
            agent_ttl: None,
            prune_attested_nodes_expired_for: None,
            max_staleness: default_max_staleness(),
            max_renewal_staleness: default_max_renewal_staleness(),
            log_level: default_log_level(),
            log_format: telemetry::Format::default(),
        }
    }

    /// Where the gRPC listener binds.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind_address, self.bind_port)
    }

    /// How long an agent's certificate lives.
    #[must_use]
    pub fn agent_ttl(&self) -> Duration {
        self.agent_ttl.unwrap_or(self.default_x509_svid_ttl)
    }

    /// The number of `admin_group`; None leaves the process's own.
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
        let within = |key, value: Duration, least, most| {
            if least <= value && value <= most {
                return Ok(());
            }
            Err(Invalid::Duration {
                key,
                value,
                least,
                most,
            })
        };
        within("ca_ttl", self.ca_ttl, LEAST_CA_TTL, MOST_TTL)?;
        for (key, value) in [
            ("default_x509_svid_ttl", self.default_x509_svid_ttl),
            ("default_jwt_svid_ttl", self.default_jwt_svid_ttl),
            ("agent_ttl", self.agent_ttl()),
        ] {
            within(key, value, LEAST_TTL, MOST_TTL)?;
        }
        within("max_staleness", self.max_staleness, LEAST_TTL, MOST_TTL)?;
        within(
            "max_renewal_staleness",
            self.max_renewal_staleness,
            self.max_staleness,
            MOST_TTL,
        )?;
        Subject::ca(&self.ca_subject)?;
        if self.jwt_issuer.len() > MAX_ISSUER_BYTES {
            return Err(Invalid::JwtIssuer(self.jwt_issuer.len()));
        }
        unix_path_check(&self.socket_path)?;
        if let Some(id) = self.admin_ids.iter().find(|id| id.path().is_empty()) {
            return Err(Invalid::AdminId(id.clone()));
        }
        self.admin_gid().map(drop)
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            attestation: true,
            signing: true,
        }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            enabled: true,
            ops_address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9442)),
        }
    }
}

fn default_key_manager() -> Section {
    Section::new("disk", Default::default())
}

fn default_node_attestors() -> Vec<Section> {
    vec![Section::new(JOIN_TOKEN, Default::default())]
}

fn is_default(subject: &SubjectConfig) -> bool {
    *subject == SubjectConfig::default()
}

fn default_bind_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

fn default_bind_port() -> u16 {
    8081
}

fn default_socket_path() -> PathBuf {
    PathBuf::from("/run/vane/server.sock")
}

fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/vane/server")
}

fn default_ca_ttl() -> Duration {
    Duration::from_secs(24 * 3_600)
}

fn default_x509_svid_ttl() -> Duration {
    Duration::from_secs(3_600)
}

fn default_jwt_svid_ttl() -> Duration {
    Duration::from_secs(300)
}

fn default_max_staleness() -> Duration {
    Duration::from_secs(60)
}

fn default_max_renewal_staleness() -> Duration {
    Duration::from_secs(3_600)
}

fn default_log_level() -> String {
    "INFO".to_owned()
}
