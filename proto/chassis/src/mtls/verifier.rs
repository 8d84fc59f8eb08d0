//! The rule by which a peer's certificate is accepted: it is an X.509-SVID,
//! it chains to the bundle of its own trust domain at this time, and the
//! caller wants to talk to its SPIFFE ID.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    SignatureScheme,
};
use vane_identity::id::{SpiffeId, TrustDomain};
use vane_identity::x509_svid::{Certificate, Role, VerifiedX509Svid, X509Error, X509Svid};

use super::provider::provider;
use super::roots::Roots;

/// Says whether to talk to a verified SPIFFE ID.
pub type Authorizer = Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// Everybody who verifies: the caller decides later, per request.
#[must_use]
pub fn anyone() -> Authorizer {
    Arc::new(|_| true)
}

/// This one only.
#[must_use]
pub fn only(id: SpiffeId) -> Authorizer {
    Arc::new(move |peer| *peer == id)
}

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no X.509-SVID, or does not verify against its bundle.
    #[error("the peer's certificate is refused: {0}")]
    Svid(#[from] X509Error),
    /// Nothing is known about its trust domain.
    #[error("there is no bundle for the peer's trust domain {0}")]
    NoBundle(TrustDomain),
    /// It is verified, and not whom we want to talk to.
    #[error("the peer is {0}, which is not authorized here")]
    NotAuthorized(SpiffeId),
}

impl Refusal {
    /// The refusal at the bottom of an error of [`connect`](super::connect), or
    /// of a transport above it, when it was we who refused the server.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            // An I/O error's source is the source of what it carries.
            let carried = error
                .downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref);
            let tls = carried.and_then(|carried| carried.downcast_ref());
            if let Some(found) = tls.or(error.downcast_ref()).and_then(Self::inside) {
                return Some(found);
            }
            next = error.source();
        }
        None
    }

    /// Whether another bundle might accept the same certificate.
    #[must_use]
    pub fn is_of_another_bundle(&self) -> bool {
        use webpki::Error as Path;
        match self {
            Self::NoBundle(_) => true,
            Self::Svid(X509Error::Path(path)) => matches!(
                path,
                Path::UnknownIssuer | Path::InvalidSignatureForPublicKey
            ),
            Self::Svid(_) | Self::NotAuthorized(_) => false,
        }
    }

    fn inside(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
            _ => None,
        }
    }

    /// As an error of the TLS stack, whose alert tells a *client* the kind of
    /// its mistake.
    fn with_alert(self) -> CertificateError {
        use webpki::Error as Path;
        match self {
            Self::Svid(X509Error::Path(Path::CertExpired { .. })) => CertificateError::Expired,
            Self::Svid(X509Error::Path(Path::CertNotValidYet { .. })) => {
                CertificateError::NotValidYet
            }
            Self::Svid(X509Error::Path(
                Path::UnknownIssuer | Path::InvalidSignatureForPublicKey,
            ))
            | Self::NoBundle(_) => CertificateError::UnknownIssuer,
            Self::NotAuthorized(_) => CertificateError::ApplicationVerificationFailure,
            other @ Self::Svid(_) => other.with_text(),
        }
    }

    /// As an error of the TLS stack that keeps the whole text for our side.
    fn with_text(self) -> CertificateError {
        CertificateError::Other(OtherError(Arc::new(self)))
    }
}

/// Verifies peers in either direction.
pub(super) struct SpiffeVerifier {
    roots: Arc<Roots>,
    authorizer: Authorizer,
}

impl SpiffeVerifier {
    pub(super) fn new(roots: Arc<Roots>, authorizer: Authorizer) -> Self {
        Self { roots, authorizer }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<VerifiedX509Svid, Refusal> {
        let svid = parse(leaf, intermediates)?;
        let trust_domain = svid.id().trust_domain();
        let bundle = self
            .roots
            .find(&trust_domain)
            .ok_or(Refusal::NoBundle(trust_domain))?;
        let verified = bundle.verify(svid, role, system_time(now))?;
        let id = verified.svid().id();
        if !(self.authorizer)(id) {
            return Err(Refusal::NotAuthorized(id.clone()));
        }
        Ok(verified)
    }
}

/// Reads the chain that a peer presented.
pub(super) fn parse(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<X509Svid, X509Error> {
    let chain = std::iter::once(leaf)
        .chain(intermediates)
        .map(|der| Certificate::from_der(der))
        .collect();
    X509Svid::parse(chain)
}

fn system_time(now: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

impl fmt::Debug for SpiffeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpiffeVerifier")
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for SpiffeVerifier {
    /// A client may come without a certificate: AttestAgent must pass.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.verify(leaf, intermediates, Role::Client, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => {
                tracing::debug!(error = %refusal, "client certificate refused");
                Err(refusal.with_alert().into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
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

impl ServerCertVerifier for SpiffeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Role::Server, now)
            .map(|_| ServerCertVerified::assertion())
            .map_err(|refusal| refusal.with_text().into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
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

/// The peer holds the key of the leaf: it signed this handshake.
pub(crate) fn check_signature(
    message: &[u8],
    leaf: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = &provider().signature_verification_algorithms;
    verify_tls13_signature(message, leaf, signature, algorithms)
}

/// The signatures that are verified.
pub(crate) fn schemes() -> Vec<SignatureScheme> {
    provider()
        .signature_verification_algorithms
        .supported_schemes()
}

/// TLS 1.2 is not offered between our own parts.
pub(super) fn no_tls12() -> Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refusal.with_text().into()
    }
}
