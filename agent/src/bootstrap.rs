//! What the server is trusted by before the first push.
//!
//! A bundle that was kept from before comes first, unless all of it has expired or the server
//! does not verify against it: then the configured file counts, which is read anew each time (in
//! Kubernetes a ConfigMap that the server writes). So a node that was off for long comes back.
//! Without either, `insecure_bootstrap` trusts whoever answers first under the server's ID, and
//! its fingerprint is logged; it never replaces a bundle that was kept.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
        source: io::Error,
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

impl BootstrapError {
    /// Whether the file may come yet: a ConfigMap is mounted before the server has written it.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Empty(_) => true,
            Self::Nothing | Self::TooLarge(_) | Self::Pem { .. } | Self::Jwks { .. } => false,
        }
    }
}

/// What to trust the server by at `now`; `is_doubted` when it did not verify against the kept
/// bundle, which is believed beside the file then: another server may have answered.
///
/// # Errors
/// [`BootstrapError`].
pub fn trust(
    config: &Agent,
    kept: Option<Bundle>,
    is_doubted: bool,
    now: SystemTime,
) -> Result<Trust, BootstrapError> {
    let kept = kept.filter(|bundle| !bundle.x509_authorities.is_empty());
    let holds = kept.as_ref().is_some_and(|kept| !has_expired(kept, now));
    let Some(path) = &config.trust_bundle_path else {
        return match kept {
            Some(kept) => Ok(Trust::Bundle(kept)),
            None if config.insecure_bootstrap => Ok(Trust::FirstUse),
            None => Err(BootstrapError::Nothing),
        };
    };
    let file = || read(path, config.trust_bundle_format, &config.trust_domain);
    let bundle = match kept {
        None => file()?,
        Some(kept) if holds && !is_doubted => kept,
        Some(kept) => match file() {
            Ok(file) if holds => both(file, kept),
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "only the bundle that was kept can be believed");
                kept
            }
        },
    };
    Ok(Trust::Bundle(bundle))
}

/// Whether no authority of `bundle` is valid any more.
fn has_expired(bundle: &Bundle, now: SystemTime) -> bool {
    let mut all = bundle.x509_authorities.iter();
    all.all(|one| match one.certificate.info() {
        Ok(info) => info.validity.not_after < now,
        Err(_) => true,
    })
}

/// The authorities of `first`, then those that only `second` has.
fn both(mut first: Bundle, second: Bundle) -> Bundle {
    for one in second.x509_authorities {
        if !first.x509_authorities.contains(&one) {
            first.x509_authorities.push(one);
        }
    }
    first
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    use tempfile::TempDir;
    use vane_identity::x509_svid::Certificate;

    use super::*;

    /// A CA that is valid until `end`, seconds since the epoch.
    fn ca(end: u64) -> X509Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = at(0).into();
        params.not_after = at(end).into();
        let key = KeyPair::generate().unwrap();
        X509Authority::new(Certificate::from_der(
            params.self_signed(&key).unwrap().der(),
        ))
    }

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn bundle(of: &[&X509Authority]) -> Bundle {
        let mut bundle = Bundle::empty(TrustDomain::parse("example.org").unwrap());
        bundle.x509_authorities = of.iter().map(|one| (*one).clone()).collect();
        bundle
    }

    struct Mounted {
        dir: TempDir,
        config: Agent,
    }

    impl Mounted {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("bundle.crt");
            let text = format!(
                "trust_domain = \"example.org\"\nserver_address = \"s\"\ntrust_bundle_path = {path:?}"
            );
            let config = toml::from_str(&text).unwrap();
            Self { dir, config }
        }

        fn write(&self, bundle: &Bundle) {
            std::fs::write(self.dir.path().join("bundle.crt"), bundle.to_pem()).unwrap();
        }

        fn trusted(&self, kept: Option<Bundle>, is_doubted: bool) -> Vec<X509Authority> {
            match trust(&self.config, kept, is_doubted, at(1_000)).unwrap() {
                Trust::Bundle(bundle) => bundle.x509_authorities,
                Trust::FirstUse => panic!("nobody said so"),
            }
        }
    }

    #[test]
    fn the_kept_bundle_counts_until_it_is_over_or_doubted() {
        let mounted = Mounted::new();
        let (old, kept, new) = (ca(999), ca(2_000), ca(3_000));
        mounted.write(&bundle(&[&new]));
        type Of<'a> = &'a [&'a X509Authority];
        let table: [(Option<Of<'_>>, bool, Of<'_>); 6] = [
            (None, false, &[&new]),
            (Some(&[&kept]), false, &[&kept]),
            (Some(&[&old, &kept]), false, &[&old, &kept]),
            (Some(&[&old]), false, &[&new]),
            // Who answered may have been another server: the kept one is still believed.
            (Some(&[&kept]), true, &[&new, &kept]),
            (Some(&[&new]), true, &[&new]),
        ];
        for (case, (kept, is_doubted, want)) in table.into_iter().enumerate() {
            let trusted = mounted.trusted(kept.map(bundle), is_doubted);
            assert!(trusted.iter().eq(want.iter().copied()), "case {case}");
        }
    }

    #[test]
    fn the_file_is_read_anew_and_may_come_later() {
        let mounted = Mounted::new();
        let missing = trust(&mounted.config, None, false, at(1_000)).unwrap_err();
        assert!(missing.is_passing(), "{missing}");
        mounted.write(&bundle(&[]));
        let empty = trust(&mounted.config, None, false, at(1_000)).unwrap_err();
        assert!(empty.is_passing(), "{empty}");
        for authority in [ca(2_000), ca(2_000)] {
            mounted.write(&bundle(&[&authority]));
            assert_eq!(mounted.trusted(None, false), [authority]);
        }
        let broken = "-----BEGIN CERTIFICATE-----\nx";
        std::fs::write(mounted.dir.path().join("bundle.crt"), broken).unwrap();
        let error = trust(&mounted.config, None, false, at(1_000)).unwrap_err();
        assert!(!error.is_passing(), "{error}");
    }

    #[test]
    fn an_unreadable_file_takes_nothing_from_what_was_kept() {
        let mounted = Mounted::new();
        let (old, kept) = (ca(999), ca(2_000));
        assert_eq!(mounted.trusted(Some(bundle(&[&kept])), true), [kept]);
        assert_eq!(mounted.trusted(Some(bundle(&[&old])), false), [old]);
    }

    #[test]
    fn first_use_never_replaces_a_bundle_that_was_kept() {
        let mut mounted = Mounted::new();
        mounted.config.trust_bundle_path = None;
        mounted.config.insecure_bootstrap = true;
        let old = ca(999);
        assert_eq!(mounted.trusted(Some(bundle(&[&old])), true), [old]);
        let fresh = trust(&mounted.config, None, true, at(1_000)).unwrap();
        assert!(matches!(fresh, Trust::FirstUse));
    }
}
