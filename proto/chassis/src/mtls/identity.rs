//! The certificate and key with which this process answers and calls.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use vane_identity::key::PrivateKey;
use vane_identity::x509_svid::Certificate;

use super::provider::provider;

/// Why a certificate and key cannot be used together.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no certificate.
    #[error("the certificate chain is empty")]
    Empty,
    /// The key is none that TLS can sign with.
    #[error("the private key cannot be used for TLS: {0}")]
    Key(rustls::Error),
    /// The certificate is for another key.
    #[error("the certificate and the private key do not belong together")]
    Mismatch,
}

/// A certificate chain with its key that can be swapped while in use: the next
/// handshake takes the new one.
#[derive(Default)]
pub struct Identity(ArcSwapOption<CertifiedKey>);

impl Identity {
    /// No certificate yet. A client without one presents none; a server
    /// without one refuses every handshake.
    #[must_use]
    pub fn empty() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A chain, leaf first, with the leaf's key.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn new(chain: &[Certificate], key: &PrivateKey) -> Result<Arc<Self>, IdentityError> {
        let identity = Self::empty();
        identity.swap(chain, key)?;
        Ok(identity)
    }

    /// Uses this chain and key from the next handshake on.
    ///
    /// # Errors
    /// [`IdentityError`]; what was in use before stays.
    pub fn swap(&self, chain: &[Certificate], key: &PrivateKey) -> Result<(), IdentityError> {
        self.0.store(Some(Arc::new(certified(chain, key)?)));
        Ok(())
    }

    /// Uses no certificate from the next handshake on.
    pub fn clear(&self) {
        self.0.store(None);
    }

    /// Whether there is no certificate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.load().is_none()
    }
}

fn certified(chain: &[Certificate], key: &PrivateKey) -> Result<CertifiedKey, IdentityError> {
    if chain.is_empty() {
        return Err(IdentityError::Empty);
    }
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
    let signer = provider()
        .key_provider
        .load_private_key(der)
        .map_err(IdentityError::Key)?;
    let chain = chain
        .iter()
        .map(|one| CertificateDer::from(one.der().to_vec()))
        .collect();
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(_) => Err(IdentityError::Mismatch),
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    fn has_certs(&self) -> bool {
        !self.is_empty()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("empty", &self.is_empty())
            .finish_non_exhaustive()
    }
}
