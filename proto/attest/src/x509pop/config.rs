//! What is configured on both sides, and the files that it names.

use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ProveError;
use crate::chain::Root;

/// The most bytes of a file.
const MAX_FILE: u64 = 1024 * 1024;

/// Where the agent finds what it proves itself with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProverConfig {
    /// The key of the certificate, PEM; read at each attestation.
    pub private_key_path: PathBuf,
    /// The certificate, PEM, leaf first; intermediates may follow it.
    pub certificate_path: PathBuf,
    /// Further intermediates, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediates_path: Option<PathBuf>,
    /// SPIRE's key for the Workload API of another agent; refused.
    #[serde(default, skip_serializing)]
    pub spiffe_endpoint_socket: Option<Elsewhere>,
}

/// Something that is done in another way: every value is refused with the text that says how.
#[derive(Debug, Clone, Serialize)]
pub enum Elsewhere {}

impl<'de> Deserialize<'de> for Elsewhere {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(
            "spiffe_endpoint_socket is not served: let `vane svid watch --write DIR` keep the SVID in files, and name DIR/svid.key as private_key_path and DIR/svid.pem as certificate_path",
        ))
    }
}

/// Which nodes the server takes, and what it calls them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerifierConfig {
    /// `external_pki`: CAs of files; `spiffe`: the trust domain's own.
    pub mode: Mode,
    /// What the path of an SVID begins with in mode `spiffe`; the rest names the agent.
    #[serde(alias = "svid_prefix")]
    pub spiffe_prefix: String,
    /// A file with CA certificates, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle_path: Option<PathBuf>,
    /// Several such files.
    pub ca_bundle_paths: Vec<PathBuf>,
    /// The agent's path below /spire/agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_path_template: Option<String>,
    /// The most certificates between leaf and CA.
    pub max_intermediates: usize,
    /// The most bits of an RSA key in the chain.
    pub max_rsa_key_size: usize,
    /// Whether the address that the node calls from must stand in its certificate.
    pub verify_client_ip: bool,
}

/// Whose certificates are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Those of CAs in files.
    #[default]
    ExternalPki,
    /// Those of the trust domain itself.
    Spiffe,
}

impl Default for VerifierConfig {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            spiffe_prefix: "/spire-exchange/".to_owned(),
            ca_bundle_path: None,
            ca_bundle_paths: Vec::new(),
            agent_path_template: None,
            max_intermediates: 4,
            max_rsa_key_size: 8_192,
            verify_client_ip: false,
        }
    }
}

/// What is wrong with the configuration of the server's half.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("x509pop: only one of ca_bundle_path and ca_bundle_paths can be set")]
    BothPaths,
    #[error("x509pop: one of ca_bundle_path and ca_bundle_paths must be set, or mode = \"spiffe\"")]
    NoPath,
    #[error("x509pop: ca_bundle_path and ca_bundle_paths cannot be set with mode = \"spiffe\"")]
    PathInSpiffe,
    #[error("x509pop: {0} must be greater than 0")]
    Zero(&'static str),
    #[error("x509pop: spiffe_prefix \"{0}\" must begin with a slash")]
    Prefix(String),
    #[error("x509pop: agent_path_template must begin with a slash")]
    TemplateSlash,
    #[error("x509pop: agent_path_template: {0}")]
    Template(#[from] crate::template::TemplateError),
    #[error("x509pop: {path}: {source}")]
    File { path: PathBuf, source: ProveError },
    #[error("x509pop: {0} has a certificate that cannot be read")]
    Certificate(PathBuf),
    #[error("x509pop: {0} has no certificate")]
    NoCertificate(PathBuf),
}

/// The CAs that the files of `config` name.
pub(super) fn roots(config: &VerifierConfig) -> Result<Vec<Root>, ConfigError> {
    let mut paths = config.ca_bundle_paths.clone();
    match (&config.ca_bundle_path, config.mode) {
        (Some(_), Mode::ExternalPki) if !paths.is_empty() => return Err(ConfigError::BothPaths),
        (Some(path), Mode::ExternalPki) => paths.push(path.clone()),
        (None, Mode::ExternalPki) if paths.is_empty() => return Err(ConfigError::NoPath),
        (None, Mode::ExternalPki) => {}
        (None, Mode::Spiffe) if paths.is_empty() => return Ok(Vec::new()),
        (_, Mode::Spiffe) => return Err(ConfigError::PathInSpiffe),
    }
    let mut roots = Vec::new();
    for path in paths {
        let unread = |source| ConfigError::File {
            path: path.clone(),
            source,
        };
        let ders = certificates(&path).map_err(unread)?;
        if ders.is_empty() {
            return Err(ConfigError::NoCertificate(path));
        }
        for der in ders {
            let root = Root::new(&der).map_err(|_| ConfigError::Certificate(path.clone()))?;
            roots.push(root);
        }
    }
    Ok(roots)
}

/// The certificates of a PEM file.
pub(super) fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, ProveError> {
    let text = read(path)?;
    let malformed = |_| ProveError::Pem {
        path: path.to_owned(),
    };
    CertificateDer::pem_slice_iter(&text)
        .map(|der| der.map(|der| der.to_vec()).map_err(malformed))
        .collect()
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, ProveError> {
    use std::io::Read as _;
    let unread = |source| ProveError::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unread)?;
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(unread)?;
    Ok(bytes)
}
