//! What the server is trusted by before the first push.
//!
//! A bundle that was kept from before comes first; then the configured file. Without either,
//! `insecure_bootstrap` trusts whoever answers first under the server's ID, and its
//! fingerprint is logged.

use std::path::{Path, PathBuf};

use vane_identity::bundle::{Bundle, X509Authority};
use vane_identity::id::TrustDomain;
use vane_identity::jwks::{JwksError, MAX_BUNDLE_BYTES};

use crate::config::{Agent, BundleFormat};
use crate::pem;

/// How the server is trusted.
#[derive(Debug)]
pub enum Trust {
    /// By these authorities.
    Bundle(Bundle),
    /// By the first answer.
    FirstUse,
}

/// Why the server cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Nothing is configured.
    #[error(
        "there is nothing to trust the server by: set agent.trust_bundle_path (`vane bundle show` on the server prints the file), or agent.insecure_bootstrap"
    )]
    Nothing,
    /// The file cannot be read.
    #[error("cannot read agent.trust_bundle_path {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("agent.trust_bundle_path {0} is larger than {MAX_BUNDLE_BYTES} bytes")]
    TooLarge(PathBuf),
    /// The file is broken.
    #[error("agent.trust_bundle_path {path} is no PEM file: {why}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The file is no SPIFFE bundle.
    #[error("agent.trust_bundle_path {path}")]
    Jwks {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: JwksError,
    },
    /// The file has no CA certificate.
    #[error("agent.trust_bundle_path {0} has no CA certificate")]
    Empty(PathBuf),
}

/// What to trust the server by.
///
/// # Errors
/// [`BootstrapError`].
pub fn trust(config: &Agent, kept: Option<Bundle>) -> Result<Trust, BootstrapError> {
    if let Some(bundle) = kept.filter(|bundle| !bundle.x509_authorities.is_empty()) {
        return Ok(Trust::Bundle(bundle));
    }
    match &config.trust_bundle_path {
        Some(path) => {
            read(path, config.trust_bundle_format, &config.trust_domain).map(Trust::Bundle)
        }
        None if config.insecure_bootstrap => Ok(Trust::FirstUse),
        None => Err(BootstrapError::Nothing),
    }
}

fn read(path: &Path, format: BundleFormat, own: &TrustDomain) -> Result<Bundle, BootstrapError> {
    let bytes = std::fs::read(path).map_err(|source| BootstrapError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() > MAX_BUNDLE_BYTES {
        return Err(BootstrapError::TooLarge(path.to_owned()));
    }
    let bundle = match format {
        BundleFormat::Spiffe => {
            Bundle::from_jwks(own.clone(), &bytes).map_err(|source| BootstrapError::Jwks {
                path: path.to_owned(),
                source,
            })?
        }
        BundleFormat::Pem => from_pem(path, &bytes, own)?,
    };
    if bundle.anchors().is_empty() {
        return Err(BootstrapError::Empty(path.to_owned()));
    }
    Ok(bundle)
}

fn from_pem(path: &Path, bytes: &[u8], own: &TrustDomain) -> Result<Bundle, BootstrapError> {
    let broken = |why: String| BootstrapError::Pem {
        path: path.to_owned(),
        why,
    };
    let text = std::str::from_utf8(bytes).map_err(|error| broken(error.to_string()))?;
    let certificates = pem::certificates(text).map_err(|error| broken(error.to_string()))?;
    let mut bundle = Bundle::empty(own.clone());
    bundle.x509_authorities = certificates.into_iter().map(X509Authority::new).collect();
    Ok(bundle)
}
