//! TLS towards Kubernetes: its PKI has names, CAs of its own and, on old nodes, TLS 1.2.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::verify_tls12_signature;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::access::{Access, Credentials, Name, Pem, Trust};
use super::error::AccessError;
use crate::mtls::{check_signature, provider, schemes};

/// The configuration of TLS that was made last, and of what.
#[derive(Debug, Default)]
pub(super) struct Cached(Mutex<Option<Made>>);

#[derive(Clone, Debug)]
struct Made {
    of: [u8; 32],
    config: Arc<ClientConfig>,
}

impl Cached {
    /// The configuration for `access` with the files of this moment: the same one as long as
    /// they are the same.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub(super) fn of(&self, access: &Access) -> Result<Arc<ClientConfig>, AccessError> {
        let material = Material::read(access)?;
        let of = material.digest();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = last.as_ref().filter(|made| made.of == of) {
            return Ok(Arc::clone(&made.config));
        }
        let config = Arc::new(material.config(access)?);
        *last = Some(Made {
            of,
            config: Arc::clone(&config),
        });
        Ok(config)
    }
}

type Bytes = zeroize::Zeroizing<Vec<u8>>;

/// What the files say now.
struct Material {
    roots: Option<Bytes>,
    certificate: Option<(Bytes, Bytes)>,
}

impl Material {
    fn read(access: &Access) -> Result<Self, AccessError> {
        let roots = match &access.trust {
            Trust::Roots(pem) => Some(pem.read()?),
            Trust::Nothing => None,
        };
        let certificate = match &access.credentials.certificate {
            Some((chain, key)) => Some((chain.read()?, key.read()?)),
            None => None,
        };
        Ok(Self { roots, certificate })
    }

    fn digest(&self) -> [u8; 32] {
        let (chain, key) = self
            .certificate
            .as_ref()
            .map_or((None, None), |(chain, key)| (Some(chain), Some(key)));
        let mut context = Context::new(&SHA256);
        for part in [self.roots.as_ref(), chain, key] {
            let bytes = part.map_or(&[][..], |part| part.as_slice());
            context.update(&bytes.len().to_be_bytes());
            context.update(bytes);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    fn config(self, access: &Access) -> Result<ClientConfig, AccessError> {
        let verifier = verifier(access, self.roots.as_ref().map(|pem| pem.as_slice()))?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(AccessError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match self.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let source_name = named(&access.credentials);
                let chain = certificates(&chain, &source_name)?;
                let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| AccessError::Pem {
                    source_name: source_name.clone(),
                    wanted: "private key",
                })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|source| AccessError::Certificate {
                        source_name,
                        source,
                    })?
            }
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn named(credentials: &Credentials) -> String {
    let chain = credentials.certificate.as_ref().map(|(chain, _)| chain);
    chain.map(Pem::to_string).unwrap_or_default()
}

fn certificates(
    pem: &[u8],
    source_name: &str,
) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let bad = || AccessError::Pem {
        source_name: source_name.to_owned(),
        wanted: "certificate",
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.ok().filter(|all| !all.is_empty()).ok_or_else(bad)
}

fn verifier(
    access: &Access,
    roots: Option<&[u8]>,
) -> Result<Arc<dyn ServerCertVerifier>, AccessError> {
    let (Trust::Roots(source), Some(pem)) = (&access.trust, roots) else {
        return Ok(Arc::new(Chain { roots: None }));
    };
    let bad = || AccessError::Pem {
        source_name: source.to_string(),
        wanted: "CA certificate",
    };
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(certificates(pem, &source.to_string())?);
    if added == 0 {
        return Err(bad());
    }
    let store = Arc::new(store);
    if access.name == Name::Any {
        return Ok(Arc::new(Chain { roots: Some(store) }));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(store, Arc::clone(provider()));
    Ok(verifier.build().map_err(|_| bad())?)
}

/// The name that is asked for and compared.
///
/// # Errors
/// It is none.
pub(super) fn server_name(access: &Access) -> Result<ServerName<'static>, AccessError> {
    let name = match &access.name {
        Name::Other(name) => name,
        Name::OfEndpoint | Name::Any => &access.endpoint.host,
    };
    ServerName::try_from(name.clone()).map_err(|_| AccessError::Name(name.clone()))
}

/// Verifies the chain but no name; without roots, nothing but that the server has its key.
#[derive(Debug)]
struct Chain {
    roots: Option<Arc<RootCertStore>>,
}

impl ServerCertVerifier for Chain {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let leaf = ParsedCertificate::try_from(leaf)?;
            let algorithms = provider().signature_verification_algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
